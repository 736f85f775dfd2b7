//! Snapshots: a map over packs, the engine under every kind of backup (format, section 8).
//!
//! A *pack* is a sequence of frames of file content; *layers* map every extent of every file to frames. Write order: packs, then
//! layers; the root that names them is the caller's, and is the commit point. Nothing here is visible before it.

pub mod arrived;
pub mod byte_queue;
#[cfg(test)]
mod chunk_tests;
pub mod chunks;
pub mod content;
pub mod filekey;
pub mod flatten;
pub mod frame;
pub mod frames;
pub mod kind;
pub mod layer;
mod layers;
pub mod leftovers;
mod merge;
#[cfg(test)]
mod merge_tests;
pub mod node;
mod open_layers;
pub mod pack;
pub mod page_hashes;
pub mod piece;
mod pipeline;
pub mod reader;
pub mod rebuilt;
pub mod repack;
pub mod sink;
pub mod sort;
pub mod spare;
pub mod usage;
pub mod uses;
pub mod writer;
