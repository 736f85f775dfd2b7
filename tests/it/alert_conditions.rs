//! Each condition of docs/agent.md is provoked for real, and reaches a sink with its severity, once, and its end.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::agent::{Host, SPRING};
use crate::common::authority::Authority;
use crate::common::mount::SmallDisk;
use crate::common::s3::tls::{Says, Tls};
use crate::common::{Cluster, Program, Sandbox, Site, paths_below, reception, user, wait_until};
use crate::require_mounts;
use crate::s3_cycle::Offline;
use crate::sealed::Sealed;

/// A server of HTTP and Debian's server of mail, each with a file for what it takes: of HTTP the bodies, of letters the condition, and the word of the
/// subject that tells how bad it is or that it has ended.
const SERVERS: &str = r#"
import asyncio, email, http.server, json, sys, threading
from aiosmtpd.smtp import SMTP
heard, letters = sys.argv[1:]
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        with open(heard, 'ab') as file:
            file.write(body + b'\n')
        self.send_response(200)
        self.end_headers()
    def log_message(self, *ignored):
        pass
class Letters:
    async def handle_DATA(self, server, session, envelope):
        letter = email.message_from_bytes(envelope.content, policy=email.policy.default)
        lines = letter.get_content().splitlines()
        [condition] = [line[11:] for line in lines if line.startswith('Condition: ')]
        word = letter['Subject'].split('] ')[1].split(':')[0]
        with open(letters, 'a') as file:
            file.write(json.dumps([condition, word]) + '\n')
        return '250 taken'
import email.policy
hook = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hook)
threading.Thread(target=hook.serve_forever, daemon=True).start()
async def serve():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Letters()), '127.0.0.1', 0)
    print(hook.server_port, server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(serve())
"#;

/// Two sinks, which end with the test: a server of HTTP, and one of mail.
pub struct Sink {
    child: Child,
    sandbox: Sandbox,
    http: u16,
    smtp: u16,
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sink {
    pub fn new() -> Sink {
        let sandbox = Sandbox::new("sink");
        let out = sandbox.dir("out");
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", SERVERS])
            .args([out.join("heard"), out.join("letters")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        told.read_line(&mut line).unwrap();
        let mut ports = line.split_whitespace().map(|port| port.parse().unwrap());
        Sink {
            child,
            sandbox,
            http: ports.next().expect("the port of HTTP"),
            smtp: ports.next().expect("the port of mail"),
        }
    }

    /// Their sections of a configuration.
    pub fn section(&self) -> String {
        format!(
            "[alerts.out]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:{}/hook\"\nseverity = \"low\"\n\
             [alerts.mail]\nkind = \"email\"\nsmtp = \"smtp://127.0.0.1:{}\"\nfrom = \"pitr@example.org\"\nto = [\"dba@example.org\"]\nseverity = \"low\"\n",
            self.http, self.smtp
        )
    }

    fn lines(&self, file: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.sandbox.join("out").join(file));
        let text = text.unwrap_or_default();
        // The last line may be on its way.
        let whole = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        whole.map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Event and severity of each notice of a condition, in their order, with its summaries.
    pub fn heard(&self, id: &str) -> Vec<(String, String, String)> {
        let notices = self.lines("heard").into_iter();
        let of_it = notices.filter(|notice| notice["id"] == id);
        let word = |notice: &Value, name: &str| notice[name].as_str().unwrap().to_owned();
        of_it
            .map(|n| (word(&n, "event"), word(&n, "severity"), word(&n, "summary")))
            .collect()
    }

    /// Whether a condition has reached both servers: an agent may deliver to the one before the other.
    pub fn have_heard(&self, id: &str) -> bool {
        let letters = self.lines("letters");
        !self.heard(id).is_empty() && letters.iter().any(|letter| letter[0] == id)
    }

    /// Whether so many notices of a condition have reached both servers.
    pub fn has_heard(&self, id: &str, count: usize) -> bool {
        let letters = self.lines("letters");
        let letters = letters.iter().filter(|letter| letter[0] == id);
        self.heard(id).len() == count && letters.count() == count
    }

    /// The conditions of all notices.
    pub fn all(&self) -> Vec<String> {
        let notices = self.lines("heard").into_iter();
        let ids = notices.map(|notice| notice["id"].as_str().unwrap().to_owned());
        ids.collect()
    }

    /// Expects these notices of a condition, and no others, at both servers.
    pub fn expect(&self, id: &str, wanted: &[(&str, &str)]) {
        let heard = self.heard(id);
        let short: Vec<(&str, &str)> = heard
            .iter()
            .map(|(event, severity, _)| (event.as_str(), severity.as_str()))
            .collect();
        let all = Value::from(self.lines("heard"));
        assert_eq!(short, wanted, "{id}: {heard:?}\n{all:#}");
        let posted = wanted.iter().map(|(event, severity)| match *event {
            "resolved" => "resolved",
            _ => severity,
        });
        let posted: Vec<&str> = posted.collect();
        // An agent may deliver the one before the other.
        wait_until("the letters have come as well", || {
            let letters = self.lines("letters");
            let of_it = letters.iter().filter(|letter| letter[0] == id);
            let words: Vec<&str> = of_it.map(|letter| letter[1].as_str().unwrap()).collect();
            words == posted
        });
    }

    /// Expects the newest notice of a condition, with this text, and returns how many there are.
    pub fn last(&self, id: &str, event: &str, severity: &str, text: &str) -> usize {
        let heard = self.heard(id);
        let newest = heard.last().unwrap_or_else(|| {
            let all = Value::from(self.lines("heard"));
            panic!("nothing of {id}: {all:#}")
        });
        assert_eq!(
            (newest.0.as_str(), newest.1.as_str()),
            (event, severity),
            "{heard:?}"
        );
        assert!(newest.2.contains(text), "{heard:?}");
        heard.len()
    }
}

/// The program so many seconds later, by the clocks of host, server and store.
pub fn later(pitr: &Program, seconds: u64) -> Program {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = now.as_secs();
    let clock = format!("{},{now},1,all", now + seconds);
    pitr.clone().env("PITR_FAULT_CLOCK", clock)
}

pub fn observe(pitr: &Program) {
    // Its status is that of what it could not look at.
    pitr.clone().words("agent observe").run();
}

pub fn examine(pitr: &Program) {
    // Its status is that of what it finds.
    pitr.clone().words("agent examine").run();
}

/// Lets the commands of a configuration keep state, and tell a sink.
pub fn watched(config: &Path, state: &Path, sink: &Sink) {
    crate::common::keep_state(config, state);
    crate::common::append(config, &sink.section());
}

/// A site with a server, a sink, and a section for the cluster.
pub fn site(cluster: &str) -> (Site, Cluster, Sink) {
    let (site, server) = Site::with_cluster(17);
    let sink = Sink::new();
    site.add_to_cluster(cluster);
    watched(site.config(), &site.sandbox().dir("state"), &sink);
    (site, server, sink)
}

#[test]
fn j16_a_cluster_without_a_backup_and_one_whose_backup_is_old_are_critical() {
    let (site, cluster, sink) = site("max_backup_age = \"1d\"\n");
    let id = "main/recovery/newest backup";
    observe(&site.pitr());
    sink.expect(id, &[("new", "critical")]);
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    observe(&site.pitr());
    sink.expect(id, &[("new", "critical"), ("resolved", "critical")]);
    observe(&later(&site.pitr(), 25 * 3600));
    assert_eq!(sink.heard(id).len(), 3, "{:?}", sink.heard(id));
    let (event, severity, summary) = sink.heard(id).pop().unwrap();
    assert_eq!((event.as_str(), severity.as_str()), ("new", "critical"));
    assert!(summary.contains("max_backup_age is 1 d"), "{summary}");
}

#[test]
fn j16_a_gap_a_damaged_backup_and_waiting_wal_reach_the_sink() {
    let (site, mut cluster, sink) = site("");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("create table t (a int)");
    let gone = cluster.archive_now();
    cluster.sql("insert into t values (1)");
    cluster.archive_now();
    observe(&site.pitr());
    sink.expect("main/recovery/gap", &[]);
    // WAL behind the backup goes, and recovery to the end with it.
    for path in paths_below(&site.cluster_folder().join("wal")) {
        if path.to_str().unwrap().contains(&gone) {
            std::fs::remove_file(path).unwrap();
        }
    }
    observe(&site.pitr());
    sink.expect("main/recovery/gap", &[("new", "critical")]);
    sink.expect("main/recovery/newest backup", &[("new", "critical")]);

    // Another backup assures recovery; then a pack of it is damaged.
    let id = site.backup();
    cluster.archive_now();
    observe(&site.pitr());
    let told = sink.heard("main/recovery/newest backup");
    assert_eq!(told.last().unwrap().0, "resolved", "{told:?}");
    let pack = paths_below(&site.cluster_folder().join("packs").join(id));
    let mut bytes = std::fs::read(&pack[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack[0], bytes).unwrap();
    assert_ne!(site.pitr().words("verify --quiet").run().code(), 0);
    observe(&site.pitr());
    sink.expect("main/recovery/damaged backup", &[("new", "critical")]);

    // Archiving fails for longer than passes by itself.
    cluster.alter_system("archive_command", "false");
    cluster.restart();
    cluster.switch_wal();
    wait_until("a file waits", || {
        let status = cluster.pgdata().join("pg_wal/archive_status");
        paths_below(&status)
            .iter()
            .any(|p| p.to_str().unwrap().ends_with(".ready"))
    });
    observe(&later(&site.pitr(), 1800));
    sink.expect("main/archiving/waiting", &[("new", "critical")]);
}

#[test]
fn j16_a_full_backup_that_grows_or_shrinks_by_half_is_medium() {
    let (site, cluster, sink) = site("");
    let backup = || {
        site.pitr().words("backup --full --quiet").succeed();
    };
    let id = "main/backup/size";
    for _ in 0..5 {
        backup();
        observe(&site.pitr());
    }
    sink.expect(id, &[]);
    // Random bytes: nothing makes them smaller.
    cluster.sql(
        "create table t as select sha512((random() * 1e18)::text::bytea) || sha512((random() * 1e17)::text::bytea) a from generate_series(1, 600000)",
    );
    backup();
    observe(&site.pitr());
    sink.expect(id, &[("new", "medium")]);
    // Beside the mean of all before, a small one is too small now.
    cluster.sql("drop table t");
    cluster.sql("checkpoint");
    backup();
    observe(&site.pitr());
    let (_, _, summary) = sink.heard(id).pop().unwrap();
    let page = std::fs::read_to_string(site.sandbox().join("state/page.json")).unwrap();
    let page: Value = serde_json::from_str(&page).unwrap();
    let conditions = page["conditions"].as_array().unwrap();
    let shown = conditions.iter().find(|one| one["id"] == id);
    let shown = shown.unwrap_or_else(|| panic!("{summary}: {conditions:?}"));
    let text = shown["summary"].as_str().unwrap();
    let percent = text.split(", ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(percent.parse::<u64>().unwrap() < 50, "{text}");
}

#[test]
fn j16_a_backup_that_takes_more_than_twice_as_long_is_high() {
    let sink = Sink::new();
    let host = Host::new(&sink.section());
    let slow = host.sandbox.join("slow");
    host.reconfigure(
        "before = [\"sh\", \"-c\", \"",
        &format!(
            "before = [\"sh\", \"-c\", \"test -e {} && sleep 12; ",
            slow.display()
        ),
    );
    let backup = || {
        let run = host.pitr().words("files backup up --full --quiet");
        run.succeed();
        observe(&host.pitr());
    };
    let id = "up/files/full/slow";
    for _ in 0..5 {
        backup();
    }
    sink.expect(id, &[]);
    std::fs::write(&slow, "").unwrap();
    backup();
    sink.expect(id, &[("new", "high")]);
    std::fs::remove_file(&slow).unwrap();
    backup();
    sink.expect(id, &[("new", "high"), ("resolved", "high")]);
}

#[test]
fn j16_a_disk_of_a_repository_that_fills_is_medium_and_then_critical() {
    require_mounts!("j16_a_disk_of_a_repository_that_fills_is_medium_and_then_critical");
    let disk = SmallDisk::new(20, 4000);
    let sink = Sink::new();
    let host = Host::new(&sink.section());
    let repository = disk.path().join("repo");
    host.reconfigure(
        &format!("file://{}", host.sandbox.join("repo").display()),
        &format!("file://{}", repository.display()),
    );
    host.pitr().words("init --quiet").succeed();
    let id = "repository/local/room";
    let fill = |megabytes: usize| {
        std::fs::write(disk.path().join("filler"), vec![1_u8; megabytes << 20]).unwrap();
        observe(&host.pitr());
    };
    fill(10);
    sink.expect(id, &[]);
    fill(17);
    sink.expect(id, &[("new", "medium")]);
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    // With its reserve, the repository takes more than half a megabyte.
    fill(19);
    sink.expect(id, &[("new", "medium"), ("new", "critical")]);
    fill(1);
    let all = [
        ("new", "medium"),
        ("new", "critical"),
        ("resolved", "critical"),
    ];
    sink.expect(id, &all);
}

#[test]
fn j16_a_repository_that_does_not_answer_is_critical() {
    let sink = Sink::new();
    let host = Host::new(&sink.section());
    observe(&host.pitr());
    sink.expect("look", &[]);
    let (here, away) = (host.sandbox.join("repo"), host.sandbox.join("away"));
    std::fs::rename(&here, &away).unwrap();
    observe(&host.pitr());
    observe(&host.pitr());
    sink.expect("look", &[("new", "critical")]);
    std::fs::rename(&away, &here).unwrap();
    observe(&host.pitr());
    sink.expect("look", &[("new", "critical"), ("resolved", "critical")]);
}

#[test]
fn j16_a_second_repository_that_does_not_answer_a_host_without_clusters_is_critical() {
    let sink = Sink::new();
    let host = Host::new(&sink.section());
    let offsite = host.sandbox.join("offsite");
    let section = format!(
        "[repositories.offsite]\nurl = \"file://{}\"\n",
        offsite.display()
    );
    host.reconfigure("[agent]\n", &format!("{section}[agent]\n"));
    host.pitr().words("init --quiet").succeed();
    let cluster = format!(
        "[clusters.main]\npgdata = \"{}\"\n",
        host.pgdata().display()
    );
    host.reconfigure(&cluster, "");
    let id = "repository/offsite/away";
    observe(&host.pitr());
    sink.expect(id, &[]);
    let away = host.sandbox.join("away");
    std::fs::rename(&offsite, &away).unwrap();
    observe(&host.pitr());
    sink.expect(id, &[("new", "critical")]);
    std::fs::rename(&away, &offsite).unwrap();
    observe(&host.pitr());
    sink.expect(id, &[("new", "critical"), ("resolved", "critical")]);
}

#[test]
fn j16_one_of_two_repositories_that_does_not_answer_and_a_broken_audit_log_are_critical() {
    let (site, cluster, sink) = site("");
    let offsite = site.add_repository("offsite", "[audit]\nrecords = \"on\"\n");
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    observe(&site.pitr());
    let id = "repository/offsite/away";
    sink.expect(id, &[]);
    let away = site.sandbox().join("away");
    std::fs::rename(&offsite, &away).unwrap();
    observe(&site.pitr());
    sink.expect(id, &[("new", "critical")]);
    std::fs::rename(&away, &offsite).unwrap();
    observe(&site.pitr());
    sink.expect(id, &[("new", "critical"), ("resolved", "critical")]);

    // A record that somebody changed, as a check of this host finds it.
    let records = paths_below(&site.repository().join("audit"));
    let record = records.iter().find(|p| p.is_file()).unwrap();
    let whole = std::fs::read(record).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(record, bytes).unwrap();
    let verify = || site.pitr().words("audit verify --quiet").run().code();
    assert_ne!(verify(), 0);
    observe(&site.pitr());
    sink.expect("audit/broken", &[("new", "critical")]);
    std::fs::write(record, whole).unwrap();
    assert_eq!(verify(), 0);
    observe(&site.pitr());
    let all = [("new", "critical"), ("resolved", "critical")];
    sink.expect("audit/broken", &all);
}

#[test]
fn j16_a_job_that_was_not_begun_or_goes_on_for_hours_is_high() {
    let sink = Sink::new();
    let jobs = "[files.slow]\nsource = \"/nowhere\"\nidentity = \"x\"\nbefore = [\"sleep\", \"600\"]\n[jobs.look]\nrun = \"repo show\"\nschedule = \"*/10 * * * *\"\n[jobs.slow]\nrun = \"files backup slow\"\nschedule = \"0 * * * *\"\n";
    let host = Host::new(&format!("{jobs}{}", sink.section())).hastened(SPRING, 1800);
    host.reconfigure("[agent]\n", "[agent]\ninterval = \"1d\"\n");
    let agent = host.agent();
    wait_until("one ran, and the other runs", || {
        host.job("look")["last_success"] == true && host.job("slow")["running"] == true
    });
    // Killed, it begins nothing more, and its job goes on.
    drop(agent);
    wait_until("six hours pass", || {
        observe(&host.pitr());
        sink.have_heard("jobs/slow/long")
    });
    sink.expect("jobs/slow/long", &[("new", "high")]);
    let missed = sink.heard("jobs/look/missed");
    assert_eq!(
        (missed[0].0.as_str(), missed[0].1.as_str()),
        ("new", "high")
    );
    assert!(missed[0].2.contains("has not begun"), "{missed:?}");
    // The next agent makes it up.
    let _agent = host.agent();
    wait_until("the end is told", || {
        observe(&host.pitr());
        let told = sink.heard("jobs/look/missed");
        told.iter().any(|(event, ..)| event == "resolved")
    });
}

#[test]
fn j16_records_of_a_clock_that_was_ahead_are_high() {
    let sink = Sink::new();
    let host = Host::new(&format!(
        "[jobs.look]\nrun = \"repo show\"\nschedule = \"0 2 * * *\"\n{}",
        sink.section()
    ));
    let ahead = later(&host.pitr(), 2 * 86_400);
    ahead.words("agent run look").succeed();
    observe(&host.pitr());
    sink.expect("jobs/look/clock", &[("new", "high")]);
}

#[test]
fn j16_a_record_that_cannot_be_read_is_critical() {
    let sink = Sink::new();
    let host = Host::new(&format!(
        "[jobs.look]\nrun = \"repo show\"\nschedule = \"0 2 * * *\"\n{}",
        sink.section()
    ));
    host.pitr().words("agent run look").succeed();
    let folder = host.sandbox.join("state/jobs/look");
    let ended = paths_below(&folder);
    let ended = ended
        .iter()
        .find(|p| p.to_str().unwrap().ends_with(".ended"));
    let ended = ended.unwrap();
    let whole = std::fs::read(ended).unwrap();
    std::fs::write(ended, "{").unwrap();
    observe(&host.pitr());
    sink.expect("jobs/look", &[("new", "critical")]);
    std::fs::write(ended, whole).unwrap();
    observe(&host.pitr());
    sink.expect(
        "jobs/look",
        &[("new", "critical"), ("resolved", "critical")],
    );
}

/// Lets the agent of a site look each second, and serve on a port of its own; returns the configuration.
pub fn served(site: &Site) -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = port.local_addr().unwrap().port();
    let agent = format!("[agent]\nlisten = \"127.0.0.1:{port}\"\ninterval = \"1s\"\n");
    site.edit("[agent]\n", &agent);
    std::fs::read_to_string(site.config()).unwrap()
}

#[test]
fn j16_a_slot_that_is_missing_is_found_by_an_examination_and_clocks_by_each_look() {
    let (site, server, sink) = site("");
    let served = served(&site);
    let journal = site.sandbox().dir("journal");
    site.add(&format!(
        "[clusters.main.receive]\njournal = \"{}\"\n",
        journal.display()
    ));
    let id = "main/doctor/receiver/slot";
    {
        let _agent = site.pitr().arg("agent").spawn();
        wait_until("the agent examines, and a look tells", || {
            sink.have_heard(id)
        });
    }
    sink.expect(id, &[("new", "critical")]);
    let (_, _, summary) = sink.heard(id).pop().unwrap();
    assert!(
        summary.contains(
            "slot: \"pitr\" does not exist (the server removes WAL before it is received)"
        ),
        "{summary}"
    );
    // Without a receiver in the configuration none is missed.
    std::fs::write(site.config(), &served).unwrap();
    let clocks = ["main/clock/server", "repository/local/clock"];
    examine(&site.pitr());
    observe(&site.pitr());
    sink.expect(id, &[("new", "critical"), ("resolved", "critical")]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ahead = format!("{},{},1", now.as_secs() + 900, now.as_secs());
    clocks.into_iter().for_each(|clock| sink.expect(clock, &[]));
    observe(&site.pitr().env("PITR_FAULT_CLOCK", ahead));
    clocks
        .into_iter()
        .for_each(|clock| sink.expect(clock, &[("new", "critical")]));
    observe(&site.pitr());
    let both = [("new", "critical"), ("resolved", "critical")];
    clocks
        .into_iter()
        .for_each(|clock| sink.expect(clock, &both));
    drop(server);
}

#[test]
fn j16_a_key_that_alone_reads_the_repository_is_critical() {
    let (sealed, _server) = Sealed::archived(17);
    let sink = Sink::new();
    let config = sealed.config("reader");
    watched(&config, &sealed.sandbox.dir("state"), &sink);
    let reader = sealed.on("reader");
    let recipient = paths_below(&sealed.repository)
        .into_iter()
        .find(|path| path.to_str().unwrap().contains("escrow"));
    let recipient = recipient.expect("the object of a recipient");
    let whole = std::fs::read(&recipient).unwrap();
    std::fs::remove_file(&recipient).unwrap();
    examine(&reader);
    observe(&reader);
    let id = "main/doctor/repository/recipients";
    sink.expect(id, &[("new", "critical")]);
    std::fs::write(&recipient, whole).unwrap();
    examine(&reader);
    observe(&reader);
    sink.expect(id, &[("new", "critical"), ("resolved", "critical")]);
}

#[test]
fn j16_an_examination_that_comes_to_no_end_is_high() {
    let (site, _server, sink) = site("");
    served(&site);
    let paused = site.sandbox().join("paused");
    {
        let _agent = site
            .pitr()
            .arg("agent")
            .env("PITR_FAULT_SECONDS", "2")
            .env("PITR_FAULT_PAUSE", format!("examine={}", paused.display()))
            .spawn();
        wait_until("the agent gives it up, and a look tells", || {
            sink.have_heard("doctor")
        });
    }
    assert!(paused.exists(), "no examination began");
    sink.expect("doctor", &[("new", "high")]);
    examine(&site.pitr());
    observe(&site.pitr());
    sink.expect("doctor", &[("new", "high"), ("resolved", "high")]);
}

#[test]
fn j16_promises_that_are_broken_reach_the_sink_until_they_are_kept() {
    let promises = "rpo = \"1s\"\nrto = \"1s\"\ncopies = \"3-2-1\"\n";
    let (site, cluster, sink) = site(promises);
    site.pitr().words("backup --quiet").succeed();
    // So much to replay takes longer than a second, and the last of it is in no repository.
    cluster.sql("create table t as select g, repeat('x', 100) from generate_series(1, 400000) g");
    cluster.archive_now();
    cluster.sql("insert into t values (1, 'late')");
    std::thread::sleep(std::time::Duration::from_secs(2));
    observe(&site.pitr());
    let all = [("rpo", "critical"), ("rto", "medium"), ("copies", "medium")];
    for (promise, severity) in all {
        sink.expect(&format!("main/objectives/{promise}"), &[("new", severity)]);
    }
    site.edit(promises, "rpo = \"1h\"\nrto = \"1h\"\ncopies = \"2-1-0\"\n");
    observe(&site.pitr());
    for (promise, severity) in all {
        let wanted = [("new", severity), ("resolved", severity)];
        sink.expect(&format!("main/objectives/{promise}"), &wanted);
    }
}

#[test]
fn j16_a_drill_that_fails_or_is_old_reaches_the_sink() {
    let (site, cluster, sink) = site("max_drill_age = \"1d\"\n");
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    let drill = || {
        let run = site.pitr().words("drill --quiet --bin");
        let initdb = crate::common::bin(17, "initdb").unwrap();
        run.arg(initdb.parent().unwrap()).run()
    };
    let id = "main/recovery/drill";
    observe(&site.pitr());
    sink.expect(id, &[("new", "medium")]);
    let folder = site.cluster_folder().join("packs");
    let pack = paths_below(&folder)
        .into_iter()
        .find(|p| p.is_file())
        .unwrap();
    let whole = std::fs::read(&pack).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&pack, bytes).unwrap();
    drill().expect_code(4);
    observe(&site.pitr());
    sink.expect(id, &[("new", "medium"), ("new", "critical")]);
    std::fs::write(&pack, whole).unwrap();
    drill().success();
    observe(&site.pitr());
    assert_eq!(sink.heard(id).last().unwrap().0, "resolved");
    observe(&later(&site.pitr(), 2 * 86_400));
    let (event, severity, summary) = sink.heard(id).pop().unwrap();
    assert_eq!((event.as_str(), severity.as_str()), ("new", "medium"));
    assert!(summary.contains("last proven 2 d ago"), "{summary}");
}

#[test]
fn j16_a_backup_that_failed_without_the_agent_is_high_until_one_succeeds() {
    let sink = Sink::new();
    let jobs = "[jobs.nightly]\nrun = \"files backup up\"\nschedule = \"0 2 * * *\"\n";
    let host = Host::new(&format!("{jobs}{}", sink.section()));
    let fails = host.sandbox.join("fails");
    host.reconfigure(
        "before = [\"sh\", \"-c\", \"",
        &format!(
            "before = [\"sh\", \"-c\", \"test -e {} && exit 3; ",
            fails.display()
        ),
    );
    let id = "up/files/failed";
    let backup = || host.pitr().words("files backup up --quiet").run();
    backup().success();
    std::fs::write(&fails, "").unwrap();
    assert_ne!(backup().code(), 0);
    observe(&host.pitr());
    sink.expect(id, &[("new", "high")]);
    std::fs::remove_file(&fails).unwrap();
    backup().success();
    observe(&host.pitr());
    sink.expect(id, &[("new", "high"), ("resolved", "high")]);
    // A job tells it itself.
    std::fs::write(&fails, "").unwrap();
    let run = host.pitr().words("agent run nightly").run();
    assert_ne!(run.code(), 0);
    observe(&host.pitr());
    sink.expect(id, &[("new", "high"), ("resolved", "high")]);
    sink.expect("jobs/nightly", &[("new", "high")]);
}

#[test]
fn j58_a_backup_that_failed_is_no_condition_once_its_content_is_gone_from_the_configuration() {
    let sink = Sink::new();
    let host = Host::new(&sink.section());
    host.reconfigure(
        "before = [\"sh\", \"-c\", \"",
        "before = [\"sh\", \"-c\", \"exit 3; ",
    );
    let run = host.pitr().words("files backup up --quiet").run();
    assert_ne!(run.code(), 0);
    observe(&host.pitr());
    let id = "up/files/failed";
    sink.expect(id, &[("new", "high")]);
    host.reconfigure("[files.up]", "[files.other]");
    observe(&host.pitr());
    sink.expect(id, &[("new", "high"), ("resolved", "high")]);
}

#[test]
fn j16_a_receiver_that_ended_reaches_the_sink() {
    let (site, _server, sink) = site("");
    let journal = site.sandbox().dir("journal");
    site.add(&format!(
        "[clusters.main.receive]\njournal = \"{}\"\n",
        journal.display()
    ));
    site.pitr().words("backup --quiet").succeed();
    let id = "main/receiver/state";
    let state = || site.pitr().words("info --json").run().json()["clusters"][0]["receiver"].clone();
    let received = |done: &dyn Fn()| {
        let receiver = site.pitr().words("receive --create-slot").spawn();
        wait_until("it receives", || state()["running"] == true);
        done();
        receiver.ended_by(rustix::process::Signal::TERM);
    };
    received(&|| {
        observe(&site.pitr());
        sink.expect(id, &[]);
    });
    // It may be started again at once.
    observe(&site.pitr());
    sink.expect(id, &[]);
    observe(&later(&site.pitr(), 180));
    sink.expect(id, &[("new", "critical")]);
    received(&|| observe(&site.pitr()));
    sink.expect(id, &[("new", "critical"), ("resolved", "critical")]);
}

#[test]
fn j46_what_the_agent_may_not_read_is_medium_and_not_well() {
    let (site, cluster, sink) = site("");
    let journal = site.sandbox().dir("journal");
    site.add_to_cluster(&format!("receive.journal = \"{}\"\n", journal.display()));
    let server = journal.join("7000000000000000001");
    std::fs::create_dir(&server).unwrap();
    user::own_all(&journal);
    let status = cluster.pgdata().join("pg_wal/archive_status");
    let places = [
        ("main/pg_wal/barred", &status),
        ("main/receiver/barred", &server),
    ];
    let may = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    observe(&site.pitr());
    for (id, path) in places {
        sink.expect(id, &[]);
        may(path, 0o000);
    }
    observe(&site.pitr());
    for (id, path) in places {
        sink.expect(id, &[("new", "medium")]);
        let (_, _, summary) = sink.heard(id).pop().unwrap();
        assert!(summary.contains(path.to_str().unwrap()), "{summary}");
        may(path, 0o700);
    }
    observe(&site.pitr());
    for (id, _) in places {
        sink.expect(id, &[("new", "medium"), ("resolved", "medium")]);
    }
}

#[test]
fn j16_a_disk_that_will_be_full_within_a_week_is_medium() {
    require_mounts!("j16_a_disk_that_will_be_full_within_a_week_is_medium");
    let disk = SmallDisk::new(20, 4000);
    let sink = Sink::new();
    let host = Host::new(&sink.section());
    host.reconfigure(
        &format!("file://{}", host.sandbox.join("repo").display()),
        &format!("file://{}", disk.path().join("repo").display()),
    );
    host.pitr().words("init --quiet").succeed();
    let id = "repository/local/room";
    let after = |hours: u64, megabytes: usize| {
        std::fs::write(disk.path().join("filler"), vec![1_u8; megabytes << 20]).unwrap();
        observe(&later(&host.pitr(), hours * 3600));
    };
    after(0, 8);
    after(7, 11);
    sink.expect(id, &[]);
    after(25, 12);
    sink.expect(id, &[("new", "medium")]);
    let (_, _, summary) = sink.heard(id).pop().unwrap();
    assert!(summary.contains("and full in "), "{summary}");
    // Room was made.
    after(50, 2);
    sink.expect(id, &[("new", "medium"), ("resolved", "medium")]);
}

#[test]
fn j16_a_certificate_that_ends_is_medium_then_critical_and_over_once_it_is_renewed() {
    let (sink, authority) = (Sink::new(), Authority::new());
    let off = Offline::new("");
    let sandbox = off.still.site.sandbox();
    let ca = sandbox.file("ca.pem", &authority.pem);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_secs()).unwrap();
    let year = i32::try_from(1970 + now / 31_556_952 + 2).unwrap();
    let days = (i64::from(year) - 1970) * 365 + (i64::from(year) - 1969) / 4;
    let says = |year| Says {
        subject: "the store",
        host: "localhost",
        year,
    };
    let tls = Tls::before(off.server(), &authority, &says(year));
    let plain = std::fs::read_to_string(&off.config).unwrap();
    let text = plain.replace(&off.server().endpoint(), &tls.endpoint());
    let text = format!(
        "{text}ca_file = \"{}\"\n[agent]\nstate_dir = \"{}\"\n{}",
        ca.display(),
        sandbox.dir("state").display(),
        sink.section()
    );
    let config = sandbox.file("tls.toml", text);
    let id = "main/doctor/repository/certificate";
    let look = |left: i64| {
        let clock = format!("{},{now},1", (days - left) * 86_400);
        let pitr = crate::common::pitr().arg("--config").arg(&config);
        let pitr = pitr.env("PITR_FAULT_CLOCK", clock);
        examine(&pitr);
        observe(&pitr);
    };
    look(22);
    sink.expect(id, &[]);
    let end = format!("the store's ends {year}-01-01");
    look(20);
    sink.last(id, "new", "medium", &end);
    look(2);
    sink.last(id, "new", "critical", &end);
    tls.renew(&authority, &says(year + 1));
    look(2);
    let all = [
        ("new", "medium"),
        ("new", "critical"),
        ("resolved", "critical"),
    ];
    sink.expect(id, &all);
}

#[test]
fn j16_the_certificate_of_the_agent_itself_is_a_condition_too() {
    let (site, _cluster, sink) = site("");
    let authority = Authority::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = now.as_secs();
    let year = i32::try_from(1970 + now / 31_556_952 + 2).unwrap();
    let days = (i64::from(year) - 1970) * 365 + (i64::from(year) - 1969) / 4;
    let end = u64::try_from(days).unwrap() * 86_400;
    let own = authority.signs("localhost", year);
    let certificate = site.sandbox().file("page.pem", &own.pem);
    let key = site.sandbox().file("page.key", &own.key);
    let tls = format!(
        "[agent]\ntls.cert_file = \"{}\"\ntls.key_file = \"{}\"\n",
        certificate.display(),
        key.display()
    );
    site.edit("[agent]\n", &tls);
    let id = format!("main/doctor/certificates/{}", certificate.display());
    let look = |left: u64| {
        let pitr = later(&site.pitr(), end - left * 86_400 - now);
        examine(&pitr);
        observe(&pitr);
    };
    look(22);
    sink.expect(&id, &[]);
    look(20);
    look(2);
    sink.expect(&id, &[("new", "medium"), ("new", "critical")]);
    let renewed = authority.signs("localhost", year + 1);
    std::fs::write(&certificate, &renewed.pem).unwrap();
    look(2);
    let (event, severity, _) = sink.heard(&id).pop().unwrap();
    assert_eq!(
        (event.as_str(), severity.as_str()),
        ("resolved", "critical")
    );
}

/// A cluster whose slots keep 10 MB, a receiver that is configured for it, and servers that hear of alerts.
pub fn with_a_slot_limit() -> (Site, Cluster, Sink) {
    let sink = Sink::new();
    let cluster = Cluster::small(17)
        .config("max_slot_wal_keep_size", "10MB")
        .start();
    let site = Site::new(&cluster);
    let journal = site.sandbox().join("journal");
    reception::configure(&site, &cluster.conninfo("postgres"), &journal);
    watched(site.config(), &site.sandbox().dir("state"), &sink);
    (site, cluster, sink)
}

#[test]
fn j16_wal_that_a_slot_keeps_is_medium_high_and_critical_until_it_is_received() {
    let (site, cluster, sink) = with_a_slot_limit();
    cluster.sql("select pg_create_physical_replication_slot('pitr', true)");
    let id = "main/slot/pitr";
    let keep = |kib: u32| {
        cluster.sql(&format!(
            "select pg_logical_emit_message(true, 'fill', repeat('x', {kib} * 1024))"
        ));
        observe(&site.pitr());
    };
    let of = "of max_slot_wal_keep_size";
    keep(1);
    sink.expect(id, &[]);
    keep(6 << 10);
    sink.last(id, "new", "medium", of);
    keep(2560);
    sink.last(id, "new", "high", of);
    keep(1740);
    sink.last(id, "new", "critical", of);
    let receiving = Program::new(crate::common::newest_bin(17, "pg_receivewal"))
        .args(["--slot", "pitr", "-d", &cluster.conninfo("postgres"), "-D"])
        .arg(site.sandbox().dir("received"))
        .spawn();
    let kept = "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) < 3000000 from pg_replication_slots";
    wait_until("the slot has moved", || cluster.value(kept) == "t");
    keep(1);
    let all = [
        ("new", "medium"),
        ("new", "high"),
        ("new", "critical"),
        ("resolved", "critical"),
    ];
    sink.expect(id, &all);
    drop(receiving);
    cluster.set("max_slot_wal_keep_size", "2MB");
    wait_until("the slot has lost WAL", || {
        cluster.sql("select pg_switch_wal(); checkpoint");
        keep(1024);
        cluster.value("select wal_status from pg_replication_slots") == "lost"
    });
    observe(&site.pitr());
    sink.last(id, "new", "critical", "has lost WAL");
}
