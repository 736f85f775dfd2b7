//! Maps of long chains and of very many files: what they cost in memory, descriptors and requests, and how long a claim on them lasts.

mod made;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pitr::snapshot::reader::Snapshot;
use pitr::store::file::FileStore;

use crate::common::s3::peer::Peer;
use crate::common::{Sandbox, Site, wait_until};
use made::{Counts, Distant, Made, Size, scattered};

fn distant(sandbox: &Sandbox, is_remote: bool) -> Distant {
    Distant {
        inner: FileStore::create(&sandbox.join("store"), 1).unwrap(),
        counts: Arc::new(Counts::default()),
        latency: Duration::ZERO,
        is_remote,
    }
}

/// Few of thousands of layers are open at a time, and each costs a few requests, in a directory and across a network.
#[test]
fn r175_the_map_of_a_long_chain_opens_few_objects_at_once() {
    let size = || Size {
        shards: 12,
        layers: 64,
        files: 20,
        pages: 512,
        changed: 16,
    };
    let sandbox = Sandbox::new("chain");
    let store = distant(&sandbox, false);
    let made = Made::write(&store, size());
    for is_remote in [false, true] {
        let store = Distant {
            is_remote,
            ..distant(&sandbox, is_remote)
        };
        let snapshot = Snapshot::open(&store, &Made::scope(), made.root()).unwrap();
        let snapshot = snapshot.spooling(sandbox.path());
        let files = snapshot.items().map(|item| item.unwrap().mapped_bytes);
        assert_eq!(files.sum::<u64>(), made.files() * 512 * 8192);
        let (requests, bytes) = store.counts.take();
        let told = format!(
            "{requests} requests, {bytes} of {} bytes",
            made.layers_bytes()
        );
        // To open it, to open it again, and blocks.
        assert!(!is_remote || requests <= 3 * 12 * 64, "{told}");
        for n in 0..300 {
            let key = made.key(scattered(n, made.files()));
            let places = snapshot.places(&key, 0, u64::MAX).unwrap();
            assert_eq!(places.iter().map(|p| p.length).sum::<u64>(), 512 * 8192);
        }
        let most = store.counts.most_open.load(Ordering::Relaxed);
        // Those that are opened side by side count as well.
        assert!(most <= 160 + 16, "{most} objects were open");
        drop(snapshot);
        assert_eq!(store.counts.open.load(Ordering::Relaxed), 0);
    }
}

/// Files in the order of a server's directories, which a streamed backup has: their lookups cost as many requests as the map has MiB.
#[test]
fn r176_b36_lookups_of_very_many_files_cost_requests_by_bytes_and_not_by_files() {
    let peer = Peer::own();
    let sandbox = Sandbox::new("files");
    let store = peer.store(&sandbox, "far");
    let made = Made::write(
        &store,
        Size {
            shards: 1,
            layers: 2,
            files: 200_000,
            pages: 1,
            changed: 1,
        },
    );
    let look_up = |snapshot: &Snapshot<'_>, count: u64| {
        peer.server().clear_log();
        for n in 0..count {
            let key = made.key(scattered(n, made.files()));
            let found = snapshot.metadata(&key).unwrap().unwrap();
            assert_eq!(found.file_length(), Some(8192));
            assert_eq!(snapshot.places(&key, 0, 8192).unwrap().len(), 1);
        }
        let log = peer.server().log();
        let gets = log.iter().filter(|line| line.starts_with("GET "));
        gets.count() as u64
    };
    let open = || Snapshot::open(&store, &Made::scope(), made.root()).unwrap();
    let mib = made.layers_bytes().div_ceil(1 << 20);
    let without = look_up(&open(), 300);
    assert!(without > 150, "{without} requests for {mib} MiB");
    let with = look_up(&open().spooling(sandbox.path()), 2000);
    assert!(with <= 4 + 3 * mib, "{with} requests for {mib} MiB");
    // No room for a copy: the store answers as before.
    let none = look_up(&open().spooling(&sandbox.join("nowhere")), 100);
    assert!(none > 50, "{none}");
}

/// The map of a chain may take longer to open than a claim lasts: the claim is renewed meanwhile.
#[test]
fn r177_the_claim_of_a_restore_is_renewed_while_its_map_is_opened() {
    let (site, cluster) = Site::with_cluster(17);
    let id = site.backup();
    let claims = || {
        let run = site.pitr().words("repo claims --json").run();
        let claims = run.success().json()["claims"].clone();
        let one = claims.as_array().unwrap().iter();
        let of_restore = one.filter(|claim| claim["purpose"] == "restore");
        of_restore
            .map(|claim| claim["claim"].to_string())
            .collect::<Vec<_>>()
    };
    let pause = site.sandbox().join("pause");
    let restore = site
        .pitr()
        .args(["restore", "--quiet", "--target-immediate", "--backup", &id])
        .arg("--to")
        .arg(cluster.sandbox().join("copy"))
        .env("PITR_FAULT_SECONDS", "1")
        .env(
            "PITR_FAULT_PAUSE",
            format!("restore-map={}", pause.display()),
        )
        .spawn();
    wait_until("the restore opens the map", || pause.exists());
    let first = claims();
    assert_eq!(first.len(), 1);
    wait_until("the claim is renewed", || {
        let now = claims();
        now.len() == 1 && now != first
    });
    std::fs::remove_file(&pause).unwrap();
    restore.wait().success();
    assert!(claims().is_empty());
}
