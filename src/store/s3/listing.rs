//! Listing, and taking away what a listing shows.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{EncodingType, Object, ObjectStorageClass};

use std::sync::mpsc::SyncSender;

use super::multipart::abort;
use super::object::time;
use super::request::Bucket;
use crate::err;
use crate::error::Code;
use crate::store::http::failure::{Answered, Failure};
use crate::store::http::is_temporary;
use crate::store::{Irregular, Key, Listed, Meta, NAMES_MAX, names_max};
use crate::text::percent_decoded;

/// Between the key and the id of an upload that was not completed; no key holds it.
const UPLOAD: &str = "?uploadId=";

/// So many pages in a row may be empty, as they are where much was deleted.
const EMPTY_MAX: u32 = 100;
/// Pages of uploads; there are few.
const PAGES_MAX: u32 = 1000;

/// Something in a listing.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// Without the prefix of the place; of a folder with its slash.
    pub(super) key: String,
    is_prefix: bool,
    pub(super) modified: Option<DateTime>,
    pub(super) size: Option<i64>,
    pub(super) class: Option<ObjectStorageClass>,
    pub(super) tag: Option<String>,
}

impl Found {
    /// Its length; 0 where the listing does not say it.
    pub(super) fn size_bytes(&self) -> u64 {
        let size = self.size.map(u64::try_from);
        size.and_then(Result::ok).unwrap_or(0)
    }

    /// Length and time, where the listing says both.
    fn meta(&self) -> Option<Meta> {
        let size = self.size.filter(|_| !self.is_prefix)?;
        Some(Meta {
            size_bytes: u64::try_from(size).ok()?,
            modified: time(self.modified.as_ref()).ok()?,
        })
    }
}

/// A listing of the keys that begin with a prefix, page by page. Absence is concluded from it, and what may be deleted: whatever in it
/// is not what was asked for is an error, and so is one that does not say whether it is all.
pub(super) struct Listing<'a> {
    bucket: &'a Bucket,
    prefix: String,
    /// Keys below a further slash are shown as one.
    delimited: bool,
    /// Keys may have characters that XML has no form for: the store is asked to encode them.
    encoded: bool,
    most: i32,
    /// The token of the next page; none before the first.
    token: Option<String>,
    /// The last key so far.
    last: Option<String>,
    empty: u32,
    is_over: bool,
}

impl<'a> Listing<'a> {
    pub(super) fn of(bucket: &'a Bucket, prefix: &str, delimited: bool) -> Listing<'a> {
        Listing {
            bucket,
            prefix: prefix.to_owned(),
            delimited,
            encoded: false,
            most: 1000,
            token: None,
            last: None,
            empty: 0,
            is_over: false,
        }
    }

    /// A listing of keys that others made.
    pub(super) fn of_others(bucket: &'a Bucket, most: i32) -> Listing<'a> {
        Listing {
            encoded: true,
            most,
            ..Listing::of(bucket, "", false)
        }
    }

    /// The next page; none behind the last.
    pub(super) async fn next(&mut self) -> Answered<Option<Vec<Found>>> {
        if self.is_over {
            return Ok(None);
        }
        let asked: &Listing = self;
        let (found, token) = asked
            .bucket
            .run(&format!("list \"{}\"", asked.prefix), |client| async move {
                let answer = client
                    .list_objects_v2()
                    .bucket(&asked.bucket.bucket)
                    .prefix(asked.full())
                    .set_delimiter(asked.delimited.then(|| "/".to_owned()))
                    .set_encoding_type(asked.encoded.then_some(EncodingType::Url))
                    .max_keys(asked.most)
                    .set_continuation_token(asked.token.clone())
                    .send()
                    .await?;
                asked.check(&answer)
            })
            .await?;
        self.is_over = token.is_none();
        self.token = token;
        self.empty = match found.is_empty() {
            true => self.empty + 1,
            false => 0,
        };
        let last = found.iter().map(|f| f.key.as_str()).max();
        self.last = last.map(str::to_owned).or(self.last.take());
        Ok(Some(found))
    }

    fn full(&self) -> String {
        format!("{}{}", self.bucket.prefix, self.prefix)
    }

    /// Returns the entries of a page, and the token of the next page.
    fn check(&self, page: &ListObjectsV2Output) -> Answered<(Vec<Found>, Option<String>)> {
        let full = self.full();
        let is_encoded = page.encoding_type() == Some(&EncodingType::Url);
        let text = |text: &str| match is_encoded {
            false => Ok(text.to_owned()),
            true => decoded(text)
                .ok_or_else(|| Failure::again("a listing encodes keys as nothing is encoded")),
        };
        if let Some(prefix) = page.prefix()
            && text(prefix)? != full
        {
            return Err(Failure::again("a listing is of another prefix"));
        }
        let objects = page.contents().iter();
        let objects = objects.map(|o| (o.key(), Some(o)));
        let folders = page.common_prefixes().iter();
        let folders = folders.map(|p| (p.prefix(), None));
        let mut found = Vec::new();
        for (key, object) in objects.chain(folders) {
            let key = key.ok_or_else(|| Failure::again("a listing names no key"))?;
            let key = text(key)?;
            let is_asked = key.starts_with(&full) && (object.is_some() || key.ends_with('/'));
            let Some(key) = key.strip_prefix(&self.bucket.prefix).filter(|_| is_asked) else {
                return Err(Failure::again(
                    "a listing names keys that were not asked for",
                ));
            };
            // Stores sort by bytes. One that begins again would be asked for ever.
            if self.last.as_deref().is_some_and(|last| key <= last) {
                return Err(Failure::again("a listing goes back to what it has shown"));
            }
            found.push(Found {
                key: key.to_owned(),
                is_prefix: object.is_none(),
                modified: object.and_then(|o| o.last_modified()).copied(),
                size: object.and_then(Object::size),
                class: object.and_then(|o| o.storage_class()).cloned(),
                tag: object.and_then(|o| o.e_tag()).map(str::to_owned),
            });
        }
        Ok((found, self.token_after(page)?))
    }

    fn token_after(&self, page: &ListObjectsV2Output) -> Answered<Option<String>> {
        let token = page.next_continuation_token().filter(|t| !t.is_empty());
        match (page.is_truncated(), token) {
            (Some(false), _) => Ok(None),
            (None, _) => Err(Failure::again("a listing does not say whether it goes on")),
            (Some(true), Some(token)) if self.token.as_deref() == Some(token) => Err(
                Failure::again("a listing goes on with the page it has shown"),
            ),
            (Some(true), Some(_)) if self.empty >= EMPTY_MAX => {
                Err(Failure::again("a listing goes on and shows nothing"))
            }
            (Some(true), Some(token)) => Ok(Some(token.to_owned())),
            (Some(true), None) => Err(Failure::again("a listing goes on, and does not say where")),
        }
    }
}

/// A key as a listing of the encoding `url` has it: a form, in which a space may be a plus.
fn decoded(text: &str) -> Option<String> {
    String::from_utf8(percent_decoded(&text.replace('+', " "))?).ok()
}

/// A listing that is larger than anything pitr writes.
pub(super) fn check_count<T>(names: &[T]) -> Answered<()> {
    check_below(names, NAMES_MAX)
}

fn check_below<T>(names: &[T], most: usize) -> Answered<()> {
    match names.len() <= most {
        true => Ok(()),
        false => Err(err!(Unreachable, "a listing does not end after {most} names").into()),
    }
}

/// Lists the entries directly below `prefix`.
pub(super) async fn list(bucket: &Bucket, prefix: &str) -> Answered<Vec<Listed>> {
    let below = match prefix {
        "" => String::new(),
        prefix => format!("{prefix}/"),
    };
    let mut listed = Vec::new();
    let mut listing = Listing::of(bucket, &below, true);
    while let Some(page) = listing.next().await? {
        for found in page {
            let name = found.key.get(below.len()..).unwrap_or_default();
            let name = match found.is_prefix {
                true => name.strip_suffix('/').unwrap_or(name),
                false => name,
            };
            // Names outside the key grammar are not ours; verify reports them.
            if !name.contains('/') && Key::new(name).is_ok() {
                listed.push(Listed {
                    name: name.to_owned(),
                    is_prefix: found.is_prefix,
                    meta: found.meta(),
                });
            }
        }
        check_below(&listed, names_max(prefix))?;
    }
    Ok(listed)
}

/// Key, length and time, and storage class of an object.
pub(super) type Whole = (String, Meta, Option<String>);

/// Sends every object of ours, page by page, for as long as somebody takes them.
pub(super) async fn all(bucket: &Bucket, pages: &SyncSender<Vec<Whole>>) -> Answered<()> {
    let mut listing = Listing::of(bucket, "", false);
    while let Some(page) = listing.next().await? {
        let ours = page
            .into_iter()
            .filter(|found| Key::new(&found.key).is_ok());
        let whole = |found: Found| {
            let (meta, class) = (found.meta()?, found.class);
            Some((found.key, meta, class.map(|c| c.as_str().to_owned())))
        };
        let page: Option<Vec<Whole>> = ours.map(whole).collect();
        let page = page.ok_or_else(|| {
            Failure::again("a listing does not say how long an object is, or of when")
        })?;
        if pages.send(page).is_err() {
            break;
        }
    }
    Ok(())
}

/// Asks the least there is to ask.
pub(super) async fn touch(bucket: &Bucket) -> Answered<()> {
    let mut listing = Listing {
        most: 1,
        ..Listing::of(bucket, "", false)
    };
    listing.next().await.map(|_| ())
}

/// The length of an object as a listing shows it; none where it is not listed.
pub(super) async fn length(bucket: &Bucket, key: &str) -> Answered<Option<u64>> {
    let mut listing = Listing {
        most: 1,
        ..Listing::of(bucket, key, false)
    };
    // The key itself is the first of those that begin with it.
    let page = listing.next().await?.unwrap_or_default();
    let own = page.iter().find(|found| found.key == key);
    Ok(own.map(Found::size_bytes))
}

/// The first key that is nothing temporary. A "folder" that a console made is an object of the prefix alone.
pub(super) async fn first_key(bucket: &Bucket) -> Answered<Option<String>> {
    let mut listing = Listing::of(bucket, "", false);
    while let Some(page) = listing.next().await? {
        let mut keys = page.into_iter().map(|found| found.key);
        if let Some(key) = keys.find(|k| !k.is_empty() && !is_temporary(k)) {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// Everything that is no object of ours: strange keys, what a trial left, and uploads that were never completed.
pub(super) async fn irregular(bucket: &Bucket) -> Answered<Vec<Irregular>> {
    let mut found = Vec::new();
    let mut listing = Listing::of(bucket, "", false);
    while let Some(page) = listing.next().await? {
        for object in page {
            if Key::new(&object.key).is_err() {
                found.push(Irregular {
                    is_unfinished: is_temporary(&object.key),
                    modified: time(object.modified.as_ref())?,
                    path: object.key,
                });
            }
        }
        check_count(&found)?;
    }
    uploads(bucket, &mut found).await?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

async fn uploads(bucket: &Bucket, found: &mut Vec<Irregular>) -> Answered<()> {
    let (mut key, mut id): (Option<String>, Option<String>) = (None, None);
    for _ in 0..PAGES_MAX {
        let (after_key, after_id) = (key.as_deref(), id.as_deref());
        let page = bucket
            .run("list unfinished uploads", |client| async move {
                let answer = client
                    .list_multipart_uploads()
                    .bucket(&bucket.bucket)
                    .prefix(&bucket.prefix)
                    .set_key_marker(after_key.map(str::to_owned))
                    .set_upload_id_marker(after_id.map(str::to_owned))
                    .send()
                    .await?;
                Ok(answer)
            })
            .await
            .map_err(needs_right)?;
        for upload in page.uploads() {
            let key = upload.key().and_then(|k| k.strip_prefix(&bucket.prefix));
            if let (Some(key), Some(id)) = (key, upload.upload_id()) {
                found.push(Irregular {
                    path: format!("{key}{UPLOAD}{id}"),
                    modified: time(upload.initiated())?,
                    is_unfinished: true,
                });
            }
        }
        check_count(found)?;
        let next = (
            page.next_key_marker().map(str::to_owned),
            page.next_upload_id_marker().map(str::to_owned),
        );
        if !page.is_truncated().unwrap_or(false) {
            return Ok(());
        }
        if next == (key, id) || next.0.is_none() {
            break;
        }
        (key, id) = next;
    }
    Err(err!(Unreachable, "a listing of uploads does not end").into())
}

/// Names the right that the listing of uploads needs; objects are listed with another one.
fn needs_right(failure: Failure) -> Failure {
    match failure.error.code() {
        Code::Denied => Failure {
            error: failure.error.hint(
                "What unfinished writes left cannot be looked for.\nAllow s3:ListBucketMultipartUploads of the bucket, as the policy does that \"pitr init --role reader\" prints.",
            ),
            ..failure
        },
        _ => failure,
    }
}

pub(super) async fn delete(bucket: &Bucket, key: &str) -> Answered<()> {
    bucket
        .run(&format!("delete object \"{key}\""), |client| async move {
            client
                .delete_object()
                .bucket(&bucket.bucket)
                .key(bucket.full(key))
                .send()
                .await?;
            Ok(())
        })
        .await
}

/// Deletes every key and takes back every upload.
pub(super) async fn clear(bucket: &Bucket) -> Answered<()> {
    let mut listing = Listing::of(bucket, "", false);
    while let Some(page) = listing.next().await? {
        for object in page {
            delete(bucket, &object.key).await?;
        }
    }
    let mut left = Vec::new();
    uploads(bucket, &mut left).await?;
    for upload in left {
        discard(bucket, &upload.path).await?;
    }
    Ok(())
}

/// Takes away what [`irregular`] called unfinished.
pub(super) async fn discard(bucket: &Bucket, unfinished: &str) -> Answered<bool> {
    if let Some((key, id)) = unfinished.rsplit_once(UPLOAD) {
        return abort(bucket, key, id).await;
    }
    if !is_temporary(unfinished) {
        return Err(err!(Internal, "\"{unfinished}\" is no unfinished object").into());
    }
    delete(bucket, unfinished).await?;
    Ok(true)
}
