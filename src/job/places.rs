//! Places that moved by themselves: a batch system makes a directory for each of its jobs and names it in
//! the environment. What was under the old one at the checkpoint is looked for under the new one.

use std::path::Path;

use crate::model::id::Bytes;

/// A place that has another name now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The variable that tells.
    pub variable: Bytes,
    /// The place at the checkpoint.
    pub old: Bytes,
    /// The place now.
    pub new: Bytes,
}

/// The places of `recorded` (variables and their values) that are gone, and that `here` has under another
/// name. What the user has mapped himself is left alone.
pub fn moved(
    recorded: &[(Bytes, Bytes)],
    here: &[(Bytes, Bytes)],
    mapped: &[(Bytes, Bytes)],
    exists: impl Fn(&Path) -> bool,
) -> Vec<Moved> {
    let mut found: Vec<Moved> = Vec::new();
    for (variable, old) in recorded {
        let Some((_, new)) = here.iter().find(|(name, _)| name == variable) else { continue };
        let known = mapped.iter().any(|(from, _)| from == old)
            || found.iter().any(|moved| moved.old == *old);
        if new != old && !known && !exists(old.as_path()) {
            let (variable, old, new) = (variable.clone(), old.clone(), new.clone());
            found.push(Moved { variable, old, new });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::moved;
    use crate::model::id::Bytes;

    #[test]
    fn only_what_is_gone_and_has_a_new_place_has_moved() {
        let pair =
            |name: &str, path: &str| (Bytes::from(name.as_bytes()), Bytes::from(path.as_bytes()));
        let recorded = [pair("TMPDIR", "/tmp/1"), pair("SLURM_TMPDIR", "/scratch/1")];
        let check = |here: &[(&str, &str)], mapped: &[(&str, &str)], expected: &[(&str, &str)]| {
            let pairs = |words: &[(&str, &str)]| {
                words.iter().map(|(left, right)| pair(left, right)).collect::<Vec<_>>()
            };
            let exists = |path: &std::path::Path| path.starts_with("/tmp");
            let found = moved(&recorded, &pairs(here), &pairs(mapped), exists);
            let found: Vec<_> = found.into_iter().map(|moved| (moved.old, moved.new)).collect();
            assert_eq!(found, pairs(expected));
        };
        check(&[], &[], &[]);
        check(&[("SLURM_TMPDIR", "/scratch/2")], &[], &[("/scratch/1", "/scratch/2")]);
        check(&[("SLURM_TMPDIR", "/scratch/1")], &[], &[]);
        check(&[("TMPDIR", "/tmp/2")], &[], &[]);
        check(&[("SLURM_TMPDIR", "/scratch/2")], &[("/scratch/1", "/elsewhere")], &[]);
    }
}
