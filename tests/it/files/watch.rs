//! `pitr files watch`: a change is in a backup soon, whatever happens to the watcher and its source.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::tree::describe;
use super::{World, path_text};
use crate::common::mount::DiskOver;
use crate::common::{Running, wait_until};
use crate::require_mounts;

/// Seconds after which a change is to be in a backup.
const WITHIN: &str = "4";
const PATIENCE: Duration = Duration::from_secs(120);

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
    wait_until(PATIENCE, why, || {
        assert!(!watcher.is_done(), "it ended: {}", watcher.stderr());
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
    wait_until(PATIENCE, why, || {
        assert!(!watcher.is_done(), "it ended: {}", watcher.stderr());
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
    watcher.signal(Signal::TERM);
    watcher.wait().success();
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
    watcher.signal(Signal::TERM);
    watcher.wait().success();
}

#[test]
fn u68_changes_during_a_kill_are_in_the_first_backup_after_it() {
    let world = World::new("");
    fs::write(world.source().join("one"), "1").unwrap();
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    watcher.signal(Signal::KILL);
    watcher.wait();
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
    watcher.signal(Signal::TERM);
    watcher.wait().success();
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the walk of the start");
    // In memory every file is read each time.
    let reads_all = rustix::fs::statfs(world.source()).unwrap().f_type == 0x0102_1994;
    assert!(reads_all || backups(&world) == count);
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
    wait_until(PATIENCE, "the overflow", || {
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
    wait_until(PATIENCE, "the mount is missed", || {
        status(&world)["activity"] == "source_missing"
    });
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(backups(&world), count, "no backup of an empty directory");
    let _disk = DiskOver::mount(&world.source());
    fs::write(world.source().join("two"), "2").unwrap();
    caught_up(&world, &mut watcher, "mounted again");
    watcher.signal(Signal::TERM);
    watcher.wait().success();
}

#[test]
fn u71_a_repository_that_is_away_is_waited_for() {
    let world = World::new("");
    let mut watcher = start(&world);
    settled(&world, &mut watcher, "the first backup");
    let (repo, away) = (world.sandbox.join("repo"), world.sandbox.join("away"));
    fs::rename(&repo, &away).unwrap();
    fs::write(world.source().join("one"), "1").unwrap();
    wait_until(PATIENCE, "the failure is told", || {
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
