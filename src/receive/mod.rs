//! The streaming receiver (`docs/decisions/0007-receiver.md`): WAL from a server's replication stream into a local journal, and from
//! there into the repositories.
//!
//! The session reports to the server only positions that a power cut cannot take back. So the order is: bytes into the
//! journal → `fdatasync` → position published by [`crate::journal`] → reported by the session. Apart from that, [`ship`]
//! brings durable WAL into the repositories and lets the journal's files go.

pub mod belonging;
pub mod compare;
pub mod content;
mod histories;
pub mod holdings;
pub mod in_step;
pub mod kept;
pub mod position;
pub mod remaining;
pub mod session;
pub mod ship;
mod shipment;
pub mod status;
pub mod stream;
pub mod upstream;
