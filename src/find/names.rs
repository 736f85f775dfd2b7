//! Names that WAL does not tell: from lists that were kept with backups, and from the server that lives.

use std::collections::HashMap;

use super::catalogs::CatalogFiles;
use super::event::{Event, Relation};
use crate::pg::catalog::FIRST_NORMAL_OID;

/// A relation as a list or a server names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub oid: u32,
    /// Number of its file; 0 where it has none.
    pub file: u32,
    pub schema: String,
    pub name: String,
    /// `relkind`.
    pub kind: char,
}

/// The names of one moment.
#[derive(Debug, Default)]
pub struct Names {
    by_file: HashMap<(u32, u32), usize>,
    by_oid: HashMap<(u32, u32), usize>,
    relations: Vec<Known>,
    databases: HashMap<u32, String>,
    schemas: HashMap<(u32, u32), String>,
    pub files: CatalogFiles,
}

impl Names {
    /// Adds a database.
    pub fn add_database(&mut self, oid: u32, name: String) {
        self.databases.insert(oid, name);
    }

    /// Adds a schema of a database.
    pub fn add_schema(&mut self, database: u32, oid: u32, name: String) {
        self.schemas.insert((database, oid), name);
    }

    /// Adds a relation of a database; 0 for a shared one.
    pub fn add(&mut self, database: u32, relation: Known) {
        self.files.add(database, relation.oid, relation.file);
        let at = self.relations.len();
        if relation.file != 0 {
            self.by_file.insert((database, relation.file), at);
        }
        self.by_oid.insert((database, relation.oid), at);
        self.relations.push(relation);
    }

    fn known(&self, database: u32, relation: &Relation) -> Option<&Known> {
        let by_oid = || self.by_oid.get(&(database, relation.oid?));
        let by_file = || self.by_file.get(&(database, relation.file?));
        let at = match relation.oid {
            Some(_) => by_oid(),
            None => by_file(),
        };
        self.relations.get(*at?)
    }

    /// Adds to an event what is missing there. Returns false where the event is about a catalog, an index or the like.
    pub fn complete(&self, event: &mut Event) -> bool {
        let Some(database) = &mut event.database else {
            return true;
        };
        if database.name.is_none() {
            database.name = self.databases.get(&database.oid).cloned();
        }
        let oid = database.oid;
        let Some(relation) = &mut event.relation else {
            return true;
        };
        if relation.schema.is_none() && relation.namespace != 0 {
            relation.schema = self.schemas.get(&(oid, relation.namespace)).cloned();
        }
        let Some(known) = self.known(oid, relation) else {
            return true;
        };
        // A catalog that was written anew has a file number like that of a table.
        if known.oid < FIRST_NORMAL_OID {
            return false;
        }
        if relation.is_unsure {
            return is_table(relation.kind.or(Some(known.kind)));
        }
        if relation.schema.is_none() && relation.name.as_ref() == Some(&known.name) {
            relation.schema = Some(known.schema.clone());
        }
        if relation.name.is_none() {
            relation.oid = Some(known.oid);
            relation.name = Some(known.name.clone());
            relation.kind = Some(known.kind);
            relation.schema = Some(known.schema.clone());
        }
        is_table(relation.kind)
    }

    /// The relations of users whose rows are data, partitioned tables included: schema and name, and `relkind`.
    pub fn tables(&self) -> impl Iterator<Item = (String, char)> + '_ {
        let own = self.relations.iter();
        let own = own.filter(|k| k.oid >= FIRST_NORMAL_OID && is_table(Some(k.kind)));
        own.map(|k| (format!("{}.{}", k.schema, k.name), k.kind))
    }

    /// Whether relations of a database were looked at.
    pub fn has_database(&self, database: u32) -> bool {
        self.databases.contains_key(&database)
    }

    /// Returns the name of a schema.
    pub fn schema(&self, database: u32, oid: u32) -> Option<&String> {
        self.schemas.get(&(database, oid))
    }

    /// Returns the oid of the relation that an event is about.
    pub fn oid(&self, database: u32, relation: &Relation) -> Option<u32> {
        self.known(database, relation).map(|known| known.oid)
    }

    /// Returns schema and name that a relation has in these names.
    pub fn full_name(&self, database: u32, relation: &Relation) -> Option<String> {
        let known = self.known(database, relation)?;
        Some(format!("{}.{}", known.schema, known.name))
    }
}

/// Whether `relkind`, where it is known, is that of a relation whose rows are data.
pub fn is_table(kind: Option<char>) -> bool {
    matches!(kind, Some('r' | 'p' | 'm') | None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_users_are_listed() {
        let mut names = Names::default();
        for (oid, name, kind) in [
            (1259, "pg_class", 'r'),
            (16_384, "orders", 'p'),
            (16_385, "orders_2026", 'r'),
            (16_386, "orders_pkey", 'i'),
        ] {
            let known = Known {
                oid,
                file: oid,
                schema: "public".to_owned(),
                name: name.to_owned(),
                kind,
            };
            names.add(5, known);
        }
        let tables: Vec<(String, char)> = names.tables().collect();
        let expected = [("public.orders", 'p'), ("public.orders_2026", 'r')];
        assert_eq!(tables, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }
}
