//! The policy of a bucket for a role: the least that its work needs.

use serde_json::{Value, json};

use super::Role;
use crate::config::{Location, Repository, Sse, TierBy};

/// A policy that is being made.
struct Policy {
    statements: Vec<Value>,
    /// `arn:aws:s3:::bucket`
    bucket: String,
    /// The prefix of the repository with its slash, or empty.
    root: String,
}

impl Policy {
    fn statement(&mut self, effect: &str, sid: &str, actions: &[&str], resources: Value) {
        let actions = match actions {
            [one] => json!(one),
            several => json!(several),
        };
        self.statements.push(
            json!({ "Sid": sid, "Effect": effect, "Action": actions, "Resource": resources }),
        );
    }

    fn allow(&mut self, sid: &str, actions: &[&str], keys: &[&str]) {
        let resources = self.below(keys);
        self.statement("Allow", sid, actions, resources);
    }

    fn deny(&mut self, sid: &str, actions: &[&str], keys: &[&str]) {
        let resources = self.below(keys);
        self.statement("Deny", sid, actions, resources);
    }

    fn below(&self, keys: &[&str]) -> Value {
        let below = |key: &&str| format!("{}/{}{key}", self.bucket, self.root);
        match keys {
            [one] => json!(below(one)),
            several => json!(several.iter().map(below).collect::<Vec<_>>()),
        }
    }

    fn list(&mut self, prefix: &str) {
        let mut list = json!({
            "Sid": "List",
            "Effect": "Allow",
            "Action": ["s3:ListBucket", "s3:ListBucketVersions"],
            "Resource": self.bucket,
        });
        if !prefix.is_empty() {
            let prefixes = [prefix.to_owned(), format!("{prefix}/*")];
            list["Condition"] = json!({ "StringLike": { "s3:prefix": prefixes } });
        }
        self.statements.push(list);
    }

    /// Denies creation without `If-None-Match`. Parts of an upload name no object: only its end has the condition.
    fn never_replace(&mut self) {
        self.deny("NeverReplace", &["s3:PutObject"], &["*"]);
        if let Some(last) = self.statements.last_mut() {
            last["Condition"] = json!({
                "Null": { "s3:if-none-match": "true" },
                "Bool": { "s3:ObjectCreationOperation": "true" },
            });
        }
    }

    /// The listing of unfinished uploads: verify names them, and expire removes them. S3 knows no prefix of a bucket for this right.
    fn find_uploads(&mut self) {
        let bucket = json!(self.bucket);
        let action = ["s3:ListBucketMultipartUploads"];
        self.statement("Allow", "FindUploads", &action, bucket);
    }
}

/// The objects that hosts of every role store beside data.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Records {
    /// Records of the audit log.
    pub has_log: bool,
    /// Claims of scheduled jobs.
    pub has_claims: bool,
}

/// Makes the policy; none for a repository that is in no bucket.
pub(super) fn of(repository: &Repository, role: Role, records: Records) -> Option<Value> {
    let Location::S3 { bucket, prefix } = &repository.location else {
        return None;
    };
    let partition = partition(repository);
    let mut policy = Policy {
        statements: Vec::new(),
        bucket: format!("arn:{partition}:s3:::{bucket}"),
        root: match prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        },
    };
    policy.list(prefix);
    let mut read = vec!["s3:GetObject"];
    if repository.s3.object_lock.is_some() {
        read.push("s3:GetObjectRetention");
    }
    policy.allow("Read", &read, &["*"]);
    let creates = work(&mut policy, repository, role, records);
    use_key(&mut policy, repository, creates);
    if role != Role::Writer {
        policy.find_uploads();
    }
    deny(&mut policy, repository, role);
    Some(json!({ "Version": "2012-10-17", "Statement": policy.statements }))
}

/// The part of the service that the bucket belongs to, by its region.
fn partition(repository: &Repository) -> &'static str {
    match repository.s3.region.as_deref() {
        Some(region) if region.starts_with("cn-") => "aws-cn",
        Some(region) if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// Allows the work of a role; returns whether it creates anything.
fn work(policy: &mut Policy, repository: &Repository, role: Role, records: Records) -> bool {
    let mut create = vec!["s3:PutObject", "s3:AbortMultipartUpload"];
    if repository.s3.object_lock.is_some() {
        create.push("s3:PutObjectRetention");
    }
    match role {
        Role::Reader => {
            if records.has_log {
                policy.allow("Record", &create, &["audit/*"]);
            }
            if records.has_claims {
                policy.allow("ClaimJobs", &create, &["jobs/*"]);
            }
            return records.has_log || records.has_claims;
        }
        Role::Writer => policy.allow("Create", &create, &["*"]),
        Role::Operator => {
            policy.allow("Create", &create, &["*"]);
            let tiers = [
                "s3:RestoreObject",
                "s3:GetObjectTagging",
                "s3:PutObjectTagging",
            ];
            policy.allow("Thaw", &tiers, &["*"]);
            let mut withdraw = vec!["s3:DeleteObject"];
            if repository.s3.object_lock.is_some() {
                withdraw.push("s3:GetObjectLegalHold");
            }
            policy.allow("WithdrawKeys", &withdraw, &["keys/*"]);
        }
        Role::Janitor => {
            let mut keys = vec![
                "clusters/*/events/*",
                "aux/*/events/*",
                "clusters/*/manifest",
                "aux/*/manifest",
                "audit/*",
            ];
            keys.extend(records.has_claims.then_some("jobs/*"));
            policy.allow("MarkAndRecord", &create, &keys);
            let delete = [
                "s3:DeleteObject",
                "s3:AbortMultipartUpload",
                "s3:GetObjectRetention",
                "s3:GetObjectLegalHold",
            ];
            policy.allow("Delete", &delete, &["*"]);
            // A copy would need the right to write over data: the operator has it.
            if !repository.s3.tiers.is_empty() {
                let tag = ["s3:GetObjectTagging", "s3:PutObjectTagging"];
                policy.allow("Tier", &tag, &["*"]);
            }
        }
    }
    true
}

/// Allows the use of the key with which the store encrypts, where the configuration has its ARN.
fn use_key(policy: &mut Policy, repository: &Repository, creates: bool) {
    let s3 = &repository.s3;
    let key = s3.sse_kms_key_id.as_deref();
    let key = key.filter(|key| key.starts_with("arn:") && s3.sse == Some(Sse::Kms));
    let Some(key) = key else { return };
    let actions: &[&str] = match creates {
        true => &["kms:Decrypt", "kms:GenerateDataKey"],
        false => &["kms:Decrypt"],
    };
    policy.statement("Allow", "UseKey", actions, json!(key));
}

/// Whether a role has no work that writes over an object, in a store that is known to judge the condition: others refuse such a policy, or creation.
fn replaces_nothing(repository: &Repository, role: Role) -> bool {
    let s3 = &repository.s3;
    let copies = role == Role::Operator && s3.tier_by == TierBy::Copy;
    s3.endpoint.is_none() && !s3.unsafe_overwrite && !copies
}

/// Denies what a role must never do, whatever other policies allow.
fn deny(policy: &mut Policy, repository: &Repository, role: Role) {
    if matches!(role, Role::Reader | Role::Writer) {
        let delete = ["s3:DeleteObject", "s3:DeleteObjectVersion"];
        policy.deny("NeverDelete", &delete, &["*"]);
    }
    if role == Role::Janitor {
        let delete = ["s3:DeleteObject", "s3:DeleteObjectVersion"];
        policy.deny("NeverDeleteKeys", &delete, &["keys/*", "pitr.json"]);
    }
    if replaces_nothing(repository, role) {
        policy.never_replace();
    }
    let weaken = ["s3:BypassGovernanceRetention", "s3:PutObjectLegalHold"];
    policy.deny("NeverWeaken", &weaken, &["*"]);
    let encryption = repository.encryption.as_ref();
    if role == Role::Writer && encryption.is_some_and(|e| !e.can_read()) {
        let backups = [
            "clusters/*/backups/*",
            "clusters/*/layers/*",
            "clusters/*/packs/*",
        ];
        policy.deny("NeverReadBackups", &["s3:GetObject"], &backups);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 4] = [Role::Reader, Role::Writer, Role::Janitor, Role::Operator];

    fn repository() -> Repository {
        Repository::at(Location::from_url("s3://bucket/prod").unwrap())
    }

    fn actions(repository: &Repository, role: Role, effect: &str) -> Vec<String> {
        let records = Records {
            has_log: true,
            has_claims: false,
        };
        let policy = of(repository, role, records).unwrap();
        let statements = policy["Statement"].as_array().unwrap().clone();
        let of = statements.iter().filter(|s| s["Effect"] == effect);
        of.flat_map(|s| match &s["Action"] {
            Value::Array(all) => all.clone(),
            one => vec![one.clone()],
        })
        .map(|action| action.as_str().unwrap().to_owned())
        .collect()
    }

    fn is_in(repository: &Repository, role: Role, effect: &str, action: &str) -> bool {
        let actions = actions(repository, role, effect);
        actions.iter().any(|a| a == action)
    }

    #[test]
    fn only_a_janitor_deletes_data_and_only_readers_read_keys() {
        let has = |role, effect, action| is_in(&repository(), role, effect, action);
        for role in [Role::Reader, Role::Writer] {
            assert!(!has(role, "Allow", "s3:DeleteObject"), "{role:?}");
            assert!(has(role, "Deny", "s3:DeleteObject"), "{role:?}");
        }
        assert!(has(Role::Janitor, "Allow", "s3:DeleteObject"));
        let tags = "s3:PutObjectTagging";
        assert!(!has(Role::Janitor, "Allow", tags));
        let mut tiered = repository();
        tiered.s3.tiers = vec!["30d:STANDARD_IA".parse().unwrap()];
        assert!(is_in(&tiered, Role::Janitor, "Allow", tags));
        for role in ROLES {
            assert!(has(role, "Allow", "s3:ListBucket"), "{role:?}");
            let bypass = "s3:BypassGovernanceRetention";
            assert!(has(role, "Deny", bypass), "{role:?}");
        }
    }

    #[test]
    fn no_role_replaces_objects_where_the_store_judges_the_condition() {
        let condition = |one: &Repository, role| {
            let policy = of(one, role, Records::default()).unwrap();
            let statements = policy["Statement"].as_array().unwrap().clone();
            let found = statements.into_iter().find(|s| s["Sid"] == "NeverReplace");
            found.map(|s| {
                assert_eq!(s["Effect"], "Deny");
                assert_eq!(s["Action"], "s3:PutObject");
                assert_eq!(s["Resource"], "arn:aws:s3:::bucket/prod/*");
                s["Condition"].clone()
            })
        };
        let wanted = json!({
            "Null": { "s3:if-none-match": "true" },
            "Bool": { "s3:ObjectCreationOperation": "true" },
        });
        let mut one = repository();
        for role in ROLES {
            assert_eq!(condition(&one, role), Some(wanted.clone()), "{role:?}");
        }
        // Copies onto an object have no such condition.
        one.s3.tier_by = TierBy::Copy;
        assert_eq!(condition(&one, Role::Operator), None);
        assert_eq!(condition(&one, Role::Janitor), Some(wanted));
        for change in [
            |one: &mut Repository| one.s3.unsafe_overwrite = true,
            |one: &mut Repository| one.s3.endpoint = Some("https://store".into()),
        ] {
            let mut other = repository();
            change(&mut other);
            assert!(ROLES.iter().all(|role| condition(&other, *role).is_none()));
        }
    }

    #[test]
    fn every_role_may_claim_jobs_where_one_is_claimed() {
        let claims = |role, has_claims| {
            let records = Records {
                has_log: false,
                has_claims,
            };
            let policy = of(&repository(), role, records).unwrap();
            policy.to_string().contains("prod/jobs/*")
        };
        for role in [Role::Reader, Role::Janitor] {
            assert!(claims(role, true) && !claims(role, false), "{role:?}");
        }
    }

    #[test]
    fn the_stores_own_key_may_be_used_by_whoever_reads_or_writes() {
        let key = "arn:aws-cn:kms:cn-north-1:123456789012:key/1";
        let mut one = repository();
        one.s3.region = Some("cn-north-1".into());
        one.s3.sse_kms_key_id = Some(key.into());
        let has = |one: &Repository, role, action| is_in(one, role, "Allow", action);
        assert!(!has(&one, Role::Writer, "kms:Decrypt"), "no aws:kms");
        one.s3.sse = Some(Sse::Kms);
        for role in ROLES {
            assert!(has(&one, role, "kms:Decrypt"), "{role:?}");
            assert!(has(&one, role, "kms:GenerateDataKey"), "{role:?}");
        }
        let plain = of(&one, Role::Reader, Records::default()).unwrap();
        let text = plain.to_string();
        assert!(text.contains(key) && text.contains("arn:aws-cn:s3:::bucket/prod/*"));
        assert!(!text.contains("GenerateDataKey"), "it creates nothing");
    }
}
