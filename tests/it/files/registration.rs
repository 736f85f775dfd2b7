//! Registrations of content that are lost: who is told what, and what `pitr init` gives back.

use super::World;

const SCOPE: &str = "aux/files/up/scope.json";

/// Without `[repositories.local.encryption]`.
fn without_keys(world: &World) -> std::path::PathBuf {
    let text = std::fs::read_to_string(&world.config).unwrap();
    let (before, rest) = text.split_once("[repositories.local.encryption]").unwrap();
    let (_, after) = rest.split_once("[files.up]").unwrap();
    let text = format!("{before}[files.up]{after}");
    world.sandbox.file("plain.toml", text)
}

#[test]
fn t72_a_lost_registration_comes_back_by_init_and_never_without_the_key() {
    let world = World::sealed();
    std::fs::write(world.source().join("one"), "one").unwrap();
    world.backup();
    let registration = world.repository.join(SCOPE);
    std::fs::remove_file(&registration).unwrap();
    let refused = world.pitr(&["files", "backup", "up"]).run();
    refused
        .expect_code(1)
        .expect_stderr("before the next backup: pitr init");

    // Nobody would take for genuine what is written without proof.
    let keyless = crate::common::pitr()
        .arg("--config")
        .arg(without_keys(&world))
        .words("init")
        .privileged()
        .run();
    assert!(!registration.exists(), "{keyless}");
    assert!(keyless.stderr.contains("key_set"), "{keyless}");
    assert!(
        !keyless.stdout.contains("Nothing had to be done"),
        "{keyless}"
    );

    let init = world.pitr(&["init"]).succeed();
    let init = init.expect_stderr("had lost the registration of \"aux/files/up\"");
    assert!(!init.stdout.contains("Nothing had to be done"), "{init}");
    world.backup();
    let again = world.pitr(&["init"]).succeed();
    again.expect_stdout("Nothing had to be done");
}

#[test]
fn t73_content_that_was_never_stored_has_lost_no_registration() {
    let world = World::new("");
    let doctor = world.pitr(&["doctor"]).run();
    assert!(!doctor.stdout.contains("registration"), "{doctor}");
    // A first backup that was killed may leave its directory.
    std::fs::create_dir_all(world.repository.join("aux/files/up")).unwrap();
    let init = world.pitr(&["init"]).succeed();
    init.expect_stdout("Nothing had to be done");
    world.backup();
    std::fs::remove_file(world.repository.join(SCOPE)).unwrap();
    let doctor = world.pitr(&["doctor"]).run();
    doctor
        .expect_stdout("registration of \"aux/files/up\" is lost")
        .expect_stdout("pitr init");
}
