//! Rules by which the bucket itself deletes objects, or moves them where they must be thawed first.

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{ExpirationStatus, LifecycleRule, TransitionStorageClass};

use super::failure::{Answered, Failure};
use super::request::Bucket;

/// Returns the effects of the bucket's rules on objects of this place, as clauses.
pub(super) async fn harmful(bucket: &Bucket) -> Answered<Vec<String>> {
    let rules = bucket
        .run("read the lifecycle rules", |client| {
            let request = client.get_bucket_lifecycle_configuration();
            let request = request.bucket(&bucket.bucket);
            async move {
                match request.send().await {
                    Ok(answer) => Ok(answer.rules().to_vec()),
                    Err(e) if e.code() == Some("NoSuchLifecycleConfiguration") => Ok(Vec::new()),
                    Err(e) => Err(Failure::from(e)),
                }
            }
        })
        .await?;
    let rules = rules.iter().filter(|r| {
        *r.status() == ExpirationStatus::Enabled && reaches(prefix_of(r), &bucket.prefix)
    });
    Ok(rules.flat_map(told).collect())
}

/// The prefix of the keys that a rule is about; of all, where it names none. Tags narrow it further, and pitr sets none, but others may.
fn prefix_of(rule: &LifecycleRule) -> &str {
    let filter = rule.filter();
    let own = filter.and_then(|f| f.prefix());
    let and = filter.and_then(|f| f.and()).and_then(|a| a.prefix());
    #[expect(deprecated, reason = "old rules have it, and still hold")]
    let old = rule.prefix();
    own.or(and).or(old).unwrap_or_default()
}

fn reaches(rule: &str, place: &str) -> bool {
    place.starts_with(rule) || rule.starts_with(place)
}

fn told(rule: &LifecycleRule) -> Vec<String> {
    let id: String = rule
        .id()
        .unwrap_or_default()
        .escape_debug()
        .take(100)
        .collect();
    let mut told = Vec::new();
    if let Some(expiration) = rule.expiration() {
        match (expiration.days(), expiration.date()) {
            (Some(days), _) => {
                told.push(format!("rule \"{id}\" deletes objects after {days} days"));
            }
            (None, Some(_)) => told.push(format!("rule \"{id}\" deletes objects at a date")),
            // The rule removes only delete markers that hide no version any more.
            (None, None) => {}
        }
    }
    for transition in rule.transitions() {
        let class = transition.storage_class();
        if let Some(
            class @ (TransitionStorageClass::Glacier | TransitionStorageClass::DeepArchive),
        ) = class
        {
            let days = transition.days().unwrap_or_default();
            let class = class.as_str();
            told.push(format!(
                "rule \"{id}\" moves objects to {class} after {days} days"
            ));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_other_places_are_none() {
        for (rule, place, expected) in [
            ("", "pg/", true),
            ("pg", "pg/", true),
            ("pg/clusters/", "pg/", true),
            ("logs/", "pg/", false),
            ("logs/", "", true),
        ] {
            assert_eq!(reaches(rule, place), expected, "{rule} {place}");
        }
    }
}
