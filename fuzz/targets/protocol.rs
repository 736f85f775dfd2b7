//! Arbitrary server messages: the whole client against a server that answers with the fuzzer's bytes, at every stage of
//! a session.

#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use pitr::pg::timeline::TimelineId;
use pitr::progress::Silent;
use pitr::wire::basebackup::{BackupEvent, BaseBackup, BaseBackupOptions, StartCheckpoint};
use pitr::wire::client::{Client, Session};
use pitr::wire::conninfo::{ConnInfo, Environment};
use pitr_fuzz::{Input, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};

/// One message of a copy may have 64 MiB, and room for it is made before it is here.
const CEILING: usize = 100 << 20;

struct World {
    runtime: Runtime,
    listener: UnixListener,
    info: ConnInfo,
    _folder: tempfile::TempDir,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| WORLD.with_borrow_mut(|world| {
    let world = world.get_or_insert_with(make_world);
    within(CEILING, || run(world, data));
}));

fn make_world() -> World {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listener = {
        let _entered = runtime.enter();
        UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap()
    };
    let host = folder.path().display();
    let info = format!("host={host} port=5432 user=u password=secret dbname=d");
    let info = ConnInfo::resolve(&info, &Environment::default()).unwrap();
    World {
        runtime,
        listener,
        info,
        _folder: folder,
    }
}

/// Authentication done, settings reported, ready: what every real session begins with.
fn greeting(version: &str) -> Vec<u8> {
    let mut out = message(b'R', &[0; 4]);
    let setting = [b"server_version\0", version.as_bytes(), b"\0"].concat();
    out.extend(message(b'S', &setting));
    out.extend(message(b'S', b"in_hot_standby\0off\0"));
    out.extend(message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]));
    out.extend(message(b'Z', b"I"));
    out
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

fn run(world: &World, data: &[u8]) {
    let mut input = Input::new(data);
    let stage = input.choice(6);
    let version = ["13.23", "14.2", "15.1", "16.0", "17.10", "18.4"][usize::from(input.choice(6))];
    let mut answer = if stage == 0 {
        Vec::new()
    } else {
        greeting(version)
    };
    if input.choice(2) == 0 {
        answer.extend_from_slice(input.rest());
    } else {
        // Messages whose lengths fit.
        while !input.is_empty() {
            let tag = b"RSKZTDCEHdcNAWIs"[usize::from(input.choice(16))];
            answer.extend(message(tag, input.piece()));
        }
    }
    let server = async {
        let (mut socket, _) = world.listener.accept().await.unwrap();
        let _ = socket.write_all(&answer).await;
        let _ = socket.shutdown().await;
        let mut sink = [0; 1024];
        while matches!(socket.read(&mut sink).await, Ok(1..)) {}
    };
    world.runtime.block_on(async {
        tokio::join!(server, client(world, stage));
    });
}

async fn client(world: &World, stage: u8) {
    let session = if stage < 3 {
        Session::Sql
    } else {
        Session::Replication
    };
    let connected = Client::connect(&world.info, session, Arc::new(Silent)).await;
    let Ok(mut client) = connected else {
        return;
    };
    match stage {
        0 | 1 => {
            for _ in 0..4 {
                let Ok(rows) = client.query("SELECT 1").await else {
                    break;
                };
                for row in 0..rows.rows.len() {
                    assert!(rows.rows[row].len() == rows.columns.len());
                    let _ = rows.text(row, 0);
                }
            }
        }
        2 => {
            let _ = client.show("wal_level").await;
        }
        3 => {
            let _ = client.identify_system().await;
            let _ = client.timeline_history(TimelineId::FIRST).await;
        }
        _ => return backup(client).await,
    }
    let _ = client.close().await;
}

async fn backup(client: Client) {
    let options = BaseBackupOptions {
        label: "fuzz".to_owned(),
        checkpoint: StartCheckpoint::Fast,
        estimate_size: true,
        max_rate_kib_per_s: None,
    };
    let Ok(mut backup) = BaseBackup::start(client, &options).await else {
        return;
    };
    let (mut begun, mut ended, mut open) = (false, false, false);
    while let Ok(Some(event)) = backup.next_event().await {
        assert!(!ended, "nothing comes behind the end");
        match event {
            BackupEvent::Begin(_) => assert!(!std::mem::replace(&mut begun, true)),
            BackupEvent::Entry(entry) => {
                assert!(begun && !open);
                open = matches!(entry.kind, pitr::wire::tar::TarKind::File { .. });
            }
            BackupEvent::Data(data) => assert!(open && !data.is_empty()),
            BackupEvent::EntryEnd => assert!(std::mem::replace(&mut open, false)),
            BackupEvent::End(_) => ended = true,
            _ => assert!(begun && !open),
        }
    }
    assert_eq!(backup.into_client().is_some(), ended);
}
