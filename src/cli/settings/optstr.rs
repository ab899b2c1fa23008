//! What stands behind `-o`: options separated by commas, as mount(8) and fstab(5) have them.
//!
//! What always holds: a comma separates unless it's in double quotes or behind a backslash, as libmount has it; the
//! quotes are no part of a value. Of an option that is said twice the last counts; lists grow.

use super::super::Failure;
use super::generic::{self, Generic};
use super::table::{Kind, OPTIONS, Table};
use super::{Origin, Setting, Unknown, Value};

/// The options of one string.
pub(super) fn split(text: &str) -> Result<Vec<String>, Failure> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let last = words.len() - 1;
        match c {
            '"' => quoted = !quoted,
            '\\' if rest.peek() == Some(&',') => words[last].extend(rest.next()),
            ',' if !quoted => words.push(String::new()),
            c => words[last].push(c),
        }
    }
    if quoted {
        return Err(Failure { status: 2, message: format!("-o {text}: a quote isn't closed") });
    }
    Ok(words.into_iter().map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect())
}

/// The settings of these strings, and which of mount(8)'s they have.
pub(super) fn settings(
    said: &[String],
    table: &Table,
    unknown: Unknown,
) -> Result<(Vec<Setting>, Vec<Generic>), Failure> {
    let (mut settings, mut kernel) = (Vec::<Setting>::new(), Vec::new());
    let words = super::split_all(said)?;
    for (at, word) in words.iter().enumerate() {
        let origin = Origin::Option(at + 1);
        let (name, value) = word.split_once('=').map_or((&**word, None), |(name, value)| (name, Some(value)));
        match generic::generic(name) {
            Some(Generic::Refused(why)) => return Err(origin.failure(2, format!("{name}: {why}"))),
            Some(Generic::Remount) => {
                let how = "a mount that is there is changed by `mount -o remount,...`, `kvfs backing` and `kvfs upgrade`";
                return Err(origin.failure(2, format!("{name}: {how}")));
            }
            Some(option) => {
                kernel.push(option);
                continue;
            }
            None => {}
        }
        let name = name.replace('_', "-");
        let kind = match table.kind(&name).filter(|_| name != OPTIONS) {
            Some(kind) => kind,
            None if unknown == Unknown::LeftOut => continue,
            None => return Err(origin.failure(2, table.unknown(&name))),
        };
        let value = match (kind, value) {
            (Kind::Switch, None | Some("true")) => Value::Switch(true),
            (Kind::Switch, Some("false")) => Value::Switch(false),
            (Kind::Switch, Some(value)) => {
                return Err(origin.failure(41, format!("{name}={value}: it's true or false")));
            }
            (_, Some(value)) => Value::Texts(vec![value.into()]),
            (_, None) => return Err(origin.failure(2, format!("{name} needs a value: {name}=..."))),
        };
        let setting = Setting { name, value, origin };
        table.check(&setting)?;
        let before = settings.iter_mut().find(|before| before.name == setting.name);
        match (before, kind) {
            (None, _) => settings.push(setting),
            (Some(Setting { value: Value::Texts(all), .. }), Kind::List) => {
                if let Value::Texts(more) = setting.value {
                    all.extend(more);
                }
            }
            (Some(before), _) => *before = setting,
        }
    }
    Ok((settings, kernel))
}

/// Options of one string again.
pub(in super::super) fn join(words: &[String]) -> String {
    words.iter().map(|word| word.replace(',', "\\,")).collect::<Vec<_>>().join(",")
}
