//! The agent: one process of a host that starts jobs when they are due, serves metrics and a status page, and has somebody told of what is wrong.
//!
//! It does nothing itself. A job is a command of pitr, in a process and a session of its own, with another process beside it that keeps the
//! record (`child`). So jobs go on when the agent dies, and the next one finds them by their records and locks. A pure function
//! (`scheduler`) decides what is to start. Looking at everything (`observe`) is a command, too, so that the agent stays small.

pub mod alert;
pub mod child;
pub mod claim;
pub mod deletions;
pub mod examinations;
mod identity;
pub mod in_force;
pub mod jobs;
pub mod load;
pub mod looks;
pub mod observe;
pub mod observed;
pub mod page;
pub mod refused;
pub mod schedule;
pub mod scheduler;
pub mod serve;
pub mod supervise;
