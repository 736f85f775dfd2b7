//! TLS: the handshake after `SSLRequest`, the checks of each sslmode, and the hash that channel binding needs.
//!
//! Knowledge: doc/src/sgml/libpq.sgml (SSL support); RFC 5929 (tls-server-end-point); src/interfaces/libpq/fe-secure-openssl.c.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::Digest;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::der::Decode;

use super::conninfo::{ClientCertificate, ConnInfo, RootCertificates, SslMode};
use crate::err;
use crate::error::{Code, Error, Result};

/// How far the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Not at all: encryption without knowing with whom.
    Nothing,
    /// Signed by a known authority.
    Authority,
    /// Signed by a known authority for this host.
    AuthorityAndName,
}

/// Makes the TLS settings of a connection.
///
/// # Errors
/// `Config` if a certificate file is missing or cannot be read.
pub(super) fn configuration(info: &ConnInfo) -> Result<Arc<ClientConfig>> {
    let (check, trusted) = trust(info)?;
    let own = client_certificate(info.client_certificate.as_ref())?;
    let mut config = client(check, trusted, own)?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}

fn client(
    check: Check,
    (roots, trusted): Trusted,
    own: Option<CertificateAndKey>,
) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier {
        check,
        roots,
        trusted,
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| err!(Internal, "could not set up TLS").source(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match own {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| err!(Config, "client certificate cannot be used").source(error)),
    }
}

/// The files of a connection that is none to PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the authorities that may have signed the server's, or the server's own.
    pub ca_file: PathBuf,
    /// The certificate of this side, and its private key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// Makes the TLS settings of a connection that is none to PostgreSQL: the certificate has to be the host's.
///
/// # Errors
/// `Config` if a file is missing or cannot be read.
pub fn for_files(files: &Files) -> Result<Arc<ClientConfig>> {
    let trusted = file_roots(&files.ca_file)?;
    let own = files.certificate.as_ref();
    let own = own.map(|(certificate, key)| read_pair(certificate, key));
    client(Check::AuthorityAndName, trusted, own.transpose()?).map(Arc::new)
}

/// Shakes hands. `name` is the host as the user named it.
pub(super) async fn handshake(
    config: Arc<ClientConfig>,
    name: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>> {
    let server_name = ServerName::try_from(name.to_owned()).map_err(|error| {
        err!(Config, "host name \"{name}\" cannot be used with TLS").source(error)
    })?;
    TlsConnector::from(config)
        .connect(server_name, stream)
        .await
        .map_err(|error| handshake_error(name, error))
}

fn handshake_error(name: &str, error: std::io::Error) -> Error {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (code, hint) = match tls {
        None => (Code::Unreachable, None),
        Some(rustls::Error::InvalidCertificate(reason)) => {
            (Code::Denied, Some(certificate_hint(name, reason)))
        }
        Some(_) => (Code::Denied, None),
    };
    let failed = Error::new(code, "establish TLS connection to server").source(error);
    match hint {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}

fn certificate_hint(name: &str, reason: &CertificateError) -> String {
    match reason {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "The server's certificate does not name \"{name}\" among its subject alternative names. Connect by a name that the \
             certificate holds (hostaddr= keeps the address), or have one issued for this name."
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "The server's certificate does not come from an authority in sslrootcert. Put the authority's certificate there \
             (default ~/.postgresql/root.crt)."
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "The server's certificate has expired, or the clock of this host is wrong. Renew the certificate.".to_owned()
        }
        _ => "The server's certificate was refused. Check the server's ssl_cert_file and sslrootcert here.".to_owned(),
    }
}

/// Trusted authorities, and the certificates they were made from (the system's are not kept).
type Trusted = (RootCertStore, Vec<CertificateDer<'static>>);

/// The check that the sslmode asks for, and the trusted authorities.
fn trust(info: &ConnInfo) -> Result<(Check, Trusted)> {
    let (path, explicit) = match (&info.root_certificates, info.sslmode) {
        (Some(RootCertificates::System), _) => {
            return Ok((Check::AuthorityAndName, (system_roots()?, Vec::new())));
        }
        (Some(RootCertificates::File { path, explicit }), _) => (Some(path), *explicit),
        (None, _) => (None, false),
    };
    let present = path.filter(|path| path.exists());
    let check = match info.sslmode {
        SslMode::Disable | SslMode::Allow | SslMode::Prefer => {
            return Ok((Check::Nothing, (RootCertStore::empty(), Vec::new())));
        }
        // As in libpq: a root certificate file turns "require" into "verify-ca".
        SslMode::Require if present.is_none() && !explicit => {
            return Ok((Check::Nothing, (RootCertStore::empty(), Vec::new())));
        }
        SslMode::Require | SslMode::VerifyCa => Check::Authority,
        SslMode::VerifyFull => Check::AuthorityAndName,
    };
    match (present, path) {
        (Some(path), _) => Ok((check, file_roots(path)?)),
        (None, Some(path)) => Err(err!(Config, "root certificate file \"{}\" does not exist", path.display())
            .hint("Provide the file, use the system's trusted roots with sslrootcert=system, or change sslmode.")),
        (None, None) => Err(err!(Config, "no root certificate file is given and there is no home directory")
            .hint("Name the file with sslrootcert, or use sslrootcert=system.")),
    }
}

fn file_roots(path: &Path) -> Result<Trusted> {
    let mut roots = RootCertStore::empty();
    let trusted = certificates(path)?;
    for certificate in &trusted {
        roots.add(certificate.clone()).map_err(|error| {
            err!(
                Config,
                "root certificate file \"{}\" holds a certificate that cannot be used",
                path.display()
            )
            .source(error)
        })?;
    }
    Ok((roots, trusted))
}

fn system_roots() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err(err!(Config, "the system has no trusted certificates")
            .hint("Install the package ca-certificates, or name the authority's certificate file with sslrootcert.")),
        _ => Ok(roots),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |error| {
        err!(
            Config,
            "could not read certificate file \"{}\"",
            path.display()
        )
        .source(error)
    };
    let list: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(wrong)?
        .collect::<std::result::Result<_, _>>()
        .map_err(wrong)?;
    match list.is_empty() {
        true => Err(err!(
            Config,
            "certificate file \"{}\" holds no certificate",
            path.display()
        )),
        false => Ok(list),
    }
}

type CertificateAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(files: Option<&ClientCertificate>) -> Result<Option<CertificateAndKey>> {
    let Some(files) = files else { return Ok(None) };
    if !files.explicit && !files.certificate.exists() {
        return Ok(None);
    }
    read_pair(&files.certificate, &files.key).map(Some)
}

fn read_pair(certificate: &Path, key: &Path) -> Result<CertificateAndKey> {
    let read = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        err!(
            Config,
            "could not read private key file \"{}\"",
            key.display()
        )
        .source(error)
    })?;
    Ok((certificates(certificate)?, read))
}

/// The check of certificates, by sslmode.
///
/// A certificate that is itself one of the trusted ones is accepted as such: PostgreSQL's manual tells people to make a self-signed
/// one and to hand it to clients as root certificate, and webpki alone refuses an authority as a server's own certificate.
#[derive(Debug)]
struct Verifier {
    check: Check,
    roots: RootCertStore,
    /// The certificates behind `roots`, where they come from a file.
    trusted: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn check_dates(
        certificate: &CertificateDer<'_>,
        now: UnixTime,
    ) -> std::result::Result<(), rustls::Error> {
        let parsed = x509_cert::Certificate::from_der(certificate)
            .map_err(|_| CertificateError::BadEncoding)?;
        let validity = parsed.tbs_certificate.validity;
        let now = now.as_secs();
        if now < validity.not_before.to_unix_duration().as_secs() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > validity.not_after.to_unix_duration().as_secs() {
            return Err(CertificateError::Expired.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if self.trusted.contains(end_entity) {
            Self::check_dates(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.check == Check::AuthorityAndName {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The `tls-server-end-point` binding: the certificate's hash by the hash of its own signature (MD5 and SHA-1 count as SHA-256).
///
/// `None` for a signature without a hash of its own (Ed25519), for which the binding is not defined.
pub(super) fn server_end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let (_, connection) = stream.get_ref();
    end_point(connection.peer_certificates()?.first()?)
}

fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    let algorithm = certificate.signature_algorithm;
    Some(match algorithm.oid.to_string().as_str() {
        // RSA with MD5, SHA-1, SHA-256; DSA and ECDSA with SHA-1; ECDSA with SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10040.4.3"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => sha2::Sha256::digest(der).to_vec(),
        // RSA and ECDSA with SHA-384, SHA-512, SHA-224.
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => sha2::Sha384::digest(der).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => sha2::Sha512::digest(der).to_vec(),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => sha2::Sha224::digest(der).to_vec(),
        "1.2.840.113549.1.1.10" => pss_end_point(der, algorithm.parameters?.value())?,
        _ => return None,
    })
}

/// RSASSA-PSS names its hash in its parameters: the first SHA-2 object identifier (2.16.840.1.101.3.4.2.n) among them. Without one
/// it is SHA-1, which counts as SHA-256.
fn pss_end_point(der: &[u8], parameters: &[u8]) -> Option<Vec<u8>> {
    let sha2_oid = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
    let at = parameters
        .windows(sha2_oid.len())
        .position(|window| window == sha2_oid);
    Some(match at.map(|at| parameters.get(at + sha2_oid.len())) {
        None | Some(Some(1)) => sha2::Sha256::digest(der).to_vec(),
        Some(Some(2)) => sha2::Sha384::digest(der).to_vec(),
        Some(Some(3)) => sha2::Sha512::digest(der).to_vec(),
        Some(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_uses_the_hash_of_the_signature() {
        for (algorithm, size) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(32)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(48)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["db1".into()])
                .unwrap()
                .self_signed(&key)
                .unwrap();
            assert_eq!(end_point(certificate.der()).map(|hash| hash.len()), size);
        }
        assert_eq!(end_point(b"no certificate"), None);
    }
}
