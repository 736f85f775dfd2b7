//! `pitr receive` against real servers: what is acknowledged, resuming, following a promotion, refusals.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pitr::pg::segment::SegmentSize;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::{
    Builder, Cluster, PATIENCE, Program, Running, Site, Stop, append, copy_tree, fault, user,
    wait_until,
};
use crate::per_major;
use crate::sealed::Sealed;

const SEGMENT: u64 = 1 << 20;

fn small(major: u32) -> Builder {
    Cluster::small(major)
}

/// WAL stays in pg_wal, to be compared with.
fn keeping(builder: Builder) -> Builder {
    builder.config("wal_keep_size", "1GB")
}

/// A running cluster without archiving, and a site whose configuration has a journal.
fn receiving(builder: Builder, settings: &str) -> (Site, Cluster) {
    let cluster = builder.start();
    let site = Site::new(&cluster);
    configure(&site, settings);
    (site, cluster)
}

fn configure(site: &Site, settings: &str) {
    let journal = site.sandbox().join("journal");
    site.add(&format!(
        "\n[clusters.main.receive]\njournal = \"{}\"\n{settings}\n",
        journal.display()
    ));
}

fn program(site: &Site) -> Program {
    site.pitr().words("receive --create-slot")
}

fn lsn(text: &str) -> u64 {
    text.parse::<pitr::pg::lsn::Lsn>().unwrap().0
}

/// Writes something, and returns where WAL ends then.
fn write_wal(cluster: &Cluster) -> String {
    cluster.sql("create table if not exists t (i int, x text); insert into t select i, repeat('x', 300) from generate_series(1, 500) i");
    cluster.value("select pg_current_wal_flush_lsn()")
}

/// Waits until the server knows that WAL up to `position` is safe.
fn wait_safe(running: &mut Running, cluster: &Cluster, position: &str) {
    let query = format!(
        "select coalesce(bool_or(restart_lsn >= '{position}'), false) from pg_replication_slots where slot_name = 'pitr'"
    );
    running.until("WAL is acknowledged", || cluster.value(&query) == "t");
}

/// Waits until the receiver holds its slot.
fn wait_streaming(running: &mut Running, cluster: &Cluster) {
    let query = "select count(*) from pg_stat_replication where state = 'streaming' and reply_time is not null and application_name = 'pitr'";
    running.until("it streams", || cluster.value(query) == "1");
}

fn stop(running: Running) -> crate::common::Run {
    running.ended_by(Signal::TERM)
}

/// Returns the receiver's last status.
fn status(site: &Site) -> Value {
    let journal = site.sandbox().join("journal");
    let inner = std::fs::read_dir(&journal)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let text = std::fs::read(inner.path().join("status.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Every byte that the server has from the start of the receiving to `end` is fetched from the repository, unless a segment's is not
/// complete.
fn check_repository(site: &Site, cluster: &Cluster, timeline: u32, from: u64, end: u64) {
    for number in from / SEGMENT..end / SEGMENT {
        let name = format!("{timeline:08X}{:08X}{:08X}", number >> 12, number & 0xFFF);
        let there = std::fs::read(cluster.pgdata().join("pg_wal").join(&name)).unwrap();
        let target = site.sandbox().join("fetched");
        let fetch = site.pitr().args(["wal", "fetch", &name]).arg(&target);
        wait_until("the segment is stored", || fetch.run().is_success());
        assert!(std::fs::read(&target).unwrap() == there, "{name} differs");
    }
}

fn w01_killed_it_goes_on_where_it_was(major: u32) {
    let (site, mut cluster) = receiving(
        keeping(small(major)).config("synchronous_standby_names", "pitr"),
        "",
    );
    let from = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
    let mut first = program(&site).spawn();
    // Commits return once they are safe: with nobody receiving, this one would wait for ever.
    let position = write_wal(&cluster);
    wait_safe(&mut first, &cluster, &position);
    first.ended_by(Signal::KILL);
    let mut second = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut second, &cluster, &position);
    let run = stop(second).success();
    assert!(run.stderr.contains("streaming from"), "{}", run.stderr);
    assert!(lsn(status(&site)["flushed_lsn"].as_str().unwrap()) >= lsn(&position));

    // A server that shuts down does not wait for longer than it takes to acknowledge its last record.
    let mut third = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut third, &cluster, &position);
    cluster.stop(Stop::Fast);
    cluster.start();
    let position = write_wal(&cluster);
    wait_safe(&mut third, &cluster, &position);
    stop(third).success();
    check_repository(&site, &cluster, 1, from, lsn(&position));
}
per_major!(w01_killed_it_goes_on_where_it_was, v13 v14 v19);

/// Returns where stored WAL of a timeline ends: in whole segments, or increments.
fn stored_end(site: &Site, timeline: u32) -> u64 {
    let prefix = format!("{timeline:08X}");
    let end = |file: &String, increments: bool| {
        let parts: Vec<&str> = file.split('/').collect();
        let at = parts.iter().position(|p| *p == "wal")?;
        if *parts.get(at + 1)? != prefix || increments != (parts.get(at + 2) == Some(&"open")) {
            return None;
        }
        let last = *parts.last()?;
        if increments {
            return u64::from_str_radix(last.split_once('-')?.1, 16).ok();
        }
        let number = |s: &str| u64::from_str_radix(s, 16).ok();
        (last.len() == 24).then_some(())?;
        Some(((number(&last[8..16])? << 12 | number(&last[16..])?) + 1) * SEGMENT)
    };
    let largest = |increments: bool| {
        let files = site.files();
        files.iter().filter_map(|f| end(f, increments)).max()
    };
    // Increments first: they go once their whole segment has come, which the second look then finds.
    largest(true).max(largest(false)).unwrap_or(0)
}

/// Connecting to two servers, whichever takes writes.
fn follow_primary(site: &Site, one: &Cluster, other: &Cluster) {
    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=primary",
        one.port(),
        other.port()
    );
    site.connect_by(&conninfo);
}

/// Restores to a position of a timeline, and returns how many rows are there.
fn rows_at(site: &Site, major: u32, timeline: &str, position: &str) -> String {
    let to = site.sandbox().join(format!("copy{timeline}"));
    site.pitr()
        .restore_to(&to)
        .args(["--target-timeline", timeline, "--target-lsn", position])
        .succeed();
    let mut copy = Cluster::open(major, &to).without_fsync().promoted();
    let rows = copy.value("select count(*) from t");
    copy.stop(Stop::Immediate);
    rows
}

/// W07: the history goes first, the old timeline is kept to its end, the new one begins with its first segment, and both can be
/// restored to: here to places in segments that never became whole.
fn w07_a_promotion_is_followed_without_a_gap(major: u32) {
    let (site, mut primary) = receiving(keeping(small(major)), "");
    let standby = keeping(Cluster::builder(major).standby_of(&primary).without_fsync()).start();
    follow_primary(&site, &primary, &standby);
    let from = lsn(&primary.value("select pg_current_wal_flush_lsn()"));
    let mut running = program(&site).spawn();
    wait_streaming(&mut running, &primary);
    site.pitr().words("backup --quiet").succeed();
    let before = write_wal(&primary);
    primary.sql("create table behind ()");
    let end = primary.value("select pg_current_wal_flush_lsn()");
    wait_safe(&mut running, &primary, &end);
    standby.wait_replayed(&end);
    primary.stop(Stop::Immediate);
    standby.promote();
    let after = write_wal(&standby);
    standby.sql("create table behind_too ()");
    let last = standby.value("select pg_current_wal_flush_lsn()");
    wait_safe(&mut running, &standby, &last);
    // The segments of both end somewhere, and what was safe is stored up to there.
    wait_until("both timelines are stored", || {
        stored_end(&site, 1) >= lsn(&end) && stored_end(&site, 2) >= lsn(&last)
    });
    let run = stop(running).success();
    assert!(!run.stderr.contains("lost"), "{}", run.stderr);
    let history = std::fs::read(standby.pgdata().join("pg_wal/00000002.history")).unwrap();
    let target = site.sandbox().join("history");
    let fetch = site.pitr().words("wal fetch 00000002.history").arg(&target);
    fetch.succeed();
    assert_eq!(std::fs::read(&target).unwrap(), history);
    let switch = switch_of(&history);
    check_repository(&site, &primary, 1, from, switch);
    check_repository(&site, &standby, 2, switch, lsn(&after));
    assert_eq!(rows_at(&site, major, "1", &before), "500");
    assert_eq!(rows_at(&site, major, "2", &after), "1000");
}
per_major!(w07_a_promotion_is_followed_without_a_gap);

/// W68: the server is promoted while the repository is away, and the receiver starts again behind that. No commit waits for the repository, and WAL of
/// the new timeline gets there behind its history.
#[test]
fn w68_a_promotion_is_followed_while_the_repository_is_away() {
    let (site, mut primary) = receiving(keeping(small(17)), "");
    let standby = keeping(Cluster::builder(17).standby_of(&primary).without_fsync()).start();
    follow_primary(&site, &primary, &standby);
    let mut running = program(&site).spawn();
    let before = write_wal(&primary);
    wait_safe(&mut running, &primary, &before);
    standby.wait_replayed(&before);
    let away = site.sandbox().join("away");
    std::fs::rename(site.repository(), &away).unwrap();
    primary.stop(Stop::Immediate);
    standby.promote();
    let after = write_wal(&standby);
    wait_safe(&mut running, &standby, &after);
    let run = running.ended_by(Signal::KILL);
    let told = "the history of timeline 2 waits in the journal";
    assert!(run.stderr.contains(told), "{run}");

    let mut running = program(&site).spawn();
    let last = write_wal(&standby);
    wait_safe(&mut running, &standby, &last);
    std::fs::rename(&away, site.repository()).unwrap();
    wait_until("both timelines are stored", || {
        stored_end(&site, 1) >= lsn(&before) && stored_end(&site, 2) >= lsn(&last)
    });
    let run = stop(running).success();
    assert!(!run.stderr.contains("lost"), "{run}");
    let history = std::fs::read(standby.pgdata().join("pg_wal/00000002.history")).unwrap();
    let target = site.sandbox().join("history");
    let fetch = site.pitr().words("wal fetch 00000002.history").arg(&target);
    fetch.succeed();
    assert_eq!(std::fs::read(&target).unwrap(), history);
}

/// The position in the only line of a history file.
fn switch_of(history: &[u8]) -> u64 {
    let text = String::from_utf8(history.to_vec()).unwrap();
    lsn(text.split_whitespace().nth(1).unwrap())
}

#[test]
fn w08_another_cluster_and_a_server_that_went_back_are_refused() {
    let (site, mut cluster) = receiving(small(15), "");
    let other = small(15).own_identifier().start();
    let own = std::fs::read_to_string(site.config()).unwrap();
    site.connect_by(&other.conninfo("postgres"));
    let run = program(&site).exits(8);
    let identifier = other.system_identifier().to_string();
    assert!(run.stderr.contains(&identifier), "{}", run.stderr);
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(other.value(slots), "0", "nothing is made there");

    std::fs::write(site.config(), own).unwrap();
    cluster.stop(Stop::Fast);
    let older = site.sandbox().join("older");
    copy_tree(cluster.pgdata(), &older);
    cluster.start();
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    stop(running).success();
    cluster.stop(Stop::Fast);
    std::fs::remove_dir_all(cluster.pgdata()).unwrap();
    copy_tree(&older, cluster.pgdata());
    cluster.start();
    let run = program(&site).exits(8);
    run.expect_stderr("the server went back");
}

#[test]
fn w10_a_second_receiver_is_refused() {
    let (site, cluster) = receiving(small(16), "");
    let mut running = program(&site).spawn();
    wait_streaming(&mut running, &cluster);
    let run = program(&site).exits(7);
    assert!(run.stderr.contains("journal"), "{}", run.stderr);
    // On another host, with a journal of its own, the slot is what they share.
    let elsewhere = site.sandbox().join("elsewhere");
    let run = program(&site)
        .env("PITR_CLUSTERS_MAIN_RECEIVE_JOURNAL", &elsewhere)
        .env("PITR_FAULT_SECONDS", "1")
        .exits(7);
    assert!(run.stderr.contains("is active for PID"), "{}", run.stderr);
    let drop = site.pitr().words("receive --drop-slot");
    drop.exits(7).expect_stderr("Stop the receiver or standby");
    stop(running).success();
    // The server lets go of it once it has seen the connection's end.
    let active = "select count(*) from pg_replication_slots where active";
    wait_until("the slot is free", || cluster.value(active) == "0");
    drop.succeed()
        .expect_stdout("dropped replication slot \"pitr\"");
    // A slot that is gone need not be dropped.
    drop.succeed()
        .expect_stdout("there is no replication slot \"pitr\"");
    let again = drop.arg("--json").succeed();
    assert_eq!(again.json()["dropped"], false, "{again}");
    let run = site.pitr().arg("receive").exits(2);
    run.expect_stderr("--create-slot");
}

/// Killed at any of these calls, it goes on byte-exact, and the server never heard more than what is there.
#[test]
fn w01_killed_at_any_system_call_it_goes_on() {
    let (site, cluster) = receiving(keeping(small(17)), "");
    let from = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
    let until = |position: &str| program(&site).args(["--until-lsn", position]);
    let mut position = write_wal(&cluster);
    until(&position).succeed();
    let mut fired = BTreeSet::new();
    let faults = [
        ("fdatasync", 1),
        ("fdatasync", 2),
        ("pwrite64,pwritev,pwritev2", 1),
        ("pwrite64,pwritev,pwritev2", 2),
        ("sendto", 1),
        ("sendto", 4),
        ("sendto", 12),
        ("recvfrom", 1),
        ("recvfrom", 9),
        ("recvfrom", 15),
        ("linkat", 1),
        ("renameat,renameat2,rename", 1),
    ];
    for (call, nth) in faults {
        position = write_wal(&cluster);
        let fault = fault::Fault::kill(call).at(nth);
        let (_, hits) = fault::inject(&until(&position), &fault);
        if hits > 0 {
            fired.insert(call);
        }
        let run = until(&position).arg("--json").succeed();
        let safe = run.json()["acknowledged_lsn"].as_str().map(lsn);
        assert!(safe >= Some(lsn(&position)), "{call} {nth}: {run}");
    }
    // How often a thread makes a call depends on the moment; that it makes each of them does not.
    assert_eq!(fired, faults.iter().map(|(call, _)| *call).collect());
    check_repository(&site, &cluster, 1, from, lsn(&position));
}

/// With `acknowledge = "repository"` a synchronous commit returns only when the repository has it.
#[test]
fn what_is_acknowledged_is_where_the_configuration_says() {
    let (site, cluster) = receiving(
        small(14).config("synchronous_standby_names", "pitr"),
        "acknowledge = \"repository\"",
    );
    let mut running = program(&site).spawn();
    wait_streaming(&mut running, &cluster);
    let client = cluster.client();
    client.sql("create table s (i int)");
    for i in 0..20 {
        client.sql(&format!("insert into s values ({i})"));
        // The commit's record ends at or before what was flushed when it returned; the insert position may be ahead of it by another's.
        let commit = client
            .value("select flush_lsn from pg_stat_replication where application_name = 'pitr'");
        assert!(
            stored_end(&site, 1) >= lsn(&commit),
            "{commit} is not stored"
        );
    }
    // Out of the repository's reach nothing is acknowledged, and nothing is lost.
    let away = site.sandbox().join("away");
    std::fs::rename(site.repository(), &away).unwrap();
    let late = cluster.client();
    let end = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&end);
    let commits = std::thread::spawn(move || {
        while !stopping.load(Ordering::Relaxed) {
            late.sql("insert into s values (-1)");
        }
    });
    wait_until("commits wait while the repository is away", || {
        let status = status(&site);
        let at = |field: &str| status[field].as_str().map(lsn);
        let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        status["repositories"][0]["last_error"].is_string()
            && at("flushed_lsn") > at("acknowledged_lsn")
            && cluster.value(waiting) == "1"
    });
    end.store(true, Ordering::Relaxed);
    assert!(
        !commits.is_finished(),
        "a commit returned with its WAL nowhere but here"
    );
    std::fs::rename(&away, site.repository()).unwrap();
    commits.join().unwrap();
    stop(running).success();
}

/// WAL that the server removed before it was received is named, recorded, and shown; streaming goes on after it.
#[test]
fn w06_a_lost_slot_is_refused_and_its_successor_names_the_gap() {
    let (site, cluster) = receiving(small(17).config("max_slot_wal_keep_size", "1MB"), "");
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    stop(running).success();
    let lost = "select wal_status from pg_replication_slots";
    wait_until("the slot is lost", || {
        cluster.switch_wal();
        cluster.sql("checkpoint");
        cluster.value(lost) == "lost"
    });
    let run = program(&site).exits(1);
    run.expect_stderr("error slot_lost");
    site.pitr().words("receive --drop-slot").succeed();
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    let run = stop(running).success();
    assert!(run.stderr.contains("is lost"), "{}", run.stderr);
    let gaps: Vec<String> = site.files();
    let is_gap = |file: &&String| file.contains("/events/wal-00000001/") && file.contains("-gap-");
    assert_eq!(gaps.iter().filter(is_gap).count(), 1, "{gaps:?}");
    let lost = "was lost before it was received";
    site.pitr().arg("info").run().expect_stdout(lost);
    site.pitr().arg("doctor").run().expect_stdout(lost);
}

/// A rebuilt standby comes before the primary, and has removed what was not received. The primary's slot keeps it.
fn behind_rebuilt_standby(site: &Site, primary: &Cluster) -> Cluster {
    let mut running = program(site).spawn();
    let position = write_wal(primary);
    wait_safe(&mut running, primary, &position);
    stop(running).success();
    for _ in 0..4 {
        write_wal(primary);
        primary.switch_wal();
    }
    primary.sql("checkpoint");
    let standby = primary.standby().start();
    connect_to(site, &standby, primary);
    standby
}

/// Connecting to two servers, the first one before the other.
fn connect_to(site: &Site, one: &Cluster, other: &Cluster) {
    site.connect_by(&format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres",
        one.port(),
        other.port()
    ));
}

/// W77: the primary is asked for what the standby has removed.
#[test]
fn w77_wal_that_one_of_several_servers_removed_is_asked_of_the_others() {
    let (site, primary) = receiving(small(17), "");
    let _standby = behind_rebuilt_standby(&site, &primary);
    let mut running = program(&site).spawn();
    let position = write_wal(&primary);
    wait_safe(&mut running, &primary, &position);
    let run = stop(running).success();
    assert!(!run.stderr.contains("is lost"), "{run}");
    assert!(run.stderr.contains("; trying again"), "{run}");
    site.pitr().words("wal gaps").succeed();
}

/// W77: the primary starts again while it is to be asked. The standby alone does not make it a gap.
#[test]
fn w77_one_that_is_away_for_a_moment_is_asked_before_a_gap_is_recorded() {
    let (site, mut primary) = receiving(small(17), "");
    let _standby = behind_rebuilt_standby(&site, &primary);
    primary.stop(Stop::Fast);
    let mut running = program(&site).spawn();
    wait_until("both were tried", || {
        assert!(!running.is_done(), "it ended: {}", running.stderr());
        running.stderr().matches("; trying again").count() >= 2
    });
    primary.start();
    let position = write_wal(&primary);
    wait_safe(&mut running, &primary, &position);
    let run = stop(running).success();
    assert!(!run.stderr.contains("is lost"), "{run}");
    site.pitr().words("wal gaps").succeed();
}

/// The primary removes WAL behind the journal's end, after its slot is dropped.
fn remove_unreceived(site: &Site, primary: &Cluster) {
    let active = "select count(*) from pg_replication_slots where active";
    wait_until("the slot is free", || primary.value(active) == "0");
    site.pitr().words("receive --drop-slot").succeed();
    let end = journal_end(site);
    for _ in 0..4 {
        write_wal(primary);
        primary.switch_wal();
    }
    let next = primary.value(&format!(
        "select pg_walfile_name('{end}'::pg_lsn + {SEGMENT})"
    ));
    let file = primary.pgdata().join("pg_wal").join(next);
    wait_until("WAL is removed", || {
        primary.switch_wal();
        primary.sql("checkpoint");
        !file.exists()
    });
}

fn journal_end(site: &Site) -> String {
    status(site)["flushed_lsn"].as_str().unwrap().to_owned()
}

/// Receives from the primary, and makes a standby meanwhile.
fn beside_standby(site: &Site, primary: &Cluster) -> Cluster {
    let mut running = program(site).spawn();
    let standby = primary.standby().start();
    let position = write_wal(primary);
    wait_safe(&mut running, primary, &position);
    stop(running).success();
    standby.wait_replayed(&journal_end(site));
    standby
}

/// Requires that the primary, which has removed WAL, is received from once its standby has given none for some time.
fn check_left_for_primary(site: &Site, primary: &Cluster, standby: &Cluster, why: &str) {
    connect_to(site, primary, standby);
    let mut running = program(site).env("PITR_FAULT_SILENCE_SECONDS", "5").spawn();
    let position = write_wal(primary);
    wait_safe(&mut running, primary, &position);
    let run = stop(running).success();
    run.expect_stderr(why)
        .expect_stderr("is lost")
        .expect_stderr("streaming from");
    let files = site.files();
    let is_gap = |file: &&String| file.contains("/events/wal-00000001/") && file.contains("-gap-");
    assert_eq!(files.iter().filter(is_gap).count(), 1, "{files:?}");
}

fn cut_off(standby: &Cluster) {
    standby.set("primary_conninfo", "");
    let receivers = "select count(*) from pg_stat_wal_receiver";
    wait_until("it is cut off", || standby.value(receivers) == "0");
}

/// W84: a partition cut off standby and receiver. The standby has what was received, and will never have more.
#[test]
fn w84_a_standby_that_gives_nothing_is_left_for_the_server_that_removed_wal() {
    let (site, primary) = receiving(small(17), "");
    let standby = beside_standby(&site, &primary);
    cut_off(&standby);
    remove_unreceived(&site, &primary);
    check_left_for_primary(&site, &primary, &standby, "has sent nothing behind");
}

/// W84: the standby gives a little of what the primary has removed, and then nothing.
#[test]
fn w84_a_standby_that_gives_only_a_part_is_left_as_well() {
    let (site, primary) = receiving(small(17), "");
    let standby = beside_standby(&site, &primary);
    let more = write_wal(&primary);
    standby.wait_replayed(&more);
    cut_off(&standby);
    remove_unreceived(&site, &primary);
    check_left_for_primary(&site, &primary, &standby, "has sent nothing behind");
}

/// A standby whose slot is in use by something else, which is returned, and a primary that has removed WAL.
fn beside_busy_standby(site: &Site, primary: &Cluster) -> (Cluster, Running) {
    let standby = beside_standby(site, primary);
    standby.sql("select pg_create_physical_replication_slot('pitr', true)");
    let other = Program::new(crate::common::newest_bin(17, "pg_receivewal"))
        .args(["--slot", "pitr", "-d", &standby.conninfo("postgres"), "-D"])
        .arg(site.sandbox().dir("other"))
        .spawn();
    let active = "select active from pg_replication_slots";
    wait_until("the slot is in use", || standby.value(active) == "t");
    remove_unreceived(site, primary);
    (standby, other)
}

/// W84: the slot on the standby is in use by something else.
#[test]
fn w84_a_standby_whose_slot_is_in_use_keeps_nobody_from_the_primary() {
    let (site, primary) = receiving(small(17), "");
    let (standby, other) = beside_busy_standby(&site, &primary);
    check_left_for_primary(&site, &primary, &standby, "is active for PID");
    other.ended_by(Signal::INT);
}

/// W84: each server refuses the login while removed WAL is sought. Only an operator can mend that, so the process ends once the search was in vain.
#[test]
fn w84_a_search_in_vain_ends_where_each_server_refuses_the_login() {
    let (site, primary) = receiving(small(17), "");
    let (standby, other) = beside_busy_standby(&site, &primary);
    connect_to(&site, &primary, &standby);
    let mut running = program(&site)
        .env("PITR_FAULT_SILENCE_SECONDS", "8")
        .spawn();
    wait_until("the standby was tried", || {
        assert!(!running.is_done(), "it ended: {}", running.stderr());
        running.stderr().contains("is active for PID")
    });
    for server in [&primary, &standby] {
        let rules =
            "local all all trust\nhost all all all reject\nhost replication all all reject\n";
        std::fs::write(server.pgdata().join("pg_hba.conf"), rules).unwrap();
        server.sql("select pg_reload_conf()");
    }
    let run = running.wait().expect_code(1);
    run.expect_stderr("; trying again")
        .expect_stderr("error denied");
    other.ended_by(Signal::INT);
}

/// W85: both have removed WAL. The first one, a rebuilt standby, has removed more.
#[test]
fn w85_what_one_of_several_servers_still_has_is_received() {
    let (site, primary) = receiving(small(17), "");
    let mut running = program(&site).spawn();
    let position = write_wal(&primary);
    wait_safe(&mut running, &primary, &position);
    stop(running).success();
    remove_unreceived(&site, &primary);
    primary.sql("select pg_create_physical_replication_slot('keep', true)");
    write_wal(&primary);
    let kept = primary.switch_wal();
    for _ in 0..4 {
        write_wal(&primary);
        primary.switch_wal();
    }
    primary.sql("checkpoint");
    let standby = primary.standby().start();
    assert!(!standby.pgdata().join("pg_wal").join(&kept).exists());
    connect_to(&site, &standby, &primary);
    let mut running = program(&site).spawn();
    let position = write_wal(&primary);
    wait_safe(&mut running, &primary, &position);
    let target = site.sandbox().join("fetched");
    let fetch = site.pitr().args(["wal", "fetch", &kept]).arg(&target);
    running.until("it is stored", || fetch.run().is_success());
    let run = stop(running).success();
    run.expect_stderr("is asked first").expect_stderr("is lost");
}

/// W79: the slot is lost while the receiver uses another one, as it does on another node. The server has all that is needed.
#[test]
fn w79_a_lost_slot_is_made_anew_where_nothing_is_missed() {
    let (site, cluster) = receiving(small(17).config("max_slot_wal_keep_size", "1MB"), "");
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    stop(running).success();
    let mut running = program(&site).words("--slot other").spawn();
    wait_streaming(&mut running, &cluster);
    let lost = "select wal_status from pg_replication_slots where slot_name = 'pitr'";
    // The other one has all of it before each checkpoint, and after the last.
    let wait_received = || {
        let end = cluster.value("select pg_current_wal_flush_lsn()");
        let query = format!(
            "select bool_or(restart_lsn >= '{end}') from pg_replication_slots where slot_name = 'other'"
        );
        wait_until("it has everything", || cluster.value(&query) == "t");
    };
    wait_until("the slot is lost", || {
        cluster.switch_wal();
        wait_received();
        cluster.sql("checkpoint");
        cluster.value(lost) == "lost"
    });
    wait_received();
    stop(running).success();
    // Without the option nothing is dropped.
    let run = site.pitr().arg("receive").exits(1);
    run.expect_stderr("error slot_lost");
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    let run = stop(running).success();
    assert!(
        run.stderr.contains("has what the journal ends with"),
        "{run}"
    );
    assert!(!run.stderr.contains("is lost"), "{run}");
    site.pitr().words("wal gaps").succeed();
}

/// W79: without an SQL connection the loss comes out as streaming begins. The other server is received from.
#[test]
fn w79_a_slot_whose_loss_sql_does_not_tell_keeps_nobody_from_the_other_server() {
    let builder = small(18)
        .hba("local all postgres trust\nlocal replication postgres,narrow trust\n")
        .config("max_slot_wal_keep_size", "1MB");
    let (site, primary) = receiving(builder, "");
    primary.sql("create role narrow login replication");
    let mut running = program(&site).spawn();
    let position = write_wal(&primary);
    wait_safe(&mut running, &primary, &position);
    let standby = primary.standby().config("wal_keep_size", "1GB").start();
    let position = write_wal(&primary);
    wait_safe(&mut running, &primary, &position);
    stop(running).success();
    let lost = "select wal_status from pg_replication_slots where slot_name = 'pitr'";
    wait_until("the slot is lost", || {
        primary.switch_wal();
        // The standby has no slot: it gets all of it before each checkpoint.
        standby.wait_replayed(&write_wal(&primary));
        primary.sql("checkpoint");
        primary.value(lost) == "lost"
    });
    site.connect_by(&format!(
        "host={},{} port={},{} user=narrow",
        primary.socket_dir().display(),
        standby.socket_dir().display(),
        primary.port(),
        standby.port()
    ));
    let mut running = program(&site).spawn();
    let position = write_wal(&primary);
    wait_safe(&mut running, &standby, &position);
    let run = stop(running).success();
    assert!(run.stderr.contains("; trying again"), "{run}");
    assert!(!run.stderr.contains("is lost"), "{run}");
    site.pitr().words("wal gaps").succeed();
}

/// W80: a slot on a server from which nobody receives would keep its WAL.
#[test]
fn w80_no_slot_is_made_on_a_server_that_went_back() {
    let (site, mut cluster) = receiving(small(17), "");
    cluster.stop(Stop::Fast);
    let older = site.sandbox().join("older");
    copy_tree(cluster.pgdata(), &older);
    cluster.start();
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    stop(running).success();
    cluster.stop(Stop::Fast);
    std::fs::remove_dir_all(cluster.pgdata()).unwrap();
    copy_tree(&older, cluster.pgdata());
    cluster.start();
    let slots = || cluster.value("select count(*) from pg_replication_slots");
    program(&site)
        .exits(8)
        .expect_stderr("the server went back");
    assert_eq!(slots(), "0");
    // Past the journal's end its WAL is another one.
    let held = lsn(status(&site)["flushed_lsn"].as_str().unwrap());
    while lsn(&cluster.value("select pg_current_wal_flush_lsn()")) <= held {
        cluster.sql("create table if not exists other (x text); insert into other select repeat('y', 300) from generate_series(1, 500)");
    }
    program(&site)
        .exits(8)
        .expect_stderr("server has other WAL");
    assert_eq!(slots(), "0");
}

/// W81: the key of a repository cannot be had. With a journal the receiver goes on, as it does while a repository is away.
#[test]
fn w81_a_receiver_that_starts_again_without_the_key_of_a_repository_receives() {
    let cluster = small(17).start();
    let sealed = Sealed::new(&cluster);
    append(
        sealed.config("writer"),
        &format!(
            "\n[clusters.main.receive]\njournal = \"{}\"\n",
            sealed.sandbox.join("journal").display()
        ),
    );
    let receive = sealed.on("writer").words("receive --create-slot");
    let mut running = receive.spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    stop(running).success();
    let key = std::path::PathBuf::from(sealed.key("writer"));
    let away = key.with_extension("away");
    std::fs::rename(&key, &away).unwrap();
    let mut running = receive.spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    std::fs::rename(&away, &key).unwrap();
    stop(running).success();
    let run = receive.args(["--until-lsn", &position, "--json"]).succeed();
    let archived = run.json()["archived_lsn"].as_str().map(lsn);
    assert!(archived >= Some(lsn(&position)), "{run}");
}

/// W82: the receiver cannot find out whether the server is on the cluster's timeline, and says so.
#[test]
fn w82_a_timeline_that_cannot_be_checked_is_told() {
    let (site, cluster) = receiving(small(17), "");
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    stop(running).success();
    let away = site.sandbox().join("away");
    std::fs::rename(site.repository(), &away).unwrap();
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    std::fs::rename(&away, site.repository()).unwrap();
    let run = stop(running).success();
    assert!(run.stderr.contains("timeline was not checked"), "{run}");
}

/// W83: behind a long absence many segments are looked for before the stream begins, and the service manager waits for that,
/// but not for ever: a boot waits for it.
#[test]
fn w83_the_unit_of_the_receiver_gives_it_time_to_start() {
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/packaging/systemd/pitr-receive.service"
    );
    let unit = std::fs::read_to_string(unit).unwrap();
    let has = |line: &str| unit.lines().any(|l| l == line);
    assert!(has("Type=notify") && has("TimeoutStartSec=30min"));
}

/// Row W62: the slot is gone, and the server has kept WAL for another reason. The gap ends where that begins, however little the role may read.
#[test]
fn w62_the_gap_behind_a_dropped_slot_ends_where_the_server_still_has_wal() {
    for role in ["postgres", "narrow"] {
        let builder = small(17)
            .hba("local all postgres trust\nlocal replication postgres,narrow trust\n")
            .config("wal_keep_size", "8MB")
            .config("max_wal_size", "2MB")
            .config("min_wal_size", "2MB");
        let (site, cluster) = receiving(builder, "");
        cluster.sql("create role narrow login replication");
        let conninfo = cluster.conninfo("postgres");
        site.connect_by(&conninfo.replace("user=postgres", &format!("user={role}")));
        let mut running = program(&site).spawn();
        let position = write_wal(&cluster);
        wait_safe(&mut running, &cluster, &position);
        stop(running).success();
        cluster.sql("select pg_drop_replication_slot('pitr')");
        for _ in 0..14 {
            cluster.sql("select pg_logical_emit_message(false, 'x', 'x'); select pg_switch_wal()");
        }
        cluster.sql("checkpoint; checkpoint");
        let kept = "select min(name) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'";
        let kept = cluster.value(kept);
        let mut running = program(&site).spawn();
        let position = write_wal(&cluster);
        wait_safe(&mut running, &cluster, &position);
        stop(running).success();
        let kept: pitr::pg::segment::SegmentName = kept.parse().unwrap();
        let kept = kept.start_lsn(SegmentSize::new(SEGMENT).unwrap()).unwrap();
        let gaps = site.pitr().words("wal gaps --json").run();
        let json = gaps.json().to_string();
        assert!(
            json.contains(&format!("\"{kept}\"")),
            "{role}: {kept} {gaps}"
        );
        let end = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
        check_repository(&site, &cluster, 1, kept.0, end);
    }
}

#[test]
fn missing_rights_are_named_with_what_grants_them() {
    let hba = "local all postgres trust\nlocal replication postgres,weak,narrow trust\n";
    let (site, cluster) = receiving(small(15).hba(hba), "");
    cluster.sql("create role weak login; create role narrow login replication");
    let conninfo = cluster
        .conninfo("postgres")
        .replace("user=postgres", "user=weak");
    assert!(conninfo.contains("user=weak"), "{conninfo}");
    site.connect_by(&conninfo);
    let run = program(&site).exits(1);
    assert!(run.stderr.starts_with("error denied: "), "{}", run.stderr);
    run.expect_stderr("ALTER ROLE weak REPLICATION;");
    // Without SQL the slot is looked up over the replication protocol: streaming does not depend on another connection.
    site.connect_by(&conninfo.replace("user=weak", "user=narrow"));
    let position = write_wal(&cluster);
    // A journal where this user may make none is one that somebody has to give.
    let journal = site.sandbox().join("journal");
    std::fs::remove_dir_all(&journal).unwrap();
    site.sandbox().dir("journal");
    std::fs::set_permissions(&journal, PermissionsExt::from_mode(0o500)).unwrap();
    let run = program(&site).exits(1);
    run.expect_stderr("sudo install -d -m 0700 -o ")
        .expect_stderr(&format!(" {}\n", journal.display()));
    std::fs::set_permissions(&journal, PermissionsExt::from_mode(0o700)).unwrap();
    program(&site).args(["--until-lsn", &position]).succeed();
}

/// A server that shuts down waits for what it sent to be safe: not for ever when it cannot be.
#[test]
fn a_shutdown_does_not_wait_for_a_repository_that_is_away() {
    let (site, mut cluster) = receiving(small(19), "acknowledge = \"repository\"");
    let mut running = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    let away = site.sandbox().join("away");
    std::fs::rename(site.repository(), &away).unwrap();
    wait_until("the outage is noticed", || {
        write_wal(&cluster);
        status(&site)["repositories"][0]["last_error"].is_string()
    });
    cluster.stop(Stop::Fast);
    std::fs::rename(&away, site.repository()).unwrap();
    cluster.start();
    let position = write_wal(&cluster);
    wait_safe(&mut running, &cluster, &position);
    let run = stop(running).success();
    assert!(
        run.stderr.contains("hung up, so that it can end"),
        "{}",
        run.stderr
    );
}

/// W09: two primaries. WAL that was received of the one that is left stays; the one of the higher timeline is followed,
/// and the other is not received from.
#[test]
fn w09_an_old_primary_that_comes_back_is_left_out() {
    let (site, mut primary) = receiving(keeping(small(16)), "");
    let mut standby = primary.standby().start();
    follow_primary(&site, &primary, &standby);
    let mut running = program(&site).spawn();
    let position = write_wal(&primary);
    wait_safe(&mut running, &primary, &position);
    // WAL from now on reaches the receiver, and not the standby.
    standby.stop(Stop::Fast);
    primary.switch_wal();
    let lonely = write_wal(&primary);
    wait_safe(&mut running, &primary, &lonely);
    primary.stop(Stop::Immediate);
    standby.start();
    standby.promote();
    let position = write_wal(&standby);
    wait_safe(&mut running, &standby, &position);
    wait_until("both ends are stored", || {
        stored_end(&site, 1) >= lsn(&lonely) && stored_end(&site, 2) >= lsn(&position)
    });
    let run = stop(running).success();
    let overhang = "the server's history leaves timeline 1 at ";
    assert!(run.stderr.contains(overhang), "{}", run.stderr);

    primary.start();
    write_wal(&primary);
    let mut running = program(&site).spawn();
    let position = write_wal(&standby);
    wait_safe(&mut running, &standby, &position);
    let run = stop(running).success();
    assert!(
        run.stderr.contains("has timeline 2 already"),
        "{}",
        run.stderr
    );
    // Alone, it is refused.
    site.connect_by(&primary.conninfo("postgres"));
    program(&site).exits(8).expect_stderr("error diverged");
}

/// W70: a standby that no longer follows comes first in the list. The primary behind it is received from.
#[test]
fn w70_a_standby_that_is_stuck_keeps_nobody_from_the_primary() {
    let (site, mut primary) = receiving(keeping(small(16)), "");
    let standby = primary.standby().start();
    let stuck = primary.standby().start();
    follow_primary(&site, &primary, &standby);
    let mut running = program(&site).spawn();
    let position = write_wal(&primary);
    wait_safe(&mut running, &primary, &position);
    standby.wait_replayed(&position);
    primary.stop(Stop::Immediate);
    standby.promote();
    let position = write_wal(&standby);
    wait_safe(&mut running, &standby, &position);
    wait_until("the new timeline is stored", || {
        stored_end(&site, 2) >= lsn(&position)
    });
    stop(running).success();

    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres",
        stuck.port(),
        standby.port()
    );
    site.connect_by(&conninfo);
    let mut running = program(&site).spawn();
    let position = write_wal(&standby);
    wait_safe(&mut running, &standby, &position);
    let run = stop(running).success();
    assert!(run.stderr.contains("has timeline 2 already"), "{run}");

    // Without its slot the primary is waited for, too.
    let is_free = "select not active from pg_replication_slots where slot_name = 'pitr'";
    wait_until("the slot is free", || standby.value(is_free) == "t");
    standby.sql("select pg_drop_replication_slot('pitr')");
    let position = write_wal(&standby);
    let mut running = site.pitr().arg("receive").spawn();
    wait_until("it says that there is no slot", || {
        assert!(!running.is_done(), "it ended: {}", running.stderr());
        running.stderr().contains("slot \"pitr\" does not exist")
    });
    standby.sql("select pg_create_physical_replication_slot('pitr', true)");
    wait_safe(&mut running, &standby, &position);
    stop(running).success();
}

/// The receiver notifies the service manager, an end can be asked for, and `pitr info` prints how far it is.
#[test]
fn it_runs_as_a_service_and_to_a_position() {
    let (site, cluster) = receiving(small(15), "");
    let socket = site.sandbox().join("notify");
    let service = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    user::own(&socket);
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    let running = program(&site).env("NOTIFY_SOCKET", &socket).spawn();
    let mut told = String::new();
    while !told.contains("READY=1") || !told.contains("STATUS=streaming from ") {
        let mut buffer = [0; 4096];
        let length = service.recv(&mut buffer).expect("systemd is told in time");
        told.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    let position = write_wal(&cluster);
    let shown = || -> Value {
        let run = site.pitr().words("info --json").run();
        run.json()["clusters"][0]["receiver"].clone()
    };
    let reached = |at: &Value| at.as_str().map(lsn) >= Some(lsn(&position));
    // The status is written once a second, and the repository may have it before the server gets the acknowledgement.
    wait_until("info shows it", || {
        let receiver = shown();
        reached(&receiver["archived_lsn"]) && reached(&receiver["acknowledged_lsn"])
    });
    let receiver = shown();
    assert_eq!(receiver["running"], true, "{receiver}");
    site.pitr()
        .arg("info")
        .run()
        .expect_stdout("receiver: streaming from ");
    stop(running).success();
    let run = site.pitr().arg("info").run();
    let run = run
        .expect_stdout("receiver: ended 20")
        .expect_stdout("warning: the receiver does not run, ended 20");
    assert!(!run.stdout.contains("streaming from"), "{run}");
    assert_eq!(shown()["running"], false);

    let position = write_wal(&cluster);
    let until = program(&site).args(["--until-lsn", &position, "--json"]);
    let answer = until.succeed().json();
    let archived = answer["archived_lsn"].as_str().map(lsn);
    assert!(archived >= Some(lsn(&position)), "{answer}");
    assert_eq!(
        (&answer["complete"], &answer["timeline"]),
        (&true.into(), &1.into())
    );
}
