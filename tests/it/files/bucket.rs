//! A bucket as a source of files, and as a place that they are restored into.

use std::collections::BTreeMap;
use std::fs;

use pitr::config::S3Settings;
use pitr::store::s3::contents::{Answer, Contents, Entry, Expected, Facts, Outcome};
use serde_json::Value;

use super::{World, id, path_text};
use crate::common::random::Random;
use crate::common::s3::{BUCKET, Fault, KEY, S3Server, SECRET};
use crate::common::{Program, append, edit, list_of};

/// More than a piece that is read at once, and more than a part that is written.
const LARGE_BYTES: usize = 9 << 20;
/// Steps of the random history, where `PITR_FILES_STEPS` does not say how many.
const STEPS: u64 = 24;
const STEPS_TO_BACKUP: u64 = 6;
/// More objects than a run asks about in vain.
const TAGGED: usize = 40;

/// Key, length, content and metadata of each object.
pub type Objects = BTreeMap<String, (Vec<u8>, Facts)>;

/// A bucket, and a name that backs it up.
pub struct Bucket {
    pub world: World,
    pub server: S3Server,
}

impl Bucket {
    pub fn new(more: &str) -> Bucket {
        let server = S3Server::start();
        let world = World::new("");
        let credentials = server.credentials(&world.sandbox, KEY);
        let keys = format!(
            "endpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\nretry_budget = \"2s\"\n{more}",
            server.endpoint(),
            credentials.display()
        );
        let world = world.with_source(&format!("s3://{BUCKET}/media"), &keys);
        Bucket { world, server }
    }

    pub fn contents(&self, prefix: &str) -> Contents {
        let settings = S3Settings {
            endpoint: Some(self.server.endpoint()),
            region: Some("us-east-1".into()),
            path_style: true,
            credentials_file: Some(self.server.credentials(&self.world.sandbox, KEY)),
            ..S3Settings::default()
        };
        Contents::open(BUCKET, prefix, &settings, 7).unwrap()
    }

    /// Puts an object there, whatever was in its place.
    pub fn put(&self, key: &str, bytes: &[u8], facts: &Facts) {
        self.server.lose_if_there(&format!("media/{key}"));
        put(&self.contents("media"), key, bytes, facts);
    }

    /// Without the wish that each object is read again.
    pub fn pitr(&self, arguments: &[&str]) -> Program {
        self.world
            .pitr(arguments)
            .env("PITR_FAULT_SECONDS", "99999999")
    }

    /// `pitr files backup`.
    pub fn taking(&self) -> Program {
        self.pitr(&["files", "backup", "up", "--json"])
    }

    fn backup(&self) -> Value {
        self.taking().succeed().json()
    }

    /// Restores a backup into a prefix, and returns what is there then.
    fn restored(&self, id: &str, prefix: &str) -> Objects {
        let to = format!("s3://{BUCKET}/{prefix}");
        let restore = ["files", "restore", "up", "--backup", id, "--to", &to];
        let run = self.pitr(&restore).run();
        // A backup that lacks something says so.
        assert!([0, 6].contains(&run.code()), "{run}");
        objects(&self.contents(prefix))
    }
}

fn put(contents: &Contents, key: &str, bytes: &[u8], facts: &Facts) {
    let mut upload = contents.upload(key, facts, bytes.len() as u64, Expected::Nothing);
    upload.append(bytes).unwrap();
    assert!(matches!(upload.finish().unwrap(), Outcome::Stored(_)));
}

/// Everything in a place; of the metadata what a writer chooses.
pub fn objects(contents: &Contents) -> Objects {
    let mut entries: Vec<Entry> = Vec::new();
    contents
        .list(&mut |entry| {
            entries.push(entry);
            Ok(())
        })
        .unwrap();
    let read = |entry: Entry| {
        let part = (0, entry.size_bytes.max(1));
        let Answer::There(piece) = contents.read(&entry.key, part, None).unwrap() else {
            panic!("{} is not there", entry.key);
        };
        let Answer::There(facts) = contents.facts(&entry).unwrap() else {
            panic!("{} is not there", entry.key);
        };
        let chosen = Facts {
            etag: String::new(),
            modified: 0,
            ..facts
        };
        (entry.key, (piece.bytes.to_vec(), chosen))
    };
    entries.into_iter().map(read).collect()
}

pub fn facts(kind: &str) -> Facts {
    let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Facts {
        content_type: Some(kind.to_owned()),
        cache_control: Some("max-age=60".to_owned()),
        content_disposition: Some("attachment; filename=\"x\"".to_owned()),
        content_encoding: Some("gzip".to_owned()),
        metadata: [pair(("owner", "anna")), pair(("zone", "a b"))].into(),
        tags: [pair(("team", "a&b=c")), pair(("space", "x y"))].into(),
        ..Facts::default()
    }
}

/// Bytes that no codec makes small.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

#[test]
fn a_bucket_is_backed_up_and_comes_back_into_a_bucket() {
    let bucket = Bucket::new("exclude = [\"*.tmp\", \"/cache/\"]\n");
    let keys = [
        "notes",
        "images/one",
        "images/two",
        "images-old",
        "a",
        "a/b",
        "a.b",
        "x//y",
        "../up",
        "/abs",
        "sp ace+é&<>\u{7}",
        "tail/",
        "deep/",
    ];
    for (n, key) in keys.into_iter().enumerate() {
        let is_marker = key == "deep/";
        let bytes = noise(if is_marker { 0 } else { 100 + n }, n as u64);
        bucket.put(key, &bytes, &facts("image/png"));
    }
    bucket.put("empty", b"", &Facts::default());
    bucket.put("large", &noise(LARGE_BYTES, 99), &facts("video/mp4"));
    bucket.server.plant("media/x.tmp", b"left out");
    bucket.server.plant("media/cache/x/y", b"left out");
    // Below the same directory, and no paths.
    bucket.server.plant("media/cache//x", b"left out");
    bucket.server.plant("media/cache/../y", b"left out");
    bucket.server.plant("mediaother", b"outside");
    let all = |bucket: &Bucket| {
        let mut all = objects(&bucket.contents("media"));
        all.retain(|key, _| !key.ends_with(".tmp") && !key.starts_with("cache/"));
        all
    };
    let was = all(&bucket);
    let first = bucket.backup();
    assert_eq!(first["kind"], "full", "{first}");
    assert_eq!(
        (&first["read_count"], &first["excluded_count"]),
        (&14.into(), &4.into()),
        "{first}"
    );
    let source = &first["source"];
    assert_eq!(
        (&source["kind"], &source["beside_count"]),
        (&"s3".into(), &5.into()),
        "{first}"
    );

    // Nothing changed: nothing is read. A listing, and no object.
    bucket.server.clear_log();
    let same = bucket.backup();
    assert_eq!(
        (&same["read_count"], &same["unchanged_count"]),
        (&0.into(), &14.into()),
        "{same}"
    );
    assert_eq!(same["stored_bytes"], 0, "{same}");
    let asked = bucket.server.log();
    assert!(
        asked.iter().all(|line| line.contains("list-type")),
        "{asked:?}"
    );

    bucket.put("notes", b"second", &facts("text/plain"));
    bucket.server.lose("media/images/one");
    bucket.put("a/new", b"new", &Facts::default());
    let is = all(&bucket);
    let second = bucket.backup();
    assert_eq!(
        (&second["kind"], &second["read_count"]),
        (&"incremental".into(), &2.into()),
        "{second}"
    );

    assert_eq!(bucket.restored(id(&first), "back/first"), was);
    assert_eq!(bucket.restored(id(&second), "back/second"), is);
    // Nothing that is there is written over.
    let again = ["files", "restore", "up", "--to", "s3://bucket/back/second"];
    let run = bucket.pitr(&again).exits(8);
    run.expect_stderr("has objects")
        .expect_stderr("Nothing was written");
    assert_eq!(objects(&bucket.contents("back/second")), is);
    let part = [
        "files",
        "restore",
        "up",
        "--path",
        "/images/",
        "--to",
        "s3://bucket/back/part",
    ];
    bucket.pitr(&part).succeed();
    let part: Vec<_> = objects(&bucket.contents("back/part")).into_keys().collect();
    assert_eq!(part, ["images/two"]);

    // A directory has what is a path; the rest is named.
    let to = path_text(&bucket.world.sandbox.join("back"));
    let restore = ["files", "restore", "up", "--json", "--to", &to];
    let run = bucket.pitr(&restore).exits(6);
    let left: Vec<_> = list_of(&run.json()["left_out"]["examples"])
        .iter()
        .map(|e| e["path"].clone())
        .collect();
    assert_eq!(left, ["../up", "/abs", "a", "tail/", "x//y"], "{run}");
    for (key, (bytes, _)) in is.iter().filter(|(key, _)| !key.ends_with('/')) {
        let found = fs::read(bucket.world.sandbox.join("back").join(key));
        match left.contains(&Value::from(key.as_str())) {
            true => assert_ne!(found.ok().as_ref(), Some(bytes), "{key}"),
            false => assert_eq!(found.unwrap(), *bytes, "{key}"),
        }
    }
    assert!(bucket.world.sandbox.join("back/deep").is_dir());
    let listed = bucket.pitr(&["files", "ls", "up"]).succeed();
    listed.expect_stdout("x//y").expect_stdout("object");
    let cat = bucket.pitr(&["files", "cat", "up", "a"]).succeed();
    assert_eq!(cat.stdout.len(), String::from_utf8_lossy(&is["a"].0).len());
    bucket.pitr(&["verify"]).succeed();
    let text = format!("{:?} {}", bucket.server.log(), bucket.taking().run());
    assert!(!text.contains(SECRET), "{text}");
}

#[test]
fn u61_an_object_that_is_replaced_while_it_is_read_is_stored_in_one_version() {
    let bucket = Bucket::new("");
    bucket.put("large", &vec![1; LARGE_BYTES], &Facts::default());
    let replaced = bucket
        .server
        .fault("GET /bucket/media/large", 1, Fault::Overtaken(b"new"));
    let backup = bucket.backup();
    assert_eq!(replaced.times(), 1);
    let back = bucket.restored(id(&backup), "back");
    assert_eq!(back["large"].0, b"new", "one version, and no mixture");
    // One that is replaced each time is left out, and named.
    bucket.put("large", &vec![2; LARGE_BYTES], &Facts::default());
    bucket.server.fault(
        "GET /bucket/media/large",
        1000,
        Fault::Overtaken(&[7; 5 << 20]),
    );
    let run = bucket.taking().exits(6);
    assert!(run.stdout.contains("replaced each of the 3 times"), "{run}");
    let left = run.json();
    assert_eq!(left["file_count"], 0, "{left}");
}

#[test]
fn u62_an_object_that_may_not_be_read_is_left_out_and_named() {
    let bucket = Bucket::new("");
    bucket.put("open", b"open", &Facts::default());
    bucket.put("closed", b"closed", &Facts::default());
    let denied = bucket.server.fault(
        "GET /bucket/media/closed",
        1,
        Fault::Error(403, "AccessDenied"),
    );
    let run = bucket.taking().exits(6);
    assert_eq!(denied.times(), 1);
    assert!(run.stdout.contains("\"closed\""), "{run}");
    let id = run.id();
    assert_eq!(
        bucket.restored(&id, "back").into_keys().collect::<Vec<_>>(),
        ["open"]
    );
    // The next run has it.
    let next = bucket.backup();
    assert_eq!(
        (&next["read_count"], &next["unchanged_count"]),
        (&1.into(), &1.into()),
        "{next}"
    );
}

#[test]
fn u63_a_bucket_that_fails_leaves_no_backup() {
    let bucket = Bucket::new("");
    bucket.put("one", b"1", &Facts::default());
    bucket.put("two", b"2", &Facts::default());
    for (holds, fault) in [
        ("list-type", Fault::Error(500, "InternalError")),
        ("list-type", Fault::Error(404, "NoSuchBucket")),
        (
            "GET /bucket/media/two",
            Fault::Error(503, "ServiceUnavailable"),
        ),
        ("GET /bucket/media/two", Fault::Truncated(0)),
    ] {
        let fired = bucket.server.fault(holds, 1000, fault.clone());
        let run = bucket.taking().run();
        assert!(!run.is_success() && run.code() != 6, "{fault:?}: {run}");
        assert!(fired.times() > 0, "{fault:?}");
        bucket.server.heal();
        let ls = bucket.pitr(&["files", "ls", "up"]).run();
        ls.expect_code(2)
            .expect_stderr("no repository has a backup");
    }
    bucket.backup();
}

#[test]
fn u64_content_that_changes_without_a_word_is_found_by_the_sample() {
    let bucket = Bucket::new("");
    bucket.put("rotten", b"good", &Facts::default());
    bucket.put("sound", b"good", &Facts::default());
    let first = bucket.backup();
    bucket.server.rot("media/rotten");
    let blind = bucket.backup();
    assert_eq!(blind["read_count"], 0, "{blind}");
    // Everything is due at once.
    let backup = ["files", "backup", "up", "--json"];
    let run = bucket.pitr(&backup).env("PITR_FAULT_SECONDS", "0").run();
    let run = run.expect_code(6).expect_stderr("1 of 2 objects");
    let source = run.json()["source"].clone();
    assert_eq!(
        (&source["sampled_count"], &source["silent_count"]),
        (&2.into(), &1.into()),
        "{source}"
    );
    assert_eq!(bucket.restored(id(&first), "first")["rotten"].0, b"good");
    assert_eq!(
        bucket.restored(id(&run.json()), "last")["rotten"].0,
        b"food"
    );
}

#[test]
fn u114_an_object_that_cannot_be_read_in_its_turn_keeps_its_content() {
    let bucket = Bucket::new("");
    let mut large = facts("text/plain");
    let value = "x".repeat(17 << 10);
    large.metadata.insert("large".to_owned(), value);
    for (key, facts) in [
        ("archived", &facts("text/plain")),
        ("denied", &large),
        ("open", &facts("text/plain")),
    ] {
        bucket.put(key, key.as_bytes(), facts);
    }
    let first = bucket.taking().exits(6).json();
    let was = bucket.restored(id(&first), "first");
    assert_eq!(was.len(), 3);
    // As a rule of the bucket does it: mark, length and time stay.
    assert_eq!(bucket.server.reclassify("media/archived", "GLACIER"), 1);
    let denied = Fault::Error(403, "AccessDenied");
    bucket
        .server
        .fault("GET /bucket/media/denied", 1000, denied);
    let backup = ["files", "backup", "up", "--json"];
    let run = bucket.pitr(&backup).env("PITR_FAULT_SECONDS", "0").run();
    let run = run
        .expect_code(6)
        .expect_stderr("2 of 3 objects that were read again are archived or may not be read");
    let kept = run.json();
    assert_eq!(
        (&kept["read_count"], &kept["unchanged_count"]),
        (&1.into(), &2.into()),
        "{kept}"
    );
    // Each backup names what it lacks, this one as well.
    let lacking = list_of(&kept["left_out"]["examples"]);
    assert_eq!(lacking.len(), 1, "{kept}");
    assert_eq!(lacking[0]["path"], "denied", "{kept}");
    assert_eq!(bucket.restored(id(&kept), "kept"), was);
}

#[test]
fn u115_tags_that_may_not_be_read_come_once_they_may_be() {
    let bucket = Bucket::new("");
    let contents = bucket.contents("media");
    for n in 0..TAGGED {
        let key = format!("tagged-{n}");
        put(&contents, &key, b"1", &facts("text/plain"));
    }
    bucket.put("plain", b"2", &Facts::default());
    let was = objects(&bucket.contents("media"));
    let denied = Fault::Error(403, "AccessDenied");
    bucket.server.fault("tagging", 1000, denied);
    let run = bucket.taking().exits(6);
    assert!(run.stdout.contains("its tags: "), "{run}");
    // The second run reads no content, and asks again: until ten objects were refused, and of those that readers have at hand then.
    bucket.server.clear_log();
    let again = bucket.backup();
    assert_eq!(
        (&again["read_count"], &again["unchanged_count"]),
        (&0.into(), &(TAGGED + 1).into()),
        "{again}"
    );
    let log = bucket.server.log();
    let asked = log.iter().filter(|line| line.contains("tagging")).count();
    assert!((10..TAGGED).contains(&asked), "{asked}");
    bucket.server.heal();
    let whole = bucket.backup();
    assert_eq!(
        (&whole["read_count"], &whole["unchanged_count"]),
        (&TAGGED.into(), &1.into()),
        "{whole}"
    );
    assert_eq!(bucket.restored(id(&whole), "whole"), was);
    bucket.server.clear_log();
    bucket.backup();
    let asked = bucket.server.log();
    assert!(
        asked.iter().all(|line| line.contains("list-type")),
        "{asked:?}"
    );
    // The right is withdrawn when it is the objects' turn, and no count tells of tags: the backup has those that were read before.
    bucket.server.behave(|manner| manner.denies_tags = true);
    let backup = ["files", "backup", "up", "--json"];
    let all_due = || bucket.pitr(&backup).env("PITR_FAULT_SECONDS", "0");
    let kept = all_due().exits(6).json();
    // Nothing tells that a new object has tags: they come in its turn.
    bucket.put("late", b"3", &facts("text/plain"));
    bucket.backup();
    bucket.server.behave(|manner| manner.denies_tags = false);
    assert_eq!(bucket.restored(id(&kept), "kept"), was);
    let turn = all_due().succeed().json();
    let is = objects(&contents);
    assert_eq!(bucket.restored(id(&turn), "turn"), is);
}

#[test]
fn u65_another_program_that_writes_into_the_place_of_a_restore_keeps_its_object() {
    let bucket = Bucket::new("");
    bucket.put("one", b"1", &Facts::default());
    let backup = bucket.backup();
    // The look at the prefix is answered before the other program writes.
    bucket.server.plant("back/one", b"theirs");
    let shown = bucket
        .server
        .fault("prefix=back/", 1, Fault::Says(200, EMPTY));
    let restore = [
        "files",
        "restore",
        "up",
        "--backup",
        id(&backup),
        "--to",
        "s3://bucket/back",
    ];
    let run = bucket.pitr(&restore).exits(8);
    assert_eq!(shown.times(), 1);
    run.expect_stderr("another program wrote \"one\"");
    assert_eq!(bucket.server.object("back/one"), b"theirs");
}

/// A listing without an object.
const EMPTY: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>";

#[test]
fn u66_a_repository_in_the_bucket_is_not_backed_up_into_itself() {
    let bucket = Bucket::new("");
    let credentials = bucket.server.credentials(&bucket.world.sandbox, KEY);
    let more = format!(
        "[repositories.store]\nurl = \"s3://{BUCKET}/media/pitr\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n",
        bucket.server.endpoint(),
        credentials.display()
    );
    append(&bucket.world.config, &more);
    let run = bucket.taking().exits(8);
    run.expect_stdout("lies in the bucket that is backed up");
    let excluded = "[files.up]\nexclude = [\"/pitr/\"]\n";
    edit(&bucket.world.config, "[files.up]\n", excluded);
    bucket.backup();
}

/// A hash of everything in a place: a long history keeps no contents.
fn digest(objects: &Objects) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (key, (bytes, facts)) in objects {
        let one = format!("{key:?} {facts:?} {}\n", blake3::hash(bytes));
        hasher.update(one.as_bytes());
    }
    hasher.finalize()
}

/// Backups in a random history give back what was there, with its metadata.
#[test]
fn whatever_happens_in_a_bucket_each_backup_gives_it_back() {
    let steps = std::env::var("PITR_FILES_STEPS").ok();
    let steps: u64 = steps.map_or(STEPS, |s| s.parse().unwrap());
    let seed = std::env::var("PITR_FILES_SEED").ok();
    let seed: u64 = seed.map_or_else(|| std::process::id().into(), |s| s.parse().unwrap());
    let bucket = Bucket::new("");
    bucket.server.behave(|manner| manner.page_keys = 7);
    let mut random = Random::new(seed);
    let parts = [
        "a", "b", "c.d", "", "..", "e f", "g-", "é", "h+", "%41", "\\",
    ];
    let mut taken: Vec<(String, blake3::Hash)> = Vec::new();
    let mut done = Vec::new();
    for step in 1..=steps {
        let depth = 1 + random.below(3);
        let key: Vec<_> = (0..depth)
            .map(|_| parts[random.below(parts.len())])
            .collect();
        // No backup has content of the prefix itself.
        let key = Some(key.join("/")).filter(|key| !key.is_empty());
        let key = key.unwrap_or_else(|| "x".to_owned());
        let kind = random.below(5);
        done.push(format!("{kind} {key:?}"));
        // A few that are cut into chunks.
        let longest = [3 << 20, 200_000, 200_000, 200_000][random.below(4)];
        match kind {
            0 if !bucket.server.keys().is_empty() => {
                let keys: Vec<_> = bucket
                    .server
                    .keys()
                    .into_iter()
                    .filter(|k| k.starts_with("media/"))
                    .collect();
                if !keys.is_empty() {
                    bucket.server.lose(&keys[random.below(keys.len())]);
                }
            }
            1 => bucket.put(&format!("{key}/"), b"", &facts("application/x-directory")),
            2 => bucket.put(
                &key,
                &noise(1 + random.below(longest), step),
                &Facts::default(),
            ),
            _ => bucket.put(
                &key,
                &noise(random.below(2000), step),
                &facts(&format!("text/{step}")),
            ),
        }
        if step % STEPS_TO_BACKUP != 0 {
            continue;
        }
        let why = format!("PITR_FILES_SEED={seed}, step {step}: {done:?}");
        let is = objects(&bucket.contents("media"));
        let run = bucket.taking().run();
        assert!([0, 6].contains(&run.code()), "{run}, {why}");
        let backup = run.json();
        assert_eq!(bucket.restored(id(&backup), "back"), is, "{why}");
        taken.push((id(&backup).to_owned(), digest(&is)));
        let at = random.below(taken.len());
        let before = bucket.restored(&taken[at].0, "again");
        assert_eq!(digest(&before), taken[at].1, "{why}");
        // The bucket lies in memory, and what is taken away from it stays there under its name.
        for key in bucket.server.keys() {
            if key.starts_with("back/") || key.starts_with("again/") {
                bucket.server.lose(&key);
            }
        }
    }
    bucket.pitr(&["verify"]).succeed();
}
