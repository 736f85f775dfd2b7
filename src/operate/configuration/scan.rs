//! Secrets that lie about on this host: where, and who may read them; never what they are.

use std::path::PathBuf;

use serde::Serialize;

use super::{configured, overrides, shown_path, unnarrowed, wanted};
use crate::backup::configuration::collect::{Wanted, collect};
use crate::config::Settings;
use crate::err;
use crate::error::Result;
use crate::operate::session::Session;
use crate::repo::keyring::forbid_core_dumps;
use crate::secrets::Overrides;
use crate::tree::left_out::LeftOut;

/// A secret in a file.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The file.
    pub path: String,
    /// The line in which the secret begins, from 1.
    pub line: usize,
    /// The key that it is the value of; empty where there is none.
    pub key: String,
    /// Why it is taken for one.
    pub rule: &'static str,
    /// The file's permissions, octal.
    pub mode: String,
    /// Whether every user of the host may read it.
    pub world_readable: bool,
}

/// The result of a scan.
pub struct Scanned {
    /// Secrets, by file and line.
    pub findings: Vec<Finding>,
    /// Files that were read.
    pub files: usize,
    /// Files that could not be read.
    pub left_out: LeftOut,
}

/// Reads these paths, or the files of a set.
///
/// # Errors
/// `Usage` without paths and without a name, and for a set in the place of a path; those of [`collect`].
pub fn run(session: &Session, name: Option<&str>, paths: &[PathBuf]) -> Result<Scanned> {
    forbid_core_dumps()?;
    let settings: Option<Settings> = match (name, session.settings()) {
        (_, Ok(settings)) => Some(settings),
        (None, Err(_)) => None,
        (Some(_), Err(e)) => return Err(e),
    };
    if let (None, Some(settings)) = (name, &settings) {
        check_paths(session, settings, paths)?;
    }
    let set = match (name, &settings) {
        (Some(name), Some(settings)) => Some(configured(settings, name)?),
        _ => None,
    };
    let mut asked = match (set, &settings) {
        (Some(set), Some(settings)) if paths.is_empty() => wanted(session, settings, set)?,
        (None, _) if paths.is_empty() => {
            return Err(err!(Usage, "nothing is named to be scanned")
                .hint("Name files or directories, or a set of the configuration with --set."));
        }
        _ => Wanted {
            required: Vec::from_iter(paths.iter().map(|path| session.environment.absolute(path))),
            overrides: match (&settings, set) {
                (Some(settings), Some(set)) => overrides(&unnarrowed(session, settings)?, set),
                _ => Overrides::default(),
            },
            ..Wanted::default()
        },
    };
    asked.forbidden = None;
    let collected = collect(&asked, &session.host)?;
    let mut scanned = Scanned {
        findings: Vec::new(),
        files: 0,
        left_out: collected.left_out,
    };
    for entry in &collected.entries {
        let Some(content) = &entry.content else {
            continue;
        };
        scanned.files += 1;
        let (mut at, mut line) = (0, 1);
        for one in &entry.found {
            let between = content.get(at..one.span.start).unwrap_or_default();
            line += between.iter().filter(|b| **b == b'\n').count();
            at = one.span.start;
            scanned.findings.push(Finding {
                path: shown_path(&entry.path),
                line,
                key: one.key.clone(),
                rule: one.rule.name(),
                mode: format!("{:04o}", entry.node.mode),
                world_readable: entry.node.mode & 0o004 != 0,
            });
        }
    }
    Ok(scanned)
}

/// Refuses the name of a set where no such path is: the other commands take it as their first word.
fn check_paths(session: &Session, settings: &Settings, paths: &[PathBuf]) -> Result<()> {
    let is_absent = |path: &&PathBuf| {
        let path = session.environment.absolute(path);
        path.symlink_metadata().is_err()
    };
    for path in paths.iter().filter(is_absent) {
        let mut sets = settings.config.iter();
        if let Some(set) = sets.find(|set| path.as_os_str() == set.name.as_str()) {
            let name = &set.name;
            return Err(err!(
                Usage,
                "\"{name}\" is no path here, and a set of the configuration"
            )
            .hint(format!("Nothing was read. pitr config scan --set {name}")));
        }
    }
    Ok(())
}
