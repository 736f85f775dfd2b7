//! The last segment that a journal let go, and its mark, 32 bytes that the receiver knows it by: what the first segment that it still holds continues.
//!
//! A small file, written by rename and without a sync. Without it, or with an old one, nothing is proven of the segment behind.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Segment;
use crate::durable::Delivery;
use crate::pg::segment::SegmentName;

/// Its name in the journal's directory.
pub const NAME: &str = "let-go.json";
const LIMIT_BYTES: u64 = 4096;

/// The hash of a segment's last WAL, by which the next one is joined to it.
pub type Mark = [u8; 32];

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Text {
    segment: String,
    mark: String,
}

/// Replaces the file in a journal's directory.
///
/// # Errors
/// Those of the filesystem.
pub fn write(
    directory: &Path,
    (segment, mark): (SegmentName, Mark),
    nonce: u64,
) -> std::io::Result<()> {
    let text = Text {
        segment: segment.to_string(),
        mark: blake3::Hash::from_bytes(mark).to_hex().to_string(),
    };
    let mut file = Delivery::create(&directory.join(NAME), nonce)?;
    file.write_all(&serde_json::to_vec(&text)?)?;
    file.finish()
}

/// Reads what an earlier process wrote, for a journal with these segments. In one without any the file is removed: it says nothing of what comes.
pub fn begin(directory: &Path, held: &[Segment]) -> BTreeMap<SegmentName, Mark> {
    if held.is_empty() {
        let _ = std::fs::remove_file(directory.join(NAME));
        return BTreeMap::new();
    }
    read(directory).into_iter().collect()
}

/// Reads the file of a journal's directory; `None` when there is none that can be read as one.
fn read(directory: &Path) -> Option<(SegmentName, Mark)> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(directory.join(NAME)).ok()?;
    file.take(LIMIT_BYTES).read_to_end(&mut bytes).ok()?;
    let text: Text = serde_json::from_slice(&bytes).ok()?;
    let mark = blake3::Hash::from_hex(&text.mark).ok()?;
    Some((text.segment.parse().ok()?, *mark.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_rubbish_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(read(path), None);
        let name = |n: u32| format!("0000000200000001000000{n:02X}").parse().unwrap();
        for n in 1..3 {
            let last = (name(n), [7; 32]);
            write(path, last, u64::from(n)).unwrap();
            assert_eq!(read(path), Some(last));
        }
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 1);
        for rubbish in ["", "{}", r#"{"segment":"x","mark":"y"}"#] {
            std::fs::write(path.join(NAME), rubbish).unwrap();
            assert_eq!(read(path), None);
        }
    }
}
