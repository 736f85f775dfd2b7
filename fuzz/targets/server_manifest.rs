//! The server's backup manifest: read in pieces of any size it says the same; only a right checksum makes it valid; paths stay inside.

#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use pitr::pg::manifest::{ManifestEnd, ManifestFile, ManifestReader, is_safe_relative_path};
use pitr_fuzz::{Input, within};
use sha2::Digest;

const CEILING: usize = 32 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let step = usize::from(input.u8()) + 1;
    let bytes = match input.choice(3) {
        0 => input.rest().to_vec(),
        1 => sealed(input.rest()),
        _ => {
            let files = [
                b"{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n",
                input.rest(),
            ];
            sealed(&files.concat())
        }
    };
    let whole = read(&bytes[..]);
    let pieces = read(Pieces(&bytes, step));
    assert_eq!(whole, pieces, "in pieces of {step}");
}

fn sealed(body: &[u8]) -> Vec<u8> {
    let digest = sha2::Sha256::digest(body);
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    [body, b"\"Manifest-Checksum\": \"", hex.as_bytes(), b"\"}\n"].concat()
}

fn read(input: impl Read) -> (Vec<ManifestFile>, Option<ManifestEnd>) {
    let mut reader = ManifestReader::new(input);
    let mut files = Vec::new();
    loop {
        match reader.next_file() {
            Ok(Some(file)) => {
                assert!(is_safe_relative_path(&file.path));
                files.push(file);
            }
            Ok(None) => break,
            Err(_) => return (files, None),
        }
    }
    let end = reader.finish().ok();
    if let Some(end) = &end {
        assert_eq!(end.file_count, files.len() as u64);
    }
    (files, end)
}

struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.1.min(buffer.len());
        self.0.read(&mut buffer[..n])
    }
}
