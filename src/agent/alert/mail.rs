//! A letter by SMTP.

use std::time::Duration;

use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::{Message, SmtpTransport, Transport};

use super::decide::{Event, Notice};
use super::{payload, sink};
use crate::config::{Sink, is_loopback};
use crate::err;
use crate::error::Result;

/// Longest subject.
const SUBJECT_MAX: usize = 120;

/// Sends a notice as a letter of plain text.
pub(super) fn send(sink: &Sink, notice: &Notice, host: &str, deadline: Duration) -> Result<()> {
    let server = sink.smtp.as_deref().unwrap_or_default();
    let letter = letter(sink, notice, host)?;
    let failed = |e: lettre::transport::smtp::Error| match e.is_timeout() || would_block(&e) {
        true => err!(
            Deadline,
            "the mail server has not answered for {} s",
            deadline.as_secs()
        ),
        false => err!(Unreachable, "the mail server does not take the letter").source(e),
    };
    let mut transport = SmtpTransport::from_url(server)
        .map_err(|e| err!(Config, "\"smtp\" is no URL of a mail server").source(e))?;
    if let (Some(user), Some(file)) = (&sink.user, &sink.password_file) {
        let is_secure = server.starts_with("smtps://") || server.contains("tls=required");
        let address = server.split_once("://").map_or("", |(_, rest)| rest);
        if !is_secure && !is_loopback(address.rsplit('@').next().unwrap_or_default()) {
            return Err(
                err!(Config, "the password of a mail server goes over TLS alone")
                    .hint("Write smtps://HOST, or smtp://HOST:587?tls=required."),
            );
        }
        let password = sink::secret(file)?;
        transport =
            transport.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
    }
    let sent = transport.timeout(Some(deadline)).build().send(&letter);
    sent.map(drop).map_err(failed)
}

/// A socket whose time limit is over says that its answer is not there yet.
fn would_block(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_system = error.downcast_ref::<std::io::Error>();
    of_system.is_some_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
        || error.source().is_some_and(would_block)
}

fn letter(sink: &Sink, notice: &Notice, host: &str) -> Result<Message> {
    let mailbox = |text: &str| -> Result<Mailbox> {
        text.parse()
            .map_err(|_| err!(Config, "\"{}\" is no address of mail", text.escape_debug()))
    };
    let what = match notice.event {
        Event::Resolved => "resolved",
        Event::Test => "test",
        Event::New | Event::Repeat => notice.severity.name(),
    };
    let subject = format!("[pitr {host}] {what}: {}", notice.summary);
    // A line break would begin a header of its own.
    let subject: String = subject
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SUBJECT_MAX)
        .collect();
    let mut builder = Message::builder()
        .from(mailbox(sink.from.as_deref().unwrap_or_default())?)
        .subject(subject);
    for to in &sink.to {
        builder = builder.to(mailbox(to)?);
    }
    let mut text = format!(
        "{}\n\nCondition: {}\nSince: {}\n",
        payload::line(notice, host),
        notice.id,
        notice.since
    );
    if let Some(anchor) = &notice.anchor {
        text = format!("{text}Audit log: {anchor}\n");
    }
    builder
        .body(text)
        .map_err(|e| err!(Config, "the letter cannot be written").source(e))
}
