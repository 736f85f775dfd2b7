//! Archiving through the front door: real servers, real programs. The row ids of the fault matrix are in the names.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt, symlink};

use pitr::pg::segment::{SegmentName, SegmentSize};

use crate::common::reception::lsn;
use crate::common::{
    Cluster, Program, Run, Sandbox, Site, Still, Stop, bin, copy_tree, keep_one, pitr_archive,
    user, wait_until,
};
use crate::ship::spool_of;
use crate::{per_major, skip};

/// The first line of what went wrong.
fn complaint(run: &Run) -> &str {
    run.stderr.lines().next().unwrap_or_default()
}

/// Every name under `conflicts`.
fn conflicts(site: &Site) -> Vec<String> {
    let of_conflict = |f: String| f.split_once("/conflicts/").map(|(_, name)| name.to_owned());
    site.files().into_iter().filter_map(of_conflict).collect()
}

fn a_server_archives_and_gets_the_same_bytes_back(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    let sandbox = Sandbox::new("back");
    let mut kept = Vec::new();
    for round in 0..3 {
        cluster.sql(&format!(
            "create table t{round} as select g, md5(g::text) from generate_series(1, 2000) g"
        ));
        let name = cluster.switch_wal();
        // Before it is archived and recycled.
        let raw = std::fs::read(cluster.pgdata().join("pg_wal").join(&name)).unwrap();
        cluster.wait_archived(&name);
        kept.push((name, raw));
    }
    for (name, raw) in &kept {
        let target = sandbox.join(name);
        site.restore()
            .args([name.as_ref(), target.as_os_str()])
            .succeed();
        assert!(std::fs::read(&target).unwrap() == *raw, "{name}");
        assert_eq!(
            std::fs::metadata(&target).unwrap().permissions().mode() & 0o777,
            0o600
        );
        // Readable without us.
        let run = Program::new("sh")
            .args(["-c", "lz4 -dc < $0 > $1"])
            .arg(site.object(name))
            .arg(sandbox.join("plain"))
            .run();
        if run.code() == 127 {
            skip!(
                "a_server_archives_and_gets_the_same_bytes_back (lz4 -dc)",
                "apt-get install lz4"
            );
        }
        assert!(
            std::fs::read(sandbox.join("plain")).unwrap() == *raw,
            "{run}"
        );
    }
    assert_eq!(
        cluster.value("select failed_count from pg_stat_archiver"),
        "0"
    );
    assert!(
        !cluster.log().contains("pitr-archive:"),
        "{}",
        cluster.log()
    );
}
per_major!(a_server_archives_and_gets_the_same_bytes_back);

#[test]
fn w66_no_backup_label_stops_archiving() {
    let (site, cluster) = Site::with_cluster(17);
    let client = cluster.client();
    let labels = || {
        let mut files = site.files();
        files.retain(|f| f.contains("/labels/"));
        files
    };
    client.sql("select pg_backup_start(E'a\\nSTART TIMELINE: 9\\nSTOP TIME: b', true)");
    client.sql("select pg_backup_stop(true)");
    wait_until("the label is archived", || labels().len() == 1);
    cluster.archive_now();
    let failed = "select failed_count from pg_stat_archiver";
    assert_eq!(cluster.value(failed), "0", "{}", cluster.log());
    // A file that a power cut left without content.
    let torn = "000000010000000000000001.00000028.backup";
    let path = cluster.pgdata().join("pg_wal").join(torn);
    std::fs::write(&path, "START WAL\n").unwrap();
    crate::common::user::own(&path);
    let run = site.archive().arg(&path).succeed();
    run.expect_stderr("cannot be read, and is archived as it is");
    assert_eq!(labels().len(), 2);
    let fetched = site.sandbox().join("fetched");
    site.restore().arg(torn).arg(&fetched).succeed();
    assert_eq!(std::fs::read_to_string(fetched).unwrap(), "START WAL\n");
    site.pitr().words("backup --quiet").succeed();
    site.pitr().arg("verify").succeed();
}

fn p15_promotion_and_backup_leave_partial_history_and_label_files(major: u32) {
    let (site, primary) = Site::with_cluster(major);
    primary.sql("create table t (a int); insert into t values (1)");
    let mut standby = primary.standby().start();
    primary.archive_now();
    // The server writes a label when a backup ends.
    let client = primary.client();
    let (start, stop) = match major {
        13 | 14 => (
            "select pg_start_backup('p15', true, false)",
            "select pg_stop_backup(false, true)",
        ),
        _ => (
            "select pg_backup_start('p15', true)",
            "select pg_backup_stop(true)",
        ),
    };
    client.sql(start);
    client.sql(stop);
    // The first one is that of the standby's base backup.
    let labels = || {
        let mut files = site.files();
        files.retain(|f| f.contains("/labels/"));
        files
    };
    wait_until("both labels are archived", || labels().len() == 2);
    let label = labels().pop().unwrap();
    let label = label.rsplit('/').next().unwrap();

    primary.sql("insert into t values (2)");
    let last = primary.value("select pg_walfile_name(pg_current_wal_lsn())");
    wait_until("the standby has it", || {
        standby.value("select count(*) from t") == "2"
    });
    drop(client);
    drop(primary);
    standby.promote();
    let partial = format!("{last}.partial");
    wait_until("the partial segment is archived", || {
        site.object(&partial).exists()
    });
    wait_until("the history is archived", || {
        site.object("00000002.history").exists()
    });
    standby.archive_now();
    assert_eq!(
        standby.value("select failed_count from pg_stat_archiver"),
        "0",
        "{}",
        standby.log()
    );

    let sandbox = Sandbox::new("p15");
    for name in [label, &partial, "00000002.history"] {
        let target = sandbox.join(name);
        site.restore()
            .args([name.as_ref(), target.as_os_str()])
            .succeed();
        assert!(std::fs::metadata(&target).unwrap().len() > 0, "{name}");
    }
    let history = std::fs::read_to_string(sandbox.join("00000002.history")).unwrap();
    assert!(history.starts_with("1\t"), "{history}");
    assert!(
        std::fs::read_to_string(sandbox.join(label))
            .unwrap()
            .contains("LABEL: p15")
    );
    standby.stop(Stop::Immediate);
}
per_major!(p15_promotion_and_backup_leave_partial_history_and_label_files, v13 v17 v19);

#[test]
fn h02_an_old_primary_that_comes_back_archives_its_own_timeline() {
    let (site, mut old) = Site::with_cluster(16);
    old.sql("create table t (a int)");
    let new = old.standby().start();
    old.archive_now();
    old.sql("insert into t values (1)");
    wait_until("the standby has it", || {
        new.value("select count(*) from t") == "1"
    });
    old.stop(Stop::Immediate);
    new.promote();
    new.sql("insert into t values (2)");
    new.archive_now();
    // Back on timeline 1, on its own branch: nothing of it collides with timeline 2.
    old.start();
    old.sql("insert into t values (3)");
    let segment = old.archive_now();
    assert!(site.object(&segment).exists());
    assert!(site.object(&format!("{segment}.partial")).exists());
    assert_eq!(
        old.value("select failed_count from pg_stat_archiver"),
        "0",
        "{}",
        old.log()
    );
    assert_eq!(conflicts(&site), [""; 0]);
}

#[test]
fn h03_a_split_brain_is_a_conflict_and_both_copies_are_kept() {
    let (site, mut one) = Site::with_cluster(15);
    one.archive_now();
    one.stop(Stop::Fast);
    // The same data directory, copied: the second server does not know that it is one.
    let sandbox = Sandbox::new("h03");
    let copy = sandbox.join("data");
    copy_tree(one.pgdata(), &copy);
    let two = Cluster::open(15, &copy).without_fsync().start();
    one.start();
    one.sql("create table mine (a int)");
    let name = one.archive_now();
    let stored = std::fs::read(site.object(&name)).unwrap();
    two.sql("create table yours (a int, b int)");
    assert_eq!(two.switch_wal(), name);
    two.wait_log("pitr-archive: error A120");
    two.wait_log("archive command failed with exit code 20");
    assert!(
        std::fs::read(site.object(&name)).unwrap() == stored,
        "never replaced"
    );
    let kept = conflicts(&site);
    assert!(kept.len() == 1 && kept[0].starts_with(&name), "{kept:?}");
    assert!(two.log().contains("split brain"));
}

#[test]
fn h04_two_nodes_that_archive_the_same_segments_agree() {
    let (site, primary) = Site::with_cluster(17);
    let standby = primary.standby().option("archive_mode", "always").start();
    for n in 0..3 {
        primary.sql(&format!("create table t{n} (a int)"));
        let name = primary.archive_now();
        wait_until("the standby archives it, too", || {
            let done = format!("pg_wal/archive_status/{name}.done");
            standby.pgdata().join(done).exists()
        });
    }
    for node in [&primary, &standby] {
        assert_eq!(
            node.value("select failed_count from pg_stat_archiver"),
            "0",
            "{}",
            node.log()
        );
    }
    assert_eq!(conflicts(&site), [""; 0]);
}

#[test]
fn h05_twenty_promotions_leave_one_tree() {
    let (site, mut cluster) = Site::with_cluster(14);
    cluster.append_config("restore_command", &site.restore().words("%f %p").shell());
    cluster.sql("create table t (a int)");
    cluster.archive_now();
    for round in 2..=21 {
        cluster.sql(&format!("insert into t values ({round})"));
        cluster.stop(Stop::Fast);
        cluster.touch("standby.signal");
        cluster.start();
        cluster.promote();
        // Not pg_control: its timeline is that of the checkpoint that is only asked for when recovery ends.
        let writing = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
        assert_eq!(writing[..8], format!("{round:08X}"));
    }
    let last = cluster.archive_now();
    assert_eq!(&last[..8], "00000015");
    assert_eq!(
        cluster.value("select failed_count from pg_stat_archiver"),
        "0",
        "{}",
        cluster.log()
    );
    for timeline in 2..=21 {
        let name = format!("{timeline:08X}.history");
        wait_until("the history is archived", || site.object(&name).exists());
        let target = site.sandbox().join(&name);
        site.restore()
            .args([name.as_ref(), target.as_os_str()])
            .succeed();
        let lines = std::fs::read_to_string(target).unwrap();
        let ancestors = lines.lines().filter(|l| !l.is_empty()).count();
        assert_eq!(ancestors, timeline - 1, "{name}");
    }
    assert_eq!(cluster.value("select count(*) from t"), "20");
    assert_eq!(conflicts(&site), [""; 0]);
}

#[test]
fn p08_the_same_segment_again_succeeds_and_changes_nothing() {
    let still = Still::new(17, 1, 2);
    let name = &still.segments[0];
    still.push(name).succeed();
    let files = still.site.files();
    let object = std::fs::read(still.site.object(name)).unwrap();
    let run = still.push(name).succeed();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    // Eight at once: of a segment that is there, and of one that is not.
    for name in &still.segments {
        let at_once: Vec<_> = (0..8).map(|_| still.push(name).spawn()).collect();
        for one in at_once {
            one.wait().success();
        }
        still.check(name);
    }
    assert_eq!(std::fs::read(still.site.object(name)).unwrap(), object);
    assert_eq!(still.site.files().len(), files.len() + 1);
}

#[test]
fn p09_other_bytes_are_a_conflict() {
    let still = Still::new(16, 1, 1);
    let name = &still.segments[0];
    still.push(name).succeed();
    let stored = std::fs::read(still.site.object(name)).unwrap();
    let original = std::fs::read(still.wal(name)).unwrap();
    let mut other = original.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(still.wal(name), &other).unwrap();
    for _ in 0..2 {
        let run = still.push(name).exits(20);
        assert!(
            complaint(&run).starts_with(&format!("pitr-archive: error A120: could not archive \"{name}\": already archived with other content: stored blake3 ")),
            "{run}"
        );
        let identifier = still.site.cluster_folder();
        let identifier = identifier.file_name().unwrap().to_str().unwrap();
        assert!(
            complaint(&run).contains(identifier) && complaint(&run).contains("timeline 1"),
            "{run}"
        );
        assert!(run.stderr.contains("pitr wal conflicts"), "{run}");
        assert_eq!(
            conflicts(&still.site).len(),
            1,
            "the same refused copy is kept once"
        );
    }
    assert_eq!(std::fs::read(still.site.object(name)).unwrap(), stored);
    assert!(still.fetched(name) == original);
}

#[test]
fn p10_of_two_contents_one_wins_and_every_other_push_says_so() {
    let still = Still::new(15, 1, 1);
    let name = &still.segments[0];
    let other = Sandbox::new("p10");
    other.dir("pg_wal");
    let mut bytes = std::fs::read(still.wal(name)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    other.file(format!("pg_wal/{name}"), &bytes);
    let mine = still.push(name);
    let yours = mine.clone().dir(other.path());
    let running: Vec<_> = (0..64)
        .map(|n| (n % 2, if n % 2 == 0 { &mine } else { &yours }.spawn()))
        .collect();
    let mut codes = [Vec::new(), Vec::new()];
    for (side, one) in running {
        codes[side].push(one.wait().code());
    }
    let winner = usize::from(codes[0][0] != 0);
    assert!(codes[winner].iter().all(|c| *c == 0), "{codes:?}");
    assert!(codes[1 - winner].iter().all(|c| *c == 20), "{codes:?}");
    let stored = still.fetched(name);
    assert_eq!(stored == bytes, winner == 1);
    assert_eq!(conflicts(&still.site).len(), 1);
}

#[test]
fn p11_a_segment_of_another_cluster_is_refused() {
    let still = Still::new(17, 1, 1);
    let mut other = Cluster::builder(17)
        .segment_size_mb(1)
        .own_identifier()
        .start();
    let name = other.switch_wal();
    let theirs = other.system_identifier().to_string();
    other.stop(Stop::Immediate);
    let run = still
        .site
        .archive()
        .arg(format!("pg_wal/{name}"))
        .dir(other.pgdata())
        .exits(21);
    let ours = still.site.cluster_folder();
    let ours = ours.file_name().unwrap().to_str().unwrap();
    assert!(
        complaint(&run).contains("error A121")
            && complaint(&run).contains(&theirs)
            && complaint(&run).contains(ours),
        "{run}"
    );
    assert!(still.site.files().iter().all(|f| !f.contains("/wal/")));

    // Three repositories have the same to say, which is said once.
    still.site.add_repository("second", "");
    still.site.add_repository("third", "required = false\n");
    let push = still.site.archive().arg(format!("pg_wal/{name}"));
    let run = push.dir(other.pgdata()).exits(21);
    assert_eq!(run.stderr.matches("is not registered").count(), 1, "{run}");
    run.expect_stderr("Nothing was stored.");
}

#[test]
fn h07_a_node_that_was_initialised_anew_archives_after_a_confirmation() {
    let still = Still::new(17, 1, 1);
    still.push_all();
    let identifier = still.site.cluster_folder();
    let identifier = identifier.file_name().unwrap().to_str().unwrap().to_owned();
    let mut anew = Cluster::builder(17)
        .segment_size_mb(1)
        .own_identifier()
        .start();
    let name = anew.switch_wal();
    anew.stop(Stop::Immediate);
    let push = still
        .site
        .archive()
        .arg(format!("pg_wal/{name}"))
        .dir(anew.pgdata());
    push.exits(21).expect_stderr("pitr init --confirm");
    // The configuration names the old data directory; the new one has taken its place.
    let place = |c: &Cluster| c.pgdata().display().to_string();
    still.site.edit(&place(&still.cluster), &place(&anew));
    still.site.pitr().arg("init").exits(1);
    still
        .site
        .pitr()
        .words("init --confirm")
        .succeed()
        .expect_stdout("registered");
    push.succeed();
    // Each gets back its own, although the names are equal.
    let fetch = |name: &str, dir: &std::path::Path| {
        still
            .site
            .restore()
            .args([name, "pg_wal/RECOVERYXLOG"])
            .dir(dir)
            .succeed();
        std::fs::read(dir.join("pg_wal/RECOVERYXLOG")).unwrap()
    };
    assert!(
        fetch(&name, anew.pgdata())
            == std::fs::read(anew.pgdata().join("pg_wal").join(&name)).unwrap()
    );
    let old = &still.segments[0];
    assert!(fetch(old, still.cluster.pgdata()) == std::fs::read(still.wal(old)).unwrap());

    // Each command works on all of them or on the named one; a command for which that means nothing reports it.
    let pitr = |words: &[&str]| still.site.pitr().args(words).run();
    let of = |run: &Run| -> Vec<String> {
        let json = run.json();
        let clusters = json["clusters"].as_array().unwrap();
        let of = |c: &serde_json::Value| c["system_identifier"].as_str().unwrap().to_owned();
        clusters.iter().map(of).collect()
    };
    for verb in [&["verify"][..], &keep_one(&["--dry-run"])] {
        let all = [verb, &["--json"]].concat();
        assert_eq!(of(&pitr(&all)).len(), 2, "{verb:?}");
        let one = [&all[..], &["--system-identifier", &identifier]].concat();
        assert_eq!(of(&pitr(&one)), [identifier.as_str()], "{verb:?}");
        let none = [verb, &["--system-identifier", "1"]].concat();
        pitr(&none)
            .expect_code(2)
            .expect_stderr("is not registered");
    }
    let target = still.site.sandbox().join("fetched");
    let target = target.to_str().unwrap();
    pitr(&["wal", "fetch", old, target])
        .expect_code(1)
        .expect_stderr("several system identifiers");
    pitr(&[
        "wal",
        "fetch",
        old,
        target,
        "--system-identifier",
        &identifier,
    ])
    .success();
    assert!(std::fs::read(target).unwrap() == std::fs::read(still.wal(old)).unwrap());
    for verb in [
        &["backup"][..],
        &["adopt"],
        &["init"],
        &["doctor"],
        &["wal", "push", target],
    ] {
        pitr(&[verb, &["--system-identifier", &identifier]].concat())
            .expect_code(2)
            .expect_stderr("--system-identifier means nothing");
    }
}

#[test]
fn p12_a_recycled_segment_under_an_old_name_is_refused() {
    let still = Still::new(18, 1, 3);
    let (old, new) = (&still.segments[0], &still.segments[2]);
    std::fs::remove_file(still.wal(old)).unwrap();
    std::fs::hard_link(still.wal(new), still.wal(old)).unwrap();
    let run = still.push(old).exits(13);
    assert!(complaint(&run).contains("error A113"), "{run}");
    assert!(!still.site.object(old).exists());
}

/// A node after pg_rewind, once Patroni has removed the files by which PostgreSQL remembers what is archived.
#[test]
fn p24_a_recycled_segment_of_a_timeline_that_was_left_stops_nothing() {
    let mut still = Still::new(18, 1, 3);
    let recycled = std::fs::read(still.wal(&still.segments[0])).unwrap();
    still.cluster.append_config("restore_command", "false");
    still
        .cluster
        .append_config("recovery_target_timeline", "current");
    still.cluster.touch("recovery.signal");
    still.cluster.start();
    still.cluster.wait_promoted();
    still.cluster.sql("checkpoint");
    still.cluster.stop(Stop::Fast);
    let history = std::fs::read_to_string(still.wal("00000002.history")).unwrap();
    let left = lsn(history.split_whitespace().nth(1).unwrap());
    let named = |at: u64| format!("0000000100000000{:08X}", at >> 20);
    let offered = |name: &str, bytes: &[u8]| {
        std::fs::write(still.wal(name), bytes).unwrap();
        let run = still.push(name).run();
        assert!(!still.site.object(name).exists(), "{run}");
        run
    };
    let zeros = vec![0; recycled.len()];
    for bytes in [&recycled, &zeros] {
        offered(&named(left + (1 << 20)), bytes)
            .success()
            .expect_stderr("this server left timeline 1 at ")
            .expect_stderr("nothing was stored");
        // The segment in which it was left has WAL of the cluster, and so have those before it.
        for at in [left, left - (1 << 20)] {
            offered(&named(at), bytes).expect_code(13);
        }
        // A timeline that is not the server's past is none that it left.
        let other = named(left + (1 << 20)).replacen("00000001", "00000003", 1);
        offered(&other, bytes).expect_code(13);
    }
}

/// A crash takes the mark of a segment that was full a moment ago; the server makes it anew when it would remove the segment.
#[test]
fn p25_segments_whose_mark_a_crash_took_are_archived_with_the_next_one() {
    let still = Still::new(18, 1, 5);
    let status = still.wal("archive_status");
    std::fs::remove_dir_all(&status).unwrap();
    std::fs::create_dir(&status).unwrap();
    let mark = |name: &str, kind: &str| {
        std::fs::write(status.join(format!("{name}.{kind}")), "").unwrap();
    };
    let names = &still.segments;
    let stored = |index: usize| still.site.object(&names[index]).exists();
    mark(&names[0], "done");
    mark(&names[3], "ready");
    // Not the server's call: it asks for this one alone.
    still.push(&names[4]).succeed();
    assert!((0..4).all(|index| !stored(index)));
    let run = still.push(&names[3]).succeed();
    assert!(stored(1) && stored(2) && stored(3) && !stored(0), "{run}");
    run.clone()
        .expect_stderr(&format!("\"{}\" was archived, too", names[1]))
        .expect_stderr(&format!("\"{}\" was archived, too", names[2]));
    // One that cannot be archived so keeps nothing else.
    std::fs::remove_file(status.join(format!("{}.done", names[0]))).unwrap();
    std::fs::write(still.wal(&names[0]), "short").unwrap();
    std::fs::remove_file(still.site.object(&names[3])).unwrap();
    let run = still.push(&names[3]).succeed();
    assert!(stored(3) && !stored(0), "{run}");
    run.expect_stderr(&format!("\"{}\" lies in pg_wal without a mark", names[0]));
}

/// Recovery ends while archiving is off, as in a copy that is adopted before its recovery is over: the server never offers the history.
#[test]
fn p26_the_history_of_a_recovery_that_ended_without_archiving_comes_with_the_next_segment() {
    let (site, primary) = Site::with_cluster(18);
    primary.archive_now();
    let mut promoted = primary.standby().config("archive_mode", "off").start();
    promoted.promote();
    promoted.append_config("archive_mode", "on");
    promoted.restart();
    let name = promoted.archive_now();
    assert!(name.starts_with("00000002"), "{name}");
    let history = site.object("00000002.history");
    assert!(history.exists(), "{}", promoted.log());
    promoted.wait_log("\"00000002.history\" was archived, too");
    // It is brought later, too, and where the repository does not take it the segment waits: nothing offers it but that one.
    std::fs::remove_file(&history).unwrap();
    let folder = history.parent().unwrap().to_owned();
    let mode = |mode: u32| {
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(0o555);
    let name = promoted.switch_wal();
    promoted.wait_log("could not archive \"00000002.history\"");
    assert!(!site.object(&name).exists() && !history.exists());
    mode(0o755);
    promoted.archive_now();
    assert!(site.object(&name).exists() && history.exists());
    // One that is away keeps no segment out of the others, and the server goes on waiting.
    let second = site.add_repository("second", "");
    promoted.archive_now();
    assert_eq!(objects(&second, "history").len(), 1);
    let hidden = second.with_extension("away");
    std::fs::rename(&second, &hidden).unwrap();
    let name = promoted.switch_wal();
    promoted.wait_log("\"00000002.history\" is not stored in every required repository");
    assert!(site.object(&name).exists());
    assert!(
        promoted
            .pgdata()
            .join(format!("pg_wal/archive_status/{name}.ready"))
            .exists()
    );
    std::fs::rename(&hidden, &second).unwrap();
    // A repository that is not required gets it behind the segment.
    let spare = site.add_repository("spare", "required = false\n");
    promoted.archive_now();
    assert_eq!(objects(&spare, "history").len(), 1);
    // One that cannot be read keeps no segment.
    std::fs::remove_file(&history).unwrap();
    std::fs::write(promoted.pgdata().join("pg_wal/00000002.history"), "none").unwrap();
    promoted.archive_now();
    promoted.wait_log("\"00000002.history\" lies in pg_wal without a mark");
}

#[test]
fn p13_a_file_that_is_no_whole_segment_is_refused() {
    let still = Still::new(17, 1, 1);
    let name = &still.segments[0];
    let whole = std::fs::read(still.wal(name)).unwrap();
    for (bytes, code) in [
        (&whole[..0], 12),
        (&whole[..39], 12),
        (&whole[..8192], 12),
        (&whole[..whole.len() - 1], 12),
        (&[whole.as_slice(), &[0]].concat()[..], 12),
        (&vec![0; whole.len()][..], 13),
    ] {
        std::fs::write(still.wal(name), bytes).unwrap();
        let run = still.push(name).exits(code);
        assert!(
            run.stderr
                .starts_with(&format!("pitr-archive: error A1{code}: ")),
            "{run}"
        );
    }
    assert!(still.site.files().iter().all(|f| !f.contains("/wal/")));
}

/// Adds a repository to the configuration, in front of what is there or behind it, and creates it.
fn add_repository(still: &Still, name: &str, first: bool) -> std::path::PathBuf {
    let folder = still.site.sandbox().join(name);
    let config = std::fs::read_to_string(still.site.config()).unwrap();
    let section = format!(
        "[repositories.{name}]\nurl = \"file://{}\"\n",
        folder.display()
    );
    let text = match first {
        true => format!("{section}\n{config}"),
        false => format!("{config}\n{section}"),
    };
    std::fs::write(still.site.config(), text).unwrap();
    still.site.pitr().arg("init").succeed();
    folder
}

/// Files below a folder that belong to this WAL file.
fn objects(folder: &std::path::Path, name: &str) -> Vec<String> {
    let run = Program::new("find").arg(folder).words("-type f").succeed();
    let of_name = |l: &&str| l.rsplit('/').next().is_some_and(|n| n.starts_with(name));
    run.stdout
        .lines()
        .filter(of_name)
        .map(str::to_owned)
        .collect()
}

#[test]
fn p09_a_conflict_in_one_repository_stores_nothing_in_another() {
    let still = Still::new(17, 1, 2);
    let config = std::fs::read_to_string(still.site.config()).unwrap();
    // With the name taken in the first repository, and in the last.
    for (round, first) in [(0, true), (1, false)] {
        let name = still.segments[round].as_str();
        let other = add_repository(&still, &format!("other{round}"), first);
        let whole = std::fs::read(still.wal(name)).unwrap();
        still
            .site
            .pitr()
            .args(["--repository", &format!("other{round}"), "wal", "push"])
            .arg(still.wal(name))
            .succeed();
        assert_eq!(objects(&other, name).len(), 1);
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(still.wal(name), &changed).unwrap();
        let run = still.push(name).exits(20);
        let run = run.expect_stderr("already archived with other content");
        assert_eq!(objects(still.site.repository(), name), [""; 0], "{run}");
        let kept = objects(&other, name);
        assert!(
            kept.len() == 2 && kept.iter().any(|k| k.contains("/conflicts/")),
            "{kept:?}"
        );
        // The same bytes are stored where they are missing.
        std::fs::write(still.wal(name), &whole).unwrap();
        still.push(name).succeed();
        assert_eq!(objects(still.site.repository(), name).len(), 1);
        std::fs::write(still.site.config(), &config).unwrap();
    }
    // Likewise a timeline that belongs to another history.
    let other = add_repository(&still, "third", false);
    let history = |text: &str| {
        std::fs::write(still.wal("00000002.history"), text).unwrap();
        user::own(&still.wal("00000002.history"));
    };
    history("1\t0/3000000\tno recovery target specified\n\n");
    let push = still.site.pitr().words("--repository third wal push");
    push.arg(still.wal("00000002.history")).succeed();
    history("1\t0/4000000\tno recovery target specified\n\n");
    still.push("00000002.history").exits(23);
    assert!(!still.site.object("00000002.history").exists());
    assert_eq!(objects(&other, "00000002.history").len(), 1);
}

#[test]
fn every_repository_that_failed_is_named_and_the_first_decides() {
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let config = std::fs::read_to_string(still.site.config()).unwrap();
    let absent = still.site.sandbox().path().display();
    let more = format!(
        "[repositories.away]\nurl = \"file://{absent}/away\"\n[repositories.gone]\nurl = \"file://{absent}/gone\"\n"
    );
    std::fs::write(still.site.config(), format!("{config}\n{more}")).unwrap();
    let run = still.push(name).exits(50);
    assert!(run.stderr.contains("error A150"), "{run}");
    assert!(
        run.stderr.contains("/away\"") && run.stderr.contains("/gone\""),
        "{run}"
    );
    // None is required: nothing may be acknowledged.
    let (clusters, _) = config.split_once("[repositories").unwrap();
    let optional = more.replace("\"\n", "\"\nrequired = false\n");
    std::fs::write(still.site.config(), format!("{clusters}\n{optional}")).unwrap();
    still
        .push(name)
        .exits(2)
        .expect_stderr("error A102")
        .expect_stderr("no repository is required");
}

#[test]
fn pitr_archive_cannot_be_narrowed_to_one_repository() {
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let narrowed = still.site.archive().words("--repository local");
    let run = narrowed.arg(still.wal(name)).exits(1);
    assert!(
        run.stderr
            .contains("error A101: pitr-archive takes no --repository"),
        "{run}"
    );
    assert!(!still.site.object(name).exists());
}

#[test]
fn p16_a_second_history_of_a_timeline_is_refused() {
    let still = Still::new(17, 1, 1);
    let write = |text: &str| {
        std::fs::write(still.wal("00000002.history"), text).unwrap();
        user::own(&still.wal("00000002.history"));
    };
    write("1\t0/3000000\tno recovery target specified\n\n");
    still.push("00000002.history").succeed();
    still.push("00000002.history").succeed();
    write("1\t0/4000000\tno recovery target specified\n\n");
    let run = still.push("00000002.history").exits(23);
    assert!(complaint(&run).contains("error A123"), "{run}");
    assert_eq!(conflicts(&still.site).len(), 1);
    write("nonsense");
    still.push("00000002.history").exits(13);
    write("");
    still.push("00000003.history").exits(11);
}

#[test]
fn wrong_calls_are_told_apart() {
    let still = Still::new(13, 1, 1);
    let name = &still.segments[0];
    let run = |args: &[&str]| {
        still
            .site
            .archive()
            .args(args)
            .dir(still.cluster.pgdata())
            .run()
    };
    std::fs::create_dir(still.wal("000000010000000000000099")).unwrap();
    Program::new("mkfifo")
        .arg(still.wal("000000010000000000000098"))
        .succeed();
    let absent = format!("pg_wal/{name}");
    for (args, code, part) in [
        (&[][..], 1, "A101: no file given"),
        (&[""], 1, "A101: no file given"),
        (&[&absent, &absent], 1, "A101: one argument expected, got 2"),
        (&["--frobnicate", &absent], 1, "A101: "),
        (&[name], 11, "A111: "),
        (
            &["pg_wal/foo"],
            10,
            "A110: \"foo\" is not a WAL, history or backup file name: 3 characters, 24 needed",
        ),
        (
            &["pg_wal/00000001000000000000004"],
            10,
            "23 characters, 24 needed",
        ),
        (&["pg_wal/00000001000000000000000a"], 10, "A110: "),
        (&["../../etc/passwd"], 10, "A110: "),
        (
            &["pg_wal/000000010000000000000099"],
            11,
            "is not a regular file",
        ),
        (
            &["pg_wal/000000010000000000000098"],
            11,
            "is not a regular file",
        ),
    ] {
        let run = run(args).expect_code(code);
        assert!(
            run.stderr.starts_with("pitr-archive: error ") && run.stderr.contains(part),
            "{run}"
        );
        assert_eq!(run.stdout, "", "{run}");
    }
    // No configuration, or one that is wrong.
    pitr_archive()
        .arg(&absent)
        .dir(still.cluster.pgdata())
        .exits(2);
    pitr_archive()
        .words("--config /nonexistent")
        .arg(&absent)
        .exits(2);
    // A repository that is not there, is empty, or may not be entered.
    let away = still.site.sandbox().join("away");
    std::fs::rename(still.site.repository(), &away).unwrap();
    still.push(name).exits(36).expect_stderr("A136");
    std::fs::create_dir(still.site.repository()).unwrap();
    user::own(still.site.repository());
    still.push(name).exits(36).expect_stderr("has no pitr.json");
    assert_eq!(
        std::fs::read_dir(still.site.repository()).unwrap().count(),
        0
    );
    std::fs::remove_dir(still.site.repository()).unwrap();
    std::fs::rename(&away, still.site.repository()).unwrap();
    std::fs::set_permissions(still.site.repository(), PermissionsExt::from_mode(0o000)).unwrap();
    still.push(name).exits(31).expect_stderr("A131");
    std::fs::set_permissions(still.site.repository(), PermissionsExt::from_mode(0o700)).unwrap();
    // The guard of a restored copy.
    std::fs::write(still.wal("pitr.guard"), "").unwrap();
    still.push(name).exits(22).expect_stderr("pitr adopt");
    std::fs::remove_file(still.wal("pitr.guard")).unwrap();
    still.push(name).succeed();
}

#[test]
fn g06_paths_of_every_kind_work() {
    let still = Still::new(17, 1, 1);
    let name = &still.segments[0];
    let sandbox = Sandbox::new("g06");
    // A data directory whose name is not UTF-8, with pg_wal a link to somewhere else.
    let data = sandbox.join(std::ffi::OsStr::from_bytes(b"d\xffta dir"));
    std::fs::create_dir_all(data.join("global")).unwrap();
    std::fs::copy(
        still.cluster.pgdata().join("global/pg_control"),
        data.join("global/pg_control"),
    )
    .unwrap();
    symlink(still.wal(""), data.join("pg_wal")).unwrap();
    user::own_all(&data);
    still
        .site
        .archive()
        .arg(data.join("pg_wal").join(name))
        .succeed();
    still
        .site
        .restore()
        .arg(name)
        .arg(data.join("pg_wal/RECOVERYXLOG"))
        .succeed();
    assert!(
        std::fs::read(still.wal("RECOVERYXLOG")).unwrap()
            == std::fs::read(still.wal(name)).unwrap()
    );
    still.site.archive().arg(name).dir(still.wal("")).succeed();
}

#[test]
fn g04_a_command_with_quotes_spaces_and_percent_signs_reaches_the_program() {
    let cluster = Cluster::small(16).create();
    let sandbox = Sandbox::new("g04");
    let folder = sandbox.dir("it's 100% \"here\" \\o/");
    let run = crate::common::pitr()
        .words("init --json --pgdata")
        .arg(cluster.pgdata())
        .arg("--config")
        .arg(folder.join("pitr.toml"))
        .arg("--repository")
        .arg(folder.join("repo"))
        .succeed();
    let json = run.json();
    let mut cluster = cluster;
    // Printed for postgresql.conf it has quotes around it; append_config brings its own, for the backslashes it does not.
    cluster.append_config("archive_mode", "on");
    let command = json["settings"]["archive_command"].as_str().unwrap();
    cluster.append_config("archive_command", &command.replace('\\', "\\\\"));
    cluster.start();
    cluster.archive_now();
    assert!(
        !cluster.log().contains("archive command failed"),
        "{}",
        cluster.log()
    );
}

#[test]
fn g07_an_empty_environment_is_enough() {
    let still = Still::new(17, 1, 1);
    // Else it would lie below the home of who runs the tests.
    spool_of(&still.site);
    let name = &still.segments[0];
    still.push(name).under(["env", "-i"]).succeed();
    still.fetch(name).under(["env", "-i"]).succeed();
}

#[test]
fn every_segment_size_is_archived() {
    for megabytes in [4, 64] {
        let still = Still::new(17, megabytes, 1);
        still.push(&still.segments[0]).succeed();
        still.check(&still.segments[0]);
    }
}

#[test]
fn a_segment_of_zstd_is_readable_without_us() {
    use pitr::archive::push::{Push, push};
    use pitr::repo::container::Codec;
    let still = Still::new(17, 1, 1);
    let name = &still.segments[0];
    let place = pitr::config::Repository::at(pitr::config::Location::File(
        still.site.repository().to_owned(),
    ));
    let repository = pitr::repo::open(&place, 1).unwrap();
    push(&Push {
        repository: &repository,
        cluster: "main",
        path: &still.wal(name),
        name: name.parse().unwrap(),
        codec: Codec::Zstd(3),
        beside_others: true,
        known: None,
        is_backfill: false,
    })
    .unwrap();
    user::own_all(still.site.repository());
    let plain = still.site.sandbox().join("plain");
    let run = Program::new("sh")
        .args(["-c", "zstd -q -dc < $0 > $1"])
        .arg(still.site.object(name))
        .arg(&plain)
        .run();
    if run.code() == 127 {
        skip!(
            "a_segment_of_zstd_is_readable_without_us",
            "apt-get install zstd"
        );
    }
    assert!(
        std::fs::read(&plain).unwrap() == std::fs::read(still.wal(name)).unwrap(),
        "{run}"
    );
    still.check(name);
    // The same content in another codec is the same content.
    still.push(name).succeed();
}

const MIB: u64 = 1 << 20;

/// Returns the bytes that pitr 0.1 wrote after the WAL of a tail, in the last 40 bytes of a segment.
fn old_marker(valid_end: u64, system_identifier: u64, timeline: u32) -> Vec<u8> {
    let mut marker = b"PITRTAIL".to_vec();
    marker.extend_from_slice(&valid_end.to_le_bytes());
    marker.extend_from_slice(&system_identifier.to_le_bytes());
    marker.extend_from_slice(&timeline.to_le_bytes());
    marker.extend_from_slice(&[0; 4]);
    let crc = crc32c::crc32c(&marker);
    marker.extend_from_slice(&crc.to_le_bytes());
    marker.extend_from_slice(&[0; 4]);
    marker
}

/// Finding A2: any SQL login can write the marker to any place. Decoding alone says whether WAL ends inside a segment.
#[test]
fn a2_l16_what_looks_like_a_marker_at_the_end_of_a_whole_segment_is_archived_like_any_bytes() {
    let (site, cluster) = Site::with_cluster(15);
    let identifier = cluster.system_identifier();
    cluster.sql("create extension if not exists plpgsql");
    let marker = old_marker(0x100_0028, identifier, 1);
    let hex: String = marker.iter().map(|b| format!("{b:02x}")).collect();
    // At each phase of the record's alignment, so that one of them is hit by a segment's end whatever came before.
    let mut archived = Vec::new();
    let mut is_hit = false;
    for phase in 0..40 {
        let (phase, hex) = (phase % 40, &hex);
        cluster.sql(&format!(
            "select pg_logical_emit_message(false, 'x', \
             substr(decode(repeat('{hex}', 40000), 'hex'), {phase} + 1))"
        ));
        archived.push(cluster.archive_now());
    }
    cluster.wait_archived(archived.last().unwrap());
    let copy = site.sandbox().join("copy");
    let is_segment =
        |f: &String| f.contains("/wal/") && f.rsplit('/').next().is_some_and(|n| n.len() == 24);
    for file in site.files().iter().filter(|f| is_segment(f)) {
        let name = file.rsplit('/').next().unwrap();
        site.restore().arg(name).arg(&copy).succeed();
        let bytes = std::fs::read(&copy).unwrap();
        is_hit |= bytes.ends_with(&marker);
    }
    assert!(is_hit, "no segment ended with the marker");
    site.pitr().words("verify").succeed();
}

/// A segment whose WAL ends inside with nothing but padding behind it is a partial, however it is padded.
#[test]
fn a2_a_padded_tail_is_archived_as_the_partial_that_it_is() {
    let still = Still::new(17, 1, 2);
    let name = &still.segments[0];
    let whole = std::fs::read(still.wal(name)).unwrap();
    let identifier = still.site.cluster_folder();
    let identifier = identifier.file_name().unwrap().to_str().unwrap();
    let start = name.parse::<SegmentName>().unwrap();
    let start = start.start_lsn(SegmentSize::new(MIB).unwrap()).unwrap().0;
    let end = end_of_a_record(&whole, start, 300_000);
    let at = usize::try_from(end - start).unwrap();
    let mut padded = whole.clone();
    padded[at..].fill(0);
    let mut marked = padded.clone();
    let marker = old_marker(end, identifier.parse().unwrap(), 1);
    let place = marked.len() - marker.len();
    marked[place..].copy_from_slice(&marker);
    let partial = still.site.object(&format!("{name}.partial"));
    for bytes in [&padded, &marked] {
        std::fs::write(still.wal(name), bytes).unwrap();
        let run = still.push(name).succeed();
        assert!(run.stderr.contains("archived as a partial"), "{run}");
        assert!(partial.exists() && !still.site.object(name).exists());
        // Once more: nothing new.
        still.push(name).succeed();
    }
    let shown = format!("{name}.partial");
    let shown = still
        .site
        .pitr()
        .args(["wal", "show", &shown, "--json"])
        .run();
    let shown = shown.success().json();
    let flags = shown["flags"].as_array().unwrap();
    assert!(flags.iter().any(|f| f == "padded"), "{shown:#}");
    // The whole one comes later, and then the tail again.
    std::fs::write(still.wal(name), &whole).unwrap();
    still.push(name).succeed();
    std::fs::write(still.wal(name), &padded).unwrap();
    still.push(name).succeed();
    assert!(still.fetched(name) == whole);
    // The server has the whole one when it offers the next.
    std::fs::write(still.wal(name), &whole).unwrap();
    let second = &still.segments[1];
    let mut bytes = std::fs::read(still.wal(second)).unwrap();
    let place = bytes.len() - marker.len();
    bytes[place..].copy_from_slice(&marker);
    std::fs::write(still.wal(second), &bytes).unwrap();
    still.push(second).succeed();
    assert!(still.fetched(second) == bytes);
}

/// A position up to which whole records are, at or behind an offset.
pub fn end_of_a_record(segment: &[u8], start: u64, from: usize) -> u64 {
    use pitr::pg::reader::{Finding, Reader, Sink};
    use pitr::pg::record::Record;
    struct Ends(u64, Option<u64>);
    impl Sink for Ends {
        fn record(&mut self, record: &Record<'_>) {
            if record.end_lsn.0 >= self.0 && self.1.is_none() {
                self.1 = Some(record.end_lsn.0);
            }
        }
        fn finding(&mut self, finding: Finding) {
            panic!("{finding}");
        }
    }
    let wal = pitr::pg::page::WalIdentity::read(segment).unwrap();
    let mut reader = Reader::new(&wal).unwrap();
    reader
        .start_segment(wal.start_lsn, pitr::pg::timeline::TimelineId::FIRST)
        .unwrap();
    let mut ends = Ends(start + from as u64, None);
    reader.feed(segment, &mut ends).unwrap();
    ends.1.unwrap()
}

#[test]
fn j89_info_tells_of_segments_that_were_refused_of_late() {
    let still = Still::new(17, 1, 1);
    let name = &still.segments[0];
    still.push(name).succeed();
    let told = || {
        let info = still.site.pitr().words("info --json").run().json();
        let problems = info["clusters"][0]["problems"].as_array().unwrap().clone();
        let mut told = problems.into_iter();
        told.find(|problem| problem["next"] == "pitr wal conflicts")
    };
    assert_eq!(told(), None);
    let mut other = std::fs::read(still.wal(name)).unwrap();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(still.wal(name), &other).unwrap();
    still.push(name).exits(20);
    let problem = told().unwrap();
    assert_eq!(problem["state"], "warning", "{problem}");
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains("refused 1 segment"), "{problem}");

    // A copy that was refused days ago is no news: pitr doctor counts it.
    let copy = conflicts(&still.site).remove(0);
    let copy = still.site.cluster_folder().join("conflicts").join(copy);
    let copy = std::fs::File::options().write(true).open(copy).unwrap();
    let before = std::time::Duration::from_secs(2 * 86_400);
    copy.set_modified(std::time::SystemTime::now() - before)
        .unwrap();
    assert_eq!(told(), None);
    let doctor = still.site.pitr().arg("doctor").run();
    doctor.expect_stdout("1 refused copy");
}

/// Row L07, finding A8: two standbys that are promoted in one segment offer two partials of it.
#[test]
fn a8_l07_another_partial_of_a_segment_is_kept_beside_the_first_and_nobody_waits() {
    let still = Still::new(17, 1, 1);
    let name = &still.segments[0];
    let partial = format!("{name}.partial");
    let whole = std::fs::read(still.wal(name)).unwrap();
    let start = name.parse::<SegmentName>().unwrap();
    let start = start.start_lsn(SegmentSize::new(MIB).unwrap()).unwrap().0;
    let cut = |from: usize, stale: u8| {
        let at = usize::try_from(end_of_a_record(&whole, start, from) - start).unwrap();
        let mut bytes = whole.clone();
        bytes[at..].fill(stale);
        bytes
    };
    let conflicts = still.site.cluster_folder().join("conflicts");
    let offer = |bytes: &[u8]| {
        std::fs::write(still.wal(&partial), bytes).unwrap();
        still.push(&partial).succeed()
    };
    offer(&cut(400_000, 0));
    // Less of the same, and as much with other stale bytes behind: nothing is missing.
    offer(&cut(200_000, 0));
    offer(&cut(400_000, 0xA5));
    assert!(!conflicts.exists());
    // More of the same WAL leads farther, and less than that changes nothing. A tail is not handed out where pg_wal has as much.
    std::fs::remove_file(still.wal(name)).unwrap();
    let longer = cut(600_000, 0);
    let end = usize::try_from(end_of_a_record(&whole, start, 600_000) - start).unwrap();
    let run = offer(&longer);
    assert!(run.stderr.contains("continues it up to"), "{run}");
    assert!(!conflicts.exists());
    for offered in [&longer, &cut(500_000, 0xA5)] {
        let run = offer(offered);
        assert_eq!(run.stderr, "", "{run}");
        let fetched = still.fetched(name);
        assert!(fetched[..end] == whole[..end]);
        assert!(fetched[end..].iter().all(|byte| *byte == 0));
    }
    assert!(!conflicts.exists());
}

/// A partial of a timeline whose number another server has is kept aside. `pitr-archive` reads the kept copy before it acknowledges the partial again.
#[test]
fn p09_a_partial_that_is_kept_aside_is_whole_before_it_is_acknowledged() {
    let still = Still::new(17, 1, 1);
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(still.wal(name), bytes).unwrap();
        user::own(&still.wal(name));
    };
    let history = "00000002.history";
    write(history, b"1\t0/3000000\tx\n");
    still.push(history).succeed();
    write(history, b"1\t0/4000000\tx\n");
    let mut bytes = std::fs::read(still.wal(&still.segments[0])).unwrap();
    for page in bytes.chunks_exact_mut(8192) {
        if page[..2] != [0, 0] {
            page[4..8].copy_from_slice(&2_u32.to_le_bytes());
        }
    }
    let partial = format!("00000002{}.partial", &still.segments[0][8..]);
    write(&partial, &bytes);
    let told = "timeline 2 is that of another server in the archive";
    for _ in 0..2 {
        still.push(&partial).succeed().expect_stderr(told);
    }
    let files = still.site.files();
    let kept: Vec<_> = files.iter().filter(|f| f.contains("/conflicts/")).collect();
    assert_eq!(kept.len(), 1, "{files:?}");
    let kept = still.site.repository().join(kept[0]);
    let mut damaged = std::fs::read(&kept).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&kept, damaged).unwrap();
    let run = still.push(&partial).run();
    assert!(!run.is_success(), "{run}");
    run.expect_stderr("is damaged");
    std::fs::remove_file(&kept).unwrap();
    still.push(&partial).succeed().expect_stderr(told);
    assert!(kept.exists());
}

#[test]
fn pg_waldump_reads_what_comes_back() {
    let Some(waldump) = bin(15, "pg_waldump") else {
        skip!(
            "pg_waldump_reads_what_comes_back",
            "scripts/get-postgres says what it needs"
        );
    };
    let still = Still::new(15, 1, 2);
    still.push_all();
    let sandbox = Sandbox::new("waldump");
    let dump = |path: &std::path::Path| Program::new(&waldump).arg(path).succeed().stdout;
    for name in &still.segments {
        let path = sandbox.join(name);
        still.site.restore().arg(name).arg(&path).succeed();
        assert_eq!(dump(&path), dump(&still.wal(name)));
    }
}
