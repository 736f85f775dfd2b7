//! Clones, mounts and rescues when something is in the way: a hostile owner, no room, damage, a signal.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::clone::{Cloned, Place, client, rescue, rescuing};
use crate::clone_keep::Spoilt;
use crate::common::{Client, Sandbox, Site, files_below, user, wait_until};
use crate::{require_fuse, require_root};

/// The status of a command that was interrupted.
const INTERRUPTED: i32 = 130;

#[test]
fn k12_root_mounts_for_an_owner_whom_it_does_not_trust() {
    require_root!("k12_root_mounts_for_an_owner_whom_it_does_not_trust");
    require_fuse!("k12_root_mounts_for_an_owner_whom_it_does_not_trust");
    let cloned = Cloned::new(17);
    let place = Place::new();
    let secret = place.root.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).unwrap();
    // The owner stands in the directory before it is mounted, and acts beneath the mount afterwards.
    let script = "cd \"$0\"; read go; mv data/base data/was && ln -s \"$1\" data/base; echo $?";
    let mut owner = user::command("sh")
        .args(["-c", script])
        .arg(&place.at)
        .arg(&secret)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mount = cloned.site.pitr().privileged().arg("mount").arg(&place.at);
    let running = mount
        .args(["--json", "--target-lsn", &cloned.before])
        .spawn();
    wait_until("it is mounted", || running.stdout().contains('}'));
    let base = place.at.join("data/base");
    let mine = |program: &str, path: PathBuf| {
        let mut command = user::command(program);
        let status = command.arg(path).stdout(Stdio::null()).status();
        assert!(status.unwrap().success(), "{program}");
    };
    // The kernel knows the directory from here on.
    mine("ls", base.clone());
    owner.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut said = String::new();
    let mut out = BufReader::new(owner.stdout.take().unwrap());
    out.read_line(&mut said).unwrap();
    owner.wait().unwrap();
    mine("touch", base.join("own"));
    assert_eq!(files_below(&secret), Vec::<String>::new(), "{said}");
    assert_ne!(said.trim(), "0");
    assert!(base.join("own").exists());
    running.ended_by(Signal::INT).success();
    // The owner has it back as it was.
    let meta = std::fs::metadata(&place.at).unwrap();
    assert_eq!((meta.uid(), meta.gid()), user::ids());
    assert_eq!(meta.mode() & 0o7777, 0o755);
    assert_eq!(std::fs::read_dir(&place.at).unwrap().count(), 0);
    // A directory that another one can be put in the place of is refused.
    let below = cloned.folder.dir("m");
    let mount = cloned.site.pitr().privileged().arg("mount").arg(&below);
    let run = mount.args(["--target-lsn", &cloned.before]).run();
    run.expect_code(8).expect_stderr("not root's alone");
    let meta = std::fs::metadata(&below).unwrap();
    assert_eq!((meta.uid(), meta.gid()), user::ids());
    assert_eq!(std::fs::read_dir(&below).unwrap().count(), 0);
}

#[test]
fn k13_a_clone_that_is_kept_before_it_is_ready_answers_all_the_same() {
    require_fuse!("k13_a_clone_that_is_kept_before_it_is_ready_answers_all_the_same");
    let cloned = Cloned::new(17);
    let running = cloned.clone().spawn();
    let mut begun = serde_json::Value::Null;
    wait_until("the clone has begun", || {
        let listed = cloned.below(&["list", "--json"]).succeed().json();
        begun = listed[0].clone();
        begun["id"].is_string()
    });
    assert!(begun["connection"].is_null(), "too late: {begun}");
    let id = begun["id"].as_str().unwrap();
    cloned.below(&["keep", id]).succeed();
    let run = running.wait().success();
    let clone = client(&run);
    assert_eq!(clone.value("select count(*) from t"), "31000");
    drop(clone);
    cloned.wait_stage("whole");
    cloned.below(&["stop", id]).succeed();
}

#[test]
fn k14_damage_leaves_a_clone_that_is_to_be_kept_in_use() {
    require_fuse!("k14_damage_leaves_a_clone_that_is_to_be_kept_in_use");
    let cloned = Cloned::new(17);
    let run = cloned.clone().succeed();
    let id = run.id();
    let clone = client(&run);
    clone.sql("create table mine as select 1");
    let spoilt = Spoilt::now(&cloned);
    cloned.below(&["keep", &id]).succeed();
    wait_until("the copy has failed", || {
        cloned.listed()["not_kept"].is_string()
    });
    let listed = cloned.listed();
    assert_eq!(listed["stage"], "ready", "{listed}");
    cloned
        .below(&["list"])
        .run()
        .expect_stdout("it is not kept: copy the rest");
    assert_eq!(clone.value("select count(*) from mine"), "1");
    spoilt.mend();
    cloned.below(&["keep", &id]).succeed();
    cloned.wait_stage("whole");
    let listed = cloned.listed();
    assert!(listed["not_kept"].is_null(), "{listed}");
    drop(clone);
    cloned.below(&["stop", &id]).succeed();
}

#[test]
fn k14_a_whole_clone_whose_last_step_fails_is_not_thrown_away() {
    require_root!("k14_a_whole_clone_whose_last_step_fails_is_not_thrown_away");
    require_fuse!("k14_a_whole_clone_whose_last_step_fails_is_not_thrown_away");
    let cloned = Cloned::new(17);
    let run = cloned.clone().succeed();
    let id = run.id();
    cloned.below(&["keep", &id]).succeed();
    cloned.wait_stage("whole");
    // Beneath the mount, which is not seen from here.
    let folder = cloned.folder.join(format!("pitr-clone-{id}"));
    let conf = folder.join("tree/data/postgresql.auto.conf");
    std::fs::remove_file(&conf).unwrap();
    std::fs::create_dir(&conf).unwrap();
    let stopped = cloned.below(&["stop", &id]).run();
    assert_ne!(stopped.code(), 0, "{stopped}");
    stopped.expect_stderr("could not be made a data directory");
    let listed = cloned.below(&["list"]).succeed();
    listed.expect_stdout("postgresql.auto.conf");
    assert!(folder.join("tree/data/PG_VERSION").exists());
    for again in ["keep", "stop"] {
        let run = cloned.below(&[again, &id]).run();
        assert_ne!(run.code(), 0, "{run}");
    }
    cloned.below(&["stop", &id, "--confirm"]).succeed();
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
}

#[test]
fn k15_a_signal_ends_a_query_and_a_rescue_at_once() {
    require_fuse!("k15_a_signal_ends_a_query_and_a_rescue_at_once");
    let cloned = Cloned::new(17);
    let live = &cloned.cluster;
    live.sql("create table t (id int primary key, b text)");
    let query = cloned.site.pitr().args(["query", "select pg_sleep(600)"]);
    let query = cloned.at_moment(query).spawn();
    let at_work = |sleeps: &str| {
        wait_until("it is at work", || {
            files_below(cloned.folder.path())
                .iter()
                .any(|name| name.ends_with(sleeps))
        });
        std::thread::sleep(Duration::from_secs(3));
    };
    at_work("server.log");
    let began = Instant::now();
    query.ended_by(Signal::INT).expect_code(INTERRUPTED);
    assert!(began.elapsed() < Duration::from_secs(15), "{began:?}");

    let holder = Client::connect(&live.conninfo("postgres")).unwrap();
    holder.sql("begin");
    holder.sql("lock table t in share mode");
    let rescue = rescuing(&cloned, &["--table", "t", "--rows-missing-only"]).spawn();
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%insert into%'";
    wait_until("it waits for the table", || live.value(waits) == "1");
    let began = Instant::now();
    rescue.ended_by(Signal::INT).expect_code(INTERRUPTED);
    assert!(began.elapsed() < Duration::from_secs(8), "{began:?}");
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
    // Nobody waits for the lock without a limit.
    let waited = rescuing(&cloned, &["--table", "t", "--rows-missing-only"]).run();
    waited.expect_code(1).expect_stdout("lock timeout");
    holder.sql("rollback");
    assert_eq!(live.value("select count(*) from t"), "0");
}

#[test]
fn k16_rows_arrive_as_they_were_whatever_the_databases_set() {
    require_fuse!("k16_rows_arrive_as_they_were_whatever_the_databases_set");
    let (site, cluster) = Site::with_cluster(17);
    for setting in [
        "extra_float_digits = -12",
        "intervalstyle = 'sql_standard'",
        "datestyle = 'SQL, DMY'",
        "bytea_output = 'escape'",
    ] {
        cluster.sql(&format!("alter database postgres set {setting}"));
    }
    cluster.sql("create table v (id int primary key, f float8, i interval, d timestamptz, r bytea); insert into v select g, pi() * g, make_interval(months => -1, days => g, secs => -g), '2026-03-04 05:06:07.000008+09', sha256(g::text::bytea) from generate_series(1, 50) g");
    cluster.sql("create table k (id int, note text, primary key (id) include (note)); insert into k select g, 'old' from generate_series(1, 10) g");
    let cloned = Cloned::of(site, cluster);
    let live = &cloned.cluster;
    // The live side reads text in another way than the moment writes it.
    live.sql("alter database postgres set intervalstyle = 'iso_8601'; alter database postgres set datestyle = 'SQL, MDY'");
    rescue(&cloned, &["--table", "v", "--as", "v_then"]).success();
    let differs = "select count(*) from (select * from v except select * from v_then) d";
    assert_eq!(live.value(differs), "0");
    // A column that the key only carries along is none of it.
    live.sql("update k set note = 'new'; delete from k where id > 8");
    let run = rescue(&cloned, &["--table", "k", "--rows-missing-only"]).success();
    assert_eq!(run.json()["tables"][0]["added_rows"], 2, "{run}");
    assert_eq!(live.value("select count(*) from k where note = 'new'"), "8");
}

#[test]
fn k17_a_schema_comes_back_with_its_owner_and_what_stays_behind_is_named() {
    require_fuse!("k17_a_schema_comes_back_with_its_owner_and_what_stays_behind_is_named");
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create role keeper; create role reader; create schema s authorization keeper; grant usage on schema s to reader; grant create on schema s to reader with grant option; grant usage on schema s to public");
    cluster.sql("create table s.p (id int primary key); insert into s.p values (1), (2); create table s.child () inherits (s.p); create view s.v as select id from s.p; create materialized view s.m as select count(*) from s.p; create publication pub for table s.p");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("select pg_switch_wal()");
    let before = cluster.value("select pg_current_wal_insert_lsn()");
    let acl =
        "select nspowner::regrole || ' ' || nspacl::text from pg_namespace where nspname = 's'";
    let was = cluster.value(acl);
    cluster.sql("drop schema s cascade");
    cluster.archive_now();
    let folder = Sandbox::new("c");
    let cloned = Cloned {
        site,
        cluster,
        folder,
        before,
    };
    let run = rescue(&cloned, &["--table", "s.p"]).success();
    let notes = run.json()["notes"].to_string();
    for part in [
        "\"view s.v reads",
        "materialized view s.m reads",
        "alter publication pub add table s.p;",
        "table s.child inherits from s.p",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    assert_eq!(cloned.cluster.value(acl), was);
    let file = cloned.folder.join("s.dump");
    let to = cloned.site.pitr().words("rescue --schema s --to");
    let to = cloned.at_moment(to.arg(&file)).words("--database postgres");
    to.succeed();
    // The rows of a database are not for everybody.
    let mode = std::fs::metadata(&file).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn k18_the_claim_is_renewed_while_a_question_takes_its_time() {
    let cloned = Cloned::new(17);
    let claims = || {
        let files = files_below(cloned.site.repository()).into_iter();
        files.filter(|name| name.contains("claim")).count()
    };
    let before = claims();
    let query = cloned.site.pitr().args(["query", "select pg_sleep(6)"]);
    let query = cloned.at_moment(query).env("PITR_FAULT_SECONDS", "1").run();
    query.success();
    let renewed = claims() - before;
    assert!(renewed >= 4, "{renewed} claims");
}
