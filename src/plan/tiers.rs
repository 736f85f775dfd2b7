//! Moves of objects to colder storage classes. Pure: backups, objects, tiers and the time are arguments.
//!
//! A pack's age is that of the newest backup that names it. A segment's age is that of the oldest backup that begins
//! behind it, or of the newest that needs it, if that is younger. Nothing moves that the newest backup of a line names,
//! for the next incremental builds on it, nor what a claimed backup names: a restore or an incremental reads it now.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{StorageClass, Tier, TierKind};
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::Parts;
use crate::repo::id::{BackupId, PartName};

/// Smaller objects stay: rules of a bucket leave them, and colder classes charge for this much of each.
pub const SMALL_BYTES: u64 = 128 << 10;

/// A backup, as far as it decides what is cold.
#[derive(Debug, Clone)]
pub struct Backup<'a> {
    pub id: &'a BackupId,
    /// When it ended.
    pub taken: TimestampTz,
    /// Backups of one line build on one another: a timeline, or a source of other content.
    pub line: String,
    /// Its place in the line.
    pub place: u64,
    /// Whether an incremental may build on it.
    pub is_good: bool,
    /// Whether somebody reads it, or builds on it, now.
    pub is_claimed: bool,
    /// Whether retention keeps it.
    pub stays: bool,
    /// Retention lets it go then at the earliest; none where that is not known.
    pub kept_until: Option<TimestampTz>,
    /// The packs that it names.
    pub packs: &'a Parts,
    /// The start of its replay; none of other content than clusters.
    pub start: Option<Start>,
}

/// The start of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The backup's timeline, and its ancestors.
    pub timelines: Vec<TimelineId>,
    /// The first segment that it needs.
    pub first: SegmentNumber,
}

/// An object that may move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: String,
    /// Its stored length.
    pub size_bytes: u64,
    /// Its storage class; none where pitr does not know it.
    pub class: Option<StorageClass>,
    pub content: Content,
}

/// The content of an object that may move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A pack.
    Pack(PartName),
    /// A whole segment of WAL.
    Segment(TimelineId, SegmentNumber),
}

impl Content {
    fn kind(&self) -> TierKind {
        match self {
            Content::Pack(_) => TierKind::Packs,
            Content::Segment(..) => TierKind::Wal,
        }
    }
}

/// The move of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub key: String,
    /// Its stored length.
    pub size_bytes: u64,
    pub kind: TierKind,
    pub from: StorageClass,
    /// The class that it moves to.
    pub to: StorageClass,
    /// The newest backup that names the pack.
    pub backup: Option<BackupId>,
    /// Retention may delete it before the time is over for which the class is paid at least.
    pub is_early: bool,
}

/// Objects, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

impl Sum {
    /// Adds an object.
    pub fn add(&mut self, size_bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(size_bytes);
    }
}

/// The moves, and the objects that are old enough and stay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TierPlan {
    /// The moves, by key.
    pub moves: Vec<Move>,
    /// Old enough, and needed by the newest backup of a line or by a claimed one.
    pub held: Sum,
    /// Old enough, and smaller than [`SMALL_BYTES`].
    pub small: Sum,
    /// Old enough, and named only by backups that retention lets go.
    pub leaving: Sum,
}

/// The needs of an object, from the backups.
struct Need<'a> {
    age: Duration,
    newest: Option<&'a Backup<'a>>,
    is_held: bool,
    is_leaving: bool,
    goes: Option<TimestampTz>,
}

/// Computes what moves.
pub fn plan(
    backups: &[Backup<'_>],
    objects: &[Stored],
    tiers: &[Tier],
    now: TimestampTz,
) -> TierPlan {
    let needs = Needs::new(backups, now);
    let mut plan = TierPlan::default();
    for object in objects {
        let need = match &object.content {
            Content::Pack(name) => needs.of_pack(name),
            Content::Segment(timeline, number) => needs.of_segment(*timeline, *number),
        };
        let Some((need, from)) = need.zip(object.class) else {
            continue;
        };
        let kind = object.content.kind();
        let due = tiers
            .iter()
            .filter(|t| t.kind == kind && t.after <= need.age);
        let to = due.map(|tier| tier.class).max();
        let Some(to) = to.filter(|to| from.leads_to(*to)) else {
            continue;
        };
        let size_bytes = object.size_bytes;
        let stays = [
            (need.is_leaving, &mut plan.leaving),
            (need.is_held, &mut plan.held),
            (size_bytes < SMALL_BYTES, &mut plan.small),
        ];
        if let Some((_, sum)) = stays.into_iter().find(|(stays, _)| *stays) {
            sum.add(size_bytes);
            continue;
        }
        let paid_until = now.saturating_add(to.least_stay());
        plan.moves.push(Move {
            key: object.key.clone(),
            size_bytes,
            kind,
            from,
            to,
            backup: need.newest.map(|backup| backup.id.clone()),
            is_early: need.goes.is_some_and(|goes| goes < paid_until),
        });
    }
    plan.moves.sort_by(|a, b| a.key.cmp(&b.key));
    plan
}

/// The backups, by what they need.
struct Needs<'a> {
    backups: &'a [Backup<'a>],
    /// By index: an incremental may build on the backup, or somebody reads it.
    held: Vec<bool>,
    /// The backups that name packs of an id.
    naming: BTreeMap<&'a BackupId, Vec<usize>>,
    now: TimestampTz,
}

impl<'a> Needs<'a> {
    fn new(backups: &'a [Backup<'a>], now: TimestampTz) -> Needs<'a> {
        let mut naming: BTreeMap<&BackupId, Vec<usize>> = BTreeMap::new();
        for (at, backup) in backups.iter().enumerate() {
            for id in backup.packs.keys() {
                naming.entry(id).or_default().push(at);
            }
        }
        let mut newest: BTreeMap<(&str, bool), u64> = BTreeMap::new();
        for backup in backups {
            // The newest of all, and the newest good one: which is the prior, a damaged backup does not decide.
            for is_good in [false, backup.is_good] {
                let place = newest.entry((&backup.line, is_good)).or_default();
                *place = backup.place.max(*place);
            }
        }
        let is_newest =
            |b: &Backup<'_>, is_good| newest.get(&(b.line.as_str(), is_good)) == Some(&b.place);
        let is_held =
            |b: &Backup<'_>| b.is_claimed || is_newest(b, false) || b.is_good && is_newest(b, true);
        Needs {
            held: backups.iter().map(is_held).collect(),
            naming,
            backups,
            now,
        }
    }

    fn age(&self, backup: &Backup<'_>) -> Duration {
        self.now.duration_since(backup.taken).unwrap_or_default()
    }

    fn get(&self, at: usize) -> Option<(&'a Backup<'a>, bool)> {
        Some((self.backups.get(at)?, *self.held.get(at)?))
    }

    /// None of a pack that no backup names: expiry deletes it.
    fn of_pack(&self, name: &PartName) -> Option<Need<'a>> {
        let number = SegmentNumber(name.number.into());
        let naming = self
            .naming
            .get(&name.id)?
            .iter()
            .filter_map(|at| self.get(*at));
        let names = |b: &Backup<'_>| b.packs.get(&name.id).is_some_and(|p| p.contains(number));
        let naming: Vec<_> = naming.filter(|(backup, _)| names(backup)).collect();
        let (newest, _) = naming.iter().max_by_key(|(backup, _)| backup.taken)?;
        let staying = || naming.iter().filter(|(backup, _)| backup.stays);
        let ends: Option<Vec<_>> = staying().map(|(backup, _)| backup.kept_until).collect();
        Some(Need {
            age: self.age(newest),
            newest: Some(*newest),
            is_held: naming.iter().any(|(_, is_held)| *is_held),
            is_leaving: staying().next().is_none(),
            goes: ends.and_then(|ends| ends.into_iter().max()),
        })
    }

    /// None of a segment behind the start of every backup.
    fn of_segment(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Need<'a>> {
        let all = (0..self.backups.len()).filter_map(|at| self.get(at));
        let on_it = all.filter_map(|(backup, is_held)| {
            let start = backup.start.as_ref()?;
            let is_on = start.timelines.contains(&timeline);
            is_on.then_some((backup, is_held, start.first <= number))
        });
        let (needing, behind): (Vec<_>, Vec<_>) = on_it.partition(|(.., needs)| *needs);
        let behind = behind.iter().map(|(backup, ..)| self.age(backup)).max()?;
        let needed = needing.iter().map(|(backup, ..)| self.age(backup)).min();
        Some(Need {
            age: needed.map_or(behind, |needed| needed.min(behind)),
            newest: None,
            is_held: needing.iter().any(|(_, is_held, _)| *is_held),
            is_leaving: false,
            goes: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::runs::Runs;
    use proptest::prelude::*;

    const DAY: u64 = 86_400;
    const NOW: TimestampTz = TimestampTz(1_000 * 86_400 * 1_000_000);

    fn days(n: u64) -> Duration {
        Duration::from_secs(n * DAY)
    }

    fn id(n: usize) -> BackupId {
        format!("20260101T000000Z-{n:06}-full").parse().unwrap()
    }

    fn tiers() -> Vec<Tier> {
        let all = [
            "30d:STANDARD_IA",
            "90d:GLACIER",
            "180d:DEEP_ARCHIVE",
            "60d:GLACIER_IR:wal",
        ];
        all.map(|text| text.parse().unwrap()).to_vec()
    }

    /// A generated backup; its packs are those of one it builds on, and its own.
    #[derive(Debug, Clone)]
    struct Made {
        id: BackupId,
        age_days: u64,
        line: u8,
        is_good: bool,
        is_claimed: bool,
        packs: Parts,
    }

    impl Made {
        fn backup(&self, place: usize) -> Backup<'_> {
            let number = u64::try_from(place).unwrap();
            let timeline = TimelineId::new(u32::from(self.line) + 1).unwrap();
            Backup {
                id: &self.id,
                taken: NOW.saturating_sub(days(self.age_days)),
                line: self.line.to_string(),
                place: number,
                is_good: self.is_good,
                is_claimed: self.is_claimed,
                stays: true,
                kept_until: None,
                packs: &self.packs,
                start: Some(Start {
                    timelines: vec![timeline],
                    first: SegmentNumber(10 * number),
                }),
            }
        }
    }

    fn backups(made: &[Made]) -> Vec<Backup<'_>> {
        made.iter().enumerate().map(|(n, m)| m.backup(n)).collect()
    }

    /// Histories from the oldest to the newest backup: each drops some packs of one before it in its line, and adds two.
    fn histories() -> impl Strategy<Value = Vec<Made>> {
        let one = (
            0..20u64,
            0..2u8,
            any::<bool>(),
            0..8u8,
            any::<u64>(),
            any::<prop::sample::Index>(),
        );
        prop::collection::vec(one, 1..12).prop_map(|steps| {
            let mut age: u64 = steps.iter().map(|s| 1 + s.0 * 2).sum();
            let mut made: Vec<Made> = Vec::new();
            for (n, (gap, line, is_good, claim, keep, prior)) in steps.into_iter().enumerate() {
                let same: Vec<&Made> = made.iter().filter(|m| m.line == line).collect();
                let mut packs = Parts::new();
                if !same.is_empty() {
                    for (id, runs) in &prior.get(&same).packs {
                        let numbers = runs.iter().flat_map(|(a, b)| a.0..=b.0);
                        let kept = numbers.filter(|n| keep >> (n % 60) & 1 == 1).collect();
                        packs.insert(id.clone(), Runs::from_numbers(kept));
                    }
                }
                packs.insert(id(n), Runs::from_numbers(vec![0, 1]));
                made.push(Made {
                    id: id(n),
                    age_days: age,
                    line,
                    is_good,
                    is_claimed: claim == 0,
                    packs,
                });
                age -= 1 + gap * 2;
            }
            made
        })
    }

    fn objects(made: &[Made]) -> Vec<Stored> {
        let pack = |n: usize, number: u32| Stored {
            key: format!("packs/{}/{number:06}", id(n)),
            size_bytes: SMALL_BYTES + u64::from(number),
            class: Some(StorageClass::Standard),
            content: Content::Pack(PartName { id: id(n), number }),
        };
        let segment = |line: u32, number: u64| Stored {
            key: format!("wal/{line}/{number:08}"),
            size_bytes: 16 << 20,
            class: Some(StorageClass::Standard),
            content: Content::Segment(TimelineId::new(line).unwrap(), SegmentNumber(number)),
        };
        let packs = (0..made.len()).flat_map(|n| [pack(n, 0), pack(n, 1)]);
        packs
            .chain((0..130).flat_map(|n| [segment(1, n), segment(2, n)]))
            .collect()
    }

    fn of(made: &[Made], objects: &[Stored], now: TimestampTz) -> TierPlan {
        plan(&backups(made), objects, &tiers(), now)
    }

    fn moved(objects: &[Stored], plan: &TierPlan) -> Vec<Stored> {
        let mut after = objects.to_vec();
        for object in &mut after {
            if let Some(one) = plan.moves.iter().find(|m| m.key == object.key) {
                object.class = Some(one.to);
            }
        }
        after
    }

    fn names(made: &Made, content: &Content) -> bool {
        match content {
            Content::Pack(part) => {
                let number = SegmentNumber(part.number.into());
                made.packs
                    .get(&part.id)
                    .is_some_and(|runs| runs.contains(number))
            }
            Content::Segment(..) => false,
        }
    }

    proptest! {
        #[test]
        fn nothing_moves_that_a_young_a_newest_or_a_claimed_backup_names(made in histories()) {
            let objects = objects(&made);
            let plan = of(&made, &objects, NOW);
            for one in &plan.moves {
                let object = objects.iter().find(|o| o.key == one.key).unwrap();
                let after = tiers().into_iter().find(|t| t.kind == one.kind && t.class == one.to).unwrap().after;
                for (n, backup) in made.iter().enumerate().filter(|(_, m)| names(m, &object.content)) {
                    prop_assert!(days(backup.age_days) >= after, "{} is young", backup.id);
                    prop_assert!(!backup.is_claimed, "{} is claimed", backup.id);
                    let later = |other: &&Made| other.line == backup.line;
                    prop_assert!(made[n + 1..].iter().any(|o| later(&o)), "{} is the newest", backup.id);
                    let good = made[n + 1..].iter().filter(later).any(|o| o.is_good);
                    prop_assert!(!backup.is_good || good, "{} may be built on", backup.id);
                }
            }
        }

        #[test]
        fn an_incremental_of_tomorrow_needs_nothing_that_moves_today(made in histories(), line in 0..2u8) {
            let plan = of(&made, &objects(&made), NOW);
            let prior = made.iter().rev().find(|m| m.line == line && m.is_good);
            for one in plan.moves.iter().filter(|m| m.kind == TierKind::Packs) {
                let part: PartName = one.key.strip_prefix("packs/").unwrap().parse().unwrap();
                prop_assert!(prior.is_none_or(|prior| !names(prior, &Content::Pack(part))));
            }
        }

        #[test]
        fn no_segment_moves_that_a_young_backup_begins_before(made in histories()) {
            let objects = objects(&made);
            let plan = of(&made, &objects, NOW);
            for one in plan.moves.iter().filter(|m| m.kind == TierKind::Wal) {
                let object = objects.iter().find(|o| o.key == one.key).unwrap();
                let Content::Segment(timeline, number) = object.content else { panic!() };
                let on_it = made.iter().enumerate().filter(|(_, m)| u32::from(m.line) + 1 == timeline.get());
                let (needing, behind): (Vec<_>, Vec<_>) =
                    on_it.partition(|(n, _)| 10 * u64::try_from(*n).unwrap() <= number.0);
                prop_assert!(needing.iter().all(|(_, m)| m.age_days >= 60 && !m.is_claimed));
                prop_assert!(behind.iter().any(|(_, m)| m.age_days >= 60));
            }
        }

        #[test]
        fn moves_go_to_colder_classes_only_and_happen_once(made in histories(), later in 0..400u64) {
            let objects = objects(&made);
            let plan = of(&made, &objects, NOW);
            prop_assert!(plan.moves.iter().all(|m| m.from.leads_to(m.to)));
            let after = moved(&objects, &plan);
            prop_assert!(of(&made, &after, NOW).moves.is_empty());
            let then = of(&made, &after, NOW.saturating_add(days(later)));
            prop_assert!(then.moves.iter().all(|m| m.from.leads_to(m.to)));
        }
    }

    fn one(age_days: u64, n: usize) -> Made {
        Made {
            id: id(n),
            age_days,
            line: 0,
            is_good: true,
            is_claimed: false,
            packs: [(id(n), Runs::from_numbers(vec![0, 1]))].into(),
        }
    }

    #[test]
    fn each_age_has_its_class_and_what_stays_is_counted() {
        let made = [one(200, 0), one(100, 1), one(40, 2), one(35, 3)];
        let all = objects(&made);
        let packs: Vec<_> = all
            .into_iter()
            .filter(|o| o.content.kind() == TierKind::Packs)
            .collect();
        let plan = of(&made, &packs, NOW);
        let classes: Vec<_> = plan.moves.iter().map(|m| m.to.name()).collect();
        let expected = [
            "DEEP_ARCHIVE",
            "DEEP_ARCHIVE",
            "GLACIER",
            "GLACIER",
            "STANDARD_IA",
            "STANDARD_IA",
        ];
        assert_eq!(classes, expected);
        assert_eq!(plan.moves[0].backup, Some(id(0)));
        assert_eq!(plan.held.objects, 2, "those of the newest");
    }

    #[test]
    fn small_objects_leaving_ones_and_unknown_classes_stay() {
        let made = [one(200, 0), one(1, 1)];
        let mut all = objects(&made);
        all.truncate(2);
        all[0].size_bytes = SMALL_BYTES - 1;
        all[1].class = None;
        let plan = of(&made, &all, NOW);
        assert_eq!((plan.moves.len(), plan.small.objects), (0, 1));
        let mut backups = backups(&made);
        backups[0].stays = false;
        all[1].class = Some(StorageClass::Standard);
        let plan = super::plan(&backups, &all, &tiers(), NOW);
        assert_eq!((plan.moves.len(), plan.leaving.objects), (0, 2));
    }

    #[test]
    fn a_move_is_early_when_retention_may_delete_before_the_class_is_paid() {
        let made = [one(200, 0), one(1, 1)];
        let all = objects(&made);
        let early = |until: Option<u64>| {
            let mut backups = backups(&made);
            backups[0].kept_until = until.map(|d| NOW.saturating_add(days(d)));
            super::plan(&backups, &all[..1], &tiers(), NOW).moves[0].is_early
        };
        assert_eq!(
            [Some(179), Some(181), None].map(early),
            [true, false, false]
        );
    }
}
