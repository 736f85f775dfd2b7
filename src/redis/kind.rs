//! A data set as a kind of content.

use serde_json::Value;

use super::member::{Member, PSYNC};
use super::source::{Source, no_backup};
use super::transfer::{self, Received};
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::kind::{Kind, Produced, Work};
use crate::snapshot::node::{Moment, Node, NodeKind};

/// The name of the kind.
pub const NAME: &str = "redis";
/// The file of the data set.
pub const BASE: &str = "base.rdb";

/// A server whose data set is taken.
pub struct Base {
    /// The server.
    pub source: Source,
    /// The text that tells it from others.
    pub identity: String,
    /// Facts about the product, once there is one.
    pub member: Option<Member>,
}

impl Base {
    fn receive(&mut self, work: &mut Work<'_, '_>) -> Result<Member> {
        let progress = &work.host.progress;
        progress.phase("wait for the server to fork", None);
        let requested_time = work.host.now();
        let position = transfer::request(&mut self.source, work.tick)?;
        let received_time = work.host.now();
        progress.phase("receive the data set", None);
        let mut sink = work.writer.sink();
        let mtime = moment(received_time);
        let root = FileKey::from_path(b"", work.naming)?;
        sink.node(&root, Node::new(NodeKind::Directory, 0o700, mtime))?;
        sink.begin(FileKey::from_path(BASE.as_bytes(), work.naming)?)?;
        let mut out = |bytes: &[u8]| {
            progress.advance(bytes.len() as u64);
            sink.append(bytes)
        };
        let received = transfer::receive(&mut self.source.connection, &mut out, work.tick)?;
        sink.end_node(Node::new(NodeKind::File(0), 0o600, mtime))?;
        sink.finish()?;
        let Received {
            head,
            bytes,
            has_checksum,
        } = received;
        let (info, version) = (&self.source.info, &self.source.version);
        let stream_db = head.field("repl-stream-db");
        let (parent, fork) = info.parent(&position.replid).unzip();
        Ok(Member {
            flavor: version.flavor.name().to_owned(),
            server_version: version.text().to_owned(),
            rdb_version: head.version,
            replid: position.replid,
            offset: position.offset,
            parent,
            fork,
            role: self.source.role().to_owned(),
            run_id: info.field("run_id").unwrap_or_default().to_owned(),
            stream_db: stream_db.and_then(|db| db.parse().ok()),
            keyspace: info.keyspace(),
            modules: info.modules.clone(),
            rdb_bytes: bytes,
            has_checksum,
            requested_time,
            received_time,
            method: PSYNC.to_owned(),
        })
    }
}

impl Kind for Base {
    fn name(&self) -> &'static str {
        NAME
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        let member = self.receive(work).map_err(no_backup)?;
        let value: Value = serde_json::to_value(&member)
            .map_err(|e| err!(Internal, "write the member \"redis\"").source(e))?;
        self.member = Some(member);
        Ok(Produced {
            member: value,
            ..Produced::default()
        })
    }
}

fn moment(time: TimestampTz) -> Moment {
    Moment {
        seconds: time.unix_micros().unwrap_or_default().div_euclid(1_000_000),
        nanoseconds: 0,
    }
}
