//! Fetching through the front door: the answers that PostgreSQL gets, and those that it must never get. Row ids are in
//! the names.
//!
//! If a row demands an answer within a second, the limit here is some more: the machine may be busy with other tests.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pitr::archive::asking::Inquiry;
use pitr::archive::fetch::{Fetch, Fetched, Place, Questions, fetch};
use pitr::error::Code;
use pitr::pg::lsn::Lsn;
use pitr::progress::Silent;
use pitr::repo::repository::Repository;
use rustix::process::Signal;

use crate::common::fault::{self, Fault, MUTATING};
use crate::common::mount::{HangingDisk, SmallDisk};
use crate::common::{
    Cluster, PATIENCE, Program, Run, Sandbox, Site, Still, Stop, files_below, only, patiently,
    user, wait_until,
};
use crate::corruption::held::{Held, Objects};
use crate::{per_major, require_mounts, require_root, require_strace};

const MIB: u64 = 1 << 20;

/// A still cluster whose segments are archived.
fn archived(count: usize) -> Still {
    let still = Still::new(17, 1, count);
    still.push_all();
    still
}

/// The name of the segment after this one (1 MiB segments).
fn after(name: &str) -> String {
    let (log, seg) = (&name[8..16], u32::from_str_radix(&name[16..], 16).unwrap());
    format!("{}{log}{:08X}", &name[..8], seg + 1)
}

/// Makes the data directory that of a standby which streams, one which does not, or one in archive recovery.
pub fn mode(still: &Still, signal: &str, streams: bool) {
    for old in [
        "recovery.signal",
        "standby.signal",
        "promote",
        "pg_wal/pitr.promotion",
    ] {
        let _ = std::fs::remove_file(still.cluster.pgdata().join(old));
    }
    if !signal.is_empty() {
        still.cluster.touch(signal);
    }
    // As a server that was started an hour ago would have it.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let pid = format!(
        "1\n{}\n{}\n",
        still.cluster.pgdata().display(),
        now.as_secs() - 3600
    );
    std::fs::write(still.cluster.pgdata().join("postmaster.pid"), pid).unwrap();
    let conninfo = if streams {
        "primary_conninfo = 'host=primary'\n"
    } else {
        ""
    };
    std::fs::write(
        still.cluster.pgdata().join("postgresql.auto.conf"),
        conninfo,
    )
    .unwrap();
}

/// The repository is away until this is dropped, and leaves its empty mount point behind.
pub struct Away {
    from: PathBuf,
    to: PathBuf,
}

impl Away {
    pub fn new(site: &Site) -> Away {
        let (from, to) = (site.repository().to_owned(), site.sandbox().join("away"));
        std::fs::rename(&from, &to).unwrap();
        std::fs::create_dir(&from).unwrap();
        user::own(&from);
        Away { from, to }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.from).unwrap();
        std::fs::rename(&self.to, &self.from).unwrap();
    }
}

/// Status 1 with a warning, and nothing at the target.
pub fn not_here_with_warning(still: &Still, run: Run) {
    let run = run.expect_code(1);
    assert!(
        run.stderr.starts_with("pitr-restore: warning: ") && run.stderr.contains("not here"),
        "{run}"
    );
    assert!(!still.wal("RECOVERYXLOG").exists(), "{run}");
}

#[test]
fn f02_the_end_of_the_archive_is_told_at_once_and_without_a_word() {
    let still = archived(2);
    mode(&still, "recovery.signal", false);
    let next = after(&still.segments[1]);
    let started = Instant::now();
    for name in [
        next.as_str(),
        "00000002.history",
        "000000020000000000000001",
    ] {
        let run = still.fetch(name).exits(1);
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    }
    assert!(started.elapsed() < PATIENCE);
    assert!(!still.wal("RECOVERYXLOG").exists());
}

#[test]
fn f01_an_unreachable_repository_is_no_end_of_wal() {
    require_strace!("f01_an_unreachable_repository_is_no_end_of_wal");
    let still = archived(2);
    let next = after(&still.segments[1]);
    let unreachable = Fault::error("openat2", "ETIMEDOUT");
    // The error of a FUSE filesystem whose process has died.
    let dead = Fault::error("openat2", "ENOTCONN");
    for (name, unreachable) in [(still.segments[0].as_str(), &unreachable), (&next, &dead)] {
        // Recovery: tries for five minutes (here some seconds), says so, and stops.
        mode(&still, "recovery.signal", false);
        let fetch = |seconds: u64| {
            let fetch = still
                .fetch(name)
                .env("PITR_FAULT_SECONDS", seconds.to_string());
            let started = Instant::now();
            let (run, fired) = fault::inject(&fetch, unreachable);
            assert!(started.elapsed() >= Duration::from_secs(seconds), "{run}");
            (run, fired)
        };
        let tried =
            |(run, fired): &(Run, usize)| *fired >= 2 && run.stderr.contains("trying again");
        let (run, fired) = patiently(fetch, tried);
        assert!(fired >= 2, "it tried again: {fired}");
        run.expect_code(200)
            .expect_stderr("error R200")
            .expect_stderr("trying again");
        assert!(!still.wal("RECOVERYXLOG").exists());

        // A standby that streams goes on without the archive.
        mode(&still, "standby.signal", true);
        let (run, fired) = fault::inject(&still.fetch(name), unreachable);
        assert!(fired >= 1);
        not_here_with_warning(&still, run);
    }
    // Debian keeps the configuration elsewhere.
    let next_name = next.as_str();
    mode(&still, "standby.signal", false);
    let conf = still.site.sandbox().dir("etc").join("postgresql.conf");
    std::fs::write(&conf, "primary_conninfo = 'host=primary'\n").unwrap();
    user::own(&conf);
    let opts = format!(
        "/usr/bin/postgres \"-D\" \"/data\" \"-c\" \"config_file={}\"\n",
        conf.display()
    );
    std::fs::write(still.cluster.pgdata().join("postmaster.opts"), opts).unwrap();
    let (run, fired) = fault::inject(&still.fetch(next_name), &unreachable);
    assert!(fired >= 1);
    not_here_with_warning(&still, run);
    // Unless the configuration says stop.
    still.site.add_to_cluster("standby_outage = \"stop\"\n");
    let (run, fired) = fault::inject(&still.fetch(&next), &unreachable);
    assert!(fired >= 1);
    run.expect_code(200);
    let away = Away::new(&still.site);
    still.fetch(&next).exits(208);
    drop(away);
    still.fetch(&next).exits(1);
}

/// An answer that should take a second takes less than half of what `pg_ctl promote` waits for, also on a machine that
/// is loaded.
fn answers_promotion(took: Duration) {
    println!("a promotion is answered after {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}

/// One of several takes less than a repository across a network may be silent then.
pub fn answer_promotions(took: &[Duration]) {
    for took in took {
        answers_promotion(*took);
    }
    let best = took.iter().min().unwrap();
    assert!(*best < Duration::from_secs(5), "{took:?}");
}

#[test]
fn f01_a_repository_that_hangs_holds_up_neither_a_standby_nor_recovery_for_ever() {
    require_root!("f01_a_repository_that_hangs_holds_up_neither_a_standby_nor_recovery_for_ever");
    let still = archived(1);
    let fetch = still
        .fetch(&still.segments[0])
        .env("PITR_FAULT_SECONDS", "2");
    let hanging = HangingDisk::over(still.site.repository());
    mode(&still, "standby.signal", true);
    let started = Instant::now();
    not_here_with_warning(&still, fetch.run());
    assert!(
        (5..PATIENCE.as_secs()).contains(&started.elapsed().as_secs()),
        "{:?}",
        started.elapsed()
    );
    mode(&still, "recovery.signal", false);
    fetch.exits(200).expect_stderr("has not answered for");
    // A promotion is answered within a second, and shutdown at once.
    let promoted = || {
        mode(&still, "standby.signal", false);
        let mut running = fetch.spawn();
        wait_until("it says for whom it waits", || {
            let said = running.stderr();
            said.contains("has not answered for") && said.contains("waiting for it")
        });
        assert!(!running.is_done(), "a standby waits for ever");
        still.cluster.touch("promote");
        let asked = Instant::now();
        let run = running.wait();
        assert!(matches!(run.code(), 1 | 200), "{run}");
        asked.elapsed()
    };
    answer_promotions(&[promoted(), promoted(), promoted()]);
    mode(&still, "standby.signal", false);
    let mut running = fetch.spawn();
    wait_until("it says for whom it waits", || {
        assert!(!running.is_done(), "{}", running.stderr());
        running.stderr().contains("waiting for it")
    });
    running.signal(Signal::TERM);
    assert_eq!(running.wait().status.signal(), Some(15));
    drop(hanging);
    fetch.succeed();
}

#[test]
fn f01_f03_one_that_hangs_keeps_no_other_from_being_asked() {
    require_root!("f01_f03_one_that_hangs_keeps_no_other_from_being_asked");
    let still = archived(1);
    let (name, next) = (&still.segments[0], after(&still.segments[0]));
    let second = with_second(&still, "");
    let used = object_in(&second, &still, "000000020000000000000001");
    let hanging = HangingDisk::over(still.site.repository());
    let whole = std::fs::read(still.wal(name)).unwrap();
    for (signal, streams, promoted) in [
        ("standby.signal", true, false),
        ("standby.signal", true, true),
        ("standby.signal", false, false),
        ("recovery.signal", false, false),
        ("", false, false),
    ] {
        // A promotion waits for a second only, which a busy machine may need for less.
        let mut run = None;
        wait_until("the second is asked in time", || {
            mode(&still, signal, streams);
            if promoted {
                still.cluster.touch("promote");
            }
            let done = still.fetch(name).run();
            let is_delivered = done.code() == 0;
            assert!(is_delivered || streams, "{done}");
            run = Some(done);
            is_delivered
        });
        let run = run.unwrap();
        assert!(run.stderr.is_empty(), "{run}");
        let target = still.wal("RECOVERYXLOG");
        assert!(std::fs::read(&target).unwrap() == whole);
        std::fs::remove_file(target).unwrap();
    }
    // By hand, too.
    let target = still.site.sandbox().join("by-hand");
    let by_hand = still.site.pitr().args(["wal", "fetch", name]).arg(&target);
    by_hand.succeed();
    assert!(std::fs::read(&target).unwrap() == whole);

    // The first may have the segment that the second does not have: only a standby that streams is sent on, and the
    // warning names the silent repository.
    let silent = format!(
        "{}\" has not answered for",
        still.site.repository().display()
    );
    mode(&still, "standby.signal", true);
    let run = still.fetch(&next).run().expect_stderr(&silent);
    not_here_with_warning(&still, run);
    mode(&still, "recovery.signal", false);
    let stops = |name: &str, seconds: u64| {
        let fetch = still.fetch(name);
        fetch.env("PITR_FAULT_SECONDS", seconds.to_string()).run()
    };
    stops(&next, 2).expect_code(200).expect_stderr(&silent);
    // That a timeline's number is used is known of the second, however silent the first is.
    std::fs::create_dir_all(used.parent().unwrap()).unwrap();
    std::fs::write(&used, "").unwrap();
    user::own_all(&second);
    let run = patiently(
        |seconds| stops("00000002.history", seconds),
        |run| run.code() == 205,
    );
    run.expect_code(205)
        .expect_stderr("the history file of timeline 2 is missing");
    std::fs::remove_dir_all(used.parent().unwrap().parent().unwrap()).unwrap();

    // Not required, it holds up nobody whom the second tells that this is the end.
    let first = format!("url = \"file://{}\"\n", still.site.repository().display());
    still
        .site
        .edit(&first, &format!("{first}required = false\n"));
    still.fetch(&next).exits(1);
    drop(hanging);
    // Whoever hung had nothing at hand that would stay.
    let names = std::fs::read_dir(still.cluster.pgdata().join("pg_wal")).unwrap();
    let names: Vec<String> = names
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !names.iter().any(|n| n.contains("RECOVERYXLOG")),
        "{names:?}"
    );
}

/// A path that is put aside, until this is dropped.
struct Aside {
    place: PathBuf,
    aside: PathBuf,
}

impl Aside {
    fn put(place: &Path) -> Aside {
        let aside = place.with_extension("aside");
        std::fs::rename(place, &aside).unwrap();
        Aside {
            place: place.to_owned(),
            aside,
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        std::fs::rename(&self.aside, &self.place).unwrap();
    }
}

#[test]
fn f01_f03_what_reaches_one_repository_is_had_while_another_hangs() {
    require_root!("f01_f03_what_reaches_one_repository_is_had_while_another_hangs");
    let still = archived(3);
    let second = with_second(&still, "");
    let (name, later) = (&still.segments[1], &still.segments[2]);
    let [object, later] = [name, later].map(|name| object_in(&second, &still, name));
    let hanging = HangingDisk::over(still.site.repository());
    let silent = format!(
        "{}\" has not answered for",
        still.site.repository().display()
    );
    let target = still.wal("RECOVERYXLOG");
    let asks_until = |signal: &str, aside: &[&Path], says: &[&str], comes: &dyn Fn(Vec<Aside>)| {
        mode(&still, signal, false);
        let gone = aside.iter().map(|path| Aside::put(path)).collect();
        let mut running = still.fetch(name).spawn();
        wait_until("it says who is silent, and asks again", || {
            let said = running.stderr();
            says.iter().all(|part| said.contains(part)) && said.contains("trying again")
        });
        assert!(!running.is_done() && !target.exists());
        comes(gone);
        let run = running.wait().success();
        assert!(std::fs::read(&target).unwrap() == std::fs::read(still.wal(name)).unwrap());
        std::fs::remove_file(&target).unwrap();
        println!("{signal} {}", run.stderr);
    };
    // The second has come to the end of its WAL.
    for signal in ["standby.signal", "recovery.signal"] {
        asks_until(signal, &[&object, &later], &[&silent], &drop);
    }
    // A promotion is answered within a second in a later round, too.
    let gone = [&object, &later].map(|path| Aside::put(path));
    mode(&still, "standby.signal", false);
    let mut running = still.fetch(name).spawn();
    wait_until("it asks again", || {
        running.stderr().contains("trying again")
    });
    assert!(!running.is_done());
    still.cluster.touch("promote");
    let asked = Instant::now();
    let run = running.wait().expect_stderr(&silent);
    assert!(matches!(run.code(), 1 | 200), "{run}");
    answers_promotion(asked.elapsed());
    drop(gone);
    // It has a hole: the first may have what is missing, and for as long as it may, recovery is not over.
    let hole = format!("segment \"{name}\" is missing although");
    let says = [&*hole, &*silent, "a repository that is silent may have it"];
    asks_until("recovery.signal", &[&object], &says, &drop);
    // It cannot tell, and the message says that as well.
    let marker = second.join("pitr.json");
    let says = [&*silent, "and another cannot tell: "];
    asks_until("standby.signal", &[&marker], &says, &drop);
    // The first need not be asked.
    let config = std::fs::read_to_string(still.site.config()).unwrap();
    let first = format!("url = \"file://{}\"\n", still.site.repository().display());
    assert!(config.contains(&first), "{config}");
    let optional = config.replace(&first, &format!("{first}required = false\n"));
    std::fs::write(still.site.config(), optional).unwrap();
    asks_until(
        "standby.signal",
        &[&marker],
        &["is not a repository"],
        &drop,
    );
    // The first is there again, and has it.
    std::fs::write(still.site.config(), config).unwrap();
    let hanging = std::cell::Cell::new(Some(hanging));
    let kept = std::cell::RefCell::new(Vec::new());
    asks_until("standby.signal", &[&object, &later], &[&silent], &|gone| {
        drop(hanging.take());
        kept.replace(gone);
    });
}

/// Rounds of asking, in which each repository gives the answer that the test sets.
#[test]
fn f01_who_hangs_is_asked_once_and_who_answers_is_asked_again() {
    let (sandbox, asked) = (Sandbox::new("rounds"), Arc::new(Mutex::new(Vec::new())));
    let inquiry = Inquiry::default();
    let what = Fetch {
        followed: pitr::repo::lives::Followed::Resolved,
        cluster: "main".to_owned(),
        system_identifier: None,
        name: "000000010000000000000001".parse().unwrap(),
        target: sandbox.join("fetched"),
        nonce: 7,
        clock: || "2026-11-20T06:40:49Z".parse().unwrap(),
        progress: Arc::new(Silent),
        inquiry: inquiry.clone(),
    };
    let place = |name: &'static str, wakes: Option<Receiver<()>>| {
        let asked = Arc::clone(&asked);
        Place {
            name: name.to_owned(),
            is_required: true,
            patience: Duration::from_secs(2),
            open: Box::new(move || {
                asked.lock().unwrap().push(name);
                wakes.map(|wakes| wakes.recv());
                Err(pitr::err!(Unreachable, "{name} is away"))
            }),
        }
    };
    let mut questions = Questions::default();
    let mut ask = |first: Option<Receiver<()>>| {
        let places = vec![place("the first", first), place("the second", None)];
        let e = fetch(&what, places, &mut questions).unwrap_err();
        assert_eq!(e.code(), Code::Unreachable);
        e.to_string()
    };
    let (wake, wakes) = std::sync::mpsc::channel();
    let said = ask(Some(wakes));
    assert!(
        said.starts_with("\"the first\" has not answered for "),
        "{said}"
    );
    assert!(said.ends_with(" s, and another cannot tell: the second is away"));
    let begun = Instant::now();
    assert!(ask(None).contains("\"the first\" has not answered for "));
    println!("a second round takes {:?}", begun.elapsed());
    assert!(inquiry.is_waiting());
    assert_eq!(
        *asked.lock().unwrap(),
        ["the first", "the second", "the second"]
    );
    // Its answer is one of the next round, and the one after asks it again.
    wake.send(()).unwrap();
    wait_until("the first has answered", || {
        !ask(None).contains("has not answered")
    });
    asked.lock().unwrap().clear();
    ask(None);
    assert_eq!(*asked.lock().unwrap(), ["the first", "the second"]);
    assert!(!inquiry.is_waiting());
}

#[test]
fn f01_a_standby_that_has_only_the_archive_waits_for_it() {
    let still = archived(1);
    mode(&still, "standby.signal", false);
    let away = Away::new(&still.site);
    let mut running = still.fetch(&still.segments[0]).spawn();
    wait_until("it says that it waits", || {
        running.stderr().contains("trying again")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(!running.is_done());
    drop(away);
    running.wait().success();
    assert!(still.wal("RECOVERYXLOG").exists());
}

#[test]
fn f26_a_person_beside_a_standby_hears_of_an_outage_and_decides_nothing_for_it() {
    let still = archived(1);
    let name = &still.segments[0];
    let lacking = after(&after(&after(&after(name))));
    let ask = |name: &str| {
        let fetch = still.site.restore().args([name, &format!("pg_wal/{name}")]);
        fetch.dir(still.cluster.pgdata())
    };
    let _away = Away::new(&still.site);
    for streams in [true, false] {
        mode(&still, "standby.signal", streams);
        ask(&lacking).exits(208).expect_stderr("Mount the disk");
        assert!(!still.wal("pitr.promotion").exists());
        // The server's own question is answered as before.
        if streams {
            not_here_with_warning(&still, still.fetch(&lacking).run());
        }
    }
}

#[test]
fn f06_a_history_file_is_never_absent_because_of_an_outage() {
    let still = archived(1);
    let probe = still.fetch("00000002.history");
    let away = Away::new(&still.site);
    mode(&still, "recovery.signal", false);
    probe.exits(208);
    mode(&still, "standby.signal", true);
    not_here_with_warning(&still, probe.run());
    drop(away);

    // WAL of the timeline is there, so there must be a history.
    let object = still.site.object("000000020000000000000001");
    std::fs::create_dir_all(object.parent().unwrap()).unwrap();
    std::fs::write(&object, "").unwrap();
    user::own_all(still.site.repository());
    mode(&still, "recovery.signal", false);
    probe
        .exits(205)
        .expect_stderr("the history file of timeline 2 is missing");
}

#[test]
fn f06_f18_a_promotion_without_the_archive_depends_on_what_was_streamed() {
    let still = archived(1);
    let streamed = after(&still.segments[0]);
    assert!(still.wal(&streamed).exists());
    let lacking = after(&after(&after(&after(&streamed))));
    let _away = Away::new(&still.site);

    // Nothing of it came by streaming: the server must not be promoted, nor by the calls that follow.
    mode(&still, "standby.signal", true);
    still.cluster.touch("promote");
    let stopped = |name: &str| {
        let run = still.fetch(name).exits(208);
        // The hint for its own cause is printed, too.
        run.expect_stderr("Mount the disk")
            .expect_stderr("set promote_unreachable in the cluster's section");
    };
    stopped(&lacking);
    std::fs::remove_file(still.cluster.pgdata().join("promote")).unwrap();
    stopped("00000002.history");
    std::fs::remove_file(still.cluster.pgdata().join("standby.signal")).unwrap();
    stopped("00000002.history");
    // The first timeline has none: an error, now that nothing tells of the promotion, would open it again.
    still.fetch("00000001.history").exits(1);

    // It is in pg_wal: an outage does not hold up the failover.
    mode(&still, "standby.signal", true);
    still.cluster.touch("promote");
    not_here_with_warning(&still, still.fetch(&streamed).run());
    std::fs::remove_file(still.cluster.pgdata().join("promote")).unwrap();
    not_here_with_warning(&still, still.fetch(&still.segments[0]).run());
    not_here_with_warning(&still, still.fetch("00000002.history").run());
    std::fs::remove_file(still.cluster.pgdata().join("standby.signal")).unwrap();
    not_here_with_warning(&still, still.fetch("00000002.history").run());
    // Neither does a server that is started anew, nor a recovery that is begun on the same directory, take anything from that.
    let pid = still.cluster.pgdata().join("postmaster.pid");
    let running = std::fs::read_to_string(&pid).unwrap();
    let started = running.lines().nth(2).unwrap();
    std::fs::write(&pid, running.replace(started, "9999999999")).unwrap();
    still.fetch("00000002.history").exits(208);
    std::fs::write(&pid, &running).unwrap();
    still.cluster.touch("recovery.signal");
    still.fetch("00000002.history").exits(208);

    // A standby that waits for its archive hears of a promotion within a second.
    mode(&still, "standby.signal", false);
    let running = still.fetch(&lacking).spawn();
    wait_until("it waits", || running.stderr().contains("trying again"));
    still.cluster.touch("promote");
    let asked = Instant::now();
    running.wait().expect_code(208);
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
}

#[test]
fn f09_an_empty_mount_point_is_not_an_empty_archive() {
    let still = archived(1);
    let next = after(&still.segments[0]);
    let _away = Away::new(&still.site);
    for signal in ["recovery.signal", ""] {
        mode(&still, signal, false);
        for name in [still.segments[0].as_str(), &next, "00000002.history"] {
            still
                .fetch(name)
                .exits(208)
                .expect_stderr("error R208")
                .expect_stderr("pitr.json");
        }
    }
    assert_eq!(
        std::fs::read_dir(still.site.repository()).unwrap().count(),
        0
    );
}

#[test]
fn f06_f18_a_promotion_by_a_trigger_file_is_one_like_any_other() {
    let still = archived(1);
    let streamed = after(&still.segments[0]);
    let lacking = after(&after(&after(&after(&streamed))));
    let conf = still.cluster.pgdata().join("postgresql.auto.conf");
    let trigger = still.site.sandbox().join("trigger");
    let _away = Away::new(&still.site);
    for named in ["failover.now", trigger.to_str().unwrap()] {
        mode(&still, "standby.signal", true);
        let text = std::fs::read_to_string(&conf).unwrap();
        let text = format!("{text}promote_trigger_file = '{named}'\n");
        std::fs::write(&conf, text).unwrap();
        not_here_with_warning(&still, still.fetch(&lacking).run());
        // Nothing of it came by streaming: the server must not be promoted, nor by the calls that follow.
        mode(&still, "standby.signal", true);
        let text = std::fs::read_to_string(&conf).unwrap();
        let text = format!("{text}promote_trigger_file = '{named}'\n");
        std::fs::write(&conf, text).unwrap();
        let file = still.cluster.pgdata().join(named);
        std::fs::write(&file, "").unwrap();
        user::own(&file);
        still.fetch(&lacking).exits(208);
        std::fs::remove_file(&file).unwrap();
        still.fetch("00000002.history").exits(208);
    }
}

#[test]
fn f03_absence_is_not_proven_while_a_required_repository_is_away() {
    let still = archived(1);
    let next = after(&still.segments[0]);
    let second = still.site.sandbox().join("second");
    still.site.add(&format!(
        "\n[repositories.second]\nurl = \"file://{}\"\n",
        second.display()
    ));
    mode(&still, "recovery.signal", false);
    still.fetch(&next).exits(208);
    // A segment that the first has is delivered all the same, and both are asked once the second is there.
    still.check(&still.segments[0]);
    still
        .push(&still.segments[0])
        .exits(50)
        .expect_stderr("error A150");
    still.site.pitr().arg("init").succeed();
    still.push(&still.segments[0]).succeed();
    still.fetch(&next).exits(1);
    // Not required, it holds up nothing.
    std::fs::remove_dir_all(&second).unwrap();
    still.site.add("required = false\n");
    still.fetch(&next).exits(1);
    still
        .push(&still.segments[0])
        .succeed()
        .expect_stderr("warning: not stored in every repository");
}

/// Adds a second repository, with these further lines, and pushes what is archived in the first there, too.
pub fn with_second(still: &Still, lines: &str) -> PathBuf {
    let second = still.site.add_repository("second", lines);
    still.push_all();
    second
}

/// The same object in the other repository.
fn object_in(repository: &Path, still: &Still, name: &str) -> PathBuf {
    let object = still.site.object(name);
    repository.join(object.strip_prefix(still.site.repository()).unwrap())
}

#[test]
fn f03_damage_and_gaps_in_a_repository_that_is_not_required_are_no_absence() {
    let still = archived(2);
    let (first, last) = (&still.segments[0], &still.segments[1]);
    let second = with_second(&still, "required = false\n");
    mode(&still, "recovery.signal", false);
    // The last one is nowhere but in the second, and damaged there: without it the first would prove its absence.
    std::fs::remove_file(still.site.object(last)).unwrap();
    let copy = object_in(&second, &still, last);
    let whole = std::fs::read(&copy).unwrap();
    flip(&copy, 1000);
    still.fetch(last).exits(201);
    std::fs::write(&copy, whole).unwrap();
    still.check(last);
    // The first is nowhere, and the second has what follows it.
    for repository in [still.site.repository(), second.as_path()] {
        std::fs::remove_file(object_in(repository, &still, first)).unwrap();
    }
    still.fetch(first).exits(205);
    assert!(!still.wal("RECOVERYXLOG").exists());
    std::fs::remove_file(&copy).unwrap();
    still.fetch(first).exits(1);
}

/// Returns the events of a segment in a repository.
fn recorded(repository: &Path, still: &Still, name: &str) -> Vec<String> {
    let object = object_in(repository, still, name);
    let cluster = object.ancestors().nth(4).unwrap();
    let events = std::fs::read_dir(cluster.join(format!("events/wal-{name}")));
    let names = events.into_iter().flatten();
    let mut names: Vec<String> = names
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A mounted repository may say for half a minute that a file is not there, because it was not when somebody asked before.
#[test]
fn f02_what_came_since_it_was_last_asked_for_is_not_absent() {
    let still = archived(2);
    let repository = still.site.repository();
    let read = |key: String| {
        let bytes = std::fs::read(repository.join(&key)).unwrap();
        (key, bytes.into())
    };
    let objects: Objects = files_below(repository).into_iter().map(read).collect();
    let last = still.segments.last().unwrap();
    let key = objects.keys().find(|k| k.ends_with(last)).unwrap().clone();
    let target = still.site.sandbox().path().join("fetched");
    let ask = |held: &Held, is_required: bool| {
        let store = Repository::open_with(Box::new(held.clone()), None).unwrap();
        let mut places = only(Ok(store));
        places[0].is_required = is_required;
        let what = Fetch {
            followed: pitr::repo::lives::Followed::Resolved,
            cluster: "main".to_owned(),
            system_identifier: None,
            name: last.parse().unwrap(),
            target: target.clone(),
            nonce: 7,
            clock: || "2026-11-20T06:40:49Z".parse().unwrap(),
            progress: Arc::new(Silent),
            inquiry: Inquiry::default(),
        };
        fetch(&what, places, &mut Questions::default())
    };
    let late = Held::late(objects.clone(), &key);
    assert_eq!(ask(&late, true).unwrap(), Fetched::Delivered);
    assert!(late.was_late());
    let fetched = std::fs::read(&target).unwrap();
    assert!(fetched == std::fs::read(still.wal(last)).unwrap());
    // If it is not there, asking again changes nothing.
    std::fs::remove_file(&target).unwrap();
    let without = Held::with(&objects, &key, None);
    assert_eq!(ask(&without, true).unwrap(), Fetched::ProvenAbsent);
    // The word of a repository that is not required is no proof.
    assert_eq!(ask(&without, false).unwrap_err().code(), Code::Config);
}

#[test]
fn f10_a_damaged_copy_is_passed_over_for_a_whole_one() {
    let still = archived(1);
    let name = still.segments[0].as_str();
    let first = still.site.repository();
    let second = with_second(&still, "");
    mode(&still, "recovery.signal", false);
    flip(&still.site.object(name), 1000);
    let fetch = || still.fetch(name).run();
    let said = |run: Run| {
        let run = run.success().expect_stderr("pitr-restore: warning: ");
        let run = run
            .expect_stderr("is damaged")
            .expect_stderr("was taken from");
        run.expect_stderr(second.to_str().unwrap());
    };
    said(fetch());
    still.check(name);
    let events = recorded(first, &still, name);
    assert!(
        events.len() == 1 && events[0].contains("-damaged-"),
        "{events:?}"
    );
    assert!(recorded(&second, &still, name).is_empty());
    // Once is enough, however often it is asked for.
    said(fetch());
    assert_eq!(recorded(first, &still, name), events);
    // People see it; and when it is whole again, verify takes it back.
    let info = still.site.pitr().words("info --json").run();
    let troubles = &info.json()["clusters"][0]["repositories"][0]["troubles"];
    assert!(troubles.to_string().contains(name), "{info}");
    flip(&still.site.object(name), 1000);
    let verify = still.site.pitr().words("verify --repository");
    verify.arg(first).run();
    let events = recorded(first, &still, name);
    assert!(events.iter().any(|e| e.contains("-healed-")), "{events:?}");
    // Both damaged: told, and recorded in both.
    std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
    for repository in [first, second.as_path()] {
        flip(&object_in(repository, &still, name), 1000);
    }
    fetch().expect_code(201);
    assert!(!still.wal("RECOVERYXLOG").exists());
    for repository in [first, second.as_path()] {
        let events = recorded(repository, &still, name);
        let damaged = events.iter().filter(|e| e.contains("-damaged-"));
        assert!(damaged.count() >= 1, "{events:?}");
    }
    // The other one away is an outage of the same.
    std::fs::remove_dir_all(&second).unwrap();
    fetch().expect_code(201);
}

#[test]
fn f10_what_cannot_be_recorded_holds_up_no_fetch() {
    require_root!("f10_what_cannot_be_recorded_holds_up_no_fetch");
    let still = archived(1);
    let name = still.segments[0].as_str();
    let first = still.site.repository();
    with_second(&still, "");
    mode(&still, "recovery.signal", false);
    flip(&still.site.object(name), 1000);
    // A reader that may not write there.
    let cluster = still.site.cluster_folder();
    let may_write = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&cluster, permissions).unwrap();
    };
    may_write(0o555);
    still.check(name);
    assert!(recorded(first, &still, name).is_empty());
    may_write(0o755);
    // One that hangs where the record goes: that costs the second that is waited for it.
    let events = cluster.join(format!("events/wal-{name}"));
    std::fs::create_dir_all(&events).unwrap();
    let hanging = HangingDisk::over(&events);
    let started = Instant::now();
    still.check(name);
    let took = started.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < PATIENCE,
        "{took:?}"
    );
    drop(hanging);
    user::own_all(&cluster.join("events"));
    still.check(name);
    assert_eq!(recorded(first, &still, name).len(), 1);
}

#[test]
fn f04_a_missing_segment_with_later_ones_is_a_gap() {
    let still = archived(4);
    let lost = still.segments[1].as_str();
    std::fs::remove_file(still.site.object(lost)).unwrap();
    let number = u64::from_str_radix(&lost[16..], 16).unwrap();
    let lsn = Lsn(number * MIB).to_string();
    for signal in ["recovery.signal", ""] {
        mode(&still, signal, false);
        let run = still.fetch(lost).exits(205);
        assert!(
            run.stderr.contains("error R205")
                && run.stderr.contains(&lsn)
                && run.stderr.contains(&still.segments[3]),
            "{run}"
        );
    }
    // A standby asks again, and streaming can fill the hole, whatever is to be done about an outage.
    mode(&still, "standby.signal", true);
    not_here_with_warning(&still, still.fetch(lost).run());
    still.push(lost).succeed();
    still.check(lost);
}

#[test]
fn f06_a_timeline_that_a_later_one_descends_from_is_not_absent() {
    let still = archived(1);
    let path = still.wal("00000003.history");
    std::fs::write(&path, "1\t0/3000000\tx\n\n2\t0/5000000\tx\n").unwrap();
    user::own(&path);
    still.push("00000003.history").succeed();
    mode(&still, "recovery.signal", false);
    let run = still.fetch("00000002.history").exits(205);
    assert!(run.stderr.contains("timeline 3 descends from it"), "{run}");
    still.fetch("00000004.history").exits(1);

    // Nor is one that was passed over, unless the configuration has recovery follow a later one: then it is asked for
    // only to be copied.
    let path = still.wal("00000005.history");
    std::fs::write(&path, "1\t0/3000000\tx\n").unwrap();
    user::own(&path);
    still.push("00000005.history").succeed();
    let run = still.fetch("00000004.history").exits(205);
    assert!(run.stderr.contains("although timeline 5 exists"), "{run}");
    let conf = still.cluster.pgdata().join("postgresql.auto.conf");
    std::fs::write(conf, "recovery_target_timeline = '5'\n").unwrap();
    still.fetch("00000004.history").exits(1);
    still.fetch("00000002.history").exits(205);
}

/// Two servers were promoted to one number. PostgreSQL would put the archive's history in the place of its own.
#[test]
fn l17_a_server_keeps_its_own_history_of_a_number_that_another_one_took() {
    let still = archived(1);
    let name = "00000002.history";
    let write = |text: &str| {
        std::fs::write(still.wal(name), text).unwrap();
        user::own(&still.wal(name));
    };
    write("1\t0/3000000\tx\n");
    still.push(name).succeed();
    for signal in ["recovery.signal", "standby.signal"] {
        mode(&still, signal, false);
        write("1\t0/3000000\tx\n");
        still.check(name);
        write("1\t0/4000000\tx\n");
        let run = still.fetch(name).exits(1);
        run.expect_stderr("this server has another history of timeline 2");
        assert!(!still.wal("RECOVERYXLOG").exists());
    }
    std::fs::remove_file(still.wal(name)).unwrap();
    assert_eq!(still.fetched(name), b"1\t0/3000000\tx\n");
}

/// Two servers were promoted to one number. A standby follows the one whose WAL is not in the archive, and its walreceiver has put that one's history
/// into pg_wal: no segment of the other one is handed over.
#[test]
fn f25_no_segment_of_another_servers_timeline_of_that_number_is_handed_over() {
    let still = Still::new(17, 1, 2);
    let [before, first] = still.segments.as_slice() else {
        panic!("two segments")
    };
    still.push(before).succeed();
    // The server that is archived was promoted where the second segment begins.
    let number = u32::from_str_radix(&first[16..], 16).unwrap();
    let switch = |more: u32| format!("0/{:X}", (number << 20) + more);
    let write = |name: &str, text: &str| {
        std::fs::write(still.wal(name), text).unwrap();
        user::own(&still.wal(name));
    };
    let archived = format!("1\t{}\tx\n", switch(0));
    write("00000002.history", &archived);
    still.push("00000002.history").succeed();
    let mut bytes = std::fs::read(still.wal(first)).unwrap();
    for page in bytes.chunks_exact_mut(8192) {
        if page[..2] != [0, 0] {
            page[4..8].copy_from_slice(&2_u32.to_le_bytes());
        }
    }
    let name = format!("00000002{}", &first[8..]);
    std::fs::write(still.wal(&name), &bytes).unwrap();
    user::own(&still.wal(&name));
    still.push(&name).succeed();
    std::fs::remove_file(still.wal(&name)).unwrap();

    for signal in ["standby.signal", "recovery.signal"] {
        mode(&still, signal, false);
        write("00000002.history", &archived);
        assert!(still.fetched(&name) == bytes, "{signal}");
        write("00000002.history", &format!("1\t{}\tx\n", switch(0x8000)));
        let run = still.fetch(&name).exits(1);
        run.expect_stderr("this server has another history of timeline 2");
        assert!(!still.wal("RECOVERYXLOG").exists());
        // The segment before, which is in pg_wal, proves nothing.
        let earlier = still.wal(&format!("00000002{}", &before[8..]));
        std::fs::write(&earlier, &bytes).unwrap();
        user::own(&earlier);
        still.fetch(&name).exits(1);
        std::fs::remove_file(&earlier).unwrap();
        // A later timeline that the server knows leads through the archive's, or through its own.
        for (way, is_led) in [(0, true), (0x8000, false)] {
            let later = format!("1\t{}\tx\n\n2\t{}\tx\n", switch(way), switch(0x90000));
            write("00000003.history", &later);
            match is_led {
                true => assert!(still.fetched(&name) == bytes, "{signal}"),
                false => _ = still.fetch(&name).exits(1),
            }
        }
        std::fs::remove_file(still.wal("00000003.history")).unwrap();
    }
    // A person who names that very file gets it.
    let fetch = still.site.pitr().args(["wal", "fetch", &name]);
    fetch.arg(still.wal(&name)).succeed();
    assert!(std::fs::read(still.wal(&name)).unwrap() == bytes);
}

#[test]
fn f06_f18_what_a_promotion_needs_is_decided_while_the_archive_is_there() {
    let still = archived(1);
    let streamed = after(&still.segments[0]);
    let lacking = after(&after(&after(&after(&streamed))));
    let promote = still.cluster.pgdata().join("promote");
    // A standby that has only the archive has everything that was in it; when that goes away, no timeline is taken.
    mode(&still, "standby.signal", false);
    still.cluster.touch("promote");
    still.fetch(&lacking).exits(1);
    std::fs::remove_file(&promote).unwrap();
    let away = Away::new(&still.site);
    still.fetch("00000002.history").exits(208);
    drop(away);

    // A standby asks again for a history that is missing, but when it is promoted it would take that timeline.
    let path = still.wal("00000003.history");
    std::fs::write(&path, "1\t0/3000000\tx\n").unwrap();
    user::own(&path);
    still.push("00000003.history").succeed();
    mode(&still, "standby.signal", true);
    let probe = still.fetch("00000002.history");
    not_here_with_warning(&still, probe.run());
    still.cluster.touch("promote");
    not_here_with_warning(&still, probe.run());
    std::fs::remove_file(still.wal("pitr.promotion")).unwrap();
    still.fetch(&streamed).exits(1);
    std::fs::remove_file(&promote).unwrap();
    probe.exits(205);
}

fn f05_the_tail_of_a_parent_is_needed_up_to_the_switch(major: u32) {
    let (site, primary) = Site::with_cluster(major);
    primary.sql("create table t (a int)");
    let standby = primary.standby().start();
    let mut parent = Vec::new();
    for n in 0..3 {
        primary.sql(&format!("insert into t values ({n})"));
        parent.push(primary.archive_now());
    }
    primary.sql("insert into t values (9)");
    let switch = primary.value("select pg_walfile_name(pg_current_wal_lsn())");
    wait_until("the standby has it", || {
        standby.value("select max(a) from t") == "9"
    });
    drop(primary);
    standby.promote();
    let child = standby.archive_now();
    assert_eq!(&child[..8], "00000002");
    let target = site.sandbox().join("RECOVERYXLOG");
    let fetch = |name: &str| site.restore().arg(name).arg(&target).run();
    // It ended in the middle: the parent's copy is a partial, which is handed out padded; the child begins with the whole of it.
    fetch(&switch).success();
    let padded = std::fs::read(&target).unwrap();
    assert!(padded.len() as u64 == MIB && padded.ends_with(&[0; 8192]));
    fetch(&after(&switch)).expect_code(1);
    fetch(&format!("00000002{}", &switch[8..])).success();
    // Before the child began there is nothing of it.
    fetch(&format!("00000002{}", &parent[1][8..])).expect_code(1);
    // The parent's last whole segment is on the way to the child.
    std::fs::remove_file(site.object(&parent[2])).unwrap();
    fetch(&parent[2]).expect_code(205);
    std::fs::remove_file(site.object("00000002.history")).unwrap();
    fetch("00000002.history").expect_code(205);
}
per_major!(f05_the_tail_of_a_parent_is_needed_up_to_the_switch);

/// A drill that was promoted from a streaming standby has WAL from behind the end of what its origin archived.
#[test]
fn f05_a_stray_descendant_shows_no_gap() {
    let (site, primary) = Site::with_cluster(17);
    primary.sql("create table t (a int)");
    let standby = primary.standby().start();
    primary.archive_now();
    primary.sql("insert into t values (1)");
    let lost = primary.archive_now();
    primary.sql("insert into t values (9)");
    wait_until("the standby has it", || {
        standby.value("select max(a) from t") == "9"
    });
    drop(primary);
    standby.promote();
    standby.archive_now();
    std::fs::remove_file(site.object(&lost)).unwrap();
    let partials = site.cluster_folder().join("wal/00000001/partial");
    std::fs::remove_dir_all(partials).unwrap();

    let copy = site.sandbox().dir("copy");
    let target = site.sandbox().dir("copy/pg_wal").join("RECOVERYXLOG");
    let fetch = || site.restore().arg(&lost).arg(&target).run();
    let follow = |timeline: &str| {
        let text = format!("recovery_target_timeline = '{timeline}'\n");
        std::fs::write(copy.join("postgresql.auto.conf"), text).unwrap();
    };
    fetch().expect_code(205);
    follow("2");
    fetch().expect_code(205);
    // As a plan has it: what is not on the way is not asked.
    follow("1");
    fetch().expect_code(1);
    follow("latest");
    fetch().expect_code(205);
    let abandon = ["timeline", "abandon", "2", "--reason", "a drill"];
    site.pitr().args(abandon).arg("--confirm").succeed();
    fetch().expect_code(1);
    // Who follows it all the same needs what is before it.
    follow("2");
    fetch().expect_code(205);
}

/// Flips one bit of a file.
fn flip(path: &std::path::Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn f11_an_object_that_is_not_what_it_should_be_is_never_delivered() {
    let still = archived(2);
    let (name, other) = (still.segments[0].as_str(), still.segments[1].as_str());
    let object = still.site.object(name);
    let good = std::fs::read(&object).unwrap();
    let raw = std::fs::read(still.wal(name)).unwrap();
    mode(&still, "recovery.signal", false);
    let mut wrong: Vec<Vec<u8>> = vec![
        Vec::new(),
        good[..good.len() - 1].to_vec(),
        good[..good.len() / 2].to_vec(),
        good[..100].to_vec(),
        [good.as_slice(), b"more"].concat(),
        vec![0; good.len()],
        std::fs::read(still.site.object(other)).unwrap(),
        std::fs::read(still.wal(name)).unwrap(),
    ];
    // Bits all over: head, body, sections, trailer.
    let step = good.len() / 40;
    wrong.extend((0..40).map(|n| {
        let mut bytes = good.clone();
        bytes[n * step + n] ^= 1 << (n % 8);
        bytes
    }));
    for (n, bytes) in wrong.iter().enumerate() {
        std::fs::write(&object, bytes).unwrap();
        let run = still.fetch(name).run();
        match run.code() {
            // The bit lies in the index: what is delivered was checked by its own hash all the same.
            0 if n >= 8 => {
                assert!(
                    std::fs::read(still.wal("RECOVERYXLOG")).unwrap() == raw,
                    "{n}"
                );
                std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
            }
            201 => {
                assert!(
                    run.stderr.contains("error R201") && run.stderr.contains("pitr verify"),
                    "{n}: {run}"
                );
                assert!(!still.wal("RECOVERYXLOG").exists(), "{n}");
            }
            _ => panic!("{n}: {run}"),
        }
        // The archiver takes none of them for the segment: it heals one that still says what it held, and refuses the others.
        let push = still.push(name).run();
        let copy = object.with_file_name(format!("{name}.heal-1"));
        match push.code() {
            0 if n >= 8 => {
                assert!(push.stderr.contains("it is healed"), "{n}: {push}");
                still.check(name);
                std::fs::remove_file(copy).unwrap();
            }
            35 => {
                assert!(push.stderr.contains("error A135"), "{n}: {push}");
                assert!(!copy.exists(), "{n}");
            }
            _ => panic!("{n}: {push}"),
        }
    }
    let leftovers = |f: &String| f.contains(".tmp.");
    assert!(!still.site.files().iter().any(leftovers));
    std::fs::write(&object, good).unwrap();
    still.check(name);
}

/// The claims of a container about a segment of 1 MiB, whatever is in it.
pub fn identity_of(
    name: &str,
    hash: [u8; 32],
    (system_identifier, major): (u64, u32),
) -> pitr::repo::container::Identity {
    let start = u64::from_str_radix(&name[16..], 16).unwrap() * MIB;
    pitr::repo::container::Identity {
        hash,
        raw_bytes: MIB,
        system_identifier,
        timeline: 1,
        major,
        segment_size_bytes: MIB,
        name: name.to_owned(),
        from_lsn: start,
        to_lsn: start + MIB,
    }
}

/// Nobody has damaged it: its writer was wrong, or hostile. PostgreSQL would take such a page for the end of the WAL.
#[test]
fn f11_content_that_belongs_to_another_name_is_never_delivered() {
    use pitr::repo::container::{Codec, ContainerWriter, Kind};
    let still = archived(2);
    mode(&still, "recovery.signal", false);
    let [name, other] = [0, 1].map(|n| still.segments[n].as_str());
    let mut foreign = std::fs::read(still.wal(name)).unwrap();
    // The system identifier, behind the header that every page has.
    foreign[24] ^= 1;
    for raw in [
        std::fs::read(still.wal(other)).unwrap(),
        foreign,
        vec![0; MIB as usize],
    ] {
        let mut writer = ContainerWriter::new(Vec::new(), Kind::Segment, Codec::Lz4).unwrap();
        writer.write(&raw).unwrap();
        let identity = identity_of(
            name,
            blake3::hash(&raw).into(),
            (still.site.system_identifier(), 17),
        );
        let object = writer.finish(&identity, Vec::new()).unwrap();
        std::fs::write(still.site.object(name), object).unwrap();
        still.fetch(name).exits(201).expect_stderr("its first page");
        assert!(!still.wal("RECOVERYXLOG").exists());
    }
}

#[test]
fn f12_a_target_that_cannot_be_written_is_told_and_left_clean() {
    require_mounts!("f12_a_target_that_cannot_be_written_is_told_and_left_clean");
    let still = archived(1);
    let name = still.segments[0].as_str();
    let disk = SmallDisk::new(1, 100);
    let target = disk.path().join("RECOVERYXLOG");
    Program::new("dd")
        .words("if=/dev/zero bs=64k count=8 status=none")
        .arg(format!("of={}/filler", disk.path().display()))
        .succeed();
    let fetch = still.site.restore().arg(name).arg(&target);
    fetch
        .exits(206)
        .expect_stderr("error R206")
        .expect_stderr("No space left");
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 1);
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    disk.read_only(true);
    fetch.exits(206).expect_stderr("Read-only file system");
    disk.read_only(false);
    std::fs::set_permissions(disk.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    fetch.exits(206).expect_stderr("Permission denied");
    still
        .site
        .restore()
        .args([name, "/nonexistent/RECOVERYXLOG"])
        .exits(206);
}

#[test]
fn f13_a_fetch_killed_at_any_call_leaves_no_half_segment() {
    require_strace!("f13_a_fetch_killed_at_any_call_leaves_no_half_segment");
    let still = archived(1);
    let name = still.segments[0].as_str();
    let raw = std::fs::read(still.wal(name)).unwrap();
    let target = still.wal("RECOVERYXLOG");
    let fetch = still.fetch(name);
    let (run, calls) = fault::trace(&fetch, MUTATING);
    run.success();
    let calls: Vec<_> = calls
        .into_iter()
        .filter(|c| c.touches(&still.cluster.pgdata().join("pg_wal")))
        .collect();
    eprintln!(
        "pitr-restore: killed at each of {} mutating calls",
        calls.len()
    );
    assert!(calls.iter().any(|c| c.name.starts_with("rename")));
    for call in &calls {
        let _ = std::fs::remove_file(&target);
        let (run, fired) = fault::inject(&fetch, &call.kill());
        assert!(run.code() == 137 && fired >= 1, "{}: {run}", call.text);
        assert!(
            !target.exists() || std::fs::read(&target).unwrap() == raw,
            "{}",
            call.text
        );
        still.check(name);
        for (errno, code) in [("EIO", 206), ("ENOSPC", 206)] {
            let (run, fired) = fault::inject(&fetch, &call.fail(errno));
            assert!(fired >= 1, "{}", call.text);
            // Nobody reads the status of what is cleaned up.
            if !call.name.starts_with("unlink") {
                run.expect_code(code);
                assert!(!target.exists(), "{}", call.text);
            }
        }
    }
}

#[test]
fn f14_what_stands_in_the_targets_place_is_replaced_and_not_followed() {
    let still = archived(1);
    let name = still.segments[0].as_str();
    let raw = std::fs::read(still.wal(name)).unwrap();
    let target = still.wal("RECOVERYXLOG");
    std::fs::write(&target, "old").unwrap();
    user::own(&target);
    still.fetch(name).succeed();
    assert!(std::fs::read(&target).unwrap() == raw);
    std::fs::remove_file(&target).unwrap();
    let victim = still.site.sandbox().file("victim", "keep");
    symlink(&victim, &target).unwrap();
    still.fetch(name).succeed();
    assert_eq!(std::fs::read(&victim).unwrap(), b"keep");
    assert!(std::fs::symlink_metadata(&target).unwrap().is_file());
    std::fs::remove_file(&target).unwrap();
    std::fs::create_dir(&target).unwrap();
    user::own(&target);
    still.fetch(name).exits(206);
    let temporary = |e: std::io::Result<std::fs::DirEntry>| {
        e.unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(".tmp.")
    };
    assert!(!std::fs::read_dir(still.wal("")).unwrap().any(temporary));
}

#[test]
fn f19_sigterm_ends_a_waiting_fetch_at_once_and_quietly() {
    let still = archived(1);
    mode(&still, "standby.signal", false);
    let _away = Away::new(&still.site);
    let running = still.fetch(&still.segments[0]).spawn();
    wait_until("it waits", || running.stderr().contains("trying again"));
    let said = running.stderr();
    let sent = Instant::now();
    let run = running.ended_by(Signal::TERM);
    assert_eq!(run.status.signal(), Some(15), "{run}");
    assert!(sent.elapsed() < PATIENCE, "{:?}", sent.elapsed());
    assert_eq!(run.stderr, said);
}

#[test]
fn m01_a_medium_that_cannot_be_read_is_no_end_of_wal() {
    require_strace!("m01_a_medium_that_cannot_be_read_is_no_end_of_wal");
    let still = archived(1);
    let name = still.segments[0].as_str();
    mode(&still, "recovery.signal", false);
    let (run, calls) = fault::trace(&still.fetch(name), &["pread64"]);
    run.success();
    let object = still.site.object(name);
    let reads: Vec<_> = calls.iter().filter(|c| c.touches(&object)).collect();
    assert!(reads.len() >= 3, "{calls:?}");
    std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
    for read in reads {
        let (run, fired) = fault::inject(&still.fetch(name), &read.fail("EIO"));
        assert!(fired >= 1, "{}", read.text);
        run.expect_code(201);
        assert!(!still.wal("RECOVERYXLOG").exists());
    }
}

#[test]
fn m01_what_its_medium_does_not_give_is_taken_elsewhere_and_not_recorded() {
    require_strace!("m01_what_its_medium_does_not_give_is_taken_elsewhere_and_not_recorded");
    let still = archived(1);
    let name = still.segments[0].as_str();
    let second = with_second(&still, "");
    mode(&still, "recovery.signal", false);
    let broken = Fault::error("pread64", "EIO").on(still.site.object(name));
    let (run, fired) = fault::inject(&still.fetch(name), &broken);
    assert!(fired >= 1, "{run}");
    let run = run.success().expect_stderr("is damaged");
    run.expect_stderr(second.to_str().unwrap());
    // The next time it may give it: a record would stand until a full check.
    let events = recorded(still.site.repository(), &still, name);
    assert!(events.is_empty(), "{events:?}");
}

/// A mount that fails as a whole says of each object what a broken disk says of one.
#[test]
fn m01_an_object_that_cannot_be_opened_where_none_is_required_hides_no_absence() {
    let still = archived(2);
    let repository = still.site.repository();
    let read = |key: String| {
        let bytes = std::fs::read(repository.join(&key)).unwrap();
        (key, bytes.into())
    };
    let objects: Objects = files_below(repository).into_iter().map(read).collect();
    let last = still.segments.last().unwrap();
    let key = objects.keys().find(|k| k.ends_with(last)).unwrap().clone();
    let place = |held: Held, is_required: bool| {
        let mut places = only(Repository::open_with(Box::new(held), None));
        let mut place = places.pop().unwrap();
        place.name = format!("held {is_required}");
        place.is_required = is_required;
        place
    };
    let places = vec![
        place(Held::with(&objects, &key, None), true),
        place(Held::failing(objects.clone(), &key), false),
    ];
    let what = Fetch {
        followed: pitr::repo::lives::Followed::Resolved,
        cluster: "main".to_owned(),
        system_identifier: None,
        name: last.parse().unwrap(),
        target: still.site.sandbox().path().join("fetched"),
        nonce: 7,
        clock: || "2026-11-20T06:40:49Z".parse().unwrap(),
        progress: Arc::new(Silent),
        inquiry: Inquiry::default(),
    };
    let fetched = fetch(&what, places, &mut Questions::default()).unwrap();
    assert_eq!(fetched, Fetched::ProvenAbsent);
}

#[test]
fn m01_a_segment_that_its_medium_cannot_read_stops_no_archiving() {
    require_strace!("m01_a_segment_that_its_medium_cannot_read_stops_no_archiving");
    let still = Still::new(17, 1, 2);
    still.push(&still.segments[0]).succeed();
    let next = still.push(&still.segments[1]);
    let before = Fault::error("pread64", "EIO").on(still.site.object(&still.segments[0]));
    let (run, fired) = fault::inject(&next, &before);
    assert!(fired >= 1, "the segment before was not looked at");
    run.success();
    still.check(&still.segments[1]);
}

#[test]
fn z04_a_body_that_unpacks_to_more_than_it_may_is_refused_in_little_memory() {
    use pitr::repo::container::{Codec, ContainerWriter, Kind};
    let still = archived(1);
    let name = still.segments[0].as_str();
    let object = still.site.object(name);
    let identifier = still.site.cluster_folder();
    let identifier = identifier.file_name().unwrap().to_str().unwrap();
    mode(&still, "recovery.signal", false);
    for codec in [Codec::Lz4, Codec::Zstd(1)] {
        let mut writer = ContainerWriter::new(Vec::new(), Kind::Segment, codec).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..1024 {
            writer.write(&zeros).unwrap();
        }
        let identity = identity_of(name, [7; 32], (identifier.parse().unwrap(), 17));
        let bomb = writer.finish(&identity, Vec::new()).unwrap();
        eprintln!("{codec:?}: {} bytes for 1 GiB", bomb.len());
        std::fs::write(&object, bomb).unwrap();
        let started = Instant::now();
        let (run, usage) = still.fetch(name).measure();
        run.expect_code(201);
        assert!(usage.peak_memory_bytes < 64 << 20, "{usage:?}");
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
        assert!(!still.wal("RECOVERYXLOG").exists());
    }
}

#[test]
fn wrong_calls_are_never_the_end_of_wal() {
    let still = archived(1);
    let name = still.segments[0].as_str();
    let run = |args: &[&str]| {
        still
            .site
            .restore()
            .args(args)
            .dir(still.cluster.pgdata())
            .run()
    };
    for (args, code, part) in [
        (&[][..], 202, "R202: two arguments expected, got 0"),
        (&[name], 202, "got 1"),
        (
            &["pg_wal/RECOVERYXLOG", name],
            202,
            "The arguments look swapped",
        ),
        (
            &["foo", "pg_wal/RECOVERYXLOG"],
            202,
            "is not a WAL file name",
        ),
        (&["--frobnicate", name, "pg_wal/x"], 202, "R202: "),
        (&["--cluster", "Main", name, "pg_wal/x"], 202, "R202: "),
        (
            &["--cluster", "other", name, "pg_wal/x"],
            202,
            "no cluster \"other\"",
        ),
    ] {
        let run = run(args).expect_code(code);
        assert!(
            run.stderr.starts_with("pitr-restore: error ") && run.stderr.contains(part),
            "{run}"
        );
    }
    for config in ["/nonexistent", "/"] {
        let run = crate::common::pitr_restore()
            .args(["--config", config, name, "pg_wal/x"])
            .exits(202);
        assert!(run.stderr.contains("R202"), "{run}");
    }
    still
        .fetch(name)
        .env("PITR_FAULT", "restore")
        .exits(209)
        .expect_stderr("R209: internal error");
    // Another cluster's data directory.
    let other = Cluster::builder(17)
        .segment_size_mb(1)
        .own_identifier()
        .create();
    still
        .site
        .restore()
        .args([name, "pg_wal/RECOVERYXLOG"])
        .dir(other.pgdata())
        .exits(203);
    std::fs::set_permissions(
        still.site.cluster_folder(),
        std::fs::Permissions::from_mode(0o000),
    )
    .unwrap();
    still.fetch(name).exits(207).expect_stderr("R207");
    std::fs::set_permissions(
        still.site.cluster_folder(),
        std::fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    // A bare host needs no configuration.
    let target = still.site.sandbox().join("segment");
    crate::common::pitr_restore()
        .arg("--repository")
        .arg(still.site.repository())
        .arg(name)
        .arg(&target)
        .succeed();
    assert!(std::fs::read(target).unwrap() == std::fs::read(still.wal(name)).unwrap());
}

/// The primary has no more what its standby lacks, and of the two archives the first hangs.
#[test]
fn f01_a_streaming_standby_catches_up_from_the_second_archive() {
    require_root!("f01_a_streaming_standby_catches_up_from_the_second_archive");
    let (site, primary) = Site::with_cluster(17);
    site.add_repository("second", "");
    primary.sql("create table t (a int)");
    let mut standby = primary.standby().create();
    standby.append_config("restore_command", &site.restore().words("%f %p").shell());
    let lacking = primary.value("select pg_walfile_name(pg_current_wal_lsn())");
    for _ in 0..3 {
        primary.sql("insert into t values (1)");
        primary.archive_now();
    }
    wait_until("the primary recycles its WAL", || {
        primary.sql("checkpoint");
        !primary.pgdata().join("pg_wal").join(&lacking).exists()
    });
    let hanging = HangingDisk::over(site.repository());
    standby.start();
    let has_rows = |n: &str| standby.value("select count(*) from t") == n;
    wait_until("the standby has caught up", || has_rows("3"));
    let log = standby.log();
    let restored = format!("restored log file \"{lacking}\" from archive");
    assert!(log.contains(&restored), "{log}");
    let silent = format!("{}\" has not answered for", site.repository().display());
    assert!(log.contains(&silent), "{log}");
    primary.sql("insert into t values (1)");
    wait_until("the standby streams", || has_rows("4"));
    drop(hanging);
    standby.stop(Stop::Fast);
}

fn f01_a_streaming_standby_starts_and_streams_without_its_archive(major: u32) {
    let (site, primary) = Site::with_cluster(major);
    primary.sql("create table t (a int)");
    let mut standby = primary.standby().create();
    standby.append_config("restore_command", &site.restore().words("%f %p").shell());
    primary.archive_now();
    let away = Away::new(&site);
    primary.sql("insert into t values (1)");
    standby.start();
    wait_until("the standby streams", || {
        standby.value("select count(*) from t") == "1"
    });
    assert!(
        standby.log().contains("answering \"not here\""),
        "{}",
        standby.log()
    );
    assert!(
        !standby.log().contains("FATAL:  could not restore"),
        "{}",
        standby.log()
    );
    // An outage holds up no failover, either.
    drop(primary);
    standby.promote();
    assert_eq!(
        standby.value("select pg_walfile_name(pg_current_wal_lsn())")[..8],
        *"00000002"
    );
    drop(away);
    standby.stop(Stop::Fast);
}
per_major!(f01_a_streaming_standby_starts_and_streams_without_its_archive);
