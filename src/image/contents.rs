//! What the pages of a generation hold, by hash, so that two generations can be compared without reading
//! one of them twice.

use std::collections::BTreeMap;
use std::ops::Range;

use super::codec::PageHash;
use super::error::ReadError;
use super::reader::Reader;
use crate::model::id::ObjectId;
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};

/// The stored pages of each object, ascending, with their hashes.
#[derive(Debug, Default)]
pub struct Contents(BTreeMap<ObjectId, Vec<(u64, PageHash)>>);

/// How the pages of two ranges differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pages that are stored in both, with the same content.
    pub same: u64,
    /// Pages that are stored in both, with another content.
    pub changed: u64,
    /// Pages that only the later one stores.
    pub new: u64,
    /// Pages that only the earlier one stores.
    pub gone: u64,
}

impl Difference {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            same: self.same + other.same,
            changed: self.changed + other.changed,
            new: self.new + other.new,
            gone: self.gone + other.gone,
        }
    }
}

/// Reads the hashes of both generations. Where they were drawn with different seeds (neither builds on the
/// other), the page data of `one` are read, too. `told` is called with the bytes of memory that have been
/// dealt with, as that goes on.
///
/// # Errors
/// When what is read is damaged.
pub fn of_both(
    one: &Reader,
    other: &Reader,
    told: &mut dyn FnMut(u64),
) -> Result<(Contents, Contents), ReadError> {
    let seed = other.hash_seed();
    let is_known = one.hash_seed() == seed;
    let first = if is_known { stored(one, told)? } else { computed(one, seed, told)? };
    Ok((first, stored(other, told)?))
}

/// By the hashes that are stored.
fn stored(reader: &Reader, told: &mut dyn FnMut(u64)) -> Result<Contents, ReadError> {
    let mut hashes = Vec::new();
    gather(reader, told, |chunk| {
        reader.hashes(&reader.chunks()[chunk], &mut hashes)?;
        Ok(hashes.clone())
    })
}

/// By hashes with another seed than theirs.
fn computed(reader: &Reader, seed: u64, told: &mut dyn FnMut(u64)) -> Result<Contents, ReadError> {
    let mut buffer = Vec::new();
    gather(reader, told, |chunk| {
        let plain = reader.decode(&reader.chunks()[chunk], &mut buffer)?;
        let pages = plain.chunks(to_usize(PAGE_SIZE));
        Ok(pages.map(|page| PageHash::of(page, seed)).collect())
    })
}

fn gather(
    reader: &Reader,
    told: &mut dyn FnMut(u64),
    mut hashes_of: impl FnMut(usize) -> Result<Vec<PageHash>, ReadError>,
) -> Result<Contents, ReadError> {
    let mut contents = Contents::default();
    for (number, chunk) in reader.chunks().iter().enumerate() {
        let hashes = hashes_of(number)?;
        told(to_u64(chunk.length()));
        for run in &chunk.runs {
            let slots = to_usize(u64::from(run.slot))..to_usize(u64::from(run.slot + run.pages));
            let pages = (run.first_page..).zip(hashes[slots].iter().copied());
            contents.0.entry(run.object).or_default().extend(pages);
        }
    }
    contents.0.values_mut().for_each(|pages| pages.sort_unstable_by_key(|(page, _)| *page));
    Ok(contents)
}

impl Contents {
    /// The stored pages of an object in a range.
    fn within(&self, object: ObjectId, pages: &Range<u64>) -> &[(u64, PageHash)] {
        let all = self.0.get(&object).map(Vec::as_slice).unwrap_or_default();
        let start = all.partition_point(|(page, _)| *page < pages.start);
        let end = all.partition_point(|(page, _)| *page < pages.end);
        &all[start..end.max(start)]
    }

    /// How `pages` of an object differ from the same pages of an object of an earlier generation.
    #[must_use]
    pub fn difference(
        &self,
        object: ObjectId,
        earlier: &Self,
        its_object: ObjectId,
        pages: &Range<u64>,
    ) -> Difference {
        let (mut before, mut now) = (earlier.within(its_object, pages), self.within(object, pages));
        let mut difference = Difference::default();
        loop {
            match (before, now) {
                ([(old, before_hash), earlier_rest @ ..], [(new, hash), rest @ ..]) => {
                    if old == new {
                        let same = before_hash == hash;
                        difference.same += u64::from(same);
                        difference.changed += u64::from(!same);
                    }
                    difference.gone += u64::from(old < new);
                    difference.new += u64::from(new < old);
                    (before, now) = (
                        if old <= new { earlier_rest } else { before },
                        if new <= old { rest } else { now },
                    );
                }
                (before, now) => {
                    difference.gone += u64::try_from(before.len()).unwrap_or(u64::MAX);
                    difference.new += u64::try_from(now.len()).unwrap_or(u64::MAX);
                    return difference;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Contents, Difference, of_both};
    use crate::image::codec::{Codec, PageHash};
    use crate::image::reader::Reader;
    use crate::image::sample;
    use crate::image::writer::{WriteOptions, Writer, ZeroPages};
    use crate::model::id::ObjectId;

    fn contents(pages: &[(u64, u8)]) -> Contents {
        let pages = pages.iter().map(|(page, byte)| (*page, PageHash([*byte; 16])));
        Contents([(ObjectId(3), pages.collect())].into())
    }

    #[test]
    fn every_page_counts_once() {
        let earlier = contents(&[(1, 1), (2, 2), (3, 3), (9, 9)]);
        let now = contents(&[(2, 2), (3, 4), (4, 4), (5, 5), (10, 1)]);
        let object = ObjectId(3);
        let check = |pages: std::ops::Range<u64>, expected: [u64; 4]| {
            let Difference { same, changed, new, gone } =
                now.difference(object, &earlier, object, &pages);
            assert_eq!([same, changed, new, gone], expected, "{pages:?}");
        };
        check(0..100, [1, 1, 3, 2]);
        check(2..4, [1, 1, 0, 0]);
        check(4..4, [0, 0, 0, 0]);
        assert_eq!(now.difference(object, &earlier, ObjectId(4), &(0..100)).new, 5);
    }

    /// Two generations that know nothing of each other have different seeds.
    #[test]
    fn equal_pages_are_equal_whatever_the_seed() {
        let write = |changed: u64| {
            let directory = tempfile::tempdir().unwrap();
            let options = WriteOptions { codec: Codec::Lz4, workers: 1, rate: None };
            let mut writer = Writer::create(directory.path(), options).unwrap();
            let (start, _) = sample::MEMORY_PAGES;
            let mut read = |first: u64, buffer: &mut [u8]| {
                for (number, page) in (first..).zip(buffer.chunks_exact_mut(4096)) {
                    page.fill(if number - start < changed { 8 } else { 7 });
                }
                Ok(())
            };
            writer.store(ObjectId(0), start, 20, ZeroPages::Drop, &mut read).unwrap();
            writer.finish(&sample::job()).unwrap();
            (Reader::open(directory.path()).unwrap(), directory)
        };
        let ((one, _first), (other, _second)) = (write(0), write(3));
        let mut bytes = 0;
        let (earlier, now) = of_both(&one, &other, &mut |more| bytes += more).unwrap();
        assert_eq!(bytes, 2 * 20 * 4096);
        let difference = now.difference(ObjectId(0), &earlier, ObjectId(0), &(0..u64::MAX));
        assert_eq!(difference, Difference { same: 17, changed: 3, new: 0, gone: 0 });
    }
}
