//! A report as one HTML page, which needs nothing but itself.

use super::drill_page::{STYLE, escaped};
use super::report::{BROKEN, Part, parts, title};
use crate::operate::human;
use crate::operate::report::Report;

/// Draws the page. Every text in it may come from a repository or a command line: all of it is escaped.
pub(super) fn page(report: &Report) -> String {
    let title = escaped(&title(report));
    let anchor = report.anchor.as_ref().map_or_else(String::new, |anchor| {
        format!("<p>Audit log of this host: {}</p>\n", escaped(anchor))
    });
    let parts: String = parts(report).iter().map(drawn).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>pitr: {title}</title><style>{STYLE}</style></head><body>\n\
         <h1>{title}</h1>\n<p>Made on {} by {}, for the time until {}.</p>\n{anchor}{parts}</body></html>\n",
        escaped(&report.host),
        escaped(&report.program),
        escaped(&human::exact_time(report.until)),
    )
}

fn drawn(part: &Part) -> String {
    let heading = format!("<h2>{}</h2>\n", escaped(part.title));
    if part.rows.is_empty() {
        return format!("{heading}<p>{}</p>\n", escaped(part.none));
    }
    let heads: String = part
        .columns
        .split(" | ")
        .map(|head| format!("<th scope=\"col\">{}</th>", escaped(head)))
        .collect();
    let rows: String = part.rows.iter().map(|row| drawn_row(row)).collect();
    format!("{heading}<table>\n<tr>{heads}</tr>\n{rows}</table>\n")
}

fn drawn_row(row: &[String]) -> String {
    let cells = row.iter().map(|cell| {
        let class = match cell.as_str() {
            "critical" | "CHANGED" => " class=\"bad\"",
            drill if drill.starts_with(BROKEN) => " class=\"bad\"",
            "ok" | "recovery proven" => " class=\"good\"",
            _ => "",
        };
        format!("<td{class}>{}</td>", escaped(cell))
    });
    format!("<tr>{}</tr>\n", cells.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::report::drilled;
    use super::*;
    use crate::operate::report::Proof;

    #[test]
    fn j66_recovery_that_a_drill_found_broken_is_red() {
        let time = "2026-11-20T06:00:00Z".parse().ok();
        let proof = |time, passed, broken: &[&str]| Proof {
            cluster: "main".into(),
            repository: "local".into(),
            time,
            passed,
            broken_backups: broken.iter().map(|id| (*id).to_owned()).collect(),
        };
        let class = |proof: Proof| {
            let page = drawn_row(&[drilled(&proof)]);
            let class = page.split("<td class=\"").nth(1);
            class.map(|rest| rest.split('"').next().unwrap().to_owned())
        };
        assert_eq!(class(proof(time, true, &[])).as_deref(), Some("good"));
        assert_eq!(class(proof(time, false, &[])).as_deref(), Some("bad"));
        let another = proof(time, false, &["20261119T060000Z-full"]);
        assert!(drilled(&another).contains("20261119T060000Z-full"));
        assert_eq!(class(another).as_deref(), Some("bad"));
        assert_eq!(class(proof(None, false, &[])), None);
    }

    #[test]
    fn text_of_a_record_is_no_markup() {
        let part = Part {
            title: "Runs",
            columns: "user",
            rows: vec![vec!["<script>alert(1)</script>".to_owned()]],
            none: "",
        };
        let page = drawn(&part);
        assert!(
            page.contains("&lt;script&gt;") && !page.contains("<script"),
            "{page}"
        );
    }
}
