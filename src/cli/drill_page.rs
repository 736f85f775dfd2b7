//! The report of a drill as one HTML page, which needs nothing but itself.

use super::drill::{facts, timed, verdict};
use crate::operate::drill::Report;
use crate::operate::human;

/// The style of a page.
pub(super) const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
h1{font-size:1.4em}.good{color:#0a6b2d}.bad{color:#a8071a}table{border-collapse:collapse;margin:1em 0;width:100%}\
th,td{text-align:left;vertical-align:top;padding:.3em .8em .3em 0;border-bottom:1px solid #ddd;overflow-wrap:anywhere}th{white-space:nowrap}";

pub(super) fn page(report: &Report) -> String {
    let class = if report.passed { "good" } else { "bad" };
    let began = human::exact_time(report.began);
    let facts = facts(report).into_iter();
    let facts = facts.map(|(label, value)| [label.to_owned(), value]);
    let phases = report.phases.iter();
    let phases = phases.map(|one| [one.phase.name().to_owned(), timed(one)]);
    let checks = report.checks.iter().map(|check| {
        let found = check
            .found
            .clone()
            .unwrap_or_else(|| "as it should be".to_owned());
        let word = if check.passed { "ok" } else { "FAILED" };
        [format!("{word}: {}", check.name), found]
    });
    let notes: String = report
        .notes
        .iter()
        .map(|note| format!("<p>{}</p>\n", escaped(note)))
        .collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>pitr drill of {cluster}, {began}</title><style>{STYLE}</style></head><body>\n\
         <h1>Drill of {cluster}, {began}</h1>\n<p class=\"{class}\"><strong>{verdict}</strong></p>\n{facts}<h2>Durations</h2>\n{phases}<h2>Checks</h2>\n{checks}{notes}</body></html>\n",
        cluster = escaped(&report.cluster),
        verdict = escaped(&verdict(report)),
        facts = table(facts),
        phases = table(phases),
        checks = table(checks),
    )
}

fn table(rows: impl Iterator<Item = [String; 2]>) -> String {
    let rows = rows.map(|[label, value]| {
        format!(
            "<tr><th>{}</th><td>{}</td></tr>\n",
            escaped(&label),
            escaped(&value)
        )
    });
    format!("<table>\n{}</table>\n", rows.collect::<String>())
}

/// Text in HTML: names and messages come from servers and files.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn text_of_a_server_is_no_markup() {
        assert_eq!(
            escaped("<a href='x'>\"&"),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;"
        );
    }
}
