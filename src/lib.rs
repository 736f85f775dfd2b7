//! pitr: a PostgreSQL WAL archiver and point-in-time-recovery toolkit.
//!
//! Modules from the lowest layer up; a module imports only from layers below its own (`tests/tidy.rs` enforces it):
//!
//! | layer | modules |
//! |---|---|
//! | 0 | `error` · `progress` · `process` · `recent` (values used last) · `release` · `durable` · `fault` · `lock` · `text` (hexadecimal digits) · `ticking` (work beside a claim) · `way` (through links) |
//! | 1 | `behalf` (files of another account) · `pg` (PostgreSQL's formats, no I/O) · `exit` (statuses) · `seal` (cryptography, no I/O) · `program` (other programs, run to their end) · `secrets` (what of a text is secret) |
//! | 2 | `config` · `host` (clock, random numbers, progress as one value) |
//! | 3 | `store` (bytes under keys) · `wire` (replication protocol) |
//! | 4 | `repo` (what the keys mean) |
//! | 5 | `wal` · `snapshot` |
//! | 6 | `archive` · `plan` (pure) · `find` (what WAL did to data) · `tree` (real directories) |
//! | 7 | `mount` (a snapshot that is read when it is asked for) |
//! | 8 | `command` (what PostgreSQL runs) · `receive` · `backup` · `restore` · `expire` · `verify` · `sync` · `logical` · `redis` (other content) |
//! | 9 | `operate` (the use cases, as values) |
//! | 10 | `agent` (schedule, supervision, metrics, alerts) |
//! | 11 | `cli` |
//!
//! Without the feature `program`, object stores, `operate`, `agent` and `cli` are left out; without `full` (both are on by default) only what `pitr-archive` and `pitr-restore` need is built.

#[cfg(feature = "program")]
pub mod agent;
pub mod archive;
#[cfg(feature = "full")]
pub mod backup;
pub mod behalf;
#[cfg(feature = "program")]
pub mod cli;
pub mod command;
pub mod config;
pub mod durable;
pub mod error;
pub mod exit;
#[cfg(feature = "full")]
pub mod expire;
pub mod fault;
#[cfg(feature = "full")]
pub mod find;
#[cfg(feature = "full")]
pub mod host;
#[cfg(feature = "full")]
pub mod journal;
#[cfg(feature = "full")]
pub mod lock;
#[cfg(feature = "full")]
pub mod logical;
#[cfg(feature = "full")]
pub mod mount;
#[cfg(feature = "program")]
pub mod operate;
pub mod pg;
#[cfg(feature = "full")]
pub mod plan;
pub mod process;
#[cfg(feature = "full")]
pub mod program;
pub mod progress;
#[cfg(feature = "full")]
pub mod receive;
#[cfg(feature = "full")]
pub mod recent;
#[cfg(feature = "full")]
pub mod redis;
pub mod release;
pub mod repo;
#[cfg(feature = "full")]
pub mod restore;
#[cfg(feature = "full")]
pub mod seal;
#[cfg(feature = "full")]
pub mod secrets;
#[cfg(feature = "full")]
pub mod snapshot;
pub mod store;
#[cfg(feature = "full")]
pub mod sync;
pub mod text;
#[cfg(feature = "full")]
pub mod ticking;
#[cfg(feature = "full")]
pub mod tree;
#[cfg(feature = "full")]
pub mod verify;
pub mod wal;
pub mod way;
#[cfg(feature = "full")]
pub mod wire;
