//! Alerts reach real servers of HTTP and mail, and what a sink did not take comes later.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::common::{Cluster, Program, Sandbox, pitr, str_of};

/// A server that answers with a status, and keeps what it was sent.
pub struct Web {
    port: u16,
    status: Arc<Mutex<u16>>,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Web {
    pub fn start() -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Web {
            port: listener.local_addr().unwrap().port(),
            status: Arc::new(Mutex::new(200)),
            heard: Arc::default(),
        };
        let (status, heard) = (Arc::clone(&web.status), Arc::clone(&web.heard));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let status = *status.lock().unwrap();
                if let Some(body) = answer(stream.unwrap(), status)
                    && status == 200
                {
                    heard.lock().unwrap().push(body);
                }
            }
        });
        web
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook/s3cret", self.port)
    }

    pub fn answer_with(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    pub fn take(&self) -> Vec<Value> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

/// Reads a POST: its path, and its body.
pub fn posted(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut first).ok()?;
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first.split(' ').nth(1)?.to_owned(), body))
}

/// Answers with a status.
pub fn reply(mut stream: TcpStream, status: u16) -> Option<()> {
    let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
    write!(stream, "HTTP/1.1 {status} X\r\n{end}").ok()
}

/// Reads a POST, and answers it; 0 as the status hangs up.
fn answer(stream: TcpStream, status: u16) -> Option<Value> {
    let (_, body) = posted(&stream)?;
    if status > 0 {
        reply(stream, status)?;
    }
    serde_json::from_slice(&body).ok()
}

/// A server of mail that takes every letter, but for those to `refused@…`.
struct Mail {
    port: u16,
    letters: Arc<Mutex<Vec<String>>>,
}

impl Mail {
    fn start() -> Mail {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mail = Mail {
            port: listener.local_addr().unwrap().port(),
            letters: Arc::default(),
        };
        let letters = Arc::clone(&mail.letters);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if let Some(letter) = converse(stream.unwrap()) {
                    letters.lock().unwrap().push(letter);
                }
            }
        });
        mail
    }
}

fn converse(mut stream: TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    let mut letter = None;
    stream.write_all(b"220 test\r\n").ok()?;
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return letter;
        }
        let answer = match line.trim_end() {
            l if l.starts_with("EHLO") => "250 test\r\n",
            l if l.starts_with("RCPT") && l.contains("refused@") => "550 no such reader\r\n",
            "DATA" => {
                stream.write_all(b"354 go on\r\n").ok()?;
                let mut text = String::new();
                while reader.read_line(&mut text).ok()? > 0 && !text.ends_with("\r\n.\r\n") {}
                letter = Some(text);
                "250 taken\r\n"
            }
            "QUIT" => {
                let _ = stream.write_all(b"221 bye\r\n");
                return letter;
            }
            _ => "250 ok\r\n",
        };
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

pub struct Host {
    sandbox: Sandbox,
    config: PathBuf,
    _cluster: Cluster,
}

impl Host {
    /// A host on which nothing was ever backed up: that is critical.
    pub fn new(sinks: &str) -> Host {
        let sandbox = Sandbox::new("alert");
        let cluster = Cluster::builder(17).without_fsync().create();
        let source = sandbox.dir("source");
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\n[repositories.local]\nurl = \"file://{}\"\n[files.up]\nsource = \"{}\"\nidentity = \"here\"\n[agent]\nstate_dir = \"{}\"\n{sinks}",
            cluster.pgdata().display(),
            sandbox.join("repo").display(),
            source.display(),
            sandbox.join("state").display()
        );
        let config = sandbox.file("pitr.toml", text);
        let host = Host {
            sandbox,
            config,
            _cluster: cluster,
        };
        host.pitr().words("init --quiet").succeed();
        host.sandbox.dir("state");
        host
    }

    pub fn pitr(&self) -> Program {
        pitr().arg("--config").arg(&self.config)
    }

    fn observe(&self) -> String {
        self.pitr().words("agent observe").succeed().stderr
    }

    fn backup(&self) {
        self.pitr().words("files backup up --quiet").succeed();
    }
}

#[test]
fn every_shape_of_webhook_is_taken_and_a_failing_one_is_named_without_its_secret() {
    let web = Web::start();
    let key = "key_file = \"KEY\"\n";
    let mut sinks = String::new();
    for kind in ["webhook", "slack", "teams", "discord", "pagerduty"] {
        let key = if kind == "pagerduty" { key } else { "" };
        sinks.push_str(&format!(
            "[alerts.{kind}]\nkind = \"{kind}\"\nurl = \"{}\"\n{key}",
            web.url()
        ));
    }
    sinks.push_str(&format!("[alerts.sms]\nkind = \"webhook\"\nurl = \"{}\"\ntemplate = '{{\"to\": \"+49\", \"text\": \"{{{{severity}}}}: {{{{summary}}}}\"}}'\n", web.url()));
    let host = Host::new(&sinks.replace("KEY", "/nowhere/key"));
    let key = host.sandbox.file("key", "r0uting\n");
    crate::common::edit(&host.config, "/nowhere/key", key.to_str().unwrap());

    host.pitr()
        .words("alert test")
        .succeed()
        .expect_stdout("slack: took the test");
    let heard = web.take();
    assert_eq!(heard.len(), 6);
    let all = Value::from(heard.clone()).to_string();
    assert!(!all.contains("{{"), "{all}");
    assert!(
        heard
            .iter()
            .any(|v| v["routing_key"] == "r0uting" && v["event_action"] == "trigger"),
        "{all}"
    );
    assert!(
        heard.iter().any(|v| v["text"]
            .as_str()
            .is_some_and(|t| t.starts_with("low: this is a test"))),
        "{all}"
    );
    assert!(
        heard
            .iter()
            .any(|v| v["attachments"][0]["content"]["type"] == "AdaptiveCard"),
        "{all}"
    );
    assert!(heard.iter().any(|v| v["content"].is_string()), "{all}");

    for status in [500, 301, 0] {
        web.answer_with(status);
        let run = host.pitr().words("alert test").run();
        assert_ne!(run.code(), 0, "{run}");
        for sink in ["webhook", "slack", "teams", "discord", "pagerduty", "sms"] {
            assert!(run.stdout.contains(&format!("{sink}: FAILED")), "{run}");
        }
        let all = format!("{}{}", run.stdout, run.stderr);
        assert!(!all.contains("s3cret") && !all.contains("r0uting"), "{run}");
    }
    assert!(web.take().is_empty());
    host.pitr().words("alert test --sink none").exits(2);
}

#[test]
fn j08_an_alert_is_told_once_then_that_it_ended_and_none_is_lost_by_a_sink_that_fails() {
    let web = Web::start();
    let host = Host::new(&format!(
        "[alerts.hook]\nkind = \"webhook\"\nurl = \"{}\"\n[alerts.other]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"cat >> /nowhere/out\"]\n",
        web.url()
    ));
    let told = || -> Vec<(String, String)> {
        let of = |v: &Value| {
            (
                v["event"].as_str().unwrap().to_owned(),
                v["id"].as_str().unwrap().to_owned(),
            )
        };
        web.take().iter().map(of).collect()
    };
    web.answer_with(503);
    let said = host.observe();
    assert!(
        said.contains("alert sink \"hook\"") && !said.contains("s3cret"),
        "{said}"
    );
    assert!(said.contains("alert sink \"other\""), "{said}");
    assert!(told().is_empty());
    let status = host.pitr().words("agent status --json").run().json();
    assert!(
        str_of(&status["failing_sinks"]["hook"]["error"]).contains("503"),
        "{status}"
    );

    web.answer_with(200);
    host.observe();
    let first = told();
    assert!(
        first
            .iter()
            .any(|(event, id)| event == "new" && id.contains("aux/files/up")),
        "{first:?}"
    );
    assert!(
        first.iter().any(|(_, id)| id == "alerts/other"),
        "the other sink fails: {first:?}"
    );
    host.observe();
    assert!(told().is_empty(), "it was told already");

    host.backup();
    host.observe();
    let last = told();
    assert!(
        last.iter()
            .any(|(event, id)| event == "resolved" && id.contains("aux/files/up")),
        "{last:?}"
    );
    host.observe();
    assert!(told().is_empty());
}

#[test]
fn j08_a_sink_that_fails_is_seen_everywhere_until_it_takes_something() {
    let web = Web::start();
    let host = Host::new(&format!(
        "[alerts.hook]\nkind = \"webhook\"\nurl = \"{}\"\n",
        web.url()
    ));
    host.backup();
    host.observe();
    assert!(!web.take().is_empty(), "of the cluster without a backup");
    let seen = || {
        let doctor = host.pitr().words("doctor --json").run().json();
        let findings = doctor["findings"].as_array().unwrap();
        let of_it = findings.iter().find(|f| f["group"] == "alerts");
        let of_it = of_it.unwrap_or_else(|| panic!("{doctor:#}"));
        assert_eq!(of_it["name"], "hook");
        let metrics = host.pitr().arg("metrics").run().stdout;
        let series = "pitr_alert_sink_failing{sink=\"hook\"}";
        let failing = crate::metrics::value(&metrics, series);
        let status = host.pitr().words("agent status").run();
        let mut lines = status.stdout.lines();
        let told = lines.any(|line| line.starts_with("alert sink \"hook\" takes nothing"));
        let level = of_it["level"].as_str().unwrap().to_owned();
        (level, failing, status.code(), told)
    };
    let well = ("ok".to_owned(), Some(0.0), 0, false);
    assert_eq!(seen(), well);
    let (here, away) = (host.sandbox.join("source"), host.sandbox.join("away"));
    std::fs::rename(&here, &away).unwrap();
    let fails = ["files", "backup", "up", "--quiet"];
    assert_ne!(host.pitr().args(fails).run().code(), 0);
    web.answer_with(503);
    host.observe();
    assert_eq!(seen(), ("fail".to_owned(), Some(1.0), 1, true));
    // That is over before the sink is back: the end of its own trouble shows that it takes something.
    std::fs::rename(&away, &here).unwrap();
    host.backup();
    host.observe();
    assert_eq!(seen(), ("fail".to_owned(), Some(1.0), 1, true));
    web.answer_with(200);
    host.observe();
    let heard = web.take();
    let told: Vec<_> = heard.iter().map(|v| (&v["event"], &v["id"])).collect();
    assert_eq!(told, [(&"resolved".into(), &"alerts/hook".into())]);
    assert_eq!(seen(), well);
    host.observe();
    assert!(web.take().is_empty());
}

#[test]
fn files_that_cannot_be_written_silence_no_alert_and_are_one() {
    let files = [
        "metrics.prom",
        "page.json",
        "alerts.json",
        "counters.json",
        "objectives",
        "rooms.json",
    ];
    for file in files {
        let web = Web::start();
        let sink = format!(
            "[alerts.hook]\nkind = \"webhook\"\nurl = \"{}\"\n",
            web.url()
        );
        let host = Host::new(&sink);
        // Neither read nor replaced by anybody, root included.
        match file {
            "objectives" => std::fs::write(host.sandbox.join("state/objectives"), "").unwrap(),
            file => drop(host.sandbox.dir(format!("state/{file}/in"))),
        }
        let run = host.pitr().words("agent observe").run();
        assert_ne!(run.code(), 0, "{file}: {run}");
        let heard = web.take();
        let severity = |id: &str| {
            let is_meant = |v: &&Value| v["id"].as_str().unwrap().contains(id);
            heard.iter().find(is_meant).map(|v| v["severity"].clone())
        };
        assert!(severity("aux/files/up").is_some(), "{file}: {heard:?}");
        let state = severity("agent/state");
        assert_eq!(state, Some("critical".into()), "{file}: {heard:?}");
    }
}

#[test]
fn a_job_that_failed_is_an_alert_with_what_it_said() {
    let web = Web::start();
    let host = Host::new(&format!(
        "[jobs.bad]\nrun = \"files backup gone\"\nschedule = \"0 2 * * *\"\n[alerts.hook]\nkind = \"webhook\"\nurl = \"{}\"\n",
        web.url()
    ));
    host.backup();
    assert_ne!(host.pitr().words("agent run bad").run().code(), 0);
    host.observe();
    let heard = web.take();
    let job = heard
        .iter()
        .find(|v| v["id"] == "jobs/bad")
        .unwrap_or_else(|| panic!("{heard:?}"));
    assert_eq!(job["severity"], "high");
    assert_eq!(job["next"], "pitr agent status");
}

#[test]
fn letters_reach_a_mail_server_and_a_refused_one_is_an_error() {
    let mail = Mail::start();
    let sink = |to: &str| {
        format!(
            "[alerts.mail]\nkind = \"email\"\nsmtp = \"smtp://127.0.0.1:{}\"\nfrom = \"pitr <pitr@example.org>\"\nto = [\"{to}\"]\n",
            mail.port
        )
    };
    let host = Host::new(&sink("dba@example.org"));
    host.observe();
    let letters = mail.letters.lock().unwrap().clone();
    let is_whole = |l: &String| l.contains("Subject: [pitr ") && l.contains("To: dba@example.org");
    assert!(
        !letters.is_empty() && letters.iter().all(is_whole),
        "{letters:?}"
    );
    let told = letters
        .iter()
        .filter(|l| l.contains("Condition: aux/files/up"));
    assert_eq!(told.count(), 1, "{letters:?}");

    let refused = Host::new(&sink("refused@example.org"));
    let run = refused.pitr().words("alert test").run();
    assert_ne!(run.code(), 0);
    assert!(run.stdout.contains("no such reader"), "{run}");
    // Nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let away =
        Host::new(&sink("dba@example.org").replace(&mail.port.to_string(), &port.to_string()));
    assert_ne!(away.pitr().words("alert test").run().code(), 0);
}

#[test]
fn a_password_of_a_mail_server_never_goes_in_the_clear() {
    let host = Host::new(
        "[alerts.mail]\nkind = \"email\"\nsmtp = \"smtp://mail.example.org\"\nfrom = \"a@example.org\"\nto = \"b@example.org\"\nuser = \"a\"\npassword_file = \"/nowhere/password\"\n",
    );
    let run = host.pitr().words("alert test").run();
    assert!(
        run.code() != 0 && run.stdout.contains("over TLS alone"),
        "{run}"
    );
}

#[test]
fn a_command_and_the_systems_log_hear_of_it() {
    let sandbox = Sandbox::new("log");
    let socket = sandbox.join("log");
    let log = UnixDatagram::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let out = sandbox.dir("out").join("heard");
    let host = Host::new(&format!(
        "[alerts.log]\nkind = \"syslog\"\nurl = \"{}\"\n[alerts.run]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"cat > {out}; echo \\\"$PITR_ALERT_SEVERITY\\\" >> {out}\"]\n",
        socket.display(),
        out = out.display()
    ));
    host.pitr().words("alert test").succeed();
    let mut buffer = [0; 2000];
    let length = log.recv(&mut buffer).unwrap();
    let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(
        line.starts_with("<30>pitr[") && line.contains("this is a test"),
        "{line}"
    );
    let heard = std::fs::read_to_string(&out).unwrap();
    assert!(
        heard.contains("\"event\":\"test\"") && heard.ends_with("low\n"),
        "{heard}"
    );
    // Nobody reads the log, and the program fails.
    std::fs::remove_file(&socket).unwrap();
    std::fs::remove_dir_all(out.parent().unwrap()).unwrap();
    let run = host.pitr().words("alert test").run();
    assert_ne!(run.code(), 0, "{run}");
    run.expect_stdout("log: FAILED")
        .expect_stdout("run: FAILED");
    // A program that hangs is given up.
    let slow = Host::new("[alerts.run]\nkind = \"command\"\ncommand = [\"sleep\", \"600\"]\n");
    given_up(&slow, "1", "has not ended for 1 s");
}

/// Fails unless a test of the sinks, given so many seconds, ends with an error and says this.
fn given_up(host: &Host, seconds: &str, words: &str) {
    let test = host.pitr().env("PITR_FAULT_SECONDS", seconds);
    let run = test.words("alert test").run();
    assert!(run.code() != 0 && run.stdout.contains(words), "{run}");
}

#[test]
fn j08_a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = Host::new(&format!(
        "[alerts.hook]\nkind = \"slack\"\nurl = \"http://127.0.0.1:{port}/\"\n"
    ));
    given_up(&host, "1", "has not answered for 1 s");
    drop(listener);
}

#[test]
fn j08_a_mail_server_that_never_comes_to_an_end_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Each line comes in time, and the greeting never ends.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = 0;
        while stream.write_all(b"220-wait\r\n").is_ok() {
            lines += 1;
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        lines
    });
    let host = Host::new(&format!(
        "[alerts.mail]\nkind = \"email\"\nsmtp = \"smtp://127.0.0.1:{port}\"\nfrom = \"pitr@example.org\"\nto = [\"dba@example.org\"]\n"
    ));
    given_up(&host, "2", "has not taken the alert for 2 s");
    assert!(server.join().unwrap() > 10);
}

#[test]
fn j12_a_slow_sink_gets_the_rest_in_the_next_look() {
    let contents = ["b", "c", "d", "e", "f"].map(|name| {
        format!("[files.{name}]\nsource = \"/nowhere/{name}\"\nidentity = \"{name}\"\n")
    });
    let heard = Sandbox::new("slow");
    let out = heard.dir("out").join("heard");
    let host = Host::new(&format!(
        "{}[alerts.slow]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"sleep 1; echo $PITR_ALERT_EVENT $PITR_ALERT_ID >> {}\"]\n",
        contents.concat(),
        out.display()
    ));
    let told = || std::fs::read_to_string(&out).unwrap_or_default();
    let count = || told().lines().count();
    // No delivery begins later than two seconds after the first.
    let observe = || {
        let run = host.pitr().env("PITR_FAULT_SECONDS", "2");
        run.words("agent observe").succeed();
        count()
    };
    let first = observe();
    assert!((2..=3).contains(&first), "{}", told());
    let mut before = first;
    loop {
        let now = observe();
        assert!(now <= before + 3, "{}", told());
        if now == before {
            break;
        }
        before = now;
    }
    let mut lines: Vec<String> = told().lines().map(str::to_owned).collect();
    lines.sort();
    let all = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), all, "told twice: {}", told());
    for name in ["b", "c", "d", "e", "f", "up"] {
        let is_its = |line: &String| line.contains(&format!("aux/files/{name}"));
        assert!(lines.iter().any(is_its), "{name}: {}", told());
    }
}

#[test]
fn j12_two_looks_do_not_deliver_at_once() {
    let heard = Sandbox::new("turn");
    let (begun, out) = (heard.dir("out").join("begun"), heard.join("out/heard"));
    let host = Host::new(&format!(
        "[alerts.slow]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"touch {}; sleep 3; echo $PITR_ALERT_EVENT $PITR_ALERT_ID >> {}\"]\n",
        begun.display(),
        out.display()
    ));
    let mut first = host.pitr().words("agent observe").spawn();
    crate::common::wait_until("it delivers", || begun.exists());
    let since = std::time::Instant::now();
    host.observe();
    assert!(!first.is_done(), "it ended in {:?}", since.elapsed());
    first.wait().success();
    let text = std::fs::read_to_string(&out).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let all = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert!(all > 0 && lines.len() == all, "{text}");
}

#[test]
fn j12_a_sink_that_hangs_is_asked_once_in_a_look_and_the_others_hear_of_everything() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = Web::start();
    let host = Host::new(&format!(
        "[alerts.dead]\nkind = \"webhook\"\nurl = \"http://{}/\"\n[alerts.hook]\nkind = \"webhook\"\nurl = \"{}\"\n",
        listener.local_addr().unwrap(),
        web.url()
    ));
    let run = host
        .pitr()
        .env("PITR_FAULT_SECONDS", "1")
        .words("agent observe")
        .succeed();
    assert!(run.stderr.contains("has not answered for 1 s"), "{run}");
    let heard = web.take();
    assert!(heard.len() >= 2, "{heard:?}");
    listener.set_nonblocking(true).unwrap();
    let asked = std::iter::from_fn(|| listener.accept().ok()).count();
    assert_eq!(asked, 1, "for {} notices", heard.len());
}

#[test]
fn no_sink_is_an_error_of_the_test_alone() {
    let host = Host::new("");
    host.observe();
    host.pitr()
        .words("alert test")
        .exits(3)
        .expect_stderr("[alerts.NAME]");
}
