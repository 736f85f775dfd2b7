//! Dumps as a kind of content.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::database::Making;
use super::member::Member;
use super::source::{Source, size_of};
use super::spool::Spool;
use super::tool::{self, Tick, Tool};
use crate::config::LogicalContent;
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::snapshot::kind::{Kind, Produced, Work};
use crate::snapshot::reader::Snapshot;
use crate::tree::extract::{self, Permit};
use crate::tree::left_out::Part;
use crate::tree::selection::Selection;
use crate::tree::walk::{self, Tree};
use crate::wire::service_file::in_database;

/// The name of the kind.
pub const NAME: &str = "logical";
/// Roles and tablespaces, as SQL.
pub const GLOBALS: &str = "globals.sql";
/// Threads that read files of the spool.
pub const READERS: usize = 2;
/// Threads that write files.
const WRITERS: usize = 2;

/// The programs that take a backup, all of one major.
#[derive(Debug, Clone)]
pub struct Tools {
    /// `pg_dump`.
    pub pg_dump: Tool,
    /// `pg_dumpall`, for roles and tablespaces.
    pub pg_dumpall: Tool,
    /// `pg_restore`, which reads what was written.
    pub pg_restore: Tool,
}

/// Databases that are dumped.
pub struct Dumping {
    /// The server.
    pub source: Source,
    /// The programs.
    pub tools: Tools,
    /// Connections of each dump.
    pub jobs: u32,
    /// Parts of each database that are dumped.
    pub content: LogicalContent,
    /// Whether the repository seals what it stores: only then password hashes of roles belong into it.
    pub is_sealed: bool,
    /// Facts about the product, once there is one.
    pub member: Option<Member>,
}

impl Dumping {
    fn dump(&self, spool: &Spool, tree: &Path, work: &mut Work<'_, '_>) -> Result<Member> {
        let service = self.source.write_service(spool)?;
        let scratch = spool.file("list", b"")?;
        let making = Making {
            source: &self.source,
            pg_dump: &self.tools.pg_dump,
            pg_restore: &self.tools.pg_restore,
            service: &service,
            jobs: self.jobs,
            content: self.content,
            progress: &work.host.progress,
        };
        let mut databases = Vec::new();
        for database in &self.source.databases {
            let phase = format!("dump database \"{}\"", database.name);
            work.host.progress.phase(&phase, None);
            databases.push(making.dump(database, tree, &scratch, work.tick)?);
        }
        let role_passwords = self.source.is_superuser && self.is_sealed;
        let globals = self.globals(&service, tree, role_passwords, work)?;
        Ok(Member {
            server_version: self.source.version.clone(),
            server_major: self.source.major.number(),
            pg_dump_version: self.tools.pg_dump.version.clone(),
            pg_dump_major: self.tools.pg_dump.major.number(),
            from_standby: self.source.is_standby,
            content: self.content,
            globals_bytes: size_of(&globals)?,
            role_passwords,
            checks: vec!["read".to_owned()],
            databases,
        })
    }

    fn globals(
        &self,
        service: &Path,
        tree: &Path,
        with_passwords: bool,
        work: &mut Work<'_, '_>,
    ) -> Result<PathBuf> {
        let file = tree.join(GLOBALS);
        let mut command = self.tools.pg_dumpall.command(Some(service));
        command.args(["--globals-only", "--no-password"]);
        if !with_passwords {
            command.arg("--no-role-passwords");
        }
        let home = self.source.home();
        command.arg("-f").arg(&file);
        command.arg(format!("--dbname={}", in_database(home)));
        // pg_dumpall takes a name like a=b for settings, and finds a database by itself.
        if !home.contains(['=', ':']) {
            command.arg(format!("--database={home}"));
        }
        tool::run(&mut command, work.tick).map_err(|e| e.context("dump roles and tablespaces"))?;
        Ok(file)
    }
}

impl Kind for Dumping {
    fn name(&self) -> &'static str {
        NAME
    }

    fn identity(&self) -> Option<String> {
        Some(self.source.system_identifier.to_string())
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        let spool = Spool::new(&work.host.scratch)?;
        let tree = spool.directory("dumps")?;
        let member = self.dump(&spool, &tree, work)?;
        super::spool::close(&tree)?;
        let sizes = member.databases.iter().map(|d| d.size_bytes);
        work.host
            .progress
            .phase("store the dumps", Some(sizes.sum()));
        let source = Tree {
            root: &tree,
            selection: &Selection::all()?,
            before: None,
            readers: READERS,
            // Dumps have no prior, and little in common with one another.
            is_shared: false,
            host: work.host,
        };
        let taken = walk::take(&source, work.writer, work.tick)?;
        let lost = taken.left_out.examples().iter();
        let mut lost = lost.filter(|l| matches!(l.part, Part::Entry | Part::Content));
        if let Some(lost) = lost.next() {
            return Err(err!(
                Io,
                "\"{}\" of the dumps cannot be read: {}",
                lost.path.escape_ascii(),
                lost.why
            ));
        }
        let value = serde_json::to_value(&member)
            .map_err(|e| err!(Internal, "write the member \"logical\"").source(e))?;
        self.member = Some(member);
        Ok(Produced {
            unstable_count: taken.unstable,
            member: value,
            ..Produced::default()
        })
    }
}

/// Puts the dumps of a backup back as files, into a directory that is empty.
///
/// # Errors
/// `Damaged`; those of the system.
pub fn put_back(
    snapshot: &Snapshot<'_>,
    member: &Value,
    to: &Path,
    (host, tick): (&Host, Tick<'_>),
) -> Result<Member> {
    let member = Member::read(member)?;
    // Owners and modes of a spool mean nothing elsewhere.
    let done = extract::extract(snapshot, to, Permit::default(), WRITERS, (host, tick))?;
    let lost = done.left_out.examples().iter();
    let mut lost = lost.filter(|l| matches!(l.part, Part::Entry | Part::Content));
    if let Some(lost) = lost.next() {
        return Err(err!(
            TargetWrite,
            "\"{}\" was not made: {}",
            lost.path.escape_ascii(),
            lost.why
        ));
    }
    for database in &member.databases {
        let names = [database.directory(), database.rows_file()];
        if let Some(name) = names.iter().find(|name| !to.join(name).exists()) {
            return Err(err!(
                Damaged,
                "the backup has no \"{name}\" of database \"{}\"",
                database.name
            ));
        }
    }
    Ok(member)
}
