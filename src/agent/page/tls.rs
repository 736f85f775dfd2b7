//! TLS of everything that the agent serves, and whose clients' certificates come in.
//!
//! A session is never resumed: a client shows its certificate with each connection, and one that ended, or whose authority is gone, ends there.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::config::agent::AgentTls;
use crate::config::secret::check_closed;
use crate::err;
use crate::error::{Code, Error, Result};

/// Reads the files of a configuration; none where it wants no TLS.
///
/// # Errors
/// `Config` for a file that cannot be read, holds nothing of its kind, or does not belong to the others; for a private key that others may read.
pub(super) fn config(tls: &AgentTls) -> Result<Option<Arc<ServerConfig>>> {
    let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file) else {
        return Ok(None);
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |e| err!(Internal, "TLS cannot be set up").source(e);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = match &tls.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for one in certificates(path)? {
                roots
                    .add(one)
                    .map_err(|e| no_content(path, "authority").source(e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = verifier.build();
            let verifier = verifier.map_err(|e| no_content(path, "authority").source(e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(certificates(cert_file)?, private_key(key_file)?)
        .map_err(|e| {
            err!(
                Config,
                "the private key \"{}\" does not serve the certificate \"{}\"",
                key_file.display(),
                cert_file.display()
            )
            .source(e)
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Some(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = |e| no_content(path, "certificate").source(e);
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let all: Vec<_> = all.collect::<std::result::Result<_, _>>().map_err(failed)?;
    match all.is_empty() {
        true => Err(no_content(path, "certificate")),
        false => Ok(all),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let failed = |e| err!(Config, "\"{}\" cannot be read", path.display()).source(e);
    let metadata = std::fs::metadata(path).map_err(failed)?;
    check_closed(Code::Config, "private key", path, &metadata)?;
    PrivateKeyDer::from_pem_file(path).map_err(|e| no_content(path, "private key").source(e))
}

fn no_content(path: &Path, what: &str) -> Error {
    err!(
        Config,
        "\"{}\" holds no {what} in PEM that can be read",
        path.display()
    )
}
