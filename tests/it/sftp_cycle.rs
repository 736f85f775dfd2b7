//! A whole cycle on an SFTP server with the real programs: what works on a directory works there.

use std::path::{Path, PathBuf};

use pitr::store::{Store as _, get};

use crate::common::reception::{SLOT, archived, lsn};
use crate::common::sftp::SftpServer;
use crate::common::{
    Cluster, Program, Still, Stop, expire_at_once, paths_below, pitr, pitr_archive, pitr_restore,
};
use crate::sealed::keygen;

fn configuration(server: &SftpServer, cluster: &Cluster, name: &str, folder: &Path) -> PathBuf {
    server.sandbox.file(
        name,
        format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\nspool_dir = \"{}\"\n[repositories.far]\n{}",
            cluster.pgdata().display(),
            cluster.conninfo("postgres"),
            server.sandbox.join("spool").display(),
            server.section(folder)
        ),
    )
}

fn with(config: &Path, program: Program) -> Program {
    program.arg("--config").arg(config)
}

#[test]
fn a_whole_cycle_on_sftp() {
    let server = SftpServer::start();
    let mut cluster = Cluster::small(17).create();
    // Neither the repository's directory nor the one above it is there.
    let folder = server.sandbox.join("up/repo");
    let config = configuration(&server, &cluster, "pitr.toml", &folder);
    let run = |args: &[&str]| with(&config, pitr()).args(args).succeed();
    run(&["init", "--quiet"]);
    cluster.append_config("archive_mode", "on");
    let command = with(&config, pitr_archive()).arg("%p");
    cluster.append_config("archive_command", &command.shell());
    cluster.start();
    let client = cluster.client();
    client.sql("create table ledger as select g as id, md5(g::text) as note from generate_series(1, 20000) g");
    let backup = || run(&["backup", "--json"]).id();
    let first = backup();
    client.sql("select pg_create_restore_point('before')");
    client.sql("delete from ledger");
    cluster.archive_now();
    // It warns of other things.
    let doctor = with(&config, pitr()).words("doctor").run();
    doctor.expect_stdout("writable and durable    yes");
    let metrics = run(&["metrics"]).stdout;
    let room = metrics
        .lines()
        .find_map(|line| line.strip_prefix("pitr_repo_free_bytes{repo=\"far\"} "));
    assert!(
        room.is_some_and(|free| free.parse::<f64>().unwrap() > 0.0),
        "{metrics}"
    );
    let to = server.sandbox.join("copy");
    let restore = with(&config, pitr()).words("restore --quiet --to");
    restore.arg(&to).words("--target-name before").succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from ledger"), "20000");
    drop(copy);
    run(&["verify", "--quiet"]);
    backup();
    backup();
    run(&["verify", "--quiet"]);
    with(&config, pitr()).args(expire_at_once()).succeed();
    let packs = |id: &str| {
        let all = paths_below(&folder);
        all.iter()
            .any(|p| p.display().to_string().contains(&format!("/packs/{id}/")))
    };
    assert!(!packs(&first), "what is not kept is deleted");
    run(&["verify", "--quiet"]);
    run(&["repo", "check"]);
    let left = server.store(&folder).irregular().unwrap();
    assert!(left.is_empty(), "{left:?}");
    assert!(
        !cluster.log().contains("pitr-archive:"),
        "{}",
        cluster.log()
    );
    // On the server itself it is a directory.
    let here = pitr().arg("--repository").arg(&folder).arg("info");
    here.succeed().expect_stdout("main");
    // A byte that changes on the server is found.
    let damaged = paths_below(&folder)
        .into_iter()
        .find(|p| p.is_file() && p.display().to_string().contains("/packs/"))
        .unwrap();
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let found = with(&config, pitr()).words("verify --quiet").run();
    assert!(!found.is_success(), "{found}");
}

#[test]
fn s18_s21_the_small_programs_answer_for_sftp_as_for_a_directory() {
    let mut server = SftpServer::start();
    let still = Still::new(17, 1, 2);
    let folder = server.sandbox.join("repo");
    let config = configuration(&server, &still.cluster, "pitr.toml", &folder);
    let init = |config: &Path| with(config, pitr()).words("init --quiet").run();
    // Refused, and nothing is there.
    for denied in ["hardlink", "fsync"] {
        server.configure(&format!("-P {denied}"));
        server.restart();
        init(&config)
            .expect_code(8)
            .expect_stderr(&format!("has no {denied}@openssh.com"));
        assert!(!folder.exists());
    }
    server.configure("");
    server.restart();
    init(&config).success();
    // A place that holds something else is nobody's repository.
    let strange = server.folder("strange");
    std::fs::write(strange.join("file"), b"x").unwrap();
    let other = configuration(&server, &still.cluster, "strange.toml", &strange);
    init(&other).expect_code(8).expect_stderr("not empty");
    let push = |n: usize| {
        with(&config, pitr_archive())
            .arg(format!("pg_wal/{}", still.segments[n]))
            .dir(still.cluster.pgdata())
    };
    let fetch = |name: &str| {
        with(&config, pitr_restore())
            .args([name, "pg_wal/RECOVERYXLOG"])
            .dir(still.cluster.pgdata())
    };
    push(0).succeed();
    push(0).succeed();
    let name = &still.segments[0];
    fetch(name).succeed();
    let fetched = still.wal("RECOVERYXLOG");
    assert!(std::fs::read(&fetched).unwrap() == std::fs::read(still.wal(name)).unwrap());
    std::fs::remove_file(&fetched).unwrap();
    fetch("000000010000000000000099").exits(1);
    // Other bytes under the name: refused, and the first copy stays.
    let store = server.store(&folder);
    let path = still.wal(name);
    let own = std::fs::read(&path).unwrap();
    let mut changed = own.clone();
    let end = changed.len() - 100;
    changed[end] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    push(0).exits(20).expect_stderr("A120");
    std::fs::write(&path, &own).unwrap();
    fetch(name).succeed();
    assert!(std::fs::read(&fetched).unwrap() == own);
    // The disk is gone: neither stored, nor absent.
    let marker = pitr::store::Key::new(pitr::store::MARKER).unwrap();
    assert!(get(&store, &marker, 1 << 20).unwrap().is_some());
    let away = server.sandbox.join("away");
    std::fs::rename(&folder, &away).unwrap();
    server.folder("repo");
    push(1).exits(36);
    fetch(name).exits(208);
    std::fs::remove_dir(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    // The server is gone.
    server.stop();
    let hasty = std::fs::read_to_string(&config).unwrap() + "retry_budget = \"1s\"\n";
    let hasty = server.sandbox.file("hasty.toml", hasty);
    let gone = with(&hasty, pitr_archive()).arg(format!("pg_wal/{}", still.segments[1]));
    let gone = gone.dir(still.cluster.pgdata()).run();
    gone.expect_code(30).expect_stderr("Connection refused");
    server.restart();
    push(1).succeed();
}

/// Adds a part to a configuration, as another file.
fn and(server: &SftpServer, config: &Path, name: &str, more: &str) -> PathBuf {
    let text = std::fs::read_to_string(config).unwrap();
    server.sandbox.file(name, format!("{text}{more}"))
}

/// Two hosts of an encrypted repository: one that only writes, and one that reads.
fn hosts(server: &SftpServer, config: &Path) -> (PathBuf, PathBuf) {
    let keys = server.sandbox.join("keys");
    keygen(&keys, &["ops", "escrow"]).succeed();
    let writes = format!(
        "[repositories.far.encryption]\nkey_set = \"{}\"\nstate_dir = \"{}\"\n",
        keys.join("writer.key").display(),
        server.sandbox.join("state").display()
    );
    let reads = format!(
        "[repositories.far.encryption]\nkey_file = \"{}\"\n",
        keys.join("ops.key").display()
    );
    (
        and(server, config, "writer.toml", &writes),
        and(server, config, "reader.toml", &reads),
    )
}

/// The sum of a table on a restored copy.
fn sum_of_copy(config: &Path, to: &Path, args: &[&str]) -> String {
    let restore = with(config, pitr()).words("restore --quiet --to");
    restore.arg(to).args(args).succeed();
    let copy = Cluster::open(17, to).without_fsync().promoted();
    copy.value(SUM)
}

const SUM: &str =
    "select count(*) || ' ' || md5(string_agg(note, '' order by id, note)) from ledger";

#[test]
fn an_encrypted_repository_on_sftp_takes_incrementals_of_a_host_that_only_writes() {
    let server = SftpServer::start();
    let mut cluster = Cluster::small(17).config("autovacuum", "off").create();
    let folder = server.sandbox.join("repo");
    let config = configuration(&server, &cluster, "pitr.toml", &folder);
    let (writer, reader) = hosts(&server, &config);
    let on = |config: &Path, args: &[&str]| with(config, pitr()).args(args).run();
    on(&writer, &["init", "--quiet"]).success();
    cluster.append_config("archive_mode", "on");
    let command = with(&writer, pitr_archive()).arg("%p");
    cluster.append_config("archive_command", &command.shell());
    cluster.start();
    cluster.sql("create table ledger as select g as id, md5(g::text) as note from generate_series(1, 20000) g");
    let take = |method: &str| {
        let args = ["backup", "--json", "--incremental", "--method", method];
        on(&writer, &args).success()
    };
    let kind = |run: &crate::common::Run| run.json()["kind"].as_str().unwrap().to_owned();
    assert_eq!(kind(&take("local")), "full");
    cluster.sql("update ledger set note = note || 'x' where id % 100 = 0");
    let second = take("local");
    assert_eq!(kind(&second), "incremental", "{second}");
    assert!(!second.stderr.contains("every page is read"), "{second}");
    let at_second = cluster.value(SUM);
    cluster.sql("select pg_create_restore_point('second')");
    cluster.sql("update ledger set note = note || 'y' where id % 70 = 0");
    // The connection breaks while the third is taken.
    let third = || with(&writer, pitr()).words("backup --json --incremental");
    let mut running = third().words("--max-rate 8MiB").spawn();
    let mut killed = 0;
    while killed < 2 && !running.is_done() {
        std::thread::sleep(std::time::Duration::from_millis(500));
        killed += server.kill_sessions();
    }
    let mut run = running.wait();
    assert!(killed > 0, "{run}");
    // A sync that was on its way is not asked for again (S20): the command is.
    if run.stdout.contains("the answer to a sync was lost") {
        run = third().run();
    }
    let third = run.success();
    assert_eq!(kind(&third), "incremental", "{third}");
    cluster.archive_now();
    on(&reader, &["verify", "--quiet"]).success();
    let (second, third) = (second.id(), third.id());
    let expected = cluster.value(SUM);
    let to = |name: &str| server.sandbox.dir(name).join("data");
    let args = ["--backup", &second, "--target-name", "second"];
    assert_eq!(sum_of_copy(&reader, &to("second"), &args), at_second);
    let args = ["--backup", &third];
    assert_eq!(sum_of_copy(&reader, &to("third"), &args), expected);
    let left = server.store(&folder).irregular().unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// The sessions of the SFTP server die again and again, and then the server of the database.
#[test]
fn s20_a_receiver_brings_every_commit_into_an_encrypted_repository_on_sftp() {
    let server = SftpServer::start();
    let mut cluster = Cluster::small(17).start();
    let folder = server.sandbox.join("repo");
    let config = configuration(&server, &cluster, "pitr.toml", &folder);
    let journal = server.sandbox.join("journal");
    let named = format!("{} application_name={SLOT}", cluster.conninfo("postgres"));
    crate::common::edit(&config, &cluster.conninfo("postgres"), &named);
    let receive = format!(
        "[clusters.main.receive]\nslot = \"{SLOT}\"\njournal = \"{}\"\n",
        journal.display()
    );
    let config = and(&server, &config, "receive.toml", &receive);
    let (writer, reader) = hosts(&server, &config);
    with(&writer, pitr()).words("init --quiet").succeed();
    let on = |args: &[&str]| with(&reader, pitr()).args(args).run();
    cluster.sql("create table ledger (id int, note text)");
    let mut receiver = with(&reader, pitr()).words("receive --create-slot").spawn();
    let client = cluster.client();
    let streaming =
        format!("select count(*) from pg_stat_replication where application_name = '{SLOT}'");
    receiver.until("it streams", || client.value(&streaming) == "1");
    on(&["backup", "--json"]).success();
    let mut killed = 0;
    for round in 0..6 {
        client.sql(&format!(
            "insert into ledger select g, md5((g * {round})::text) from generate_series(1, 8000) g"
        ));
        killed += server.kill_sessions();
    }
    assert!(killed > 0);
    let incremental = on(&["backup", "--json", "--incremental"]).success();
    assert_eq!(incremental.json()["kind"], "incremental");
    client.sql("insert into ledger values (0, 'the last one')");
    let end = lsn(&client.value("select pg_current_wal_flush_lsn()"));
    let expected = client.value(SUM);
    receiver.until("the repository holds everything", || {
        archived(&journal).is_some_and(|at| at >= end)
    });
    drop(client);
    cluster.stop(Stop::Immediate);
    receiver.ended_by(rustix::process::Signal::TERM);
    on(&["verify", "--quiet"]).success();
    let to = server.sandbox.dir("copy").join("data");
    assert_eq!(sum_of_copy(&reader, &to, &[]), expected);
}
