//! Makes the server keep the last WAL of a backup until it was compared.
//!
//! A slot is reserved before the backup stops: from the redo point of the newest checkpoint on, which lies before the stop. Temporary
//! slots go with their connection, so that nothing is left when pitr is killed. While a stream runs for hours the slot is made anew again
//! and again, so that little WAL is kept: the old one goes once the server says that it still sends files, which is before it stops.
//!
//! PostgreSQL: src/backend/replication/slot.c, `ReplicationSlotReserveWal`; src/backend/backup/basebackup.c, `perform_base_backup`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::error::Result;
use crate::fault;
use crate::progress::Progress;
use crate::wire::client::{Client, Session};
use crate::wire::conninfo::ConnInfo;
use crate::wire::slot::SlotName;
use crate::wire::stop::within;

/// The connection that listens to the first segment comes first: it may take the server's last one.
const FIRST: Duration = Duration::from_secs(1);
/// How often a stream's slot is made anew, and how long to wait after the first failure.
const AGAIN: Duration = Duration::from_secs(10);

/// How the server is waited for.
#[derive(Clone, Copy)]
pub struct Waiting<'w> {
    pub runtime: &'w Runtime,
    /// The operator's wish to stop.
    pub stop: &'w AtomicBool,
    /// How long an answer may take.
    pub limit: Duration,
}

impl Waiting<'_> {
    /// Waits for an answer of the server, which may stand still.
    ///
    /// # Errors
    /// `Deadline`; `Interrupted`; those of `work`.
    pub fn answer<T>(self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let answered = within(self.limit, self.stop, work);
        self.runtime.block_on(answered)
    }
}

/// The server as connections are made to it, and what hears its messages.
type Server<'s> = (&'s ConnInfo, &'s Arc<dyn Progress>);

/// A connection with a temporary slot.
pub struct Keeper {
    client: Client,
    slot: SlotName,
    /// Slots that were made.
    count: u64,
}

impl Keeper {
    fn start(wait: Waiting<'_>, (info, progress): Server<'_>) -> Result<Keeper> {
        let connecting = Client::connect(info, Session::Replication, Arc::clone(progress));
        let mut client = wait.answer(connecting)?;
        let slot = name(&client, 0)?;
        wait.answer(client.create_temporary_slot(&slot))?;
        Ok(Keeper {
            client,
            slot,
            count: 1,
        })
    }

    /// Makes a slot anew. `is_sending` is asked after it was made: the old slot stays when the backup may have stopped meanwhile.
    fn renew(
        &mut self,
        wait: Waiting<'_>,
        is_sending: impl FnOnce() -> Result<bool>,
    ) -> Result<bool> {
        let new = name(&self.client, self.count)?;
        self.count += 1;
        wait.answer(self.client.create_temporary_slot(&new))?;
        let is_sending = is_sending()?;
        let old = match is_sending {
            true => std::mem::replace(&mut self.slot, new),
            false => new,
        };
        wait.answer(self.client.drop_slot(&old))?;
        Ok(is_sending)
    }

    /// Drops the slot, and ends the connection.
    fn end(mut self, wait: Waiting<'_>) {
        // The server drops it with the connection, too, though a moment later.
        let _ = wait.answer(self.client.drop_slot(&self.slot));
        let _ = wait.answer(self.client.close());
    }
}

fn name(client: &Client, count: u64) -> Result<SlotName> {
    let pid = client.pid().unwrap_or_default();
    format!("pitr_last_{pid}_{}", count % 2).parse()
}

/// When a slot is made, and whether it still is to be.
pub struct Keeping {
    keeper: Option<Keeper>,
    next: Option<Instant>,
    pause: Duration,
    /// The backup may have stopped: what is kept now is kept until the end.
    is_settled: bool,
}

impl Keeping {
    /// Keeps nothing yet.
    pub fn new() -> Keeping {
        Keeping {
            keeper: None,
            next: None,
            pause: AGAIN,
            is_settled: false,
        }
    }

    /// Keeps WAL from now on while a stream runs, if it is time to. A refusal of the server fails no backup, and is followed by another attempt later.
    pub fn tick(
        &mut self,
        wait: Waiting<'_>,
        server: Server<'_>,
        is_sending: impl FnOnce() -> Result<bool>,
    ) {
        let next = *self.next.get_or_insert_with(|| Instant::now() + FIRST);
        if self.is_settled || Instant::now() < next {
            return;
        }
        let result = match &mut self.keeper {
            Some(keeper) => keeper.renew(wait, is_sending),
            None => Keeper::start(wait, server).map(|keeper| {
                self.keeper = Some(keeper);
                true
            }),
        };
        match result {
            Ok(is_sending) => {
                self.is_settled = !is_sending;
                self.pause = AGAIN;
            }
            // The slots go with the connection: nothing says when a slot that is left may go.
            Err(_) => {
                self.keeper = None;
                self.pause *= 2;
            }
        }
        self.next = Some(Instant::now() + fault::shortened(self.pause));
    }

    /// Keeps WAL from now on, just before the backup is stopped.
    pub fn settle(&mut self, wait: Waiting<'_>, server: Server<'_>) {
        self.is_settled = true;
        self.keeper = Keeper::start(wait, server).ok();
    }

    /// Lets the server remove its WAL.
    pub fn end(&mut self, wait: Waiting<'_>) {
        self.is_settled = true;
        if let Some(keeper) = self.keeper.take() {
            keeper.end(wait);
        }
    }
}
