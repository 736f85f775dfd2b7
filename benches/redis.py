#!/usr/bin/env python3
"""Times the receiver of Redis: rate of the stream, cost for the server beside an ordinary replica, delay of its journal, and a restore.

usage: benches/redis.py PROGRAMS REDIS POSTGRES [--only stream,load,delay,restore] [--rounds N] [--gib N] [--work DIR]

PROGRAMS is the folder of pitr's release builds, REDIS that of redis-server, redis-benchmark and redis-check-aof, POSTGRES that of initdb: a
repository is made for a cluster. It runs as an ordinary user.

stream   The receiver is away while the server writes N GiB into its backlog. It comes back: bytes a second until the server has its
         acknowledgement of the last one, and processor time. Values of 1 KiB, and of 32 bytes. Beside it, the rate at which this disk
         takes plain writes with a sync each 8 MiB.
load     redis-benchmark alone, with an ordinary replica, and with the receiver, in turn: requests a second, in units of those alone.
delay    A client sets a key and waits with WAIT until the receiver has it in its synced journal, while another one writes 10 MB a second.
restore  A backup of N GiB and as much log behind it: `pitr redis restore`, and how long redis-server takes to load what it wrote.
"""
import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

PORT = 7391


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=Path)
    parser.add_argument("redis", type=Path)
    parser.add_argument("postgres", type=Path)
    parser.add_argument("--only", default="stream,load,delay,restore")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    asked = parser.parse_args()
    for what in asked.only.split(","):
        work = Path(tempfile.mkdtemp(prefix="pr-", dir=asked.work))
        bench = Bench(asked, work)
        try:
            getattr(bench, what)()
        finally:
            bench.end()
            shutil.rmtree(work, ignore_errors=True)


class Client:
    """A connection that speaks just enough."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    @staticmethod
    def packed(*words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)

    def ask(self, *words):
        self.socket.sendall(self.packed(*words))
        return self.answer()

    def answer(self):
        line = self.file.readline().rstrip()
        if line[:1] == b"$" and line != b"$-1":
            return self.file.read(int(line[1:]) + 2)[:-2]
        if line[:1] == b"-":
            raise RuntimeError(line.decode())
        return line[1:]

    def info(self, section):
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def until(what, seconds=300):
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise RuntimeError("it did not come within %d s" % seconds)
        time.sleep(0.005)


class Bench:
    def __init__(self, asked, work):
        self.asked, self.work = asked, work
        self.children = []
        data = work / "postgres"
        silent = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([asked.postgres / "initdb", "-D", data, "-A", "trust", "--no-sync"], **silent)
        self.config = work / "pitr.toml"
        self.config.write_text(
            f"[clusters.main]\npgdata = \"{data}\"\n[repositories.local]\nurl = \"file://{work}/repository\"\n"
            f"[redis.cache]\naddress = \"127.0.0.1:{PORT}\"\n[redis.cache.receive]\njournal = \"{work}/journal\"\n"
        )
        (work / "journal").mkdir(mode=0o700)
        self.pitr("init", "--quiet")

    def line(self, *words):
        return [self.asked.programs / "pitr", "--config", self.config, *words]

    def pitr(self, *words):
        environment = os.environ | {"PATH": f"{self.asked.redis}:/usr/bin:/bin"}
        return subprocess.run(self.line(*words), check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout

    def begin(self, name, line):
        child = subprocess.Popen(line, stdout=open(self.work / f"{name}.log", "ab"), stderr=subprocess.STDOUT)
        self.children.append(child)
        return child

    def stop(self, child):
        child.send_signal(signal.SIGTERM)
        child.wait(60)
        self.children.remove(child)

    def end(self):
        for child in self.children:
            child.kill()
            child.wait()

    def server(self, port=PORT, *options):
        """A server without persistence, and a connection to it once it has loaded what there is."""
        folder = self.work / f"redis-{port}"
        folder.mkdir(exist_ok=True)
        line = [self.asked.redis / "redis-server", "--port", str(port), "--dir", folder, "--save", "", "--appendonly", "no"]
        child = self.begin(f"redis-{port}", [*line, *map(str, options)])
        return child, self.connected(port)

    def connected(self, port):
        end = time.monotonic() + 60
        while True:
            try:
                return Client(port)
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)

    def receiver(self, client):
        child = self.begin("receiver", self.line("redis", "receive", "cache"))
        until(lambda: "state=online" in client.info("replication").get("slave0", ""))
        return child

    def benchmark(self, size, count, *more):
        """Requests a second."""
        line = [self.asked.redis / "redis-benchmark", "-p", PORT, "-t", "set", "-d", size, "-n", count, "-r", 200000, "-P", 16, "-c", 50, "--csv", *more]
        out = subprocess.run([*map(str, line)], check=True, capture_output=True, text=True).stdout
        return float(out.splitlines()[-1].split(",")[1].strip('"'))

    def disk(self):
        """Bytes a second of plain writes, synced each 8 MiB."""
        piece, began = os.urandom(1 << 20), time.monotonic()
        with open(self.work / "plain", "wb", buffering=0) as file:
            for number in range(1, 1025):
                file.write(piece)
                if number % 8 == 0:
                    os.fdatasync(file.fileno())
        rate = (1 << 30) / (time.monotonic() - began)
        (self.work / "plain").unlink()
        return rate

    def stream(self):
        # A server drops a replica whose answers lie behind this limit; all that was written comes at once here.
        _, client = self.server(PORT, "--repl-backlog-size", "6gb", "--client-output-buffer-limit", "replica 0 0 0")
        print(f"stream: this disk takes {self.disk() / 1e6:.0f} MB/s of plain writes with syncs", flush=True)
        for size in (1024, 32):
            child = self.receiver(client)
            self.stop(child)
            before = int(client.info("replication")["master_repl_offset"])
            self.benchmark(size, int(self.asked.gib * (1 << 30) / (size + 45)))
            offset = int(client.info("replication")["master_repl_offset"])
            began = time.monotonic()
            child = self.begin("receiver", self.line("redis", "receive", "cache"))

            def has_all():
                replica = client.info("replication").get("slave0", "")
                fields = dict(f.split("=") for f in replica.split(",") if "=" in f)
                return int(fields.get("offset", 0)) >= offset

            until(has_all)
            took, cpu = time.monotonic() - began, cpu_seconds(child.pid)
            count = offset - before
            print(
                f"stream: values of {size:4} bytes: {count / took / 1e6:6.0f} MB/s received, synced and acknowledged, {cpu / count * 1e9:5.2f} s of processor time a GB,"
                f" {peak_mib(child.pid):.0f} MiB",
                flush=True,
            )
            self.stop(child)

    def load(self):
        _, client = self.server(PORT, "--repl-backlog-size", "64mb")
        rates = {"alone": [], "replica": [], "receiver": []}
        self.benchmark(64, 500000)
        for number in range(self.asked.rounds):
            for name, all_rates in rates.items():
                child = None
                if name == "replica":
                    child, replica = self.server(PORT + 1, "--replicaof", "127.0.0.1", PORT, "--repl-diskless-load", "on-empty-db")
                    until(lambda: replica.info("replication")["master_link_status"] == "up")
                if name == "receiver":
                    child = self.receiver(client)
                all_rates.append(self.benchmark(64, 1500000))
                if child:
                    self.stop(child)
                print(f"load: round {number + 1} {name:8} {all_rates[-1]:9.0f} requests/s", flush=True)
        alone = rates.pop("alone")
        for name, all_rates in rates.items():
            ratio = statistics.median(rate / own for rate, own in zip(all_rates, alone))
            print(f"load: with a {name}: {ratio:.3f} of the requests alone")
        ratio = statistics.median(a / b for a, b in zip(rates["receiver"], rates["replica"]))
        print(f"load: receiver in units of a replica: {ratio:.3f}")

    def delay(self):
        _, client = self.server(PORT, "--repl-backlog-size", "64mb")
        child = self.receiver(client)
        until(lambda: client.ask("SET", "a", "1") and client.ask("WAIT", 1, 1000) == b"1")
        is_over = threading.Event()

        def write():
            other, value, number = self.connected(PORT), b"v" * 1000, 0
            next_at = time.monotonic()
            while not is_over.is_set():
                other.socket.sendall(b"".join(other.packed("SET", f"k{number + i}", value) for i in range(100)))
                for _ in range(100):
                    other.answer()
                number = (number + 100) % 100000
                next_at += 0.01
                time.sleep(max(0, next_at - time.monotonic()))

        thread = threading.Thread(target=write)
        thread.start()
        times = []
        try:
            for number in range(3000):
                client.ask("SET", "own", number)
                began = time.monotonic()
                if client.ask("WAIT", 1, 5000) != b"1":
                    raise RuntimeError("WAIT gave up")
                times.append((time.monotonic() - began) * 1000)
                time.sleep(0.003)
        finally:
            is_over.set()
            thread.join()
        times.sort()
        syncs = []
        with open(self.work / "plain", "wb", buffering=0) as file:
            for _ in range(500):
                file.write(b"x" * 65536)
                began = time.monotonic()
                os.fdatasync(file.fileno())
                syncs.append((time.monotonic() - began) * 1000)
        syncs.sort()
        print(
            f"delay: WAIT takes {times[1500]:.1f} ms, {times[2970]:.1f} ms at the 99th percentile, {times[-1]:.1f} ms at most;"
            f" a plain write and sync of 64 KiB takes {syncs[250]:.1f} ms, {syncs[495]:.1f} ms"
        )
        self.stop(child)

    def restore(self):
        child, client = self.server(PORT, "--repl-backlog-size", "64mb", "--client-output-buffer-limit", "replica 0 0 0")
        count = int(self.asked.gib * (1 << 30) / 1100)
        self.benchmark(1024, count, "-r", str(count))
        receiver = self.receiver(client)
        began = time.monotonic()
        self.pitr("redis", "backup", "cache", "--quiet")
        print(f"restore: backup in {time.monotonic() - began:.1f} s, {int(client.info('memory')['used_memory']) / (1 << 30):.2f} GiB of memory", flush=True)
        self.benchmark(1024, count, "-r", str(count))
        # WAIT counts what its own connection wrote.
        client.ask("SET", "last", 1)
        until(lambda: client.ask("WAIT", 1, 1000) == b"1")
        keys = client.ask("DBSIZE")
        self.stop(receiver)
        self.stop(child)
        ratios = []
        for number in range(self.asked.rounds):
            to = self.work / "restored"
            began = time.monotonic()
            self.pitr("redis", "restore", "cache", "--to", to, "--latest", "--quiet")
            restored = time.monotonic() - began
            size = sum(f.stat().st_size for f in to.rglob("*") if f.is_file())
            began = time.monotonic()
            line = [self.asked.redis / "redis-server", to / "redis.conf", "--port", str(PORT)]
            child = self.begin("restored", line)
            client = self.connected(PORT)
            until(lambda: client.info("persistence")["loading"] == "0")
            loaded = time.monotonic() - began
            if client.ask("DBSIZE") != keys:
                raise RuntimeError("not all keys came back")
            child.kill()
            child.wait()
            self.children.remove(child)
            shutil.rmtree(to)
            ratios.append(loaded / restored)
            print(f"restore: round {number + 1}: {size / (1 << 30):.2f} GiB restored in {restored:.2f} s, loaded in {loaded:.2f} s: {ratios[-1]:.2f} of the rate of loading", flush=True)
        print(f"restore: median {statistics.median(ratios):.2f} of the rate of loading")


if __name__ == "__main__":
    os.umask(0o077)
    main()
