//! Rules of retention from the configuration, on repositories of real servers whose backups were moved back in time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use pitr::pg::lsn::Lsn;
use pitr::pg::time::{Civil, TimestampTz};
use pitr::repo::event::{Event, record};
use pitr::repo::layout::ClusterLayout;
use pitr::repo::root::BackupRoot;
use pitr::store::file::FileStore;
use serde_json::Value;

use crate::common::{Cluster, Run, copy_all, list_of, str_of, user};
use crate::metrics::value;
use crate::per_major;
use crate::pin::Kept;

/// Days without gates by age or verification, and at once.
const AT_ONCE: [&str; 5] = ["expire", "--min-age", "0s", "--grace", "0s"];

impl Kept {
    /// Adds lines to the configuration.
    fn configure(&self, lines: &str) {
        self.site.add(&format!("\n{lines}\n"));
    }

    /// Writes the root of a backup anew, as one that ended and was stored at another time.
    fn move_to(&self, nth: usize, time: TimestampTz) {
        let root = self.site.repository();
        let store = FileStore::open(root, 1).unwrap();
        let layout = ClusterLayout::new("main", self.site.system_identifier()).unwrap();
        let id = self.ids[nth].parse().unwrap();
        let mut backup = BackupRoot::read(&store, &layout, &id).unwrap().unwrap();
        (backup.head.start_time, backup.head.stop_time) = (time, time);
        let file = root.join(layout.manifest(&id).as_str());
        std::fs::remove_file(&file).unwrap();
        backup.commit(&store, &layout).unwrap();
        let micros = u64::try_from(time.unix_micros().unwrap()).unwrap();
        let file = std::fs::File::options().write(true).open(file).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        file.set_modified(modified).unwrap();
    }

    /// Returns the fate that expire plans for each backup, with the rules that keep it.
    fn judged(&self, more: &[&str]) -> Vec<(String, Vec<String>)> {
        let run = self.pitr(&AT_ONCE).words("--json --dry-run").args(more);
        let json = run.succeed().json();
        let backups = json["clusters"][0]["backups"].as_array().unwrap().clone();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let one = |b: &Value| {
            (
                text(&b["fate"]),
                b["rules"].as_array().unwrap().iter().map(text).collect(),
            )
        };
        backups.iter().map(one).collect()
    }

    fn confirm(&self) -> Run {
        self.pitr(&AT_ONCE).words("--confirm --json").run()
    }

    /// Whether a plan reaches a target.
    fn reaches(&self, target: &[&str]) -> bool {
        let run = self.pitr(&["plan", "--json"]).args(target).run();
        run.is_success() && run.json()["reachable"] == true
    }
}

fn now() -> TimestampTz {
    TimestampTz::from_system_time(SystemTime::now())
}

/// Noon of a day of the month that lies so many months back.
fn months_back(months: i64, day: u32) -> TimestampTz {
    let today = now().civil().unwrap();
    let month = today.year * 12 + i64::from(today.month) - 1 - months;
    TimestampTz::from_civil(Civil {
        year: month.div_euclid(12),
        month: u32::try_from(month.rem_euclid(12)).unwrap() + 1,
        day,
        hour: 12,
        minute: 0,
        second: 0,
        micros: 0,
    })
    .unwrap()
}

fn hours_back(hours: u64) -> TimestampTz {
    now().saturating_sub(Duration::from_secs(hours * 3600))
}

#[test]
fn a_default_number_holds_only_where_no_rule_of_the_configuration_does() {
    let kept = Kept::new(17, 3);
    let count = || {
        let judged = kept.judged(&["--default-keep", "2"]);
        judged.iter().filter(|(fate, _)| fate == "keep").count()
    };
    assert_eq!(count(), 2);
    // The rules of another cluster are none of this one.
    kept.configure("[clusters.other.retention]\nkeep_last = 1");
    let named = ["--default-keep", "2", "--cluster", "main"];
    let judged = kept.judged(&named);
    assert_eq!(judged.iter().filter(|(fate, _)| fate == "keep").count(), 2);
    kept.site
        .edit("[clusters.other.retention]", "[clusters.main.retention]");
    assert_eq!(count(), 1);
    let both = ["expire", "--keep", "1", "--default-keep", "2"];
    kept.pitr(&both).exits(2);
    let none = ["expire", "--default-keep", "0"];
    kept.pitr(&none).exits(3);
}

#[test]
fn x73_a_zone_that_does_not_exist_stops_expire_and_nothing_else() {
    let kept = Kept::new(17, 2);
    kept.second();
    kept.configure("[retention]\nkeep_last = 1\ntimezone = \"Mars/Olympus\"");
    kept.pitr(&["expire", "--dry-run"]).exits(3);
    kept.pitr(&["expire", "--confirm"]).exits(3);
    // The server goes on archiving.
    kept.cluster.archive_now();
    let info = kept.pitr(&["info", "--json"]).run().json();
    let cluster = &info["clusters"][0];
    assert_eq!(list_of(&cluster["backups"]).len(), 2, "{info}");
    assert!(cluster.get("retention").is_none(), "{info}");
    assert!(!list_of(&cluster["recovery_windows"]).is_empty(), "{info}");
    let is_told = |problem: &&Value| str_of(&problem["message"]).contains("Mars/Olympus");
    let told: Vec<_> = list_of(&cluster["problems"])
        .iter()
        .filter(is_told)
        .collect();
    assert_eq!(told.len(), 1, "{info}");
    assert_eq!(told[0]["state"], "warning", "{info}");
    assert_eq!(told[0]["next"], "pitr doctor", "{info}");
    for repository in list_of(&cluster["repositories"]) {
        assert_eq!(repository["away"], Value::Null, "{info}");
    }
    let text = kept.pitr(&["metrics"]).succeed().stdout;
    let status = "pitr_status{cluster=\"main\",check=\"cluster\"}";
    assert_eq!(value(&text, status), Some(1.0), "{text}");
    let doctor = kept.pitr(&["doctor"]).run();
    doctor.expect_stdout("retention.timezone");
}

/// Restores one backup to its own end, and counts the rows there.
fn restored_rows(kept: &Kept, id: &str) -> u64 {
    let to = kept.site.sandbox().dir(format!("copy-{id}")).join("data");
    let restore = [
        "restore",
        "--quiet",
        "--target-immediate",
        "--backup",
        id,
        "--to",
    ];
    kept.pitr(&restore).arg(&to).succeed();
    let copy = Cluster::open(kept.cluster.major(), &to)
        .without_fsync()
        .promoted();
    copy.value("select count(*) from t").parse().unwrap()
}

fn events(root: &Path, folder: &Path, id: &str, kind: &str) -> usize {
    let events = folder.join("events").join(id);
    assert!(events.starts_with(root));
    let names = std::fs::read_dir(events).unwrap();
    let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.contains(&format!("-{kind}-")))
        .count()
}

fn x09_a_month_keeps_its_last_backup_and_the_window_its_wal(major: u32) {
    let kept = Kept::new(major, 6);
    // Two of one month, two of others, one before the window, and one of now.
    let times = [
        months_back(4, 15),
        months_back(3, 15),
        months_back(2, 10),
        months_back(2, 20),
        hours_back(3),
        now(),
    ];
    for (nth, time) in times.iter().enumerate() {
        kept.move_to(nth, *time);
    }
    kept.configure(
        "[clusters.main.retention]\nkeep_last = 1\nkeep_monthly = 4\nwal_window = \"2h\"",
    );
    kept.site.add_to_cluster("timezone = \"UTC\"\n");

    // The last of each of the newest four months; the one before the window is the base of it, whatever month it is of.
    let month = |t: &TimestampTz| t.to_string()[..7].to_owned();
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    last.extend(
        times
            .iter()
            .enumerate()
            .map(|(nth, time)| (month(time), nth)),
    );
    let monthly: BTreeSet<usize> = last.into_values().rev().take(4).collect();
    let judged = kept.judged(&[]);
    for (nth, (fate, rules)) in judged.iter().enumerate() {
        let is_kept = monthly.contains(&nth) || nth >= 4;
        assert_eq!(fate == "keep", is_kept, "{nth} of {judged:?}");
        let has = |rule: &str| rules.iter().any(|r| r == rule);
        assert_eq!(
            has("keep_monthly"),
            monthly.contains(&nth),
            "{nth} of {judged:?}"
        );
        assert_eq!(has("keep_last"), nth == 5);
    }

    // Each is explained, and so is a segment.
    let explain = |what: &str| kept.pitr(&AT_ONCE).args(["--explain", what]).succeed();
    let run = explain(&kept.ids[3]);
    assert!(run.stdout.contains("keep_monthly: last of"), "{run}");
    assert!(run.stdout.contains("to its own end"), "{run}");
    let start = |nth: usize| kept.shown(nth)["start_lsn"].as_str().unwrap().to_owned();
    let segment = |lsn: &str| {
        let low = u64::from_str_radix(lsn.split_once('/').unwrap().1, 16).unwrap();
        format!("0000000100000000{:08X}", low >> 20)
    };
    let run = explain(&segment(&start(3)));
    let needed = format!("backup {} needs it to be consistent", kept.ids[3]);
    assert!(run.stdout.contains(&needed), "{run}");

    // A moment behind each backup, before anything goes.
    let behind: Vec<String> = (0..6)
        .map(|nth| kept.shown(nth)["stop_lsn"].as_str().unwrap().to_owned())
        .collect();
    let next = |lsn: &str| {
        let (high, low) = lsn.split_once('/').unwrap();
        let low = u64::from_str_radix(low, 16).unwrap();
        // The next segment, which no backup shares.
        format!("{high}/{:X}", (low >> 20 << 20) + (1 << 20) + 0x100)
    };
    let moments: Vec<String> = behind.iter().map(|lsn| next(lsn)).collect();
    let reaches = |nth: usize| kept.reaches(&["--target-lsn", &moments[nth]]);
    assert!((0..6).all(reaches));

    kept.confirm().success();
    let left: BTreeSet<usize> = (0..6)
        .filter(|nth| kept.shown(*nth) != Value::Null)
        .collect();
    let mut wanted = monthly.clone();
    wanted.extend([4, 5]);
    assert_eq!(left, wanted);
    // The window is whole; before it each kept backup stands for itself, and a plan says so.
    assert!(reaches(4) && reaches(5));
    for nth in left.iter().copied().filter(|nth| *nth < 4) {
        assert!(!reaches(nth), "{nth}");
        assert!(kept.reaches(&["--target-immediate", "--backup", &kept.ids[nth]]));
        assert_eq!(restored_rows(&kept, &kept.ids[nth]), nth as u64 + 1);
        let folder = kept.site.cluster_folder();
        assert_eq!(
            events(kept.site.repository(), &folder, &kept.ids[nth], "trimmed"),
            1
        );
    }
    let refused = kept.pitr(&["plan", "--target-lsn", &moments[3]]).run();
    assert!(refused.expect_code(5).stdout.contains("missing"));

    // The hole is no gap, for nobody; and it is not filled again.
    kept.pitr(&["verify", "--quiet"]).succeed();
    let info = kept.pitr(&["info", "--json"]).succeed().json();
    let cluster = &info["clusters"][0];
    assert_eq!(cluster["gaps"].as_array().unwrap().len(), 0);
    let foretold = cluster["retention"]["backups"].as_array().unwrap();
    assert_eq!(foretold.len(), left.len());
    let drawn = kept.pitr(&["info"]).succeed();
    assert!(
        drawn
            .stdout
            .contains("retention: keep_last 1, keep_monthly 4, wal_window 2h; days of UTC"),
        "{drawn}"
    );
    let again = kept.confirm().success().json();
    assert_eq!(again["clusters"][0]["outcome"]["deleted_objects"], 0);

    // The first segment of a backup is missed, whether a deliberate hole begins behind the backup or ends at it.
    for nth in left.iter().copied().filter(|nth| *nth <= 4) {
        let lsn = kept.shown(nth)["start_lsn"].as_str().unwrap().to_owned();
        let (high, low) = lsn.split_once('/').unwrap();
        let digits = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let name = format!("00000001{:08X}{:08X}", digits(high), digits(low) >> 20);
        let file = kept.site.object(&name);
        let away = kept.site.sandbox().join("away");
        std::fs::rename(&file, &away).unwrap();
        let run = kept.pitr(&["verify"]).run();
        assert!(!run.is_success(), "{nth}: {run}");
        assert!(run.stdout.contains("missing"), "{nth}: {run}");
        // No WAL is expected before the first that there is.
        let info = kept.pitr(&["info", "--json"]).run().json();
        let gaps = info["clusters"][0]["gaps"].as_array().unwrap();
        let expected = usize::from(left.first() != Some(&nth));
        assert_eq!(gaps.len(), expected, "{nth}: {gaps:?}");
        std::fs::rename(&away, &file).unwrap();
    }
    kept.pitr(&["verify", "--quiet"]).succeed();
    the_hole_outlives_a_compacted_backup(&kept, left.iter().next().copied().unwrap());
}

/// The hole behind a backup is known after it was compacted, and has expired.
fn the_hole_outlives_a_compacted_backup(kept: &Kept, nth: usize) {
    let old = &kept.ids[nth];
    let compact = ["repo", "compact", "--visible", "100", "--confirm", "--json"];
    let json = kept.pitr(&compact).args(["--backup", old]).succeed().json();
    let new = json["compacted"]["id"].as_str().unwrap();
    let trimmed = |id: &str| {
        let folder = kept.site.cluster_folder();
        events(kept.site.repository(), &folder, id, "trimmed")
    };
    assert_eq!((trimmed(old), trimmed(new)), (1, 1));
    kept.pitr(&["verify", "--quiet"]).succeed();
    kept.confirm().success();
    assert_eq!(kept.shown(nth), Value::Null);
    kept.pitr(&["verify", "--quiet"]).succeed();
    let info = kept.pitr(&["info", "--json"]).succeed().json();
    let cluster = &info["clusters"][0];
    assert_eq!(cluster["gaps"].as_array().unwrap().len(), 0);
    assert_eq!(restored_rows(kept, new), nth as u64 + 1);
}
per_major!(x09_a_month_keeps_its_last_backup_and_the_window_its_wal, v14 v19);

fn x05_a_pin_with_an_end_outlasts_the_rules_until_then(major: u32) {
    let kept = Kept::new(major, 3);
    for (nth, months) in [(0, 3), (1, 2)] {
        kept.move_to(nth, months_back(months, 15));
    }
    kept.configure("[retention]\nkeep_monthly = 1\nkeep_within = \"1h\"\nwal_window = \"1h\"");
    let fates = || -> Vec<String> { kept.judged(&[]).into_iter().map(|(fate, _)| fate).collect() };
    // The second is the base of the window.
    assert_eq!(fates(), ["delete", "keep", "keep"]);
    let until = now().saturating_add(Duration::from_secs(3600)).to_string();
    let first = kept.ids[0].clone();
    let pin = [
        "pin",
        &first,
        "--reason",
        "audit",
        "--confirm",
        "--until",
        &until,
    ];
    kept.pitr(&pin).succeed();
    assert_eq!(fates(), ["keep"; 3]);
    kept.confirm().success();
    assert_eq!(restored_rows(&kept, &first), 1);
    kept.pitr(&["verify", "--quiet"]).succeed();
    // --keep stands for keep_last alone: the rules of the configuration hold as before.
    let judged = kept.judged(&["--keep", "2"]);
    assert_eq!(judged[1].0, "keep");
    assert!(judged[1].1.contains(&"keep_last".to_owned()), "{judged:?}");
}
per_major!(x05_a_pin_with_an_end_outlasts_the_rules_until_then, v17);

/// WAL that expire would have let go is missed by nobody; other WAL that a receiver recorded as lost is.
#[test]
fn x56_wal_that_was_lost_in_a_hole_of_expire_is_missed_by_nobody() {
    let kept = Kept::new(17, 3);
    kept.move_to(0, months_back(3, 15));
    kept.move_to(1, months_back(2, 15));
    kept.configure("[retention]\nkeep_monthly = 4\nkeep_within = \"1h\"\nwal_window = \"1h\"");
    kept.confirm().success();
    let stop: Lsn = kept.shown(0)["stop_lsn"].as_str().unwrap().parse().unwrap();
    let behind = (stop.0 >> 20) + 1;
    let hole = format!("0000000100000000{behind:08X}");
    assert!(!kept.site.files().iter().any(|file| file.ends_with(&hole)));

    let store = FileStore::open(kept.site.repository(), 1).unwrap();
    let layout = ClusterLayout::new("main", kept.site.system_identifier()).unwrap();
    let lose = |from: u64, to: u64, nonce: u64| {
        let lost = Event {
            event: "gap".into(),
            subject: "wal-00000001".into(),
            from_lsn: Some(Lsn((from << 20) + 0x100)),
            to_lsn: Some(Lsn(to << 20)),
            ..Event::default()
        };
        record(&store, &layout, &lost, nonce).unwrap();
        user::own_all(&kept.site.cluster_folder().join("events"));
    };
    let told = || -> Vec<String> {
        let json = kept.pitr(&["doctor", "--json"]).run().json();
        let gaps = list_of(&json["findings"]).iter();
        let gaps = gaps.filter(|finding| finding["name"] == "recorded gap");
        gaps.map(|finding| finding["value"].as_str().unwrap().to_owned())
            .collect()
    };
    lose(behind, behind + 1, 7);
    kept.pitr(&["verify", "--quiet"]).succeed();
    assert_eq!(told(), Vec::<String>::new());
    lose(behind + 100, behind + 102, 8);
    kept.pitr(&["verify", "--quiet"]).exits(4);
    assert_eq!(told().len(), 1);
}

fn a_backup_leaves_only_while_so_many_repositories_have_it(major: u32) {
    let kept = Kept::new(major, 2);
    kept.site.add_repository("second", "required = false\n");
    kept.configure(
        "[clusters.main.retention]\nkeep_last = 2\n[repositories.local.retention]\nkeep_last = 1\nmin_copies = 2",
    );
    let local = ["--repository", "local"];
    let reason = || {
        let run = kept.pitr(&AT_ONCE).words("--json --dry-run").args(local);
        let json = run.succeed().json();
        let first = json["clusters"][0]["backups"][0].clone();
        (
            first["fate"].as_str().unwrap().to_owned(),
            first["reason"].as_str().unwrap().to_owned(),
        )
    };
    let short = "min_copies: 1 of 2 repositories have it".to_owned();
    assert_eq!(reason(), ("keep".to_owned(), short.clone()));
    let foretold = |words: &[&str]| {
        let info = kept.pitr(&["info", "--json"]).args(words).run().json();
        let retention = info["clusters"][0]["retention"].clone();
        let reason = retention["backups"][0]["reason"].as_str().unwrap();
        (reason.to_owned(), retention["notes"].to_string())
    };
    assert_eq!(foretold(&[]), (short.clone(), "null".to_owned()));
    kept.pitr(&["repo", "sync", "--all", "--quiet"]).succeed();
    assert_eq!(reason().0, "delete");
    assert!(!foretold(&[]).0.contains("min_copies"));
    assert!(foretold(&local).1.contains("min_copies is not foretold"));
    // A copy that is known to be damaged is none, and neither is one that is out of reach.
    let folder = kept.site.sandbox().join("second");
    let store = FileStore::open(&folder, 7).unwrap();
    let layout = ClusterLayout::new("main", kept.site.system_identifier()).unwrap();
    let damaged = pitr::repo::event::Event {
        event: "damaged".into(),
        subject: kept.ids[0].clone(),
        ..Default::default()
    };
    let name = pitr::repo::event::record(&store, &layout, &damaged, 7).unwrap();
    assert_eq!(reason(), ("keep".to_owned(), short.clone()));
    let event = layout.event(&kept.ids[0], &name).unwrap();
    std::fs::remove_file(folder.join(event.as_str())).unwrap();
    assert_eq!(reason().0, "delete");
    std::fs::rename(&folder, folder.with_extension("away")).unwrap();
    assert_eq!(reason(), ("keep".to_owned(), short));
    std::fs::rename(folder.with_extension("away"), &folder).unwrap();
    kept.pitr(&AT_ONCE).args(local).arg("--confirm").succeed();
    // It is gone from the one, and the rules of the other keep it.
    assert_eq!(kept.judged(&local).len(), 1);
    assert_eq!(kept.judged(&["--repository", "second"]).len(), 2);
    // The first does not get back the backup that it lacks now.
    let sync = kept.pitr(&["repo", "sync", "--json"]).succeed();
    assert_eq!(kept.judged(&local).len(), 1, "{sync}");
}
per_major!(a_backup_leaves_only_while_so_many_repositories_have_it, v17);

/// A copy by `cp -a` is another place, though its marker has the same identity.
#[test]
fn s38_another_path_to_the_repository_is_no_copy() {
    let kept = Kept::new(17, 2);
    let root = kept.site.repository();
    let second = kept.site.sandbox().join("second");
    kept.configure(&format!(
        "[repositories.second]\nurl = \"file://{}\"\nrequired = false\n[clusters.main.retention]\nkeep_last = 2\n\
         [repositories.local.retention]\nkeep_last = 1\nmin_copies = 2",
        second.display()
    ));
    let expire = || {
        let run = kept.pitr(&AT_ONCE).words("--repository local");
        run.words("--json --dry-run").succeed()
    };
    let fate = |run: &Run| run.json()["clusters"][0]["backups"][0]["fate"].clone();
    std::os::unix::fs::symlink(root, &second).unwrap();
    let run = expire();
    assert_eq!(fate(&run), "keep", "{run}");
    run.expect_stderr("the two are one copy");
    std::fs::remove_file(&second).unwrap();
    copy_all(root, &second);
    assert_eq!(fate(&expire()), "delete");
}

#[test]
fn u109_an_explanation_tells_of_a_repository_that_is_away() {
    let kept = Kept::new(17, 1);
    kept.configure("[clusters.main.retention]\nkeep_last = 1");
    let second = kept.site.add_repository("second", "required = false\n");
    let explain = || kept.pitr(&AT_ONCE).args(["--explain", &kept.ids[0]]).run();
    explain().success();
    let away = second.with_extension("away");
    std::fs::rename(&second, &away).unwrap();
    let run = explain().expect_code(10).expect_stdout(&kept.ids[0]);
    run.expect_stderr(second.to_str().unwrap());
    std::fs::rename(&away, &second).unwrap();
    // It may be what has the backup.
    let first = kept.site.repository();
    std::fs::rename(first, &away).unwrap();
    let run = explain();
    assert!(
        run.code() != 0 && !run.stderr.contains("no repository has"),
        "{run}"
    );
    run.expect_stderr(first.to_str().unwrap());
}

/// WAL follows the same rule: what another repository needs and lacks stays, though no backup here needs it any more.
fn x13_wal_leaves_only_once_the_repository_that_needs_it_has_it(major: u32) {
    let kept = Kept::new(major, 1);
    let second = kept.site.add_repository("second", "required = false\n");
    kept.configure(
        "[clusters.main.retention]\nkeep_last = 2\n[repositories.local.retention]\nkeep_last = 1\nmin_copies = 2",
    );
    let sync = [
        "repo", "sync", "--from", "local", "--to", "second", "--quiet",
    ];
    kept.pitr(&sync).succeed();
    // The second one is away while WAL is archived, and the next backup is taken.
    let away = second.with_extension("away");
    std::fs::rename(&second, &away).unwrap();
    kept.cluster.sql("insert into t values (200)");
    let lacking = kept.cluster.archive_now();
    let between = kept.cluster.insert_lsn();
    kept.cluster.sql("insert into t values (201)");
    kept.cluster.archive_now();
    let backup = ["backup", "--json", "--repository", "local"];
    let taken = kept.pitr(&backup).succeed().json();
    let local = ["--repository", "local"];
    kept.pitr(&["verify"]).args(local).succeed();
    let expire = |more: &[&str]| kept.pitr(&AT_ONCE).args(local).args(more).run();
    let is_there = || kept.site.object(&lacking).exists();
    let short = |run: &Run| run.stdout.contains("WAL that stays for min_copies: ");

    // Out of reach it may need everything, and has no copy of the backup.
    expire(&["--confirm"]).success();
    assert!(is_there());
    assert_eq!(kept.judged(&local).len(), 2);
    std::fs::rename(&away, &second).unwrap();
    let shown = expire(&["--dry-run"]).success();
    assert!(short(&shown), "{shown}");
    let explained = expire(&["--explain", &lacking]).success();
    assert!(
        explained
            .stdout
            .contains("min_copies: another repository needs it"),
        "{explained}"
    );
    expire(&["--confirm"]).success();
    assert_eq!(kept.judged(&local).len(), 1);
    assert!(is_there(), "{lacking}");
    let json = expire(&["--dry-run", "--json"]).success().json();
    let runs = list_of(&json["clusters"][0]["short_of_copies"]).clone();
    let is_in = |run: &Value| {
        run["first"].as_str().unwrap() <= lacking.as_str()
            && lacking.as_str() <= run["last"].as_str().unwrap()
    };
    assert!(runs.iter().any(is_in), "{json}");
    kept.pitr(&backup).succeed();
    let former = str_of(&taken["id"]);
    let delete = ["backup", "delete", former, "--grace", "0s", "--confirm"];
    kept.pitr(&delete).args(local).succeed();
    assert_eq!(kept.judged(&local).len(), 1);
    assert!(is_there(), "{lacking}");
    kept.pitr(&["verify"]).args(local).succeed();

    // With it, the second one leads from its older backup to all that came since. A copy that is damaged there is none.
    kept.pitr(&sync).succeed();
    let object = kept.site.object(&lacking);
    let copy = second.join(object.strip_prefix(kept.site.repository()).unwrap());
    let (whole, mut damaged) = (std::fs::read(&copy).unwrap(), std::fs::read(&copy).unwrap());
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let put = |bytes: &[u8]| {
        std::fs::remove_file(&copy).unwrap();
        std::fs::write(&copy, bytes).unwrap();
        crate::common::user::own(&copy);
    };
    put(&damaged);
    let verify = ["verify", "--repository", "second"];
    assert_ne!(kept.pitr(&verify).run().code(), 0);
    let shown = expire(&["--dry-run"]);
    assert!(short(&shown), "{shown}");
    put(&whole);
    kept.pitr(&verify).succeed();
    let shown = expire(&["--dry-run"]).success();
    assert!(!short(&shown), "{shown}");
    expire(&["--confirm"]).success();
    assert!(!is_there(), "{lacking}");
    let target = ["--target-lsn", &between, "--repository", "second"];
    assert!(kept.reaches(&target));
    for name in ["local", "second"] {
        let verify = kept.pitr(&["verify", "--quiet", "--repository", name]);
        verify.succeed();
    }
}
per_major!(x13_wal_leaves_only_once_the_repository_that_needs_it_has_it, v14 v19);

#[test]
fn x72_a_deletion_on_request_tells_which_wal_stays_for_another_repository() {
    let kept = Kept::new(17, 1);
    let second = kept.site.add_repository("second", "required = false\n");
    kept.configure(
        "[clusters.main.retention]\nkeep_last = 5\n[repositories.local.retention]\nkeep_last = 1\nmin_copies = 2",
    );
    let sync = ["repo", "sync", "--from", "local", "--to", "second"];
    kept.pitr(&sync).arg("--quiet").succeed();
    let away = second.with_extension("away");
    std::fs::rename(&second, &away).unwrap();
    kept.cluster.sql("insert into t values (200)");
    let lacking = kept.cluster.archive_now();
    kept.cluster.sql("insert into t values (201)");
    kept.cluster.archive_now();
    let local = ["--repository", "local"];
    kept.pitr(&["backup", "--quiet"]).args(local).succeed();
    let delete = ["backup", "delete", &kept.ids[0], "--dry-run"];
    let look = |more: &[&str]| kept.pitr(&delete).args(local).args(more).succeed();
    let json = || look(&["--json"]).json()["repositories"][0].clone();
    let is_short = |shown: &Value| {
        let runs = list_of(&shown["short_of_copies"]).iter();
        let mut runs = runs.map(|run| (str_of(&run["first"]), str_of(&run["last"])));
        runs.any(|(first, last)| (first..=last).contains(&lacking.as_str()))
    };
    let stays = "WAL that stays for min_copies: ";

    // Out of reach it may need everything.
    look(&[]).expect_stdout(stays).expect_stderr("\"second\"");
    let shown = json();
    assert!(is_short(&shown), "{shown}");
    assert_eq!(shown["unread"][0]["repository"], "second", "{shown}");
    assert!(list_of(&shown["wal"]).is_empty(), "{shown}");

    std::fs::rename(&away, &second).unwrap();
    let run = look(&[]).expect_stdout(stays);
    assert!(!run.stderr.contains("second"), "{run}");
    let shown = json();
    assert!(is_short(&shown), "{shown}");
    assert!(shown.get("unread").is_none(), "{shown}");

    kept.pitr(&sync).arg("--quiet").succeed();
    let shown = json();
    assert!(shown.get("short_of_copies").is_none(), "{shown}");
    assert!(!list_of(&shown["wal"]).is_empty(), "{shown}");
}
