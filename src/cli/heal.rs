//! The objects that were healed, and those that could not be.

use super::Context;
use crate::error::Result;
use crate::operate::heal::Outcome;

/// Prints it, before the report of what is left.
pub fn print(cx: &Context, outcome: &Outcome, dry_run: bool) -> Result<()> {
    let word = if dry_run { "would heal" } else { "healed" };
    for one in &outcome.healed {
        let copy = match one.copy.rsplit_once(".heal-") {
            Some((_, number)) => format!(" (healed copy {number})"),
            None => String::new(),
        };
        cx.out.line(&format!(
            "{word}: {}{copy}, from repository \"{}\"",
            one.object, one.from
        ))?;
    }
    for one in &outcome.unhealed {
        let why = match one.reasons.as_slice() {
            [] => "no other repository is configured".to_owned(),
            reasons => reasons.join("; "),
        };
        cx.out.line(&format!("not healed: {}: {why}", one.object))?;
    }
    Ok(())
}
