//! A cluster with a database to be dumped, a repository, and a configuration with `[logical.app]`.

use std::path::{Path, PathBuf};

use crate::common::{Client, Cluster, Program, Run, Sandbox, bin, newest_bin, pitr};
use crate::sealed::keygen;

/// All of it.
pub struct World {
    pub cluster: Cluster,
    pub sandbox: Sandbox,
    /// The directory in which dumps wait.
    pub spool: PathBuf,
}

/// The definitions of the database. Everything in it that `pg_dump` has a case for, as far as no extension is needed.
const DEFINITIONS: &str = "
    create role app_owner; create role app_reader;
    create schema app authorization app_owner;
    create type app.mood as enum ('sad', 'ok', 'happy');
    create domain app.euros as numeric(12, 2) check (value > -1000000);
    create table app.accounts (id int primary key, mood app.mood not null default 'ok', euros app.euros not null,
        doubled numeric generated always as (euros * 2) stored, note text);
    create index accounts_note on app.accounts (lower(note));
    create table app.history (id bigint generated always as identity, account int references app.accounts, euros app.euros, at timestamptz default now());
    create table app.parts (k int, v text) partition by range (k);
    create table app.parts_1 partition of app.parts for values from (0) to (100);
    create table app.parts_2 partition of app.parts for values from (100) to (200);
    create table app.\"Odd \"\"name\"\"; drop\" (\"a b\" int, c bytea);
    create table app.moods (mood app.mood, n int) partition by hash (mood);
    create table app.moods_0 partition of app.moods for values with (modulus 3, remainder 0);
    create table app.moods_1 partition of app.moods for values with (modulus 3, remainder 1);
    create table app.moods_2 partition of app.moods for values with (modulus 3, remainder 2);
    insert into app.moods select (enum_range(null::app.mood))[1 + g % 3], g from generate_series(1, 60) g;
    create table app.secrets (owner text, t text); alter table app.secrets enable row level security;
    create policy own on app.secrets to app_reader using (owner = current_user);
    create unlogged table app.scratch (n int);
    create table app.empty (n int);
    create table app.no_columns (); insert into app.no_columns default values; insert into app.no_columns default values;
    create table app.derived (n int generated always as (1) stored); insert into app.derived default values;
    create table app.hens (id int primary key, egg int);
    create table app.eggs (id int primary key, hen int references app.hens);
    alter table app.hens add foreign key (egg) references app.eggs;
    create view app.rich as select * from app.accounts where euros > 500;
    create materialized view app.total as select sum(euros) from app.accounts;
    create function app.twice(n int) returns int language sql immutable as 'select n * 2';
    create table public.plain (id serial primary key, t text);
    grant select on app.accounts to app_reader;
    insert into app.accounts (id, euros, note) select g, 100, E'line\\n\\ttab \\\\.' || g from generate_series(1, 500) g;
    insert into app.parts select g, 'part ' || g from generate_series(0, 199) g;
    insert into app.\"Odd \"\"name\"\"; drop\" values (1, '\\x0a5c2e0a'), (2, null);
    insert into app.secrets select 'app_reader', md5(g::text) from generate_series(1, 50) g;
    insert into app.scratch select generate_series(1, 7);
    insert into public.plain (t) select 'plain ' || g from generate_series(1, 30) g;
    select lo_from_bytea(0, '\\x00010203');
";

impl World {
    pub fn new(major: u32) -> World {
        World::of(Cluster::builder(major).without_fsync().start(), false)
    }

    pub fn sealed(major: u32) -> World {
        World::of(Cluster::builder(major).without_fsync().start(), true)
    }

    pub fn of(cluster: Cluster, is_sealed: bool) -> World {
        let world = World::empty(cluster, is_sealed);
        world.cluster.client_of("app").sql(DEFINITIONS);
        world
    }

    /// With nothing in the database.
    pub fn empty(cluster: Cluster, is_sealed: bool) -> World {
        let sandbox = Sandbox::new("logical");
        let spool = sandbox.dir("tmp");
        cluster.sql("create database app");
        if is_sealed {
            let keys = keygen(&sandbox.join("keys"), &["ops", "escrow"]);
            keys.succeed();
        }
        let encryption = match is_sealed {
            true => format!(
                "[repositories.one.encryption]\nkey_set = \"{0}/writer.key\"\nkey_file = \"{0}/ops.key\"\n",
                sandbox.join("keys").display()
            ),
            false => String::new(),
        };
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n[repositories.one]\nurl = \"file://{}\"\n{encryption}\
             [logical.app]\ncluster = \"main\"\ndatabases = [\"app\"]\n[logical.all]\ncluster = \"main\"\n\
             [logical.definitions]\ncluster = \"main\"\ndatabases = [\"app\"]\ncontent = \"schema\"\n\
             [logical.data]\ncluster = \"main\"\ndatabases = [\"app\"]\ncontent = \"data\"\njobs = 1\n",
            cluster.pgdata().display(),
            cluster.conninfo("postgres"),
            sandbox.join("one").display(),
        );
        sandbox.file("pitr.toml", text);
        let world = World {
            cluster,
            sandbox,
            spool,
        };
        world.pitr(&["init", "--quiet"]).succeed();
        world
    }

    /// Lets the configuration lead to another server.
    pub fn point_to(&self, other: &Cluster) {
        crate::common::edit(
            self.sandbox.join("pitr.toml"),
            &self.cluster.conninfo("postgres"),
            &other.conninfo("postgres"),
        );
    }

    /// `pitr` with the client programs and the server of the cluster's major, or of the next one that has them.
    pub fn pitr(&self, arguments: &[&str]) -> Program {
        pitr()
            .arg("--config")
            .arg(self.sandbox.join("pitr.toml"))
            .args(arguments)
            .env("TMPDIR", &self.spool)
            .env("PATH", path(self.cluster.major()))
    }

    /// `pitr logical …`.
    pub fn logical(&self, arguments: &[&str]) -> Program {
        self.pitr(&[&["logical"], arguments].concat())
    }

    /// Takes a backup; its id.
    pub fn backup(&self) -> String {
        let run = self.logical(&["backup", "app", "--json"]).succeed();
        self.assert_spool_is_empty();
        run.id()
    }

    /// The ids of the backups that exist under a name.
    pub fn ids(&self, name: &str) -> Vec<String> {
        let run = self.pitr(&["info", "--json"]).run();
        let scope = format!("aux/logical/{name}");
        let scopes = run.json()["scopes"].as_array().cloned().unwrap_or_default();
        let own = scopes.into_iter().find(|s| s["scope"] == scope.as_str());
        let backups = own.map(|s| s["backups"].as_array().unwrap().clone());
        let ids = backups.unwrap_or_default().into_iter();
        ids.map(|b| b["id"].as_str().unwrap().to_owned()).collect()
    }

    pub fn assert_spool_is_empty(&self) {
        let left: Vec<_> = std::fs::read_dir(&self.spool)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "left in the spool: {left:?}");
    }

    /// Requires that a backup failed, and left neither a root nor a spool.
    pub fn assert_no_backup(&self, run: &Run) {
        assert!(!run.is_success(), "{run}");
        assert_eq!(self.ids("app"), Vec::<String>::new(), "{run}");
        self.assert_spool_is_empty();
    }

    /// An empty database of the cluster; a client of it.
    pub fn database(&self, name: &str) -> Client {
        self.cluster.sql(&format!("create database {name}"));
        self.cluster.client_of(name)
    }

    /// A folder of programs in which `pg_dump` runs the real one, and this script on its directory `$dir` afterwards.
    pub fn tampering(&self, script: &str) -> PathBuf {
        let folder = self.sandbox.dir("bin");
        let real = newest_bin(self.cluster.major(), "pg_dump");
        let real = real.canonicalize().unwrap();
        for name in ["pg_dumpall", "pg_restore"] {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(real.with_file_name(name), link).unwrap();
        }
        let text = format!(
            "#!/bin/sh\nreal={}\ncase \"$*\" in *--version*) exec \"$real\" --version;; esac\nall=\"$*\"\n\
             \"$real\" \"$@\" || exit $?\nwhile [ $# -gt 0 ]; do [ \"$1\" = -f ] && dir=$2; shift; done\n{script}\n",
            real.display()
        );
        let source = self.sandbox.file("wrapper", text);
        // By another program: a child of another test could hold the script open for writing.
        Program::new("install")
            .words("-m 755")
            .arg(source)
            .arg(folder.join("pg_dump"))
            .succeed();
        folder
    }
}

/// The search path with the programs that serve a major.
fn path(major: u32) -> String {
    let dump = newest_bin(major, "pg_dump");
    let folders: Vec<String> = (major..=19)
        .filter(|m| newest_bin(*m, "pg_dump") == dump || *m == major)
        .chain([version_of(&dump)])
        .filter_map(|m| bin(m, "postgres"))
        .filter_map(|path| path.parent().map(|p| p.display().to_string()))
        .collect();
    let own = dump.parent().unwrap().display();
    // The server first: client programs may come with a server that was built without ICU.
    format!("{}:{own}:/usr/bin:/bin", folders.join(":"))
}

/// The major of a program of the test environment: a folder of its path.
fn version_of(program: &Path) -> u32 {
    let names = program.components().filter_map(|c| c.as_os_str().to_str());
    names
        .filter_map(|name| name.parse::<u32>().ok())
        .next_back()
        .unwrap()
}
