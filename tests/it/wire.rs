//! The connection to a server: TLS, authentication, password file, refusals.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pitr::error::{Code, Error};
use pitr::pg::label::BackupLabel;
use pitr::pg::lsn::Lsn;
use pitr::pg::manifest::{FileChecksum, ManifestEnd, ManifestReader};
use pitr::pg::timeline::TimelineId;
use pitr::progress::Collector;
use pitr::wire::basebackup::{
    BackupEnd, BackupEvent, BackupStart, BaseBackup, BaseBackupOptions, StartCheckpoint,
};
use pitr::wire::client::{Client, Session};
use pitr::wire::conninfo::{ConnInfo, Environment};
use pitr::wire::server_error::sqlstate;
use pitr::wire::tar::TarKind;

use crate::common::authority::{Authority, LATER};
use crate::common::replay::Recording;
use crate::common::{Cluster, Sandbox, Stop};
use crate::per_major;

const HBA: &str = "\
local   all         postgres                 trust
local   replication postgres                 trust
local   all         all                      scram-sha-256
local   replication all                      scram-sha-256
hostssl all         bound      127.0.0.1/32  scram-sha-256
hostssl replication bound      127.0.0.1/32  scram-sha-256
hostnossl replication plain    127.0.0.1/32  scram-sha-256
host    replication noright    127.0.0.1/32  scram-sha-256
host    replication oldstyle   127.0.0.1/32  md5
hostssl replication clear      127.0.0.1/32  password
hostnossl replication clear    127.0.0.1/32  password
";

const ROLES: &str = "\
set password_encryption = 'scram-sha-256';
create role bound login replication password 'pa ss:w\\ord';
create role plain login replication password 'secret';
create role noright login password 'secret';
create role nobody_lets_in login replication password 'secret';
set password_encryption = 'md5';
create role oldstyle login replication password 'secret';
create role clear login replication password 'secret';
";

struct Certificates {
    authority: String,
    other_authority: String,
    certificate: String,
    key: String,
}

fn certificates() -> Certificates {
    let authority = Authority::new();
    let own = authority.signs("db1.example", LATER);
    Certificates {
        authority: authority.pem,
        other_authority: Authority::new().pem,
        certificate: own.pem,
        key: own.key,
    }
}

fn server(major: u32, certificates: &Certificates) -> Cluster {
    let cluster = Cluster::small(major)
        .config("ssl", "on")
        .file("server.crt", certificates.certificate.as_str())
        .file("server.key", certificates.key.as_str())
        .hba(HBA)
        .start();
    cluster.sql(ROLES);
    cluster
}

fn connect(conninfo: &str, session: Session) -> Result<Client, Error> {
    connect_in(conninfo, session, &Environment::default()).map(|(client, _)| client)
}

fn connect_in(
    conninfo: &str,
    session: Session,
    environment: &Environment,
) -> Result<(Client, Vec<String>), Error> {
    let info = ConnInfo::resolve(conninfo, environment)?;
    let said = Arc::new(Collector::default());
    let client = run(Client::connect(&info, session, said.clone()))?;
    Ok((client, said.lines()))
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
}

/// Every connection of a test lives on the runtime of the test's thread. That it may move to another is checked here too.
fn run<T>(future: impl Future<Output = T> + Send) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

fn tls_verification_and_channel_binding(major: u32) {
    let certificates = certificates();
    let cluster = server(major, &certificates);
    let files = Sandbox::new("tls");
    let root = files.file("root.crt", &certificates.authority);
    let other = files.file("other.crt", &certificates.other_authority);
    let own = files.file("own.crt", &certificates.certificate);
    let base = format!(
        "hostaddr=127.0.0.1 port={} user=bound password='pa ss:w\\\\ord'",
        cluster.port()
    );
    let with = |rest: &str| connect(&format!("{base} {rest}"), Session::Replication);
    let good = with(&format!(
        "host=db1.example sslmode=verify-full sslrootcert={} channel_binding=require",
        root.display()
    ));
    let mut client = good.unwrap();
    assert!(client.is_encrypted());
    assert_eq!(client.major().unwrap().number(), major);
    let identity = run(client.identify_system()).unwrap();
    assert_eq!(
        identity.system_identifier.to_string(),
        cluster.system_identifier().to_string()
    );
    assert_eq!(identity.timeline.get(), 1);
    assert_eq!(run(client.show("wal_segment_size")).unwrap(), "1MB");
    let missing = run(client.timeline_history(TimelineId::new(2).unwrap())).unwrap_err();
    assert_eq!(sqlstate(&missing), Some("58P01"), "{missing}");
    assert_eq!(
        run(client.show("wal_level")).unwrap(),
        "replica",
        "usable after an error"
    );
    run(client.close()).unwrap();

    with(&format!(
        "host=other.example sslmode=verify-ca sslrootcert={}",
        root.display()
    ))
    .unwrap();
    with(&format!(
        "host=db1.example sslmode=verify-full sslrootcert={}",
        own.display()
    ))
    .unwrap();
    with("host=db1.example sslmode=require").unwrap();
    with("host=db1.example").unwrap();

    let refused = |rest: &str, part: &str| {
        let error = with(rest).err().unwrap();
        assert_eq!(error.code(), Code::Denied, "{error}");
        let text = format!("{error} {}", error.hint_text().unwrap_or_default());
        assert!(text.contains(part), "{text}");
    };
    refused(
        &format!(
            "host=other.example sslmode=verify-full sslrootcert={}",
            root.display()
        ),
        "does not name \"other.example\"",
    );
    refused(
        &format!(
            "host=db1.example sslmode=verify-ca sslrootcert={}",
            other.display()
        ),
        "does not come from an authority",
    );
    refused("host=db1.example sslmode=disable", "sslmode=require");
    refused(
        "host=db1.example sslmode=disable channel_binding=require",
        "sslmode=require",
    );
    let error = with("host=db1.example sslmode=verify-full sslrootcert=/nonexistent")
        .err()
        .unwrap();
    assert_eq!(error.code(), Code::Config);
}
per_major!(tls_verification_and_channel_binding);

fn refusals_name_the_remedy(major: u32) {
    let cluster = server(major, &certificates());
    let with = |rest: &str| {
        let conninfo = format!("host=127.0.0.1 port={} {rest}", cluster.port());
        let error = connect(&conninfo, Session::Replication).err().unwrap();
        let text = format!("{error} / {}", error.hint_text().unwrap_or_default());
        assert!(!text.contains("secret"), "{text}");
        (error.code(), text)
    };
    let (code, text) = with("user=plain password=wrong-secret sslmode=disable");
    assert_eq!(code, Code::Denied);
    assert!(
        text.contains("28P01") && text.contains("password of role \"plain\" is wrong"),
        "{text}"
    );

    let (code, text) = with("user=noright password=secret");
    assert_eq!(code, Code::Denied);
    assert!(
        text.contains("42501") && text.ends_with("ALTER ROLE noright REPLICATION;"),
        "{text}"
    );

    let (code, text) = with("user=nobody_lets_in password=secret sslmode=disable");
    assert_eq!(code, Code::Denied);
    assert!(text.contains("28000"), "{text}");
    assert!(
        text.ends_with("host replication nobody_lets_in 127.0.0.1/32 scram-sha-256"),
        "{text}"
    );

    let (code, text) = with("user=plain sslmode=disable");
    assert_eq!(code, Code::Denied);
    assert!(text.contains("none is given"), "{text}");

    let (code, text) = with("user=clear password=secret sslmode=disable");
    assert_eq!(code, Code::Denied);
    assert!(text.contains("cleartext"), "{text}");

    let (code, text) = with("user=oldstyle password=secret channel_binding=require");
    assert_eq!(code, Code::Denied);
    assert!(text.contains("channel binding is required"), "{text}");

    let local = format!(
        "host={} port={} user=nosuch password=x",
        cluster.socket_dir().display(),
        cluster.port()
    );
    let error = connect(&local, Session::Replication).err().unwrap();
    assert_eq!(error.code(), Code::Denied);
}
per_major!(refusals_name_the_remedy, v14 v16 v19);

#[test]
fn every_password_method_works_where_it_is_safe() {
    let cluster = server(15, &certificates());
    for rest in [
        "user=plain password=secret sslmode=disable",
        "user=plain password=secret sslmode=prefer",
        "user=oldstyle password=secret sslmode=disable",
        "user=oldstyle password=secret sslmode=require",
        "user=clear password=secret sslmode=require",
        "user=bound password='pa ss:w\\\\ord' sslmode=allow",
        "user=bound password='pa ss:w\\\\ord' channel_binding=disable",
    ] {
        let conninfo = format!("host=127.0.0.1 port={} {rest}", cluster.port());
        let client =
            connect(&conninfo, Session::Replication).unwrap_or_else(|e| panic!("{rest}: {e}"));
        run(client.close()).unwrap();
    }
}

#[test]
fn password_file_is_used_on_the_socket_and_only_when_private() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = server(15, &certificates());
    let files = Sandbox::new("pgpass");
    let socket = cluster.socket_dir();
    let line = format!(
        "127.0.0.1:*:*:*:wrong\n{}:{}:replication:bound:pa ss\\:w\\\\ord\n",
        socket.display(),
        cluster.port()
    );
    let passfile = files.file(".pgpass", line);
    let mut environment = Environment {
        home: Some(files.path().to_owned()),
        user: Some("bound".into()),
        ..Environment::default()
    };
    environment
        .variables
        .insert("PGHOST".into(), socket.display().to_string());
    environment
        .variables
        .insert("PGPORT".into(), cluster.port().to_string());
    environment
        .variables
        .insert("PGAPPNAME".into(), "the name".into());
    let (mut client, said) = connect_in("", Session::Replication, &environment).unwrap();
    assert!(said.is_empty(), "{said:?}");
    assert_eq!(run(client.show("application_name")).unwrap(), "the name");

    std::fs::set_permissions(&passfile, PermissionsExt::from_mode(0o644)).unwrap();
    let info = ConnInfo::resolve("", &environment).unwrap();
    let said = Arc::new(Collector::default());
    let error = run(Client::connect(&info, Session::Replication, said.clone()))
        .err()
        .unwrap();
    assert_eq!(error.code(), Code::Denied);
    assert!(
        said.lines()[0].contains("group or world access"),
        "{:?}",
        said.lines()
    );
}

#[test]
fn sql_session_runs_queries_and_reports_notices() {
    let cluster = Cluster::small(15).start();
    let said = Arc::new(Collector::default());
    let info = ConnInfo::resolve(&cluster.conninfo("postgres"), &Environment::default()).unwrap();
    let mut client = run(Client::connect(&info, Session::Sql, said.clone())).unwrap();
    let rows =
        run(client.query("select 1 as one, null as nothing, 'ä' union all select 2, 'x', ''"))
            .unwrap();
    assert_eq!(rows.columns[..2], ["one", "nothing"]);
    assert_eq!(rows.value::<u32>(1, 0).unwrap(), 2);
    assert_eq!(
        (rows.text(0, 1).unwrap(), rows.text(0, 2).unwrap()),
        (None, Some("ä"))
    );
    run(client.query("do $$ begin raise warning 'look'; raise notice 'fine'; end $$")).unwrap();
    assert_eq!(said.lines(), ["warning: server: look", "server: fine"]);
    let error = run(client.query("select * from nowhere")).unwrap_err();
    assert_eq!(
        (error.code(), sqlstate(&error)),
        (Code::Server, Some("42P01"))
    );
    assert_eq!(
        run(client.query("select 3"))
            .unwrap()
            .value::<u32>(0, 0)
            .unwrap(),
        3
    );
    // A call that is dropped leaves the connection unusable rather than out of step.
    run(async {
        let sleep = client.query("select pg_sleep(1000)");
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(200), sleep)
                .await
                .is_err()
        );
    });
    assert_eq!(
        run(client.query("select 1")).unwrap_err().code(),
        Code::Internal
    );
    run(client.close()).unwrap();
}

fn hosts_are_tried_until_one_is_of_the_kind_asked_for(major: u32) {
    let primary = Cluster::small(major).start();
    let standby = primary.standby().start();
    let reach = |attributes: &str, session: Session| {
        let conninfo = format!(
            "host=127.0.0.1,127.0.0.1,127.0.0.1 port=1,{},{} user=postgres dbname=postgres target_session_attrs={attributes}",
            standby.port(),
            primary.port()
        );
        connect(&conninfo, session).map(|client| client.host().to_owned())
    };
    for session in [Session::Replication, Session::Sql] {
        let on_primary = format!("127.0.0.1:{}", primary.port());
        let on_standby = format!("127.0.0.1:{}", standby.port());
        for (attributes, host) in [
            ("any", &on_standby),
            ("primary", &on_primary),
            ("read-write", &on_primary),
            ("standby", &on_standby),
            ("read-only", &on_standby),
            ("prefer-standby", &on_standby),
        ] {
            assert_eq!(
                &reach(attributes, session).unwrap(),
                host,
                "{attributes} {session:?}"
            );
        }
    }
    let lonely = format!(
        "host=127.0.0.1 port={} user=postgres target_session_attrs=",
        primary.port()
    );
    let error = connect(&format!("{lonely}standby"), Session::Replication)
        .err()
        .unwrap();
    assert_eq!(error.code(), Code::Unreachable);
    assert!(
        error.to_string().contains("server is not in recovery"),
        "{error}"
    );
    connect(&format!("{lonely}prefer-standby"), Session::Replication).unwrap();
}
per_major!(hosts_are_tried_until_one_is_of_the_kind_asked_for, v13 v15 v19);

#[test]
fn server_that_cannot_be_reached_is_named() {
    let error = connect("host=127.0.0.1 port=1 user=u", Session::Replication)
        .err()
        .unwrap();
    assert_eq!(error.code(), Code::Unreachable);
    assert!(error.code().is_retryable());
    assert!(
        error
            .to_string()
            .starts_with("connect to \"127.0.0.1:1\": "),
        "{error}"
    );
    let error = connect("host=/nonexistent user=u", Session::Sql)
        .err()
        .unwrap();
    assert_eq!(error.code(), Code::Unreachable);
    let error = connect("host=no.such.host.invalid user=u", Session::Sql)
        .err()
        .unwrap();
    assert_eq!(error.code(), Code::Unreachable);
}

/// A backup as it came: every file by its path with size and CRC-32C, the rest as is.
#[derive(Default)]
struct Received {
    start: Option<BackupStart>,
    archives: Vec<Option<u32>>,
    files: BTreeMap<Vec<u8>, (u64, u32)>,
    directories: Vec<Vec<u8>>,
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    label: Vec<u8>,
    last_file: Vec<u8>,
    manifest: Vec<u8>,
    end: Option<BackupEnd>,
}

/// Receives a backup; every call is given up again and again before its answer is there, which must lose nothing.
async fn receive(client: Client, options: &BaseBackupOptions) -> Result<(Received, Client), Error> {
    let mut backup = BaseBackup::start(client, options).await?;
    let mut received = Received::default();
    let (mut size, mut crc) = (0, 0);
    loop {
        let Ok(event) = tokio::time::timeout(Duration::from_micros(50), backup.next_event()).await
        else {
            continue;
        };
        let Some(event) = event? else { break };
        assert!(received.end.is_none(), "nothing follows the end");
        match event {
            BackupEvent::Begin(start) => assert!(received.start.replace(start).is_none()),
            BackupEvent::Archive { tablespace } => received.archives.push(tablespace),
            BackupEvent::Entry(entry) => match entry.kind {
                TarKind::File { .. } => {
                    (size, crc) = (0, 0);
                    received.last_file = entry.path;
                }
                TarKind::Directory => received.directories.push(entry.path),
                TarKind::Symlink { target } => {
                    received.links.insert(entry.path, target);
                }
            },
            BackupEvent::Data(data) => {
                size += data.len() as u64;
                crc = crc32c::crc32c_append(crc, &data);
                if received.last_file == b"backup_label" {
                    received.label.extend_from_slice(&data);
                }
            }
            BackupEvent::EntryEnd => {
                let path = received.last_file.clone();
                assert!(
                    received.files.insert(path, (size, crc)).is_none(),
                    "no file comes twice"
                );
            }
            BackupEvent::Manifest(bytes) => received.manifest.extend_from_slice(&bytes),
            BackupEvent::End(end) => received.end = Some(end),
        }
    }
    let client = backup.into_client().expect("the backup is over");
    Ok((received, client))
}

/// Every file of the manifest, in its order, against what was received; returns what else it says.
fn check_manifest(received: &Received) -> ManifestEnd {
    let mut reader = ManifestReader::new(received.manifest.as_slice());
    let mut count = 0;
    while let Some(file) = reader.next_file().unwrap() {
        let name = file.path.escape_ascii().to_string();
        let (size, crc) = received
            .files
            .get(&file.path)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(
            (file.size, file.checksum),
            (*size, Some(FileChecksum::Crc32c(*crc))),
            "{name}"
        );
        count += 1;
    }
    assert_eq!(count, received.files.len(), "the manifest names every file");
    reader.finish().unwrap()
}

fn fast(label: &str) -> BaseBackupOptions {
    BaseBackupOptions {
        label: label.into(),
        checkpoint: StartCheckpoint::Fast,
        estimate_size: true,
        max_rate_kib_per_s: None,
    }
}

fn replication(cluster: &Cluster) -> (Client, Arc<Collector>) {
    let info = ConnInfo::resolve(&cluster.conninfo("postgres"), &Environment::default()).unwrap();
    let said = Arc::new(Collector::default());
    let client = run(Client::connect(&info, Session::Replication, said.clone())).unwrap();
    (client, said)
}

fn base_backup_is_what_its_manifest_says(major: u32) {
    let cluster = Cluster::small(major).start();
    let space = cluster.sandbox().dir("tablespace");
    cluster.make_tablespace("elsewhere", &space);
    cluster.sql("create table here as select generate_series(1, 50000) as a, repeat('x', 50) as b");
    cluster.sql("create table there tablespace elsewhere as select generate_series(1, 50000) as a");
    let before: Lsn = cluster
        .value("select pg_current_wal_lsn()")
        .parse()
        .unwrap();
    let oid: u32 = cluster
        .value("select oid from pg_tablespace where spcname = 'elsewhere'")
        .parse()
        .unwrap();
    let (mut client, _) = replication(&cluster);
    let identity = run(client.identify_system()).unwrap();
    let (received, mut client) = run(receive(client, &fast("it's a label: \\n"))).unwrap();

    let start = received.start.as_ref().unwrap();
    let end = received.end.as_ref().unwrap();
    assert!(start.start_lsn >= before && end.stop_lsn > start.start_lsn);
    assert_eq!((start.timeline.get(), end.timeline.get()), (1, 1));
    assert!(!end.checksum_failure);
    assert_eq!(start.tablespaces.len(), 1);
    assert_eq!(start.tablespaces[0].oid, oid);
    assert_eq!(
        start.tablespaces[0].location,
        space.display().to_string().into_bytes()
    );
    let total: u64 = received.files.values().map(|(size, _)| size).sum();
    let estimated = start.size_kib().unwrap() * 1024;
    assert!(
        estimated.abs_diff(total) < total / 10,
        "estimated {estimated}, received {total}"
    );
    assert_eq!(received.archives.len(), 2);
    let link = format!("pg_tblspc/{oid}").into_bytes();
    assert_eq!(
        received.links,
        BTreeMap::from([(link, start.tablespaces[0].location.clone())])
    );
    assert!(
        received
            .directories
            .iter()
            .any(|path| path == b"pg_wal/archive_status")
    );
    let path: String = cluster.value("select pg_relation_filepath('there')");
    assert_eq!(
        received.files[path.as_bytes()].0,
        std::fs::metadata(cluster.pgdata().join(&path))
            .unwrap()
            .len()
    );

    let manifest = check_manifest(&received);
    assert_eq!(manifest.version, if major >= 17 { 2 } else { 1 });
    assert_eq!(
        manifest.system_identifier,
        (major >= 17).then_some(identity.system_identifier)
    );
    assert_eq!(manifest.wal_ranges.len(), 1);
    assert_eq!(
        (manifest.wal_ranges[0].start, manifest.wal_ranges[0].end),
        (start.start_lsn, end.stop_lsn)
    );

    let label = BackupLabel::parse(&received.label).unwrap();
    assert_eq!(label.start.lsn, start.start_lsn);
    assert_eq!(label.label.as_deref(), Some(&b"it's a label: \\n"[..]));
    assert_eq!(label.method.as_deref(), Some(&b"streamed"[..]));
    assert_eq!(label.start_timeline, Some(start.timeline));
    assert!(!label.from_standby());
    // The connection serves on.
    assert_eq!(run(client.show("wal_segment_size")).unwrap(), "1MB");
    let (again, _) = run(receive(client, &fast("again"))).unwrap();
    check_manifest(&again);
}
per_major!(base_backup_is_what_its_manifest_says);

fn c04_damaged_page_leaves_a_complete_backup_marked_as_damaged(major: u32) {
    let mut cluster = Cluster::small(major).start();
    cluster.sql("create table t as select generate_series(1, 50000) as a");
    let path = cluster.value("select pg_relation_filepath('t')");
    cluster.stop(Stop::Fast);
    let file = cluster.pgdata().join(&path);
    let mut bytes = std::fs::read(&file).unwrap();
    let good = bytes.clone();
    for block in [3, 5] {
        bytes[block * 8192 + 4000] ^= 0x40;
    }
    std::fs::write(&file, &bytes).unwrap();
    cluster.start();
    let (client, said) = replication(&cluster);
    let (received, mut client) = run(receive(client, &fast("damaged"))).unwrap();
    let end = received.end.as_ref().unwrap();
    assert!(end.checksum_failure);
    let warnings = end.warnings.join("\n");
    assert!(
        warnings.contains(&path) && warnings.contains("block 3") && warnings.contains("block 5"),
        "{warnings}"
    );
    assert!(
        said.lines()
            .iter()
            .any(|line| line.starts_with("warning: ") && line.contains("block 3"))
    );
    check_manifest(&received);
    assert_eq!(received.files[path.as_bytes()].1, crc32c::crc32c(&bytes));
    assert_eq!(run(client.show("data_checksums")).unwrap(), "on");

    // Our own check finds the same two pages, and none in the copy before the damage.
    let start = received.start.unwrap().start_lsn;
    let damaged = |bytes: &[u8]| -> Vec<usize> {
        let pages = bytes.chunks(8192).enumerate();
        pages
            .filter(|(block, page)| {
                pitr::pg::datapage::check(page, *block as u32, Some(start)).is_damaged()
            })
            .map(|(block, _)| block)
            .collect()
    };
    assert_eq!(damaged(&bytes), [3, 5]);
    assert_eq!(damaged(&good), [0usize; 0]);
}
per_major!(c04_damaged_page_leaves_a_complete_backup_marked_as_damaged, v13 v17 v19);

#[test]
fn backup_ends_with_an_error_when_the_server_ends_it() {
    let cluster = Cluster::small(15).start();
    let (client, _) = replication(&cluster);
    let sql = cluster.client();
    let slow = BaseBackupOptions {
        max_rate_kib_per_s: Some(1024),
        ..fast("slow")
    };
    let error = run(async {
        let mut backup = BaseBackup::start(client, &slow).await?;
        let mut killed = false;
        while let Some(event) = backup.next_event().await? {
            if matches!(event, BackupEvent::Data(_)) && !killed {
                killed = true;
                sql.sql("select pg_terminate_backend(pid) from pg_stat_replication");
            }
            assert!(!matches!(event, BackupEvent::End(_)));
        }
        Ok::<_, Error>(())
    })
    .unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(
        error.to_string().starts_with("run command \"BASE_BACKUP "),
        "{error}"
    );
}

fn recorded_backup_plays_back_and_may_break_anywhere(major: u32) {
    let cluster = Cluster::small(major).start();
    let open = |conninfo: &str| connect(conninfo, Session::Replication).unwrap();
    let mut first = None;
    let recording = Recording::of(&cluster, |conninfo| {
        let mut client = open(conninfo);
        run(client.identify_system()).unwrap();
        first = Some(run(receive(client, &fast("first"))).unwrap().0);
    });
    let first = first.unwrap();
    drop(cluster);
    let player = recording.play();
    let mut client = open(&player.conninfo());
    assert_eq!(run(client.identify_system()).unwrap().timeline.get(), 1);
    let missing = run(client.show("work_mem")).unwrap_err();
    assert!(
        missing.to_string().contains("not in the recording"),
        "{missing}"
    );
    let (again, _) = run(receive(client, &fast("second"))).unwrap();
    assert_eq!(
        (&again.files, &again.manifest, &again.end),
        (&first.files, &first.manifest, &first.end)
    );
    // Wherever the connection breaks off, there is an error and never an end.
    let size = recording.size();
    for cut in (0..12)
        .map(|part| size / 12 * part + part)
        .chain([size - 300, size - 130])
    {
        player.cut_backup_after(cut.min(size - 200));
        let error = run(receive(open(&player.conninfo()), &fast("cut")))
            .err()
            .unwrap();
        assert_eq!(error.code(), Code::Unreachable, "{cut}: {error}");
    }
}
per_major!(recorded_backup_plays_back_and_may_break_anywhere);
