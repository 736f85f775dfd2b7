//! The requests of Google Cloud Storage, to its JSON interface.
//!
//! Its uploads in parts (of the XML interface) take no condition. A resumable upload does, when it begins and when it ends.

use bytes::Bytes;
use hyper::http::Method;
use reqsign_core::hash::{base64_decode, base64_encode};
use serde_json::{Value, json};

use super::answer::document_date;
use super::listing::Page;
use super::object::Head;
use super::request::{Answer, Ask, Place, with_query};
use crate::store::Meta;
use crate::store::http::failure::{Answered, Failure};
use crate::text::percent_encoded;

/// The mark of an upload on an object.
const MARK: &str = "pitrmark";
/// Between the parts of a body; content may hold it, for the length of the body ends it.
const BOUNDARY: &str = "pitr-5f1c9b3e7a2d4608";

fn object(place: &Place, key: &str) -> String {
    let (base, bucket) = (&place.client.base, &place.bucket);
    let name = percent_encoded(place.full(key).as_bytes(), b"");
    format!("{base}/storage/v1/b/{bucket}/o/{name}")
}

pub(super) fn get(place: &Place, key: &str) -> Ask {
    // Stored bytes, whatever encoding somebody gave the object.
    Ask::new(Method::GET, format!("{}?alt=media", object(place, key)))
        .header("accept-encoding", "gzip")
}

pub(super) fn head(place: &Place, key: &str) -> Ask {
    Ask::new(Method::GET, object(place, key))
}

pub(super) fn delete(place: &Place, key: &str) -> Ask {
    Ask::new(Method::DELETE, object(place, key))
}

fn upload(place: &Place, kind: &str, key: &str) -> String {
    let (base, bucket) = (&place.client.base, &place.bucket);
    let name = percent_encoded(place.full(key).as_bytes(), b"");
    format!(
        "{base}/upload/storage/v1/b/{bucket}/o?uploadType={kind}&name={name}&ifGenerationMatch=0"
    )
}

/// Creates an object in one request, with its checksum and the upload's mark.
pub(super) fn put(place: &Place, key: &str, mark: &str, body: &[u8], sum: u32) -> Ask {
    let facts = json!({
        "name": place.full(key),
        "contentType": "application/octet-stream",
        "crc32c": written_sum(sum),
        "metadata": { MARK: mark },
    });
    let mut whole = format!(
        "--{BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{facts}\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    whole.reserve(body.len() + 64);
    whole.extend_from_slice(body);
    whole.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    Ask::new(Method::POST, upload(place, "multipart", key))
        .header(
            "content-type",
            format!("multipart/related; boundary={BOUNDARY}"),
        )
        .body(whole.into())
}

/// Begins an upload whose length is not known.
pub(super) fn begin(place: &Place, key: &str, mark: &str) -> Ask {
    let facts = json!({
        "name": place.full(key),
        "contentType": "application/octet-stream",
        "metadata": { MARK: mark },
    });
    Ask::new(Method::POST, upload(place, "resumable", key))
        .header("content-type", "application/json; charset=UTF-8")
        .header("x-upload-content-type", "application/octet-stream")
        .body(facts.to_string().into())
}

/// Returns the address that parts of an upload go to: below our own server, whatever host the answer names.
pub(super) fn session(place: &Place, answer: &Answer) -> Answered<String> {
    let wrong = || Failure::again("the store's answer names no upload");
    let location = answer.header("location").ok_or_else(wrong)?;
    let (_, rest) = location.split_once("://").ok_or_else(wrong)?;
    let (_, path) = rest.split_once('/').ok_or_else(wrong)?;
    Ok(format!("{}/{path}", place.client.base))
}

/// A part from an offset; the last one says the length of the whole.
pub(super) fn part(session: &str, from: u64, body: Bytes, whole: Option<u64>) -> Ask {
    let last = from + (body.len() as u64).saturating_sub(1);
    let whole = whole.map_or("*".to_owned(), |n| n.to_string());
    Ask::new(Method::PUT, session.to_owned())
        .header("content-range", format!("bytes {from}-{last}/{whole}"))
        .body(body)
}

/// Asks how far an upload is, of which all parts were sent.
pub(super) fn progress(session: &str, whole: u64) -> Ask {
    Ask::new(Method::PUT, session.to_owned()).header("content-range", format!("bytes */{whole}"))
}

/// How many bytes of an upload are stored.
pub(super) fn stored(answer: &Answer) -> Answered<u64> {
    let Some(range) = answer.header("range") else {
        return Ok(0);
    };
    let last = range
        .strip_prefix("bytes=0-")
        .or_else(|| range.strip_prefix("0-"));
    last.and_then(|text| text.parse::<u64>().ok()?.checked_add(1))
        .ok_or_else(|| Failure::again("the answer does not say what is stored"))
}

pub(super) fn cancel(session: &str) -> Ask {
    Ask::new(Method::DELETE, session.to_owned())
}

pub(super) fn list(
    place: &Place,
    prefix: &str,
    by_folder: bool,
    most: Option<usize>,
    after: &str,
) -> Ask {
    let (base, bucket) = (&place.client.base, &place.bucket);
    let most = most.unwrap_or(1000);
    let url = format!("{base}/storage/v1/b/{bucket}/o?maxResults={most}");
    let delimiter = if by_folder { "/" } else { "" };
    let parameters = [
        ("prefix", prefix),
        ("delimiter", delimiter),
        ("pageToken", after),
    ];
    Ask::new(Method::GET, with_query(url, &parameters))
}

fn document(answer: &Answer) -> Answered<Value> {
    serde_json::from_slice(&answer.body)
        .map_err(|e| Failure::again(format!("the answer cannot be understood: {e}")))
}

pub(super) fn page(answer: &Answer) -> Answered<Page> {
    let document = document(answer)?;
    let items = |name: &str| document[name].as_array().cloned().unwrap_or_default();
    let is_list = document["kind"].as_str() == Some("storage#objects");
    if !is_list {
        return Err(Failure::again("the answer is no listing"));
    }
    let mut page = Page::default();
    for item in items("items") {
        let name = item["name"].as_str().unwrap_or_default();
        page.objects.push((name.to_owned(), meta(&item)?));
    }
    for prefix in items("prefixes") {
        page.prefixes
            .push(prefix.as_str().unwrap_or_default().to_owned());
    }
    document["nextPageToken"]
        .as_str()
        .unwrap_or_default()
        .clone_into(&mut page.next);
    Ok(page)
}

/// Reads what the service says of an object.
pub(super) fn facts(answer: &Answer) -> Answered<Head> {
    let document = document(answer)?;
    Ok(Head {
        meta: meta(&document)?,
        mark: document["metadata"][MARK].as_str().map(str::to_owned),
        sum: document["crc32c"].as_str().and_then(read_sum),
    })
}

fn meta(item: &Value) -> Answered<Meta> {
    let size = &item["size"];
    let size = size.as_str().and_then(|s| s.parse().ok()).or(size.as_u64());
    Ok(Meta {
        size_bytes: size.ok_or_else(|| Failure::again("the answer has no length"))?,
        modified: document_date(item["updated"].as_str())?,
    })
}

fn written_sum(sum: u32) -> String {
    base64_encode(&sum.to_be_bytes())
}

fn read_sum(text: &str) -> Option<u32> {
    let bytes: [u8; 4] = base64_decode(text).ok()?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::http::HeaderMap;

    fn answer(body: &str) -> Answer {
        Answer {
            status: 200,
            headers: HeaderMap::new(),
            body: body.to_owned().into(),
        }
    }

    #[test]
    fn listings_and_objects_are_read() {
        let text = r#"{"kind": "storage#objects", "nextPageToken": "t", "prefixes": ["a/b/"],
            "items": [{"name": "a/x", "size": "12", "updated": "2000-01-01T00:00:07.5Z"}]}"#;
        let page = page(&answer(text)).unwrap();
        assert_eq!(
            (page.objects[0].0.as_str(), page.objects[0].1.size_bytes),
            ("a/x", 12)
        );
        assert_eq!(
            (page.prefixes.as_slice(), page.next.as_str()),
            (&["a/b/".to_owned()][..], "t")
        );
        for wrong in ["{}", "<html>", &text[..text.len() - 2], "[]"] {
            assert!(super::page(&answer(wrong)).is_err(), "{wrong}");
        }
        let head = facts(&answer(
            r#"{"size": 3, "updated": "2000-01-01T00:00:07Z", "crc32c": "AAAAAQ==", "metadata": {"pitrmark": "m"}}"#,
        ));
        let head = head.unwrap();
        assert_eq!((head.mark.as_deref(), head.sum), (Some("m"), Some(1)));
    }

    #[test]
    fn an_answer_says_how_much_is_stored() {
        let stored_by = |range: Option<&'static str>| {
            let mut answer = answer("");
            if let Some(range) = range {
                answer.headers.insert("range", range.parse().unwrap());
            }
            stored(&answer).ok()
        };
        assert_eq!(stored_by(None), Some(0));
        assert_eq!(stored_by(Some("bytes=0-9")), Some(10));
        assert_eq!(stored_by(Some("bytes=5-9")), None);
        assert_eq!(stored_by(Some("x")), None);
    }
}
