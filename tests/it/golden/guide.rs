//! `docs/guide.md`: its commands run from top to bottom on servers of PostgreSQL 16 and 18, and print what it says they print.
//!
//! A block of language `console` holds commands behind `$` and their outputs; a comment `<!-- run: … -->` holds one that is not shown. Outputs are
//! compared as in scenes. With `INSTA_UPDATE=always` (`make golden`) the blocks are written anew, as that run printed them.

use std::path::{Path, PathBuf};

use super::redact::{Data, Redactor};
use crate::common::{Program, Sandbox, bin, path_of};
use crate::require_fuse;

/// The majors before and after the upgrade: both with all programs, and of one day, because pg_upgrade of an older day may not know what a newer server wrote.
const MAJORS: [u32; 2] = [16, 18];

const HIDDEN: &str = "<!-- run: ";

/// The places of the guide, below a folder of the test.
struct Stage {
    sandbox: Sandbox,
    /// Real texts, and what the guide has for them.
    names: Vec<(String, &'static str)>,
    /// The first of three ports that are free, in the place of 5432 to 5434: pitr looks whether those of the whole host are.
    port: u16,
}

/// The first of three ports in a row that nobody has.
fn three_ports() -> u16 {
    let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let begin = 20_000 + (std::process::id() % 10_000) as u16;
    let mut bases = (begin..40_000).step_by(3);
    let found = bases.find(|base| (*base..base + 3).all(is_free));
    found.expect("three ports are free")
}

impl Stage {
    fn new() -> Stage {
        let sandbox = Sandbox::on_disk("g");
        sandbox.dir("srv");
        let folder = |path: PathBuf| path.parent().unwrap().display().to_string();
        let [old, new] = MAJORS.map(|major| bin(major, "pg_upgrade").unwrap());
        let names = vec![
            (sandbox.path().display().to_string(), ""),
            (folder(path_of("pitr")), "/usr/bin"),
            (folder(old.clone()), "/usr/lib/postgresql/16/bin"),
            (folder(new.clone()), "/usr/lib/postgresql/18/bin"),
            // As the server's own files and pg_upgrade name them.
            (
                folder(old.canonicalize().unwrap()),
                "/usr/lib/postgresql/16/bin",
            ),
            (
                folder(new.canonicalize().unwrap()),
                "/usr/lib/postgresql/18/bin",
            ),
        ];
        Stage {
            sandbox,
            names,
            port: three_ports(),
        }
    }

    /// Runs a line of the guide, and returns what it printed, in the guide's words.
    fn run(&self, line: &str) -> String {
        let mut command = line.replace("/srv/", &format!("{}/srv/", self.sandbox.path().display()));
        for (real, name) in &self.names[2..4] {
            command = command.replace(name, real);
        }
        for (own, port) in (self.port..).zip(["5432", "5433", "5434"]) {
            command = command.replace(port, &own.to_string());
        }
        let [_, programs, server, ..] = &self.names[..] else {
            panic!("the names of programs")
        };
        let run = Program::new("sh")
            // As a terminal shows both.
            .args(["-c", &format!("exec 2>&1\n{command}\n")])
            .env("PATH", format!("{}:{}:/usr/bin:/bin", programs.0, server.0))
            .env("HOME", self.sandbox.join("srv"))
            .env("PITR_CONFIG", self.sandbox.join("srv/pitr.toml"))
            .env("PGHOST", self.sandbox.join("srv/run"))
            .env("PGUSER", "postgres")
            .env("PGPORT", self.port.to_string())
            .env("COLUMNS", "100")
            .dir(self.sandbox.join("srv"))
            .run();
        let mut printed = run.stdout.clone();
        if !run.is_success() {
            printed.push_str(&format!("(exit status {})\n", run.code()));
        }
        for (real, name) in &self.names {
            printed = printed.replace(real, name);
        }
        for (own, port) in (self.port..).zip(["5432", "5433", "5434"]) {
            printed = printed.replace(&own.to_string(), port);
        }
        printed
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let stop = "for d in /srv/*; do test ! -f $d/postmaster.pid || pg_ctl -s -D $d -m immediate stop; done";
        self.run(stop);
    }
}

/// The guide as its own commands make it.
fn played(guide: &str, stage: &Stage) -> String {
    let mut made = String::new();
    let mut is_console = false;
    for line in guide.lines() {
        match line {
            "```console" => is_console = true,
            "```" => is_console = false,
            _ => {}
        }
        let command = line.strip_prefix("$ ").filter(|_| is_console);
        let is_output = is_console && line != "```console" && command.is_none();
        if is_output {
            continue;
        }
        made.push_str(&format!("{line}\n"));
        if let Some(command) = command {
            made.push_str(&stage.run(command));
        }
        if let Some(hidden) = line.strip_prefix(HIDDEN) {
            let printed = stage.run(hidden.trim_end_matches(" -->"));
            assert_eq!(printed, "", "{line}");
        }
    }
    made
}

/// Without counts and lists of segments: a server ends one when a record of its own comes in between, and may have recycled the one before
/// a segment when a busy machine comes to archive it.
fn redacted(text: &str) -> String {
    let is_count = |line: &&str| {
        let begins = [
            "WAL      ",
            "already there ",
            "not used yet ",
            "read back: ",
            // Its parts are "< 1 s" or not as the machine pleases.
            "time to recovery: ",
            // A clone has an id of its own, and its socket a path.
            "clone ",
            "  psql \"host=",
            "It is thrown away when it is stopped",
        ];
        begins.iter().any(|begin| line.starts_with(begin))
            || line.contains(" no link, the hash of ")
            || line.contains(" were there, ")
            || line.ends_with(" decoded")
    };
    let lines = text.lines().filter(|line| !is_count(line));
    let compared: Vec<&str> = lines.collect();
    Redactor::new(Data::Live, &[]).text(&compared.join("\n"))
}

#[test]
fn the_guide_prints_what_it_says() {
    require_fuse!("the_guide_prints_what_it_says");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide.md");
    let guide = std::fs::read_to_string(&path).unwrap();
    let made = played(&guide, &Stage::new());
    if std::env::var("INSTA_UPDATE").is_ok_and(|how| how == "always") {
        if redacted(&made) != redacted(&guide) {
            std::fs::write(&path, made).unwrap();
        }
        return;
    }
    require_same(&redacted(&guide), &redacted(&made));
}

/// Fails at the first line that differs.
fn require_same(expected: &str, found: &str) {
    for (number, (one, other)) in (1..).zip(expected.lines().zip(found.lines())) {
        assert_eq!(
            one, other,
            "line {number}; `make golden` accepts what is new"
        );
    }
    assert_eq!(expected.lines().count(), found.lines().count(), "{found}");
}
