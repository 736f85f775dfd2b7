//! `pitr info` and `pitr doctor` judge content beside clusters.

use serde_json::Value;

use super::World;
use crate::common::wait_until;

fn line<'a>(doctor: &'a Value, name: &str) -> &'a Value {
    let all = doctor["findings"].as_array().unwrap();
    let found = all.iter().find(|f| f["name"] == name);
    found.unwrap_or_else(|| panic!("{name}: {doctor}"))
}

#[test]
fn a_set_without_a_recent_backup_or_without_its_source_is_critical() {
    let world = World::new("max_backup_age = \"2s\"");
    let json = |arguments: &[&str]| -> Value {
        let run = world.pitr(&[arguments, &["--json"]].concat()).run();
        serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {run}"))
    };
    let scope = || json(&["info"])["scopes"][0].clone();
    let shown = scope();
    assert_eq!(shown["scope"], "aux/files/up");
    assert_eq!(shown["state"], "critical");
    assert_eq!(
        shown["problems"][0]["next"], "pitr files backup up",
        "{shown}"
    );
    let doctor = json(&["doctor"]);
    assert_eq!(line(&doctor, "files up")["level"], "fail", "{doctor}");

    // It is well until the backup is two seconds old.
    wait_until("a look within two seconds", || {
        world.backup();
        scope()["state"] == "ok"
    });
    wait_until("the backup is too old", || scope()["state"] == "critical");
    let text = world.pitr(&["doctor"]).run();
    text.expect_stdout("max_backup_age is 2 s");

    std::fs::remove_dir_all(world.source()).unwrap();
    let doctor = json(&["doctor"]);
    let first = line(&doctor, "files up");
    let cause = first["cause"].as_str().unwrap();
    assert!(cause.starts_with("it cannot be read"), "{doctor}");
}
