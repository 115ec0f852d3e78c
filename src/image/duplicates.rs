//! Pages that are in the generation already: what processes still share since a fork, above all.
//!
//! A table of fixed size remembers where pages of recent content lie; older ones give way. So memory
//! stays bounded, and a duplicate that is missed is merely stored again.

use super::codec::PageHash;
use crate::model::id::ObjectId;
use crate::model::number::to_usize;

/// Entries of the table: pages of 2 GiB, in 12 MiB that are only touched as they are used.
const ENTRIES: usize = 1 << 19;
/// Bits of an entry's place that hold the slot.
const SLOT_BITS: u32 = 8;

const _: () = assert!(super::index::CHUNK_PAGES == 1 << SLOT_BITS);

/// Where a page was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The chunk, by its number in the own file.
    pub chunk: usize,
    /// The page within it.
    pub slot: u32,
}

/// The four words of a page's hash, the object that it was stored for, and its place: the number of the
/// chunk plus one, and the slot. All zero in an empty entry; memory that is allocated as plain zeros costs
/// nothing until it is written.
type Entry = [u32; 6];

/// The table.
pub(super) struct Duplicates {
    entries: Vec<Entry>,
    /// The page before, of which the next one is no duplicate worth having.
    before: PageHash,
}

impl Duplicates {
    pub fn new() -> Self {
        Self { entries: vec![[0; 6]; ENTRIES], before: PageHash::default() }
    }

    /// Where a page of this content has been stored for another object than `object`. A page like
    /// the one before it is not looked for: memory full of one pattern compresses to nothing, while
    /// a reference for each of its pages would not.
    pub fn find(&mut self, object: ObjectId, hash: PageHash) -> Option<Place> {
        let repeated = std::mem::replace(&mut self.before, hash) == hash;
        let (words, number) = Self::split(hash);
        let [known @ .., owner, place] = self.entries[number];
        if repeated || place == 0 || owner == object.0 || known != words {
            return None;
        }
        let chunk = usize::try_from((place >> SLOT_BITS) - 1).ok()?;
        Some(Place { chunk, slot: place & ((1 << SLOT_BITS) - 1) })
    }

    /// Remembers a page that has been stored.
    pub fn note(&mut self, object: ObjectId, hash: PageHash, place: Place) {
        // Sixteen terabytes of chunks have such numbers; what comes after is not looked for.
        let Ok(chunk) = u32::try_from(place.chunk + 1) else { return };
        if chunk >> (u32::BITS - SLOT_BITS) != 0 {
            return;
        }
        let ([first, second, third, fourth], number) = Self::split(hash);
        let place = chunk << SLOT_BITS | place.slot;
        self.entries[number] = [first, second, third, fourth, object.0, place];
    }

    /// The hash in words, and the number of its entry.
    fn split(hash: PageHash) -> ([u32; 4], usize) {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(hash.0.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        (words, to_usize(u64::from(words[0])) % ENTRIES)
    }
}

#[cfg(test)]
mod tests {
    use super::{Duplicates, Place};
    use crate::image::codec::PageHash;
    use crate::model::id::ObjectId;

    #[test]
    fn pages_of_other_objects_are_found_again() {
        let mut table = Duplicates::new();
        let hash = |byte| PageHash([byte; 16]);
        let place = Place { chunk: 70_000, slot: 255 };
        assert_eq!(table.find(ObjectId(1), hash(1)), None);
        table.note(ObjectId(1), hash(1), place);
        assert_eq!(table.find(ObjectId(1), hash(2)), None);
        assert_eq!(table.find(ObjectId(1), hash(1)), None, "its own");
        assert_eq!(table.find(ObjectId(2), hash(2)), None);
        assert_eq!(table.find(ObjectId(2), hash(1)), Some(place));
        assert_eq!(table.find(ObjectId(2), hash(1)), None, "like the one before");
    }

    #[test]
    fn the_whole_hash_counts() {
        let mut table = Duplicates::new();
        let mut hash = [7; 16];
        table.note(ObjectId(1), PageHash(hash), Place { chunk: 0, slot: 0 });
        hash[15] = 8;
        assert_eq!(table.find(ObjectId(2), PageHash(hash)), None);
        table.note(ObjectId(1), PageHash(hash), Place { chunk: usize::MAX - 1, slot: 0 });
        assert_eq!(table.find(ObjectId(2), PageHash(hash)), None, "beyond what it can hold");
    }
}
