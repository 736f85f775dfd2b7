//! What retention judges: one backup of any content, reduced to what decides about keeping.

use std::collections::BTreeMap;

use super::Fate;
use crate::pg::time::TimestampTz;
use crate::repo::event::Recorded;
use crate::repo::id::BackupId;
use crate::repo::runs::Runs;

/// Parts of backups, by the id that wrote them.
pub type Parts = BTreeMap<BackupId, Runs>;

/// A committed backup with what is decided about it.
pub struct Item<'a> {
    /// Its place among all items, oldest first; never by anybody's clock.
    pub order: usize,
    /// The backup.
    pub id: &'a BackupId,
    /// When it ended, by its own clock.
    pub time: TimestampTz,
    /// When the store received its root.
    pub stored: TimestampTz,
    /// Its events.
    pub events: &'a [Recorded],
    /// Layers and packs that it needs.
    pub needs: (&'a Parts, &'a Parts),
    /// What is wrong with it; it does not count then.
    pub damage: Option<String>,
    /// Why it stays.
    pub hold: Option<(String, Hold)>,
    /// A person asked for its deletion: it counts for nothing else.
    pub is_asked: bool,
    /// What becomes of it.
    pub fate: Fate,
}

/// Why a backup stays, as far as it matters to what others need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Retention: every point behind it is promised.
    Promise,
    /// Something else, a claim above all: everything behind it stays too.
    Window,
    /// A pin alone: it stays restorable to its end.
    Pin,
}

impl Item<'_> {
    /// Holds it for the rules of retention, if nothing holds it yet.
    pub fn hold(&mut self, reason: String) {
        let hold = match self.damage {
            None => Hold::Promise,
            Some(_) => Hold::Window,
        };
        self.hold.get_or_insert((reason, hold));
    }

    /// The same item, of which nothing is decided yet.
    pub fn undecided(&self) -> Self {
        Item {
            damage: self.damage.clone(),
            hold: None,
            is_asked: false,
            fate: Fate::Keep,
            ..*self
        }
    }

    /// Whether it still exists after the run.
    pub fn remains(&self) -> bool {
        self.fate != Fate::Delete
    }
}
