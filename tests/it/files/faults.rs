//! Failures of a source, and of what lies between it and the repository: no backup claims more than it has.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::shared::flip;
use super::tree::describe;
use super::{World, id, is_same, path_text};

use crate::common::mount::{DiskOver, PowerDisk, SmallDisk};
use crate::common::random::Random;
use crate::common::{append, edit, expire_at_once, keep_one};
use crate::{require_mounts, require_root};

/// Files of a few kilobytes that no codec makes small.
fn fill(source: &Path, files: u64, version: u64) {
    for n in 0..files {
        let mut bytes = vec![0; 4000];
        let seed = [n.to_le_bytes(), version.to_le_bytes()].concat();
        blake3::Hasher::new()
            .update(&seed)
            .finalize_xof()
            .fill(&mut bytes);
        fs::write(source.join(n.to_string()), bytes).unwrap();
    }
}

#[test]
fn u01_a_file_that_grows_while_it_is_read_is_stored_and_counted() {
    let world = World::new("");
    let file = world.source().join("log");
    fs::write(&file, vec![1; 64 << 20]).unwrap();
    let is_over = AtomicBool::new(false);
    let backup = std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut log = File::options().append(true).open(&file).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                log.write_all(b"line\n").unwrap();
            }
        });
        let run = world.pitr(&["files", "backup", "up", "--json"]).run();
        is_over.store(true, Ordering::Relaxed);
        run.expect_code(6).json()
    });
    assert_eq!(backup["unstable_count"], 1, "{backup}");
    // The next run reads it again.
    let next = world.backup();
    assert_eq!(
        (&next["read_count"], &next["unstable_count"]),
        (&1.into(), &0.into())
    );
    world.gives(id(&next), &describe(&world.source()), "at rest");
}

/// A repository that is gone neither hides the backups of the next one, nor counts as one that has none.
#[test]
fn a_repository_that_is_gone_is_passed_over() {
    let world = World::new("");
    fs::write(world.source().join("x"), "x").unwrap();
    let taken = world.backup();
    let id = "20261120T064049Z-482913-full";
    let unknown = ["files", "ls", "up", "--backup", id];
    let run = world.pitr(&unknown).run();
    run.expect_code(2)
        .expect_stderr("no repository has a backup");
    let gone = path_text(&world.sandbox.join("gone"));
    let first = format!("[repositories.gone]\nurl = \"file://{gone}\"\n[repositories.local]\n");
    edit(&world.config, "[repositories.local]\n", &first);
    let run = world.pitr(&["files", "ls", "up", "--json"]).run();
    let run = run
        .success()
        .expect_stderr("repository \"gone\" is passed over");
    assert_eq!(run.json()["backup"], taken["id"]);
    let run = world.pitr(&unknown).exits(9);
    assert!(!run.stderr.contains("no repository has"), "{run}");
}

#[test]
fn u02_what_cannot_be_read_is_named_and_the_rest_is_stored() {
    let world = World::new("");
    let source = world.source();
    fs::write(source.join("open"), "x").unwrap();
    fs::write(source.join("closed"), "x").unwrap();
    fs::create_dir(source.join("folder")).unwrap();
    fs::write(source.join("folder/x"), "x").unwrap();
    for name in ["closed", "folder"] {
        fs::set_permissions(source.join(name), Permissions::from_mode(0o000)).unwrap();
    }
    fs::set_permissions(&source, Permissions::from_mode(0o755)).unwrap();
    // Root may read everything: another user is asked, who has the repository.
    let run = world.as_user(&["files", "backup", "up", "--json"]).run();
    let backup = run.expect_code(6).json();
    let examples = backup["left_out"]["examples"].as_array().unwrap();
    let mut paths: Vec<_> = examples
        .iter()
        .map(|one| one["path"].as_str().unwrap())
        .collect();
    paths.sort_unstable();
    assert_eq!(paths, ["closed", "folder"], "{backup}");
    let run = world.as_user(&["files", "backup", "up"]).run();
    run.expect_code(6)
        .expect_stderr("\"closed\", entry: Permission denied");
    let to = path_text(&world.sandbox.join("back"));
    let run = world.pitr(&["files", "restore", "up", "--to", &to]).run();
    run.expect_code(6)
        .expect_stderr("the backup lacks \"closed\", entry: Permission denied")
        .expect_stderr("the backup lacks 2 things that could not be read");
    for name in ["closed", "folder"] {
        fs::set_permissions(source.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    let run = world.as_user(&["files", "backup", "up", "--json"]).run();
    let backup = run.success().json();
    assert_eq!(backup["file_count"], 3, "{backup}");
}

#[test]
fn u03_a_backup_that_is_killed_is_never_visible_and_the_next_one_is_whole() {
    let world = World::new("");
    fill(&world.source(), 300, 0);
    let first = world.backup();
    let before = describe(&world.source());
    let mut random = Random::new(7);
    let mut killed = 0;
    for round in 1..=12 {
        fill(&world.source(), 300, round);
        let running = world.pitr(&["files", "backup", "up", "--quiet"]).spawn();
        std::thread::sleep(Duration::from_millis(random.below(60) as u64));
        running.signal(Signal::KILL);
        killed += u32::from(!running.wait().is_success());
    }
    assert!(killed > 0, "no run was killed before its end");
    world.gives(id(&first), &before, "the one before");
    let last = world.backup();
    world.gives(id(&last), &describe(&world.source()), "the one after");
    world.pitr(&["verify"]).succeed();
}

#[test]
fn u04_a_full_repository_ends_the_backup_and_room_lets_it_go_on() {
    require_mounts!("u04_a_full_repository_ends_the_backup_and_room_lets_it_go_on");
    let disk = SmallDisk::new(3, 1000);
    let world = World::on(&disk.path().join("repo"));
    fill(&world.source(), 100, 0);
    let first = world.backup();
    let before = describe(&world.source());
    fill(&world.source(), 2000, 1);
    let run = world.pitr(&["files", "backup", "up"]).run();
    run.expect_code(1).expect_stderr("No space left on device");
    world.gives(id(&first), &before, "the one before");
    for n in 100..2000 {
        fs::remove_file(world.source().join(n.to_string())).unwrap();
    }
    let next = world.backup();
    world.gives(id(&next), &describe(&world.source()), "with room");
}

/// A store into a page that is dirty already moves no time. The walk writes pages back first, so that the next store does.
#[test]
fn u05_what_a_mapping_writes_after_a_backup_is_in_the_next_one() {
    let world = World::new("");
    let file = world.source().join("mapped");
    fs::write(&file, vec![b'0'; 20_000]).unwrap();
    let script = "import mmap, sys
with open(sys.argv[1], 'r+b') as file:
    mapped = mmap.mmap(file.fileno(), 0)
    for line in sys.stdin:
        mapped[5000:5001] = line[:1].encode()
        print('stored', flush=True)
";
    let mut mapping = Command::new("python3")
        .args(["-c", script])
        .arg(&file)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = mapping.stdin.take().unwrap();
    let mut answers = std::io::BufReader::new(mapping.stdout.take().unwrap());
    // A restore would write the pages back by itself: they come at the end.
    let mut taken = Vec::new();
    for letter in ["a", "b", "c", "d"] {
        to.write_all(format!("{letter}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        std::io::BufRead::read_line(&mut answers, &mut answer).unwrap();
        assert_eq!(answer, "stored\n");
        taken.push((letter, world.backup()));
    }
    for (letter, backup) in taken {
        let back = world.restored(id(&backup), "back");
        let byte = fs::read(back.join("mapped")).unwrap()[5000];
        assert_eq!(byte, letter.as_bytes()[0], "{backup}");
        fs::remove_dir_all(back).unwrap();
    }
    drop(to);
    mapping.wait().unwrap();
}

/// Leaves no block, or no inode, on the disk of a repository; returns the folder that takes them.
fn exhaust(disk: &SmallDisk, is_of_inodes: bool) -> std::path::PathBuf {
    let folder = disk.path().join("filler");
    fs::create_dir(&folder).unwrap();
    for n in 0.. {
        let mut file = match File::create(folder.join(n.to_string())) {
            Ok(file) => file,
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::StorageFull);
                break;
            }
        };
        if !is_of_inodes && file.write_all(&[1; 4096]).is_err() {
            break;
        }
    }
    folder
}

#[test]
fn x16_a_full_repository_is_freed_by_expire() {
    require_mounts!("x16_a_full_repository_is_freed_by_expire");
    for is_of_inodes in [false, true] {
        let disk = SmallDisk::new(12, 3000);
        let world = World::on(&disk.path().join("repo"));
        let place = disk.path().join("repo");
        let ids = || {
            let info = world.pitr(&["info", "--json"]).run().json();
            let backups = info["scopes"][0]["backups"].as_array().unwrap().clone();
            backups.iter().map(|b| id(b).to_owned()).collect::<Vec<_>>()
        };
        for version in 0..3 {
            fill(&world.source(), 100, version);
            world.pitr(&["files", "backup", "up"]).succeed();
        }
        let pieces = || {
            let names = fs::read_dir(&place).unwrap();
            let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
            names.filter(|n| n.starts_with(".tmp.reserve.")).count()
        };
        assert_eq!(pieces(), 16);
        let filler = exhaust(&disk, is_of_inodes);
        let backup = world.pitr(&["files", "backup", "up"]).run();
        backup.expect_code(1);
        // This marks two, which takes room alone.
        world.pitr(&keep_one(&["--confirm"])).succeed();
        assert_eq!(ids().len(), 3);
        // A shorter grace period is marked anew, where nothing else is due.
        let expire = expire_at_once();
        world.pitr(&expire).succeed();
        world.pitr(&expire).succeed();
        assert_eq!(ids().len(), 1, "{is_of_inodes}");
        assert_eq!(pieces(), 16);
        // Verify calls the reserve no stranger.
        let verify = world.pitr(&["verify", "--json"]).succeed();
        assert!(!verify.stdout.contains("reserve"), "{verify}");
        world.pitr(&["files", "backup", "up"]).succeed();
        // Without a reserve, as a former pitr has left it: unfinished files go, and without these the way out is named.
        fs::remove_dir_all(&filler).unwrap();
        for number in 0..16 {
            fs::remove_file(place.join(format!(".tmp.reserve.{number:02}"))).unwrap();
        }
        let days = std::time::SystemTime::now() - Duration::from_secs(3 * 86_400);
        let old = |number: usize| place.join(format!(".tmp.old.{number}"));
        for number in 0..4 {
            fs::write(old(number), vec![1; 100_000]).unwrap();
            let file = File::options().write(true).open(old(number)).unwrap();
            file.set_modified(days).unwrap();
        }
        world.pitr(&["files", "backup", "up"]).succeed();
        exhaust(&disk, is_of_inodes);
        world.pitr(&expire).succeed();
        assert!(!old(0).exists() && ids().len() == 2, "{is_of_inodes}");
        fs::remove_dir_all(&filler).unwrap();
        fill(&world.source(), 100, 9);
        world.pitr(&["files", "backup", "up"]).succeed();
        for number in 0..16 {
            let _ = fs::remove_file(place.join(format!(".tmp.reserve.{number:02}")));
        }
        exhaust(&disk, is_of_inodes);
        let run = world.pitr(&expire).run();
        run.expect_code(10).expect_stderr("keeps a reserve");
    }
}

#[test]
fn u77_what_a_disk_changes_behind_everybodys_back_is_found_when_it_is_its_turn() {
    require_mounts!("u77_what_a_disk_changes_behind_everybodys_back_is_found_when_it_is_its_turn");
    let disk = PowerDisk::new(64);
    let source = disk.path();
    let content: Vec<u8> = (0..9000_u32).map(|n| (n * n / 7 % 251) as u8).collect();
    fs::write(source.join("rots"), &content).unwrap();
    fs::write(source.join("sound"), vec![5; 9000]).unwrap();
    fs::write(source.join("linked"), "twice").unwrap();
    fs::hard_link(source.join("linked"), source.join("other")).unwrap();
    let world = World::of(&path_text(source), "");
    // A file that had just changed is read in any case.
    std::thread::sleep(Duration::from_millis(1100));
    let first = world.backup();
    disk.spoil(&content);
    let blind = world.backup();
    assert_eq!(
        (&blind["read_count"], &blind["unchanged_count"]),
        (&0.into(), &3.into()),
        "{blind}"
    );
    let at_once = || {
        let backup = world.pitr(&["files", "backup", "up", "--json"]);
        backup.env("PITR_FAULT_ROUND_SECONDS", "0").run()
    };
    let run = at_once().expect_code(6);
    let run = run.expect_stderr("1 of 3 files that were read again have other content");
    let found = run.json();
    assert_eq!(found["read_count"], 1, "{found}");
    assert_eq!(found["unchanged_count"], 2, "{found}");
    let read = |backup: &Value, to: &str| {
        let back = world.restored(id(backup), to);
        assert_eq!(fs::read(back.join("other")).unwrap(), b"twice");
        fs::read(back.join("rots")).unwrap()
    };
    assert!(read(&first, "first") == content);
    let now = read(&found, "now");
    let differing = now.iter().zip(&content).filter(|(a, b)| a != b).count();
    assert_eq!((now.len(), differing), (content.len(), 1));
    // Told once: the next turn finds what is stored.
    let run = at_once().success();
    assert_eq!(run.json()["read_count"], 0, "{run}");
}

#[test]
fn u114_a_file_that_cannot_be_opened_in_its_turn_keeps_its_content() {
    require_root!("u114_a_file_that_cannot_be_opened_in_its_turn_keeps_its_content");
    let world = World::on_disk("");
    let source = world.source();
    for (name, mode) in [("closed", 0o600), ("linked", 0o600), ("open", 0o644)] {
        fs::write(source.join(name), name).unwrap();
        fs::set_permissions(source.join(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::hard_link(source.join("linked"), source.join("other")).unwrap();
    fs::set_permissions(&source, Permissions::from_mode(0o755)).unwrap();
    world.backup();
    // The job belongs to a user now who may look at the files, and not open them.
    let backup = |round: &str| {
        let backup = world.as_user(&["files", "backup", "up", "--json"]);
        let backup = backup.env("PITR_FAULT_SECONDS", "0");
        backup.env("PITR_FAULT_ROUND_SECONDS", round).run()
    };
    let same = backup("99999999").success().json();
    assert_eq!(same["unchanged_count"], 3, "{same}");
    let run = backup("0").expect_code(6);
    let run = run.expect_stderr("2 of 3 files that were read again cannot be read");
    let kept = run.json();
    assert_eq!(
        (&kept["read_count"], &kept["unchanged_count"]),
        (&0.into(), &3.into()),
        "{kept}"
    );
    world.gives(id(&kept), &describe(&source), "kept");
}

#[test]
fn one_file_system_leaves_out_what_is_mounted_below() {
    require_mounts!("one_file_system_leaves_out_what_is_mounted_below");
    let world = World::new("");
    let source = world.source();
    fs::create_dir_all(source.join("mounted")).unwrap();
    fs::write(source.join("own"), "own").unwrap();
    let _disk = DiskOver::mount(&source.join("mounted"));
    fs::write(source.join("mounted/other"), "other").unwrap();
    let paths = |backup: &Value, to: &str| {
        let back = world.restored(id(backup), to);
        describe(&back).into_keys().collect::<Vec<_>>()
    };
    let all = paths(&world.backup(), "all");
    assert!(all.iter().any(|p| p.ends_with("mounted/other")), "{all:?}");
    append(&world.config, "one_file_system = true\n");
    let own = paths(&world.backup(), "own");
    assert!(own.iter().any(|p| p.ends_with("mounted")), "{own:?}");
    assert!(!own.iter().any(|p| p.ends_with("other")), "{own:?}");
}

/// As `touch -r`, `cp -p` and many archivers leave files.
#[test]
fn u12_a_change_behind_an_old_time_is_found() {
    let world = World::on_disk("");
    let source = world.source();
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let write = |name: &str, content: &str| {
        fs::write(source.join(name), content).unwrap();
        let times = fs::FileTimes::new().set_modified(old);
        File::open(source.join(name))
            .unwrap()
            .set_times(times)
            .unwrap();
    };
    for name in ["in place", "renamed over"] {
        write(name, "first");
    }
    world.backup();
    write("in place", "other");
    write("new", "other");
    fs::rename(source.join("new"), source.join("renamed over")).unwrap();
    let next = world.backup();
    world.gives(id(&next), &describe(&source), "with the old time");
}

/// A filesystem gives the number of a file that is gone to the next one.
#[test]
fn u12_another_file_of_the_same_inode_length_and_time_is_found() {
    require_root!("u12_another_file_of_the_same_inode_length_and_time_is_found");
    // Here nobody else takes the number.
    let disk = PowerDisk::new(16);
    let world = World::of(&path_text(disk.path()), "");
    let file = disk.path().join("file");
    let make = |content: &str| {
        fs::write(&file, content).unwrap();
        let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let times = fs::FileTimes::new().set_modified(old);
        File::open(&file).unwrap().set_times(times).unwrap();
        fs::metadata(&file).unwrap().ino()
    };
    let inode = make("first");
    world.backup();
    fs::remove_file(&file).unwrap();
    assert_eq!(make("other"), inode, "the filesystem gives it again");
    let next = world.backup();
    assert_eq!(next["kind"], "incremental", "{next}");
    let cat = world.pitr(&["files", "cat", "up", "file"]).run();
    assert_eq!(cat.success().stdout, "other");
}

/// A file is written again and again at its length and with its time set back, up to the moment in which a backup ends and beyond it.
#[test]
fn u12_a_change_in_the_instant_of_a_backup_is_in_the_next_one() {
    let world = World::on_disk("");
    let file = world.source().join("file");
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::write(&file, "        ").unwrap();
    let backup = || {
        let backup = world.pitr(&["files", "backup", "up", "--json"]);
        // The length that the product has.
        backup.env("PITR_FAULT_SECONDS", "36").run()
    };
    backup().success();
    let mut random = Random::new(3);
    for round in 0..8 {
        let is_over = AtomicBool::new(false);
        let last = std::thread::scope(|threads| {
            let writer = threads.spawn(|| {
                let file = File::options().write(true).open(&file).unwrap();
                let mut n = round * 1_000_000;
                while !is_over.load(Ordering::Relaxed) {
                    n += 1;
                    file.write_all_at(format!("{n:>8}").as_bytes(), 0).unwrap();
                    let times = fs::FileTimes::new().set_modified(old);
                    file.set_times(times).unwrap();
                }
                n
            });
            let run = backup();
            assert!([0, 6].contains(&run.code()), "{run}");
            std::thread::sleep(Duration::from_micros(random.below(3000) as u64));
            is_over.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        backup().success();
        let cat = world.pitr(&["files", "cat", "up", "file"]).run();
        assert_eq!(cat.success().stdout, format!("{last:>8}"));
    }
}

#[test]
fn u04_other_sources_meet_a_full_repository_and_a_full_cache() {
    require_mounts!("u04_other_sources_meet_a_full_repository_and_a_full_cache");
    let roots = |world: &World| {
        let info = world.pitr(&["info", "--json"]).run().json();
        let scopes = info["scopes"].as_array().cloned().unwrap_or_default();
        let all = scopes
            .iter()
            .map(|s| s["backups"].as_array().unwrap().len());
        all.sum::<usize>()
    };
    let disk = SmallDisk::new(16, 2000);
    let room = 16 << 20;
    let world = World::on(&disk.path().join("repo"));
    let origin = path_text(&world.source());
    let mut noise = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(world.source().join("large"), noise).unwrap();
    let script = "git init --quiet --initial-branch main . && git -c safe.directory=* add large && git -c safe.directory=* -c user.name=t -c user.email=t@t commit --quiet --message one";
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(world.source())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let command = "command = [\"head\", \"-c\", \"4000000\", \"/dev/urandom\"]\n";
    let mut world = world;
    for (source, more) in [
        ("command", command),
        (&format!("git:{origin}"), "identity = \"git\"\n"),
    ] {
        world = world.with_source(source, more);
        let before = roots(&world);
        disk.leave_free(1 << 20);
        let backup = ["files", "backup", "up", "--confirm"];
        let run = world.pitr(&backup).run();
        run.expect_code(1).expect_stderr("No space left on device");
        assert_eq!(roots(&world), before, "{source}");
        disk.leave_free(room);
        world.pitr(&backup).succeed();
        assert_eq!(roots(&world), before + 1, "{source}");
        world.pitr(&["verify"]).succeed();
    }
    // The mirror lies in the cache, which has to be the user's: a disk that root mounts is root's.
    if !world.is_root {
        crate::skip!("u04_a_full_cache", "needs root");
    }
    let place = world.cache.path();
    let _cache = DiskOver::mount(place);
    let before = roots(&world);
    let backup = world.pitr(&["files", "backup", "up"]);
    let run = backup.env("XDG_CACHE_HOME", path_text(place)).run();
    run.expect_code(1).expect_stderr("Nothing was stored");
    assert_eq!(roots(&world), before);
}

#[test]
fn a_host_that_only_writes_takes_full_backups_which_others_restore() {
    let world = World::sealed();
    let with_key = fs::read_to_string(&world.config).unwrap();
    let without = with_key.lines().filter(|l| !l.starts_with("key_file"));
    let without = without.collect::<Vec<_>>().join("\n");
    let mut taken = Vec::new();
    for content in ["first", "second"] {
        fs::write(world.source().join("file"), content).unwrap();
        fs::write(&world.config, &without).unwrap();
        let backup = world.backup();
        assert_eq!(backup["kind"], "full", "{backup}");
        let to = path_text(&world.sandbox.join("own"));
        let restore = ["files", "restore", "up", "--to", &to];
        assert!(
            !world.pitr(&restore).run().is_success(),
            "no key, no content"
        );
        fs::write(&world.config, &with_key).unwrap();
        taken.push((backup, describe(&world.source())));
    }
    for (backup, expected) in &taken {
        world.gives(id(backup), expected, "by a reader");
    }
}

#[test]
fn u06_two_backups_at_once_are_both_whole() {
    let world = World::new("");
    fill(&world.source(), 500, 0);
    let is = describe(&world.source());
    for _ in 0..3 {
        let begin = || world.pitr(&["files", "backup", "up", "--json"]).spawn();
        let (one, two) = (begin(), begin());
        for running in [one, two] {
            let backup = running.wait().success().json();
            world.gives(id(&backup), &is, "beside another one");
        }
    }
}

#[test]
fn u07_another_host_is_refused_until_the_operator_confirms() {
    let world = World::new("identity = \"first\"\n");
    fs::write(world.source().join("x"), "first").unwrap();
    let first = world.backup();
    edit(&world.config, "\"first\"", "\"second\"");
    let run = world.pitr(&["files", "backup", "up"]).run();
    run.expect_code(8)
        .expect_stderr("goes on under its name with --confirm");
    let run = world
        .pitr(&["files", "backup", "up", "--confirm", "--json"])
        .run();
    let second = run.success().json();
    // It builds on nothing of the other host's.
    assert_eq!(second["kind"], "full", "{second}");
    world.gives(id(&first), &describe(&world.source()), "of the first host");
    edit(&world.config, "\"second\"", "\"first\"");
    world.pitr(&["files", "backup", "up"]).exits(8);
}

#[test]
fn u08_a_source_that_is_not_there_or_empty_is_said() {
    let world = World::new("");
    fs::write(world.source().join("x"), "x").unwrap();
    world.backup();
    fs::remove_file(world.source().join("x")).unwrap();
    let run = world.pitr(&["files", "backup", "up"]).run();
    run.expect_code(6)
        .expect_stderr("is its filesystem mounted?");
    fs::remove_dir(world.source()).unwrap();
    let run = world.pitr(&["files", "backup", "up"]).run();
    let place = path_text(&world.source());
    run.expect_code(1).expect_stderr(&place);
    let info = world.pitr(&["info", "--json"]).run().json();
    let backups = info["scopes"][0]["backups"].as_array().unwrap().len();
    assert_eq!(backups, 2, "{info}");
}

#[test]
fn u10_a_repository_in_the_source_is_refused_until_it_is_left_out() {
    let world = World::new("");
    let (source, above) = (path_text(&world.source()), path_text(world.sandbox.path()));
    edit(&world.config, &source, &above);
    let run = world.pitr(&["files", "backup", "up"]).run();
    run.expect_code(8).expect_stderr("exclude = [\"/repo/\"]");
    append(&world.config, "exclude = [\"/repo/\"]\n");
    let backup = world.backup();
    assert_eq!(backup["excluded_count"], 1, "{backup}");
}

#[test]
fn u11_a_damaged_layer_makes_the_next_backup_a_full_one() {
    let world = World::new("");
    fill(&world.source(), 3000, 0);
    let first = world.backup();
    let layers = world
        .sandbox
        .join("repo/aux/files/up/layers")
        .join(id(&first));
    let layer = fs::read_dir(layers)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = fs::read(&layer).unwrap();
    // In the first block, behind the head.
    bytes[300] ^= 1;
    fs::set_permissions(&layer, Permissions::from_mode(0o600)).unwrap();
    fs::write(&layer, bytes).unwrap();
    let run = world.pitr(&["files", "backup", "up", "--json"]).run();
    let next = run.success().expect_stderr("cannot be built on").json();
    assert_eq!(next["kind"], "full", "{next}");
    world.gives(id(&next), &describe(&world.source()), "after the damage");
}

#[test]
fn a_newer_backup_that_is_damaged_is_passed_over_with_a_warning() {
    let world = World::new("");
    fill(&world.source(), 50, 0);
    fs::write(world.source().join("one"), "first").unwrap();
    let before = describe(&world.source());
    let first = world.backup();
    fill(&world.source(), 50, 1);
    let second = world.backup();
    let repository = world.sandbox.join("repo/aux/files/up/packs");
    let packs = fs::read_dir(repository.join(id(&second))).unwrap();
    packs.for_each(|pack| flip(&pack.unwrap().path()));
    world.pitr(&["verify"]).exits(4);
    for command in [&["files", "cat", "up", "one"][..], &["files", "ls", "up"]] {
        let run = world.pitr(command).succeed();
        run.expect_stderr(id(&second))
            .expect_stderr("is passed over: it is damaged");
    }
    let back = path_text(&world.sandbox.join("back"));
    let restore = ["files", "restore", "up", "--privileged", "--to", &back];
    let run = world.pitr(&restore).succeed();
    run.expect_stderr("is passed over: it is damaged");
    is_same(&describe(Path::new(&back)), &before, "the first");
    // A named backup is taken, and a search reads all of them.
    let named = ["files", "ls", "up", "--backup", id(&first)];
    for command in [&named[..], &["files", "find", "up", "one"]] {
        let run = world.pitr(command).succeed();
        assert!(!run.stderr.contains("passed over"), "{run}");
    }
}

#[test]
fn u104_a_damaged_copy_gives_way_to_a_whole_one_in_another_repository() {
    let world = World::new("");
    fill(&world.source(), 50, 0);
    let before = describe(&world.source());
    let backup = world.backup();
    let two = world.sandbox.join("two");
    let more = format!("\n[repositories.two]\nurl = \"file://{}\"\n", two.display());
    append(&world.config, &more);
    world.pitr(&["init", "--quiet"]).succeed();
    let sync = ["repo", "sync", "--from", "local", "--to", "two"];
    world.pitr(&sync).succeed();
    let packs = world.sandbox.join("repo/aux/files/up/packs");
    let packs = fs::read_dir(packs.join(id(&backup))).unwrap();
    packs.for_each(|pack| flip(&pack.unwrap().path()));
    world.pitr(&["verify", "--repository", "local"]).exits(4);
    for (named, place) in [
        (&["--backup", id(&backup)][..], "named"),
        (&[][..], "newest"),
    ] {
        let back = path_text(&world.sandbox.join(place));
        let restore = ["files", "restore", "up", "--privileged", "--to", &back];
        let run = world.pitr(&restore).args(named).succeed();
        assert!(!run.stderr.contains("is damaged"), "{run}");
        is_same(&describe(Path::new(&back)), &before, place);
    }
}

#[test]
fn u09_a_damaged_pack_is_found_and_nothing_wrong_is_restored() {
    let world = World::new("");
    fill(&world.source(), 50, 0);
    let backup = world.backup();
    let packs = world
        .sandbox
        .join("repo/aux/files/up/packs")
        .join(id(&backup));
    let pack = fs::read_dir(packs).unwrap().next().unwrap().unwrap().path();
    flip(&pack);
    world.pitr(&["verify"]).exits(4);
    let to = path_text(&world.sandbox.join("back"));
    let run = world.pitr(&["files", "restore", "up", "--to", &to]).run();
    run.expect_code(1).expect_stderr("damaged");
    fs::remove_dir_all(&to).unwrap();
    // A backup does not build on what verify found damaged.
    let next = world.backup();
    assert_eq!(next["kind"], "full", "{next}");
    world.gives(id(&next), &describe(&world.source()), "after the damage");
}
