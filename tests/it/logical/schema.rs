//! Random databases: statements that make about every kind of object for which `pg_dump` has a case, and random rows.

use crate::common::Client;
use crate::common::random::Random;

/// The parts of a server that not every build has.
pub struct Facts {
    pub major: u32,
    /// Extensions of [`EXTENSIONS`] that can be made.
    pub extensions: Vec<&'static str>,
    pub has_xml: bool,
    pub has_icu: bool,
}

/// Extensions that are asked for.
const EXTENSIONS: [&str; 10] = [
    "hstore",
    "citext",
    "ltree",
    "cube",
    "pgcrypto",
    "pg_trgm",
    "btree_gist",
    "intarray",
    "bloom",
    "postgres_fdw",
];

impl Facts {
    pub fn of(client: &Client, major: u32) -> Facts {
        let is_there = |name: &&str| {
            let sql = format!("select count(*) from pg_available_extensions where name = '{name}'");
            client.value(&sql) == "1"
        };
        let collations = "select count(*) from pg_collation where collname = 'de-x-icu'";
        Facts {
            major,
            extensions: EXTENSIONS.into_iter().filter(is_there).collect(),
            has_xml: client.try_sql("select '<a/>'::xml").is_ok(),
            has_icu: client.value(collations) != "0",
        }
    }
}

/// A type, and an expression of SQL that makes values of it from `{h}`, any integer, and `{n}`, one that is not negative.
#[derive(Clone)]
struct Type {
    name: String,
    value: String,
    use_of: Use,
}

/// The indexes and constraints that a column can have.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Text,
    Integer,
    Json,
    Integers,
    Sorted,
    Stored,
}

/// Texts with everything that `COPY` has to escape, and some that are stored out of line.
const TEXT: &str = "case {n} % 7 when 0 then '' when 1 then E'\\\\.' when 2 then E'a\\tb\\nc\\\\d\\re' when 3 then chr(1 + {n} % 55000) \
    when 4 then repeat(md5({h}::text), {n} % 300) when 5 then '\\N' else md5({h}::text) end";

/// Types of every server.
const TYPES: [(&str, &str, Use); 50] = [
    ("integer", "{h}", Use::Integer),
    ("bigint", "{h}::bigint * {n}", Use::Sorted),
    ("smallint", "{n} % 65536 - 32768", Use::Sorted),
    (
        "numeric",
        "case {n} % 9 when 0 then 'NaN' else {h} / 977.0 * 10.0 ^ ({n} % 60 - 30) end",
        Use::Sorted,
    ),
    ("numeric(20,4)", "{h} / 977.0", Use::Sorted),
    ("real", "{h} / 7.0", Use::Sorted),
    (
        "double precision",
        "case {n} % 9 when 0 then 'NaN' when 1 then '-Infinity' when 2 then '-0' else {h}::float8 / 7 end",
        Use::Sorted,
    ),
    ("boolean", "{n} % 2 = 0", Use::Sorted),
    ("text", TEXT, Use::Text),
    ("text", TEXT, Use::Text),
    ("character varying(40)", TEXT, Use::Sorted),
    ("character(9)", "to_hex({h})", Use::Sorted),
    ("name", "to_hex({h})", Use::Sorted),
    ("\"char\"", "chr(65 + {n} % 26)", Use::Sorted),
    (
        "bytea",
        "decode(repeat(md5({h}::text), {n} % 90), 'hex')",
        Use::Stored,
    ),
    ("date", "date '2000-01-01' + {h} % 700000", Use::Sorted),
    (
        "timestamp",
        "timestamp '2000-01-01' + {h} * interval '61 seconds'",
        Use::Sorted,
    ),
    (
        "timestamptz",
        "case {n} % 9 when 0 then 'infinity' else timestamptz '2000-01-01' + {h} * interval '1.000001 second' end",
        Use::Sorted,
    ),
    (
        "timestamptz(2)",
        "timestamptz '2000-01-01' + {h} * interval '1.016 second'",
        Use::Sorted,
    ),
    (
        "time",
        "time '00:00' + {h} * interval '1 second'",
        Use::Sorted,
    ),
    (
        "timetz",
        "(time '00:00' + {h} * interval '1 second')::text || '+03:30'",
        Use::Sorted,
    ),
    (
        "interval",
        "{h} * interval '1.000001 second' + ({n} % 99) * interval '1 month -1 day'",
        Use::Sorted,
    ),
    ("uuid", "md5({h}::text)", Use::Sorted),
    ("inet", "'10.0.0.0'::inet + {n} % 65536", Use::Sorted),
    ("cidr", "'10.' || {n} % 256 || '.0.0/16'", Use::Sorted),
    ("macaddr", "substr(md5({h}::text), 1, 12)", Use::Sorted),
    ("bit(8)", "({n} % 256)::bit(8)", Use::Sorted),
    ("bit varying", "({h})::bit(32)", Use::Sorted),
    (
        "json",
        "json_build_object('n', {h}, 'a', json_build_array({n} % 3, null, 'x\"y'))",
        Use::Stored,
    ),
    (
        "jsonb",
        "jsonb_build_object('n', {h}, 'a', jsonb_build_array({n} % 3, null, 'x\"y'))",
        Use::Json,
    ),
    ("integer[]", "array[{h}, {n}]", Use::Integers),
    (
        "integer[]",
        "('[0:1][-1:0]={{' || {h} || ',1},{2,NULL}}')",
        Use::Sorted,
    ),
    (
        "text[]",
        "array['', 'a\"b,{c}', null, 'NULL', md5({h}::text)]",
        Use::Sorted,
    ),
    (
        "int4range",
        "int4range({n} % 1000, {n} % 1000 + {n} % 7)",
        Use::Sorted,
    ),
    ("numrange", "numrange(null, {h})", Use::Sorted),
    (
        "tstzrange",
        "tstzrange(timestamptz '2000-01-01' + {n} * interval '1 second', 'infinity', '[]')",
        Use::Sorted,
    ),
    ("point", "point({h}, {n})", Use::Stored),
    ("box", "box(point({h}, {n}), point(0, 1))", Use::Stored),
    ("circle", "circle(point({h}, 1), {n} % 9 + 1)", Use::Stored),
    ("path", "'((0,0),(1,' || {h} || '))'", Use::Stored),
    (
        "tsvector",
        "to_tsvector('simple', 'a b c ' || md5({h}::text))",
        Use::Stored,
    ),
    ("tsquery", "'a & !b' || {n}", Use::Stored),
    ("money", "{h}", Use::Sorted),
    ("oid", "{n}", Use::Sorted),
    ("pg_lsn", "'0/' || to_hex({n})", Use::Sorted),
    ("regclass", "'pg_catalog.pg_class'", Use::Stored),
    ("regtype", "'pg_catalog.int4'", Use::Stored),
    ("xid", "{n}::text", Use::Stored),
    ("macaddr8", "substr(md5({h}::text), 1, 16)", Use::Sorted),
    ("lseg", "'((0,0),(1,' || {h} || '))'", Use::Stored),
];

/// A table to which others refer: each has a unique column `k` with the numbers from 1 to its rows.
struct Table {
    name: String,
    rows: usize,
    columns: Vec<(String, Type)>,
    is_partitioned: bool,
}

/// Writes the statements.
pub struct Writer<'a> {
    random: Random,
    facts: &'a Facts,
    statements: Vec<String>,
    types: Vec<Type>,
    tables: Vec<Table>,
    collations: Vec<String>,
    has: Vec<&'static str>,
    /// The newest enum and composite type.
    mood: Option<Type>,
    pair: String,
    count: usize,
}

/// Roles of the databases; they are made once for a server.
pub const ROLES: [&str; 3] = ["app_owner", "app_reader", "\"Odd \"\"role\"\"; x\""];

/// The statements that make a random database.
pub fn statements(random: Random, facts: &Facts) -> Vec<String> {
    let types = TYPES.map(|(name, value, use_of)| Type {
        name: name.to_owned(),
        value: value.to_owned(),
        use_of,
    });
    let mut writer = Writer {
        random,
        facts,
        statements: Vec::new(),
        types: types.to_vec(),
        tables: Vec::new(),
        collations: vec!["pg_catalog.\"C\"".to_owned()],
        has: Vec::new(),
        mood: None,
        pair: String::new(),
        count: 0,
    };
    writer.write();
    writer.statements
}

impl Writer<'_> {
    fn write(&mut self) {
        self.of_the_build();
        self.extensions();
        for _ in 0..2 + self.random.below(2) {
            self.schema();
        }
        self.large_objects();
        self.of_the_database();
    }

    fn add(&mut self, sql: impl Into<String>) {
        self.statements.push(sql.into());
    }

    /// A name that no other object has, quoted; half of them need that.
    fn name(&mut self, of: &str) -> String {
        self.count += 1;
        let n = self.count;
        match self.random.below(16) {
            0 => format!("\"{of} {n}\""),
            1 => format!("\"{of}\"\"{n}'; drop\""),
            2 => format!("\"{of}.{n}\""),
            3 => format!("\"Größe✓ {of}{n}\""),
            4 => format!("\"{of}\n{n}\""),
            5 => format!("\"{of}\\{n}%s$$\""),
            6 => format!("\"{n}{}\"", "long".repeat(14)),
            7 => format!("\"select {of}{n}\""),
            _ => format!("{of}{n}"),
        }
    }

    fn role(&mut self) -> &'static str {
        ROLES[self.random.below(ROLES.len())]
    }

    fn comment(&mut self, on: &str) {
        if self.random.one_in(2) {
            let n = self.random.below(1000);
            self.add(format!("comment on {on} is E'it''s \\\\ \\n-- {n} ✓'"));
        }
    }

    /// Gives an object to a role, and others rights to it.
    fn owned(&mut self, kind: &str, name: &str, rights: &[&str]) {
        if self.random.one_in(2) {
            let role = self.role();
            self.add(format!("alter {kind} {name} owner to {role}"));
        }
        if self.random.one_in(2) {
            let (right, role) = (*self.random.pick(rights), self.role());
            let option = *self.random.pick(&["", " with grant option"]);
            self.add(format!("grant {right} on {kind} {name} to {role}{option}"));
        }
        if self.random.one_in(4) {
            self.add(format!("revoke all on {kind} {name} from public"));
            // An owner without rights to its own table checks no foreign key.
            if kind != "table" {
                let role = self.role();
                self.add(format!("revoke all on {kind} {name} from {role}"));
            }
        }
    }

    fn of_the_build(&mut self) {
        let mut add = |name: &str, value: &str, use_of| {
            self.types.push(Type {
                name: name.to_owned(),
                value: value.to_owned(),
                use_of,
            });
        };
        if self.facts.has_xml {
            add("xml", "xmlelement(name a, {h}::text)", Use::Stored);
        }
        if self.facts.major >= 14 {
            let value = "int4multirange(int4range(0, 1 + {n} % 9), int4range(20, 20 + {n} % 9))";
            add("int4multirange", value, Use::Sorted);
        }
    }

    fn extensions(&mut self) {
        self.add("create schema ext");
        let facts = self.facts;
        for name in &facts.extensions {
            if self.random.one_in(4) {
                continue;
            }
            self.has.push(name);
            self.add(format!("create extension {name} with schema ext"));
            let (name, value) = match *name {
                "hstore" => ("ext.hstore", "ext.hstore('a\"b', {h}::text)"),
                "citext" => ("ext.citext", "'Ab' || {h}"),
                "ltree" => ("ext.ltree", "'a.b' || {n}"),
                "cube" => ("ext.cube", "ext.cube({h}::float8)"),
                _ => continue,
            };
            self.types.push(Type {
                name: name.to_owned(),
                value: value.to_owned(),
                use_of: Use::Sorted,
            });
        }
    }

    fn schema(&mut self) {
        let schema = self.name("s");
        self.add(format!("create schema {schema}"));
        self.comment(&format!("schema {schema}"));
        self.owned("schema", &schema, &["usage", "create"]);
        let roles = ROLES.join(", ");
        self.add(format!("grant usage on schema {schema} to {roles}"));
        let is_early = self.random.one_in(2);
        if is_early {
            self.default_privileges(&schema);
        }
        self.collations(&schema);
        self.own_types(&schema);
        self.functions(&schema);
        for _ in 0..3 + self.random.below(4) {
            self.table(&schema);
        }
        for _ in 0..1 + self.random.below(2) {
            self.partitioned(&schema);
        }
        self.odd_tables(&schema);
        self.sequences(&schema);
        self.views(&schema);
        self.searches(&schema);
        self.rare(&schema);
        if !is_early {
            self.default_privileges(&schema);
        }
    }

    fn default_privileges(&mut self, schema: &str) {
        let (owner, role) = (self.role(), self.role());
        let what = *self.random.pick(&[
            "select, update on tables",
            "usage on sequences",
            "execute on functions",
            "usage on types",
        ]);
        let place = match self.random.one_in(2) {
            true => format!("in schema {schema}"),
            false => String::new(),
        };
        self.add(format!(
            "alter default privileges for role {owner} {place} grant {what} to {role}"
        ));
        self.add(format!(
            "alter default privileges for role {owner} revoke execute on functions from public"
        ));
    }

    fn collations(&mut self, schema: &str) {
        let collation = format!("{schema}.{}", self.name("coll"));
        let icu = [
            "(provider = icu, locale = 'de')",
            "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        ];
        let how = match self.facts.has_icu {
            true => *self.random.pick(&icu),
            false => "from \"C\"",
        };
        self.add(format!("create collation {collation} {how}"));
        self.comment(&format!("collation {collation}"));
        self.collations.push(collation);
    }

    fn own_types(&mut self, schema: &str) {
        for _ in 0..2 {
            let name = format!("{schema}.{}", self.name("mood"));
            self.add(format!(
                "create type {name} as enum ('sad', 'ok', 'it''s \"odd\", ', '')"
            ));
            // The order of values is no longer that of their numbers.
            self.add(format!("alter type {name} add value 'né' before 'ok'"));
            self.comment(&format!("type {name}"));
            self.owned("type", &name, &["usage"]);
            let value = format!("(enum_range(null::{name}))[1 + {{n}} % 5]");
            self.learn(
                format!("{name}[]"),
                format!("array[{value}, null]"),
                Use::Sorted,
            );
            self.learn(name, value, Use::Sorted);
        }
        let mood = self.types.last().unwrap().clone();
        self.mood = Some(mood.clone());
        let name = format!("{schema}.{}", self.name("pair"));
        let collation = self.random.pick(&self.collations).clone();
        self.add(format!(
            "create type {name} as (a integer, \"b c\" text collate {collation}, m {})",
            mood.name
        ));
        self.comment(&format!("column {name}.\"b c\""));
        let value = format!("row({{h}}, ({TEXT}), {})", mood.value);
        self.learn(
            format!("{name}[]"),
            format!("array[{value}::{name}]"),
            Use::Sorted,
        );
        self.learn(name.clone(), value, Use::Sorted);
        self.pair = name;
        let name = format!("{schema}.{}", self.name("span"));
        let multirange = match self.facts.major >= 14 {
            true => format!(", multirange_type_name = {schema}.{}", self.name("spans")),
            false => String::new(),
        };
        self.add(format!(
            "create type {name} as range (subtype = numeric{multirange})"
        ));
        self.learn(name.clone(), format!("{name}(0, {{n}}, '[]')"), Use::Sorted);
        for _ in 0..3 {
            let base = self.random.pick(&self.types).clone();
            let name = format!("{schema}.{}", self.name("dom"));
            let check = self.name("ck");
            let more = *self.random.pick(&["", "default null", "null"]);
            self.add(format!(
                "create domain {name} as {} {more} constraint {check} check (value::text <> 'never')",
                base.name
            ));
            self.comment(&format!("constraint {check} on domain {name}"));
            self.owned("domain", &name, &["usage"]);
            if self.random.one_in(2) {
                let check = self.name("ck");
                self.add(format!(
                    "alter domain {name} add constraint {check} check (length(value::text) >= 0) not valid"
                ));
            }
            self.learn(name, base.value, Use::Stored);
        }
    }

    fn learn(&mut self, name: String, value: String, use_of: Use) {
        // They come up more often than those that every database has.
        for _ in 0..2 {
            self.types.push(Type {
                name: name.clone(),
                value: value.clone(),
                use_of,
            });
        }
    }

    fn functions(&mut self, schema: &str) {
        let small = format!("{schema}.small");
        self.add(format!(
            "create function {small}(i integer) returns integer language sql immutable parallel safe cost 3 as $x$ select i % 1000 -- it's $1\n $x$"
        ));
        self.comment(&format!("function {small}(integer)"));
        self.add(format!(
            "create function {schema}.twice(in i integer, out a integer, out b text, variadic more integer[] default array[1]) language plpgsql security definer set search_path = pg_catalog, pg_temp as $$ begin a := i * 2; b := E'\\\\$x$'; end $$"
        ));
        self.owned(
            "function",
            &format!("{schema}.twice(integer, integer[])"),
            &["execute"],
        );
        self.add(format!(
            "create function {schema}.touched() returns trigger language plpgsql as 'begin return coalesce(new, old); end'"
        ));
        self.add(format!(
            "create procedure {schema}.act(i integer) language plpgsql as 'begin perform 1; commit; end'"
        ));
        self.owned("procedure", &format!("{schema}.act(integer)"), &["execute"]);
        self.add(format!(
            "create aggregate {schema}.total(integer) (sfunc = int4pl, stype = integer, initcond = '0', parallel = safe, combinefunc = int4pl)"
        ));
        self.comment(&format!("aggregate {schema}.total(integer)"));
        self.add(format!(
            "create operator {schema}.<+> (function = int4pl, leftarg = integer, rightarg = integer, commutator = operator({schema}.<+>))"
        ));
        if self.facts.major >= 14 {
            self.add(format!(
                "create function {schema}.atomic(i integer) returns integer language sql begin atomic select {small}(i) + 1; end"
            ));
        }
    }

    /// Random columns with their types.
    fn columns(&mut self, count: usize) -> Vec<(String, Type)> {
        (0..count)
            .map(|_| (self.name("c"), self.random.pick(&self.types).clone()))
            .collect()
    }

    /// The definition of a column.
    fn defined(&mut self, (name, of): &(String, Type)) -> String {
        let collation = self.random.pick(&self.collations).clone();
        let collated = match of.use_of == Use::Text && self.random.one_in(3) {
            true => format!(" collate {collation}"),
            false => String::new(),
        };
        let default = match self.random.below(6) {
            0 => format!(" default ({})::{}", number(&of.value, "7"), of.name),
            1 => " default null".to_owned(),
            _ => String::new(),
        };
        format!("{name} {}{collated}{default}", of.name)
    }

    /// Fills a table through its column `k` and the others.
    fn fill(
        &mut self,
        table: &str,
        rows: usize,
        columns: &[(String, Type)],
        more: &[(&str, &str)],
    ) {
        let mut names = vec!["k".to_owned()];
        let mut values = vec!["g".to_owned()];
        for (name, of) in columns {
            self.count += 1;
            let h = format!("hashtext('{}:' || g)", self.count);
            let value = number(&of.value, &h);
            names.push(name.clone());
            values.push(format!(
                "case when g % {} = 0 then null else ({value})::{} end",
                2 + self.random.below(9),
                of.name
            ));
        }
        for (name, value) in more {
            names.push((*name).to_owned());
            values.push((*value).to_owned());
        }
        self.add(format!(
            "insert into {table} ({}) select {} from generate_series(1, {rows}) g",
            names.join(", "),
            values.join(", ")
        ));
    }

    fn table(&mut self, schema: &str) {
        let name = format!("{schema}.{}", self.name("t"));
        let count = 1 + self.random.below(8);
        let columns = self.columns(count);
        let rows = *self.random.pick(&[0, 1, 20, 150]);
        let mut parts: Vec<String> = vec!["k integer not null".to_owned()];
        parts.extend(columns.iter().map(|c| self.defined(c)));
        let id = *self.random.pick(&[
            "id bigint generated always as identity (start 5 increment 3)",
            "id integer generated by default as identity (minvalue -10 start -4 cache 5 cycle maxvalue 1000)",
            "id smallserial",
            "id bigserial",
        ]);
        let key = self.name("pk");
        parts.push(format!("{id} constraint {key} primary key"));
        let generated = self.name("gen");
        let kind = match self.facts.major >= 18 && self.random.one_in(2) {
            true => "virtual",
            false => "stored",
        };
        match self.random.below(3) {
            0 => parts.push(format!(
                "{generated} integer generated always as (k * 2) {kind}"
            )),
            1 => parts.push(format!(
                "{generated} integer generated always as ({schema}.small(k)) stored"
            )),
            _ => {}
        }
        let unique = self.name("uq");
        let style = *self.random.pick(&["", " deferrable initially deferred"]);
        parts.push(format!("constraint {unique} unique (k)"));
        parts.push(format!("unique (id, k){style}"));
        if self.random.one_in(2) {
            parts.push("gone text".to_owned());
        }
        let kind = match self.random.below(8) {
            // To 14 the next newer pg_restore says SET LOGGED, which it does not know.
            0 if self.facts.major != 14 => "unlogged table",
            _ => "table",
        };
        let options = *self
            .random
            .pick(&["", " with (fillfactor = 70, autovacuum_enabled = false)"]);
        let has_gone = parts.last().unwrap() == "gone text";
        self.add(format!(
            "create {kind} {name} ({}){options}",
            parts.join(", ")
        ));
        if has_gone {
            self.add(format!("alter table {name} drop column gone"));
        }
        self.fill(&name, rows, &columns, &[]);
        let is_permanent = kind == "table";
        let table = Table {
            name,
            rows,
            columns,
            is_partitioned: false,
        };
        self.around(schema, &table);
        if is_permanent {
            self.tables.push(table);
        }
    }

    /// Constraints, indexes, triggers, policies, rights and statistics of a table.
    fn around(&mut self, schema: &str, table: &Table) {
        let name = &table.name;
        self.comment(&format!("table {name}"));
        self.owned("table", name, &["select", "insert, update", "all"]);
        for (column, of) in &table.columns {
            if self.random.one_in(5) {
                self.comment(&format!("column {name}.{column}"));
                let role = self.role();
                self.add(format!(
                    "grant select ({column}), update ({column}) on {name} to {role}"
                ));
            }
            if self.random.one_in(5) {
                self.add(format!(
                    "alter table {name} alter column {column} set statistics 77"
                ));
                self.add(format!(
                    "alter table {name} alter column {column} set (n_distinct = 5)"
                ));
            }
            if of.use_of == Use::Text && self.random.one_in(2) {
                self.add(format!(
                    "alter table {name} alter column {column} set storage external"
                ));
                if self.facts.major >= 14 {
                    self.add(format!(
                        "alter table {name} alter column {column} set compression pglz"
                    ));
                }
            }
            if self.random.one_in(2) {
                self.index(schema, table, column, of.use_of);
            }
        }
        self.constraints(schema, table);
        self.triggers(schema, table);
        self.policies(table);
        if let [(a, _), (b, _), ..] = &table.columns[..] {
            let sortable = table
                .columns
                .iter()
                .take(2)
                .all(|(_, t)| t.use_of != Use::Stored && t.use_of != Use::Integers);
            if sortable {
                let statistics = format!("{schema}.{}", self.name("stat"));
                let kinds = *self
                    .random
                    .pick(&["(ndistinct)", "(dependencies, mcv)", ""]);
                self.add(format!(
                    "create statistics {statistics} {kinds} on {a}, {b} from {name}"
                ));
                self.add(format!("alter statistics {statistics} set statistics 55"));
                self.comment(&format!("statistics {statistics}"));
            }
            if self.facts.major >= 14 {
                let statistics = format!("{schema}.{}", self.name("stat"));
                self.add(format!(
                    "create statistics {statistics} on (k % 7), k from {name}"
                ));
            }
        }
    }

    fn index(&mut self, schema: &str, table: &Table, column: &str, use_of: Use) {
        let index = self.name("ix");
        let has = |name: &str| self.has.contains(&name);
        let (trigrams, bloom, arrays) = (has("pg_trgm"), has("bloom"), has("intarray"));
        let what = match (use_of, self.random.below(4)) {
            (Use::Text, 0) if trigrams => {
                format!("using gin (({column}::text collate \"C\") ext.gin_trgm_ops)")
            }
            (Use::Text, 0 | 1) => format!(
                "(md5({column}) desc nulls last, (md5({column}) collate \"C\") text_pattern_ops)"
            ),
            (Use::Text, _) => format!("using hash ({column})"),
            (Use::Integer, 0) if bloom => format!("using bloom ({column}) with (length = 64)"),
            (Use::Integer, 0 | 1) => format!("(({schema}.small({column}))) include (k)"),
            (Use::Integer, _) => format!("using brin ({column}) with (pages_per_range = 16)"),
            (Use::Json, _) => format!("using gin ({column} jsonb_path_ops)"),
            (Use::Integers, _) if arrays => format!("using gist ({column} ext.gist__intbig_ops)"),
            (Use::Integers, _) => format!("using gin ({column})"),
            (Use::Sorted, 0) => format!("({column} desc) where k > 5"),
            (Use::Sorted, _) => format!("(k, {column}) with (fillfactor = 60)"),
            (Use::Stored, _) => "((k % 10), k)".to_owned(),
        };
        self.add(format!("create index {index} on {} {what}", table.name));
        self.comment(&format!("index {schema}.{index}"));
        if !table.is_partitioned && use_of == Use::Stored {
            self.add(format!(
                "alter index {schema}.{index} alter column 1 set statistics 99"
            ));
        }
    }

    fn constraints(&mut self, schema: &str, table: &Table) {
        let name = &table.name;
        let excludes = !table.is_partitioned && self.random.one_in(2);
        if excludes {
            self.add(format!("alter table {name} add column \"the range\" int4range generated always as (int4range(k * 10, k * 10 + 5)) stored"));
            let exclusion = self.name("ex");
            let more = match self.has.contains(&"btree_gist") {
                true => "k with =, ",
                false => "",
            };
            self.add(format!("alter table {name} add constraint {exclusion} exclude using gist ({more}\"the range\" with &&) where (k > 3)"));
        }
        for _ in 0..self.random.below(3) {
            self.foreign_key(table);
        }
        let check = self.name("ck");
        self.add(format!(
            "alter table {name} add constraint {check} check ({schema}.small(k) < 1000 and k > 0)"
        ));
        self.comment(&format!("constraint {check} on {name}"));
        if self.facts.major >= 15 && !table.is_partitioned && self.random.one_in(2) {
            self.add(format!(
                "alter table {name} add unique nulls not distinct (k, id)"
            ));
        }
        // Rows that they forbid are there.
        if self.random.one_in(2) {
            let check = self.name("ck");
            self.add(format!(
                "alter table {name} add constraint {check} check (k < 0) not valid"
            ));
        }
        if self.facts.major >= 18 && self.random.one_in(2) {
            let (check, column) = (self.name("nn"), &table.columns[0].0);
            self.add(format!(
                "alter table {name} add constraint {check} not null {column} not valid"
            ));
            let check = self.name("ck");
            self.add(format!(
                "alter table {name} add constraint {check} check (k < 0) not enforced"
            ));
        }
    }

    fn foreign_key(&mut self, table: &Table) {
        if self.tables.is_empty() {
            return;
        }
        let name = &table.name;
        let at = self.random.below(self.tables.len());
        let (target, rows) = (self.tables[at].name.clone(), self.tables[at].rows);
        let (column, key) = (self.name("ref"), self.name("fk"));
        let value = match rows {
            0 => "null".to_owned(),
            _ => format!("1 + k % {rows}"),
        };
        self.add(format!("alter table {name} add column {column} integer"));
        self.add(format!("update {name} set {column} = {value}"));
        let how = *self.random.pick(&[
            "",
            "on delete cascade on update set null",
            "deferrable initially deferred",
            "not valid",
        ]);
        let how = match table.is_partitioned && how == "not valid" {
            true => "",
            false => how,
        };
        self.add(format!("alter table {name} add constraint {key} foreign key ({column}) references {target} (k) {how}"));
    }

    fn triggers(&mut self, schema: &str, table: &Table) {
        let name = &table.name;
        let trigger = self.name("tg");
        let what = *self.random.pick(&[
            "after insert or update of k on {t} for each row when (new.k > 3)",
            "after delete on {t} referencing old table as gone for each statement",
            "before truncate on {t} for each statement",
        ]);
        let what = what.replace("{t}", name);
        self.add(format!(
            "create trigger {trigger} {what} execute function {schema}.touched('it''s', '\\x')"
        ));
        self.comment(&format!("trigger {trigger} on {name}"));
        if !table.is_partitioned {
            let state =
                *self
                    .random
                    .pick(&["disable", "enable always", "enable replica", "enable"]);
            self.add(format!("alter table {name} {state} trigger {trigger}"));
            let trigger = self.name("tg");
            self.add(format!("create constraint trigger {trigger} after insert on {name} deferrable initially deferred for each row execute function {schema}.touched()"));
        }
    }

    fn policies(&mut self, table: &Table) {
        if !self.random.one_in(2) {
            return;
        }
        let name = &table.name;
        self.add(format!("alter table {name} enable row level security"));
        if self.random.one_in(2) {
            self.add(format!("alter table {name} force row level security"));
        }
        for how in ["", "as restrictive for update", "for insert"] {
            let (policy, role) = (self.name("pol"), self.role());
            let using = match how {
                "for insert" => "",
                _ => "using (k % 2 = 0 and current_user <> 'it''s')",
            };
            let check = match how {
                "" => "",
                _ => "with check (k > 0)",
            };
            self.add(format!(
                "create policy {policy} on {name} {how} to {role} {using} {check}"
            ));
            self.comment(&format!("policy {policy} on {name}"));
        }
    }

    /// A table in partitions: by range, list or hash, in two levels, with one of another order of columns.
    fn partitioned(&mut self, schema: &str) {
        let own = self.name("p");
        let name = format!("{schema}.{own}");
        let mut columns = vec![("e".to_owned(), self.mood.clone().unwrap())];
        let count = 1 + self.random.below(3);
        columns.extend(self.columns(count));
        let mut parts = vec!["k integer not null".to_owned()];
        parts.extend(columns.iter().map(|c| format!("{} {}", c.0, c.1.name)));
        if self.facts.major >= 17 {
            parts.push("id bigint generated always as identity (start 7)".to_owned());
        }
        let by = *self.random.pick(&[
            "range (k)",
            "list (e)",
            "hash (e)",
            "hash (k)",
            "range ((k % 100), e)",
        ]);
        self.add(format!(
            "create table {name} ({}) partition by {by}",
            parts.join(", ")
        ));
        let mut part = |of: &str, how: &str| {
            let part = format!("{schema}.{}", self.name("part"));
            self.add(format!("create table {part} partition of {of} {how}"));
            part
        };
        match by {
            "range (k)" => {
                part(&name, "for values from (minvalue) to (20)");
                let below = part(&name, "for values from (20) to (60) partition by hash (k)");
                part(&below, "for values with (modulus 2, remainder 0)");
                part(&below, "for values with (modulus 2, remainder 1)");
                let below = part(&name, "default partition by list (e)");
                part(&below, "for values in ('sad', null)");
                part(&below, "default");
            }
            "list (e)" => {
                part(&name, "for values in ('ok', 'né')");
                part(&name, "for values in (null)");
                part(&name, "default");
            }
            "range ((k % 100), e)" => {
                part(&name, "for values from (minvalue, minvalue) to (10, 'ok')");
                part(&name, "for values from (10, 'ok') to (maxvalue, maxvalue)");
                part(&name, "default");
            }
            _ => {
                part(&name, "for values with (modulus 3, remainder 0)");
                part(&name, "for values with (modulus 3, remainder 2)");
                part(&name, "for values with (modulus 6, remainder 1)");
                part(&name, "for values with (modulus 6, remainder 4)");
            }
        }
        if by == "range (k)" {
            let other = format!("{schema}.{}", self.name("attached"));
            let reversed: Vec<_> = columns
                .iter()
                .rev()
                .map(|c| format!("{} {}", c.0, c.1.name))
                .collect();
            let id = match self.facts.major >= 17 {
                true => ", id bigint not null",
                false => "",
            };
            self.add(format!(
                "create table {other} (junk text, {}{id}, k integer not null)",
                reversed.join(", ")
            ));
            self.add(format!("alter table {other} drop column junk"));
            self.add(format!(
                "alter table {name} attach partition {other} for values from (1000) to (1100)"
            ));
            let check = self.name("ck");
            self.add(format!(
                "alter table {other} add constraint {check} check (k <> 1)"
            ));
            let first = columns[0].clone();
            self.add(format!(
                "insert into {name} (k, e) select g, ({})::{} from generate_series(1000, 1030) g",
                number(&first.1.value, "g"),
                first.1.name
            ));
        }
        self.fill(&name, 130, &columns, &[]);
        let table = Table {
            name: name.clone(),
            rows: 130,
            columns,
            is_partitioned: true,
        };
        self.around(schema, &table);
        if by == "hash (k)" {
            self.add(format!("alter table {name} add primary key (k)"));
            self.tables.push(table);
        }
    }

    /// Tables that are none of the usual: inherited, typed, without columns, with rules, of another access method.
    fn odd_tables(&mut self, schema: &str) {
        let parent = format!("{schema}.{}", self.name("parent"));
        let (child, both) = (
            format!("{schema}.{}", self.name("child")),
            format!("{schema}.{}", self.name("both")),
        );
        self.add(format!("create table {parent} (k integer default 1, a text, check (k > 0), constraint mine check (k < 100000) no inherit)"));
        self.add(format!(
            "create table {child} (k integer default 2 not null, b integer) inherits ({parent})"
        ));
        self.add(format!("create table {both} (k integer default 3, a text default 'x') inherits ({parent}, {child})"));
        for table in [&parent, &child, &both] {
            self.fill(table, 12, &[], &[("a", "'of ' || g")]);
        }
        self.add(format!("alter table {both} replica identity full"));
        let (pair, key) = (self.pair.clone(), self.name("pk"));
        let typed = format!("{schema}.{}", self.name("typed"));
        self.add(format!("create table {typed} of {pair} (a with options default 5, constraint {key} primary key (a))"));
        self.add(format!(
            "insert into {typed} (a) select generate_series(1, 9)"
        ));
        self.add(format!("alter table {typed} cluster on {key}"));
        let rule = self.name("rule");
        self.add(format!(
            "create rule {rule} as on delete to {both} where old.k = 1 do also delete from {typed} where a = old.k"
        ));
        let none = format!("{schema}.{}", self.name("none"));
        self.add(format!("create table {none} ()"));
        self.add(format!(
            "insert into {none} default values; insert into {none} default values"
        ));
        let key = self.name("circle");
        let (hens, eggs) = (
            format!("{schema}.{}", self.name("hens")),
            format!("{schema}.{}", self.name("eggs")),
        );
        self.add(format!(
            "create table {hens} (k integer primary key, egg integer)"
        ));
        self.add(format!(
            "create table {eggs} (k integer primary key, hen integer references {hens})"
        ));
        self.fill(&hens, 7, &[], &[("egg", "8 - g")]);
        self.fill(&eggs, 7, &[], &[("hen", "g")]);
        self.add(format!(
            "alter table {hens} add constraint {key} foreign key (egg) references {eggs}"
        ));
        self.add(format!(
            "alter table {hens} add foreign key (k) references {hens} deferrable"
        ));
    }

    fn sequences(&mut self, schema: &str) {
        for options in [
            "as smallint increment by -3 maxvalue 100 minvalue -100 start 50 cycle",
            "cache 7",
            "start with 1000",
        ] {
            let sequence = format!("{schema}.{}", self.name("seq"));
            self.add(format!("create sequence {sequence} {options}"));
            self.comment(&format!("sequence {sequence}"));
            self.owned("sequence", &sequence, &["usage", "select, update"]);
            let literal = sequence.replace('\'', "''");
            match self.random.below(3) {
                0 => self.add(format!(
                    "select nextval('{literal}') from generate_series(1, 5)"
                )),
                1 => {
                    let to = 1 + self.random.below(90);
                    self.add(format!("select setval('{literal}', {to}, false)"));
                }
                _ => {}
            }
        }
    }

    fn views(&mut self, schema: &str) {
        let Some(at) = self.tables.len().checked_sub(1) else {
            return;
        };
        let (table, first) = (
            self.tables[at].name.clone(),
            self.tables[at].columns[0].0.clone(),
        );
        let view = format!("{schema}.{}", self.name("v"));
        let option = match self.facts.major >= 15 {
            true => ", security_invoker = true",
            false => "",
        };
        self.add(format!("create view {view} with (security_barrier = true{option}) as select k, {first} as \"the first\", k + 1 as more from {table} where k > 3 with local check option"));
        self.add(format!("alter view {view} alter column k set default 42"));
        self.comment(&format!("view {view}"));
        // Views read with the rights of their owners, who stay as they are therefore.
        let role = self.role();
        self.add(format!(
            "grant select on {view} to {role} with grant option"
        ));
        let rule = self.name("rule");
        self.add(format!(
            "create rule {rule} as on delete to {view} do instead nothing"
        ));
        let own = self.name("v");
        let counted = format!("{schema}.{own}");
        self.add(format!("create recursive view {counted} (n) as values (1) union all select n + 1 from {own} where n < 9"));
        let stored = format!("{schema}.{}", self.name("mv"));
        self.add(format!(
            "create materialized view {stored} as select k, more, \"the first\" from {view}"
        ));
        self.add(format!("create unique index on {stored} (k)"));
        self.comment(&format!("materialized view {stored}"));
        self.add(format!("grant select on {stored} to {role}"));
        let above = format!("{schema}.{}", self.name("mv"));
        self.add(format!("create materialized view {above} with (fillfactor = 50) as select count(*) as n, sum(k) from {stored}, {counted}"));
        let empty = format!("{schema}.{}", self.name("mv"));
        self.add(format!(
            "create materialized view {empty} as select * from {table} with no data"
        ));
    }

    /// Objects of text search.
    fn searches(&mut self, schema: &str) {
        let (dictionary, configuration) = (
            format!("{schema}.{}", self.name("dict")),
            format!("{schema}.{}", self.name("conf")),
        );
        self.add(format!("create text search dictionary {dictionary} (template = pg_catalog.simple, accept = false)"));
        self.add(format!(
            "create text search configuration {configuration} (copy = pg_catalog.simple)"
        ));
        self.add(format!("alter text search configuration {configuration} alter mapping for word, asciiword with {dictionary}, simple"));
        self.comment(&format!("text search configuration {configuration}"));
        self.add(format!("create text search parser {schema}.parser (start = prsd_start, gettoken = prsd_nexttoken, end = prsd_end, lextypes = prsd_lextype)"));
    }

    /// Objects that few databases have.
    fn rare(&mut self, schema: &str) {
        let (class, table) = (
            format!("{schema}.{}", self.name("class")),
            format!("{schema}.{}", self.name("t")),
        );
        self.add(format!("create operator class {class} for type integer using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 btint4cmp(integer, integer)"));
        let method = self.name("heap");
        self.add(format!(
            "create access method {method} type table handler heap_tableam_handler"
        ));
        self.add(format!("create table {table} (k integer) using {method}"));
        self.add(format!("create index on {table} (k {class})"));
        self.fill(&table, 5, &[], &[]);
        let conversion = format!("{schema}.{}", self.name("conv"));
        self.add(format!(
            "create conversion {conversion} for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8"
        ));
        let mood = self.mood.clone().unwrap().name;
        self.add(format!("create function {schema}.as_number({mood}) returns integer language sql immutable as 'select 1'"));
        self.add(format!(
            "create cast ({mood} as integer) with function {schema}.as_number({mood}) as assignment"
        ));
        let (wrapper, server) = (self.name("fdw"), self.name("server"));
        self.add(format!("create foreign data wrapper {wrapper}"));
        self.add(format!("create server {server} type 'x' version '1' foreign data wrapper {wrapper} options (host 'it''s')"));
        let role = self.role();
        self.add(format!(
            "create user mapping for {role} server {server} options (\"user\" 'u')"
        ));
        let foreign = format!("{schema}.{}", self.name("far"));
        self.add(format!("create foreign table {foreign} (k integer options (x 'y') not null, t text) server {server} options (a 'b')"));
    }

    fn large_objects(&mut self) {
        for n in 0..2 + self.random.below(6) {
            let oid = 30_000 + n * 7;
            let repeated = self.random.below(9000);
            self.add(format!(
                "select lo_from_bytea({oid}, decode(repeat(md5('{n}'), {repeated}), 'hex'))"
            ));
            if self.random.one_in(3) {
                self.add(format!("select lo_put({oid}, 500000, '\\x00ff')"));
            }
            self.owned(
                "large object",
                &oid.to_string(),
                &["select", "select, update"],
            );
            self.comment(&format!("large object {oid}"));
        }
        self.add("select lo_create(29999)");
    }

    /// Publications, a subscription and an event trigger, which lie in no schema.
    fn of_the_database(&mut self) {
        let table = self.tables[0].name.clone();
        let (one, two) = (self.name("pub"), self.name("pub"));
        self.add(format!("create publication {one} for all tables with (publish = 'insert, delete', publish_via_partition_root = true)"));
        let newer = match self.facts.major >= 15 {
            true => " (k) where (k > 5)",
            false => "",
        };
        self.add(format!("create publication {two} for table {table}{newer} with (publish_via_partition_root = true)"));
        self.comment(&format!("publication {two}"));
        if self.facts.major >= 15 {
            let three = self.name("pub");
            self.add(format!(
                "create publication {three} for tables in schema ext, public"
            ));
        }
        let subscription = self.name("sub");
        self.add(format!("create subscription {subscription} connection 'dbname=nowhere' publication a, \"b c\" with (connect = false, slot_name = none)"));
        self.add(
            "create function public.seen() returns event_trigger language plpgsql as 'begin end'",
        );
        let trigger = self.name("et");
        self.add(format!("create event trigger {trigger} on ddl_command_end when tag in ('CREATE TABLE', 'DROP TABLE') execute function public.seen()"));
        if self.random.one_in(2) {
            self.add(format!("alter event trigger {trigger} disable"));
        }
        self.comment(&format!("event trigger {trigger}"));
    }
}

/// An expression with its numbers.
fn number(value: &str, h: &str) -> String {
    let n = format!("({h} & 2147483647)");
    value.replace("{h}", h).replace("{n}", &n)
}
