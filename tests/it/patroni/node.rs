//! One node: Patroni, the server that it runs, and their death. Everything of a node lies in one folder, by which its processes are found.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::Place;
use crate::common::pitr;
use crate::common::proxy::Proxy;
use crate::common::{
    Client, Lock, Program, Running, Sandbox, free_port, pitr_archive, pitr_restore, wait_until,
};

/// A node of the cluster.
pub struct Node {
    pub name: String,
    pub folder: PathBuf,
    place: Place,
    rest: (u16, Lock),
    postgres: (u16, Lock),
    /// Between the nodes: what their servers replicate passes through it.
    pub proxy: Proxy,
    patroni: Option<Running>,
}

impl Node {
    /// Makes the folder; nothing runs yet.
    pub fn new(sandbox: &Sandbox, name: &str, place: &Place) -> Node {
        let postgres = free_port();
        Node {
            name: name.to_owned(),
            folder: sandbox.dir(name),
            place: place.clone(),
            rest: free_port(),
            proxy: Proxy::to(postgres.0),
            postgres,
            patroni: None,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("pitr.toml")
    }

    pub fn port(&self) -> u16 {
        self.postgres.0
    }

    /// `pitr --config …` of this node.
    pub fn pitr(&self) -> Program {
        pitr().arg("--config").arg(self.config())
    }

    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port())
    }

    pub fn client(&self) -> Client {
        let conninfo = format!("{} dbname=postgres connect_timeout=5", self.conninfo());
        Client::connect(&conninfo).unwrap_or_else(|e| panic!("{}: {e}\n{}", self.name, self.log()))
    }

    /// Patroni's configuration, with a bootstrap of its own where there is one.
    fn configuration(&self, bootstrap: Option<&Value>) -> Value {
        let address = |port: u16| format!("127.0.0.1:{port}");
        let archive = pitr_archive().arg("--config").arg(self.config()).arg("%p");
        let restore = pitr_restore().arg("--config").arg(self.config());
        // Patroni replaces the conninfo by that of the leader of the day.
        let standby = self.pitr().words("standby --to").arg(self.data());
        let standby = standby.words("--primary-conninfo host=127.0.0.1");
        let mut dcs = json!({
            "ttl": 20, "loop_wait": 1, "retry_timeout": 3, "primary_start_timeout": 0,
            // A replica that was cut off is a candidate all the same, so that something is lost.
            "maximum_lag_on_failover": 1_u64 << 40,
            "slots": { "pitr": { "type": "physical" } },
            "postgresql": { "use_pg_rewind": true },
        });
        let mut whole = json!({ "initdb": ["data-checksums", { "encoding": "UTF8" }, { "locale": "C" }, { "wal-segsize": "1" }] });
        if let Some(bootstrap) = bootstrap {
            whole = bootstrap.clone();
            dcs["slots"] = json!({});
        }
        whole["dcs"] = dcs;
        json!({
            "scope": self.place.scope, "name": self.name,
            "restapi": { "listen": address(self.rest.0), "connect_address": address(self.rest.0) },
            "etcd3": { "host": address(self.place.etcd) },
            "bootstrap": whole,
            "postgresql": {
                "listen": address(self.port()), "connect_address": address(self.proxy.port()),
                "data_dir": self.data(), "bin_dir": self.place.bin, "pgpass": self.folder.join("pgpass"),
                "authentication": { "superuser": { "username": "postgres" }, "replication": { "username": "replicator" } },
                "pg_hba": ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
                // No other: where it fails, the node does not come back.
                "create_replica_methods": ["pitr"],
                "pitr": { "command": standby.shell(), "no_params": true },
                // A leader that goes away under pg_rewind leaves half a data directory, on which no server starts.
                "remove_data_directory_on_rewind_failure": true,
                "parameters": {
                    "unix_socket_directories": self.folder, "fsync": "off", "shared_buffers": "16MB", "jit": "off", "timezone": "UTC",
                    "wal_retrieve_retry_interval": "200ms", "max_wal_size": "64MB",
                    "archive_mode": "on", "archive_command": archive.shell(), "archive_timeout": "60s",
                    "restore_command": format!("{} %f %p", restore.shell()),
                },
            },
        })
    }

    /// Starts Patroni, which starts the server.
    pub fn start(&mut self) {
        self.start_with(None);
    }

    /// Starts Patroni; where nothing is there yet, with this bootstrap.
    pub fn start_with(&mut self, bootstrap: Option<&Value>) {
        let text = serde_json::to_string_pretty(&self.configuration(bootstrap)).unwrap();
        std::fs::write(self.folder.join("patroni.json"), text).unwrap();
        let patroni = Program::new("/usr/bin/python3")
            .words("-m patroni")
            .arg(self.folder.join("patroni.json"))
            .env("PYTHONPATH", &self.place.python)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HOME", &self.folder)
            .dir(&self.folder);
        self.patroni = Some(patroni.spawn());
    }

    /// Returns the log of Patroni and the server since Patroni's start.
    pub fn log(&self) -> String {
        self.patroni
            .as_ref()
            .map(Running::stderr)
            .unwrap_or_default()
    }

    /// The server dies in the middle of what it does. Patroni goes on.
    pub fn kill_server(&self) {
        kill_below(&self.data());
    }

    /// Everything on the node dies at once.
    pub fn kill(&mut self) {
        kill_below(&self.folder);
        self.patroni = None;
    }

    /// Everything on the node stands still, or goes on.
    pub fn freeze(&self, on: bool) {
        let signal = if on { Signal::STOP } else { Signal::CONT };
        for pid in processes_below(&self.folder) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Asks Patroni's own interface.
    pub fn rest(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.rest.0));
        let wait = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&address, wait).ok()?;
        stream.set_read_timeout(Some(wait)).ok()?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    /// Whether Patroni takes it for the leader.
    pub fn leads(&self) -> bool {
        self.rest("GET", "/leader", "").is_some_and(|a| a.0 == 200)
    }

    /// Ends the segment that is being written, and waits until this node has archived it.
    pub fn archive_now(&self) {
        let client = self.client();
        client.sql("select pg_logical_emit_message(false, 'pitr', 'switch')");
        let name = client.value("select pg_walfile_name(pg_switch_wal())");
        wait_until("the leader has archived its segment", || {
            // Histories and partial segments of the timeline before are archived, too.
            let last = client.value("select last_archived_wal from pg_stat_archiver");
            last.len() >= 24 && last[..8] == name[..8] && last[..24] >= name[..24]
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes that work in a folder, or whose command line names it.
fn processes_below(folder: &Path) -> Vec<Pid> {
    let folder = folder.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let of_it = entries.filter(|entry| {
        let works_there = std::fs::read_link(entry.path().join("cwd"))
            .is_ok_and(|cwd| cwd.to_string_lossy().starts_with(folder));
        let names_it = std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(folder));
        works_there || names_it
    });
    let pids = of_it.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw).collect()
}

/// Kills them until there are none: one may have made another meanwhile.
pub fn kill_below(folder: &Path) {
    wait_until("the processes of the node are gone", || {
        let pids = processes_below(folder);
        for pid in &pids {
            let _ = kill_process(*pid, Signal::KILL);
        }
        pids.is_empty()
    });
}
