//! `pitr init --interactive`, whose answers come by lines.

use crate::common::terminal::Terminal;
use crate::common::{Cluster, Program, Sandbox, pitr, user, wait_until};
use crate::require_root;

/// The command beside a cluster, with these answers.
fn interactive(cluster: &Cluster, sandbox: &Sandbox, answers: &[&str]) -> Program {
    let repository = sandbox.join("repo").display().to_string();
    let pgdata = cluster.pgdata().display().to_string();
    let mut lines = vec![pgdata.as_str(), repository.as_str()];
    lines.extend(answers);
    pitr()
        .words("init --interactive --conninfo")
        .arg(cluster.conninfo("postgres"))
        .env("HOME", sandbox.path())
        .stdin(lines.join("\n") + "\n")
}

#[test]
fn four_answers_end_with_a_recoverable_database() {
    let mut cluster = Cluster::builder(17).segment_size_mb(1).start();
    cluster.sql("create table t (a int); insert into t values (1)");
    let sandbox = Sandbox::new("interactive");
    let mut running = interactive(&cluster, &sandbox, &["yes", ""]).spawn();
    wait_until("it waits for the restart", || {
        assert!(!running.is_done(), "{}", running.stderr());
        running.stdout().contains("This command waits for it")
    });
    let settings = cluster.pgdata().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(settings).unwrap();
    assert!(text.contains("archive_mode = 'on'") && text.contains("archive_timeout"));
    cluster.restart();
    let run = running.wait().success();
    for part in [
        "1. Which cluster?",
        "2. Where do WAL and backups go?",
        "alter system set archive_mode = 'on';   -- now off",
        "3. Run these statements? [yes]",
        "/pg_ctl -D ",
        "4. Take a backup now? [yes]",
        "backup ",
    ] {
        assert!(run.stdout.contains(part), "{part}: {run}");
    }
    let config = sandbox.join(".config/pitr/pitr.toml");
    pitr().arg("--config").arg(&config).arg("plan").succeed();
    // Asked again, nothing has to change but the time of the backup.
    let again = pitr()
        .words("init --interactive --config")
        .arg(&config)
        .arg("--pgdata")
        .arg(cluster.pgdata())
        .stdin("no\n")
        .exits(8)
        .expect_stderr("nothing can be recovered before the first backup");
    again.expect_stdout("The server's settings are right.");
}

#[test]
fn on_a_terminal_each_question_waits_for_its_answer() {
    let mut cluster = Cluster::builder(17).segment_size_mb(1).start();
    let sandbox = Sandbox::new("interactive");
    let command = |home: &Sandbox| {
        let command = pitr().words("init --interactive --conninfo");
        command
            .arg(cluster.conninfo("postgres"))
            .env("HOME", home.path())
    };
    let mut terminal = Terminal::start(&command(&sandbox));
    terminal.expect("1. Which cluster?");
    terminal.answer(cluster.pgdata().to_str().unwrap());
    terminal.expect("2. Where do WAL and backups go?");
    terminal.answer(sandbox.join("repo").to_str().unwrap());
    terminal.expect("3. Run these statements? [yes]");
    terminal.answer("perhaps");
    terminal.expect("Please answer yes or no.");
    terminal.expect("3. Run these statements? [yes]");
    terminal.answer("");
    terminal.expect("This command waits for it");
    cluster.restart();
    terminal.expect("4. Take a backup now? [yes]");
    terminal.answer("y");
    let (status, shown) = terminal.end();
    assert_eq!(status, Some(0), "{shown}");
    let config = sandbox.join(".config/pitr/pitr.toml");
    pitr().arg("--config").arg(&config).arg("plan").succeed();
}

#[test]
fn ctrl_c_at_a_question_ends_it_and_nothing_is_written() {
    let cluster = Cluster::builder(17).segment_size_mb(1).start();
    for answered in [0, 1] {
        let sandbox = Sandbox::new("interactive");
        let command = pitr().words("init --interactive --conninfo");
        let command = command.arg(cluster.conninfo("postgres"));
        let mut terminal = Terminal::start(&command.env("HOME", sandbox.path()));
        terminal.expect("1. Which cluster?");
        if answered > 0 {
            terminal.answer(cluster.pgdata().to_str().unwrap());
            terminal.expect("2. Where do WAL and backups go?");
        }
        terminal.interrupt();
        let (status, shown) = terminal.end();
        assert_eq!(status, Some(130), "{shown}");
        let written = std::fs::read_dir(sandbox.path()).unwrap();
        assert_eq!(written.count(), 0, "{shown}");
    }
}

#[test]
fn without_consent_no_setting_is_changed_and_the_reason_is_said() {
    let cluster = Cluster::builder(17)
        .config("archive_mode", "on")
        .config("archive_command", "/bin/true")
        .start();
    let sandbox = Sandbox::new("interactive");
    // The proposal is no, because something archives already.
    let run = interactive(&cluster, &sandbox, &[""])
        .exits(8)
        .expect_stderr("the server archives as before, and not into the repository: its settings");
    assert!(run.stdout.contains("would be replaced"), "{run}");
    assert_eq!(cluster.value("show archive_command"), "/bin/true");
    // Answers that end too early leave what was made; the command goes on from there.
    interactive(&cluster, &sandbox, &[])
        .run()
        .expect_stderr("there is no answer");
    assert_eq!(cluster.value("show archive_command"), "/bin/true");
}

#[test]
fn a_standby_and_a_server_that_does_not_run_are_reasons() {
    let primary = Cluster::builder(17).start();
    let standby = Cluster::builder(17).standby_of(&primary).start();
    let sandbox = Sandbox::new("interactive");
    interactive(&standby, &sandbox, &["yes"])
        .exits(8)
        .expect_stderr("the server is a standby");
    drop(standby);
    let still = Cluster::builder(17).create();
    let sandbox = Sandbox::new("interactive");
    let repository = sandbox.join("repo");
    pitr()
        .words("init --interactive --pgdata")
        .arg(still.pgdata())
        .arg("--repository")
        .arg(&repository)
        .env("HOME", sandbox.path())
        .exits(9)
        .expect_stderr("the server does not run")
        .expect_stderr("Start the server");
    assert!(repository.join("pitr.json").exists());
}

#[test]
fn root_hears_whose_command_it_is() {
    require_root!("root_hears_whose_command_it_is");
    assert!(user::is_root());
    pitr()
        .words("init --interactive")
        .privileged()
        .exits(2)
        .expect_stderr("sudo -u postgres pitr init --interactive");
}
