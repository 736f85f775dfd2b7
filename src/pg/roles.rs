//! The superusers of a cluster, from the file of pg_authid: names without a server.
//!
//! Rows may have been renamed or dropped since, and no snapshot decides: a caller tries the names one after the other.
//!
//! PostgreSQL: src/include/catalog/pg_authid.h, whose first columns are the same in 13 to 19.

use super::databases::file_of;
use super::datapage::{self, DEFAULT_PAGE_SIZE};

/// The oid of pg_authid.
const PG_AUTHID: u32 = 1260;
const NAME_BYTES: usize = 64;
/// Behind oid and name: `rolsuper`, `rolinherit`, `rolcreaterole`, `rolcreatedb`, `rolcanlogin`.
const SUPER_AT: usize = 4 + NAME_BYTES;
const LOGIN_AT: usize = SUPER_AT + 4;

/// Returns the file number of pg_authid by a `global/pg_filenode.map`; `None` when the map fails its check.
pub fn file_of_catalog(map: &[u8]) -> Option<u32> {
    file_of(map, PG_AUTHID)
}

/// Returns the names that superusers who may log in have, or had, by the pages of pg_authid. Names that are not UTF-8 are passed over.
pub fn superusers(file: &[u8]) -> Vec<String> {
    let pages = file.chunks_exact(DEFAULT_PAGE_SIZE);
    let mut names: Vec<String> = pages
        .flat_map(|page| datapage::items(page).filter_map(|(_, tuple)| superuser(tuple)))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn superuser(tuple: &[u8]) -> Option<String> {
    let data = tuple.get(usize::from(*tuple.get(22)?)..)?;
    let is_set = |at: usize| data.get(at) == Some(&1);
    let name = data.get(4..SUPER_AT)?.split(|&byte| byte == 0).next()?;
    let name = std::str::from_utf8(name).ok()?;
    let may = is_set(SUPER_AT) && is_set(LOGIN_AT) && !name.is_empty();
    may.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(name: &str, is_super: bool, may_log_in: bool) -> Vec<u8> {
        let mut tuple = vec![0; 24 + 80];
        tuple[22] = 24;
        tuple[28..28 + name.len()].copy_from_slice(name.as_bytes());
        tuple[24 + SUPER_AT] = u8::from(is_super);
        tuple[24 + LOGIN_AT] = u8::from(may_log_in);
        tuple
    }

    #[test]
    fn superusers_who_may_log_in_are_named() {
        assert_eq!(superuser(&tuple("boss", true, true)), Some("boss".into()));
        assert_eq!(superuser(&tuple("group", true, false)), None);
        assert_eq!(superuser(&tuple("app", false, true)), None);
        assert_eq!(superuser(&tuple("boss", true, true)[..60]), None);
        assert_eq!(superuser(&[]), None);
        assert!(superusers(&[0xff; DEFAULT_PAGE_SIZE]).is_empty());
    }
}
