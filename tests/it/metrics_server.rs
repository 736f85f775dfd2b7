//! `pitr metrics` tells of a cluster's server: its slots and its archiver.

use crate::common::{Cluster, Site, wait_until};
use crate::metrics::{metrics, site, value};
use crate::per_major;

fn slot(text: &str, family: &str, name: &str) -> Option<f64> {
    let series = format!("pitr_slot_{family}{{cluster=\"main\",slot=\"{name}\"}}");
    value(text, &series)
}

fn slots_tell_what_is_kept_for_them_and_what_was_lost(major: u32) {
    const SEGMENT: f64 = 1_048_576.0;
    let builder = Cluster::small(major);
    let builder = builder.config("max_slot_wal_keep_size", "4MB");
    let (site, cluster) = Site::with_cluster_of(builder);
    let pitr = site.pitr();
    assert!(!metrics(&pitr).contains("pitr_slot_"), "there is no slot");
    let client = cluster.client();
    for made in ["'kept', true", "'idle'", "'passing', true, true"] {
        client.sql(&format!(
            "select pg_create_physical_replication_slot({made})"
        ));
    }
    // The server is asked although there is no backup.
    let text = metrics(&pitr);
    let kept = slot(&text, "retained_bytes", "kept").unwrap();
    let safe = slot(&text, "safe_bytes", "kept").unwrap();
    assert!(kept < 2.0 * SEGMENT && safe > 2.0 * SEGMENT, "{text}");
    assert_eq!(slot(&text, "lost", "kept"), Some(0.0), "{text}");
    // The server keeps nothing for a slot that was never used. A temporary slot ends with its session, and has no series.
    for family in ["retained_bytes", "safe_bytes", "lost"] {
        assert_eq!(slot(&text, family, "idle"), None, "{family}\n{text}");
    }
    assert!(!text.contains("passing"), "{text}");

    cluster.sql("create table t (a int)");
    for _ in 0..2 {
        cluster.sql("insert into t values (1)");
        cluster.switch_wal();
    }
    let text = metrics(&pitr);
    let grown = slot(&text, "retained_bytes", "kept").unwrap();
    assert!(grown >= kept + SEGMENT, "{grown} after {kept}");
    assert!(slot(&text, "safe_bytes", "kept").unwrap() <= safe - SEGMENT);

    let lost = "select wal_status from pg_replication_slots where slot_name = 'kept'";
    wait_until("the slot is lost", || {
        cluster.sql("insert into t values (1)");
        cluster.switch_wal();
        cluster.sql("checkpoint");
        cluster.value(lost) == "lost"
    });
    let text = metrics(&pitr);
    assert_eq!(slot(&text, "lost", "kept"), Some(1.0), "{text}");
    assert_eq!(slot(&text, "safe_bytes", "kept"), None, "{text}");
}
per_major!(slots_tell_what_is_kept_for_them_and_what_was_lost, v13 v17 v18);

const RESTARTS: &str = "pitr_archiver_restarts_total{cluster=\"main\"}";

fn the_server_counts_its_archiver_and_looks_count_its_ends(major: u32) {
    let (site, mut cluster) = site(major);
    let pitr = site.pitr();
    let of = |text: &str, name: &str| {
        value(
            text,
            &format!("pitr_archive_{name}_total{{cluster=\"main\"}}"),
        )
    };
    cluster.sql("create table t (a int)");
    cluster.archive_now();
    wait_until("the server counts the file", || {
        of(&metrics(&pitr), "pushed") > Some(0.0)
    });
    let text = metrics(&pitr);
    assert_eq!(of(&text, "push_failures"), Some(0.0), "{text}");
    // PostgreSQL 13 shows no archiver: what is not known has no series.
    let is_seen = major >= 14;
    let none = is_seen.then_some(0.0);
    assert_eq!(value(&text, RESTARTS), none, "{text}");

    cluster.set("archive_command", "false");
    cluster.sql("insert into t values (1)");
    cluster.switch_wal();
    wait_until("the server counts failures", || {
        of(&metrics(&pitr), "push_failures") > Some(0.0)
    });
    assert_eq!(value(&metrics(&pitr), RESTARTS), none);
    if !is_seen {
        return;
    }
    // A status above 125 ends the archiver, and no failure is counted.
    cluster.set("archive_command", "exit 126");
    wait_until("the end of the archiver is seen", || {
        cluster.switch_wal();
        value(&metrics(&pitr), RESTARTS) > Some(0.0)
    });
    // One that ends with its server is another matter.
    cluster.sql("alter system reset archive_command");
    cluster.reload();
    cluster.archive_now();
    let before = value(&metrics(&pitr), RESTARTS);
    cluster.restart();
    cluster.archive_now();
    assert_eq!(value(&metrics(&pitr), RESTARTS), before);
}
per_major!(the_server_counts_its_archiver_and_looks_count_its_ends, v13 v17);

#[test]
fn a_role_without_rights_sees_slots_and_counts_and_no_process() {
    let (site, cluster) = Site::with_cluster(17);
    site.keep_state();
    cluster
        .sql("create role watcher login; select pg_create_physical_replication_slot('kept', true)");
    site.edit("user=postgres", "user=watcher");
    let text = metrics(&site.pitr());
    assert_eq!(slot(&text, "lost", "kept"), Some(0.0), "{text}");
    assert!(slot(&text, "retained_bytes", "kept").is_some(), "{text}");
    assert!(text.contains("pitr_archive_pushed_total{"), "{text}");
    assert_eq!(value(&text, RESTARTS), None, "{text}");
    cluster.sql("grant pg_monitor to watcher");
    let text = metrics(&site.pitr());
    assert_eq!(value(&text, RESTARTS), Some(0.0), "{text}");
}
