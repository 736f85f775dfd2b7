//! `pitr restore` killed, failed and lied to: nothing half-restored can start, and the same command finishes what was begun.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::common::mount::{DiskOver, PowerDisk, SmallDisk};
use crate::common::{Cluster, Program, Site, fault, majors, user};
use crate::restore::{content, verify_backup};

/// A small cluster: a sweep restores it some hundred times.
struct Small {
    cluster: Cluster,
    site: Site,
    space: PathBuf,
}

impl Small {
    fn new(major: u32) -> Small {
        let (site, cluster) = Site::with_cluster(major);
        let space = cluster.sandbox().dir("space");
        for database in ["template0", "template1"] {
            cluster.sql(&format!("alter database {database} is_template false"));
            cluster.sql(&format!("drop database {database}"));
        }
        cluster.make_tablespace("ts", &space);
        cluster.sql(
            "create table t tablespace ts as select g as a, repeat('x', 100) as b from generate_series(1, 20000) g;
             create table zeros as select 1 as a;
             checkpoint",
        );
        // A file with a hole: an index that was extended and never written.
        site.pitr().words("backup --quiet").succeed();
        cluster.sql("select pg_create_restore_point('here')");
        cluster.archive_now();
        Small {
            cluster,
            site,
            space,
        }
    }

    fn copy(&self) -> PathBuf {
        // In memory: a sweep writes the same files some hundred times.
        self.cluster.sandbox().join("copy")
    }

    /// One thread: system calls are counted by thread.
    fn restore(&self) -> Program {
        self.restore_with(1)
    }

    fn restore_with(&self, jobs: u32) -> Program {
        self.site
            .pitr()
            .words("restore --json --target-name here")
            .args(["--jobs", &jobs.to_string(), "--to"])
            .arg(self.copy().join("data"))
            .arg("--tablespace-mapping")
            .arg(format!(
                "{}={}",
                self.space.display(),
                self.copy().join("space").display()
            ))
    }

    fn clear(&self) {
        let copy = self.copy();
        if copy.exists() {
            std::fs::remove_dir_all(&copy).unwrap();
        }
        self.cluster.sandbox().dir("copy");
    }

    /// Returns the files of an undisturbed restore, without what differs by nature: times.
    fn reference(&self) -> Vec<(String, Vec<u8>)> {
        self.clear();
        self.restore().succeed();
        verify_backup(self.cluster.major(), &self.copy().join("data"));
        self.state()
    }

    fn state(&self) -> Vec<(String, Vec<u8>)> {
        let mut found = content(&self.copy());
        found.retain(|(name, _)| !name.ends_with("pitr.guard") && !name.ends_with("pitr.settings"));
        found
    }

    /// No server starts on what a failed run left, and the next run completes it.
    fn completes(&self, reference: &[(String, Vec<u8>)], what: &str) {
        let data = self.copy().join("data");
        let is_whole = data.join("global/pg_control").exists();
        if is_whole {
            // The last call was past the commit point: nothing is left to do, and it says so.
            assert!(!data.join("pg_wal/pitr.restore").exists(), "{what}");
            self.restore().exits(8);
        } else {
            self.restore().succeed();
        }
        assert!(data.join("pg_wal/pitr.guard").exists(), "{what}");
        assert!(self.state() == reference, "another result: {what}");
    }
}

/// Calls of an undisturbed run that change the target.
fn calls(small: &Small) -> Vec<fault::Call> {
    small.clear();
    let mut names = fault::MUTATING.to_vec();
    names.extend(["syncfs", "openat2"]);
    let (run, calls) = fault::trace(&small.restore(), &names);
    run.success();
    let copy = small.copy();
    // A fault comes to each thread that makes so many calls: one of another thread would be met first.
    let mut made: HashMap<(&str, u32), usize> = HashMap::new();
    for call in &calls {
        made.insert((&call.name, call.pid), call.nth);
    }
    let is_alone = |call: &fault::Call| {
        let others = made.iter().filter(|((name, _), _)| *name == call.name);
        let mut others = others.filter(|((_, pid), _)| *pid != call.pid);
        others.all(|(_, nth)| *nth < call.nth)
    };
    let meant = calls.iter().filter(|c| c.touches(&copy));
    let meant = meant.filter(|c| c.name != "openat2" || c.text.contains("O_CREAT"));
    let alone: Vec<fault::Call> = meant.filter(|c| is_alone(c)).cloned().collect();
    assert!(alone.len() > 100, "{} calls", alone.len());
    alone
}

fn major() -> u32 {
    *majors()
        .iter()
        .find(|m| **m == 15)
        .or(majors().first())
        .unwrap()
}

#[test]
fn t04_killed_at_a_hundred_points_the_same_command_completes_the_restore() {
    crate::require_strace!("t04_killed_at_a_hundred_points_the_same_command_completes_the_restore");
    let small = Small::new(major());
    let reference = small.reference();
    let calls = calls(&small);
    let points: usize = std::env::var("RESTORE_KILLS").map_or(100, |n| n.parse().unwrap());
    let step = (calls.len() / points).max(1);
    // The first and the last calls are where the order of writes is decided.
    let last = calls.len().saturating_sub(15);
    let chosen: Vec<_> = calls
        .iter()
        .enumerate()
        .filter(|(i, _)| *i < 10 || *i >= last || i % step == 0)
        .enumerate()
        .filter(|(n, _)| fault::is_of_turn(*n))
        .map(|(_, point)| point)
        .map(|(_, c)| c)
        .collect();
    println!(
        "{} mutating calls on the target, {} kills",
        calls.len(),
        chosen.len()
    );
    let mut resumed = 0;
    for call in chosen {
        small.clear();
        let (run, fired) = fault::inject(&small.restore(), &call.kill());
        // With several threads strace names the end of each, or of none.
        assert!(
            fired >= 1 || run.code() == 137,
            "the kill did not fire: {}\n{run}",
            call.text
        );
        let data = small.copy().join("data");
        if data.join("pg_wal/pitr.restore").exists() {
            resumed += 1;
            // Another request does not touch it.
            if resumed % 20 == 1 {
                let before = content(&small.copy());
                small
                    .restore()
                    .arg("--adopt")
                    .exits(8)
                    .expect_stdout("another request");
                assert!(content(&small.copy()) == before);
            }
        }
        small.completes(&reference, &call.text);
    }
    assert!(resumed > fault::share(points / 2), "{resumed}");
}

#[test]
fn errors_of_the_target_leave_a_restore_that_can_be_resumed() {
    crate::require_strace!("errors_of_the_target_leave_a_restore_that_can_be_resumed");
    let small = Small::new(major());
    let reference = small.reference();
    let calls = calls(&small);
    let mut names: Vec<&str> = calls.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    println!("calls: {}", names.join(" "));
    for name in names {
        let of: Vec<_> = calls.iter().filter(|c| c.name == name).collect();
        let mut at = vec![0, of.len() / 2, of.len() - 1];
        at.dedup();
        for (call, errno) in at
            .iter()
            .map(|i| of[*i])
            .flat_map(|c| [(c, "EIO"), (c, "ENOSPC")])
        {
            small.clear();
            let (run, fired) = fault::inject(&small.restore(), &call.fail(errno));
            assert!(fired >= 1, "the error did not fire: {}\n{run}", call.text);
            if run.is_success() {
                panic!("{errno} went unnoticed at {}", call.text);
            }
            let run = run.expect_code(1);
            assert!(run.stdout.contains("\"message\""), "{run}");
            small.completes(&reference, &format!("{errno} at {}", call.text));
        }
    }
}

#[test]
fn a_resumed_restore_keeps_its_plan_and_what_is_right_already() {
    crate::require_strace!("a_resumed_restore_keeps_its_plan_and_what_is_right_already");
    let small = Small::new(major());
    small.clear();
    // To the end of the WAL, which moves on meanwhile.
    let restore = small
        .site
        .pitr()
        .restore_to(small.copy().join("data"))
        .words("--json --jobs 1")
        .arg("--tablespace-mapping")
        .arg(format!(
            "{}={}",
            small.space.display(),
            small.copy().join("space").display()
        ));
    let dry = restore.clone().arg("--dry-run").succeed().json();
    let (run, fired) = fault::inject(&restore, &fault::Fault::kill("syncfs"));
    assert!(fired >= 1 || run.code() == 137, "{run}");
    small.cluster.archive_now();
    // One byte of a file is wrong, one file is gone, one is too long.
    let data = small.copy().join("data");
    let path = data.join("PG_VERSION");
    std::fs::write(&path, "99\n").unwrap();
    let files = content(&data.join("base"));
    let (some, bytes) = files.iter().find(|(_, b)| b.len() == 16384).unwrap();
    let mut wrong = bytes.clone();
    wrong[9000] ^= 1;
    std::fs::write(data.join("base").join(some), &wrong).unwrap();
    let run = restore.succeed().json();
    assert_eq!(run["restored"]["resumed"], true);
    let written = run["restored"]["written_bytes"].as_u64().unwrap();
    let size = run["restored"]["size_bytes"].as_u64().unwrap();
    assert!(written > 0 && written < size / 10, "{written} of {size}");
    assert_eq!(run["recovery_settings"], dry["recovery_settings"]);
    verify_backup(small.cluster.major(), &data);

    // A foreign file is not taken along.
    small.clear();
    let (run, fired) = fault::inject(&restore, &fault::Fault::kill("syncfs"));
    assert!(fired >= 1 || run.code() == 137, "{run}");
    std::fs::write(data.join("base/foreign"), "x").unwrap();
    user::own(&data.join("base/foreign"));
    restore.exits(8);
    assert!(!data.join("global/pg_control").exists());
    std::fs::remove_file(data.join("base/foreign")).unwrap();
    restore.succeed();
}

#[test]
fn t05_a_small_disk_is_refused_and_a_full_one_can_be_resumed() {
    // Not in namespaces of its own: root, who owns the folders above, has no name there.
    crate::require_root!("t05_a_small_disk_is_refused_and_a_full_one_can_be_resumed");
    let small = Small::new(major());
    small.clear();
    let disk = SmallDisk::new(8, 10_000);
    let to = disk.path().join("data");
    let restore = |to: &std::path::Path| {
        small
            .site
            .pitr()
            .restore_to(to)
            .arg("--tablespace-mapping")
            .arg(format!(
                "{}={}",
                small.space.display(),
                small.copy().join("space").display()
            ))
    };
    restore(&to).exits(8).expect_stderr("bytes are needed");
    assert!(!to.exists());
    let few = SmallDisk::new(300, 100);
    restore(&few.path().join("data"))
        .exits(8)
        .expect_stderr("files are needed");
    // The root of a filesystem is no data directory.
    restore(few.path()).exits(8).expect_stderr("mounted");
}

#[test]
fn wal_that_recovery_may_keep_beyond_the_room_is_warned_of() {
    let (site, cluster) = Site::with_cluster(major());
    // No disk has that. The server itself never comes to it.
    cluster.sql("alter system set max_wal_size = '1000TB'");
    site.backup();
    cluster.archive_now();
    let conninfo = cluster.conninfo("postgres").replace(" dbname=postgres", "");
    let below = site.sandbox().dir("copies");
    let warning = "(max_wal_size, wal_keep_size)";
    let standby = site
        .pitr()
        .words("standby --primary-conninfo")
        .arg(conninfo);
    let standby = standby.arg("--to").arg(below.join("standby"));
    standby.succeed().expect_stderr(warning);
    // The whole way of a restore is shorter.
    let run = site.pitr().restore_to(below.join("copy")).succeed();
    assert!(!run.stderr.contains(warning), "{run}");
}

#[test]
fn r222_a_filesystem_that_compresses_may_have_room_for_more_than_it_has_bytes() {
    let name = "r222_a_filesystem_that_compresses_may_have_room_for_more_than_it_has_bytes";
    crate::require_root!(name);
    let small = Small::new(major());
    small.clear();
    let disk = SmallDisk::new(6, 20_000);
    let data = disk.path().join("data");
    let restore = small.site.pitr().restore_to(&data);
    let restore = restore.arg("--tablespace-mapping").arg(format!(
        "{}={}",
        small.space.display(),
        small.copy().join("space").display()
    ));
    restore.exits(8).expect_stderr("bytes are needed");
    // It stands for one that compresses, and does not: as with content that cannot be compressed.
    let restore = restore.env("PITR_FAULT_LACKS", "known-room");
    let run = restore.run();
    assert!(run.code() != 0 && run.code() != 8, "{run}");
    run.expect_stderr("only if it compresses them");
    assert!(data.join("pg_wal/pitr.restore").exists());
    assert!(!data.join("global/pg_control").exists());
    disk.leave_free(300 << 20);
    restore.succeed();
    assert!(data.join("global/pg_control").exists());
}

#[test]
fn r209_a_pg_wal_that_is_a_filesystem_of_its_own_has_room_and_is_synced() {
    let name = "r209_a_pg_wal_that_is_a_filesystem_of_its_own_has_room_and_is_synced";
    crate::require_root!(name);
    crate::require_strace!(name);
    let small = Small::new(major());
    small.clear();
    let disk = SmallDisk::new(300, 20_000);
    let data = disk.path().join("data");
    let wal = data.join("pg_wal");
    std::fs::create_dir_all(&wal).unwrap();
    user::own(&data);
    let mounted = DiskOver::mount(&wal);
    user::own(&wal);
    let restore = small.site.pitr().restore_to(&data);
    let restore = restore.arg("--tablespace-mapping").arg(format!(
        "{}={}",
        small.space.display(),
        small.copy().join("space").display()
    ));
    // Row R206: WAL needs room there.
    let refused = restore.exits(8);
    refused.expect_stderr(&format!("\"{}\" is too small", wal.display()));
    drop(mounted);
    let _mounted = DiskOver::mount_of(&wal, 256);
    user::own(&wal);
    let (run, calls) = fault::trace(&restore, &["syncfs"]);
    run.success();
    let of_wal = calls.iter().filter(|call| call.touches(&wal)).count();
    assert!(of_wal > 0, "none of {} calls", calls.len());
}

#[test]
fn t04_after_a_power_cut_a_finished_restore_is_whole_and_an_unfinished_one_is_resumed() {
    let name = "t04_after_a_power_cut_a_finished_restore_is_whole_and_an_unfinished_one_is_resumed";
    crate::require_root!(name);
    crate::require_strace!(name);
    let small = Small::new(major());
    let disk = PowerDisk::new(128);
    let restore = |n: usize| {
        let folder = disk.path().join(n.to_string());
        if !folder.exists() {
            std::fs::create_dir(&folder).unwrap();
            user::own(&folder);
        }
        let program = small
            .site
            .pitr()
            .restore_to(folder.join("data"))
            .words("--json --jobs 1 --target-name here")
            .arg("--tablespace-mapping")
            .arg(format!(
                "{}={}",
                small.space.display(),
                folder.join("space").display()
            ));
        (program, folder)
    };
    let (program, folder) = restore(0);
    program.succeed();
    disk.cut_power();
    verify_backup(small.cluster.major(), &folder.join("data"));
    assert!(folder.join("data/pg_wal/pitr.guard").exists());
    assert!(!folder.join("data/pg_wal/pitr.restore").exists());
    std::fs::remove_dir_all(&folder).unwrap();

    for (n, fault) in [
        fault::Fault::kill("pwrite64").at(40),
        fault::Fault::kill("pwrite64").at(300),
        fault::Fault::kill("syncfs"),
        fault::Fault::kill("renameat2"),
    ]
    .iter()
    .enumerate()
    {
        let (program, folder) = restore(n + 1);
        let (run, _) = fault::inject(&program, fault);
        run.expect_code(137);
        disk.cut_power();
        assert!(!folder.join("data/global/pg_control").exists());
        // The folder itself may be lost: the test made it.
        let (program, folder) = restore(n + 1);
        program.succeed();
        disk.cut_power();
        verify_backup(small.cluster.major(), &folder.join("data"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn memory_does_not_grow_with_threads_beyond_its_ceiling() {
    let small = Small::new(major());
    small.clear();
    let (run, usage) = small.restore_with(8).measure();
    run.success();
    println!(
        "peak with 8 jobs: {} KiB, cpu {:?}",
        usage.peak_memory_bytes / 1024,
        usage.cpu
    );
    assert!(usage.peak_memory_bytes < 100 << 20, "{usage:?}");
}

#[test]
fn adoption_and_the_end_of_recovery_killed_at_every_call_are_completed_by_the_next_run() {
    let name =
        "adoption_and_the_end_of_recovery_killed_at_every_call_are_completed_by_the_next_run";
    crate::require_strace!(name);
    let small = Small::new(major());
    small.clear();
    small.restore().succeed();
    let data = small.copy().join("data");
    // As after recovery.
    std::fs::remove_file(data.join("recovery.signal")).unwrap();
    let names = [
        "postgresql.auto.conf",
        "pg_wal/pitr.guard",
        "pg_wal/pitr.settings",
    ];
    let saved: Vec<Vec<u8>> = names
        .iter()
        .map(|n| std::fs::read(data.join(n)).unwrap())
        .collect();
    let reset = || {
        for (name, bytes) in names.iter().zip(&saved) {
            std::fs::write(data.join(name), bytes).unwrap();
            user::own(&data.join(name));
        }
    };
    let adopt = small.site.pitr();
    let adopt = adopt.words("adopt --confirm --pgdata").arg(&data);
    let ended = small.site.restore().arg("--recovery-ended").dir(&data);
    for (program, guard_goes) in [(adopt, true), (ended, false)] {
        // The first adoption makes folders in the repository that the next ones find.
        reset();
        program.succeed();
        reset();
        let mut calls_traced = fault::MUTATING.to_vec();
        calls_traced.push("openat");
        let (run, calls) = fault::trace(&program, &calls_traced);
        run.success();
        let wanted: Vec<_> = names
            .iter()
            .map(|n| std::fs::read(data.join(n)).ok())
            .collect();
        assert_eq!(wanted[1].is_none(), guard_goes);
        let calls: Vec<_> = calls
            .iter()
            .filter(|c| c.touches(&data) && (c.name != "openat" || c.text.contains("O_CREAT")))
            .collect();
        assert!(calls.len() >= 5, "{calls:?}");
        println!("{} calls", calls.len());
        for call in calls {
            reset();
            let (run, fired) = fault::inject(&program, &call.kill());
            assert!(fired >= 1 || run.code() == 137, "{}", call.text);
            // Never half a file: the server may read it at any moment.
            let text = std::fs::read_to_string(data.join(names[0])).unwrap();
            assert!(text.starts_with("# Do not edit"), "{text}");
            program.succeed();
            let found: Vec<_> = names
                .iter()
                .map(|n| std::fs::read(data.join(n)).ok())
                .collect();
            let text = |all: &[Option<Vec<u8>>]| -> Vec<Option<String>> {
                let text = |b: &Vec<u8>| String::from_utf8_lossy(b).into_owned();
                all.iter().map(|f| f.as_ref().map(text)).collect()
            };
            assert_eq!(text(&found), text(&wanted), "{}", call.text);
        }
    }
    // Whatever happens at the end of recovery, the server goes on.
    reset();
    std::fs::write(data.join(names[2]), "{").unwrap();
    let ended = small.site.restore().arg("--recovery-ended").dir(&data);
    ended.exits(1).expect_stderr("The server goes on");
    ended.clone().words("a b").exits(1);
    ended.arg("--nonsense").exits(1);
}

#[test]
fn a_stopped_restore_releases_its_claim_and_can_be_resumed() {
    crate::require_strace!("a_stopped_restore_releases_its_claim_and_can_be_resumed");
    let small = Small::new(major());
    small.clear();
    let stop = fault::Fault::signal("pwrite64", "SIGTERM").at(100);
    let (run, fired) = fault::inject(&small.restore(), &stop);
    assert!(fired >= 1, "{run}");
    run.expect_code(130).expect_stdout("it resumes");
    let files = small.site.files();
    let count = |kind: &str| files.iter().filter(|f| f.contains(kind)).count();
    assert_eq!(count("-release-"), 2, "the backup's and the restore's");
    assert!(!small.copy().join("data/global/pg_control").exists());
    small.restore().succeed();
}

#[test]
fn damage_is_named_and_what_was_restored_of_it_cannot_start() {
    let small = Small::new(major());
    small.clear();
    let packs: Vec<_> = small
        .site
        .files()
        .into_iter()
        .filter(|f| f.contains("/packs/"))
        .collect();
    let pack = small.site.repository().join(&packs[0]);
    let good = std::fs::read(&pack).unwrap();
    let damage = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&pack, bad).unwrap();
    };
    damage(good.len() / 2);
    let run = small
        .restore()
        .exits(4)
        .expect_stdout("files of the backup are damaged");
    assert!(run.stdout.contains("of pack"), "{run}");
    assert!(!small.copy().join("data/global/pg_control").exists());
    // Healed, it is resumed.
    std::fs::write(&pack, &good).unwrap();
    small.restore().succeed();
    // A map that is damaged is found before the first write.
    small.clear();
    let layers: Vec<_> = small
        .site
        .files()
        .into_iter()
        .filter(|f| f.contains("/layers/"))
        .collect();
    let layer = small.site.repository().join(&layers[0]);
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    small.restore().exits(1).expect_stdout("damaged");
    assert!(!small.copy().join("data").exists());
}

/// A cluster with five archived segments behind its backup, its plan in a cache, and what restores it.
struct Chain {
    site: Site,
    segments: Vec<String>,
}

impl Chain {
    fn new() -> Chain {
        let (site, cluster) = Site::with_cluster(major());
        cluster.sql("create table r (a int)");
        site.pitr().words("backup --quiet").succeed();
        let archived = |n| {
            cluster.sql(&format!("insert into r values ({n})"));
            cluster.archive_now()
        };
        let segments = (0..5).map(archived).collect();
        site.sandbox().dir("cache");
        site.sandbox().dir("copy");
        let chain = Chain { site, segments };
        chain.pitr("plan").succeed();
        chain
    }

    fn pitr(&self, verb: &str) -> Program {
        self.site
            .pitr()
            .args([verb, "--json"])
            .env("XDG_CACHE_HOME", self.site.sandbox().join("cache"))
    }

    fn to(&self) -> PathBuf {
        self.site.sandbox().join("copy/data")
    }

    fn restore(&self) -> Program {
        self.pitr("restore").arg("--to").arg(self.to())
    }

    fn object(&self, at: usize) -> PathBuf {
        self.site.object(&self.segments[at])
    }
}

/// Other bytes at once, of the same time: no look at the file from outside tells.
fn replace(path: &Path, bytes: &[u8]) {
    let modified = path.metadata().unwrap().modified().unwrap();
    std::fs::write(path, bytes).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn t01_a_spoiled_end_of_a_segment_in_the_middle_is_refused_before_one_byte_is_written() {
    let chain = Chain::new();
    let (second, third) = (chain.object(1), chain.object(2));
    let bytes = std::fs::read(&second).unwrap();
    let other = std::fs::read(&third).unwrap();
    let end = bytes.len();
    let spoiled = |from: usize, spoil: fn(&mut u8)| {
        let mut bytes = bytes.clone();
        bytes[from..].iter_mut().for_each(spoil);
        bytes
    };
    let ways = [
        ("cut", bytes[..end - 20].to_vec(), &other),
        ("a flipped bit", spoiled(end - 1, |b| *b ^= 1), &other),
        ("zeros", spoiled(end - 64, |b| *b = 0), &other),
        ("exchanged", other.clone(), &bytes),
    ];
    let files = chain.site.files();
    for (how, of_second, of_third) in &ways {
        replace(&second, of_second);
        replace(&third, of_third);
        let run = chain.restore().arg("--dry-run").exits(5);
        let plan = run.json();
        assert_eq!(plan["reason"], "damaged_wal", "{how}: {run}");
        let explanation = plan["explanation"].as_str().unwrap();
        let named = format!("segment {} cannot be used", chain.segments[1]);
        assert!(explanation.contains(&named), "{how}: {run}");
        chain.restore().exits(5);
        assert!(!chain.to().exists(), "{how}");
        assert_eq!(chain.site.files(), files, "{how}");
        // The cost that the plan prints is true, and pitr does not repeat an answer that it once read from a cache.
        let before = plan["nearest_before"]["lsn"].as_str().unwrap();
        let reached = chain.restore().args(["--dry-run", "--target-lsn", before]);
        reached.succeed();
        chain.pitr("plan").exits(5);

        replace(&second, &bytes);
        replace(&third, &other);
        chain.restore().arg("--dry-run").succeed();
    }
    replace(&second, &ways[2].1);
    let told = chain.site.pitr().arg("restore").arg("--to").arg(chain.to());
    let run = told.exits(5).expect_stderr("--target-lsn");
    assert!(run.stderr.contains("Nothing was written."), "{run}");
    replace(&second, &bytes);
    chain.restore().succeed();
}

#[test]
fn t01_a_restore_that_was_begun_looks_at_its_wal_again() {
    let chain = Chain::new();
    let files = chain.site.files();
    let pack = files.iter().find(|f| f.contains("/packs/")).unwrap();
    let pack = chain.site.repository().join(pack);
    let whole = std::fs::read(&pack).unwrap();
    let mut bad = whole.clone();
    bad[whole.len() / 2] ^= 0x10;
    std::fs::write(&pack, bad).unwrap();
    chain.restore().exits(4);
    std::fs::write(&pack, whole).unwrap();

    let begun = content(&chain.to());
    assert!(begun.iter().any(|(name, _)| name.ends_with("pitr.restore")));
    let middle = chain.object(2);
    let bytes = std::fs::read(&middle).unwrap();
    replace(&middle, &bytes[..bytes.len() - 1]);
    let run = chain.restore().exits(5);
    assert!(run.stdout.contains("is damaged since"), "{run}");
    assert!(content(&chain.to()) == begun, "something was written");
    replace(&middle, &bytes);
    chain.restore().succeed();
}

#[test]
fn t10_a_repository_that_cannot_be_written_is_enough_and_the_missing_claim_is_said() {
    let small = Small::new(major());
    small.clear();
    let ok = |args: &[&str]| {
        let ok = std::process::Command::new("chmod")
            .args(args)
            .arg(small.site.repository())
            .status();
        assert!(ok.unwrap().success());
    };
    small.restore().succeed();
    let events = || {
        let files = small.site.files();
        let count = |kind: &str| files.iter().filter(|f| f.contains(kind)).count();
        (count("-claim-"), count("-release-"))
    };
    let before = events();
    // That of the backup was renewed; both are released.
    assert_eq!((before.0, before.1), (3, 2));
    small.clear();
    ok(&["-R", "a-w"]);
    let run = small.restore().run();
    ok(&["-R", "u+w"]);
    run.success().expect_stderr("cannot be written");
    assert_eq!(events(), before);
}
