//! The campaign of files: a random history of a directory, in which each backup has what was there, in every attribute. Runs are killed, disks
//! are full, a program writes into what is read, and expiry takes old backups away.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::tree::{Changes, Seen, Tree, as_text, describe, seen_by_user};
use super::{World, id, is_same};
use crate::common::mount::SmallDisk;
use crate::common::random::Random;
use crate::common::{Program, Run, Sandbox, expire_at_once, user};
use crate::require_root;

/// Steps of the random history, where `PITR_FILES_STEPS` does not say how many.
const STEPS: u64 = 60;
/// A campaign of so many steps meets each fault.
const LONG: u64 = 1000;
/// A backup is taken after so many steps.
const STEPS_TO_BACKUP: u64 = 4;
/// The name of a file that a program writes while it is read.
const BUSY: &str = "busy";
const ROOM: u64 = 4 << 30;

#[test]
fn whatever_happens_in_a_directory_each_backup_gives_it_back() {
    Campaign::new(false).run();
}

/// A user without rights backs up what it may read. The entries that it restores by itself belong to it.
#[test]
fn whatever_happens_a_user_without_rights_gets_back_what_it_may_read() {
    require_root!("whatever_happens_a_user_without_rights_gets_back_what_it_may_read");
    Campaign::new(true).run();
}

struct Taken {
    id: String,
    /// Entries are missing that could not be read, or one changed meanwhile.
    is_partial: bool,
    /// The entries that root gets back.
    whole: Tree,
    /// The entries that the user gets back, where there is one.
    own: Option<Tree>,
}

/// Numbers of what happened.
#[derive(Debug, Default)]
struct Tally {
    backups: usize,
    killed: usize,
    full: usize,
    expired: usize,
    unstable: usize,
    closed: u64,
}

struct Campaign {
    world: World,
    changes: Changes,
    seed: u64,
    is_user: bool,
    /// The disk of the repository, which gets full; for root alone.
    disk: Option<SmallDisk>,
    taken: Vec<Taken>,
    done: Vec<&'static str>,
    tally: Tally,
}

/// The source at a moment.
struct Moment {
    all: Tree,
    /// The part of the user without rights.
    seen: Option<Seen>,
}

impl Campaign {
    fn new(is_user: bool) -> Campaign {
        let seed = std::env::var("PITR_FILES_SEED").ok();
        let seed: u64 = seed.map_or_else(|| std::process::id().into(), |s| s.parse().unwrap());
        // In memory every file is read each time.
        let sandbox = match seed / 2 % 2 {
            0 => Sandbox::on_disk("files"),
            _ => Sandbox::new("files"),
        };
        let disk = user::is_root().then(|| SmallDisk::new(4000, 500_000));
        let repository = match &disk {
            Some(disk) => disk.path().join("repo"),
            None => sandbox.join("repo"),
        };
        let world = match seed % 2 {
            0 => World::with(&repository, sandbox, "", ""),
            _ => World::sealed_on(&repository, sandbox),
        };
        let mut changes = Changes::new(world.source(), seed);
        changes.may_close_root = !is_user;
        Campaign {
            world,
            changes,
            seed,
            is_user,
            disk,
            taken: Vec::new(),
            done: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn run(mut self) {
        let steps = std::env::var("PITR_FILES_STEPS").ok();
        let steps: u64 = steps.map_or(STEPS, |s| s.parse().unwrap());
        println!("files campaign, PITR_FILES_SEED={}", self.seed);
        for step in 1..=steps {
            self.done.push(self.changes.step());
            if step % STEPS_TO_BACKUP == 0 {
                self.round();
            }
        }
        println!("files campaign, seed {}: {:?}", self.seed, self.tally);
        // By chance a short one may lack any of them.
        if steps >= LONG {
            let tally = &self.tally;
            let has_all = tally.killed > 0
                && tally.expired > 0
                && (tally.full > 0 || self.disk.is_none())
                && (tally.closed > 0 || !self.is_user);
            assert!(has_all, "PITR_FILES_SEED={}: {tally:?}", self.seed);
        }
        self.world.pitr(&["verify"]).succeed();
    }

    fn why(&self) -> String {
        let last = self.done.len().saturating_sub(20);
        format!(
            "PITR_FILES_SEED={}, step {}, as a user {}: … {:?}",
            self.seed,
            self.done.len(),
            self.is_user,
            &self.done[last..]
        )
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.changes.random.one_in(n)
    }

    fn round(&mut self) {
        let is = self.moment();
        if self.one_in(4) {
            self.kill_one();
        }
        if self.one_in(5) {
            self.take_without_room(&is);
        }
        match self.one_in(6) {
            true => self.take_while_written(),
            false => {
                let run = self.backup().run();
                self.took(&run, &is, 0);
            }
        }
        self.give_back(self.taken.len() - 1);
        let any = self.changes.random.below(self.taken.len());
        self.give_back(any);
        if self.one_in(8) {
            self.expire();
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            all: without_busy(describe(&self.world.source())),
            seen: self.is_user.then(|| {
                let mut seen = seen_by_user(&self.world.source());
                seen.entries.remove(Path::new(BUSY));
                seen
            }),
        }
    }

    fn backup(&self) -> Program {
        let words = ["files", "backup", "up", "--json"];
        match self.is_user {
            true => self.world.as_user(&words).env("PITR_FAULT_SECONDS", "0"),
            false => self.world.pitr(&words),
        }
    }

    /// Checks what a run says of itself, and notes its backup.
    fn took(&mut self, run: &Run, is: &Moment, unstable: u64) -> Value {
        let why = self.why();
        assert!([0, 6].contains(&run.code()), "{why}: {run}");
        let backup = run.json();
        let closed = is.seen.as_ref().map_or(0, |seen| seen.closed);
        assert_eq!(backup["left_out"]["count"], closed, "{why}: {run}");
        assert!(
            backup["unstable_count"].as_u64() <= Some(unstable),
            "{why}: {run}"
        );
        let is_partial = closed > 0 || backup["unstable_count"] != 0;
        // A source that lost its last file is a warning, too.
        assert!(
            (run.code() == 6) == is_partial || backup["file_count"] == 0,
            "{why}: {run}"
        );
        let (whole, own) = match &is.seen {
            None => (is.all.clone(), None),
            Some(seen) => (as_text(&seen.entries), Some(made_by_user(seen))),
        };
        self.taken.push(Taken {
            id: id(&backup).to_owned(),
            is_partial,
            whole,
            own,
        });
        self.tally.backups += 1;
        self.tally.closed += closed;
        let now = describe(&self.world.source());
        is_same(&without_busy(now), &is.all, &format!("the source, {why}"));
        backup
    }

    fn kill_one(&mut self) {
        let running = self.backup().spawn();
        let wait = self.changes.random.below(200) as u64;
        std::thread::sleep(Duration::from_millis(wait));
        running.signal(Signal::KILL);
        let is_killed = ![0, 6].contains(&running.wait().code());
        self.tally.killed += usize::from(is_killed);
    }

    /// The repository's disk has little room or none. Whatever a run leaves there, a root has all that it claims.
    fn take_without_room(&mut self, is: &Moment) {
        let Some(disk) = &self.disk else { return };
        let before = self.backups();
        disk.leave_free(self.changes.random.below(100_000) as u64);
        let run = self.backup().run();
        disk.leave_free(ROOM);
        if [0, 6].contains(&run.code()) {
            self.took(&run, is, 0);
            return;
        }
        let run = run.expect_code(1);
        assert!(run.to_string().contains("No space left"), "{run}");
        assert_eq!(self.backups(), before, "{}", self.why());
        self.tally.full += 1;
    }

    fn backups(&self) -> Vec<String> {
        let info = self.world.pitr(&["info", "--json"]).run().json();
        let scopes = info["scopes"].as_array().cloned().unwrap_or_default();
        let all = scopes.iter().flat_map(|s| s["backups"].as_array().unwrap());
        all.map(|backup| id(backup).to_owned()).collect()
    }

    /// A program appends to a file, rewrites and cuts it, all the time. The backup has it as it was at one moment, or marks it.
    fn take_while_written(&mut self) {
        let file = self.world.source().join(BUSY);
        let length = [20_000, 3 << 20][self.changes.random.below(2)];
        let mut random = self.changes.random.fork();
        let states = Mutex::new(Vec::new());
        let is_over = AtomicBool::new(false);
        let mut content = vec![0; length];
        std::fs::write(&file, &content).unwrap();
        // A restore would tell of another owner.
        user::own(&file);
        states.lock().unwrap().push(blake3::hash(&content));
        let run = std::thread::scope(|threads| {
            threads.spawn(|| {
                let file = std::fs::File::options().write(true).open(&file).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    write_some(&file, &mut content, &mut random);
                    states.lock().unwrap().push(blake3::hash(&content));
                    // Each change has a time of its own.
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let run = self.backup().run();
            is_over.store(true, Ordering::Relaxed);
            run
        });
        let is = self.moment();
        let backup = self.took(&run, &is, 1);
        let cat = ["files", "cat", "up", BUSY, "--backup", id(&backup)];
        let to = self.world.sandbox.join("cat");
        let cat = self
            .world
            .pitr(&cat)
            .command()
            .stdout(std::fs::File::create(&to).unwrap())
            .status();
        assert!(cat.unwrap().success(), "{}", self.why());
        let stored = blake3::hash(&std::fs::read(&to).unwrap());
        if backup["unstable_count"] == 0 {
            assert!(
                states.lock().unwrap().contains(&stored),
                "{}: {run}",
                self.why()
            );
        } else {
            self.tally.unstable += 1;
        }
        std::fs::remove_file(self.world.source().join(BUSY)).unwrap();
    }

    fn give_back(&self, at: usize) {
        let taken = &self.taken[at];
        let why = format!("{}, {}", taken.id, self.why());
        let to = self.world.sandbox.join("back");
        let expected = if taken.is_partial { 6 } else { 0 };
        let restore = ["files", "restore", "up", "--backup", &taken.id, "--to"];
        let run = self.world.pitr(&restore).arg(&to).arg("--privileged").run();
        run.expect_code(expected);
        is_same(&without_busy(describe(&to)), &taken.whole, &why);
        std::fs::remove_dir_all(&to).unwrap();
        let Some(own) = &taken.own else { return };
        // A directory of the user's, in which it makes another one.
        let to = self.world.sandbox.dir("own").join("back");
        let run = self.world.as_user(&restore).arg(&to).run();
        let expected = if taken.is_partial || *own != taken.whole {
            6
        } else {
            0
        };
        let run = run.expect_code(expected);
        is_same(
            &without_busy(describe(&to)),
            own,
            &format!("by the user, {why}: {run}"),
        );
        std::fs::remove_dir_all(&to).unwrap();
    }

    fn expire(&mut self) {
        self.world.pitr(&expire_at_once()).run();
        let left = self.backups();
        let (before, newest) = (
            self.taken.len(),
            self.taken[self.taken.len() - 1].id.clone(),
        );
        self.taken.retain(|taken| left.contains(&taken.id));
        self.tally.expired += before - self.taken.len();
        assert!(left.contains(&newest), "{}", self.why());
    }
}

fn without_busy(mut tree: Tree) -> Tree {
    tree.remove(Path::new(BUSY));
    tree
}

fn made_by_user(seen: &Seen) -> Tree {
    let made = seen.entries.iter().filter_map(|(path, entry)| {
        let made = entry.clone().made_by(user::ids())?;
        Some((path.clone(), made))
    });
    as_text(&made.collect())
}

/// Changes the file by one call of the system, and `content` alike.
fn write_some(file: &std::fs::File, content: &mut Vec<u8>, random: &mut Random) {
    use std::os::unix::fs::FileExt as _;
    let length = content.len();
    let piece = [random.next() as u8; 512];
    match random.below(4) {
        0 => {
            let to = random.below(length + 1);
            content.truncate(to);
            file.set_len(to as u64).unwrap();
        }
        1 => {
            content.extend(piece);
            file.write_all_at(&piece, length as u64).unwrap();
        }
        _ => {
            let at = random.below(length + 1);
            content.resize(length.max(at + piece.len()), 0);
            content[at..at + piece.len()].copy_from_slice(&piece);
            file.write_all_at(&piece, at as u64).unwrap();
        }
    }
}
