//! `pitr hold` and `unhold`: the store's own hold where it has one, and a word for it where it has none.

use crate::common::s3::Fault;
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Run, keep_one};
use crate::per_major;
use crate::pin::Kept;
use crate::s3_cycle::Bucketed;
use pitr::repo::event;
use pitr::repo::layout::ClusterLayout;

/// The header that tells of a store's hold.
const HOLD: &str = "x-amz-object-lock-legal-hold";

/// Two full backups in a bucket.
struct Court {
    site: Bucketed,
    cluster: Cluster,
    ids: [String; 2],
}

impl Court {
    fn new(major: u32, object_lock: Option<bool>) -> Court {
        let mut cluster = Cluster::small(major).create();
        let site = Bucketed::new(&cluster, Peer::own(), "");
        site.peer.server().behave(|m| m.object_lock = object_lock);
        site.attach(&cluster);
        cluster.start();
        cluster.sql("create table t (n int)");
        let backup = || {
            cluster.sql("insert into t values (1)");
            let run = site.pitr().words("backup --full --json").run();
            run.success().id()
        };
        let ids = [backup(), backup()];
        cluster.archive_now();
        Court { site, cluster, ids }
    }

    fn pitr(&self, args: &[&str]) -> Run {
        self.site.pitr().args(args).run()
    }

    fn hold(&self, id: &str) -> Run {
        self.pitr(&["hold", id, "--reason", "case 17", "--confirm"])
    }

    /// Keys whose objects the store holds.
    fn held(&self) -> Vec<String> {
        let server = self.site.peer.server();
        let mut keys = server.keys();
        keys.retain(|key| {
            server
                .written_with(key)
                .get(HOLD)
                .is_some_and(|v| v == "ON")
        });
        keys
    }

    /// Fails unless the store holds what this backup needs, `more` among it, and nothing of the other one.
    fn holds_alone(&self, backup: &str, more: &[&str], other: &str) {
        let held = self.held();
        let own = [
            "backups/{}/manifest",
            "packs/{}/",
            "layers/{}/",
            "events/{}/",
        ];
        let own = own.map(|part| part.replace("{}", backup));
        for needed in own.iter().map(String::as_str).chain(more.iter().copied()) {
            assert!(
                held.iter().any(|key| key.contains(needed)),
                "{needed}: {held:#?}"
            );
        }
        assert!(!held.iter().any(|key| key.contains(other)), "{held:#?}");
    }

    fn has(&self, part: &str) -> bool {
        let keys = self.site.peer.server().keys();
        keys.iter().any(|key| key.contains(part))
    }

    fn shown(&self, id: &str) -> serde_json::Value {
        let info = self.pitr(&["info", "--json"]).json();
        let backups = info["clusters"][0]["backups"].as_array().unwrap().clone();
        backups.into_iter().find(|b| b["id"] == id).unwrap()
    }

    fn expire(&self) -> Run {
        let expire = keep_one(&["--grace", "0s", "--confirm"]);
        self.site.pitr().args(expire.clone()).run();
        self.site.pitr().args(expire).run()
    }
}

fn a_hold_is_the_stores_own_where_it_has_one(major: u32) {
    let court = Court::new(major, Some(true));
    let [first, second] = court.ids.clone();
    let keys = court.site.peer.server().keys();
    let plan = court.pitr(&["hold", &first, "--reason", "case 17"]);
    plan.expect_code(8).expect_stdout("by the store's own hold");
    court
        .pitr(&["hold", &first, "--reason", "case 17", "--dry-run"])
        .success();
    assert_eq!(court.site.peer.server().keys(), keys);
    assert!(court.held().is_empty(), "nothing was changed");

    // The store refuses one object: the hold stands, and says no more than is true.
    let refusal = Fault::Error(403, "AccessDenied");
    let fired = (court.site.peer.server()).fault_after(3, "legal-hold", 1, refusal);
    let partly = court.hold(&first);
    assert_eq!(fired.times(), 1, "{partly}");
    partly
        .expect_code(10)
        .expect_stderr("hold its objects in repository");
    court.site.peer.server().heal();
    assert_eq!(court.shown(&first)["hold"], "advisory");
    court.hold(&first).success().expect_stdout("objects");
    let shown = court.shown(&first);
    assert_eq!(shown["hold"], "store");
    assert_eq!(shown["pinned_reason"], "case 17");
    court.pitr(&["info"]).expect_stdout("on hold");
    court.holds_alone(&first, &["/wal/", "pitr.json", "cluster.json"], &second);
    // Repeated, it says nothing new.
    let keys = court.site.peer.server().keys();
    court.hold(&first).success();
    assert_eq!(court.site.peer.server().keys(), keys);

    // Nothing of pitr lets it go.
    court
        .expire()
        .success()
        .expect_stdout("on legal hold: case 17");
    let unpin = court.pitr(&["unpin", &first, "--confirm"]);
    unpin.expect_code(8).expect_stderr("pitr unhold");
    let deletion = ["backup", "delete", &first, "--grace", "0s", "--confirm"];
    court.pitr(&deletion).expect_code(8);
    assert!(court.has(&format!("packs/{first}/")));

    // Who may create objects forges its end: retention decides then, and the store refuses.
    forge_end(&court, &first);
    assert!(court.shown(&first)["hold"].is_null());
    let refused = court.expire();
    let refused = refused.expect_stderr("(legal hold)");
    for part in ["packs", "layers", "backups"] {
        assert!(court.has(&format!("{part}/{first}/")), "{refused}");
    }
    court.hold(&first).success();

    // An object that another hold needs stays held.
    court.hold(&second).success();
    let ended = court.pitr(&["unhold", &first, "--confirm"]).success();
    ended.expect_stdout("no longer on hold");
    let held = court.held();
    assert!(
        held.iter().any(|key| key.ends_with("pitr.json")),
        "{held:#?}"
    );
    assert!(
        held.iter()
            .any(|key| key.contains(&format!("packs/{second}/")))
    );
    assert!(
        !held
            .iter()
            .any(|key| key.contains(&format!("packs/{first}/")))
    );
    court.expire().success();
    assert!(
        !court.has(&format!("packs/{first}/")),
        "it goes as any other"
    );
    court.pitr(&["unhold", &second, "--confirm"]).success();
    assert_eq!(court.held(), Vec::<String>::new());
    court.pitr(&["verify", "--quiet"]).success();
    drop(court.cluster);
}
per_major!(a_hold_is_the_stores_own_where_it_has_one, v17);

/// Ends every hold of a backup as somebody does who may only create objects.
fn forge_end(court: &Court, id: &str) {
    let store = court.site.store();
    let key = court.site.peer.server().keys();
    let cluster = key
        .iter()
        .find_map(|key| key.split("clusters/main/").nth(1));
    let identifier = cluster.unwrap().split('/').next().unwrap();
    let layout = ClusterLayout::new("main", identifier.parse().unwrap()).unwrap();
    let events = event::read_all(&store, &layout, id).unwrap();
    for hold in event::legal_holds(&events) {
        let end = event::Event {
            event: "unhold".into(),
            subject: id.to_owned(),
            ends: Some(hold.name.clone()),
            time: hold.event.time,
            ..event::Event::default()
        };
        event::record(&store, &layout, &end, 77).unwrap();
    }
}

fn a_hold_is_advisory_where_the_store_has_none(major: u32) {
    let kept = Kept::new(major, 2);
    let first = kept.ids[0].clone();
    let hold = ["hold", &first, "--reason", "case 18", "--confirm"];
    let held = kept.pitr(&hold).succeed();
    held.expect_stdout("advisory: the store has no legal holds")
        .expect_stdout("(advisory)");
    assert_eq!(kept.shown(0)["hold"], "advisory");
    kept.pitr(&["info"])
        .run()
        .expect_stdout("on hold (advisory)");
    assert_eq!(kept.fates(&[]), ["keep", "keep"]);
    // A pin beside it comes and goes, and the hold stays.
    let pin = ["pin", &first, "--reason", "mine", "--confirm"];
    kept.pitr(&pin).succeed();
    kept.pitr(&["unpin", &first, "--confirm"]).succeed();
    let again = kept.pitr(&["unpin", &first, "--confirm"]).run();
    again.expect_code(8).expect_stderr("on legal hold");
    // Another repository learns of the hold and of its end.
    kept.second();
    let second = ["info", "--json", "--repository", "second"];
    let hold_in_second = || {
        let info = kept.pitr(&second).run().json();
        info["clusters"][0]["backups"][0]["hold"].clone()
    };
    assert_eq!(hold_in_second(), "advisory");
    let none = kept.pitr(&["unhold", &kept.ids[1], "--confirm"]).run();
    none.expect_code(2).expect_stderr("is not on hold");
    let plan = kept.pitr(&["unhold", &first]).run();
    plan.expect_code(8)
        .expect_stdout("ends: legal hold of")
        .expect_stderr(&format!("The legal holds of backup \"{first}\" would end."));
    let only = ["unhold", &first, "--confirm", "--repository", "local"];
    kept.pitr(&only).succeed();
    assert!(kept.shown(0)["hold"].is_null());
    assert_eq!(hold_in_second(), "advisory");
    let sync = ["repo", "sync", "--all", "--quiet"];
    kept.pitr(&sync).succeed();
    assert!(hold_in_second().is_null());
    assert_eq!(kept.fates(&[]), ["mark", "keep"]);
}
per_major!(a_hold_is_advisory_where_the_store_has_none, v17);

/// Servers that know no Object Lock, and buckets without one, are asked for no hold: some would take that for a new object.
#[test]
fn a_store_that_does_not_know_holds_is_asked_for_none() {
    let court = Court::new(17, None);
    let [first, _] = court.ids.clone();
    for object_lock in [None, Some(false)] {
        let server = court.site.peer.server();
        server.behave(|m| m.object_lock = object_lock);
        court.hold(&first).success().expect_stdout("(advisory)");
        assert!(!server.log().iter().any(|line| line.contains("legal-hold")));
    }
    assert_eq!(court.shown(&first)["hold"], "advisory");
    // An account that may not ask is told so, and nothing is called advisory.
    let server = court.site.peer.server();
    let fired = server.fault("object-lock", 1, Fault::Error(403, "AccessDenied"));
    let denied = court.hold(&first);
    assert_eq!(fired.times(), 1);
    assert!(
        denied.code() != 0 && !denied.stdout.contains("advisory"),
        "{denied}"
    );
    denied.expect_stderr("read the Object Lock of the bucket");
}

/// Backups of files are held as those of clusters are; each needs its own objects, and those of the repository.
#[test]
fn a_hold_of_other_content_is_the_stores_own() {
    let court = Court::new(17, Some(true));
    let source = court.site.sandbox.dir("source");
    let more = format!("\n[files.up]\nsource = \"{}\"\n", source.display());
    crate::common::append(&court.site.config, &more);
    let backup = |text: &str| {
        std::fs::write(source.join("file"), text).unwrap();
        crate::common::user::own_all(&source);
        let run = court.pitr(&["files", "backup", "up", "--json"]).success();
        run.id()
    };
    let [first, second] = [backup("one"), backup("two")];
    let of = ["--of", "files:up"];
    let hold = |id: &str, more: &[&str]| {
        court.pitr(&[&["hold", id, "--reason", "case 19"], &of[..], more].concat())
    };
    let plan = hold(&first, &[]).expect_code(8);
    plan.expect_stdout("by the store's own hold");
    assert!(court.held().is_empty(), "nothing was changed");

    // The store refuses one object: the hold stands, and says no more than is true.
    let refusal = Fault::Error(403, "AccessDenied");
    let fired = (court.site.peer.server()).fault_after(2, "legal-hold", 1, refusal);
    let partly = hold(&first, &["--confirm"]).expect_code(10);
    assert_eq!(fired.times(), 1);
    partly.expect_stderr("hold its objects in repository");
    court.site.peer.server().heal();
    hold(&first, &["--dry-run"]).expect_stdout("advisory");
    hold(&first, &["--confirm"])
        .success()
        .expect_stdout("objects");
    let shown = hold(&first, &["--dry-run"]).success();
    shown
        .expect_stdout("legal hold of")
        .expect_stdout("own hold");
    court.holds_alone(&first, &["aux/files/up/scope.json", "pitr.json"], &second);

    // Neither retention nor the end of pins lets it go, and a cluster's hold shares the marker with it.
    court
        .expire()
        .success()
        .expect_stdout("on legal hold: case 19");
    assert!(court.has(&format!("packs/{first}/")));
    let unpin = court.pitr(&["unpin", &first, "--of", "files:up", "--confirm"]);
    unpin.expect_code(2).expect_stderr("is not pinned");
    let cluster = court.ids[1].clone();
    court.hold(&cluster).success();
    let unhold = ["unhold", &first, "--of", "files:up", "--confirm"];
    court
        .pitr(&unhold)
        .success()
        .expect_stdout("no longer on hold");
    let held = court.held();
    assert!(held.iter().any(|key| key.ends_with("pitr.json")));
    assert!(!held.iter().any(|key| key.contains(&first)), "{held:#?}");
    // One that was cut short goes on when it is repeated.
    court.pitr(&unhold).success();
    court.expire().success();
    assert!(
        !court.has(&format!("packs/{first}/")),
        "it goes as any other"
    );
    court.pitr(&["unhold", &cluster, "--confirm"]).success();
    assert_eq!(court.held(), Vec::<String>::new());
    drop(court.cluster);
}
