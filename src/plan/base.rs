//! Chooses the backup from which a target is reached.
//!
//! Backups are tried in the order in which one would want them; the first from which PostgreSQL stops where it should is taken.
//! Undamaged ones come before those marked for deletion, these before damaged ones; among equals the newest comes first, for a
//! time target the newest that was complete before it. Every backup that is not taken gets a reason.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::account;
use super::chain::{Chain, Stretch, StretchEnd};
use super::cluster::{self, Cluster, Side, Tree};
use super::elsewhere;
use super::proof::with_proof;
use super::recovery::{NotChosen, Options, Outcome, Plan, Reason, Stop, TransactionEnd};
use super::search::Search;
use super::stop::{Replay, Rule};
use super::target::{Inclusive, RecoveryTarget, Target, TargetTimeline};
use super::unreachable;
use crate::err;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::parameters::Parameters;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::pg::version::Major;
use crate::repo::id::closest;
use crate::repo::wal_proof::{WalProof, foreign};
use crate::wal::facts::{EntryKind, Wal};
use crate::wal::inventory::{Backup, HistoryFile, Inventory};

/// Computes what recovery to `target` does.
///
/// # Errors
/// `NotFound` for a backup that does not exist; what [`Wal`] says, apart from damage. A target that cannot be reached is no error: the
/// plan says so.
pub fn plan(
    inventory: &Inventory,
    wal: &dyn Wal,
    target: &RecoveryTarget,
    options: &Options,
    now: TimestampTz,
) -> Result<Plan> {
    with_proof(wal, |wal| {
        let cluster = match &options.cluster {
            Some(cluster) => cluster.clone(),
            None => cluster::decide_by(&[Side { inventory, wal }])?,
        };
        let planner = Planner {
            inventory,
            wal,
            target,
            options,
            now,
            cluster: &cluster,
        };
        let mut plan = planner.plan()?;
        if target.timeline == TargetTimeline::Latest {
            elsewhere::name_others(&planner, &mut plan)?;
            warn_beside(&cluster, &mut plan);
        }
        Ok(plan)
    })
}

/// The largest parameters that changes in the archived WAL ask of a recovery which begins with a backup and follows a timeline, as far as that
/// WAL leads without a hole; none where nothing was changed.
///
/// # Errors
/// `Damaged` when the timeline's history cannot be read; what [`Wal`] says, apart from damage.
pub fn parameters_behind(
    inventory: &Inventory,
    wal: &dyn Wal,
    backup: &Backup,
    timeline: TimelineId,
) -> Result<Option<Parameters>> {
    with_proof(wal, |wal| {
        let chain = Chain::new(inventory, wal, inventory.history(timeline)?);
        let first = SegmentNumber::of(backup.start_lsn, inventory.segment_size);
        let stretch = chain.stretch_from(first)?;
        let reach = stretch.reach();
        let search = Search {
            chain: &chain,
            stretch,
            start_lsn: backup.start_lsn,
            consistent_lsn: backup.consistent_lsn,
        };
        search.parameters(reach)
    })
}

/// How a search ended for one backup.
pub(super) enum Verdict {
    /// Recovery ends as asked.
    Reached(Box<Reached>),
    /// It does not.
    Refused(Refusal),
}

/// Recovery that ends as asked.
pub(super) struct Reached {
    pub stop: Stop,
    pub outcome: Outcome,
    /// Recovery settings for PostgreSQL.
    pub settings: BTreeMap<String, String>,
    pub replay: ReplayFacts,
    pub stretch: Rc<Stretch>,
}

/// The results of a replay that are kept.
pub(super) struct ReplayFacts {
    pub last_commit: Option<TransactionEnd>,
    pub last_end: Option<TransactionEnd>,
    pub excluded: Option<TransactionEnd>,
    pub excluded_commit: Option<TransactionEnd>,
    pub late: Option<TransactionEnd>,
}

impl From<&Replay<'_>> for ReplayFacts {
    fn from(replay: &Replay<'_>) -> Self {
        ReplayFacts {
            last_commit: replay.last_commit,
            last_end: replay.last_end,
            excluded: replay.excluded,
            excluded_commit: replay.excluded_commit,
            late: replay.late,
        }
    }
}

/// Why recovery from a backup does not end as asked.
pub(super) struct Refusal {
    /// Why.
    pub reason: Reason,
    /// In words.
    pub detail: String,
    /// The WAL from the backup on, where the backup itself can be restored.
    pub stretch: Option<Rc<Stretch>>,
}

/// A backup that was tried.
pub(super) struct Tried<'a> {
    pub backup: &'a Backup,
    /// Why it was refused.
    pub refusal: Refusal,
}

/// The inputs of a plan.
pub(super) struct Planner<'a> {
    /// Content of the repository.
    pub inventory: &'a Inventory,
    /// Errors of the WAL.
    pub wal: &'a dyn Wal,
    /// Requested target.
    pub target: &'a RecoveryTarget,
    /// Choices of the operator besides the target.
    pub options: &'a Options,
    /// The clock.
    pub now: TimestampTz,
    /// Which timeline is the cluster.
    pub cluster: &'a Cluster,
}

/// Why a backup is not taken although it leads to the target.
fn unfit(backup: &Backup, wanted: Option<&Backup>) -> Option<Reason> {
    match (backup.damaged_copies, backup.is_partial, wanted) {
        // No other repository has a copy that may have whole what is damaged in this one.
        (1, ..) => Some(Reason::DamagedBackup),
        (_, true, None) => Some(Reason::PartialBackup),
        _ => None,
    }
}

impl Planner<'_> {
    pub(super) fn plan(&self) -> Result<Plan> {
        let mut plan = account::blank(self);
        let wanted = self.wanted_backup()?;
        if self.inventory.backups.is_empty() {
            let means = Major::newer_means(self.inventory.major);
            let detail = match self.inventory.unreadable.len() {
                0 if means.is_some() => format!(
                    "the repository holds no backup of this cluster: {}; install a newer pitr",
                    means.unwrap_or_default()
                ),
                0 => "the repository holds no backup of this cluster; take one: pitr backup"
                    .to_owned(),
                n => format!("none of the {n} backups of this cluster can be read"),
            };
            unreachable::refuse(&mut plan, Reason::NoBackup, detail);
            return Ok(plan);
        }
        let histories = match self.histories(wanted, &mut plan.warnings)? {
            Ok(histories) => histories,
            Err((reason, detail)) => {
                if reason == Reason::Undecided {
                    plan.candidates = self.cluster.candidates();
                }
                unreachable::refuse(&mut plan, reason, detail);
                return Ok(plan);
            }
        };
        let chains: BTreeMap<TimelineId, Chain<'_>> = histories
            .into_iter()
            .map(|h| (h.timeline(), Chain::new(self.inventory, self.wal, h)))
            .collect();
        let mut tried = Vec::new();
        let mut chosen = None;
        let order = self.order(wanted);
        for backup in &order {
            let Some(chain) = self.chain_of(&chains, backup) else {
                continue;
            };
            match self.evaluate(backup, chain)? {
                Verdict::Reached(reached) => match unfit(backup, wanted) {
                    None => {
                        chosen = Some((*backup, chain, reached));
                        break;
                    }
                    Some(reason) => {
                        let detail = backup.damage.clone().unwrap_or_default();
                        let refusal = Refusal {
                            reason,
                            detail,
                            stretch: Some(reached.stretch),
                        };
                        tried.push(Tried { backup, refusal });
                    }
                },
                Verdict::Refused(refusal) => tried.push(Tried { backup, refusal }),
            }
        }
        match chosen {
            Some((backup, chain, reached)) => {
                account::fill(self, &mut plan, backup, chain, *reached, &tried)?;
            }
            None => {
                let chain = tried
                    .first()
                    .and_then(|t| self.chain_of(&chains, t.backup))
                    .or_else(|| chains.values().next_back());
                unreachable::explain(self, &mut plan, chain, &tried)?;
            }
        }
        plan.backups_not_chosen
            .extend(tried.into_iter().map(|t| NotChosen {
                id: t.backup.id.clone(),
                reason: t.refusal.reason,
                detail: t.refusal.detail,
            }));
        account::explain_untried(self, &mut plan, &order);
        Ok(plan)
    }

    fn wanted_backup(&self) -> Result<Option<&Backup>> {
        let Some(id) = &self.options.backup else {
            return Ok(None);
        };
        if let Some(backup) = self.inventory.backups.iter().find(|b| b.id == *id) {
            return Ok(Some(backup));
        }
        if let Some(unreadable) = self.inventory.unreadable.iter().find(|u| u.id == *id) {
            return Err(err!(
                Damaged,
                "backup \"{id}\" cannot be read: {}",
                unreadable.problem
            ));
        }
        if self.inventory.lost.contains(id) {
            return Err(err!(
                Damaged,
                "backup \"{id}\" was complete, and its root is not there"
            )
            .hint("Run pitr verify: it says what helps."));
        }
        let known = self.inventory.backups.iter().map(|b| &b.id);
        let hint = closest(known, &id.to_string()).map_or("there is none".to_owned(), |closest| {
            format!("The closest is {closest}")
        });
        Err(err!(NotFound, "backup \"{id}\" does not exist").hint(hint))
    }

    /// The histories to follow: one, or for `current` one for each timeline that has a backup.
    fn histories(
        &self,
        wanted: Option<&Backup>,
        warnings: &mut Vec<String>,
    ) -> Result<std::result::Result<Vec<History>, (Reason, String)>> {
        self.warn_of_wal_without_history(warnings);
        let numbers: Vec<TimelineId> = match self.target.timeline {
            TargetTimeline::Number(n) => vec![n],
            TargetTimeline::Latest => {
                if let Some(why) = self.cluster.undecided() {
                    return Ok(Err((Reason::Undecided, why)));
                }
                let mut latest = self.cluster.timeline().unwrap_or(TimelineId::FIRST);
                self.warn_of_lost_histories(warnings);
                if let Some(backup) = wanted {
                    latest = self.descendant(backup, latest, warnings)?;
                }
                vec![latest]
            }
            TargetTimeline::Current => {
                let mut all: Vec<_> = match wanted {
                    Some(backup) => vec![backup.timeline],
                    None => self.inventory.backups.iter().map(|b| b.timeline).collect(),
                };
                all.sort_unstable();
                all.dedup();
                all
            }
        };
        let many = numbers.len() > 1;
        let mut histories = Vec::new();
        for number in numbers {
            match self.inventory.history(number) {
                Ok(history) => histories.push(history),
                Err(e) if many => warnings.push(e.to_string()),
                Err(e) if e.code() == Code::NotFound => {
                    return Ok(Err(unreachable::no_timeline(self.inventory, number)));
                }
                Err(e) => return Ok(Err((Reason::HistoryMissing, e.to_string()))),
            }
        }
        Ok(Ok(histories))
    }

    /// Warns of timelines that have WAL and no history: no server is promoted beside one, for `pitr-restore` does not let it take that number.
    fn warn_of_wal_without_history(&self, warnings: &mut Vec<String>) {
        let from = self.first_later();
        for (id, timeline) in &self.inventory.timelines {
            if id.get() >= from
                && timeline.history == HistoryFile::Absent
                && timeline.bounds().is_some()
            {
                warnings.push(format!(
                    "the history file of timeline {} is missing although its WAL is archived: recovery stops with an error where it would end, for a server that is promoted would take the number a second time. Push the file from a data directory that has it first: pitr wal push PGDATA/pg_wal/{}",
                    id.decimal(),
                    id.history_file_name()
                ));
            }
        }
    }

    /// The lowest timeline whose history a server may ask for when it is promoted.
    fn first_later(&self) -> u32 {
        let oldest = self.inventory.backups.first().map(|b| b.timeline);
        oldest.map_or(2, |t| t.get().saturating_add(1))
    }

    /// Warns of timelines whose history is not stored although that of a later one is.
    ///
    /// PostgreSQL: src/backend/access/transam/timeline.c, findNewestTimeLine: it asks for one after the other, and takes the first number
    /// that has no history.
    fn warn_of_lost_histories(&self, warnings: &mut Vec<String>) {
        let timeline = |t: &TimelineId| self.inventory.timelines.get(t);
        let known = |t: &TimelineId| timeline(t).is_some_and(|t| t.history != HistoryFile::Absent);
        // Those with WAL are named on their own.
        let is_named =
            |t: &TimelineId| known(t) || timeline(t).is_some_and(|t| t.bounds().is_some());
        let Some(last) = self.inventory.timelines.keys().rev().find(|t| known(t)) else {
            return;
        };
        let mut numbers = (self.first_later()..last.get()).filter_map(TimelineId::new);
        if let Some(lost) = numbers.find(|t| !is_named(t)) {
            warnings.push(format!(
                "the history file of timeline {} is missing although timeline {} exists: a server that is promoted may take the number a second time",
                lost.decimal(),
                last.decimal(),
            ));
        }
    }

    /// The newest timeline that a backup leads to, where the cluster's does not descend from it; one that is not abandoned, if there is.
    fn descendant(
        &self,
        backup: &Backup,
        latest: TimelineId,
        warnings: &mut Vec<String>,
    ) -> Result<TimelineId> {
        let leads = |t| leads(self.inventory, self.wal, backup, t);
        if leads(latest)? {
            return Ok(latest);
        }
        let is_open = |t: &TimelineId| !self.cluster.abandoned.contains(t);
        let mut known: Vec<TimelineId> = Tree::of(self.inventory).timelines().collect();
        known.sort_unstable_by_key(|t| std::cmp::Reverse((is_open(t), *t)));
        let mut found = latest;
        for timeline in known {
            if leads(timeline)? {
                found = timeline;
                break;
            }
        }
        if found != latest {
            warnings.push(format!(
                "timeline {} does not descend from backup {}; its newest descendant is timeline {}{}",
                latest.decimal(),
                backup.id,
                found.decimal(),
                if is_open(&found) { "" } else { ", which is abandoned" }
            ));
        }
        Ok(found)
    }

    fn chain_of<'p, 'i>(
        &self,
        chains: &'p BTreeMap<TimelineId, Chain<'i>>,
        backup: &Backup,
    ) -> Option<&'p Chain<'i>> {
        match self.target.timeline {
            TargetTimeline::Current => chains.get(&backup.timeline),
            _ => chains.values().next(),
        }
    }

    /// Backups in the order in which they are tried.
    fn order<'b>(&'b self, wanted: Option<&'b Backup>) -> Vec<&'b Backup> {
        if let Some(backup) = wanted {
            return vec![backup];
        }
        let mut order: Vec<&Backup> = self.inventory.backups.iter().rev().collect();
        if let Target::Time(at) = self.target.target {
            // Those that were complete only later are tried last, the oldest first: where nothing happened meanwhile they serve.
            let (mut before, mut behind): (Vec<_>, Vec<_>) =
                order.into_iter().partition(|b| b.stop_time <= at);
            behind.reverse();
            before.append(&mut behind);
            order = before;
        }
        order.sort_by_key(|b| b.rank());
        order
    }

    fn evaluate(&self, backup: &Backup, chain: &Chain<'_>) -> Result<Verdict> {
        let timeline = chain.history().timeline().decimal();
        if !lies_on(chain.history(), backup) {
            return Ok(refused(
                Reason::OtherTimeline,
                format!(
                    "it was taken on timeline {}, which timeline {timeline} left before",
                    backup.timeline.decimal()
                ),
                None,
            ));
        }
        if let Some(name) = foreign_on_path(backup, chain, self.inventory)? {
            return Ok(refused(Reason::BackupWalForeign, foreign(name), None));
        }
        let size = self.inventory.segment_size;
        let stretch = chain.stretch_from(SegmentNumber::of(backup.start_lsn, size))?;
        if stretch.reach() < backup.consistent_lsn {
            let why = unreachable::describe_short(chain, &stretch, backup);
            let detail = format!("WAL that the backup itself needs is not there: {why}");
            return Ok(refused(Reason::BackupWalMissing, detail, Some(stretch)));
        }
        if let Some(refusal) = self.other_epoch(backup, chain, &stretch)? {
            return Ok(Verdict::Refused(refusal));
        }
        let search = Search {
            chain,
            stretch: Rc::clone(&stretch),
            start_lsn: backup.start_lsn,
            consistent_lsn: backup.consistent_lsn,
        };
        let Some(rule) = self.rule() else {
            return self.evaluate_end(&search);
        };
        let replay = search.run(&rule)?;
        let Some(stop) = replay.stop.clone() else {
            let may_mean_end = matches!(self.target.target, Target::Time(_) | Target::Lsn(_));
            let (_, last_end) = match stretch.end {
                StretchEnd::EndOfWal if may_mean_end => search.last_transactions()?,
                _ => (None, None),
            };
            if stretch.end == StretchEnd::EndOfWal && self.is_end_meant(chain, &stretch, last_end) {
                if self.is_older(backup, last_end.is_some()) {
                    return Ok(too_late(backup, stretch));
                }
                return self.evaluate_end(&search);
            }
            let (reason, detail) = unreachable::not_found(self, chain, &stretch);
            return Ok(refused(reason, detail, Some(stretch)));
        };
        if !replay.consistent || self.is_older(backup, replay.last_end.is_some()) {
            return Ok(too_late(backup, stretch));
        }
        let target = (self.target.target.clone(), self.target.inclusive);
        self.reached(Outcome::StopsAtTarget, target, &search, &replay, stop)
    }

    fn reached(
        &self,
        outcome: Outcome,
        (target, inclusive): (Target, Inclusive),
        search: &Search<'_>,
        replay: &Replay<'_>,
        stop: Stop,
    ) -> Result<Verdict> {
        let parameters = search.parameters(stop.recovery_end_lsn)?;
        Ok(Verdict::Reached(Box::new(Reached {
            outcome,
            settings: account::settings(self, target, inclusive, search.chain, parameters),
            stop,
            replay: replay.into(),
            stretch: Rc::clone(&search.stretch),
        })))
    }

    /// Whether the end of the archived WAL is what a target means that no record of it reaches: because the operator says so, or because a
    /// backup that was complete later, by the server's clock, shows that the WAL goes beyond the target time.
    fn is_end_meant(
        &self,
        chain: &Chain<'_>,
        stretch: &Stretch,
        last_end: Option<TransactionEnd>,
    ) -> bool {
        match self.target.target {
            Target::Time(_) | Target::Lsn(_) if self.options.allow_end => true,
            Target::Time(at) => self.backup_beyond(chain, (stretch, last_end), at).is_some(),
            _ => false,
        }
    }

    /// The first backup on the way that was complete after a time, within the WAL that is there.
    ///
    /// The server's clock was ahead where that time has not come yet, or the last transaction came behind the backup and is older than its start:
    /// then the backup tells nothing about the target. Between the end of its WAL and its own end other transactions may lie.
    pub(super) fn backup_beyond(
        &self,
        chain: &Chain<'_>,
        (stretch, last_end): (&Stretch, Option<TransactionEnd>),
        at: TimestampTz,
    ) -> Option<&Backup> {
        let reach = stretch.reach();
        let was_ahead = |b: &Backup| {
            let is_older = |end: TransactionEnd| end.lsn >= b.stop_lsn && end.time < b.start_time;
            self.is_ahead(b.stop_time) || last_end.is_some_and(is_older)
        };
        let mut backups = self.inventory.backups.iter();
        backups.find(|b| {
            let is_beyond = b.stop_time > at && b.stop_lsn <= reach;
            is_beyond && !was_ahead(b) && lies_on(chain.history(), b)
        })
    }

    /// Whether the target time lies before the backup was even begun, so that it holds changes that came later.
    ///
    /// PostgreSQL would not notice where nothing happened while the backup ran. A transaction behind the backup's start whose time
    /// is not behind the target shows that the clock was set back instead: then the target is really behind the backup.
    fn is_older(&self, backup: &Backup, replays_transactions: bool) -> bool {
        !replays_transactions
            && matches!(self.target.target, Target::Time(at) if at < backup.start_time)
    }

    /// Recovery to the last complete record, always with a target: without one, a segment that cannot be had ends recovery early
    /// and in silence.
    fn evaluate_end(&self, search: &Search<'_>) -> Result<Verdict> {
        let stretch = &search.stretch;
        let Some((last, _)) = stretch.last.filter(|_| stretch.end == StretchEnd::EndOfWal) else {
            let (reason, detail) = unreachable::not_found(self, search.chain, stretch);
            return Ok(refused(reason, detail, Some(Rc::clone(stretch))));
        };
        let rule = Rule::Lsn {
            at: last,
            inclusive: true,
        };
        let replay = search.run(&rule)?;
        let Some(stop) = replay.stop.clone().filter(|s| s.lsn == last) else {
            return Err(err!(
                Damaged,
                "the WAL does not hold the record at {last} that its index names as the last"
            )
            .hint("Run pitr verify."));
        };
        let target = (Target::Lsn(last), Inclusive::Yes);
        self.reached(Outcome::EndOfWal, target, search, &replay, stop)
    }

    /// Refuses a backup in whose WAL the transaction id belongs to another epoch than the one asked for.
    fn other_epoch(
        &self,
        backup: &Backup,
        chain: &Chain<'_>,
        stretch: &Rc<Stretch>,
    ) -> Result<Option<Refusal>> {
        let Target::Xid(target) = &self.target.target else {
            return Ok(None);
        };
        let Some(full) = target.full() else {
            return Ok(None);
        };
        let Some(next) = self.next_xid(backup, chain, stretch)? else {
            return Ok(None);
        };
        let meant = nearest_full_xid(target.xid(), next);
        Ok((meant != full).then(|| Refusal {
            reason: Reason::OtherEpoch,
            detail: format!(
                "from it, PostgreSQL would stop at transaction {meant}: it compares only the lower 32 bits"
            ),
            stretch: Some(Rc::clone(stretch)),
        }))
    }

    /// The next transaction id, with its epoch, at the checkpoint from which a backup is replayed.
    fn next_xid(
        &self,
        backup: &Backup,
        chain: &Chain<'_>,
        stretch: &Stretch,
    ) -> Result<Option<u64>> {
        let number = SegmentNumber::of(backup.checkpoint_lsn, self.inventory.segment_size);
        let mut next = None;
        chain.scan(stretch, number, &mut |entry| {
            if let EntryKind::Checkpoint { next_xid } = entry.kind
                && entry.start == backup.checkpoint_lsn
            {
                next = Some(next_xid);
            }
        })?;
        Ok(next)
    }

    /// Whether the target may lie in WAL that the server has written and that is not archived yet. A transaction from before the backup has
    /// ended before it, as a rule.
    pub(super) fn may_follow(
        &self,
        backup: &Backup,
        chain: &Chain<'_>,
        stretch: &Stretch,
    ) -> Result<bool> {
        let own = chain.history().timeline();
        if stretch.end != StretchEnd::EndOfWal || !self.cluster.candidates().contains(&own) {
            return Ok(false);
        }
        let Target::Xid(target) = &self.target.target else {
            return Ok(true);
        };
        let next = self.next_xid(backup, chain, stretch)?;
        Ok(next.is_none_or(|next| nearest_full_xid(target.xid(), next) >= next))
    }

    /// Returns the rule by which PostgreSQL stops; none for the end, which is known only after the WAL was examined.
    pub(super) fn rule(&self) -> Option<Rule> {
        let inclusive = self.target.inclusive == Inclusive::Yes;
        Some(match &self.target.target {
            Target::Time(at) => Rule::Time { at: *at, inclusive },
            Target::Xid(xid) => Rule::Xid {
                xid: xid.xid(),
                inclusive,
            },
            Target::Lsn(at) => Rule::Lsn { at: *at, inclusive },
            Target::Name(name) => Rule::Name(name.as_str().as_bytes().to_vec()),
            Target::Immediate => Rule::Immediate,
            Target::End => return None,
        })
    }

    /// Whether the target time has not come yet.
    pub(super) fn is_future(&self) -> bool {
        matches!(self.target.target, Target::Time(at) if self.is_ahead(at))
    }

    fn is_ahead(&self, at: TimestampTz) -> bool {
        at > self.now.saturating_add(FUTURE_SLACK)
    }
}

/// A target this little ahead of our clock is not called the future: the server's clock may be ahead.
const FUTURE_SLACK: std::time::Duration = std::time::Duration::from_secs(60);

/// Warns of what goes on beside the timeline that was decided for.
fn warn_beside(cluster: &Cluster, plan: &mut Plan) {
    plan.warnings.extend(cluster.describe_beside());
}

fn too_late(backup: &Backup, stretch: Rc<Stretch>) -> Verdict {
    let detail = format!(
        "it is consistent only at {} ({}), behind the target",
        backup.consistent_lsn, backup.stop_time
    );
    refused(Reason::BeforeBackup, detail, Some(stretch))
}

fn refused(reason: Reason, detail: String, stretch: Option<Rc<Stretch>>) -> Verdict {
    Verdict::Refused(Refusal {
        reason,
        detail,
        stretch,
    })
}

/// Whether a backup was taken on the way to a timeline: what recovery checks of its checkpoint and of its end.
///
/// PostgreSQL: src/backend/access/transam/xlogrecovery.c, InitWalRecovery ("is not a child of this server's history").
pub fn lies_on(history: &History, backup: &Backup) -> bool {
    history.contains(backup.timeline)
        && history.contains(backup.start_timeline)
        && history.holder(backup.start_lsn) == backup.start_timeline
        && history.holder(backup.checkpoint_lsn) == backup.start_timeline
        && history.holder(Lsn(backup.stop_lsn.0.saturating_sub(1))) == backup.timeline
}

/// Whether a backup was taken on the way to a timeline, in the life from which that goes on.
///
/// # Errors
/// Errors of [`Wal`], apart from damage.
pub fn leads(
    inventory: &Inventory,
    wal: &dyn Wal,
    backup: &Backup,
    timeline: TimelineId,
) -> Result<bool> {
    let history = inventory.history(timeline);
    let Some(history) = history.ok().filter(|h| lies_on(h, backup)) else {
        return Ok(false);
    };
    let chain = Chain::new(inventory, wal, history);
    Ok(foreign_end(backup, &chain)?.is_none())
}

/// The first segment that another server wrote of the WAL that a backup needs on the way to a timeline, as its proof tells.
///
/// # Errors
/// Errors of [`Wal`], apart from damage.
pub(super) fn foreign_on_path(
    backup: &Backup,
    chain: &Chain<'_>,
    inventory: &Inventory,
) -> Result<Option<SegmentName>> {
    match foreign_segment(backup, inventory, chain.wal())? {
        Some(name) => Ok(Some(name)),
        None => foreign_end(backup, chain),
    }
}

/// The copy that a later timeline has of the segment in which a backup stops, where it begins with other WAL: the server was set back before the
/// backup, wrote past the backup's end, and was promoted. Positions do not tell that.
fn foreign_end(backup: &Backup, chain: &Chain<'_>) -> Result<Option<SegmentName>> {
    let end = backup.wal_proof.as_ref().and_then(WalProof::end);
    let Some((name, length_bytes, hash)) = end else {
        return Ok(None);
    };
    let Some(taken) = chain.in_place_of(name)? else {
        return Ok(None);
    };
    let is_own = chain.wal().has_prefix(taken, length_bytes, hash)?;
    Ok((!is_own).then_some(taken))
}

/// The first segment of a backup's own WAL that another server wrote, as its proof tells.
fn foreign_segment(
    backup: &Backup,
    inventory: &Inventory,
    wal: &dyn Wal,
) -> Result<Option<SegmentName>> {
    let Some(proof) = &backup.wal_proof else {
        return Ok(unproven_segment(backup, inventory));
    };
    for (name, hash) in proof.segments() {
        if !wal.has_hash(name, hash)? {
            return Ok(Some(name));
        }
    }
    // Reading the segment costs something, and is needed where two lives have it.
    let tail = proof
        .tail()
        .filter(|(name, ..)| inventory.lives.of(*name).is_some());
    match tail {
        Some((name, length_bytes, hash)) if !wal.has_prefix(name, length_bytes, hash)? => {
            Ok(Some(name))
        }
        _ => Ok(None),
    }
}

/// The segment in which a backup without a proof stops, where that belongs to a life which a resolution chose: nothing tells whose backup it is.
fn unproven_segment(backup: &Backup, inventory: &Inventory) -> Option<SegmentName> {
    let size = inventory.segment_size;
    let name = SegmentNumber::ending_at(backup.stop_lsn, size).name(backup.timeline, size)?;
    inventory.lives.of(name).map(|_| name)
}

/// The 64-bit id that a 32-bit xid stands for near `next`.
fn nearest_full_xid(xid: u32, next: u64) -> u64 {
    const EPOCH: u64 = 1 << 32;
    let same = (next & !(EPOCH - 1)) | u64::from(xid);
    [same.checked_sub(EPOCH), Some(same), same.checked_add(EPOCH)]
        .into_iter()
        .flatten()
        .min_by_key(|full| full.abs_diff(next))
        .unwrap_or(same)
}
