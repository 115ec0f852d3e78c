//! What a complete generation is called.

use std::ffi::OsStr;
use std::path::PathBuf;

const GENERATION: &str = "gen-";

/// A complete generation in a job's directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation {
    /// Its number, from 1 on.
    pub number: u64,
    /// Its directory, absolute.
    pub path: PathBuf,
}

impl Generation {
    /// The name of generation `number`: `gen-000001`.
    #[must_use]
    pub fn name(number: u64) -> String {
        format!("{GENERATION}{number:06}")
    }

    /// The number in the text `name`, likewise.
    #[must_use]
    pub fn number_of(name: &str) -> Option<u64> {
        Self::parse(OsStr::new(name))
    }

    /// The number in a generation's name; `None`: it is not one.
    pub(super) fn parse(name: &OsStr) -> Option<u64> {
        let digits = name.to_str()?.strip_prefix(GENERATION)?;
        let number = digits.parse().ok()?;
        // Only the one spelling counts: no sign, no other number of zeros.
        (number > 0 && OsStr::new(&Self::name(number)) == name).then_some(number)
    }
}
