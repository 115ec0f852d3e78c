//! Who has files open for writing, as /proc tells of the processes that the caller may look into.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::procfs;

/// A file by its device and inode number.
pub type FileId = (u64, u64);

/// How often it is looked whether somebody still writes.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// As [`writers`], of those that still write after `patience`: a job that was killed a moment ago may take
/// some time to end, and a command that it had started some to be done.
#[must_use]
pub fn lasting_writers(files: &[FileId], patience: Duration) -> BTreeMap<FileId, Pid> {
    let begun = Instant::now();
    loop {
        let found = writers(files);
        if found.is_empty() || begun.elapsed() >= patience {
            return found;
        }
        sleep(LOOK_INTERVAL);
    }
}

/// For each of `files` that a process other than this one has open for writing, one such process.
/// Those that may not be looked into, or end meanwhile, have nothing to tell.
#[must_use]
pub fn writers(files: &[FileId]) -> BTreeMap<FileId, Pid> {
    let mut found = BTreeMap::new();
    if files.is_empty() {
        return found;
    }
    let others = procfs::processes().unwrap_or_default();
    for pid in others.into_iter().filter(|pid| *pid != Pid::this()) {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            let file = (metadata.dev(), metadata.ino());
            let name = entry.file_name();
            if files.contains(&file) && may_write(pid, &name.to_string_lossy()) {
                found.entry(file).or_insert(pid);
            }
        }
    }
    found
}

/// Whether a descriptor was opened for writing, as its `flags` in fdinfo say.
fn may_write(pid: Pid, number: &str) -> bool {
    let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else { return false };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags
        .is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_who_writes_is_found() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let file = |name: &str| {
            let metadata = fs::metadata(path(name)).unwrap();
            (metadata.dev(), metadata.ino())
        };
        fs::write(path("read"), "").unwrap();
        let written = File::create(path("written")).unwrap();
        let own = File::create(path("own")).unwrap();
        let mut child = Command::new("cat");
        // It reads its input to the end, which comes when the test is over, and has two files open.
        child.args(["-", "read"]).current_dir(place.path()).stdin(Stdio::piped());
        let mut child =
            child.stdout(File::open(path("read")).unwrap()).stderr(written).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let files = [file("read"), file("written"), file("own")];
        assert_eq!(writers(&files), BTreeMap::from([(file("written"), pid)]));
        assert_eq!(lasting_writers(&files, LOOK_INTERVAL), writers(&files));
        let ending = std::thread::spawn(move || {
            sleep(3 * LOOK_INTERVAL);
            drop(child.stdin.take());
            child.wait().unwrap()
        });
        assert_eq!(lasting_writers(&files, Duration::from_secs(30)), BTreeMap::new());
        ending.join().unwrap();
        drop(own);
    }
}
