//! `pitr erasure`: what was erased in production is erased from a restored copy before anybody connects to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pitr::pg::time::TimestampTz;
use pitr::repo::erasure::{self, Erasure};
use pitr::repo::layout::ClusterLayout;
use pitr::store::file::FileStore;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::s3::peer::Peer;
use crate::common::{
    Cluster, Program, Run, Sandbox, Site, Stop, bin, files_below, keep_one, user, wait_until,
};
use crate::drill::Outside;
use crate::per_major;
use crate::s3_cycle::Bucketed;
use crate::sealed::Sealed;
use crate::several::flip;

pub const ERASE_ONE: &str = "delete from public.person where id = 1";

/// A script that goes on for long once it has made a file.
pub fn slow(begun: &Path) -> String {
    let begun = begun.display();
    format!("{ERASE_ONE}; copy (select 1) to '{begun}'; select pg_sleep(600)")
}

/// A shop that was backed up with a person who was erased later.
struct Shop {
    cluster: Cluster,
    folder: Sandbox,
    config: PathBuf,
    /// The configuration of the host that restores.
    reader: PathBuf,
    _site: Option<Site>,
}

impl Shop {
    fn plain(major: u32) -> Shop {
        let builder = Cluster::small(major);
        let builder = builder.config("max_prepared_transactions", 3);
        let builder = builder.config("track_commit_timestamp", "on");
        let (site, cluster) = Site::with_cluster_of(builder);
        cluster.sql("create table later (n int)");
        let config = site.config().to_owned();
        Shop::of(cluster, config.clone(), config, Some(site))
    }

    fn of(cluster: Cluster, config: PathBuf, reader: PathBuf, site: Option<Site>) -> Shop {
        cluster.sql("create table person (id int primary key)");
        cluster.sql("create table sale (person int references person on delete cascade)");
        cluster.sql("insert into person select generate_series(1, 9)");
        cluster.sql("insert into sale select generate_series(1, 9)");
        let shop = Shop {
            cluster,
            folder: Sandbox::new("erased"),
            config,
            reader,
            _site: site,
        };
        shop.pitr(&["backup", "--quiet"]).succeed();
        shop.cluster.sql("insert into person values (10)");
        shop.point("before");
        shop
    }

    fn point(&self, name: &str) {
        let sql = format!("select pg_create_restore_point('{name}')");
        self.cluster.sql(&sql);
        self.cluster.archive_now();
    }

    fn pitr(&self, args: &[&str]) -> Program {
        let program = crate::common::pitr().arg("--config").arg(&self.config);
        program.args(args)
    }

    fn read(&self, args: &[&str]) -> Program {
        let program = crate::common::pitr().arg("--config").arg(&self.reader);
        program.args(args)
    }

    /// Records a script; its name.
    fn add(&self, sql: &str) -> String {
        let args = ["erasure", "add", "--json", "--database", "postgres"];
        let add = self.pitr(&args).words("--sql -").stdin(sql);
        let run = add.args(["--reason", "request 4711"]).succeed();
        run.id()
    }

    fn to(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn restore(&self, point: &str) -> Run {
        let restore = self.read(&["restore", "--target-name", point, "--to"]);
        restore.arg(self.to(point)).succeed()
    }

    fn apply(&self, point: &str, more: &[&str]) -> Program {
        let initdb = bin(self.cluster.major(), "initdb").unwrap();
        let apply = self.read(&["erasure", "apply", "--pgdata"]);
        let apply = apply.arg(self.to(point)).arg("--bin");
        apply.arg(initdb.parent().unwrap()).args(more)
    }

    fn open(&self, point: &str) -> Cluster {
        let copy = Cluster::open(self.cluster.major(), self.to(point));
        copy.without_fsync().create()
    }

    fn erasures(&self) -> Vec<Value> {
        let list = self.read(&["erasure", "list", "--json"]).succeed();
        list.json()["erasures"].as_array().unwrap().clone()
    }
}

fn count(cluster: &Cluster, of: &str) -> String {
    cluster.value(&format!("select count(*) from {of}"))
}

/// The outcome of each erasure, by its name.
fn outcomes(run: &Run) -> Vec<(String, Value)> {
    let json = run.json();
    let all = json["erasures"].as_array().unwrap().iter();
    all.map(|one| {
        (
            one["id"].as_str().unwrap().to_owned(),
            one["outcome"].clone(),
        )
    })
    .collect()
}

fn a_copy_repeats_what_was_erased_after_its_moment(major: u32) {
    let shop = Shop::plain(major);
    let before = shop.restore("before");
    assert!(!before.stdout.contains("erasure"), "{before}");
    shop.cluster.sql(ERASE_ONE);
    let args = ["erasure", "add", "--database", "postgres", "--sql", "-"];
    let add = shop.pitr(&args).stdin(ERASE_ONE).succeed();
    add.expect_stderr("is not encrypted");
    let id = shop.erasures()[0]["id"].as_str().unwrap().to_owned();
    let recorded = &shop.erasures()[0]["erasure"];
    assert_eq!(recorded["timeline"], 1, "{recorded}");
    shop.point("after");

    // A copy that has a prepared transaction starts only where there is room for one.
    shop.cluster
        .sql("begin; insert into later values (1); prepare transaction 'kept'");
    shop.point("prepared");
    std::fs::remove_dir_all(shop.to("before")).unwrap();
    let told = shop.restore("before");
    told.expect_stdout("This copy lacks 1 of 1 erasure recorded")
        .expect_stdout("pitr erasure apply");
    let signal = shop.to("before").join("recovery.signal");

    // Without --confirm nothing is started.
    let plan = shop.apply("before", &[]).exits(8);
    plan.expect_stdout(&id)
        .expect_stderr("--confirm is not given")
        .expect_stderr("nothing proves who recorded");
    shop.apply("before", &["--dry-run"]).succeed();
    assert!(signal.exists());

    let applied = shop.apply("before", &["--confirm", "--json"]).run();
    let applied = applied.success();
    assert_eq!(outcomes(&applied), [(id.clone(), "applied".into())]);
    let data = shop.to("before");
    assert!(!signal.exists() && !data.join("postmaster.pid").exists());
    assert!(!data.join("postmaster.opts").exists());
    assert!(data.join("pg_wal/pitr.guard").exists());
    let status = data.join("pg_wal/archive_status");
    assert!(!status.join("00000002.history.ready").exists());
    let auto = std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(auto.contains("archive_mode = 'off'"), "{auto}");
    assert!(!auto.contains("recovery_target"), "{auto}");
    let mut copy = shop.open("before");
    copy.start();
    assert_eq!(count(&copy, "person where id = 1"), "0");
    assert_eq!(count(&copy, "sale where person = 1"), "0", "it cascades");
    assert_eq!(count(&copy, "person"), "9");
    let times = "person where pg_xact_commit_timestamp(xmin) is not null";
    assert_eq!(count(&copy, times), "9", "the server keeps them");

    // Somebody may be connected now.
    let running = shop.apply("before", &["--confirm"]).run();
    running.expect_code(8).expect_stderr("a server runs on");
    copy.stop(Stop::Fast);
    let again = shop.apply("before", &["--confirm", "--json"]).run();
    assert_eq!(outcomes(&again.success()), [(id.clone(), "applied".into())]);

    // A copy that was recovered beyond it does not need it.
    let after = shop.restore("after");
    assert!(!after.stdout.contains("This copy lacks"), "{after}");
    let run = shop.apply("after", &["--confirm", "--json"]).succeed();
    assert_eq!(outcomes(&run), [(id, "contained".into())]);

    shop.restore("prepared");
    for more in [&["--confirm"][..], &["--confirm", "--for-adoption"]] {
        shop.apply("prepared", more).succeed();
    }
    let status = shop.to("prepared").join("pg_wal/archive_status");
    let waits = std::fs::read_dir(status).unwrap().count();
    assert!(waits > 0, "the WAL waits for the archive");

    // The history of the timeline that began in private reaches the archive.
    let adopt = shop.pitr(&["adopt", "--confirm", "--pgdata"]).arg(&data);
    adopt.succeed();
    let refused = shop.apply("before", &["--confirm"]).run();
    refused
        .expect_code(8)
        .expect_stderr("is not a restored copy");
    copy.start();
    copy.archive_now();
    assert_eq!(count(&copy, "person"), "9");
    drop(copy);
    shop.pitr(&["verify", "--quiet"]).succeed();
}
per_major!(a_copy_repeats_what_was_erased_after_its_moment, v13 v15 v17 v19);

#[test]
fn a_script_that_fails_is_named_and_keeps_no_other_from_being_run() {
    let shop = Shop::plain(17);
    shop.cluster.sql("delete from person where id < 4");
    let first = shop.add("delete from person where id = 2; delete from nowhere");
    let second = shop.add("delete from person where id = 3; commit");
    let third = shop.add(ERASE_ONE);
    shop.restore("before");
    let run = shop.apply("before", &["--confirm"]).exits(1);
    let run = run
        .expect_stdout(&format!("{first} in database postgres: failed"))
        .expect_stdout("ends its transaction itself")
        .expect_stdout(&format!("{third} in database postgres: applied"))
        .expect_stderr("2 of 3 erasures failed");
    run.expect_stderr("let nobody connect");
    let mut copy = shop.open("before");
    copy.start();
    assert_eq!(count(&copy, "person where id = 1"), "0");
    assert_eq!(count(&copy, "person where id = 2"), "1", "rolled back");
    copy.stop(Stop::Fast);

    let plan = shop.pitr(&["erasure", "remove", &first]).run();
    let plan = plan.expect_code(8);
    assert!(!plan.stderr.contains("--dry-run"), "{plan}");
    assert_eq!(shop.erasures().len(), 3);
    for id in [&first, &second] {
        let remove = ["erasure", "remove", id, "--confirm"];
        shop.pitr(&remove).succeed();
    }
    let none = shop.pitr(&["erasure", "show", &first]).run();
    none.expect_code(2).expect_stderr("does not exist");
    let shown = shop.pitr(&["erasure", "show", &third]).succeed();
    assert_eq!(shown.stdout.trim(), ERASE_ONE);
    shop.apply("before", &["--confirm"]).succeed();

    // Nothing of this is a script.
    for (sql, why) in [
        ("x".repeat(70_000).into_bytes(), "64 KiB"),
        (vec![0xFF], "not UTF-8"),
        (b" \n".to_vec(), "is empty"),
        (b"delete from a;\n\\connect other\n".to_vec(), "backslash"),
        (b"BEGIN; delete from a; commit".to_vec(), "a transaction"),
    ] {
        let args = ["erasure", "add", "--database", "postgres", "--sql", "-"];
        let refused = shop.pitr(&args).stdin(sql).run();
        refused.expect_code(2).expect_stderr(why);
    }
    let nowhere = ["erasure", "add", "--database", "nowhere", "--sql", "-"];
    let refused = shop.pitr(&nowhere).stdin(ERASE_ONE).run();
    refused.expect_code(2).expect_stderr("has no database");
    // A copy that pauses takes no writes.
    let pause = ["--target-action", "pause", "--to"];
    let restore = shop.read(&["restore", "--target-name", "before"]);
    let paused = restore.args(pause).arg(shop.to("paused"));
    paused.succeed();
    let refused = shop.apply("paused", &["--confirm"]).run();
    refused.expect_code(8).expect_stderr("promotion");
    assert!(shop.to("paused").join("recovery.signal").exists());
}

/// Names of databases change, and timelines and copies have numbers and names that others have, too.
#[test]
fn a_script_finds_its_own_database_and_runs_on_no_other_cluster() {
    let mut shop = Shop::plain(17);
    shop.cluster.sql("create database crm");
    let crm = shop.cluster.client_of("crm");
    crm.sql("create table person (id int); insert into person values (1)");
    drop(crm);
    shop.point("both");
    shop.cluster.sql("alter database crm rename to sales");
    // The server has another timeline now, which a promotion began.
    shop.cluster.stop(Stop::Fast);
    shop.cluster.append_config("restore_command", "/bin/false");
    shop.cluster.touch("recovery.signal");
    shop.cluster.start();
    let args = ["erasure", "add", "--database", "sales", "--sql", "-"];
    shop.pitr(&args).stdin("delete from person").succeed();
    let erased = shop.erasures()[0].clone();
    let id = erased["id"].as_str().unwrap().to_owned();
    assert_eq!(erased["erasure"]["timeline"], 2, "{erased}");
    let shown = shop.pitr(&["erasure", "show", &id, "--json"]).run();
    let ancestors = shown.success().json()["ancestors"].clone();
    assert_eq!(ancestors[0]["timeline"], 1, "{ancestors}");

    shop.restore("both");
    let run = shop.apply("both", &["--confirm", "--json"]).run();
    assert_eq!(outcomes(&run.success()), [(id.clone(), "applied".into())]);
    let mut copy = shop.open("both");
    copy.start();
    let left = copy.client_of("crm");
    assert_eq!(left.value("select count(*) from person"), "0");
    drop(left);
    copy.stop(Stop::Fast);

    // The backup is older than the database.
    shop.restore("before");
    let run = shop.apply("before", &["--confirm", "--json"]).run();
    let run = run.expect_code(10).expect_stderr("lacks a database");
    assert_eq!(outcomes(&run), [(id.clone(), "no_database".into())]);
    let skip = ["--confirm", "--json", "--skip", &id];
    let run = shop.apply("before", &skip).succeed();
    assert_eq!(outcomes(&run), [(id, "skipped".into())]);

    let guard = shop.to("before").join("pg_wal/pitr.guard");
    let text = std::fs::read_to_string(&guard).unwrap();
    let identifier = shop.cluster.system_identifier().to_string();
    std::fs::write(&guard, text.replace(&identifier, "7")).unwrap();
    let other = shop.apply("before", &["--confirm"]).run();
    other.expect_stderr("the guard is of system identifier 7");
}

#[test]
fn an_encrypted_repository_hides_scripts_and_refuses_what_others_put_there() {
    let (sealed, cluster) = Sealed::archived(17);
    let (writer, reader) = (sealed.config("writer"), sealed.config("reader"));
    let shop = Shop::of(cluster, writer, reader, None);
    shop.cluster.sql(ERASE_ONE);
    let id = shop.add(ERASE_ONE);
    let folder = sealed.folder("erasures");
    let object = folder.join(&id);
    let bytes = std::fs::read(&object).unwrap();
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(!has(&bytes, "person") && !has(&bytes, "4711"));
    shop.restore("before")
        .expect_stdout("This copy lacks 1 of 1");
    let signal = shop.to("before").join("recovery.signal");
    let refuses = |why: &str| {
        let run = shop.apply("before", &["--confirm"]).exits(1);
        run.expect_stderr("cannot be read").expect_stderr(why);
        assert!(signal.exists(), "nothing was started");
    };

    // Somebody who may create objects, without the MAC key.
    let other = id.replace('a', "b").replace('0', "a");
    let forged = folder.join(format!(
        "20261120T064049.123456Z-{}",
        &other[other.len() - 16..]
    ));
    let forged_id = forged.file_name().unwrap().to_str().unwrap().to_owned();
    let put = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).unwrap();
        user::own(path);
    };
    put(&forged, b"{\"format\":1,\"kind\":\"erasure\"}");
    refuses(&forged_id);
    put(&forged, &bytes);
    refuses(&forged_id);
    let remove = ["erasure", "remove", &forged_id, "--confirm"];
    shop.read(&remove).succeed();

    let mut damaged = bytes.clone();
    damaged[200] ^= 1;
    put(&object, &damaged);
    refuses(&id);
    let verify = shop.read(&["verify", "--quiet"]).run();
    verify.expect_code(4).expect_stdout(&id);
    put(&object, &bytes);
    let run = shop.apply("before", &["--confirm"]).succeed();
    assert!(!run.stderr.contains("nothing proves"), "{run}");
    let mut copy = shop.open("before");
    copy.start();
    assert_eq!(count(&copy, "person where id = 1"), "0");

    // A janitor without the key cannot read its position, and its time alone says too little.
    let old = SystemTime::now() - Duration::from_secs(7200);
    let file = std::fs::File::options().write(true).open(&object).unwrap();
    file.set_modified(old).unwrap();
    shop.pitr(&["backup", "--quiet"]).succeed();
    shop.read(&["verify", "--quiet"]).succeed();
    let expire = keep_one(&["--grace", "0s", "--confirm", "--quiet"]);
    shop.pitr(&expire).succeed();
    assert!(object.exists(), "nobody knows which backups have it");
    shop.read(&expire).succeed();
    assert!(!object.exists(), "every backup has it");
}

#[test]
fn sync_copies_erasures_and_expire_lets_those_go_that_no_backup_needs() {
    let shop = Shop::plain(17);
    let site = shop._site.as_ref().unwrap();
    site.add_repository("second", "");
    shop.cluster.sql(ERASE_ONE);
    let args = ["erasure", "add", "--database", "postgres", "--sql", "-"];
    let add = shop.pitr(&args).words("--repository local");
    add.stdin(ERASE_ONE).succeed();
    let id = shop.erasures()[0]["id"].as_str().unwrap().to_owned();
    let held_by = || shop.erasures()[0]["repositories"].clone();
    assert_eq!(held_by(), serde_json::json!(["local"]));
    shop.pitr(&["repo", "sync", "--all", "--quiet"]).succeed();
    assert_eq!(held_by(), serde_json::json!(["local", "second"]));
    let only = ["erasure", "remove", &id, "--confirm", "--repository"];
    shop.pitr(&only).arg("local").succeed();
    assert_eq!(held_by(), serde_json::json!(["second"]), "one is enough");
    shop.pitr(&["repo", "sync", "--all", "--quiet"]).succeed();

    // An erasure from before the first backup is needed by none.
    let store = FileStore::open(site.repository(), 1).unwrap();
    let layout = ClusterLayout::new("main", site.system_identifier()).unwrap();
    let old = SystemTime::now() - Duration::from_secs(7200);
    let erasure = Erasure {
        time: TimestampTz::from_system_time(old),
        host: "db1".into(),
        program: "pitr".into(),
        recorded_by: "ann".into(),
        reason: None,
        database: "postgres".into(),
        database_oid: None,
        timeline: None,
        lsn: None,
        ancestors: Vec::new(),
        sql: ERASE_ONE.into(),
    };
    let past = erasure::write(&store, &layout, &erasure, 5).unwrap();
    let path = site.cluster_folder().join("erasures").join(&past);
    let touch = |path: &Path, time| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(time).unwrap();
    };
    let expire = || {
        let args = keep_one(&["--grace", "0s", "--confirm", "--quiet"]);
        shop.pitr(&args).words("--repository local").succeed();
    };
    // The store says that it came later than it says itself.
    expire();
    assert_eq!(shop.erasures().len(), 2);
    touch(&path, old);
    expire();
    let left = shop.erasures();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["id"], id.as_str(), "a backup is older");
    // Its position lies within every backup that is left: no clock is asked.
    shop.pitr(&["backup", "--quiet"]).succeed();
    shop.pitr(&["verify", "--quiet"]).succeed();
    expire();
    let in_first = shop.pitr(&["erasure", "list", "--json", "--repository", "local"]);
    let in_first = in_first.succeed().json();
    assert_eq!(in_first["erasures"], serde_json::json!([]), "{in_first}");
    shop.pitr(&["verify", "--quiet"]).succeed();
}

#[test]
fn x58_an_erasure_stays_while_an_older_backup_in_another_repository_lacks_it() {
    let shop = Shop::plain(17);
    let site = shop._site.as_ref().unwrap();
    let second = site.add_repository("second", "required = false\n");
    let sync = [
        "repo", "sync", "--from", "local", "--to", "second", "--quiet",
    ];
    shop.pitr(&sync).succeed();
    let away = second.with_extension("away");
    std::fs::rename(&second, &away).unwrap();
    shop.cluster.sql(ERASE_ONE);
    let local = |args: &[&str]| shop.pitr(args).words("--repository local");
    let add = local(&["erasure", "add", "--database", "postgres", "--sql", "-"]);
    add.stdin(ERASE_ONE).succeed();
    // Each backup that is left here has it.
    local(&["backup", "--quiet"]).succeed();
    local(&["verify", "--quiet"]).succeed();
    let expire = || {
        local(&keep_one(&["--grace", "0s", "--confirm"]))
            .run()
            .success()
    };
    let held = || {
        let list = local(&["erasure", "list", "--json"]).succeed().json();
        list["erasures"].as_array().unwrap().len()
    };
    expire().expect_stderr("ask repository \"second\"");
    assert_eq!(held(), 1, "nobody knows what the other one has");
    std::fs::rename(&away, &second).unwrap();
    expire();
    assert_eq!(held(), 1, "its backup is older");
    // Nobody can tell whether a backup needs it whose root is damaged.
    let below = files_below(&second);
    let roots = below.iter().filter(|name| name.ends_with("/manifest"));
    let roots: Vec<&String> = roots.collect();
    assert!(!roots.is_empty());
    let flip_all = || roots.iter().for_each(|root| flip(&second, root));
    flip_all();
    expire().expect_stderr("repository \"second\" has backups that cannot be read");
    assert_eq!(held(), 1);
    flip_all();
    shop.pitr(&sync).succeed();
    expire();
    assert_eq!(held(), 0, "it has the erasure itself");
}

#[test]
fn a_run_that_is_killed_is_repeated_and_two_do_not_run_at_once() {
    let shop = Shop::plain(17);
    shop.cluster.sql(ERASE_ONE);
    let begun = shop.to("begun");
    let slow = shop.add(&slow(&begun));
    shop.restore("before");
    let pid_file = shop.to("before").join("postmaster.pid");
    let running = shop.apply("before", &["--confirm"]).spawn();
    wait_until("the script runs in private", || begun.exists());
    let second = shop.apply("before", &["--confirm"]).run();
    second.expect_code(7).expect_stderr("another process");
    // Nobody else gets in: no TCP, and a socket in a folder of its own.
    let text = std::fs::read_to_string(&pid_file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[4].contains("/pitr-drill-") && lines[5].is_empty(),
        "{text}"
    );
    running.ended_by(Signal::KILL);
    let server = format!("/proc/{}", lines[0]);
    assert!(Path::new(&server).exists(), "the server was left behind");

    shop.pitr(&["erasure", "remove", &slow, "--confirm"])
        .succeed();
    let quick = shop.add(ERASE_ONE);
    let run = shop.apply("before", &["--confirm", "--json"]).succeed();
    assert_eq!(outcomes(&run), [(quick, "applied".into())]);
    assert!(!Path::new(lines[4]).exists(), "{}", lines[4]);
    // Nobody may have taken note of its end, but it has no directory any more.
    assert!(std::fs::read_link(format!("{server}/cwd")).is_err());
    let mut copy = shop.open("before");
    copy.start();
    assert_eq!(count(&copy, "person where id = 1"), "0");
    assert_eq!(count(&copy, "person"), "9");
}

/// A trigger that calls another system fires, and finds no network. Recovery has a network.
fn finds_no_network(shop: &Shop) {
    let outside = Outside::new();
    outside.is_called_by(&shop.cluster);
    shop.cluster.sql("create function calls() returns trigger language plpgsql as $$ begin execute format('select public.%I()', tg_argv[0]); return null; end $$");
    let fires = |on: &str, function: &str| {
        shop.cluster.sql(&format!("create trigger calls after delete on {on} for each row execute function calls('{function}')"));
    };
    fires("person", "reach");
    fires("sale", "reach_by_dblink");
    shop.point("hooked");
    let failing = ["person where id = 10", "sale where person = 2"];
    let failing = failing.map(|rows| shop.add(&format!("delete from public.{rows}")));
    let alone =
        "do $$ begin if public.networks() > 0 then raise 'it has a network'; end if; end $$";
    let quiet = "alter table public.person disable trigger calls; alter table public.sale disable trigger calls";
    let loud = "alter table public.person enable trigger calls; alter table public.sale enable trigger calls";
    let works = shop.add(&format!("{quiet}; {ERASE_ONE}; {loud}; {alone}"));

    shop.restore("hooked");
    let run = shop.apply("hooked", &["--confirm"]).exits(1);
    outside.was_not_reached();
    let run = run
        .expect_stdout(&format!("{works} in database postgres: applied"))
        .expect_stderr("2 of 3 erasures failed");
    for (id, why) in failing.iter().zip(["program", "could not establish"]) {
        let told = format!("{id} in database postgres: failed");
        let line = run.stdout.lines().find(|line| line.starts_with(&told));
        let line = line.unwrap_or_default();
        assert!(line.contains(why), "{run}");
    }
    let mut copy = shop.open("hooked");
    copy.start();
    assert_eq!(count(&copy, "person"), "9");
    assert_eq!(count(&copy, "sale"), "8");
}

fn a_script_finds_no_network(major: u32) {
    finds_no_network(&Shop::plain(major));
}
per_major!(a_script_finds_no_network, v13 v17);

#[test]
fn a_script_finds_no_network_though_recovery_reads_from_a_bucket() {
    let builder = Cluster::small(18);
    let (site, cluster) = Bucketed::with_cluster(builder, Peer::start(), "");
    let config = || site.config.clone();
    finds_no_network(&Shop::of(cluster, config(), config(), None));
}

impl Shop {
    /// A command that makes a clone of the moment before the erasure.
    fn at(&self, point: &str, args: &[&str]) -> Program {
        let initdb = bin(self.cluster.major(), "initdb").unwrap();
        let folder = initdb.parent().unwrap();
        let client = bin(self.cluster.major(), "pg_dump").unwrap();
        let client = client.parent().unwrap().display();
        let path = format!(
            "{client}:{}:/usr/bin:/bin:/usr/sbin:/sbin",
            folder.display()
        );
        let program = self.read(args).args(["--target-name", point]);
        program.env("PATH", path)
    }

    /// Asks a clone of a moment.
    fn asked(&self, point: &str, sql: &str, more: &[&str]) -> Run {
        let below = self.folder.dir("clones");
        let query = self.at(point, &["query", "--csv", sql]).args(more);
        query.arg("--dir").arg(below).run()
    }
}

const PERSONS: &str = "select count(*) as n from person";

fn r92_a_clone_repeats_what_was_erased_before_somebody_connects(major: u32) {
    crate::require_fuse!("r92_a_clone_repeats_what_was_erased_before_somebody_connects");
    let shop = Shop::plain(major);
    shop.cluster.sql(ERASE_ONE);
    let id = shop.add(ERASE_ONE);
    shop.point("after");
    // Anybody who may create objects could have recorded it: the operator says whether it is run.
    let refused = shop.asked("before", PERSONS, &[]).expect_code(8);
    refused
        .expect_stderr("nothing proves who recorded it")
        .expect_stderr("--unproven-erasures");
    let allowed = ["--unproven-erasures"];
    let run = shop.asked("before", PERSONS, &allowed).success();
    assert_eq!(run.stdout, "n\n9\n", "{run}");
    run.expect_stderr("1 erasure of the list were repeated here");
    let sales = "select count(*) as n from sale where person = 1";
    let run = shop.asked("before", sales, &allowed).success();
    assert_eq!(run.stdout, "n\n0\n", "it cascades: {run}");
    let run = shop.asked("before", PERSONS, &["--skip-erasure", &id]);
    assert_eq!(run.success().stdout, "n\n10\n");
    let run = shop.asked("after", PERSONS, &[]).success();
    assert_eq!(run.stdout, "n\n9\n", "it has it: {run}");
    assert!(!run.stderr.contains("repeated"), "{run}");

    // A clone that serves others, over the network of this host, too.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let below = shop.folder.dir("clones");
    let clone = shop.at("before", &["clone", "--json", "--port", &port]);
    let clone = clone.args(allowed).arg("--dir").arg(&below);
    let state = clone.succeed().json();
    let connection = state["connection"].as_str().unwrap();
    let client = crate::common::Client::connect(connection).unwrap();
    assert_eq!(client.value(PERSONS), "9");
    assert!(connection.contains(&port), "{connection}");
    std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    drop(client);
    let stop = ["clone", "stop", state["id"].as_str().unwrap(), "--dir"];
    shop.read(&stop).arg(&below).succeed();

    // Tables that are carried away have no row of it.
    let file = shop.to("rescued.dump");
    let rescue = [
        "rescue",
        "--table",
        "public.person",
        "--database",
        "postgres",
    ];
    let rescue = shop.at("before", &rescue).args(allowed).arg("--dir");
    rescue.arg(&below).arg("--to").arg(&file).succeed();
    let restore = bin(major, "pg_restore").unwrap();
    let mut told = user::command(restore);
    let told = told.arg("--data-only").arg("-f-").arg(&file);
    let told = told.output().unwrap();
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(
        text.contains("\n2\n") && text.contains("\n10\n") && !text.contains("\n1\n"),
        "{text}"
    );

    // One that fails keeps everybody out.
    shop.add("delete from public.nothing");
    let run = shop.asked("before", PERSONS, &allowed).expect_code(1);
    assert_eq!(run.stdout, "");
    run.expect_stderr("failed")
        .expect_stderr("Nobody could connect")
        .expect_stderr("--skip-erasure");
    assert_eq!(std::fs::read_dir(&below).unwrap().count(), 0, "all is gone");
}
per_major!(r92_a_clone_repeats_what_was_erased_before_somebody_connects, v13 v17 v19);

/// A trigger that calls another system finds no network, though the clone's WAL comes over one.
#[test]
fn a_script_of_a_clone_finds_no_network_though_recovery_reads_from_a_bucket() {
    crate::require_fuse!(
        "a_script_of_a_clone_finds_no_network_though_recovery_reads_from_a_bucket"
    );
    let builder = Cluster::small(18);
    let (site, cluster) = Bucketed::with_cluster(builder, Peer::start(), "");
    let config = || site.config.clone();
    let shop = Shop::of(cluster, config(), config(), None);
    let outside = Outside::new();
    outside.is_called_by(&shop.cluster);
    shop.point("hooked");
    let alone =
        "do $$ begin if public.networks() > 0 then raise 'it has a network'; end if; end $$";
    shop.add(&format!("{ERASE_ONE}; {alone}"));
    let run = shop.asked("hooked", PERSONS, &["--unproven-erasures"]);
    assert_eq!(run.success().stdout, "n\n9\n");
    shop.add("select public.reach()");
    let run = shop.asked("hooked", PERSONS, &["--unproven-erasures"]);
    run.expect_code(1).expect_stderr("failed");
    outside.was_not_reached();
}

#[test]
fn an_encrypted_repository_proves_what_a_clone_repeats() {
    crate::require_fuse!("an_encrypted_repository_proves_what_a_clone_repeats");
    let (sealed, cluster) = Sealed::archived(17);
    let (writer, reader) = (sealed.config("writer"), sealed.config("reader"));
    let shop = Shop::of(cluster, writer, reader, None);
    shop.cluster.sql(ERASE_ONE);
    shop.add(ERASE_ONE);
    let run = shop.asked("before", PERSONS, &[]).success();
    assert_eq!(run.stdout, "n\n9\n", "{run}");
}

fn r92_restore_erases_before_the_copy_is_ready(major: u32) {
    let shop = Shop::plain(major);
    let restore = |point: &str, more: &[&str]| {
        let restore = shop.at(point, &["restore", "--erase"]).args(more);
        restore.arg("--to").arg(shop.to(point))
    };
    // Without a lacking erasure it is a restore as any other.
    restore("before", &[]).succeed();
    assert!(shop.to("before").join("recovery.signal").exists());
    std::fs::remove_dir_all(shop.to("before")).unwrap();
    shop.cluster.sql(ERASE_ONE);
    let id = shop.add(ERASE_ONE);
    for (more, code, told) in [
        (&["--adopt"][..], 2, "cannot be used with"),
        (&["--target-action", "pause"], 2, "takes writes"),
        (
            &["--skip-erasure", "20261120T064049.123456Z-0f1e2d3c4b5a6978"],
            2,
            "does not exist",
        ),
        (&[], 8, "nothing proves who recorded it"),
    ] {
        restore("before", more).exits(code).expect_stderr(told);
        assert!(!shop.to("before").exists(), "nothing was written: {more:?}");
    }
    let plain = ["restore", "--unproven-erasures"];
    let plain = shop.at("before", &plain).arg("--to");
    let plain = plain.arg(shop.to("before")).run();
    plain.expect_code(2).expect_stderr("need --erase");
    let done = restore("before", &["--unproven-erasures", "--json"]).run();
    assert_eq!(done.success().json()["erased"][0]["outcome"], "applied");
    let mut copy = shop.open("before");
    assert!(!shop.to("before").join("recovery.signal").exists());
    copy.start();
    assert_eq!(count(&copy, "person"), "9");
    assert_eq!(count(&copy, "sale where person = 1"), "0");
    copy.stop(Stop::Fast);
    drop(copy);
    std::fs::remove_dir_all(shop.to("before")).unwrap();
    let run = restore("before", &["--skip-erasure", &id]).succeed();
    run.expect_stdout("left out");
    std::fs::remove_dir_all(shop.to("before")).unwrap();
    // A script that fails leaves a copy of which everybody is warned, and apply goes on there.
    let bad = shop.add("delete from public.nothing");
    let run = restore("before", &["--unproven-erasures"]).exits(1);
    run.expect_stdout(&format!("{id} in database postgres: applied"))
        .expect_stderr(&format!("{bad}: "))
        .expect_stderr("let nobody connect");
    let go_on = ["--confirm", "--skip", &bad];
    shop.apply("before", &go_on).succeed();
}
per_major!(r92_restore_erases_before_the_copy_is_ready, v13 v17 v19);

/// Row R205: a server that is killed between the removal of its signal and the checkpoint that ends recovery.
#[test]
fn r205_a_copy_whose_server_was_killed_at_the_end_of_recovery_keeps_its_target() {
    let shop = Shop::plain(17);
    // The WAL behind the target begins in the segment that recovery reads last.
    let cluster = &shop.cluster;
    cluster.sql("select pg_create_restore_point('kept')");
    cluster.sql("drop table later");
    cluster.sql(ERASE_ONE);
    cluster.archive_now();
    shop.add(ERASE_ONE);
    let to_the_end = || {
        shop.restore("kept");
        let copy = Cluster::open(17, shop.to("kept")).without_fsync();
        let mut copy = copy.config("recovery_target_action", "shutdown").create();
        copy.spawn();
        copy.wait_ended();
        drop(copy);
        // The options of this start count for the next one.
        std::fs::remove_file(shop.to("kept").join("postmaster.opts")).unwrap();
        std::fs::remove_file(shop.to("kept").join("recovery.signal")).unwrap();
    };
    to_the_end();
    // An end that is not the planned one is found again by each run.
    let record = shop.to("kept").join("pg_wal/pitr.settings");
    let read = || -> Value { serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap() };
    let mut changed = read();
    let stop = "/job/plan/stop/recovery_end_lsn";
    let stop = changed.pointer_mut(stop).unwrap();
    let planned = std::mem::replace(stop, "0/1".into());
    std::fs::write(&record, changed.to_string()).unwrap();
    for _ in 0..2 {
        let found = shop.apply("kept", &["--confirm"]).exits(4);
        found.expect_stderr("did not recover as planned");
    }
    let mut changed = read();
    assert_eq!(changed["is_resumed"], true);
    *changed
        .pointer_mut("/job/plan/stop/recovery_end_lsn")
        .unwrap() = planned;
    std::fs::write(&record, changed.to_string()).unwrap();
    shop.apply("kept", &["--confirm"]).succeed();
    assert_eq!(read()["is_resumed"], Value::Null);
    let mut copy = shop.open("kept");
    copy.start();
    assert_eq!(count(&copy, "later"), "0", "its table is there");
    assert_eq!(count(&copy, "person where id = 1"), "0");
    let timeline = "select timeline_id from pg_control_checkpoint()";
    assert_eq!(copy.value(timeline), "2");
    copy.stop(Stop::Fast);
    drop(copy);

    // An ordinary start has replayed all that was there.
    std::fs::remove_dir_all(shop.to("kept")).unwrap();
    to_the_end();
    let mut copy = shop.open("kept");
    copy.start();
    let there = "select to_regclass('later') is not null";
    assert_eq!(copy.value(there), "f", "this is what is refused");
    copy.stop(Stop::Fast);
    drop(copy);
    let refused = shop.apply("kept", &["--confirm"]).exits(8);
    refused.expect_stderr("WAL behind the target");
}

/// Row R201: a replacement that was interrupted, or made without `--erase`.
#[test]
fn r201_a_replacement_that_is_taken_up_repeats_the_erasures() {
    let mut shop = Shop::plain(17);
    shop.cluster.sql(ERASE_ONE);
    shop.add(ERASE_ONE);
    shop.point("after");
    shop.cluster.stop(Stop::Fast);
    let data = shop.cluster.pgdata().to_owned();
    let replace = |more: &[&str]| {
        let replace = shop.at("before", &["restore", "--replace", "--json"]);
        replace.args(more).arg("--to").arg(&data)
    };
    let erasing = ["--erase", "--unproven-erasures"];
    let killed = replace(&["--confirm"]).env("PITR_FAULT", "replace-recorded");
    let killed = killed.run();
    assert!(killed.stderr.contains("replace-recorded"), "{killed}");
    // An obstacle is found before names are exchanged.
    let run = replace(&["--confirm", "--erase"]).exits(8);
    run.expect_stdout("nothing proves who recorded it");
    let far = shop.folder.dir("x".repeat(100));
    let confirmed = replace(&[&erasing[..], &["--confirm"]].concat());
    let run = confirmed.clone().env("TMPDIR", far).exits(8);
    run.expect_stdout("TMPDIR");
    let run = replace(&["--dry-run"]).succeed();
    assert_eq!(run.json()["complete"], false, "{run}");
    let run = replace(&["--confirm"]).succeed();
    assert_eq!(run.json()["erasures"]["count"], 1, "{run}");
    assert_eq!(run.json()["complete"], true, "{run}");
    let run = replace(&erasing).exits(8);
    run.expect_stderr("would be repeated");
    assert!(data.join("recovery.signal").exists());
    let run = confirmed.succeed();
    assert_eq!(run.json()["erased"][0]["outcome"], "applied", "{run}");
    assert!(!data.join("recovery.signal").exists());
    shop.cluster.start();
    assert_eq!(count(&shop.cluster, "person"), "9");
    assert_eq!(count(&shop.cluster, "person where id = 1"), "0");
}

/// Row R201: erasures that were begun in the new cluster, and have not all succeeded.
#[test]
fn r201_a_replacement_whose_erasures_failed_is_not_made_once_more() {
    let mut shop = Shop::plain(17);
    shop.cluster.sql(ERASE_ONE);
    shop.add(ERASE_ONE);
    let wrong = shop.add("delete from nowhere");
    shop.point("after");
    shop.cluster.stop(Stop::Fast);
    let data = shop.cluster.pgdata().to_owned();
    let replace = shop.at("before", &["restore", "--replace", "--erase", "--confirm"]);
    let replace = replace.arg("--unproven-erasures").arg("--to").arg(&data);
    let failed = replace.exits(1);
    failed.expect_stderr("1 of 2 erasures failed");
    let refused = replace.exits(8);
    refused.expect_stderr("pitr erasure apply");
    let remove = ["erasure", "remove", &wrong, "--confirm"];
    shop.pitr(&remove).succeed();
    let initdb = bin(17, "initdb").unwrap();
    let apply = shop.read(&["erasure", "apply", "--confirm", "--pgdata"]);
    let apply = apply.arg(&data).arg("--bin");
    apply.arg(initdb.parent().unwrap()).succeed();
    // There is one replacement, and its undo leads back to the first cluster.
    let undo = shop.read(&["restore", "--undo", "--discard-changes"]);
    undo.arg("--confirm").arg("--to").arg(&data).succeed();
    shop.cluster.start();
    assert_eq!(count(&shop.cluster, "person"), "9");
}
