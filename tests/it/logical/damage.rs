//! Random damages of a dump: before it is stored, and in the repository. Each level finds what it claims to find.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::world::World;
use crate::common::random::Random;
use crate::common::{Program, copy_tree, newest_bin, paths_below, user};

/// Damages a dump so many times, and as often what is stored of one; says what was found by whom.
pub fn campaign(world: &World, random: &mut Random, count: u64, why: &str) -> String {
    let dump = Dump::taken(world, why);
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    for n in 0..count {
        let (damage, by) = dump.damage(random, &format!("damage {n}, {why}"));
        *found.entry(format!("{damage} found by {by}")).or_default() += 1;
        dump.damage_stored(random, &format!("stored damage {n}, {why}"));
    }
    format!("{found:?}")
}

/// A dump as `pg_dump` wrote it, and the backup of it.
struct Dump<'a> {
    world: &'a World,
    whole: PathBuf,
    id: String,
    packs: PathBuf,
}

impl Dump<'_> {
    /// Takes one while nothing moves. `restore --to` gives it back as `pg_dump` wrote it, byte by byte.
    fn taken<'a>(world: &'a World, why: &str) -> Dump<'a> {
        let whole = world.sandbox.join("whole");
        let bin = world.tampering(&format!("cp -a \"$dir\" {}", whole.display()));
        let bin = bin.to_str().unwrap();
        let run = world
            .logical(&["backup", "app", "--json", "--bin", bin])
            .run();
        assert!(run.is_success(), "{run}\n{why}");
        let (id, oid) = (
            run.json()["id"].clone(),
            run.json()["logical"]["databases"][0]["oid"].clone(),
        );
        let to = world.sandbox.join("files");
        world
            .logical(&["restore", "app", "--to", to.to_str().unwrap()])
            .succeed();
        let id = id.as_str().unwrap().to_owned();
        let packs = format!("one/aux/logical/app/packs/{id}");
        let dump = Dump {
            world,
            whole,
            id,
            packs: world.sandbox.join(packs),
        };
        dump.assert_is_whole(&to.join(oid.to_string()), why);
        dump
    }

    fn assert_is_whole(&self, found: &Path, why: &str) {
        let diff = Program::new("diff").arg("-r").arg(&self.whole).arg(found);
        assert!(diff.privileged().run().is_success(), "{why}");
    }

    /// Damages the dump before it is stored; returns what was done, and the level that found it.
    fn damage(&self, random: &mut Random, why: &str) -> (&'static str, &'static str) {
        let world = self.world;
        let damaged = world.sandbox.join("damaged");
        let _ = std::fs::remove_dir_all(&damaged);
        copy_tree(&self.whole, &damaged);
        let before = Facts::of(world, &damaged);
        let (what, file) = change(random, &damaged, &before.tables);
        user::own_all(&damaged);
        let why = format!("{what} of {file:?}, {why}");
        let after = Facts::of(world, &damaged);
        let bin = world.tampering(&format!(
            "rm -r \"$dir\"; cp -a {} \"$dir\"",
            damaged.display()
        ));
        let run = world
            .logical(&["backup", "app", "--json", "--bin", bin.to_str().unwrap()])
            .run();
        if !run.is_success() {
            assert!(
                run.code() == 1 && run.stdout.contains("is not whole"),
                "{run}\n{why}"
            );
            return (what, "backup");
        }
        assert!(
            after.is_whole && before.rows() == after.rows(),
            "{what} is not found by a backup: {run}\n{why}"
        );
        let id = run.id();
        for level in ["--list", "--read"] {
            let run = world
                .logical(&["check", "app", level, "--backup", &id])
                .run();
            assert!(run.is_success(), "{run}\n{why}");
        }
        let is_taken = self.is_taken(&damaged);
        let run = world
            .logical(&["check", "app", "--restore", "--backup", &id])
            .run();
        assert_eq!(run.code(), if is_taken { 0 } else { 4 }, "{run}\n{why}");
        (
            what,
            if is_taken {
                "nobody: it is valid"
            } else {
                "check --restore"
            },
        )
    }

    /// Whether a server takes a dump: `pg_restore` is asked directly.
    fn is_taken(&self, damaged: &Path) -> bool {
        let world = self.world;
        drop(world.database("taken"));
        let run = Program::new(newest_bin(world.cluster.major(), "pg_restore"))
            .words("--exit-on-error --no-subscriptions --no-tablespaces --dbname")
            .arg(world.cluster.conninfo("taken"))
            .arg(damaged)
            .run();
        world.cluster.sql("drop database taken");
        run.is_success()
    }

    /// Damages the repository, and lets a random reader find it.
    fn damage_stored(&self, random: &mut Random, why: &str) {
        let world = self.world;
        let packs = paths_below(&self.packs);
        let pack = random.pick(&packs);
        let whole = std::fs::read(pack).unwrap();
        let mut bytes = whole.clone();
        let at = random.below(bytes.len());
        std::fs::remove_file(pack).unwrap();
        let what = random.below(4);
        match what {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            _ => bytes[at..].iter_mut().take(5000).for_each(|b| *b = !*b),
        }
        if what < 3 {
            std::fs::write(pack, &bytes).unwrap();
            user::own(pack);
        }
        let to = world.sandbox.join("nowhere");
        let commands: [&[&str]; 5] = [
            &["logical", "check", "app", "--list", "--backup", &self.id],
            &["logical", "check", "app", "--read", "--backup", &self.id],
            &["logical", "check", "app", "--restore", "--backup", &self.id],
            &[
                "logical",
                "restore",
                "app",
                "--backup",
                &self.id,
                "--to",
                to.to_str().unwrap(),
            ],
            &["verify"],
        ];
        let command = *random.pick(&commands);
        let run = world.pitr(command).run();
        let why = format!("{what} at {at} of {pack:?}: {run}\n{why}");
        let is_verify = command == ["verify"];
        if what == 1 && run.is_success() && !is_verify {
            // Readers of dumps do not read the list of a pack's frames.
            if to.exists() {
                let dumps = std::fs::read_dir(&to).unwrap();
                let dumps: Vec<PathBuf> = dumps.map(|e| e.unwrap().path()).collect();
                assert_eq!(dumps.len(), 1, "{why}");
                self.assert_is_whole(&dumps[0], &why);
            }
            let verify = world.pitr(&["verify"]).run();
            assert_eq!(verify.code(), 4, "{verify}\n{why}");
        } else {
            let expected = if command.contains(&"restore") { 1 } else { 4 };
            assert_eq!(run.code(), expected, "{why}");
        }
        let _ = std::fs::remove_dir_all(&to);
        let _ = std::fs::remove_file(pack);
        std::fs::write(pack, &whole).unwrap();
        user::own(pack);
    }
}

/// The facts of a dump that a read check looks at, found without it.
struct Facts {
    /// Whether `pg_restore` can read all of it.
    is_whole: bool,
    /// Data files of tables.
    tables: Vec<PathBuf>,
    /// Rows, by the entry of the contents; none where the file does not end as it should. Bytes of large objects.
    files: BTreeMap<String, Option<u64>>,
}

impl Facts {
    fn of(world: &World, dump: &Path) -> Facts {
        let restore = Program::new(newest_bin(world.cluster.major(), "pg_restore"));
        let list = restore.clone().arg("--list").arg(dump).run();
        let read = restore.words("-f /dev/null").arg(dump).run();
        let mut tables = Vec::new();
        let mut files = BTreeMap::new();
        for line in list.stdout.lines().filter(|l| l.contains(" TABLE DATA ")) {
            let (id, entry) = line.split_once(';').unwrap();
            let path = dump.join(format!("{id}.dat"));
            let bytes = std::fs::read(&path).unwrap_or_default();
            let text = bytes.strip_suffix(b"\\.\n\n\n");
            let text = text.filter(|t| t.is_empty() || t.ends_with(b"\n"));
            files.insert(
                // By the OID: a changed name is for the server to refuse.
                entry.split_whitespace().nth(1).unwrap().to_owned(),
                text.map(|t| t.iter().filter(|b| **b == b'\n').count() as u64),
            );
            tables.push(path);
        }
        for list in std::fs::read_dir(dump).unwrap().map(|e| e.unwrap().path()) {
            let name = list.file_name().unwrap().to_str().unwrap();
            if !(name.starts_with("blobs") && name.ends_with(".toc")) {
                continue;
            }
            for line in String::from_utf8_lossy(&std::fs::read(&list).unwrap()).lines() {
                let file = line.split(' ').nth(1).map(|file| dump.join(file));
                let size = file
                    .and_then(|file| std::fs::metadata(file).ok())
                    .map(|m| m.len());
                files.insert(line.to_owned(), size);
            }
        }
        Facts {
            is_whole: list.is_success() && read.is_success(),
            tables,
            files,
        }
    }

    fn rows(&self) -> (&BTreeMap<String, Option<u64>>, bool) {
        (&self.files, self.files.values().all(Option::is_some))
    }
}

/// Changes one file, and returns how.
fn change(random: &mut Random, dump: &Path, tables: &[PathBuf]) -> (&'static str, PathBuf) {
    let all = paths_below(dump);
    let of = |is_meant: fn(&str) -> bool| -> Vec<PathBuf> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        all.iter().filter(|p| is_meant(&name(p))).cloned().collect()
    };
    let size = |path: &&PathBuf| std::fs::metadata(path).unwrap().len();
    let objects = of(|name| name.starts_with("blob_"));
    let objects: Vec<PathBuf> = objects.iter().filter(|p| size(p) > 0).cloned().collect();
    let lists = of(|name| name.starts_with("blobs"));
    let filled: Vec<PathBuf> = tables.iter().filter(|p| size(p) > 40).cloned().collect();
    let (what, file) = match random.below(12) {
        0 => ("loss", random.pick(&all)),
        1 => ("cut", random.pick(tables)),
        2 => ("cut of the contents", &dump.join("toc.dat")),
        3 | 4 => ("change of the contents", &dump.join("toc.dat")),
        5 | 6 => ("change of a table", random.pick(&filled)),
        7 => ("loss of a row", random.pick(&filled)),
        8 => ("growth", random.pick(tables)),
        9 => ("exchange", random.pick(&filled)),
        10 => ("cut of a large object", random.pick(&objects)),
        _ => ("loss of a large object", random.pick(&lists)),
    };
    let file = file.clone();
    let mut bytes = std::fs::read(&file).unwrap();
    let at = random.below(bytes.len());
    match what {
        "loss" => {
            std::fs::remove_file(&file).unwrap();
            return (what, file);
        }
        "exchange" => {
            let other = random.pick(&filled);
            let theirs = std::fs::read(other).unwrap();
            std::fs::write(other, &bytes).unwrap();
            bytes = theirs;
        }
        "growth" => bytes.push(b'\n'),
        "loss of a row" | "loss of a large object" => {
            let end = bytes.iter().position(|b| *b == b'\n').unwrap();
            bytes.drain(..=end);
        }
        _ if what.starts_with("cut") => bytes.truncate(at),
        _ => bytes[at] ^= 1 << random.below(8),
    }
    std::fs::write(&file, bytes).unwrap();
    (what, file)
}
