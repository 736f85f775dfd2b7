//! `pitr repo lifecycle`.

use super::Context;
use crate::err;
use crate::error::{Code, Result};
use crate::exit::{self, Program};
use crate::operate::lifecycle::{self, Checked};

/// Runs the command.
pub fn run(cx: &Context) -> Result<u8> {
    let (checked, failures) = lifecycle::check(&cx.session)?;
    if cx.out.is_json() {
        cx.out
            .json(&serde_json::json!({ "repositories": checked }))?;
    } else {
        let [one] = checked.as_slice() else {
            return Err(err!(Usage, "several repositories lie in object stores")
                .hint("The rules of one bucket are printed at a time: add --repository NAME."));
        };
        cx.out.json(&one.needed)?;
        told(cx, one);
    }
    let is_good = checked.iter().all(Checked::is_good);
    Ok(match (cx.told(failures)?, is_good) {
        (false, _) => exit::status(Program::Pitr, Code::Partial),
        (true, false) => exit::WARNINGS,
        (true, true) => exit::SUCCESS,
    })
}

fn told(cx: &Context, one: &Checked) {
    for class in &one.lacking {
        cx.out.warn(&format!(
            "the bucket has no rule that moves to {class} what is tagged for it: what \"pitr repo tier\" tags stays where it is"
        ));
    }
    for finding in &one.findings {
        cx.out
            .warn(&format!("{finding}, which pitr did not ask for"));
    }
    let is_to_be_put = !one.lacking.is_empty();
    if is_to_be_put && one.other_rule_count > 0 {
        cx.out.note("the bucket has other rules: put-bucket-lifecycle-configuration replaces them all, so add the rules above to them");
    }
    if is_to_be_put {
        cx.out.note("next: aws s3api put-bucket-lifecycle-configuration --bucket BUCKET --lifecycle-configuration file://rules.json");
    }
}
