//! Metrics of the audit log, as the commands of this host found it.

use super::exposition::{Exposition, families};
use super::{number, seconds};
use crate::operate::counters::{self, Counters};

families! {
    BROKEN: Gauge "pitr_audit_broken" "Records that were changed or removed, as the last pitr audit verify of this host found.";
    ANCHOR: Gauge "pitr_audit_last_anchor_timestamp_seconds" "Last anchor of this host that a repository has.";
    VERIFIED: Gauge "pitr_audit_last_verified_timestamp_seconds" "Last pitr audit verify of this host that read all repositories.";
}

/// Adds them.
pub(super) fn add(all: &mut Exposition, counters: &Counters) {
    let damage = counters.measured.get(counters::AUDIT_DAMAGE);
    all.add_known(&BROKEN, &[], damage.map(|count| number(*count)));
    let last = |command| counters.last(command, "").map(seconds);
    all.add_known(&ANCHOR, &[], last(counters::AUDIT_ANCHOR));
    all.add_known(&VERIFIED, &[], last(counters::AUDIT_VERIFY));
}
