"""The operations drain, call, start and replay of benches/compare: WAL on its way into a repository and back, on a live server.

`drain`: a server has many segments ready; its own archiver runs until the last is marked as done. `call`: what one call of archive_command
takes once the contender has shipped the segment on its own. `start`: what a program takes that has next to nothing to do. `replay`: a server
recovers through the WAL that `drain` put away.
"""

import json
import os
import pathlib
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import time
import urllib.request

from streaming import setting

OPERATIONS = ("drain", "call", "start", "replay")
MiB = 1 << 20
PATIENCE_S = 300
TICK = os.sysconf("SC_CLK_TCK")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def until(what, done, patience=PATIENCE_S, pause=0.02):
    end = time.monotonic() + patience
    while not (value := done()):
        if time.monotonic() > end:
            raise RuntimeError(f"waited in vain until {what}")
        time.sleep(pause)
    return value


class ObjectStore:
    """benches/s3server.rs, the same for everybody."""

    def __init__(self, work, latency):
        say = subprocess.run(["cargo", "build", "--quiet", "--bench", "s3server", "--message-format=json"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = [json.loads(line).get("executable") for line in say.splitlines() if '"s3server"' in line]
        self.authority = work / "authority.pem"
        self.authority.unlink(missing_ok=True)
        self.process = subprocess.Popen([next(f for f in found if f), "--latency", str(latency), "--authority", self.authority], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.authority.chmod(0o644)
        self.context = ssl.create_default_context(cafile=self.authority)

    def ask(self, method, path):
        request = urllib.request.Request(f"https://127.0.0.1:{self.port}{path}", method=method)
        with urllib.request.urlopen(request, context=self.context) as answer:
            return answer.read().decode()

    def counts(self):
        return json.loads(self.ask("GET", "/.counts"))

    def keys(self):
        return self.ask("GET", "/.keys").splitlines()

    def reset(self):
        """Empties the store. What a call of the contender before has left at work may still put something there: until nothing comes for a second."""
        while True:
            self.ask("POST", "/.reset")
            time.sleep(1)
            if not self.keys():
                return

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


class Tree:
    """A program, and everything that it starts and leaves behind."""

    def __init__(self, command, environment, folder, log):
        self.log = log
        with open(log, "ab") as out:
            self.process = subprocess.Popen([str(c) for c in command], env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def members(self):
        found, left = [], [self.process.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            try:
                left += map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            except OSError:
                pass
        return found

    def cpu(self):
        """Processor seconds so far, of those that have ended, too."""
        ticks = 0
        for pid in self.members():
            try:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
            except OSError:
                continue
            ticks += sum(map(int, fields[11:15]))
        return ticks / TICK

    def memory(self):
        """Bytes of memory of all but the server itself."""
        pages = 0
        for pid in self.members()[1:]:
            try:
                name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
                if name not in ("postgres", "sh"):
                    pages += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
        return pages * os.sysconf("SC_PAGE_SIZE")

    def running(self):
        return self.process.poll() is None

    def end(self, how=signal.SIGTERM):
        """Ends them all, the oldest first, and waits."""
        for pid in self.members()[1:]:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + 10
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in self.members()[1:] if self.running() else []:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(timeout=60)


def quiet(trees, patience=20):
    """Waits until nobody works any more; returns the processor seconds of all."""
    end = time.monotonic() + patience
    last, since = None, time.monotonic()
    while time.monotonic() < end:
        total = sum(tree.cpu() for tree in trees)
        if last is None or total > last + 0.011:
            last, since = total, time.monotonic()
        if time.monotonic() - since > 0.4:
            return total
        time.sleep(0.05)
    return total


class Shipping:
    """A server whose WAL is all there and waits to be archived, and the state of its files from before that WAL."""

    def __init__(self, server, work, ready, replay):
        self.server, self.ready, self.replay = server, ready, replay
        self.folder = server.folder = work / f"shipping-{ready}-{replay:g}"
        server.data, server.socket, server.archive = (self.folder / name for name in ("data", "socket", "wal"))
        self.base = self.folder / "base"
        self.status = server.data / "pg_wal/archive_status"

    def make(self):
        server = self.server
        if not (self.folder / "complete").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            say(f"making {self.ready} segments of WAL")
            server.create("archive_command = ''\nwal_keep_size = 100GB\nmax_wal_size = 100GB\ncheckpoint_timeout = 1d\nautovacuum = off\nwal_recycle = off")
            server.start()
            server.stop()
            subprocess.run(["cp", "-a", server.data, self.base], check=True)
            server.start()
            try:
                self.load()
                server.sql("checkpoint")
            finally:
                server.stop()
            (self.folder / "complete").touch()
        first = (self.folder / "first").read_text()
        here = sorted(f.name for f in (server.data / "pg_wal").iterdir() if len(f.name) == 24)
        self.names = [name for name in here if name > first]
        self.end = (self.folder / "end").read_text()
        self.replayed = [name for name in here if name <= (self.folder / "last").read_text()]

    def load(self):
        """Two thirds of what is to be replayed from bulk loading, the rest from updates and small transactions; then more updates."""
        server = self.server
        setting(server, "fsync", "off")
        (self.folder / "first").write_text(server.sql("select pg_walfile_name(pg_switch_wal())"))
        start = server.sql("select pg_current_wal_lsn()")
        written = lambda: int(server.sql(f"select pg_wal_lsn_diff(pg_current_wal_lsn(), '{start}')")) / 1e9
        server.pgbench("-i", "-q", "-s", "10")
        n = 0
        while written() < 2 / 3 * self.replay:
            n += 1
            server.sql(f"create table bulk{n} as select g, md5(g::text) as a, md5((g * 7)::text) as b from generate_series(1, 500000) g")
        server.pgbench("-c", "4", "-j", "2", "-t", "4000", "-M", "prepared")
        update = lambda: server.sql("update pgbench_accounts set abalance = abalance + 1 where (aid * 7919::bigint) % 10 = 0")
        while written() < self.replay:
            update()
        (self.folder / "end").write_text(server.sql("select pg_current_wal_lsn()"))
        (self.folder / "last").write_text(server.sql("select pg_walfile_name(pg_switch_wal())"))
        while len(list((self.server.data / "pg_wal").glob("[0-9A-F]*"))) < self.ready + 3:
            update()
        server.sql("select pg_switch_wal()")
        setting(server, "fsync", "on")

    def mark(self, names):
        """These are ready, and nothing else is there to be archived."""
        for file in self.status.iterdir():
            file.unlink()
        for name in names:
            file = self.status / f"{name}.ready"
            file.touch()
            if os.getuid() == 0:
                shutil.chown(file, "nobody", "nogroup")

    def undone(self, names):
        done = {entry.name[:24] for entry in os.scandir(self.status) if entry.name.endswith(".done")}
        return [name for name in names if name not in done]

    def serve(self, contender, shepherd):
        """Starts the server below a shepherd."""
        command = self.server.as_user([shepherd, self.server.programs / "postgres", "-D", self.server.data])
        tree = Tree(command, contender.environment, "/", self.folder / "log")
        until("the server is there", lambda: not tree.running() or self.answers(), pause=0.1)
        if not tree.running():
            raise RuntimeError(f"the server did not start, see {self.folder}/log")
        return tree

    def answers(self):
        # Recovery from the end of the run before may take a moment.
        command = [self.server.tools / "psql", "-XAtq", "-h", self.server.socket, "-p", str(self.server.port), "-U", "postgres", "-c", "select 1", "postgres"]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def end_server(self, tree):
        # At once, because an orderly end begins another segment.
        pid = int((self.server.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        until("the server has ended", lambda: not (self.server.data / "postmaster.pid").exists(), pause=0.05)
        tree.end()


def say(text):
    print(f"compare: {text}", file=sys.stderr, flush=True)


def daemon(contender, shepherd):
    """The contender's own process that runs all the time, if it has one."""
    if "daemon" not in contender.spec:
        return []
    command = contender.server.as_user([shepherd, *contender.command(contender.spec["daemon"])])
    log = pathlib.Path(contender.words["conf"]) / "daemon.log"
    tree = Tree(command, contender.environment, "/", log)
    awaited = pathlib.Path(contender.fill(contender.spec["awaits"]))
    awaited.unlink(missing_ok=True)
    until(f"{awaited} is there", lambda: not tree.running() or awaited.exists())
    if not tree.running():
        raise RuntimeError(log.read_text(errors="replace")[-2000:])
    return [tree]


def held(contender, names, store):
    """Which of the segments the contender's repository holds."""
    keys = store.keys() if contender.spec["store"] == "s3" else [str(p) for p in contender.repo.rglob("*") if not p.name.endswith((".tmp", ".pgbackrest.tmp"))]
    words = {word[:24] for key in keys if f"/{contender.slug}/" in key for word in key.split("/")}
    return [name for name in names if name in words]


def drain(contender, shipping, store, shepherd, names):
    """One contender archives everything that waits."""
    count = len(names)
    shipping.mark([])
    server, trees = shipping.server, []
    server_tree = shipping.serve(contender, shepherd)
    trees.append(server_tree)
    try:
        contender.prepare()
        trees += daemon(contender, shepherd)
        shipping.mark(names)
        os.sync()
        quiet(trees)
        requests, before, peak = counted(contender, store), sum(tree.cpu() for tree in trees), 0
        began = time.monotonic()
        server.archive_with(contender.fill(contender.spec["archive_command"]))
        while shipping.undone(names):
            peak = max(peak, sum(tree.memory() for tree in trees))
            time.sleep(0.02)
            if time.monotonic() - began > PATIENCE_S:
                raise RuntimeError(f"{len(shipping.undone(names))} of {count} segments still wait")
        wall = time.monotonic() - began
        cpu = quiet(trees) - before
        lacks = [] if contender.spec.get("empty") else sorted(set(names) - set(held(contender, names, store)))
        if lacks:
            return {"failed": f"marked as done, but not in the repository: {lacks[:3]} and {len(lacks)} in all"}
        requests = {m: n - requests.get(m, 0) for m, n in counted(contender, store).items()}
        return {"wall": wall / count, "cpu": cpu / count, "rss": peak, "rate": count / wall, "requests": requests, "count": count}
    finally:
        server.archive_with("")
        for tree in trees[1:]:
            tree.end()
        shipping.end_server(server_tree)


def counted(contender, store):
    return store.counts() if contender.spec["store"] == "s3" else {}


def call(contender, shipping, store, tools, count):
    """What single calls take, of segments that the contender has put away before it was asked."""
    names = shipping.names[: 3 * count + 8]
    shipping.mark([])
    server_tree = shipping.serve(contender, tools["shepherd"])
    trees, results, asked = [], [], 0
    try:
        contender.prepare()
        trees = daemon(contender, tools["shepherd"])
        shipping.mark(names)
        for name in names:
            is_ahead = asked > 0 and wait_held(contender, name, store)
            result = measured(contender, server_command(contender, name), tools["measure"])
            asked += 1
            if result["status"] != 0:
                return {"failed": f"status {result['status']}: {result['said']}"}
            for end in (".ready", ".done"):
                (shipping.status / f"{name}{end}").unlink(missing_ok=True)
            if is_ahead:
                results.append(result)
            if len(results) == count or (asked > 8 and not results):
                break
        if not results:
            return {"absent": "puts nothing away before it is asked to"}
        return middle(results)
    finally:
        for tree in trees:
            tree.end()
        shipping.end_server(server_tree)


def server_command(contender, name):
    """As the archiver's shell runs it, without the shell."""
    wal = contender.server.data / "pg_wal" / name
    return contender.fill(contender.spec["archive_command"]).replace("%p", str(wal)).replace("%f", name).split()


def wait_held(contender, name, store):
    try:
        until("it is there", lambda: held(contender, [name], store), patience=1.5, pause=0.05)
    except RuntimeError:
        return False
    time.sleep(0.15)
    return True


def measured(contender, command, measuring):
    """What one command costs, run as the server's user."""
    cost = contender.conf / "cost"
    with open(contender.folder / "output", "w+b") as output:
        subprocess.run([str(c) for c in contender.server.as_user([measuring, cost, *command])], env=contender.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", check=True)
        output.seek(0)
        return json.loads(cost.read_text()) | {"said": output.read().decode(errors="replace")[-2000:]}


def middle(results):
    value = lambda field: statistics.median(r[field] for r in results)
    return {"wall": value("wall"), "cpu": value("cpu"), "least": min(r["wall"] for r in results), "rss": max(r["rss"] for r in results), "count": len(results)}


def start(contender, shipping, tools, count):
    server = shipping.server
    server.start()
    try:
        contender.prepare()
    finally:
        server.stop("immediate")
    command = contender.command(contender.spec["run"])
    results = [measured(contender, command, tools["measure"]) for _ in range(count)]
    for result in results:
        if result["status"] != contender.spec.get("status", 0):
            return {"failed": f"status {result['status']}: {result['said']}"}
    program = pathlib.Path(shutil.which(command[0])).resolve()
    return middle(results) | {"size": program.stat().st_size}


def replay(contender, shipping, shepherd):
    """A server goes through the WAL; the time from its start until it says that it has come to the end."""
    data = shipping.folder / "replay"
    shutil.rmtree(data, ignore_errors=True)
    subprocess.run(["cp", "-a", shipping.base, data], check=True)
    command = contender.spec.get("restore_command")
    if command is None:
        for name in shipping.replayed:
            (data / "pg_wal" / name).unlink(missing_ok=True)
            os.link(shipping.server.data / "pg_wal" / name, data / "pg_wal" / name)
    with open(data / "postgresql.auto.conf", "a") as conf:
        conf.write(f"recovery_target_lsn = '{shipping.end}'\nrecovery_target_action = 'shutdown'\nlog_line_prefix = '%n '\nhot_standby = off\n")
        if command is not None:
            conf.write(f"restore_command = '{contender.fill(command, replay=data)}'\n")
    # As a standby it needs no command to start.
    (data / ("standby.signal" if command is None else "recovery.signal")).touch()
    log = shipping.folder / "replay.log"
    log.write_text("")
    trees = daemon(contender, shepherd)
    os.sync()
    quiet(trees)
    before, began = sum(tree.cpu() for tree in trees), time.time()
    tree = Tree(contender.server.as_user([shepherd, contender.server.programs / "postgres", "-D", data]), contender.environment, "/", log)
    trees.append(tree)
    peak = 0
    try:
        while tree.running() and not stopped(log):
            peak = max(peak, sum(tree.memory() for tree in trees))
            time.sleep(0.05)
            if time.time() - began > PATIENCE_S:
                break
        cpu = sum(tree.cpu() for tree in trees) - before
    finally:
        for tree in trees:
            tree.end(signal.SIGQUIT)
    end = stopped(log)
    shutil.rmtree(data, ignore_errors=True)
    if end is None:
        return {"failed": log.read_text(errors="replace")[-1500:]}
    return {"wall": end - began, "cpu": cpu, "rss": peak}


def stopped(log):
    """When recovery came to its target."""
    for line in log.read_text(errors="replace").splitlines():
        if "recovery stopping after WAL location" in line:
            return float(line.split()[0])
    return None


def measure(options, shipping, settings, make, bin_, results, failures, missing, order):
    """Fills `results` with what each contender did in each round."""
    tools = {tool: bin_ / tool for tool in ("shepherd", "measure")}
    store = None
    try:
        if "s3" in options.stores and set(options.only) & {"drain", "call", "replay"}:
            store = ObjectStore(options.work, options.latency)
        for kind in options.stores:
            those = {op: chosen(op, kind, options, settings, make, store, missing) for op in ("drain", "call", "replay") if op in options.only}
            rounds(options, shipping, store, tools, those, kind, results, failures, missing, order)
        if "start" in options.only:
            for contender in chosen("start", None, options, settings, make, store, missing):
                attempt("start", "", contender, 0, results, failures, missing, lambda c: start(c, shipping, tools, 40))
    finally:
        if store is not None:
            store.stop()


def chosen(operation, kind, options, settings, make, store, missing):
    """Who takes part. A call is asked of everybody who ships something without being asked."""
    found = []
    for spec in settings[operation]:
        if kind not in spec.get("stores", [None]):
            continue
        contender = make(operation, dict(spec, store=kind))
        source = next((s for s in settings["drain"] if s["name"] == spec.get("of")), None)
        contender.source = make("replay", dict(source, store=kind)) if source else None
        for one in filter(None, (contender, contender.source)):
            if store is not None:
                one.words |= {"s3port": store.port, "authority": store.authority}
        if found and options.with_ is not None and not any(w.lower() in spec["name"].lower() for w in options.with_):
            continue
        needy = next((one for one in (contender, contender.source) if one and one.missing()), None)
        if needy:
            missing.append(f"{operation}: {spec['name']} ({needy.fill(needy.spec['needs'])} is not there)")
            continue
        found.append(contender)
    return found


def rounds(options, shipping, store, tools, those, kind, results, failures, missing, order):
    shepherd = tools["shepherd"]
    for turn in range(options.rounds):
        for contender in order(those.get("drain", []), turn):
            names = shipping.names[: contender.spec.get("count", options.ready)]
            attempt("drain", kind, contender, turn, results, failures, missing, lambda c: drain(c, shipping, store, shepherd, names), store)
        for contender in order(those.get("call", []), turn):
            attempt("call", kind, contender, turn, results, failures, missing, lambda c: call(c, shipping, store, tools, 12), store)
    if those.get("replay"):
        replays(options, shipping, store, shepherd, those["replay"], kind, results, failures, order)


def attempt(operation, kind, contender, turn, results, failures, missing, work, store=None):
    """One run, with nothing in the repository before."""
    say(f"{operation} {kind} {contender.name}")
    try:
        contender.reset(prepare=False)
        hand_over(contender)
        if store is not None:
            store.reset()
        result = work(contender)
        if result.get("absent"):
            missing.append(f"{operation}, {kind}: {contender.name} ({result['absent']})")
        else:
            add(operation, kind, contender, turn, result, results, failures)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        failures.setdefault(f"{operation} {kind} {contender.name}", str(error))
    if operation != "start":
        shutil.rmtree(contender.folder, ignore_errors=True)


def hand_over(contender):
    """Everything of the contender belongs to the server's user."""
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "nobody:nogroup", contender.folder], check=True)


def add(operation, kind, contender, turn, result, results, failures):
    if result.get("failed"):
        failures.setdefault(f"{operation} {kind} {contender.name}", result["failed"])
    else:
        results.setdefault((operation, kind), {}).setdefault(contender.name, []).append(result | {"unit": turn})


def replays(options, shipping, store, shepherd, contenders, kind, results, failures, order):
    if store is not None:
        store.reset()
    ready = []
    for contender in contenders:
        source = contender.source
        if source is not None:
            say(f"replay {kind} {contender.name}: putting the WAL away")
            try:
                source.reset(prepare=False)
                hand_over(source)
                put = drain(source, shipping, store, shepherd, shipping.replayed)
                if put.get("failed"):
                    raise RuntimeError(put["failed"])
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                failures[f"replay {kind} {contender.name}"] = str(error)
                continue
            contender.words |= {word: source.words[word] for word in ("repo", "conf", "compress", "slug", "async")}
            contender.environment = source.environment
        ready.append(contender)
    for turn in range(options.rounds):
        for contender in order([c for c in ready if turn < c.spec.get("rounds", options.rounds)], turn):
            say(f"replay {kind} {contender.name}")
            for what in ("spool", "cache"):
                shutil.rmtree(pathlib.Path(contender.words["conf"]) / what, ignore_errors=True)
            add("replay", kind, contender, turn, replay(contender, shipping, shepherd), results, failures)
    for contender in contenders:
        if contender.source is not None:
            shutil.rmtree(contender.source.folder, ignore_errors=True)


COLUMNS = {
    "drain": ("segments/s", "in units of the first", "CPU ms per segment", "in units", "peak MiB", "requests per segment"),
    "call": ("ms", "least", "CPU ms", "peak MiB"),
    "start": ("ms", "least", "CPU ms", "peak MiB", "program MB"),
    "replay": ("s", "speed in units of the first", "CPU s", "in units", "peak MiB"),
}


def table(operation, kind, measured, settings, ratio):
    """The lines of one table. Units are of the first that is measured, as the median over rounds."""
    first = next(iter(measured.values()))
    title = {"local": ", a local repository", "s3": ", an object store"}.get(kind, "")
    lines = [f"\n{operation}{title}: {len(first)} rounds\n", "| | " + " | ".join(COLUMNS[operation]) + " |", "|---" * (len(COLUMNS[operation]) + 1) + "|"]
    for name, samples in measured.items():
        value = lambda field: statistics.median(s[field] for s in samples)
        peak = f"{max(s['rss'] for s in samples) / MiB:.0f}"
        cells = {
            "drain": lambda: [f"{value('rate'):.1f}", speed(samples, first), f"{value('cpu') * 1000:.1f}", ratio(samples, first, "cpu"), peak, requests(samples)],
            "call": lambda: [f"{value('wall') * 1000:.1f}", f"{min(s['least'] for s in samples) * 1000:.1f}", f"{value('cpu') * 1000:.1f}", peak],
            "start": lambda: [f"{value('wall') * 1000:.2f}", f"{value('least') * 1000:.2f}", f"{value('cpu') * 1000:.2f}", peak, f"{value('size') / 1e6:.2f}"],
            "replay": lambda: [f"{value('wall'):.1f}", speed(samples, first), f"{value('cpu'):.1f}", ratio(samples, first, "cpu"), peak],
        }[operation]()
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for spec in settings[operation]:
        name, other = spec["name"], spec.get("against")
        if other in measured and name in measured:
            wall, cpu = (ratio(measured[name], measured[other], field) for field in ("wall", "cpu"))
            lines.append(f"\n{name} in units of {other}: time {wall}, CPU {cpu}")
    return lines


def speed(samples, units):
    """How many times as fast, and the same of the best of each."""
    by_unit = {u["unit"]: u["wall"] for u in units}
    values = [by_unit[s["unit"]] / s["wall"] for s in samples if s["unit"] in by_unit]
    best = min(u["wall"] for u in units) / min(s["wall"] for s in samples)
    return f"{statistics.median(values):.2f} ({best:.2f})" if values else "—"


def requests(samples):
    """Of each method, for each segment, of the last round."""
    last = samples[-1]
    return ", ".join(f"{method} {n / last['count']:.2f}" for method, n in sorted(last["requests"].items()) if n) or "—"
