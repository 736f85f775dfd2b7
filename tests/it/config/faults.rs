//! Everything that goes wrong with configuration: rows Q01 to Q06 of docs/faults.md.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::World;
use crate::common::mount::SmallDisk;
use crate::common::{copy_tree, edit, paths_below, user};
use crate::require_mounts;

/// The packs of the repository.
fn packs(world: &World) -> Vec<PathBuf> {
    let mut found = paths_below(&world.path("repo/aux/config/host/packs"));
    found.retain(|path| path.is_file());
    found
}

#[test]
fn q01_a_damaged_backup_gives_nothing_wrong_back() {
    let world = World::new();
    world.backup();
    let packs = packs(&world);
    assert_eq!(packs.len(), 1, "{packs:?}");
    let whole = std::fs::read(&packs[0]).unwrap();
    let env = world.host(".env");
    for at in [200, whole.len() / 2, whole.len() - 400] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::set_permissions(&packs[0], PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::write(&packs[0], &bytes).unwrap();
        let verify = world.sees("operator", &["verify"]);
        assert_eq!(verify.code(), 4, "{verify}");
        let to = world.text(&format!("back-{at}"));
        let restore = world.sees("lead", &["config", "restore", "host", "--to", &to]);
        assert!(restore.code() != 0, "{restore}");
        for command in ["reveal", "show"] {
            let run = world.sees("lead", &["config", command, "host", &env]);
            assert!(run.code() != 0 && run.stdout.is_empty(), "{run}");
        }
    }
    std::fs::remove_file(&packs[0]).unwrap();
    let verify = world.sees("operator", &["verify"]);
    assert_eq!(verify.code(), 4, "{verify}");
    let run = world.sees("lead", &["config", "reveal", "host", &env]);
    assert!(run.code() != 0 && run.stdout.is_empty(), "{run}");
}

/// A repository that is gone neither hides the backups of the next one, nor counts as one that has none.
#[test]
fn a_repository_that_is_gone_is_passed_over() {
    let world = World::new();
    let taken = world.backup();
    let id = "20261120T064049Z-482913-full";
    let unknown = ["config", "show", "host", "--backup", id];
    let run = world.sees("operator", &unknown);
    run.expect_code(2).expect_stderr("has no backup");
    let gone = world.text("gone");
    let first = format!("[repositories.gone]\nurl = \"file://{gone}\"\n[repositories.local]\n");
    edit(
        world.path("operator.toml"),
        "[repositories.local]\n",
        &first,
    );
    let run = world.sees("operator", &["config", "show", "host", "--json"]);
    let run = run
        .success()
        .expect_stderr("repository \"gone\" is passed over");
    assert_eq!(run.json()["backup"], taken.as_str());
    let run = world.sees("operator", &unknown).expect_code(9);
    assert!(!run.stderr.contains("has no backup"), "{run}");
}

#[test]
fn q04_a_file_that_cannot_be_read_is_counted_and_named() {
    let world = World::new();
    let lacking = world.text("nowhere");
    let config = world.path("writer.toml");
    edit(&config, "paths = [", &format!("paths = [\"{lacking}\", "));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        world.path("host/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    std::fs::write(world.path("host/huge"), vec![b'x'; 9 << 20]).unwrap();
    let run = world.sees("writer", &["config", "backup", "host"]);
    let run = run.expect_code(6).expect_stderr("nowhere");
    run.expect_stderr("host/pipe").expect_stderr("host/huge");
    let run = world.sees(
        "lead",
        &["config", "restore", "host", "--to", &world.text("back")],
    );
    run.expect_code(6).expect_stderr("could not be read");
    // With nothing at all there is no backup.
    edit(&config, &world.text("host"), &world.text("gone"));
    let run = world.sees("writer", &["config", "backup", "host"]);
    assert!(run.code() != 0 && run.code() != 6, "{run}");
}

#[test]
fn q06_keys_of_recipients_that_were_exchanged_open_nothing() {
    let world = World::new();
    world.backup();
    let keys = paths_below(&world.path("repo/keys"));
    let find = |name: &str| {
        let found = keys
            .iter()
            .find(|path| path.ends_with(name) && path.is_file());
        found.unwrap_or_else(|| panic!("{keys:?}")).clone()
    };
    let (lead, vault, ops) = (find("lead"), find("vault"), find("ops"));
    let right = std::fs::read(&lead).unwrap();
    let mut changed = right.clone();
    let at = changed.windows(7).position(|w| w == b"wrapped").unwrap() + 20;
    changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
    for other in [
        std::fs::read(vault).unwrap(),
        std::fs::read(ops).unwrap(),
        changed,
        b"{}".to_vec(),
    ] {
        std::fs::set_permissions(&lead, PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::write(&lead, other).unwrap();
        let run = world.sees("lead", &["config", "reveal", "host", &world.host(".env")]);
        assert!(run.code() != 0 && run.stdout.is_empty(), "{run}");
        // The redacted view needs no key of the pair.
        world
            .sees("operator", &["config", "show", "host", &world.host(".env")])
            .success();
    }
    // One that is not genuine does not count, and nothing is sealed to it.
    let backup = world.sees("writer", &["config", "backup", "host"]);
    backup.expect_code(1).expect_stderr("is damaged");
    // One that is missing is stored again.
    std::fs::remove_file(&lead).unwrap();
    world.backup();
    assert!(lead.is_file() && !right.is_empty());
    world.restores("lead", "back", &[]);
    world.is_same("back");
}

/// Root must not read for somebody else what he could not read himself.
#[test]
fn q08_links_and_includes_of_others_open_nothing_to_them() {
    // Only root reads more than the owner of a directory does.
    crate::require_root!("q08_links_and_includes_of_others_open_nothing_to_them");
    let world = World::new();
    let nobody = Some(65_534);
    world.write("private/secret.conf", b"key = only-for-root\n");
    let private = world.path("private/secret.conf");
    std::fs::set_permissions(&private, PermissionsExt::from_mode(0o600)).unwrap();
    // An application plants links in its own directory: as a directory on the way, as the file, and below a pattern.
    world.write("app/plain.conf", b"port = 1\n");
    let link = |name: &str, to: PathBuf| {
        let at = world.path(name);
        std::os::unix::fs::symlink(to, &at).unwrap();
        std::os::unix::fs::lchown(at, nobody, nobody).unwrap();
    };
    link("app/way", world.path("private"));
    link("app/file", private.clone());
    std::os::unix::fs::chown(world.path("app"), nobody, nobody).unwrap();
    // The owner of a data directory includes files of others, and a directory.
    world.write(
        "data/postgresql.conf",
        format!(
            "include_if_exists '{}'\ninclude_dir 'conf.d'\nhba_file = '{}'\n",
            private.display(),
            world.text("private")
        )
        .as_bytes(),
    );
    world.write("data/conf.d/a.conf", b"port = 2\n");
    world.write("data/conf.d/.pgpass", b"no configuration\n");
    world.write("data/conf.d/below/b.conf", b"port = 3\n");
    link("data/conf.d/z.conf", private.clone());
    for name in [
        "data",
        "data/conf.d",
        "data/postgresql.conf",
        "data/conf.d/a.conf",
    ] {
        std::os::unix::fs::chown(world.path(name), nobody, nobody).unwrap();
    }
    let config = world.path("writer.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let pgdata = world.cluster.pgdata().display().to_string();
    let paths = [
        "app/way/secret.conf",
        "app/file",
        "app/*/secret.conf",
        "app/plain.conf",
    ];
    let paths = paths
        .map(|name| format!("\"{}\", ", world.text(name)))
        .concat();
    let text = text
        .replace(&pgdata, &world.text("data"))
        .replace("paths = [", &format!("paths = [\"default\", {paths}"));
    let excluded = "exclude = [\"/etc/*\", \"/var/spool/*\"]\n";
    std::fs::write(&config, text + excluded).unwrap();
    let run = world.sees("writer", &["config", "backup", "host"]);
    let run = run.expect_code(6);
    for name in [
        "app/way/secret.conf",
        "app/file",
        "private/secret.conf",
        "conf.d/z.conf",
    ] {
        assert!(run.stderr.contains(name), "{name}: {run}");
    }
    let list = world
        .sees("operator", &["config", "show", "host"])
        .success();
    for name in [
        "app/way",
        "app/file",
        "app/plain.conf",
        "data/conf.d/a.conf",
    ] {
        assert!(list.stdout.contains(&world.text(name)), "{name}: {list}");
    }
    for name in ["secret.conf", ".pgpass", "b.conf"] {
        assert!(!list.stdout.contains(name), "{name}: {list}");
    }
}

#[test]
fn q10_a_full_disk_leaves_what_was_there() {
    require_mounts!("q10_a_full_disk_leaves_what_was_there");
    let world = World::new();
    let disk = SmallDisk::new(16, 2000);
    let repo = disk.path().join("repo");
    copy_tree(&world.path("repo"), &repo);
    user::own_all(&repo);
    for who in ["writer", "operator", "lead"] {
        let config = world.path(&format!("{who}.toml"));
        edit(config, &world.text("repo"), repo.to_str().unwrap());
    }
    world.backup();
    let backups = || {
        let info = world.sees("operator", &["info", "--json"]).json();
        info["scopes"][0]["backups"].as_array().unwrap().len()
    };
    assert_eq!(backups(), 1);
    // Files of configuration have at most a mebibyte each.
    let mut noise = vec![0; 3 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    for (n, part) in noise.chunks(1_000_000).enumerate() {
        world.write(&format!("host/noise-{n}"), part);
    }
    disk.leave_free(1 << 20);
    let run = world.sees("writer", &["config", "backup", "host"]);
    run.expect_code(1).expect_stderr("No space left on device");
    assert_eq!(backups(), 1);
    let env = world.host(".env");
    let shown = world.sees("operator", &["config", "show", "host", &env]);
    shown.success().expect_stdout("DB_PASSWORD=");
    disk.leave_free(16 << 20);
    world.backup();
    assert_eq!(backups(), 2);
    world.sees("operator", &["verify"]).success();

    let small = SmallDisk::new(1, 1000);
    let to = small.path().join("back").display().to_string();
    let run = world.sees("lead", &["config", "restore", "host", "--to", &to]);
    run.expect_code(1).expect_stderr("No space left on device");
    world.restores("lead", "back", &[]);
    world.is_same("back");
}
