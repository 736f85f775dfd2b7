//! Storage classes whose objects must be thawed, which takes hours, before they can be read: a rule of the bucket may move objects there.

use aws_sdk_s3::types::ObjectStorageClass;

use super::failure::{Answered, Failure};
use super::object::{Part, fetch};
use super::request::Bucket;
use crate::error::Code;
use crate::store::Frozen;

/// Objects below `prefix` that cannot be read before they are thawed: the first of them, and how many are in such a class.
pub(super) async fn frozen(bucket: &Bucket, prefix: &str) -> Answered<Option<Frozen>> {
    let below = format!("{}{prefix}/", bucket.prefix);
    let mut token: Option<String> = None;
    let mut keys = Vec::new();
    let mut class = String::new();
    loop {
        let (asked, after) = (&below, token.as_deref());
        let page = bucket
            .run(&format!("list \"{prefix}\""), |client| async move {
                let request = client.list_objects_v2().bucket(&bucket.bucket);
                let request = request
                    .prefix(asked)
                    .set_continuation_token(after.map(str::to_owned));
                Ok(request.send().await?)
            })
            .await?;
        for object in page.contents() {
            let cold = object.storage_class().filter(|c| is_cold(c));
            let key = object.key().and_then(|k| k.strip_prefix(&bucket.prefix));
            if let (Some(cold), Some(key)) = (cold, key) {
                cold.as_str().clone_into(&mut class);
                keys.push(key.to_owned());
            }
        }
        let next = page.next_continuation_token().map(str::to_owned);
        if !page.is_truncated().unwrap_or(false) {
            break;
        }
        if next.is_none() || next == token {
            return Err(Failure::again("a listing goes on, and does not say where"));
        }
        token = next;
    }
    // What was thawed is still in its class.
    for key in &keys {
        match fetch(bucket, key, Part::From(0, 1)).await {
            Ok(_) => {}
            Err(failure) if failure.error.code() == Code::Damaged => {
                return Ok(Some(Frozen {
                    key: key.clone(),
                    class,
                    count: keys.len(),
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
