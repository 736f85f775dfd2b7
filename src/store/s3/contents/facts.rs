//! The facts about an object beside its bytes.

use std::collections::BTreeMap;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use serde::{Deserialize, Serialize};

use crate::text::percent_encoded;

/// Metadata of an object. JSON of it is tag 20 of a node (format, section 16.2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The store's mark of this content.
    pub etag: String,
    /// When the store received it, in Unix seconds.
    pub modified: i64,
    /// Its version, in a bucket that keeps versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// `Content-Type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// `Cache-Control`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// `Content-Disposition`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    /// `Content-Encoding`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// `Content-Language`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    /// `Expires`, as the store has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// The place that a website sends visitors to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// Its storage class, for information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// The writer's own metadata, `x-amz-meta-…`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Its tags.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whether its tags could not be read: a backup may have those that were there before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lacks_tags: bool,
    /// Whether all but mark and time is left out, for there was too much of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lacks_metadata: bool,
}

impl Facts {
    pub(super) fn of(answer: &GetObjectOutput) -> Facts {
        let text = |text: Option<&str>| text.filter(|t| !t.is_empty()).map(str::to_owned);
        Facts {
            etag: answer.e_tag().unwrap_or_default().to_owned(),
            modified: answer.last_modified().map_or(0, |time| time.secs()),
            // A bucket that keeps none may say so in this word.
            version_id: text(answer.version_id()).filter(|id| id != "null"),
            content_type: text(answer.content_type()),
            cache_control: text(answer.cache_control()),
            content_disposition: text(answer.content_disposition()),
            content_encoding: text(answer.content_encoding()),
            content_language: text(answer.content_language()),
            expires: text(answer.expires_string()),
            redirect: text(answer.website_redirect_location()),
            storage_class: answer.storage_class().map(|c| c.as_str().to_owned()),
            metadata: answer.metadata().into_iter().flatten().map(owned).collect(),
            tags: BTreeMap::new(),
            lacks_tags: false,
            lacks_metadata: false,
        }
    }

    /// The tags as the header of a request has them.
    pub(super) fn tagging(&self) -> Option<String> {
        let encoded = |text: &String| percent_encoded(text.as_bytes(), b"");
        let pair =
            |(name, value): (&String, &String)| format!("{}={}", encoded(name), encoded(value));
        let pairs: Vec<String> = self.tags.iter().map(pair).collect();
        (!pairs.is_empty()).then(|| pairs.join("&"))
    }
}

fn owned((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

/// Requests that begin an object, with its metadata. They have the same setters, and no trait in common.
macro_rules! described {
    ($request:expr, $facts:expr) => {{
        let facts: &$crate::store::s3::contents::Facts = $facts;
        let metadata = facts.metadata.clone().into_iter().collect();
        $request
            .set_content_type(facts.content_type.clone())
            .set_cache_control(facts.cache_control.clone())
            .set_content_disposition(facts.content_disposition.clone())
            .set_content_encoding(facts.content_encoding.clone())
            .set_content_language(facts.content_language.clone())
            .set_expires(expires(facts))
            .set_website_redirect_location(facts.redirect.clone())
            .set_tagging(facts.tagging())
            .set_metadata(Some(metadata))
    }};
}
pub(super) use described;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_in_a_header_as_in_a_form() {
        let tags = [("a b", "c&d=e"), ("é", "")];
        let facts = Facts {
            tags: tags.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..Facts::default()
        };
        assert_eq!(facts.tagging().as_deref(), Some("a%20b=c%26d%3De&%C3%A9="));
        assert_eq!(Facts::default().tagging(), None);
        let json = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&json).unwrap(), facts);
        // Fields of a later version are passed over.
        assert!(serde_json::from_str::<Facts>("{\"etag\":\"x\",\"acl\":1}").is_ok());
    }
}
