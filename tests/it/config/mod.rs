//! `pitr config`: operators see files without their secrets, the holders of a secrets pair get them back, and nobody else sees one.

mod corpus;
mod defaults;
mod faults;
mod in_place;
mod rewrap;
mod secrecy;
mod sync;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::common::{Cluster, Program, Run, Sandbox, expire_at_once, files_below, pitr};
use crate::sealed::keygen;

/// Secrets of the files, none of which may be seen.
const PLANTED: [&str; 7] = [
    "Gr3enTea!42",
    "pa55w0rd-of-rep",
    "sk_live_4eC39HqLyjWDarjtT1",
    "c0mment3dOut99",
    "kP7xQ2mZ9vR4tY8w",
    "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ",
    "h4lf-of-a-line",
];

/// A host with files, a repository, and people with keys.
struct World {
    sandbox: Sandbox,
    is_root: bool,
    /// Repositories are made for a cluster.
    cluster: Cluster,
}

impl World {
    fn new() -> World {
        let world = World {
            sandbox: Sandbox::new("config"),
            is_root: rustix::process::geteuid().is_root(),
            cluster: Cluster::builder(17).without_fsync().create(),
        };
        world.sandbox.dir("tmp");
        keygen(&world.path("keys"), &["ops", "escrow"]).succeed();
        let pair = keygen(&world.path("pair"), &["lead", "vault"])
            .arg("--secrets")
            .succeed();
        pair.expect_stdout("secrets = \"");
        world.plant();
        // A host that only writes, an operator, and somebody without any key of the repository.
        world.configure(
            "writer",
            &[
                "key_set = \"{keys}/writer.key\"",
                "secrets = \"{pair}/secrets.key\"",
            ],
        );
        world.configure("operator", &["key_file = \"{keys}/ops.key\""]);
        world.configure(
            "lead",
            &[
                "key_file = \"{keys}/escrow.key\"",
                "secrets_key = \"{pair}/lead.key\"",
            ],
        );
        world.configure("stranger", &[]);
        world.on("writer", &["init", "--quiet"]).succeed();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes the configuration `open`, whose repository has no keys, with a source of these paths and more lines of its section.
    fn configure_open(&self, paths: &str, more: &str) {
        self.sandbox.dir("open");
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\n[repositories.open]\nurl = \"file://{}\"\n[config.host]\npaths = [\"{paths}\"]\nidentity = \"test\"\n{more}",
            self.cluster.pgdata().display(),
            self.text("open/repo"),
        );
        self.sandbox.file("open.toml", text);
    }

    /// Writes the configuration `two`, whose first repository has no keys, with more lines of its set; makes both repositories.
    fn configure_two(&self, more: &str) {
        self.sandbox.dir("open");
        let (keys, open) = (self.text("keys"), self.text("open/repo"));
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\n[repositories.open]\nurl = \"file://{open}\"\n[repositories.local]\nurl = \"file://{}\"\n[repositories.local.encryption]\nkey_set = \"{keys}/writer.key\"\nkey_file = \"{keys}/ops.key\"\nsecrets = \"{}/secrets.key\"\n[config.host]\npaths = [\"{}\"]\nidentity = \"test\"\n{more}",
            self.cluster.pgdata().display(),
            self.text("repo"),
            self.text("pair"),
            self.text("host"),
        );
        self.sandbox.file("two.toml", text);
        self.on("two", &["init", "--quiet"]).succeed();
    }

    /// The finding of `pitr doctor` about the set, by the configuration `two`.
    fn finding(&self) -> Value {
        let told = self.sees("two", &["doctor", "--json"]).json();
        let all = told["findings"].as_array().unwrap().iter();
        let mut all = all.filter(|one| one["name"] == "config host");
        all.next().cloned().unwrap()
    }

    fn plant(&self) {
        let files = [
            ("host/.env", "HOST=db.local\r\nDB_PASSWORD=Gr3enTea!42\r\n# OLD_TOKEN=c0mment3dOut99\r\nnot an assignment h4lf-of-a-line\r\n".to_owned()),
            ("host/pg/postgresql.conf", "port = 5432\nprimary_conninfo = 'host=p user=rep password=pa55w0rd-of-rep'\n".to_owned()),
            ("host/app.yaml", "stripe:\n  key: sk_live_4eC39HqLyjWDarjtT1\nnotes: the old one was Gr3enTea!42\n".to_owned()),
            ("host/id", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n-----END OPENSSH PRIVATE KEY-----\n".to_owned()),
            ("host/plain.conf", "listen = 80\nworkers = 4\n".to_owned()),
        ];
        for (name, text) in files {
            self.write(name, text.as_bytes());
        }
        self.write("host/binary", b"\xff\xfe kP7xQ2mZ9vR4tY8w \x00");
        std::fs::set_permissions(self.path("host/.env"), PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("plain.conf", self.path("host/link")).unwrap();
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn configure(&self, who: &str, encryption: &[&str]) {
        self.configure_more(who, encryption, "");
    }

    fn configure_more(&self, who: &str, encryption: &[&str], more: &str) {
        let mut text = format!(
            "[clusters.main]\npgdata = \"{}\"\n[repositories.local]\nurl = \"file://{}\"\n",
            self.cluster.pgdata().display(),
            self.text("repo")
        );
        if !encryption.is_empty() {
            text.push_str("[repositories.local.encryption]\n");
        }
        for line in encryption {
            let line = line
                .replace("{keys}", &self.text("keys"))
                .replace("{pair}", &self.text("pair"));
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(&format!(
            "[config.host]\npaths = [\"{}\"]\nidentity = \"test\"\n{more}",
            self.text("host")
        ));
        self.sandbox.file(format!("{who}.toml"), text);
    }

    fn on(&self, who: &str, arguments: &[&str]) -> Program {
        let program = pitr()
            .arg("--config")
            .arg(self.path(&format!("{who}.toml")))
            .args(arguments);
        let program = match self.is_root {
            true => program.privileged(),
            false => program,
        };
        program
            .env("TMPDIR", self.path("tmp"))
            .env("PITR_FAULT_SECONDS", "0")
            .env("RUST_BACKTRACE", "1")
    }

    /// Runs a command whose output must have no secret.
    fn sees(&self, who: &str, arguments: &[&str]) -> Run {
        let run = self.on(who, arguments).run();
        for text in [&run.stdout, &run.stderr] {
            absent(text.as_bytes(), &format!("{who}: {arguments:?}"));
        }
        run
    }

    fn backup(&self) -> String {
        let run = self.sees("writer", &["config", "backup", "host", "--json"]);
        run.success().id()
    }

    /// Restores; owners of directories above the host's are not ours to make.
    fn restores(&self, who: &str, to: &str, more: &[&str]) {
        let to = self.text(to);
        let arguments = [&["config", "restore", "host", "--to", &to], more].concat();
        let run = self.sees(who, &arguments);
        assert!([0, 6].contains(&run.code()), "{run}");
        let warnings = run
            .stderr
            .lines()
            .filter(|line| line.starts_with("warning"));
        for warning in warnings {
            assert!(
                warning.ends_with("is given with --privileged alone"),
                "{run}"
            );
        }
    }

    /// A path of the host, as backups have it.
    fn host(&self, name: &str) -> String {
        self.text(&format!("host/{name}"))
    }

    /// The restored place of the host's directory.
    fn below(&self, to: &str) -> PathBuf {
        let host = self.path("host");
        self.path(to).join(host.strip_prefix("/").unwrap())
    }

    fn is_same(&self, to: &str) {
        let (was, is) = (self.path("host"), self.below(to));
        let names = files_below(&was);
        assert_eq!(files_below(&is), names);
        assert!(names.len() >= 6, "{names:?}");
        for name in &names {
            let (a, b) = (was.join(name), is.join(name));
            assert_eq!(
                std::fs::read(&a).unwrap(),
                std::fs::read(&b).unwrap(),
                "{name}"
            );
            let facts = |path: &Path| {
                let metadata = path.symlink_metadata().unwrap();
                (
                    metadata.permissions().mode(),
                    metadata.modified().unwrap(),
                    metadata.len(),
                )
            };
            if name != "link" {
                assert_eq!(facts(&a), facts(&b), "{name}");
            }
        }
        assert_eq!(
            std::fs::read_link(is.join("link")).unwrap(),
            Path::new("plain.conf")
        );
    }
}

/// A value raw, in hexadecimal digits, and in base64 at each offset, without the characters that its neighbours change.
fn forms(value: &str) -> Vec<Vec<u8>> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let hex: String = value.bytes().map(|b| format!("{b:02x}")).collect();
    let mut forms = vec![
        value.as_bytes().to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
    ];
    for skip in 0..3 {
        let bytes = &value.as_bytes()[skip..];
        let whole = bytes.chunks_exact(3).flat_map(|three| {
            let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
            [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize])
        });
        forms.push(whole.collect());
    }
    forms.retain(|form| form.len() >= 8);
    forms
}

/// Requires that no planted secret is in the bytes.
fn absent(bytes: &[u8], place: &str) {
    for value in PLANTED {
        for form in forms(value) {
            let is_there = bytes.windows(form.len()).any(|window| window == form);
            assert!(!is_there, "{place} shows {value}");
        }
    }
}

/// Requires that no planted secret is in the files below.
fn absent_below(folder: &Path) {
    for name in files_below(folder) {
        absent(
            &std::fs::read(folder.join(&name)).unwrap_or_default(),
            &format!("{}/{name}", folder.display()),
        );
    }
}

#[test]
fn q07_operators_see_no_secret_and_the_lead_gets_all_back() {
    let world = World::new();
    let first = world.backup();
    world
        .sees("operator", &["config", "show", "host"])
        .success()
        .expect_stdout("secret /");
    let shown = world
        .sees("operator", &["config", "show", "host", &world.host(".env")])
        .success();
    let shown = shown
        .expect_stdout("HOST=db.local\r\n")
        .expect_stdout("DB_PASSWORD=«sealed:")
        .expect_stdout("# OLD_TOKEN=«sealed:");
    let mark = shown
        .stdout
        .split("DB_PASSWORD=")
        .nth(1)
        .unwrap()
        .split('\r')
        .next()
        .unwrap()
        .to_owned();
    let yaml = world
        .sees(
            "operator",
            &["config", "show", "host", &world.host("app.yaml")],
        )
        .success();
    yaml.expect_stdout(&format!("the old one was {mark}"));
    for who in ["operator", "writer", "stranger"] {
        let to = world.text(&format!("not-for-{who}"));
        let restore = world.sees(who, &["config", "restore", "host", "--to", &to]);
        assert!(restore.code() != 0 && !Path::new(&to).exists(), "{restore}");
        let reveal = world.sees(who, &["config", "reveal", "host", &world.host(".env")]);
        assert!(reveal.code() != 0 && reveal.stdout.is_empty(), "{reveal}");
    }
    // The key of the pair alone opens nothing, for the repository's is the outer door.
    let lead_key = world.text("pair/lead.key");
    let run = world.sees(
        "writer",
        &[
            "config",
            "reveal",
            "host",
            &world.host(".env"),
            "--secrets-key",
            &lead_key,
        ],
    );
    assert!(run.code() != 0 && run.stdout.is_empty(), "{run}");

    let reveal = |arguments: &[&str]| {
        let run = world
            .on("lead", &[&["config", "reveal", "host"], arguments].concat())
            .run();
        run.success().stdout
    };
    assert_eq!(
        reveal(&[&world.host(".env"), "DB_PASSWORD"]),
        "Gr3enTea!42\n"
    );
    assert_eq!(
        reveal(&[&world.host(".env")]).as_bytes(),
        std::fs::read(world.path("host/.env")).unwrap()
    );
    world.restores("lead", "back", &[]);
    world.is_same("back");
    world.restores("operator", "redacted", &["--redacted"]);
    absent_below(&world.path("redacted"));
    let redacted = std::fs::read_to_string(world.below("redacted").join(".env")).unwrap();
    assert!(redacted.contains(&mark), "{redacted}");

    // A changed secret is seen as changed, and one that is back as the one of before.
    world.write(
        "host/app.yaml",
        b"stripe:\n  key: kP7xQ2mZ9vR4tY8w\nnotes: none\n",
    );
    let live = world.sees("lead", &["config", "diff", "host", "--live"]);
    live.expect_code(1).expect_stderr("secrets pair");
    let second = world.backup();
    let diff = world.sees("operator", &["config", "diff", "host"]);
    let diff = diff
        .expect_code(6)
        .expect_stdout("-  key: «sealed:")
        .expect_stdout("+  key: «sealed:");
    assert_eq!(diff.stdout.matches("changed /").count(), 1, "{diff}");
    world
        .sees("operator", &["config", "diff", "host", &second, &second])
        .success();
    assert_eq!(
        reveal(&[&world.host("app.yaml"), "key", "--backup", &first]),
        "sk_live_4eC39HqLyjWDarjtT1\n"
    );

    // The other commands know the kind, and say nothing of what it holds.
    world.sees("operator", &["verify", "--json"]).success();
    let info = world.sees("operator", &["info", "--json"]);
    assert_eq!(
        info.json()["scopes"][0]["scope"],
        "aux/config/host",
        "{info}"
    );
    world.sees("operator", &["repo", "show"]);
    for _ in 0..2 {
        world.sees("operator", &expire_at_once());
    }
    let left = world.sees("operator", &["info", "--json"]).json();
    assert_eq!(
        left["scopes"][0]["backups"].as_array().unwrap().len(),
        1,
        "{left}"
    );
    world.restores("lead", "again", &[]);
    world.is_same("again");
    absent_below(&world.path("repo"));
    absent_below(&world.path("tmp"));
}

#[test]
fn this_host_is_compared_with_a_backup() {
    let world = World::new();
    let both = [
        "key_file = \"{keys}/ops.key\"",
        "secrets = \"{pair}/secrets.key\"",
    ];
    world.configure("host", &both);
    world.backup();
    world
        .sees("host", &["config", "diff", "host", "--live"])
        .success();
    world.write("host/plain.conf", b"listen = 81\nworkers = 4\n");
    world.write("host/new.env", b"API_TOKEN=c0mment3dOut99\n");
    std::fs::remove_file(world.path("host/id")).unwrap();
    let diff = world
        .sees("host", &["config", "diff", "host", "--live"])
        .expect_code(6);
    diff.expect_stdout("-listen = 80\n+listen = 81\n")
        .expect_stdout("added /")
        .expect_stdout("removed /")
        .expect_stdout("+API_TOKEN=«sealed:");
}

#[test]
fn q02_recipients_come_and_go() {
    let world = World::new();
    world.backup();
    let listed = world.sees("writer", &["config", "recipients"]).success();
    listed.expect_stdout("lead, vault");
    keygen(&world.path("new"), &["deputy"])
        .arg("--pair-only")
        .succeed();
    let (lead, vault) = (world.text("pair/lead.key"), world.text("pair/vault.key"));
    let (deputy, public) = (world.text("new/deputy.key"), world.text("new/deputy.pub"));
    let refused = world.sees("writer", &["config", "recipients", "--add", &public]);
    refused.expect_code(1).expect_stderr("--secrets-key FILE");
    let env = world.host(".env");
    let reveal = |key: &str| {
        world
            .on(
                "operator",
                &[
                    "config",
                    "reveal",
                    "host",
                    &env,
                    "DB_PASSWORD",
                    "--secrets-key",
                    key,
                ],
            )
            .run()
    };
    assert!(reveal(&deputy).code() != 0);
    world
        .sees(
            "writer",
            &[
                "config",
                "recipients",
                "--add",
                &public,
                "--secrets-key",
                &lead,
            ],
        )
        .success();
    assert_eq!(reveal(&deputy).success().stdout, "Gr3enTea!42\n");
    let few = world.sees(
        "writer",
        &[
            "config",
            "recipients",
            "--withdraw",
            "lead",
            "--secrets-key",
            &vault,
        ],
    );
    few.expect_code(8).expect_stderr("must be proven");
    let away = [
        "config",
        "recipients",
        "--withdraw",
        "lead",
        "--secrets-key",
        &vault,
        "--secrets-key",
        &deputy,
    ];
    world
        .sees("writer", &away)
        .success()
        .expect_stdout("deputy, vault");
    let run = reveal(&lead);
    assert!(run.code() == 1 && run.stdout.is_empty(), "{run}");
    run.expect_stderr("was withdrawn");
    assert_eq!(reveal(&vault).success().stdout, "Gr3enTea!42\n");
    // A new pair seals later backups; the old one opens those of before.
    keygen(&world.path("pair2"), &["lead2", "vault2"])
        .arg("--secrets")
        .succeed();
    let secrets = format!("secrets = \"{}\"", world.text("pair2/secrets.key"));
    world.configure("writer", &["key_set = \"{keys}/writer.key\"", &secrets]);
    world.backup();
    let run = reveal(&vault);
    assert!(run.code() == 1 && run.stdout.is_empty(), "{run}");
    assert_eq!(
        reveal(&world.text("pair2/lead2.key")).success().stdout,
        "Gr3enTea!42\n"
    );
}

#[test]
fn q05_a_repository_without_keys_takes_secrets_on_request_alone() {
    let world = World::new();
    world.configure_open(&world.text("host"), "");
    world.on("open", &["init", "--quiet"]).succeed();
    let refused = world.sees("open", &["config", "backup", "host"]);
    refused
        .expect_code(8)
        .expect_stderr("--allow-plain-secrets");
    world
        .sees(
            "open",
            &["config", "backup", "host", "--allow-plain-secrets"],
        )
        .success();
    world
        .sees("open", &["config", "show", "host", &world.host(".env")])
        .success()
        .expect_stdout("DB_PASSWORD=«secret:16»");
    world.restores("open", "back", &[]);
    world.is_same("back");
}

/// Names that say it, and a name that says nothing, of a file which the configuration itself names as a password.
#[test]
fn u99_a_file_that_is_nothing_but_a_password_is_a_secret() {
    let world = World::new();
    world.write("etc/plain", b"listen = 80\n");
    let configure = |more: &str| world.configure_open(&world.text("etc"), more);
    configure("");
    world.on("open", &["init", "--quiet"]).succeed();
    let backup = || world.on("open", &["config", "backup", "host"]).run();
    backup().success();
    for name in ["etc/cache.pass", "etc/secrets/db", "etc/token"] {
        world.write(name, b"Summer11!x\n");
        let refused = backup().expect_code(8);
        refused.expect_stderr("--allow-plain-secrets");
        std::fs::remove_file(world.path(name)).unwrap();
    }
    world.write("etc/cache", b"Summer11!x\n");
    backup().success();
    let file = world.text("etc/cache");
    configure(&format!(
        "[redis.cache]\naddress = \"127.0.0.1:6379\"\npassword_file = \"{file}\"\n"
    ));
    backup()
        .expect_code(8)
        .expect_stderr("--allow-plain-secrets");
}

/// The file names and shapes tell nothing: the configuration does, and it is the one of all repositories.
#[test]
fn b47_a_secret_of_a_repository_that_is_not_chosen_is_one_all_the_same() {
    let world = World::new();
    world.write("etc/one", b"Summer11!x\n");
    let file = world.text("etc/one");
    world.configure_open(&world.text("etc"), "");
    world.on("open", &["init", "--quiet"]).succeed();
    let words = ["config", "backup", "host", "--repository", "open"];
    let backup = |more: &[&str]| world.on("open", &[&words[..], more].concat()).run();
    let other = |lines: &str| {
        let more = format!("[repositories.other]\n{lines}\n");
        world.configure_open(&world.text("etc"), &more);
    };
    other(&format!(
        "url = \"sftp://nowhere/repo\"\nssh_key_file = \"/nowhere\"\nssh_passphrase_file = \"{file}\""
    ));
    backup(&[])
        .expect_code(8)
        .expect_stderr("--allow-plain-secrets");
    other(&format!(
        "url = \"file:///nowhere\"\n[repositories.other.encryption]\nrecipient = \"ops\"\npassphrase_file = \"{file}\""
    ));
    backup(&["--allow-plain-secrets"])
        .expect_code(8)
        .expect_stderr("passphrase of a repository");
    // It is the configuration alone that makes it one.
    world.configure_open(&world.text("etc"), "");
    backup(&[]).success();
}

#[test]
fn u107_a_secret_that_changed_is_a_difference_also_where_nothing_seals() {
    let world = World::new();
    world.configure_open(&world.text("host"), "");
    world.on("open", &["init", "--quiet"]).succeed();
    let words = ["config", "backup", "host", "--allow-plain-secrets"];
    let backup = || world.sees("open", &words).success();
    let live = || world.sees("open", &["config", "diff", "host", "--live"]);
    backup();
    live().success();
    // It is as long as the one before.
    world.write(
        "host/pg/postgresql.conf",
        b"port = 5432\nprimary_conninfo = 'host=p user=rep password=pa55w0rd-of-reg'\n",
    );
    let run = live().expect_code(6);
    assert_eq!(run.stdout.matches("changed /").count(), 1, "{run}");
    run.expect_stdout("a secret differs");
    backup();
    live().success();
    let run = world.sees("open", &["config", "diff", "host"]);
    run.expect_code(6).expect_stdout("a secret differs");
}

#[test]
fn u108_marks_of_two_pairs_are_not_compared_without_a_word() {
    let world = World::new();
    let configure = |pair: &str| {
        let secrets = format!(
            "secrets = \"{}\"",
            world.text(&format!("{pair}/secrets.key"))
        );
        world.configure("host", &["key_file = \"{keys}/ops.key\"", &secrets]);
    };
    world.backup();
    keygen(&world.path("pair2"), &["lead2", "vault2"])
        .arg("--secrets")
        .succeed();
    configure("pair2");
    let run = world.sees("host", &["config", "diff", "host", "--live"]);
    run.expect_code(6).expect_stderr("the same secrets pair");
    configure("pair");
    let run = world.sees("host", &["config", "diff", "host", "--live"]);
    let run = run.success();
    assert!(!run.stderr.contains("secrets pair"), "{run}");
}

#[test]
fn q03_what_does_not_belong_into_a_backup_is_refused() {
    let world = World::new();
    let run = world.sees("writer", &["config", "backup", "guest"]);
    run.expect_code(3).expect_stderr("[config.guest]");
    world.configure("pairless", &["key_set = \"{keys}/writer.key\""]);
    let run = world.sees("pairless", &["config", "backup", "host"]);
    run.expect_code(8)
        .expect_stderr("pitr repo keygen --secrets");
    // A private key, known by its name or by what it is.
    std::fs::copy(world.path("keys/ops.key"), world.path("host/copy")).unwrap();
    let run = world.sees("writer", &["config", "backup", "host"]);
    run.expect_code(8)
        .expect_stderr("host/copy")
        .expect_stderr("exclude = ");
    // A share of one, also where it is a part of another text.
    std::fs::remove_file(world.path("host/copy")).unwrap();
    let share = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/sealed/share-1.txt");
    let share = std::fs::read_to_string(share).unwrap();
    std::fs::write(
        world.path("host/copy"),
        format!("in the safe:\n{share}end\n"),
    )
    .unwrap();
    let run = world.sees("writer", &["config", "backup", "host"]);
    run.expect_code(8).expect_stderr("host/copy");
    let run = world.sees("writer", &["config", "scan", &world.text("host")]);
    run.expect_code(6)
        .expect_stdout(&format!("{}:2: - (pem, ", world.host("copy")));
    let exclude = format!("exclude = [\"{}\"]\n", world.host("copy"));
    world.configure_more(
        "writer",
        &[
            "key_set = \"{keys}/writer.key\"",
            "secrets = \"{pair}/secrets.key\"",
        ],
        &exclude,
    );
    world.backup();
}

#[test]
fn scans_name_places_and_never_values() {
    let world = World::new();
    let run = world.sees("writer", &["config", "scan", &world.text("host")]);
    let run = run.expect_code(6).expect_stdout(&format!(
        "{}:2: DB_PASSWORD (key, mode 0640)",
        world.host(".env")
    ));
    let run = run.expect_stdout(&format!("{}:1: - (pem, ", world.host("id")));
    run.expect_stdout(&format!("{}:1: - (file, ", world.host("binary")));
    let json = world
        .sees("writer", &["config", "scan", "--set", "host", "--json"])
        .expect_code(6)
        .json();
    assert!(json["findings"].as_array().unwrap().len() >= 6, "{json}");
    world
        .sees("writer", &["config", "scan", &world.host("plain.conf")])
        .success();
    world.sees("writer", &["config", "scan"]).expect_code(2);
    let name = world.sees("writer", &["config", "scan", "host"]);
    name.expect_code(2)
        .expect_stderr("pitr config scan --set host");
}

#[test]
fn u122_configuration_is_missed_in_a_repository_that_takes_its_secrets() {
    let world = World::new();
    world.configure_two("");
    let scope = || {
        let info = world.sees("two", &["info", "--json"]).json();
        let scopes = info["scopes"].as_array().unwrap().clone();
        assert_eq!(scopes.len(), 1, "{info}");
        scopes[0].clone()
    };
    // The first repository is plain, and refuses secrets.
    let next = "pitr config backup host --repository local";
    let missed = scope();
    assert_eq!(missed["repository"], "local", "{missed}");
    assert_eq!(missed["problems"][0]["next"], next, "{missed}");
    assert_eq!(world.finding()["fix"], next);
    let words: Vec<&str> = next.split(' ').skip(1).collect();
    world.sees("two", &words).success();
    let there = scope();
    assert_eq!(there["problems"].as_array().unwrap().len(), 0, "{there}");
    assert_eq!(world.finding()["level"], "ok");
}

#[test]
fn u124_the_newest_configuration_is_judged_wherever_it_is() {
    let world = World::new();
    world.configure_two("max_backup_age = \"24h\"\n");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = now.as_secs();
    let before = format!("{},{now},1,all", now - 3 * 86_400);
    let plain = ["config", "backup", "host", "--allow-plain-secrets"];
    let plain = world.on("two", &plain).args(["--repository", "open"]);
    plain.env("PITR_FAULT_CLOCK", before).succeed();
    let problems = || {
        let info = world.sees("two", &["info", "--json"]).json();
        let scopes = info["scopes"].as_array().unwrap().clone();
        let problems = scopes
            .iter()
            .flat_map(|one| one["problems"].as_array().unwrap());
        problems.cloned().collect::<Vec<_>>()
    };
    // The only one is old, and its repository takes no secrets now.
    let next = "pitr config backup host --repository local";
    let old = problems();
    assert_eq!(old.len(), 1, "{old:?}");
    assert_eq!(old[0]["next"], next);
    let old = world.finding();
    assert_eq!(old["level"], "fail");
    assert_eq!(old["fix"], next);
    let words: Vec<&str> = next.split(' ').skip(1).collect();
    world.sees("two", &words).success();
    // The old one stays in the first repository.
    assert_eq!(problems(), Vec::<Value>::new());
    assert_eq!(world.finding()["level"], "ok");
}

#[test]
fn u57_restored_configuration_inherits_no_acl() {
    use crate::files::tree::{has_no_acl, open_to_another};
    let world = World::new();
    world.backup();
    open_to_another(&world.sandbox.dir("around"));
    world.restores("lead", "around/to", &[]);
    world.is_same("around/to");
    has_no_acl(&world.path("around/to"));
}
