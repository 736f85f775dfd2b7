//! `/metrics`, `/healthz`, `/readyz` and the status page over HTTP.
//!
//! The answer was collected by another process, and stands in a file. A file that grew old is not served: its values would look like those
//! of now.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::page::{self, Client, Page};
use super::{observe, observed};
use crate::config::Settings;
use crate::err;
use crate::error::{Error, Result};
use crate::lock::locked;
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
/// So many of them of one address: who asks slowly must not keep the others out.
const CLIENTS_OF_ADDRESS: usize = CLIENTS / 2;
/// So many clients wait for a place of their address. They have places of the whole meanwhile, and leave some to others.
const WAITING: usize = CLIENTS / 4;
/// How long one waits for such a place: behind a proxy all clients have one address.
const PATIENCE: Duration = Duration::from_secs(2);
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

/// How many clients of each address are served.
#[derive(Default)]
struct Shares(Mutex<BTreeMap<IpAddr, usize>>);

/// The place of a client among those of its address, until it is dropped.
struct Share {
    all: Arc<Shares>,
    address: IpAddr,
}

impl Shares {
    /// None where this address has all that it may have. This host may have everything: a proxy on it stands for many clients.
    fn take(self: &Arc<Self>, client: IpAddr) -> Option<Share> {
        let client = client.to_canonical();
        // A host of IPv6 has as many addresses as it likes.
        let address = match client {
            IpAddr::V6(own) => IpAddr::V6((own.to_bits() & !u128::from(u64::MAX)).into()),
            own => own,
        };
        let mut all = locked(&self.0);
        let count = all.entry(address).or_default();
        if *count >= CLIENTS_OF_ADDRESS && !client.is_loopback() {
            return None;
        }
        *count += 1;
        let all = Arc::clone(self);
        Some(Share { all, address })
    }

    /// As [`take`](Shares::take); waits for a while where too many others do not wait already.
    async fn wait(self: &Arc<Self>, client: IpAddr, waiting: &Semaphore) -> Option<Share> {
        if let Some(share) = self.take(client) {
            return Some(share);
        }
        let _turn = waiting.try_acquire().ok()?;
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            tokio::time::sleep(PAUSE).await;
            if let Some(share) = self.take(client) {
                return Some(share);
            }
        }
        None
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = locked(&self.all.0);
        let left = all.get(&self.address).map_or(0, |count| count - 1);
        match left {
            0 => all.remove(&self.address),
            _ => all.insert(self.address, left),
        };
    }
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
            let shares = Arc::new(Shares::default());
            let waiting = Arc::new(Semaphore::new(WAITING));
            loop {
                let place = Arc::clone(&room).acquire_owned().await;
                // A client that broke off, or a lack of descriptors, keeps no other one out.
                let Ok((stream, client)) = listener.accept().await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let (served, shares) = (self.clone(), Arc::clone(&shares));
                let waiting = Arc::clone(&waiting);
                tokio::spawn(async move {
                    if let Some(share) = shares.wait(client.ip(), &waiting).await {
                        // A client that takes longer is its own loss.
                        let _ = tokio::time::timeout(CONVERSATION, served.admit(stream)).await;
                        drop(share);
                    }
                    drop(place);
                });
            }
        })
    }

    /// Makes the connection with one client: by TLS where the configuration has it. Whoever does not come to an end there gets no answer.
    async fn admit(self, stream: TcpStream) {
        let Some(tls) = self.page.tls() else {
            return self.converse(stream, false).await;
        };
        let accepted = tokio::time::timeout(CLIENT, TlsAcceptor::from(tls).accept(stream)).await;
        if let Ok(Ok(stream)) = accepted {
            let shown = stream.get_ref().1.peer_certificates();
            let has_certificate = shown.is_some_and(|chain| !chain.is_empty());
            self.converse(stream, has_certificate).await;
        }
    }

    async fn converse(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        has_certificate: bool,
    ) {
        // The page may want certificates of clients while this connection lasts.
        let client = Client { has_certificate };
        let answer = TowerToHyperService::new(self.routes.layer(Extension(client)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w75_one_address_has_half_of_the_places_at_most() {
        let shares = Arc::new(Shares::default());
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let take = |text: &str| shares.take(at(text));
        let mut taken: Vec<Share> = (0..CLIENTS_OF_ADDRESS)
            .map(|n| take(&format!("2001:db8::{n:x}")).unwrap())
            .collect();
        assert!(take("2001:db8::ffff:1").is_none(), "it is the same network");
        let other = take("2001:db8:0:1::1");
        assert!(other.is_some() && take("10.0.0.1").is_some());
        taken.pop();
        assert!(take("2001:db8::1").is_some(), "one has ended");
        drop((taken, other));
        assert!(locked(&shares.0).is_empty());
        // An address of IPv4 is itself, however it comes.
        let _all: Vec<Share> = (0..CLIENTS_OF_ADDRESS)
            .map(|_| take("::ffff:10.0.0.1").unwrap())
            .collect();
        assert!(take("10.0.0.1").is_none() && take("10.0.0.2").is_some());
        // A proxy on this host stands for many.
        let own: Vec<_> = (0..=CLIENTS_OF_ADDRESS)
            .map(|_| take("127.0.0.1"))
            .collect();
        assert!(own.iter().all(Option::is_some));
    }

    #[test]
    fn w75_a_client_waits_a_while_for_a_place_of_its_address() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let shares = Arc::new(Shares::default());
        let proxy = "10.0.0.1".parse::<IpAddr>().unwrap();
        let mut taken: Vec<Share> = (0..CLIENTS_OF_ADDRESS)
            .map(|_| shares.take(proxy).unwrap())
            .collect();
        let (some, none) = (Semaphore::new(1), Semaphore::new(0));
        runtime.block_on(async {
            assert!(shares.wait(proxy, &some).await.is_none(), "none has ended");
            let ends = async {
                tokio::time::sleep(2 * PAUSE).await;
                taken.pop();
            };
            let (share, ()) = tokio::join!(shares.wait(proxy, &some), ends);
            assert!(share.is_some(), "one has ended");
            // Those that wait are few.
            assert!(shares.wait(proxy, &none).await.is_none());
        });
    }
}
