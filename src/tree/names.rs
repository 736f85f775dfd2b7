//! Names of users and groups, as the files of this host have them.

use std::collections::HashMap;
use std::path::Path;

use crate::snapshot::node::Owner;

/// Users and groups of this host.
pub struct Names {
    users: Ids,
    groups: Ids,
}

/// Numbers and names, both ways.
#[derive(Default)]
struct Ids {
    names: HashMap<u32, Vec<u8>>,
    numbers: HashMap<Vec<u8>, u32>,
}

impl Names {
    /// Reads `/etc/passwd` and `/etc/group`. Users and groups that only other sources know have no name here.
    pub fn of_host() -> Names {
        Names {
            users: Ids::read(Path::new("/etc/passwd")),
            groups: Ids::read(Path::new("/etc/group")),
        }
    }

    /// The owner with these numbers.
    pub fn owner(&self, uid: u32, gid: u32) -> Owner {
        let name = |ids: &Ids, id| ids.names.get(&id).cloned().unwrap_or_default();
        Owner {
            uid,
            gid,
            user: name(&self.users, uid),
            group: name(&self.groups, gid),
        }
    }

    /// The numbers of an owner on this host: by name where the host has the name, else as they were.
    pub fn numbers(&self, owner: &Owner) -> (u32, u32) {
        let number = |ids: &Ids, name: &[u8], id| ids.numbers.get(name).copied().unwrap_or(id);
        (
            number(&self.users, &owner.user, owner.uid),
            number(&self.groups, &owner.group, owner.gid),
        )
    }
}

impl Ids {
    /// Reads lines of `name:password:number:…`; the first of two with one number or one name counts.
    fn read(path: &Path) -> Ids {
        let mut ids = Ids::default();
        for line in std::fs::read(path)
            .unwrap_or_default()
            .split(|b| *b == b'\n')
        {
            let mut fields = line.split(|b| *b == b':');
            let (Some(name), Some(_), Some(number)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let number = std::str::from_utf8(number)
                .ok()
                .and_then(|n| n.parse().ok());
            if let (Some(number), false) = (number, name.is_empty()) {
                ids.names.entry(number).or_insert_with(|| name.to_vec());
                ids.numbers.entry(name.to_vec()).or_insert(number);
            }
        }
        ids
    }
}
