//! The WAL of a cluster in a repository: its objects, what their indexes say, and what is there.
//!
//! | module | what it answers |
//! |---|---|
//! | `index` · `indexer` · `undecoded` | what a segment holds, and how that is computed from its bytes |
//! | `link` | whether two segments belong to one life |
//! | `path` · `last` | which segment recovery reads next, and which is the last of a timeline |
//! | `increment` · `increments` · `remnant` · `tail` | what there is of a segment that is not whole |
//! | `stored_wal` · `presence` | whether stored WAL is whole, readable and the server's own |
//! | `rollup` · `rollup_cache` · `facts` · `feeder` · `edge` | what the indexes of many segments say together |
//! | `changed` | which blocks a stretch of WAL changed |
//! | `unlogged` | which unlogged relations a stretch of WAL makes |
//! | `inventory` · `survey` | everything that is stored of a cluster: for plans, and for deletions |

#[cfg(feature = "full")]
pub mod changed;
#[cfg(test)]
pub(crate) mod crafted;
#[cfg(feature = "full")]
pub mod edge;
#[cfg(feature = "full")]
pub mod facts;
#[cfg(feature = "full")]
pub mod feeder;
pub mod increment;
pub mod increments;
pub mod index;
pub mod indexer;
#[cfg(feature = "full")]
pub mod inventory;
pub mod last;
pub mod link;
#[cfg(test)]
mod link_tests;
pub mod path;
#[cfg(feature = "full")]
pub mod presence;
pub mod remnant;
#[cfg(feature = "full")]
pub mod rollup;
#[cfg(feature = "full")]
pub mod rollup_cache;
#[cfg(feature = "full")]
pub mod stored_wal;
#[cfg(feature = "full")]
pub mod survey;
#[cfg(feature = "full")]
pub mod tablespaces;
pub mod tail;
pub mod undecoded;
#[cfg(feature = "full")]
pub mod unlogged;
