//! Vectors that another program checks (`testdata/sealed/decode.py`), and what no change of a sealed object gets past.

use std::io::Write;

use super::*;
use crate::error::Code;

const KEY: &str = "clusters/main/7/wal/00000001/00000000/000000010000000000000001";
const FACTS: &[u8] = br#"{"kind":"segment"}"#;

fn secret(seed: u8) -> Secret32 {
    Secret32::new(std::array::from_fn(|n| {
        seed.wrapping_add(u8::try_from(n).unwrap())
    }))
}

fn contents() -> Contents {
    Contents::new(PrivateHalf(secret(0x20)), secret(0x60)).unwrap()
}

/// The second epoch of the same key set.
fn second() -> Contents {
    Contents {
        private: PrivateHalf(secret(0xa0)),
        mac: contents().mac,
        epoch: 2,
    }
}

fn plain(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| (n * 31 + n / 256).to_le_bytes()[0])
        .collect()
}

fn sealer<W: Write>(sink: W, key: &str, seed: u8) -> Sealer<W> {
    sealer_by(&contents(), sink, key, seed)
}

fn sealer_by<W: Write>(keys: &Contents, sink: W, key: &str, seed: u8) -> Sealer<W> {
    let public = public_of(&keys.private).unwrap();
    let drawn = Drawn {
        object_key: secret(seed),
        ephemeral: secret(seed.wrapping_add(1)),
    };
    Sealer::new(sink, key, (keys.epoch, &public), &keys.mac, &drawn).unwrap()
}

fn sealed(key: &str, plain: &[u8], seed: u8) -> Vec<u8> {
    sealed_by(&contents(), key, plain, seed)
}

fn sealed_by(keys: &Contents, key: &str, plain: &[u8], seed: u8) -> Vec<u8> {
    let mut sealer = sealer_by(keys, Vec::new(), key, seed);
    for piece in plain.chunks(10_007) {
        sealer.write_all(piece).unwrap();
    }
    sealer.finish(FACTS, &keys.mac).unwrap().0
}

/// As a reader does it: foot, MAC, key, length, chunks, head.
fn opened(key: &str, object: &[u8], keys: &Contents) -> crate::error::Result<Vec<u8>> {
    let damaged = || crate::err!(Damaged, "not sealed");
    let tail = object.last_chunk::<TAIL>().ok_or_else(damaged)?;
    let length = foot_length(tail).ok_or_else(damaged)?;
    let at = (object.len() as u64)
        .checked_sub(length)
        .ok_or_else(damaged)?;
    let at = usize::try_from(at).unwrap();
    let foot = Foot::decode(&object[at..])?;
    let head = foot.decoded_head()?;
    if !foot.is_genuine(&keys.mac) || foot.key != key || head.epoch != keys.epoch {
        return Err(damaged());
    }
    foot.check_length(object.len() as u64, length)?;
    if object[..HEAD] != foot.head {
        return Err(damaged());
    }
    let opener = Opener::new(&foot, &keys.mac, &keys.private)?;
    let mut plain = Vec::new();
    let mut at = HEAD;
    for number in 0..chunks(foot.plain_bytes) {
        let end = at + opener.chunk_bytes(number) + TAG;
        let mut chunk = object[at..end].to_vec();
        let n = opener.open(number, &mut chunk)?;
        plain.extend_from_slice(&chunk[..n]);
        at = end;
    }
    assert_eq!(*blake3::hash(&object[..at]).as_bytes(), foot.stored);
    Ok(plain)
}

/// Takes so many writes, fails at the next, and would take all that come after it.
struct FailsOnce {
    before: usize,
    has_failed: bool,
    after: usize,
}

impl Write for &mut FailsOnce {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match (self.before.checked_sub(1), self.has_failed) {
            (Some(left), false) => self.before = left,
            (None, false) => {
                self.has_failed = true;
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            (_, true) => self.after += 1,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.after += usize::from(self.has_failed);
        Ok(())
    }
}

#[test]
fn nothing_is_written_behind_a_chunk_that_was_not() {
    let keys = contents();
    // The head is the first write; the first chunks go out as the second.
    for ends in [false, true] {
        let mut sink = FailsOnce {
            before: 1,
            has_failed: false,
            after: 0,
        };
        let mut sealer = sealer(&mut sink, KEY, 1);
        let refused = sealer.write_all(&plain(9 * CHUNK)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        for length in [0, 1, 2 * CHUNK] {
            assert!(sealer.write(&plain(length)).is_err());
        }
        assert!(sealer.flush().is_err());
        match ends {
            true => assert!(sealer.finish(FACTS, &keys.mac).is_err()),
            false => drop(sealer),
        }
        assert!(sink.has_failed);
        assert_eq!(sink.after, 0);
    }
}

#[test]
fn what_was_sealed_opens_whatever_its_length() {
    let edges = [1, CHUNK, 2 * CHUNK, 4 * CHUNK, 9 * CHUNK];
    for length in edges.iter().flat_map(|n| [n - 1, *n, n + 1, n + 77]) {
        let plain = plain(length);
        let object = sealed(KEY, &plain, 1);
        assert_eq!(
            opened(KEY, &object, &contents()).unwrap(),
            plain,
            "{length}"
        );
        let foot = object.len() as u64 - sealed_bytes(length as u64).unwrap();
        assert_eq!(foot_length(object.last_chunk().unwrap()), Some(foot));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let keys = contents();
    let object = sealed(KEY, &plain(300), 1);
    let refuses = |bad: &[u8], what: &str| {
        let e = opened(KEY, bad, &keys).map(|_| ()).expect_err(what);
        assert!(
            matches!(e.code(), Code::Damaged | Code::Unsupported),
            "{what}: {e}"
        );
    };
    for bit in 0..object.len() * 8 {
        let mut bad = object.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        refuses(&bad, &format!("bit {bit}"));
    }
    for length in 0..object.len() {
        refuses(&object[..length], &format!("cut to {length}"));
    }
}

#[test]
fn chunks_of_two_objects_and_in_another_order_are_refused() {
    let keys = contents();
    let long = plain(3 * CHUNK);
    let object = sealed(KEY, &long, 1);
    let refuses = |bad: &[u8]| {
        assert_eq!(opened(KEY, bad, &keys).unwrap_err().code(), Code::Damaged);
    };
    let whole = CHUNK + TAG;
    let chunk = |n: usize| HEAD + n * whole..HEAD + (n + 1) * whole;
    let mut bad = object.clone();
    bad.copy_within(chunk(1), chunk(0).start);
    refuses(&bad);
    // Another object of the same key and content, sealed again.
    let again = sealed(KEY, &long, 9);
    let mut bad = object.clone();
    bad[chunk(1)].copy_from_slice(&again[chunk(1)]);
    refuses(&bad);
    // The same object key under another name.
    let other = sealed(&KEY.replace("0001/", "0002/"), &long, 1);
    assert_ne!(object[chunk(0)], other[chunk(0)]);
    refuses(&other);
}

#[test]
fn a_foot_of_another_mac_key_is_forged_and_another_private_half_opens_nothing() {
    let object = sealed(KEY, &plain(10), 1);
    let stranger = Contents {
        mac: MacKey::new(secret(0x61), &public_of(&contents().private).unwrap()).unwrap(),
        ..contents()
    };
    assert!(opened(KEY, &object, &stranger).is_err());
    let other = Contents {
        private: PrivateHalf(secret(0x21)),
        ..contents()
    };
    let e = opened(KEY, &object, &other).unwrap_err();
    assert_eq!(e.code(), Code::Key, "{e}");
}

#[test]
fn a_recipient_opens_with_its_own_key_or_passphrase_only() {
    let keys = contents();
    let own = PrivateHalf(secret(3));
    let public = public_of(&own).unwrap();
    let by_key = keys.wrap_to_key("ops", &public, &secret(4)).unwrap();
    let opened = by_key.open(&Access::Key(&own)).unwrap();
    assert!(opened.private == keys.private && opened.mac.id() == keys.mac.id());
    let wrong = |r: &Recipient, access: &Access<'_>| r.open(access).err().unwrap().code();
    let strange = PrivateHalf(secret(5));
    assert_eq!(wrong(&by_key, &Access::Key(&strange)), Code::Key);
    assert_eq!(wrong(&by_key, &Access::Passphrase(b"x")), Code::Key);
    let argon2 = Argon2 {
        memory_kib: 8 << 10,
        passes: 1,
        ..Argon2::usual([7; 16])
    };
    let by_text = keys.wrap_to_passphrase("safe", b"correct", argon2).unwrap();
    assert!(by_text.open(&Access::Passphrase(b"correct")).is_ok());
    assert_eq!(wrong(&by_text, &Access::Passphrase(b"wrong")), Code::Key);
    // Under another name it is worth nothing.
    let renamed = Recipient {
        recipient: "eve".into(),
        ..by_key.clone()
    };
    assert!(!renamed.is_genuine(&keys.mac) && by_key.is_genuine(&keys.mac));
    assert_eq!(wrong(&renamed, &Access::Key(&own)), Code::Key);
    // Parameters that would take all memory are refused before any is taken.
    for (memory_kib, passes, lanes) in [
        (64 << 20, 1, 1),
        (8 << 10, 1 << 30, 1),
        (8 << 10, 1, 1 << 20),
        (0, 0, 0),
    ] {
        let greedy = Recipient {
            argon2id: Some(Argon2 {
                memory_kib,
                passes,
                lanes,
                salt: "00".repeat(16),
            }),
            ..by_text.clone()
        };
        let code = wrong(&greedy, &Access::Passphrase(b"correct"));
        assert_eq!(code, Code::Damaged, "{memory_kib} {passes} {lanes}");
    }
}

/// Whoever only writes holds the MAC key: with it a private half of its own can be wrapped and signed, and what others seal from then on
/// would be its to read.
#[test]
fn an_exchanged_private_half_is_not_of_the_key_set() {
    let keys = contents();
    let own = PrivateHalf(secret(3));
    let public = public_of(&own).unwrap();
    let exchanged = Contents {
        private: PrivateHalf(secret(0x21)),
        mac: keys.mac.clone(),
        epoch: FIRST_EPOCH,
    };
    let forged = exchanged.wrap_to_key("ops", &public, &secret(4)).unwrap();
    assert!(forged.is_genuine(&keys.mac), "its MAC is right");
    let e = forged.open(&Access::Key(&own)).err().unwrap();
    assert_eq!(e.code(), Code::Damaged, "{e}");
    assert!(
        e.to_string()
            .contains("does not hold the keys of its key set")
    );
    // Honest about its pair, it is of another key set.
    let other = Contents::new(PrivateHalf(secret(0x21)), keys.mac.secret().clone()).unwrap();
    assert_ne!(other.mac.id(), keys.mac.id());
}

/// Compares what is written today with the files of a folder, which it returns.
fn check_vectors(
    name: &str,
    recipients: [crate::error::Result<Recipient>; 2],
    objects: &[(&str, Vec<u8>)],
) -> std::path::PathBuf {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/sealed");
    let mut text = serde_json::to_vec_pretty(&recipients.map(Result::unwrap)).unwrap();
    text.push(b'\n');
    for (name, written) in [(name, text)].iter().chain(objects) {
        let path = folder.join(name);
        if std::env::var_os("PITR_WRITE_VECTORS").is_some() {
            std::fs::write(&path, written).unwrap();
        }
        let stored = std::fs::read(&path).unwrap();
        assert!(stored == *written, "{name} differs");
    }
    folder
}

/// The files in `testdata/sealed`, which do not change any more: repositories hold such objects.
#[test]
fn the_vectors_are_what_is_written_today() {
    let keys = contents();
    let argon2 = Argon2::usual([7; 16]);
    let recipients = [
        keys.wrap_to_key(
            "ops",
            &public_of(&PrivateHalf(secret(3))).unwrap(),
            &secret(4),
        ),
        keys.wrap_to_passphrase("safe", b"correct horse battery staple", argon2),
    ];
    let objects = [
        ("empty.sealed", sealed(KEY, b"", 1)),
        ("chunks.sealed", sealed(KEY, &plain(CHUNK + 77), 5)),
    ];
    let folder = check_vectors("recipients.json", recipients, &objects);
    let stored = std::fs::read(folder.join("chunks.sealed")).unwrap();
    let opened = opened(KEY, &stored, &keys).unwrap();
    assert_eq!(opened, plain(CHUNK + 77));
}

/// A recipient of a later epoch names the public half: the id of the key set says nothing of it.
#[test]
fn a_recipient_of_a_later_epoch_opens_its_pair_alone() {
    let (first, second) = (contents(), second());
    let own = PrivateHalf(secret(3));
    let public = public_of(&own).unwrap();
    let access = Access::Key(&own);
    let by_key = second.wrap_to_key("ops", &public, &secret(4)).unwrap();
    let opened = by_key.open_later(&access, &first.mac).unwrap();
    assert!(opened.private == second.private && opened.epoch == 2);
    let code = |r: &Recipient| r.open_later(&access, &first.mac).err().unwrap().code();
    // Neither epoch stands for the other.
    assert_eq!(by_key.open(&access).err().unwrap().code(), Code::Damaged);
    let of_first = first.wrap_to_key("ops", &public, &secret(4)).unwrap();
    assert_eq!(code(&of_first), Code::Damaged);
    assert_eq!(of_first.public_half, None);
    for changed in [
        Recipient {
            epoch: 3,
            ..by_key.clone()
        },
        Recipient {
            public_half: None,
            ..by_key.clone()
        },
        Recipient {
            public_half: Some(text_of(&first)),
            ..by_key.clone()
        },
    ] {
        assert!(!changed.is_of(&first.mac));
        assert_eq!(code(&changed), Code::Damaged);
    }
    // A host that only writes signs what it likes; the wrapped half is not that of the name.
    let stranger = Contents {
        private: PrivateHalf(secret(0x21)),
        mac: first.mac.clone(),
        epoch: 2,
    };
    let honest = stranger.wrap_to_key("ops", &public, &secret(4)).unwrap();
    let opened = honest.open_later(&access, &first.mac).unwrap();
    assert!(opened.private != second.private, "it names its own pair");
    assert_ne!(honest.public_half, by_key.public_half);
    let other = Contents::new(PrivateHalf(secret(0x20)), secret(0x61)).unwrap();
    let other = Contents { epoch: 2, ..other };
    let strange = other.wrap_to_key("ops", &public, &secret(4)).unwrap();
    assert_eq!(code(&strange), Code::Damaged);
}

fn text_of(keys: &Contents) -> String {
    crate::text::hex(&public_of(&keys.private).unwrap().0)
}

#[test]
fn an_object_opens_by_the_pair_of_its_epoch_alone() {
    let object = sealed_by(&second(), KEY, &plain(300), 1);
    assert_eq!(opened(KEY, &object, &second()).unwrap(), plain(300));
    let stranger = Contents {
        epoch: 2,
        ..contents()
    };
    let e = opened(KEY, &object, &stranger).unwrap_err();
    assert_eq!(e.code(), Code::Key, "{e}");
    // The epoch is in the information of HPKE: the same pair under another number opens nothing.
    let again = Contents {
        epoch: 3,
        ..second()
    };
    assert_ne!(sealed_by(&again, KEY, b"", 1)[32..], object[32..144]);
}

/// The files of the second epoch in `testdata/sealed`, which do not change any more.
#[test]
fn the_vectors_of_a_later_epoch_are_what_is_written_today() {
    let keys = second();
    let ops = public_of(&PrivateHalf(secret(3))).unwrap();
    let recipients = [
        keys.wrap_to_key("ops", &ops, &secret(6)),
        keys.wrap_to_passphrase(
            "safe",
            b"correct horse battery staple",
            Argon2::usual([8; 16]),
        ),
    ];
    let object = sealed_by(&keys, KEY, &plain(300), 5);
    check_vectors(
        "recipients-2.json",
        recipients,
        &[("epoch-2.sealed", object)],
    );
}
