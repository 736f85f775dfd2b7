import psycopg
from pitr_postgres import PitrPostgres


def test_a_dropped_table_comes_back():
    with PitrPostgres() as server:
        server.run("pitr", "backup")
        with psycopg.connect(server.url(), autocommit=True) as sql:
            sql.execute("create table orders as select n as id from generate_series(1, 1000) n")
            moment = sql.execute("select clock_timestamp()").fetchone()[0]
            sql.execute("drop table orders")

        with server.just_before(moment) as copy, psycopg.connect(copy.url()) as sql:
            assert sql.execute("select count(*) from orders").fetchone() == (1000,)
