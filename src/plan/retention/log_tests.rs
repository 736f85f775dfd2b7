//! The log of Redis: single cases, and servers lived at random beside a model that knows the true times and nothing of the planner.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;

use super::aux_items::retention;
use super::histories_tests::number_of;
use super::tests::{Dice, HOUR, MIB, event, id, now};
use super::*;
use crate::repo::catalog::Manifest;
use crate::repo::log_keys::{LogKeys, SEGMENT_BYTES, segment_of};
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::scope::Scope;
use crate::repo::stored_log::{Piece, Stored, StoredHistory, StoredLog};
use crate::store::Meta;

const DAY: u64 = 24;

/// The name of history number `n`.
fn replid(n: usize) -> String {
    format!("{n:040x}")
}

fn at(hour: u64) -> TimestampTz {
    let begin: TimestampTz = "2026-01-05T00:30:00Z".parse().unwrap();
    begin.saturating_add(HOUR * u32::try_from(hour).unwrap())
}

fn keys(n: usize) -> LogKeys {
    LogKeys::new(&Scope::aux("redis", "cache").unwrap(), &replid(n))
}

fn object(key: Key, modified: TimestampTz) -> Stored {
    let meta = Meta {
        size_bytes: 1,
        modified,
    };
    Stored { key, meta }
}

fn history(log: &mut StoredLog, n: usize, stored: TimestampTz) -> &mut StoredHistory {
    log.0.entry(replid(n)).or_insert_with(|| StoredHistory {
        records: vec![object(keys(n).history().unwrap(), stored)],
        ..StoredHistory::default()
    })
}

/// Stores bytes of a history, each segment by itself; a whole one stands for its increments.
fn store(log: &mut StoredLog, n: usize, (mut from, to): (u64, u64), stored: TimestampTz) {
    let pieces = &mut history(log, n, stored).pieces;
    while from < to {
        let end = to.min(segment_of(from) + SEGMENT_BYTES);
        let key = match end - from {
            SEGMENT_BYTES => keys(n).whole(from),
            _ => keys(n).increment(from, end),
        };
        pieces.push(Piece {
            from,
            to: end,
            object: object(key.unwrap(), stored),
        });
        from = end;
    }
}

fn goes_on(log: &mut StoredLog, child: usize, (parent, fork): (usize, u64), stored: TimestampTz) {
    let history = history(log, child, stored);
    history.parents.insert(replid(parent), fork);
}

/// Adds a backup at a position of a history.
fn back_up(
    catalog: &mut Catalog<AuxBackup>,
    number: usize,
    (of, offset): (usize, u64),
    time: TimestampTz,
) -> BackupId {
    let own = id(number);
    let root = json!({
        "id": own.to_string(), "nonce": "", "backup_kind": "full", "scope": "aux/redis/cache", "source": null,
        "start_time": time, "stop_time": time, "size_bytes": 1, "stored_bytes": 1, "unstable_count": 0, "incomplete_count": 0,
        "lock_until": null, "layers": {}, "packs": {}, "replid": replid(of), "offset": offset,
    });
    let backup = AuxBackup {
        root: serde_json::from_value(root).unwrap(),
        layers: BTreeMap::new(),
        packs: BTreeMap::new(),
    };
    let subject = Subject {
        manifest: Manifest::Committed(Box::new(backup)),
        stored: Some(time),
        events: vec![event("begin", time), event("verified", time)],
        ..Subject::default()
    };
    catalog.ids.insert(own.clone(), subject);
    own
}

fn keep(last: u32) -> Policy {
    Policy {
        rules: Retention::newest(last),
        confirm_burst: true,
        ..Policy::default()
    }
}

/// Carries out a plan, but for all deletions behind the first `count`.
fn apply(
    catalog: &mut Catalog<AuxBackup>,
    log: &mut StoredLog,
    plan: &ExpirePlan,
    (count, time): (usize, TimestampTz),
) {
    for marked in &plan.marks {
        let events = &mut catalog.ids.get_mut(marked).unwrap().events;
        events.push(event("expire", time));
    }
    for (unmarked, name) in &plan.unmarks {
        let mut event = event("unexpire", time);
        event.event.ends = Some(name.clone());
        catalog.ids.get_mut(unmarked).unwrap().events.push(event);
    }
    let mut gone = BTreeSet::new();
    for deletion in plan.deletions.iter().take(count) {
        match deletion {
            Deletion::Manifest(id) => drop(catalog.ids.remove(id)),
            Deletion::Object(key) => drop(gone.insert(key.clone())),
            _ => {}
        }
    }
    let stays = |object: &Stored| !gone.contains(&object.key);
    for history in log.0.values_mut() {
        history.pieces.retain(|piece| stays(&piece.object));
        history.beginnings.retain(|(_, object)| stays(object));
        let had_records = !history.records.is_empty();
        history.records.retain(stays);
        if had_records && history.records.is_empty() {
            history.parents.clear();
        }
    }
    log.0
        .retain(|_, history| history.objects().next().is_some());
}

/// The share of history `n` that goes: the position before which it does, and how many objects.
fn gone(plan: &ExpirePlan, n: usize) -> Option<(Option<u64>, u64)> {
    let fate = plan.log.iter().find(|one| one.replid == replid(n)).unwrap();
    fate.gone.map(|gone| (gone.before, gone.objects))
}

/// The time so many hours ago.
fn aged(hours: u64) -> TimestampTz {
    now().saturating_sub(HOUR * u32::try_from(hours).unwrap())
}

#[test]
fn what_lies_before_the_oldest_backup_goes_with_whole_segments() {
    let mut log = StoredLog::default();
    store(&mut log, 1, (5 * MIB, 70 * MIB), aged(1));
    let begin = keys(1).beginning(5 * MIB).unwrap();
    let beginnings = &mut log.0.get_mut(&replid(1)).unwrap().beginnings;
    beginnings.push((5 * MIB, object(begin, aged(1))));
    let mut catalog = Catalog::empty();
    let plan = retention(&catalog, &log, &keep(1), now());
    assert!(plan.is_empty() && plan.withheld.len() == 1, "{plan:?}");
    back_up(&mut catalog, 1, (1, 40 * MIB), aged(50));
    let plan = retention(&catalog, &log, &keep(1), now());
    // The segments of 0 and 16 MiB, and the record of the beginning; that of 32 MiB has the position.
    assert_eq!(gone(&plan, 1), Some((Some(32 * MIB), 3)), "{plan:?}");
    // A backup that is newer than all log leaves the last segment.
    back_up(&mut catalog, 2, (1, 300 * MIB), aged(40));
    catalog.ids.remove(&id(1));
    let plan = retention(&catalog, &log, &keep(1), now());
    assert_eq!(gone(&plan, 1), Some((Some(64 * MIB), 5)), "{plan:?}");
    // A pinned backup is whole without any log.
    back_up(&mut catalog, 1, (1, 40 * MIB), aged(50));
    let pinned = &mut catalog.ids.get_mut(&id(1)).unwrap().events;
    pinned.push(event("pin", aged(1)));
    let plan = retention(&catalog, &log, &keep(1), now());
    assert_eq!(gone(&plan, 1), Some((Some(64 * MIB), 5)), "{plan:?}");
}

#[test]
fn x31_a_pin_takes_no_log_away_that_would_stay_without_it() {
    let (mut catalog, mut log) = (Catalog::empty(), StoredLog::default());
    store(&mut log, 1, (0, 20 * SEGMENT_BYTES), aged(400));
    let first = back_up(&mut catalog, 1, (1, 4 * SEGMENT_BYTES), aged(300));
    let second = back_up(&mut catalog, 2, (1, 8 * SEGMENT_BYTES), aged(200));
    let unverified = catalog.ids.get_mut(&second).unwrap();
    unverified.events.retain(|e| e.event.event != "verified");
    for hours in [0, 24] {
        let policy = Policy {
            min_age: HOUR * hours,
            ..keep(1)
        };
        let free = retention(&catalog, &log, &policy, now());
        let mut pinned = catalog.clone();
        let subject = pinned.ids.get_mut(&first).unwrap();
        subject.events.push(event("pin", aged(100)));
        let pinned = retention(&pinned, &log, &policy, now());
        assert_eq!(gone(&pinned, 1), gone(&free, 1), "{hours}");
        assert_eq!(gone(&free, 1), Some((Some(4 * SEGMENT_BYTES), 4)));
    }
}

#[test]
fn a_fork_keeps_what_lies_on_a_way_from_a_backup() {
    let mut log = StoredLog::default();
    store(&mut log, 1, (0, 100 * MIB), aged(100));
    // History 2 left at 70 MiB, and 3 at 20 MiB; 4 goes on from 2, and 5 from nothing.
    for (n, parent, fork) in [(2, 1, 70), (3, 1, 20), (4, 2, 90)] {
        goes_on(&mut log, n, (parent, fork * MIB), aged(90));
    }
    for (n, from) in [(2, 70), (3, 20), (4, 90), (5, 0)] {
        store(&mut log, n, (from * MIB, 120 * MIB), aged(90));
    }
    let mut catalog = Catalog::empty();
    back_up(&mut catalog, 1, (1, 50 * MIB), aged(80));
    let plan = retention(&catalog, &log, &keep(1), now());
    assert_eq!(gone(&plan, 1), Some((Some(48 * MIB), 3)));
    assert_eq!((gone(&plan, 2), gone(&plan, 4)), (None, None));
    // No backup leads there, and nothing was stored for a day.
    assert!(matches!(gone(&plan, 3), Some((None, 8))), "{plan:?}");
    assert!(matches!(gone(&plan, 5), Some((None, 9))), "{plan:?}");
    // The server lives in a history of which there is no backup yet.
    store(&mut log, 5, (120 * MIB, 121 * MIB), aged(2));
    let plan = retention(&catalog, &log, &keep(1), now());
    assert_eq!(gone(&plan, 5), None);
    // A replica that was behind gave a data set from before the fork: the bytes up to that have the name of the former history.
    let mut catalog = Catalog::empty();
    back_up(&mut catalog, 1, (2, 66 * MIB), aged(80));
    let plan = retention(&catalog, &log, &keep(1), now());
    assert_eq!(gone(&plan, 1), Some((Some(64 * MIB), 4)), "{plan:?}");
    assert_eq!(gone(&plan, 2), None);
    // Records that lead in a circle end.
    goes_on(&mut log, 1, (4, 110 * MIB), aged(90));
    let plan = retention(&catalog, &log, &keep(1), now());
    assert_eq!(gone(&plan, 4), None);
}

#[test]
fn nothing_goes_while_it_is_not_known_what_is_needed() {
    let mut log = StoredLog::default();
    store(&mut log, 1, (0, 100 * MIB), aged(100));
    let mut catalog = Catalog::empty();
    back_up(&mut catalog, 1, (1, 50 * MIB), aged(80));
    let old = back_up(&mut catalog, 2, (1, 60 * MIB), aged(70));
    if let Manifest::Committed(backup) = &mut catalog.ids.get_mut(&old).unwrap().manifest {
        let mut root = serde_json::to_value(&backup.root).unwrap();
        root["offset"] = "60".into();
        backup.root = serde_json::from_value(root).unwrap();
    }
    let plan = retention(&catalog, &log, &keep(2), now());
    assert_eq!(gone(&plan, 1), None);
    let told = |plan: &ExpirePlan, words: &str| plan.withheld.iter().any(|w| w.contains(words));
    assert!(told(&plan, "does not say"), "{plan:?}");
    // The root of another one is lost.
    let lost = catalog.ids.get_mut(&old).unwrap();
    lost.manifest = Manifest::Absent;
    lost.events.push(event("completed", aged(70)));
    let plan = retention(&catalog, &log, &keep(2), now());
    assert!(
        gone(&plan, 1).is_none() && told(&plan, "--give-up"),
        "{plan:?}"
    );
    // One that is being taken needs nothing that others do not.
    let running = catalog.ids.get_mut(&old).unwrap();
    running.events = vec![event("begin", aged(1))];
    let plan = retention(&catalog, &log, &keep(2), now());
    assert_eq!(gone(&plan, 1), Some((Some(48 * MIB), 3)), "{plan:?}");
}

/// The name was another server's for a day: the newest backup is verified, and leads nowhere.
#[test]
fn a_backup_stays_that_alone_leads_to_what_was_received_since() {
    let mut log = StoredLog::default();
    store(&mut log, 1, (0, 100 * MIB), aged(100));
    store(&mut log, 1, (100 * MIB, 120 * MIB), aged(1));
    let mut catalog = Catalog::empty();
    let own = back_up(&mut catalog, 1, (1, 50 * MIB), aged(80));
    back_up(&mut catalog, 2, (9, 7 * MIB), aged(60));
    let plan = retention(&catalog, &log, &keep(1), now());
    assert_eq!(plan.marks, [], "{plan:?}");
    let first = plan.backups.iter().find(|b| b.id == own).unwrap();
    assert!(first.reason.contains("can only be reached"), "{first:?}");
    assert_eq!(gone(&plan, 1), Some((Some(48 * MIB), 3)));
    // Bytes that were received before the oldest kept one are not promised.
    log.0.get_mut(&replid(1)).unwrap().pieces.pop();
    log.0.get_mut(&replid(1)).unwrap().pieces.pop();
    let plan = retention(&catalog, &log, &keep(1), now());
    assert_eq!(plan.marks, [own], "{plan:?}");
}

/// A sample of a history's positions, with the hour at which the server got there.
type Passed = (usize, u64, u64);

/// A server and its repository. Positions are whole mebibytes.
struct World {
    dice: Dice,
    now: u64,
    log: StoredLog,
    catalog: Catalog<AuxBackup>,
    policy: Policy,
    /// The parent of each history, and where it left.
    parents: Vec<Option<(usize, u64)>>,
    /// The history that the server is in, and its position there.
    head: (usize, u64),
    /// The position up to which whole segments are stored, or where the history began.
    open: u64,
    passed: Vec<Passed>,
    /// Backups with history, position and hour.
    taken: BTreeMap<BackupId, (usize, u64, u64)>,
    is_copied: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            dice.roll(2);
        }
        let window = Duration::from_secs((1 + dice.roll(6)) * DAY * 3600);
        let mut policy = keep(1 + u32::try_from(dice.roll(4)).unwrap());
        policy.rules.wal_window = dice.one_in(3).then_some(window);
        policy.min_age = HOUR * u32::try_from(dice.roll(2) * DAY).unwrap();
        policy.grace = HOUR * u32::try_from(dice.roll(2) * DAY).unwrap();
        World {
            is_copied: dice.one_in(8),
            dice,
            now: 0,
            log: StoredLog::default(),
            catalog: Catalog::empty(),
            policy,
            parents: vec![None],
            head: (0, MIB),
            open: MIB,
            passed: Vec::new(),
            taken: BTreeMap::new(),
        }
    }

    /// Time passes, and what the server writes is stored each hour.
    fn pass(&mut self, hours: u64) {
        for _ in 0..hours {
            self.now += 1;
            let (n, from) = self.head;
            let to = from + self.dice.roll(4) * MIB;
            if to == from {
                continue;
            }
            store(&mut self.log, n, (from, to), at(self.now));
            let whole = segment_of(to);
            if self.open <= whole.saturating_sub(SEGMENT_BYTES) {
                store(
                    &mut self.log,
                    n,
                    (whole - SEGMENT_BYTES, whole),
                    at(self.now),
                );
            }
            if segment_of(self.open) < whole {
                self.open = whole;
            }
            let history = self.log.0.get_mut(&replid(n)).unwrap();
            history.pieces.sort_by_key(|piece| (piece.from, piece.to));
            self.head = (n, to);
            self.passed
                .extend((from / MIB + 1..=to / MIB).map(|p| (n, p * MIB, self.now)));
        }
    }

    fn begin(&mut self, parent: Option<(usize, u64)>, position: u64) {
        let n = self.parents.len();
        self.parents.push(parent);
        if let Some(parent) = parent {
            goes_on(&mut self.log, n, parent, at(self.now));
        }
        self.head = (n, position);
        self.open = position;
    }

    /// A failover, a crash, or an outage that the backlog does not reach back over.
    fn happen(&mut self) {
        let (n, head) = self.head;
        match self.dice.roll(3) {
            0 => {
                // The replica had as much, or less.
                let began = self.parents[n].map_or(MIB, |(_, fork)| fork);
                let fork = head.saturating_sub(self.dice.roll(3) * MIB).max(began);
                self.begin(Some((n, fork)), fork);
            }
            1 => {
                let position = MIB * (1 + self.dice.roll(9));
                self.begin(None, position);
            }
            _ => {
                let behind = head + MIB * (1 + self.dice.roll(40));
                (self.head, self.open) = ((n, behind), behind);
            }
        }
    }

    fn back_up(&mut self) {
        let (n, position) = self.head;
        let id = back_up(
            &mut self.catalog,
            1 + self.taken.len(),
            self.head,
            at(self.now),
        );
        self.taken.insert(id.clone(), (n, position, self.now));
        let events = &mut self.catalog.ids.get_mut(&id).unwrap().events;
        match self.dice.roll(8) {
            0 => events.push(event("damaged", at(self.now))),
            1 => events.push(event("pin", at(self.now))),
            2 => events.retain(|e| e.name == "begin"),
            _ => {}
        }
    }

    /// The history whose byte this is: of equal bytes the first one.
    fn owner(&self, mut n: usize, byte: u64) -> usize {
        while let Some((parent, _)) = self.parents[n].filter(|(_, fork)| byte < *fork) {
            n = parent;
        }
        n
    }

    /// Whether a history is that of a backup, or goes on from it behind the backup.
    fn leads(&self, (of, position, _): (usize, u64, u64), mut n: usize) -> bool {
        while n != of {
            match self.parents[n] {
                Some((parent, fork)) if position <= fork => n = parent,
                _ => return false,
            }
        }
        true
    }

    /// The bytes that are stored, in mebibytes, by their owners.
    fn stored(&self) -> BTreeSet<(usize, u64)> {
        let mut stored = BTreeSet::new();
        for n in 0..self.parents.len() {
            let history = self.log.0.get(&replid(n)).into_iter();
            for piece in history.flat_map(|history| &history.pieces) {
                let bytes = (piece.from..piece.to).step_by(usize::try_from(MIB).unwrap());
                stored.extend(bytes.map(|byte| (self.owner(n, byte), byte)));
            }
        }
        stored
    }

    /// The samples that can be reached from undamaged backups; with `by_log` those alone that lie behind one.
    fn reachable(&self, by_log: bool) -> BTreeSet<Passed> {
        let stored = self.stored();
        let is_good = |id: &BackupId| {
            let subject = self.catalog.ids.get(id);
            subject.is_some_and(|s| s.events.iter().all(|e| e.event.event != "damaged"))
        };
        let bases: Vec<_> = self.taken.iter().filter(|(id, _)| is_good(id)).collect();
        let leads = |base: &(usize, u64, u64), (n, to, _): &Passed| {
            let (_, position, _) = base;
            let mut bytes = (*position..*to).step_by(usize::try_from(MIB).unwrap());
            position + u64::from(by_log) <= *to
                && self.leads(*base, *n)
                && bytes.all(|b| stored.contains(&(self.owner(*n, b), b)))
        };
        let all = self.passed.iter().copied();
        all.filter(|sample| bases.iter().any(|(_, base)| leads(base, sample)))
            .collect()
    }

    /// The hour behind which moments are promised: that of the oldest backup which the rule keeps, or the beginning of the window.
    fn promised_since(&self) -> Option<u64> {
        let good = self.taken.iter().filter(|(id, _)| {
            let subject = self.catalog.ids.get(*id);
            let bad = ["damaged", "expire"];
            subject.is_some_and(|s| {
                s.events
                    .iter()
                    .all(|e| !bad.contains(&e.event.event.as_str()))
            })
        });
        let mut hours: Vec<u64> = good.map(|(_, (_, _, hour))| *hour).collect();
        hours.sort_unstable();
        match self.policy.rules.wal_window {
            Some(window) => Some(hours.last()?.saturating_sub(window.as_secs() / 3600)),
            None => {
                let last = self.policy.rules.last.unwrap_or(1) as usize;
                hours.get(hours.len().saturating_sub(last)).copied()
            }
        }
    }

    fn expire(&mut self, tally: &mut [u64; 3]) {
        if self.is_copied {
            for history in self.log.0.values_mut() {
                let pieces = history.pieces.iter_mut().map(|piece| &mut piece.object);
                for object in pieces.chain(&mut history.records) {
                    object.meta.modified = at(self.now);
                }
            }
            self.is_copied = false;
        }
        // The moment of a backup alone is promised by the rule that keeps it.
        let before = self.reachable(true);
        let since = self.promised_since();
        let plan = retention(&self.catalog, &self.log, &self.policy, at(self.now));
        let is_killed = self.dice.one_in(3);
        let count = match is_killed {
            true => usize::try_from(self.dice.roll(1 + plan.deletions.len() as u64)).unwrap(),
            false => usize::MAX,
        };
        let time = (count, at(self.now));
        apply(&mut self.catalog, &mut self.log, &plan, time);
        let after = self.reachable(false);
        for sample in before
            .iter()
            .filter(|(.., hour)| since.is_some_and(|s| *hour > s))
        {
            assert!(
                after.contains(sample),
                "{sample:?} of {since:?} is lost at hour {}: {:#?}",
                self.now,
                (&self.taken, &self.parents, &plan.log, &plan.backups)
            );
            tally[0] += 1;
        }
        tally[1] += plan
            .log
            .iter()
            .filter_map(|h| h.gone)
            .map(|g| g.objects)
            .sum::<u64>();
        tally[2] += plan
            .backups
            .iter()
            .filter(|b| b.reason.contains("reached"))
            .count() as u64;
        if !is_killed && plan.withheld.is_empty() {
            self.check_needed(&plan);
        }
    }

    /// Nothing stays that nobody needs.
    fn check_needed(&self, plan: &ExpirePlan) {
        let bounded: BTreeSet<_> = plan
            .backups
            .iter()
            .filter(|b| b.is_bounded)
            .map(|b| &b.id)
            .collect();
        let needers = self
            .taken
            .iter()
            .filter(|(id, _)| self.catalog.ids.contains_key(*id) && !bounded.contains(id));
        let needers: Vec<_> = needers.map(|(_, base)| base).collect();
        for (n, history) in
            (0..).map_while(|n| (n < self.parents.len()).then(|| (n, self.log.0.get(&replid(n)))))
        {
            let Some(history) = history else { continue };
            let end = history.bounds().map_or(0, |(_, to)| to);
            let leads = |base: &&(usize, u64, u64)| self.leads(**base, n);
            let first = needers
                .iter()
                .copied()
                .filter(leads)
                .map(|(_, p, _)| *p)
                .min();
            let newest = history.objects().map(|object| object.meta.modified).max();
            match first {
                Some(first) => {
                    let before = segment_of(first).min(segment_of(end.saturating_sub(1)));
                    assert!(
                        history.pieces.iter().all(|p| p.to > before),
                        "{n} before {before}: {:#?}",
                        plan.log
                    );
                }
                None => assert!(newest > Some(at(self.now.saturating_sub(DAY))), "{n} stays"),
            }
        }
    }
}

#[test]
fn x_random_servers_keep_the_log_that_the_rules_promise() {
    let mut tally = [0; 3];
    // The same numbers as for clusters: a server takes as long as fifty of their histories.
    let count = number_of("PITR_EXPIRY_HISTORIES", 20_000).div_ceil(50);
    let from = number_of("PITR_EXPIRY_FROM", 1);
    for seed in from..from + count {
        let lived = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            let mut tally = [0; 3];
            for _ in 0..10 + world.dice.roll(14) {
                let hours = 1 + world.dice.roll(30);
                world.pass(hours);
                match world.dice.roll(10) {
                    0..=4 => world.back_up(),
                    5 | 6 => world.happen(),
                    _ => world.expire(&mut tally),
                }
            }
            tally
        });
        let lived = lived.unwrap_or_else(|_| {
            panic!("server of seed {seed}: PITR_EXPIRY_FROM={seed} PITR_EXPIRY_HISTORIES=1")
        });
        tally
            .iter_mut()
            .zip(lived)
            .for_each(|(all, one)| *all += one);
    }
    // They are not all trivial: moments are promised, log goes, and backups stay for it.
    if count >= 100 {
        let each = [tally[0] / 100, tally[1] / 20, tally[2]];
        assert!(each.iter().all(|n| *n > count / 10), "{tally:?}");
    }
}
