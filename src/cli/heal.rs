//! The objects that were healed, and those that could not be.

use super::Context;
use crate::error::Result;
use crate::operate::heal::{OTHER_BACKUPS, Outcome};

/// Prints it, before the report of what is left.
pub fn print(cx: &Context, outcome: &Outcome, dry_run: bool) -> Result<()> {
    let word = if dry_run { "would heal" } else { "healed" };
    for one in &outcome.healed {
        let copy = match one.copy.rsplit_once(".heal-") {
            Some((_, number)) => format!(" (healed copy {number})"),
            None => String::new(),
        };
        // The name of a repository has neither a slash nor a space.
        let giver = match one.from.as_str() {
            OTHER_BACKUPS => OTHER_BACKUPS.to_owned(),
            path if path.starts_with('/') => format!("\"{path}\""),
            name => format!("repository \"{name}\""),
        };
        cx.line(&format!("{word}: {}{copy}, from {giver}", one.object))?;
    }
    for one in &outcome.unhealed {
        cx.line(&format!("not healed: {}: {}", one.object, one.why()))?;
    }
    Ok(())
}
