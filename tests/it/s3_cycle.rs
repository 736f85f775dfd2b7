//! Whole cycles on S3 with the real programs and a real server: what works on a directory works there.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::time::Instant;

use pitr::archive::push::{Push, Pushed, push};
use pitr::config::{self, Location};
use pitr::repo;
use pitr::repo::container::Codec;
use pitr::repo::repository::Repository;
use pitr::store::Store as _;
use pitr::store::s3::S3Store;

use crate::common::reception::{archived, lsn};
use crate::common::s3::peer::{Peer, keys};
use crate::common::s3::{BUCKET, Fault, KEY, S3Server, SECRET, WRITER};
use crate::common::{
    Builder, Cluster, Program, Run, Sandbox, Still, expire_at_once, keep_one, path_of, paths_below,
    patiently, pitr, pitr_archive, pitr_restore, wait_until,
};
use crate::fetch::mode;
use crate::ship::{has_worker, noted, spool_in};

/// A configuration with one repository in a bucket.
pub struct Bucketed {
    pub peer: Peer,
    pub sandbox: Sandbox,
    pub config: PathBuf,
}

impl Bucketed {
    pub fn new(cluster: &Cluster, peer: Peer, more: &str) -> Bucketed {
        let sandbox = Sandbox::new("bucket");
        let config = configuration(&peer, &sandbox, cluster, "pitr.toml", KEY, more);
        let site = Bucketed {
            peer,
            sandbox,
            config,
        };
        site.pitr().words("init --quiet").succeed();
        site
    }

    /// Starts the described cluster with archiving into a new site.
    pub fn with_cluster(builder: Builder, peer: Peer, more: &str) -> (Bucketed, Cluster) {
        let mut cluster = builder.create();
        let site = Bucketed::new(&cluster, peer, more);
        site.attach(&cluster);
        cluster.start();
        (site, cluster)
    }

    pub fn attach(&self, cluster: &Cluster) {
        cluster.append_config("archive_mode", "on");
        let command = pitr_archive().arg("--config").arg(&self.config).arg("%p");
        cluster.append_config("archive_command", &command.shell());
    }

    pub fn pitr(&self) -> Program {
        pitr().arg("--config").arg(&self.config)
    }

    /// `pitr-archive` or `pitr-restore` as the server runs them.
    pub fn command(&self, program: Program, cluster: &Cluster) -> Program {
        let program = program.arg("--config").arg(&self.config);
        program
            .env("PITR_CLUSTERS_MAIN_SPOOL_DIR", self.spool())
            .dir(cluster.pgdata())
    }

    pub fn push(&self, cluster: &Cluster, name: &str) -> Program {
        self.command(pitr_archive(), cluster)
            .arg(format!("pg_wal/{name}"))
    }

    pub fn spool(&self) -> PathBuf {
        self.sandbox.join("spool")
    }

    pub fn backup(&self) -> String {
        let run = self.pitr().words("backup --json").succeed();
        run.id()
    }

    pub fn store(&self) -> S3Store {
        self.peer.store(&self.sandbox, "pg")
    }

    fn holds(&self, part: &str) -> bool {
        keys(&self.store()).iter().any(|k| k.contains(part))
    }
}

#[test]
fn a_receiver_makes_one_request_for_each_segment() {
    let began = Instant::now();
    let mut cluster = Cluster::small(17).create();
    let site = Bucketed::new(
        &cluster,
        Peer::own(),
        "stall_timeout = \"2m\"\nretry_budget = \"3m\"\n",
    );
    cluster.start();
    let client = cluster.client();
    let mut running = site.pitr().words("receive --create-slot").spawn();
    let journal = site.sandbox.join("journal");
    let mut fill = |from: u32| {
        let to = from + 30_000;
        let sql = format!(
            "insert into ledger select g, md5(g::text) from generate_series({from}, {to}) g"
        );
        client.sql(&sql);
        let end = lsn(&client.value("select pg_switch_wal()"));
        running.until("the repository holds it", || {
            archived(&journal).is_some_and(|at| at >= end)
        });
    };
    client.sql("create table ledger (id int, note text)");
    fill(0);
    site.peer.server().clear_log();
    fill(100_000);
    let log = site.peer.server().log();
    running.ended_by(rustix::process::Signal::TERM).success();
    // A segment that does not fill within a second goes out in increments, and whether it is there whole is asked first: how many do depends on
    // the machine.
    let is_of_open = |line: &String| {
        let name = line
            .split('?')
            .next()
            .and_then(|path| path.rsplit('/').next());
        name.is_some_and(|name| log.iter().any(|l| l.contains(&format!("/open/{name}"))))
    };
    let whole: Vec<&String> = log.iter().filter(|l| !l.contains("/open/")).collect();
    let (puts, others): (Vec<_>, Vec<_>) = whole.into_iter().partition(|l| l.starts_with("PUT"));
    assert!(puts.len() >= 3, "{log:?}");
    let mut keys = puts.clone();
    keys.dedup();
    assert_eq!(keys.len(), puts.len(), "each once: {puts:?}");
    let others: Vec<_> = others.into_iter().filter(|l| !is_of_open(l)).collect();
    // Once a minute the repository is opened anew: marker, registration, resolutions, the segment before, and whether a name is free.
    let minutes = began.elapsed().as_secs() / 60;
    let most = usize::try_from(5 * minutes).unwrap();
    assert!(others.len() <= most, "{others:?} in {minutes} minutes");
    site.pitr().words("receive --drop-slot").succeed();
}

fn configuration(
    peer: &Peer,
    sandbox: &Sandbox,
    cluster: &Cluster,
    name: &str,
    key: &str,
    more: &str,
) -> PathBuf {
    let credentials = peer.credentials(sandbox, key);
    sandbox.file(
        name,
        format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n[clusters.main.receive]\njournal = \"{}\"\n\
             [repositories.store]\nurl = \"s3://{}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
             path_style = true\ncredentials_file = \"{}\"\n{more}",
            cluster.pgdata().display(),
            cluster.conninfo("postgres"),
            sandbox.join("journal").display(),
            peer.bucket,
            peer.endpoint(),
            credentials.display()
        ),
    )
}

/// The receiver holds what was committed in the repository, and ends well.
fn receive_once(site: &Bucketed, cluster: &Cluster) {
    let receive = site.pitr().words("receive --create-slot");
    let mut running = receive.spawn();
    let client = cluster.client();
    running.until("the receiver streams", || {
        let sql = "select count(*) from pg_stat_replication where state = 'streaming' and application_name = 'pitr'";
        client.value(sql) == "1"
    });
    client.sql("insert into ledger select g, 'received' from generate_series(1000001, 1000100) g");
    let end = lsn(&client.value("select pg_current_wal_flush_lsn()"));
    let journal = site.sandbox.join("journal");
    running.until("the repository holds everything", || {
        archived(&journal).is_some_and(|at| at >= end)
    });
    assert!(site.holds("/open/"), "increments");
    running.ended_by(rustix::process::Signal::TERM).success();
    site.pitr().words("receive --drop-slot").succeed();
}

#[test]
fn a_whole_cycle_on_s3() {
    let (site, cluster) = Bucketed::with_cluster(Cluster::small(17), Peer::start(), "");
    let client = cluster.client();
    client.sql("create table ledger as select g as id, md5(g::text) as note from generate_series(1, 20000) g");
    let first = site.backup();
    receive_once(&site, &cluster);
    client.sql("insert into ledger select g, 'second' from generate_series(20001, 30000) g");
    client.sql("select pg_create_restore_point('before')");
    client.sql("delete from ledger");
    cluster.archive_now();
    // The credentials of the tests may delete, which is a warning.
    site.pitr().words("doctor").run().expect_stdout("archiver");
    let target = ["--target-name", "before"];
    let plan = site.pitr().words("plan --json").args(target).succeed();
    assert_eq!(plan.json()["backup"]["id"], first.as_str());
    let to = site.sandbox.join("copy");
    let restore = site.pitr().restore_to(&to).arg("--quiet");
    restore.args(target).succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from ledger"), "30100");
    drop(copy);
    site.pitr().words("verify --quiet").succeed();
    let second = site.backup();
    site.backup();
    site.pitr().words("verify --quiet").succeed();
    site.pitr().args(expire_at_once()).succeed();
    let packs = |id: &str| site.holds(&format!("/packs/{id}/"));
    assert!(!packs(&second), "what is not kept is deleted");
    assert!(!packs(&first), "a restore that is complete claims nothing");
    site.pitr().words("verify --quiet").succeed();
    let left = site.store().irregular().unwrap();
    assert!(left.is_empty(), "{left:?}");
    let text = cluster.log();
    assert!(!text.contains(SECRET));
    let store = site.store();
    for name in keys(&store).iter().filter(|k| !k.contains("/packs/")) {
        let key = pitr::store::Key::new(name).unwrap();
        let bytes = pitr::store::get(&store, &key, 64 << 20).unwrap();
        // An object that expire has deleted since the listing is gone.
        let bytes = bytes.unwrap_or_default();
        let is_there = bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
        assert!(!is_there, "{name}");
    }
}

#[test]
fn a_cycle_in_a_bucket_that_locks() {
    let mut cluster = Cluster::small(17).create();
    let lock = "object_lock = { mode = \"compliance\", period = \"1d\" }\n";
    let site = Bucketed::new(&cluster, Peer::locking(), lock);
    crate::common::keep_state(&site.config, &site.sandbox.dir("state"));
    site.attach(&cluster);
    cluster.start();
    let first = site.backup();
    let client = cluster.client();
    client.sql("create table ledger as select g as id from generate_series(1, 1000) g");
    client.sql("select pg_create_restore_point('before')");
    cluster.archive_now();
    site.backup();
    // The lock keeps what the configuration gives up; the first run only says that it will go.
    for _ in 0..2 {
        let expire = keep_one(&["--grace", "0s", "--confirm"]);
        let run = site.pitr().args(expire).succeed();
        run.expect_stdout("kept by the store's lock")
            .expect_stderr("(compliance)");
    }
    let text = crate::metrics::metrics(&site.pitr());
    let locked = "pitr_expire_locked_bytes{cluster=\"main\",repo=\"store\"}";
    let locked = crate::metrics::value(&text, locked).unwrap();
    assert!(locked > 1e6, "{locked} bytes\n{text}");
    let to = site.sandbox.join("copy");
    let restore = site.pitr().restore_to(&to).arg("--quiet");
    let target = ["--backup", &first, "--target-name", "before"];
    restore.args(target).succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from ledger"), "1000");
    drop(copy);
    site.pitr().words("verify --quiet").succeed();
}

/// Segments nobody has archived, and a configuration that archives them into a bucket.
pub struct Offline {
    pub still: Still,
    peer: Peer,
    pub config: PathBuf,
}

impl Offline {
    pub fn new(more: &str) -> Offline {
        Offline::of(2, more)
    }

    pub fn of(segments: usize, more: &str) -> Offline {
        Offline::on(Still::new(17, 1, segments), more)
    }

    /// With the segments of this cluster.
    pub fn on(still: Still, more: &str) -> Offline {
        let peer = Peer::own();
        let config = configuration(
            &peer,
            still.site.sandbox(),
            &still.cluster,
            "s3.toml",
            KEY,
            more,
        );
        pitr().words("init --quiet --config").arg(&config).succeed();
        Offline {
            still,
            peer,
            config,
        }
    }

    pub fn server(&self) -> &S3Server {
        self.peer.server()
    }

    /// The repository, opened in this process.
    fn open(&self) -> Repository {
        self.open_with(None)
    }

    fn open_with(&self, encryption: Option<config::Encryption>) -> Repository {
        let mut place = config::Repository::at(Location::S3 {
            bucket: BUCKET.into(),
            prefix: "pg".into(),
        });
        place.s3 = self.peer.settings(self.still.site.sandbox(), KEY);
        place.encryption = encryption;
        repo::open(&place, 7).unwrap()
    }

    pub fn push(&self, n: usize) -> Program {
        self.push_with(&self.config, n)
    }

    pub fn push_with(&self, config: &Path, n: usize) -> Program {
        pitr_archive()
            .arg("--config")
            .arg(config)
            .arg(format!("pg_wal/{}", self.still.segments[n]))
            .dir(self.still.cluster.pgdata())
    }

    pub fn fetch(&self, name: &str) -> Program {
        self.fetch_with(&self.config, name)
    }

    /// Fetches until the words come, and requires them.
    fn fetch_until(&self, name: &str, words: &str) -> Run {
        let run = |seconds: u64| {
            let fetch = self.fetch(name);
            fetch.env("PITR_FAULT_SECONDS", seconds.to_string()).run()
        };
        let run = patiently(run, |run| run.stderr.contains(words));
        run.expect_stderr(words)
    }

    pub fn fetch_with(&self, config: &Path, name: &str) -> Program {
        pitr_restore()
            .arg("--config")
            .arg(config)
            .args([name, "pg_wal/RECOVERYXLOG"])
            .dir(self.still.cluster.pgdata())
    }
}

#[test]
fn s04_the_small_programs_answer_for_s3_as_for_a_directory() {
    let off = Offline::new("");
    let lost = off.server().fault("PUT", 1, Fault::NoAnswer);
    off.push(0).succeed();
    assert_eq!(lost.times(), 1);
    off.push(0).succeed();
    let name = &off.still.segments[0];
    off.fetch(name).succeed();
    let fetched = off.still.wal("RECOVERYXLOG");
    assert!(std::fs::read(&fetched).unwrap() == std::fs::read(off.still.wal(name)).unwrap());
    std::fs::remove_file(&fetched).unwrap();
    let key = off.server().key(name);
    let requests = |log: Vec<String>| {
        log.iter()
            .filter(|l| l.contains(&key) && l.starts_with("PUT"))
            .count()
    };
    off.server().clear_log();
    off.push(0).succeed();
    assert_eq!(requests(off.server().log()), 0, "it is there already");
    // Other bytes under the name: refused, kept aside, and the first copy stays.
    let stored = off.server().object(&key);
    let path = off.still.wal(name);
    let mut other = std::fs::read(&path).unwrap();
    let end = other.len() - 100;
    other[end] ^= 1;
    std::fs::write(&path, &other).unwrap();
    off.push(0).exits(20).expect_stderr("A120");
    assert!(off.server().object(&key) == stored);
    assert!(
        off.server()
            .keys()
            .iter()
            .any(|k| k.contains("/conflicts/"))
    );
}

#[test]
fn s01_what_a_store_cannot_answer_is_neither_stored_nor_absent() {
    let off = Offline::new("retry_budget = \"1s\"\n");
    off.push(0).succeed();
    let (there, absent) = (off.still.segments[0].clone(), "000000010000000000000099");
    off.fetch(absent).exits(1);
    for (fault, pushed, fetched) in [
        (Fault::Error(403, "AccessDenied"), 31, 207),
        (Fault::Error(404, "NoSuchBucket"), 36, 208),
    ] {
        off.server().heal();
        let fired = off.server().fault("/bucket", u64::MAX, fault);
        off.push(1).exits(pushed);
        off.fetch(absent).exits(fetched);
        off.fetch(&there).exits(fetched);
        assert!(fired.times() >= 3);
    }
    off.server().heal();
    for fault in [
        Fault::Error(503, "SlowDown"),
        Fault::Reset,
        Fault::Stranger(404),
    ] {
        off.server().heal();
        let fired = off.server().fault("/bucket", u64::MAX, fault);
        off.push(1).exits(30);
        // Recovery tries for five minutes; a second is enough here.
        off.fetch(absent).env("PITR_FAULT_SECONDS", "1").exits(200);
        assert!(fired.times() >= 2);
    }
    off.server().heal();
    off.push(1).succeed();
    // A bucket that was emptied is no archive without WAL.
    off.server().lose("pg/pitr.json");
    off.fetch(absent).exits(208);
}

/// Returns whether damage is recorded for plans and `expire`.
fn damage_is_recorded(off: &Offline) -> bool {
    let keys = off.server().keys();
    keys.iter().any(|key| key.contains("-damaged-"))
}

#[test]
fn s16_a_body_that_is_changed_on_its_way_is_damage() {
    let off = Offline::new("");
    off.push(0).succeed();
    let name = &off.still.segments[0];
    // A part of the compressed WAL, which lies first, and not of the index after it.
    let line = format!("GET /bucket/{}", off.server().key(name));
    let flipped = off.server().fault(&line, u64::MAX, Fault::Flipped(100));
    off.fetch(name).exits(201).expect_stderr("R201");
    assert!(flipped.times() > 0 && !off.still.wal("RECOVERYXLOG").exists());
    // Which recovery waits for no longer than a second.
    wait_until("it is recorded", || {
        off.fetch(name).exits(201);
        damage_is_recorded(&off)
    });
    off.server().heal();
    off.fetch(name).succeed();
}

/// R200 and not R201: it says nothing about any object, and must not be recorded as damage of each (decision 0011).
#[test]
fn s16_what_arrives_encoded_says_nothing_about_the_object() {
    let off = Offline::new("");
    off.push(0).succeed();
    let name = &off.still.segments[0];
    let line = format!("GET /bucket/{}", off.server().key(name));
    let gzipped = off.server().fault(&line, u64::MAX, Fault::Gzipped);
    let run = off.fetch_until(name, "\"gzip\"");
    run.expect_code(200).expect_stderr("R200");
    assert!(gzipped.times() > 0 && !off.still.wal("RECOVERYXLOG").exists());
    assert!(!damage_is_recorded(&off));
    off.server().heal();
    off.fetch(name).succeed();
}

/// R200 for the same reason.
#[test]
fn s16_a_store_that_ignores_ranges_says_nothing_about_its_objects() {
    let off = Offline::new("");
    off.push(0).succeed();
    let name = &off.still.segments[0];
    let key = off.server().key(name);
    let stored = off.server().object(&key).len();
    assert!(stored > 64 << 10, "{stored} bytes are read at once");
    off.server().behave(|m| m.ignores_ranges = true);
    let run = off.fetch_until(name, "ignores ranges");
    run.expect_code(200).expect_stderr("R200");
    assert!(!off.still.wal("RECOVERYXLOG").exists());
    assert!(!damage_is_recorded(&off));
    off.server().behave(|m| m.ignores_ranges = false);
    off.fetch(name).succeed();
}

#[test]
fn s16_what_arrives_at_the_store_changed_is_not_archived() {
    let off = Offline::new("retry_budget = \"4s\"\n");
    let refused = Fault::Error(400, "BadDigest");
    let fired = off.server().fault("PUT", u64::MAX, refused.clone());
    let run = off.push(0).exits(35);
    run.expect_stderr("A135").expect_stderr("BadDigest");
    assert!(fired.times() > 0);
    let name = &off.still.segments[0];
    assert!(!off.server().keys().iter().any(|key| key.contains(name)));
    off.server().heal();
    // It is sent again: the next one may not be changed.
    let once = off.server().fault("PUT", 1, refused);
    off.push(0).succeed();
    assert_eq!(once.times(), 1);
}

#[test]
fn s09_credentials_that_run_out_are_renewed() {
    let off = Offline::new("");
    let plain = std::fs::read_to_string(&off.config).unwrap();
    let lines: Vec<&str> = plain
        .lines()
        .filter(|line| !line.starts_with("credentials_file"))
        .collect();
    let config = off.still.site.sandbox().file("sts.toml", lines.join("\n"));
    let provider = format!("{}/credentials", off.server().endpoint());
    let push = |n: usize| {
        pitr_archive()
            .arg("--config")
            .arg(&config)
            .arg(format!("pg_wal/{}", off.still.segments[n]))
            .dir(off.still.cluster.pgdata())
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &provider)
    };
    push(0).succeed();
    let before = off.server().issued_tokens();
    assert!(before > 0);
    // The session ends while the segment is on its way.
    let expired = off
        .server()
        .fault("PUT", 1, Fault::Error(400, "ExpiredToken"));
    push(1).succeed();
    assert_eq!(expired.times(), 1);
    assert!(off.server().issued_tokens() >= before + 2);
    let error = pitr()
        .arg("--config")
        .arg(&config)
        .words("repo show")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .run();
    error
        .expect_code(3)
        .expect_stderr("there are no credentials");
    // The machine's provider is there, and forbids it.
    let forbidden = off
        .server()
        .fault("/latest/api/token", u64::MAX, Fault::Says(403, "no"));
    let error = pitr()
        .arg("--config")
        .arg(&config)
        .words("repo show")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", off.server().endpoint())
        .run();
    assert!(forbidden.times() > 0, "{error}");
    error
        .expect_code(3)
        .expect_stderr("there are no credentials");
}

/// The configuration of a host that has its credentials by a profile.
pub fn with_profile(config: &Path, sandbox: &Sandbox, profile: &str) -> PathBuf {
    let plain = std::fs::read_to_string(config).unwrap();
    let lines = plain
        .lines()
        .filter(|line| !line.starts_with("credentials_file"));
    let lines: Vec<&str> = lines.collect();
    let text = format!("{}\nprofile = \"{profile}\"\n", lines.join("\n"));
    sandbox.file("profile.toml", text)
}

#[test]
fn a_profile_for_people_is_wrong_configuration() {
    let off = Offline::new("");
    let sandbox = off.still.site.sandbox();
    let profiles = sandbox.file(
        "profiles",
        "[profile signed-in]\nsso_session = s\nsso_account_id = 012345678901\nsso_role_name = r\n\
         [sso-session s]\nsso_region = us-east-1\nsso_start_url = https://127.0.0.1:1/start\n\
         [profile logged-in]\nlogin_session = arn:aws:sts::012345678901:assumed-role/r/s\n",
    );
    for (profile, says) in [("signed-in", "single sign-on"), ("logged-in", "aws login")] {
        let config = with_profile(&off.config, off.still.site.sandbox(), profile);
        let show = pitr().arg("--config").arg(&config).words("repo show");
        show.env("AWS_CONFIG_FILE", &profiles)
            .exits(3)
            .expect_stderr(says)
            .expect_stderr("credentials_file");
        let fetch = off.fetch_with(&config, &off.still.segments[0]);
        let fetch = fetch.env("AWS_CONFIG_FILE", &profiles).run();
        fetch.expect_code(202).expect_stderr(says);
    }
}

#[test]
fn a_program_gives_the_credentials_of_a_profile() {
    let off = Offline::new("");
    let sandbox = off.still.site.sandbox();
    let answer = sandbox.file("answer", "");
    let profiles = sandbox.file(
        "profiles",
        format!(
            "[profile program]\ncredential_process = /bin/cat {}\n",
            answer.display()
        ),
    );
    let config = with_profile(&off.config, off.still.site.sandbox(), "program");
    let push = off.push_with(&config, 0);
    let push = push.env("AWS_CONFIG_FILE", &profiles);
    let run = patiently(
        |s| push.clone().env("PITR_FAULT_SECONDS", s.to_string()).run(),
        |run| run.code() == 30,
    );
    run.expect_code(30).expect_stderr("credentials");
    let keys =
        format!(r#"{{"Version": 1, "AccessKeyId": "{KEY}", "SecretAccessKey": "{SECRET}"}}"#);
    std::fs::write(&answer, keys).unwrap();
    push.succeed();
    off.fetch(&off.still.segments[0]).succeed();
}

#[test]
fn what_a_program_for_credentials_prints_is_not_repeated() {
    const PLANTED: &str = "planted-4711-secret";
    let off = Offline::of(3, "retry_budget = \"1s\"\n");
    let sandbox = off.still.site.sandbox();
    let config = with_profile(&off.config, off.still.site.sandbox(), "program");
    let spool = spool_in(sandbox, &config);
    let given = format!(r#"{{"Version": 1, "SecretAccessKey": "{PLANTED}", "x": "#);
    for (status, told) in [
        (3, "credential_process /bin/sh failed (exit status: 3)"),
        (0, "gave nothing that is taken for credentials"),
    ] {
        let asked = sandbox.file("asked", "");
        let script = sandbox.file(
            "script.sh",
            format!(
                "echo >> {}; echo '{given}'; echo '{given}' >&2; exit {status}\n",
                asked.display()
            ),
        );
        let profiles = sandbox.file(
            "profiles",
            format!(
                "[profile program]\ncredential_process = /bin/sh {} --token {PLANTED}\n",
                script.display()
            ),
        );
        let of = |program: Program| program.env("AWS_CONFIG_FILE", &profiles);
        let push = of(off.push_with(&config, 0)).exits(30);
        let info = of(pitr().arg("--config").arg(&config).words("repo show")).run();
        assert_ne!(info.code(), 0, "{info}");
        for run in [&push, &info] {
            assert!(run.stderr.contains(told), "{run}");
            assert!(!run.to_string().contains(PLANTED), "{run}");
        }
        assert!(std::fs::read(&asked).unwrap().len() > 1, "it was run");
        // A worker records the error that it got, too, for the next command that asks.
        for name in &off.still.segments {
            let ready = format!("pg_wal/archive_status/{name}.ready");
            off.still.cluster.touch(&ready);
        }
        of(off.push_with(&config, 0)).exits(30);
        wait_until("the worker has failed and ended", || {
            !noted(&spool, ".failed").is_empty() && !has_worker(&spool)
        });
        for path in paths_below(&spool) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains(PLANTED), "{}: {text}", path.display());
            let is_failure = path.extension().is_some_and(|e| e == "failed");
            assert!(!is_failure || text.contains(told), "{text}");
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn what_pitr_does_for_a_small_program_ends_with_it() {
    let off = Offline::new("stall_timeout = \"1h\"\nretry_budget = \"1h\"\n");
    off.push(0).succeed();
    let stalled = off.server().fault("GET", 1, Fault::Stalled);
    // A standby that has only the archive waits for ever, and so would pitr.
    mode(&off.still, "standby.signal", false);
    let running = off.fetch(&off.still.segments[0]).spawn();
    wait_until("the store is asked", || stalled.times() == 1);
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", running.pid());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let pids: Vec<u32> = text
            .split_whitespace()
            .filter_map(|p| p.parse().ok())
            .collect();
        pids
    };
    let child = children();
    assert_eq!(child.len(), 1, "one pitr works for it");
    let run = running.ended_by(rustix::process::Signal::TERM);
    assert_eq!(run.code(), 128 + 15);
    wait_until("pitr has ended, too", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child[0]));
        stat.map_or(true, |s| s.contains(") Z "))
    });
    off.server().heal();
    off.fetch(&off.still.segments[0]).succeed();
}

#[test]
fn what_keeps_pitr_from_answering_is_judged_by_what_the_server_does() {
    let off = Offline::new("");
    off.push(0).succeed();
    let folder = off.still.site.sandbox().dir("broken");
    // By another program: what a child of another test holds open for writing cannot be run.
    let copied = std::process::Command::new("cp")
        .args([&path_of("pitr-restore"), &folder])
        .status();
    assert!(copied.unwrap().success());
    // It ends without a word.
    std::os::unix::fs::symlink("/bin/false", folder.join("pitr")).unwrap();
    let fetch = |name: &str, seconds: u64| {
        Program::new(folder.join("pitr-restore"))
            .arg("--config")
            .arg(&off.config)
            .args([name, "pg_wal/RECOVERYXLOG"])
            .dir(off.still.cluster.pgdata())
            .env("PITR_FAULT_SECONDS", seconds.to_string())
            .run()
    };
    let there = &off.still.segments[0];
    mode(&off.still, "standby.signal", true);
    fetch(there, 1)
        .expect_code(1)
        .expect_stderr("without an answer")
        .expect_stderr("the standby asks again");
    mode(&off.still, "recovery.signal", false);
    let tried = |run: &Run| run.stderr.contains("trying again");
    patiently(|seconds| fetch(there, seconds), tried)
        .expect_code(200)
        .expect_stderr("trying again")
        .expect_stderr("side by side");
    fetch("00000001.history", 1).expect_code(1);
    assert!(!off.still.wal("RECOVERYXLOG").exists());
}

#[test]
fn a_store_that_is_slow_is_not_taken_for_one_that_is_silent() {
    let off = Offline::new("");
    off.push(0).succeed();
    let there = &off.still.segments[0];
    let delivers = |asked: &str, answers_in: Duration, prepare: &dyn Fn()| {
        off.server().heal();
        let slow = off.server().fault(asked, u64::MAX, Fault::Slow(answers_in));
        // Once is enough, on a machine that may itself stand still.
        wait_until("the segment is delivered", || {
            prepare();
            off.fetch(there).run().code() == 0
        });
        assert!(slow.times() > 0);
    };
    // Longer than a server that is promoted waits for a directory.
    delivers("GET", Duration::from_millis(600), &|| {
        mode(&off.still, "standby.signal", false);
        off.still.cluster.touch("promote");
    });
    // Longer than a streaming standby waits for a store that is silent.
    let segment = format!("GET /bucket/{}", off.server().key(there));
    delivers(&segment, Duration::from_secs(8), &|| {
        mode(&off.still, "standby.signal", true);
    });
}

#[test]
fn a_host_that_may_not_delete_archives_and_backs_up() {
    let builder = Cluster::small(17);
    let mut cluster = builder.config("archive_mode", "on").create();
    let site = Bucketed::new(&cluster, Peer::own(), "");
    let (peer, sandbox) = (&site.peer, &site.sandbox);
    let config = configuration(peer, sandbox, &cluster, "writer.toml", WRITER, "");
    let writer = |program: Program| program.arg("--config").arg(&config);
    let check = writer(pitr()).words("repo check").succeed();
    check.expect_stdout("may not delete");
    cluster.append_config("archive_command", &writer(pitr_archive()).arg("%p").shell());
    cluster.start();
    cluster.sql("create table ledger as select g as id from generate_series(1, 20000) g");
    let segments: Vec<String> = (0..5).map(|_| cluster.switch_wal()).collect();
    for name in &segments {
        cluster.wait_archived(name);
    }
    let run = writer(pitr()).words("backup --quiet").succeed();
    assert!(!run.stderr.contains("error"), "{run}");
    cluster.sql("insert into ledger values (0)");
    cluster.archive_now();
    let log = cluster.log();
    assert!(!log.contains("pitr-archive:"), "{log}");
    // Whoever may do everything finds all of it.
    site.pitr().words("verify --quiet").succeed();
    let to = sandbox.join("copy");
    site.pitr().restore_to(&to).arg("--quiet").succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from ledger"), "20001");
}

#[test]
fn init_and_check_refuse_a_store_that_overwrites() {
    let off = Offline::new("");
    let config = &off.config;
    let check = |config: &Path| pitr().arg("--config").arg(config).words("repo check");
    check(config).exits(6).expect_stderr("may delete");
    let writer = configuration(
        &off.peer,
        off.still.site.sandbox(),
        &off.still.cluster,
        "writer.toml",
        WRITER,
        "",
    );
    check(&writer).succeed().expect_stdout("may not delete");
    off.server().behave(|m| m.both_win = Some("race-"));
    check(config).exits(8).expect_stderr("win");
    off.server()
        .behave(|m| (m.both_win, m.overwrites) = (None, true));
    check(config).exits(8).expect_stderr("replaces objects");
    let before = off.server().keys();
    let fresh = std::fs::read_to_string(config)
        .unwrap()
        .replace("/pg\"", "/fresh\"");
    let sandbox = off.still.site.sandbox();
    let init = |text: &str, name: &str| {
        let file = sandbox.file(name, text);
        pitr().arg("--config").arg(file).words("init --quiet")
    };
    init(&fresh, "fresh.toml")
        .exits(8)
        .expect_stderr("unsafe_overwrite");
    assert_eq!(off.server().keys(), before, "nothing was created");
    let unsafely = format!("{fresh}unsafe_overwrite = true\n");
    init(&unsafely, "unsafe.toml")
        .succeed()
        .expect_stderr("replaces objects");
    // Whoever accepts it sees that for as long as it is so.
    let shown = |config: &Path, verb: &str| {
        let run = pitr().arg("--config").arg(config).args([verb, "--json"]);
        run.run().json().to_string().contains("unsafe_overwrite")
    };
    let unsafely = sandbox.join("unsafe.toml");
    off.push_with(&unsafely, 0).succeed();
    for verb in ["info", "doctor"] {
        assert!(shown(&unsafely, verb), "{verb}");
        assert!(!shown(config, verb), "{verb}");
    }
    // A place that holds something else is nobody's repository.
    off.server().plant("strange/file", b"x");
    off.server().behave(|m| m.overwrites = false);
    let strange = fresh.replace("/fresh\"", "/strange\"");
    init(&strange, "strange.toml")
        .exits(8)
        .expect_stderr("not empty");
}

/// Pushes a segment in this process.
fn push_here(off: &Offline, repository: &Repository, name: &str) -> Pushed {
    let what = Push {
        repository,
        cluster: "main",
        path: &off.still.wal(name),
        name: name.parse().unwrap(),
        codec: Codec::Lz4,
        beside_others: true,
        known: None,
        is_backfill: false,
    };
    push(&what).unwrap().0
}

/// How many requests there were. Whether somebody streams is asked each second, which counts once: a busy machine takes longer.
fn requests(log: &[String]) -> usize {
    let asked = log.iter().filter(|line| line.contains("open"));
    log.len() - asked.count().saturating_sub(1)
}

#[test]
fn a_process_that_ships_many_segments_makes_one_request_for_each() {
    let off = Offline::of(5, "");
    off.server().clear_log();
    let repository = off.open();
    for name in &off.still.segments {
        assert_eq!(push_here(&off, &repository, name), Pushed::Stored);
    }
    let log = off.server().log();
    let puts = log.iter().filter(|l| l.starts_with("PUT")).count();
    // The marker, the registration, whether the first name is free, the resolutions (for nothing says that it goes on), whether somebody streams,
    // the end of that object, and whether checksums are compared.
    assert_eq!((puts, requests(&log)), (6, 12), "{log:?}");
    off.server().clear_log();
    let repository = off.open();
    off.server().lose(&off.server().key(&off.still.segments[4]));
    let last = &off.still.segments[4];
    assert_eq!(push_here(&off, &repository, last), Pushed::Stored);
    let log = off.server().log();
    // And, of a process that has not stored the segment before, what that one says of itself.
    assert_eq!(requests(&log), 6, "{log:?}");
    // A process that begins behind another one finds names taken, and looks before it sends.
    off.server().clear_log();
    let repository = off.open();
    for name in &off.still.segments {
        assert_eq!(push_here(&off, &repository, name), Pushed::AlreadyThere);
    }
    let log = off.server().log();
    assert!(!log.iter().any(|l| l.starts_with("PUT")), "{log:?}");
    // One call of the small program: the marker, the registration, whether the name is free, the resolutions, the increments, the segment, and its
    // end.
    let more = Offline::new("");
    more.server().clear_log();
    more.push(0).succeed();
    assert_eq!(more.server().log().len(), 7, "{:?}", more.server().log());
}

#[test]
fn an_encrypted_repository_takes_as_few_requests() {
    let still = Still::new(17, 1, 3);
    let keys = still.site.sandbox().join("keys");
    let keygen = pitr().words("repo keygen --recipient ops --recipient escrow");
    keygen.arg("--dir").arg(&keys).succeed();
    let encryption = format!(
        "[repositories.store.encryption]\nkey_set = \"{}\"\n",
        keys.join("writer.key").display()
    );
    let off = Offline::on(still, &encryption);
    off.server().clear_log();
    let repository = off.open_with(Some(config::Encryption {
        key_set: Some(keys.join("writer.key")),
        ..config::Encryption::default()
    }));
    for name in &off.still.segments {
        assert_eq!(push_here(&off, &repository, name), Pushed::Stored);
    }
    let log = off.server().log();
    let puts = log.iter().filter(|l| l.starts_with("PUT")).count();
    // As of a repository that is not encrypted, one for each segment and seven more.
    assert_eq!((puts, requests(&log)), (4, 10), "{log:?}");
    // A taken name is compared by its foot.
    let first = &off.still.segments[0];
    assert_eq!(push_here(&off, &repository, first), Pushed::AlreadyThere);
    // A reader gets it back.
    let key = keys.join("ops.key").display().to_string();
    let reading = std::fs::read_to_string(&off.config)
        .unwrap()
        .replace("key_set", "key_file")
        .replace(&keys.join("writer.key").display().to_string(), &key);
    let reader = off.still.site.sandbox().file("reader.toml", reading);
    off.fetch_with(&reader, first).succeed();
    assert_eq!(
        std::fs::read(off.still.wal("RECOVERYXLOG")).unwrap(),
        std::fs::read(off.still.wal(first)).unwrap()
    );
}

#[test]
fn c10_wal_list_takes_sizes_and_times_from_listings() {
    let off = Offline::new("");
    off.push(0).succeed();
    off.push(1).succeed();
    off.server().clear_log();
    let list = |args: &[&str]| {
        let program = pitr().arg("--config").arg(&off.config);
        program.words("wal list").args(args).succeed()
    };
    let json = list(&["--json"]).json();
    let log = off.server().log();
    let segments = json["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2);
    for (segment, name) in segments.iter().zip(&off.still.segments) {
        assert_eq!(segment["name"], name.as_str());
        let asked = log
            .iter()
            .filter(|l| l.contains(&format!("/{name}")))
            .count();
        assert_eq!(asked, 0, "{log:?}");
        let stored = segment["stored"].as_str().unwrap();
        assert!(
            stored.starts_with("20") && stored.ends_with('Z'),
            "{stored}"
        );
        assert!(segment["stored_bytes"].as_u64() > Some(100));
    }
    let year = segments[0]["stored"].as_str().unwrap()[..4].to_owned();
    list(&[]).expect_stdout(&format!("  {year}-"));
}

#[test]
fn d_init_refuses_a_repository_inside_another() {
    let off = Offline::new("");
    let config = std::fs::read_to_string(&off.config).unwrap();
    let inside = config.replace("/pg\"", "/pg/deeper/still\"");
    let inside = off.still.site.sandbox().file("inside.toml", inside);
    let init = pitr().words("init --quiet --config").arg(&inside);
    init.exits(8).expect_stderr("lies inside repository");
    let beside = config.replace("/pg\"", "/pg2/deeper\"");
    let beside = off.still.site.sandbox().file("beside.toml", beside);
    pitr().words("init --quiet --config").arg(&beside).succeed();
}
