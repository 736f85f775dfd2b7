//! The receiver's journal and its disk: power cuts, failing syncs, no room.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pitr::journal::{Journal, Options};
use pitr::pg::segment::{SegmentName, SegmentSize};
use pitr::pg::time::TimestampTz;
use pitr::progress::Silent;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::common::fault::{self, Fault, Faulty};
use crate::common::mount::{PowerDisk, SmallDisk};
use crate::common::random::Random;
use crate::common::reception::{configure, lsn, make_synchronous, status};
use crate::common::{
    Builder, Cluster, Running, Site, Stop, copy_tree, number, paths_below, user, wait_until,
};
use crate::{require_mounts, require_root, require_strace};

const MAJOR: u32 = 17;
const SEGMENT: u64 = 1 << 20;

/// A cluster of small segments that keeps its WAL, and a site whose journal lies in `folder`.
fn receiving(folder: &Path, settings: &str) -> (Site, Cluster) {
    let builder: Builder = Cluster::small(MAJOR).config("wal_keep_size", "1GB");
    let cluster = builder.start();
    let site = Site::new(&cluster);
    configure(
        &site,
        &cluster.conninfo("postgres"),
        &folder.join("journal"),
    );
    site.add(settings);
    (site, cluster)
}

/// Starts the receiver, and lets commits wait for it once it streams.
fn start(site: &Site, cluster: &Cluster) -> Running {
    let mut running = site.pitr().words("receive --create-slot").spawn();
    running.until("the receiver streams", || {
        let sql = "select count(*) from pg_stat_replication where state = 'streaming' and reply_time is not null";
        cluster.value(sql) == "1"
    });
    make_synchronous(cluster);
    cluster.sql("set synchronous_commit = local; create table t (x text)");
    running
}

/// Writes so many bytes of WAL, about, in transactions that wait for nobody.
fn write_wal(cluster: &Cluster, bytes: u64) {
    let client = cluster.client();
    client.sql("set synchronous_commit = local");
    let end = lsn(&cluster.value("select pg_current_wal_insert_lsn()")) + bytes;
    while lsn(&cluster.value("select pg_current_wal_insert_lsn()")) < end {
        client.sql("insert into t select repeat('x', 1000) from generate_series(1, 100)");
    }
}

/// Commits small transactions that wait for nobody, until it is dropped.
struct Writing {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writing {
    fn start(cluster: &Cluster) -> Writing {
        let stop = Arc::new(AtomicBool::new(false));
        let client = cluster.client();
        client.sql("set synchronous_commit = local");
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                client.sql("insert into t values ('local')");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        let thread = Some(thread);
        Writing { stop, thread }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether the server knows that everything it has flushed is safe.
fn is_safe(cluster: &Cluster) -> bool {
    cluster.value(
        "select coalesce(bool_and(flush_lsn >= pg_current_wal_flush_lsn()), false) from pg_stat_replication",
    ) == "t"
}

fn wait_for_words(running: &mut Running, words: &str) {
    wait_until(words, || {
        let said = running.stderr();
        assert!(!running.is_done(), "it ended: {said}");
        said.contains(words)
    });
}

/// Checks that the journal holds the WAL that the server wrote; returns its end.
fn check_journal(folder: &Path, cluster: &Cluster) -> u64 {
    let options = Options {
        directory: folder.join("journal"),
        system_identifier: cluster.system_identifier(),
        segment_size: SegmentSize::new(SEGMENT).unwrap(),
        limit_bytes: None,
        is_mended: true,
        nonce: 1,
        now: TimestampTz(0),
    };
    let journal = Journal::open(&options, Arc::new(Silent)).unwrap();
    let follower = journal.follower();
    for segment in follower.segments() {
        let length = usize::try_from(segment.to.0 - segment.from.0).unwrap();
        let mut held = vec![0; length];
        let mut frames = follower.open(segment.name).unwrap();
        let mut at = 0;
        while at < length {
            let n = frames.read(&mut held[at..]).unwrap();
            assert!(n > 0, "{} ends at {at}", segment.name);
            at += n;
        }
        let there = std::fs::read(wal_file(cluster, segment.name)).unwrap();
        assert!(there[..length] == held, "{} differs", segment.name);
    }
    let end = journal.held().last().map_or(0, |h| h.to.0);
    drop(follower);
    journal.close().unwrap();
    // A child that another test starts just then may hold the lock with us, up to its exec.
    let lock = folder
        .join("journal")
        .join(cluster.system_identifier().to_string())
        .join("lock");
    wait_until("the journal is unlocked", || {
        let file = std::fs::File::open(&lock).unwrap();
        let free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        // Not by closing it: the same may happen to this descriptor.
        let _ = flock(&file, FlockOperation::Unlock);
        free
    });
    end
}

fn wal_file(cluster: &Cluster, name: SegmentName) -> PathBuf {
    cluster.pgdata().join("pg_wal").join(name.to_string())
}

#[test]
fn w02_after_a_power_cut_all_that_was_acknowledged_is_in_the_journal() {
    require_root!("w02_after_a_power_cut_all_that_was_acknowledged_is_in_the_journal");
    let disk = PowerDisk::new(64);
    let (site, cluster) = receiving(disk.path(), "");
    let running = start(&site, &cluster);
    for round in 0..3 {
        // Some rounds cross a segment's end.
        write_wal(&cluster, round * SEGMENT * 3 / 4);
        cluster.sql("insert into t values ('synchronous')");
    }
    let reported = lsn(&cluster.value("select flush_lsn from pg_stat_replication"));
    disk.shut_down();
    // The receiver notices at its next write, and ends.
    let run = {
        let _writing = Writing::start(&cluster);
        running.wait()
    };
    run.expect_code(1);
    disk.restore_power();
    let held = check_journal(disk.path(), &cluster);
    assert!(
        held >= reported,
        "{held:X} is held, {reported:X} was reported"
    );
    user::own_all(&disk.path().join("journal"));

    let running = start_again(&site, &cluster);
    cluster.sql("insert into t values ('synchronous')");
    running.ended_by(Signal::TERM).success();
}

/// Stops a receiver, and starts another whose syncs of files are held: what is acknowledged before its sync is not on the disk for seconds.
fn restart_held(site: &Site, stopped: Running) -> Faulty {
    stopped.ended_by(Signal::TERM).success();
    let hold = Fault::delay("fdatasync", std::time::Duration::from_secs(10));
    Faulty::held(&site.pitr().arg("receive"), &hold)
}

/// Waits until the receiver has reported `position` as safe to the server. Then it compares what the medium holds for
/// certain at that moment.
fn check_once_acknowledged(
    mut disk: PowerDisk,
    cluster: &Cluster,
    mut faulty: Faulty,
    position: u64,
) {
    let told = "select coalesce(max(flush_lsn), '0/0') from pg_stat_replication";
    let mut reported = 0;
    wait_until("it is acknowledged", || {
        assert!(
            !faulty.running.is_done(),
            "it ended: {}",
            faulty.running.stderr()
        );
        reported = lsn(&cluster.value(told));
        reported >= position
    });
    let (at, fired) = (disk.position(), faulty.fired());
    faulty.kill();
    let recording = disk.end_recording();
    // Nothing gets there that was not flushed.
    disk.boot(&recording.cut(recording.flushed(at)..at, |_| false));
    let held = check_journal(disk.path(), cluster);
    assert!(
        held >= reported,
        "{held:X} is held, {reported:X} was reported"
    );
    assert!(fired >= 1, "no sync was held");
}

#[test]
fn w02_what_is_acknowledged_is_on_the_disk_by_then() {
    require_root!("w02_what_is_acknowledged_is_on_the_disk_by_then");
    require_strace!("w02_what_is_acknowledged_is_on_the_disk_by_then");
    let disk = PowerDisk::recorded(32);
    let (site, cluster) = receiving(disk.path(), "");
    let running = start(&site, &cluster);
    cluster.sql("insert into t values ('synchronous')");
    let faulty = restart_held(&site, running);
    write_wal(&cluster, 1);
    let position = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
    check_once_acknowledged(disk, &cluster, faulty, position);
}

/// A receiver that was killed has written what it had not synced.
#[test]
fn w02_a_recovered_journal_is_on_the_disk_before_it_counts() {
    require_root!("w02_a_recovered_journal_is_on_the_disk_before_it_counts");
    require_strace!("w02_a_recovered_journal_is_on_the_disk_before_it_counts");
    let disk = PowerDisk::recorded(32);
    let (site, cluster) = receiving(disk.path(), "");
    let running = start(&site, &cluster);
    cluster.sql("insert into t values ('synchronous')");
    running.ended_by(Signal::TERM).success();
    // Another disk takes what comes next; then it is written into the journal of this one, and nothing is synced.
    let (journal, beside) = (disk.path().join("journal"), site.sandbox().join("journal"));
    copy_tree(&journal, &beside);
    let config = std::fs::read_to_string(site.config()).unwrap();
    site.edit(journal.to_str().unwrap(), beside.to_str().unwrap());
    let running = start_again(&site, &cluster);
    cluster.sql("insert into t values ('synchronous')");
    let position = lsn(&cluster.value("select flush_lsn from pg_stat_replication"));
    running.ended_by(Signal::TERM).success();
    std::fs::write(site.config(), config).unwrap();
    let mut written = Vec::new();
    for path in paths_below(&beside) {
        let to = journal.join(path.strip_prefix(&beside).unwrap());
        if to.extension().is_some_and(|e| e == "wal") {
            written.push(to.clone());
            let file = std::fs::File::options().write(true).open(to).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &std::fs::read(path).unwrap(), 0)
                .unwrap();
        }
    }
    // The position lies in the last one.
    written.sort();
    let written = written.last().expect("a segment was written");
    let hold = Fault::delay("fsync,fdatasync", std::time::Duration::from_secs(10)).on(written);
    let faulty = Faulty::held(&site.pitr().arg("receive"), &hold);
    check_once_acknowledged(disk, &cluster, faulty, position);
}

#[test]
fn m03_what_was_acknowledged_outlives_reordered_and_torn_writes_of_the_journal() {
    require_root!("m03_what_was_acknowledged_outlives_reordered_and_torn_writes_of_the_journal");
    const CUTS: usize = 24;
    let seed = number("PITR_TEST_SEED").unwrap_or_else(|| std::process::id().into());
    eprintln!("PITR_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut disk = PowerDisk::recorded(32);
    let (site, cluster) = receiving(disk.path(), "");
    let running = start(&site, &cluster);
    let acknowledge = |round: u64| {
        // Several pieces for each segment, and several segments.
        write_wal(&cluster, round % 3 * SEGMENT / 4);
        cluster.sql("insert into t values ('synchronous')");
        let told = "select flush_lsn from pg_stat_replication";
        let acknowledged = lsn(&cluster.value(told));
        (disk.position(), acknowledged)
    };
    let acknowledged: Vec<(usize, u64)> = (0..12).map(acknowledge).collect();
    running.ended_by(Signal::KILL);
    let recording = disk.end_recording();
    let (begun, end) = (acknowledged[0].0, acknowledged[11].0);
    let mut moments: Vec<usize> = acknowledged.iter().map(|(at, _)| *at).collect();
    moments.extend((0..CUTS).map(|_| begun + random.below(end - begun)));
    let (mut lost, mut torn) = (0, 0);
    for at in moments {
        let cut = recording.cut(recording.flushed(at)..at, |_| random.one_in(2));
        lost += cut.lost_sectors;
        torn += cut.torn_writes;
        disk.boot(&cut);
        let held = check_journal(disk.path(), &cluster);
        let before = acknowledged.iter().rev().find(|(then, _)| *then <= at);
        let (_, before) = before.expect("something was acknowledged");
        assert!(
            held >= *before,
            "{held:X} is held at {at}, {before:X} was acknowledged; PITR_TEST_SEED={seed}"
        );
    }
    eprintln!(
        "{} cuts of {} writes and flushes: {lost} sectors lost, {torn} writes torn",
        12 + CUTS,
        end - begun
    );
    assert!(lost > 0 && torn > 0);
}

fn start_again(site: &Site, cluster: &Cluster) -> Running {
    let mut running = site.pitr().words("receive").spawn();
    running.until("everything is safe again", || is_safe(cluster));
    running
}

#[test]
fn w03_a_failed_sync_ends_the_receiver_and_nothing_later_is_acknowledged_from_that_file() {
    require_strace!(
        "w03_a_failed_sync_ends_the_receiver_and_nothing_later_is_acknowledged_from_that_file"
    );
    let sandbox = crate::common::Sandbox::new("journal");
    let folder = sandbox.dir("disk");
    let (site, cluster) = receiving(&folder, "");
    // It makes the slot, and ends.
    let position = cluster.value("select pg_current_wal_flush_lsn()");
    let receive = site.pitr().words("receive --create-slot");
    receive.clone().args(["--until-lsn", &position]).succeed();
    cluster.sql("create table t (x text)");
    let number = lsn(&position) / SEGMENT;
    let name = format!("00000001{:08X}{:08X}.wal", number >> 12, number & 0xFFF);
    let file = folder
        .join("journal")
        .join(cluster.system_identifier().to_string())
        .join(name);
    // The first sync of the file is recovery's; each one of data is of a round.
    let fault = Fault::error("fdatasync", "EIO").at("3+").on(&file);
    let (run, fired) = {
        let _writing = Writing::start(&cluster);
        fault::inject(&receive, &fault)
    };
    assert_eq!(fired, 1, "it is not tried a second time: {}", run.stderr);
    let run = run.expect_code(1).expect_stderr("sync the journal's file");
    assert!(run.stderr.contains("nothing is lost"), "{}", run.stderr);
    let told = "select restart_lsn from pg_replication_slots where slot_name = 'pitr'";
    let acknowledged = lsn(&cluster.value(told));
    let held = check_journal(&folder, &cluster);
    assert!(held >= acknowledged, "{held:X}, {acknowledged:X}");
    user::own_all(&folder.join("journal"));
    let running = start_again(&site, &cluster);
    running.ended_by(Signal::TERM).success();
}

/// A commit that waits for the receiver, in a thread.
fn commit(cluster: &Cluster) -> std::thread::JoinHandle<()> {
    let client = cluster.client();
    std::thread::spawn(move || {
        client.sql("insert into t values ('synchronous')");
    })
}

/// Takes the repository away, or gives it back.
fn exchange(site: &Site, is_away: bool) {
    let away = site.repository().with_extension("away");
    let (from, to) = match is_away {
        true => (site.repository(), away.as_path()),
        false => (away.as_path(), site.repository()),
    };
    std::fs::rename(from, to).unwrap();
}

#[test]
fn w04_a_full_journal_disk_stops_acknowledging_and_room_lets_it_go_on() {
    require_mounts!("w04_a_full_journal_disk_stops_acknowledging_and_room_lets_it_go_on");
    let disk = SmallDisk::new(8, 100);
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    let (site, cluster) = receiving(disk.path(), "");
    let mut running = start(&site, &cluster);
    exchange(&site, true);
    write_wal(&cluster, 6 << 20);
    wait_for_words(&mut running, "no WAL is acknowledged");
    assert!(!is_safe(&cluster));
    let waiting = commit(&cluster);
    let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    wait_until("the commit waits", || cluster.value(waits) == "1");
    std::fs::remove_file(&ballast).unwrap();
    wait_for_words(&mut running, "has room again");
    waiting.join().unwrap();
    exchange(&site, false);
    wait_until("the repository has it", || {
        let end = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
        archived(&disk.path().join("journal")) >= end
    });
    running.ended_by(Signal::TERM).success();
    check_journal(disk.path(), &cluster);
}

fn archived(journal: &Path) -> u64 {
    crate::common::reception::archived(journal).unwrap_or(0)
}

#[test]
fn w11_a_repository_that_takes_nothing_lets_the_journal_grow_to_its_limit_and_no_further() {
    let sandbox = crate::common::Sandbox::new("journal");
    let folder = sandbox.dir("disk");
    let limit: u64 = 4 << 20;
    let (site, cluster) = receiving(&folder, &format!("journal_limit_bytes = {limit}\n"));
    let journal = folder.join("journal");
    let mut running = start(&site, &cluster);
    let archived_before = archived(&journal);
    exchange(&site, true);
    write_wal(&cluster, 8 << 20);
    wait_for_words(&mut running, "% of the room");
    wait_for_words(&mut running, "no WAL is acknowledged");
    wait_for_words(&mut running, "does not take WAL");
    wait_until("the status says it", || {
        let status = status(&journal).unwrap();
        let number = |name: &str| status[name].as_u64().unwrap();
        assert!(number("journal_bytes") <= limit);
        number("journal_bytes") > limit / 2
            && status
                .pointer("/repositories/0/last_error")
                .unwrap()
                .is_string()
    });
    assert!(!is_safe(&cluster));
    exchange(&site, false);
    wait_for_words(&mut running, "has room again");
    let end = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
    wait_until("the repository has it", || archived(&journal) >= end);
    assert!(archived_before < end);
    commit(&cluster).join().unwrap();
    running.ended_by(Signal::TERM).success();
    check_journal(&folder, &cluster);
}

/// W76: WAL that was fed and is not durable is not compared with the server, which may be set back within it. So the receiver connects again
/// once all of it is durable.
#[test]
fn w76_a_server_is_compared_once_all_that_was_fed_is_durable() {
    let sandbox = crate::common::Sandbox::new("journal");
    let folder = sandbox.dir("disk");
    let (site, cluster) = receiving(&folder, "journal_limit_bytes = 4194304\n");
    let proxy = crate::common::proxy::Proxy::to(cluster.port());
    site.connect_by(&format!("{} application_name=pitr", proxy.conninfo()));
    let journal = folder.join("journal");
    let mut running = start(&site, &cluster);
    exchange(&site, true);
    write_wal(&cluster, 8 << 20);
    wait_for_words(&mut running, "no WAL is acknowledged");
    let (received, flushed) = ("received_lsn", "flushed_lsn");
    wait_until("more is received than is durable", || {
        let status = status(&journal).unwrap();
        let at = |name: &str| status[name].as_str().map_or(0, lsn);
        at(received) > at(flushed)
    });
    proxy.reset();
    wait_until("it waits for room, without a server", || {
        assert!(!running.is_done(), "it ended: {}", running.stderr());
        let status = status(&journal).unwrap();
        let error = status["last_error"].as_str().unwrap_or_default();
        status["server"].is_null() && error.contains("no room")
    });
    let begun = |running: &Running| running.stderr().matches("streaming from").count();
    assert_eq!(begun(&running), 1, "{}", running.stderr());
    exchange(&site, false);
    let end = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
    running.until("the repository has it", || archived(&journal) >= end);
    assert!(begun(&running) >= 2, "{}", running.stderr());
    running.ended_by(Signal::TERM).success();
    check_journal(&folder, &cluster);
}

/// The place of a journal file that rots.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rot {
    FileHeader,
    FrameHeader,
    Payload,
}

/// Turns a bit of a journal file.
fn rot(path: &Path, place: Rot) {
    let bytes = std::fs::read(path).unwrap();
    let (mut frames, mut at) = (Vec::new(), 4096);
    while bytes[at..].starts_with(b"WALF") {
        frames.push(at);
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        at += 20 + length as usize;
    }
    assert!(frames.len() > 2, "{} frames", frames.len());
    let middle = frames[frames.len() / 2];
    let at = match place {
        Rot::FileHeader => 20,
        Rot::FrameHeader => middle,
        Rot::Payload => middle + 20,
    };
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[bytes[at] ^ 0x10], at as u64).unwrap();
}

/// The complete segments of a journal, with their files.
fn complete(folder: &Path) -> Vec<(SegmentName, PathBuf)> {
    let mut held: Vec<(SegmentName, PathBuf)> = paths_below(&folder.join("journal"))
        .into_iter()
        .filter_map(|path| Some((path.file_stem()?.to_str()?.parse().ok()?, path)))
        .collect();
    held.sort();
    let written = |path: &Path| std::fs::read(path).unwrap()[4096..].starts_with(b"WALF");
    held.retain(|(_, path)| written(path));
    held.pop();
    held
}

/// A sector of the journal rots before what it held was shipped. The server is asked for it again; where it has it no more, the gap is recorded.
/// All that lies behind is shipped in any case.
fn rotten(place: Rot, which: usize, is_lost: bool) {
    let sandbox = crate::common::Sandbox::new("journal");
    let folder = sandbox.dir("disk");
    let (site, mut cluster) = receiving(&folder, "");
    let running = start(&site, &cluster);
    exchange(&site, true);
    write_wal(&cluster, 4 << 20);
    wait_until("all of it is acknowledged", || is_safe(&cluster));
    running.ended_by(Signal::KILL);
    let held = complete(&folder);
    let (name, path) = &held[which];
    assert!(held.len() > which + 2, "{held:?}");
    if is_lost {
        lose(&cluster, *name);
    }
    rot(path, place);
    exchange(&site, false);
    // Without a server, too, what lies behind gets into the repository.
    let is_away = place == Rot::FrameHeader && !is_lost;
    if is_away {
        cluster.stop(Stop::Fast);
    }
    let mut running = site.pitr().words("receive").spawn();
    if is_away {
        let behind = site.object(&held[which + 1].0.to_string());
        wait_until("what lies behind is shipped", || behind.exists());
        assert!(!site.object(&name.to_string()).exists());
        assert!(path.exists(), "the rest is not asked for after a restart");
        cluster.start();
    }
    running.until("everything is safe again", || is_safe(&cluster));
    cluster.sql("insert into t values ('synchronous')");
    let end = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
    running.until("the repository has everything", || {
        archived(&folder.join("journal")) >= end
    });
    let run = running.ended_by(Signal::TERM).success();
    let kept = complete(&folder);
    assert!(kept.len() <= 1, "{kept:?}\n{run}");
    for (segment, _) in &held {
        let is_there = site.object(&segment.to_string()).exists();
        assert_eq!(is_there, !is_lost || segment != name, "{segment}: {run}");
        if is_there && !is_lost {
            let target = site.sandbox().join("RECOVERYXLOG");
            let fetch = site.restore().arg(segment.to_string()).arg(&target);
            fetch.succeed();
            let there = std::fs::read(wal_file(&cluster, *segment)).unwrap();
            assert!(std::fs::read(&target).unwrap() == there, "{segment}");
        }
    }
    let gaps = site.pitr().words("wal gaps").run();
    assert_eq!(gaps.is_success(), !is_lost, "{place:?}: {gaps}\n{run}");
    let told = match is_lost {
        true => "recorded as a gap. Take a base backup",
        false => "the server sent it again",
    };
    assert!(run.stderr.contains(told), "{place:?}: {run}");
}

/// The standby that is promoted had less than the receiver. No server has what rots of the rest before it was shipped.
#[test]
fn w71_rotten_wal_behind_a_switch_point_is_recorded_as_a_gap() {
    let sandbox = crate::common::Sandbox::new("journal");
    let folder = sandbox.dir("disk");
    let (site, mut primary) = receiving(&folder, "");
    let mut standby = primary.standby().start();
    site.connect_by(&format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=primary application_name=pitr",
        primary.port(),
        standby.port()
    ));
    let mut running = site.pitr().words("receive --create-slot").spawn();
    running.until("the receiver streams", || {
        let sql = "select count(*) from pg_stat_replication where state = 'streaming' and reply_time is not null and application_name = 'pitr'";
        primary.value(sql) == "1"
    });
    make_synchronous(&primary);
    primary.sql("set synchronous_commit = local; create table t (x text)");
    standby.wait_replayed(&primary.value("select pg_current_wal_flush_lsn()"));
    standby.stop(Stop::Fast);
    exchange(&site, true);
    write_wal(&primary, 6 << 20);
    wait_until("all of it is acknowledged", || is_safe(&primary));
    running.ended_by(Signal::KILL);
    primary.stop(Stop::Immediate);
    let held = complete(&folder);
    assert!(held.len() > 4, "{held:?}");
    let (name, path) = &held[2];
    rot(path, Rot::FrameHeader);
    standby.start();
    standby.promote();
    exchange(&site, false);
    let mut running = site.pitr().words("receive --create-slot").spawn();
    let size = SegmentSize::new(SEGMENT).unwrap();
    let end = name.number(size).unwrap().range(size).end;
    wait_for_words(
        &mut running,
        &format!(" to {end} of timeline 1 is lost: neither the server nor"),
    );
    let last = &held[held.len() - 1].0;
    wait_until("what lies behind is shipped", || {
        site.object(&last.to_string()).exists()
    });
    let run = running.ended_by(Signal::TERM).success();
    assert!(run.stderr.contains("leaves timeline 1 at"), "{run}");
    let gaps = site.pitr().words("wal gaps --json").exits(4).json();
    let gaps = gaps["gaps"].as_array().unwrap();
    let is_it = |gap: &serde_json::Value| {
        let names = gap["names"].as_array().unwrap();
        names.contains(&name.to_string().into())
    };
    assert!(gaps.iter().any(is_it), "{name}: {gaps:?}\n{run}");
    let events = paths_below(&site.cluster_folder().join("events"));
    let is_gap = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        pitr::repo::event::kind_in(name) == "gap"
    };
    assert!(events.iter().any(is_gap), "{events:?}\n{run}");
}

/// Has the server remove a segment.
fn lose(cluster: &Cluster, name: SegmentName) {
    for (setting, value) in [
        ("wal_keep_size", "0"),
        ("max_wal_size", "2MB"),
        ("min_wal_size", "2MB"),
    ] {
        cluster.alter_system(setting, value);
    }
    cluster.reload();
    wait_until("the server has removed it", || {
        cluster.sql("select pg_logical_emit_message(false, 'x', 'x'); select pg_switch_wal()");
        cluster.sql("checkpoint");
        !wal_file(cluster, name).exists()
    });
}

#[test]
fn w60_a_rotten_frame_header_of_the_journal_loses_nothing_that_the_server_has() {
    rotten(Rot::FrameHeader, 1, false);
}

#[test]
fn w60_behind_a_rotten_frame_header_the_gap_is_recorded_where_the_server_has_it_no_more() {
    rotten(Rot::FrameHeader, 1, true);
}

#[test]
fn w60_a_rotten_file_header_of_the_journal_loses_nothing_that_the_server_has() {
    rotten(Rot::FileHeader, 0, false);
    rotten(Rot::FileHeader, 1, true);
}

#[test]
fn w61_rotten_wal_of_the_journal_stops_no_shipping() {
    for is_lost in [false, true] {
        rotten(Rot::Payload, 0, is_lost);
    }
}

/// The repository has an object under the name of a segment whose WAL rots in the journal: only that segment itself lets the receiver forget it.
#[test]
fn w67_the_receiver_lets_go_of_no_segment_for_another_object_of_its_name() {
    for is_own in [true, false] {
        let sandbox = crate::common::Sandbox::new("journal");
        let folder = sandbox.dir("disk");
        let (site, cluster) = receiving(&folder, "");
        let running = start(&site, &cluster);
        exchange(&site, true);
        write_wal(&cluster, 4 << 20);
        wait_until("all of it is acknowledged", || is_safe(&cluster));
        running.ended_by(Signal::KILL);
        exchange(&site, false);
        let held = complete(&folder);
        let (name, path) = &held[1];
        let mut file = wal_file(&cluster, *name);
        if !is_own {
            // Another byte in the padding of a page's header.
            let mut other = std::fs::read(&file).unwrap();
            other[8192 + 21] ^= 1;
            file = site.sandbox().dir("other").join(name.to_string());
            std::fs::write(&file, other).unwrap();
        }
        site.pitr().words("wal push").arg(file).succeed();
        lose(&cluster, *name);
        rot(path, Rot::Payload);
        let running = site.pitr().words("receive").spawn();
        let words = match is_own {
            true => "has the segment",
            false => "is archived with other content than was received of it",
        };
        wait_until(words, || running.stderr().contains(words));
        let run = running.ended_by(Signal::TERM);
        assert_eq!(run.stderr.contains("has the segment"), is_own, "{run}");
        assert!(is_own || path.exists(), "{run}");
    }
}
