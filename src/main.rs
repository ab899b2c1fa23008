//! Parses the command line, runs the subcommand, and turns its result into an exit status.

fn main() {}
