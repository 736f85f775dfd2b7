//! `pitr expire --explain`: why one backup, one segment or one place in the log of Redis stays, or goes.

use serde_json::{Value, json};

use super::Context;
use super::expire::{Explained, is_set, shown_backup};
use crate::err;
use crate::error::Result;
use crate::operate::expire::Done;
use crate::operate::{human, of};
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::plan::retention::{Deletion, Fate, Judged};
use crate::repo::id::BackupId;

/// The answer about one scope in one repository: lines for people, and JSON.
type Answer = (Vec<String>, Value);

/// Prints why the backup or the segment stays or goes, repository by repository.
///
/// # Errors
/// `NotFound` for a backup that no repository has.
pub fn report(cx: &Context, explained: &Explained, done: &[Done]) -> Result<()> {
    let answer = |one: &Done| match explained {
        Explained::Backup(id) => backup(one, id),
        Explained::Segment(name) => one.of.cluster().map(|_| segment(one, *name)),
        Explained::Log(replid, position) => log(one, replid, *position),
        Explained::Mark(name) => mark(one, name),
        Explained::Runbook(name) => runbook(one, name),
    };
    let answered: Vec<(&Done, Answer)> = done
        .iter()
        .filter_map(|one| Some((one, answer(one)?)))
        .collect();
    match explained {
        Explained::Backup(id) if answered.is_empty() => {
            return Err(err!(NotFound, "no repository has backup \"{id}\"")
                .hint("pitr info shows the backups."));
        }
        Explained::Log(replid, _) if answered.is_empty() => {
            return Err(err!(NotFound, "no repository has history {replid}")
                .hint("pitr redis info NAME shows the histories."));
        }
        _ => {}
    }
    if cx.is_json() {
        let shown = |(one, (_, value)): &(&Done, Answer)| {
            let mut value = value.clone();
            value["repository"] = one.repository.clone().into();
            one.of.named(value)
        };
        return cx.json(&of::split(&answered, |(one, _)| &one.of, shown));
    }
    for (one, (lines, _)) in &answered {
        let title = format!("{} in repository {}", one.of.title(), one.repository);
        cx.line(&title)?;
        cx.lines(lines)?;
        let held = one.plan.withheld.iter().chain(&one.plan.burst);
        held.for_each(|why| cx.warn(why));
    }
    Ok(())
}

fn backup(done: &Done, id: &BackupId) -> Option<Answer> {
    let judged = done.plan.backups.iter().find(|b| b.id == *id)?;
    let mut lines = vec![format!("backup {id}: {}", judged.reason)];
    let damage = judged.damage.iter();
    lines.extend(damage.map(|damage| format!("damaged: {damage}")));
    lines.push(fate(judged));
    if done.of.cluster().is_some() {
        lines.push(match judged.is_bounded {
            true => "it keeps the WAL to its own end, and none behind that".to_owned(),
            false => "it keeps all WAL behind it".to_owned(),
        });
    } else if !done.plan.log.is_empty() {
        lines.push(match judged.is_bounded {
            true => "it keeps no log: it is restorable to its own end".to_owned(),
            false => "it keeps all log behind it".to_owned(),
        });
    }
    Some((lines, json!({ "backup": shown_backup(judged) })))
}

/// Returns the fate of a backup, and when.
fn fate(judged: &Judged) -> String {
    match (judged.fate, judged.kept_until) {
        (Fate::Keep, Some(until)) => {
            format!(
                "its rules keep it until {} at the least",
                human::time(until)
            )
        }
        (Fate::Keep, None) => "it stays; until when hangs on what comes".to_owned(),
        (Fate::Mark, _) => {
            "it is marked by the next run, and deleted after the grace period".to_owned()
        }
        (Fate::Waiting(due), _) => format!("it is deleted after {}", human::time(due)),
        (Fate::Delete, _) => "it is deleted by the next run".to_owned(),
    }
}

fn segment(done: &Done, name: SegmentName) -> Answer {
    let plan = &done.plan;
    let number = name
        .number(done.segment_size)
        .unwrap_or(SegmentNumber(u64::MAX));
    let goes = plan.deletions.iter().any(|deletion| match deletion {
        Deletion::Segments(timeline, first, last) => {
            *timeline == name.timeline && (*first..=*last).contains(&number)
        }
        _ => false,
    });
    let needers = plan.needed.needers(name.timeline, number);
    let is_needed = plan.needed.contains(name.timeline, number);
    let line = match (goes, is_needed) {
        (true, _) => "nothing needs it: the next run deletes it",
        (false, true) => "it stays, if it is there",
        (false, false) => "nothing needs it; it is not there, or nothing is deleted now",
    };
    let mut lines = vec![format!("segment {name}: {line}")];
    lines.extend(needers.iter().map(|needer| match needer.is_bounded {
        true => format!("backup {} needs it to be consistent", needer.id),
        false => format!("what can be reached from backup {} needs it", needer.id),
    }));
    let is_short = plan.short.iter().any(|(timeline, first, last)| {
        *timeline == name.timeline && (*first..=*last).contains(&number)
    });
    if is_short {
        lines.push("min_copies: another repository needs it and has not got it yet".to_owned());
    } else if is_needed && needers.is_empty() {
        lines.push(
            "a backup that is being taken or copied, or whose root is lost, needs it".to_owned(),
        );
    }
    let needed_by = needers.iter();
    let needed_by = needed_by.map(|n| json!({ "backup": n.id, "to_its_end_only": n.is_bounded }));
    let needed_by: Vec<Value> = needed_by.collect();
    let value =
        json!({ "segment": name, "needed": is_needed, "goes": goes, "needed_by": needed_by });
    (lines, value)
}

fn log(done: &Done, replid: &str, position: u64) -> Option<Answer> {
    let history = done.plan.log.iter().find(|h| h.replid == replid)?;
    let needers = history.needed.iter().filter(|(from, _)| *from <= position);
    let needers: Vec<_> = needers.map(|(_, id)| id).collect();
    let goes = history.goes(position);
    let line = match (goes, needers.is_empty()) {
        (true, _) => "nothing needs it: the next run deletes it",
        (false, false) => "it stays, if it is there",
        (false, true) if history.needed.is_empty() => {
            "no backup leads to this history: it goes when nothing was stored in it for a day"
        }
        (false, true) => "no backup needs it; it stays with the segment in which it lies",
    };
    let mut lines = vec![format!("position {position} of history {replid}: {line}")];
    let needed = needers.iter();
    lines.extend(needed.map(|id| format!("what can be reached from backup {id} needs it")));
    let value = json!({ "replid": replid, "position": position, "needed": !needers.is_empty(), "goes": goes, "needed_by": needers });
    Some((lines, value))
}

fn runbook(done: &Done, name: &str) -> Option<Answer> {
    is_set(done).then_some(())?;
    let goes = done.plan.runbooks.iter().any(|one| one == name);
    let line = match goes {
        true => "the next run deletes it: no mark names it",
        false => "it stays, if it is there: a mark names it, or it was stored within a day",
    };
    let value = json!({ "runbook": name, "goes": goes });
    Some((vec![format!("runbook {name}: {line}")], value))
}

fn mark(done: &Done, name: &str) -> Option<Answer> {
    is_set(done).then_some(())?;
    let spent = done.plan.spent.iter().find(|spent| spent.mark == name);
    let line = spent.map_or_else(
        || "it stays, if it is there".to_owned(),
        |spent| format!("the next run deletes it: {}", spent.why),
    );
    let why = spent.map(|spent| &spent.why);
    let value = json!({ "mark": name, "goes": spent.is_some(), "why": why });
    Some((vec![format!("mark {name}: {line}")], value))
}
