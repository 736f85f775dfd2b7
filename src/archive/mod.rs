//! WAL files into repositories and out of them.

#[cfg(feature = "full")]
pub mod backfill;
pub mod datadir;
pub mod fetch;
pub mod guard;
pub mod push;
pub mod server_conf;
