//! History of RPO and RTO on this host: what each look of the agent measured, and for how long the promises were kept.
//!
//! Each cluster has one file of lines in JSON, below `state_dir`. A look appends a line, which stands for the time since the look before it. On
//! each new day the file is written anew: looks of more than an hour ago become lines of five minutes, those of more than eight days ago become lines of an hour,
//! and lines older than 400 days go. A line that was cut or damaged is passed over: its time is then unknown, and unknown time is never kept time.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::counters;
use super::human;
use super::info::Info;
use super::session::Session;
use crate::behalf;
use crate::config::Settings;
use crate::durable;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;

/// The folder, below `state_dir`.
const FOLDER: &str = "objectives";
/// A look says nothing of a longer time before it, unless looks are rarer.
const SILENCE: Duration = Duration::from_secs(600);
/// So long each look keeps a line of its own.
const EACH_S: u64 = 3_600;
/// Length of the lines after that, and their age at most.
const FINE_S: (u64, u64) = (300, 8 * DAY_S);
/// The same of the lines after these.
const COARSE_S: (u64, u64) = (3_600, 400 * DAY_S);
const DAY_S: u64 = 86_400;
/// The last line lies within so many bytes.
const TAIL_BYTES: u64 = 4096;

/// A time, and what was measured in it. The names are short, because there are thousands of lines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    /// Its begin, in seconds since 1970.
    #[serde(rename = "t")]
    begin: u64,
    /// Time to the last commit that is safe.
    #[serde(default)]
    rpo: Measured,
    /// The estimate of recovery.
    #[serde(default)]
    rto: Measured,
}

/// The measurements of one promise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Measured {
    /// Seconds in which it was kept.
    #[serde(rename = "k", default, skip_serializing_if = "is_zero")]
    kept_s: u64,
    /// Seconds in which it was broken.
    #[serde(rename = "b", default, skip_serializing_if = "is_zero")]
    broken_s: u64,
    /// Seconds in which nothing was known.
    #[serde(rename = "u", default, skip_serializing_if = "is_zero")]
    unknown_s: u64,
    /// Seconds in which nothing was promised.
    #[serde(rename = "f", default, skip_serializing_if = "is_zero")]
    free_s: u64,
    /// The newest promise, in seconds.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    promise_s: Option<u64>,
    /// The least value.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    least_ms: Option<u64>,
    /// The most, and when that was.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    most: Option<(u64, u64)>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How a promise of a cluster was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub cluster: String,
    /// `rpo` or `rto`.
    pub promise: &'static str,
    /// The newest promise; none where nothing was promised.
    pub goal_s: Option<u64>,
    /// Seconds in which it was kept.
    pub kept_s: u64,
    /// Seconds in which it was broken.
    pub broken_s: u64,
    /// Seconds in which nobody knew, or nobody looked.
    pub unknown_s: u64,
    /// The least value that was measured.
    pub least_ms: Option<u64>,
    /// The worst value that was measured.
    pub worst_ms: Option<u64>,
    pub worst_time: Option<TimestampTz>,
}

impl Kept {
    /// The share of time in which it was kept, never rounded up; none where nothing was promised.
    pub fn share(&self) -> Option<String> {
        self.goal_s?;
        let all = [self.kept_s, self.broken_s, self.unknown_s];
        let all: u128 = all.into_iter().map(u128::from).sum();
        let parts = (u128::from(self.kept_s) * 10_000).checked_div(all)?;
        Some(format!("{}.{:02} %", parts / 100, parts % 100))
    }

    /// All of it in one line.
    pub fn line(&self) -> Option<String> {
        let seconds = |s| human::duration(Duration::from_secs(s));
        let worst = self.worst_ms.zip(self.worst_time).map(|(ms, at)| {
            let ms = human::duration(Duration::from_millis(ms));
            format!("; worst {ms} at {}", human::time(at))
        });
        Some(format!(
            "{} {} kept {} of the time (broken {}, not known {}){}",
            self.promise,
            seconds(self.goal_s?),
            self.share()?,
            seconds(self.broken_s),
            seconds(self.unknown_s),
            worst.unwrap_or_default()
        ))
    }
}

impl Measured {
    fn new(value: Option<Duration>, promise: Option<Duration>, (at, seconds): (u64, u64)) -> Self {
        let ms = value.map(human::millis);
        let mut new = Measured {
            promise_s: promise.map(|p| p.as_secs()),
            least_ms: ms,
            most: ms.map(|ms| (ms, at)),
            ..Measured::default()
        };
        let place = match (promise, value) {
            (None, _) => &mut new.free_s,
            (Some(_), None) => &mut new.unknown_s,
            (Some(promise), Some(value)) if value <= promise => &mut new.kept_s,
            _ => &mut new.broken_s,
        };
        *place = seconds;
        new
    }

    /// Adds a later one.
    fn add(&mut self, later: &Measured) {
        for (own, more) in [
            (&mut self.kept_s, later.kept_s),
            (&mut self.broken_s, later.broken_s),
            (&mut self.unknown_s, later.unknown_s),
            (&mut self.free_s, later.free_s),
        ] {
            *own = own.saturating_add(more);
        }
        self.promise_s = later.promise_s.or(self.promise_s);
        self.least_ms = [self.least_ms, later.least_ms].into_iter().flatten().min();
        self.most = match (self.most, later.most) {
            (Some(own), Some(more)) if more.0 > own.0 => Some(more),
            (own, more) => own.or(more),
        };
    }

    fn seconds(&self) -> u64 {
        let all = [self.kept_s, self.broken_s, self.unknown_s, self.free_s];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// Notes what a look measured of each cluster of the configuration. One that could not be looked at is noted as unknown.
///
/// # Errors
/// Those of the files.
pub fn add(
    session: &Session,
    settings: &Settings,
    state_dir: &Path,
    info: Option<&Info>,
) -> Result<()> {
    counters::make(&state_dir.join(FOLDER))?;
    let now = unix(session.host.now());
    let silence = settings.agent.oldest(SILENCE).as_secs();
    for cluster in &settings.clusters {
        let name = cluster.name.as_str();
        let found = info.and_then(|info| info.clusters.iter().find(|c| c.name == name));
        let exposure = found.and_then(|c| c.exposure.as_ref());
        let estimate = found.and_then(|c| c.estimate.as_ref());
        let promised = &cluster.objectives;
        let line = |begin| {
            let time = (now, now.saturating_sub(begin));
            let rpo = promised.rpo.map(|p| p.duration());
            let rto = promised.rto.map(|p| p.duration());
            Line {
                begin,
                rpo: Measured::new(exposure.map(|e| e.age), rpo, time),
                rto: Measured::new(estimate.map(|e| Duration::from_millis(e.ms)), rto, time),
            }
        };
        let path = file(state_dir, name);
        let nonce = session.host.random();
        behalf::of(&path, || append((&path, now, silence), line, nonce))
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
    }
    Ok(())
}

/// Tells how each promise was kept from `since` to `until`, which is not in the future.
///
/// # Errors
/// Those of the files.
pub fn read(
    settings: &Settings,
    state_dir: &Path,
    (since, until): (TimestampTz, TimestampTz),
) -> Result<Vec<Kept>> {
    let (since, until) = (unix(since), unix(until));
    let silence = settings.agent.oldest(SILENCE).as_secs();
    let mut all = Vec::new();
    for cluster in &settings.clusters {
        let name = cluster.name.as_str();
        let path = file(state_dir, name);
        let mut lines =
            load(&path).map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
        lines.retain(|line| line.begin < until);
        lines.sort_by_key(|line| line.begin);
        let of = |promise, part: fn(&Line) -> &Measured| {
            let lines = lines.iter().map(|line| (line.begin, part(line)));
            kept((name, promise), lines, (since, until), silence)
        };
        all.extend(of("rpo", |line| &line.rpo));
        all.extend(of("rto", |line| &line.rto));
    }
    Ok(all)
}

fn kept<'a>(
    (cluster, promise): (&str, &'static str),
    lines: impl Iterator<Item = (u64, &'a Measured)>,
    (mut since, mut until): (u64, u64),
    silence: u64,
) -> Option<Kept> {
    let from = since;
    let mut sum = Measured::default();
    let (mut first, mut end) = (None, 0);
    for (begin, line) in lines {
        end = begin.saturating_add(line.seconds());
        if begin < from {
            // A promise of before holds on, though nobody looked since. A line that reaches into this time is left out.
            sum.promise_s = line.promise_s;
            since = since.max(end);
        } else {
            sum.add(line);
        }
        if first.is_none() && line.promise_s.is_some() {
            first = Some(begin);
            // Time before the promise is no part of it.
            sum.free_s = 0;
        }
    }
    // The next look will tell of the time since the last one.
    if until.saturating_sub(end) <= silence {
        until = end;
    }
    let span = first.map_or(0, |first| until.saturating_sub(since.max(first)));
    let known = [sum.kept_s, sum.broken_s, sum.free_s];
    let known = known.into_iter().fold(0, u64::saturating_add);
    (sum.promise_s.is_some() || sum.most.is_some()).then(|| Kept {
        cluster: cluster.to_owned(),
        promise,
        goal_s: sum.promise_s,
        kept_s: sum.kept_s,
        broken_s: sum.broken_s,
        unknown_s: span.saturating_sub(known),
        least_ms: sum.least_ms,
        worst_ms: sum.most.map(|(ms, _)| ms),
        worst_time: sum.most.and_then(|(_, at)| {
            let at = i64::try_from(at).ok()?;
            TimestampTz::from_unix_seconds(at)
        }),
    })
}

fn file(state_dir: &Path, cluster: &str) -> PathBuf {
    state_dir.join(FOLDER).join(format!("{cluster}.jsonl"))
}

fn unix(time: TimestampTz) -> u64 {
    let micros = time.unix_micros().unwrap_or_default();
    u64::try_from(micros / 1_000_000).unwrap_or_default()
}

fn parsed(text: &[u8]) -> impl DoubleEndedIterator<Item = Line> {
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok())
}

fn load(path: &Path) -> std::io::Result<Vec<Line>> {
    match behalf::read(path) {
        Ok(text) => Ok(parsed(&text).collect()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Adds a line that begins where the last one ends. The first one of a day writes the file anew.
fn append(
    (path, now, silence): (&Path, u64, u64),
    line: impl FnOnce(u64) -> Line,
    nonce: u64,
) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.read(true).append(true).create(true).mode(0o600);
    let mut file = options.open(path)?;
    let tail = tail(&mut file)?;
    let last = parsed(&tail).next_back();
    let end = last
        .as_ref()
        .map(|l| l.begin.saturating_add(l.rpo.seconds()));
    let is_near = |end: &u64| now.checked_sub(*end).is_some_and(|gap| gap <= silence);
    let new = line(end.filter(is_near).unwrap_or(now));
    if last.is_some_and(|last| last.begin / DAY_S != now / DAY_S) {
        let lines = load(path)?.into_iter().chain([new]);
        let text: Vec<u8> = merged(lines, now).iter().flat_map(written).collect();
        return durable::replace(path, &text, nonce);
    }
    let mut text = written(&new);
    // A line that was cut ends before the next one begins.
    if tail.last().is_some_and(|byte| *byte != b'\n') {
        text.insert(0, b'\n');
    }
    file.write_all(&text)
}

fn tail(file: &mut File) -> std::io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}

fn written(line: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Joins lines by their age. Those of the future go: the clock was wrong then.
fn merged(lines: impl Iterator<Item = Line>, now: u64) -> Vec<Line> {
    let mut by_begin: BTreeMap<u64, Line> = BTreeMap::new();
    let mut lines: Vec<Line> = lines.filter(|line| line.begin <= now).collect();
    lines.sort_by_key(|line| line.begin);
    for line in lines {
        let length = match now - line.begin {
            age if age <= EACH_S => 1,
            age if age <= FINE_S.1 => FINE_S.0,
            age if age <= COARSE_S.1 => COARSE_S.0,
            _ => continue,
        };
        let begin = line.begin - line.begin % length;
        let joined = by_begin.entry(begin).or_insert_with(|| Line {
            begin,
            ..Line::default()
        });
        joined.rpo.add(&line.rpo);
        joined.rto.add(&line.rto);
    }
    by_begin.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_774_742_400;

    /// A look that measured so many seconds, of a promise of 60 s.
    fn look(begin: u64, now: u64, value: Option<u64>) -> Line {
        let of = |value: Option<u64>| {
            let promise = Some(Duration::from_secs(60));
            Measured::new(value.map(Duration::from_secs), promise, (now, now - begin))
        };
        Line {
            begin,
            rpo: of(value),
            rto: of(None),
        }
    }

    fn keep(path: &Path, now: u64, value: Option<u64>, nonce: u64) {
        let place = (path, now, SILENCE.as_secs());
        append(place, |begin| look(begin, now, value), nonce).unwrap();
    }

    fn rpo(lines: &[Line], until: u64) -> Kept {
        since(lines, 0, until).unwrap()
    }

    fn since(lines: &[Line], since: u64, until: u64) -> Option<Kept> {
        let lines = lines.iter().map(|line| (line.begin, &line.rpo));
        kept(("main", "rpo"), lines, (since, until), SILENCE.as_secs())
    }

    fn seconds(kept: &Kept) -> (u64, u64, u64) {
        (kept.kept_s, kept.broken_s, kept.unknown_s)
    }

    #[test]
    fn a_day_of_looks_in_a_file_and_what_is_not_known_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("main.jsonl");
        let mut now = START;
        let mut at = |step: u64, value: Option<u64>| {
            now += step;
            keep(&path, now, value, 7);
            now
        };
        at(0, Some(1));
        at(60, Some(60));
        let worst = at(60, Some(61));
        // Nobody could measure for a minute.
        at(60, None);
        // The agent was down for an hour: its first look tells nothing of that.
        at(3600, Some(2));
        let end = at(60, Some(2));
        let found = rpo(&load(&path).unwrap(), end);
        assert_eq!(seconds(&found), (120, 60, 3660));
        assert_eq!((found.least_ms, found.worst_ms), (Some(1000), Some(61_000)));
        assert_eq!(found.worst_time.map(unix), Some(worst));
        assert_eq!(found.share().as_deref(), Some("3.12 %"));
        // It goes on being unknown while nobody looks.
        assert_eq!(rpo(&load(&path).unwrap(), end + 700).unknown_s, 4360);
        let day = since(&load(&path).unwrap(), end + DAY_S, end + 2 * DAY_S).unwrap();
        assert_eq!((seconds(&day), day.worst_ms), ((0, 0, DAY_S), None));
        assert_eq!(day.share().as_deref(), Some("0.00 %"));
        // A cut line loses itself alone.
        let mut text = std::fs::read(&path).unwrap();
        text.truncate(text.len() - 5);
        std::fs::write(&path, &text).unwrap();
        at(60, Some(3));
        let lines = load(&path).unwrap();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[5].rpo.kept_s, 120, "it stands for both");
        std::fs::write(&path, [b"\xff{]\n".as_slice(), &text].concat()).unwrap();
        assert_eq!(load(&path).unwrap().len(), 5);
    }

    #[test]
    fn old_lines_are_joined_and_nothing_of_them_is_lost() {
        let now = START + 12 * DAY_S;
        let minutes = |from: u64, count: u64| {
            (0..count).map(move |n| look(from + 60 * n, from + 60 * (n + 1), Some(n % 100)))
        };
        let lines = minutes(START, 600)
            .chain(minutes(now - 2 * 3600, 120))
            .chain([look(now + 50, now + 60, Some(1))])
            .chain([look(now - 401 * DAY_S, now, Some(9999))]);
        let all: Vec<Line> = lines.collect();
        let joined = merged(all.clone().into_iter(), now);
        // Ten hours, twelve times five minutes, and each look of the last hour.
        assert_eq!(joined.len(), 10 + 12 + 60);
        assert!(joined.windows(2).all(|pair| pair[0].begin < pair[1].begin));
        let rest = &all[..720];
        let (before, after) = (rpo(rest, now), rpo(&joined, now));
        assert_eq!(before, after);
        assert!(before.broken_s > 0 && before.unknown_s > 10 * DAY_S);
        assert_eq!(merged(joined.clone().into_iter(), now), joined);
        // A line that begins before the time of a report is left out, and no part of what is not known.
        let part = since(&joined, now - 5000, now).unwrap();
        let known = part.kept_s + part.broken_s;
        assert_eq!((known, part.unknown_s), (5000 - 200, 0));
        // At most so many lines of some bytes each.
        let text = written(&joined[0]);
        assert!(text.len() < 150, "{}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn j60_looks_that_are_rare_stand_for_the_time_between_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("main.jsonl");
        let silence = 2 * 1800;
        for now in [START, START + 1800, START + 3600] {
            append((&path, now, silence), |begin| look(begin, now, Some(1)), 7).unwrap();
        }
        let lines = load(&path).unwrap();
        let of = lines.iter().map(|line| (line.begin, &line.rpo));
        let until = START + 3600 + 1700;
        let told = kept(("main", "rpo"), of, (START, until), silence).unwrap();
        assert_eq!(seconds(&told), (3600, 0, 0));
    }

    #[test]
    fn the_first_look_of_a_day_writes_the_file_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("main.jsonl");
        let looks = |from: u64, count: u64| {
            for n in 0..count {
                let now = from + 60 * n;
                keep(&path, now, Some(1), n);
            }
            load(&path).unwrap()
        };
        assert_eq!(looks(START + DAY_S - 7200, 120).len(), 120);
        let lines = looks(START + DAY_S, 1);
        assert!((70..80).contains(&lines.len()), "{}", lines.len());
        assert_eq!(seconds(&rpo(&lines, START + DAY_S)), (7200, 0, 0));
        assert_eq!(looks(START + DAY_S + 60, 1).len(), lines.len() + 1);
    }

    #[test]
    fn time_without_a_promise_is_neither_kept_nor_broken() {
        let free = |begin: u64| Line {
            begin,
            rpo: Measured::new(Some(Duration::from_secs(500)), None, (begin + 60, 60)),
            ..Line::default()
        };
        let lines = [free(START), free(START + 60)];
        let found = rpo(&lines, START + 120);
        assert_eq!((seconds(&found), found.share()), ((0, 0, 0), None));
        assert_eq!(found.worst_ms, Some(500_000));
        let promised = look(START + 120, START + 180, Some(1));
        let later = [&lines[..], &[promised, free(START + 180)]].concat();
        assert_eq!(seconds(&rpo(&later, START + 240)), (60, 0, 0));
    }
}
