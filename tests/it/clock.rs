//! K01: the clock of the host jumps by an hour or by ten years, for every program.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use pitr::pg::time::TimestampTz;
use pitr::repo::event::{self, Event};
use pitr::repo::layout::ClusterLayout;
use pitr::repo::run_claim::{self, RunClaim};
use pitr::store::file::FileStore;

use crate::common::mount::HangingDisk;
use crate::common::{PATIENCE, Program, Sandbox, Site, Still, keep_one, user};
use crate::fetch::{Away, mode, not_here_with_warning};
use crate::require_root;
use crate::several::{Two, transfer};

const HOUR: i64 = 3600;
const TEN_YEARS: i64 = 10 * 365 * 24 * HOUR;
const JUMPS: [i64; 4] = [HOUR, -HOUR, TEN_YEARS, -TEN_YEARS];

/// Stands in for the C library's clock: `CLOCK_OFFSET` seconds are added from the call number `CLOCK_FROM` on, with `CLOCK_SWINGS` to
/// every other call; with `CLOCK_STOPS` it stands still, with `CLOCK_AT` in that second. How often it changed an answer goes to `CLOCK_LOG`.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long calls, changed;
static struct timespec first;
static long number(const char *name) { const char *text = getenv(name); return text ? atol(text) : 0; }
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (failed || id != CLOCK_REALTIME) return failed;
    long call = __sync_add_and_fetch(&calls, 1);
    if (call == 1) first = *now;
    if (getenv("CLOCK_STOPS")) *now = first;
    if (getenv("CLOCK_AT")) now->tv_sec = number("CLOCK_AT");
    if (call < number("CLOCK_FROM") || (getenv("CLOCK_SWINGS") && call % 2)) return 0;
    now->tv_sec += number("CLOCK_OFFSET");
    __sync_add_and_fetch(&changed, 1);
    return 0;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    if (!failed) { now->tv_sec = precise.tv_sec; now->tv_usec = precise.tv_nsec / 1000; }
    return failed;
}
__attribute__((destructor)) static void done(void) {
    const char *path = getenv("CLOCK_LOG");
    int fd = path ? open(path, O_WRONLY | O_APPEND) : -1;
    char text[64];
    int length = snprintf(text, sizeof text, "%ld %ld\n", calls, changed);
    if (fd >= 0 && write(fd, text, length) != length) _exit(99);
}
"#;

/// A clock that a test moves.
pub struct Clock {
    shim: PathBuf,
    log: PathBuf,
    sandbox: Sandbox,
}

/// The clock calls of a program, and how many answers the shim changed.
struct Seen {
    calls: usize,
    changed: usize,
}

/// A library of this source in C, for `LD_PRELOAD`.
pub fn preloaded(sandbox: &Sandbox, source: &str) -> PathBuf {
    let source = sandbox.file("shim.c", source);
    let shim = sandbox.join("shim.so");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&shim, &source])
        .args(["-ldl"])
        .output()
        .expect("cc starts: Rust needs it, too");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    user::own(&shim);
    shim
}

impl Clock {
    pub fn new() -> Clock {
        let sandbox = Sandbox::new("clock");
        let shim = preloaded(&sandbox, SHIM);
        let log = sandbox.file("log", "");
        Clock { shim, log, sandbox }
    }

    /// The program with a clock that is off by this much.
    pub fn off(&self, program: &Program, seconds: i64) -> Program {
        program
            .clone()
            .env("LD_PRELOAD", &self.shim)
            .env("CLOCK_LOG", &self.log)
            .env("CLOCK_OFFSET", seconds.to_string())
    }

    /// Returns the calls of the last program to end.
    fn seen(&self) -> Seen {
        let log = std::fs::read_to_string(&self.log).unwrap();
        let last = log.lines().last().expect("the shim was loaded");
        let (calls, changed) = last.split_once(' ').unwrap();
        Seen {
            calls: calls.parse().unwrap(),
            changed: changed.parse().unwrap(),
        }
    }
}

#[test]
fn k01_archiving_asks_no_clock_that_can_be_set() {
    let clock = Clock::new();
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    still.push(name).succeed();
    let object = std::fs::read(still.site.object(name)).unwrap();
    for jump in JUMPS {
        still.forget();
        for _ in 0..2 {
            clock.off(&still.push(name), jump).succeed();
            clock.seen();
        }
        assert!(
            std::fs::read(still.site.object(name)).unwrap() == object,
            "a segment's object is made of its bytes alone ({jump})"
        );
        clock.off(&still.fetch(name), jump).succeed();
        clock.seen();
        let fetched = std::fs::read(still.wal("RECOVERYXLOG")).unwrap();
        assert!(fetched == std::fs::read(still.wal(name)).unwrap(), "{jump}");
    }
    // The decision of a promotion holds although the clock is set before its last call.
    mode(&still, "standby.signal", true);
    let away = Away::new(&still.site);
    still.cluster.touch("promote");
    let ahead = |file: &str| clock.off(&still.fetch(file), HOUR).run();
    std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
    not_here_with_warning(&still, ahead(name));
    for signal in ["promote", "standby.signal"] {
        std::fs::remove_file(still.cluster.pgdata().join(signal)).unwrap();
    }
    for jump in JUMPS {
        let probe = clock.off(&still.fetch("00000002.history"), jump);
        not_here_with_warning(&still, probe.run());
    }
    drop(away);
}

#[test]
fn k01_timeouts_run_by_a_clock_that_nobody_sets() {
    require_root!("k01_timeouts_run_by_a_clock_that_nobody_sets");
    let clock = Clock::new();
    let still = Still::new(17, 1, 1);
    let name = still.segments[0].as_str();
    still.push(name).succeed();
    let hanging = HangingDisk::over(still.site.repository());
    mode(&still, "recovery.signal", false);
    for (program, code) in [(still.push(name), 40), (still.fetch(name), 200)] {
        for jump in [TEN_YEARS, -TEN_YEARS] {
            let program = clock
                .off(&program, jump)
                .env("CLOCK_SWINGS", "1")
                .env("PITR_FAULT_SECONDS", "2");
            let started = Instant::now();
            let run = program.exits(code);
            let took = started.elapsed();
            assert!(
                took >= Duration::from_secs(2) && took < PATIENCE,
                "{took:?}: {run}"
            );
        }
    }
    drop(hanging);
}

#[test]
fn k01_backups_under_a_jumping_clock_have_ids_of_their_own_and_the_order_of_their_positions() {
    let clock = Clock::new();
    let (site, cluster) = Site::with_cluster(17);
    let backup = site.pitr().words("backup --json");
    let mut taken = Vec::new();
    let mut take = |program: &Program| {
        cluster.sql("create table if not exists t (a int); insert into t values (1)");
        let run = program.succeed();
        let seen = clock.seen();
        assert!(seen.changed > 0, "{run}");
        taken.push(run.id());
        seen.calls
    };
    // It jumps in the middle of a backup.
    let calls = take(&clock.off(&backup, 300));
    for jump in JUMPS {
        let from = (calls / 2).to_string();
        take(&clock.off(&backup, jump).env("CLOCK_FROM", from));
    }
    // Twice in the same second of a clock that stands still.
    let still = clock.off(&backup, 300).env("CLOCK_STOPS", "1");
    take(&still);
    take(&still);
    let distinct: BTreeSet<&String> = taken.iter().collect();
    assert_eq!(distinct.len(), taken.len(), "{taken:?}");
    let shown = |args: &[&str]| site.pitr().args(args).succeed().json();
    let expire = shown(&[
        "expire",
        "--min-age",
        "0s",
        "--keep",
        "9",
        "--dry-run",
        "--json",
    ]);
    let ids = |list: &serde_json::Value| -> Vec<String> {
        let list = list.as_array().unwrap();
        list.iter()
            .map(|b| b["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&expire["clusters"][0]["backups"]), taken);
    let info = site.pitr().words("info --json").run().json();
    assert_eq!(ids(&info["clusters"][0]["backups"]), taken);
    site.pitr().arg("verify").succeed();
}

#[test]
fn k01_expire_refuses_when_the_clocks_differ() {
    let clock = Clock::new();
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create table t (a int)");
    let backups: Vec<String> = (0..2)
        .map(|n| {
            cluster.sql(&format!("insert into t values ({n})"));
            cluster.archive_now();
            site.backup()
        })
        .collect();
    drop(cluster);
    // To a clock that is ten years ahead it is long over.
    let claim = RunClaim {
        job: "full".to_owned(),
        concern: run_claim::concern(&[], &[]),
        scheduled: TimestampTz::from_system_time(SystemTime::now()),
        host: "db1".to_owned(),
        pid: 1,
        nonce: "0".repeat(32),
    };
    let store = FileStore::open(site.repository(), 1).unwrap();
    run_claim::take(&store, &claim).unwrap();
    let expire = site.pitr().args(keep_one(&[]));
    let confirmed = expire.clone().words("--confirm --json");
    let refused = |program: &Program| {
        let before = site.files();
        let run = program.exits(8);
        // As JSON an error is on standard output, unless something else is.
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(said.contains("this host's clock says"), "{run}");
        assert!(clock.seen().changed > 0);
        assert_eq!(site.files(), before);
    };
    for jump in JUMPS {
        refused(&clock.off(&expire.clone().arg("--dry-run"), jump));
        refused(&clock.off(&confirmed.clone().words("--grace 0"), jump));
    }
    // A few minutes are no reason.
    clock.off(&expire.clone().arg("--dry-run"), 300).succeed();

    // Marked by the right clock: no jump makes the grace period be over.
    confirmed.succeed();
    for jump in JUMPS {
        refused(&clock.off(&confirmed, jump));
    }
    // An object from the future: the clock was set back, here as in the repository.
    let last = site
        .files()
        .into_iter()
        .rfind(|f| f.contains("/wal/00000001/0000"))
        .unwrap();
    let path = site.repository().join(&last);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let was = file.metadata().unwrap().modified().unwrap();
    file.set_modified(was + Duration::from_secs(1200)).unwrap();
    let run = confirmed.exits(8);
    assert!(
        format!("{}{}", run.stdout, run.stderr).contains(&last),
        "{run}"
    );
    file.set_modified(was).unwrap();

    // It jumps in the middle of a run, at whatever moment.
    let now = confirmed.clone().words("--grace 0");
    let sandbox = Sandbox::new("jumps");
    let copied = |name: &str| {
        let to = sandbox.join(name);
        let cp = Program::new("cp").arg("-a").arg(site.repository()).arg(&to);
        cp.privileged().succeed();
        let program = crate::common::pitr()
            .args(keep_one(&["--confirm", "--json", "--grace", "0"]))
            .words("--cluster main --repository")
            .arg(&to);
        (program, to)
    };
    let (undisturbed, _) = copied("undisturbed");
    clock.off(&undisturbed, 0).succeed();
    let calls = clock.seen().calls;
    assert!(calls >= 3, "{calls}");
    for from in 1..=calls {
        for jump in [TEN_YEARS, -TEN_YEARS] {
            let (program, at) = copied(&format!("{from}{jump}"));
            let run = clock
                .off(&program, jump)
                .env("CLOCK_FROM", from.to_string())
                .run();
            assert!(matches!(run.code(), 0 | 8), "{from}: {run}");
            assert!(clock.seen().changed > 0, "{from}: {run}");
            // Which of the two stays is no question of the clock.
            program.succeed();
            let left = std::fs::read_dir(at.join("clusters/main")).unwrap();
            let cluster = left.map(|e| e.unwrap().path()).next().unwrap();
            assert!(!cluster.join("backups").join(&backups[0]).exists());
            assert!(
                cluster
                    .join("backups")
                    .join(&backups[1])
                    .join("manifest")
                    .exists()
            );
        }
    }
    now.succeed();
    drop(clock.sandbox);
}

#[test]
fn c11_a_backup_under_a_wrong_clock_is_refused_and_stores_nothing() {
    let clock = Clock::new();
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create table t (a int)");
    let before = site.files();
    for jump in JUMPS {
        let run = clock.off(&site.pitr().arg("backup"), jump).run();
        assert!(clock.seen().changed > 0, "{run}");
        run.expect_code(8).expect_stderr("this host's clock says");
    }
    assert_eq!(site.files(), before);
}

#[test]
fn c11_claims_from_the_future_count_by_the_stores_clock() {
    let (site, cluster) = Site::with_cluster(15);
    let backups: Vec<String> = (0..2)
        .map(|n| {
            cluster.sql(&format!("create table t{n} (a int)"));
            cluster.archive_now();
            site.backup()
        })
        .collect();
    let layout = ClusterLayout::new("main", cluster.system_identifier()).unwrap();
    let store = FileStore::open(site.repository(), 7).unwrap();
    // Older programs left this under a clock of 2039: a backup that was killed before it recorded where its WAL begins,
    // and a restore.
    let killed = "20391120T064049Z-full";
    let of_2039 = |subject: &str, kind: &str, purpose: &str| Event {
        event: kind.into(),
        subject: subject.into(),
        time: "2039-11-20T06:40:49Z".parse().unwrap(),
        host: "db9".into(),
        purpose: Some(purpose.into()),
        seconds: Some(3 * 3600),
        ..Event::default()
    };
    event::begin(&store, &layout, &of_2039(killed, "begin", "backup")).unwrap();
    let claims = [(killed, "backup"), (backups[0].as_str(), "restore")].map(|(id, purpose)| {
        let name = event::record(&store, &layout, &of_2039(id, "claim", purpose), 7).unwrap();
        site.cluster_folder().join("events").join(id).join(name)
    });
    let begin = claims[0].with_file_name("begin");
    let expire = || {
        let args = keep_one(&["--grace", "0", "--confirm", "--json"]);
        site.pitr().args(args).privileged().run()
    };
    // Now is when the store received them: the one may run, the other is in use.
    let run = expire().expect_code(6);
    let said = run.json()["clusters"][0]["withheld"][0].to_string();
    assert!(
        said.contains(killed) && said.contains("repo claims"),
        "{run}"
    );
    assert_eq!(
        run.json()["clusters"][0]["backups"][0]["fate"],
        "keep",
        "{run}"
    );
    for path in claims.iter().chain([&begin]) {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let day = Duration::from_secs(25 * 3600);
        file.set_modified(std::time::SystemTime::now() - day)
            .unwrap();
    }
    let run = expire().expect_code(0);
    let done = &run.json()["clusters"][0];
    assert_eq!(done["outcome"]["deleted_backups"][0], backups[0], "{run}");
    assert!(
        done["outcome"]["deleted_segments"].as_u64() > Some(0),
        "{run}"
    );
    assert_eq!(done["tombstones"][0], killed, "{run}");
}

#[test]
fn c13_backups_of_one_second_in_two_repositories_have_ids_of_their_own_and_are_copied() {
    let clock = Clock::new();
    let two = Two::new();
    two.work(100);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let second = since.unwrap().as_secs().to_string();
    let take = |repository: &str| {
        let backup = ["backup", "--json", "--quiet", "--repository", repository];
        let program = clock.off(&two.site.pitr().args(backup), 0);
        let run = program.env("CLOCK_AT", &second).succeed();
        assert!(clock.seen().changed > 0, "{run}");
        run.id()
    };
    let (first, other) = (take(&two.first()), take("second"));
    assert_eq!(first[..16], other[..16], "of one second");
    assert_ne!(first, other);
    // The older one counts as expired where the newer one is.
    let run = two.sync().arg("--all").succeed();
    let copied = |to: &str| transfer(&run, to)["copied"]["backups"].clone();
    assert_eq!(copied("second"), serde_json::json!([first]), "{run}");
    assert_eq!(copied(&two.first()), serde_json::json!([other]), "{run}");
}

#[test]
fn k05_info_warns_of_times_that_the_servers_clock_has_had_twice() {
    let clock = Clock::new();
    let (site, mut cluster) = Site::with_cluster(18);
    cluster.sql("create table t (a int)");
    site.pitr().arg("backup").succeed();
    let info = || site.pitr().words("info --json").run();
    assert!(!info().stdout.contains("the clock was set back"));
    let seconds = OsStr::new("3600");
    let ahead = [
        ("LD_PRELOAD", clock.shim.as_os_str()),
        ("CLOCK_OFFSET", seconds),
    ];
    for environment in [&ahead[..], &[]] {
        cluster.set_environment(environment);
        cluster.restart();
        cluster.sql("insert into t values (1)");
        cluster.archive_now();
    }
    let run = info().expect_code(6);
    let problems = run.json()["clusters"][0]["problems"].clone();
    let problems = problems.as_array().unwrap().iter();
    let told = problems.filter(|p| {
        let message = p["message"].as_str().unwrap();
        message.contains("the clock was set back") && message.contains("occur twice")
    });
    assert_eq!(told.count(), 1, "{run}");
}
