//! A receiver of a cluster of which `pitr wal resolve` has chosen a life (rows T78 and T79).

use std::path::PathBuf;

use crate::common::{Cluster, Run, Site, Stop, paths_below};
use crate::lives::{Lives, lives, receive_of, write};
use crate::per_major;
use crate::resolve::{conflicts, restored};
use crate::timeline::with_journal;

/// Two segments of one life are received, and increments of a third one. The machine is set back, and gets the timeline from the first of them
/// on; it has archived two segments, too.
fn set_back(major: u32) -> Lives {
    let mut two = lives(major);
    with_journal(&two.site);
    two.production.start();
    two.site.pitr().words("backup --quiet").succeed();
    two.production.stop(Stop::Fast);
    two.copy_again();
    two.production.start();
    leave_to_the_receiver(&two.production);
    for _ in 0..2 {
        write(&two.production, "lost");
        two.production.switch_wal();
        write(&two.production, "lost");
        receive_of(&two.site, &two.production).success();
    }
    write(&two.production, "lost");
    receive_of(&two.site, &two.production).success();
    two.production.stop(Stop::Immediate);
    two.clone.start();
    write(&two.clone, "kept");
    let first = two.clone.switch_wal();
    two.clone.wait_log("already archived with other content");
    resolve(&two.site);
    two.clone.wait_archived(&first);
    write(&two.clone, "kept");
    two.clone.archive_now();
    two
}

/// Ends archiving: the receiver passes over what is archived.
fn leave_to_the_receiver(cluster: &Cluster) {
    cluster.set("archive_command", "false");
}

/// Gives the timeline to the first refused copy.
fn resolve(site: &Site) {
    let shown = conflicts(site);
    let text = |key: &str| shown["conflicts"][0][key].as_str().unwrap().to_owned();
    let (name, copy) = (text("name"), text("copy"));
    let resolve = site.pitr().args(["wal", "resolve", &name, "--keep", &copy]);
    resolve.arg("--confirm").succeed();
}

/// The increments in the life that was chosen.
fn increments(site: &Site) -> Vec<PathBuf> {
    let lives = site.cluster_folder().join("wal/00000001/lives");
    let is_increment = |path: &PathBuf| path.to_str().unwrap().contains("/open/");
    paths_below(&lives)
        .into_iter()
        .filter(is_increment)
        .collect()
}

fn journal(site: &Site) -> PathBuf {
    let journal = site.sandbox().join("journal");
    let mut below = std::fs::read_dir(journal).unwrap();
    below.next().unwrap().unwrap().path()
}

/// Requires that the receiver says of which server the journal is not, and that all of it stays.
fn refused(run: Run) {
    run.expect_code(8).expect_stderr("stays in the journal");
}

/// Row T78: what the journal holds of the life that lost the timeline is not stored in the one that is followed, whether the journal knows
/// its last segment or not. The journal of the server that is followed is.
fn t78_a_journal_of_the_life_that_lost_is_not_shipped_into_the_other(major: u32) {
    for has_mark in [true, false] {
        let two = set_back(major);
        let (site, clone) = (&two.site, &two.clone);
        let mark = journal(site).join("let-go.json");
        assert!(mark.exists());
        if !has_mark {
            std::fs::remove_file(&mark).unwrap();
        }
        let files = site.files();
        let held = |site: &Site| {
            let files = paths_below(&journal(site)).into_iter();
            files
                .filter(|f| f.extension().is_some_and(|e| e == "wal"))
                .count()
        };
        let before = held(site);
        refused(receive_of(site, clone));
        // Past the journal's end, too.
        for _ in 0..3 {
            write(clone, "kept");
        }
        refused(receive_of(site, clone));
        assert_eq!(increments(site), Vec::<PathBuf>::new());
        assert_eq!((site.files(), held(site)), (files, before));
        clone.archive_now();
        let rows = restored(site, major, "followed", &[]);
        assert_eq!(rows, "before 100, kept 500");
        // The slot keeps what the repository has not, however often the server removes what nobody needs.
        leave_to_the_receiver(clone);
        for _ in 0..2 {
            write(clone, "kept");
            clone.switch_wal();
            clone.sql("checkpoint");
            refused(receive_of(site, clone));
        }
        // Nobody needs the journal of the other life.
        std::fs::rename(journal(site), site.sandbox().join("away")).unwrap();
        write(clone, "kept");
        receive_of(site, clone).success();
        let stored = increments(site).len();
        assert!(stored > 0);
        for is_known in [true, false] {
            clone.switch_wal();
            write(clone, "kept");
            receive_of(site, clone).success();
            write(clone, "kept");
            if !is_known {
                std::fs::remove_file(&mark).unwrap();
            }
            receive_of(site, clone).success();
        }
        assert!(increments(site).len() > stored);
        site.pitr().words("verify").succeed();
        let rows = restored(site, major, "received", &[]);
        assert_eq!(rows, "before 100, kept 1200");
    }
}
per_major!(t78_a_journal_of_the_life_that_lost_is_not_shipped_into_the_other, v13 v17);

/// Row T79: a server that was set back, and from which nobody archives, gets the timeline by the steps that the receiver prints.
fn t79_a_server_with_a_receiver_alone_gets_the_timeline_by_the_steps_that_are_printed(major: u32) {
    let mut two = lives(major);
    with_journal(&two.site);
    two.production.start();
    write(&two.production, "lost");
    receive_of(&two.site, &two.production).success();
    two.production.archive_now();
    for _ in 0..2 {
        write(&two.production, "lost");
    }
    receive_of(&two.site, &two.production).success();
    two.production.stop(Stop::Immediate);
    two.clone = Cluster::open(major, two.clone.pgdata())
        .without_fsync()
        .config("archive_command", "false")
        .create();
    let (site, clone) = (&two.site, &mut two.clone);
    clone.start();
    write(clone, "kept");
    // Before its first segment is full, behind the journal's end, and without a journal.
    let steps = |run: Run| {
        run.expect_code(8)
            .expect_stderr("pitr wal backfill --from PG_WAL")
            .expect_stderr("move the journal away");
    };
    steps(receive_of(site, clone));
    clone.switch_wal();
    for _ in 0..3 {
        write(clone, "kept");
    }
    steps(receive_of(site, clone));
    std::fs::rename(journal(site), site.sandbox().join("away")).unwrap();
    steps(receive_of(site, clone));
    let backfill = site.pitr().words("wal backfill --from");
    backfill.arg(clone.pgdata().join("pg_wal")).exits(1);
    resolve(site);
    receive_of(site, clone).success();
    site.pitr().words("verify").succeed();
    assert!(!increments(site).is_empty());
}
per_major!(
    t79_a_server_with_a_receiver_alone_gets_the_timeline_by_the_steps_that_are_printed,
    v17
);
