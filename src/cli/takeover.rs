//! Whether this kvfs could take a mount over: asked of a new executable before the running daemon is stopped.
//!
//! What always holds: it looks, and changes nothing; what is said here is what the daemon that is then started
//! with the same words finds, too.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, CommandFactory};
use serde::{Deserialize, Serialize};

use super::{Cli, Failure, settings};
use crate::config::backing_specs;
use crate::version;

/// The hidden subcommand.
pub(super) const NAME: &str = "can-take-over";

/// What is asked, on standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Inquiry {
    /// The version of what the running daemon hands over.
    pub(super) state_version: u8,
    /// The words that it was started with, the program first.
    pub(super) words: Vec<OsString>,
    /// Where it was started.
    pub(super) dir: PathBuf,
    /// Options that the operator has named for the new one, and where.
    pub(super) options: Option<(Vec<OsString>, PathBuf)>,
}

/// The answer, on standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Suitability {
    /// `kvfs`.
    pub(super) program: String,
    /// Version and build.
    pub(super) version: String,
    /// Why it can't take over.
    pub(super) refusal: Option<String>,
}

/// Say whether this kvfs could take a mount over
#[derive(Debug, clap::Args)]
pub(super) struct TakeoverArgs {}

pub(super) fn run(_: &TakeoverArgs) -> Result<(), Failure> {
    let inquiry: Inquiry = serde_json::from_reader(io::stdin().lock())
        .map_err(|e| Failure::other(format!("this is for kvfs itself, not for operators: {e}")))?;
    let answer = Suitability {
        program: "kvfs".into(),
        version: version::described().into(),
        refusal: examine(&inquiry).err(),
    };
    serde_json::to_writer(io::stdout().lock(), &answer).map_err(Failure::other)
}

fn examine(inquiry: &Inquiry) -> Result<(), String> {
    let own = version::state_version();
    if inquiry.state_version != own {
        return Err(format!(
            "what the running daemon hands over is of version {}, and kvfs {} takes over version {own}; unmount, and mount with the new one",
            inquiry.state_version,
            version::described()
        ));
    }
    in_dir(&inquiry.dir, || check(&inquiry.words))
        .map_err(|e| format!("kvfs {} can't be started as the mount was: {e}", version::described()))?;
    let Some((words, dir)) = &inquiry.options else { return Ok(()) };
    let now = in_dir(&inquiry.dir, || Options::of(&inquiry.words))?;
    let then = in_dir(dir, || check(words).and_then(|()| Options::of(words)))?;
    let differing: Vec<String> = now.differing(&then).collect();
    match differing.len() {
        0 => Ok(()),
        _ => Err(format!(
            "the options aren't those of the mount ({}); leave them out to go on with its own, or unmount and mount with the new ones",
            differing.join("; ")
        )),
    }
}

fn in_dir<T>(dir: &PathBuf, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // If it has gone only relative paths are missed.
    let _ = std::env::set_current_dir(dir);
    work()
}

fn sentence(e: clap::Error) -> String {
    super::exit::one_sentence(&e)
}

/// Which of these options have other values in the line `then` than the mount has, by its own line.
pub(super) fn differing(
    mount: &[OsString],
    then: &[OsString],
    names: &[String],
) -> Result<Vec<String>, String> {
    let only = |line| {
        let Options(mut all) = Options::of(line)?;
        all.retain(|(name, _)| names.contains(name));
        Ok::<_, String>(Options(all))
    };
    Ok(only(mount)?.differing(&only(then)?).collect())
}

/// Whether a daemon that takes over could be started with these words.
fn check(words: &[OsString]) -> Result<(), String> {
    settings::resolve(words).and_then(|said| said.args.check_serving()).map_err(|failure| failure.message)
}

/// The options of a mount as this kvfs understands them: names and values, those that weren't given too.
struct Options(Vec<(String, String)>);

impl Options {
    /// Of a whole `kvfs mount` line.
    fn of(words: &[OsString]) -> Result<Options, String> {
        let said = settings::resolve(words).map_err(|failure| failure.message)?;
        let matches = Cli::command().try_get_matches_from(&said.words).map_err(sentence)?;
        let mount = matches.subcommand_matches("mount").ok_or("it's no mount")?;
        let command = Cli::command();
        let known = command.find_subcommand("mount").into_iter().flat_map(|mount| mount.get_arguments());
        // Where the mount is and who looks on is no matter of how it behaves.
        let counts = |arg: &&Arg| {
            let name = arg.get_id().as_str();
            !arg.is_hide_set() && !["mount_point", "foreground", "fsname", "help"].contains(&name)
        };
        let option =
            |arg: &Arg| (arg.get_id().as_str().replace('_', "-"), value(mount, arg.get_id().as_str()));
        Ok(Options(known.filter(counts).map(option).collect()))
    }

    /// Each option that has another value in `other`.
    fn differing<'a>(&'a self, other: &'a Options) -> impl Iterator<Item = String> + 'a {
        let say = |value: &str| if value.is_empty() { "not given".to_owned() } else { value.to_owned() };
        self.0.iter().zip(&other.0).filter(|(a, b)| a != b).map(move |((name, now), (_, then))| {
            format!("--{name}: the mount has {}, given was {}", say(now), say(then))
        })
    }
}

/// All values of an option in one line; of backings what they mean, not how they're written.
fn value(mount: &ArgMatches, name: &str) -> String {
    let raw = mount.try_get_raw(name).ok().flatten().into_iter().flatten();
    let text = raw.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(",");
    if name != "backing" {
        return text;
    }
    let specs: Result<Vec<_>, _> = backing_specs(&text).collect();
    let plain = |spec: crate::backing::Spec| {
        let path = std::fs::canonicalize(&spec.path).unwrap_or(spec.path.clone()).display().to_string();
        let flags = format!("{:?}", crate::backing::Spec { path: PathBuf::new(), ..spec.clone() });
        let none = format!("{:?}", crate::backing::Spec::from(PathBuf::new()));
        if flags == none { path } else { format!("{path} {flags}") }
    };
    specs.map_or(text, |specs| specs.into_iter().map(plain).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(words: &str) -> Result<(), String> {
        check(&words.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn an_option_that_this_kvfs_does_not_know_is_said() {
        let refusal = checked("kvfs mount /mnt --backing /a --turbo").unwrap_err();
        assert!(refusal.contains("--turbo"), "{refusal}");
        assert!(checked("kvfs status /mnt").is_err());
    }

    #[test]
    fn another_state_is_refused() {
        let inquiry = Inquiry { state_version: 200, words: Vec::new(), dir: "/".into(), options: None };
        let refusal = examine(&inquiry).unwrap_err();
        assert!(refusal.contains("version 200") && refusal.contains("unmount"), "{refusal}");
    }
}
