//! `pitr init` through the real program, against real data directories.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::common::{Cluster, Program, Run, Sandbox, Site, Stop, list_of, pitr, user};
use crate::sealed::keygen;
use crate::{per_major, require_root};

fn init(cluster: &Cluster, sandbox: &Sandbox) -> Program {
    pitr()
        .dir(sandbox.path())
        .arg("init")
        .arg("--pgdata")
        .arg(cluster.pgdata())
        .arg("--repository")
        .arg(sandbox.join("repo"))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        // The reserve of room counts as nothing, as lost+found does for init.
        .filter(|name| !name.starts_with(".tmp.reserve."))
        .collect();
    names.sort();
    names
}

/// The lines for postgresql.conf that were printed.
fn settings(run: &Run) -> String {
    let is_setting = |l: &&str| l.contains(" = ") && !l.starts_with(' ');
    let lines: Vec<&str> = run.stdout.lines().filter(is_setting).collect();
    assert_eq!(lines.len(), 4, "{run}");
    lines.join("\n") + "\n"
}

fn the_lines_that_init_prints_make_archiving_work(major: u32) {
    let sandbox = Sandbox::new("init dir");
    let mut cluster = Cluster::small(major).start();
    let run = init(&cluster, &sandbox).succeed();
    let conf = cluster.pgdata().join("postgresql.conf");
    let old = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, old + &settings(&run)).unwrap();
    cluster.restart();
    cluster.archive_now();
    assert_eq!(
        cluster.value("select failed_count from pg_stat_archiver"),
        "0"
    );
    assert_eq!(cluster.value("show archive_timeout"), "1min");

    // The server's address was taken from postmaster.pid, so that the next commands find it.
    let config = std::fs::read_to_string(sandbox.join("pitr.toml")).unwrap();
    let address = format!("port={} user=postgres", cluster.port());
    assert!(config.contains(&address), "{config}");
    let mode = std::fs::metadata(sandbox.join("pitr.toml")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(names(&sandbox.join("repo")), ["clusters", "pitr.json"]);
}
per_major!(the_lines_that_init_prints_make_archiving_work);

#[test]
fn init_a_second_time_changes_nothing_and_says_so() {
    let sandbox = Sandbox::new("init");
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    let first = init(&cluster, &sandbox).succeed();
    assert!(first.stdout.contains("created") && first.stdout.contains("registered"));
    let config = std::fs::read(sandbox.join("pitr.toml")).unwrap();
    let marker = std::fs::read(sandbox.join("repo/pitr.json")).unwrap();

    let again = init(&cluster, &sandbox)
        .succeed()
        .expect_stdout("Nothing had to be done");
    assert_eq!(settings(&first), settings(&again));
    // The file says it all by now.
    pitr()
        .dir(sandbox.path())
        .arg("init")
        .succeed()
        .expect_stdout("Nothing had to be done");
    let json = init(&cluster, &sandbox).arg("--json").succeed().json();
    assert_eq!(json["config_written"], false);
    assert_eq!(json["repositories"][0]["created"], false);
    assert_eq!(json["repositories"][0]["registered"], false);
    assert_eq!(json["settings"]["archive_mode"], "on");
    assert_eq!(std::fs::read(sandbox.join("pitr.toml")).unwrap(), config);
    assert_eq!(
        std::fs::read(sandbox.join("repo/pitr.json")).unwrap(),
        marker
    );
    assert_eq!(names(sandbox.path()), ["pitr.toml", "repo"]);
}

#[test]
fn another_system_identifier_needs_a_confirmation() {
    let sandbox = Sandbox::new("init");
    let one = Cluster::builder(16).segment_size_mb(1).create();
    let other = Cluster::builder(16)
        .segment_size_mb(1)
        .own_identifier()
        .create();
    init(&one, &sandbox).succeed();
    std::fs::remove_file(sandbox.join("pitr.toml")).unwrap();
    let run = init(&other, &sandbox).exits(1);
    assert!(
        run.stderr.starts_with(
            "error wrong_cluster: cluster \"main\" is registered with system identifier "
        ),
        "{run}"
    );
    assert_eq!(names(sandbox.path()), ["repo"]);
    init(&other, &sandbox)
        .arg("--confirm")
        .succeed()
        .expect_stdout("registered");
    assert_eq!(names(&sandbox.join("repo/clusters/main")).len(), 2);
    // Once more, as where the configuration still leads to the old cluster.
    let run = init(&other, &sandbox).arg("--confirm").succeed();
    run.expect_stderr("--confirm registered nothing")
        .expect_stderr(", which was registered")
        .expect_stderr("set pgdata and conninfo in [clusters.main]");
}

#[test]
fn a_directory_that_belongs_to_somebody_else_is_left_alone() {
    let sandbox = Sandbox::new("init");
    let cluster = Cluster::builder(15).segment_size_mb(1).create();
    let repo = sandbox.dir("repo");
    sandbox.file("repo/letters", "dear");
    let run = init(&cluster, &sandbox).exits(8);
    assert_eq!(
        run.stderr.lines().next().unwrap(),
        format!(
            "error refused: directory \"{}\" is not a repository, and not empty: it holds \"letters\"",
            repo.display()
        )
    );
    assert_eq!(names(&repo), ["letters"]);
    assert_eq!(names(sandbox.path()), ["repo"]);

    // The folder that mkfs leaves counts as nothing.
    std::fs::remove_file(repo.join("letters")).unwrap();
    std::fs::create_dir(repo.join("lost+found")).unwrap();
    init(&cluster, &sandbox).succeed();
    assert_eq!(names(&repo), ["clusters", "lost+found", "pitr.json"]);
}

#[test]
fn init_refuses_what_cannot_work_before_it_writes() {
    let sandbox = Sandbox::new("init");
    let cluster = Cluster::builder(14).segment_size_mb(1).create();
    let data = cluster.pgdata().to_str().unwrap().to_owned();
    let inside = format!("{data}/backups");
    let repo = sandbox.join("repo");
    let repo = repo.to_str().unwrap();
    for (arguments, code, message) in [
        (
            &["--pgdata", &data][..],
            2,
            "error usage: no configuration file is there, and --repository is not given",
        ),
        (
            &["--repository", repo],
            2,
            "error usage: neither --pgdata nor --conninfo is given",
        ),
        (
            &["--pgdata", &data, "--repository", "local"],
            2,
            "error usage: \"local\" is not the URL of a repository",
        ),
        (
            &["--pgdata", &data, "--repository", "s3:/b"],
            3,
            "error config: \"s3:/b\" is not the URL of a repository",
        ),
        (
            &["--pgdata", "/etc", "--repository", repo],
            2,
            "error usage: \"/etc\" is not a data directory: it has no global/pg_control",
        ),
        (
            &["--pgdata", &data, "--repository", repo, "--cluster", "Main"],
            2,
            "error usage: \"Main\" is not a cluster name",
        ),
        (
            &["--pgdata", &data, "--repository", &inside],
            8,
            "error refused: repository \"",
        ),
        (
            &["--conninfo", "host=/nonexistent", "--repository", repo],
            9,
            "error unreachable: ",
        ),
    ] {
        let run = pitr()
            .dir(sandbox.path())
            .arg("init")
            .args(arguments)
            .exits(code);
        assert!(run.stderr.starts_with(message), "{run}");
        assert!(names(sandbox.path()).is_empty(), "{run}");
    }
    assert!(!Path::new(&inside).exists());

    // A restored copy that nobody adopted.
    let guard = cluster.pgdata().join("pg_wal/pitr.guard");
    std::fs::write(&guard, "").unwrap();
    init(&cluster, &sandbox).exits(8);
    std::fs::remove_file(guard).unwrap();
    assert!(names(sandbox.path()).is_empty());

    // A server built with other pages: pg_control says so (offset 216; its CRC stands at 288 in 14).
    let control = cluster.pgdata().join("global/pg_control");
    let mut bytes = std::fs::read(&control).unwrap();
    bytes[216..220].copy_from_slice(&32768_u32.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&control, bytes).unwrap();
    let run = init(&cluster, &sandbox).exits(1);
    assert!(
        run.stderr.starts_with(
            "error unsupported: the cluster's data pages have 32768 bytes, only 8192 are supported"
        ),
        "{run}"
    );
    assert!(names(sandbox.path()).is_empty());
}

#[test]
fn an_existing_configuration_is_used_and_never_changed() {
    let sandbox = Sandbox::new("init");
    let cluster = Cluster::builder(13).segment_size_mb(1).create();
    let text = format!(
        "[clusters.one]\npgdata = '{}'\n[clusters.two]\n[repositories.a]\nurl = 'file://{}'\n[repositories.b]\nurl = 'file://{}'\n",
        cluster.pgdata().display(),
        sandbox.join("repo").display(),
        sandbox.join("other/place").display(),
    );
    sandbox.file("pitr.toml", &text);
    let run = init(&cluster, &sandbox)
        .words("--cluster two --pgdata /nowhere")
        .run();
    assert_eq!(run.code(), 2, "--pgdata twice: {run}");
    let init = |args: &[&str]| pitr().dir(sandbox.path()).arg("init").args(args).run();
    let run = init(&["--cluster", "one", "--pgdata", "/usr"]).expect_code(8);
    assert!(run.stderr.contains("names another data directory"), "{run}");
    let mistyped = init(&["--cluster", "one", "--pgdata", "/nowhere"]).expect_code(2);
    mistyped.expect_stderr("Correct --pgdata, or leave it out");
    let run = init(&["--cluster", "one", "--repository", "/nowhere/repo"]).expect_code(8);
    assert!(run.stderr.contains("does not name the repository"), "{run}");
    init(&[]).expect_code(2);
    assert_eq!(names(sandbox.path()), ["pitr.toml"]);
    let connected = text.replace("[clusters.two]", "conninfo = 'host=/a'\n[clusters.two]");
    sandbox.file("pitr.toml", &connected);
    let run = init(&["--cluster", "one", "--conninfo", "host=/b password=x"]).expect_code(8);
    assert!(
        run.stderr.contains("has another conninfo") && !run.stderr.contains("password=x"),
        "{run}"
    );
    sandbox.file("pitr.toml", &text);

    let run = init(&["--cluster", "one"]).success();
    assert!(settings(&run).contains("--cluster one %p"), "{run}");
    assert!(run.stdout.contains("info --cluster one"), "{run}");
    // Each cluster of the file is shown; one that is not there does not hide the other.
    let info = |args: &[&str]| {
        pitr()
            .dir(sandbox.path())
            .words("info --json")
            .args(args)
            .run()
    };
    let run = info(&[])
        .expect_code(1)
        .expect_stderr("cluster \\\"two\\\"");
    let shown = run.json();
    assert_eq!(shown["clusters"].as_array().unwrap().len(), 1, "{run}");
    assert_eq!(
        (&shown["clusters"][0]["name"], &shown["state"]),
        (&"one".into(), &"critical".into())
    );
    let bare = ["--repository", sandbox.path().to_str().unwrap()].map(str::to_owned);
    let bare = format!("{}/repo", bare[1]);
    register_two(&sandbox);
    let shown = info(&["--repository", &bare]).json();
    let names_of: Vec<_> = list_of(&shown["clusters"])
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    assert_eq!(names_of, ["one", "two"], "{shown}");
    assert!(sandbox.join("repo/pitr.json").exists());
    assert!(sandbox.join("other/place/pitr.json").exists());
    assert_eq!(
        std::fs::read_to_string(sandbox.join("pitr.toml")).unwrap(),
        text
    );
}

#[test]
fn a_second_section_does_not_stop_the_first_clusters_archiving() {
    let (site, cluster) = Site::with_cluster(17);
    site.add("\n[clusters.inter]\npgdata = '/nonexistent/inter'\n");
    // Its archive_command names no cluster, as `pitr init` once wrote it.
    let segment = cluster.archive_now();
    let target = cluster.pgdata().join("pg_wal/RECOVERYXLOG");
    let fetch = site.restore().args([&segment, "pg_wal/RECOVERYXLOG"]);
    fetch.dir(cluster.pgdata()).succeed();
    assert!(target.exists());
    let doctor = || site.pitr().words("doctor --cluster main").run();
    let run = doctor();
    assert!(!run.stdout.contains("it names none"), "{run}");
    // New lines name it, so that they do not depend on the directory.
    let init = site.pitr().words("init --cluster main").run();
    let run = init.success();
    assert!(settings(&run).contains("--cluster main %p"), "{run}");
    let run = site.pitr().words("init --cluster third").run();
    run.expect_code(8)
        .expect_stderr("has no cluster \"third\"")
        .expect_stderr("[clusters.third]");

    // No section has the directory of the server.
    let pgdata = format!("pgdata   = \"{}\"\n", cluster.pgdata().display());
    site.edit(&pgdata, "");
    let push = site.archive().arg(format!("pg_wal/{segment}"));
    let run = push.dir(cluster.pgdata()).exits(1);
    assert!(run.stderr.contains("none is named: main, inter"), "{run}");
    doctor().expect_code(1).expect_stdout("it names none");
}

/// Registers cluster `two` beside `one`, under another identifier.
fn register_two(sandbox: &Sandbox) {
    let place = pitr::config::Repository::at(pitr::config::Location::File(sandbox.join("repo")));
    let repository = pitr::repo::open(&place, 1).unwrap();
    let one = repository.registrations("one").unwrap().remove(0);
    let two = pitr::repo::repository::Registration {
        name: "two".into(),
        system_identifier: one.system_identifier + 1,
        ..one
    };
    repository.register(&two).unwrap();
    user::own_all(&sandbox.join("repo"));
}

#[test]
fn an_adoption_that_is_recorded_nowhere_says_so() {
    let sandbox = Sandbox::new("init");
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    init(&cluster, &sandbox).succeed();
    let adopt = || {
        let guard = cluster.pgdata().join("pg_wal/pitr.guard");
        std::fs::write(&guard, "").unwrap();
        user::own(&guard);
        pitr().dir(sandbox.path()).words("adopt --json").succeed()
    };
    let run = adopt();
    assert_eq!(
        run.json()["recorded_in"].as_array().unwrap().len(),
        1,
        "{run}"
    );
    let registrations = sandbox.join("repo/clusters/main");
    std::fs::remove_dir_all(registrations).unwrap();
    let run = adopt().expect_stderr("was not recorded");
    assert_eq!(run.json()["recorded_in"], serde_json::json!([]), "{run}");
}

#[test]
fn the_same_identifier_with_another_major_is_refused() {
    let sandbox = Sandbox::new("init");
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    init(&cluster, &sandbox).succeed();
    let place = pitr::config::Repository::at(pitr::config::Location::File(sandbox.join("repo")));
    let repository = pitr::repo::open(&place, 1).unwrap();
    let registration = repository.registrations("main").unwrap().remove(0);
    let path = sandbox.join(format!(
        "repo/clusters/main/{}/cluster.json",
        registration.system_identifier
    ));
    std::fs::remove_file(&path).unwrap();
    let other = pitr::repo::repository::Registration {
        major: 16,
        ..registration
    };
    repository.register(&other).unwrap();
    user::own_all(&sandbox.join("repo"));
    let run = init(&cluster, &sandbox).exits(8);
    assert!(
        run.stderr
            .contains("registered as PostgreSQL 16, and is 17"),
        "{run}"
    );
}

#[test]
fn a_directory_that_cannot_be_listed_is_not_an_empty_one() {
    use crate::common::fault::{self, Fault};
    crate::require_strace!("a_directory_that_cannot_be_listed_is_not_an_empty_one");
    let sandbox = Sandbox::new("init");
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    let repository = sandbox.dir("repo");
    sandbox.file("repo/somebodys", "data");
    let unreadable = Fault::error("getdents64", "EIO").on(&repository);
    let (run, fired) = fault::inject(&init(&cluster, &sandbox), &unreadable);
    assert!(fired >= 1, "{run}");
    run.expect_code(1).expect_stderr("list directory");
    assert_eq!(names(&repository), ["somebodys"]);
}

#[test]
fn a_server_can_be_asked_instead_of_its_files() {
    let cluster = Cluster::builder(18).segment_size_mb(1).start();
    let other = Cluster::builder(18)
        .segment_size_mb(1)
        .own_identifier()
        .start();
    let sandbox = Sandbox::new("init");
    let run = init(&cluster, &sandbox)
        .args(["--conninfo", &other.conninfo("postgres")])
        .exits(1);
    assert!(
        run.stderr
            .contains("the data directory has system identifier"),
        "{run}"
    );
    assert!(names(sandbox.path()).is_empty());
    // A role without any rights is enough; it may not see the data directory.
    cluster.sql("create role plain login");
    let conninfo = cluster
        .conninfo("postgres")
        .replace("user=postgres", "user=plain");
    let json = pitr()
        .dir(sandbox.path())
        .args(["init", "--json", "--conninfo", &conninfo, "--repository"])
        .arg(sandbox.join("repo"))
        .succeed()
        .json();
    assert_eq!(
        json["system_identifier"],
        cluster.system_identifier().to_string()
    );
    assert_eq!(json["segment_size_bytes"], 1 << 20);
    let config = std::fs::read_to_string(sandbox.join("pitr.toml")).unwrap();
    assert!(
        config.contains("user=plain") && !config.contains("pgdata   ="),
        "{config}"
    );
}

#[test]
fn what_root_makes_belongs_to_the_servers_user() {
    require_root!("what_root_makes_belongs_to_the_servers_user");
    let sandbox = Sandbox::new("init");
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    let run = init(&cluster, &sandbox)
        .words("--config")
        .arg(sandbox.join("etc/pitr/pitr.toml"))
        .privileged()
        .succeed();
    let (uid, _) = user::ids();
    let identifier = names(&sandbox.join("repo/clusters/main")).remove(0);
    for path in [
        "etc".to_owned(),
        "etc/pitr/pitr.toml".into(),
        "repo".into(),
        "repo/pitr.json".into(),
        "repo/clusters".into(),
        format!("repo/clusters/main/{identifier}/cluster.json"),
    ] {
        let owner = std::fs::metadata(sandbox.join(&path)).unwrap().uid();
        assert_eq!(owner, uid, "{path}");
    }
    assert!(!run.stderr.contains("cannot use"), "{run}");
    // The server's user can work with it.
    pitr()
        .words("repo show --config")
        .arg(sandbox.join("etc/pitr/pitr.toml"))
        .succeed();

    run.expect_stdout("  sudo -u ");

    // A file that the configuration names, and this user cannot read, is named.
    let keys = sandbox.join("keys");
    keygen(&keys, &["ops", "escrow"]).succeed();
    let writer = keys.join("writer.key");
    std::os::unix::fs::chown(&writer, Some(0), Some(0)).unwrap();
    pitr()
        .words("init --pgdata")
        .arg(cluster.pgdata())
        .arg("--config")
        .arg(sandbox.join("sealed.toml"))
        .arg("--repository")
        .arg(sandbox.join("sealed"))
        .arg("--key-set")
        .arg(&writer)
        .privileged()
        .succeed()
        .expect_stderr(&format!("cannot use \"{}\": chown ", writer.display()));

    // The server lets its own user in, and root not: that is no warning.
    let running = Cluster::builder(17).segment_size_mb(1).start();
    let conninfo = running.conninfo("postgres");
    let conninfo = conninfo.replace("user=postgres", "user=absent");
    let again = pitr()
        .args(["init", "--conninfo", &conninfo, "--pgdata"])
        .arg(running.pgdata())
        .arg("--config")
        .arg(sandbox.join("peer.toml"))
        .arg("--repository")
        .arg(sandbox.join("peer"))
        .privileged()
        .succeed()
        .expect_stderr("pitr doctor asks it");
    assert!(!again.stderr.contains("could not be asked"), "{again}");
    // A place of root's, where the server's user can make no repository.
    let roots = sandbox.dir("roots");
    std::os::unix::fs::chown(&roots, Some(0), Some(0)).unwrap();
    let wanted = roots.join("inter");
    let refused = pitr()
        .words("init --pgdata")
        .arg(cluster.pgdata())
        .arg("--config")
        .arg(sandbox.join("roots.toml"))
        .arg("--repository")
        .arg(&wanted)
        .exits(1);
    let install = format!("-m 700 {}", wanted.display());
    refused
        .expect_stderr("sudo install -d -o ")
        .expect_stderr(&install);

    // A configuration that this user cannot reach is named, with what to do.
    let closed = sandbox.dir("closed");
    std::os::unix::fs::chown(&closed, Some(0), Some(0)).unwrap();
    init(&cluster, &sandbox)
        .arg("--config")
        .arg(closed.join("pitr.toml"))
        .privileged()
        .succeed()
        .expect_stderr("cannot use")
        .expect_stderr("or chmod a+x");
    // So is a repository of root's.
    let config = sandbox.file("third.toml", "");
    std::fs::remove_file(&config).unwrap();
    std::fs::set_permissions(sandbox.join("repo"), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(sandbox.join("repo"), Some(1), Some(1)).unwrap();
    init(&cluster, &sandbox)
        .arg("--config")
        .arg(&config)
        .privileged()
        .succeed()
        .expect_stderr("chown -R ");
}

#[test]
fn init_that_is_killed_at_any_write_can_be_run_again() {
    use crate::common::fault::{self, MUTATING};
    crate::require_strace!("init_that_is_killed_at_any_write_can_be_run_again");
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    let probe = Sandbox::new("init");
    let (_, calls) = fault::trace(&init(&cluster, &probe), MUTATING);
    let calls: Vec<_> = calls
        .into_iter()
        .filter(|c| c.touches(probe.path()) || c.name.starts_with("mkdir"))
        .collect();
    eprintln!("init: {} mutating calls", calls.len());
    assert!(calls.len() > 15, "{calls:?}");
    for call in calls {
        let sandbox = Sandbox::new("init");
        let (run, fired) = fault::inject(&init(&cluster, &sandbox), &call.kill());
        assert_eq!((run.code(), fired), (137, 1), "{}: {run}", call.text);
        init(&cluster, &sandbox).succeed();
        let site_files = names(&sandbox.join("repo"));
        let ours = |n: &&String| !n.starts_with(".tmp.");
        assert_eq!(
            site_files.iter().filter(ours).collect::<Vec<_>>(),
            ["clusters", "pitr.json"]
        );
        assert!(sandbox.join("pitr.toml").exists());
    }
}

#[test]
fn an_init_that_fails_leaves_nothing_that_it_does_not_name() {
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    let sandbox = Sandbox::new("init");
    let elsewhere = ["--config", "/etc/pitr-none/pitr.toml"];
    let run = init(&cluster, &sandbox).args(elsewhere).run();
    run.expect_code(1)
        .expect_stderr("Nothing was written. Give this user write access to \"/etc\"");
    assert!(names(sandbox.path()).is_empty());
    // The second one of two repositories cannot be made.
    let text = format!(
        "[clusters.main]\npgdata = \"{}\"\n[repositories.local]\nurl = \"file://{}\"\n[repositories.other]\nurl = \"file:///proc/pitr-none/repo\"\n",
        cluster.pgdata().display(),
        sandbox.join("repo").display()
    );
    let config = sandbox.file("pitr.toml", &text);
    let again = || pitr().arg("--config").arg(&config).arg("init").run();
    again()
        .expect_code(1)
        .expect_stderr("Made before, and kept: repository \"local\" (file://");
    let other = format!("{}/other", sandbox.path().display());
    std::fs::write(&config, text.replace("/proc/pitr-none/repo", &other)).unwrap();
    again().success();
    assert_eq!(names(&sandbox.join("other")), names(&sandbox.join("repo")));
}

#[test]
fn a_repository_that_came_to_nothing_takes_its_directory_along() {
    use crate::common::fault::{self, MUTATING};
    crate::require_strace!("a_repository_that_came_to_nothing_takes_its_directory_along");
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    let probe = Sandbox::new("init");
    let (_, calls) = fault::trace(&init(&cluster, &probe), MUTATING);
    let is_marker = |c: &&fault::Call| c.text.contains("pitr.json");
    let marker = calls.iter().find(is_marker).expect("the marker is written");
    let sandbox = Sandbox::new("init");
    let (run, fired) = fault::inject(&init(&cluster, &sandbox), &marker.fail("EIO"));
    assert_eq!((run.code(), fired), (1, 1), "{}: {run}", marker.text);
    assert!(names(sandbox.path()).is_empty(), "{run}");
}

#[test]
fn what_init_has_made_survives_a_power_cut() {
    require_root!("what_init_has_made_survives_a_power_cut");
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    let disk = crate::common::mount::PowerDisk::new(16);
    let config = disk.path().join("etc/pitr.toml");
    let init = pitr()
        .words("init --pgdata")
        .arg(cluster.pgdata())
        .arg("--config")
        .arg(&config)
        .arg("--repository")
        .arg(disk.path().join("backups/of/mine"));
    init.succeed();
    disk.cut_power();
    let run = pitr().words("repo show --config").arg(&config).succeed();
    assert!(run.stdout.contains("main"), "{run}");
    init.succeed().expect_stdout("Nothing had to be done");
}

#[test]
fn a_site_of_the_harness_is_what_init_makes() {
    let (site, cluster) = Site::with_cluster(17);
    let segment = cluster.archive_now();
    assert!(site.object(&segment).exists(), "{:?}", site.files());
}

#[test]
fn c05_clusters_of_several_system_identifiers_under_one_name_are_named() {
    let (site, mut cluster) = Site::with_cluster(15);
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("select pg_create_restore_point('then')");
    cluster.archive_now();
    let old = cluster.system_identifier().to_string();
    cluster.stop(Stop::Fast);
    // Another cluster takes its place, as after pg_upgrade.
    let mut new = Cluster::small(15).own_identifier().create();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    site.edit(&text(cluster.pgdata()), &text(new.pgdata()));
    site.edit(&cluster.conninfo("postgres"), &new.conninfo("postgres"));
    let info = || site.pitr().arg("info").run();
    info()
        .expect_code(1)
        .expect_stdout("not registered")
        .expect_stdout("pitr init --confirm");
    site.pitr().words("init --quiet --confirm").succeed();
    info()
        .expect_code(1)
        .expect_stdout("take a backup: pitr backup");
    site.attach(&new);
    new.start();
    site.pitr().words("backup --quiet").succeed();
    // The old backups are named with what leads to them, and a target that only they lead to, too.
    let leads = format!("--system-identifier {old}");
    info()
        .success()
        .expect_stdout("1 backup, 20")
        .expect_stdout(&leads);
    let json = site.pitr().words("info --json").succeed().json();
    assert_eq!(
        json["clusters"][0]["others"][0]["system_identifier"],
        old.as_str()
    );
    let plan = site.pitr().words("plan --target-name then");
    plan.exits(5).expect_stderr(&leads);
    plan.args(["--system-identifier", &old]).succeed();
    // After a roll-back the old one writes on: the other one is not taken in silence.
    new.stop(Stop::Fast);
    site.edit(&text(new.pgdata()), &text(cluster.pgdata()));
    site.edit(&new.conninfo("postgres"), &cluster.conninfo("postgres"));
    cluster.start();
    cluster.sql("create table written_later (n int)");
    cluster.archive_now();
    let to = site.sandbox().join("elsewhere");
    let restore = site.pitr().restore_to(to).arg("--dry-run");
    for run in [site.pitr().arg("plan"), restore] {
        run.succeed()
            .expect_stderr(&format!("add --system-identifier {old}"));
    }
    info()
        .expect_code(1)
        .expect_stdout(&format!("{old} can be recovered to"));
    // A host without that data directory sees the later WAL.
    site.edit(&text(cluster.pgdata()), "/nonexistent/pgdata");
    site.pitr()
        .arg("plan")
        .succeed()
        .expect_stderr(&format!("{old} leads to a later time"));
}
