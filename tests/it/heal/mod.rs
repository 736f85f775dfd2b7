//! Healing: what is damaged or missing in one repository comes back from another one that has it whole (format, section 12).

mod campaign;
pub mod copies;
mod pages;
mod servers;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Program, Run, Site, Still, expire_at_once};
use crate::several::{Two, flip, is_segment, objects};

/// Two repositories with the same backup and the same WAL; the server is gone.
struct Pair {
    two: Two,
    id: String,
}

impl Pair {
    fn new() -> Pair {
        let two = Two::new();
        two.work(3000);
        let id = two.backup();
        two.work(500);
        two.sync().succeed();
        Pair { two, id }
    }

    fn first(&self) -> &Path {
        self.two.site.repository()
    }

    fn verify(&self, args: &[&str]) -> Program {
        let name = self.two.first();
        let program = self.two.site.pitr().words("verify --json --repository");
        program.arg(name).args(args)
    }

    /// All but events: checks write those.
    fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let mut objects = objects(self.first());
        objects.retain(|key, _| !key.contains("/events/"));
        objects
    }

    /// The first object of the backup whose key has this part.
    fn object(&self, part: &str) -> String {
        let objects = self.objects();
        let found = objects.keys().find(|key| key.contains(part));
        found
            .unwrap_or_else(|| panic!("no object has {part}: {:?}", objects.keys()))
            .clone()
    }

    /// A segment that a restore reads.
    fn segment(&self) -> String {
        let objects = self.objects();
        let labels = objects.keys().find(|key| key.contains("/labels/")).unwrap();
        let first = labels.rsplit('/').next().unwrap()[..24].to_owned();
        let found = objects
            .keys()
            .find(|k| is_segment(k) && k.ends_with(&first));
        found.unwrap().clone()
    }

    /// A restore from the first repository, while the second one is away. Every file is compared with the server's manifest.
    fn restores(&self) -> Run {
        self.two.is_away(true);
        let to = self.two.site.sandbox().join("restored");
        let restore = self.two.site.pitr().words("restore --json --to");
        let run = restore.arg(&to).run();
        self.two.is_away(false);
        let _ = std::fs::remove_dir_all(&to);
        run
    }

    fn fetches(&self, segment: &str) -> Vec<u8> {
        self.two.is_away(true);
        let name = segment.rsplit('/').next().unwrap();
        let to = self.two.site.sandbox().join("fetched");
        let fetch = self.two.site.pitr().args(["wal", "fetch", name]).arg(&to);
        let fetch = fetch.args(["--repository", &self.two.first()]);
        let id = self.two.site.system_identifier().to_string();
        fetch.args(["--system-identifier", &id]).succeed();
        self.two.is_away(false);
        std::fs::read(to).unwrap()
    }
}

fn member<'a>(run: &'a Value, name: &str) -> &'a Vec<Value> {
    run["clusters"][0][name].as_array().unwrap()
}

fn copy_of(repository: &Path, key: &str, number: u32) -> PathBuf {
    repository.join(format!("{key}.heal-{number}"))
}

/// The thinnest whole path: one pack and one segment, healed, and then all that is needed without the other repository.
#[test]
fn v01_a_damaged_pack_and_a_damaged_segment_are_healed_from_another_repository() {
    let pair = Pair::new();
    let (pack, segment) = (pair.object("/packs/"), pair.segment());
    let whole = pair.objects();
    let wal = pair.fetches(&segment);
    for key in [&pack, &segment] {
        flip(pair.first(), key);
    }
    let damaged = pair.objects();
    assert!([&pack, &segment].iter().all(|k| damaged[*k] != whole[*k]));
    let found = pair.verify(&[]).exits(4).json();
    assert!(member(&found, "findings").len() >= 2, "{found}");
    pair.restores().expect_code(9);

    // A dry run says the same, and writes nothing.
    let before = pair.objects();
    let dry = pair.verify(&["--heal", "--dry-run"]).exits(4).json();
    assert_eq!(member(&dry, "healed").len(), 2, "{dry}");
    assert!(pair.objects() == before, "a dry run wrote something");

    let healed = pair.verify(&["--heal"]).succeed().json();
    assert_eq!(member(&healed, "findings").len(), 0, "{healed}");
    assert_eq!(member(&healed, "healed").len(), 2, "{healed}");
    assert_eq!(member(&healed, "not_healed").len(), 0, "{healed}");
    for key in [&pack, &segment] {
        assert_eq!(
            std::fs::read(copy_of(pair.first(), key, 1)).unwrap(),
            whole[key]
        );
        // The damaged original stays what it is.
        assert_eq!(pair.objects()[key], damaged[key]);
    }
    let again = pair.verify(&["--heal"]).succeed().json();
    assert_eq!(member(&again, "healed").len(), 0, "{again}");
    assert!(!copy_of(pair.first(), &pack, 2).exists());

    assert!(pair.fetches(&segment) == wal);
    let restored = pair.restores().success().json();
    assert_eq!(
        restored["restored"]["backup"],
        Value::from(pair.id.as_str()),
        "{restored}"
    );
}

/// Damage that a restore came upon is recorded; a sync that heals looks at it, and at what is missing.
#[test]
fn v10_a_sync_that_heals_mends_what_is_recorded_as_damaged_and_what_is_missing() {
    let pair = Pair::new();
    let whole = pair.objects();
    let damaged = [pair.object("/packs/"), pair.object("/relations")];
    let missing = pair.object("/server-manifest");
    for key in &damaged {
        flip(pair.first(), key);
    }
    std::fs::remove_file(pair.first().join(&missing)).unwrap();
    pair.restores().expect_code(9);
    let sync = |args: &[&str]| pair.two.sync().words("--heal").args(args).run();
    let before = pair.objects();
    let dry = sync(&["--dry-run"]).expect_code(10).json();
    assert_eq!(
        dry["healed"][0]["healed"].as_array().unwrap().len(),
        3,
        "{dry}"
    );
    assert!(pair.objects() == before, "a dry run wrote something");
    let done = sync(&[]).success().json();
    let healed = done["healed"].as_array().unwrap();
    assert_eq!(healed.len(), 1, "the second repository is whole: {done}");
    assert_eq!(healed[0]["healed"].as_array().unwrap().len(), 3, "{done}");
    for key in &damaged {
        let copy = std::fs::read(copy_of(pair.first(), key, 1)).unwrap();
        assert!(copy == whole[key], "another copy of {key}");
    }
    // A missing object comes back under its own key.
    assert!(pair.objects()[&missing] == whole[&missing]);
    let again = sync(&[]).success().json();
    assert_eq!(again["healed"].as_array().unwrap().len(), 0, "{again}");
    pair.restores().success();
}

#[test]
fn v11_healed_copies_go_with_their_backup() {
    let pair = Pair::new();
    let keys = [
        pair.object("/packs/"),
        pair.object("/layers/"),
        pair.object("/manifest"),
        pair.segment(),
    ];
    for key in &keys {
        flip(pair.first(), key);
    }
    pair.verify(&["--heal"]).succeed();
    assert!(
        keys.iter()
            .all(|key| copy_of(pair.first(), key, 1).exists())
    );
    pair.two.work(100);
    pair.two.backup();
    pair.verify(&[]).succeed();
    let expire = pair.two.site.pitr().args(expire_at_once());
    expire.args(["--repository", &pair.two.first()]).succeed();
    let left: Vec<String> = pair
        .objects()
        .into_keys()
        .filter(|k| k.contains(".heal-"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(keys.iter().all(|key| !pair.first().join(key).exists()));
    pair.verify(&[]).succeed();
}

#[test]
fn v08_gaps_are_filled_from_the_servers_pg_wal_and_from_other_repositories() {
    let two = Two::new();
    two.work(500);
    two.backup();
    // Kept in pg_wal: all of it, for the server is young.
    for _ in 0..6 {
        two.work(200);
    }
    two.sync().succeed();
    let first = two.site.repository();
    let segments: Vec<String> = objects(first)
        .into_keys()
        .filter(|k| is_segment(k))
        .collect();
    let missing = &segments[segments.len() - 3..segments.len() - 1];
    let whole: Vec<Vec<u8>> = missing
        .iter()
        .map(|k| std::fs::read(first.join(k)).unwrap())
        .collect();
    let name = two.first();
    let gaps = |args: &[&str]| two.site.pitr().words("wal gaps --json").args(args).run();
    let lose = |from: &Path| {
        missing
            .iter()
            .for_each(|k| std::fs::remove_file(from.join(k)).unwrap());
    };

    // The other repository gives, where the server has nothing.
    let pgdata = format!(
        "PITR_CLUSTERS_MAIN_PGDATA={}",
        two.site.sandbox().join("none").display()
    );
    let (variable, none) = pgdata.split_once('=').unwrap();
    lose(first);
    gaps(&["--repository", &name]).expect_code(4);
    let fill = two
        .site
        .pitr()
        .words("wal gaps --json --heal")
        .env(variable, none)
        .env("PITR_CLUSTERS_MAIN_CONNINFO", format!("host={none}"));
    let fill = fill.args(["--repository", &name]);
    // A dry run counts nothing that the other one has not whole.
    let there = two.second.join(&missing[0]);
    flip(&two.second, &missing[0]);
    let dry = fill.clone().arg("--dry-run").exits(4).json();
    let healed = &dry["repositories"][0]["healed"];
    assert_eq!(healed.as_array().unwrap().len(), 1, "{dry}");
    std::fs::write(there, &whole[0]).unwrap();
    let run = fill.succeed();
    let done = run.json();
    assert_eq!(
        done["repositories"][0]["healed"].as_array().unwrap().len(),
        2,
        "{done}"
    );
    assert_eq!(
        done["repositories"][0]["healed"][0]["from"], "second",
        "{done}"
    );
    for (key, bytes) in missing.iter().zip(&whole) {
        assert!(std::fs::read(first.join(key)).unwrap() == *bytes);
    }

    // The server gives, where both repositories lack them.
    lose(first);
    lose(&two.second);
    let dry = gaps(&["--heal", "--dry-run"]).expect_code(4).json();
    assert_eq!(
        dry["repositories"][0]["healed"].as_array().unwrap().len(),
        2,
        "{dry}"
    );
    assert!(!first.join(&missing[0]).exists());
    // One that cannot be listed hides nothing of what was done in the other.
    let folder = two.second.join(&missing[0]);
    let folder = folder.parent().unwrap();
    let mode = |bits: u32| Permissions::from_mode(bits);
    std::fs::set_permissions(folder, mode(0)).unwrap();
    let partial = gaps(&["--heal"]).expect_code(10);
    std::fs::set_permissions(folder, mode(0o700)).unwrap();
    let done = partial.json();
    let healed = done["repositories"][0]["healed"].as_array().unwrap();
    assert_eq!(healed.len(), 2, "{done}");
    lose(first);
    let done = gaps(&["--heal"]).success().json();
    assert_eq!(done["repositories"].as_array().unwrap().len(), 2, "{done}");
    for key in missing {
        assert!(
            first.join(key).exists() && two.second.join(key).exists(),
            "{key}: {done}"
        );
    }
    // Neither has one: it stays a gap, and that is the status.
    for root in [first, &two.second] {
        std::fs::remove_file(root.join(&missing[0])).unwrap();
    }
    std::fs::remove_file(
        two.cluster
            .pgdata()
            .join("pg_wal")
            .join(missing[0].rsplit('/').next().unwrap()),
    )
    .unwrap();
    let left = gaps(&["--heal"]).expect_code(4).json();
    assert_eq!(left["repositories"][0]["gaps"][0]["segments"], 1, "{left}");
}

#[test]
fn v08_a_segment_that_is_offered_again_heals_the_damaged_one() {
    let still = Still::new(17, 1, 3);
    still.push_all();
    let name = &still.segments[1];
    let object = still.site.object(name);
    let whole = std::fs::read(&object).unwrap();
    let damage = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(&object, bytes).unwrap();
    };
    damage(whole.len() / 2);
    still.fetch(name).exits(201);
    still.push(name).succeed().expect_stderr("it is healed");
    still.check(name);
    // It is healed, and stays so; no copy comes twice.
    still.push(name).succeed();
    let folder = object.parent().unwrap();
    assert!(folder.join(format!("{name}.heal-1")).exists());
    assert!(!folder.join(format!("{name}.heal-2")).exists());
    // A conflict cannot be excluded once it does not say what it held.
    std::fs::remove_file(folder.join(format!("{name}.heal-1"))).unwrap();
    damage(whole.len() - 2);
    still.push(name).exits(35).expect_stderr("is damaged");
    assert!(!folder.join(format!("{name}.heal-1")).exists());
}

/// One repository, and the server that still has its WAL: no other place has what is lost.
#[test]
fn v08_a_damaged_segment_is_healed_from_the_servers_own_pg_wal() {
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create table t (a text)");
    site.pitr().words("backup --quiet").succeed();
    for _ in 0..6 {
        cluster.sql("insert into t select repeat('x', 500) from generate_series(1, 100)");
        cluster.archive_now();
    }
    let root = site.repository().to_owned();
    let all = objects(&root).into_keys();
    let all: Vec<String> = all.filter(|k| is_segment(k)).collect();
    let [.., cut, changed, gone, _, last] = all.as_slice() else {
        panic!("{all:?}")
    };
    let name = |key: &String| key.rsplit('/').next().unwrap().to_owned();
    let in_pg_wal = |key: &String| cluster.pgdata().join("pg_wal").join(name(key));
    let served = |key: &String| {
        let to = site.sandbox().join("fetched");
        let fetch = site.pitr().args(["wal", "fetch", &name(key)]).arg(&to);
        fetch.succeed();
        std::fs::read(to).unwrap() == std::fs::read(in_pg_wal(key)).unwrap()
    };
    // One still says its hash. The link of its successor tells which the one was that was cut.
    copies::damage(&root, changed, 0);
    copies::damage(&root, cut, 2);
    std::fs::remove_file(root.join(gone)).unwrap();
    let verify = |args: &[&str]| site.pitr().arg("verify").args(args).run();
    let run = verify(&[]).expect_code(4);
    assert!(
        run.stdout
            .contains("--heal writes what a server's pg_wal still has"),
        "{run}"
    );

    let before = objects(&root);
    let dry = verify(&["--heal", "--dry-run", "--json"])
        .expect_code(4)
        .json();
    assert_eq!(member(&dry, "healed").len(), 3, "{dry}");
    let written = objects(&root);
    let is_event = |key: &&String| key.contains("/events/");
    assert!(
        written
            .keys()
            .filter(|k| !is_event(k))
            .eq(before.keys().filter(|k| !is_event(k)))
    );

    let run = verify(&["--heal"]).success();
    let giver = cluster.pgdata().join("pg_wal");
    let lines = run.stdout.lines().filter(|l| l.starts_with("healed: "));
    let own = format!(", from \"{}\"", giver.display());
    assert_eq!(lines.filter(|l| l.ends_with(&own)).count(), 3, "{run}");
    assert!([changed, cut, gone].iter().all(|key| served(key)));
    assert!(copy_of(&root, changed, 1).exists() && copy_of(&root, cut, 1).exists());
    let again = verify(&["--heal", "--json"]).success().json();
    assert_eq!(member(&again, "healed").len(), 0, "{again}");

    // Nothing follows the last one that proves it, once it says nothing of itself.
    let whole = std::fs::read(root.join(last)).unwrap();
    copies::damage(&root, last, 2);
    let run = verify(&["--heal"]).expect_code(4);
    assert!(
        run.stdout
            .contains(&format!("not healed: {last}: \"{}\": ", giver.display())),
        "{run}"
    );
    assert!(run.stdout.contains("pitr wal backfill"), "{run}");
    assert!(!copy_of(&root, last, 1).exists());

    // Other content than the damaged one held is none of it, and neither is a file that has rotted.
    std::fs::write(root.join(last), whole).unwrap();
    copies::damage(&root, last, 0);
    let file = std::fs::read(in_pg_wal(last)).unwrap();
    let mut rotten = file.clone();
    rotten[9000] ^= 1;
    std::fs::write(in_pg_wal(last), rotten).unwrap();
    verify(&["--heal"]).expect_code(4);
    assert!(!copy_of(&root, last, 1).exists());
    std::fs::write(in_pg_wal(last), file).unwrap();

    // A check has recorded it: gaps need not read everything to know of it.
    let gaps = |args: &[&str]| site.pitr().words("wal gaps --json").args(args).run();
    let dry = gaps(&["--heal", "--dry-run"]).success().json();
    assert_eq!(
        dry["repositories"][0]["healed"][0]["object"],
        last.as_str(),
        "{dry}"
    );
    let done = gaps(&["--heal"]).success().json();
    assert_eq!(
        done["repositories"][0]["healed"][0]["from"],
        giver.display().to_string(),
        "{done}"
    );
    let done = gaps(&["--heal"]).success().json();
    assert_eq!(
        done["repositories"][0]["healed"].as_array().unwrap().len(),
        0,
        "{done}"
    );
    assert!(served(last));
    verify(&[]).success();
}

/// The segments of a standby are offered by hand: that is what the hint says, and it heals.
#[test]
fn v08_a_backfill_heals_what_another_node_still_has() {
    let still = Still::new(17, 1, 4);
    still.push_all();
    let [_, cut, ..] = still.segments.as_slice() else {
        panic!("{:?}", still.segments)
    };
    let object = still.site.object(cut);
    let bytes = std::fs::read(&object).unwrap();
    std::fs::write(&object, &bytes[..bytes.len() / 2]).unwrap();
    // Archiving proves nothing by links: PostgreSQL keeps the file.
    still.push(cut).exits(35);
    let backfill = still.site.pitr().words("wal backfill --from");
    backfill
        .arg(still.cluster.pgdata().join("pg_wal"))
        .succeed();
    still.check(cut);
}
