//! Servers of Azure Blob Storage and Google Cloud Storage, which a test does not start itself: `scripts/blob-server`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use pitr::config::{Location, S3Settings};
use pitr::store::blob::BlobStore;

use super::Sandbox;

/// The account and the key of every Azurite, which Microsoft has published.
pub const ACCOUNT: &str = "devstoreaccount1";
pub const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// One of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Azure,
    Google,
}

impl Service {
    /// The variable that names a server of it, `http://host:port`.
    pub fn variable(self) -> &'static str {
        match self {
            Service::Azure => "PITR_TEST_AZURE",
            Service::Google => "PITR_TEST_GCS",
        }
    }
}

/// A container or bucket of its own.
pub struct Peer {
    pub service: Service,
    pub endpoint: String,
    pub bucket: String,
}

impl Peer {
    /// That on the server which the environment names; none without one.
    pub fn of(service: Service) -> Option<Peer> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let endpoint = std::env::var(service.variable())
            .ok()
            .filter(|v| !v.is_empty())?;
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let now = chrono::Utc::now().timestamp_micros();
        let peer = Peer {
            service,
            endpoint,
            bucket: format!("pitr-{}-{now}-{count}", std::process::id()),
        };
        peer.make_bucket();
        Some(peer)
    }

    /// By the command that `scripts/blob-server` names: Azure wants a signature.
    fn make_bucket(&self) {
        let maker = std::env::var("PITR_TEST_BLOB_MAKE_BUCKET").expect("scripts/blob-server runs");
        let made = std::process::Command::new(&maker)
            .arg(&self.bucket)
            .status();
        assert!(made.is_ok_and(|s| s.success()), "{maker} {}", self.bucket);
    }

    /// The URL of a repository there.
    pub fn url(&self, prefix: &str) -> String {
        match self.service {
            Service::Azure => format!("azure://{ACCOUNT}/{}/{prefix}", self.bucket),
            Service::Google => format!("gs://{}/{prefix}", self.bucket),
        }
    }

    /// A credentials file, closed to others.
    pub fn credentials(&self, sandbox: &Sandbox) -> PathBuf {
        let text = match self.service {
            Service::Azure => ACCOUNT_KEY.to_owned(),
            Service::Google => identity(sandbox),
        };
        let path = sandbox.file("credentials", text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// A store in it.
    pub fn store(
        &self,
        sandbox: &Sandbox,
        prefix: &str,
        change: impl FnOnce(&mut S3Settings),
    ) -> BlobStore {
        let mut settings = S3Settings {
            endpoint: Some(self.endpoint.clone()),
            path_style: self.service == Service::Azure,
            credentials_file: Some(self.credentials(sandbox)),
            ..S3Settings::default()
        };
        change(&mut settings);
        let location = Location::from_url(&self.url(prefix)).unwrap();
        BlobStore::open(&location, &settings, 7).unwrap()
    }
}

/// The token that the harness gives out.
pub const TOKEN: &str = "ya29.a-token-of-the-harness";

/// The credentials of a workload: a file with its own token, and a service that gives another one for it.
fn identity(sandbox: &Sandbox) -> String {
    let own = sandbox.file("own-token", "a-token-of-the-workload");
    let port = tokens();
    format!(
        r#"{{"type": "external_account", "audience": "a", "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "http://127.0.0.1:{port}/token", "credential_source": {{"file": "{}", "format": {{"type": "text"}}}}}}"#,
        own.display()
    )
}

/// Gives out tokens for as long as the tests run.
fn tokens() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || give(stream));
            }
        });
        port
    })
}

fn give(mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    let wanted = b"a-token-of-the-workload";
    while !request.windows(wanted.len()).any(|w| w == wanted) {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend_from_slice(&piece[..n]),
        }
    }
    let body = format!(
        r#"{{"access_token": "{TOKEN}", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "token_type": "Bearer", "expires_in": 3600}}"#
    );
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}
