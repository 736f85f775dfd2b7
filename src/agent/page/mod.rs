//! The status page: what the last look found, how the jobs stand, and what a restore to a moment would do.
//!
//! It has no knowledge of its own. It shows the file that the last look wrote and the records of jobs, and has `pitr plan` run. It reads nothing
//! while nobody asks. Names and messages come from repositories and servers: the script makes text of them, never markup.

mod door;
mod plan;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::to_bytes;
use axum::extract::{RawQuery, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use rustls::ServerConfig;
use serde_json::json;

use self::door::{Admission, Door};
use super::load::{Check, Loaded, Tenant};
use super::{child, jobs, load, observed};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::lock::locked;
use crate::operate::runs::{RunId, Runs};
use crate::operate::session::Session;
use crate::operate::underway;
use crate::release;
use crate::repo::event;

/// A file of what was found is old after so long.
const OLD: Duration = Duration::from_secs(600);
/// A form is no longer.
const FORM_BYTES: usize = 4096;
/// How long it may take to come.
const FORM_TIME: Duration = Duration::from_secs(10);
/// A wrong token is answered after so long.
const WRONG: Duration = Duration::from_secs(1);
/// The record of a run that was asked for comes so soon, also on a busy host.
const BEGUN: Duration = Duration::from_secs(10);
/// How often it is looked for.
const GLANCE: Duration = Duration::from_millis(50);
/// Nothing comes from elsewhere, nothing goes elsewhere, and no text becomes a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];
const LOGIN: &str = include_str!("login.html");
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
/// The format of metrics, and of what is no page.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The content of the page: the agent's own configuration, and those of its tenants.
pub struct View {
    own: Loaded,
    tenants: Vec<Tenant>,
    check: Check,
}

impl View {
    /// Reads everything.
    ///
    /// # Errors
    /// Those of [`load::load`]. A tenant's trouble is shown where the tenant is.
    pub fn read(session: &Session, check: Check) -> Result<View> {
        let own = load::load(session, check)?;
        let tenants = load::tenants(&own, &session.environment, check);
        Ok(View {
            own,
            tenants,
            check,
        })
    }

    /// The one that a query names, else the agent's own.
    fn of(&self, query: &str) -> Result<&Loaded> {
        let name = value(query, "tenant");
        if name.is_empty() {
            return Ok(&self.own);
        }
        let found = self.tenants.iter().find(|tenant| tenant.name == name);
        let found = found.ok_or_else(|| err!(Usage, "there is no tenant of this name"))?;
        let loaded = found.loaded.as_ref();
        loaded.map_err(|e| err!(Config, "tenant \"{name}\": {e}"))
    }
}

/// The things that are known of a client since its connection was made.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// It has shown a certificate of the authority.
    pub has_certificate: bool,
}

/// The page of an agent.
pub struct Page {
    host: Host,
    /// Stays until the agent is started again.
    listen: SocketAddr,
    /// None where the configuration wants no page.
    door: Mutex<Option<Arc<Door>>>,
    /// Holds for metrics, too. None where the configuration wants no TLS.
    tls: Mutex<Option<Arc<ServerConfig>>>,
    view: Mutex<View>,
    /// One plan at a time: it reads a repository.
    is_planning: AtomicBool,
}

impl Page {
    /// Makes the page of a configuration.
    ///
    /// # Errors
    /// Those of its token and its certificates.
    pub fn new(host: Host, view: View, listen: SocketAddr) -> Result<Page> {
        let tls = tls::config(&view.own.settings.agent.tls)?;
        let door = opened(&host, &view.own, listen)?;
        Ok(Page {
            host,
            listen,
            door: Mutex::new(door),
            tls: Mutex::new(tls),
            view: Mutex::new(view),
            is_planning: AtomicBool::new(false),
        })
    }

    /// Takes another configuration, and reads certificates again. The directory of what is remembered stays.
    ///
    /// # Errors
    /// Those of its token and its certificates: then everything stays.
    pub fn reload(&self, mut view: View) -> Result<()> {
        let tls = tls::config(&view.own.settings.agent.tls)?;
        let door = opened(&self.host, &view.own, self.listen)?;
        // No connection is made by the old TLS once the new door is there.
        *locked(&self.tls) = tls;
        *locked(&self.door) = door;
        let mut shown = locked(&self.view);
        view.own.state_dir.clone_from(&shown.own.state_dir);
        *shown = view;
        Ok(())
    }

    /// The directory of what is remembered of the one that a query names, and how old the results of its looks may be.
    ///
    /// # Errors
    /// `Usage` for a tenant that does not exist, `Config` for one whose configuration is wrong.
    pub fn looks(&self, query: &str, least: Duration) -> Result<(PathBuf, Duration)> {
        let view = locked(&self.view);
        let loaded = view.of(query)?;
        let oldest = loaded.settings.agent.oldest(least);
        Ok((loaded.state_dir.clone(), oldest))
    }

    /// The TLS of the next connection.
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        locked(&self.tls).clone()
    }

    /// Everything that is known, in one object.
    fn state(&self, query: &str, has_actions: bool) -> Result<(StatusCode, String)> {
        let now = self.host.now();
        let (state_dir, oldest) = self.looks(query, OLD)?;
        let (jobs, tenants) = {
            let view = locked(&self.view);
            let tenants: Vec<String> = view.tenants.iter().map(|t| t.name.clone()).collect();
            (jobs::shown(view.of(query)?, now)?, tenants)
        };
        let running: Vec<_> = underway::look_in(&state_dir)
            .iter()
            .map(|one| json!({ "line": one.line(), "percent": one.percent() }))
            .collect();
        let failed = |e| Error::from_io("read what was found", e);
        let (observed, is_old) = match observed::read(&observed::file(&state_dir)) {
            Ok((text, modified)) => {
                // A clock that was set back makes the age unknown, and no younger.
                (text, modified.elapsed().unwrap_or(Duration::MAX) > oldest)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => ("null".to_owned(), false),
            Err(e) => return Err(failed(e)),
        };
        let head = json!({
            "now": now, "host": event::host(), "version": release::NUMBER, "actions": has_actions, "is_old": is_old, "jobs": jobs, "running": running, "tenants": tenants
        });
        let head = head.to_string();
        let head = head.strip_suffix('}').unwrap_or_default();
        // The file is as large as the history is long: it is handed on as it is.
        Ok((StatusCode::OK, format!("{head},\"observed\":{observed}}}")))
    }

    fn plan(&self, query: &str) -> Result<(StatusCode, String)> {
        let (settings, command) = {
            let view = locked(&self.view);
            let loaded = view.of(query)?;
            let command =
                child::command_on_demand(&loaded.settings, view.check, &loaded.state_dir)?;
            (loaded.settings.clone(), command)
        };
        if self.is_planning.swap(true, Ordering::AcqRel) {
            return Err(err!(Locked, "another plan is being made: ask again"));
        }
        let is_asked = |kind: &&str| !value(query, kind).is_empty();
        let kind = plan::KINDS.into_iter().find(is_asked).unwrap_or("time");
        let asked = (kind, value(query, kind));
        let made = plan::make((&settings, command), value(query, "cluster"), asked);
        self.is_planning.store(false, Ordering::Release);
        Ok((StatusCode::OK, made?.to_string()))
    }

    /// Starts a job, as `pitr agent run` would.
    fn run(&self, query: &str) -> Result<(StatusCode, String)> {
        let name = value(query, "job");
        let (settings, check, state_dir) = {
            let view = locked(&self.view);
            let loaded = view.of(query)?;
            load::named(&loaded.settings, name)?;
            let state_dir = loaded.state_dir.clone();
            (loaded.settings.clone(), view.check, state_dir)
        };
        let runs = Runs::of(&state_dir, name);
        let id = runs.by_hand(self.host.now(), self.host.random())?;
        if runs.is_locked()? {
            return Err(err!(Locked, "a run of job \"{name}\" is under way"));
        }
        let mut child = child::start_by_hand(&settings, (check, &state_dir), name, id)?;
        let begun = begun(&mut child, (&runs, id), name);
        // It keeps its record itself; this only buries it.
        std::thread::spawn(move || child.wait());
        begun?;
        Ok((
            StatusCode::ACCEPTED,
            json!({ "started": name, "scheduled": id.scheduled }).to_string(),
        ))
    }
}

/// Waits for the record of a run that was started. Without it nothing runs, and nobody would hear why.
fn begun(child: &mut Child, (runs, id): (&Runs, RunId), job: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        // One that has ended left its record before.
        let ended = child
            .try_wait()
            .map_err(|e| Error::from_io("wait for a run", e))?;
        if runs.has_begun(id)? {
            return Ok(());
        }
        if let Some(status) = ended {
            return Err(match status.success() {
                true => err!(Locked, "another run of job \"{job}\" is under way"),
                false => err!(
                    Config,
                    "job \"{job}\" did not begin: its process ended with {status}, and the log of the agent says why"
                ),
            });
        }
        if since.elapsed() >= BEGUN {
            return Err(err!(
                Deadline,
                "job \"{job}\" has not begun yet: pitr agent status shows whether it does"
            ));
        }
        std::thread::sleep(GLANCE);
    }
}

fn opened(host: &Host, loaded: &Loaded, listen: SocketAddr) -> Result<Option<Arc<Door>>> {
    let page = &loaded.settings.page;
    if !page.is_enabled {
        return Ok(None);
    }
    let door = Door::new(page, &loaded.settings.agent.tls, listen)?;
    if door.is_exposed() {
        host.progress.warn(
            "the token of the page crosses the network unencrypted: set tls in [agent], or put a proxy with TLS before it",
        );
    }
    Ok(Some(Arc::new(door)))
}

/// A value of a query or form. Values that matter here need no escapes, and one that has some is no name of anything.
fn value<'q>(query: &'q str, name: &str) -> &'q str {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut found = pairs.filter(|(key, _)| *key == name);
    found.next().map_or("", |(_, value)| value)
}

/// The paths of the page, each with those who may ask for it.
pub fn routes(page: &Arc<Page>) -> Router {
    let css = text("text/css; charset=utf-8", include_str!("page.css"));
    let js = text("text/javascript; charset=utf-8", include_str!("page.js"));
    Router::new()
        .route("/", get(text(HTML, include_str!("page.html"))))
        .route("/api/state", get(state))
        .route("/api/plan", get(plan))
        .route("/api/run", post(run))
        .route_layer(from_fn(admit))
        .route("/page.css", get(css))
        .route("/page.js", get(js))
        .route("/login", get(text(HTML, LOGIN)).post(login))
        .method_not_allowed_fallback(|| async {
            let why = "this is not how it is asked for";
            refused(StatusCode::METHOD_NOT_ALLOWED, why)
        })
        .layer(from_fn_with_state(Arc::clone(page), guard))
        .with_state(Arc::clone(page))
}

/// Answers a path that nothing is served at.
pub async fn unknown(method: Method) -> Response {
    match method {
        Method::GET | Method::HEAD => plain(
            StatusCode::NOT_FOUND,
            "there are /, /metrics, /healthz and /readyz\n",
        ),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n"),
    }
}

/// Hands each request the door of now, and each answer what keeps others out. Without a door there is no page.
async fn guard(State(page): State<Arc<Page>>, mut request: Request, next: Next) -> Response {
    let Some(door) = locked(&page.door).clone() else {
        return unknown(request.method().clone()).await;
    };
    request.extensions_mut().insert(door);
    (HEADERS, next.run(request).await).into_response()
}

async fn admit(Extension(door): Extension<Arc<Door>>, request: Request, next: Next) -> Response {
    let client = request.extensions().get::<Client>();
    let has_certificate = client.is_some_and(|client| client.has_certificate);
    match door.admit(request.headers(), has_certificate) {
        Admission::In => next.run(request).await,
        Admission::Login if request.uri().path() == "/" => to("login").into_response(),
        Admission::Login => {
            let answer = refused(StatusCode::UNAUTHORIZED, "a token is needed");
            ([(WWW_AUTHENTICATE, "Bearer")], answer).into_response()
        }
        Admission::Closed(why) => {
            let answer = refused(StatusCode::FORBIDDEN, &format!("the page is closed: {why}"));
            ([(CONNECTION, "close")], answer).into_response()
        }
    }
}

async fn state(
    State(page): State<Arc<Page>>,
    Extension(door): Extension<Arc<Door>>,
    RawQuery(query): RawQuery,
) -> Response {
    apart(query, move |query| page.state(query, door.has_actions())).await
}

async fn plan(State(page): State<Arc<Page>>, RawQuery(query): RawQuery) -> Response {
    apart(query, move |query| page.plan(query)).await
}

async fn run(
    State(page): State<Arc<Page>>,
    Extension(door): Extension<Arc<Door>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    if !door.has_actions() {
        return refused(
            StatusCode::FORBIDDEN,
            "the page starts nothing without actions = true, and token_file or a certificate of the client",
        );
    }
    if !Door::is_own(&headers) {
        return refused(StatusCode::FORBIDDEN, "another site asks for this");
    }
    apart(query, move |query| page.run(query)).await
}

/// Answers on another thread than the one that serves: with files and processes.
async fn apart(
    query: Option<String>,
    answer: impl FnOnce(&str) -> Result<(StatusCode, String)> + Send + 'static,
) -> Response {
    let done = tokio::task::spawn_blocking(move || answer(&query.unwrap_or_default()));
    match done.await {
        Ok(Ok((status, body))) => (status, [(CONTENT_TYPE, JSON)], body).into_response(),
        Ok(Err(e)) => refused(status_of(&e), &e.to_string()),
        Err(_) => refused(StatusCode::INTERNAL_SERVER_ERROR, "the answer was lost"),
    }
}

async fn login(Extension(door): Extension<Arc<Door>>, request: Request) -> Response {
    if !Door::is_own(request.headers()) {
        return refused(StatusCode::FORBIDDEN, "another site asks for this");
    }
    let body = to_bytes(request.into_body(), FORM_BYTES);
    let Ok(Ok(body)) = tokio::time::timeout(FORM_TIME, body).await else {
        return refused(StatusCode::BAD_REQUEST, "that is no form");
    };
    let form = String::from_utf8_lossy(&body);
    match door.cookie(value(&form, "token")) {
        Some(cookie) => ([(SET_COOKIE, cookie)], to(".")).into_response(),
        None => {
            tokio::time::sleep(WRONG).await;
            let again = LOGIN.replace(
                "<form",
                "<p class=\"bad\" role=\"alert\">That is not the token.</p>\n<form",
            );
            (StatusCode::UNAUTHORIZED, [(CONTENT_TYPE, HTML)], again).into_response()
        }
    }
}

fn status_of(e: &Error) -> StatusCode {
    match e.code() {
        Code::Usage => StatusCode::BAD_REQUEST,
        Code::Locked => StatusCode::CONFLICT,
        Code::Deadline => StatusCode::GATEWAY_TIMEOUT,
        Code::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An answer of plain text.
pub fn plain(status: StatusCode, body: impl IntoResponse) -> Response {
    (status, [(CONTENT_TYPE, TEXT)], body).into_response()
}

/// A file of the page.
fn text(kind: &'static str, body: &'static str) -> impl IntoResponse + Clone {
    ([(CONTENT_TYPE, kind)], body)
}

fn refused(status: StatusCode, why: &str) -> Response {
    let body = json!({ "error": why }).to_string();
    (status, [(CONTENT_TYPE, JSON)], body).into_response()
}

fn to(place: &'static str) -> impl IntoResponse {
    (
        StatusCode::SEE_OTHER,
        [(CONTENT_TYPE, HTML), (LOCATION, place)],
    )
}
