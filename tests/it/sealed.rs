//! Encrypted repositories through the real programs: hosts that only write, hosts that read, and a janitor without keys.

use std::path::{Path, PathBuf};

use crate::common::reception::{archived, lsn};
use crate::common::{
    Cluster, Program, Run, Sandbox, Still, Stop, append, copy_tree, expire_at_once, keep_one,
    list_of, paths_below, pitr, pitr_archive, pitr_restore, user, wait_until,
};

/// The warning if nothing proves what the repository holds.
const UNPROVEN: &str = "it is not checked who made what is in it";

/// A sealed repository, and a configuration for each kind of host.
pub struct Sealed {
    pub repository: PathBuf,
    pub keys: PathBuf,
    pub sandbox: Sandbox,
}

impl Sealed {
    pub fn new(cluster: &Cluster) -> Sealed {
        let sandbox = Sandbox::new("sealed");
        let repository = sandbox.join("repo");
        Sealed::at(cluster, repository, sandbox)
    }

    /// With a cluster that its writer archives, and that runs.
    pub fn archived(major: u32) -> (Sealed, Cluster) {
        let mut cluster = Cluster::small(major).create();
        let sealed = Sealed::new(&cluster);
        let archive = pitr_archive()
            .arg("--config")
            .arg(sealed.config("writer"))
            .arg("%p");
        cluster.append_config("archive_mode", "on");
        cluster.append_config("archive_command", &archive.shell());
        cluster.start();
        (sealed, cluster)
    }

    /// With the repository somewhere else than all the rest.
    pub fn at(cluster: &Cluster, repository: PathBuf, sandbox: Sandbox) -> Sealed {
        let keys = sandbox.join("keys");
        keygen(&keys, &["ops", "escrow"]).succeed();
        let sealed = Sealed {
            repository,
            keys,
            sandbox,
        };
        for (host, encryption) in [
            ("writer", format!("key_set = \"{}\"", sealed.key("writer"))),
            ("reader", format!("key_file = \"{}\"", sealed.key("ops"))),
        ] {
            sealed.configure(cluster, host, &encryption);
        }
        sealed.configure(cluster, "janitor", "");
        sealed.on("writer").words("init --quiet").succeed();
        sealed
    }

    pub fn key(&self, name: &str) -> String {
        self.keys.join(format!("{name}.key")).display().to_string()
    }

    pub fn config(&self, host: &str) -> PathBuf {
        self.sandbox.join(format!("{host}.toml"))
    }

    /// Writes the configuration of a host with these keys.
    pub fn configure(&self, cluster: &Cluster, host: &str, encryption: &str) {
        let mut text = format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n[repositories.local]\nurl = \"file://{}\"\n",
            cluster.pgdata().display(),
            cluster.conninfo("postgres"),
            self.repository.display(),
        );
        if !encryption.is_empty() {
            text.push_str(&format!("[repositories.local.encryption]\n{encryption}\n"));
        }
        self.sandbox.file(format!("{host}.toml"), text);
    }

    pub fn on(&self, host: &str) -> Program {
        pitr().arg("--config").arg(self.config(host))
    }

    /// The only object below a folder of the cluster.
    pub fn folder(&self, below: &str) -> PathBuf {
        let clusters = self.repository.join("clusters/main");
        let mut found = std::fs::read_dir(clusters).unwrap();
        found.next().unwrap().unwrap().path().join(below)
    }

    pub fn object(&self, segment: &str) -> PathBuf {
        self.folder(&format!(
            "wal/{}/{}/{segment}",
            &segment[..8],
            &segment[8..16]
        ))
    }

    pub fn push(&self, still: &Still, host: &str, n: usize) -> Program {
        pitr_archive()
            .arg("--config")
            .arg(self.config(host))
            .arg(format!("pg_wal/{}", still.segments[n]))
            .dir(still.cluster.pgdata())
    }

    pub fn fetch(&self, still: &Still, host: &str, n: usize) -> Program {
        pitr_restore()
            .arg("--config")
            .arg(self.config(host))
            .args([still.segments[n].as_str(), "pg_wal/RECOVERYXLOG"])
            .dir(still.cluster.pgdata())
    }
}

pub fn keygen(directory: &Path, recipients: &[&str]) -> Program {
    let mut keygen = pitr().words("repo keygen --dir").arg(directory);
    for name in recipients {
        keygen = keygen.args(["--recipient", name]);
    }
    keygen
}

pub fn refused(run: &Run, status: i32, part: &str) {
    assert_eq!(run.code(), status, "{run}");
    assert!(run.stderr.contains(part), "{run}");
}

/// A listing leaves out names that no key has, so an empty one is no proof of an empty place.
#[test]
fn an_encrypted_repository_is_not_made_among_files_of_another_kind() {
    let cluster = Cluster::builder(17).without_fsync().create();
    let sealed = Sealed::new(&cluster);
    let photos = sealed.sandbox.dir("photos");
    std::fs::create_dir(photos.join("My photos")).unwrap();
    std::fs::write(photos.join("a b.zip"), "x").unwrap();
    let text = std::fs::read_to_string(sealed.config("writer")).unwrap();
    let (there, here) = (sealed.repository.display(), photos.display());
    let text = text.replace(&there.to_string(), &here.to_string());
    sealed.sandbox.file("photos.toml", text);
    let init = sealed.on("photos").words("init --quiet").run();
    refused(&init, 8, "not empty");
}

/// Whether the kernel would write or hand over a core dump of the process: proc(5), "dumpable". Directories tell nothing.
fn is_dumpable(pid: u32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let stat = std::fs::metadata(format!("/proc/{pid}/stat")).unwrap();
    assert!([0, user::ids().0].contains(&stat.uid()));
    stat.uid() != 0
}

/// Checks that content that only the database holds stands nowhere in the repository.
pub fn check_nothing_is_plain(sealed: &Sealed, secret: &str) {
    let mut sealed_objects = 0;
    for path in paths_below(&sealed.repository) {
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
        assert!(!found, "{}", path.display());
        let text = path.display().to_string();
        let is_plain =
            text.ends_with(".json") || text.contains("/repo/keys/") || text.contains("/events/");
        assert_eq!(bytes.starts_with(b"PITRSEA1"), !is_plain, "{text}");
        sealed_objects += u32::from(!is_plain);
    }
    assert!(sealed_objects > 0);
}

/// Another program, written by the page of the format alone, opens what the vectors hold.
#[test]
fn the_vectors_open_without_any_code_of_pitr() {
    let decode = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/sealed/decode.py");
    let run = std::process::Command::new("/usr/bin/python3")
        .args(["-B", decode])
        .output()
        .expect("python3 starts");
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{stderr}");
    assert_eq!(run.stdout, b"the vectors open\n");
}

#[test]
fn a_host_that_only_writes_archives_and_a_reader_gets_it_back() {
    let still = Still::new(17, 1, 3);
    let sealed = Sealed::new(&still.cluster);
    sealed.push(&still, "writer", 0).succeed();
    // The same again: compared by the keyed hash, for this host cannot open it.
    sealed.push(&still, "writer", 0).succeed();
    sealed.push(&still, "reader", 1).succeed();
    sealed.push(&still, "writer", 1).succeed();
    sealed.push(&still, "writer", 2).succeed();
    check_nothing_is_plain(&sealed, "c4ca4238a0b923820dcc509a6f75849b");
    sealed.fetch(&still, "reader", 0).succeed();
    let fetched = still.wal("RECOVERYXLOG");
    assert_eq!(
        std::fs::read(&fetched).unwrap(),
        std::fs::read(still.wal(&still.segments[0])).unwrap()
    );
    std::fs::remove_file(&fetched).unwrap();
    refused(&sealed.fetch(&still, "writer", 0).run(), 204, "R204");
    refused(&sealed.fetch(&still, "janitor", 0).run(), 204, "R204");
    refused(&sealed.push(&still, "janitor", 0).run(), 37, "A137");
    assert!(!fetched.exists());
    // Other content under a name that is taken is kept aside, sealed as well.
    let path = still.wal(&still.segments[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    refused(&sealed.push(&still, "writer", 0).run(), 20, "A120");
    assert_eq!(paths_below(&sealed.folder("conflicts")).len(), 1);
    check_nothing_is_plain(&sealed, "c4ca4238a0b923820dcc509a6f75849b");
    sealed.on("reader").words("wal conflicts").succeed();
}

/// A host that cannot read compares the whole last segment: of what is stored it knows the keyed hash alone.
#[test]
fn l03_a_host_that_only_writes_completes_no_backup_with_a_clones_wal() {
    let mut cluster = Cluster::small(17).create();
    let sealed = Sealed::new(&cluster);
    let config = sealed.config("writer");
    let archive = pitr_archive().arg("--config").arg(config).arg("%p");
    cluster.append_config("archive_mode", "on");
    cluster.append_config("archive_command", &archive.shell());
    cluster.start();
    cluster.sql("create table t as select g as a from generate_series(1, 1000) g");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    let copy = sealed.sandbox.join("clone");
    copy_tree(cluster.pgdata(), &copy);
    user::own_all(&copy);
    let clone = Cluster::open(17, &copy).without_fsync().start();
    for _ in 0..4 {
        clone.sql("update t set a = a + 1");
        clone.archive_now();
    }
    cluster.start();
    cluster.sql("update t set a = a - 1");
    let backup = ["backup", "--json", "--wal-wait", "5h"];
    let run = sealed.on("writer").args(backup).exits(1);
    assert_eq!(run.json()["code"], "conflict", "{run}");
    assert!(run.stdout.contains("another server"), "{run}");
}

#[test]
fn a_plain_repository_beside_a_sealed_one_has_backups_of_its_own() {
    let mut cluster = Cluster::small(17).create();
    let sealed = Sealed::new(&cluster);
    let plain = sealed.sandbox.join("plain");
    let section = format!(
        "[repositories.plain]\nurl = \"file://{}\"\n",
        plain.display()
    );
    append(sealed.config("writer"), &section);
    let writer = |args: &[&str]| sealed.on("writer").args(args.iter().copied()).run();
    writer(&["init", "--quiet"]).success();
    let archive = pitr_archive().arg("--config").arg(sealed.config("writer"));
    cluster.append_config("archive_mode", "on");
    cluster.append_config("archive_command", &archive.arg("%p").shell());
    cluster.start();
    for name in ["local", "plain"] {
        writer(&["backup", "--repository", name]).success();
    }
    let doctor = writer(&["doctor", "--json"]).json();
    for name in ["local", "plain"] {
        let name = format!("{name} against the others");
        let findings = doctor["findings"].as_array().unwrap();
        let finding = findings.iter().find(|f| f["name"] == name.as_str());
        assert_eq!(finding.unwrap()["value"], "up to date", "{doctor}");
    }
    refused(&writer(&["repo", "sync"]), 8, "Take a backup into each");
    // The host verifies what it can read; it names the rest, which others verify.
    let run = writer(&["verify"])
        .success()
        .expect_stdout("in repository plain: ")
        .expect_stdout("repository local: not read, because this host only writes into it");
    assert_eq!(run.stderr, "");
    let quiet = writer(&["verify", "--quiet"]).success();
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    let told = writer(&["verify", "--json"]).success().json();
    assert_eq!(told["only_written"], serde_json::json!(["local"]), "{told}");
    refused(&writer(&["verify", "--repository", "local"]), 1, "no key");
    let backups = writer(&["info", "--repository", "plain", "--json"]).json();
    let of_plain = backups["clusters"][0]["backups"][0]["id"].as_str().unwrap();
    writer(&["verify", "--backup", of_plain]).success();
    writer(&["verify", "--backup", "20200101T000000Z-000000-full"]).expect_code(2);
    // Repositories with other keys are no failure while others have the same.
    let third = section
        .replace("plain]", "third]")
        .replace("/plain\"", "/third\"");
    append(sealed.config("writer"), &third);
    writer(&["init", "--quiet"]).success();
    let run = writer(&["repo", "sync", "--to", "third"]).success();
    assert!(run.stdout.contains("third from plain"), "{run}");
    run.expect_stderr("nothing goes from \"local\" to \"third\": their keys differ");
}

/// A plain repository, then the sealed one, on a host that only writes into that.
fn plain_first(sealed: &Sealed) -> PathBuf {
    let config = std::fs::read_to_string(sealed.config("writer")).unwrap();
    let plain = sealed.sandbox.join("plain").display().to_string();
    let alone = config.split("[repositories.").next().unwrap();
    let section = format!("[repositories.plain]\nurl = \"file://{plain}\"\n");
    sealed
        .sandbox
        .file("plain.toml", format!("{alone}{section}"));
    let both = config.replace(
        "[repositories.local]",
        &format!("{section}[repositories.local]"),
    );
    sealed.sandbox.file("both.toml", both)
}

#[test]
fn wal_that_a_host_cannot_read_is_compared_with_plain_wal_all_the_same() {
    let mut cluster = Cluster::small(17).create();
    let sealed = Sealed::new(&cluster);
    let both = plain_first(&sealed);
    let on = |config: &Path| pitr().arg("--config").arg(config);
    on(&both).words("init --quiet").succeed();
    let archive = |host: &str| {
        let archive = pitr_archive().arg("--config").arg(sealed.config(host));
        archive.arg("%p").shell()
    };
    cluster.append_config("archive_mode", "on");
    cluster.append_config("archive_command", &archive("both"));
    cluster.start();
    cluster.sql("create table t as select g as a from generate_series(1, 1000) g");
    on(&both).words("backup --quiet").succeed();
    cluster.archive_now();
    let plan = || on(&both).words("plan --json").succeed();
    // Both have the same, and recovery may ask both.
    let run = plan();
    assert_eq!(run.json()["warnings"], serde_json::json!([]), "{run}");
    let asks = |run: &Run| run.json()["recovery_settings"]["restore_command"].to_string();
    assert!(!asks(&run).contains("--repository"), "{run}");

    // A clone goes on in the sealed one, and the server in the plain one.
    cluster.stop(Stop::Fast);
    let copy = sealed.sandbox.join("clone");
    copy_tree(cluster.pgdata(), &copy);
    user::own_all(&copy);
    let mut clone = Cluster::open(17, &copy).without_fsync().create();
    for (server, host, sql) in [
        (&mut clone, "writer", "update t set a = a + 1"),
        (&mut cluster, "plain", "update t set a = a - 1"),
    ] {
        server.append_config("archive_command", &archive(host));
        server.start();
        server.sql(sql);
        server.archive_now();
        server.stop(Stop::Immediate);
    }
    let run = plan();
    let warnings = run.json()["warnings"].to_string();
    assert!(warnings.contains("has the WAL of another server"), "{run}");
    assert!(asks(&run).contains("--repository"), "{run}");
    // Without any key nothing can be compared: that tells of no other server.
    let config = std::fs::read_to_string(&both).unwrap();
    let keys = config.find("[repositories.local.encryption]").unwrap();
    std::fs::write(&both, &config[..keys]).unwrap();
    let run = plan();
    assert_eq!(run.json()["warnings"], serde_json::json!([]), "{run}");
}

#[test]
fn a_whole_cycle_in_a_sealed_repository() {
    let (sealed, cluster) = Sealed::archived(17);
    let client = cluster.client();
    client.sql("create table ledger as select g as id, 'confidential note ' || g as note from generate_series(1, 20000) g");
    let backup = || {
        let run = sealed.on("writer").words("backup --json").run();
        run.success().id()
    };
    let first = backup();
    client.sql(
        "insert into ledger select g, 'confidential too' from generate_series(20001, 30000) g",
    );
    client.sql("select pg_create_restore_point('before')");
    client.sql("delete from ledger");
    cluster.archive_now();
    check_nothing_is_plain(&sealed, "confidential");
    sealed.on("reader").words("verify --quiet").succeed();
    copied_without_a_key(&sealed, &cluster);
    let target = ["--target-name", "before"];
    let to = sealed.sandbox.join("copy");
    let restore = |host: &str| {
        let run = sealed.on(host).words("restore --quiet --to");
        run.arg(&to).args(target).run()
    };
    refused(&restore("writer"), 1, "no key to read it with");
    // A host that only writes gets the message that nothing is wrong there, and who can read; one without keys what to
    // configure.
    let writes = [
        "key_set reads nothing",
        "a host that has a reader's key",
        "pitr doctor",
    ];
    let keyless = ["Configure the repository's encryption on this host"];
    for (host, helps) in [("writer", writes.as_slice()), ("janitor", &keyless)] {
        for verb in ["info", "plan"] {
            let run = sealed.on(host).arg(verb).exits(1);
            let run = run.expect_stderr("no key to read it with");
            helps
                .iter()
                .for_each(|part| assert!(run.stderr.contains(part), "{run}"));
        }
    }
    assert!(!to.join("PG_VERSION").exists());
    restore("reader").success();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from ledger"), "30000");
    drop(copy);
    expired_without_a_key(&sealed, &first, &backup);
}

/// A host that only writes receives WAL as it is written; pieces of segments are sealed as everything is, and a reader gets them back.
#[test]
fn a_host_that_only_writes_receives() {
    let cluster = Cluster::small(17).start();
    let sealed = Sealed::new(&cluster);
    let journal = sealed.sandbox.join("journal");
    let receive = format!(
        "[clusters.main.receive]\njournal = \"{}\"\n",
        journal.display()
    );
    append(sealed.config("writer"), &receive);
    let mut running = sealed.on("writer").words("receive --create-slot").spawn();
    let client = cluster.client();
    running.until("the receiver streams", || {
        let sql = "select count(*) from pg_stat_replication where state = 'streaming' and application_name = 'pitr'";
        client.value(sql) == "1"
    });
    // Keys would be in it. A program that is given none, of the same user, can be dumped.
    assert!(!is_dumpable(running.pid()));
    let mut other = user::command("sleep").arg("600").spawn().unwrap();
    // The kernel sets it a moment after its program has begun.
    wait_until("it can be dumped", || is_dumpable(other.id()));
    other.kill().unwrap();
    other.wait().unwrap();
    client.sql("create table ledger as select 'confidential note' from generate_series(1, 20000)");
    client.sql("select pg_switch_wal()");
    client.sql("insert into ledger select 'confidential too' from generate_series(1, 100)");
    let end = lsn(&client.value("select pg_current_wal_flush_lsn()"));
    running.until("the repository holds everything", || {
        archived(&journal).is_some_and(|at| at >= end)
    });
    running.ended_by(rustix::process::Signal::TERM).success();
    check_nothing_is_plain(&sealed, "confidential");
    let is_piece = |p: &PathBuf| p.display().to_string().contains("/open/");
    assert!(paths_below(&sealed.repository).iter().any(is_piece));
    sealed.on("reader").words("verify --quiet").succeed();
    sealed.on("reader").words("wal list").succeed();
}

/// Configures hosts for a second repository of the key set, and creates it; returns where it is.
pub fn with_second(sealed: &Sealed, cluster: &Cluster) -> PathBuf {
    let second = sealed.sandbox.join("second");
    for (host, encryption) in [
        ("writer", format!("key_set = \"{}\"", sealed.key("writer"))),
        ("reader", format!("key_file = \"{}\"", sealed.key("escrow"))),
        ("janitor", String::new()),
    ] {
        let name = format!("second-{host}");
        sealed.configure(cluster, &name, &encryption);
        let mut text = format!(
            "[repositories.second]\nurl = \"file://{}\"\n",
            second.display()
        );
        if !encryption.is_empty() {
            text.push_str(&format!("[repositories.second.encryption]\n{encryption}\n"));
        }
        append(sealed.config(&name), &text);
    }
    sealed.on("second-writer").words("init --quiet").succeed();
    second
}

/// An object that was changed since it was sealed is not copied, with keys or without.
#[test]
fn t06_what_is_damaged_of_a_sealed_repository_is_not_copied() {
    let mut cluster = Cluster::small(17).create();
    let sealed = Sealed::new(&cluster);
    let archive = pitr_archive().arg("--config").arg(sealed.config("writer"));
    cluster.append_config("archive_mode", "on");
    cluster.append_config("archive_command", &archive.arg("%p").shell());
    cluster.start();
    sealed.on("writer").words("backup --quiet").succeed();
    cluster.sql("create table t as select g from generate_series(1, 1000) g");
    cluster.archive_now();
    let second = with_second(&sealed, &cluster);
    let objects = paths_below(&sealed.repository);
    let of = |part: &str| {
        let found = objects
            .iter()
            .rfind(|p| p.display().to_string().contains(part));
        found.unwrap().clone()
    };
    let victims = [of("/wal/00000001/00000000/"), of("/packs/")];
    let good = victims.each_ref().map(|path| std::fs::read(path).unwrap());
    for (path, good) in victims.iter().zip(&good) {
        let mut bytes = good.clone();
        bytes[good.len() / 2] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    let sync = [
        "repo", "sync", "--json", "--from", "local", "--to", "second",
    ];
    for host in ["second-janitor", "second-writer", "second-reader"] {
        let run = sealed.on(host).args(sync).exits(10);
        assert_eq!(
            run.json()["transfers"][0]["problem_count"],
            2,
            "{host}: {run}"
        );
        for path in &victims {
            let copy = second.join(path.strip_prefix(&sealed.repository).unwrap());
            assert!(!copy.exists(), "{host}: {}", copy.display());
        }
    }
    for (path, good) in victims.iter().zip(&good) {
        std::fs::write(path, good).unwrap();
    }
    sealed.on("second-writer").args(sync).succeed();
    let verify = ["verify", "--quiet", "--repository", "second"];
    sealed.on("second-reader").args(verify).succeed();
}

/// Another repository of the key set gets byte copies from a host that holds no key, and a reader finds everything in them.
fn copied_without_a_key(sealed: &Sealed, cluster: &Cluster) {
    let second = with_second(sealed, cluster);
    let sync = [
        "repo", "sync", "--quiet", "--from", "local", "--to", "second",
    ];
    let run = sealed.on("second-janitor").args(sync).succeed();
    // One warning for each of the two repositories.
    assert_eq!(run.stderr.matches(UNPROVEN).count(), 2, "{run}");
    let run = sealed.on("second-janitor").words("repo sync --json");
    let warnings = run.succeed().json()["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 2, "{warnings}");
    let run = sealed.on("second-writer").args(sync).succeed();
    assert_eq!(run.stderr, "");
    let verify = ["verify", "--quiet", "--repository", "second"];
    sealed.on("second-reader").args(verify).succeed();
    let packs = |root: &Path| {
        let all = paths_below(root);
        let packs = all
            .into_iter()
            .filter(|p| p.display().to_string().contains("/packs/"));
        packs
            .map(|path| std::fs::read(path).unwrap())
            .collect::<Vec<_>>()
    };
    assert!(!packs(&second).is_empty());
    assert_eq!(packs(&second), packs(&sealed.repository));
    // A host that reads the one and only writes the other finds the same in both.
    let mixed = std::fs::read_to_string(sealed.config("second-reader")).unwrap();
    let (local, _) = mixed
        .split_once("[repositories.second.encryption]")
        .unwrap();
    let only_writes = format!("key_set = \"{}\"\n", sealed.key("writer"));
    let mixed = format!("{local}[repositories.second.encryption]\n{only_writes}");
    sealed.sandbox.file("second-mixed.toml", mixed);
    sealed.on("second-mixed").args(sync).succeed();
    // A recipient that reads the one, and not the other any more, is reported.
    let escrow = second.join("keys/1/escrow");
    let kept = std::fs::read(&escrow).unwrap();
    let is_told = || {
        let run = sealed.on("second-writer").words("doctor --json").run();
        let findings = run.json()["findings"].to_string();
        assert!(findings.contains("escrow, ops"), "{run}");
        findings.contains("escrow, not in second")
    };
    assert!(!is_told());
    std::fs::remove_file(&escrow).unwrap();
    assert!(is_told());
    std::fs::write(&escrow, kept).unwrap();
    user::own(&escrow);
}

/// Two more backups; the janitor, who holds no key, takes away the one in the middle.
fn expired_without_a_key(sealed: &Sealed, first: &str, backup: &dyn Fn() -> String) {
    let (second, third) = (backup(), backup());
    let look = keep_one(&["--dry-run", "--json"]);
    let warnings = |host: &str| {
        let run = sealed.on(host).args(&look).succeed();
        run.json()["clusters"][0]["warnings"].to_string()
    };
    assert!(warnings("janitor").contains(UNPROVEN));
    assert!(!warnings("writer").contains(UNPROVEN));
    let verify = sealed.on("reader").words("verify --quiet");
    verify.succeed();
    let run = sealed.on("janitor").args(expire_at_once()).succeed();
    assert_eq!(run.stderr.matches(UNPROVEN).count(), 1, "{run}");
    let packs = |id: &str| sealed.folder("packs").join(id).exists();
    assert!(!packs(&second), "what is not kept is deleted");
    assert!(!packs(first), "a restore that is complete claims nothing");
    assert!(packs(&third));
    let info = sealed.on("reader").words("info --json").run();
    assert!(list_of(&info.json()["clusters"][0]["backups"]).len() == 1);
    sealed.on("reader").words("verify --quiet").succeed();
}

/// Three segments in a sealed repository.
pub struct Stored {
    pub still: Still,
    pub sealed: Sealed,
}

impl Stored {
    pub fn new() -> Stored {
        let still = Still::new(17, 1, 3);
        let sealed = Sealed::new(&still.cluster);
        for n in 0..3 {
            sealed.push(&still, "writer", n).succeed();
        }
        Stored { still, sealed }
    }

    fn path(&self, n: usize) -> PathBuf {
        self.sealed.object(&self.still.segments[n])
    }

    fn bytes(&self, n: usize) -> Vec<u8> {
        std::fs::read(self.path(n)).unwrap()
    }

    /// A reader refuses these bytes in the place of segment `n`, and says `why`; the right ones are put back.
    fn refuses(&self, n: usize, bytes: &[u8], why: &str) {
        let right = self.bytes(n);
        assert_ne!(right, bytes, "{why}");
        std::fs::write(self.path(n), bytes).unwrap();
        refused(&self.sealed.fetch(&self.still, "reader", n).run(), 201, why);
        let target = self.still.wal("RECOVERYXLOG");
        assert!(!target.exists(), "{why}");
        std::fs::write(self.path(n), right).unwrap();
    }

    /// As [`Stored::refuses`], and a host that only writes does not take them for its own.
    fn both_refuse(&self, n: usize, bytes: &[u8], why: &str) {
        self.refuses(n, bytes, why);
        let right = self.bytes(n);
        std::fs::write(self.path(n), bytes).unwrap();
        let run = self.sealed.push(&self.still, "writer", n).run();
        assert_eq!(run.code(), 35, "{run}");
        std::fs::write(self.path(n), right).unwrap();
    }

    /// As [`Stored::refuses`]; a host that only writes, and offers the same segment again, puts a healed copy beside them, by their foot alone.
    fn refuses_until_offered_again(&self, n: usize, bytes: &[u8], why: &str) {
        self.refuses(n, bytes, why);
        let right = self.bytes(n);
        std::fs::write(self.path(n), bytes).unwrap();
        let run = self.sealed.push(&self.still, "writer", n).run();
        run.success().expect_stderr("it is healed");
        self.sealed.fetch(&self.still, "reader", n).succeed();
        let fetched = std::fs::read(self.still.wal("RECOVERYXLOG")).unwrap();
        let offered = std::fs::read(self.still.wal(&self.still.segments[n])).unwrap();
        assert!(fetched == offered, "{why}");
        std::fs::remove_file(self.still.wal("RECOVERYXLOG")).unwrap();
        let copy = format!("{}.heal-1", self.path(n).display());
        std::fs::remove_file(copy).unwrap();
        std::fs::write(self.path(n), right).unwrap();
    }

    fn verify(&self) -> Program {
        self.sealed.on("reader").words("verify --quiet")
    }
}

pub fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x10;
    bytes
}

#[test]
fn z07_a_plain_object_where_a_sealed_one_is_required_is_refused() {
    let stored = Stored::new();
    let name = &stored.still.segments[1];
    stored.still.push(name).succeed();
    let plain = std::fs::read(stored.still.site.object(name)).unwrap();
    stored.both_refuse(1, &plain, "is not sealed, in a repository where");
    std::fs::write(stored.path(1), plain).unwrap();
    refused(&stored.verify().run(), 4, "");
    // A whole plain repository in the place of the sealed one.
    let marker = stored.sealed.repository.join("pitr.json");
    std::fs::copy(stored.still.site.repository().join("pitr.json"), marker).unwrap();
    let why = "is not encrypted, and encryption is configured";
    refused(
        &stored.sealed.push(&stored.still, "writer", 0).run(),
        37,
        why,
    );
    refused(
        &stored.sealed.fetch(&stored.still, "reader", 0).run(),
        204,
        why,
    );
}

#[test]
fn z08_a_sealed_object_in_the_place_of_another_is_refused() {
    let stored = Stored::new();
    let (older, newer) = (stored.bytes(0), stored.bytes(2));
    stored.both_refuse(1, &older, "it was rolled back: the older object");
    stored.both_refuse(1, &newer, "it was swapped: the object of");
    // With a foot that says what it should: whoever changed it does not hold the MAC key.
    let (from, to) = (&stored.still.segments[0], &stored.still.segments[1]);
    let mut forged = older.clone();
    let at: Vec<usize> = (0..forged.len() - from.len())
        .filter(|at| forged[*at..].starts_with(from.as_bytes()))
        .collect();
    assert!(at.len() >= 2, "the key and the facts");
    for at in at {
        forged[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    let end = forged.len() - 8;
    let foot = u32::from_le_bytes(forged[end - 4..end].try_into().unwrap()) as usize;
    let crc = crc32c::crc32c(&forged[forged.len() - foot..end]);
    forged[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    stored.both_refuse(1, &forged, "it is forged");
    std::fs::write(stored.path(1), older).unwrap();
    refused(&stored.verify().run(), 4, "");
}

#[test]
fn what_was_cut_or_changed_of_a_sealed_object_is_refused() {
    let stored = Stored::new();
    let right = stored.bytes(1);
    stored.both_refuse(
        1,
        &right[..right.len() - 100],
        "was cut: its end is missing",
    );
    let hole = [&right[..2000], &right[3000..]].concat();
    stored.both_refuse(1, &hole, "it was cut or lengthened");
    let longer = [&right[..2000], &right[1000..]].concat();
    stored.both_refuse(1, &longer, "it was cut or lengthened");
    stored.refuses_until_offered_again(1, &flipped(&right, 5000), "chunk 0 was changed");
    stored.refuses_until_offered_again(1, &flipped(&right, 60), "the head of object");
    let in_foot = right.len() - 300;
    stored.both_refuse(1, &flipped(&right, in_foot), "its foot is damaged");
    // One bit of the last byte: nothing says any more that it is a foot.
    let last = right.len() - 1;
    stored.both_refuse(1, &flipped(&right, last), "was cut: its end is missing");
    stored.verify().succeed();
    // An object that the repository keeps for a recipient who does not read here: verify reads it nevertheless.
    let escrow = stored.sealed.repository.join("keys/1/escrow");
    let whole = std::fs::read(&escrow).unwrap();
    let middle = whole.len() / 2;
    std::fs::write(&escrow, flipped(&whole, middle)).unwrap();
    stored.verify().exits(4).expect_stdout("keys/1/escrow");
    stored.sealed.fetch(&stored.still, "reader", 1).succeed();
}

/// The disk of the repository lost its newest writes: the end of one segment, and the next one.
#[test]
fn a16_a_hole_behind_a_segment_that_was_cut_stops_no_archiving() {
    let stored = Stored::new();
    let (still, sealed) = (&stored.still, &stored.sealed);
    let whole = stored.bytes(0);
    let zeros = vec![0_u8; whole.len()];
    std::fs::remove_file(stored.path(1)).unwrap();
    for host in ["writer", "reader"] {
        for left in [&whole[..whole.len() / 2], &whole[..0], &zeros[..]] {
            std::fs::write(stored.path(0), left).unwrap();
            std::fs::remove_file(stored.path(2)).unwrap();
            let run = sealed.push(still, host, 2).succeed();
            run.expect_stderr(&format!("lacks segment \"{}\"", still.segments[1]));
            assert!(stored.path(2).exists());
        }
    }
}

#[test]
fn v55_a_segment_that_was_cut_in_an_encrypted_repository_is_healed_from_pg_wal() {
    let stored = Stored::new();
    let (still, sealed) = (&stored.still, &stored.sealed);
    let whole = stored.bytes(1);
    let copy = format!("{}.heal-1", stored.path(1).display());
    let heals = |program: Program| {
        std::fs::write(stored.path(1), &whole[..whole.len() / 2]).unwrap();
        // Archiving proves nothing by links: PostgreSQL keeps the file.
        sealed.push(still, "writer", 1).exits(35);
        program.succeed();
        assert!(Path::new(&copy).exists());
        sealed.fetch(still, "reader", 1).succeed();
        let fetched = std::fs::read(still.wal("RECOVERYXLOG")).unwrap();
        assert!(fetched == std::fs::read(still.wal(&still.segments[1])).unwrap());
        std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
        std::fs::remove_file(&copy).unwrap();
    };
    heals(sealed.on("reader").words("verify --heal"));
    for host in ["writer", "reader"] {
        let backfill = sealed.on(host).words("wal backfill --from");
        heals(backfill.arg(still.wal("")));
    }
}

#[test]
fn f27_damage_of_a_cut_copy_in_an_encrypted_repository_is_told_and_recorded() {
    let still = Still::new(17, 1, 1);
    let sealed = Sealed::new(&still.cluster);
    let second = with_second(&sealed, &still.cluster);
    let name = &still.segments[0];
    sealed.push(&still, "second-writer", 0).succeed();
    let object = sealed.object(name);
    let whole = std::fs::read(&object).unwrap();
    std::fs::write(&object, &whole[..whole.len() / 2]).unwrap();
    let events = sealed.folder(&format!("events/wal-{name}"));
    let recorded = || -> Vec<String> {
        let names = std::fs::read_dir(&events).into_iter().flatten();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.contains(".tmp.")).collect()
    };
    // A fetch waits for its record no longer than a second.
    wait_until("the damage is recorded", || {
        let run = sealed.fetch(&still, "second-reader", 0).succeed();
        run.expect_stderr("is damaged")
            .expect_stderr("was taken from")
            .expect_stderr(second.to_str().unwrap());
        let fetched = std::fs::read(still.wal("RECOVERYXLOG")).unwrap();
        assert!(fetched == std::fs::read(still.wal(name)).unwrap());
        !recorded().is_empty()
    });
    let events = recorded();
    assert!(events.iter().all(|e| e.contains("-damaged-")), "{events:?}");
}

#[test]
fn keys_that_are_missing_or_wrong_say_so() {
    let stored = Stored::new();
    let (still, sealed) = (&stored.still, &stored.sealed);
    let cluster = &still.cluster;
    let refuses = |encryption: &str, why: &str| {
        sealed.configure(cluster, "other", encryption);
        refused(&sealed.fetch(still, "other", 0).run(), 204, why);
        refused(&sealed.push(still, "other", 0).run(), 37, why);
    };
    refuses("key_file = \"/nonexistent/key\"", "could not read key file");
    let strangers = sealed.sandbox.join("strangers");
    keygen(&strangers, &["ops", "nobody"]).succeed();
    let of = |name: &str| strangers.join(name).display().to_string();
    let file = |name: &str| format!("key_file = \"{}\"", of(name));
    refuses(&file("ops.key"), "is of key set");
    refuses(
        &format!("key_set = \"{}\"", of("writer.key")),
        "is of key set",
    );
    // Made without a key set, it names none.
    let pairs = sealed.sandbox.join("pairs");
    let run = keygen(&pairs, &["ops", "guest"]).arg("--pair-only").run();
    run.success();
    let pair = |name: &str| format!("key_file = \"{}\"", pairs.join(name).display());
    refuses(
        &pair("ops.key"),
        "the key file is not that of recipient \"ops\"",
    );
    refuses(&pair("guest.key"), "has no keys for recipient \"guest\"");
    let passphrase = sealed
        .sandbox
        .file("passphrase", "not a passphrase of it\n");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&passphrase, open).unwrap();
    let by_passphrase = format!("passphrase_file = \"{}\"", passphrase.display());
    refuses(&by_passphrase, "is open to other users: its mode is 0644");
    refuses(
        &format!("key_set = \"{}\"", pairs.join("ops.key").display()),
        "is not a key file",
    );
    // Another pair under the MAC key: what is written to it nobody else could read.
    let half = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap();
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        (text, file["public_half"].as_str().unwrap().to_owned())
    };
    let (text, own) = half(&sealed.key("writer"));
    let (_, other) = half(&of("writer.key"));
    let exchanged = text.replace(&own, &other);
    let exchanged = sealed.sandbox.file("exchanged.key", exchanged);
    let own_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&exchanged, own_only).unwrap();
    let by_exchanged = format!("key_set = \"{}\"", exchanged.display());
    refuses(&by_exchanged, "the keys in it do not belong together");
    // A key that was made for a recipient never overwrites another.
    refused(&keygen(&pairs, &["ops"]).run(), 8, "is there already");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(of("writer.key")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn access_is_given_and_withdrawn_without_touching_data() {
    const PASSPHRASE: &str = "correct horse battery staple";
    let stored = Stored::new();
    let (still, sealed) = (&stored.still, &stored.sealed);
    let data = || {
        let wal = paths_below(&sealed.folder("wal"));
        let read = wal
            .into_iter()
            .map(|path| (std::fs::read(&path).unwrap(), path));
        read.collect::<Vec<_>>()
    };
    let before = data();
    let rewrap = |args: &[&str]| sealed.on("reader").words("repo rewrap").args(args);
    let run = rewrap(&["--add-passphrase", "safe"]);
    refused(&run.run(), 2, "no passphrase is given");
    // The second has as many bytes as there must be characters.
    for short in ["too short", "äöüßäöü"] {
        let run = rewrap(&["--add-passphrase", "safe"]).env("PITR_PASSPHRASE", short);
        refused(&run.run(), 8, "fewer than 14 characters");
    }
    let run = rewrap(&["--add-passphrase", "safe"]).env("PITR_PASSPHRASE", PASSPHRASE);
    run.succeed().expect_stdout("escrow, ops, safe");
    sealed.configure(&still.cluster, "bare", "");
    let by_passphrase = |text: &str| {
        let variable = "PITR_REPOSITORIES_LOCAL_ENCRYPTION_PASSPHRASE";
        sealed.fetch(still, "bare", 0).env(variable, text)
    };
    by_passphrase(PASSPHRASE).succeed();
    std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
    let run = by_passphrase("incorrect horse battery").run();
    refused(&run, 204, "the passphrase is not that of any recipient");
    // One damaged recipient, listed before it, does not lock the others out.
    let escrow = sealed.repository.join("keys/1/escrow");
    let right = std::fs::read(&escrow).unwrap();
    std::fs::write(&escrow, flipped(&right, right.len() / 2)).unwrap();
    by_passphrase(PASSPHRASE).succeed();
    std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
    let run = by_passphrase("incorrect horse battery").run();
    refused(&run, 201, "keys/1/escrow");
    std::fs::write(&escrow, right).unwrap();
    // Only one of those who would stay is proven.
    refused(
        &rewrap(&["--withdraw", "escrow"]).run(),
        8,
        "must be proven",
    );
    let pairs = sealed.sandbox.join("pairs");
    keygen(&pairs, &["guest"]).arg("--pair-only").succeed();
    let public = pairs.join("guest.pub").display().to_string();
    let proof = pairs.join("guest.key").display().to_string();
    let change = ["--add", &public, "--withdraw", "escrow", "--proof", &proof];
    rewrap(&change).succeed().expect_stdout("guest, ops, safe");
    sealed.configure(
        &still.cluster,
        "escrow",
        &format!("key_file = \"{}\"", sealed.key("escrow")),
    );
    let run = sealed.fetch(still, "escrow", 0).run();
    refused(&run, 204, "has no keys for recipient \"escrow\"");
    sealed.configure(&still.cluster, "guest", &format!("key_file = \"{proof}\""));
    sealed.fetch(still, "guest", 0).succeed();
    assert_eq!(data(), before);
    let doctor = |host: &str| {
        let run = sealed.on(host).words("doctor --json").run();
        let findings = run.json()["findings"].as_array().unwrap().clone();
        let found = findings.iter().find(|f| f["name"] == "recipients").unwrap();
        (
            found["level"].as_str().unwrap().to_owned(),
            found["value"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(doctor("writer"), ("ok".into(), "guest, ops, safe".into()));
    let keys = sealed.repository.join("keys/1");
    for name in ["guest", "safe"] {
        std::fs::remove_file(keys.join(name)).unwrap();
    }
    assert_eq!(doctor("writer"), ("fail".into(), "ops".into()));
}
