//! Repositories on a drive that reorders and tears what was not flushed, and on one that lies about flushes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::common::mount::PowerDisk;
use crate::common::random::Random;
use crate::common::{Program, Run, Sandbox, Site, Still, number};
use crate::require_root;
use crate::sealed::Sealed;

/// A stopped cluster whose site is on the disk, all of it durable.
fn still_on(disk: &PowerDisk, segments: usize) -> Still {
    let mut still = Still::new(17, 1, segments);
    still.site = Site::on(&still.cluster, &disk.path().join("repo"));
    settle(disk);
    still
}

fn settle(disk: &PowerDisk) {
    Program::new("sync").arg("-f").arg(disk.path()).succeed();
}

/// Whether the repository has the segment: whole, or else it is absent, and no error.
fn is_there(still: &Still, name: &str) -> bool {
    let run = still.fetch(name).run();
    if run.code() == 1 {
        return false;
    }
    run.success();
    let fetched = still.wal("RECOVERYXLOG");
    let same = std::fs::read(&fetched).unwrap() == std::fs::read(still.wal(name)).unwrap();
    std::fs::remove_file(fetched).unwrap();
    assert!(same, "\"{name}\" comes back with other bytes");
    true
}

#[test]
fn m03_what_was_acknowledged_outlives_reordered_and_torn_writes() {
    require_root!("m03_what_was_acknowledged_outlives_reordered_and_torn_writes");
    const CUTS: usize = 16;
    let seed = number("PITR_TEST_SEED").unwrap_or_else(|| std::process::id().into());
    eprintln!("PITR_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut disk = PowerDisk::recorded(32);
    let still = still_on(&disk, 4);
    let begun = disk.position();
    let push = |name: &String| {
        still.push(name).succeed();
        disk.position()
    };
    let acknowledged: Vec<usize> = still.segments.iter().map(push).collect();
    let recording = disk.end_recording();
    let end = acknowledged[3];
    // At every acknowledgement, and at moments between them.
    let mut moments = acknowledged.clone();
    moments.extend((0..CUTS).map(|_| begun + random.below(end - begun)));
    let (mut lost, mut torn, mut again) = (0, 0, 0);
    for &at in &moments {
        let cut = recording.cut(recording.flushed(at)..at, |_| random.one_in(2));
        lost += cut.lost_sectors;
        torn += cut.torn_writes;
        disk.boot(&cut);
        for (name, acknowledged) in still.segments.iter().zip(&acknowledged) {
            if is_there(&still, name) {
                continue;
            }
            assert!(
                *acknowledged > at,
                "\"{name}\", acknowledged at {acknowledged}, is lost at {at}; PITR_TEST_SEED={seed}"
            );
            // Whatever was left of it does not stand in its way.
            still.push(name).succeed();
            still.check(name);
            again += 1;
            break;
        }
    }
    eprintln!(
        "{} cuts of {} writes and flushes: {lost} sectors lost, {torn} writes torn, {again} segments archived again",
        moments.len(),
        end - begun
    );
    assert!(lost > 0 && torn > 0 && again > 0);
}

/// Two required repositories: the site's own on a drive that begins to lie, and one beside it.
struct Lied {
    disk: PowerDisk,
    still: Still,
}

impl Lied {
    fn new(disk: PowerDisk) -> Lied {
        let still = still_on(&disk, 5);
        still.site.add_repository("second", "");
        Lied { disk, still }
    }

    fn verify(&self) -> Run {
        self.still.site.pitr().words("verify --json").run()
    }

    /// The segments that verify finds something about.
    fn found(run: &Run) -> Vec<String> {
        let json = run.json();
        let clusters = json["clusters"].as_array().unwrap();
        let findings = clusters
            .iter()
            .flat_map(|c| c["findings"].as_array().unwrap());
        let name = |f: &serde_json::Value| {
            let object = f["object"].as_str().unwrap();
            object.rsplit('/').next().unwrap().to_owned()
        };
        let mut names: Vec<String> = findings.map(name).collect();
        names.sort();
        names
    }

    /// Brings both repositories up to date; the one on the drive gets so many segments.
    fn is_copied(&self, segments: u64) {
        self.copied(segments, 0);
    }

    fn copied(&self, segments: u64, status: i32) -> Run {
        let sync = self.still.site.pitr().words("repo sync --json");
        let run = sync.exits(status);
        let transfers = run.json()["transfers"].as_array().unwrap().clone();
        let name = first_name(self.still.site.config());
        let to_drive = transfers.iter().find(|t| t["to"] == name).unwrap();
        assert_eq!(to_drive["copied"]["segments"], segments, "{run}");
        run
    }

    fn objects(&self) -> Vec<PathBuf> {
        let names = self.still.segments.iter();
        names.map(|name| self.still.site.object(name)).collect()
    }

    /// Fails unless the repository on the drive, alone, gives every segment back.
    fn is_whole(&self) {
        self.verify().success();
        for name in &self.still.segments {
            let first = self.still.fetch(name);
            first
                .args(["--repository", &first_name(self.still.site.config())])
                .succeed();
            self.still.check(name);
        }
    }
}

/// The name of the first repository of a configuration.
fn first_name(config: &Path) -> String {
    let text = std::fs::read_to_string(config).unwrap();
    let (_, rest) = text.split_once("[repositories.").unwrap();
    rest.split(']').next().unwrap().to_owned()
}

#[test]
fn m02_what_a_lying_drive_lost_is_found_and_brought_back_from_the_second_repository() {
    require_root!(
        "m02_what_a_lying_drive_lost_is_found_and_brought_back_from_the_second_repository"
    );
    let mut lied = Lied::new(PowerDisk::recorded(32));
    let still = &lied.still;
    still.push(&still.segments[0]).succeed();
    settle(&lied.disk);
    let lies_from = lied.disk.position();
    // From here on no flush is obeyed, and nobody can tell: acknowledged is acknowledged, and what is read comes from the drive's cache.
    for name in &still.segments[1..] {
        still.push(name).succeed();
    }
    lied.verify().success();
    let contents: Vec<Vec<u8>> = lied
        .objects()
        .iter()
        .map(|o| std::fs::read(o).unwrap())
        .collect();
    let recording = lied.disk.end_recording();
    let lie = lies_from..recording.length();

    // Nothing since the first lie got there: an older repository, sound in itself.
    let cut = recording.cut(lie.clone(), |_| false);
    assert!(cut.lost_sectors > 0);
    lied.disk.boot(&cut);
    let there: Vec<bool> = lied.objects().iter().map(|o| o.exists()).collect();
    assert_eq!(there, [true, false, false, false, false]);
    let info = lied.still.site.pitr().words("info").run();
    info.expect_stdout("behind by 4 segments");
    lied.is_copied(4);
    lied.is_whole();

    // The names got there, the content of one segment did not, and every other sector of another.
    let [lost, torn] = [2, 3].map(|n| recording.places(&contents[n]));
    let half: BTreeSet<usize> = torn.iter().step_by(2).copied().collect();
    let cut = recording.cut(lie, |sector| {
        !lost.contains(&sector) && !half.contains(&sector)
    });
    assert!(cut.lost_sectors > 0 && cut.torn_writes > 0);
    lied.disk.boot(&cut);
    let run = lied.verify().expect_code(4);
    assert_eq!(Lied::found(&run), lied.still.segments[2..4]);
    for name in &lied.still.segments {
        lied.still.check(name);
    }
    // Nothing is written over; what verify named, and sync names again, is removed by a person, and comes back.
    let run = lied.copied(0, 10);
    for name in &lied.still.segments[2..4] {
        assert!(run.json()["transfers"].to_string().contains(name), "{run}");
    }
    for object in &lied.objects()[2..4] {
        std::fs::remove_file(object).unwrap();
    }
    lied.is_copied(2);
    lied.is_whole();
}

#[test]
fn m02_verify_reads_what_the_drive_holds_and_not_what_the_system_remembers() {
    require_root!("m02_verify_reads_what_the_drive_holds_and_not_what_the_system_remembers");
    let disk = PowerDisk::new(32);
    let still = still_on(&disk, 2);
    let folder = disk.path().join("sealed");
    let sealed = Sealed::at(&still.cluster, folder, Sandbox::new("sealed"));
    for n in 0..2 {
        still.push(&still.segments[n]).succeed();
        sealed.push(&still, "writer", n).succeed();
    }
    settle(&disk);
    let name = &still.segments[1];
    for (object, pitr) in [
        (still.site.object(name), still.site.pitr()),
        (sealed.object(name), sealed.on("reader")),
    ] {
        let verify = pitr.words("verify --json");
        verify.succeed();
        let whole = std::fs::read(&object).unwrap();
        disk.spoil(&whole);
        // Nobody who just reads it sees that.
        assert!(std::fs::read(&object).unwrap() == whole);
        let run = verify.exits(4);
        assert_eq!(Lied::found(&run), still.segments[1..]);
        assert!(std::fs::read(&object).unwrap() != whole);
    }
    still.fetch(name).exits(201);
    still.check(&still.segments[0]);
}
