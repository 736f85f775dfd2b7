//! The file of what the last look found: what `pitr info` finds, the conditions of alerts, and the room of repositories. The status page shows it.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::alert::decide::Condition;
use crate::behalf;
use crate::config::Settings;
use crate::error::Result;
use crate::operate::info::{ClusterInfo, Info};
use crate::operate::metrics::Metrics;
use crate::operate::objectives_history::{self, Kept};
use crate::operate::room::Room;
use crate::operate::session::Session;
use crate::operate::{how_long, proven, read_back};
use crate::pg::time::TimestampTz;
use crate::repo::portion::Share;

/// The file, below `state_dir`.
const FILE: &str = "page.json";
/// The time of which the page tells how promises were kept.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    severity: &'static str,
    summary: &'a str,
    next: Option<&'a str>,
}

#[derive(Serialize)]
struct Observed<'a> {
    collected: TimestampTz,
    conditions: Vec<Shown<'a>>,
    info: Option<&'a Info>,
    /// Lines that `pitr info` prints besides, of each cluster.
    lines: Vec<Vec<String>>,
    /// Why there is no info.
    error: Option<String>,
    /// Parts that could not be looked at.
    failures: Vec<String>,
    rooms: &'a [Room],
}

/// The file that the page shows.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Reads a file that a look wrote, and when it was written. It is shown to others: no link of another account leads root to what is root's.
///
/// # Errors
/// Those of the system.
pub fn read(path: &Path) -> io::Result<(String, SystemTime)> {
    let read = || {
        let file = behalf::opened(path)?;
        let mut text = String::new();
        (&file).take(behalf::BYTES_MAX).read_to_string(&mut text)?;
        Ok((text, file.metadata()?.modified()?))
    };
    behalf::of(path, read)
}

/// Writes what was found.
///
/// # Errors
/// Those of the file.
pub fn write(
    session: &Session,
    settings: &Settings,
    state_dir: &Path,
    (metrics, conditions): (&Metrics, &[Condition]),
) -> Result<()> {
    let path = file(state_dir);
    let now = session.host.now();
    let info = metrics.info.as_ref();
    let failures = info.map_or(Vec::new(), |info| {
        info.failures
            .errors
            .iter()
            .map(ToString::to_string)
            .collect()
    });
    let week = (now.saturating_sub(WEEK), now);
    // Whoever adds to a file that cannot be read reports it.
    let kept = objectives_history::read(settings, state_dir, week).unwrap_or_default();
    let observed = Observed {
        collected: now,
        conditions: conditions.iter().map(shown).collect(),
        info,
        lines: info.map_or(Vec::new(), |info| {
            let lines = |cluster| lines(cluster, &kept);
            info.clusters.iter().map(lines).collect()
        }),
        error: metrics.failed.as_ref().map(ToString::to_string),
        failures,
        rooms: &metrics.rooms,
    };
    session.keep_json(&path, "what was found", &observed)
}

fn shown(condition: &Condition) -> Shown<'_> {
    Shown {
        id: &condition.id,
        severity: condition.severity.name(),
        summary: &condition.summary,
        next: condition.next.as_deref(),
    }
}

fn lines(cluster: &ClusterInfo, kept: &[Kept]) -> Vec<String> {
    let kept = kept.iter().filter(|one| one.cluster == cluster.name);
    let kept = kept.filter_map(|one| Some(format!("last 7 days: {}", one.line()?)));
    let estimate = cluster.estimate.as_ref();
    let estimate = estimate.map(|e| format!("time to recovery: {}", how_long::line(e)));
    let receiver = cluster.receiver.as_ref().map(|r| r.line());
    let read_back = Some(&cluster.read_back).filter(|share| **share != Share::default());
    let read_back = read_back.map(read_back::line);
    let lines = [estimate, proven::line(&cluster.drills), receiver, read_back];
    lines.into_iter().flatten().chain(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    #[test]
    fn what_a_look_wrote_is_read_with_the_rights_of_its_owner() {
        if !behalf::can_be_another("what_a_look_wrote") {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        set(place.path(), 0o755);
        let (secret, state) = (place.path().join("shadow"), place.path().join("state"));
        std::fs::write(&secret, "root:$6$").unwrap();
        set(&secret, 0o600);
        std::fs::create_dir(&state).unwrap();
        let link = state.join("metrics.prom");
        symlink(&secret, &link).unwrap();
        assert_eq!(read(&link).unwrap().0, "root:$6$", "all of it is root's");
        chown(&state, Some(64_001), Some(64_001)).unwrap();
        lchown(&link, Some(64_001), Some(64_001)).unwrap();
        let refused = read(&link).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
