//! Delivers a notice to a sink. A sink has ten seconds to take it. Otherwise the next look offers it again.

use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::decide::Notice;
use super::{http, mail, payload};
use crate::config::{Secret, Severity, Shape, Sink, SinkKind};
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::program;
use crate::repo::event;

/// How long a delivery may take; each step of a letter, whose server may greet late.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long all steps of a letter may take.
const LETTER: Duration = Duration::from_secs(30);
/// How long a program may take to end when it is asked to, and killed then.
const END: Duration = Duration::from_secs(25);
/// How much later than its deadline a delivery may come back.
const GRACE: Duration = Duration::from_secs(1);
/// The place where PagerDuty takes events.
const PAGER_DUTY: &str = "https://events.pagerduty.com/v2/enqueue";
/// The socket of the system's log.
const LOG: &str = "/dev/log";
/// Files of secrets are not larger.
const SECRET_BYTES: u64 = 8 << 10;

/// Delivers a notice. A delivery may hang where nothing has a limit: at a name server, or in a file of a secret that a network holds. A
/// thread of its own delivers, and this function leaves it alone when its time is over.
///
/// # Errors
/// `Unreachable`, `Denied` or `Server` as the sink fails; `Deadline`; `Config` for a file that cannot be read. No error has a secret.
pub fn deliver(sink: &Sink, notice: &Notice) -> Result<()> {
    let (own, copy) = (sink.clone(), notice.clone());
    within(limit(sink.kind), move || attempt(&own, &copy))
}

/// Sends a heartbeat, as [`deliver`] does a notice.
///
/// # Errors
/// Those of [`deliver`].
pub(super) fn beat(sink: &Sink, anchor: Option<&str>) -> Result<()> {
    let (own, anchor) = (sink.clone(), anchor.map(str::to_owned));
    within(limit(sink.kind), move || ping(&own, anchor.as_deref()))
}

fn within(limit: Duration, deliver: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let (done, ended) = channel();
    std::thread::spawn(move || {
        // Nobody listens any more where the time was over.
        let _ = done.send(deliver());
    });
    ended.recv_timeout(limit).unwrap_or_else(|e| {
        Err(match e {
            RecvTimeoutError::Timeout => err!(
                Deadline,
                "the sink has not taken the alert for {} s",
                limit.as_secs()
            ),
            RecvTimeoutError::Disconnected => err!(Internal, "the delivery broke off"),
        })
    })
}

/// Returns how long a delivery to a sink of this kind takes at most.
fn limit(kind: SinkKind) -> Duration {
    match kind {
        SinkKind::Command => fault::shortened(DEADLINE) + END,
        SinkKind::Email => fault::shortened(LETTER),
        SinkKind::Webhook(_) | SinkKind::Syslog | SinkKind::Heartbeat => {
            fault::shortened(DEADLINE) + GRACE
        }
    }
}

/// Returns how long a delivery takes at most, whatever its sink is, and the heartbeats behind it.
pub(super) fn longest() -> Duration {
    limit(SinkKind::Command) + limit(SinkKind::Heartbeat)
}

fn attempt(sink: &Sink, notice: &Notice) -> Result<()> {
    let host = event::host();
    let deadline = fault::shortened(DEADLINE);
    match sink.kind {
        SinkKind::Command => run(sink, notice, &host, deadline),
        SinkKind::Webhook(shape) => {
            let key = sink.key_file.as_deref().map(secret).transpose()?;
            let key = key.as_ref().map_or("", |k| k.expose());
            let body = payload::body(shape, sink.template.as_deref(), notice, &host, key);
            let url = url(sink, shape)?;
            http::post(url.expose(), body, deadline)
        }
        SinkKind::Email => mail::send(sink, notice, &host, deadline),
        SinkKind::Syslog => log(sink, &payload::line(notice, &host), notice.severity),
        // A test is a beat.
        SinkKind::Heartbeat => ping(sink, notice.anchor.as_deref()),
    }
}

fn ping(sink: &Sink, anchor: Option<&str>) -> Result<()> {
    let (url, deadline) = (url(sink, Shape::Generic)?, fault::shortened(DEADLINE));
    match &sink.template {
        None => http::get(url.expose(), deadline),
        Some(template) => {
            let body = payload::beat(template, &event::host(), anchor);
            http::post(url.expose(), body, deadline)
        }
    }
}

fn url(sink: &Sink, shape: Shape) -> Result<Secret> {
    match (&sink.url, &sink.url_file) {
        (_, Some(file)) => secret(file),
        (Some(url), None) => Ok(url.clone()),
        (None, None) if shape == Shape::PagerDuty => Ok(Secret::new(PAGER_DUTY.to_owned())),
        (None, None) => Err(err!(Config, "the sink has no url")),
    }
}

/// Reads a file that holds a secret, without the end of its line.
pub(super) fn secret(file: &Path) -> Result<Secret> {
    use std::io::Read as _;
    let failed = |e| Error::from_io(format!("read \"{}\"", file.display()), e);
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened
        .take(SECRET_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(Secret::new(text.trim_end().to_owned()))
}

fn run(sink: &Sink, notice: &Notice, host: &str, deadline: Duration) -> Result<()> {
    let mut command = program::command(&sink.command)?;
    command
        .env("PITR_ALERT_EVENT", event_name(notice))
        .env("PITR_ALERT_ID", &notice.id)
        .env("PITR_ALERT_AGENT", &notice.agent)
        .env("PITR_ALERT_SEVERITY", notice.severity.name())
        .env("PITR_ALERT_SUMMARY", &notice.summary)
        .env(
            "PITR_ALERT_ANCHOR",
            notice.anchor.as_deref().unwrap_or_default(),
        )
        .env(
            "PITR_ALERT_NEXT",
            notice.next.as_deref().unwrap_or_default(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut running = program::Running::start(&mut command)?;
    if let Some(mut pipe) = running.stdin() {
        let text = payload::fields(notice, host).to_string();
        // A program that does not read it has the variables.
        let _ = pipe.write_all(text.as_bytes());
    }
    let started = Instant::now();
    running.succeed(&mut || match started.elapsed() < deadline {
        true => Ok(()),
        false => Err(err!(
            Deadline,
            "the program has not ended for {} s",
            deadline.as_secs()
        )),
    })
}

fn event_name(notice: &Notice) -> String {
    let value = serde_json::to_value(notice.event).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// RFC 3164, as the system's own programs write it: facility "daemon", severity, and the name of the program.
fn log(sink: &Sink, line: &str, severity: Severity) -> Result<()> {
    let place = sink.url.as_ref().map_or(LOG, |url| url.expose());
    let severity = match severity {
        Severity::Critical => 2,
        Severity::High => 3,
        Severity::Medium => 4,
        Severity::Low => 6,
    };
    let text = format!("<{}>pitr[{}]: {line}", 3 * 8 + severity, std::process::id());
    let failed = |e| Error::from_io(format!("write to \"{place}\""), e);
    let socket = UnixDatagram::unbound().map_err(failed)?;
    socket.set_write_timeout(Some(DEADLINE)).map_err(failed)?;
    socket
        .send_to(text.as_bytes(), place)
        .map(drop)
        .map_err(failed)
}
