//! Jobs that nobody is in charge of: their supervisor was killed and they run on, or they are gone and can be
//! brought back.
//!
//! There is no register of jobs, and no disk is searched. What can be known: whatever runs on tells by what its
//! processes inherit, or by the name that a checkpoint gave to it; whatever is gone is found where its directory
//! is asked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{Pid, geteuid};

use super::alive;
use super::claim::{self, Holder};
use super::directory::JobDirectory;
use super::finish::Finish;
use super::identity;
use crate::image::reader::Trust;
use crate::model::id::Bytes;
use crate::sys::procfs;

/// So many entries of a directory are looked at, at most: there may be millions.
const MOST_ENTRIES: usize = 1000;

/// How a job is that this machine's supervisors do not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs without a supervisor; its first process.
    Unsupervised(Pid),
    /// It does not run here, and can be brought back.
    Saved,
    /// A supervisor that cannot be asked from here, on another machine as a rule, is in charge.
    Elsewhere(Holder),
}

/// Such a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its identity.
    pub id: Bytes,
    /// How it is.
    pub state: State,
    /// Its command line, as far as it is known.
    pub command: String,
    /// Its directory; `None`: it is not where it was.
    pub directory: Option<PathBuf>,
}

/// The jobs of mine without a supervisor that run, and those whose directories are `places`. Those in
/// `supervised` are left out.
#[must_use]
pub fn find(supervised: &[Bytes], places: &[PathBuf]) -> Vec<Left> {
    let own = Trust::Own;
    let mut directories: BTreeMap<Bytes, JobDirectory> = BTreeMap::new();
    let open = places.iter().filter_map(|place| JobDirectory::open(place, own).ok());
    for directory in open {
        // A local directory stands for the one that it belongs to.
        let home = directory.home(own).ok().flatten().unwrap_or(directory);
        if let Some(id) = home.identity().map(|identity| identity.id.clone()) {
            directories.entry(id).or_insert(home);
        }
    }
    let mut found = Vec::new();
    for (id, place) in alive::jobs() {
        let named = JobDirectory::open(&place, own).ok();
        let named = named.filter(|it| it.identity().is_some_and(|identity| identity.id == id));
        let directory = directories.remove(&id).or(named);
        if !supervised.contains(&id) {
            found.extend(alive::first(&id).and_then(|root| running(id, root, directory)));
        }
    }
    directories.retain(|id, _| !supervised.contains(id));
    let living = if directories.is_empty() { BTreeMap::new() } else { names_of_processes() };
    for (id, directory) in directories {
        found.extend(match living.get(&id) {
            Some(root) => running(id, *root, Some(directory)),
            None => at_rest(id, &directory),
        });
    }
    found
}

/// The directories of jobs in `directory`, itself among them.
#[must_use]
pub fn directories_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().take(MOST_ENTRIES).flatten();
    let inside = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let all = std::iter::once(directory.to_owned()).chain(inside.map(|entry| entry.path()));
    let mut found: Vec<PathBuf> = all.filter(|place| JobDirectory::is_one(place)).collect();
    found.sort();
    found
}

/// A job that runs; `None`: a supervisor that cannot be asked is in charge of it.
fn running(id: Bytes, root: Pid, directory: Option<JobDirectory>) -> Option<Left> {
    let holder = directory.as_ref().and_then(|it| claim::living_holder(it.path()));
    let command = procfs::read(root, "cmdline").unwrap_or_default();
    let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    holder.is_none().then(|| Left {
        id,
        state: State::Unsupervised(root),
        command: words.join(" ").trim_end().to_owned(),
        directory: directory.map(|it| it.path().to_owned()),
    })
}

/// A job that does not run here; `None`: there is nothing to go on from, or nothing left to do.
fn at_rest(id: Bytes, directory: &JobDirectory) -> Option<Left> {
    let generations = directory.all_generations(Trust::Own).unwrap_or_default();
    let finished = Finish::read(directory.path()).is_ok_and(|finish| finish.is_some());
    let state = match claim::living_holder(directory.path()) {
        Some(holder) => State::Elsewhere(holder),
        None if generations.is_empty() || finished => return None,
        None => State::Saved,
    };
    let command = directory.identity().map(|identity| identity.command_line()).unwrap_or_default();
    Some(Left { id, state, command, directory: Some(directory.path().to_owned()) })
}

/// What each process of mine would be called as a job that nobody has started under supervision.
fn names_of_processes() -> BTreeMap<Bytes, Pid> {
    let Ok(boot) = identity::boot() else { return BTreeMap::new() };
    let all = procfs::processes().unwrap_or_default();
    let named = all.into_iter().filter_map(|pid| {
        let status = procfs::status(pid).ok()?;
        let is_mine = status.uids[1] == geteuid().as_raw() && status.state != b'Z';
        let stat = procfs::stat(pid).ok().filter(|_| is_mine)?;
        Some((identity::of_process(&boot, pid, stat.starttime), pid))
    });
    named.collect()
}
