//! A PostgreSQL newer than this program: its WAL is archived undecoded and comes back, and whatever would need more says so.
//!
//! There is no such server. The segments and the pg_control of a real server of the newest major stand for those of one: headers of pages have
//! no checksum, so that another magic number makes authentic pages of a newer major.

use std::os::unix::fs::FileExt;
use std::path::Path;

use pitr::config::Encryption;
use pitr::pg::time::TimestampTz;
use pitr::repo::repository::{Registration, Repository};
use pitr::store::file::FileStore;
use rustix::process::Signal;

use crate::common::reception;
use crate::common::s3::KEY;
use crate::common::s3::peer::Peer;
use crate::common::walsender::{Act, Answer, Identity, Walsender};
use crate::common::{Still, paths_below, pitr, pitr_archive, pitr_restore};
use crate::fetch::{mode, not_here_with_warning};
use crate::sealed::keygen;

const NEWEST: u32 = 19;
const MAGIC: u16 = 0xD123;
const PAGE: usize = 8192;
const SEGMENT: u64 = 1 << 20;
/// The place of the must-understand flags, counted from an object's end.
const FLAGS_FROM_END: usize = 24;

/// Three segments of a server of a newer major that was stopped.
fn newer() -> Still {
    let still = Still::new(NEWEST, 1, 3);
    age(&still);
    let store = FileStore::open(still.site.repository(), 7).unwrap();
    std::fs::remove_file(still.site.cluster_folder().join("cluster.json")).unwrap();
    register(
        &still,
        Repository::open_with(Box::new(store), None).unwrap(),
    );
    still
}

/// Makes what lies in the data directory that of a newer major.
fn age(still: &Still) {
    let wal = still.cluster.pgdata().join("pg_wal");
    for entry in std::fs::read_dir(wal).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            make_newer(&path, MAGIC);
        }
    }
    let control = still.cluster.pgdata().join("global/pg_control");
    let mut bytes = std::fs::read(&control).unwrap();
    bytes[8..12].copy_from_slice(&2000_u32.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..308]);
    bytes[308..312].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(control, bytes).unwrap();
    std::fs::write(still.cluster.pgdata().join("PG_VERSION"), "20\n").unwrap();
}

/// Puts another magic number on every page that has one.
fn make_newer(path: &Path, magic: u16) {
    let mut bytes = std::fs::read(path).unwrap();
    for page in bytes.chunks_exact_mut(PAGE) {
        if page[..2] != [0, 0] {
            page[..2].copy_from_slice(&magic.to_le_bytes());
        }
    }
    std::fs::write(path, bytes).unwrap();
}

/// Registers the cluster as one of the newer major, as `pitr init` does on a server that says so.
fn register(still: &Still, repository: Repository) {
    let registration = Registration {
        name: "main".into(),
        system_identifier: still.site.system_identifier(),
        major: NEWEST + 1,
        segment_size_bytes: SEGMENT,
        block_size_bytes: 8192,
        wal_block_size_bytes: 8192,
        first_seen: TimestampTz(0),
        features: Vec::new(),
        is_lost: false,
    };
    repository.register(&registration).unwrap();
}

#[test]
fn p23_a_newer_major_is_archived_undecoded_and_comes_back() {
    let still = newer();
    let [first, second, third] = still.segments.as_slice() else {
        panic!("three segments")
    };
    // One warning, however many segments follow.
    let told = "written by a PostgreSQL newer than 19 (page magic D123), which this pitr cannot read: its WAL is archived undecoded";
    still.push(first).succeed().expect_stderr(told);
    for name in [second, third, second] {
        let run = still.push(name).succeed();
        assert!(run.stderr.is_empty(), "{run}");
    }
    for name in &still.segments {
        still.check(name);
        // No older program takes it for a segment that it can read.
        let object = std::fs::read(still.site.object(name)).unwrap();
        assert_eq!(object[object.len() - FLAGS_FROM_END], 2, "{name}");
    }
    // History files are archived beside an unknown pg_control.
    std::fs::write(still.wal("00000002.history"), "1\t0/5000000\tno reason\n").unwrap();
    still.push("00000002.history").succeed();
    assert!(still.site.object("00000002.history").exists());
    // Other content under a name is a conflict there, too.
    let raw = std::fs::read(still.wal(second)).unwrap();
    let mut other = raw.clone();
    other[PAGE / 2] ^= 1;
    std::fs::write(still.wal(second), &other).unwrap();
    still
        .push(second)
        .run()
        .expect_stderr("already archived with other content");
    std::fs::write(still.wal(second), &raw).unwrap();
    still.check(second);
}

#[test]
fn p23_a_fork_of_a_newer_major_is_resolved_and_stays_undecoded() {
    let still = newer();
    still.push_all();
    let name = &still.segments[1];
    let mut other = std::fs::read(still.wal(name)).unwrap();
    other[PAGE / 2] ^= 1;
    std::fs::write(still.wal(name), &other).unwrap();
    still
        .push(name)
        .run()
        .expect_stderr("already archived with other content");
    let conflicts = still.site.pitr().words("wal conflicts --json").succeed();
    let conflicts = conflicts.json();
    let copy = conflicts["conflicts"][0]["copy"].as_str().unwrap();
    let resolve = still.site.pitr().words("wal resolve --confirm");
    resolve.args([name, "--keep", copy]).succeed();
    still.check(name);
    let flags = |path: &Path| {
        let object = std::fs::read(path).unwrap();
        object[object.len() - FLAGS_FROM_END]
    };
    let all = paths_below(still.site.repository()).into_iter();
    let of_name = all.filter(|p| p.is_file() && p.display().to_string().contains("/wal/"));
    let of_name: Vec<_> = of_name
        .filter(|p| {
            p.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(name.as_str())
        })
        .collect();
    assert_eq!(of_name.len(), 2, "{of_name:?}");
    assert!(of_name.iter().all(|p| flags(p) == 2), "{of_name:?}");
}

#[test]
fn p23_what_cannot_be_proven_of_a_newer_major_is_said() {
    let still = newer();
    still.push_all();
    let pitr = || still.site.pitr();
    let name = &still.segments[0];
    let means = "PostgreSQL 20 is newer than 19, the newest that this pitr knows: its WAL is archived undecoded";
    pitr().arg("info").run().expect_stdout(means);
    pitr().arg("plan").exits(5).expect_stdout(means);
    pitr()
        .args(["wal", "show", name])
        .succeed()
        .expect_stdout("flags           undecoded")
        .expect_stdout("records         not decoded");
    pitr().words("wal list").succeed().expect_stdout(name);
    pitr().words("wal gaps").succeed();
    let run = pitr().words("expire --keep 1 --confirm").run();
    assert!(matches!(run.code(), 0 | 6), "{run}");
    still.check(name);
    pitr().arg("verify").succeed().expect_stderr(
        "3 segments were written by a PostgreSQL newer than 19: every byte was checked",
    );
    // Damage is found without a word of what the WAL says.
    let object = std::fs::OpenOptions::new()
        .write(true)
        .open(still.site.object(name))
        .unwrap();
    object.write_all_at(&[0x55; 16], 2000).unwrap();
    pitr().arg("verify").exits(4);
    still.fetch(name).run().expect_stderr("damaged");
}

#[test]
fn w65_a_backfill_leaves_out_the_last_segment_of_a_newer_major() {
    let still = newer();
    let last = u32::from_str_radix(&still.segments[2][16..], 16).unwrap() + 1;
    let last = format!("{}{last:08X}", &still.segments[2][..16]);
    let backfill = still.site.pitr().words("wal backfill --from");
    let run = backfill.arg(still.wal("")).succeed();
    for name in &still.segments {
        still.check(name);
    }
    run.expect_stdout(&format!("left out      {last}"))
        .expect_stdout("whether it is whole is unknown");
    assert!(!still.site.object(&last).exists());
    // The server itself offers whole segments alone.
    still.push(&last).succeed();
    still.check(&last);
}

#[test]
fn p23_undecoded_wal_is_sealed_in_a_bucket_and_copied_by_sync() {
    let still = Still::new(NEWEST, 1, 3);
    let sandbox = still.site.sandbox();
    let keys = sandbox.join("keys");
    keygen(&keys, &["ops", "escrow"]).succeed();
    let key = |name: &str| keys.join(name);
    let peer = Peer::own();
    let copy = sandbox.join("copy");
    let cluster = format!(
        "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n",
        still.cluster.pgdata().display(),
        still.cluster.conninfo("postgres")
    );
    let vault = format!(
        "[repositories.vault]\nurl = \"s3://{}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\n\
         credentials_file = \"{}\"\n",
        peer.bucket,
        peer.endpoint(),
        peer.credentials(sandbox, KEY).display(),
    );
    let directory = format!("[repositories.copy]\nurl = \"file://{}\"\n", copy.display());
    let writes = |name: &str| {
        let key = key("writer.key");
        format!(
            "[repositories.{name}.encryption]\nkey_set = \"{}\"\n",
            key.display()
        )
    };
    let reads = format!("key_file = \"{}\"\n", key("ops.key").display());
    let writer = |name: &str, place: &str| {
        let text = format!("{cluster}{place}{}", writes(name));
        sandbox.file(format!("{name}.toml"), text)
    };
    let (into_vault, into_copy) = (writer("vault", &vault), writer("copy", &directory));
    let both = [(&vault, writes("vault")), (&directory, writes("copy"))];
    let both = both.map(|(place, writes)| format!("{place}{writes}{reads}"));
    let all = sandbox.file("all.toml", format!("{cluster}{}", both.concat()));
    let on_all = || pitr().arg("--config").arg(&all);
    on_all().words("init --quiet").succeed();
    age(&still);
    let registered = peer.server().key("cluster.json");
    peer.server().lose(&registered);
    let encryption = Encryption {
        key_set: Some(key("writer.key")),
        ..Encryption::default()
    };
    let bucket = peer.store(sandbox, "pg");
    register(
        &still,
        Repository::open_with(Box::new(bucket), Some(&encryption)).unwrap(),
    );
    let registered = paths_below(&copy).into_iter();
    for file in registered.filter(|path| path.ends_with("cluster.json")) {
        std::fs::remove_file(file).unwrap();
    }
    let store = FileStore::open(&copy, 7).unwrap();
    register(
        &still,
        Repository::open_with(Box::new(store), Some(&encryption)).unwrap(),
    );

    // Two go into the bucket, the third into the directory.
    for (n, name) in still.segments.iter().enumerate() {
        let config = if n < 2 { &into_vault } else { &into_copy };
        let push = pitr_archive().arg("--config").arg(config);
        let push = push.arg(format!("pg_wal/{name}"));
        push.dir(still.cluster.pgdata()).succeed();
    }
    let fetch = |config: &Path, repository: &str, name: &str| {
        let program = pitr_restore().arg("--config").arg(config);
        let program = program.args(["--repository", repository, name]);
        let program = program.arg("pg_wal/RECOVERYXLOG");
        program.dir(still.cluster.pgdata()).run()
    };
    // Who only writes cannot read it back.
    fetch(&into_vault, "vault", &still.segments[0]).expect_code(204);
    let comes_back = |repository: &str, name: &str| {
        fetch(&all, repository, name).success();
        let fetched = still.wal("RECOVERYXLOG");
        let same = std::fs::read(&fetched).unwrap() == std::fs::read(still.wal(name)).unwrap();
        std::fs::remove_file(fetched).unwrap();
        assert!(
            same,
            "\"{name}\" comes back from {repository} with other bytes"
        );
    };
    comes_back("vault", &still.segments[0]);

    on_all().words("repo sync").succeed();
    for repository in ["vault", "copy"] {
        for name in &still.segments {
            comes_back(repository, name);
        }
        let verify = on_all().args(["verify", "--repository", repository]);
        verify.succeed().expect_stderr("every byte was checked");
    }
    on_all().words("repo sync").succeed();

    let victim = peer.server().key(&still.segments[2]);
    let mut bytes = peer.server().object(&victim);
    bytes[2000] ^= 1;
    peer.server().plant(&victim, &bytes);
    on_all().words("verify --repository vault").exits(4);
    assert!(!fetch(&all, "vault", &still.segments[2]).is_success());
    assert!(!still.wal("RECOVERYXLOG").exists());
}

/// The pages of a server that is registered as 18 have one magic number: another one is damage, however new it looks.
#[test]
fn p23_an_unknown_magic_number_of_a_known_major_is_refused() {
    let still = Still::new(18, 1, 1);
    let name = &still.segments[0];
    for (magic, why) in [
        (MAGIC, "which is not that of PostgreSQL 18"),
        (0xD119, "WAL page magic D119 is not supported"),
        (0x1234, "is not the magic number of a WAL page"),
    ] {
        make_newer(&still.wal(name), magic);
        let run = still.push(name).run();
        assert!(!run.is_success(), "{run}");
        run.expect_stderr(why);
        assert!(!still.site.object(name).exists());
    }
}

#[test]
fn p23_the_receiver_stores_what_a_newer_server_streams_and_a_backup_is_refused() {
    let still = newer();
    let name = &still.segments[0];
    let data = std::fs::read(still.wal(name)).unwrap();
    let number = u64::from_str_radix(&name[16..], 16).unwrap();
    let (start, end) = (number * SEGMENT, (number + 1) * SEGMENT);
    let identity = Identity {
        system_identifier: still.site.system_identifier(),
        timeline: 1,
        flush: end,
        version: "20.1".into(),
        segment_size: "1MB".into(),
        restart: Some(start),
    };
    let stream = [Act::Wal { start, data }, Act::AwaitFlush(end), Act::Silence];
    let server =
        Walsender::start(identity).on("START_REPLICATION", [Answer::Stream(stream.into())]);
    let journal = still.site.sandbox().join("journal");
    reception::configure(&still.site, &server.conninfo(), &journal);
    let mut running = still.site.pitr().arg("receive").spawn();
    running.until("the segment is stored", || still.site.object(name).exists());
    running
        .ended_by(Signal::TERM)
        .success()
        .expect_stderr("its WAL is archived undecoded");
    still.check(name);
    still
        .site
        .pitr()
        .arg("backup")
        .run()
        .expect_stderr("PostgreSQL 20 is newer than 19")
        .expect_stderr("Install a newer pitr");
    // Without a server pg_control would have to be read.
    pitr()
        .words("init --pgdata")
        .arg(still.cluster.pgdata())
        .arg("--config")
        .arg(still.site.sandbox().join("other.toml"))
        .arg("--repository")
        .arg(still.site.sandbox().join("other"))
        .run()
        .expect_stderr("version 2000");
}

/// The end of such WAL is not known, so that recovery stops. A standby streams what it lacks, and its promotion does not stop either.
#[test]
fn p23_a_part_of_a_segment_of_a_newer_major_stops_recovery_and_no_standby() {
    let still = newer();
    let name = &still.segments[0];
    let mut data = std::fs::read(still.wal(name)).unwrap();
    data.truncate(data.len() / 2);
    let number = u64::from_str_radix(&name[16..], 16).unwrap();
    let start = number * SEGMENT;
    let end = start + data.len() as u64;
    let identity = Identity {
        system_identifier: still.site.system_identifier(),
        timeline: 1,
        flush: end,
        version: "20.1".into(),
        segment_size: "1MB".into(),
        restart: Some(start),
    };
    let stream = [Act::Wal { start, data }, Act::AwaitFlush(end), Act::Silence];
    let server =
        Walsender::start(identity).on("START_REPLICATION", [Answer::Stream(stream.into())]);
    let journal = still.site.sandbox().join("journal");
    reception::configure(&still.site, &server.conninfo(), &journal);
    let mut running = still.site.pitr().arg("receive").spawn();
    running.until("a part is stored", || {
        still
            .site
            .files()
            .iter()
            .any(|file| file.contains("/open/"))
    });
    running.ended_by(Signal::TERM).success();

    let told = "newer than 19 (page magic D123), which this pitr cannot read";
    mode(&still, "recovery.signal", false);
    still.fetch(name).exits(201).expect_stderr(told);
    // Nothing but the archive gives it to this one.
    mode(&still, "standby.signal", false);
    still.fetch(name).exits(201).expect_stderr(told);
    mode(&still, "standby.signal", true);
    let run = still.fetch(name).run();
    assert!(run.stderr.contains(told), "{run}");
    not_here_with_warning(&still, run);
    still.cluster.touch("promote");
    not_here_with_warning(&still, still.fetch(name).run());
}
