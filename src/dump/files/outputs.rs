//! Files that the user named with `--outputs`: their sizes at the checkpoint, and digests to tell
//! later whether they were changed in place.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::model::file::{Output, Outputs};
use crate::model::id::Bytes;
use crate::model::time::TimeSpec;
use crate::sys::file_tree;

/// Why a named output could not be recorded.
#[derive(Debug, Error)]
#[error("cannot {operation} the output {path}")]
pub struct OutputError {
    /// What was tried.
    pub operation: &'static str,
    /// The file or pattern.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Finds the files that `named` stands for, and their sizes; quick, to be done while the job is
/// frozen. Nothing in the job's own directories `excluded` counts.
///
/// # Errors
/// When a directory cannot be listed or a file not be looked at.
pub fn find(named: &[PathBuf], excluded: &[PathBuf]) -> Result<Outputs, OutputError> {
    let failed = |operation: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| OutputError { operation, path, source }
    };
    let absolute = |path: &Path| std::path::absolute(path).map_err(failed("make absolute", path));
    let excluded: Vec<PathBuf> =
        excluded.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
    let mut outputs = Outputs::default();
    let mut paths = Vec::new();
    for pattern in named {
        let pattern = absolute(pattern)?;
        paths.extend(file_tree::expand(&pattern, &excluded).map_err(failed("find", &pattern))?);
        outputs.named.push(Bytes::from(pattern));
    }
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        let metadata = fs::metadata(&path).map_err(failed("look at", &path))?;
        outputs.files.push(Output {
            path: Bytes::from(path),
            number: metadata.ino(),
            size: metadata.size(),
            mtime: TimeSpec { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() },
            digest: Bytes::default(),
        });
    }
    Ok(outputs)
}

/// Computes the digests of what the files held when [`find`] looked at them. The job may run on: as
/// long as it appends, the first bytes stay what they were. A file that has vanished or shrunk since
/// keeps an empty digest, which matches nothing.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn add_digests(outputs: &mut Outputs) -> Result<(), OutputError> {
    for output in &mut outputs.files {
        let path = output.path.as_path();
        let digest = File::open(path).and_then(|file| file_tree::digest_prefix(&file, output.size));
        match digest {
            Ok(digest) => output.digest = Bytes(digest.to_vec()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                ) => {}
            Err(source) => {
                let path = path.to_owned();
                return Err(OutputError { operation: "read", path, source });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_found_and_get_digests_of_what_they_held() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(&log, "one\n").unwrap();
        fs::create_dir(directory.path().join("job")).unwrap();
        fs::write(directory.path().join("job/image"), "x").unwrap();
        let named = [directory.path().to_owned()];
        let mut outputs = find(&named, &[directory.path().join("job")]).unwrap();
        assert_eq!(outputs.files.len(), 1);
        assert_eq!(outputs.files[0].size, 4);
        fs::write(&log, "one\ntwo\n").unwrap();
        add_digests(&mut outputs).unwrap();
        let digest = file_tree::digest_prefix(&File::open(&log).unwrap(), 4).unwrap();
        assert_eq!(outputs.files[0].digest.0, digest);
        fs::write(&log, "1").unwrap();
        outputs.files[0].digest = Bytes::default();
        add_digests(&mut outputs).unwrap();
        assert_eq!(outputs.files[0].digest, Bytes::default());
    }
}
