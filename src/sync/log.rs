//! The log of an aux scope, from one repository into another.

use super::Pair;
use crate::error::Result;
use crate::repo::json;
use crate::repo::log_keys::{self, Objects};

impl Pair<'_> {
    /// Copies objects of a log; what is wrong with one is taken down.
    ///
    /// # Errors
    /// Those of the stores; `Interrupted`.
    pub(super) fn copy_log(&self, objects: &Objects) -> Result<()> {
        for key in &objects.small {
            self.check_stop()?;
            let whole = |bytes: &[u8]| log_keys::check_small(key, bytes);
            let copied = self.copy_small(key, json::LIMIT_BYTES, &whole);
            self.settle(key.as_str(), copied)?;
        }
        let container = |key: &_| -> Result<()> {
            let copied = self.copy_container(key, &|container| log_keys::check(container, key));
            self.settle_some(key, copied)
        };
        self.side_by_side(&objects.containers, &container, &mut || self.check_stop())
    }
}
