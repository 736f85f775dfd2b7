//! The entries that a backup or a restore left out: JSON, warnings and the exit status.

use serde_json::json;

use super::Context;
use crate::exit;
use crate::tree::left_out::{Example, LeftOut};

/// Examples that are printed.
pub(super) const SHOWN: usize = 20;

/// Returns the field `left_out`.
pub(super) fn as_json(left_out: &LeftOut) -> serde_json::Value {
    let examples = left_out.examples().iter().map(Example::as_json);
    json!({ "count": left_out.total(), "examples": examples.collect::<Vec<_>>() })
}

/// Warns of the first examples, whose paths begin at `root`. `more` follows the number of the others.
pub(super) fn warn(cx: &Context, left_out: &LeftOut, root: &str, more: &str) {
    for one in left_out.examples().iter().take(SHOWN) {
        let path = String::from_utf8_lossy(&one.path);
        let part = one.part.name();
        cx.out
            .warn(&format!("\"{root}{path}\", {part}: {}", one.why));
    }
    let others = left_out.total().saturating_sub(SHOWN as u64);
    if others > 0 {
        cx.out.warn(&format!("{others} {more}"));
    }
}

/// Returns the exit status of a command that met so many troubles.
pub(super) fn status(troubles: u64) -> u8 {
    match troubles {
        0 => exit::SUCCESS,
        _ => exit::WARNINGS,
    }
}
