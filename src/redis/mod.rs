//! Redis and Valkey as a kind of content: the data set as the server gives it to a new replica, byte by byte.
//!
//! The tree of a backup has one file, `base.rdb`. The root's member `redis` is [`member::Member`]. `resp`, `info`, `refusal`, `rdb` and `version` are pure;
//! `connection` speaks with the server, `transfer` asks for a full resynchronisation and receives it, and `directory` writes what a server loads.

pub mod connection;
pub mod directory;
pub mod info;
pub mod kind;
pub mod member;
pub mod program;
pub mod rdb;
mod refusal;
pub mod resp;
pub mod source;
pub mod transfer;
pub mod version;
