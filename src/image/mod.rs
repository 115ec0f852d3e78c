//! The on-disk form of one checkpoint (a generation): header, sections, page data.
//!
//! A generation is a directory with two files. `image.rckpt` holds a raw header with a table of
//! sections, then the sections: the records of [`crate::model`], and the index of the page data.
//! `pages.rckpt` holds the page data in chunks. docs/FORMAT.md describes both byte by byte.
//!
//! This room knows records and bytes, and nothing of the kernel's state or of where generations are
//! kept: images can be read, checked and fuzzed on any machine. What it hands out has been checked
//! once, here: bounds, checksums and cross references, so that later code may rely on them.

#[cfg(test)]
mod chain;
pub mod codec;
pub mod contents;
pub mod copy;
pub mod core_file;
mod core_notes;
#[cfg(test)]
pub(crate) mod damage;
mod duplicates;
pub mod error;
pub mod format;
#[cfg(test)]
mod golden;
pub mod index;
mod parent;
mod pipeline;
mod queue;
pub mod reader;
#[cfg(test)]
pub(crate) mod sample;
pub mod section;
pub mod validate;
mod validate_ipc;
mod validate_sockets;
mod validate_terminals;
pub mod watch;
pub mod writer;

pub use codec::Codec;
pub use error::{ReadError, WriteError};
pub use index::{Chunk, Run};
pub use reader::Reader;
pub use writer::{Summary, WriteOptions, Writer, ZeroPages};
