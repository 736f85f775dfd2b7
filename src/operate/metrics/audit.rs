//! Metrics of the audit log, as the commands of this host found it.

use super::exposition::{Exposition, Type};
use super::{Family, number, seconds};
use crate::operate::counters::{self, Counters};

const BROKEN: Family = (
    "pitr_audit_broken",
    Type::Gauge,
    "Records that were changed or removed, as the last pitr audit verify of this host found.",
);
const ANCHOR: Family = (
    "pitr_audit_last_anchor_timestamp_seconds",
    Type::Gauge,
    "Last anchor of this host that a repository has.",
);
const VERIFIED: Family = (
    "pitr_audit_last_verified_timestamp_seconds",
    Type::Gauge,
    "Last pitr audit verify of this host that read all repositories.",
);

/// Adds them.
pub(super) fn add(all: &mut Exposition, counters: &Counters) {
    let damage = counters.measured.get(counters::AUDIT_DAMAGE);
    all.add_known(&BROKEN, &[], damage.map(|count| number(*count)));
    let last = |command| counters.last(command, "").map(seconds);
    all.add_known(&ANCHOR, &[], last(counters::AUDIT_ANCHOR));
    all.add_known(&VERIFIED, &[], last(counters::AUDIT_VERIFY));
}
