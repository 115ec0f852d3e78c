//! Commands that rckpt cannot be the parent of in any useful way: what they start runs elsewhere, or not
//! as the user. Said at once, with the right way round, and not after hours at the first checkpoint.
//!
//! Only the command's own name is looked at; what a script calls in its turn shows at a checkpoint.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::failure::Failure;
use crate::model::code::requests;

/// Names, what is the matter with them, and what to write.
const WRONG: [(&[&str], &str, &str); 6] = [
    (
        &["srun"],
        "the tasks that it starts run under Slurm's daemons, not under rckpt",
        "srun rckpt run --dir DIR ... -- CMD saves each task where it runs; several tasks need a DIR \
         each, as: srun sh -c 'exec rckpt run --dir job.$SLURM_PROCID ... -- CMD'",
    ),
    (
        &["sbatch", "salloc", "qsub", "bsub", "condor_submit", "oarsub"],
        "the job that it submits runs elsewhere, later",
        "call rckpt inside the job: the script's last line is exec rckpt run --resume --dir DIR ... -- CMD",
    ),
    (
        &["ssh", "rsh", "pdsh", "clush"],
        "what it starts runs on another machine",
        "call rckpt there: ssh HOST rckpt run --dir DIR ... -- CMD",
    ),
    (
        &["docker", "nerdctl", "kubectl"],
        "what it starts runs under a daemon, not under rckpt",
        "call rckpt inside the container: docker run ... IMAGE rckpt run --dir DIR ... -- CMD",
    ),
    (
        &["sudo", "su", "doas", "pkexec"],
        "what it starts belongs to another user, whom rckpt may not look at",
        "let that user call rckpt: sudo rckpt run --dir DIR ... -- CMD",
    ),
    (&["rckpt"], "one supervisor of a job is enough", "leave out the inner or the outer one"),
];

/// Refuses a command that is known to be the wrong way round.
///
/// # Errors
/// With the right way as its hint.
pub fn check(command: &[OsString]) -> Result<(), Failure> {
    let name = command.first().and_then(|word| Path::new(word).file_name()).unwrap_or_default();
    let found = WRONG.iter().find(|(names, ..)| names.iter().any(|it| OsStr::new(it) == name));
    match found {
        None => Ok(()),
        Some((_, matter, right)) => Err(Failure::user(
            requests::RUNS_ELSEWHERE,
            format_args!("{} cannot be run under rckpt: {matter}", name.display()),
        )
        .hint(*right)),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::check;

    #[test]
    fn what_runs_elsewhere_is_refused() {
        let outcome = |words: &[&str]| {
            check(&words.iter().map(OsString::from).collect::<Vec<_>>()).map_err(|it| it.hint)
        };
        for words in
            [&["srun", "-n", "4", "./a"][..], &["/usr/bin/sbatch", "x"], &["ssh", "h", "x"]]
        {
            assert!(outcome(words).unwrap_err().unwrap().contains("rckpt run"), "{words:?}");
        }
        for words in [&["./srunner"][..], &["mpirun", "-n", "4", "./a"], &["sh", "-c", "srun x"]] {
            assert!(outcome(words).is_ok(), "{words:?}");
        }
    }
}
