"""The stream operation of benches/compare: receivers on one live server, interleaved.

Three kinds: `synchronous` (transactions per second while commits wait for the receiver), `bulk` (a load, until its last segment is complete in
the receiver's store) and `commit` (seconds from a commit until the repository can give it back; only for contenders that say where to look).
"""

import json
import pathlib
import re
import shutil
import statistics
import subprocess
import time

MiB = 1 << 20
SLOT = "compare"
PATIENCE_S = 300


def until(what, done):
    end = time.monotonic() + PATIENCE_S
    while not (value := done()):
        if time.monotonic() > end:
            raise RuntimeError(f"waited in vain until {what}")
        time.sleep(0.005)
    return value


class Running:
    """A receiver at work, under `measure`."""

    def __init__(self, contender, measuring):
        contender.reset()
        contender.server.sql(f"select pg_create_physical_replication_slot('{SLOT}', true)")
        self.contender = contender
        self.server = contender.server
        self.cost = pathlib.Path(measuring).with_name("cost")
        self.cost.unlink(missing_ok=True)
        contender.out.mkdir(parents=True, exist_ok=True)
        self.said = open(contender.folder / "said", "w+b")
        command = [measuring, self.cost, *contender.command(contender.spec["run"])]
        self.process = subprocess.Popen(command, env=contender.environment, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, cwd="/")
        until("the receiver streams", self.streams)

    def streams(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the receiver ended: {self.output()}")
        return self.server.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "1"

    def output(self):
        self.said.seek(0)
        return self.said.read().decode(errors="replace")[-2000:]

    def stop(self):
        """Ends it in order; returns what it cost."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            subprocess.run(["kill", f"-{self.contender.spec.get('stop', 'TERM')}", child], check=False)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            for child in children:
                subprocess.run(["kill", "-9", child], check=False)
            self.process.wait()
        cost = json.loads(self.cost.read_text())
        status = cost.pop("status")
        if status != 0:
            cost["failed"] = f"status {status}: {self.output()}"
        until("the slot is free", lambda: self.server.sql("select count(*) from pg_stat_replication") == "0")
        self.server.sql(f"select pg_drop_replication_slot('{SLOT}')")
        self.said.close()
        return cost


def setting(server, name, value):
    server.sql(f"alter system set {name} = '{value}'")
    server.sql("select pg_reload_conf()")


def synchronous(running, seconds):
    server = running.server
    setting(server, "synchronous_standby_names", "*")
    try:
        until("it is the synchronous standby", lambda: server.sql("select count(*) from pg_stat_replication where sync_state = 'sync'") == "1")
        command = [server.tools / "pgbench", "-h", server.socket, "-p", server.port, "-U", "postgres", "-n", "-c", "8", "-j", "2", "-M", "prepared", "-T", seconds, "postgres"]
        said = subprocess.check_output([str(c) for c in command], text=True, stderr=subprocess.STDOUT)
    finally:
        setting(server, "synchronous_standby_names", "")
    return {"tps": float(re.search(r"^tps = ([0-9.]+)", said, re.MULTILINE).group(1))}


def bulk(running, megabytes):
    server = running.server
    before = server.sql("select pg_current_wal_lsn()")
    began = time.monotonic()
    # 112 bytes of WAL for a row of 83.
    rows = megabytes * MiB // 112
    server.sql(f"create table compare_bulk as select g, md5(g::text) as a, md5((g * 7)::text) as b from generate_series(1, {rows}) g")
    last = server.sql("select pg_walfile_name(pg_switch_wal())")
    pattern = running.contender.fill(running.contender.spec["segment"], name=last)
    anchor, rest = pattern.split("//", 1)
    until(f"{last} is complete", lambda: next(pathlib.Path(anchor).glob(rest), None))
    wall = time.monotonic() - began
    bytes_ = int(server.sql(f"select pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')"))
    server.sql("drop table compare_bulk")
    return {"load": wall, "rate": bytes_ / wall}


def position(lsn):
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


def readable(contender):
    """Behind the last byte of which the repository has an increment."""
    anchor, rest = contender.fill(contender.spec["increments"]).split("//", 1)
    return max((int(file.name.split("-")[1], 16) for file in pathlib.Path(anchor).glob(rest) if not file.name.startswith(".")), default=0)


def commit(running, samples):
    server, times = running.server, []
    server.sql("create table compare_commit (at timestamptz)")
    for turn in range(samples):
        time.sleep(0.2 + 0.13 * (turn % 7))
        began = time.monotonic()
        # The time of starting psql counts against the receiver.
        lsn = position(server.sql("insert into compare_commit values (now()); select pg_current_wal_lsn()"))
        until("the commit is readable", lambda: readable(running.contender) >= lsn)
        times.append(time.monotonic() - began)
    server.sql("drop table compare_commit")
    return {"seconds": statistics.median(times), "most": max(times)}


def measure(options, server, contenders, measuring, results, failures, order):
    """Fills `results` with what each contender did in each round of the kinds that it takes part in."""
    kinds = {"synchronous": lambda r: synchronous(r, options.seconds), "bulk": lambda r: bulk(r, options.bulk), "commit": lambda r: commit(r, 20)}
    server.start()
    try:
        server.archive_with("true")
        for kind, run in kinds.items():
            those = [c for c in contenders if kind in c.spec["kinds"]]
            for turn in range(options.rounds if those else 0):
                for contender in order(those, turn):
                    server.sql("checkpoint")
                    one(kind, run, turn, contender, measuring, results, failures)
    finally:
        server.stop()


def one(kind, run, turn, contender, measuring, results, failures):
    running = None
    try:
        running = Running(contender, measuring)
        found = run(running)
        cost, running = running.stop(), None
        if cost.get("failed"):
            failures.setdefault(f"stream {contender.name}", cost["failed"])
            return
        results.setdefault(("stream", kind), {}).setdefault(contender.name, []).append(cost | found | {"unit": turn})
        shutil.rmtree(contender.folder, ignore_errors=True)
    except (RuntimeError, OSError, subprocess.CalledProcessError, AttributeError) as error:
        failures.setdefault(f"stream {contender.name}", str(error))
    finally:
        if running is not None:
            running.stop()


COLUMNS = {
    "synchronous": (("tps", "TPS"), ("cpu", "CPU")),
    "bulk": (("load", "time"), ("cpu", "CPU"), ("written", "written")),
    "commit": (("cpu", "CPU"),),
}


def table(kind, measured, ratio):
    """The lines of one kind's table."""
    first = next(iter(measured.values()))
    columns = COLUMNS[kind]
    median = lambda field: statistics.median(s[field] for s in first)
    unit = {"synchronous": lambda: f"{median('tps'):.0f} TPS", "bulk": lambda: f"{median('load'):.1f} s, {median('rate') / MiB:.0f} MiB/s", "commit": lambda: f"{median('seconds'):.2f} s"}
    lines = [f"\nstream, {kind}: {len(first)} rounds; 1 = {next(iter(measured))} = {unit[kind]()}, {median('cpu'):.2f} s CPU\n"]
    more = ["median s", "most s"] if kind == "commit" else []
    head = [""] + [title for _, title in columns] + more + ["peak MiB"]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, samples in measured.items():
        cells = [name] + [ratio(samples, first, field) for field, _ in columns]
        if kind == "commit":
            cells += [f"{statistics.median(s['seconds'] for s in samples):.2f}", f"{max(s['most'] for s in samples):.2f}"]
        lines.append("| " + " | ".join(cells + [f"{max(s['rss'] for s in samples) / MiB:.0f}"]) + " |")
    return lines
