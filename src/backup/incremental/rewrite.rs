//! Which packs of the prior give their pages up: what is visible of them is stored again, so that a restore reads little that it does not need.
//!
//! Pure. A frame is read whole for each page of it that is visible. So incrementals leave more and more behind that a restore reads for nothing.

use std::collections::BTreeSet;

use crate::repo::root::PackRef;

/// A restore from the prior may read so much, in percent of what it needs. The backup that is taken adds to that.
const READ_MOST_PERCENT: u128 = 115;

/// Chooses packs by their index: those of which the smallest part is visible, until the others are read within the limit.
pub fn choose(packs: &[PackRef]) -> BTreeSet<usize> {
    let needed: u128 = packs.iter().map(|pack| u128::from(pack.live_bytes)).sum();
    let mut read: u128 = packs.iter().map(read_bytes).sum();
    let mut by_share: Vec<usize> = (0..packs.len()).collect();
    by_share.sort_by_cached_key(|at| packs.get(*at).map(visible_permille));
    let mut chosen = BTreeSet::new();
    for at in by_share {
        if read * 100 <= needed * READ_MOST_PERCENT {
            break;
        }
        let Some(pack) = packs.get(at) else { continue };
        read -= read_bytes(pack).saturating_sub(u128::from(pack.live_bytes));
        chosen.insert(at);
    }
    chosen
}

/// Raw bytes of the frames of a pack that have a visible page, as if all frames had the same length.
fn read_bytes(pack: &PackRef) -> u128 {
    let live = u128::from(pack.live_bytes);
    match (pack.all_frames, pack.all_bytes) {
        (Some(frames), Some(bytes)) if frames > 0 => {
            let read = u128::from(bytes) * u128::from(pack.live_frames) / u128::from(frames);
            read.max(live)
        }
        _ => live,
    }
}

fn visible_permille(pack: &PackRef) -> u128 {
    u128::from(pack.live_bytes) * 1000 / read_bytes(pack).max(1)
}

#[cfg(test)]
pub(in crate::backup) mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    pub(in crate::backup) fn pack(
        number: u32,
        live_frames: u64,
        live_bytes: u64,
        all: Option<(u64, u64)>,
    ) -> PackRef {
        PackRef {
            key: format!("20261120T064049Z-full/{number:06}")
                .parse()
                .unwrap(),
            size_bytes: 1,
            live_frames,
            live_bytes,
            all_frames: all.map(|(frames, _)| frames),
            all_bytes: all.map(|(_, bytes)| bytes),
        }
    }

    #[test]
    fn what_is_used_least_is_stored_again() {
        // Frames that no page is visible of are not read.
        let mut packs = vec![
            pack(0, 100, 100 * MIB, Some((100, 100 * MIB))),
            pack(1, 50, 50 * MIB, Some((100, 100 * MIB))),
        ];
        assert!(choose(&packs).is_empty());
        packs.push(pack(2, 20, 18 * MIB, Some((20, 20 * MIB))));
        packs.push(pack(3, 40, 2 * MIB, Some((40, 10 * MIB))));
        assert!(choose(&packs).is_empty(), "180 for 170");
        packs.push(pack(4, 40, 10 * MIB, Some((40, 40 * MIB))));
        packs.push(pack(5, 40, 30 * MIB, Some((40, 40 * MIB))));
        assert_eq!(choose(&packs), BTreeSet::from([3, 4]), "260 for 210");
        // Nothing is known of packs of before.
        let unknown = |p: &PackRef| pack(9, p.live_frames, p.live_bytes, None);
        let unknown: Vec<_> = packs.iter().map(unknown).collect();
        assert!(choose(&unknown).is_empty());
        assert!(choose(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn the_limit_holds_and_nothing_is_stored_again_without_need(
            shape in proptest::collection::vec((1_u64..1000, 1_u64..=100, 1_u64..=100), 0..30)
        ) {
            let packs: Vec<_> = shape
                .iter()
                .map(|(frames, seen, share)| {
                    let live_frames = (frames * seen).div_ceil(100);
                    let live = (live_frames * MIB * share / 100).max(1);
                    pack(0, live_frames, live, Some((*frames, frames * MIB)))
                })
                .collect();
            let needed: u128 = packs.iter().map(|p| u128::from(p.live_bytes)).sum();
            let chosen = choose(&packs);
            let read = |without: Option<usize>| -> u128 {
                let all = packs.iter().enumerate();
                all.map(|(at, p)| match chosen.contains(&at) && without != Some(at) {
                    true => u128::from(p.live_bytes),
                    false => read_bytes(p),
                }).sum()
            };
            prop_assert!(read(None) * 100 <= needed * READ_MOST_PERCENT);
            let least = chosen.iter().max_by_key(|at| (visible_permille(&packs[**at]), **at));
            if let Some(least) = least {
                prop_assert!(read(Some(*least)) * 100 > needed * READ_MOST_PERCENT);
            }
        }
    }
}
