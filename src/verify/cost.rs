//! The costs of damage: which backups, and which points of which timelines.

use super::check::Found;
use super::{About, FindingKind, Report, Work, oldest, wal};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::plan::retention::wal::Paths;
use crate::repo::catalog::Manifest;
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::portion::Share;
use crate::repo::trimmed::Trimmed;
use crate::wal::survey::{Root, Survey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

/// Timelines that one finding names.
const NAMED_MAX: usize = 4;

/// The backups of the survey that lead to a timeline, by start.
fn leading<'a>(
    survey: &'a Survey,
    paths: &Paths<'_>,
    target: TimelineId,
) -> Vec<(&'a BackupId, &'a Root)> {
    let mut leading: Vec<_> = survey
        .ids
        .iter()
        .filter_map(|(id, subject)| match &subject.manifest {
            Manifest::Committed(root) => Some((id, root.as_ref())),
            _ => None,
        })
        .filter(|(_, r)| paths.leads_through(target, r.timeline, r.stop_lsn))
        .collect();
    leading.sort_by_key(|(_, r)| r.start_lsn);
    leading
}

/// Adds a finding for every hole behind a backup. Segments that were found damaged are holes too, but have been reported.
pub(super) fn add_gaps(
    work: &Work<'_>,
    survey: &Survey,
    paths: &mut Paths<'_>,
    chosen: &[BackupId],
) {
    let damaged = damaged_segments(work);
    for name in &damaged {
        paths.distrust(*name);
    }
    let mut seen = BTreeSet::new();
    let mut let_go = Vec::new();
    for target in paths.timelines().collect::<Vec<_>>() {
        let mut roots = leading(survey, paths, target);
        if work.what.backup.is_some() {
            roots.retain(|(id, root)| chosen.contains(id) && root.timeline == target);
        }
        let Some((_, first)) = roots.first() else {
            continue;
        };
        let mut at = paths.reach(target, first.start_lsn);
        loop {
            let from = SegmentNumber::of(at, work.size);
            // A check of one backup alone counts only the WAL of that backup.
            if work.what.backup.is_some() && roots.iter().all(|(_, r)| r.stop_lsn <= at) {
                break;
            }
            // Only a part is stored of a segment in which WAL ends.
            let next = match paths.next_there(target, from) {
                Some(next) if next == from => paths.next_there(target, from.next()),
                next => next,
            };
            let to = match (next, work.what.backup.is_some()) {
                (Some(next), _) => next,
                (None, true) => from.next(),
                (None, false) => {
                    let to = SegmentNumber(u64::MAX);
                    let rest = Hole { target, from, to };
                    match is_deliberate(survey, work, (paths, &roots), (&rest, &damaged)) {
                        true => let_go.push(rest),
                        false => missing_end(work, paths, &roots, target, from, &mut seen),
                    }
                    break;
                }
            };
            let hole = Hole { target, from, to };
            match is_deliberate(survey, work, (paths, &roots), (&hole, &damaged)) {
                true => let_go.push(hole),
                false => report_hole(work, paths, &hole, &damaged, &mut seen),
            }
            if next.is_none() {
                break;
            }
            at = paths.reach(target, to.start_lsn(work.size));
        }
    }
    if work.what.backup.is_none() {
        recorded_gaps(work, survey, paths, (&seen, &let_go));
    }
}

/// Adds findings for WAL that a receiver recorded as lost. It is missing also where nothing is stored after it, so that
/// no hole is to be seen. WAL in a hole that was made on purpose is missed by nobody.
fn recorded_gaps(
    work: &Work<'_>,
    survey: &Survey,
    paths: &Paths<'_>,
    (seen, let_go): (&BTreeSet<(SegmentName, SegmentName)>, &[Hole]),
) {
    let of_timeline = |name: &SegmentName, id| name.timeline == id;
    for (id, timeline) in &survey.timelines {
        for lost in &timeline.lost {
            let (first, last) = (
                SegmentNumber::of(lost.start, work.size),
                SegmentNumber::ending_at(lost.end, work.size),
            );
            let (Some(from), Some(to)) = (first.name(*id, work.size), last.name(*id, work.size))
            else {
                continue;
            };
            let is_told = seen
                .iter()
                .any(|(a, b)| of_timeline(a, *id) && a <= &from && &to <= b);
            let is_behind_a_backup = paths.timelines().any(|target| {
                paths.holder(target, first) == *id
                    && leading(survey, paths, target)
                        .first()
                        .is_some_and(|(_, root)| root.start_lsn < lost.end)
            });
            let is_let_go = let_go.iter().any(|hole| {
                paths.holder(hole.target, first) == *id && hole.from <= first && last < hole.to
            });
            if is_told || is_let_go || !is_behind_a_backup {
                continue;
            }
            let object = span(from, to);
            let detail = format!(
                "WAL from {} to {} was lost before it was received",
                lost.start, lost.end
            );
            let about = About::Record(from, lost.start);
            work.find(FindingKind::Gap, &object, detail, about);
        }
    }
}

/// WAL ends before a backup does, and nothing follows.
fn missing_end(
    work: &Work<'_>,
    paths: &Paths<'_>,
    roots: &[(&BackupId, &Root)],
    target: TimelineId,
    from: SegmentNumber,
    seen: &mut BTreeSet<(SegmentName, SegmentName)>,
) {
    let damaged = damaged_segments(work);
    let last = roots
        .iter()
        .map(|(_, r)| SegmentNumber::ending_at(r.stop_lsn, work.size))
        .max()
        .filter(|last| *last >= from);
    // A descendant may have what the timeline itself lacks.
    let elsewhere = roots.iter().all(|(_, r)| {
        paths
            .timelines()
            .filter(|t| paths.leads_through(*t, r.timeline, r.stop_lsn))
            .any(|t| paths.reach(t, r.start_lsn) >= r.stop_lsn)
    });
    if let Some(last) = last.filter(|_| !elsewhere) {
        let hole = Hole {
            target,
            from,
            to: last.next(),
        };
        report_hole(work, paths, &hole, &damaged, seen);
    }
}

struct Hole {
    target: TimelineId,
    from: SegmentNumber,
    /// The first segment that is there again.
    to: SegmentNumber,
}

fn report_hole(
    work: &Work<'_>,
    paths: &Paths<'_>,
    hole: &Hole,
    damaged: &BTreeSet<SegmentName>,
    seen: &mut BTreeSet<(SegmentName, SegmentName)>,
) {
    let name = |n: SegmentNumber| n.name(paths.holder(hole.target, n), work.size);
    let (Some(first), Some(last)) = (name(hole.from), name(SegmentNumber(hole.to.0 - 1))) else {
        return;
    };
    if !seen.insert((first, last)) {
        return;
    }
    // Counted, not walked: one stray name at the far end makes a hole of 2^40 segments.
    let is_in = |d: &&SegmentName| {
        let number = d.number(work.size).ok();
        let number = number.filter(|n| (hole.from..hole.to).contains(n));
        number.is_some_and(|n| paths.holder(hole.target, n) == d.timeline)
    };
    let damaged = damaged.iter().filter(is_in).count() as u64;
    let missing = (hole.to.0 - hole.from.0).saturating_sub(damaged);
    if missing == 0 {
        return;
    }
    let object = span(first, last);
    let detail = match missing {
        _ if paths.holds(hole.target, hole.from) => {
            format!("{} not whole", human(missing))
        }
        n => format!("{} missing", human(n)),
    };
    work.find(FindingKind::Gap, &object, detail, About::Segment(first));
}

/// The words for the segments from one to another.
fn span(first: SegmentName, last: SegmentName) -> String {
    match first == last {
        true => first.to_string(),
        false => format!("{first} to {last}"),
    }
}

fn human(segments: u64) -> String {
    match segments {
        1 => "1 segment is".to_owned(),
        n => format!("{n} segments are"),
    }
}

/// The hole that is recorded of a backup, and what expire leaves between a pinned backup and the next one, is no gap. None is
/// deliberate that takes WAL which a backup needs itself.
fn is_deliberate(
    survey: &Survey,
    work: &Work<'_>,
    (paths, roots): (&Paths<'_>, &[(&BackupId, &Root)]),
    (hole, damaged): (&Hole, &BTreeSet<SegmentName>),
) -> bool {
    let name = |n: SegmentNumber| n.name(paths.holder(hole.target, n), work.size);
    // Damage in front of the hole has a finding of its own.
    let mut begin = hole.from;
    while begin < hole.to && name(begin).is_some_and(|name| damaged.contains(&name)) {
        begin = begin.next();
    }
    let to = hole.to.start_lsn(work.size);
    let end = |root: &Root| root.consistent_lsn.max(root.stop_lsn);
    let is_needed_from =
        |begin: Lsn| (roots.iter()).any(|(_, root)| root.start_lsn < to && end(root) > begin);
    let ends = roots
        .iter()
        .any(|(_, root)| SegmentNumber::of(root.start_lsn, work.size) == hole.to);
    roots.iter().any(|(id, root)| {
        let events = survey.ids.get(*id).map_or(&[][..], |s| &s.events);
        let behind = SegmentNumber::ending_at(end(root), work.size).next();
        let is_trimmed = || {
            let reach = paths.reach(hole.target, root.start_lsn);
            SegmentNumber::of(reach, work.size) == hole.from && !is_needed_from(reach)
        };
        let is_pinned = || {
            let pinned = !event::live_pins(events, work.host.now()).is_empty();
            pinned && !is_needed_from(hole.from.start_lsn(work.size))
        };
        let is_recorded = paths.is_trimmed(hole.target, begin, &Trimmed::of(events));
        is_recorded && is_trimmed() || ends && behind == hole.from && is_pinned()
    })
}

fn damaged_segments(work: &Work<'_>) -> BTreeSet<SegmentName> {
    work.found()
        .abouts()
        .filter_map(|(kind, about)| match (about, kind) {
            (About::Segment(name), FindingKind::Damaged | FindingKind::Frozen) => Some(*name),
            _ => None,
        })
        .collect()
}

/// Puts the report together: findings in order, each with what it costs.
pub(super) fn report(
    work: Work<'_>,
    survey: &Survey,
    paths: &Paths<'_>,
    chosen: &[BackupId],
) -> Report {
    let now = work.host.now();
    let read_back = survey.read_back(now).and(now, work.told());
    let mut found = work.take_found();
    let cut_short = cut_short(&found, survey, paths);
    let lost = lost_backups(&found, survey, (paths, &cut_short));
    let unlisted = found.unlisted().cloned().collect();
    for finding in &mut found.findings {
        finding.costs = match &finding.about {
            About::Backup(id) => backup_costs(survey, paths, id, &lost, finding.kind),
            About::Segment(name) => segment_costs(&work, survey, paths, *name, None),
            About::Record(name, lsn) => segment_costs(&work, survey, paths, *name, Some(*lsn)),
            About::History(timeline) => vec![format!(
                "timeline {} and those that descend from it cannot be restored to; pitr expire deletes no WAL",
                timeline.decimal()
            )],
            About::Other => Vec::new(),
        };
    }
    if work.what.backup.is_none() {
        let doubts = paths.doubts.iter();
        let told = doubts.map(|d| format!("no WAL can be expired: {d}"));
        found.warnings.extend(told);
    }
    let elsewhere = std::mem::take(&mut found.elsewhere);
    let chosen = chosen.iter().filter(|id| !elsewhere.contains(id)).cloned();
    let share = Share::of(&read_back, &oldest::there(survey));
    Report {
        segment_count: work.segments.load(Ordering::Relaxed),
        unlinked_count: work.unlinked.load(Ordering::Relaxed),
        cut_short,
        unlisted,
        ..work.report(found, chosen, &lost, share)
    }
}

/// Backups that recovery leaves before they are consistent, by each of which the first such place.
pub(super) type CutShort = BTreeMap<BackupId, (SegmentName, Lsn)>;

/// Backups whose own WAL is there, and recovery cannot get through it, whatever timeline it follows.
fn cut_short(found: &Found, survey: &Survey, paths: &Paths<'_>) -> CutShort {
    let ends = ends_of_replay(found);
    let end = |root: &Root| {
        let all = targets(paths, root)
            .map(|target| end_before(&ends, survey.segment_size, (paths, target), root));
        all.collect::<Option<Vec<_>>>()?.first().copied()
    };
    let all = survey.committed();
    all.filter_map(|(id, _, root)| Some((id.clone(), end(root)?)))
        .collect()
}

/// The timelines by which a backup becomes consistent, for all that is there.
fn targets<'a>(paths: &'a Paths<'_>, root: &'a Root) -> impl Iterator<Item = TimelineId> + 'a {
    paths
        .timelines()
        .filter(|t| paths.leads_through(*t, root.timeline, root.stop_lsn))
        .filter(|t| paths.reach(*t, root.start_lsn) >= root.stop_lsn)
}

/// Backups that are damaged, or whose WAL is, or whose WAL recovery cannot get through.
fn lost_backups(
    found: &Found,
    survey: &Survey,
    (paths, cut_short): (&Paths<'_>, &CutShort),
) -> BTreeSet<BackupId> {
    let damaged = found.abouts().filter_map(|(kind, about)| match about {
        About::Backup(id) if kind != FindingKind::Pages => Some(id.clone()),
        _ => None,
    });
    let unreached = survey.committed();
    let unreached = unreached.filter(|(_, _, root)| targets(paths, root).next().is_none());
    damaged
        .chain(unreached.map(|(id, _, _)| id.clone()))
        .chain(cut_short.keys().cloned())
        .collect()
}

/// The positions at which replay ends in segments that are stored as the server wrote them.
fn ends_of_replay(found: &Found) -> BTreeSet<(SegmentName, Lsn)> {
    let ends = found.abouts().filter_map(|(_, about)| match about {
        About::Record(name, lsn) => Some((*name, *lsn)),
        _ => None,
    });
    ends.collect()
}

/// The place at which replay towards a timeline ends before the backup is consistent. Nothing before its start is replayed.
fn end_before(
    ends: &BTreeSet<(SegmentName, Lsn)>,
    size: SegmentSize,
    (paths, target): (&Paths<'_>, TimelineId),
    root: &Root,
) -> Option<(SegmentName, Lsn)> {
    let is_replayed = |(name, lsn): &&(SegmentName, Lsn)| {
        let is_within = (root.start_lsn..root.stop_lsn).contains(lsn);
        let number = name.number(size).ok().filter(|_| is_within);
        number.is_some_and(|n| paths.holder(target, n) == name.timeline)
    };
    ends.iter().find(is_replayed).copied()
}

fn backup_costs(
    survey: &Survey,
    paths: &Paths<'_>,
    id: &BackupId,
    lost: &BTreeSet<BackupId>,
    kind: FindingKind,
) -> Vec<String> {
    let mut costs = vec![match kind {
        FindingKind::Pages => format!(
            "backup {id} holds damaged pages: it is used only when no other reaches the target"
        ),
        _ => format!("backup {id} cannot be restored"),
    }];
    let Some(Manifest::Committed(root)) = survey.ids.get(id).map(|s| &s.manifest) else {
        return costs;
    };
    for target in paths.timelines() {
        if !paths.leads_through(target, root.timeline, root.stop_lsn) {
            continue;
        }
        let others = leading(survey, paths, target);
        let good = |other: &&(&BackupId, &Root)| !lost.contains(other.0) && other.0 != id;
        let covers = others
            .iter()
            .filter(good)
            .filter(|(_, r)| r.stop_lsn <= root.stop_lsn)
            .rfind(|(_, r)| paths.reach(target, r.start_lsn) >= root.stop_lsn);
        let next = others
            .iter()
            .filter(good)
            .map(|(_, r)| r.stop_lsn)
            .filter(|stop| *stop > root.stop_lsn)
            .min();
        costs.push(match (covers, next) {
            (Some((other, _)), _) => format!(
                "timeline {}: its points can still be reached from backup {other}, with more WAL to replay",
                target.decimal()
            ),
            (None, Some(next)) => format!(
                "timeline {}: points from {} to {next} are lost",
                target.decimal(),
                root.stop_lsn
            ),
            (None, None) => format!(
                "timeline {}: every point from {} on is lost",
                target.decimal(),
                root.stop_lsn
            ),
        });
    }
    shorten(costs)
}

/// Returns the costs of a segment that replay cannot get through, or not beyond a position in it.
fn segment_costs(
    work: &Work<'_>,
    survey: &Survey,
    paths: &Paths<'_>,
    name: SegmentName,
    lsn: Option<Lsn>,
) -> Vec<String> {
    let Ok(number) = name.number(work.size) else {
        return Vec::new();
    };
    let lsn = lsn.unwrap_or(number.start_lsn(work.size));
    let segment = |at: Lsn| SegmentNumber::of(at, work.size);
    let mut costs = Vec::new();
    for target in paths.timelines() {
        if paths.holder(target, number) != name.timeline {
            continue;
        }
        let roots = leading(survey, paths, target);
        let through: Vec<_> = roots
            .iter()
            .filter(|(_, r)| segment(r.start_lsn) <= number)
            .collect();
        for (id, _) in through.iter().filter(|(_, r)| r.stop_lsn > lsn) {
            let cost = format!("backup {id} cannot be restored");
            if !costs.contains(&cost) {
                costs.push(cost);
            }
        }
        // Points before it are reached from backups that end before it; without one there is nothing to lose.
        if through.is_empty() {
            continue;
        }
        let next = roots
            .iter()
            .filter(|(_, r)| segment(r.start_lsn) > number)
            .map(|(_, r)| r.stop_lsn)
            .min();
        let since = wal::last_commit_before(work, name.timeline, number)
            .map(|t| format!(" (the commits after {t})"))
            .unwrap_or_default();
        costs.push(match next {
            Some(next) => format!(
                "timeline {}: points from {lsn}{since} to {next} are lost",
                target.decimal()
            ),
            None => format!(
                "timeline {}: every point from {lsn} on{since} is lost",
                target.decimal()
            ),
        });
    }
    shorten(costs)
}

fn shorten(mut costs: Vec<String>) -> Vec<String> {
    let most = NAMED_MAX * 2;
    if costs.len() > most {
        let more = costs.len() - most;
        costs.truncate(most);
        costs.push(format!("and {more} more of the kind"));
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::runs::Runs;
    use crate::wal::inventory::Timeline;
    use crate::wal::survey::Subject;

    const MIB: u64 = 1 << 20;

    fn lsn(mib: u64, bytes: u64) -> Lsn {
        Lsn(mib * MIB + bytes)
    }

    /// Timeline 1 with segments of 1 MiB, and backups from a segment to another one.
    fn survey(backups: &[(&BackupId, u64, u64)]) -> Survey {
        let mut survey = Survey::empty(SegmentSize::new(MIB).unwrap());
        let timeline = Timeline {
            segments: Runs::from_numbers((1..=100).collect()),
            ..Timeline::default()
        };
        survey.timelines.insert(TimelineId::FIRST, timeline);
        for (id, start, stop) in backups {
            let root = Root::sample(TimelineId::FIRST, lsn(*start, 40), lsn(*stop, 40));
            let subject = Subject {
                manifest: Manifest::Committed(Box::new(root)),
                ..Subject::default()
            };
            survey.ids.insert((*id).clone(), subject);
        }
        survey
    }

    #[test]
    fn v40_a_backup_whose_own_wal_recovery_cannot_get_through_is_lost() {
        let id = |text: &str| -> BackupId { text.parse().unwrap() };
        let (before, through, after) = (
            id("20261120T064049Z-full"),
            id("20261120T074049Z-full"),
            id("20261120T084049Z-full"),
        );
        let survey = survey(&[(&before, 10, 12), (&through, 20, 24), (&after, 30, 31)]);
        let mut paths = Paths::new(&survey);
        paths.trust_all();
        let lost = |number: u64, at: Lsn, is_listed: bool| {
            let number = SegmentNumber(number);
            let name = number.name(TimelineId::FIRST, survey.segment_size);
            let about = About::Record(name.unwrap(), at);
            let mut found = Found::default();
            match is_listed {
                true => found.findings.push(super::super::Finding {
                    kind: FindingKind::Wal,
                    object: String::new(),
                    detail: String::new(),
                    costs: Vec::new(),
                    about,
                }),
                false => found.count(FindingKind::Wal, about, 1),
            }
            let cut_short = cut_short(&found, &survey, &paths);
            lost_backups(&found, &survey, (&paths, &cut_short))
        };
        let one = BTreeSet::from([through.clone()]);
        assert_eq!(lost(22, lsn(22, 700), true), one);
        assert_eq!(lost(22, lsn(22, 700), false), one);
        assert_eq!(lost(24, lsn(24, 8), true), one);
        // Behind its end, and before its start.
        assert_eq!(lost(24, lsn(24, 40), true), BTreeSet::new());
        assert_eq!(lost(15, lsn(15, 0), true), BTreeSet::new());
        // The backup that begins behind a break in its first segment is how one gets past the break.
        assert_eq!(lost(20, lsn(20, 0), true), BTreeSet::new());
    }
}
