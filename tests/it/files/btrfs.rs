//! The recipe of docs/files.md for snapshots of btrfs, run as it stands there.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use serde_json::Value;

use super::{World, id, path_text};
use crate::common::mount::BtrfsDisk;
use crate::require_root;

const FILES: usize = 200;

/// Two files that a program writes one after the other. Between them the walk reads all others.
const PAIR: [&str; 2] = ["first", "second"];

/// A subvolume, and the programs of the recipe.
struct Scene {
    disk: BtrfsDisk,
    world: World,
}

impl Scene {
    fn new() -> Scene {
        let disk = BtrfsDisk::new(256);
        btrfs(&["subvolume", "create", &path_text(&disk.path().join("app"))]);
        let uploads = disk.path().join("app/uploads");
        fs::create_dir(&uploads).unwrap();
        for n in 0..FILES {
            fs::write(uploads.join(format!("g{n}")), vec![n as u8; 20_000]).unwrap();
        }
        for name in PAIR {
            fs::write(uploads.join(name), number(0)).unwrap();
        }
        let (before, after) = recipe(disk.path());
        let world = World::new("");
        let script = world.sandbox.join("snapshot");
        fs::write(&script, before).unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let hooks = format!(
            "before = [\"{}\"]\nafter = [\"/bin/sh\", \"-c\", \"{after}\"]\n",
            path_text(&script)
        );
        Scene {
            world: world.with_source(&path_text(&uploads), &hooks),
            disk,
        }
    }

    fn uploads(&self) -> PathBuf {
        self.disk.path().join("app/uploads")
    }

    fn snapshot(&self) -> PathBuf {
        self.disk.path().join(".pitr-app")
    }

    /// The numbers of the pair in a backup.
    fn pair(&self, backup: &Value) -> [u64; 2] {
        let back = self.world.restored(id(backup), "back");
        let numbers = PAIR.map(|name| {
            let text = fs::read_to_string(back.join(name)).unwrap();
            text.trim().parse().unwrap()
        });
        fs::remove_dir_all(back).unwrap();
        numbers
    }

    fn backups(&self) -> usize {
        let info = self.world.pitr(&["info", "--json"]).run().json();
        info["scopes"][0]["backups"].as_array().map_or(0, Vec::len)
    }

    fn is_refused(&self, says: &str) {
        let before = self.backups();
        let run = self.world.pitr(&["files", "backup", "up"]).run();
        run.expect_code(1).expect_stderr(says);
        assert_eq!(self.backups(), before);
    }
}

fn number(n: u64) -> String {
    format!("{n:>20}")
}

fn btrfs(words: &[&str]) {
    let out = Command::new("btrfs").args(words).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// The script before and the command after, with another place than /srv.
fn recipe(place: &Path) -> (String, String) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/files.md");
    let page = fs::read_to_string(page).unwrap();
    let script = page
        .split("```")
        .find_map(|block| {
            block
                .strip_prefix("sh\n")
                .filter(|b| b.contains("# btrfs:"))
        })
        .expect("docs/files.md has the recipe");
    let (_, after) = script
        .split_once("# after: ")
        .expect("it says what runs after");
    let at = |text: &str| text.replace("/srv", &path_text(place));
    (at(script), at(after.trim()))
}

/// Runs `then` while the pair is written all the time: the second one is never ahead of the first, nor more than one behind.
/// A snapshot of btrfs has what was synced, and any part of the rest.
fn under_load<T>(uploads: &Path, from: u64, is_synced: bool, then: impl FnOnce() -> T) -> (T, u64) {
    let is_over = AtomicBool::new(false);
    let pair = PAIR.map(|name| {
        File::options()
            .write(true)
            .open(uploads.join(name))
            .unwrap()
    });
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            let mut n = from;
            while !is_over.load(Ordering::Relaxed) {
                n += 1;
                for file in &pair {
                    file.write_all_at(number(n).as_bytes(), 0).unwrap();
                    if is_synced {
                        file.sync_data().unwrap();
                    }
                }
            }
            n
        });
        let done = then();
        is_over.store(true, Ordering::Relaxed);
        (done, writer.join().unwrap())
    })
}

#[test]
fn u78_the_recipe_for_btrfs_gives_one_moment_of_a_directory_that_changes() {
    require_root!("u78_the_recipe_for_btrfs_gives_one_moment_of_a_directory_that_changes");
    if !BtrfsDisk::is_there() {
        crate::skip!(
            "u78_the_recipe_for_btrfs_gives_one_moment_of_a_directory_that_changes",
            "the kernel has no btrfs"
        );
    }
    let scene = Scene::new();
    let (uploads, world) = (scene.uploads(), &scene.world);
    let mut last = 0;
    for round in 1..=3 {
        let (backup, now) = under_load(&uploads, last, true, || world.backup());
        let [first, second] = scene.pair(&backup);
        assert!(first == second || first == second + 1, "{first} {second}");
        assert!((last..=now).contains(&first), "{last} {first} {now}");
        assert_eq!(backup["unstable_count"], 0, "{backup}");
        assert!(!scene.snapshot().exists(), "the snapshot stays");
        // Inodes and times are those of the origin.
        let unchanged = if round == 1 { 0 } else { FILES };
        assert_eq!(backup["unchanged_count"], unchanged, "{backup}");
        last = now;
    }

    // A killed run leaves its snapshot, and the next one removes it.
    let mut killed = world.pitr(&["files", "backup", "up", "--full"]).spawn();
    killed.until("the snapshot", || scene.snapshot().exists());
    killed.ended_by(Signal::KILL);
    assert!(scene.snapshot().exists());
    fs::write(uploads.join("later"), "later").unwrap();
    let backup = world.backup();
    let back = world.restored(id(&backup), "back");
    assert_eq!(fs::read_to_string(back.join("later")).unwrap(), "later");
    fs::remove_dir_all(back).unwrap();
    assert!(!scene.snapshot().exists());

    let nested = path_text(&scene.disk.path().join("app/nested"));
    btrfs(&["subvolume", "create", &nested]);
    scene.is_refused("nested subvolumes would be empty");
    btrfs(&["subvolume", "delete", &nested]);
    // A directory in the snapshot's place is no subvolume.
    fs::create_dir(scene.snapshot()).unwrap();
    scene.is_refused("Not a Btrfs subvolume");
    fs::remove_dir(scene.snapshot()).unwrap();
    world.backup();

    // The live directory is read over a while.
    let hooks = fs::read_to_string(&world.config).unwrap();
    let hooks = hooks
        .lines()
        .filter(|l| !l.starts_with("before") && !l.starts_with("after"));
    fs::write(&world.config, hooks.collect::<Vec<_>>().join("\n")).unwrap();
    let live = world.pitr(&["files", "backup", "up", "--full", "--json"]);
    // The writer may be held up while the files are read.
    let is_torn = (0..20).any(|_| {
        let (run, now) = under_load(&uploads, last, false, || live.run());
        last = now;
        let backup = run.json();
        backup["unstable_count"] != 0 || {
            let [first, second] = scene.pair(&backup);
            second > first || first > second + 1
        }
    });
    assert!(is_torn, "20 live backups, and none is torn");
}
