//! agent_idle [SECONDS]
//!
//! Measures what an idle agent takes, beside repositories of 30 and of 1 000 backups that are made up for it: memory and processor time of the agent and of its
//! looks over 120 s, which is two looks, one look by itself, and one scrape of `/metrics` with pitr's own names and with those of pgbackrest_exporter, which has a
//! series for each backup. The backups have two segments of WAL each, with indexes and without content: a look reads no more of them.
//!
//! It ends with status 1 where a limit is missed: 30 MiB of memory, 10 ms for a scrape in the middle, and 0.1 % of a processor: beside 30 backups for the
//! agent with its looks, beside 1 000 for the agent itself, for a look reads the root of each backup.
//!
//! `make agent-idle` and `cargo bench --bench agent_idle` have the release build; `cargo bench --profile dev --bench agent_idle` that of the tests.

#![allow(clippy::print_stdout, reason = "a measurement prints its figures")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pitr::pg::lsn::Lsn;
use pitr::pg::segment::{SegmentNumber, SegmentSize};
use pitr::pg::time::TimestampTz;
use pitr::pg::timeline::TimelineId;
use pitr::repo::container::{Codec, ContainerWriter, Identity, Kind};
use pitr::repo::layout::ClusterLayout;
use pitr::repo::repository::{Registration, Repository};
use pitr::repo::root::cluster::Method;
use pitr::repo::root::{BackupKind, BackupRoot, ClusterContent, Head, Map};
use pitr::store::file::FileStore;
use pitr::wal::index::{Ends, Fragments, HeadEnd, SegmentIndex, Summary, TailClass, XidSet};

type Failure = Box<dyn std::error::Error>;

const PITR: &str = env!("CARGO_BIN_EXE_pitr");
const IDENTIFIER: u64 = 7_000_000_000_000_000_001;
const SEGMENT: u64 = 16 << 20;
/// The time from one backup to the next, in microseconds.
const STEP: i64 = 40 * 60 * 1_000_000;
const SCRAPES: usize = 200;
/// A month of daily backups.
const FEW: u64 = 30;
/// The limits of an idle agent: its memory, its share of a processor in per cent, and a scrape.
const MEMORY_MIB: f64 = 30.0;
const PROCESSOR_PERCENT: f64 = 0.1;
const SCRAPE: Duration = Duration::from_millis(10);
/// Ticks of the system in a second: all that Linux shows to programs.
const TICKS: f64 = 100.0;

fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let seconds = numbers.next().unwrap_or(120);
    let mut missed = Vec::new();
    for (backups, compat) in [
        (FEW, ""),
        (1000, ""),
        (1000, "metrics_compat = [\"pgbackrest\"]\n"),
    ] {
        let place = tempfile::tempdir()?;
        let repository = place.path().join("repo");
        make(&repository, backups)?;
        println!(
            "{backups} backups, {}",
            match compat {
                "" => "pitr's own names",
                _ => "and those of pgbackrest_exporter",
            }
        );
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = place.path().join("pitr.toml");
        let text = format!(
            "[clusters.main]\n[repositories.local]\nurl = \"file://{}\"\n[agent]\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"{}\"\n{compat}",
            repository.display(),
            place.path().join("state").display()
        );
        std::fs::write(&config, text)?;
        look(&config, place.path())?;
        missed.extend(idle(&config, place.path(), (port, seconds, backups))?);
    }
    match missed.as_slice() {
        [] => Ok(()),
        // Status 1.
        missed => Err(format!("limits are missed: {}", missed.join("; ")).into()),
    }
}

fn pitr(config: &Path, place: &Path) -> Command {
    let mut command = Command::new(PITR);
    command.arg("--config").arg(config).arg("agent");
    command.env("XDG_CACHE_HOME", place.join("cache"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// One look by itself, the second of two: the first one fills the cache.
fn look(config: &Path, place: &Path) -> Result<(), Failure> {
    for what in ["first look", "next look"] {
        let since = Instant::now();
        let mut child = pitr(config, place).arg("observe").spawn()?;
        let mut peak = 0;
        let mut ticks = (0, 0);
        // Not waited for, a process that has ended keeps its times.
        while !stat(child.id())?.0 {
            peak = memory(child.id(), "VmHWM").unwrap_or(0).max(peak);
            std::thread::sleep(Duration::from_millis(2));
        }
        let wall = since.elapsed();
        ticks.0 += stat(child.id())?.1;
        ticks.1 += child.wait()?.code().unwrap_or(-1);
        println!(
            "  {what}: {wall:.0?}, {:.0} ms of a processor, at most {:.1} MiB, status {}",
            ticks.0 as f64 / TICKS * 1000.0,
            peak as f64 / 1024.0,
            ticks.1
        );
    }
    Ok(())
}

/// Measures an agent that does nothing but look; the limits that it misses.
fn idle(
    config: &Path,
    place: &Path,
    (port, seconds, backups): (u16, u64, u64),
) -> Result<Vec<String>, Failure> {
    let agent = Agent(pitr(config, place).spawn()?);
    let id = agent.0.id();
    let begun = Instant::now();
    while scrape(port).is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            return Err("the agent serves nothing".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // The first look ends behind the first answer, and looks count when they are over: the interval has whole minutes.
    std::thread::sleep(Duration::from_secs(10));
    let (_, own, looks) = stat(id)?;
    std::thread::sleep(Duration::from_secs(seconds));
    let (_, own_then, looks_then) = stat(id)?;
    let share = |from: u64, to: u64| (to - from) as f64 / TICKS / seconds as f64 * 100.0;
    let whole = share(own + looks, own_then + looks_then);
    let agent = share(own, own_then);
    let processor = if backups == FEW { whole } else { agent };
    println!(
        "  idle for {seconds} s: {whole:.3} % of a processor, the agent {agent:.3} % and its looks {:.3} %; {:.1} MiB, at most {:.1} MiB",
        share(looks, looks_then),
        memory(id, "VmRSS").unwrap_or(0) as f64 / 1024.0,
        memory(id, "VmHWM").unwrap_or(0) as f64 / 1024.0,
    );
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        let since = Instant::now();
        bytes = scrape(port).ok_or("no answer")?.len();
        times.push(since.elapsed());
    }
    times.sort_unstable();
    let (scrape, peak) = (
        times[SCRAPES / 2],
        memory(id, "VmHWM").ok_or("no memory")? as f64 / 1024.0,
    );
    println!(
        "  {SCRAPES} scrapes of {bytes} bytes: {scrape:.2?} in the middle, {:.2?} at most; the agent then {peak:.1} MiB at most",
        times[SCRAPES - 1],
    );
    let missed = [
        (
            peak > MEMORY_MIB,
            format!("{peak:.1} MiB of {MEMORY_MIB} MiB"),
        ),
        (
            processor > PROCESSOR_PERCENT,
            format!("{processor:.3} % of a processor of {PROCESSOR_PERCENT} %"),
        ),
        (
            scrape > SCRAPE,
            format!("a scrape takes {scrape:.2?} of {SCRAPE:?}"),
        ),
    ];
    let missed = missed.into_iter().filter(|(is_missed, _)| *is_missed);
    Ok(missed.map(|(_, what)| what).collect())
}

/// An agent that ends with its owner.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // One that is gone needs no signal.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn scrape(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

/// KiB of a line of the status of a process.
fn memory(pid: u32, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a process has ended, its own ticks, and those of its children that were waited for.
fn stat(pid: u32) -> Result<(bool, u64, u64), Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(") ").ok_or("no state")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let number =
        |at: usize| -> Result<u64, Failure> { Ok(words.get(at).ok_or("too few fields")?.parse()?) };
    // proc_pid_stat(5): the fields 14 to 17, and the rest begins with field 3.
    let own = number(11)? + number(12)?;
    let children = number(13)? + number(14)?;
    Ok((words.first() == Some(&"Z"), own, children))
}

fn size() -> Result<SegmentSize, Failure> {
    Ok(SegmentSize::new(SEGMENT)?)
}

fn make(folder: &Path, backups: u64) -> Result<(), Failure> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a bench has no caller with a clock"
    )]
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let now = TimestampTz::from_unix_micros(i64::try_from(now)?).ok_or("no time")?;
    let (repository, _) =
        Repository::create(Box::new(FileStore::create(folder, 1)?), 9, TimestampTz(0))?;
    repository.register(&Registration {
        name: "main".into(),
        system_identifier: IDENTIFIER,
        major: 17,
        segment_size_bytes: SEGMENT,
        block_size_bytes: 8192,
        wal_block_size_bytes: 8192,
        first_seen: TimestampTz(0),
        features: Vec::new(),
        is_lost: false,
    })?;
    let layout = ClusterLayout::new("main", IDENTIFIER)?;
    for index in 0..backups {
        let before = i64::try_from(backups - index)? * STEP;
        let time = TimestampTz(now.0 - before);
        for number in [2 * index + 1, 2 * index + 2] {
            segment(folder, &layout, number, time)?;
        }
        backup(2 * index + 1, index, time)?.commit(repository.store(), &layout)?;
    }
    Ok(())
}

fn segment(
    folder: &Path,
    layout: &ClusterLayout,
    number: u64,
    time: TimestampTz,
) -> Result<(), Failure> {
    let start = SegmentNumber(number).start_lsn(size()?);
    let end = Lsn(start.0 + SEGMENT);
    let last = Lsn(end.0 - 4096);
    let to = TimestampTz(time.0 + STEP / 3);
    let index = SegmentIndex {
        summary: Summary {
            flags: 0,
            start_lsn: start,
            first_timeline: 1,
            last_timeline: 1,
            head_length: 0,
            head_remaining: 0,
            head_end: HeadEnd::None,
            first_record: Some((Lsn(start.0 + 40), Lsn(start.0.saturating_sub(4096)))),
            last_begun: Some(last),
            last_complete: Some((last, end)),
            tail_length: 0,
            tail_total: 0,
            tail_class: TailClass::Unknown,
            valid_end: end,
            records: 20_000,
            commits: 0,
            aborts: 0,
            prepares: 0,
            ends: Some(Ends {
                min_time: time,
                max_time: to,
                first_commit: None,
                last_commit: None,
                min_xid: 0,
                max_xid: 0,
            }),
        },
        fragments: Fragments {
            head: Vec::new(),
            tail: Vec::new(),
        },
        xids: Some(XidSet::from_sorted(&[])),
        events: Some(Vec::new()),
        blocks: None,
        damage: Vec::new(),
    };
    let name = SegmentNumber(number)
        .name(TimelineId::FIRST, size()?)
        .ok_or("no name")?;
    let mut writer = ContainerWriter::new(Vec::new(), Kind::Segment, Codec::Lz4)?;
    writer.write(&[])?;
    let identity = Identity {
        hash: *blake3::hash(&[]).as_bytes(),
        raw_bytes: 0,
        system_identifier: IDENTIFIER,
        timeline: 1,
        major: 17,
        segment_size_bytes: SEGMENT,
        name: name.to_string(),
        from_lsn: start.0,
        to_lsn: end.0,
    };
    let bytes = writer.finish(&identity, index.sections(false))?;
    let path = folder.join(layout.segment(name).as_str());
    // Not synced: nobody needs it tomorrow.
    std::fs::create_dir_all(path.parent().ok_or("no folder")?)?;
    std::fs::write(path, bytes)?;
    Ok(())
}

fn backup(number: u64, index: u64, time: TimestampTz) -> Result<BackupRoot, Failure> {
    let start = SegmentNumber(number).start_lsn(size()?);
    let lsn = |offset: u64| Lsn(start.0 + offset);
    let text = time.to_string();
    let digits: String = text.chars().filter(char::is_ascii_digit).take(14).collect();
    let (day, hour) = digits.split_at(8);
    Ok(BackupRoot {
        head: Head {
            id: format!("{day}T{hour}Z-full").parse()?,
            nonce: format!("{index:032x}"),
            backup_kind: BackupKind::Full,
            prior: None,
            label: String::new(),
            start_time: time,
            stop_time: TimestampTz(time.0 + 60_000_000),
            file_count: 2000,
            size_bytes: 100 << 30,
            stored_bytes: 30 << 30,
            program: "bench".into(),
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
    })
}
