-- Archiver, replication slots and receivers of a server in one view, without any extension. On the primary, as a superuser:
--   psql -f pitr_status.sql postgres
-- Members of pg_monitor may read it, on standbys as well.
create or replace view pitr_status as
with here as (
    select case when pg_catalog.pg_is_in_recovery()
        then coalesce(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())
        else pg_catalog.pg_current_wal_lsn() end as lsn
), archiver as (
    select a.*, a.last_failed_time > coalesce(a.last_archived_time, '-infinity') as is_failing
    from pg_catalog.pg_stat_archiver a
)
select 'archiver' as part,
    pg_catalog.current_setting('archive_mode') as name,
    case when a.is_failing then 'fails at ' || a.last_failed_wal
        when a.last_archived_wal is null then 'nothing archived yet'
        else 'ok' end as state,
    a.last_archived_wal as position,
    null::bigint as behind_bytes,
    case when a.is_failing then a.last_failed_time else a.last_archived_time end as since
from archiver a
union all
select 'slot',
    s.slot_name::text,
    case when s.active then 'active' else 'inactive' end || coalesce(', ' || s.wal_status, ''),
    s.restart_lsn::text,
    pg_catalog.pg_wal_lsn_diff(here.lsn, s.restart_lsn)::bigint,
    null
from pg_catalog.pg_replication_slots s, here
union all
select 'receiver',
    r.application_name,
    r.state || coalesce(', ' || r.sync_state, ''),
    r.flush_lsn::text,
    pg_catalog.pg_wal_lsn_diff(here.lsn, r.flush_lsn)::bigint,
    r.reply_time
from pg_catalog.pg_stat_replication r, here;

grant select on pitr_status to pg_monitor;
