//! A medium below a filesystem that keeps every write and every flush, in order: what a power cut leaves on a drive can then be made for any
//! moment, as often as wanted. The drive may reorder and tear what was not flushed, or lie about its flushes.
//!
//! It is a FUSE filesystem of one file, on which a loop device sits: what arrives here is what the kernel's filesystem sends to a drive.
//! Linux: include/uapi/linux/fuse.h (messages), drivers/block/loop.c (a flush of the device is an fsync of the file).

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bytes that a drive writes as a whole or not at all.
pub const SECTOR: usize = 512;
/// The filesystem's block: a file's content begins at one.
pub const BLOCK: usize = 4096;
/// The only file in the filesystem.
const NAME: &str = "image";
const FILE_NODE: u64 = 2;
const ROOT_NODE: u64 = 1;
/// The kernel sends no longer write.
const WRITE_BYTES_MAX: u32 = 128 << 10;

/// An arrival at the medium.
enum Arrived {
    Write { offset: usize, bytes: Vec<u8> },
    Flush,
}

struct State {
    now: Vec<u8>,
    log: Vec<Arrived>,
}

/// The medium while it is in use. Unmounted when dropped.
pub struct Medium {
    mount: PathBuf,
    before: Vec<u8>,
    state: Arc<Mutex<State>>,
}

impl Medium {
    /// Mounts one over the folder `mount`; it holds `content`.
    pub fn over(mount: &Path, content: Vec<u8>) -> Medium {
        let mut device = File::options();
        let device = device.read(true).write(true).open("/dev/fuse");
        let device = device.expect("/dev/fuse opens");
        // Its standard input is what the kernel takes for the server's end; --internal-only: without a helper.
        let out = Command::new("mount")
            .args(["--internal-only", "-t", "fuse", "-o"])
            .arg("fd=0,rootmode=40000,user_id=0,group_id=0,allow_other")
            .arg("pitr-test")
            .arg(mount)
            .stdin(Stdio::from(device.try_clone().unwrap()))
            .output()
            .expect("mount starts");
        assert!(out.status.success(), "{out:?}");
        let state = Arc::new(Mutex::new(State {
            now: content.clone(),
            log: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        // It ends with the mount.
        std::thread::spawn(move || serve(device, &shared));
        Medium {
            mount: mount.to_owned(),
            before: content,
            state,
        }
    }

    /// The file that is the medium.
    pub fn image(&self) -> PathBuf {
        self.mount.join(NAME)
    }

    /// How much has arrived so far.
    pub fn position(&self) -> usize {
        locked(&self.state).log.len()
    }

    /// Takes what has arrived.
    pub fn recording(mut self) -> Recording {
        let log = std::mem::take(&mut locked(&self.state).log);
        let before = std::mem::take(&mut self.before);
        Recording { before, log }
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        super::mount::unmount(&self.mount);
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that arrived at a medium, in order.
pub struct Recording {
    before: Vec<u8>,
    log: Vec<Arrived>,
}

/// The content that a power cut left.
pub struct Cut {
    pub content: Vec<u8>,
    /// Sectors that had arrived and are not there.
    pub lost_sectors: usize,
    /// Writes of which some sectors are there and others are not.
    pub torn_writes: usize,
}

impl Recording {
    /// How much arrived.
    pub fn length(&self) -> usize {
        self.log.len()
    }

    /// How much is durable of the first `at` arrivals, on a medium that does not lie: what the last flush covers.
    pub fn flushed(&self, at: usize) -> usize {
        let is_flush = |arrived: &Arrived| matches!(arrived, Arrived::Flush);
        self.log[..at].iter().rposition(is_flush).unwrap_or(0)
    }

    /// Returns the places at which the sectors of a file with this content were written.
    pub fn places(&self, content: &[u8]) -> BTreeSet<usize> {
        let blocks: HashSet<&[u8]> = content.chunks_exact(BLOCK).collect();
        let mut places = BTreeSet::new();
        for arrived in &self.log {
            let Arrived::Write { offset, bytes } = arrived else {
                continue;
            };
            for (block, at) in bytes.chunks(BLOCK).zip((*offset..).step_by(BLOCK)) {
                if blocks.contains(block) {
                    places.extend((at..at + BLOCK).step_by(SECTOR));
                }
            }
        }
        places
    }

    /// Returns the content of the medium when everything before `unsafe_part` got there. The writes in that part keep
    /// the sectors that `keeps`, asked by offset, selects.
    pub fn cut(&self, unsafe_part: Range<usize>, mut keeps: impl FnMut(usize) -> bool) -> Cut {
        let mut cut = Cut {
            content: self.before.clone(),
            lost_sectors: 0,
            torn_writes: 0,
        };
        for (n, arrived) in self.log[..unsafe_part.end].iter().enumerate() {
            let Arrived::Write { offset, bytes } = arrived else {
                continue;
            };
            let (mut kept, mut lost) = (0, 0);
            for (sector, offset) in bytes.chunks(SECTOR).zip((*offset..).step_by(SECTOR)) {
                if unsafe_part.contains(&n) && !keeps(offset) {
                    lost += 1;
                    continue;
                }
                cut.content[offset..offset + sector.len()].copy_from_slice(sector);
                kept += 1;
            }
            cut.lost_sectors += lost;
            cut.torn_writes += usize::from(kept > 0 && lost > 0);
        }
        cut
    }
}

/// Answers the kernel until the filesystem is unmounted.
fn serve(mut device: File, state: &Mutex<State>) {
    let mut request = vec![0; WRITE_BYTES_MAX as usize + 4096];
    loop {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // ENOENT: the request was given up meanwhile.
            Err(e) if e.raw_os_error() == Some(2) => continue,
            // ENODEV: unmounted.
            Err(_) => return,
        };
        let request = Request(&request[..length]);
        let answer = request.answer(&mut locked(state));
        let (error, body) = match answer {
            Answer::None => continue,
            Answer::Error(errno) => (-errno, Vec::new()),
            Answer::Body(body) => (0, body),
        };
        let length = u32::try_from(16 + body.len()).expect("answers are short");
        let mut message = length.to_le_bytes().to_vec();
        message.extend(i32::to_le_bytes(error));
        message.extend(request.u64(8).to_le_bytes());
        message.extend(body);
        // The kernel may have given the request up.
        let _ = device.write_all(&message);
    }
}

enum Answer {
    None,
    Error(i32),
    Body(Vec<u8>),
}

/// One message of the kernel: a head of 40 bytes, then what belongs to the operation.
struct Request<'a>(&'a [u8]);

impl Request<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn answer(&self, state: &mut State) -> Answer {
        const ENOENT: i32 = 2;
        const ENOSYS: i32 = 38;
        let size = state.now.len();
        match self.u32(4) {
            // LOOKUP
            1 if self.0[40..].starts_with(NAME.as_bytes()) => {
                let mut body = numbers(&[FILE_NODE, 0, 3600, 3600, 0]);
                body.extend(attributes(FILE_NODE, size));
                Answer::Body(body)
            }
            1 => Answer::Error(ENOENT),
            // FORGET, BATCH_FORGET, INTERRUPT
            2 | 42 | 36 => Answer::None,
            // GETATTR, SETATTR
            3 | 4 => {
                let mut body = numbers(&[3600, 0]);
                body.extend(attributes(self.u64(16), size));
                Answer::Body(body)
            }
            // OPEN, OPENDIR: file handle 0; nothing is cached of the file, so that everything arrives here.
            14 => Answer::Body(numbers(&[0, 1])),
            27 => Answer::Body(numbers(&[0, 0])),
            // READ
            15 => {
                let from = usize::try_from(self.u64(48)).unwrap().min(size);
                let to = (from + self.u32(56) as usize).min(size);
                Answer::Body(state.now[from..to].to_vec())
            }
            // WRITE
            16 => {
                let (offset, length) = (self.u64(48) as usize, self.u32(56) as usize);
                let bytes = self.0[80..80 + length].to_vec();
                state.now[offset..offset + length].copy_from_slice(&bytes);
                state.log.push(Arrived::Write { offset, bytes });
                let length = u64::try_from(length).expect("a write is short");
                Answer::Body(numbers(&[length]))
            }
            // FSYNC
            20 => {
                state.log.push(Arrived::Flush);
                Answer::Body(Vec::new())
            }
            // RELEASE, FLUSH, RELEASEDIR
            18 | 25 | 29 => Answer::Body(Vec::new()),
            // INIT: version 7.31, no flags, buffers of the kernel's choice.
            26 => {
                let mut body = Vec::new();
                for number in [7, 31, 0, 0, 0, WRITE_BYTES_MAX, 1] {
                    body.extend(u32::to_le_bytes(number));
                }
                body.resize(64, 0);
                Answer::Body(body)
            }
            // STATFS
            17 => Answer::Body(vec![0; 80]),
            _ => Answer::Error(ENOSYS),
        }
    }
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// `struct fuse_attr`.
fn attributes(node: u64, size: usize) -> Vec<u8> {
    let mode: u32 = match node {
        ROOT_NODE => 0o040_755,
        _ => 0o100_600,
    };
    let size = u64::try_from(size).expect("the medium is small");
    let mut body = numbers(&[node, size, size.div_ceil(512), 0, 0, 0]);
    // Nanoseconds of the three times, mode, links, user, group, device, block size, flags.
    for number in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        body.extend(number.to_le_bytes());
    }
    body
}
