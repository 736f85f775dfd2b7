//! Secrets stand in no argument list, message, log, panic, object, cache or file that pitr writes: they are planted everywhere, and
//! looked for in all that whole cycles, and failures of every kind, leave behind.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::common::s3::{BUCKET, Fault, KEY, S3Server};
use crate::common::{
    Cluster, Program, Run, Sandbox, paths_below, pitr, pitr_archive, pitr_restore, user,
};
use crate::recipients::with_descriptor;
use crate::require_strace;
use crate::ship::send;

/// Everything that must stand nowhere.
const PLANTED: &[&str] = &[
    "planted-in-file-1f0c",
    "planted-in-environment-77aa",
    "planted-in-profile-9d2e",
    "planted-session-token-5b61",
    "planted-in-conninfo-c3d4",
    "planted-in-passfile-e8f0",
    "planted-passphrase-40c7",
    "planted-wrong-passphrase-a19b",
    "planted-passphrase-in-file-3d7b",
];

/// The number of them that stand in files; the others are given by the environment.
const IN_FILES: usize = 5;

const HBA: &str = "local all postgres trust\nlocal replication postgres trust\n\
    host all one,two 127.0.0.1/32 scram-sha-256\nhost replication one,two 127.0.0.1/32 scram-sha-256\n";

/// How S3 is given its secret, and the server its password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// `credentials_file`, and the password in the configuration.
    File,
    /// The environment with a session token, and a password file.
    Environment,
    /// A profile of the default file, and a password file.
    Profile,
}

impl Given {
    /// The secret key.
    fn secret(self) -> &'static str {
        match self {
            Given::File => PLANTED[0],
            Given::Environment => PLANTED[1],
            Given::Profile => PLANTED[2],
        }
    }
}

struct Scene {
    server: S3Server,
    sandbox: Sandbox,
    cluster: Cluster,
    /// Files to which the secrets belong.
    planted: Vec<PathBuf>,
    /// Secrets that are drawn while the test runs.
    drawn: Vec<String>,
    /// All that was printed, traced and logged.
    said: Vec<(String, String)>,
}

impl Scene {
    fn new() -> Scene {
        let builder = Cluster::small(17);
        let cluster = builder
            .hba(HBA)
            .config("log_replication_commands", "on")
            .config("wal_level", "replica")
            .start();
        let sandbox = Sandbox::new("secrets");
        for (role, password) in [("one", PLANTED[4]), ("two", PLANTED[5])] {
            cluster.sql(&format!(
                "CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{password}'"
            ));
        }
        // Logging begins only here: the statements before give the passwords to the server, and are no leak.
        cluster.append_config("log_statement", "all");
        cluster.reload();
        let mut planted = Vec::new();
        let mut plant = |name: &str, text: String| {
            planted.push(sandbox.file(name, text));
        };
        let keys = |profile: &str, secret: &str| {
            format!("[{profile}]\naws_access_key_id = {KEY}\naws_secret_access_key = {secret}\n")
        };
        plant("keys", keys("default", PLANTED[0]));
        sandbox.dir("home");
        sandbox.dir("home/.aws");
        plant("home/.aws/credentials", keys("backup", PLANTED[2]));
        plant("home/.pgpass", format!("*:*:*:two:{}\n", PLANTED[5]));
        Scene {
            server: S3Server::start(),
            sandbox,
            cluster,
            planted,
            drawn: Vec::new(),
            said: Vec::new(),
        }
    }

    fn configure(&mut self, given: Given) -> PathBuf {
        let tcp = format!(
            "host=127.0.0.1 port={} dbname=postgres",
            self.cluster.port()
        );
        let keys = self.sandbox.join("keys");
        let (conninfo, credentials) = match given {
            Given::File => (
                format!("{tcp} user=one password={}", PLANTED[4]),
                format!("credentials_file = \"{}\"\n", keys.display()),
            ),
            Given::Environment => (format!("{tcp} user=two"), String::new()),
            Given::Profile => (
                format!("{tcp} user=two"),
                "profile = \"backup\"\n".to_owned(),
            ),
        };
        let path = self.sandbox.file(
            format!("{given:?}.toml"),
            format!(
                "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{conninfo}\"\n[repositories.store]\nurl = \"s3://{BUCKET}/{given:?}\"\n\
                 endpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\nretry_budget = \"1s\"\n{credentials}",
                self.cluster.pgdata().display(),
                self.server.endpoint(),
            ),
        );
        if given == Given::File {
            self.planted.push(path.clone());
        }
        path
    }

    /// Runs a program with everything that may make it talk, and keeps what it says and what it starts.
    fn run(&mut self, given: Given, program: Program) -> Run {
        let run = self.talking(given, program).run();
        self.keep(run)
    }

    fn trace(&self) -> PathBuf {
        self.sandbox.join(format!("trace-{}", self.said.len()))
    }

    fn talking(&self, given: Given, program: Program) -> Program {
        let mut program = program
            .under(
                [
                    "strace",
                    "-f",
                    "-qq",
                    "-s",
                    "65536",
                    "-e",
                    "trace=execve",
                    "-o",
                ]
                .map(Into::into)
                .into_iter()
                .chain([self.trace().into_os_string()]),
            )
            .env("HOME", self.sandbox.join("home"))
            .env("RUST_LOG", "trace")
            .env("RUST_BACKTRACE", "1")
            .env("AWS_EC2_METADATA_DISABLED", "true");
        if given == Given::Environment {
            program = program
                .env("AWS_ACCESS_KEY_ID", KEY)
                .env("AWS_SECRET_ACCESS_KEY", PLANTED[1])
                .env("AWS_SESSION_TOKEN", PLANTED[3]);
        }
        program
    }

    fn keep(&mut self, run: Run) -> Run {
        let trace = self.trace();
        let started = std::fs::read_to_string(&trace).unwrap();
        assert!(started.contains("execve("), "{run}");
        self.said
            .push((run.line.clone(), format!("{run}\n{started}")));
        std::fs::remove_file(trace).unwrap();
        run
    }

    /// One whole cycle; everything in it works.
    fn cycle(&mut self, given: Given) {
        let config = self.configure(given);
        let of = |program: Program| program.arg("--config").arg(&config);
        self.run(given, of(pitr()).words("init --quiet")).success();
        let segment = self.cluster.switch_wal();
        let path = self.cluster.pgdata().join("pg_wal").join(&segment);
        self.run(given, of(pitr_archive()).arg(&path)).success();
        let archive = |scene: &mut Scene| {
            // The server has no archiver here: what it ended is archived by hand.
            scene
                .run(
                    given,
                    of(pitr())
                        .words("wal backfill --from")
                        .arg(scene.cluster.pgdata().join("pg_wal")),
                )
                .success();
        };
        archive(self);
        self.run(given, of(pitr()).words("doctor"));
        self.run(given, of(pitr()).words("repo check"));
        self.run(given, of(pitr()).words("info --json"));
        let fetched = self.sandbox.join("fetched");
        self.run(given, of(pitr_restore()).arg(&segment).arg(&fetched))
            .success();
    }

    /// Files that are ready go out through a worker, which is followed to its end.
    fn ship(&mut self, given: Given) {
        let config = self.configure(given);
        let names: Vec<String> = (0..2).map(|_| self.cluster.switch_wal()).collect();
        for name in &names {
            let ready = format!("pg_wal/archive_status/{name}.ready");
            self.cluster.touch(&ready);
        }
        let archive = pitr_archive().arg("--config").arg(&config);
        let archive = archive.arg(format!("pg_wal/{}", names[0]));
        let archive = archive.dir(self.cluster.pgdata());
        let spool = self.sandbox.join("spool");
        self.run(given, archive.env("PITR_CLUSTERS_MAIN_SPOOL_DIR", spool))
            .success();
        let (_, said) = self.said.last().unwrap();
        assert!(
            said.contains("\"serve\"") && said.contains("\"ship\""),
            "{said}"
        );
    }

    /// A receiver, and what it and the archive have, copied into a second repository.
    fn receive_and_sync(&mut self, given: Given) {
        let config = self.configure(given);
        let text = std::fs::read_to_string(&config).unwrap();
        let more = format!(
            "[clusters.main.receive]\njournal = \"{}\"\n[repositories.copy]\nurl = \"file://{}\"\n",
            self.sandbox.join("journal").display(),
            self.sandbox.join("synced").display()
        );
        let both = self.sandbox.file("both.toml", text + &more);
        self.planted.push(both.clone());
        let of = |args: &[&str]| pitr().arg("--config").arg(&both).args(args);
        self.run(given, of(&["init", "--quiet"])).success();
        let receive = self.talking(given, of(&["receive", "--create-slot"]));
        let mut running = receive.spawn();
        let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
        running.until("the receiver streams", || {
            self.cluster.value(streams) == "1"
        });
        self.cluster.switch_wal();
        // strace takes no signal; the first process that it followed does.
        let trace = std::fs::read_to_string(self.trace()).unwrap();
        let pid = trace.split_whitespace().next().unwrap().parse().unwrap();
        send(pid, Signal::TERM);
        self.keep(running.wait()).success();
        self.run(given, of(&["receive", "--drop-slot"])).success();
        self.run(given, of(&["repo", "sync"])).success();
    }

    /// A backup, read back, and a copy of it, which holds what `restore` writes.
    fn backup_and_copy(&mut self, given: Given) {
        let config = self.configure(given);
        let of = |program: Program| program.arg("--config").arg(&config);
        let mut archiver = of(pitr_archive()).arg("%p").shell();
        archiver.insert_str(0, &format!("HOME={} ", self.sandbox.join("home").display()));
        self.cluster.append_config("archive_mode", "on");
        self.cluster.append_config("archive_command", &archiver);
        self.cluster.restart();
        self.run(given, of(pitr()).words("backup --json")).success();
        self.run(given, of(pitr()).words("verify")).success();
        let to = self.sandbox.join("copy");
        let restore = of(pitr()).restore_to(&to);
        self.run(given, restore).success();
        assert!(to.join("PG_VERSION").exists());
        let to = self.sandbox.join("standby");
        let primary = format!("host=127.0.0.1 port={} user=one", self.cluster.port());
        let standby = of(pitr()).args(["standby", "--primary-conninfo", &primary]);
        self.run(given, standby.arg("--to").arg(&to)).success();
        assert!(to.join("standby.signal").exists());
    }

    /// Failures of every kind.
    fn failures(&mut self, given: Given) {
        let config = self.configure(given);
        let of = |program: Program| program.arg("--config").arg(&config);
        let fetch = || {
            of(pitr_restore())
                .words("000000010000000000000099 x")
                .dir(self.sandbox.path())
                .env("PITR_FAULT_SECONDS", "1")
        };
        let fetch = fetch();
        for (fault, status) in [
            (Fault::Error(403, "AccessDenied"), 207),
            (Fault::Echo(given.secret()), 207),
            (Fault::Error(403, "SignatureDoesNotMatch"), 207),
            (Fault::Error(400, "ExpiredToken"), 207),
            (Fault::Error(503, "SlowDown"), 200),
            (Fault::Reset, 200),
            (Fault::Stranger(200), 200),
        ] {
            let fired = self.server.fault("/bucket", u64::MAX, fault);
            // A refused request is refused at once; one second without an answer would pass for a store that hangs.
            let patience = if status == 200 { "1" } else { "600" };
            let fetch = fetch.clone().env("PITR_FAULT_SECONDS", patience);
            self.run(given, fetch).expect_code(status);
            let info = self.run(given, of(pitr()).words("info"));
            assert_ne!(info.code(), 0, "{info}");
            assert!(fired.times() > 1);
            self.server.heal();
        }
        // With all its time: printing where it panicked takes long on a busy machine, and must not pass for a store that hangs.
        let crash = fetch.env("PITR_FAULT", "restore");
        let crash = self.run(given, crash.env("PITR_FAULT_SECONDS", "600"));
        crash.expect_code(209).expect_stderr("fault point");
        // A role that is not let in, and a setting that does not exist.
        let text = std::fs::read_to_string(&config).unwrap();
        let wrong = self
            .sandbox
            .file("wrong.toml", text.replace("user=", "user=none_"));
        self.planted.push(wrong.clone());
        let run = self.run(given, pitr().arg("--config").arg(&wrong).words("backup"));
        assert_ne!(run.code(), 0, "{run}");
        let broken = self
            .sandbox
            .file("broken.toml", text.replace("pgdata =", "pgdato ="));
        self.planted.push(broken.clone());
        let run = self.run(given, pitr().arg("--config").arg(&broken).words("info"));
        assert_eq!(run.code(), 3, "{run}");
    }

    /// An encrypted repository, read with a passphrase from the environment: key files and passphrase stand nowhere else.
    fn encrypted(&mut self) {
        let given = Given::Profile;
        let folder = self.sandbox.join("key-files");
        let keygen = pitr().words("repo keygen --passphrase safe --recipient ops");
        let keygen = keygen.arg("--dir").arg(&folder);
        let run = self.run(given, keygen.env("PITR_PASSPHRASE", PLANTED[6]));
        run.success();
        for (name, field) in [("writer.key", "mac_key"), ("ops.key", "private_key")] {
            let path = folder.join(name);
            let text = std::fs::read_to_string(&path).unwrap();
            let file: serde_json::Value = serde_json::from_str(&text).unwrap();
            self.drawn.push(file[field].as_str().unwrap().to_owned());
            self.planted.push(path);
        }
        let config = self.sandbox.file(
            "encrypted.toml",
            format!(
                "[clusters.main]\npgdata = \"{}\"\nconninfo = \"host=127.0.0.1 port={} dbname=postgres user=two\"\n\
                 [repositories.vault]\nurl = \"file://{}\"\n[repositories.vault.encryption]\nkey_set = \"{}\"\n",
                self.cluster.pgdata().display(),
                self.cluster.port(),
                self.sandbox.join("vault").display(),
                folder.join("writer.key").display(),
            ),
        );
        let of = |program: Program, passphrase: &str| {
            let variable = "PITR_REPOSITORIES_VAULT_ENCRYPTION_PASSPHRASE";
            program
                .arg("--config")
                .arg(&config)
                .env(variable, passphrase)
        };
        let right = |program: Program| of(program, PLANTED[6]);
        let init = right(pitr()).words("init --quiet");
        self.run(given, init).success();
        let segment = self.cluster.switch_wal();
        let path = self.cluster.pgdata().join("pg_wal").join(&segment);
        self.run(given, right(pitr_archive()).arg(&path)).success();
        let fetched = self.sandbox.join("decrypted");
        let fetch = |program: Program| program.arg(&segment).arg(&fetched);
        self.run(given, fetch(right(pitr_restore()))).success();
        for args in [&["verify"][..], &["doctor"], &["info", "--json"]] {
            self.run(given, right(pitr()).args(args));
        }
        self.passphrase_of_a_file(&config, &right);
        // Refused, and a program that dies.
        let wrong = fetch(of(pitr_restore(), PLANTED[7]));
        self.run(given, wrong)
            .expect_code(204)
            .expect_stderr("the passphrase is not that of any recipient");
        let crash = fetch(right(pitr_restore())).env("PITR_FAULT", "restore");
        self.run(given, crash)
            .expect_code(209)
            .expect_stderr("fault point");
        let verify = of(pitr(), PLANTED[7]).words("verify");
        assert_ne!(self.run(given, verify).code(), 0);
    }

    /// The passphrase of another recipient, from a file and from a descriptor.
    fn passphrase_of_a_file(&mut self, config: &Path, right: &dyn Fn(Program) -> Program) {
        let given = Given::Profile;
        let file = self.sandbox.file("passphrase", PLANTED[8]);
        self.planted.push(file.clone());
        let add = right(pitr()).words("repo rewrap --add-passphrase filed");
        self.run(given, add.arg("--passphrase-file").arg(&file))
            .success();
        let text = std::fs::read_to_string(config).unwrap();
        let verify = |name: &str, line: String| {
            let config = self
                .sandbox
                .file(name, format!("{text}{line}\nrecipient = \"filed\"\n"));
            pitr().arg("--config").arg(config).arg("verify")
        };
        let by_file = verify(
            "by-file.toml",
            format!("passphrase_file = \"{}\"", file.display()),
        );
        let by_descriptor = verify("by-descriptor.toml", "passphrase_fd = 3".to_owned());
        let by_descriptor = with_descriptor(&by_descriptor, &file);
        self.run(given, by_file).success();
        self.run(given, by_descriptor).success();
    }

    /// Returns the places where the secrets stand and should not.
    fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        let echoed = self.server.echoed();
        assert!(
            echoed.len() > 3 && echoed.iter().all(|s| s.len() == 64),
            "{echoed:?}"
        );
        let mut look = |place: &str, bytes: &[u8]| {
            let drawn = self.drawn.iter().map(String::as_str);
            let echoed = echoed.iter().map(String::as_str);
            for secret in PLANTED.iter().copied().chain(drawn).chain(echoed) {
                if bytes.windows(secret.len()).any(|w| w == secret.as_bytes()) {
                    leaks.push(format!("{secret} in {place}"));
                }
            }
        };
        for (line, text) in &self.said {
            look(&format!("what {line} said or started"), text.as_bytes());
        }
        look("the log of the server", self.cluster.log().as_bytes());
        for key in self.server.keys() {
            look(&format!("the key {key}"), key.as_bytes());
            look(&format!("object {key}"), &self.server.object(&key));
            let headers = format!(
                "{:?}",
                self.server
                    .written_with(&key)
                    .into_iter()
                    .filter(|(name, _)| name != "x-amz-security-token")
                    .collect::<Vec<_>>()
            );
            look(&format!("the headers of {key}"), headers.as_bytes());
        }
        look("the requests", self.server.log().join("\n").as_bytes());
        let files = paths_below(self.sandbox.path());
        for file in files.iter().filter(|f| !self.planted.contains(f)) {
            look(&file.display().to_string(), &std::fs::read(file).unwrap());
        }
        leaks
    }
}

#[test]
fn secrets_stand_nowhere_but_where_they_were_put() {
    require_strace!("secrets_stand_nowhere_but_where_they_were_put");
    let mut scene = Scene::new();
    for given in [Given::Environment, Given::Profile, Given::File] {
        scene.cycle(given);
        scene.failures(given);
    }
    scene.encrypted();
    scene.ship(Given::Environment);
    scene.receive_and_sync(Given::File);
    // A backup carries what the server and the configuration know, and the copy says how it was made.
    scene.backup_and_copy(Given::File);
    user::own_all(scene.sandbox.path());
    let leaks = scene.leaks();
    assert!(leaks.is_empty(), "{leaks:#?}");
    // The message repeats the store's text, without the secrets in it.
    let (_, told) = scene
        .said
        .iter()
        .find(|(_, t)| t.contains("signed AWS4"))
        .unwrap();
    assert!(
        told.contains("[secret] signed") && told.contains("Signature=[secret]"),
        "{told}"
    );
    // A search would have found the secrets: the files that hold them are there, and the server took both passwords.
    let texts: Vec<String> = scene
        .planted
        .iter()
        .map(|p| std::fs::read_to_string(p).unwrap())
        .collect();
    let in_files = PLANTED
        .iter()
        .filter(|s| texts.iter().any(|t| t.contains(**s)));
    assert_eq!(in_files.count(), IN_FILES);
    let is_found = |secret: &String| texts.iter().any(|t| t.contains(secret));
    assert!(scene.drawn.len() == 2 && scene.drawn.iter().all(is_found));
}
