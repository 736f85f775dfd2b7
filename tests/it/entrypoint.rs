//! The configuration that the entrypoint of the image writes. Its functions run here, without a container.

use std::path::Path;

use crate::common::{Program, Sandbox, pitr};

/// The configuration of a container of this kind, which has the server's volume at `server`; and the names of its jobs.
fn configured(sandbox: &Sandbox, kind: &str, server: &Path, more: &str) -> (String, Vec<String>) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/entrypoint");
    let script = std::fs::read_to_string(script).unwrap();
    let (functions, _) = script.split_once("\ncase ${1:-postgres} in").unwrap();
    let folder = sandbox.dir(kind);
    let config = folder.join("pitr.toml");
    if config.exists() {
        std::fs::remove_file(&config).unwrap();
    }
    let lines = format!(
        "{functions}\nSTATE={}\nSERVER={}\n{more}\nconfigure {kind}\n",
        folder.join("state").display(),
        server.display(),
    );
    Program::new("bash")
        .arg("-c")
        .arg(lines)
        .env("PITR_CONFIG", &config)
        .env("PITR_REPOSITORY", "file:///repository")
        .env("PGDATA", "/var/lib/postgresql/main")
        .succeed();
    let status = pitr().arg("--config").arg(&config);
    let status = status.words("agent status --json").succeed().json();
    let jobs = status["jobs"].as_array().unwrap().iter();
    let jobs = jobs.map(|job| job["name"].as_str().unwrap().to_owned());
    (std::fs::read_to_string(&config).unwrap(), jobs.collect())
}

#[test]
fn n13_an_agent_without_the_volume_of_the_server_has_no_data_directory() {
    let sandbox = Sandbox::new("entrypoint");
    let server = sandbox.join("server");
    let of = |kind: &str| configured(&sandbox, kind, &server, "");
    for kind in ["agent", "receive"] {
        let (config, _) = of(kind);
        assert!(!config.contains("pgdata"), "{config}");
        assert!(config.contains("journal"), "{config}");
    }
    let here = "pgdata = \"/var/lib/postgresql/main\"";
    assert!(of("postgres").0.contains(here));
    let main = sandbox.dir("server/main");
    let (config, jobs) = of("agent");
    let there = format!("pgdata = \"{}\"", main.display());
    assert!(config.contains(&there), "{config}");
    assert_eq!(jobs.len(), 4, "{jobs:?}");
}

#[test]
fn n14_the_agent_of_a_copy_that_is_not_adopted_has_no_jobs() {
    let sandbox = Sandbox::new("entrypoint");
    let server = sandbox.dir("server");
    let of = |more: &str| configured(&sandbox, "agent", &server, more);
    let restoring = of("PITR_RESTORE=1").1;
    assert!(restoring.is_empty(), "{restoring:?}");
    sandbox.dir("server/main/global");
    sandbox.dir("server/main/pg_wal");
    sandbox.file("server/main/global/pg_control", "x");
    let guard = sandbox.file("server/main/pg_wal/pitr.guard", "");
    let (config, copy) = of("");
    assert!(copy.is_empty(), "{copy:?}");
    assert!(!config.contains("receive"), "{config}");
    // Adopted, the variable may stay.
    std::fs::remove_file(guard).unwrap();
    assert_eq!(of("PITR_RESTORE=1").1.len(), 4);
}
