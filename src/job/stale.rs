//! What a job's environment still says of the batch job that it was started in, after it was brought back
//! in another one. A program's environment is its own memory: it cannot be changed from outside without
//! guessing, so its user is told.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::model::id::Bytes;

/// Slurm's variables begin so.
const PREFIX: &[u8] = b"SLURM_";
/// More names than this tell nothing new.
const MOST: usize = 40;

/// The names of the batch system's variables in `environment` (/proc/PID/environ) that are another, or
/// gone, in the environment that `variable` reads.
pub fn variables(environment: &[u8], variable: impl Fn(&Bytes) -> Option<OsString>) -> Vec<Bytes> {
    let entries = environment.split(|byte| *byte == 0);
    entries
        .filter_map(|entry| {
            let at = entry.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (&entry[..at], &entry[at + 1..]);
            let name = name.starts_with(PREFIX).then(|| Bytes::from(name))?;
            let same = variable(&name).is_some_and(|own| own.as_bytes() == value);
            (!same).then_some(name)
        })
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::variables;

    #[test]
    fn what_differs_or_is_gone_is_stale() {
        let environment = b"HOME=/home/u\0SLURM_JOB_ID=17\0SLURM_NNODES=1\0SLURM_X=\0broken\0\0";
        let names = variables(environment, |name| match name.0.as_slice() {
            b"SLURM_JOB_ID" => Some(OsString::from("18")),
            b"SLURM_NNODES" => Some(OsString::from("1")),
            _ => None,
        });
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["SLURM_JOB_ID", "SLURM_X"]);
        assert!(variables(b"", |_| None).is_empty());
    }
}
