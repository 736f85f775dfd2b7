//! The value of archive_command: written by `init`, judged by `doctor`. Pure text.
//!
//! PostgreSQL replaces %p, %f and %% and hands the rest to `/bin/sh -c` (src/backend/archive/shell_archive.c); only the status of the
//! last command of the line reaches it. Whatever hides that status makes PostgreSQL recycle WAL that nobody has.

use std::path::Path;

pub use crate::text::shell_word;

/// The line that `init` prints, without quotes of postgresql.conf.
pub fn compose(program: &Path, config: &Path, cluster: Option<&str>) -> String {
    let word = |path: &Path| shell_word(&path.to_string_lossy()).replace('%', "%%");
    let mut line = format!("{} --config {}", word(program), word(config));
    if let Some(cluster) = cluster {
        line.push_str(&format!(" --cluster {cluster}"));
    }
    line.push_str(" %p");
    line
}

/// A value as postgresql.conf wants it. PostgreSQL: src/backend/utils/misc/guc-file.l, `DeescapeQuotedString`.
pub fn conf_value(value: &str) -> String {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// It works, and could be better.
    Warning,
    /// WAL is not archived, or the command reports success to PostgreSQL although it is not.
    Failure,
}

/// The judgement of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// Our program as it is called, if it is.
    pub program: Option<String>,
    /// The file after `--config`.
    pub config: Option<String>,
    /// Whether `--cluster` is given.
    pub names_cluster: bool,
    /// Problems, worst first.
    pub problems: Vec<(Weight, String)>,
}

/// Reads an archive_command.
pub fn judge(command: &str) -> Judged {
    let mut judged = Judged::default();
    judge_line(command, &mut judged, 0);
    judged
        .problems
        .sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    judged.problems.dedup();
    judged
}

fn judge_line(command: &str, judged: &mut Judged, depth: u32) {
    let mut problem = |weight, text: &str| judged.problems.push((weight, text.to_owned()));
    let Some(tokens) = tokens(command) else {
        problem(Weight::Failure, "a quote is not closed");
        return;
    };
    let commands: Vec<&[Token]> = tokens
        .split(|t| matches!(t, Token::Operator(o) if !o.contains(['>', '<'])))
        .collect();
    let ours = commands.iter().position(|c| program_in(c).is_some());
    let operators: Vec<&str> = tokens
        .iter()
        .filter_map(|t| match t {
            Token::Operator(o) if !o.contains(['>', '<']) => Some(o.as_str()),
            _ => None,
        })
        .collect();
    let Some(ours) = ours else {
        // A shell in between is looked into.
        let inner = commands.iter().find_map(|c| inner_shell(c));
        match inner {
            Some(inner) if depth < 2 && commands.len() == 1 => {
                judge_line(&inner, judged, depth + 1);
            }
            _ => problem(Weight::Failure, "pitr-archive is not called"),
        }
        return;
    };
    for (index, operator) in operators.iter().enumerate() {
        let next_is_empty = commands.get(index + 1).is_none_or(|c| c.is_empty());
        if let Some((weight, text)) = judge_operator(operator, index >= ours, next_is_empty) {
            problem(weight, text);
        }
    }
    if command.contains('`') || command.contains('$') {
        problem(
            Weight::Warning,
            "what the shell puts in for \"$\" or \"`\" cannot be judged",
        );
    }
    if tokens
        .iter()
        .any(|t| matches!(t, Token::Operator(o) if o.contains('>')))
    {
        problem(
            Weight::Warning,
            "redirected messages do not reach the server's log",
        );
    }
    if let Some(words) = commands.get(ours).and_then(|c| program_in(c)) {
        judge_call(&words, judged);
    }
}

/// Judges what an operator of the shell before our program, or after it, does to its status.
fn judge_operator(
    operator: &str,
    behind: bool,
    next_is_empty: bool,
) -> Option<(Weight, &'static str)> {
    Some(match operator {
        "&&" if behind => (
            Weight::Warning,
            "a command that follows can fail although the segment is stored",
        ),
        "&&" => return None,
        "||" if behind => (
            Weight::Failure,
            "\"||\" hides the status of pitr-archive: PostgreSQL recycles WAL that is not archived",
        ),
        ";" | "\n" if behind && next_is_empty => return None,
        ";" | "\n" if behind => (
            Weight::Failure,
            "a command that follows hides the status of pitr-archive: PostgreSQL recycles WAL that is not archived",
        ),
        "|" if behind => (
            Weight::Failure,
            "a pipe hides the status of pitr-archive: PostgreSQL recycles WAL that is not archived",
        ),
        "&" if behind => (
            Weight::Failure,
            "\"&\" leaves pitr-archive in the background: PostgreSQL recycles WAL that is not archived",
        ),
        "||" => (
            Weight::Failure,
            "pitr-archive runs only if the command before it fails",
        ),
        _ => (Weight::Warning, "another command runs first"),
    })
}

/// Our own command line: the program first.
fn judge_call(words: &[&str], judged: &mut Judged) {
    let mut problem = |weight, text: String| judged.problems.push((weight, text));
    let program = words.first().copied().unwrap_or_default();
    if !program.starts_with('/') {
        problem(
            Weight::Warning,
            format!("\"{program}\" is not an absolute path: the server's PATH decides"),
        );
    }
    if words
        .iter()
        .any(|w| *w == "--repository" || w.starts_with("--repository="))
    {
        problem(
            Weight::Failure,
            "--repository leaves out the other required repositories: pitr-archive refuses it, and pitr wal push succeeds without them".to_owned(),
        );
    }
    let mut config = None;
    let mut files = Vec::new();
    let mut rest = words.iter().skip(1);
    while let Some(word) = rest.next() {
        match word.split_once('=') {
            Some(("--config", path)) => config = Some(path.to_owned()),
            _ if *word == "--config" => config = rest.next().map(|w| (*w).to_owned()),
            Some(("--cluster", _)) => judged.names_cluster = true,
            _ if matches!(*word, "--cluster" | "--repository") => {
                judged.names_cluster |= *word == "--cluster";
                rest.next();
            }
            _ if word.starts_with("--") || matches!(*word, "wal" | "push") => {}
            _ => files.push(*word),
        }
    }
    match &config {
        None => problem(
            Weight::Warning,
            "no --config is given: the server's environment and working directory decide which configuration is read".to_owned(),
        ),
        Some(path) if !path.starts_with('/') => problem(
            Weight::Failure,
            format!("--config {path} is not an absolute path: it is looked for in the data directory"),
        ),
        Some(_) => {}
    }
    match files.as_slice() {
        ["%p"] => {}
        ["%f"] => problem(
            Weight::Failure,
            "%f is the name alone: %p is needed, the path".to_owned(),
        ),
        [] => problem(Weight::Failure, "%p is missing".to_owned()),
        [one] if one.ends_with("/%f") || one.ends_with("/%p") => problem(
            Weight::Warning,
            format!("{one} is a path of its own making: %p is the path"),
        ),
        [one] => problem(Weight::Failure, format!("{one} is not %p")),
        _ => problem(
            Weight::Failure,
            "more than one file is given: only %p is".to_owned(),
        ),
    }
    judged.program = Some(program.replace("%%", "%"));
    judged.config = config.map(|c| c.replace("%%", "%"));
}

/// The words of a command from our program on; wrappers such as `timeout 60` or `nice` may stand before it.
fn program_in(command: &[Token]) -> Option<Vec<&str>> {
    let words = words(command);
    let name = |w: &str| w.rsplit('/').next().unwrap_or_default().to_owned();
    let at = words
        .iter()
        .enumerate()
        .position(|(i, w)| match name(w).as_str() {
            "pitr-archive" => true,
            "pitr" => {
                let rest = words.get(i..).unwrap_or_default();
                rest.windows(2).any(|pair| pair == ["wal", "push"])
            }
            _ => false,
        })?;
    Some(words.get(at..)?.to_vec())
}

fn words(command: &[Token]) -> Vec<&str> {
    let mut words = Vec::new();
    let mut skip = false;
    for token in command {
        match token {
            Token::Operator(o) => {
                skip = o.contains(['>', '<']) && !o.ends_with(|c: char| c.is_ascii_digit());
            }
            Token::Word(_) if std::mem::take(&mut skip) => {}
            Token::Word(w) => words.push(w.as_str()),
        }
    }
    words
}

/// The command line behind `sh -c`.
fn inner_shell(command: &[Token]) -> Option<String> {
    let words = words(command);
    let at = words
        .iter()
        .position(|w| matches!(w.rsplit('/').next(), Some("sh" | "bash" | "dash")))?;
    let rest = words.get(at + 1..)?;
    let flag = rest
        .iter()
        .position(|w| w.starts_with('-') && w.contains('c'))?;
    rest.get(flag + 1).map(|w| (*w).to_owned())
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Operator(String),
}

/// Splits as a POSIX shell does, as far as words, quotes and operators go; `None` for a quote that is not closed.
fn tokens(line: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => word.push(chars.next()?),
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            ' ' | '\t' => tokens.extend(word.take().map(Token::Word)),
            '|' | '&' | ';' | '\n' | '>' | '<' | '(' | ')' => {
                // "2>" is one operator.
                let number = word
                    .take_if(|w| matches!(c, '>' | '<') && w.bytes().all(|b| b.is_ascii_digit()));
                tokens.extend(word.take().map(Token::Word));
                let mut operator = number.unwrap_or_default();
                operator.push(c);
                while let Some(next) = chars.next_if(|n| *n == c || (c == '>' && *n == '&')) {
                    operator.push(next);
                }
                if operator.ends_with('&') && operator.contains('>') {
                    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                        operator.push(digit);
                    }
                }
                tokens.push(Token::Operator(operator));
            }
            '#' if word.is_none() => break,
            c => word.get_or_insert_default().push(c),
        }
    }
    tokens.extend(word.map(Token::Word));
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(command: &str) -> Option<Weight> {
        judge(command).problems.first().map(|(w, _)| *w)
    }

    #[test]
    fn what_is_composed_is_judged_well() {
        for (program, config) in [
            ("/usr/bin/pitr-archive", "/etc/pitr/pitr.toml"),
            ("/opt/my tools/pitr-archive", "/srv/100%/it's.toml"),
        ] {
            for cluster in [None, Some("main")] {
                let line = compose(Path::new(program), Path::new(config), cluster);
                let judged = judge(&line);
                assert_eq!(judged.problems, [], "{line}");
                assert_eq!(judged.names_cluster, cluster.is_some());
                assert_eq!(judged.program.as_deref(), Some(program));
                assert_eq!(judged.config.as_deref(), Some(config));
            }
        }
        let value = conf_value("'/a b/pitr-archive' %p\\");
        assert_eq!(value, "'''/a b/pitr-archive'' %p\\\\'");
    }

    #[test]
    fn g04_what_hides_the_status_is_a_failure() {
        let good = "/usr/bin/pitr-archive --config /etc/pitr.toml %p";
        let failures = [
            format!("{good} || true"),
            format!("{good} ; exit 0"),
            format!("{good}; true"),
            format!("{good} | tee /tmp/log"),
            format!("{good} &"),
            format!("sh -c '{good} || :'"),
            "/usr/bin/pitr-archive --config pitr.toml %p".into(),
            "/usr/bin/pitr-archive --config=/c %f".into(),
            "/usr/bin/pitr-archive --config=/c".into(),
            "/usr/bin/pitr-archive --config=/c '%p".into(),
            "/usr/bin/pitr --config /c --repository r wal push %p".into(),
            "/usr/bin/pitr-archive --config=/c --repository=r %p".into(),
            "cp %p /mnt/archive/%f".into(),
            "/bin/true".into(),
            String::new(),
        ];
        let warnings = [
            format!("{good} && touch /tmp/x"),
            format!("{good} 2>/dev/null"),
            format!("{good} 2>&1"),
            "pitr-archive --config /c %p".into(),
            "/usr/bin/pitr-archive %p".into(),
        ];
        let fine = [
            format!("sh -c '{good}'"),
            format!("{good};"),
            format!("timeout 60 {good}"),
            format!("test -d /mnt && {good}"),
            "/usr/bin/pitr-archive --config=/c '%p'".into(),
            "/usr/bin/pitr-archive --config=/c \"%p\"".into(),
            "/usr/bin/pitr --config /c wal push %p".into(),
        ];
        for (weight, lines) in [
            (Some(Weight::Failure), &failures[..]),
            (Some(Weight::Warning), &warnings),
            (None, &fine),
        ] {
            for line in lines {
                assert_eq!(worst(line), weight, "{line}: {:?}", judge(line));
            }
        }
    }
}
