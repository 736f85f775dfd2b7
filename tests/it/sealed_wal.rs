//! WAL in encrypted repositories beside whole segments: histories, partials, and archiving ahead.

use pitr::pg::segment::{SegmentName, SegmentSize};

use crate::archive::end_of_a_record;
use crate::common::s3::peer::Peer;
use crate::common::{Program, Still, pitr_archive, pitr_restore, user, wait_until};
use crate::s3_cycle::Bucketed;
use crate::sealed::{Sealed, check_nothing_is_plain, keygen};
use crate::ship::{acknowledged, has_worker, noted, offer};

/// Fetches a file of WAL and compares it with the one in pg_wal.
fn comes_back(still: &Still, fetch: Program, name: &str) {
    let fetched = still.wal("RECOVERYXLOG");
    let fetch = fetch.args([name, "pg_wal/RECOVERYXLOG"]);
    fetch.dir(still.cluster.pgdata()).succeed();
    let same = std::fs::read(&fetched).unwrap() == std::fs::read(still.wal(name)).unwrap();
    std::fs::remove_file(fetched).unwrap();
    assert!(same, "\"{name}\" comes back with other bytes");
}

#[test]
fn histories_and_partials_are_sealed_and_come_back_byte_for_byte() {
    let still = Still::new(17, 1, 2);
    let sealed = Sealed::new(&still.cluster);
    let partial = format!("{}.partial", still.segments[1]);
    let own = |name: &str, bytes: &[u8]| {
        std::fs::write(still.wal(name), bytes).unwrap();
        user::own(&still.wal(name));
    };
    own(
        &partial,
        &std::fs::read(still.wal(&still.segments[1])).unwrap(),
    );
    let history = "1\t0/3000000\tbefore the confidential migration\n\n";
    own("00000002.history", history.as_bytes());
    let push = |host: &str, name: &str| {
        let program = pitr_archive().arg("--config").arg(sealed.config(host));
        program
            .arg(format!("pg_wal/{name}"))
            .dir(still.cluster.pgdata())
            .run()
    };
    let names = [still.segments[0].as_str(), &partial, "00000002.history"];
    for name in names {
        push("writer", name).success();
        // The same again is compared by the keyed hash.
        push("writer", name).success();
    }
    check_nothing_is_plain(&sealed, "confidential");
    for name in names {
        let fetch = |host: &str| pitr_restore().arg("--config").arg(sealed.config(host));
        comes_back(&still, fetch("reader"), name);
        let target = still.wal("RECOVERYXLOG");
        let run = fetch("writer").arg(name).arg(&target).run();
        run.expect_code(204).expect_stderr("R204");
        assert!(!target.exists());
    }
    own("00000002.history", b"1\t0/4000000\tanother\n\n");
    push("writer", "00000002.history").expect_code(23);
    sealed.on("reader").words("verify --quiet").succeed();
}

/// Row L51: a host that cannot read the partial that is archived keeps a longer one beside it, and says so. One that can stores its WAL.
#[test]
fn l51_a_longer_partial_continues_an_encrypted_one_that_can_be_read() {
    let still = Still::new(17, 1, 1);
    let sealed = Sealed::new(&still.cluster);
    let name = &still.segments[0];
    let whole = std::fs::read(still.wal(name)).unwrap();
    let start = name.parse::<SegmentName>().unwrap();
    let start = start.start_lsn(SegmentSize::new(1 << 20).unwrap()).unwrap();
    let ends = [400_000, 600_000].map(|from| {
        let end = end_of_a_record(&whole, start.0, from);
        usize::try_from(end - start.0).unwrap()
    });
    // A tail is not handed out where pg_wal has as much.
    std::fs::remove_file(still.wal(name)).unwrap();
    let partial = format!("{name}.partial");
    let push = |host: &str, end: usize| {
        let mut bytes = whole.clone();
        bytes[end..].fill(0);
        std::fs::write(still.wal(&partial), bytes).unwrap();
        user::own(&still.wal(&partial));
        let program = pitr_archive().arg("--config").arg(sealed.config(host));
        let program = program.arg(format!("pg_wal/{partial}"));
        program.dir(still.cluster.pgdata()).succeed()
    };
    let is_stored_to = |end: usize| {
        let fetched = still.wal("RECOVERYXLOG");
        sealed.fetch(&still, "reader", 0).succeed();
        let bytes = std::fs::read(&fetched).unwrap();
        std::fs::remove_file(fetched).unwrap();
        bytes[..end] == whole[..end] && bytes[end..].iter().all(|byte| *byte == 0)
    };
    push("writer", ends[0]);
    let run = push("writer", ends[1]);
    assert!(run.stderr.contains("this host cannot read it"), "{run}");
    assert!(is_stored_to(ends[0]));
    let run = push("reader", ends[1]);
    assert!(run.stderr.contains("continues it up to"), "{run}");
    assert!(is_stored_to(ends[1]));
    let run = push("reader", ends[1]);
    assert_eq!(run.stderr, "", "{run}");
    sealed.on("reader").words("verify --quiet").succeed();
}

/// The first is pushed; a worker ships the others meanwhile, and they are acknowledged from its notes.
fn shipped_ahead(still: &Still, push: &dyn Fn(&str) -> Program, spool: &std::path::Path) {
    for name in &still.segments {
        offer(still, name);
    }
    push(&still.segments[0]).succeed();
    acknowledged(still, &still.segments[0]);
    wait_until("the others are shipped", || {
        noted(spool, ".shipped") == still.segments[1..]
    });
    wait_until("the worker has ended", || !has_worker(spool));
    for name in &still.segments[1..] {
        push(name).succeed();
        acknowledged(still, name);
    }
    assert_eq!(noted(spool, ".shipped"), [""; 0]);
}

#[test]
fn archiving_ahead_into_an_encrypted_directory() {
    let still = Still::new(17, 1, 4);
    let sealed = Sealed::new(&still.cluster);
    let spool = sealed.sandbox.join("spool");
    let push = |host: &str, name: &str| {
        let program = pitr_archive().arg("--config").arg(sealed.config(host));
        program
            .arg(format!("pg_wal/{name}"))
            .env("PITR_CLUSTERS_MAIN_SPOOL_DIR", &spool)
            .dir(still.cluster.pgdata())
    };
    shipped_ahead(&still, &|name| push("writer", name), &spool);
    check_nothing_is_plain(&sealed, "c4ca4238a0b923820dcc509a6f75849b");
    for name in &still.segments {
        let fetch = pitr_restore().arg("--config").arg(sealed.config("reader"));
        comes_back(&still, fetch, name);
    }
    // Who holds no key can neither archive nor take the worker's word for it: other settings are another spool.
    offer(&still, &still.segments[0]);
    push("janitor", &still.segments[0]).exits(37);
}

#[test]
fn archiving_ahead_into_an_encrypted_bucket() {
    let still = Still::new(17, 1, 4);
    let keys = still.site.sandbox().join("keys");
    keygen(&keys, &["ops", "escrow"]).succeed();
    let encryption = |key: &str| {
        format!(
            "[repositories.store.encryption]\n{key} = \"{}\"\n",
            keys.join(if key == "key_set" {
                "writer.key"
            } else {
                "ops.key"
            })
            .display()
        )
    };
    let site = Bucketed::new(&still.cluster, Peer::own(), &encryption("key_set"));
    let push = |name: &str| site.push(&still.cluster, name);
    shipped_ahead(&still, &push, &site.spool());
    let text = std::fs::read_to_string(&site.config).unwrap();
    let text = text.replace(&encryption("key_set"), &encryption("key_file"));
    let reader = site.sandbox.file("reader.toml", text);
    for name in &still.segments {
        let refused = pitr_restore().arg("--config").arg(&site.config);
        refused.arg(name).arg(still.wal("RECOVERYXLOG")).exits(204);
        comes_back(&still, pitr_restore().arg("--config").arg(&reader), name);
    }
}
