//! `pitr demo`: a table is dropped by accident and comes back, on servers of its own.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Context;
use crate::err;
use crate::error::{Error, Result};
use crate::exit;
use crate::operate::archive_command::shell_word;
use crate::operate::human;
use crate::operate::playground::{self, Place, Playground};
use crate::operate::programs::Programs;
use crate::operate::server::Server;

/// Show in half a minute how a dropped table comes back, on private servers
///
/// Makes a PostgreSQL cluster in a temporary folder, archives it, backs it up, drops a table, plans and restores the moment before, and
/// counts the rows. Every command is shown before it runs. No server of the host is touched, and the folder is gone in the end, after Ctrl-C
/// too. It needs initdb, pg_ctl and postgres.
///
/// Example: pitr demo --keep
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Leave the folder with repository and data directories behind
    #[arg(long)]
    keep: bool,

    /// The folder of PostgreSQL's programs; else the search path, then where distributions put them
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
}

const ORIGINAL: Place = Place {
    data: "data",
    port: 5501,
};
const COPY: Place = Place {
    data: "restored",
    port: 5502,
};
/// How often a command that runs is looked after.
const GLANCE: Duration = Duration::from_millis(10);
/// The check of what came back.
const COUNT: &str = "select count(*), sum(euros) from orders";

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_with_cleanup()?;
    let programs = Programs::find(args.bin.as_deref(), std::env::var_os("PATH").as_deref())?;
    let version = programs.version.clone();
    let mut ground = Playground::new(programs, &cx.session.host.scratch, "demo")?;
    if args.keep {
        ground.keep();
    }
    let demo = Demo { cx };
    let began = Instant::now();
    demo.step(&format!(
        "A private PostgreSQL {version}, in {}",
        ground.path().display()
    ))?;
    if let Some(user) = ground.user() {
        cx.line(&format!(
            "(as user {user}: PostgreSQL refuses to run as root)"
        ))?;
    }
    if let Err(error) = demo.play(&mut ground) {
        // The errors would be those of the commands that got a signal to end.
        cx.session.host.check_stop()?;
        return Err(error);
    }
    demo.step(&format!("Done in {}", human::duration(began.elapsed())))?;
    cx.line("The cluster that lost the table was not touched, and the copy does not archive before \"pitr adopt\" makes it the successor.")?;
    if args.keep {
        let folder = ground.path().display().to_string();
        cx.line(&format!("Left behind: {folder}\n  look:   cd {0} && pitr --config pitr.toml info\n  remove: rm -r {0}", shell_word(&folder)))?;
    }
    Ok(exit::SUCCESS)
}

/// Shows what it does.
struct Demo<'a> {
    cx: &'a Context,
}

impl Demo<'_> {
    fn play(&self, ground: &mut Playground) -> Result<()> {
        ground.initdb(ORIGINAL)?;
        ground.start(ORIGINAL)?;
        self.step("1. A repository for it, and the settings that fill it")?;
        let init = "init --config pitr.toml --pgdata data --repository ./repository";
        let printed = self.pitr(ground, init)?;
        ground.configure(ORIGINAL, &printed)?;
        self.cx
            .line("(written into postgresql.conf, and the server restarted)")?;
        ground.stop(ORIGINAL)?;
        ground.start(ORIGINAL)?;

        self.step("2. Some orders, and a base backup")?;
        let mut server = ground.connect(ORIGINAL)?;
        self.sql(
            &mut server,
            "create table orders (id int primary key, customer text, euros numeric)",
        )?;
        self.sql(&mut server, "insert into orders select n, 'customer ' || n % 100, n * 0.5 from generate_series(1, 20000) n")?;
        self.pitr(ground, "backup --config pitr.toml")?;

        self.step("3. Business goes on after the backup: these rows are in the WAL only")?;
        self.sql(&mut server, "insert into orders values (20001, 'the last three', 11.10), (20002, 'orders of', 22.20), (20003, 'the day', 33.30)")?;
        let expected = self.sql(&mut server, COUNT)?;
        let moment = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        let before = text(&mut server, moment)?;

        self.step("4. The accident")?;
        self.sql(&mut server, "drop table orders")?;
        let segment = text(&mut server, "select pg_walfile_name(pg_switch_wal())")?;
        // A segment that is not archived cannot be restored; archive_timeout would do this within a minute.
        let archived = format!(
            "coalesce((select last_archived_wal >= '{segment}' from pg_stat_archiver), false)"
        );
        playground::wait(&self.cx.session.host, &mut server, &archived)?;
        self.cx
            .line(&format!("(the segment with it, {segment}, is archived)"))?;

        self.step("5. Can we get back to just before it? Ask before anything is touched")?;
        let plan = format!("plan --config pitr.toml --target-time {before}");
        self.pitr(ground, &plan)?;

        self.step("6. Then do it, into a new directory")?;
        let restore = format!("restore --config pitr.toml --to restored --target-time {before}");
        self.pitr(ground, &restore)?;
        ground.start(COPY)?;
        let mut copy = ground.connect(COPY)?;
        playground::wait(&self.cx.session.host, &mut copy, "not pg_is_in_recovery()")?;

        self.step("7. The table is back, with every row")?;
        let found = self.sql(&mut copy, COUNT)?;
        self.sql(
            &mut copy,
            "select * from orders where id > 20000 order by id",
        )?;
        match found == expected {
            true => Ok(()),
            false => Err(err!(Internal, "the copy has {found}, expected {expected}")),
        }
    }

    fn step(&self, title: &str) -> Result<()> {
        self.cx.session.host.check_stop()?;
        self.cx.line(&format!("\n== {title}"))
    }

    /// Shows a command as one would type it, runs it, and returns what it printed. No word of it has a space.
    fn pitr(&self, ground: &Playground, line: &str) -> Result<String> {
        self.cx.line(&format!("$ pitr {line}"))?;
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let failed = |e| Error::from_io("run pitr", e);
        let mut child = ground
            .pitr(&arguments)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (output, out) = (child.stdout.take(), &self.cx.out);
        // Line by line, so that what the command says on standard error keeps its place.
        let show = move || -> Result<String> {
            let mut printed = String::new();
            for line in output.into_iter().flat_map(|o| BufReader::new(o).lines()) {
                let line = line.map_err(failed)?;
                out.text(&line)?;
                printed.push_str(&line);
                printed.push('\n');
            }
            Ok(printed)
        };
        let (status, printed) = std::thread::scope(|scope| {
            let reader = scope.spawn(show);
            let status = self.wait(&mut child);
            (status, reader.join().unwrap_or_else(|_| Ok(String::new())))
        });
        let (status, printed) = (status.map_err(failed)?, printed?);
        self.cx.session.host.check_stop()?;
        match status.success() {
            true => Ok(printed),
            false => Err(err!(Server, "pitr {line} failed: {status}").hint(
                "The servers are stopped. Look at what it said; --keep leaves the folder behind.",
            )),
        }
    }

    /// Waits for the end of a command, which gets SIGTERM when the operator wants to stop.
    fn wait(&self, child: &mut Child) -> std::io::Result<ExitStatus> {
        let mut is_told = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.cx.session.host.is_stopping() && !is_told {
                let _ = kill_process(Pid::from_child(child), Signal::TERM);
                is_told = true;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Shows a statement, runs it, shows its rows, and returns them.
    fn sql(&self, server: &mut Server, statement: &str) -> Result<String> {
        self.cx.line(&format!("postgres=# {statement};"))?;
        let rows = server.query(statement)?;
        let mut lines = Vec::new();
        for row in 0..rows.rows.len() {
            let mut fields = Vec::new();
            for column in 0..rows.columns.len() {
                fields.push(rows.text(row, column)?.unwrap_or_default());
            }
            lines.push(fields.join(" | "));
        }
        if !lines.is_empty() {
            self.cx.line(&format!(
                "{}\n{}",
                rows.columns.join(" | "),
                lines.join("\n")
            ))?;
        }
        Ok(lines.join("\n"))
    }
}

fn text(server: &mut Server, statement: &str) -> Result<String> {
    let rows = server.query(statement)?;
    rows.value(0, 0)
}
