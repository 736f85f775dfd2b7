//! Content beside clusters, by a kind that only these tests know: its whole life, in directories and buckets, plain and encrypted.

pub mod blobs;
pub mod world;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pitr::config::Retention;
use pitr::error::Code;
use pitr::expire::scope::ExpireScope;
use pitr::expire::{Leftovers, Outcome};
use pitr::plan::retention::aux_items::retention;
use pitr::plan::retention::{Deletion, ExpirePlan, Fate, Policy};
use pitr::repo::catalog::{Catalog, Reading};
use pitr::repo::claim::Claim;
use pitr::repo::event::{Event, Writer};
use pitr::repo::id::{BackupId, PartKind, PartName};
use pitr::repo::root::aux_root::AuxBackup;
use pitr::repo::scope::Scope;
use pitr::repo::source;
use pitr::repo::stored_log::StoredLog;

use crate::common::{expire_at_once, keep_one};
use blobs::{Blobs, Twice};
use world::{Form, World, host, scope, take_into};

const PLAIN: Form = Form {
    in_bucket: false,
    is_sealed: false,
};
const SEALED: Form = Form {
    in_bucket: false,
    is_sealed: true,
};

fn catalog(world: &World, repository: &str) -> Catalog<AuxBackup> {
    let repository = world.open(repository);
    let scope = scope();
    let reading = Reading::begin(repository.store(), &scope).unwrap();
    reading.everything().unwrap()
}

fn ids(world: &World, repository: &str) -> Vec<BackupId> {
    let catalog = catalog(world, repository);
    let mut all: Vec<_> = catalog
        .committed()
        .map(|(id, _, b)| (b.root.stop_time, id.clone()))
        .collect();
    all.sort();
    all.into_iter().map(|(_, id)| id).collect()
}

fn part(id: &BackupId) -> PartName {
    PartName {
        id: id.clone(),
        number: 0,
    }
}

/// Takes backups of several versions.
fn taken(world: &World, versions: &[u8]) -> Vec<BackupId> {
    let take = |v: &u8| world.take(&Blobs::of("here", *v)).unwrap().head.id;
    versions.iter().map(take).collect()
}

/// Returns the decisions of retention, by a clock that is ahead; one is kept.
fn planned(world: &World, grace: Duration, hours: u64) -> ExpirePlan {
    retention(
        &catalog(world, "one"),
        &StoredLog::default(),
        &policy(grace),
        host(hours).now(),
    )
}

fn policy(grace: Duration) -> Policy {
    Policy {
        rules: Retention::newest(1),
        grace,
        confirm_burst: true,
        ..Policy::default()
    }
}

/// Expires in this process; keeps one.
fn expire(world: &World, grace: Duration) -> (ExpirePlan, Outcome) {
    let (repository, scope, host) = (world.open("one"), scope(), host(0));
    let expire = ExpireScope {
        repository: &repository,
        scope: &scope,
        policy: policy(grace),
        host: &host,
        leftovers: Leftovers::default(),
    };
    let plan = expire.plan().unwrap();
    let mut outcome = Outcome::default();
    expire.run(&plan, &mut outcome).unwrap();
    (plan, outcome)
}

fn fates(plan: &ExpirePlan) -> Vec<&'static str> {
    plan.backups.iter().map(|b| b.fate.as_str()).collect()
}

/// Takes, lists, verifies, restores, copies, damages, and expires.
fn whole_life(form: Form) {
    let world = World::new(form);
    let all = taken(&world, &[1, 2, 3]);
    assert_eq!(ids(&world, "one"), all);
    assert_eq!(
        world.restore("one", &all[1]).unwrap(),
        Blobs::of("here", 2).content
    );
    // The commands see it, beside a cluster of which nothing is stored yet.
    let info = world.pitr("all", &["info", "--json"]).run().json();
    assert_eq!(info["scopes"][0]["scope"], "aux/test/blobs", "{info}");
    assert_eq!(
        info["scopes"][0]["backups"].as_array().unwrap().len(),
        3,
        "{info}"
    );
    let verify = world.pitr("all", &["verify", "--json"]).succeed().json();
    assert_eq!(verify["scopes"][0]["finding_count"], 0, "{verify}");
    assert_eq!(
        verify["scopes"][0]["warnings"],
        serde_json::json!([]),
        "{verify}"
    );
    let first = verify["scopes"][0]["backups"][0].clone();
    assert_eq!(first["restorable"], true, "{verify}");
    // A copy is whole, and another run lacks nothing.
    world.pitr("all", &["repo", "sync"]).succeed();
    assert_eq!(ids(&world, "two"), all);
    assert_eq!(
        world.restore("two", &all[2]).unwrap(),
        Blobs::of("here", 3).content
    );
    let again = world
        .pitr("all", &["repo", "sync", "--json"])
        .succeed()
        .json();
    let copied = again["transfers"].as_array().unwrap().iter();
    assert!(
        copied.map(|t| &t["copied"]["objects"]).all(|n| *n == 0),
        "{again}"
    );
    // Damage is found, recorded, and keeps the backup from being the one that lets others go.
    let key = scope().pack(&part(&all[2]));
    world.change("one", &key, |bytes| {
        bytes[4000] ^= 1;
        true
    });
    let run = world.pitr("all", &["verify"]).exits(4);
    assert!(run.stdout.contains(key.as_str()), "{run}");
    assert!(world.restore("one", &all[2]).is_err());
    let (plan, outcome) = expire(&world, Duration::ZERO);
    assert_eq!(fates(&plan), ["delete", "keep", "keep"]);
    assert!(plan.backups[2].damage.is_some());
    assert_eq!(outcome.deleted_backups, all[..1]);
    assert_eq!(ids(&world, "one"), all[1..]);
    assert_eq!(
        world.restore("one", &all[1]).unwrap(),
        Blobs::of("here", 2).content
    );
    // A backup that is gone leaves nothing in the repository, and an expired backup does not come back.
    let left = catalog(&world, "one");
    assert!(
        !left.ids.contains_key(&all[0]),
        "{:?}",
        left.ids.get(&all[0])
    );
    let sync = ["repo", "sync", "--from", "two", "--to", "one"];
    let run = world.pitr("all", &sync).run();
    assert!(matches!(run.code(), 0 | 10), "{run}");
    assert_eq!(ids(&world, "one"), all[1..]);
}

#[test]
fn content_lives_in_a_directory() {
    whole_life(PLAIN);
}

#[test]
fn content_lives_in_an_encrypted_directory() {
    whole_life(SEALED);
}

#[test]
fn content_lives_in_a_bucket() {
    whole_life(Form {
        in_bucket: true,
        ..PLAIN
    });
}

#[test]
fn content_lives_in_an_encrypted_bucket() {
    whole_life(Form {
        in_bucket: true,
        ..SEALED
    });
}

#[test]
fn pins_claims_and_grace_keep_content() {
    let world = World::new(PLAIN);
    let all = taken(&world, &[1, 2, 3, 4]);
    let (repository, scope, host) = (world.open("one"), scope(), host(0));
    let (store, writer) = (repository.store(), || Writer::of(&host));
    let pin = Event {
        reason: Some("an audit".into()),
        ..writer().event("pin", &all[0].to_string())
    };
    writer().record(store, &scope, &pin).unwrap();
    let claim = Claim::take((store, &scope), writer(), &all[1], "restore", None).unwrap();
    let hour = Duration::from_secs(3600);
    let (plan, _) = expire(&world, hour);
    assert_eq!(fates(&plan), ["keep", "keep", "mark", "keep"]);
    let (plan, outcome) = expire(&world, hour);
    assert!(matches!(plan.backups[2].fate, Fate::Waiting(_)));
    assert_eq!(outcome.deleted_objects, 0);
    let due = planned(&world, hour, 2);
    assert_eq!(fates(&due), ["keep", "keep", "delete", "keep"]);
    assert_eq!(ids(&world, "one"), all);
    claim.release(host.progress.as_ref());
    world.pitr("all", &expire_at_once()).run();
    world.pitr("all", &expire_at_once()).run();
    let rest = [all[0].clone(), all[3].clone()];
    assert_eq!(ids(&world, "one"), rest);
    // The claim under which objects are deleted stands on the scope, and is gone with the run.
    assert_eq!(store.list(&scope.subject("scope")).unwrap().len(), 0);
    for id in &rest {
        world.restore("one", id).unwrap();
    }
}

#[test]
fn a_janitor_without_keys_expires_content() {
    let world = World::new(SEALED);
    let all = taken(&world, &[1, 2]);
    for _ in 0..2 {
        let run = world.pitr("janitor", &expire_at_once()).run();
        assert!(run.stderr.contains("it is not checked who made"), "{run}");
    }
    assert_eq!(ids(&world, "one"), all[1..]);
    world.restore("one", &all[1]).unwrap();
    // A backup that info cannot read is not called damaged: an info without keys names what is there.
    let info = world.pitr("janitor", &["info", "--json"]).run().json();
    let shown = &info["scopes"][0]["backups"][0];
    assert_eq!(
        (&shown["id"], &shown["label"]),
        (&all[1].to_string().into(), &serde_json::Value::Null)
    );
}

#[test]
fn a_lost_root_is_found_and_comes_back() {
    for form in [PLAIN, SEALED] {
        let world = World::new(form);
        let all = taken(&world, &[1, 2]);
        world.pitr("all", &["repo", "sync"]).succeed();
        world.lose("one", &scope().manifest(&all[0]));
        let run = world.pitr("all", &["verify"]).exits(4);
        assert!(run.stdout.contains("its root is not there"), "{run}");
        // It is no leftover, however long it lies there. Claims of the copy are over by then.
        let plan = planned(&world, Duration::ZERO, 48);
        assert!(plan.only_clears(), "{plan:?}");
        assert!(plan.warnings[0].contains("its root is lost"), "{plan:?}");
        let info = world.pitr("all", &["info", "--json"]).run().json();
        assert_eq!(info["scopes"][0]["state"], "critical", "{info}");
        world.pitr("all", &["repo", "sync"]).succeed();
        assert_eq!(ids(&world, "one"), all);
        assert_eq!(
            world.restore("one", &all[0]).unwrap(),
            Blobs::of("here", 1).content
        );
    }
}

#[test]
fn a_lost_registration_stops_writers_and_not_readers() {
    let world = World::new(SEALED);
    let all = taken(&world, &[1, 2]);
    world.lose("one", &scope().registration());
    let refused = world.take(&Blobs::of("here", 3)).unwrap_err();
    assert_eq!(refused.code(), Code::Damaged, "{refused}");
    world.restore("one", &all[0]).unwrap();
    let run = world.pitr("all", &["verify"]).exits(4);
    assert!(run.stdout.contains("scope.json"), "{run}");
    let (plan, outcome) = expire(&world, Duration::ZERO);
    assert_eq!(outcome.deleted_objects, 0);
    assert!(plan.withheld[0].contains("registration"), "{plan:?}");
    // `pitr init` makes it again with the source that the newest root names.
    world.pitr("all", &["init", "--quiet"]).succeed();
    let repository = world.open("one");
    let again = source::registration(repository.store(), &scope()).unwrap();
    let source = again.unwrap().source;
    assert_eq!(source, Some(source::source_of("test", "here")));
    world.take(&Blobs::of("here", 3)).unwrap();
}

#[test]
fn two_sources_do_not_mix_under_one_name() {
    for form in [PLAIN, SEALED] {
        let world = World::new(form);
        taken(&world, &[1]);
        let refused = world.take(&Blobs::of("elsewhere", 2)).unwrap_err();
        assert_eq!(refused.code(), Code::Refused, "{refused}");
        for owner in ["here", "elsewhere"] {
            let source = source::source_of("test", owner);
            assert!(refused.to_string().contains(&source), "{refused}");
        }
        assert_eq!(ids(&world, "one").len(), 1);
        let repository = world.open("one");
        let (store, host) = (repository.store(), host(0));
        let other = source::source_of("test", "elsewhere");
        let asked = (other.as_str(), "a new host");
        source::continue_with(store, &scope(), &Writer::of(&host), asked).unwrap();
        world.take(&Blobs::of("elsewhere", 2)).unwrap();
        let refused = world.take(&Blobs::of("here", 3)).unwrap_err();
        assert_eq!(refused.code(), Code::Refused, "{refused}");
        // The event is copied, and both repositories know both sources.
        world.pitr("all", &["repo", "sync"]).succeed();
        let there = world.open("two");
        assert_eq!(source::events(there.store(), &scope()).unwrap().len(), 1);
        assert_eq!(ids(&world, "two").len(), 2);
    }
}

#[test]
fn a_backup_that_fails_leaves_nothing_and_one_that_is_killed_goes_later() {
    let world = World::new(PLAIN);
    let all = taken(&world, &[1]);
    let broken = Blobs {
        fails_after: Some(5),
        ..Blobs::of("here", 2)
    };
    world.take(&broken).unwrap_err();
    let left = catalog(&world, "one");
    let parts = |c: &Catalog<AuxBackup>| -> Vec<BackupId> {
        let has = |kind| c.ids.iter().filter(move |(_, s)| !s.parts(kind).is_empty());
        has(PartKind::Pack).map(|(id, _)| id.clone()).collect()
    };
    assert_eq!(parts(&left), all);
    // Killed, it can take nothing back: reservation, claim and packs are there, and no root.
    let repository = world.open("one");
    let (store, scope) = (repository.store(), scope());
    let host = host(0);
    let id = pitr::backup::reservation::reserve(
        store,
        &scope,
        pitr::repo::root::BackupKind::Full,
        None,
        &host,
    )
    .unwrap();
    std::mem::forget(Claim::take((store, &scope), Writer::of(&host), &id, "backup", None).unwrap());
    pitr::store::put(store, &scope.pack(&part(&id)), b"half a pack").unwrap();
    assert_eq!(ids(&world, "one"), all);
    let (plan, _) = expire(&world, Duration::ZERO);
    assert!(
        plan.tombstones.is_empty() && plan.deletions.is_empty(),
        "{plan:?}"
    );
    world.pitr("all", &["verify"]).succeed();
    // A day later a tombstone stands there, behind which nobody commits.
    let plan = planned(&world, Duration::ZERO, 26);
    assert!(plan.tombstones.contains(&id), "{plan:?}");
    let deletion = Deletion::Packs(id.clone(), 0, 0);
    assert!(plan.deletions.contains(&deletion), "{plan:?}");
    world.restore("one", &all[0]).unwrap();
}

#[test]
fn claims_on_content_are_listed_and_released() {
    for form in [PLAIN, SEALED] {
        let world = World::new(form);
        let id = taken(&world, &[1]).remove(0);
        let (repository, scope, host) = (world.open("one"), scope(), host(0));
        let place = (repository.store(), &scope);
        std::mem::forget(Claim::take(place, Writer::of(&host), &id, "restore", None).unwrap());
        let claims = |more: &[&str]| {
            let claims = [&["repo", "claims", "--json"], more].concat();
            world.pitr("all", &claims).run()
        };
        let shown = claims(&[]).success().json()["claims"].clone();
        let one = &shown[0];
        assert_eq!(
            (one["scope"].as_str(), one["backup"].as_str()),
            (Some("aux/test/blobs"), Some(id.to_string().as_str()))
        );
        assert!(
            one.get("cluster").is_none() && one["complete"] == true,
            "{one:#}"
        );
        let table = world.pitr("all", &["repo", "claims"]).succeed();
        table.expect_stdout(&format!("aux/test/blobs {id}"));
        let release = ["--release", &id.to_string()];
        claims(&release).expect_code(8);
        claims(&[&release[..], &["--confirm"]].concat()).success();
        let shown = claims(&[]).success().json();
        assert_eq!(shown["claims"], serde_json::json!([]));
    }
}

/// An id alone is that of a backup of a cluster.
#[test]
fn requests_about_a_backup_of_content_are_refused() {
    let world = World::new(PLAIN);
    let id = taken(&world, &[1]).remove(0).to_string();
    for request in [
        &["pin", &id, "--reason", "kept", "--confirm"][..],
        &["unpin", &id, "--confirm"],
        &["backup", "delete", &id, "--confirm"],
    ] {
        let run = world.pitr("all", request).exits(8);
        let run = run.expect_stderr("is one of \"aux/test/blobs\"");
        run.expect_stderr("Nothing was changed");
    }
    assert_eq!(ids(&world, "one").len(), 1);
    let events = event_names(&world);
    assert!(
        !events
            .iter()
            .any(|name| name.contains("-pin-") || name.contains("-expire-")),
        "{events:?}"
    );
}

#[test]
fn x68_a_backup_of_content_is_deleted_by_request() {
    let world = World::new(SEALED);
    let all = taken(&world, &[1, 2, 3]);
    world.pitr("all", &["repo", "sync", "--quiet"]).succeed();
    let [first, second, third] = &all[..] else {
        panic!("{all:?}");
    };
    let of = |verb: &[&str], id: &BackupId, host: &str| {
        let program = world.pitr(host, verb).arg(id.to_string());
        program.args(["--of", "test:blobs"])
    };
    let delete = |id: &BackupId, host: &str| of(&["backup", "delete"], id, host);

    // The newest good one stays, and so does a pinned one; the errors name what comes first.
    let newest = delete(third, "all").arg("--confirm").exits(8);
    newest.expect_stderr("First take another one: pitr test backup blobs");
    let pin = of(&["pin"], second, "all");
    pin.args(["--reason", "x", "--confirm"]).succeed();
    let pinned = delete(second, "all").arg("--confirm").exits(8);
    let unpin = format!("First: pitr unpin {second} --of test:blobs --confirm");
    pinned.expect_stderr(&unpin);
    let unpin = of(&["unpin"], second, "all");
    unpin.arg("--confirm").succeed();
    let unknown: BackupId = "20200101T000000Z-full".parse().unwrap();
    let unknown = delete(&unknown, "all").exits(2);
    unknown.expect_stderr("Nothing was changed");
    delete(second, "all").exits(8);
    let dry = delete(second, "all").words("--dry-run --json").succeed();
    let dry = dry.json();
    let shown = dry["repositories"].as_array().unwrap();
    assert_eq!(shown.len(), 2, "{dry}");
    for one in shown {
        assert_eq!(one["fate"], "mark", "{dry}");
        assert!(one.get("wal").is_none(), "{dry}");
    }
    assert_eq!(ids(&world, "one"), all);

    // It is marked first. Keys are not needed to delete it, and the others are whole in both.
    let marked = delete(second, "all").arg("--confirm").succeed();
    marked.expect_stdout("marked in one");
    assert_eq!(ids(&world, "two"), all);
    let gone = delete(second, "janitor").words("--grace 0s --confirm");
    let gone = gone.succeed();
    gone.expect_stderr("it is not checked who made")
        .expect_stdout("deleted in two");
    let left = [first.clone(), third.clone()];
    for repository in ["one", "two"] {
        assert_eq!(ids(&world, repository), left);
        for id in &left {
            world.restore(repository, id).unwrap();
        }
    }
}

#[test]
fn x69_info_tells_when_backups_of_content_go_and_what_was_read_back() {
    let world = World::new(PLAIN);
    let all = taken(&world, &[1, 2, 3]);
    let text = std::fs::read_to_string(world.sandbox.join("all.toml")).unwrap();
    let rules = |zone: &str| format!("[retention]\nkeep_last = 2\ntimezone = \"{zone}\"\n");
    let ruled = text.clone() + &rules("Asia/Tokyo");
    world.sandbox.file("ruled.toml", ruled);
    let scope = |host: &str, words: &[&str]| {
        let run = world.pitr(host, words).arg("--json").run();
        run.json()["scopes"][0].clone()
    };
    let info = scope("all", &["info"]);
    assert_eq!(info["read_back"]["packs_read"], 0, "{info}");
    assert!(info.get("retention").is_none(), "{info}");

    world.pitr("all", &["verify", "--quiet"]).succeed();
    let info = scope("ruled", &["info"]);
    let read = &info["read_back"];
    assert!(read["packs"].as_u64() > Some(0), "{info}");
    assert_eq!(read["packs_read"], read["packs"], "{info}");
    assert!(read["oldest"].is_string(), "{info}");
    // It says what expire does.
    let expire = scope("ruled", &["expire", "--dry-run"]);
    let fates = |of: &serde_json::Value| {
        let backups = of["backups"].as_array().unwrap().clone();
        let fate = |b: serde_json::Value| ["id", "fate", "reason"].map(|m| b[m].clone());
        backups.into_iter().map(fate).collect::<Vec<_>>()
    };
    assert_eq!(fates(&info["retention"]), fates(&expire), "{info}");
    assert_eq!(info["retention"]["rules"], "keep_last 2", "{info}");
    assert_eq!(info["retention"]["zone"], "Asia/Tokyo", "{info}");
    assert_eq!(fates(&expire).len(), 3, "{expire}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = now.as_secs();
    let clock = format!("{},{now},1,all", now + 3 * 86_400);
    let later = world.pitr("ruled", &["info"]);
    let later = later.env("PITR_FAULT_CLOCK", clock).run();
    let goes = "goes with the next runs of expire: no rule keeps it";
    later
        .expect_stdout("retention: keep_last 2; days of Asia/Tokyo")
        .expect_stdout("o kept  x goes  ! damaged\n")
        .expect_stdout(&format!("{} {goes}", all[0]))
        .expect_stdout("read back: ");

    // Rules in a zone that does not exist hide no backup.
    let own = "[clusters.main]\ntimezone = \"UTC\"\n";
    let text = text.replace("[clusters.main]\n", own);
    let lost = text + &rules("Nowhere/Land");
    world.sandbox.file("lost.toml", lost);
    let info = scope("lost", &["info"]);
    let problem = &info["problems"][0];
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains("timezone"), "{info}");
    assert_eq!(problem["next"], "pitr doctor", "{info}");
    assert_eq!(info["state"], "critical", "{info}");
    assert_eq!(info["backups"].as_array().unwrap().len(), 3, "{info}");
}

fn event_names(world: &World) -> Vec<String> {
    let catalog = catalog(world, "one");
    let events = catalog.ids.values().flat_map(|subject| &subject.events);
    events.map(|event| event.name.clone()).collect()
}

#[test]
fn content_of_an_unknown_kind_is_kept() {
    let world = World::new(PLAIN);
    let all = taken(&world, &[1, 2]);
    // The same objects as another kind would have them: the keys in them differ, so only what needs no root is looked at.
    let unknown = Scope::aux("later", "blobs").unwrap();
    let repository = world.open("one");
    let registered = (Some("0123456789abcdef0123456789abcdef"), None);
    source::register(repository.store(), &unknown, registered, host(0).now()).unwrap();
    let expire = world
        .pitr("all", &keep_one(&["--grace", "0s", "--confirm", "--json"]))
        .run();
    let scopes = expire.json()["scopes"].as_array().unwrap().clone();
    assert_eq!(scopes[0]["scope"], "aux/later/blobs", "{expire}");
    let withheld = scopes[0]["withheld"][0].as_str().unwrap();
    assert!(
        withheld.contains("does not know content of kind"),
        "{expire}"
    );
    world.pitr("all", &["verify"]).succeed();
    world.pitr("all", &["repo", "sync"]).succeed();
    let there = world.open("two");
    assert!(
        source::registration(there.store(), &unknown)
            .unwrap()
            .is_some()
    );
    assert_eq!(ids(&world, "two"), all[1..]);
}

#[test]
fn a_fault_of_the_own_map_is_not_called_damage_of_the_prior() {
    let world = World::new(PLAIN);
    let mut twice = Twice {
        blobs: Blobs::small("me", 1),
        runs: 0,
    };
    let repository = world.open("one");
    take_into(&repository, "blobs", &mut twice).unwrap();
    let failed = take_into(&repository, "blobs", &mut twice).unwrap_err();
    assert!(failed.to_string().contains("came twice"), "{failed}");
    assert_eq!((failed.code(), twice.runs), (Code::Internal, 2));
    assert_eq!(ids(&world, "one").len(), 1);
}
