//! Files that the job may append to by opening, writing and closing them, and that the user has not named
//! with `--outputs`: nothing holds them open at the checkpoint, so a restore would leave in them what came
//! after it. A hint, found with little effort, never a reason to fail. What was written before the oldest
//! checkpoint and left alone since is nothing of that kind.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::model::job::Job;
use crate::model::number::to_usize;

/// Entries of a directory that are looked at.
const MOST_ENTRIES: usize = 10_000;
/// Files that are told.
const MOST_FOUND: usize = 100;
/// How exact the times of files and of a process's start are, together.
const SLACK: Duration = Duration::from_millis(20);

/// A time at which a job that was started at `started` certainly ran.
#[must_use]
pub fn surely_after(started: SystemTime) -> SystemTime {
    started + SLACK
}

/// The files in working directories of the job that were changed after `since` and are neither open, nor
/// named, nor in the job's own directory `excluded`; ascending.
#[must_use]
pub fn find(job: &Job, since: SystemTime, excluded: &Path) -> Vec<PathBuf> {
    let open: HashSet<(u64, u64)> =
        job.inodes.iter().map(|inode| (inode.device, inode.number)).collect();
    let named: HashSet<&Path> =
        job.outputs.files.iter().map(|output| output.path.as_path()).collect();
    let places: HashSet<&Path> = job
        .fs
        .iter()
        .filter_map(|context| job.inodes.get(to_usize(u64::from(context.cwd.0))))
        .map(|inode| inode.path.as_path())
        .filter(|place| !place.starts_with(excluded))
        .collect();
    let mut found = Vec::new();
    for place in places {
        // What cannot be listed is not hinted at.
        let Ok(entries) = fs::read_dir(place) else { continue };
        for entry in entries.take(MOST_ENTRIES).flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            let written = metadata.modified().is_ok_and(|time| time > since);
            let known = open.contains(&(metadata.dev(), metadata.ino())) || named.contains(&*path);
            if metadata.is_file() && metadata.size() > 0 && written && !known {
                found.push(path);
            }
        }
    }
    found.sort_unstable();
    found.truncate(MOST_FOUND);
    found
}

/// The hint about such files, in words.
#[must_use]
pub fn hint(files: &[PathBuf]) -> Option<String> {
    const TOLD: usize = 3;
    let told: Vec<String> =
        files.iter().take(TOLD).map(|path| path.display().to_string()).collect();
    let more = match files.len().saturating_sub(TOLD) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!files.is_empty()).then(|| {
        format!(
            "written while the job ran, and closed: {}{more}; if the job appends to such files, name them \
             with --outputs, or after a restore they will hold some lines twice",
            told.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample;
    use crate::model::file::{FsContext, Inode, Output};
    use crate::model::id::{Bytes, InodeId};

    #[test]
    fn only_what_nobody_accounts_for_is_found() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::write(path("old"), "x").unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        fs::File::open(path("old")).unwrap().set_modified(long_ago).unwrap();
        for name in ["log", "open", "named", "empty"] {
            fs::write(path(name), if name == "empty" { "" } else { "x" }).unwrap();
        }
        fs::create_dir(path("directory")).unwrap();
        let inode = |name: &str| {
            let metadata = fs::metadata(path(name)).unwrap();
            Inode {
                device: metadata.dev(),
                number: metadata.ino(),
                path: Bytes::from(path(name)),
                ..sample::job().inodes[0].clone()
            }
        };
        let mut job = sample::job();
        job.inodes = vec![inode("."), inode("open")];
        job.fs = vec![FsContext { cwd: InodeId(0), root: Bytes::default(), umask: 0 }];
        let output = job.outputs.files[0].clone();
        job.outputs.files = vec![Output { path: Bytes::from(path("named")), ..output }];
        let found = find(&job, SystemTime::now() - Duration::from_secs(60), Path::new("/nowhere"));
        assert_eq!(found, [path("./log")]);
        assert!(hint(&found).unwrap().contains("log; if the job"));
        assert_eq!(hint(&[]), None);
    }
}
