//! Several repositories: one that was away, the copy that brings it up to date, and a restore when the other is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pitr::error::{Code, Error, Result};
use pitr::host::Host;
use pitr::pg::time::TimestampTz;
use pitr::pg::timeline::TimelineId;
use pitr::repo::event::{self, Writer};
use pitr::repo::json;
use pitr::repo::repository::{Registration, Repository};
use pitr::repo::root::{TOMBSTONE, Tombstone};
use pitr::repo::scope::Scope;
use pitr::store::file::FileStore;
use pitr::store::{Key, Listed, Meta, NewObject, Object, Room, Store};
use pitr::sync::{Options, Transfer};

use crate::common::s3::{BUCKET, Fault, KEY, S3Server};
use crate::common::{
    Builder, Cluster, Program, Run, Sandbox, Site, Still, Stop, expire_at_once, fault, keep_one,
    paths_below, pin, pitr, user, wait_until,
};

/// A cluster that archives into two repositories, `local` and `second`.
pub struct Two {
    pub site: Site,
    pub cluster: Cluster,
    pub second: PathBuf,
}

impl Two {
    pub fn new() -> Two {
        Two::of(Two::builder())
    }

    /// The cluster of [`Two::new`].
    pub fn builder() -> Builder {
        Cluster::small(17)
    }

    pub fn of(builder: Builder) -> Two {
        let mut cluster = builder.create();
        let site = Site::new(&cluster);
        let second = site.add_repository("second", "required = false\n");
        site.attach(&cluster);
        cluster.start();
        Two {
            site,
            cluster,
            second,
        }
    }

    pub fn first(&self) -> String {
        let config = std::fs::read_to_string(self.site.config()).unwrap();
        let at = config.find("[repositories.").unwrap() + "[repositories.".len();
        config[at..].split(']').next().unwrap().to_owned()
    }

    pub fn work(&self, rows: u32) {
        self.cluster
            .sql("create table if not exists ledger (id serial primary key, note text)");
        self.cluster.sql(&format!(
            "insert into ledger (note) select repeat(md5(g::text), 5) from generate_series(1, {rows}) g"
        ));
        self.cluster.archive_now();
    }

    pub fn backup(&self) -> String {
        let run = self.site.pitr().words("backup --json --quiet").run();
        run.success().id()
    }

    pub fn sync(&self) -> Program {
        self.site.pitr().words("repo sync --json")
    }

    fn away(&self) -> PathBuf {
        self.second.with_extension("away")
    }

    /// Takes the second repository away, or brings it back.
    pub fn is_away(&self, away: bool) {
        let (from, to) = match away {
            true => (self.second.clone(), self.away()),
            false => (self.away(), self.second.clone()),
        };
        std::fs::rename(from, to).unwrap();
    }
}

pub fn transfer(run: &Run, to: &str) -> serde_json::Value {
    let json = run.json();
    let transfers = json["transfers"].as_array().unwrap();
    let found = transfers.iter().find(|t| t["to"] == to);
    found
        .unwrap_or_else(|| panic!("nothing went to {to}: {run}"))
        .clone()
}

/// Says what goes on in one repository, or was found there.
fn is_claim(path: &Path) -> bool {
    let path = path.to_str().unwrap();
    let own = ["-claim-", "-release-", "-verified-"];
    own.iter().any(|kind| path.contains(kind))
}

/// Every object below a repository's clusters, but the claims of one side alone.
pub fn objects(repository: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &Path| {
        path.strip_prefix(repository)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let files = paths_below(&repository.join("clusters")).into_iter();
    let files = files.filter(|path| !is_claim(path) && !name(path).contains(".tmp."));
    files
        .map(|path| (name(&path), std::fs::read(&path).unwrap()))
        .collect()
}

/// The key of the last whole segment.
fn last_segment(objects: &BTreeMap<String, Vec<u8>>) -> String {
    objects.keys().rfind(|n| is_segment(n)).unwrap().clone()
}

pub fn is_segment(key: &str) -> bool {
    let name = key.rsplit('/').next().unwrap();
    key.contains("/wal/") && !key.contains("/open/") && name.len() == 24
}

/// Fails unless both have the same objects, but for WAL from before the first backup.
fn same(a: &Path, b: &Path) {
    let (mut a, mut b) = (objects(a), objects(b));
    let labels = a.keys().filter(|n| n.contains("/labels/"));
    let segment = |label: &String| label.rsplit('/').next().unwrap()[..24].to_owned();
    let first = labels.map(segment).min().expect("there is a backup");
    for side in [&mut a, &mut b] {
        side.retain(|name, _| !is_segment(name) || name.rsplit('/').next().unwrap() >= &*first);
        // Only the repository that verify read has the events of that.
        side.retain(|name, _| !name.contains("/events/checks/"));
        assert!(side.keys().any(|name| name.ends_with(&first)));
    }
    let names = |o: &BTreeMap<String, Vec<u8>>| o.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (name, bytes) in &a {
        // Each side was registered by itself, and its own pushes may have stored the same WAL.
        if !name.ends_with("cluster.json") {
            assert!(b[name] == *bytes, "{name} differs");
        }
    }
}

#[test]
fn one_that_was_away_is_brought_up_to_date_and_recovers_when_the_other_is_lost() {
    let two = Two::new();
    let first_name = two.first();
    let first = two.backup();
    two.work(3000);
    let run = two.sync().succeed();
    let copied = transfer(&run, "second")["copied"].clone();
    assert_eq!(copied["backups"], serde_json::json!([first]), "{run}");
    two.is_away(true);
    two.work(3000);
    let id = two.backup();
    two.work(3000);
    let info = || two.site.pitr().words("info --json").run();
    let second = |run: &Run| run.json()["clusters"][0]["repositories"][1].clone();
    let run = info().expect_code(6);
    assert_eq!(second(&run)["away"]["code"], "no_repository", "{run}");
    assert!(second(&run)["behind_segments"].is_null(), "{run}");
    // If it is required, nothing is acknowledged without it.
    two.site.edit("required = false\n", "");
    two.cluster
        .sql("insert into ledger (note) values ('waits')");
    let waits = two.cluster.switch_wal();
    let client = two.cluster.client();
    wait_until("archiving fails", || {
        let sql = "select coalesce(last_failed_wal, '') from pg_stat_archiver";
        client.value(sql) == waits
    });
    two.sync().exits(9).expect_stdout("second");
    two.is_away(false);
    two.cluster.wait_archived(&waits);

    // Its newest segment is the newest of all; what it missed before is what counts, once it is not on its way any more.
    let run = info();
    let behind = second(&run)["behind_segments"].as_u64().unwrap();
    assert!(behind >= 2, "{run}");
    assert_eq!(second(&run)["behind_backups"], 1, "{run}");
    let hour = std::time::Duration::from_secs(3600);
    for name in objects(two.site.repository())
        .keys()
        .filter(|n| is_segment(n))
    {
        let file = std::fs::File::open(two.site.repository().join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - hour)
            .unwrap();
    }
    let run = info().expect_code(6);
    assert!(
        second(&run)["behind_ms"].as_u64().unwrap() > 3_000_000,
        "{run}"
    );
    run.clone().expect_stdout("pitr repo sync --to second");
    let doctor = two.site.pitr().words("doctor").run();
    doctor.expect_stdout("pitr repo sync --to second");
    let before = objects(&two.second);
    let dry = two.sync().arg("--dry-run").succeed();
    let lacking = transfer(&dry, "second")["lacking"].clone();
    assert_eq!(lacking["backups"], serde_json::json!([id]), "{dry}");
    assert_eq!(lacking["segments"].as_u64(), Some(behind), "{dry}");
    assert!(objects(&two.second) == before, "nothing was written");
    let run = two.sync().succeed();
    let copied = transfer(&run, "second")["copied"].clone();
    assert_eq!(copied["backups"], serde_json::json!([id]), "{run}");
    assert_eq!(copied["segments"], lacking["segments"], "{run}");
    assert_eq!(transfer(&run, &first_name)["copied"]["objects"], 0, "{run}");
    same(two.site.repository(), &two.second);
    let run = info();
    assert_eq!(second(&run)["behind_segments"], 0, "{run}");
    let again = two.sync().succeed();
    assert_eq!(
        transfer(&again, "second")["copied"]["objects"],
        0,
        "{again}"
    );
    two.site.pitr().words("verify --quiet").succeed();

    two.work(500);
    let rows = client.value("select count(*) from ledger");
    drop(client);
    // Renamed: the archiver may be at work in it.
    std::fs::rename(two.site.repository(), two.site.sandbox().join("lost")).unwrap();
    let to = two.site.sandbox().join("copy");
    let restore = two.site.pitr().restore_to(&to).arg("--quiet");
    restore.words("--repository second").succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from ledger"), rows);
}

/// Two backups, WAL behind them, and a second repository that has nothing; the server is gone.
fn filled() -> Two {
    let mut two = Two::new();
    two.is_away(true);
    two.work(1500);
    two.backup();
    two.work(1500);
    two.backup();
    two.work(1500);
    two.cluster.stop(Stop::Fast);
    two.is_away(false);
    two
}

#[test]
fn what_the_receiving_side_expired_does_not_come_back() {
    let two = filled();
    let sync = || two.sync().words("--to second");
    sync().succeed();
    let expire = two.site.pitr().args(expire_at_once());
    expire.words("--repository second").succeed();
    let kept = objects(&two.second);
    let run = sync().succeed();
    assert_eq!(transfer(&run, "second")["copied"]["objects"], 0, "{run}");
    assert!(
        transfer(&run, "second")["unneeded_segments"]
            .as_u64()
            .unwrap()
            > 0,
        "{run}"
    );
    let left = transfer(&run, "second")["left_out"].to_string();
    assert!(left.contains("older than every backup kept there"), "{run}");
    assert!(objects(&two.second) == kept);
    sync().arg("--all").succeed();
    same(two.site.repository(), &two.second);
    // A backup that is marked here is not copied into a fresh one.
    std::fs::remove_dir_all(two.second.join("clusters")).unwrap();
    let mark = keep_one(&["--confirm", "--quiet"]);
    let mark = two.site.pitr().args(mark);
    mark.args(["--repository", &two.first()]).succeed();
    let run = sync().succeed();
    let lacking = &transfer(&run, "second")["lacking"];
    assert_eq!(lacking["backups"].as_array().unwrap().len(), 1, "{run}");
    let left = transfer(&run, "second")["left_out"].to_string();
    assert!(left.contains("marked for deletion"), "{run}");
}

#[test]
fn damage_is_reported_and_not_copied() {
    let two = filled();
    let names = objects(two.site.repository());
    let of = |part: &str| {
        let mut found = names.keys().filter(|n| n.contains(part));
        found.next().unwrap().clone()
    };
    let (segment, pack, layer) = (last_segment(&names), of("/packs/"), of("/layers/"));
    for name in [&segment, &pack] {
        let path = two.site.repository().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let run = two.sync().words("--to second").exits(10);
    let shown = transfer(&run, "second");
    assert_eq!(shown["problem_count"], 2, "{run}");
    assert_eq!(
        shown["copied"]["backups"].as_array().unwrap().len(),
        1,
        "{run}"
    );
    let there = objects(&two.second);
    assert!(!there.contains_key(&segment) && !there.contains_key(&pack));
    let bad = layer.split('/').rev().nth(1).unwrap();
    assert!(
        !there.contains_key(
            &layer
                .replace("/layers/", "/backups/")
                .replace("000000", "manifest")
        )
    );
    assert!(
        there
            .keys()
            .any(|n| n.ends_with("/manifest") && !n.contains(bad))
    );
    // Whole again, the next run copies it; the other backup is newer, so --all has to be given.
    for name in [&segment, &pack] {
        std::fs::write(two.site.repository().join(name), &names[name]).unwrap();
    }
    two.sync().words("--to second --all").succeed();
    same(two.site.repository(), &two.second);
}

/// Puts an object there that the format does not know.
fn put_rubbish(repository: &Path, key: &str) {
    let path = repository.join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "{}\n").unwrap();
    user::own_all(&repository.join("clusters"));
}

/// Returns the objects that `pitr repo sync` cannot read in the repository it copies from.
fn unreadable(run: &Run) -> String {
    transfer(run, "second")["unreadable"].to_string()
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_copied() {
    let two = filled();
    let (first, whole) = (two.site.repository(), objects(two.site.repository()));
    let roots: Vec<&String> = whole.keys().filter(|n| n.ends_with("/manifest")).collect();
    let [old, new] = roots[..] else {
        panic!("{roots:?}")
    };
    let cluster = old.split("/backups/").next().unwrap();
    let history = format!("{cluster}/wal/00000002/history");
    let adopted = "events/cluster/20261120T064049.123456Z-adopted-0000000000000001";
    let other = "clusters/alpha/7/cluster.json";
    flip(first, old);
    put_rubbish(first, &history);
    put_rubbish(first, &format!("{cluster}/{adopted}"));
    put_rubbish(first, other);
    // Every cluster, those too that are in no configuration.
    let all = two.site.sandbox().join("all.toml");
    let config = std::fs::read_to_string(two.site.config()).unwrap();
    std::fs::write(&all, &config[config.find("[repositories.").unwrap()..]).unwrap();
    user::own_all(two.site.sandbox().path());
    let sync = pitr().arg("--config").arg(&all);
    let sync = sync.words("repo sync --json --to second");
    let run = sync.exits(10).expect_stderr(other);
    let id = |root: &str| root.rsplit('/').nth(1).unwrap().to_owned();
    for part in [&id(old), "00000002.history", adopted] {
        assert!(unreadable(&run).contains(part), "{part}: {run}");
    }
    let shown = transfer(&run, "second");
    assert_eq!(
        shown["copied"]["backups"],
        serde_json::json!([id(new)]),
        "{run}"
    );
    let there = objects(&two.second);
    assert!(there.contains_key(&last_segment(&whole)));
    assert!(!there.contains_key(old) && !there.contains_key(&history));
    // Nothing is lacking any more, and still sync reports it.
    let run = sync.exits(10);
    assert!(unreadable(&run).contains(&id(old)), "{run}");
    // Whole again, it comes.
    std::fs::write(first.join(old), &whole[old]).unwrap();
    let run = sync.arg("--all").exits(10);
    assert!(!unreadable(&run).contains(&id(old)), "{run}");
    assert!(objects(&two.second).contains_key(old));
}

#[test]
fn a_backup_whose_reservation_or_marks_cannot_be_read_is_not_copied() {
    let two = filled();
    let (first, whole) = (two.site.repository(), objects(two.site.repository()));
    let roots: Vec<&String> = whole.keys().filter(|n| n.ends_with("/manifest")).collect();
    let id = |root: &str| root.rsplit('/').nth(1).unwrap().to_owned();
    let begin = roots[0].replace("/backups/", "/events/");
    let begin = begin.replace("/manifest", "/begin");
    flip(first, &begin);
    let events = format!("{}/", begin.strip_suffix("/begin").unwrap());
    let events = events.replace(&id(roots[0]), &id(roots[1]));
    let mark = format!("{events}20261120T064049.123456Z-expire-0000000000000001");
    put_rubbish(first, &mark);
    let run = two.sync().words("--to second").exits(10);
    for key in [&begin, &mark] {
        assert!(unreadable(&run).contains(key.as_str()), "{run}");
    }
    let shown = transfer(&run, "second");
    assert_eq!(shown["problem_count"], 2, "{run}");
    let there = objects(&two.second);
    assert!(!there.keys().any(|n| n.ends_with("/manifest")), "{run}");
    assert!(there.contains_key(&last_segment(&whole)));
}

/// Registers a cluster in a repository of which nothing else is there.
fn register(repository: &Path, name: &str, system_identifier: u64) {
    let store = FileStore::open(repository, system_identifier).unwrap();
    let opened = Repository::open(Box::new(store)).unwrap();
    let known = opened.registrations("main").unwrap();
    let registration = Registration {
        name: name.into(),
        system_identifier,
        ..known.into_iter().next().expect("main is registered")
    };
    opened.register(&registration).unwrap();
    user::own_all(repository);
}

#[test]
fn a_second_system_identifier_under_a_name_has_to_be_confirmed() {
    let two = filled();
    let segment = last_segment(&objects(two.site.repository()));
    let own = segment.split('/').nth(2).unwrap();
    register(two.site.repository(), "main", 7);
    let sync = || two.sync().words("--to second");
    let other = two.second.join("clusters/main/7/cluster.json");
    for dry in [&["--dry-run"][..], &[]] {
        let run = sync().args(dry).exits(10);
        let run = run.expect_stderr("--confirm").expect_stderr(own);
        run.expect_stderr("has 7 in");
        assert!(!other.exists());
    }
    assert!(objects(&two.second).contains_key(&segment));
    sync().arg("--confirm").succeed();
    assert!(other.exists());
    sync().succeed();
    // If the name is not known yet, there is nothing that could be mixed up.
    std::fs::remove_dir_all(two.second.join("clusters")).unwrap();
    sync().succeed();
    assert!(other.exists());
    // The repository of another cluster gets nothing of this one.
    let wrong = two.second.join(format!("clusters/main/{own}"));
    std::fs::remove_dir_all(&wrong).unwrap();
    std::fs::remove_dir_all(two.site.repository().join("clusters/main/7")).unwrap();
    let run = sync().exits(1);
    run.expect_stdout("system identifier 7")
        .expect_stdout("wrong_cluster");
    assert!(!wrong.exists());
}

#[test]
fn only_the_named_cluster_is_copied() {
    let two = filled();
    register(two.site.repository(), "other", 7);
    let config = std::fs::read_to_string(two.site.config()).unwrap();
    let config = format!("[clusters.other]\n{config}");
    std::fs::write(two.site.config(), config).unwrap();
    let sync = |cluster: &str| two.sync().args(["--to", "second", "--cluster", cluster]);
    let other = two.second.join("clusters/other");
    let run = sync("main").succeed();
    assert_eq!(
        run.json()["transfers"].as_array().unwrap().len(),
        1,
        "{run}"
    );
    assert!(!other.exists());
    let there = objects(&two.second);
    assert!(there.contains_key(&last_segment(&objects(two.site.repository()))));
    let run = sync("other").succeed();
    assert_eq!(transfer(&run, "second")["cluster"], "other", "{run}");
    assert!(other.join("7/cluster.json").exists());
    let after = objects(&two.second);
    assert!(there.iter().all(|(name, bytes)| after[name] == *bytes));
    assert_eq!(after.len(), there.len() + 1);
    sync("neither").exits(2);
}

#[test]
fn x46_a_copy_without_a_name_is_one_of_each_configured_cluster() {
    let two = filled();
    register(two.site.repository(), "other", 7);
    let config = std::fs::read_to_string(two.site.config()).unwrap();
    let config = format!("[clusters.other]\n{config}");
    std::fs::write(two.site.config(), config).unwrap();
    let run = two.sync().words("--to second").succeed();
    let json = run.json();
    let transfers = json["transfers"].as_array().unwrap().iter();
    let names: BTreeSet<&str> = transfers.filter_map(|t| t["cluster"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["main", "other"]), "{run}");
    assert!(two.second.join("clusters/other/7/cluster.json").exists());
    let there = objects(&two.second);
    assert!(there.contains_key(&last_segment(&objects(two.site.repository()))));
}

#[test]
fn y52_a_cluster_whose_registration_is_lost_is_named() {
    let two = filled();
    let registration = two.site.cluster_folder().join("cluster.json");
    std::fs::remove_file(&registration).unwrap();
    let run = two.sync().words("--to second").exits(1);
    let run = run.expect_stdout("is lost in repository");
    run.expect_stdout("wrong_cluster");
    // A place that holds nothing is none of a cluster.
    std::fs::create_dir_all(two.site.repository().join("clusters/main/9")).unwrap();
    // The other direction brings it back.
    two.sync().succeed();
    assert!(registration.exists());
    let there = objects(&two.second);
    assert!(there.contains_key(&last_segment(&objects(two.site.repository()))));
}

#[test]
fn a_pin_is_there_before_the_backup_is() {
    let two = filled();
    let from = two.site.repository();
    let whole = objects(from);
    let old = whole.keys().find(|n| n.ends_with("/manifest")).unwrap();
    let id = old.rsplit('/').nth(1).unwrap();
    let pin = pin(from, None, id);
    let calls = Calls::new(u64::MAX);
    copy(from, &two.second, &calls, 1).unwrap();
    let created = calls.created.lock().unwrap();
    let at = |name: &str| {
        let found = created.iter().position(|(_, key)| key.ends_with(name));
        found.unwrap_or_else(|| panic!("{name} was not copied: {created:?}"))
    };
    assert!(
        at(&pin) < at(&format!("backups/{id}/manifest")),
        "{created:?}"
    );
    assert!(objects(&two.second).contains_key(old));
}

#[test]
fn other_content_under_the_same_name_is_a_conflict_in_both() {
    let two = filled();
    two.sync().succeed();
    // The same name, pushed by another server: the first repository loses its copy, and gets one with other bytes.
    let segment = last_segment(&objects(two.site.repository()));
    let name = segment.rsplit('/').next().unwrap();
    let other = two.site.sandbox().dir("other").join(name);
    two.site.restore().arg(name).arg(&other).succeed();
    let mut bytes = std::fs::read(&other).unwrap();
    let end = bytes.len() - 100;
    bytes[end] ^= 1;
    std::fs::write(&other, bytes).unwrap();
    std::fs::remove_file(two.site.repository().join(&segment)).unwrap();
    let push = two
        .site
        .pitr()
        .args(["wal", "push", "--repository", &two.first()]);
    push.arg(&other).succeed();
    let run = two.sync().exits(10);
    for to in ["second", &two.first()] {
        let shown = transfer(&run, to);
        assert_eq!(shown["problems"][0]["conflict"], true, "{run}");
        assert_eq!(shown["copied"]["objects"], 0, "{run}");
    }
}

/// Inverts a bit in the middle of an object, and forgets what was recorded of damage.
pub fn flip(repository: &Path, key: &str) {
    let path = repository.join(key);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, bytes).unwrap();
}

fn damage_events(repository: &Path) -> Vec<PathBuf> {
    let names = objects(repository);
    let names = names.keys().filter(|n| n.contains("-damaged-"));
    names.map(|n| repository.join(n)).collect()
}

#[test]
fn t06_what_is_damaged_is_taken_from_another_repository_and_said() {
    let two = filled();
    two.sync().succeed();
    let (first, whole) = (two.site.repository(), objects(two.site.repository()));
    let id = whole.keys().rfind(|n| n.ends_with("/manifest")).unwrap();
    let id = id.rsplit('/').nth(1).unwrap();
    let to = two.site.sandbox().join("restored");
    let restore = || {
        let _ = std::fs::remove_dir_all(&to);
        let program = two.site.pitr().restore_to(&to).arg("--json");
        program.args(["--backup", id])
    };
    let of = |part: &str| {
        let is_it = |n: &&String| n.contains(part) && n.contains(id);
        whole.keys().find(is_it).unwrap().clone()
    };
    let parts = [of("/packs/"), of("/layers/"), of("/server-manifest")];
    for part in &parts {
        flip(first, part);
        let run = restore().succeed();
        run.clone()
            .expect_stderr("was taken from")
            .expect_stderr(part);
        let files = run.json()["restored"]["compared_file_count"].as_u64();
        assert!(files.is_some_and(|n| n > 100), "{run}");
        let events = damage_events(first);
        assert_eq!(events.len(), 1, "the damage is recorded once: {run}");
        assert!(
            objects(first)[part] != whole[part],
            "nothing is healed in silence"
        );
        events.iter().for_each(|e| std::fs::remove_file(e).unwrap());
        std::fs::write(first.join(part), &whole[part]).unwrap();
    }
    // The pack is missing in the one and damaged in the other.
    std::fs::remove_file(first.join(&parts[0])).unwrap();
    flip(&two.second, &parts[0]);
    let run = restore().exits(4);
    let run = run.expect_stdout("files of the backup are damaged");
    assert!(
        run.stdout.contains("pg_control") || run.stdout.contains("base/"),
        "{run}"
    );
    assert!(!to.join("global/pg_control").exists());
    for repository in [first, &two.second] {
        std::fs::write(repository.join(&parts[0]), &whole[&parts[0]]).unwrap();
    }
    // WAL that is damaged in the first leads nowhere there, and in the second to the end.
    let plan = || two.site.pitr().words("plan --json").run();
    let stop = plan().success().json()["stop"].clone();
    let segments: Vec<&String> = whole.keys().filter(|n| is_segment(n)).collect();
    let middle = segments[segments.len() - 2];
    std::fs::remove_file(first.join(middle)).unwrap();
    let target = stop["lsn"].as_str().unwrap();
    let lsn = ["--target-lsn", target];
    let run = two.site.pitr().words("plan --json").args(lsn).run();
    run.clone().success().expect_stderr("\"second\" is used");
    let dry = restore().arg("--dry-run").args(lsn).succeed();
    dry.expect_stderr("\"second\" is used");
    let only = two.site.pitr().args(["plan", "--repository", &two.first()]);
    only.args(lsn).exits(5);
}

#[test]
fn what_a_repository_that_is_away_may_have_is_not_called_lost() {
    let two = filled();
    two.sync().succeed();
    let (first, whole) = (two.site.repository(), objects(two.site.repository()));
    let root = whole.keys().rfind(|n| n.ends_with("/manifest")).unwrap();
    let id = root.rsplit('/').nth(1).unwrap();
    let to = two.site.sandbox().join("restored");
    let restore = || {
        let program = two.site.pitr().args(["restore", "--backup", id, "--to"]);
        program.arg(&to).run()
    };
    for part in ["/packs/", "/layers/", "/server-manifest"] {
        let key = whole.keys().find(|n| n.contains(part) && n.contains(id));
        let key = key.unwrap();
        flip(first, key);
        two.is_away(true);
        let run = restore().expect_code(9);
        let run = run.expect_stderr("repository \"second\"");
        let run = run.expect_stderr("could not be asked");
        assert!(!run.stderr.contains("no repository has"), "{run}");
        assert!(!to.join("global/pg_control").exists());
        // With it there, the same command goes on; with a damaged copy there, it is lost.
        two.is_away(false);
        let copy = std::fs::read(two.second.join(key)).unwrap();
        flip(&two.second, key);
        let run = restore();
        assert!(matches!(run.code(), 1 | 4), "{run}");
        assert!(!run.stderr.contains("could not be asked"), "{run}");
        std::fs::write(two.second.join(key), copy).unwrap();
        restore().success().expect_stderr("was taken from");
        assert!(to.join("global/pg_control").exists());
        std::fs::remove_dir_all(&to).unwrap();
        let events = damage_events(first);
        events.iter().for_each(|e| std::fs::remove_file(e).unwrap());
        std::fs::write(first.join(key), &whole[key]).unwrap();
    }
}

#[test]
fn what_a_repository_that_is_away_may_lead_to_is_not_called_out_of_reach() {
    let two = filled();
    two.sync().succeed();
    let first = two.site.repository();
    let roots = objects(first)
        .into_keys()
        .filter(|n| n.ends_with("/manifest"));
    roots.for_each(|root| std::fs::remove_file(first.join(root)).unwrap());
    let to = two.site.sandbox().join("restored");
    let plan = || two.site.pitr().arg("plan");
    let restore = || two.site.pitr().restore_to(&to);
    let standby = || {
        let standby = two.site.pitr().words("standby --primary-conninfo");
        standby.words("host=primary --to").arg(&to)
    };
    two.is_away(true);
    let unknown = "repository \"second\", which may lead there, could not be asked";
    for command in [plan(), restore(), restore().arg("--dry-run"), standby()] {
        let run = command.exits(9).expect_stderr(unknown);
        let run = run.expect_stderr("is not known");
        assert!(!to.exists(), "{run}");
    }
    for command in [plan(), restore()] {
        let run = command.arg("--json").exits(9);
        assert_eq!(run.json()["reachable"], false, "{run}");
    }
    // Narrowed to one that is there, or with the other there and no better, it is known.
    let narrowed = |command: Program| command.args(["--repository", &two.first()]);
    narrowed(plan()).exits(5);
    narrowed(restore()).exits(5);
    two.is_away(false);
    plan().succeed().expect_stderr("\"second\" is used");
    let later = ["--target-lsn", "FF/0"];
    plan().args(later).exits(5);
    restore().args(later).exits(5);
    restore().succeed();
}

#[test]
fn one_that_is_not_whole_or_lacks_a_backup_is_not_called_up_to_date() {
    let two = filled();
    let second = |run: &Run| run.json()["clusters"][0]["repositories"][1].clone();
    let shown = || two.site.pitr().words("info").run();
    let info = || two.site.pitr().words("info --json").run();
    two.sync().succeed();
    info().success();
    let up_to_date = "repository second: up to date";
    shown().success().expect_stdout(up_to_date);
    let whole = objects(&two.second);
    let root = whole.keys().rfind(|n| n.ends_with("/manifest")).unwrap();
    let id = root.rsplit('/').nth(1).unwrap();
    // A root that cannot be read.
    flip(&two.second, root);
    let run = info().expect_code(6);
    assert!(second(&run)["troubles"].to_string().contains(id), "{run}");
    let run = shown().expect_code(6);
    assert!(!run.stdout.contains(up_to_date), "{run}");
    run.expect_stdout("pitr verify --repository second");
    let doctor = two.site.pitr().arg("doctor").run();
    doctor.expect_stdout("second against the others");
    std::fs::write(two.second.join(root), &whole[root]).unwrap();
    // A segment that verify found damaged.
    let segment = last_segment(&whole);
    flip(&two.second, &segment);
    let verify = ["verify", "--quiet", "--repository", "second"];
    two.site.pitr().args(verify).exits(4);
    let run = info().expect_code(6);
    let name = segment.rsplit('/').next().unwrap();
    assert!(second(&run)["troubles"].to_string().contains(name), "{run}");
    std::fs::write(two.second.join(&segment), &whole[&segment]).unwrap();
    two.site.pitr().args(verify).succeed();
    info().success();
    // The only backups there are.
    for name in whole.keys().filter(|n| n.ends_with("/manifest")) {
        std::fs::remove_file(two.second.join(name)).unwrap();
    }
    let run = info();
    assert_eq!(second(&run)["behind_backups"], 2, "{run}");
    assert!(second(&run)["behind_backups_ms"].is_u64(), "{run}");
    // Nobody to compare with.
    let other = two.site.repository().with_extension("away");
    std::fs::rename(two.site.repository(), &other).unwrap();
    let run = two.site.pitr().words("info --json").run();
    assert_eq!(second(&run)["unasked"][0], two.first(), "{run}");
    let run = shown();
    assert!(!run.stdout.contains(up_to_date), "{run}");
}

#[test]
fn a_copy_that_is_killed_is_finished_by_the_next() {
    crate::require_strace!("a_copy_that_is_killed_is_finished_by_the_next");
    let two = filled();
    let sync = two.sync().words("--to second --jobs 2");
    for nth in 1..=3 {
        let (run, fired) = fault::inject(&sync, &fault::Fault::kill("linkat").at(nth));
        assert!(run.code() == 137 && fired >= 1, "{run}");
    }
    sync.succeed();
    same(two.site.repository(), &two.second);
    two.site.pitr().words("verify --quiet").succeed();
}

/// The receiving side gave the first backup up, and the second one names packs of it.
#[test]
fn x32_expire_leaves_what_a_copy_has_claimed_below_a_tombstone() {
    let mut two = Two::new();
    two.is_away(true);
    two.work(1500);
    two.backup();
    two.work(20);
    let incremental = ["backup", "--incremental", "--quiet"];
    two.site.pitr().args(incremental).run();
    two.cluster.stop(Stop::Fast);
    two.is_away(false);
    let whole = objects(two.site.repository());
    let mut roots: Vec<&String> = whole.keys().filter(|n| n.ends_with("/manifest")).collect();
    // Two of one second stand in any order.
    roots.sort_by_key(|name| name.contains("-incr/"));
    let id = |root: &str| root.rsplit('/').nth(1).unwrap().to_owned();
    let given_up = Tombstone {
        id: id(roots[0]).parse().unwrap(),
        nonce: "0".repeat(32),
    };
    let store = FileStore::open(&two.second, 1).unwrap();
    let key = Key::new(roots[0].clone()).unwrap();
    json::write_plain(&store, &key, TOMBSTONE, &given_up).unwrap();
    let paused = two.second.with_extension("paused");
    let pause = format!("sync-commit={}", paused.display());
    let sync = two.sync().words("--to second");
    let mut running = sync.env("PITR_FAULT_PAUSE", pause).spawn();
    running.until("the copy is complete but for its root", || paused.exists());
    // It leaves the WAL, because no backup is there yet.
    let expire = two.site.pitr().args(expire_at_once());
    expire.words("--repository second").exits(6);
    std::fs::remove_file(&paused).unwrap();
    let copied = running.wait();
    let there = objects(&two.second);
    let shared = format!("/packs/{}/", id(roots[0]));
    let is_there = there.keys().any(|name| name.contains(&shared));
    assert!(is_there, "{copied}: {:#?}", there.keys());
    assert!(there.contains_key(roots[1]));
    let verify = two.site.pitr().words("verify --quiet");
    verify.words("--repository second").succeed();
}

#[test]
fn what_is_known_of_timelines_is_in_a_copy_that_is_cut_short() {
    crate::require_strace!("what_is_known_of_timelines_is_in_a_copy_that_is_cut_short");
    let two = filled();
    let store = FileStore::open(two.site.repository(), 1).unwrap();
    let folder = two.site.cluster_folder();
    let identifier = folder.file_name().unwrap().to_str().unwrap();
    let scope = Scope::cluster("main", identifier.parse().unwrap()).unwrap();
    let now = TimestampTz::from_system_time(std::time::SystemTime::now());
    let host = Host::still(now, 5);
    let writer = Writer::of(&host);
    let subject = event::timeline_subject(TimelineId::new(9).unwrap());
    let name = writer
        .record(&store, &scope, &writer.event("abandon", &subject))
        .unwrap();
    let key = scope.event(&subject, &name).unwrap();
    let there = || two.second.join(key.as_str()).exists();
    let sync = two.sync().words("--to second --jobs 1");
    let backups = two.second.join(scope.prefix()).join("backups");
    // The third object: the first one registers the cluster.
    let (run, fired) = fault::inject(&sync, &fault::Fault::kill("linkat").at(3));
    assert!(run.code() == 137 && fired >= 1, "{run}");
    assert!(!backups.exists() && there());
}

/// The calls to two stores, which fail from the n-th on, as for a process that is dead.
struct Calls {
    count: AtomicU64,
    fatal: u64,
    /// The keys that were created, each with the number of calls by then.
    created: Mutex<Vec<(u64, String)>>,
    /// How often each object was opened, by its path.
    opened: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Calls {
    fn new(fatal: u64) -> Arc<Calls> {
        Arc::new(Calls {
            count: AtomicU64::new(0),
            fatal,
            created: Mutex::default(),
            opened: Mutex::default(),
        })
    }

    fn one(&self) -> Result<()> {
        match self.count.fetch_add(1, Ordering::SeqCst) + 1 >= self.fatal {
            true => Err(Error::new(Code::Unreachable, "the store is gone")),
            false => Ok(()),
        }
    }
}

struct Dying {
    inner: Arc<FileStore>,
    calls: Arc<Calls>,
}

impl Store for Dying {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        self.calls.one()?;
        let path = Path::new(&self.inner.location()).join(key.as_str());
        let mut opened = self.calls.opened.lock().unwrap();
        *opened.entry(path).or_default() += 1;
        drop(opened);
        self.inner.open(key)
    }
    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        self.calls.one()?;
        let inner = self.inner.create(key)?;
        Ok(Box::new(DyingObject {
            inner,
            calls: Arc::clone(&self.calls),
            key: key.to_string(),
        }))
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.calls.one()?;
        self.inner.list(prefix)
    }
    fn head(&self, key: &Key) -> Result<Option<Meta>> {
        self.calls.one()?;
        self.inner.head(key)
    }
    fn delete(&self, key: &Key) -> Result<bool> {
        panic!("a copy deletes \"{key}\"")
    }
    fn room(&self) -> Result<Option<Room>> {
        self.inner.room()
    }
}

struct DyingObject {
    inner: Box<dyn NewObject>,
    calls: Arc<Calls>,
    key: String,
}

impl std::io::Write for DyingObject {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.inner.write(buffer)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl NewObject for DyingObject {
    fn publish(self: Box<Self>) -> Result<pitr::store::Published> {
        self.calls.one()?;
        let published = self.inner.publish()?;
        let by_then = self.calls.count.load(Ordering::SeqCst);
        let mut created = self.calls.created.lock().unwrap();
        created.push((by_then, self.key));
        Ok(published)
    }
}

/// Copies with the library, with this many objects at a time.
fn copy(from: &Path, to: &Path, calls: &Arc<Calls>, jobs: usize) -> Result<()> {
    let quiet = FileStore::open(from, 1).unwrap();
    let quiet = Repository::open(Box::new(quiet)).unwrap();
    let registration = quiet.registrations("main").unwrap().remove(0);
    let open = |path: &Path| {
        let store = Dying {
            inner: Arc::new(FileStore::open(path, 1).unwrap()),
            calls: Arc::clone(calls),
        };
        Repository::open(Box::new(store))
    };
    let now = pitr::pg::time::TimestampTz::from_system_time(std::time::SystemTime::now());
    let host = Host::still(now, calls.fatal << 32);
    let options = Options {
        jobs,
        everything: false,
        rules: None,
    };
    let (from, to) = (open(from)?, open(to)?);
    let transfer = Transfer::new(&from, &to, &registration, options, &host)?;
    let lacking = transfer.plan()?;
    transfer.run(&lacking)?;
    assert_eq!(transfer.report().problems, []);
    Ok(())
}

/// A full backup, and two more that share most of its parts, in one run.
#[test]
fn y48_a_part_that_several_backups_share_is_looked_at_once_a_run() {
    let mut two = Two::new();
    two.is_away(true);
    two.work(1500);
    let full = two.backup();
    for _ in 0..2 {
        two.work(20);
        let incremental = ["backup", "--incremental", "--json", "--quiet"];
        let json = two.site.pitr().args(incremental).succeed().json();
        assert_eq!(json["kind"], "incremental", "{json}");
    }
    two.cluster.stop(Stop::Fast);
    two.is_away(false);
    let calls = Calls::new(u64::MAX);
    copy(two.site.repository(), &two.second, &calls, 2).unwrap();
    let opened = calls.opened.lock().unwrap();
    let is_part = |path: &Path| {
        let path = path.to_str().unwrap();
        path.contains("/packs/") || path.contains("/layers/")
    };
    let there = opened
        .iter()
        .filter(|(path, _)| path.starts_with(&two.second));
    let parts: Vec<(&PathBuf, &u64)> = there.filter(|(path, _)| is_part(path)).collect();
    let is_shared = |path: &Path| path.to_str().unwrap().contains(&format!("/{full}/"));
    assert!(parts.iter().any(|(path, _)| is_shared(path)), "{parts:?}");
    // Those of the last backup were copied, and nobody has compared them.
    let (last, once) = parts.iter().max().unwrap();
    assert!(!is_shared(last), "{parts:?}");
    assert!(parts.iter().all(|(_, n)| n == once), "{parts:?}");
}

/// Removes who claimed something, and released it.
fn remove_claims(repository: &Path) {
    let files = paths_below(&repository.join("clusters"));
    for path in files.iter().filter(|path| is_claim(path)) {
        std::fs::remove_file(path).unwrap();
    }
}

/// Fails unless each backup that is visible is whole, with the WAL that it needs; returns how many there are.
fn usable(site: &Site, repository: &Path, fatal: u64) -> usize {
    if !repository.join("clusters").exists() {
        return 0;
    }
    user::own_all(repository);
    let names = objects(repository);
    let roots = names.keys().filter(|n| n.ends_with("/manifest"));
    let check = |root: &String| {
        let verify = site.pitr().words("verify --quiet --repository");
        let verify = verify.arg(repository).arg("--backup");
        let run = verify.arg(root.rsplit('/').nth(1).unwrap()).run();
        assert!(run.code() == 0, "behind call {fatal}: {run}");
    };
    roots.inspect(|root| check(root)).count()
}

#[test]
fn a_copy_that_dies_at_any_call_to_the_stores_is_finished_by_the_next() {
    let two = filled();
    user::own_all(two.site.sandbox().path());
    let target = tempfile::tempdir_in("/dev/shm").unwrap();
    let fresh = |name: &str| {
        let path = target.path().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        std::fs::copy(two.second.join("pitr.json"), path.join("pitr.json")).unwrap();
        path
    };
    let from = two.site.repository();
    remove_claims(from);
    let calls = Calls::new(u64::MAX);
    copy(from, &fresh("whole"), &calls, 2).unwrap();
    let total = calls.count.load(Ordering::SeqCst);
    // The calls before are the look at both.
    let begin = calls.created.lock().unwrap()[0].0;
    let points: Vec<u64> = match fault::is_long() {
        true => (begin..=total).collect(),
        false => (0..16).map(|n| begin + n * (total - begin) / 15).collect(),
    };
    let (mut died, mut visible) = (0, BTreeSet::new());
    let count = points.len();
    for fatal in points {
        // The next run would look at the claims that each run leaves, and not get to copying.
        remove_claims(from);
        let to = fresh("died");
        if let Err(e) = copy(from, &to, &Calls::new(fatal), 2) {
            assert_eq!(e.code(), Code::Unreachable, "call {fatal}: {e}");
            died += 1;
            visible.insert(usable(&two.site, &to, fatal));
        }
        let again = copy(from, &to, &Calls::new(u64::MAX), 2);
        again.unwrap_or_else(|e| panic!("behind call {fatal}: {e}"));
        same(from, &to);
    }
    // Others may end on their own: the number of calls is not the same in each run.
    assert!(died + 2 >= count, "{died} of {count}");
    // Before the first root, and between the two.
    assert!(visible.contains(&0) && visible.contains(&1), "{visible:?}");
}

#[test]
fn one_that_does_not_answer_is_waited_for_once_and_that_is_said() {
    let still = Still::new(17, 1, 1);
    still.push_all();
    let (store, sandbox) = (S3Server::start(), Sandbox::new("bucket"));
    let text = std::fs::read_to_string(still.site.config()).unwrap();
    let (clusters, local) = text.split_once("[repositories.").unwrap();
    let config = format!(
        "{clusters}[repositories.lost]\nurl = \"s3://{BUCKET}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
         path_style = true\ncredentials_file = \"{}\"\nstall_timeout = \"7s\"\nretry_budget = \"1s\"\n\n[repositories.{local}",
        store.endpoint(),
        store.credentials(&sandbox, KEY).display()
    );
    std::fs::write(still.site.config(), config).unwrap();
    let fired = store.fault("pitr.json", u64::MAX, Fault::Stalled);
    let run = still.site.pitr().words("info").run();
    let run = run
        .expect_stderr("waiting for repository \"lost\"")
        .expect_stderr("is read instead")
        .expect_stdout("repository lost: away");
    assert_eq!(fired.times(), 1, "it is asked once: {}", run.stderr);
    let run = still.site.pitr().words("verify --repository lost");
    run.exits(9)
        .expect_stderr("Look at the network between this host and http://127.0.0.1:");
}

#[test]
fn d_two_names_of_one_place_are_one_copy() {
    let (site, cluster) = Site::with_cluster(15);
    let link = site.sandbox().join("second");
    std::os::unix::fs::symlink(site.repository(), &link).unwrap();
    site.add(&format!(
        "\n[repositories.second]\nurl = \"file://{}\"\n",
        link.display()
    ));
    cluster.archive_now();
    site.pitr().words("backup --quiet").succeed();
    let run = site.pitr().words("info --json").exits(6);
    let repositories = &run.json()["clusters"][0]["repositories"];
    assert!(repositories[0]["same_place_as"].is_null(), "{run}");
    assert_eq!(
        repositories[1]["same_place_as"], repositories[0]["name"],
        "{run}"
    );
    let doctor = site.pitr().arg("doctor").run();
    doctor.expect_stdout("the two are one copy");
}
