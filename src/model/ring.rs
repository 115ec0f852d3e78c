//! Rings of io_uring (`io_uring_setup`) at rest.

use serde::{Deserialize, Serialize};

use super::id::Bytes;

/// Most entries that a ring may have for requests (`IORING_MAX_ENTRIES`), and twice as many for completions.
pub const RING_ENTRIES_LIMIT: u32 = 32768;
/// Most requests that a ring may have seen: a restore does as many that do nothing, each of which takes
/// about half a microsecond.
pub const RING_REQUESTS_LIMIT: u32 = 1 << 28;
/// Where the ring itself is mapped in its file (`IORING_OFF_SQ_RING`).
pub const RING_OFFSET: u64 = 0;
/// Where the completions are mapped, which is the same memory (`IORING_OFF_CQ_RING`).
pub const COMPLETIONS_OFFSET: u64 = 0x800_0000;
/// Where the requests are mapped (`IORING_OFF_SQES`).
pub const REQUESTS_OFFSET: u64 = 0x1000_0000;
/// Bytes of a request (`struct io_uring_sqe`).
pub const REQUEST_SIZE: u64 = 64;

/// A ring in which no request is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Entries for requests, a power of two.
    pub entries: u32,
    /// Entries for completions, a power of two.
    pub completions: u32,
    /// Whether requests are found by numbers in an array (no IORING_SETUP_NO_SQARRAY).
    pub has_array: bool,
    /// Requests that it has seen and completed, modulo 2^32: where all of its ends stand but the one that
    /// the program moves.
    pub done: u32,
    /// Where its parts lie, which the program has learnt once.
    pub layout: RingLayout,
    /// What the memory of the ring holds, up to the last byte that is not zero.
    pub memory: Bytes,
    /// The same of the requests.
    pub requests: Bytes,
}

/// Offsets in the memory of a ring (`struct io_sqring_offsets`, `struct io_cqring_offsets`), in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // Named as the kernel names them, with the queue before.
pub struct RingLayout {
    pub request_head: u32,
    pub request_tail: u32,
    pub request_mask: u32,
    pub request_entries: u32,
    pub request_flags: u32,
    pub request_dropped: u32,
    /// 0 without an array.
    pub array: u32,
    pub completion_head: u32,
    pub completion_tail: u32,
    pub completion_mask: u32,
    pub completion_entries: u32,
    pub completion_overflow: u32,
    pub completion_entry: u32,
    pub completion_flags: u32,
}
