//! The operations of each transaction, and the tables that follow from a set of committed transactions.

use std::collections::{BTreeMap, HashMap};

/// One change of one table. Rows are their text, so that comparison is plain.
#[derive(Debug, Clone)]
pub enum Op {
    Create,
    Drop,
    Truncate,
    Put { id: i64, row: String },
    Delete { id: i64 },
}

/// Database and table.
pub type Table = (String, String);

/// Everything a transaction did, in its own order; parts that were rolled back to a savepoint are not in it.
pub type Ops = Vec<(Table, Op)>;

/// The operations of every transaction, by the timeline it ran on and its xid: after a fork both timelines use the same
/// numbers.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    pub transactions: HashMap<(u32, u32), Ops>,
}

/// The rows of every table.
pub type State = BTreeMap<Table, BTreeMap<i64, String>>;

impl Ledger {
    /// Applies transactions in the order of their commit records. Row locks make conflicting transactions commit in the order of
    /// their changes, so the order of commits is the order of effects.
    ///
    /// A transaction that was prepared before a fork may end behind it: it is looked for on earlier timelines too.
    pub fn state(&self, committed: impl Iterator<Item = (u32, u32)>) -> State {
        let mut state = State::new();
        for (timeline, xid) in committed {
            let ops = (1..=timeline)
                .rev()
                .find_map(|t| self.transactions.get(&(t, xid)));
            for (table, op) in ops.into_iter().flatten() {
                match op {
                    Op::Create => {
                        state.insert(table.clone(), BTreeMap::new());
                    }
                    Op::Drop => {
                        state.remove(table);
                    }
                    Op::Truncate => state.entry(table.clone()).or_default().clear(),
                    Op::Put { id, row } => {
                        state
                            .entry(table.clone())
                            .or_default()
                            .insert(*id, row.clone());
                    }
                    Op::Delete { id } => {
                        state.entry(table.clone()).or_default().remove(id);
                    }
                }
            }
        }
        state
    }
}
