//! `pitr repo sync` brings the recipients of a secrets pair along.

use super::World;
use crate::common::Program;
use crate::sealed::keygen;

/// Configures a second repository of the same keys beside the first, or alone.
pub(super) fn configure(world: &World, name: &str, alone: bool, more: &[&str]) {
    let keys = world.text("keys");
    let mut text = format!(
        "[clusters.main]\npgdata = \"{}\"\n",
        world.cluster.pgdata().display()
    );
    for (repository, folder) in [("local", "repo"), ("copy", "copy")] {
        if alone && repository == "local" {
            continue;
        }
        text += &format!(
            "[repositories.{repository}]\nurl = \"file://{}\"\n",
            world.text(folder)
        );
        text +=
            &format!("[repositories.{repository}.encryption]\nkey_set = \"{keys}/writer.key\"\n");
        text += &format!("key_file = \"{keys}/ops.key\"\n");
        for line in more {
            text += &format!("{}\n", line.replace("{pair}", &world.text("pair")));
        }
    }
    let host = world.text("host");
    text += &format!("[config.host]\npaths = [\"{host}\"]\nidentity = \"test\"\n");
    world.sandbox.file(format!("{name}.toml"), text);
}

fn sync(world: &World, more: &[&str]) -> Program {
    let sync = ["repo", "sync", "--from", "local", "--to", "copy", "--json"];
    world.on("both", &[&sync[..], more].concat())
}

#[test]
fn q11_a_copy_of_the_repository_opens_originals_by_itself() {
    let world = World::new();
    configure(&world, "both", false, &[]);
    configure(&world, "copy", true, &["secrets_key = \"{pair}/lead.key\""]);
    world.sandbox.dir("copy");
    world.on("both", &["init", "--quiet"]).succeed();
    let id = world.backup();
    let planned = sync(&world, &["--dry-run"]).succeed().json();
    assert_eq!(
        planned["recipients"][0]["copied"],
        serde_json::json!(["lead", "vault"]),
        "{planned}"
    );
    assert!(!world.path("copy/keys").read_dir().unwrap().any(|entry| {
        entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with("secrets-")
    }));
    let done = sync(&world, &[]).succeed().json();
    assert_eq!(
        done["recipients"][0]["copied"],
        serde_json::json!(["lead", "vault"]),
        "{done}"
    );
    // The first repository is lost.
    std::fs::rename(world.path("repo"), world.path("lost")).unwrap();
    world.restores("copy", "back", &["--backup", &id]);
    world.is_same("back");
    std::fs::rename(world.path("lost"), world.path("repo")).unwrap();
    // Nothing is lacking any more.
    let again = sync(&world, &[]).succeed().json();
    assert_eq!(again["recipients"], serde_json::json!([]), "{again}");
}

#[test]
fn q12_access_that_was_withdrawn_in_a_copy_does_not_come_back() {
    let world = World::new();
    configure(&world, "both", false, &[]);
    world.sandbox.dir("copy");
    world.on("both", &["init", "--quiet"]).succeed();
    world.backup();
    // A third one is given access, and loses it in the copy.
    keygen(&world.path("other"), &["third", "fourth"])
        .arg("--secrets")
        .succeed();
    let (third, lead) = (world.text("other/third.pub"), world.text("pair/lead.key"));
    let vault = world.text("pair/vault.key");
    let add = [
        "config",
        "recipients",
        "--add",
        &third,
        "--secrets-key",
        &lead,
    ];
    world.on("writer", &add).succeed();
    let done = sync(&world, &[]).succeed().json();
    assert_eq!(
        done["recipients"][0]["copied"],
        serde_json::json!(["lead", "third", "vault"]),
        "{done}"
    );
    configure(&world, "copy", true, &["secrets = \"{pair}/secrets.key\""]);
    let withdraw = [
        "config",
        "recipients",
        "--withdraw",
        "third",
        "--secrets-key",
        &lead,
        "--secrets-key",
        &vault,
    ];
    world.on("copy", &withdraw).succeed();
    for _ in 0..2 {
        let done = sync(&world, &[]).succeed().json();
        assert_eq!(
            done["recipients"][0]["copied"],
            serde_json::json!([]),
            "{done}"
        );
        assert_eq!(
            done["recipients"][0]["not_copied"],
            serde_json::json!(["third"]),
            "{done}"
        );
    }
    let left = world
        .on("copy", &["config", "recipients", "--json"])
        .succeed()
        .json();
    let left = &left["repositories"][0]["recipients"];
    assert_eq!(left, &serde_json::json!(["lead", "vault"]));
    let run = world
        .on("both", &["repo", "sync", "--from", "local", "--to", "copy"])
        .run();
    run.success().expect_stderr("alone has third");
    // One that was exchanged in the first is copied nowhere.
    let pair = std::fs::read_dir(world.path("copy/keys"))
        .unwrap()
        .map(|entry| entry.unwrap());
    let mut pair = pair.map(|entry| entry.file_name().into_string().unwrap());
    let pair = pair.find(|name| name.starts_with("secrets-")).unwrap();
    let (from, to) = (
        world.path("repo/keys").join(&pair),
        world.path("copy/keys").join(&pair),
    );
    std::fs::remove_dir_all(&to).unwrap();
    std::fs::remove_file(from.join("lead")).unwrap();
    std::fs::copy(from.join("vault"), from.join("lead")).unwrap();
    let run = sync(&world, &[]).run();
    assert!(!run.is_success(), "{run}");
    assert!(!to.join("lead").exists(), "{run}");
}
