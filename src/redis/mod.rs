//! Redis and Valkey as a kind of content: the data set as the server gives it to a new replica, byte by byte.
//!
//! The tree of a backup has one file, `base.rdb`, or `tail.aof` besides. The root's member `redis` is [`member::Member`]. `resp`, `info`, `nodes`, `slots`, `refusal`, `rdb` and `version` are pure;
//! `connection` speaks with the server, `sentinel` with those that name it, `transfer` asks for a full resynchronisation and receives it, and `directory` writes what a server loads.
//! `saved` and `append_only` serve where `PSYNC` is refused: the one has the server save, the other takes what it writes anyway; `files` opens both.
//!
//! A receiver gets what follows a data set: `position` decides where it goes on, `receive` brings the server's commands (`command`) into the journal (`record`),
//! (`owed` is the base that it owes behind a gap), and `shipment` from there into the repositories (`log`, `history`). `walk` finds it there again, `route` the way to a moment, `window` the times that can be had back, and `overview` shows all.

pub mod append_only;
pub mod command;
pub mod connection;
pub mod directory;
pub mod effects;
mod ends;
pub mod files;
pub mod history;
pub mod info;
pub mod kind;
pub mod log;
pub mod member;
pub mod nodes;
pub mod overview;
pub mod owed;
pub mod position;
pub mod program;
pub mod rdb;
pub mod receive;
pub mod record;
mod refusal;
pub mod resp;
pub mod route;
pub mod saved;
pub mod sentinel;
pub mod shipment;
pub mod slots;
pub mod source;
pub mod transfer;
pub mod version;
pub mod walk;
pub mod window;
