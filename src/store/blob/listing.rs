//! Listings, page by page, and deletions.

use std::sync::mpsc::SyncSender;

use super::request::{Answer, Ask, Place};
use super::{answer, azure, google, object};
use crate::config::BlobService;
use crate::error::Code;
use crate::pg::time::TimestampTz;
use crate::store::http::failure::{Answered, Failure};
use crate::store::http::is_temporary;
use crate::store::{Irregular, Key, Listed, Meta, is_part};

/// A page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Whole names with length and time.
    pub(super) objects: Vec<(String, Meta)>,
    /// Whole, with the slash at the end.
    pub(super) prefixes: Vec<String>,
    /// The token of the next page; empty behind the last one.
    pub(super) next: String,
}

/// How much of a listing is asked for.
#[derive(Clone, Copy)]
struct Extent {
    by_folder: bool,
    most: Option<usize>,
}

fn ask(place: &Place, prefix: &str, extent: Extent, after: &str) -> Ask {
    let Extent { by_folder, most } = extent;
    match &place.client.service {
        BlobService::Azure { .. } => azure::list(place, prefix, by_folder, most, after),
        BlobService::Google => google::list(place, prefix, by_folder, most, after),
    }
}

async fn page(place: &Place, prefix: &str, extent: Extent, after: &str) -> Answered<Page> {
    let ask = ask(place, prefix, extent, after);
    let read = |answer: Answer| match &place.client.service {
        BlobService::Azure { .. } => azure::page(&answer),
        BlobService::Google => google::page(&answer),
    };
    let asked = place.run("list objects", &ask, read).await;
    // Only of the bucket itself can a listing say that it is not there.
    asked.map_err(|failure| match failure.error.code() {
        Code::NotFound => Failure {
            error: failure.error.with_code(Code::NoRepository),
            ..failure
        },
        _ => failure,
    })
}

/// Goes through all pages.
async fn pages(
    place: &Place,
    prefix: &str,
    extent: Extent,
    mut see: impl FnMut(Page) -> bool + Send,
) -> Answered<()> {
    let mut after = String::new();
    loop {
        let mut page = page(place, prefix, extent, &after).await?;
        let next = std::mem::take(&mut page.next);
        if !see(page) {
            return Ok(());
        }
        match behind(&after, next)? {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

/// The token of the page behind the one that was asked for with `after`; none behind the last one. A store that gives the same again would do so for ever.
fn behind(after: &str, next: String) -> Answered<Option<String>> {
    match next {
        next if next.is_empty() => Ok(None),
        next if next == after => Err(Failure::again("the listing does not go on")),
        next => Ok(Some(next)),
    }
}

const ALL: Extent = Extent {
    by_folder: false,
    most: None,
};

/// Names directly below a prefix.
pub(super) async fn list(place: &Place, prefix: &str) -> Answered<Vec<Listed>> {
    let folder = match prefix {
        "" => place.prefix.clone(),
        prefix => format!("{}/", place.full(prefix)),
    };
    let extent = Extent {
        by_folder: true,
        most: None,
    };
    let mut listed = Vec::new();
    let see = |page: Page| {
        let objects = page.objects.into_iter().map(|(key, m)| (key, Some(m)));
        let prefixes = page.prefixes.into_iter().map(|key| (key, None));
        for (key, meta) in objects.chain(prefixes) {
            let name = key.strip_prefix(&folder).unwrap_or_default();
            let name = name.trim_end_matches('/');
            // Names outside the key grammar are not ours; verify reports them.
            if is_part(name) {
                listed.push(Listed {
                    name: name.to_owned(),
                    is_prefix: meta.is_none(),
                    meta,
                });
            }
        }
        true
    };
    pages(place, &folder, extent, see).await?;
    Ok(listed)
}

/// Sends every object to who goes through them, until nobody does.
pub(super) async fn all(place: &Place, send: &SyncSender<(String, Meta)>) -> Answered<()> {
    let mut after = String::new();
    loop {
        let page = page(place, &place.prefix, ALL, &after).await?;
        for (key, meta) in page.objects {
            let Some(key) = key.strip_prefix(&place.prefix) else {
                continue;
            };
            if is_temporary(key) || key.is_empty() {
                continue;
            }
            let object = (key.to_owned(), meta);
            // Whoever takes them may be slow, and this thread drives other requests, too.
            let sent = tokio::task::block_in_place(|| send.send(object));
            if sent.is_err() {
                return Ok(());
            }
        }
        match behind(&after, page.next)? {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

/// Returns what is no object of ours: strange keys, and what a killed trial left.
pub(super) async fn irregular(place: &Place) -> Answered<Vec<Irregular>> {
    let mut left = Vec::new();
    let see = |page: Page| {
        for (key, meta) in page.objects {
            let key = key.strip_prefix(&place.prefix).unwrap_or_default();
            if Key::new(key).is_err() {
                left.push(Irregular {
                    path: key.to_owned(),
                    modified: meta.modified,
                    is_unfinished: is_temporary(key),
                });
            }
        }
        true
    };
    pages(place, &place.prefix, ALL, see).await?;
    Ok(left)
}

pub(super) async fn first_key(place: &Place) -> Answered<Option<String>> {
    let mut first = None;
    let see = |page: Page| {
        let mut keys = page.objects.into_iter();
        first = keys.find_map(|(key, _)| {
            let key = key.strip_prefix(&place.prefix)?;
            (!is_temporary(key) && !key.is_empty()).then(|| key.to_owned())
        });
        first.is_none()
    };
    pages(place, &place.prefix, ALL, see).await?;
    Ok(first)
}

/// Requires that a listing of the bucket does not show an object either.
pub(super) async fn check_absent(place: &Place, key: &str) -> Answered<()> {
    let full = place.full(key);
    let extent = Extent {
        by_folder: false,
        most: Some(1),
    };
    let page = page(place, &full, extent, "").await?;
    match page.objects.iter().any(|(name, _)| *name == full) {
        true => Err(Failure::again(
            "the store lists the object, and does not find it",
        )),
        false => Ok(()),
    }
}

/// Deletes an object; `false` when it was absent.
pub(super) async fn delete(place: &Place, key: &str) -> Answered<bool> {
    let ask = match &place.client.service {
        BlobService::Azure { .. } => azure::delete(place, key),
        BlobService::Google => google::delete(place, key),
    };
    let doing = format!("delete object \"{key}\"");
    let asked = place.run(&doing, &ask, |_| Ok(())).await;
    // An attempt without an answer has deleted it.
    let was_tried = matches!(&asked, Err(failure) if failure.is_ambiguous);
    Ok(object::known(place, key, asked).await?.is_some() || was_tried)
}

/// Deletes everything in this place.
pub(super) async fn clear(place: &Place) -> Answered<()> {
    let mut keys = Vec::new();
    let see = |page: Page| {
        let own = |(key, _): (String, Meta)| key.strip_prefix(&place.prefix).map(str::to_owned);
        keys.extend(page.objects.into_iter().filter_map(own));
        true
    };
    pages(place, &place.prefix, ALL, see).await?;
    for key in keys {
        delete(place, &key).await?;
    }
    Ok(())
}

/// The time of the service: any answer is dated.
pub(super) async fn clock(place: &Place) -> Answered<Option<TimestampTz>> {
    let extent = Extent {
        by_folder: false,
        most: Some(1),
    };
    let ask = ask(place, &place.prefix, extent, "");
    let read = |answer: Answer| {
        let date = answer.header("date");
        date.map(|date| answer::http_date(Some(date))).transpose()
    };
    place.run("read the clock", &ask, read).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_gives_the_same_page_again_is_no_endless_one() {
        let next = |after: &str, next: &str| behind(after, next.to_owned()).ok();
        assert_eq!(next("", ""), Some(None));
        assert_eq!(next("a", ""), Some(None));
        assert_eq!(next("", "a"), Some(Some("a".to_owned())));
        assert_eq!(next("a", "b"), Some(Some("b".to_owned())));
        assert_eq!(next("a", "a"), None);
    }
}
