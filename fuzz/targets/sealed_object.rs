//! Sealed objects: whatever lies in the store, a host with any of the keys reads what was sealed or an error, and one without them reads
//! facts of bounded size. Recipients: what can be read is written the same again, and opens nothing that it does not hold.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pitr::error::Result;
use pitr::repo::container::Container;
use pitr::repo::id::BackupId;
use pitr::repo::json;
use pitr::repo::keyring::{self, Keys, system_random};
use pitr::repo::layout::ClusterLayout;
use pitr::repo::root::BackupRoot;
use pitr::repo::sealed::SealedStore;
use pitr::seal::{
    Access, CHUNK, Contents, Drawn, Foot, HEAD, Head, PrivateHalf, PublicHalf, Recipient, Sealer,
    Secret32, TAIL, foot_length, public_of, random_pair, sealed_bytes,
};
use pitr::store::{Key, Listed, Meta, NewObject, Object, Room, Store};
use pitr_fuzz::{Input, Memory, SYSTEM_IDENTIFIER, within};

const CEILING: usize = 100 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (mode, is_root) = (input.choice(4), input.choice(2) == 0);
    let place = Place::new(is_root);
    match mode {
        0 => bytes(&place, input.rest()),
        1 => bytes(&place, &framed(&place, &mut input)),
        2 => sealed_and_changed(&place, &mut input),
        _ => recipient(&mut input),
    }
}

/// The keys of everything the target makes.
static OWN: LazyLock<Contents> = LazyLock::new(|| {
    let (private, _) = random_pair(&secret(1));
    Contents::new(private, secret(2)).unwrap()
});
static PUBLIC: LazyLock<PublicHalf> = LazyLock::new(|| public_of(&OWN.private).unwrap());

fn secret(n: u8) -> Secret32 {
    Secret32::new([n; 32])
}

/// The place of the object: the key of a root, or of a segment.
struct Place {
    layout: ClusterLayout,
    id: BackupId,
    key: Key,
}

impl Place {
    fn new(is_root: bool) -> Place {
        let layout = ClusterLayout::new("main", SYSTEM_IDENTIFIER).unwrap();
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let key = match is_root {
            true => layout.manifest(&id),
            false => layout.segment("000000010000000000000001".parse().unwrap()),
        };
        Place { layout, id, key }
    }
}

/// A store of one object.
struct One(Vec<u8>);

impl Store for One {
    fn location(&self) -> String {
        "memory".to_owned()
    }
    fn open(&self, _key: &Key) -> Result<Option<Box<dyn Object>>> {
        Ok(Some(Memory::boxed(&self.0)))
    }
    fn create(&self, _key: &Key) -> Result<Box<dyn NewObject>> {
        unreachable!("nothing is written")
    }
    fn list(&self, _prefix: &str) -> Result<Vec<Listed>> {
        Ok(Vec::new())
    }
    fn head(&self, _key: &Key) -> Result<Option<Meta>> {
        Ok(None)
    }
    fn delete(&self, _key: &Key) -> Result<bool> {
        unreachable!("nothing is deleted")
    }
    fn room(&self) -> Result<Option<Room>> {
        Ok(None)
    }
}

/// The keys that a host holds.
#[derive(Clone, Copy, PartialEq)]
enum Host {
    Janitor,
    Writer,
    Reader,
}

fn store(host: Host, object: &[u8]) -> SealedStore {
    let keys = Keys {
        id: OWN.mac.id(),
        public: (host != Host::Janitor).then_some((1, *PUBLIC)),
        is_of_file: true,
        mac: (host != Host::Janitor).then(|| OWN.mac.clone()),
        private: (host == Host::Reader).then(|| OWN.private.clone()),
        own: None,
        random: system_random,
    };
    SealedStore::new(Box::new(One(object.to_vec())), keys)
}

/// Everything of an object, as a host with the private half reads it.
fn content(place: &Place, object: &[u8]) -> Result<Vec<u8>> {
    let store = store(Host::Reader, object);
    let object = store.open(&place.key)?.unwrap();
    let mut content = vec![0; usize::try_from(object.size_bytes()).unwrap()];
    object.read_at(&mut content, 0)?;
    Ok(content)
}

/// Any bytes, as hosts with any of the keys see them.
fn bytes(place: &Place, object: &[u8]) {
    if let Some(head) = object.first_chunk::<HEAD>()
        && let Ok(decoded) = Head::decode(head)
    {
        assert_eq!(decoded.encode(), *head);
    }
    if let Ok(foot) = Foot::decode(object) {
        let tail = object.last_chunk::<TAIL>().unwrap();
        assert_eq!(foot_length(tail), Some(object.len() as u64));
        let _ = foot.check_length(object.len() as u64, object.len() as u64);
    }
    let _ = content(place, object);
    for host in [Host::Janitor, Host::Writer, Host::Reader] {
        let store = store(host, object);
        if let Ok(Some(object)) = store.open(&place.key) {
            if let Some(opaque) = object.opaque() {
                let _ = opaque.check_stored();
            }
            let _ = Container::open(object);
        }
        let _ = BackupRoot::read(&store, &place.layout, &place.id);
    }
}

/// An object whose lengths and checksums are right, with any facts in its foot: what somebody without the MAC key can make.
fn framed(place: &Place, input: &mut Input<'_>) -> Vec<u8> {
    let plain_bytes = u64::from(input.u16());
    let head = Head {
        epoch: 1,
        key_set: OWN.mac.id(),
        encapsulated: [3; 32],
        wrapped: [4; 48],
    }
    .encode();
    let body = usize::try_from(sealed_bytes(plain_bytes).unwrap()).unwrap();
    let mut object = head.to_vec();
    object.resize(body, 5);
    let stored = *blake3::hash(&object).as_bytes();
    let (key, facts) = (place.key.as_str().as_bytes(), input.rest());
    let mut foot = head.to_vec();
    foot.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
    foot.extend(key);
    foot.extend(u32::try_from(facts.len()).unwrap().to_le_bytes());
    foot.extend(facts);
    foot.extend([6; 32]);
    foot.extend(stored);
    foot.extend(plain_bytes.to_le_bytes());
    foot.extend([7; 32]);
    foot.extend(u32::try_from(foot.len() + TAIL).unwrap().to_le_bytes());
    foot.extend(crc32c::crc32c(&foot).to_le_bytes());
    foot.extend(b"PSEA");
    object.extend(foot);
    object
}

/// Checks that sealed bytes are read back the same. A changed object yields the same bytes or an error.
fn sealed_and_changed(place: &Place, input: &mut Input<'_>) {
    let changes = [(input.u32(), input.u8()), (input.u32(), input.u8())];
    let (cut, times) = (usize::from(input.u16()), usize::from(input.u8()));
    let piece = input.rest();
    let plain = piece.repeat(times.min(2 * CHUNK / piece.len().max(1)));
    let drawn = Drawn {
        object_key: secret(8),
        ephemeral: secret(9),
    };
    let mut sealer =
        Sealer::new(Vec::new(), place.key.as_str(), (1, &PUBLIC), &OWN.mac, &drawn).unwrap();
    std::io::Write::write_all(&mut sealer, &plain).unwrap();
    let mut object = sealer.finish(b"{}", &OWN.mac).unwrap().0;
    assert_eq!(content(place, &object).unwrap(), plain);
    let whole = object.clone();
    for (at, flip) in changes {
        let at = usize::try_from(at).unwrap() % object.len();
        object[at] ^= flip;
    }
    object.truncate(object.len() - cut % object.len());
    match content(place, &object) {
        Ok(read) => assert_eq!(read, plain),
        Err(_) => assert_ne!(object, whole),
    }
}

fn recipient(input: &mut Input<'_>) {
    let is_own = input.choice(2) == 0;
    let body = input.rest();
    let key = Key::new("keys/1/ops").unwrap();
    let head = b"{\"format\":1,\"kind\":\"recipient\",\"key\":\"keys/1/ops\"";
    let body = [head, body].concat();
    let hash = blake3::hash(&body).to_hex();
    let object = [
        &body,
        b",\"checksum\":\"blake3:".as_slice(),
        hash.as_bytes(),
        b"\"}\n",
    ]
    .concat();
    let Ok(Some(read)) = keyring::recipient(&One(object), 1, "ops") else {
        return;
    };
    let written = json::encode(&key, keyring::RECIPIENT, &read).unwrap();
    assert_eq!(
        json::decode::<Recipient>(&key, keyring::RECIPIENT, &written).unwrap(),
        read
    );
    // A passphrase costs memory and time on purpose; that what it asks for is bounded is tested elsewhere.
    let private: PrivateHalf = match is_own {
        true => OWN.private.clone(),
        false => random_pair(&secret(10)).0,
    };
    if let Ok(opened) = read.open(&Access::Key(&private)) {
        assert!(read.is_genuine(&opened.mac));
        assert_eq!(opened.mac.id().to_string(), read.key_set);
    }
}
