//! The unlogged relations that a stretch of WAL makes: those whose init fork it creates.
//!
//! A backup may have the main fork of such a relation without its init fork: PostgreSQL creates the init fork later, that of an index at the
//! end of the build. Recovery keeps this main fork, creates the init fork, and in the end copies it to the main fork, which must not exist.
//!
//! PostgreSQL: src/backend/storage/file/reinit.c (`ResetUnloggedRelationsInDbspaceDir`), src/backend/catalog/index.c (`index_build`).

use std::collections::BTreeSet;

use super::facts::{Crossing, Wal, flag};
use super::index::WalEvent;
use super::rollup::{CheckedBy, Rollup};
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::change::{self, Change};
use crate::pg::lsn::Lsn;
use crate::pg::record::{Fork, Record, Relation};
use crate::pg::segment::SegmentName;

/// Indexes are read by this many threads: reading waits for the store.
const READERS: usize = 8;

/// Tablespace, database, relation file number.
pub type RelationName = (u32, u32, u32);

/// WAL that a recovery replays.
pub struct Replayed<'a> {
    /// Answers about it.
    pub rollup: &'a Rollup<'a>,
    /// Its segments, in the order in which they are read.
    pub segments: Vec<SegmentName>,
    /// The end of the last record that is replayed.
    pub until: Lsn,
    /// The host that reads it.
    pub host: &'a Host,
}

/// The relations that records name.
#[derive(Default)]
struct Named {
    /// Relations whose init fork is created.
    created: BTreeSet<RelationName>,
    /// Relations whose main fork is changed or created, or whose files are removed.
    logged: BTreeSet<RelationName>,
    /// Tablespaces and databases whose files are removed.
    removed: BTreeSet<(u32, u32)>,
}

impl Replayed<'_> {
    /// Returns the relations whose init fork is created. Facts tell which indexes name any; only these are read.
    ///
    /// # Errors
    /// Errors of the store; `Interrupted`.
    pub fn created(&self) -> Result<BTreeSet<RelationName>> {
        for run in self.segments.chunk_by(|a, b| a.timeline == b.timeline) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                let size = self.rollup.size();
                self.rollup
                    .prefetch(first.timeline, first.number(size)?, last.number(size)?)?;
            }
        }
        let named = self.each(|name| {
            let mut named = match self.rollup.facts(*name)?.has(flag::INIT_FORKS) {
                true => self.named(*name)?,
                false => Named::default(),
            };
            self.add_crossing(*name, &mut named)?;
            Ok(named)
        })?;
        Ok(Named::all(named).created)
    }

    /// Returns the relations of `among` whose init fork is created, and that nothing else names: the main fork of an unlogged relation is never in
    /// WAL. A replay that removes a relation, or makes it anew, needs no help.
    ///
    /// # Errors
    /// Errors of the store; `Interrupted`.
    pub fn unlogged(&self, among: &BTreeSet<RelationName>) -> Result<BTreeSet<RelationName>> {
        let named = self.each(|name| {
            let mut named = self.named(*name)?;
            self.add_crossing(*name, &mut named)?;
            for blocks in self.rollup.blocks(*name)?.unwrap_or_default().0 {
                let (tablespace, database, number, fork) = blocks.fork;
                if fork == Fork::MAIN.0 {
                    named.logged.insert((tablespace, database, number));
                }
            }
            named.created.retain(|r| among.contains(r));
            named.logged.retain(|r| among.contains(r));
            Ok(named)
        })?;
        Ok(Named::all(named).unlogged())
    }

    /// Returns what each of the segments says; one that cannot be read says nothing.
    pub(super) fn each<T: Send>(
        &self,
        say: impl Fn(&SegmentName) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for said in self.host.parallel(READERS, &self.segments, say)? {
            match said {
                Ok(said) => all.push(said),
                Err(e) if e.is_damage() => {}
                Err(e) if matches!(e.code(), Code::Unsupported | Code::Key) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    fn add_crossing(&self, name: SegmentName, named: &mut Named) -> Result<()> {
        self.crossing(name, &mut |record| {
            if record.start_lsn < self.until {
                named.record(record);
            }
        })
    }

    /// Shows the record that begins in a segment and ends in the next one, where it makes or removes files. No index has its events.
    pub(super) fn crossing(
        &self,
        name: SegmentName,
        visit: &mut dyn FnMut(&Record<'_>),
    ) -> Result<()> {
        let size = self.rollup.size();
        let end = name.number(size)?.range(size).end;
        let may_be_one = || {
            Ok(self.rollup.facts(name)?.may_cross_event()
                && matches!(
                    self.rollup.crossing(name, self.next(name))?,
                    Crossing::Files | Crossing::Unknown
                ))
        };
        let read = may_be_one().and_then(|may_be_one| match may_be_one {
            true => self.records(name, &mut |record| {
                if record.end_lsn > end {
                    visit(record);
                }
            }),
            false => Ok(()),
        });
        match read {
            // Recovery does not come to the end of the record.
            Err(e) if e.is_damage() => Ok(()),
            other => other,
        }
    }

    /// Shows all records that begin in a segment.
    pub(super) fn records(
        &self,
        name: SegmentName,
        visit: &mut dyn FnMut(&Record<'_>),
    ) -> Result<()> {
        let next = |at| self.next(at);
        self.rollup.records(name, CheckedBy::Hash, &next, visit)
    }

    /// Returns the segment that recovery reads behind this one; none where that is not there.
    fn next(&self, name: SegmentName) -> Option<SegmentName> {
        let size = self.rollup.size();
        let number = name.number(size).ok()?.next();
        let mut all = self.segments.iter().skip_while(|at| **at != name).skip(1);
        let next = all.next().copied();
        next.filter(|next| next.number(size).is_ok_and(|n| n == number))
    }

    /// Returns the relations that the events of a segment name; its records tell where the index does not have them.
    fn named(&self, name: SegmentName) -> Result<Named> {
        let mut named = Named::default();
        match self.rollup.events(name)? {
            Some(events) => {
                let replayed = events.iter().filter(|(lsn, _)| *lsn < self.until);
                replayed.for_each(|(_, event)| named.event(event));
            }
            None => self.records(name, &mut |record| {
                if record.start_lsn < self.until {
                    named.record(record);
                }
            })?,
        }
        Ok(named)
    }
}

impl Named {
    fn event(&mut self, event: &WalEvent) {
        match event {
            WalEvent::Relation {
                action,
                spc,
                db,
                rel,
                fork,
                ..
            } => self.relation((*spc, *db, *rel), *action == 2, *fork),
            // Block by block (1) a database is made without removing what is there.
            WalEvent::Database {
                action, db, spc, ..
            } if *action != 1 => {
                self.removed.insert((*spc, *db));
            }
            _ => {}
        }
    }

    fn relation(&mut self, relation: RelationName, is_creation: bool, fork: u8) {
        match Fork(fork) {
            Fork::INIT if is_creation => self.created.insert(relation),
            Fork::MAIN => self.logged.insert(relation),
            _ => false,
        };
    }

    /// Adds what a record names; one that cannot be taken apart names nothing.
    fn record(&mut self, record: &Record<'_>) {
        let Ok(body) = record.body() else { return };
        let name = |r: &Relation| (r.tablespace, r.database, r.number);
        let _ = change::changes(record, &body, |change| match change {
            Change::Create { relation, fork } => self.relation(name(&relation), true, fork.0),
            Change::Block { relation, fork, .. } if fork == Fork::MAIN => {
                self.relation(name(&relation), false, fork.0);
            }
            Change::Truncate { relation, .. } | Change::Drop(relation) => {
                self.relation(name(&relation), false, Fork::MAIN.0);
            }
            Change::DatabaseCopy {
                database,
                tablespace,
                ..
            } => {
                self.removed.insert((tablespace, database));
            }
            Change::DatabaseDrop {
                database,
                tablespaces,
            } => {
                let all = tablespaces.iter().map(|tablespace| (tablespace, database));
                self.removed.extend(all);
            }
            _ => {}
        });
    }

    fn all(several: Vec<Named>) -> Named {
        let mut all = Named::default();
        for mut one in several {
            all.created.append(&mut one.created);
            all.logged.append(&mut one.logged);
            all.removed.append(&mut one.removed);
        }
        all
    }

    fn unlogged(mut self) -> BTreeSet<RelationName> {
        let (logged, removed) = (&self.logged, &self.removed);
        self.created.retain(|(spc, db, rel)| {
            !logged.contains(&(*spc, *db, *rel)) && !removed.contains(&(*spc, *db))
        });
        self.created
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    use crate::pg::craft::{self, Craft};
    use crate::pg::rmgr;
    use crate::pg::segment::SegmentNumber;
    use crate::pg::time::TimestampTz;
    use crate::pg::version::Major;
    use crate::repo::crafted;
    use crate::repo::layout::ClusterLayout;
    use crate::repo::repository::Repository;
    use crate::wal::crafted::{repository, store_as};
    use crate::wal::inventory::Inventory;
    use crate::wal::tablespaces::Made;

    const SEGMENT: usize = 1 << 20;
    const ONE: RelationName = (1663, 5, 16_384);
    const TWO: RelationName = (1663, 5, 16_385);

    fn relation(action: u8, (spc, db, rel): RelationName, fork: Fork) -> WalEvent {
        WalEvent::Relation {
            action,
            spc,
            db,
            rel,
            fork: fork.0,
            block: 0,
            xid: 7,
        }
    }

    fn database(action: u8, db: u32) -> WalEvent {
        WalEvent::Database {
            action,
            db,
            spc: 1663,
            xid: 7,
        }
    }

    #[test]
    fn t34_a_relation_is_left_out_that_wal_names_by_its_init_fork_alone() {
        let init = || relation(2, ONE, Fork::INIT);
        for (others, expected) in [
            (vec![], true),
            // Another relation, another database.
            (vec![relation(0, TWO, Fork::MAIN), database(2, 6)], true),
            // The other forks of an unlogged relation.
            (vec![relation(2, ONE, Fork::FSM)], true),
            // A database that is made block by block keeps what lies there.
            (vec![database(1, 5)], true),
            // The number was that of a permanent relation, or becomes that of one.
            (vec![relation(0, ONE, Fork::MAIN)], false),
            (vec![relation(1, ONE, Fork::MAIN)], false),
            (vec![relation(2, ONE, Fork::MAIN)], false),
            (vec![database(2, 5)], false),
            (vec![database(0, 5)], false),
        ] {
            for is_before in [true, false] {
                let mut named = Named::default();
                if !is_before {
                    named.event(&init());
                }
                others.iter().for_each(|event| named.event(event));
                if is_before {
                    named.event(&init());
                }
                let unlogged = named.unlogged();
                assert_eq!(unlogged.contains(&ONE), expected, "{others:?}");
                assert!(!unlogged.contains(&TWO));
            }
        }
        // Without a creation of the init fork nothing is.
        let mut named = Named::default();
        named.event(&relation(2, ONE, Fork::VM));
        assert!(named.unlogged().is_empty());
    }

    fn create(craft: &mut Craft, (spc, db, rel): RelationName, fork: Fork) -> Lsn {
        let numbers = [spc, db, rel, u32::from(fork.0)].map(u32::to_le_bytes);
        craft.main(rmgr::STORAGE, 0x10, 7, &numbers.concat()).1
    }

    /// A change of the first block of a main fork.
    fn change(craft: &mut Craft, relation: RelationName) {
        let block = craft::block_reference(0, Fork::MAIN.0, relation, 0, 0);
        let payload = [block, craft::main_data(&[0; 3])].concat();
        craft.record(rmgr::HEAP, 0x00, 7, &payload);
    }

    /// Three segments: `ONE` and `TWO` get their init forks in the first, the main fork of `TWO` is changed in the second, and a third relation
    /// gets its init fork in the last. Returns the positions behind the first record and behind all.
    fn wal() -> (Craft, Lsn, Lsn) {
        let mut craft = Craft::new(Major::V17);
        let first = create(&mut craft, ONE, Fork::INIT);
        create(&mut craft, TWO, Fork::INIT);
        craft.switch();
        change(&mut craft, TWO);
        craft.switch();
        let last = create(&mut craft, (1663, 5, 16_386), Fork::INIT);
        craft.switch();
        (craft, first, last)
    }

    fn name(craft: &Craft, number: u64) -> SegmentName {
        let size = craft.identity.segment_size;
        SegmentNumber(number).name(craft.timeline, size).unwrap()
    }

    /// The answer to `ask` about the three segments up to a position.
    fn asked<T>(
        (repository, craft): (&Repository, &Craft),
        until: Lsn,
        ask: impl Fn(&Replayed<'_>) -> Result<T>,
    ) -> T {
        let inventory = Inventory::read(repository, "main", None).unwrap();
        let rollup = Rollup::new(repository, &inventory, None).unwrap();
        let replayed = Replayed {
            rollup: &rollup,
            segments: (1..=3).map(|number| name(craft, number)).collect(),
            until,
            host: &Host::still(TimestampTz(0), 1),
        };
        ask(&replayed).unwrap()
    }

    #[test]
    fn t34_the_indexes_of_what_is_replayed_are_asked() {
        let (craft, first, last) = wal();
        let dir = tempfile::tempdir().unwrap();
        let repository = repository(dir.path(), &craft);
        let stored = (&repository, &craft);
        let created = |until| asked(stored, until, |r| r.created());
        assert_eq!(created(last).len(), 3);
        assert_eq!(created(first), BTreeSet::from([ONE]));
        assert!(created(craft.identity.start_lsn).is_empty());
        let among = BTreeSet::from([ONE, TWO]);
        let unlogged = |until| asked(stored, until, |r| r.unlogged(&among));
        assert_eq!(unlogged(last), BTreeSet::from([ONE]));
        assert!(unlogged(craft.identity.start_lsn).is_empty());
    }

    #[test]
    fn t64_a_record_that_crosses_the_end_of_a_segment_makes_files_too() {
        for left in [8, 24, 32] {
            let mut craft = Craft::new(Major::V17);
            let start = craft.position();
            craft.leave_of_segment(left);
            create(&mut craft, ONE, Fork::INIT);
            craft.leave_of_segment(left);
            let space = [&16_400_u32.to_le_bytes()[..], b"/space\0"].concat();
            let (made_at, _) = craft.main(rmgr::TABLESPACE, 0x00, 7, &space);
            craft.switch();
            let dir = tempfile::tempdir().unwrap();
            let repository = repository(dir.path(), &craft);
            let stored = (&repository, &craft);
            let all = Lsn(u64::MAX);
            assert_eq!(asked(stored, all, |r| r.created()), BTreeSet::from([ONE]));
            let among = BTreeSet::from([ONE]);
            assert_eq!(asked(stored, all, |r| r.unlogged(&among)), among);
            let made = |until| asked(stored, until, |r| r.tablespaces(start));
            let space = (16_400, PathBuf::from("/space"));
            assert_eq!(made(all), Made::from([space]), "{left}");
            assert_eq!(made(made_at), Made::new());
        }
    }

    #[test]
    fn t34_records_tell_what_an_index_does_not_and_damage_tells_nothing() {
        let (craft, _, last) = wal();
        let dir = tempfile::tempdir().unwrap();
        let (repository, registration) = crafted::create(dir.path(), &craft);
        for (n, segment) in (1..).zip(craft.bytes.chunks(SEGMENT)) {
            store_as(&repository, &craft, (n, segment), n < 3);
        }
        let layout = ClusterLayout::new("main", registration.system_identifier).unwrap();
        let third = dir.path().join(layout.segment(name(&craft, 3)).as_str());
        std::fs::remove_file(&third).unwrap();
        std::fs::write(&third, "no segment").unwrap();
        let among = BTreeSet::from([ONE, TWO]);
        let stored = (&repository, &craft);
        assert_eq!(asked(stored, last, |r| r.created()), among);
        let unlogged = asked(stored, last, |r| r.unlogged(&among));
        assert_eq!(unlogged, BTreeSet::from([ONE]));
    }
}
