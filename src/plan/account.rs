//! The account of a choice: what a plan says of the backup it takes, what recovery from it needs and does, what there is to warn of,
//! and why other backups are not taken.

use std::collections::BTreeMap;

use super::base::{Planner, Reached, Tried, lies_on};
use super::chain::{Chain, StretchEnd};
use super::recovery::{
    ChosenBackup, Moment, NotChosen, Outcome, Plan, Reason, SegmentRun, SegmentsNeeded,
    TimelinePart,
};
use super::stop::CLOCK_SLACK;
use super::target::{Inclusive, Target};
use super::unreachable;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::parameters::Parameters;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::repo::id::BackupId;
use crate::wal::inventory::Backup;

/// A plan that says nothing yet but what is asked.
pub(super) fn blank(planner: &Planner<'_>) -> Plan {
    Plan {
        repository: planner.inventory.repository.clone(),
        cluster: planner.inventory.cluster.clone(),
        system_identifier: planner.inventory.system_identifier,
        target: planner.target.clone(),
        segment_size_bytes: planner.inventory.segment_size.bytes(),
        warnings: planner
            .inventory
            .unreadable
            .iter()
            .map(|u| format!("backup {} cannot be read: {}", u.id, u.problem))
            .collect(),
        ..Plan::default()
    }
}

/// Returns the recovery settings for PostgreSQL.
pub(super) fn settings(
    planner: &Planner<'_>,
    target: Target,
    inclusive: Inclusive,
    chain: &Chain<'_>,
    parameters: Option<Parameters>,
) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: String| settings.insert(name.to_owned(), value);
    set(
        "recovery_target_timeline",
        chain.history().timeline().decimal().to_string(),
    );
    set(
        "recovery_target_action",
        planner.options.action.as_str().to_owned(),
    );
    if target.has_sides() {
        let inclusive = if inclusive == Inclusive::Yes {
            "on"
        } else {
            "off"
        };
        set("recovery_target_inclusive", inclusive.to_owned());
    }
    if let Some((name, value)) = target.setting() {
        set(name, value);
    }
    set("restore_command", planner.options.restore_command.clone());
    if let Some(command) = &planner.options.recovery_end_command {
        set("recovery_end_command", command.clone());
    }
    for (name, value) in parameters.iter().flat_map(Parameters::iter) {
        set(name, value.to_string());
    }
    settings
}

/// Says what the choice of a backup means.
///
/// # Errors
/// Errors of the WAL.
pub(super) fn fill(
    planner: &Planner<'_>,
    plan: &mut Plan,
    backup: &Backup,
    chain: &Chain<'_>,
    reached: Reached,
    tried: &[Tried<'_>],
) -> Result<()> {
    let size = planner.inventory.segment_size;
    let beyond = match planner.target.target {
        Target::Time(at) => {
            planner.backup_beyond(chain, (&reached.stretch, reached.replay.last_end), at)
        }
        _ => None,
    };
    let beyond = beyond.map(|b| b.id.clone());
    let stop = reached.stop;
    let first = SegmentNumber::of(backup.start_lsn, size);
    let last = SegmentNumber::ending_at(stop.end_lsn, size);
    let mut needed = Vec::new();
    // The ends of every piece are checked again: the cache may have given the earlier answers.
    for piece in &reached.stretch.pieces {
        let (from, to) = (piece.first.max(first), piece.last.min(last));
        if from > to {
            continue;
        }
        let run = SegmentRun {
            first: chain.name(piece.timeline, from)?,
            last: chain.name(piece.timeline, to)?,
        };
        planner.wal.confirm(run.first)?;
        planner.wal.confirm(run.last)?;
        needed.push(run);
    }
    plan.segments_needed = SegmentsNeeded {
        count: last.0.saturating_sub(first.0) + 1,
        first: Some(chain.name_in(&reached.stretch, first)?),
        last: Some(chain.name_in(&reached.stretch, last)?),
        parts: needed,
    };
    plan.reachable = true;
    plan.outcome = reached.outcome;
    plan.target_timeline = Some(chain.history().timeline());
    plan.timelines = parts(chain, backup.start_lsn, stop.recovery_end_lsn);
    plan.last_commit = reached.replay.last_commit;
    plan.last_transaction = reached.replay.last_end;
    plan.first_excluded = reached.replay.excluded;
    plan.first_excluded_commit = reached.replay.excluded_commit;
    plan.bytes_to_copy = backup.size_bytes;
    plan.bytes_to_replay = stop.recovery_end_lsn.0.saturating_sub(backup.start_lsn.0);
    plan.recovery_settings = reached.settings;
    plan.backup = Some(chosen(backup));
    if reached.stretch.end != StretchEnd::EndOfWal {
        plan.read_no_farther();
    }
    if let Some(late) = reached.replay.late {
        plan.warnings.push(format!(
            "the clock was set back: transaction {} ended at {}, before the target time, but its record at {} lies behind the point at which PostgreSQL stops and is not replayed",
            late.xid, late.time, late.lsn
        ));
    }
    plan.stop = Some(stop);
    if plan.outcome == Outcome::EndOfWal {
        warn_of_end(planner, plan, beyond.as_ref());
    }
    warn_about(planner, plan, backup, chain, tried)
}

/// Says that a time or a position is taken for the end of the WAL, and why.
fn warn_of_end(planner: &Planner<'_>, plan: &mut Plan, beyond: Option<&BackupId>) {
    let target = &planner.target.target;
    let last = match plan.last_transaction {
        Some(end) => format!("the last transaction archived ended at {}", end.time),
        None => "no transaction is archived behind the backup".to_owned(),
    };
    let warning = match (target, beyond) {
        (Target::Time(_), Some(id)) => format!(
            "no transaction ended after the target time, {last}: everything that is archived is replayed. Backup {id} was complete later, so the archived WAL goes beyond the target"
        ),
        (Target::Time(_) | Target::Lsn(_), _) => format!(
            "{target} lies beyond the archived WAL, {last}: its end is taken for the target (--allow-end). What was committed later and is not archived yet would be missing: while the server lives, select pg_switch_wal() on it, wait until that is archived, and plan again"
        ),
        _ => return,
    };
    plan.warnings.push(warning);
}

fn warn_about(
    planner: &Planner<'_>,
    plan: &mut Plan,
    backup: &Backup,
    chain: &Chain<'_>,
    tried: &[Tried<'_>],
) -> Result<()> {
    if let Some(damage) = backup.damage.as_ref().filter(|_| backup.is_partial) {
        plan.warnings
            .push(format!("backup {} is partial: {damage}", backup.id));
    } else if let Some(damage) = &backup.damage {
        plan.warnings.push(format!(
            "backup {} is damaged ({damage}): no undamaged one reaches the target{}",
            backup.id,
            match backup.damaged_copies {
                0 => "",
                _ => ". Each object is taken from the repository that has it whole; where none has, the restore ends with exit status 4",
            }
        ));
    }
    if let Some(mark) = backup.expire_mark {
        plan.warnings.push(format!(
            "backup {} is marked for deletion, not before {mark}",
            backup.id
        ));
    }
    match &planner.target.target {
        Target::Time(at) => warn_earlier(planner, plan, backup, chain, *at)?,
        Target::Name(name) => {
            unreachable::warn_duplicates(planner, plan, backup, chain, name.as_str())?;
        }
        _ => {}
    }
    // Sort of a promise to the reader: a worse backup is never taken without saying which better one failed.
    for t in tried.iter().filter(|t| {
        t.refusal.reason == Reason::BackupWalMissing && t.backup.stop_lsn > backup.stop_lsn
    }) {
        plan.warnings.push(format!(
            "backup {} is newer, but cannot be used: {}",
            t.backup.id, t.refusal.detail
        ));
    }
    Ok(())
}

/// Warns when the target time was passed once before the backup, and the clock was set back since.
fn warn_earlier(
    planner: &Planner<'_>,
    plan: &mut Plan,
    backup: &Backup,
    chain: &Chain<'_>,
    at: TimestampTz,
) -> Result<()> {
    let size = planner.inventory.segment_size;
    let Some(oldest) = planner
        .inventory
        .backups
        .iter()
        .filter(|b| b.stop_lsn < backup.start_lsn && b.stop_time <= at)
        .find(|b| lies_on(chain.history(), b))
    else {
        return Ok(());
    };
    let stretch = chain.stretch_from(SegmentNumber::of(oldest.start_lsn, size))?;
    let Some(last) = stretch.final_segment() else {
        return Ok(());
    };
    let end = SegmentNumber::of(backup.start_lsn, size).0.min(last.0 + 1);
    for number in (SegmentNumber::of(oldest.start_lsn, size).0..end).map(SegmentNumber) {
        let facts = chain.facts(&stretch, number)?;
        if facts.ends > 0 && facts.times.1 > at.saturating_add(CLOCK_SLACK) {
            plan.warnings.push(format!(
                "the clock was set back: transactions in segment {}, before backup {}, carry times behind the target already; the earlier position with this time is reached with --backup {}",
                chain.name_in(&stretch, number)?,
                backup.id,
                oldest.id
            ));
            break;
        }
    }
    Ok(())
}

/// Says why backups that were not even tried were not.
pub(super) fn explain_untried(planner: &Planner<'_>, plan: &mut Plan, order: &[&Backup]) {
    let Some(chosen) = &plan.backup else {
        return;
    };
    let id = chosen.id.clone();
    let chosen_stop = chosen.stop_lsn;
    let done: Vec<_> = plan
        .backups_not_chosen
        .iter()
        .map(|n| n.id.clone())
        .collect();
    for backup in &planner.inventory.backups {
        if backup.id == id || done.contains(&backup.id) {
            continue;
        }
        let (reason, detail) = if !order.iter().any(|b| b.id == backup.id) {
            (Reason::OtherBetter, "another one was asked for".to_owned())
        } else if let Some(damage) = &backup.damage {
            let reason = match backup.is_partial {
                true => Reason::PartialBackup,
                false => Reason::DamagedBackup,
            };
            (reason, damage.clone())
        } else if let Some(mark) = backup.expire_mark {
            let detail = format!("it is marked for deletion, not before {mark}");
            (Reason::MarkedForDeletion, detail)
        } else if backup.stop_lsn > chosen_stop {
            let detail = format!("it was complete only at {}", backup.stop_time);
            (Reason::BeforeBackup, detail)
        } else {
            (
                Reason::OtherBetter,
                "it is older: more WAL would have to be replayed".to_owned(),
            )
        };
        plan.backups_not_chosen.push(NotChosen {
            id: backup.id.clone(),
            reason,
            detail,
        });
    }
}

fn parts(chain: &Chain<'_>, from: Lsn, to: Lsn) -> Vec<TimelinePart> {
    let mut parts: Vec<TimelinePart> = chain
        .path()
        .intervals()
        .iter()
        .filter(|i| i.range.end > from && i.range.start < to)
        .map(|i| TimelinePart {
            timeline: i.timeline,
            from_lsn: i.range.start.max(from),
            to_lsn: Some(i.range.end.min(to)),
        })
        .collect();
    if parts.is_empty() {
        parts.push(TimelinePart {
            timeline: chain.history().holder(from),
            from_lsn: from,
            to_lsn: Some(to),
        });
    }
    parts
}

fn chosen(backup: &Backup) -> ChosenBackup {
    ChosenBackup {
        id: backup.id.clone(),
        kind: backup.kind,
        start_lsn: backup.start_lsn,
        stop_lsn: backup.stop_lsn,
        consistent_lsn: backup.consistent_lsn,
        start_time: backup.start_time,
        stop_time: backup.stop_time,
        timeline: backup.timeline,
        major: backup.major,
        damage: backup.damage.clone(),
        tablespaces: backup.tablespaces.clone(),
    }
}

/// The moment at which a backup is consistent.
pub(super) fn consistent_moment(backup: &Backup) -> Moment {
    Moment {
        time: Some(backup.stop_time),
        lsn: backup.consistent_lsn,
        xid: None,
    }
}
