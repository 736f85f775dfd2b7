#!/usr/bin/env python3
"""Times `pitr clone` beside `pitr restore` and a start: until the first query, and for reading everything.

usage: benches/clone.py PROGRAMS POSTGRES [--gib N] [--empty-gib N] [--s3 PROGRAM] [--encrypted] [--rounds N] [--work DIR]

PROGRAMS is the folder of pitr's release builds, POSTGRES that of the server's programs. It runs as an ordinary user who may open
/dev/fuse. `--empty-gib` adds a table of pages that were never used: files of zeros, which PostgreSQL reads as any other. `--s3` names the
release build of benches/s3server.rs: the repository lies there, and each round trip takes 20 ms. Prints a line for each round, and medians
with their ratios. The page cache is as the copy before has left it, for both.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", type=Path)
    parser.add_argument("postgres", type=Path)
    parser.add_argument("--gib", type=float, default=2.6)
    parser.add_argument("--empty-gib", type=int, default=0)
    parser.add_argument("--s3", type=Path)
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="pb-", dir=asked.work))
    try:
        Bench(asked, work).run()
    finally:
        for pid in work.glob("**/postmaster.pid"):
            subprocess.run([asked.postgres / "pg_ctl", "-D", pid.parent, "-m", "immediate", "stop"], capture_output=True)
        shutil.rmtree(work, ignore_errors=True)


class Bench:
    def __init__(self, asked, work):
        self.asked, self.work = asked, work
        self.config = work / "pitr.toml"
        self.environment = dict(os.environ)

    def pitr(self, *words):
        line = [self.asked.programs / "pitr", "--config", self.config, *words]
        return subprocess.run(line, check=True, capture_output=True, text=True, env=self.environment).stdout

    def start(self, data, port):
        options = f"-p {port} -k {self.work} -c listen_addresses="
        line = [self.asked.postgres / "pg_ctl", "-D", data, "-w", "-t", "600", "-l", self.work / f"{port}.log", "-o", options, "start"]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=self.environment)

    def stop(self, data, how="fast"):
        line = [self.asked.postgres / "pg_ctl", "-D", data, "-m", how, "-w", "-t", "600", "stop"]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)

    def sql(self, where, text):
        line = ["psql", "-X", "-q", "-A", "-t", where, "-c", text]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    def repository(self):
        """The section of the configuration; starts the object store where it is to be one."""
        where = f"url = \"file://{self.work}/repository\"\n"
        if self.asked.s3:
            authority = self.work / "authority.pem"
            line = [self.asked.s3, "--latency", "20", "--authority", authority]
            self.store = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            port = int(self.store.stdout.readline())
            where = f"url = \"s3://bucket/bench\"\nendpoint = \"https://127.0.0.1:{port}\"\nca_file = \"{authority}\"\n"
            self.environment |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret"}
        if self.asked.encrypted:
            keys = self.work / "keys"
            line = [self.asked.programs / "pitr", "repo", "keygen", "--dir", keys, "--recipient", "dba", "--recipient", "safe"]
            subprocess.run(line, check=True, capture_output=True)
            where += f"[repositories.local.encryption]\nkey_set = \"{keys}/writer.key\"\nkey_file = \"{keys}/dba.key\"\n"
        return "[repositories.local]\n" + where

    def make(self):
        data = self.work / "data"
        line = [self.asked.postgres / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        with open(data / "postgresql.conf", "a") as conf:
            # Nothing but the bench writes: what a clone replays is then the same in each round.
            conf.write("archive_mode = on\nfsync = off\nmax_wal_size = '8GB'\nwal_level = replica\nport = 5511\nautovacuum = off\n")
            archive = f"{self.asked.programs}/pitr-archive --config {self.config} %p"
            conf.write(f"archive_command = '{archive}'\nunix_socket_directories = '{self.work}'\n")
        cluster = f"[clusters.main]\npgdata = \"{data}\"\nconninfo = \"host={self.work} port=5511 user=postgres dbname=postgres\"\n"
        self.config.write_text(cluster + self.repository())
        self.pitr("init", "--quiet")
        self.start(data, 5511)
        live = f"host={self.work} port=5511 user=postgres dbname=postgres"
        rows = int(self.asked.gib * (1 << 30) / 136)
        self.sql(live, f"create unlogged table a as select g as id, md5(g::text) || md5((g*7)::text) || g as b from generate_series(1, {rows}) g")
        self.sql(live, "alter table a set logged")
        # A reader of rows without hint bits writes each page.
        self.sql(live, "vacuum (freeze) a")
        self.sql(live, "create table small as select g as id from generate_series(1, 1000) g")
        self.sql(live, "create table empty (id int)")
        empty = data / self.sql(live, "select pg_relation_filepath('empty')")
        self.sql(live, "checkpoint")
        self.stop(data)
        for number in range(self.asked.empty_gib):
            file = empty if number == 0 else empty.with_name(f"{empty.name}.{number}")
            file.touch(mode=0o600)
            os.truncate(file, 1 << 30)
        self.start(data, 5511)
        self.pitr("backup", "--quiet")
        self.sql(live, "update small set id = -id")
        mark = self.sql(live, "select pg_walfile_name(pg_switch_wal())")
        size = int(self.sql(live, "select sum(pg_database_size(oid)) from pg_database"))
        while self.sql(live, f"select last_archived_wal >= '{mark}' from pg_stat_archiver") != "t":
            time.sleep(0.1)
        self.stop(data)
        return size

    def restored(self):
        to, began = self.work / "restored", time.monotonic()
        self.pitr("restore", "--to", to, "--quiet")
        with open(to / "postgresql.auto.conf", "a") as conf:
            conf.write("fsync = off\n")
        self.start(to, 5512)
        where = f"host={self.work} port=5512 user=postgres dbname=postgres"
        while self.sql(where, "select pg_is_in_recovery()") != "f":
            time.sleep(0.02)
        assert self.sql(where, "select count(*) from small where id < 0") == "1000"
        first = time.monotonic() - began
        self.sql(where, "select count(b) from a")
        both = time.monotonic() - began
        self.stop(to, "immediate")
        shutil.rmtree(to)
        return first, both, None

    def cloned(self):
        began = time.monotonic()
        found = json.loads(self.pitr("clone", "--json", "--dir", self.work, "--bin", self.asked.postgres))
        where = found["connection"]
        assert self.sql(where, "select count(*) from small where id < 0") == "1000"
        first = time.monotonic() - began
        self.sql(where, "select count(b) from a")
        both = time.monotonic() - began
        status = Path(f"/proc/{found['pid']}/status").read_text()
        peak = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
        self.pitr("clone", "stop", found["id"], "--dir", self.work)
        return first, both, peak[0] // 1024

    def run(self):
        print(f"{self.make() / (1 << 30):.2f} GiB", flush=True)
        every = {"restore": [], "clone": []}
        for number in range(self.asked.rounds):
            for name, way in (("restore", self.restored), ("clone", self.cloned)):
                first, both, peak = way()
                every[name].append((first, both))
                memory = f", peak {peak} MiB" if peak else ""
                print(f"round {number + 1} {name:8} first query {first:7.2f} s, everything read {both:7.2f} s{memory}", flush=True)
        medians = {name: [statistics.median(v) for v in zip(*times)] for name, times in every.items()}
        for at, what in enumerate(("first query", "everything read")):
            ratio = medians["clone"][at] / medians["restore"][at]
            print(f"{what}: restore {medians['restore'][at]:.2f} s, clone {medians['clone'][at]:.2f} s, ratio {ratio:.3f}")


if __name__ == "__main__":
    os.umask(0o077)
    main()
