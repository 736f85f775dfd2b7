//! Two hosts with agents of the real program, whose jobs are a script; sinks of alerts, disks and a repository that fail for a while.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::alert::{posted, reply};
use crate::clock;
use crate::common::mount::SmallDisk;
use crate::common::{Cluster, Lock, Program, Running, Sandbox, free_port, pitr};

/// Nanoseconds of the clock of the machine, since 1970.
pub fn now_ns() -> i128 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i128::try_from(passed.as_nanos()).unwrap()
}

/// The program takes another one for itself, as after an upgrade: the script below, which is every job.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
ssize_t readlink(const char *path, char *buffer, size_t size) {
    static ssize_t (*real)(const char *, char *, size_t);
    const char *other = getenv("WEEK_PROGRAM");
    if (other && !strcmp(path, "/proc/self/exe")) {
        size_t length = strlen(other);
        memcpy(buffer, other, length < size ? length : size);
        return length < size ? length : size;
    }
    if (!real) real = (ssize_t (*)(const char *, char *, size_t))dlsym(RTLD_NEXT, "readlink");
    return real(path, buffer, size);
}
"#;

/// A job as a stub: it notes its begin and its end, and how often it was begun decides how it goes. Commands of the agent are the real ones.
const STUB: &str = r#"#!/bin/sh
for word; do [ "$word" = agent ] && exec REAL "$@"; done
host=${2##*/}; host=${host%.toml}
for job; do :; done
scheduled='?' attempt='?' before=
for word in $(tr '\0' ' ' </proc/$PPID/cmdline); do
  case $before in --scheduled) scheduled=$word ;; --attempt) attempt=$word ;; esac
  before=$word
done
if [ "$scheduled" = '?' ]; then
  # Its run was killed by now: what it prints goes to a file of that name.
  name=$(readlink /proc/$$/fd/1); name=${name##*/}; name=${name%.log}
  attempt=${name##*-} scheduled=${name%-*}
  while [ "$scheduled" != "${scheduled#0}" ]; do scheduled=${scheduled#0}; done
fi
note() { echo "$1 $host $job $scheduled $attempt $$ $(date +%s%N) $2" >>PLACE/trace; }
n=0; read -r n 2>/dev/null <PLACE/count/$host-$job
n=$((n + 1)); echo $n >PLACE/count/$host-$job
status=0 nap=0.02
case $job in
  fails) case $((n % 5)) in 1 | 2 | 4 | 0) status=3 ;; esac ;;
  flaky) status=$((n % 2 * 7)) ;;
  bad) status=$((n % 2 * 4)) ;;
  shared) [ $((n % 5)) != 3 ] || status=5 ;;
  night) [ $n != 2 ] || status=6 ;;
  limit) [ $((n % 2)) != 1 ] || nap=60 ;;
  long) nap=LONG ;;
  receiver) nap=2 ;;
esac
note begin
trap 'note end 143; exit 143' TERM
sleep $nap & wait $!
note end $status
exit $status
"#;

/// The answer of a sink to everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Takes,
    Refuses,
    Hangs,
}

/// A notice that a sink took.
#[derive(Debug, Clone)]
pub struct Heard {
    pub at: i128,
    /// The host and the sink, such as `one/a`.
    pub sink: String,
    pub event: String,
    pub id: String,
}

/// The sinks of both hosts: one server.
pub struct Sinks {
    port: u16,
    mood: Arc<Mutex<Mood>>,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// Notices that were not taken.
    refused: Arc<Mutex<usize>>,
}

impl Sinks {
    fn start() -> Sinks {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sinks = Sinks {
            port: listener.local_addr().unwrap().port(),
            mood: Arc::new(Mutex::new(Mood::Takes)),
            heard: Arc::default(),
            refused: Arc::default(),
        };
        let (mood, heard) = (Arc::clone(&sinks.mood), Arc::clone(&sinks.heard));
        let refused = Arc::clone(&sinks.refused);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mood, heard) = (Arc::clone(&mood), Arc::clone(&heard));
                let refused = Arc::clone(&refused);
                std::thread::spawn(move || take(stream.unwrap(), &mood, &heard, &refused));
            }
        });
        sinks
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub fn refused(&self) -> usize {
        *self.refused.lock().unwrap()
    }

    /// The first sink of the first host changes.
    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

fn take(
    stream: TcpStream,
    mood: &Mutex<Mood>,
    heard: &Mutex<Vec<Heard>>,
    refused: &Mutex<usize>,
) -> Option<()> {
    let (path, body) = posted(&stream)?;
    let sink = path.trim_matches('/').to_owned();
    let mood = match sink.as_str() {
        "one/a" => *mood.lock().unwrap(),
        _ => Mood::Takes,
    };
    if mood != Mood::Takes {
        *refused.lock().unwrap() += 1;
    }
    match mood {
        Mood::Takes => {
            let body: serde_json::Value = serde_json::from_slice(&body).ok()?;
            heard.lock().unwrap().push(Heard {
                at: now_ns(),
                sink,
                event: body["event"].as_str()?.to_owned(),
                id: body["id"].as_str()?.to_owned(),
            });
            reply(stream, 200)
        }
        Mood::Refuses => reply(stream, 503),
        Mood::Hangs => {
            std::thread::sleep(Duration::from_secs(20));
            None
        }
    }
}

/// Everything that a simulated week needs.
pub struct Stage {
    pub sandbox: Sandbox,
    pub sinks: Sinks,
    pub disk: SmallDisk,
    shim: PathBuf,
    clock: (u64, i128, u32),
    ports: [(u16, Lock); 2],
    cluster: Cluster,
}

pub const HOSTS: [&str; 2] = ["one", "two"];

impl Stage {
    /// From `start` on, `factor` seconds pass in each. `jobs` are the sections of each host.
    pub fn new(start: u64, factor: u32, jobs: [String; 2]) -> Stage {
        let sandbox = Sandbox::new("week");
        let cluster = Cluster::builder(17).without_fsync().create();
        let disk = SmallDisk::new(48, 8000);
        let sinks = Sinks::start();
        sandbox.dir("count");
        sandbox.file("trace", "");
        // Two and a half hours of the simulated clock.
        let stub = STUB
            .replace("REAL", &pitr().shell())
            .replace("PLACE", sandbox.path().to_str().unwrap())
            .replace("LONG", &format!("{:.2}", 9000.0 / f64::from(factor)));
        let stub = sandbox.file("stub", stub);
        std::fs::set_permissions(&stub, PermissionsExt::from_mode(0o755)).unwrap();
        let shim = clock::preloaded(&sandbox, SHIM);
        let ports = [(); 2].map(|()| free_port());
        let origin = now_ns() / 1_000_000_000;
        let stage = Stage {
            clock: (start, origin, factor),
            sandbox,
            sinks,
            disk,
            shim,
            ports,
            cluster,
        };
        for (host, jobs) in HOSTS.iter().zip(jobs) {
            let port = stage.port(host);
            let hook = |sink: &str| {
                let url = format!("http://127.0.0.1:{}/{host}/{sink}", stage.sinks.port);
                format!("[alerts.{sink}]\nkind = \"webhook\"\nurl = \"{url}\"\n")
            };
            let text = format!(
                "[clusters.main]\npgdata = \"{}\"\n[repositories.local]\nurl = \"file://{}\"\n[agent]\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"{}\"\ninterval = \"10m\"\n{}{}{jobs}",
                stage.cluster.pgdata().display(),
                stage.sandbox.join("repo").display(),
                stage.state(host).display(),
                hook("a"),
                hook("b"),
            );
            stage.sandbox.file(format!("{host}.toml"), text);
        }
        stage.pitr("one").words("init --quiet").succeed();
        stage
    }

    pub fn state(&self, host: &str) -> PathBuf {
        match host {
            "one" => self.disk.path().join("state"),
            _ => self.sandbox.join("state"),
        }
    }

    /// Nanoseconds of the simulated clock.
    pub fn simulated(&self, at: i128) -> i128 {
        let (start, origin, factor) = self.clock;
        i128::from(start) * 1_000_000_000 + (at - origin * 1_000_000_000) * i128::from(factor)
    }

    /// The moment of the machine at which the simulated clock shows these nanoseconds.
    pub fn real(&self, simulated: i128) -> i128 {
        let (start, origin, factor) = self.clock;
        origin * 1_000_000_000
            + (simulated - i128::from(start) * 1_000_000_000) / i128::from(factor)
    }

    pub fn pitr(&self, host: &str) -> Program {
        let (start, origin, factor) = self.clock;
        pitr()
            .arg("--config")
            .arg(self.sandbox.join(format!("{host}.toml")))
            .env("XDG_CACHE_HOME", self.sandbox.dir("cache"))
            .env("PITR_FAULT_CLOCK", format!("{start},{origin},{factor}"))
            .env("PITR_FAULT_SECONDS", "3")
            .env("LD_PRELOAD", &self.shim)
            .env("WEEK_PROGRAM", self.sandbox.join("stub"))
    }

    pub fn agent(&self, host: &str) -> Running {
        let patience = Duration::from_secs(3600);
        self.pitr(host).arg("agent").timeout(patience).spawn()
    }

    fn port(&self, host: &str) -> u16 {
        self.ports[usize::from(host == "two")].0
    }

    /// The body of an answer, and whether its status is 200.
    pub fn get(&self, host: &str, path: &str) -> Option<(bool, String)> {
        let port = self.port(host);
        let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n");
        let (head, body) = crate::agent::answer(port, &ask, "")?;
        Some((head.lines().next()?.contains("200"), body))
    }

    /// Everything of a host that runs is gone at once, as when its power fails.
    pub fn cut(&self, host: &str) -> usize {
        let config = self.sandbox.join(format!("{host}.toml"));
        let config = config.to_str().unwrap();
        let mut killed = 0;
        // A process may be starting another one.
        for _ in 0..2 {
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let name = entry.file_name();
                let pid = name
                    .to_str()
                    .and_then(|n| n.parse().ok())
                    .and_then(Pid::from_raw);
                let Some(pid) = pid else { continue };
                let mut words = words.split(|b| *b == 0);
                if words.any(|word| word == config.as_bytes()) {
                    let _ = kill_process(pid, Signal::KILL);
                    // The command of a job leads its group.
                    let _ = kill_process_group(pid, Signal::KILL);
                    killed += 1;
                }
            }
        }
        killed
    }

    /// Nothing more can be written below `state_dir` of the first host, until [`Stage::make_room`].
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.disk.path().join("filler")).unwrap();
        let block = vec![1_u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.disk.path().join("filler")).unwrap();
    }

    pub fn take_repository_away(&self, is_away: bool) {
        let (here, away) = (self.sandbox.join("repo"), self.sandbox.join("away"));
        let (from, to) = if is_away { (here, away) } else { (away, here) };
        std::fs::rename(from, to).unwrap();
    }

    pub fn trace(&self) -> String {
        std::fs::read_to_string(self.sandbox.join("trace")).unwrap()
    }
}

/// The modification of a file, in nanoseconds since 1970.
pub fn modified(path: &Path) -> Option<i128> {
    let modified = std::fs::metadata(path).ok()?.modified().ok()?;
    let passed = modified.duration_since(UNIX_EPOCH).ok()?;
    i128::try_from(passed.as_nanos()).ok()
}
