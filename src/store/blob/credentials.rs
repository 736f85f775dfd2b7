//! The credentials of a request, and its signature: those of the `reqsign` crates, over our own client.
//!
//! A configured file comes before the environment and the machine's own identity: PostgreSQL runs its commands with an environment of its own.

use std::path::Path;

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::http::{Request, Response};
use reqsign_azure_storage as azure;
use reqsign_core::{Context, FileRead, HttpSend, OsEnv, Signer};
use reqsign_google as google;

use super::client::{Http, bounded};
use crate::config::{BlobService, S3Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::store::http::credentials_file;

/// The longest answer of a service that gives out tokens.
const TOKEN_MAX: usize = 1 << 20;

/// Signs requests, and renews what it signs them with.
#[derive(Clone)]
pub(super) enum Credentials {
    Azure(Signer<azure::Credential>),
    Google(Signer<google::Credential>),
}

/// Secrets that must not appear in a message.
pub(super) type Hidden = Vec<String>;

impl Credentials {
    /// Finds the way to credentials. Tokens are asked for with the first request.
    ///
    /// # Errors
    /// `Config` when the configured file cannot be read, or is open to others.
    pub(super) fn find(
        service: &BlobService,
        settings: &S3Settings,
        http: &Http,
    ) -> Result<(Credentials, Hidden)> {
        let context = Context::new()
            .with_file_read(Files)
            .with_http_send(Sender(http.clone()))
            .with_env(OsEnv);
        let file = settings.credentials_file.as_deref();
        match service {
            BlobService::Azure { account } => {
                let signer = azure::RequestSigner::new();
                let (secret, is_sas) = match file {
                    Some(path) => in_file(path)?,
                    None => in_environment(),
                };
                let signer = match (secret.as_str(), is_sas) {
                    ("", _) => Signer::new(context, identity(), signer),
                    (sas, true) => {
                        let given = azure::StaticCredentialProvider::new_sas_token(sas);
                        Signer::new(context, given, signer)
                    }
                    (key, false) => {
                        let given = azure::StaticCredentialProvider::new_shared_key(account, key);
                        Signer::new(context, given, signer)
                    }
                };
                Ok((Credentials::Azure(signer), hidden(&secret, is_sas)))
            }
            BlobService::Google => {
                let signer = google::RequestSigner::new("storage");
                let signer = match file {
                    Some(path) => {
                        credentials_file(path)?;
                        let path = path.to_string_lossy().into_owned();
                        let given = google::FileCredentialProvider::new(path);
                        Signer::new(context, given, signer)
                    }
                    None => {
                        let chain = google::DefaultCredentialProvider::new();
                        Signer::new(context, chain, signer)
                    }
                };
                Ok((Credentials::Google(signer), Vec::new()))
            }
        }
    }

    pub(super) async fn sign(&self, parts: &mut Parts) -> reqsign_core::Result<()> {
        match self {
            Credentials::Azure(signer) => signer.sign(parts, None).await,
            Credentials::Google(signer) => signer.sign(parts, None).await,
        }
    }
}

/// Without those that run a program, or sign with a certificate.
fn identity() -> azure::DefaultCredentialProvider {
    azure::DefaultCredentialProvider::builder()
        .no_azure_cli()
        .no_client_certificate()
        .no_azure_pipelines()
        .build()
}

/// An account key or a SAS token, by the names that Azure's own tools know.
fn in_environment() -> (String, bool) {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    match (
        variable("AZURE_STORAGE_KEY"),
        variable("AZURE_STORAGE_SAS_TOKEN"),
    ) {
        (Some(key), _) => (key.trim().to_owned(), false),
        (None, Some(sas)) => (bare(&sas), true),
        (None, None) => (String::new(), false),
    }
}

/// A file that holds an account key or a SAS token, and nothing else.
fn in_file(path: &Path) -> Result<(String, bool)> {
    let (text, _) = credentials_file(path)?;
    let text = text.trim();
    let shown = path.display();
    let is_sas = text.contains("sig=") && text.contains('&');
    let is_key = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    match text {
        _ if is_sas && !text.contains(char::is_whitespace) => Ok((bare(text), true)),
        key if !key.is_empty() && key.chars().all(is_key) => Ok((key.to_owned(), false)),
        _ => Err(
            err!(Config, "credentials file \"{shown}\" holds neither an account key nor a SAS token")
                .hint("Write one of them into it, and nothing else: the key in base64, or the token from \"sv=\" on."),
        ),
    }
}

fn bare(sas: &str) -> String {
    sas.trim().trim_start_matches('?').to_owned()
}

/// The parts of a secret that a service may repeat.
fn hidden(secret: &str, is_sas: bool) -> Hidden {
    let mut all = vec![secret.to_owned()];
    if is_sas {
        let signature = secret.split('&').find_map(|p| p.strip_prefix("sig="));
        let signature = signature.unwrap_or_default();
        all.push(signature.to_owned());
        all.push(
            signature
                .replace("%2B", "+")
                .replace("%2F", "/")
                .replace("%3D", "="),
        );
    }
    all
}

/// Says why there is no signature. A provider that did not answer may do so later.
pub(super) fn explained(error: &reqsign_core::Error) -> (bool, Error) {
    use reqsign_core::ErrorKind;
    let text = super::answer::causes(error);
    let is_final = !error.is_retryable()
        && matches!(
            error.kind(),
            ErrorKind::CredentialInvalid | ErrorKind::ConfigInvalid | ErrorKind::PermissionDenied
        );
    let error = match is_final {
        true => err!(Config, "there are no credentials: {text}").hint(
            "Nothing was asked of the store. Set credentials_file in the repository's section, or give the process the environment or the identity that docs/stores.md names.",
        ),
        false => err!(Unreachable, "credentials could not be had: {text}"),
    };
    (is_final, error)
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let read = tokio::fs::read(path).await;
        read.map_err(|e| reqsign_core::Error::config_invalid(format!("\"{path}\": {e}")))
    }
}

/// Asks those who give out tokens.
#[derive(Debug)]
struct Sender(Http);

impl HttpSend for Sender {
    async fn http_send(&self, request: Request<Bytes>) -> reqsign_core::Result<Response<Bytes>> {
        let failed = |text: String| reqsign_core::Error::unexpected(text).set_retryable(true);
        let answer = self.0.request(request.map(Into::into)).await;
        let (head, body) = answer
            .map_err(|e| failed(super::answer::causes(&e)))?
            .into_parts();
        let body = bounded(body, TOKEN_MAX)
            .await
            .map_err(|e| failed(e.to_string()))?;
        Ok(Response::from_parts(head, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_holds_a_key_or_a_token_and_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let write = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("a2V5+/==\n", 0o600);
        assert_eq!(in_file(&path).unwrap(), ("a2V5+/==".to_owned(), false));
        write("?sv=2021&sig=ab%2Bc%3D\n", 0o600);
        let (sas, is_sas) = in_file(&path).unwrap();
        assert_eq!((sas.as_str(), is_sas), ("sv=2021&sig=ab%2Bc%3D", true));
        assert!(hidden(&sas, true).contains(&"ab+c=".to_owned()));
        for wrong in ["", "AccountKey = x", "DefaultEndpointsProtocol=https;x"] {
            write(wrong, 0o600);
            assert_eq!(in_file(&path).unwrap_err().code(), Code::Config, "{wrong}");
        }
        write("a2V5", 0o640);
        assert!(in_file(&path).unwrap_err().to_string().contains("open to"));
        assert!(in_file(Path::new("/nowhere/at/all")).is_err());
    }
}
