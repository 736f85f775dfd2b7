//! Indexes of every kind are asked for rows, and have to answer like their tables.

use crate::common::{Client, Cluster};

/// Clients of the databases in which the storm made relations.
pub fn databases(cluster: &Cluster) -> [Client; 2] {
    [cluster.client(), cluster.client_of(super::storm::OTHER)]
}

/// The query that an index of this kind can answer. Values to look for stand in the table `wanted`.
fn query(method: &str, table: &str) -> Option<String> {
    let (values, condition) = match method {
        "btree" | "hash" => ("b", "t.b = w.b"),
        "gin" => ("unnest(c) as c", "t.c @> array[w.c]"),
        "gist" | "spgist" => ("d", "t.d <@ box(w.d, w.d + point(40, 40))"),
        "brin" => ("a", "t.a between w.a and w.a + 20"),
        _ => return None,
    };
    Some(format!(
        "create temporary table wanted as select * from (select distinct on (v::text) v.* from (select {values} from {table}) v) w order by md5(w::text) limit 60;
         analyze wanted;
         create temporary view asked as select coalesce(md5(string_agg(t.ctid::text || w::text, ',' order by t.ctid, w::text)), '') as sum from wanted w join {table} t on {condition}"
    ))
}

/// Asks every index of the storm's tables for some of its rows.
///
/// amcheck looks at B-trees alone; the other kinds show in answers.
pub fn answer_like_tables(cluster: &Cluster) {
    for client in databases(cluster) {
        let indexes = client.sql(
            "select i.indexrelid::regclass, i.indrelid::regclass, a.amname, pg_get_indexdef(i.indexrelid, 1, true)
             from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
             join pg_class t on t.oid = i.indrelid
             where t.relname like 'r\\_%' and t.relpersistence = 'p'",
        );
        for row in indexes {
            let text = |at: usize| row[at].as_deref().unwrap();
            // amcheck compares a B-tree with all rows.
            if text(2) == "btree" {
                continue;
            }
            answers(&client, text(0), text(1), text(2));
        }
    }
}

fn answers(client: &Client, index: &str, table: &str, method: &str) {
    let query = query(method, table).expect("a kind of index that the storm makes");
    // Other indexes are away, so that the planner has this one alone.
    client.sql(&format!(
        "begin; {query};
         do $$ declare other regclass; begin
           for other in select indexrelid::regclass from pg_index where indrelid = '{table}'::regclass and indexrelid <> '{index}'::regclass loop
             execute 'drop index ' || other;
           end loop;
         end $$"
    ));
    let sum = || client.value("select sum from asked");
    client.sql("set local enable_indexscan = off; set local enable_bitmapscan = off; set local enable_indexonlyscan = off");
    let by_table = sum();
    client.sql(
        "set local enable_indexscan = on; set local enable_bitmapscan = on; set local enable_indexonlyscan = on;
         set local enable_hashjoin = off; set local enable_mergejoin = off; set local enable_seqscan = off; set local enable_material = off",
    );
    let plan = client.sql("explain select sum from asked");
    let is_used = plan
        .iter()
        .any(|row| row[0].as_deref().unwrap().contains(index));
    assert!(is_used, "{index} of {table} ({method}): {plan:#?}");
    assert_eq!(sum(), by_table, "{index} of {table} ({method})");
    client.sql("rollback");
}
