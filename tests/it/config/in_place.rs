//! `pitr config restore --in-place` and `rollback`: files go back to where they were, and to what they were.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::World;
use crate::common::{Run, edit, files_below};

/// Content, permissions and time of each file; the journal's directory is left out.
fn state(host: &Path) -> BTreeMap<String, String> {
    let names = files_below(host);
    let names = names
        .into_iter()
        .filter(|name| !name.starts_with(".pitr-rollback-"));
    names
        .map(|name| {
            let place = host.join(&name);
            let status = place.symlink_metadata().unwrap();
            let content = match status.is_symlink() {
                true => format!("{:?}", std::fs::read_link(&place).unwrap()),
                false => String::from_utf8_lossy(&std::fs::read(&place).unwrap()).into_owned(),
            };
            let (mode, time) = (status.permissions().mode(), status.mtime_nsec());
            (
                name,
                format!("{mode:o} {}.{time} {content}", status.mtime()),
            )
        })
        .collect()
}

fn in_place(world: &World, who: &str, more: &[&str]) -> Run {
    let restore = ["config", "restore", "host", "--in-place", "--privileged"];
    world.sees(who, &[&restore[..], more].concat())
}

fn change(world: &World) {
    world.write("host/.env", b"DB_PASSWORD=c0mment3dOut99\n");
    world.write("host/plain.conf", b"listen = 81\n");
    std::fs::remove_file(world.path("host/app.yaml")).unwrap();
    world.write("host/new.conf", b"of nobody's backup\n");
}

#[test]
fn q09_files_go_back_where_they_lie_byte_by_byte_and_forth() {
    let world = World::new();
    world.backup();
    let host = world.path("host");
    let was = state(&host);
    change(&world);
    let changed = state(&host);
    // The lead's configuration opens originals. Without a confirmation nothing changes.
    let run = in_place(&world, "lead", &[]).expect_code(8);
    run.expect_stdout("/.env\n").expect_stdout("/app.yaml\n");
    in_place(&world, "lead", &["--dry-run"]).success();
    assert_eq!(state(&host), changed);
    in_place(&world, "lead", &["--confirm"])
        .success()
        .expect_stderr("pitr config rollback host");
    let mut restored = state(&host);
    assert_eq!(
        restored.remove("new.conf"),
        changed.get("new.conf").cloned()
    );
    assert_eq!(restored, was);
    // The kept files are secrets as well: nobody else may enter, and no backup takes them.
    let mut kept = std::fs::read_dir(&host)
        .unwrap()
        .map(|entry| entry.unwrap());
    let kept = kept.find(|entry| {
        entry
            .file_name()
            .to_str()
            .unwrap()
            .starts_with(".pitr-rollback-")
    });
    assert_eq!(kept.unwrap().metadata().unwrap().mode() & 0o777, 0o700);
    world.backup();
    let shown = world
        .sees("operator", &["config", "show", "host"])
        .success();
    assert!(!shown.stdout.contains("pitr-rollback"), "{shown}");
    // And forth.
    world
        .sees("lead", &["config", "rollback", "host"])
        .expect_code(8);
    world
        .sees("lead", &["config", "rollback", "host", "--confirm"])
        .success();
    assert_eq!(state(&host), changed);
    assert!(
        !files_below(&host)
            .iter()
            .any(|name| name.contains("pitr-rollback"))
    );
    let run = world.sees("lead", &["config", "rollback", "host", "--confirm"]);
    run.expect_code(2).expect_stderr("can be undone in");
}

#[test]
fn q10_without_the_second_key_only_files_without_secrets_go_back() {
    let world = World::new();
    world.backup();
    let host = world.path("host");
    change(&world);
    let changed = state(&host);
    let run = in_place(&world, "operator", &["--confirm"]);
    run.expect_code(1)
        .expect_stderr("no key of the secrets pair is given");
    assert_eq!(state(&host), changed);
    assert_eq!(files_below(&host).len(), changed.len());
    let glob = world.host("plain.conf");
    in_place(&world, "operator", &["--confirm", "--path", &glob]).success();
    assert_eq!(
        std::fs::read(world.path("host/plain.conf")).unwrap(),
        b"listen = 80\nworkers = 4\n"
    );
    let env = std::fs::read(world.path("host/.env")).unwrap();
    assert_eq!(env, b"DB_PASSWORD=c0mment3dOut99\n");
    // Redacted files are no configuration.
    in_place(&world, "operator", &["--confirm", "--redacted"]).expect_code(2);
    // A change since is not lost.
    world.write("host/plain.conf", b"listen = 82\n");
    let rollback = ["config", "rollback", "host", "--confirm"];
    let run = world.sees("operator", &rollback);
    run.expect_code(8).expect_stderr("plain.conf");
    let run = world.sees(
        "operator",
        &[&rollback[..], &["--discard-changes"]].concat(),
    );
    run.success();
    assert_eq!(state(&host), changed);
    // The other kind's command does not undo it.
    in_place(&world, "operator", &["--confirm", "--path", &glob]).success();
    let files = world.path("operator.toml");
    let text = std::fs::read_to_string(&files).unwrap();
    let section = format!("{text}[files.host]\nsource = \"{}\"\n", host.display());
    std::fs::write(files, section).unwrap();
    let run = world.sees("operator", &["files", "rollback", "host"]);
    run.expect_code(2).expect_stderr("can be undone in");
    world.sees("operator", &rollback).success();
}

#[test]
fn q13_a_directory_that_was_lost_is_made_and_taken_back() {
    let world = World::new();
    let (host, lost) = (world.path("host"), world.path("host/pg"));
    for who in ["writer", "lead"] {
        let config = world.path(&format!("{who}.toml"));
        let wide = format!("\"{}\"", host.display());
        edit(config, &wide, &format!("\"{}\"", lost.display()));
    }
    world.backup();
    let was = state(&host);
    std::fs::remove_dir_all(&lost).unwrap();
    in_place(&world, "lead", &["--confirm"]).success();
    assert_eq!(state(&host), was);
    let rollback = ["config", "rollback", "host", "--confirm"];
    world.sees("lead", &rollback).success();
    assert!(!lost.exists());
    // One is found by its number, too.
    let run = in_place(&world, "lead", &["--confirm", "--json"]).success();
    let run = run.json()["run"].as_str().unwrap().to_owned();
    let arguments = ["config", "rollback", "host", &run, "--confirm"];
    world.sees("lead", &arguments).success();
    assert!(!lost.exists());
}

#[test]
fn q14_files_outside_the_configured_paths_are_not_touched() {
    let world = World::new();
    world.backup();
    world.write("host/pg/postgresql.conf", b"port = 5433\n");
    world.write("host/plain.conf", b"listen = 81\n");
    std::fs::remove_file(world.path("host/app.yaml")).unwrap();
    let (wide, narrow) = (world.text("host"), world.text("host/p*"));
    let (wide, narrow) = (format!("\"{wide}\""), format!("\"{narrow}/*.conf\""));
    edit(world.path("lead.toml"), &wide, &narrow);
    let run = in_place(&world, "lead", &["--confirm"]).expect_code(6);
    run.expect_stderr("plain.conf")
        .expect_stderr("app.yaml")
        .expect_stderr("outside the paths of the set");
    let read = |name: &str| std::fs::read(world.path(name)).unwrap();
    assert!(read("host/pg/postgresql.conf").starts_with(b"port = 5432\n"));
    assert_eq!(read("host/plain.conf"), b"listen = 81\n");
    assert!(!world.path("host/app.yaml").exists());
}
