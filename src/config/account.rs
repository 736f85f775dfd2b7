//! An account of the system, as the password file has it.

use std::path::PathBuf;

/// One line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The account's name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: Option<u32>,
    /// Its home directory.
    pub home: PathBuf,
}

impl Account {
    /// Finds the account of a user; none where the file does not have it.
    pub fn of(uid: u32) -> Option<Account> {
        Account::find(|account| account.uid == uid)
    }

    /// Finds the account of this name.
    pub fn named(name: &str) -> Option<Account> {
        Account::find(|account| account.name == name)
    }

    fn find(is_it: impl Fn(&Account) -> bool) -> Option<Account> {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        passwd.lines().filter_map(Account::parse).find(is_it)
    }

    fn parse(line: &str) -> Option<Account> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, id, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        Some(Account {
            name: (*name).to_owned(),
            uid: id.parse().ok()?,
            gid: gid.parse().ok(),
            home: PathBuf::from(home),
        })
    }

    /// Finds the account that this process runs as.
    pub fn of_process() -> Option<Account> {
        Account::of(rustix::process::geteuid().as_raw())
    }

    /// Returns a user's name for messages: the number of one without a name.
    pub fn name_of(uid: u32) -> String {
        Account::of(uid).map_or_else(|| uid.to_string(), |account| account.name)
    }
}
