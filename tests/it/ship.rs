//! Archiving ahead: a worker ships what is ready, and `pitr-archive` acknowledges what is safe.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use std::os::unix::fs::PermissionsExt;

use rustix::fs::FlockOperation;
use rustix::process::Signal;

use crate::common::fault::{self, Fault};
use crate::common::mount::{HangingDisk, PowerDisk, SmallDisk};
use crate::common::proxy::{Proxy, Way};
use crate::common::s3::peer::Peer;
use crate::common::s3::{Fault as S3Fault, KEY, SECRET};
use crate::common::{
    Cluster, Program, Sandbox, Site, Still, copy_tree, path_of, pitr, pitr_archive, pitr_restore,
    user, wait_until,
};
use crate::s3_cycle::{Bucketed, with_profile};
use crate::{require_mounts, require_root, require_strace};

/// Gives the site's configuration a spool, and returns it.
pub fn spool_of(site: &Site) -> PathBuf {
    spool_in(site.sandbox(), site.config())
}

/// The same of a configuration in a sandbox.
pub fn spool_in(sandbox: &Sandbox, config: &Path) -> PathBuf {
    let spool = sandbox.join("spool");
    let section = "[clusters.main]\n";
    let line = format!("{section}spool_dir = \"{}\"\n", spool.display());
    crate::common::edit(config, section, &line);
    spool
}

/// The names in all spools below `spool` that end so, without that end, sorted.
pub fn noted(spool: &Path, end: &str) -> Vec<String> {
    let folders = std::fs::read_dir(spool).into_iter().flatten().flatten();
    let mut found: Vec<String> = folders
        .flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten())
        .filter_map(|file| {
            let name = file.ok()?.file_name().into_string().ok()?;
            Some(name.strip_suffix(end)?.to_owned())
        })
        .collect();
    found.sort();
    found
}

/// Whether a worker holds the lock of any spool below `spool`.
pub fn has_worker(spool: &Path) -> bool {
    let folders = std::fs::read_dir(spool).into_iter().flatten().flatten();
    folders
        .filter_map(|folder| std::fs::File::open(folder.path().join("lock")).ok())
        .any(|lock| {
            let is_held = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err();
            // A child of another test may have the file until its exec.
            let _ = rustix::fs::flock(&lock, FlockOperation::Unlock);
            is_held
        })
}

/// A stopped cluster with `count` segments that the server would offer, and the spool of its site.
fn offered(count: usize) -> (Still, PathBuf) {
    let still = Still::new(17, 1, count);
    let spool = spool_of(&still.site);
    for name in &still.segments {
        offer(&still, name);
    }
    (still, spool)
}

pub fn offer(still: &Still, name: &str) {
    std::fs::write(still.wal(&format!("archive_status/{name}.ready")), "").unwrap();
}

/// Does the server's part once a file is acknowledged.
pub fn acknowledged(still: &Still, name: &str) {
    let ready = still.wal(&format!("archive_status/{name}.ready"));
    std::fs::rename(&ready, ready.with_extension("done")).unwrap();
}

#[test]
fn a_server_with_a_backlog_is_drained_across_a_restart_and_nothing_is_left() {
    const SEGMENTS: usize = 60;
    let (site, mut cluster) = {
        let mut cluster = Cluster::small(17).config("max_wal_size", "1GB").create();
        let site = Site::new(&cluster);
        cluster.append_config("archive_mode", "on");
        cluster.append_config("archive_command", "false");
        cluster.start();
        (site, cluster)
    };
    let spool = spool_of(&site);
    let client = cluster.client();
    client.sql("create table t (a int)");
    let kept = site.sandbox().dir("kept");
    let write = |n: usize| {
        client.sql(&format!("insert into t values ({n})"));
        let name = client.value("select pg_walfile_name(pg_switch_wal())");
        let file = cluster.pgdata().join("pg_wal").join(&name);
        std::fs::copy(file, kept.join(&name)).unwrap();
        name
    };
    let mut segments: Vec<String> = (0..SEGMENTS).map(write).collect();
    cluster.append_config("archive_command", &site.archive().arg("%p").shell());
    cluster.reload();
    wait_until("a worker is at work", || {
        // Missed; there is work for another.
        if segments.iter().all(|name| site.object(name).exists()) {
            segments.extend((0..SEGMENTS).map(write));
        }
        site.object(&segments[3]).exists() && process_of(site.config(), Process::Worker).is_some()
    });
    drop(client);
    cluster.restart();
    for name in &segments {
        cluster.wait_archived(name);
    }
    wait_until("the worker has ended", || !has_worker(&spool));
    // One may be shipped twice, when the server is slow to note that it is acknowledged; the next worker removes such a note.
    cluster.append_config("archive_command", "false");
    cluster.reload();
    let more: Vec<String> = (0..3).map(|_| cluster.switch_wal()).collect();
    cluster.append_config("archive_command", &site.archive().arg("%p").shell());
    cluster.reload();
    for name in &more {
        cluster.wait_archived(name);
    }
    wait_until("the worker has ended", || !has_worker(&spool));
    let left = noted(&spool, ".shipped");
    assert!(left.iter().all(|name| more.contains(name)), "{left:?}");
    assert_eq!(noted(&spool, ".failed"), [""; 0]);
    for name in &segments {
        let target = site.sandbox().join("fetched");
        site.restore()
            .args([name.as_ref(), target.as_os_str()])
            .succeed();
        let same = std::fs::read(target).unwrap() == std::fs::read(kept.join(name)).unwrap();
        assert!(same, "{name}");
    }
    assert!(
        !cluster.log().contains("pitr-archive:"),
        "{}",
        cluster.log()
    );
}

/// Files arrive out of order where a worker and a call bring one each: what the server still offers is not missed.
#[test]
fn a_segment_that_the_server_still_offers_is_no_hole() {
    let still = Still::new(17, 1, 4);
    let segments = &still.segments;
    let lacks = |name: &str| format!("the archive lacks segment \"{name}\", right before this one");
    still.push(&segments[0]).succeed();
    offer(&still, &segments[1]);
    let run = still.push(&segments[2]).succeed();
    assert!(run.stderr.is_empty(), "{run}");
    // Acknowledged, and not in the archive.
    acknowledged(&still, &segments[1]);
    std::fs::remove_file(still.site.object(&segments[2])).unwrap();
    let run = still.push(&segments[2]).succeed();
    run.expect_stderr(&lacks(&segments[1]));
}

#[test]
fn what_is_ready_is_shipped_and_acknowledged_from_its_note() {
    require_strace!("what_is_ready_is_shipped_and_acknowledged_from_its_note");
    let (still, spool) = offered(4);
    let (first, others) = still.segments.split_first().unwrap();
    still.push(first).succeed();
    acknowledged(&still, first);
    wait_until("the others are shipped", || {
        let noted = noted(&spool, ".shipped");
        others.iter().all(|name| noted.contains(name))
    });
    wait_until("the worker has ended", || !has_worker(&spool));
    // Without a note an object that is there is synced again.
    const SYNCS: &[&str] = &["fsync", "fdatasync"];
    let (run, calls) = fault::trace(&still.push(first), SYNCS);
    run.success();
    assert!(!calls.is_empty());
    for name in others {
        let (run, calls) = fault::trace(&still.push(name), SYNCS);
        let run = run.success();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
        assert_eq!(calls, [], "it was not acknowledged from its note");
        acknowledged(&still, name);
        still.check(name);
        assert!(!noted(&spool, ".shipped").contains(name));
    }
    // In an archive_command the worker's switch acknowledges nothing.
    let run = still
        .site
        .archive()
        .words("--ship pg_wal")
        .dir(still.cluster.pgdata())
        .exits(1);
    run.expect_stderr("a worker is started by pitr-archive");
}

#[test]
fn a_call_reads_its_configuration_once() {
    require_strace!("a_call_reads_its_configuration_once");
    let (still, _) = offered(1);
    let (run, opened) = fault::trace(&still.push(&still.segments[0]), &["openat"]);
    run.success();
    let of_config = opened.iter().filter(|c| c.touches(still.site.config()));
    assert_eq!(of_config.count(), 1);
}

/// Pushes everything in PostgreSQL's order, as its archiver would, and checks it.
fn push_in_order(still: &Still) {
    for name in &still.segments {
        still.push(name).succeed();
        acknowledged(still, name);
        still.check(name);
    }
}

/// The kind of a process that runs for a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// `pitr-archive` as the server calls it.
    Archive,
    /// The worker that it has started.
    Worker,
    /// `pitr`, which it waits for where a repository is in an object store and no worker comes to anything.
    Delegate,
}

/// The process id of one that works with this configuration, by its command line.
pub fn process_of(config: &Path, wanted: Process) -> Option<u32> {
    let config = config.to_str().unwrap().as_bytes();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|p| p.file_name().to_str()?.parse().ok());
    pids.find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        words.contains(&config) && process_with(&words) == Some(wanted)
    })
}

fn process_with(words: &[&[u8]]) -> Option<Process> {
    let has = |word: &str| words.contains(&word.as_bytes());
    if words[0].ends_with(b"/pitr-archive") {
        return Some(match has("--ship") {
            true => Process::Worker,
            false => Process::Archive,
        });
    }
    if !words[0].ends_with(b"/pitr") || !has("serve") {
        return None;
    }
    match (has("ship"), has("archive")) {
        (true, _) => Some(Process::Worker),
        (_, true) => Some(Process::Delegate),
        _ => None,
    }
}

pub fn send(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

/// Stops a process where it is; `false` when it has ended before.
pub fn stop_process(pid: u32) -> bool {
    send(pid, Signal::STOP);
    let mut state = None;
    wait_until("it stands still or has ended", || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state = text.rsplit_once(") ").and_then(|(_, t)| t.chars().next());
        matches!(state, None | Some('T' | 'Z' | 'X'))
    });
    state == Some('T')
}

/// The server as process 1, in a container, inherits the worker, and up to PostgreSQL 16 takes every other end for that of a backend that
/// crashed.
#[test]
fn a_worker_leaves_with_1_whatever_ends_it() {
    require_mounts!("a_worker_leaves_with_1_whatever_ends_it");
    let (still, spool) = offered(40);
    let first = &still.segments[0];
    // Its repository is away, and full.
    let away = still.site.sandbox().join("away");
    std::fs::rename(still.site.repository(), &away).unwrap();
    let (run, ended) = still.push(first).run_with_orphans();
    assert_eq!((run.code(), ended.as_slice()), (36, &[1][..]), "{run}");
    let disk = SmallDisk::new(1, 100);
    copy_tree(&away.join("."), disk.path());
    std::fs::write(disk.path().join("filler"), vec![0; 2 << 20]).unwrap_err();
    std::os::unix::fs::symlink(disk.path(), still.site.repository()).unwrap();
    std::fs::remove_dir_all(&spool).unwrap();
    let (run, ended) = still.push(first).run_with_orphans();
    assert_eq!((run.code(), ended.as_slice()), (32, &[1][..]), "{run}");
    std::fs::remove_file(still.site.repository()).unwrap();
    std::fs::rename(&away, still.site.repository()).unwrap();
    // It gets a signal to end.
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let push = still.push(first);
        let begin = || {
            still.forget();
            std::fs::remove_dir_all(&spool).unwrap();
            || push.run_with_orphans()
        };
        let ended = std::thread::scope(|scope| {
            let mut pushed = scope.spawn(begin());
            // Stopped first, it cannot end by itself meanwhile.
            let mut worker = None;
            wait_until("a worker is stopped at its work", || {
                // Missed; another follows.
                if pushed.is_finished() {
                    pushed = scope.spawn(begin());
                }
                worker = process_of(still.site.config(), Process::Worker);
                worker.is_some_and(|pid| handles_term(pid) && stop_process(pid))
            });
            send(worker.unwrap(), signal);
            send(worker.unwrap(), Signal::CONT);
            pushed.join().unwrap().1
        });
        assert_eq!(ended, [1], "{signal:?}");
    }
    // It has done its work.
    let (run, ended) = still.push(first).run_with_orphans();
    assert_eq!((run.code(), ended.as_slice()), (0, &[1][..]), "{run}");
    assert!(noted(&spool, ".shipped").contains(&still.segments[39]));
}

#[test]
fn p20_a_worker_killed_between_upload_and_note_acknowledges_nothing() {
    require_strace!("p20_a_worker_killed_between_upload_and_note_acknowledges_nothing");
    let (still, spool) = offered(4);
    let first = &still.segments[0];
    // Among all that runs here only the worker renames: its notes.
    let kill = Fault::kill("renameat").at(1);
    let (run, fired) = fault::inject(&still.push(first), &kill);
    assert!(fired >= 1, "{run}");
    // Who waited has noticed, and has done it itself.
    assert_eq!(run.code(), 0, "{run}");
    still.check(first);
    assert!(!has_worker(&spool));
    assert_eq!(noted(&spool, ".shipped"), [""; 0]);
    push_in_order(&still);
}

/// Calls at which a program is killed that archives ahead: all that change something, but for the pieces of a file's content.
const DECISIVE: &[&str] = &[
    "flock",
    "fsync",
    "fdatasync",
    "link",
    "linkat",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "fallocate",
    "ftruncate",
    "execve",
    "setsid",
];

#[test]
fn p20_killed_at_any_call_nothing_is_acknowledged_that_is_not_stored() {
    require_strace!("p20_killed_at_any_call_nothing_is_acknowledged_that_is_not_stored");
    let (still, spool) = offered(4);
    let push = still.push(&still.segments[0]);
    let (_, calls) = fault::trace(&push, DECISIVE);
    let points: BTreeSet<(String, usize)> = calls.into_iter().map(|c| (c.name, c.nth)).collect();
    let mut killed = 0;
    let of_turn = |(n, _): &(usize, _)| fault::is_of_turn(*n);
    for (_, (name, nth)) in points.into_iter().enumerate().filter(of_turn) {
        still.forget();
        let _ = std::fs::remove_dir_all(&spool);
        for name in &still.segments {
            let _ = std::fs::remove_file(still.wal(&format!("archive_status/{name}.done")));
            offer(&still, name);
        }
        let (run, fired) = fault::inject(&push, &Fault::kill(&name).at(nth));
        // How many calls one thread makes depends on which of two takes which file.
        killed += usize::from(fired > 0);
        assert!(!has_worker(&spool), "{name} {nth}");
        for noted in noted(&spool, ".shipped") {
            still.check(&noted);
        }
        match run.code() {
            0 => still.check(&still.segments[0]),
            137 => {}
            _ => panic!("{name} {nth}: {run}"),
        }
        push_in_order(&still);
    }
    eprintln!("killed {killed} times");
    assert!(killed >= fault::share(15), "{killed}");
}

/// Holds the lock of the only spool below `spool`, as a worker does that comes to nothing.
fn hold(spool: &Path) -> std::fs::File {
    let folder = std::fs::read_dir(spool).unwrap().next().unwrap().unwrap();
    let lock = std::fs::File::open(folder.path().join("lock")).unwrap();
    wait_until("the worker has ended", || {
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    lock
}

#[test]
fn p20_who_waits_for_a_worker_survives_its_end_and_its_standstill() {
    let (still, spool) = offered(3);
    let [first, second, third] = still.segments.as_slice() else {
        unreachable!()
    };
    still.push(first).succeed();
    acknowledged(&still, first);
    let lock = hold(&spool);
    let folder = std::fs::read_dir(&spool).unwrap().next().unwrap().unwrap();
    for name in [second, third] {
        std::fs::remove_file(folder.path().join(format!("{name}.shipped"))).unwrap();
        std::fs::remove_file(still.site.object(name)).unwrap();
    }
    // A worker that stands still, and a server that stops meanwhile.
    for (signal, code) in [(Signal::TERM, 143), (Signal::KILL, 137)] {
        let running = still.push(second).spawn();
        wait_until("it handles SIGTERM", || handles_term(running.pid()));
        running.signal(signal);
        assert_eq!(running.wait().code(), code);
    }
    assert!(!still.site.object(second).exists());
    // For half of the time it is waited for; then the file is archived by who offers it.
    still.push(second).env("PITR_FAULT_SECONDS", "20").succeed();
    still.check(second);
    assert!(has_worker(&spool));
    std::fs::remove_file(still.site.object(second)).unwrap();
    // A worker that is killed.
    let running = still.push(second).spawn();
    wait_until("it handles SIGTERM", || handles_term(running.pid()));
    drop(lock);
    running.wait().success();
    still.check(second);
    acknowledged(&still, second);
    still.push(third).succeed();
    still.check(third);
}

/// Whether a process has a handler for SIGTERM, as `pitr-archive` has while it works.
pub fn handles_term(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit n - 1 stands for signal n.
    caught.is_some_and(|mask| mask & (1 << 14) != 0)
}

#[test]
fn p20_what_was_acknowledged_from_a_note_survives_a_power_cut() {
    require_root!("p20_what_was_acknowledged_from_a_note_survives_a_power_cut");
    let disk = PowerDisk::new(64);
    let mut still = Still::new(16, 1, 4);
    still.site = Site::on(&still.cluster, &disk.path().join("repo"));
    let spool = spool_of(&still.site);
    for name in &still.segments {
        offer(&still, name);
    }
    still.push(&still.segments[0]).succeed();
    wait_until("the worker has ended", || !has_worker(&spool));
    let shipped = noted(&spool, ".shipped");
    assert!(shipped.contains(&still.segments[3]), "{shipped:?}");
    for name in &still.segments[1..] {
        still.push(name).succeed();
    }
    disk.cut_power();
    for name in &still.segments {
        still.check(name);
    }
}

#[test]
fn a_note_about_other_bytes_another_repository_or_by_another_user_is_none() {
    let (still, spool) = offered(3);
    let [first, second, third] = still.segments.as_slice() else {
        unreachable!()
    };
    still.push(first).succeed();
    acknowledged(&still, first);
    wait_until("the worker has ended", || !has_worker(&spool));
    // The name is used again, by a cluster restored in the same place: other bytes, whatever the note says.
    let mut bytes = std::fs::read(still.wal(second)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(still.wal(second), &bytes).unwrap();
    assert!(noted(&spool, ".shipped").contains(second));
    still.push(second).exits(20);
    // The object is gone, and the note about it still there.
    assert!(noted(&spool, ".shipped").contains(third));
    std::fs::remove_file(still.site.object(third)).unwrap();
    still.push(third).succeed();
    still.check(third);
}

#[test]
fn a_note_acknowledges_nothing_of_a_restored_copy_or_where_others_may_write() {
    let (still, spool) = offered(2);
    let [first, second] = still.segments.as_slice() else {
        unreachable!()
    };
    still.push(first).succeed();
    acknowledged(&still, first);
    wait_until("the worker has ended", || !has_worker(&spool));
    assert!(noted(&spool, ".shipped").contains(second));
    std::fs::write(still.wal("pitr.guard"), "{}").unwrap();
    still.push(second).exits(22);
    std::fs::remove_file(still.wal("pitr.guard")).unwrap();
    let folder = std::fs::read_dir(&spool).unwrap().next().unwrap().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::remove_file(still.site.object(second)).unwrap();
    still.push(second).succeed();
    still.check(second);
    let noted = noted(&spool, ".shipped");
    assert!(noted.contains(second), "it was not looked at: {noted:?}");
}

#[test]
fn p21_without_a_repository_everything_is_kept_and_nothing_acknowledged() {
    let (still, spool) = offered(3);
    let away = still.site.sandbox().join("away");
    std::fs::rename(still.site.repository(), &away).unwrap();
    for name in [&still.segments[0]; 3].into_iter().chain(&still.segments) {
        still.push(name).exits(36);
        wait_until("no worker is left", || !has_worker(&spool));
    }
    assert_eq!(noted(&spool, ".shipped"), [""; 0]);
    // A worker that finds no repository has tried none of the others, and would leave alone what has failed.
    assert_eq!(noted(&spool, ".failed"), still.segments[..1]);
    std::fs::rename(&away, still.site.repository()).unwrap();
    push_in_order(&still);
    assert_eq!(noted(&spool, ".failed"), [""; 0]);
}

#[test]
fn p20_nothing_is_acknowledged_before_every_required_repository_has_it() {
    let (still, spool) = offered(4);
    let second = still.site.add_repository("second", "");
    let other = still.site.add_repository("other", "required = false\n");
    let away = |folder: &Path| folder.with_extension("away");
    std::fs::rename(&second, away(&second)).unwrap();
    for _ in 0..2 {
        let run = still.push(&still.segments[0]).run();
        assert!([36, 50].contains(&run.code()), "{run}");
    }
    wait_until("no worker is left", || !has_worker(&spool));
    assert_eq!(noted(&spool, ".shipped"), [""; 0]);
    std::fs::rename(away(&second), &second).unwrap();
    // One that is not required keeps no file waiting, and a warning names it with every file.
    std::fs::rename(&other, away(&other)).unwrap();
    for name in &still.segments {
        let run = still.push(name).succeed();
        run.expect_stderr("pitr-archive: warning: not stored in every repository");
        acknowledged(&still, name);
        let object = still.site.object(name);
        let key = object.strip_prefix(still.site.repository()).unwrap();
        assert!(second.join(key).exists(), "{name}");
    }
    assert_eq!(noted(&spool, ".failed"), [""; 0]);
}

#[test]
fn p17_a_worker_that_hangs_when_it_opens_repositories_ends_and_the_one_that_answers_gets_the_file()
{
    require_root!(
        "p17_a_worker_that_hangs_when_it_opens_repositories_ends_and_the_one_that_answers_gets_the_file"
    );
    let (still, spool) = offered(3);
    let second = still.site.add_repository("second", "");
    let first = &still.segments[0];
    let object = still.site.object(first);
    let copy = second.join(object.strip_prefix(still.site.repository()).unwrap());
    let hanging = HangingDisk::over(still.site.repository());
    // Who waits for the worker gives up before it, and archives the file itself; its first repository hangs, too.
    let run = still.push(first).env("PITR_FAULT_SECONDS", "4").run();
    run.expect_code(40);
    wait_until("the worker has ended", || !has_worker(&spool));
    let folder = std::fs::read_dir(&spool).unwrap().next().unwrap().unwrap();
    let told = std::fs::read_to_string(folder.path().join(format!("{first}.failed"))).unwrap();
    assert!(told.contains("error A140"), "{told}");
    // Nobody waits for a worker with a file that one has failed with.
    let running = still.push(first).spawn();
    wait_until("the second has it", || copy.exists());
    assert_eq!(noted(&spool, ".shipped"), [""; 0]);
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), 143);
    drop(hanging);
    wait_until("no worker is left", || !has_worker(&spool));
    push_in_order(&still);
    assert_eq!(noted(&spool, ".failed"), [""; 0]);
}

#[test]
fn p22_one_bad_segment_blocks_no_other_and_is_named() {
    let still = Still::new(17, 1, 5);
    let spool = spool_of(&still.site);
    let bad = &still.segments[1];
    // The disk has lost half of it.
    let good = std::fs::read(still.wal(bad)).unwrap();
    std::fs::write(still.wal(bad), &good[..good.len() / 2]).unwrap();
    for name in &still.segments {
        offer(&still, name);
    }
    still.push(&still.segments[0]).succeed();
    acknowledged(&still, &still.segments[0]);
    for _ in 0..2 {
        let run = still.push(bad).exits(12);
        run.expect_stderr("error A112: could not archive");
    }
    wait_until("the others went ahead", || {
        let noted = noted(&spool, ".shipped");
        still.segments[2..].iter().all(|name| noted.contains(name))
    });
    wait_until("the worker has ended", || !has_worker(&spool));
    assert_eq!(noted(&spool, ".failed"), [bad.as_str()]);
    let line = format!("archiving waits for \"{bad}\" since ");
    let run = still.site.pitr().arg("info").run();
    assert!(run.stdout.contains(&line), "{run}");
    let run = still.site.pitr().words("info --json").run();
    let blocked = &run.json()["clusters"][0]["blocked"];
    assert_eq!(blocked[0]["file"], *bad.as_str());
    assert_eq!(blocked[0]["code"], "source_size");
    let run = still.site.pitr().arg("doctor").run();
    assert!(run.stdout.contains(&line), "{run}");
    // Who reads may know of other repositories, and of other settings.
    let known = std::fs::read_to_string(still.site.config()).unwrap();
    let more = "\n[repositories.more]\nurl = \"file:///nowhere\"\nrequired = false\n";
    let other = still.site.sandbox().file("other.toml", known + more);
    let run = pitr().arg("--config").arg(other).arg("info").run();
    assert!(run.stdout.contains(&line), "{run}");
    // Mended by a person, it is archived, and nobody speaks of it any more.
    std::fs::write(still.wal(bad), &good).unwrap();
    still.push(bad).succeed();
    acknowledged(&still, bad);
    assert_eq!(noted(&spool, ".failed"), [""; 0]);
    let run = still.site.pitr().arg("info").run();
    assert!(!run.stdout.contains("archiving waits"), "{run}");
}

#[test]
fn p22_on_s3_the_newest_error_is_the_one_that_info_names() {
    let still = Still::new(17, 1, 3);
    let site = Bucketed::new(&still.cluster, Peer::own(), "");
    let spool = site.spool();
    for name in &still.segments {
        offer(&still, name);
    }
    let first = &still.segments[0];
    let of_site = |program: Program| {
        let program = program.arg("--config").arg(&site.config);
        program
            .env("PITR_CLUSTERS_MAIN_SPOOL_DIR", &spool)
            .dir(still.cluster.pgdata())
    };
    let file = format!("pg_wal/{first}");
    let blocked = |code: &str| {
        let run = of_site(pitr()).words("info --json").run();
        let blocked = &run.json()["clusters"][0]["blocked"];
        assert_eq!(blocked[0]["file"], *first.as_str(), "{run}");
        assert_eq!(blocked[0]["code"], code, "{run}");
    };
    let errors = [
        (403, "AccessDenied", 31, "denied"),
        (403, "QuotaExceeded", 32, "full"),
        (403, "AccessDenied", 31, "denied"),
    ];
    for (status, said, code, known) in errors {
        let fault = S3Fault::Error(status, said);
        let fired = site.peer.server().fault(first, u64::MAX, fault);
        of_site(pitr_archive()).arg(&file).exits(code);
        assert!(fired.times() > 0);
        wait_until("the worker has ended", || !has_worker(&spool));
        site.peer.server().heal();
        blocked(known);
    }
    // Nobody answers: it is the small program that has something to record.
    let folder = site.sandbox.dir("broken");
    // By another program: what a child of another test holds open for writing cannot be run.
    let copied = std::process::Command::new("cp")
        .args([&path_of("pitr-archive"), &folder])
        .status();
    assert!(copied.unwrap().success());
    std::os::unix::fs::symlink("/bin/false", folder.join("pitr")).unwrap();
    let broken = of_site(Program::new(folder.join("pitr-archive"))).arg(&file);
    broken.exits(70).expect_stderr("without an answer");
    blocked("internal");
    of_site(pitr_archive()).arg(&file).succeed();
    assert_eq!(noted(&spool, ".failed"), [""; 0]);
}

#[test]
fn a_spool_that_is_lost_full_or_read_only_only_makes_it_slower() {
    require_mounts!("a_spool_that_is_lost_full_or_read_only_only_makes_it_slower");
    let (still, spool) = offered(3);
    push_in_order(&still);
    wait_until("the worker has ended", || !has_worker(&spool));
    // Lost, with notes in it.
    let again = |what: &str| {
        for name in &still.segments {
            std::fs::remove_file(still.wal(&format!("archive_status/{name}.done"))).unwrap();
            offer(&still, name);
            let _ = std::fs::remove_file(still.site.object(name));
        }
        push_in_order(&still);
        eprintln!("{what}: archived");
    };
    std::fs::remove_dir_all(&spool).unwrap();
    again("lost");
    wait_until("the worker has ended", || !has_worker(&spool));
    std::fs::remove_dir_all(&spool).unwrap();
    std::fs::write(&spool, "no directory").unwrap();
    again("no directory");
    let run = still.site.pitr().arg("doctor").run();
    let told = "nothing is archived ahead";
    assert!(run.stdout.contains(told), "{run}");
    std::fs::remove_file(&spool).unwrap();
    // No room for a note, and none for a directory.
    let disk = SmallDisk::new(1, 20);
    std::os::unix::fs::symlink(disk.path(), &spool).unwrap();
    let filler = disk.path().join("filler");
    let _ = std::fs::write(&filler, vec![0; 2 << 20]);
    again("full");
    assert_eq!(noted(&spool, ".shipped"), [""; 0]);
    std::fs::remove_file(&filler).unwrap();
    wait_until("the worker has ended", || !has_worker(&spool));
    disk.read_only(true);
    again("read-only");
}

#[test]
fn two_clusters_on_one_host_share_a_spool_and_no_notes() {
    let (one, spool) = offered(3);
    // The same data directory, copied: the same names, and here other bytes.
    let sandbox = Sandbox::new("two");
    let copy = sandbox.join("data");
    copy_tree(one.cluster.pgdata(), &copy);
    let other = copy.join("pg_wal").join(&one.segments[1]);
    let mut bytes = std::fs::read(&other).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&other, bytes).unwrap();
    one.push(&one.segments[0]).succeed();
    wait_until("it is shipped", || {
        noted(&spool, ".shipped").contains(&one.segments[1])
    });
    one.push(&one.segments[1]).dir(&copy).exits(20);
    one.push(&one.segments[1]).succeed();
    one.check(&one.segments[1]);
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 2);
}

/// The data directory names the cluster for the call, and the call names it for the worker.
#[test]
fn u106_a_worker_starts_also_where_several_clusters_are_configured() {
    let (still, spool) = offered(3);
    still.site.add("[clusters.other]\npgdata = \"/nowhere\"\n");
    let (first, others) = still.segments.split_first().unwrap();
    still.push(first).succeed();
    acknowledged(&still, first);
    wait_until("the others are shipped", || {
        let noted = noted(&spool, ".shipped");
        others.iter().all(|name| noted.contains(name))
    });
    wait_until("the worker has ended", || !has_worker(&spool));
}

#[test]
fn p20_on_s3_the_worker_is_pitr_and_what_was_refused_is_not_acknowledged() {
    let still = Still::new(17, 1, 4);
    let site = Bucketed::new(&still.cluster, Peer::own(), "");
    let spool = site.spool();
    for name in &still.segments {
        offer(&still, name);
    }
    let push = |name: &str| site.push(&still.cluster, name);
    let [first, second, third, refused] = still.segments.as_slice() else {
        unreachable!()
    };
    let fault = S3Fault::Error(403, "AccessDenied");
    let fired = site.peer.server().fault(refused, u64::MAX, fault);
    push(first).succeed();
    acknowledged(&still, first);
    for name in [second, third] {
        push(name).succeed();
        acknowledged(&still, name);
    }
    push(refused).exits(31);
    assert!(fired.times() > 0);
    assert!(!noted(&spool, ".shipped").contains(refused));
    site.peer.server().heal();
    push(refused).succeed();
    acknowledged(&still, refused);
    assert_eq!(noted(&spool, ".failed"), [""; 0]);
    wait_until("the worker has ended", || !has_worker(&spool));
    // A second time: all of them by one worker, and then without a request.
    for name in &still.segments {
        std::fs::remove_file(still.wal(&format!("archive_status/{name}.done"))).unwrap();
        offer(&still, name);
    }
    push(first).succeed();
    acknowledged(&still, first);
    wait_until("the others are shipped", || {
        let noted = noted(&spool, ".shipped");
        still.segments[1..].iter().all(|name| noted.contains(name))
    });
    wait_until("the worker has ended", || !has_worker(&spool));
    site.peer.server().clear_log();
    for name in &still.segments[1..] {
        let run = push(name).succeed();
        assert_eq!(run.stderr, "");
    }
    assert_eq!(site.peer.server().log(), [""; 0]);
    for name in &still.segments {
        let fetched = still.wal("RECOVERYXLOG");
        let fetch = site.command(pitr_restore(), &still.cluster);
        fetch.args([name, "pg_wal/RECOVERYXLOG"]).succeed();
        let same = std::fs::read(&fetched).unwrap() == std::fs::read(still.wal(name)).unwrap();
        assert!(same, "{name}");
    }
}

/// A stopped cluster with ready segments of noise, and a bucket behind a slow link, over which a segment takes longer than a call has.
struct SlowLink {
    cluster: Cluster,
    site: Bucketed,
    proxy: Proxy,
    segments: Vec<String>,
}

const CALL_SECONDS: u64 = 6;
const SLOW_BYTES_PER_SECOND: u64 = 1_000_000;

impl SlowLink {
    fn new(count: usize) -> SlowLink {
        let mut cluster = Cluster::builder(17).without_fsync().start();
        let client = cluster.client();
        client.sql("create table noise (b bytea); alter table noise alter b set storage external");
        client.sql("select pg_switch_wal()");
        let segments: Vec<String> = (0..count)
            .map(|_| {
                // Most of a segment, of which nothing can be compressed.
                client.sql(
                    "insert into noise select string_agg(sha256(random()::text::bytea), '') \
                     from generate_series(1, 12) parts, generate_series(1, 31250) group by parts",
                );
                client.value("select pg_walfile_name(pg_switch_wal())")
            })
            .collect();
        drop(client);
        cluster.stop(crate::common::Stop::Immediate);
        let site = Bucketed::new(&cluster, Peer::own(), "");
        let endpoint = site.peer.endpoint();
        let proxy = Proxy::to(crate::s3_slow::port_of(&endpoint));
        let slow = format!("http://127.0.0.1:{}", proxy.port());
        crate::common::edit(&site.config, &endpoint, &slow);
        for name in &segments {
            let ready = format!("pg_wal/archive_status/{name}.ready");
            std::fs::write(cluster.pgdata().join(ready), "").unwrap();
        }
        SlowLink {
            cluster,
            site,
            proxy,
            segments,
        }
    }

    fn push(&self, name: &str) -> crate::common::Run {
        let push = self.site.push(&self.cluster, name);
        push.env("PITR_FAULT_SECONDS", CALL_SECONDS.to_string())
            .run()
    }

    fn has_worker(&self) -> bool {
        has_worker(&self.site.spool())
    }

    /// Requires that all segments are acknowledged in the end, by a worker alone.
    fn arrives(&self) {
        self.proxy
            .throttle(Way::ToServer, Some(SLOW_BYTES_PER_SECOND));
        assert_ne!(self.push(&self.segments[0]).code(), 0);
        wait_until("all are acknowledged", || {
            self.segments.iter().all(|name| self.push(name).code() == 0)
        });
        assert!(self.proxy.counts().throttled > 0);
        let server = self.site.peer.server();
        for name in &self.segments {
            let bytes = server.object(&server.key(name)).len() as u64;
            let least = CALL_SECONDS * SLOW_BYTES_PER_SECOND * 3 / 2;
            assert!(bytes > least, "{bytes} bytes go up too soon");
        }
        wait_until("the worker has ended", || !self.has_worker());
        assert_eq!(noted(&self.site.spool(), ".failed"), [""; 0]);
    }
}

#[test]
fn f20_over_a_slow_link_the_worker_brings_in_what_takes_longer_than_a_call() {
    SlowLink::new(2).arrives();
}

#[test]
fn w63_an_outage_keeps_no_file_from_the_worker_that_alone_can_bring_it_in() {
    let mut link = SlowLink::new(3);
    // Behind the first new one, files go side by side.
    let first = link.segments.remove(0);
    for name in &link.segments {
        let fault = S3Fault::Error(403, "AccessDenied");
        link.site.peer.server().fault(name, u64::MAX, fault);
    }
    link.push(&first).success();
    let ready = format!("pg_wal/archive_status/{first}.ready");
    std::fs::remove_file(link.cluster.pgdata().join(ready)).unwrap();
    wait_until("the worker has ended", || !link.has_worker());
    assert_eq!(noted(&link.site.spool(), ".failed"), link.segments);
    link.site.peer.server().heal();
    link.arrives();
}

#[test]
fn w64_a_file_for_which_a_call_is_too_short_gets_a_worker_though_no_other_waits() {
    SlowLink::new(1).arrives();
}

#[test]
fn a_worker_for_a_bucket_leaves_with_1_too() {
    let still = Still::new(17, 1, 3);
    let site = Bucketed::new(&still.cluster, Peer::own(), "");
    let spool = site.spool();
    for name in &still.segments {
        offer(&still, name);
    }
    let push = pitr_archive().arg("--config").arg(&site.config);
    let push = push
        .arg(format!("pg_wal/{}", still.segments[0]))
        .env("PITR_CLUSTERS_MAIN_SPOOL_DIR", &spool)
        .dir(still.cluster.pgdata());
    let refused = S3Fault::Error(403, "AccessDenied");
    let fired = site.peer.server().fault("/", u64::MAX, refused);
    let (run, ended) = push.run_with_orphans();
    assert_eq!((run.code(), ended.as_slice()), (31, &[1][..]), "{run}");
    assert!(fired.times() > 0);
    site.peer.server().heal();
    std::fs::remove_dir_all(&spool).unwrap();
    let (run, ended) = push.run_with_orphans();
    assert_eq!((run.code(), ended.as_slice()), (0, &[1][..]), "{run}");
    assert!(noted(&spool, ".shipped").contains(&still.segments[2]));
}

#[test]
fn what_a_program_for_credentials_leaves_running_does_not_keep_the_lock_of_a_worker() {
    let still = Still::new(17, 1, 3);
    let site = Bucketed::new(&still.cluster, Peer::own(), "");
    for name in &still.segments {
        offer(&still, name);
    }
    let spool = site.spool();
    let left = site.sandbox.file("left", "");
    // The process that it leaves outlives the patience of this test, and its third descriptor is the program's standard
    // input.
    let program = format!(
        "exec 3<&0\nsleep 300 >/dev/null 2>&1 &\necho $! >>'{}'\n\
         echo '{{\"Version\": 1, \"AccessKeyId\": \"{KEY}\", \"SecretAccessKey\": \"{SECRET}\"}}'\n",
        left.display()
    );
    let program = site.sandbox.file("program", program);
    let line = format!("credential_process = /bin/sh {}", program.display());
    let profiles = site
        .sandbox
        .file("profiles", format!("[profile program]\n{line}\n"));
    let config = with_profile(&site.config, &site.sandbox, "program");
    std::fs::rename(config, &site.config).unwrap();
    let push = site.push(&still.cluster, &still.segments[0]);
    push.env("AWS_CONFIG_FILE", &profiles).succeed();
    wait_until("a worker ships the others, and ends", || {
        noted(&spool, ".shipped").len() == 2 && !has_worker(&spool)
    });
    let left = std::fs::read_to_string(left).unwrap();
    assert!(!left.is_empty(), "nobody asked for credentials");
    for pid in left.lines().map(|pid| pid.parse().unwrap()) {
        let given = std::fs::read_link(format!("/proc/{pid}/fd/3"));
        send(pid, Signal::KILL);
        assert_eq!(given.unwrap(), Path::new("/dev/null"));
    }
}

#[test]
fn p20_a_note_is_worth_nothing_when_the_disk_beside_a_bucket_is_gone() {
    let still = Still::new(17, 1, 3);
    let site = Bucketed::new(&still.cluster, Peer::own(), "");
    let (spool, disk) = (site.spool(), site.sandbox.join("disk"));
    let more = format!(
        "\n[repositories.disk]\nurl = \"file://{}\"\n",
        disk.display()
    );
    crate::common::append(&site.config, &more);
    site.pitr().words("init --quiet").succeed();
    let push = |name: &str| site.push(&still.cluster, name);
    let [first, second, third] = still.segments.as_slice() else {
        unreachable!()
    };
    for name in &still.segments {
        offer(&still, name);
    }
    push(first).succeed();
    acknowledged(&still, first);
    wait_until("the others are shipped", || {
        noted(&spool, ".shipped") == [second.as_str(), third]
    });
    wait_until("the worker has ended", || !has_worker(&spool));
    site.peer.server().clear_log();
    push(second).succeed();
    acknowledged(&still, second);
    assert_eq!(site.peer.server().log(), [""; 0]);
    let aside = site.sandbox.join("aside");
    std::fs::rename(&disk, &aside).unwrap();
    let run = push(third).run();
    assert_ne!(run.code(), 0, "{run}");
    std::fs::rename(&aside, &disk).unwrap();
    push(third).succeed();
    let has = |name: &str| site.peer.server().keys().iter().any(|k| k.ends_with(name));
    assert!(still.segments.iter().all(|name| has(name)));
}

#[test]
fn c12_a_worker_that_stands_still_is_waited_for_once_and_is_told() {
    let still = Still::new(15, 1, 8);
    let spool = spool_of(&still.site);
    // Nobody else waits for it, so no worker is started; the spool is made.
    still.push(&still.segments[0]).succeed();
    for name in &still.segments[1..] {
        offer(&still, name);
    }
    // This process has the lock, as a worker that is stopped.
    let mut folders = std::fs::read_dir(&spool).unwrap();
    let path = folders.next().unwrap().unwrap().path().join("lock");
    std::fs::write(&path, "4711").unwrap();
    user::own(&path);
    let lock = std::fs::File::open(&path).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let push = |n: usize, seconds: &str| {
        let name = &still.segments[n];
        let run = still.push(name).env("PITR_FAULT_SECONDS", seconds).run();
        acknowledged(&still, name);
        run.success()
    };
    let complaint = "the worker that archives ahead (process 4711) has come to nothing";
    // Half of it is for the worker, and half for the disk.
    push(1, "20").expect_stderr(complaint);
    // With half of this time, each would wait for an hour.
    for n in 2..5 {
        let run = push(n, "7200");
        assert!(!run.stderr.contains("has come to nothing"), "{run}");
    }
    let told = "process 4711 has archived nothing";
    let doctor = || still.site.pitr().words("doctor --json").run();
    doctor().expect_stdout(told);
    // Not by closing it: a child of another test may have it until its exec.
    rustix::fs::flock(&lock, FlockOperation::Unlock).unwrap();
    // Another one begins, and is believed.
    push(5, "7200");
    wait_until("the worker has ended", || !has_worker(&spool));
    assert!(!path.with_file_name("hung").exists());
    let run = doctor();
    assert!(!run.stdout.contains("has archived nothing"), "{run}");
    assert_eq!(noted(&spool, ".shipped"), still.segments[6..]);
    for name in &still.segments {
        still.check(name);
    }
}

#[test]
fn c3_without_a_home_variable_the_spool_lies_below_the_accounts_home() {
    require_root!("c3_without_a_home_variable_the_spool_lies_below_the_accounts_home");
    let still = Still::new(17, 1, 4);
    let home = still.site.sandbox().dir("home");
    for name in &still.segments {
        offer(&still, name);
    }
    let (uid, gid) = user::ids();
    let passwd = format!(
        "root:x:0:0::/root:/bin/sh\nnobody:x:{uid}:{gid}::{}:/bin/sh\n",
        home.display()
    );
    let passwd = still.site.sandbox().file("passwd", passwd);
    // As pg_ctlcluster starts a server: with nothing in the environment. The mount is seen by this command alone.
    let debian = format!(
        "mount --bind {} /etc/passwd && exec setpriv --reuid={uid} --regid={gid} --clear-groups env -i \"$@\"",
        passwd.display()
    );
    let push = still.push(&still.segments[0]).privileged();
    push.under(["unshare", "-m", "sh", "-c", &debian, "sh"])
        .succeed();
    let spool = home.join(".cache/pitr/spool");
    wait_until("the others went ahead", || {
        let noted = noted(&spool, ".shipped");
        still.segments[1..].iter().all(|name| noted.contains(name))
    });
    wait_until("the worker has ended", || !has_worker(&spool));
}

#[test]
fn c3_j79_archiving_that_is_stuck_is_told_also_without_a_spool_and_is_critical_after_15_minutes() {
    let still = Still::new(17, 1, 1);
    still.push(&still.segments[0]).succeed();
    let info = || still.site.pitr().arg("info").run();
    let stuck = "archiving is stuck: 1 file, the oldest for ";
    assert!(!info().stdout.contains(stuck), "{}", info());
    offer(&still, &still.segments[0]);
    let ready = still.wal(&format!("archive_status/{}.ready", still.segments[0]));
    for (waits, state, said) in [(400, "warning", "warn"), (910, "critical", "FAIL")] {
        let ago = std::time::SystemTime::now() - std::time::Duration::from_secs(waits);
        let file = std::fs::File::open(&ready).unwrap();
        file.set_modified(ago).unwrap();
        let doctor = still.site.pitr().arg("doctor").run().stdout;
        let line = doctor.lines().find(|line| line.contains("waiting"));
        assert!(line.is_some_and(|line| line.contains(said)), "{doctor}");
        let shown = still.site.pitr().words("info --json").run().json();
        let problems = shown["clusters"][0]["problems"].as_array().unwrap();
        let is_it = |one: &&serde_json::Value| one["message"].as_str().unwrap().contains(stuck);
        assert_eq!(
            problems.iter().find(is_it).unwrap()["state"],
            state,
            "{shown}"
        );
    }
    // And doctor names the reason why no cause is known. Not every account lacks a home, in which a spool could be.
    std::fs::write(spool_of(&still.site), "no directory").unwrap();
    let run = still.site.pitr().arg("doctor").run();
    assert!(run.stdout.contains("nothing is archived ahead"), "{run}");
    run.expect_stdout("set spool_dir in [clusters.main]");
}

#[test]
fn c4_info_names_the_repository_that_is_the_cause_now() {
    let (still, _spool) = offered(3);
    let other = still.site.add_repository("other", "");
    let first = &still.segments[0];
    let away = |repository: &Path, push: &dyn Fn()| {
        let gone = repository.with_extension("gone");
        std::fs::rename(repository, &gone).unwrap();
        push();
        let run = still.site.pitr().words("info --json").run();
        std::fs::rename(&gone, repository).unwrap();
        let problems = run.json()["clusters"][0]["problems"].to_string();
        let blocked = problems
            .split("archiving waits")
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        (blocked, run)
    };
    let fails = || {
        let run = still.push(first).run();
        assert_ne!(run.code(), 0, "{run}");
    };
    let named = |repository: &Path| format!("{}\\\"", repository.display());
    let (local, other) = (still.site.repository(), other.as_path());
    for (gone, there) in [(local, other), (other, local), (local, other)] {
        let (blocked, run) = away(gone, &fails);
        let is_named = |repository| blocked.contains(&named(repository));
        assert!(is_named(gone) && !is_named(there), "{run}");
    }
}
