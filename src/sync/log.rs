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
            let copied = self.copy_small(key, json::LIMIT_BYTES, &|bytes| {
                let kind = json::kind_of(bytes).unwrap_or_default();
                json::decode::<serde_json::Value>(key, &kind, bytes).map(|_| ())
            });
            self.settle(key.as_str(), copied)?;
        }
        let container = |key: &_| -> Result<()> {
            let copied = self.copy_container(key, &|container| log_keys::check(container, key));
            self.settle(key.as_str(), copied).map(|_| ())
        };
        self.side_by_side(&objects.containers, &container, &mut || self.check_stop())
    }
}
