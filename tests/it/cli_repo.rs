//! `pitr repo` through the real program.

use pitr::pg::time::TimestampTz;
use pitr::repo::repository::{Registration, Repository};
use pitr::store::file::FileStore;

use crate::common::{Sandbox, keep_one, pitr};

/// A repository with one registered cluster.
fn repository(sandbox: &Sandbox, name: &str) -> std::path::PathBuf {
    let path = sandbox.dir(name);
    let store = FileStore::create(&path, 1).unwrap();
    let created: TimestampTz = "2026-11-20T06:40:49Z".parse().unwrap();
    let (repository, _) = Repository::create(Box::new(store), 7, created).unwrap();
    repository
        .register(&Registration {
            name: "main".into(),
            system_identifier: 7_442_881_234_567_890_123,
            major: 17,
            segment_size_bytes: 16 << 20,
            block_size_bytes: 8192,
            wal_block_size_bytes: 8192,
            first_seen: created,
            features: Vec::new(),
            is_lost: false,
        })
        .unwrap();
    path
}

#[test]
fn repo_show_tells_what_each_repository_is() {
    let sandbox = Sandbox::new("reposhow");
    let path = repository(&sandbox, "r");
    sandbox.file(
        "pitr.toml",
        format!(
            "[repositories.local]\nurl = 'file://{}'\n[repositories.gone]\nurl = 'file:///nonexistent/r'\nrequired = false\n",
            path.display()
        ),
    );
    let show = || {
        pitr()
            .words("repo show --config")
            .arg(sandbox.join("pitr.toml"))
            .dir(sandbox.path())
            .privileged()
    };

    let run = show().words("--repository local").succeed();
    assert_eq!(run.stderr, "");
    let url = format!("file://{}", path.display());
    let width = url.len();
    assert_eq!(
        run.stdout,
        format!(
            "repository  {:width$}  required  created\nlocal       {url}  yes       2026-11-20 06:40:49Z\n\ncluster  repository  PostgreSQL    system identifier  registered\nmain     local               17  7442881234567890123  2026-11-20 06:40:49Z\n",
            "url"
        )
    );

    // One of two is not there: what is known is shown, and the status says that it is not all.
    let run = show().exits(10).expect_stdout("main");
    assert_eq!(
        run.stderr.lines().next(),
        Some("error no_repository: repository directory \"/nonexistent/r\" does not exist")
    );
    let json = show().arg("--json").exits(10).json();
    let shown = json["repositories"].as_array().unwrap();
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[0]["name"], "local");
    assert_eq!(shown[0]["created"], "2026-11-20T06:40:49.000000Z");
    assert_eq!(
        shown[0]["clusters"][0]["system_identifier"],
        "7442881234567890123"
    );
    assert_eq!(shown[0]["error"], serde_json::Value::Null);
    assert_eq!(shown[1]["error"]["code"], "no_repository");
    assert_eq!(shown[1]["uuid"], serde_json::Value::Null);
}

/// Every verb that opens a repository says as whom to come again.
#[test]
fn a_repository_of_another_user_is_told_with_a_next_step() {
    crate::require_root!("a_repository_of_another_user_is_told_with_a_next_step");
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let sandbox = Sandbox::new("denied");
    let path = repository(&sandbox, "r");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    chown(&path, Some(0), Some(0)).unwrap();
    let to = sandbox.dir("copies").join("data");
    let to = to.to_str().unwrap();
    let config = sandbox.file(
        "pitr.toml",
        format!(
            "[repositories.local]\nurl = 'file://{}'\n[clusters.main]\npgdata = '/nonexistent/d'\n",
            path.display()
        ),
    );
    let lines: &[&[&str]] = &[
        &["info"],
        &["plan"],
        &["restore", "--to", to],
        &["standby", "--to", to, "--primary-conninfo", "host=h"],
        &["verify"],
        &keep_one(&[]),
        &["repo", "show"],
        &["wal", "list"],
        &["wal", "gaps"],
        &["wal", "conflicts"],
        &["wal", "show", "000000010000000000000001"],
        &["wal", "fetch", "000000010000000000000001", "/tmp/x"],
    ];
    for line in lines {
        let run = pitr().args(*line).arg("--config").arg(&config).run();
        assert!(!run.is_success(), "{run}");
        assert!(
            run.stderr.contains("belongs to user root") && run.stderr.contains("next:"),
            "{run}"
        );
    }
    pitr()
        .words("doctor --config")
        .arg(&config)
        .run()
        .expect_stdout("sudo -u root pitr");
    // Likewise a configuration that cannot be read, and a data directory.
    chown(&config, Some(0), Some(0)).unwrap();
    let run = pitr().words("info --config").arg(&config).run();
    assert!(run.stderr.contains("next:"), "{run}");
    let run = pitr()
        .words("adopt --repository")
        .arg(&path)
        .words("--cluster main --pgdata")
        .arg(&path)
        .run();
    assert!(run.stderr.contains("next:"), "{run}");
}
