//! What a directory allows, found out by doing there, on a small scale, what a checkpoint does: make files
//! and sync them, rename a directory, lock, move a link. Everything is removed again.
//!
//! It knows nothing of what images look like.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::statfs::statfs;
use nix::unistd;
use serde::Serialize;
use thiserror::Error;

use crate::model::number::to_u64;

use super::{clone, reflink};

/// Bytes that are written at once to find out how fast that is.
const BLOCK: usize = 4 << 20;
/// The most bytes that are written for that.
const MOST: u64 = 64 << 20;
/// And the most time.
const LONGEST: Duration = Duration::from_millis(300);

/// What was found out about a directory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// The kind of its file system.
    pub kind: String,
    /// Bytes that this user may still write, as far as the file system tells.
    pub free: u64,
    /// Files that may still be made; `None` where they are not counted.
    pub free_files: Option<u64>,
    /// What is left of the user's or group's quota, in bytes; `None` without one that is told.
    pub quota: Option<u64>,
    /// The largest file that may be written (RLIMIT_FSIZE); `None`: any.
    pub largest_file: Option<u64>,
    /// Bytes a second, written and synced.
    pub rate: f64,
    /// How long it takes until one small file is on the disk.
    pub sync: Duration,
    /// Whether files can be locked against other processes (flock).
    pub locks: bool,
    /// Whether files can be copied by sharing their blocks (FICLONE).
    pub clones: bool,
}

/// What a directory does not allow.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// A call failed.
    #[error("{operation}: {source}")]
    Try {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Files there belong to somebody else at once.
    #[error("what is made there belongs to user {0}")]
    OtherOwner(u32),
    /// Everybody can read or write what is made there.
    #[error("what is made there has the mode {0:o} instead of 600, so others could use it")]
    OtherMode(u32),
    /// Something else was read than was written.
    #[error("it does not give back what was written to it")]
    OtherContent,
}

/// How often it is tried to remove what was made for a trial.
const LAST_TRIALS: usize = 5;

fn trying(operation: &'static str) -> impl Fn(io::Error) -> PlaceError {
    move |source| PlaceError::Try { operation, source }
}

/// A directory that is removed with all that is in it when this value is gone.
struct Corner {
    path: PathBuf,
}

impl Drop for Corner {
    fn drop(&mut self) {
        leave(&self.path);
    }
}

/// The directory that this process makes in `directory` for the trial, and removes.
#[must_use]
pub fn corner_of(directory: &Path) -> PathBuf {
    directory.join(format!(".rckpt-check-{}", unistd::getpid()))
}

/// Removes such a directory, while the trial may still go on.
pub fn leave(corner: &Path) {
    for _ in 0..LAST_TRIALS {
        // What cannot be removed has a name that says whose it is.
        fs::remove_dir_all(corner).unwrap_or_default();
        if !corner.exists() {
            return;
        }
    }
}

/// Tries what a checkpoint in `directory` needs.
///
/// # Errors
/// The first thing that it needs and that does not work.
pub fn try_place(directory: &Path) -> Result<Place, PlaceError> {
    let disk = statfs(directory).map_err(|errno| trying("ask for its size")(errno.into()))?;
    let block = u64::try_from(disk.block_size()).unwrap_or(1);
    let free = disk.blocks_available().saturating_mul(block);
    let quota = quota(directory);
    let largest_file = clone::own_limit(libc::RLIMIT_FSIZE)
        .ok()
        .map(|limit| limit.soft)
        .filter(|limit| *limit != libc::RLIM64_INFINITY);
    let corner = make_corner(directory)?;
    let file = try_file(&corner.path)?;
    let sync = try_order(&corner)?;
    let locks = match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    };
    let clones = reflink::clone_file(&file, &corner.path).is_ok();
    let room = [Some(free), quota, largest_file].into_iter().flatten().min().unwrap_or(free);
    // A trial should not be what fills the disk.
    let rate = measure(&corner.path, MOST.min(room / 4))?;
    Ok(Place {
        kind: name_of(disk.filesystem_type().0),
        free,
        free_files: (disk.files() != 0).then(|| disk.files_free()),
        quota,
        largest_file,
        rate,
        sync,
        locks,
        clones,
    })
}

fn make_corner(directory: &Path) -> Result<Corner, PlaceError> {
    let path = corner_of(directory);
    fs::DirBuilder::new().mode(0o700).create(&path).map_err(trying("make a directory"))?;
    Ok(Corner { path })
}

/// Makes a file that is only for its owner, and reads what was written to it.
fn try_file(corner: &Path) -> Result<File, PlaceError> {
    const CONTENT: &[u8] = b"rckpt was here";
    let path = corner.join("file");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(trying("make a file"))?;
    file.write_all(CONTENT).map_err(trying("write"))?;
    file.sync_all().map_err(trying("sync a file (fsync)"))?;
    let facts = file.metadata().map_err(trying("ask for a file's owner"))?;
    if facts.uid() != unistd::geteuid().as_raw() {
        return Err(PlaceError::OtherOwner(facts.uid()));
    }
    if facts.mode() & 0o077 != 0 {
        return Err(PlaceError::OtherMode(facts.mode() & 0o777));
    }
    let found = fs::read(&path).map_err(trying("read"))?;
    if found == CONTENT { Ok(file) } else { Err(PlaceError::OtherContent) }
}

/// Goes through the steps by which a generation is published; gives how long syncing takes.
fn try_order(corner: &Corner) -> Result<Duration, PlaceError> {
    let (hidden, shown) = (corner.path.join("hidden"), corner.path.join("shown"));
    fs::DirBuilder::new().mode(0o700).create(&hidden).map_err(trying("make a directory"))?;
    let mut file = File::create_new(hidden.join("small")).map_err(trying("make a file"))?;
    file.write_all(&[1; 4096]).map_err(trying("write"))?;
    let begun = Instant::now();
    file.sync_all().map_err(trying("sync a file (fsync)"))?;
    let sync = begun.elapsed();
    fs::rename(&hidden, &shown).map_err(trying("rename a directory"))?;
    File::open(&corner.path)
        .and_then(|directory| directory.sync_all())
        .map_err(trying("sync a directory (fsync)"))?;
    for target in ["first", "second"] {
        let (new, link) = (corner.path.join("new"), corner.path.join("link"));
        symlink(target, &new).map_err(trying("make a symbolic link"))?;
        fs::rename(&new, &link).map_err(trying("move a symbolic link"))?;
    }
    Ok(sync)
}

/// Bytes a second that can be written and synced, of data that cannot be packed; up to `most` bytes are
/// written for that.
fn measure(corner: &Path, most: u64) -> Result<f64, PlaceError> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let block: Vec<u8> = std::iter::repeat_with(&mut next).take(BLOCK / 8).flatten().collect();
    let mut file = File::create_new(corner.join("large")).map_err(trying("make a file"))?;
    let begun = Instant::now();
    let mut written = 0;
    while written < most && begun.elapsed() < LONGEST {
        let left = usize::try_from(most - written).unwrap_or(BLOCK).min(BLOCK);
        file.write_all(&block[..left]).map_err(trying("write"))?;
        written += to_u64(left);
    }
    file.sync_data().map_err(trying("sync a file (fsync)"))?;
    let seconds = begun.elapsed().as_secs_f64().max(1e-6);
    let bytes = u32::try_from(written).unwrap_or(u32::MAX);
    Ok(f64::from(bytes) / seconds)
}

/// `struct if_dqblk` (include/uapi/linux/quota.h).
#[repr(C)]
#[derive(Default)]
struct QuotaBlock {
    hard_blocks: u64,
    soft_blocks: u64,
    space: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

const _: () = assert!(size_of::<QuotaBlock>() == 72);

/// What is left of the quotas that the user and the user's group have where `directory` lies, in bytes:
/// the least of them. `None` when none is told, as on most network file systems.
fn quota(directory: &Path) -> Option<u64> {
    const USER: i32 = 0;
    const GROUP: i32 = 1;
    let directory = File::open(directory).ok()?;
    let asked = [(USER, unistd::geteuid().as_raw()), (GROUP, unistd::getegid().as_raw())];
    asked.into_iter().filter_map(|(kind, id)| quota_of(&directory, kind, id).ok().flatten()).min()
}

fn quota_of(directory: &File, kind: i32, id: u32) -> Result<Option<u64>, Errno> {
    /// Q_GETQUOTA.
    const GET: i32 = 0x80_0007;
    let mut block = QuotaBlock::default();
    // SAFETY: quotactl_fd(2) (Linux 5.14) fills one `if_dqblk`, which `block` is, for this command.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            directory.as_raw_fd(),
            GET << 8 | kind,
            id,
            &raw mut block,
        )
    };
    Errno::result(answer)?;
    Ok(left_of(&block))
}

/// What is left of a quota, in bytes; `None`: there is none, or the file system does not tell.
fn left_of(block: &QuotaBlock) -> Option<u64> {
    const BLOCK_LIMITS: u32 = 1;
    const SPACE: u32 = 2;
    // Limits are in blocks of 1 KiB, and 0 is none.
    let told = block.valid & (BLOCK_LIMITS | SPACE) == BLOCK_LIMITS | SPACE;
    let limited = told && block.hard_blocks != 0;
    limited.then(|| block.hard_blocks.saturating_mul(1024).saturating_sub(block.space))
}

/// What a file system is called, by its number (statfs(2)).
fn name_of(number: i64) -> String {
    const KNOWN: [(i64, &str); 14] = [
        (0xef53, "ext4"),
        (0x5846_5342, "XFS"),
        (0x9123_683e, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x794c_7630, "overlay"),
        (0x6969, "NFS"),
        (0x0bd0_0bd0, "Lustre"),
        (0x4750_4653, "GPFS"),
        (0x6573_5546, "FUSE"),
        (0x2fc1_2fc1, "ZFS"),
        (0xff53_4d42, "CIFS"),
        (0x00c3_6400, "Ceph"),
        (0x1983_0326, "BeeGFS"),
        (0xf2f5_2010, "F2FS"),
    ];
    let known = KNOWN.iter().find(|(kind, _)| *kind == number);
    known.map_or_else(|| format!("file system {number:#x}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_place_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let place = try_place(directory.path()).unwrap();
        assert!(place.free > 0 && place.rate > 0.0 && place.locks, "{place:?}");
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_is_left_of_a_quota() {
        let both = 3;
        let check = |hard_blocks: u64, space: u64, valid: u32, expected: Option<u64>| {
            let block = QuotaBlock { hard_blocks, space, valid, ..QuotaBlock::default() };
            assert_eq!(left_of(&block), expected, "{hard_blocks} {space} {valid}");
        };
        check(100, 2048, both, Some(98 << 10));
        check(100, 100 << 10, both, Some(0));
        // Above the limit, as after it was lowered.
        check(100, 200 << 10, both, Some(0));
        check(0, 2048, both, None);
        // Not told.
        check(100, 2048, 1, None);
        check(100, 2048, 2, None);
        check(u64::MAX, 0, both, Some(u64::MAX));
    }

    #[test]
    fn what_is_missing_is_told() {
        let error = try_place(Path::new("/proc/self")).unwrap_err();
        assert!(error.to_string().starts_with("make a directory: "), "{error}");
    }

    #[test]
    fn file_systems_have_names() {
        assert_eq!(name_of(0x6969), "NFS");
        assert_eq!(name_of(0x1234), "file system 0x1234");
    }
}
