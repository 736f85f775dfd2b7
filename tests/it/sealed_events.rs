//! Events and registrations of encrypted repositories bear a MAC: what somebody without the MAC key puts there does not count, and is found.

use std::fs;

use pitr::config::Encryption;
use pitr::error::Code;
use pitr::pg::segment::SegmentName;
use pitr::pg::time::TimestampTz;
use pitr::repo::event::{self, Event};
use pitr::repo::json;
use pitr::repo::layout::ClusterLayout;
use pitr::repo::repository::{Registration, Repository};
use pitr::store::file::FileStore;
use pitr::store::{self, Store};
use rustix::process::Signal;

use crate::common::{Cluster, expire_at_once, keep_one, paths_below, user, wait_until};
use crate::sealed::{Sealed, refused};

const FORGED: &str = "forged: whoever made it does not hold the MAC key";

/// A sealed repository with two backups.
struct Backed {
    sealed: Sealed,
    _cluster: Cluster,
    layout: ClusterLayout,
    first: String,
    second: String,
}

impl Backed {
    fn new() -> Backed {
        let (sealed, cluster) = Sealed::archived(17);
        let backup = || {
            let run = sealed.on("writer").words("backup --json").run();
            run.success().id()
        };
        let (first, second) = (backup(), backup());
        cluster.archive_now();
        let place = sealed.folder("cluster.json");
        let identifier = place.parent().unwrap().file_name().unwrap();
        let identifier = identifier.to_str().unwrap().parse().unwrap();
        let layout = ClusterLayout::new("main", identifier).unwrap();
        Backed {
            sealed,
            _cluster: cluster,
            layout,
            first,
            second,
        }
    }

    /// The store as its owner sees it.
    fn owner(&self) -> FileStore {
        FileStore::open(&self.sealed.repository, 1).unwrap()
    }

    /// An event that somebody made who can write to `store`; returns the last part of its key.
    fn put(&self, store: &dyn Store, subject: &str, kind: &str, ends: Option<&str>) -> String {
        let now = TimestampTz::from_system_time(std::time::SystemTime::now());
        let event = Event {
            event: kind.into(),
            subject: subject.into(),
            time: now,
            ends: ends.map(str::to_owned),
            seconds: Some(86_400),
            reason: Some("audit".into()),
            detail: Some("a test says so".into()),
            nonce: "0".repeat(32),
            ..Event::default()
        };
        let nonce = now.0.cast_unsigned();
        let name = event::record(store, &self.layout, &event, nonce).unwrap();
        self.hand_over();
        name
    }

    /// Gives what the test wrote to the user that the programs run as.
    fn hand_over(&self) {
        user::own_all(&self.sealed.repository);
    }

    /// As [`Backed::put`], of somebody with the MAC key.
    fn genuine(&self, subject: &str, kind: &str) -> String {
        self.genuine_end(subject, kind, None)
    }

    fn genuine_end(&self, subject: &str, kind: &str, ends: Option<&str>) -> String {
        let encryption = Encryption {
            key_set: Some(self.sealed.key("writer").into()),
            ..Encryption::default()
        };
        let repository = Repository::open_with(Box::new(self.owner()), Some(&encryption)).unwrap();
        self.put(repository.store(), subject, kind, ends)
    }

    /// A segment that is stored.
    fn segment(&self) -> String {
        let wal = paths_below(&self.sealed.folder("wal"));
        let names = wal.iter().filter_map(|p| p.file_name()?.to_str());
        let names = names.filter(|n| n.parse::<SegmentName>().is_ok());
        names.max().unwrap().to_owned()
    }

    /// Why a host keeps a backup, or lets it go.
    fn fate(&self, host: &str, id: &str) -> String {
        let look = keep_one(&["--dry-run", "--json"]);
        let run = self.sealed.on(host).args(look).succeed();
        let backups = run.json()["clusters"][0]["backups"].clone();
        let mut backups = backups.as_array().unwrap().iter();
        let backup = backups.find(|b| b["id"] == id).unwrap();
        format!("{}: {}", backup["fate"], backup["reason"])
    }

    fn info(&self) -> serde_json::Value {
        let run = self.sealed.on("reader").words("info --json").run();
        let cluster = run.json()["clusters"][0].clone();
        assert!(cluster["problems"].is_array(), "{run}");
        cluster
    }

    /// Objects that verify calls forged.
    fn forged(&self) -> Vec<String> {
        let run = self.sealed.on("reader").words("verify --json").run();
        let findings = run.json()["clusters"][0]["findings"].clone();
        let findings = findings.as_array().unwrap().clone();
        let mut found: Vec<String> = findings
            .iter()
            .filter(|f| f["kind"] == "forged")
            .map(|f| f["object"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(found.len(), findings.len(), "{findings:?}");
        assert_eq!(run.code() == 4, !found.is_empty(), "{run}");
        found.sort();
        found
    }

    fn key(&self, subject: &str, name: &str) -> String {
        self.layout.event(subject, name).unwrap().to_string()
    }
}

#[test]
fn forged_events_do_not_count_and_verify_finds_each() {
    let backed = Backed::new();
    let (first, second) = (backed.first.as_str(), backed.second.as_str());
    let owner = backed.owner();
    assert!(backed.forged().is_empty());
    let loose = backed.fate("writer", first);
    assert!(
        !loose.contains("pinned") && !loose.contains("in use"),
        "{loose}"
    );
    let mut forged = Vec::new();
    let mut forge = |subject: &str, kind: &str, ends: Option<&str>| {
        let name = backed.put(&owner, subject, kind, ends);
        forged.push(backed.key(subject, &name));
    };

    let pin = backed.genuine(first, "pin");
    assert!(backed.fate("writer", first).contains("pinned"));
    forge(first, "unpin", Some(&pin));
    assert!(backed.fate("writer", first).contains("pinned"));
    // Who has no MAC key cannot tell.
    assert_eq!(backed.fate("janitor", first), loose);

    let claim = backed.genuine(second, "claim");
    forge(second, "release", Some(&claim));
    let claims = |host: &str| {
        let encryption = Encryption {
            key_set: (host == "writer").then(|| backed.sealed.key("writer").into()),
            ..Encryption::default()
        };
        let store = Box::new(backed.owner());
        let repository = Repository::open_with(store, Some(&encryption)).unwrap();
        let events = event::read_all(repository.store(), &backed.layout, second).unwrap();
        let standing = event::standing(&events, "claim", "release");
        standing.iter().any(|c| c.name == claim)
    };
    assert!(claims("writer") && !claims("janitor"));
    // A claim that names a genuine one as the one it renews, and is over in a moment, ends it as little.
    forge(second, "claim", Some(&claim));
    assert!(claims("writer") && !claims("janitor"));

    let segment = format!("wal-{}", backed.segment());
    let damaged = backed.genuine(&segment, "damaged");
    forge(&segment, "healed", Some(&damaged));
    forge(second, "damaged", None);
    // A genuine pin of the one, copied under the other's name.
    let moved = backed.key(second, &pin);
    let from = backed.sealed.repository.join(backed.key(first, &pin));
    fs::copy(from, backed.sealed.repository.join(&moved)).unwrap();
    backed.hand_over();
    forged.push(moved);
    forged.sort();

    let info = backed.info();
    let problems = info["problems"].to_string();
    for key in &forged {
        let event = key.rsplit('/').next().unwrap();
        assert!(problems.contains(event), "{event}: {problems}");
    }
    assert!(!problems.contains("a check found damage"), "{problems}");
    let doctor = backed.sealed.on("reader").arg("doctor").run();
    assert!(doctor.stdout.contains("6 forged events"), "{doctor}");
    assert!(!backed.fate("writer", second).contains("pinned"));
    assert_eq!(backed.forged(), forged);
    // That check found the segment sound, and said so with its MAC.
    assert_eq!(backed.forged(), forged);
    // Nothing of it keeps anybody from recovering.
    let to = backed.sealed.sandbox.join("copy");
    let restore = backed.sealed.on("reader").words("restore --quiet --to");
    restore.arg(&to).args(["--backup", second]).succeed();

    // A deletion takes along the forged events about its backup.
    let unpin = backed.genuine_end(first, "unpin", Some(&pin));
    assert!(!backed.fate("writer", first).contains("pinned"), "{unpin}");
    backed.sealed.on("writer").args(expire_at_once()).succeed();
    let events = backed.sealed.folder("events").join(first);
    assert!(!events.exists(), "{:?}", fs::read_dir(&events));
}

/// Somebody who may only create copies each object as it is under the name of its healed copy, events among them that others have ended.
#[test]
fn copies_under_names_of_healed_ones_bring_nothing_back() {
    let backed = Backed::new();
    let (first, second) = (backed.first.as_str(), backed.second.as_str());
    let segment = format!("wal-{}", backed.segment());
    for (subject, kind, end) in [
        (first, "expire", "unexpire"),
        (second, "expire", "unexpire"),
        (second, "damaged", "healed"),
        (second, "pin", "unpin"),
        (&segment, "damaged", "healed"),
    ] {
        let name = backed.genuine(subject, kind);
        backed.genuine_end(subject, end, Some(&name));
    }
    let plan = || {
        let run = backed.sealed.on("reader").words("plan --json").run();
        run.success().json()["backup"].clone()
    };
    let seen = || {
        let mut info = backed.info();
        assert!(info["backups"][0].is_object(), "{info}");
        let parts = [info["backups"].take(), info["timelines"].take()];
        let fates = [first, second].map(|id| backed.fate("writer", id));
        (parts, fates, plan())
    };
    assert!(backed.forged().is_empty());
    let before = seen();

    let mut events = Vec::new();
    for path in paths_below(&backed.sealed.repository) {
        let healed = format!("{}.heal-1", path.display());
        fs::copy(&path, &healed).unwrap();
        let key = path.strip_prefix(&backed.sealed.repository).unwrap();
        let key = key.display().to_string();
        if key.contains("/events/") {
            events.push(format!("{key}.heal-1"));
        }
    }
    backed.hand_over();
    events.sort();

    assert_eq!(seen(), before);
    assert_eq!(backed.forged(), events);
    let run = backed.sealed.on("reader").words("verify --json").run();
    let warnings = run.json()["clusters"][0]["warnings"].clone();
    let mut warnings: Vec<String> = serde_json::from_value(warnings).unwrap();
    warnings.sort();
    let mut odd = [
        "pitr.json".to_owned(),
        "keys/1/ops".to_owned(),
        "keys/1/escrow".to_owned(),
        backed.layout.registration().to_string(),
    ]
    .map(|key| format!("\"{key}.heal-1\" is no object of this format"));
    odd.sort();
    assert_eq!(warnings, odd);
}

#[test]
fn marks_and_claims_of_who_has_no_key_are_no_forgeries() {
    let backed = Backed::new();
    let look = keep_one(&["--grace", "1h", "--confirm", "--quiet"]);
    backed.sealed.on("janitor").args(look).succeed();
    let marked = |host: &str| backed.fate(host, &backed.first).contains("waiting");
    assert!(marked("janitor"));
    let owner = backed.owner();
    let claim = backed.put(&owner, &backed.second, "claim", None);
    backed.put(&owner, &backed.second, "release", Some(&claim));
    assert!(backed.forged().is_empty());
    assert!(!backed.info()["problems"].to_string().contains("forged"));
}

/// Row X40: a janitor without keys is killed when the roots are gone.
#[test]
fn x40_who_has_keys_tells_an_interrupted_janitor_from_a_lost_root() {
    let backed = Backed::new();
    let sealed = &backed.sealed;
    let decided = sealed.sandbox.dir("paused").join("decided");
    let pause = format!("expire-decided={}", decided.display());
    let expire = sealed.on("janitor").args(expire_at_once());
    let running = expire.clone().env("PITR_FAULT_PAUSE", pause).spawn();
    wait_until("the janitor has decided", || decided.exists());
    running.ended_by(Signal::KILL);
    let root = sealed.folder("backups").join(&backed.first);
    fs::remove_file(root.join("manifest")).unwrap();
    let verify = || sealed.on("reader").arg("verify").run();
    verify()
        .expect_code(4)
        .expect_stdout("its root is not there. A mark for deletion that nothing proves");
    expire.succeed();
    verify().success();
    assert!(!sealed.folder("packs").join(&backed.first).exists());
}

/// A host whose configuration lost the section of encryption.
#[test]
fn z17_a_backup_without_keys_is_refused_before_it_leaves_a_forged_event() {
    let (sealed, _cluster) = Sealed::archived(17);
    let events = || {
        let mut paths = paths_below(&sealed.repository);
        paths.retain(|path| path.display().to_string().contains("/events/"));
        paths
    };
    let before = events();
    let run = sealed.on("janitor").arg("backup").run();
    refused(&run, 1, "no key to write with is configured on this host");
    assert!(run.stderr.contains("key_set"), "{run}");
    assert!(!run.stderr.contains("begins with a checkpoint"), "{run}");
    assert_eq!(events(), before);
    sealed.on("writer").arg("backup").succeed();
    sealed.on("reader").words("verify --quiet").succeed();
}

#[test]
fn a_forged_registration_is_refused_and_one_beside_it_is_found() {
    let backed = Backed::new();
    let path = backed.sealed.folder("cluster.json");
    let right = fs::read(&path).unwrap();
    let key = backed.layout.registration();
    let mut changed: Registration = json::decode(&key, "cluster", &right).unwrap();
    changed.segment_size_bytes *= 2;
    fs::write(&path, json::encode(&key, "cluster", &changed).unwrap()).unwrap();
    for verb in ["verify", "info"] {
        let run = backed.sealed.on("reader").args([verb, "--quiet"]).run();
        assert_ne!(run.code(), 0, "{run}");
        assert!(run.stderr.contains(FORGED), "{run}");
    }
    fs::write(&path, &right).unwrap();
    let other = ClusterLayout::new("main", 7).unwrap();
    changed.system_identifier = 7;
    // pitr itself refuses to write it without the key.
    let owner = Repository::open_with(Box::new(backed.owner()), None).unwrap();
    assert_eq!(owner.register(&changed).unwrap_err().code(), Code::Key);
    let forged = json::encode(&other.registration(), "cluster", &changed).unwrap();
    store::put(&backed.owner(), &other.registration(), &forged).unwrap();
    backed.hand_over();
    let info = backed.info();
    assert_eq!(info["backups"].as_array().unwrap().len(), 2, "{info}");
    let run = backed.sealed.on("reader").words("verify --quiet").run();
    refused(&run, 4, "");
    assert!(run.stdout.contains(other.registration().as_str()), "{run}");
    assert!(run.stdout.contains(FORGED), "{run}");
}
