//! `pitr metrics` tells of a repository beside whole backups: conflicts, damage, leftovers, and what is to go.

use crate::backup_faults::damage;
use crate::common::{Still, keep_one, user, wait_until};
use crate::metrics::{metrics, site, value};

fn conflicts(text: &str, kind: &str) -> Option<f64> {
    let series = "pitr_archive_conflicts_total{cluster=\"main\",repo=\"local\",kind=";
    value(text, &format!("{series}\"{kind}\"}}"))
}

#[test]
fn refused_copies_are_counted_once_and_stay_counted() {
    let still = Still::new(17, 1, 1);
    still.site.keep_state();
    let pitr = still.site.pitr();
    let seen = || {
        let text = metrics(&pitr);
        (conflicts(&text, "segment"), conflicts(&text, "history"))
    };
    let name = &still.segments[0];
    let history = |position: &str| {
        let path = still.wal("00000002.history");
        std::fs::write(
            &path,
            format!("1\t{position}\tno recovery target specified\n\n"),
        )
        .unwrap();
        user::own(&path);
    };
    still.push(name).succeed();
    history("0/3000000");
    still.push("00000002.history").succeed();
    assert_eq!(seen(), (Some(0.0), Some(0.0)));

    let mut other = std::fs::read(still.wal(name)).unwrap();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(still.wal(name), &other).unwrap();
    for _ in 0..2 {
        still.push(name).exits(20);
        assert_eq!(seen(), (Some(1.0), Some(0.0)), "the same copy counts once");
    }
    history("0/4000000");
    still.push("00000002.history").exits(23);
    assert_eq!(seen(), (Some(1.0), Some(1.0)));
    // A copy that was seen stays counted when it is gone: a counter never goes back.
    std::fs::remove_dir_all(still.site.cluster_folder().join("conflicts")).unwrap();
    assert_eq!(seen(), (Some(1.0), Some(1.0)));
}

#[test]
fn a_backup_that_was_killed_is_incomplete_and_one_that_runs_is_not() {
    let (site, _cluster) = site(17);
    let pitr = site.pitr();
    let incomplete = |kind: &str| {
        let series = format!(
            "pitr_backups{{cluster=\"main\",type=\"{kind}\",repo=\"local\",state=\"incomplete\"}}"
        );
        value(&metrics(&pitr), &series)
    };
    assert_eq!(incomplete("full"), Some(0.0));
    let running = pitr
        .clone()
        .words("backup --quiet --max-rate 100KB")
        .spawn();
    wait_until("the backup has claimed its id", || {
        let is_claim = |file: &String| file.contains("-full/") && file.contains("-claim-");
        site.files().iter().any(is_claim)
    });
    assert_eq!(incomplete("full"), Some(0.0), "it runs");
    drop(running);
    wait_until("the kill is seen", || incomplete("full") == Some(1.0));
    assert_eq!(incomplete("incr"), Some(0.0));
}

#[test]
fn damaged_pages_are_counted_in_the_newest_backup_and_what_is_to_go_is_pending() {
    let (site, mut cluster) = site(17);
    let pitr = site.pitr();
    let labels = "cluster=\"main\",type=\"full\",repo=\"local\"";
    let errors = |text: &str| value(text, &format!("pitr_backup_page_errors{{{labels}}}"));
    let pending = "pitr_expire_pending_bytes{cluster=\"main\",repo=\"local\"}";
    let text = metrics(&pitr);
    assert_eq!(errors(&text), None, "there is no backup\n{text}");
    assert_eq!(value(&text, pending), Some(0.0), "{text}");
    pitr.clone().words("backup --quiet").succeed();
    assert_eq!(errors(&metrics(&pitr)), Some(0.0));
    damage(&mut cluster, &[3, 900]);
    pitr.clone().words("backup --quiet").exits(10);
    assert_eq!(errors(&metrics(&pitr)), Some(2.0));
    cluster.sql("drop table d");
    cluster.sql("checkpoint");
    pitr.clone().words("backup --quiet").succeed();
    assert_eq!(
        errors(&metrics(&pitr)),
        Some(0.0),
        "the newest one is whole"
    );

    // Marked today, they are deleted after the time of grace.
    let marking = keep_one(&["--confirm", "--quiet"]);
    pitr.clone().args(marking).succeed();
    let info = pitr.clone().words("info --json").run().json();
    let backups = info["clusters"][0]["backups"].as_array().unwrap().clone();
    let marked = backups.iter().filter(|b| !b["expire_not_before"].is_null());
    let bytes: f64 = marked.map(|b| b["stored_bytes"].as_f64().unwrap()).sum();
    assert!(bytes > 0.0, "{info}");
    assert_eq!(value(&metrics(&pitr), pending), Some(bytes));
}
