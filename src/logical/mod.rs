//! Logical dumps as a kind of content: `pg_dump` in one exported snapshot for each database, checked before the backup exists.
//!
//! The tree of a backup: `globals.sql`, and for each database `<oid>/` as `pg_dump -Fd` wrote it, and `<oid>.rows.json` with the rows of
//! each table in the very snapshot of the dump. The root's member `logical` is [`member::Member`].

pub mod database;
pub mod kind;
pub mod member;
pub mod read_check;
pub mod rows;
pub mod source;
pub mod spool;
pub mod tool;
