//! Publications that get the tables of a restored part. They lie in no schema, so no part brings them, and the target may lack them.

use std::collections::BTreeSet;

use super::restore::kind_of;
use crate::error::Result;
use crate::logical::source::SqlSession;
use crate::operate::rescue::tables::identifier;

/// The command of an entry that adds to a publication begins so; its name follows.
const COMMAND: &str = "\nALTER PUBLICATION ";
/// Text that follows the name.
const ADD: &str = " ADD TABLE";

/// Returns the publications of a database that take tables: one of all tables takes none.
///
/// # Errors
/// Those of the server.
pub fn there(sql: &mut SqlSession) -> Result<BTreeSet<String>> {
    let rows = sql.query("select pubname from pg_catalog.pg_publication where not puballtables")?;
    Ok(rows.texts(0)?.into_iter().collect())
}

/// Pure: whether an entry adds a table, or the tables of a schema, to a publication.
pub fn adds(line: &str) -> bool {
    kind_of(line).starts_with("PUBLICATION TABLE")
}

/// Pure: the lines without those that add to a publication which is not there, and the names of these as SQL writes them. `commands` are those of the
/// lines that add, in their order: a line alone does not tell where a name ends.
pub fn kept(
    lines: Vec<String>,
    commands: &str,
    there: &BTreeSet<String>,
) -> (Vec<String>, BTreeSet<String>) {
    let mut lacking = BTreeSet::new();
    let commands: Vec<&str> = commands.split(COMMAND).skip(1).collect();
    if commands.len() != lines.iter().filter(|line| adds(line)).count() {
        // A name holds such a command itself. The server says then which publication it lacks.
        return (lines, lacking);
    }
    let mut commands = commands.into_iter();
    let is_kept = |line: &String| {
        if !adds(line) {
            return true;
        }
        let command = commands.next().unwrap_or_default();
        let is_there = there.iter().any(|name| adds_to(command, name));
        if !is_there {
            let name = command.split_once(ADD).map_or(command, |(name, _)| name);
            lacking.insert(name.to_owned());
        }
        is_there
    };
    let kept = lines.into_iter().filter(is_kept).collect();
    (kept, lacking)
}

/// Whether a command, from the name on, adds to this publication.
fn adds_to(command: &str, name: &str) -> bool {
    let written = match command.starts_with('"') {
        true => identifier(name),
        false => name.to_owned(),
    };
    let rest = command.strip_prefix(&written);
    rest.is_some_and(|rest| rest.starts_with(ADD))
}

#[cfg(test)]
mod tests {
    use super::kept;

    /// The list and the output of `pg_restore` 19, shortened.
    const LINES: [&str; 5] = [
        "3531; 6106 16409 PUBLICATION TABLE s pub t postgres",
        "3525; 0 16392 ROW SECURITY s t postgres",
        "3532; 6106 16411 PUBLICATION TABLE s pub \"x y t postgres",
        "3534; 6237 16436 PUBLICATION TABLES IN SCHEMA s sch s postgres",
        "3535; 6106 16440 PUBLICATION TABLE s pub \"x t postgres",
    ];
    const COMMANDS: &str = "\n\\restrict x\n\nSET row_security = off;\n\n--\n-- Name: pub t; Type: PUBLICATION TABLE; Schema: s; Owner: postgres\n--\n\n\
        ALTER PUBLICATION pub ADD TABLE ONLY s.t;\n\n\nALTER PUBLICATION \"pub \"\"x y\" ADD TABLE ONLY s.t WHERE ((k > 5));\n\n\n\
        ALTER PUBLICATION sch ADD TABLES IN SCHEMA s;\n\n\nALTER PUBLICATION \"pub \"\"x\" ADD TABLE ONLY s.t;\n\n";

    fn kept_where(there: &[&str], commands: &str) -> (Vec<usize>, Vec<String>) {
        let there = there.iter().map(|name| (*name).to_owned()).collect();
        let (lines, lacking) = kept(LINES.map(str::to_owned).into(), commands, &there);
        let at = |line: &String| LINES.iter().position(|known| known == line).unwrap();
        (
            lines.iter().map(at).collect(),
            lacking.into_iter().collect(),
        )
    }

    #[test]
    fn k66_entries_stay_where_their_publication_is_there() {
        let all = ["pub", "pub \"x y", "sch", "pub \"x", "other"];
        assert_eq!(kept_where(&all, COMMANDS).0, [0, 1, 2, 3, 4]);
        let (lines, lacking) = kept_where(&[], COMMANDS);
        assert_eq!(lines, [1]);
        let names = ["\"pub \"\"x y\"", "\"pub \"\"x\"", "pub", "sch"];
        assert_eq!(lacking, names);
        // A name that goes on is another one.
        assert_eq!(kept_where(&["pub \"x"], COMMANDS).0, [1, 4]);
        assert_eq!(kept_where(&["pub"], COMMANDS).0, [0, 1]);
        assert_eq!(kept_where(&["sc", "sch"], COMMANDS).0, [1, 3]);
    }

    #[test]
    fn k66_commands_in_names_change_nothing() {
        let odd = format!("{COMMANDS}\nALTER PUBLICATION x ADD TABLE ONLY s.t;\n");
        assert_eq!(kept_where(&[], &odd), (vec![0, 1, 2, 3, 4], Vec::new()));
    }
}
