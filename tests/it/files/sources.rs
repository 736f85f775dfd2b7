//! Sources by command: streams, objects of Kubernetes and states of Terraform, whose programs are fakes of published shapes; programs before
//! and after.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{World, id, path_text};
use crate::common::{PATIENCE, Program, Run};

/// How many backups a name has.
fn backups(world: &World) -> usize {
    let info = world.pitr(&["info", "--json"]).run().json();
    let scopes = info["scopes"].as_array().cloned().unwrap_or_default();
    let counts = scopes
        .iter()
        .map(|s| s["backups"].as_array().unwrap().len());
    counts.sum()
}

fn backup(world: &World) -> Program {
    world.pitr(&["files", "backup", "up", "--json"])
}

/// A stream of a shell script.
fn stream(script: &str, more: &str) -> World {
    let script = format!("command = [\"/bin/sh\", \"-c\", '''{script}''']\n{more}");
    World::of("command", &script)
}

/// A program in a folder of its own, which stands first in the search path.
pub fn with_program(world: &World, name: &str, script: &str) -> String {
    let folder = world.sandbox.join("programs");
    fs::create_dir_all(&folder).unwrap();
    let place = folder.join(name);
    fs::write(&place, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&place, PermissionsExt::from_mode(0o755)).unwrap();
    format!("{}:{}", path_text(&folder), std::env::var("PATH").unwrap())
}

#[test]
fn a_stream_is_one_file_that_comes_back() {
    let script = "seq 1 200000; head -c 100000 /dev/zero; echo end";
    let more =
        "file_name = \"dump.sql\"\ncheck = [\"/bin/sh\", \"-c\", \"tail -c 4 | grep -q end\"]\n";
    let world = stream(script, more);
    let expected = std::process::Command::new("sh")
        .args(["-c", script])
        .output();
    let expected = expected.unwrap().stdout;
    let first = backup(&world).succeed().json();
    assert_eq!(first["kind"], "full", "{first}");
    assert_eq!(first["read_bytes"], expected.len(), "{first}");
    assert_eq!(first["source"]["kind"], "command", "{first}");
    assert!(first["kind_reason"].is_null(), "{first}");
    // The arguments may hold secrets.
    assert!(!first.to_string().contains("200000"), "{first}");
    let second = backup(&world).succeed().json();
    assert_eq!(second["kind"], "incremental", "{second}");
    assert!(second["kind_reason"].is_null(), "{second}");
    for backup in [&first, &second] {
        let back = world.restored(id(backup), "back");
        assert!(fs::read(back.join("dump.sql")).unwrap() == expected);
        let mode = fs::metadata(back.join("dump.sql")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        fs::remove_dir_all(back).unwrap();
    }
    world.pitr(&["verify"]).succeed();
}

#[test]
fn u13_a_command_that_fails_late_or_dies_leaves_no_backup() {
    for (script, says) in [
        (
            "seq 1 300000; echo lost the server >&2; exit 3",
            "lost the server",
        ),
        ("seq 1 300000; kill -9 $$", "signal: 9"),
        ("true", "printed nothing"),
    ] {
        let world = stream(script, "");
        let run = world.pitr(&["files", "backup", "up"]).run();
        run.expect_code(1)
            .expect_stderr(says)
            .expect_stderr("Nothing was stored");
        assert_eq!(backups(&world), 0, "{script}");
        let mut left = crate::common::files_below(&world.sandbox.join("repo/aux/files/up"));
        left.retain(|path| path.starts_with("packs/") || path.starts_with("layers/"));
        assert!(left.is_empty(), "{left:?}");
    }
    let world = World::of(
        "command",
        "command = [\"/nowhere/dump\", \"--password=tok3n\"]\n",
    );
    let run = world.pitr(&["files", "backup", "up"]).run();
    let run = run.expect_code(1).expect_stderr("run \"dump\"");
    assert!(!run.stderr.contains("tok3n"), "{run}");
}

#[test]
fn u14_a_stream_that_its_check_refuses_is_not_stored() {
    for (check, says) in [
        ("cat >/dev/null; echo no end >&2; exit 1", "no end"),
        // It reads nothing: the stream flows on, and the status counts.
        ("exit 4", "exit status: 4"),
    ] {
        let more = format!("check = [\"/bin/sh\", \"-c\", \"{check}\"]\n");
        let world = stream("seq 1 300000", &more);
        let run = world.pitr(&["files", "backup", "up"]).run();
        run.expect_code(1)
            .expect_stderr("check the stream")
            .expect_stderr(says);
        assert_eq!(backups(&world), 0, "{check}");
    }
    let world = stream("seq 1 300000", "check = [\"head\", \"-c\", \"1\"]\n");
    backup(&world).succeed();
}

#[test]
fn u15_a_run_that_is_stopped_ends_its_command() {
    let world = stream("echo $$ >&2; echo $$ > \"$PIDS\"; echo x; sleep 600", "");
    let pids = world.sandbox.join("pid");
    let running = backup(&world).env("PIDS", path_text(&pids)).spawn();
    let since = Instant::now();
    let pid = loop {
        let text = fs::read_to_string(&pids).unwrap_or_default();
        if let Ok(pid) = text.trim().parse::<u32>() {
            break pid;
        }
        assert!(since.elapsed() < PATIENCE, "no command runs");
        std::thread::sleep(Duration::from_millis(20));
    };
    std::thread::sleep(Duration::from_millis(300));
    running.ended_by(Signal::INT).expect_code(130);
    assert!(
        !fs::exists(format!("/proc/{pid}")).unwrap(),
        "the command runs on"
    );
    assert_eq!(backups(&world), 0);
}

#[test]
fn keys_that_mean_nothing_to_a_source_are_refused() {
    for (source, more, says) in [
        ("command", "", "needs the command"),
        (
            "/srv",
            "command = [\"x\"]\n",
            "\"command\" is not a key of the source \"directory\"",
        ),
        (
            "command",
            "command = [\"x\"]\nexclude = [\"y\"]\n",
            "\"exclude\" is not a key",
        ),
        (
            "command",
            "command = [\"x\"]\nfile_name = \"../y\"\n",
            "is no name of a file",
        ),
        ("s3://B/x", "", "is not the name of a bucket"),
        (
            "ftp://host/x",
            "",
            "none of s3://BUCKET/PREFIX, command, git:URL",
        ),
        ("git:https://me:tok3n@host/x", "", "may hold a secret"),
    ] {
        let world = World::of(source, more);
        let run = world.pitr(&["files", "backup", "up"]).run();
        let run = run.expect_code(3).expect_stderr(says);
        assert!(!run.stderr.contains("tok3n"), "{run}");
    }
}

/// Answers as kubectl does, by the lists of the API reference.
const KUBECTL: &str = r#"
case "$*" in
*"get namespace kube-system -o json") cat "$SHAPES/namespace" ;;
*"api-resources --verbs=list,get -o name") cat "$SHAPES/resources" ;;
*"get "*" -A -o json --chunk-size=500")
  for word; do [ "$last" = get ] && resource=$word; last=$word; done
  if [ -f "$SHAPES/$resource.error" ]; then cat "$SHAPES/$resource.error" >&2; exit 1; fi
  cat "$SHAPES/$resource" ;;
*) echo "not expected: $*" >&2; exit 1 ;;
esac
"#;

/// A program in place of kubectl.
struct Kubectl {
    path: String,
    /// The folder of its answers.
    shapes: String,
}

impl Kubectl {
    fn new(world: &World) -> Kubectl {
        let path = with_program(world, "kubectl", KUBECTL);
        let shapes = world.sandbox.join("shapes");
        fs::create_dir_all(&shapes).unwrap();
        let object = |kind: &str, version: &str, name: &str, namespace: Option<&str>| {
            let mut metadata = json!({"name": name, "uid": format!("u-{name}"), "resourceVersion": "7",
            "managedFields": [{"manager": "kubectl"}], "creationTimestamp": "2026-11-20T06:40:49Z"});
            if let Some(namespace) = namespace {
                metadata["namespace"] = namespace.into();
            }
            json!({"kind": kind, "apiVersion": version, "metadata": metadata, "spec": {"z": 1, "a": 2}, "status": {"phase": "x"}})
        };
        let list = |items: Value| {
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": ""}, "items": items}).to_string()
        };
        let mut secret = object("Secret", "v1", "db", Some("shop"));
        secret["data"] = json!({"password": "dG9rM24="});
        for (name, text) in [
            (
                "namespace",
                object("Namespace", "v1", "kube-system", None).to_string(),
            ),
            (
                "resources",
                "events\nsecrets\ndeployments.apps\npersistentvolumes\nnodes.metrics.k8s.io\n"
                    .to_owned(),
            ),
            ("secrets", list(json!([secret]))),
            (
                "deployments.apps",
                list(json!([object(
                    "Deployment",
                    "apps/v1",
                    "web",
                    Some("shop")
                )])),
            ),
            (
                "persistentvolumes",
                list(json!([object("PersistentVolume", "v1", "pv-1", None)])),
            ),
        ] {
            fs::write(shapes.join(name), text).unwrap();
        }
        Kubectl {
            path,
            shapes: path_text(&shapes),
        }
    }

    fn backup(&self, world: &World) -> Run {
        backup(world)
            .env("PATH", &self.path)
            .env("SHAPES", &self.shapes)
            .run()
    }
}

#[test]
fn objects_of_kubernetes_come_back_as_sorted_files() {
    let world = World::sealed().with_source("kubernetes", "context = \"prod\"\n");
    let kubectl = Kubectl::new(&world);
    let shapes = &kubectl.shapes;
    let taken = kubectl.backup(&world).success().json();
    assert_eq!(taken["source"]["cluster_uid"], "u-kube-system", "{taken}");
    let back = world.restored(id(&taken), "back");
    let mut names = crate::common::files_below(&back);
    names.sort();
    assert_eq!(
        names,
        [
            "_cluster/PersistentVolume/pv-1.json",
            "_made/_cluster/PersistentVolume/pv-1.json",
            "_made/shop/Deployment.apps/web.json",
            "_made/shop/Secret/db.json",
            "shop/Deployment.apps/web.json",
            "shop/Secret/db.json",
        ]
    );
    let web = fs::read_to_string(back.join("shop/Deployment.apps/web.json")).unwrap();
    assert!(
        web.find("\"a\"").unwrap() < web.find("\"z\"").unwrap(),
        "{web}"
    );
    assert!(
        !web.contains("managedFields") && !web.contains("status"),
        "{web}"
    );
    // A resource that this user may not list is named.
    let error = "Error from server (Forbidden): deployments.apps is forbidden\n";
    fs::write(format!("{shapes}/deployments.apps.error"), error).unwrap();
    let partial = kubectl.backup(&world).expect_code(6).json();
    assert_eq!(
        partial["left_out"]["examples"][0]["path"], "deployments.apps",
        "{partial}"
    );
    // A server that went away hides objects.
    fs::write(
        format!("{shapes}/deployments.apps.error"),
        "connection refused\n",
    )
    .unwrap();
    kubectl
        .backup(&world)
        .expect_code(1)
        .expect_stdout("connection refused");
    assert_eq!(backups(&world), 2);
}

#[test]
fn u16_secrets_are_refused_where_nothing_is_encrypted() {
    let world = World::of("kubernetes", "");
    let kubectl = Kubectl::new(&world);
    kubectl
        .backup(&world)
        .expect_code(8)
        .expect_stdout("secrets = false");
    let world = world.with_source("kubernetes", "secrets = false\n");
    let taken = kubectl.backup(&world).success().json();
    let back = world.restored(id(&taken), "back");
    assert!(
        back.join("shop/Deployment.apps/web.json").exists() && !back.join("shop/Secret").exists()
    );
    let world = World::of("terraform:/srv/infra", "");
    backup(&world).exits(8).expect_stdout("not encrypted");
}

#[test]
fn the_state_of_terraform_comes_back_as_it_was_pulled() {
    let world = World::sealed();
    let directory = path_text(&world.source());
    let world = world.with_source(&format!("terraform:{directory}"), "program = \"tofu\"\n");
    let script = "[ \"$*\" = \"-chdir=$DIRECTORY state pull\" ] && cat \"$DIRECTORY/state\"\n";
    let path = with_program(&world, "tofu", script);
    let run = |world: &World| {
        backup(world)
            .env("PATH", &path)
            .env("DIRECTORY", &directory)
            .run()
    };
    let state = |lineage: &str, serial: u64| {
        let state = json!({"version": 4, "terraform_version": "1.8.3", "serial": serial, "lineage": lineage,
            "outputs": {}, "resources": [], "check_results": null});
        fs::write(world.source().join("state"), state.to_string()).unwrap();
        state.to_string()
    };
    let text = state("one", 7);
    let taken = run(&world).success().json();
    assert_eq!(
        (&taken["source"]["lineage"], &taken["source"]["serial"]),
        (&"one".into(), &7.into())
    );
    let back = world.restored(id(&taken), "back");
    assert_eq!(
        fs::read_to_string(back.join("terraform.tfstate")).unwrap(),
        text
    );
    // Another lineage is the state of something else.
    state("two", 1);
    run(&world).expect_code(8).expect_stdout("--confirm");
    fs::write(world.source().join("state"), "").unwrap();
    run(&world).expect_code(1).expect_stdout("printed no state");
    assert_eq!(backups(&world), 1);
}

#[test]
fn a_program_before_names_the_directory_and_one_after_cleans_up() {
    let world = World::new("");
    fs::write(world.source().join("x"), "live").unwrap();
    let copy = path_text(&world.sandbox.join("copy"));
    let log = path_text(&world.sandbox.join("log"));
    let source = path_text(&world.source());
    let hooks = |before: &str, after: &str| {
        format!(
            "before = [\"/bin/sh\", \"-c\", '''{before}''']\nafter = [\"/bin/sh\", \"-c\", '''{after}''']\n"
        )
    };
    let make = format!("cp -a \"$PITR_SOURCE\" {copy} && echo still > {copy}/x && echo {copy}");
    let clean = format!("rm -r \"$PITR_ROOT\" && echo $PITR_STATUS $PITR_NAME >> {log}");
    let world = world.with_source(&source, &hooks(&make, &clean));
    let taken = backup(&world).succeed().json();
    let cat = world.pitr(&["files", "cat", "up", "x"]).run();
    assert_eq!(cat.success().stdout, "still\n");
    assert!(!fs::exists(&copy).unwrap());
    assert_eq!(fs::read_to_string(&log).unwrap(), "stored up\n");
    assert!(taken["after_error"].is_null(), "{taken}");
    // One that prints nothing leaves the source as it is.
    let world = world.with_source(&source, &hooks("true", "true"));
    backup(&world).succeed();
    let cat = world.pitr(&["files", "cat", "up", "x"]).run();
    assert_eq!(cat.success().stdout, "live");
}

/// A server that a program starts would keep them for as long as it lives.
#[test]
fn u110_programs_do_not_inherit_what_the_agent_lends_its_own_processes() {
    let world = World::new("");
    fs::write(world.source().join("x"), "x").unwrap();
    let seen = path_text(&world.sandbox.join("seen"));
    let source = path_text(&world.source());
    let more = format!("before = [\"/bin/sh\", \"-c\", \"env > {seen}\"]\n");
    let world = world.with_source(&source, &more);
    let config = path_text(&world.config);
    let run = backup(&world).env("PITR_IN_FORCE", &config);
    let run = run
        .env("PITR_IN_FORCE_OF", &config)
        .env("PITR_FOLLOWS", "1");
    run.succeed();
    let seen = fs::read_to_string(&seen).unwrap();
    assert!(seen.contains("PITR_NAME=up"), "{seen}");
    for own in ["PITR_IN_FORCE", "PITR_FOLLOWS"] {
        assert!(!seen.contains(own), "{seen}");
    }
}

#[test]
fn u17_a_failure_before_stores_nothing_and_the_program_after_runs() {
    let world = World::new("");
    let log = path_text(&world.sandbox.join("log"));
    let source = path_text(&world.source());
    fs::write(world.source().join("x"), "x").unwrap();
    let after = format!("after = [\"/bin/sh\", \"-c\", \"echo $PITR_STATUS >> {log}\"]\n");
    for (before, says) in [
        ("echo no snapshot >&2; exit 5", "no snapshot"),
        ("echo mounted", "one absolute path"),
        ("echo /nowhere/at/all", "/nowhere/at/all"),
    ] {
        let more = format!("before = [\"/bin/sh\", \"-c\", \"{before}\"]\n{after}");
        let world_ = World::of(&source, &more);
        let run = world_.pitr(&["files", "backup", "up"]).run();
        run.expect_code(1).expect_stderr(says);
        assert_eq!(backups(&world_), 0, "{before}");
    }
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        "failed\nfailed\nfailed\n"
    );
}

/// A program that a command leaves running in another session is not the stream, and no signal reaches it.
#[test]
fn u15_a_worker_that_holds_the_output_open_holds_up_nothing_for_long() {
    let world = stream("setsid sleep 600 & echo $! > \"$PIDS\"; echo hello", "");
    let pids = world.sandbox.join("pid");
    let run = backup(&world).env("PIDS", path_text(&pids)).run();
    let pid: i32 = fs::read_to_string(&pids).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    run.expect_stdout("holds its output open");
    assert_eq!(backups(&world), 0);
}

/// The command has ended, and what it printed last lies in its pipe for longer than a worker may hold that open.
#[test]
fn b50_a_check_that_is_slow_gives_no_stream_up() {
    let check = "check = [\"/bin/sh\", \"-c\", \"sleep 14; cat > /dev/null\"]\n";
    let world = stream("head -c 100000 /dev/zero", check);
    backup(&world).succeed();
    assert_eq!(backups(&world), 1);
}

#[test]
fn u17_the_program_after_runs_to_its_end_also_when_it_prints_much_and_the_terminal_hangs_up() {
    let world = World::new(
        "before = [\"/bin/sh\", \"-c\", \"touch $STARTED; exec sleep 600\"]\nafter = [\"/bin/sh\", \"-c\", \"seq 1 30000; touch $ENDED\"]\n",
    );
    let (started, ended) = (world.sandbox.join("started"), world.sandbox.join("ended"));
    let running = backup(&world)
        .env("STARTED", path_text(&started))
        .env("ENDED", path_text(&ended))
        .spawn();
    let since = Instant::now();
    while !started.exists() {
        assert!(since.elapsed() < PATIENCE, "no program runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    running.ended_by(Signal::HUP).expect_code(130);
    assert!(ended.exists());
}

/// Programs run in the cache that believe what they find there.
#[test]
fn u24_a_cache_that_others_may_change_is_refused() {
    let world = World::new("before = [\"/bin/true\"]\n");
    let open = world.sandbox.dir("open");
    fs::create_dir(open.join("pitr")).unwrap();
    fs::set_permissions(open.join("pitr"), PermissionsExt::from_mode(0o777)).unwrap();
    let run = backup(&world).env("XDG_CACHE_HOME", path_text(&open)).run();
    run.expect_code(8).expect_stdout("cannot be trusted");
    assert_eq!(backups(&world), 0);
}

#[test]
fn u18_a_failure_after_is_a_status_of_its_own_and_the_backup_stays() {
    let world = World::new("after = [\"/bin/sh\", \"-c\", \"echo still mounted >&2; exit 1\"]\n");
    fs::write(world.source().join("x"), "x").unwrap();
    let run = world.pitr(&["files", "backup", "up"]).run();
    run.expect_code(10)
        .expect_stdout("backup ")
        .expect_stderr("the program after the backup failed")
        .expect_stderr("still mounted");
    assert_eq!(backups(&world), 1);
    let run = backup(&world).run();
    let text = run.expect_code(10).json()["after_error"].to_string();
    assert!(text.contains("still mounted"), "{text}");
}

#[test]
fn u24_two_runs_with_such_programs_do_not_share_a_snapshot() {
    let world = World::new("before = [\"/bin/sh\", \"-c\", \"touch $STARTED; sleep 600\"]\n");
    let started = world.sandbox.join("started");
    let first = backup(&world).env("STARTED", path_text(&started)).spawn();
    let since = Instant::now();
    while !started.exists() {
        assert!(since.elapsed() < PATIENCE, "no program runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = backup(&world).env("STARTED", "/dev/null").run();
    second
        .expect_code(7)
        .expect_stdout("another run of this name");
    first.ended_by(Signal::INT).expect_code(130);
    assert_eq!(backups(&world), 0);
}
