//! Layers and packs that a root names, as the facts of a sealed one have them: runs of numbers by the backup that wrote them.

use std::collections::BTreeMap;

use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::{BackupId, PartName};

/// A sealed root names no more layers and packs: of packs alone these are 64 TiB.
pub const PARTS_MAX: usize = 1 << 18;

/// Layers or packs, as runs of numbers by the backup that wrote them.
pub type Parts = BTreeMap<BackupId, Vec<(u32, u32)>>;

/// Gathers names.
pub fn parts<'a>(names: impl Iterator<Item = &'a PartName>) -> Parts {
    let mut sorted: Vec<&PartName> = names.collect();
    sorted.sort();
    sorted.dedup();
    let mut parts = Parts::new();
    for name in sorted {
        let runs = parts.entry(name.id.clone()).or_default();
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == name.number => *last = name.number,
            _ => runs.push((name.number, name.number)),
        }
    }
    parts
}

/// Requires that a root names no more parts than a reader takes.
///
/// # Errors
/// `Damaged`.
pub fn check_room(count: usize) -> Result<()> {
    match count > PARTS_MAX {
        true => Err(too_many()),
        false => Ok(()),
    }
}

fn too_many() -> Error {
    err!(Damaged, "a root names more than {PARTS_MAX} parts")
}

/// Requires that the lists of a root name parts in order, and together no more than a root may.
///
/// # Errors
/// `Damaged` otherwise.
pub fn check_lists(lists: [&Parts; 2]) -> Result<()> {
    let mut room = PARTS_MAX;
    let mut lists = lists.into_iter();
    lists.try_for_each(|parts| check_parts(parts, &mut room))
}

/// Requires runs in order, of which `room` is left for so many: a few bytes can tell of a million, and who made them need not be proven.
///
/// # Errors
/// `Damaged`.
fn check_parts(parts: &Parts, room: &mut usize) -> Result<()> {
    for runs in parts.values() {
        let mut after = None;
        for &(first, last) in runs {
            if last > 999_999 || first > last || after.is_some_and(|a| first <= a) {
                return Err(err!(Damaged, "the parts of a root are not in order"));
            }
            after = Some(last);
            *room = room
                .checked_sub((last - first) as usize + 1)
                .ok_or_else(too_many)?;
        }
    }
    Ok(())
}

/// The single names, ascending.
pub fn names(parts: &Parts) -> impl Iterator<Item = PartName> + '_ {
    parts.iter().flat_map(|(id, runs)| {
        let numbers = runs.iter().flat_map(|(first, last)| *first..=*last);
        numbers.map(|number| PartName {
            id: id.clone(),
            number,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_bytes_do_not_make_a_million_names() {
        let id = |n: u32| {
            format!("20261120T0640{n:02}Z-full")
                .parse::<BackupId>()
                .unwrap()
        };
        let whole = |ids: u32| {
            (0..ids)
                .map(|n| (id(n), vec![(0, 199_999)]))
                .collect::<Parts>()
        };
        let mut room = PARTS_MAX;
        check_parts(&whole(1), &mut room).unwrap();
        assert_eq!(names(&whole(1)).count(), 200_000);
        assert!(
            check_parts(&whole(1), &mut room).is_err(),
            "layers and packs count together"
        );
        assert!(check_parts(&whole(60), &mut PARTS_MAX.clone()).is_err());
        let unordered = Parts::from([(id(1), vec![(5, 6), (6, 7)])]);
        assert!(check_parts(&unordered, &mut PARTS_MAX.clone()).is_err());
    }
}
