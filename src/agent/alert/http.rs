//! One request over HTTP or HTTPS. Errors have the host at most: the rest of the URL of a webhook is its secret.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::err;
use crate::error::{Error, Result};

/// Asks for a URL; any status but one of success is an error.
pub(super) fn get(url: &str, deadline: Duration) -> Result<()> {
    request(url, None, deadline)
}

/// Sends a body of JSON; any status but one of success is an error.
pub(super) fn post(url: &str, body: Vec<u8>, deadline: Duration) -> Result<()> {
    request(url, Some(body), deadline)
}

fn request(url: &str, body: Option<Vec<u8>>, deadline: Duration) -> Result<()> {
    let uri: Uri = url
        .parse()
        .map_err(|_| err!(Config, "the url of the sink is none"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Error::from_io("start a runtime", e))?;
    let host = uri.host().unwrap_or_default().to_owned();
    let sent =
        runtime.block_on(async { tokio::time::timeout(deadline, send(&uri, &host, body)).await });
    // A resolver that hangs holds a thread of the runtime: it is not waited for.
    runtime.shutdown_background();
    sent.unwrap_or_else(|_| {
        Err(err!(
            Deadline,
            "\"{host}\" has not answered for {} s",
            deadline.as_secs()
        ))
    })
}

async fn send(uri: &Uri, host: &str, body: Option<Vec<u8>>) -> Result<()> {
    let is_secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => {
            return Err(err!(
                Config,
                "the url of the sink begins with neither https:// nor http://"
            ));
        }
    };
    let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await;
    let stream = stream.map_err(|e| err!(Unreachable, "\"{host}\" cannot be reached").source(e))?;
    if !is_secure {
        return exchange(stream, uri, host, body).await;
    }
    let name = ServerName::try_from(bare.to_owned())
        .map_err(|_| err!(Config, "\"{host}\" is no name of a host"))?;
    let secured = connector()?.connect(name, stream).await;
    let secured =
        secured.map_err(|e| err!(Unreachable, "no secure connection with \"{host}\"").source(e))?;
    exchange(secured, uri, host, body).await
}

fn connector() -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| err!(Internal, "TLS cannot be set up").source(e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn exchange<S>(stream: S, uri: &Uri, host: &str, body: Option<Vec<u8>>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed =
        |e: hyper::Error| err!(Unreachable, "\"{host}\" does not take the alert").source(e);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(connection);
    let authority = uri.authority().map_or(host, |a| a.as_str());
    // A name and a password before the host are no part of its name.
    let authority = authority.rsplit('@').next().unwrap_or(authority);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = match body {
        Some(_) => Request::post(path).header(CONTENT_TYPE, "application/json"),
        None => Request::get(path),
    };
    let request = request
        .header(HOST, authority)
        .header(USER_AGENT, concat!("pitr/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|_| err!(Config, "the url of the sink is none"))?;
    let response = sender.send_request(request).await.map_err(failed)?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(err!(Server, "\"{host}\" answers {status}")),
    }
}
