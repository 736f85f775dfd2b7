//! `pitr init`.

use std::path::PathBuf;

use super::{Context, init_interactive, roles};
use crate::error::Result;
use crate::operate::archive_command::conf_value;
use crate::operate::human;
use crate::operate::init::{self, Done, Made, Request};
use crate::operate::roles::Role;

/// Create the repository and register the cluster in it
///
/// Writes a configuration file where there is none, creates the repository, and prints the lines that postgresql.conf needs.
/// A repository that exists is kept. After pg_upgrade or initdb, --confirm registers the cluster's new system identifier under
/// its old name.
///
/// Example: pitr init --cluster main --pgdata /var/lib/postgresql/17/main --repository file:///var/backups/pitr
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The data directory of the cluster
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,

    /// How to connect to the cluster, in libpq's syntax
    #[arg(long, value_name = "CONNINFO")]
    pub conninfo: Option<String>,

    /// Encrypt the repository: the writer's file of its key set, made by pitr repo keygen
    #[arg(long, value_name = "FILE")]
    pub key_set: Option<PathBuf>,

    /// Let a key set with a single recipient do: when its key is lost, everything is
    #[arg(long)]
    pub one_recipient: bool,

    /// Find the clusters of this host, ask four questions, and end with a first backup
    ///
    /// As the server's user: sudo -u postgres pitr init --interactive. Settings are changed by ALTER SYSTEM after a yes; nothing is restarted.
    #[arg(long)]
    pub interactive: bool,

    /// Register another system identifier under a name that is taken
    #[arg(long)]
    pub confirm: bool,

    /// Only print the rights that a host of this role needs: policies of buckets, statements for the server, keys, modes of files
    #[arg(long, value_enum, conflicts_with_all = ["pgdata", "conninfo", "key_set", "interactive", "confirm"])]
    pub role: Option<Role>,
}

impl Args {
    pub(super) fn request(&self) -> Request {
        Request {
            pgdata: self.pgdata.clone(),
            conninfo: self.conninfo.clone(),
            key_set: self.key_set.clone(),
            one_recipient: self.one_recipient,
            confirm: self.confirm,
        }
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    if let Some(role) = args.role {
        return roles::print(role, cx);
    }
    if args.interactive {
        return init_interactive::run(args, cx);
    }
    let made = init::init(&cx.session, &args.request())?;
    let settings = made.settings.iter();
    let settings = settings.map(|(name, value)| ((*name).to_owned(), value.clone().into()));
    let settings: serde_json::Map<_, _> = settings.collect();
    let shown = serde_json::json!({
        "config": made.config.to_string_lossy(),
        "config_written": made.config_written,
        "cluster": made.cluster.as_str(),
        "system_identifier": made.identity.system_identifier.to_string(),
        "major": made.identity.major,
        "segment_size_bytes": made.identity.segment_size_bytes,
        "repositories": made.repositories,
        "settings": settings,
        "warnings": made.warnings,
        "next": made.next,
    });
    cx.answered(&shown, || print(&made, cx))
}

fn print(made: &Made, cx: &Context) -> Result<()> {
    print_done(made, cx)?;
    cx.warn_all(&made.warnings);
    cx.line("\nThese lines belong into postgresql.conf; archive_mode takes effect when the server is restarted:\n")?;
    for (name, value) in &made.settings {
        cx.line(&format!("{name} = {}", conf_value(value)))?;
    }
    cx.line("\nThen:\n")?;
    cx.lines(made.next.iter().map(|line| format!("  {line}")))
}

pub(super) fn print_done(made: &Made, cx: &Context) -> Result<()> {
    let identity = &made.identity;
    let state = |new: bool, yes: &'static str, no: &'static str| if new { yes } else { no };
    cx.line(&format!(
        "configuration  \"{}\"  {}",
        made.config.display(),
        state(made.config_written, "written", "was there, not changed")
    ))?;
    for one in &made.repositories {
        let of = match made.repositories.len() {
            1 => String::new(),
            _ => format!(" in \"{}\"", one.name),
        };
        cx.line(&format!(
            "repository     \"{}\"  {}  {}",
            one.name,
            one.url,
            state(one.created, "created", "was there")
        ))?;
        cx.line(&format!(
            "cluster        \"{}\"  PostgreSQL {}, system identifier {}, segments of {}  {}{of}",
            made.cluster,
            identity.major,
            identity.system_identifier,
            human::size(identity.segment_size_bytes),
            state(one.registered, "registered", "was registered")
        ))?;
    }
    if !made.config_written && made.repositories.iter().all(Done::was_whole) {
        cx.line("Nothing had to be done: all of it was there.")?;
    }
    Ok(())
}
