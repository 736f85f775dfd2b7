//! Metrics of a cluster's server: its clock, its archiver and its replication slots.

use super::exposition::{Exposition, families};
use super::{flag, number};
use crate::operate::server_state::ServerState;
use crate::operate::tallies::Tallies;

families! {
    PUSHED: Counter "pitr_archive_pushed_total" "Files that archive_command took, as the server counts them.";
    PUSH_FAILURES: Counter "pitr_archive_push_failures_total" "Runs of archive_command that failed, as the server counts them.";
    RESTARTS: Counter "pitr_archiver_restarts_total" "How often looks of this host saw that the archiver of a server that goes on had ended.";
    UP: Gauge "pitr_server_up" "Whether the server of a cluster answers.";
    CLOCK: Gauge "pitr_server_clock_offset_seconds" "How far the clock of the server is ahead of this host's.";
    LAG: Gauge "pitr_replication_lag_seconds" "How old the newest commit is that a standby has replayed; 0 while it has everything.";
    SLOT_RETAINED: Gauge "pitr_slot_retained_bytes" "WAL that the server keeps for a replication slot.";
    SLOT_SAFE: Gauge "pitr_slot_safe_bytes" "WAL that may still follow before a replication slot can lose some.";
    SLOT_LOST: Gauge "pitr_slot_lost" "Whether a replication slot lost WAL that it was to keep.";
}

/// Adds a server that does not answer.
pub(super) fn silent(all: &mut Exposition, cluster: &str) {
    all.add(&UP, &[("cluster", cluster)], flag(false));
}

/// Adds what the server of a cluster told.
pub(super) fn add(
    all: &mut Exposition,
    (name, server): (&str, &ServerState),
    tallies: Option<&Tallies>,
) {
    let cluster = [("cluster", name)];
    all.add(&UP, &cluster, flag(true));
    if let Some(archiver) = &server.archiver {
        all.add(&PUSHED, &cluster, number(archiver.archived));
        all.add(&PUSH_FAILURES, &cluster, number(archiver.failed));
    }
    all.add_known(&CLOCK, &cluster, server.clock_offset_s);
    let lag = server.replay.as_ref().and_then(|replay| replay.lag_s);
    all.add_known(&LAG, &cluster, lag);
    let seen = tallies.and_then(|t| t.archivers.get(name));
    all.add_known(&RESTARTS, &cluster, seen.map(|seen| number(seen.restarts)));
    for slot in server.slots.iter().flatten() {
        let labels = [cluster[0], ("slot", slot.name.as_str())];
        let retained = slot.retained_bytes.map(number);
        all.add_known(&SLOT_RETAINED, &labels, retained);
        // Negative where the server has let go of its limit already.
        let safe = slot.safe_bytes.map(|bytes| match u64::try_from(bytes) {
            Ok(bytes) => number(bytes),
            Err(_) => -number(bytes.unsigned_abs()),
        });
        all.add_known(&SLOT_SAFE, &labels, safe);
        all.add_known(&SLOT_LOST, &labels, slot.is_lost.map(flag));
    }
}
