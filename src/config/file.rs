//! The configuration as written: a TOML file, and the environment variables that stand in for its keys.
//!
//! Owns where each value came from, so that every complaint names file, line and column (or the variable).
//! `config` decides what the values mean. A key that does not exist is an error: a misspelled setting that is silently
//! ignored is found out at the restore.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Environment, blocks, keys};
use crate::err;
use crate::error::{Error, Result};

/// No configuration is larger; a larger file is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which of the tables of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Clusters,
    Repositories,
    Files,
    /// One section, which has no name.
    Retention,
    Logical,
    Config,
    Redis,
    /// One section, which has no name.
    Agent,
    /// One section, which has no name.
    Page,
    /// One section, which has no name.
    Audit,
    Jobs,
    Alerts,
    Sets,
    Tenants,
}

/// All, as the environment is read.
const KINDS: [Kind; 14] = [
    Kind::Clusters,
    Kind::Repositories,
    Kind::Files,
    Kind::Retention,
    Kind::Logical,
    Kind::Config,
    Kind::Redis,
    Kind::Agent,
    Kind::Page,
    Kind::Audit,
    Kind::Jobs,
    Kind::Alerts,
    Kind::Sets,
    Kind::Tenants,
];

impl Kind {
    /// Its table in the file, and what messages call it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::Clusters => ("clusters", "cluster"),
            Kind::Repositories => ("repositories", "repository"),
            Kind::Files => ("files", "set of files"),
            Kind::Retention => ("retention", "retention"),
            Kind::Logical => ("logical", "logical backup"),
            Kind::Config => ("config", "set of configuration"),
            Kind::Redis => ("redis", "Redis server"),
            Kind::Agent => ("agent", "agent"),
            Kind::Page => ("page", "page"),
            Kind::Audit => ("audit", "audit"),
            Kind::Jobs => ("jobs", "job"),
            Kind::Alerts => ("alerts", "alert sink"),
            Kind::Sets => ("sets", "recovery set"),
            Kind::Tenants => ("tenants", "tenant"),
        }
    }

    fn table(self) -> &'static str {
        self.words().0
    }

    /// Returns the name of one of them in a message.
    pub(super) fn noun(self) -> &'static str {
        self.words().1
    }

    /// Whether there is one section of it alone, without a name.
    fn is_unnamed(self) -> bool {
        matches!(
            self,
            Kind::Retention | Kind::Agent | Kind::Page | Kind::Audit
        )
    }
}

/// The origin of a value, with which a message begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// File, line and column, the latter two counted from 1.
    File(Rc<PathBuf>, usize, usize),
    /// The name of an environment variable.
    Variable(String),
}

impl Origin {
    /// Puts the origin before an error's message.
    pub(super) fn error(&self, message: impl fmt::Display) -> Error {
        err!(Config, "{self}: {message}")
    }

    /// Makes an error of the configuration from one found in a value.
    pub(super) fn wrap(&self, error: &Error) -> Error {
        let wrapped = self.error(error);
        match error.hint_text() {
            Some(hint) => wrapped.hint(hint.to_owned()),
            None => wrapped,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path, line, column) => {
                write!(f, "{}:{line}:{column}", path.display())
            }
            Origin::Variable(name) => write!(f, "environment variable \"{name}\""),
        }
    }
}

/// A value as written, before it is known what its key wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Raw {
    Text(String),
    Integer(i64),
    Boolean(bool),
    /// An array of strings.
    List(Vec<String>),
    /// An array of tables of strings.
    Tables(Vec<Vec<(String, String)>>),
    /// From the environment, where everything is text.
    Variable(String),
    /// Something no key of ours takes, by its name.
    Other(&'static str),
}

/// One key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: &'static str,
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// One `[clusters.NAME]`, `[repositories.NAME]`, `[files.NAME]` or another section with a name, or `[retention]`, `[agent]` or `[page]`, whose name is empty.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) origin: Origin,
    pub(super) entries: Vec<Entry>,
}

impl Section {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == key)
    }
}

/// Makes a document of the text of a file, whose path is for messages.
pub(super) type Parse = fn(&Path, &str) -> Result<Document>;

/// A configuration as written, its sections in the order in which they stand.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) sections: Vec<Section>,
    /// The file may be read by every user of the machine.
    pub(super) world_readable: bool,
}

impl Document {
    /// Reads a configuration file that `check` lets pass once it is opened; `None` if there is none.
    pub(super) fn read(
        path: &Path,
        parse: Parse,
        check: impl FnOnce(&File) -> Result<()>,
    ) -> Result<Option<Document>> {
        Document::read_as(path, path, parse, check)
    }

    /// Reads a copy of a configuration file, which messages name.
    pub(super) fn read_copy(copy: &Path, path: &Path, parse: Parse) -> Result<Option<Document>> {
        Document::read_as(copy, path, parse, |_| Ok(()))
    }

    fn read_as(
        path: &Path,
        named: &Path,
        parse: Parse,
        check: impl FnOnce(&File) -> Result<()>,
    ) -> Result<Option<Document>> {
        let shown = path.display();
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => {
                return Err(
                    err!(Config, "could not read configuration file \"{shown}\"").source(e),
                );
            }
        };
        let failed = |e| err!(Config, "could not read configuration file \"{shown}\"").source(e);
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(err!(
                Config,
                "configuration file \"{shown}\" is a directory"
            ));
        }
        check(&file)?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(err!(
                Config,
                "configuration file \"{shown}\" is larger than 1 MiB"
            ));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let valid = e.as_bytes().iter().take(e.utf8_error().valid_up_to());
            let line = valid.filter(|b| **b == b'\n').count() + 1;
            err!(
                Config,
                "configuration file \"{shown}\" is not UTF-8 in line {line}"
            )
        })?;
        let mut document = parse(named, &text)?;
        document.world_readable = metadata.permissions().mode() & 0o004 != 0;
        Ok(Some(document))
    }

    /// Reads the text of a configuration file; `path` is for messages.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Document> {
        let source = Source {
            path: Rc::new(path.to_owned()),
            text,
        };
        let root = DeTable::parse(text).map_err(|e| {
            let at = source.origin(&e.span().unwrap_or(0..0));
            at.error(e.message().trim_end_matches('.'))
        })?;
        let mut document = Document::default();
        for (key, value) in in_order(root.get_ref()) {
            let name = key.get_ref().as_ref();
            let Some(kind) = KINDS.into_iter().find(|k| k.table() == name) else {
                let at = source.origin(&key.span());
                return Err(no_such_key(&at, name, "the file", &KINDS.map(Kind::table)));
            };
            let table = source.table(kind.table(), value)?;
            if kind.is_unnamed() {
                let origin = source.origin(&key.span());
                document.sections.push(source.unnamed(kind, origin, table)?);
                continue;
            }
            for (name, section) in in_order(table) {
                document.sections.push(source.section(kind, name, section)?);
            }
        }
        Ok(document)
    }

    /// Reads of a wrong text each section that can be read, of those kinds that tell of sinks and of the agent's files. A section with an error of
    /// syntax has none of its values taken.
    pub(super) fn parse_readable(path: &Path, text: &str) -> Result<Document> {
        let mut document = Document::default();
        let is_whole = DeTable::parse(text).is_ok();
        let Some(text) = is_whole
            .then(|| text.to_owned())
            .or_else(|| blocks::sound(text))
        else {
            return Ok(document);
        };
        let source = Source {
            path: Rc::new(path.to_owned()),
            text: &text,
        };
        let Ok(root) = DeTable::parse(&text) else {
            return Ok(document);
        };
        for (key, value) in in_order(root.get_ref()) {
            let is_meant = |kind: &&Kind| kind.table() == key.get_ref().as_ref();
            let kinds = [Kind::Agent, Kind::Alerts, Kind::Clusters];
            let Some(kind) = kinds.iter().find(is_meant) else {
                continue;
            };
            let Ok(table) = source.table(kind.table(), value) else {
                continue;
            };
            if kind.is_unnamed() {
                let origin = source.origin(&key.span());
                document
                    .sections
                    .extend(source.unnamed(*kind, origin, table));
                continue;
            }
            for (name, section) in in_order(table) {
                document
                    .sections
                    .extend(source.section(*kind, name, section));
            }
        }
        Ok(document)
    }

    /// Lets the environment's `PITR_CLUSTERS_…`, `PITR_REPOSITORIES_…` and those of the other tables replace and add values.
    ///
    /// A variable is named for its key: upper case, `.` and `-` written as `_`. One that names no section of the file makes one,
    /// named in lower case.
    pub(super) fn overlay(&mut self, environment: &Environment) -> Result<()> {
        for kind in KINDS {
            let prefix = format!("PITR_{}_", kind.table().to_uppercase());
            for (variable, value) in environment.with_prefix(&prefix) {
                let origin = Origin::Variable(variable.to_owned());
                let rest = variable.strip_prefix(&prefix).unwrap_or(variable);
                let keys = keys::names(kind);
                // The longest one: what ends in "SENTINEL_USER" ends in "USER", too.
                let found = keys.iter().filter_map(|key| {
                    if kind.is_unnamed() {
                        return (rest == variable_form(key)).then_some((*key, ""));
                    }
                    let name = rest.strip_suffix(&format!("_{}", variable_form(key)))?;
                    (!name.is_empty()).then_some((*key, name))
                });
                let found = found.max_by_key(|(key, _)| key.len());
                let Some((key, name)) = found else {
                    let near = near_variable(rest, &keys).map(|near| format!("{prefix}{near}"));
                    let error =
                        origin.error(format_args!("it ends in no key of a {}", kind.noun()));
                    return Err(suggest(error, near.as_deref(), &keys));
                };
                let value = value
                    .to_str()
                    .ok_or_else(|| origin.error("the value is not UTF-8"))?;
                let section = self.section_of_variable(kind, name, &origin)?;
                section.entries.retain(|e| e.key != key);
                section.entries.push(Entry {
                    key,
                    raw: Raw::Variable(value.to_owned()),
                    origin,
                });
            }
        }
        Ok(())
    }

    fn section_of_variable(
        &mut self,
        kind: Kind,
        name: &str,
        origin: &Origin,
    ) -> Result<&mut Section> {
        let is_meant = |s: &Section| s.kind == kind && variable_form(&s.name) == name;
        let mut meant = self
            .sections
            .iter()
            .enumerate()
            .filter(|(_, s)| is_meant(s));
        let found = meant.next().map(|(index, _)| index);
        if meant.next().is_some() {
            return Err(origin
                .error(format_args!("it names more than one {}", kind.noun()))
                .hint("Set the key in the file, or rename one of them."));
        }
        let index = found.unwrap_or_else(|| {
            self.sections.push(Section {
                kind,
                name: name.to_lowercase(),
                origin: origin.clone(),
                entries: Vec::new(),
            });
            self.sections.len() - 1
        });
        self.sections
            .get_mut(index)
            .ok_or_else(|| err!(Internal, "section {index} is not there"))
    }
}

/// The text being parsed, for positions.
struct Source<'a> {
    path: Rc<PathBuf>,
    text: &'a str,
}

impl Source<'_> {
    fn origin(&self, span: &Range<usize>) -> Origin {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Origin::File(Rc::clone(&self.path), line, column)
    }

    fn table<'v, 'i>(
        &self,
        name: &str,
        value: &'v Spanned<DeValue<'i>>,
    ) -> Result<&'v DeTable<'i>> {
        value.get_ref().as_table().ok_or_else(|| {
            self.origin(&value.span()).error(format_args!(
                "\"{name}\" needs a table, found {}",
                type_name(value.get_ref())
            ))
        })
    }

    fn section(
        &self,
        kind: Kind,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Section> {
        let origin = self.origin(&name.span());
        let name = name.get_ref().as_ref();
        super::name::check(kind.noun(), name).map_err(|e| origin.wrap(&e))?;
        let place = format!("{}.{name}", kind.table());
        let mut entries = Vec::new();
        self.entries(kind, "", self.table(&place, value)?, &place, &mut entries)?;
        Ok(Section {
            kind,
            name: name.to_owned(),
            origin,
            entries,
        })
    }

    fn unnamed(&self, kind: Kind, origin: Origin, table: &DeTable<'_>) -> Result<Section> {
        let mut entries = Vec::new();
        self.entries(kind, "", table, kind.table(), &mut entries)?;
        Ok(Section {
            kind,
            name: String::new(),
            origin,
            entries,
        })
    }

    /// Collects the keys of one table; `prefix` is that of their names in the list of keys.
    fn entries(
        &self,
        kind: Kind,
        prefix: &str,
        table: &DeTable<'_>,
        place: &str,
        entries: &mut Vec<Entry>,
    ) -> Result<()> {
        let keys = keys::names(kind);
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            let full = format!("{prefix}{name}");
            let inner = format!("{full}.");
            if keys.iter().any(|k| k.starts_with(&inner)) {
                let place = format!("{place}.{name}");
                self.entries(kind, &inner, self.table(&place, value)?, &place, entries)?;
                continue;
            }
            let Some(known) = keys.iter().find(|k| **k == full) else {
                let here = keys.iter().filter_map(|k| k.strip_prefix(prefix));
                let here: Vec<&str> = here.filter_map(|k| k.split('.').next()).collect();
                let place = format!("[{place}]");
                return Err(no_such_key(&self.origin(&key.span()), name, &place, &here));
            };
            let of_key = matches!(value.get_ref(), DeValue::Table(_));
            let span = if of_key { key.span() } else { value.span() };
            entries.push(Entry {
                key: known,
                raw: raw(value.get_ref()),
                origin: self.origin(&span),
            });
        }
        Ok(())
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(value) => Raw::Integer(value),
            Err(_) => Raw::Other("an integer out of range"),
        },
        DeValue::Array(values) => {
            let texts = values.iter().map(|value| value.get_ref().as_str());
            let texts: Option<Vec<String>> = texts.map(|t| t.map(str::to_owned)).collect();
            let tables = values.iter().map(|value| texts_of(value.get_ref()));
            let tables: Option<Vec<_>> = tables.collect();
            let read = texts.map(Raw::List).or(tables.map(Raw::Tables));
            read.unwrap_or(Raw::Other("an array of other things"))
        }
        other => Raw::Other(type_name(other)),
    }
}

/// The members of a table of strings.
fn texts_of(value: &DeValue<'_>) -> Option<Vec<(String, String)>> {
    let member = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        Some((
            key.get_ref().to_string(),
            value.get_ref().as_str()?.to_owned(),
        ))
    };
    in_order(value.as_table()?)
        .into_iter()
        .map(member)
        .collect()
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The entries of a table as they stand in the file: the map itself sorts by name, but repositories are tried in file order.
fn in_order<'v, 'i>(
    table: &'v DeTable<'i>,
) -> Vec<(
    &'v Spanned<std::borrow::Cow<'i, str>>,
    &'v Spanned<DeValue<'i>>,
)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn no_such_key(origin: &Origin, key: &str, place: &str, known: &[&str]) -> Error {
    let error = origin.error(format_args!(
        "key \"{}\" does not exist in {place}",
        key.escape_debug()
    ));
    suggest(error, super::nearest(key, known.iter().copied()), known)
}

/// Adds what may have been meant, or else what there is.
fn suggest(error: Error, near: Option<&str>, known: &[&str]) -> Error {
    let mut known = known.to_vec();
    known.dedup();
    error.hint(match near {
        Some(near) => format!("Did you mean \"{near}\"?"),
        None => format!("Keys are: {}.", known.join(", ")),
    })
}

/// Returns the likely meaning of a variable that ends in no key: both without their prefix.
fn near_variable(variable: &str, keys: &[&str]) -> Option<String> {
    let forms: Vec<String> = keys.iter().map(|k| variable_form(k)).collect();
    variable.match_indices('_').find_map(|(at, _)| {
        let (name, word) = (variable.get(..at)?, variable.get(at + 1..)?);
        let near = super::nearest(word, forms.iter().map(String::as_str))?;
        (!name.is_empty()).then(|| format!("{name}_{near}"))
    })
}

/// How a name or a key is written in the name of an environment variable.
fn variable_form(text: &str) -> String {
    text.to_uppercase().replace(['.', '-'], "_")
}

/// Whether there is no such file, as opposed to one that cannot be read.
pub(super) fn is_absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Document> {
        Document::parse(Path::new("/etc/pitr/pitr.toml"), text)
    }

    #[test]
    fn sections_keep_the_order_of_the_file() {
        let text = "[repositories.z.encryption]\n[repositories.b]\nurl='x'\n[repositories.a]\n[repositories.z]\n[clusters.c]";
        let names: Vec<_> = parse(text)
            .unwrap()
            .sections
            .into_iter()
            .map(|s| s.name)
            .collect();
        assert_eq!(names, ["b", "a", "z", "c"]);
    }

    #[test]
    fn variables_replace_and_add() {
        let mut document =
            parse("[clusters.my-db]\npgdata='/a'\n[repositories.r]\nurl='file:///r'").unwrap();
        document
            .overlay(&Environment::new(
                [
                    ("PITR_CLUSTERS_MY_DB_PGDATA", "/b"),
                    ("PITR_CLUSTERS_MY_DB_RECEIVE_JOURNAL_LIMIT_BYTES", "7"),
                    ("PITR_REPOSITORIES_OTHER_URL", "file:///o"),
                    ("PITR_RETENTION_KEEP_LAST", "3"),
                    ("PITR_SOMETHING", "x"),
                ],
                None,
            ))
            .unwrap();
        let [db, r, other, rules] = document.sections.as_slice() else {
            panic!("four sections")
        };
        assert_eq!(db.get("pgdata").unwrap().raw, Raw::Variable("/b".into()));
        assert_eq!(
            db.get("receive.journal_limit_bytes").unwrap().raw,
            Raw::Variable("7".into())
        );
        assert_eq!(r.entries.len(), 1);
        assert_eq!(other.name.as_str(), "other");
        assert_eq!(other.kind, Kind::Repositories);
        let last = rules.get("keep_last").unwrap();
        assert_eq!(last.raw, Raw::Variable("3".into()));
        assert_eq!((rules.name.as_str(), rules.kind), ("", Kind::Retention));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn parsing_of_nearly_right_text_never_panics(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "[clusters.main]", "[", "]", "\n", "pgdata", "=", "'", "\"", "{", "}", ".", ",", "1", "true", "url",
                    "[repositories.r]", "é", "\r\n", "encryption", "receive", "#",
                ]),
                0..20,
            )
        ) {
            let _ = parse(&parts.concat());
        }
    }
}
