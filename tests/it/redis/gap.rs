//! R174: behind a gap a receiver takes a backup by itself, and acknowledges nothing before that is stored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::receive::{Moment, configure, confirm, received, receiver, stop};
use super::server::Server;
use super::world::World;
use crate::common::{Running, wait_until};
use crate::per_server;

/// A server whose backlog is small, with a receiver and a backup.
struct Scene {
    server: Server,
    world: World,
    pause: PathBuf,
}

impl Scene {
    fn new(name: &'static str) -> Scene {
        let options = [
            "--repl-diskless-sync-delay",
            "0",
            "--repl-backlog-size",
            "1mb",
        ];
        let server = Server::start(name, &options);
        let world = World::new(&server);
        configure(&world, &server, "");
        let running = receiver(&world, &server);
        world.backup();
        confirm(&server, "SET before 1\n", 1);
        stop(running);
        let pause = world.sandbox.join("pause");
        Scene {
            server,
            world,
            pause,
        }
    }

    /// A client whose command lies in the gap, and that waits for a replica: for so long that a test ends before.
    fn client(&self) -> Running {
        let lines = b"SET within 1\nWAIT 1 600000\n".to_vec();
        let client = self.server.cli(&[]).stdin(lines).spawn();
        wait_until("the command is carried out", || {
            self.server.ask(&["GET", "within"]) == "1"
        });
        let lines = format!("SET much {}\n", "x".repeat(1 << 20)).repeat(20);
        self.server.feed(&lines);
        client
    }

    fn held(&self) -> Running {
        held(&self.world, &self.pause)
    }

    /// Waits until the repository has what lies behind the gap.
    fn wait_begun(&self) {
        wait_until("the beginning is stored", || {
            let told = self.world.json(&["info", "cache"]);
            let history = &told["histories"][0];
            let count = |of: &str| history[of].as_array().unwrap().len();
            count("beginnings") == 2 && count("ranges") == 2
        });
    }

    fn go_on(&self) {
        std::fs::remove_file(&self.pause).unwrap();
    }

    /// Requires that the receiver is counted as a good replica, and confirms nothing.
    fn assert_unconfirmed(&self, client: &mut Running) {
        std::thread::sleep(Duration::from_millis(1500));
        let told = self.server.ask(&["INFO", "replication"]);
        assert!(told.contains("state=online,offset=0,"), "{told}");
        let lines = b"SET meanwhile 1\nWAIT 1 200\n".to_vec();
        let run = self.server.cli(&[]).stdin(lines).succeed();
        assert_eq!(run.stdout.lines().next_back(), Some("0"), "{run}");
        assert!(!client.is_done(), "{}", client.stdout());
    }

    fn labels(&self) -> Vec<String> {
        let listed = self.world.json(&["ls", "cache"]);
        let backups = listed["backups"].as_array().unwrap();
        let label = |backup: &Value| backup["label"].as_str().unwrap_or_default().to_owned();
        backups.iter().map(label).collect()
    }

    fn owed(&self) -> Vec<String> {
        let mut files = crate::common::files_below(&self.world.sandbox.join("journal"));
        files.retain(|file| file.ends_with(".owed"));
        files
    }

    /// Requires that the server's host may go now: what was confirmed comes back.
    fn assert_restored(mut self) {
        self.server.kill();
        let copy = self.world.restore("copy", &["--latest"]);
        let restored = Server::on(self.server.name, &copy, &[]);
        for key in ["before", "within"] {
            assert_eq!(restored.ask(&["GET", key]), "1", "{key}");
        }
    }
}

/// A receiver that holds in front of the backup behind a gap, until the file of the pause is gone.
pub fn held(world: &World, pause: &Path) -> Running {
    let program = world.redis(&["receive", "cache"]);
    let name = format!("redis-gap-base={}", pause.display());
    let running = program.env("PITR_FAULT_PAUSE", name).spawn();
    wait_until("a backup is owed", || pause.exists());
    running
}

/// A command inside the gap is confirmed once the backup behind it is stored: also when the receiver is killed before, and the repository is away.
fn r174_a_command_inside_a_gap_is_confirmed_when_a_backup_has_it(name: &'static str) {
    let scene = Scene::new(name);
    let mut client = scene.client();
    let running = scene.held();
    assert!(running.stderr().contains("gap: "), "{}", running.stderr());
    scene.assert_unconfirmed(&mut client);
    running.ended_by(Signal::KILL);
    std::fs::remove_file(&scene.pause).unwrap();
    assert_eq!(scene.owed().len(), 1);
    let away = scene.world.sandbox.join("away");
    std::fs::rename(scene.world.repository(), &away).unwrap();
    let running = receiver(&scene.world, &scene.server);
    wait_until("the receiver says why it confirms nothing", || {
        running
            .stderr()
            .contains("no backup behind the gap, and nothing is acknowledged")
    });
    scene.assert_unconfirmed(&mut client);
    let _ = std::fs::remove_dir_all(scene.world.repository());
    std::fs::rename(&away, scene.world.repository()).unwrap();
    let told = client.wait().success();
    assert_eq!(told.stdout.lines().next_back(), Some("1"), "{told}");
    assert_eq!(scene.labels(), ["", "behind a gap"]);
    assert_eq!(scene.owed(), Vec::<String>::new());
    confirm(&scene.server, "SET later 1\n", 1);
    let ended = stop(running);
    assert!(ended.stderr.contains("was taken behind the gap"), "{ended}");
    scene.assert_restored();
}

per_server!(r174_a_command_inside_a_gap_is_confirmed_when_a_backup_has_it);

/// A journal that is lost cannot tell of the gap: the repository does.
#[test]
fn r174_a_base_is_owed_when_the_journal_was_lost_as_well() {
    let scene = Scene::new("redis-7");
    let mut client = scene.client();
    let running = scene.held();
    // The beginning behind the gap is stored before the journal goes.
    scene.server.feed("SET behind 1\n");
    scene.wait_begun();
    running.ended_by(Signal::KILL);
    std::fs::remove_file(&scene.pause).unwrap();
    std::fs::remove_dir_all(scene.world.sandbox.join("journal")).unwrap();
    let running = scene.held();
    scene.assert_unconfirmed(&mut client);
    scene.go_on();
    let told = client.wait().success();
    assert_eq!(told.stdout.lines().next_back(), Some("1"), "{told}");
    stop(running);
    scene.assert_restored();
}

/// A backup that an operator takes behind the gap serves as well.
#[test]
fn r174_the_backup_of_an_operator_serves_as_well() {
    let scene = Scene::new("redis-7");
    let mut client = scene.client();
    let running = scene.held();
    scene.world.backup();
    scene.assert_unconfirmed(&mut client);
    scene.go_on();
    let told = client.wait().success();
    assert_eq!(told.stdout.lines().next_back(), Some("1"), "{told}");
    assert_eq!(scene.labels(), ["", ""]);
    stop(running);
    scene.assert_restored();
}

/// Without the backup the end of the log lies behind a gap: it is refused, with the offset that leads to the end before.
#[test]
fn r140_an_end_behind_a_gap_is_refused() {
    let scene = Scene::new("redis-7");
    let (world, server) = (&scene.world, &scene.server);
    let before = Moment::of(server);
    let client = scene.client();
    let running = scene.held();
    server.feed("SET behind 1\n");
    let behind = Moment::of(server).target();
    // A receiver that ends before it has anything behind the gap records none.
    scene.wait_begun();
    running.signal(Signal::TERM);
    scene.go_on();
    running.wait().success();
    client.ended_by(Signal::KILL);
    let none = world.sandbox.join("none");
    let to = ["--into", "cache", "--confirm"];
    let told = [
        world.restoring(&none, &["--latest"]).run(),
        world.redis(&["plan", "cache"]).run(),
        world
            .redis(&[&["restore", "cache", "--latest"], &to[..]].concat())
            .run(),
    ];
    for run in told {
        run.expect_code(5)
            .expect_stderr("were never received (the server's backlog does not reach back so far)")
            .expect_stderr(&format!("--target-offset {}:", before.replid));
    }
    let run = world.restoring(&none, &["--target-offset", &behind]).run();
    run.expect_code(5).expect_stderr("gap");
    let info = world.redis(&["info", "cache"]).succeed();
    info.expect_stdout("gap behind offset");
    let copy = world.restore("copy", &["--target-offset", &before.target()]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), before.content);
    assert_eq!(scene.labels(), [""]);
}

/// A server without an append-only file crashes and loads a dump that is older than the newest backup: it goes on from there, and no backup leads to what it does.
#[test]
fn r194_a_history_that_is_left_before_every_backup_of_it_owes_one() {
    let (mut server, world, running) = received("redis-7", "");
    confirm(&server, "SET saved 1\n", 1);
    wait_until("the server saves", || server.ask(&["SAVE"]) == "OK");
    confirm(&server, "SET lost 1\n", 1);
    world.backup();
    confirm(&server, "SET lost 2\n", 1);
    stop(running);
    server.kill();
    server.begin();
    assert_eq!(server.ask(&["EXISTS", "lost"]), "0");
    let pause = world.sandbox.join("pause");
    let running = held(&world, &pause);
    let lines = b"SET kept 1\nWAIT 1 500\n".to_vec();
    let run = server.cli(&[]).stdin(lines).succeed();
    assert_eq!(run.stdout.lines().next_back(), Some("0"), "{run}");
    std::fs::remove_file(&pause).unwrap();
    confirm(&server, "SET kept 2\n", 1);
    let end = Moment::of(&server);
    let told = stop(running);
    told.expect_stderr("was taken behind the gap");
    let plan = world.json(&["plan", "cache", "--latest"]);
    assert!(plan.to_string().contains(&end.replid), "{plan:#}");
    let copy = world.restore("copy", &["--latest"]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), end.content);
}

/// A backup that leads to the place where the history was left serves: the server forks for no other one.
#[test]
fn r194_a_backup_before_the_place_where_a_history_is_left_serves() {
    let (mut server, world, running) = received("redis-7", "");
    world.backup();
    confirm(&server, "SET saved 1\n", 1);
    wait_until("the server saves", || server.ask(&["SAVE"]) == "OK");
    confirm(&server, "SET lost 1\n", 1);
    stop(running);
    server.kill();
    server.begin();
    let forks = server.info("sync_full");
    let running = receiver(&world, &server);
    confirm(&server, "SET kept 1\n", 1);
    assert_eq!(server.info("sync_full"), forks);
    let end = Moment::of(&server);
    stop(running).expect_stderr("the server went on without what it sent last");
    let copy = world.restore("copy", &["--latest"]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), end.content);
}
