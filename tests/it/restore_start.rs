//! The lines that `pitr restore` prints, run as printed: the line that starts the server, the line that adopts the
//! copy.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::s3::{BUCKET, KEY, S3Server, SECRET};
use crate::common::{
    Builder, Client, Cluster, Program, Run, Sandbox, Site, Stop, copy_all, majors, path_of, pitr,
    pitr_archive, user, wait_until,
};
use crate::require_root;

/// A server whose configuration lies outside of the data directory, as Debian has it.
struct Elsewhere {
    site: Site,
    server: Cluster,
    etc: PathBuf,
    /// Holds the data directory.
    _base: Cluster,
}

impl Elsewhere {
    fn new(major: u32) -> Elsewhere {
        Elsewhere::of(Cluster::builder(major))
    }

    fn of(builder: Builder) -> Elsewhere {
        let base = builder.segment_size_mb(1).without_fsync().create();
        let major = base.major();
        let etc = base.sandbox().dir("etc");
        let d = base.sandbox().dir("etc/conf.d");
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            std::fs::rename(base.pgdata().join(name), etc.join(name)).unwrap();
        }
        let server = Cluster::open(major, base.pgdata())
            .option("config_file", etc.join("postgresql.conf").display())
            .without_fsync()
            .create();
        let site = Site::new(&server);
        let main = std::fs::read_to_string(etc.join("postgresql.conf")).unwrap();
        let main = format!(
            "{main}\ndata_directory = '{}'\nhba_file = '{2}/pg_hba.conf'\nident_file = '{2}/pg_ident.conf'\n\
             external_pid_file = '{2}/main.pid'\nlisten_addresses = '127.0.0.1'\n\
             unix_socket_directories = '{2}'\nport = {1}\ninclude_dir = 'conf.d'\n",
            base.pgdata().display(),
            server.port(),
            etc.display()
        );
        std::fs::write(etc.join("postgresql.conf"), main).unwrap();
        let command = site.archive().arg("%p").shell().replace('\'', "''");
        std::fs::write(
            d.join("archive.conf"),
            format!("archive_mode = on\narchive_command = '{command}'\n"),
        )
        .unwrap();
        let mut server = server;
        server.start();
        Elsewhere {
            site,
            server,
            etc,
            _base: base,
        }
    }

    fn to(&self, name: &str) -> PathBuf {
        self.site.sandbox().dir("copies").join(name)
    }
}

/// The line below `Next:`.
fn next_line(run: &Run) -> String {
    let mut lines = run.stdout.lines().skip_while(|l| *l != "Next:");
    let line = lines.nth(1).unwrap_or_else(|| panic!("{run}"));
    line.trim().to_owned()
}

/// A server that a printed line has started, outside of the harness.
struct Started {
    pg_ctl: PathBuf,
    to: PathBuf,
}

impl Started {
    fn by(line: &str, copy: &Cluster) -> Started {
        Started::in_environment(line, copy, |program| program)
    }

    fn in_environment(
        line: &str,
        copy: &Cluster,
        environment: impl FnOnce(Program) -> Program,
    ) -> Started {
        let started = Started {
            pg_ctl: copy.bin("pg_ctl").unwrap(),
            to: copy.pgdata().to_owned(),
        };
        let start = Program::new("/bin/sh").args(["-c", line]);
        let start = start.env("PGCTLTIMEOUT", "280");
        environment(start.timeout(Duration::from_secs(300))).succeed();
        started
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        Program::new(&self.pg_ctl)
            .words("-m immediate -D")
            .arg(&self.to)
            .arg("stop")
            .run();
    }
}

fn one(client: &Client, sql: &str) -> String {
    client.value(sql)
}

#[test]
fn the_printed_line_starts_a_copy_of_a_server_whose_configuration_is_in_etc() {
    let there = Elsewhere::new(17);
    let server = &there.server;
    server.sql("create table t as select g as a from generate_series(1, 100) g");
    there.site.pitr().arg("backup").succeed();
    server.sql("insert into t select g from generate_series(101, 150) g");
    server.archive_now();
    // From the next start on, each commit waits for a standby that the copy does not have.
    std::fs::write(
        there.etc.join("conf.d/sync.conf"),
        "synchronous_standby_names = 'nobody'\n",
    )
    .unwrap();
    let to = there.to("data");
    let run = there
        .site
        .pitr()
        .restore_to(&to)
        .succeed()
        .expect_stdout(&format!(
            "{}/conf.d/archive.conf: archive_command = ",
            there.etc.display()
        ))
        .expect_stdout(&format!(
            "Port {}, which its settings name, is taken on this host",
            server.port()
        ))
        .expect_stdout("synchronous_standby_names = 'nobody' came along");
    let line = next_line(&run);
    // The port that it proposes is free, but other tests look for free ones, too.
    let copy = Cluster::open(17, &to).create();
    let (line, port) = line.rsplit_once("-p ").expect(&line);
    let (_, rest) = port.split_once([' ', '\'']).expect(port);
    let line = format!("{line}-p {} {rest}", copy.port());
    let started = Started::by(&line, &copy);
    let client = Client::connect(&copy.conninfo_tcp("postgres")).unwrap();
    wait_until("recovery has ended", || {
        one(&client, "select pg_is_in_recovery()") == "f"
    });
    assert_eq!(one(&client, "show data_directory"), to.to_str().unwrap());
    assert_eq!(
        one(&client, "show config_file"),
        there.etc.join("postgresql.conf").to_str().unwrap()
    );
    assert_eq!(one(&client, "show synchronous_standby_names"), "");
    client.sql("insert into t values (151)");
    assert_eq!(one(&client, "select count(*) from t"), "151");
    assert_eq!(server.value("select count(*) from t"), "150");
    assert!(to.join("external.pid").exists());
    drop(client);
    drop(started);

    // A host that has neither the server nor its configuration: the line is to be completed.
    let bare = there.to("bare");
    let run = pitr()
        .words("restore --repository")
        .arg(there.site.repository())
        .arg("--to")
        .arg(&bare)
        .succeed()
        .expect_stdout("in place of CONFIG_DIR");
    let line = next_line(&run);
    for option in [
        "config_file=CONFIG_DIR/postgresql.conf".to_owned(),
        format!("data_directory={}", bare.display()),
        "hba_file=CONFIG_DIR/pg_hba.conf".to_owned(),
        "ident_file=CONFIG_DIR/pg_ident.conf".to_owned(),
    ] {
        assert!(line.contains(&option), "{option}: {line}");
    }
}

/// As `pg_createcluster` leaves it on the new host; each copy of /etc is seen by one command alone.
#[test]
fn a_configuration_that_debian_has_for_the_very_directory_is_found() {
    require_root!("a_configuration_that_debian_has_for_the_very_directory_is_found");
    let there = Elsewhere::new(17);
    there.site.pitr().arg("backup").succeed();
    there.server.archive_now();
    let etc = there.site.sandbox().join("etc-copy");
    copy_all("/etc", &etc);
    let (uid, gid) = user::ids();
    let restore = |name: &str, said: &str| {
        let to = there.to(name);
        let conf = etc.join("postgresql/17").join(name);
        std::fs::create_dir_all(&conf).unwrap();
        for file in ["pg_hba.conf", "pg_ident.conf"] {
            std::fs::copy(there.etc.join(file), conf.join(file)).unwrap();
        }
        let text = format!("data_directory = '{said}'\nport = 6122\n");
        std::fs::write(conf.join("postgresql.conf"), text).unwrap();
        let script = format!(
            "mount --bind {} /etc && exec setpriv --reuid={uid} --regid={gid} --clear-groups \"$@\"",
            etc.display()
        );
        let restore = pitr().words("restore --repository");
        let restore = restore.arg(there.site.repository()).arg("--to").arg(&to);
        let restore = restore.privileged();
        restore
            .under(["unshare", "-m", "sh", "-c", &script, "sh"])
            .succeed()
    };
    let to = there.to("year").display().to_string();
    let run = restore("year", &to).expect_stdout("port 6122");
    let line = next_line(&run);
    assert!(
        line.contains("config_file=/etc/postgresql/17/year/postgresql.conf"),
        "{line}"
    );
    assert!(
        line.contains("hba_file=/etc/postgresql/17/year/pg_hba.conf"),
        "{line}"
    );
    // The file of another directory that happens to have this name is not this one's.
    restore("other", "/srv/elsewhere/other").expect_stdout("in place of CONFIG_DIR");
}

#[test]
fn what_a_restore_brings_along_is_looked_at_through_includes_and_what_it_prints_can_be_run() {
    let (site, server) = Site::with_cluster(16);
    let pgdata = server.pgdata().to_owned();
    let write = |name: &str, text: &str| {
        std::fs::write(pgdata.join(name), text).unwrap();
        user::own(&pgdata.join(name));
    };
    std::fs::create_dir(pgdata.join("conf.d")).unwrap();
    user::own(&pgdata.join("conf.d"));
    // Not loaded by the server: its backup has them.
    write("conf.d/b.conf", "session_preload_libraries = 'b'\n");
    write(
        "conf.d/a.conf",
        "ssl_passphrase_command = 'a'\ninclude 'deeper/c.conf'\n",
    );
    write("conf.d/off.disabled", "archive_library = 'never'\n");
    std::fs::create_dir(pgdata.join("conf.d/deeper")).unwrap();
    user::own(&pgdata.join("conf.d/deeper"));
    write(
        "conf.d/deeper/c.conf",
        "archive_cleanup_command = 'c'\nsynchronous_standby_names = 'nobody'\n",
    );
    let main = std::fs::read_to_string(pgdata.join("postgresql.conf")).unwrap();
    write(
        "postgresql.conf",
        &format!(
            "{main}\ninclude_dir 'conf.d'\ninclude_if_exists = 'none.conf'\ninclude '/nonexistent/x.conf'\n\
             include = 'gone.conf'\n"
        ),
    );
    site.pitr().arg("backup").succeed();
    server.sql("create table t ()");
    server.archive_now();
    let to = site.sandbox().dir("copies").join("data");
    let url = format!("file://{}", site.repository().display());
    let run = pitr()
        .restore_to(&to)
        .args(["--repository", &url])
        .succeed();
    let block = |title: &str| -> Vec<String> {
        let lines = run.stdout.lines().skip_while(|l| !l.starts_with(title));
        let below = lines.skip(1).take_while(|l| l.starts_with("  "));
        below.map(|l| l.trim().to_owned()).collect()
    };
    let code = block("The configuration runs code");
    let (archive, included) = code.split_first().expect(&run.stdout);
    assert!(archive.starts_with("postgresql.conf: archive_command = '"));
    assert_eq!(
        included,
        [
            "conf.d/a.conf: ssl_passphrase_command = 'a'",
            "conf.d/deeper/c.conf: archive_cleanup_command = 'c'",
            "conf.d/b.conf: session_preload_libraries = 'b'",
        ]
    );
    assert_eq!(
        block("It includes what was not looked at"),
        ["postgresql.conf: include = '/nonexistent/x.conf'"]
    );
    assert_eq!(
        block("It includes what was not restored"),
        ["postgresql.conf: include = 'gone.conf'"]
    );
    assert!(run.stdout.contains("synchronous_standby_names = 'nobody'"));
    assert!(next_line(&run).contains("synchronous_standby_names="));

    // As many settings as it says, and all of them shown.
    let auto = std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
    let written = auto.lines().filter(|l| l.contains(" = '")).count();
    let said = format!("  {written} settings in postgresql.auto.conf, those of the plan\n");
    assert!(run.stdout.contains(&said), "{said}\n{run}");
    let planned = run
        .stdout
        .lines()
        .filter(|l| l.starts_with("setting "))
        .count();
    assert_eq!(planned, written, "{run}");

    // The line that adopts it works where nothing is configured.
    let adopt = run
        .stdout
        .lines()
        .find_map(|l| l.split_once(": pitr adopt"));
    let (_, words) = adopt.unwrap_or_else(|| panic!("{run}"));
    let words: Vec<&str> = words.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "--repository",
            &url,
            "--cluster",
            "main",
            "--pgdata",
            to.to_str().unwrap()
        ]
    );
    pitr().arg("adopt").args(words).succeed();
    assert!(!to.join("pg_wal/pitr.guard").exists());
}

#[test]
fn c2_a_host_that_configures_repositories_alone_restores_and_its_copy_starts() {
    let (site, cluster) = Site::with_cluster(majors()[0]);
    cluster.sql("create table t as select g as a from generate_series(1, 100) g");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("insert into t select g from generate_series(101, 150) g");
    cluster.archive_now();
    let major = cluster.major();
    drop(cluster);
    let text = format!(
        "[repositories.x]\nurl = \"file://{}\"\n",
        site.repository().display()
    );
    let config = site.sandbox().file("bare.toml", text);
    let to = site.sandbox().dir("copies").join("data");
    let bare = || pitr().arg("--config").arg(&config);
    bare().words("info --cluster main").succeed();
    bare().restore_to(&to).succeed();
    let copy = Cluster::open(major, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from t"), "150");
    // A name that the repository does not know is still an error, and says which one it knows.
    let run = bare().words("info --cluster mian").run();
    assert_ne!(run.code(), 0, "{run}");
    assert!(run.stderr.contains("main"), "{run}");
}

#[test]
fn c2_variables_alone_restore_from_a_bucket_with_a_passphrase() {
    const PHRASE: &str = "correct horse battery staple";
    let server = S3Server::start();
    let builder = Cluster::builder(majors()[0]).segment_size_mb(1);
    let mut cluster = builder.without_fsync().create();
    let sandbox = Sandbox::new("bare");
    let keys = sandbox.join("keys");
    let keygen = pitr().words("repo keygen --recipient ops --passphrase safe");
    let keygen = keygen.env("PITR_PASSPHRASE", PHRASE).arg("--dir");
    keygen.arg(&keys).succeed();
    let config = sandbox.file(
        "pitr.toml",
        format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n[repositories.store]\nurl = \"s3://{BUCKET}/bare\"\n\
             endpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n\
             [repositories.store.encryption]\nkey_set = \"{}\"\n",
            cluster.pgdata().display(),
            cluster.conninfo("postgres"),
            server.endpoint(),
            server.credentials(&sandbox, KEY).display(),
            keys.join("writer.key").display()
        ),
    );
    let configured = |program: Program| program.arg("--config").arg(&config);
    configured(pitr()).words("init --quiet").succeed();
    let command = configured(pitr_archive()).arg("%p").shell();
    cluster.append_config("archive_mode", "on");
    cluster.append_config("archive_command", &command);
    cluster.start();
    cluster.sql("create table t as select g as a from generate_series(1, 100) g");
    configured(pitr()).words("backup --quiet").succeed();
    cluster.sql("insert into t select g from generate_series(101, 150) g");
    cluster.archive_now();
    let major = cluster.major();
    drop(cluster);
    std::fs::remove_file(&config).unwrap();
    let to = sandbox.dir("copies").join("data");
    let bare = |program: Program| {
        program
            .env("PITR_REPOSITORIES_FAR_URL", format!("s3://{BUCKET}/bare"))
            .env("PITR_REPOSITORIES_FAR_ENDPOINT", server.endpoint())
            .env("PITR_REPOSITORIES_FAR_REGION", "us-east-1")
            .env("PITR_REPOSITORIES_FAR_PATH_STYLE", "true")
            .env("PITR_REPOSITORIES_FAR_ENCRYPTION_PASSPHRASE", PHRASE)
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
    };
    bare(pitr()).arg("info").succeed();
    bare(pitr()).restore_to(&to).succeed();
    let copy = Cluster::open(major, &to).create();
    let line = format!(
        "{} -D {} -o '-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=' -l {} start",
        copy.bin("pg_ctl").unwrap().display(),
        to.display(),
        copy.port(),
        sandbox.join("log").display()
    );
    // In the same shell: the server hands its environment to restore_command.
    let _started = Started::in_environment(&line, &copy, bare);
    let client = Client::connect(&copy.conninfo_tcp("postgres")).unwrap();
    wait_until("recovery has ended", || {
        one(&client, "select pg_is_in_recovery()") == "f"
    });
    assert_eq!(one(&client, "select count(*) from t"), "150");
}

/// As README says it, on a server like Debian's: no checksums, and the configuration is not in the data directory.
#[test]
fn c6_pg_rewind_brings_an_old_primary_back_with_wal_of_the_archive() {
    let mut there = Elsewhere::of(Cluster::builder(17).checksums(false));
    let command = format!(
        "{} --config {}",
        path_of("pitr-restore").display(),
        there.site.config().display()
    );
    std::fs::write(
        there.etc.join("conf.d/rewind.conf"),
        format!("wal_log_hints = on\nrestore_command = '{command} %f %p'\n"),
    )
    .unwrap();
    there.server.restart();
    there
        .server
        .sql("create table t as select g as a from generate_series(1, 100) g");
    there.site.pitr().words("backup --quiet").succeed();
    let to = there.to("standby");
    let conninfo = there.server.conninfo("postgres");
    let standby = there
        .site
        .pitr()
        .args(["standby", "--primary-conninfo", &conninfo, "--to"]);
    standby.arg(&to).succeed();
    for (name, text) in [
        ("postgresql.conf", "wal_log_hints = on\n"),
        (
            "pg_hba.conf",
            "local all all trust\nlocal replication all trust\n",
        ),
        ("pg_ident.conf", ""),
    ] {
        std::fs::write(to.join(name), text).unwrap();
        user::own(&to.join(name));
    }
    let new = Cluster::open(17, &to).without_fsync().start();
    new.wait_log("started streaming WAL from primary");
    new.promote();
    new.wait_promoted();
    new.sql("insert into t select g from generate_series(101, 150) g");
    // The old primary goes on, and its WAL from before the fork is in the archive alone. Only now may the server remove WAL so soon: a
    // backup compares its last segment with the server's own.
    there.server.sql("alter system set min_wal_size = '2MB'");
    there.server.sql("alter system set max_wal_size = '2MB'");
    there.server.sql("select pg_reload_conf()");
    let fork = there.server.switch_wal();
    there
        .server
        .sql("insert into t select g from generate_series(1001, 1007) g");
    for _ in 0..8 {
        there.server.archive_now();
        there.server.sql("checkpoint");
    }
    let kept = there.server.pgdata().join("pg_wal").join(&fork);
    assert!(
        !kept.exists(),
        "{} is to come from the archive",
        kept.display()
    );
    there.server.stop(Stop::Fast);
    let rewind = there.server.tool("pg_rewind");
    let rewind = rewind
        .arg("--restore-target-wal")
        .arg(format!(
            "--config-file={}",
            there.etc.join("postgresql.conf").display()
        ))
        .arg(format!(
            "--target-pgdata={}",
            there.server.pgdata().display()
        ))
        .arg(format!("--source-server={}", new.conninfo("postgres")));
    let run = rewind.succeed();
    assert!(run.stderr.contains("Done!"), "{run}");
    let auto = there.server.pgdata().join("postgresql.auto.conf");
    let mut text = std::fs::read_to_string(&auto).unwrap();
    text.push_str(&format!(
        "primary_conninfo = '{}'\n",
        new.conninfo("postgres")
    ));
    std::fs::write(&auto, text).unwrap();
    there.server.touch("standby.signal");
    there.server.start();
    there.server.wait_replayed(&new.insert_lsn());
    assert_eq!(
        there.server.value("select count(*) from t where a <= 150"),
        "150"
    );
    assert_eq!(
        there.server.value("select count(*) from t where a > 150"),
        "0"
    );
}

#[test]
fn a_copy_of_a_cluster_with_subscriptions_is_said_to_take_their_changes() {
    let (site, cluster) = Site::with_cluster(17);
    let copies = site.sandbox().dir("copies");
    for has_any in [false, true] {
        if has_any {
            cluster.sql(
                "create subscription s connection 'dbname=none' publication p with (connect = false)",
            );
        }
        site.pitr().words("backup --quiet").succeed();
        let to = copies.join(has_any.to_string());
        let run = site.pitr().restore_to(to).succeed();
        let said = run.stdout.contains("seems to have subscriptions");
        assert_eq!(said, has_any, "{run}");
        if has_any {
            // pg_ctl takes it beside an -o that the line has.
            run.expect_stdout("-o \"-c max_logical_replication_workers=0\"");
        }
    }
}
