//! Finds what WAL did to data: relations dropped, truncated and rewritten, rows deleted and updated, databases and tablespaces removed.
//! Each finding has its transaction, its time, and the position before which recovery must stop.
//!
//! `digest` reduces the records of one segment, so that several are decoded at once. `catalogs` rebuilds the rows of the system's
//! catalogs from page images and heap records. `story` puts the digests of a stretch together, in order, and judges each transaction
//! where it ends. `scan` finds the segments to decode by their indexes. `walk` follows names from a backup's list to an
//! event. `names` adds what WAL does not tell.
//!
//! Page images are why a stretch begins at the redo point of a checkpoint: the first change of a page behind it brings the whole page.

pub mod catalogs;
mod digest;
pub mod event;
pub mod names;
pub mod scan;
mod story;
pub mod walk;
