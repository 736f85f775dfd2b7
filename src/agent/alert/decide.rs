//! Decides which notices each sink gets: a function of the conditions, of the notices that were taken, and of the clock.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::heartbeat::Beat;
use crate::config::{Severity, Sink, SinkKind};
use crate::operate::failing_sinks::Failing;
use crate::operate::human;
use crate::pg::time::TimestampTz;

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Its name, which stays the same for as long as it lasts.
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// The trouble, in a line.
    pub summary: String,
    /// The command that helps.
    pub next: Option<String>,
    /// The sink that it is about, which cannot hear of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
}

/// The reason of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It is new, or has become worse.
    New,
    /// It goes on.
    Repeat,
    /// It has ended.
    Resolved,
    /// A test.
    Test,
}

/// A message for one sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub sink: String,
    /// Why it is sent.
    pub event: Event,
    /// The name of the condition.
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// The trouble.
    pub summary: String,
    /// The command that helps.
    pub next: Option<String>,
    /// When it was first seen.
    pub since: TimestampTz,
    /// The agent, by a name of its own: several may have one host name, and clusters of one name.
    pub agent: String,
    /// The newest line of this host's audit log: whoever keeps the notice keeps an anchor.
    pub anchor: Option<String>,
}

impl Notice {
    /// The sink and the condition: of one decision, each pair has one notice.
    pub fn key(&self) -> (&str, &str) {
        (&self.sink, &self.id)
    }
}

/// A condition that a sink was told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub time: TimestampTz,
    /// How bad it was then.
    pub severity: Severity,
}

/// A condition that lasts, or of which some sink has not heard that it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// When it was first seen.
    pub since: TimestampTz,
    /// How bad it is.
    pub severity: Severity,
    /// The trouble.
    pub summary: String,
    /// The command that helps.
    pub next: Option<String>,
    /// Whether it has ended.
    pub is_over: bool,
    /// The sinks that took it.
    pub told: BTreeMap<String, Told>,
    /// The sinks that may have taken it: a kill came before the record of the delivery, or the delivery had no end.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub offered: BTreeSet<String>,
}

/// Everything that was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// Conditions by name.
    pub open: BTreeMap<String, Open>,
    /// Sinks by name.
    pub failing: BTreeMap<String, Failing>,
    /// The last heartbeats, by sink.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beats: BTreeMap<String, Beat>,
}

impl Open {
    /// Whether it lasts, or its end is still to be told.
    fn is_open(&self) -> bool {
        !self.is_over || !self.told.is_empty() || !self.offered.is_empty()
    }

    /// The condition, as it was seen last.
    pub fn condition(&self, id: &str) -> Condition {
        Condition {
            id: id.to_owned(),
            severity: self.severity,
            summary: self.summary.clone(),
            next: self.next.clone(),
            about: None,
        }
    }
}

/// Takes down what is wrong, and returns the notices that are due.
pub fn decide(
    now: TimestampTz,
    conditions: &[Condition],
    book: &mut Book,
    sinks: &[Sink],
) -> Vec<Notice> {
    book.take_down(now, conditions);
    let mut notices = Vec::new();
    for (id, open) in &book.open {
        let about = conditions
            .iter()
            .find(|c| c.id == *id)
            .and_then(|c| c.about.as_deref());
        for sink in sinks
            .iter()
            .filter(|sink| Some(sink.name.as_str()) != about && sink.kind != SinkKind::Heartbeat)
        {
            if let Some(event) = open.event(now, sink) {
                notices.push(Notice {
                    sink: sink.name.clone(),
                    event,
                    id: id.clone(),
                    severity: open.severity,
                    summary: open.summary.clone(),
                    next: open.next.clone(),
                    since: open.since,
                    agent: String::new(),
                    anchor: None,
                });
            }
        }
    }
    notices.extend(returns(now, book, sinks, &notices));
    // The worst first: a kill or a slow sink delays the rest.
    notices.sort_by_key(|notice| std::cmp::Reverse(notice.severity));
    notices
}

/// The notices by which failing sinks to which nothing else goes show that they take something again.
fn returns(now: TimestampTz, book: &Book, sinks: &[Sink], others: &[Notice]) -> Vec<Notice> {
    let is_idle = |sink: &&Sink| {
        sink.kind != SinkKind::Heartbeat
            && !is_quiet(now, sink)
            && others.iter().all(|notice| notice.sink != sink.name)
    };
    let one = |sink: &Sink| {
        let name = &sink.name;
        let since = book.failing.get(name)?.since;
        let failed = human::time(since);
        Some(Notice {
            sink: name.clone(),
            event: Event::Resolved,
            id: of_sink(name),
            severity: Severity::High,
            summary: format!("alert sink \"{name}\" takes notices again; it failed at {failed}"),
            next: None,
            since,
            agent: String::new(),
            anchor: None,
        })
    };
    sinks.iter().filter(is_idle).filter_map(one).collect()
}

/// The name of the condition of a sink that fails.
pub fn of_sink(name: &str) -> String {
    format!("alerts/{name}")
}

impl Book {
    /// Forgets the sinks that are configured no more. Only a configuration that was read as a whole tells which these are.
    pub fn keep(&mut self, sinks: &[Sink]) {
        let names: BTreeSet<&str> = sinks.iter().map(|s| s.name.as_str()).collect();
        for open in self.open.values_mut() {
            open.told.retain(|sink, _| names.contains(sink.as_str()));
            open.offered.retain(|sink| names.contains(sink.as_str()));
        }
        self.failing.retain(|sink, _| names.contains(sink.as_str()));
        self.beats.retain(|sink, _| names.contains(sink.as_str()));
    }

    fn take_down(&mut self, now: TimestampTz, conditions: &[Condition]) {
        for one in conditions {
            let open = self.open.entry(one.id.clone()).or_insert_with(|| Open {
                since: now,
                severity: one.severity,
                summary: String::new(),
                next: None,
                is_over: false,
                told: BTreeMap::new(),
                offered: BTreeSet::new(),
            });
            if open.is_over {
                // It came back before everybody heard that it had ended.
                open.since = now;
                open.is_over = false;
            }
            open.severity = one.severity;
            open.summary.clone_from(&one.summary);
            open.next.clone_from(&one.next);
        }
        let is_there: BTreeSet<&String> = conditions.iter().map(|c| &c.id).collect();
        for (id, open) in &mut self.open {
            open.is_over = !is_there.contains(id);
        }
        self.open.retain(|_, open| open.is_open());
    }

    /// Notes that a notice is about to go to its sink. Told of its condition or not, the sink then hears that the condition ended.
    pub fn offer(&mut self, notice: &Notice) {
        if let Some(open) = self.open.get_mut(&notice.id) {
            open.offered.insert(notice.sink.clone());
        }
    }

    /// Notes that a notice did not reach its sink. The offer of an earlier look, whose end nobody knows, stays as it is in the book of then.
    pub fn withdraw(&mut self, notice: &Notice, earlier: &Book) {
        let before = earlier.open.get(&notice.id);
        if before.is_some_and(|open| open.offered.contains(&notice.sink)) {
            return;
        }
        if let Some(open) = self.open.get_mut(&notice.id) {
            open.offered.remove(&notice.sink);
        }
        self.open.retain(|_, open| open.is_open());
    }

    /// Notes that a sink takes nothing, or takes something again.
    pub fn fail(&mut self, sink: &str, now: TimestampTz, error: Option<String>) {
        let Some(error) = error else {
            self.failing.remove(sink);
            return;
        };
        let failing = self.failing.entry(sink.to_owned());
        let failing = failing.or_insert_with(|| Failing {
            since: now,
            error: String::new(),
        });
        failing.error = error;
    }

    /// Notes what became of a notice.
    pub fn note(&mut self, notice: &Notice, now: TimestampTz, error: Option<String>) {
        let is_taken = error.is_none();
        self.fail(&notice.sink, now, error);
        if !is_taken {
            return;
        }
        let Some(open) = self.open.get_mut(&notice.id) else {
            return;
        };
        match notice.event {
            Event::Resolved => {
                open.told.remove(&notice.sink);
                open.offered.remove(&notice.sink);
            }
            _ => {
                let told = Told {
                    time: now,
                    severity: notice.severity,
                };
                open.told.insert(notice.sink.clone(), told);
                open.offered.remove(&notice.sink);
            }
        }
        self.open.retain(|_, open| open.is_open());
    }
}

impl Open {
    /// The reason to tell a sink now; none where there is none.
    fn event(&self, now: TimestampTz, sink: &Sink) -> Option<Event> {
        let told = self.told.get(&sink.name);
        let event = match told {
            Some(_) if self.is_over => Event::Resolved,
            None if self.is_over && self.offered.contains(&sink.name) => Event::Resolved,
            None if self.is_over => return None,
            None => Event::New,
            Some(told) if self.severity > told.severity => Event::New,
            // A sink hears advice once.
            Some(_) if self.severity == Severity::Low => return None,
            Some(told) => {
                // A clock that went back lets it be told again.
                let passed = now.duration_since(told.time);
                passed
                    .is_none_or(|passed| passed >= sink.repeat)
                    .then_some(Event::Repeat)?
            }
        };
        // That it ended hears who heard that it began.
        let is_heard = event == Event::Resolved || self.severity >= sink.severity;
        let is_quiet = self.severity < Severity::Critical && is_quiet(now, sink);
        (is_heard && !is_quiet).then_some(event)
    }
}

/// Whether a sink has its quiet hours.
fn is_quiet(now: TimestampTz, sink: &Sink) -> bool {
    let Some(hours) = &sink.quiet_hours else {
        return false;
    };
    let zone = sink
        .zone
        .as_deref()
        .unwrap_or("UTC")
        .parse::<chrono_tz::Tz>();
    let at = now
        .unix_micros()
        .and_then(chrono::DateTime::<chrono::Utc>::from_timestamp_micros);
    // A zone that is not known silences nobody.
    let (Ok(zone), Some(at)) = (zone, at) else {
        return false;
    };
    let at = chrono::Timelike::num_seconds_from_midnight(&at.with_timezone(&zone));
    u16::try_from(at / 60).is_ok_and(|minute| hours.contains(minute))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn time(text: &str) -> TimestampTz {
        text.parse().unwrap()
    }

    fn sink(name: &str, severity: Severity) -> Sink {
        Sink {
            name: name.into(),
            kind: SinkKind::Syslog,
            url: None,
            url_file: None,
            template: None,
            command: vec![],
            key_file: None,
            smtp: None,
            user: None,
            password_file: None,
            from: None,
            to: vec![],
            severity,
            repeat: Duration::from_secs(4 * 3600),
            quiet_hours: None,
            zone: None,
        }
    }

    fn wrong(id: &str, severity: Severity) -> Condition {
        Condition {
            id: id.into(),
            severity,
            summary: format!("{id} is wrong"),
            next: None,
            about: None,
        }
    }

    /// Decides, and lets every sink but `deaf` take what it is sent.
    fn round(
        now: &str,
        conditions: &[Condition],
        book: &mut Book,
        sinks: &[Sink],
        deaf: &str,
    ) -> Vec<(String, String, Event)> {
        let now = time(now);
        let notices = decide(now, conditions, book, sinks);
        for notice in &notices {
            let error = (notice.sink == deaf).then(|| "away".to_owned());
            book.note(notice, now, error);
        }
        notices
            .into_iter()
            .map(|n| (n.sink, n.id, n.event))
            .collect()
    }

    fn told(sink: &str, id: &str, event: Event) -> (String, String, Event) {
        (sink.into(), id.into(), event)
    }

    #[test]
    fn a_condition_is_told_once_repeated_and_resolved() {
        let (mut book, sinks) = (Book::default(), [sink("a", Severity::Medium)]);
        let gap = [wrong("gap", Severity::Critical)];
        assert_eq!(
            round("2026-11-20T02:00:00Z", &gap, &mut book, &sinks, ""),
            [told("a", "gap", Event::New)]
        );
        assert!(round("2026-11-20T03:00:00Z", &gap, &mut book, &sinks, "").is_empty());
        assert_eq!(
            round("2026-11-20T06:00:00Z", &gap, &mut book, &sinks, ""),
            [told("a", "gap", Event::Repeat)]
        );
        assert_eq!(
            round("2026-11-20T06:01:00Z", &[], &mut book, &sinks, ""),
            [told("a", "gap", Event::Resolved)]
        );
        assert_eq!(book, Book::default());
    }

    #[test]
    fn advice_is_told_once() {
        let (mut book, sinks) = (Book::default(), [sink("a", Severity::Low)]);
        let advice = [wrong("advice", Severity::Low)];
        let mut at = |now| round(now, &advice, &mut book, &sinks, "");
        let first = at("2026-11-20T02:00:00Z");
        assert_eq!(first, [told("a", "advice", Event::New)]);
        assert_eq!(at("2026-11-28T02:00:00Z"), []);
    }

    #[test]
    fn what_a_sink_did_not_take_is_offered_again_and_the_others_hear_of_the_sink() {
        let (mut book, sinks) = (
            Book::default(),
            [sink("a", Severity::Low), sink("b", Severity::Low)],
        );
        let gap = [wrong("gap", Severity::Critical)];
        assert_eq!(
            round("2026-11-20T02:00:00Z", &gap, &mut book, &sinks, "a").len(),
            2
        );
        assert_eq!(book.failing["a"].error, "away");
        let about_a = Condition {
            about: Some("a".into()),
            ..wrong("sink a", Severity::High)
        };
        let both = [gap[0].clone(), about_a];
        let sent = round("2026-11-20T02:01:00Z", &both, &mut book, &sinks, "a");
        assert_eq!(
            sent,
            [
                told("a", "gap", Event::New),
                told("b", "sink a", Event::New)
            ]
        );
        // It ends while the sink is away: a sink that never heard of it hears nothing.
        let sent = round("2026-11-20T02:02:00Z", &[], &mut book, &sinks, "a");
        assert_eq!(
            sent,
            [
                told("b", "gap", Event::Resolved),
                told("b", "sink a", Event::Resolved),
                told("a", "alerts/a", Event::Resolved)
            ]
        );
        // Nothing else is due for it: it is asked again until it takes that.
        let back = [told("a", "alerts/a", Event::Resolved)];
        assert_eq!(
            round("2026-11-20T02:03:00Z", &[], &mut book, &sinks, "a"),
            back
        );
        assert_eq!(
            round("2026-11-20T02:04:00Z", &[], &mut book, &sinks, ""),
            back
        );
        assert_eq!(book, Book::default());
    }

    #[test]
    fn j64_a_sink_that_could_not_be_read_hears_of_the_end_later() {
        let (a, b) = (sink("a", Severity::Low), sink("b", Severity::Low));
        let (mut book, gap) = (Book::default(), [wrong("gap", Severity::Critical)]);
        let both = [a.clone(), b.clone()];
        round("2026-11-20T02:00:00Z", &gap, &mut book, &both, "b");
        round("2026-11-20T02:01:00Z", &gap, &mut book, &both, "");
        round(
            "2026-11-20T02:02:00Z",
            &[],
            &mut book,
            std::slice::from_ref(&a),
            "",
        );
        let mut other = book.clone();
        assert_eq!(
            round("2026-11-20T02:03:00Z", &[], &mut book, &both, ""),
            [told("b", "gap", Event::Resolved)]
        );
        // One that is configured no more hears nothing.
        other.keep(std::slice::from_ref(&a));
        assert_eq!(
            round("2026-11-20T02:03:00Z", &[], &mut other, &both, ""),
            []
        );
        assert_eq!(other, Book::default());
    }

    #[test]
    fn an_end_that_was_not_taken_is_told_later() {
        let (mut book, sinks) = (Book::default(), [sink("a", Severity::Low)]);
        let gap = [wrong("gap", Severity::Critical)];
        round("2026-11-20T02:00:00Z", &gap, &mut book, &sinks, "");
        assert_eq!(
            round("2026-11-20T02:01:00Z", &[], &mut book, &sinks, "a").len(),
            1
        );
        assert_eq!(
            round("2026-11-20T02:02:00Z", &[], &mut book, &sinks, ""),
            [told("a", "gap", Event::Resolved)]
        );
        assert!(book.open.is_empty());
    }

    #[test]
    fn after_a_kill_between_a_delivery_and_its_record_the_end_is_told() {
        let (mut book, sinks) = (Book::default(), [sink("a", Severity::Low)]);
        let now = time("2026-11-20T02:00:00Z");
        let gap = [wrong("gap", Severity::Critical)];
        for notice in decide(now, &gap, &mut book, &sinks) {
            book.offer(&notice);
        }
        // As long as it lasts, it is new to the sink.
        let text = serde_json::to_string(&book).unwrap();
        let mut lasting: Book = serde_json::from_str(&text).unwrap();
        assert_eq!(
            round("2026-11-20T02:01:00Z", &gap, &mut lasting, &sinks, ""),
            [told("a", "gap", Event::New)]
        );
        assert!(lasting.open["gap"].offered.is_empty());
        // An end that the sink does not take is offered again.
        for deaf in ["a", ""] {
            assert_eq!(
                round("2026-11-20T02:01:00Z", &[], &mut book, &sinks, deaf),
                [told("a", "gap", Event::Resolved)]
            );
        }
        assert!(book.open.is_empty());
    }

    #[test]
    fn a_notice_that_did_not_reach_its_sink_has_no_end() {
        let (mut book, sinks) = (Book::default(), [sink("a", Severity::Low)]);
        let now = time("2026-11-20T02:00:00Z");
        let gap = [wrong("gap", Severity::Critical)];
        for notice in decide(now, &gap, &mut book, &sinks) {
            let earlier = book.clone();
            book.offer(&notice);
            book.withdraw(&notice, &earlier);
        }
        assert!(round("2026-11-20T02:01:00Z", &[], &mut book, &sinks, "").is_empty());
        assert!(book.open.is_empty());
    }

    #[test]
    fn a_sink_that_refuses_today_hears_the_end_of_what_it_may_have_taken_yesterday() {
        let (mut book, sinks) = (Book::default(), [sink("a", Severity::Low)]);
        let gap = [wrong("gap", Severity::Critical)];
        // A kill between a delivery and its record.
        for notice in decide(time("2026-11-20T02:00:00Z"), &gap, &mut book, &sinks) {
            book.offer(&notice);
        }
        let now = time("2026-11-20T02:01:00Z");
        for notice in decide(now, &gap, &mut book, &sinks) {
            let earlier = book.clone();
            book.offer(&notice);
            book.withdraw(&notice, &earlier);
            book.note(&notice, now, Some("away".to_owned()));
        }
        assert_eq!(
            round("2026-11-20T02:02:00Z", &[], &mut book, &sinks, ""),
            [told("a", "gap", Event::Resolved)]
        );
        assert!(book.open.is_empty());
    }

    #[test]
    fn a_sink_hears_of_its_severity_and_above_and_of_what_becomes_worse() {
        let (mut book, sinks) = (Book::default(), [sink("a", Severity::High)]);
        assert!(
            round(
                "2026-11-20T02:00:00Z",
                &[wrong("x", Severity::Medium)],
                &mut book,
                &sinks,
                ""
            )
            .is_empty()
        );
        let high = [wrong("x", Severity::High)];
        assert_eq!(
            round("2026-11-20T02:01:00Z", &high, &mut book, &sinks, ""),
            [told("a", "x", Event::New)]
        );
        let critical = [wrong("x", Severity::Critical)];
        assert_eq!(
            round("2026-11-20T02:02:00Z", &critical, &mut book, &sinks, ""),
            [told("a", "x", Event::New)]
        );
    }

    #[test]
    fn quiet_hours_delay_all_that_is_not_critical() {
        let quiet = Sink {
            quiet_hours: Some("22:00-06:00".parse().unwrap()),
            zone: Some("Europe/Berlin".into()),
            ..sink("a", Severity::Low)
        };
        let (mut book, sinks) = (Book::default(), [quiet]);
        let both = [wrong("x", Severity::Medium), wrong("y", Severity::Critical)];
        // 05:30 in Berlin, then 06:30.
        assert_eq!(
            round("2026-11-20T04:30:00Z", &both, &mut book, &sinks, ""),
            [told("a", "y", Event::New)]
        );
        assert_eq!(
            round("2026-11-20T05:30:00Z", &both, &mut book, &sinks, ""),
            [told("a", "x", Event::New)]
        );
    }
}
