//! The status page by HTTP: who sees it, what it tells, and that it starts nothing unless it may. `make test-page` drives it in a browser.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::agent::{EVERY_HOUR, Host};
use crate::common::wait_until;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// A text that would be a script where somebody made markup of it.
const HOSTILE: &str = "<script>alert(1)</script>";

fn state(host: &Host) -> Option<Value> {
    let (status, body) = host.get("/api/state")?;
    assert!(status.contains("200"), "{status} {body}");
    serde_json::from_str(&body).ok()
}

/// Waits until the first look is over.
fn observed(host: &Host) -> Value {
    let known = || state(host).filter(|state| !state["observed"].is_null());
    wait_until("something was found", || known().is_some());
    known().unwrap()
}

fn ask(host: &Host, request: &str, headers: &str, body: &str) -> (String, String) {
    host.ask(&format!("{request} HTTP/1.1\r\n{headers}"), body)
        .expect("an answer")
}

#[test]
fn j09_the_page_tells_what_was_found_and_text_of_others_is_no_markup() {
    let host = Host::new(EVERY_HOUR);
    host.pitr()
        .args(["files", "backup", "up", "--label", HOSTILE])
        .succeed();
    let _agent = host.agent();
    wait_until("it serves", || host.get("/").is_some());
    let told = observed(&host);
    assert_eq!(told["jobs"][0]["name"], "files", "{told}");
    assert_eq!(
        (&told["is_old"], &told["actions"]),
        (&false.into(), &false.into())
    );
    let found = &told["observed"];
    assert_eq!(
        found["info"]["scopes"][0]["backups"][0]["label"], HOSTILE,
        "{found}"
    );
    // The cluster has no backup, and the page says so with the next command.
    let conditions = found["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c["severity"] == "critical" && c["next"].is_string()),
        "{found}"
    );
    assert!(
        found["rooms"][0]["free_bytes"].as_u64() > Some(0),
        "{found}"
    );
    // The page is the same whatever was found, and lets nothing in that it does not bring itself.
    let (head, page) = ask(&host, "GET /", "Host: localhost\r\n", "");
    assert!(
        head.contains("200") && head.contains("default-src 'none'; script-src 'self'"),
        "{head}"
    );
    assert!(
        !page.contains(HOSTILE) && !page.contains("<script>") && !page.contains("style="),
        "{page}"
    );
    let (_, script) = host.get("/page.js").unwrap();
    for way in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "://",
    ] {
        let allowed = script.replace("http://www.w3.org/2000/svg", "");
        assert!(!allowed.contains(way), "{way}");
    }
    for (path, kind) in [
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/login", "text/html"),
    ] {
        let (head, _) = ask(&host, &format!("GET {path}"), "Host: localhost\r\n", "");
        assert!(head.contains(kind) && head.contains("nosniff"), "{head}");
    }
    // A look of long ago is not called the state of now.
    let file = host.sandbox.join("state/page.json");
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let old = SystemTime::now() - Duration::from_secs(700);
    let opened = std::fs::File::options().append(true).open(&file).unwrap();
    opened.set_modified(old).unwrap();
    assert_eq!(state(&host).unwrap()["is_old"], true);
}

#[test]
fn j09_a_plan_is_made_by_the_command_one_at_a_time_and_within_its_time() {
    let host = Host::new(EVERY_HOUR);
    let agent = host.agent();
    wait_until("it serves", || host.get("/").is_some());
    let moment = "/api/plan?cluster=main&time=2026-11-20T06:40:49Z";
    let (status, body) = host.get(moment).unwrap();
    let told: Value = serde_json::from_str(&body).unwrap();
    assert!(status.contains("200"), "{status} {body}");
    // Without a backup there is no way: the words are those of pitr plan.
    assert_eq!(
        (&told["plan"]["reachable"], &told["plan"]["reason"]),
        (&false.into(), &"no_backup".into()),
        "{body}"
    );
    let line = told["line"].as_str().unwrap();
    assert!(
        line.starts_with("pitr --config ")
            && line.contains(" restore --cluster main --target-time "),
        "{line}"
    );
    for (query, option) in [
        ("lsn=0/16B3740", "--target-lsn 0/16B3740"),
        ("xid=742", "--target-xid 742"),
        ("name=before.it", "--target-name before.it"),
    ] {
        let asked = format!("/api/plan?cluster=main&{query}");
        let (status, body) = host.get(&asked).unwrap();
        let told: Value = serde_json::from_str(&body).unwrap();
        let line = told["line"].as_str().unwrap_or_default();
        assert!(line.contains(option), "{query}: {status} {body}");
    }
    for (query, wanted) in [
        ("cluster=main&lsn=--help", "400"),
        ("cluster=main&lsn=0/123456789", "400"),
        ("cluster=main&xid=-1", "400"),
        ("cluster=main&name=--help", "400"),
        ("cluster=main&name=a%20b", "400"),
        ("cluster=--help&time=2026-11-20T06:40:49Z", "400"),
        ("cluster=main&time=--help", "400"),
        ("cluster=main%20x&time=2026-11-20T06:40:49Z", "400"),
        ("", "400"),
        ("cluster=other&time=2026-11-20T06:40:49Z", "422"),
    ] {
        let (status, body) = host.get(&format!("/api/plan?{query}")).unwrap();
        assert!(
            status.contains(wanted) && body.contains("error"),
            "{query}: {status} {body}"
        );
    }
    drop(agent);
    // A plan that does not end holds up nobody but those who want another one.
    let paused = host.sandbox.join("paused");
    let pause = format!("plan={}", paused.display());
    let _agent = host
        .pitr()
        .env("PITR_FAULT_PAUSE", pause)
        .env("PITR_FAULT_SECONDS", "5")
        .arg("agent")
        .spawn();
    wait_until("it serves", || host.get("/").is_some());
    let port = host.port;
    let request = format!("GET {moment} HTTP/1.1\r\nHost: localhost\r\n");
    let first = std::thread::spawn(move || crate::agent::answer(port, &request, "").unwrap());
    wait_until("the plan is being made", || paused.exists());
    let (status, body) = host.get(moment).unwrap();
    assert!(
        status.contains("409") && body.contains("another plan"),
        "{status} {body}"
    );
    assert!(host.get("/healthz").unwrap().0.contains("200"));
    let (head, body) = first.join().unwrap();
    assert!(
        head.contains("504") && body.contains("takes too long"),
        "{head} {body}"
    );
    let (status, _) = host.get("/api/plan?cluster=-&time=").unwrap();
    assert!(status.contains("400"), "the next one is answered: {status}");
}

#[test]
fn j09_without_a_token_the_page_is_for_this_host_and_starts_nothing() {
    let host = Host::new(EVERY_HOUR);
    let _agent = host.agent();
    wait_until("it serves", || host.get("/").is_some());
    // A name of the internet that leads here is not this host.
    for path in [
        "/",
        "/api/state",
        "/api/plan?cluster=main&time=2026-11-20T06:40:49Z",
    ] {
        let (head, body) = ask(
            &host,
            &format!("GET {path}"),
            "Host: evil.example:9870\r\n",
            "",
        );
        assert!(
            head.contains("403") && body.contains("localhost"),
            "{path}: {head} {body}"
        );
    }
    let (head, body) = ask(&host, "POST /api/run?job=files", "Host: localhost\r\n", "");
    assert!(
        head.contains("403") && body.contains("actions = true"),
        "{head} {body}"
    );
    for request in [
        "POST /",
        "POST /api/state",
        "GET /api/run?job=files",
        "DELETE /login",
    ] {
        let (head, _) = ask(&host, request, "Host: localhost\r\n", "");
        assert!(head.contains("405"), "{request}: {head}");
    }
    let (head, _) = ask(
        &host,
        "POST /login",
        "Host: localhost\r\n",
        &format!("token={TOKEN}"),
    );
    assert!(head.contains("401"), "no token is none: {head}");
    assert!(host.begun("files").is_empty());
}

#[test]
fn j09_with_a_token_who_has_it_sees_the_page_and_starts_jobs_from_it_alone() {
    let host = Host::new(&format!(
        "[page]\ntoken_file = \"/TOKEN\"\nactions = true\n{EVERY_HOUR}"
    ));
    let token = host.sandbox.file("token", format!("{TOKEN}\n"));
    host.reconfigure("/TOKEN", &token.display().to_string());
    let mode =
        |mode| std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).unwrap();
    // A token that others may read protects nothing.
    mode(0o644);
    host.pitr()
        .arg("agent")
        .run()
        .expect_stderr("is open to other users")
        .expect_code(3);
    mode(0o600);
    let _agent = host.agent();
    wait_until("it serves", || host.get("/healthz").is_some());
    let here = "Host: pitr.example.org\r\n";
    assert!(ask(&host, "GET /", here, "").0.contains("303"));
    assert!(ask(&host, "GET /api/state", here, "").0.contains("401"));
    assert!(
        ask(&host, "POST /api/run?job=files", here, "")
            .0
            .contains("401")
    );
    let wrong = ask(
        &host,
        "POST /login",
        here,
        "token=0123456789abcdef0123456789abcdee",
    );
    assert!(
        wrong.0.contains("401") && !wrong.0.contains("set-cookie"),
        "{}",
        wrong.0
    );
    let other = format!("{here}Origin: http://evil.example\r\n");
    let form = format!("token={TOKEN}");
    assert!(ask(&host, "POST /login", &other, &form).0.contains("403"));
    assert!(
        ask(&host, "POST /login", here, &"x".repeat(5000))
            .0
            .contains("400")
    );
    let (head, _) = ask(&host, "POST /login", here, &form);
    let cookie = head
        .lines()
        .find_map(|l| l.strip_prefix("set-cookie: "))
        .expect("a cookie");
    assert!(
        cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Strict")
            && !cookie.contains(TOKEN)
    );
    let inside = format!("{here}Cookie: {}\r\n", cookie.split(';').next().unwrap());
    assert!(ask(&host, "GET /", &inside, "").0.contains("200"));
    let (_, told) = ask(&host, "GET /api/state", &inside, "");
    assert!(told.contains("\"actions\":true"), "{told}");
    // Another site cannot use the cookie of somebody who is logged in.
    let forged = format!("{inside}Origin: http://evil.example\r\n");
    assert!(
        ask(&host, "POST /api/run?job=files", &forged, "")
            .0
            .contains("403")
    );
    assert!(
        ask(&host, "POST /api/run?job=none", &inside, "")
            .0
            .contains("400")
    );
    assert!(host.begun("files").is_empty());
    let own = format!("{inside}Origin: https://pitr.example.org\r\n");
    let (head, body) = ask(&host, "POST /api/run?job=files", &own, "");
    assert!(head.contains("202"), "{head} {body}");
    wait_until("the job ran", || host.job("files")["last_success"] == true);
    // Not beside itself.
    let lock = host.sandbox.join("state/jobs/files/lock");
    let lock = std::fs::File::options()
        .read(true)
        .write(true)
        .open(lock)
        .unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let bearer = format!("{here}Authorization: Bearer {TOKEN}\r\n");
    let (head, body) = ask(&host, "POST /api/run?job=files", &bearer, "");
    assert!(
        head.contains("409") && body.contains("under way"),
        "{head} {body}"
    );
    assert_eq!(host.begun("files").len(), 1);
}

#[test]
fn j61_a_job_of_the_page_goes_on_as_the_agent_does_while_the_file_is_wrong() {
    let host = Host::new(&format!(
        "[page]\ntoken_file = \"/TOKEN\"\nactions = true\n{EVERY_HOUR}"
    ));
    let token = host.sandbox.file("token", TOKEN);
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&token, 0o600);
    host.reconfigure("/TOKEN", &token.display().to_string());
    let _agent = host.agent();
    let jobs = host.sandbox.join("state/jobs/files");
    wait_until("it serves", || {
        host.get("/healthz").is_some() && jobs.join("since").exists()
    });
    let bearer = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    let run = || ask(&host, "POST /api/run?job=files", &bearer, "");
    let ended = || -> Vec<String> {
        let names = std::fs::read_dir(&jobs).unwrap();
        let paths = names.map(|entry| entry.unwrap().path());
        let ended = paths.filter(|path| path.extension().is_some_and(|end| end == "ended"));
        ended
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect()
    };
    // A run that cannot begin was not started.
    mode(&jobs, 0o555);
    let (head, body) = run();
    assert!(head.contains("500"), "{head} {body}");
    assert!(body.contains("did not begin"), "{body}");
    mode(&jobs, 0o755);
    for (count, (from, to)) in [
        (1, ("\"0 * * * *\"", "\"0 * * *\"")),
        (2, ("/state\"", "/moved\"")),
    ] {
        host.reconfigure(from, to);
        let (head, body) = run();
        assert!(head.contains("202"), "{head} {body}");
        assert_eq!(host.begun("files").len(), count, "it has its record");
        wait_until("the job ran", || ended().len() == count);
        assert!(ended().iter().all(|text| text.contains("\"status\":0")));
        host.reconfigure(to, from);
    }
    // Without a copy nothing runs in another directory.
    host.reconfigure("/state\"", "/moved\"");
    std::fs::remove_file(host.sandbox.join("state/configuration.toml")).unwrap();
    let (head, body) = run();
    assert!(head.contains("500"), "{head} {body}");
    assert!(body.contains("state_dir of [agent]"), "{body}");
    assert!(!host.sandbox.join("moved").exists());
}

/// A neighbour on the host, without any rights, holds as many connections as it likes. Jobs and looks need descriptors, too.
#[test]
fn j44_clients_that_come_to_no_end_take_neither_descriptors_nor_the_page() {
    let host = Host::new(EVERY_HOUR);
    let agent = host.agent();
    wait_until("it serves", || host.get("/healthz").is_some());
    let descriptors = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid()));
        open.map_or(0, |open| open.flatten().count())
    };
    let before = descriptors();
    assert!(before > 0);
    let half = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", host.port)).unwrap();
        let head = "POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 40\r\n\r\ntok";
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        stream
    };
    let held: Vec<std::net::TcpStream> = (0..120).map(|_| half()).collect();
    std::thread::sleep(Duration::from_secs(2));
    let now = descriptors();
    assert!(
        (before + 10..=before + 70).contains(&now),
        "{before} and then {now}"
    );
    // They have ten seconds each, and then it is somebody else's turn.
    wait_until("it answers others", || host.get("/healthz").is_some());
    drop(held);
}

#[test]
fn a_page_that_is_not_wanted_is_not_there() {
    let host = Host::new(&format!("[page]\nenabled = false\n{EVERY_HOUR}"));
    let _agent = host.agent();
    wait_until("it serves", || host.get("/healthz").is_some());
    for path in ["/", "/api/state", "/page.js", "/login"] {
        assert!(host.get(path).unwrap().0.contains("404"), "{path}");
    }
}
