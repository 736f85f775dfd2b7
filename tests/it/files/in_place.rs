//! `pitr files restore --in-place` and `rollback`: the configured directory goes to a backup and back, whatever happens on the way.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use serde_json::Value;

use super::tree::{Changes, Tree, describe};
use super::{World, id, is_same};
use crate::common::mount::{DiskOver, SmallDisk};
use crate::common::{Program, fault};
use crate::{require_mounts, require_root, require_strace};

const STEPS: u64 = 48;
const STEPS_TO_BACKUP: u64 = 4;

fn in_place(world: &World, id: &str, more: &[&str]) -> Program {
    let restore = ["files", "restore", "up", "--json", "--privileged"];
    world.pitr(
        &[
            &restore[..],
            &["--in-place", "--delete", "--backup", id],
            more,
        ]
        .concat(),
    )
}

fn rollback(world: &World, more: &[&str]) -> Program {
    world.pitr(&[&["files", "rollback", "up", "--json"], more].concat())
}

/// The source without what restores keep.
fn source(world: &World) -> Tree {
    let mut found = describe(&world.source());
    // A kept entry may be a further name of one that stays.
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    found.retain(|path, text| {
        let (before, rest) = text.split_once(", as ").unwrap();
        let (name, after) = rest.split_once(", {").unwrap();
        let is_kept = path.as_os_str().as_bytes().starts_with(b".pitr-rollback-");
        if name.starts_with("\".pitr-rollback-") && !is_kept {
            let own = || format!("{path:?}");
            let first = first.entry(name.to_owned()).or_insert_with(own);
            *text = format!("{before}, as {first}, {{{after}");
        }
        !is_kept
    });
    found
}

/// Requires that everything is back where an undo was killed at its end: the next restore removes the rest.
fn is_back_but_for_the_depot(scene: &Scene, before: &Tree, why: &str) {
    let (mut found, mut expected) = (source(&scene.world), before.clone());
    found.remove(&PathBuf::new());
    expected.remove(&PathBuf::new());
    is_same(&found, &expected, why);
    scene.restore().succeed();
    scene.rollback().succeed();
    set_time_of_root(scene, before);
}

#[test]
fn a_source_goes_to_any_backup_and_back() {
    let seed = std::env::var("PITR_FILES_SEED").ok();
    let seed: u64 = seed.map_or_else(|| std::process::id().into(), |s| s.parse().unwrap());
    let world = World::new("");
    let mut changes = Changes::new(world.source(), seed);
    let mut taken: Vec<(String, Tree)> = Vec::new();
    let mut done = Vec::new();
    for step in 1..=STEPS {
        done.push(changes.step());
        if step % STEPS_TO_BACKUP != 0 {
            continue;
        }
        let before = describe(&world.source());
        let backup = world.backup();
        taken.push((id(&backup).to_owned(), before.clone()));
        let (id, expected) = &taken[changes.random.below(taken.len())];
        let why = format!("PITR_FILES_SEED={seed}, step {step}, {id}: {done:?}");
        let json = in_place(&world, id, &["--confirm"]).succeed().json();
        is_same(&source(&world), expected, &why);
        if json["run"].is_null() {
            is_same(&before, expected, &why);
            continue;
        }
        let plan = rollback(&world, &["--dry-run"]).succeed().json();
        assert_eq!(
            (&plan["run"], &plan["changed_count"]),
            (&json["run"], &0.into()),
            "{why}"
        );
        rollback(&world, &["--confirm"]).succeed();
        is_same(&describe(&world.source()), &before, &why);
    }
}

/// A source that has gone on since its backup.
struct Scene {
    world: World,
    id: String,
    wanted: Tree,
}

impl Scene {
    fn new() -> Scene {
        Scene::of(World::new(""))
    }

    fn of(world: World) -> Scene {
        let source = world.source();
        fs::create_dir_all(source.join("a/b")).unwrap();
        fs::create_dir(source.join("c")).unwrap();
        for name in ["one", "two", "a/three", "a/b/four", "a/b/five", "c/six"] {
            fs::write(source.join(name), name.repeat(1000)).unwrap();
        }
        fs::hard_link(source.join("one"), source.join("a/same")).unwrap();
        symlink("two", source.join("link")).unwrap();
        let backup = world.backup();
        let scene = Scene {
            id: id(&backup).to_owned(),
            wanted: describe(&source),
            world,
        };
        // One of each kind of change.
        let place = |name: &str| source.join(name);
        fs::write(place("two"), "changed").unwrap();
        fs::set_permissions(place("two"), Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(place("a/three")).unwrap();
        fs::write(place("a/stray"), "stray").unwrap();
        fs::remove_dir_all(place("c")).unwrap();
        fs::write(place("c"), "a file").unwrap();
        fs::remove_file(place("link")).unwrap();
        fs::create_dir(place("link")).unwrap();
        fs::write(place("link/below"), "below").unwrap();
        fs::set_permissions(place("a/b"), Permissions::from_mode(0o711)).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(place("a/b"), "user.more", b"x", flags).unwrap();
        scene
    }

    fn restore(&self) -> Program {
        in_place(&self.world, &self.id, &["--confirm"])
    }

    fn rollback(&self) -> Program {
        rollback(&self.world, &["--confirm"])
    }

    fn is_restored(&self, why: &str) {
        is_same(&source(&self.world), &self.wanted, why);
    }
}

#[test]
fn without_a_confirmation_both_show_their_plan() {
    let scene = Scene::new();
    let before = describe(&scene.world.source());
    let run = in_place(&scene.world, &scene.id, &[]).exits(8);
    run.expect_stderr("nothing was changed");
    let plan: Value = in_place(&scene.world, &scene.id, &["--dry-run"])
        .succeed()
        .json();
    assert_eq!(plan["changes"]["removed_count"], 1, "{plan}");
    assert!(plan["run"].is_null(), "{plan}");
    is_same(&describe(&scene.world.source()), &before, "planned");
    let run = scene.rollback().exits(2);
    run.expect_stdout("can be undone in");
    let json = scene.restore().succeed().json();
    scene.is_restored("restored");
    rollback(&scene.world, &[]).exits(8);
    let shown = [
        "files",
        "rollback",
        "up",
        json["run"].as_str().unwrap(),
        "--dry-run",
    ];
    let shown = scene.world.pitr(&shown).succeed();
    shown
        .expect_stdout("* two\n")
        .expect_stdout("- a/three\n")
        .expect_stdout("* a/stray\n");
    scene.is_restored("planned");
    // The entries of before are in no backup.
    let backup = scene.world.backup();
    scene
        .world
        .gives(id(&backup), &scene.wanted, "without what is kept");
    scene.rollback().succeed();
    is_same(&describe(&scene.world.source()), &before, "undone");
    // A restore that changes nothing keeps nothing.
    let same = scene.world.backup();
    let json = in_place(&scene.world, id(&same), &["--confirm"])
        .succeed()
        .json();
    assert!(json["run"].is_null(), "{json}");
    is_same(
        &describe(&scene.world.source()),
        &before,
        "nothing was to be done",
    );
    let run = scene
        .world
        .pitr(&["files", "rollback", "up", "20261120T064049Z-482913"])
        .run();
    run.expect_code(2).expect_stderr("there is no restore");
    scene.world.pitr(&["files", "rollback", "up", "x"]).exits(2);
    let other = World::of("command", "command = [\"true\"]\n");
    for arguments in [&["restore", "up", "--in-place"][..], &["rollback", "up"]] {
        let run = other.pitr(&[&["files"], arguments].concat()).run();
        run.expect_code(2).expect_stderr("is no directory");
    }
}

/// Uploads are on another disk, and a link leads there: `/srv/app/uploads -> /mnt/uploads`.
#[test]
fn u102_a_source_that_is_a_link_goes_back_in_place() {
    let world = World::new("");
    let (link, real) = (world.source(), world.sandbox.join("disk"));
    fs::rename(&link, &real).unwrap();
    symlink(&real, &link).unwrap();
    fs::write(real.join("one"), "old").unwrap();
    let backup = world.backup();
    fs::write(real.join("one"), "new, and longer").unwrap();
    fs::write(real.join("stray"), "").unwrap();
    let is = |one: &str, stray: bool| {
        assert_eq!(fs::read_to_string(real.join("one")).unwrap(), one);
        assert_eq!(real.join("stray").exists(), stray);
        assert_eq!(fs::read_link(&link).unwrap(), real, "the link stays");
    };
    let plan = in_place(&world, id(&backup), &["--dry-run"]).succeed();
    assert_eq!(plan.json()["changes"]["removed_count"], 1, "{plan}");
    is("new, and longer", true);
    in_place(&world, id(&backup), &["--confirm"]).succeed();
    is("old", false);
    rollback(&world, &["--confirm"]).succeed();
    is("new, and longer", true);
}

/// Somebody who may write above the source exchanges it for a link: root takes no other directory back.
#[test]
fn u102_a_link_of_somebody_else_is_refused() {
    require_root!("u102_a_link_of_somebody_else_is_refused");
    let world = World::new("");
    let (link, other) = (world.source(), world.sandbox.dir("other"));
    fs::write(link.join("one"), "old").unwrap();
    let backup = world.backup();
    fs::remove_dir_all(&link).unwrap();
    fs::write(other.join("stray"), "").unwrap();
    symlink(&other, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(1234), None).unwrap();
    std::os::unix::fs::lchown(&other, Some(0), None).unwrap();
    for more in ["--dry-run", "--confirm"] {
        let run = in_place(&world, id(&backup), &[more]).exits(8);
        run.expect_stdout("is a link of user id 1234");
    }
    rollback(&world, &[]).exits(8);
    assert!(other.join("stray").exists() && !other.join("one").exists());
    // Nor does the directory's owner lead root there: the directory could be exchanged behind the look.
    std::os::unix::fs::lchown(&other, Some(1234), None).unwrap();
    in_place(&world, id(&backup), &["--confirm"]).exits(8);
    std::os::unix::fs::lchown(&link, Some(0), None).unwrap();
    in_place(&world, id(&backup), &["--confirm"]).succeed();
    assert!(!other.join("stray").exists() && other.join("one").exists());
}

/// A restore is killed at every call that changes something, and undone: the source is as it was. So it is when the next restore comes first.
#[test]
fn u43_a_restore_in_place_that_is_killed_is_undone() {
    require_strace!("u43_a_restore_in_place_that_is_killed_is_undone");
    let scene = Scene::new();
    let before = describe(&scene.world.source());
    let mut names = fault::MUTATING.to_vec();
    names.push("syncfs");
    let (run, calls) = fault::trace(&scene.restore(), &names);
    run.success();
    scene.rollback().succeed();
    is_same(&describe(&scene.world.source()), &before, "undone");
    let source_path = scene.world.source();
    let calls: Vec<_> = calls.iter().filter(|c| c.touches(&source_path)).collect();
    assert!(calls.len() > 40, "{calls:?}");
    let (mut without, mut undone) = (0, 0);
    for (n, call) in calls.iter().enumerate() {
        let (run, fired) = fault::inject(&scene.restore(), &call.kill());
        assert!(fired >= 1 || run.code() == 137, "{}\n{run}", call.text);
        if n % 2 == 0 {
            let run = scene.rollback().run();
            let is_begun = run.is_success();
            if is_begun {
                undone += 1;
                is_same(&describe(&scene.world.source()), &before, &call.text);
                continue;
            }
            run.expect_code(2);
            without += 1;
            let mut found = source(&scene.world);
            let mut expected = before.clone();
            // The time of the directory that the private one lies in.
            found.remove(&PathBuf::new());
            expected.remove(&PathBuf::new());
            is_same(&found, &expected, &call.text);
        }
        scene.restore().succeed();
        scene.is_restored(&call.text);
        scene.rollback().succeed();
        let mut found = describe(&scene.world.source());
        let mut expected = before.clone();
        found.remove(&PathBuf::new());
        expected.remove(&PathBuf::new());
        is_same(&found, &expected, &call.text);
        set_time_of_root(&scene, &before);
    }
    println!("{without} times nothing had moved, {undone} times undone");
    assert!(without > 3 && undone > 3);
}

/// A run that was killed before its journal leaves a directory behind, and so another time of the source.
fn set_time_of_root(scene: &Scene, before: &Tree) {
    let text = &before[&PathBuf::new()];
    let time = text.split(' ').nth(3).unwrap();
    let (seconds, nanoseconds) = time.split_once('.').unwrap();
    let time = std::time::Duration::new(seconds.parse().unwrap(), nanoseconds.parse().unwrap());
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + time);
    fs::File::open(scene.world.source())
        .unwrap()
        .set_times(times)
        .unwrap();
    is_same(&describe(&scene.world.source()), before, "prepared again");
}

/// Kills an undo at each call that changes something, on a filesystem that lacks `lacked`, and requires that the next one completes it.
fn kills_rollbacks(scene: &Scene, rollback: &Program, lacked: &str, change: &dyn Fn()) {
    let rollback = rollback.clone().env("PITR_FAULT_LACKS", lacked);
    let before = describe(&scene.world.source());
    scene.restore().succeed();
    change();
    let mut names = fault::MUTATING.to_vec();
    names.push("syncfs");
    let (run, calls) = fault::trace(&rollback, &names);
    run.success();
    is_same(&describe(&scene.world.source()), &before, "undone");
    let source_path = scene.world.source();
    let calls: Vec<_> = calls.iter().filter(|c| c.touches(&source_path)).collect();
    assert!(calls.len() > 20, "{calls:?}");
    let mut again = 0;
    for call in calls {
        scene.restore().succeed();
        change();
        let (run, fired) = fault::inject(&rollback, &call.kill());
        assert!(fired >= 1 || run.code() == 137, "{}\n{run}", call.text);
        let run = rollback.run();
        if run.is_success() {
            again += 1;
            is_same(&describe(&scene.world.source()), &before, &call.text);
            continue;
        }
        run.expect_code(2);
        is_back_but_for_the_depot(scene, &before, &call.text);
    }
    assert!(again > 10, "{again}");
}

#[test]
fn u44_a_rollback_that_is_killed_is_completed_by_the_next_one() {
    require_strace!("u44_a_rollback_that_is_killed_is_completed_by_the_next_one");
    let scene = Scene::new();
    kills_rollbacks(&scene, &scene.rollback(), "", &|| ());
}

#[test]
fn u94_without_an_exchange_a_rollback_that_is_killed_is_completed_by_the_next_one() {
    require_strace!(
        "u94_without_an_exchange_a_rollback_that_is_killed_is_completed_by_the_next_one"
    );
    let scene = Scene::new();
    kills_rollbacks(&scene, &scene.rollback(), "exchange", &|| ());
    let discarding = rollback(&scene.world, &["--confirm", "--discard-changes"]);
    kills_rollbacks(&scene, &discarding, "exchange", &|| change_since(&scene));
}

#[test]
fn u95_what_a_restore_of_a_part_moved_is_durable_before_its_end_is_recorded() {
    require_strace!("u95_what_a_restore_of_a_part_moved_is_durable_before_its_end_is_recorded");
    let scene = Scene::new();
    // The directory of the file is not named: nothing but its entries changes.
    let restore = in_place(&scene.world, &scene.id, &["--confirm", "--path", "a/three"]);
    let restore = restore.env("PITR_FAULT_LACKS", "syncfs");
    let (run, calls) = fault::trace(&restore, &["renameat2", "renameat", "fsync", "linkat"]);
    run.success();
    let names = |text: &str| calls.iter().position(|call| call.text.contains(text));
    let moved = names("\"three\"").expect("the file comes to its place");
    let ended = names("\"done\"").expect("the end is recorded");
    let directory = format!("{}>)", scene.world.source().join("a").display());
    let between = calls.get(moved..ended).unwrap_or_default();
    let is_synced = |call: &fault::Call| call.name == "fsync" && call.text.contains(&directory);
    assert!(between.iter().any(is_synced), "{calls:#?}");
}

#[test]
fn u45_what_was_changed_since_is_not_lost_unasked() {
    let scene = Scene::new();
    let before = describe(&scene.world.source());
    let place = |name: &str| scene.world.source().join(name);
    type Change<'c> = (&'c str, &'c dyn Fn());
    let cases: [Change<'_>; 6] = [
        ("two", &|| fs::write(place("two"), "since").unwrap()),
        ("two", &|| {
            // By a new file, as editors do.
            fs::write(place("new"), "since").unwrap();
            fs::rename(place("new"), place("two")).unwrap();
        }),
        ("a/three", &|| fs::remove_file(place("a/three")).unwrap()),
        ("c", &|| fs::write(place("c/since"), "since").unwrap()),
        ("a/stray", &|| fs::write(place("a/stray"), "since").unwrap()),
        ("a/b", &|| {
            fs::set_permissions(place("a/b"), Permissions::from_mode(0o700)).unwrap();
        }),
    ];
    for (name, change) in cases {
        scene.restore().succeed();
        change();
        let is = describe(&scene.world.source());
        let run = scene.rollback().run();
        run.expect_code(8)
            .expect_stdout("were changed since")
            .expect_stdout(name);
        let plan = rollback(&scene.world, &["--dry-run"]).succeed().json();
        assert_eq!(plan["changed"], serde_json::json!([name]), "{plan}");
        is_same(&describe(&scene.world.source()), &is, name);
        let run = rollback(&scene.world, &["--confirm", "--discard-changes"]).run();
        run.success();
        is_same(&describe(&scene.world.source()), &before, name);
    }
    // An entry that nobody restored is nobody's business.
    scene.restore().succeed();
    fs::write(place("a/b/since"), "since").unwrap();
    scene.rollback().succeed();
    fs::remove_file(place("a/b/since")).unwrap();
}

/// Changes since the restore, of each kind that an undo discards.
fn change_since(scene: &Scene) {
    let place = |name: &str| scene.world.source().join(name);
    fs::write(place("two"), "since").unwrap();
    fs::remove_file(place("a/three")).unwrap();
    fs::write(place("a/three"), "since").unwrap();
    fs::write(place("a/stray"), "since").unwrap();
    fs::write(place("c/since"), "since").unwrap();
}

#[test]
fn u58_a_rollback_that_discards_changes_and_is_killed_is_completed_by_the_next_one() {
    require_strace!(
        "u58_a_rollback_that_discards_changes_and_is_killed_is_completed_by_the_next_one"
    );
    let scene = Scene::new();
    let discarding = rollback(&scene.world, &["--confirm", "--discard-changes"]);
    kills_rollbacks(&scene, &discarding, "", &|| change_since(&scene));
}

#[test]
fn u59_a_directory_that_is_gone_keeps_what_belongs_into_it() {
    let scene = Scene::new();
    let before = describe(&scene.world.source());
    let json = scene.restore().succeed().json();
    let depot = format!(".pitr-rollback-{}", json["run"].as_str().unwrap());
    let (a, aside) = (
        scene.world.source().join("a"),
        scene.world.sandbox.join("aside"),
    );
    fs::rename(&a, &aside).unwrap();
    let is = describe(&scene.world.source());
    let run = scene.rollback().run();
    run.expect_code(8).expect_stdout("were changed since");
    is_same(&describe(&scene.world.source()), &is, "refused");
    // All else goes back, and the old entry is not lost.
    let discarding = rollback(&scene.world, &["--confirm", "--discard-changes"]);
    let json = discarding.exits(6).json();
    let examples = json["left_out"]["examples"].as_array().unwrap();
    let is_named =
        |one: &Value| one["path"] == "a/stray" && one["reason"].as_str().unwrap().contains(&depot);
    assert!(examples.iter().any(is_named), "{json}");
    assert!(scene.world.source().join("c").is_file());
    assert!(scene.world.source().join(&depot).exists());
    fs::rename(&aside, &a).unwrap();
    discarding.succeed();
    is_same(&describe(&scene.world.source()), &before, "undone");
}

#[test]
fn u60_attributes_that_could_not_be_read_stay_and_are_named() {
    require_strace!("u60_attributes_that_could_not_be_read_stay_and_are_named");
    let scene = Scene::new();
    let before = describe(&scene.world.source());
    let fault = fault::Fault::error("flistxattr", "EIO");
    let (run, fired) = fault::inject(&scene.restore(), &fault);
    assert!(fired > 0 && [0, 6].contains(&run.code()), "{run}");
    let json = scene.rollback().exits(6).json();
    let examples = json["left_out"]["examples"].as_array().unwrap();
    let is_named = |one: &Value| one["path"] == "a/b" && one["part"] == "xattr";
    assert!(examples.iter().any(is_named), "{json}");
    is_same(&describe(&scene.world.source()), &before, "undone");
}

#[test]
fn u46_a_failure_on_the_way_puts_everything_back() {
    require_strace!("u46_a_failure_on_the_way_puts_everything_back");
    let scene = Scene::new();
    let before = describe(&scene.world.source());
    let mut failed = 0;
    for (call, errno) in [
        ("renameat2", "EIO"),
        ("renameat2", "EBUSY"),
        ("fchmod", "EIO"),
    ] {
        for n in 1..8 {
            let fault = fault::Fault::error(call, errno).at(n);
            let (run, fired) = fault::inject(&scene.restore(), &fault);
            if fired == 0 {
                continue;
            }
            let why = format!("{call} {n}\n{run}");
            if run.is_success() || run.code() == 6 {
                // An attribute that could not be set is named.
                scene.rollback().succeed();
            } else {
                run.expect_code(1)
                    .expect_stdout("put back as it was before");
                failed += 1;
            }
            is_same(&describe(&scene.world.source()), &before, &why);
        }
    }
    assert!(failed > 6, "{failed}");
}

#[test]
fn u47_a_full_disk_leaves_the_source_as_it_was() {
    require_mounts!("u47_a_full_disk_leaves_the_source_as_it_was");
    let disk = SmallDisk::new(3, 1000);
    let live = disk.path().join("live");
    fs::create_dir(&live).unwrap();
    let world = World::of(live.to_str().unwrap(), "");
    let noise = |seed: u8| {
        let mut noise = vec![0; 1_200_000];
        blake3::Hasher::new()
            .update(&[seed])
            .finalize_xof()
            .fill(&mut noise);
        noise
    };
    fs::write(live.join("large"), noise(1)).unwrap();
    let backup = world.backup();
    fs::write(live.join("large"), noise(2)).unwrap();
    fs::write(live.join("more"), noise(3)).unwrap();
    let before = describe(&live);
    let run = in_place(&world, id(&backup), &["--confirm"]).run();
    run.expect_code(1).expect_stdout("No space left on device");
    is_same(&describe(&live), &before, "full");
    fs::remove_file(live.join("more")).unwrap();
    let before = describe(&live);
    in_place(&world, id(&backup), &["--confirm"]).succeed();
    assert_eq!(fs::read(live.join("large")).unwrap(), noise(1));
    rollback(&world, &["--confirm"]).succeed();
    is_same(&describe(&live), &before, "undone");
}

#[test]
fn u54_nothing_of_a_filesystem_below_the_source_is_changed() {
    require_mounts!("u54_nothing_of_a_filesystem_below_the_source_is_changed");
    let world = World::new("");
    let place = |name: &str| world.source().join(name);
    fs::create_dir_all(place("volume/sub")).unwrap();
    let _disk = DiskOver::mount(&place("volume"));
    fs::create_dir(place("volume/sub")).unwrap();
    for name in ["one", "volume/same", "volume/two", "volume/sub/three"] {
        fs::write(place(name), name).unwrap();
    }
    let backup = world.backup();
    fs::write(place("one"), "changed").unwrap();
    fs::write(place("volume/two"), "changed").unwrap();
    fs::remove_dir_all(place("volume/sub")).unwrap();
    fs::write(place("volume/stray"), "stray").unwrap();
    let volume = describe(&place("volume"));
    let run = in_place(&world, id(&backup), &["--confirm"]).run();
    let json = run.expect_code(6).json();
    for name in ["volume/two", "volume/sub", "volume/sub/three"] {
        let examples = json["left_out"]["examples"].as_array().unwrap();
        assert!(examples.iter().any(|one| one["path"] == name), "{json}");
    }
    assert_eq!(fs::read(place("one")).unwrap(), b"one");
    assert_eq!(describe(&place("volume")), volume);
    rollback(&world, &["--confirm"]).succeed();
    assert_eq!(fs::read(place("one")).unwrap(), b"changed");
    assert_eq!(describe(&place("volume")), volume);
}

#[test]
fn u48_links_that_are_put_in_the_way_of_a_rollback_are_not_followed() {
    require_strace!("u48_links_that_are_put_in_the_way_of_a_rollback_are_not_followed");
    let scene = Scene::new();
    let outside = scene.world.sandbox.dir("outside");
    for name in ["three", "stray"] {
        fs::write(outside.join(name), "outside").unwrap();
    }
    let is_outside = describe(&outside);
    let before = describe(&scene.world.source());
    let (a, aside) = (
        scene.world.source().join("a"),
        scene.world.sandbox.join("aside"),
    );
    let swap = || {
        fs::rename(&a, &aside).unwrap();
        symlink(&outside, &a).unwrap();
    };
    let swap_back = || {
        fs::remove_file(&a).unwrap();
        fs::rename(&aside, &a).unwrap();
    };
    let run = fault::pause(&scene.restore(), "renameat2", swap);
    run.expect_code(1);
    assert_eq!(describe(&outside), is_outside);
    swap_back();
    // The restore could not put everything back in the linked directory.
    let run = scene.rollback().run();
    assert!([0, 2].contains(&run.code()), "{run}");
    is_same(&source(&scene.world), &before, "undone");
    scene.restore().succeed();
    let run = fault::pause(&scene.rollback(), "renameat2", swap);
    run.expect_code(1);
    assert_eq!(describe(&outside), is_outside);
    swap_back();
    rollback(&scene.world, &["--confirm"]).succeed();
    is_same(&source(&scene.world), &before, "undone again");
}

#[test]
fn u49_a_journal_that_is_not_ours_or_damaged_moves_nothing() {
    let scene = Scene::new();
    if !scene.world.is_root {
        crate::skip!(
            "u49_a_journal_that_is_not_ours_or_damaged_moves_nothing",
            "needs root"
        );
    }
    let json = scene.restore().succeed().json();
    let run = json["run"].as_str().unwrap().to_owned();
    let depot = scene.world.source().join(format!(".pitr-rollback-{run}"));
    let journal = depot.join("journal");
    let nobody = Some(rustix::fs::Uid::from_raw(65534));
    let root = Some(rustix::fs::Uid::ROOT);
    let mut is = source(&scene.world);
    let named = || rollback(&scene.world, &[&run, "--confirm"]).run();
    // The directory is somebody else's, or open to others.
    rustix::fs::chown(&depot, nobody, None).unwrap();
    named()
        .expect_code(8)
        .expect_stdout("it was not made by user 0");
    rustix::fs::chown(&depot, root, None).unwrap();
    fs::set_permissions(&depot, Permissions::from_mode(0o755)).unwrap();
    named()
        .expect_code(8)
        .expect_stdout("it was not made by user 0");
    fs::set_permissions(&depot, Permissions::from_mode(0o700)).unwrap();
    // The journal is.
    rustix::fs::chown(&journal, nobody, None).unwrap();
    named().expect_code(8).expect_stdout("is not ours");
    rustix::fs::chown(&journal, root, None).unwrap();
    // The directory has the name of another run.
    let other = "20261120T064049Z-482913";
    let renamed = scene.world.source().join(format!(".pitr-rollback-{other}"));
    fs::rename(&depot, &renamed).unwrap();
    let run_of_other = rollback(&scene.world, &[other, "--confirm"]).run();
    run_of_other
        .expect_code(8)
        .expect_stdout("is that of another restore");
    fs::rename(&renamed, &depot).unwrap();
    let text = fs::read(&journal).unwrap();
    fs::write(&journal, &text[..text.len() / 2]).unwrap();
    named().expect_code(1).expect_stdout("cannot be read");
    let mut found = source(&scene.world);
    // Its entries were renamed by this test.
    for tree in [&mut found, &mut is] {
        tree.remove(&PathBuf::new());
    }
    is_same(&found, &is, "nothing was moved");
    fs::write(&journal, text).unwrap();
    named().success();
}
