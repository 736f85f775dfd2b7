//! The use cases of pitr, as values: every question a command answers and every change it makes is a function here.
//!
//! Nothing here prints or knows a command line. A use case takes a [`session::Session`] and its arguments, and returns what it
//! found; notes and warnings of a long run go to the progress of the session's host.

pub mod access;
pub mod adopt;
pub mod archive_command;
pub mod away;
pub mod backfill;
pub mod backup;
pub mod backup_delete;
pub mod blocked;
pub mod check;
pub mod choice;
pub mod claims;
pub mod conflicts;
pub mod content;
pub mod doctor;
pub mod expire;
pub mod failures;
pub mod finding;
pub mod former;
pub mod found;
pub mod gaps;
pub mod held;
pub mod human;
pub mod info;
pub mod init;
pub mod keys;
pub mod lag;
pub mod listing;
pub mod of;
pub mod opened;
pub mod owner;
pub mod pin;
pub mod port;
pub mod reading;
pub mod receive;
pub mod receiver;
pub mod registered;
pub mod repositories;
pub mod resolve;
pub mod restore;
pub mod restoring;
pub mod rewrap;
pub mod rival;
pub mod scopes;
pub mod server;
pub mod session;
pub mod set_back;
pub mod standby;
pub mod start_line;
pub mod sync;
pub mod target;
pub mod timeline;
pub mod unproven;
pub mod verify;
