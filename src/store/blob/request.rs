//! One request: tried until it is answered, for a time that is bounded. Pauses and repetitions are those of all stores over HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use hyper::http::{HeaderMap, Method, Request};

use super::answer;
use super::client::{Client, bounded};
use super::credentials;
use crate::store::http::attempt::{Attempt, Watched, Way};
use crate::store::http::failure::{Answered, Failure, Kind};
use crate::store::http::retry::{Next, Purpose, Random, Time, Tried, given_up};
use crate::store::life;
use crate::text::percent_encoded;

/// The longest answer that is no object.
const ANSWER_MAX: usize = 16 << 20;

/// The properties that requests of one store have in common.
pub(super) struct Place {
    pub(super) client: Arc<Client>,
    pub(super) bucket: String,
    /// With its slash at the end, or empty.
    pub(super) prefix: String,
    /// As the operator knows it.
    pub(super) url: String,
    /// Random, for pauses and for the marks of uploads.
    pub(super) random: Random,
}

/// A request before it is signed; it may be sent several times.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Whole, with the query.
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
    /// Bytes that the answer may have.
    pub(super) most: usize,
}

/// Adds parameters to a query, but for empty ones.
pub(super) fn with_query(mut url: String, parameters: &[(&str, &str)]) -> String {
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        let value = percent_encoded(value.as_bytes(), b"");
        url.push_str(&format!("&{name}={value}"));
    }
    url
}

impl Ask {
    pub(super) fn new(method: Method, url: String) -> Ask {
        Ask {
            method,
            url,
            headers: Vec::new(),
            body: Bytes::new(),
            most: ANSWER_MAX,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Ask {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(self, body: Bytes) -> Ask {
        Ask { body, ..self }
    }

    pub(super) fn most(self, most: usize) -> Ask {
        Ask { most, ..self }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn is_success(&self) -> bool {
        (200..=299).contains(&self.status)
    }
}

impl Place {
    /// Runs a request that sets no condition until it is answered or its time is over. `read` gets answers of success alone.
    pub(super) async fn run<T: Send>(
        &self,
        doing: &str,
        ask: &Ask,
        read: impl Fn(Answer) -> Answered<T> + Send + Sync,
    ) -> Answered<T> {
        let plain = self.run_as(Purpose::Plain, doing, ask, read).await;
        plain.map_err(Failure::without_condition)
    }

    /// As [`Place::run`], of a request that may say that a name is taken.
    pub(super) async fn run_as<T: Send>(
        &self,
        purpose: Purpose,
        doing: &str,
        ask: &Ask,
        read: impl Fn(Answer) -> Answered<T> + Send + Sync,
    ) -> Answered<T> {
        let mut time = Time::of(&self.client.settings, purpose);
        let mut tried = Tried::default();
        let mut before: Option<Failure> = None;
        let (calm, random) = (&self.client.calm, &self.random);
        time.pause(Duration::ZERO, calm, random).await;
        loop {
            let silence = time.of_attempt(before.is_none());
            let attempt = Attempt::new(&self.client.secrets);
            let request = Box::pin(async {
                let answer = self.send(ask).await?;
                match answer.is_success() || answer.status == 308 {
                    true => read(answer),
                    false => Err(answer::failure(&self.client.service, &answer)),
                }
            });
            let failure = match attempt.run(silence, time.last, request).await {
                Some(Ok(done)) => {
                    life::sign();
                    return Ok(done);
                }
                Some(Err(failure)) => failure,
                None => given_up(&attempt, attempt.quiet() < time.stall, before.take()),
            };
            time.spend(attempt.idle());
            if !matches!(failure.kind, Kind::Again) {
                life::sign();
            }
            let pause = match tried.next(&failure.kind, random.draw()) {
                Next::Fail => return Err(tried.told(doing, &self.url, failure)),
                Next::Renew(_) => {
                    self.client.renew()?;
                    Duration::ZERO
                }
                Next::Now => Duration::ZERO,
                Next::Pause(pause) => pause,
            };
            if failure.is_throttled {
                calm.keep(pause, Instant::now());
            }
            if !time.pause(pause, calm, random).await {
                return Err(tried.told(doing, &self.url, failure));
            }
            before = Some(failure);
        }
    }

    async fn send(&self, ask: &Ask) -> Answered<Answer> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.url)
            .header("content-length", ask.body.len());
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(())
            .map_err(|e| crate::err!(Internal, "a request cannot be made").source(e))?;
        let (mut head, ()) = request.into_parts();
        let signed = self.client.credentials().sign(&mut head).await;
        if let Err(e) = signed {
            let (is_final, error) = credentials::explained(&e);
            let kind = if is_final { Kind::Final } else { Kind::Again };
            return Err(Failure::new(kind, error));
        }
        let attempt = Attempt::current();
        if let (Some(attempt), Some(signature)) = (&attempt, head.headers.get("authorization"))
            && let Ok(text) = signature.to_str()
        {
            let secret = text.rsplit([' ', ':']).next().unwrap_or_default();
            attempt.is_signed(&format!("Signature={secret}"));
        }
        let mut body = SdkBody::from(ask.body.to_vec());
        if !ask.body.is_empty() {
            body = ask.body.clone().into();
            Watched::watch(&mut body, Way::ToStore);
        }
        let sent = self.client.http.request(Request::from_parts(head, body));
        let answer = sent.await.map_err(|e| answer::without_answer(&e))?;
        if let Some(attempt) = &attempt {
            attempt.is_heard();
        }
        let (head, body) = answer.into_parts();
        let length = head.headers.get("content-length");
        let length = length
            .and_then(|l| l.to_str().ok())
            .and_then(|l| l.parse().ok());
        let mut body = SdkBody::from_body_1_x(body);
        if head.status.is_success() {
            Watched::watch(&mut body, Way::FromStore);
        }
        let body = bounded(body, ask.most).await.map_err(Failure::again)?;
        // A body that is cut is no shorter answer; that to a HEAD has none.
        if ask.method != Method::HEAD && length.is_some_and(|l: usize| l != body.len()) {
            return Err(Failure::again("the answer broke off"));
        }
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    /// A key as the service knows it.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}
