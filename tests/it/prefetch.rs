//! Fetching ahead: a segment that waits is handed over, nothing else ever is, and nothing stays behind. Row ids are in the names.
//!
//! Most tests are the server themselves, as far as `pitr-restore` can tell: `postmaster.pid` names this process.

use std::path::{Path, PathBuf};

use crate::common::mount::HangingDisk;
use crate::common::proxy::{Proxy, Way};
use crate::common::s3::{BUCKET, Fault, KEY, S3Server};
use crate::common::{
    Cluster, Program, Sandbox, Site, Still, Stop, copy_tree, fault, user, wait_until,
};
use crate::fetch::{Away, with_second};
use crate::{per_major, require_root, require_strace};

/// How many segments wait at most, unless the configuration says otherwise.
const COUNT: usize = 8;

/// A data directory whose recovery asks for one segment after the other.
struct Recovery {
    still: Still,
    pgdata: PathBuf,
}

impl Recovery {
    /// The first `archived` of `count` segments are in the archive.
    fn new(megabytes: u32, count: usize, archived: usize) -> Recovery {
        let still = Still::new(17, megabytes, count);
        for name in &still.segments[..archived] {
            still.push(name).succeed();
        }
        let pgdata = still.cluster.pgdata().to_owned();
        recover(&pgdata, 1_700_000_000);
        Recovery { still, pgdata }
    }

    fn ahead(&self) -> PathBuf {
        self.pgdata.join("pg_wal/pitr.ahead")
    }

    fn name(&self, n: usize) -> &str {
        &self.still.segments[n]
    }

    /// The n-th segment, as recovery asks for it.
    fn fetch(&self, n: usize) -> Program {
        self.still.fetch(self.name(n))
    }

    /// Recovery gets the n-th segment, with the bytes that it had.
    fn get(&self, n: usize) {
        self.still.check(self.name(n));
    }

    /// Has a worker begin, by asking for the first two segments.
    fn begin(&self) {
        self.get(0);
        self.get(1);
    }

    fn waits(&self, n: usize) -> bool {
        self.ahead().join(self.name(n)).exists()
    }

    fn wait_for(&self, from: usize, to: usize) {
        let what = format!("segments {from} to {to} wait");
        wait_until(&what, || (from..=to).all(|n| self.waits(n)));
    }

    /// Kills the worker, where there is one, and removes what it leaves.
    fn wait_gone_or_dead(&self) {
        wait_until("no worker is left", || {
            if let Some(worker) = self.worker() {
                let pid = rustix::process::Pid::from_raw(worker).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let _ = std::fs::remove_dir_all(self.ahead());
            self.worker().is_none() && !self.ahead().exists()
        });
    }

    /// Sets prefetch_segments.
    fn allow(&self, count: u32) {
        let config = std::fs::read_to_string(self.still.site.config()).unwrap();
        let lines = config
            .lines()
            .filter(|l| !l.starts_with("prefetch_segments"));
        let text: String = lines.map(|l| format!("{l}\n")).collect();
        let main = "[clusters.main]\n";
        assert!(text.contains(main), "{text}");
        let text = text.replace(main, &format!("{main}prefetch_segments = {count}\n"));
        std::fs::write(self.still.site.config(), text).unwrap();
    }

    /// A worker that goes on from the second segment, and ends when nobody has asked for anything for a second.
    fn worker_here(&self) -> Program {
        let worker = self.still.site.restore().args(["--prefetch", self.name(1)]);
        let worker = worker.arg(self.still.wal("RECOVERYXLOG"));
        worker.env("PITR_FAULT_SECONDS", "1")
    }

    fn wait_gone(&self) {
        wait_until("nothing is left", || !self.ahead().exists());
    }

    fn worker(&self) -> Option<i32> {
        worker_of(&self.ahead())
    }

    fn kill(&self) {
        let worker = self.worker().expect("a worker is at work");
        let pid = rustix::process::Pid::from_raw(worker).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_until("the worker is dead", || self.worker() != Some(worker));
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.pgdata.join("recovery.signal"));
    }
}

/// The process id of the worker that fills this folder, from the lock that it holds.
pub fn worker_of(ahead: &Path) -> Option<i32> {
    let lock = std::fs::File::open(ahead.join("lock")).ok()?;
    let wanted = rustix::process::Flock::from(rustix::process::FlockType::WriteLock);
    let held = rustix::process::fcntl_getlk(&lock, &wanted).ok()??;
    held.pid.map(|p| p.as_raw_nonzero().get())
}

/// Makes this process the server of a data directory that recovers, and that was `started` then.
pub fn recover(pgdata: &Path, started: u32) {
    let pid = pgdata.join("postmaster.pid");
    let text = format!("{}\n{}\n{started}\n", std::process::id(), pgdata.display());
    std::fs::write(&pid, text).unwrap();
    let signal = pgdata.join("recovery.signal");
    std::fs::write(&signal, "").unwrap();
    user::own(&pid);
    user::own(&signal);
}

#[test]
fn segments_that_wait_are_handed_over_without_the_archive() {
    let recovery = Recovery::new(1, 14, 14);
    recovery.get(0);
    assert!(
        !recovery.ahead().exists(),
        "one segment may be all there is to fetch"
    );
    recovery.get(1);
    recovery.wait_for(2, 1 + COUNT);
    assert!(!recovery.waits(2 + COUNT), "no more than was asked for");
    let away = Away::new(&recovery.still.site);
    for n in 2..2 + COUNT {
        recovery.get(n);
    }
    // Whoever asks the archive does not get far.
    let by_hand = |n: usize| {
        let program = recovery.still.site.restore().arg(recovery.name(n));
        program.arg(recovery.still.wal("by-hand")).run()
    };
    by_hand(11).expect_code(208);
    drop(away);
    // A worker that is just ending hears nothing any more.
    wait_until("the next ones wait", || {
        recovery.get(10);
        (11..14).all(|n| recovery.waits(n))
    });
    // A fetch by hand gets nothing from there, and takes nothing away.
    by_hand(11).success();
    assert!(recovery.waits(11));
    for n in 11..14 {
        recovery.get(n);
    }
    recovery.wait_gone();
}

#[test]
fn f15_what_reaches_the_archive_later_is_found_at_once() {
    let recovery = Recovery::new(1, 9, 4);
    recovery.begin();
    recovery.wait_for(2, 3);
    for n in 4..9 {
        // The worker has looked for it in vain, too.
        recovery.fetch(n).exits(1);
        recovery.still.push(recovery.name(n)).succeed();
        recovery.get(n);
    }
}

#[test]
fn f17_what_another_recovery_left_is_not_used() {
    let recovery = Recovery::new(1, 12, 12);
    recovery.begin();
    recovery.wait_for(2, 5);
    recovery.kill();
    // Killed, it leaves what looks right: false bytes under the next name would be handed over, if anything were.
    let bait = recovery.ahead().join(recovery.name(2));
    std::fs::write(&bait, vec![7; 1 << 20]).unwrap();
    let copy = recovery.still.site.sandbox().join("left");
    copy_tree(&recovery.ahead(), &copy);
    recovery.get(2);
    recovery.wait_for(3, 6);

    // The lock is held, the note is that of another server, then of another data directory.
    let note = |recovery: &Recovery| std::fs::read(recovery.ahead().join("note")).unwrap();
    let of_server = note(&recovery);
    recover(&recovery.pgdata, 1_700_000_001);
    let elsewhere = Recovery::new(1, 4, 4);
    elsewhere.begin();
    elsewhere.wait_for(2, 3);
    for (n, foreign) in [(3, of_server), (4, note(&elsewhere))] {
        // A worker that was about to begin may come first.
        let mut held = None;
        wait_until("the lock is held", || {
            recovery.wait_gone_or_dead();
            copy_tree(&copy, &recovery.ahead());
            let lock = std::fs::OpenOptions::new()
                .write(true)
                .open(recovery.ahead().join("lock"));
            let wanted = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            held = lock
                .ok()
                .filter(|lock| rustix::fs::fcntl_lock(lock, wanted).is_ok());
            held.is_some()
        });
        let bait = recovery.ahead().join(recovery.name(n));
        std::fs::write(&bait, vec![7; 1 << 20]).unwrap();
        user::own(&bait);
        std::fs::write(recovery.ahead().join("note"), foreign).unwrap();
        recovery.get(n);
        assert!(!bait.exists(), "it is removed, unused");
        drop(held);
    }
    recovery.get(5);
    recovery.wait_for(6, 9);

    // Another repository of the same cluster under the same name, while a worker is at it.
    let worker = recovery.worker().expect("a worker is at work");
    let repository = recovery.still.site.repository().to_owned();
    let other = recovery.still.site.sandbox().join("other");
    std::fs::rename(&repository, &other).unwrap();
    recovery.still.site.pitr().arg("init").succeed();
    for name in &recovery.still.segments {
        recovery.still.push(name).succeed();
    }
    wait_until("the worker is one for the new repository", || {
        recovery.get(7);
        recovery.get(8);
        recovery.worker().is_some_and(|other| other != worker)
    });
}

#[test]
fn f17_a_directory_that_others_may_write_is_not_used() {
    let recovery = Recovery::new(1, 6, 6);
    recovery.begin();
    recovery.wait_for(2, 5);
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(recovery.ahead(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(recovery.ahead().join(recovery.name(2)), vec![7; 1 << 20]).unwrap();
    recovery.get(2);
}

/// A segment that waits continues the last one that came from here. Behind one from elsewhere the archive is asked again.
#[test]
fn f24_behind_a_segment_from_elsewhere_nothing_is_handed_over_that_waits() {
    let recovery = Recovery::new(1, 8, 8);
    recovery.begin();
    recovery.wait_for(2, 5);
    // The prefetched copy is the only one left: a recovery that gets the segment has used it.
    let object = recovery.still.site.object(recovery.name(3));
    let aside = recovery.still.site.sandbox().join("aside");
    std::fs::rename(&object, &aside).unwrap();
    // The server has the one between in its pg_wal, and never asked for it.
    assert!(recovery.still.wal(recovery.name(2)).exists());
    let run = recovery.fetch(3).run();
    assert!(!run.is_success(), "{run}");
    assert!(!recovery.still.wal("RECOVERYXLOG").exists(), "{run}");
    assert!(recovery.waits(2) && recovery.waits(3), "{run}");
    recovery.get(2);
    recovery.get(3);
    std::fs::rename(&aside, &object).unwrap();
}

#[test]
fn f16_names_come_from_the_segment_size() {
    let recovery = Recovery::new(64, 4, 4);
    recovery.allow(1);
    // The one that waits, as many again for the server, and what is handed over.
    let disk = rustix::fs::statvfs(&recovery.pgdata).unwrap();
    let free = disk.f_bavail * disk.f_frsize;
    assert!(
        free >= 200 << 20,
        "200 MiB are needed beside {}: {free}",
        recovery.pgdata.display()
    );
    recovery.begin();
    recovery.wait_for(2, 2);
    recovery.get(2);
    recovery.wait_for(3, 3);
    recovery.get(3);
    recovery.wait_gone();
}

#[test]
fn f13_a_worker_that_is_killed_leaves_nothing_that_is_used() {
    let recovery = Recovery::new(1, 30, 30);
    recovery.begin();
    for n in 2..28 {
        // Whatever it is just doing.
        if let Some(worker) = recovery.worker() {
            let pid = rustix::process::Pid::from_raw(worker).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            // On a disk that is busy that takes a while.
            wait_until("it is gone", || recovery.worker() != Some(worker));
        }
        recovery.get(n);
    }
    recovery.fetch(28).succeed();
    recovery.wait_for(29, 29);
    // Promoted after a kill: the server looks for the next timeline.
    recovery.kill();
    assert!(recovery.ahead().exists());
    recovery.still.fetch("00000002.history").exits(1);
    assert!(!recovery.ahead().exists());
}

#[test]
fn nothing_is_left_when_recovery_ends_is_stopped_or_loses_its_server() {
    let recovery = Recovery::new(1, 14, 14);
    let signal = recovery.pgdata.join("recovery.signal");
    let ends: [&dyn Fn(); 4] = [
        &|| std::fs::remove_file(&signal).unwrap(),
        &|| recovery.still.cluster.touch("promote"),
        &|| std::fs::remove_file(recovery.pgdata.join("postmaster.pid")).unwrap(),
        &|| {
            let pid = rustix::process::Pid::from_raw(recovery.worker().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        },
    ];
    for end in ends {
        recover(&recovery.pgdata, 1_700_000_000);
        recovery.begin();
        recovery.wait_for(2, 1 + COUNT);
        end();
        recovery.wait_gone();
        let _ = std::fs::remove_file(recovery.pgdata.join("promote"));
    }
    recover(&recovery.pgdata, 1_700_000_000);
    recovery.begin();
    recovery.wait_for(2, 1 + COUNT);
    recovery.kill();
    let ended = recovery.still.site.restore().arg("--recovery-ended");
    ended.dir(&recovery.pgdata).succeed();
    assert!(!recovery.ahead().exists());
}

#[test]
fn what_nobody_asks_for_is_not_kept_for_ever() {
    require_strace!("what_nobody_asks_for_is_not_kept_for_ever");
    let recovery = Recovery::new(1, 14, 14);
    recovery.get(0);
    // The worker runs here, so that it is seen to work and to end.
    let (run, calls) = fault::trace(&recovery.worker_here(), &["renameat"]);
    run.success();
    let ahead = recovery.ahead();
    let named = calls.iter().filter(|call| call.touches(&ahead)).count();
    assert!(named >= COUNT, "{named} were fetched");
    assert!(!ahead.exists());
}

#[test]
fn a_disk_that_gets_full_in_the_midst_of_a_segment_leaves_nothing_of_it() {
    require_strace!("a_disk_that_gets_full_in_the_midst_of_a_segment_leaves_nothing_of_it");
    let recovery = Recovery::new(1, 6, 6);
    recovery.get(0);
    let worker = recovery.worker_here();
    let (_, calls) = fault::trace(&worker, &["write"]);
    let ahead = recovery.ahead();
    let writes = calls.iter().filter(|call| call.touches(&ahead));
    let most = writes.map(|call| call.nth).max().unwrap();
    assert!(most > 2, "a segment is written in several pieces");
    // Each thread fetches one segment; the note is the first of all.
    for nth in [1, 2, most - 1, most] {
        let full = fault::Fault::error("write", "ENOSPC").at(format!("{nth}+"));
        let fired = std::thread::scope(|scope| {
            let worked = scope.spawn(|| fault::inject(&worker, &full));
            while !worked.is_finished() {
                for file in recovery.still.segments.iter().map(|name| ahead.join(name)) {
                    let length = std::fs::metadata(&file).map_or(1 << 20, |m| m.len());
                    assert_eq!(length, 1 << 20, "{nth}: half of {}", file.display());
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let (run, fired) = worked.join().unwrap();
            run.success();
            fired
        });
        assert!(fired > 0, "{nth}");
        assert!(!ahead.exists(), "{nth}");
    }
    recovery.get(2);
}

#[test]
fn prefetch_segments_is_how_many_and_0_is_none() {
    require_strace!("prefetch_segments_is_how_many_and_0_is_none");
    let recovery = Recovery::new(1, 6, 6);
    recovery.allow(2);
    recovery.get(0);
    // A worker that runs to its end has fetched all that it ever would.
    let (run, calls) = fault::trace(&recovery.worker_here(), &["renameat"]);
    run.success();
    let ahead = recovery.ahead();
    let is_fetched = |n: &usize| {
        let name = Path::new(recovery.name(*n));
        let mut calls = calls.iter().filter(|call| call.touches(&ahead));
        calls.any(|call| call.touches(name))
    };
    let fetched: Vec<usize> = (0..6).filter(is_fetched).collect();
    assert_eq!(fetched, [2, 3]);
    recovery.begin();
    recovery.wait_for(2, 3);
    recovery.allow(0);
    recovery.get(2);
    recovery.get(3);
    // The one that was at work belongs to another configuration.
    recovery.wait_gone();
    recovery.allow(65);
    recovery.fetch(4).exits(202).expect_stderr("0 to 64");
}

#[test]
fn f20_what_a_slow_store_holds_is_fetched_ahead_by_pitr() {
    let recovery = Recovery::new(1, 6, 0);
    let still = &recovery.still;
    let (store, sandbox) = (S3Server::start(), Sandbox::new("bucket"));
    let (_, port) = store
        .endpoint()
        .rsplit_once(':')
        .map(|(a, p)| (a.to_owned(), p.to_owned()))
        .unwrap();
    let proxy = Proxy::to(port.parse().unwrap());
    let text = std::fs::read_to_string(still.site.config()).unwrap();
    let (clusters, _) = text.split_once("[repositories.").unwrap();
    let config = format!(
        "{clusters}[repositories.store]\nurl = \"s3://{BUCKET}/pg\"\nendpoint = \"http://127.0.0.1:{}\"\n\
         region = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n",
        proxy.port(),
        store.credentials(&sandbox, KEY).display()
    );
    std::fs::write(still.site.config(), config).unwrap();
    still.site.pitr().words("init --quiet").succeed();
    still.push_all();
    proxy.throttle(Way::ToClient, Some(100_000));
    recovery.begin();
    recovery.wait_for(2, 5);
    assert!(proxy.counts().throttled > 0);
    proxy.refuse(true);
    proxy.reset();
    for n in 2..6 {
        recovery.get(n);
    }
    proxy.calm();
    recovery.wait_gone();
}

#[test]
fn f20_a_repository_that_is_away_is_left_alone_while_another_has_the_wal() {
    let recovery = Recovery::new(1, 12, 12);
    let site = &recovery.still.site;
    let (store, sandbox) = (S3Server::start(), Sandbox::new("bucket"));
    let text = std::fs::read_to_string(site.config()).unwrap();
    let (clusters, local) = text.split_once("[repositories.").unwrap();
    let config = format!(
        "{clusters}[repositories.lost]\nurl = \"s3://{BUCKET}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
         path_style = true\ncredentials_file = \"{}\"\nretry_budget = \"1s\"\n\n[repositories.{local}",
        store.endpoint(),
        store.credentials(&sandbox, KEY).display()
    );
    std::fs::write(site.config(), config).unwrap();
    let fired = store.fault("", u64::MAX, Fault::Error(503, "SlowDown"));
    recovery.begin();
    recovery.wait_for(2, 9);
    assert!(fired.times() > 0, "it was asked");
    store.clear_log();
    // The worker goes on with what follows, and has to open the repositories for it.
    recovery.get(2);
    recovery.get(3);
    recovery.wait_for(10, 11);
    assert_eq!(store.log(), Vec::<String>::new());
}

/// How many threads of a process have this name.
fn threads_named(process: impl std::fmt::Display, name: &str) -> usize {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let names = threads.map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")));
    names
        .filter(|n| n.as_ref().is_ok_and(|n| n.trim() == name))
        .count()
}

#[test]
fn f20_a_repository_that_hangs_is_passed_over_while_another_has_the_wal() {
    require_root!("f20_a_repository_that_hangs_is_passed_over_while_another_has_the_wal");
    let recovery = Recovery::new(1, 13, 13);
    let still = &recovery.still;
    with_second(still, "");
    let repository = still.site.repository().to_owned();
    let segments = still.site.object(recovery.name(0));
    // Opening it hangs, or only reading of it does.
    for hangs in [repository.as_path(), segments.parent().unwrap()] {
        let hanging = HangingDisk::over(hangs);
        recovery.begin();
        recovery.wait_for(2, 9);
        let worker = recovery.worker().expect("a worker is at work");
        for n in 2..5 {
            recovery.get(n);
        }
        recovery.wait_for(10, 12);
        assert_eq!(recovery.worker(), Some(worker), "it is the same one");
        // At most one for each of those that were on their way when it fell silent. A thread that
        // has its answer from the other repository may not have ended yet.
        wait_until("who hangs is not asked again", || {
            (1..=2).contains(&threads_named(worker, "ask"))
        });
        // It ends in spite of them.
        std::fs::remove_file(recovery.pgdata.join("recovery.signal")).unwrap();
        recovery.wait_gone();
        wait_until("the worker is gone", || {
            !Path::new(&format!("/proc/{worker}/exe")).exists()
        });
        drop(hanging);
        recover(&recovery.pgdata, 1_700_000_000);
    }
}

/// A restore_command that notes which segments waited. From the third of a timeline on it gives the worker the time that it needs.
/// Script and notes lie in `sandbox`.
pub fn noting(site: &Site, sandbox: &Sandbox) -> (String, PathBuf) {
    let log = sandbox.file("asked", "");
    let script = sandbox.file(
        "restore.sh",
        format!(
            "ahead=$(dirname \"$2\")/pitr.ahead\n\
             archived={}/wal/$(echo $1 | cut -c1-8)/$(echo $1 | cut -c9-16)/$1\n\
             if [ \"$(basename \"$2\")\" = RECOVERYXLOG ] && [ -e \"$archived\" ] && ! grep -q \"delivered $1\" {log} && [ $(grep -c \"delivered $(echo $1 | cut -c1-8)0\" {log}) -ge 2 ]; then\n\
             n=0; while [ ! -e \"$ahead/$1\" ] && [ $n -lt 600 ]; do sleep 0.1; n=$((n+1)); done; fi\n\
             waited=$(stat -c %i \"$ahead/$1\" 2>/dev/null)\n\
             {} \"$1\" \"$2\" || exit $?\n\
             [ \"$waited\" = \"$(stat -c %i \"$2\")\" ] && echo \"waited $1\" >> {log}\n\
             echo \"delivered $1\" >> {log}\n",
            site.cluster_folder().display(),
            site.restore().shell(),
            log = log.display(),
        ),
    );
    (format!("/bin/sh {} %f %p", script.display()), log)
}

pub fn count(log: &Path, begin: &str) -> usize {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines().filter(|l| l.starts_with(begin)).count()
}

/// A real recovery takes what waits, over a change of the timeline, and leaves nothing.
fn a_server_recovers_from_what_was_fetched_ahead(major: u32) {
    let (site, mut origin) = Site::with_cluster(major);
    origin.sql("create table t (a int)");
    site.pitr().words("backup --quiet").succeed();
    let fill = |cluster: &Cluster, segments: u32| {
        let client = cluster.client();
        for _ in 0..segments {
            client.sql("insert into t select g from generate_series(1, 100) g");
            client.sql("select pg_switch_wal()");
        }
        cluster.archive_now();
    };
    fill(&origin, 9);
    // Promoted, it goes on with timeline 2.
    let restore_command = site.restore().words("%f %p").shell();
    origin.append_config("restore_command", &restore_command);
    origin.stop(Stop::Fast);
    origin.touch("standby.signal");
    origin.start();
    origin.promote();
    fill(&origin, 9);
    wait_until("nothing is left of the standby", || {
        !origin.pgdata().join("pg_wal/pitr.ahead").exists()
    });
    origin.stop(Stop::Fast);

    let to = site.sandbox().dir("copy").join("data");
    site.pitr().restore_to(&to).succeed();
    let (command, log) = noting(&site, site.sandbox());
    let copy = Cluster::open(major, &to)
        .without_fsync()
        .option("restore_command", command)
        .promoted();
    assert_eq!(copy.value("select count(*) from t"), "1800");
    for timeline in [1, 2] {
        let waited = count(&log, &format!("waited {timeline:08X}"));
        assert!(
            waited >= 5,
            "{waited} of timeline {timeline} were fetched ahead"
        );
    }
    wait_until("nothing is left", || !to.join("pg_wal/pitr.ahead").exists());
}

per_major!(a_server_recovers_from_what_was_fetched_ahead);
