//! The entries that a backup or a restore left out: JSON, warnings and the exit status.

use serde_json::json;

use super::{Context, warnings_unless};
use crate::operate::human;
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
        cx.warn(&line(one, root));
    }
    let others = left_out.total().saturating_sub(SHOWN as u64);
    if others > 0 {
        cx.warn(&format!("{others} {more}"));
    }
}

/// Warns of so many things that the backup never had.
pub(super) fn warn_incomplete(cx: &Context, count: u64) {
    if count > 0 {
        let lacking = human::count(count, "thing");
        cx.warn(&format!(
            "the backup lacks {lacking} that could not be read"
        ));
    }
}

/// An example as a line; the directory that was backed up or restored has no path of its own.
fn line(one: &Example, root: &str) -> String {
    let path = format!("{root}{}", String::from_utf8_lossy(&one.path));
    let named = match path.is_empty() {
        true => "the directory itself".to_owned(),
        false => format!("\"{path}\""),
    };
    format!("{named}, {}: {}", one.part.name(), one.why)
}

pub(super) fn status(troubles: u64) -> u8 {
    warnings_unless(troubles == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::left_out::Part;

    #[test]
    fn u101_the_directory_itself_is_named_where_it_has_no_path() {
        let of = |path: &[u8]| Example {
            path: path.to_vec(),
            part: Part::Owner,
            why: "0:0 is given with --privileged alone".to_owned(),
        };
        let why = "owner: 0:0 is given with --privileged alone";
        let whole = format!("the directory itself, {why}");
        assert_eq!(line(&of(b""), ""), whole);
        assert_eq!(line(&of(b"a/b"), ""), format!("\"a/b\", {why}"));
        assert_eq!(line(&of(b"etc"), "/"), format!("\"/etc\", {why}"));
    }
}
