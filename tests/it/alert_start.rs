//! An agent that cannot take its configuration: at its start, and when it is told to read it again.

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use serde_json::Value;

use crate::agent::{EVERY_HOUR, Host};
use crate::alert_conditions::{Sink, observe, site};
use crate::alert_unseen::lose_a_segment;
use crate::common::{Running, user, wait_until};

const START: &str = "agent/start";
const RELOAD: &str = "agent/configuration";
/// A job of which only the agent knows that it cannot run.
const WRONG_JOB: &str = "[jobs.x]\nrun = \"bakcup\"\nschedule = \"0 2 * * *\"\n[agent]\n";

fn host(sink: &Sink) -> Host {
    let host = Host::new(&format!("{}{EVERY_HOUR}", sink.section()));
    host.reconfigure("[agent]\n", "[agent]\ninterval = \"1s\"\n");
    host
}

fn does_not_start(host: &Host, why: &str) {
    host.pitr().arg("agent").exits(3).expect_stderr(why);
}

/// Starts the agent until the sink has heard so many notices of a condition, and ends it.
fn starts(host: &Host, sink: &Sink, (id, count): (&str, usize)) {
    let agent = host.agent();
    wait_until("the sink hears of it", || sink.heard(id).len() == count);
    agent.ended_by(Signal::TERM).success();
}

/// As [`starts`], where every letter counts: an agent that ends delivers none any more.
fn starts_for_both(host: &Host, sink: &Sink, (id, count): (&str, usize)) {
    let agent = host.agent();
    wait_until("both servers hear of it", || sink.has_heard(id, count));
    agent.ended_by(Signal::TERM).success();
}

/// The findings of doctor about the agent.
fn of_agent(host: &Host) -> Vec<Value> {
    let json = host.pitr().words("doctor --json").run().json();
    let all = json["findings"].as_array().unwrap().iter();
    all.filter(|f| f["group"] == "agent").cloned().collect()
}

#[test]
fn u88_an_agent_that_does_not_start_tells_the_sinks_once_and_its_start_ends_that() {
    let sink = Sink::new();
    let host = host(&sink);
    host.reconfigure("[agent]\n", WRONG_JOB);
    for _ in 0..3 {
        does_not_start(&host, "bakcup");
    }
    sink.expect(START, &[("new", "critical")]);
    sink.last(START, "new", "critical", "bakcup");
    // Other commands can read the file, and tell of the agent.
    let found = of_agent(&host);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["level"], "fail");
    assert!(found[0].to_string().contains("bakcup"), "{found:?}");
    let info = host.pitr().arg("info").run();
    info.expect_stderr("the agent did not start at");
    host.reconfigure(WRONG_JOB, "[agent]\n");
    starts(&host, &sink, (START, 2));
    sink.last(START, "resolved", "critical", "");
    assert!(of_agent(&host).is_empty());
}

#[test]
fn u89_sinks_of_a_file_that_is_wrong_elsewhere_hear_of_it_and_else_those_of_the_copy() {
    let sink = Sink::new();
    let host = host(&sink);
    // Neither the syntax nor a wrong section keeps the others from being read.
    host.reconfigure("[files.up]\n", "[files.up\n");
    does_not_start(&host, "pitr.toml:");
    sink.expect(START, &[("new", "critical")]);
    host.reconfigure("[files.up\n", "[files.up]\n");
    starts(&host, &sink, (START, 2));
    host.reconfigure("pgdata = ", "pgdtaa = ");
    does_not_start(&host, "pgdtaa");
    assert_eq!(sink.last(START, "new", "critical", "pgdtaa"), 3);
    host.reconfigure("pgdtaa = ", "pgdata = ");
    starts(&host, &sink, (START, 4));
    // The agent before remembers what the sinks were.
    host.reconfigure("severity = \"low\"", "severity = \"lwo\"");
    does_not_start(&host, "lwo");
    assert_eq!(sink.last(START, "new", "critical", "lwo"), 5);
    let copy = host.sandbox.join("state/configuration.toml");
    let mode = std::fs::metadata(copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    host.reconfigure("severity = \"lwo\"", "severity = \"low\"");
    starts(&host, &sink, (START, 6));
}

#[test]
fn u90_a_start_beside_an_agent_that_runs_and_a_place_without_sinks_tell_nobody() {
    let sink = Sink::new();
    let host = host(&sink);
    let agent = host.agent();
    wait_until("it serves", || host.get("/healthz").is_some());
    host.reconfigure("[agent]\n", WRONG_JOB);
    does_not_start(&host, "bakcup");
    // The one that runs finds the file wrong by itself.
    wait_until("the sink hears of it", || sink.have_heard(RELOAD));
    sink.expect(START, &[]);
    assert_eq!(of_agent(&host).len(), 1);
    host.reconfigure(WRONG_JOB, "[agent]\n");
    wait_until("the sink hears of its end", || {
        sink.heard(RELOAD).len() == 2
    });
    drop(agent);
    let alone = Host::new(WRONG_JOB.trim_end_matches("[agent]\n"));
    does_not_start(&alone, "bakcup");
    assert_eq!(of_agent(&alone).len(), 1);
}

/// Reloads a configuration that is well by now, and requires that this ends the condition.
fn a_reload_ends_it(host: &Host, agent: &Running, sink: &Sink) {
    agent.signal(Signal::HUP);
    wait_until("the sink hears of its end", || {
        sink.heard(RELOAD).len() == 2
    });
    sink.last(RELOAD, "resolved", "critical", "");
    assert!(of_agent(host).is_empty());
}

#[test]
fn u91_what_a_reload_refuses_is_told_until_a_reload_takes_it() {
    let sink = Sink::new();
    let host = host(&sink);
    let agent = host.agent();
    wait_until("it serves", || host.get("/healthz").is_some());
    // Jobs and repositories are well: the token alone is open to others.
    let token = host
        .sandbox
        .file("token", "0123456789abcdef0123456789abcdef");
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o644)).unwrap();
    let page = format!("[page]\ntoken_file = \"{}\"\n[agent]\n", token.display());
    host.reconfigure("[agent]\n", &page);
    agent.signal(Signal::HUP);
    wait_until("the sink hears of it", || sink.have_heard(RELOAD));
    sink.last(RELOAD, "new", "critical", "is open to other users");
    assert_eq!(of_agent(&host).len(), 1);
    let info = host.pitr().arg("info").run();
    info.expect_stderr("the agent goes on with the configuration before");
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).unwrap();
    a_reload_ends_it(&host, &agent, &sink);
}

#[test]
fn j62_a_reload_that_took_nothing_is_told_until_one_takes_the_file() {
    let sink = Sink::new();
    let host = host(&sink);
    let agent = host.agent();
    wait_until("it serves", || host.get("/healthz").is_some());
    host.reconfigure("[agent]\n", WRONG_JOB);
    agent.signal(Signal::HUP);
    wait_until("the sink hears of it", || sink.have_heard(RELOAD));
    // The file is well now, and nobody has read it.
    let right = WRONG_JOB.replace("bakcup", "files ls up");
    host.reconfigure(WRONG_JOB, &right);
    let looked = || {
        let found = std::fs::metadata(host.sandbox.join("state/page.json"));
        found.and_then(|found| found.modified()).ok()
    };
    for _ in 0..2 {
        let before = looked();
        wait_until("it looks", || looked() > before);
    }
    sink.expect(RELOAD, &[("new", "critical")]);
    assert_eq!(of_agent(&host).len(), 1);
    a_reload_ends_it(&host, &agent, &sink);
}

#[test]
fn j63_notices_have_one_name_of_the_agent_also_where_nothing_can_be_written() {
    let host = Host::new("");
    let (trace, hear) = (host.sandbox.dir("heard"), host.sandbox.join("hear.sh"));
    let script = format!(
        "#!/bin/sh\necho $PITR_ALERT_AGENT >> {}/agents\n",
        trace.display()
    );
    std::fs::write(&hear, script).unwrap();
    let modes = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    modes(&hear, 0o755);
    user::own_all(&trace);
    let sink = format!(
        "[alerts.x]\nkind = \"command\"\ncommand = [\"{}\"]\n[agent]\n",
        hear.display()
    );
    host.reconfigure("[agent]\n", &sink);
    let state = host.sandbox.dir("state");
    user::own(&state);
    for mode in [0o755, 0o555] {
        modes(&state, mode);
        host.pitr().words("alert test").succeed();
    }
    let heard = std::fs::read_to_string(trace.join("agents")).unwrap();
    let agents: Vec<&str> = heard.lines().collect();
    assert_eq!(agents.len(), 2, "{heard}");
    assert_eq!(agents[0], agents[1]);
    modes(&state, 0o755);
}

#[test]
fn j64_a_sink_whose_section_is_wrong_hears_of_it_by_the_copy_and_of_the_end() {
    let sink = Sink::new();
    let host = host(&sink);
    let agent = host.agent();
    let copy = host.sandbox.join("state/configuration.toml");
    wait_until("the copy is there", || copy.exists());
    agent.ended_by(Signal::TERM).success();
    host.reconfigure("smtp = ", "smpt = ");
    does_not_start(&host, "smpt");
    sink.expect(START, &[("new", "critical")]);
    // Nothing of a section whose syntax is wrong is taken, either.
    host.reconfigure("smpt = ", "smtp = ");
    starts_for_both(&host, &sink, (START, 2));
    let resolved = [("new", "critical"), ("resolved", "critical")];
    sink.expect(START, &resolved);
    host.reconfigure("to = [\"dba@", "to = [\"dba, \"@");
    does_not_start(&host, "pitr.toml:");
    let again = [resolved[0], resolved[1], resolved[0]];
    sink.expect(START, &again);
    host.reconfigure("to = [\"dba, \"@", "to = [\"dba@");
    starts_for_both(&host, &sink, (START, 4));
    sink.expect(START, &[again[0], again[1], again[2], resolved[1]]);
}

/// A look goes on with the second repository, and finds nothing there of what is wrong in the first.
#[test]
fn v34_what_was_wrong_in_a_repository_that_goes_away_does_not_end_by_a_look_at_another_one() {
    let (site, cluster, sink) = site("");
    site.add_repository("second", "");
    let gap = lose_a_segment(&site, &cluster, &sink);
    let (here, hidden) = (site.repository(), site.sandbox().join("hidden"));
    std::fs::rename(here, &hidden).unwrap();
    observe(&site.pitr());
    let told = sink.all();
    assert!(
        told.iter()
            .any(|id| id.starts_with("repository/") && id.ends_with("/away")),
        "{told:?}"
    );
    sink.expect(gap, &[("new", "critical")]);
    std::fs::rename(&hidden, here).unwrap();
    site.pitr().words("repo sync --quiet").run();
    site.pitr().words("backup --quiet").succeed();
    observe(&site.pitr());
    sink.last(gap, "resolved", "critical", "");
}
