//! The store on an SFTP server: its contract, and its faults.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use pitr::error::Code;
use pitr::store::conformance::CLAUSES;
use pitr::store::sftp::SftpStore;
use pitr::store::{Key, MARKER, NewObject, Published, Store, get, put, reserve};

use crate::common::mount::SmallDisk;
use crate::common::proxy::{Proxy, Way};
use crate::common::sftp::{SftpServer, make_key};
use crate::common::{user, wait_until};
use crate::{require_mounts, require_strace};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 253) as u8).collect()
}

/// Waits until nothing unfinished is left: what was given up is removed behind the answer.
fn nothing_is_left(store: &SftpStore) {
    wait_until("nothing is left", || store.irregular().unwrap().is_empty());
}

#[test]
fn a_server_keeps_every_promise() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let store = server.store(&folder);
    let mut broken = Vec::new();
    for (n, clause) in CLAUSES.iter().enumerate() {
        match (clause.check)(&store, &format!("clause-{n}")) {
            Ok(()) => println!("kept    {}", clause.name),
            Err(e) => {
                println!("BROKEN  {}: {e}", clause.name);
                broken.push(clause.name);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:?}");
    store.probe(1).unwrap();
    nothing_is_left(&store);
    assert!(store.is_remote() && !store.is_confirming());
    let room = store.room().unwrap().unwrap();
    assert!(room.free_bytes > 0 && room.total_bytes > room.free_bytes);
    let clock = store.clock().unwrap().unwrap();
    let now = pitr::pg::time::TimestampTz::from_system_time(std::time::SystemTime::now());
    assert!((clock.0 - now.0).abs() < 60_000_000, "{clock} {now}");
    nothing_is_left(&store);
}

#[test]
fn what_is_no_object_is_found_and_only_unfinished_writes_are_discarded() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let store = server.store(&folder);
    put(&store, &key("a/b/c"), b"one").unwrap();
    std::fs::write(folder.join("a/b/.tmp.1"), b"x").unwrap();
    std::fs::write(folder.join("a/not a key"), b"x").unwrap();
    std::os::unix::fs::symlink("b", folder.join("a/link")).unwrap();
    std::os::unix::fs::symlink("c", folder.join("a/b/z")).unwrap();
    let (trial, aside) = store.aside(7).unwrap();
    put(&trial, &key("d/e/f"), b"x").unwrap();
    std::os::unix::fs::symlink("../../a", folder.join(&aside).join("d/link")).unwrap();
    let found = store.irregular().unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|i| (i.path.as_str(), i.is_unfinished))
        .collect();
    assert_eq!(
        found,
        [
            (aside.as_str(), true),
            ("a/b/.tmp.1", true),
            ("a/b/z", false),
            ("a/link", false),
            ("a/not a key", false)
        ]
    );
    assert!(store.discard("a/not a key").is_err());
    assert!(store.discard("a/b/.tmp.1").unwrap());
    assert!(!store.discard("a/b/.tmp.1").unwrap());
    assert!(store.discard(&aside).unwrap());
    assert!(!store.discard(&aside).unwrap());
    // A link is no object, and what is behind one is not absent.
    assert_eq!(store.head(&key("a/b/z")).unwrap_err().code(), Code::Damaged);
    assert!(store.head(&key("a/link/none")).is_err());
    assert_eq!(get(&store, &key("a/b/c"), 9).unwrap().unwrap(), b"one");
    // Deletions last, also where the directory is gone with them.
    assert!(store.delete(&key("a/b/c")).unwrap());
    store.settle_deletions("a/b/c/d").unwrap();
}

#[test]
fn s18_a_server_without_what_durability_needs_is_refused() {
    for (denied, named) in [
        ("fsync", "fsync@openssh.com"),
        ("hardlink", "hardlink@openssh.com"),
    ] {
        let server = SftpServer::with(&format!("-P {denied}"));
        let folder = server.folder("a");
        let store = server.store(&folder);
        let error = store.head(&key(MARKER)).unwrap_err();
        assert_eq!(error.code(), Code::Refused, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn s19_a_server_that_is_not_known_gets_nothing() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let by = |change: &dyn Fn(&mut pitr::config::SftpSettings)| {
        let store = server.store_by(server.port(), &folder, change);
        store.head(&key("x")).unwrap_err()
    };
    let empty = server.sandbox.file("nobody", "");
    let foreign = server.known_hosts("foreign", server.port(), "other.pub");
    for known in [empty, foreign] {
        let error = by(&|s| s.known_hosts_file = Some(known.clone()));
        assert_eq!(error.code(), Code::Unreachable, "{error}");
        assert!(
            error.hint_text().unwrap().contains("known hosts"),
            "{error}"
        );
    }
    // A key that the server does not accept.
    let error = by(&|s| s.key_file = Some(server.sandbox.join("other")));
    assert_eq!(error.code(), Code::Denied, "{error}");
    // Nobody listens.
    let error = server
        .store_by(1, &folder, |s| s.retry_budget = Duration::from_millis(300))
        .head(&key("x"))
        .unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

fn put_large(store: &SftpStore, at: &str, bytes: &[u8]) -> pitr::error::Result<Published> {
    let mut object = store.create(&key(at))?;
    for piece in bytes.chunks(700_000) {
        object
            .write_all(piece)
            .map_err(|e| pitr::error::Error::from_io("write", e))?;
    }
    object.publish()
}

#[test]
fn s20_a_connection_that_breaks_is_made_again_and_proves_nothing() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let proxy = Proxy::to(server.port());
    let store = server.store_by(proxy.port(), &folder, |_| {});
    let large = content(5_000_000);
    for (n, at) in [1_500_000, 3_500_000].into_iter().enumerate() {
        proxy.cut_after(Way::ToServer, at);
        let name = format!("packs/{n}");
        assert_eq!(
            put_large(&store, &name, &large).unwrap(),
            Published::Created
        );
        assert_eq!(proxy.counts().cuts, n as u64 + 1);
        assert!(get(&store, &key(&name), 1 << 24).unwrap().unwrap() == large);
    }
    proxy.cut_after(Way::ToClient, 2_000_000);
    let again = server.store_by(proxy.port(), &folder, |_| {});
    assert!(get(&again, &key("packs/0"), 1 << 24).unwrap().unwrap() == large);
    assert_eq!(proxy.counts().cuts, 3);
    // Every attempt breaks: nothing is there, and no answer claims so.
    let hasty = server.store_by(proxy.port(), &folder, |s| {
        s.retry_budget = Duration::from_millis(300);
    });
    proxy.refuse(true);
    proxy.reset();
    let error = put(&hasty, &key("y"), b"x").unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(proxy.counts().refused > 0);
    proxy.calm();
    assert!(store.open(&key("y")).unwrap().is_none());
    nothing_is_left(&store);
}

#[test]
fn s20_whatever_answer_is_lost_a_small_object_is_created_whole() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let proxy = Proxy::to(server.port());
    let store = server.store_by(proxy.port(), &folder, |_| {});
    put(&store, &key("first"), b"x").unwrap();
    for n in 0..16_u64 {
        let name = key(&format!("d/{n}"));
        // An answer has some eighty bytes: the one to each step of the write is lost once. After a lost answer to the sync another file is written.
        proxy.cut_after(Way::ToClient, n * 48);
        let published = put(&store, &name, b"content").unwrap();
        assert_eq!(published, Published::Created, "{n}");
        proxy.calm();
        let there = get(&store, &name, 100).unwrap();
        assert!(there.is_some_and(|bytes| bytes == b"content"), "{n}");
        // An object is never replaced, and never another's.
        let again = put(&store, &name, b"other").unwrap();
        assert_eq!(again, Published::Exists, "{n}");
    }
    assert!(proxy.counts().cuts > 5, "{}", proxy.counts().cuts);
    // The connection over which a rest is removed may be the one that is cut: the janitor's turn.
    for rest in store.irregular().unwrap() {
        assert!(rest.is_unfinished, "{}", rest.path);
        store.discard(&rest.path).unwrap();
    }
    nothing_is_left(&store);
}

#[test]
fn s20_a_name_that_a_server_lost_before_it_was_durable_is_found_out() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let proxy = Proxy::to(server.port());
    let store = server.store_by(proxy.port(), &folder, |_| {});
    put(&store, &key("d/first"), b"x").unwrap();
    let below = folder.join("d");
    let mut lost = 0;
    for n in 0..16_u64 {
        let name = format!("d/{n}");
        // A connection that is cut is not made again before the disk has lost what its directory was not synced for.
        proxy.refuse(true);
        let before = proxy.counts().cuts;
        proxy.cut_after(Way::ToClient, n * 48);
        let published = std::thread::scope(|scope| {
            let writing = scope.spawn(|| put(&store, &key(&name), b"content"));
            wait_until("it was cut, or is there", || {
                proxy.counts().cuts > before || writing.is_finished()
            });
            if !writing.is_finished() && folder.join(&name).exists() {
                server.kill_sessions();
                for entry in std::fs::read_dir(&below).unwrap() {
                    let path = entry.unwrap().path();
                    let text = path.file_name().unwrap().to_string_lossy().into_owned();
                    if text == n.to_string() || text.contains(".tmp.") {
                        std::fs::remove_file(path).unwrap();
                    }
                }
            }
            proxy.calm();
            writing.join().unwrap()
        });
        let there = get(&store, &key(&name), 100).unwrap();
        match published {
            Ok(published) => {
                assert_eq!(published, Published::Created, "{n}");
                assert_eq!(there.as_deref(), Some(&b"content"[..]), "{n}");
            }
            Err(e) => {
                assert_eq!(e.code(), Code::Unreachable, "{n}: {e}");
                lost += u32::from(e.to_string().contains("lost the name"));
            }
        }
    }
    assert!(lost > 0, "the server was never lost between name and sync");
}

#[test]
fn s20_a_server_that_lost_what_it_had_taken_is_found_out() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let store = server.store(&folder);
    let unfinished = |folder: &Path| {
        let entries = std::fs::read_dir(folder.join("packs")).unwrap();
        let mut paths = entries.map(|e| e.unwrap().path());
        paths
            .find(|p| p.display().to_string().contains(".tmp."))
            .unwrap()
    };
    for spoil in ["truncate", "flip", "remove", "nothing"] {
        let name = key(&format!("packs/{spoil}"));
        let mut object = store.create(&name).unwrap();
        object.write_all(&content(2_500_000)).unwrap();
        let path = unfinished(&folder);
        wait_until("two pieces are there", || {
            std::fs::metadata(&path).unwrap().len() >= 2 << 20
        });
        // Asked behind them, so that the second has been answered, too.
        store.list("").unwrap();
        assert!(server.kill_sessions() > 0);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        match spoil {
            "truncate" => file.set_len(1000).unwrap(),
            "flip" => std::os::unix::fs::FileExt::write_all_at(&file, b"\xff", 5).unwrap(),
            "remove" => std::fs::remove_file(&path).unwrap(),
            _ => {}
        }
        match (spoil, object.publish()) {
            ("nothing", published) => assert_eq!(published.unwrap(), Published::Created),
            (_, published) => {
                let error = published.unwrap_err();
                assert_eq!(error.code(), Code::Unreachable, "{spoil}: {error}");
                assert!(error.to_string().contains("lost"), "{spoil}: {error}");
                assert!(store.open(&name).unwrap().is_none());
            }
        }
    }
    nothing_is_left(&store);
}

#[test]
fn s20_a_sync_that_fails_is_an_error_and_not_asked_for_again() {
    require_strace!("s20_a_sync_that_fails_is_an_error_and_not_asked_for_again");
    let mut server = SftpServer::start();
    let folder = server.folder("a");
    // The first sync is of the file, the second of its directory.
    for nth in [1, 2] {
        let log = server.sandbox.join(format!("trace-{nth}"));
        let inject = format!("inject=fsync:error=EIO:when={nth}");
        let shown = log.display().to_string();
        let strace = [
            "strace",
            "-f",
            "-qq",
            "-o",
            &shown,
            "-e",
            "trace=fsync",
            "-e",
            &inject,
        ];
        server.restart_under(&strace);
        let store = server.store_by(server.port(), &folder, |s| {
            s.retry_budget = Duration::from_secs(30 + nth);
        });
        let name = key(&format!("object-{nth}"));
        let error = put(&store, &name, b"one").unwrap_err();
        assert_eq!(error.code(), Code::Io, "{error}");
        let trace = std::fs::read_to_string(&log).unwrap();
        assert_eq!(trace.matches("(INJECTED)").count(), 1, "{trace}");
        assert_eq!(trace.matches("fsync(").count() as u64, nth, "{trace}");
        // A name that is not known to last may be there: whoever finds it settles it.
        let there = store.open(&name).unwrap();
        assert_eq!(there.is_some(), nth == 2);
        if let Some(object) = there {
            object.settle().unwrap();
        }
    }
    // Such a server is no place for a repository.
    let always = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=fsync:error=EINVAL",
    ];
    server.restart_under(&always);
    let store = server.store_by(server.port(), &folder, |s| {
        s.retry_budget = Duration::from_secs(29);
    });
    let error = store.probe(1).unwrap_err();
    assert_eq!(error.code(), Code::Refused, "{error}");
    assert!(error.to_string().contains("directories"), "{error}");
}

#[test]
fn s20_a_server_that_falls_silent_is_given_up() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let proxy = Proxy::to(server.port());
    let store = server.store_by(proxy.port(), &folder, |s| {
        s.stall_timeout = Duration::from_secs(4);
    });
    put(&store, &key("x"), b"one").unwrap();
    proxy.stall(Way::ToClient);
    assert_eq!(get(&store, &key("x"), 9).unwrap().unwrap(), b"one");
    assert_eq!(proxy.counts().stalled, 1);
}

#[test]
fn s21_a_disk_that_is_gone_is_not_an_empty_one() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let store = server.store(&folder);
    put(&store, &key(MARKER), b"{}").unwrap();
    put(&store, &key("wal/x"), b"one").unwrap();
    assert!(store.head(&key(MARKER)).unwrap().is_some());
    assert!(store.head(&key("wal/y")).unwrap().is_none());
    // As when the disk is unmounted: an empty directory, and then none.
    let away = server.sandbox.join("away");
    std::fs::rename(&folder, &away).unwrap();
    for missing in [false, true] {
        if !missing {
            server.folder("a");
        } else {
            std::fs::remove_dir(&folder).unwrap();
        }
        for failed in [
            store.head(&key("wal/x")).map(drop),
            store.open(&key("wal/x")).map(drop),
            store.list("wal").map(drop),
            store.delete(&key("wal/x")).map(drop),
        ] {
            assert_eq!(failed.unwrap_err().code(), Code::NoRepository);
        }
    }
    assert!(put(&store, &key("new/x"), b"one").is_err());
    assert!(!folder.exists(), "nothing is made below a mount point");
    std::fs::rename(&away, &folder).unwrap();
    assert_eq!(get(&store, &key("wal/x"), 9).unwrap().unwrap(), b"one");
    // A file in the place of a directory proves nothing, either.
    let error = store.head(&key("wal/x/y")).unwrap_err();
    assert_eq!(error.code(), Code::Io, "{error}");
}

#[test]
fn s22_no_room_no_right_and_a_disk_that_is_read_only_are_told_apart() {
    require_mounts!("s22_no_room_no_right_and_a_disk_that_is_read_only_are_told_apart");
    let server = SftpServer::start();
    let disk = SmallDisk::new(3, 100);
    let folder = disk.path().join("a");
    std::fs::create_dir(&folder).unwrap();
    user::own(&folder);
    let store = server.store(&folder);
    put(&store, &key("small"), b"one").unwrap();
    let error = put_large(&store, "packs/x", &content(6_000_000)).unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    let mut object = store.create(&key("packs/z")).unwrap();
    let _ = object.write_all(&content(6_000_000));
    assert_eq!(object.publish().unwrap_err().code(), Code::Full);
    assert!(store.open(&key("packs/x")).unwrap().is_none());
    nothing_is_left(&store);
    disk.read_only(true);
    let error = put(&store, &key("other"), b"one").unwrap_err();
    assert_eq!(error.code(), Code::ReadOnly, "{error}");
    assert_eq!(get(&store, &key("small"), 9).unwrap().unwrap(), b"one");
    disk.read_only(false);
    // A directory of somebody else's.
    if !user::is_root() {
        crate::skip!("s22_a_directory_of_somebody_else", "needs root");
    }
    let closed = server.folder("closed");
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o500)).unwrap();
    let error = put(&server.store(&closed), &key("x"), b"one").unwrap_err();
    assert_eq!(error.code(), Code::Denied, "{error}");
}

#[test]
fn x16_a_full_disk_on_a_server_gives_up_its_reserve() {
    require_mounts!("x16_a_full_disk_on_a_server_gives_up_its_reserve");
    let server = SftpServer::start();
    for (megabytes, inodes) in [(3, 1000), (30, 60)] {
        let disk = SmallDisk::new(megabytes, inodes);
        let folder = disk.path().join("a");
        std::fs::create_dir(&folder).unwrap();
        user::own(&folder);
        let store = server.store(&folder);
        store.keep_reserve().unwrap();
        nothing_is_left(&store);
        let write = |n: usize| put(&store, &key(&format!("events/{n}")), &content(4000));
        let full = (0..2000).find_map(|n| write(n).err().map(|e| (n, e.code())));
        let (n, code) = full.unwrap();
        assert_eq!(code, Code::Full);
        // Each piece makes room for a write at the least.
        for more in 0..8 {
            let written = reserve::spend(&store, 0, || write(n + more));
            assert_eq!(written.unwrap(), Published::Created, "{more}");
        }
        for gone in 0..n {
            store.delete(&key(&format!("events/{gone}"))).unwrap();
        }
        store.keep_reserve().unwrap();
        assert_eq!(pieces_in(&folder), 16);
    }
}

/// How many pieces of a reserve lie in a folder.
fn pieces_in(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap();
    let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(".tmp.reserve.")).count()
}

#[test]
fn many_objects_and_writers_at_once_need_no_more_handles_than_there_are() {
    let server = SftpServer::start();
    let folder = server.folder("a");
    let store = server.store(&folder);
    let names: Vec<Key> = (0..130).map(|n| key(&format!("many/{n:03}"))).collect();
    std::thread::scope(|scope| {
        for names in names.chunks(17) {
            let store = &store;
            scope.spawn(move || {
                for name in names {
                    put(store, name, name.as_str().as_bytes()).unwrap();
                }
            });
        }
    });
    let open: Vec<_> = names
        .iter()
        .map(|n| store.open(n).unwrap().unwrap())
        .collect();
    for _ in 0..2 {
        for (object, name) in open.iter().zip(&names) {
            let expected = name.as_str().as_bytes();
            let mut buffer = vec![0; expected.len()];
            object.read_at(&mut buffer, 0).unwrap();
            assert_eq!(buffer, expected);
            object.settle().unwrap();
        }
    }
    let listed = store.list("many").unwrap();
    assert_eq!(listed.len(), names.len());
    assert!(
        listed
            .iter()
            .all(|l| l.meta.is_some_and(|m| m.size_bytes == 8))
    );
    // Writers that are begun and not over.
    let mut writers: Vec<Box<dyn NewObject>> = (0..60)
        .map(|n| store.create(&key(&format!("writers/{n}"))).unwrap())
        .collect();
    for writer in &mut writers {
        writer.write_all(b"one").unwrap();
    }
    for writer in writers {
        assert_eq!(writer.publish().unwrap(), Published::Created);
    }
    nothing_is_left(&store);
}

#[test]
fn a_key_with_a_passphrase_is_used_with_its_file() {
    let server = SftpServer::start();
    let folder = server.folder("repo");
    let locked = server.sandbox.join("locked");
    make_key(&locked, "correct horse");
    let mut authorized = std::fs::read(server.sandbox.join("authorized")).unwrap();
    authorized.extend(std::fs::read(server.sandbox.join("locked.pub")).unwrap());
    server.sandbox.file("authorized", authorized);
    let config = |passphrase: &str| {
        let file = server.sandbox.file("passphrase", format!("{passphrase}\n"));
        let section = server.section(&folder).replace("/key\"", "/locked\"");
        let text = format!(
            "[repositories.far]\n{section}ssh_passphrase_file = \"{}\"\n",
            file.display()
        );
        server.sandbox.file("pitr.toml", text)
    };
    let run = |passphrase: &str| {
        let check = crate::common::pitr()
            .arg("--config")
            .arg(config(passphrase));
        check.words("repo check").run()
    };
    // It gets in, and finds no repository.
    run("correct horse")
        .expect_code(9)
        .expect_stderr("it has no pitr.json");
    let refused = run("wrong horse");
    assert!(
        !refused.is_success() && refused.stderr.contains("Permission denied"),
        "{refused}"
    );
    assert!(!refused.stderr.contains("horse"), "{refused}");
    let open = config("correct horse");
    std::fs::set_permissions(
        server.sandbox.join("passphrase"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let check = crate::common::pitr().arg("--config").arg(open);
    check
        .words("repo check")
        .exits(3)
        .expect_stderr("chmod 600");
}
