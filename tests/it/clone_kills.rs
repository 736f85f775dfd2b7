//! Clones whose processes are killed, at every stage, and whose repository goes away and comes back.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::clone::{Cloned, SUM, client, dropped, rescuing, without_fuse};
use crate::common::fault::{Fault, Faulty};
use crate::common::proxy::Proxy;
use crate::common::s3::peer::Peer;
use crate::common::{
    Client, Cluster, Program, Run, Running, Sandbox, bin, files_below, text_of, wait_until,
};
use crate::s3_cycle::Bucketed;
use crate::s3_slow::port_of;
use crate::{require_fuse, require_root, require_strace};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// The number in the first line of a server's own file, beneath the mount.
fn server(cloned: &Cloned, id: &str) -> Option<i32> {
    let data = cloned.folder.join(format!("pitr-clone-{id}/tree/data"));
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok()
}

fn wait_gone(pid: Option<i32>) {
    let pid = pid.and_then(Pid::from_raw);
    wait_until("the server has ended", || {
        pid.is_none_or(|pid| test_kill_process(pid).is_err())
    });
}

fn wait_nothing_left(cloned: &Cloned, pause: &Path) {
    let _ = std::fs::remove_file(pause);
    wait_until("nothing is left", || {
        cloned.listed().is_null() && cloned.left().is_empty()
    });
}

/// The objects of the repository without claims and their ends.
fn objects(cloned: &Cloned) -> Vec<String> {
    let passing = ["claim", "-release-"];
    let mut files = cloned.site.files();
    files.retain(|name| !passing.iter().any(|part| name.contains(part)));
    files
}

#[test]
fn k34_a_clone_that_is_killed_at_any_stage_is_gone_or_whole() {
    require_fuse!("k34_a_clone_that_is_killed_at_any_stage_is_gone_or_whole");
    let cloned = Cloned::new(17);
    let pauses = Sandbox::new("pause");
    let before = objects(&cloned);
    // Before it is ready.
    for point in ["mount_laid_out", "clone_replay"] {
        let pause = pauses.join(point);
        let value = format!("{point}={}", pause.display());
        let running = cloned.clone().env("PITR_FAULT_PAUSE", value).spawn();
        wait_until(point, || pause.exists());
        let begun = cloned.listed();
        let pid = i32::try_from(begun["pid"].as_i64().unwrap()).unwrap();
        let server = server(&cloned, begun["id"].as_str().unwrap());
        kill(pid);
        let run = running.wait();
        assert_ne!(run.code(), 0, "{run}");
        run.expect_stdout("was killed");
        wait_gone(server);
        wait_nothing_left(&cloned, &pause);
    }
    // While it is copied or stopped.
    for (point, is_whole) in [
        ("clone_copying", false),
        ("clone_stop", false),
        ("clone_stop", true),
    ] {
        let pause = pauses.join(point);
        let value = format!("{point}={}", pause.display());
        let run = cloned.clone().env("PITR_FAULT_PAUSE", value).succeed();
        let id = run.id();
        client(&run).sql("create table mine as select 1");
        if point == "clone_copying" || is_whole {
            cloned.below(&["keep", &id]).succeed();
        }
        if is_whole {
            cloned.wait_stage("whole");
        }
        let stop = (point == "clone_stop").then(|| cloned.below(&["stop", &id]).spawn());
        wait_until(point, || pause.exists());
        let server = server(&cloned, &id);
        kill(i32::try_from(run.json()["pid"].as_i64().unwrap()).unwrap());
        wait_gone(server);
        if let Some(stop) = stop {
            // One that is whole is a data directory as soon as somebody looks.
            stop.wait().success();
        }
        match is_whole {
            false => wait_nothing_left(&cloned, &pause),
            true => opens(&cloned, &cloned.listed()),
        }
    }
    assert_eq!(objects(&cloned), before);
}

/// A host without namespaces has fusermount3, whose mount outlives its process, and perhaps no setpriv, which ends the server.
#[test]
fn k58_a_clone_outside_of_namespaces_that_is_killed_leaves_nothing() {
    require_fuse!("k58_a_clone_outside_of_namespaces_that_is_killed_leaves_nothing");
    let cloned = Cloned::new(18);
    let path = Sandbox::new("path");
    let found = |name: &str| ["/usr/bin", "/bin"].map(|at| Path::new(at).join(name));
    for (tool, ends_by_itself) in [("fusermount3", false), ("setpriv", true)] {
        let at = found(tool).into_iter().find(|at| at.exists());
        let at = at.unwrap_or_else(|| panic!("scripts/get-tools installs {tool}"));
        std::os::unix::fs::symlink(at, path.join(tool)).unwrap();
        let run = cloned.clone().env("PATH", path.path()).succeed();
        client(&run).sql("create table mine as select 1");
        let server = server_by_words(&cloned);
        assert!(mounts(&cloned).contains("pitr-clone-"));
        kill(i32::try_from(run.json()["pid"].as_i64().unwrap()).unwrap());
        let lock = format!("pitr-clone-{}/clone.lock", run.id());
        let lock = std::fs::File::open(cloned.folder.join(lock)).unwrap();
        wait_until("the last thread of the clone has ended", || {
            flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        });
        drop(lock);
        if ends_by_itself {
            wait_gone(Some(server));
        }
        // No second look is needed.
        let listed = cloned.listed();
        assert!(listed.is_null(), "{listed}");
        assert_eq!(cloned.left(), [""; 0]);
        assert_eq!(mounts(&cloned), "");
        wait_gone(Some(server));
    }
}

/// The server, by the words that it was started with: the mount shows its files to its own user alone.
fn server_by_words(cloned: &Cloned) -> i32 {
    let place = cloned.folder.path().display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.contains(&format!("postgres\0-D\0{place}"))
    };
    pids.find(is_it).expect("the server of the clone runs")
}

/// The lines about what is mounted below the folder of the clones.
fn mounts(cloned: &Cloned) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let place = cloned.folder.path().display().to_string();
    let own = table.lines().filter(|line| line.contains(&place));
    own.collect::<Vec<_>>().join("\n")
}

/// Kills a command that works on a clone, once it is at work. The next list cleans up.
fn kill_at_work(cloned: &Cloned, program: &Program, is_at_work: &dyn Fn() -> bool) {
    let mut running = program.spawn();
    running.until("the command is at work", is_at_work);
    let begun = cloned.listed();
    let server = server(cloned, begun["id"].as_str().unwrap());
    assert!(server.is_some(), "{begun}");
    kill(i32::try_from(begun["pid"].as_i64().unwrap()).unwrap());
    assert_ne!(running.wait().code(), 0);
    wait_until("nothing is left", || {
        let left = cloned.left();
        cloned.listed().is_null() && left.iter().all(|name| name.starts_with("dev/"))
    });
    wait_gone(server);
}

#[test]
fn k43_a_query_or_a_rescue_that_is_killed_changes_nothing_and_the_next_list_cleans_up() {
    const NAME: &str =
        "k43_a_query_or_a_rescue_that_is_killed_changes_nothing_and_the_next_list_cleans_up";
    require_fuse!(NAME);
    let cloned = dropped(17);
    let live = &cloned.cluster;
    let before = objects(&cloned);
    let waits = "select count(*) from pg_stat_activity where application_name like 'pitr_rescue%' and wait_event_type = 'Lock'";
    let sessions =
        "select count(*) from pg_stat_activity where application_name like 'pitr_rescue%'";
    for is_copied in [false, true] {
        let alone = |program: Program| match is_copied {
            false => program,
            true => without_fuse(&cloned, program),
        };
        let query = cloned.site.pitr().args(["query", "select pg_sleep(600)"]);
        let query = alone(cloned.at_moment(query));
        kill_at_work(&cloned, &query, &|| cloned.listed()["stage"] == "ready");

        let holder = live.client();
        holder.sql("begin; lock table shop.kinds in share row exclusive mode");
        let rescue = alone(rescuing(&cloned, &["--table", "shop.orders"]));
        kill_at_work(&cloned, &rescue, &|| live.value(waits) == "1");
        // Its pg_restore waits for the lock no longer.
        wait_until("no session is left", || live.value(sessions) == "0");
        holder.sql("rollback");
        let there = "select count(*) from pg_class where relname = 'orders'";
        assert_eq!(live.value(there), "0");
    }
    assert_eq!(objects(&cloned), before);
    // The same command brings the table back when nobody kills it.
    let rescue = rescuing(&cloned, &["--table", "shop.orders"]);
    rescue.succeed();
    let rows = live.value("select count(*) from shop.orders");
    assert_eq!(rows, "5010");
}

/// The clone was kept, and is a data directory.
fn opens(cloned: &Cloned, kept: &serde_json::Value) {
    assert_eq!(kept["stage"], "kept", "{kept}");
    let own = Cluster::open(cloned.cluster.major(), kept["data"].as_str().unwrap()).start();
    let all = "select (select count(*) from t) || ' ' || (select count(*) from big) || ' ' || (select count(*) from mine)";
    assert_eq!(own.value(all), "31000 40000 1");
}

#[test]
fn k35_a_server_that_is_killed_takes_its_clone_along_unless_that_has_all_content() {
    require_fuse!("k35_a_server_that_is_killed_takes_its_clone_along_unless_that_has_all_content");
    let cloned = Cloned::new(17);
    let run = cloned.clone().succeed();
    kill(server(&cloned, &run.id()).unwrap());
    wait_nothing_left(&cloned, Path::new("/nowhere"));
    let run = cloned.clone().succeed();
    client(&run).sql("create table mine as select 1");
    cloned.below(&["keep", &run.id()]).succeed();
    cloned.wait_stage("whole");
    kill(server(&cloned, &run.id()).unwrap());
    cloned.wait_stage("kept");
    opens(&cloned, &cloned.listed());
}

#[test]
fn u123_a_query_whose_server_ends_says_how_to_go_on() {
    require_fuse!("u123_a_query_whose_server_ends_says_how_to_go_on");
    let cloned = Cloned::new(17);
    let pauses = Sandbox::new("pause");
    let pause = pauses.join("replay");
    let query = |sql: &str| cloned.at_moment(cloned.site.pitr().args(["query", sql]));
    let ends = |running: Running, next: &str| {
        let id = cloned.listed()["id"].as_str().unwrap().to_owned();
        wait_until("the server has its file", || server(&cloned, &id).is_some());
        kill(server(&cloned, &id).unwrap());
        let _ = std::fs::remove_file(&pause);
        let run = running.wait();
        assert_ne!(run.code(), 0, "{run}");
        run.expect_stderr(next);
    };
    // On the way to the moment.
    let value = format!("clone_replay={}", pause.display());
    let mut running = query("select 1").env("PITR_FAULT_PAUSE", value).spawn();
    running.until("the server replays", || pause.exists());
    ends(running, "pitr drill with the same target");
    // While it works on the statement.
    let mut running = query("select pg_sleep(600)").spawn();
    let works = "select count(*) from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active'";
    running.until("it is at work", || {
        let listed = cloned.listed();
        let connection = listed["connection"].as_str();
        let clone = connection.and_then(|at| Client::connect(at).ok());
        clone.is_some_and(|clone| clone.value(works) == "1")
    });
    ends(running, "Run the command again.");
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
}

/// Asks a clone for rows that it has not read, on a thread of its own. A session that is opened only now would read, too.
fn ask(clone: Client, sql: &'static str) -> std::thread::JoinHandle<Result<String, String>> {
    std::thread::spawn(move || {
        let rows = clone.try_sql(sql);
        rows.map(|rows| format!("{rows:?}"))
            .map_err(|e| text_of(&e))
    })
}

/// A session that has what it needs to answer.
fn warm(run: &Run) -> Client {
    let clone = client(run);
    assert_eq!(clone.value("select 1"), "1");
    clone
}

const BIG: &str = "select 'rows: ' || count(*) || ' ' || sum(length(b)) from big";
const ANSWER: &str = "rows: 40000 20000000";

/// The packs of a repository that is a directory.
fn packs(cloned: &Cloned) -> Vec<PathBuf> {
    let repository = cloned.site.repository();
    let packs = files_below(repository).into_iter();
    let packs = packs.filter(|name| name.contains("/packs/"));
    packs.map(|name| repository.join(name)).collect()
}

/// A disk on which no pack can be read.
fn broken(cloned: &Cloned, run: &Run) -> Faulty {
    let fault = Fault::error("pread64,openat2", "EIO");
    let fault = packs(cloned).iter().fold(fault, Fault::on);
    let pid = u32::try_from(run.json()["pid"].as_u64().unwrap()).unwrap();
    Faulty::attached(pid, &fault)
}

#[test]
fn k36_a_disk_that_fails_for_a_moment_is_waited_for_and_no_longer_than_the_deadline() {
    const NAME: &str =
        "k36_a_disk_that_fails_for_a_moment_is_waited_for_and_no_longer_than_the_deadline";
    require_root!(NAME);
    require_strace!(NAME);
    require_fuse!(NAME);
    let cloned = Cloned::new(17);
    let run = cloned.clone().succeed();
    let clone = warm(&run);
    let disk = broken(&cloned, &run);
    let asked = ask(clone, BIG);
    wait_until("a read has failed", || disk.fired() > 0);
    std::thread::sleep(Duration::from_secs(3));
    assert!(!asked.is_finished(), "it did not wait");
    disk.detach();
    let answer = asked.join().unwrap().unwrap();
    assert!(answer.contains(ANSWER), "{answer}");
    cloned.below(&["stop", &run.id()]).succeed();

    let run = cloned.clone().env("PITR_FAULT_SECONDS", "3").succeed();
    let clone = warm(&run);
    let disk = broken(&cloned, &run);
    let began = Instant::now();
    let e = ask(clone, BIG).join().unwrap().unwrap_err();
    assert!(e.contains("Input/output error"), "{e}");
    assert!(began.elapsed() >= Duration::from_secs(2), "{began:?}");
    disk.detach();
    let answer = ask(client(&run), BIG).join().unwrap().unwrap();
    assert!(answer.contains(ANSWER), "{answer}");
    cloned.below(&["stop", &run.id()]).succeed();
}

#[test]
fn k36_a_bucket_that_is_away_for_a_moment_is_waited_for() {
    require_fuse!("k36_a_bucket_that_is_away_for_a_moment_is_waited_for");
    let builder = Cluster::small(17);
    let (site, cluster) = Bucketed::with_cluster(builder, Peer::own(), "");
    cluster.sql("create table t as select g as id, 'x' as b from generate_series(1, 10) g; create table big as select g as id, repeat('x', 500) as b from generate_series(1, 40000) g");
    site.backup();
    cluster.archive_now();
    let endpoint = site.peer.endpoint();
    let proxy = Proxy::to(port_of(&endpoint));
    let own = format!("http://127.0.0.1:{}", proxy.port());
    crate::common::edit(&site.config, &endpoint, &own);
    let folder = Sandbox::new("c");
    let programs = bin(17, "initdb").unwrap();
    let clone = site.pitr().words("clone --json --dir");
    let clone = clone.arg(folder.path()).arg("--bin");
    let run = clone.arg(programs.parent().unwrap()).succeed();
    let (clone, other) = (warm(&run), warm(&run));
    proxy.refuse(true);
    proxy.reset();
    let asked = ask(clone, BIG);
    wait_until("it is asked in vain", || proxy.counts().refused > 0);
    std::thread::sleep(Duration::from_secs(5));
    assert!(!asked.is_finished(), "it did not wait");
    // The server answers from what is there meanwhile.
    assert_eq!(other.value("select 1"), "1");
    proxy.refuse(false);
    let answer = asked.join().unwrap().unwrap();
    assert!(answer.contains(ANSWER), "{answer}");
    assert_eq!(client(&run).value(SUM), cluster.value(SUM));
    let stop = site.pitr().args(["clone", "stop", &run.id(), "--dir"]);
    stop.arg(folder.path()).succeed();
}
