//! Work that runs now, as other processes of the host see it: each has a file below `state_dir`, and replaces it while it goes on.
//!
//! Nothing depends on the file. A command that cannot write it works unseen.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::audit::About;
use super::session::Session;
use super::{counters, human};
use crate::behalf;
use crate::config::Settings;
use crate::durable;
use crate::fault;
use crate::pg::time::TimestampTz;
use crate::process::Identity;
use crate::progress::Measured;

/// The directory of the files, below `state_dir`.
const FOLDER: &str = "running";
/// How long work goes on before it is seen, and how often its file is replaced.
const INTERVAL: Duration = Duration::from_secs(1);

/// A command that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underway {
    /// The process.
    #[serde(flatten)]
    process: Identity,
    /// Words of the command, as the audit log has them.
    pub command: String,
    /// The names that it is about.
    #[serde(default)]
    pub object: Option<String>,
    /// When it began.
    pub since: TimestampTz,
    /// The name of its present phase.
    #[serde(default)]
    pub phase: Option<String>,
    /// The bytes of this phase that are done.
    #[serde(default)]
    pub done_bytes: u64,
    /// All bytes of this phase, where they are known.
    #[serde(default)]
    pub total_bytes: Option<u64>,
    /// The seconds that this phase takes yet, at its rate so far.
    #[serde(default)]
    pub left_s: Option<u64>,
}

impl Underway {
    /// That of this process.
    fn own(about: &About, since: TimestampTz) -> Underway {
        Underway {
            process: Identity::of(std::process::id()),
            command: about.command.to_owned(),
            object: about.object.clone(),
            since,
            phase: None,
            done_bytes: 0,
            total_bytes: None,
            left_s: None,
        }
    }

    /// Whether it is that process.
    pub fn is(&self, process: &Identity) -> bool {
        self.process == *process
    }

    fn at(&self, measured: Measured) -> Underway {
        Underway {
            left_s: left(&measured).map(|left| left.as_secs()),
            phase: Some(measured.phase),
            done_bytes: measured.done_bytes,
            total_bytes: measured.total_bytes.filter(|total| *total > 0),
            ..self.clone()
        }
    }

    /// Whether it brings back what was backed up.
    pub fn restores(&self) -> bool {
        let words = ["restore", "drill", "clone", "standby", "rescue", "recover"];
        let mut own = self.command.split(' ');
        own.any(|word| words.contains(&word))
    }

    /// The share of the phase that is done, where its size is known.
    pub fn percent(&self) -> Option<u64> {
        let share = u128::from(self.done_bytes) * 100 / u128::from(self.total_bytes?);
        // A source may grow while it is read.
        Some(u64::try_from(share).unwrap_or(100).min(100))
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let object = self.object.iter().map(|object| format!(" {object}"));
        let mut line = self.command.clone();
        line.extend(object);
        line.push_str(&format!(" runs since {}", human::time(self.since)));
        if let Some(phase) = &self.phase {
            let done = human::size(self.done_bytes);
            line.push_str(&format!(", {phase}: {done}"));
        }
        if let (Some(total), Some(percent)) = (self.total_bytes, self.percent()) {
            line.push_str(&format!(" of {} ({percent} %)", human::size(total)));
        }
        if let Some(left) = self.left_s {
            let left = human::duration(Duration::from_secs(left));
            line.push_str(&format!(", {left} left"));
        }
        line
    }
}

/// Does the work of a command that others see meanwhile; of one without a record, nobody does.
pub fn during<T>(session: &Session, about: Option<&About>, work: impl FnOnce() -> T) -> T {
    let about = about.filter(|_| !fault::is_unseen());
    let settings = about.and_then(|_| session.settings().ok());
    let place = settings.and_then(|settings| settings.state_dir(&session.environment));
    let (Some(about), Some(place)) = (about, place) else {
        return work();
    };
    let underway = Underway::own(about, session.host.now());
    let (end, ended) = channel();
    std::thread::scope(|threads| {
        threads.spawn(|| show(session, &place, underway, ended));
        let done = work();
        drop(end);
        done
    })
}

/// Replaces the file until the work has ended, and removes it then.
fn show(session: &Session, state_dir: &Path, underway: Underway, ended: Receiver<()>) {
    let folder = state_dir.join(FOLDER);
    let file = folder.join(format!("{}.json", std::process::id()));
    let mut is_shown = false;
    while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if !is_shown {
            forget(&folder);
        }
        let measured = session.host.progress.measured();
        let now = measured.map_or_else(|| underway.clone(), |now| underway.at(now));
        let Ok(text) = serde_json::to_vec(&now) else {
            return;
        };
        let nonce = session.host.random();
        let write = || durable::replace_unsynced(&file, &text, nonce);
        is_shown =
            (is_shown || counters::make(&folder).is_ok()) && behalf::of(&file, write).is_ok();
    }
    let _ = behalf::of(&file, || std::fs::remove_file(&file));
}

/// How long a phase takes yet; none before a second of it is over.
fn left(measured: &Measured) -> Option<Duration> {
    let left = measured.total_bytes?.checked_sub(measured.done_bytes)?;
    let ms = measured.elapsed.as_millis();
    if ms < 1000 || measured.done_bytes == 0 {
        return None;
    }
    let left = u128::from(left) * ms / u128::from(measured.done_bytes);
    u64::try_from(left).ok().map(Duration::from_millis)
}

/// Reads what runs on this host now, oldest first. Files of processes that are gone count for nothing.
pub fn look(session: &Session, settings: &Settings) -> Vec<Underway> {
    let place = settings.state_dir(&session.environment);
    place.map_or_else(Vec::new, |place| look_in(&place))
}

/// As [`look`], below a directory of state.
pub fn look_in(state_dir: &Path) -> Vec<Underway> {
    let noted = noted(&state_dir.join(FOLDER)).into_iter();
    let found = noted.map(|(_, one)| one);
    let mut found: Vec<Underway> = found.filter(|one| one.process.is_alive()).collect();
    found.sort_by_key(|one| one.since);
    found
}

/// The files of a folder that can be read, and what each says.
fn noted(folder: &Path) -> Vec<(PathBuf, Underway)> {
    let entries = behalf::of(folder, || {
        std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()
    });
    let files = entries.into_iter().flatten().map(|entry| entry.path());
    let read = |path: PathBuf| {
        let text = behalf::read(&path).ok()?;
        let one = serde_json::from_slice(&text).ok()?;
        Some((path, one))
    };
    files.filter_map(read).collect()
}

/// Removes the files of processes that were killed.
fn forget(folder: &Path) {
    for (path, one) in noted(folder) {
        if !one.process.is_alive() {
            let _ = behalf::of(&path, || std::fs::remove_file(&path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_work_is_and_how_long_it_takes_yet() {
        let since: TimestampTz = "2026-11-20T02:00:00Z".parse().unwrap();
        let about = About {
            command: "files restore",
            object: Some("up".to_owned()),
        };
        let begun = Underway::own(&about, since);
        let line = "files restore up runs since 2026-11-20 02:00:00Z";
        assert_eq!(begun.line(), line);
        let measured = |done_bytes, total_bytes| Measured {
            phase: "restore".to_owned(),
            done_bytes,
            total_bytes,
            elapsed: Duration::from_secs(10),
        };
        let half = begun.at(measured(1 << 20, Some(4 << 20)));
        assert_eq!((half.percent(), half.left_s), (Some(25), Some(30)));
        let shown = format!("{line}, restore: 1.0 MiB of 4.0 MiB (25 %), 30 s left");
        assert_eq!(half.line(), shown);
        let unknown = begun.at(measured(5, None));
        assert_eq!((unknown.percent(), unknown.left_s), (None, None));
        let grown = begun.at(measured(9, Some(8)));
        assert_eq!((grown.percent(), grown.left_s), (Some(100), None));
    }
}
