//! Questions that fail end no condition, and a look or an examination that dies is not taken for one that looked.

use crate::agent::Host;
use crate::alert_conditions::{Sink, examine, later, observe, served, site, with_a_slot_limit};
use crate::common::{Cluster, Program, Running, Site, Stop, paths_below, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// The value of `pitr_server_up`.
fn up(pitr: &Program) -> Option<f64> {
    let text = pitr.clone().arg("metrics").run().stdout;
    crate::metrics::value(&text, "pitr_server_up{cluster=\"main\"}")
}

/// Loses a segment behind a backup, of which the sink hears; returns the condition.
pub fn lose_a_segment(site: &Site, cluster: &Cluster, sink: &Sink) -> &'static str {
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("create table t (a int)");
    let gone = cluster.archive_now();
    cluster.sql("insert into t values (1)");
    cluster.archive_now();
    for path in paths_below(&site.cluster_folder().join("wal")) {
        if path.to_str().unwrap().contains(&gone) {
            std::fs::remove_file(path).unwrap();
        }
    }
    observe(&site.pitr());
    let gap = "main/recovery/gap";
    sink.expect(gap, &[("new", "critical")]);
    gap
}

/// No sink heard of an end.
fn expect_no_end(sink: &Sink, ids: &[&str]) {
    for id in ids {
        let heard = sink.heard(id);
        assert!(!heard.is_empty(), "nothing of {id}");
        assert!(
            heard.iter().all(|(event, ..)| event != "resolved"),
            "{heard:?}"
        );
    }
}

#[test]
fn j40_j42_a_server_that_stops_ends_no_condition_of_it_and_is_critical_after_two_minutes() {
    let (site, mut cluster, sink) = with_a_slot_limit();
    // The examination finds a slot that is missing; the look one that keeps too much.
    examine(&site.pitr());
    cluster.sql("select pg_create_physical_replication_slot('other', true)");
    let fill = "select pg_logical_emit_message(true, 'fill', repeat('x', 10000 * 1024))";
    cluster.sql(fill);
    observe(&site.pitr());
    let (slot, missing) = ("main/slot/other", "main/doctor/receiver/slot");
    sink.expect(slot, &[("new", "critical")]);
    sink.expect(missing, &[("new", "critical")]);
    assert_eq!(up(&site.pitr()), Some(1.0));

    cluster.stop(Stop::Immediate);
    observe(&site.pitr());
    examine(&site.pitr());
    let id = "main/server/connection";
    sink.expect(id, &[]);
    assert_eq!(up(&site.pitr()), Some(0.0));
    observe(&later(&site.pitr(), 200));
    sink.last(id, "new", "critical", "PostgreSQL does not answer");
    expect_no_end(&sink, &[slot, missing, id]);

    cluster.start();
    cluster.sql("select pg_drop_replication_slot('other')");
    cluster.sql("select pg_create_physical_replication_slot('pitr', true)");
    observe(&site.pitr());
    let ended = [("new", "critical"), ("resolved", "critical")];
    sink.expect(slot, &ended);
    sink.expect(id, &ended);
}

#[test]
fn j40_a_repository_that_goes_ends_neither_a_gap_nor_what_else_it_told() {
    let (site, cluster, sink) = site("");
    let gap = lose_a_segment(&site, &cluster, &sink);
    let (here, away) = (site.repository(), site.sandbox().join("away"));
    std::fs::rename(here, &away).unwrap();
    observe(&site.pitr());
    sink.last("look", "new", "critical", "");
    expect_no_end(&sink, &[gap]);
    // Both conditions are judged again once it is back.
    std::fs::rename(&away, here).unwrap();
    site.pitr().words("backup --quiet").succeed();
    observe(&site.pitr());
    sink.last("look", "resolved", "critical", "");
}

#[test]
fn j49_a_gap_of_a_repository_that_went_away_is_not_over_because_another_one_has_none() {
    let (site, cluster, sink) = site("");
    site.add_repository("offsite", "");
    let gap = lose_a_segment(&site, &cluster, &sink);
    let (here, away) = (site.repository(), site.sandbox().join("away"));
    std::fs::rename(here, &away).unwrap();
    observe(&site.pitr());
    sink.expect("repository/local/away", &[("new", "critical")]);
    expect_no_end(&sink, &[gap]);
    std::fs::rename(&away, here).unwrap();
    site.pitr().words("wal gaps --heal --quiet").run();
    observe(&site.pitr());
    sink.expect(gap, &[("new", "critical"), ("resolved", "critical")]);
}

/// Kills each child of the agent that does this, until the sink hears of a condition.
fn kill_until_heard(agent: &Running, word: &str, heard: impl Fn() -> bool) {
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    wait_until("the agent tells of it", || {
        for child in std::fs::read_to_string(&children).unwrap().split(' ') {
            let line = std::fs::read_to_string(format!("/proc/{child}/cmdline"));
            let line = line.unwrap_or_default();
            // The one that tells of it lives.
            let is_meant = line.contains(word) && !line.contains("--given-up");
            if let Some(pid) = child.parse().ok().and_then(Pid::from_raw)
                && is_meant
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        heard()
    });
}

#[test]
fn j41_a_look_that_dies_is_given_up_and_ends_no_condition() {
    let sink = Sink::new();
    let host = Host::new(&sink.section());
    host.reconfigure("[agent]\n", "[agent]\ninterval = \"1s\"\n");
    observe(&host.pitr());
    let ids = sink.all();
    let open: Vec<&str> = ids.iter().map(String::as_str).collect();
    assert!(!open.is_empty(), "an empty repository is a condition");
    let paused = host.sandbox.join("paused");
    let agent = host
        .pitr()
        .arg("agent")
        .env("PITR_FAULT_PAUSE", format!("look={}", paused.display()))
        .spawn();
    kill_until_heard(&agent, "observe", || sink.have_heard("look"));
    agent.ended_by(Signal::TERM).success();
    sink.last("look", "new", "critical", "failed, and was given up");
    expect_no_end(&sink, &open);
    observe(&host.pitr());
    sink.last("look", "resolved", "critical", "");
}

#[test]
fn j45_a_configuration_that_becomes_wrong_is_told_and_jobs_go_on() {
    let sink = Sink::new();
    let job = "[jobs.copy]\nrun = \"files backup up\"\nschedule = \"always\"\n";
    let host = Host::new(&format!("{job}{}", sink.section()));
    host.reconfigure("[agent]\n", "[agent]\ninterval = \"1s\"\n");
    let agent = host.agent();
    let runs = || std::fs::read_to_string(host.sandbox.join("out/trace")).map_or(0, |t| t.len());
    wait_until("the job runs", || runs() > 0);
    host.reconfigure("[agent]\n", "[agent]\nintervall = \"1s\"\n");
    let id = "agent/configuration";
    wait_until("the sink hears of it", || sink.have_heard(id));
    sink.last(id, "new", "critical", "intervall");
    let known = runs();
    wait_until("the job runs again", || runs() > known);
    // A command that reads the file is refused.
    let run = host.pitr().arg("info").run();
    run.expect_code(3).expect_stderr("intervall");
    host.reconfigure("[agent]\nintervall = \"1s\"\n", "[agent]\n");
    wait_until("the sink hears of its end", || sink.heard(id).len() == 2);
    sink.last(id, "resolved", "critical", "");
    agent
        .ended_by(Signal::TERM)
        .success()
        .expect_stderr("the agent goes on with the one before");
}

#[test]
fn j41_an_examination_that_dies_or_came_long_ago_is_high() {
    let (site, _server, sink) = site("");
    let plain = std::fs::read_to_string(site.config()).unwrap();
    served(&site);
    let paused = site.sandbox().join("paused");
    let agent = site
        .pitr()
        .arg("agent")
        .env("PITR_FAULT_PAUSE", format!("examine={}", paused.display()))
        .spawn();
    kill_until_heard(&agent, "examine", || sink.have_heard("doctor"));
    agent.ended_by(Signal::TERM).success();
    sink.expect("doctor", &[("new", "high")]);
    std::fs::write(site.config(), plain).unwrap();
    examine(&site.pitr());
    observe(&site.pitr());
    sink.expect("doctor", &[("new", "high"), ("resolved", "high")]);
    observe(&later(&site.pitr(), 7000));
    assert_eq!(sink.heard("doctor").len(), 2);
    observe(&later(&site.pitr(), 7300));
    sink.last("doctor", "new", "high", "last came to its end 2 h");
}
