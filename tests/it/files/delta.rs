//! `pitr files restore --delta`: a directory that has entries is taken back, and nothing else is touched.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::shared::flip;
use super::tree::{Changes, describe, has_no_acl, open_to_another};
use super::{World, id, path_text};
use crate::common::mount::{DiskOver, SmallDisk};
use crate::common::{Program, copy_all, edit, fault, files_below};
use crate::{require_mounts, require_root, require_strace};

const STEPS: u64 = 60;
const STEPS_TO_BACKUP: u64 = 4;

fn delta(world: &World, id: &str, to: &Path, more: &[&str]) -> Program {
    let to = path_text(to);
    let restore = ["files", "restore", "up", "--json", "--privileged"];
    let arguments = [
        &restore[..],
        &["--delta", "--backup", id, "--to", &to],
        more,
    ]
    .concat();
    world.pitr(&arguments)
}

fn taken_back(world: &World, id: &str, to: &Path, more: &[&str]) -> Value {
    let more = [&["--confirm"], more].concat();
    delta(world, id, to, &more).succeed().json()
}

fn count(json: &Value, name: &str) -> u64 {
    json["changes"][name].as_u64().unwrap()
}

/// The test of the whole: one directory is taken back to this backup and to that one, and is each time as it was.
#[test]
fn a_directory_is_taken_to_any_backup_and_back() {
    let seed = std::env::var("PITR_FILES_SEED").ok();
    let seed: u64 = seed.map_or_else(|| std::process::id().into(), |s| s.parse().unwrap());
    let world = World::new("");
    let mut changes = Changes::new(world.source(), seed);
    let live = world.sandbox.dir("live");
    fs::write(live.join("stray"), "x").unwrap();
    let mut taken: Vec<(String, BTreeMap<PathBuf, String>)> = Vec::new();
    let mut done = Vec::new();
    for step in 1..=STEPS {
        done.push(changes.step());
        if step % STEPS_TO_BACKUP != 0 {
            continue;
        }
        let backup = world.backup();
        taken.push((id(&backup).to_owned(), describe(&world.source())));
        let (id, expected) = &taken[changes.random.below(taken.len())];
        taken_back(&world, id, &live, &["--delete"]);
        let found = describe(&live);
        for (path, text) in expected {
            let why = format!("PITR_FILES_SEED={seed}, step {step}, {path:?} of {id}: {done:?}");
            assert_eq!(found.get(path), Some(text), "{why}");
        }
        let more: Vec<_> = found
            .keys()
            .filter(|p| !expected.contains_key(*p))
            .collect();
        assert!(
            more.is_empty(),
            "PITR_FILES_SEED={seed}: {more:?} of {id}, too"
        );
        // Nothing is left to be done.
        let again = delta(&world, id, &live, &["--delete", "--dry-run"]).run();
        let again = again.success().json();
        for name in [
            "created_count",
            "replaced_count",
            "removed_count",
            "attributes_count",
        ] {
            assert_eq!(count(&again, name), 0, "PITR_FILES_SEED={seed}: {again}");
        }
    }
}

/// A source with a backup, and a copy of it that has gone on.
struct Scene {
    world: World,
    id: String,
    live: PathBuf,
    was: BTreeMap<PathBuf, String>,
}

impl Scene {
    fn new() -> Scene {
        Scene::of(World::new(""), "live")
    }

    fn of(world: World, live: &str) -> Scene {
        let source = world.source();
        fs::create_dir_all(source.join("a/b")).unwrap();
        for name in ["one", "two", "a/three", "a/b/four", "a/b/five"] {
            fs::write(source.join(name), name.repeat(1000)).unwrap();
        }
        fs::hard_link(source.join("one"), source.join("a/same")).unwrap();
        symlink("two", source.join("link")).unwrap();
        let backup = world.backup();
        let (id, was) = (id(&backup).to_owned(), describe(&source));
        let live = world.sandbox.join(live);
        let scene = Scene {
            world,
            id,
            live,
            was,
        };
        scene.renew();
        scene
    }

    /// Restores, and changes a little.
    fn renew(&self) {
        if self.live.exists() {
            fs::remove_dir_all(&self.live).unwrap();
        }
        let to = path_text(&self.live);
        let restore = ["files", "restore", "up", "--privileged", "--to", &to];
        self.world.pitr(&restore).succeed();
        fs::write(self.live.join("two"), "changed").unwrap();
        fs::remove_file(self.live.join("a/three")).unwrap();
        fs::write(self.live.join("a/stray"), "stray").unwrap();
    }

    fn delta(&self, more: &[&str]) -> Program {
        delta(&self.world, &self.id, &self.live, more)
    }

    fn is_whole(&self) {
        assert_eq!(describe(&self.live), self.was);
    }
}

#[test]
fn only_what_differs_is_written_and_nothing_is_removed_unasked() {
    let scene = Scene::new();
    let inode = |name: &str| fs::symlink_metadata(scene.live.join(name)).unwrap().ino();
    let kept = ["one", "a/same", "link", "a/b/four", "a/b"].map(inode);
    let before = describe(&scene.live);
    // Without a confirmation nothing is touched.
    let run = scene.delta(&[]).run();
    run.expect_code(8).expect_stderr("nothing was changed");
    scene.delta(&["--dry-run"]).succeed();
    assert_eq!(describe(&scene.live), before);
    let json = scene.delta(&["--confirm"]).succeed().json();
    assert_eq!(count(&json, "created_count"), 1, "{json}");
    assert_eq!(count(&json, "replaced_count"), 1, "{json}");
    assert_eq!(count(&json, "removed_count"), 0, "{json}");
    assert_eq!(json["written_bytes"], 3000 + 7000, "{json}");
    assert_eq!(
        ["one", "a/same", "link", "a/b/four", "a/b"].map(inode),
        kept
    );
    assert!(scene.live.join("a/stray").exists());
    let json = scene.delta(&["--confirm", "--delete"]).succeed().json();
    assert_eq!(count(&json, "removed_count"), 1, "{json}");
    scene.is_whole();
    // The plan of text names the changes.
    fs::write(scene.live.join("new"), "new").unwrap();
    fs::remove_file(scene.live.join("one")).unwrap();
    fs::set_permissions(scene.live.join("a"), Permissions::from_mode(0o700)).unwrap();
    let to = path_text(&scene.live);
    let restore = [
        "files",
        "restore",
        "up",
        "--delta",
        "--delete",
        "--privileged",
    ];
    let run = scene
        .world
        .pitr(&[&restore[..], &["--dry-run", "--to", &to]].concat());
    let run = run.succeed();
    run.expect_stdout("+ one\n")
        .expect_stdout("- new\n")
        .expect_stdout("m a\n");
    // A part leaves the rest alone.
    let json = scene
        .delta(&["--confirm", "--path", "/one"])
        .succeed()
        .json();
    assert_eq!(count(&json, "created_count"), 1, "{json}");
    assert_eq!(
        fs::metadata(scene.live.join("a")).unwrap().mode() & 0o777,
        0o700
    );
    // An empty directory, or none, is restored as always.
    let none = path_text(&scene.world.sandbox.join("none"));
    let restore = [
        "files",
        "restore",
        "up",
        "--delta",
        "--privileged",
        "--to",
        &none,
    ];
    // The plan of it writes nothing.
    let plan = scene.world.pitr(&[&restore[..], &["--dry-run"]].concat());
    plan.succeed().expect_stdout("+ one\n");
    assert!(!Path::new(&none).exists());
    fs::create_dir(&none).unwrap();
    plan.succeed().expect_stdout("+ one\n");
    assert_eq!(files_below(Path::new(&none)), [""; 0]);
    fs::remove_dir(&none).unwrap();
    scene.world.pitr(&restore).succeed();
    assert_eq!(describe(Path::new(&none)), scene.was);
}

#[test]
fn u35_a_change_behind_an_equal_time_is_found_by_content() {
    let scene = Scene::new();
    scene.delta(&["--confirm", "--delete"]).succeed();
    let file = scene.live.join("a/b/five");
    let (time, length) = (fs::metadata(&file).unwrap().modified().unwrap(), 8 * 1000);
    fs::write(&file, vec![b'x'; length]).unwrap();
    let times = FileTimes::new().set_modified(time);
    File::options()
        .append(true)
        .open(&file)
        .unwrap()
        .set_times(times)
        .unwrap();
    let json = scene.delta(&["--confirm"]).succeed().json();
    assert_eq!(count(&json, "replaced_count"), 0, "{json}");
    let json = scene.delta(&["--confirm", "--checksum"]).succeed().json();
    assert_eq!(count(&json, "replaced_count"), 1, "{json}");
    scene.is_whole();
}

/// Two files of the backup that became one, and one that became two.
#[test]
fn names_of_a_file_are_made_and_parted() {
    let scene = Scene::new();
    let place = |name: &str| scene.live.join(name);
    let same_time = |name: &str, as_in: &str| {
        let time = fs::metadata(scene.world.source().join(as_in))
            .unwrap()
            .modified()
            .unwrap();
        let times = FileTimes::new().set_modified(time);
        File::options()
            .append(true)
            .open(place(name))
            .unwrap()
            .set_times(times)
            .unwrap();
    };
    fs::remove_file(place("a/same")).unwrap();
    fs::copy(place("one"), place("a/same")).unwrap();
    same_time("a/same", "one");
    scene.delta(&["--confirm", "--delete"]).succeed();
    scene.is_whole();
    // A file with a further name outside of the backup stays, and so does the name.
    let outside = scene.world.sandbox.join("outside");
    fs::hard_link(place("two"), &outside).unwrap();
    fs::set_permissions(place("two"), Permissions::from_mode(0o600)).unwrap();
    scene.delta(&["--confirm", "--delete"]).succeed();
    scene.is_whole();
    assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn u36_a_directory_in_the_place_of_a_file_stays_until_it_may_be_removed() {
    let scene = Scene::new();
    scene.delta(&["--confirm", "--delete"]).succeed();
    fs::remove_file(scene.live.join("two")).unwrap();
    fs::create_dir(scene.live.join("two")).unwrap();
    fs::write(scene.live.join("two/x"), "x").unwrap();
    // And the other way round.
    fs::remove_dir_all(scene.live.join("a/b")).unwrap();
    fs::write(scene.live.join("a/b"), "b").unwrap();
    let run = scene.delta(&["--confirm"]).exits(6).json();
    assert_eq!(run["left_out"]["examples"][0]["path"], "two", "{run}");
    assert_eq!(fs::read(scene.live.join("two/x")).unwrap(), b"x");
    assert!(scene.live.join("a/b/four").is_file());
    scene.delta(&["--confirm", "--delete"]).succeed();
    scene.is_whole();
}

#[test]
fn u37_what_backups_leave_out_or_lack_is_never_removed() {
    let world = World::new("exclude = [\"*.tmp\", \"/cache/\"]\n");
    let source = world.source();
    fs::write(source.join("x"), "x").unwrap();
    fs::create_dir(source.join("cache")).unwrap();
    for name in ["a.tmp", "cache/y"] {
        fs::write(source.join(name), "left out").unwrap();
    }
    let first = world.backup();
    fs::write(source.join("z"), "z").unwrap();
    let json = taken_back(&world, id(&first), &source, &["--delete"]);
    assert_eq!(count(&json, "removed_count"), 1, "{json}");
    assert_eq!(files_below(&source), ["a.tmp", "cache/y", "x"]);
    // Root may read everything.
    fs::set_permissions(source.join("x"), Permissions::from_mode(0o000)).unwrap();
    let run = world.as_user(&["files", "backup", "up", "--json"]).run();
    let lacks = run.expect_code(6).json();
    let run = delta(&world, id(&lacks), &source, &["--confirm", "--delete"]).run();
    run.expect_code(8).expect_stdout("could not be read");
    assert!(source.join("x").exists());
}

#[test]
fn u52_a_directory_stays_where_something_below_it_may_not_go() {
    let world = World::new("exclude = [\"*.keep\"]\n");
    let source = world.source();
    fs::write(source.join("x"), "x").unwrap();
    fs::write(source.join("y"), "y").unwrap();
    let backup = world.backup();
    // A stray directory, and one that would give way to a file.
    fs::remove_file(source.join("y")).unwrap();
    for top in ["stray", "y"] {
        fs::create_dir_all(source.join(top).join("a/b")).unwrap();
        fs::write(source.join(top).join("a/b/data.keep"), "kept").unwrap();
    }
    let depot = "other/.pitr-rollback-20261120T064049Z-482913";
    fs::create_dir_all(source.join(depot)).unwrap();
    fs::write(source.join(depot).join("0"), "kept").unwrap();
    let before = describe(&source);
    for (more, code) in [("--dry-run", 0), ("--confirm", 6)] {
        let run = delta(&world, id(&backup), &source, &["--delete", more]).run();
        let json = run.expect_code(code).json();
        assert_eq!(count(&json, "removed_count"), 0, "{json}");
        let examples = json["left_out"]["examples"].as_array().unwrap();
        let about = |path: &str, reason: &str| {
            let is_it = |one: &&Value| one["path"] == path;
            let found = examples.iter().find(is_it).unwrap();
            assert!(found["reason"].as_str().unwrap().contains(reason), "{json}");
        };
        about("stray", "\"stray/a/b/data.keep\" is left out of backups");
        about("y", "\"y/a/b/data.keep\" is left out of backups");
        about("other", "is kept by a restore in place");
        let mut found = describe(&source);
        found.remove(&PathBuf::new());
        let mut before = before.clone();
        before.remove(&PathBuf::new());
        assert_eq!(found, before);
    }
    // With nothing of the kind below they go.
    for gone in ["stray/a/b/data.keep", "y/a/b/data.keep"] {
        fs::remove_file(source.join(gone)).unwrap();
    }
    fs::remove_dir_all(source.join("other")).unwrap();
    let json = taken_back(&world, id(&backup), &source, &["--delete"]);
    assert_eq!(count(&json, "removed_count"), 1, "{json}");
    assert_eq!(files_below(&source), ["x", "y"]);
}

/// A source whose rules left one file out of the backup, with another one since.
fn with_a_file_left_out() -> (World, Value) {
    let world = World::new("exclude = [\"*.tmp\"]\n");
    let source = world.source();
    for name in ["x", "a.tmp"] {
        fs::write(source.join(name), name).unwrap();
    }
    let backup = world.backup();
    fs::write(source.join("stray"), "stray").unwrap();
    (world, backup)
}

#[test]
fn u55_rules_that_this_host_does_not_know_are_no_reason_to_remove() {
    let (world, backup) = with_a_file_left_out();
    let source = world.source();
    let text = fs::read_to_string(&world.config).unwrap();
    let (before, _) = text.split_once("[files.up]").unwrap();
    fs::write(&world.config, before).unwrap();
    let run = delta(&world, id(&backup), &source, &["--confirm", "--delete"]).run();
    run.expect_code(8).expect_stdout("is not configured here");
    taken_back(&world, id(&backup), &source, &[]);
    assert_eq!(files_below(&source), ["a.tmp", "stray", "x"]);
}

#[test]
fn u56_an_entry_with_the_name_of_a_kept_directory_is_not_made() {
    let world = World::new("");
    let planted = ".pitr-rollback-20261120T064049Z-482913";
    fs::create_dir(world.source().join("a")).unwrap();
    for name in ["x", "a/y", planted, &format!("a/{planted}")] {
        fs::write(world.source().join(name), "x").unwrap();
    }
    let backup = world.backup();
    let to = world.sandbox.join("to");
    let name = path_text(&to);
    let restore = ["files", "restore", "up", "--json", "--to", &name];
    let is_named = |json: &Value| {
        let named = json["left_out"]["examples"].as_array().unwrap();
        let named: Vec<_> = named
            .iter()
            .map(|one| one["path"].as_str().unwrap())
            .collect();
        for path in [planted, &format!("a/{planted}")] {
            assert!(named.contains(&path), "{json}");
        }
    };
    is_named(&world.pitr(&restore).exits(6).json());
    assert_eq!(files_below(&to), ["a/y", "x"]);
    fs::remove_file(to.join("x")).unwrap();
    let run = delta(&world, id(&backup), &to, &["--confirm", "--delete"]).run();
    is_named(&run.expect_code(6).json());
    assert_eq!(files_below(&to), ["a/y", "x"]);
}

#[test]
fn u57_restored_files_do_not_inherit_an_acl() {
    let scene = Scene::new();
    for directory in [scene.live.clone(), scene.live.join("a")] {
        open_to_another(&directory);
    }
    fs::remove_dir_all(scene.live.join("a/b")).unwrap();
    scene.delta(&["--confirm", "--delete"]).succeed();
    scene.is_whole();
}

#[test]
fn u57_a_restore_into_an_empty_directory_inherits_no_acl() {
    let world = World::new("");
    fs::create_dir(world.source().join("a")).unwrap();
    for name in ["one", "a/two"] {
        fs::write(world.source().join(name), name).unwrap();
    }
    let backup = world.backup();
    let around = world.sandbox.dir("around");
    open_to_another(&around);
    for (to, more) in [
        ("new", &[][..]),
        ("part", &["--path", "a"]),
        ("empty", &["--delta", "--confirm"]),
    ] {
        let to = around.join(to);
        if to.ends_with("empty") {
            fs::create_dir(&to).unwrap();
        }
        let place = path_text(&to);
        let restore = ["files", "restore", "up", "--privileged", "--to", &place];
        let restore = [&restore[..], &["--backup", id(&backup)], more].concat();
        world.pitr(&restore).succeed();
        has_no_acl(&to);
        assert_eq!(fs::read(to.join("a/two")).unwrap(), b"a/two");
    }
}

#[test]
fn u85_entries_that_other_rules_left_out_are_not_removed() {
    let (world, backup) = with_a_file_left_out();
    let source = world.source();
    edit(&world.config, "*.tmp", "*.bak");
    let run = delta(&world, id(&backup), &source, &["--confirm", "--delete"]).run();
    run.expect_code(8).expect_stdout("are others by now");
    assert_eq!(files_below(&source), ["a.tmp", "stray", "x"]);
    edit(&world.config, "*.bak", "*.tmp");
    taken_back(&world, id(&backup), &source, &["--delete"]);
    assert_eq!(files_below(&source), ["a.tmp", "x"]);
}

#[test]
fn attributes_of_root_that_the_backup_lacks_go() {
    require_root!("attributes_of_root_that_the_backup_lacks_go");
    let scene = Scene::new();
    let flags = rustix::fs::XattrFlags::empty();
    for place in ["one", "a"] {
        let place = scene.live.join(place);
        rustix::fs::setxattr(&place, "trusted.pitr", b"x", flags).unwrap();
    }
    scene.delta(&["--confirm", "--delete"]).succeed();
    scene.is_whole();
}

#[test]
fn u53_what_is_mounted_deep_in_a_directory_is_not_emptied() {
    require_mounts!("u53_what_is_mounted_deep_in_a_directory_is_not_emptied");
    require_strace!("u53_what_is_mounted_deep_in_a_directory_is_not_emptied");
    let scene = Scene::new();
    let volume = scene.live.join("stray/deep/volume");
    let data = volume.join("data");
    let is_there = |why: &str| assert_eq!(fs::read(&data).unwrap(), b"data", "{why}");
    fs::create_dir_all(&volume).unwrap();
    {
        let _disk = DiskOver::mount(&volume);
        fs::write(&data, "data").unwrap();
        let run = scene.delta(&["--confirm", "--delete"]).run();
        run.expect_code(6)
            .expect_stdout("\\\"stray/deep/volume\\\" is a mount");
        is_there("planned");
    }
    // It comes in after the plan was made.
    scene.renew();
    fs::create_dir_all(&volume).unwrap();
    let mut disk = None;
    let run = fault::pause(
        &scene.delta(&["--confirm", "--delete"]),
        "renameat2",
        || {
            disk = Some(DiskOver::mount(&volume));
            fs::write(&data, "data").unwrap();
        },
    );
    run.expect_code(8).expect_stdout("may not go any more");
    is_there("mounted meanwhile");
    drop(disk);
    // It lies in what a killed restore left over.
    let left = scene.live.join(".pitr-rollback-20261120T064049Z-482913");
    let volume = left.join("7/deep");
    fs::create_dir_all(&volume).unwrap();
    fs::set_permissions(&left, Permissions::from_mode(0o700)).unwrap();
    let disk = DiskOver::mount(&volume);
    fs::write(volume.join("data"), "data").unwrap();
    let run = scene.delta(&["--confirm", "--delete"]).run();
    run.expect_code(8).expect_stdout("is mounted at");
    assert_eq!(fs::read(volume.join("data")).unwrap(), b"data");
    drop(disk);
    scene.delta(&["--confirm", "--delete"]).succeed();
    scene.is_whole();
}

#[test]
fn u38_without_the_right_to_set_an_attribute_that_is_said() {
    let scene = Scene::new();
    if !scene.world.is_root {
        crate::skip!(
            "u38_without_the_right_to_set_an_attribute_that_is_said",
            "needs root"
        );
    }
    let theirs = scene.world.source().join("theirs");
    fs::write(&theirs, "theirs").unwrap();
    rustix::fs::chown(&theirs, Some(rustix::fs::Uid::from_raw(4711)), None).unwrap();
    let backup = scene.world.backup();
    let to = path_text(&scene.live);
    let restore = [
        "files",
        "restore",
        "up",
        "--json",
        "--delta",
        "--confirm",
        "--to",
        &to,
    ];
    let plan = [
        "files",
        "restore",
        "up",
        "--json",
        "--delta",
        "--dry-run",
        "--to",
        &to,
    ];
    let plan = scene.world.pitr(&plan).succeed().json();
    let left = plan["left_out"]["examples"].as_array().unwrap();
    let is_foreseen = |one: &Value| one["path"] == "theirs" && one["part"] == "owner";
    assert!(left.iter().any(is_foreseen), "{plan}");
    for _ in 0..2 {
        // The first run makes the file, the second one keeps it: both report the owner that was not set.
        let json = scene.world.pitr(&restore).exits(6).json();
        let left = &json["left_out"]["examples"][0];
        assert_eq!(
            (&left["path"], &left["part"]),
            (&"theirs".into(), &"owner".into()),
            "{json}"
        );
        assert_eq!(fs::metadata(scene.live.join("theirs")).unwrap().uid(), 0);
    }
    let json = taken_back(&scene.world, id(&backup), &scene.live, &[]);
    assert_eq!(count(&json, "replaced_count"), 1, "{json}");
    assert_eq!(fs::metadata(scene.live.join("theirs")).unwrap().uid(), 4711);
}

#[test]
fn u39_a_link_that_takes_the_place_of_a_directory_meanwhile_is_not_followed() {
    require_strace!("u39_a_link_that_takes_the_place_of_a_directory_meanwhile_is_not_followed");
    let scene = Scene::new();
    let outside = scene.world.sandbox.dir("outside");
    fs::write(outside.join("three"), "outside").unwrap();
    let before = describe(&outside);
    let (a, aside) = (scene.live.join("a"), scene.world.sandbox.join("aside"));
    // Just before the first entry is moved to its place.
    let run = fault::pause(&scene.delta(&["--confirm"]), "renameat2", || {
        fs::rename(&a, &aside).unwrap();
        symlink(&outside, &a).unwrap();
    });
    run.expect_code(1);
    assert_eq!(describe(&outside), before);
    // The link itself differs from the backup.
    scene.delta(&["--confirm", "--delete"]).succeed();
    assert_eq!(describe(&outside), before);
    scene.is_whole();
}

#[test]
fn u50_a_damaged_backup_or_a_full_disk_leaves_the_directory_as_it_was() {
    require_mounts!("u50_a_damaged_backup_or_a_full_disk_leaves_the_directory_as_it_was");
    let disk = SmallDisk::new(3, 1000);
    let scene = Scene::of(World::new(""), "live");
    let large = scene.world.source().join("large");
    let mut noise = vec![0; 6 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(large, noise).unwrap();
    let backup = scene.world.backup();
    let live = disk.path().join("live");
    copy_all(&scene.live, &live);
    let before = describe(&live);
    let run = delta(&scene.world, id(&backup), &live, &["--confirm"]).run();
    run.expect_code(1).expect_stdout("No space left on device");
    assert_eq!(describe(&live), before);
    let packs = scene
        .world
        .sandbox
        .join("repo/aux/files/up/packs")
        .join(id(&backup));
    let pack = fs::read_dir(packs).unwrap().next().unwrap().unwrap().path();
    flip(&pack);
    let before = describe(&scene.live);
    let run = delta(&scene.world, id(&backup), &scene.live, &["--confirm"]).run();
    run.expect_code(1).expect_stdout("damaged");
    assert_eq!(describe(&scene.live), before);
}

#[test]
fn u51_killed_at_any_point_each_file_is_whole_and_the_same_command_completes() {
    require_strace!("u51_killed_at_any_point_each_file_is_whole_and_the_same_command_completes");
    let scene = Scene::new();
    let program = scene.delta(&["--confirm", "--delete"]);
    let mut names = fault::MUTATING.to_vec();
    names.push("syncfs");
    let (run, calls) = fault::trace(&program, &names);
    run.success();
    let calls: Vec<_> = calls.iter().filter(|c| c.touches(&scene.live)).collect();
    assert!(calls.len() > 20, "{calls:?}");
    let old_time = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for call in calls {
        scene.renew();
        // Times of the entries that are changed by hand differ from run to run.
        let changed = File::options()
            .append(true)
            .open(scene.live.join("two"))
            .unwrap();
        changed
            .set_times(FileTimes::new().set_modified(old_time))
            .unwrap();
        let (run, fired) = fault::inject(&program, &call.kill());
        assert!(fired >= 1 || run.code() == 137, "{}\n{run}", call.text);
        for name in ["one", "two", "a/same", "a/b/four", "a/b/five"] {
            let content = fs::read(scene.live.join(name)).unwrap();
            let is_new = content == fs::read(scene.world.source().join(name)).unwrap();
            assert!(is_new || content == b"changed", "{name}, {}", call.text);
        }
        program.succeed();
        scene.is_whole();
    }
}

#[test]
fn u42_two_restores_into_one_directory_exclude_one_another() {
    require_strace!("u42_two_restores_into_one_directory_exclude_one_another");
    let scene = Scene::new();
    let program = scene.delta(&["--confirm", "--delete"]);
    let run = fault::pause(&program, "renameat2", || {
        let run = program.run();
        run.expect_code(7).expect_stdout("another restore into");
    });
    run.success();
    scene.is_whole();
}
