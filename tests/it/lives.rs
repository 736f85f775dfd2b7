//! Two lives of one cluster: a clone, a machine that was reverted. Their WAL has the same names, and must never be joined.

use std::path::PathBuf;

mod histories;
mod promoted;

use serde_json::Value;

use crate::clock::Clock;
use crate::common::{
    Cluster, Run, Sandbox, Site, Stop, copy_tree, expire_at_once, list_of, paths_below, pitr,
    pitr_archive, str_of, user, wait_until,
};
use crate::per_major;
use crate::resolve::{backups, conflicts, restored};
use crate::ship::spool_of;
use crate::timeline::with_journal;

/// A cluster and its clone, which archive into one repository.
pub struct Lives {
    pub site: Site,
    pub production: Cluster,
    pub clone: Cluster,
    copy: Sandbox,
}

impl Lives {
    /// Makes the clone anew, of what production is now. Both are stopped.
    pub fn copy_again(&mut self) {
        let data = self.copy.join("again");
        copy_tree(self.production.pgdata(), &data);
        user::own_all(&data);
        self.clone = Cluster::open(self.production.major(), &data)
            .without_fsync()
            .create();
    }
}

/// Both stand at the same place of the same segment, stopped.
pub fn lives(major: u32) -> Lives {
    let (site, mut production) = Site::with_cluster(major);
    production.sql("create table t (id int, life text)");
    production.sql("insert into t select g, 'before' from generate_series(1, 100) g");
    production.archive_now();
    production.stop(Stop::Fast);
    let copy = Sandbox::new("clone");
    let data = copy.join("data");
    copy_tree(production.pgdata(), &data);
    user::own_all(&data);
    let clone = Cluster::open(major, &data).without_fsync().create();
    Lives {
        site,
        production,
        clone,
        copy,
    }
}

/// As much WAL as the same call in another life, and other rows.
pub fn write(cluster: &Cluster, life: &str) {
    assert_eq!(life.len(), 4);
    cluster.sql(&format!(
        "insert into t select g, '{life}' from generate_series(1, 100) g"
    ));
}

fn object(site: &Site, name: &str) -> PathBuf {
    site.object(name)
}

/// Row L01, finding A3: the first conflict stops the clone for every later segment, and production goes on.
fn a3_l01_a_clone_is_stopped_at_its_first_conflict_and_production_goes_on(major: u32) {
    for with_worker in [true, false] {
        let mut two = lives(major);
        if with_worker {
            spool_of(&two.site);
        }
        two.production.start();
        write(&two.production, "prod");
        let first = two.production.archive_now();
        // The clone is ahead by many segments when its archiver begins.
        two.clone = Cluster::open(major, two.clone.pgdata())
            .without_fsync()
            .config("archive_command", "false")
            .create();
        two.clone.start();
        let mut ahead = Vec::new();
        for _ in 0..8 {
            write(&two.clone, "fake");
            ahead.push(two.clone.switch_wal());
        }
        assert_eq!(ahead[0], first);
        two.clone.stop(Stop::Fast);
        two.clone = Cluster::open(major, two.clone.pgdata())
            .without_fsync()
            .create();
        two.clone.start();
        two.clone.wait_log("already archived with other content");
        // Once more, now that a worker has been there.
        two.clone
            .wait_log("archive command failed with exit code 20");
        for name in &ahead[1..] {
            assert!(!object(&two.site, name).exists(), "{name} is the clone's");
        }
        for _ in 0..4 {
            write(&two.production, "prod");
            two.production.archive_now();
        }
        let failed = "select failed_count > 0 from pg_stat_archiver";
        wait_until("the clone waits", || two.clone.value(failed) == "t");
        assert_eq!(two.production.value(failed), "f");
        two.clone.stop(Stop::Immediate);
        two.site.pitr().words("verify").succeed();
    }
}
per_major!(a3_l01_a_clone_is_stopped_at_its_first_conflict_and_production_goes_on, v15 v19);

/// A segment whose name is free is refused all the same where the one before is another life's: as much WAL in both, every segment ended by a switch.
fn a1_l02_what_does_not_continue_the_archived_segment_is_refused(major: u32) {
    let mut two = lives(major);
    two.clone.start();
    write(&two.clone, "fake");
    let first = two.clone.archive_now();
    two.clone.stop(Stop::Fast);
    let archive = two.site.archive().arg("%p").shell();
    // Production's first segment is not offered, as if its .ready file had been lost.
    two.production.append_config("archive_command", "true");
    two.production.start();
    write(&two.production, "prod");
    assert_eq!(two.production.archive_now(), first);
    two.production.set("archive_command", &archive);
    write(&two.production, "prod");
    let second = two.production.switch_wal();
    two.production.wait_log("another server wrote it");
    assert!(!object(&two.site, &second).exists());
    two.production.stop(Stop::Immediate);
}
per_major!(a1_l02_what_does_not_continue_the_archived_segment_is_refused, v13 v15 v19);

/// A segment is not stored in the first required repository if the second refuses it, because the segment before is
/// another life's there.
#[test]
fn l02_a_segment_that_one_required_repository_refuses_is_stored_in_none() {
    let mut two = lives(17);
    two.clone.start();
    write(&two.clone, "fake");
    let first = two.clone.archive_now();
    two.clone.stop(Stop::Fast);
    let archive = two.site.archive().arg("%p").shell();
    let there = object(&two.site, &first);
    let second = two.site.add_repository("second", "");
    let moved = second.join(there.strip_prefix(two.site.repository()).unwrap());
    std::fs::create_dir_all(moved.parent().unwrap()).unwrap();
    std::fs::rename(&there, &moved).unwrap();
    user::own_all(&second);
    two.production.append_config("archive_command", "true");
    two.production.start();
    write(&two.production, "prod");
    assert_eq!(two.production.archive_now(), first);
    two.production.set("archive_command", &archive);
    write(&two.production, "prod");
    let next = two.production.switch_wal();
    two.production.wait_log("another server wrote it");
    assert!(!object(&two.site, &next).exists());
    two.production.stop(Stop::Immediate);
}

/// Row L10: a standby that archives what it streams offers the same bytes as its primary, whoever comes first, also across a promotion.
fn l10_a_standby_that_archives_always_is_no_other_life(major: u32) {
    let (site, mut primary) = Site::with_cluster(major);
    primary.sql("create table t (id int, life text)");
    let archive = site.archive().arg("%p").shell();
    let standby = Cluster::builder(major)
        .standby_of(&primary)
        .config("archive_mode", "always")
        .config("archive_command", &archive)
        .config("wal_retrieve_retry_interval", "200ms")
        .start();
    let mut last = String::new();
    for round in 0..6 {
        write(&primary, "prod");
        // Some end by a switch, some are full.
        if round % 2 == 1 {
            primary.sql("insert into t select g, repeat('x', 200) from generate_series(1, 8000) g");
        }
        last = primary.archive_now();
    }
    let status = standby.pgdata().join("pg_wal/archive_status");
    wait_until("the standby has archived it, too", || {
        status.join(format!("{last}.done")).exists()
    });
    let count = primary.value("select count(*) from t");
    wait_until("the standby has it", || {
        standby.value("select count(*) from t") == count
    });
    primary.stop(Stop::Immediate);
    standby.promote();
    for _ in 0..3 {
        write(&standby, "next");
        standby.archive_now();
    }
    assert_eq!(failures(&standby), "0");
    assert!(!site.cluster_folder().join("conflicts").exists());
    let run = site.pitr().words("verify").succeed();
    assert!(!run.stdout.contains("another server"), "{run}");
    let plan = site.pitr().words("wal gaps --json").succeed();
    assert!(!plan.stdout.contains("another server"), "{plan}");
}
per_major!(l10_a_standby_that_archives_always_is_no_other_life, v13 v19);

/// Row L21: the archive has another server's segments. A standby follows its own primary and is promoted with its rows alone; archive recovery
/// is stopped.
fn l21_a_server_is_not_handed_a_segment_that_it_has_otherwise(major: u32) {
    let mut two = lives(major);
    two.production.start();
    for _ in 0..6 {
        write(&two.production, "prod");
        two.production.archive_now();
    }
    two.production.stop(Stop::Fast);
    two.clone.append_config("archive_mode", "off");
    two.clone.start();
    write(&two.clone, "fake");
    let restore = two.site.restore().arg("%f").arg("%p").shell();
    let copy = || {
        Cluster::builder(major)
            .standby_of(&two.clone)
            .config("restore_command", &restore)
            .config("recovery_target_timeline", "current")
            .create()
    };
    let (mut standby, mut recovering) = (copy(), copy());
    standby.start();
    write(&two.clone, "fake");
    wait_until("the standby has what its primary has", || {
        standby.value("select count(*) from t") == "300"
    });
    two.clone.stop(Stop::Immediate);
    standby.promote();
    let lives = "select string_agg(distinct life, ' ' order by life) || count(*) from t";
    assert_eq!(standby.value(lives), "before fake300");
    let said = standby.log();
    assert!(
        said.contains("This server goes on with its own WAL"),
        "{said}"
    );
    standby.stop(Stop::Fast);

    let signal = |name| recovering.pgdata().join(name);
    std::fs::rename(signal("standby.signal"), signal("recovery.signal")).unwrap();
    let stopped = recovering.try_start().unwrap_err();
    assert!(stopped.contains("from 0/"), "{stopped}");
    assert!(stopped.contains("another server wrote it"), "{stopped}");
}
per_major!(l21_a_server_is_not_handed_a_segment_that_it_has_otherwise, v13 v15 v19);

fn failures(cluster: &Cluster) -> String {
    cluster.value("select failed_count from pg_stat_archiver")
}

/// Row L11: pg_resetwal begins WAL that nothing joins to what was before. It is archived, and no plan goes across.
fn l11_what_pg_resetwal_begins_is_archived_and_joined_to_nothing_before(major: u32) {
    let (site, mut cluster) = Site::with_cluster(major);
    cluster.sql("create table t (id int, life text)");
    site.pitr().words("backup --quiet").succeed();
    write(&cluster, "prod");
    let before = cluster.archive_now();
    cluster.stop(Stop::Immediate);
    let reset = cluster.tool("pg_resetwal").arg("-f").arg(cluster.pgdata());
    reset.succeed();
    cluster.start();
    write(&cluster, "next");
    let after = cluster.archive_now();
    assert!(after > before);
    assert_eq!(failures(&cluster), "0");
    let plan = site.pitr().words("plan --json").run();
    let last = plan.json()["segments_needed"]["last"].clone();
    assert!(last.as_str().is_none_or(|last| *last < *after), "{plan}");
    // A backup of now stands on its own.
    site.pitr().words("backup --quiet").succeed();
    let plan = site.pitr().words("plan --json").succeed().json();
    assert_eq!(plan["reachable"], true);
}
per_major!(l11_what_pg_resetwal_begins_is_archived_and_joined_to_nothing_before, v13 v19);

/// Row L01: a receiver without a journal that is let loose on the clone stores nothing behind production's WAL, and tells the clone nothing is safe.
fn l01_l05_a_receiver_begins_at_no_clone_whose_wal_is_not_what_is_archived(major: u32) {
    let mut two = lives(major);
    with_journal(&two.site);
    two.production.start();
    write(&two.production, "prod");
    let first = two.production.archive_now();
    two.clone = Cluster::open(major, two.clone.pgdata())
        .without_fsync()
        .config("archive_command", "false")
        .create();
    two.clone.start();
    write(&two.clone, "fake");
    assert_eq!(two.clone.switch_wal(), first);
    let files = two.site.files();
    // In the middle of the next segment, or before production's end.
    write(&two.clone, "fake");
    receive_of(&two.site, &two.clone)
        .expect_code(8)
        .expect_stderr("server has other WAL than is archived")
        .expect_stderr("pitr wal conflicts");
    assert_eq!(two.site.files(), files);
    // Production is received, and goes on.
    write(&two.production, "prod");
    receive_of(&two.site, &two.production).success();
    two.production.archive_now();
    two.site.pitr().words("verify").succeed();
}
per_major!(l01_l05_a_receiver_begins_at_no_clone_whose_wal_is_not_what_is_archived, v13 v19);

/// Row L50: a required repository that is new says nothing of the server. The others are compared with it, and go on where they end.
fn l50_an_empty_repository_lets_no_clone_in_and_leaves_no_hole_in_the_others(major: u32) {
    let mut two = lives(major);
    with_journal(&two.site);
    two.production.start();
    write(&two.production, "prod");
    let first = two.production.archive_now();
    let second = two.site.add_repository("second", "");
    two.clone = Cluster::open(major, two.clone.pgdata())
        .without_fsync()
        .config("archive_command", "false")
        .create();
    two.clone.start();
    write(&two.clone, "fake");
    assert_eq!(two.clone.switch_wal(), first);
    write(&two.clone, "fake");
    receive_of(&two.site, &two.clone)
        .expect_code(8)
        .expect_stderr("server has other WAL than is archived");
    // The next segments are archived nowhere, and the slot is made behind it.
    two.production.alter_system("archive_command", "true");
    two.production.set("wal_keep_size", "1GB");
    let next: Vec<String> = (0..3)
        .map(|_| {
            write(&two.production, "prod");
            two.production.switch_wal()
        })
        .collect();
    two.production.sql("checkpoint");
    receive_of(&two.site, &two.production).success();
    for name in &next {
        assert!(two.site.object(name).exists(), "{name}");
        let files = paths_below(&second);
        assert!(files.iter().any(|f| f.ends_with(name)), "{name} in second");
    }
    two.site
        .pitr()
        .words("wal gaps --repository local")
        .succeed();
}
per_major!(l50_an_empty_repository_lets_no_clone_in_and_leaves_no_hole_in_the_others, v13 v19);

/// Row L19: a machine was received from, and is reverted to a snapshot. The segment that it writes then does not supersede what was received of the
/// one before; both lives can be had.
fn l04_l19_what_was_received_before_a_machine_was_reverted_is_not_superseded(major: u32) {
    for with_worker in [true, false] {
        let mut two = lives(major);
        with_journal(&two.site);
        if with_worker {
            spool_of(&two.site);
        }
        two.production.start();
        two.site.pitr().words("backup --quiet").succeed();
        two.production.stop(Stop::Fast);
        two.copy_again();
        two.production.start();
        write(&two.production, "prod");
        receive_of(&two.site, &two.production).success();
        let segment = open_segment(&two.production);
        // The disk is gone, and the copy is the machine now.
        two.production.stop(Stop::Immediate);
        two.clone.start();
        write(&two.clone, "back");
        assert_eq!(two.clone.switch_wal(), segment);
        two.clone
            .wait_log("a receiver has archived other content of it");
        assert!(!object(&two.site, &segment).exists());
        assert_eq!(
            restored(&two.site, major, "received", &[]),
            "before 100, prod 100"
        );
        let refused = &conflicts(&two.site)["conflicts"][0];
        let (name, copy) = (refused["name"].as_str(), refused["copy"].as_str());
        assert_eq!(name, Some(segment.as_str()));
        let resolve = two.site.pitr().args(["wal", "resolve", &segment, "--keep"]);
        resolve.arg(copy.unwrap()).arg("--confirm").succeed();
        two.clone.wait_archived(&segment);
        assert_eq!(
            restored(&two.site, major, "reverted", &[]),
            "back 100, before 100"
        );
        let as_stored = restored(&two.site, major, "as-stored", &["--as-stored"]);
        assert_eq!(as_stored, "before 100, prod 100");
        two.site.pitr().words("verify").succeed();
    }
}
per_major!(l04_l19_what_was_received_before_a_machine_was_reverted_is_not_superseded, v13 v19);

/// Row L19: the receiver of a clone was away while production archived the segment in which its journal ends. It does not go on behind that segment.
fn l19_a_receiver_passes_over_no_segment_of_another_server(major: u32) {
    let mut two = lives(major);
    with_journal(&two.site);
    two.clone = Cluster::open(major, two.clone.pgdata())
        .without_fsync()
        .config("archive_command", "false")
        .create();
    two.clone.start();
    write(&two.clone, "fake");
    receive_of(&two.site, &two.clone).success();
    let segment = open_segment(&two.clone);
    // As if the repository had been away: what was received is in the journal alone.
    let increments = two.site.cluster_folder().join("wal/00000001/open");
    std::fs::remove_dir_all(increments).unwrap();
    two.production.start();
    write(&two.production, "prod");
    assert_eq!(two.production.archive_now(), segment);
    two.clone.switch_wal();
    write(&two.clone, "fake");
    let files = two.site.files();
    receive_of(&two.site, &two.clone)
        .expect_code(8)
        .expect_stderr("server has other WAL than is archived");
    assert_eq!(two.site.files(), files);
    two.site.pitr().words("verify").succeed();
}
per_major!(l19_a_receiver_passes_over_no_segment_of_another_server, v13 v19);

/// Row L19: a receiver beside `archive_command` on one server is no other life, also across crashes and a pause.
fn l19_a_receiver_beside_the_archiver_is_no_other_life(major: u32) {
    let mut two = lives(major);
    with_journal(&two.site);
    two.production.start();
    two.site.pitr().words("backup --quiet").succeed();
    for round in 0..4 {
        write(&two.production, "prod");
        receive_of(&two.site, &two.production).success();
        if round % 2 == 1 {
            two.production.stop(Stop::Immediate);
            two.production.start();
        }
        write(&two.production, "prod");
        two.production.archive_now();
        // WAL that is archived without the receiver is passed over.
        write(&two.production, "prod");
        two.production.archive_now();
    }
    assert_eq!(failures(&two.production), "0");
    receive_of(&two.site, &two.production).success();
    assert!(!two.site.cluster_folder().join("conflicts").exists());
    two.site.pitr().words("verify").succeed();
    assert_eq!(
        restored(&two.site, major, "end", &[]),
        "before 100, prod 1200"
    );
}
per_major!(l19_a_receiver_beside_the_archiver_is_no_other_life, v13 v19);

/// The segment into which a server writes.
fn open_segment(cluster: &Cluster) -> String {
    cluster.value("select pg_walfile_name(pg_current_wal_lsn())")
}

/// A receiver gets all that a server has written.
pub fn receive_of(site: &Site, cluster: &Cluster) -> Run {
    let end = cluster.value("select pg_current_wal_flush_lsn()");
    let receive = site.pitr().words("receive --create-slot --until-lsn");
    let receive = receive
        .arg(&end)
        .env("PITR_CLUSTERS_MAIN_CONNINFO", cluster.conninfo("postgres"));
    receive.run()
}

/// A split brain: production archives into one repository and its clone into another one, which both had the same before.
struct Split {
    two: Lives,
    second: PathBuf,
}

impl Split {
    fn new(major: u32) -> Split {
        let mut two = lives(major);
        let second = two.site.add_repository("second", "");
        two.production.start();
        two.site.pitr().words("backup --quiet").succeed();
        two.production.archive_now();
        two.production.stop(Stop::Fast);
        two.site.pitr().words("repo sync").succeed();
        // The clone is made anew, now that both repositories have what it comes from.
        std::fs::remove_dir_all(two.clone.pgdata()).unwrap();
        copy_tree(two.production.pgdata(), two.clone.pgdata());
        user::own_all(two.clone.pgdata());
        let split = Split { two, second };
        split.archives_into(&split.two.production, "local");
        split.archives_into(&split.two.clone, "second");
        split
    }

    /// The configuration of a server that was cut off from the other repository.
    fn side(&self, repository: &str) -> PathBuf {
        let both = std::fs::read_to_string(self.two.site.config()).unwrap();
        let mut parts = both.split("\n[repositories.");
        let mut text = parts.next().unwrap().to_owned();
        for part in parts.filter(|part| part.starts_with(repository)) {
            text = format!("{text}\n[repositories.{part}");
        }
        let sandbox = self.two.site.sandbox();
        sandbox.file(format!("{repository}.toml"), text)
    }

    fn archives_into(&self, cluster: &Cluster, repository: &str) {
        let archive = pitr_archive().arg("--config").arg(self.side(repository));
        cluster.append_config("archive_command", &archive.arg("%p").shell());
    }

    /// Both lives go on side by side, each in its repository; the name of the last segment, which is that of the other's, too.
    fn go_on(&self) -> String {
        write(&self.two.production, "prod");
        write(&self.two.clone, "fake");
        let name = self.two.production.archive_now();
        assert_eq!(self.two.clone.archive_now(), name);
        name
    }

    fn backup(&self, cluster: &Cluster, repository: &str) -> String {
        let backup = pitr().arg("--config").arg(self.side(repository));
        let backup = backup.words("backup --json --quiet");
        let conninfo = cluster.conninfo("postgres");
        let run = backup.env("PITR_CLUSTERS_MAIN_CONNINFO", conninfo).run();
        run.success().id()
    }

    /// Returns the objects of both.
    fn objects(&self) -> Vec<PathBuf> {
        let mut all = paths_below(self.two.site.repository());
        all.extend(paths_below(&self.second));
        all.retain(|path| path.to_str().unwrap().contains("/clusters/"));
        all
    }

    /// Sync refuses, and names the first segment at which the two part; nothing was copied.
    fn is_not_joined(&self, first: &str, why: &str) {
        let before = self.objects();
        let run = self.two.site.pitr().words("repo sync --all").exits(10);
        for line in [first, why] {
            assert!(run.stderr.contains(line), "{line}: {run}");
        }
        assert_eq!(self.objects(), before, "{run}");
    }

    /// The rows of a restored copy by life, and what the restore said.
    fn restored(&self, args: &[&str]) -> (String, Run) {
        let folder = Sandbox::new("restored");
        let to = folder.join("data");
        let run = self.two.site.pitr().restore_to(&to).args(args).succeed();
        let major = self.two.production.major();
        let copy = Cluster::open(major, &to).without_fsync().promoted();
        let rows = "select string_agg(life || ' ' || n, ', ' order by life) from (select life, count(*) as n from t group by life) as x";
        (copy.value(rows), run)
    }
}

/// Row L13: sync joins nothing, and a restore follows one of the two servers alone and says which.
fn l13_two_repositories_that_hold_two_lives_are_not_joined(major: u32) {
    let mut split = Split::new(major);
    split.two.production.start();
    split.two.clone.start();
    let first = split.go_on();
    split.go_on();
    let own = split.backup(&split.two.production, "local");
    let other = split.backup(&split.two.clone, "second");
    split.go_on();
    write(&split.two.clone, "fake");
    split.two.clone.archive_now();
    split.is_not_joined(&first, "have the WAL of two servers");

    let follows = |repository: &str, other: &str| {
        format!(
            "\"{repository}\" is followed, and recovery asks \"{repository}\" alone. --repository \"{other}\" follows the other one"
        )
    };
    let end = ["--target-timeline", "current"];
    let immediate = ["--target-timeline", "current", "--target-immediate"];
    for (id, rows, at_backup, repository, beside) in [
        (
            &own,
            "before 100, prod 300",
            "before 100, prod 200",
            "local",
            "second",
        ),
        (
            &other,
            "before 100, fake 400",
            "before 100, fake 200",
            "second",
            "local",
        ),
    ] {
        for (target, rows) in [(&end[..], rows), (&immediate[..], at_backup)] {
            let args = [&["--backup", id.as_str()][..], target].concat();
            let (found, run) = split.restored(&args);
            assert_eq!(found, rows, "{run}");
            run.expect_stderr(&follows(repository, beside));
        }
        let (found, run) = split.restored(&["--repository", repository]);
        assert_eq!(found, rows, "{run}");
    }
    // No option chose one; the command prints whose life it is.
    let plan = split.two.site.pitr().arg("plan").succeed();
    plan.expect_stderr(&follows("second", "local"));
    // A standby goes on asking: it, too, is handed the WAL of one of them alone.
    let folder = Sandbox::new("standby");
    let conninfo = split.two.production.conninfo("postgres");
    let conninfo = conninfo.replace(" dbname=postgres", "");
    let standby = split.two.site.pitr().words("standby --primary-conninfo");
    let standby = standby.arg(conninfo).arg("--to").arg(folder.join("data"));
    standby.succeed().expect_stderr(&follows("local", "second"));
    let settings = std::fs::read_to_string(folder.join("data/postgresql.auto.conf")).unwrap();
    assert!(settings.contains(" --repository "), "{settings}");
}
per_major!(l13_two_repositories_that_hold_two_lives_are_not_joined, v13 v15 v19);

/// Rows L13 and H03: when the two sides see one another again, both servers are refused by the other's repository. The one that is the cluster brings
/// its segments to both, gets the fork, and goes on; the other life stays restorable.
fn h03_l13_t80_after_a_split_brain_one_server_gets_both_repositories(major: u32) {
    let mut split = Split::new(major);
    split.two.production.start();
    split.two.clone.start();
    let first = split.go_on();
    split.go_on();
    let (production, clone) = (&split.two.production, &split.two.clone);
    let archive = split.two.site.archive().arg("%p").shell();
    for cluster in [production, clone] {
        cluster.set("archive_command", &archive);
        write(
            cluster,
            if std::ptr::eq(cluster, production) {
                "prod"
            } else {
                "fake"
            },
        );
        cluster.switch_wal();
        cluster.wait_log("archive command failed with exit code 20");
    }
    let site = &split.two.site;
    // The first segment was archived in the own repository alone: the other one has to refuse it before it can be named there.
    let backfill = site.pitr().words("wal backfill --from");
    let wal = production.pgdata().join("pg_wal");
    backfill.arg(&wal).exits(1);
    let own = blake3::hash(&std::fs::read(wal.join(&first)).unwrap()).to_hex();
    let shown = ["wal", "conflicts", "--json", "--repository", "second"];
    let shown = site.pitr().args(shown).run().json();
    let copies = shown["conflicts"].as_array().unwrap();
    let copy = copies.iter().find(|c| c["hash"] == own.as_str());
    // Row T80: without a name, every repository is looked at.
    let all = site.pitr().words("wal conflicts --json").run().json();
    let is_own = |c: &&Value| c["hash"] == own.as_str() && c["repository"] == "second";
    assert!(list_of(&all["conflicts"]).iter().any(|c| is_own(&c)));
    let text = site.pitr().words("wal conflicts").run();
    text.success()
        .expect_stdout("repository")
        .expect_stdout("second");
    let copy = str_of(&copy.expect("production's is kept")["copy"]);
    let resolve = ["wal", "resolve", &first, "--keep", copy, "--confirm"];
    site.pitr().args(resolve).succeed();
    let next = production.value("select last_archived_wal from pg_stat_archiver");
    write(production, "prod");
    production.switch_wal();
    // The repository that got the fork lacks what production archived in the other one alone.
    site.pitr().words("wal backfill --from").arg(&wal).run();
    let archived = "select last_archived_wal from pg_stat_archiver";
    wait_until("production archives again", || {
        production.value(archived) > next
    });
    let (found, run) = split.restored(&[]);
    assert_eq!(found, "before 100, prod 400", "{run}");
    let (found, run) = split.restored(&["--repository", "second"]);
    assert_eq!(found, "before 100, prod 400", "{run}");
    let as_stored = ["--repository", "second", "--as-stored"];
    let (found, run) = split.restored(&as_stored);
    assert_eq!(found, "before 100, fake 200", "{run}");
}
per_major!(h03_l13_t80_after_a_split_brain_one_server_gets_both_repositories, v13 v19);

/// Row L13: no segment lies in both that differs, for the second repository lacks the clone's first ones. The links tell.
fn l13_wal_that_does_not_continue_what_is_stored_is_not_copied(major: u32) {
    let mut split = Split::new(major);
    let archive = pitr_archive().arg("--config").arg(split.side("second"));
    split.two.clone = Cluster::open(major, split.two.clone.pgdata())
        .without_fsync()
        .create();
    split.two.clone.append_config("archive_command", "true");
    split.two.production.start();
    split.two.clone.start();
    split.go_on();
    let last = split.go_on();
    let clone = &split.two.clone;
    clone.set("archive_command", &archive.arg("%p").shell());
    write(clone, "fake");
    let first = clone.archive_now();
    assert!(first > last);
    split.is_not_joined(&first, &format!("does not continue segment \"{last}\""));
    // Production's side is whole, and so is a restore of it.
    let (found, run) = split.restored(&["--repository", "local"]);
    assert_eq!(found, "before 100, prod 200", "{run}");
}
per_major!(l13_wal_that_does_not_continue_what_is_stored_is_not_copied, v13 v19);

/// Row L15: the clone's host is four minutes ahead and production's as much behind, so that by time all of the clone is newer. Positions, links and
/// the decision say whose backup is taken, and what expire keeps.
fn l15_a_life_whose_clock_is_ahead_is_not_taken_for_the_newer_one(major: u32) {
    let clock = Clock::new();
    let mut two = lives(major);
    let (ahead, behind) = (240, -240);
    let at = |two: &Lives, cluster: &Cluster, seconds: i64, args: &[&str]| {
        let conninfo = cluster.conninfo("postgres");
        let program = two.site.pitr().args(args);
        let program = program.env("PITR_CLUSTERS_MAIN_CONNINFO", conninfo);
        clock.off(&program, seconds).run()
    };
    two.production.start();
    at(&two, &two.production, behind, &["backup"]).success();
    two.production.stop(Stop::Fast);
    two.copy_again();
    two.clone.start();
    write(&two.clone, "fake");
    two.clone.archive_now();
    at(&two, &two.clone, ahead, &["backup"]).success();
    two.clone.stop(Stop::Fast);
    let clones = backups(&two.site).pop().unwrap();
    two.production.start();
    write(&two.production, "prod");
    two.production.switch_wal();
    two.production
        .wait_log("already archived with other content");
    let copy = conflicts(&two.site)["conflicts"][0].clone();
    let (name, copy) = (
        copy["name"].as_str().unwrap(),
        copy["copy"].as_str().unwrap(),
    );
    let resolve = ["wal", "resolve", name, "--keep", copy, "--confirm"];
    at(&two, &two.production, behind, &resolve).success();
    two.production.archive_now();
    let taken = at(&two, &two.production, behind, &["backup", "--json"]);
    let own = taken.success().id();
    assert!(own < clones, "by time the clone's is newer");
    write(&two.production, "prod");
    two.production.archive_now();

    let site = &two.site;
    let plan = site.pitr().words("plan --json").succeed().json();
    assert_eq!(plan["backup"]["id"], *own, "{plan}");
    assert_eq!(restored(site, major, "end", &[]), "before 100, prod 200");
    let stored = ["--as-stored", "--backup", &clones];
    assert_eq!(
        restored(site, major, "clones", &stored),
        "before 100, fake 100"
    );
    // A decision of a clock behind ends one of a clock ahead.
    let event = conflicts(site)["resolutions"][0]["event"].clone();
    let undo = [
        "wal",
        "resolve",
        "--undo",
        event.as_str().unwrap(),
        "--confirm",
    ];
    at(&two, &two.production, ahead, &undo).success();
    assert_eq!(conflicts(site)["resolutions"], serde_json::json!([]));
    at(&two, &two.production, behind, &resolve).success();
    let standing = conflicts(site)["resolutions"].as_array().unwrap().len();
    assert_eq!(standing, 1, "the last decision counts");
    assert_eq!(restored(site, major, "again", &[]), "before 100, prod 200");
    // The newest that is kept is production's.
    site.pitr().args(expire_at_once()).succeed();
    site.pitr().words("verify").succeed();
    assert!(backups(site).contains(&own));
    assert_eq!(restored(site, major, "kept", &[]), "before 100, prod 200");
}
per_major!(l15_a_life_whose_clock_is_ahead_is_not_taken_for_the_newer_one, v13 v17);
