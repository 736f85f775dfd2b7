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
use crate::common::{Cluster, PATIENCE, Run, Site, Stop, paths_below, user, wait_until};
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
    site.pitr().args(["verify", "--json"]).args(args).run()
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
    let info = || site.pitr().args(["info", "--json"]).run();
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
    site.pitr().args(expire).run().success();
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
    let since = site.pitr().args(["verify", "--json", "--since", "last"]);
    let since = since.env("PITR_FAULT_LIMIT", "1");
    let mut running = since.clone().args(["--max-rate", "200KiB"]).spawn();
    wait_until(PATIENCE, "some segments are read", || {
        assert!(!running.is_done(), "it was not slow enough");
        events(&site, "checks").len() > 3
    });
    running.signal(Signal::KILL);
    running.wait().expect_code(137);
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
    let run = rest.run().success();
    assert_eq!(read_back(&site), all, "{run}");
    assert_eq!(report(&run)["read_back"]["packs_read"], 2, "{run}");
    // A run without a limit reads them again.
    let run = since.run().expect_code(4);
    assert_eq!(kinds(&run), vec!["damaged"; read.len()], "{run}");
    kept.iter().for_each(|(path, bytes)| replace(path, bytes));
    since.run().success();
}

#[test]
fn sums_are_those_of_the_restored_files() {
    let (site, _cluster, [_, id]) = site(17);
    let sums = ["verify", "--backup", &id, "--sha256sums"];
    let run = site.pitr().args(sums).run().success();
    // Files that a restore writes anew.
    let own = ["backup_label", "postgresql.auto.conf", "postgresql.conf"];
    let is_kept = |line: &&str| !own.iter().any(|name| line.ends_with(&format!("  {name}")));
    let lines: Vec<&str> = run.stdout.lines().filter(is_kept).collect();
    assert!(lines.len() > 500, "{}", lines.len());
    assert!(lines.iter().any(|l| l.ends_with("  global/pg_control")));
    let to = site.sandbox().path().join("restored");
    site.pitr()
        .arg("restore")
        .arg("--to")
        .arg(&to)
        .run()
        .success();
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
        .args([
            "verify",
            "--backup",
            "20200101T000000Z-full",
            "--sha256sums",
        ])
        .run()
        .expect_code(2);
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
        .args(["restore", "--backup", &second, "--to"])
        .arg(site.sandbox().join("copy"))
        .run()
        .expect_code(5);
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
    let running = site.pitr().args(["backup", "--json", "--max-rate", "5MB"]);
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
    site.restore().arg(name).arg(&fetched).run().success();
    let mut bytes = std::fs::read(&fetched).unwrap();
    bytes[300_000] ^= 4;
    std::fs::write(&to, bytes).unwrap();
    std::fs::remove_file(object).unwrap();
    let archived = site.archive().arg(&to).privileged().run().success();
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
    site.pitr().args(plan).run().success();
    lost(&[]);
}

#[test]
fn v41_damage_that_a_report_does_not_list_is_not_taken_for_healed() {
    let (site, _cluster, _) = site(16);
    let names = segments(&site);
    let damaged = [&names[1], &names[3]];
    damaged.iter().for_each(|name| flip(name));
    verify(&site, &[]).expect_code(4);
    let run = site.pitr().args(["verify", "--json"]);
    let run = run.env("PITR_FAULT_LISTED", "1").run().expect_code(4);
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
fn v42_a_store_that_fails_at_the_segment_before_ends_the_check() {
    let (site, _cluster, [_, second]) = site(15);
    let json = site.pitr().args(["info", "--json"]).run().success().json();
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
