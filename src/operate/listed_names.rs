//! The names that backups keep: each has a list of the relations that the server had then.

use std::collections::BTreeMap;

use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::find::catalogs::CatalogFiles;
use crate::find::event::{Event, Relation};
use crate::find::names::{Known, Names};
use crate::find::scan::FilesFrom;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::plan::base;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::relations;
use crate::repo::root::BackupRoot;
use crate::wal::inventory::{Backup, Inventory};

/// The lists of a cluster's backups, each read when it is first needed.
pub struct Lists<'a> {
    session: &'a Session,
    reading: &'a Reading,
    inventory: &'a Inventory,
    /// The way to the timeline that is looked at.
    history: History,
    layout: ClusterLayout,
    read: BTreeMap<BackupId, Option<Names>>,
}

/// A list, and what it has of a relation.
#[derive(Debug, Clone, Copy)]
pub struct Listed {
    /// The begin of its backup.
    pub from: Lsn,
    /// The relation's database.
    pub database: u32,
    /// The oid that it gives the relation; none where it does not have it.
    pub oid: Option<u32>,
}

impl<'a> Lists<'a> {
    /// The lists of these backups, on the way to a timeline.
    ///
    /// # Errors
    /// Those of [`Inventory::layout`] and [`Inventory::history`].
    pub fn new(
        session: &'a Session,
        reading: &'a Reading,
        inventory: &'a Inventory,
        timeline: TimelineId,
    ) -> Result<Lists<'a>> {
        Ok(Lists {
            history: inventory.history(timeline)?,
            layout: inventory.layout()?,
            session,
            reading,
            inventory,
            read: BTreeMap::new(),
        })
    }

    /// Returns the files that catalogs had at a position: those of the last list before it, from which on WAL tells of newer ones, and of the
    /// first one behind it.
    pub fn files_at(&mut self, lsn: Lsn) -> FilesFrom {
        let (mut files, mut from) = (CatalogFiles::default(), Lsn(0));
        let (before, behind) = self.around(lsn);
        for backup in before.into_iter().rev() {
            if let Some(names) = self.names(&backup.id) {
                files.add_all(&names.files);
                from = backup.start_lsn;
                break;
            }
        }
        for backup in behind {
            if let Some(names) = self.names(&backup.id) {
                files.add_all(&names.files);
                break;
            }
        }
        (files, from)
    }

    /// Adds to an event what is missing there, by the last backup before it that has it, else by the first one behind it. Returns false where the
    /// event is about an index or the like.
    pub fn complete(&mut self, event: &mut Event) -> bool {
        let is_complete = |event: &Event| {
            let database = event.database.as_ref().is_none_or(|d| d.name.is_some());
            database && event.relation.as_ref().is_none_or(Relation::is_named)
        };
        let (before, behind) = self.around(event.target_lsn);
        for backup in before.into_iter().rev().chain(behind) {
            if is_complete(event) {
                break;
            }
            if let Some(names) = self.names(&backup.id)
                && !names.complete(event)
            {
                return false;
            }
        }
        true
    }

    /// Returns the last list before an event that has its database.
    pub fn last_before(&mut self, event: &Event) -> Option<Listed> {
        let (database, relation) = (event.database.as_ref()?.oid, event.relation.as_ref()?);
        let (before, _) = self.around(event.target_lsn);
        before.into_iter().rev().find_map(|backup| {
            let names = self.names(&backup.id)?;
            names.has_database(database).then(|| Listed {
                from: backup.start_lsn,
                database,
                oid: names.oid(database, relation),
            })
        })
    }

    /// Whether the last list before an event and the first one behind it name it alike; `live` stands behind the last list.
    pub fn agree(&mut self, event: &Event, live: Option<&Names>) -> bool {
        let (before, behind) = self.around(event.target_lsn);
        let named = |names: Option<&Names>| {
            let mut named = event.clone();
            names?.complete(&mut named).then_some(named)
        };
        let before = before.last().and_then(|b| named(self.names(&b.id)));
        // A backup that was running then read its list before the event.
        let behind = behind.iter().find(|b| b.start_lsn >= event.target_lsn);
        let behind = match behind {
            Some(b) => named(self.names(&b.id)),
            None => named(live),
        };
        let is_complete = |e: &Event| {
            let database = e.database.as_ref().is_none_or(|d| d.name.is_some());
            database && e.relation.as_ref().is_none_or(|r| r.schema.is_some())
        };
        before.is_some_and(|e| is_complete(&e) && behind == Some(e))
    }

    /// Returns the tables, by schema and name, with their `relkind`: those of the last list before `since`, and of all later ones.
    pub fn tables(&mut self, since: Option<TimestampTz>) -> BTreeMap<String, char> {
        let (backups, _) = self.around(Lsn(u64::MAX));
        let first = since.and_then(|since| backups.iter().rposition(|b| b.stop_time <= since));
        let mut tables = BTreeMap::new();
        for backup in backups.into_iter().skip(first.unwrap_or_default()) {
            if let Some(names) = self.names(&backup.id) {
                tables.extend(names.tables());
            }
        }
        tables
    }

    /// The backups that end before a position, and those that end behind it, without those of timelines that do not have it.
    fn around(&self, lsn: Lsn) -> (Vec<&'a Backup>, Vec<&'a Backup>) {
        let holder = self.history.holder(lsn);
        let backups = self.inventory.backups.iter();
        let backups =
            backups.filter(|b| b.start_timeline == holder || base::lies_on(&self.history, b));
        backups.partition(|b| b.stop_lsn <= lsn)
    }

    fn names(&mut self, id: &BackupId) -> Option<&Names> {
        if !self.read.contains_key(id) {
            let names = self.load(id).unwrap_or_else(|e| {
                let note = format!("the list of relations of backup \"{id}\" cannot be read: {e}");
                self.session.warn(&note);
                None
            });
            self.read.insert(id.clone(), names);
        }
        self.read.get(id)?.as_ref()
    }

    fn load(&self, id: &BackupId) -> Result<Option<Names>> {
        let store = self.reading.repository.store();
        let root = BackupRoot::read(store, &self.layout, id)?;
        let Some(wanted) = root.and_then(|root| root.content.relations) else {
            return Ok(None);
        };
        let system_identifier = self.inventory.system_identifier;
        let listed = relations::read(store, (&self.layout, id), system_identifier, &wanted)?;
        Ok(listed.map(names_of))
    }
}

fn names_of(listed: relations::Listed) -> Names {
    let mut names = Names::default();
    for (database, relations) in listed {
        if let Some(name) = database.database {
            names.add_database(database.oid, name);
        }
        for relation in relations {
            let known = Known {
                oid: relation.oid,
                file: relation.file,
                schema: relation.schema,
                name: relation.name,
                kind: relation.kind,
            };
            names.add(database.oid, known);
        }
    }
    names
}
