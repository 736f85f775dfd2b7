//! Names of replication slots.

/// The longest name: NAMEDATALEN without the byte that ends it.
pub const NAME_SIZE_MAX: usize = 63;

/// Whether PostgreSQL takes this for the name of a slot: 1 to 63 of `a-z`, `0-9` and `_`.
///
/// PostgreSQL: src/backend/replication/slot.c, `ReplicationSlotValidateName`.
pub fn is_slot_name(text: &str) -> bool {
    let is_legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=NAME_SIZE_MAX).contains(&text.len()) && text.bytes().all(is_legal)
}
