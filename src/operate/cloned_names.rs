//! The names that PostgreSQL reads in its own catalogs, on a clone of the moment before an event. A clone fetches only what is read.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::clone::{self, Asked};
use super::live_names;
use super::session::Session;
use super::target::{AskedTarget, Point};
use crate::error::{Code, Result};
use crate::find::event::Event;
use crate::find::names::Names;
use crate::pg::lsn::Lsn;
use crate::plan::target::{Inclusive, Target};

/// Each takes a replay from the backup before it.
const CLONES_MAX: usize = 10;
/// The database that every cluster has.
const ANY: &str = "postgres";

/// Directory and programs of clones.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory below which they are made.
    pub below: PathBuf,
    /// The folder of PostgreSQL's programs.
    pub bin: Option<PathBuf>,
}

/// Adds names to the events that lack one: those of one moment are asked of one clone. A clone that cannot be had leaves its events as they are, and
/// is noted.
///
/// # Errors
/// `Interrupted`.
pub fn complete(
    session: &Session,
    (place, system_identifier): (&Place, u64),
    events: &mut Vec<Event>,
) -> Result<()> {
    let nameless = events.iter().filter(|event| is_nameless(event));
    let moments: BTreeSet<Lsn> = nameless.map(|event| event.target_lsn).collect();
    for (n, moment) in moments.iter().copied().enumerate() {
        if n == CLONES_MAX {
            session.note(&format!(
                "relations of {} further moments stay nameless: ask for a shorter time, with --since and --until",
                moments.len() - CLONES_MAX
            ));
            break;
        }
        let is_of_it = |event: &Event| event.target_lsn == moment && is_nameless(event);
        match ask(session, (place, system_identifier), moment, events) {
            Ok(names) => events.retain_mut(|event| !is_of_it(event) || names.complete(event)),
            Err(e) if e.code() == Code::Interrupted => return Err(e),
            Err(e) => session.note(&format!("no clone tells the names before {moment}: {e}")),
        }
    }
    Ok(())
}

fn is_nameless(event: &Event) -> bool {
    let relation = event.relation.as_ref();
    relation.is_some_and(|relation| !relation.is_named())
}

fn ask(
    session: &Session,
    (place, system_identifier): (&Place, u64),
    moment: Lsn,
    events: &[Event],
) -> Result<Names> {
    let of_it = events
        .iter()
        .filter(|event| event.target_lsn == moment && is_nameless(event));
    let databases: Vec<_> = of_it.filter_map(|event| event.database.as_ref()).collect();
    let oids = databases.iter().map(|database| database.oid).collect();
    // A host that offers no mounts copies one database.
    let first = databases.iter().find_map(|database| database.name.clone());
    let first = first.unwrap_or_else(|| ANY.to_owned());
    let asked = Asked {
        target: AskedTarget {
            inclusive: Inclusive::No,
            ..AskedTarget::at(Point::Known(Target::Lsn(moment)))
        },
        bin: place.bin.clone(),
        port: None,
        lasts: None,
        clients: &[],
        consent: None,
    };
    clone::for_a_while(session, &asked, (&first, &place.below), |_, running| {
        let mut connect = |database: Option<&str>| {
            let database = database.unwrap_or(&first);
            running.server.connect(database)
        };
        live_names::of(&mut connect, system_identifier, &oids)
    })
}
