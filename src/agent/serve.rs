//! `/metrics`, `/healthz`, `/readyz` and the status page over HTTP.
//!
//! The answer was collected by another process, and stands in a file. A file that grew old is not served: its values would look like those
//! of now.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::page::{self, Page};
use super::{observe, observed};
use crate::config::Settings;
use crate::err;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// The place where it listens, unless the configuration names another one.
const LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 9870);
/// A file of metrics that is older is not served.
const OLD: Duration = Duration::from_secs(600);
/// A file that is older says nothing about whether the repositories answer, unless looks are rarer.
const READY: Duration = Duration::from_secs(120);
/// How often another try is made to listen.
const RETRY: Duration = Duration::from_secs(10);
/// How long a client may take to ask.
const CLIENT: Duration = Duration::from_secs(10);

/// How long a conversation may take with all its questions and answers.
const CONVERSATION: Duration = Duration::from_secs(120);
/// So many clients are served at once. More would take the descriptors that jobs and looks are started with.
const CLIENTS: usize = 64;
/// The pause before the next client when one could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Everything that is served.
#[derive(Clone)]
pub struct Served {
    page: Arc<Page>,
    routes: Router,
}

/// The metrics of what a page shows.
struct Metrics {
    page: Arc<Page>,
}

/// The address of a configuration.
pub fn address(settings: &Settings) -> SocketAddr {
    settings
        .agent
        .listen
        .unwrap_or_else(|| SocketAddr::from(LISTEN))
}

impl Served {
    /// Serves this page, and the metrics of what it shows.
    pub fn new(page: Arc<Page>) -> Served {
        let told = Metrics {
            page: Arc::clone(&page),
        };
        let routes = Router::new()
            .route(
                "/healthz",
                get(async || page::plain(StatusCode::OK, "ok\n")),
            )
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .method_not_allowed_fallback(page::unknown)
            .with_state(Arc::new(told))
            .merge(page::routes(&page))
            .fallback(page::unknown);
        Served { page, routes }
    }

    /// Serves on a thread of its own. A port that is taken keeps no job from running: it is tried again.
    pub fn begin(&self, address: SocketAddr, stop: Arc<AtomicBool>, progress: Arc<dyn Progress>) {
        let served = self.clone();
        std::thread::spawn(move || {
            let mut is_told = false;
            while !stop.load(Ordering::Relaxed) {
                if let Err(e) = served.serve(address)
                    && !is_told
                {
                    progress.warn(&format!(
                        "metrics are not served, and it is tried again: {e}"
                    ));
                    is_told = true;
                }
                std::thread::sleep(RETRY);
            }
        });
    }

    fn serve(&self, address: SocketAddr) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|e| Error::from_io("start a runtime", e))?;
        let failed = |e| Error::from_io(format!("listen at {address}"), e);
        runtime.block_on(async {
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let room = Arc::new(Semaphore::new(CLIENTS));
            loop {
                let place = Arc::clone(&room).acquire_owned().await;
                // A client that broke off, or a lack of descriptors, keeps no other one out.
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let served = self.clone();
                tokio::spawn(async move {
                    // A client that takes longer is its own loss.
                    let _ = tokio::time::timeout(CONVERSATION, served.admit(stream)).await;
                    drop(place);
                });
            }
        })
    }

    /// Makes the connection with one client: by TLS where the configuration has it. Whoever does not come to an end there gets no answer.
    async fn admit(self, stream: TcpStream) {
        let Some(tls) = self.page.tls() else {
            return self.converse(stream).await;
        };
        let accepted = tokio::time::timeout(CLIENT, TlsAcceptor::from(tls).accept(stream)).await;
        if let Ok(Ok(stream)) = accepted {
            self.converse(stream).await;
        }
    }

    async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let answer = TowerToHyperService::new(self.routes);
        // A client that breaks off is its own loss.
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(CLIENT)
            .serve_connection(TokioIo::new(stream), answer)
            .await;
    }
}

async fn readyz(State(metrics): State<Arc<Metrics>>, RawQuery(query): RawQuery) -> Response {
    match metrics.ready(&query.unwrap_or_default()) {
        Ok(()) => page::plain(StatusCode::OK, "ready\n"),
        Err(e) => page::plain(StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")),
    }
}

async fn metrics(State(metrics): State<Arc<Metrics>>, RawQuery(query): RawQuery) -> Response {
    match metrics.read(&query.unwrap_or_default(), OLD) {
        Ok(text) => page::plain(StatusCode::OK, text),
        Err(e) => page::plain(StatusCode::SERVICE_UNAVAILABLE, format!("# {e}\n")),
    }
}

impl Metrics {
    /// The metrics, unless they are older than this, and than two intervals of looks: the file of the look before is there until the next one
    /// has looked.
    fn read(&self, query: &str, least: Duration) -> Result<String> {
        let failed = |e| Error::from_io("read the metrics", e);
        let (state_dir, limit) = self.page.looks(query, least)?;
        let file = observe::file(&state_dir);
        let (text, modified) = observed::read(&file).map_err(failed)?;
        // A clock that was set back makes the age unknown, and no younger.
        let age = modified.elapsed().unwrap_or(Duration::MAX);
        if age > limit {
            return Err(err!(
                Unreachable,
                "the metrics are old: nobody has collected them lately"
            ));
        }
        Ok(text)
    }

    fn ready(&self, query: &str) -> Result<()> {
        let text = self.read(query, READY)?;
        let is_down = |line: &&str| line.starts_with("pitr_repo_up{") && line.ends_with(" 0");
        match text.lines().find(is_down) {
            None => Ok(()),
            Some(line) => Err(err!(Unreachable, "a repository does not answer: {line}")),
        }
    }
}
