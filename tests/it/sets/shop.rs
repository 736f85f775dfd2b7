//! A small shop: a database, a cache, a directory of uploads and a file of settings, each of which holds a counter.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{
    Client, Cluster, Program, Run, Running, Sandbox, files_below, pitr, pitr_archive, user,
    wait_until,
};
use crate::redis::server::{bin, program};

pub const REDIS: &str = "redis-7";

pub struct Shop {
    pub sandbox: Sandbox,
    pub cluster: Cluster,
    receiver: Option<Running>,
}

/// Who writes to a shop, on a thread of its own.
#[derive(Clone)]
pub struct Customer {
    conninfo: String,
    socket: PathBuf,
    new: PathBuf,
    upload: PathBuf,
}

impl Customer {
    /// The database first, then the cache, then an upload, which is there as a whole.
    pub fn write_counter(&self, n: u64) {
        let client = Client::connect(&self.conninfo).expect("the database answers");
        client.sql(&format!("insert into counter values ({n})"));
        let set = ["SET", "counter", &n.to_string()];
        let run = Program::new(program(REDIS, "cli"))
            .arg("-s")
            .arg(&self.socket);
        run.args(set).succeed();
        std::fs::write(&self.new, n.to_string()).unwrap();
        user::own(&self.new);
        std::fs::rename(&self.new, &self.upload).unwrap();
    }
}

/// The counters of the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    pub rows: u64,
    pub key: u64,
    pub file: u64,
}

/// Everything that the members hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    tables: Vec<String>,
    digest: String,
    files: Vec<(String, String)>,
}

impl Shop {
    /// A shop that runs, has backups of everything, and whose WAL and Redis log are archived.
    pub fn open(major: u32) -> Shop {
        let sandbox = Sandbox::new("shop");
        let cluster = Cluster::small(major).config("archive_mode", "on").create();
        let mut shop = Shop {
            sandbox,
            cluster,
            receiver: None,
        };
        for folder in ["redis", "uploads", "settings", "state", "tmp"] {
            shop.sandbox.dir(folder);
        }
        shop.write("settings/.env", "SHOP_TITLE=Tea\n");
        shop.write("uploads/counter", "0");
        shop.scripts();
        shop.configure();
        let archive = pitr_archive().arg("--config").arg(shop.path("pitr.toml"));
        shop.cluster
            .append_config("archive_command", &archive.arg("%p").shell());
        let port = shop.cluster.port().to_string();
        let socket = shop.cluster.socket_dir().display().to_string();
        for (name, value) in [
            ("port", port.as_str()),
            ("unix_socket_directories", &socket),
            ("listen_addresses", ""),
        ] {
            shop.cluster.append_config(name, value);
        }
        shop.pitr(&["init", "--quiet"]).succeed();
        for script in ["start-pg", "start-redis"] {
            shop.script(script).success();
        }
        shop.cluster.sql("create table counter (n bigint)");
        shop.receive();
        for backup in [
            &["backup"][..],
            &["redis", "backup", "shop"],
            &["files", "backup", "uploads"],
            &["config", "backup", "host"],
        ] {
            shop.pitr(backup).succeed();
        }
        shop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        self.sandbox.file(name, text);
    }

    fn scripts(&self) {
        let pg_ctl = self.cluster.bin("pg_ctl").expect("pg_ctl");
        let (data, log) = (self.cluster.pgdata().display(), self.path("tmp/pg.log"));
        let (pg_ctl, log) = (pg_ctl.display(), log.display());
        let socket = self.path("tmp/r");
        let socket = socket.display();
        let (server, cli) = (program(REDIS, "server"), program(REDIS, "cli"));
        let (server, cli) = (server.display(), cli.display());
        let redis = self.path("redis");
        let redis = redis.display();
        let scripts = [
            ("stop-pg", format!("{pg_ctl} -D {data} -m fast -w stop")),
            (
                "start-pg",
                format!("{pg_ctl} -D {data} -l {log} -w -t 120 start"),
            ),
            (
                "stop-redis",
                format!("{cli} -s {socket} shutdown nosave || true"),
            ),
            (
                "start-redis",
                format!(
                    "{server} --dir {redis} --port 0 --unixsocket {socket} --appendonly yes --enable-debug-command yes --save '' --repl-diskless-sync-delay 0 --daemonize yes"
                ),
            ),
            (
                "stop-shop",
                format!("touch {}", self.path("tmp/closed").display()),
            ),
            (
                "start-shop",
                format!("rm -f {}", self.path("tmp/closed").display()),
            ),
            (
                "health",
                format!("test ! -e {}", self.path("tmp/sick").display()),
            ),
        ];
        for (name, line) in scripts {
            self.write(name, &format!("#!/bin/sh\nset -e\n{line}\n"));
        }
    }

    pub fn script(&self, name: &str) -> Run {
        Program::new("/bin/sh").arg(self.path(name)).run()
    }

    fn configure(&self) {
        let at = |name: &str| self.path(name).display().to_string();
        let command = |name: &str| format!("[\"/bin/sh\", \"{}\"]", at(name));
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\nservice.stop = {}\nservice.start = {}\n\
             [redis.shop]\naddress = \"unix:{}\"\nreceive.journal = \"{}\"\nservice.data_directory = \"{}\"\nservice.stop = {}\nservice.start = {}\n\
             [files.uploads]\nsource = \"{}\"\n\
             [config.host]\npaths = [\"{}\"]\n\
             [sets.shop]\nmembers = [\"main\", \"redis:shop\", \"files:uploads\", \"config:host\"]\nstop = {}\nstart = {}\nhealth = {}\nstate_dir = \"{}\"\n\
             [repositories.one]\nurl = \"file://{}\"\n",
            self.cluster.pgdata().display(),
            self.cluster.conninfo("postgres"),
            command("stop-pg"),
            command("start-pg"),
            at("tmp/r"),
            at("journal"),
            at("redis"),
            command("stop-redis"),
            command("start-redis"),
            at("uploads"),
            at("settings/.env"),
            command("stop-shop"),
            command("start-shop"),
            command("health"),
            at("state"),
            at("one"),
        );
        self.write("pitr.toml", &text);
    }

    /// The search path of its host.
    pub fn search_path(&self) -> String {
        let postgres = self.cluster.bin("pg_ctl").expect("pg_ctl");
        let postgres = postgres.parent().unwrap().display().to_string();
        format!("{}:{postgres}:/usr/bin:/bin", bin(REDIS).display())
    }

    pub fn pitr(&self, arguments: &[&str]) -> Program {
        let program = pitr().arg("--config").arg(self.path("pitr.toml"));
        program.args(arguments).env("PATH", self.search_path())
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        self.pitr(arguments).arg("--json").succeed().json()
    }

    pub fn redis(&self, words: &[&str]) -> String {
        let run = Program::new(program(REDIS, "cli"))
            .arg("-s")
            .arg(self.path("tmp/r"));
        let run = run.args(words).succeed();
        run.stdout.trim_end().to_owned()
    }

    /// Starts a receiver, and waits until the server counts it.
    pub fn receive(&mut self) {
        self.receiver = Some(self.pitr(&["redis", "receive", "shop"]).spawn());
        wait_until("the receiver is online", || {
            self.redis(&["INFO", "replication"])
                .contains("state=online")
        });
    }

    /// Ends the receiver in order: what it received is stored.
    pub fn stop_receiving(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            receiver.ended_by(rustix::process::Signal::TERM);
        }
    }

    /// A customer of it.
    pub fn customer(&self) -> Customer {
        Customer {
            conninfo: self.cluster.conninfo("postgres"),
            socket: self.path("tmp/r"),
            new: self.path("tmp/counter"),
            upload: self.path("uploads/counter"),
        }
    }

    pub fn write_counter(&self, n: u64) {
        self.customer().write_counter(n);
    }

    pub fn wait_online(&self) {
        wait_until("the receiver is online", || {
            self.redis(&["INFO", "replication"])
                .contains("state=online")
        });
    }

    pub fn counters(&self) -> Counters {
        let rows = self
            .cluster
            .value("select coalesce(max(n), 0) from counter");
        Counters {
            rows: rows.parse().unwrap(),
            key: self.redis(&["GET", "counter"]).parse().unwrap_or(0),
            file: read(&self.path("uploads/counter")).parse().unwrap(),
        }
    }

    /// The time of the host, in UTC.
    pub fn now(&self) -> String {
        self.cluster.value(
            "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        )
    }

    /// Everything that the members hold: a dump of the database, the digest of the cache, and each file.
    pub fn contents(&self) -> Contents {
        let dump = self.cluster.tool("pg_dump");
        let dump = dump.arg(self.cluster.conninfo("postgres")).succeed();
        // Each dump has a token of its own.
        let lines = dump.stdout.lines();
        let lines = lines.filter(|line| !line.contains("restrict "));
        let files = files_below(&self.path("uploads")).into_iter();
        let files = files.map(|name| {
            let path = self.path("uploads").join(&name);
            (name, read(&path))
        });
        let settings = read(&self.path("settings/.env"));
        Contents {
            tables: lines.map(str::to_owned).collect(),
            digest: self.redis(&["DEBUG", "DIGEST"]),
            files: files.chain([(".env".to_owned(), settings)]).collect(),
        }
    }

    /// Removes what rollbacks have put aside beside the cluster: many rounds need the room.
    pub fn clear_aside(&self) {
        let data = self.cluster.pgdata();
        let name = data.file_name().unwrap().to_str().unwrap();
        let aside = format!("{name}.undone-");
        for entry in std::fs::read_dir(data.parent().unwrap()).unwrap() {
            let path = entry.unwrap().path();
            if path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&aside)
            {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
    }

    /// Makes a mark with backups, and waits until it is settled. Returns its name.
    pub fn mark(&self) -> String {
        let marked = self.json(&["mark", "shop", "--with-backups"]);
        let id = marked["id"].as_str().unwrap().to_owned();
        self.settle(&id);
        id
    }

    pub fn settle(&self, id: &str) {
        // WAL and log behind the mark: what is asked for must have ended.
        self.cluster.archive_now();
        self.redis(&["SET", "behind", id]);
        let mut said = Value::Null;
        wait_until("the mark is settled", || {
            let info = self.pitr(&["info", "--set", "shop", "--json"]).run();
            // A set without a moment to which it leads is a warning.
            assert!(matches!(info.code(), 0 | 6), "{info}");
            let marks = info.json()["marks"].clone();
            said = marks.clone();
            let marks = marks.as_array().unwrap().iter();
            marks
                .filter(|mark| mark["id"] == id)
                .any(|mark| mark["settled"] == true)
        });
        assert!(!said.is_null());
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.receiver.take();
        for script in ["stop-redis", "stop-pg"] {
            if self.path(script).exists() {
                let _ = self.script(script);
            }
        }
    }
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
