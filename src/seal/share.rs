//! Shares of a recipient's private key: texts for paper, so many of which give the key back, and fewer tell nothing.
//!
//! Shamir's secret sharing, byte by byte in GF(2^8) (decision 0062). A share is checked line by line, for it is typed from paper. Joined
//! keys are checked by their public half.

use std::fmt::Write as _;

use blahaj::Sharks;
use zeroize::Zeroizing;

use super::key::{KeySetId, PrivateHalf, PublicHalf, Secret32};
use super::recipient::is_recipient_name;
use super::wrap::{self, Given};
use crate::err;
use crate::error::{Error, Result};
use crate::text;

/// More shares are refused: so many people are not found at night.
pub const SHARES_MAX: u8 = 16;
/// With one share that opens the key it would not be divided.
pub const THRESHOLD_MIN: u8 = 2;

/// The first line of a share.
const TITLE: &str = "pitr key share, version 1";
/// The word in the place of a key set's id, where a pair belongs to none.
const NONE: &str = "none";
/// Data bytes in a line.
const LINE_BYTES: usize = 8;

/// One of the parts that a recipient's private key is divided into.
pub struct Share {
    of: Set,
    number: u8,
    value: Secret32,
}

/// The facts that all shares of a key have in common.
#[derive(Clone, PartialEq, Eq)]
struct Set {
    recipient: String,
    key_set: Option<KeySetId>,
    shares: u8,
    threshold: u8,
    /// Begins the hash of all this and of the public half: tells sets apart, and proves the joined key.
    fingerprint: [u8; 8],
}

impl Set {
    fn new(
        recipient: &str,
        key_set: Option<KeySetId>,
        (shares, threshold): (u8, u8),
        public: &PublicHalf,
    ) -> Set {
        let mut hasher = blake3::Hasher::new_derive_key("pitr/1/shares");
        hasher.update(&[shares, threshold]);
        hasher.update(&public.0);
        hasher.update(&key_set.map_or([0; 16], |id| id.0));
        hasher.update(recipient.as_bytes());
        let mut fingerprint = [0; 8];
        hasher.finalize_xof().fill(&mut fingerprint);
        Set {
            recipient: recipient.to_owned(),
            key_set,
            shares,
            threshold,
            fingerprint,
        }
    }
}

/// A private key that shares gave back.
pub struct Joined {
    pub recipient: String,
    /// The key set that it was made with.
    pub key_set: Option<KeySetId>,
    /// The key.
    pub private: PrivateHalf,
}

/// Divides a recipient's private key into so many shares, of which `threshold` give it back; `random` is fresh.
///
/// # Errors
/// `Usage` for numbers that make no sense.
pub fn split(
    recipient: &str,
    (private, public): (&PrivateHalf, &PublicHalf),
    key_set: Option<KeySetId>,
    (shares, threshold): (u8, u8),
    random: &Secret32,
) -> Result<Vec<Share>> {
    if threshold < THRESHOLD_MIN || threshold > shares || shares > SHARES_MAX {
        return Err(err!(
            Usage,
            "{threshold} of {shares} shares is not possible: at least {THRESHOLD_MIN} open the key, and there are at most {SHARES_MAX}"
        ));
    }
    let set = Set::new(recipient, key_set, (shares, threshold), public);
    let dealer = Sharks(threshold).dealer_rng(private.0.expose(), &mut Given::new(random));
    let dealt = dealer.take(usize::from(shares)).map(|dealt| {
        let bytes = Zeroizing::new(Vec::from(&dealt));
        let (number, value) = bytes.split_first().ok_or_else(unusable)?;
        let value: &[u8; 32] = value.try_into().map_err(|_| unusable())?;
        Ok(Share {
            of: set.clone(),
            number: *number,
            value: Secret32::new(*value),
        })
    });
    dealt.collect()
}

fn unusable() -> Error {
    err!(Internal, "a key could not be divided")
}

/// Joins shares of one key. Every given share takes part, and so each is proven.
///
/// # Errors
/// `Key` when there are too few, one is there twice or of another set, or they do not give the key.
pub fn join(shares: &[Share]) -> Result<Joined> {
    let first = shares.first();
    let set = &first.ok_or_else(|| err!(Key, "no share is given"))?.of;
    let mut seen = [false; SHARES_MAX as usize + 1];
    for share in shares {
        if share.of != *set {
            return Err(err!(
                Key,
                "the shares are of two sets: {} of recipient \"{}\", and {} of \"{}\"",
                shown(&set.fingerprint),
                set.recipient,
                shown(&share.of.fingerprint),
                share.of.recipient
            )
            .hint("No key was written. Each share names its set: find those of one."));
        }
        let seen = seen.get_mut(usize::from(share.number));
        if seen.is_none_or(|seen| std::mem::replace(seen, true)) {
            return Err(err!(Key, "share {} is given twice", share.number)
                .hint("No key was written. Give each share once."));
        }
    }
    let given = shares.len();
    if given < usize::from(set.threshold) {
        return Err(err!(
            Key,
            "{given} of the {} shares that are needed are given",
            set.threshold
        )
        .hint(format!(
            "No key was written. Any {} of the {} shares of set {} open the key of recipient \"{}\".",
            set.threshold,
            set.shares,
            shown(&set.fingerprint),
            set.recipient
        )));
    }
    let points: Vec<blahaj::Share> = shares.iter().map(Share::point).collect::<Result<_>>()?;
    let sharks = Sharks(set.threshold);
    let recovered = sharks.recover(&points);
    let recovered = Zeroizing::new(recovered.map_err(|_| unusable())?);
    let secret: &[u8; 32] = recovered.as_slice().try_into().map_err(|_| unusable())?;
    let private = PrivateHalf(Secret32::new(*secret));
    let sizes = (set.shares, set.threshold);
    let proven = Set::new(
        &set.recipient,
        set.key_set,
        sizes,
        &wrap::public_of(&private)?,
    );
    match proven == *set {
        true => Ok(Joined {
            recipient: proven.recipient,
            key_set: proven.key_set,
            private,
        }),
        false => Err(err!(
            Key,
            "the shares do not give the key of set {}: one of them was changed, together with its checks",
            shown(&set.fingerprint)
        )
        .hint("No key was written. Leave out one share after the other, and take others in their place.")),
    }
}

/// Groups of four hexadecimal digits.
fn shown(bytes: &[u8]) -> String {
    let digits = Zeroizing::new(text::hex(bytes));
    let mut out = String::with_capacity(digits.len() * 5 / 4);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && n % 4 == 0 {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Reads hexadecimal digits as people type them.
fn typed<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.chars().filter(|c| !matches!(c, ' ' | '\t' | '-'));
    let digits: Zeroizing<String> = Zeroizing::new(digits.collect());
    text::unhex_array(&digits.to_ascii_lowercase())
}

/// Two bytes that show a mistake in typing.
fn check(number: usize, bytes: &[u8]) -> [u8; 2] {
    let mut hasher = blake3::Hasher::new_derive_key("pitr/1/share line");
    hasher.update(&[u8::try_from(number).unwrap_or(u8::MAX)]);
    hasher.update(bytes);
    let mut out = [0; 2];
    hasher.finalize_xof().fill(&mut out);
    out
}

impl Share {
    fn point(&self) -> Result<blahaj::Share> {
        let mut bytes = Zeroizing::new(vec![self.number]);
        bytes.extend_from_slice(self.value.expose());
        blahaj::Share::try_from(bytes.as_slice()).map_err(|_| unusable())
    }

    /// Its number, from 1 on.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The lines above the data.
    fn head(&self) -> String {
        let of = &self.of;
        let key_set = of.key_set.map_or(NONE.to_owned(), |id| shown(&id.0));
        format!(
            "recipient  {}\nkey set    {key_set}\nset        {}\nshare      {} of {}, any {} open the key\n",
            of.recipient,
            shown(&of.fingerprint),
            self.number,
            of.shares,
            of.threshold
        )
    }

    /// Bytes over the whole share.
    fn seal(&self) -> [u8; 4] {
        let mut hasher = blake3::Hasher::new_derive_key("pitr/1/share");
        hasher.update(self.head().as_bytes());
        hasher.update(self.value.expose());
        let mut out = [0; 4];
        hasher.finalize_xof().fill(&mut out);
        out
    }

    /// The text that is printed.
    pub fn text(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(1024));
        // Writing into a string does not fail.
        let _ = write!(out, "{TITLE}\n{}", self.head());
        for (n, bytes) in self.value.expose().chunks(LINE_BYTES).enumerate() {
            let data = Zeroizing::new(shown(bytes));
            let _ = writeln!(
                out,
                "line {}     {} = {}",
                n + 1,
                *data,
                shown(&check(n, bytes))
            );
        }
        let _ = writeln!(out, "check      {}", shown(&self.seal()));
        out
    }

    /// Whether a file has a share, also one with a mistake.
    pub fn is_in(content: &[u8]) -> bool {
        let text = String::from_utf8_lossy(content);
        let mut parts = text.split(TITLE).skip(1);
        parts.any(|part| part.lines().any(|line| line.trim().starts_with("line 1")))
    }

    /// Reads every share in a text. Lines before the first, and those of other words, are notes of people.
    ///
    /// # Errors
    /// `Key`, which names the line that is wrong.
    pub fn read_all(text: &str) -> Result<Vec<Share>> {
        let mut parts = text.split(TITLE);
        parts.next();
        parts.map(Share::read).collect()
    }

    fn read(part: &str) -> Result<Share> {
        let wrong = |line: &str| {
            err!(Key, "a share is damaged: its line \"{line}\" is missing, or has a mistake")
                .hint("No key was written. Compare that line with the paper; each line of data has its own check after \"=\".")
        };
        let field = |name: &'static str| {
            let mut lines = part
                .lines()
                .filter_map(|line| line.trim().strip_prefix(name));
            let value = lines.find(|rest| rest.starts_with([' ', '\t']));
            value.map(str::trim).ok_or_else(|| wrong(name))
        };
        let recipient = field("recipient")?;
        if !is_recipient_name(recipient) {
            return Err(wrong("recipient"));
        }
        let key_set = match field("key set")? {
            NONE => None,
            id => Some(KeySetId(typed(id).ok_or_else(|| wrong("key set"))?)),
        };
        let fingerprint = typed(field("set")?).ok_or_else(|| wrong("set"))?;
        let numbers: Vec<u8> = field("share")?
            .split([' ', ','])
            .filter_map(|word| word.parse().ok())
            .collect();
        let &[number, shares, threshold] = numbers.as_slice() else {
            return Err(wrong("share"));
        };
        if number == 0 || number > shares || shares > SHARES_MAX {
            return Err(wrong("share"));
        }
        if threshold < THRESHOLD_MIN || threshold > shares {
            return Err(wrong("share"));
        }
        let mut value = Zeroizing::new([0; 32]);
        for (n, to) in value.chunks_mut(LINE_BYTES).enumerate() {
            const NAMES: [&str; 4] = ["line 1", "line 2", "line 3", "line 4"];
            let name = NAMES.get(n).copied().unwrap_or_default();
            let (data, own) = field(name)?.split_once('=').ok_or_else(|| wrong(name))?;
            let bytes: Zeroizing<[u8; LINE_BYTES]> =
                Zeroizing::new(typed(data).ok_or_else(|| wrong(name))?);
            if typed(own) != Some(check(n, &*bytes)) {
                return Err(wrong(name));
            }
            to.copy_from_slice(&*bytes);
        }
        let share = Share {
            of: Set {
                recipient: recipient.to_owned(),
                key_set,
                shares,
                threshold,
                fingerprint,
            },
            number,
            value: Secret32::new(*value),
        };
        match typed(field("check")?) == Some(share.seal()) {
            true => Ok(share),
            false => Err(wrong("check").context("the lines of a share do not belong together")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    /// The private half of recipient "ops" in `testdata/sealed`: 03 04 .. 22.
    fn made(sizes: (u8, u8)) -> Result<Vec<Share>> {
        let ramp =
            |first: u8| Secret32::new(std::array::from_fn(|n| first + u8::try_from(n).unwrap()));
        let private = PrivateHalf(ramp(3));
        let public = wrap::public_of(&private)?;
        split(
            "ops",
            (&private, &public),
            Some(KeySetId([7; 16])),
            sizes,
            &ramp(9),
        )
    }

    fn again(share: &Share) -> Share {
        let mut read = Share::read_all(&share.text()).unwrap();
        assert_eq!(read.len(), 1);
        read.remove(0)
    }

    #[test]
    fn any_of_the_shares_in_any_order_give_the_key() {
        let shares = made((5, 3)).unwrap();
        for set in 0_u32..1 << 5 {
            let some = shares
                .iter()
                .rev()
                .filter(|share| set >> (share.number - 1) & 1 == 1);
            let some: Vec<Share> = some.map(again).collect();
            let joined = join(&some);
            assert_eq!(joined.is_ok(), set.count_ones() >= 3, "{set:05b}");
            if let Ok(joined) = joined {
                assert_eq!(joined.private.0.expose()[..3], [3, 4, 5]);
                assert_eq!(joined.recipient, "ops");
                assert_eq!(joined.key_set, Some(KeySetId([7; 16])));
            }
        }
    }

    #[test]
    fn shares_are_of_all_their_digits() {
        // Fewer than are needed would show a key whose coefficients were never 0, or the key itself: both are looked for.
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let private = PrivateHalf(Secret32::new([0x55; 32]));
            let public = wrap::public_of(&private).unwrap();
            let random = Secret32::new([seed; 32]);
            let shares = split("ops", (&private, &public), None, (2, 2), &random).unwrap();
            seen.extend(shares[0].value.expose().iter().copied());
        }
        assert!(seen.contains(&0x55), "a coefficient is 0 now and then");
        assert!(seen.len() > 250, "{} of 256 values", seen.len());
    }

    #[test]
    fn a_share_that_was_changed_with_its_checks_gives_no_key() {
        let shares = made((3, 2)).unwrap();
        let mut value = *shares[2].value.expose();
        value[31] ^= 1;
        let forged = Share {
            of: shares[2].of.clone(),
            number: 3,
            value: Secret32::new(value),
        };
        for given in [
            &[&shares[0], &forged][..],
            &[&forged, &shares[1], &shares[0]],
        ] {
            let given: Vec<Share> = given.iter().map(|share| again(share)).collect();
            let e = join(&given).err().unwrap();
            assert_eq!(e.code(), Code::Key);
            assert!(e.to_string().contains("one of them was changed"), "{e}");
        }
    }

    #[test]
    fn no_digit_of_a_share_can_be_another() {
        let text = made((3, 2)).unwrap().remove(0).text();
        for (at, digit) in text.char_indices().filter(|(_, c)| c.is_ascii_hexdigit()) {
            let line = text[..at]
                .rfind('\n')
                .map_or(&text[..], |start| &text[start + 1..]);
            if line.starts_with("share") && digit.is_ascii_alphabetic() {
                continue;
            }
            let other = if digit == '1' { "2" } else { "1" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            // A line whose name is another is missing.
            assert!(
                !Share::read_all(&changed).is_ok_and(|read| !read.is_empty()),
                "{at}: {changed}"
            );
        }
    }

    /// The files that another program joins, too. Shares on paper do not change any more.
    #[test]
    fn the_vectors_are_what_is_written_today_and_give_the_key() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/sealed");
        let mut read = Vec::new();
        for share in made((3, 2)).unwrap() {
            let path = format!("{folder}/share-{}.txt", share.number);
            if std::env::var_os("PITR_WRITE_VECTORS").is_some() {
                std::fs::write(&path, share.text().as_bytes()).unwrap();
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, *share.text(), "{path}");
            read.extend(Share::read_all(&text).unwrap());
        }
        assert_eq!(join(&read[1..]).unwrap().private.0.expose()[31], 0x22);
    }
}
