//! Compression and checksums of byte strings: what sections and chunks of page data share.
//!
//! It knows neither files nor records.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use crate::model::number::{PAGE_SIZE, to_usize};

/// How bytes are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    /// One LZ4 block, where that saves enough to be worth decompressing; else as they are.
    #[default]
    Lz4,
    /// As they are.
    None,
}

/// The checksum of the format: XXH3, 64 bits, seed zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// What is known of a page's content without having it: XXH3, 128 bits, with a seed that nobody knows
/// beforehand, so that pages which were made to collide do not. Pages of equal hashes under one seed
/// are taken for equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageHash(pub [u8; PAGE_HASH_LENGTH]);

/// Bytes of a [`PageHash`].
pub const PAGE_HASH_LENGTH: usize = 16;

impl PageHash {
    /// The hash of a page.
    #[must_use]
    pub fn of(page: &[u8], seed: u64) -> Self {
        Self(xxh3_128_with_seed(page, seed).to_le_bytes())
    }
}

/// Puts the hashes of `pages` behind each other into `table`, which is emptied first.
pub fn hash_pages(pages: &[u8], seed: u64, table: &mut Vec<u8>) {
    table.clear();
    for page in pages.chunks(to_usize(PAGE_SIZE)) {
        table.extend_from_slice(&PageHash::of(page, seed).0);
    }
}

/// Compresses one piece after another, reusing its tables.
pub struct Packer {
    codec: Codec,
    table: CompressTable,
}

impl Packer {
    /// A packer that tries `codec`.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self { codec, table: CompressTable::large() }
    }

    /// Compresses `plain` into the front of `packed`, which grows as needed, and gives the length;
    /// `None` where that does not pay: the bytes are then stored as they are. It pays when at least
    /// an eighth is saved; plain page data can be mapped, which is worth more than a few bytes.
    pub fn pack(&mut self, plain: &[u8], packed: &mut Vec<u8>) -> Option<usize> {
        if self.codec == Codec::None || plain.is_empty() {
            return None;
        }
        let room = get_maximum_output_size(plain.len());
        if packed.len() < room {
            packed.resize(room, 0);
        }
        // The only error is an output too small, which the line above rules out.
        let length = compress_into_with_table(plain, packed, &mut self.table).ok()?;
        (length <= plain.len() - plain.len() / 8).then_some(length)
    }
}

/// Decompresses the LZ4 block `packed` into `plain`, which it must fill exactly. Whether it did.
#[must_use]
pub fn unpack(packed: &[u8], plain: &mut [u8]) -> bool {
    decompress_into(packed, plain).is_ok_and(|length| length == plain.len())
}

/// The most bytes that an LZ4 block of `packed` bytes can hold: each byte after a match token
/// lengthens the match by at most 255.
#[must_use]
pub const fn largest_unpacked(packed: u64) -> u64 {
    packed.saturating_mul(255).saturating_add(64)
}

#[cfg(test)]
mod tests {
    use super::{Codec, Packer, checksum, largest_unpacked, unpack};

    #[test]
    fn packs_what_pays_and_only_that() {
        let mut packer = Packer::new(Codec::Lz4);
        let mut packed = Vec::new();
        let text = b"the same words again and ".repeat(400);
        let length = packer.pack(&text, &mut packed).unwrap();
        assert!(length < text.len() / 8);
        let mut plain = vec![0; text.len()];
        assert!(unpack(&packed[..length], &mut plain));
        assert_eq!(plain, text);

        let noise: Vec<u8> =
            (0_u64..1024).flat_map(|seed| checksum(&seed.to_le_bytes()).to_le_bytes()).collect();
        assert_eq!(packer.pack(&noise, &mut packed), None);
        assert_eq!(packer.pack(&[], &mut packed), None);
        assert_eq!(Packer::new(Codec::None).pack(&text, &mut packed), None);
    }

    #[test]
    fn refuses_blocks_of_another_length() {
        let mut packed = Vec::new();
        let text = vec![7; 5000];
        let length = Packer::new(Codec::Lz4).pack(&text, &mut packed).unwrap();
        let packed = &packed[..length];
        for wrong in [0, 1, 4999, 5001, 8192] {
            assert!(!unpack(packed, &mut vec![0; wrong]), "{wrong}");
        }
        assert!(!unpack(&packed[..length - 1], &mut vec![0; 5000]));
        assert!(largest_unpacked(length.try_into().unwrap()) >= 5000);
    }
}
