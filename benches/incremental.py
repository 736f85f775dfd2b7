"""The operations of benches/compare about incremental backups: each contender takes a full one, and incrementals of a database that changes.

`incremental` is what one costs after 1 % of the pages of a table were changed, `clustered` in one place or `scattered` over all of it. `delta` takes a
directory that was restored from the full backup to the state after such a change. `chain` restores a full backup, and then the last of a chain.
"""

import os
import shutil
import subprocess
import time

OPERATIONS = ("incremental", "delta", "chain")
ROWS_PER_PAGE = 61


def change(server, kind, turn):
    """Changes about 1 % of the pages of pgbench_accounts, others in each turn."""
    rows = 100_000 * max(1, round(server.size * 65))
    if kind == "clustered":
        # Half of it: as many new pages are written at the end of the table.
        count = rows // 200
        where = f"aid between {turn * count % rows} and {turn * count % rows + count}"
    else:
        where = f"aid % {100 * ROWS_PER_PAGE} = {turn * 37 % (100 * ROWS_PER_PAGE)}"
    server.sql(f"update pgbench_accounts set abalance = abalance + 1 where {where}")
    server.sql("checkpoint")
    # WAL of the change is WAL: what a backup costs begins when it is archived.
    server.sql("select pg_switch_wal()")
    status = server.data / "pg_wal/archive_status"
    limit = time.monotonic() + 60
    while any(status.glob("*.ready")):
        if time.monotonic() > limit:
            raise RuntimeError("the WAL of a change was not archived within a minute")
        time.sleep(0.02)


def set_files(server, count):
    """Has `count` files of relations that no catalog names, with one page each: a backup reads them as it reads the others."""
    accounts = server.data / server.sql("select pg_relation_filepath('pgbench_accounts')")
    for place in accounts.parent.glob("3" + 9 * "[0-9]"):
        place.unlink()
    with open(accounts, "rb") as file:
        page = file.read(8192)
    owner = accounts.stat()
    for number in range(3_000_000_000, 3_000_000_000 + count):
        place = accounts.parent / str(number)
        place.write_bytes(page)
        os.chown(place, owner.st_uid, owner.st_gid)
        place.chmod(0o600)


def empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    if os.getuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")


class Chain:
    """The backups of one contender in one round."""

    def __init__(self, contender, turn, size_of, record):
        self.contender, self.turn = contender, turn
        self.size_of, self.record = size_of, record
        self.changes = turn * 1000

    def run(self, steps):
        self.contender.reset()
        self.must("full")
        self.restore("full")
        self.increment("clustered")
        if "delta" in self.contender.spec:
            self.record("delta", "1 % clustered", self.contender, self.turn, self.contender.once(step="delta"))
        self.increment("scattered")
        for step in range(2, steps):
            self.changed(("clustered", "scattered")[step % 2])
            self.must("run")
        self.restore(f"full + {max(2, steps)}")

    def changed(self, kind):
        self.changes += 1
        change(self.contender.server, kind, self.changes)

    def must(self, step):
        result = self.contender.once(step=step)
        if result.get("failed"):
            raise RuntimeError(f"{step}: {result['failed']}")

    def increment(self, kind):
        self.changed(kind)
        before = self.size_of(self.contender.repo)
        result = self.contender.once()
        result["stored"] = self.size_of(self.contender.repo) - before
        self.record("incremental", f"1 % {kind}", self.contender, self.turn, result)
        if result.get("failed"):
            raise RuntimeError(result["failed"])

    def restore(self, kind):
        empty(self.contender.out)
        result = self.contender.once(step="restore")
        result["stored"] = self.size_of(self.contender.out)
        self.record("chain", f"restore of {kind}", self.contender, self.turn, result)


def measure(options, server, contenders, size_of, record, failures, order):
    server.start()
    try:
        server.archive_with("true")
        server.sql("alter system set autovacuum = off")
        # Hint bits that the first scan sets would be changes, too.
        server.sql("vacuum (freeze)")
        server.sql("checkpoint")
        set_files(server, options.files)
        for turn in range(options.rounds):
            for contender in order(contenders, turn):
                try:
                    Chain(contender, turn, size_of, record).run(options.chain)
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    failures[f"incremental {contender.name}"] = str(error)
                shutil.rmtree(contender.folder, ignore_errors=True)
    finally:
        set_files(server, 0)
        server.archive_with("true")
        server.sql("alter system reset autovacuum")
        server.stop()
