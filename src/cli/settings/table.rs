//! The table of options: clap's definition of `kvfs mount`, and what of it may be said elsewhere than by flags.
//!
//! What always holds: no name of an option is written here that isn't special.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command};

use super::super::mount_args::MountArgs;
use super::super::{Failure, exit};
use super::{Setting, Value};

/// The option that names the file.
pub(in super::super) const CONFIG: &str = "config";
/// The option that is mount(8)'s `-o`.
pub(in super::super) const OPTIONS: &str = "options";
/// Where to mount, by this name in a file.
pub(in super::super) const MOUNT_POINT: &str = "mount-point";
/// How the command behaves, not what the mount is like: for the command line alone.
const FOREGROUND: &str = "foreground";

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// On or off.
    Switch,
    /// One value.
    One,
    /// Several values.
    List,
}

/// The options of `kvfs mount`.
pub(in super::super) struct Table(Command);

impl Table {
    pub(in super::super) fn new() -> Table {
        let mut command = MountArgs::augment_args(Command::new("kvfs")).disable_help_flag(true);
        command.build();
        Table(command)
    }

    /// The names of all, in the order of `--help`.
    pub(in super::super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.get_arguments().map(name_of)
    }

    /// Those that a file may have.
    pub(in super::super) fn in_file(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| !self.is_hidden(name) && ![CONFIG, FOREGROUND].contains(name))
    }

    fn arg(&self, name: &str) -> Option<&Arg> {
        self.0.get_arguments().find(|arg| name_of(arg) == name)
    }

    pub(in super::super) fn is_hidden(&self, name: &str) -> bool {
        self.arg(name).is_some_and(Arg::is_hide_set)
    }

    /// What this name stands for, if `-o` or a file may say it.
    pub(super) fn kind(&self, name: &str) -> Option<Kind> {
        let arg = self.arg(name).filter(|arg| !arg.is_hide_set() && name != FOREGROUND)?;
        Some(match arg.get_action() {
            ArgAction::SetTrue => Kind::Switch,
            ArgAction::Append => Kind::List,
            _ => Kind::One,
        })
    }

    /// The value of an option as a file has it; `None` where there is none, nor a default that could be written.
    pub(super) fn toml(&self, matches: &ArgMatches, name: &str) -> Option<String> {
        let arg = self.arg(name)?;
        let id = arg.get_id().as_str();
        let write = |value: &OsString| {
            let text = value.to_string_lossy();
            match text.parse::<f64>().is_ok_and(f64::is_finite) && !text.contains('+') {
                true => text.into_owned(),
                // A text of JSON is one of TOML.
                false => serde_json::Value::from(text).to_string(),
            }
        };
        let values = values(matches, id);
        match (self.kind(name)?, &*values) {
            (Kind::Switch, _) => Some(matches.get_flag(id).to_string()),
            (Kind::List, []) => None,
            (Kind::List, all) => Some(format!("[{}]", all.iter().map(write).collect::<Vec<_>>().join(", "))),
            (Kind::One, [one]) if !one.is_empty() => Some(write(one)),
            (Kind::One, _) => None,
        }
    }

    /// What flags say.
    pub(super) fn given(&self, matches: &ArgMatches) -> Vec<Setting> {
        let given = |arg: &Arg| {
            let id = arg.get_id().as_str();
            (matches.value_source(id)? == ValueSource::CommandLine).then(|| Setting {
                name: name_of(arg).to_owned(),
                value: match arg.get_action() {
                    ArgAction::SetTrue => Value::Switch(true),
                    _ => Value::Texts(values(matches, id)),
                },
                origin: super::Origin::Flag,
            })
        };
        self.0.get_arguments().filter_map(given).collect()
    }

    /// Has clap look at a setting that wasn't a flag.
    pub(super) fn check(&self, setting: &Setting) -> Result<(), Failure> {
        let words = match setting.name == MOUNT_POINT {
            true => Vec::new(),
            false => setting.words(),
        };
        let words = [OsString::from("kvfs")].into_iter().chain(words);
        match self.0.clone().try_get_matches_from(words) {
            Ok(_) => Ok(()),
            Err(e) => Err(setting.origin.failure(exit::of_usage(&e), exit::one_sentence(&e))),
        }
    }

    /// What to say of a name that nobody knows.
    pub(super) fn unknown(&self, name: &str) -> String {
        if name == FOREGROUND {
            return format!("{name} is for the command line alone (-f)");
        }
        let word = format!("--{name}");
        let error = self.0.clone().try_get_matches_from(["kvfs", &word]).err();
        let nearest = error.and_then(|e| match e.get(ContextKind::SuggestedArg)? {
            ContextValue::String(flag) => Some(flag.trim_start_matches('-').to_owned()),
            ContextValue::Strings(flags) => Some(flags.first()?.trim_start_matches('-').to_owned()),
            _ => None,
        });
        match nearest.filter(|nearest| self.kind(nearest).is_some()) {
            Some(nearest) => format!("there is no option {name:?}; did you mean {nearest:?}?"),
            None => format!("there is no option {name:?}; `kvfs mount --help` lists those there are"),
        }
    }
}

/// The long name; of what has none (where to mount) its own.
fn name_of(arg: &Arg) -> &str {
    arg.get_long().unwrap_or(MOUNT_POINT)
}

/// The values of an option, as they were written.
pub(in super::super) fn values(matches: &ArgMatches, id: &str) -> Vec<OsString> {
    let raw = matches.try_get_raw(id).ok().flatten().into_iter().flatten();
    raw.map(OsString::from).collect()
}
