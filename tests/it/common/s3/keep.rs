//! The objects of the store, and what each request does with them.

use std::collections::BTreeMap;

use base64_of::base64;
use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};

use super::http::{Request, Response};
use super::{BUCKET, Manner};

/// An object.
#[derive(Debug, Clone)]
pub struct Stored {
    pub bytes: Vec<u8>,
    pub headers: BTreeMap<String, String>,
    pub modified: DateTime<Utc>,
    tag: String,
    /// Somebody has asked for it.
    asked: bool,
    /// Tags, of others and for rules of the lifecycle.
    pub tags: BTreeMap<String, String>,
    /// How far an archived one is thawed.
    pub thaw: Thaw,
    /// Lengths of the parts of which it was put together.
    parts: Vec<usize>,
}

/// How far an object in an archive class is thawed.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Thaw {
    #[default]
    Frozen,
    /// For so many days, at this speed.
    Asked(u32, String),
    Until(DateTime<Utc>),
}

/// An upload in parts.
#[derive(Debug, Clone)]
pub struct Upload {
    key: String,
    headers: BTreeMap<String, String>,
    pub begun: DateTime<Utc>,
    parts: BTreeMap<u32, Vec<u8>>,
}

/// Everything there is.
#[derive(Debug, Default)]
pub struct Keep {
    pub objects: BTreeMap<String, Stored>,
    pub uploads: BTreeMap<String, Upload>,
    /// Objects that were deleted, and when.
    deleted: BTreeMap<String, (Stored, DateTime<Utc>)>,
    count: u64,
}

/// The key that a request is about.
pub fn key_of(request: &Request) -> String {
    let rest = request.path.strip_prefix(&format!("/{BUCKET}"));
    let rest = rest.unwrap_or("");
    rest.strip_prefix('/').unwrap_or(rest).to_owned()
}

impl Stored {
    pub fn class(&self) -> &str {
        let class = self.headers.get(CLASS);
        class.map_or("STANDARD", String::as_str)
    }

    /// Moves it to a class, or with a further word to an archive inside of one.
    pub fn reclassify(&mut self, class: &str) {
        let (class, archive) = class.split_once(' ').unwrap_or((class, ""));
        self.headers.remove(ARCHIVE);
        if !archive.is_empty() {
            self.headers.insert(ARCHIVE.to_owned(), archive.to_owned());
        }
        self.headers.insert(CLASS.to_owned(), class.to_owned());
        self.thaw = Thaw::Frozen;
    }

    fn is_archived(&self) -> bool {
        ["GLACIER", "DEEP_ARCHIVE"].contains(&self.class()) || self.headers.contains_key(ARCHIVE)
    }

    fn is_frozen(&self) -> bool {
        self.is_archived() && !matches!(self.thaw, Thaw::Until(_))
    }
}

const CLASS: &str = "x-amz-storage-class";
const ARCHIVE: &str = "x-amz-archive-status";

fn frozen() -> Response {
    Response::error(403, "InvalidObjectState", "the storage class forbids it")
}

/// The text of the first element of a name.
pub fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// The texts of all elements of a name.
pub fn elements<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    let all = xml.split(begin.as_str()).skip(1);
    all.filter_map(|rest| Some(rest.split_once(&end)?.0))
        .collect()
}

const LOCK_MODE: &str = "x-amz-object-lock-mode";
const LOCK_UNTIL: &str = "x-amz-object-lock-retain-until-date";
/// The header that tells of a legal hold.
pub const HOLD: &str = "x-amz-object-lock-legal-hold";
const HIDDEN_HOLD: &str = "hidden-hold";

/// A body that is to be locked, of which the writer does not say how it can be checked: Amazon takes none, whoever wants the lock.
fn unchecked(
    request: &Request,
    headers: &BTreeMap<String, String>,
    manner: &Manner,
) -> Option<Response> {
    let is_locked = headers.contains_key(LOCK_MODE) || manner.default_lock.is_some();
    let is_said = ["content-md5", "x-amz-sdk-checksum-algorithm"]
        .iter()
        .any(|name| !request.header(name).is_empty());
    (is_locked && !is_said).then(|| {
        let message = "Content-MD5 or x-amz-sdk-checksum-algorithm header required";
        Response::error(400, "MissingUploadObjectWithObjectLockHeaders", message)
    })
}

/// Adds the bucket's own lock to the writer's headers.
fn lock(headers: &mut BTreeMap<String, String>, manner: &Manner, now: DateTime<Utc>) {
    let Some((mode, period)) = manner.default_lock else {
        return;
    };
    if headers.contains_key(LOCK_MODE) {
        return;
    }
    let until = now + chrono::Duration::from_std(period).unwrap();
    for (name, value) in [("mode", mode.to_owned()), ("retain-until-date", iso(until))] {
        headers.insert(format!("x-amz-object-lock-{name}"), value);
    }
}

fn object_lock(manner: &Manner) -> Response {
    match manner.object_lock {
        Some(true) => Response::new(
            200,
            "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
        ),
        _ => Response::error(
            404,
            "ObjectLockConfigurationNotFoundError",
            "Object Lock configuration does not exist for this bucket",
        ),
    }
}

fn lifecycle(manner: &Manner) -> Response {
    match &manner.lifecycle {
        Some(rules) => Response::new(
            200,
            format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>"),
        ),
        None => Response::error(404, "NoSuchLifecycleConfiguration", "there are no rules"),
    }
}

fn taken() -> Response {
    Response::error(412, "PreconditionFailed", "the name is taken")
}

fn another() -> Response {
    Response::error(412, "PreconditionFailed", "another object")
}

fn unconditional() -> Response {
    Response::error(403, "AccessDenied", "the policy wants If-None-Match")
}

const COPY_SOURCE: &str = "x-amz-copy-source";

fn absent() -> Response {
    Response::error(404, "NoSuchKey", "no such key")
}

impl Keep {
    pub fn plant(&mut self, key: &str, bytes: &[u8]) {
        self.insert(key, bytes.to_vec(), BTreeMap::new(), Utc::now());
    }

    /// Deletes an object, which is remembered; whether it was there.
    pub fn bury(&mut self, key: &str, now: DateTime<Utc>) -> bool {
        let stored = self.objects.remove(key);
        let is_there = stored.is_some();
        if let Some(stored) = stored {
            self.deleted.insert(key.to_owned(), (stored, now));
        }
        is_there
    }

    /// Moves objects as the rules of the lifecycle say, at once; returns how many.
    pub fn apply(&mut self, rules: &str) -> usize {
        let mut moved = 0;
        for rule in elements(rules, "Rule") {
            let tags = elements(rule, "Tag").into_iter();
            let tags: Vec<_> = tags
                .map(|t| (element(t, "Key"), element(t, "Value")))
                .collect();
            let prefix = element(rule, "Prefix").unwrap_or_default();
            let Some(class) = element(rule, "StorageClass") else {
                continue;
            };
            let is_meant = |key: &str, stored: &Stored| {
                let has = |(name, value): &(Option<&str>, Option<&str>)| {
                    stored.tags.get(name.unwrap()).map(String::as_str) == *value
                };
                let is_large = stored.bytes.len() >= 128 << 10;
                is_large
                    && stored.class() != class
                    && key.starts_with(prefix)
                    && tags.iter().all(has)
            };
            for (key, stored) in &mut self.objects {
                if is_meant(key, stored) {
                    stored.reclassify(class);
                    moved += 1;
                }
            }
        }
        moved
    }

    fn insert(
        &mut self,
        key: &str,
        bytes: Vec<u8>,
        headers: BTreeMap<String, String>,
        now: DateTime<Utc>,
    ) -> String {
        self.count += 1;
        let tag = format!("\"tag-{}\"", self.count);
        let tags = headers.get("x-amz-tagging").into_iter();
        let tags = tags.flat_map(|tags| tags.split('&'));
        let tags = tags.map(|tag| tag.split_once('=').unwrap());
        let text = super::http::decoded;
        let tags = tags
            .map(|(name, value)| (text(name), text(value)))
            .collect();
        let stored = Stored {
            bytes,
            headers,
            modified: now,
            tag: tag.clone(),
            asked: false,
            tags,
            thaw: Thaw::Frozen,
            parts: Vec::new(),
        };
        self.deleted.remove(key);
        self.objects.insert(key.to_owned(), stored);
        tag
    }

    pub fn respond(&mut self, request: &Request, manner: &Manner, now: DateTime<Utc>) -> Response {
        let key = key_of(request);
        let upload = request.query("uploadId").map(str::to_owned);
        match (request.method.as_str(), key.as_str(), upload) {
            ("GET", "", None) if request.query("uploads").is_some() => self.list_uploads(request),
            ("GET", "", None) if request.query("versions").is_some() => {
                self.list_versions(request, manner)
            }
            ("GET", "", None) if request.query("lifecycle").is_some() => lifecycle(manner),
            ("GET", "", None)
                if request.query("object-lock").is_some() && manner.object_lock.is_some() =>
            {
                object_lock(manner)
            }
            ("PUT", _, None)
                if request.query("legal-hold").is_some() && manner.object_lock == Some(true) =>
            {
                self.hold(&key, request, manner)
            }
            ("GET", _, None) if request.query("legal-hold").is_some() => self.shown_hold(&key),
            ("GET", _, None) if request.query("retention").is_some() => self.retention(&key),
            ("PUT", _, None) if request.query("retention").is_some() => self.retain(&key, request),
            ("GET", "", None) => self.list(request, manner),
            ("GET", _, None) if request.query("tagging").is_some() => self.tags(&key, manner),
            ("GET", _, None) if request.query("attributes").is_some() => self.parts(&key),
            ("GET", _, None) => self.get(&key, request, manner),
            ("HEAD", _, None) => self.head(&key, request, manner),
            ("PUT", _, None) if request.query("tagging").is_some() => self.set_tags(&key, request),
            ("PUT", _, None) if !request.header("x-amz-copy-source").is_empty() => {
                self.copy(&key, request, manner, now)
            }
            ("POST", _, None) if request.query("restore").is_some() => self.thaw(&key, request),
            ("PUT", _, None) => self.put(&key, request, manner, now),
            ("PUT", _, Some(id)) if !request.header(COPY_SOURCE).is_empty() => {
                self.part_of_copy(&id, request)
            }
            ("PUT", _, Some(id)) => self.part(&id, request, manner),
            ("POST", _, None) => self.begin(&key, request, now),
            ("POST", _, Some(id)) => self.complete(&id, request, manner, now),
            ("DELETE", _, None) => {
                self.bury(&key, now);
                Response::new(204, "")
            }
            ("DELETE", _, Some(id)) => match self.uploads.remove(&id) {
                Some(_) => Response::new(204, ""),
                None => Response::error(404, "NoSuchUpload", "no such upload"),
            },
            _ => Response::error(501, "NotImplemented", "not here"),
        }
    }

    /// Sets a legal hold, or takes it away.
    fn retention(&self, key: &str) -> Response {
        let Some(stored) = self.objects.get(key) else {
            return absent();
        };
        let locks = stored
            .headers
            .get(LOCK_MODE)
            .zip(stored.headers.get(LOCK_UNTIL));
        match locks {
            Some((mode, until)) => Response::new(
                200,
                format!(
                    "<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>"
                ),
            ),
            None => Response::error(404, "NoSuchObjectLockConfiguration", "no lock"),
        }
    }

    /// Sets a lock, or lengthens it: a shorter one is refused.
    fn retain(&mut self, key: &str, request: &Request) -> Response {
        let Some(stored) = self.objects.get_mut(key) else {
            return absent();
        };
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let (mode, until) = (element(&body, "Mode"), element(&body, "RetainUntilDate"));
        let (mode, until) = (mode.unwrap().to_owned(), until.unwrap().to_owned());
        // Times of one form are in the order of their texts.
        if stored
            .headers
            .get(LOCK_UNTIL)
            .is_some_and(|old| *old > until)
        {
            return Response::error(403, "AccessDenied", "shorter");
        }
        stored.headers.insert(LOCK_MODE.to_owned(), mode);
        stored.headers.insert(LOCK_UNTIL.to_owned(), until);
        Response::new(200, "")
    }

    /// The answer to who asks for the hold itself.
    fn shown_hold(&self, key: &str) -> Response {
        let Some(stored) = self.objects.get(key) else {
            return absent();
        };
        let on = [HOLD, HIDDEN_HOLD]
            .iter()
            .any(|n| stored.headers.contains_key(*n));
        match on {
            true => Response::new(200, "<LegalHold><Status>ON</Status></LegalHold>"),
            false => Response::error(404, "NoSuchObjectLockConfiguration", "no hold"),
        }
    }

    fn hold(&mut self, key: &str, request: &Request, manner: &Manner) -> Response {
        let name = if manner.hides_holds {
            HIDDEN_HOLD
        } else {
            HOLD
        };
        let Some(stored) = self.objects.get_mut(key) else {
            return absent();
        };
        let body = String::from_utf8_lossy(&request.body).into_owned();
        match body.contains("<Status>ON</Status>") {
            true => stored.headers.insert(name.to_owned(), "ON".to_owned()),
            false => stored.headers.remove(name),
        };
        Response::new(200, "")
    }

    fn put(
        &mut self,
        key: &str,
        request: &Request,
        manner: &Manner,
        now: DateTime<Utc>,
    ) -> Response {
        let refused = unchecked(request, &request.headers, manner);
        if let Some(refused) = refused.or_else(|| damaged(request, manner)) {
            return refused;
        }
        let wants_new = request.header("if-none-match") == "*";
        if manner.wants_condition && !wants_new {
            return unconditional();
        }
        if wants_new && !manner.overwrites && self.objects.contains_key(key) {
            return taken();
        }
        let wanted = request.header("if-match");
        let there = self.objects.get(key).map(|stored| stored.tag.as_str());
        if !wanted.is_empty() && there != Some(wanted) {
            return another();
        }
        let mut headers = request.headers.clone();
        lock(&mut headers, manner, now);
        let mut body = request.body.clone();
        if let Some(last) = body.last_mut().filter(|_| manner.spoils) {
            *last ^= 1;
        }
        let tag = self.insert(key, body, headers, now);
        let mut stored = Response::new(200, "").with("ETag", tag);
        if manner.versions {
            stored = stored.with("x-amz-version-id", format!("version-{}", self.count));
        }
        with_sum(stored, request, manner)
    }

    fn begin(&mut self, key: &str, request: &Request, now: DateTime<Utc>) -> Response {
        self.count += 1;
        let id = format!("upload-{}", self.count);
        let upload = Upload {
            key: key.to_owned(),
            headers: request.headers.clone(),
            begun: now,
            parts: BTreeMap::new(),
        };
        self.uploads.insert(id.clone(), upload);
        Response::new(
            200,
            format!(
                "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{key}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            ),
        )
    }

    fn part(&mut self, id: &str, request: &Request, manner: &Manner) -> Response {
        let number: u32 = request.query("partNumber").unwrap().parse().unwrap();
        let Some(upload) = self.uploads.get_mut(id) else {
            return Response::error(404, "NoSuchUpload", "no such upload");
        };
        let refused = unchecked(request, &upload.headers, manner);
        if let Some(refused) = refused.or_else(|| damaged(request, manner)) {
            return refused;
        }
        upload.parts.insert(number, request.body.clone());
        let answer = Response::new(200, "").with("ETag", format!("\"part-{number}\""));
        with_sum(answer, request, manner)
    }

    fn complete(
        &mut self,
        id: &str,
        request: &Request,
        manner: &Manner,
        now: DateTime<Utc>,
    ) -> Response {
        let Some(upload) = self.uploads.get(id).cloned() else {
            return Response::error(404, "NoSuchUpload", "no such upload");
        };
        let body = String::from_utf8(request.body.clone()).unwrap();
        let numbers: Vec<u32> = body
            .split("<PartNumber>")
            .skip(1)
            .map(|rest| rest.split('<').next().unwrap().parse().unwrap())
            .collect();
        let all: Vec<u32> = upload.parts.keys().copied().collect();
        if numbers != all {
            return Response::error(400, "InvalidPart", "other parts than were sent");
        }
        let sizes: Vec<usize> = upload.parts.values().map(Vec::len).collect();
        if sizes.iter().rev().skip(1).any(|size| *size < 5 << 20) {
            return Response::error(400, "EntityTooSmall", "a part is too small");
        }
        if manner.wants_condition && request.header("if-none-match") != "*" {
            return unconditional();
        }
        let overwrites = manner.overwrites || manner.completes_over;
        if request.header("if-none-match") == "*"
            && !overwrites
            && self.objects.contains_key(&upload.key)
        {
            return taken();
        }
        let bytes = upload.parts.into_values().flatten().collect();
        self.uploads.remove(id);
        let mut headers = upload.headers;
        lock(&mut headers, manner, now);
        let tag = self.insert(&upload.key, bytes, headers, now);
        self.objects.get_mut(&upload.key).unwrap().parts = sizes;
        Response::new(
            200,
            format!(
                "<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{}</Key><ETag>{}</ETag></CompleteMultipartUploadResult>",
                upload.key,
                tag.replace('"', "&quot;")
            ),
        )
    }

    fn tags(&self, key: &str, manner: &Manner) -> Response {
        if manner.denies_tags {
            return Response::error(403, "AccessDenied", "s3:GetObjectTagging");
        }
        let Some(stored) = self.objects.get(key) else {
            return absent();
        };
        let text = |text: &String| text.replace('&', "&amp;").replace('<', "&lt;");
        let tag = |(key, value)| {
            let (key, value) = (text(key), text(value));
            format!("<Tag><Key>{key}</Key><Value>{value}</Value></Tag>")
        };
        let tags: String = stored.tags.iter().map(tag).collect();
        Response::new(200, format!("<Tagging><TagSet>{tags}</TagSet></Tagging>"))
    }

    fn parts(&self, key: &str) -> Response {
        let Some(stored) = self.objects.get(key) else {
            return absent();
        };
        let mut at = 0;
        let mut part = |(number, length): (usize, &usize)| {
            at += length;
            format!(
                "<Part><PartNumber>{}</PartNumber><Size>{length}</Size><ChecksumCRC32C>{}</ChecksumCRC32C></Part>",
                number + 1,
                sum(&stored.bytes[at - length..at])
            )
        };
        let parts: String = stored.parts.iter().enumerate().map(&mut part).collect();
        let answer = format!(
            "<GetObjectAttributesResponse><ObjectParts><IsTruncated>false</IsTruncated>{parts}</ObjectParts></GetObjectAttributesResponse>"
        );
        Response::new(200, answer).with("Last-Modified", http_date(stored.modified))
    }

    fn set_tags(&mut self, key: &str, request: &Request) -> Response {
        let Some(stored) = self.objects.get_mut(key) else {
            return absent();
        };
        let body = String::from_utf8(request.body.clone()).unwrap();
        let tag = |tag: &str| {
            let part = |name| element(tag, name).unwrap().to_owned();
            (part("Key"), part("Value"))
        };
        // They replace all that were there.
        stored.tags = elements(&body, "Tag").into_iter().map(tag).collect();
        assert!(stored.tags.len() <= 10);
        Response::new(200, "")
    }

    /// Takes a part of an object as a part of an upload.
    fn part_of_copy(&mut self, id: &str, request: &Request) -> Response {
        let number: u32 = request.query("partNumber").unwrap().parse().unwrap();
        let stored = match self.source_of_copy(request) {
            Ok(stored) => stored,
            Err(refused) => return refused,
        };
        let range = request.header("x-amz-copy-source-range");
        let (first, last) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let Some(upload) = self.uploads.get_mut(id) else {
            return Response::error(404, "NoSuchUpload", "no such upload");
        };
        upload
            .parts
            .insert(number, stored.bytes[first..=last].to_vec());
        Response::new(
            200,
            format!("<CopyPartResult><ETag>&quot;part-{number}&quot;</ETag></CopyPartResult>"),
        )
    }

    fn source_of_copy(&self, request: &Request) -> Result<Stored, Response> {
        let source = super::http::decoded(request.header(COPY_SOURCE));
        let key = source.strip_prefix(&format!("{BUCKET}/")).unwrap();
        let stored = self.objects.get(key).cloned().ok_or_else(absent)?;
        let wanted = request.header("x-amz-copy-source-if-match");
        match wanted.is_empty() || wanted == stored.tag {
            true => Ok(stored),
            false => Err(another()),
        }
    }

    /// Copies within the bucket.
    fn copy(
        &mut self,
        key: &str,
        request: &Request,
        manner: &Manner,
        now: DateTime<Utc>,
    ) -> Response {
        assert_eq!(request.header("x-amz-metadata-directive"), "COPY");
        let stored = match self.source_of_copy(request) {
            Ok(stored) => stored,
            Err(refused) => return refused,
        };
        if request.header("if-none-match") == "*" && self.objects.contains_key(key) {
            return taken();
        }
        let wanted = request.header("if-match");
        let there = self.objects.get(key).map(|stored| stored.tag.as_str());
        if !wanted.is_empty() && there != Some(wanted) {
            return another();
        }
        if stored.is_frozen() {
            return frozen();
        }
        let mut bytes = stored.bytes;
        if let Some(last) = bytes.last_mut().filter(|_| manner.spoils) {
            *last ^= 1;
        }
        let mut headers = stored.headers;
        headers.retain(|name, _| !name.starts_with("x-amz-object-lock-"));
        let class = request
            .headers
            .get(CLASS)
            .map_or("STANDARD", String::as_str);
        headers.insert(CLASS.to_owned(), class.to_owned());
        // The checksum of a copy is that of all its bytes.
        if !request.header("x-amz-checksum-algorithm").is_empty() {
            headers.insert("x-amz-checksum-crc32c".to_owned(), String::new());
        }
        lock(&mut headers, manner, now);
        let tag = self.insert(key, bytes, headers, now);
        self.objects.get_mut(key).unwrap().tags = stored.tags;
        Response::new(
            200,
            format!(
                "<CopyObjectResult><ETag>{}</ETag><LastModified>{}</LastModified></CopyObjectResult>",
                tag.replace('"', "&quot;"),
                iso(now)
            ),
        )
    }

    fn thaw(&mut self, key: &str, request: &Request) -> Response {
        let Some(stored) = self.objects.get_mut(key) else {
            return absent();
        };
        if !stored.is_archived() {
            return Response::error(403, "InvalidObjectState", "it is not archived");
        }
        let body = String::from_utf8(request.body.clone()).unwrap();
        let days = element(&body, "Days").map(|days| days.parse().unwrap());
        // Amazon refuses the other.
        assert_eq!(days.is_none(), stored.headers.contains_key(ARCHIVE));
        let days: u32 = days.unwrap_or(0);
        let speed = element(&body, "Tier").unwrap().to_owned();
        match stored.thaw {
            Thaw::Asked(..) => Response::error(409, "RestoreAlreadyInProgress", "it is under way"),
            Thaw::Until(_) => {
                stored.thaw = Thaw::Until(Utc::now() + chrono::Duration::days(days.into()));
                Response::new(200, "")
            }
            Thaw::Frozen => {
                stored.thaw = Thaw::Asked(days, speed);
                Response::new(202, "")
            }
        }
    }

    fn head(&self, key: &str, request: &Request, manner: &Manner) -> Response {
        let Some(stored) = self.objects.get(key) else {
            return Response::new(404, "");
        };
        let mut answer = described(Response::new(200, ""), stored, manner);
        if stored.class() != "STANDARD" {
            answer = answer.with(CLASS, stored.class());
        }
        if let Some(archive) = stored.headers.get(ARCHIVE)
            && stored.is_frozen()
        {
            answer = answer.with(ARCHIVE, archive);
        }
        let said = match &stored.thaw {
            Thaw::Frozen => None,
            Thaw::Asked(..) => Some("ongoing-request=\"true\"".to_owned()),
            Thaw::Until(end) => {
                let end = end.format("%a, %d %b %Y %H:%M:%S GMT");
                Some(format!("ongoing-request=\"false\", expiry-date=\"{end}\""))
            }
        };
        if let Some(said) = said {
            answer = answer.with("x-amz-restore", said);
        }
        // That of an object of several parts is another one.
        let is_whole = stored.headers.contains_key("x-amz-checksum-crc32c");
        if is_whole && request.header("x-amz-checksum-mode") == "ENABLED" {
            answer = answer.with("x-amz-checksum-crc32c", sum(&stored.bytes));
        }
        answer.head_of = Some(stored.bytes.len());
        answer
    }

    fn get(&mut self, key: &str, request: &Request, manner: &Manner) -> Response {
        let Some(stored) = self.objects.get_mut(key) else {
            let is_marked = manner.versions && self.deleted.contains_key(key);
            return match is_marked {
                true => absent().with("x-amz-delete-marker", "true"),
                false => absent(),
            };
        };
        if manner.reads_late && !std::mem::replace(&mut stored.asked, true) {
            return absent();
        }
        if stored.is_frozen() {
            return frozen();
        }
        let wanted = request.header("if-match");
        if !wanted.is_empty() && wanted != stored.tag {
            return another();
        }
        let size = stored.bytes.len();
        let range = request.header("range").strip_prefix("bytes=");
        let Some(range) = range.filter(|_| !manner.ignores_ranges) else {
            return described(Response::new(200, stored.bytes.clone()), stored, manner);
        };
        let (first, last) = range.split_once('-').unwrap();
        let (begin, end) = match first {
            "" => (size.saturating_sub(last.parse().unwrap()), size),
            first => (
                first.parse().unwrap(),
                last.parse::<usize>().unwrap().saturating_add(1).min(size),
            ),
        };
        if begin >= size {
            return Response::error(416, "InvalidRange", "behind the end");
        }
        let part = Response::new(206, &stored.bytes[begin..end]);
        described(part, stored, manner)
            .with("Content-Range", format!("bytes {begin}-{}/{size}", end - 1))
    }

    /// Lists deleted objects: the marker on top, and the version that it hides.
    fn list_versions(&self, request: &Request, manner: &Manner) -> Response {
        let owner = manner.deleter.map_or_else(String::new, |(id, name)| {
            format!("<Owner><ID>{id}</ID><DisplayName>{name}</DisplayName></Owner>")
        });
        let prefix = request.query("prefix").unwrap_or("");
        let deleted = self.deleted.iter().filter(|(k, _)| k.starts_with(prefix));
        let listed: String = deleted
            .map(|(key, (stored, at))| {
                format!(
                    "<DeleteMarker><Key>{key}</Key><VersionId>marker</VersionId><IsLatest>true</IsLatest><LastModified>{}</LastModified>{owner}</DeleteMarker>\
                     <Version><Key>{key}</Key><VersionId>first</VersionId><IsLatest>false</IsLatest><LastModified>{}</LastModified><Size>{}</Size></Version>",
                    iso(*at),
                    iso(stored.modified),
                    stored.bytes.len()
                )
            })
            .collect();
        Response::new(
            200,
            format!(
                "<ListVersionsResult><Name>{BUCKET}</Name>{listed}<IsTruncated>false</IsTruncated></ListVersionsResult>"
            ),
        )
    }

    fn list(&mut self, request: &Request, manner: &Manner) -> Response {
        let prefix = request.query("prefix").unwrap_or("");
        let delimiter = request.query("delimiter").filter(|d| !d.is_empty());
        let most: usize = request
            .query("max-keys")
            .map_or(1000, |n| n.parse().unwrap());
        let most = most.min(manner.page_keys);
        let after = match manner.repeats {
            true => "",
            false => request.query("continuation-token").unwrap_or(""),
        };
        let is_encoded = request.query("encoding-type") == Some("url");
        let shown = |key: &str| match is_encoded {
            true => form(key),
            false => key.to_owned(),
        };
        let mut entries: BTreeMap<String, String> = BTreeMap::new();
        let there = self.objects.iter().filter(|_| !manner.lists_late);
        let gone = self.deleted.iter().filter(|_| manner.shows_deleted);
        let all = there.chain(gone.map(|(key, (stored, _))| (key, stored)));
        for (key, stored) in all.filter(|(k, _)| k.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            let below = delimiter.and_then(|d| rest.split_once(d));
            match below {
                Some((name, _)) => {
                    let common = format!("{prefix}{name}/");
                    let text =
                        format!("<CommonPrefixes><Prefix>{common}</Prefix></CommonPrefixes>");
                    entries.insert(common, text);
                }
                None => {
                    let text = format!(
                        "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size><StorageClass>{}</StorageClass></Contents>",
                        shown(key),
                        iso(stored.modified),
                        stored.tag.replace('"', "&quot;"),
                        stored.bytes.len(),
                        stored.class()
                    );
                    entries.insert(key.clone(), text);
                }
            }
        }
        let rest: Vec<_> = entries.iter().filter(|(k, _)| k.as_str() > after).collect();
        let page: String = rest.iter().take(most).map(|(_, t)| t.as_str()).collect();
        let more = match rest.len() > most {
            _ if manner.repeats => {
                self.count += 1;
                format!(
                    "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>",
                    self.count
                )
            }
            true => format!(
                "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>",
                rest[most - 1].0
            ),
            false => "<IsTruncated>false</IsTruncated>".to_owned(),
        };
        let encoding = match is_encoded {
            true => "<EncodingType>url</EncodingType>",
            false => "",
        };
        Response::new(
            200,
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>{BUCKET}</Name>{encoding}{page}{more}</ListBucketResult>"
            ),
        )
    }

    fn list_uploads(&self, request: &Request) -> Response {
        let prefix = request.query("prefix").unwrap_or("");
        let uploads = self
            .uploads
            .iter()
            .filter(|(_, u)| u.key.starts_with(prefix));
        let listed: String = uploads
            .map(|(id, u)| {
                format!(
                    "<Upload><Key>{}</Key><UploadId>{id}</UploadId><Initiated>{}</Initiated></Upload>",
                    u.key,
                    iso(u.begun)
                )
            })
            .collect();
        Response::new(
            200,
            format!(
                "<ListMultipartUploadsResult><Bucket>{BUCKET}</Bucket>{listed}<IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
            ),
        )
    }
}

/// A key as a form has it.
fn form(key: &str) -> String {
    let byte = |b: u8| match b {
        b' ' => "+".to_owned(),
        b'/' | b'-' | b'.' | b'_' => char::from(b).to_string(),
        _ if b.is_ascii_alphanumeric() => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    key.bytes().map(byte).collect()
}

/// Headers that say what an object is, as they were sent.
const DESCRIPTIONS: [&str; 7] = [
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-website-redirect-location",
];

/// The header value of a request whose body is not part of its signature.
pub const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

fn with_sum(answer: Response, request: &Request, manner: &Manner) -> Response {
    match manner.omits_sums {
        true => answer,
        false => answer.with("x-amz-checksum-crc32c", sum(&request.body)),
    }
}

fn described(answer: Response, stored: &Stored, manner: &Manner) -> Response {
    let modified = http_date(stored.modified);
    let metadata = stored.headers.iter();
    let metadata = metadata.filter(|(name, _)| {
        let is_own = name.starts_with("x-amz-meta-") || name.starts_with("x-amz-object-lock-");
        is_own || DESCRIPTIONS.contains(&name.as_str())
    });
    // AWS counts tags only for who may read them.
    let answer = match stored.tags.len() {
        0 => answer,
        _ if manner.denies_tags => answer,
        count => answer.with("x-amz-tagging-count", count.to_string()),
    };
    metadata.fold(
        answer
            .with("ETag", stored.tag.clone())
            .with("Last-Modified", modified),
        |answer, (name, value)| answer.with(name, value.clone()),
    )
}

/// A body that is not the one its checksums are of.
fn damaged(request: &Request, manner: &Manner) -> Option<Response> {
    let signed = request.header("x-amz-content-sha256");
    let digest: String = Sha256::digest(&request.body)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    if signed == UNSIGNED && manner.wants_signed {
        return Some(Response::error(403, "AccessDenied", "a policy"));
    }
    if signed != UNSIGNED && signed != digest {
        return Some(Response::error(
            400,
            "XAmzContentSHA256Mismatch",
            "another body",
        ));
    }
    let sent = request.header("x-amz-checksum-crc32c");
    assert!(!sent.is_empty(), "{} has no checksum", request.line());
    let is_right = manner.ignores_sums || sent == sum(&request.body);
    (!is_right).then(|| Response::error(400, "BadDigest", "another checksum"))
}

fn sum(bytes: &[u8]) -> String {
    base64(&crc32c::crc32c(bytes).to_be_bytes())
}

fn http_date(time: DateTime<Utc>) -> String {
    time.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn iso(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%S.000Z").to_string()
}

mod base64_of {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub fn base64(bytes: &[u8]) -> String {
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let mut group = [0; 3];
            group[..chunk.len()].copy_from_slice(chunk);
            let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
            for n in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * n) & 63) as usize];
                text.push(if n <= chunk.len() { digit as char } else { '=' });
            }
        }
        text
    }
}
