//! PostgreSQL's own formats, majors 13–19. No I/O, no clock, no runtime.

pub mod body;
#[cfg(feature = "full")]
pub mod catalog;
pub mod change;
pub mod conf;
pub mod control;
#[cfg(any(test, feature = "craft"))]
#[doc(hidden)]
pub mod craft;
mod crc;
pub mod cursor;
#[cfg(feature = "full")]
pub mod databases;
pub mod datapage;
pub mod finding;
#[cfg(feature = "full")]
pub mod heap;
#[cfg(feature = "full")]
pub mod image;
#[cfg(feature = "full")]
pub mod joined_crc;
pub mod label;
pub mod lsn;
#[cfg(feature = "full")]
pub mod manifest;
pub mod number_map;
pub mod page;
pub mod parameters;
pub mod reader;
pub mod record;
pub mod rmgr;
#[cfg(feature = "full")]
pub mod roles;
pub mod segment;
pub mod slot;
pub mod summary;
pub mod time;
pub mod timeline;
pub mod version;
pub mod xact;
pub mod xlog;
pub mod zeros;
