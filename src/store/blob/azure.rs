//! The requests of Azure Blob Storage.
//!
//! A suffix of a blob cannot be asked for, and an upload in parts has no name of its own: its blocks lie under the blob's name, beside those
//! of others who write it. Their ids therefore bear the upload's mark.

use bytes::Bytes;
use hyper::http::Method;
use md5::{Digest as _, Md5};
use reqsign_core::hash::base64_encode;
use xmlparser::{ElementEnd, Token, Tokenizer};

use super::answer::http_date;
use super::listing::Page;
use super::request::{Answer, Ask, Place, with_query};
use crate::store::Meta;
use crate::store::http::failure::{Answered, Failure};
use crate::text::percent_encoded;

/// The version of the protocol; every emulator of these years knows it.
const VERSION: &str = "2021-08-06";
/// The mark of an upload on a blob; such names are identifiers of C#.
pub(super) const MARK: &str = "x-ms-meta-pitrmark";
/// The most blocks that a blob has.
pub(super) const BLOCKS_MAX: usize = 50_000;

fn ask(method: Method, url: String) -> Ask {
    Ask::new(method, url).header("x-ms-version", VERSION)
}

fn container(place: &Place) -> String {
    format!("{}/{}", place.client.base, place.bucket)
}

fn blob(place: &Place, key: &str) -> String {
    // The characters of keys need no encoding.
    format!("{}/{}", container(place), place.full(key))
}

pub(super) fn get(place: &Place, key: &str) -> Ask {
    ask(Method::GET, blob(place, key))
}

pub(super) fn head(place: &Place, key: &str) -> Ask {
    ask(Method::HEAD, blob(place, key))
}

pub(super) fn delete(place: &Place, key: &str) -> Ask {
    ask(Method::DELETE, blob(place, key))
}

pub(super) fn put(place: &Place, key: &str, mark: &str, body: Bytes) -> Ask {
    ask(Method::PUT, blob(place, key))
        .header("x-ms-blob-type", "BlockBlob")
        .header("if-none-match", "*")
        .header("content-md5", sum(&body))
        .header("content-type", "application/octet-stream")
        .header(MARK, mark)
        .body(body)
}

pub(super) fn block(place: &Place, key: &str, id: &str, body: Bytes) -> Ask {
    let id = percent_encoded(id.as_bytes(), b"");
    let url = format!("{}?comp=block&blockid={id}", blob(place, key));
    ask(Method::PUT, url)
        .header("content-md5", sum(&body))
        .body(body)
}

/// The request that names the blob.
pub(super) fn commit(place: &Place, key: &str, mark: &str, ids: &[String]) -> Ask {
    let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
    for id in ids {
        list.push_str(&format!("<Uncommitted>{id}</Uncommitted>"));
    }
    list.push_str("</BlockList>");
    let list = Bytes::from(list);
    ask(Method::PUT, format!("{}?comp=blocklist", blob(place, key)))
        .header("if-none-match", "*")
        .header("content-md5", sum(&list))
        .header("content-type", "text/plain; charset=UTF-8")
        .header("x-ms-blob-content-type", "application/octet-stream")
        .header(MARK, mark)
        .body(list)
}

/// All ids of one blob have the same length.
pub(super) fn block_id(mark: &str, number: usize) -> String {
    base64_encode(format!("{mark}{number:08}").as_bytes())
}

fn sum(body: &[u8]) -> String {
    base64_encode(&Md5::digest(body))
}

/// Whether the service says that it received this body.
pub(super) fn confirms(answer: &Answer, ask: &Ask) -> bool {
    let sent = ask.headers.iter().find(|(name, _)| *name == "content-md5");
    let sent = sent.map(|(_, sum)| sum.as_str());
    sent.is_some() && answer.header("content-md5") == sent
}

pub(super) fn list(
    place: &Place,
    prefix: &str,
    by_folder: bool,
    most: Option<usize>,
    after: &str,
) -> Ask {
    let url = format!("{}?restype=container&comp=list", container(place));
    let delimiter = if by_folder { "/" } else { "" };
    let most = most.map(|n| n.to_string()).unwrap_or_default();
    let parameters = [
        ("prefix", prefix),
        ("delimiter", delimiter),
        ("marker", after),
        ("maxresults", most.as_str()),
    ];
    ask(Method::GET, with_query(url, &parameters))
}

/// Reads a page of a listing. A document that ends in its middle is no shorter one.
pub(super) fn page(answer: &Answer) -> Answered<Page> {
    let wrong = |why: &str| Failure::again(format!("the listing cannot be understood: {why}"));
    let text = std::str::from_utf8(&answer.body).map_err(|_| wrong("it is not UTF-8"))?;
    let text = text.trim_start_matches('\u{feff}');
    let mut page = Page::default();
    let mut open: Vec<&str> = Vec::new();
    let (mut is_whole, mut blob) = (false, Fields::default());
    for token in Tokenizer::from(text) {
        match token.map_err(|e| wrong(&e.to_string()))? {
            Token::ElementStart { local, .. } => {
                if matches!(local.as_str(), "Blob" | "BlobPrefix") {
                    blob = Fields::default();
                }
                open.push(local.as_str());
            }
            Token::ElementEnd { end, .. } => {
                let closed = match end {
                    ElementEnd::Open => continue,
                    ElementEnd::Empty => open.pop(),
                    ElementEnd::Close(_, local) => {
                        let last = open.pop();
                        if last != Some(local.as_str()) {
                            return Err(wrong("its elements are not nested"));
                        }
                        last
                    }
                };
                match closed {
                    Some("Blob") => page.objects.push(blob.object()?),
                    Some("BlobPrefix") => page.prefixes.push(std::mem::take(&mut blob.name)),
                    Some("EnumerationResults") if open.is_empty() => is_whole = true,
                    _ => {}
                }
            }
            Token::Text { text } => match open.last() {
                Some(&"Name") => blob.name = plain(text.as_str()),
                Some(&"Content-Length") => text.as_str().clone_into(&mut blob.size),
                Some(&"Last-Modified") => text.as_str().clone_into(&mut blob.modified),
                Some(&"NextMarker") => page.next = plain(text.as_str()),
                _ => {}
            },
            _ => {}
        }
    }
    match is_whole {
        true => Ok(page),
        false => Err(wrong("it breaks off")),
    }
}

#[derive(Default)]
struct Fields {
    name: String,
    size: String,
    modified: String,
}

impl Fields {
    fn object(&mut self) -> Answered<(String, Meta)> {
        let size = self.size.parse().ok();
        let meta = Meta {
            size_bytes: size.ok_or_else(|| Failure::again("the listing shows no length"))?,
            modified: http_date(Some(&self.modified))?,
        };
        Ok((std::mem::take(&mut self.name), meta))
    }
}

/// A text of a document: names of strangers may hold what is written otherwise there.
fn plain(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::http::HeaderMap;

    fn read(body: &str) -> Answered<Page> {
        page(&Answer {
            status: 200,
            headers: HeaderMap::new(),
            body: body.to_owned().into(),
        })
    }

    #[test]
    fn a_listing_is_read_whole_or_not_at_all() {
        let whole = "\u{feff}<?xml version=\"1.0\"?><EnumerationResults ServiceEndpoint=\"x\"><Prefix>a/</Prefix><Blobs><Blob><Name>a/x&amp;y</Name><Properties>\
            <Last-Modified>Sat, 01 Jan 2000 00:00:07 GMT</Last-Modified><Content-Length>12</Content-Length></Properties></Blob>\
            <BlobPrefix><Name>a/b/</Name></BlobPrefix></Blobs><NextMarker>m&amp;1</NextMarker></EnumerationResults>";
        let page = read(whole).unwrap();
        let (name, meta) = &page.objects[0];
        assert_eq!((name.as_str(), meta.size_bytes), ("a/x&y", 12));
        assert_eq!(meta.modified.0, 7_000_000);
        assert_eq!(page.prefixes, ["a/b/"]);
        assert_eq!(page.next, "m&1");
        assert!(read("<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>").is_ok());
        for end in 1..whole.len() {
            if let Some(cut) = whole.get(..end) {
                assert!(read(cut).is_err(), "{cut}");
            }
        }
        assert!(read("<html></html>").is_err());
    }
}
