//! Reads pages of the target past the system's memory: after a failed sync that holds them as if they had been written.
//!
//! Reading what was dropped from memory through memory again took four times as long.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

/// The kernel wants multiples of this as position, length and buffer, on every usual device.
const ALIGNMENT: usize = 4096;
/// Shorter reads are faster through memory, with the kernel's read-ahead.
const SHORT: usize = 64 << 10;

/// A buffer whose beginning is aligned.
#[derive(Default)]
pub(super) struct FromDisk {
    buffer: Vec<u8>,
}

impl FromDisk {
    /// Reads `length` bytes at `position`. The file is used for this alone; who calls has dropped it from memory: short reads, those that are not aligned,
    /// and those of a filesystem that cannot do otherwise go through memory.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&mut self, file: &File, position: u64, length: usize) -> io::Result<&[u8]> {
        let needed = length + ALIGNMENT;
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
        let from = self.buffer.as_ptr().align_offset(ALIGNMENT);
        let to = self.buffer.get_mut(from..from.saturating_add(length));
        // The buffer has room for any offset below the alignment.
        let to = to.ok_or(io::ErrorKind::OutOfMemory)?;
        let is_aligned =
            length.is_multiple_of(ALIGNMENT) && position.is_multiple_of(ALIGNMENT as u64);
        if length >= SHORT && is_aligned && is_set(file, OFlags::DIRECT) {
            match file.read_exact_at(to, position) {
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                read => return read.map(|()| &*to),
            }
        }
        is_set(file, OFlags::empty());
        file.read_exact_at(to, position)?;
        Ok(to)
    }
}

/// Sets the flags of an open file; `false` where its filesystem does not have them.
fn is_set(file: &File, flags: OFlags) -> bool {
    rustix::fs::fcntl_setfl(file, flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stretch_comes_back_on_a_disk_and_in_memory() {
        let content: Vec<u8> = (0..400_000_u32)
            .map(|n| (n.wrapping_mul(n) / 3).to_le_bytes()[0])
            .collect();
        for folder in [std::env::temp_dir(), "/dev/shm".into()] {
            let file = tempfile::tempfile_in(folder).unwrap();
            file.write_all_at(&content, 0).unwrap();
            let mut from_disk = FromDisk::default();
            for (position, length) in [
                (0, 8192),
                (8192, 131_072),
                (8192, 131_073),
                (3, 65_536),
                (0, 400_000),
                (262_144, 65_536),
            ] {
                let read = from_disk.read(&file, position as u64, length).unwrap();
                assert!(
                    read == &content[position..position + length],
                    "{position} {length}"
                );
            }
            assert!(from_disk.read(&file, 399_000, 8192).is_err());
            assert!(from_disk.read(&file, 327_680, 131_072).is_err());
        }
    }
}
