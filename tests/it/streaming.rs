//! The WAL stream of the wire module against real servers: bytes, slots, the end of a timeline, the server's shutdown.

use std::sync::Arc;
use std::time::Duration;

use pitr::error::{Code, Error};
use pitr::pg::lsn::Lsn;
use pitr::pg::time::TimestampTz;
use pitr::pg::timeline::TimelineId;
use pitr::progress::Silent;
use pitr::wire::client::{Client, Session};
use pitr::wire::conninfo::{ConnInfo, Environment};
use pitr::wire::replication::{Positions, ReplicationStream, StartReplication, StreamEvent};
use pitr::wire::slot::SlotName;
use pitr::wire::sql::Sql;

use crate::common::{Cluster, PATIENCE, Stop};
use crate::per_major;

const SEGMENT: u64 = 1 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

async fn connect(cluster: &Cluster, session: Session) -> Client {
    let conninfo = cluster.conninfo("postgres");
    let info = ConnInfo::resolve(&conninfo, &Environment::default()).unwrap();
    Client::connect(&info, session, Arc::new(Silent))
        .await
        .unwrap()
}

async fn sql(cluster: &Cluster) -> Sql {
    let conninfo = cluster.conninfo("postgres");
    let info = ConnInfo::resolve(&conninfo, &Environment::default()).unwrap();
    Sql::connect(&info, Arc::new(Silent)).await.unwrap()
}

async fn start(
    cluster: &Cluster,
    slot: Option<&SlotName>,
    from: Lsn,
) -> Result<ReplicationStream, Error> {
    let what = StartReplication {
        slot: slot.cloned(),
        timeline: TimelineId::FIRST,
        from,
    };
    ReplicationStream::start(connect(cluster, Session::Replication).await, &what).await
}

fn all(at: Lsn) -> Positions {
    Positions {
        written: at,
        flushed: at,
        applied: at,
    }
}

async fn acknowledge(stream: &mut ReplicationStream, at: Lsn) {
    stream
        .send_status(all(at), false, TimestampTz(0))
        .await
        .unwrap();
}

/// Receives until everything before `end` is there.
async fn receive_to(stream: &mut ReplicationStream, from: Lsn, end: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    while from.0 + (bytes.len() as u64) < end.0 {
        let event = tokio::time::timeout(PATIENCE, stream.next_event()).await;
        match event.expect("WAL in time").unwrap() {
            StreamEvent::Data(data) => bytes.extend_from_slice(&data.bytes),
            StreamEvent::Keepalive(_) => {}
            other => panic!("{other:?}"),
        }
    }
    bytes
}

/// The segment's file in pg_wal.
fn segment(cluster: &Cluster, number: u64) -> Vec<u8> {
    let name = format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF);
    std::fs::read(cluster.pgdata().join("pg_wal").join(name)).unwrap()
}

fn flush_lsn(cluster: &Cluster) -> Lsn {
    cluster
        .value("select pg_current_wal_flush_lsn()")
        .parse()
        .unwrap()
}

fn stream_is_byte_exact_and_its_slot_follows(major: u32) {
    let mut cluster = Cluster::small(major).start();
    let slot: SlotName = "stream".parse().unwrap();
    runtime().block_on(async {
        let mut client = connect(&cluster, Session::Replication).await;
        let mut sql = sql(&cluster).await;
        assert_eq!(sql.slot_by_sql(&slot).await.unwrap(), None);
        let missing = start(&cluster, Some(&slot), Lsn(SEGMENT)).await;
        assert_eq!(missing.err().unwrap().code(), Code::NotFound);
        client.create_physical_slot(&slot).await.unwrap();
        let twice = client.create_physical_slot(&slot).await.unwrap_err();
        assert_eq!(twice.code(), Code::Refused);
        let state = sql.slot_by_sql(&slot).await.unwrap().unwrap();
        let reserved = state.restart_lsn.unwrap();
        assert!(!state.is_lost());
        if major >= 15 {
            let state = client.read_replication_slot(&slot).await.unwrap().unwrap();
            assert_eq!(state.restart_lsn, Some(reserved));
            let none = "nosuch".parse().unwrap();
            assert_eq!(client.read_replication_slot(&none).await.unwrap(), None);
        }

        cluster.sql("create table t as select i, repeat('x', 500) from generate_series(1, 6000) i");
        let from = Lsn(reserved.0 / SEGMENT * SEGMENT);
        let end = flush_lsn(&cluster);
        let mut stream = start(&cluster, Some(&slot), from).await.unwrap();
        let received = receive_to(&mut stream, from, end).await;
        for (index, chunk) in received.chunks(SEGMENT as usize).enumerate() {
            let wanted = segment(&cluster, from.0 / SEGMENT + index as u64);
            assert!(wanted.starts_with(chunk), "segment {index} differs");
        }

        let second = start(&cluster, Some(&slot), from).await.err().unwrap();
        assert_eq!(second.code(), Code::Locked, "{second}");
        let drop = client.drop_slot(&slot).await.unwrap_err();
        assert_eq!(drop.code(), Code::Locked, "{drop}");

        let end = Lsn(from.0 + received.len() as u64);
        acknowledge(&mut stream, end).await;
        let follows = async {
            while sql.slot_by_sql(&slot).await.unwrap().unwrap().restart_lsn != Some(end) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, follows)
            .await
            .expect("the slot follows what is acknowledged");

        // Ended in order, the connection takes commands again, and the slot can go.
        let (mut client, next) = stream.finish().await.unwrap();
        assert_eq!(next, None);
        assert_eq!(
            client.identify_system().await.unwrap().timeline,
            TimelineId::FIRST
        );
        client.drop_slot(&slot).await.unwrap();
        let gone = client.drop_slot(&slot).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound);
    });
    shutdown_ends_once_everything_is_acknowledged(&mut cluster);
}
per_major!(stream_is_byte_exact_and_its_slot_follows);

/// A server that shuts down fast waits for us only until we have acknowledged what it sent last, its shutdown checkpoint.
fn shutdown_ends_once_everything_is_acknowledged(cluster: &mut Cluster) {
    let from = flush_lsn(cluster);
    let from = Lsn(from.0 / SEGMENT * SEGMENT);
    let runtime = runtime();
    let mut stream = runtime.block_on(start(cluster, None, from)).unwrap();
    // A walsender that has not sent anything yet is ended at once (walsender.c, HandleWalSndInitStopping).
    let first = runtime.block_on(stream.next_event()).unwrap();
    let StreamEvent::Data(first) = first else {
        panic!("the server has WAL to send");
    };
    let mut at = first.end();
    drop(first);
    let reader = std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                match stream.next_event().await.unwrap() {
                    StreamEvent::Data(data) => at = data.end(),
                    StreamEvent::Keepalive(_) => acknowledge(&mut stream, at).await,
                    StreamEvent::Done => panic!("the timeline has not ended"),
                    StreamEvent::Shutdown => return stream.finish().await.err().unwrap(),
                }
            }
        })
    });
    cluster.stop(Stop::Fast);
    assert_eq!(reader.join().unwrap().code(), Code::Unreachable);
}

fn end_of_a_timeline_names_the_next(major: u32) {
    let primary = Cluster::small(major).start();
    let standby = primary.standby().start();
    primary.sql("create table t as select generate_series(1, 1000)");
    let end = flush_lsn(&primary);
    let from = Lsn(end.0 / SEGMENT * SEGMENT);
    standby.wait_replayed(&end);
    runtime().block_on(async {
        let mut stream = start(&standby, None, from).await.unwrap();
        let mut at = Lsn(from.0 + receive_to(&mut stream, from, end).await.len() as u64);
        standby.promote();
        let last = loop {
            match stream.next_event().await.unwrap() {
                StreamEvent::Data(data) => at = data.end(),
                StreamEvent::Keepalive(_) => acknowledge(&mut stream, at).await,
                other => break other,
            }
        };
        assert_eq!(last, StreamEvent::Done);
        let (mut client, next) = stream.finish().await.unwrap();
        let next = next.unwrap();
        assert_eq!((next.timeline.get(), next.switch_lsn), (2, at));
        let history = client.timeline_history(next.timeline).await.unwrap();
        assert_eq!(history.file_name, "00000002.history");

        // Asked for again at its very end, there is nothing to stream, and the same answer.
        let stream = start(&standby, None, at).await.unwrap();
        assert_eq!(stream.finish().await.unwrap().1, Some(next));
    });
}
per_major!(end_of_a_timeline_names_the_next);
