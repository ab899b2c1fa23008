//! The options of a mount, from wherever they are said: flags, `-o`, a file.
//!
//! What always holds: there is one table of options, clap's own of `kvfs mount`. Whatever is said elsewhere is put as
//! a flag and taken by clap, so it means the same and is refused with the same words. Flags count before `-o`, that
//! before the file, that before the default: each as a whole, lists too.

mod file;
mod generic;
mod optstr;
mod table;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches};

use super::mount_args::MountArgs;
use super::{Cli, Failure};
pub(super) use generic::{Generic, generic, kernel_options};
pub(super) use optstr::join;
use optstr::split;
pub(super) use table::CONFIG;
use table::{MOUNT_POINT, OPTIONS, Table};

/// Where something was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// By a flag, or behind them.
    Flag,
    /// By this one of the options behind `-o`, counted from 1.
    Option(usize),
    /// In this line of a file.
    File(Arc<Path>, usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("the command line"),
            Origin::Option(at) => write!(f, "-o, option {at}"),
            Origin::File(path, line) => write!(f, "{}, line {line}", path.display()),
        }
    }
}

impl Origin {
    /// A failure that began here.
    fn failure(&self, status: u8, message: impl fmt::Display) -> Failure {
        Failure { status, message: format!("{self}: {message}") }
    }
}

/// What was said of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// On, or off as if nobody had named it.
    Switch(bool),
    /// These values; more than one of an option that is a list.
    Texts(Vec<OsString>),
}

/// One option, as it was said somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Its long name, without dashes.
    pub(super) name: String,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Setting {
    /// As flags.
    fn words(&self) -> Vec<OsString> {
        match &self.value {
            Value::Switch(true) => vec![format!("--{}", self.name).into()],
            Value::Switch(false) => Vec::new(),
            Value::Texts(texts) => texts.iter().map(|text| flag(&self.name, text)).collect(),
        }
    }
}

/// Where the options were said that weren't flags.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(Vec<(String, Origin)>);

impl Origins {
    /// Of this option.
    pub(super) fn of(&self, option: &str) -> Option<&Origin> {
        self.0.iter().find(|(name, _)| name == option).map(|(_, origin)| origin)
    }
}

/// What to do about options that nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    Refused,
    /// Left out, where `-o` says them (mount(8)'s `-s`).
    LeftOut,
}

/// A mount's options, all in one place.
#[derive(Debug)]
pub(super) struct Resolved {
    /// As the mount takes them.
    pub(super) args: MountArgs,
    /// A whole `kvfs mount` line that says the same by flags alone.
    pub(super) words: Vec<OsString>,
}

/// Takes a whole `kvfs mount` line, the program first, and what it refers to.
pub(super) fn resolve(words: &[OsString]) -> Result<Resolved, Failure> {
    resolve_with(words, Unknown::Refused)
}

/// The same; `unknown` says what becomes of options that aren't known.
pub(super) fn resolve_with(words: &[OsString], unknown: Unknown) -> Result<Resolved, Failure> {
    let table = Table::new();
    let matches = Cli::command().try_get_matches_from(words).map_err(|e| Failure::usage(&e))?;
    let mount = matches.subcommand_matches("mount").ok_or_else(|| Failure::other("it's no mount"))?;
    let flags = table.given(mount);
    let said: Vec<String> = mount.get_many("options").into_iter().flatten().cloned().collect();
    let (options, mut kernel) = optstr::settings(&said, &table, unknown)?;
    let config = [&flags, &options].into_iter().find_map(|layer| one(layer, CONFIG));
    let file = match &config {
        Some(path) => file::read(Path::new(path), &table)?,
        None => Vec::new(),
    };
    if let Some(in_file) = file.iter().find(|setting| setting.name == OPTIONS) {
        kernel.splice(0..0, file::kernel(in_file)?);
    }
    let kernel = generic::together(kernel);
    let layers = [&flags, &options, &file];
    let mut plain: Vec<OsString> = vec!["kvfs".into(), "mount".into()];
    // Our own words to a daemon, if it's one of ours that is started.
    let mut ours = Vec::new();
    let mut origins = Origins::default();
    for name in table.names() {
        let Some(setting) = layers.iter().find_map(|layer| layer.iter().find(|s| s.name == name)) else {
            continue;
        };
        if setting.origin != Origin::Flag {
            origins.0.push((name.to_owned(), setting.origin.clone()));
        }
        match (name, &setting.value) {
            (CONFIG | OPTIONS | MOUNT_POINT, _) => {}
            _ if table.is_hidden(name) => ours.extend(setting.words()),
            _ => plain.extend(setting.words()),
        }
    }
    plain.extend(kernel.iter().map(|option| format!("--{OPTIONS}={}", option.name()).into()));
    if let Some(point) = layers.iter().find_map(|layer| one(layer, MOUNT_POINT)) {
        plain.extend(["--".into(), point]);
    }
    let all = plain[..2].iter().chain(&ours).chain(&plain[2..]);
    let matches = Cli::command().try_get_matches_from(all).map_err(|e| Failure::usage(&e))?;
    let mount = matches.subcommand_matches("mount").ok_or_else(|| Failure::other("it's no mount"))?;
    let mut args = MountArgs::from_arg_matches(mount).map_err(|e| Failure::usage(&e))?;
    args.origins = origins;
    Ok(Resolved { args, words: plain })
}

/// The one value of an option in a layer.
fn one(layer: &[Setting], name: &str) -> Option<OsString> {
    layer.iter().find(|setting| setting.name == name).and_then(|setting| match &setting.value {
        Value::Texts(texts) => texts.first().cloned(),
        Value::Switch(_) => None,
    })
}

/// The options of several strings behind `-o`.
pub(super) fn split_all(said: &[String]) -> Result<Vec<String>, Failure> {
    Ok(said.iter().map(|text| split(text)).collect::<Result<Vec<_>, _>>()?.concat())
}

/// All that a file could say of this mount: lines of such a file, each with where its value comes from.
pub(super) fn effective(said: &Resolved) -> Result<Vec<String>, Failure> {
    let table = Table::new();
    let matches = Cli::command().try_get_matches_from(&said.words).map_err(|e| Failure::usage(&e))?;
    let mount = matches.subcommand_matches("mount").ok_or_else(|| Failure::other("it's no mount"))?;
    let given = table.given(mount);
    let line = |name: &str| {
        let is_given = given.iter().any(|setting| setting.name == name);
        let from = match said.args.origins.of(name) {
            Some(origin) => origin.to_string(),
            None if is_given => Origin::Flag.to_string(),
            None => "default".into(),
        };
        match table.toml(mount, name) {
            Some(value) => format!("{name} = {value}  # {from}"),
            None => format!("# {name}  # {from}"),
        }
    };
    Ok(table.in_file().map(line).collect())
}

impl Resolved {
    /// kvfs's own options that were said somewhere.
    pub(super) fn own_names(&self) -> Vec<String> {
        let flags = self.words.iter().take_while(|word| *word != "--").map(|word| word.to_string_lossy());
        let names = flags.filter_map(|word| Some(word.strip_prefix("--")?.split('=').next()?.to_owned()));
        let mut names: Vec<String> = names.filter(|name| name != OPTIONS).collect();
        names.dedup();
        names
    }
}

/// The `kvfs mount` line by a file.
pub(super) fn line_of(file: &Path) -> Vec<OsString> {
    vec!["kvfs".into(), "mount".into(), flag(CONFIG, file.as_os_str())]
}

/// An option with its value as one word.
pub(super) fn flag(name: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(format!("--{name}="));
    word.push(value);
    word
}

/// Whether a SPEC of mount(8) is a file with options, not a list of backings.
pub(super) fn is_file(spec: &OsStr) -> bool {
    let path = PathBuf::from(spec);
    path.extension() == Some("toml".as_ref()) && !spec.to_string_lossy().contains(',')
}

#[cfg(test)]
mod tests;
