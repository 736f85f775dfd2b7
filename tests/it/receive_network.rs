//! The receiver and what networks, slots and servers do to it: half-open connections, lost slots, split brain, hostile servers.

use std::path::PathBuf;

use rustix::process::Signal;

use crate::common::proxy::Way;
use crate::common::reception::{self, archived, lsn, status};
use crate::common::walsender::{Act, Answer, Identity, Walsender, message, wal};
use crate::common::{
    Cluster, PATIENCE, Program, Reception, Running, Sandbox, Site, Stop, peak_bytes, user,
    wait_until, wait_within,
};
use crate::per_major;

const SEGMENT: u64 = 1 << 20;

fn small(major: u32) -> crate::common::Builder {
    Cluster::small(major).config("wal_keep_size", "1GB")
}

fn kill(running: Running) {
    running.ended_by(Signal::KILL).expect_code(128 + 9);
}

#[test]
fn w05_a_half_open_connection_is_given_up_and_made_anew() {
    let reception = Reception::new(17);
    reception.cluster.sql("create table t (a int)");
    let mut running = reception.start(&["--create-slot"]);
    reception.synchronous();
    reception.cluster.sql("insert into t values (1)");
    let before = reception.proxy.counts();
    reception.proxy.stall(Way::ToClient);
    reception.proxy.stall(Way::ToServer);
    assert!(reception.proxy.counts().stalled > before.stalled);
    // It returns when the receiver has noticed by itself, and the server has let go of the slot.
    reception.cluster.sql("insert into t values (2)");
    assert!(reception.proxy.counts().connections > before.connections);
    assert!(!running.is_done());
    reception.wait_shipped(&mut running);
    running.ended_by(Signal::TERM).success();
}

/// A scripted server that claims to be the cluster of a site.
struct Scripted {
    site: Site,
    _cluster: Cluster,
    identity: Identity,
}

impl Scripted {
    fn new() -> Scripted {
        let cluster = small(17).create();
        let site = Site::new(&cluster);
        let folder = site.cluster_folder();
        let name = folder.file_name().unwrap().to_str().unwrap();
        let identity = Identity {
            system_identifier: name.parse().unwrap(),
            timeline: 1,
            flush: 3 * SEGMENT,
            version: "17.5".into(),
            segment_size: "1MB".into(),
            restart: Some(3 * SEGMENT),
        };
        Scripted {
            site,
            _cluster: cluster,
            identity,
        }
    }

    fn server(&self) -> Walsender {
        Walsender::start(self.identity.clone())
    }

    fn journal(&self, server: &Walsender) -> PathBuf {
        let sandbox = self.site.sandbox();
        sandbox.join(format!("journal-{}", server.port()))
    }

    /// `pitr receive` from this server, into a journal of its own.
    fn receive(&self, server: &Walsender) -> Program {
        let config = self.site.config();
        let before = std::fs::read_to_string(config).unwrap();
        let plain = before.split("\n[clusters.main.receive]").next().unwrap();
        std::fs::write(config, plain).unwrap();
        let journal = self.journal(server);
        reception::configure(&self.site, &server.conninfo(), &journal);
        self.site
            .pitr()
            .arg("receive")
            .env("PITR_FAULT_SECONDS", "3")
    }
}

#[test]
fn w05_a_server_that_falls_silent_before_it_streams_is_tried_again() {
    let scripted = Scripted::new();
    for command in ["IDENTIFY_SYSTEM", "SHOW", "select", "START_REPLICATION"] {
        let server = scripted
            .server()
            .on(command, [Answer::Silence, Answer::Healthy]);
        let mut running = scripted.receive(&server).spawn();
        wait_within(2 * PATIENCE, "it streams at the second attempt", || {
            assert!(!running.is_done(), "{command}: {}", running.stderr());
            server.asked(command) >= 2 && server.asked("START_REPLICATION") >= 1
        });
        running.ended_by(Signal::TERM);
    }
}

/// Whoever stops it does not wait for a server that does not answer.
#[test]
fn w05_a_question_without_an_answer_does_not_hold_up_the_end() {
    let scripted = Scripted::new();
    let stop_at = |command: &str| {
        let server = scripted.server().on(command, [Answer::Silence]);
        // Nothing is shortened.
        let receive = scripted.receive(&server).env("PITR_FAULT_SECONDS", "3600");
        let journal = scripted.journal(&server);
        std::fs::create_dir_all(&journal).unwrap();
        user::own(&journal);
        let mut running = receive.spawn();
        wait_until("it has asked", || {
            assert!(!running.is_done(), "{command}: {}", running.stderr());
            server.asked(command) >= 1
        });
        running.ended_by(Signal::TERM).success()
    };
    // A machine may stand still for so long that the question is given up before the signal is there, but not every time.
    let stopped_at = |command: &str| {
        let mut runs = (0..5).map(|_| stop_at(command));
        let run = runs.find(|run| !run.stderr.contains("has not answered"));
        run.expect("it leaves before the question is given up")
    };
    stopped_at("IDENTIFY_SYSTEM").expect_stdout("received to ");
    stopped_at("START_REPLICATION").expect_stdout("received to ");
    // With the repository away, only the server could say which cluster it is.
    let repository = scripted.site.repository();
    std::fs::rename(repository, repository.with_extension("away")).unwrap();
    stopped_at("IDENTIFY_SYSTEM").expect_stdout("stopped before anything was received");
}

/// W12: a repository that takes nothing, a journal that is full, and a slot that will lose WAL: the receiver warns
/// while there is time.
#[test]
fn w12_the_receiver_warns_of_the_wal_that_the_slot_keeps() {
    let reception = Reception::of(
        Cluster::small(17)
            .config("wal_keep_size", "0")
            .config("max_slot_wal_keep_size", "64MB"),
    );
    let cluster = &reception.cluster;
    reception.site.add("journal_limit_bytes = 4194304\n");
    cluster.sql("create table t (x text)");
    let mut running = reception.start(&["--create-slot"]);
    let repository = reception.site.repository().to_owned();
    let away = repository.with_extension("away");
    std::fs::rename(&repository, &away).unwrap();
    let kept = "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) > 40 * 1048576 from pg_replication_slots";
    let client = cluster.client();
    while client.value(kept) != "t" {
        client.sql("insert into t select repeat('x', 1000) from generate_series(1, 300)");
    }
    wait_until("it warns", || {
        assert!(!running.is_done(), "{}", running.stderr());
        let said = running.stderr();
        said.contains("of what it may keep (max_slot_wal_keep_size)")
    });
    std::fs::rename(&away, &repository).unwrap();
    reception.wait_shipped(&mut running);
    running.ended_by(Signal::TERM).success();
}

#[test]
fn w05_the_server_is_told_unasked_and_at_once_when_it_asks() {
    let scripted = Scripted::new();
    let keepalive = |reply| Act::Keepalive {
        end: 3 * SEGMENT,
        reply,
    };
    let acts = vec![
        keepalive(true),
        Act::AwaitStatus,
        // Nobody asks, and there is no WAL.
        Act::AwaitStatus,
        Act::AwaitStatus,
        keepalive(true),
        Act::AwaitStatus,
    ];
    let server = scripted
        .server()
        .on("START_REPLICATION", [Answer::Stream(acts)]);
    // Nothing is shortened: it is about one connection.
    let receive = scripted.receive(&server).env("PITR_FAULT_SECONDS", "3600");
    let mut running = receive.spawn();
    running.until("it has answered", || server.statuses().len() >= 4);
    assert_eq!(server.asked("START_REPLICATION"), 1, "on one connection");
    running.ended_by(Signal::TERM);
}

/// A journal that is older than the slot: the server still has the WAL, and would move its slot back for whoever acknowledges less.
#[test]
fn w05_nothing_below_the_position_of_the_slot_is_acknowledged() {
    let mut scripted = Scripted::new();
    let (first, second) = (vec![0x5a; 10_000], vec![0x5b; 10_000]);
    let middle = 3 * SEGMENT + 10_000;
    let end = middle + 10_000;
    let filled = scripted.server().on(
        "START_REPLICATION",
        [Answer::Stream(vec![
            Act::Wal {
                start: 3 * SEGMENT,
                data: first,
            },
            Act::AwaitFlush(middle),
            Act::Silence,
        ])],
    );
    let mut running = scripted.receive(&filled).spawn();
    running.until("it has acknowledged the first half", || {
        filled.statuses().iter().any(|s| s.flushed >= middle)
    });
    running.ended_by(Signal::TERM);
    let old = scripted.journal(&filled);
    // Another receiver has used the slot since.
    scripted.identity.restart = Some(end);
    scripted.identity.flush = end;
    let ask = || Act::Keepalive { end, reply: true };
    let from = |data: &[u8], start| Act::Wal {
        start,
        data: data.to_vec(),
    };
    let quarter = 5_000;
    let later = scripted.server().on(
        "START_REPLICATION",
        [Answer::Stream(vec![
            ask(),
            Act::AwaitStatus,
            from(&second[..quarter], middle),
            ask(),
            Act::AwaitStatus,
            ask(),
            Act::AwaitStatus,
            from(&second[quarter..], middle + 5_000),
            Act::AwaitFlush(end),
            Act::Silence,
        ])],
    );
    let receive = scripted.receive(&later);
    std::fs::rename(old, scripted.journal(&later)).unwrap();
    let mut running = receive.spawn();
    running.until("it has acknowledged everything", || {
        later.statuses().iter().any(|s| s.flushed >= end)
    });
    running.ended_by(Signal::TERM);
    let statuses = later.statuses();
    assert!(statuses.iter().any(|s| s.flushed == 0), "{statuses:?}");
    for status in statuses {
        assert!(status.flushed == 0 || status.flushed >= end, "{status:?}");
        assert!(status.written == 0 || status.written >= end, "{status:?}");
    }
}

/// W78: two servers are promoted to the same timeline number, and the first of them goes before any WAL of it came. The other is another timeline.
#[test]
fn w78_a_second_server_of_a_timeline_number_is_refused() {
    let mut scripted = Scripted::new();
    scripted.identity.timeline = 2;
    scripted.identity.flush = 5 * SEGMENT;
    let first = scripted
        .server()
        .history(2, "1\t0/400000\tno reason\n")
        .on("START_REPLICATION", [Answer::Close]);
    let second = scripted.server().history(2, "1\t0/420000\tno reason\n");
    let proxy = crate::common::proxy::Proxy::to(first.port());
    let receive = scripted.receive(&first);
    scripted.site.connect_by(&proxy.conninfo());
    let mut running = receive.spawn();
    running.until("the first history is archived", || {
        first.asked("START_REPLICATION") >= 1
    });
    proxy.retarget(second.port());
    wait_until("the second one is refused", || {
        running.is_done() || second.asked("START_REPLICATION") >= 1
    });
    assert_eq!(second.asked("START_REPLICATION"), 0, "it is received from");
    let run = running.wait();
    assert_ne!(run.code(), 0, "{run}");
}

/// Returns the attacks that a hostile server may make in a stream, after `good` bytes that are WAL.
fn hostilities(good: u64) -> Vec<(&'static str, Answer)> {
    let stream = |act: Act| Answer::Stream(vec![act]);
    let at = 3 * SEGMENT;
    let raw = |bytes: Vec<u8>| stream(Act::Raw(bytes));
    let data = |start: u64, size: usize| Act::Wal {
        start,
        data: vec![7; size],
    };
    vec![
        (
            "a length beyond every limit",
            raw(b"d\x7f\xff\xff\xff".to_vec()),
        ),
        (
            "a length below zero",
            raw(b"d\x80\x00\x00\x00rest".to_vec()),
        ),
        (
            "a length shorter than itself",
            raw(b"d\x00\x00\x00\x03".to_vec()),
        ),
        (
            "CopyData of an unknown kind",
            raw(message(b'd', b"?what is this")),
        ),
        ("empty CopyData", raw(message(b'd', b""))),
        ("a short header of WAL data", raw(message(b'd', b"w\0\0\0"))),
        ("a short keepalive", raw(message(b'd', b"k\0\0"))),
        ("a message of no protocol", raw(message(b'?', b"what"))),
        ("WAL behind a hole", stream(data(at + good + 8192, 100))),
        ("WAL that was there before", stream(data(at - 8192, 100))),
        (
            "WAL at the end of all positions",
            stream(data(u64::MAX - 10, 100)),
        ),
        (
            "endless messages of an unknown kind",
            stream(Act::Endless(message(b'd', &[b'?'; 60_000]))),
        ),
        (
            "endless notices",
            stream(Act::Endless(message(b'N', b"SWARNING\0C01000\0Mlook\0\0"))),
        ),
        (
            "the same timeline again",
            stream(Act::TimelineEnds {
                next: 1,
                switch: at,
            }),
        ),
        (
            "timeline 0",
            stream(Act::TimelineEnds {
                next: 0,
                switch: at,
            }),
        ),
        (
            "a timeline that ends in the future",
            stream(Act::TimelineEnds {
                next: 2,
                switch: u64::MAX,
            }),
        ),
        (
            "an answer that is no stream",
            Answer::Row(vec![("a", None)]),
        ),
        (
            "a fatal error in the stream",
            Answer::Fatal("XX000", "no\nway\u{1b}[31m".into()),
        ),
    ]
}

#[test]
fn z10_a_hostile_server_neither_crashes_the_receiver_nor_gets_an_acknowledgement() {
    let scripted = Scripted::new();
    let at = 3 * SEGMENT;
    for (what, answer) in hostilities(0) {
        let server = scripted
            .server()
            .on("START_REPLICATION", [answer])
            .history(2, "1\t0/400000\tno reason\n");
        let mut running = scripted.receive(&server).spawn();
        // It ends, or tries again; both more than once around the hostility.
        wait_until(what, || {
            running.is_done()
                || server.asked("START_REPLICATION") >= 2
                || is_flooded(&running, what)
        });
        let peak = peak_bytes(running.pid()).unwrap_or(0);
        let run = running.ended_by(Signal::TERM);
        assert!(
            matches!(run.code(), 0 | 1 | 8 | 9 | 130),
            "{what}: status {}\n{run}",
            run.code()
        );
        assert!(!run.stderr.contains("internal"), "{what}: {run}");
        assert!(!run.stderr.contains('\u{1b}'), "{what}: {run}");
        assert!(peak < 64 << 20, "{what}: {peak} bytes");
        let told = server.statuses();
        let most = told.iter().map(|s| s.flushed).max().unwrap_or(0);
        assert!(most <= at, "{what}: flushed {most:#x} was reported");
    }
}

/// An endless stream that is not refused must at least go nowhere.
fn is_flooded(running: &Running, what: &str) -> bool {
    what.starts_with("endless") && running.stderr().lines().count() > 20
}

#[test]
fn z10_wal_is_acknowledged_only_when_it_is_whole_and_in_order() {
    let scripted = Scripted::new();
    let at = 3 * SEGMENT;
    let mut acts = wal(at, &[0x5a; 10_000], 3000);
    acts.push(Act::AwaitFlush(at + 10_000));
    // A hole, and more behind it.
    acts.extend(wal(at + 20_000, &[1; 500], 500));
    acts.push(Act::AwaitFlush(at + 20_500));
    let server = scripted.server().on(
        "START_REPLICATION",
        [Answer::Stream(acts), Answer::Stream(vec![])],
    );
    // Nothing is shortened: it is about one connection.
    let receive = scripted.receive(&server).env("PITR_FAULT_SECONDS", "3600");
    let mut running = receive.spawn();
    wait_until("it asks for the byte behind the last one", || {
        let commands = server.commands();
        let again = commands
            .iter()
            .filter(|c| c.starts_with("START_REPLICATION"));
        running.is_done() || again.clone().count() >= 2
    });
    let most = server.statuses().iter().map(|s| s.flushed).max();
    assert_eq!(most, Some(at + 10_000));
    if !running.is_done() {
        let commands = server.commands();
        let again = commands
            .iter()
            .rfind(|c| c.starts_with("START_REPLICATION"));
        assert!(again.unwrap().contains("0/302710"), "{commands:?}");
    }
    running.ended_by(Signal::TERM);
}

fn w06_a_slot_that_lost_its_wal_is_told_and_the_hole_is_recorded(major: u32) {
    let reception = Reception::of(
        Cluster::small(major)
            .config("max_slot_wal_keep_size", "2MB")
            .config("max_wal_size", "4MB")
            .config("min_wal_size", "2MB"),
    );
    let cluster = &reception.cluster;
    cluster.sql("create table t (a int)");
    let mut running = reception.start(&["--create-slot"]);
    reception.wait_shipped(&mut running);
    running.ended_by(Signal::TERM).success();
    let last = archived(&reception.journal()).unwrap();

    wait_until("the slot has lost WAL", || {
        cluster.sql("select pg_logical_emit_message(false, 'x', repeat('x', 1500000)); select pg_switch_wal(); checkpoint");
        let sql = "select wal_status from pg_replication_slots";
        cluster.value(sql) == "lost"
    });
    let run = reception.receive().exits(1);
    assert!(run.stderr.contains("error slot_lost"), "{run}");
    assert!(run.stderr.contains("--drop-slot"), "{run}");
    // Without dropping it first nothing gets better.
    let again = reception.receive().arg("--create-slot").run();
    again.expect_code(1).expect_stderr("error slot_lost");

    reception.receive().arg("--drop-slot").succeed();
    let mut running = reception.start(&["--create-slot"]);
    assert!(
        running.stderr().contains("recorded as a gap"),
        "{}",
        running.stderr()
    );
    cluster.sql("insert into t values (1)");
    reception.wait_shipped(&mut running);
    let lost = format!("{:X}/{:X}", last >> 32, last & 0xffff_ffff);
    let gaps = reception.site.pitr().words("wal gaps").run();
    assert!(!gaps.is_success(), "no gap is nothing to report: {gaps}");
    gaps.expect_stdout(&lost);
    let info = reception.site.pitr().arg("info").exits(1);
    info.expect_stdout(&format!("WAL of timeline 1 from {lost} to"))
        .expect_stdout("was lost before it was received");
    // A base backup behind the hole makes the present recoverable again.
    reception.site.pitr().arg("backup").succeed();
    reception.site.pitr().arg("plan").succeed();
    running.ended_by(Signal::TERM).success();
}
per_major!(w06_a_slot_that_lost_its_wal_is_told_and_the_hole_is_recorded);

#[test]
fn w06_a_slot_that_is_dropped_is_told_and_its_successor_used_without_a_hole() {
    let reception = Reception::of(small(17));
    let cluster = &reception.cluster;
    let slot = "select pg_create_physical_replication_slot('pitr', true)";
    cluster.sql(&format!("create table t (a int); {slot}"));
    let mut running = reception.start(&[]);
    reception.proxy.refuse(true);
    reception.proxy.reset();
    wait_until("the slot can be dropped", || {
        let client = cluster.client();
        client
            .try_sql("select pg_drop_replication_slot('pitr')")
            .is_ok()
    });
    cluster.sql("insert into t values (1)");
    reception.proxy.calm();
    wait_until("the missing slot is told", || {
        assert!(!running.is_done(), "{}", running.stderr());
        running.stderr().contains("does not exist")
    });
    cluster.sql(slot);
    reception.wait_streaming(&mut running);
    cluster.sql("insert into t values (2)");
    reception.wait_shipped(&mut running);
    assert!(!running.stderr().contains("gap"), "{}", running.stderr());
    reception.site.pitr().words("wal gaps").succeed();
    running.ended_by(Signal::TERM).success();
}

fn w09_an_old_primary_that_went_on_is_refused(major: u32) {
    let reception = Reception::of(small(major));
    let old = &reception.cluster;
    old.sql("create table t (a int)");
    let standby = small(major).standby_of(old).slot("standby").start();
    let mut running = reception.start(&["--create-slot"]);
    // Both go on: split brain.
    standby.promote();
    reception.proxy.retarget(standby.port());
    reception.proxy.reset();
    standby.sql("insert into t values (2)");
    let sql = "select count(*) from pg_stat_replication where application_name = 'pitr'";
    running.until("the new primary is followed", || standby.value(sql) == "1");
    standby.sql("insert into t values (3); select pg_switch_wal()");
    let end = lsn(&standby.value("select pg_current_wal_flush_lsn()"));
    wait_until("timeline 2 is in the repository", || {
        let on_two = status(&reception.journal())
            .is_some_and(|s| s.pointer("/repositories/0/timeline") == Some(&2.into()));
        on_two && archived(&reception.journal()).is_some_and(|at| at >= end)
    });
    let stored = reception.site.files();
    old.sql("insert into t select generate_series(1, 10000); select pg_switch_wal()");
    reception.proxy.retarget(old.port());
    reception.proxy.reset();
    let run = running.wait().expect_code(8);
    assert!(run.stderr.contains("error diverged"), "{run}");
    assert!(run.stderr.contains("split brain"), "{run}");
    // Nothing of what the old primary wrote since has come in.
    let of_one = |files: &[String]| {
        files
            .iter()
            .filter(|f| f.contains("/wal/00000001/"))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(of_one(&stored), of_one(&reception.site.files()));
    let again = reception.receive().exits(8);
    assert!(again.stderr.contains("error diverged"), "{again}");
}
per_major!(w09_an_old_primary_that_went_on_is_refused, v14 v17 v19);

fn w13_the_last_commit_of_a_quiet_server_is_in_the_repository(major: u32) {
    let reception = Reception::of(small(major));
    let cluster = &reception.cluster;
    cluster.sql("create table t (a int)");
    let mut running = reception.start(&["--create-slot"]);
    reception.site.pitr().arg("backup").succeed();
    cluster.sql("insert into t values (42)");
    reception.wait_shipped(&mut running);
    kill(running);
    let Reception {
        mut cluster, site, ..
    } = reception;
    cluster.stop(Stop::Immediate);
    std::fs::remove_dir_all(cluster.pgdata()).unwrap();
    let folder = Sandbox::new("quiet");
    let to = folder.join("data");
    site.pitr().restore_to(&to).succeed();
    let restored = Cluster::open(major, &to).without_fsync().promoted();
    assert_eq!(restored.value("select a from t"), "42");
}
per_major!(w13_the_last_commit_of_a_quiet_server_is_in_the_repository, v13 v16 v19);
