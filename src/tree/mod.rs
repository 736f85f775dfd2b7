//! Real directories on Linux: taken into a snapshot ([`walk`]), made again from one ([`extract`]), and taken back to one where they lie ([`replace`]).
//!
//! Every entry is reached from a directory that is held open; no symbolic link is followed. Things that could not be
//! taken or made again are counted and named ([`left_out`]), never passed over in silence.

pub mod beneath;
pub mod explain;
pub mod extract;
pub mod filesystem;
pub mod left_out;
pub mod names;
pub mod part;
pub mod replace;
pub mod selection;
pub mod settle;
mod shared;
pub mod status;
#[cfg(test)]
mod tests;
pub mod turn;
pub mod walk;
pub mod watch;
