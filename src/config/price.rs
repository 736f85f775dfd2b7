//! The price table of a repository: what its store asks for a GiB and month, by storage class.

use crate::err;
use crate::error::{Error, Result};

/// Digits behind the point that a price may have.
const DIGITS: usize = 9;

/// An amount of money in billionths of the currency's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Price(pub u128);

impl std::str::FromStr for Price {
    type Err = Error;

    fn from_str(text: &str) -> Result<Price> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let is_number = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        let is_one = !whole.is_empty() && whole.len() <= 9 && part.len() <= DIGITS;
        let is_one = is_one && is_number(whole) && is_number(part) && !text.ends_with('.');
        if is_one && let Ok(billionths) = format!("{whole}{part:0<DIGITS$}").parse() {
            return Ok(Price(billionths));
        }
        Err(err!(Usage, "\"{}\" is not a price", text.escape_debug())
            .hint("Write a decimal number in quotes, as in \"0.023\"."))
    }
}

impl std::fmt::Display for Price {
    /// Prints two digits behind the point, rounded up: a cost is never shown as nothing.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cents = self.0.div_ceil(10_000_000);
        write!(f, "{}.{:02}", cents / 100, cents % 100)
    }
}

/// `price` of `[repositories.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prices {
    /// The currency, as it is printed.
    pub currency: Option<String>,
    /// A GiB and month, of classes without a price of their own, and of directories.
    pub storage: Option<Price>,
    /// A GiB and month in the class of this name.
    pub standard: Option<Price>,
    /// A GiB and month in the class of this name.
    pub standard_ia: Option<Price>,
    /// A GiB and month in the class of this name.
    pub onezone_ia: Option<Price>,
    /// A GiB and month in the class of this name.
    pub intelligent_tiering: Option<Price>,
    /// A GiB and month in the class of this name.
    pub glacier_ir: Option<Price>,
    /// A GiB and month in the class of this name.
    pub reduced_redundancy: Option<Price>,
    /// A GiB and month in the class of this name.
    pub glacier: Option<Price>,
    /// A GiB and month in the class of this name.
    pub deep_archive: Option<Price>,
    /// A thousand requests that store an object.
    pub put: Option<Price>,
    /// A thousand objects that move to another class.
    pub transition: Option<Price>,
    /// A GiB that is thawed within minutes.
    pub thaw_expedited: Option<Price>,
    /// A GiB that is thawed within hours.
    pub thaw_standard: Option<Price>,
    /// A GiB that is thawed within a day or two.
    pub thaw_bulk: Option<Price>,
}

impl Prices {
    /// Whether no price is known.
    pub fn is_empty(&self) -> bool {
        let unpriced = Prices {
            currency: self.currency.clone(),
            ..Prices::default()
        };
        *self == unpriced
    }

    /// The price of bytes that lie in a class for a month; none where it is not known.
    pub fn of_bytes(&self, class: Option<&str>, bytes: u64) -> Option<Price> {
        let price = self.of_class(class.unwrap_or("STANDARD"));
        of_gib(price.or(self.storage), bytes)
    }

    fn of_class(&self, class: &str) -> Option<Price> {
        match class {
            "STANDARD" => self.standard,
            "STANDARD_IA" => self.standard_ia,
            "ONEZONE_IA" => self.onezone_ia,
            "INTELLIGENT_TIERING" => self.intelligent_tiering,
            "GLACIER_IR" => self.glacier_ir,
            "REDUCED_REDUNDANCY" => self.reduced_redundancy,
            "GLACIER" => self.glacier,
            "DEEP_ARCHIVE" => self.deep_archive,
            _ => None,
        }
    }

    /// The price of storing so many objects; none where it is not known.
    pub fn of_puts(&self, objects: u64) -> Option<Price> {
        of_thousand(self.put, objects)
    }

    /// The price of moving so many objects to another class; none where it is not known.
    pub fn of_transitions(&self, objects: u64) -> Option<Price> {
        of_thousand(self.transition, objects)
    }
}

/// The price of so many requests, of which a thousand cost `price`.
fn of_thousand(price: Option<Price>, requests: u64) -> Option<Price> {
    let Price(price) = price?;
    Some(Price(u128::from(requests) * price / 1000))
}

/// The price of so many bytes, of which a GiB costs `price`.
pub fn of_gib(price: Option<Price>, bytes: u64) -> Option<Price> {
    let Price(price) = price?;
    Some(Price(u128::from(bytes) * price / (1 << 30)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_decimal_and_rounded_up() {
        for (text, billionths, shown) in [
            ("0.023", 23_000_000, "0.03"),
            ("0.00099", 990_000, "0.01"),
            ("12", 12_000_000_000, "12.00"),
            ("0", 0, "0.00"),
            ("1.999999999", 1_999_999_999, "2.00"),
        ] {
            let price: Price = text.parse().unwrap();
            assert_eq!(price, Price(billionths), "{text}");
            assert_eq!(price.to_string(), shown);
        }
        for wrong in ["", ".5", "1.", "-1", "1,5", "0.0000000001", "1e3", "x"] {
            assert!(wrong.parse::<Price>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_class_without_a_price_takes_that_of_storage() {
        let prices = Prices {
            standard: Some(Price(23_000_000)),
            put: Some(Price(5_000_000)),
            ..Prices::default()
        };
        let gib = 1 << 30;
        assert_eq!(prices.of_bytes(None, 2 * gib), Some(Price(46_000_000)));
        assert_eq!(prices.of_bytes(Some("GLACIER"), gib), None);
        assert_eq!(prices.of_puts(200), Some(Price(1_000_000)));
        let prices = Prices {
            storage: Some(Price(1)),
            ..prices
        };
        assert_eq!(prices.of_bytes(Some("GLACIER"), gib), Some(Price(1)));
        assert!(!prices.is_empty() && Prices::default().is_empty());
    }
}
