//! Storage classes whose objects must be thawed, which takes hours, before they can be read: a rule of the bucket may move objects there.

use aws_sdk_s3::types::ObjectStorageClass;

use super::failure::Answered;
use super::listing::{Listing, check_count};
use super::object::{Part, fetch};
use super::request::Bucket;
use crate::error::Code;
use crate::store::Frozen;

/// Returns the first object below `prefix` that cannot be read before it is thawed, and how many are in such a class.
/// With `names`, only names from the first to the last are considered.
pub(super) async fn frozen(
    bucket: &Bucket,
    prefix: &str,
    names: Option<&[String; 2]>,
) -> Answered<Option<Frozen>> {
    let below = format!("{prefix}/");
    let mut listing = Listing::of(bucket, &below, false);
    let mut cold = Vec::new();
    while let Some(page) = listing.next().await? {
        for object in page {
            let name = object.key.get(below.len()..).unwrap_or_default();
            if names.is_some_and(|[first, last]| name < first.as_str() || name > last.as_str()) {
                continue;
            }
            if let Some(class) = object.class.filter(is_cold) {
                cold.push((object.key, class));
            }
        }
        check_count(&cold)?;
    }
    // A thawed object is still in its class.
    for (key, class) in &cold {
        match fetch(bucket, key, Part::From(0, 1)).await {
            Ok(_) => {}
            Err(failure) if failure.error.code() == Code::Damaged => {
                return Ok(Some(Frozen {
                    key: key.clone(),
                    class: class.as_str().to_owned(),
                    count: cold.len(),
                }));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(None)
}

fn is_cold(class: &ObjectStorageClass) -> bool {
    matches!(
        class,
        ObjectStorageClass::Glacier | ObjectStorageClass::DeepArchive
    )
}
