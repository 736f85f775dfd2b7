//! Only a repository that was reached, that answered for these credentials and that could be listed may say "not there". Everything else
//! is an error which PostgreSQL cannot take for the end of the WAL. Row ids are in the names.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::proxy::Proxy;
use crate::common::s3::{BUCKET, Fault, Fired, KEY, S3Server};
use crate::common::{
    Cluster, Program, Run, Sandbox, Still, patiently, pitr, pitr_archive, pitr_restore, wait_until,
};
use crate::fetch::answer_promotions;
use crate::per_major;

/// A segment that was never archived, behind those that were.
const ABSENT: &str = "000000010000000000000099";
const HISTORY: &str = "00000002.history";
const FOR_EVER: u64 = u64::MAX;

/// A repository section for the bucket of a server.
fn section(name: &str, server: &S3Server, sandbox: &Sandbox) -> String {
    format!(
        "[repositories.{name}]\nurl = \"s3://{BUCKET}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\n\
         credentials_file = \"{}\"\nstall_timeout = \"1s\"\nretry_budget = \"1s\"\n",
        server.endpoint(),
        server.credentials(sandbox, KEY).display()
    )
}

/// A store that holds what was archived, and what a configuration says about it.
struct Stage {
    server: S3Server,
    sandbox: Sandbox,
    /// More keys of the cluster.
    cluster: String,
    /// The repositories' sections.
    sections: String,
    /// The faults that must have happened.
    fired: Vec<Fired>,
    /// Who must have been asked instead of the store.
    other: Option<S3Server>,
}

impl Stage {
    fn new(objects: &[(String, Vec<u8>)]) -> Stage {
        let (server, sandbox) = (S3Server::start(), Sandbox::new("absence"));
        for (key, bytes) in objects {
            server.plant(key, bytes);
        }
        Stage {
            sections: section("store", &server, &sandbox),
            server,
            sandbox,
            cluster: String::new(),
            fired: Vec::new(),
            other: None,
        }
    }

    fn fault(&mut self, holds: &str, fault: Fault) {
        self.fired.push(self.server.fault(holds, FOR_EVER, fault));
    }

    fn replace(&mut self, from: &str, to: &str) {
        assert!(self.sections.contains(from), "{from}");
        self.sections = self.sections.replace(from, to);
    }

    fn endpoint(&mut self, to: &str) {
        let from = self.server.endpoint();
        self.replace(&from, to);
    }

    /// Whatever else holds the address answers.
    fn elsewhere(&mut self, other: S3Server) {
        self.endpoint(&other.endpoint());
        self.other = Some(other);
    }

    /// All objects but those that `keep` names are gone.
    fn lose_all_but(&mut self, keep: &[&str]) {
        for key in self.server.keys() {
            if !keep.iter().any(|end| key.ends_with(end)) {
                self.server.lose(&key);
            }
        }
    }

    /// Fetches as archive recovery does, but what may pass is tried for these seconds only, and so long may the store be silent.
    fn fetch(&self, pgdata: &Path, name: &str, target: &str, seconds: u64) -> Run {
        pitr_restore()
            .arg("--config")
            .arg(self.configure(pgdata))
            .args([name, target])
            .dir(pgdata)
            .env("PITR_FAULT_SECONDS", seconds.to_string())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .run()
    }

    /// Writes the configuration, and returns its path.
    fn configure(&self, pgdata: &Path) -> PathBuf {
        let (pgdata, more) = (pgdata.display(), &self.cluster);
        let text = format!(
            "[clusters.main]\npgdata = \"{pgdata}\"\n{more}{}",
            self.sections
        );
        self.sandbox.file("pitr.toml", text)
    }

    /// Whether what the case is about has happened.
    fn has_happened(&self) -> bool {
        match (&self.other, self.fired.as_slice()) {
            (Some(other), _) => !other.log().is_empty() && self.server.log().is_empty(),
            (None, []) => true,
            (None, fired) => fired.iter().all(|f| f.times() > 0),
        }
    }
}

/// A way in which a repository cannot tell.
struct Case {
    name: &'static str,
    spoil: fn(&mut Stage),
    status: i32,
    /// Parts of the message: the cause, and what helps.
    says: &'static [&'static str],
}

const fn case(
    name: &'static str,
    status: i32,
    says: &'static [&'static str],
    spoil: fn(&mut Stage),
) -> Case {
    Case {
        name,
        spoil,
        status,
        says,
    }
}

const CASES: &[Case] = &[
    case(
        "wrong key",
        207,
        &["InvalidAccessKeyId", "pitr repo check"],
        |s| {
            let wrong = s.server.credentials(&s.sandbox, "AKIDNOBODY");
            let right = s.sandbox.join(format!("credentials-{KEY}"));
            s.replace(right.to_str().unwrap(), wrong.to_str().unwrap());
        },
    ),
    case(
        "wrong secret",
        207,
        &["SignatureDoesNotMatch", "The secret key is wrong"],
        |s| s.fault("/bucket", Fault::Error(403, "SignatureDoesNotMatch")),
    ),
    case(
        "no credentials",
        202,
        &["no credentials", "credentials_file"],
        |s| {
            let empty = s.sandbox.file("empty", "[default]\n");
            let right = s.sandbox.join(format!("credentials-{KEY}"));
            s.replace(right.to_str().unwrap(), empty.to_str().unwrap());
        },
    ),
    case(
        "expired credentials",
        207,
        &["ExpiredToken", "Renew the credentials"],
        |s| s.fault("/bucket", Fault::Error(400, "ExpiredToken")),
    ),
    case("f07: 403 for everything", 207, &["AccessDenied"], |s| {
        s.fault("/bucket", Fault::Error(403, "AccessDenied"));
    }),
    case(
        "f07: 403 instead of 404",
        207,
        &["AccessDenied", "s3:ListBucket", "absent"],
        |s| {
            s.fault(ABSENT, Fault::Error(403, "AccessDenied"));
            s.fault("/00000002/history", Fault::Error(403, "AccessDenied"));
        },
    ),
    case(
        "f07: no right to list",
        207,
        &["AccessDenied", "s3:ListBucket"],
        |s| s.fault("list-type=2", Fault::Error(403, "AccessDenied")),
    ),
    case(
        "f08: wrong bucket",
        208,
        &["NoSuchBucket", "Correct the url"],
        |s| s.replace("s3://bucket/pg", "s3://another/pg"),
    ),
    case(
        "f08: the bucket is gone",
        208,
        &["NoSuchBucket", "Correct the url"],
        |s| s.fault("/bucket", Fault::Error(404, "NoSuchBucket")),
    ),
    case(
        "f08: the bucket goes while it is asked",
        208,
        &["NoSuchBucket", "Correct the url"],
        |s| s.fault("/wal/", Fault::Error(404, "NoSuchBucket")),
    ),
    case(
        "wrong prefix",
        208,
        &["pitr.json", "Correct the url"],
        |s| {
            s.replace("s3://bucket/pg", "s3://bucket/other");
        },
    ),
    case("f08: a name of nobody", 200, &["could not read"], |s| {
        s.endpoint("http://store.invalid:9000");
        s.sections.push_str("allow_http = true\n");
    }),
    case("f08: nobody listens", 200, &["could not read"], |s| {
        s.endpoint("http://127.0.0.1:1");
    }),
    case("f08: no TLS there", 200, &["could not read"], |s| {
        s.replace("http://127", "https://127");
    }),
    case(
        "f08: the name leads to another, empty store",
        208,
        &["pitr.json", "Correct the url"],
        |s| s.elsewhere(S3Server::start()),
    ),
    case("f08: the name leads to a web server", 200, &["404"], |s| {
        let other = S3Server::start();
        s.fired
            .push(other.fault("", FOR_EVER, Fault::Stranger(404)));
        s.elsewhere(other);
    }),
    case("a proxy's page under 200", 200, &["could not"], |s| {
        s.fault("/bucket", Fault::Stranger(200));
    }),
    case(
        "a proxy's page for the file and the list alone",
        200,
        &["404"],
        |s| s.fault("/wal/", Fault::Stranger(404)),
    ),
    case("404 without a word", 200, &["404"], |s| {
        s.fault("/wal/", Fault::Error(404, ""));
    }),
    case("500", 200, &["InternalError", "tried"], |s| {
        s.fault("/bucket", Fault::Error(500, "InternalError"));
    }),
    case("503 for histories and segments", 200, &["SlowDown"], |s| {
        s.fault("/wal/", Fault::Error(503, "SlowDown"));
    }),
    case("500 for lists", 200, &["could not list"], |s| {
        s.fault("list-type=2", Fault::Error(500, "InternalError"));
    }),
    case("an error under status 200", 200, &["could not list"], |s| {
        s.fault("list-type=2", Fault::ErrorIn200("InternalError"));
    }),
    case("a list that breaks off", 200, &["could not list"], |s| {
        s.fault("list-type=2", Fault::Truncated(70));
    }),
    case("silence", 200, &["no whole answer"], |s| {
        s.fault("/bucket", Fault::Stalled);
    }),
    case("silence after the marker", 200, &["no whole answer"], |s| {
        s.fault("/wal/", Fault::Stalled);
    }),
    case("connections that break", 200, &["could not read"], |s| {
        s.fault("/bucket", Fault::Reset);
    }),
    case(
        "clock skew that nothing mends",
        207,
        &["its clock is", "Correct the clock"],
        |s| s.fault("/bucket", Fault::Error(403, "RequestTimeTooSkewed")),
    ),
    case(
        "a region that nobody names",
        202,
        &["PermanentRedirect", "Correct region or endpoint"],
        |s| s.fault("/bucket", Fault::Error(301, "PermanentRedirect")),
    ),
    case(
        "no region is known",
        202,
        &["no region is known", "Set region"],
        |s| {
            let endpoint = format!("endpoint = \"{}\"\n", s.server.endpoint());
            s.replace(&endpoint, "");
            s.replace("region = \"us-east-1\"\n", "");
        },
    ),
    case(
        "an empty bucket where there was data",
        208,
        &["pitr.json", "pitr init"],
        |s| s.lose_all_but(&[]),
    ),
    case(
        "everything but the marker is gone",
        203,
        &["not registered"],
        |s| s.lose_all_but(&["pitr.json"]),
    ),
    case(
        "f03: of two repositories one is down",
        200,
        &["could not read"],
        |s| {
            let second = section("second", &s.server, &s.sandbox);
            let second = second.replace(&s.server.endpoint(), "http://127.0.0.1:1");
            s.sections.push_str(&second);
        },
    ),
    case(
        "f03: of two repositories one is closed",
        207,
        &["AccessDenied", "pitr repo check"],
        |s| {
            let second = section("second", &s.server, &s.sandbox).replace("/pg\"", "/closed\"");
            s.sections.push_str(&second);
            s.fault("/closed", Fault::Error(403, "AccessDenied"));
        },
    ),
];

/// Returns the faults in the answers to a case; nothing, if all is well.
fn wrong(pgdata: &Path, objects: &[(String, Vec<u8>)], n: usize) -> String {
    let case = &CASES[n];
    let mut stage = Stage::new(objects);
    let target = format!("pg_wal/RECOVERYXLOG{n}");
    let mut complaints = String::new();
    // The store is sound before: there, absence is proven. A machine that stands still for a second makes pitr ask
    // again, and report that.
    let run = stage.fetch(pgdata, ABSENT, &target, 100);
    if run.code() != 1 || run.stderr.contains("error") {
        let _ = writeln!(complaints, "{}: before it: {run}", case.name);
    }
    stage.server.clear_log();
    (case.spoil)(&mut stage);
    for name in [ABSENT, HISTORY] {
        complaints.push_str(&asked(case, &stage, pgdata, name, &target));
    }
    if !stage.has_happened() {
        let _ = writeln!(complaints, "{}: it never happened", case.name);
    }
    complaints
}

/// Asks for one file.
fn asked(case: &Case, stage: &Stage, pgdata: &Path, name: &str, target: &str) -> String {
    let code = format!("pitr-restore: error R{}: ", case.status);
    let impact = "must not take this for the end of the WAL";
    let is_there = || pgdata.join(target).exists();
    let is_wrong = |run: &Run| run.code() != case.status || is_there();
    let is_told = |run: &Run| {
        let says = |part: &&str| run.stderr.contains(*part);
        case.says.iter().all(says) && says(&code.as_str()) && says(&impact)
    };
    let fetch = |seconds| stage.fetch(pgdata, name, target, seconds);
    let run = match case.status {
        200 => patiently(fetch, |run| is_wrong(run) || is_told(run)),
        _ => fetch(100),
    };
    match is_told(&run) && !is_wrong(&run) {
        true => String::new(),
        false => format!(
            "{}: {} and {:?} expected (there: {}): {run}\n",
            case.name,
            case.status,
            case.says,
            is_there()
        ),
    }
}

/// Segments in a bucket, and a cluster that was stopped behind them.
fn archived() -> (Still, Stage) {
    let still = Still::new(17, 1, 2);
    let stage = Stage::new(&[]);
    let config = stage.configure(still.cluster.pgdata());
    let program = |program: Program| program.arg("--config").arg(&config);
    program(pitr()).words("init --quiet").succeed();
    for name in &still.segments {
        let path = still.wal(name);
        program(pitr_archive()).arg(path).succeed();
    }
    (still, stage)
}

#[test]
fn f02_f03_f06_f07_f08_only_who_was_reached_and_listed_says_not_there() {
    let (still, source) = archived();
    still.cluster.touch("recovery.signal");
    let keys = source.server.keys();
    let objects: Vec<(String, Vec<u8>)> = keys
        .into_iter()
        .map(|key| (key.clone(), source.server.object(&key)))
        .collect();
    let pgdata = still.cluster.pgdata();
    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(String::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= CASES.len() {
                        return;
                    }
                    let found = wrong(pgdata, &objects, n);
                    complaints.lock().unwrap().push_str(&found);
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{complaints}");
}

#[test]
fn f18_promote_unreachable_chooses_what_an_outage_means_to_a_promotion() {
    let (still, mut stage) = archived();
    let pgdata = still.cluster.pgdata().to_owned();
    let outage = stage
        .server
        .fault("/bucket", FOR_EVER, Fault::Error(503, "SlowDown"));
    let fetch = |stage: &Stage, name: &str| stage.fetch(&pgdata, name, "pg_wal/RECOVERYXLOG", 2);
    // The last segment, in which the server was stopped, came by streaming; of one behind it there is nothing.
    let streamed = format!(
        "{}{:08X}",
        &still.segments[1][..16],
        u32::from_str_radix(&still.segments[1][16..], 16).unwrap() + 1
    );
    assert!(still.wal(&streamed).exists());
    for (choice, wanted, is_promoted) in [
        ("auto", streamed.as_str(), true),
        ("auto", ABSENT, false),
        ("refuse", &streamed, false),
        ("refuse", ABSENT, false),
        ("proceed", &streamed, true),
        ("proceed", ABSENT, true),
    ] {
        stage.cluster = format!("promote_unreachable = \"{choice}\"\n");
        crate::fetch::mode(&still, "standby.signal", false);
        still.cluster.touch("promote");
        let answers = |run: Run| {
            assert_eq!(
                run.code(),
                if is_promoted { 1 } else { 200 },
                "{choice} {wanted}: {run}"
            );
            let warned = run.stderr.contains("warning: ") && run.stderr.contains("not here");
            assert_eq!(warned, is_promoted, "{run}");
            let hinted = run.stderr.contains("\"proceed\" promotes without it");
            assert_eq!(hinted, !is_promoted, "{run}");
        };
        answers(fetch(&stage, wanted));
        // The calls that follow see neither the file nor, at last, the signal; the decision holds.
        std::fs::remove_file(pgdata.join("promote")).unwrap();
        answers(fetch(&stage, HISTORY));
        std::fs::remove_file(pgdata.join("standby.signal")).unwrap();
        answers(fetch(&stage, HISTORY));
    }
    assert!(outage.times() >= 18);
    // With the archive there, its word counts, whatever is chosen. Once is enough, on a machine that may itself stand still.
    stage.server.heal();
    stage.replace("stall_timeout = \"1s\"\nretry_budget = \"1s\"\n", "");
    for choice in ["auto", "refuse", "proceed"] {
        stage.cluster = format!("promote_unreachable = \"{choice}\"\n");
        wait_until("the archive's word counts", || {
            crate::fetch::mode(&still, "standby.signal", false);
            still.cluster.touch("promote");
            let run = stage.fetch(&pgdata, ABSENT, "pg_wal/RECOVERYXLOG", 100);
            run.code() == 1 && run.stderr.is_empty()
        });
    }
}

/// A primary that archives into a bucket, and the network between that and its standby.
struct Pair {
    stage: Stage,
    primary: Cluster,
    proxy: Proxy,
}

impl Pair {
    fn new(major: u32) -> Pair {
        let builder = Cluster::small(major);
        let mut primary = builder.create();
        let mut stage = Stage::new(&[]);
        // The primary has a configuration of its own: it always reaches the store.
        let direct = stage.configure(primary.pgdata());
        let own = stage.sandbox.join("primary.toml");
        std::fs::rename(direct, &own).unwrap();
        let program = |program: Program| program.arg("--config").arg(&own);
        program(pitr()).words("init --quiet").succeed();
        primary.append_config("archive_mode", "on");
        let archive = program(pitr_archive()).arg("%p").shell();
        primary.append_config("archive_command", &archive);
        primary.start();
        primary.sql("create table t (a int)");
        let endpoint = stage.server.endpoint();
        let port = endpoint.rsplit(':').next().unwrap().parse().unwrap();
        let proxy = Proxy::to(port);
        stage.endpoint(&format!("http://127.0.0.1:{}", proxy.port()));
        Pair {
            stage,
            primary,
            proxy,
        }
    }

    /// A standby of the primary, which has not been started.
    fn standby(&self) -> Cluster {
        let config = self.stage.sandbox.join("pitr.toml");
        let restore = pitr_restore().arg("--config").arg(config);
        let restore = restore.words("%f %p").shell();
        Cluster::builder(self.primary.major())
            .segment_size_mb(1)
            .standby_of(&self.primary)
            .without_fsync()
            .option("archive_mode", "off")
            .option("restore_command", restore)
            .create()
    }

    fn choose(&mut self, choice: &str) {
        self.stage.cluster = format!("promote_unreachable = \"{choice}\"\n");
        self.stage.configure(self.primary.pgdata());
    }

    fn outage(&self) {
        self.proxy.refuse(true);
        self.proxy.reset();
    }

    fn insert(&self) {
        self.primary.sql("insert into t values (1)");
    }
}

fn wait_rows(server: &Cluster, rows: usize) {
    wait_until(&format!("{rows} rows are there"), || {
        server.value("select count(*) from t") == rows.to_string()
    });
}

/// As `pg_ctl promote` does: a server that stops at it answers nobody.
fn promote(server: &Cluster) {
    server.touch("promote");
    let pid = Pid::from_raw(server.pid().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
}

/// The server stopped with a status of restore_command that no server takes for "not there", and took no timeline.
fn stopped(server: &mut Cluster, seen: usize) -> String {
    assert_ne!(server.wait_ended(), 0);
    let log = server.log().split_off(seen);
    let reason = "from archive: child process exited with exit code 200";
    assert!(log.contains("FATAL") && log.contains(reason), "{log}");
    assert!(!log.contains("selected new timeline"), "{log}");
    let hint = "set promote_unreachable in the cluster's section";
    assert!(log.contains(hint), "{log}");
    assert!(server.pgdata().join("standby.signal").exists(), "{log}");
    log
}

#[test]
fn f18_a_standby_without_the_archived_tail_is_promoted_only_by_choice() {
    let mut pair = Pair::new(17);
    let mut standby = pair.standby();
    standby.append_config("primary_conninfo", "");
    let auto_conf = standby.pgdata().join("postgresql.auto.conf");
    std::fs::write(&auto_conf, "").unwrap();
    pair.choose("auto");
    pair.insert();
    pair.primary.archive_now();
    standby.start();
    wait_rows(&standby, 1);
    let mut took = Vec::new();
    for (rows, next) in [(1, "refuse"), (2, "refuse"), (3, "proceed")] {
        let (seen, refused) = (standby.log().len(), pair.proxy.counts().refused);
        pair.outage();
        pair.insert();
        pair.primary.archive_now();
        wait_until("the standby waits for the archive", || {
            standby.log()[seen..].contains("trying again")
        });
        let asked = Instant::now();
        promote(&standby);
        wait_until("restore_command has answered", || {
            standby.log()[seen..].contains("child process exited with exit code 200")
        });
        took.push(asked.elapsed());
        stopped(&mut standby, seen);
        assert!(pair.proxy.counts().refused > refused);
        pair.proxy.calm();
        // Nobody reads it just then.
        pair.choose(next);
        standby.start();
        wait_rows(&standby, rows + 1);
    }
    answer_promotions(&took);
    pair.outage();
    pair.insert();
    pair.primary.archive_now();
    promote(&standby);
    standby.wait_promoted();
    wait_rows(&standby, 4);
    assert!(standby.log().contains("answering \"not here\""));
}

/// Its stream runs until the moment it is promoted, so that no file tells of the promotion.
fn f06_f18_a_streaming_standby_is_promoted_in_an_outage(major: u32) {
    let mut pair = Pair::new(major);
    let mut standby = pair.standby();
    pair.choose("refuse");
    let streams = |pair: &Pair, rows: usize| {
        let sql = "select count(*) from pg_stat_replication where state = 'streaming'";
        wait_until("the standby streams", || pair.primary.value(sql) == "1");
        pair.insert();
        rows
    };
    standby.start();
    let rows = streams(&pair, 1);
    wait_rows(&standby, rows);
    let seen = standby.log().len();
    pair.outage();
    promote(&standby);
    stopped(&mut standby, seen);
    // It is a standby still, and the next time it is let through with what it has.
    pair.choose("auto");
    let (seen, refused) = (standby.log().len(), pair.proxy.counts().refused);
    standby.start();
    let rows = streams(&pair, 2);
    wait_rows(&standby, rows);
    promote(&standby);
    standby.wait_promoted();
    wait_rows(&standby, 2);
    let log = standby.log().split_off(seen);
    assert!(log.contains("answering \"not here\""), "{log}");
    assert!(pair.proxy.counts().refused > refused);
}

per_major!(f06_f18_a_streaming_standby_is_promoted_in_an_outage, v15 v19);

#[test]
fn t11_a_download_that_fails_in_part_is_tried_again_or_fails_as_a_whole() {
    let mut pair = Pair::new(17);
    let conninfo = pair.primary.conninfo("postgres");
    pair.stage.cluster = format!("conninfo = \"{conninfo}\"\n");
    let hasty = pair.stage.configure(pair.primary.pgdata());
    let config = pair.stage.sandbox.join("hasty.toml");
    std::fs::rename(hasty, &config).unwrap();
    let hasty = config;
    pair.stage
        .replace("stall_timeout = \"1s\"\nretry_budget = \"1s\"\n", "");
    let config = pair.stage.configure(pair.primary.pgdata());
    let program = |config: &Path| pitr().arg("--config").arg(config);
    program(&config).words("backup --quiet").succeed();
    let restore = |config: &Path, to: &Path| {
        let restore = program(config).words("restore --quiet --to");
        restore.arg(to).run()
    };
    let server = &pair.stage.server;
    let fired = [
        server.fault("/packs/", 1, Fault::Reset),
        server.fault("/packs/", 1, Fault::Truncated(1000)),
        server.fault("/packs/", 1, Fault::Error(500, "InternalError")),
        server.fault("/layers/", 1, Fault::Error(503, "SlowDown")),
    ];
    let to = pair.stage.sandbox.join("copy");
    restore(&config, &to).success();
    assert!(fired.iter().all(|f| f.times() == 1));
    assert!(to.join("global/pg_control").exists());
    server.heal();
    for fault in [
        Fault::Error(500, "InternalError"),
        Fault::Flipped(100),
        Fault::Error(403, "AccessDenied"),
    ] {
        let to = pair.stage.sandbox.join("part");
        let fired = server.fault("/packs/", FOR_EVER, fault.clone());
        let run = restore(&hasty, &to);
        assert!(
            run.code() != 0 && run.stderr.contains("error "),
            "{fault:?}: {run}"
        );
        assert!(
            fired.times() > 0 && !to.join("global/pg_control").exists(),
            "{fault:?}"
        );
        server.heal();
        // The same command goes on where it ended, and nothing of what was wrong is left.
        restore(&config, &to).success();
        let same = std::process::Command::new("diff")
            .arg("-rq")
            .args([&to, &pair.stage.sandbox.join("copy")])
            .output()
            .unwrap();
        let differing = String::from_utf8_lossy(&same.stdout).into_owned();
        assert!(!differing.contains("base/"), "{differing}");
        std::fs::remove_dir_all(&to).unwrap();
    }
}
