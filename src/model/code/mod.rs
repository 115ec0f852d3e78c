//! The stable code of everything that can go wrong, and the catalogue that says what each means.
//!
//! Every error type has a `code` beside it, a match that the compiler keeps complete: whoever adds a
//! variant gives it a code. A code stands in the file of its area with its meaning; `rckpt explain`
//! and docs/ERRORS.md are made of that. A number that was once released is never given to anything
//! else; what cannot happen any more leaves a gap.

pub mod attaching;
pub mod files;
pub mod images;
pub mod memory;
pub mod processes;
pub mod requests;
pub mod restoring;
pub mod supervising;
pub mod writing;

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The code of one thing that can go wrong.
#[derive(Clone, Copy)]
pub struct Code(&'static Entry);

/// What the catalogue says of one code.
#[derive(Debug)]
struct Entry {
    number: u16,
    title: &'static str,
    cause: &'static str,
    remedy: &'static str,
}

/// Codes that belong together; their numbers begin with the same two digits.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// What they are about.
    pub title: &'static str,
    /// All of them, in the order of their numbers.
    pub codes: &'static [Code],
}

/// The whole catalogue.
pub const AREAS: [Area; 9] = [
    requests::AREA,
    attaching::AREA,
    processes::AREA,
    files::AREA,
    memory::AREA,
    images::AREA,
    restoring::AREA,
    writing::AREA,
    supervising::AREA,
];

/// Declares an area: its title, and each code with its number, its title, its cause and its remedy.
macro_rules! area {
    ($area:literal $($name:ident = $number:literal, $title:expr; because $cause:expr; remedy $remedy:expr;)*) => {
        $(
            #[doc = $title]
            pub const $name: $crate::model::code::Code =
                $crate::model::code::Code(&$crate::model::code::Entry {
                    number: $number,
                    title: $title,
                    cause: $cause,
                    remedy: $remedy,
                });
        )*
        /// All of them.
        pub(super) const AREA: $crate::model::code::Area =
            $crate::model::code::Area { title: $area, codes: &[$($name),*] };
    };
}
use area;

impl Code {
    /// All codes, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        AREAS.into_iter().flat_map(|area| area.codes.iter().copied())
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0.number
    }

    /// What has gone wrong, in a few words.
    #[must_use]
    pub const fn title(self) -> &'static str {
        self.0.title
    }

    /// Why that is in the way.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        self.0.cause
    }

    /// What the user can do about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        self.0.remedy
    }

    /// The code that somebody typed: `RCKPT-E0123`, `e0123` or `123`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        let word = word.to_ascii_uppercase();
        let digits = word.strip_prefix("RCKPT-").unwrap_or(&word);
        let number = digits.strip_prefix('E').unwrap_or(digits).parse::<u16>().ok()?;
        Self::all().find(|code| code.number() == number)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RCKPT-E{:04}", self.number())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        self.number() == other.number()
    }
}

impl Eq for Code {}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Self::parse(&word).ok_or_else(|| D::Error::custom("a code that this rckpt does not know"))
    }
}

#[cfg(test)]
mod tests {
    use super::{AREAS, Code, files};

    #[test]
    fn numbers_rise_within_their_area_and_are_given_once() {
        let mut last = 0;
        for (hundred, area) in (1..).zip(AREAS) {
            for code in area.codes {
                assert_eq!(code.number() / 100, hundred, "{code} stands in {:?}", area.title);
                assert!(code.number() > last, "{code} stands behind {last}");
                last = code.number();
            }
        }
    }

    #[test]
    fn everything_is_explained() {
        for code in Code::all() {
            for text in [code.title(), code.cause(), code.remedy()] {
                assert!(text.len() > 5 && !text.contains("  "), "{code}: {text:?}");
            }
            assert!(code.cause().ends_with('.'), "{code}: {:?}", code.cause());
            assert!(!code.remedy().ends_with('.'), "{code}: {:?}", code.remedy());
        }
    }

    #[test]
    fn codes_can_be_typed_in_many_ways() {
        let check = |word: &str, expected: Option<Code>| {
            assert_eq!(Code::parse(word), expected, "{word:?}");
        };
        let code = files::IO_URING;
        for word in [code.to_string(), code.number().to_string(), format!("e{}", code.number())] {
            check(&word, Some(code));
        }
        check("RCKPT-E0000", None);
        check("E", None);
        check("io_uring", None);
    }
}
