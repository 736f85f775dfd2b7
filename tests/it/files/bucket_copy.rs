//! `pitr files copy`: from bucket to bucket.

use pitr::config::S3Settings;
use pitr::store::s3::contents::{Contents, Facts};

use super::bucket::{Bucket, facts, noise, objects};
use crate::common::Run;
use crate::common::s3::{BUCKET, Fault, KEY, S3Server};

const LARGE_BYTES: usize = 9 << 20;

fn filled() -> Bucket {
    let bucket = Bucket::new("");
    for n in 0..6 {
        bucket.put(&format!("odd//{n} +é"), &noise(100, n), &facts("image/png"));
    }
    bucket.put("large", &noise(LARGE_BYTES, 99), &facts("video/mp4"));
    bucket.put("dir/", b"", &Facts::default());
    bucket
}

fn copy(bucket: &Bucket, to: &str, more: &[&str]) -> Run {
    let copy = ["files", "copy", "up", "--json", "--to", to];
    bucket.pitr(&[&copy[..], more].concat()).run()
}

#[test]
fn u72_a_store_copies_by_itself_what_is_not_there_yet() {
    let bucket = filled();
    let is = objects(&bucket.contents("media"));
    let to = format!("s3://{BUCKET}/copy");
    let plan = copy(&bucket, &to, &["--dry-run"]).success().json();
    assert_eq!(
        (&plan["is_plan"], &plan["new_count"]),
        (&true.into(), &8.into()),
        "{plan}"
    );
    assert!(objects(&bucket.contents("copy")).is_empty());
    // Copies that are cut short go on.
    let fired = bucket.server.fault_after(
        3,
        "PUT /bucket/copy/",
        1000,
        Fault::Error(500, "InternalError"),
    );
    let run = copy(&bucket, &to, &["--jobs", "1"]);
    assert!(!run.is_success() && fired.times() > 0, "{run}");
    bucket.server.heal();
    assert_eq!(objects(&bucket.contents("copy")).len(), 3);
    bucket.server.clear_log();
    let done = copy(&bucket, &to, &[]).success().json();
    assert_eq!(
        (&done["copied_count"], &done["unchanged_count"]),
        (&5.into(), &3.into()),
        "{done}"
    );
    assert_eq!(done["by_store_count"], 5, "{done}");
    let log = bucket.server.log();
    assert!(
        !log.iter()
            .any(|line| line.starts_with("GET /bucket/media/")),
        "{log:?}"
    );
    assert_eq!(objects(&bucket.contents("copy")), is);
    let same = copy(&bucket, &to, &[]).success().json();
    assert_eq!(
        (&same["copied_count"], &same["unchanged_count"]),
        (&0.into(), &8.into()),
        "{same}"
    );

    // Objects that differ there are not written over.
    bucket.put("large", b"small now", &Facts::default());
    bucket.put("new", b"new", &Facts::default());
    bucket.server.plant("copy/theirs", b"theirs");
    let before = objects(&bucket.contents("copy"));
    let refused = copy(&bucket, &to, &[]).expect_code(8);
    assert!(refused.stdout.contains("\"large\""), "{refused}");
    assert_eq!(objects(&bucket.contents("copy")), before);
    let done = copy(&bucket, &to, &["--confirm"]).success().json();
    assert_eq!(
        (&done["copied_count"], &done["other_count"]),
        (&2.into(), &1.into()),
        "{done}"
    );
    let mut copied = objects(&bucket.contents("copy"));
    assert_eq!(copied.remove("theirs").unwrap().0, b"theirs");
    assert_eq!(copied, objects(&bucket.contents("media")));
}

#[test]
fn a_large_object_is_copied_in_parts() {
    let bucket = filled();
    let to = format!("s3://{BUCKET}/copy");
    let run = ["files", "copy", "up", "--json", "--to", &to];
    let run = bucket
        .pitr(&run)
        .env("PITR_FAULT_LIMIT", (5 << 20).to_string())
        .succeed();
    assert_eq!(run.json()["by_store_count"], 8, "{run}");
    assert_eq!(
        objects(&bucket.contents("copy")),
        objects(&bucket.contents("media"))
    );
    let log = bucket.server.log();
    assert!(
        log.iter().any(|line| line.contains("partNumber=2")),
        "{log:?}"
    );
}

#[test]
fn another_store_gets_what_is_read() {
    let bucket = filled();
    let other = S3Server::start();
    let credentials = other.credentials(&bucket.world.sandbox, KEY);
    let more = format!(
        "[files.there]\nsource = \"s3://{BUCKET}/there\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\nretry_budget = \"2s\"\n",
        other.endpoint(),
        credentials.display()
    );
    crate::common::append(&bucket.world.config, &more);
    let to = format!("s3://{BUCKET}/there/copy");
    let done = copy(&bucket, &to, &[]).success().json();
    assert_eq!(
        (&done["copied_count"], &done["by_store_count"]),
        (&8.into(), &0.into()),
        "{done}"
    );
    let settings = S3Settings {
        endpoint: Some(other.endpoint()),
        region: Some("us-east-1".into()),
        path_style: true,
        credentials_file: Some(credentials),
        ..S3Settings::default()
    };
    let there = Contents::open(BUCKET, "there/copy", &settings, 7).unwrap();
    assert_eq!(objects(&there), objects(&bucket.contents("media")));
    // The marks differ, and the notes tell that the content does not.
    let same = copy(&bucket, &to, &[]).success().json();
    assert_eq!(
        (&same["copied_count"], &same["unchanged_count"]),
        (&0.into(), &8.into()),
        "{same}"
    );
}

#[test]
fn u67_a_store_that_does_not_copy_gets_what_is_read_and_a_change_is_named() {
    let bucket = filled();
    let fired = bucket
        .server
        .fault("PUT /bucket/copy/", 1, Fault::Error(501, "NotImplemented"));
    let to = format!("s3://{BUCKET}/copy");
    let done = copy(&bucket, &to, &["--jobs", "1"]).success().json();
    assert_eq!(fired.times(), 1);
    assert_eq!(
        (&done["copied_count"], &done["by_store_count"]),
        (&8.into(), &0.into()),
        "{done}"
    );
    assert_eq!(
        objects(&bucket.contents("copy")),
        objects(&bucket.contents("media"))
    );
    // Replaced between the listing and the copy.
    let to = format!("s3://{BUCKET}/second");
    let fired = bucket.server.fault(
        "PUT /bucket/second/dir/",
        1,
        Fault::Error(501, "NotImplemented"),
    );
    let late = bucket
        .server
        .fault_after(1, "GET /bucket/media/large", 1, Fault::Overtaken(b"new"));
    let run = copy(&bucket, &to, &["--jobs", "1"]).expect_code(6);
    assert_eq!((fired.times(), late.times()), (1, 1));
    assert!(run.stdout.contains("replaced meanwhile"), "{run}");
    assert!(!objects(&bucket.contents("second")).contains_key("large"));
    assert_eq!(bucket.server.open_uploads(), 0);
}

#[test]
fn a_place_in_the_source_is_refused() {
    let bucket = filled();
    for to in ["media", "media/copy", ""] {
        let run = copy(&bucket, &format!("s3://{BUCKET}/{to}"), &[]).expect_code(8);
        assert!(run.stdout.contains("lie in one another"), "{run}");
    }
    let run = bucket
        .world
        .pitr(&["files", "copy", "up", "--to", "/srv"])
        .run();
    run.expect_code(2);
}
