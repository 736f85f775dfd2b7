//! Faults while archiving: killed, failing, full, cut off, hanging. Each test asserts that its fault fired.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::fault::{self, Call, Fault, MUTATING};
use crate::common::mount::{HangingDisk, PowerDisk, SmallDisk};
use crate::common::{Cluster, PATIENCE, Program, Site, Still, Stop, user, wait_until};
use crate::{require_mounts, require_root, require_strace};

/// The calls of `program` on the repository that change something, each once. strace counts them for each thread; what is hit is
/// the n-th call of whichever thread comes first to its n-th.
fn calls(still: &Still, program: &Program) -> Vec<Call> {
    let (run, calls) = fault::trace(program, MUTATING);
    run.success();
    let mut seen = BTreeSet::new();
    calls
        .into_iter()
        .filter(|c| c.touches(still.site.repository()))
        .filter(|c| seen.insert((c.name.clone(), c.nth)))
        .collect()
}

/// Nothing half-written is visible: a segment comes back whole or is absent; what is left over says so by its name.
fn nothing_is_half(still: &Still, name: &str, what: &str) {
    let run = still.fetch(name).run();
    match run.code() {
        0 => still.check(name),
        1 => assert!(!still.site.object(name).exists(), "{what}: {run}"),
        _ => panic!("{what}: {run}"),
    }
    for file in still.site.files() {
        let last = file.rsplit('/').next().unwrap();
        let known = ["pitr.json", "cluster.json", name].contains(&last);
        assert!(known || last.starts_with(".tmp."), "{what} left {file}");
    }
}

#[test]
fn p01_a_push_killed_at_any_call_leaves_nothing_half_and_succeeds_again() {
    require_strace!("p01_a_push_killed_at_any_call_leaves_nothing_half_and_succeeds_again");
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let push = still.push(name);
    let calls = calls(&still, &push);
    eprintln!(
        "pitr-archive: killed at each of {} mutating calls",
        calls.len()
    );
    assert!(calls.iter().any(|c| c.name == "linkat") && calls.iter().any(|c| c.name == "mkdirat"));
    for call in &calls {
        still.forget();
        let (run, fired) = fault::inject(&push, &call.kill());
        assert!(run.code() == 137 && fired >= 1, "{}: {run}", call.text);
        nothing_is_half(&still, name, &call.text);
        push.succeed();
        still.check(name);
    }
    // The other way: what is there is made durable again, killed at each call of that.
    let again = self::calls(&still, &push);
    eprintln!(
        "pitr-archive, already there: killed at each of {} mutating calls",
        again.len()
    );
    assert!(
        again.iter().filter(|c| c.name == "fsync").count() >= 2,
        "file and directory: {again:?}"
    );
    for call in &again {
        let (run, fired) = fault::inject(&push, &call.kill());
        assert!(run.code() == 137 && fired >= 1, "{}: {run}", call.text);
        push.succeed();
        still.check(name);
    }
}

#[test]
fn p03_directories_that_a_killed_push_made_are_made_durable_by_the_next() {
    require_strace!("p03_directories_that_a_killed_push_made_are_made_durable_by_the_next");
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let push = still.push(name);
    let link = calls(&still, &push)
        .into_iter()
        .find(|c| c.name == "linkat")
        .unwrap();
    still.forget();
    let (run, fired) = fault::inject(&push, &link.kill());
    assert!(run.code() == 137 && fired >= 1, "{run}");
    let object = still.site.object(name);
    let folder = object.parent().unwrap();
    assert!(folder.is_dir() && !object.exists());
    // For all the second one knows, the first died before it could sync what it had made.
    let (run, calls) = fault::trace(&push, &["fsync", "linkat"]);
    run.success();
    let linked = calls.iter().position(|c| c.name == "linkat").unwrap();
    for above in folder.ancestors().skip(1) {
        let path = format!("<{}>)", above.display());
        let synced = calls.iter().take(linked).any(|c| c.text.contains(&path));
        assert!(synced, "{} was not synced: {calls:?}", above.display());
        if above == still.site.repository() {
            return;
        }
    }
    panic!("the object lies outside of the repository");
}

#[test]
fn p04_p06_an_error_at_any_write_or_sync_is_told_and_nothing_is_acknowledged() {
    require_strace!("p04_p06_an_error_at_any_write_or_sync_is_told_and_nothing_is_acknowledged");
    let still = Still::new(16, 1, 1);
    let name = still.segments[0].as_str();
    let push = still.push(name);
    let calls = calls(&still, &push);
    eprintln!(
        "pitr-archive: EIO, ENOSPC and EDQUOT at each of {} mutating calls",
        calls.len()
    );
    for call in &calls {
        for (errno, code) in [("EIO", 33), ("ENOSPC", 32), ("EDQUOT", 32)] {
            still.forget();
            let (run, fired) = fault::inject(&push, &call.fail(errno));
            assert!(fired >= 1, "{errno} at {}", call.text);
            let run = run.expect_code(code);
            // The first write of the main thread is that of the message itself.
            if call.name != "write" || call.nth != 1 {
                let start = format!("pitr-archive: error A1{code}: ");
                assert!(run.stderr.starts_with(&start), "{run}");
                assert!(code != 32 || run.stderr.contains("bytes are free"), "{run}");
            }
            nothing_is_half(&still, name, &call.text);
            let leftovers = still
                .site
                .files()
                .into_iter()
                .filter(|f| f.contains(".tmp."))
                .count();
            assert_eq!(leftovers, 0, "{errno} at {}", call.text);
            push.succeed();
            still.check(name);
        }
    }
    // A segment that is there already is acknowledged by a sync of its own: if that fails, so does the push.
    let (run, fired) = fault::inject(&push, &Fault::error("fsync", "EIO").at(1));
    assert_eq!(fired, 1);
    run.expect_code(33);
    push.succeed();
}

#[test]
fn p05_interrupted_writes_are_completed_and_lost_ones_are_noticed() {
    require_strace!("p05_interrupted_writes_are_completed_and_lost_ones_are_noticed");
    let still = Still::new(15, 1, 1);
    let name = still.segments[0].as_str();
    let push = still.push(name);
    for call in calls(&still, &push).iter().filter(|c| c.name == "write") {
        still.forget();
        let (run, fired) = fault::inject(&push, &call.fail("EINTR"));
        assert!(fired >= 1, "{}", call.text);
        run.success();
        still.check(name);
        // The system says that 50 bytes were written, and they were not.
        still.forget();
        let (run, fired) = fault::inject(&push, &Fault::pretend("write", 50).at(call.nth));
        assert!(fired >= 1, "{}", call.text);
        assert_ne!(run.code(), 0, "{}: {run}", call.text);
    }
}

#[test]
fn p02_a_segment_survives_a_power_cut_right_after_it_was_acknowledged() {
    require_root!("p02_a_segment_survives_a_power_cut_right_after_it_was_acknowledged");
    let disk = PowerDisk::new(64);
    let mut still = Still::new(17, 1, 3);
    still.site = Site::on(&still.cluster, &disk.path().join("repo"));
    for name in &still.segments {
        still.push(name).succeed();
        disk.cut_power();
        still.check(name);
    }
    // The same for a history file, and for what was refused.
    std::fs::write(still.wal("00000002.history"), "1\t0/3000000\twhy\n\n").unwrap();
    user::own(&still.wal("00000002.history"));
    still.push("00000002.history").succeed();
    disk.cut_power();
    still.check("00000002.history");
}

#[test]
fn p03_a_segment_whose_name_was_not_synced_is_synced_by_the_next_push() {
    require_root!("p03_a_segment_whose_name_was_not_synced_is_synced_by_the_next_push");
    require_strace!("p03_a_segment_whose_name_was_not_synced_is_synced_by_the_next_push");
    let disk = PowerDisk::new(64);
    let mut still = Still::new(17, 1, 2);
    still.site = Site::on(&still.cluster, &disk.path().join("repo"));
    let (first, name) = (&still.segments[0], still.segments[1].as_str());
    // The directories are there, so that link and directory are all that is left to sync.
    still.push(first).succeed();
    let (run, calls) = fault::trace(&still.push(name), MUTATING);
    run.success();
    let at = calls
        .iter()
        .position(|c| c.name == "linkat")
        .expect("the object is linked");
    let sync = calls[at..]
        .iter()
        .find(|c| c.name == "fsync")
        .expect("its directory is synced");
    let start_over = || {
        std::fs::remove_file(still.site.object(name)).unwrap();
        Program::new("sync").arg("-f").arg(disk.path()).succeed();
        let (run, fired) = fault::inject(&still.push(name), &sync.kill());
        assert!(run.code() == 137 && fired >= 1, "{run}");
        assert!(still.site.object(name).exists(), "it was linked");
    };
    // The disk does forget what was not synced.
    start_over();
    disk.cut_power();
    assert!(
        !still.site.object(name).exists(),
        "the name outlived the power cut without a sync"
    );
    still.push(name).succeed();
    start_over();
    still.push(name).succeed();
    disk.cut_power();
    still.check(name);
}

/// `program` on a filesystem without unnamed files, such as NFS: opening one fails.
fn without_unnamed_files(program: &Program) -> Program {
    let (run, opened) = fault::trace(program, &["openat"]);
    run.success();
    let unnamed: Vec<&Call> = opened
        .iter()
        .filter(|c| c.text.contains("O_TMPFILE"))
        .collect();
    let [only] = unnamed.as_slice() else {
        panic!("one unnamed file is opened: {opened:?}");
    };
    let others = opened
        .iter()
        .filter(|c| c.pid != only.pid)
        .map(|c| c.nth)
        .max();
    assert!(
        others.unwrap_or(0) < only.nth,
        "another thread would be hit, too: {opened:?}"
    );
    program.clone().under([
        "strace".to_owned(),
        "-f".into(),
        "-qq".into(),
        "-o".into(),
        "/dev/null".into(),
        format!("--inject=openat:error=EOPNOTSUPP:when={}", only.nth),
        "--".into(),
    ])
}

#[test]
fn p01_without_unnamed_files_a_killed_push_leaves_only_what_says_so_by_its_name() {
    require_strace!("p01_without_unnamed_files_a_killed_push_leaves_only_what_says_so_by_its_name");
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let push = without_unnamed_files(&still.push(name));
    still.forget();
    push.succeed();
    still.check(name);
    assert!(still.site.files().iter().all(|f| !f.contains(".tmp.")));
    // strace does not trace strace: each fault is one more of the same command.
    let with = |more: &str| {
        let mut words: Vec<String> = push.shell().split(' ').map(str::to_owned).collect();
        words.insert(5, more.to_owned());
        Program::new(&words[0])
            .args(&words[1..])
            .dir(still.cluster.pgdata())
    };
    let mut left = 0;
    for (call, most) in [("write", 12), ("fsync", 8), ("linkat", 1), ("unlinkat", 1)] {
        for nth in 1..=most {
            still.forget();
            let run = with(&format!("--inject={call}:signal=SIGKILL:when={nth}")).run();
            assert!(matches!(run.code(), 137 | 0), "{call} {nth}: {run}");
            nothing_is_half(&still, name, call);
            left += still
                .site
                .files()
                .iter()
                .filter(|f| f.contains(".tmp."))
                .count();
            // With its directories there the call to fail would be another one.
            still.push(name).succeed();
            still.check(name);
            // SIGTERM cleans up.
            still.forget();
            let run = with(&format!("--inject={call}:signal=SIGTERM:when={nth}")).run();
            assert!(matches!(run.code(), 143 | 0), "{call} {nth}: {run}");
            nothing_is_half(&still, name, call);
            assert!(
                still.site.files().iter().all(|f| !f.contains(".tmp.")),
                "{call} {nth}: {run}"
            );
        }
    }
    assert!(
        left > 0,
        "no kill came while the file had its temporary name"
    );
}

#[test]
fn p01_p02_the_power_may_fail_at_any_call_of_a_push() {
    require_root!("p01_p02_the_power_may_fail_at_any_call_of_a_push");
    require_strace!("p01_p02_the_power_may_fail_at_any_call_of_a_push");
    let disk = PowerDisk::new(64);
    let mut still = Still::new(17, 1, 1);
    still.site = Site::on(&still.cluster, &disk.path().join("repo"));
    let name = still.segments[0].as_str();
    let push = still.push(name);
    let calls = calls(&still, &push);
    eprintln!(
        "pitr-archive: the power fails at each of {} mutating calls",
        calls.len()
    );
    for call in &calls {
        still.forget();
        Program::new("sync").arg("-f").arg(disk.path()).succeed();
        let (run, fired) = fault::inject(&push, &call.kill());
        assert!(run.code() == 137 && fired >= 1, "{}: {run}", call.text);
        disk.cut_power();
        nothing_is_half(&still, name, &call.text);
        push.succeed();
        disk.cut_power();
        still.check(name);
    }
}

#[test]
fn p17_a_server_whose_repository_hangs_can_be_shut_down() {
    require_root!("p17_a_server_whose_repository_hangs_can_be_shut_down");
    let mut cluster = Cluster::small(17).create();
    let site = Site::new(&cluster);
    cluster.append_config("archive_mode", "on");
    let command = site
        .archive()
        .arg("%p")
        .under(["env", "PITR_FAULT_SECONDS=3"])
        .shell();
    cluster.append_config("archive_command", &command);
    cluster.start();
    cluster.archive_now();
    let hanging = HangingDisk::over(site.repository());
    cluster.switch_wal();
    cluster.wait_log("error A140");
    let asked = Instant::now();
    cluster.stop(Stop::Fast);
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
    drop(hanging);
    cluster.start();
    cluster.archive_now();
}

#[test]
fn p06_a_full_repository_is_told_and_archiving_goes_on_once_there_is_room() {
    require_mounts!("p06_a_full_repository_is_told_and_archiving_goes_on_once_there_is_room");
    let disk = SmallDisk::new(4, 1000);
    let mut still = Still::new(17, 4, 1);
    still.site = Site::on(&still.cluster, &disk.path().join("repo"));
    let name = still.segments[0].as_str();
    let filler = disk.path().join("filler");
    Program::new("dd")
        .words("if=/dev/zero bs=4k status=none")
        .arg(format!("of={}", filler.display()))
        .run();
    let run = still.push(name).exits(32);
    assert!(
        run.stderr.contains("error A132") && run.stderr.contains("bytes are free"),
        "{run}"
    );
    assert!(still.site.files().iter().all(|f| !f.contains("/wal/")));
    std::fs::remove_file(filler).unwrap();
    still.push(name).succeed();
    still.check(name);
}

#[test]
fn p07_a_repository_without_a_free_inode_says_so() {
    require_mounts!("p07_a_repository_without_a_free_inode_says_so");
    let disk = SmallDisk::new(16, 30);
    let mut still = Still::new(17, 1, 1);
    still.site = Site::on(&still.cluster, &disk.path().join("repo"));
    let name = still.segments[0].as_str();
    let folder = disk.path().join("files");
    std::fs::create_dir(&folder).unwrap();
    let taken = (0..100)
        .take_while(|n| std::fs::write(folder.join(n.to_string()), "").is_ok())
        .count();
    assert!(taken < 100, "the filesystem has more inodes than it should");
    still.push(name).exits(32).expect_stderr("no inode is free");
    std::fs::remove_dir_all(folder).unwrap();
    still.push(name).succeed();
}

#[test]
fn m04_a_repository_that_turned_read_only_is_told_and_recovers_by_itself() {
    require_root!("m04_a_repository_that_turned_read_only_is_told_and_recovers_by_itself");
    let disk = PowerDisk::new(64);
    let mut still = Still::new(17, 1, 2);
    still.site = Site::on(&still.cluster, &disk.path().join("repo"));
    let (one, two) = (&still.segments[0], &still.segments[1]);
    still.push(one).succeed();
    disk.read_only(true);
    still.push(two).exits(34).expect_stderr("error A134");
    still.check(one);
    disk.read_only(false);
    still.push(two).succeed();
    // A medium that is gone altogether: every access is an I/O error.
    disk.shut_down();
    let run = still.push(two).run();
    assert!(matches!(run.code(), 30 | 33 | 35), "{run}");
    disk.restore_power();
    still.push(two).succeed();
}

/// Whether some process has the file open and has read a part of it.
fn is_being_read(path: &Path) -> bool {
    let links = std::fs::read_dir("/proc").unwrap().flatten();
    links
        .filter_map(|process| std::fs::read_dir(process.path().join("fd")).ok())
        .flat_map(|files| files.flatten())
        .filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path))
        .any(|file| {
            let info = file.path().to_str().unwrap().replace("/fd/", "/fdinfo/");
            // The first line is "pos:", a tab and the position.
            std::fs::read_to_string(info)
                .is_ok_and(|text| text.lines().next().is_some_and(|l| !l.ends_with("\t0")))
        })
}

#[test]
fn p14_a_source_that_changes_while_it_is_read_is_not_archived() {
    require_strace!("p14_a_source_that_changes_while_it_is_read_is_not_archived");
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let wal = still.wal(name);
    // Its header and two or more pieces, each late; behind the first somebody writes the same byte over itself.
    let slow = Fault::delay("read", Duration::from_secs(4)).on(&wal);
    let writer = std::thread::spawn({
        let wal = wal.clone();
        move || {
            wait_until("some of it is read", || is_being_read(&wal));
            let bytes = std::fs::read(&wal).unwrap();
            let file = std::fs::File::options().write(true).open(&wal).unwrap();
            std::os::unix::fs::FileExt::write_at(&file, &bytes[..1], 0).unwrap();
        }
    });
    let (run, fired) = fault::inject(&still.push(name), &slow);
    writer.join().unwrap();
    assert!(fired >= 3, "{fired}: {run}");
    run.expect_code(14).expect_stderr("error A114");
    nothing_is_half(&still, name, "change");
    assert!(!still.site.object(name).exists());
    still.push(name).succeed();
}

#[test]
fn p17_a_hanging_repository_ends_at_the_deadline() {
    require_root!("p17_a_hanging_repository_ends_at_the_deadline");
    let still = Still::new(17, 1, 1);
    let push = still
        .push(&still.segments[0])
        .env("PITR_FAULT_SECONDS", "2");
    let hanging = HangingDisk::over(still.site.repository());
    let started = Instant::now();
    let run = push
        .exits(40)
        .expect_stderr("error A140: not stored within 2 s");
    let took = started.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < PATIENCE,
        "{took:?}: {run}"
    );
    drop(hanging);
    push.succeed();
}

#[test]
fn p17_a_repository_that_is_not_required_holds_up_nothing() {
    require_root!("p17_a_repository_that_is_not_required_holds_up_nothing");
    let still = Still::new(17, 1, 2);
    // It stands first, and hangs.
    let hanging = still.site.sandbox().dir("hanging");
    let config = std::fs::read_to_string(still.site.config()).unwrap();
    let optional = format!(
        "[repositories.optional]\nurl = \"file://{}\"\nrequired = false\n",
        hanging.display()
    );
    std::fs::write(still.site.config(), format!("{optional}{config}")).unwrap();
    let _hanging = HangingDisk::over(&hanging);
    let started = Instant::now();
    still
        .push(&still.segments[0])
        .succeed()
        .expect_stderr("one that is not required does not answer");
    assert!(
        (4..PATIENCE.as_secs()).contains(&started.elapsed().as_secs()),
        "{:?}",
        started.elapsed()
    );
    // Behind the required one it does not matter to readers, either.
    std::fs::write(still.site.config(), format!("{config}\n{optional}")).unwrap();
    still.check(&still.segments[0]);
}

#[test]
fn p17_what_is_acknowledged_is_no_failure_at_the_deadline() {
    require_root!("p17_what_is_acknowledged_is_no_failure_at_the_deadline");
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let folder = still.site.sandbox().dir("hanging");
    let config = std::fs::read_to_string(still.site.config()).unwrap();
    let other = |required: bool| {
        format!(
            "\n[repositories.other]\nurl = \"file://{}\"\nrequired = {required}\n",
            folder.display()
        )
    };
    let configure = |text: String| std::fs::write(still.site.config(), text).unwrap();
    let hanging = HangingDisk::over(&folder);
    // The deadline comes before the patience with repositories that are not required has ended.
    configure(format!("{config}{}", other(false)));
    // On a busy disk the required one may take as long.
    wait_until("what is acknowledged is no failure", || {
        still.forget();
        let run = still.push(name).env("PITR_FAULT_SECONDS", "4").run();
        assert!(matches!(run.code(), 0 | 40), "{run}");
        let told = "one that is not required does not answer";
        run.code() == 0 && run.stderr.contains(told)
    });
    // A required one that hangs holds up success, but not the copy in the other, wherever it stands: asking it for the name has an end.
    for text in [
        format!("{config}{}", other(true)),
        format!("{}{config}", other(true)),
    ] {
        configure(text);
        still.forget();
        let running = still.push(name).spawn();
        wait_until("the repository that answers has it", || {
            still.site.object(name).exists()
        });
        let run = running.ended_by(Signal::TERM);
        assert_eq!(run.status.signal(), Some(15), "{run}");
    }
    drop(hanging);
    std::fs::write(still.site.config(), &config).unwrap();
    still.check(name);
}

/// The filesystem of the tests keeps a directory whose file was synced, others do not. So the calls are looked at, not the disk.
#[test]
fn p02_each_new_directory_is_synced_in_its_parent() {
    require_strace!("p02_each_new_directory_is_synced_in_its_parent");
    let mut still = Still::new(17, 1, 1);
    let push = still.push(&still.segments[0]);
    check_parents(&push, &["wal", "wal/00000001"]);
    still.site.attach(&still.cluster);
    still.cluster.start();
    let backup = still.site.pitr().arg("backup");
    check_parents(&backup, &["backups", "events", "layers", "packs"]);
}

/// Runs a program, and requires that it syncs each directory in which it has made another, of which there are these.
fn check_parents(program: &Program, expected: &[&str]) {
    let (run, calls) = fault::trace(program, &["mkdir", "mkdirat", "fsync"]);
    run.success();
    let folder = |call: &Call| -> String {
        let (_, path) = call.text.split_once('<').expect("a descriptor");
        path.split('>').next().unwrap().to_owned()
    };
    let mut parents = BTreeSet::new();
    for (at, call) in calls.iter().enumerate() {
        if call.name == "fsync" || !call.text.ends_with("= 0") {
            continue;
        }
        let parent = folder(call);
        let is_synced =
            |c: &Call| c.name == "fsync" && c.text.ends_with("= 0") && folder(c) == parent;
        assert!(
            calls[at..].iter().any(is_synced),
            "{parent} is not synced: {calls:#?}"
        );
        parents.insert(parent);
    }
    for name in expected {
        let is_there = parents.iter().any(|p| p.ends_with(&format!("/{name}")));
        assert!(is_there, "nothing was made in {name}: {parents:?}");
    }
}

#[test]
fn p18_sigterm_ends_it_at_once_and_a_closed_standard_error_changes_nothing() {
    require_root!("p18_sigterm_ends_it_at_once_and_a_closed_standard_error_changes_nothing");
    require_strace!("p18_sigterm_ends_it_at_once_and_a_closed_standard_error_changes_nothing");
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let push = still.push(name);
    {
        let _hanging = HangingDisk::over(still.site.repository());
        let running = push.spawn();
        wait_until("it handles SIGTERM", || {
            crate::ship::handles_term(running.pid())
        });
        let sent = Instant::now();
        let run = running.ended_by(Signal::TERM);
        assert_eq!(run.status.signal(), Some(15), "{run}");
        assert!(sent.elapsed() < PATIENCE, "{:?}", sent.elapsed());
        assert_eq!(run.stderr, "", "{run}");
    }
    nothing_is_half(&still, name, "SIGTERM");
    // SIGTERM at any moment of a push: nothing half is left, not even a temporary file.
    for call in calls(&still, &push) {
        still.forget();
        let (run, fired) = fault::inject(&push, &Fault::signal(&call.name, "SIGTERM").at(call.nth));
        assert!(fired >= 1, "{}", call.text);
        assert!(matches!(run.code(), 143 | 0), "{}: {run}", call.text);
        nothing_is_half(&still, name, &call.text);
        assert!(
            still.site.files().iter().all(|f| !f.contains(".tmp.")),
            "{}",
            call.text
        );
    }
    let shell = |line: &str, program: &Program| {
        Program::new("bash")
            .args(["-c", &line.replace("PITR", &program.shell())])
            .dir(still.cluster.pgdata())
            .run()
            .code()
    };
    assert_eq!(shell("PITR 2>&- >&- <&-", &push), 0);
    std::fs::write(still.wal("foo"), "").unwrap();
    assert_eq!(shell("PITR 2>&-", &still.push("foo")), 10);
    assert_eq!(
        shell(
            "PITR 2>&1 | true; exit ${PIPESTATUS[0]}",
            &still.push("foo")
        ),
        10
    );
    assert_eq!(shell("PITR 2>/dev/full", &still.push("foo")), 10);
}

#[test]
fn p19_a_panic_is_status_70_and_memory_has_a_ceiling() {
    let still = Still::new(17, 64, 1);
    let name = still.segments[0].as_str();
    let run = still.push(name).env("PITR_FAULT", "archive").exits(70);
    assert!(
        run.stderr
            .starts_with("pitr-archive: error A170: internal error"),
        "{run}"
    );
    let (run, usage) = still.push(name).measure();
    run.success();
    eprintln!(
        "pitr-archive, 64 MiB segment: {} KiB",
        usage.peak_memory_bytes >> 10
    );
    assert!(usage.peak_memory_bytes < 64 << 20, "{usage:?}");
    let (run, usage) = still.push(name).measure();
    run.success();
    assert!(usage.peak_memory_bytes < 64 << 20, "{usage:?}");
    let (run, usage) = still.fetch(name).measure();
    run.success();
    eprintln!(
        "pitr-restore, 64 MiB segment: {} KiB",
        usage.peak_memory_bytes >> 10
    );
    assert!(usage.peak_memory_bytes < 64 << 20, "{usage:?}");
    // Less memory than the system gives it: an error that PostgreSQL counts, or success, and never a status above 125.
    for megabytes in [24_u64, 48, 96] {
        let limit = format!("--as={}", megabytes << 20);
        let run = still.push(name).under(["prlimit", &limit]).run();
        assert!(run.code() <= 125, "{megabytes} MiB: {run}");
    }
}
