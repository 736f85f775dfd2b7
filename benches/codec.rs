//! Hash and codec speed and ratio on given files (docs/decisions/0001-hash-and-codec.md):
//!
//!     cargo bench --bench codec -- FILE...
//!
//! Each file is read whole; every step runs three times, interleaved, the best counts. MB = 10^6 bytes of raw content.

use std::io::Write;
use std::time::Instant;

use sha2::Digest;

fn main() {
    let files: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    if files.is_empty() {
        print("usage: cargo bench --bench codec -- FILE...\n");
    }
    for file in files {
        let raw = std::fs::read(&file).expect("the file can be read");
        let name = std::path::Path::new(&file)
            .file_name()
            .map(|n| n.to_string_lossy().into_owned());
        print(&format!("{} ({} bytes)\n", name.unwrap_or(file), raw.len()));
        measure(&raw);
    }
}

type Step<'a> = (&'a str, Box<dyn Fn() -> usize + 'a>);

fn measure(raw: &[u8]) {
    let lz4 = lz4_frame(raw);
    let zstd1 = zstd_at(raw, 1);
    let steps: Vec<Step<'_>> = vec![
        ("blake3", Box::new(|| blake3::hash(raw).as_bytes().len())),
        ("sha-256", Box::new(|| sha2::Sha256::digest(raw).len())),
        ("crc-32c", Box::new(|| crc32c::crc32c(raw) as usize)),
        ("lz4 encode", Box::new(|| lz4_frame(raw).len())),
        ("lz4 decode", Box::new(|| lz4_decode(&lz4))),
        ("zstd -1 encode", Box::new(|| zstd_at(raw, -1).len())),
        ("zstd 1 encode", Box::new(|| zstd_at(raw, 1).len())),
        (
            "zstd 1 decode",
            Box::new(|| zstd::bulk::decompress(&zstd1, raw.len()).map_or(0, |v| v.len())),
        ),
        ("zstd 3 encode", Box::new(|| zstd_at(raw, 3).len())),
    ];
    let mut best = vec![f64::MAX; steps.len()];
    let mut size = vec![0; steps.len()];
    for _ in 0..3 {
        for (i, (_, step)) in steps.iter().enumerate() {
            let start = Instant::now();
            size[i] = std::hint::black_box(step());
            best[i] = best[i].min(start.elapsed().as_secs_f64());
        }
    }
    for (i, (name, _)) in steps.iter().enumerate() {
        let speed = raw.len() as f64 / best[i] / 1e6;
        let ratio = raw.len() as f64 / size[i] as f64;
        let ratio = if name.ends_with("encode") {
            format!("  ratio {ratio:.2}")
        } else {
            String::new()
        };
        print(&format!("  {name:16}{speed:8.0} MB/s{ratio}\n"));
    }
}

fn zstd_at(raw: &[u8], level: i32) -> Vec<u8> {
    zstd::bulk::compress(raw, level).expect("memory takes everything")
}

fn lz4_frame(raw: &[u8]) -> Vec<u8> {
    let mut info = lz4_flex::frame::FrameInfo::new();
    info.block_size = lz4_flex::frame::BlockSize::Max256KB;
    let sink = Vec::with_capacity(raw.len());
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, sink);
    encoder.write_all(raw).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

fn lz4_decode(frame: &[u8]) -> usize {
    let mut decoder = lz4_flex::frame::FrameDecoder::new(frame);
    let copied = std::io::copy(&mut decoder, &mut std::io::sink()).unwrap_or(0);
    usize::try_from(copied).unwrap_or(0)
}

fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
