//! One line of the report.

use serde::Serialize;
use std::borrow::Cow;
use std::fmt;

/// How it stands with what a check looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// Usable.
    Ok,
    /// Usable, but not in full or not as fast.
    Limited,
    /// Not usable, and something would be the better for it.
    Missing,
    /// Not there, which is a normal answer.
    None,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
            Self::None => "none",
        })
    }
}

/// What was looked at, what was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// The heading it stands under.
    pub(super) group: &'static str,
    /// What was looked at; unique in a report.
    pub(super) name: &'static str,
    /// How it stands.
    pub(super) status: Status,
    /// What was found.
    pub(super) found: Cow<'static, str>,
    /// How to get what isn't there, or more of it.
    pub(super) advice: Option<Cow<'static, str>>,
    /// Whether no mount can work while this is missing.
    pub(super) essential: bool,
}

impl Check {
    /// A check that hasn't found anything yet.
    pub(super) fn new(group: &'static str, name: &'static str) -> Self {
        Self { group, name, status: Status::None, found: "".into(), advice: None, essential: false }
    }

    pub(super) fn ok(self, found: impl Into<Cow<'static, str>>) -> Self {
        Self { status: Status::Ok, found: found.into(), ..self }
    }

    pub(super) fn limited(
        self,
        found: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status: Status::Limited, found: found.into(), advice: Some(advice.into()), ..self }
    }

    pub(super) fn missing(
        self,
        found: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status: Status::Missing, found: found.into(), advice: Some(advice.into()), ..self }
    }

    pub(super) fn none(self, found: impl Into<Cow<'static, str>>) -> Self {
        Self { status: Status::None, found: found.into(), ..self }
    }

    /// No mount can work while this is missing.
    pub(super) fn essential(self) -> Self {
        Self { essential: true, ..self }
    }
}
