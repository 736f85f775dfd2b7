//! The databases of a cluster whose content is restored, and those that lie there as files of zeros.
//!
//! Names are those that the backup itself has in pg_database. Databases that initdb made, templates, and `postgres` are always restored: new
//! databases are made of templates, and somewhere the session has to be that drops the others.

use serde::{Deserialize, Serialize};

use crate::err;
use crate::error::{Error, Result};
use crate::pg::databases::{self, Database};
use crate::repo::root::cluster::LeftOutDatabase;
use crate::snapshot::reader::Snapshot;

const MAP: &str = "global/pg_filenode.map";
const MAP_LIMIT_BYTES: usize = 64 << 10;
/// pg_database of ten thousand databases has less.
const CATALOG_LIMIT_BYTES: usize = 64 << 20;
/// Databases that a message names.
const NAMED: usize = 20;

/// The operator's choice, by name or oid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// These, and those that are always restored.
    Only(Vec<String>),
    /// All but these.
    Without(Vec<String>),
}

/// Returns the databases of a backup whose content is left out.
///
/// # Errors
/// `Damaged` when the backup does not tell its databases; `NotFound` for a database that it does not have; `Usage` for one that is always
/// restored, and for a name that two have had.
pub fn left_out(
    snapshot: &Snapshot<'_>,
    major: u32,
    wanted: &Wanted,
) -> Result<Vec<LeftOutDatabase>> {
    let broken = |path: &str| {
        err!(
            Damaged,
            "the backup does not tell its databases: \"{path}\" is missing or damaged"
        )
        .hint("Nothing was written. Restore all databases, or another backup: --backup ID.")
    };
    let map = snapshot.read_file(MAP, MAP_LIMIT_BYTES)?;
    let file = map.as_deref().and_then(databases::file_of_catalog);
    let path = format!("global/{}", file.ok_or_else(|| broken(MAP))?);
    let catalog = snapshot.read_file(&path, CATALOG_LIMIT_BYTES)?;
    let found = databases::of_pages(&catalog.unwrap_or_default(), major);
    match found.is_empty() {
        true => Err(broken(&path)),
        false => choose(&found, wanted),
    }
}

/// Chooses the databases whose content is left out.
///
/// # Errors
/// `NotFound` for a database that the backup does not have; `Usage` for one that is always restored, and for a name that two have had.
fn choose(found: &[Database], wanted: &Wanted) -> Result<Vec<LeftOutDatabase>> {
    let chosen: Vec<&Database> = match wanted {
        Wanted::Only(names) => {
            let kept = names.iter().map(|name| named(found, name));
            let kept = kept.collect::<Result<Vec<_>>>()?.concat();
            let is_kept = |d: &Database| d.is_of_system() || kept.contains(&d);
            found.iter().filter(|d| !is_kept(d)).collect()
        }
        Wanted::Without(names) => {
            let chosen = names
                .iter()
                .map(|name| match named(found, name)?.as_slice() {
                    [one] if one.is_of_system() => Err(always(one)),
                    [one] => Ok(*one),
                    many => Err(ambiguous(name, many)),
                });
            let mut chosen = chosen.collect::<Result<Vec<_>>>()?;
            chosen.sort_unstable_by_key(|d| d.oid);
            chosen.dedup();
            chosen
        }
    };
    let left_out = chosen.iter().map(|d| LeftOutDatabase::new(d.oid, &d.name));
    Ok(left_out.collect())
}

/// Refuses to restore databases by name when the backup itself has no content of one of them.
///
/// # Errors
/// `Refused` naming it.
pub fn check_asked(
    lacking: &[LeftOutDatabase],
    left_out: &[LeftOutDatabase],
    wanted: &Wanted,
) -> Result<()> {
    let Wanted::Only(_) = wanted else {
        return Ok(());
    };
    let is_left_out = |one: &&LeftOutDatabase| left_out.iter().any(|other| other.oid == one.oid);
    match lacking.iter().find(|one| !is_left_out(one)) {
        Some(one) => Err(err!(
            Refused,
            "the backup has no content of database {one}: it is partial"
        )
        .hint(
            "Nothing was written. Choose another backup: pitr info shows which ones are partial.",
        )),
        None => Ok(()),
    }
}

/// Finds the databases that a name, or else an oid, may mean: at least one.
fn named<'d>(found: &'d [Database], name: &str) -> Result<Vec<&'d Database>> {
    let may_be = |d: &&Database| d.may_have_name(name.as_bytes());
    let by_name: Vec<_> = found.iter().filter(may_be).collect();
    if !by_name.is_empty() {
        return Ok(by_name);
    }
    let oid: Option<u32> = name.parse().ok();
    let by_oid = found.iter().find(|d| Some(d.oid) == oid);
    by_oid.map(|d| vec![d]).ok_or_else(|| unknown(found, name))
}

fn shown(database: &Database) -> String {
    LeftOutDatabase::new(database.oid, &database.name).to_string()
}

fn unknown(found: &[Database], name: &str) -> Error {
    let own = found.iter().filter(|d| !d.is_of_system());
    let names: Vec<_> = own.take(NAMED).map(shown).collect();
    let has = match names.is_empty() {
        true => "It has none but those that initdb made.".to_owned(),
        false => format!("It has {}.", names.join(", ")),
    };
    err!(NotFound, "the backup has no database \"{name}\"").hint(format!(
        "Nothing was written. {has} A database that was created after the backup comes by WAL: whole, unless its files were copied from one that is left out."
    ))
}

fn always(database: &Database) -> Error {
    err!(
        Usage,
        "database {} is always restored: initdb made it, or it is a template or \"postgres\"",
        shown(database)
    )
    .hint("Nothing was written. Leave it out of --exclude-databases.")
}

fn ambiguous(name: &str, many: &[&Database]) -> Error {
    let all: Vec<_> = many.iter().map(|d| shown(d)).collect();
    err!(
        Usage,
        "\"{name}\" may be one of several databases, for it was being renamed or dropped while the backup was taken"
    )
    .hint(format!("Nothing was written. Name the oid: {}.", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn database(oid: u32, name: &str, other: &[&str]) -> Database {
        Database {
            oid,
            name: name.into(),
            other_names: other.iter().map(|name| name.as_bytes().to_vec()).collect(),
            is_template: name.starts_with("template"),
        }
    }

    fn found() -> Vec<Database> {
        vec![
            database(1, "template1", &[]),
            database(5, "postgres", &[]),
            database(16_400, "template_own", &[]),
            database(16_401, "app", &["tmp"]),
            database(16_402, "log", &["app"]),
            database(16_403, "12", &[]),
            database(16_404, "last", &[]),
        ]
    }

    fn only(names: &[&str]) -> Result<Vec<u32>> {
        oids(&Wanted::Only(
            names.iter().map(ToString::to_string).collect(),
        ))
    }

    fn without(names: &[&str]) -> Result<Vec<u32>> {
        oids(&Wanted::Without(
            names.iter().map(ToString::to_string).collect(),
        ))
    }

    fn oids(wanted: &Wanted) -> Result<Vec<u32>> {
        let chosen = choose(&found(), wanted)?;
        Ok(chosen.into_iter().map(|d| d.oid).collect())
    }

    #[test]
    fn a_database_that_the_backup_itself_lacks_is_not_restored_by_name() {
        let (app, big) = (
            LeftOutDatabase::new(16_384, b"app"),
            LeftOutDatabase::new(16_385, b"big"),
        );
        let only = Wanted::Only(vec!["app".into()]);
        let lacking = [app.clone(), big.clone()];
        let refused = check_asked(&lacking, std::slice::from_ref(&big), &only).unwrap_err();
        assert_eq!(refused.code(), Code::Refused);
        assert!(refused.to_string().contains("\"app\" (oid 16384)"));
        check_asked(&lacking[1..], &[big], &only).unwrap();
        check_asked(&lacking, &[], &Wanted::Without(Vec::new())).unwrap();
    }

    #[test]
    fn what_is_named_and_what_the_server_needs_is_restored() {
        assert_eq!(only(&["last"]).unwrap(), [16_401, 16_402, 16_403]);
        // By a name that two may have, both are kept.
        assert_eq!(only(&["app"]).unwrap(), [16_403, 16_404]);
        assert_eq!(only(&["log", "16401", "12"]).unwrap(), [16_404]);
        assert_eq!(only(&["postgres"]).unwrap().len(), 4);
        let refused = only(&["lst"]).unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(
            refused
                .hint_text()
                .unwrap()
                .contains("\"last\" (oid 16404)")
        );
    }

    #[test]
    fn what_is_left_out_is_one_database_for_sure() {
        assert_eq!(
            without(&["last", "tmp", "16404"]).unwrap(),
            [16_401, 16_404]
        );
        assert_eq!(without(&["12"]).unwrap(), [16_403]);
        for (bad, code) in [
            ("app", Code::Usage),
            ("template1", Code::Usage),
            ("template_own", Code::Usage),
            ("5", Code::Usage),
            ("nobody", Code::NotFound),
            ("", Code::NotFound),
        ] {
            assert_eq!(without(&[bad]).unwrap_err().code(), code, "{bad}");
        }
    }
}
