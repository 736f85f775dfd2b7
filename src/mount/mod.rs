//! A backup as a directory before anything was copied: files in full length, whose content comes from the repository when it is read.
//!
//! | file | what it owns |
//! |---|---|
//! | `blocks` | which blocks of a file are there |
//! | `directory` | the local directory beneath the mount, by descriptors |
//! | `shadow` | files without content, and the names they have now |
//! | `filler` | the threads that bring frames from the repository |
//! | `nodes` | the kernel's numbers of files |
//! | `filesystem` | the kernel's requests |
//!
//! The local directory is cache, written data and copy at once. It is the directory that a restore makes, with holes in its files, and the
//! mount lies over it under the same path. A block of a file is absent or there, and never becomes absent again: what was read, written or
//! cut off never comes from the backup any more. global/pg_control has its waiting name in the directory, so that no server starts on the
//! holes when the mount is gone.

mod blocks;
pub mod directory;
pub mod filesystem;
pub mod filler;
mod nodes;
pub mod shadow;
