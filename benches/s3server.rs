//! s3server [--latency MILLISECONDS] [--log FILE] --authority FILE
//!
//! The object store of benches/compare: in memory, over TLS, with a round trip's time added wherever a distant store would take one:
//! when a connection is opened, for the handshake, before `100 Continue`, and before every answer. All contenders get the same one.
//! It counts requests and looks at no signature, so that it takes little of the processor from those who are measured. A CRC-32C that comes with a
//! body is compared and answered, as Amazon does; of other checksums it knows nothing.
//!
//! The certificate that clients have to trust is written to FILE; the port is printed. It ends with its standard input.
//! `GET /.counts` tells requests by method since the last `POST /.reset`, which also forgets all objects; `GET /.keys` lists them.
//! FILE of `--log` gets a line for each request: when it had come, in milliseconds since the start, its method, object and range.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Object {
    bytes: Arc<Vec<u8>>,
    metadata: Vec<(String, String)>,
    tag: String,
}

struct Upload {
    path: String,
    metadata: Vec<(String, String)>,
    parts: BTreeMap<u32, Vec<u8>>,
}

#[derive(Default)]
struct Keep {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    counts: BTreeMap<String, u64>,
    number: u64,
}

struct Store {
    keep: Mutex<Keep>,
    latency: Duration,
    tls: Arc<ServerConfig>,
    log: Option<Mutex<std::fs::File>>,
    begun: Instant,
}

impl Store {
    /// A log that cannot be written is nothing a contender should notice.
    fn note(&self, request: &Request) {
        let Some(log) = &self.log else { return };
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(
            log,
            "{} {} {} {:?} {}",
            self.begun.elapsed().as_millis(),
            request.method,
            request.path,
            request.query,
            request.header("range")
        );
    }

    fn keep(&self) -> MutexGuard<'_, Keep> {
        self.keep.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn metadata(&self) -> Vec<(String, String)> {
        let ours = self
            .headers
            .iter()
            .filter(|(name, _)| name.starts_with("x-amz-meta-"));
        ours.map(|(n, v)| (n.clone(), v.clone())).collect()
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Arc<Vec<u8>>,
    range: std::ops::Range<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        let body = Arc::new(body.into());
        let range = 0..body.len();
        Answer {
            status,
            headers: Vec::new(),
            body,
            range,
        }
    }

    fn error(status: u16, code: &str) -> Answer {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        );
        Answer::new(status, text).with("Content-Type", "application/xml")
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    fn send(&self, method: &str, out: &mut impl Write) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nx-amz-request-id: 1\r\n", self.status);
        #[expect(clippy::disallowed_methods, reason = "a server has a clock")]
        let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        head.push_str(&format!("Date: {date}\r\n"));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.status != 204 {
            head.push_str(&format!("Content-Length: {}\r\n", self.range.len()));
        }
        head.push_str("\r\n");
        out.write_all(head.as_bytes())?;
        if method != "HEAD" && self.status != 204 {
            out.write_all(&self.body[self.range.clone()])?;
        }
        out.flush()
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (mut latency, mut authority, mut log) = (Duration::ZERO, None, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--latency" => {
                let text = arguments.next().ok_or("how many milliseconds?")?;
                latency = Duration::from_millis(text.parse()?);
            }
            "--authority" => authority = arguments.next(),
            "--log" => {
                let file = std::fs::File::create(arguments.next().ok_or("--log FILE")?)?;
                log = Some(Mutex::new(file));
            }
            // From cargo.
            "--bench" => {}
            other => return Err(format!("unknown: {other}").into()),
        }
    }
    let (tls, pem) = identity()?;
    std::fs::write(authority.ok_or("--authority FILE")?, pem)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    let store = Arc::new(Store {
        keep: Mutex::default(),
        latency,
        tls: Arc::new(tls),
        log,
        begun: Instant::now(),
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let store = Arc::clone(&store);
            std::thread::spawn(move || serve(&store, stream));
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// An authority made for this run, and this server's certificate by it.
fn identity() -> Result<(ServerConfig, String), Failure> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "authority of the comparison");
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    // pgBackRest compares no addresses of a certificate, only names.
    let name = SanType::DnsName("127.0.0.1".try_into()?);
    params.subject_alt_names.push(name);
    let certificate = params.signed_by(&key, &issuer)?.pem();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok((config, authority))
}

fn serve(store: &Store, stream: TcpStream) {
    std::thread::sleep(store.latency);
    let Ok(connection) = ServerConnection::new(Arc::clone(&store.tls)) else {
        return;
    };
    if stream.set_nodelay(true).is_err() {
        return;
    }
    std::thread::sleep(store.latency);
    let stream = StreamOwned::new(connection, stream);
    // A connection that breaks off is the client's affair.
    let _ = converse(store, BufReader::with_capacity(256 << 10, stream));
}

fn converse(
    store: &Store,
    mut stream: BufReader<StreamOwned<ServerConnection, TcpStream>>,
) -> Result<(), Failure> {
    while let Some(mut request) = read_head(&mut stream)? {
        let is_ours = request.path.starts_with("/.");
        if request.header("expect") == "100-continue" {
            std::thread::sleep(store.latency);
            stream
                .get_mut()
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            stream.get_mut().flush()?;
        }
        request.body = read_body(&mut stream, &request)?;
        if !is_ours {
            store.note(&request);
            std::thread::sleep(store.latency);
        }
        let answer = match wrong_sum(&request) {
            true => Answer::error(400, "BadDigest"),
            false => answer(&mut store.keep(), &mut request),
        };
        answer.send(&request.method, stream.get_mut())?;
    }
    Ok(())
}

fn read_head(stream: &mut impl BufRead) -> Result<Option<Request>, Failure> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut request = Request {
        method,
        path: decoded(path),
        query: pairs.map(|(n, v)| (decoded(n), decoded(v))).collect(),
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(Some(request));
        };
        let value = value.trim().to_owned();
        request.headers.insert(name.to_lowercase(), value);
    }
}

/// The object's bytes, out of the chunks that some clients put around them.
fn read_body(stream: &mut impl BufRead, request: &Request) -> Result<Vec<u8>, Failure> {
    let raw = match request.header("transfer-encoding") {
        "chunked" => unchunked(stream)?,
        _ => {
            let length: u64 = request.header("content-length").parse().unwrap_or(0);
            let mut body = Vec::with_capacity(usize::try_from(length)?);
            stream.take(length).read_to_end(&mut body)?;
            body
        }
    };
    match request
        .header("x-amz-content-sha256")
        .starts_with("STREAMING")
    {
        true => unchunked(&mut raw.as_slice()),
        false => Ok(raw),
    }
}

fn unchunked(stream: &mut impl BufRead) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16)?;
        if size == 0 {
            // Trailers, and the empty line behind them or the end.
            while stream.read_line(&mut line)? > 2 {
                line.clear();
            }
            return Ok(body);
        }
        stream.by_ref().take(size).read_to_end(&mut body)?;
        stream.read_line(&mut line)?;
    }
}

const SUM: &str = "x-amz-checksum-crc32c";

/// Whether the body is not the one that its checksum is of: base64 of four bytes, the highest first.
fn wrong_sum(request: &Request) -> bool {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sent = request.header(SUM);
    if sent.is_empty() {
        return false;
    }
    let bits = u64::from(crc32c::crc32c(&request.body)) << 4;
    let digits = (0..6)
        .rev()
        .map(|n| DIGITS[(bits >> (6 * n) & 63) as usize]);
    !sent.bytes().eq(digits.chain(*b"=="))
}

/// Says the checksum of what was written, if one came with it.
fn with_sum(answer: Answer, request: &Request) -> Answer {
    match request.header(SUM) {
        "" => answer,
        sum => answer.with(SUM, sum),
    }
}

fn answer(keep: &mut Keep, request: &mut Request) -> Answer {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/.counts") => return Answer::new(200, counts(keep)),
        ("GET", "/.keys") => {
            let keys: Vec<&str> = keep.objects.keys().map(String::as_str).collect();
            return Answer::new(200, keys.join("\n"));
        }
        ("POST", "/.reset") => {
            *keep = Keep::default();
            return Answer::new(200, "");
        }
        _ => {}
    }
    *keep.counts.entry(request.method.clone()).or_default() += 1;
    let query = |name: &str| request.query.get(name);
    let is_bucket = !request.path.trim_matches('/').contains('/');
    match (request.method.as_str(), query("uploadId")) {
        ("PUT", Some(id)) => put_part(keep, &id.clone(), request),
        ("POST", Some(id)) => complete(keep, id, request),
        ("DELETE", Some(id)) => {
            keep.uploads.remove(id);
            Answer::new(204, "")
        }
        ("POST", None) if query("uploads").is_some() => begin(keep, request),
        ("POST", None) if query("delete").is_some() => delete_many(keep, request),
        ("GET" | "HEAD" | "PUT", None)
            if is_bucket && query("prefix").is_none() && request.query.len() <= 1 =>
        {
            Answer::new(200, "")
        }
        // Who asks for unfinished uploads has none.
        ("GET", None) if is_bucket && query("uploads").is_some() => Answer::new(
            200,
            "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
        ),
        ("GET", None) if is_bucket => list(keep, request),
        ("PUT", None) => put(keep, request),
        ("GET" | "HEAD", None) => get(keep, request),
        ("DELETE", None) => {
            keep.objects.remove(&request.path);
            Answer::new(204, "")
        }
        _ => Answer::error(501, "NotImplemented"),
    }
}

fn counts(keep: &Keep) -> String {
    let counts = keep.counts.iter().map(|(m, n)| format!("\"{m}\": {n}"));
    format!("{{{}}}", counts.collect::<Vec<_>>().join(", "))
}

fn insert(keep: &mut Keep, path: &str, bytes: Vec<u8>, metadata: Vec<(String, String)>) -> String {
    keep.number += 1;
    let tag = format!("\"{:032x}\"", keep.number);
    let object = Object {
        bytes: Arc::new(bytes),
        metadata,
        tag: tag.clone(),
    };
    keep.objects.insert(path.to_owned(), object);
    tag
}

fn is_taken(keep: &Keep, path: &str, request: &Request) -> bool {
    request.header("if-none-match") == "*" && keep.objects.contains_key(path)
}

fn put(keep: &mut Keep, request: &mut Request) -> Answer {
    if is_taken(keep, &request.path, request) {
        return Answer::error(412, "PreconditionFailed");
    }
    let body = std::mem::take(&mut request.body);
    let tag = insert(keep, &request.path, body, request.metadata());
    with_sum(Answer::new(200, "").with("ETag", tag), request)
}

fn begin(keep: &mut Keep, request: &Request) -> Answer {
    keep.number += 1;
    let id = format!("upload{}", keep.number);
    let upload = Upload {
        path: request.path.clone(),
        metadata: request.metadata(),
        parts: BTreeMap::new(),
    };
    keep.uploads.insert(id.clone(), upload);
    let text = format!(
        "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
    );
    Answer::new(200, text).with("Content-Type", "application/xml")
}

fn put_part(keep: &mut Keep, id: &str, request: &mut Request) -> Answer {
    let number = request.query.get("partNumber").and_then(|n| n.parse().ok());
    let (Some(upload), Some(number)) = (keep.uploads.get_mut(id), number) else {
        return Answer::error(404, "NoSuchUpload");
    };
    let body = std::mem::take(&mut request.body);
    upload.parts.insert(number, body);
    let tag = format!("\"{number:032x}\"");
    with_sum(Answer::new(200, "").with("ETag", tag), request)
}

fn complete(keep: &mut Keep, id: &str, request: &Request) -> Answer {
    if is_taken(keep, &request.path, request) {
        return Answer::error(412, "PreconditionFailed");
    }
    let Some(upload) = keep.uploads.remove(id) else {
        return Answer::error(404, "NoSuchUpload");
    };
    let bytes = upload.parts.into_values().flatten().collect();
    let tag = insert(keep, &upload.path, bytes, upload.metadata).replace('"', "&quot;");
    let text = format!(
        "<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
    );
    Answer::new(200, text).with("Content-Type", "application/xml")
}

fn delete_many(keep: &mut Keep, request: &Request) -> Answer {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    for rest in body.split("<Key>").skip(1) {
        let key = rest.split('<').next().unwrap_or_default();
        keep.objects
            .remove(&format!("{}/{key}", request.path.trim_end_matches('/')));
    }
    Answer::new(200, "<DeleteResult></DeleteResult>").with("Content-Type", "application/xml")
}

fn get(keep: &Keep, request: &Request) -> Answer {
    let Some(object) = keep.objects.get(&request.path) else {
        return Answer::error(404, "NoSuchKey");
    };
    let size = object.bytes.len();
    let mut answer = Answer {
        status: 200,
        headers: object.metadata.clone(),
        body: Arc::clone(&object.bytes),
        range: 0..size,
    };
    let range = request.header("range").strip_prefix("bytes=");
    if let Some((first, last)) = range.and_then(|r| r.split_once('-')) {
        let number = |text: &str| text.parse::<usize>().ok();
        let range = match (number(first), number(last)) {
            (Some(first), last) => first..last.map_or(size, |last| (last + 1).min(size)),
            (None, Some(last)) => size.saturating_sub(last)..size,
            (None, None) => 0..size,
        };
        if range.start >= size {
            return Answer::error(416, "InvalidRange");
        }
        let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        answer = answer.with("Content-Range", told);
        (answer.status, answer.range) = (206, range);
    }
    answer
        .with("ETag", object.tag.clone())
        .with("Last-Modified", "Fri, 20 Nov 2026 00:00:00 GMT")
}

/// One page holds everything.
fn list(keep: &Keep, request: &Request) -> Answer {
    let bucket = format!("/{}/", request.path.trim_matches('/'));
    let text = |name: &str| request.query.get(name).map_or("", String::as_str);
    let (prefix, delimiter) = (text("prefix"), text("delimiter"));
    let mut entries = BTreeMap::new();
    let objects = keep.objects.iter();
    let objects = objects.filter_map(|(path, o)| Some((path.strip_prefix(&bucket)?, o)));
    for (key, object) in objects.filter(|(key, _)| key.starts_with(prefix)) {
        let below = key[prefix.len()..]
            .split_once(delimiter)
            .filter(|_| !delimiter.is_empty());
        let (entry, text) = match below {
            Some((name, _)) => {
                let common = format!("{prefix}{name}{delimiter}");
                let text = format!("<CommonPrefixes><Prefix>{common}</Prefix></CommonPrefixes>");
                (common, text)
            }
            None => {
                let (size, tag) = (object.bytes.len(), object.tag.replace('"', "&quot;"));
                let text = format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-11-20T00:00:00.000Z</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>"
                );
                (key.to_owned(), text)
            }
        };
        entries.insert(entry, text);
    }
    let page: String = entries.into_values().collect();
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult>{page}<IsTruncated>false</IsTruncated></ListBucketResult>"
    );
    Answer::new(200, text).with("Content-Type", "application/xml")
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let digits = match tail {
            [a, b, ..] if *first == b'%' => std::str::from_utf8(&[*a, *b])
                .ok()
                .and_then(|d| u8::from_str_radix(d, 16).ok()),
            _ => None,
        };
        if let (Some(byte), [_, _, after @ ..]) = (digits, tail) {
            bytes.push(byte);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
