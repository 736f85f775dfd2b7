//! PostgreSQL that archives into a repository of its own, from the image `pitr-postgres`. Copy this file into your tests.

use std::thread::sleep;
use std::time::Duration;

use testcontainers::core::{ExecCommand, IntoContainerPort, WaitFor};
use testcontainers::runners::SyncRunner;
use testcontainers::{Container, ContainerRequest, GenericImage, ImageExt};

pub struct PitrPostgres(Container<GenericImage>);

impl PitrPostgres {
    pub fn start() -> Self {
        Self(image().start().expect("the container starts"))
    }

    pub fn url(&self) -> String {
        let host = self.0.get_host().expect("the container has a host");
        let port = self.0.get_host_port_ipv4(5432).expect("the port is published");
        format!("postgresql://postgres:secret@{host}:{port}/postgres")
    }

    /// Runs a command in the container and returns what it printed.
    pub fn run(&self, command: &[&str]) -> String {
        let mut result = self.0.exec(ExecCommand::new(command.iter().copied())).expect("the command starts");
        let output = String::from_utf8(result.stdout_to_vec().expect("its output")).expect("text");
        let errors = String::from_utf8(result.stderr_to_vec().expect("its errors")).expect("text");
        assert_eq!(result.exit_code().expect("its status"), Some(0), "{command:?}: {errors}");
        output.trim().to_owned()
    }

    pub fn sql(&self, statement: &str) -> String {
        self.run(&["psql", "-XAtc", statement])
    }

    /// Starts a second server with the data of just before `moment`, a time of the server's clock. The first one goes on.
    pub fn just_before(&self, moment: &str) -> Self {
        let last = self.sql("select pg_walfile_name(pg_switch_wal())");
        while self.sql("select coalesce(max(last_archived_wal), '') from pg_stat_archiver") < last {
            sleep(Duration::from_millis(50));
        }
        let origin = self.0.id().to_owned();
        let copy = image()
            .with_env_var("PGDATA", "/var/lib/postgresql/copy")
            .with_env_var("PITR_RESTORE", "1")
            .with_env_var("PITR_TARGET_TIME", moment)
            .with_env_var("PITR_TARGET_EXCLUSIVE", "1")
            .with_host_config_modifier(move |host| host.volumes_from = Some(vec![origin.clone()]));
        Self(copy.start().expect("the copy starts"))
    }
}

fn image() -> ContainerRequest<GenericImage> {
    GenericImage::new("pitr-postgres", "latest")
        .with_exposed_port(5432.tcp())
        .with_wait_for(WaitFor::message_on_stderr("database system is ready to accept connections"))
        .with_env_var("POSTGRES_PASSWORD", "secret")
        .with_env_var("PITR_REPOSITORY", "file:///var/lib/pitr/repository")
}
