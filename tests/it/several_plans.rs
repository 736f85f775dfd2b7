//! Plans and restores where each of several repositories has only a part: none is taken for the whole, and the restored server has the rows.

use std::path::{Path, PathBuf};

use crate::common::{Cluster, Program, Run, Stop, list_of, wait_until};
use crate::several::{Two, flip, is_segment, objects, transfer};

/// Rows before the first mark, and between two.
const ROWS: u32 = 1000;

/// Two repositories that both have everything, and what they had when each thousand of rows was in.
struct Marked {
    two: Two,
    /// The segments that were archived by then, and the server's clock.
    marks: Vec<(Vec<String>, String)>,
}

fn segments(repository: &Path) -> Vec<String> {
    let names = objects(repository).into_keys();
    names.filter(|n| is_segment(n)).collect()
}

impl Marked {
    /// The backup lies in the first repository alone.
    fn new() -> Marked {
        let two = Two::new();
        two.work(ROWS);
        two.backup();
        let mut marked = Marked {
            two,
            marks: Vec::new(),
        };
        (0..4).for_each(|_| marked.mark());
        marked
    }

    fn mark(&mut self) {
        self.two.work(ROWS);
        let clock = self.two.cluster.value("select clock_timestamp()");
        self.marks.push((segments(self.first()), clock));
    }

    fn first(&self) -> &Path {
        self.two.site.repository()
    }

    /// Both get what the other has, and the server goes.
    fn finish(&mut self) {
        self.two.cluster.stop(Stop::Fast);
        self.two.sync().succeed();
    }

    /// Takes the segments out of the first repository that came after a mark.
    fn stale_since(&self, mark: usize) -> usize {
        let kept = &self.marks[mark].0;
        let newer = segments(self.first());
        let newer = newer.iter().filter(|n| !kept.contains(n));
        newer
            .map(|n| std::fs::remove_file(self.first().join(n)).unwrap())
            .count()
    }

    fn plan(&self) -> Program {
        self.two.site.pitr().words("plan --json")
    }

    fn to(&self) -> PathBuf {
        self.two.site.sandbox().join("copy")
    }

    fn restore(&self) -> Program {
        let _ = std::fs::remove_dir_all(self.to());
        self.two.site.pitr().restore_to(self.to())
    }

    /// Starts the copy, and counts its rows once it is promoted.
    fn rows(&self) -> u32 {
        let mut copy = Cluster::open(17, self.to()).without_fsync().promoted();
        let rows = copy.value("select count(*) from ledger");
        copy.stop(Stop::Immediate);
        rows.parse().unwrap()
    }
}

fn repository(run: &Run) -> String {
    run.json()["repository"].as_str().unwrap().to_owned()
}

fn run_id(run: &Run) -> String {
    run.json()["backup"]["id"].as_str().unwrap().to_owned()
}

fn remove_roots(repository: &Path) {
    let roots = objects(repository).into_keys();
    let roots: Vec<String> = roots.filter(|n| n.ends_with("/manifest")).collect();
    assert!(!roots.is_empty());
    for root in roots {
        std::fs::remove_file(repository.join(root)).unwrap();
    }
}

#[test]
fn the_end_of_a_stale_repository_is_not_taken_for_the_end_of_the_wal() {
    let mut marked = Marked::new();
    marked.finish();
    let whole = marked.plan().succeed();
    assert_eq!(repository(&whole), marked.first().display().to_string());
    assert!(!whole.stderr.contains("second"), "{whole}");
    assert!(marked.stale_since(1) >= 2);

    // Without a target.
    let run = marked.plan().succeed();
    let run = run.expect_stderr("the WAL of \"second\" is used, which ends at");
    assert_eq!(repository(&run), marked.two.second.display().to_string());
    let giving = run.json()["backup_repository"].clone();
    assert_eq!(giving, marked.first().display().to_string(), "{run}");
    assert_eq!(run.json()["stop"], whole.json()["stop"], "{run}");
    let run = marked.restore().succeed();
    run.expect_stderr("the WAL of \"second\" is used, which ends at");
    assert_eq!(marked.rows(), 5 * ROWS);

    // The transaction behind the target time is in the second alone, and so is the last before it.
    let at = ["--target-time", &marked.marks[2].1];
    let run = marked.plan().args(at).succeed();
    assert_eq!(run.json()["outcome"], "stops_at_target", "{run}");
    let only = ["--repository", &marked.two.first()];
    let run = marked.plan().args(at).args(only).exits(5);
    assert_eq!(run.json()["reason"], "after_end", "{run}");
    let run = marked.plan().args(at).args(only).arg("--allow-end").run();
    assert_eq!(run.success().json()["outcome"], "end_of_wal");
    let run = marked.restore().args(at).succeed();
    run.expect_stderr("the WAL of \"second\" is used, which leads to the target");
    assert_eq!(marked.rows(), 4 * ROWS);

    // The second has no backup: its WAL counts all the same.
    remove_roots(&marked.two.second);
    marked.restore().succeed();
    assert_eq!(marked.rows(), 5 * ROWS);

    // Away, it may have more, and the plan warns of that.
    marked.two.is_away(true);
    let away = "repository \"second\" could not be asked, and it may have WAL behind the end";
    let run = marked.plan().succeed().expect_stderr(away);
    assert_eq!(run.json()["unasked"][0], "second", "{run}");
    marked.restore().succeed().expect_stderr(away);
    assert_eq!(marked.rows(), 3 * ROWS);
    let run = marked.plan().args(only).succeed();
    assert!(!run.stderr.contains("second"), "{run}");
    assert_eq!(run.json()["unasked"].as_array().unwrap().len(), 0, "{run}");
}

#[test]
fn the_wal_of_the_first_and_the_backup_of_the_second_make_one_plan() {
    let mut marked = Marked::new();
    marked.finish();
    remove_roots(marked.first());
    let kept = &marked.marks[1].0;
    let newer = segments(&marked.two.second).into_iter();
    let newer: Vec<String> = newer.filter(|n| !kept.contains(n)).collect();
    assert!(newer.len() >= 2);
    for name in newer {
        std::fs::remove_file(marked.two.second.join(name)).unwrap();
    }
    let run = marked.restore().succeed();
    run.expect_stderr("that of \"second\" is used");
    assert_eq!(marked.rows(), 5 * ROWS);

    // Asked for by its name it is found there, too; where that cannot be asked, nobody says that it does not exist.
    let id = run_id(&marked.plan().succeed());
    let by_name = || marked.plan().args(["--backup", &id]).run();
    assert_eq!(run_id(&by_name().success()), id);
    marked.two.is_away(true);
    let run = by_name().expect_code(9);
    let message = run.json()["message"].to_string();
    assert!(message.contains("could not be asked"), "{run}");
    marked.two.is_away(false);
    let other = "20260101T000000Z-full";
    let run = marked.plan().args(["--backup", other]).run();
    let message = run.expect_code(2).json()["message"].to_string();
    assert!(message.contains("does not exist"), "{message}");

    // Begun and taken up again, the WAL is looked at where it was planned.
    let packs = objects(&marked.two.second);
    let packs = packs.iter().filter(|(name, _)| name.contains("/packs/"));
    for (name, whole) in packs.clone() {
        std::fs::remove_file(marked.first().join(name)).unwrap();
        let mut bad = whole.clone();
        bad[whole.len() / 2] ^= 0x10;
        std::fs::write(marked.two.second.join(name), bad).unwrap();
    }
    marked.restore().exits(4);
    for (name, whole) in packs {
        std::fs::write(marked.two.second.join(name), whole).unwrap();
    }
    let resume = || {
        let program = marked.two.site.pitr().words("restore --to");
        program.arg(marked.to()).run()
    };
    let last = marked.first().join(marked.marks[3].0.last().unwrap());
    let whole = std::fs::read(&last).unwrap();
    std::fs::write(&last, &whole[..whole.len() - 1]).unwrap();
    resume().expect_code(5).expect_stderr("is damaged since");
    std::fs::write(&last, whole).unwrap();
    resume().success().expect_stderr("resuming");
    assert_eq!(marked.rows(), 5 * ROWS);
}

#[test]
fn r208_a_restore_is_not_taken_up_without_the_wal_that_tells_what_recovery_makes() {
    let mut marked = Marked::new();
    marked.finish();
    remove_roots(marked.first());
    let kept = &marked.marks[1].0;
    let all: Vec<(String, Vec<u8>)> = objects(&marked.two.second).into_iter().collect();
    let is_newer = |name: &String| is_segment(name) && !kept.contains(name);
    let newer = all.iter().filter(|(name, _)| is_newer(name));
    let newer: Vec<(String, Vec<u8>)> = newer.cloned().collect();
    for (name, _) in &newer {
        std::fs::remove_file(marked.two.second.join(name)).unwrap();
    }
    let packs = all.into_iter();
    let packs = packs.filter(|(name, _)| name.contains("/packs/"));
    let packs: Vec<(String, Vec<u8>)> = packs.collect();
    for (name, whole) in &packs {
        std::fs::remove_file(marked.first().join(name)).unwrap();
        let mut bad = whole.clone();
        bad[whole.len() / 2] ^= 0x10;
        std::fs::write(marked.two.second.join(name), bad).unwrap();
    }
    marked.restore().exits(4);
    for (name, whole) in &packs {
        std::fs::write(marked.two.second.join(name), whole).unwrap();
    }
    let resume = || {
        let program = marked.two.site.pitr().words("restore --to");
        program.arg(marked.to()).run()
    };
    let away = marked.first().with_extension("away");
    std::fs::rename(marked.first(), &away).unwrap();
    let refused = resume().expect_code(9);
    refused.expect_stderr("restore anew into an empty directory");
    // Another repository that has all of it serves.
    for (name, whole) in &newer {
        std::fs::write(marked.two.second.join(name), whole).unwrap();
    }
    resume().success().expect_stderr("resuming");
    std::fs::rename(&away, marked.first()).unwrap();
    assert_eq!(marked.rows(), 5 * ROWS);
}

#[test]
fn a_timeline_that_only_another_repository_knows_is_the_latest() {
    let mut marked = Marked::new();
    let fetch = marked.two.site.restore().words("%f %p").shell();
    let cluster = &mut marked.two.cluster;
    cluster.append_config("restore_command", &fetch);
    cluster.stop(Stop::Fast);
    cluster.touch("standby.signal");
    cluster.start();
    cluster.promote();
    let before = marked.marks[3].1.clone();
    marked.mark();
    let history = marked.two.site.object("00000002.history");
    wait_until("the history is archived", || history.exists());
    marked.finish();
    let all = marked.plan().succeed();
    assert_eq!(all.json()["target_timeline"], 2, "{all}");
    let ours = objects(marked.first()).into_keys();
    for name in ours.filter(|n| n.contains("/wal/00000002/")) {
        std::fs::remove_file(marked.first().join(name)).unwrap();
    }
    let run = marked.plan().succeed();
    assert_eq!(run.json()["target_timeline"], 2, "{run}");
    assert_eq!(run.json()["stop"], all.json()["stop"], "{run}");
    marked.restore().succeed().expect_stderr("on timeline 2");
    assert_eq!(marked.rows(), 6 * ROWS);
    // Which timeline is the latest is another question where recovery stops at the target, too.
    let early = marked.marks[0].1.clone();
    let at = ["--target-time", &early];
    let run = marked.plan().args(at).succeed();
    assert_eq!(run.json()["outcome"], "stops_at_target", "{run}");
    assert_eq!(run.json()["target_timeline"], 2, "{run}");
    let one = marked.plan().args(at).words("--target-timeline 1");
    let run = one.succeed();
    assert_eq!(repository(&run), marked.first().display().to_string());
    assert!(!run.stderr.contains("second"), "{run}");
    marked.two.is_away(true);
    let run = marked
        .plan()
        .args(["--target-time", &before, "--allow-end"])
        .succeed();
    run.expect_stderr("\"second\" could not be asked");
}

#[test]
fn holes_at_different_places_are_shown_with_what_brings_both_together() {
    let mut marked = Marked::new();
    marked.finish();
    let new = |mark: usize| {
        let (before, after) = (&marked.marks[mark - 1].0, &marked.marks[mark].0);
        let found = after.iter().find(|n| !before.contains(n));
        found.unwrap().clone()
    };
    let (early, late) = (new(1), new(2));
    std::fs::remove_file(marked.first().join(&early)).unwrap();
    std::fs::remove_file(marked.two.second.join(&late)).unwrap();
    let farthest = "no repository leads there: \"second\" gets farthest";
    let run = marked.plan().exits(5).expect_stderr(farthest);
    assert_eq!(repository(&run), marked.two.second.display().to_string());
    let missing = late.rsplit('/').next().unwrap();
    assert_eq!(run.json()["segments_missing"][0], missing, "{run}");
    run.expect_stderr("pitr repo sync");
    let run = marked.restore().exits(5);
    run.expect_stderr(farthest).expect_stderr("pitr repo sync");
    assert!(!marked.to().exists());
    marked.two.sync().succeed();
    let run = marked.restore().succeed();
    assert!(!run.stderr.contains("second"), "{run}");
    assert_eq!(marked.rows(), 5 * ROWS);
    // The first ends, and the second goes on behind that, with a hole before it.
    marked.stale_since(2);
    std::fs::remove_file(marked.two.second.join(&late)).unwrap();
    let run = marked.plan().exits(5);
    assert_eq!(repository(&run), marked.first().display().to_string());
    assert_eq!(run.json()["reason"], "gap", "{run}");
    assert!(run.json()["nearest_before"]["xid"].is_u64(), "{run}");
    let run = marked.restore().exits(5);
    run.expect_stderr("there is WAL in \"second\"")
        .expect_stderr("pitr repo sync");
    assert!(!marked.to().exists());
    // Whoever names one repository gets what it leads to.
    let only = ["--repository", &marked.two.first()];
    let run = marked.plan().args(only).succeed();
    assert_eq!(run.json()["outcome"], "end_of_wal", "{run}");
    let early = marked.marks[0].1.clone();
    let run = marked.plan().args(["--target-time", &early]).run();
    assert_eq!(run.success().json()["outcome"], "stops_at_target");
    marked.two.sync().succeed();
    marked.restore().succeed();
    assert_eq!(marked.rows(), 5 * ROWS);
}

#[test]
fn a_damaged_copy_that_another_repository_has_whole_is_named_by_sync() {
    let mut marked = Marked::new();
    marked.finish();
    let (two, first) = (&marked.two, marked.two.first());
    let segment = segments(marked.first()).into_iter().rev().nth(2).unwrap();
    let whole = std::fs::read(two.second.join(&segment)).unwrap();
    flip(marked.first(), &segment);
    let verify = || {
        let verify = two.site.pitr().words("verify --quiet");
        verify.args(["--repository", &first]).run()
    };
    two.sync().succeed();
    verify().expect_code(4);
    let run = two.sync().exits(10);
    let left = &transfer(&run, &first)["left_out"][0];
    assert_eq!(left["damaged"], true, "{run}");
    let name = segment.rsplit('/').next().unwrap();
    assert_eq!(left["what"], format!("segment {name}"), "{run}");
    let why = left["why"].to_string();
    assert!(why.contains(&segment) && why.contains("by hand"), "{run}");
    assert!(list_of(&transfer(&run, "second")["left_out"]).is_empty());
    let shown = two.site.pitr().words("repo sync").run();
    shown.expect_code(10).expect_stderr(name);
    // As it says.
    std::fs::remove_file(marked.first().join(&segment)).unwrap();
    two.sync().succeed();
    assert!(std::fs::read(marked.first().join(&segment)).unwrap() == whole);
    verify().success();
    two.sync().succeed();
}
