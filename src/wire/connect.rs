//! Connecting: hosts in turn, TLS or not, startup, authentication, and whether the server is one that was asked for.
//!
//! Order of attempts as in libpq: every host, every address of its name, and within sslmode `allow` and `prefer` the second kind of
//! encryption after a refusal of the first. A server that answers and refuses ends the search; one that cannot be reached does not.
//!
//! PostgreSQL: src/interfaces/libpq/fe-connect.c (PQconnectPoll); doc/src/sgml/protocol.sgml (start-up).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::auth::{Credentials, authenticate};
use super::client::{Session, unsuitable};
use super::conninfo::{ConnInfo, Host, HostAddress, KeepAlive, SslMode, TargetSession};
use super::message::{Stream, Wire, lost};
use super::passfile::{self, Found, Wanted};
use super::server_error::{self, INVALID_AUTHORIZATION, Refused, ServerMessage, protocol};
use super::tls;
use crate::config::Secret;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::progress::Progress;

/// The most settings a server may report.
const PARAMETER_COUNT_MAX: usize = 1000;

/// A connection that is ready for the first command.
pub(super) struct Connected {
    pub wire: Wire,
    pub parameters: BTreeMap<String, String>,
    /// The host that answered, with its address.
    pub place: Host,
    /// The server's process, as it says.
    pub pid: Option<i32>,
}

/// The target of one attempt.
enum Endpoint {
    Socket(std::path::PathBuf),
    Tcp { name: String, address: SocketAddr },
}

/// Tries the hosts in turn until one is of the kind that is `wanted`.
pub(super) async fn connect(
    info: &ConnInfo,
    session: Session,
    progress: &dyn Progress,
    wanted: TargetSession,
) -> Result<Connected> {
    let mut failures: Vec<(String, Error)> = Vec::new();
    for host in &info.hosts {
        let endpoints = match endpoints(host).await {
            Ok(endpoints) => endpoints,
            Err(error) => {
                failures.push((host.display(), error));
                continue;
            }
        };
        for endpoint in endpoints {
            let attempt = async {
                let mut connected = attempt(info, host, &endpoint, session, progress).await?;
                match unsuitable(&mut connected, wanted).await? {
                    None => Ok(connected),
                    Some(reason) => Err(Error::new(Code::Unreachable, reason)),
                }
            };
            match within(info.connect_timeout, attempt).await {
                Ok(connected) => return Ok(connected),
                Err(error) if error.code() == Code::Unreachable => {
                    failures.push((host.display(), error));
                }
                Err(error) => {
                    return Err(error.context(format!("connect to \"{}\"", host.display())));
                }
            }
        }
    }
    Err(all_failed(failures))
}

async fn within<T>(limit: Option<Duration>, attempt: impl Future<Output = Result<T>>) -> Result<T> {
    match limit {
        None => attempt.await,
        Some(limit) => tokio::time::timeout(limit, attempt)
            .await
            .unwrap_or_else(|_| {
                Err(err!(
                    Unreachable,
                    "no connection within {} s",
                    limit.as_secs()
                ))
            }),
    }
}

fn all_failed(mut failures: Vec<(String, Error)>) -> Error {
    let error = match failures.len() {
        0 => err!(Unreachable, "no address to connect to"),
        1 => {
            let (host, error) = failures.remove(0);
            error.context(format!("connect to \"{host}\""))
        }
        _ => {
            let list: Vec<_> = failures
                .iter()
                .map(|(host, error)| format!("\"{host}\": {error}"))
                .collect();
            err!(
                Unreachable,
                "could not connect to any server: {}",
                list.join("; ")
            )
        }
    };
    match error.hint_text() {
        Some(_) => error,
        None => error.hint("Check that the server runs, that it listens there (listen_addresses, port, unix_socket_directories), and that nothing on the way blocks it."),
    }
}

async fn endpoints(host: &Host) -> Result<Vec<Endpoint>> {
    if let Some(path) = host.socket_path() {
        return Ok(vec![Endpoint::Socket(path)]);
    }
    let HostAddress::Tcp { name, address } = &host.address else {
        return Ok(Vec::new());
    };
    let tcp = |address| Endpoint::Tcp {
        name: name.clone(),
        address,
    };
    if let Some(address) = address {
        return Ok(vec![tcp(SocketAddr::new(*address, host.port))]);
    }
    let found = tokio::net::lookup_host((name.as_str(), host.port))
        .await
        .map_err(|error| {
            err!(
                Unreachable,
                "could not translate host name \"{name}\" to an address"
            )
            .source(error)
        })?;
    Ok(found.map(tcp).collect())
}

/// One address, in the ways that the sslmode allows.
async fn attempt(
    info: &ConnInfo,
    host: &Host,
    endpoint: &Endpoint,
    session: Session,
    progress: &dyn Progress,
) -> Result<Connected> {
    let address = match endpoint {
        Endpoint::Socket(path) => {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|error| lost("open socket", error))?;
            return start(info, host, Stream::Socket(stream), None, session, progress).await;
        }
        Endpoint::Tcp { address, .. } => *address,
    };
    let kinds: &[Encryption] = match info.sslmode {
        SslMode::Disable => &[Encryption::Never],
        SslMode::Allow => &[Encryption::Never, Encryption::Always],
        SslMode::Prefer => &[Encryption::IfOffered, Encryption::Never],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Encryption::Always],
    };
    let mut refusal = None;
    for kind in kinds {
        let opened = open_tcp(info, endpoint, address, *kind).await;
        let result = match opened {
            Ok((stream, local)) => start(info, host, stream, Some(local), session, progress).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(mut connected) => {
                if let HostAddress::Tcp { address: at, .. } = &mut connected.place.address {
                    *at = Some(address.ip());
                }
                return Ok(connected);
            }
            // The pg_hba.conf line may hold for the other kind; a failed handshake may not concern a plain connection.
            Err(error) if may_retry(&error) => refusal = refusal.or(Some(error)),
            Err(error) => return Err(refusal.unwrap_or(error)),
        }
    }
    Err(refusal.unwrap_or_else(|| err!(Internal, "no way to connect was tried")))
}

fn may_retry(error: &Error) -> bool {
    server_error::sqlstate(error) == Some(INVALID_AUTHORIZATION)
        || std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .and_then(std::io::Error::get_ref)
            .is_some_and(|inner| inner.is::<rustls::Error>())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Never,
    IfOffered,
    Always,
}

async fn open_tcp(
    info: &ConnInfo,
    endpoint: &Endpoint,
    address: SocketAddr,
    encryption: Encryption,
) -> Result<(Stream, IpAddr)> {
    let doing = || format!("connect to address \"{address}\"");
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(|error| lost(&doing(), error))?;
    set_options(&stream, info.keep_alive).map_err(|error| lost(&doing(), error))?;
    let local = stream
        .local_addr()
        .map_err(|error| lost(&doing(), error))?
        .ip();
    if encryption == Encryption::Never {
        return Ok((Stream::Tcp(stream), local));
    }
    let config = tls::configuration(info)?;
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream
        .write_all(&request)
        .await
        .map_err(|error| lost("ask server for TLS", error))?;
    // Exactly one byte is read before the handshake: what an attacker adds behind it is not taken for the server's words.
    match stream.read_u8().await.map_err(|error| lost("ask server for TLS", error))? {
        b'S' => {
            let name = match endpoint {
                Endpoint::Tcp { name, .. } => name.as_str(),
                Endpoint::Socket(_) => "",
            };
            let stream = tls::handshake(config, name, stream).await?;
            Ok((Stream::Tls(Box::new(stream)), local))
        }
        b'N' if encryption == Encryption::IfOffered => Ok((Stream::Tcp(stream), local)),
        b'N' => Err(err!(Denied, "server does not support TLS, but the sslmode requires it")
            .hint("Switch it on at the server (ssl = on, ssl_cert_file, ssl_key_file), or change sslmode if the network is trusted.")),
        b'E' => Err(err!(Unreachable, "server refused the connection before TLS could be set up")),
        _ => Err(protocol("answer to the request for TLS")),
    }
}

fn set_options(stream: &TcpStream, keep_alive: KeepAlive) -> std::io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, keep_alive.enabled)?;
    if keep_alive.enabled {
        if let Some(idle) = keep_alive.idle {
            sockopt::set_tcp_keepidle(stream, idle)?;
        }
        if let Some(interval) = keep_alive.interval {
            sockopt::set_tcp_keepintvl(stream, interval)?;
        }
        if let Some(count) = keep_alive.count {
            sockopt::set_tcp_keepcnt(stream, count)?;
        }
    }
    if let Some(timeout) = keep_alive.user_timeout {
        sockopt::set_tcp_user_timeout(
            stream,
            u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        )?;
    }
    Ok(())
}

/// Startup message, authentication, and everything up to the first ReadyForQuery.
async fn start(
    info: &ConnInfo,
    host: &Host,
    stream: Stream,
    local: Option<IpAddr>,
    session: Session,
    progress: &dyn Progress,
) -> Result<Connected> {
    let database = session.hba_database(info);
    let password = password(info, host, database, progress);
    let credentials = Credentials {
        user: &info.user,
        password: password.as_ref(),
        channel_binding: info.channel_binding,
        refused: Refused {
            user: &info.user,
            database,
            address: local,
            encrypted: matches!(stream, Stream::Tls(_)),
            replication: session != Session::Sql,
        },
    };
    let mut wire = Wire::new(stream);
    wire.send(|out| frontend::startup_message(session.startup(info), out))
        .await?;
    authenticate(&mut wire, &credentials).await?;
    wire.set_authenticated();
    let mut parameters = BTreeMap::new();
    let mut pid = None;
    loop {
        match wire.receive().await? {
            Message::ParameterStatus(body) if parameters.len() < PARAMETER_COUNT_MAX => {
                if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                    parameters.insert(name.to_owned(), value.to_owned());
                }
            }
            Message::BackendKeyData(body) => pid = Some(body.process_id()),
            Message::NoticeResponse(body) => {
                progress.note(&format!("server: {}", ServerMessage::read(body.fields())));
            }
            Message::ErrorResponse(body) => return Err(credentials.error(&body)),
            Message::ReadyForQuery(_) => break,
            _ => return Err(protocol("a message during start-up is not one of start-up")),
        }
    }
    Ok(Connected {
        wire,
        parameters,
        place: host.clone(),
        pid,
    })
}

fn password(info: &ConnInfo, host: &Host, dbname: &str, progress: &dyn Progress) -> Option<Secret> {
    if info.password.is_some() {
        return info.password.clone();
    }
    let wanted = Wanted {
        host: &host.passfile_name(),
        port: host.port,
        dbname,
        user: &info.user,
    };
    match passfile::look_up(info.passfile.as_deref()?, &wanted) {
        Found::Password(password) => Some(password),
        Found::Nothing => None,
        Found::Skipped(reason) => {
            progress.warn(&reason);
            None
        }
    }
}
