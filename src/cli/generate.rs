//! `kvfs generate`: man pages and completions, from the same definition as `--help`.
//!
//! What always holds: a page for each command that `--help` lists, and none for those that it hides.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Cli, Failure};

/// The manual's section: commands of an administrator.
const SECTION: &str = "8";

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write the man pages, one for each command, into a directory
    Man {
        /// The directory; it's made if it isn't there
        dir: PathBuf,
    },
    /// Print what completes kvfs's commands and options in a shell, for the shell to read
    Completions {
        /// The shell
        shell: Shell,
    },
}

pub(super) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    match &args.what {
        What::Man { dir } => fs::create_dir_all(dir)
            .and_then(|()| pages(dir))
            .map_err(|e| Failure::other(format!("man pages can't be written to {}: {e}", dir.display()))),
        What::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "kvfs", &mut script);
            match io::stdout().write_all(&script) {
                // Who reads has had enough.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written.map_err(|e| Failure::other(format!("standard output: {e}"))),
            }
        }
    }
}

fn pages(dir: &Path) -> io::Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    // Gives each command below its full name: `kvfs-backing-add`.
    command.build();
    page(command, None, dir)
}

/// The page of a command, and those of the commands below it.
fn page(command: Command, parent: Option<&str>, dir: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or("kvfs").to_owned();
    let below: Vec<Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).cloned().collect();
    let has_below = !below.is_empty();
    for command in below {
        page(command, Some(&name), dir)?;
    }
    let man = Man::new(command).section(SECTION).source(crate::version::described()).manual("kvfs");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_below {
        man.render_subcommands_section(&mut text)?;
    }
    last_sections(parent).to_writer(&mut text)?;
    fs::write(dir.join(man.get_filename()), text)
}

fn last_sections(parent: Option<&str>) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]).control("nf", []);
    for line in super::exit::HELP.lines().skip(1) {
        roff.text([roman(line.trim_start_matches("  "))]);
    }
    roff.control("fi", []);
    if let Some(parent) = parent {
        roff.control("SH", ["SEE ALSO"]).text([bold(parent), roman(format!("({SECTION})"))]);
    }
    roff
}
