//! Remembers which segments turned out to be damaged when they were decoded.
//!
//! An index may be right although the body behind it is not. Whoever decodes such a body learns it too late: the way was chosen
//! already. So the segment is noted, and everything is concluded anew, with WAL that ends before it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::err;
use crate::error::Result;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::timeline::TimelineId;
use crate::repo::wal_proof::RawHash;
use crate::wal::facts::{Crossing, Entry, Facts, NamedPoint, Wal};

/// More damaged segments than this are not looked for: each costs a conclusion.
const ATTEMPTS: usize = 64;

struct Noting<'a> {
    inner: &'a dyn Wal,
    damaged: RefCell<BTreeMap<SegmentName, String>>,
}

/// Concludes something about WAL; damage that only decoding shows is treated as damage that the index had told.
///
/// # Errors
/// Those of `conclude`.
pub fn with_proof<T>(wal: &dyn Wal, conclude: impl Fn(&dyn Wal) -> Result<T>) -> Result<T> {
    let noting = Noting {
        inner: wal,
        damaged: RefCell::default(),
    };
    let mut known = 0;
    for _ in 0..ATTEMPTS {
        let concluded = conclude(&noting);
        let now = noting.damaged.borrow().len();
        if now == known {
            return concluded;
        }
        known = now;
    }
    conclude(&noting)
}

impl Noting<'_> {
    fn check(&self, name: SegmentName) -> Result<()> {
        match self.damaged.borrow().get(&name) {
            Some(why) => Err(err!(Damaged, "{why}")),
            None => Ok(()),
        }
    }

    fn note<T>(&self, name: SegmentName, result: Result<T>) -> Result<T> {
        if let Err(e) = &result
            && e.is_lost()
        {
            let mut damaged = self.damaged.borrow_mut();
            damaged.entry(name).or_insert_with(|| e.to_string());
        }
        result
    }
}

impl Wal for Noting<'_> {
    fn prefetch(
        &self,
        timeline: TimelineId,
        first: SegmentNumber,
        last: SegmentNumber,
    ) -> Result<()> {
        self.inner.prefetch(timeline, first, last)
    }

    fn facts(&self, name: SegmentName) -> Result<Facts> {
        self.check(name)?;
        self.inner.facts(name)
    }

    fn crossing(&self, name: SegmentName, next: Option<SegmentName>) -> Result<Crossing> {
        self.inner.crossing(name, next)
    }

    fn may_end(&self, name: SegmentName, xid: u32) -> Result<bool> {
        self.note(name, self.inner.may_end(name, xid))
    }

    fn restore_points(&self, name: SegmentName) -> Result<Option<Vec<NamedPoint>>> {
        self.note(name, self.inner.restore_points(name))
    }

    fn scan(
        &self,
        name: SegmentName,
        next: &dyn Fn(SegmentName) -> Option<SegmentName>,
        visit: &mut dyn FnMut(&Entry),
    ) -> Result<()> {
        self.check(name)?;
        // The damage may be in a later segment, in which a record ends. This segment gets the blame all the same:
        // recovery ends in it.
        self.note(name, self.inner.scan(name, next, visit))
    }

    fn has_prefix(&self, name: SegmentName, length_bytes: u64, hash: RawHash) -> Result<bool> {
        self.inner.has_prefix(name, length_bytes, hash)
    }

    fn has_hash(&self, name: SegmentName, hash: RawHash) -> Result<bool> {
        self.inner.has_hash(name, hash)
    }

    fn confirm(&self, name: SegmentName) -> Result<()> {
        self.note(name, self.inner.confirm(name))
    }
}
