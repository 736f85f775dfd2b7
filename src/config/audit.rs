//! `[audit]`: the log of who ran what.

use std::time::Duration;

/// For how long records are kept where nothing is configured: 13 months.
pub const KEEP: Duration = Duration::from_secs(400 * 24 * 3600);

/// Whether commands are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Records {
    /// None is.
    #[default]
    Off,
    /// Each is; one that cannot be recorded works all the same.
    On,
    /// A command that cannot be recorded in a repository does not begin.
    Required,
}

/// `[audit]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Whether commands are recorded.
    pub records: Records,
    /// For how long records are kept; none: [`KEEP`].
    pub keep: Option<Duration>,
}

impl Audit {
    /// For how long records are kept.
    pub fn keep(&self) -> Duration {
        self.keep.unwrap_or(KEEP)
    }
}
