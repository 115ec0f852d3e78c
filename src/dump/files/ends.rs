//! Digests of the ends of files that the job writes, by which a restore tells a file that only grew from
//! one that was changed in place. Their middle is not read: a checkpoint must not cost what the job's
//! whole output weighs.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::io::ErrorKind::{NotFound, PermissionDenied, UnexpectedEof};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::outputs::OutputError;
use crate::model::file::{Inode, InodeKind, OpenFileKind, StreamTarget};
use crate::model::id::{Bytes, InodeId};
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::sys::file_tree;

/// Adds the digests of what the files held when the job was frozen. The job may run on: as long as it
/// appends, that stays what it was, and a change in place within this moment is seen by the file's time
/// unless the file grows as well. A file that may not be read, or is not what it was, goes without.
///
/// # Errors
/// When a file cannot be read for another reason.
pub fn add_digests(job: &mut Job) -> Result<(), OutputError> {
    for id in written_files(job) {
        if let Some(inode) = job.inodes.get_mut(to_usize(u64::from(id.0)))
            && inode.kind == InodeKind::Linked
            && inode.mode & libc::S_IFMT == libc::S_IFREG
        {
            inode.ends = match digest(inode) {
                Ok(digest) => Some(Bytes(digest.to_vec())),
                Err(error)
                    if matches!(error.kind(), PermissionDenied | NotFound | UnexpectedEof) =>
                {
                    None
                }
                Err(source) => {
                    let path = inode.path.as_path().to_owned();
                    return Err(OutputError { operation: "read", path, source });
                }
            };
        }
    }
    Ok(())
}

/// The files that the job or its streams have open for writing.
fn written_files(job: &Job) -> BTreeSet<InodeId> {
    let written = |flags: u32| flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY;
    job.open_files
        .iter()
        .filter(|file| written(file.flags))
        .filter_map(|file| match file.kind {
            OpenFileKind::Regular { inode, .. }
            | OpenFileKind::Stream { target: StreamTarget::Regular { inode, .. }, .. } => {
                Some(inode)
            }
            _ => None,
        })
        .collect()
}

fn digest(inode: &Inode) -> io::Result<[u8; 16]> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(inode.path.as_path())?;
    if file.metadata()?.ino() != inode.number {
        return Err(NotFound.into());
    }
    file_tree::digest_ends(&file, inode.size)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::image::sample;
    use crate::model::file::OpenFile;

    #[test]
    fn files_open_for_writing_get_digests() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "one\n").unwrap();
        let facts = fs::metadata(&path).unwrap();
        let mut job = sample::job();
        let inode = InodeId(u32::try_from(job.inodes.len()).unwrap());
        job.inodes.push(Inode {
            path: Bytes::from(path.as_path()),
            number: facts.ino(),
            mode: facts.mode(),
            size: facts.len(),
            ..job.inodes[0].clone()
        });
        let kind = OpenFileKind::Regular { inode, position: 0 };
        let reading = OpenFile { flags: 0, kind, owner: None, locks: Vec::new() };
        job.open_files.push(reading.clone());
        let digest_of = |job: &mut Job| {
            add_digests(job).unwrap();
            job.inodes.last().and_then(|inode| inode.ends.clone())
        };
        assert_eq!(digest_of(&mut job), None);
        job.open_files.push(OpenFile { flags: 1, ..reading });
        let digest = digest_of(&mut job);
        assert!(digest.is_some());
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(digest_of(&mut job), digest);
        fs::write(&path, "two\none\n").unwrap();
        assert_ne!(digest_of(&mut job), digest);
        fs::remove_file(&path).unwrap();
        assert_eq!(digest_of(&mut job), None);
    }
}
