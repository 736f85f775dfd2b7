//! Plans the recovery to a target. Pure: no I/O, no clock. The inventory, the answers about WAL, the target and the
//! zones are arguments.
//!
//! `target` is the request. `chain` follows the WAL that is there, and `gap` names its holes. `stop` holds PostgreSQL's
//! rules of where recovery stops, and `search` applies them to one backup. `cluster` decides which timeline is the
//! cluster. `base` chooses the backup, and `choice` chooses the repository. `account` reports the consequences, and
//! `unreachable` reports why there is no way to the target. `recovery` is the plan as a value. `retention` computes the
//! deletions of expire, and `lacking` computes the objects that one repository lacks of another. `estimate` tells how long
//! a recovery takes. `tiers` computes which objects move to a colder storage class. `sets` is the plan of several members that come back together.

mod account;
pub mod base;
pub mod chain;
pub mod choice;
pub mod cluster;
mod elsewhere;
pub mod estimate;
pub mod gap;
pub mod lacking;
#[cfg(test)]
mod model;
mod proof;
pub mod recovery;
pub mod retention;
pub mod search;
pub mod sets;
pub mod stop;
pub mod target;
pub mod target_time;
pub mod tiers;
pub mod unreachable;
pub mod window;

#[cfg(test)]
mod choice_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk_tests;

pub use base::plan;
