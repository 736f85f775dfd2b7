//! The parts that the fuzz targets share: reading the fuzzer's bytes, a store and an object in memory, and a ceiling on
//! memory.

mod ceiling;
mod held;
mod input;
mod object;
mod segment;

pub use ceiling::within;
pub use held::Held;
pub use input::Input;
pub use object::Memory;
pub use segment::{check_index, identity, object};

/// The part that objects of the targets belong to.
pub const PART: &str = "20261120T064049Z-full/000000";

/// The system identifier of everything the targets make.
pub const SYSTEM_IDENTIFIER: u64 = 7_000_000_000_000_000_001;
