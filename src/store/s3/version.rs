//! Buckets that keep versions: an object that was deleted is hidden by a marker, and answered like one that never was.

use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::types::DeleteMarkerEntry;

use super::object::time;
use super::request::Bucket;
use crate::store::Deleted;
use crate::store::http::failure::{Answered, shown};

/// When the object was deleted and by whom, and whether a version of it is left. Whoever may not list versions learns only that it was.
pub(super) async fn deleted(bucket: &Bucket, key: &str) -> Answered<Deleted> {
    let full = bucket.full(key);
    let doing = format!("list the versions of object \"{key}\"");
    let listed = bucket
        .run(&doing, |client| {
            let request = client.list_object_versions().bucket(&bucket.bucket);
            let request = request.prefix(&full).max_keys(100);
            let full = &full;
            async move { Ok(marked(&request.send().await?, full)) }
        })
        .await;
    Ok(listed.unwrap_or_default())
}

fn marked(listed: &ListObjectVersionsOutput, full: &str) -> Deleted {
    let mut markers = listed.delete_markers().iter();
    let marker = markers.find(|m| m.key() == Some(full) && m.is_latest() == Some(true));
    let owner = marker.and_then(DeleteMarkerEntry::owner);
    let names = owner.map(|owner| [owner.display_name(), owner.id()]);
    let mut names = names.into_iter().flatten().flatten();
    let mut versions = listed.versions().iter();
    Deleted {
        at: marker.and_then(|m| time(m.last_modified()).ok()),
        by: names.find(|name| !name.is_empty()).map(shown),
        is_kept: versions.any(|v| v.key() == Some(full)).then_some(true),
    }
}
