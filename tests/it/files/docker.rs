//! Volumes of Docker, of an engine that is a script: what docker says, and what becomes of containers when something fails. The real engine is
//! in scripts/test-volumes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::sources::with_program;
use super::{World, path_text};
use crate::common::mount::SmallDisk;
use crate::common::{Program, wait_within};
use crate::require_mounts;

const PATIENCE: Duration = Duration::from_secs(60);

/// Answers as docker does, of what lies in the folder `engine`: `c-ID` has the status of a container, `v-ID` its volume, `rm-ID` is there for `--rm`, and
/// `volume-NAME` is what it says about a volume. A file `fail-VERB` lets a command fail, and `slow-VERB` makes it slow.
const DOCKER: &str = r#"
cd "$(dirname "$0")/../engine" || exit 9
echo "$*" >>log
[ ! -e "fail-$1" ] || { echo "no $1 today" >&2; exit 1; }
each() { for one in "$@"; do case $one in -*|*'{{'*|container) ;; *) echo "$one" ;; esac; done; }
become() { status=$1; shift; for one in "$@"; do [ ! -e "c-$one" ] || echo "$status" >"c-$one"; done; }
case "$1 $2" in
  "info "*) echo ENGINE ;;
  "context "*) cat host ;;
  "volume ls") for v in volume-*; do echo "${v#volume-}"; done ;;
  "volume inspect") shift 2; for v in $(each "$@"); do cat "volume-$v" || exit 1; done ;;
  "ps --all") for c in c-*; do echo "${c#c-}"; done ;;
  "ps "*) for c in c-*; do [ "$(cat "$c")" != running ] || case "$*" in *"volume=$(cat "v-${c#c-}")") echo "${c#c-}" ;; esac; done ;;
  "stop "*) shift; become exited "$@"; [ ! -e slow-stop ] || sleep 30 ;;
  "pause "*) shift; become paused "$@" ;;
  "start "*|"unpause "*) shift; become running "$@" ;;
  "inspect "*)
    shift
    for one in $(each "$@"); do
      case "$*" in
        *AutoRemove*) [ -e "rm-$one" ] && echo "true /$one" || echo "false /$one" ;;
        *) [ "$(cat "c-$one")" = running ] && echo "true false" || echo "false false" ;;
      esac
    done ;;
esac
"#;

struct Engine {
    world: World,
    path: String,
}

impl Engine {
    fn new(more: &str) -> Engine {
        Engine::of(World::new(""), more)
    }

    fn of(world: World, more: &str) -> Engine {
        let world = world.with_source("docker-volume:label=backup=daily", more);
        let path = with_program(&world, "docker", DOCKER);
        let engine = Engine { world, path };
        fs::create_dir(engine.place("")).unwrap();
        engine.set("host", "unix:///var/run/docker.sock\n");
        for volume in ["data", "logs"] {
            let directory = engine.world.sandbox.dir(format!("volumes/{volume}/_data"));
            fs::write(directory.join("file"), volume).unwrap();
            let text = serde_json::json!({"Name": volume, "Driver": "local", "Mountpoint": directory, "Options": null});
            engine.set(&format!("volume-{volume}"), &format!("{text}\n"));
        }
        for (container, volume) in [("app", "data"), ("side", "logs"), ("other", "else")] {
            engine.set(&format!("c-{container}"), "running\n");
            engine.set(&format!("v-{container}"), volume);
        }
        crate::common::user::own_all(&engine.place(""));
        engine
    }

    fn place(&self, name: &str) -> PathBuf {
        self.world.sandbox.join("engine").join(name)
    }

    fn set(&self, name: &str, text: &str) {
        fs::write(self.place(name), text).unwrap();
    }

    fn status(&self, container: &str) -> String {
        fs::read_to_string(self.place(&format!("c-{container}")))
            .unwrap()
            .trim()
            .to_owned()
    }

    fn all_run(&self) -> bool {
        ["app", "side", "other"]
            .iter()
            .all(|c| self.status(c) == "running")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place("log")).unwrap_or_default()
    }

    fn backup(&self) -> Program {
        let backup = ["files", "backup", "up", "--json"];
        self.world.pitr(&backup).env("PATH", &self.path)
    }
}

#[test]
fn volumes_are_read_while_their_containers_are_at_rest() {
    for (quiesce, verbs) in [
        ("stop", ["stop app side", "start app"]),
        ("pause", ["pause app side", "unpause app"]),
    ] {
        let engine = Engine::new(&format!(
            "quiesce = \"{quiesce}\"\nexclude = [\"/logs/_data/x\"]\n"
        ));
        fs::write(engine.world.sandbox.join("volumes/logs/_data/x"), "x").unwrap();
        let done = engine.backup().succeed().json();
        let source = &done["source"];
        assert_eq!(
            (&source["kind"], &source["quiesced_count"]),
            (&"docker-volume".into(), &2.into()),
            "{done}"
        );
        assert_eq!(
            source["volumes"],
            serde_json::json!(["data", "logs"]),
            "{done}"
        );
        let log = engine.log();
        assert!(verbs.iter().all(|verb| log.contains(verb)), "{log}");
        assert!(!log.contains("stop app other") && engine.all_run(), "{log}");
        let to = engine.world.sandbox.join("back");
        let restore = [
            "files",
            "restore",
            "up",
            "--privileged",
            "--to",
            &path_text(&to),
        ];
        engine.world.pitr(&restore).succeed();
        let found = crate::common::files_below(&to);
        assert_eq!(found, ["data/_data/file", "logs/_data/file"]);
        let same = engine.backup().succeed().json();
        assert_eq!(same["kind"], "incremental", "{same}");
    }
}

#[test]
fn u73_containers_run_again_when_pitr_is_killed() {
    let engine = Engine::new("quiesce = \"stop\"\n");
    engine.set("slow-stop", "");
    let running = engine.backup().spawn();
    wait_within(PATIENCE, "containers are stopped", || {
        engine.status("side") == "exited"
    });
    running.ended_by(Signal::KILL);
    // By the guardian, which hears of the end.
    wait_within(PATIENCE, "they run again", || engine.all_run());
    fs::remove_file(engine.place("slow-stop")).unwrap();
    wait_within(PATIENCE, "the lock is free", || {
        engine.backup().run().code() != 7
    });
    assert!(engine.all_run());
}

#[test]
fn u74_the_next_run_starts_what_a_killed_guardian_did_not() {
    let engine = Engine::new("quiesce = \"stop\"\n");
    engine.set("slow-stop", "");
    let running = engine.backup().spawn();
    wait_within(PATIENCE, "containers are stopped", || {
        engine.status("side") == "exited"
    });
    for guardian in guardians(running.pid()) {
        kill_process(guardian, Signal::KILL).unwrap();
    }
    running.ended_by(Signal::KILL);
    fs::remove_file(engine.place("slow-stop")).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        engine.status("side"),
        "exited",
        "nobody is left to start it"
    );
    let run = engine.backup().succeed();
    run.expect_stderr("2 containers that it had brought to rest run again");
    assert!(engine.all_run());
}

#[test]
fn u97_a_container_that_was_made_anew_is_not_waited_for() {
    let engine = Engine::new("quiesce = \"stop\"\n");
    engine.set("fail-start", "");
    engine.backup().exits(10);
    // An upgrade removes the container, and another one uses the volume.
    fs::remove_file(engine.place("c-app")).unwrap();
    engine.set("c-new", "running\n");
    engine.set("v-new", "data");
    crate::common::user::own_all(&engine.place(""));
    engine.backup().exits(10).expect_stdout("side");
    fs::remove_file(engine.place("fail-start")).unwrap();
    engine.backup().succeed();
    let statuses = ["new", "side", "other"].map(|c| engine.status(c));
    assert!(statuses.iter().all(|s| s == "running"), "{statuses:?}");
    assert!(!engine.place("c-app").exists());
}

/// The guardians that a process started.
fn guardians(parent: u32) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Ok(pid) = name.parse::<i32>() else {
            continue;
        };
        let read = |what: &str| fs::read_to_string(entry.path().join(what)).unwrap_or_default();
        let is_child = read("status").contains(&format!("PPid:\t{parent}\n"));
        if is_child && read("cmdline").contains("\0guardian\0") {
            found.extend(Pid::from_raw(pid));
        }
    }
    assert!(!found.is_empty(), "a guardian runs");
    found
}

#[test]
fn u75_what_cannot_be_stopped_or_started_is_said() {
    let engine = Engine::new("quiesce = \"stop\"\n");
    engine.set("rm-app", "");
    let run = engine.backup().exits(8);
    run.expect_stdout("\\\"app\\\" is removed when it stops");
    assert!(
        engine.all_run() && !engine.log().contains("stop app"),
        "{}",
        engine.log()
    );
    fs::remove_file(engine.place("rm-app")).unwrap();

    engine.set("fail-stop", "");
    let run = engine.backup().run();
    assert!(
        !run.is_success() && run.stdout.contains("no stop today"),
        "{run}"
    );
    assert!(engine.all_run());
    let ls = engine.world.pitr(&["files", "ls", "up"]).run();
    ls.expect_code(2)
        .expect_stderr("no repository has a backup");
    fs::remove_file(engine.place("fail-stop")).unwrap();

    engine.set("fail-start", "");
    let run = engine.backup().exits(10);
    assert!(
        run.stderr
            .contains("not all containers that were brought to rest run again"),
        "{run}"
    );
    assert_eq!(engine.status("app"), "exited");
    engine.world.pitr(&["files", "ls", "up"]).succeed();
    // The next run tries it again before it reads anything.
    let run = engine.backup().run();
    assert!(!run.is_success(), "{run}");
    fs::remove_file(engine.place("fail-start")).unwrap();
    engine.backup().succeed();
    assert!(engine.all_run());
}

#[test]
fn volumes_that_are_not_on_this_host_are_refused() {
    let engine = Engine::new("");
    engine.set("host", "ssh://elsewhere\n");
    let run = engine.backup().exits(8);
    assert!(run.stdout.contains("another host"), "{run}");
    engine.set("host", "unix:///x\n");
    engine.set(
        "volume-data",
        "{\"Name\": \"data\", \"Driver\": \"rclone\", \"Mountpoint\": \"/x\"}\n",
    );
    let run = engine.backup().exits(8);
    assert!(run.stdout.contains("rclone"), "{run}");
    for volume in ["volume-data", "volume-logs"] {
        fs::remove_file(engine.place(volume)).unwrap();
    }
    engine.set("fail-info", "");
    let run = engine.backup().run();
    assert!(
        !run.is_success() && run.stdout.contains("no info today"),
        "{run}"
    );
}

#[test]
fn u04_a_full_repository_keeps_no_container_at_rest() {
    require_mounts!("u04_a_full_repository_keeps_no_container_at_rest");
    let disk = SmallDisk::new(16, 2000);
    let engine = Engine::of(World::on(&disk.path().join("repo")), "quiesce = \"stop\"\n");
    let mut noise = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(engine.world.sandbox.join("volumes/data/_data/noise"), noise).unwrap();
    disk.leave_free(1 << 20);
    let run = engine.backup().run();
    run.expect_code(1).expect_stdout("No space left on device");
    assert!(engine.log().contains("stop app side"), "{}", engine.log());
    assert!(engine.all_run(), "{}", engine.log());
    let backups =
        || engine.world.pitr(&["info", "--json"]).run().json()["scopes"][0]["backups"].clone();
    assert!(
        backups().as_array().is_none_or(Vec::is_empty),
        "{}",
        backups()
    );
    disk.leave_free(16 << 20);
    engine.backup().succeed();
    assert_eq!(backups().as_array().unwrap().len(), 1);
    engine.world.pitr(&["verify"]).succeed();
}
