//! `pitr files watch`: a change is in a backup soon, whatever happens to the watcher and its source.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::tree::describe;
use super::{World, path_text};
use crate::common::mount::{DiskOver, PowerDisk};
use crate::common::{Program, Running, pitr, str_of, wait_until, wait_within};
use crate::{require_mounts, require_root};

/// Seconds after which a change is to be in a backup.
const WITHIN: &str = "4";

fn start(world: &World) -> Running {
    let watch = ["files", "watch", "up", "--within", WITHIN];
    world.pitr(&watch).spawn()
}

fn status(world: &World) -> Value {
    let status = ["files", "watch", "up", "--status", "--json"];
    world.pitr(&status).run().json()
}

/// Waits until every change is in a backup.
fn settled(world: &World, watcher: &mut Running, why: &str) -> Value {
    let mut last = Value::Null;
    let is_settled = |last: &Value| last["is_running"] == true && last["activity"] == "waiting";
    watcher.until(why, || {
        last = status(world);
        is_settled(&last)
    });
    last
}

/// Waits until the newest backup has what the source has now.
fn caught_up(world: &World, watcher: &mut Running, why: &str) {
    let expected = describe(&world.source());
    let to = world.sandbox.join("caught");
    let place = path_text(&to);
    watcher.until(why, || {
        let _ = fs::remove_dir_all(&to);
        let restore = ["files", "restore", "up", "--privileged", "--to", &place];
        world.pitr(&restore).run().is_success() && describe(&to) == expected
    });
    let _ = fs::remove_dir_all(&to);
}

fn backups(world: &World) -> usize {
    let info = world.pitr(&["info", "--json"]).run().json();
    info["scopes"][0]["backups"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_change_is_in_a_backup_soon() {
    let world = World::new("exclude = [\"*.tmp\"]\n");
    fs::create_dir(world.source().join("sub")).unwrap();
    fs::write(world.source().join("sub/one"), "1").unwrap();
    let none = status(&world);
    assert_eq!(
        (&none["is_running"], &none["behind_ms"]),
        (&false.into(), &Value::Null),
        "{none}"
    );
    let mut watcher = start(&world);
    let first = settled(&world, &mut watcher, "the first backup");
    assert_eq!(
        (&first["behind_ms"], &first["directory_count"]),
        (&0.into(), &2.into()),
        "{first}"
    );
    assert_eq!(backups(&world), 1);
    let second = world.pitr(&["files", "watch", "up"]).run();
    second.expect_code(7).expect_stderr("another run");
    // Directories that appear and vanish.
    for n in 0..20 {
        let place = world.source().join(format!("new/{n}/deep"));
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("file"), n.to_string()).unwrap();
        if n % 2 == 0 {
            fs::remove_dir_all(world.source().join(format!("new/{n}"))).unwrap();
        }
    }
    let changed = Instant::now();
    caught_up(&world, &mut watcher, "new directories");
    eprintln!("in a backup after {:?}", changed.elapsed());
    fs::write(world.source().join("new/1/deep/file"), "later").unwrap();
    caught_up(&world, &mut watcher, "a change in a new directory");
    // A file that the rules leave out wakes nobody.
    settled(&world, &mut watcher, "rest");
    let count = backups(&world);
    fs::write(world.source().join("x.tmp"), "x").unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(
        (backups(&world), &status(&world)["activity"]),
        (count, &"waiting".into())
    );
    watcher.ended_by(Signal::TERM).success();
    assert_eq!(status(&world)["is_running"], false);
}

/// A directory that is never quiet is backed up all the same. `make files-campaign` has the time that nobody sets.
#[test]
fn a_change_under_load_is_in_a_backup_within_the_time() {
    let is_long = std::env::var_os("PITR_FILES_STEPS").is_some();
    let (within, more) = match is_long {
        true => (Duration::from_secs(60), &[][..]),
        false => (Duration::from_secs(20), &["--within", "20"][..]),
    };
    let world = World::new("");
    let watch = [&["files", "watch", "up"], more].concat();
    let mut watcher = world.pitr(&watch).spawn();
    settled(&world, &mut watcher, "the first backup");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for n in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                fs::write(world.source().join("busy"), n.to_string()).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        std::thread::sleep(Duration::from_secs(1));
        fs::write(world.source().join("change"), "x").unwrap();
        let changed = Instant::now();
        while !world
            .pitr(&["files", "cat", "up", "change"])
            .run()
            .is_success()
        {
            let is_late = changed.elapsed() > within;
            is_over.store(is_late, Ordering::Relaxed);
            assert!(!is_late, "{}", watcher.stderr());
            let behind = status(&world)["behind_ms"].as_u64().unwrap_or(0);
            assert!(u128::from(behind) <= within.as_millis(), "{behind}");
            std::thread::sleep(Duration::from_millis(200));
        }
        eprintln!("in a backup after {:?}", changed.elapsed());
        is_over.store(true, Ordering::Relaxed);
    });
    watcher.ended_by(Signal::TERM).success();
}

#[test]
fn u68_changes_during_a_kill_are_in_the_first_backup_after_it() {
    let world = World::on_disk("");
    fs::write(world.source().join("one"), "1").unwrap();
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    watcher.ended_by(Signal::KILL);
    fs::write(world.source().join("two"), "2").unwrap();
    let dead = status(&world);
    assert_eq!(
        (&dead["is_running"], &dead["behind_ms"]),
        (&false.into(), &Value::Null),
        "{dead}"
    );
    let mut watcher = start(&world);
    caught_up(&world, &mut watcher, "what changed meanwhile");
    // A start without a change leaves no backup.
    settled(&world, &mut watcher, "rest");
    let count = backups(&world);
    watcher.ended_by(Signal::TERM).success();
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the walk of the start");
    assert_eq!(backups(&world), count);
}

#[test]
fn u69_more_events_than_the_kernel_keeps_lose_no_change() {
    let world = World::new("");
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    watcher.signal(Signal::STOP);
    // The last ones, and the directory, are events that nobody hears of.
    for n in 0..limit / 2 + 1 {
        let place = world.source().join((n % 3000).to_string());
        fs::write(place, n.to_string()).unwrap();
    }
    fs::create_dir(world.source().join("unheard")).unwrap();
    watcher.signal(Signal::CONT);
    wait_until("the overflow", || {
        watcher
            .stderr()
            .contains("more changed at once than the kernel notes")
    });
    caught_up(&world, &mut watcher, "everything");
    fs::write(world.source().join("unheard/file"), "later").unwrap();
    caught_up(
        &world,
        &mut watcher,
        "a change in a directory that nobody heard of",
    );
}

#[test]
fn u70_an_empty_mount_point_is_no_backup() {
    require_mounts!("u70_an_empty_mount_point_is_no_backup");
    let world = World::new("");
    let disk = DiskOver::mount(&world.source());
    fs::write(world.source().join("one"), "1").unwrap();
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    let count = backups(&world);
    // A watcher does not keep the filesystem from being unmounted.
    drop(disk);
    wait_until("the mount is missed", || {
        status(&world)["activity"] == "source_missing"
    });
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(backups(&world), count, "no backup of an empty directory");
    let disk = DiskOver::mount(&world.source());
    fs::write(world.source().join("two"), "2").unwrap();
    caught_up(&world, &mut watcher, "mounted again");
    watcher.ended_by(Signal::TERM).success();
    // The next watcher starts before the filesystem is mounted, and knows it without a walk.
    let count = backups(&world);
    drop(disk);
    let mut watcher = start(&world);
    let missing = missed(&world, &mut watcher);
    assert!(missing["error"].is_null(), "{missing}");
    assert_eq!(backups(&world), count, "no backup of an empty directory");
    let _disk = DiskOver::mount(&world.source());
    fs::write(world.source().join("three"), "3").unwrap();
    caught_up(&world, &mut watcher, "mounted at last");
}

/// Waits until the source is missed; returns the state.
fn missed(world: &World, watcher: &mut Running) -> Value {
    let mut last = Value::Null;
    watcher.until("the source is missed", || {
        let run = world
            .pitr(&["files", "watch", "up", "--status", "--json"])
            .run();
        last = run.json();
        let is_missed = last["activity"] == "source_missing";
        assert!(!is_missed || run.code() == 6, "{run}");
        is_missed
    });
    last
}

#[test]
fn u79_a_source_that_has_no_file_any_more_is_no_backup() {
    let world = World::new("");
    let (source, away) = (world.source(), world.sandbox.join("away"));
    fs::write(source.join("one"), "1").unwrap();
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    watcher.ended_by(Signal::TERM).success();
    let count = backups(&world);
    // As a mount point looks before anything is mounted there.
    fs::rename(&source, &away).unwrap();
    world.sandbox.dir("source");
    let mut watcher = start(&world);
    let state = missed(&world, &mut watcher);
    assert!(
        str_of(&state["error"]).contains("no file any more"),
        "{state}"
    );
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(backups(&world), count, "no backup of an empty directory");
    assert!(status(&world)["behind_ms"].as_u64().unwrap() > 0);
    fs::remove_dir(&source).unwrap();
    fs::rename(&away, &source).unwrap();
    fs::write(source.join("two"), "2").unwrap();
    caught_up(&world, &mut watcher, "it is back");
    // One that is meant to be empty: a backup by hand says so.
    for name in ["one", "two"] {
        fs::remove_file(source.join(name)).unwrap();
    }
    missed(&world, &mut watcher);
    world.backup();
    settled(&world, &mut watcher, "an empty source");
}

#[test]
fn u80_a_watcher_says_what_a_disk_changed_and_goes_on_saying_it() {
    require_mounts!("u80_a_watcher_says_what_a_disk_changed_and_goes_on_saying_it");
    let disk = PowerDisk::new(64);
    let source = disk.path();
    let content: Vec<u8> = (0..9000_u32).map(|n| (n * n / 7 % 251) as u8).collect();
    fs::write(source.join("rots"), &content).unwrap();
    let world = World::of(&path_text(source), "");
    // A file that had just changed is read in any case.
    std::thread::sleep(Duration::from_millis(1100));
    let each_time = || {
        let watch = ["files", "watch", "up", "--within", WITHIN];
        let watch = world.pitr(&watch);
        watch.env("PITR_FAULT_ROUND_SECONDS", "0").spawn()
    };
    let mut watcher = each_time();
    settled(&world, &mut watcher, "the first backup");
    disk.spoil(&content);
    fs::write(source.join("other"), "1").unwrap();
    wait_until("the rot is told", || {
        watcher.stderr().contains("have other content than before")
    });
    fs::write(source.join("other"), "22").unwrap();
    let found = || {
        let cat = world.pitr(&["files", "cat", "up", "other"]).run();
        cat.is_success() && cat.stdout == "22"
    };
    wait_until("a later backup", found);
    settled(&world, &mut watcher, "rest");
    let shown = ["files", "watch", "up", "--status"];
    let run = world.pitr(&shown).exits(6);
    run.expect_stdout("the last warning: 1 of ");
    watcher.ended_by(Signal::TERM).success();
    let mut watcher = each_time();
    settled(&world, &mut watcher, "a new watcher");
    world.pitr(&shown).succeed();
}

/// A watcher that may watch so many directories. The files become root's: its namespace has no other user.
fn limited(world: &World, directories: u32, within: &str) -> Program {
    let place = path_text(&world.sandbox.join(""));
    Program::new("chown")
        .args(["-R", "-h", "0:0", &place])
        .privileged()
        .succeed();
    let limit = "echo $0 > /proc/sys/user/max_inotify_watches && exec \"$@\"";
    let directories = directories.to_string();
    let own = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        limit,
        &directories,
    ];
    let watch = ["files", "watch", "up", "--within", within];
    world.pitr(&watch).under(own)
}

/// Waits for a state that a watcher notes.
fn noted(world: &World, watcher: &mut Running, why: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    watcher.until(why, || {
        last = status(world);
        is_it(&last)
    });
    last
}

/// The limit is reached while the watcher runs, and a walk that finds the rest hangs.
#[test]
fn u81_directories_that_cannot_be_watched_are_told_of_and_walked() {
    require_root!("u81_directories_that_cannot_be_watched_are_told_of_and_walked");
    let world = World::new("");
    let (source, hang) = (world.source(), world.sandbox.join("hang"));
    let before = format!(
        "before = [\"/bin/sh\", \"-c\", \"while [ -e {} ]; do sleep 0.1; done\"]\n",
        path_text(&hang)
    );
    let world = world.with_source(&path_text(&source), &before);
    fs::create_dir(source.join("a")).unwrap();
    fs::write(source.join("a/one"), "1").unwrap();
    let mut watcher = limited(&world, 4, WITHIN).spawn();
    let first = settled(&world, &mut watcher, "the first backup");
    assert_eq!(
        (&first["directory_count"], &first["is_complete"]),
        (&2.into(), &true.into()),
        "{first}"
    );
    for name in ["b", "c", "d", "e"] {
        fs::create_dir(source.join(name)).unwrap();
    }
    let reached = noted(&world, &mut watcher, "the limit is told", |last| {
        last["is_complete"] == false && last["activity"] == "waiting"
    });
    assert_eq!(reached["directory_count"], 4, "{reached}");
    let says = "lets this user watch 4 directories, and there are more";
    assert!(watcher.stderr().contains(says), "{}", watcher.stderr());
    for name in ["b", "c", "d", "e"] {
        fs::write(source.join(name).join("two"), name).unwrap();
    }
    for name in ["b", "c", "d", "e"] {
        let path = format!("{name}/two");
        let cat = world.pitr(&["files", "cat", "up", &path]);
        wait_until("a change that no event tells", || cat.run().is_success());
    }
    // While the walk hangs nobody can say that every change is in a backup.
    fs::write(&hang, "").unwrap();
    noted(&world, &mut watcher, "a walk that hangs is told", |last| {
        last["activity"] == "backing_up" && last["behind_ms"].as_u64().unwrap_or(0) > 3000
    });
    fs::remove_file(&hang).unwrap();
    noted(&world, &mut watcher, "it goes on", |last| {
        last["behind_ms"] == 0
    });
    watcher.ended_by(Signal::TERM).success();
}

#[test]
fn u82_a_directory_that_takes_the_place_of_the_watched_one_is_watched() {
    let world = World::new("");
    let source = world.source();
    let [first, second] = ["first", "second"].map(|name| world.sandbox.dir(name));
    for place in [&first, &second] {
        let below = place.join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("file"), path_text(place)).unwrap();
    }
    let link = world.sandbox.join("link");
    symlink(&first, &link).unwrap();
    fs::remove_dir(&source).unwrap();
    let world = world.with_source(&path_text(&link.join("below")), "");
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    let has = |name: &str, text: &str, why: &str| {
        let cat = world.pitr(&["files", "cat", "up", name]);
        wait_within(Duration::from_secs(60), why, || {
            let run = cat.run();
            run.is_success() && run.stdout == text
        });
    };
    // A link on the way is switched.
    symlink(&second, world.sandbox.join("new")).unwrap();
    fs::rename(world.sandbox.join("new"), &link).unwrap();
    has("file", &path_text(&second), "the link leads elsewhere");
    fs::write(second.join("below/later"), "1").unwrap();
    has("later", "1", "a change there");
    // A directory on the way is moved away, and made again.
    fs::rename(&second, world.sandbox.join("away")).unwrap();
    fs::create_dir_all(second.join("below")).unwrap();
    fs::write(second.join("below/file"), "again").unwrap();
    has("file", "again", "the directory was made again");
    fs::write(second.join("below/later"), "22").unwrap();
    has("later", "22", "a change there, too");
}

#[test]
fn u83_what_cannot_be_read_is_not_called_backed_up() {
    let world = World::new("");
    let closed = world.source().join("closed");
    fs::write(&closed, "x").unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
    crate::common::user::own_all(&world.repository);
    let cache = path_text(&world.sandbox.dir("own"));
    // Root may read everything.
    let watch = |more: &[&str]| {
        let program = pitr().arg("--config").arg(&world.config);
        let watch = program.words("files watch up").args(more);
        watch.env("XDG_CACHE_HOME", &cache)
    };
    let shown = |left_out: u64| {
        let state = watch(&["--status", "--json"]).run().json();
        state["activity"] == "waiting" && state["left_out_count"] == left_out
    };
    let watcher = watch(&["--within", WITHIN]).env("PITR_FAULT_SECONDS", "0");
    let _watcher = watcher.spawn();
    wait_until("the first backup", || shown(1));
    let run = watch(&["--status"]).exits(6);
    run.expect_stdout("every change that can be read is in a backup")
        .expect_stdout("1 thing cannot be read");
    fs::set_permissions(&closed, Permissions::from_mode(0o644)).unwrap();
    wait_until("it can be read", || shown(0));
    watch(&["--status"]).succeed();
}

/// A prior stays as old as it is while nothing changes: turns count from the last walk.
#[test]
fn each_file_is_read_once_in_a_round_though_no_walk_leaves_a_backup() {
    require_root!("each_file_is_read_once_in_a_round_though_no_walk_leaves_a_backup");
    const BYTES: u64 = 8 << 20;
    let world = World::on_disk("");
    fs::create_dir(world.source().join("unwatched")).unwrap();
    fs::write(world.source().join("large"), vec![7; BYTES as usize]).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let watch = limited(&world, 1, "2").env("PITR_FAULT_ROUND_SECONDS", "5");
    let mut watcher = watch.spawn();
    let read = |watcher: &Running| {
        let io = fs::read_to_string(format!("/proc/{}/io", watcher.pid())).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        line.unwrap().parse::<u64>().unwrap()
    };
    settled(&world, &mut watcher, "the first backup");
    // From the second round on each walk would find the file due.
    std::thread::sleep(Duration::from_secs(6));
    for _ in 0..2 {
        let (before, walked) = (read(&watcher), status(&world)["covered_until"].clone());
        std::thread::sleep(Duration::from_secs(10));
        let times = (read(&watcher) - before) / BYTES;
        assert_ne!(status(&world)["covered_until"], walked, "it walked");
        assert!((1..=3).contains(&times), "read {times} times in two rounds");
        // So does the next watcher.
        watcher.ended_by(Signal::TERM).success();
        watcher = watch.spawn();
        settled(&world, &mut watcher, "the walk of the start");
    }
}

#[test]
fn u71_a_repository_that_is_away_is_waited_for() {
    let world = World::new("");
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    let (repo, away) = (world.sandbox.join("repo"), world.sandbox.join("away"));
    fs::rename(&repo, &away).unwrap();
    fs::write(world.source().join("one"), "1").unwrap();
    wait_until("the failure is told", || {
        status(&world)["error"].is_string()
    });
    let behind = status(&world);
    assert!(behind["behind_ms"].as_u64().unwrap() > 0, "{behind}");
    let activity = behind["activity"].as_str().unwrap();
    assert!(["pending", "backing_up"].contains(&activity), "{behind}");
    fs::rename(&away, &repo).unwrap();
    caught_up(&world, &mut watcher, "the repository is back");
    assert_eq!(settled(&world, &mut watcher, "rest")["error"], Value::Null);
}

/// A directory that rests: the walk finds nothing, and the mark waits for a backup behind it.
#[test]
fn u98_a_mark_is_settled_while_nothing_changes() {
    let world = World::on_disk("[sets.shop]\nmembers = [\"files:up\"]\n");
    fs::write(world.source().join("one"), "1").unwrap();
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    let mark = world.pitr(&["mark", "shop", "--json"]).succeed();
    let mark = mark.json()["id"].clone();
    let is_settled = || {
        let info = world.pitr(&["info", "--set", "shop", "--json"]).run();
        let marks = info.json()["marks"].clone();
        let marks = marks.as_array().unwrap().iter();
        let found = marks.filter(|one| one["id"] == mark);
        found.map(|one| one["settled"] == true).collect::<Vec<_>>()
    };
    assert_eq!(is_settled(), [false]);
    let taken = backups(&world);
    // Each start walks the directory. The second one finds a backup behind the mark.
    for _ in 0..2 {
        watcher.ended_by(Signal::TERM).success();
        let before = status(&world)["covered_until"].clone();
        watcher = start(&world);
        wait_until("the walk of the start", || {
            let told = status(&world);
            told["activity"] == "waiting" && told["covered_until"] != before
        });
        assert_eq!(is_settled(), [true]);
        assert_eq!(backups(&world), taken + 1);
    }
    watcher.ended_by(Signal::TERM).success();
}
