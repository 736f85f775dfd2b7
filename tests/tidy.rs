//! The rules of the house that a machine can check: import direction, who may print, sync and exit, links, tests that run.
//!
//! It reads the sources as text, without comments and strings. `cargo test --test tidy -- --nocapture` also lists long files.

#![allow(clippy::print_stdout, reason = "tests report by printing")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the library, lowest layer first. A module imports from the layers before its own, and from `error`.
const LAYERS: &[&[&str]] = &[
    &[
        "error", "progress", "process", "recent", "release", "durable", "fault", "lock", "text",
        "ticking", "way",
    ],
    &["behalf", "pg", "exit", "seal", "program", "secrets"],
    &["config", "host"],
    &["store", "wire"],
    &["repo", "journal"],
    &["wal", "snapshot"],
    &["archive", "plan", "find", "tree"],
    &["mount"],
    &[
        "command", "receive", "backup", "restore", "expire", "verify", "sync", "logical", "redis",
    ],
    &["operate"],
    &["agent"],
    &["cli"],
];

/// Longer files are listed, not refused.
const LONG_FILE_LINES: usize = 500;

struct Source {
    /// Relative to the root, `src/pg/lsn.rs`.
    path: String,
    /// With comments, strings and character literals blanked; lines stay where they are.
    code: String,
    /// Begin of the unit tests at the end of the file (in bytes of `code`), or its end.
    tests_from: usize,
}

impl Source {
    /// The code without the unit tests.
    fn shipped(&self) -> &str {
        &self.code[..self.tests_from]
    }

    /// `src/pg/lsn.rs` and `src/pg/mod.rs` belong to `pg`, `src/error.rs` to `error`.
    fn module(&self) -> &str {
        let rest = self
            .path
            .strip_prefix("src/")
            .expect("a source of the library");
        rest.split('/')
            .next()
            .unwrap_or(rest)
            .trim_end_matches(".rs")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_under(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files_under(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        files_under(&root().join(folder), "rs", &mut paths);
    }
    paths
        .iter()
        .map(|path| {
            let code = code_only(&fs::read_to_string(path).unwrap());
            Source {
                path: relative(path),
                tests_from: tests_in(&code),
                code,
            }
        })
        .collect()
}

/// Returns where the unit tests at the end of a file begin, or its end. A declaration `mod tests;` stands at the top, and ends nothing.
fn tests_in(code: &str) -> usize {
    let start = "#[cfg(test)]\nmod ";
    let has_body = |at: &usize| {
        let rest = &code[at + start.len()..];
        rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_')
            .starts_with(" {")
    };
    let mut places = code.match_indices(start).map(|(at, _)| at);
    places.find(has_body).unwrap_or(code.len())
}

fn library() -> Vec<Source> {
    let all = sources(&["src"]);
    assert!(all.len() > 5, "the sources of the library were not found");
    all
}

/// Blanks comments, strings and character literals, and keeps the line breaks.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = end_of_text(bytes, at);
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("whole characters were blanked")
}

/// Returns the end of the comment or literal that begins at `at`, or `at` if none does.
fn end_of_text(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let find = |from: usize, what: &[u8]| {
        rest[from..]
            .windows(what.len())
            .position(|window| window == what)
            .map_or(bytes.len(), |i| at + from + i + what.len())
    };
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => find(2, b"\n") - usize::from(find(2, b"\n") < bytes.len()),
        [b'/', b'*', ..] => find(2, b"*/"),
        [b'r', b'"' | b'#', ..] | [b'b', b'r', b'"' | b'#', ..] if !after_word => {
            let start = 1 + usize::from(rest[0] == b'b');
            let hashes = rest[start..].iter().take_while(|b| **b == b'#').count();
            if rest.get(start + hashes) != Some(&b'"') {
                return at; // a raw identifier
            }
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            find(start + hashes + 1, &close)
        }
        [b'"', ..] => {
            let mut i = 1;
            while i < rest.len() && rest[i] != b'"' {
                i += 1 + usize::from(rest[i] == b'\\');
            }
            (at + i + 1).min(bytes.len())
        }
        [b'\'', b'\\', _, ..] => find(3, b"'"),
        // A character, not a lifetime: the quote closes after one character of up to four bytes.
        [b'\'', ..] => (2..=5)
            .find(|&i| {
                rest.get(i) == Some(&b'\'')
                    && std::str::from_utf8(&rest[1..i]).is_ok_and(|s| s.chars().count() == 1)
            })
            .map_or(at, |i| at + i + 1),
        _ => at,
    }
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Returns where `needle` stands in `code`, not as the end of a longer word.
fn find_all<'a>(code: &'a str, needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(needle)
        .map(|(at, _)| at)
        .filter(move |&at| {
            at == 0 || !is_word(needle.as_bytes()[0]) || !is_word(code.as_bytes()[at - 1])
        })
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules named after `crate::`, one or several in braces, with where they stand.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in find_all(code, "crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            let mut first = true; // before the `::` of a path in the group
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 1 && first && (c.is_ascii_alphanumeric() || c == '_') {
                    word.push(c);
                    continue;
                }
                if !word.is_empty() {
                    found.push((at, std::mem::take(&mut word)));
                    first = false;
                }
                if depth == 1 && c == ',' {
                    first = true;
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            let word: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            let is_macro = rest[word.len()..].starts_with('!');
            if !word.is_empty() && !is_macro {
                found.push((at, word));
            }
        }
    }
    found
}

fn fail_if_any(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}\n  {}\n", problems.join("\n  "));
}

/// Every unit of `packaging/systemd` has these. Each says in a comment which ones it cannot have.
const HARDENED: &str = "NoNewPrivileges=yes CapabilityBoundingSet= LimitCORE=0 ProtectSystem=full ProtectHome=read-only \
     ProtectControlGroups=yes ProtectHostname=yes ProtectKernelLogs=yes ProtectKernelModules=yes ProtectKernelTunables=yes \
     RestrictRealtime=yes LockPersonality=yes SystemCallArchitectures=native SystemCallErrorNumber=EPERM";
/// The drill and the agent, whose jobs are drills, fail with these; the other units have them.
const MORE_HARDENED: &str = "RestrictNamespaces=yes MemoryDenyWriteExecute=yes DevicePolicy=closed SystemCallFilter=@system-service \
     RestrictAddressFamilies=AF_UNIX,AF_INET,AF_INET6";

#[test]
fn every_unit_is_hardened() {
    let mut units = Vec::new();
    files_under(&root().join("packaging/systemd"), "service", &mut units);
    assert_eq!(units.len(), 8, "{units:?}");
    for path in units {
        let unit = fs::read_to_string(&path).unwrap();
        let has = |directive: &str| unit.lines().any(|line| line.replace(' ', ",") == directive);
        let is_free = ["agent", "drill"].map(|name| path.ends_with(format!("pitr-{name}.service")));
        let more = match is_free.contains(&true) {
            true => "SystemCallFilter=@system-service,@mount",
            false => MORE_HARDENED,
        };
        for directive in HARDENED.split_whitespace().chain(more.split_whitespace()) {
            assert!(has(directive), "{} lacks {directive}", path.display());
        }
    }
}

#[test]
fn imports_point_only_downward() {
    let mut problems = Vec::new();
    for source in library() {
        let module = source.module();
        if matches!(module, "lib" | "main") {
            continue;
        }
        let Some(own) = layer(module) else {
            problems.push(format!(
                "{}: module \"{module}\" is in no layer of tests/tidy.rs",
                source.path
            ));
            continue;
        };
        for (at, import) in imports(&source.code) {
            // `err` is the macro of `error`, brought in by name.
            let allowed = import == module
                || matches!(import.as_str(), "error" | "err")
                || layer(&import).is_some_and(|other| other < own);
            if !allowed {
                let line = line_of(&source.code, at);
                problems.push(format!(
                    "{}:{line}: \"{module}\" imports \"{import}\"",
                    source.path
                ));
            }
        }
        // `super::` at the top of a module would reach its siblings past the check above.
        let is_top = source.path == format!("src/{module}.rs")
            || source.path == format!("src/{module}/mod.rs");
        let escape = if is_top { "super::" } else { "super::super::" };
        for at in find_all(source.shipped(), escape) {
            let line = line_of(&source.code, at);
            problems.push(format!(
                "{}:{line}: write crate::… instead of {escape}…",
                source.path
            ));
        }
    }
    fail_if_any(
        &problems,
        "a module imports from lower layers only (what two siblings share moves down):",
    );
}

#[test]
fn lib_rs_declares_every_module_of_the_table_once() {
    let lib = code_only(&fs::read_to_string(root().join("src/lib.rs")).unwrap());
    let mut declared: Vec<&str> = find_all(&lib, "mod ")
        .map(|at| {
            lib[at + 4..]
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .next()
                .unwrap()
        })
        .collect();
    let mut table = LAYERS.concat();
    declared.sort_unstable();
    table.sort_unstable();
    assert_eq!(
        declared, table,
        "src/lib.rs declares each module of the layers in tests/tidy.rs once, and no other"
    );
}

fn forbid(sources: &[Source], needles: &[&str], allowed: impl Fn(&str) -> bool, rule: &str) {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|source| !allowed(&source.path)) {
        for needle in needles {
            for at in find_all(source.shipped(), needle) {
                problems.push(format!(
                    "{}:{}: {needle}",
                    source.path,
                    line_of(&source.code, at)
                ));
            }
        }
    }
    fail_if_any(&problems, rule);
}

fn programs_and_library() -> Vec<Source> {
    sources(&["src", "archive-command/src", "restore-command/src"])
}

const ENTRY_POINTS: &[&str] = &[
    "src/main.rs",
    "archive-command/src/main.rs",
    "restore-command/src/main.rs",
];

#[test]
fn only_the_command_line_prints() {
    forbid(
        &programs_and_library(),
        &[
            "println!",
            "eprintln!",
            "print!",
            "eprint!",
            "dbg!",
            "io::stdout(",
            "io::stderr(",
        ],
        |path| {
            path.starts_with("src/cli/")
                || path == "src/cli.rs"
                || ENTRY_POINTS.contains(&path)
                || path.ends_with("_tests.rs")
        },
        "library code reports through Progress or returned values; only src/cli, the entry points and tests print:",
    );
}

#[test]
fn only_durable_syncs_links_and_renames() {
    forbid(
        &programs_and_library(),
        &[
            ".sync_all(",
            ".sync_data(",
            "fsync(",
            "fdatasync(",
            "syncfs(",
            "sync_file_range(",
            "fs::rename(",
            "renameat(",
            "renameat_with(",
            "hard_link(",
            "linkat(",
            "symlinkat(",
            ".persist(",
            ".persist_noclobber(",
        ],
        |path| {
            // A mount hands on what programs ask for.
            let hands_on = path == "src/mount/filesystem.rs" || path == "src/mount/directory.rs";
            // A server syncs and links on the request of its one client.
            let asks = path == "src/store/sftp/session.rs";
            hands_on || asks || path == "src/durable.rs" || path.starts_with("src/durable/")
        },
        "durable means file, name and directory: only src/durable.rs syncs, links and renames:",
    );
}

#[test]
fn only_exit_rs_has_exit_numbers() {
    forbid(
        &programs_and_library(),
        &["process::exit(", "ExitCode::from(", "process::abort("],
        |path| path == "src/exit.rs" || ENTRY_POINTS.contains(&path),
        "exit statuses live in src/exit.rs, and only an entry point leaves with one:",
    );
}

#[test]
fn no_test_is_ignored() {
    let all = sources(&["src", "tests", "archive-command", "restore-command"]);
    let problems: Vec<String> = all
        .iter()
        .filter(|source| source.code.contains("#[ignore"))
        .map(|source| source.path.clone())
        .collect();
    fail_if_any(
        &problems,
        "a test that cannot run is reported by skip!, not ignored:",
    );
}

/// A sentence that begins like this has no named subject.
const WITHOUT_SUBJECT: [&str; 4] = ["What", "Where", "Whose", "Of"];

/// Comments are plain English: each sentence begins with its subject.
#[test]
fn sentences_of_comments_have_a_subject() {
    let mut files = Vec::new();
    for folder in [
        "src",
        "tests",
        "archive-command",
        "restore-command",
        "benches",
        "fuzz",
    ] {
        files_under(&root().join(folder), "rs", &mut files);
    }
    let mut problems = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source can be read");
        for (at, line) in text.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                continue;
            };
            let comment = comment.trim_start_matches(['/', '!']).trim_start();
            let begins = |sentence: &str| {
                let word = sentence.split(' ').next().unwrap_or_default();
                WITHOUT_SUBJECT.contains(&word)
            };
            if begins(comment) || comment.split(". ").skip(1).any(begins) {
                problems.push(format!("{}:{}", relative(&file), at + 1));
            }
        }
    }
    fail_if_any(
        &problems,
        "a sentence of a comment begins with its subject:",
    );
}

/// Rows of the fault matrix without a test of their id: a key of Redis that ends just while it is copied.
const WITHOUT_TEST: [&str; 1] = ["r162"];

/// The ids at the beginning of a test's name: `f06_f18_a_promotion…` carries two.
fn rows_of(name: &str) -> impl Iterator<Item = &str> {
    name.split('_').take_while(|word| {
        let [letter, digits @ ..] = word.as_bytes() else {
            return false;
        };
        let may_be = match digits.len() {
            // A finding: `b3_a_planted_link…`.
            1 => matches!(letter, b'a'..=b'c'),
            2 | 3 => letter.is_ascii_lowercase(),
            _ => false,
        };
        may_be && digits.iter().all(u8::is_ascii_digit)
    })
}

/// The names of all tests, also of those that a macro makes of a function.
fn names_of_tests(code: &str) -> impl Iterator<Item = &str> {
    let starts = ["test]", "per_major!(", "per_server!("];
    let names = move |start: &'static str| {
        find_all(code, start).filter_map(move |at| {
            let rest = &code[at + start.len()..];
            let rest = match start {
                "test]" => rest.split_once("fn ")?.1,
                _ => rest.trim_start(),
            };
            rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .next()
        })
    };
    starts.into_iter().flat_map(names)
}

#[test]
fn every_row_of_the_fault_matrix_has_a_test() {
    let mut found = BTreeSet::new();
    for source in sources(&["src", "tests", "archive-command", "restore-command"]) {
        for name in names_of_tests(&source.code) {
            found.extend(rows_of(name).map(str::to_owned));
        }
    }
    let page = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let explained: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .map(str::to_lowercase)
        .filter(|id| rows_of(id).count() == 1)
        .collect();
    assert!(explained.len() > 700, "the rows were not found");
    // Findings have one digit or two, rows have two.
    let of_finding = |id: &str| match id.as_bytes() {
        [_, b'0', _] => id.replacen('0', "", 1),
        _ => id.to_owned(),
    };
    let tested: BTreeSet<String> = found.iter().map(|id| of_finding(id)).collect();
    let problems: Vec<String> = explained
        .iter()
        .filter(|row| !tested.contains(&of_finding(row)) && !WITHOUT_TEST.contains(&row.as_str()))
        .cloned()
        .collect();
    fail_if_any(
        &problems,
        "no test carries the id of this row at the beginning of its name:",
    );
    let problems: Vec<String> = found
        .into_iter()
        .filter(|id| !explained.contains(id) && !explained.contains(&of_finding(id)))
        .collect();
    fail_if_any(&problems, "docs/faults.md has no row of this id:");
    assert_eq!(rows_of("f06_f18_r100_a_promotion").count(), 3);
    let code = "#[tokio::test]\nasync fn one() {}\nper_major!(\n    two,\n    v17);";
    assert_eq!(names_of_tests(code).collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn every_integration_test_is_compiled() {
    let main = code_only(&fs::read_to_string(root().join("tests/it/main.rs")).unwrap());
    let mut problems = Vec::new();
    for entry in fs::read_dir(root().join("tests/it")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name != "main" && !main.contains(&format!("mod {name};")) {
            problems.push(format!(
                "{}: no \"mod {name};\" in tests/it/main.rs",
                relative(&path)
            ));
        }
    }
    fail_if_any(&problems, "a test that is not compiled does not run:");
}

/// Fuzz targets are a workspace of their own, which is not built with the tests.
#[test]
fn modules_that_fuzz_targets_name_are_there() {
    let targets = sources(&["fuzz/targets"]);
    assert!(targets.len() > 5, "the fuzz targets were not found");
    let mut problems = Vec::new();
    for source in &targets {
        for at in find_all(&source.code, "pitr::") {
            let path = source.code[at + "pitr::".len()..]
                .split(|c: char| {
                    !(c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
                })
                .next()
                .unwrap();
            let modules: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
            if !is_in_library(&modules) {
                let line = line_of(&source.code, at);
                problems.push(format!("{}:{line} pitr::{path}", source.path));
            }
        }
    }
    fail_if_any(&problems, "a fuzz target names what the library has:");
}

/// Whether a path leads to a module, or to an item that the last module on it names.
fn is_in_library(path: &[&str]) -> bool {
    let mut folder = root().join("src");
    let mut file = folder.join("lib.rs");
    for part in path {
        folder.push(part);
        let next = [folder.with_extension("rs"), folder.join("mod.rs")];
        match next.into_iter().find(|next| next.is_file()) {
            Some(next) => file = next,
            None => {
                let code = code_only(&fs::read_to_string(&file).unwrap());
                return ["fn ", "mod ", "::"]
                    .iter()
                    .any(|before| code.contains(&format!("{before}{part}")));
            }
        }
    }
    true
}

#[test]
fn links_of_the_documentation_lead_somewhere() {
    let mut paths: Vec<PathBuf> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    files_under(&root().join("docs"), "md", &mut paths);
    let texts: BTreeMap<PathBuf, String> = paths
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    let mut problems = Vec::new();
    for (path, text) in &texts {
        for (line, target) in links(text) {
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let aim = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap().join(file)
            };
            let is_there = aim.exists();
            let has_anchor = anchor.is_empty()
                || aim.extension().is_none_or(|e| e != "md")
                || fs::read_to_string(&aim).is_ok_and(|text| anchors(&text).contains(anchor));
            if !is_there || !has_anchor {
                problems.push(format!("{}:{line}: {target}", relative(path)));
            }
        }
    }
    fail_if_any(&problems, "links that lead nowhere:");
}

/// Relative link targets with their lines, outside of code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (at, _) in prose.match_indices("](") {
            let target = prose[at + 2..].split([')', ' ']).next().unwrap_or("");
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push((number + 1, target.to_owned()));
            }
        }
    }
    found
}

/// The anchors that GitHub makes of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn long_files_are_listed() {
    for source in sources(&["src", "archive-command", "restore-command", "tests"]) {
        let lines = line_of(&source.code, source.tests_from);
        if lines > LONG_FILE_LINES {
            println!("{}: {lines} lines without its unit tests", source.path);
        }
    }
}

#[test]
fn the_reader_of_sources_sees_code_alone() {
    let text = "let a = \"crate::x \\\" //\"; // crate::y\nlet b = 'c'; let l: &'a str = r#\"crate::\"z\"#; crate::pg::f('\\'');";
    let code = code_only(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(
        imports(&code),
        [(code.find("crate::pg").unwrap(), "pg".to_owned())]
    );
    let grouped = "use crate::{error::{Error, Result}, pg::Lsn, store};";
    let names: Vec<String> = imports(grouped).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["error", "pg", "store"]);
}

/// The policy of `deny.toml` on licences, sources and refused crates, also where cargo-deny is not installed. It alone knows advisories.
#[test]
fn dependencies_keep_the_policy() {
    let text = fs::read_to_string(root().join("deny.toml")).unwrap();
    let policy: toml::Table = text.parse().unwrap();
    let strings = |list: &toml::Value| -> BTreeSet<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|v| v.get("crate").unwrap_or(v).as_str().unwrap().to_owned())
            .collect()
    };
    let allowed = strings(&policy["licenses"]["allow"]);
    let refused = strings(&policy["bans"]["deny"]);
    let mut wrong = Vec::new();
    for target in strings(&policy["graph"]["targets"]) {
        let packages = packages(&target);
        assert!(packages.len() > 100, "{target}: {}", packages.len());
        for package in packages {
            let name = package["name"].as_str().unwrap().to_owned();
            // A member of the workspace has no source.
            if package["source"].is_null() {
                continue;
            }
            if package["source"] != "registry+https://github.com/rust-lang/crates.io-index" {
                wrong.push(format!("{name} comes from {}", package["source"]));
            }
            if refused.contains(&name) {
                wrong.push(format!("{name} is refused by deny.toml"));
            }
            let licence = package["license"].as_str().unwrap_or_default();
            if !is_allowed(licence, &allowed) {
                wrong.push(format!("{name} has licence \"{licence}\""));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Returns the packages built for a target, all features included.
fn packages(target: &str) -> Vec<serde_json::Value> {
    let output = std::process::Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--locked",
            "--all-features",
            "--format-version",
            "1",
        ])
        .args(["--filter-platform", target])
        .current_dir(root())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {error}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let built: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["id"].as_str().unwrap())
        .collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .filter(|p| built.contains(p["id"].as_str().unwrap()))
        .cloned()
        .collect()
}

/// Whether an SPDX expression can be met by allowed licences. `AND` binds more tightly than `OR`; an old `/` means `OR`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    if let Some(open) = expression.rfind('(') {
        let Some(length) = expression[open..].find(')') else {
            return false;
        };
        let inner = is_allowed(&expression[open + 1..open + length], allowed);
        let value = if inner { "true" } else { "false" };
        let flat = [&expression[..open], value, &expression[open + length + 1..]].concat();
        return is_allowed(&flat, allowed);
    }
    expression.replace('/', " OR ").split(" OR ").any(|choice| {
        let mut all = choice.split(" AND ").map(str::trim);
        all.all(|licence| licence == "true" || allowed.contains(licence))
    })
}

#[test]
fn a_licence_is_allowed_when_one_choice_of_its_expression_is() {
    let allowed =
        BTreeSet::from(["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned));
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND ISC", true),
        ("(GPL-3.0 OR ISC) AND MIT", true),
        ("(GPL-3.0 OR LGPL-3.0) AND MIT", false),
        ("GPL-3.0 OR (MIT AND (ISC OR GPL-3.0))", true),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("(MIT", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}
