//! TLS of the agent: who comes in with which certificate, what is served then, and what a reload changes.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustix::process::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::agent::{EVERY_HOUR, Host};
use crate::common::authority::{Authority, LATER, Signed};
use crate::common::{PATIENCE, wait_until};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Asks a server that is believed by an authority, with a certificate of the client or without one. Returns head and body.
fn ask(
    port: u16,
    believed: &Authority,
    client: Option<&Signed>,
    (head, body): (&str, &str),
) -> io::Result<(String, String)> {
    let mut stream = connect(port, believed, client)?;
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nHost: db.example\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    // The peer ends the TLS connection; the test reads what came before.
    if let Err(e) = stream.read_to_string(&mut answer)
        && answer.is_empty()
    {
        return Err(e);
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.to_owned(), body.to_owned()))
}

/// Connects as [`ask`] does.
fn connect(
    port: u16,
    believed: &Authority,
    client: Option<&Signed>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(believed.pem.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some(own) => {
            let chain = vec![CertificateDer::from_pem_slice(own.pem.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(StreamOwned::new(connection, socket))
}

/// Writes the certificate of the agent, with its key, and returns the lines that name both.
fn serve(host: &Host, own: &Signed) -> String {
    let certificate = host.sandbox.file("page.pem", &own.pem);
    let key = host.sandbox.file("page.key", &own.key);
    format!(
        "tls.cert_file = \"{}\"\ntls.key_file = \"{}\"\n",
        certificate.display(),
        key.display()
    )
}

#[test]
fn r90_a_certificate_of_the_authority_comes_in_and_nothing_else_gets_an_answer() {
    let host = Host::new(EVERY_HOUR);
    let (servers, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let mut lines = serve(&host, &servers.signs("localhost", LATER));
    let authority = host.sandbox.file("clients.pem", &clients.pem);
    lines += &format!("tls.client_ca_file = \"{}\"\n", authority.display());
    let all = format!("[page]\nactions = true\n[agent]\n{lines}");
    host.reconfigure("[agent]\n", &all);
    let agent = host.agent();
    let own = clients.signs("dba", LATER);
    let get = |client: Option<&Signed>, path: &str| {
        ask(host.port, &servers, client, (&format!("GET {path}"), ""))
    };
    wait_until("it serves", || get(Some(&own), "/").is_ok());
    let (head, page) = get(Some(&own), "/").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200") && page.contains("page.js"),
        "{head}"
    );
    wait_until("metrics are collected", || {
        get(Some(&own), "/metrics").is_ok_and(|(head, _)| head.contains("200"))
    });
    let (_, metrics) = get(Some(&own), "/metrics").unwrap();
    let of_page = "pitr_cert_expiry_timestamp_seconds{file=\"";
    let own_file = host.sandbox.join("page.pem").display().to_string();
    let is_of_page = |line: &str| line.starts_with(of_page) && line.contains(&own_file);
    assert!(metrics.lines().any(is_of_page), "{metrics}");
    // Neither page nor metrics nor health are for anybody else.
    let expired = clients.signs("dba", 2021);
    let wrong = others.signs("dba", LATER);
    for (client, why) in [
        (None, "none"),
        (Some(&expired), "expired"),
        (Some(&wrong), "wrong"),
    ] {
        for path in ["/", "/api/state", "/metrics", "/healthz"] {
            let told = get(client, path).map(|(head, _)| head);
            assert!(told.is_err(), "{why} at {path}: {told:?}");
        }
    }
    // Without encryption nothing is answered.
    assert_eq!(host.get("/healthz"), None);
    // The certificate takes the place of the token; a page of another site stays outside.
    let run = "POST /api/run?job=files";
    let foreign = format!("{run} HTTP/1.1\r\nOrigin: https://evil.example\r\nX-Ignored: x");
    let (head, _) = ask(host.port, &servers, Some(&own), (&foreign, "")).unwrap();
    assert!(head.contains("403"), "{head}");
    let (head, body) = ask(host.port, &servers, Some(&own), (run, "")).unwrap();
    assert!(
        head.contains("202") && body.contains("\"started\":\"files\""),
        "{head} {body}"
    );
    wait_until("the job ran", || !host.begun("files").is_empty());
    reload(&host, &agent, &own);
}

/// Renews the certificates of the agent and of its clients, which takes effect with SIGHUP; broken ones change nothing.
fn reload(host: &Host, agent: &crate::common::Running, old: &Signed) {
    let (servers, clients) = (Authority::new(), Authority::new());
    serve(host, &servers.signs("localhost", LATER));
    host.sandbox.file("clients.pem", &clients.pem);
    agent.signal(Signal::HUP);
    let new = clients.signs("dba", LATER);
    let healthy = |client: &Signed| ask(host.port, &servers, Some(client), ("GET /healthz", ""));
    wait_until("the new certificate is shown", || healthy(&new).is_ok());
    assert!(healthy(old).is_err(), "its authority is gone");
    host.sandbox.file("page.pem", "no certificate");
    agent.signal(Signal::HUP);
    wait_until("the trouble is told", || {
        agent.stderr().contains("page.pem\" holds no certificate")
    });
    assert!(healthy(&new).is_ok(), "the one before is served still");
}

#[test]
fn tls_without_an_authority_of_clients_keeps_the_token() {
    let host = Host::new(EVERY_HOUR);
    let servers = Authority::new();
    let lines = serve(&host, &servers.signs("localhost", LATER));
    let token = host.sandbox.file("token", TOKEN);
    let page = format!(
        "[page]\ntoken_file = \"{}\"\n[agent]\n{lines}",
        token.display()
    );
    host.reconfigure("[agent]\n", &page);
    let _agent = host.agent();
    let asked = |head: &str, body: &str| ask(host.port, &servers, None, (head, body));
    wait_until("it serves", || asked("GET /healthz", "").is_ok());
    let (head, _) = asked("GET /api/state", "").unwrap();
    assert!(head.contains("401"), "{head}");
    let bearer =
        format!("GET /api/state HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nX-Ignored: x");
    let (head, _) = asked(&bearer, "").unwrap();
    assert!(head.contains("200"), "{head}");
    let (head, _) = asked("POST /login", &format!("token={TOKEN}")).unwrap();
    assert!(head.contains("303") && head.contains("; Secure"), "{head}");
    // A server that another authority signed is not believed: the client leaves.
    let told = ask(host.port, &Authority::new(), None, ("GET /healthz", ""));
    assert!(told.is_err(), "{told:?}");
}

#[test]
fn j82_a_connection_from_before_certificates_were_asked_for_does_not_see_the_page() {
    let host = Host::new(EVERY_HOUR);
    let (servers, clients) = (Authority::new(), Authority::new());
    let lines = serve(&host, &servers.signs("localhost", LATER));
    let token = host.sandbox.file("token", TOKEN);
    let page = format!(
        "[page]\nactions = true\ntoken_file = \"{}\"\n[agent]\n{lines}",
        token.display()
    );
    host.reconfigure("[agent]\n", &page);
    let agent = host.agent();
    let health = || ask(host.port, &servers, None, ("GET /healthz", ""));
    wait_until("it serves", || health().is_ok());
    let mut old = connect(host.port, &servers, None).unwrap();
    let mut answers = || {
        let head = "GET /healthz HTTP/1.1\r\nHost: db.example\r\n\r\n";
        old.write_all(head.as_bytes()).unwrap();
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"ok\n") {
            old.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
    };
    answers();

    let authority = host.sandbox.file("clients.pem", &clients.pem);
    let more = format!(
        "[agent]\ntls.client_ca_file = \"{}\"\n",
        authority.display()
    );
    host.reconfigure("[agent]\n", &more);
    agent.signal(Signal::HUP);
    wait_until("certificates are asked for", || {
        answers();
        health().is_err()
    });
    // Neither the token nor the connection opens the page.
    let run = format!(
        "POST /api/run?job=files HTTP/1.1\r\nHost: db.example\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 0\r\n\r\n"
    );
    old.write_all(run.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = old.read_to_string(&mut answer);
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("connect again"),
        "{answer}"
    );
}

#[test]
fn what_cannot_serve_tls_keeps_the_agent_from_its_start() {
    let host = Host::new(EVERY_HOUR);
    let authority = Authority::new();
    let own = authority.signs("localhost", LATER);
    let lines = serve(&host, &own);
    host.reconfigure("[agent]\n", &format!("[agent]\n{lines}"));
    let refused = |what: &str| {
        host.pitr().arg("agent").exits(3).expect_stderr(what);
    };
    let key = host.sandbox.join("page.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    refused("page.key\" is open to other users");
    host.sandbox
        .file("page.key", authority.signs("localhost", LATER).key);
    refused("does not serve the certificate");
    host.sandbox.file("page.key", &own.key);
    host.sandbox.file("page.pem", "");
    refused("page.pem\" holds no certificate");
}

#[test]
fn a_certificate_that_ends_soon_is_found_by_doctor() {
    let host = Host::new(EVERY_HOUR);
    let authority = Authority::new();
    let name = host.sandbox.join("page.pem").display().to_string();
    let mut lines = serve(&host, &authority.signs("localhost", LATER));
    let ca = host
        .sandbox
        .file("old-clients.pem", &authority.signs("old", 2021).pem);
    lines += &format!("tls.client_ca_file = \"{}\"\n", ca.display());
    host.reconfigure("[agent]\n", &format!("[agent]\n{lines}"));
    let level = || {
        let json = host.pitr().words("doctor --json").run().json();
        let all = json["findings"].as_array().unwrap().clone();
        let is_own = |f: &&serde_json::Value| f["group"] == "certificates";
        let own: Vec<_> = all.iter().filter(is_own).collect();
        assert_eq!(own.len(), 1, "authorities are left out: {own:?}");
        assert_eq!(own[0]["name"], name);
        own[0]["level"].as_str().unwrap().to_owned()
    };
    assert_eq!(level(), "ok");
    serve(&host, &authority.signs("localhost", 2021));
    assert_eq!(level(), "fail");
}
