//! Rules by which the bucket itself deletes objects, or moves them to other storage classes: those that tiers need, and all others.

use std::collections::BTreeSet;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{ExpirationStatus, LifecycleRule, LifecycleRuleFilter};
use serde_json::{Value, json};

use super::request::Bucket;
use super::tiering::TAG;
use crate::config::{S3Settings, StorageClass, TierBy};
use crate::store::http::failure::{Answered, Failure};

/// The effects of a bucket's rules on a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Deletions, and moves to classes from which objects must be thawed, that nobody asked pitr for; as clauses.
    pub harmful: Vec<String>,
    /// Other moves that nobody asked pitr for; as clauses.
    pub foreign: Vec<String>,
    /// Classes of tiers to which no rule moves what is tagged.
    pub lacking: Vec<StorageClass>,
    /// How many rules of the bucket are not pitr's.
    pub others: usize,
}

/// The classes to which rules of the bucket have to move what is tagged.
fn wanted(settings: &S3Settings) -> BTreeSet<StorageClass> {
    match settings.tier_by {
        TierBy::Rules => settings.tiers.iter().map(|tier| tier.class).collect(),
        TierBy::Copy => BTreeSet::new(),
    }
}

/// The rules that tiers need in a bucket, below a prefix, as `aws s3api put-bucket-lifecycle-configuration` takes them.
pub fn needed(settings: &S3Settings, prefix: &str) -> Value {
    let rule = |class: StorageClass| {
        let tag = json!({ "Key": TAG, "Value": class.name() });
        let (name, filter) = match prefix {
            "" => (String::new(), json!({ "Tag": tag })),
            prefix => (
                format!("-{}", prefix.replace('/', ".")),
                json!({ "And": { "Prefix": format!("{prefix}/"), "Tags": [tag] } }),
            ),
        };
        json!({
            "ID": format!("{TAG}-{}{name}", class.name()),
            "Status": "Enabled",
            "Filter": filter,
            "Transitions": [{ "Days": class.rule_days(), "StorageClass": class.name() }],
        })
    };
    let rules: Vec<Value> = wanted(settings).into_iter().map(rule).collect();
    json!({ "Rules": rules })
}

/// Reads the rules of the bucket, and judges them.
pub(super) async fn read(bucket: &Bucket) -> Answered<Rules> {
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
    Ok(judge(&rules, &bucket.prefix, &bucket.link.settings))
}

fn judge(rules: &[LifecycleRule], place: &str, settings: &S3Settings) -> Rules {
    let mut lacking = wanted(settings);
    let asked = lacking.clone();
    let mut judged = Rules::default();
    for rule in rules {
        let own = moves_tagged(rule).filter(|class| asked.contains(class));
        let is_enabled = *rule.status() == ExpirationStatus::Enabled;
        match own {
            Some(class) if is_enabled && place.starts_with(prefix_of(rule)) => {
                lacking.remove(&class);
            }
            Some(_) => {}
            None => {
                judged.others += 1;
                if is_enabled && reaches(prefix_of(rule), place) {
                    judged.harmful.extend(deletes(rule));
                    for (class, told) in moves(rule) {
                        match class.is_none_or(StorageClass::is_archive) {
                            true => judged.harmful.push(told),
                            false => judged.foreign.push(told),
                        }
                    }
                }
            }
        }
    }
    judged.lacking = lacking.into_iter().collect();
    judged
}

/// The class to which a rule moves what pitr has tagged with it, and does nothing else.
fn moves_tagged(rule: &LifecycleRule) -> Option<StorageClass> {
    let [(TAG, value)] = *tags_of(rule).as_slice() else {
        return None;
    };
    let class = StorageClass::named(value)?;
    let [transition] = rule.transitions() else {
        return None;
    };
    let is_to = transition.storage_class().map(|c| c.as_str()) == Some(value);
    let days = u32::try_from(transition.days().unwrap_or_default()).ok();
    let is_prompt = transition.date().is_none() && days.is_some_and(|d| d <= class.rule_days());
    let is_whole = !is_bounded(rule.filter()?) && deletes(rule).is_none();
    (is_to && is_prompt && is_whole).then_some(class)
}

fn tags_of(rule: &LifecycleRule) -> Vec<(&str, &str)> {
    let filter = rule.filter();
    let own = filter.and_then(LifecycleRuleFilter::tag).into_iter();
    let and = filter.and_then(|f| f.and()).map(|and| and.tags());
    let all = own.chain(and.unwrap_or_default());
    all.map(|tag| (tag.key(), tag.value())).collect()
}

/// Whether a filter leaves out objects by their size.
fn is_bounded(filter: &LifecycleRuleFilter) -> bool {
    let own = [
        filter.object_size_greater_than(),
        filter.object_size_less_than(),
    ];
    let and = filter.and();
    let and = and.map(|and| [and.object_size_greater_than(), and.object_size_less_than()]);
    own.into_iter()
        .chain(and.into_iter().flatten())
        .any(|bound| bound.is_some())
}

/// The prefix of the keys that a rule is about; of all, where it names none. Tags narrow it further, and others may set tags.
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

fn shown_id(rule: &LifecycleRule) -> String {
    let id = rule.id().unwrap_or_default();
    id.escape_debug().take(100).collect()
}

fn deletes(rule: &LifecycleRule) -> Option<String> {
    let (expiration, id) = (rule.expiration()?, shown_id(rule));
    match (expiration.days(), expiration.date()) {
        (Some(days), _) => Some(format!("rule \"{id}\" deletes objects after {days} days")),
        (None, Some(_)) => Some(format!("rule \"{id}\" deletes objects at a date")),
        // The rule removes only delete markers that hide no version any more.
        (None, None) => None,
    }
}

/// The moves of a rule, each with its class where pitr knows it.
fn moves(rule: &LifecycleRule) -> Vec<(Option<StorageClass>, String)> {
    let id = shown_id(rule);
    let transitions = rule.transitions().iter();
    transitions
        .filter_map(|transition| {
            let class = transition.storage_class()?.as_str();
            let days = transition.days().unwrap_or_default();
            let told = format!(
                "rule \"{id}\" moves objects to {} after {days} days",
                class.escape_debug()
            );
            Some((StorageClass::named(class), told))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::types::{
        LifecycleExpiration, LifecycleRuleAndOperator, Tag, Transition, TransitionStorageClass,
    };

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

    fn settings(tiers: &str) -> S3Settings {
        S3Settings {
            tiers: tiers.split(',').map(|t| t.parse().unwrap()).collect(),
            ..S3Settings::default()
        }
    }

    /// A rule that moves what is tagged `value` to a class after so many days.
    fn rule(value: &str, class: &str, days: i32) -> LifecycleRule {
        let tag = Tag::builder().key(TAG).value(value).build().unwrap();
        let and = LifecycleRuleAndOperator::builder()
            .prefix("pg/")
            .tags(tag)
            .build();
        let transition = Transition::builder()
            .days(days)
            .storage_class(TransitionStorageClass::from(class))
            .build();
        LifecycleRule::builder()
            .id("x")
            .status(ExpirationStatus::Enabled)
            .filter(LifecycleRuleFilter::builder().and(and).build())
            .transitions(transition)
            .build()
            .unwrap()
    }

    fn judged(rules: &[LifecycleRule]) -> Rules {
        judge(rules, "pg/", &settings("30d:STANDARD_IA,90d:GLACIER"))
    }

    #[test]
    fn a_rule_of_a_tier_is_known_and_no_harm() {
        let good = [
            rule("GLACIER", "GLACIER", 0),
            rule("STANDARD_IA", "STANDARD_IA", 30),
        ];
        assert_eq!(judged(&good), Rules::default());
        let lacking = judged(&good[..1]).lacking;
        assert_eq!(lacking, [StorageClass::StandardIa]);
        // Elsewhere in the bucket.
        let settings = settings("90d:GLACIER");
        assert_eq!(
            judge(&good[..1], "other/", &settings).lacking,
            [StorageClass::Glacier]
        );
    }

    #[test]
    fn what_does_more_or_something_else_is_a_finding() {
        let late = rule("GLACIER", "GLACIER", 7);
        let other = rule("GLACIER", "DEEP_ARCHIVE", 0);
        // A tier that is not configured.
        let stray = rule("DEEP_ARCHIVE", "DEEP_ARCHIVE", 0);
        let mut deleting = rule("GLACIER", "GLACIER", 0);
        deleting.expiration = Some(LifecycleExpiration::builder().days(9).build());
        for (wrong, told) in [
            (late, "moves objects to GLACIER after 7 days"),
            (other, "moves objects to DEEP_ARCHIVE after 0 days"),
            (stray, "moves objects to DEEP_ARCHIVE"),
            (deleting, "deletes objects after 9 days"),
        ] {
            let judged = judged(&[wrong]);
            assert_eq!((judged.others, judged.lacking.len()), (1, 2));
            assert!(judged.harmful[0].contains(told), "{judged:?}");
        }
        let mut off = rule("GLACIER", "GLACIER", 0);
        off.status = ExpirationStatus::Disabled;
        assert!(judged(&[off]).lacking.contains(&StorageClass::Glacier));
        let warm = rule("STANDARD_IA", "ONEZONE_IA", 30);
        assert_eq!(judged(&[warm]).foreign.len(), 1);
    }

    #[test]
    fn the_rules_that_are_printed_are_the_rules_that_are_wanted() {
        let printed = needed(&settings("30d:STANDARD_IA,90d:GLACIER"), "pg");
        let first = &printed["Rules"][0];
        assert_eq!(first["ID"], "pitr-tier-STANDARD_IA-pg");
        assert_eq!(first["Filter"]["And"]["Prefix"], "pg/");
        assert_eq!(first["Transitions"][0]["Days"], 30);
        assert_eq!(
            printed["Rules"][1]["Transitions"][0]["StorageClass"],
            "GLACIER"
        );
        let whole = needed(&settings("90d:GLACIER"), "");
        assert_eq!(whole["Rules"][0]["Filter"]["Tag"]["Value"], "GLACIER");
        let copied = S3Settings {
            tier_by: TierBy::Copy,
            ..settings("90d:GLACIER")
        };
        assert_eq!(needed(&copied, "")["Rules"], json!([]));
    }
}
