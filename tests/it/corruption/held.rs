//! A store in memory: many who differ in one object share the others.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use pitr::error::Result;
use pitr::pg::time::TimestampTz;
use pitr::store::{Key, Listed, Meta, NewObject, Object, Published, Room, Store};

/// Content by key.
pub type Objects = BTreeMap<String, Arc<[u8]>>;

/// The store.
#[derive(Clone)]
pub struct Held {
    objects: Arc<Mutex<Objects>>,
    /// Key whose first question is answered from the state before it came, as a network filesystem may.
    late: Arc<Mutex<Option<String>>>,
    /// Key that cannot be opened, as on a mount that fails.
    failing: Option<String>,
}

impl Held {
    /// These objects.
    pub fn new(objects: Objects) -> Held {
        Held {
            objects: Arc::new(Mutex::new(objects)),
            late: Arc::default(),
            failing: None,
        }
    }

    /// These, but for one that has other bytes, or is gone.
    pub fn with(objects: &Objects, key: &str, bytes: Option<&[u8]>) -> Held {
        let mut objects = objects.clone();
        match bytes {
            Some(bytes) => objects.insert(key.to_owned(), bytes.into()),
            None => objects.remove(key),
        };
        Held::new(objects)
    }

    /// These; the first question for one of them is answered with no.
    pub fn late(objects: Objects, key: &str) -> Held {
        let held = Held::new(objects);
        *held.late.lock().unwrap() = Some(key.to_owned());
        held
    }

    /// These; one of them cannot be opened.
    pub fn failing(objects: Objects, key: &str) -> Held {
        Held {
            failing: Some(key.to_owned()),
            ..Held::new(objects)
        }
    }

    /// The question was asked.
    pub fn was_late(&self) -> bool {
        self.late.lock().unwrap().is_none()
    }

    fn found(&self, key: &Key) -> Option<Arc<[u8]>> {
        self.objects.lock().unwrap().get(key.as_str()).cloned()
    }
}

struct Content(Arc<[u8]>);

impl Object for Content {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = from.saturating_add(buffer.len());
        let Some(part) = self.0.get(from..end) else {
            return Err(pitr::err!(Damaged, "it ends before {end}"));
        };
        buffer.copy_from_slice(part);
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

struct Draft {
    key: String,
    bytes: Vec<u8>,
    store: Held,
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl NewObject for Draft {
    fn publish(self: Box<Self>) -> Result<Published> {
        let mut objects = self.store.objects.lock().unwrap();
        if objects.contains_key(&self.key) {
            return Ok(Published::Exists);
        }
        objects.insert(self.key, self.bytes.into());
        Ok(Published::Created)
    }
}

impl Store for Held {
    fn location(&self) -> String {
        "memory".into()
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        if self.failing.as_deref() == Some(key.as_str()) {
            let eio = std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
            return Err(pitr::error::Error::from_io("open object", eio));
        }
        let is_late = |late: &mut String| late == key.as_str();
        if self.late.lock().unwrap().take_if(is_late).is_some() {
            return Ok(None);
        }
        let found = self.found(key);
        Ok(found.map(|bytes| Box::new(Content(bytes)) as Box<dyn Object>))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        Ok(Box::new(Draft {
            key: key.to_string(),
            bytes: Vec::new(),
            store: self.clone(),
        }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let prefix = match prefix {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let objects = self.objects.lock().unwrap();
        let below = objects.range(prefix.clone()..);
        let mut found: Vec<Listed> = Vec::new();
        for (key, _) in below.take_while(|(key, _)| key.starts_with(&prefix)) {
            let rest = &key[prefix.len()..];
            let (name, is_prefix) = match rest.split_once('/') {
                Some((name, _)) => (name, true),
                None => (rest, false),
            };
            if found.last().is_none_or(|l| l.name != name) {
                found.push(Listed {
                    name: name.to_owned(),
                    is_prefix,
                    meta: None,
                });
            }
        }
        Ok(found)
    }

    fn head(&self, key: &Key) -> Result<Option<Meta>> {
        Ok(self.found(key).map(|bytes| Meta {
            size_bytes: bytes.len() as u64,
            modified: TimestampTz(0),
        }))
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        Ok(self.objects.lock().unwrap().remove(key.as_str()).is_some())
    }

    fn room(&self) -> Result<Option<Room>> {
        Ok(None)
    }
}
