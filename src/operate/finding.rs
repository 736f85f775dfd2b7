//! Findings: what was looked at, how it stands, and what helps.

use std::path::Path;

use serde::{Serialize, Serializer};

use super::archive_command::shell_word;
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

impl Level {
    /// The level as monitoring names it: `ok`, `warning`, `critical`.
    pub fn state(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warning",
            Level::Fail => "critical",
        }
    }

    /// Writes the level as monitoring names it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn as_state<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.state())
    }
}

/// One thing that was looked at. Group and name tell it again in the next look.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The subject: "server", "repository".
    pub group: &'static str,
    /// The thing that was looked at.
    pub name: String,
    /// How it stands.
    pub level: Level,
    /// The observation, in a few words.
    pub value: String,
    /// The cause, or the impact.
    pub cause: Option<String>,
    /// The command or setting that helps.
    #[serde(rename = "fix")]
    pub next: Option<String>,
}

impl Finding {
    /// A finding whose value says it all.
    pub fn new(group: &'static str, name: &str, level: Level, value: impl Into<String>) -> Finding {
        Finding {
            group,
            name: name.to_owned(),
            level,
            value: value.into(),
            cause: None,
            next: None,
        }
    }

    /// The same, with the command or setting that helps.
    #[must_use]
    pub fn with_next(self, next: impl Into<String>) -> Finding {
        Finding {
            next: Some(next.into()),
            ..self
        }
    }
}

/// Names the cluster in the commands that help, where several could be meant.
pub fn name_cluster(findings: &mut [Finding], cluster: &str) {
    let commands = findings.iter_mut().filter_map(|f| f.next.as_mut());
    commands.for_each(|next| *next = naming(next, cluster));
}

/// A command with the name of the cluster in it. Other texts stay as they are.
pub fn naming(command: &str, cluster: &str) -> String {
    let words = command.strip_prefix("pitr ");
    let words = words.filter(|words| !words.starts_with("--cluster "));
    words.map_or(command.to_owned(), |words| {
        format!("pitr --cluster {} {words}", shell_word(cluster))
    })
}

/// Adds the configuration that this command was given to commands in a text that start a receiver: without it they find none.
pub fn with_config(text: &str, config: Option<&Path>) -> String {
    const RECEIVE: &str = "pitr receive";
    match config {
        Some(config) => {
            let config = shell_word(&config.to_string_lossy());
            text.replace(RECEIVE, &format!("{RECEIVE} --config {config}"))
        }
        None => text.to_owned(),
    }
}

/// Findings so far, in the order in which they are shown.
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
            cause,
            next,
            ..Finding::new(self.group, name, level, value)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_starts_a_receiver_names_the_configuration() {
        let config = Some(Path::new("/srv/pitr.toml"));
        let begin = "pitr receive --drop-slot, then pitr receive --create-slot";
        let with = "pitr receive --config /srv/pitr.toml";
        let both = format!("{with} --drop-slot, then {with} --create-slot");
        assert_eq!(with_config(begin, config), both);
        assert_eq!(with_config("pitr doctor", config), "pitr doctor");
        assert_eq!(with_config(begin, None), begin);
    }
}
