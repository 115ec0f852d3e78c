//! Files that the user wants to have whole in the image (`--save-files`), open or not: what changes in
//! place, as databases do, cannot be cut back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::inode::Found;
use super::outputs::OutputError;
use super::scan::FileStat;
use super::{CollectFilesError, Collector, Failure, Place};
use crate::model::file::Saved;
use crate::model::id::Bytes;
use crate::sys::file_tree;

/// What databases put beside their files, named like them: what is new of these would be taken for a
/// part of the older file.
const COMPANIONS: [&str; 3] = ["-journal", "-wal", "-shm"];

/// What is to be saved whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Paths, patterns and directories, absolute.
    pub named: Vec<PathBuf>,
    /// Whether to find out by itself: whatever the job has open for reading and writing anywhere.
    pub by_itself: bool,
}

impl Wanted {
    /// Whether nothing is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.named.is_empty() && !self.by_itself
    }

    /// The same, and what an earlier checkpoint was told to save.
    pub fn extend(&mut self, saved: &Saved) {
        self.by_itself |= saved.by_itself;
        for path in saved.named.iter().map(|path| path.as_path().to_owned()) {
            if !self.named.contains(&path) {
                self.named.push(path);
            }
        }
    }
}

/// Why files to be saved whole could not be found.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A pattern could not be followed.
    #[error(transparent)]
    Find(#[from] OutputError),
    /// A file could not be looked at.
    #[error(transparent)]
    Collect(#[from] CollectFilesError),
}

impl Collector {
    /// Notes the files that are to be saved whole; those at or below `excluded` are none. `root` stands
    /// for the job in messages.
    ///
    /// # Errors
    /// When they cannot be found or looked at.
    pub fn save(
        &mut self,
        wanted: &Wanted,
        excluded: &[PathBuf],
        root: Pid,
    ) -> Result<Saved, SaveError> {
        let mut saved = Saved { by_itself: wanted.by_itself, ..Saved::default() };
        let mut named = wanted.named.clone();
        if wanted.by_itself {
            for (id, path) in self.inodes.changing_in_place() {
                self.inodes.save(id);
                saved.files.push(id);
                named.extend(COMPANIONS.map(|suffix| {
                    let mut companion = path.as_path().as_os_str().to_owned();
                    companion.push(suffix);
                    PathBuf::from(companion)
                }));
            }
        }
        let failed = |operation: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| OutputError { operation, path, source }
        };
        let absolute =
            |path: &PathBuf| std::path::absolute(path).map_err(failed("make absolute", path));
        let excluded: Vec<PathBuf> = excluded.iter().map(absolute).collect::<Result<_, _>>()?;
        named.sort_unstable();
        named.dedup();
        for pattern in named {
            let paths = file_tree::expand(&pattern, &excluded).map_err(failed("find", &pattern))?;
            for path in paths {
                let facts = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
                if !facts.is_file() {
                    continue;
                }
                let link = Bytes::from(path.clone());
                let user = (root, Place::Named);
                let stat = FileStat::from(&facts);
                let found = Found { stat, link: &link.0, proc_path: path, readable: None, user };
                match self.inodes.intern(found) {
                    Ok(id) => {
                        self.inodes.save(id);
                        saved.files.push(id);
                    }
                    Err(Failure::Failed(error)) => return Err(error.into()),
                    Err(Failure::Refused(kind)) => self.refuse(root, Place::Named, &link.0, kind),
                }
            }
            saved.named.push(Bytes::from(pattern));
        }
        saved.files.sort_unstable();
        saved.files.dedup();
        Ok(saved)
    }
}
