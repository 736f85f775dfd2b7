//! The version of this build.

/// The number of the release.
pub const NUMBER: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, where the build said it (`make build`).
const COMMIT: Option<&str> = option_env!("PITR_COMMIT");

/// The number, and the commit where it is known: `0.1.0 (commit 2b3c4d5e6f70)`.
pub fn version() -> String {
    match COMMIT {
        Some(commit) if !commit.is_empty() => format!("{NUMBER} (commit {commit})"),
        _ => NUMBER.to_owned(),
    }
}
