//! Tenants: configurations of their own, whose agents run beside the host's, which shows them.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;

use crate::agent::Host;
use crate::common::wait_until;

/// The configuration of a tenant with a repository, content and a job of its own.
fn tenant(host: &Host, name: &str, more: &str) -> PathBuf {
    let place = host.sandbox.dir(name);
    let source = host.sandbox.dir(format!("{name}/docs"));
    std::fs::write(source.join("file"), name).unwrap();
    let text = format!(
        "[clusters.{name}]\npgdata = \"{1}\"\n[repositories.own]\nurl = \"file://{0}/repo\"\n[files.docs]\nsource = \"{0}/docs\"\nidentity = \"{name}\"\n[agent]\n{more}\n[jobs.docs]\nrun = \"files ls docs\"\nschedule = \"* * * * *\"\n",
        place.display(),
        host.pgdata().display(),
    );
    let config = host.sandbox.file(format!("{name}.toml"), text);
    host.pitr_with(&config).words("init --quiet").succeed();
    host.pitr_with(&config).words("files backup docs").succeed();
    config
}

fn state_dir(host: &Host, name: &str) -> String {
    format!(
        "state_dir = \"{}/{name}/state\"",
        host.sandbox.path().display()
    )
}

fn state(host: &Host, query: &str) -> (String, Value) {
    let (status, body) = host.get(&format!("/api/state{query}")).expect("an answer");
    (status, serde_json::from_str(&body).expect("an object"))
}

/// The names of the content that a look found.
fn found(state: &Value) -> Vec<&str> {
    let scopes = state["observed"]["info"]["scopes"].as_array();
    let names = scopes.into_iter().flatten();
    names.filter_map(|s| s["scope"].as_str()).collect()
}

#[test]
fn j15_an_agent_runs_those_of_its_tenants_and_shows_them_apart() {
    let tables = |host: &Host| {
        let path = host.sandbox.path().display().to_string();
        format!(
            "[tenants.acme]\nconfig = \"{path}/acme.toml\"\n[tenants.beta]\nconfig = \"{path}/beta.toml\"\n[page]"
        )
    };
    let host = Host::new("[page]\n");
    host.reconfigure("[page]", &tables(&host));
    tenant(&host, "acme", &state_dir(&host, "acme"));
    // It would share what the host's agent remembers.
    let shared = format!("state_dir = \"{}/state\"", host.sandbox.path().display());
    let beta = tenant(&host, "beta", &shared);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let host = host.hastened(now.as_secs(), 60);

    // A variable is the configuration of the host's own agent, and no tenant's.
    let agent = host
        .pitr()
        .env("PITR_FILES_LEAK_SOURCE", "/nowhere")
        .arg("agent")
        .timeout(Duration::from_secs(600))
        .spawn();
    let succeeded = |name: &str, at: usize| {
        let status = host.status();
        let told = &status["tenants"][at];
        told["name"] == name && told["running"] == true && told["jobs"][0]["last_success"] == true
    };
    wait_until("the tenant's job has run", || succeeded("acme", 0));
    wait_until("everything was looked at", || {
        !found(&state(&host, "?tenant=acme").1).is_empty()
    });
    let (_, own) = state(&host, "");
    assert_eq!(own["tenants"], serde_json::json!(["acme", "beta"]), "{own}");
    assert_eq!(own["jobs"][0]["name"], "tenant.acme", "{own}");
    let (_, acme) = state(&host, "?tenant=acme");
    assert_eq!(acme["jobs"][0]["name"], "docs", "{acme}");
    assert_eq!(found(&acme), ["aux/files/docs"], "{acme}");
    let (answer, _) = state(&host, "?tenant=nobody");
    assert!(answer.contains("400"), "{answer}");
    // A plan that is refused keeps no other from being made.
    for _ in 0..2 {
        let (answer, told) = host.get("/api/plan?tenant=nobody").unwrap();
        assert!(answer.contains("400"), "{answer}: {told}");
    }

    let metrics = |query: &str| host.get(&format!("/metrics{query}")).unwrap().1;
    assert!(metrics("?tenant=acme").contains("name=\"docs\""));
    assert!(!metrics("").contains("name=\"docs\""));

    // The trouble of one is nobody else's, and is not hidden.
    let (answer, told) = state(&host, "?tenant=beta");
    assert!(answer.contains("500"), "{answer}");
    assert!(
        told["error"].as_str().unwrap().contains("beta.toml"),
        "{told}"
    );
    wait_until("its agent has failed", || {
        host.job("tenant.beta")["last_status"] == 7
    });
    let shown = host.pitr().words("agent status").run();
    shown.expect_code(1).expect_stdout("tenant beta");
    assert!(host.status()["tenants"][1]["error"].is_string());

    // It is mended, and the agent reads all configurations again.
    crate::common::edit(&beta, &shared, &state_dir(&host, "beta"));
    agent.signal(Signal::HUP);
    wait_until("the other one runs, too", || succeeded("beta", 1));
    wait_until("the first one runs on", || succeeded("acme", 0));

    agent.ended_by(Signal::TERM).success();
    wait_until("the tenants' agents have left", || {
        let status = host.status();
        let tenants = status["tenants"].as_array().unwrap().clone();
        tenants.iter().all(|told| told["running"] == false)
    });
    wait_until("nothing of a tenant runs", || {
        processes(&host, "acme") + processes(&host, "beta") == 0
    });
}

/// The command lines of the processes that run with the configuration of a tenant, by their numbers.
fn lines(host: &Host, tenant: &str) -> Vec<(u32, String)> {
    let config = host.sandbox.join(format!("{tenant}.toml"));
    let config = config.to_str().unwrap().to_owned();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let line = |entry: std::fs::DirEntry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&words).into_owned();
        let is_its = line.split('\0').any(|word| word == config);
        let pid = entry.file_name().to_str()?.parse().ok()?;
        is_its.then_some((pid, line))
    };
    entries.filter_map(line).collect()
}

fn processes(host: &Host, tenant: &str) -> usize {
    lines(host, tenant).len()
}

/// The agents of a tenant.
fn agents(host: &Host, tenant: &str) -> Vec<u32> {
    let all = lines(host, tenant).into_iter();
    let agents = all.filter(|(_, line)| line.contains("\0agent\0--tenant"));
    agents.map(|(pid, _)| pid).collect()
}

/// A host with one tenant.
fn with_tenant() -> (Host, String) {
    let host = Host::new("[page]\n");
    let acme = tenant(&host, "acme", &state_dir(&host, "acme"));
    let table = format!("[tenants.acme]\nconfig = \"{}\"\n", acme.display());
    host.reconfigure("[page]", &format!("{table}[page]"));
    (host, table)
}

#[test]
fn j15_an_agent_that_leaves_takes_a_tenant_along_that_has_just_begun() {
    let (host, table) = with_tenant();
    let begins = host.sandbox.join("begins");
    let pause = format!("run-begins={}", begins.display());
    // Without the tenant after SIGHUP, and without any after SIGTERM.
    for signal in [Signal::HUP, Signal::TERM] {
        let agent = host.pitr().env("PITR_FAULT_PAUSE", &pause).arg("agent");
        let agent = agent.timeout(Duration::from_secs(600)).spawn();
        wait_until("the tenant's agent is about to begin", || begins.exists());
        if signal == Signal::HUP {
            host.reconfigure(&table, "");
            agent.signal(Signal::HUP);
            // It waits for a record for two seconds at most.
            std::thread::sleep(Duration::from_secs(4));
        } else {
            agent.ended_by(Signal::TERM).success();
        }
        std::fs::remove_file(&begins).unwrap();
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(4) {
            assert_eq!(processes(&host, "acme"), 0, "after {signal:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        host.reconfigure("[page]", &format!("{table}[page]"));
    }
}

#[test]
fn j15_whenever_an_agent_leaves_nothing_of_its_tenants_stays() {
    let (host, _) = with_tenant();
    let (mut began, mut round) = (0, 0);
    // A machine that is busy needs more of them until one comes to its tenant.
    while round < 16 || (began <= 3 && round < 64) {
        let agent = host.agent();
        // From before the first tick to behind the first record.
        std::thread::sleep(Duration::from_millis(150 + 100 * round));
        agent.ended_by(Signal::TERM);
        wait_until("nothing of the tenant runs", || {
            processes(&host, "acme") == 0
        });
        // One that begins late would be there now.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(processes(&host, "acme"), 0, "round {round}");
        began = host.begun("tenant.acme").len();
        round += 1;
    }
    assert!(began > 3, "the tenant's agent began {began} times");
}

#[test]
fn j15_the_agent_of_a_tenant_that_is_gone_from_the_configuration_ends_for_good() {
    let (host, table) = with_tenant();
    let agent = host.agent();
    wait_until("the tenant's agent runs", || {
        host.job("tenant.acme")["running"] == true && processes(&host, "acme") > 0
    });
    host.reconfigure(&table, "");
    agent.signal(Signal::HUP);
    wait_until("nothing of the tenant runs", || {
        processes(&host, "acme") == 0
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(processes(&host, "acme"), 0);
    // Asked to end once, it ended by itself: its record keeper was not killed.
    let folder = host.sandbox.join("state/jobs/tenant.acme");
    let names = std::fs::read_dir(&folder).unwrap().flatten();
    let names: Vec<String> = names
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let count = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
    assert_eq!((count(".begun"), count(".ended")), (1, 1), "{names:?}");
    agent.ended_by(Signal::TERM).success();
}

#[test]
fn j15_a_tenant_that_could_not_stand_alone_is_refused() {
    let host = Host::new("[page]\n");
    let acme = tenant(&host, "acme", &state_dir(&host, "acme"));
    let told = |tables: &str| {
        let text = std::fs::read_to_string(host.sandbox.join("pitr.toml")).unwrap();
        let config = host
            .sandbox
            .file("other.toml", text.replace("[page]", tables));
        let run = host.pitr_with(&config).words("agent status").run();
        run.expect_code(3).stderr
    };
    let own = host.sandbox.join("other.toml").display().to_string();
    let acme = acme.display();
    for (tables, wanted) in [
        ("[tenants.a]".to_owned(), "needs config"),
        ("[tenants.a]\nconfig = \"x.toml\"".to_owned(), "absolute"),
        (
            format!("[tenants.a]\nconfig = \"{own}\""),
            "no configuration of its own",
        ),
        (
            format!("[tenants.a]\nconfig = \"{acme}\"\n[tenants.b]\nconfig = \"{acme}\""),
            "no configuration of its own",
        ),
        (
            "[jobs.\"tenant.a\"]\nrun = \"files ls docs\"\nschedule = \"always\"".to_owned(),
            "has the name of a tenant's agent",
        ),
    ] {
        let said = told(&tables);
        assert!(said.contains(wanted), "{tables}: {said}");
    }
    // Tenants have none themselves.
    let nested = "[tenants.x]\nconfig = \"/etc/x.toml\"\n";
    crate::common::append(host.sandbox.join("acme.toml"), nested);
    let run = host
        .pitr_with(&host.sandbox.join("acme.toml"))
        .words("agent --tenant")
        .run();
    run.expect_code(3).expect_stderr("a tenant has no tenants");
}

#[test]
fn j52_the_page_starts_a_job_of_a_tenant_by_hand_and_with_its_own_configuration() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let (host, _) = with_tenant();
    let token = host.sandbox.file("token", TOKEN);
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let page = format!(
        "[page]\ntoken_file = \"{}\"\nactions = true\n",
        token.display()
    );
    host.reconfigure("[page]\n", &page);
    let acme = host.sandbox.join("acme.toml");
    let own = std::fs::read_to_string(&acme).unwrap();
    let own = own.replace("\"files ls docs\"", "\"files backup docs\"");
    let own = own.replace("\"* * * * *\"\n", "\"0 0 1 1 *\"\nclaim = true\n");
    std::fs::write(&acme, &own).unwrap();
    let agent = host.pitr().env("PITR_FILES_DOCS_SOURCE", "/nowhere");
    let agent = agent.arg("agent").timeout(Duration::from_secs(600)).spawn();
    let standing = || host.status()["tenants"][0].clone();
    wait_until("the tenant's agent runs", || {
        standing()["running"] == true && host.get("/healthz").is_some()
    });
    // Its file becomes wrong: its agent and the page go on with the one before.
    std::fs::write(&acme, own.replace("[agent]", "[agent]\nintervall = \"1s\"")).unwrap();
    let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    let head = format!("POST /api/run?tenant=acme&job=docs HTTP/1.1\r\n{head}");
    let (answer, body) = host.ask(&head, "").expect("an answer");
    assert!(answer.contains("202"), "{answer} {body}");
    let jobs = host.sandbox.join("acme/state/jobs/docs");
    let ended = || -> Option<String> {
        let entries = std::fs::read_dir(&jobs).ok()?.flatten();
        let mut paths = entries.map(|entry| entry.path());
        let path = paths.find(|path| path.extension().is_some_and(|end| end == "ended"))?;
        std::fs::read_to_string(path).ok()
    };
    wait_until("the job has ended", || ended().is_some());
    let ended = ended().unwrap();
    assert!(ended.contains("\"status\":0"), "{ended}");
    assert!(!host.sandbox.join("acme/repo/jobs").exists(), "it claimed");
    agent.ended_by(Signal::TERM).success();
}

#[test]
fn j55_a_tenant_whose_file_is_wrong_keeps_its_agent_when_the_host_reads_again() {
    let (host, _) = with_tenant();
    let acme = host.sandbox.join("acme.toml");
    let own = std::fs::read_to_string(&acme).unwrap();
    let own = own.replace("[agent]\n", "[agent]\ninterval = \"1s\"\n");
    std::fs::write(&acme, &own).unwrap();
    let agent = host.agent();
    let pid = || {
        let text = std::fs::read_to_string(host.sandbox.join("acme/state/jobs/docs/since"));
        text.ok()?;
        agents(&host, "acme").first().copied()
    };
    wait_until("the tenant's agent runs", || pid().is_some());
    let first = pid();
    // The handler of a command that has just begun is not there yet.
    std::thread::sleep(Duration::from_secs(3));
    std::fs::write(&acme, own.replace("[agent]", "[agent]\nintervall = \"1s\"")).unwrap();
    agent.signal(Signal::HUP);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(pid(), first, "it goes on");
    // A right file is read by the same agent: the job of before is gone there.
    std::fs::write(&acme, own.replace("[jobs.docs]", "[jobs.other]")).unwrap();
    agent.signal(Signal::HUP);
    let other = host.sandbox.join("acme/state/jobs/other/since");
    wait_until("the new job is known", || other.exists());
    assert_eq!(pid(), first);
    // Another directory needs another agent, which the host's starts.
    let moved = own.replace("/acme/state", "/acme/moved");
    std::fs::write(&acme, moved).unwrap();
    agent.signal(Signal::HUP);
    let lock = host.sandbox.join("acme/moved/agent.lock");
    wait_until("an agent has the new directory", || lock.exists());
    agent.ended_by(Signal::TERM).success();
}

#[test]
fn j15_a_host_that_has_only_tenants_is_well() {
    let host = Host::new("[page]\n");
    let acme = tenant(&host, "acme", &state_dir(&host, "acme"));
    let text = format!(
        "[agent]\nlisten = \"127.0.0.1:{}\"\n{}\n[tenants.acme]\nconfig = \"{}\"\n",
        host.port,
        state_dir(&host, "own"),
        acme.display()
    );
    let config = host.sandbox.file("only.toml", text);
    let agent = host.pitr_with(&config).arg("agent").spawn();
    wait_until("it has looked", || {
        host.get("/api/state")
            .is_some_and(|(_, body)| body.contains("collected"))
    });
    let (_, own) = state(&host, "");
    assert_eq!(
        own["observed"]["conditions"],
        serde_json::json!([]),
        "{own}"
    );
    assert!(own["observed"]["error"].is_null(), "{own}");
    let (head, _) = host.get("/readyz").unwrap();
    assert!(head.contains("200"), "{head}");
    agent.ended_by(Signal::TERM).success();
}
