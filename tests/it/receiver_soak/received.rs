//! The WAL that was received against the WAL that the primary wrote.

use std::path::PathBuf;

use super::Campaign;
use crate::common::reception::{archived, lsn};
use crate::common::{Cluster, Sandbox, Site};

const SEGMENT: u64 = 1 << 20;

fn name(timeline: u32, number: u64) -> String {
    let in_a_log = (1 << 32) / SEGMENT;
    format!(
        "{timeline:08X}{:08X}{:08X}",
        number / in_a_log,
        number % in_a_log
    )
}

/// Waits until the receiver says that the repository holds everything up to `end`.
pub fn wait_shipped(campaign: &mut Campaign, end: &str) {
    let end = lsn(end);
    let what = format!("the journal is in the repository up to {end:X}");
    campaign.wait(&what, |c| {
        archived(&c.disk.path().join("journal")).is_some_and(|at| at >= end)
    });
}

/// The first segment of a timeline of which the repository has anything, by number.
fn first(site: &Site, timeline: u32) -> u64 {
    let files = site.files();
    let folder = format!("/wal/{timeline:08X}/");
    let names = files
        .iter()
        .filter(|file| file.contains(&folder))
        .filter_map(|file| {
            file.split('/')
                .find(|part| part.len() == 24 && part.bytes().all(|b| b.is_ascii_hexdigit()))
        });
    let first = names.min().expect("something was received");
    let half = |digits| u64::from_str_radix(digits, 16).unwrap();
    half(&first[8..16]) * ((1 << 32) / SEGMENT) + half(&first[16..])
}

/// Fails unless the received WAL of a timeline is the primary's pg_wal, byte for byte and without a hole, up to `end`.
pub fn compare(site: &Site, primary: &Cluster, timeline: u32, end: u64) {
    let folder = Sandbox::new("received");
    let (from, last) = (first(site, timeline), (end - 1) / SEGMENT);
    assert!(from <= last, "segments {from} to {last}");
    for number in from..=last {
        let name = name(timeline, number);
        let to: PathBuf = folder.dir("out").join(&name);
        site.pitr().args(["wal", "fetch", &name]).arg(&to).succeed();
        let received = std::fs::read(&to).unwrap();
        let written = std::fs::read(primary.pgdata().join("pg_wal").join(&name)).unwrap();
        let size = usize::try_from((end - number * SEGMENT).min(SEGMENT)).unwrap();
        assert_eq!(received.len(), written.len(), "{name}");
        let differs = (0..size).find(|&at| received[at] != written[at]);
        assert!(
            differs.is_none(),
            "{name} was received with another byte at {:#X} of {size:#X}",
            differs.unwrap_or_default()
        );
        std::fs::remove_file(to).unwrap();
    }
    println!(
        "soak: {} segments of timeline {timeline} are the primary's, byte for byte",
        last - from + 1
    );
}
