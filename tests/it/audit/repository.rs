//! The audit log in repositories that were away, came later, were made anew, or give back what had expired.

use serde_json::Value;

use super::{World, bytes};
use crate::alert_conditions::{Sink, later, observe};
use crate::common::{Run, files_below, str_of};

#[test]
fn a_repository_that_was_away_gets_its_records_in_order() {
    let world = World::new();
    let (there, away) = (world.sandbox.join("two"), world.sandbox.join("away"));
    std::fs::rename(&there, &away).unwrap();
    world.backup().success();
    world.backup().success();
    let doctor = world.pitr("host", &["doctor", "--json"]).run();
    let waiting = |doctor: &Run| {
        let all = doctor.json()["findings"].as_array().unwrap().clone();
        let of = |f: &Value| f["group"] == "audit" && f["name"] == "two";
        str_of(&all.into_iter().find(of).unwrap()["value"]).to_owned()
    };
    assert_eq!(waiting(&doctor), "4 records on this host");
    std::fs::rename(&away, &there).unwrap();
    assert_eq!(world.problems(&[]), (6, vec!["behind".to_owned()]));
    world.backup().success();
    assert_eq!(world.chain("two").len(), 8);
    assert_eq!(world.problems(&[]), (0, vec![]));
    // One that lost its log gets it from the other.
    std::fs::remove_dir_all(world.log("two")).unwrap();
    assert_eq!(world.problems(&[]).0, 4);
    let sync = world.pitr("host", &["repo", "sync", "--json"]).succeed();
    let brought = &sync.json()["audit"][0];
    assert_eq!(
        (&brought["to"], &brought["records"]),
        (&"two".into(), &8.into())
    );
    assert_eq!(world.problems(&[]), (0, vec![]));
}

#[test]
fn who_may_not_create_keeps_the_records_and_required_ones_stop_the_command() {
    let world = World::new();
    world.backup().success();
    let log = |mode: u32| {
        for repository in ["one", "two"] {
            for entry in std::fs::read_dir(world.log(repository)).unwrap() {
                let path = entry.unwrap().path();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
                std::fs::set_permissions(path, mode).unwrap();
            }
        }
    };
    log(0o555);
    let cat = ["files", "cat", "up", "a"];
    let run = world.pitr("host", &cat).succeed();
    assert_eq!(run.stdout, "content");
    assert_eq!(world.chain("one").len(), 4);
    world.configure("host", "required", "");
    // The command that makes repositories needs none.
    world.pitr("host", &["init", "--quiet"]).succeed();
    let refused = world.pitr("host", &cat).run();
    assert_eq!(refused.code(), 8, "{}", refused.stderr);
    assert!(refused.stdout.is_empty() && refused.stderr.contains("audit log"));
    log(0o755);
    world.pitr("host", &cat).succeed();
    // Those that waited came first.
    let told: Vec<_> = world.list().iter().map(|r| r["outcome"].clone()).collect();
    assert_eq!(
        told[4..],
        [
            "begun",
            "succeeded",
            "begun",
            "succeeded",
            "begun",
            "failed",
            "begun",
            "succeeded"
        ]
    );
    assert_eq!(world.problems(&[]), (0, vec![]));
}

#[test]
fn y44_a_check_of_one_repository_ends_no_alert_about_another() {
    let world = World::new();
    let sink = Sink::new();
    world.configure("host", "on", &sink.section());
    let own = world.pitr("host", &[]);
    world.backup().success();
    let first = world.chain("two").remove(1);
    let kept = bytes(&first);
    std::fs::remove_file(&first).unwrap();
    assert_eq!(world.problems(&[]), (4, vec!["missing".to_owned()]));
    observe(&own);
    sink.expect("audit/broken", &[("new", "critical")]);
    let broken = || {
        let text = world.pitr("host", &["metrics"]).run().stdout;
        crate::metrics::value(&text, "pitr_audit_broken")
    };
    assert_eq!(world.problems(&["--repository", "one"]), (0, vec![]));
    let report = ["--repository", "one", "report", "audit"];
    world.pitr("host", &report).succeed();
    assert_eq!(broken(), Some(1.0));
    observe(&own);
    sink.expect("audit/broken", &[("new", "critical")]);
    // A check of all repositories knows.
    std::fs::write(&first, kept).unwrap();
    assert_eq!(world.problems(&[]), (0, vec![]));
    assert_eq!(broken(), Some(0.0));
    observe(&own);
    sink.last("audit/broken", "resolved", "critical", "");
}

#[test]
fn y46_a_host_that_moves_to_another_repository_damages_no_log() {
    let world = World::new();
    world.configure("late", "on", "");
    let config = world.sandbox.join("late.toml");
    let both = std::fs::read_to_string(&config).unwrap();
    let both = both.replace("required = false\n", "");
    let without = |name: &str| {
        let from = both.find(&format!("[repositories.{name}]")).unwrap();
        let rest = &both[from + 1..];
        let next = if name == "one" {
            "[repositories."
        } else {
            "[files."
        };
        let end = from + 1 + rest.find(next).unwrap();
        std::fs::write(&config, both[..from].to_owned() + &both[end..]).unwrap();
    };
    let backup = ["files", "backup", "up", "--quiet"];
    without("one");
    for _ in 0..2 {
        world.pitr("late", &backup).succeed();
    }
    // That one dies. The other one is older than the record that says so.
    std::fs::remove_dir_all(world.sandbox.join("two")).unwrap();
    without("two");
    later(&world.pitr("late", &backup), 3 * 86_400).succeed();
    let run = world.pitr("late", &["audit", "verify", "--json"]).run();
    let problems = run.json()["problems"].clone();
    assert_eq!(run.code(), 6, "{problems}");
    assert_eq!(problems.as_array().unwrap().len(), 1, "{problems}");
    assert_eq!(problems[0]["problem"], "unproven", "{problems}");
}

#[test]
fn a_repository_that_came_later_has_no_hole() {
    let world = World::new();
    world.backup().success();
    // The second one is another one, which is empty.
    std::fs::remove_dir_all(world.sandbox.join("two")).unwrap();
    std::fs::write(
        world.sandbox.join("host.toml"),
        std::fs::read_to_string(world.sandbox.join("host.toml"))
            .unwrap()
            .replace("/two\"", "/three\""),
    )
    .unwrap();
    world.pitr("host", &["init", "--quiet"]).succeed();
    world.backup().success();
    let (code, problems) = world.problems(&[]);
    assert_eq!((code, problems), (6, vec!["behind".to_owned()]));
    let before = world.list().len();
    world.pitr("host", &["repo", "sync", "--quiet"]).succeed();
    assert_eq!(world.problems(&[]), (0, vec![]));
    assert_eq!(world.list().len(), before + 2);
    let names = |name: &str| files_below(&world.log(name));
    assert_eq!(names("one"), names("three"));
}

#[test]
fn a_repository_made_anew_at_its_place_is_no_damage() {
    let world = World::new();
    world.backup().success();
    let anew = |name: &str| {
        std::fs::remove_dir_all(world.sandbox.join(name)).unwrap();
        let init = world.pitr("host", &["init"]).succeed();
        let backup = world.pitr("host", &["files", "backup", "up"]).run();
        let told = init.stderr + &backup.success().stderr;
        assert!(told.contains("is another one than before"), "{told}");
    };
    anew("one");
    // The other one has the chain of before, which a sync brings.
    assert_eq!(world.problems(&[]), (6, vec!["behind".to_owned()]));
    anew("two");
    let (code, problems) = world.problems(&["--repository", "two"]);
    assert_eq!((code, problems), (0, vec![]));
    let again = world.pitr("host", &["files", "backup", "up"]);
    let again = again.succeed();
    assert!(!again.stderr.contains("another one"), "{again}");
}

#[test]
fn x20_records_that_expired_do_not_come_back_by_a_copy() {
    let world = World::new();
    world.backup().success();
    world.backup().success();
    let second = world.chain("two").swap_remove(1);
    let kept = bytes(&second);
    world.expire_records();
    world.configure("host", "on", "");
    assert!(!second.exists());
    // As a repository that was away, and took no part in it.
    std::fs::write(&second, &kept).unwrap();
    assert_eq!(world.problems(&[]), (0, vec![]));
    let sync = world.pitr("host", &["repo", "sync", "--json"]);
    let sync = sync.succeed();
    assert_eq!(sync.json()["audit"], serde_json::json!([]), "{sync}");
    assert_eq!(world.problems(&[]), (0, vec![]));
}
