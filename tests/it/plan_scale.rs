//! Plans over very many segments: a repository made up for it, and what `pitr plan` takes.
//!
//! `PITR_SCALE_SEGMENTS=100000 cargo test --test it plan_scale -- --nocapture` prints the numbers of docs/benchmarks.md.

use std::path::Path;
use std::time::{Duration, Instant};

use pitr::pg::lsn::Lsn;
use pitr::pg::page::WalIdentity;
use pitr::pg::segment::{SegmentNumber, SegmentSize};
use pitr::pg::time::TimestampTz;
use pitr::pg::timeline::TimelineId;
use pitr::repo::container::{Codec, ContainerWriter, Identity, Kind};
use pitr::repo::id::PartName;
use pitr::repo::layout::ClusterLayout;
use pitr::repo::repository::{Registration, Repository};
use pitr::repo::root::cluster::Method;
use pitr::repo::root::{BackupKind, BackupRoot, ClusterContent, Head, Map, PackRef};
use pitr::store::file::FileStore;
use pitr::wal::increment::{self, OpenSegment};
use pitr::wal::index::{
    Blocks, Commit, Ends, Fragments, HeadEnd, SegmentIndex, Summary, TailClass, XidSet, flag,
};
use pitr::wal::indexer::Indexer;

use crate::common::{Program, Sandbox, pitr, user};

const IDENTIFIER: u64 = 7_000_000_000_000_000_001;
const SEGMENT: u64 = 16 << 20;
const PAGE: usize = 8192;
/// Bytes of a commit record, and how many of them lie before the border where it crosses one.
const COMMIT: u32 = 46;
const BEFORE: u32 = 16;
/// Length of the only record of a made-up segment that is not at its edges.
const COMMITS: u32 = 300;
/// One of the commits of a real segment removes the file of a table.
const REMOVAL: u32 = 150;
const REMOVED_FILE: u32 = 16400;
/// One made-up segment takes so long.
const STEP_MICROS: i64 = 10_000_000;

fn size() -> SegmentSize {
    SegmentSize::new(SEGMENT).unwrap()
}

fn tli() -> TimelineId {
    TimelineId::FIRST
}

fn time_of(number: u64) -> TimestampTz {
    TimestampTz(800_000_000_000_000 + i64::try_from(number).unwrap() * STEP_MICROS)
}

fn xid_of(number: u64) -> u32 {
    u32::try_from(1000 + number * u64::from(COMMITS) % 4_000_000_000).unwrap()
}

fn record(rmid: u8, info: u8, xid: u32, prev: Lsn, payload: &[u8]) -> Vec<u8> {
    let total = u32::try_from(24 + payload.len()).unwrap();
    let mut out = total.to_le_bytes().to_vec();
    out.extend_from_slice(&xid.to_le_bytes());
    out.extend_from_slice(&prev.0.to_le_bytes());
    out.extend_from_slice(&[info, rmid, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(payload), &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
    out
}

fn commit(xid: u32, time: TimestampTz, prev: Lsn) -> Vec<u8> {
    let mut payload = vec![255, 20];
    payload.extend_from_slice(&time.0.to_le_bytes());
    payload.extend_from_slice(&[0; 12]);
    record(1, 0, xid, prev, &payload)
}

/// As PostgreSQL 17 writes it: xl_xact_commit, xl_xact_xinfo and xl_xact_relfilelocators.
fn commit_that_removes(xid: u32, time: TimestampTz, prev: Lsn) -> Vec<u8> {
    const HAS_INFO: u8 = 0x80;
    const HAS_FILES: u32 = 4;
    let mut payload = vec![255, 28];
    payload.extend_from_slice(&time.0.to_le_bytes());
    for word in [HAS_FILES, 1, 1663, 5, REMOVED_FILE] {
        payload.extend_from_slice(&word.to_le_bytes());
    }
    record(1, HAS_INFO, xid, prev, &payload)
}

/// An online checkpoint of PostgreSQL 17, whose redo point is the record before it.
fn checkpoint(next_xid: u32, prev: Lsn) -> Vec<u8> {
    const ONLINE: u8 = 0x10;
    let mut body = prev.0.to_le_bytes().to_vec();
    // The timeline and the one before, full_page_writes, wal_level.
    for word in [1_u32, 1, 1, 1] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.extend_from_slice(&u64::from(next_xid).to_le_bytes());
    body.resize(88, 0);
    record(0, ONLINE, 0, prev, &[&[255, 88], &body[..]].concat())
}

/// Every fifth segment ends with the first bytes of a commit.
fn crosses(number: u64) -> bool {
    number.is_multiple_of(5)
}

/// A real segment: pages, records, commits. Returns it with the start of its last record.
fn real_segment(number: u64, prev: Lsn) -> (Vec<u8>, Lsn) {
    let start = SegmentNumber(number).start_lsn(size());
    let mut bytes = Vec::with_capacity(SEGMENT as usize);
    let (mut prev, mut count) = (prev, 0_u32);
    let mut state = number | 1;
    let put = |bytes: &mut Vec<u8>, record: &[u8]| {
        let mut rest = record;
        let mut begun = false;
        while !rest.is_empty() {
            if bytes.len().is_multiple_of(PAGE) {
                page_header(bytes, start, if begun { rest.len() } else { 0 });
            }
            let room = (PAGE - bytes.len() % PAGE).min(rest.len());
            bytes.extend_from_slice(&rest[..room]);
            rest = &rest[room..];
            begun = true;
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    let next_start = |bytes: &Vec<u8>| {
        let header = match bytes.len() {
            0 => 40,
            n if n.is_multiple_of(PAGE) => 24,
            _ => 0,
        };
        Lsn(start.0 + (bytes.len() + header) as u64)
    };
    while bytes.len() + 3 * PAGE < SEGMENT as usize {
        let at = next_start(&bytes);
        let body: Vec<u8> = (0..1200)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 57) as u8
            })
            .collect();
        let mut payload = vec![254];
        payload.extend_from_slice(&1200_u32.to_le_bytes());
        payload.extend_from_slice(&body);
        let filler = record(0, 0x20, 0, prev, &payload);
        put(&mut bytes, &filler);
        prev = at;
        if count == 0 {
            let at = next_start(&bytes);
            put(&mut bytes, &checkpoint(xid_of(number), prev));
            prev = at;
        }
        if count < COMMITS {
            let at = next_start(&bytes);
            let time = TimestampTz(time_of(number).0 + i64::from(count) * 10_000);
            let xid = xid_of(number) + count;
            let end = match count {
                REMOVAL => commit_that_removes(xid, time, prev),
                _ => commit(xid, time, prev),
            };
            put(&mut bytes, &end);
            prev = at;
            count += 1;
        }
    }
    let at = next_start(&bytes);
    put(&mut bytes, &record(0, 0x40, 0, prev, &[]));
    bytes.resize(SEGMENT as usize, 0);
    (bytes, at)
}

fn page_header(bytes: &mut Vec<u8>, start: Lsn, remaining: usize) {
    let address = start.0 + bytes.len() as u64;
    let long = bytes.is_empty();
    let flags = u16::from(remaining > 0) | if long { 2 } else { 0 };
    bytes.extend_from_slice(&0xD116_u16.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&1_u32.to_le_bytes());
    bytes.extend_from_slice(&address.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(remaining).unwrap().to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    if long {
        bytes.extend_from_slice(&IDENTIFIER.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(SEGMENT).unwrap().to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(PAGE).unwrap().to_le_bytes());
    }
}

/// An index without a body behind it: as a plan sees a segment that it never decodes.
fn made_up(number: u64, prev: Lsn) -> (SegmentIndex, Lsn) {
    let start = SegmentNumber(number).start_lsn(size());
    let end = Lsn(start.0 + SEGMENT);
    let has_head = crosses(number - 1);
    let has_tail = crosses(number);
    let head_length = if has_head { COMMIT - BEFORE } else { 0 };
    let first = Lsn(start.0 + 40 + u64::from(head_length).next_multiple_of(8));
    let last = Lsn(end.0 - 4096);
    let tail_start = Lsn(end.0 - u64::from(BEFORE));
    let last_begun = if has_tail { tail_start } else { last };
    let time = time_of(number);
    let xid = xid_of(number);
    let crossing = |n: u64, prev| {
        commit(
            xid_of(n) + COMMITS,
            TimestampTz(time_of(n).0 + STEP_MICROS / 2),
            prev,
        )
    };
    let fragments = Fragments {
        head: match has_head {
            true => crossing(number - 1, Lsn(start.0 - 4096))[BEFORE as usize..].to_vec(),
            false => Vec::new(),
        },
        tail: match has_tail {
            true => crossing(number, last)[..BEFORE as usize].to_vec(),
            false => Vec::new(),
        },
    };
    let xids: Vec<u32> = (xid..xid + COMMITS).collect();
    let one = |xid, time| {
        Some(Commit {
            xid,
            lsn: first,
            time,
        })
    };
    let to = TimestampTz(time.0 + STEP_MICROS / 3);
    let index = SegmentIndex {
        summary: Summary {
            flags: 0,
            start_lsn: start,
            first_timeline: 1,
            last_timeline: 1,
            head_length,
            head_remaining: head_length,
            head_end: if has_head {
                HeadEnd::Here
            } else {
                HeadEnd::None
            },
            first_record: Some((first, prev)),
            last_begun: Some(last_begun),
            last_complete: Some((last, if has_tail { tail_start } else { end })),
            tail_length: if has_tail { BEFORE } else { 0 },
            tail_total: if has_tail { COMMIT } else { 0 },
            tail_class: TailClass::Unknown,
            valid_end: end,
            records: 20_000,
            commits: u64::from(COMMITS),
            aborts: 0,
            prepares: 0,
            ends: Some(Ends {
                min_time: time,
                max_time: to,
                first_commit: one(xid, time),
                last_commit: one(xid + COMMITS - 1, to),
                min_xid: xid,
                max_xid: xid + COMMITS - 1,
            }),
        },
        fragments,
        xids: Some(XidSet::from_sorted(&xids)),
        events: Some(Vec::new()),
        blocks: Some(Blocks::default()),
        damage: Vec::new(),
    };
    (index, last_begun)
}

fn store(folder: &Path, layout: &ClusterLayout, number: u64, content: &[u8], index: &SegmentIndex) {
    let name = SegmentNumber(number).name(tli(), size()).unwrap();
    let mut writer = ContainerWriter::new(Vec::new(), Kind::Segment, Codec::Lz4).unwrap();
    writer.write(content).unwrap();
    let start = SegmentNumber(number).start_lsn(size());
    let identity = Identity {
        hash: *blake3::hash(content).as_bytes(),
        raw_bytes: content.len() as u64,
        system_identifier: IDENTIFIER,
        timeline: 1,
        major: 17,
        segment_size_bytes: SEGMENT,
        name: name.to_string(),
        from_lsn: start.0,
        to_lsn: start.0 + SEGMENT,
    };
    let bytes = writer.finish(&identity, index.sections(false)).unwrap();
    let path = folder.join(layout.segment(name).as_str());
    // Not synced: nobody needs it tomorrow.
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn backup(number: u64, index: u64) -> BackupRoot {
    let start = SegmentNumber(number).start_lsn(size());
    let lsn = |offset: u64| Lsn(start.0 + offset);
    BackupRoot {
        head: Head {
            id: format!("202611{:02}T{:02}0000Z-full", 1 + index / 24, index % 24)
                .parse()
                .unwrap(),
            nonce: format!("{index:032x}"),
            backup_kind: BackupKind::Full,
            prior: None,
            label: String::new(),
            start_time: TimestampTz(time_of(number).0 - 5),
            stop_time: TimestampTz(time_of(number).0 + STEP_MICROS / 2),
            file_count: 2000,
            size_bytes: 100 << 30,
            stored_bytes: 30 << 30,
            program: "test".into(),
            features: Vec::new(),
        },
        content: ClusterContent {
            method: Method::Stream,
            cluster: "main".into(),
            system_identifier: IDENTIFIER,
            major: 17,
            server_version_num: 170_009,
            catalog_version: 202_406_281,
            start_lsn: lsn(40),
            stop_lsn: lsn(SEGMENT / 2),
            consistent_lsn: lsn(SEGMENT / 2),
            checkpoint_lsn: lsn(1000),
            start_timeline: 1,
            timeline: 1,
            history: None,
            history_hex: None,
            from_standby: false,
            data_checksums: true,
            wal_segment_size_bytes: SEGMENT,
            block_size_bytes: 8192,
            relseg_blocks: 131_072,
            timezone: Some("UTC".into()),
            tablespaces: Vec::new(),
            server_manifest: None,
            relations: None,
            wal_proof: None,
            whole_scan_time: None,
            left_out_databases: Vec::new(),
            oldest_content: None,
            damage: Vec::new(),
            damage_count: 0,
            damage_reported_by_server: false,
            cut_pages: Vec::new(),
        },
        map: Map {
            shards: Vec::new(),
            packs: Vec::new(),
        },
    }
}

/// A repository of `count` segments and 50 backups; those in `real` have bodies. Returns the last record.
pub fn repository(folder: &Path, count: u64, real: &[u64]) -> Lsn {
    let store_below = FileStore::create(folder, 1).unwrap();
    let (repository, _) = Repository::create(Box::new(store_below), 9, TimestampTz(0)).unwrap();
    repository
        .register(&Registration {
            name: "main".into(),
            system_identifier: IDENTIFIER,
            major: 17,
            segment_size_bytes: SEGMENT,
            block_size_bytes: 8192,
            wal_block_size_bytes: 8192,
            first_seen: TimestampTz(0),
            features: Vec::new(),
            is_lost: false,
        })
        .unwrap();
    let layout = ClusterLayout::new("main", IDENTIFIER).unwrap();
    let mut prev = Lsn(0);
    for number in 1..=count {
        if real.contains(&number) {
            let (bytes, last) = real_segment(number, prev);
            let identity = WalIdentity::read(&bytes).unwrap();
            let start = identity.start_lsn;
            let mut indexer = Indexer::new(&identity, start, tli()).unwrap();
            indexer.feed(&bytes).unwrap();
            let index = indexer.finish(false);
            assert!(index.summary.has(flag::SWITCH) && index.damage.is_empty());
            assert_eq!(index.summary.commits, u64::from(COMMITS));
            store(folder, &layout, number, &bytes, &index);
            prev = last;
        } else {
            let (index, last) = made_up(number, prev);
            store(folder, &layout, number, &[], &index);
            prev = last;
        }
    }
    for index in 0..50 {
        let number = 2 + index * (count - 20) / 50;
        backup(number, index)
            .commit(repository.store(), &layout)
            .unwrap();
    }
    prev
}

/// Puts the first `length` bytes of the segment behind the last one, as a receiver would.
fn stream(folder: &Path, number: u64, prev: Lsn, length: usize) -> String {
    let repository = Repository::open(Box::new(FileStore::open(folder, 1).unwrap())).unwrap();
    let layout = ClusterLayout::new("main", IDENTIFIER).unwrap();
    let segment = OpenSegment {
        name: SegmentNumber(number).name(tli(), size()).unwrap(),
        size: size(),
        major: 17,
    };
    let (bytes, _) = real_segment(number, prev);
    let mut at = segment.range().unwrap().start;
    for piece in bytes[..length].chunks(100_000) {
        increment::put(&repository, &layout, &segment, at, piece).unwrap();
        at.0 += piece.len() as u64;
    }
    segment.name.to_string()
}

fn measured(program: &Program, what: &str) -> (serde_json::Value, Duration, u64) {
    measured_with(program, what, 0)
}

fn measured_with(program: &Program, what: &str, code: i32) -> (serde_json::Value, Duration, u64) {
    let (run, usage) = program.measure();
    let run = run.expect_code(code);
    println!(
        "{what:<30} {:>10.1?} wall, {:>10.1?} processor, {:>6.1} MiB",
        usage.wall,
        usage.cpu,
        usage.peak_memory_bytes as f64 / 1048576.0
    );
    (run.json(), usage.wall, usage.peak_memory_bytes)
}

/// A restore reads the ends of all segments, though a cache knows them: from the first backup on, and finds the one that is cut.
fn restore_reads_every_end(folder: &Path, last: u64, run: &dyn Fn(&[&str]) -> Program) {
    let first = ["restore", "--dry-run", "--backup", "20261101T000000Z-full"];
    // The parts of such a backup are not there; the restore finds that after the WAL.
    let (said, _, peak) = measured_with(&run(&first), "restore, its WAL looked at", 1);
    let message = said["message"].as_str().unwrap();
    assert!(message.contains("its layers disagree"), "{said:#}");
    assert!(peak < 100 << 20, "{peak} bytes");

    let layout = ClusterLayout::new("main", IDENTIFIER).unwrap();
    let cut = SegmentNumber(last - 7).name(tli(), size()).unwrap();
    let object = folder.join(layout.segment(cut).as_str());
    let whole = std::fs::read(&object).unwrap();
    std::fs::write(&object, &whole[..whole.len() - 1]).unwrap();
    let (plan, ..) = measured_with(&run(&first), "restore, a segment cut", 5);
    let explanation = plan["explanation"].as_str().unwrap();
    assert!(explanation.contains(&cut.to_string()), "{plan:#}");
    std::fs::write(&object, whole).unwrap();
}

/// The indexes lead to the two segments that remove something, and only these are decoded.
fn find_tells_the_removals(count: u64, removing: &[u64], run: &dyn Fn(&[&str]) -> Program) {
    for what in ["find by the indexes, first", "find by the indexes, warm"] {
        let (found, _, peak) = measured(&run(&["find"]), what);
        let events = found["events"].as_array().unwrap().iter();
        let told = events.map(|event| {
            assert_eq!(event["relation"]["file"], REMOVED_FILE, "{found:#}");
            event["xid"].as_u64().unwrap()
        });
        let removals = removing.iter().map(|n| u64::from(xid_of(*n) + REMOVAL));
        assert!(told.eq(removals), "{found:#}");
        assert_eq!(found["unread"], serde_json::json!([]), "{found:#}");
        assert_eq!(found["segment_count"], count, "{found:#}");
        assert_eq!(found["decoded_count"], removing.len(), "{found:#}");
        assert!(peak < 100 << 20, "{peak} bytes");
    }
}

#[test]
fn a_plan_over_many_segments_stays_small() {
    let count: u64 = std::env::var("PITR_SCALE_SEGMENTS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(3000);
    let sandbox = Sandbox::new("scale");
    let folder = sandbox.join("repo");
    // The end, and a moment that is proven by one segment behind a switch: nothing crosses its borders.
    let middle = count / 2 / 5 * 5 + 3;
    let last = count / 5 * 5 + 2;
    let begun = Instant::now();
    let prev = repository(&folder, last, &[middle, last]);
    println!("made {last} segments in {:.1?}", begun.elapsed());
    user::own_all(&folder);
    let cache = sandbox.dir("cache");
    let run = |args: &[&str]| -> Program {
        pitr()
            .words("--json --repository")
            .arg(&folder)
            .args(args)
            .env("XDG_CACHE_HOME", &cache)
    };
    let at = TimestampTz(time_of(middle).0 + 1_005_000).to_string();
    let timed = run(&["plan", "--target-time", &at]);
    // The code of a development build counts as memory, and it grows with every command that others write.
    let (_, idle) = pitr().arg("--version").measure();
    let most = idle.peak_memory_bytes + (32 << 20);
    let (plan, _, peak) = measured(&timed, "plan of a time, cold");
    assert_eq!(plan["last_commit"]["xid"], xid_of(middle) + 100, "{plan:#}");
    assert_eq!(plan["first_excluded"]["xid"], xid_of(middle) + 101);
    assert!(peak < most, "{peak} bytes");
    let (_, _, peak) = measured(&timed, "plan of a time, warm");
    assert!(peak < most, "{peak} bytes");
    let (plan, ..) = measured(&run(&["plan"]), "plan of the end, warm");
    assert_eq!(plan["outcome"], "end_of_wal");
    let xid = (xid_of(middle) + 7).to_string();
    let (plan, ..) = measured(
        &run(&["plan", "--target-xid", &xid]),
        "plan of a transaction, warm",
    );
    assert_eq!(plan["last_commit"]["xid"], xid_of(middle) + 7);
    measured(&run(&["info"]), "info, warm");
    find_tells_the_removals(last, &[middle, last], &run);
    restore_reads_every_end(&folder, last, &|args| {
        run(args).arg("--to").arg(sandbox.dir("copy").join("data"))
    });
    let name = stream(&folder, last + 1, prev, 600_000);
    user::own_all(&folder);
    let (plan, _, peak) = measured(&run(&["plan"]), "plan of the end with a tail");
    assert_eq!(plan["segments_needed"]["last"], name, "{plan:#}");
    assert!(plan["last_commit"]["xid"].as_u64().unwrap() >= u64::from(xid_of(last + 1)));
    assert!(peak < most, "{peak} bytes");
}

/// A backup that names this many packs of the first one.
fn sharing(number: u64, index: u64, packs: u32) -> BackupRoot {
    let id = backup(number, 0).head.id;
    let pack = |number| PackRef {
        key: PartName {
            id: id.clone(),
            number,
        },
        size_bytes: 256 << 20,
        live_frames: 1,
        live_bytes: 1,
        all_frames: None,
        all_bytes: None,
    };
    let mut root = backup(number, index);
    root.map.packs = (0..packs).map(pack).collect();
    root
}

/// Many backups of a large cluster share its packs: what is kept of each is small, whatever the number of these.
#[test]
fn r198_backups_that_share_many_packs_take_little_memory() {
    const PACKS: u32 = 5_000;
    let sandbox = Sandbox::new("shared");
    let folder = sandbox.join("repo");
    repository(&folder, 102, &[53, 102]);
    let layout = ClusterLayout::new("main", IDENTIFIER).unwrap();
    let cache = sandbox.dir("cache");
    let peak_with = |indexes: std::ops::Range<u64>| -> u64 {
        let repository = Repository::open(Box::new(FileStore::open(&folder, 1).unwrap())).unwrap();
        for index in indexes.clone() {
            let root = sharing(90, index, PACKS);
            root.commit(repository.store(), &layout).unwrap();
        }
        user::own_all(&folder);
        let info = pitr()
            .words("--json --repository")
            .arg(&folder)
            .arg("info")
            .env("XDG_CACHE_HOME", &cache);
        let (info, _, peak) = measured(&info, "info, packs are shared");
        let backups = info["clusters"][0]["backups"].as_array().unwrap().len();
        assert_eq!(backups as u64, indexes.end);
        peak
    };
    let few = peak_with(50..60);
    let many = peak_with(60..120);
    // Each name took more than 72 bytes: 20 MiB.
    assert!(many < few + (10 << 20), "{few} and {many} bytes");
}
