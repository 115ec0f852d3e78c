//! The on-disk form of one checkpoint (a generation): header, sections, page data.
//!
//! It knows records and bytes, and nothing of the kernel: images can be read, checked and fuzzed on
//! any machine. docs/FORMAT.md describes the format byte by byte.
