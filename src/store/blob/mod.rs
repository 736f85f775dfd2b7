//! A store in a container of Azure Blob Storage, or in a bucket of Google Cloud Storage.
//!
//! Requests are our own, over HTTP/1.1; credentials and signatures are those of a library. Creating is one conditional request, for a large
//! object, too. Decisions: `docs/decisions/0059-azure-and-google.md`.

use std::sync::Arc;

use super::http::retry::Random;
use super::runtime::{asked, wait};
use super::{Irregular, Key, Listed, Meta, NewObject, Object, Shown, Store};
use crate::config::{BlobService, Location, S3Settings};
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;

mod answer;
mod azure;
mod client;
mod credentials;
mod google;
mod listing;
mod object;
pub mod probe;
mod request;
mod upload;

use client::Client;
use object::BlobObject;
use request::Place;
use upload::Upload;
pub use upload::put_requests;

/// Pages of a listing that wait for who goes through them.
const LISTED_AHEAD: usize = 4;

/// A container or bucket, and a prefix in it, as a store.
pub struct BlobStore {
    place: Arc<Place>,
}

impl BlobStore {
    /// Opens a place; nothing is asked of the service yet. `nonce` is random.
    ///
    /// # Errors
    /// `Config` for settings that cannot be used; `Internal` for a location of another kind.
    pub fn open(location: &Location, settings: &S3Settings, nonce: u64) -> Result<BlobStore> {
        let Location::Blob {
            service,
            bucket,
            prefix,
        } = location
        else {
            return Err(err!(Internal, "\"{location}\" is no container"));
        };
        let client = Client::open(service, settings)?;
        Ok(BlobStore::within(client, service, bucket, prefix, nonce))
    }

    fn within(
        client: Arc<Client>,
        service: &BlobService,
        bucket: &str,
        prefix: &str,
        nonce: u64,
    ) -> BlobStore {
        let location = Location::Blob {
            service: service.clone(),
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        BlobStore {
            place: Arc::new(Place {
                client,
                bucket: bucket.to_owned(),
                prefix: match prefix {
                    "" => String::new(),
                    prefix => format!("{prefix}/"),
                },
                url: location.to_string(),
                random: Random::new(nonce),
            }),
        }
    }

    /// Returns the first key in this place; objects of trials do not count.
    ///
    /// # Errors
    /// Errors of the service.
    pub fn first_key(&self) -> Result<Option<String>> {
        asked!(place = self.place => listing::first_key(&place))
    }
}

impl Store for BlobStore {
    fn location(&self) -> String {
        self.place.url.clone()
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let object = BlobObject::open(&self.place, key)?;
        Ok(object.map(|object| Box::new(object) as Box<dyn Object>))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        Ok(Box::new(Upload::new(&self.place, key)))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        asked!(place = self.place, prefix = prefix => listing::list(&place, &prefix))
    }

    fn objects(&self, see: &mut dyn FnMut(Shown<'_>)) -> Result<()> {
        let place = Arc::clone(&self.place);
        let (send, pages) = std::sync::mpsc::sync_channel(LISTED_AHEAD);
        let listed =
            std::thread::spawn(move || wait(async move { listing::all(&place, &send).await }));
        for (key, meta) in pages {
            see(Shown {
                key: &key,
                meta,
                class: None,
            });
        }
        let listed = listed.join();
        Ok(listed.map_err(|_| err!(Internal, "the thread that lists panicked"))???)
    }

    fn head(&self, key: &Key) -> Result<Option<Meta>> {
        let head = asked!(place = self.place, key = key => object::head(&place, key.as_str()))?;
        Ok(head.map(|head| head.meta))
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        asked!(place = self.place, key = key => listing::delete(&place, key.as_str()))
    }

    fn irregular(&self) -> Result<Vec<Irregular>> {
        asked!(place = self.place => listing::irregular(&place))
    }

    fn discard(&self, unfinished: &str) -> Result<bool> {
        asked!(place = self.place, path = unfinished => listing::delete(&place, &path))
    }

    fn clock(&self) -> Result<Option<TimestampTz>> {
        asked!(place = self.place => listing::clock(&place))
    }

    /// By the checksum that the service compares with the bytes it received, or returns.
    fn is_confirming(&self) -> bool {
        true
    }

    fn is_remote(&self) -> bool {
        true
    }
}
