//! Findings: what was looked at, how it stands, and what helps.

use serde::Serialize;

use crate::error::Error;
use crate::exit;

/// How a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// Something does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What it is about: "server", "repository".
    pub group: &'static str,
    /// What was looked at.
    pub name: String,
    /// How it stands.
    pub level: Level,
    /// What was found, in a few words.
    pub value: String,
    /// What is wrong, or what comes of it.
    pub cause: Option<String>,
    /// The command or setting that helps.
    #[serde(rename = "fix")]
    pub next: Option<String>,
}

/// What was found so far, in the order in which it is shown.
#[derive(Default)]
pub struct Findings {
    /// All of them.
    pub all: Vec<Finding>,
    group: &'static str,
}

impl Findings {
    /// Begins a group.
    pub fn begin(&mut self, group: &'static str) {
        self.group = group;
    }

    /// Adds what is as it should be.
    pub fn ok(&mut self, name: &str, value: impl Into<String>) {
        self.add(Level::Ok, name, value.into(), None, None);
    }

    /// Adds what could be better.
    pub fn warn(
        &mut self,
        name: &str,
        value: impl Into<String>,
        cause: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(
            Level::Warn,
            name,
            value.into(),
            Some(cause.into()),
            Some(next.into()),
        );
    }

    /// Adds what does not work.
    pub fn fail(
        &mut self,
        name: &str,
        value: impl Into<String>,
        cause: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(
            Level::Fail,
            name,
            value.into(),
            Some(cause.into()),
            Some(next.into()),
        );
    }

    /// Adds an error, with its hint as what helps.
    pub fn error(&mut self, name: &str, error: &Error) {
        let next = error.hint_text().unwrap_or_default().replace('\n', " ");
        self.fail(name, exit::name(error.code()), error.to_string(), next);
    }

    fn add(
        &mut self,
        level: Level,
        name: &str,
        value: String,
        cause: Option<String>,
        next: Option<String>,
    ) {
        let next = next.filter(|f| !f.is_empty());
        self.all.push(Finding {
            group: self.group,
            name: name.to_owned(),
            level,
            value,
            cause,
            next,
        });
    }
}
