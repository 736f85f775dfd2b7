//! A random moment among those that can be reached.

use crate::err;
use crate::error::Result;
use crate::operate::info;
use crate::operate::opened::Opened;
use crate::operate::session::Session;
use crate::operate::target::{AskedTarget, Point};
use crate::pg::lsn::Lsn;
use crate::plan::target::Target;

/// Draws a position of the cluster's recovery window; the same seed gives the same one as long as the window is the same. Behind the last
/// record it means the end.
///
/// # Errors
/// `OutOfReach` where there is no window; those of [`crate::operate::reading::Reading::windows`].
pub(super) fn random(
    session: &Session,
    opened: &Opened,
    asked: &AskedTarget,
    seed: u64,
) -> Result<AskedTarget> {
    let (reading, inventory) = (&opened.reading, &opened.inventory);
    let found = reading.windows(session, inventory)?;
    let (cluster, _) = reading.decide_with_others(session, inventory)?;
    let window = info::of_cluster(&found.windows, cluster.timeline(), inventory);
    let Some(window) = window else {
        // The plan to the end says what is missing.
        return Ok(asked.clone());
    };
    let span = window.to_lsn.0.checked_sub(window.from_lsn.0);
    let span = span.ok_or_else(|| err!(Internal, "a window that ends before it begins"))?;
    let lsn = Lsn(window.from_lsn.0 + drawn(seed) % span.saturating_add(1));
    Ok(AskedTarget {
        point: Point::Known(Target::Lsn(lsn)),
        allow_end: true,
        ..asked.clone()
    })
}

/// The first number of SplitMix64, which scatters neighbouring seeds (Steele, Lea and Flood, 2014).
fn drawn(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::drawn;

    #[test]
    fn neighbouring_seeds_lie_far_apart_and_a_seed_is_repeatable() {
        assert_eq!(drawn(7), drawn(7));
        assert!(drawn(7).abs_diff(drawn(8)) > 1 << 40);
        // The published first number for seed 0.
        assert_eq!(drawn(0), 0xE220_A839_7B1D_CDAF);
    }
}
