//! Pipes and FIFOs: which of them live inside the job, and what is queued in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::RawFd;

use nix::unistd::Pid;

use super::classify::Class;
use super::refusal::RefusalKind;
use super::scan::{Description, FileStat};
use super::{CollectFilesError, Collector, Failure, Scope, Warning, call_failed, duplicate, index};
use crate::model::file::{OpenFileKind, Pipe, PipeEnd};
use crate::model::id::{Bytes, InodeId, PipeId};
use crate::sys::{descriptor, pipe, procfs};

/// Device and inode number.
pub(super) type Identity = (u64, u64);

/// What is known of a pipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ends {
    /// A description of the job that can read, by index.
    reader: Option<usize>,
    /// One that can write.
    writer: Option<usize>,
    /// Whether the end that the job does not have is open outside.
    leads_outside: bool,
    /// A process outside that has it open although the job has both ends.
    shared_with: Option<Pid>,
}

/// The pipes and FIFOs of the job.
#[derive(Debug)]
pub(super) struct PipeTable<'a> {
    descriptions: &'a [Description],
    ends: HashMap<Identity, Ends>,
    /// Those recorded so far.
    recorded: BTreeMap<Identity, PipeId>,
}

impl<'a> PipeTable<'a> {
    /// Finds the pipes among the descriptions, and where their other ends are. `ours` are descriptors
    /// that rckpt has taken from messages.
    pub fn survey(
        scope: &Scope<'_>,
        descriptions: &'a [Description],
        classes: &[Class],
        ours: &BTreeSet<RawFd>,
    ) -> Result<Self, CollectFilesError> {
        let mut ends: HashMap<Identity, Ends> = HashMap::new();
        let mut anonymous = BTreeSet::new();
        for (position, (found, class)) in descriptions.iter().zip(classes).enumerate() {
            if !matches!(class, Class::Pipe | Class::Fifo) {
                continue;
            }
            let pipe = ends.entry(found.stat.identity()).or_default();
            if found.access() != libc::O_WRONLY {
                pipe.reader.get_or_insert(position);
            }
            if found.access() != libc::O_RDONLY {
                pipe.writer.get_or_insert(position);
            }
            if *class == Class::Pipe {
                anonymous.insert(found.stat.identity());
            }
        }
        // A FIFO can be opened again by its name whoever else had it; a pipe cannot.
        for identity in &anonymous {
            let Some(pipe) = ends.get_mut(identity) else { continue };
            pipe.leads_outside = match (pipe.reader, pipe.writer) {
                (Some(reader), None) => !is_hung_up(&descriptions[reader], libc::POLLHUP)?,
                (None, Some(writer)) => !is_hung_up(&descriptions[writer], libc::POLLERR)?,
                _ => false,
            };
        }
        let inside: BTreeSet<Identity> = anonymous
            .into_iter()
            .filter(|identity| {
                ends.get(identity)
                    .is_some_and(|pipe| pipe.reader.is_some() && pipe.writer.is_some())
            })
            .collect();
        if !inside.is_empty() {
            for (identity, holder) in outside_holders(scope, &inside, ours) {
                if let Some(pipe) = ends.get_mut(&identity) {
                    pipe.shared_with = Some(holder);
                }
            }
        }
        Ok(Self { descriptions, ends, recorded: BTreeMap::new() })
    }

    /// Whether the other end of a pipe is open outside the job.
    pub fn leads_outside(&self, found: &Description) -> bool {
        self.ends.get(&found.stat.identity()).is_some_and(|pipe| pipe.leads_outside)
    }

    /// Records an end of a pipe.
    pub fn collect(
        &mut self,
        collector: &mut Collector,
        found: &Description,
    ) -> Result<OpenFileKind, Failure> {
        Ok(OpenFileKind::Pipe { pipe: self.record(collector, found)?, end: end(found) })
    }

    /// Records an end of a FIFO.
    pub fn collect_fifo(
        &mut self,
        collector: &mut Collector,
        found: &Description,
        inode: InodeId,
    ) -> Result<OpenFileKind, Failure> {
        Ok(OpenFileKind::Fifo { inode, pipe: self.record(collector, found)?, end: end(found) })
    }

    /// Records the pipe behind an end.
    ///
    /// What a job reads from outside would be missing after a restore, and nobody would notice; that
    /// is refused. A writing end is no such danger: after a restore it has no reader, and a job that
    /// uses it is told so (SIGPIPE). Many shells, batch systems and tools leave such ends open in
    /// whatever they start, so they are saved, with a warning.
    fn record(
        &mut self,
        collector: &mut Collector,
        found: &Description,
    ) -> Result<PipeId, Failure> {
        let identity = found.stat.identity();
        if let Some(id) = self.recorded.get(&identity) {
            return Ok(*id);
        }
        let ends = self.ends.get(&identity).copied().unwrap_or_default();
        if ends.leads_outside {
            if ends.reader.is_some() {
                return Err(RefusalKind::PipeLeadsOutside.into());
            }
            let (pid, number) = found.holder;
            collector.warnings.push(Warning::PipeWillBreak { pid, number });
        }
        if let Some(holder) = ends.shared_with {
            return Err(RefusalKind::PipeSharedWithOutside { holder }.into());
        }
        let file = duplicate(found)?;
        let capacity = pipe::capacity(&file).map_err(call_failed(found, "F_GETPIPE_SZ"))?;
        // Without a reader nobody will ever see what is queued.
        let queued = match ends.reader {
            None => Vec::new(),
            Some(reader) => {
                let reader = duplicate(&self.descriptions[reader])?;
                pipe::peek(reader).map_err(|error| {
                    let reason = full_message(&error);
                    Failure::Refused(RefusalKind::PipeUnreadable { reason })
                })?
            }
        };
        let id = PipeId(index(collector.pipes.len())?);
        collector.pipes.push(Pipe { capacity, queued: queued.into_iter().map(Bytes).collect() });
        self.recorded.insert(identity, id);
        Ok(id)
    }
}

fn end(found: &Description) -> PipeEnd {
    match found.access() {
        libc::O_RDONLY => PipeEnd::Read,
        libc::O_WRONLY => PipeEnd::Write,
        _ => PipeEnd::Both,
    }
}

/// Whether `poll` shows that the other end is closed everywhere: POLLHUP to a reader, POLLERR to a
/// writer. The duplicate through which we ask is no other end.
fn is_hung_up(found: &Description, sign: i16) -> Result<bool, CollectFilesError> {
    let events = descriptor::poll_now(duplicate(found)?, libc::POLLIN | libc::POLLOUT)
        .map_err(call_failed(found, "poll"))?;
    Ok(events & sign != 0)
}

/// Pipes and sockets of the job that the ancestors of its root have open, too. Only they and what else
/// they started can have one: it comes to a process by birth, or as a message on a socket. Processes
/// of other users cannot be asked, and do not count; nor do the descriptors `ours`, which rckpt has
/// taken from messages.
pub(super) fn outside_holders(
    scope: &Scope<'_>,
    pipes: &BTreeSet<Identity>,
    ours: &BTreeSet<RawFd>,
) -> Vec<(Identity, Pid)> {
    let mut holders = Vec::new();
    let mut process = scope.root;
    while let Ok(status) = procfs::status(process) {
        if status.ppid == 0 {
            break;
        }
        process = Pid::from_raw(status.ppid);
        let Ok(entries) = std::fs::read_dir(format!("/proc/{process}/fd")) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let is_ours = process == Pid::this() && number.is_some_and(|fd| ours.contains(&fd));
            let identity = FileStat::from(&metadata).identity();
            if pipes.contains(&identity) && !is_ours {
                holders.push((identity, process));
            }
        }
    }
    holders
}

/// An error and its causes on one line.
fn full_message(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}
