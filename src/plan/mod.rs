//! What a target leads to. Pure: no I/O, no clock; the inventory, the answers about WAL, the target and the zones are arguments.
//!
//! `target` is what is asked; `chain` follows the WAL that is there, `gap` names its holes, `stop` holds PostgreSQL's rules of where recovery stops, `search`
//! applies them to one backup, `cluster` decides which timeline is the cluster, `base` chooses the backup, `choice` the repository, `account` says what that means, `unreachable` why there is none;
//! `recovery` is the plan as a value, `retention` what expire deletes, `lacking` what one repository lacks of another.

mod account;
pub mod base;
pub mod chain;
pub mod choice;
pub mod cluster;
mod elsewhere;
pub mod gap;
pub mod lacking;
#[cfg(test)]
mod model;
mod proof;
pub mod recovery;
pub mod retention;
pub mod search;
pub mod stop;
pub mod target;
pub mod target_time;
pub mod unreachable;
pub mod window;

#[cfg(test)]
mod choice_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk_tests;

pub use base::plan;
