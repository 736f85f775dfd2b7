//! Two repositories, one of them away for a time; and expire.

use super::live::scene;
use crate::common::keep_one;
use crate::several::{Two, is_segment, objects};

/// Two repositories after some work, with as many segments as it needs: a server may write a record of its own behind the end of a segment, and
/// the next backup then ends one more.
fn undisturbed(segments: usize, work: impl Fn(&Two)) -> Two {
    let attempts = std::iter::repeat_with(|| {
        let two = Two::of(Two::builder().on_disk());
        work(&two);
        two
    });
    let has_them = |two: &Two| {
        let all = objects(two.site.repository());
        all.keys().filter(|key| is_segment(key)).count() == segments
    };
    let found = attempts.take(6).find(has_them);
    found.expect("as many segments as the work needs")
}

#[test]
fn two_repositories() {
    let two = Two::of(Two::builder().on_disk());
    let site = &two.site;
    let mut scene = scene("live-two-repositories", site, &two.cluster);
    two.work(10);
    two.backup();
    scene.run(&site.pitr().words("repo show"));
    scene.run(&site.pitr().words("repo check"));
    scene.say("The second one goes away.");
    two.is_away(true);
    let name = two.cluster.archive_now();
    let push = site.archive().arg(format!("pg_wal/{name}"));
    scene.run(&push.dir(two.cluster.pgdata()));
    for args in [
        &["info"][..],
        &["plan"],
        &["repo", "show"],
        &["repo", "check"],
        &["repo", "sync"],
    ] {
        scene.run(&site.pitr().args(args));
    }
    scene.say("It is back.");
    two.is_away(false);
    for args in [
        &["info"][..],
        &["plan"],
        &["wal", "gaps"],
        &["repo", "sync", "--dry-run"],
        &["repo", "sync"],
        &["repo", "sync"],
        &["info"],
        &["info", "--repository", "second"],
        &["verify"],
    ] {
        scene.run(&site.pitr().args(args));
    }
    scene.check();
}

#[test]
fn what_is_deleted() {
    let two = undisturbed(5, |two| {
        for _ in 0..2 {
            two.work(10);
            two.backup();
        }
        two.cluster.archive_now();
    });
    let site = &two.site;
    let mut scene = scene("live-expire", site, &two.cluster);
    let local = |args: &[&str]| site.pitr().args(args).args(["--repository", &two.first()]);
    scene.run(&local(&["expire", "--keep", "1"]));
    scene.run(&local(&["verify"]));
    scene.run(&local(&keep_one(&["--dry-run"])));
    scene.run(&local(&keep_one(&["--confirm"])));
    scene.run(&local(&["info"]));
    scene.run(&local(&keep_one(&["--confirm", "--grace", "0s"])));
    scene.run(&local(&["info"]));
    scene.run(&local(&["repo", "claims"]));
    scene.run(&local(&keep_one(&["--confirm", "--grace", "0s"])));
    scene.check();
}

#[test]
fn what_is_compacted() {
    let two = undisturbed(5, |two| {
        let method = ["--method", "local", "--quiet", "--repository"];
        let backup = |args: &[&str]| {
            let all = two.site.pitr().arg("backup").args(args).args(method);
            all.arg(two.first()).succeed();
        };
        two.work(10);
        backup(&[]);
        two.work(3000);
        backup(&["--incremental"]);
        two.cluster.archive_now();
    });
    let site = &two.site;
    let mut scene = scene("live-compact", site, &two.cluster);
    let local = |args: &[&str]| site.pitr().args(args).args(["--repository", &two.first()]);
    scene.run(&local(&["repo", "compact"]));
    let all = ["repo", "compact", "--visible", "100"];
    scene.run(&local(&all));
    // Ids of one second are in no order.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    scene.run(&local(&all).words("--confirm --jobs 1"));
    scene.run(&local(&keep_one(&["--dry-run"])));
    scene.run(&local(&["verify"]));
    scene.run(&local(&keep_one(&["--dry-run"])));
    scene.check();
}
