//! Tests of the test harness itself.

use crate::common::fault::{self, Fault};
use crate::common::mount::{PowerDisk, SmallDisk};
use crate::common::proxy::{Proxy, Way};
use crate::common::walsender::{self, Answer, Identity, Walsender};
use crate::common::{Cluster, PATIENCE, Program, Sandbox, Stop, pitr_archive};
use crate::{per_major, require_mounts, require_root, require_strace, skip};

fn a_server_starts_answers_and_stops(major: u32) {
    let mut cluster = Cluster::builder(major).segment_size_mb(1).start();
    assert_eq!(cluster.value("select 1"), "1");
    let version: u32 = cluster.value("show server_version_num").parse().unwrap();
    assert_eq!(version / 10_000, major);
    assert_eq!(cluster.value("show wal_segment_size"), "1MB");
    assert_eq!(cluster.value("show data_checksums"), "on");
    let pid = cluster.pid().unwrap();
    cluster.stop(Stop::Fast);
    assert!(cluster.log().contains("database system is shut down"));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
per_major!(a_server_starts_answers_and_stops, v13 v16 v19);

fn a_server_archives_and_a_standby_follows_and_is_promoted(major: u32) {
    let archive = Sandbox::new("archive");
    let dir = archive.dir("wal");
    let mut primary = Cluster::builder(major)
        .segment_size_mb(1)
        .checksums(false)
        .without_fsync()
        .config("archive_mode", "on")
        .config("archive_command", format!("cp %p {}/%f", dir.display()))
        .start();
    primary.sql("create table t (a int); insert into t select generate_series(1, 1000)");
    let segment = primary.archive_now();
    assert!(dir.join(&segment).exists());

    let standby = primary.standby().start();
    assert_eq!(standby.value("select pg_is_in_recovery()"), "t");
    primary.stop(Stop::Immediate);
    standby.promote();
    assert_eq!(standby.value("select count(*) from t"), "1000");
    assert_eq!(
        standby
            .value("select timeline_id from pg_control_checkpoint()")
            .len(),
        1
    );
}
per_major!(a_server_archives_and_a_standby_follows_and_is_promoted);

#[test]
fn clusters_share_a_system_identifier_unless_told_otherwise() {
    let one = Cluster::builder(15).segment_size_mb(1).start();
    let two = Cluster::builder(15).segment_size_mb(1).start();
    let other = Cluster::builder(15)
        .segment_size_mb(1)
        .own_identifier()
        .start();
    assert_eq!(one.system_identifier(), two.system_identifier());
    assert_ne!(one.system_identifier(), other.system_identifier());
}

#[test]
fn a_server_that_cannot_start_returns_its_log() {
    let mut cluster = Cluster::builder(15)
        .config("shared_buffers", "nonsense")
        .create();
    let log = cluster.try_start().unwrap_err();
    assert!(log.contains("invalid value for parameter"), "{log}");
}

#[test]
fn a_server_does_not_outlive_a_panic() {
    let outcome = std::panic::catch_unwind(|| {
        let cluster = Cluster::builder(15).segment_size_mb(1).start();
        // The hook is not called: nothing says that a test failed.
        std::panic::resume_unwind(Box::new(cluster.pid().unwrap()));
    });
    let pid = *outcome.unwrap_err().downcast::<u32>().unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn every_tool_of_a_major_is_where_it_is_said_to_be() {
    for major in [13, 15, 16, 17, 18] {
        for name in [
            "pg_waldump",
            "pg_verifybackup",
            "pg_checksums",
            "pg_controldata",
        ] {
            let Some(bin) = crate::common::bin(major, name) else {
                skip!(
                    &format!("every_tool_of_a_major_is_where_it_is_said_to_be ({name} of {major})"),
                    "scripts/get-postgres says what it needs"
                );
            };
            let run = Program::new(bin).arg("--version").succeed();
            assert!(run.stdout.contains(&format!(" {major}.")), "{run}");
        }
    }
}

#[test]
fn programs_run_as_a_user_who_is_not_root_with_an_empty_environment() {
    let run = Program::new("sh").args(["-c", "id -u; env"]).succeed();
    assert!(!run.stdout.starts_with("0\n"), "{run}");
    assert!(!run.stdout.contains("CARGO"), "{run}");
    // The small programs are built and can be executed by that user.
    let run = pitr_archive().run();
    assert!(run.status.code().is_some(), "{run}");
}

#[test]
fn what_a_program_takes_is_measured() {
    let eats = "x = bytearray(64 << 20)\nfor i in range(3000000): pass";
    let (run, usage) = Program::new("/usr/bin/python3")
        .args(["-c", eats])
        .measure();
    assert!(run.is_success(), "{run}");
    assert!(usage.peak_memory_bytes > 64 << 20, "{usage:?}");
    assert!(
        usage.cpu > std::time::Duration::from_millis(10),
        "{usage:?}"
    );
    let (run, _) = Program::new("sh").args(["-c", "exit 9"]).measure();
    assert_eq!(run.code(), 9);
}

#[test]
fn an_injected_fault_fires_and_is_counted() {
    require_strace!("an_injected_fault_fires_and_is_counted");
    let sandbox = Sandbox::new("inject");
    let file = sandbox.file("file", "content");
    let copy = Program::new("mv").arg(&file).arg(sandbox.join("moved"));
    let names = "rename,renameat,renameat2";

    let (run, fired) = fault::inject(&copy, &Fault::error(names, "ENOSPC"));
    assert!(fired >= 1 && run.stderr.contains("No space left"), "{run}");
    let (run, fired) = fault::inject(&copy, &Fault::error(names, "EIO").at(99));
    assert_eq!(fired, 0, "{run}");

    let file = sandbox.file("file", "content");
    let (run, calls) = fault::trace(&copy, &["rename", "renameat", "renameat2"]);
    assert!(run.is_success() && !calls.is_empty(), "{run}");
    assert!(calls[0].touches(&file) && calls[0].nth == 1);

    sandbox.file("file", "content");
    let (run, fired) = fault::inject(&copy, &calls[0].kill());
    assert_eq!((run.code(), fired), (137, 1), "{run}");
    assert!(file.exists());
}

#[test]
fn a_small_disk_gets_full() {
    require_mounts!("a_small_disk_gets_full");
    let disk = SmallDisk::new(1, 10);
    let run = Program::new("dd")
        .words("if=/dev/zero bs=64k count=32")
        .arg(format!("of={}/file", disk.path().display()))
        .run();
    assert!(run.stderr.contains("No space left"), "{run}");
}

#[test]
fn a_power_cut_loses_what_was_not_synced_and_only_that() {
    require_root!("a_power_cut_loses_what_was_not_synced_and_only_that");
    let disk = PowerDisk::new(16);
    let (synced, lost) = (disk.path().join("synced"), disk.path().join("lost"));
    Program::new("sh")
        .args(["-c", "echo one > $0; sync $0; sync -f $0; echo two > $1"])
        .args([&synced, &lost])
        .succeed();
    disk.cut_power();
    assert_eq!(std::fs::read_to_string(&synced).unwrap(), "one\n");
    assert!(
        std::fs::read_to_string(&lost)
            .unwrap_or_default()
            .is_empty()
    );
}

#[test]
fn a_power_cut_waits_for_who_is_about_to_leave() {
    require_root!("a_power_cut_waits_for_who_is_about_to_leave");
    let disk = PowerDisk::new(16);
    let mut busy = std::process::Command::new("sleep")
        .arg("1")
        .current_dir(disk.path())
        .spawn()
        .unwrap();
    disk.cut_power();
    // It has ended, or has let go of its working directory on the way to its end.
    let place = std::fs::read_link(format!("/proc/{}/cwd", busy.id()));
    let ended = busy.try_wait().unwrap();
    assert!(
        ended.is_some() || place.is_err(),
        "the disk was unmounted under a process: {place:?}"
    );
    busy.wait().unwrap();
}

/// A server that sends back what it gets.
fn echo() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut &socket, &mut &socket);
                let _ = socket.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    port
}

#[test]
fn the_proxy_delays_throttles_stalls_resets_cuts_and_truncates() {
    use std::io::{Read as _, Write as _};
    let proxy = Proxy::to(echo());
    let connect = || {
        let socket = std::net::TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let exchange = |mut socket: &std::net::TcpStream, bytes: &[u8]| {
        socket.write_all(bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        socket.read_exact(&mut back).map(|()| back)
    };
    let rest = |mut socket: &std::net::TcpStream| {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).map(|_| all)
    };
    let one = connect();
    assert_eq!(exchange(&one, b"hello").unwrap(), b"hello");
    proxy.delay(Way::ToClient, std::time::Duration::from_millis(20));
    proxy.throttle(Way::ToServer, Some(1000));
    assert_eq!(exchange(&one, b"later").unwrap(), b"later");
    let counts = proxy.counts();
    assert!(counts.delayed >= 1 && counts.throttled >= 1, "{counts:?}");
    proxy.calm();

    proxy.stall(Way::ToClient);
    (&one).write_all(b"lost").unwrap();
    one.set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    let silent = (&one).read(&mut [0; 8]).unwrap_err();
    assert!(
        matches!(silent.kind(), std::io::ErrorKind::WouldBlock),
        "{silent}"
    );
    let two = connect();
    assert_eq!(exchange(&two, b"works").unwrap(), b"works");

    proxy.reset();
    assert!(rest(&two).is_err());
    assert_eq!(proxy.counts().resets, 2);

    let three = connect();
    proxy.cut_after(Way::ToClient, 3);
    (&three).write_all(b"hello").unwrap();
    assert_eq!(rest(&three).unwrap(), b"hel");

    // To the client all messages have a type: here CopyData with ten bytes, after a short one that passes.
    let four = connect();
    proxy.truncate(Way::ToClient, 8);
    (&four)
        .write_all(b"d\0\0\0\x05xd\0\0\0\x0e0123456789")
        .unwrap();
    assert_eq!(rest(&four).unwrap(), b"d\0\0\0\x05xd\0\0\0\x0e01234");

    proxy.refuse(true);
    assert!(rest(&connect()).map_or(true, |all| all.is_empty()));
    let counts = proxy.counts();
    assert_eq!(
        (
            counts.stalled,
            counts.cuts,
            counts.truncated,
            counts.refused,
            counts.connections
        ),
        (1, 1, 1, 1, 4)
    );
    assert_eq!(proxy.open_connections(), 0);
}

#[test]
fn the_scripted_server_is_one_to_a_client_of_postgresql() {
    let server = Walsender::start(Identity {
        system_identifier: 7_123_456_789,
        timeline: 2,
        flush: 0x1_2300_0000,
        version: "17.5".into(),
        segment_size: "1MB".into(),
        restart: Some(0x1_2300_0000),
    })
    .history(2, "1\t0/3000000\tno recovery target specified\n")
    .on(
        "IDENTIFY_SYSTEM",
        [Answer::Error("XX000", "not yet".into()), Answer::Healthy],
    );
    let folder = Sandbox::new("stream");
    let receive = || {
        Program::new(crate::common::newest_bin(17, "pg_receivewal"))
            .args(["--no-loop", "--slot=pitr", "-d", &server.conninfo(), "-D"])
            .arg(folder.dir("wal"))
    };
    receive().exits(1).expect_stderr("not yet");
    let mut running = receive().spawn();
    running.until("it streams", || server.asked("START_REPLICATION") == 1);
    let commands = server.commands();
    assert!(
        commands
            .iter()
            .any(|c| c.starts_with("READ_REPLICATION_SLOT")),
        "{commands:?}"
    );
    assert!(
        commands.last().unwrap().contains("1/23000000"),
        "{commands:?}"
    );
    running.ended_by(rustix::process::Signal::INT);
    assert_eq!(walsender::lsn(0x1_2300_0000), "1/23000000");
}

/// A loop without an end fails the build; other programs run as they are.
#[test]
fn unit_tests_that_hang_are_ended() {
    let sandbox = Sandbox::new("runner");
    let runner = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/test-runner");
    let run = |name: &str, script: &str, seconds: &str| {
        let path = sandbox.file(name, format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let run = Program::new(runner)
            .arg(path)
            .env("PITR_UNIT_SECONDS", seconds);
        run.privileged().run()
    };
    run("unit-0123456789abcdef", "exec sleep 1000", "1")
        .expect_code(124)
        .expect_stderr("unit-0123456789abcdef was ended after 1 s");
    run("unit-fedcba9876543210", "exit 101", "60").expect_code(101);
    run("it-0123456789abcdef", "sleep 2; exit 7", "1").expect_code(7);
    run("unit", "sleep 2; exit 7", "1").expect_code(7);
}
