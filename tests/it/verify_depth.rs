//! `pitr verify` that reads less than everything: what leads to the content, or what was read back longest ago.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use pitr::pg::time::TimestampTz;
use pitr::repo::portion::{self, ReadBack};
use rustix::process::Signal;
use serde_json::Value;

use crate::backup::{layout, store};
use crate::backup_soak::home::Home;
use crate::common::{Cluster, Run, Site, Stop, paths_below, user, wait_until};
use crate::verify::segments;

/// A repository with two backups and the WAL between them.
fn site(major: u32) -> (Site, Cluster, [String; 2]) {
    let (site, cluster) = Site::with_cluster(major);
    let work = |round: u32| {
        cluster.sql(&format!(
            "CREATE TABLE t{round} AS SELECT n, repeat('x', 200) FROM generate_series(1, 4000) n"
        ));
        cluster.archive_now();
        site.backup()
    };
    let ids = [work(0), work(1)];
    (site, cluster, ids)
}

fn verify(site: &Site, args: &[&str]) -> Run {
    site.pitr().words("verify --json").args(args).run()
}

fn report(run: &Run) -> Value {
    run.json()["clusters"][0].clone()
}

fn kinds(run: &Run) -> Vec<String> {
    let report = report(run);
    let findings = report["findings"].as_array().unwrap();
    let kind = |f: &Value| f["kind"].as_str().unwrap().to_owned();
    findings.iter().map(kind).collect()
}

fn pack(site: &Site, id: &str) -> PathBuf {
    site.cluster_folder().join("packs").join(id).join("000000")
}

fn events(site: &Site, subject: &str) -> Vec<String> {
    let listed = std::fs::read_dir(site.cluster_folder().join("events").join(subject));
    let names = listed.into_iter().flatten();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn is_verified(site: &Site, id: &str) -> bool {
    events(site, id)
        .iter()
        .any(|name| name.contains("-verified-"))
}

/// Changes one byte in the middle of an object.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    replace(path, &bytes);
}

fn replace(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    user::own_all(path);
}

#[test]
fn fast_finds_what_is_missing_or_does_not_belong_and_reads_no_content() {
    let (site, _cluster, [first, second]) = site(18);
    let whole = report(&verify(&site, &[]).success());
    let run = verify(&site, &["--fast"]).success();
    let read = |report: &Value| report["read_bytes"].as_u64().unwrap();
    assert!(read(&report(&run)) * 10 < read(&whole), "{run}\n{whole}");
    assert_eq!(report(&run)["segments"], whole["segments"], "{run}");
    // Verify does not find damage in content that it does not read.
    let content = pack(&site, &second);
    let good = std::fs::read(&content).unwrap();
    flip(&content);
    verify(&site, &["--fast"]).success();
    // A pack that is shorter than it was.
    replace(&content, &good[..good.len() - 1]);
    assert_eq!(
        kinds(&verify(&site, &["--fast"]).expect_code(4)),
        ["damaged"]
    );
    replace(&content, &good);
    // The pack of another backup in its place.
    replace(&content, &std::fs::read(pack(&site, &first)).unwrap());
    assert_eq!(
        kinds(&verify(&site, &["--fast"]).expect_code(4)),
        ["damaged"]
    );
    replace(&content, &good);
    // PostgreSQL's own manifest.
    let manifest = site.cluster_folder().join("backups").join(&first);
    let manifest = manifest.join("server-manifest");
    let kept = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    assert_eq!(
        kinds(&verify(&site, &["--fast"]).expect_code(4)),
        ["missing"]
    );
    std::fs::write(&manifest, kept).unwrap();
    user::own_all(&manifest);
    // A segment that is gone, one that is cut, and one that is another.
    let names = segments(&site);
    let middle = &names[names.len() - 2];
    let kept = std::fs::read(middle).unwrap();
    std::fs::remove_file(middle).unwrap();
    assert_eq!(kinds(&verify(&site, &["--fast"]).expect_code(4)), ["gap"]);
    std::fs::write(middle, &kept[..kept.len() - 8]).unwrap();
    assert_eq!(
        kinds(&verify(&site, &["--fast"]).expect_code(4)),
        ["damaged"]
    );
    replace(middle, &std::fs::read(&names[names.len() - 3]).unwrap());
    assert_eq!(
        kinds(&verify(&site, &["--fast"]).expect_code(4)),
        ["damaged"]
    );
    replace(middle, &kept);
    // Damage that an earlier run recorded is over only when everything was read.
    verify(&site, &["--fast"]).success();
    let damaged = |run: &Run| run.json()["clusters"][0]["backups"][1]["damaged"].clone();
    let info = || site.pitr().words("info --json").run();
    assert_eq!(damaged(&info()), true);
    verify(&site, &[]).success();
    assert_eq!(damaged(&info()), false);
}

#[test]
fn since_last_goes_on_where_the_last_run_ended_until_everything_was_read() {
    let (site, _cluster, [first, second]) = site(15);
    let share = |run: &Run| report(run)["read_back"].clone();
    let number = |value: &Value| value.as_u64().unwrap();
    let mut before = 0;
    let mut runs = 0;
    loop {
        let run = verify(&site, &["--since", "last", "--max-bytes", "1B"]).success();
        let share = share(&run);
        let read = number(&share["packs_read"]) + number(&share["segments_read"]);
        let all = number(&share["packs"]) + number(&share["segments"]);
        runs += 1;
        assert_eq!(read, before + 1, "{run}");
        before = read;
        // A backup counts as verified with the last of what it needs.
        let is_whole = is_verified(&site, &first) && is_verified(&site, &second);
        assert!(read == all || !is_whole, "{run}");
        if read == all {
            assert!(is_whole, "{run}");
            break;
        }
    }
    assert!(runs > 5);
    let info = site.pitr().arg("info").run();
    info.expect_stdout("read back: 2 of 2 packs");
    // From here on what was read longest ago comes first: the first segment.
    let oldest = segments(&site)[0].clone();
    let kept = std::fs::read(&oldest).unwrap();
    flip(&oldest);
    let run = verify(&site, &["--since", "last", "--max-bytes", "1B"]).expect_code(4);
    assert_eq!(kinds(&run), ["damaged"]);
    // It was not read back whole, and stays the next one.
    replace(&oldest, &kept);
    verify(&site, &["--since", "last", "--max-bytes", "1B"]).success();
    // Without a limit everything is read; one event says all that the others did.
    verify(&site, &["--since", "last"]).success();
    let told = events(&site, "checks").len();
    assert!(told > 5);
    let expire = ["expire", "--keep", "2", "--confirm"];
    site.pitr().args(expire).succeed();
    assert_eq!(events(&site, "checks").len(), 1);
    let run = verify(&site, &["--since", "last", "--for", "0s"]).success();
    assert_eq!(number(&share(&run)["packs_read"]), 2, "{run}");
}

/// The segments of which it is recorded that they were read back.
fn read_back(site: &Site) -> BTreeSet<PathBuf> {
    let (store, layout) = (store(site), layout(site));
    let events = portion::events(&store, &layout).unwrap();
    let now = TimestampTz::from_system_time(SystemTime::now());
    let all = ReadBack::new(&events, &[], now).all();
    let runs = all.segments.values().flat_map(|runs| runs.iter());
    let numbers = runs.flat_map(|(first, last)| first.0..=last.0);
    let name = |n: u64| format!("00000001{:08X}{:08X}", n >> 12, n & 0xFFF);
    numbers.map(|n| site.object(&name(n))).collect()
}

/// Killed in the middle, a run has recorded what it read. The next one reads the rest, and nothing of that: it does not see what is damaged there by now.
#[test]
fn since_last_goes_on_behind_what_a_killed_run_has_read() {
    let (site, _cluster, _) = site(16);
    let all = segments(&site).into_iter().collect::<BTreeSet<_>>();
    // Each object is a step of its own, as a GiB is.
    let since = site.pitr().words("verify --json --since last");
    let since = since.env("PITR_FAULT_LIMIT", "1");
    let mut running = since.clone().words("--max-rate 200KiB").spawn();
    wait_until("some segments are read", || {
        assert!(!running.is_done(), "it was not slow enough");
        events(&site, "checks").len() > 3
    });
    running.ended_by(Signal::KILL).expect_code(137);
    let read = read_back(&site);
    assert!(read.len() > 3 && read.len() < all.len(), "{}", read.len());
    let kept: Vec<_> = read
        .iter()
        .map(|path| (path, std::fs::read(path).unwrap()))
        .collect();
    read.iter().for_each(|path| flip(path));
    let size = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    let packs = paths_below(&site.cluster_folder().join("packs"));
    let rest = all.difference(&read).chain(&packs).map(size).sum::<u64>();
    let rest = since.clone().args(["--max-bytes", &format!("{rest}B")]);
    let run = rest.succeed();
    assert_eq!(read_back(&site), all, "{run}");
    assert_eq!(report(&run)["read_back"]["packs_read"], 2, "{run}");
    // A run without a limit reads them again.
    let run = since.exits(4);
    assert_eq!(kinds(&run), vec!["damaged"; read.len()], "{run}");
    kept.iter().for_each(|(path, bytes)| replace(path, bytes));
    since.succeed();
}

#[test]
fn sums_are_those_of_the_restored_files() {
    let (site, _cluster, [_, id]) = site(17);
    let sums = ["verify", "--backup", &id, "--sha256sums"];
    let run = site.pitr().args(sums).succeed();
    // Files that a restore writes anew.
    let own = ["backup_label", "postgresql.auto.conf", "postgresql.conf"];
    let is_kept = |line: &&str| !own.iter().any(|name| line.ends_with(&format!("  {name}")));
    let lines: Vec<&str> = run.stdout.lines().filter(is_kept).collect();
    assert!(lines.len() > 500, "{}", lines.len());
    assert!(lines.iter().any(|l| l.ends_with("  global/pg_control")));
    let to = site.sandbox().path().join("restored");
    site.pitr().arg("restore").arg("--to").arg(&to).succeed();
    let list = site.sandbox().path().join("sums");
    std::fs::write(&list, lines.join("\n") + "\n").unwrap();
    let check = |args: &[&str]| {
        let mut command = Command::new("sha256sum");
        let command = command.current_dir(&to).arg("--quiet").args(args);
        command.arg("-c").arg(&list).output().unwrap()
    };
    let output = check(&[]);
    assert!(output.status.success(), "{output:?}");
    flip(&to.join("global/pg_control"));
    assert!(!check(&[]).status.success());
    site.pitr()
        .words("verify --backup 20200101T000000Z-full --sha256sums")
        .exits(2)
        .expect_stderr("pitr files sums NAME");
}

/// The server's manifest of a backup.
fn server_manifest(site: &Site, id: &str) -> PathBuf {
    let backup = site.cluster_folder().join("backups").join(id);
    backup.join("server-manifest")
}

#[test]
fn v43_the_servers_manifest_is_read_back_before_a_backup_counts_as_verified() {
    let (site, _cluster, [first, second]) = site(17);
    let manifest = server_manifest(&site, &second);
    let kept = std::fs::read(&manifest).unwrap();
    flip(&manifest);
    let since = ["--since", "last"];
    // Its content is read by a run that reads content.
    verify(&site, &["--fast"]).success();
    let run = verify(&site, &since).expect_code(4);
    assert_eq!(kinds(&run), ["damaged"], "{run}");
    assert!(is_verified(&site, &first) && !is_verified(&site, &second));
    site.pitr()
        .restore_to(site.sandbox().join("copy"))
        .args(["--backup", &second])
        .exits(5);
    // That of another backup, and one that is cut, show without reading.
    for wrong in [
        std::fs::read(server_manifest(&site, &first)).unwrap(),
        kept[..kept.len() - 9].to_vec(),
    ] {
        replace(&manifest, &wrong);
        let run = verify(&site, &["--fast"]).expect_code(4);
        assert_eq!(kinds(&run), ["damaged"], "{run}");
    }
    replace(&manifest, &kept);
    // A run that reads no content proves nothing.
    verify(&site, &["--fast"]).success();
    assert!(!is_verified(&site, &second));
    verify(&site, &since).success();
    assert!(is_verified(&site, &second));
}

/// Takes a backup during which segments are archived, and has one amid them stored as a failing disk would have it. Returns the backup's id.
fn backup_with_a_wrong_record(site: &Site, cluster: &mut Cluster) -> String {
    let running = site.pitr().words("backup --json --max-rate 5MB");
    let mut running = running.spawn();
    while !running.is_done() {
        cluster.sql("create table if not exists w (t text); insert into w select repeat('x', 900) from generate_series(1, 600)");
        cluster.archive_now();
    }
    let run = running.wait().success().json();
    let number = |of: &str| {
        let lsn = run[of].as_str().unwrap().split_once('/').unwrap().1;
        u64::from_str_radix(lsn, 16).unwrap() >> 20
    };
    let (first, last) = (number("start_lsn"), number("stop_lsn"));
    assert!(first + 2 < last, "{run}");
    let name = format!("{:08X}", (first + last) / 2);
    let names = segments(site);
    let object = names.iter().find(|p| p.to_str().unwrap().ends_with(&name));
    let object = object.unwrap();
    let name = object.file_name().unwrap().to_str().unwrap();
    cluster.stop(Stop::Fast);
    let to = cluster.pgdata().join("pg_wal").join(name);
    let fetched = site.sandbox().join("segment");
    site.restore().arg(name).arg(&fetched).succeed();
    let mut bytes = std::fs::read(&fetched).unwrap();
    bytes[300_000] ^= 4;
    std::fs::write(&to, bytes).unwrap();
    std::fs::remove_file(object).unwrap();
    let archived = site.archive().arg(&to).privileged().succeed();
    archived.expect_stderr("(record checksum)");
    user::own_all(site.repository());
    cluster.start();
    run["id"].as_str().unwrap().to_owned()
}

#[test]
fn v45_a_backup_that_recovery_cannot_get_through_stays_lost_in_the_next_runs() {
    let (site, mut cluster, [_, before]) = site(17);
    verify(&site, &[]).success();
    assert!(is_verified(&site, &before));
    let through = backup_with_a_wrong_record(&site, &mut cluster);
    let lost = |args: &[&str]| {
        let run = verify(&site, args).expect_code(4);
        let backups = report(&run)["backups"].as_array().unwrap().clone();
        let of = |id: &str| backups.iter().find(|b| b["id"] == id).unwrap()["restorable"].clone();
        assert_eq!(
            (of(&through), of(&before)),
            (false.into(), true.into()),
            "{run}"
        );
    };
    lost(&[]);
    for _ in 0..3 {
        lost(&["--since", "last", "--max-bytes", "200KB"]);
    }
    assert!(!is_verified(&site, &through));
    let expire = ["expire", "--keep", "1", "--min-age", "1s", "--confirm"];
    site.pitr().args(expire).run();
    let plan = ["plan", "--json", "--target-immediate", "--backup", &before];
    site.pitr().args(plan).succeed();
    lost(&[]);
}

#[test]
fn v41_damage_that_a_report_does_not_list_is_not_taken_for_healed() {
    let (site, _cluster, _) = site(16);
    let names = segments(&site);
    let damaged = [&names[1], &names[3]];
    damaged.iter().for_each(|name| flip(name));
    verify(&site, &[]).expect_code(4);
    let run = site.pitr().words("verify --json");
    let run = run.env("PITR_FAULT_LISTED", "1").exits(4);
    let report = report(&run);
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
    assert!(report["finding_count"].as_u64().unwrap() > 1, "{report}");
    for name in damaged {
        let name = name.file_name().unwrap().to_str().unwrap();
        let events = events(&site, &format!("wal-{name}"));
        let healed = events.iter().filter(|event| event.contains("-healed-"));
        assert!(!events.is_empty() && healed.count() == 0, "{events:?}");
    }
}

#[test]
fn v53_damaged_segments_do_not_take_the_whole_limit_of_a_run() {
    let (site, _cluster, _) = site(16);
    let names = segments(&site);
    for name in [&names[1], &names[3]] {
        flip(name);
    }
    verify(&site, &[]).expect_code(4);
    for _ in 0..2 {
        let before = events(&site, "checks").len();
        let run = verify(&site, &["--since", "last", "--max-bytes", "1B"]).expect_code(4);
        assert_eq!(kinds(&run), ["damaged"], "{run}");
        // Beside the damaged one it has read another object.
        assert!(events(&site, "checks").len() > before, "{run}");
    }
}

#[test]
fn v42_a_store_that_fails_at_the_segment_before_ends_the_check() {
    let (site, _cluster, [_, second]) = site(15);
    let json = site.pitr().words("info --json").succeed().json();
    let backups = json["clusters"][0]["backups"].as_array().unwrap();
    let backup = backups.iter().find(|b| b["id"] == *second).unwrap();
    let start = backup["start_lsn"].as_str().unwrap();
    let start = u64::from_str_radix(start.split_once('/').unwrap().1, 16).unwrap();
    let before = site.object(&format!("0000000100000000{:08X}", start / (1 << 20) - 1));
    let one = ["--backup", &second];
    verify(&site, &one).success();
    // Its name can be listed, and it cannot be read: nothing is known of the border.
    let mode = |mode| std::fs::set_permissions(&before, PermissionsExt::from_mode(mode)).unwrap();
    mode(0o000);
    let run = verify(&site, &one);
    mode(0o640);
    assert!(![0, 4].contains(&run.code()), "{run}");
    verify(&site, &one).success();
    // Damage of that segment is no matter of this backup.
    flip(&before);
    verify(&site, &one).success();
}

/// Takes a full backup and incrementals of it, which share its pack.
fn chain(site: &Site, cluster: &Cluster, count: u32) -> Vec<String> {
    let take = |round: u32| {
        cluster.sql(&format!(
            "CREATE TABLE t{round} AS SELECT n, repeat('x', 200) FROM generate_series(1, 2000) n"
        ));
        cluster.archive_now();
        let words: &[&str] = match round {
            0 => &[],
            _ => &["--incremental"],
        };
        let backup = site.pitr().words("backup --json --method local");
        let run = backup.args(words).succeed();
        let kind = if round == 0 { "full" } else { "incremental" };
        assert_eq!(run.json()["kind"], kind, "{run}");
        run.id()
    };
    (0..count).map(take).collect()
}

/// The backups that a report says cannot be restored because of an object.
fn lost_by(run: &Run, part: &str) -> BTreeSet<String> {
    let report = report(run);
    let findings = report["findings"].as_array().unwrap().iter();
    let about = findings.filter(|f| f["object"].as_str().unwrap().contains(part));
    let costs = about.map(|f| f["costs"][0].as_str().unwrap().to_owned());
    let id = |cost: String| {
        let id = cost.strip_prefix("backup ").unwrap();
        id.strip_suffix(" cannot be restored").unwrap().to_owned()
    };
    costs.map(id).collect()
}

#[test]
fn v46_damage_of_what_backups_share_is_found_for_each_of_them() {
    let (site, cluster) = Site::with_cluster(18);
    let ids = chain(&site, &cluster, 3);
    // All count as verified: what they share is read as the newest one's.
    verify(&site, &[]).success();
    assert!(ids.iter().all(|id| is_verified(&site, id)));
    let all: BTreeSet<String> = ids.iter().cloned().collect();
    let shared = pack(&site, &ids[0]);
    let kept = std::fs::read(&shared).unwrap();
    let part = format!("/packs/{}/", ids[0]);
    flip(&shared);
    let of_content: [&[&str]; 2] = [&[], &["--since", "last"]];
    for args in of_content {
        let run = verify(&site, args).expect_code(4);
        assert_eq!(lost_by(&run, &part), all, "{run}");
    }
    // Its end shows without content.
    replace(&shared, &kept[..kept.len() - 1]);
    let of_all: [&[&str]; 3] = [&["--fast"], &[], &["--since", "last"]];
    for args in of_all {
        let run = verify(&site, args).expect_code(4);
        assert_eq!(lost_by(&run, &part), all, "{run}");
    }
    for id in &ids {
        let events = events(&site, id);
        let is_damaged = events.iter().any(|name| name.contains("-damaged-"));
        assert!(is_damaged, "{id}: {events:?}");
    }
    // A full check compares each of them anew, and ends it.
    replace(&shared, &kept);
    verify(&site, &[]).success();
    let info = site.pitr().words("info --json").run().json();
    let backups = info["clusters"][0]["backups"].as_array().unwrap();
    assert!(backups.iter().all(|b| b["damaged"] == false), "{info}");
}

/// How often packs of a backup were asked for, and how many of them.
fn pack_requests(home: &Home, id: &str) -> (usize, usize) {
    let log = home.server().log();
    let part = format!("/packs/{id}/");
    let reads = log.iter().filter(|line| line.starts_with("GET "));
    let names = reads.filter_map(|line| line.split_once(&part));
    let names: Vec<&str> = names.filter_map(|(_, rest)| rest.get(..6)).collect();
    (names.len(), names.iter().collect::<BTreeSet<_>>().len())
}

#[test]
fn v46_v48_what_backups_share_is_looked_at_once_a_run() {
    let builder = Cluster::small(18);
    let mut cluster = builder.create();
    let home = Home::new(&cluster, true, false);
    home.attach(&cluster);
    cluster.start();
    let take = |round: u32| {
        cluster.sql(&format!("create table t{round} (n int)"));
        let backup = home.pitr().words("backup --json --incremental");
        backup.succeed().id()
    };
    let ids: Vec<String> = (0..5).map(take).collect();
    cluster.archive_now();
    let requests = |args: &[&str]| {
        home.server().clear_log();
        home.pitr().words("verify --json").args(args).succeed();
        pack_requests(&home, &ids[0])
    };
    // The directory of a pack, at its end.
    let (fast, packs) = requests(&["--fast"]);
    assert!((1..=2 * packs).contains(&fast), "{fast} of {packs}");
    // Each backup is compared with its map and its server's manifest before it counts as verified, and then no more.
    let (compared, _) = requests(&[]);
    let (once, _) = requests(&["--backup", &ids[4]]);
    let (again, _) = requests(&[]);
    assert!(once * 3 < compared, "{once} {compared}");
    assert!(again <= once + 1, "{again} {once}");
}

#[test]
fn v47_limits_hold_for_the_structure_too_and_each_backup_has_its_turn() {
    let (site, _cluster, [first, second]) = site(18);
    let run = |limit: [&str; 2]| {
        let since = site.pitr().words("verify --json --since last");
        // The least that is read of maps is a GiB otherwise.
        let since = since.env("PITR_FAULT_LIMIT", "1").args(limit);
        report(&since.succeed())
    };
    let is_done = || is_verified(&site, &first) && is_verified(&site, &second);
    let mut looked = BTreeSet::new();
    for round in 0..300 {
        let limit = match round % 2 {
            0 => ["--max-bytes", "1B"],
            _ => ["--for", "0s"],
        };
        let report = run(limit);
        assert_eq!(report["unlooked_backups"], 1, "{report}");
        let [backup] = &report["backups"].as_array().unwrap()[..] else {
            panic!("{report}");
        };
        looked.insert(backup["id"].as_str().unwrap().to_owned());
        // A backup that the run did not look at does not count as verified.
        for id in [&first, &second] {
            assert!(!is_verified(&site, id) || looked.contains(id), "{report}");
        }
        if is_done() {
            break;
        }
    }
    assert!(is_done());
    let run = site.pitr().words("verify --since last");
    let limited = run.clone().words("--for 0s").succeed();
    let limited = limited.expect_stdout("1 of 1 backup can be restored");
    limited.expect_stdout("1 backup not looked at");
    let whole = run.succeed();
    assert!(!whole.stdout.contains("not looked at"), "{whole}");
}

#[test]
fn v48_a_full_check_that_is_killed_has_recorded_what_it_read() {
    let (site, _cluster, _) = site(17);
    let verify = site.pitr().words("verify --json");
    let slow = verify.env("PITR_FAULT_LIMIT", "1");
    let mut running = slow.words("--max-rate 500KB").spawn();
    // The WAL, and the newest backup.
    wait_until("a backup is read", || {
        assert!(!running.is_done(), "it was not slow enough");
        events(&site, "checks").len() > 1
    });
    running.ended_by(Signal::KILL).expect_code(137);
    let info = site.pitr().arg("info").run();
    info.expect_stdout("read back: 1 of 2 packs");
}
