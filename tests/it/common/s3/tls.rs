//! TLS in front of the object store of the tests, with certificates of a test's own authority.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Runtime;

use super::S3Server;
use crate::common::authority::Authority;

/// The content of a certificate.
pub struct Says {
    /// The subject's common name.
    pub subject: &'static str,
    /// The host for which it is.
    pub host: &'static str,
    /// The year in which it ends.
    pub year: i32,
}

/// A server with such a certificate.
fn acceptor(authority: &Authority, says: &Says) -> tokio_rustls::TlsAcceptor {
    let signed = authority.signs_as(says.subject, says.host, says.year);
    let certificate = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
    let private = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private)
        .unwrap();
    Arc::new(config).into()
}

/// Takes TLS connections and hands on what comes over them, until it is dropped.
pub struct Tls {
    runtime: Option<Runtime>,
    address: SocketAddr,
    acceptor: Arc<Mutex<tokio_rustls::TlsAcceptor>>,
}

impl Tls {
    pub fn before(server: &S3Server, authority: &Authority, says: &Says) -> Tls {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let acceptor = Arc::new(Mutex::new(acceptor(authority, says)));
        let present = Arc::clone(&acceptor);
        let inner = server.address;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = present.lock().unwrap().clone();
                tokio::spawn(async move {
                    let Ok(mut outer) = acceptor.accept(stream).await else {
                        return;
                    };
                    if let Ok(mut inner) = tokio::net::TcpStream::connect(inner).await {
                        let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                    }
                });
            }
        });
        Tls {
            runtime: Some(runtime),
            address,
            acceptor,
        }
    }

    /// Shows another certificate from now on.
    pub fn renew(&self, authority: &Authority, says: &Says) {
        *self.acceptor.lock().unwrap() = acceptor(authority, says);
    }

    /// Its URL, by name.
    pub fn endpoint(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A server that speaks TLS 1.1 and nothing later.
pub struct OldTls {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl OldTls {
    pub fn start() -> OldTls {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let mut hello = [0; 4096];
                let _ = stream.read(&mut hello);
                // ServerHello of version 3.2, TLS_RSA_WITH_AES_128_CBC_SHA.
                let mut body = vec![3, 2];
                body.extend([7; 32]);
                body.extend([0, 0, 0x2f, 0]);
                let length = u8::try_from(body.len()).unwrap();
                let mut record = vec![22, 3, 2, 0, length + 4, 2, 0, 0, length];
                record.extend(body);
                let _ = stream.write_all(&record);
                // Until the client has said what it thinks of that.
                let _ = stream.read(&mut hello);
            }
        });
        OldTls { address, is_over }
    }

    pub fn endpoint(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Drop for OldTls {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
    }
}
