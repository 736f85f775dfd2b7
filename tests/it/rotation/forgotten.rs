//! A host that keeps the former file: it goes on, and is seen.

use super::{Rotated, epochs};
use crate::sealed::Sealed;

#[test]
fn z16_a_host_with_the_former_file_goes_on_and_is_seen_by_others() {
    let (sealed, cluster) = Sealed::archived(17);
    let rotated = Rotated::of(&cluster, sealed);
    let sealed = &rotated.sealed;
    sealed.on("writer").words("backup --quiet").succeed();
    let verify = || sealed.on("reader").words("verify").run();
    let warning = "is sealed in epoch 1, and was stored after epoch 2 was made";
    rotated.rotate("operator", "next").succeed();
    let before = verify().success();
    assert!(
        !(before.stdout.clone() + &before.stderr).contains(warning),
        "{before}"
    );
    // The file's clock ticks in seconds on some filesystems.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    cluster.sql("create table t as select g from generate_series(1, 1000) g");
    cluster.archive_now();
    let backup = sealed.on("writer").words("backup --quiet").succeed();
    backup.expect_stderr("the key set has epoch 2, and this host seals in epoch 1");
    assert_eq!(epochs(&sealed.repository)[1], 0);
    let run = verify();
    let shown = run.stdout.clone() + &run.stderr;
    assert!(
        shown.contains(warning) && shown.contains("clusters/main/"),
        "{run}"
    );
    let doctor = sealed.on("writer").arg("doctor").run();
    doctor.expect_stdout("2; this host seals in epoch 1");
    // With the file nothing is said any more.
    rotated.host(&cluster, "writer", &rotated.writer("next"), None);
    cluster.sql("insert into t values (0)");
    cluster.archive_now();
    let backup = sealed.on("writer").words("backup --quiet").succeed();
    assert!(!backup.stderr.contains("epoch"), "{backup}");
    let run = verify().success();
    assert!(
        !(run.stdout.clone() + &run.stderr).contains(warning),
        "{run}"
    );
}
