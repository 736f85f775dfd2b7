//! The certificate of a server: its description where it was not trusted, for the client reports the reason alone, and its end.
//!
//! A connection is made for that alone. Nothing is sent over it: its handshake fails at the very certificate that it is made for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use x509_cert::der::Decode;

use crate::pg::time::TimestampTz;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// No name is shown longer.
const SHOWN: usize = 200;

/// Returns a description of the certificate of the server at an `https` URL; none if it shows none that can be read.
pub(super) async fn shown(url: &str) -> Option<String> {
    describe(&of_server(url).await?)
}

/// Returns the last moment at which the certificate of the server at an `https` URL is valid; none if it shows none that can be read.
pub(super) async fn end(url: &str) -> Option<TimestampTz> {
    let certificate = of_server(url).await?;
    let parsed = x509_cert::Certificate::from_der(&certificate).ok()?;
    date(parsed.tbs_certificate.validity.not_after)
}

async fn of_server(url: &str) -> Option<Vec<u8>> {
    let host = url.strip_prefix("https://")?;
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()?),
        None => (host, 443),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let seen = Arc::new(Recorder::default());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let server = ServerName::try_from(name.to_owned()).ok()?;
    let handshake = async {
        let stream = TcpStream::connect((name, port)).await.ok()?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(server, stream).await.ok().map(|_| ())
    };
    let _ = tokio::time::timeout(PATIENCE, handshake).await;
    seen.0.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn date(time: x509_cert::time::Time) -> Option<TimestampTz> {
    let seconds = i64::try_from(time.to_unix_duration().as_secs()).ok()?;
    TimestampTz::from_unix_seconds(seconds)
}

fn describe(certificate: &[u8]) -> Option<String> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let parsed = parsed.tbs_certificate;
    let name = |name: String| name.escape_debug().take(SHOWN).collect::<String>();
    let (from, to) = (
        date(parsed.validity.not_before)?,
        date(parsed.validity.not_after)?,
    );
    Some(format!(
        "it shows the certificate of \"{}\" from \"{}\", valid from {from} to {to}",
        name(parsed.subject.to_string()),
        name(parsed.issuer.to_string())
    ))
}

fn not_believed<T>() -> Result<T, rustls::Error> {
    Err(rustls::Error::General("it is only looked at".into()))
}

/// Keeps the certificate, and believes none.
#[derive(Debug, Default)]
struct Recorder(Mutex<Option<Vec<u8>>>);

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(certificate.to_vec());
        not_believed()
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        not_believed()
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        not_believed()
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
