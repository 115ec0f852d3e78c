//! How many generations a job's directory keeps, by number and by the room they take. The one that
//! `latest` names always stays.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::directory::{DirectoryError, Generation, JobDirectory};

/// Bytes of a block as `st_blocks` counts them, stat(2).
const BLOCK: u64 = 512;

/// What is kept of a job's generations in one directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// How many; `None`: all.
    pub number: Option<NonZeroUsize>,
    /// Bytes that all together may take on the disk, but for the newest; `None`: any.
    pub bytes: Option<NonZeroU64>,
}

impl Retention {
    /// Removes what is not to be kept.
    ///
    /// # Errors
    /// When something cannot be looked at or removed.
    pub fn apply(&self, directory: &JobDirectory) -> Result<(), DirectoryError> {
        if let Some(keep) = self.number {
            by_number(directory, keep)?;
        }
        if let Some(most) = self.bytes {
            by_bytes(directory, most)?;
        }
        Ok(())
    }
}

/// Removes all but the newest `keep` generations. Gives those removed.
///
/// # Errors
/// When one cannot be removed; those before it are gone.
pub fn by_number(
    directory: &JobDirectory,
    keep: NonZeroUsize,
) -> Result<Vec<Generation>, DirectoryError> {
    let mut generations = directory.generations()?;
    generations.truncate(generations.len().saturating_sub(keep.get()));
    remove(directory, generations)
}

/// Removes the oldest generations until all together take no more than `most` bytes on the disk. What
/// several of them share is counted once. Gives those removed.
///
/// # Errors
/// When one cannot be looked at or removed; those before it are gone.
pub fn by_bytes(
    directory: &JobDirectory,
    most: NonZeroU64,
) -> Result<Vec<Generation>, DirectoryError> {
    let mut seen = BTreeSet::new();
    let (mut sum, mut fitting) = (0_u64, 0);
    let mut generations = directory.generations()?;
    for generation in generations.iter().rev() {
        let path = &generation.path;
        let size = size(path, &mut seen)
            .map_err(|source| DirectoryError::List { path: path.clone(), source })?;
        sum = sum.saturating_add(size);
        if sum > most.get() {
            break;
        }
        fitting += 1;
    }
    generations.truncate(generations.len() - fitting);
    remove(directory, generations)
}

fn remove(
    directory: &JobDirectory,
    mut generations: Vec<Generation>,
) -> Result<Vec<Generation>, DirectoryError> {
    // A writer that was killed may have left the link at one of those that go now.
    directory.name_latest()?;
    // It may have left half of one, too, which takes as much room.
    directory.remove_leftovers()?;
    let latest = directory.latest()?;
    generations.retain(|generation| Some(generation) != latest.as_ref());
    for generation in &generations {
        directory.remove(generation)?;
    }
    Ok(generations)
}

/// Bytes that a generation's files take on the disk, but for those of `seen`, to which they come.
fn size(generation: &Path, seen: &mut BTreeSet<(u64, u64)>) -> io::Result<u64> {
    let mut sum = 0_u64;
    for entry in fs::read_dir(generation)? {
        let metadata = entry?.metadata()?;
        if seen.insert((metadata.dev(), metadata.ino())) {
            sum = sum.saturating_add(metadata.blocks().saturating_mul(BLOCK));
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::size;

    #[test]
    fn what_is_shared_counts_once() {
        let scratch = tempfile::tempdir().unwrap();
        let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        fs::write(one.join("pages"), vec![1; 100_000]).unwrap();
        fs::hard_link(one.join("pages"), two.join("pages")).unwrap();
        fs::write(two.join("more"), vec![1; 50_000]).unwrap();
        let mut seen = BTreeSet::new();
        let newest = size(&two, &mut seen).unwrap();
        assert!((150_000..200_000).contains(&newest), "{newest}");
        assert_eq!(size(&one, &mut seen).unwrap(), 0);
    }
}
