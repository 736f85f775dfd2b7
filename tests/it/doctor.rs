//! `pitr doctor` against real servers: it reports each fault with its cause and what helps.

use std::time::Duration;

use pitr::pg::lsn::Lsn;
use pitr::pg::segment::{SegmentName, SegmentSize};
use pitr::pg::timeline::TimelineId;
use pitr::repo::event::{self, Event};

use serde_json::Value;

use crate::backup::{layout, store};
use crate::common::mount::SmallDisk;
use crate::common::{
    Cluster, PATIENCE, Program, Sandbox, Site, Stop, copy_all, list_of, paths_below, pitr,
    reception, str_of, user, wait_until, wait_within,
};
use crate::sealed::Sealed;
use crate::ship::{has_worker, noted, spool_of};
use crate::{per_major, require_mounts};

/// A cluster with nothing to complain of, archiving, with a backup.
fn healthy(major: u32) -> (Site, Cluster) {
    let builder = Cluster::builder(major)
        .segment_size_mb(1)
        .config("archive_timeout", "60s");
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql("create table t (a int)");
    cluster.archive_now();
    site.pitr().words("backup --quiet").succeed();
    // With it the backup's label, which comes later than the backup ends.
    cluster.archive_now();
    let last = "select last_archived_wal from pg_stat_archiver";
    wait_until("it is counted", || !cluster.value(last).is_empty());
    (site, cluster)
}

fn doctor(site: &Site) -> Program {
    site.pitr().words("doctor --json")
}

/// The finding of this group and name.
fn finding<'a>(json: &'a Value, group: &str, name: &str) -> &'a Value {
    list_of(&json["findings"])
        .iter()
        .find(|f| f["group"] == group && f["name"] == name)
        .unwrap_or_else(|| panic!("no finding {group}/{name} in {json:#}"))
}

/// Fails unless this finding is bad, says why and what to do.
fn bad(json: &Value, (level, group, name): (&str, &str, &str), cause: &str, fix: &str) {
    let f = finding(json, group, name);
    assert_eq!(f["level"], level, "{f:#}");
    assert!(f["cause"].as_str().unwrap().contains(cause), "{f:#}");
    assert!(f["fix"].as_str().unwrap().contains(fix), "{f:#}");
}

fn a_healthy_chain_is_well(major: u32) {
    let (site, cluster) = healthy(major);
    crate::ship::spool_of(&site);
    let json = doctor(&site).run().json();
    let not_well: Vec<&Value> = list_of(&json["findings"])
        .iter()
        // The machine of the tests may have a full disk, or an overlay; and data directory and repository lie in memory.
        .filter(|f| {
            let is_machine = |name: &str| f["name"] == name;
            let is_machine = ["space", "writable and durable", "disk"]
                .into_iter()
                .any(is_machine);
            f["level"] != "ok" && !is_machine
        })
        .collect();
    assert!(not_well.is_empty(), "{not_well:#?}");
    for (group, name) in [
        ("configuration", "pgdata"),
        ("server", "wal_level"),
        ("server", "archive_command"),
        ("server", "program"),
        ("server", "archiver"),
        ("rights", "replication connection"),
        ("pg_wal", "waiting"),
        ("clock", "server and host"),
        ("repository", "local"),
        ("repository", "cluster"),
        ("repository", "gaps"),
    ] {
        assert_eq!(finding(&json, group, name)["level"], "ok");
    }
    let version = str_of(&finding(&json, "server", "connection")["value"]);
    assert!(
        version.contains(&format!("PostgreSQL {}", cluster.major())),
        "{version}"
    );
    let run = site.pitr().arg("doctor").run();
    assert!(
        run.stdout.starts_with("configuration\n  ok    file "),
        "{run}"
    );
    assert!(!run.stdout.contains("FAIL"), "{run}");
}
per_major!(a_healthy_chain_is_well, v13 v15 v19);

/// Up to 14 a collector process keeps the counters, and a reader may get what it wrote down half a second ago.
#[test]
fn counters_that_lag_behind_are_asked_again() {
    let (site, cluster) = Site::with_cluster(13);
    let client = cluster.client();
    let last = "select last_archived_wal from pg_stat_archiver";
    // The collector answers for a while with the value that is read here.
    assert_eq!(client.value(last), "");
    let name = cluster.switch_wal();
    let done = cluster
        .pgdata()
        .join(format!("pg_wal/archive_status/{name}.done"));
    wait_within(3 * PATIENCE, "it is archived", || done.exists());
    let json = doctor(&site).run().json();
    let archiver = finding(&json, "server", "archiver");
    assert_eq!(archiver["level"], "ok", "{archiver:#}");
    assert!(
        archiver["value"].as_str().unwrap().starts_with(&name),
        "{archiver:#}"
    );
}

#[test]
fn b10_g05_settings_that_keep_wal_from_the_archive_or_lose_pages_are_named() {
    let mut cluster = Cluster::builder(17)
        .segment_size_mb(1)
        .config("archive_mode", "off")
        .config("wal_level", "minimal")
        .config("max_wal_senders", "0")
        .without_fsync()
        .option("full_page_writes", "off")
        .checksums(false)
        .start();
    let site = Site::new(&cluster);
    let json = doctor(&site).exits(1).json();
    assert_eq!(json["state"], "fail");
    bad(
        &json,
        ("fail", "server", "wal_level"),
        "cannot be archived",
        "alter system set wal_level = 'replica', then restart",
    );
    bad(
        &json,
        ("fail", "server", "archive_mode"),
        "nothing is archived",
        "restart",
    );
    bad(
        &json,
        ("fail", "server", "fsync"),
        "crash",
        "alter system set fsync = 'on'",
    );
    bad(
        &json,
        ("warn", "server", "full_page_writes"),
        "torn",
        "alter system",
    );
    bad(
        &json,
        ("warn", "server", "data_checksums"),
        "unseen",
        "pg_checksums --enable",
    );
    bad(
        &json,
        ("warn", "server", "archive_timeout"),
        "quiet server",
        "archive_timeout = '60s'",
    );
    bad(
        &json,
        ("fail", "rights", "max_wal_senders"),
        "connection of its own",
        "restart",
    );
    bad(&json, ("fail", "rights", "replication connection"), "", "");
    bad(
        &json,
        ("fail", "repository", "newest backup"),
        "nothing can be recovered",
        "pitr backup",
    );
    assert_eq!(finding(&json, "repository", "timeline")["level"], "ok");
    // A setting that ALTER SYSTEM has written and no restart has brought, before and after the server read it again.
    cluster.alter_system("archive_mode", "on");
    let json = doctor(&site).run().json();
    bad(
        &json,
        ("fail", "server", "archive_mode"),
        "postgresql.auto.conf:",
        "restart the server",
    );
    cluster.reload();
    let json = doctor(&site).run().json();
    bad(
        &json,
        ("fail", "server", "archive_mode"),
        "takes effect with a restart",
        "restart the server",
    );
    cluster.stop(Stop::Fast);
    let json = doctor(&site).exits(1).json();
    assert_eq!(
        finding(&json, "server", "connection")["value"],
        "unreachable"
    );
    assert_eq!(
        finding(&json, "repository", "cluster")["level"],
        "ok",
        "pg_control tells who it is"
    );
}

#[test]
fn what_is_archived_later_than_rpo_and_a_server_without_free_connections_are_told() {
    let builder = Cluster::builder(17)
        .segment_size_mb(1)
        .config("max_wal_senders", "2")
        .config("archive_timeout", "30min");
    let (site, cluster) = Site::with_cluster_of(builder);
    let within = |rpo: &str| doctor(&site).env("PITR_CLUSTERS_MAIN_RPO", rpo);
    let json = within("30m").run().json();
    assert_eq!(finding(&json, "server", "archive_timeout")["level"], "ok");
    assert_eq!(finding(&json, "rights", "max_wal_senders")["level"], "ok");
    let _others = ["a", "b"].map(|name| {
        let to = site.sandbox().join(name);
        std::fs::create_dir(&to).unwrap();
        user::own(&to);
        cluster.tool("pg_receivewal").arg("-D").arg(to).spawn()
    });
    let in_use = "select count(*) from pg_stat_replication";
    wait_until("both are connected", || cluster.value(in_use) == "2");
    let json = within("15m").run().json();
    let warns = |group, name, cause, fix| bad(&json, ("warn", group, name), cause, fix);
    warns("server", "archive_timeout", "more than rpo", "= '450s'");
    warns("rights", "max_wal_senders", "finds no connection", "= '7'");
}

#[test]
fn g05_a_library_that_archives_in_our_place_is_critical() {
    let (site, cluster) = healthy(16);
    cluster.alter_system("archive_command", "");
    cluster.set("archive_library", "basic_archive");
    wait_until("it is loaded", || {
        cluster.value("show archive_library") == "basic_archive"
    });
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "server", "archive_library"),
        "archive_command is not run",
        "alter system set archive_library = ''",
    );
}

#[test]
fn g04_a_command_that_hides_its_status_is_critical() {
    let (site, cluster) = healthy(15);
    let good = site.archive().arg("%p").shell();
    for (command, cause) in [
        (format!("{good} || true"), "hides the status"),
        (format!("{good}; exit 0"), "hides the status"),
        ("cp %p /mnt/%f".to_owned(), "pitr-archive is not called"),
        (good.replace("%p", "%f"), "%p is needed"),
        (String::new(), "pg_wal until its disk is full"),
        (
            "/nonexistent/pitr-archive --config /etc/x %p".to_owned(),
            "",
        ),
    ] {
        cluster.set("archive_command", &command);
        wait_until("it is in force", || {
            cluster.value("show archive_command") == command
        });
        let json = doctor(&site).exits(1).json();
        if cause.is_empty() {
            bad(
                &json,
                ("fail", "server", "program"),
                "cannot be run",
                "install pitr-archive",
            );
            continue;
        }
        bad(
            &json,
            ("fail", "server", "archive_command"),
            cause,
            "alter system set archive_command = '/",
        );
        // The fix that it prints helps.
        let fix = str_of(&finding(&json, "server", "archive_command")["fix"]).to_owned();
        for statement in fix.split("; ") {
            cluster.sql(statement);
        }
        wait_until("it is in force", || {
            cluster.value("show archive_command") != command
        });
        let json = doctor(&site).run().json();
        assert_eq!(finding(&json, "server", "archive_command")["level"], "ok");
    }
}

#[test]
fn a_role_without_rights_is_told_which_it_needs() {
    let (site, cluster) = healthy(14);
    cluster.sql("create role \"Weak\" login");
    site.edit("user=postgres", "user=Weak");
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "rights", "replication"),
        "right to replicate",
        "alter role \"Weak\" replication",
    );
    bad(
        &json,
        ("warn", "rights", "settings"),
        "may not read",
        "grant pg_read_all_settings to \"Weak\"",
    );
    assert_eq!(
        finding(&json, "rights", "replication connection")["level"],
        "fail"
    );
    for statement in [
        "alter role \"Weak\" replication",
        "grant pg_read_all_settings to \"Weak\"",
    ] {
        cluster.sql(statement);
    }
    let json = doctor(&site).run().json();
    for name in ["replication", "settings", "replication connection"] {
        assert_eq!(finding(&json, "rights", name)["level"], "ok");
    }
}

/// The findings of a host as a role, by name.
fn of_role(site: &Site, role: &str) -> Vec<Value> {
    let run = doctor(site).args(["--role", role]).run();
    let all = run.json()["findings"].as_array().unwrap().clone();
    all.into_iter().filter(|f| f["group"] == "role").collect()
}

/// Levels and values of the findings about the role at the server.
fn at_server(site: &Site, role: &str) -> Vec<String> {
    let all = of_role(site, role).into_iter();
    let own = all.filter(|f| f["name"] == "server of main");
    let text = |f: &Value, name: &str| f[name].as_str().unwrap_or_default().to_owned();
    own.map(|f| format!("{}: {}", text(&f, "level"), text(&f, "value")))
        .collect()
}

#[test]
fn s36_a_policy_for_another_store_has_no_condition_of_amazons() {
    let sandbox = Sandbox::new("policy");
    let config = "[clusters.main]\npgdata = \"/srv/data\"\n[repositories.store]\nurl = \"s3://bucket/main\"\nregion = \"eu-central-1\"\n";
    let config = sandbox.file("pitr.toml", config);
    for (variable, is_amazons) in [
        ("AWS_REGION", true),
        ("AWS_ENDPOINT_URL", false),
        ("AWS_ENDPOINT_URL_S3", false),
    ] {
        let program = pitr().arg("--config").arg(&config);
        let program = program.words("init --role writer --json");
        let run = program.env(variable, "https://store.example").run();
        let has_it = run.success().stdout.contains("NeverReplace");
        assert_eq!(has_it, is_amazons, "{variable}");
    }
}

fn r93_the_role_at_the_server_is_compared_with_what_init_prints(major: u32) {
    let (site, cluster) = healthy(major);
    let superuser = ["warn: role \"postgres\" is a superuser"];
    assert_eq!(at_server(&site, "writer"), superuser);
    assert_eq!(at_server(&site, "reader"), superuser);
    let printed = site.pitr().words("init --role writer --json");
    let printed = printed.succeed().json();
    for statement in printed["sql"].as_array().unwrap() {
        cluster.sql(statement.as_str().unwrap());
    }
    site.edit("user=postgres", "user=pitr");
    for (role, told) in [
        ("writer", "ok: role \"pitr\" has the rights of a writer"),
        (
            "operator",
            "ok: role \"pitr\" has the rights of an operator",
        ),
        ("reader", "warn: role \"pitr\" may replicate"),
        ("janitor", "warn: role \"pitr\" may replicate"),
    ] {
        assert_eq!(at_server(&site, role), [told]);
    }
    // Each right that is gone is missed, and the statement that is told gives it back.
    for (taken, told) in [
        (
            "alter role pitr noreplication",
            "fail: role \"pitr\" may not replicate",
        ),
        (
            "revoke pg_monitor from pitr",
            "fail: role \"pitr\" may not monitor",
        ),
        (
            "revoke execute on function pg_create_restore_point(text) from pitr",
            "warn: role \"pitr\" may not make restore points",
        ),
    ] {
        cluster.sql(taken);
        assert_eq!(at_server(&site, "writer"), [told], "{taken}");
        let all = of_role(&site, "writer");
        let own = all.iter().find(|f| f["name"] == "server of main");
        cluster.sql(own.unwrap()["fix"].as_str().unwrap());
        assert!(at_server(&site, "writer")[0].starts_with("ok: "), "{taken}");
    }
    for right in [
        "grant pg_execute_server_program to pitr",
        "alter role pitr createrole",
    ] {
        cluster.sql(right);
    }
    let far = ["warn: role \"pitr\" has createrole, pg_execute_server_program"];
    assert_eq!(at_server(&site, "writer"), far);
    cluster.sql(
        "revoke pg_execute_server_program from pitr; alter role pitr nocreaterole noreplication",
    );
    assert_eq!(
        at_server(&site, "reader"),
        ["ok: role \"pitr\" has the rights of a reader"]
    );
}
per_major!(r93_the_role_at_the_server_is_compared_with_what_init_prints, v13 v16 v19);

#[test]
fn r93_the_modes_of_files_are_compared_with_those_that_init_prints() {
    use std::os::unix::fs::PermissionsExt;
    let (site, _cluster) = healthy(17);
    let mode = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let (state, spool) = (site.keep_state(), site.sandbox().dir("spool"));
    let token = site
        .sandbox()
        .file("token", "0123456789abcdef0123456789abcdef");
    site.add_to_cluster(&format!("spool_dir = \"{}\"\n", spool.display()));
    site.add(&format!("[page]\ntoken_file = \"{}\"\n", token.display()));
    let repository = site.repository();
    let all = [
        (site.config(), 0o640, 0o646, "configuration file", "fail"),
        (site.config(), 0o640, 0o644, "configuration file", "warn"),
        (&state, 0o700, 0o750, "state_dir", "warn"),
        (&spool, 0o700, 0o755, "spool_dir", "warn"),
        (repository, 0o750, 0o770, "directory of local", "warn"),
    ];
    for (path, closed, ..) in all {
        mode(path, closed);
    }
    mode(&token, 0o600);
    let level = |name: &str| {
        let found = of_role(&site, "writer");
        let own = found.iter().find(|f| f["name"] == name);
        own.map(|f| f["level"].as_str().unwrap().to_owned())
    };
    for (path, closed, open, name, told) in all {
        assert_eq!(level(name).as_deref(), Some("ok"), "{name}");
        mode(path, open);
        assert_eq!(level(name).as_deref(), Some(told), "{name} with {open:o}");
        mode(path, closed);
    }
    assert_eq!(level("files with secrets").as_deref(), Some("ok"));
    let name = token.display().to_string();
    mode(&token, 0o640);
    assert_eq!(level(&name).as_deref(), Some("fail"));
    std::fs::remove_file(&token).unwrap();
    assert_eq!(level(&name).as_deref(), Some("fail"));
}

#[test]
fn m11_what_somebody_removed_by_hand_is_missed() {
    let (site, cluster) = healthy(17);
    let names: Vec<String> = (0..3).map(|_| cluster.archive_now()).collect();
    std::fs::remove_file(site.object(&names[1])).unwrap();
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "repository", "gaps"),
        "1 segment of timeline 1 missing",
        "pitr wal backfill",
    );
    let run = site.pitr().words("info --json").exits(1);
    assert_eq!(run.json()["clusters"][0]["gaps"][0]["segments"], 1, "{run}");
    // The server still has it: nothing has removed WAL since.
    let wal = cluster.pgdata().join("pg_wal").join(&names[1]);
    site.archive().arg(wal).succeed();
    let json = doctor(&site).run().json();
    assert_eq!(
        finding(&json, "repository", "gaps")["level"],
        "ok",
        "{json:#}"
    );
    site.pitr().words("info").succeed();
    // All of it moved away: not an empty archive, but none.
    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    let json = doctor(&site).exits(1).json();
    assert_eq!(
        finding(&json, "repository", "local")["value"],
        "no_repository"
    );
}

#[test]
fn the_loss_of_a_server_leads_to_its_backups() {
    let (site, mut cluster) = healthy(16);
    cluster.stop(Stop::Fast);
    let way = |json: &Value| {
        let lost = "if the server is lost";
        bad(json, ("warn", lost, "backups to restore"), "", "pitr plan");
        let f = finding(json, lost, "backups to restore");
        assert!(str_of(&f["value"]).starts_with("1 undamaged backup"));
        let fix = f["fix"].as_str().unwrap();
        assert!(fix.contains("pitr info --config"), "{fix}");
        assert!(fix.contains("--to DIR"), "{fix}");
    };
    // Stopped, and then gone with its disk.
    let run = doctor(&site).exits(1);
    way(&run.json());
    assert!(!run.stdout.contains("\"there is no data directory\""));
    std::fs::remove_dir_all(cluster.pgdata()).unwrap();
    let run = doctor(&site).exits(1);
    way(&run.json());
    let (cause, fix) = ("there is no data directory", "pitr restore --to");
    bad(&run.json(), ("fail", "configuration", "pgdata"), cause, fix);
    bad(&run.json(), ("warn", "repository", "cluster"), "", fix);
    assert!(!run.stdout.contains("as the server's user"), "{run}");
}

#[test]
fn archiving_that_is_stuck_is_critical() {
    let (site, cluster) = healthy(13);
    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    let name = cluster.switch_wal();
    wait_until("the archiver has failed", || {
        cluster.value("select failed_count > 0 from pg_stat_archiver") == "t"
    });
    let ready = cluster
        .pgdata()
        .join(format!("pg_wal/archive_status/{name}.ready"));
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(900);
    std::fs::File::options()
        .write(true)
        .open(&ready)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    // The repository stays away: the archiver tries again each second, and must not succeed before doctor has looked.
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "server", "archiver"),
        "stuck at this file",
        &name,
    );
    bad(
        &json,
        ("fail", "pg_wal", "waiting"),
        "archiving is stuck",
        "pitr-archive",
    );
    assert!(str_of(&finding(&json, "pg_wal", "waiting")["value"]).contains(&name));
}

#[test]
fn a_restored_copy_and_a_foreign_server_are_told() {
    let (site, mut cluster) = healthy(19);
    let guard = cluster.pgdata().join("pg_wal/pitr.guard");
    std::fs::write(&guard, "").unwrap();
    user::own(&guard);
    let json = doctor(&site).exits(1).json();
    bad(&json, ("fail", "configuration", "pgdata"), "", "pitr adopt");
    assert_eq!(finding(&json, "configuration", "pgdata")["value"], "clone");
    // As pitr restore leaves it.
    cluster.alter_system("archive_mode", "off");
    cluster.restart();
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "server", "archive_mode"),
        "restored copy",
        "pitr adopt, then restart",
    );
    std::fs::remove_file(guard).unwrap();
    let other = Cluster::builder(19)
        .segment_size_mb(1)
        .own_identifier()
        .start();
    let port = |cluster: &Cluster| format!("port={}", cluster.port());
    let host = |cluster: &Cluster| cluster.socket_dir().display().to_string();
    site.edit(&port(&cluster), &port(&other));
    site.edit(&host(&cluster), &host(&other));
    let json = doctor(&site).exits(1).json();
    assert_eq!(
        finding(&json, "repository", "cluster")["value"],
        "wrong_cluster"
    );
}

#[test]
fn a_repository_that_hangs_is_told_and_hangs_nobody_else() {
    crate::require_root!("a_repository_that_hangs_is_told_and_hangs_nobody_else");
    let (site, _cluster) = healthy(17);
    let hanging = crate::common::mount::HangingDisk::over(site.repository());
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "repository", "local"),
        "has not answered for 10 s",
        "look at the mount",
    );
    drop(hanging);
    let json = doctor(&site).run().json();
    assert_eq!(finding(&json, "repository", "local")["level"], "ok");
}

#[test]
fn w72_one_of_two_repositories_that_hangs_is_passed_over_and_named() {
    crate::require_root!("w72_one_of_two_repositories_that_hangs_is_passed_over_and_named");
    let (site, _cluster) = healthy(17);
    let offsite = site.add_repository("offsite", "required = false\n");
    site.pitr().words("repo sync --quiet").succeed();
    // A look waits for two seconds instead of thirty.
    let pitr = || site.pitr().env("PITR_FAULT_SILENCE_SECONDS", "2");
    let info = || pitr().words("info --json").run().json();
    let away = |json: &Value, name: &str| {
        let all = list_of(&json["clusters"][0]["repositories"]);
        let one = all.iter().find(|one| one["name"] == name).unwrap();
        assert_eq!(one["away"]["code"], "unreachable", "{json:#}");
        let message = str_of(&one["away"]["message"]);
        assert!(message.contains("has not answered"), "{json:#}");
    };

    let hanging = crate::common::mount::HangingDisk::over(&offsite);
    away(&info(), "offsite");
    let plan = pitr().words("plan --json").succeed().json();
    assert_eq!(plan["unasked"][0], "offsite", "{plan:#}");
    let metrics = pitr().words("metrics").run();
    for series in [
        "pitr_repo_up{repo=\"local\"} 1",
        "pitr_repo_up{repo=\"offsite\"} 0",
    ] {
        assert!(metrics.stdout.contains(series), "{metrics}");
    }
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "repository", "offsite"),
        "has not answered",
        "look at the mount",
    );
    drop(hanging);

    // The first one hangs: the other is read.
    let hanging = crate::common::mount::HangingDisk::over(site.repository());
    let json = info();
    away(&json, "local");
    let read = str_of(&json["clusters"][0]["repository"]);
    assert!(read.ends_with("/offsite"), "{json:#}");
    drop(hanging);
}

/// The receiver's slot in all its states, up to the loss of its WAL.
fn w12_doctor_says_how_much_wal_the_slot_keeps(major: u32) {
    let cluster = Cluster::small(major)
        .config("max_slot_wal_keep_size", "10MB")
        .start();
    let site = Site::new(&cluster);
    let journal = site.sandbox().join("journal");
    reception::configure(&site, &cluster.conninfo("postgres"), &journal);
    let look = || doctor(&site).run().json();
    let write = |kib: u32| {
        // In a transaction: its commit writes what would else stay in memory, and not count as kept.
        cluster.sql(&format!(
            "select pg_logical_emit_message(true, 'fill', repeat('x', {kib} * 1024))"
        ));
    };
    let json = look();
    bad(
        &json,
        ("fail", "receiver", "slot"),
        "removes WAL before",
        "--create-slot",
    );
    assert_eq!(finding(&json, "server", "archive_mode")["level"], "ok");

    cluster.sql("select pg_create_physical_replication_slot('pitr', true)");
    let json = look();
    bad(
        &json,
        ("fail", "receiver", "slot"),
        "nothing is received",
        "start pitr receive",
    );
    assert_eq!(
        finding(&json, "receiver", "kept WAL")["level"],
        "ok",
        "{json:#}"
    );
    write(6 << 10);
    bad(
        &look(),
        ("warn", "receiver", "kept WAL"),
        "does not keep up",
        "pitr info",
    );
    write(3500);
    bad(
        &look(),
        ("fail", "receiver", "kept WAL"),
        "loses WAL",
        "start pitr receive",
    );

    cluster.set("max_slot_wal_keep_size", "-1");
    wait_until("there is no limit", || {
        finding(&look(), "receiver", "max_slot_wal_keep_size")["value"] == "no limit"
    });
    let name = "max_slot_wal_keep_size";
    bad(
        &look(),
        ("warn", "receiver", name),
        "until its disk is full",
        "alter system set",
    );
    let streaming = Program::new(crate::common::newest_bin(major, "pg_receivewal"))
        .args(["--slot", "pitr", "-d", &cluster.conninfo("postgres"), "-D"])
        .arg(site.sandbox().dir("received"))
        .spawn();
    wait_until("it is received", || {
        finding(&look(), "receiver", "slot")["level"] == "ok"
    });
    streaming.ended_by(rustix::process::Signal::INT);

    cluster.set("max_slot_wal_keep_size", "2MB");
    wait_until("the slot has lost WAL", || {
        write(1 << 10);
        cluster.sql("select pg_switch_wal(); checkpoint");
        let sql = "select wal_status from pg_replication_slots";
        cluster.value(sql) == "lost"
    });
    bad(
        &look(),
        ("fail", "receiver", "lost WAL"),
        "nobody received",
        "--drop-slot",
    );
}
per_major!(w12_doctor_says_how_much_wal_the_slot_keeps);

#[test]
fn a_standby_that_always_archives_is_watched_like_a_primary() {
    let (site, primary) = Site::with_cluster(17);
    primary.archive_now();
    let standby = primary
        .standby()
        .option("archive_mode", "always")
        .option("archive_command", "/bin/false")
        .start();
    let place = |c: &Cluster| c.pgdata().display().to_string();
    site.edit(&place(&primary), &place(&standby));
    let doctor = doctor(&site).env("PITR_CLUSTERS_MAIN_CONNINFO", standby.conninfo("postgres"));
    primary.archive_now();
    let failures = "select failed_count > 0 from pg_stat_archiver";
    wait_until("its archiver fails", || standby.value(failures) == "t");
    let json = doctor.clone().run().json();
    bad(
        &json,
        ("fail", "server", "archiver"),
        "archiving is stuck",
        "by hand",
    );
    // A file that waits there is stuck, too, once it is old.
    let status = standby.pgdata().join("pg_wal/archive_status");
    let ready = || {
        let entries = std::fs::read_dir(&status).unwrap();
        let mut paths = entries.map(|e| e.unwrap().path());
        paths.find(|p| p.extension().is_some_and(|e| e == "ready"))
    };
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let file = std::fs::File::options()
        .write(true)
        .open(ready().unwrap())
        .unwrap();
    file.set_modified(old).unwrap();
    let json = doctor.run().json();
    bad(
        &json,
        ("fail", "pg_wal", "waiting"),
        "archiving is stuck",
        "",
    );
}

#[test]
fn a_question_that_is_refused_takes_nothing_from_the_other_answers() {
    let (site, mut cluster) = Site::with_cluster(17);
    cluster.sql("create role watcher login replication; grant pg_read_all_settings to watcher");
    cluster.sql("revoke execute on function pg_control_system() from public");
    let conninfo = cluster
        .conninfo("postgres")
        .replace("user=postgres", "user=watcher");
    let config = std::fs::read_to_string(site.config()).unwrap();
    let without = config.lines().filter(|l| !l.starts_with("pgdata"));
    let without = without.collect::<Vec<_>>().join("\n");
    std::fs::write(site.config(), without).unwrap();
    let json = doctor(&site)
        .env("PITR_CLUSTERS_MAIN_CONNINFO", conninfo)
        .run()
        .json();
    assert_eq!(finding(&json, "server", "questions")["level"], "fail");
    assert_eq!(
        finding(&json, "repository", "cluster")["level"],
        "ok",
        "{json:#}"
    );
    // A damaged pg_control is reported as that.
    cluster.stop(Stop::Fast);
    std::fs::write(site.config(), config).unwrap();
    std::fs::write(cluster.pgdata().join("global/pg_control"), [0; 8192]).unwrap();
    let json = doctor(&site).run().json();
    let found = finding(&json, "repository", "cluster");
    assert!(
        found["cause"].as_str().unwrap().contains("pg_control"),
        "{found:#}"
    );
    assert!(
        !found["cause"].as_str().unwrap().contains("neither"),
        "{found:#}"
    );
}

#[test]
fn p22_j79_what_blocks_archiving_for_15_minutes_is_critical() {
    let (site, cluster) = healthy(17);
    let spool = spool_of(&site);
    site.pitr().arg("info").succeed();
    cluster.append_config("archive_command", "false");
    cluster.reload();
    let names: Vec<String> = (0..3).map(|_| cluster.switch_wal()).collect();
    let bad = &names[0];
    let mut other = std::fs::read(cluster.pgdata().join("pg_wal").join(bad)).unwrap();
    *other.last_mut().unwrap() ^= 1;
    let other = site.sandbox().file(bad, other);
    site.archive().arg(other).succeed();
    let push = site.archive().arg(format!("pg_wal/{bad}"));
    push.dir(cluster.pgdata()).exits(20);
    wait_until("the worker has ended", || !has_worker(&spool));
    assert_eq!(noted(&spool, ".failed"), [bad.as_str()]);
    let mut files = paths_below(&spool).into_iter();
    let is_record = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "failed");
    let record = files.find(is_record).unwrap();
    for (minutes, state, status, level) in [(14, "warning", 6, "warn"), (16, "critical", 1, "fail")]
    {
        let since = std::time::SystemTime::now() - Duration::from_secs(60 * minutes);
        let file = std::fs::File::options().append(true).open(&record).unwrap();
        file.set_modified(since).unwrap();
        let run = site.pitr().words("info --json").run();
        let json = run.expect_code(status).json();
        let cluster = &json["clusters"][0];
        let mut problems = cluster["problems"].as_array().unwrap().iter();
        let is_it = |p: &&Value| p["message"].as_str().unwrap().contains(bad);
        assert_eq!(problems.find(is_it).unwrap()["state"], state, "{json:#}");
        // That archive_command archives nothing is worse, and no matter of time.
        let json = doctor(&site).exits(1).json();
        let findings = json["findings"].as_array().unwrap();
        let blocked = findings.iter().find(|f| f["name"] == "blocked");
        assert_eq!(blocked.unwrap()["level"], level, "{json:#}");
    }
}

#[test]
fn d_a_zone_that_is_none_and_a_server_elsewhere_are_told_as_what_they_are() {
    let (site, cluster) = Site::with_cluster(15);
    let pgdata = cluster.pgdata().display().to_string();
    let rules = "retention.timezone = \"Asia/Nowhere\"";
    let elsewhere = format!("{pgdata}-gone\"\n{rules}\ntimezone = \"Europe/Berlinn");
    site.edit(&pgdata, &elsewhere);
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "configuration", "timezone"),
        "Europe/Berlinn",
        "Europe/Berlin",
    );
    let name = "clusters.main.retention.timezone";
    let what = ("fail", "configuration", name);
    bad(&json, what, "Asia/Nowhere", "pitr expire deletes nothing");
    bad(
        &json,
        ("fail", "configuration", "pgdata"),
        &pgdata,
        "set pgdata",
    );
    let fix = finding(&json, "configuration", "pgdata")["fix"].to_string();
    assert!(!fix.contains("lost"), "{fix}");
}

#[test]
fn a_standby_that_cannot_catch_up_or_follow_is_told_what_to_set() {
    let (site, primary) = Site::with_cluster(17);
    primary.archive_now();
    let standby = primary
        .standby()
        .option("recovery_target_timeline", "current")
        .start();
    let json = || {
        let doctor = doctor(&site);
        let doctor = doctor.env("PITR_CLUSTERS_MAIN_CONNINFO", standby.conninfo("postgres"));
        doctor.run().json()
    };
    let said = json();
    let name = "restore_command";
    bad(
        &said,
        ("warn", "server", name),
        "falls behind",
        "pitr-restore",
    );
    let fix = finding(&said, "server", name)["fix"].as_str().unwrap();
    let (fix, _) = fix.split_once(';').unwrap();
    let fix = fix.to_owned();
    let name = "recovery_target_timeline";
    bad(&said, ("warn", "server", name), "new primary", "latest");
    standby.sql("alter system set restore_command = 'cp /nowhere/%f %p'");
    standby.reload();
    wait_until("another command is told", || {
        finding(&json(), "server", "restore_command")["value"] == "cp /nowhere/%f %p"
    });
    let cause = "does not ask the repositories";
    bad(
        &json(),
        ("warn", "server", "restore_command"),
        cause,
        "pitr-restore",
    );
    // The standby takes the command that doctor prints.
    standby.sql(&fix);
    standby.reload();
    wait_until("it is well", || {
        finding(&json(), "server", "restore_command")["level"] == "ok"
    });
}

#[test]
fn slots_of_others_without_a_limit_are_told_when_nobody_reads_them() {
    let cluster = Cluster::small(17).config("max_wal_size", "2MB").start();
    let site = Site::new(&cluster);
    reception::configure(
        &site,
        &cluster.conninfo("postgres"),
        &site.sandbox().join("journal"),
    );
    let slots = || {
        let json = doctor(&site).run().json();
        let all = json["findings"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["group"] == "slots")
    };
    assert_eq!(slots(), None);
    cluster.sql("select pg_create_physical_replication_slot('debezium', true)");
    let told = slots().unwrap();
    assert_eq!(told["level"], "warn", "{told}");
    let value = told["value"].as_str().unwrap();
    assert!(
        value.starts_with("\"debezium\" (not in use) keeps "),
        "{told}"
    );
    let fix = told["fix"].as_str().unwrap();
    assert!(
        fix.contains("pg_drop_replication_slot('debezium')"),
        "{told}"
    );
    // One that is in use, and does not keep up: it is stopped.
    let reading = Program::new(crate::common::newest_bin(17, "pg_receivewal"))
        .args([
            "--slot",
            "debezium",
            "-d",
            &cluster.conninfo("postgres"),
            "-D",
        ])
        .arg(site.sandbox().dir("received"))
        .spawn();
    wait_until("it is in use and near", || slots().is_none());
    reading.signal(rustix::process::Signal::STOP);
    let write = "select pg_logical_emit_message(true, 'fill', repeat('x', 4000000))";
    cluster.sql(write);
    let told = slots().unwrap();
    let value = told["value"].as_str().unwrap();
    assert!(value.starts_with("\"debezium\" (in use) keeps "), "{told}");
    reading.signal(rustix::process::Signal::CONT);
    cluster.set("max_slot_wal_keep_size", "1GB");
    wait_until("there is a limit", || {
        let sql = "show max_slot_wal_keep_size";
        cluster.value(sql) == "1GB"
    });
    assert_eq!(slots(), None);
}

#[test]
fn a_disk_of_pg_wal_without_room_for_four_busy_hours_is_told() {
    require_mounts!("a_disk_of_pg_wal_without_room_for_four_busy_hours_is_told");
    let disk = SmallDisk::new(120, 1000);
    let builder = Cluster::small(17);
    let (site, mut cluster) = Site::with_cluster_of(builder);
    for _ in 0..12 {
        cluster.sql("select pg_logical_emit_message(true, 'fill', repeat('x', 100000))");
        cluster.archive_now();
    }
    site.pitr().words("backup --quiet").succeed();
    let room = || finding(&doctor(&site).run().json(), "repository", "room of pg_wal").clone();
    let told = room();
    assert_eq!(told["level"], "ok", "{told}");
    assert!(
        str_of(&told["value"]).contains("in the busiest hour"),
        "{told}"
    );
    // It lies on a small disk from now on.
    cluster.stop(Stop::Fast);
    let (wal, there) = (cluster.pgdata().join("pg_wal"), disk.path().join("wal"));
    copy_all(&wal, &there);
    std::fs::remove_dir_all(&wal).unwrap();
    std::os::unix::fs::symlink(&there, &wal).unwrap();
    cluster.start();
    disk.leave_free(20 << 20);
    let json = doctor(&site).run().json();
    bad(
        &json,
        ("warn", "repository", "room of pg_wal"),
        "the server stops",
        "four hours",
    );
}

/// Row T82: what a receiver recorded as lost, and what of it concerns anybody.
#[test]
fn t82_of_a_recorded_gap_only_what_is_not_stored_and_backups_need_is_told() {
    let (site, cluster) = healthy(17);
    let names: Vec<String> = (0..3).map(|_| cluster.archive_now()).collect();
    let size = SegmentSize::new(1 << 20).unwrap();
    let start = |name: &str| {
        let name: SegmentName = name.parse().unwrap();
        name.start_lsn(size).unwrap()
    };
    let record = |nonce: u64, from: Lsn, to: Lsn| {
        let lost = Event {
            event: "gap".into(),
            subject: event::timeline_subject(TimelineId::FIRST),
            from_lsn: Some(from),
            to_lsn: Some(to),
            ..Event::default()
        };
        event::record(&store(&site), &layout(&site), &lost, nonce).unwrap();
        user::own_all(&site.cluster_folder().join("events"));
    };
    let told = || -> Vec<String> {
        let json = doctor(&site).run().json();
        let all = json["findings"].as_array().unwrap().iter();
        let gaps = all.filter(|f| f["name"] == "recorded gap");
        gaps.map(|f| f["value"].as_str().unwrap().to_owned())
            .collect()
    };
    let (from, to) = (start(&names[1]), start(&names[2]));
    // WAL before the oldest backup, and WAL that came after all.
    record(1, Lsn(0), Lsn(1 << 20));
    record(2, start(&names[0]), to);
    assert_eq!(told(), Vec::<String>::new());
    // A part of it is not there, and a sync has brought the record of another repository.
    std::fs::remove_file(site.object(&names[1])).unwrap();
    record(3, start(&names[0]), to);
    let lost = format!("WAL of timeline 1 from {from} to {to} was lost before it was received");
    assert_eq!(told(), [lost]);
}

#[test]
fn n11_a_host_that_archives_without_the_keys_of_its_repository_is_critical() {
    let (sealed, _cluster) = Sealed::archived(17);
    let look = |host: &str| sealed.on(host).words("doctor --json").run();
    let json = look("janitor").expect_code(1).json();
    bad(
        &json,
        ("fail", "repository", "encryption"),
        "nothing can be archived",
        "[repositories.local.encryption]",
    );
    for host in ["writer", "reader"] {
        let json = look(host).json();
        let mut all = json["findings"].as_array().unwrap().iter();
        assert!(all.all(|f| f["name"] != "encryption"), "{json:#}");
    }
}

#[test]
fn n12_a_data_directory_of_another_cluster_is_told_and_not_looked_into() {
    let (site, cluster) = healthy(17);
    let other = Cluster::builder(17)
        .segment_size_mb(1)
        .own_identifier()
        .start();
    let own = cluster.pgdata().display().to_string();
    site.edit(&own, &other.pgdata().display().to_string());
    let json = doctor(&site).exits(1).json();
    bad(
        &json,
        ("fail", "configuration", "pgdata"),
        "they are two clusters",
        &own,
    );
    let archived = finding(&json, "repository", "archived WAL");
    assert_eq!(archived["level"], "ok", "{json:#}");
}

/// A copy that was adopted while it runs, of a cluster with a receiver.
#[test]
fn archiving_that_waits_for_a_restart_is_told_beside_a_receiver() {
    let cluster = Cluster::builder(17)
        .segment_size_mb(1)
        .config("archive_mode", "off")
        .start();
    let site = Site::new(&cluster);
    let journal = site.sandbox().join("journal");
    reception::configure(&site, &cluster.conninfo("postgres"), &journal);
    let json = doctor(&site).run().json();
    assert_eq!(finding(&json, "server", "archive_mode")["level"], "ok");
    cluster.alter_system("archive_mode", "on");
    let json = doctor(&site).run().json();
    bad(
        &json,
        ("fail", "server", "archive_mode"),
        "postgresql.auto.conf:",
        "restart the server",
    );
}

#[test]
fn a_full_repository_is_told_with_the_command_that_makes_room() {
    require_mounts!("a_full_repository_is_told_with_the_command_that_makes_room");
    let disk = SmallDisk::new(40, 4000);
    let mut cluster = Cluster::small(17).create();
    let site = Site::on(&cluster, &disk.path().join("repo"));
    site.attach(&cluster);
    cluster.start();
    spool_of(&site);
    cluster.archive_now();
    let filler = disk.path().join("filler");
    Program::new("dd")
        .words("if=/dev/zero bs=4k status=none")
        .arg(format!("of={}", filler.display()))
        .run();
    cluster.sql("create table noise as select md5(g::text) from generate_series(1, 20000) g");
    cluster.switch_wal();
    let look = || doctor(&site).run().json();
    wait_until("it is known that archiving is stuck", || {
        let json = look();
        let mut all = json["findings"].as_array().unwrap().iter();
        let is_blocked = all.any(|f| f["name"] == "blocked");
        is_blocked && finding(&json, "server", "archiver")["level"] == "fail"
    });
    let json = look();
    let (stuck, fix) = ("archiving is stuck", "pitr expire --confirm");
    bad(&json, ("fail", "server", "archiver"), stuck, fix);
    bad(&json, ("warn", "pg_wal", "blocked"), "offers no later", fix);
}
