//! A blocking SQL client. It lives on a thread of its own, so that asynchronous tests may use it too.

use std::sync::mpsc;

use tokio_postgres::{NoTls, SimpleQueryMessage};

/// The rows of a query as text; `None` is null.
pub type Rows = Vec<Vec<Option<String>>>;

type Reply = Result<Rows, tokio_postgres::Error>;

/// One connection to a server.
pub struct Client {
    jobs: mpsc::Sender<(String, mpsc::Sender<Reply>)>,
}

impl Client {
    /// Connects by a libpq connection string, without TLS.
    pub fn connect(conninfo: &str) -> Result<Client, tokio_postgres::Error> {
        let (jobs, todo) = mpsc::channel::<(String, mpsc::Sender<Reply>)>();
        let (up, is_up) = mpsc::channel();
        let conninfo = conninfo.to_owned();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime starts");
            let client = match runtime.block_on(tokio_postgres::connect(&conninfo, NoTls)) {
                Ok((client, connection)) => {
                    runtime.spawn(connection);
                    let _ = up.send(Ok(()));
                    client
                }
                Err(e) => {
                    let _ = up.send(Err(e));
                    return;
                }
            };
            while let Ok((sql, reply)) = todo.recv() {
                let _ = reply.send(runtime.block_on(simple(&client, &sql)));
            }
        });
        is_up.recv().expect("the client thread answers")?;
        Ok(Client { jobs })
    }

    /// Runs one or more statements, and returns the rows of all of them.
    pub fn try_sql(&self, sql: &str) -> Result<Rows, tokio_postgres::Error> {
        let (reply, answer) = mpsc::channel();
        self.jobs
            .send((sql.to_owned(), reply))
            .expect("the client thread lives");
        answer.recv().expect("the client thread answers")
    }

    /// Like [`try_sql`](Self::try_sql).
    ///
    /// # Panics
    /// On any error, with the statement and what the server said.
    pub fn sql(&self, sql: &str) -> Rows {
        self.try_sql(sql)
            .unwrap_or_else(|e| panic!("{sql}\n{}", text(&e)))
    }

    /// Returns the first column of the only row; null is the empty string.
    pub fn value(&self, sql: &str) -> String {
        let rows = self.sql(sql);
        assert!(
            rows.len() == 1 && !rows[0].is_empty(),
            "{sql}\nreturned {} rows, not one",
            rows.len()
        );
        rows[0][0].clone().unwrap_or_default()
    }
}

async fn simple(client: &tokio_postgres::Client, sql: &str) -> Reply {
    let messages = client.simple_query(sql).await?;
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|i| row.get(i).map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        })
        .collect())
}

/// Returns the server's message, in full: the error's own text leaves it out.
pub fn text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{}: {} ({})", db.severity(), db.message(), db.code().code()),
        None => format!("{error}: {:?}", std::error::Error::source(error)),
    }
}
