//! What a restore here and now would do to the job's files.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::model::file::InodeKind;
use crate::model::id::Bytes;
use crate::model::job::Job;
use crate::restore::files::{Action, Decisions, Problem};

/// What would become of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It stands in the way: no restore as long as it is like that.
    Refused,
    /// What was written after the checkpoint is cut off, and kept.
    Cut,
    /// It gets its content back; what it holds now is kept.
    Reset,
    /// It is moved away, and kept.
    SetAside,
    /// It is made again.
    Made,
    /// It is as it was, and is used as it is.
    Used,
}

impl Fate {
    /// The same for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Cut => "cut back",
            Self::Reset => "content put back",
            Self::SetAside => "set aside",
            Self::Made => "made again",
            Self::Used => "used as it is",
        }
    }
}

/// A file, and what would become of it.
#[derive(Debug, Serialize)]
pub struct FileFate {
    pub path: String,
    pub fate: Fate,
    /// The size that it would be cut back to.
    pub bytes: Option<u64>,
    /// What stands in the way.
    pub reason: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl FileFate {
    fn new(path: String, fate: Fate) -> Self {
        Self { path, fate, bytes: None, reason: None, remedy: None }
    }
}

/// What would become of each file, those first that need attention.
pub fn fates(job: &Job, decisions: &Decisions, problems: &[Problem]) -> Vec<FileFate> {
    let mut fates = Vec::new();
    for problem in problems {
        fates.push(FileFate {
            reason: Some(problem.kind.to_string()),
            remedy: Some(problem.kind.remedy().to_owned()),
            ..FileFate::new(problem.path.to_string(), Fate::Refused)
        });
    }
    let refused: BTreeSet<String> = fates.iter().map(|fate| fate.path.clone()).collect();
    for cut in &decisions.cuts {
        let path = cut.path.display().to_string();
        if refused.contains(&path) {
            continue;
        }
        fates.push(FileFate { bytes: Some(cut.size), ..FileFate::new(path, Fate::Cut) });
    }
    let moved = |paths: &[std::path::PathBuf], fate| -> Vec<FileFate> {
        paths.iter().map(|path| FileFate::new(path.display().to_string(), fate)).collect()
    };
    fates.extend(moved(&decisions.resets, Fate::Reset));
    fates.extend(moved(&decisions.set_aside, Fate::SetAside));
    let made: BTreeMap<_, _> =
        decisions.contents.iter().map(|(id, action)| (id.0, *action)).collect();
    let known: BTreeSet<String> = fates.iter().map(|fate| fate.path.clone()).collect();
    let mut rest: BTreeMap<&Bytes, Fate> = BTreeMap::new();
    for (number, inode) in (0_u32..).zip(&job.inodes) {
        let has_path = matches!(inode.kind, InodeKind::Linked | InodeKind::MemoryFile);
        if !has_path || known.contains(&inode.path.to_string()) {
            continue;
        }
        let fate = match made.get(&number) {
            Some(Action::Create) => Fate::Made,
            _ => Fate::Used,
        };
        rest.insert(&inode.path, fate);
    }
    for output in &job.outputs.files {
        if !known.contains(&output.path.to_string()) {
            rest.entry(&output.path).or_insert(Fate::Used);
        }
    }
    fates.extend(rest.into_iter().map(|(path, fate)| FileFate::new(path.to_string(), fate)));
    fates.sort_by(|left, right| (left.fate, &left.path).cmp(&(right.fate, &right.path)));
    fates
}
