//! The client of one service with one set of settings, shared by all stores of the process that are configured alike.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::credentials::Credentials;
use crate::config::{BlobService, S3Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::store::http::SIGN_BYTES;
use crate::store::http::attempt::PIECE_BYTES;
use crate::store::http::calm::Calm;
use crate::store::http::secrets::Secrets;
use crate::store::life;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that nobody uses is closed before the service closes it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Google's server.
const GOOGLE: &str = "https://storage.googleapis.com";

pub(super) type Http = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, SdkBody>;

/// The state that all users of one service with one set of credentials share.
pub(super) struct Client {
    pub(super) service: BlobService,
    pub(super) settings: S3Settings,
    /// Scheme, host, and what stands before the container.
    pub(super) base: String,
    pub(super) http: Http,
    pub(super) calm: Calm,
    pub(super) secrets: Arc<Secrets>,
    credentials: Mutex<Credentials>,
}

impl Client {
    /// Returns the client for these settings, made where there is none yet.
    ///
    /// # Errors
    /// `Config` for settings that cannot be used.
    pub(super) fn open(service: &BlobService, settings: &S3Settings) -> Result<Arc<Client>> {
        static CLIENTS: Mutex<Vec<Arc<Client>>> = Mutex::new(Vec::new());
        let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |c: &&Arc<Client>| c.service == *service && c.settings == *settings;
        if let Some(client) = clients.iter().find(known) {
            return Ok(Arc::clone(client));
        }
        let http = http(settings)?;
        let (credentials, hidden) = Credentials::find(service, settings, &http)?;
        let secrets = Arc::<Secrets>::default();
        for secret in &hidden {
            secrets.remember(secret);
        }
        let client = Arc::new(Client {
            base: base(service, settings),
            service: service.clone(),
            settings: settings.clone(),
            http,
            calm: Calm::default(),
            secrets,
            credentials: Mutex::new(credentials),
        });
        clients.push(Arc::clone(&client));
        Ok(client)
    }

    pub(super) fn credentials(&self) -> Credentials {
        let credentials = self.credentials.lock();
        credentials.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks for credentials anew: those in use were not accepted.
    pub(super) fn renew(&self) -> Result<()> {
        let (credentials, hidden) = Credentials::find(&self.service, &self.settings, &self.http)?;
        for secret in &hidden {
            self.secrets.remember(secret);
        }
        let mut held = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *held = credentials;
        Ok(())
    }
}

fn base(service: &BlobService, settings: &S3Settings) -> String {
    match (service, &settings.endpoint, settings.path_style) {
        (BlobService::Azure { account }, None, _) => {
            format!("https://{account}.blob.core.windows.net")
        }
        // So do emulators, which have no name for each account.
        (BlobService::Azure { account }, Some(endpoint), true) => format!("{endpoint}/{account}"),
        (_, Some(endpoint), _) => endpoint.clone(),
        (BlobService::Google, None, _) => GOOGLE.to_owned(),
    }
}

fn http(settings: &S3Settings) -> Result<Http> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| err!(Internal, "TLS cannot be set up").source(e))?
        .with_root_certificates(roots(settings)?)
        .with_no_client_auth();
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(
        hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            // Whether a request may be sent again is known here alone.
            .retry_canceled_requests(false)
            .build(connector),
    )
}

/// The configured certificates, else the system's.
fn roots(settings: &S3Settings) -> Result<rustls::RootCertStore> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let Some(file) = &settings.ca_file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let doing = || format!("read certificates \"{}\"", file.display());
    let pem =
        std::fs::read(file).map_err(|e| Error::from_io(doing(), e).with_code(Code::Config))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate
            .map_err(|e| e.to_string())
            .and_then(|c| roots.add(c).map_err(|e| e.to_string()));
        added.map_err(|e| {
            err!(Config, "it holds something else than certificates: {e}").context(doing())
        })?;
    }
    match roots.is_empty() {
        true => Err(err!(Config, "it holds no certificate").context(doing())),
        false => Ok(roots),
    }
}

/// Collects a body that is watched, of at most so many bytes.
///
/// # Errors
/// Says how it ended before its end.
pub(super) async fn bounded<B>(body: B, most: usize) -> std::result::Result<Bytes, String>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::with_capacity(most.min(PIECE_BYTES));
    let mut unsigned = 0;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| format!("the answer broke off after {} bytes: {e}", bytes.len()))?;
        let Ok(piece) = frame.into_data() else {
            continue;
        };
        if bytes.len() + piece.len() > most {
            return Err(format!("the answer is longer than {most} bytes"));
        }
        bytes.extend_from_slice(&piece);
        unsigned += piece.len();
        if unsigned >= SIGN_BYTES {
            unsigned = 0;
            life::sign();
        }
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_the_account_before_or_behind_its_host() {
        let azure = BlobService::Azure {
            account: "acc".into(),
        };
        let settings = |endpoint: Option<&str>, path_style| S3Settings {
            endpoint: endpoint.map(str::to_owned),
            path_style,
            ..S3Settings::default()
        };
        let of = |s: &S3Settings| base(&azure, s);
        assert_eq!(
            of(&settings(None, false)),
            "https://acc.blob.core.windows.net"
        );
        assert_eq!(
            of(&settings(Some("http://[::1]:1"), true)),
            "http://[::1]:1/acc"
        );
        assert_eq!(of(&settings(Some("https://x.y"), false)), "https://x.y");
        assert_eq!(base(&BlobService::Google, &settings(None, false)), GOOGLE);
    }
}
