//! The settings that recovery needs at least as high as the server had them that wrote the WAL.
//!
//! PostgreSQL: src/backend/access/transam/xlogrecovery.c, CheckRequiredParameterValues (13, 14: xlog.c). A hot standby with less stops with
//! FATAL when it starts; during replay 13 stops with FATAL, and later majors pause for ever.

use super::control::ControlSettings;
use super::xlog::ParameterChange;

const NAMES: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// The values of a server whose configuration does not set them. PostgreSQL 13 to 18:
/// src/backend/utils/misc/guc_tables.c (13 to 15: guc.c).
const DEFAULTS: [u32; 5] = [100, 8, 10, 0, 64];

/// Their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters([u32; 5]);

impl Parameters {
    /// Makes them from values in the order of pg_control.
    pub fn new(values: [i32; 5]) -> Parameters {
        Parameters(values.map(|v| v.max(0).cast_unsigned()))
    }

    /// The larger one of each.
    #[must_use]
    pub fn max(self, other: Parameters) -> Parameters {
        let mut values = self.0;
        for (value, other) in values.iter_mut().zip(other.0) {
            *value = (*value).max(other);
        }
        Parameters(values)
    }

    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        NAMES.into_iter().zip(self.0)
    }

    /// The values of a server in whose configuration none is set.
    pub fn defaults() -> Parameters {
        Parameters(DEFAULTS)
    }

    /// Whether a setting is one of them.
    pub fn is_name(name: &str) -> bool {
        NAMES.contains(&name)
    }
}

/// Reads them from a struct that has them under their names.
macro_rules! from_fields {
    ($($type:ty),*) => {$(
        impl From<&$type> for Parameters {
            fn from(p: &$type) -> Parameters {
                Parameters::new([
                    p.max_connections,
                    p.max_worker_processes,
                    p.max_wal_senders,
                    p.max_prepared_transactions,
                    p.max_locks_per_transaction,
                ])
            }
        }
    )*};
}
from_fields!(ParameterChange, ControlSettings);
