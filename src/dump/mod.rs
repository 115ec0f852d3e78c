//! Taking a checkpoint: freeze, collect, snapshot, thaw, write. One collector file per kind of state.
//!
//! It fills [`crate::model::job::Job`] and hands page data to [`crate::image`]; it knows nothing of
//! how either is brought back.

mod aio;
mod bounds;
mod census;
mod clocks;
mod collect;
mod courtesy;
mod detail;
pub mod error;
pub mod files;
mod form;
mod inherit;
pub mod ipc;
mod memory;
mod policy;
mod process;
pub mod refusal;
pub mod snapshot;
pub mod survey;
mod thread;
mod tracking;

use std::io;
use std::mem::take;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{Pid, getppid};

use self::error::CollectError;
pub use self::error::{DumpError, NotCommitted};
pub use self::tracking::{Tracking, Use};

use self::collect::{Collected, Purpose};
use self::files::saved::Wanted;
use self::refusal::{Obstacle, Obstacles, StateRefusal};
use self::survey::{Survey, Surveyor};
use self::tracking::{Session, watches};
use crate::image::Reader;
use crate::image::watch::Watch;
use crate::image::writer::{WriteOptions, Writer};
use crate::model::id::Bytes;
use crate::model::job::{Job, Machine};
use crate::model::number::PAGE_SIZE;
use crate::sys::machine;
use crate::tracer::error::FreezeError;
use crate::tracer::tree::Tree;

/// How long a job that cannot be frozen right now is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest pause before the next try.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// What becomes of a job after its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It runs on.
    Continue,
    /// It is ended, in one step with the checkpoint.
    Kill,
    /// It is left stopped.
    Stop,
}

/// What to save, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The root process.
    pub root: Pid,
    /// Whoever adopts the job's orphans, when that is known: its children belong to the job.
    pub adopter: Option<Pid>,
    /// What becomes of the job.
    pub after: After,
    /// How it is written.
    pub write: WriteOptions,
    /// Named outputs, absolute.
    pub outputs: Vec<PathBuf>,
    /// Whether TCP connections to outside the job are given up.
    pub tcp_close: bool,
    /// Whether connections of unix sockets to outside the job are given up.
    pub ext_unix: bool,
    /// Files to be saved whole.
    pub save: Wanted,
    /// Whether all contents of files are stored while the job stands still: it would not leave them alone.
    pub files_at_once: bool,
    /// The process whose descriptors 0, 1 and 2 are the job's standard streams.
    pub supervisor: Option<Pid>,
    /// The job's identity.
    pub job_id: Bytes,
    /// The parent process, when the checkpoint is for it and given up at its end.
    pub caller: Option<Pid>,
    /// Set from another thread when the checkpoint is to be given up.
    pub given_up: Arc<AtomicBool>,
    /// Directories of the job's with checkpoints, beside the one that this goes to: never its outputs.
    pub job_directories: Vec<PathBuf>,
    /// When the oldest checkpoint was complete that the job could be brought back from.
    pub oldest: Option<SystemTime>,
    /// Who is told of the bytes that are looked at. As long as a job stands still that is to run on, nobody
    /// is: whoever is told may take their time.
    pub watch: Option<Watch>,
}

impl Request {
    /// Whether there is nobody any more who wants the checkpoint.
    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
            || self.caller.is_some_and(|caller| getppid() != caller)
    }

    /// From now on whoever wants to know is told what `writer` looks at, which will be about so many bytes.
    fn have_watched(&self, writer: &mut Writer, expected: u64) {
        if let Some(watch) = &self.watch {
            watch.expect(expected);
            writer.watch(watch.clone());
        }
    }

    /// The error with which writing ends when nobody wants the checkpoint any more.
    fn check_wanted(&self) -> io::Result<()> {
        if self.is_given_up() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

/// What a checkpoint came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// From the first stop of a thread to the last thaw.
    pub pause: Duration,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes of memory before compression.
    pub raw_bytes: u64,
    /// Bytes of memory that were the same in the checkpoint before.
    pub kept_bytes: u64,
    /// Whether it builds on the checkpoint before.
    pub has_parent: bool,
    /// Processes saved.
    pub processes: usize,
    /// Threads saved.
    pub threads: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What the user may want to do another time.
    pub hint: Option<String>,
}

/// Saves a job into `directory`, which must exist and be empty. What has not changed since `parent`, an
/// earlier generation of the same job, is taken over from there. `tracking` is what is kept from one
/// checkpoint of a job to the next, so that most of that need not be read. `commit` publishes what has been
/// written; it is called only when the job is not to run on, after the writing and before that, so
/// that a job is never ended for a checkpoint that is not there.
///
/// While this runs no other thread of this process may wait for stops (WSTOPPED) of the job's
/// processes. Should the calling thread end without returning, the kernel lets the job go.
///
/// # Errors
/// When anything cannot be saved faithfully. The job runs on then.
pub fn dump(
    request: &Request,
    directory: &Path,
    parent: Option<Reader>,
    tracking: Use<'_>,
    commit: &mut dyn FnMut() -> Result<(), NotCommitted>,
) -> Result<Report, DumpError> {
    let mut writer = Writer::create_on(directory, request.write, parent)?;
    let mut session = Session::begin(tracking, writer.parent().map(Reader::id));
    let has_parent = writer.parent().is_some();
    // Before the job is stopped: where there are many processors it takes its time.
    let machine = machine::describe()
        .map_err(|source| CollectError::Machine { what: "the description", source })?;
    let (begun, mut tree, mut collected) = collect_frozen(request, directory, &session)?;
    let temporary = take(&mut collected.job.machine.temporary);
    collected.job.machine = Machine { temporary, ..machine };
    look_for_writes(&mut collected, &tree, &mut session);
    inherit::compare_all(&collected.job, &mut writer);
    let copies = match request.after {
        After::Continue => snapshot::take(&mut collected, &mut tree, &mut session)?,
        // It stands still to its end: nothing is gained by copies.
        After::Kill | After::Stop => snapshot::none(&collected),
    };
    if request.after != After::Continue {
        let files: u64 = collected.contents.iter().map(|content| content.allocated()).sum();
        let memory: u64 = collected.sizes.iter().sum();
        request.have_watched(&mut writer, memory.saturating_add(files));
    }
    let is_own = |pid, range| session.is_own(pid, range);
    collect::add_details(&mut collected, &mut tree, &copies, &is_own)?;
    let stored =
        collect::store(request, &mut collected, &mut tree, &copies, directory, &mut writer);
    wanted(request, stored)?;
    collected.let_go_of_files();
    let generation = writer.id();
    let (summary, pause) = match request.after {
        After::Continue => {
            release(tree.thaw(), "let go")?;
            let pause = begun.elapsed();
            let copied = copies.iter().zip(&collected.sizes).filter(|(copy, _)| copy.is_some());
            request.have_watched(&mut writer, copied.map(|(_, size)| size).sum());
            let stored = collect::store_copies(request, &mut collected, copies, &mut writer);
            wanted(request, stored)?;
            add_digests(&mut collected.job)?;
            (writer.finish(&collected.job)?, pause)
        }
        After::Kill | After::Stop => {
            add_digests(&mut collected.job)?;
            let summary = writer.finish(&collected.job)?;
            if request.is_given_up() {
                return Err(DumpError::GivenUp);
            }
            commit()?;
            if request.after == After::Kill {
                release(tree.kill_all(), "killed")?;
            } else {
                release(tree.stop_all(), "stopped")?;
            }
            (summary, begun.elapsed())
        }
    };
    session.complete(generation);
    // A job that does not run on writes nothing twice.
    let runs_on = request.after != After::Kill;
    let hint = runs_on.then(|| collected.hint(directory, request.oldest)).flatten();
    let processes = &collected.job.processes;
    Ok(Report {
        pause,
        bytes: summary.stored_bytes,
        raw_bytes: summary.raw_bytes,
        kept_bytes: summary.kept_pages.saturating_mul(PAGE_SIZE),
        has_parent,
        processes: processes.len(),
        threads: processes.iter().map(|process| process.threads.len()).sum(),
        warnings: collected.warnings,
        hint,
    })
}

/// Freezes the job and collects everything about it. What stands in the way, but will be gone in a moment
/// if the job runs on, is waited for: it is let go and tried again. Tells when the last stop began.
fn collect_frozen(
    request: &Request,
    directory: &Path,
    session: &Session<'_>,
) -> Result<(Instant, Tree, Collected), DumpError> {
    let purpose = match request.after {
        After::Continue => Purpose::SaveRunning,
        After::Kill | After::Stop => Purpose::SaveStopped,
    };
    let first = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let begun = Instant::now();
        let mut tree = freeze(request)?;
        let is_own = |pid, range| session.is_own(pid, range);
        match collect::collect(request, directory, &mut tree, purpose, &is_own) {
            Err(error)
                if error.is_passing() && first.elapsed() < PATIENCE && !request.is_given_up() =>
            {
                let stood = begun.elapsed();
                release(tree.thaw(), "let go")?;
                // It gets at least as much time as was taken from it, or it would never get done what is
                // waited for.
                std::thread::sleep(pause.max(stood));
                // Odd spans, so that it does not keep step with what the job does.
                pause = (pause * 17 / 10).min(LONGEST_PAUSE);
            }
            outcome => return outcome.map(|collected| (begun, tree, collected)),
        }
    }
}

/// Freezes the job. Where it may not all be traced, everybody of whom that is so is named.
fn freeze(request: &Request) -> Result<Tree, DumpError> {
    Tree::freeze(request.root, request.adopter, PATIENCE).map_err(|error| {
        if !matches!(error, FreezeError::NotPermitted { .. } | FreezeError::AlreadyTraced { .. }) {
            return error.into();
        }
        let all = Tree::untraceable(request.root, request.adopter);
        let obstacles: Vec<Obstacle> = all.iter().filter_map(untraceable).collect();
        if obstacles.len() > 1 { DumpError::Refused(Obstacles(obstacles)) } else { error.into() }
    })
}

fn untraceable(error: &FreezeError) -> Option<Obstacle> {
    match *error {
        FreezeError::NotPermitted { pid, .. } => {
            Some(Obstacle::State { pid, kind: StateRefusal::NotPermitted })
        }
        FreezeError::AlreadyTraced { pid, tracer, .. } => {
            Some(Obstacle::State { pid, kind: StateRefusal::AlreadyTraced(tracer) })
        }
        _ => None,
    }
}

/// Finds out what has been written, as far as that is known.
fn look_for_writes(collected: &mut Collected, tree: &Tree, session: &mut Session<'_>) {
    let spaces = collected.job.address_spaces.iter().zip(&collected.holders);
    for ((space, holder), known) in spaces.zip(&mut collected.known) {
        let task = tree.processes()[*holder].task();
        *known = session.look(task, space.object).unwrap_or_default();
    }
}

/// Finds what stands in the way of a checkpoint: freezes the job, looks at everything, and lets it go
/// on. Gives what the user should know besides, and what it would come to. `directory` would be the
/// generation's.
///
/// # Errors
/// [`DumpError::Refused`] with all that is in the way, or when looking fails.
pub fn examine(request: &Request, directory: &Path) -> Result<(Vec<String>, Survey), DumpError> {
    let begun = Instant::now();
    let mut tree = freeze(request)?;
    // Whoever watches, it is the job's supervisor: it would be none of the job's own processes.
    let is_own = |_, _| request.supervisor.is_some_and(watches);
    let mut collected = collect::collect(request, directory, &mut tree, Purpose::Look, &is_own);
    let surveyor = collected.as_mut().ok().map(|collected| {
        collected.let_go_of_files();
        Surveyor::begin(collected, &tree, begun)
    });
    release(tree.thaw(), "let go")?;
    let mut collected = collected?;
    let hint = collected.hint(directory, request.oldest);
    collected.warnings.extend(hint);
    let survey = surveyor.map(Surveyor::finish).unwrap_or_default();
    Ok((collected.warnings, survey))
}

/// Adds what tells later whether files were changed in place.
fn add_digests(job: &mut Job) -> Result<(), DumpError> {
    files::ends::add_digests(job)?;
    Ok(files::outputs::add_digests(&mut job.outputs)?)
}

/// The outcome of writing, unless it failed because nobody wants it any more.
fn wanted(request: &Request, outcome: Result<(), DumpError>) -> Result<(), DumpError> {
    if request.is_given_up() { Err(DumpError::GivenUp) } else { outcome }
}

fn release(outcome: Result<(), FreezeError>, action: &'static str) -> Result<(), DumpError> {
    outcome.map_err(|source| DumpError::Release { action, source })
}
