//! `pitr runbook`.

use std::path::PathBuf;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};
use serde_json::json;

use super::Context;
use crate::error::{Error, Result};
use crate::exit;
use crate::operate::sets::runbook::{self, StoredRunbook};

/// Write the recovery instructions of a set, as Markdown or HTML
///
/// They come from the configuration, the repository, and the times that drills measured. --check compares a copy with the configuration as it is, and leaves with 4
/// when it is stale. --stored prints those that pitr mark stored in the repository: a repository and its keys are enough, the host with the configuration may be lost.
///
/// Example: pitr runbook --set shop > runbook.md
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The set in the configuration; the only one without it
    #[arg(long, value_name = "SET")]
    pub set: Option<String>,

    /// Compare this copy with the configuration
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stored", "format"])]
    pub check: Option<PathBuf>,

    /// Print what was stored with the newest mark. It needs no [sets.SET]
    #[arg(long)]
    pub stored: bool,

    /// Print what was stored with this mark: its name, or the beginning of it, or its label
    #[arg(long, value_name = "MARK", requires = "stored", conflicts_with_all = ["check"])]
    pub mark: Option<String>,

    /// The form of the text
    #[arg(long, value_enum, default_value_t = Format::Markdown)]
    pub format: Format,
}

/// The form of the instructions.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text with signs for headings and lists
    Markdown,
    /// One page that needs no other file
    Html,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let set = args.set.as_deref();
    match &args.check {
        None if args.stored => {
            let stored = runbook::stored(&cx.session, set, args.mark.as_deref())?;
            cx.note(&format!(
                "stored with mark {} of set \"{}\"",
                stored.mark, stored.set
            ));
            print(args, cx, &stored.text, Some(&stored))?;
        }
        None => print(args, cx, &runbook::write(&cx.session, set)?, None)?,
        Some(path) => {
            let read = std::fs::read_to_string(path);
            let copy =
                read.map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
            runbook::check(&cx.session, set, &copy)?;
            cx.answer(&json!({ "is_current": true }), || {
                cx.report("the runbook is that of the configuration")
            })?;
        }
    }
    Ok(exit::SUCCESS)
}

fn print(args: &Args, cx: &Context, text: &str, stored: Option<&StoredRunbook>) -> Result<()> {
    let (format, text) = match args.format {
        Format::Markdown => ("markdown", text.to_owned()),
        Format::Html => ("html", page(text)),
    };
    if !cx.is_json() {
        return cx.text(&text);
    }
    let mut answer = json!({ "format": format, "text": text });
    if let Some(stored) = stored {
        answer["set"] = json!(stored.set);
        answer["mark"] = json!(stored.mark);
        answer["time"] = json!(stored.time);
    }
    cx.json(&answer)
}

/// A page of instructions. HTML in the text is shown as text, and a link leads nowhere: in a repository that proves nothing somebody may have written it.
fn page(markdown: &str) -> String {
    let (text, hash) = runbook::without_hash(markdown);
    let is_link = |event: &Event<'_>| {
        matches!(
            event,
            Event::Start(Tag::Link { .. } | Tag::Image { .. })
                | Event::End(TagEnd::Link | TagEnd::Image)
        )
    };
    let events = Parser::new_ext(text, Options::ENABLE_TABLES);
    let inert = events
        .filter(|event| !is_link(event))
        .map(|event| match event {
            Event::Html(html) | Event::InlineHtml(html) => Event::Text(html),
            other => other,
        });
    let mut body = String::new();
    html::push_html(&mut body, inert);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>Recovery</title>\n<style>{STYLE}</style></head>\n<body>\n{body}{hash}</body></html>\n"
    )
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}\
pre,code{font:14px/1.45 ui-monospace,monospace;background:#f1f1f1}pre{padding:.8rem;overflow-x:auto}\
table{border-collapse:collapse}th,td{border:1px solid #999;padding:.25rem .6rem;text-align:left}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_in_the_text_is_shown_and_not_run() {
        let page = page(
            "# Recovery\n\n<script>alert(1)</script>\n\na <b>word</b>, [x](javascript:alert(1))\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        );
        assert!(
            page.contains("<h1>Recovery</h1>") && page.contains("<td>2</td>"),
            "{page}"
        );
        assert!(
            page.contains("&lt;script&gt;") && page.contains("&lt;b&gt;"),
            "{page}"
        );
        assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
        assert!(!page.contains("href=\"javascript"), "{page}");
    }

    #[test]
    fn the_hash_stays_in_the_page() {
        let hash = "0".repeat(64);
        let page = page(&format!("text\n\n<!-- pitr runbook {hash} -->\n"));
        assert!(
            page.contains(&format!("<!-- pitr runbook {hash} -->")),
            "{page}"
        );
    }
}
