//! WAL of real servers, decoded by us and by PostgreSQL's own tools: both must say the same.
//!
//! | judge | majors | what it decides |
//! |---|---|---|
//! | pg_waldump | 13, 15–18 | every record: LSN, link, resource manager, length, xid, blocks; every transaction end: xid, time, subtransactions |
//! | pg_xact_commit_timestamp | all | xid and time of every commit |
//! | test_decoding | all | order, xid and end LSN of the commits of one database |
//! | pg_stat_wal | 14–18 | the number of records between two clean restarts |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pitr::pg::control::ControlFile;
use pitr::pg::lsn::Lsn;
use pitr::pg::page::WalIdentity;
use pitr::pg::reader::{Finding, Fragment, Reader, SegmentEnd, SegmentSummary, Sink};
use pitr::pg::record::{Body, ImageCodec, Record};
use pitr::pg::segment::SegmentName;
use pitr::pg::timeline::{History, TimelineId};
use pitr::pg::version::Major;
use pitr::pg::xact::{self, Outcome, TransactionRecord};
use pitr::pg::{change, rmgr, xlog};

use crate::common::{Cluster, Stop, unpadded};
use crate::per_major;

/// A record as both sides tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    lsn: Lsn,
    prev: Lsn,
    rmgr: String,
    total_len: u32,
    xid: u32,
    /// Opcode and time of a transaction end or a prepared transaction; name of a restore point; else empty.
    what: String,
    subxids: Vec<u32>,
    dropped: usize,
    blocks: String,
}

#[derive(Debug, Clone)]
struct Commit {
    xid: u32,
    subxids: Vec<u32>,
    time: String,
    database: Option<u32>,
    end_lsn: Lsn,
}

/// Everything that decoding gave.
#[derive(Default)]
struct Decoded {
    lines: Vec<Line>,
    commits: Vec<Commit>,
    codecs: BTreeSet<String>,
    findings: Vec<Finding>,
    truncated: usize,
    with_toplevel: usize,
    with_origin: usize,
    switches: usize,
    vm_blocks: usize,
    summaries: Vec<SegmentSummary>,
}

impl Sink for Decoded {
    fn record(&mut self, record: &Record<'_>) {
        let body = record.body().unwrap();
        let mut line = Line {
            lsn: record.start_lsn,
            prev: record.prev,
            rmgr: rmgr::name(record.rmid).into_owned(),
            total_len: record.total_len,
            xid: record.xid.0,
            what: String::new(),
            subxids: Vec::new(),
            dropped: 0,
            blocks: String::new(),
        };
        self.truncated += usize::from(record.is_truncated());
        self.with_toplevel += usize::from(body.toplevel_xid.is_some());
        self.with_origin += usize::from(body.origin.is_some());
        self.switches += usize::from(xlog::is_switch(record.rmid, record.info));
        self.blocks(record, &body, &mut line);
        match xact::decode(record, body.main_data).unwrap() {
            Some(TransactionRecord::End(end)) => {
                let name = match end.outcome {
                    Outcome::Commit => "COMMIT ".to_owned(),
                    Outcome::Abort => "ABORT ".to_owned(),
                    Outcome::CommitPrepared => format!("COMMIT_PREPARED {}: ", end.xid),
                    Outcome::AbortPrepared => format!("ABORT_PREPARED {}: ", end.xid),
                };
                let time = time(end.time);
                line.what = name + &time;
                line.subxids = end.subxids.iter().collect();
                line.dropped = end.dropped.len();
                if end.outcome.is_commit() {
                    // A replicated transaction is stored with the time of its origin.
                    let stored = end.origin.map_or(end.time, |o| o.1);
                    self.commits.push(Commit {
                        xid: end.xid.0,
                        subxids: line.subxids.clone(),
                        time: self::time(stored),
                        database: end.database.map(|d| d.0),
                        end_lsn: record.end_lsn,
                    });
                }
            }
            Some(TransactionRecord::Prepare(p)) => {
                let gid = String::from_utf8_lossy(p.gid);
                line.what = format!("PREPARE gid {gid}: {}", time(p.time));
            }
            _ => {}
        }
        if let Some(xlog::XlogRecord::RestorePoint(point)) =
            xlog::decode(record, body.main_data).unwrap()
        {
            line.what = format!("RESTORE_POINT {}", String::from_utf8_lossy(point.name));
        }
        self.lines.push(line);
    }

    fn finding(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
}

impl Decoded {
    fn blocks(&mut self, record: &Record<'_>, body: &Body<'_>, line: &mut Line) {
        for block in body.blocks() {
            let relation = block.relation;
            let fork = ["", " fork fsm", " fork vm", " fork init"][usize::from(block.fork.0)];
            write!(
                line.blocks,
                ", blkref #{}: rel {}/{}/{}{fork} blk {}",
                block.id, relation.tablespace, relation.database, relation.number, block.block
            )
            .unwrap();
            if let Some(image) = block.image {
                line.blocks += if image.apply {
                    " FPW"
                } else {
                    " FPW for WAL verification"
                };
                self.codecs.insert(format!("{:?}", image.codec));
                if image.codec == ImageCodec::Plain {
                    assert_eq!(image.bytes.len() + usize::from(image.hole_length), 8192);
                }
            }
        }
        let mut registered = 0;
        change::changes(record, body, |change| {
            if let change::Change::Block { fork, .. } = change {
                registered += 1;
                self.vm_blocks += usize::from(fork == pitr::pg::record::Fork::VM);
            }
        })
        .unwrap();
        assert!(registered >= body.blocks().count());
    }
}

/// As pg_waldump prints it with TZ=UTC.
fn time(t: pitr::pg::time::TimestampTz) -> String {
    t.to_string().replace('T', " ").replace('Z', " UTC")
}

/// The files of a timeline in pg_wal, in order.
fn segments(pg_wal: &Path, timeline: TimelineId) -> Vec<(SegmentName, PathBuf)> {
    let mut found: Vec<_> = std::fs::read_dir(pg_wal)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let name: SegmentName = path.file_name()?.to_str()?.parse().ok()?;
            (name.timeline == timeline).then_some((name, path))
        })
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no segment of timeline {timeline}");
    found
}

/// Reads segments with one reader, until WAL ends; pages are fed in steps that divide no record evenly.
fn decode(files: &[(SegmentName, PathBuf)]) -> Decoded {
    let mut decoded = Decoded::default();
    let mut reader: Option<Reader> = None;
    for (name, path) in files {
        let bytes = std::fs::read(path).unwrap();
        let Ok(identity) = WalIdentity::read(&bytes) else {
            break;
        };
        if identity.matches(*name).is_err() {
            break;
        }
        let reader = reader.get_or_insert_with(|| Reader::new(&identity).unwrap());
        reader
            .start_segment(identity.start_lsn, name.timeline)
            .unwrap();
        for pages in bytes.chunks(3 * reader.page_size()) {
            reader.feed(pages, &mut decoded).unwrap();
        }
        let summary = reader.finish_segment();
        let ended = !matches!(summary.end, SegmentEnd::Full | SegmentEnd::Switch(_));
        decoded.summaries.push(summary);
        if ended {
            break;
        }
    }
    decoded
}

/// Reads each segment by itself, as it is archived, and joins the fragments at their edges, as a plan does.
fn decode_apart(files: &[(SegmentName, PathBuf)]) -> Decoded {
    let mut decoded = Decoded::default();
    let mut open: Option<Fragment> = None;
    for (name, path) in files {
        let bytes = std::fs::read(path).unwrap();
        let Ok(identity) = WalIdentity::read(&bytes) else {
            break;
        };
        if identity.matches(*name).is_err() {
            break;
        }
        let mut reader = Reader::new(&identity).unwrap();
        reader
            .start_segment(identity.start_lsn, name.timeline)
            .unwrap();
        let mut inside = Decoded::default();
        reader.feed(&bytes, &mut inside).unwrap();
        let summary = reader.finish_segment();
        assert_eq!(summary.records, inside.lines.len() as u64);
        match (&summary.head, open.take()) {
            (Some(head), Some(tail)) => {
                assert_eq!(head.total, tail.total - tail.length);
                open = join(&identity, tail, head, &mut decoded);
            }
            (None, None) => {}
            // The server had removed the segment before the first.
            (Some(_), None) => assert_eq!(decoded.summaries.len(), 0),
            // The record was never finished: the first one here replaces its end.
            (None, Some(tail)) if summary.overwritten => {
                let (first, prev) = summary.first_record.unwrap();
                assert!(prev < tail.start_lsn && tail.start_lsn < first);
            }
            (None, Some(tail)) => {
                panic!("{name} does not continue the record at {}", tail.start_lsn)
            }
        }
        decoded.lines.append(&mut inside.lines);
        decoded.findings.append(&mut inside.findings);
        if summary.tail.is_some() {
            assert!(open.is_none());
            open.clone_from(&summary.tail);
        }
        decoded.summaries.push(summary);
    }
    decoded
}

/// Adds a head to what is open; the record, once it is whole, or what is still open. Long ones are left out.
fn join(
    identity: &WalIdentity,
    tail: Fragment,
    head: &Fragment,
    decoded: &mut Decoded,
) -> Option<Fragment> {
    let kept = tail.bytes.len() == tail.length as usize && head.bytes.len() == head.length as usize;
    let bytes = if kept {
        [tail.bytes, head.bytes.clone()].concat()
    } else {
        Vec::new()
    };
    let open = Fragment {
        length: tail.length + head.length,
        bytes,
        ..tail
    };
    let Some(end) = head.end_lsn else {
        return Some(open);
    };
    assert_eq!(open.length, open.total);
    if kept {
        let record = Record::parse(
            identity.major.unwrap(),
            8192,
            open.start_lsn,
            end,
            &open.bytes,
        )
        .unwrap();
        decoded.record(&record);
    }
    None
}

/// Returns pg_waldump's lines for these files, by the same major; `None` if the machine has none.
fn waldump(major: u32, files: &[(SegmentName, PathBuf)]) -> Option<Vec<Line>> {
    let program = crate::common::bin(major, "pg_waldump")?;
    let (first, last) = (&files.first()?.1, &files.last()?.1);
    let run = crate::common::Program::new(program)
        .arg(first)
        .arg(last)
        .run();
    // It ends with an error where WAL ends, as it should.
    assert!(
        run.stderr.is_empty() || run.stderr.contains("error in WAL record"),
        "{run}"
    );
    Some(
        run.stdout
            .lines()
            .filter(|l| l.starts_with("rmgr: "))
            .map(|l| parse_line(l).unwrap_or_else(|| panic!("{l}")))
            .collect(),
    )
}

fn parse_line(text: &str) -> Option<Line> {
    let (head, desc) = text.split_once(", desc: ")?;
    let field = |from: &str| -> Option<&str> {
        let rest = head.split_once(from)?.1.trim_start();
        Some(rest.split([',', ' ']).next().unwrap_or(rest))
    };
    let rmgr = head.strip_prefix("rmgr: ")?.split(' ').next()?.to_owned();
    let total = head.split_once("len (rec/tot):")?.1.split_once('/')?.1;
    let blocks = desc
        .find(", blkref #")
        .map_or("", |at| &desc[at..])
        .to_owned();
    let desc = desc.strip_suffix(blocks.as_str())?;
    let list = |from: &str| -> Vec<&str> {
        desc.split_once(from).map_or(Vec::new(), |(_, rest)| {
            let end = rest.find(';').unwrap_or(rest.len());
            rest[..end].split_whitespace().collect()
        })
    };
    let transaction = rmgr == "Transaction"
        && ["COMMIT", "ABORT", "PREPARE"]
            .iter()
            .any(|p| desc.starts_with(p));
    let what = if transaction {
        desc.split(';').next()?.trim_end()
    } else if desc.starts_with("RESTORE_POINT ") {
        desc.trim_end()
    } else {
        ""
    };
    let ends = transaction && !desc.starts_with("PREPARE");
    Some(Line {
        lsn: field("lsn: ")?.parse().ok()?,
        prev: field("prev ")?.parse().ok()?,
        total_len: total.trim_start().split(',').next()?.parse().ok()?,
        xid: field("tx: ")?.parse().ok()?,
        what: what.to_owned(),
        subxids: if ends {
            list("; subxacts:")
                .iter()
                .map(|x| x.parse().unwrap())
                .collect()
        } else {
            Vec::new()
        },
        dropped: if ends { list("; rels:").len() } else { 0 },
        blocks,
        rmgr,
    })
}

fn assert_same(ours: &[Line], theirs: &[Line]) {
    for (a, b) in ours.iter().zip(theirs) {
        assert_eq!(a, b);
    }
    assert_eq!(ours.len(), theirs.len());
}

/// Our decoding agrees with itself, whether segments are read in one go or apart, and with pg_waldump.
fn check(major: u32, files: &[(SegmentName, PathBuf)]) -> Decoded {
    let decoded = decode(files);
    assert_eq!(decoded.findings, []);
    assert_eq!(decoded.lines.len() as u64, count_joined(&decoded));
    let used = &files[..decoded.summaries.len()];
    let apart = decode_apart(used);
    assert_eq!(apart.findings, []);
    // Records in pieces of more than 64 KiB are not joined from fragments.
    let kept: Vec<_> = decoded
        .lines
        .iter()
        .filter(|l| l.total_len < 65_536)
        .cloned()
        .collect();
    let joined: Vec<_> = apart
        .lines
        .iter()
        .filter(|l| l.total_len < 65_536)
        .cloned()
        .collect();
    assert_same(&joined, &kept);
    if let Some(theirs) = waldump(major, used) {
        assert_same(&decoded.lines, &theirs);
    } else {
        assert_eq!(major, 14, "only of 14 there is no pg_waldump");
    }
    decoded
}

/// Records inside segments, and those that begin in one and end in a later one.
fn count_joined(decoded: &Decoded) -> u64 {
    let summaries = &decoded.summaries;
    let inside: u64 = summaries.iter().map(|s| s.records).sum();
    let joined = summaries.windows(2).filter(|w| {
        let ends = |s: &SegmentSummary| s.head.as_ref().is_some_and(|h| h.end_lsn.is_some());
        w.iter().all(|s| !s.overwritten || s.head.is_some()) && ends(&w[1])
    });
    inside + joined.count() as u64
}

fn pgwal(cluster: &Cluster) -> PathBuf {
    cluster.pgdata().join("pg_wal")
}

fn builder(major: u32) -> crate::common::Builder {
    Cluster::builder(major)
        .without_fsync()
        .config("wal_level", "logical")
        .config("max_prepared_transactions", 10)
        .config("track_commit_timestamp", "on")
        .config("wal_keep_size", "4GB")
        .config("max_wal_size", "4GB")
        .config("synchronous_commit", "off")
        .config("shared_buffers", "64MB")
        // pg_stat_wal counts the records of parallel workers twice, once for the worker and once for its leader (15.20: a
        // VACUUM that wrote 1573 records by pg_waldump added 1669).
        .config("max_parallel_maintenance_workers", 0)
}

fn load(cluster: &Cluster) {
    cluster.sql(
        "create table accounts (id int primary key, balance int, filler text default repeat('x', 80)); \
         create table bulk as select g as id, repeat(md5(g::text), 3) as t, point(g % 97, g) as p from generate_series(1, 12000) g; \
         insert into accounts select g, 0 from generate_series(1, 4000) g; \
         create index on bulk (id); create index on bulk using hash (id); create index on bulk using brin (id); \
         create index on bulk using gist (p); create index on bulk using spgist (p); \
         create index on bulk using gin (to_tsvector('simple', t)); \
         delete from bulk where id % 7 = 0",
    );
    for statement in [
        "vacuum (freeze) bulk",
        "vacuum full bulk",
        "cluster accounts using accounts_pkey",
    ] {
        cluster.sql(statement);
    }
}

/// Images in every compression that the build has; returns how many settings it accepts.
fn compressed_images(cluster: &Cluster) -> Vec<&'static str> {
    let client = cluster.client();
    let mut accepted = Vec::new();
    for (setting, codec) in [
        ("off", "Plain"),
        ("on", "Pglz"),
        ("pglz", "Pglz"),
        ("lz4", "Lz4"),
        ("zstd", "Zstd"),
    ] {
        if client
            .try_sql(&format!("set wal_compression = {setting}"))
            .is_ok()
        {
            accepted.push(codec);
            client.sql("checkpoint; update accounts set balance = balance + 1 where id % 20 = 0");
        }
    }
    accepted
}

/// Short transactions from two sides at once, savepoints among them.
fn transfers(cluster: &Cluster) {
    std::thread::scope(|scope| {
        for side in 0..2 {
            let client = cluster.client();
            scope.spawn(move || {
                client.sql(&format!(
                    "do $$ begin for i in 1..2500 loop \
                       update accounts set balance = balance + 1 where id = 1 + (i * 7 + {side}) % 2000 * 2 + {side}; \
                       if i % 5 = 0 then begin \
                         insert into bulk values (i, 'kept', point(0, 0)); \
                         if i % 10 = 0 then raise exception 'undone'; end if; \
                       exception when raise_exception then null; end; end if; \
                       commit; \
                     end loop; end $$"
                ));
            });
        }
    });
}

fn ddl(cluster: &Cluster, major: u32) {
    let place = cluster.sandbox().dir("space");
    let client = cluster.client();
    client.sql(
        "do $$ begin for i in 1..60 loop \
           execute format('create table d%s (a int, b text)', i); \
           execute format('insert into d%s select g, g::text from generate_series(1, 50) g', i); \
           execute format('create index on d%s (a)', i); \
           execute format('alter table d%s alter a type bigint', i); \
           if i % 3 = 0 then execute format('truncate d%s', i); end if; \
           if i % 2 = 0 then execute format('drop table d%s', i); end if; \
           commit; \
         end loop; end $$",
    );
    client.sql("begin; create table gone (a int); insert into gone values (1); rollback");
    client.sql(
        "create sequence s; select nextval('s'), nextval('s'); create unlogged table u (a int)",
    );
    cluster.make_tablespace("space", &place);
    client.sql("create table far (a int) tablespace space");
    client.sql("insert into far values (1); drop table far");
    client.sql("drop tablespace space");
    client.sql("create database one");
    client.sql("drop database one");
    if major >= 15 {
        client.sql("create database two strategy file_copy");
        client.sql("drop database two");
    }
    client.sql("reindex system postgres");
}

fn two_phase(cluster: &Cluster) {
    let client = cluster.client();
    for (gid, end) in [
        ("kept", "commit"),
        ("undone", "rollback"),
        ("it''s", "commit"),
    ] {
        client.sql(&format!(
            "begin; create table p_{0} (a int); savepoint a; insert into p_{0} values (1); savepoint b; insert into p_{0} values (2); \
             drop table if exists d{1}; prepare transaction '{2}'",
            end, gid.len(), gid
        ));
        client.sql(&format!("{end} prepared '{gid}'"));
        client.sql(&format!("drop table if exists p_{end}"));
    }
    client.sql(
        "select pg_replication_origin_create('elsewhere'); select pg_replication_origin_session_setup('elsewhere'); \
         begin; select pg_replication_origin_xact_setup('0/ABCDEF', '2026-01-02 03:04:05.678901Z'); insert into accounts values (-1, 0); commit; \
         select pg_replication_origin_session_reset()",
    );
}

/// Records over several segments, one of them above the limit of what is kept; points and switches.
fn long_records(cluster: &Cluster) {
    cluster.sql(
        "select length(pg_logical_emit_message(false, 'long', repeat('a', 3000000))::text); \
         select length(pg_logical_emit_message(true, 'longer', repeat('b', 4500000))::text); \
         select pg_create_restore_point('a point'); select pg_create_restore_point(repeat('n', 63)); \
         select pg_switch_wal(); create table after_switch (a int); select pg_switch_wal(); checkpoint",
    );
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

/// How many records the server has counted, and how far its WAL reached then.
fn wal_records(cluster: &Cluster) -> (u64, Lsn) {
    let client = cluster.client();
    let count = number(&client.value("select wal_records from pg_stat_wal"));
    let lsn = client.value("select pg_current_wal_insert_lsn()");
    (count, lsn.parse().unwrap())
}

/// 14 sends the counts of the shutdown checkpoint to its collector as the collector gets its signal to end: they may be
/// lost.
const UNCOUNTED_MAX: u64 = 5;

/// Waits until the collector of 14 has got the counts that were sent to it: counts that it has not read when the server
/// ends are lost.
fn wait_counted(cluster: &Cluster) {
    let mut before = None;
    crate::common::wait_until("the counts stand still", || {
        let counted = wal_records(cluster).0;
        // Twice as long as it may take to write down what it knows.
        std::thread::sleep(std::time::Duration::from_secs(1));
        before.replace(counted) == Some(counted)
    });
}

/// The server counted as many records between two shutdown checkpoints as we did. It was asked a moment after each, when a
/// few more had been written (images for hints): these may be counted or not.
fn check_count(
    major: u32,
    decoded: &Decoded,
    (first, before): (Lsn, (u64, Lsn)),
    (second, after): (Lsn, (u64, Lsn)),
) {
    let between = |from: Lsn, to: Lsn| {
        let lines = decoded.lines.iter();
        lines.filter(|l| from < l.lsn && l.lsn <= to).count() as u64
    };
    let ours = between(first, second);
    let (early, late) = (between(first, before.1), between(second, after.1));
    assert!(
        early < 10 && late < 10 && ours > 100_000,
        "{early} {late} {ours}"
    );
    let theirs = after.0 - before.0;
    let lost = if major == 14 { UNCOUNTED_MAX } else { 0 };
    assert!(
        ours - early - lost <= theirs && theirs <= ours + late + lost,
        "{theirs} records counted by the server, {ours} by us ({early} early, {late} late)"
    );
}

fn decoding_agrees_with_the_server(major: u32) {
    let mut cluster = builder(major).segment_size_mb(1).start();
    cluster.restart();
    let first = last_checkpoint(&cluster);
    let before = (major >= 14).then(|| wal_records(&cluster));
    cluster.sql("select pg_create_logical_replication_slot('judge', 'test_decoding')");
    let from = cluster.insert_lsn().parse::<Lsn>().unwrap();
    let first_xid = number(&cluster.value("select txid_current()"));
    load(&cluster);
    let codecs = compressed_images(&cluster);
    transfers(&cluster);
    ddl(&cluster, major);
    two_phase(&cluster);
    long_records(&cluster);
    if major == 14 {
        wait_counted(&cluster);
    }
    cluster.stop(Stop::Fast);
    let decoded = check(major, &segments(&pgwal(&cluster), TimelineId::FIRST));
    let second = last_checkpoint(&cluster);
    assert_eq!(decoded.lines.last().map(|l| l.lsn), Some(second));
    assert_eq!((decoded.truncated, decoded.switches), (1, 2));
    for codec in &codecs {
        assert!(
            decoded.codecs.contains(*codec),
            "no {codec} image: {:?}",
            decoded.codecs
        );
    }
    assert!(decoded.with_origin > 0 && decoded.vm_blocks > 0);
    assert_eq!(decoded.with_toplevel > 0, major >= 14);
    if matches!(major, 15 | 17) {
        assert!(
            codecs.contains(&"Lz4") && codecs.contains(&"Zstd"),
            "{codecs:?}"
        );
    }

    cluster.start();
    let after = (major >= 14).then(|| wal_records(&cluster));
    check_commit_times(&cluster, first_xid, &decoded);
    check_order(&cluster, from, &decoded);

    // Crash recovery, a record left unfinished, then a promotion to timeline 2.
    cluster.sql("insert into accounts select g, 1 from generate_series(10000, 10500) g");
    cluster.stop(Stop::Immediate);
    cluster.start();
    let dead = leave_a_record_unfinished(&mut cluster);
    let standby = cluster.standby().start();
    cluster.sql("insert into accounts select g, 1 from generate_series(11000, 14000) g");
    let lsn = cluster.insert_lsn();
    standby.wait_replayed(&lsn);
    standby.promote();
    standby.wait_promoted();
    standby
        .sql("insert into accounts select g, 1 from generate_series(21000, 24000) g; checkpoint");
    check_promotion(major, standby);
    cluster.stop(Stop::Fast);
    let decoded = check(major, &segments(&pgwal(&cluster), TimelineId::FIRST));
    if let (Some(before), Some(after)) = (before, after) {
        check_count(major, &decoded, (first, before), (second, after));
    }
    // The crash before it may have left another one.
    let replaced: Vec<Lsn> = decoded
        .summaries
        .windows(2)
        .filter(|w| w[1].overwritten)
        .filter_map(|w| w[0].tail.as_ref().map(|t| t.start_lsn))
        .collect();
    assert!(
        replaced.iter().any(|lsn| *lsn >= dead),
        "{replaced:?} {dead}"
    );
    assert!(decoded.lines.iter().all(|l| !replaced.contains(&l.lsn)));
}
per_major!(decoding_agrees_with_the_server);

/// Returns where the last checkpoint record begins: in a server that was stopped cleanly, its last record.
fn last_checkpoint(cluster: &Cluster) -> Lsn {
    let bytes = std::fs::read(cluster.pgdata().join("global/pg_control")).unwrap();
    ControlFile::parse(&bytes).unwrap().checkpoint
}

/// A crash loses the end of a record that runs into a segment which is gone; the server writes another record in its place.
/// Returns where the unfinished record begins.
///
/// PostgreSQL: src/test/recovery/t/026_overwrite_contrecord.pl (13.5, 14.1).
fn leave_a_record_unfinished(cluster: &mut Cluster) -> Lsn {
    let client = cluster.client();
    let segment_end = 1 << 20;
    let position = || -> Lsn {
        let lsn = client.value("select pg_current_wal_insert_lsn()");
        lsn.parse().unwrap()
    };
    loop {
        let left = segment_end - position().0 % segment_end;
        if (4_000..16_000).contains(&left) {
            break;
        }
        let length = if left < 100_000 { 3_000 } else { 50_000 };
        client.sql(&format!(
            "select length(pg_logical_emit_message(false, 'fill', repeat('f', {length}))::text)"
        ));
    }
    let start = position();
    client.sql("set synchronous_commit = on");
    client.sql("select pg_logical_emit_message(true, 'unfinished', repeat('u', 600000))");
    let end = client.value("select pg_walfile_name(pg_current_wal_insert_lsn())");
    drop(client);
    cluster.stop(Stop::Immediate);
    std::fs::remove_file(pgwal(cluster).join(end)).unwrap();
    cluster.start();
    start
}

/// Every commit has the server's xid and time, and the server has no other.
fn check_commit_times(cluster: &Cluster, first_xid: u64, decoded: &Decoded) {
    let mut ours = BTreeMap::new();
    for commit in decoded
        .commits
        .iter()
        .filter(|c| u64::from(c.xid) >= first_xid)
    {
        for xid in commit.subxids.iter().chain([&commit.xid]) {
            assert_eq!(ours.insert(*xid, commit.time.clone()), None);
        }
    }
    let last = ours.keys().last().unwrap();
    let theirs: BTreeMap<u32, String> = cluster
        .sql(&format!(
            "select x, to_char(pg_xact_commit_timestamp(x::text::xid) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC' \
             from generate_series({first_xid}, {last}) x where pg_xact_commit_timestamp(x::text::xid) is not null"
        ))
        .into_iter()
        .map(|row| (row[0].as_ref().unwrap().parse().unwrap(), row[1].clone().unwrap()))
        .collect();
    assert!(theirs.len() > 5000);
    let differ: Vec<_> = ours
        .keys()
        .chain(theirs.keys())
        .filter(|x| ours.get(x) != theirs.get(x))
        .map(|x| (x, ours.get(x), theirs.get(x)))
        .collect();
    assert!(differ.is_empty(), "{differ:?}");
}

/// The commits of the database, in order, with their ends, are those that logical decoding gives.
fn check_order(cluster: &Cluster, from: Lsn, decoded: &Decoded) {
    let client = cluster.client();
    let database: u32 = client
        .value("select oid from pg_database where datname = 'postgres'")
        .parse()
        .unwrap();
    let theirs: Vec<(u32, Lsn)> = client
        .sql(
            "select split_part(data, ' ', 2), lsn from pg_logical_slot_get_changes('judge', null, null, 'include-xids', '1', 'skip-empty-xacts', '0') \
             where data like 'COMMIT %'",
        )
        .into_iter()
        .map(|row| {
            (
                row[0].as_ref().unwrap().parse().unwrap(),
                row[1].as_ref().unwrap().parse().unwrap(),
            )
        })
        .collect();
    let ours: Vec<(u32, Lsn)> = decoded
        .commits
        .iter()
        .filter(|c| c.end_lsn > from && c.database == Some(database))
        .map(|c| (c.xid, c.end_lsn))
        .collect();
    // Our copy does not have commits after the last clean stop; and logical decoding has nothing to say of transactions
    // that only took a number.
    let known: BTreeSet<u32> = ours.iter().map(|c| c.0).collect();
    let theirs: Vec<_> = theirs
        .into_iter()
        .filter(|c| known.contains(&c.0))
        .collect();
    let did: BTreeSet<u32> = decoded
        .lines
        .iter()
        .filter(|l| l.rmgr != "Transaction")
        .map(|l| l.xid)
        .collect();
    let ours: Vec<_> = ours.into_iter().filter(|c| did.contains(&c.0)).collect();
    let wrong = ours.iter().zip(&theirs).find(|(a, b)| a != b);
    assert_eq!(wrong, None);
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.len() > 5000);
}

/// The promoted server's WAL reads on from timeline 1 into timeline 2, as its history says.
fn check_promotion(major: u32, mut standby: Cluster) {
    standby.stop(Stop::Fast);
    let (one, two) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
    let pg_wal = pgwal(&standby);
    let history = std::fs::read(pg_wal.join(two.history_file_name())).unwrap();
    let history = History::parse(two, &history).unwrap();
    let written = std::fs::read_to_string(pg_wal.join("00000002.history")).unwrap();
    assert_eq!(
        String::from_utf8(history.to_bytes()).unwrap(),
        unpadded(&written)
    );
    let switch = history.switch_point(one).unwrap();

    let child = segments(&pg_wal, two);
    let alone = check(major, &child);
    let boundary = alone.lines.iter().find(|l| l.lsn >= switch).unwrap();
    assert_eq!((boundary.lsn, boundary.rmgr.as_str()), (switch, "XLOG"));
    assert_eq!(alone.summaries[0].timelines, Some((1, 2)));
    // The parent's segments lead into the child's first, and the chain of records does not break.
    let mut path: Vec<_> = segments(&pg_wal, one)
        .into_iter()
        .filter(|(name, _)| (name.log, name.seg) < (child[0].0.log, child[0].0.seg))
        .collect();
    path.extend(child);
    let whole = decode(&path);
    assert_eq!(whole.findings, []);
    assert!(whole.lines.len() > alone.lines.len());
    assert_eq!(history.holder(switch), two);
    assert_eq!(history.holder(Lsn(switch.0 - 1)), one);
}

fn segments_of_64_mib_decode_alike(major: u32) {
    let mut cluster = builder(major).segment_size_mb(64).start();
    cluster.sql("create table t as select g, repeat('y', 300) as t from generate_series(1, 200000) g; select pg_switch_wal()");
    cluster.sql("update t set g = g + 1 where g % 50 = 0");
    cluster.stop(Stop::Fast);
    let decoded = check(major, &segments(&pgwal(&cluster), TimelineId::FIRST));
    assert!(decoded.summaries.len() > 1 && decoded.switches == 1);
    let control = Major::from_number(major).unwrap().version();
    let bytes = std::fs::read(&segments(&pgwal(&cluster), TimelineId::FIRST)[0].1).unwrap();
    let identity = WalIdentity::read(&bytes).unwrap();
    assert_eq!(identity.major, Some(control.major));
    assert_eq!(identity.segment_size.bytes(), 64 << 20);
}
per_major!(segments_of_64_mib_decode_alike, v13 v16 v19);
