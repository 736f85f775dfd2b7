//! `[sets.NAME]`: members that come back to one moment together, and the commands around a recovery.

use std::fmt;
use std::path::PathBuf;

use super::{Period, name};
use crate::err;
use crate::error::{Error, Result};

/// A recovery set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoverySet {
    /// Its name in configuration and repository.
    pub name: String,
    /// Its members, in the order of the configuration, each of them once.
    pub members: Vec<SetMember>,
    /// The command that stops the applications.
    pub stop: Vec<String>,
    /// The command that starts them.
    pub start: Vec<String>,
    /// The command that leads users to what was started: names, proxies.
    pub hook: Vec<String>,
    /// The command that succeeds when they work.
    pub health: Vec<String>,
    /// The directory of runs of recoveries; else `recover` below the caches.
    pub state_dir: Option<PathBuf>,
    /// The age above which the newest settled mark is too old.
    pub max_mark_age: Option<Period>,
}

/// The commands of a service, which `pitr recover` runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// The command that stops it.
    pub stop: Vec<String>,
    /// The command that starts it.
    pub start: Vec<String>,
    /// The data directory of a Redis server, absolute.
    pub data_directory: Option<PathBuf>,
}

/// The kinds of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberKind {
    /// A PostgreSQL cluster.
    Cluster,
    /// A Redis server.
    Redis,
    /// A directory.
    Files,
    /// Configuration files.
    Config,
}

impl MemberKind {
    /// The section of the configuration, and the kind of content.
    pub fn section(self) -> &'static str {
        match self {
            MemberKind::Cluster => "clusters",
            MemberKind::Redis => "redis",
            MemberKind::Files => "files",
            MemberKind::Config => "config",
        }
    }
}

/// A member. Its text is that of the configuration: `main`, `redis:shop`, `files:uploads`, `config:host`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetMember {
    pub kind: MemberKind,
    /// Its name in the section of its kind.
    pub name: String,
}

impl std::str::FromStr for SetMember {
    type Err = Error;

    fn from_str(text: &str) -> Result<SetMember> {
        let (kind, own) = match text.split_once(':') {
            None | Some(("cluster", _)) => (
                MemberKind::Cluster,
                text.strip_prefix("cluster:").unwrap_or(text),
            ),
            Some(("redis", own)) => (MemberKind::Redis, own),
            Some(("files", own)) => (MemberKind::Files, own),
            Some(("config", own)) => (MemberKind::Config, own),
            Some((kind, _)) => {
                return Err(err!(
                    Config,
                    "\"{}\" is no kind of member",
                    kind.escape_debug()
                )
                .hint("A member is the name of a cluster, or redis:NAME, files:NAME or config:NAME."));
            }
        };
        name::check("member", own)?;
        Ok(SetMember {
            kind,
            name: own.to_owned(),
        })
    }
}

impl fmt::Display for SetMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            MemberKind::Cluster => write!(f, "{}", self.name),
            kind => write!(f, "{}:{}", kind.section(), self.name),
        }
    }
}

impl serde::Serialize for SetMember {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Reads the members of a set.
///
/// # Errors
/// `Config` for an empty list, a member that is no member, and one that is named twice.
pub(super) fn members(texts: &[String]) -> Result<Vec<SetMember>> {
    let mut members: Vec<SetMember> = Vec::new();
    for text in texts {
        let member: SetMember = text.parse()?;
        if members.contains(&member) {
            return Err(err!(Config, "member \"{member}\" is named twice"));
        }
        members.push(member);
    }
    match members.is_empty() {
        true => Err(err!(Config, "a recovery set needs members")),
        false => Ok(members),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Result<Vec<SetMember>> {
        members(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_member_reads_back_as_it_was_written() {
        let texts = ["main", "redis:shop", "files:uploads", "config:host"];
        let read = of(&texts).unwrap();
        let shown: Vec<String> = read.iter().map(ToString::to_string).collect();
        assert_eq!(shown, texts);
        assert_eq!(of(&["cluster:main"]).unwrap(), of(&["main"]).unwrap());
    }

    #[test]
    fn what_is_no_member_is_refused() {
        for texts in [
            &[][..],
            &["logical:x"],
            &["redis:"],
            &["main", "cluster:main"],
            &["../x"],
        ] {
            assert!(of(texts).is_err(), "{texts:?}");
        }
    }
}
