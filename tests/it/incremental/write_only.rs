//! Hosts that write into an encrypted repository and cannot read it back: incrementals by what they keep themselves.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::{World, check_equal, truth};
use crate::backup_faults::damage;
use crate::common::fault::{self, Fault};
use crate::common::mount::SmallDisk;
use crate::common::s3::Fault as Answer;
use crate::common::s3::peer::Peer;
use crate::common::user::own_all;
use crate::common::{
    Cluster, PATIENCE, Run, Sandbox, Site, copy_tree, paths_below, pitr, pitr_archive,
};
use crate::restore::verify_backup;
use crate::s3_cycle::Bucketed;
use crate::sealed::{Sealed, keygen};
use crate::{per_major, require_mounts};

/// A host that only writes, beside a reader of its repository.
struct Host {
    world: World,
    sealed: Sealed,
    state: PathBuf,
}

impl Host {
    fn new(major: u32) -> Host {
        Host::of(major, None, "")
    }

    /// A host whose state lies in this place, and whose archive_command begins so.
    fn of(major: u32, state: Option<PathBuf>, prefix: &str) -> Host {
        let builder = Cluster::small(major);
        let mut cluster = builder.config("autovacuum", "off").create();
        let sealed = Sealed::new(&cluster);
        let state = state.unwrap_or_else(|| sealed.sandbox.dir("host").join("state"));
        let keys = format!(
            "key_set = \"{}\"\nstate_dir = \"{}\"",
            sealed.key("writer"),
            state.display()
        );
        sealed.configure(&cluster, "writer", &keys);
        let archive = pitr_archive().arg("--config").arg(sealed.config("writer"));
        cluster.append_config("archive_mode", "on");
        let command = format!("{prefix}{}", archive.arg("%p").shell());
        cluster.append_config("archive_command", &command);
        cluster.start();
        let site = Site::new(&cluster);
        Host {
            world: World::around(site, cluster),
            sealed,
            state,
        }
    }

    fn take(&self, host: &str, args: &[&str]) -> Run {
        let backup = self.sealed.on(host).words("backup --json");
        backup.args(args.iter().copied()).run()
    }

    fn incremental(&self, method: &str) -> Run {
        self.take("writer", &["--incremental", "--method", method])
            .success()
    }

    /// Changes pages, and makes and drops relations, by records of at most some pages: the pieces of larger ones are in
    /// no index where they cross a border of segments.
    fn change(&self, round: u32) {
        let client = self.world.cluster.client();
        client.sql(&format!(
            "update t set b = b || 'x', d = point(a, {round}) where a % 40 = {round};
             delete from t where a % 41 = {round};
             delete from cut where a > 30000 / ({round} + 1);
             truncate emptied;
             insert into emptied select generate_series(1, 10 * {round});
             create table made_{round} as select g as a, md5(g::text) as b from generate_series(1, 3000) g;
             drop table if exists dropped;
             select setval('q', 100 * {round})"
        ));
        client.sql("vacuum cut");
        client.sql("insert into cut select -g from generate_series(1, 2000) g");
        client.sql(&format!("create database copy_{round} template other"));
    }

    /// Files of the state whose path has this part.
    fn kept(&self, part: &str) -> Vec<PathBuf> {
        let mut files = paths_below(&self.state);
        files.retain(|path| path.display().to_string().contains(part));
        files
    }

    fn forget(&self, part: &str) {
        let files = self.kept(part);
        assert!(!files.is_empty(), "nothing is kept of {part}");
        for path in files {
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Restores a backup where a reader's key is, and starts a server on it.
    fn restored(&self, id: &str, name: &str) -> Cluster {
        self.sealed.sandbox.dir(name);
        let to = self.sealed.sandbox.join(format!("{name}/data"));
        let space = self.sealed.sandbox.join(format!("{name}/space"));
        let mapping = format!("{}={}", self.world.space.display(), space.display());
        let restore = self
            .sealed
            .on("reader")
            .args(["restore", "--backup", id, "--to"]);
        let restore = restore.arg(&to).args(["--tablespace-mapping", &mapping]);
        restore.succeed();
        verify_backup(self.world.cluster.major(), &to);
        let copy = Cluster::open(self.world.cluster.major(), &to).without_fsync();
        copy.promoted()
    }

    /// Requires that an incremental gives what a full backup of the same moment gives, page by page; returns that one.
    fn check(&self, id: &str, name: &str) -> Run {
        let full = self.take("reader", &["--full", "--method", "local"]);
        let full = full.success();
        // Queries prune pages: both copies have to replay that.
        let expected = self.world.truth();
        self.world.cluster.archive_now();
        let one = self.restored(id, &format!("{name}-incremental"));
        let two = self.restored(&full.id(), &format!("{name}-full"));
        check_equal(&self.world, (one, two), true, &expected);
        full
    }
}

/// Requires a kind, and a reason on standard error.
fn is(run: &Run, kind: &str, reason: &str) {
    assert_eq!(run.json()["kind"], kind, "{run}");
    assert!(run.stderr.contains(reason), "{reason}: {run}");
}

fn without_block_references_every_page_is_compared(major: u32) {
    let host = Host::new(major);
    let first = host.incremental("local");
    is(&first, "full", "has no backup of this cluster");
    host.world.churn(1);
    host.forget("/wal/");
    let second = host.incremental("local");
    is(&second, "incremental", "every page is read and compared");
    is(&second, "incremental", "this host keeps nothing of object");
    host.sealed.on("reader").arg("verify").succeed();
    let full = host.check(&second.id(), "scan");
    let stored = |run: &Run| run.json()["stored_bytes"].as_u64().unwrap();
    assert!(stored(&second) < stored(&full), "{second}{full}");
}
per_major!(without_block_references_every_page_is_compared, v14 v16 v18);

fn block_references_of_what_this_host_archived_tell_what_changed(major: u32) {
    let host = Host::new(major);
    let first = host.take("writer", &["--full"]).success();
    host.change(1);
    host.world.cluster.archive_now();
    let second = host.incremental("local");
    is(&second, "incremental", "");
    assert!(!second.stderr.contains("every page is read"), "{second}");
    assert_eq!(second.json()["prior"], first.json()["id"]);
    host.change(2);
    // Upon an incremental, and over the network: each page is compared.
    let third = host.incremental("stream");
    is(&third, "incremental", "every page is compared");
    host.world.cluster.sql("insert into s values (-1)");
    let last = host.incremental("local");
    is(&last, "incremental", "");
    assert!(!last.stderr.contains("every page is read"), "{last}");
    assert_eq!(last.json()["prior"], third.json()["id"]);
    host.sealed.on("reader").arg("verify").succeed();
    // Earlier backups alone needed more than that.
    let manifests = host.kept("/manifest");
    assert_eq!(manifests.len(), 1, "{manifests:?}");
    host.check(&last.id(), "wal");
}
per_major!(block_references_of_what_this_host_archived_tell_what_changed, v13 v15 v17 v19);

/// Block references take too much room: all of them go, also in the middle of an interval, and every page is compared.
#[test]
fn b19_block_references_beyond_their_limit_are_forgotten() {
    let host = Host::of(18, None, "PITR_FAULT_LIMIT=40000 ");
    host.take("writer", &["--full", "--method", "local"])
        .success();
    for round in 1..=3 {
        host.change(round);
        host.world.cluster.archive_now();
    }
    let archived = paths_below(&host.sealed.folder("wal"));
    let archived = archived.iter().filter(|path| path.is_file()).count();
    let kept = host.kept("/wal/");
    let is_file = |path: &&PathBuf| path.is_file();
    let (files, bytes) = kept.iter().filter(is_file).fold((0, 0), |(n, sum), path| {
        (n + 1, sum + path.metadata().unwrap().len())
    });
    assert!(files < archived, "{files} of {archived}");
    // One more is written after the others have gone.
    assert!(bytes < 40_000 + (128 << 10), "{bytes}");
    let second = host.incremental("local");
    is(&second, "incremental", "every page is read and compared");
    is(&second, "incremental", "this host keeps nothing of object");
    host.check(&second.id(), "forgotten");
}

/// Every kind of file: lost, with a bit flipped, cut, put back from before, and of another host.
#[test]
fn b19_state_that_is_not_whole_makes_a_scan_or_a_full_backup() {
    let host = Host::new(17);
    let cluster = &host.world.cluster;
    host.take("writer", &["--full", "--method", "local"])
        .success();
    let early = host.sealed.sandbox.join("early");
    copy_tree(&host.state, &early);
    cluster.sql("insert into s values (-1)");
    cluster.archive_now();
    let change = |part: &str, how: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let path = host.kept(part).remove(0);
        let bytes = how(std::fs::read(&path).unwrap());
        std::fs::write(path, bytes).unwrap();
    };
    let flip = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        bytes
    };
    change("/wal/", &flip);
    is(&host.incremental("local"), "incremental", "is damaged");
    // The reason is that of the newest backup, and ids of one second have no order.
    let next = || {
        std::thread::sleep(Duration::from_secs(1));
        host.incremental("local")
    };
    for part in ["/manifest", "/layers/", "/packs/"] {
        change(part, &flip);
        is(&next(), "full", "is damaged");
        change(part, &|mut bytes| {
            bytes.truncate(bytes.len() / 2);
            bytes
        });
        is(&next(), "full", "is damaged");
        host.forget(part);
        is(&next(), "full", "keeps nothing of object");
        is(&host.incremental("local"), "incremental", "");
    }
    // The state of the first backup: that still is one, and no file tells of a later one.
    std::fs::remove_dir_all(&host.state).unwrap();
    copy_tree(&early, &host.state);
    own_all(&host.state);
    let upon = host.incremental("local");
    is(&upon, "incremental", "every page is read and compared");
    host.check(&upon.id(), "rolled-back");

    // The state of another host of the cluster is of its own objects.
    std::fs::remove_dir_all(&host.state).unwrap();
    is(
        &host.incremental("local"),
        "full",
        "keeps nothing of object",
    );
    std::fs::write(host.kept("host.key").remove(0), "0".repeat(128)).unwrap();
    is(&host.incremental("local"), "full", "is damaged");
}

/// The backup is taken all the same; the next one finds nothing to build on.
#[test]
fn b20_a_state_directory_that_takes_nothing_fails_no_backup() {
    let host = Host::new(17);
    host.take("writer", &["--full", "--method", "local"])
        .success();
    host.world.churn(1);
    let close = |mode| {
        let folders = ["backups", "layers", "packs"].map(|part| {
            let file = host.kept(&format!("/{part}/")).remove(0);
            file.ancestors()
                .find(|p| p.ends_with(part))
                .unwrap()
                .to_owned()
        });
        for folder in folders {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    close(0o500);
    let run = host.incremental("local");
    is(&run, "incremental", "no incremental can build upon backup");
    close(0o700);
    host.check(&run.id(), "closed");
    // The state of the backup before is whole.
    is(&host.incremental("local"), "incremental", "");
}

/// The filesystem of the state has no room left: WAL is archived and the backup is taken; there is none to build upon, but the one before.
#[test]
fn b20_a_full_disk_under_the_state_fails_neither_archiving_nor_backups() {
    require_mounts!("b20_a_full_disk_under_the_state_fails_neither_archiving_nor_backups");
    let disk = SmallDisk::new(8, 4096);
    let host = Host::of(17, Some(disk.path().join("state")), "");
    let first = host
        .take("writer", &["--full", "--method", "local"])
        .success();
    let filler = disk.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let full = loop {
        match file.write_all(&[1; 4096]) {
            Ok(()) => {}
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    host.change(1);
    host.world.cluster.archive_now();
    let second = host.incremental("local");
    is(
        &second,
        "incremental",
        "no incremental can build upon backup",
    );
    is(&second, "incremental", "every page is read and compared");
    assert_eq!(second.json()["prior"], first.json()["id"]);
    host.check(&second.id(), "full-disk");
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    let third = host.incremental("local");
    is(&third, "incremental", "");
    assert_eq!(third.json()["prior"], first.json()["id"]);
    assert!(!third.stderr.contains("can build upon"), "{third}");
    let fourth = host.incremental("local");
    assert_eq!(
        fourth.json()["prior"],
        third.json()["id"],
        "{third}{fourth}"
    );
    host.check(&fourth.id(), "room-again");
}

/// A janitor without keys took the prior away, and a second host took a backup that this one cannot read.
#[test]
fn b21_priors_that_are_gone_or_anothers_are_passed_over() {
    let host = Host::new(17);
    let first = host
        .take("writer", &["--full", "--method", "local"])
        .success()
        .id();
    let text = std::fs::read_to_string(host.sealed.config("writer")).unwrap();
    let other = text.replace("host/state", "host/other");
    assert_ne!(text, other);
    host.sealed.sandbox.file("other.toml", other);
    let second = host
        .take("other", &["--incremental", "--method", "local"])
        .success();
    is(&second, "full", "this host keeps nothing of object");
    // The first host builds on its own.
    let third = host.incremental("local");
    is(&third, "incremental", "");
    assert_eq!(third.json()["prior"], first.as_str());
    host.check(&third.id(), "two-hosts");
    let backups = host.sealed.folder("backups");
    std::fs::remove_file(backups.join(third.id()).join("manifest")).unwrap();
    is(
        &host.incremental("local"),
        "full",
        "this host keeps nothing of object",
    );
    // A pack of the prior that is not there any more.
    host.incremental("local");
    let pack = paths_below(&host.sealed.folder("packs")).pop().unwrap();
    std::fs::remove_file(pack).unwrap();
    is(&host.incremental("local"), "full", "is missing or damaged");
}

#[test]
fn b22_a_backup_that_is_killed_leaves_state_that_serves() {
    let host = Host::new(17);
    host.take("writer", &["--full", "--method", "local"])
        .success();
    let program = host
        .sealed
        .on("writer")
        .words("backup --incremental --method local");
    // Each file of the state, and each object of the backup, is one of these.
    for (call, times) in [("renameat", 2), ("linkat", 4)] {
        for at in 1..=times {
            host.world.cluster.sql("insert into s values (-1)");
            let (_, fired) = fault::inject(&program, &Fault::kill(call).at(at));
            assert!(fired > 0, "{call} {at}");
            let next = host.incremental("local");
            is(&next, "incremental", "");
        }
    }
    let last = host.incremental("local");
    host.check(&last.id(), "killed");
}

/// Names of objects can be listed, and events be read; of backups nothing can.
#[test]
fn b23_credentials_that_may_not_read_backups_do_with_what_the_host_kept() {
    let builder = Cluster::small(17);
    let mut cluster = builder.config("autovacuum", "off").create();
    let folder = Sandbox::new("write-only");
    let (keys, state) = (folder.join("keys"), folder.dir("host").join("state"));
    keygen(&keys, &["ops", "escrow"]).succeed();
    let encryption = |line: &str| format!("[repositories.store.encryption]\n{line}\n");
    let key = |name: &str| keys.join(name).display().to_string();
    let writes = format!(
        "key_set = \"{}\"\nstate_dir = \"{}\"",
        key("writer.key"),
        state.display()
    );
    let site = Bucketed::new(&cluster, Peer::own(), &encryption(&writes));
    site.attach(&cluster);
    cluster.start();
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 20000) g");
    let take = || {
        let backup = site.pitr().words("backup --json --incremental");
        backup.words("--method local").succeed()
    };
    is(&take(), "full", "has no backup");
    let identifier = cluster.value("select system_identifier from pg_control_system()");
    let server = site.peer.server();
    let mut denied = Vec::new();
    for part in ["backups", "layers", "packs"] {
        for verb in ["GET", "HEAD"] {
            let line = format!(
                "{verb} /{}/pg/clusters/main/{identifier}/{part}/",
                site.peer.bucket
            );
            denied.push(server.fault(&line, u64::MAX, Answer::Error(403, "AccessDenied")));
        }
    }
    for round in 0..2 {
        cluster.sql(&format!(
            "update t set b = b || 'x' where a % 100 = {round}"
        ));
        let run = take();
        is(&run, "incremental", "");
        assert!(!run.stderr.contains("every page is read"), "{run}");
    }
    assert!(denied.iter().any(|fired| fired.times() > 0));
    // Nothing shows what the newest backup is by now.
    std::fs::remove_dir_all(&state).unwrap();
    is(&take(), "full", "this host keeps nothing of object");
    cluster.sql("update t set b = b || 'y' where a % 100 = 7");
    let last = take();
    is(&last, "incremental", "");
    cluster.archive_now();
    server.heal();
    let text = std::fs::read_to_string(&site.config).unwrap();
    let reads = format!("key_file = \"{}\"", key("ops.key"));
    let reader = site
        .sandbox
        .file("reader.toml", text.replace(&writes, &reads));
    let on_reader = || pitr().arg("--config").arg(&reader);
    on_reader().arg("verify").succeed();
    let to = site.sandbox.dir("copy").join("data");
    let restore = on_reader().args(["restore", "--backup", &last.id(), "--to"]);
    restore.arg(&to).succeed();
    verify_backup(17, &to);
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), truth(&cluster));
}

/// Listings show what was left, and neither roots nor packs can be read: it is left alone, and hinders no backup.
#[test]
fn b49_credentials_that_may_not_read_take_a_backup_behind_one_that_was_killed() {
    let builder = Cluster::small(17);
    let mut cluster = builder.config("autovacuum", "off").create();
    let folder = Sandbox::new("write-only");
    let keys = folder.join("keys");
    keygen(&keys, &["ops", "escrow"]).succeed();
    let (key, state) = (keys.join("writer.key"), folder.dir("host").join("state"));
    let section = format!(
        "[repositories.store.encryption]\nkey_set = \"{}\"\nstate_dir = \"{}\"\n",
        key.display(),
        state.display()
    );
    let site = Bucketed::new(&cluster, Peer::own(), &section);
    site.attach(&cluster);
    cluster.start();
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 50000) g");
    let backup = || {
        let program = site.pitr().words("backup --json --full --method local");
        program.env("PITR_FAULT_PACK_BYTES", "300000")
    };
    backup().succeed();
    let identifier = cluster.value("select system_identifier from pg_control_system()");
    let server = site.peer.server();
    for part in ["backups", "layers", "packs"] {
        for verb in ["GET", "HEAD"] {
            let place = format!("{}/pg/clusters/main/{identifier}", site.peer.bucket);
            let line = format!("{verb} /{place}/{part}/");
            server.fault(&line, u64::MAX, Answer::Error(403, "AccessDenied"));
        }
    }
    let packs = || {
        let keys = server.keys();
        keys.iter().filter(|key| key.contains("/packs/")).count()
    };
    let before = packs();
    let slow = backup().words("--max-rate 4MiB --jobs 1");
    let mut running = slow.timeout(20 * PATIENCE).spawn();
    running.until("packs are durable", || packs() >= before + 2);
    running.signal(Signal::KILL);
    running.wait();
    let run = backup().succeed();
    assert!(run.stderr.contains("cannot read what it stored"), "{run}");
}

/// Its keys read no WAL. So it says that, and takes no backup after another.
#[test]
fn a_host_that_only_writes_cannot_judge_whether_a_backup_is_needed() {
    let host = Host::new(17);
    let judge = || {
        let program = host.sealed.on("writer").words("backup --if-needed");
        program.env("PITR_CLUSTERS_MAIN_MAX_WAL", "1GiB").run()
    };
    judge()
        .success()
        .expect_stderr("a backup is needed: nothing can be recovered");
    judge()
        .expect_code(1)
        .expect_stderr("Run the command on a host that has a reader's key");
}

/// The server names damaged pages, and this host cannot read them back: the backup is kept and marked, and a reader names the pages.
#[test]
fn c04_a_host_that_cannot_read_keeps_and_marks_a_backup_with_damaged_pages() {
    let mut host = Host::new(16);
    let path = damage(&mut host.world.cluster, &[3, 900]);
    let run = host.take("writer", &["--full", "--method", "stream"]);
    let shown = run
        .expect_code(10)
        .expect_stderr("this host cannot read the backup back")
        .json();
    assert_eq!(
        (&shown["damaged"], &shown["damage_count"]),
        (&true.into(), &0.into())
    );
    let id = shown["id"].as_str().unwrap();
    let verify = host
        .sealed
        .on("reader")
        .args(["verify", "--json", "--backup", id]);
    let run = verify.exits(4);
    for block in [3, 900] {
        let wanted = format!("file \\\"{path}\\\", block {block}, page LSN");
        assert!(run.stdout.contains(&wanted), "{run}");
    }
}
