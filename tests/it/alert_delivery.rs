//! Further conditions of docs/agent.md, each provoked for real, and delivered to a server of HTTP and one of mail.

use std::time::Duration;

use crate::agent::Host;
use crate::alert_conditions::{Sink, examine, later, observe, site, watched};
use crate::backup_faults::damage;
use crate::common::mount::SmallDisk;
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Program, Site, Stop, copy_tree, keep_one, wait_until};
use crate::require_mounts;
use crate::rotation::Rotated;
use crate::s3_cycle::{Bucketed, Offline};
use crate::sealed::Sealed;

const DAY: u64 = 86_400;

#[test]
fn j16_commands_that_nobody_runs_any_more_are_medium() {
    let (site, cluster, sink) = site("");
    let ids = ["main/verify/stale", "main/expire/stale"];
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    let work = |days: u64| {
        let pitr = later(&site.pitr(), days * DAY);
        pitr.clone().words("verify --quiet").succeed();
        pitr.args(keep_one(&["--confirm", "--quiet"])).succeed();
    };
    work(0);
    observe(&later(&site.pitr(), 2 * DAY));
    ids.into_iter().for_each(|id| sink.expect(id, &[]));
    observe(&later(&site.pitr(), 9 * DAY));
    ids.into_iter()
        .for_each(|id| sink.expect(id, &[("new", "medium")]));
    work(9);
    observe(&later(&site.pitr(), 9 * DAY));
    ids.into_iter()
        .for_each(|id| sink.expect(id, &[("new", "medium"), ("resolved", "medium")]));
}

#[test]
fn j16_a_key_that_was_not_tried_for_40_days_is_medium() {
    let (sealed, cluster) = Sealed::archived(17);
    let sink = Sink::new();
    watched(
        &sealed.config("reader"),
        &sealed.sandbox.dir("state"),
        &sink,
    );
    let reader = sealed.on("reader");
    let run = |days: u64, args: &[&str]| {
        later(&reader, days * DAY).args(args).succeed();
    };
    run(0, &["backup", "--quiet"]);
    cluster.archive_now();
    run(0, &["verify", "--quiet"]);
    let id = "repository/local/key";
    observe(&later(&reader, 39 * DAY));
    sink.expect(id, &[]);
    observe(&later(&reader, 41 * DAY));
    sink.expect(id, &[("new", "medium")]);
    run(41, &["verify", "--quiet"]);
    observe(&later(&reader, 41 * DAY));
    sink.expect(id, &[("new", "medium"), ("resolved", "medium")]);
}

#[test]
fn j16_damaged_pages_are_critical_and_three_backups_without_an_end_are_medium() {
    let (site, mut cluster, sink) = site("");
    let backup = || site.pitr().words("backup --quiet");
    let (pages, incomplete) = ("main/backup/pages", "main/backup/incomplete");
    damage(&mut cluster, &[3, 900]);
    backup().exits(10);
    observe(&site.pitr());
    sink.expect(pages, &[("new", "critical")]);
    cluster.sql("drop table d");
    cluster.sql("checkpoint");
    backup().succeed();
    let claims = || {
        let is_claim = |file: &&String| file.contains("-full/") && file.contains("-claim-");
        site.files().iter().filter(is_claim).count()
    };
    for _ in 0..3 {
        observe(&site.pitr());
        sink.expect(incomplete, &[]);
        let before = claims();
        let running = backup().words("--max-rate 100KB").spawn();
        wait_until("the backup has claimed its id", || claims() > before);
        drop(running);
    }
    sink.expect(pages, &[("new", "critical"), ("resolved", "critical")]);
    wait_until("the kill is seen", || {
        observe(&site.pitr());
        sink.have_heard(incomplete)
    });
    sink.expect(incomplete, &[("new", "medium")]);
    let tidy = later(&site.pitr(), 2 * DAY);
    let expire = keep_one(&["--confirm", "--quiet"]);
    tidy.clone().args(expire).succeed();
    observe(&tidy);
    sink.expect(incomplete, &[("new", "medium"), ("resolved", "medium")]);
}

#[test]
fn j16_without_limits_backups_and_drills_that_come_no_more_reach_the_sinks() {
    let (site, cluster, sink) = site("");
    let (overdue, stale) = ("main/backup/overdue", "main/drill/stale");
    let backup = || {
        site.pitr().words("backup --quiet").succeed();
        cluster.archive_now();
    };
    let look = |hours: u64| observe(&later(&site.pitr(), hours * 3600));
    backup();
    let initdb = crate::common::bin(17, "initdb").unwrap();
    let drill = site.pitr().words("drill --quiet --bin");
    drill.arg(initdb.parent().unwrap()).succeed();
    look(25);
    sink.expect(overdue, &[]);
    look(27);
    sink.last(overdue, "new", "critical", "by the pauses before it");
    backup();
    look(25);
    let all = [("new", "critical"), ("resolved", "critical")];
    sink.expect(overdue, &all);
    sink.expect(stale, &[]);
    look(36 * 24);
    sink.last(overdue, "new", "critical", "old");
    sink.last(stale, "new", "medium", "was last proven");
    // A configured limit counts alone.
    site.add_to_cluster("max_backup_age = \"60d\"\nmax_drill_age = \"60d\"\n");
    look(36 * 24);
    sink.last(overdue, "resolved", "critical", "old");
    sink.expect(stale, &[("new", "medium"), ("resolved", "medium")]);
}

#[test]
fn j16_content_that_was_backed_up_each_week_is_overdue_after_a_week() {
    let sink = Sink::new();
    let host = Host::new(&sink.section());
    let id = "aux/files/up/backup/overdue";
    let at = |hours: u64| later(&host.pitr(), hours * 3600);
    for week in 0..2 {
        at(week * 7 * 24).words("files backup up --quiet").succeed();
    }
    observe(&at(14 * 24 + 1));
    sink.expect(id, &[]);
    observe(&at(14 * 24 + 3));
    sink.expect(id, &[("new", "critical")]);
}

/// A machine that is set back to a copy of it writes other WAL under names that the archive has.
#[test]
fn j16_a_refused_copy_and_a_file_that_blocks_archiving_are_critical() {
    let (site, mut cluster, sink) = site("");
    let (conflict, blocked) = ("main/archiving/conflict", "main/archiving/blocked");
    // pitr-archive notes there why it fails.
    let spool = site.sandbox().dir("spool");
    site.add_to_cluster(&format!("spool_dir = \"{}\"\n", spool.display()));
    site.pitr().words("backup --quiet").succeed();
    // A file waits in the copy, so that the one behind it is met by the worker that archives ahead.
    cluster.set("archive_command", "false");
    cluster.switch_wal();
    cluster.stop(Stop::Immediate);
    let copy = site.sandbox().join("copy");
    copy_tree(cluster.pgdata(), &copy);
    cluster.start();
    let archives = |cluster: &Cluster| {
        cluster.sql("alter system reset archive_command");
        cluster.reload();
    };
    archives(&cluster);
    cluster.sql("create table t as select 'first' a");
    cluster.archive_now();
    observe(&site.pitr());
    [conflict, blocked]
        .into_iter()
        .for_each(|id| sink.expect(id, &[]));
    cluster.stop(Stop::Immediate);
    std::fs::remove_dir_all(cluster.pgdata()).unwrap();
    copy_tree(&copy, cluster.pgdata());
    cluster.start();
    cluster.sql("create table t as select 'second' a");
    cluster.switch_wal();
    archives(&cluster);
    wait_until("a copy is refused", || {
        observe(&site.pitr());
        sink.have_heard(conflict)
    });
    sink.expect(conflict, &[("new", "critical")]);
    observe(&later(&site.pitr(), 1000));
    sink.last(blocked, "new", "critical", "archiving waits for");
    // The copy is no longer new, and the file waits on.
    observe(&later(&site.pitr(), 5000));
    sink.expect(conflict, &[("new", "critical"), ("resolved", "critical")]);
    sink.last(blocked, "new", "critical", "archiving waits for");
}

#[test]
fn j16_an_archiver_that_keeps_ending_and_a_setting_that_stops_archiving_are_critical() {
    let (site, cluster, sink) = site("");
    let (archiver, setting) = (
        "main/archiving/archiver",
        "main/doctor/server/archive_command",
    );
    observe(&site.pitr());
    cluster.set("archive_command", "exit 126");
    cluster.sql("create table t (a int)");
    wait_until("three of its ends are seen", || {
        cluster.sql("insert into t values (1)");
        cluster.switch_wal();
        observe(&site.pitr());
        sink.have_heard(archiver)
    });
    sink.expect(archiver, &[("new", "critical")]);
    sink.last(archiver, "new", "critical", "ended 3 times");
    examine(&site.pitr());
    observe(&site.pitr());
    sink.expect(setting, &[("new", "critical")]);
    cluster.sql("alter system reset archive_command");
    cluster.reload();
    cluster.archive_now();
    examine(&site.pitr());
    observe(&later(&site.pitr(), 1200));
    let all = [("new", "critical"), ("resolved", "critical")];
    [archiver, setting]
        .into_iter()
        .for_each(|id| sink.expect(id, &all));
}

/// Archiving fails, and the filesystem of `pg_wal` fills: by WAL, and by nothing else.
#[test]
fn j16_a_disk_of_pg_wal_that_fills_is_medium_and_then_critical() {
    require_mounts!("j16_a_disk_of_pg_wal_that_fills_is_medium_and_then_critical");
    let disk = SmallDisk::new(160, 4000);
    let mut cluster = Cluster::small(17)
        .config("max_wal_size", "4MB")
        .config("min_wal_size", "2MB")
        .create();
    let (wal, moved) = (cluster.pgdata().join("pg_wal"), disk.path().join("pg_wal"));
    copy_tree(&wal, &moved);
    std::fs::remove_dir_all(&wal).unwrap();
    std::os::unix::fs::symlink(&moved, &wal).unwrap();
    let (site, sink) = (Site::new(&cluster), Sink::new());
    site.attach(&cluster);
    watched(site.config(), &site.sandbox().dir("state"), &sink);
    cluster.start();
    let (full, space) = ("main/pg_wal/full", "main/doctor/pg_wal/space");
    cluster.set("archive_command", "false");
    let write = |megabytes: u32| {
        cluster.sql(&format!(
            "select pg_logical_emit_message(true, 'fill', repeat('x', 1 << 20)) from generate_series(1, {megabytes})"
        ));
    };
    let look = |minutes: u64| observe(&later(&site.pitr(), minutes * 60));
    look(0);
    write(10);
    look(5);
    sink.expect(full, &[]);
    write(6);
    look(15);
    sink.last(full, "new", "medium", "is full in");
    write(60);
    look(20);
    sink.last(full, "new", "critical", "the server stops");
    examine(&site.pitr());
    look(20);
    sink.expect(space, &[]);
    // The rest but a twentieth.
    let filler = disk.path().join("filler");
    let free = || {
        let stat = rustix::fs::statvfs(disk.path()).unwrap();
        usize::try_from(stat.f_bavail * stat.f_frsize).unwrap()
    };
    std::fs::write(&filler, vec![1_u8; free() - (8 << 20)]).unwrap();
    examine(&site.pitr());
    look(21);
    sink.last(space, "new", "medium", "free");
    std::fs::write(
        filler.with_extension("more"),
        vec![1_u8; free() - (3 << 20)],
    )
    .unwrap();
    examine(&site.pitr());
    look(22);
    sink.last(space, "new", "critical", "free");

    // Room is made, and what waited is archived.
    for name in ["filler", "filler.more"] {
        std::fs::remove_file(disk.path().join(name)).unwrap();
    }
    cluster.sql("alter system reset archive_command");
    cluster.reload();
    cluster.archive_now();
    cluster.sql("checkpoint");
    examine(&site.pitr());
    look(25);
    for id in [full, space] {
        sink.last(id, "resolved", "critical", "");
    }
}

#[test]
fn j16_a_host_that_seals_in_a_former_epoch_is_medium() {
    let (sealed, cluster) = Sealed::archived(17);
    let rotated = Rotated::of(&cluster, sealed);
    let (sealed, sink) = (&rotated.sealed, Sink::new());
    rotated.host(&cluster, "former", &sealed.key("writer"), None);
    watched(
        &sealed.config("former"),
        &sealed.sandbox.dir("state"),
        &sink,
    );
    let id = "main/doctor/repository/epoch";
    let look = || {
        examine(&sealed.on("former"));
        observe(&sealed.on("former"));
    };
    look();
    sink.expect(id, &[]);
    rotated.rotate("operator", "next").succeed();
    look();
    sink.expect(id, &[("new", "medium")]);
    // The host gets the file.
    let config = sealed.config("former");
    crate::common::edit(&config, &sealed.key("writer"), &rotated.writer("next"));
    look();
    sink.expect(id, &[("new", "medium"), ("resolved", "medium")]);
}

#[test]
fn j16_rules_of_a_bucket_that_delete_and_a_stores_clock_reach_the_sinks() {
    let (off, sink) = (Offline::new(""), Sink::new());
    watched(&off.config, &off.still.site.sandbox().dir("state"), &sink);
    let pitr: Program = crate::common::pitr().arg("--config").arg(&off.config);
    let (rules, clock) = ("main/doctor/repository/lifecycle", "repository/store/clock");
    observe(&pitr);
    examine(&pitr);
    observe(&pitr);
    [rules, clock]
        .into_iter()
        .for_each(|id| sink.expect(id, &[]));
    off.server().behave(|m| {
        m.lifecycle = Some("<Rule><ID>tidy</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule>".to_owned());
        m.clock_ahead = Duration::from_secs(300);
    });
    examine(&pitr);
    observe(&pitr);
    sink.last(rules, "new", "medium", "deletes objects after 30 days");
    sink.last(clock, "new", "medium", "ahead of this host's");
    let ahead = Duration::from_secs(1200);
    off.server().behave(|m| m.clock_ahead = ahead);
    observe(&pitr);
    sink.last(clock, "new", "critical", "ahead of this host's");
    off.server().behave(|m| {
        m.lifecycle = None;
        m.clock_ahead = Duration::ZERO;
    });
    examine(&pitr);
    observe(&pitr);
    sink.expect(rules, &[("new", "medium"), ("resolved", "medium")]);
    let all = [
        ("new", "medium"),
        ("new", "critical"),
        ("resolved", "critical"),
    ];
    sink.expect(clock, &all);
}

#[test]
fn j16_locked_bytes_that_grow_in_a_week_are_medium() {
    let mut cluster = Cluster::small(17).create();
    let lock = "object_lock = { mode = \"compliance\", period = \"1d\" }\n";
    let (site, sink) = (Bucketed::new(&cluster, Peer::locking(), lock), Sink::new());
    watched(&site.config, &site.sandbox.dir("state"), &sink);
    site.attach(&cluster);
    cluster.start();
    let id = "main/expire/locked";
    // The newest backup stays by the rules, and each one before it by the lock alone.
    let grow = |backups: usize| {
        for _ in 0..backups {
            site.backup();
        }
        cluster.archive_now();
        for _ in 0..2 {
            let expire = keep_one(&["--grace", "0s", "--confirm", "--quiet"]);
            site.pitr().args(expire).succeed();
        }
    };
    cluster.sql("create table t (a int)");
    grow(2);
    observe(&site.pitr());
    observe(&later(&site.pitr(), 6 * DAY));
    sink.expect(id, &[]);
    cluster.sql("insert into t values (1)");
    grow(1);
    observe(&later(&site.pitr(), 6 * DAY + 7200));
    sink.expect(id, &[]);
    observe(&later(&site.pitr(), 7 * DAY));
    sink.last(id, "new", "medium", "of a week ago");
    sink.expect(id, &[("new", "medium")]);
}
