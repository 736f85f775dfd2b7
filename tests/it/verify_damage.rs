//! Rows C01 and C02 of the fault matrix: bits flip, objects are cut, zeroed and exchanged. All of it is found, and nothing wrong is
//! ever handed out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pitr::archive::asking::Inquiry;
use pitr::archive::fetch::{Fetch, Fetched, Questions, fetch};
use pitr::config::{self, Location};
use pitr::error::Result;
use pitr::host::Host;
use pitr::pg::segment::WalFileName;
use pitr::pg::time::TimestampTz;
use pitr::progress::{Progress, Silent};
use pitr::repo;
use pitr::repo::id::BackupId;
use pitr::repo::layout::ClusterLayout;
use pitr::repo::repository::Repository;
use pitr::repo::root::BackupRoot;
use pitr::snapshot::reader::Snapshot;
use pitr::verify::depth::Depth;
use pitr::verify::{Report, Verify};

use crate::common::{Cluster, Sandbox, Site, Stop, copy_all, fault, only};

/// Flips in CI.
const FLIPS: usize = 2000;

/// Small numbers that depend on the seed alone.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below.max(1)
    }
}

/// A repository with every kind of object, in memory, and the content of each object.
struct World {
    sandbox: Rc<Sandbox>,
    root: PathBuf,
    layout: ClusterLayout,
    backups: Vec<BackupId>,
    /// By key.
    objects: BTreeMap<String, Vec<u8>>,
    /// Hash of every byte that reading each backup gives.
    contents: BTreeMap<BackupId, blake3::Hash>,
}

impl World {
    fn make() -> World {
        // Without checksums of pages: they are another test's, and cost most of the time here.
        let builder = Cluster::builder(18).segment_size_mb(1).checksums(false);
        let (site, mut cluster) = Site::with_cluster_of(builder.without_fsync());
        let mut backups = Vec::new();
        for n in 0..2 {
            cluster.sql("CREATE TABLE IF NOT EXISTS t(n int, filler text)");
            cluster.sql("INSERT INTO t SELECT n, repeat('x', 90) FROM generate_series(1, 5000) n");
            cluster.archive_now();
            backups.push(site.backup().parse().unwrap());
            cluster.sql(&format!("SELECT pg_create_restore_point('p{n}')"));
            cluster.archive_now();
        }
        cluster.stop(Stop::Fast);
        other_kinds(&site, &cluster);
        let sandbox = Rc::new(Sandbox::new("damage"));
        let root = sandbox.join("r");
        copy_all(site.repository(), &root);
        let objects = site
            .files()
            .into_iter()
            .map(|key| {
                let bytes = std::fs::read(root.join(&key)).unwrap();
                (key, bytes)
            })
            .collect();
        let identifier = site.cluster_folder();
        let identifier = identifier.file_name().unwrap().to_str().unwrap();
        let mut world = World {
            layout: ClusterLayout::new("main", identifier.parse().unwrap()).unwrap(),
            sandbox,
            root,
            backups,
            objects,
            contents: BTreeMap::new(),
        };
        for id in world.backups.clone() {
            let content = world.read_backup(&id).unwrap();
            world.contents.insert(id, content);
        }
        let report = world.verify(None).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        world
    }

    /// The same without the backups: damage to anything else is found sooner.
    fn without_backups(&self) -> World {
        let root = self.sandbox.join("w");
        let mut objects = self.objects.clone();
        // An object that records a backup would be found to have lost its root.
        let parts = ["/backups/", "/layers/", "/packs/", "-completed-"];
        objects.retain(|key, _| !parts.iter().any(|p| key.contains(p)));
        for (key, bytes) in &objects {
            let path = root.join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        World {
            sandbox: Rc::clone(&self.sandbox),
            root,
            layout: self.layout.clone(),
            backups: Vec::new(),
            objects,
            contents: BTreeMap::new(),
        }
    }

    fn open(&self) -> Result<Repository> {
        repo::open(
            &config::Repository::at(Location::File(self.root.clone())),
            7,
        )
    }

    fn verify(&self, backup: Option<BackupId>) -> Result<Report> {
        self.verify_with(backup, Arc::new(Silent))
    }

    fn verify_with(&self, backup: Option<BackupId>, progress: Arc<dyn Progress>) -> Result<Report> {
        let repository = self.open()?;
        let registration = repository.require(&self.layout)?;
        let now: TimestampTz = "2026-11-20T06:40:49Z".parse().unwrap();
        let host = Host::still(now, 7).with_progress(progress);
        let verify = Verify {
            repository: &repository,
            registration: &registration,
            backup,
            depth: Depth::Everything,
            threads: 2,
            host: &host,
        };
        verify.run()
    }

    /// Everything that restore would write, through restore's reader.
    fn read_backup(&self, id: &BackupId) -> Result<blake3::Hash> {
        let repository = self.open()?;
        let root = BackupRoot::read(repository.store(), &self.layout, id)?
            .ok_or_else(|| pitr::err!(NotFound, "no backup"))?;
        let snapshot = Snapshot::open(repository.store(), &self.layout, &root)?;
        let mut hasher = blake3::Hasher::new();
        let mut mapped = 0;
        for item in snapshot.items() {
            let item = item?;
            hasher.update(format!("{:?}{:?}", item.path, item.metadata).as_bytes());
            mapped += item.mapped_bytes;
        }
        let mut written = 0;
        for index in 0..root.map.packs.len() {
            let pack = snapshot.pack(index)?;
            for number in 0..pack.frame_count() {
                let frame = pack.frame(number)?;
                for visible in &frame.visible {
                    let file = frame.file(visible).unwrap();
                    hasher.update(file.as_bytes());
                    hasher.update(&visible.position.to_le_bytes());
                    hasher.update(frame.bytes(visible));
                }
                written += frame.visible_bytes();
            }
        }
        if mapped != written {
            return Err(pitr::err!(Damaged, "bytes are missing"));
        }
        Ok(hasher.finalize())
    }

    /// Returns the file that restore_command would get.
    fn fetch(&self, name: WalFileName) -> Result<Vec<u8>> {
        let target = self.sandbox.join("fetched");
        let _ = std::fs::remove_file(&target);
        let what = Fetch {
            followed: pitr::repo::lives::Followed::Resolved,
            cluster: "main".to_owned(),
            system_identifier: Some(self.layout.system_identifier()),
            name,
            target: target.clone(),
            nonce: 7,
            clock: || "2026-11-20T06:40:49Z".parse().unwrap(),
            progress: Arc::new(Silent),
            inquiry: Inquiry::default(),
        };
        match fetch(&what, only(self.open()), &mut Questions::default())? {
            Fetched::Delivered | Fetched::DeliveredTail { .. } => {
                Ok(std::fs::read(target).unwrap())
            }
            Fetched::ProvenAbsent => Err(pitr::err!(NotFound, "absent")),
        }
    }

    /// Keys of a kind, by a part of the path below the cluster.
    fn keys(&self, part: &str) -> Vec<String> {
        let prefix = self.layout.prefix();
        let of_cluster = |k: &&String| k.strip_prefix(&prefix).is_some_and(|k| k.contains(part));
        self.objects.keys().filter(of_cluster).cloned().collect()
    }

    /// The file that recovery would ask for to get this object; none for what it never asks for.
    fn wal_name(&self, key: &str) -> Option<WalFileName> {
        let last = key.rsplit('/').next()?;
        let (rest, _) = key.rsplit_once('/')?;
        if !key.contains("/wal/") || rest.ends_with("/partial") || rest.ends_with("/labels") {
            return None;
        }
        match last {
            "history" => format!("{}.history", rest.rsplit('/').next()?).parse().ok(),
            name => name.parse().ok(),
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        std::fs::write(self.root.join(key), bytes).unwrap();
    }

    /// Puts back what the round changed and removes what verify recorded.
    fn heal<'a>(&self, keys: impl IntoIterator<Item = &'a String>) {
        for key in keys {
            self.put(key, &self.objects[key]);
        }
        let events = self.root.join(self.layout.events());
        for subject in std::fs::read_dir(events).unwrap() {
            for event in std::fs::read_dir(subject.unwrap().path()).unwrap() {
                let path = event.unwrap().path();
                let key = path.strip_prefix(&self.root).unwrap().to_str().unwrap();
                if !self.objects.contains_key(key) {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
    }

    /// Checks that verify names each of these damaged objects, and that readers of them deliver the truth or nothing.
    fn round(&self, what: &str, backup: Option<&BackupId>, damaged: &BTreeMap<String, Vec<u8>>) {
        for (key, bytes) in damaged {
            self.put(key, bytes);
        }
        let keys: Vec<&String> = damaged.keys().collect();
        match self.verify(backup.cloned()) {
            // The repository or the backup cannot even be opened.
            Err(e) => assert!(damaged.len() == 1, "{what} {keys:?}: {e}"),
            Ok(report) => {
                for key in damaged.keys() {
                    let part = key.rsplit('/').take(2).collect::<Vec<_>>();
                    let part = format!("{}/{}", part[1], part[0]);
                    let is_named = report.findings.iter().any(|f| {
                        f.object == *key
                            || key.starts_with(&format!("{}/", f.object))
                            || f.detail.contains(&part)
                    });
                    assert!(
                        is_named,
                        "{what} {key} was not found: {:#?}",
                        report.findings
                    );
                }
            }
        }
        for key in damaged.keys() {
            if let Some(name) = self.wal_name(key)
                && let Ok(delivered) = self.fetch(name)
            {
                let at = self.root.join(key);
                std::fs::write(&at, &self.objects[key]).unwrap();
                let true_bytes = self.fetch(name).unwrap();
                assert!(
                    delivered == true_bytes,
                    "{what} {key}: wrong bytes were delivered"
                );
            }
        }
        if let Some(id) = backup
            && let Ok(content) = self.read_backup(id)
        {
            assert_eq!(
                content, self.contents[id],
                "{what} {keys:?}: wrong content was delivered"
            );
        }
        self.heal(damaged.keys());
    }
}

/// History, partial and a refused copy, from files in a stopped cluster's pg_wal.
pub fn other_kinds(site: &Site, cluster: &Cluster) -> PathBuf {
    let wal = cluster.pgdata().join("pg_wal");
    std::fs::write(wal.join("00000002.history"), "1\t0/9000000\ttest\n").unwrap();
    let push = |path: &Path| site.archive().arg(path).privileged().run();
    push(&wal.join("00000002.history")).success();
    let archived: Vec<String> = site
        .files()
        .iter()
        .filter_map(|f| f.rsplit('/').next())
        .filter(|name| name.len() == 24 && name.parse::<WalFileName>().is_ok())
        .map(str::to_owned)
        .collect();
    let last = wal.join(archived.last().expect("a segment is archived"));
    let name = last.file_name().unwrap();
    let to = site.sandbox().join("segment");
    site.restore().arg(name).arg(&to).succeed();
    std::fs::copy(&to, &last).unwrap();
    let partial = last.with_extension("partial");
    std::fs::copy(&last, &partial).unwrap();
    push(&partial).success();
    // Other bytes under a name that is taken.
    let mut bytes = std::fs::read(&last).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&last, bytes).unwrap();
    push(&last).expect_code(20);
    last
}

fn flip(dice: &mut Dice, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    // Edges hold headers and trailers: they get their share.
    let at = match dice.roll(3) {
        0 => dice.roll(bytes.len().min(200)),
        1 => bytes.len() - 1 - dice.roll(bytes.len().min(200)),
        _ => dice.roll(bytes.len()),
    };
    bytes[at] ^= 1 << dice.roll(8);
    bytes
}

#[test]
fn c01_every_flipped_bit_is_found_and_never_delivered() {
    let world = World::make();
    let seed = 0x00C0_FFEE_0000_0001_u64;
    println!("seed {seed:#x}");
    let mut dice = Dice(seed);
    let started = Instant::now();
    let mut flips = 0;
    let mut rounds = 0;
    let small = world.without_backups();
    let wal: Vec<String> = ["/wal/", "/conflicts/", "/events/"]
        .iter()
        .flat_map(|part| world.keys(part))
        .filter(|key| !key.contains("-completed-"))
        .collect();
    for kind in [
        "history",
        "/partial/",
        "/labels/",
        "/conflicts/",
        "/begin",
        "-claim-",
    ] {
        assert!(
            wal.iter().any(|k| k.contains(kind)),
            "no object of kind {kind}"
        );
    }
    let ids: Vec<String> = world.backups.iter().map(ToString::to_string).collect();
    while flips < FLIPS {
        rounds += 1;
        if rounds % 4 > 0 {
            // Objects that stand for themselves are damaged all at once.
            let damaged: BTreeMap<String, Vec<u8>> = wal
                .iter()
                .map(|key| (key.clone(), flip(&mut dice, &world.objects[key])))
                .collect();
            flips += damaged.len();
            small.round("flip", None, &damaged);
            continue;
        }
        // The objects of a backup one at a time, for damage in the root hides damage in the others.
        let which = dice.roll(ids.len());
        let own: Vec<String> = ["/backups/", "/layers/", "/packs/"]
            .iter()
            .flat_map(|part| world.keys(&format!("{part}{}", ids[which])))
            .collect();
        let key = own[dice.roll(own.len())].clone();
        let bytes = flip(&mut dice, &world.objects[&key]);
        flips += 1;
        let damaged = BTreeMap::from([(key, bytes)]);
        world.round("flip", Some(&world.backups[which]), &damaged);
    }
    for key in [
        "pitr.json".to_owned(),
        world.layout.registration().to_string(),
    ] {
        for _ in 0..20 {
            let bytes = flip(&mut dice, &world.objects[&key]);
            flips += 1;
            small.round("flip", None, &BTreeMap::from([(key.clone(), bytes)]));
        }
    }
    let took = started.elapsed();
    println!("{flips} flips in {rounds} rounds, {took:?}: all found");
    assert!(small.verify(None).unwrap().findings.is_empty());
    assert!(world.verify(None).unwrap().findings.is_empty());
}

#[test]
fn c02_cut_zeroed_and_exchanged_objects_are_found() {
    let world = World::make();
    let seed = 0x00C0_FFEE_0000_0002_u64;
    println!("seed {seed:#x}");
    let mut dice = Dice(seed);
    let ids: Vec<String> = world.backups.iter().map(ToString::to_string).collect();
    let owner = |key: &str| {
        ids.iter()
            .position(|id| key.contains(id))
            .map(|i| &world.backups[i])
    };
    let small = world.without_backups();
    let mut cases = 0;
    for (key, good) in &world.objects {
        // Only some of the events: there are many of one shape.
        if key.contains("/events/") && dice.roll(3) > 0 {
            continue;
        }
        let backup = match key.contains("/events/") {
            true => None,
            false => owner(key),
        };
        let mut variants: Vec<(&str, Vec<u8>)> = vec![
            ("empty", Vec::new()),
            ("cut", good[..dice.roll(good.len())].to_vec()),
            ("cut by one", good[..good.len() - 1].to_vec()),
            ("longer", [good.as_slice(), &[0]].concat()),
            ("zeros", vec![0; good.len()]),
        ];
        let mut torn = good.clone();
        let from = dice.roll(good.len()) / 512 * 512;
        torn[from..].fill(0);
        if torn != *good {
            variants.push(("zeros at the end", torn));
        }
        // Another object of the same kind, whole and valid, but not this one.
        let kind = |k: &str| -> String {
            let parts: Vec<&str> = k.split('/').collect();
            let last = parts.last().copied().unwrap_or_default();
            let shape: String = last
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            format!(
                "{}{}",
                parts.get(3).copied().unwrap_or_default(),
                shape.len()
            )
        };
        let others = world
            .objects
            .iter()
            .filter(|(k, v)| *k != key && kind(k) == kind(key) && *v != good);
        for (_, other) in others.take(2) {
            variants.push(("exchanged", other.clone()));
        }
        for (what, bytes) in variants {
            cases += 1;
            if !fault::is_of_turn(cases) {
                continue;
            }
            // The record that a backup is complete is not there without backups.
            let is_there = small.objects.contains_key(key);
            let at = if backup.is_some() || !is_there {
                &world
            } else {
                &small
            };
            at.round(what, backup, &BTreeMap::from([(key.clone(), bytes)]));
        }
    }
    // Two objects that change places.
    let segments: Vec<String> = world.keys("/wal/00000001/00000000/").into_iter().collect();
    let swapped = BTreeMap::from([
        (segments[0].clone(), world.objects[&segments[1]].clone()),
        (segments[1].clone(), world.objects[&segments[0]].clone()),
    ]);
    small.round("swap", None, &swapped);
    println!("{cases} cases: all found");
    assert!(cases > 100);
    assert!(world.verify(None).unwrap().findings.is_empty());
}

/// Deletes a backup as expire does, the moment it is to be read.
struct Expiring {
    folder: PathBuf,
    id: String,
}

impl Progress for Expiring {
    fn phase(&self, name: &str, _total: Option<u64>) {
        if name == format!("verify backup {}", self.id) {
            for part in ["backups", "layers", "packs", "events"] {
                let _ = std::fs::remove_dir_all(self.folder.join(part).join(&self.id));
            }
        }
        if name == "verify WAL" {
            // Nobody needs what lies before the first backup.
            let log = self.folder.join("wal/00000001/00000000");
            let first = std::fs::read_dir(&log)
                .unwrap()
                .map(|e| e.unwrap().path())
                .min();
            std::fs::remove_file(first.unwrap()).unwrap();
        }
    }
}

#[test]
fn i5b_what_expire_deletes_meanwhile_is_no_damage() {
    let world = World::make();
    let progress = Expiring {
        folder: world.root.join(world.layout.prefix()),
        id: world.backups[0].to_string(),
    };
    let report = world.verify_with(None, Arc::new(progress)).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.backups.len(), 1);
    assert!(
        report
            .warnings
            .iter()
            .any(|w| w.contains("was deleted while"))
    );
}
