//! TM5 of the fault matrix: one object of a repository is changed at random, over and over. Verify finds every change,
//! and no reader delivers anything but the truth. Changes that leave a valid older state are counted apart. Every other
//! case is of an encrypted repository. A repository has WAL, a streamed and a local backup of a cluster, and two aux
//! scopes.
//!
//! Each case has its own number, and depends on that and the seed alone. `PITR_CORRUPTIONS` says how many (`make corruption`: 100 000),
//! `PITR_CORRUPTION_SEED` and `PITR_CORRUPTION_CASE` repeat one.

pub mod held;
mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{AddAssign as _, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pitr::archive::asking::Inquiry;
use pitr::archive::fetch::{Fetch, Fetched, Questions, fetch};
use pitr::config::Encryption;
use pitr::error::{Code, Error, Result};
use pitr::host::Host;
use pitr::pg::segment::{SegmentName, SegmentSize, WalFileName};
use pitr::pg::time::TimestampTz;
use pitr::pg::timeline::TimelineId;
use pitr::progress::Silent;
use pitr::repo::id::BackupId;
use pitr::repo::layout::ClusterLayout;
use pitr::repo::repository::Repository;
use pitr::repo::root::BackupRoot;
use pitr::repo::root::aux_root::AuxRoot;
use pitr::repo::scope::{self, Scope};
use pitr::snapshot::reader::Snapshot;
use pitr::store::file::FileStore;
use pitr::sync::scope::ScopeTransfer;
use pitr::sync::{Options, Transfer};
use pitr::verify::depth::Depth;
use pitr::verify::scope::VerifyScope;
use pitr::verify::{FindingKind, Report, Verify};
use rustix::process::Signal;

use crate::common::random::Random;
use crate::common::reception::{configure, lsn, status};
use crate::common::{Cluster, Sandbox, Site, Stop, files_below, only, pin};
use crate::content::blobs::Blobs;
use crate::content::world::take_into;
use crate::verify_damage::other_kinds;
use held::{Held, Objects};
use keys::KeyFiles;

const CASES: usize = 2000;
const SEED: u64 = 0x0C0F_FEE5;

/// A change to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    Flip,
    Truncate,
    Extend,
    Zero,
    /// Another object of any kind is under its key.
    Swap,
    /// One of the same kind that was written before it.
    Older,
    Delete,
}

const DAMAGES: [Damage; 7] = [
    Damage::Flip,
    Damage::Truncate,
    Damage::Extend,
    Damage::Zero,
    Damage::Swap,
    Damage::Older,
    Damage::Delete,
];

/// Returns the kind of object that a key names.
fn kind_of(key: &str) -> &'static str {
    const AUX: [(&str, &str); 5] = [
        ("scope.json", "aux registration"),
        ("/events/", "aux event"),
        ("/layers/", "aux layer"),
        ("/packs/", "aux pack"),
        ("/backups/", "aux root"),
    ];
    const PARTS: [(&str, &str); 13] = [
        ("pitr.json", "marker"),
        ("keys/", "recipient"),
        ("cluster.json", "registration"),
        ("/conflicts/", "conflict"),
        ("/open/", "increment"),
        ("/partial/", "partial"),
        ("/labels/", "label"),
        ("-pin-", "pin"),
        ("/events/", "event"),
        ("/layers/", "layer"),
        ("/packs/", "pack"),
        ("server-manifest", "server manifest"),
        ("/backups/", "root"),
    ];
    let parts: &[(&str, &str)] = match key.starts_with("aux/") {
        true => &AUX,
        false => &PARTS,
    };
    let found = parts.iter().find(|(part, _)| key.contains(part));
    match found {
        Some((_, kind)) => kind,
        None if key.ends_with("history") => "history",
        None if key.contains("/wal/") => "segment",
        None => panic!("{key} is of no kind"),
    }
}

/// Returns how many tickets a kind has. A part of a backup is checked with all of the backup, and takes a thousand
/// times as long as the marker.
fn share(kind: &str) -> usize {
    match kind {
        "layer" | "pack" | "server manifest" => 1,
        "marker" | "registration" | "root" | "segment" => 20,
        "aux layer" | "aux pack" | "aux root" => 20,
        "recipient" => 5,
        _ => 10,
    }
}

/// The beginning of the current segment comes into both repositories.
fn receive(site: &Site, cluster: &Cluster) {
    configure(
        site,
        &cluster.conninfo("postgres"),
        &site.sandbox().join("journal"),
    );
    let mut running = site.pitr().words("receive --create-slot").spawn();
    for _ in 0..2 {
        cluster.sql("INSERT INTO t SELECT n, repeat('y', 90) FROM generate_series(1, 100) n");
        let end = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
        running.until("both repositories hold it", || {
            let status = status(&site.sandbox().join("journal"));
            let all = status.and_then(|s| Some(s["repositories"].as_array()?.clone()));
            let is_there =
                |r: &serde_json::Value| r["archived_lsn"].as_str().is_some_and(|at| lsn(at) >= end);
            all.is_some_and(|all| all.len() == 2 && all.iter().all(is_there))
        });
    }
    running.ended_by(Signal::TERM).success();
}

/// Two backups of one aux scope, and one of another, so that their objects can be taken for one another.
fn take_content(folder: &Path, encryption: Option<&Encryption>) {
    let store = FileStore::open(folder, 7).unwrap();
    let repository = Repository::open_with(Box::new(store), encryption).unwrap();
    for (name, version) in [("blobs", 1), ("blobs", 2), ("others", 3)] {
        take_into(&repository, name, &mut Blobs::small("here", version)).unwrap();
    }
}

/// The aux scope, and the backup in it, to which a key belongs.
fn content_of(key: &str) -> Option<(Scope, Option<BackupId>)> {
    let mut parts = key.strip_prefix("aux/")?.split('/');
    let scope = Scope::aux(parts.next()?, parts.next()?).unwrap();
    Some((scope, parts.nth(1).and_then(|id| id.parse().ok())))
}

/// A repository with every kind of object, and what reading it gives.
struct World {
    /// Keys of an encrypted repository.
    keys: Option<KeyFiles>,
    layout: ClusterLayout,
    objects: Objects,
    /// Keys by kind: each kind gets its share, however few objects it has.
    kinds: BTreeMap<&'static str, Vec<String>>,
    backups: Vec<BackupId>,
    contents: BTreeMap<BackupId, blake3::Hash>,
    /// Hashes of what backups of aux scopes hold.
    aux: BTreeMap<(Scope, BackupId), blake3::Hash>,
    files: BTreeMap<String, Vec<u8>>,
    /// Folder for fetched files.
    folder: PathBuf,
}

impl World {
    /// A plain repository and an encrypted one, of the same cluster.
    fn both(folder: &Path) -> [World; 2] {
        // Without checksums of pages and with one database: what is checked there is another test's, and costs most of the time here.
        let builder = Cluster::builder(18).segment_size_mb(1).checksums(false);
        let mut cluster = builder.without_fsync().create();
        let site = Site::new(&cluster);
        let (keys, encrypted) = KeyFiles::new_repository(&site, folder);
        site.attach(&cluster);
        cluster.start();
        cluster.sql("UPDATE pg_database SET datistemplate = false WHERE datname <> 'postgres'");
        cluster.sql("DROP DATABASE template0");
        cluster.sql("DROP DATABASE template1");
        let mut backups: [Vec<BackupId>; 2] = Default::default();
        for method in ["stream", "local"] {
            cluster.sql("CREATE TABLE IF NOT EXISTS t(n int, filler text)");
            cluster.sql("INSERT INTO t SELECT n, repeat('x', 90) FROM generate_series(1, 100) n");
            for (into, name) in backups.iter_mut().zip(["local", "sealed"]) {
                let run = site.pitr().args(["backup", "--json", "--method", method]);
                let run = run.args(["--repository", name]).succeed();
                into.push(run.id().parse().unwrap());
            }
            cluster.archive_now();
        }
        receive(&site, &cluster);
        // A clean stop would archive the segment whole.
        cluster.stop(Stop::Immediate);
        let refused = other_kinds(&site, &cluster);
        // The first repository refused it, so that the second was not asked.
        let push = ["wal", "push", "--repository", "sealed"];
        let run = site.pitr().args(push).arg(&refused).privileged().run();
        run.expect_code(1).expect_stderr("error conflict");
        let [plain, sealed] = backups;
        pin(site.repository(), None, &plain[0].to_string());
        pin(&encrypted, Some(keys.reader()), &sealed[0].to_string());
        take_content(site.repository(), None);
        take_content(&encrypted, Some(keys.writer()));
        let plain = World::load(site.repository(), plain, None, folder);
        let sealed = World::load(&encrypted, sealed, Some(keys), folder);
        // Increments may be cut differently.
        let whole = |world: &World| -> BTreeMap<String, Vec<u8>> {
            let files = world.files.clone().into_iter();
            files
                .filter(|(key, _)| kind_of(key) != "increment")
                .collect()
        };
        assert!(
            whole(&plain) == whole(&sealed),
            "what is fetched is the same"
        );
        [plain, sealed]
    }

    fn load(
        repository: &Path,
        backups: Vec<BackupId>,
        keys: Option<KeyFiles>,
        folder: &Path,
    ) -> World {
        let read = |key: String| {
            let bytes = std::fs::read(repository.join(&key)).unwrap();
            (key, bytes.into())
        };
        let objects: Objects = files_below(repository).into_iter().map(read).collect();
        let registration = objects.keys().find(|key| kind_of(key) == "registration");
        let identifier = registration.unwrap().rsplit('/').nth(1).unwrap();
        let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for key in objects.keys() {
            kinds.entry(kind_of(key)).or_default().push(key.clone());
        }
        let count = kinds.get("increment").map_or(0, Vec::len);
        assert!(count > 0, "the receiver brought in no increment");
        let mut world = World {
            keys,
            layout: ClusterLayout::new("main", identifier.parse().unwrap()).unwrap(),
            objects,
            kinds,
            backups,
            contents: BTreeMap::new(),
            aux: BTreeMap::new(),
            files: BTreeMap::new(),
            folder: folder.to_owned(),
        };
        world.learn();
        world
    }

    /// Reads the truth, which verify must find to be whole.
    fn learn(&mut self) {
        let whole = Held::new(self.objects.clone());
        for id in self.backups.clone() {
            let content = self.read_backup(&whole, &id).unwrap();
            self.contents.insert(id, content);
        }
        for key in self.kinds["aux root"].clone() {
            let (scope, id) = content_of(&key).unwrap();
            let id = id.expect("a root is of a backup");
            let content = self.read_content(&whole, &scope, &id).unwrap();
            self.aux.insert((scope, id), content);
        }
        for key in self.objects.keys().cloned().collect::<Vec<_>>() {
            if let Some(name) = wal_name(&key) {
                let target = self.folder.join("true");
                let bytes = self.fetch(&whole, name, &target).unwrap();
                self.files.insert(key, bytes.expect("it is there"));
            }
        }
        for keys in self.kinds.values() {
            let key = keys.last().expect("there is one");
            let (objects, backup) = self.around(key, false);
            let report = self.verify_for(key, &Held::new(objects), backup).unwrap();
            assert!(
                report.findings.is_empty(),
                "{keys:?}: {:#?}",
                report.findings
            );
        }
        let report = self.verify(&whole, None).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }

    fn name(&self) -> &'static str {
        match self.keys {
            None => "plain",
            Some(_) => "encrypted",
        }
    }

    fn open(&self, store: &Held) -> Result<Repository> {
        let reader = self.keys.as_ref().map(KeyFiles::reader);
        Repository::open_with(Box::new(store.clone()), reader)
    }

    fn verify(&self, store: &Held, backup: Option<BackupId>) -> Result<Report> {
        let repository = self.open(store)?;
        let registration = repository.require(&self.layout)?;
        let now: TimestampTz = "2026-11-20T06:40:49Z".parse().unwrap();
        Verify {
            repository: &repository,
            registration: &registration,
            backup,
            depth: Depth::Everything,
            threads: 1,
            host: &Host::still(now, 7),
        }
        .run()
    }

    /// The check that reads the object under this key.
    fn verify_for(&self, key: &str, store: &Held, backup: Option<BackupId>) -> Result<Report> {
        let Some((scope, _)) = content_of(key) else {
            return self.verify(store, backup);
        };
        let repository = self.open(store)?;
        let now: TimestampTz = "2026-11-20T06:40:49Z".parse().unwrap();
        VerifyScope {
            repository: &repository,
            scope: &scope,
            depth: Depth::Everything,
            threads: 1,
            host: &Host::still(now, 7),
        }
        .run()
    }

    /// Everything that restore would write, through restore's reader.
    fn read_backup(&self, store: &Held, id: &BackupId) -> Result<blake3::Hash> {
        let repository = self.open(store)?;
        let root = BackupRoot::read(repository.store(), &self.layout, id)?
            .ok_or_else(|| pitr::err!(NotFound, "no backup"))?;
        let snapshot = Snapshot::open(repository.store(), &self.layout, &root)?;
        read_snapshot(&snapshot, root.map.packs.len())
    }

    /// The same of an aux scope.
    fn read_content(&self, store: &Held, scope: &Scope, id: &BackupId) -> Result<blake3::Hash> {
        let repository = self.open(store)?;
        let root = AuxRoot::read(repository.store(), scope, id)?
            .ok_or_else(|| pitr::err!(NotFound, "no backup"))?;
        let snapshot = Snapshot::open(repository.store(), scope, &root)?;
        read_snapshot(&snapshot, root.map.packs.len())
    }

    /// The part of the repository in which damage to an object must show, and the backup that it belongs to: all of it would take seconds.
    fn around(&self, key: &str, is_deleted: bool) -> (Objects, Option<BackupId>) {
        if let Some((scope, _)) = content_of(key) {
            let is_its = |k: &str| match scope::prefix_of(k) {
                Some(prefix) => prefix == scope.prefix(),
                None => true,
            };
            let kept = self.objects.iter().filter(|(k, _)| is_its(k));
            return (kept.map(|(k, b)| (k.clone(), b.clone())).collect(), None);
        }
        let backup = match kind_of(key) {
            "root" | "layer" | "pack" | "server manifest" => {
                self.backups.iter().find(|id| key.contains(&id.to_string()))
            }
            _ => None,
        };
        // The backup whose root is gone is none: nobody would ask for it.
        let (of, backup): (_, Option<&BackupId>) = match (backup, kind_of(key), is_deleted) {
            (Some(id), "root", true) => (Some(id), None),
            (Some(_), ..) => return (self.objects.clone(), backup.cloned()),
            (None, ..) => (None, None),
        };
        let is_near = |other: &&String| {
            kind_of(other) == kind_of(key) || of.is_some_and(|id| other.contains(&id.to_string()))
        };
        let mut near: Vec<&String> = self.objects.keys().filter(is_near).collect();
        if kind_of(key) == "segment" {
            // With its neighbours.
            let at = near.iter().position(|k| *k == key).expect("it is there");
            near = near[at.saturating_sub(1)..near.len().min(at + 2)].to_vec();
        }
        if of.is_some() {
            near.retain(|k| of.is_some_and(|id| k.contains(&id.to_string())));
        }
        let all = self.objects.iter();
        // No event may record that a backup is complete if the backup is left out: its root would be missing.
        let is_of = |k: &str| k == key || of.is_some_and(|id| k.contains(&id.to_string()));
        let kept = all.filter(|(k, _)| is_small(k) || near.contains(k));
        let kept = kept.filter(|(k, _)| !k.contains("-completed-") || is_of(k));
        let kept = kept.map(|(k, bytes)| (k.clone(), bytes.clone()));
        (kept.collect(), backup.cloned())
    }

    /// Whether verify finds that a segment is gone. All others are there, and the roots, which say what is needed; of what else the backups have
    /// there is nothing, so that other findings do not count.
    fn finds_gap(&self, segment: &str) -> bool {
        let is_kept = |key: &str| is_small(key) || matches!(kind_of(key), "root" | "segment");
        let kept = self.objects.iter();
        let kept = kept.filter(|(key, _)| is_kept(key) && *key != segment);
        let kept = kept.map(|(key, bytes)| (key.clone(), bytes.clone()));
        let report = self.verify(&Held::new(kept.collect()), None).unwrap();
        let name = wal_name(segment).expect("a segment").to_string();
        let mut found = report.findings.iter();
        found.any(|f| f.kind == FindingKind::Gap && f.object.contains(&name))
    }

    /// Whether verify finds that the reservation of a backup is gone; of what else the backups have there is nothing, as in [`World::finds_gap`].
    fn finds_lost_begin(&self, begin: &str) -> bool {
        let is_kept = |key: &str| is_small(key) || kind_of(key) == "root";
        let kept = self.objects.iter();
        let kept = kept.filter(|(key, _)| is_kept(key) && *key != begin);
        let kept = kept.map(|(key, bytes)| (key.clone(), bytes.clone()));
        let report = self.verify(&Held::new(kept.collect()), None).unwrap();
        let mut found = report.findings.iter();
        found.any(|f| f.kind == FindingKind::Missing && f.object == begin)
    }

    /// Whether recovery from the first backup goes through the segment to another one.
    fn is_between(&self, segment: &str) -> bool {
        let whole = Held::new(self.objects.clone());
        let repository = self.open(&whole).unwrap();
        let first = BackupRoot::read(repository.store(), &self.layout, &self.backups[0]);
        let first = first.unwrap().expect("a backup");
        let size = SegmentSize::new(first.content.wal_segment_size_bytes).unwrap();
        let first = SegmentName::of(TimelineId::FIRST, first.content.start_lsn, size);
        let is_behind = |key: &String| key.as_str() > segment;
        wal_name(segment) >= Some(WalFileName::Segment(first))
            && self.kinds["segment"].iter().any(is_behind)
    }

    /// Returns the file that restore_command would get; `None` is proven absence.
    fn fetch(&self, store: &Held, name: WalFileName, target: &Path) -> Result<Option<Vec<u8>>> {
        let _ = std::fs::remove_file(target);
        let what = Fetch {
            followed: pitr::repo::lives::Followed::Resolved,
            cluster: "main".to_owned(),
            system_identifier: Some(self.layout.system_identifier()),
            name,
            target: target.to_owned(),
            nonce: 7,
            clock: || "2026-11-20T06:40:49Z".parse().unwrap(),
            progress: Arc::new(Silent),
            inquiry: Inquiry::default(),
        };
        let repository = self.open(store);
        Ok(
            match fetch(&what, only(repository), &mut Questions::default())? {
                Fetched::Delivered | Fetched::DeliveredTail { .. } => {
                    Some(std::fs::read(target).unwrap())
                }
                Fetched::ProvenAbsent => None,
            },
        )
    }

    /// Every kind with every damage once, then by lot.
    fn chosen(&self, number: usize, dice: &mut Random) -> (&'static str, Damage) {
        let kinds: Vec<&str> = self.kinds.keys().copied().collect();
        let many = kinds.iter().flat_map(|k| std::iter::repeat_n(*k, share(k)));
        let many: Vec<&str> = many.collect();
        let drawn = (*dice.pick(&many), *dice.pick(&DAMAGES));
        // The cases of every second number.
        match kinds.get(number / 2 / DAMAGES.len()) {
            Some(kind) => (kind, DAMAGES[number / 2 % DAMAGES.len()]),
            None => drawn,
        }
    }

    /// Whether comparing with a second repository, which has everything, shows that something is missing: `pitr repo sync --dry-run`.
    fn lacks(&self, key: &str, all: &Objects, damaged: &Held) -> Result<bool> {
        let from = self.open(&Held::new(all.clone()))?;
        let to = self.open(damaged)?;
        let now: TimestampTz = "2026-11-20T06:40:49Z".parse().unwrap();
        let options = Options {
            jobs: 1,
            everything: true,
            rules: None,
        };
        let host = Host::still(now, 7);
        if let Some((scope, _)) = content_of(key) {
            let plan = ScopeTransfer::new((&from, &to), &scope, options, &host)?.plan()?;
            return Ok(!plan.is_empty());
        }
        let registration = from.require(&self.layout)?;
        let plan = Transfer::new(&from, &to, &registration, options, &host)?.plan()?;
        Ok(!plan.is_empty())
    }

    /// The changed bytes of an object, which differ from the true ones; `None` is to delete it.
    fn changed(&self, key: &str, damage: Damage, dice: &mut Random) -> Option<Vec<u8>> {
        let good = &self.objects[key];
        let mut bytes = good.to_vec();
        match damage {
            Damage::Delete => return None,
            Damage::Truncate => bytes.truncate(dice.below(good.len())),
            Damage::Extend => {
                bytes.extend((0..=dice.below(64)).map(|_| dice.next().to_le_bytes()[0]));
            }
            Damage::Zero => bytes[dice.below(good.len())..].fill(0),
            Damage::Swap => {
                bytes = self.other(key, dice, |_| true);
            }
            Damage::Older => {
                let is_older = |other: &str| kind_of(other) == kind_of(key) && other < key;
                bytes = self.other(key, dice, is_older);
            }
            Damage::Flip => {}
        }
        if bytes == **good {
            // Also where nothing else could be done to it.
            bytes[dice.below(good.len())] ^= 1 << dice.below(8);
        }
        Some(bytes)
    }

    /// A copy that was refused, in the place of the segment: a whole object of the same name, as a server offered it.
    fn check_refused_copy(&self) {
        let copies = self.kinds["conflict"].iter();
        let of = |copy: &String| {
            self.kinds["segment"]
                .iter()
                .find(|key| is_refused_copy(copy, key))
        };
        let (copy, key) = copies
            .filter_map(|c| Some((c, of(c)?)))
            .next()
            .expect("there is one");
        let damaged = Held::with(&self.objects, key, Some(&self.objects[copy]));
        let report = self.verify(&damaged, None).unwrap();
        assert!(
            report.findings.iter().any(|f| f.object == *key),
            "{report:#?}"
        );
        let name = wal_name(key).expect("a segment");
        let refused = self.fetch(&damaged, name, &self.folder.join("refused"));
        assert_eq!(refused.unwrap_err().code(), Code::Damaged);
        if let Some(keys) = &self.keys {
            keys.check(&damaged, key, "a refused copy");
        }
    }

    /// Another object's bytes, or the own ones where there is none such.
    fn other(&self, key: &str, dice: &mut Random, is_one: impl Fn(&str) -> bool) -> Vec<u8> {
        let others = self.objects.keys().filter(|k| *k != key && is_one(k));
        let others: Vec<&String> = others.collect();
        let from = match others.is_empty() {
            true => key,
            false => dice.pick(&others).as_str(),
        };
        self.objects[from].to_vec()
    }
}

fn read_snapshot(snapshot: &Snapshot<'_>, packs: usize) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let (mut mapped, mut written) = (0, 0);
    for item in snapshot.items() {
        let item = item?;
        hasher.update(format!("{:?}{:?}", item.path, item.metadata).as_bytes());
        mapped += item.mapped_bytes;
    }
    for index in 0..packs {
        let pack = snapshot.pack(index)?;
        for number in 0..pack.frame_count() {
            let frame = pack.frame(number)?;
            for visible in &frame.visible {
                hasher.update(frame.file(visible).expect("it has a file").as_bytes());
                hasher.update(&visible.position.to_le_bytes());
                hasher.update(frame.bytes(visible));
            }
            written += frame.visible_bytes();
        }
    }
    match mapped == written {
        true => Ok(hasher.finalize()),
        false => Err(pitr::err!(Damaged, "bytes are missing")),
    }
}

fn is_small(key: &str) -> bool {
    let kind = kind_of(key);
    matches!(
        kind,
        "marker" | "recipient" | "registration" | "event" | "pin" | "history" | "label"
    )
}

/// Whether it is a copy that was refused under this name.
fn is_refused_copy(other: &str, of: &str) -> bool {
    let name = of.rsplit('/').next().expect("a key has a name");
    kind_of(other) == "conflict" && other.contains(&format!("/{name}-"))
}

/// The file that recovery would ask for to get this object; none for what it never asks for.
fn wal_name(key: &str) -> Option<WalFileName> {
    let (rest, last) = key.rsplit_once('/')?;
    match kind_of(key) {
        "history" => format!("{}.history", rest.rsplit('/').next()?).parse().ok(),
        "segment" => last.parse().ok(),
        "increment" => rest.rsplit('/').next()?.parse().ok(),
        _ => None,
    }
}

/// Whether a padded segment holds less of the WAL than another one, and nothing else.
fn is_shorter_tail(bytes: &[u8], whole: &[u8]) -> bool {
    let differs = bytes.iter().zip(whole).position(|(a, b)| a != b);
    let behind = differs.map_or(&[][..], |at| &bytes[at..]);
    bytes.len() == whole.len() && behind.iter().all(|byte| *byte == 0)
}

/// The outcome of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Verify found it.
    Found,
    /// The remaining objects are a state that the repository once was in; a comparison with a second one shows the
    /// missing part.
    OlderState,
    /// The same for an event that concerns this one repository alone, and costs nothing: who writes just now, and what
    /// is to be deleted. The same for a recipient other than the reader: it is as if its access had been withdrawn.
    /// Doctor compares these with a second repository's, and is critical when a single one is left.
    Unseen,
}

/// Whether an error is one that damage to an object of this kind may have; any other would be found by chance.
fn says_damage(kind: &str, damage: Damage, e: &Error) -> bool {
    match e.code() {
        Code::Damaged | Code::Unsupported => true,
        Code::NoRepository => kind == "marker" && damage == Damage::Delete,
        Code::Key => matches!(kind, "marker" | "recipient"),
        Code::WrongCluster => kind == "registration",
        _ => false,
    }
}

/// One case.
fn try_one(world: &World, seed: u64, number: usize) -> (&'static str, Damage, Outcome) {
    let mut dice = Random::new(seed ^ (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let (kind, damage) = world.chosen(number, &mut dice);
    let key = dice.pick(&world.kinds[kind]).clone();
    let changed = world.changed(&key, damage, &mut dice);
    let what = format!(
        "{damage:?} of {key}\nPITR_CORRUPTION_SEED={seed} PITR_CORRUPTION_CASE={number} cargo test --test it corruption::"
    );
    let (all, backup) = world.around(&key, damage == Damage::Delete);
    let damaged = Held::with(&all, &key, changed.as_deref());
    let mut is_found = match world.verify_for(&key, &damaged, backup.clone()) {
        Err(e) => {
            assert!(says_damage(kind, damage, &e), "{what}: {e}");
            true
        }
        // A version that was changed is of an object that cannot be checked.
        Ok(report) => !report.findings.is_empty() || report.unsupported_count > 0,
    };
    if (kind, damage) == ("segment", Damage::Delete) {
        is_found = world.finds_gap(&key);
        assert_eq!(is_found, world.is_between(&key), "{what}");
    }
    if damage == Damage::Delete && key.ends_with("/begin") {
        is_found = match content_of(&key) {
            None => world.finds_lost_begin(&key),
            Some(_) => is_found,
        };
        assert!(is_found, "{what}");
    }
    if let Some(name) = wal_name(&key) {
        let target = world.folder.join(format!("fetched-{number}"));
        match world.fetch(&damaged, name, &target) {
            Ok(Some(bytes)) if (kind, damage) == ("increment", Damage::Delete) => {
                assert!(
                    is_shorter_tail(&bytes, &world.files[&key]),
                    "wrong bytes: {what}"
                );
            }
            Ok(Some(bytes)) => assert!(bytes == world.files[&key], "wrong bytes: {what}"),
            // That would end recovery; only an object that is gone may be absent.
            Ok(None) => assert_eq!(damage, Damage::Delete, "taken for absent: {what}"),
            Err(e) if e.code() == Code::Gap => assert_eq!(damage, Damage::Delete, "{what}: {e}"),
            Err(e) => assert!(says_damage(kind, damage, &e), "{what}: {e}"),
        }
        let _ = std::fs::remove_file(&target);
    }
    if let Some(id) = &backup {
        match world.read_backup(&damaged, id) {
            Ok(content) => assert_eq!(content, world.contents[id], "wrong content: {what}"),
            Err(e) => assert!(says_damage(kind, damage, &e), "{what}: {e}"),
        }
    }
    if let Some((scope, Some(id))) = content_of(&key) {
        match world.read_content(&damaged, &scope, &id) {
            Ok(content) => assert_eq!(content, world.aux[&(scope, id)], "wrong content: {what}"),
            Err(e) if e.code() == Code::NotFound => {
                assert_eq!((kind, damage), ("aux root", Damage::Delete), "{what}: {e}");
            }
            Err(e) => assert!(says_damage(kind, damage, &e), "{what}: {e}"),
        }
    }
    if let Some(keys) = &world.keys {
        keys.check(&damaged, &key, &what);
    }
    if is_found {
        return (kind, damage, Outcome::Found);
    }
    assert_eq!(damage, Damage::Delete, "not found: {what}");
    if kind == "recipient" {
        return (kind, damage, Outcome::Unseen);
    }
    let lacks = match kind {
        // It is compared where there is what it pins.
        "pin" => {
            let damaged = Held::with(&world.objects, &key, None);
            world.lacks(&key, &world.objects, &damaged)
        }
        _ => world.lacks(&key, &all, &damaged),
    };
    match lacks.unwrap() {
        true => (kind, damage, Outcome::OlderState),
        false => {
            assert!(kind.ends_with("event"), "nothing shows it: {what}");
            (kind, damage, Outcome::Unseen)
        }
    }
}

fn number_of(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// The repository, the kind of object, the damage and the outcome.
type Case = (&'static str, &'static str, Damage, Outcome);

/// Tries cases with two threads; says how many there were of each, and prints how long it took.
fn try_all(worlds: &[World; 2], seed: u64, numbers: Range<usize>) -> BTreeMap<Case, u64> {
    let started = Instant::now();
    let next = AtomicUsize::new(numbers.start);
    let seen = Mutex::new(BTreeMap::new());
    let took = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= numbers.end {
                        return;
                    }
                    let begun = Instant::now();
                    let world = &worlds[n % 2];
                    let (kind, damage, outcome) = try_one(world, seed, n);
                    took.lock()
                        .unwrap()
                        .entry((world.name(), kind))
                        .or_insert(Duration::ZERO)
                        .add_assign(begun.elapsed());
                    let case = (world.name(), kind, damage, outcome);
                    *seen.lock().unwrap().entry(case).or_insert(0_u64) += 1;
                }
            });
        }
    });
    println!("seed {seed}, cases {numbers:?}, {:?}", started.elapsed());
    println!("{:?}", took.into_inner().unwrap());
    seen.into_inner().unwrap()
}

#[test]
fn tm5_every_change_to_one_object_is_found_and_no_wrong_byte_is_read() {
    let sandbox = Sandbox::new("corruption");
    let worlds = World::both(sandbox.path());
    let seed = number_of("PITR_CORRUPTION_SEED").unwrap_or(SEED);
    let only = number_of("PITR_CORRUPTION_CASE").map(|n| n as usize);
    let count = number_of("PITR_CORRUPTIONS").map_or(CASES, |n| n as usize);
    let seen = try_all(&worlds, seed, only.map_or(0..count, |n| n..n + 1));
    for ((world, kind, damage, outcome), times) in &seen {
        println!("{world:9} {kind:16} {damage:?} {outcome:?}: {times}");
    }
    if only.is_some() {
        return;
    }
    let all = seen.keys();
    let pairs: BTreeSet<_> = all
        .map(|(world, kind, damage, _)| (world, kind, damage))
        .collect();
    let kinds: usize = worlds.iter().map(|world| world.kinds.len()).sum();
    assert_eq!(pairs.len(), kinds * DAMAGES.len());
    worlds.iter().for_each(World::check_refused_copy);
}
