//! Raw words of the command line made into values, values made into words for people: what several
//! commands share.

use std::borrow::Cow;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use nix::unistd::Pid;
use thiserror::Error;

use crate::dump::files::saved::Wanted;
use crate::image::{Codec, WriteOptions};
use crate::job::report::Taken;
use crate::model::code::requests;

use super::failure::Failure;

/// `--compress`: how page data is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Fast compression on several threads.
    #[default]
    Lz4,
    /// Stored as it is.
    None,
}

impl Compression {
    /// The same for the room that writes.
    pub fn write_options(self, rate: Option<NonZeroU64>) -> WriteOptions {
        let codec = match self {
            Self::Lz4 => Codec::Lz4,
            Self::None => Codec::None,
        };
        WriteOptions { codec, rate, ..WriteOptions::default() }
    }
}

/// What to do where relative paths mean nothing.
pub const NO_CURRENT_DIRECTORY: &str =
    "the directory that this shell is in was removed or cannot be entered: cd to one that exists";

/// A path made absolute without following links, so that it keeps its meaning elsewhere.
pub fn absolute_path(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::environment(
            requests::NOTHING_THERE,
            format_args!("find the current directory: {error}"),
        )
        .hint(NO_CURRENT_DIRECTORY)
    })
}

/// Paths made absolute.
pub fn absolute(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    paths.iter().map(|path| absolute_path(path)).collect()
}

/// `--save-files`: paths made absolute, and the word `auto`.
pub fn wanted(words: Vec<PathBuf>) -> Result<Wanted, Failure> {
    let (by_itself, named): (Vec<_>, Vec<_>) =
        words.into_iter().partition(|word| word.as_os_str() == "auto");
    Ok(Wanted { named: absolute(named)?, by_itself: !by_itself.is_empty() })
}

/// One line about a checkpoint.
pub fn summary(taken: &Taken) -> String {
    format!(
        "checkpoint {} ({}, paused {:.3} s, {:.2} s in all)",
        taken.path,
        size(taken.bytes),
        taken.pause.as_secs_f64(),
        taken.elapsed.as_secs_f64()
    )
}

/// Bytes for people: `512 B`, `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    let mut unit = 1_u64;
    let mut name = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if bytes / unit < 1024 {
            break;
        }
        unit *= 1024;
        name = larger;
    }
    if unit == 1 {
        return format!("{bytes} B");
    }
    // Tenths, rounded down.
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// A share from 0 to 1 for people: `12.5 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A text out of an image or from another process, safe to show on a terminal: what would move the
/// cursor or worse is escaped.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// The beginning of a text that may be too long for a line.
pub fn beginning(text: &str, letters: usize) -> String {
    match text.char_indices().nth(letters) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A point in time, in seconds since 1970, for people and for sorting: `2026-01-31 23:59:00Z`.
pub fn instant(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The calendar repeats every 400 years, 146,097 days; years are counted from March, so that
    // the day that comes and goes is the last.
    let day = days + 719_468;
    let (era, day_of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day_of_month:02} {:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// A span of time for people, by its largest unit: `42 s`, `5 min`, `3 h`, `2 d`.
pub fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// The word is not the number of a process.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("write the number of a process, as ps shows it")]
pub struct PidError;

/// Reads a process id.
pub fn pid(word: &str) -> Result<Pid, PidError> {
    match word.parse() {
        Ok(number) if number > 0 => Ok(Pid::from_raw(number)),
        _ => Err(PidError),
    }
}

/// A number of things, in words.
pub fn counted(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// Why a word is not a count.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("write a number, at least 1")]
pub struct CountError;

/// A count of things, of which there is at least one.
pub fn count(word: &str) -> Result<NonZeroUsize, CountError> {
    word.parse().map_err(|_| CountError)
}

/// Why a word is not a duration.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    /// There is nothing, or a part without a number or with an unknown unit.
    #[error("write seconds (300) or units from large to small (5m, 1h30m, 2d)")]
    Malformed,
    /// It lasts no time at all.
    #[error("it must be longer than nothing")]
    Zero,
    /// It is longer than time can be counted in.
    #[error("it is too long")]
    TooLong,
}

/// Reads `300` (seconds), `5m`, `1h30m`, `2d`: each unit (d, h, m, s) at most once, large to small.
pub fn duration(word: &str) -> Result<Duration, DurationError> {
    duration_or_none(word)
        .and_then(|it| if it.is_zero() { Err(DurationError::Zero) } else { Ok(it) })
}

/// As [`duration`]; it may also be no time at all.
pub fn duration_or_none(word: &str) -> Result<Duration, DurationError> {
    let seconds = if word.bytes().all(|byte| byte.is_ascii_digit()) {
        number(word)?
    } else {
        seconds_of_units(word)?
    };
    // The kernel counts in signed 64-bit nanoseconds; 100 years is safely within.
    match seconds {
        ..=3_155_760_000 => Ok(Duration::from_secs(seconds)),
        _ => Err(DurationError::TooLong),
    }
}

/// Why a word is not a size.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// It is not a number with a unit or without.
    #[error("write bytes (1048576) or one unit (512K, 512M, 4G, 1T)")]
    Malformed,
    /// It is nothing.
    #[error("it must be more than nothing")]
    Zero,
    /// It is more than can be counted.
    #[error("it is too large")]
    TooLarge,
    /// It is less than a checkpoint can do with.
    #[error("it must be 1M at least")]
    Slow,
}

/// Reads `1048576` (bytes), `512K`, `512M`, `4G`, `1T`, each 1024 times the one before.
pub fn bytes(word: &str) -> Result<NonZeroU64, SizeError> {
    let (digits, unit) = match word.find(|letter: char| !letter.is_ascii_digit()) {
        Some(at) => word.split_at(at),
        None => (word, ""),
    };
    let shift = match unit {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(SizeError::Malformed),
    };
    if digits.is_empty() {
        return Err(SizeError::Malformed);
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
    let bytes = number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)?;
    NonZeroU64::new(bytes).ok_or(SizeError::Zero)
}

/// Reads how many bytes may be written in a second, as [`bytes`] does: 1 MiB at least, or a checkpoint would
/// take for ever.
pub fn rate(word: &str) -> Result<NonZeroU64, SizeError> {
    bytes(word).and_then(|rate| if rate.get() < 1 << 20 { Err(SizeError::Slow) } else { Ok(rate) })
}

fn seconds_of_units(word: &str) -> Result<u64, DurationError> {
    let mut units = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)].into_iter();
    let mut seconds = 0_u64;
    let mut rest = word;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (count, after) = rest.split_at(digits);
        let letter = after.chars().next().ok_or(DurationError::Malformed)?;
        // What was skipped to find the unit can no longer come: units go from large to small.
        let (_, length) =
            units.find(|(name, _)| *name == letter).ok_or(DurationError::Malformed)?;
        let part = number(count)?.checked_mul(length).ok_or(DurationError::TooLong)?;
        seconds = seconds.checked_add(part).ok_or(DurationError::TooLong)?;
        rest = &after[letter.len_utf8()..];
    }
    Ok(seconds)
}

fn number(digits: &str) -> Result<u64, DurationError> {
    if digits.is_empty() {
        return Err(DurationError::Malformed);
    }
    digits.parse().map_err(|_| DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::{
        DurationError, SizeError, beginning, bytes, duration, duration_or_none, instant, printable,
        rate, size, span,
    };

    #[test]
    fn foreign_texts() {
        assert_eq!(printable("/home/müller/a b"), "/home/müller/a b");
        assert_eq!(printable("a\nb\u{1b}[2Jc\u{9b}"), "a\\nb\\u{1b}[2Jc\\u{9b}");
        assert_eq!(beginning("äöü", 3), "äöü");
        assert_eq!(beginning("äöüx", 3), "äöü...");
    }

    #[test]
    fn instants() {
        let check = |seconds: i64, expected: &str| assert_eq!(instant(seconds), expected);
        check(0, "1970-01-01 00:00:00Z");
        check(951_782_399, "2000-02-28 23:59:59Z");
        check(951_782_400, "2000-02-29 00:00:00Z");
        check(951_868_800, "2000-03-01 00:00:00Z");
        check(1_767_225_599, "2025-12-31 23:59:59Z");
        check(1_767_225_600, "2026-01-01 00:00:00Z");
        check(4_107_542_400, "2100-03-01 00:00:00Z");
        check(-1, "1969-12-31 23:59:59Z");
    }

    #[test]
    fn spans() {
        let check = |seconds: i64, expected: &str| assert_eq!(span(seconds), expected);
        check(-3, "-3 s");
        check(119, "119 s");
        check(120, "2 min");
        check(7_199, "119 min");
        check(172_799, "47 h");
        check(864_000, "10 d");
    }

    #[test]
    fn sizes() {
        let check = |bytes: u64, expected: &str| assert_eq!(size(bytes), expected);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(1_572_864, "1.5 MiB");
        check(u64::MAX, "16777215.9 TiB");
    }

    #[test]
    fn amounts() {
        let check = |word: &str, expected: Result<u64, SizeError>| {
            assert_eq!(bytes(word).map(NonZeroU64::get), expected, "{word:?}");
        };
        check("1048576", Ok(1 << 20));
        check("512K", Ok(512 << 10));
        check("512M", Ok(512 << 20));
        check("4G", Ok(4 << 30));
        check("2TiB", Ok(2 << 40));
        check("4g", Err(SizeError::Malformed));
        check("G", Err(SizeError::Malformed));
        check("", Err(SizeError::Malformed));
        check("1.5G", Err(SizeError::Malformed));
        check("0M", Err(SizeError::Zero));
        check("99999999T", Err(SizeError::TooLarge));
        check("99999999999999999999", Err(SizeError::TooLarge));
        assert_eq!(rate("1M").map(NonZeroU64::get), Ok(1 << 20));
        assert_eq!(rate("1023K"), Err(SizeError::Slow));
    }

    #[test]
    fn durations() {
        let check = |word: &str, expected: Result<u64, DurationError>| {
            assert_eq!(duration(word), expected.map(Duration::from_secs), "{word:?}");
        };
        check("300", Ok(300));
        check("5m", Ok(300));
        check("1h30m", Ok(5_400));
        check("2d", Ok(172_800));
        check("1d2h3m4s", Ok(93_784));
        check("90s", Ok(90));
        check("007", Ok(7));
        check("", Err(DurationError::Malformed));
        check("m", Err(DurationError::Malformed));
        check("5 m", Err(DurationError::Malformed));
        check("-5", Err(DurationError::Malformed));
        check("1.5h", Err(DurationError::Malformed));
        check("30m1h", Err(DurationError::Malformed));
        check("5m5m", Err(DurationError::Malformed));
        check("1h30", Err(DurationError::Malformed));
        check("5µ", Err(DurationError::Malformed));
        check("0", Err(DurationError::Zero));
        check("0h0m", Err(DurationError::Zero));
        assert_eq!(duration_or_none("0"), Ok(Duration::ZERO));
        check("99999999999", Err(DurationError::TooLong));
        check("99999999999999999999999", Err(DurationError::TooLong));
        check("9999999999999999999d", Err(DurationError::TooLong));
    }
}
