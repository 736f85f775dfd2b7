//! Holds, drills, clones and reports, and backups of what is no cluster. A server plays several scenes: its start costs most.

use std::path::{Path, PathBuf};

use super::Scene;
use super::live::{quiet, scene};
use super::redact::Data;
use crate::common::{Cluster, Program, Sandbox, Site, append, bin, str_of, wait_until};
use crate::redis::server::Server;
use crate::redis::world::World;
use crate::require_fuse;

/// A site and its server, and what the machine puts into outputs.
struct Stage {
    site: Site,
    cluster: Cluster,
    /// The search path, with the programs of the server first.
    path: String,
    host: String,
}

impl Stage {
    fn new() -> Stage {
        let (site, cluster) = Site::with_cluster_of(quiet().without_fsync());
        cluster.sql("create table t (a int primary key)");
        cluster.sql("insert into t select generate_series(1, 10)");
        site.pitr().words("backup --quiet").succeed();
        cluster.sql("insert into t select generate_series(11, 20)");
        cluster.archive_now();
        // It has no place for its records here, and says so.
        let report = site.pitr().words("report daily --json").run().json();
        let programs = ["postgres", "pg_dump"].map(|name| {
            let program = bin(17, name).expect("17 has it");
            program.parent().unwrap().display().to_string()
        });
        Stage {
            site,
            cluster,
            path: format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", programs.join(":")),
            host: str_of(&report["host"]).to_owned(),
        }
    }

    fn scene(&self, name: &str) -> Scene {
        let mut scene = scene(name, &self.site, &self.cluster);
        scene.redactor.add(self.host.clone(), "[host]");
        // The server may write a record of its own at any moment.
        scene.redactor.forget("lsn");
        scene
    }

    fn pitr(&self, args: &[&str]) -> Program {
        self.site.pitr().args(args).env("PATH", &self.path)
    }

    /// A path of the site as an argument.
    fn text(&self, name: &str) -> String {
        self.site.sandbox().join(name).display().to_string()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        self.site.sandbox().file(name, text)
    }

    /// Names a source of every kind in the configuration.
    fn add_sources(&self) {
        for folder in ["uploads/sub", "uploads", "more", "etc"] {
            self.site.sandbox().dir(folder);
        }
        self.file("uploads/a.txt", "hello\n");
        self.file("uploads/sub/b.txt", "there\n");
        self.file("more/c.txt", "more\n");
        self.file("etc/app.env", "DB_PASSWORD=Gr3enTea!42\nHOST=db\n");
        self.file("etc/plain.conf", "listen = 80\n");
        self.site.add(&format!(
            "\n[files.uploads]\nsource = \"{}\"\n[files.more]\nsource = \"{}\"\n\
             [config.etc]\npaths = [\"{}\"]\nidentity = \"test\"\n\
             [logical.main]\ncluster = \"main\"\ndatabases = [\"postgres\"]\n",
            self.text("uploads"),
            self.text("more"),
            self.text("etc")
        ));
    }
}

#[test]
fn other_content_and_what_keeps_backups() {
    let stage = Stage::new();
    kept(&stage);
    stage.add_sources();
    files(&stage);
    configuration(&stage);
    logical(&stage);
    reported(&stage);
}

#[test]
fn a_drill_and_a_clone() {
    let stage = Stage::new();
    tried(&stage);
    served(&stage);
}

fn kept(stage: &Stage) {
    let mut scene = stage.scene("live-pin-and-hold");
    let info = stage.pitr(&["info", "--json"]).succeed().json();
    let backup = str_of(&info["clusters"][0]["backups"][0]["id"]);
    let pin = ["pin", backup, "--reason", "the year's end"];
    let hold = ["hold", backup, "--reason", "case 17"];
    let until = ["--until", "2099-01-01T00:00:00Z", "--confirm"];
    for args in [
        &pin[..],
        &[&pin[..], &["--confirm"]].concat(),
        &[&pin[..], &until].concat(),
        &[&pin[..], &["--dry-run", "--json"]].concat(),
        &hold,
        &[&hold[..], &["--confirm"]].concat(),
        &[&hold[..], &["--dry-run", "--json"]].concat(),
        &["unpin", backup],
        &["unpin", backup, "--confirm"],
        &["unpin", backup, "--confirm"],
        &["unhold", backup],
        &["unhold", backup, "--confirm", "--json"],
        &["unpin", backup],
        &["pin", "20261120T064049Z-000001-full", "--reason", "none"],
    ] {
        scene.run(&stage.pitr(args));
    }
    scene.check();
}

fn tried(stage: &Stage) {
    let mut scene = stage.scene("live-drill");
    let checks = "-- expect: 20\nselect count(*) from t;\n";
    let checks = stage.file("checks.sql", checks);
    let folder = stage.site.sandbox().dir("drills");
    let drill = stage.pitr(&["drill", "--checks"]).arg(checks);
    scene.run(&drill.arg("--dir").arg(folder));
    scene.check();
}

fn files(stage: &Stage) {
    let mut scene = stage.scene("live-files");
    scene.run(&stage.pitr(&["files", "backup", "uploads"]));
    scene.run(&stage.pitr(&["files", "backup", "more", "--json"]));
    let list = stage.pitr(&["files", "ls", "uploads", "--json"]);
    let listed = list.succeed().json();
    let owner = str_of(&listed["entries"][0]["owner"]);
    scene.redactor.add(owner, "[owner]");
    let (to, second) = (stage.text("files"), stage.text("files-2"));
    let nowhere = stage.text("nowhere/files");
    for args in [
        &["ls", "uploads"][..],
        &["ls", "uploads", "--json"],
        &["find", "uploads", "*.txt"],
        &["restore", "uploads", "--to", &to],
        &["restore", "uploads", "--to", &to],
        &["restore", "uploads", "--to", &nowhere],
        &["restore", "uploads", "--to", &second, "--json"],
    ] {
        scene.run(&stage.pitr(&["files"]).args(args));
    }
    append(stage.text("uploads/a.txt"), "changed\n");
    let backup = stage.pitr(&["files", "backup", "uploads", "--quiet"]);
    backup.succeed();
    let first = str_of(&listed["backup"]);
    scene.say("A file is changed, and backed up.");
    scene.run(&stage.pitr(&["files", "diff", "uploads", first]));
    scene.check();
}

fn configuration(stage: &Stage) {
    let mut scene = stage.scene("live-config");
    let config = |args: &[&str]| stage.pitr(&["config"]).args(args);
    let backup = ["backup", "etc", "--allow-plain-secrets"];
    scene.run(&config(&["backup", "etc"]));
    scene.run(&config(&backup));
    scene.run(&config(&backup).arg("--json"));
    // The folders above the files are those of the machine.
    scene.run_without(&config(&["show", "etc"]), &[" directory "]);
    let (file, folder) = (stage.text("etc/app.env"), stage.text("etc"));
    scene.run(&config(&["show", "etc", &file]));
    append(stage.text("etc/plain.conf"), "workers = 4\n");
    scene.say("A line is added.");
    scene.run(&config(&["diff", "etc", "--live"]));
    let restore = ["restore", "etc", "--redacted", "--to"];
    let first = config(&restore).arg(stage.text("etc-1"));
    let first = first.arg("--json").run().json();
    let entries = format!("{} entries", first["entry_count"]);
    scene.redactor.add(entries, "[number] entries");
    let restore = config(&restore).arg(stage.text("etc-2"));
    scene.run_without(&restore, &["warning: "]);
    scene.run(&config(&["scan", &folder]));
    scene.run(&config(&["scan", &folder, "--json"]));
    scene.check();
}

fn logical(stage: &Stage) {
    let mut scene = stage.scene("live-logical");
    let version = stage.cluster.value("show server_version");
    let number = version.split(' ').next().unwrap_or_default().to_owned();
    // A server from a package adds the name of that.
    scene.redactor.add(version, "17.[minor]");
    scene.redactor.add(number, "17.[minor]");
    stage.cluster.sql("create database copy");
    let into = stage.cluster.conninfo("copy");
    let (to, nowhere) = (stage.text("dumps"), stage.text("nowhere/dumps"));
    for args in [
        &["backup", "main"][..],
        &["backup", "main", "--json"],
        &["check", "main"],
        &["check", "main", "--list", "--json"],
        &["restore", "main", "--to", &nowhere],
        &["restore", "main", "--to", &to, "--json"],
        &["restore", "main", "--to", &to],
        &["restore", "main", "--into", &into],
    ] {
        scene.run(&stage.pitr(&["logical"]).args(args));
    }
    scene.check();
}

fn reported(stage: &Stage) {
    let mut scene = stage.scene("live-report");
    for args in [
        &["daily"][..],
        &["daily", "--json"],
        &["audit"],
        &["compliance"],
    ] {
        scene.run(&stage.pitr(&["report"]).args(args));
    }
    scene.check();
}

fn served(stage: &Stage) {
    require_fuse!("the golden outputs of pitr clone");
    let mut scene = stage.scene("live-clone");
    // Nobody keeps a clone that lies in memory.
    let folder = Sandbox::on_disk("c");
    let place = folder.path().display().to_string();
    scene.redactor.add(place.clone(), "[clones]");
    let clone = |args: &[&str]| {
        let clone = stage.pitr(&["clone"]).args(args);
        clone.args(["--dir", &place]).env("COLUMNS", "100")
    };
    scene.run(&clone(&["list"]));
    let made = clone(&[]).succeed();
    let shown = clone(&["list", "--json"]).succeed().json()[0].clone();
    let id = str_of(&shown["id"]);
    scene.redactor.add(id, "[clone]");
    let port = str_of(&shown["connection"]).split("port=").nth(1);
    let port = port.and_then(|rest| rest.split(' ').next()).unwrap();
    scene.redactor.add(port, "[port]");
    scene.add(&made);
    scene.run(&clone(&["list"]));
    scene.run(&clone(&["list", "--json"]));
    scene.run(&clone(&["keep", id]));
    let list = clone(&["list"]);
    wait_until("it is whole", || list.succeed().stdout.contains(" whole "));
    for args in [&["list"][..], &["stop", id], &["list"], &["stop", id]] {
        scene.run(&clone(args));
    }
    scene.check();
}

#[test]
fn a_redis_server() {
    // The server waits for no other replica before it sends.
    let mut server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
    server.feed("SET a 1\nSET b 2\n");
    let world = World::new(&server);
    let socket = server.socket();
    let places: &[(&Path, &str)] = &[
        (world.sandbox.path(), "[site]"),
        (socket.as_path(), "[socket]"),
    ];
    let mut scene = Scene::new("live-redis", Data::Live, places);
    let version = server.info("redis_version");
    scene.redactor.add(version, "[redis version]");
    let path = |name: &str| world.sandbox.join(name).display().to_string();
    let (to, second, nowhere) = (path("copy"), path("copy-2"), path("nowhere/copy"));
    for args in [
        &["backup", "cache"][..],
        &["ls", "cache"],
        &["ls", "cache", "--json"],
        &["info", "cache"],
        &["plan", "cache"],
        &["plan", "cache", "--json"],
        &["restore", "cache", "--to", &to],
        &["restore", "cache", "--to", &to],
        &["restore", "cache", "--to", &nowhere],
        &["restore", "cache", "--to", &second, "--json"],
    ] {
        scene.run(&world.redis(args));
    }
    server.kill();
    scene.say("The server is gone.");
    scene.run(&world.redis(&["backup", "cache"]));
    scene.check();
}
