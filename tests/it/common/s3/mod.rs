//! An object store for the tests: in this process, plain HTTP on loopback, one thread for each connection. Conditional creation is
//! atomic, unless a test wants otherwise; faults come on demand, and each is counted when it happens.
//!
//! Signatures are not computed: who asks, when, and for which region stands in what is signed, and that is looked at.

mod http;
mod keep;
pub mod peer;
mod place;
pub mod tls;

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::{Request, Response};
use keep::{Keep, Thaw};
pub use place::{Place, key, large};

use super::{PATIENCE, Sandbox};

/// The one bucket.
pub const BUCKET: &str = "bucket";
/// Credentials that may do everything.
pub const KEY: &str = "AKIDTEST";
/// Credentials that may not delete.
pub const WRITER: &str = "AKIDWRITER";
/// Their secret, which must stand nowhere.
pub const SECRET: &str = "planted-secret-7f3a";

/// The fate of a request instead of, or besides, an answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answered with this error; nothing is done.
    Error(u16, &'static str),
    /// Nothing is done, and the answer is an error in the body of a success.
    ErrorIn200(&'static str),
    /// Answered with an error that repeats this text, how the request was signed, and its session token.
    Echo(&'static str),
    /// Answered by something that is no object store.
    Stranger(u16),
    /// Done, and the connection ends before the answer.
    NoAnswer,
    /// Done and answered, but another writer's object with this content takes the place of what was written.
    Overtaken(&'static [u8]),
    /// The connection is reset before anything is done.
    Reset,
    /// The answer ends after so many bytes of its body.
    Truncated(usize),
    /// The lowest bit of this byte of the answer's body is another.
    Flipped(usize),
    /// Done and answered, but the root of the answer's document has another name.
    Renamed(&'static str, &'static str),
    /// The answer's body comes compressed, as its head says.
    Gzipped,
    /// Nothing is answered until the server ends.
    Stalled,
    /// Answered as always, in ten pieces over this time.
    Slow(Duration),
    /// Answered with this text; nothing is done.
    Says(u16, &'static str),
    /// Nothing is done, and the answer has no end.
    Endless(u16),
}

struct Rule {
    /// Text that the request line holds.
    holds: String,
    skip: u64,
    times: u64,
    fault: Fault,
    fired: Arc<AtomicU64>,
}

/// How the store differs from what it should be.
#[derive(Debug, Clone)]
pub struct Manner {
    /// `If-None-Match` is ignored.
    pub overwrites: bool,
    /// Several writers that create a key with this text at the same time all win; the first waits for a second.
    pub both_win: Option<&'static str>,
    /// The condition is ignored only when an upload in parts is completed.
    pub completes_over: bool,
    /// Ranges are ignored.
    pub ignores_ranges: bool,
    /// Checksums are not compared.
    pub ignores_sums: bool,
    /// Answers to writes say no checksum.
    pub omits_sums: bool,
    /// A policy of the bucket wants bodies to be signed.
    pub wants_signed: bool,
    /// The last byte of what is written is another from then on.
    pub spoils: bool,
    /// The bucket keeps versions: a deletion puts a marker.
    pub versions: bool,
    /// Id and name of the owner of such markers; where there is none nobody is named.
    pub deleter: Option<(&'static str, &'static str)>,
    /// A policy of the bucket denies creation without `If-None-Match`.
    pub wants_condition: bool,
    /// How long what is written is locked, where the writer does not say.
    pub default_lock: Option<(&'static str, Duration)>,
    /// Whether the bucket has Object Lock; where there is no answer the server does not know the question, nor legal holds.
    pub object_lock: Option<bool>,
    /// Objects do not show their holds, as to a client without `s3:GetObjectLegalHold`. It may ask all the same here.
    pub hides_holds: bool,
    /// The client has no `s3:GetObjectTagging`: tags are refused, and objects do not say how many they have.
    pub denies_tags: bool,
    /// Listings do not show what is there.
    pub lists_late: bool,
    /// Listings show what was deleted.
    pub shows_deleted: bool,
    /// An object is not there when it is asked for the first time.
    pub reads_late: bool,
    /// The rules of the bucket's lifecycle, as XML.
    pub lifecycle: Option<String>,
    /// Keys in one page of a listing.
    pub page_keys: usize,
    /// Every page of a listing is the first one, and names another that follows.
    pub repeats: bool,
    /// How far its clock is ahead.
    pub clock_ahead: Duration,
    /// The region for which requests must be signed.
    pub region: &'static str,
    /// The session token that is accepted; an older one has expired.
    pub token: Option<String>,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner {
            hides_holds: false,
            denies_tags: false,
            overwrites: false,
            both_win: None,
            completes_over: false,
            ignores_ranges: false,
            ignores_sums: false,
            omits_sums: false,
            wants_signed: false,
            spoils: false,
            versions: false,
            deleter: None,
            wants_condition: false,
            default_lock: None,
            object_lock: None,
            lists_late: false,
            shows_deleted: false,
            reads_late: false,
            lifecycle: None,
            page_keys: 1000,
            repeats: false,
            clock_ahead: Duration::ZERO,
            region: "us-east-1",
            token: None,
        }
    }
}

struct State {
    keep: Mutex<Keep>,
    manner: Mutex<Manner>,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<String>>,
    /// How many session tokens were issued.
    issued: AtomicU64,
    /// How many requests came with one that had ended.
    ended: AtomicU64,
    /// The signatures that were repeated.
    echoed: Mutex<Vec<String>>,
    /// Bytes that went out in answers without end.
    endless: AtomicU64,
    /// How many are between looking whether a name is free and taking it.
    racing: AtomicU64,
    is_over: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The store. It ends when it is dropped.
pub struct S3Server {
    state: Arc<State>,
    address: SocketAddr,
}

impl S3Server {
    /// Starts with an empty bucket.
    pub fn start() -> S3Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            keep: Mutex::default(),
            manner: Mutex::default(),
            rules: Mutex::default(),
            log: Mutex::default(),
            issued: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            echoed: Mutex::default(),
            endless: AtomicU64::new(0),
            racing: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), state) = (stream, Arc::clone(&shared)) else {
                    continue;
                };
                std::thread::spawn(move || serve(&state, stream));
            }
        });
        S3Server { state, address }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes how it behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut locked(&self.state.manner));
    }

    /// Lets the fault happen to the next `times` requests whose line (`GET /bucket/key?query=`) holds this, and returns how often it has.
    pub fn fault(&self, holds: &str, times: u64, fault: Fault) -> Fired {
        self.fault_after(0, holds, times, fault)
    }

    /// As [`S3Server::fault`], of requests behind the first `skip`.
    pub fn fault_after(&self, skip: u64, holds: &str, times: u64, fault: Fault) -> Fired {
        let fired = Arc::new(AtomicU64::new(0));
        locked(&self.state.rules).push(Rule {
            holds: holds.to_owned(),
            skip,
            times,
            fault,
            fired: Arc::clone(&fired),
        });
        Fired(fired)
    }

    /// Ends all faults.
    pub fn heal(&self) {
        locked(&self.state.rules).clear();
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<String> {
        locked(&self.state.keep).objects.keys().cloned().collect()
    }

    /// The one key that ends like this.
    pub fn key(&self, end: &str) -> String {
        let mut keys = self.keys();
        keys.retain(|k| k.ends_with(end));
        assert_eq!(keys.len(), 1, "one key ends in {end}: {keys:?}");
        keys.remove(0)
    }

    /// An object's bytes.
    pub fn object(&self, key: &str) -> Vec<u8> {
        locked(&self.state.keep).objects[key].bytes.clone()
    }

    /// The headers that an object was written with.
    pub fn written_with(&self, key: &str) -> BTreeMap<String, String> {
        locked(&self.state.keep).objects[key].headers.clone()
    }

    /// Puts an object there behind everybody's back.
    pub fn plant(&self, key: &str, bytes: &[u8]) {
        locked(&self.state.keep).plant(key, bytes);
    }

    /// Takes an object away, where there is one.
    pub fn lose_if_there(&self, key: &str) {
        locked(&self.state.keep).bury(key, chrono::Utc::now());
    }

    /// Flips a bit of an object, of which everything else stays as it was.
    pub fn rot(&self, key: &str) {
        let mut keep = locked(&self.state.keep);
        keep.objects.get_mut(key).unwrap().bytes[0] ^= 1;
    }

    /// Takes one away likewise; where versions are kept it is only hidden.
    pub fn lose(&self, key: &str) {
        assert!(locked(&self.state.keep).bury(key, chrono::Utc::now()));
    }

    /// Ends all locks.
    pub fn unlock(&self) {
        for stored in locked(&self.state.keep).objects.values_mut() {
            let is_lock = |name: &str| name.starts_with("x-amz-object-lock-");
            stored.headers.retain(|name, _| !is_lock(name));
        }
    }

    /// Dates all objects, and the ends of their locks, back by so many days.
    pub fn age(&self, days: i64) {
        let days = chrono::Duration::days(days);
        for stored in locked(&self.state.keep).objects.values_mut() {
            stored.modified -= days;
            if let Some(until) = stored
                .headers
                .get_mut("x-amz-object-lock-retain-until-date")
            {
                let end = chrono::DateTime::parse_from_rfc3339(until).unwrap() - days;
                *until = end
                    .to_utc()
                    .to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
            }
        }
    }

    /// How many days an object is locked for from now on.
    pub fn locked_days(&self, key: &str) -> i64 {
        let keep = locked(&self.state.keep);
        let until = &keep.objects[key].headers["x-amz-object-lock-retain-until-date"];
        let end = chrono::DateTime::parse_from_rfc3339(until).unwrap();
        (end.to_utc() - chrono::Utc::now()).num_days()
    }

    /// Moves every object whose key holds this into another storage class; returns how many there are.
    pub fn reclassify(&self, holds: &str, class: &str) -> usize {
        let mut keep = locked(&self.state.keep);
        let found = keep.objects.iter_mut().filter(|(k, _)| k.contains(holds));
        found
            .map(|(_, stored)| {
                stored.reclassify(class);
            })
            .count()
    }

    /// How many objects whose key holds this are in each storage class.
    pub fn classes(&self, holds: &str) -> BTreeMap<String, usize> {
        let keep = locked(&self.state.keep);
        let mut classes = BTreeMap::new();
        for (_, stored) in keep.objects.iter().filter(|(k, _)| k.contains(holds)) {
            *classes.entry(stored.class().to_owned()).or_default() += 1;
        }
        classes
    }

    /// The tags of an object.
    pub fn tags(&self, key: &str) -> BTreeMap<String, String> {
        locked(&self.state.keep).objects[key].tags.clone()
    }

    /// Gives an object a tag.
    pub fn tag(&self, key: &str, name: &str, value: &str) {
        let mut keep = locked(&self.state.keep);
        let stored = keep.objects.get_mut(key).unwrap();
        stored.tags.insert(name.to_owned(), value.to_owned());
    }

    /// Does at once what the rules of the lifecycle do in a day or two; returns how many objects moved.
    pub fn apply_lifecycle(&self) -> usize {
        let rules = locked(&self.state.manner).lifecycle.clone();
        locked(&self.state.keep).apply(&rules.unwrap_or_default())
    }

    /// Ends every thaw that is under way; returns for how many days and at which speed each was asked for.
    pub fn finish_thaw(&self) -> Vec<(u32, String)> {
        let mut keep = locked(&self.state.keep);
        let mut asked = Vec::new();
        for stored in keep.objects.values_mut() {
            if let Thaw::Asked(days, speed) = stored.thaw.clone() {
                let end = chrono::Utc::now() + chrono::Duration::days(days.into());
                stored.thaw = Thaw::Until(end);
                asked.push((days, speed));
            }
        }
        asked
    }

    /// How many uploads in parts are neither completed nor taken back.
    pub fn open_uploads(&self) -> usize {
        locked(&self.state.keep).uploads.len()
    }

    /// Dates all open uploads back.
    pub fn age_uploads(&self, by: Duration) {
        for upload in locked(&self.state.keep).uploads.values_mut() {
            upload.begun -= chrono::Duration::from_std(by).unwrap();
        }
    }

    /// The requests so far, without those for credentials.
    pub fn log(&self) -> Vec<String> {
        locked(&self.state.log).clone()
    }

    /// Forgets them.
    pub fn clear_log(&self) {
        locked(&self.state.log).clear();
    }

    /// How many session tokens it has issued.
    pub fn issued_tokens(&self) -> u64 {
        self.state.issued.load(Ordering::SeqCst)
    }

    /// How many requests it refused because their session token, `until-` and seconds since 1970, had ended.
    pub fn ended_tokens(&self) -> u64 {
        self.state.ended.load(Ordering::SeqCst)
    }

    /// The signatures that [`Fault::Echo`] has repeated.
    pub fn echoed(&self) -> Vec<String> {
        locked(&self.state.echoed).clone()
    }

    /// How many bytes went out in answers without end.
    pub fn endless_bytes(&self) -> u64 {
        self.state.endless.load(Ordering::SeqCst)
    }

    /// A credentials file for it.
    pub fn credentials(&self, sandbox: &Sandbox, key: &str) -> std::path::PathBuf {
        credentials(sandbox, key)
    }
}

/// A credentials file with the secret of the tests, or with what another program's server wants: `PITR_TEST_S3_CREDENTIALS`, KEY:SECRET.
fn credentials(sandbox: &Sandbox, key: &str) -> std::path::PathBuf {
    let others = std::env::var("PITR_TEST_S3_CREDENTIALS").unwrap_or_default();
    let (id, secret) = others.split_once(':').unwrap_or((key, SECRET));
    let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    sandbox.file(format!("credentials-{key}"), text)
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// How often a fault has happened.
#[derive(Clone)]
pub struct Fired(Arc<AtomicU64>);

impl Fired {
    /// The number.
    pub fn times(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn serve(state: &State, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(mut out) = stream.try_clone() else {
        return;
    };
    let mut input = BufReader::new(stream);
    while let Some(request) = http::read(&mut input) {
        if state.is_over.load(Ordering::SeqCst) {
            break;
        }
        let fault = fault_for(state, &request);
        if let Some(Fault::Endless(status)) = fault {
            stream_on(state, status, &mut out);
            break;
        }
        let pause = match fault {
            Some(Fault::Slow(whole)) => whole / 10,
            _ => Duration::ZERO,
        };
        let Some((bytes, goes_on)) = answer(state, &request, fault) else {
            break;
        };
        let sent = bytes.chunks(bytes.len().div_ceil(10)).all(|piece| {
            std::thread::sleep(pause);
            out.write_all(piece).is_ok()
        });
        if !sent || !goes_on {
            break;
        }
    }
    let _ = out.shutdown(Shutdown::Both);
}

/// The bytes to send, and whether the connection goes on; `None` ends it at once.
fn answer(state: &State, request: &Request, fault: Option<Fault>) -> Option<(Vec<u8>, bool)> {
    match fault {
        None | Some(Fault::Slow(_)) => {
            let answer = respond(state, request).to(request);
            Some((dated(state, answer).bytes(), true))
        }
        Some(Fault::Error(status, code)) => {
            let answer = Response::error(status, code, "as the test wants it").to(request);
            Some((dated(state, answer).bytes(), true))
        }
        Some(Fault::Echo(text)) => {
            let signed = request.header("authorization");
            let signature = signed.split_once("Signature=").map_or("", |(_, s)| s);
            locked(&state.echoed).push(signature.to_owned());
            let token = request.header("x-amz-security-token");
            let message = format!("{text} signed {signed} for {token}");
            let answer = Response::error(403, "AccessDenied", &message);
            Some((dated(state, answer).bytes(), true))
        }
        Some(Fault::ErrorIn200(code)) => {
            let answer = Response::error(200, code, "as the test wants it");
            Some((dated(state, answer).bytes(), true))
        }
        Some(Fault::Stranger(status)) => {
            let page = Response::new(status, "<html>no such page</html>");
            Some((page.with("Content-Type", "text/html").bytes(), true))
        }
        Some(Fault::NoAnswer) => {
            respond(state, request);
            None
        }
        Some(Fault::Overtaken(content)) => {
            let answer = dated(state, respond(state, request));
            locked(&state.keep).plant(&keep::key_of(request), content);
            Some((answer.bytes(), true))
        }
        Some(Fault::Reset) => None,
        Some(Fault::Truncated(length)) => {
            let answer = dated(state, respond(state, request));
            let cut = answer.body.len().saturating_sub(length);
            let mut bytes = answer.bytes();
            bytes.truncate(bytes.len() - cut);
            Some((bytes, false))
        }
        Some(Fault::Flipped(at)) => {
            let mut answer = dated(state, respond(state, request));
            // An error may be shorter.
            if let Some(byte) = answer.body.get_mut(at) {
                *byte ^= 1;
            }
            Some((answer.bytes(), true))
        }
        Some(Fault::Renamed(from, to)) => {
            let mut answer = dated(state, respond(state, request));
            let text = String::from_utf8(answer.body).unwrap();
            answer.body = text.replace(from, to).into_bytes();
            Some((answer.bytes(), true))
        }
        Some(Fault::Gzipped) => {
            let mut answer = dated(state, respond(state, request));
            answer.body = http::gzipped(&answer.body);
            Some((answer.with("Content-Encoding", "gzip").bytes(), true))
        }
        Some(Fault::Says(status, text)) => {
            let answer = dated(state, Response::new(status, text));
            Some((answer.bytes(), true))
        }
        Some(Fault::Stalled | Fault::Endless(_)) => {
            while !state.is_over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            None
        }
    }
}

/// An answer that ends when nobody takes it any more.
fn stream_on(state: &State, status: u16, out: &mut TcpStream) {
    let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n");
    let page = [b'x'; 64 << 10];
    let mut going = out.write_all(head.as_bytes()).is_ok();
    while going && !state.is_over.load(Ordering::SeqCst) {
        going = out.write_all(&page).is_ok();
        state.endless.fetch_add(page.len() as u64, Ordering::SeqCst);
    }
}

fn fault_for(state: &State, request: &Request) -> Option<Fault> {
    let line = request.line();
    let mut rules = locked(&state.rules);
    let rule = rules
        .iter_mut()
        .find(|r| r.times > 0 && line.contains(&r.holds))?;
    if rule.skip > 0 {
        rule.skip -= 1;
        return None;
    }
    rule.times -= 1;
    rule.fired.fetch_add(1, Ordering::SeqCst);
    let what = match &rule.fault {
        // Tests look for the text that it repeats, also in this log.
        Fault::Echo(_) => "Echo".to_owned(),
        fault => format!("{fault:?}"),
    };
    locked(&state.log).push(format!("{line} ({what})"));
    Some(rule.fault.clone())
}

fn now(state: &State) -> chrono::DateTime<chrono::Utc> {
    let ahead = locked(&state.manner).clock_ahead;
    chrono::Utc::now() + chrono::Duration::from_std(ahead).unwrap()
}

fn dated(state: &State, answer: Response) -> Response {
    let date = now(state).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    answer
        .with("Date", date)
        .with("x-amz-request-id", "0123456789")
}

fn respond(state: &State, request: &Request) -> Response {
    if request.path == "/credentials" {
        return issue(state);
    }
    let unsigned = match request.header("x-amz-content-sha256") {
        keep::UNSIGNED => " unsigned",
        _ => "",
    };
    locked(&state.log).push(request.line() + unsigned);
    if let Some(refused) = refused(state, request) {
        return refused;
    }
    let manner = locked(&state.manner).clone();
    let is_raced = |part| keep::key_of(request).contains(part);
    if manner.both_win.is_some_and(is_raced)
        && request.method == "PUT"
        && !request.header("if-none-match").is_empty()
    {
        return race(state, request, &manner);
    }
    locked(&state.keep).respond(request, &manner, now(state))
}

/// Everybody looks whether the name is free before anybody takes it.
fn race(state: &State, request: &Request, manner: &Manner) -> Response {
    let key = keep::key_of(request);
    if locked(&state.keep).objects.contains_key(&key) {
        return Response::error(412, "PreconditionFailed", "taken");
    }
    state.racing.fetch_add(1, Ordering::SeqCst);
    let until = Instant::now() + PATIENCE;
    while state.racing.load(Ordering::SeqCst) < 2 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    // Those who look meanwhile see it free, too.
    std::thread::sleep(Duration::from_millis(100));
    let unconditional = Manner {
        overwrites: true,
        ..manner.clone()
    };
    let answer = locked(&state.keep).respond(request, &unconditional, now(state));
    state.racing.fetch_sub(1, Ordering::SeqCst);
    answer
}

/// Who asks, when and where: by what is signed.
fn refused(state: &State, request: &Request) -> Option<Response> {
    let manner = locked(&state.manner).clone();
    let credential = request.header("authorization").split("Credential=").nth(1);
    let Some(scope) = credential.and_then(|c| c.split(',').next()) else {
        return Some(Response::error(403, "AccessDenied", "nobody signed this"));
    };
    let mut scope = scope.split('/');
    let (key, region) = (scope.next().unwrap_or(""), scope.nth(1).unwrap_or(""));
    if key != KEY && key != WRITER && !key.starts_with("TEMPORARY") {
        return Some(Response::error(403, "InvalidAccessKeyId", "no such key"));
    }
    let token = request.header("x-amz-security-token");
    let until = token.strip_prefix("until-").map(str::parse);
    let has_ended =
        until.is_some_and(|end| end.is_ok_and(|end: i64| now(state).timestamp() >= end));
    if has_ended {
        state.ended.fetch_add(1, Ordering::SeqCst);
    }
    if has_ended || manner.token.as_ref().is_some_and(|valid| token != valid) {
        return Some(Response::error(
            400,
            "ExpiredToken",
            "the token has expired",
        ));
    }
    if region != manner.region {
        let answer = Response::error(301, "PermanentRedirect", "elsewhere");
        return Some(answer.with("x-amz-bucket-region", manner.region));
    }
    let signed =
        chrono::NaiveDateTime::parse_from_str(request.header("x-amz-date"), "%Y%m%dT%H%M%SZ");
    let skew = signed.map(|t| (t.and_utc() - now(state)).num_minutes().abs());
    if skew.is_ok_and(|minutes| minutes >= 15) {
        return Some(Response::error(
            403,
            "RequestTimeTooSkewed",
            "too far from the time here",
        ));
    }
    if !request.path.starts_with(&format!("/{BUCKET}")) {
        return Some(Response::error(404, "NoSuchBucket", "no such bucket"));
    }
    if key == WRITER && request.method == "DELETE" && request.query("uploadId").is_none() {
        return Some(Response::error(403, "AccessDenied", "no right to delete"));
    }
    None
}

/// A session as the provider of a container's credentials gives it; those before it are over.
fn issue(state: &State) -> Response {
    let number = state.issued.fetch_add(1, Ordering::SeqCst) + 1;
    let token = format!("token-{number}");
    locked(&state.manner).token = Some(token.clone());
    let end = (chrono::Utc::now() + chrono::Duration::hours(1)).format("%Y-%m-%dT%H:%M:%SZ");
    Response::new(
        200,
        format!(
            "{{\"AccessKeyId\":\"TEMPORARY{number}\",\"SecretAccessKey\":\"{SECRET}\",\"Token\":\"{token}\",\"Expiration\":\"{end}\"}}"
        ),
    )
    .with("Content-Type", "application/json")
}
