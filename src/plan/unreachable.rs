//! Says why a target cannot be reached, what is missing, and which moments nearby can be reached.

use super::account::consistent_moment;
use super::base::{Planner, Tried};
use super::chain::{Chain, Stretch, StretchEnd};
use super::recovery::{MISSING_LISTED_MAX, Moment, Outcome, Plan, Reason};
use super::search::Search;
use super::target::Target;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::wal::facts::{NamedPoint, flag};
use crate::wal::inventory::{Backup, Inventory};

/// So many restore points are named when the one asked for does not exist.
const NAMES_MAX: usize = 5;

/// The words of PostgreSQL 13 at WAL of wal_level minimal, unless `hot_standby` is off: then it goes on and lacks data.
const MINIMAL_13: &str = "hot standby is not possible because wal_level was not set to \"replica\" or higher on the master server";

/// Makes `plan` one that cannot be executed.
pub fn refuse(plan: &mut Plan, reason: Reason, explanation: String) {
    plan.reachable = false;
    plan.outcome = Outcome::Fatal;
    plan.fatal_message = match reason {
        Reason::BeforeBackup => {
            Some("requested recovery stop point is before consistent recovery point".into())
        }
        Reason::Gap
        | Reason::DamagedWal
        | Reason::AfterEnd
        | Reason::InFuture
        | Reason::UnknownXid
        | Reason::UnknownName
        | Reason::BackupWalMissing => {
            Some("recovery ended before configured recovery target was reached".into())
        }
        Reason::MinimalWal => {
            Some("WAL was generated with wal_level=minimal, cannot continue recovering".into())
        }
        Reason::OtherTimeline => Some(format!(
            "requested timeline {} is not a child of this server's history",
            plan.target_timeline.map_or(0, TimelineId::decimal)
        )),
        _ => None,
    };
    plan.reason = Some(reason);
    plan.explanation = Some(explanation);
}

/// Makes a plan to the end of the WAL one that cannot be executed, because elsewhere there is WAL behind that end.
pub fn refuse_end(plan: &mut Plan, explanation: String) {
    let commit = plan.last_commit.map(|c| Moment {
        time: Some(c.time),
        lsn: c.lsn,
        xid: Some(c.xid),
    });
    let stop = plan.stop.take().map(|s| Moment {
        time: None,
        lsn: s.recovery_end_lsn,
        xid: None,
    });
    refuse(plan, Reason::Gap, explanation);
    plan.nearest_before = commit.or(stop);
}

/// Why there is no plan for a timeline without a history file.
pub fn no_timeline(inventory: &Inventory, timeline: TimelineId) -> (Reason, String) {
    let known: Vec<String> = inventory
        .timelines
        .keys()
        .map(|t| t.decimal().to_string())
        .collect();
    let known = known.join(", ");
    if inventory.timelines.contains_key(&timeline)
        || inventory.backups.iter().any(|b| b.timeline == timeline)
    {
        let detail = format!(
            "timeline {} has no history file in the repository: PostgreSQL cannot follow it (archive {} from the server's pg_wal; after pg_resetwal -l a comment in it says that there is no parent)",
            timeline.decimal(),
            timeline.history_file_name()
        );
        return (Reason::HistoryMissing, detail);
    }
    let detail = format!(
        "timeline {} does not exist (known: {known})",
        timeline.decimal()
    );
    (Reason::UnknownTimeline, detail)
}

/// Why the WAL of a stretch goes no further, in words.
pub fn describe_end(chain: &Chain<'_>, stretch: &Stretch) -> String {
    match &stretch.end {
        StretchEnd::EndOfWal => format!("the archived WAL ends at {}", stretch.reach()),
        StretchEnd::Missing { from, until } => {
            let (names, count) = chain.missing(*from, *until, 1);
            match (names.first(), count) {
                (Some(name), 1) => format!("segment {name} is missing"),
                (Some(name), n) => format!("{n} segments are missing, from {name} on"),
                (None, n) => format!("{n} segments are missing"),
            }
        }
        StretchEnd::Broken { at, why } => {
            format!("segment {at} does not continue the WAL before it: {why}")
        }
        StretchEnd::Damaged { at, why } => format!("segment {at} cannot be used: {why}"),
        StretchEnd::EndsInside { at, lsn } => {
            format!("the WAL in segment {at} ends at {lsn}, although later segments exist")
        }
        StretchEnd::Minimal { at } => {
            format!("from segment {at} on WAL was written with wal_level minimal")
        }
        StretchEnd::Undecoded { at } => format!(
            "segment {at} was archived undecoded: a PostgreSQL newer than {} wrote it, and this pitr can prove nothing of it",
            Major::NEWEST
        ),
    }
}

/// Why the WAL of a backup does not even reach its own end.
pub(super) fn describe_short(chain: &Chain<'_>, stretch: &Stretch, backup: &Backup) -> String {
    if stretch.end != StretchEnd::EndOfWal {
        return describe_end(chain, stretch);
    }
    let size = chain.size();
    let next = match stretch.final_segment() {
        // The last one is there, and its WAL ends too early.
        Some(last) if last >= SegmentNumber::ending_at(backup.consistent_lsn, size) => {
            return describe_end(chain, stretch);
        }
        Some(last) => last.next(),
        None => SegmentNumber::of(backup.start_lsn, size),
    };
    match chain.path().name(next) {
        Some(name) => format!("segment {name} is missing, and nothing behind it is archived"),
        None => describe_end(chain, stretch),
    }
}

fn reason_of(end: &StretchEnd) -> Reason {
    match end {
        StretchEnd::EndOfWal => Reason::AfterEnd,
        StretchEnd::Missing { .. } => Reason::Gap,
        StretchEnd::Minimal { .. } => Reason::MinimalWal,
        StretchEnd::Undecoded { .. } => Reason::UndecodedWal,
        StretchEnd::Broken { .. } | StretchEnd::Damaged { .. } | StretchEnd::EndsInside { .. } => {
            Reason::DamagedWal
        }
    }
}

/// Why the WAL behind a backup does not lead to the target.
pub(super) fn not_found(
    planner: &Planner<'_>,
    chain: &Chain<'_>,
    stretch: &Stretch,
) -> (Reason, String) {
    let end = describe_end(chain, stretch);
    if stretch.end != StretchEnd::EndOfWal {
        let detail = format!("WAL behind it ends at {}: {end}", stretch.reach());
        return (reason_of(&stretch.end), detail);
    }
    match &planner.target.target {
        Target::Time(_) if planner.is_future() => {
            (Reason::InFuture, "the target lies in the future".into())
        }
        Target::Xid(xid) => (
            Reason::UnknownXid,
            format!("no transaction {xid} ends behind it (subtransactions never count), {end}"),
        ),
        Target::Name(name) => (
            Reason::UnknownName,
            format!(
                "no restore point \"{}\" lies behind it, {end}",
                name.as_str()
            ),
        ),
        Target::Time(_) => (
            Reason::AfterEnd,
            format!("no transaction ended after the target time, {end}"),
        ),
        Target::Immediate => (
            Reason::AfterEnd,
            format!("no record follows the point at which it is consistent, {end}"),
        ),
        _ => (
            Reason::AfterEnd,
            format!("no record begins at or behind the target, {end}"),
        ),
    }
}

/// Completes a plan that has no backup.
pub(super) fn explain(
    planner: &Planner<'_>,
    plan: &mut Plan,
    chain: Option<&Chain<'_>>,
    tried: &[Tried<'_>],
) -> Result<()> {
    plan.target_timeline = chain.map(|p| p.history().timeline());
    let Some(chain) = chain else {
        let detail = "no timeline can be followed".to_owned();
        refuse(plan, Reason::HistoryMissing, detail);
        return Ok(());
    };
    let of = |reasons: &[Reason]| tried.iter().find(|t| reasons.contains(&t.refusal.reason));
    // The newest backup whose WAL does not lead to the target, and the oldest that lies behind it.
    let before = of(&[
        Reason::Gap,
        Reason::DamagedWal,
        Reason::MinimalWal,
        Reason::UndecodedWal,
        Reason::AfterEnd,
        Reason::InFuture,
        Reason::UnknownXid,
        Reason::UnknownName,
    ]);
    let behind = tried
        .iter()
        .filter(|t| t.refusal.reason == Reason::BeforeBackup)
        .min_by_key(|t| t.backup.consistent_lsn);
    let main = of(&[Reason::DamagedBackup, Reason::PartialBackup])
        .or(of(&[
            Reason::Gap,
            Reason::DamagedWal,
            Reason::MinimalWal,
            Reason::UndecodedWal,
        ]))
        .or(behind)
        .or(before)
        .or(of(&[Reason::OtherEpoch]))
        .or(of(&[Reason::BackupWalMissing, Reason::BackupWalForeign]))
        .or(tried.first());
    let Some(main) = main else {
        refuse(plan, Reason::NoBackup, "there is no backup".into());
        return Ok(());
    };
    let detail = sentence(planner, chain, main);
    refuse(plan, main.refusal.reason, detail);
    if main.refusal.reason == Reason::MinimalWal && planner.inventory.major == 13 {
        plan.fatal_message = Some(MINIMAL_13.into());
    }
    if let Some(before) = before {
        plan.nearest_before = Some(last_moment(chain, before)?);
    }
    plan.nearest_after = behind.map(|t| consistent_moment(t.backup));
    warn_of_open_wal(planner, plan, chain, main)?;
    list_missing(planner, plan, chain, main);
    if main.refusal.reason == Reason::UnknownName
        && let Target::Name(name) = &planner.target.target
    {
        let known = all_points(chain, tried)?;
        let hint = near_names(name.as_str(), &known);
        plan.explanation.get_or_insert_default().push_str(&hint);
    }
    Ok(())
}

/// Warns that the target may lie in WAL that is not archived yet: it can be had while the server lives.
fn warn_of_open_wal(
    planner: &Planner<'_>,
    plan: &mut Plan,
    chain: &Chain<'_>,
    main: &Tried<'_>,
) -> Result<()> {
    let is_open = matches!(
        main.refusal.reason,
        Reason::AfterEnd | Reason::UnknownXid | Reason::UnknownName
    );
    if let Some(stretch) = main.refusal.stretch.as_ref().filter(|_| is_open)
        && planner.may_follow(main.backup, chain, stretch)?
    {
        plan.warnings.push(format!(
            "if {} lies in WAL that is not archived yet: while the server lives, select pg_switch_wal() on it, wait until that is archived, and plan again; pitr receive archives WAL as it is written{}",
            planner.target.target,
            match planner.target.target {
                Target::Time(_) => ". Where nothing was committed after it, no WAL shows that: add --allow-end",
                _ => "",
            }
        ));
    }
    Ok(())
}

/// The main reason as a sentence about the target.
fn sentence(planner: &Planner<'_>, chain: &Chain<'_>, main: &Tried<'_>) -> String {
    let target = &planner.target.target;
    let backup = main.backup;
    let end = || match &main.refusal.stretch {
        Some(stretch) => describe_end(chain, stretch),
        None => main.refusal.detail.clone(),
    };
    let reach = || main.refusal.stretch.as_ref().map_or(Lsn(0), |s| s.reach());
    match main.refusal.reason {
        Reason::BeforeBackup => format!(
            "{target} lies before the earliest moment that can be reached: backup {} is consistent at {} ({})",
            backup.id, backup.consistent_lsn, backup.stop_time
        ),
        Reason::Gap | Reason::DamagedWal | Reason::MinimalWal | Reason::UndecodedWal => format!(
            "{target} cannot be reached: from backup {} recovery gets to {}, then {}",
            backup.id,
            reach(),
            end()
        ),
        Reason::AfterEnd => match target {
            Target::Immediate => main.refusal.detail.clone(),
            _ => format!(
                "{target} lies beyond the archive: {} (with --allow-end that end is taken for it)",
                end()
            ),
        },
        Reason::InFuture => format!(
            "{target} lies in the future; {} (with --allow-end that end is taken for it)",
            end()
        ),
        Reason::DamagedBackup => format!(
            "backup {} is the only one that leads to {target}, and {}. Look at it again, or restore another one: pitr verify --backup {0}",
            backup.id, main.refusal.detail
        ),
        Reason::PartialBackup => format!(
            "only backup {} leads to {target}, and it is partial: {}. Name it, if that serves: --backup {0}",
            backup.id, main.refusal.detail
        ),
        Reason::UnknownXid => format!(
            "{target} does not end in the WAL that can be reached (subtransactions never count); {}",
            end()
        ),
        Reason::UnknownName => format!("{target} is not in the WAL that can be reached"),
        Reason::OtherTimeline => format!(
            "no backup lies on the way to timeline {}",
            chain.history().timeline().decimal()
        ),
        _ => format!("backup {}: {}", backup.id, main.refusal.detail),
    }
}

/// The last moment that is reached from a backup.
fn last_moment(chain: &Chain<'_>, tried: &Tried<'_>) -> Result<Moment> {
    let backup = tried.backup;
    let Some(stretch) = &tried.refusal.stretch else {
        return Ok(consistent_moment(backup));
    };
    let search = Search {
        chain,
        stretch: stretch.clone(),
        start_lsn: backup.start_lsn,
        consistent_lsn: backup.consistent_lsn,
    };
    let (commit, _) = search.last_transactions()?;
    Ok(match commit.filter(|c| c.end_lsn > backup.consistent_lsn) {
        Some(commit) => Moment {
            time: Some(commit.time),
            lsn: commit.lsn,
            xid: Some(commit.xid),
        },
        None => consistent_moment(backup),
    })
}

/// Names what is missing between a backup and the target, or the end.
fn list_missing(planner: &Planner<'_>, plan: &mut Plan, chain: &Chain<'_>, main: &Tried<'_>) {
    let Some(stretch) = &main.refusal.stretch else {
        return;
    };
    let size = chain.size();
    let last = match &planner.target.target {
        Target::Lsn(at) => Some(SegmentNumber::of(*at, size)),
        _ => None,
    };
    let StretchEnd::Missing {
        mut from,
        mut until,
    } = stretch.end
    else {
        if main.refusal.reason == Reason::BackupWalMissing && stretch.end == StretchEnd::EndOfWal {
            let from = stretch
                .final_segment()
                .map_or(SegmentNumber::of(main.backup.start_lsn, size), |s| s.next());
            let until = SegmentNumber::ending_at(main.backup.consistent_lsn, size).next();
            add_missing(plan, chain, from, until);
        }
        return;
    };
    // A time or a name may be anywhere behind the first hole; only for positions are all holes before it known.
    let all = matches!(planner.target.target, Target::Lsn(_) | Target::End);
    loop {
        add_missing(plan, chain, from, until);
        if !all {
            return;
        }
        let mut at = until;
        while chain.present_from(at) == Some(at) {
            at = at.next();
        }
        let next = chain.present_from(at);
        let Some(next) = next.filter(|_| last.is_none_or(|l| at <= l)) else {
            return;
        };
        (from, until) = (at, next);
    }
}

fn add_missing(plan: &mut Plan, chain: &Chain<'_>, from: SegmentNumber, until: SegmentNumber) {
    let room = MISSING_LISTED_MAX - plan.segments_missing.len().min(MISSING_LISTED_MAX);
    let (names, count) = chain.missing(from, until, room);
    plan.segments_missing.extend(names);
    plan.segments_missing_count += count;
}

/// The restore points that can be reached from any backup that was tried.
fn all_points(chain: &Chain<'_>, tried: &[Tried<'_>]) -> Result<Vec<NamedPoint>> {
    let mut seen: Vec<(SegmentNumber, SegmentNumber)> = Vec::new();
    let mut points = Vec::new();
    for stretch in tried.iter().filter_map(|t| t.refusal.stretch.as_ref()) {
        let (Some(first), Some(last)) = (stretch.first(), stretch.final_segment()) else {
            continue;
        };
        for number in (first.0..=last.0).map(SegmentNumber) {
            if seen.iter().any(|(a, b)| *a <= number && number <= *b) {
                continue;
            }
            points.extend(points_in(chain, stretch, number)?);
        }
        seen.push((first, last));
    }
    points.sort_by_key(|p| p.lsn);
    points.dedup();
    Ok(points)
}

/// The restore points of a segment, from its index where that records them, else from its body.
fn points_in(
    chain: &Chain<'_>,
    stretch: &Stretch,
    number: SegmentNumber,
) -> Result<Vec<NamedPoint>> {
    if !chain.facts(stretch, number)?.has(flag::RESTORE_POINTS) {
        return Ok(Vec::new());
    }
    let name = chain.name_in(stretch, number)?;
    if let Some(points) = chain.wal().restore_points(name)? {
        return Ok(points);
    }
    let mut points = Vec::new();
    chain.scan(stretch, number, &mut |entry| {
        if let crate::wal::facts::EntryKind::RestorePoint { time, name } = &entry.kind {
            points.push(NamedPoint {
                lsn: entry.start,
                time: *time,
                name: name.clone(),
            });
        }
    })?;
    Ok(points)
}

fn near_names(wanted: &str, known: &[NamedPoint]) -> String {
    let mut names: Vec<String> = known
        .iter()
        .map(|p| String::from_utf8_lossy(&p.name).into_owned())
        .collect();
    names.reverse();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|n| seen.insert(n.clone()));
    if names.is_empty() {
        return "; it holds no restore point at all".into();
    }
    let lower = wanted.to_lowercase();
    let mut near: Vec<&String> = names
        .iter()
        .filter(|n| {
            let distance = strsim::osa_distance(&n.to_lowercase(), &lower);
            distance <= wanted.chars().count().div_ceil(3)
        })
        .collect();
    near.sort_by_key(|n| strsim::osa_distance(&n.to_lowercase(), &lower));
    let quoted = |names: &[&String]| {
        let quoted: Vec<String> = names
            .iter()
            .take(NAMES_MAX)
            .map(|n| format!("\"{n}\""))
            .collect();
        quoted.join(", ")
    };
    if near.is_empty() {
        let newest: Vec<&String> = names.iter().collect();
        format!("; the newest restore points are {}", quoted(&newest))
    } else {
        format!("; did you mean {}?", quoted(&near))
    }
}

/// Says where else a restore point of this name lies: recovery stops at the first behind the backup.
pub(super) fn warn_duplicates(
    planner: &Planner<'_>,
    plan: &mut Plan,
    backup: &Backup,
    chain: &Chain<'_>,
    name: &str,
) -> Result<()> {
    let Some(chosen) = plan.stop.as_ref().map(|s| s.lsn) else {
        return Ok(());
    };
    let size = chain.size();
    let mut others = Vec::new();
    let usable = planner
        .inventory
        .backups
        .iter()
        .filter(|b| super::base::lies_on(chain.history(), b));
    let oldest = usable.clone().map(|b| b.start_lsn).min();
    let from = oldest.unwrap_or(backup.start_lsn);
    let stretch = chain.stretch_from(SegmentNumber::of(from, size))?;
    let own = chain.stretch_from(SegmentNumber::of(backup.start_lsn, size))?;
    for stretch in [&stretch, &own] {
        let (Some(first), Some(last)) = (stretch.first(), stretch.final_segment()) else {
            continue;
        };
        for number in (first.0..=last.0).map(SegmentNumber) {
            for point in points_in(chain, stretch, number)? {
                if point.name == name.as_bytes() && point.lsn != chosen && !others.contains(&point)
                {
                    others.push(point);
                }
            }
        }
    }
    for other in others {
        let base = usable
            .clone()
            .rfind(|b| b.consistent_lsn <= other.lsn)
            .filter(|b| b.start_lsn < other.lsn);
        let way = match base {
            Some(base) if base.id != backup.id && other.lsn < chosen => {
                format!("it is reached with --backup {}", base.id)
            }
            _ => format!("it is reached with --target-lsn {}", other.lsn),
        };
        plan.warnings.push(format!(
            "another restore point \"{name}\" lies at {} ({}): PostgreSQL stops at the first behind the backup; {way}",
            other.lsn, other.time
        ));
    }
    Ok(())
}
