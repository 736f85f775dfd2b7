//! The rules that tiers need in a bucket, and those that are there.

use serde::Serialize;
use serde_json::Value;

use super::failures::{Failures, ShownError};
use super::session::Session;
use super::tiers;
use crate::config::{self, Location};
use crate::err;
use crate::error::Result;
use crate::store::s3::lifecycle::{Rules, needed};

/// The rules of one repository's bucket.
#[derive(Serialize)]
pub struct Checked {
    pub repository: String,
    /// The rules that its tiers need, as `aws s3api` takes them.
    pub needed: Value,
    /// Classes of tiers to which no rule of the bucket moves what is tagged.
    pub lacking: Vec<&'static str>,
    /// Effects of other rules on this repository.
    pub findings: Vec<String>,
    /// Rules of the bucket that are not pitr's, and that must stay when pitr's are put there.
    pub other_rule_count: usize,
    /// Why the rules of the bucket could not be read.
    pub error: Option<ShownError>,
}

impl Checked {
    /// Whether the bucket does what tiers need, and nothing else.
    pub fn is_good(&self) -> bool {
        self.lacking.is_empty() && self.findings.is_empty() && self.error.is_none()
    }
}

/// Reads the rules of every repository in an object store.
///
/// # Errors
/// `Config` where none lies in an object store.
pub fn check(session: &Session) -> Result<(Vec<Checked>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let (mut all, mut failures) = (Vec::new(), Failures::default());
    for configured in &settings.repositories {
        let Location::S3 { prefix, .. } = &configured.location else {
            continue;
        };
        let rules = rules(session, configured);
        let error = rules.as_ref().err().map(ShownError::from);
        let doing = format!("look at repository \"{}\"", configured.name);
        let known = failures.note(rules, doing).unwrap_or_default();
        all.push(Checked {
            repository: configured.name.clone(),
            needed: needed(&configured.s3, prefix),
            lacking: known.lacking.iter().map(|class| class.name()).collect(),
            findings: known.harmful.into_iter().chain(known.foreign).collect(),
            other_rule_count: known.others,
            error,
        });
    }
    match all.is_empty() {
        true => Err(err!(Config, "no repository lies in an object store")
            .hint("Only buckets have rules of a lifecycle.")),
        false => Ok((all, failures)),
    }
}

fn rules(session: &Session, configured: &config::Repository) -> Result<Rules> {
    // A place without a marker is somewhere else.
    session.open(configured)?;
    tiers::store(session, configured)?.rules()
}
