//! Sentinels name the server: rows R59 to R61 of docs/faults.md.

use std::io::{Read as _, Write as _};

use super::receive::{Moment, confirm, receiver, stop};
use super::server::{Server, program};
use super::world::World;
use super::writer::{self, Writer};
use crate::common::authority::{Authority, LATER};
use crate::common::{Lock, Program, Running, Sandbox, free_port, wait_until};
use crate::per_server;

/// A Sentinel that watches a master called `shop`.
pub struct Sentinel {
    name: &'static str,
    pub port: u16,
    _lock: Lock,
    _sandbox: Sandbox,
    _running: Running,
}

impl Sentinel {
    fn watching(master: &Server, quorum: u32, more: &str) -> Sentinel {
        Sentinel::at((master.name, master.port()), quorum, more)
    }

    /// Watches the server at a port.
    pub fn at((name, at): (&'static str, u16), quorum: u32, more: &str) -> Sentinel {
        let sandbox = Sandbox::new("sentinel");
        let (port, lock) = free_port();
        let lines = format!(
            "{}dir {}\nsentinel monitor shop 127.0.0.1 {} {quorum}\nsentinel down-after-milliseconds shop 1000\nsentinel failover-timeout shop 6000\n",
            match more.contains("tls-port") {
                true => more.replace("tls-port", &format!("port 0\ntls-port {port}")),
                false => format!("port {port}\n{more}"),
            },
            sandbox.dir("data").display(),
            at,
        );
        let conf = sandbox.file("sentinel.conf", lines);
        let server = Program::new(program(name, "server"));
        let running = server.arg(conf).arg("--sentinel").spawn();
        wait_until("the Sentinel listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Sentinel {
            name,
            port,
            _lock: lock,
            _sandbox: sandbox,
            _running: running,
        }
    }

    pub fn ask(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let cli = Program::new(program(self.name, "cli")).args(["-p", &port]);
        cli.args(words).run().stdout
    }
}

fn configure(world: &World, sentinels: &[u16], more: &str) {
    let addresses: Vec<String> = sentinels
        .iter()
        .map(|port| format!("\"127.0.0.1:{port}\""))
        .collect();
    world.configure(&format!(
        "stall_timeout = \"5s\"\nreceive.journal = \"{}\"\nsentinel.master = \"shop\"\nsentinel.addresses = [{}]\n{more}",
        world.sandbox.join("journal").display(),
        addresses.join(", "),
    ));
}

const OPTIONS: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

/// A master, a replica of it, and three Sentinels.
fn watched(name: &'static str) -> (Server, Server, Vec<Sentinel>) {
    let master = Server::listening(name, "--port", &OPTIONS);
    let replica = Server::listening(name, "--port", &OPTIONS);
    replica.ask(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    wait_until("the replica follows", || {
        replica.info("master_link_status") == "up"
    });
    let sentinels: Vec<Sentinel> = (0..3).map(|_| Sentinel::watching(&master, 2, "")).collect();
    let port = replica.port().to_string();
    for sentinel in &sentinels {
        wait_until("the Sentinels know each other", || {
            let told = sentinel.ask(&["SENTINEL", "slaves", "shop"]);
            let others = sentinel.ask(&["SENTINEL", "sentinels", "shop"]);
            let is_known = told.contains(&port) && told.contains("\nok\n");
            is_known && others.matches("last-hello-message").count() == 2
        });
    }
    (master, replica, sentinels)
}

/// The master dies under load: the receiver follows, and what was confirmed comes back.
fn r59_the_receiver_follows_a_failover(name: &'static str) {
    let (mut master, replica, sentinels) = watched(name);
    let ports: Vec<u16> = sentinels.iter().map(|sentinel| sentinel.port).collect();
    let world = World::new(&master);
    configure(&world, &ports, "sentinel.backup_from = \"replica\"");
    let running = receiver(&world, &master);
    // The master does not fork for the backup.
    let forks = master.info("sync_full");
    assert_eq!(world.backup()["redis"]["role"], "replica");
    assert_eq!(master.info("sync_full"), forks);
    confirm(&master, "SELECT 2\nSET a 1\n", 2);
    let first = Moment::of(&master);
    let writer = Writer::start(&master, 2, 1);
    wait_until("writes are confirmed", || writer.count() > 50);
    master.kill();
    let mut confirmed = writer.stop();
    wait_until("the Sentinels promote the replica", || {
        replica.info("role") == "master"
    });
    wait_until("the receiver follows", || {
        let told = replica.ask(&["INFO", "replication"]);
        told.contains("state=online")
    });
    let writer = Writer::start(&replica, 1, 2);
    wait_until("writes are confirmed", || writer.count() > 50);
    confirmed.extend(writer.stop());
    let last = Moment::of(&replica);
    let ended = stop(running);
    for server in [&master, &replica] {
        let named = format!("the Sentinels name 127.0.0.1:{} as master", server.port());
        assert!(ended.stderr.contains(&named), "{ended}");
    }
    let told = world.redis(&["info", "cache"]).succeed();
    assert!(!told.stdout.contains("gap behind"), "{told}");
    for (n, moment) in [&first, &last].into_iter().enumerate() {
        let target = moment.target();
        let copy = world.restore(&format!("copy{n}"), &["--target-offset", &target]);
        let restored = Server::on(name, &copy, &[]);
        assert_eq!(restored.content(), moment.content, "{n}");
        if n == 1 {
            let lines: String = confirmed
                .iter()
                .map(|(_, key)| format!("GET {key}\n"))
                .collect();
            let values = restored.cli(&[]).stdin(lines.into_bytes()).succeed();
            let wanted: Vec<String> = confirmed
                .iter()
                .map(|(_, key)| writer::value(key))
                .collect();
            assert_eq!(values.stdout.lines().collect::<Vec<_>>(), wanted);
        }
    }
    // The former master comes back as a replica: bases are taken from it.
    master.begin();
    let port = master.port().to_string();
    for sentinel in &sentinels {
        wait_until("the former master follows", || {
            let told = sentinel.ask(&["SENTINEL", "slaves", "shop"]);
            told.contains(&port) && told.contains("\nok\n")
        });
    }
    let taken = world.backup();
    assert_eq!(taken["redis"]["role"], "replica");
    assert_eq!(taken["redis"]["replid"], last.replid.as_str());
}
per_server!(r59_the_receiver_follows_a_failover);

/// Answers each connection with the address of this port, as a Sentinel does that was cut off.
fn stale(named: u16) -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 256];
            let _ = stream.read(&mut request);
            let named = named.to_string();
            let answer = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{named}\r\n", named.len());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// A Sentinel that is gone, silent, or names a former master is passed over; where none leads to a master, the error says what each said.
#[test]
fn r60_sentinels_that_lead_nowhere_are_passed_over_or_named() {
    let master = Server::listening("redis-7", "--port", &OPTIONS);
    let replica = Server::listening("redis-7", "--port", &OPTIONS);
    replica.ask(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    wait_until("the replica follows", || {
        replica.info("master_link_status") == "up"
    });
    let good = Sentinel::watching(&master, 1, "");
    let (gone, _lock) = free_port();
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent = (silent.local_addr().unwrap().port(), silent);
    let cut_off = stale(replica.port());
    let world = World::new(&master);
    let failed = |sentinels: &[u16], status: i32, words: &[&str]| {
        configure(&world, sentinels, "");
        let run = world.redis(&["backup", "cache"]).run();
        for word in words {
            assert!(run.stderr.contains(word), "{word}: {run}");
        }
        world.assert_none(run, status, words[0]);
    };
    failed(
        &[gone, gone],
        9,
        &["no Sentinel leads to master \"shop\"", "does not answer"],
    );
    failed(&[silent.0], 1, &["silent for 5 s"]);
    failed(
        &[cut_off, gone],
        9,
        &["which is a replica", "does not answer"],
    );
    failed(&[stale(gone)], 9, &["does not answer"]);
    failed(&[master.port()], 1, &["it is no Sentinel", "26379"]);
    configure(&world, &[good.port], "");
    let text = std::fs::read_to_string(world.sandbox.join("pitr.toml")).unwrap();
    let other = text.replace("\"shop\"", "\"Shop\"");
    std::fs::write(world.sandbox.join("pitr.toml"), other).unwrap();
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 3, "no Sentinel knows a master \"Shop\"");
    let running = world.redis(&["receive", "cache"]).run();
    running.expect_code(3).expect_stderr("no Sentinel knows");
    // The next one is asked.
    configure(&world, &[gone, silent.0, cut_off, good.port], "");
    assert_eq!(world.backup()["redis"]["role"], "master");
    configure(&world, &[good.port], "sentinel.backup_from = \"replica\"");
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    drop(replica);
    let run = world.redis(&["backup", "cache"]).succeed();
    run.expect_stderr("no replica was fit");
    // Keys go to the master; a whole data set into one that Sentinels watch is refused.
    master.ask(&["SET", "key", "1"]);
    configure(&world, &[good.port], "");
    let id = world.backup()["id"].as_str().unwrap().to_owned();
    master.ask(&["DEL", "key"]);
    let into = ["restore", "cache", "--backup", &id, "--into", "cache"];
    world.redis(&into).words("--key key").succeed();
    assert_eq!(master.ask(&["GET", "key"]), "1");
    let run = world.redis(&into).arg("--confirm").run();
    run.expect_code(8)
        .expect_stderr("Sentinels watch the server");
}

/// Sentinels have an account of their own; their password is in no message.
#[test]
fn r61_sentinels_have_an_account_of_their_own() {
    let master = Server::listening("redis-7", "--port", &OPTIONS);
    let world = World::new(&master);
    let authority = Authority::new();
    let own = authority.signs("localhost", LATER);
    let file = |name: &str, text: &str| world.sandbox.file(name, text).display().to_string();
    let (ca, certificate) = (file("ca.pem", &authority.pem), file("server.pem", &own.pem));
    let (key, password) = (
        file("server.key", &own.key),
        file("password", "wr0ng-Gr3enTea\n"),
    );
    let rights = "+sentinel|get-master-addr-by-name +sentinel|slaves";
    let sentinel = Sentinel::watching(
        &master,
        1,
        &format!(
            "tls-port\ntls-ca-cert-file {ca}\ntls-cert-file {certificate}\ntls-key-file {key}\nuser default off\nuser pitr on >Gr3enTea-of-pitr -@all {rights}\nuser other on >Gr3enTea-of-other -@all\n"
        ),
    );
    let tls = format!(
        "sentinel.tls.ca_file = \"{ca}\"\nsentinel.tls.cert_file = \"{certificate}\"\nsentinel.tls.key_file = \"{key}\"\n"
    );
    let account = |user: &str| {
        format!("sentinel.user = \"{user}\"\nsentinel.password_file = \"{password}\"\n")
    };
    let configure = |more: &str| {
        let text = format!(
            "stall_timeout = \"5s\"\nsentinel.master = \"shop\"\nsentinel.addresses = [\"localhost:{}\"]\n{more}",
            sentinel.port
        );
        world.configure(&text);
    };
    let failed = |more: &str, words: &[&str]| {
        configure(more);
        let run = world.redis(&["backup", "cache"]).run();
        assert!(
            !format!("{}{}", run.stdout, run.stderr).contains("Gr3enTea"),
            "{run}"
        );
        for word in words {
            assert!(run.stderr.contains(word), "{word}: {run}");
        }
        assert!(!run.is_success() && world.ids().is_empty(), "{run}");
    };
    failed("", &["closed the connection"]);
    failed(
        &tls,
        &[
            "wants a password",
            "For Sentinels these keys begin with sentinel.",
        ],
    );
    failed(&(tls.clone() + &account("pitr")), &["with this password"]);
    std::fs::write(world.sandbox.join("password"), "Gr3enTea-of-other\n").unwrap();
    failed(
        &(tls.clone() + &account("other")),
        &["may not run SENTINEL", rights],
    );
    std::fs::write(world.sandbox.join("password"), "Gr3enTea-of-pitr\n").unwrap();
    configure(&(tls + &account("pitr")));
    world.backup();
}
