//! The words of a notice, in the shapes that services want.

use serde_json::{Value, json};

use super::decide::{Event, Notice};
use crate::config::{Severity, Shape};

/// Longest text: what services take, with room for the rest.
const TEXT_MAX: usize = 1_500;
/// PagerDuty refuses a longer summary.
const SUMMARY_MAX: usize = 1_024;
/// PagerDuty refuses a longer key.
const KEY_MAX: usize = 255;

/// A line that tells everything.
pub fn line(notice: &Notice, host: &str) -> String {
    let what = match notice.event {
        Event::Resolved => "resolved".to_owned(),
        Event::Repeat => format!("{}, still", notice.severity.name()),
        Event::New => notice.severity.name().to_owned(),
        Event::Test => "test".to_owned(),
    };
    let next = notice
        .next
        .as_ref()
        .map_or(String::new(), |next| format!(" Next: {next}"));
    let text = format!(
        "pitr on {host}: {what}: {}.{next}",
        notice.summary.trim_end_matches('.')
    );
    cut(&text, TEXT_MAX)
}

/// All fields.
pub fn fields(notice: &Notice, host: &str) -> Value {
    json!({
        "event": notice.event,
        "id": notice.id,
        "severity": notice.severity,
        "summary": cut(&notice.summary, TEXT_MAX),
        "next": notice.next,
        "since": notice.since,
        "host": host,
        "agent": notice.agent,
        "anchor": notice.anchor,
    })
}

/// The body of a heartbeat, of a template that has `{{host}}` and `{{anchor}}`.
pub fn beat(template: &str, host: &str, anchor: Option<&str>) -> Vec<u8> {
    let fields = json!({ "host": host, "anchor": anchor });
    filled(template, &fields).into_bytes()
}

/// The body of a webhook. A template has the fields as `{{summary}}`, escaped as they stand inside a string of JSON.
pub fn body(
    shape: Shape,
    template: Option<&str>,
    notice: &Notice,
    host: &str,
    key: &str,
) -> Vec<u8> {
    let text = line(notice, host);
    let value = match shape {
        Shape::Generic => {
            let fields = fields(notice, host);
            match template {
                Some(template) => return filled(template, &fields).into_bytes(),
                None => fields,
            }
        }
        Shape::Slack => json!({ "text": escaped_for_slack(&text) }),
        // A finding may hold names that others chose: nobody is called by them.
        Shape::Discord => json!({ "content": text, "allowed_mentions": { "parse": [] } }),
        Shape::Teams => json!({
            "type": "message",
            "attachments": [{
                "contentType": "application/vnd.microsoft.card.adaptive",
                "content": {
                    "type": "AdaptiveCard",
                    "version": "1.4",
                    "body": [{ "type": "TextBlock", "text": text, "wrap": true }],
                },
            }],
        }),
        Shape::PagerDuty => pager_duty(notice, host, key),
    };
    value.to_string().into_bytes()
}

fn pager_duty(notice: &Notice, host: &str, key: &str) -> Value {
    let action = match notice.event {
        Event::Resolved => "resolve",
        _ => "trigger",
    };
    let severity = match notice.severity {
        Severity::Critical => "critical",
        Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low => "info",
    };
    let mut details = fields(notice, host);
    details["summary"] = notice.summary.clone().into();
    json!({
        "routing_key": key,
        "event_action": action,
        "dedup_key": matter(notice, host),
        "payload": {
            "summary": cut(&line(notice, host), SUMMARY_MAX),
            "source": host,
            "severity": severity,
            "custom_details": details,
        },
    })
}

/// The name of a condition among those of all agents: of one name, PagerDuty makes one incident.
fn matter(notice: &Notice, host: &str) -> String {
    let name = format!("pitr/{host}/{}/{}", notice.agent, notice.id);
    match name.chars().count() > KEY_MAX {
        true => format!("pitr/{}", blake3::hash(name.as_bytes()).to_hex()),
        false => name,
    }
}

fn filled(template: &str, fields: &Value) -> String {
    let mut text = template.to_owned();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let value = match value {
            Value::Null => String::new(),
            Value::String(value) => {
                let quoted = Value::from(value.as_str()).to_string();
                quoted
                    .trim_start_matches('"')
                    .strip_suffix('"')
                    .unwrap_or_default()
                    .to_owned()
            }
            other => other.to_string(),
        };
        // A value that holds braces is put in once, and not read again.
        text = text.replace(&format!("{{{{{name}}}}}"), &value.replace("{{", "{ {"));
    }
    text
}

/// Slack reads three characters as its own.
fn escaped_for_slack(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(event: Event) -> Notice {
        Notice {
            sink: "a".into(),
            event,
            id: "main/recovery/gap".into(),
            severity: Severity::Critical,
            summary: "2 segments of <timeline> \"1\" are missing".into(),
            next: Some("pitr wal gaps --heal".into()),
            since: "2026-11-20T02:00:00Z".parse().unwrap(),
            agent: "acme-0123".into(),
            anchor: Some("db1-0/7:ab".into()),
        }
    }

    fn json_of(shape: Shape, template: Option<&str>, event: Event) -> Value {
        let body = body(shape, template, &notice(event), "db1", "key");
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn every_shape_is_json_and_tells_what_is_wrong() {
        for shape in [
            Shape::Generic,
            Shape::Slack,
            Shape::Teams,
            Shape::Discord,
            Shape::PagerDuty,
        ] {
            let text = json_of(shape, None, Event::New).to_string();
            assert!(text.contains("segments of"), "{text}");
            assert!(text.contains("gaps --heal"), "{text}");
        }
        let slack = json_of(Shape::Slack, None, Event::New);
        assert!(slack["text"].as_str().unwrap().contains("&lt;timeline&gt;"));
        let resolved = json_of(Shape::PagerDuty, None, Event::Resolved);
        assert_eq!(resolved["event_action"], "resolve");
        let new = json_of(Shape::PagerDuty, None, Event::New);
        assert_eq!(resolved["dedup_key"], new["dedup_key"]);
    }

    #[test]
    fn a_template_stays_json_whatever_the_summary_holds() {
        let template = r#"{"message": "{{severity}}: {{summary}}", "to": "+49"}"#;
        let value = json_of(Shape::Generic, Some(template), Event::New);
        let message = "critical: 2 segments of <timeline> \"1\" are missing";
        assert_eq!(value["message"], message);
    }

    #[test]
    fn what_is_kept_elsewhere_has_the_anchor() {
        let generic = json_of(Shape::Generic, None, Event::New);
        assert_eq!(generic["anchor"], "db1-0/7:ab");
        let pager = json_of(Shape::PagerDuty, None, Event::New);
        assert_eq!(pager["payload"]["custom_details"]["anchor"], "db1-0/7:ab");
        let beat = beat("{{host}} {{anchor}}", "db1", Some("db1-0/7:ab"));
        assert_eq!(beat, b"db1 db1-0/7:ab");
    }

    #[test]
    fn j54_a_long_text_is_cut_between_characters_as_each_service_takes_it() {
        let long = Notice {
            summary: "ü".repeat(5000),
            ..notice(Event::New)
        };
        assert_eq!(line(&long, "db1").chars().count(), TEXT_MAX);
        let long = Notice {
            id: "x".repeat(300),
            ..long
        };
        let body = body(Shape::PagerDuty, None, &long, "db1", "key");
        let value: Value = serde_json::from_slice(&body).unwrap();
        let length = |value: &Value| value.as_str().unwrap().chars().count();
        assert_eq!(length(&value["payload"]["summary"]), SUMMARY_MAX);
        assert_eq!(length(&value["payload"]["custom_details"]["summary"]), 5000);
        assert!(length(&value["dedup_key"]) <= KEY_MAX, "{value}");
    }

    #[test]
    fn j53_agents_of_one_host_name_have_incidents_of_their_own() {
        let of = |agent: &str| {
            let own = Notice {
                agent: agent.into(),
                ..notice(Event::Resolved)
            };
            (matter(&own, "db1"), fields(&own, "db1")["agent"].clone())
        };
        assert_ne!(of("acme-01").0, of("beta-02").0);
        assert_eq!(of("acme-01").0, of("acme-01").0);
        assert_eq!(of("acme-01").1, "acme-01");
    }
}
