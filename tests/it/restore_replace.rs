//! `pitr restore --replace` and `--undo`: a restored cluster takes the place of the old one, and gives it back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::mount::{DiskOver, SmallDisk};
use crate::common::{Cluster, Program, Run, Site, Stop, copy_all, fault, user};
use crate::restore::{AT_END, AT_POINT, Scene, content, rows};
use crate::{per_major, require_mounts, require_strace};

fn replace(site: &Site, data: &Path) -> Program {
    let restore = site.pitr().words("restore --json --replace");
    restore.words("--jobs 1 --target-name here --to").arg(data)
}

fn undo(site: &Site, data: &Path) -> Program {
    let restore = site.pitr().words("restore --json --undo --to");
    restore.arg(data)
}

fn confirmed(program: Program) -> Program {
    program.arg("--confirm")
}

/// The names beside a data directory that pitr made.
fn beside(data: &Path) -> Vec<String> {
    let name = data.file_name().unwrap().to_str().unwrap();
    let entries = fs::read_dir(data.parent().unwrap()).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter_map(|n| Some(n.strip_prefix(name)?.strip_prefix('.')?.to_owned()))
        .collect();
    names.sort();
    names
}

fn aside(json: &Value) -> Vec<PathBuf> {
    let paths = json["replaced"]["aside"].as_array();
    let paths = paths.or_else(|| json["aside"].as_array()).unwrap();
    paths.iter().map(|p| p.as_str().unwrap().into()).collect()
}

fn t20_a_restored_cluster_takes_the_place_and_undo_gives_the_old_one_back(major: u32) {
    let mut scene = Scene::new(major);
    let data = scene.cluster.pgdata().to_owned();
    // The backup does not have this tablespace: recovery makes it again.
    let late = scene.cluster.sandbox().dir("late");
    scene.cluster.make_tablespace("late", &late);
    for step in [
        "create table l tablespace late as select g as a from generate_series(1, 700) g",
        "select pg_create_restore_point('there')",
        "insert into l select g from generate_series(1, 300) g",
        "delete from s where a > 10",
    ] {
        scene.cluster.sql(step);
    }
    scene.cluster.archive_now();
    let there = |program: Program| program.words("--target-name there");
    let replace = || {
        let restore = scene.site.pitr().words("restore --json --replace");
        there(restore.arg("--to").arg(&data))
    };
    // A running server keeps its directory.
    let run = confirmed(replace()).exits(8);
    run.expect_stdout("a server may run in");
    scene.cluster.stop(Stop::Fast);
    let state = |at: &Path| {
        let mut all = content(at);
        all.retain(|(name, _)| !name.starts_with("global/pg_control"));
        all
    };
    let (before, space, of_late) = (state(&data), content(&scene.space), content(&late));
    replace().exits(8).expect_stderr("--confirm");
    replace().arg("--dry-run").succeed();
    assert!(state(&data) == before && beside(&data).is_empty());
    let run = confirmed(replace()).succeed();
    let json = run.json();
    assert_eq!(json["to"], data.to_str().unwrap(), "{run}");
    let moved = aside(&json);
    assert_eq!(moved.len(), 3, "{run}");
    assert!(state(&moved[0]) == before, "{run}");
    // It cannot be started there: its links lead to the other one's tablespaces.
    assert!(!moved[0].join("global/pg_control").exists());
    let names = |at: &Path| content(at).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    for (at, was) in [(&scene.space, &space), (&late, &of_late)] {
        let kept = moved.iter().find(|path| path.starts_with(at)).unwrap();
        let version = kept.file_name().unwrap().to_str().unwrap();
        let was: Vec<_> = was
            .iter()
            .filter_map(|(n, c)| Some((n.strip_prefix(version)?.strip_prefix('/')?, c)))
            .filter(|(n, _)| !n.is_empty())
            .collect();
        let now = content(kept);
        assert_eq!(now.len(), was.len());
        for ((name, bytes), (old, wanted)) in now.iter().zip(was) {
            assert!(name == old && bytes == wanted, "{name}");
        }
        assert!(!names(at).iter().any(|n| n.starts_with("pitr-new")));
    }
    let command = json["replaced"]["undo_command"].as_str().unwrap();
    assert!(command.starts_with("pitr restore --undo --to "), "{run}");
    // The same command finds it done, and restores nothing again.
    let again = confirmed(replace()).succeed();
    assert_eq!(again.json()["complete"], true, "{again}");
    scene.cluster.start();
    scene.cluster.wait_promoted();
    let count =
        |cluster: &Cluster, table: &str| cluster.value(&format!("select count(*) from {table}"));
    assert_eq!(rows(&scene.cluster), AT_END);
    assert_eq!(count(&scene.cluster, "s"), "5000");
    assert_eq!(count(&scene.cluster, "l"), "700");
    scene.cluster.sql("create table since as select 1 as a");
    // The old cluster has its own directory in a tablespace that the new one drops.
    scene.cluster.sql("drop table s");
    scene.cluster.sql("drop tablespace ts");
    confirmed(undo(&scene.site, &data)).exits(8);
    scene.cluster.stop(Stop::Fast);
    // It has accepted writes.
    let run = undo(&scene.site, &data).exits(8);
    assert_eq!(run.json()["accepted_writes"], true, "{run}");
    let next = "Add --confirm and --discard-changes";
    assert!(run.stderr.contains(next), "{run}");
    let run = confirmed(undo(&scene.site, &data)).exits(8);
    run.expect_stdout("--discard-changes");
    let run = confirmed(undo(&scene.site, &data))
        .arg("--discard-changes")
        .succeed();
    assert!(state(&data) == before, "{run}");
    assert!(content(&late).iter().zip(&of_late).count() > 2);
    let kept = aside(&run.json());
    assert!(kept[0].join("PG_VERSION").exists() && !kept[0].join("global/pg_control").exists());
    confirmed(undo(&scene.site, &data)).exits(2);
    scene.cluster.start();
    assert_eq!(rows(&scene.cluster), AT_END);
    assert_eq!(count(&scene.cluster, "s"), "10");
    assert_eq!(count(&scene.cluster, "l"), "1000");
    let since = "select count(*) from pg_class where relname = 'since'";
    assert_eq!(scene.cluster.value(since), "0");
}
per_major!(t20_a_restored_cluster_takes_the_place_and_undo_gives_the_old_one_back, v13 v17 v19);

/// A stopped cluster with a tablespace, where that is wanted, and its backup.
struct Small {
    site: Site,
    cluster: Cluster,
    data: PathBuf,
    space: Option<PathBuf>,
    /// The directory that pg_wal leads to.
    wal: Option<PathBuf>,
}

impl Small {
    fn new(has_space: bool) -> Small {
        let (site, mut cluster) = Site::with_cluster(17);
        let space = has_space.then(|| cluster.sandbox().dir("space"));
        if let Some(space) = &space {
            let location = space.display();
            cluster.sql(&format!("create tablespace ts location '{location}'"));
            cluster.sql(
                "create table s tablespace ts as select g as a from generate_series(1, 900) g",
            );
        }
        cluster.sql("create table t as select g as a from generate_series(1, 2000) g");
        site.pitr().words("backup --quiet").succeed();
        cluster.sql("insert into t select g from generate_series(1, 500) g");
        cluster.sql("select pg_create_restore_point('here')");
        cluster.sql("insert into t select g from generate_series(1, 500) g");
        cluster.archive_now();
        cluster.stop(Stop::Fast);
        let data = cluster.pgdata().to_owned();
        Small {
            site,
            cluster,
            data,
            space,
            wal: None,
        }
    }

    /// One whose pg_wal is a link.
    fn linked() -> Small {
        let small = Small::new(false);
        let wal = small.cluster.sandbox().dir("elsewhere").join("wal");
        link_wal(&small.data, &wal);
        Small {
            wal: Some(wal),
            ..small
        }
    }

    fn replace(&self) -> Program {
        confirmed(replace(&self.site, &self.data))
    }

    fn undo(&self) -> Program {
        confirmed(undo(&self.site, &self.data))
    }

    fn inode(&self) -> Option<u64> {
        fs::symlink_metadata(&self.data).ok().map(|m| m.ino())
    }

    /// Everything in its place that belongs to the cluster.
    fn state(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = content(&self.data);
        if let Some(space) = &self.space {
            let version = |name: &str| name.starts_with("PG_");
            all.extend(content(space).into_iter().filter(|(n, _)| version(n)));
        }
        if let Some(wal) = &self.wal {
            all.extend(content(wal));
        }
        all
    }

    fn is_startable(&self) -> bool {
        self.data.join("global/pg_control").exists()
    }

    /// Removes what was put aside, as an operator would.
    fn clean(&self) {
        for name in beside(&self.data) {
            let path = self.data.with_file_name(format!("data.{name}"));
            let _ = fs::remove_dir_all(path);
        }
        if let Some(wal) = &self.wal {
            for name in beside(wal) {
                fs::remove_dir_all(wal.with_file_name(format!("wal.{name}"))).unwrap();
            }
        }
        let spaces = self.space.iter().flat_map(|at| fs::read_dir(at).unwrap());
        for entry in spaces {
            let path = entry.unwrap().path();
            if path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("pitr-")
            {
                fs::remove_dir_all(path).unwrap();
            }
        }
    }
}

fn link_wal(data: &Path, wal: &Path) {
    fs::rename(data.join("pg_wal"), wal).unwrap();
    symlink(wal, data.join("pg_wal")).unwrap();
    user::own_all(&data.join("pg_wal"));
}

/// The calls by which names are exchanged.
const NAMES: [&str; 8] = [
    "rename",
    "renameat",
    "renameat2",
    "symlinkat",
    "mkdirat",
    "unlink",
    "unlinkat",
    "rmdir",
];

/// Kills a program at every one of its last calls that change names, from the record on. Returns how often the old and the new cluster were in
/// place, and how often none could be started.
fn sweep(small: &Small, kills_undo: bool) -> (u32, u32, u32) {
    let old = small.state();
    let old_inode = small.inode();
    let subject = |small: &Small| {
        if kills_undo {
            small.undo()
        } else {
            small.replace()
        }
    };
    if kills_undo {
        small.replace().succeed();
    }
    let (run, calls) = fault::trace(&subject(small), &NAMES);
    run.success();
    if !kills_undo {
        small.undo().succeed();
    }
    small.clean();
    let parent = format!("<{}>", small.data.parent().unwrap().display());
    let is_record = |call: &fault::Call| call.name == "renameat" && call.text.contains(&parent);
    let first = calls.iter().position(is_record).unwrap();
    let calls = calls.get(first..).unwrap();
    assert!(calls.len() > 3, "{calls:?}");
    let (mut olds, mut news, mut neither) = (0, 0, 0);
    for (n, call) in calls.iter().enumerate() {
        if kills_undo {
            small.replace().succeed();
        }
        let (run, fired) = fault::inject(&subject(small), &call.kill());
        assert!(fired >= 1 || run.code() == 137, "{}\n{run}", call.text);
        match (small.is_startable(), small.inode() == old_inode) {
            (true, true) => {
                assert!(small.state() == old, "{}", call.text);
                olds += 1;
            }
            (true, false) => {
                assert!(
                    small.data.join("pg_wal/pitr.guard").exists(),
                    "{}",
                    call.text
                );
                news += 1;
            }
            (false, _) => neither += 1,
        }
        let has_record = beside(&small.data).contains(&"pitr-replaced".to_owned());
        // Every other time the opposite command is the one that follows.
        let again = match (kills_undo, n % 2 == 0) {
            (false, true) => small.replace(),
            (false, false) | (true, true) => small.undo(),
            (true, false) => small.replace(),
        };
        let run = again.run();
        match (kills_undo, n % 2 == 0) {
            // The undo has to be completed first.
            (true, false) if has_record && run.code() == 8 => {
                run.expect_stdout("was interrupted");
                small.undo().succeed();
            }
            (true, false) => {
                run.success();
                small.undo().succeed();
            }
            _ if !has_record && run.code() == 2 => {}
            _ => {
                run.success();
                if !kills_undo && n % 2 == 0 {
                    assert!(small.is_startable() && small.inode() != old_inode);
                    small.undo().succeed();
                }
            }
        }
        assert_eq!(small.inode(), old_inode, "{}", call.text);
        assert!(small.state() == old, "{}", call.text);
        small.clean();
    }
    println!("{olds} times the old one, {news} times the new one, {neither} times none");
    (olds, news, neither)
}

#[test]
fn t21_killed_while_names_are_exchanged_the_old_or_the_new_is_whole_in_place() {
    require_strace!("t21_killed_while_names_are_exchanged_the_old_or_the_new_is_whole_in_place");
    let small = Small::new(false);
    for kills_undo in [false, true] {
        let (olds, news, neither) = sweep(&small, kills_undo);
        assert!(olds > 0 && news > 0 && neither == 0);
    }
}

#[test]
fn t21_killed_while_tablespaces_change_no_server_starts_on_a_mixture() {
    require_strace!("t21_killed_while_tablespaces_change_no_server_starts_on_a_mixture");
    let small = Small::new(true);
    for kills_undo in [false, true] {
        let (olds, news, neither) = sweep(&small, kills_undo);
        assert!(olds > 0 && news > 0 && neither > 0);
    }
}

#[test]
fn t21_killed_while_a_linked_pg_wal_changes_no_server_starts_on_a_mixture() {
    require_strace!("t21_killed_while_a_linked_pg_wal_changes_no_server_starts_on_a_mixture");
    let small = Small::linked();
    for kills_undo in [false, true] {
        let (olds, news, neither) = sweep(&small, kills_undo);
        assert!(olds > 0 && news > 0 && neither > 0);
    }
}

#[test]
fn t21_killed_while_it_copies_the_old_is_untouched_and_the_same_command_goes_on() {
    let name = "t21_killed_while_it_copies_the_old_is_untouched_and_the_same_command_goes_on";
    require_strace!(name);
    let small = Small::new(true);
    let old = small.state();
    let (run, calls) = fault::trace(&small.replace(), &["pwrite64", "write", "fsync", "syncfs"]);
    run.success();
    small.undo().succeed();
    small.clean();
    let waiting = small.data.with_file_name("data.pitr-new");
    let calls: Vec<_> = calls.iter().filter(|c| c.touches(&waiting)).collect();
    assert!(calls.len() > 20, "{}", calls.len());
    let step = calls.len() / 8;
    for call in calls.iter().step_by(step) {
        let (run, fired) = fault::inject(&small.replace(), &call.kill());
        assert!(fired >= 1 || run.code() == 137, "{}\n{run}", call.text);
        assert!(small.state() == old, "{}", call.text);
        assert!(!is_open_beside(&small), "{}", call.text);
        small.undo().exits(2);
        small.replace().succeed();
        small.undo().succeed();
        assert!(small.state() == old, "{}", call.text);
        small.clean();
    }
}

#[test]
fn t22_what_cannot_be_moved_is_refused_before_anything_is_copied() {
    require_mounts!("t22_what_cannot_be_moved_is_refused_before_anything_is_copied");
    let small = Small::new(true);
    let old = small.state();
    let refused = |say: &str| -> Run {
        let run = small.replace().exits(8);
        let run = run.expect_stdout(say);
        assert!(beside(&small.data).is_empty(), "{run}");
        run
    };
    {
        let _disk = DiskOver::mount(&small.data.join("pg_stat_tmp"));
        refused("a filesystem is mounted on");
    }
    // A data directory that is a filesystem of its own.
    let disk = SmallDisk::new(300, 20_000);
    copy_all(small.data.join("."), disk.path());
    let run = confirmed(replace(&small.site, disk.path())).run();
    run.expect_code(8)
        .expect_stdout("a filesystem is mounted on");
    assert!(beside(disk.path()).is_empty());
    let space = small.space.clone().unwrap();
    let version = fs::read_dir(&space)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    {
        let _disk = DiskOver::mount(&version);
        refused("a filesystem is mounted on");
    }
    let parent = small.data.parent().unwrap();
    let may = |mode| fs::set_permissions(parent, PermissionsExt::from_mode(mode)).unwrap();
    let was = fs::metadata(parent).unwrap().mode();
    may(0o555);
    refused("may not write into");
    may(was & 0o7777);
    let pid = small.data.join("postmaster.pid");
    fs::write(&pid, "1\n").unwrap();
    refused("postmaster.pid is there");
    fs::remove_file(&pid).unwrap();
    let control = small.data.join("global/pg_control");
    let hidden = small.data.join("global/hidden");
    fs::rename(&control, &hidden).unwrap();
    refused("is no data directory");
    fs::rename(&hidden, &control).unwrap();
    let other = Cluster::builder(17).own_identifier().create();
    let run = confirmed(replace(&small.site, other.pgdata())).run();
    let run = run.expect_code(8);
    run.expect_stdout("is a data directory of system identifier");
    assert!(beside(other.pgdata()).is_empty());
    let nowhere = small.data.with_file_name("nowhere");
    let run = confirmed(replace(&small.site, &nowhere)).run();
    run.expect_code(8)
        .expect_stdout("there is nothing to replace");
    assert!(small.state() == old);
}

#[test]
fn t23_a_cluster_that_has_not_been_started_is_taken_away_without_a_question() {
    let small = Small::new(false);
    let old = small.state();
    small.replace().succeed();
    let run = undo(&small.site, &small.data).exits(8);
    assert_eq!(run.json()["accepted_writes"], false, "{run}");
    small.undo().succeed();
    assert!(small.state() == old);
}

#[test]
fn t23_a_cluster_that_still_recovers_has_accepted_no_writes() {
    let mut small = Small::new(false);
    let old = small.state();
    let pause = ["--target-action", "pause"];
    small.replace().args(pause).succeed();
    small.cluster.start();
    small.cluster.wait_log("pausing at the end of recovery");
    small.cluster.stop(Stop::Fast);
    small.undo().succeed();
    assert!(small.state() == old);
}

fn t24_a_pg_wal_that_is_a_link_stays_one(major: u32) {
    let mut scene = Scene::new(major);
    scene.cluster.stop(Stop::Fast);
    let data = scene.cluster.pgdata().to_owned();
    let wal = scene.cluster.sandbox().dir("elsewhere").join("wal");
    link_wal(&data, &wal);
    let old_wal = content(&wal);
    let run = confirmed(replace(&scene.site, &data)).succeed();
    let moved = aside(&run.json());
    let kept = moved.iter().find(|p| p.parent() == wal.parent()).unwrap();
    assert!(content(kept) == old_wal, "{run}");
    assert_eq!(fs::read_link(data.join("pg_wal")).unwrap(), wal);
    assert!(wal.join("pitr.guard").exists());
    scene.cluster.start();
    scene.cluster.wait_promoted();
    assert_eq!(rows(&scene.cluster), AT_POINT);
    scene.cluster.stop(Stop::Fast);
    let run = confirmed(undo(&scene.site, &data)).arg("--discard-changes");
    run.succeed();
    assert!(content(&wal) == old_wal);
    scene.cluster.start();
    assert_eq!(rows(&scene.cluster), AT_END);
}
per_major!(t24_a_pg_wal_that_is_a_link_stays_one, v14 v18);

#[test]
fn t25_a_server_that_is_started_meanwhile_keeps_its_directory() {
    require_strace!("t25_a_server_that_is_started_meanwhile_keeps_its_directory");
    let small = Small::new(false);
    let (old, inode) = (small.state(), small.inode());
    let (run, calls) = fault::trace(&small.replace(), &["renameat2"]);
    run.success();
    small.undo().succeed();
    small.clean();
    let exchange = calls.iter().find(|c| c.text.contains("RENAME_EXCHANGE"));
    let exchange = exchange.expect("the directories are exchanged");
    let stop = fault::Fault::signal("renameat2", "SIGSTOP").at(exchange.nth);
    let pid = small.data.join("postmaster.pid");
    // The signal comes after the call.
    let aside = small.data.with_file_name("data.pitr-new/postmaster.pid");
    let run = fault::pause_at(&small.replace(), &stop, || {
        let at = if small.inode() == inode { &pid } else { &aside };
        fs::write(at, "1\n").unwrap();
        user::own_all(at);
    });
    run.expect_code(8).expect_stdout("a server may run in");
    assert_eq!(small.inode(), inode);
    fs::remove_file(&pid).unwrap();
    assert!(small.state() == old);
    // The same command goes on, and so does an undo.
    small.replace().succeed();
    assert_ne!(small.inode(), inode);
    small.undo().succeed();
    assert!(small.state() == old);
}

#[test]
fn t26_a_filesystem_that_cannot_exchange_names_will_do() {
    require_strace!("t26_a_filesystem_that_cannot_exchange_names_will_do");
    let small = Small::new(true);
    let (old, inode) = (small.state(), small.inode());
    let lacks = fault::Fault::error("renameat2", "EINVAL");
    let (run, fired) = fault::inject(&small.replace(), &lacks);
    assert!(fired > 2, "{run}");
    run.success();
    assert_ne!(small.inode(), inode);
    let (run, fired) = fault::inject(&small.undo(), &lacks);
    assert!(fired > 2, "{run}");
    run.success();
    assert!(small.state() == old);
}

#[test]
fn t27_an_exchange_that_fails_leaves_the_old_one_in_place() {
    require_strace!("t27_an_exchange_that_fails_leaves_the_old_one_in_place");
    let small = Small::new(true);
    let old = small.state();
    let (run, calls) = fault::trace(&small.replace(), &["renameat2"]);
    run.success();
    small.undo().succeed();
    small.clean();
    let exchange = calls.iter().rfind(|c| c.text.contains("RENAME_EXCHANGE"));
    let exchange = exchange.expect("the directories are exchanged");
    let (run, fired) = fault::inject(&small.replace(), &exchange.fail("EACCES"));
    assert!(fired > 0, "{run}");
    assert_ne!(run.code(), 0, "{run}");
    assert!(small.state() == old, "{run}");
    run.expect_stdout("The old cluster is in its place as before");
    // Another request does not take up what waits there.
    let other = small.site.pitr().words("restore --json --replace");
    let other = confirmed(other.words("--target-immediate --to").arg(&small.data));
    other.exits(8).expect_stdout("was interrupted");
    small.replace().succeed();
    small.undo().succeed();
    assert!(small.state() == old);
}

/// Whether a server could be started on the cluster that waits beside the old one.
fn is_open_beside(small: &Small) -> bool {
    let waiting = small.data.with_file_name("data.pitr-new");
    waiting.join("global/pg_control").exists()
}

#[test]
fn t28_no_server_starts_on_a_cluster_that_waits_to_take_the_place() {
    let small = Small::new(true);
    let old = small.state();
    let space = small.space.clone().unwrap();
    let waiting = small.data.with_file_name("data.pitr-new");
    let killed = small.replace().env("PITR_FAULT", "replace-recorded").run();
    assert_ne!(killed.code(), 0, "{killed}");
    // Its links lead into the tablespaces of the old one.
    let links = fs::read_dir(waiting.join("pg_tblspc")).unwrap();
    let mut links = links.map(|link| fs::read_link(link.unwrap().path()).unwrap());
    assert!(links.any(|to| to == space));
    assert!(!is_open_beside(&small) && waiting.join("PG_VERSION").exists());
    assert!(small.state() == old, "{killed}");
    small.undo().succeed();
    small.clean();
    // The old one was started meanwhile, so that nothing is exchanged.
    let pid = small.data.join("postmaster.pid");
    require_strace!("t28_no_server_starts_on_a_cluster_that_waits_to_take_the_place");
    let run = fault::pause(&small.replace(), "syncfs", || {
        fs::write(&pid, "1\n").unwrap();
        user::own_all(&pid);
    });
    run.expect_code(8).expect_stdout("a server may run in");
    assert!(!is_open_beside(&small) && waiting.join("PG_VERSION").exists());
    fs::remove_file(&pid).unwrap();
    // A cluster that an earlier version left open there, and on which a server has run, takes no place.
    let [open, closed] =
        ["pg_control", "pg_control.pitr-closed"].map(|n| waiting.join("global").join(n));
    fs::rename(&closed, &open).unwrap();
    let label = ["backup_label", "backup_label.old"].map(|n| waiting.join(n));
    fs::rename(&label[0], &label[1]).unwrap();
    small
        .replace()
        .exits(8)
        .expect_stdout("a server has run in");
    assert!(small.state() == old);
    fs::rename(&label[1], &label[0]).unwrap();
    small.replace().succeed();
    assert!(small.is_startable());
    small.undo().succeed();
    assert!(small.state() == old);
}

#[test]
fn t29_a_record_of_the_version_before_does_not_prove_that_the_old_cluster_stood_still() {
    let small = Small::new(true);
    let old = small.state();
    let killed = small.replace().env("PITR_FAULT", "replace-recorded").run();
    assert_ne!(killed.code(), 0, "{killed}");
    let path = small.data.with_file_name("data.pitr-replaced");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(
        record
            .as_object_mut()
            .unwrap()
            .remove("old_control")
            .is_some()
    );
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    let run = small.replace().exits(8);
    run.expect_stdout("earlier version").expect_stdout("--undo");
    assert!(small.state() == old);
    small.undo().succeed();
    small.replace().succeed();
    assert!(small.is_startable());
}

#[test]
fn t29_an_old_cluster_that_has_run_since_is_not_replaced_by_what_was_recorded() {
    let mut small = Small::new(true);
    let killed = small.replace().env("PITR_FAULT", "replace-recorded").run();
    assert_ne!(killed.code(), 0, "{killed}");
    small.cluster.start();
    let later = small.cluster.sandbox().dir("later");
    for step in [
        "drop table s".to_owned(),
        "drop tablespace ts".to_owned(),
        format!("create tablespace later location '{}'", later.display()),
        "create table n tablespace later as select 7 as a".to_owned(),
    ] {
        small.cluster.sql(&step);
    }
    small.cluster.archive_now();
    small.cluster.stop(Stop::Fast);
    let (old, inode, of_later) = (small.state(), small.inode(), content(&later));
    let run = small.replace().exits(8);
    run.expect_stdout("has run in").expect_stdout("--undo");
    assert!(small.state() == old && small.inode() == inode);
    // It is given up, although one of the old directories is gone, and the restored one stays.
    let run = small.undo().succeed();
    assert!(small.state() == old && small.inode() == inode, "{run}");
    assert!(content(&later) == of_later);
    assert!(aside(&run.json())[0].join("PG_VERSION").exists(), "{run}");
    small.clean();
    // A new one knows the new tablespace.
    let run = small.replace().succeed();
    assert!(
        aside(&run.json()).iter().any(|at| at.starts_with(&later)),
        "{run}"
    );
    small.undo().succeed();
    assert!(content(&later) == of_later);
    small.cluster.start();
    assert_eq!(small.cluster.value("select a from n"), "7");
}

#[test]
fn t29_an_old_cluster_that_runs_while_the_new_one_is_restored_is_looked_at_again() {
    let name = "t29_an_old_cluster_that_runs_while_the_new_one_is_restored_is_looked_at_again";
    require_strace!(name);
    let mut small = Small::new(false);
    let later = small.cluster.sandbox().dir("later");
    let replace = small.replace();
    let run = fault::pause(&replace, "syncfs", || {
        small.cluster.start();
        let location = later.display();
        small
            .cluster
            .sql(&format!("create tablespace later location '{location}'"));
        small.cluster.archive_now();
        small.cluster.stop(Stop::Fast);
    });
    run.expect_code(8)
        .expect_stdout("while the new cluster was restored");
    let old = small.state();
    assert!(!beside(&small.data).contains(&"pitr-replaced".to_owned()));
    let run = small.replace().succeed();
    assert!(
        aside(&run.json()).iter().any(|at| at.starts_with(&later)),
        "{run}"
    );
    small.undo().succeed();
    assert!(small.state() == old);
}

#[test]
fn t30_an_undo_that_moved_nothing_does_not_take_later_writes_away() {
    let mut small = Small::new(false);
    let old = small.state();
    small.replace().succeed();
    let new = small.inode();
    let killed = small.undo().env("PITR_FAULT", "undo-recorded").run();
    assert_ne!(killed.code(), 0, "{killed}");
    small.replace().exits(8).expect_stdout("was interrupted");
    small.cluster.start();
    small.cluster.wait_promoted();
    small.cluster.sql("create table later as select 1 as a");
    small.cluster.stop(Stop::Fast);
    let run = undo(&small.site, &small.data).exits(8);
    assert_eq!(run.json()["accepted_writes"], true, "{run}");
    small.undo().exits(8).expect_stdout("--discard-changes");
    assert_eq!(small.inode(), new);
    // The undo counts as given up: a further replacement is planned.
    let run = replace(&small.site, &small.data).arg("--dry-run").succeed();
    assert!(!run.stdout.contains("interrupted"), "{run}");
    // One that was allowed goes on without being allowed again.
    let discards = small.undo().arg("--discard-changes");
    discards.clone().env("PITR_FAULT", "undo-recorded").run();
    assert_eq!(small.inode(), new);
    small.undo().succeed();
    assert!(small.state() == old);
}

#[test]
fn t77_a_cluster_recovers_beside_one_that_runs_and_takes_its_place() {
    let (site, mut cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select 1 as a");
    site.backup();
    cluster.sql("select pg_create_restore_point('here')");
    cluster.sql("insert into t values (2)");
    cluster.archive_now();
    let data = cluster.pgdata().to_owned();
    let restore = |args: &str| {
        let restore = site.pitr().args(["restore", "--to"]);
        restore.arg(&data).words(args)
    };
    let initdb = cluster.bin("initdb").unwrap();
    let beside = restore("--aside --target-name here").env("PATH", initdb.parent().unwrap());
    // A socket has no place there, which shows before anything is copied.
    let far = site.sandbox().dir("f".repeat(120));
    beside.clone().env("TMPDIR", far).exits(8);
    beside.clone().words("--target-action pause").exits(2);
    restore("--switch --dry-run").exits(2);
    assert!(!data.with_added_extension("pitr-new").exists());
    let run = beside.succeed();
    let run = run.expect_stdout("pitr restore --switch");
    // A server that is started in that directory is the old one.
    assert!(!run.stdout.contains("pg_ctl"), "{run}");
    let count = "select count(*) from t";
    assert_eq!(cluster.value(count), "2");
    restore("--switch --confirm").exits(8);
    cluster.stop(Stop::Fast);
    let run = restore("--switch --dry-run").succeed();
    run.expect_stdout("would take its place");
    for _ in 0..2 {
        restore("--switch --confirm").succeed();
    }
    cluster.start();
    assert_eq!(cluster.value(count), "1");
    cluster.stop(Stop::Fast);
    // Nothing waits any more, and what took the place has had its day.
    restore("--switch --confirm").exits(2);
}

#[test]
fn t86_a_cluster_recovers_aside_whose_own_archive_mode_is_off() {
    let (site, mut cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select 1 as a");
    // From its next start on a receiver alone would take its WAL.
    cluster.alter_system("archive_mode", "off");
    site.backup();
    cluster.sql("select pg_create_restore_point('here')");
    cluster.sql("insert into t values (2)");
    cluster.archive_now();
    let data = cluster.pgdata().to_owned();
    let restore = |args: &str| {
        let restore = site.pitr().args(["restore", "--to"]);
        restore.arg(&data).words(args)
    };
    let initdb = cluster.bin("initdb").unwrap();
    let beside = restore("--aside --target-name here").env("PATH", initdb.parent().unwrap());
    let undo = restore("--aside --undo --dry-run");
    undo.succeed().expect_stdout("no copy waits");
    beside.succeed();
    undo.succeed().expect_stdout("would be removed");
    let told = undo.arg("--json").succeed().json();
    assert_eq!(told["removed"], false);
    cluster.stop(Stop::Fast);
    restore("--switch --confirm").succeed();
    let run = restore("--undo --dry-run --json").succeed();
    assert_eq!(run.json()["adopted_timeline"], Value::Null, "{run}");
    let adopt = site.pitr().words("adopt --confirm --pgdata");
    adopt.arg(&data).succeed();
    // It was never started, and its timeline is the cluster's all the same.
    let run = restore("--undo --confirm").succeed();
    run.expect_stdout("its timeline 2 may be archived")
        .expect_stdout("pitr timeline abandon 2 --reason TEXT");
    cluster.start();
    assert_eq!(cluster.value("select count(*) from t"), "2");
}

#[test]
fn t31_a_tablespace_that_the_new_cluster_made_is_put_aside_with_it() {
    let (site, mut cluster) = Site::with_cluster(17);
    let made = cluster.sandbox().dir("made");
    cluster.sql("create table t as select g as a from generate_series(1, 2000) g");
    site.pitr().words("backup --quiet").succeed();
    cluster.make_tablespace("x", &made);
    cluster.sql("create table m tablespace x as select g as a from generate_series(1, 50) g");
    cluster.sql("select pg_create_restore_point('here')");
    cluster.sql("drop table m");
    cluster.sql("drop tablespace x");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    let data = cluster.pgdata().to_owned();
    let entries = || {
        let names = fs::read_dir(&made).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    assert_eq!(entries().len(), 0);
    for turn in ["first", "second"] {
        confirmed(replace(&site, &data)).succeed();
        cluster.start();
        cluster.wait_promoted();
        assert_eq!(cluster.value("select count(*) from m"), "50");
        cluster.sql("insert into m select 1");
        cluster.stop(Stop::Fast);
        let run = confirmed(undo(&site, &data)).arg("--discard-changes");
        let run = run.succeed();
        let kept = aside(&run.json());
        let kept = kept.iter().find(|at| at.starts_with(&made)).unwrap();
        assert!(content(kept).len() > 1, "{turn}\n{run}");
        assert!(
            entries().iter().all(|n| n.starts_with("pitr-undone-")),
            "{run}"
        );
    }
    assert_eq!(entries().len(), 2);
}

#[test]
fn t32_a_pg_wal_in_the_data_directory_is_refused() {
    let small = Small::new(false);
    link_wal(&small.data, &small.data.join("xlog"));
    let old = small.state();
    let run = small.replace().exits(8);
    run.expect_stdout("lies in");
    assert!(beside(&small.data).is_empty());
    assert!(small.state() == old);
}

#[test]
fn t33_the_last_commits_of_a_crashed_cluster_are_said_to_be_missing() {
    let mut small = Small::new(false);
    let say = "was not shut down cleanly";
    let run = replace(&small.site, &small.data).arg("--dry-run").run();
    let run = run.success();
    assert!(!run.stderr.contains(say), "{run}");
    small.cluster.start();
    small.cluster.sql("insert into t select 1");
    small.cluster.stop(Stop::Immediate);
    let run = replace(&small.site, &small.data).arg("--dry-run").run();
    run.success()
        .expect_stderr(say)
        .expect_stderr("pitr wal backfill --from");
    // Nothing is proposed that needs what is gone.
    std::fs::remove_dir_all(small.data.join("pg_wal")).unwrap();
    let run = replace(&small.site, &small.data).arg("--dry-run").run();
    let run = run.success().expect_stderr("its pg_wal is gone");
    assert!(!run.stderr.contains("backfill"), "{run}");
}
