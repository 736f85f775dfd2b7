//! Everything that goes wrong with data sets: rows R03 to R08 of docs/faults.md.

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use super::filled;
use super::receive::{Moment, confirm, receiver, stop};
use super::server::Server;
use super::world::World;
use crate::common::authority::{Authority, LATER};
use crate::common::proxy::{Proxy, Way};
use crate::common::{files_below, wait_until};

/// A server with a data set of some megabytes that do not compress away, and a proxy before it.
fn large(more: &[&str]) -> (Server, Proxy, World) {
    let server = Server::listening("redis-7", "--port", more);
    server.ask(&["DEBUG", "POPULATE", "100000", "key", "100"]);
    let proxy = Proxy::to(server.port());
    let world = World::new(&server);
    world.configure(&format!(
        "address = \"127.0.0.1:{}\"\nstall_timeout = \"2s\"",
        proxy.port()
    ));
    (server, proxy, world)
}

#[test]
fn r03_a_transfer_that_ends_early_leaves_no_backup() {
    let (mut server, proxy, world) =
        large(&["--repl-diskless-sync-delay", "0", "--rdbcompression", "no"]);
    for bytes in [1, 40, 3_000, 100_000, 3_000_000] {
        proxy.cut_after(Way::ToClient, bytes);
        let run = world.redis(&["backup", "cache"]).run();
        world.assert_none(run, 9, "closed the connection");
        proxy.calm();
    }
    // Silence in the middle is told from slowness.
    proxy.throttle(Way::ToClient, Some(1_000_000));
    let begun = proxy.counts().bytes_to_client;
    let mut running = world.redis(&["backup", "cache"]).spawn();
    wait_until("bytes come", || {
        proxy.counts().bytes_to_client > begun + 500_000
    });
    proxy.stall(Way::ToClient);
    assert!(!running.is_done());
    world.assert_none(running.wait(), 1, "silent for 2 s");
    // The operator stops it, and the server dies.
    for is_server in [false, true] {
        let running = world.redis(&["backup", "cache"]).spawn();
        let begun = proxy.counts().bytes_to_client;
        wait_until("bytes come", || {
            proxy.counts().bytes_to_client > begun + 500_000
        });
        if is_server {
            server.kill();
            world.assert_none(running.wait(), 9, "closed the connection");
        } else {
            let run = running.ended_by(Signal::TERM);
            assert!(!run.is_success(), "{run}");
            assert!(world.ids().is_empty());
        }
    }
    proxy.calm();
    server.begin();
    world.backup();
    assert_eq!(world.ids().len(), 1);
}

#[test]
fn r04_a_server_that_refuses_is_named_with_what_helps() {
    let server = Server::start("redis-7", &["--rename-command", "PSYNC", ""]);
    let world = World::new(&server);
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 1, "does not know PSYNC");
    drop((server, world));

    let server = Server::start("redis-7", &["--requirepass", "Gr3enTea-of-all"]);
    let admin = |words: &[&str]| {
        let all = [&["--no-auth-warning", "-a", "Gr3enTea-of-all"], words].concat();
        server.cli(&all).succeed()
    };
    let world = World::new(&server);
    let address = format!("address = \"{}\"", server.address());
    world.configure(&address);
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 1, "wants a password");
    let file = world.sandbox.file("password", "wr0ng-Gr3enTea\n");
    let with_password = format!("{address}\npassword_file = \"{}\"", file.display());
    world.configure(&with_password);
    let run = world.redis(&["backup", "cache"]).run();
    assert!(!run.stderr.contains("Gr3enTea"), "{run}");
    world.assert_none(run, 1, "with this password");
    // A user without the right, and with it.
    admin(&[
        "ACL",
        "SETUSER",
        "pitr",
        "on",
        ">Gr3enTea-of-pitr",
        "+ping",
        "+info",
    ]);
    std::fs::write(&file, "Gr3enTea-of-pitr\n").unwrap();
    world.configure(&format!("{with_password}\nuser = \"pitr\""));
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 1, "user \"pitr\" may not run");
    admin(&[
        "ACL",
        "SETUSER",
        "pitr",
        "+psync",
        "+replconf",
        "+ping",
        "+info",
    ]);
    // A password that others can read is none.
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let run = world.redis(&["backup", "cache"]).run();
    assert!(!run.stderr.contains("Gr3enTea"), "{run}");
    run.expect_code(3).expect_stderr("password file");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let run = world.redis(&["backup", "cache"]).succeed();
    assert!(
        !format!("{}{}", run.stdout, run.stderr).contains("Gr3enTea"),
        "{run}"
    );

    // A replica that has lost its master; and nothing at all.
    let lost = Server::start("redis-7", &["--replicaof", "127.0.0.1 1"]);
    let other = World::new(&lost);
    let run = other.redis(&["backup", "cache"]).run();
    other.assert_none(run, 9, "has lost its master");
    drop(lost);
    let run = other.redis(&["backup", "cache"]).run();
    other.assert_none(run, 9, "does not answer");
    run_against_nonsense(&other);
}

/// Something that speaks no RESP.
fn run_against_nonsense(world: &World) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 64];
        let _ = std::io::Read::read(&mut stream, &mut request);
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    world.configure(&format!("address = \"127.0.0.1:{port}\""));
    let run = world.redis(&["backup", "cache"]).run();
    answering.join().unwrap();
    world.assert_none(run, 1, "which no Redis or Valkey says here");
}

/// A save for another replica runs: it is not taken for ours, which would lack what was written since.
#[test]
fn r148_a_save_that_runs_for_another_replica_is_waited_for() {
    let server = Server::start("redis-6", &["--repl-diskless-sync", "no"]);
    server.ask(&["DEBUG", "POPULATE", "2000"]);
    let world = World::new(&server);
    server.ask(&["CONFIG", "SET", "rdb-key-save-delay", "2000"]);
    let replica = server.cli(&["--replica"]).spawn();
    wait_until("it saves for the replica", || {
        server.info("rdb_bgsave_in_progress") == "1"
    });
    server.ask(&["SET", "late", "1"]);
    let offset: u64 = server.info("master_repl_offset").parse().unwrap();
    assert_eq!(server.info("rdb_bgsave_in_progress"), "1", "it still runs");
    let taken = world.backup();
    replica.ended_by(Signal::KILL);
    assert!(taken["redis"]["offset"].as_u64() >= Some(offset), "{taken}");
    let copy = world.restore("copy", &[]);
    assert_eq!(Server::on("redis-6", &copy, &[]).ask(&["GET", "late"]), "1");
}

/// A client uses a new database while the backup waits for the save of another one: the restored server has to have that many.
#[test]
fn r161_a_database_that_appears_before_the_fork_is_counted() {
    let more = ["--repl-diskless-sync-delay", "0", "--databases", "64"];
    let server = Server::start("redis-7", &more);
    server.ask(&["DEBUG", "POPULATE", "4000"]);
    let world = World::new(&server);
    server.ask(&["CONFIG", "SET", "rdb-key-save-delay", "2000"]);
    server.ask(&["BGSAVE"]);
    server.ask(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
    let running = world.redis(&["backup", "cache", "--json"]).spawn();
    wait_until(
        "pitr has asked what there is, and waits for the save",
        || {
            let clients = server.ask(&["CLIENT", "LIST"]);
            clients.contains("cmd=info") && clients.contains("age=1 ")
        },
    );
    assert_eq!(server.info("rdb_bgsave_in_progress"), "1", "it still runs");
    server.feed("SELECT 40\nSET late 1\n");
    let taken = running.wait().success().json();
    let keyspace = &taken["redis"]["keyspace"];
    assert_eq!(keyspace[1]["db"], 40, "{taken}");
    let copy = world.restore("copy", &[]);
    let restored = Server::on("redis-7", &copy, &[]);
    let asked = restored.cli(&[]).stdin(b"SELECT 40\nGET late\n").run();
    assert_eq!(asked.stdout.lines().nth(1), Some("1"), "{asked}");
}

#[test]
fn r05_a_data_set_without_a_checksum_is_said_to_have_none() {
    let server = Server::start("redis-7", &["--rdbchecksum", "no"]);
    server.feed("SET a 1\n");
    let world = World::new(&server);
    world
        .redis(&["backup", "cache"])
        .exits(6)
        .expect_stderr("writes no checksum");
    let to = world.sandbox.join("copy");
    let run = world.restoring(&to, &[]).succeed();
    run.expect_stderr("no checksum of its server");
    let new = Server::on("redis-7", &to, &[]);
    assert_eq!(new.ask(&["GET", "a"]), "1");
}

#[test]
fn r06_a_damaged_backup_is_restored_nowhere() {
    let server = filled("redis-7", 9);
    let world = World::new(&server);
    world.backup();
    let packs: Vec<_> = files_below(&world.repository())
        .into_iter()
        .filter(|path| path.contains("packs/"))
        .collect();
    assert!(!packs.is_empty());
    let path = world.repository().join(&packs[0]);
    let whole = std::fs::read(&path).unwrap();
    for at in [whole.len() / 3, whole.len() / 2] {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        std::fs::write(&path, changed).unwrap();
        let to = world.sandbox.join("copy");
        world.restoring(&to, &[]).exits(1);
        assert!(!to.exists(), "nothing stays");
    }
    std::fs::write(&path, whole).unwrap();
    world.restore("copy", &[]);
}

#[test]
fn r07_what_cannot_be_loaded_is_refused_before_anything_is_written() {
    let server = filled("redis-8", 13);
    let mut world = World::new(&server);
    world.backup();
    let to = world.sandbox.join("copy");
    for installed in ["redis-7", "redis-6", "valkey-8", "valkey-9"] {
        world.installed = installed;
        let run = world.restoring(&to, &[]).run();
        run.expect_code(8)
            .expect_stderr("cannot load RDB version 12");
        assert!(!to.exists());
    }
    let run = world.restoring(&to, &["--server-version", "7.0"]).run();
    run.expect_code(8)
        .expect_stderr("cannot load RDB version 12");
    let run = world.restoring(&to, &["--server-version", "new"]).run();
    run.expect_code(2).expect_stderr("is no version");
    world.installed = "redis-8";
    let full = world.sandbox.dir("full");
    std::fs::write(full.join("mine"), "x").unwrap();
    world.restoring(&full, &[]).exits(8);
    assert_eq!(files_below(&full).len(), 1);
    let run = world
        .restoring(&to, &["--backup", "20200101T000000Z-0000"])
        .run();
    assert!(!run.is_success(), "{run}");
    assert!(!to.exists());
}

#[test]
fn r08_tls_is_verified() {
    let (authority, other) = (Authority::new(), Authority::new());
    let own = authority.signs("localhost", LATER);
    let plain = Server::start("redis-7", &[]);
    let world = World::new(&plain);
    drop(plain);
    let file = |name: &str, text: &str| world.sandbox.file(name, text).display().to_string();
    let (ca, other) = (
        file("ca.pem", &authority.pem),
        file("other.pem", &other.pem),
    );
    let certificate = file("server.pem", &own.pem);
    let key = file("server.key", &own.key);
    let server = Server::listening(
        "redis-7",
        "--tls-port",
        &[
            "--port",
            "0",
            "--tls-ca-cert-file",
            &ca,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-replication",
            "yes",
        ],
    );
    server.feed("SET a 1\n");
    let port = server.port();
    let configure = |host: &str, lines: &str| {
        world.configure(&format!(
            "address = \"{host}:{port}\"\nstall_timeout = \"3s\"\n{lines}"
        ));
    };
    let tls = |ca: &str| format!("[redis.cache.tls]\nca_file = \"{ca}\"\n");
    let mutual = format!(
        "{}cert_file = \"{certificate}\"\nkey_file = \"{key}\"\n",
        tls(&ca)
    );
    configure("localhost", &tls(&other));
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 1, "certificate");
    configure("127.0.0.1", &mutual);
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 1, "certificate");
    // The server wants a certificate of this side, too (tls-auth-clients).
    configure("localhost", &tls(&ca));
    let run = world.redis(&["backup", "cache"]).run();
    assert!(!run.is_success(), "{run}");
    assert!(world.ids().is_empty());
    configure("localhost", "");
    let run = world.redis(&["backup", "cache"]).run();
    assert!(!run.is_success(), "{run}");
    configure("localhost", &mutual);
    world.backup();
    // The log comes the same way, and goes on when its receiver was killed.
    let journal = world.sandbox.join("journal");
    let with_journal = format!("receive.journal = \"{}\"\n", journal.display());
    configure("localhost", &(with_journal.clone() + &tls(&other)));
    let run = world.redis(&["receive", "cache"]).run();
    assert!(!run.is_success(), "{run}");
    configure("localhost", &(with_journal + &mutual));
    let running = receiver(&world, &server);
    world.backup();
    confirm(&server, "SET b 2\nINCR b\n", 1);
    let moment = Moment::of(&server);
    running.ended_by(Signal::KILL);
    let running = receiver(&world, &server);
    confirm(&server, "SET c 3\n", 1);
    stop(running);
    let copy = world.restore("copy", &["--target-offset", &moment.target()]);
    let restored = Server::on("redis-7", &copy, &[]);
    assert_eq!(restored.content(), moment.content);
    // R51: its replication would not be encrypted.
    let into = world.redis(&["restore", "cache", "--into", "cache", "--confirm"]);
    let run = into.exits(1);
    run.expect_stderr("reached by TLS")
        .expect_stderr("was not changed");
}
