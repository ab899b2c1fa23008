//! Parses the command line, runs the subcommand, and turns its result into an exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvfs::cli::main()
}
