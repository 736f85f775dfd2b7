//! WAL files into repositories and out of them.

pub mod asking;
pub mod backfill;
mod damage;
pub mod datadir;
pub mod fetch;
pub mod guard;
#[cfg(feature = "full")]
pub mod left_out;
pub mod leftover;
pub mod life;
#[cfg(test)]
mod life_tests;
pub mod offer;
pub mod own;
pub mod pid_file;
pub mod prefetched;
pub mod push;
pub mod received;
#[cfg(test)]
mod received_tests;
#[cfg(feature = "full")]
pub mod resolve;
pub mod server_conf;
pub mod spool;
pub mod startup;
