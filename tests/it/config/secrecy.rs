//! A corpus of planted secrets, backed up whole: nobody without the secrets pair sees one of them, anywhere and at any time.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::World;
use super::corpus;
use crate::common::fault::{self, Fault};
use crate::common::{Program, Run, files_below, paths_below};
use crate::require_strace;

/// Shorter secrets may stand in other files by chance.
const LENGTH_MIN: usize = 8;

/// Planted secrets, found in bytes by their first ones.
struct Planted {
    forms: HashMap<[u8; LENGTH_MIN], Vec<Vec<u8>>>,
    /// The first two bytes of each: most places are left at once.
    heads: Vec<bool>,
}

fn head(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

impl Planted {
    fn new(values: &[String]) -> Planted {
        let (mut forms, mut heads) = (HashMap::<_, Vec<_>>::new(), vec![false; 1 << 16]);
        for form in values.iter().flat_map(|value| super::forms(value)) {
            heads[head(&form)] = true;
            let first: [u8; LENGTH_MIN] = form[..LENGTH_MIN].try_into().unwrap();
            forms.entry(first).or_default().push(form);
        }
        Planted { forms, heads }
    }

    fn first_in<'a>(&'a self, bytes: &[u8]) -> Option<&'a [u8]> {
        for (at, first) in bytes.windows(LENGTH_MIN).enumerate() {
            if !self.heads[head(first)] {
                continue;
            }
            let Some(forms) = self.forms.get(first) else {
                continue;
            };
            if let Some(form) = forms.iter().find(|form| bytes[at..].starts_with(form)) {
                return Some(form);
            }
        }
        None
    }

    fn absent(&self, bytes: &[u8], place: &str) {
        if let Some(form) = self.first_in(bytes) {
            panic!("{place} shows {}", String::from_utf8_lossy(form));
        }
    }

    fn absent_below(&self, folder: &Path) {
        for path in paths_below(folder).iter().filter(|p| p.is_file()) {
            self.absent(
                &std::fs::read(path).unwrap_or_default(),
                &path.display().to_string(),
            );
            self.absent(path.as_os_str().as_encoded_bytes(), "a name");
        }
    }

    /// Runs a command, and looks through all that it prints.
    fn absent_in(&self, program: &Program) -> Run {
        let run = program.run();
        self.absent(run.stdout.as_bytes(), &run.line);
        self.absent(run.stderr.as_bytes(), &run.line);
        run
    }
}

/// Copies the corpus to the host's directory; its annotations stay behind. Returns the secrets that the recogniser hides in every place.
fn planted(world: &World) -> Vec<String> {
    let corpus = corpus::folder();
    let host = world.path("host");
    std::fs::remove_dir_all(&host).unwrap();
    Program::new("cp")
        .arg("-r")
        .arg(&corpus)
        .arg(&host)
        .privileged()
        .succeed();
    std::fs::remove_file(host.join("annotations.jsonl")).unwrap();
    std::fs::remove_file(host.join("hosts/annotations.jsonl")).unwrap();
    let mut secrets = corpus::hidden(&corpus);
    secrets.extend(corpus::hidden(&corpus.join("hosts")));
    // A plain word or a number may stand anywhere, and is hidden under its key alone.
    let is_plain = |value: &String| {
        let all = |is: fn(&u8) -> bool| value.as_bytes().iter().all(is);
        all(u8::is_ascii_digit) || all(u8::is_ascii_lowercase)
    };
    secrets.retain(|value| value.len() >= LENGTH_MIN && !is_plain(value));
    secrets.sort();
    secrets.dedup();
    secrets
}

/// The content of each file below.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = files_below(folder).into_iter();
    names
        .map(|name| (name.clone(), std::fs::read(folder.join(name)).unwrap()))
        .collect()
}

/// Lets files of every eighth name exchange their contents, so that their secrets are on lines that changed.
fn exchange(folder: &Path) {
    let mut alike: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in paths_below(folder).into_iter().filter(|p| p.is_file()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        alike.entry(name).or_default().push(path);
    }
    for paths in alike.values().step_by(8) {
        let texts: Vec<_> = paths
            .iter()
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        for (n, text) in texts.iter().enumerate() {
            std::fs::write(&paths[(n + 1) % paths.len()], text).unwrap();
        }
    }
}

/// The memory that a running program has written to. It takes root: the program has closed it to others.
fn memory_of(config: &Path) -> Vec<u8> {
    let is_it = |process: &PathBuf| {
        let line = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        let mut words = line.split('\0');
        words.next().is_some_and(|w| w.ends_with("/pitr")) && words.any(|w| Path::new(w) == config)
    };
    let mut processes = std::fs::read_dir("/proc")
        .unwrap()
        .map(|e| e.unwrap().path());
    let process = processes.find(is_it).expect("the program runs");
    let memory = std::fs::File::open(process.join("mem")).unwrap();
    let mut all = Vec::new();
    for line in std::fs::read_to_string(process.join("maps"))
        .unwrap()
        .lines()
    {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        if rest.starts_with("rw-p") && memory.read_exact_at(&mut bytes, from).is_ok() {
            all.extend(bytes);
        }
    }
    all
}

#[test]
fn q07_no_planted_secret_is_seen_by_anybody_and_all_come_back() {
    require_strace!("q07_no_planted_secret_is_seen_by_anybody_and_all_come_back");
    let world = World::new();
    let secrets = planted(&world);
    assert!(secrets.len() >= 600, "{}", secrets.len());
    let planted = Planted::new(&secrets);
    let (cache, state) = (world.sandbox.dir("cache"), world.sandbox.dir("state"));
    let on = |who: &str, arguments: &[&str]| {
        let program = world.on(who, arguments).env("XDG_CACHE_HOME", &cache);
        program.env("XDG_STATE_HOME", &state).env("HOME", &state)
    };
    let places = [
        world.path("repo"),
        world.path("tmp"),
        cache.clone(),
        state.clone(),
    ];
    let absent_everywhere = || places.iter().for_each(|place| planted.absent_below(place));
    // A look at the files shows them.
    let original: Vec<u8> = contents(&world.path("host"))
        .into_values()
        .flatten()
        .collect();
    assert!(planted.first_in(&original).is_some());

    // Before the first object is there, the program has the secrets in its memory, and nowhere else.
    let backup = on("writer", &["config", "backup", "host"]);
    let meanwhile = || {
        absent_everywhere();
        let is_held = world.is_root
            && planted
                .first_in(&memory_of(&world.path("writer.toml")))
                .is_some();
        assert!(is_held || !world.is_root);
    };
    let run = fault::pause(&backup, "linkat,renameat2", meanwhile).success();
    planted.absent(run.stdout.as_bytes(), "backup");
    planted.absent(run.stderr.as_bytes(), "backup");
    exchange(&world.path("host"));
    let after = contents(&world.path("host"));
    planted
        .absent_in(&on("writer", &["config", "backup", "host", "--json"]))
        .success();

    world.configure(
        "host",
        &[
            "key_file = \"{keys}/ops.key\"",
            "secrets = \"{pair}/secrets.key\"",
        ],
    );
    let host = world.text("host");
    let (file, redacted) = (world.host("001/app.toml"), world.text("redacted"));
    for (who, arguments, code) in [
        ("operator", vec!["config", "show", "host"], 0),
        ("operator", vec!["config", "show", "host", "--json"], 0),
        ("operator", vec!["config", "show", "host", &file], 0),
        ("operator", vec!["config", "diff", "host"], 6),
        ("operator", vec!["config", "diff", "host", "--json"], 6),
        ("writer", vec!["config", "scan", &host], 6),
        (
            "writer",
            vec!["config", "scan", "--set", "host", "--json"],
            6,
        ),
        // The cluster has no backup.
        ("operator", vec!["info"], 1),
        ("operator", vec!["info", "--json"], 1),
        ("operator", vec!["verify"], 0),
        ("operator", vec!["verify", "--json"], 0),
        ("operator", vec!["repo", "show"], 0),
    ] {
        planted.absent_in(&on(who, &arguments)).expect_code(code);
    }
    let arguments = ["config", "restore", "host", "--redacted", "--to", &redacted];
    let run = planted.absent_in(&on("operator", &arguments));
    assert!([0, 6].contains(&run.code()), "{run}");
    planted.absent_below(Path::new(&redacted));
    // Other files of the host than those of the backup.
    exchange(&world.path("host"));
    let live = planted.absent_in(&on("host", &["config", "diff", "host", "--live"]));
    live.expect_code(6).expect_stdout("«sealed:");
    absent_everywhere();

    world.restores("lead", "back", &[]);
    let restored = contents(&world.below("back"));
    assert!(restored.keys().eq(after.keys()));
    for (name, bytes) in &after {
        assert!(restored[name] == *bytes, "{name}");
    }
}

/// A program that is ended by SIGABRT as it enters one of the calls, where the system writes core dumps of any size.
fn aborted(world: &World, program: &Program, calls: &str) -> Vec<String> {
    let folder = world.sandbox.dir("cores");
    let any_size = ["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"];
    let program = program.clone().dir(&folder).under(any_size);
    let (run, fired) = fault::inject(&program, &Fault::signal(calls, "SIGABRT").at(1));
    assert!(fired > 0 && run.code() == 128 + 6, "{fired}: {run}");
    let cores = files_below(&folder);
    std::fs::remove_dir_all(folder).unwrap();
    cores
}

#[test]
fn q07_a_process_that_read_secrets_leaves_no_core() {
    require_strace!("q07_a_process_that_read_secrets_leaves_no_core");
    let world = World::new();
    let backup = || world.on("writer", &["config", "backup", "host"]);
    // A process without secrets leaves one, where the system writes dumps to files at all.
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let cores = aborted(&world, &world.on("stranger", &["--version"]), "write");
    let writes_files = !pattern.starts_with(['|', '/']) && !pattern.trim().is_empty();
    assert_eq!(!cores.is_empty(), writes_files, "{pattern}: {cores:?}");
    assert_eq!(
        aborted(&world, &backup(), "linkat,renameat2"),
        Vec::<String>::new()
    );
    let scan = world.on("writer", &["config", "scan", &world.text("host")]);
    assert_eq!(aborted(&world, &scan, "write"), Vec::<String>::new());
}
