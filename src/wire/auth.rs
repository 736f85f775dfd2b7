//! Authentication: cleartext, md5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, each only where it is safe.
//!
//! A password goes out in cleartext only over TLS or a local socket. With `channel_binding=require` nothing but SCRAM-SHA-256-PLUS will
//! do; and a server that offers the bound kind is never answered with the unbound one unless binding is off or impossible.
//!
//! PostgreSQL: src/interfaces/libpq/fe-auth.c (pg_SASL_init, check_expected_areq); RFC 5802.

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{AuthenticationSaslBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;

use super::conninfo::ChannelBindingMode;
use super::message::{Stream, Wire};
use super::server_error::{Refused, ServerMessage, protocol, refused};
use super::tls;
use crate::config::Secret;
use crate::err;
use crate::error::{Error, Result};

/// The credentials that the client brings along.
pub(super) struct Credentials<'a> {
    pub user: &'a str,
    pub password: Option<&'a Secret>,
    pub channel_binding: ChannelBindingMode,
    /// For the hint of a refusal.
    pub refused: Refused<'a>,
}

impl Credentials<'_> {
    /// The error that refuses them.
    pub fn error(&self, body: &ErrorResponseBody) -> Error {
        refused(ServerMessage::read(body.fields()), &self.refused)
    }

    fn password(&self) -> Result<&str> {
        self.password.map(Secret::expose).ok_or_else(|| {
            err!(Denied, "server asks for a password, and none is given for role \"{}\"", self.user)
                .hint("Put it into the password file (~/.pgpass, mode 0600: host:port:database:user:password; the database is \"replication\" for backups), or set PGPASSWORD.")
        })
    }
}

/// Answers the server's requests until it is satisfied.
///
/// # Errors
/// `Denied` if the server refuses, cannot prove itself, or asks for what is not safe here.
pub(super) async fn authenticate(wire: &mut Wire, credentials: &Credentials<'_>) -> Result<()> {
    let mut bound = false;
    loop {
        let message = wire.receive().await?;
        if credentials.channel_binding == ChannelBindingMode::Require
            && !bound
            && !matches!(
                message,
                Message::AuthenticationSasl(_)
                    | Message::ErrorResponse(_)
                    | Message::NoticeResponse(_)
            )
        {
            return Err(not_bound());
        }
        match message {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword => cleartext(wire, credentials).await?,
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(
                    credentials.user.as_bytes(),
                    credentials.password()?.as_bytes(),
                    body.salt(),
                );
                wire.send(|out| frontend::password_message(hash.as_bytes(), out))
                    .await?;
            }
            Message::AuthenticationSasl(body) => bound = scram(wire, credentials, &body).await?,
            Message::ErrorResponse(body) => return Err(credentials.error(&body)),
            Message::NoticeResponse(_) => {}
            Message::AuthenticationGss
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5 => {
                return Err(err!(Denied, "server asks for GSSAPI or SSPI authentication, which is not supported").hint(
                    "Put a line with scram-sha-256, cert or peer for this role before the present one in pg_hba.conf.",
                ));
            }
            _ => {
                return Err(protocol(
                    "a message during authentication is not one of authentication",
                ));
            }
        }
    }
}

async fn cleartext(wire: &mut Wire, credentials: &Credentials<'_>) -> Result<()> {
    if !wire.stream.is_private() {
        return Err(err!(Denied, "server asks for the password in cleartext over a connection that is not encrypted")
            .hint("The password was not sent. Use sslmode=verify-full, or scram-sha-256 instead of password in pg_hba.conf."));
    }
    let password = credentials.password()?;
    wire.send(|out| frontend::password_message(password.as_bytes(), out))
        .await
}

fn not_bound() -> Error {
    err!(Denied, "channel binding is required, but the server did not authenticate with it").hint(
        "Only SCRAM-SHA-256 over TLS can be bound to its channel: use scram-sha-256 in pg_hba.conf with a hostssl line and sslmode=require \
         or stricter, and set the password again if it was stored as md5. Otherwise use channel_binding=prefer.",
    )
}

/// Runs SCRAM; tells whether it was bound to the channel.
async fn scram(
    wire: &mut Wire,
    credentials: &Credentials<'_>,
    offered: &AuthenticationSaslBody,
) -> Result<bool> {
    let mechanisms: Vec<String> = offered
        .mechanisms()
        .map(|name| Ok(name.to_owned()))
        .collect()
        .map_err(|error| protocol("list of authentication mechanisms").source(error))?;
    let offers = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
    let end_point = match &wire.stream {
        Stream::Tls(stream) if credentials.channel_binding != ChannelBindingMode::Disable => {
            tls::server_end_point(stream)
        }
        _ => None,
    };
    let (mechanism, binding) = match end_point {
        Some(hash) if offers(sasl::SCRAM_SHA_256_PLUS) => (
            sasl::SCRAM_SHA_256_PLUS,
            sasl::ChannelBinding::tls_server_end_point(hash),
        ),
        _ if credentials.channel_binding == ChannelBindingMode::Require => return Err(not_bound()),
        // "We could have": a server that did offer the bound kind knows then that somebody took its offer away.
        Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    if !offers(mechanism) {
        return Err(err!(
            Denied,
            "server offers none of the supported SASL authentication mechanisms: {}",
            mechanisms.join(", ").escape_debug()
        ));
    }
    let mut scram = sasl::ScramSha256::new(credentials.password()?.as_bytes(), binding);
    wire.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out))
        .await?;
    match sasl_reply(wire, credentials).await? {
        Message::AuthenticationSaslContinue(body) => {
            scram.update(body.data()).map_err(not_proven)?;
        }
        _ => return Err(protocol("SASL authentication does not continue")),
    }
    wire.send(|out| frontend::sasl_response(scram.message(), out))
        .await?;
    match sasl_reply(wire, credentials).await? {
        Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(not_proven)?,
        _ => return Err(protocol("SASL authentication does not end")),
    }
    Ok(mechanism == sasl::SCRAM_SHA_256_PLUS)
}

async fn sasl_reply(wire: &mut Wire, credentials: &Credentials<'_>) -> Result<Message> {
    loop {
        match wire.receive().await? {
            Message::ErrorResponse(body) => return Err(credentials.error(&body)),
            Message::NoticeResponse(_) => {}
            message => return Ok(message),
        }
    }
}

fn not_proven(error: std::io::Error) -> Error {
    err!(Denied, "server could not prove that it knows the password").source(error)
}
