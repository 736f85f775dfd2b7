//! The lag of each of several repositories: how far it is behind the others, and for how long.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::away::PATIENCE;
use super::failures::ShownError;
use super::finding::{Finding, Level};
use super::human;
use super::one_place::is_one_place;
use super::retention::Rules;
use super::session::Session;
use crate::config::{self, Settings};
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::plan::cluster;
use crate::plan::lacking::{Cause, lacking};
use crate::plan::retention::{self, Policy};
use crate::repo::catalog::Manifest;
use crate::repo::event::{self, Recorded};
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::runs::Runs;
use crate::wal::survey::Survey;

/// A repository that lacks WAL for longer than this is behind; before, it is on its way. The same of the only backups that there are.
const ON_ITS_WAY: Duration = Duration::from_secs(300);
/// One that lacks the newest backups is behind when it has for this long; where the configuration says how old a backup may become, then.
const BACKUP_ON_ITS_WAY: Duration = Duration::from_secs(26 * 3600);
/// Troubles of one repository that are named.
const NAMED_MAX: usize = 5;

/// One of the repositories of a cluster.
#[derive(Debug, Default, Serialize)]
pub struct Lag {
    /// As it is configured.
    pub name: String,
    /// Its place, without secrets.
    pub url: String,
    /// Whether archiving waits for it.
    pub required: bool,
    /// Why it could not be asked.
    pub away: Option<ShownError>,
    /// The newest whole segment of each timeline.
    pub newest: Vec<Newest>,
    pub newest_backup: Option<BackupId>,
    pub oldest_backup: Option<BackupId>,
    /// Whether it has a backup of which no damage is recorded.
    #[serde(skip)]
    pub has_whole_backup: bool,
    /// The backups that count as copies for `min_copies` of another repository.
    #[serde(skip)]
    pub whole: Vec<BackupId>,
    /// Another of the repositories that is this very place: the two are one copy.
    pub same_place_as: Option<String>,
    /// Segments that "repo sync" would bring: others have them, and its backups need them.
    pub behind_segments: Option<u64>,
    /// Their raw bytes.
    pub behind_bytes: Option<u64>,
    /// For how long another has had the first of them; null also when nobody can tell.
    pub behind_ms: Option<u64>,
    /// Backups that others have, and that it did not expire.
    pub behind_backups: Option<u64>,
    /// For how long the first of them has been there.
    pub behind_backups_ms: Option<u64>,
    /// Damage in it and contradictions with another, which "repo sync" does not bring; the first five.
    pub troubles: Vec<String>,
    /// How many there are.
    pub trouble_count: u64,
    /// None of them is damage in it: it contradicts another, and both are whole.
    #[serde(skip)]
    only_contradicts: bool,
    /// Others that could not be asked: what they alone have is not known.
    pub unasked: Vec<String>,
    #[serde(skip)]
    backup_patience: Duration,
    /// Whether "repo sync" brings any of it: objects are copied as they are stored, so between repositories of the same keys.
    #[serde(skip)]
    comes_by_sync: bool,
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
    /// The rules of retention in it.
    rules: Option<Policy>,
}

impl Asked {
    /// Which key set seals its objects; none where they are plain.
    fn keys(&self) -> Option<&str> {
        self.repository.marker().key_set.as_deref()
    }
}

/// Looks at every repository of the configuration; nothing where there is only one.
pub fn look(
    session: &Session,
    settings: &Settings,
    cluster: &str,
    system_identifier: u64,
) -> Vec<Lag> {
    let Ok(layout) = ClusterLayout::new(cluster, system_identifier) else {
        return Vec::new();
    };
    if settings.repositories.len() < 2 {
        return Vec::new();
    }
    let mut clusters = settings.clusters.iter();
    let configured = clusters.find(|c| c.name.as_str() == cluster);
    let patience = configured.and_then(|c| c.max_backup_age);
    let patience = patience.map_or(BACKUP_ON_ITS_WAY, |age| age.duration());
    let rules = Rules::new(session, settings.clone(), None);
    // The rules of one open the others, which must not hang there.
    for configured in &settings.repositories {
        let _ = session.require_answer(configured, PATIENCE);
    }
    let mut seen: Vec<(Lag, Option<Asked>)> = Vec::new();
    for configured in &settings.repositories {
        let mut lag = Lag::new(configured, patience);
        let asked = ask(session, &rules, configured, &layout);
        match &asked {
            Ok(asked) => lag.describe(asked.survey.as_ref()),
            Err(e) => lag.away = Some(ShownError::from(e)),
        }
        seen.push((lag, asked.ok()));
    }
    compare(session, &layout, &mut seen);
    one_place(settings, &mut seen);
    seen.into_iter().map(|(lag, _)| lag).collect()
}

fn ask(
    session: &Session,
    rules: &Rules,
    configured: &config::Repository,
    layout: &ClusterLayout,
) -> Result<Asked> {
    session.require_answer(configured, PATIENCE)?;
    let repository = session.open(configured)?;
    let registration = repository.registration(layout)?;
    let survey = registration.as_ref();
    let survey = survey.map(|r| Survey::without_leftovers(&repository, r));
    Ok(Asked {
        survey: survey.transpose()?,
        rules: rules.seen_receiving(session, configured, Some(layout.name())),
        repository,
        registration,
    })
}

/// Names each that is the same place as one before it, by another path or another name of the host.
fn one_place(settings: &Settings, seen: &mut [(Lag, Option<Asked>)]) {
    let all: Vec<_> = settings.repositories.iter().zip(seen.iter()).collect();
    let place = |at: usize| {
        let (configured, (_, asked)) = all.get(at)?;
        Some((*configured, &asked.as_ref()?.repository))
    };
    let mut same = Vec::new();
    for at in 1..all.len() {
        let Some(own) = place(at) else { continue };
        let is_same = |n: &usize| place(*n).is_some_and(|other| is_one_place(own, other));
        let first = (0..at).find(is_same).and_then(|n| all.get(n));
        same.extend(first.map(|(other, _)| (at, other.name.clone())));
    }
    for (at, name) in same {
        if let Some((lag, _)) = seen.get_mut(at) {
            lag.same_place_as = Some(name);
        }
    }
}

/// Measures each against all others.
fn compare(session: &Session, layout: &ClusterLayout, seen: &mut [(Lag, Option<Asked>)]) {
    let registered = seen.iter().filter_map(|(_, asked)| asked.as_ref());
    let size = registered
        .filter_map(|a| a.registration.as_ref())
        .find_map(|r| SegmentSize::new(r.segment_size_bytes).ok());
    let Some(size) = size else { return };
    let asked = seen.iter().filter_map(|(_, asked)| asked.as_ref());
    let followed = followed(session, layout, &asked.collect::<Vec<_>>());
    let empty = Survey::empty(size);
    let mut measured = Vec::new();
    for (at, (_, asked)) in seen.iter().enumerate() {
        measured.push(asked.as_ref().map(|asked| {
            let mut behind = Behind::default();
            let to = asked.survey.as_ref().unwrap_or(&empty);
            for (other, (lag, from)) in seen.iter().enumerate() {
                match from {
                    _ if other == at => {}
                    Some(from) => {
                        let is_kin = asked.keys() == from.keys();
                        let to = (to, asked.rules.as_ref(), &*followed);
                        behind.add(session, layout, size, to, (&lag.name, from, is_kin));
                    }
                    None => behind.unasked.push(lag.name.clone()),
                }
            }
            behind
        }));
    }
    for ((lag, _), behind) in seen.iter_mut().zip(measured) {
        if let Some(behind) = behind {
            lag.measured(behind, size);
        }
    }
}

/// The timelines that may be the cluster, by what all of these hold; none where there is nothing to decide.
fn followed(session: &Session, layout: &ClusterLayout, asked: &[&Asked]) -> Vec<TimelineId> {
    let surveys = asked.iter().filter_map(|asked| asked.survey.as_ref());
    if cluster::is_straight(&surveys.collect::<Vec<_>>()) {
        return Vec::new();
    }
    let registered = asked.iter().filter(|asked| asked.registration.is_some());
    let all = registered.map(|asked| &asked.repository);
    cluster::candidates_in(all, layout).unwrap_or_else(|e| {
        session.warn(&format!(
            "it is not known which timeline is the cluster, and the newest counts for what repositories lack: {e}"
        ));
        Vec::new()
    })
}

/// The lack of one repository against the others.
#[derive(Default)]
struct Behind {
    segments: BTreeMap<TimelineId, Runs>,
    /// The age of the first of them, if anything tells.
    age: Option<Duration>,
    /// By id, with the time since it was complete.
    backups: BTreeMap<BackupId, Duration>,
    troubles: Vec<String>,
    finds_damage: bool,
    unasked: Vec<String>,
    comes_by_sync: bool,
}

impl Behind {
    fn add(
        &mut self,
        session: &Session,
        layout: &ClusterLayout,
        size: SegmentSize,
        (to, rules, followed): (&Survey, Option<&Policy>, &[TimelineId]),
        (name, other, is_kin): (&str, &Asked, bool),
    ) {
        let Some(from) = &other.survey else { return };
        // A clock that is ahead of this one makes nothing older.
        let age = |since| session.host.now().duration_since(since).unwrap_or_default();
        let lacking = lacking(from, to, (false, rules), followed, session.host.now());
        self.comes_by_sync |=
            is_kin && !(lacking.backups.is_empty() && lacking.segments.is_empty());
        // Each of two with different keys has backups of its own, of which two may have one id; archiving brings WAL into both.
        for id in lacking.backups.into_iter().filter(|_| is_kin) {
            if let Some(Manifest::Committed(root)) = from.ids.get(&id).map(|s| &s.manifest) {
                self.backups.insert(id, age(root.stop_time));
            }
        }
        for (timeline, runs) in lacking.segments {
            let first = runs.bounds().and_then(|(n, _)| n.name(timeline, size));
            let stored = first.and_then(|name| {
                let key = layout.clone().with_lives(from.lives.clone()).segment(name);
                let head = other.repository.store().head(&key);
                head.ok().flatten()
            });
            self.age = self.age.max(stored.map(|meta| age(meta.modified)));
            let into = self.segments.entry(timeline).or_default();
            *into = std::mem::take(into).union(runs);
        }
        let left_out = lacking.left_out.iter();
        let left_out: Vec<_> = left_out
            .filter(|l| is_kin && l.cause != Cause::Rule)
            .collect();
        self.finds_damage |= left_out.iter().any(|l| l.cause == Cause::Damage);
        let left_out = left_out
            .into_iter()
            .map(|l| format!("{} of \"{name}\" does not come: {}", l.what, l.why));
        self.troubles.extend(left_out);
    }
}

/// Known damage of a repository, and what cannot be read in it.
fn damage(survey: &Survey) -> Vec<String> {
    let mut found = survey.unreadable.clone();
    let mut say = |what: String, events: &[Recorded]| {
        if let Some(damaged) = event::damage(events).first() {
            let detail = damaged.event.detail.as_deref().unwrap_or("no detail");
            found.push(format!("{what} is damaged: {detail}"));
        }
        for forged in event::forged(events) {
            found.push(format!(
                "event \"{}\" of {what} is {}",
                forged.name,
                event::FORGED
            ));
        }
    };
    for (id, subject) in &survey.ids {
        if matches!(subject.manifest, Manifest::Committed(_)) {
            say(format!("backup {id}"), &subject.events);
        }
    }
    for (name, events) in &survey.segment_events {
        say(format!("segment {name}"), events);
    }
    found
}

impl Lag {
    fn new(configured: &config::Repository, backup_patience: Duration) -> Lag {
        Lag {
            name: configured.name.clone(),
            url: configured.location.to_string(),
            required: configured.required,
            backup_patience,
            comes_by_sync: true,
            ..Lag::default()
        }
    }

    /// Takes down its content.
    fn describe(&mut self, survey: Option<&Survey>) {
        let Some(survey) = survey else { return };
        self.whole = retention::whole(&survey.catalog);
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
        self.has_whole_backup = survey.ids.values().any(|s| {
            matches!(s.manifest, Manifest::Committed(_)) && event::damage(&s.events).is_empty()
        });
        let (mut oldest, mut newest) = (None, None);
        for one in committed {
            oldest = Some(oldest.map_or(one, |o: ((TimelineId, Lsn), &BackupId)| o.min(one)));
            newest = newest.max(Some(one));
        }
        self.newest_backup = newest.map(|(_, id)| id.clone());
        self.oldest_backup = oldest.map(|(_, id)| id.clone());
        self.troubles = damage(survey);
    }

    fn measured(&mut self, behind: Behind, size: SegmentSize) {
        let segments = behind.segments.values().map(Runs::count).sum::<u64>();
        self.behind_segments = Some(segments);
        self.behind_bytes = Some(segments.saturating_mul(size.bytes()));
        self.behind_ms = behind.age.map(human::millis);
        self.behind_backups = Some(behind.backups.len() as u64);
        self.behind_backups_ms = behind.backups.into_values().max().map(human::millis);
        self.only_contradicts = self.troubles.is_empty() && !behind.finds_damage;
        self.troubles.extend(behind.troubles);
        self.trouble_count = self.troubles.len() as u64;
        self.troubles.truncate(NAMED_MAX);
        self.unasked = behind.unasked;
        self.comes_by_sync = behind.comes_by_sync;
    }

    /// Its problems, each in a line, and what helps.
    pub fn problems(&self) -> Vec<(String, String)> {
        let name = &self.name;
        if let Some(away) = &self.away {
            let line = format!("repository \"{name}\" is away: {}", away.message);
            return vec![(line, "pitr doctor".to_owned())];
        }
        let line = |f: Finding| {
            let next = f.next.unwrap_or_default();
            let line = format!("repository \"{name}\" is {}: {next}", f.value);
            (line, next)
        };
        self.concerns().into_iter().map(line).collect()
    }

    /// The findings about one that could be asked.
    pub fn concerns(&self) -> Vec<Finding> {
        let name = &self.name;
        let concern = |value: String, impact: &str, next: String| Finding {
            cause: Some(impact.to_owned()),
            next: Some(next),
            ..Finding::new("repository", name, Level::Warn, value)
        };
        let mut concerns = Vec::new();
        if let Some(other) = &self.same_place_as {
            concerns.push(concern(
                format!("the same place as \"{other}\""),
                "the two are one copy, and what is lost there is lost",
                format!(
                    "let the url of [repositories.{name}] name another place, and run pitr init"
                ),
            ));
        }
        if self.is_late() {
            let next = match self.comes_by_sync {
                true => format!("pitr repo sync --to {name}"),
                false => format!(
                    "pitr backup --repository {name} (the others have other keys, so that pitr repo sync brings nothing)"
                ),
            };
            concerns.push(concern(
                self.value(),
                "what only the others have is lost with them",
                next,
            ));
        }
        if let Some(first) = self.troubles.first() {
            let more = match self.trouble_count {
                0 | 1 => String::new(),
                count => format!(" (and {} more)", count - 1),
            };
            concerns.push(match self.only_contradicts {
                true => concern(format!("contradicting another: {first}{more}"), "nothing is damaged; what only one of them has is lost with it, and pitr repo sync does not bring it", "pitr repo sync --dry-run shows all of it".to_owned()),
                false => concern(format!("not whole: {first}{more}"), "the others have to give what it cannot, until pitr verify --heal has written copies of it", format!("pitr verify --repository {name}")),
            });
        }
        concerns
    }

    fn is_late(&self) -> bool {
        let is_over = |ms: Option<u64>, patience| ms.map(Duration::from_millis) > Some(patience);
        // If nothing dates the lag, it is no proof that the rest is on its way.
        let is_undated = self.behind_ms.is_none() && self.behind_segments > Some(0);
        let patience = match self.newest_backup {
            Some(_) => self.backup_patience,
            None => ON_ITS_WAY,
        };
        is_undated
            || is_over(self.behind_ms, ON_ITS_WAY)
            || is_over(self.behind_backups_ms, patience)
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
        if let Some(other) = &self.same_place_as {
            return format!("the same place as \"{other}\"");
        }
        match (parts.is_empty(), self.unasked.first()) {
            (false, _) => format!("behind by {}", parts.join(", ")),
            (true, Some(other)) => {
                format!("not behind the repositories that answered (\"{other}\" did not)")
            }
            (true, None) if self.trouble_count > 0 && self.only_contradicts => {
                "lacks nothing that can be copied, and contradicts another".to_owned()
            }
            (true, None) if self.trouble_count > 0 => "lacks nothing, and is not whole".to_owned(),
            (true, None) if self.newest_backup.is_none() => "has all WAL".to_owned(),
            (true, None) => "up to date".to_owned(),
        }
    }

    /// The repository as a line, with the backups that it has.
    pub fn line(&self) -> String {
        let name = &self.name;
        let backup = match (&self.newest_backup, &self.oldest_backup) {
            _ if self.away.is_some() => String::new(),
            (Some(id), Some(oldest)) if oldest != id => {
                format!(", newest backup {id}, oldest {oldest}")
            }
            (Some(id), _) => format!(", newest backup {id}"),
            (None, _) => format!(
                ", no backup: nothing can be restored from it before pitr backup --repository {name}"
            ),
        };
        format!("repository {name}: {}{backup}", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Location;

    const HOUR_MS: u64 = 3_600_000;

    fn level() -> Lag {
        let place = config::Repository::at(Location::File("/a".into()));
        Lag {
            newest_backup: Some("20261120T064049Z-full".parse().unwrap()),
            behind_segments: Some(0),
            behind_bytes: Some(0),
            behind_backups: Some(0),
            ..Lag::new(&place, BACKUP_ON_ITS_WAY)
        }
    }

    #[test]
    fn one_that_lacks_nothing_is_up_to_date() {
        assert_eq!(level().value(), "up to date");
        assert!(level().problems().is_empty());
    }

    #[test]
    fn a_backup_that_is_lacking_is_late_in_time() {
        let lag = |newest: bool, hours: u64| {
            let mut lag = level();
            lag.newest_backup = lag.newest_backup.filter(|_| newest);
            lag.behind_backups = Some(1);
            lag.behind_backups_ms = Some(hours * HOUR_MS);
            lag
        };
        assert_eq!(lag(true, 1).value(), "behind by 1 backup");
        assert!(lag(true, 1).problems().is_empty());
        assert_eq!(lag(true, 27).problems().len(), 1);
        assert_eq!(lag(false, 1).problems().len(), 1, "it has no backup");
    }

    #[test]
    fn segments_that_nothing_dates_are_no_proof_of_being_on_their_way() {
        let mut lag = level();
        lag.behind_segments = Some(1);
        assert_eq!(lag.problems().len(), 1);
        assert!(lag.problems()[0].0.contains("pitr repo sync"));
        lag.comes_by_sync = false;
        assert!(lag.problems()[0].1.contains("pitr backup --repository"));
        lag.behind_ms = Some(1000);
        assert!(lag.problems().is_empty());
    }

    #[test]
    fn one_whose_others_are_away_is_not_said_to_be_up_to_date() {
        let mut lag = level();
        lag.unasked = vec!["offsite".into()];
        let value = lag.value();
        assert!(value.contains("\"offsite\" did not"), "{value}");
    }
}
