#!/usr/bin/env python3
"""Times how `pitr find --kind delete,update` decodes WAL beside `pg_waldump --quiet`, on one processor.

usage: benches/find.py PROGRAMS POSTGRES [--segments N] [--rounds N] [--work DIR]

PROGRAMS is the folder of pitr's release builds, POSTGRES that of the server's programs. It runs as an ordinary user. The WAL is that of
updates and deletions of pgbench's accounts, 50 rows a transaction. `pg_waldump` reads the raw segments; `pitr` reads the archived ones, unpacks them and checks their hashes. Both decode
the same segments: `pitr` begins at the checkpoint before the oldest transaction of the window. Prints the time of each round for one segment of 16 MiB, and medians with their ratio:
processor time, and wall-clock time.
"""
import argparse
import json
import os
import resource
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
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--keep", action="store_true", help="leave the folder, for a profile")
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="pf-", dir=asked.work))
    try:
        Bench(asked, work).run()
    finally:
        for pid in work.glob("**/postmaster.pid"):
            subprocess.run([asked.postgres / "pg_ctl", "-D", pid.parent, "-m", "immediate", "stop"], capture_output=True)
        if asked.keep:
            print(work)
        else:
            shutil.rmtree(work, ignore_errors=True)


def timed(line, **options):
    """The processor time and the wall-clock time of a command in seconds, and its output."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    out = subprocess.run(line, check=True, capture_output=True, text=True, **options).stdout
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, took, out


class Bench:
    def __init__(self, asked, work):
        self.asked, self.work = asked, work
        self.config, self.data = work / "pitr.toml", work / "data"

    def program(self, name, *words):
        return [self.asked.postgres / name, *words]

    def pitr(self, *words):
        return ["taskset", "--cpu-list", "0", self.asked.programs / "pitr", "--config", self.config, *words]

    def sql(self, text):
        line = ["psql", "-X", "-q", "-A", "-t", f"host={self.work} port=5521 user=postgres dbname=postgres", "-c", text]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    def make(self):
        """Fills segments; returns the first and the last of those in which the clients' updates lie."""
        silent = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(self.program("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync"), **silent)
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write("archive_mode = on\nfsync = off\nsynchronous_commit = off\nmax_wal_size = '16GB'\ncheckpoint_timeout = '1h'\nport = 5521\n")
            conf.write("wal_keep_size = '8GB'\nautovacuum = off\n")
            archive = f"{self.asked.programs}/pitr-archive --config {self.config} %p"
            conf.write(f"archive_command = '{archive}'\nunix_socket_directories = '{self.work}'\n")
        self.config.write_text(
            f"[clusters.main]\npgdata = \"{self.data}\"\nconninfo = \"host={self.work} port=5521 user=postgres dbname=postgres\"\n"
            f"[repositories.local]\nurl = \"file://{self.work}/repository\"\n"
        )
        subprocess.run([self.asked.programs / "pitr", "--config", self.config, "init", "--quiet"], **silent)
        subprocess.run(self.program("pg_ctl", "-D", self.data, "-w", "-l", self.work / "log", "start"), **silent)
        bench = self.program("pgbench", "-h", self.work, "-p", "5521", "-U", "postgres")
        subprocess.run([*bench, "-i", "-q", "-s", "20", "postgres"], **silent)
        subprocess.run([self.asked.programs / "pitr", "--config", self.config, "backup", "--quiet"], **silent)
        script = self.work / "script"
        script.write_text(
            "\\set aid random(1, 1999900)\n"
            "update pgbench_accounts set abalance = abalance + 1 where aid between :aid and :aid + 44;\n"
            "delete from pgbench_accounts where aid between :aid + 45 and :aid + 49;\n"
        )
        bench += ["-n", "-f", script, "-c", "2", "-t"]
        # Images of pages are over after the first updates.
        subprocess.run([*bench, "40000", "postgres"], **silent)
        first = self.sql("select pg_walfile_name(pg_switch_wal() + 16777216)")
        since = self.sql("select clock_timestamp()")
        written = "select (pg_current_wal_lsn() - '0/0') / 16777216"
        begin = float(self.sql(written))
        while float(self.sql(written)) - begin < self.asked.segments:
            subprocess.run([*bench, "10000", "postgres"], **silent)
        last = self.sql("select pg_walfile_name(pg_switch_wal())")
        until = self.sql("select clock_timestamp()")
        while self.sql(f"select last_archived_wal >= '{last}' from pg_stat_archiver") != "t":
            time.sleep(0.1)
        subprocess.run(self.program("pg_ctl", "-D", self.data, "-m", "immediate", "stop"), **silent)
        return first, last, since, until

    def run(self):
        first, last, since, until = self.make()
        find = self.pitr("find", "--quiet", "--kind", "delete,update", "--since", since, "--until", until)
        count = json.loads(timed([*find, "--json"])[2])["decoded_count"]
        # Segments of the first 4 GB of WAL on timeline 1: their names count through.
        begin = f"{int(last, 16) - count + 1:024X}"
        dump = ["taskset", "--cpu-list", "0", *self.program("pg_waldump", "--quiet", "--path", self.data / "pg_wal", begin, last)]
        print(f"{count} segments from {begin}, the window begins in {first}", flush=True)
        timed(find), timed(dump)
        every = {"pg_waldump": [], "pitr find": []}
        for number in range(self.asked.rounds):
            for name, line in (("pg_waldump", dump), ("pitr find", find)):
                cpu, took, _ = timed(line)
                every[name].append((cpu * 1000 / count, took * 1000 / count))
                print(f"round {number + 1} {name:10} {every[name][-1][0]:7.2f} ms of processor time, {every[name][-1][1]:7.2f} ms", flush=True)
        medians = {name: [statistics.median(v) for v in zip(*times)] for name, times in every.items()}
        for at, what in enumerate(("processor time", "wall clock")):
            dumped, found = medians["pg_waldump"][at], medians["pitr find"][at]
            print(f"{what}: pg_waldump {dumped:.2f} ms, pitr find {found:.2f} ms a segment, speed {dumped / found:.2f} of pg_waldump's")


if __name__ == "__main__":
    os.umask(0o077)
    main()
