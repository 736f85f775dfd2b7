//! map_chain [SHARDS] [LAYERS] [FILES] [PAGES] [CHANGED] [--far MILLISECONDS]: memory, descriptors, requests and time of the map of a long chain.
//!
//! It writes the layers of a chain of LAYERS backups to a directory below `TMPDIR`, with the engine's own writer, and no content: SHARDS key ranges of FILES
//! files of PAGES pages, of which each incremental changes CHANGED. Then another process opens the map, walks all of it as a restore, `verify` and the end of an
//! incremental do, and looks files up at random as a restore of a streamed backup does. With `--far` each read is a request, as of a bucket, and
//! takes so long. The defaults are a cluster of 1 TiB with 60 hourly backups of 0.1 %; 160 shards are 10 TiB.
//! Memory and requests are the same in every profile: cargo bench --bench map_chain, or cargo run of it with --profile dev.

#![allow(clippy::print_stdout, reason = "a measurement prints its figures")]

#[path = "../tests/it/map_scale/made.rs"]
mod made;

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use made::{Counts, Distant, Made, Size, scattered};
use pitr::snapshot::reader::Snapshot;
use pitr::store::file::FileStore;

type Failure = Box<dyn std::error::Error>;

const LOOK_UPS: u64 = 3000;

fn status(name: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no such line")?.parse()?)
}

fn main() -> Result<(), Failure> {
    // Cargo adds an option of its own.
    let all: Vec<String> = std::env::args().skip(1).collect();
    let far = all.iter().position(|text| text == "--far");
    let far = far.and_then(|at| all.get(at + 1)?.parse().ok());
    let ended = all.iter().position(|text| text.starts_with("--"));
    let numbers = all.iter().take(ended.unwrap_or(all.len()));
    let numbers: Vec<u64> = numbers.map(|text| text.parse()).collect::<Result<_, _>>()?;
    let number = |at: usize, default: u64| numbers.get(at).copied().unwrap_or(default);
    let size = || Size {
        shards: number(0, 16),
        layers: number(1, 60),
        files: number(2, 64),
        pages: number(3, 131_072),
        changed: number(4, 131),
    };
    match std::env::var_os("MAP_CHAIN_READS") {
        Some(directory) => read(Path::new(&directory), size(), far),
        None => {
            let directory = tempfile::tempdir()?;
            let mut reader = Command::new(std::env::current_exe()?);
            let reader = reader.args(&all).env("MAP_CHAIN_READS", directory.path());
            let began = Instant::now();
            let store = FileStore::create(directory.path(), 1)?;
            let made = Made::write(&store, size());
            std::fs::write(directory.path().join("made"), made.encode())?;
            println!(
                "{} layers, {} MiB, written in {:.1?}",
                size().shards * size().layers,
                made.layers_bytes() >> 20,
                began.elapsed()
            );
            let ended = reader.spawn().and_then(|mut child: Child| child.wait())?;
            match ended.success() {
                true => Ok(()),
                false => Err("the reader failed".into()),
            }
        }
    }
}

fn read(directory: &Path, size: Size, far: Option<u64>) -> Result<(), Failure> {
    let store = Distant {
        inner: FileStore::open(directory, 1)?,
        counts: Arc::new(Counts::default()),
        latency: Duration::from_millis(far.unwrap_or(0)),
        is_remote: far.is_some(),
    };
    let made = Made::decode(&std::fs::read(directory.join("made"))?, size)?;
    let start = status("VmRSS:")?;
    let began = Instant::now();
    let told = |step: &str, began: Instant| -> Result<(), Failure> {
        let (requests, bytes) = store.counts.take();
        println!(
            "{step:<8} {:>8.1?}  peak {:>3} MiB (of it before: {} MiB)  {requests} reads of {} MiB  at most {} objects open",
            began.elapsed(),
            status("VmHWM:")? >> 10,
            start >> 10,
            bytes >> 20,
            store.counts.most_open.load(Ordering::Relaxed),
        );
        Ok(())
    };
    let snapshot = Snapshot::open(&store, &Made::scope(), made.root())?;
    let snapshot = snapshot.spooling(directory);
    told("open", began)?;
    let began = Instant::now();
    let mut mapped = 0;
    for item in snapshot.items() {
        mapped += item?.mapped_bytes;
    }
    told("walk", began)?;
    let began = Instant::now();
    for n in 0..LOOK_UPS {
        let key = made.key(scattered(n, made.files()));
        snapshot.metadata(&key)?.ok_or("a file is missing")?;
        snapshot.places(&key, 0, 1 << 20)?;
    }
    told("look up", began)?;
    match mapped == made.size_bytes() {
        true => Ok(()),
        false => Err("bytes are missing".into()),
    }
}
