//! Lives as the test knows them: what each one committed, where it branched off, and what of it was acknowledged.

/// A life, by its number in the history.
pub type LifeId = usize;

/// A row: the life that wrote it, and its number in that life, from 1.
pub type Row = (LifeId, u32);

/// The content of a database: everything up to a number of commits of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub life: LifeId,
    pub count: u32,
}

/// One line of commits, of which one server at a time is the author.
pub struct Life {
    parent: Option<State>,
    /// The server's position after each commit.
    ends: Vec<u64>,
    /// So many commits lie in WAL that pitr has acknowledged.
    acknowledged: u32,
    /// The last backup that led to it was expired.
    is_given_up: bool,
}

/// All lives of a history.
#[derive(Default)]
pub struct Lives(Vec<Life>);

impl Lives {
    pub fn begin(&mut self, parent: Option<State>) -> LifeId {
        let is_given_up = parent.is_some_and(|parent| self.0[parent.life].is_given_up);
        self.0.push(Life {
            parent,
            ends: Vec::new(),
            acknowledged: 0,
            is_given_up,
        });
        self.0.len() - 1
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The number of the next commit of a life.
    pub fn next(&self, life: LifeId) -> Row {
        (life, self.0[life].ends.len() as u32 + 1)
    }

    pub fn committed(&mut self, life: LifeId, end: u64) {
        self.0[life].ends.push(end);
    }

    /// Returns the present state of a life's server.
    pub fn now(&self, life: LifeId) -> State {
        let count = self.0[life].ends.len() as u32;
        State { life, count }
    }

    /// Everything of a life up to a position is safe, pitr says.
    pub fn acknowledge(&mut self, life: LifeId, end: u64) {
        let life = &mut self.0[life];
        let safe = life.ends.iter().filter(|at| **at <= end).count() as u32;
        life.acknowledged = life.acknowledged.max(safe);
    }

    /// Returns the acknowledged state of a life, if it is to come back.
    pub fn acknowledged(&self, life: LifeId) -> Option<State> {
        let count = self.0[life].acknowledged;
        (count > 0 && !self.0[life].is_given_up).then_some(State { life, count })
    }

    /// The last backup that leads to a life was expired.
    pub fn give_up(&mut self, life: LifeId) {
        self.0[life].is_given_up = true;
    }

    /// A life was backed up.
    pub fn backed_up(&mut self, life: LifeId) {
        self.0[life].is_given_up = false;
    }

    /// The rows of a state, in the order in which they were committed.
    pub fn rows(&self, state: State) -> Vec<Row> {
        let parent = self.0[state.life].parent;
        let mut rows = parent.map_or_else(Vec::new, |parent| self.rows(parent));
        rows.extend((1..=state.count).map(|n| (state.life, n)));
        rows
    }

    /// Whether everything of one state is in the other.
    pub fn is_in(&self, part: State, whole: State) -> bool {
        self.rows(whole).starts_with(&self.rows(part))
    }

    /// Returns the state with exactly these rows, which stand in any order. If several have them, that of the oldest
    /// life.
    pub fn state_of(&self, found: &[Row]) -> Option<State> {
        let mut found = found.to_vec();
        found.sort_unstable();
        (0..self.0.len()).find_map(|life| {
            (0..=self.now(life).count).find_map(|count| {
                let state = State { life, count };
                let mut rows = self.rows(state);
                rows.sort_unstable();
                (rows == found).then_some(state)
            })
        })
    }

    /// Lines of who is who, for people.
    pub fn describe(&self) -> String {
        let lines = self.0.iter().enumerate().map(|(id, life)| {
            let from = match life.parent {
                Some(State { life, count }) => format!("from life {life} after {count} commits"),
                None => "the first".to_owned(),
            };
            format!(
                "  life {id}: {from}, {} commits, {} acknowledged",
                life.ends.len(),
                life.acknowledged
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}
