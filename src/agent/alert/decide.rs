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
    /// The notice of a condition to a sink, by an agent without a name.
    pub fn new(sink: &Sink, (event, since): (Event, TimestampTz), condition: Condition) -> Notice {
        Notice {
            sink: sink.name.clone(),
            event,
            id: condition.id,
            severity: condition.severity,
            summary: condition.summary,
            next: condition.next,
            since,
            agent: String::new(),
            anchor: None,
        }
    }

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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
        let about = conditions.iter().find(|c| c.id == *id);
        let about = about.and_then(|c| c.about.as_deref());
        let told = sinks
            .iter()
            .filter(|sink| Some(sink.name.as_str()) != about && sink.kind != SinkKind::Heartbeat);
        notices.extend(told.filter_map(|sink| {
            let event = open.event(now, sink)?;
            Some(Notice::new(sink, (event, open.since), open.condition(id)))
        }));
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
        let condition = Condition {
            id: of_sink(name),
            severity: Severity::High,
            summary: format!("alert sink \"{name}\" takes notices again; it failed at {failed}"),
            next: None,
            about: None,
        };
        Some(Notice::new(sink, (Event::Resolved, since), condition))
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
                ..Open::default()
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
        let severity = notice.severity;
        match notice.event {
            Event::Resolved => open.told.remove(&notice.sink),
            _ => {
                let told = Told {
                    time: now,
                    severity,
                };
                open.told.insert(notice.sink.clone(), told)
            }
        };
        open.offered.remove(&notice.sink);
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
    let zone = sink.zone.as_deref().unwrap_or("UTC");
    let zone = zone.parse::<chrono_tz::Tz>();
    let at = now.unix_micros();
    let at = at.and_then(chrono::DateTime::<chrono::Utc>::from_timestamp_micros);
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

    use Event::{New, Repeat, Resolved};

    /// A day and a time of November.
    fn time(text: &str) -> TimestampTz {
        format!("2026-11-{text}:00Z").parse().unwrap()
    }

    fn sink(name: &str, severity: Severity) -> Sink {
        Sink {
            name: name.into(),
            kind: SinkKind::Syslog,
            severity,
            repeat: Duration::from_secs(4 * 3600),
            ..Sink::default()
        }
    }

    fn wrong(id: &str, severity: Severity) -> [Condition; 1] {
        [Condition {
            id: id.into(),
            severity,
            summary: format!("{id} is wrong"),
            next: None,
            about: None,
        }]
    }

    fn gap() -> [Condition; 1] {
        wrong("gap", Severity::Critical)
    }

    struct Rounds {
        book: Book,
        sinks: Vec<Sink>,
    }

    impl Rounds {
        fn new(sinks: impl Into<Vec<Sink>>) -> Rounds {
            Rounds {
                book: Book::default(),
                sinks: sinks.into(),
            }
        }

        fn of_one(severity: Severity) -> Rounds {
            Rounds::new([sink("a", severity)])
        }

        fn decide(&mut self, now: &str, conditions: &[Condition]) -> Vec<Notice> {
            decide(time(now), conditions, &mut self.book, &self.sinks)
        }

        /// Decides, and lets every sink take what it is sent.
        fn at(&mut self, now: &str, conditions: &[Condition]) -> Vec<(String, String, Event)> {
            self.with(now, conditions, "")
        }

        /// Decides, and lets every sink but `deaf` take what it is sent.
        fn with(
            &mut self,
            now: &str,
            conditions: &[Condition],
            deaf: &str,
        ) -> Vec<(String, String, Event)> {
            let notices = self.decide(now, conditions);
            for notice in &notices {
                let error = (notice.sink == deaf).then(|| "away".to_owned());
                self.book.note(notice, time(now), error);
            }
            let told = notices.into_iter().map(|n| (n.sink, n.id, n.event));
            told.collect()
        }
    }

    fn told(sink: &str, id: &str, event: Event) -> (String, String, Event) {
        (sink.into(), id.into(), event)
    }

    #[test]
    fn a_condition_is_told_once_repeated_and_resolved() {
        let mut rounds = Rounds::of_one(Severity::Medium);
        assert_eq!(rounds.at("20T02:00", &gap()), [told("a", "gap", New)]);
        assert!(rounds.at("20T03:00", &gap()).is_empty());
        assert_eq!(rounds.at("20T06:00", &gap()), [told("a", "gap", Repeat)]);
        assert_eq!(rounds.at("20T06:01", &[]), [told("a", "gap", Resolved)]);
        assert_eq!(rounds.book, Book::default());
    }

    #[test]
    fn advice_is_told_once() {
        let mut rounds = Rounds::of_one(Severity::Low);
        let advice = wrong("advice", Severity::Low);
        let first = rounds.at("20T02:00", &advice);
        assert_eq!(first, [told("a", "advice", New)]);
        assert_eq!(rounds.at("28T02:00", &advice), []);
    }

    #[test]
    fn what_a_sink_did_not_take_is_offered_again_and_the_others_hear_of_the_sink() {
        let mut rounds = Rounds::new([sink("a", Severity::Low), sink("b", Severity::Low)]);
        assert_eq!(rounds.with("20T02:00", &gap(), "a").len(), 2);
        assert_eq!(rounds.book.failing["a"].error, "away");
        let [gap] = gap();
        let [mut about_a] = wrong("sink a", Severity::High);
        about_a.about = Some("a".into());
        let sent = rounds.with("20T02:01", &[gap, about_a], "a");
        assert_eq!(sent, [told("a", "gap", New), told("b", "sink a", New)]);
        // It ends while the sink is away: a sink that never heard of it hears nothing.
        let sent = rounds.with("20T02:02", &[], "a");
        let back = told("a", "alerts/a", Resolved);
        let (gap, sink) = (told("b", "gap", Resolved), told("b", "sink a", Resolved));
        assert_eq!(sent, [gap, sink, back.clone()]);
        // Nothing else is due for it: it is asked again until it takes that.
        let back = [back];
        assert_eq!(rounds.with("20T02:03", &[], "a"), back);
        assert_eq!(rounds.at("20T02:04", &[]), back);
        assert_eq!(rounds.book, Book::default());
    }

    #[test]
    fn j64_a_sink_that_could_not_be_read_hears_of_the_end_later() {
        let a = vec![sink("a", Severity::Low)];
        let both = [sink("a", Severity::Low), sink("b", Severity::Low)];
        let mut rounds = Rounds::new(both.clone());
        rounds.with("20T02:00", &gap(), "b");
        rounds.at("20T02:01", &gap());
        rounds.sinks.clone_from(&a);
        rounds.at("20T02:02", &[]);
        let mut other = Rounds::new(both.clone());
        other.book = rounds.book.clone();
        rounds.sinks = both.into();
        assert_eq!(rounds.at("20T02:03", &[]), [told("b", "gap", Resolved)]);
        // One that is configured no more hears nothing.
        other.book.keep(&a);
        assert_eq!(other.at("20T02:03", &[]), []);
        assert_eq!(other.book, Book::default());
    }

    #[test]
    fn an_end_that_was_not_taken_is_told_later() {
        let mut rounds = Rounds::of_one(Severity::Low);
        rounds.at("20T02:00", &gap());
        assert_eq!(rounds.with("20T02:01", &[], "a").len(), 1);
        assert_eq!(rounds.at("20T02:02", &[]), [told("a", "gap", Resolved)]);
        assert!(rounds.book.open.is_empty());
    }

    #[test]
    fn after_a_kill_between_a_delivery_and_its_record_the_end_is_told() {
        let mut rounds = Rounds::of_one(Severity::Low);
        for notice in rounds.decide("20T02:00", &gap()) {
            rounds.book.offer(&notice);
        }
        // As long as it lasts, it is new to the sink.
        let text = serde_json::to_string(&rounds.book).unwrap();
        let mut lasting = Rounds::of_one(Severity::Low);
        lasting.book = serde_json::from_str(&text).unwrap();
        assert_eq!(lasting.at("20T02:01", &gap()), [told("a", "gap", New)]);
        assert!(lasting.book.open["gap"].offered.is_empty());
        // An end that the sink does not take is offered again.
        for deaf in ["a", ""] {
            let sent = rounds.with("20T02:01", &[], deaf);
            assert_eq!(sent, [told("a", "gap", Resolved)]);
        }
        assert!(rounds.book.open.is_empty());
    }

    #[test]
    fn a_notice_that_did_not_reach_its_sink_has_no_end() {
        let mut rounds = Rounds::of_one(Severity::Low);
        for notice in rounds.decide("20T02:00", &gap()) {
            let earlier = rounds.book.clone();
            rounds.book.offer(&notice);
            rounds.book.withdraw(&notice, &earlier);
        }
        assert!(rounds.at("20T02:01", &[]).is_empty());
        assert!(rounds.book.open.is_empty());
    }

    #[test]
    fn a_sink_that_refuses_today_hears_the_end_of_what_it_may_have_taken_yesterday() {
        let mut rounds = Rounds::of_one(Severity::Low);
        // A kill between a delivery and its record.
        for notice in rounds.decide("20T02:00", &gap()) {
            rounds.book.offer(&notice);
        }
        for notice in rounds.decide("20T02:01", &gap()) {
            let (earlier, book) = (rounds.book.clone(), &mut rounds.book);
            book.offer(&notice);
            book.withdraw(&notice, &earlier);
            book.note(&notice, time("20T02:01"), Some("away".to_owned()));
        }
        assert_eq!(rounds.at("20T02:02", &[]), [told("a", "gap", Resolved)]);
        assert!(rounds.book.open.is_empty());
    }

    #[test]
    fn a_sink_hears_of_its_severity_and_above_and_of_what_becomes_worse() {
        let mut rounds = Rounds::of_one(Severity::High);
        let mut told_at = |now, severity| rounds.at(now, &wrong("x", severity));
        let new = [told("a", "x", New)];
        assert!(told_at("20T02:00", Severity::Medium).is_empty());
        assert_eq!(told_at("20T02:01", Severity::High), new);
        assert_eq!(told_at("20T02:02", Severity::Critical), new);
    }

    #[test]
    fn quiet_hours_delay_all_that_is_not_critical() {
        let quiet = Sink {
            quiet_hours: Some("22:00-06:00".parse().unwrap()),
            zone: Some("Europe/Berlin".into()),
            ..sink("a", Severity::Low)
        };
        let mut rounds = Rounds::new([quiet]);
        let both = [wrong("x", Severity::Medium), wrong("y", Severity::Critical)].concat();
        // 05:30 in Berlin, then 06:30.
        assert_eq!(rounds.at("20T04:30", &both), [told("a", "y", New)]);
        assert_eq!(rounds.at("20T05:30", &both), [told("a", "x", New)]);
    }
}
