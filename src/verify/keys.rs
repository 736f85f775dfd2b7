//! Objects that lie where nothing should: keys that the format does not know, parts that no backup names, names that
//! are no keys.

use std::collections::BTreeMap;

use super::Work;
use super::check::Check;
use super::log::{settle, small};
use crate::error::Result;
use crate::pg::segment::{SegmentName, SegmentNumber, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::plan::retention::LEFTOVER_AGE;
use crate::repo::audit;
use crate::repo::catalog::{Catalog, Manifest, Needs, Subject, numbers, part_number};
use crate::repo::erasure;
use crate::repo::event;
use crate::repo::id::{BackupId, PartKind, PartName};
use crate::repo::layout::{self, Home};
use crate::repo::lives::is_copy;
use crate::repo::portion;
use crate::repo::run_claim;
use crate::repo::runs::Runs;
use crate::repo::scope;
use crate::repo::{drilled, epochs};
use crate::seal::is_recipient_name;
use crate::wal::survey::Survey;

/// Looks through a cluster, and through what belongs to the repository as a whole.
pub(super) fn check(work: &Work<'_>, survey: &Survey) -> Result<()> {
    let root = [
        "pitr.json",
        "clusters",
        "keys",
        "aux",
        audit::ROOT,
        run_claim::ROOT,
    ];
    names(work, "", |name, _| root.contains(&name))?;
    let cluster = [
        "cluster.json",
        "wal",
        "conflicts",
        "backups",
        "layers",
        "packs",
        "events",
        "erasures",
    ];
    names(work, &work.layout.prefix(), |name, _| {
        cluster.contains(&name)
    })?;
    for epoch in epochs::shown(work.store)? {
        names(work, &scope::recipients(epoch), |name, is_prefix| {
            !is_prefix && is_recipient_name(name)
        })?;
    }
    wal(work)?;
    names(work, &work.layout.conflicts(), |name, is_prefix| {
        let name = name.rsplit_once('-').map(|(name, _)| name);
        !is_prefix && name.is_some_and(|n| n.parse::<WalFileName>().is_ok())
    })?;
    backups(work, &survey.catalog)?;
    names(work, &work.layout.events(), |name, is_prefix| {
        let wal = name
            .strip_prefix("wal-")
            .is_some_and(|n| n.parse::<SegmentName>().is_ok() || n.parse::<TimelineId>().is_ok());
        let own = [event::CLUSTER, portion::SUBJECT, drilled::SUBJECT].contains(&name);
        is_prefix && (own || wal || name.parse::<BackupId>().is_ok())
    })?;
    erasures(work)?;
    unnamed(work, &survey.catalog);
    irregular(work)
}

/// Reads the erasures: one that is damaged cannot be repeated.
fn erasures(work: &Work<'_>) -> Result<()> {
    names(work, &work.layout.erasures(), |name, is_prefix| {
        !is_prefix && erasure::is_name(name)
    })?;
    for listed in erasure::list(work.store, &work.layout)? {
        let key = work.layout.erasure(&listed.name)?;
        let read = small(work, &key, &|bytes| erasure::decode(&key, bytes).map(drop));
        settle(work, &key, read)?;
    }
    Ok(())
}

/// Looks through an aux scope.
pub(super) fn check_scope<R: Needs>(work: &Check<'_>, catalog: &Catalog<R>) -> Result<()> {
    // Names of later versions (format, section 17) are passed over.
    let known = [
        "scope.json",
        "backups",
        "layers",
        "packs",
        "events",
        "conflicts",
        "log",
        "runbooks",
        "drills",
        "objectives",
        "erasures",
    ];
    names(work, &work.scope.prefix(), |name, _| known.contains(&name))?;
    backups(work, catalog)?;
    unnamed(work, catalog);
    irregular(work)
}

/// Looks through the objects of backups.
fn backups<R>(work: &Check<'_>, catalog: &Catalog<R>) -> Result<()> {
    let is_id = |name: &str, is_prefix: bool| is_prefix && name.parse::<BackupId>().is_ok();
    names(work, &work.scope.backups(), is_id)?;
    for kind in [PartKind::Layer, PartKind::Pack] {
        names(work, &work.scope.parts(kind, None), is_id)?;
    }
    for id in catalog.ids.keys() {
        backup(work, id)?;
    }
    Ok(())
}

/// Warns of every name below `prefix` that is not expected there.
fn names(work: &Check<'_>, prefix: &str, expected: impl Fn(&str, bool) -> bool) -> Result<()> {
    work.host.check_stop()?;
    for listed in work.store.list(prefix)? {
        let at = match prefix {
            "" => listed.name.clone(),
            _ => format!("{prefix}/{}", listed.name),
        };
        let base = scope::healed_base(&at).filter(|_| !listed.is_prefix);
        let base = base.and_then(|base| base.rsplit('/').next());
        if !expected(base.unwrap_or(&listed.name), listed.is_prefix) {
            work.warn(format!("\"{at}\" is no object of this format"));
        }
    }
    Ok(())
}

fn wal(work: &Work<'_>) -> Result<()> {
    let is_timeline = |name: &str, is_prefix: bool| is_prefix && name.parse::<TimelineId>().is_ok();
    names(work, &work.layout.wal(), is_timeline)?;
    for listed in work.store.list(&work.layout.wal())? {
        let Ok(timeline) = listed.name.parse::<TimelineId>() else {
            continue;
        };
        let prefix = work.layout.timeline(timeline);
        home(work, timeline, &work.layout.home(timeline, None))?;
        names(work, &format!("{prefix}/labels"), |name, is_prefix| {
            let is_label = matches!(
                name.parse::<WalFileName>(),
                Ok(WalFileName::BackupHistory { segment, .. }) if segment.timeline == timeline
            );
            !is_prefix && is_label
        })?;
        let lives = work.layout.lives_of(timeline);
        names(work, &lives, |name, p| p && is_copy(name))?;
        for life in work.store.list(&lives)? {
            if is_copy(&life.name) {
                home(
                    work,
                    timeline,
                    &work.layout.home(timeline, Some(&life.name)),
                )?;
            }
        }
    }
    Ok(())
}

/// Checks the names in one home of a timeline's segments.
fn home(work: &Work<'_>, timeline: TimelineId, home: &Home) -> Result<()> {
    let is_first = *home == work.layout.home(timeline, None);
    let log = |name: &str| match name.len() {
        8 => u32::from_str_radix(name, 16).ok(),
        _ => None,
    };
    names(work, home.prefix(), |name, is_prefix| match is_prefix {
        true if is_first && ["labels", "lives"].contains(&name) => true,
        true => ["partial", "open"].contains(&name) || log(name).is_some(),
        false => is_first && name == "history",
    })?;
    let own = |name: &str| {
        name.parse::<SegmentName>()
            .is_ok_and(|s| s.timeline == timeline && s.number(work.size).is_ok())
    };
    names(work, &home.partials(), |n, p| !p && own(n))?;
    let open = home.open_segments();
    names(work, &open, |n, p| p && own(n))?;
    for listed in work.store.list(&open)? {
        if let Some(segment) = listed.name.parse().ok().filter(|_| own(&listed.name)) {
            increments(work, &format!("{open}/{segment}"), segment)?;
        }
    }
    for inner in work.store.list(home.prefix())? {
        if let Some(number) = log(&inner.name).filter(|_| inner.is_prefix) {
            names(work, &home.log(number), |name, p| {
                !p && own(name) && name.parse::<SegmentName>().is_ok_and(|s| s.log == number)
            })?;
        }
    }
    Ok(())
}

fn increments(work: &Work<'_>, prefix: &str, segment: SegmentName) -> Result<()> {
    let whole = segment.number(work.size)?.range(work.size);
    names(work, prefix, |name, p| {
        let range = layout::increment_range(name);
        !p && range.is_some_and(|r| whole.holds(r))
    })
}

fn backup(work: &Check<'_>, id: &BackupId) -> Result<()> {
    let prefix = format!("{}/{id}", work.scope.backups());
    names(work, &prefix, |name, p| {
        !p && ["manifest", "server-manifest", "relations"].contains(&name)
    })?;
    for kind in [PartKind::Layer, PartKind::Pack] {
        names(work, &work.scope.parts(kind, Some(id)), |name, p| {
            !p && part_number(name).is_some()
        })?;
    }
    Ok(())
}

/// Layers and packs that no backup names. Those of an id without a backup may belong to one that runs.
fn unnamed<R: Needs>(work: &Check<'_>, catalog: &Catalog<R>) {
    let is_unreadable = |s: &Subject<R>| matches!(s.manifest, Manifest::Unreadable(_));
    if catalog.ids.values().any(is_unreadable) {
        // The parts that an unreadable root names are not known.
        return;
    }
    // Joined as runs: thousands of backups may name the same parts.
    let mut layers: BTreeMap<&BackupId, Runs> = BTreeMap::new();
    let mut packs: BTreeMap<&BackupId, Runs> = BTreeMap::new();
    for (_, _, root) in catalog.committed() {
        for (parts, into) in [(root.needs().0, &mut layers), (root.needs().1, &mut packs)] {
            for (id, runs) in parts {
                let named = into.entry(id).or_default();
                *named = std::mem::take(named).union(runs.clone());
            }
        }
    }
    let none = Runs::default();
    let now = work.host.now();
    for (id, subject) in &catalog.ids {
        let is_old = subject
            .begin()
            .is_none_or(|b| b.since(now).saturating_add(LEFTOVER_AGE) <= now);
        let is_claimed = !event::standing(&subject.events, "claim", "release").is_empty();
        if subject.is_absent() && (!is_old || is_claimed) {
            continue;
        }
        for (kind, have, named) in [
            (PartKind::Layer, &subject.layers, &layers),
            (PartKind::Pack, &subject.packs, &packs),
        ] {
            let known = named.get(id).unwrap_or(&none);
            for number in numbers(have) {
                if known.contains(SegmentNumber(number.into())) {
                    continue;
                }
                let part = PartName {
                    id: id.clone(),
                    number,
                };
                let key = work.scope.part(kind, &part);
                work.warn(format!(
                    "\"{key}\" is named by no backup; pitr expire removes it"
                ));
            }
        }
    }
}

/// Names outside the grammar of keys.
fn irregular(work: &Check<'_>) -> Result<()> {
    let now = work.host.now();
    for one in work.store.irregular()? {
        if one.is_unfinished && one.modified.saturating_add(LEFTOVER_AGE) > now {
            continue;
        }
        work.warn(match one.is_unfinished {
            true => format!(
                "\"{}\" was left by a write that did not finish; pitr expire removes it",
                one.path
            ),
            false => format!("\"{}\" is no object of this format", one.path),
        });
    }
    Ok(())
}
