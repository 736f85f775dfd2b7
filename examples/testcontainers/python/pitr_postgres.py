"""PostgreSQL that archives into a repository of its own, from the image `pitr-postgres`. Copy this file into your tests."""

import time

from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

READY = LogMessageWaitStrategy("database system is ready to accept connections").with_poll_interval(0.1)


class PitrPostgres(DockerContainer):
    def __init__(self, image="pitr-postgres"):
        super().__init__(image)
        self.with_exposed_ports(5432).with_env("POSTGRES_PASSWORD", "secret").waiting_for(READY)
        self.with_env("PITR_REPOSITORY", "file:///var/lib/pitr/repository")

    def url(self):
        return f"postgresql://postgres:secret@{self.get_container_host_ip()}:{self.get_exposed_port(5432)}/postgres"

    def run(self, *command):
        """Runs a command in the container and returns what it printed."""
        status, output = self.exec(list(command))
        assert status == 0, f"{command} ended with {status}: {output.decode()}"
        return output.decode().strip()

    def sql(self, statement):
        return self.run("psql", "-XAtc", statement)

    def just_before(self, moment):
        """A second server with the data of just before `moment`, a time of the server's clock. The first one goes on."""
        last = self.sql("select pg_walfile_name(pg_switch_wal())")
        while self.sql("select coalesce(max(last_archived_wal), '') from pg_stat_archiver") < last:
            time.sleep(0.05)
        copy = PitrPostgres(self.image).with_kwargs(volumes_from=[self.get_wrapped_container().id])
        copy.with_env("PGDATA", "/var/lib/postgresql/copy").with_env("PITR_RESTORE", "1")
        return copy.with_env("PITR_TARGET_TIME", str(moment)).with_env("PITR_TARGET_EXCLUSIVE", "1")
