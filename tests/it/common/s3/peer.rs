//! The object store that a test is about: the harness's own, or another program's, named by `PITR_TEST_S3` (`make test-moto`).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use pitr::config::S3Settings;
use pitr::store::Store;
use pitr::store::s3::S3Store;

use super::{BUCKET, KEY, S3Server, Sandbox};

/// The URL of a server that is running, plain HTTP.
const VARIABLE: &str = "PITR_TEST_S3";
/// A command that makes the bucket which is named behind it; without one, anybody may create buckets.
const BUCKETS: &str = "PITR_TEST_S3_MAKE_BUCKET";

/// A bucket of its own somewhere.
pub struct Peer {
    /// The harness's server, where it is that.
    pub own: Option<S3Server>,
    endpoint: String,
    /// The bucket's name.
    pub bucket: String,
}

impl Peer {
    /// The one that the environment names, else the harness's.
    pub fn start() -> Peer {
        Peer::with("")
    }

    /// As [`Peer::start`], with a bucket in which objects can be locked.
    pub fn locking() -> Peer {
        Peer::with("x-amz-bucket-object-lock-enabled: true\r\n")
    }

    fn with(headers: &str) -> Peer {
        match std::env::var(VARIABLE).ok().filter(|v| !v.is_empty()) {
            Some(endpoint) => Peer::at(endpoint, headers),
            None => Peer::own(),
        }
    }

    /// The harness's, whatever the environment says.
    pub fn own() -> Peer {
        let server = S3Server::start();
        Peer {
            endpoint: server.endpoint(),
            own: Some(server),
            bucket: BUCKET.to_owned(),
        }
    }

    /// A new bucket, asked for with these headers.
    fn at(endpoint: String, headers: &str) -> Peer {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let now = chrono::Utc::now().timestamp_micros();
        let bucket = format!("pitr-{}-{now}-{count}", std::process::id());
        if let Ok(command) = std::env::var(BUCKETS) {
            let made = Command::new(&command).arg(&bucket).status();
            assert!(
                made.is_ok_and(|status| status.success()),
                "{command} {bucket}"
            );
            return Peer {
                own: None,
                endpoint,
                bucket,
            };
        }
        let host = endpoint.trim_end_matches('/').strip_prefix("http://");
        let host = host.expect("PITR_TEST_S3 is http://host:port");
        let mut stream = TcpStream::connect(host).expect("the server of PITR_TEST_S3 runs");
        let request = format!(
            "PUT /{bucket} HTTP/1.1\r\nHost: {host}\r\nAuthorization: AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request\r\n\
             {headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Peer {
            own: None,
            endpoint,
            bucket,
        }
    }

    /// The harness's server, which a test that needs it has asked for.
    pub fn server(&self) -> &S3Server {
        self.own.as_ref().expect("the harness's own server")
    }

    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// A credentials file for it.
    pub fn credentials(&self, sandbox: &Sandbox, key: &str) -> PathBuf {
        super::credentials(sandbox, key)
    }

    /// Settings for it.
    pub fn settings(&self, sandbox: &Sandbox, key: &str) -> S3Settings {
        S3Settings {
            endpoint: Some(self.endpoint()),
            region: Some("us-east-1".into()),
            path_style: true,
            credentials_file: Some(self.credentials(sandbox, key)),
            ..S3Settings::default()
        }
    }

    /// A store below a prefix of its bucket.
    pub fn store(&self, sandbox: &Sandbox, prefix: &str) -> S3Store {
        S3Store::open(&self.bucket, prefix, &self.settings(sandbox, KEY), 7).unwrap()
    }
}

/// All keys of a store, as its listings show them.
pub fn keys(store: &S3Store) -> Vec<String> {
    fn walk(store: &S3Store, prefix: &str, found: &mut Vec<String>) {
        for listed in store.list(prefix).unwrap() {
            let key = match prefix {
                "" => listed.name,
                prefix => format!("{prefix}/{}", listed.name),
            };
            match listed.is_prefix {
                true => walk(store, &key, found),
                false => found.push(key),
            }
        }
    }
    let mut found = Vec::new();
    walk(store, "", &mut found);
    found
}
