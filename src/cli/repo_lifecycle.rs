//! `pitr repo lifecycle`.

use super::{Context, partial_or_warnings};
use crate::err;
use crate::error::Result;
use crate::operate::lifecycle::{self, Checked};

pub fn run(cx: &Context) -> Result<u8> {
    let (checked, failures) = lifecycle::check(&cx.session)?;
    if cx.is_json() {
        cx.json(&serde_json::json!({ "repositories": checked }))?;
    } else {
        let [one] = checked.as_slice() else {
            return Err(err!(Usage, "several repositories lie in object stores")
                .hint("The rules of one bucket are printed at a time: add --repository NAME."));
        };
        cx.json(&one.needed)?;
        told(cx, one);
    }
    let is_good = checked.iter().all(Checked::is_good);
    partial_or_warnings(cx.told(failures)?, is_good)
}

fn told(cx: &Context, one: &Checked) {
    for class in &one.lacking {
        cx.warn(&format!(
            "the bucket has no rule that moves to {class} what is tagged for it: what \"pitr repo tier\" tags stays where it is"
        ));
    }
    for finding in &one.findings {
        cx.warn(&format!("{finding}, which pitr did not ask for"));
    }
    let is_to_be_put = !one.lacking.is_empty();
    if is_to_be_put && one.other_rule_count > 0 {
        cx.note("the bucket has other rules: put-bucket-lifecycle-configuration replaces them all, so add the rules above to them");
    }
    if is_to_be_put {
        cx.note("next: aws s3api put-bucket-lifecycle-configuration --bucket BUCKET --lifecycle-configuration file://rules.json");
    }
}
