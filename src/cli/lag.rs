//! What each of several repositories lacks of the others: how far it is behind, and for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::{Context, human};
use crate::config::{self, Settings};
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::plan::lacking::lacking;
use crate::repo;
use crate::repo::facts::Runs;
use crate::repo::layout::{BackupId, ClusterLayout};
use crate::repo::repository::{Registration, Repository};
use crate::repo::survey::{Manifest, Survey};

/// How long a repository may take to open.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// A repository that lacks something for longer than this is behind; before, it is on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(300);

/// One of the repositories of a cluster.
#[derive(Debug, Serialize)]
pub struct Lag {
    /// As it is configured.
    pub name: String,
    /// Where it is, without secrets.
    pub url: String,
    /// Whether archiving waits for it.
    pub required: bool,
    /// Why it could not be asked.
    pub away: Option<Away>,
    /// The newest whole segment of each timeline.
    pub newest: Vec<Newest>,
    /// The newest backup in it.
    pub newest_backup: Option<BackupId>,
    /// What "repo sync" would bring: segments that others have and its backups need.
    pub behind_segments: Option<u64>,
    /// Their raw bytes.
    pub behind_bytes: Option<u64>,
    /// For how long another has had the first of them.
    pub behind_ms: Option<u64>,
    /// Backups that others have, and that it did not expire.
    pub behind_backups: Option<u64>,
}

/// Why a repository could not be asked.
#[derive(Debug, Serialize)]
pub struct Away {
    code: &'static str,
    message: String,
}

/// How far one timeline gets.
#[derive(Debug, Serialize)]
pub struct Newest {
    timeline: TimelineId,
    segment: SegmentName,
}

/// One that could be asked.
struct Asked {
    repository: Repository,
    registration: Option<Registration>,
    survey: Option<Survey>,
}

/// Looks at every repository of the configuration; nothing where there is only one.
pub fn look(cx: &Context, settings: &Settings, cluster: &str, system_identifier: u64) -> Vec<Lag> {
    let Ok(layout) = ClusterLayout::new(cluster, system_identifier) else {
        return Vec::new();
    };
    if settings.repositories.len() < 2 {
        return Vec::new();
    }
    let mut seen: Vec<(Lag, Option<Asked>)> = Vec::new();
    for configured in &settings.repositories {
        let mut lag = Lag::new(configured);
        match ask(cx, configured, &layout) {
            Ok(asked) => {
                lag.describe(asked.survey.as_ref());
                seen.push((lag, Some(asked)));
            }
            Err(e) => {
                lag.away = Some(Away {
                    code: exit::name(e.code()),
                    message: e.to_string(),
                });
                seen.push((lag, None));
            }
        }
    }
    compare(cx, &layout, &mut seen);
    seen.into_iter().map(|(lag, _)| lag).collect()
}

fn ask(cx: &Context, configured: &config::Repository, layout: &ClusterLayout) -> Result<Asked> {
    if !answers(configured, cx.random()) {
        let seconds = PATIENCE.as_secs();
        return Err(err!(
            Unreachable,
            "it has not answered for {seconds} s: whatever touches it hangs"
        ));
    }
    let repository = cx.open(configured)?;
    let registration = repository.registration(layout)?;
    let survey = registration.as_ref();
    let survey = survey.map(|r| Survey::without_leftovers(&repository, r));
    Ok(Asked {
        survey: survey.transpose()?,
        repository,
        registration,
    })
}

/// Whether the repository answers at all, be it with an error. A thread that hangs is left behind; it ends with the process.
pub fn answers(configured: &config::Repository, nonce: u64) -> bool {
    // An object store is asked for a bounded time, and its error says more.
    if configured.location.directory().is_none() {
        return true;
    }
    let (done, answer) = std::sync::mpsc::channel();
    let configured = configured.clone();
    std::thread::spawn(move || {
        let _ = repo::open(&configured, nonce);
        let _ = done.send(());
    });
    answer.recv_timeout(PATIENCE).is_ok()
}

/// Measures each against all others.
fn compare(cx: &Context, layout: &ClusterLayout, seen: &mut [(Lag, Option<Asked>)]) {
    let registered = seen.iter().filter_map(|(_, asked)| asked.as_ref());
    let size = registered
        .filter_map(|a| a.registration.as_ref())
        .find_map(|r| SegmentSize::new(r.segment_size_bytes).ok());
    let Some(size) = size else { return };
    let empty = Survey::empty(size);
    let mut measured = Vec::new();
    for (at, (_, asked)) in seen.iter().enumerate() {
        measured.push(asked.as_ref().map(|asked| {
            let to = asked.survey.as_ref().unwrap_or(&empty);
            let others = seen.iter().enumerate().filter(|(other, _)| *other != at);
            let others = others.filter_map(|(_, (_, other))| other.as_ref());
            behind(cx, layout, size, to, others)
        }));
    }
    for ((lag, _), behind) in seen.iter_mut().zip(measured) {
        if let Some(behind) = behind {
            lag.behind_segments = Some(behind.segments);
            lag.behind_bytes = Some(behind.segments.saturating_mul(size.bytes()));
            lag.behind_ms = behind.ms;
            lag.behind_backups = Some(behind.backups);
        }
    }
}

struct Behind {
    segments: u64,
    ms: Option<u64>,
    backups: u64,
}

fn behind<'a>(
    cx: &Context,
    layout: &ClusterLayout,
    size: SegmentSize,
    to: &Survey,
    others: impl Iterator<Item = &'a Asked>,
) -> Behind {
    let mut segments: BTreeMap<TimelineId, Runs> = BTreeMap::new();
    let mut backups = BTreeSet::new();
    let mut ms = None;
    for other in others {
        let Some(from) = &other.survey else { continue };
        let lacking = lacking(from, to, false);
        backups.extend(lacking.backups);
        for (timeline, runs) in lacking.segments {
            let first = runs.bounds().and_then(|(n, _)| n.name(timeline, size));
            let stored = first.and_then(|name| {
                let head = other.repository.store().head(&layout.segment(name));
                head.ok().flatten()
            });
            let age = stored.and_then(|meta| cx.now().duration_since(meta.modified));
            let age = age.map(|a| u64::try_from(a.as_millis()).unwrap_or(u64::MAX));
            ms = ms.max(age);
            let into = segments.entry(timeline).or_default();
            *into = std::mem::take(into).union(runs);
        }
    }
    Behind {
        segments: segments.values().map(Runs::count).sum(),
        ms,
        backups: backups.len() as u64,
    }
}

impl Lag {
    fn new(configured: &config::Repository) -> Lag {
        Lag {
            name: configured.name.clone(),
            url: configured.location.to_string(),
            required: configured.required,
            away: None,
            newest: Vec::new(),
            newest_backup: None,
            behind_segments: None,
            behind_bytes: None,
            behind_ms: None,
            behind_backups: None,
        }
    }

    /// What is in it.
    fn describe(&mut self, survey: Option<&Survey>) {
        let Some(survey) = survey else { return };
        for (timeline, held) in &survey.timelines {
            let last = held.segments.bounds().map(|(_, last)| last);
            let segment = last.and_then(|n| n.name(*timeline, survey.segment_size));
            self.newest.extend(segment.map(|segment| Newest {
                timeline: *timeline,
                segment,
            }));
        }
        let committed = survey.ids.iter().filter_map(|(id, s)| match &s.manifest {
            Manifest::Committed(root) => Some(((root.timeline, root.stop_lsn), id)),
            _ => None,
        });
        self.newest_backup = committed.max().map(|(_, id)| id.clone());
    }

    /// What is wrong with it, if anything is.
    pub fn problem(&self) -> Option<String> {
        let name = &self.name;
        if let Some(away) = &self.away {
            return Some(format!("repository \"{name}\" is away: {}", away.message));
        }
        self.is_late().then(|| {
            format!(
                "repository \"{name}\" is {}: pitr repo sync --to {name}",
                self.value()
            )
        })
    }

    fn is_late(&self) -> bool {
        Duration::from_millis(self.behind_ms.unwrap_or(0)) > ON_ITS_WAY
    }

    /// In a few words.
    pub fn value(&self) -> String {
        let (Some(segments), Some(bytes)) = (self.behind_segments, self.behind_bytes) else {
            return "away".to_owned();
        };
        let mut parts = Vec::new();
        if segments > 0 {
            let count = human::count(segments, "segment");
            let mut part = format!("{count} ({})", human::size(bytes));
            if let Some(ms) = self.behind_ms {
                let time = human::duration(Duration::from_millis(ms));
                part.push_str(&format!(" for {time}"));
            }
            parts.push(part);
        }
        match self.behind_backups {
            None | Some(0) => {}
            Some(n) => parts.push(human::count(n, "backup")),
        }
        match parts.is_empty() {
            true => "up to date".to_owned(),
            false => format!("behind by {}", parts.join(", ")),
        }
    }
}
