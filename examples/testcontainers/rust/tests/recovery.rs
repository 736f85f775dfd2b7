mod pitr_postgres;

use pitr_postgres::PitrPostgres;
use postgres::{Client, NoTls};

#[test]
fn a_dropped_table_comes_back() -> Result<(), postgres::Error> {
    let server = PitrPostgres::start();
    server.run(&["pitr", "backup"]);
    let mut sql = Client::connect(&server.url(), NoTls)?;
    sql.batch_execute("create table orders as select n as id from generate_series(1, 1000) n")?;
    let moment: String = sql.query_one("select clock_timestamp()::text", &[])?.get(0);
    sql.batch_execute("drop table orders")?;

    let copy = server.just_before(&moment);
    let mut sql = Client::connect(&copy.url(), NoTls)?;
    let count: i64 = sql.query_one("select count(*) from orders", &[])?.get(0);
    assert_eq!(count, 1000);
    Ok(())
}
