//! Several agents with the same job: each scheduled time is run by one of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pitr::config::Encryption;
use pitr::repo::repository::Repository;
use pitr::repo::run_claim::{self, Claimed, RunClaim};
use pitr::store::file::FileStore;
use rustix::process::Signal;

use crate::agent::{Host, SPRING};
use crate::common::mount::HangingDisk;
use crate::common::{Cluster, Program, wait_until};
use crate::sealed::Sealed;

const CLAIMED: &str = "[jobs.look]\nrun = \"repo show\"\nschedule = \"0 * * * *\"\nclaim = true\n";

/// Another agent of the same configuration, with a memory of its own.
struct Other<'a> {
    host: &'a Host,
    config: PathBuf,
}

impl<'a> Other<'a> {
    fn of(host: &'a Host) -> Other<'a> {
        let text = std::fs::read_to_string(host.sandbox.join("pitr.toml")).unwrap();
        let own = host.sandbox.join("state").display().to_string();
        let other = host.sandbox.join("other").display().to_string();
        let port = format!(":{}\"", host.port);
        assert!(text.contains(&own) && text.contains(&port), "{text}");
        let text = text.replace(&own, &other).replace(&port, ":0\"");
        Other {
            host,
            config: host.sandbox.file("other.toml", text),
        }
    }

    fn pitr(&self) -> Program {
        self.host.pitr_with(&self.config)
    }
}

/// The runs of the job in a memory: when they were scheduled, and whether another agent had them.
fn runs(state: &Path) -> BTreeMap<u64, bool> {
    let entries = std::fs::read_dir(state.join("jobs/look"));
    let mut found = BTreeMap::new();
    for entry in entries.into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(name) = name.strip_suffix(".begun") else {
            continue;
        };
        let (micros, attempt) = name.split_once('-').unwrap();
        assert_eq!(attempt, "0");
        let ended = std::fs::read_to_string(path.with_extension("ended")).unwrap_or_default();
        let scheduled = micros.parse::<u64>().unwrap() / 1_000_000;
        found.insert(scheduled, ended.contains("\"elsewhere\""));
    }
    found
}

#[test]
fn j10_two_agents_that_are_killed_all_the_time_run_each_hour_once() {
    // An hour in five seconds.
    let host = Host::new(CLAIMED).hastened(SPRING, 720);
    host.reconfigure("[agent]\n", "[agent]\ninterval = \"12h\"\n");
    let other = Other::of(&host);
    let begun = Instant::now();
    let mut kills = 0;
    let mut random = 5_u64;
    while begun.elapsed() < Duration::from_secs(30) {
        let agents = (host.agent(), other.pitr().arg("agent").spawn());
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        std::thread::sleep(Duration::from_millis(1_000 + (random >> 33) % 4_000));
        // Dropped, both are killed. Their jobs go on.
        drop(agents);
        kills += 1;
    }
    assert!(kills >= 5, "the agents were killed {kills} times");
    let states = [host.sandbox.join("state"), host.sandbox.join("other")];
    let agents = (host.agent(), other.pitr().arg("agent").spawn());
    let both = || [runs(&states[0]), runs(&states[1])];
    let since = Instant::now();
    wait_until("both have met one another", || {
        let all = both();
        // Both are there by then, and leave when they are asked to.
        since.elapsed() > Duration::from_secs(10)
            && all
                .iter()
                .all(|r| r.values().any(|elsewhere| *elsewhere) || r.len() > 3)
            && all
                .iter()
                .flat_map(BTreeMap::values)
                .any(|elsewhere| *elsewhere)
    });
    for agent in [agents.0, agents.1] {
        agent.ended_by(Signal::TERM).success();
    }
    // Runs that were begun end.
    wait_until("no run is under way", || {
        states.iter().all(|state| {
            let lock = std::fs::File::open(state.join("jobs/look/lock")).unwrap();
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).is_ok()
        })
    });
    let [one, two] = both();
    let mut hours: Vec<u64> = one.keys().chain(two.keys()).copied().collect();
    hours.sort_unstable();
    hours.dedup();
    assert!(hours.len() >= 4, "{hours:?}");
    for hour in hours {
        assert_eq!(hour % 3600, 0);
        let own = |runs: &BTreeMap<u64, bool>| runs.get(&hour) == Some(&false);
        assert!(own(&one) != own(&two), "{hour}: {one:?} {two:?}");
    }
}

/// The folder of the claims of the job, which alone has any.
fn folder(repository: &Path) -> PathBuf {
    let entries = std::fs::read_dir(repository.join("jobs/all")).unwrap();
    let folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders.into_iter().next().unwrap()
}

/// `pitr agent exec`, as the agent starts it.
fn exec(program: Program, scheduled: u64) -> Program {
    let micros = (scheduled * 1_000_000).to_string();
    program.args([
        "agent",
        "exec",
        "look",
        "--attempt",
        "0",
        "--scheduled",
        &micros,
    ])
}

#[test]
fn j10_a_claim_outlives_a_kill_and_a_repository_that_is_away_gives_none() {
    let host = Host::new(CLAIMED);
    let other = Other::of(&host);
    let (state, beside) = (host.sandbox.join("state"), host.sandbox.join("other"));
    let hour = |n: u64| SPRING + n * 3600;
    // Killed between claim and start: the run is this agent's, and it takes it up. The other one leaves it alone.
    let killed = exec(host.pitr(), hour(1))
        .env("PITR_FAULT", "run-claimed")
        .run();
    assert!(killed.stderr.contains("run-claimed"), "{killed}");
    assert!(runs(&state).is_empty());
    exec(other.pitr(), hour(1)).succeed();
    assert_eq!(runs(&beside), [(hour(1), true)].into());
    exec(host.pitr(), hour(1)).succeed();
    assert_eq!(runs(&state), [(hour(1), false)].into());
    // A run elsewhere neither failed nor went well.
    let status = other.pitr().words("agent status --json").succeed().json();
    let job = &status["jobs"][0];
    assert!(
        job["last_success"].is_null() && job["elsewhere"].is_string(),
        "{status}"
    );
    other
        .pitr()
        .words("agent status")
        .succeed()
        .expect_stdout("ran on");
    // Without the repository nothing runs, and nothing is recorded: the agent tries again.
    let (repository, away) = (host.sandbox.join("repo"), host.sandbox.join("away"));
    std::fs::rename(&repository, &away).unwrap();
    let run = exec(host.pitr(), hour(2))
        .run()
        .expect_stderr("claim a run of job \"look\"");
    assert_ne!(run.code(), 0, "{run}");
    assert_eq!(runs(&state).len(), 1);
    std::fs::rename(&away, &repository).unwrap();
    exec(host.pitr(), hour(2)).succeed();
    assert_eq!(runs(&state).get(&hour(2)), Some(&false));
    // A damaged claim keeps no job from running, and somebody hears of it.
    let claim = folder(&repository).join("20260328T220000Z");
    std::fs::set_permissions(&claim, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&claim, "nothing").unwrap();
    exec(other.pitr(), hour(2))
        .succeed()
        .expect_stderr("counts for nothing");
    assert_eq!(runs(&beside).get(&hour(2)), Some(&false));
    // An identity that is not one is an error.
    std::fs::write(state.join("agent.id"), "x").unwrap();
    exec(host.pitr(), hour(3))
        .run()
        .expect_stderr("is not what the agent wrote");
    // By hand nothing is claimed.
    let of_job = folder(&repository);
    let claims = || std::fs::read_dir(&of_job).unwrap().count();
    let before = claims();
    host.pitr().words("agent run look").succeed();
    assert_eq!(claims(), before);
    // Expiry forgets claims of long ago, and goes on where it cannot.
    let expire = || host.pitr().words("expire --keep 1 --confirm").run();
    let status = expire().code();
    assert_eq!(claims(), 0);
    std::fs::remove_dir_all(repository.join("jobs")).unwrap();
    std::fs::write(repository.join("jobs"), "").unwrap();
    let run = expire().expect_stderr("old claims of jobs stay");
    assert_eq!(run.code(), status, "{run}");
}

/// Row J83: the first repository hangs. The claim is given up, and the job's lock with it.
#[test]
fn j83_a_claim_at_a_directory_that_hangs_is_given_up() {
    crate::require_root!("j83_a_claim_at_a_directory_that_hangs_is_given_up");
    let host = Host::new(CLAIMED);
    let at = SPRING + 3600;
    let hanging = HangingDisk::over(&host.sandbox.join("repo"));
    // It waits for two seconds instead of ten.
    let run = exec(host.pitr(), at)
        .env("PITR_FAULT_SILENCE_SECONDS", "2")
        .run()
        .expect_stderr("claim a run of job \"look\"")
        .expect_stderr("has not answered");
    assert_ne!(run.code(), 0, "{run}");
    drop(hanging);
    assert!(runs(&host.sandbox.join("state")).is_empty());
    exec(host.pitr(), at).succeed();
    assert_eq!(runs(&host.sandbox.join("state")), [(at, false)].into());
}

#[test]
fn j48_clusters_that_share_a_repository_do_not_take_each_others_runs() {
    let host = Host::new(CLAIMED);
    let own = Other::of(&host);
    let path = |name: &str| host.sandbox.join(name).display().to_string();
    let text = std::fs::read_to_string(&own.config).unwrap();
    let text = text.replace("[clusters.main]", "[clusters.hr]");
    let text = text.replace(&path("other"), &path("hr"));
    let hr = host.sandbox.file("hr.toml", text);
    let at = SPRING + 3600;
    exec(host.pitr(), at).succeed();
    exec(own.pitr(), at).succeed();
    exec(host.pitr_with(&hr), at).succeed();
    assert_eq!(runs(&host.sandbox.join("other")), [(at, true)].into());
    assert_eq!(runs(&host.sandbox.join("hr")), [(at, false)].into());
}

#[test]
fn j10_a_claim_without_the_mac_keeps_nobody_from_running_a_job() {
    let cluster = Cluster::builder(17).without_fsync().create();
    let sealed = Sealed::new(&cluster);
    let claim = |nonce: &str, minute: u32| RunClaim {
        job: "full".into(),
        concern: run_claim::concern(&["main"], &["backup".into()]),
        scheduled: format!("2001-11-20T06:{minute}:00Z").parse().unwrap(),
        host: "somewhere".into(),
        pid: 1,
        nonce: nonce.into(),
    };
    // Somebody who may create objects, and has no key.
    let stranger = FileStore::open(&sealed.repository, 1).unwrap();
    run_claim::take(&stranger, &claim("a", 10)).unwrap();
    let encryption = Encryption {
        key_set: Some(sealed.key("writer").into()),
        ..Encryption::default()
    };
    let owner = FileStore::open(&sealed.repository, 2).unwrap();
    let owner = Repository::open_with(Box::new(owner), Some(&encryption)).unwrap();
    let take = |nonce, minute| run_claim::take(owner.store(), &claim(nonce, minute)).unwrap();
    let void = take("b", 10);
    assert!(
        matches!(void, Claimed::Void(why) if why.contains("MAC")),
        "{void:?}"
    );
    // Also with a nonce that is copied from a genuine claim, which is public.
    assert!(matches!(take("a", 10), Claimed::Void(_)));
    assert_eq!(take("b", 11), Claimed::Ours);
    assert_eq!(take("c", 11), Claimed::Others("somewhere".into()));
}
