//! Conversions between integer widths that cannot lose anything on the one architecture supported.
//!
//! Everything here is total; a conversion that can fail belongs to the caller, who knows the cause.

const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// Bytes in a base page on x86_64.
pub const PAGE_SIZE: u64 = 4096;

/// A `u64` as a `usize`, which is equally wide here.
#[must_use]
#[allow(clippy::cast_possible_truncation)] // Widths are asserted equal above.
pub const fn to_usize(value: u64) -> usize {
    value as usize
}

/// A `usize` as a `u64`, which is equally wide here.
#[must_use]
pub const fn to_u64(value: usize) -> u64 {
    value as u64
}

/// The same 64 bits read as signed: how the kernel passes negative error numbers in registers.
#[must_use]
pub const fn as_signed(value: u64) -> i64 {
    value.cast_signed()
}

/// Rounds up to a whole number of base pages, saturating at the last whole page.
#[must_use]
pub const fn page_align_up(bytes: u64) -> u64 {
    bytes.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1)
}

/// Rounds down to a whole number of base pages.
#[must_use]
pub const fn page_align_down(bytes: u64) -> u64 {
    bytes & !(PAGE_SIZE - 1)
}

/// A count as a floating-point number, rounded to 53 bits: for shares and pictures, never for sizes.
#[must_use]
#[allow(clippy::cast_precision_loss)] // Nobody sees the difference.
pub const fn to_f64(value: u64) -> f64 {
    value as f64
}
