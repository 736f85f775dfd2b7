//! Tiers: what has aged moves to colder storage classes, and comes back for a restore.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::common::s3::Fault;
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Program, Run, expire_at_once, wait_until};
use crate::s3_cycle::Bucketed;

/// A bucket, and a cluster whose table is stored again by each full backup.
fn site(peer: Peer, more: &str) -> (Bucketed, Cluster) {
    let (site, cluster) = Bucketed::with_cluster(Cluster::small(17), peer, more);
    cluster.sql("create table ledger as select g as id, md5(g::text) as note from generate_series(1, 20000) g");
    (site, cluster)
}

fn tier(site: &Bucketed, args: &[&str]) -> Run {
    site.pitr().words("repo tier --json").args(args).run()
}

/// Requires that a command failed, and said this.
fn failed(run: &Run, said: &str) {
    assert_ne!(run.code(), 0, "{run}");
    assert!(run.to_string().contains(said), "{said}: {run}");
}

fn of_cluster(run: &Run) -> Value {
    run.json()["clusters"][0].clone()
}

fn keys_of(planned: &Value) -> BTreeSet<String> {
    let moves = planned["moves"].as_array().unwrap().iter();
    moves
        .map(|one| one["key"].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until a second has passed since the last backup: tiers of the tests begin after one.
fn age() {
    std::thread::sleep(Duration::from_millis(1500));
}

/// The rules that a command printed, as a bucket holds them.
fn as_xml(printed: &Value) -> String {
    let rules = printed["Rules"].as_array().unwrap().iter();
    let rule = |rule: &Value| {
        let text = |pointer: &str| rule.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        format!(
            "<Rule><ID>{}</ID><Filter><And><Prefix>{}</Prefix><Tag><Key>{}</Key><Value>{}</Value></Tag></And></Filter><Status>{}</Status>\
             <Transition><Days>{}</Days><StorageClass>{}</StorageClass></Transition></Rule>",
            text("/ID"),
            text("/Filter/And/Prefix"),
            text("/Filter/And/Tags/0/Key"),
            text("/Filter/And/Tags/0/Value"),
            text("/Status"),
            rule["Transitions"][0]["Days"],
            text("/Transitions/0/StorageClass"),
        )
    };
    rules.map(rule).collect()
}

#[test]
fn s23_what_ages_is_tagged_moves_by_a_rule_and_is_thawed_for_a_restore() {
    let more = "tier = [{ after = \"1s\", class = \"GLACIER\" }, { after = \"1s\", class = \"GLACIER_IR\", kind = \"wal\" }]\n\
                price = { currency = \"EUR\", standard = \"1024\", glacier = \"512\", glacier_ir = \"768\", transition = \"1000\", thaw_standard = \"2048\" }\n";
    let (site, cluster) = site(Peer::own(), more);
    let server = site.peer.server();
    let first = site.backup();
    cluster.sql("update ledger set note = 'second' where id % 50 = 0");
    cluster.archive_now();
    let run = site.pitr().words("backup --incremental --json").succeed();
    let second = run.id();
    assert!(second.ends_with("-incr"), "{run}");
    age();
    // The newest backup names packs of the first: whoever builds on it needs them.
    let planned = of_cluster(&tier(&site, &["--dry-run"]).success());
    let is_pack = |key: &&String| key.contains("/packs/");
    assert_eq!(
        keys_of(&planned).iter().filter(is_pack).count(),
        0,
        "{planned}"
    );
    assert!(
        planned["held"]["object_count"].as_u64().unwrap() > 0,
        "{planned}"
    );

    let third = site.backup();
    age();
    let unconfirmed = tier(&site, &[]).expect_code(8);
    let planned = unconfirmed.json()["clusters"][0].clone();
    let moving = keys_of(&planned);
    assert!(
        moving
            .iter()
            .any(|key| key.contains(&format!("/packs/{first}/"))),
        "{planned}"
    );
    assert!(!moving.iter().any(|key| key.contains(&third)), "{planned}");
    let packs = moving.iter().filter(is_pack).count();
    assert!(
        (1..moving.len()).contains(&packs),
        "packs and WAL: {planned}"
    );
    assert!(planned["saved_month_price"].is_string(), "{planned}");
    // The last segment of a backup is cut short, and compressed to less than what is worth a move.
    assert!(
        planned["small"]["object_count"].as_u64().unwrap() > 0,
        "{planned}"
    );
    assert_eq!(planned["price"], format!("{}.00", moving.len()));
    let tagged = || {
        let keys = server.keys().into_iter();
        let is_tagged = |key: &String| server.tags(key).contains_key("pitr-tier");
        let own = keys
            .filter(is_tagged)
            .map(|key| key.strip_prefix("pg/").unwrap().to_owned());
        own.collect::<BTreeSet<String>>()
    };
    assert!(tagged().is_empty(), "nothing moves without --confirm");

    denied_tags_are_counted(&site, moving.len());
    // Tags of others stay.
    let other = format!("pg/{}", moving.first().unwrap());
    server.tag(&other, "owner", "database");
    killed_between_two_tags_it_goes_on(&site, moving.len());
    assert_eq!(tagged(), moving);
    assert_eq!(server.tags(&other)["owner"], "database");
    let again = of_cluster(&tier(&site, &["--confirm"]).success());
    assert_eq!(
        again["outcome"]["waiting"].as_u64(),
        Some(moving.len() as u64),
        "{again}"
    );

    the_rules_are_printed_and_checked(&site);
    assert_eq!(server.apply_lifecycle(), moving.len());
    let classes = server.classes("/packs/");
    assert_eq!(classes["GLACIER"], packs, "{classes:?}");
    let classes = server.classes("/wal/");
    assert_eq!(classes["GLACIER_IR"], moving.len() - packs, "{classes:?}");
    let planned = of_cluster(&tier(&site, &["--dry-run"]).success());
    assert_eq!(planned["moves"].as_array().unwrap().len(), 0, "{planned}");

    let plan = |id: &str| {
        site.pitr()
            .args(["plan", "--target-immediate", "--backup", id])
            .run()
    };
    plan(&third).success();
    let refused = plan(&first).expect_code(1);
    refused.expect_stderr(&format!("pitr repo thaw --backup {first}"));
    // An archived pack is no damage, and neither is it read.
    let verified = site.pitr().words("verify").succeed();
    verified.expect_stderr("not read, because tiers have moved them");
    thawed_it_is_restored(&site, &first);
    // Frozen objects can be deleted.
    site.pitr().args(expire_at_once()).succeed();
    let keys = server.keys();
    let is_left = |id: &str| {
        keys.iter()
            .any(|key| key.contains(&format!("/packs/{id}/")))
    };
    assert_eq!(
        [first, second, third].map(|id| is_left(&id)),
        [false, false, true]
    );
}

/// A store that refuses tags: every move is counted, and the status says it.
fn denied_tags_are_counted(site: &Bucketed, moves: usize) {
    let server = site.peer.server();
    let fired = server.fault("PUT", u64::MAX, Fault::Error(403, "AccessDenied"));
    let denied = tier(site, &["--confirm"]).expect_code(10);
    let outcome = &denied.json()["clusters"][0]["outcome"];
    assert_eq!(
        outcome["refused_count"].as_u64(),
        Some(moves as u64),
        "{denied}"
    );
    assert_eq!(fired.times(), moves as u64);
    server.heal();
}

fn killed_between_two_tags_it_goes_on(site: &Bucketed, moves: usize) {
    assert!(moves >= 2, "{moves}");
    let server = site.peer.server();
    let fired = server.fault_after(1, "PUT", 1, Fault::Stalled);
    let running = site.pitr().words("repo tier --confirm").spawn();
    wait_until("the second tag is on its way", || fired.times() == 1);
    running.ended_by(rustix::process::Signal::KILL);
    server.heal();
    let done = of_cluster(&tier(site, &["--confirm"]).success());
    let moves = u64::try_from(moves).unwrap();
    assert_eq!(done["outcome"]["waiting"].as_u64(), Some(1), "{done}");
    assert_eq!(done["outcome"]["moved"].as_u64(), Some(moves - 1), "{done}");
}

fn the_rules_are_printed_and_checked(site: &Bucketed) {
    let server = site.peer.server();
    let lifecycle = || site.pitr().words("repo lifecycle").run();
    let doctor = || site.pitr().words("doctor --json").run().json().to_string();
    let lacking = lifecycle().expect_code(6);
    let lacking = lacking.expect_stderr("no rule that moves to GLACIER");
    assert!(doctor().contains("no rule moves to GLACIER"));
    let rules = as_xml(&lacking.json());
    let stranger = "<Rule><ID>tidy</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule>";
    server.behave(|m| m.lifecycle = Some(format!("{rules}{stranger}")));
    let found = lifecycle().expect_code(6);
    found.expect_stderr("deletes objects after 30 days, which pitr did not ask for");
    server.behave(|m| m.lifecycle = Some(rules));
    lifecycle().success();
    assert!(
        !doctor().contains("lifecycle"),
        "rules of tiers are no harm"
    );
    let denied = server.fault("lifecycle", 1, Fault::Error(403, "AccessDenied"));
    lifecycle().expect_code(10);
    assert_eq!(denied.times(), 1);
}

fn thawed_it_is_restored(site: &Bucketed, id: &str) {
    let server = site.peer.server();
    let thaw = |args: &[&str]| {
        let run = site.pitr().args(["repo", "thaw", "--json", "--backup", id]);
        run.args(args).run()
    };
    let dry = thaw(&["--dry-run"]).success().json();
    let frozen = dry["objects"].as_array().unwrap().len() as u64;
    assert!(
        frozen > 0 && frozen < dry["needed_count"].as_u64().unwrap(),
        "{dry}"
    );
    assert_eq!(
        (dry["ready"].clone(), dry["takes_seconds"].clone()),
        (false.into(), 18_000.into())
    );
    assert!(
        dry["price"].is_string() && server.finish_thaw().is_empty(),
        "{dry}"
    );
    // A store that has no room for fast ones says so at once.
    let full = server.fault(
        "restore",
        1,
        Fault::Error(503, "GlacierExpeditedRetrievalNotAvailable"),
    );
    failed(&thaw(&["--speed", "expedited"]), "within minutes");
    assert_eq!(full.times(), 1, "and is not asked again");
    // One that somebody else has asked for is under way.
    let other = server.fault("restore", 1, Fault::Error(409, "RestoreAlreadyInProgress"));
    let asked = thaw(&["--days", "3"]).success().json();
    assert_eq!(other.times(), 1);
    assert_eq!(asked["requested_count"], frozen - 1, "{asked}");
    let again = thaw(&["--days", "3"]).success().json();
    assert_eq!(
        (again["requested_count"].as_u64(), again["ready"].as_bool()),
        (Some(1), Some(false))
    );
    let mut waiting = site
        .pitr()
        .args(["repo", "thaw", "--wait", "--backup", id])
        .spawn();
    std::thread::sleep(Duration::from_millis(500));
    assert!(!waiting.is_done(), "{}", waiting.stderr());
    let done = server.finish_thaw();
    assert_eq!(
        done,
        vec![(3, "Standard".to_owned()); usize::try_from(frozen).unwrap()]
    );
    let waited = waiting.wait().success();
    waited.expect_stdout("can be read");
    let shown = thaw(&["--dry-run"]).success().json();
    assert!(
        shown["objects"][0]["until"].is_string() && shown["ready"] == true,
        "{shown}"
    );
    restored(
        site,
        id,
        "count(*) filter (where note <> 'second')",
        "20000",
    );
}

/// Restores a backup to its own end, and asks the copy.
fn restored(site: &Bucketed, id: &str, asked: &str, expected: &str) {
    let to = site.sandbox.join("copy");
    let restore = site.pitr().args([
        "restore",
        "--quiet",
        "--target-immediate",
        "--backup",
        id,
        "--to",
    ]);
    restore.arg(&to).succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    let sql = format!("select {asked} from ledger");
    assert_eq!(copy.value(&sql), expected);
}

/// Not among those of `make test-moto`: what moto makes of a copy onto itself is another object, and is refused.
#[test]
fn copied_into_an_archive_a_backup_is_thawed_and_restored() {
    let more = "tier = [{ after = \"1s\", class = \"GLACIER\" }]\ntier_by = \"copy\"\n";
    let (site, _cluster) = site(Peer::start(), more);
    let first = site.backup();
    site.backup();
    age();
    let done = of_cluster(&tier(&site, &["--confirm"]).success());
    let moves = done["moves"].as_array().unwrap().len();
    assert!(moves > 0, "{done}");
    assert_eq!(done["outcome"]["moved"], moves, "{done}");
    let plan = || {
        site.pitr()
            .args(["plan", "--target-immediate", "--backup", &first])
            .run()
    };
    plan().expect_code(1).expect_stderr("GLACIER");
    let thaw = site
        .pitr()
        .args(["repo", "thaw", "--quiet", "--backup", &first]);
    thaw.succeed();
    if let Some(server) = &site.peer.own {
        assert_eq!(server.finish_thaw().len(), moves);
    }
    let waited = site
        .pitr()
        .args(["repo", "thaw", "--wait", "--backup", &first]);
    waited.succeed();
    restored(&site, &first, "count(*)", "20000");
}

/// Such a configuration ran, and each command loads it.
#[test]
fn s40_a_second_archive_by_copies_is_warned_of_and_the_first_one_fills() {
    let more = "tier = [{ after = \"1s\", class = \"GLACIER\" }, { after = \"90d\", class = \"DEEP_ARCHIVE\" }]\ntier_by = \"copy\"\n";
    let (site, _cluster) = site(Peer::own(), more);
    for _ in 0..2 {
        site.backup();
    }
    age();
    let run = tier(&site, &["--confirm"]).success();
    let run = run.expect_stderr("must be thawed before it can be copied to DEEP_ARCHIVE");
    let done = of_cluster(&run);
    let moves = keys_of(&done).len();
    assert!(moves > 0, "{done}");
    assert_eq!(done["outcome"]["moved"], moves, "{done}");
}

/// A rule of somebody else's froze a pack that is to go further: it cannot be copied, and the others can.
#[test]
fn s41_a_frozen_object_that_cannot_be_copied_holds_up_no_other() {
    let more = "tier = [{ after = \"1s\", class = \"DEEP_ARCHIVE\" }]\ntier_by = \"copy\"\n";
    let (site, _cluster) = site(Peer::own(), more);
    for _ in 0..3 {
        site.backup();
    }
    age();
    let planned = of_cluster(&tier(&site, &["--dry-run"]).success());
    let moving = keys_of(&planned);
    assert!(moving.len() > 1, "{planned}");
    let first = planned["moves"][0]["key"].as_str().unwrap();
    assert_eq!(site.peer.server().reclassify(first, "GLACIER"), 1);
    let run = tier(&site, &["--confirm"]);
    failed(&run, "the repository refused 1 move");
    let done = of_cluster(&run);
    assert_eq!(done["outcome"]["moved"], moving.len() - 1, "{done}");
}

#[test]
fn s31_what_a_restore_reads_since_the_run_began_is_not_moved() {
    let more = "tier = [{ after = \"1s\", class = \"GLACIER\" }]\ntier_by = \"copy\"\n";
    let (site, _cluster) = site(Peer::own(), more);
    let first = site.backup();
    site.backup();
    age();
    let pausing = |name: &str, program: Program| {
        let flag = site.sandbox.join(name);
        let running = program
            .env("PITR_FAULT_PAUSE", format!("{name}={}", flag.display()))
            .env("PITR_FAULT_SECONDS", "0")
            .spawn();
        wait_until(name, || flag.exists());
        (running, flag)
    };
    let moves = site.pitr().words("repo tier --json --confirm");
    let (moves, planned) = pausing("moves planned", moves);
    let restore = ["restore", "--target-immediate", "--backup", &first, "--to"];
    let restore = site.pitr().args(restore).arg(site.sandbox.join("back"));
    let (restore, mapped) = pausing("restore-map", restore);
    std::fs::remove_file(planned).unwrap();
    let done = of_cluster(&moves.wait().success());
    assert_eq!(done["outcome"]["moved"], 0, "{done}");
    let count = done["moves"].as_array().unwrap().len();
    assert_eq!(done["outcome"]["kept"], count, "{done}");
    assert!(count > 0, "{done}");
    std::fs::remove_file(mapped).unwrap();
    restore.wait().success();
}

#[test]
fn s23_a_copy_is_compared_and_what_is_locked_is_not_copied() {
    let more = "tier = [{ after = \"1s\", class = \"GLACIER_IR\" }]\ntier_by = \"copy\"\n";
    let (site, _cluster) = site(Peer::own(), more);
    let server = site.peer.server();
    site.backup();
    // The bucket locks by itself from here on: the configuration does not know it.
    server.behave(|m| m.default_lock = Some(("GOVERNANCE", Duration::from_secs(86_400))));
    let locked = site.backup();
    server.behave(|m| m.default_lock = None);
    site.backup();
    age();
    let planned = of_cluster(&tier(&site, &["--dry-run"]).success());
    let moving = keys_of(&planned);
    let is_locked = |key: &&String| key.contains(&format!("/packs/{locked}/"));
    let locked_count = moving.iter().filter(is_locked).count();
    assert!(locked_count > 0 && locked_count < moving.len(), "{planned}");
    // A store that breaks what it copies is found out by its own checksum; what it refuses is no move.
    let free = moving.iter().find(|key| !is_locked(key)).unwrap();
    let full = format!("pg/{free}");
    let original = server.object(&full);
    let refused = server.fault("PUT", 1, Fault::Error(412, "PreconditionFailed"));
    failed(&tier(&site, &["--confirm"]), "onto itself");
    assert_eq!(refused.times(), 1);
    assert_eq!(server.classes(free)["STANDARD"], 1);

    let done = of_cluster(&tier(&site, &["--confirm"]).success());
    let outcome = &done["outcome"];
    assert_eq!(outcome["locked_count"], locked_count, "{done}");
    assert_eq!(outcome["moved"], moving.len() - locked_count, "{done}");
    assert_eq!(
        server.classes(&format!("/packs/{locked}/")).len(),
        1,
        "none of them"
    );
    assert!(
        server
            .classes(&format!("/packs/{locked}/"))
            .contains_key("STANDARD")
    );
    assert_eq!(server.object(&full), original);
    assert!(
        server
            .written_with(&full)
            .contains_key("x-amz-meta-pitr-upload")
    );
    // Its time comes. A store that spoils copies is found out where it knows the checksum of the whole.
    server.unlock();
    server.behave(|m| m.spoils = true);
    failed(&tier(&site, &["--confirm"]), "another one");
}

#[test]
fn tiers_need_an_object_store_and_a_backup() {
    let (site, _cluster) = site(Peer::own(), "");
    let none = site.pitr().words("repo tier").exits(3);
    none.expect_stderr("no repository has tiers");
    site.pitr()
        .words("repo lifecycle")
        .succeed()
        .expect_stdout("\"Rules\": []");
    let id = "20200101T000000Z-000001-full";
    let thaw = site.pitr().args(["repo", "thaw", "--backup", id]).run();
    thaw.expect_code(2)
        .expect_stderr("is in no repository in an object store");
    let own = site.backup();
    let nothing = site
        .pitr()
        .args(["repo", "thaw", "--backup", &own])
        .succeed();
    nothing.expect_stdout("everything that the backup needs can be read");
}

#[test]
fn s29_what_a_later_backup_needs_is_locked_for_another_period() {
    let lock = "object_lock = { mode = \"governance\", period = \"30d\" }\n";
    let (site, cluster) = site(Peer::own(), lock);
    let server = site.peer.server();
    let full = site.backup();
    let locked = |end: &str| server.locked_days(&server.key(end));
    let pack = format!("packs/{full}/000000");
    let immutable = || {
        let report = ["report", "compliance", "--format", "json"];
        let report = site.pitr().args(report).run().json();
        let controls = report["controls"].as_array().unwrap().clone();
        controls
            .into_iter()
            .find(|c| c["control"] == "immutable")
            .unwrap()
    };
    assert_eq!(immutable()["state"], "ok", "{}", immutable());
    let doctor = || {
        let run = site.pitr().words("doctor --json").run().json();
        let found = run["findings"].as_array().unwrap().clone();
        found.into_iter().find(|f| f["name"] == "locks").unwrap()
    };
    assert_eq!(doctor()["level"], "ok", "{}", doctor());
    let incremental = || {
        cluster.sql("update ledger set note = 'x' where id = 7");
        server.clear_log();
        let run = site.pitr().words("backup --incremental").succeed();
        let set = server
            .log()
            .into_iter()
            .filter(|l| l.starts_with("PUT") && l.contains("retention"));
        (run, set.count())
    };
    // Young ones are not asked for.
    assert_eq!(incremental().1, 0);
    server.age(10);
    assert_eq!((incremental().1, locked(&pack)), (0, 19));
    server.age(10);
    let (run, set) = incremental();
    assert!(set > 3 && !run.stderr.contains("warning"), "{set}: {run}");
    for key in [&pack, "pitr.json", "cluster.json"] {
        assert_eq!(locked(key), 29, "{key}");
    }
    // The next one finds them so.
    assert_eq!(incremental().1, 0);
    assert_eq!(immutable()["state"], "ok", "{}", immutable());
    // Without the right the backup is taken, and the report tells when the locks have ended.
    server.age(31);
    let denied = server.fault("retention", u64::MAX, Fault::Error(403, "AccessDenied"));
    let (run, _) = incremental();
    let run = run.expect_stderr("can be deleted once its first lock ends");
    assert_eq!(run.stderr.matches("first lock ends").count(), 1, "{run}");
    assert!(denied.times() > 0);
    assert_eq!(immutable()["state"], "warning");
    assert!(
        doctor().to_string().contains("may not look"),
        "{}",
        doctor()
    );
    server.heal();
    assert!(
        doctor().to_string().contains("is not locked"),
        "{}",
        doctor()
    );
    let ended = immutable();
    assert_eq!(ended["state"], "warning");
    assert!(ended.to_string().contains("is not locked"), "{ended}");
    incremental();
    assert_eq!(immutable()["state"], "ok", "{}", immutable());
}

/// The other side of a sync, where backups arrive and none is taken.
#[test]
fn s34_a_sync_extends_the_locks_of_what_a_copied_backup_needs() {
    let lock = "object_lock = { mode = \"governance\", period = \"30d\" }\n";
    let (site, cluster) = site(Peer::own(), lock);
    let server = site.peer.server();
    let more = format!(
        "[repositories.local]\nurl = \"file://{}\"\n",
        site.sandbox.dir("local").display()
    );
    crate::common::append(&site.config, &more);
    site.pitr().words("init --quiet").succeed();
    let copy = |kind: &str| {
        cluster.sql("update ledger set note = 'x' where id = 7");
        let backup = ["backup", "--json", "--repository", "local", kind];
        let run = site.pitr().args(backup).succeed();
        let sync = [
            "repo", "sync", "--quiet", "--from", "local", "--to", "store",
        ];
        let synced = site.pitr().args(sync).succeed();
        (run.id(), synced)
    };
    let (full, _) = copy("--full");
    server.age(20);
    copy("--incremental");
    let pack = server.key(&format!("packs/{full}/000000"));
    for key in [&pack, &server.key("pitr.json"), &server.key("cluster.json")] {
        assert_eq!(server.locked_days(key), 29, "{key}");
    }
    // Without the right it is copied all the same.
    server.age(20);
    server.fault("retention", u64::MAX, Fault::Error(403, "AccessDenied"));
    let (_, synced) = copy("--incremental");
    synced.expect_stderr("can be deleted once its first lock ends");
}

/// The class does not tell that the store has archived an object inside of it.
#[test]
fn s28_what_the_store_archives_by_itself_is_no_readable_object() {
    let (site, _cluster) = site(Peer::own(), "");
    let server = site.peer.server();
    let id = site.backup();
    let thaw = |args: &[&str]| {
        let run = site
            .pitr()
            .args(["repo", "thaw", "--json", "--backup", &id]);
        run.args(args).run()
    };
    let packs = server.reclassify("/packs/", "INTELLIGENT_TIERING");
    let warm = thaw(&[]).success().json();
    assert_eq!(
        (&warm["ready"], warm["objects"].as_array().unwrap().len()),
        (&true.into(), 0)
    );
    server.reclassify("/packs/", "INTELLIGENT_TIERING ARCHIVE_ACCESS");
    let shown = thaw(&["--dry-run"]).success().json();
    assert_eq!(shown["ready"], false, "{shown}");
    assert_eq!(shown["objects"].as_array().unwrap().len(), packs);
    failed(&thaw(&["--speed", "expedited"]), "within minutes");
    let asked = thaw(&[]).success().json();
    assert_eq!(asked["requested_count"], packs, "{asked}");
    assert_eq!(server.finish_thaw().len(), packs);
    let done = thaw(&["--wait"]).success().json();
    assert_eq!(done["ready"], true, "{done}");
    let to = site.sandbox.join("copy");
    let restore = site
        .pitr()
        .args(["restore", "--quiet", "--backup", &id, "--to"]);
    restore.arg(&to).succeed();
}

/// Objects that are thawed for too few days are asked for again, and nothing counts as readable that froze while others were waited for.
#[test]
fn s35_what_freezes_too_early_is_thawed_for_longer() {
    let (site, cluster) = site(Peer::own(), "");
    let server = site.peer.server();
    let id = site.backup();
    cluster.archive_now();
    let thaw = |args: &[&str]| {
        let run = site
            .pitr()
            .args(["repo", "thaw", "--json", "--backup", &id]);
        run.args(args)
    };
    let days_left = |shown: &Value| {
        let now = chrono::Utc::now();
        let until = shown["objects"].as_array().unwrap().iter().map(|one| {
            let until = chrono::DateTime::parse_from_rfc3339(one["until"].as_str().unwrap());
            (until.unwrap().to_utc() - now).num_days()
        });
        until.min().unwrap()
    };
    server.reclassify("/packs/", "GLACIER");
    thaw(&["--days", "2"]).succeed();
    server.finish_thaw();
    let short = thaw(&["--days", "2", "--dry-run"]).succeed().json();
    assert_eq!(days_left(&short), 1, "{short}");
    let longer = thaw(&["--days", "30"]).succeed().json();
    let packs = longer["objects"].as_array().unwrap().len();
    assert_eq!(longer["requested_count"], packs, "{longer}");
    assert_eq!(days_left(&longer), 29, "{longer}");
    // It lasts for a shorter wish, too.
    let again = thaw(&["--days", "7"]).succeed().json();
    assert_eq!(again["requested_count"], 0, "{again}");
    // WAL is waited for, and the packs freeze meanwhile.
    server.reclassify("/wal/", "GLACIER");
    let mut waiting = thaw(&["--wait"]).spawn();
    waiting.until("it has asked", || {
        server
            .log()
            .iter()
            .any(|line| line.contains("/wal/") && line.contains("restore"))
    });
    server.reclassify("/packs/", "GLACIER");
    let thawed = || server.finish_thaw().len();
    wait_until("all is thawed", || {
        thawed();
        waiting.is_done()
    });
    failed(&waiting.wait(), "frozen again");
}

/// No tier freezes WAL, but rules of others may: `--wal` thaws what lies behind the backup, too.
#[test]
fn s23_wal_behind_a_backup_is_thawed_with_it() {
    let (site, cluster) = site(Peer::own(), "");
    let server = site.peer.server();
    let first = site.backup();
    let rows =
        "insert into ledger select g, md5(random()::text) from generate_series(20001, 40000) g";
    cluster.sql(rows);
    cluster.sql("select pg_create_restore_point('later')");
    cluster.archive_now();
    let moved = server.reclassify("/wal/", "GLACIER");
    assert!(moved > 3, "{moved}");
    let thaw = |args: &[&str]| {
        let run = site
            .pitr()
            .args(["repo", "thaw", "--json", "--backup", &first]);
        run.args(args).succeed().json()
    };
    let frozen = |thawed: &Value| thawed["objects"].as_array().unwrap().len();
    let (own, all) = (
        frozen(&thaw(&["--dry-run"])),
        frozen(&thaw(&["--dry-run", "--wal"])),
    );
    assert!(own < all, "{own} of {all}");
    assert!(own > 0 && all <= moved, "{own}, {all} of {moved}");
    let to = site.sandbox.join("copy");
    let restore = || {
        let restore = site.pitr().args(["restore", "--quiet", "--backup", &first]);
        restore.words("--target-name later --to").arg(&to).run()
    };
    // The WAL that the backup itself needs is not enough for a later moment.
    thaw(&[]);
    server.finish_thaw();
    failed(&restore(), "must thaw it");
    assert!(!to.join("PG_VERSION").exists());
    let asked = thaw(&["--wal"]);
    // The WAL that was thawed before is to be there as long as the rest.
    assert_eq!(asked["requested_count"], all, "{asked}");
    assert_eq!(server.finish_thaw().len(), all - own);
    assert_eq!(thaw(&["--wal"])["ready"], true);
    restore().success();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    let count = copy.value("select count(*) from ledger");
    assert_eq!(count, "40000");
}
