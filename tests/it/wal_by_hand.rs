//! `pitr wal push`, `fetch`, `conflicts` and `backfill` through the real program.

use std::path::PathBuf;

use crate::common::reception::lsn;
use crate::common::{Cluster, Program, Sandbox, Site, Still, Stop, user, wait_until};
use crate::per_major;

/// The outcome of each file of a backfill, by name.
fn outcomes(json: &serde_json::Value) -> std::collections::BTreeMap<String, String> {
    let files = json["files"].as_array().unwrap();
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    files
        .iter()
        .map(|f| (text(&f["name"]), text(&f["outcome"])))
        .collect()
}

fn h01_what_a_failed_primary_did_not_archive_comes_from_its_successor(major: u32) {
    let (site, primary) = Site::with_cluster(major);
    primary.sql("create table t (a int)");
    let first = primary.archive_now();
    let mut standby = primary.standby().create();
    // A promoted server archives what it finds .ready: here it must not be able to, either.
    standby.append_config("archive_command", "false");
    // The checkpoint after a promotion recycles what is older; nobody needs it any more but we.
    standby.append_config("wal_keep_size", "256MB");
    standby.start();
    // The repository is away while the primary writes its last three segments, and dies.
    let away = site.sandbox().join("away");
    std::fs::rename(site.repository(), &away).unwrap();
    let lost: Vec<String> = (0..3)
        .map(|n| {
            primary.sql(&format!("insert into t values ({n})"));
            primary.switch_wal()
        })
        .collect();
    primary.sql("insert into t values (9)");
    wait_until("the standby has it", || {
        standby.value("select max(a) from t") == "9"
    });
    drop(primary);
    standby.promote();
    std::fs::rename(&away, site.repository()).unwrap();
    for name in &lost {
        assert!(!site.object(name).exists());
    }

    let wal = standby.pgdata().join("pg_wal");
    let backfill = site.pitr().words("wal backfill --from").arg(&wal);
    let json = backfill.clone().arg("--json").succeed().json();
    // It archives the segment that it writes itself.
    assert_eq!(json["next"], serde_json::json!([]), "{json:#}");
    let done = outcomes(&json);
    for name in &lost {
        assert_eq!(done[name], "stored", "{json:#}");
    }
    assert_eq!(done["00000002.history"], "stored");
    // A segment that is being written is left to the archiver, and so is one that was recycled for later.
    let current = standby.value("select pg_walfile_name(pg_current_wal_lsn())");
    assert_eq!(done[&current], "left_out", "{json:#}");
    assert!(!site.object(&current).exists());
    let partial = done.keys().find(|n| n.ends_with(".partial"));
    assert_eq!(
        partial.map(|n| done[n].as_str()),
        Some("stored"),
        "{json:#}"
    );

    let target = site.sandbox().join("RECOVERYXLOG");
    for name in [&first].into_iter().chain(&lost) {
        site.restore().arg(name).arg(&target).succeed();
        let kept = wal.join(name);
        // The standby began behind the first one, and may never have had it.
        assert!(kept.exists() || *name == first, "{name}");
        assert!(!kept.exists() || std::fs::read(&target).unwrap() == std::fs::read(kept).unwrap());
    }
    let again = backfill.succeed();
    let again = again.expect_stdout(&format!("already there {}", lost[0]));
    assert!(again.stderr.starts_with("0 stored,"), "{again}");
    standby.stop(Stop::Immediate);
}
per_major!(h01_what_a_failed_primary_did_not_archive_comes_from_its_successor, v14 v17 v19);

/// A dead server, whose last commit is in no repository, with the segment in which it lies.
struct Dead {
    site: Site,
    cluster: Cluster,
    committed: String,
    last: String,
}

impl Dead {
    /// `more` writes WAL behind the commit.
    fn new(more: &str) -> Dead {
        let (site, mut cluster) = Site::with_cluster(17);
        site.add_repository("second", "");
        cluster.sql("create table t (a int)");
        site.pitr().words("backup --quiet").succeed();
        cluster.archive_now();
        cluster.sql("insert into t values (1)");
        let committed = cluster.value("select pg_current_wal_lsn()");
        let last = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
        cluster.sql(more);
        cluster.stop(Stop::Immediate);
        Dead {
            site,
            cluster,
            committed,
            last,
        }
    }

    fn path(&self) -> PathBuf {
        self.cluster.pgdata().join("pg_wal").join(&self.last)
    }

    /// Whether a plan comes to the last commit.
    fn is_reached(&self) -> bool {
        let plan = self.site.pitr().words("plan --json").succeed();
        let end = plan.json()["stop"]["recovery_end_lsn"].clone();
        lsn(end.as_str().unwrap()) >= lsn(&self.committed)
    }

    /// Requires that the segment is left out, with this line for it.
    fn backfill(&self, printed: &str) {
        let backfill = self.site.pitr().words("wal backfill --from");
        let run = backfill.arg(self.cluster.pgdata()).succeed();
        let run = run.expect_stderr(printed);
        run.expect_stdout(&format!("left out      {}", self.last));
    }
}

#[test]
fn h01_the_last_segment_of_a_dead_server_is_brought_in_by_the_printed_line() {
    let dead = Dead::new("select 1");
    assert!(!dead.is_reached());
    let (config, path) = (dead.site.config(), dead.path());
    dead.backfill(&format!(
        "pitr wal push --config {} {}",
        config.display(),
        path.display()
    ));
    let run = dead.site.pitr().words("wal push").arg(&path).succeed();
    let warned = run.stderr.matches("archived as a partial segment").count();
    assert_eq!(warned, 1, "one for all repositories: {run}");
    assert!(dead.is_reached());
}

/// The power failed within a record: one of its sectors was not written.
#[test]
fn h01_commits_before_a_torn_record_are_brought_in_by_the_printed_line() {
    let dead = Dead::new("select pg_logical_emit_message(true, 'torn', repeat('y', 50000))");
    let path = dead.path();
    let mut wal = std::fs::read(&path).unwrap();
    let at = usize::try_from(lsn(&dead.committed)).unwrap() % wal.len();
    let page = (at + 10_000).next_multiple_of(8192);
    wal[page + 1024..page + 1536].fill(0);
    std::fs::write(&path, &wal).unwrap();
    let partial = format!("{}.partial", dead.last);
    let config = dead.site.config().display();
    // The copy does not tell of which of several clusters it is.
    let other = "\n[clusters.other]\nconninfo = \"host=/nowhere\"\n";
    dead.site.add(other);
    dead.backfill(&format!(
        "cp {} {partial} && pitr wal push --config {config} --cluster main {partial}",
        path.display()
    ));
    let copy = dead.site.sandbox().join(&partial);
    std::fs::copy(&path, &copy).unwrap();
    user::own(&copy);
    let push = dead.site.pitr().words("wal push --cluster main");
    push.arg(&copy).succeed();
    dead.site.edit(other, "");
    assert!(dead.is_reached());
}

/// Two copies of one cluster were promoted to the same timeline number: what the second writes is none of the first's.
#[test]
fn h04_l17_wal_of_another_timeline_of_the_same_number_is_refused() {
    let still = Still::new(17, 1, 3);
    let begin = still.segments[1].clone();
    let history = |lsn: &str| format!("1\t{lsn}\tno recovery target specified\n");
    let number = u64::from_str_radix(&begin[16..], 16).unwrap();
    let lsn = format!("0/{:X}", (number << 20) + 0x5000);
    let of_second = |name: &str| format!("00000002{}", &name[8..]);
    for name in &still.segments {
        std::fs::copy(still.wal(name), still.wal(&of_second(name))).unwrap();
    }
    user::own_all(&still.wal(""));
    std::fs::write(still.wal("00000002.history"), history(&lsn)).unwrap();
    still.push("00000002.history").succeed();
    // Before the timeline began.
    let run = still.push(&of_second(&still.segments[0])).run();
    run.expect_code(23).expect_stderr("A123");
    still.push(&of_second(&begin)).succeed();
    // Behind its beginning, and from a server that has another history.
    let other = format!("0/{:X}", (number << 20) + 0x6000);
    std::fs::write(still.wal("00000002.history"), history(&other)).unwrap();
    let last = of_second(&still.segments[2]);
    still.push(&last).exits(23);
    // A partial holds up nothing that comes behind: it is kept where nothing reads it.
    let partial = format!("{last}.partial");
    std::fs::copy(still.wal(&last), still.wal(&partial)).unwrap();
    user::own_all(&still.wal(""));
    for _ in 0..2 {
        let run = still.push(&partial).succeed();
        run.expect_stderr("timeline 2 is that of another server");
    }
    assert!(!still.site.object(&partial).exists());
    // That server leaves the number for a higher one: this is its way out, and no damage.
    let third = "00000003.history";
    let later = format!("0/{:X}", (number << 20) + 0x7000);
    let line = format!("2\t{later}\tno recovery target specified\n");
    std::fs::write(still.wal(third), format!("{}{line}", history(&other))).unwrap();
    user::own_all(&still.wal(""));
    still.push(third).succeed();
    let run = still.site.pitr().words("verify --json").run();
    let warning = "timeline 3 descends from another timeline 2 than the archived one";
    assert!(run.stdout.contains(warning), "{run}");
    assert!(
        !run.json()["clusters"][0]["findings"]
            .to_string()
            .contains(third),
        "{run}"
    );
    std::fs::write(still.wal("00000002.history"), history(&lsn)).unwrap();
    still.push(&last).succeed();
}

#[test]
fn backfill_takes_only_what_is_whole_and_goes_on_after_a_conflict() {
    let still = Still::new(17, 1, 4);
    let (conflict, whole) = (&still.segments[0], &still.segments[1]);
    still.push(conflict).succeed();
    let mut bytes = std::fs::read(still.wal(conflict)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(still.wal(conflict), bytes).unwrap();
    // Half a segment over the remains of another: the page in the middle belongs elsewhere.
    let torn = &still.segments[2];
    let old = std::fs::read(still.wal(whole)).unwrap();
    let mut bytes = std::fs::read(still.wal(torn)).unwrap();
    let half = 16384;
    bytes[half..].copy_from_slice(&old[half..]);
    std::fs::write(still.wal(torn), bytes).unwrap();
    // Segments that a server keeps for later are one line: an old segment under another name, and zeros.
    let later = |by: u64| {
        let last = u64::from_str_radix(&still.segments[3][16..], 16).unwrap();
        format!("0000000100000000{:08X}", last + by)
    };
    // The segment that was being written when the server died lies between.
    let spare = [later(20), later(21)];
    std::fs::write(still.wal(&spare[0]), &old).unwrap();
    std::fs::write(still.wal(&spare[1]), vec![0; old.len()]).unwrap();
    user::own_all(&still.wal(""));
    // Cut short, and something else altogether.
    let cut = &still.segments[3];
    let bytes = std::fs::read(still.wal(cut)).unwrap();
    std::fs::write(still.wal(cut), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(still.wal("notes"), "").unwrap();

    let backfill = still
        .site
        .pitr()
        .words("wal backfill --from")
        .arg(still.wal(""));
    let run = backfill.arg("--json").exits(1);
    let done = outcomes(&run.json());
    assert_eq!(done[conflict], "refused", "{run}");
    assert_eq!(done[whole], "stored", "{run}");
    assert_eq!(done[torn], "left_out", "{run}");
    assert_eq!(done[cut], "left_out", "{run}");
    assert!(!done.contains_key("notes"));
    assert!(spare.iter().all(|name| done[name] == "left_out"), "{run}");
    // By the data directory it is the same.
    let run = still
        .site
        .pitr()
        .words("wal backfill --from")
        .arg(still.cluster.pgdata())
        .exits(1);
    assert!(run.stderr.contains("error conflict: "), "{run}");
    let unused: Vec<_> = run
        .stdout
        .lines()
        .filter(|l| l.starts_with("not used yet"))
        .collect();
    assert_eq!(unused.len(), 1, "{run}");
    assert!(unused[0].contains(&format!("to {}", spare[1])), "{run}");
    assert!(
        !run.stdout
            .lines()
            .any(|l| l.contains(&spare[0]) && l.starts_with("left out")),
        "{run}"
    );

    let run = still.site.pitr().words("wal conflicts --json").run();
    let conflicts = run.json();
    let list = conflicts["conflicts"].as_array().unwrap();
    assert_eq!(list.len(), 1, "{run}");
    assert_eq!(list[0]["name"], conflict.as_str(), "{run}");
    let run = still.site.pitr().args(["wal", "conflicts", conflict]).run();
    assert!(run.stdout.contains(conflict.as_str()), "{run}");

    let empty = Sandbox::new("empty");
    still
        .site
        .pitr()
        .words("wal backfill --from")
        .arg(empty.path())
        .exits(2)
        .expect_stderr("there is no WAL file in");
    still
        .site
        .pitr()
        .words("wal backfill --from")
        .arg(empty.join("none"))
        .exits(2)
        .expect_stderr("does not exist");
}

/// The disk of the repository lost its newest writes: the last segment that it has is cut, the one that would prove it is gone.
#[test]
fn v56_a_backfill_goes_on_behind_damage_and_brings_what_proves_it() {
    let still = Still::new(17, 1, 5);
    still.push_all();
    let [_, one, two, gone, last] = still.segments.as_slice() else {
        panic!("{:?}", still.segments)
    };
    for name in [one, two, last] {
        let object = still.site.object(name);
        let bytes = std::fs::read(&object).unwrap();
        std::fs::write(&object, &bytes[..bytes.len() / 2]).unwrap();
    }
    std::fs::remove_file(still.site.object(gone)).unwrap();
    let backfill = still.site.pitr().words("wal backfill --json --from");
    let run = backfill.arg(still.wal("")).exits(1);
    let done = outcomes(&run.json());
    for name in [one, two, gone] {
        assert_eq!(done[name], "stored", "{run}");
        still.check(name);
    }
    // Nothing follows this one.
    assert_eq!(done[last], "refused", "{run}");
    let backfill = still.site.pitr().words("wal backfill --from");
    let run = backfill.arg(still.wal("")).exits(1);
    run.expect_stderr("error damaged: ")
        .expect_stdout(&format!("refused       {last}"));
}

#[test]
fn what_a_backfill_stored_before_it_failed_is_told() {
    let still = Still::new(17, 1, 1);
    let history = still.wal("00000002.history");
    std::fs::write(&history, "1\t0/3000000\tno recovery target specified\n\n").unwrap();
    user::own(&history);
    // History files come first; the folder of the segments may not be entered.
    let closed = still.site.cluster_folder().join("wal/00000001");
    std::fs::create_dir_all(&closed).unwrap();
    user::own_all(still.site.repository());
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let backfill = still.site.pitr().words("wal backfill --json --from");
    let run = backfill.arg(still.wal("")).exits(1);
    assert!(run.stderr.contains("\"denied\""), "{run}");
    let done = outcomes(&run.json());
    assert_eq!(
        done.get("00000002.history").map(String::as_str),
        Some("stored"),
        "{run}"
    );
    assert!(!done.contains_key(&still.segments[0]), "{run}");
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn damaged_and_misplaced_copies_are_told_as_what_they_are() {
    let still = Still::new(17, 1, 2);
    still.push_all();
    let [one, two] = [still.segments[0].as_str(), still.segments[1].as_str()];
    let objects = [one, two].map(|n| still.site.object(n));
    let kept = std::fs::read(&objects[1]).unwrap();
    for name in [one, two] {
        let mut bytes = std::fs::read(still.wal(name)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(still.wal(name), bytes).unwrap();
        still.push(name).exits(20);
    }
    let pitr = |args: &[&str]| still.site.pitr().arg("wal").args(args).privileged().run();
    // The stored copy of one segment is damaged, the refused copy of the other: both are listed.
    std::fs::write(&objects[0], "damaged").unwrap();
    let refused = |name: &str| {
        let entries = std::fs::read_dir(still.site.cluster_folder().join("conflicts")).unwrap();
        let mut paths = entries.map(|e| e.unwrap().path());
        paths.find(|p| p.to_str().unwrap().contains(name)).unwrap()
    };
    std::fs::write(refused(two), "damaged").unwrap();
    let run = pitr(&["conflicts", "--json"]).success();
    let json = run.json();
    let [first, second] = [&json["conflicts"][0], &json["conflicts"][1]];
    assert!(
        first["hash"].is_string() && first["stored_hash"].is_null(),
        "{run}"
    );
    assert!(
        second["hash"].is_null() && second["stored_hash"].is_string(),
        "{run}"
    );
    for (shown, part) in [(first, "/wal/"), (second, "/conflicts/")] {
        assert!(shown["error"].as_str().unwrap().contains(part), "{run}");
    }
    let run = pitr(&["conflicts"]).success();
    assert!(
        run.stdout.contains(one) && run.stdout.contains(two),
        "{run}"
    );
    assert_eq!(run.stderr.matches("warning: object").count(), 2, "{run}");
    // A whole segment under another's name is not shown as that one.
    std::fs::write(&objects[0], kept).unwrap();
    pitr(&["show", two]).success();
    let run = pitr(&["show", one]).expect_code(1);
    assert!(run.stderr.contains(&format!("it holds \"{two}\"")), "{run}");
}

#[test]
fn push_and_fetch_by_hand_have_the_statuses_of_pitr() {
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    let pitr = |args: &[&str]| -> Program {
        still
            .site
            .pitr()
            .arg("wal")
            .args(args)
            .dir(still.cluster.pgdata())
    };
    let path = format!("pg_wal/{name}");
    pitr(&["push", &path]).succeed().expect_stderr("stored");
    pitr(&["push", &path])
        .succeed()
        .expect_stderr("already there");
    let json = pitr(&["push", &path, "--json"]).succeed().json();
    assert_eq!(json["outcome"], "already_there");
    let json = pitr(&["fetch", name, "segment", "--json"]);
    assert_eq!(json.succeed().json()["outcome"], "delivered");
    assert!(
        std::fs::read(still.cluster.pgdata().join("segment")).unwrap()
            == std::fs::read(still.wal(name)).unwrap()
    );
    // Not there is an answer here, and no end of anything.
    let run = pitr(&["fetch", "0000000100000000000000FF", "segment"]).exits(2);
    assert!(run.stderr.contains("is not in the archive"), "{run}");
    for wrong in [
        &["fetch", "nonsense", "segment"][..],
        &["push", "pg_wal/nonsense"],
        &["show", "nonsense"],
        &["conflicts", "nonsense"],
    ] {
        let run = pitr(wrong).exits(2);
        assert!(run.stderr.starts_with("error wal_name: "), "{run}");
    }
    // The text of a history file is shown as it is.
    let history = "1\t0/3000000\tno recovery target specified\n";
    std::fs::write(still.wal("00000002.history"), history).unwrap();
    user::own(&still.wal("00000002.history"));
    pitr(&["push", "pg_wal/00000002.history"]).succeed();
    let run = pitr(&["show", "00000002.history"]).succeed();
    assert_eq!(run.stdout, history, "{run}");
    std::fs::write(still.wal("pitr.guard"), "").unwrap();
    user::own(&still.wal("pitr.guard"));
    pitr(&["push", &path]).exits(8).expect_stderr("pitr adopt");
    std::fs::rename(still.site.repository(), still.site.sandbox().join("away")).unwrap();
    pitr(&["fetch", name, "segment"]).exits(9);
}
