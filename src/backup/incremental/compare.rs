//! The prior's pages by their hashes: which of a file need not be stored again.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Prior, rewrite};
use crate::error::Result;
use crate::progress::Progress;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::frame::PAGE_BYTES;
use crate::snapshot::page_hashes::PageHashes;

const PAGE: u64 = PAGE_BYTES as u64;

/// The pages of a prior.
pub struct Compare<'p> {
    pub prior: &'p Prior<'p>,
    /// Packs of the prior whose pages are stored again.
    given_up: BTreeSet<usize>,
    hashes: PageHashes<'p, 'p>,
    progress: &'p dyn Progress,
    is_warned: AtomicBool,
}

impl<'p> Compare<'p> {
    /// Compares with `prior`, and tells `progress` which of its packs are given up.
    pub fn new(prior: &'p Prior<'p>, progress: &'p dyn Progress) -> Compare<'p> {
        let given_up = rewrite::choose(&prior.root.map.packs);
        if !given_up.is_empty() {
            progress.note(&format!(
                "packs of earlier backups that are given up: {}; what is visible of them is stored again, for a restore reads too much of them for nothing",
                given_up.len()
            ));
        }
        Compare {
            prior,
            given_up,
            hashes: prior.page_hashes(),
            progress,
            is_warned: AtomicBool::new(false),
        }
    }

    /// The pages of a file that lie in packs that are given up: runs of blocks, ascending.
    ///
    /// # Errors
    /// `Damaged` when the prior's map fails a check.
    pub fn stored_again(&self, file: &FileKey, length: u64) -> Result<Vec<Range<u64>>> {
        if self.given_up.is_empty() {
            return Ok(Vec::new());
        }
        let places = self.prior.snapshot.places(file, 0, length)?;
        let is_given_up = |pack: usize| self.given_up.contains(&pack);
        let given_up = places
            .iter()
            .filter(|place| place.at.is_some_and(|at| is_given_up(at.pack)));
        let runs = given_up
            .map(|place| place.position / PAGE..(place.position + place.length).div_ceil(PAGE));
        Ok(runs.collect())
    }

    /// Returns the hashes of the prior's pages of a file, without those in `again`. A damaged prior gives none, and
    /// the first time there is a warning.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn known(&self, file: &FileKey, again: &[Range<u64>]) -> Result<Vec<Option<u64>>> {
        let mut known = match self.hashes.of(file) {
            // All of it is stored then, and the prior is needed for it no more.
            Err(e) if e.is_damage() => {
                if !self.is_warned.swap(true, Ordering::Relaxed) {
                    self.progress.warn(&format!(
                        "files cannot be compared with the prior and are stored whole: {e}. pitr verify says what else is damaged"
                    ));
                }
                Vec::new()
            }
            known => known?,
        };
        for page in again.iter().flat_map(Range::clone) {
            if let Some(known) = usize::try_from(page).ok().and_then(|at| known.get_mut(at)) {
                *known = None;
            }
        }
        Ok(known)
    }
}
