//! The setup of an operator beside a cluster: a configuration file and a repository, by `pitr init`.

use std::path::{Path, PathBuf};

use pitr::config::Encryption;
use pitr::repo::event::{self, Event};
use pitr::repo::layout::ClusterLayout;
use pitr::repo::repository::Repository;
use pitr::store::file::FileStore;

use super::cluster::Cluster;
use super::program::{Program, pitr, pitr_archive, pitr_restore};
use super::sandbox::Sandbox;

/// A repository and a configuration file for one cluster, called `main`. Removed when dropped.
pub struct Site {
    repository: PathBuf,
    config: PathBuf,
    sandbox: Sandbox,
}

impl Site {
    /// Runs `pitr init` for a cluster, which may run or not.
    pub fn new(cluster: &Cluster) -> Site {
        let sandbox = match cluster.is_on_disk() {
            true => Sandbox::on_disk("site"),
            false => Sandbox::new("site"),
        };
        let repository = sandbox.join("repo");
        Site::at(cluster, sandbox, repository)
    }

    /// As [`Site::new`], with the repository in `folder`, say on a filesystem of its own.
    pub fn on(cluster: &Cluster, folder: &Path) -> Site {
        Site::at(cluster, Sandbox::new("site"), folder.to_owned())
    }

    fn at(cluster: &Cluster, sandbox: Sandbox, repository: PathBuf) -> Site {
        let config = sandbox.join("pitr.toml");
        pitr()
            .args(["init", "--quiet", "--pgdata"])
            .arg(cluster.pgdata())
            .args(["--conninfo", &cluster.conninfo("postgres")])
            .arg("--config")
            .arg(&config)
            .arg("--repository")
            .arg(&repository)
            .succeed();
        Site {
            repository,
            config,
            sandbox,
        }
    }

    /// A running cluster of the major that archives into a new site: 1 MiB segments, nothing synced by the server.
    pub fn with_cluster(major: u32) -> (Site, Cluster) {
        Site::with_cluster_of(Cluster::small(major))
    }

    /// Starts the described cluster with archiving into a new site.
    pub fn with_cluster_of(builder: super::cluster::Builder) -> (Site, Cluster) {
        let mut cluster = builder.create();
        let site = Site::new(&cluster);
        site.attach(&cluster);
        cluster.start();
        (site, cluster)
    }

    /// Adds a repository, a folder of this name, to the configuration, with `more` lines in its section. Returns the folder.
    pub fn add_repository(&self, name: &str, more: &str) -> PathBuf {
        let folder = self.sandbox.join(name);
        let url = format!("url = \"file://{}\"", folder.display());
        self.add(&format!("\n[repositories.{name}]\n{url}\n{more}"));
        self.pitr().args(["init", "--quiet"]).succeed();
        folder
    }

    /// Adds text to the end of the configuration.
    pub fn add(&self, text: &str) {
        append(&self.config, text);
    }

    /// Replaces a text of the configuration, which is there.
    pub fn edit(&self, from: &str, to: &str) {
        edit(&self.config, from, to);
    }

    /// Adds lines to the section of the cluster.
    pub fn add_to_cluster(&self, lines: &str) {
        let section = "[clusters.main]\n";
        self.edit(section, &format!("{section}{lines}"));
    }

    /// Lets commands keep state, and returns where.
    pub fn keep_state(&self) -> PathBuf {
        let state = self.sandbox.dir("state");
        keep_state(&self.config, &state);
        state
    }

    /// Lets pitr connect by `conninfo`.
    pub fn connect_by(&self, conninfo: &str) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let lines: Vec<String> = text
            .lines()
            .map(|line| match line.starts_with("conninfo") {
                true => format!("conninfo = \"{conninfo}\""),
                false => line.to_owned(),
            })
            .collect();
        std::fs::write(&self.config, lines.join("\n")).unwrap();
    }

    /// Takes a backup, and returns its id.
    pub fn backup(&self) -> String {
        let run = self.pitr().args(["backup", "--json"]).run();
        run.success().id()
    }

    /// Lets a cluster that is not running archive into this site.
    pub fn attach(&self, cluster: &Cluster) {
        cluster.append_config("archive_mode", "on");
        cluster.append_config("archive_command", &self.archive().arg("%p").shell());
    }

    /// Returns the repository's folder.
    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// Returns the configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Returns the folder around configuration and (unless placed elsewhere) repository.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// `pitr --config …`.
    pub fn pitr(&self) -> Program {
        pitr().arg("--config").arg(&self.config)
    }

    /// `pitr-archive --config …`, to which the path is added.
    pub fn archive(&self) -> Program {
        pitr_archive().arg("--config").arg(&self.config)
    }

    /// `pitr-restore --config …`, to which name and path are added.
    pub fn restore(&self) -> Program {
        pitr_restore().arg("--config").arg(&self.config)
    }

    /// Returns the system identifier of the cluster in the repository.
    pub fn system_identifier(&self) -> u64 {
        let folder = self.cluster_folder();
        let name = folder.file_name().unwrap().to_str().unwrap();
        name.parse().unwrap()
    }

    /// Returns the folder of the cluster's objects, `clusters/main/<system identifier>`.
    pub fn cluster_folder(&self) -> PathBuf {
        let folder = self.repository.join("clusters/main");
        let mut found: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert_eq!(
            found.len(),
            1,
            "one system identifier in {}",
            folder.display()
        );
        found.remove(0)
    }

    /// Returns the path of the object of a WAL file.
    pub fn object(&self, name: &str) -> PathBuf {
        let folder = self.cluster_folder().join("wal").join(&name[..8]);
        match name.split_once('.') {
            None => folder.join(&name[8..16]).join(name),
            Some((_, "history")) => folder.join("history"),
            Some((segment, "partial")) => folder.join("partial").join(segment),
            Some(_) => folder.join("labels").join(name),
        }
    }

    /// Returns every file in the repository, relative and sorted. Folders may go while they are listed.
    pub fn files(&self) -> Vec<String> {
        files_below(&self.repository)
    }
}

/// Adds text to the end of a file, say of a configuration.
pub fn append(file: impl AsRef<Path>, text: &str) {
    let before = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, before + text).unwrap();
}

/// Replaces a text of a file, wherever it stands in it. It has to be there.
pub fn edit(file: impl AsRef<Path>, from: &str, to: &str) {
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from} is not in: {text}");
    std::fs::write(&file, text.replace(from, to)).unwrap();
}

/// Lets the commands of a configuration keep state, and count, in this folder.
pub fn keep_state(config: &Path, state: &Path) {
    let section = format!("\n[agent]\nstate_dir = \"{}\"\n", state.display());
    append(config, &section);
}

/// The paths of every file below a folder.
pub fn paths_below(root: &Path) -> Vec<PathBuf> {
    let names = files_below(root).into_iter();
    names.map(|name| root.join(name)).collect()
}

/// Pins a backup of a repository; the event's name.
pub fn pin(repository: &Path, encryption: Option<&Encryption>, backup: &str) -> String {
    let store = FileStore::open(repository, 7).unwrap();
    let repository = Repository::open_with(Box::new(store), encryption).unwrap();
    let registration = repository.registrations("main").unwrap().remove(0);
    let layout = ClusterLayout::new("main", registration.system_identifier).unwrap();
    let pin = Event {
        event: "pin".into(),
        subject: backup.into(),
        reason: Some("the year's end".into()),
        ..Event::default()
    };
    event::record(repository.store(), &layout, &pin, 7).unwrap()
}

/// Every file below a folder, relative to it and sorted. Folders may go while they are listed.
pub fn files_below(root: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
        let entries = match std::fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && folder != root => return,
            entries => entries.unwrap(),
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                // The reserve of room is neither content nor a leftover.
                if !name.starts_with(".tmp.reserve.") {
                    found.push(name.to_owned());
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

/// A site, and a cluster that was stopped with some whole segments in its pg_wal that nobody has archived.
pub struct Still {
    /// Site in which they would be archived.
    pub site: Site,
    /// The cluster, stopped.
    pub cluster: Cluster,
    /// The names of the segments, in order.
    pub segments: Vec<String>,
}

impl Still {
    /// Writes `count` segments of `megabytes` MiB and stops the server in the middle of the next one.
    pub fn new(major: u32, megabytes: u32, count: usize) -> Still {
        let mut cluster = Cluster::builder(major)
            .segment_size_mb(megabytes)
            .without_fsync()
            .start();
        let client = cluster.client();
        client.sql("create table ledger (id int primary key, note text)");
        let segments = (0..count)
            .map(|n| {
                client.sql(&format!(
                    "insert into ledger select g, md5(g::text) from generate_series({0}, {0} + 499) g",
                    n * 500
                ));
                client.sql("select pg_create_restore_point('mark')");
                client.value("select pg_walfile_name(pg_switch_wal())")
            })
            .collect();
        client.sql("insert into ledger select g, 'last' from generate_series(100000, 100050) g");
        drop(client);
        // A clean stop would write a checkpoint and recycle them.
        cluster.stop(super::cluster::Stop::Immediate);
        Still {
            site: Site::new(&cluster),
            cluster,
            segments,
        }
    }

    /// Returns the path of a file in pg_wal.
    pub fn wal(&self, name: &str) -> PathBuf {
        self.cluster.pgdata().join("pg_wal").join(name)
    }

    /// `pitr-archive pg_wal/NAME` as the archiver runs it: in the data directory.
    pub fn push(&self, name: &str) -> Program {
        self.site
            .archive()
            .arg(format!("pg_wal/{name}"))
            .dir(self.cluster.pgdata())
    }

    /// `pitr-restore NAME pg_wal/RECOVERYXLOG` as recovery runs it.
    pub fn fetch(&self, name: &str) -> Program {
        self.site
            .restore()
            .args([name, "pg_wal/RECOVERYXLOG"])
            .dir(self.cluster.pgdata())
    }

    /// Fetches a file and returns its bytes.
    pub fn fetched(&self, name: &str) -> Vec<u8> {
        self.fetch(name).succeed();
        let path = self.wal("RECOVERYXLOG");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        bytes
    }

    /// Fails unless the archive gives back exactly what lies in pg_wal.
    pub fn check(&self, name: &str) {
        let same = self.fetched(name) == std::fs::read(self.wal(name)).unwrap();
        assert!(same, "\"{name}\" comes back with other bytes");
    }

    /// Fails unless the first segment was fetched, and takes it away.
    pub fn check_first(&self) {
        let fetched = self.wal("RECOVERYXLOG");
        let own = self.wal(&self.segments[0]);
        assert!(std::fs::read(&fetched).unwrap() == std::fs::read(own).unwrap());
        std::fs::remove_file(fetched).unwrap();
    }

    /// Archives all segments.
    pub fn push_all(&self) {
        for name in &self.segments {
            self.push(name).succeed();
        }
    }

    /// Removes everything archived, so that the next push is the first again.
    pub fn forget(&self) {
        let folder = self.site.cluster_folder();
        for name in ["wal", "conflicts"] {
            let _ = std::fs::remove_dir_all(folder.join(name));
        }
    }
}
