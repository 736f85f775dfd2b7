#!/usr/bin/env python3
"""Opens sealed objects without any code of pitr, by docs/repository-format.md, section 11.

Needs the package `cryptography`; the recipient with a passphrase is opened only where that knows Argon2 (from 44 on). `decode.py` checks the vectors beside it:

    private half  20 21 .. 3f      MAC key  60 61 .. 7f      recipient "ops"  03 04 .. 22
    recipient "safe": passphrase "correct horse battery staple"
    private half of epoch 2  a0 a1 .. bf; the same MAC key, and the same recipients
"""
import hashlib
import hmac
import json
import pathlib
import struct
import sys

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HEAD, CHUNK, TAG = 112, 65536, 16


def hkdf(secret, salt, info, length):
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def public_of(private):
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def key_set_id(mac_key, private):
    return hkdf(mac_key, b"", b"pitr/1/key-set" + public_of(private), 16)


# RFC 9180, base mode, X25519 / HKDF-SHA256 / AES-256-GCM.
def extract(salt, ikm):
    return hmac.new(salt or b"\0" * 32, ikm, hashlib.sha256).digest()


def expand(prk, info, length):
    out, block, n = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([n]), hashlib.sha256).digest()
        out, n = out + block, n + 1
    return out[:length]


def labeled_extract(suite, salt, label, ikm):
    return extract(salt, b"HPKE-v1" + suite + label + ikm)


def labeled_expand(suite, prk, label, info, length):
    return expand(prk, struct.pack(">H", length) + b"HPKE-v1" + suite + label + info, length)


def hpke_open(private, enc, info, wrapped):
    key = X25519PrivateKey.from_private_bytes(private)
    raw = public_of(private)
    shared = key.exchange(X25519PublicKey.from_public_bytes(enc))
    kem = b"KEM" + struct.pack(">H", 0x20)
    eae = labeled_extract(kem, b"", b"eae_prk", shared)
    secret = labeled_expand(kem, eae, b"shared_secret", enc + raw, 32)
    suite = b"HPKE" + struct.pack(">HHH", 0x20, 1, 2)
    context = b"\0" + labeled_extract(suite, b"", b"psk_id_hash", b"") + labeled_extract(suite, b"", b"info_hash", info)
    prk = labeled_extract(suite, secret, b"secret", b"")
    aead_key = labeled_expand(suite, prk, b"key", context, 32)
    nonce = labeled_expand(suite, prk, b"base_nonce", context, 12)
    return AESGCM(aead_key).decrypt(nonce, wrapped, b"")


def open_object(data, key, private, mac_key, first=None):
    """The plain bytes and the facts of a sealed object that lies under `key`; `first` is the private half of epoch 1, where it is another."""
    assert data[-4:] == b"PSEA" and data[:8] == b"PITRSEA1"
    foot = data[-struct.unpack("<I", data[-12:-8])[0]:]
    head = foot[:HEAD]
    assert head == data[:HEAD]
    version, exponent, zero, epoch = struct.unpack("<BBHI", head[8:16])
    key_set, enc, wrapped = head[16:32], head[32:64], head[64:112]
    assert (version, exponent, zero) == (1, 16, 0)
    assert key_set == key_set_id(mac_key, first or private)
    assert (epoch == 1) == (first is None)
    at = HEAD + 2 + struct.unpack("<H", foot[HEAD:HEAD + 2])[0]
    assert foot[HEAD + 2:at].decode() == key
    end = at + 4 + struct.unpack("<I", foot[at:at + 4])[0]
    facts = json.loads(foot[at + 4:end])
    commitment, plain_bytes = foot[end:end + 32], struct.unpack("<Q", foot[end + 64:end + 72])[0]
    signed, mac = foot[:end + 72], foot[end + 72:end + 104]
    own = hmac.new(hkdf(mac_key, b"", b"pitr/1/mac", 32), b"pitr/1/foot" + signed, hashlib.sha256)
    assert hmac.compare_digest(own.digest(), mac)
    info = b"pitr/1/object" + key_set + struct.pack("<I", epoch)
    object_key = hpke_open(private, enc, info, wrapped)
    digest = hashlib.sha256(head).digest()
    derived = hkdf(object_key, digest, b"pitr/1/object", 71)
    assert derived[39:] == commitment
    aad = b"pitr/1/chunk" + key_set + digest + key.encode()
    count = max(1, -(-plain_bytes // CHUNK))
    plain, at = b"", HEAD
    for n in range(count):
        length = min(CHUNK, plain_bytes - n * CHUNK) + TAG
        nonce = derived[32:39] + struct.pack(">IB", n, n + 1 == count)
        plain += AESGCM(derived[:32]).decrypt(nonce, data[at:at + length], aad)
        at += length
    assert at + len(foot) == len(data) and len(plain) == plain_bytes
    return plain, facts


def open_recipient(recipient, private=None, passphrase=None, first=None):
    """Private half and MAC key; of a later epoch `first` is the private half of epoch 1."""
    key_set = bytes.fromhex(recipient["key_set"])
    info = b"pitr/1/recipient" + key_set + struct.pack("<I", recipient["epoch"]) + recipient["recipient"].encode()
    wrapped = bytes.fromhex(recipient["wrapped"])
    if private is not None:
        plain = hpke_open(private, bytes.fromhex(recipient["encapsulated"]), info, wrapped)
    else:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
        how = recipient["argon2id"]
        kdf = Argon2id(salt=bytes.fromhex(how["salt"]), length=32, iterations=how["passes"], lanes=how["lanes"], memory_cost=how["memory_kib"])
        plain = AESGCM(kdf.derive(passphrase)).decrypt(b"\0" * 12, wrapped, info)
    private_half, mac_key = plain[:32], plain[32:]
    assert key_set_id(mac_key, first or private_half) == key_set
    assert (recipient["epoch"] == 1) == (first is None)
    how = recipient.get("argon2id")
    fields = ["pitr/1/recipient", recipient["key_set"], str(recipient["epoch"]), recipient["recipient"],
              recipient.get("public_key", ""), recipient.get("encapsulated", ""),
              "%d,%d,%d,%s" % (how["memory_kib"], how["passes"], how["lanes"], how["salt"]) if how else "",
              recipient["wrapped"]]
    if first is not None:
        assert recipient["public_half"] == public_of(private_half).hex()
        fields.append(recipient["public_half"])
    own = hmac.new(hkdf(mac_key, b"", b"pitr/1/mac", 32), "\n".join(fields).encode(), hashlib.sha256)
    assert own.hexdigest() == recipient["mac"]
    return private_half, mac_key


def check_event(stored, key, private, mac_key):
    """Requires the MAC of an object that stays plain."""
    content, _, rest = stored.rpartition(b',"mac":"')
    key_set = key_set_id(mac_key, private)
    signed = b"pitr/1/plain" + key_set + struct.pack("<H", len(key)) + key.encode() + content
    own = hmac.new(hkdf(mac_key, b"", b"pitr/1/mac", 32), signed, hashlib.sha256)
    assert rest[:64].decode() == own.hexdigest() and rest[64:78] == b'","checksum":"'


def check_writer(file, mac_key, first, second):
    """The file of epoch 2 for hosts: what it seals to, and its MAC."""
    assert file["kind"] == "pitr writer keys" and file["epoch"] == 2 and bytes.fromhex(file["mac_key"]) == mac_key
    assert file["key_set"] == key_set_id(mac_key, first).hex()
    assert file["first_half"] == public_of(first).hex() and file["public_half"] == public_of(second).hex()
    fields = ["pitr/1/writer", file["key_set"], "2", file["public_half"], file["first_half"]]
    fields += [recipient["mac"] for recipient in file["recipients"]]
    own = hmac.new(hkdf(mac_key, b"", b"pitr/1/mac", 32), "\n".join(fields).encode(), hashlib.sha256)
    assert own.hexdigest() == file["mac"]


def knows_argon2():
    try:
        import cryptography.hazmat.primitives.kdf.argon2  # noqa: F401
    except ImportError:
        return False
    return True


def main():
    folder = pathlib.Path(__file__).parent
    ramp = lambda first: bytes(range(first, first + 32))
    keys = (ramp(0x20), ramp(0x60))
    ops, safe = json.loads((folder / "recipients.json").read_text())
    assert open_recipient(ops, private=ramp(3)) == keys
    if knows_argon2():
        assert open_recipient(safe, passphrase=b"correct horse battery staple") == keys
    check_event((folder / "event.json").read_bytes(), "clusters/main/7/events/20261120T064049Z-full/begin", *keys)
    name = "clusters/main/7/wal/00000001/00000000/000000010000000000000001"
    content = bytes((n * 31 + n // 256) & 0xFF for n in range(CHUNK + 77))
    for file, expected in (("empty.sealed", b""), ("chunks.sealed", content)):
        plain, facts = open_object((folder / file).read_bytes(), name, *keys)
        assert plain == expected and facts == {"kind": "segment"}, file
    second = (ramp(0xa0), keys[1])
    ops, safe = json.loads((folder / "recipients-2.json").read_text())
    assert open_recipient(ops, private=ramp(3), first=keys[0]) == second
    if knows_argon2():
        assert open_recipient(safe, passphrase=b"correct horse battery staple", first=keys[0]) == second
    plain, facts = open_object((folder / "epoch-2.sealed").read_bytes(), name, *second, first=keys[0])
    assert plain == content[:300] and facts == {"kind": "segment"}
    writer = json.loads((folder / "writer-2.json").read_text())
    check_writer(writer, keys[1], keys[0], second[0])
    for recipient, pair, first in zip(writer["recipients"], (keys, second), (None, keys[0])):
        assert open_recipient(recipient, private=ramp(3), first=first) == pair
    print("the vectors open")


if __name__ == "__main__":
    sys.exit(main())
