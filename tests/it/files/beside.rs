//! Content in a repository of several clusters: what goes through everything goes through all of them, and through content.

use std::time::{Duration, SystemTime};

use pitr::pg::time::TimestampTz;
use pitr::repo::event::{self, Event};
use pitr::repo::repository::{Registration, Repository};
use pitr::repo::scope::Scope;
use pitr::store::file::FileStore;
use serde_json::Value;

use super::World;
use crate::common::{expire_at_once, files_below, keep_one};

/// The system identifier of the cluster that has no server.
const OTHER: u64 = 7;

/// Adds lines to the begin of the configuration.
fn put_first(world: &World, lines: &str) {
    let text = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, format!("{lines}{text}")).unwrap();
}

/// Registers a cluster of which nothing else is there, and configures it. Returns the system identifier of the first one.
fn add_other(world: &World) -> u64 {
    let store = FileStore::open(&world.repository, OTHER).unwrap();
    let opened = Repository::open(Box::new(store)).unwrap();
    let known = opened.registrations("main").unwrap();
    let main = known.into_iter().next().expect("main is registered");
    let own = main.system_identifier;
    let registration = Registration {
        name: "other".into(),
        system_identifier: OTHER,
        ..main
    };
    opened.register(&registration).unwrap();
    put_first(world, "[clusters.other]\n");
    own
}

/// The names of the clusters and scopes in an answer, sorted.
fn subjects(answer: &Value) -> Vec<String> {
    let of = |list: &str, name: &str| -> Vec<String> {
        let found = answer[list].as_array().into_iter().flatten();
        found
            .map(|one| one[name].as_str().unwrap().to_owned())
            .collect()
    };
    let mut all = [of("clusters", "cluster"), of("scopes", "scope")].concat();
    all.sort();
    all
}

#[test]
fn x46_without_a_name_all_clusters_and_all_content_are_gone_through() {
    let world = World::new("");
    for text in ["first", "second", "third"] {
        std::fs::write(world.source().join("notes"), text).unwrap();
        world.backup();
    }
    add_other(&world);
    let everything = ["aux/files/up", "main", "other"];
    let dry = keep_one(&["--dry-run", "--json"]);
    let lines: [&[&str]; 2] = [&["verify", "--json"], &dry];
    for line in lines {
        let run = world.pitr(line).succeed();
        assert_eq!(subjects(&run.json()), everything, "{run}");
        let named = [line, &["--cluster", "main"]].concat();
        let run = world.pitr(&named).succeed();
        assert_eq!(subjects(&run.json()), ["main"], "{run}");
    }
    world.pitr(&["repo", "claims", "--json"]).succeed();
    // A backup is one of one cluster.
    let one = ["verify", "--backup", "20261121T143022Z-full"];
    world.pitr(&one).exits(2).expect_stderr("none is named");
    for _ in 0..2 {
        world.pitr(&expire_at_once()).run();
    }
    let run = world.pitr(&dry).succeed();
    let left = run.json()["scopes"][0]["backups"].clone();
    assert_eq!(left.as_array().unwrap().len(), 1, "{run}");

    // One that no repository holds is a warning.
    put_first(&world, "[clusters.third]\n");
    for line in lines {
        let run = world.pitr(line).succeed();
        assert_eq!(subjects(&run.json()), everything, "{run}");
        run.expect_stderr("cluster \"third\" is in no repository");
    }

    // A host that configures no cluster reads those of the repository, and deletes nothing of them.
    let text = std::fs::read_to_string(&world.config).unwrap();
    let (_, rest) = text.split_once("[repositories.local]").unwrap();
    std::fs::write(&world.config, format!("[repositories.local]{rest}")).unwrap();
    let run = world.pitr(&["verify", "--json"]).succeed();
    assert_eq!(subjects(&run.json()), everything, "{run}");
    let run = world.pitr(&dry).succeed();
    assert_eq!(subjects(&run.json()), ["aux/files/up"], "{run}");
    run.expect_stderr("main, other. --cluster NAME takes one");
    let run = world.pitr(&[&dry[..], &["--cluster", "main"]].concat());
    assert_eq!(subjects(&run.succeed().json()), ["main"]);
}

#[test]
fn x61_an_object_that_is_dated_ahead_stops_its_own_cluster_alone() {
    let world = World::new("");
    for text in ["first", "second"] {
        std::fs::write(world.source().join("notes"), text).unwrap();
        world.backup();
    }
    world.pitr(&["verify", "--quiet"]).succeed();
    let store = FileStore::open(&world.repository, OTHER).unwrap();
    let opened = Repository::open(Box::new(store)).unwrap();
    let known = opened.registrations("main").unwrap();
    let claim = Event {
        event: "claim".into(),
        subject: "20261120T064049Z-full".into(),
        time: TimestampTz::from_system_time(SystemTime::now()),
        host: "db9".into(),
        purpose: Some("restore".into()),
        seconds: Some(3 * 3600),
        ..Event::default()
    };
    let scope = Scope::cluster("main", known[0].system_identifier).unwrap();
    event::record(opened.store(), &scope, &claim, 7).unwrap();
    let mut files = files_below(&world.repository).into_iter();
    let is_claim = |f: &String| f.starts_with("clusters/main/") && f.contains("-claim-");
    let object = files.find(is_claim).unwrap();
    let path = world.repository.join(&object);
    // The host that keeps the repository had a wrong clock for a moment.
    let dated = |time: SystemTime| {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(time).unwrap();
    };
    dated(SystemTime::now() + Duration::from_secs(366 * 24 * 3600));
    for _ in 0..2 {
        let run = world.pitr(&expire_at_once()).exits(10);
        run.expect_stderr(&object);
    }
    let run = world.pitr(&keep_one(&["--dry-run", "--json"])).exits(10);
    let left = run.json()["scopes"][0]["backups"].clone();
    assert_eq!(left.as_array().unwrap().len(), 1, "{run}");
    let main = keep_one(&["--dry-run", "--cluster", "main"]);
    let run = world.pitr(&main).exits(8);
    run.expect_stderr(&object).expect_stderr("touch its file");
    dated(SystemTime::now());
    world.pitr(&main).succeed();
}

#[test]
fn x47_claims_on_backups_of_two_clusters_are_not_released_by_one_id() {
    let world = World::new("");
    let own = add_other(&world);
    let store = FileStore::open(&world.repository, OTHER).unwrap();
    let id = "20261120T064049Z-full";
    for (name, identifier) in [("main", own), ("other", OTHER)] {
        let claim = Event {
            event: "claim".into(),
            subject: id.into(),
            time: TimestampTz::from_system_time(SystemTime::now()),
            host: "db9".into(),
            purpose: Some("restore".into()),
            seconds: Some(3 * 3600),
            ..Event::default()
        };
        let scope = Scope::cluster(name, identifier).unwrap();
        event::record(&store, &scope, &claim, 7).unwrap();
    }
    let claims = |more: &[&str]| world.pitr(&[&["repo", "claims"][..], more].concat());
    let listed = claims(&[]).succeed();
    for name in ["main", "other"] {
        assert!(listed.stdout.contains(&format!("{name} {id}")), "{listed}");
    }
    let release = ["--release", id, "--confirm"];
    claims(&release).exits(2).expect_stderr("main, other");
    let held = || claims(&["--json"]).succeed().json()["claims"].clone();
    assert_eq!(held().as_array().unwrap().len(), 2);
    let named = [&release[..], &["--cluster", "main"]].concat();
    claims(&named).succeed();
    let left = held();
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left[0]["cluster"], "other", "{left}");
}
