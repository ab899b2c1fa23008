//! A mount's file: TOML, whose keys are the long names of options, with `-` or `_`.
//!
//! What always holds: whatever is refused is said with the file and the line; a path in it is absolute, for nobody
//! knows where who reads it stands.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::Failure;
use super::generic::{self, Generic};
use super::optstr::split;
use super::table::{CONFIG, Kind, MOUNT_POINT, Table};
use super::{Origin, Setting, Value};

/// No list of options is longer, in bytes.
const LONGEST: u64 = 1 << 20;

/// Options whose values are paths, or begin with one.
const PATHS: [&str; 2] = [MOUNT_POINT, "backing"];

/// Reads the settings of a file.
pub(super) fn read(path: &Path, table: &Table) -> Result<Vec<Setting>, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::bad_value(format!("--config {}: {e}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| fail(&e))?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(|e| fail(&e))?;
    if text.len() as u64 > LONGEST {
        return Err(fail(&"it's longer than a megabyte; that's no file with options"));
    }
    parse(path, &text, table)
}

/// Takes the settings from its text.
pub(super) fn parse(path: &Path, text: &str, table: &Table) -> Result<Vec<Setting>, Failure> {
    let path: Arc<Path> = path.into();
    let at = |offset: usize| {
        let line = 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        Origin::File(path.clone(), line)
    };
    let keys = DeTable::parse(text).map_err(|e| {
        let origin = at(e.span().map_or(0, |span| span.start));
        origin.failure(41, e.message().lines().collect::<Vec<_>>().join(", "))
    })?;
    let mut settings = Vec::<Setting>::new();
    for (key, value) in keys.get_ref() {
        let origin = at(key.span().start);
        let name = key.get_ref().replace('_', "-");
        let kind = match table.kind(&name).filter(|_| name != CONFIG) {
            Some(kind) => kind,
            None if generic::generic(&name).is_some() => {
                let message = format!("{name:?} is one of mount(8)'s options; write options = [{name:?}]");
                return Err(origin.failure(2, message));
            }
            None => return Err(origin.failure(2, table.unknown(&name))),
        };
        if settings.iter().any(|setting| setting.name == name) {
            return Err(origin.failure(41, format!("{name} is there twice, with - and with _")));
        }
        let value =
            of(&name, kind, value).map_err(|(offset, e)| at(offset).failure(41, format!("{name}: {e}")))?;
        let setting = Setting { name, value, origin };
        table.check(&setting)?;
        settings.push(setting);
    }
    Ok(settings)
}

/// Which of mount(8)'s options `options` of a file has.
pub(super) fn kernel(setting: &Setting) -> Result<Vec<Generic>, Failure> {
    let Value::Texts(lists) = &setting.value else { return Ok(Vec::new()) };
    let mut kernel = Vec::new();
    for list in lists {
        for word in split(&list.to_string_lossy())? {
            match generic::generic(&word) {
                Some(option @ (Generic::Kernel(_) | Generic::Not(_) | Generic::LeftOut)) => {
                    kernel.push(option);
                }
                Some(Generic::Refused(why)) => {
                    return Err(setting.origin.failure(2, format!("{word}: {why}")));
                }
                _ => {
                    let message =
                        format!("{word:?} is none of mount(8)'s options that a kvfs knows; its own are keys");
                    return Err(setting.origin.failure(2, message));
                }
            }
        }
    }
    Ok(kernel)
}

/// Where it's wrong, and how.
type Wrong = (usize, String);

fn of(name: &str, kind: Kind, value: &Spanned<DeValue<'_>>) -> Result<Value, Wrong> {
    let wrong = |message: &str| (value.span().start, message.to_owned());
    let texts = match (kind, value.get_ref()) {
        (Kind::Switch, DeValue::Boolean(on)) => return Ok(Value::Switch(*on)),
        (Kind::Switch, _) => return Err(wrong("it's true or false, without quotes")),
        (Kind::List, DeValue::Array(elements)) => {
            elements.iter().map(|element| text(name, element)).collect::<Result<Vec<_>, _>>()?.concat()
        }
        (Kind::One, DeValue::Array(_)) => return Err(wrong("it's one value, not a list")),
        (_, _) => text(name, value)?,
    };
    let is_path = |text: &&OsString| {
        let text = text.to_string_lossy();
        let text = text.strip_prefix("file://").unwrap_or(&text);
        text.split(',').map(str::trim).all(|path| path.is_empty() || path.starts_with('/'))
    };
    match texts.iter().find(|text| PATHS.contains(&name) && !is_path(text)) {
        Some(relative) => Err((
            value.span().start,
            format!("{:?} is no absolute path; in a file it has to be one", relative.to_string_lossy()),
        )),
        None => Ok(Value::Texts(texts)),
    }
}

/// The flag's value that says the same; several of a table.
fn text(name: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<OsString>, Wrong> {
    let wrong = |message: String| (value.span().start, message);
    Ok(vec![match value.get_ref() {
        DeValue::String(text) => OsString::from(&**text),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().into(),
        DeValue::Float(number) => number.as_str().into(),
        DeValue::Table(keys) if name == "backing" => backing(keys).map_err(wrong)?.into(),
        DeValue::Table(keys) if name == "gpu-map" => {
            let entry = |(gpu, to): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                let gpu: &str = std::convert::AsRef::<str>::as_ref(gpu.get_ref());
                Ok(text(name, to)?
                    .into_iter()
                    .map(|to| format!("{gpu}={}", to.to_string_lossy()).into())
                    .collect())
            };
            return keys
                .iter()
                .map(entry)
                .collect::<Result<Vec<Vec<OsString>>, Wrong>>()
                .map(|all| all.concat());
        }
        other => {
            return Err(wrong(format!(
                "a {} can't be its value; write a text, such as \"...\"",
                other.type_str()
            )));
        }
    }])
}

/// A backing as a table, with its path and flags as keys, as `--backing` has it.
fn backing(keys: &DeTable<'_>) -> Result<String, String> {
    let path = keys.get("path").and_then(|path| path.get_ref().as_str());
    let mut spec = path.ok_or("a backing's table has its path: { path = \"/nvme0/kv\", ... }")?.to_owned();
    if spec.contains(',') {
        return Err(format!(
            "{spec:?}: a backing's path can't have a comma; give it another name by a symbolic link"
        ));
    }
    // A colon in the last part would begin the flags.
    if spec.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        spec.push('/');
    }
    for (key, value) in keys.iter().filter(|(key, _)| key.get_ref() != "path") {
        let key = key.get_ref().replace('_', "-");
        match value.get_ref() {
            DeValue::Boolean(true) => spec.extend([":", &key]),
            DeValue::Boolean(false) => {}
            DeValue::String(size) => spec.extend([":", &key, "=", size]),
            DeValue::Integer(size) if size.radix() == 10 => spec.extend([":", &key, "=", size.as_str()]),
            other => return Err(format!("{key}: a {} can't be its value", other.type_str())),
        }
    }
    // What flags there are, the backing says.
    spec.parse::<crate::backing::Spec>().map(|_| spec)
}
