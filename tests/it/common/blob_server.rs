//! A server that speaks as much of Azure Blob Storage and of Google Cloud Storage as a repository needs, and fails on demand.
//!
//! It checks no signatures: that is what emulators of others are run for (`tests/it/blob.rs`). One request is answered after the other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A fault of the next request whose line begins with a text.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is answered so: status, Azure's code, body.
    Answers(u16, &'static str, String),
    /// It is done, and the connection ends without an answer.
    LosesReply,
    /// It is done after somebody else has taken the name, and the connection ends without an answer.
    Overtaken,
    /// The connection ends in the middle of the body.
    Cuts,
    /// Nothing is answered.
    Silent,
    /// Half of the body is taken, and the answer says so.
    TakesHalf,
    /// The last part is taken like any other: all bytes are stored, and there is no object yet.
    KeepsOpen,
}

#[derive(Default)]
struct State {
    /// Content and mark.
    objects: BTreeMap<String, (Vec<u8>, String)>,
    blocks: HashMap<String, Vec<u8>>,
    /// Name, mark and bytes of uploads that are open; none once one has ended.
    sessions: Vec<Option<(String, String, Vec<u8>)>>,
    /// Each with how many such requests go well before.
    faults: VecDeque<(u32, String, Fault)>,
    fired: usize,
    log: Vec<String>,
    /// Names that are taken are taken again.
    replaces: bool,
}

/// The server.
pub struct BlobServer {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn answer(status: u16) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: Vec::new(),
    }
}

impl Answer {
    fn header(mut self, name: &'static str, value: impl ToString) -> Answer {
        self.headers.push((name, value.to_string()));
        self
    }

    fn body(self, body: impl Into<Vec<u8>>) -> Answer {
        Answer {
            body: body.into(),
            ..self
        }
    }
}

impl BlobServer {
    pub fn start() -> BlobServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        BlobServer { port, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the next request that begins so fail.
    pub fn fail(&self, begin: &str, fault: Fault) {
        self.fail_after(0, begin, fault);
    }

    /// The same, once so many such requests went well.
    pub fn fail_after(&self, skip: u32, begin: &str, fault: Fault) {
        let mut state = self.state();
        state.faults.push_back((skip, begin.to_owned(), fault));
    }

    /// Puts an object there, as others do.
    pub fn plant(&self, name: &str, bytes: &[u8]) {
        let object = (bytes.to_vec(), "another".to_owned());
        self.state().objects.insert(name.to_owned(), object);
    }

    /// How many faults have happened since this was asked last; none may be left.
    pub fn fired(&self) -> usize {
        let mut state = self.state();
        assert!(state.faults.is_empty(), "not reached: {:?}", state.faults);
        std::mem::take(&mut state.fired)
    }

    /// Has it ignore conditions from now on.
    pub fn replace(&self) {
        self.state().replaces = true;
    }

    /// The lines of requests since this was asked last.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }
}

fn serve(stream: TcpStream, shared: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(mut request) = read(&mut reader) {
        let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.log.push(request.line.clone());
        let begins = |begin: &String| request.line.starts_with(begin.as_str());
        let at = state.faults.iter().position(|(_, begin, _)| begins(begin));
        let is_due = at.is_some_and(|at| state.faults[at].0 == 0);
        let fault = at.filter(|_| is_due);
        let fault = fault.and_then(|at| state.faults.remove(at));
        let fault = fault.map(|(.., fault)| fault);
        for (skip, begin, _) in &mut state.faults {
            *skip -= u32::from(!is_due && begins(begin) && *skip > 0);
        }
        state.fired += usize::from(fault.is_some());
        let answer = match &fault {
            Some(Fault::Answers(status, code, body)) => answer(*status)
                .header("x-ms-error-code", code)
                .body(body.as_bytes()),
            Some(Fault::Silent) => {
                drop(state);
                std::thread::sleep(Duration::from_secs(60));
                return;
            }
            Some(Fault::TakesHalf) => {
                request.body.truncate(request.body.len() / 2);
                handle(&mut state, &request)
            }
            Some(Fault::KeepsOpen) => {
                let range = request.headers.get_mut("content-range").unwrap();
                range.replace_range(range.find('/').unwrap().., "/*");
                handle(&mut state, &request)
            }
            Some(Fault::Overtaken) => {
                let name = name_of(&request);
                let other = (b"another's".to_vec(), "another".to_owned());
                state.objects.insert(name, other);
                return;
            }
            _ => handle(&mut state, &request),
        };
        drop(state);
        if matches!(fault, Some(Fault::LosesReply)) {
            return;
        }
        let is_head = request.line.starts_with("HEAD");
        let is_cut = matches!(fault, Some(Fault::Cuts));
        if write(&stream, &answer, is_head, is_cut).is_err() || is_cut {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        line: line
            .trim_end()
            .trim_end_matches(" HTTP/1.1")
            .replace("%2F", "/"),
        headers,
        body,
    })
}

fn write(
    mut stream: &TcpStream,
    answer: &Answer,
    is_head: bool,
    is_cut: bool,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\n", answer.status);
    let has_length = answer.headers.iter().any(|(n, _)| *n == "content-length");
    if !has_length {
        head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    head.push_str("date: Sat, 01 Jan 2000 00:00:07 GMT\r\n");
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    let end = if is_cut {
        answer.body.len() / 2
    } else {
        answer.body.len()
    };
    if !is_head {
        stream.write_all(&answer.body[..end])?;
    }
    stream.flush()
}

/// The object that a request is about, without account and container.
fn name_of(request: &Request) -> String {
    let url = request.line.split(' ').nth(1).unwrap_or_default();
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let named = query.split('&').find_map(|p| p.strip_prefix("name="));
    match (named, path.split_once("/o/")) {
        (Some(name), _) => name.to_owned(),
        (None, Some((_, name))) => name.to_owned(),
        (None, None) => path.splitn(4, '/').nth(3).unwrap_or_default().to_owned(),
    }
}

fn query<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = line.split_once('?')?;
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn handle(state: &mut State, request: &Request) -> Answer {
    match request.line.contains("/storage/v1/b/") || request.line.contains("/session/") {
        true => google(state, request),
        false => azure(state, request),
    }
}

fn azure(state: &mut State, request: &Request) -> Answer {
    let (line, name) = (&request.line, name_of(request));
    let method = line.split(' ').next().unwrap_or_default();
    let gone = || answer(404).header("x-ms-error-code", "BlobNotFound");
    let mark = request.headers.get("x-ms-meta-pitrmark").cloned();
    let sum = request.headers.get("content-md5").cloned();
    match (method, query(line, "comp")) {
        ("GET", Some("list")) => list(state, line, |names, folders| {
            let mut text = String::from("<?xml version=\"1.0\"?><EnumerationResults><Blobs>");
            for (name, size) in names {
                text.push_str(&format!("<Blob><Name>{name}</Name><Properties><Last-Modified>Sat, 01 Jan 2000 00:00:07 GMT</Last-Modified><Content-Length>{size}</Content-Length></Properties></Blob>"));
            }
            for folder in folders {
                text.push_str(&format!("<BlobPrefix><Name>{folder}</Name></BlobPrefix>"));
            }
            answer(200).body(text + "</Blobs><NextMarker/></EnumerationResults>")
        }),
        ("PUT", Some("block")) => {
            let id = query(line, "blockid").unwrap_or_default();
            let id = id.replace("%3D", "=").replace("%2B", "+");
            state.blocks.insert(id, request.body.clone());
            answer(201).header("content-md5", sum.unwrap_or_default())
        }
        ("PUT", comp) => {
            if !state.replaces && state.objects.contains_key(&name) {
                assert_eq!(
                    request.headers.get("if-none-match").map(String::as_str),
                    Some("*")
                );
                return answer(409).header("x-ms-error-code", "BlobAlreadyExists");
            }
            let content = match comp {
                None => request.body.clone(),
                Some(_) => {
                    let text = String::from_utf8_lossy(&request.body).into_owned();
                    let ids = text.split("<Uncommitted>").skip(1);
                    let ids = ids.filter_map(|part| part.split('<').next());
                    ids.flat_map(|id| state.blocks.get(id).cloned().unwrap())
                        .collect()
                }
            };
            state
                .objects
                .insert(name, (content, mark.unwrap_or_default()));
            let created = answer(201).header("etag", "\"x\"");
            created.header("content-md5", sum.unwrap_or_default())
        }
        ("DELETE", _) => match state.objects.remove(&name) {
            Some(_) => answer(202),
            None => gone(),
        },
        ("HEAD", _) => match state.objects.get(&name) {
            None => gone(),
            Some((content, mark)) => answer(200)
                .header("content-length", content.len())
                .header("last-modified", "Sat, 01 Jan 2000 00:00:07 GMT")
                .header("x-ms-meta-pitrmark", mark),
        },
        _ => state
            .objects
            .get(&name)
            .map_or_else(gone, |o| part(request, &o.0)),
    }
}

fn part(request: &Request, content: &[u8]) -> Answer {
    let range = request
        .headers
        .get("range")
        .and_then(|r| r.strip_prefix("bytes="));
    let Some((from, last)) = range.and_then(|r| r.split_once('-')) else {
        return answer(200).body(content);
    };
    let from: usize = from.parse().unwrap();
    let last: usize = last.parse().unwrap();
    let end = content.len().min(last + 1);
    match from < end {
        false => answer(416),
        true => answer(206)
            .header(
                "content-range",
                format!("bytes {from}-{}/{}", end - 1, content.len()),
            )
            .body(&content[from..end]),
    }
}

fn list(
    state: &State,
    line: &str,
    write: impl Fn(Vec<(&String, usize)>, Vec<String>) -> Answer,
) -> Answer {
    let prefix = query(line, "prefix").unwrap_or_default();
    let is_folder = query(line, "delimiter").is_some();
    let (mut names, mut folders) = (Vec::new(), Vec::new());
    for (name, (content, _)) in &state.objects {
        let Some(rest) = name.strip_prefix(prefix) else {
            continue;
        };
        match rest.split_once('/').filter(|_| is_folder) {
            None => names.push((name, content.len())),
            Some((first, _)) => folders.push(format!("{prefix}{first}/")),
        }
    }
    folders.dedup();
    write(names, folders)
}

fn google(state: &mut State, request: &Request) -> Answer {
    let (line, name) = (&request.line, name_of(request));
    let gone = || {
        answer(404)
            .body(r#"{"error": {"message": "Not Found", "errors": [{"reason": "notFound"}]}}"#)
    };
    let taken = || {
        answer(412)
            .body(r#"{"error": {"message": "no", "errors": [{"reason": "conditionNotMet"}]}}"#)
    };
    let facts = |name: &str, (content, mark): &(Vec<u8>, String)| {
        let sum = crc32c::crc32c(content).to_be_bytes();
        let sum = base64(&sum);
        let text = format!(
            r#"{{"name": "{name}", "size": "{}", "updated": "2000-01-01T00:00:07Z", "crc32c": "{sum}", "metadata": {{"pitrmark": "{mark}"}}}}"#,
            content.len()
        );
        answer(200).body(text)
    };
    let mark_in = |text: &str| {
        let (_, rest) = text.split_once("\"pitrmark\":\"").unwrap_or_default();
        rest.split('"').next().unwrap_or_default().to_owned()
    };
    if let Some((_, number)) = line.split_once("/session/") {
        let number: usize = number.parse().unwrap();
        if line.starts_with("DELETE") {
            state.sessions[number] = None;
            return answer(499);
        }
        let Some((name, mark, bytes)) = state.sessions[number].as_mut() else {
            return answer(410);
        };
        let range = &request.headers["content-range"];
        let (span, whole) = range["bytes ".len()..].split_once('/').unwrap();
        // Without a span it asks how far the upload is.
        let from = span.split('-').next().unwrap().parse();
        let from: usize = from.unwrap_or(bytes.len());
        assert!(from <= bytes.len(), "a hole");
        bytes.truncate(from);
        bytes.extend_from_slice(&request.body);
        if whole != bytes.len().to_string() {
            let last = bytes.len() - 1;
            return answer(308).header("range", format!("bytes=0-{last}"));
        }
        let object = (std::mem::take(bytes), mark.clone());
        let name = name.clone();
        state.sessions[number] = None;
        if !state.replaces && state.objects.contains_key(&name) {
            return taken();
        }
        let answer = facts(&name, &object);
        state.objects.insert(name, object);
        return answer;
    }
    let method = line.split(' ').next().unwrap_or_default();
    match (method, query(line, "uploadType")) {
        ("POST", _) if !state.replaces && state.objects.contains_key(&name) => {
            assert_eq!(query(line, "ifGenerationMatch"), Some("0"));
            taken()
        }
        ("POST", Some("resumable")) => {
            let mark = mark_in(&String::from_utf8_lossy(&request.body));
            state.sessions.push(Some((name, mark, Vec::new())));
            let number = state.sessions.len() - 1;
            answer(200).header("location", format!("http://elsewhere/session/{number}"))
        }
        ("POST", _) => {
            let find = |needle: &[u8], from: usize| {
                let at = request.body[from..]
                    .windows(needle.len())
                    .position(|w| w == needle);
                at.map(|at| from + at).unwrap()
            };
            let head = find(b"application/octet-stream\r\n\r\n", 0) + 28;
            let mark = mark_in(&String::from_utf8_lossy(&request.body[..head]));
            let end = request.body.len() - "\r\n--pitr-5f1c9b3e7a2d4608--\r\n".len();
            let object = (request.body[head..end].to_vec(), mark);
            let answer = facts(&name, &object);
            state.objects.insert(name, object);
            answer
        }
        ("DELETE", _) => state
            .objects
            .remove(&name)
            .map_or_else(gone, |_| answer(204)),
        (_, _) if name.is_empty() || line.contains("maxResults") => {
            list(state, line, |names, folders| {
                let items: Vec<String> = names
                .iter()
                .map(|(name, size)| format!(r#"{{"name": "{name}", "size": "{size}", "updated": "2000-01-01T00:00:07Z"}}"#))
                .collect();
                let folders: Vec<String> = folders.iter().map(|f| format!("\"{f}\"")).collect();
                answer(200).body(format!(
                    r#"{{"kind": "storage#objects", "items": [{}], "prefixes": [{}]}}"#,
                    items.join(","),
                    folders.join(",")
                ))
            })
        }
        (_, _) => match state.objects.get(&name) {
            None => gone(),
            Some(object) if query(line, "alt").is_some() => part(request, &object.0),
            Some(object) => facts(&name, object),
        },
    }
}

/// Four bytes in base64.
fn base64(bytes: &[u8; 4]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let whole = u64::from(u32::from_be_bytes(*bytes)) << 4;
    let letter = |at: u32| char::from(LETTERS[usize::try_from(whole >> at & 63).unwrap()]);
    let text: String = [30, 24, 18, 12, 6, 0].into_iter().map(letter).collect();
    text + "=="
}
