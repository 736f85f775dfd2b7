//! `pitr verify` through the real program, on repositories of real servers.

use std::path::PathBuf;

use crate::common::{Cluster, Program, Run, Site, Stop, keep_one, list_of, str_of};
use crate::fetch::identity_of;
use crate::per_major;

fn verify(site: &Site) -> Program {
    site.pitr().words("verify --json")
}

fn findings(run: &Run) -> Vec<serde_json::Value> {
    list_of(&run.json()["clusters"][0]["findings"]).clone()
}

/// Rows of several kinds, records across segments, two-phase, a tablespace's worth of files.
fn work(cluster: &Cluster, round: u32) {
    cluster.sql("CREATE TABLE IF NOT EXISTS t(n int, filler text)");
    cluster.sql("INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 8000) n");
    cluster.sql(&format!("DELETE FROM t WHERE n % 3 = {}", round % 3));
    cluster.archive_now();
}

/// WAL that a receiver recorded as lost is a gap also where nothing is stored after it.
#[test]
fn w06_wal_that_was_lost_behind_the_end_of_the_archive_fails_verify() {
    use pitr::repo::event::{Event, record};
    let (site, cluster) = Site::with_cluster(19);
    work(&cluster, 0);
    site.backup();
    let last = cluster.archive_now();
    drop(cluster);
    let number = u64::from_str_radix(&last[16..], 16).unwrap();
    let segment = |n: u64| pitr::pg::lsn::Lsn(n << 20);
    let store = pitr::store::file::FileStore::open(site.repository(), 1).unwrap();
    let folder = site.cluster_folder();
    let identifier = folder.file_name().unwrap().to_str().unwrap();
    let layout =
        pitr::repo::layout::ClusterLayout::new("main", identifier.parse().unwrap()).unwrap();
    let lose = |from: u64, to: u64, nonce: u64| {
        let lost = Event {
            event: "gap".into(),
            subject: "wal-00000001".into(),
            from_lsn: Some(segment(from)),
            to_lsn: Some(segment(to)),
            ..Event::default()
        };
        record(&store, &layout, &lost, nonce).unwrap();
        crate::common::user::own_all(&folder.join("events"));
    };
    // Before the backup: nothing needs it.
    lose(1, 2, 7);
    verify(&site).succeed();
    lose(number + 2, number + 4, 8);
    let run = verify(&site).exits(4);
    let found = findings(&run);
    assert_eq!(found.len(), 1, "{run}");
    assert_eq!(found[0]["kind"], "gap", "{run}");
    let name = |n: u64| format!("{}{n:08X}", &last[..16]);
    let object = format!("{} to {}", name(number + 2), name(number + 3));
    assert_eq!(found[0]["object"], object.as_str(), "{run}");
    let cost = found[0]["costs"][0].as_str().unwrap();
    assert!(cost.contains("is lost"), "{run}");
}

fn a_sound_repository_of_a_real_server_verifies(major: u32) {
    let (site, mut cluster) = Site::with_cluster(major);
    work(&cluster, 0);
    let first = site.backup();
    // A crash in the middle of WAL that is being written, and recovery from it.
    cluster.sql("INSERT INTO t SELECT n, repeat('y', 200) FROM generate_series(1, 3000) n");
    cluster.stop(Stop::Immediate);
    cluster.start();
    work(&cluster, 1);
    let second = site.backup();
    work(&cluster, 2);
    let (run, usage) = verify(&site).measure();
    let run = run.success();
    assert_eq!(findings(&run), Vec::<serde_json::Value>::new());
    eprintln!("verify of two backups: {usage:?}");
    assert!(usage.peak_memory_bytes < 100 << 20, "{usage:?}");
    let json = run.json();
    let report = &json["clusters"][0];
    assert_eq!(report["warnings"].as_array().unwrap().len(), 0, "{report}");
    let ids: Vec<_> = list_of(&report["backups"])
        .iter()
        .map(|b| b["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 2);
    assert!(ids.contains(&first.as_str()) && ids.contains(&second.as_str()));
    assert!(report["segments"].as_u64().unwrap() >= 6);
    site.pitr()
        .args(["verify", "--backup", &first])
        .succeed()
        .expect_stdout("nothing is damaged or missing");
    site.pitr()
        .words("verify --backup 20200101T000000Z-full")
        .exits(2);

    // M11: a segment that somebody deleted is a gap, and verify prints the cost.
    let names: Vec<PathBuf> = segments(&site);
    let victim = &names[names.len() - 2];
    std::fs::remove_file(victim).unwrap();
    let run = verify(&site).exits(4);
    let found = findings(&run);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["kind"], "gap");
    assert_eq!(
        found[0]["object"],
        victim.file_name().unwrap().to_str().unwrap()
    );
    assert!(
        found[0]["costs"][0].as_str().unwrap().contains("on"),
        "{found:?}"
    );
}
per_major!(a_sound_repository_of_a_real_server_verifies, v13 v14 v19);

/// The objects of all segments, in order.
pub fn segments(site: &Site) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = site
        .files()
        .iter()
        .filter(|f| f.contains("/wal/"))
        .filter(|f| f.rsplit('/').next().unwrap().len() == 24)
        .filter(|f| !f.contains("/partial/"))
        .map(|f| site.repository().join(f))
        .collect();
    names.sort();
    names
}

#[test]
fn h05_promotions_and_their_histories_verify() {
    let (site, primary) = Site::with_cluster(19);
    work(&primary, 0);
    let first = site.backup();
    let mut standby = Cluster::builder(19)
        .without_fsync()
        .standby_of(&primary)
        .create();
    site.attach(&standby);
    standby.start();
    work(&primary, 1);
    primary.sql("INSERT INTO t SELECT n, 'tail' FROM generate_series(1, 100) n");
    let end = primary.insert_lsn();
    standby.wait_replayed(&end);
    standby.promote();
    standby.wait_promoted();
    work(&standby, 2);
    let mut primary = primary;
    primary.stop(Stop::Fast);
    let second = backup_of(&site, &standby);
    work(&standby, 0);
    let run = verify(&site).run();
    let found = findings(&run);
    assert!(found.is_empty(), "{found:#?}");
    run.success();

    // The history file is gone: nothing tells what timeline 2 descends from.
    let history = site.cluster_folder().join("wal/00000002/history");
    let kept = std::fs::read(&history).unwrap();
    std::fs::remove_file(&history).unwrap();
    let run = verify(&site).exits(4);
    assert_eq!(findings(&run)[0]["kind"], "missing");
    std::fs::write(&history, kept).unwrap();
    verify(&site).succeed();

    // The only copy of the segment in which the timelines part.
    let at_switch = segments(&site)
        .into_iter()
        .find(|p| p.to_str().unwrap().contains("/wal/00000002/"))
        .unwrap();
    std::fs::remove_file(at_switch).unwrap();
    let run = verify(&site).exits(4);
    let costs = findings(&run)[0]["costs"].to_string();
    assert!(costs.contains("timeline 2: points from"), "{costs}");
    assert!(!costs.contains(&format!("backup {first}")), "{costs}");
    assert!(!costs.contains(&format!("backup {second}")), "{costs}");
}

fn backup_of(site: &Site, cluster: &Cluster) -> String {
    // The configuration names the old primary: the environment speaks for the new one.
    let run = site
        .pitr()
        .words("backup --json")
        .env("PITR_CLUSTERS_MAIN_CONNINFO", cluster.conninfo("postgres"))
        .succeed();
    run.id()
}

#[test]
fn an_empty_repository_is_well_and_says_so() {
    let cluster = Cluster::builder(19).segment_size_mb(1).create();
    let site = Site::new(&cluster);
    site.pitr()
        .arg("verify")
        .succeed()
        .expect_stderr("0 objects");
}

#[test]
fn what_is_no_object_is_told_and_does_not_fail() {
    let (site, cluster) = Site::with_cluster(19);
    work(&cluster, 0);
    let id = site.backup();
    drop(cluster);
    let folder = site.cluster_folder();
    let strays = [
        folder.join("wal/notes.txt"),
        folder.join("packs").join(&id).join("000099"),
        folder.join("wal/00000001/my notes"),
        site.repository().join("lost"),
    ];
    for stray in &strays {
        std::fs::write(stray, "x").unwrap();
    }
    let run = verify(&site).privileged().succeed();
    let warnings = run.json()["clusters"][0]["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 4, "{warnings}");
    // A whole segment under another's name is damage.
    let names = segments(&site);
    std::fs::copy(&names[1], &names[2]).unwrap();
    let run = verify(&site).privileged().exits(4);
    assert_eq!(findings(&run)[0]["kind"], "damaged");
    assert!(str_of(&run.json()["clusters"][0]["findings"][0]["detail"]).contains("it holds"));
}

#[test]
fn damage_is_recorded_and_taken_back_when_it_is_gone() {
    let (site, cluster) = Site::with_cluster(19);
    work(&cluster, 0);
    let id = site.backup();
    drop(cluster);
    let pack = site.cluster_folder().join("packs").join(&id).join("000000");
    let good = std::fs::read(&pack).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 0x10;
    std::fs::write(&pack, bad).unwrap();
    let run = verify(&site).privileged().exits(4);
    let found = findings(&run);
    assert!(found[0]["object"].as_str().unwrap().ends_with("/000000"));
    assert!(str_of(&found[0]["costs"][0]).contains("cannot be restored"));
    let events = || -> Vec<String> {
        let wanted = format!("events/{id}/");
        let mut found: Vec<String> = site.files();
        found
            .retain(|f| f.contains(&wanted) && (f.contains("-damaged-") || f.contains("-healed-")));
        found
    };
    assert_eq!(events().len(), 1);
    // Once is enough, and expire does not count it.
    verify(&site).privileged().exits(4);
    assert_eq!(events().len(), 1);
    site.pitr()
        .args(keep_one(&["--dry-run"]))
        .privileged()
        .exits(8);
    std::fs::write(&pack, good).unwrap();
    verify(&site).privileged().succeed();
    assert_eq!(events().len(), 2);
    site.pitr()
        .args(keep_one(&["--dry-run"]))
        .privileged()
        .succeed();
}

#[test]
fn of_several_repositories_each_is_reported() {
    let (site, cluster) = Site::with_cluster(19);
    work(&cluster, 0);
    let id = site.backup();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let repository = |name: &str| {
        let folder = site.sandbox().join(name);
        format!(
            "[repositories.{name}]\nurl = \"file://{}\"\n",
            folder.display()
        )
    };
    let with = |more: &[&str]| {
        let more: Vec<String> = more.iter().map(|name| repository(name)).collect();
        std::fs::write(site.config(), format!("{config}\n{}", more.join("\n"))).unwrap();
    };
    // The backup is in the first alone.
    with(&["second"]);
    site.pitr().arg("init").succeed();
    let one = |id: &str| site.pitr().args(["verify", "--json", "--backup", id]).run();
    let json = one(&id).success().json();
    assert_eq!(json["clusters"].as_array().unwrap().len(), 1, "{json}");
    one("20200101T000000Z-full").expect_code(2);
    // One that is away: the others are reported, and so is the absence.
    with(&["second", "third"]);
    let run = verify(&site).exits(10);
    assert_eq!(run.json()["clusters"].as_array().unwrap().len(), 2);
    assert!(run.stderr.contains("third"), "{run}");
    // All are away: every one is named, the first decides.
    drop(cluster);
    std::fs::remove_dir_all(site.repository()).unwrap();
    std::fs::remove_dir_all(site.sandbox().join("second")).unwrap();
    for verb in [&["verify"][..], &keep_one(&["--confirm"])] {
        let run = site.pitr().args(verb).run();
        let first = run
            .stderr
            .lines()
            .find(|l| l.starts_with("error "))
            .unwrap();
        assert!(first.contains("repository \"local\""), "{run}");
        for other in ["repository \"second\"", "repository \"third\""] {
            assert!(run.stderr.contains(other), "{run}");
        }
    }
}

#[test]
fn what_a_newer_version_wrote_is_neither_sound_nor_damaged() {
    use pitr::repo::{json, root};
    let (site, cluster) = Site::with_cluster(19);
    work(&cluster, 0);
    let older = site.backup();
    let id = site.backup();
    drop(cluster);
    let key = crate::backup::layout(&site).manifest(&id.parse().unwrap());
    let path = site.repository().join(key.as_str());
    let good = std::fs::read(&path).unwrap();
    // More layers to a shard than this version reads.
    let mut root = crate::backup::root(&site, &id);
    let below = crate::backup::root(&site, &older).map.shards[0].layers[0].clone();
    for _ in 0..128 {
        root.map.shards[0].layers.insert(0, below.clone());
    }
    std::fs::write(&path, json::encode(&key, root::KIND, &root).unwrap()).unwrap();
    let run = verify(&site).exits(10);
    let json = run.json();
    let report = &json["clusters"][0];
    assert_eq!(report["finding_count"], 0, "{report}");
    assert_eq!(report["unsupported_count"], 1, "{report}");
    for shown in report["backups"].as_array().unwrap() {
        assert_eq!(
            shown["restorable"],
            shown["id"] == older.as_str(),
            "{report}"
        );
    }
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("was not checked") && warnings.contains("layers to a shard"),
        "{warnings}"
    );
    let recorded = || {
        site.files()
            .iter()
            .any(|f| f.contains("-damaged-") || f.contains("-healed-"))
    };
    assert!(!recorded(), "nothing is known of it");
    std::fs::write(&path, good).unwrap();
    verify(&site).succeed();
    assert!(!recorded());
}

#[test]
fn a_stray_name_at_the_far_end_is_a_gap_that_is_counted_and_not_walked() {
    let (site, cluster) = Site::with_cluster(19);
    work(&cluster, 0);
    site.backup();
    drop(cluster);
    // Written by a newer version, so that it is not known to be damaged.
    let mut bytes = std::fs::read(segments(&site).remove(0)).unwrap();
    let trailer = bytes.len() - 56;
    bytes[trailer + 11] = 2;
    let crc = crc32c::crc32c(&bytes[trailer..trailer + 44]).to_le_bytes();
    bytes[trailer + 44..trailer + 48].copy_from_slice(&crc);
    let crc = crc32c::crc32c(&bytes[..trailer + 48]).to_le_bytes();
    bytes[trailer + 48..trailer + 52].copy_from_slice(&crc);
    let folder = site.cluster_folder().join("wal/00000001/FFFFFFFF");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("00000001FFFFFFFF000000FF"), bytes).unwrap();
    crate::common::user::own_all(site.repository());
    let run = verify(&site).exits(4);
    assert_eq!(run.json()["clusters"][0]["unsupported_count"], 1, "{run}");
    let found = findings(&run);
    let gap = found.iter().find(|f| f["kind"] == "gap");
    let gap = gap.unwrap_or_else(|| panic!("{run}"));
    let detail = gap["detail"].as_str().unwrap();
    let count: u64 = detail.split(' ').next().unwrap().parse().unwrap();
    // 2^32 times 4096 segments of 1 MiB, less the rest of the last 4 GiB and what is there.
    assert!(((1 << 44) - 4096..1 << 44).contains(&count), "{detail}");
}

#[test]
fn c05_a_record_that_the_server_wrote_wrong_is_named_with_what_it_costs() {
    let (site, mut cluster) = Site::with_cluster(19);
    work(&cluster, 0);
    let first = site.backup();
    work(&cluster, 1);
    let second = site.backup();
    work(&cluster, 2);
    cluster.stop(Stop::Fast);
    // A segment between the two backups is archived as a failing disk would have it.
    let names = segments(&site);
    let json = site.pitr().words("info --json").run().json();
    let backups = json["clusters"][0]["backups"].as_array().unwrap();
    let stop_of = |id: &str| {
        let found = backups.iter().find(|b| b["id"] == id).unwrap();
        let lsn = found["stop_lsn"].as_str().unwrap();
        u64::from_str_radix(lsn.split_once('/').unwrap().1, 16).unwrap()
    };
    let number = stop_of(&first) / (1 << 20) + 1;
    let object = names
        .iter()
        .find(|p| p.to_str().unwrap().ends_with(&format!("{number:08X}")))
        .unwrap();
    let name = object.file_name().unwrap().to_str().unwrap();
    let to = cluster.pgdata().join("pg_wal").join(name);
    let fetched = site.sandbox().join("segment");
    site.restore().arg(name).arg(&fetched).succeed();
    let mut bytes = std::fs::read(&fetched).unwrap();
    bytes[300_000] ^= 4;
    std::fs::write(&to, bytes).unwrap();
    std::fs::remove_file(object).unwrap();
    site.archive()
        .arg(&to)
        .privileged()
        .succeed()
        .expect_stderr("(record checksum)");
    let show = site.pitr().args(["wal", "show", "--json", name]);
    let damage = show.privileged().succeed().json()["damage"][0].clone();
    let damage = damage.as_str().unwrap();
    assert!(damage.starts_with("record checksum at 0/"), "{damage}");
    let run = verify(&site).privileged().exits(4);
    let found = findings(&run);
    assert_eq!(found[0]["kind"], "wal", "{found:#?}");
    assert!(found[0]["object"].as_str().unwrap().ends_with(name));
    let costs = found[0]["costs"].to_string();
    let lost = format!("to {:X}/{:X} are lost", 0, stop_of(&second));
    assert!(costs.contains(&lost), "{found:#?}");
    assert!(!costs.contains("cannot be restored"), "{found:#?}");
}

#[test]
fn c04_pages_that_were_damaged_when_the_backup_was_taken_are_named() {
    let (site, mut cluster) = Site::with_cluster(17);
    work(&cluster, 0);
    let path = cluster.value("SELECT pg_relation_filepath('t')");
    cluster.sql("CHECKPOINT");
    cluster.stop(Stop::Fast);
    let file = cluster.pgdata().join(&path);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[3 * 8192 + 5000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    cluster.start();
    let id = site.pitr().words("backup --json").exits(10).id();
    let run = verify(&site).exits(4);
    let found = findings(&run);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["kind"], "pages");
    let detail = found[0]["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("{path} block 3")), "{detail}");
    // It can still be restored, as what it is; and expire does not count it.
    assert_eq!(run.json()["clusters"][0]["backups"][0]["restorable"], true);
    site.pitr()
        .args(keep_one(&["--dry-run", "--json"]))
        .exits(8)
        .expect_stdout(&id);
}

#[test]
fn z04_bombs_end_where_their_declared_size_ends() {
    use pitr::repo::container::{Codec, Container, ContainerWriter, Kind};
    use pitr::store::file::FileStore;
    use pitr::store::{Key, Store as _};
    const MIB: u64 = 1 << 20;
    let (site, cluster) = Site::with_cluster(19);
    work(&cluster, 0);
    drop(cluster);
    let object = segments(&site).remove(0);
    let raw = {
        let store = FileStore::open(site.repository(), 1).unwrap();
        let key = object.strip_prefix(site.repository()).unwrap();
        let key = Key::new(key.to_str().unwrap()).unwrap();
        let stored = store.open(&key).unwrap().unwrap();
        Container::open(stored).unwrap().read_small(MIB).unwrap()
    };
    let name = object.file_name().unwrap().to_str().unwrap().to_owned();
    let folder = site.cluster_folder();
    let identifier = folder.file_name().unwrap().to_str().unwrap();
    for codec in [Codec::Lz4, Codec::Zstd(1)] {
        let mut writer = ContainerWriter::new(Vec::new(), Kind::Segment, codec).unwrap();
        // It begins as it should.
        writer.write(&raw).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..1024 {
            writer.write(&zeros).unwrap();
        }
        let identity = identity_of(&name, [7; 32], (identifier.parse().unwrap(), 19));
        let mut bomb = writer.finish(&identity, Vec::new()).unwrap();
        // The trailer lies too, under right checksums.
        let trailer = bomb.len() - 56;
        bomb[trailer + 24..trailer + 32].copy_from_slice(&MIB.to_le_bytes());
        let own = crc32c::crc32c(&bomb[trailer..trailer + 44]);
        bomb[trailer + 44..trailer + 48].copy_from_slice(&own.to_le_bytes());
        let all = crc32c::crc32c(&bomb[..trailer + 48]);
        bomb[trailer + 48..trailer + 52].copy_from_slice(&all.to_le_bytes());
        std::fs::write(&object, bomb).unwrap();
        let (run, usage) = verify(&site).privileged().measure();
        let run = run.expect_code(4);
        let found = findings(&run);
        let detail = found[0]["detail"].as_str().unwrap();
        assert!(
            detail.contains("longer than the 1048576 bytes"),
            "{found:#?}"
        );
        assert!(usage.peak_memory_bytes < 100 << 20, "{usage:?}");
    }
}
