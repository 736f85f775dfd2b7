//! chunk_index [CHUNKS]: memory and time of the index by which a backup of files knows the content that it need not store again.
//!
//! It makes the index of so many chunks (20 million: 10 TB of content) as a backup does from the map of its prior, and looks chunks up, of which
//! half are there. Printed are the peak of memory, the bytes on the disk, and how long both took. The scratch files are in `TMPDIR`.
//! Memory is the same in every profile: cargo bench --bench chunk_index, or cargo run of it with --profile dev.

use std::io::Write;
use std::time::Instant;

use pitr::snapshot::chunks::{Index, Known};
use pitr::snapshot::piece::WholeChunk;
use pitr::snapshot::sort::{MEMORY_BYTES, Sorter};

type Failure = Box<dyn std::error::Error>;

const CHUNKS: u64 = 20_000_000;
const LOOK_UPS: u64 = 100_000;

/// A hash that looks random (splitmix64).
fn hash(n: u64) -> [u8; 32] {
    let mut out = [0; 32];
    for (word, bytes) in (0_u64..).zip(out.as_chunks_mut::<8>().0) {
        let seed = (n * 4 + word + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        *bytes = (mixed ^ (mixed >> 31)).to_le_bytes();
    }
    out
}

fn peak_kib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmHWM")?.parse()?)
}

fn main() -> Result<(), Failure> {
    // Cargo adds an option of its own.
    let asked = std::env::args().skip(1).find_map(|text| text.parse().ok());
    let chunks: u64 = asked.unwrap_or(CHUNKS);
    let scratch = std::env::temp_dir();
    let began = Instant::now();
    let mut sorter = Sorter::new(&scratch, MEMORY_BYTES);
    for n in 0..chunks {
        let small = u32::try_from(n % 1_000_000)?;
        let whole = WholeChunk {
            offset: small,
            length: 512 << 10,
            hash: hash(n),
        };
        let known = Known {
            pack: u32::try_from(n / 1_000_000)?,
            frame: small,
            whole,
        };
        sorter.push(&known.encode(), &[])?;
    }
    let index = Index::sorted(sorter, &scratch)?;
    let made = began.elapsed();
    let began = Instant::now();
    let mut found = 0;
    for n in 0..LOOK_UPS {
        // Every second one is none of them.
        let of = n.wrapping_mul(0x2545_F491_4F6C_DD1D) % chunks;
        let of = if n % 2 == 0 { of } else { chunks + of };
        found += u64::from(index.find(&hash(of))?.is_some());
    }
    if found != LOOK_UPS.div_ceil(2) {
        return Err(format!("{found} of {LOOK_UPS} were found").into());
    }
    writeln!(
        std::io::stdout(),
        "{chunks} chunks: peak {} KiB of memory, made in {made:?}; {LOOK_UPS} look-ups in {:?}",
        peak_kib()?,
        began.elapsed()
    )?;
    Ok(())
}
