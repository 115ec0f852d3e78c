//! Gives epoll instances back what they watched, each thing under the number by which it was added.
//!
//! The kernel takes the number from the caller's table of descriptors, and remembers it with the
//! description. A process of its own, forked for this and gone afterwards, gives its descriptors one
//! number after the other. By then everything that can be watched must be as it was, except for timers:
//! one that runs out meanwhile must still be told of.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitPidFlag, waitpid};

use super::open::reopen_number;
use super::{OpenedJob, SettleError};
use crate::model::event::{BusyPoll, EPOLL_MODES, EpollItem};
use crate::model::file::{OpenFile, OpenFileKind, PipeEnd};
use crate::model::id::OpenFileId;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::sys::clone::{self, Fork};
use crate::sys::{descriptor, epoll};

/// Everything that `epoll_wait` can tell of and every file can show: EPOLLIN, EPOLLPRI, EPOLLOUT,
/// EPOLLRDNORM, EPOLLRDBAND, EPOLLWRNORM, EPOLLWRBAND, EPOLLMSG and EPOLLRDHUP.
const EVERY_EVENT: u32 = 0x27c7;

/// Adds what the job's epoll instances watched. What tells of signals is left to the processes whose
/// signals they are.
pub(super) fn watch_all(job: &Job, opened: &OpenedJob) -> Result<(), SettleError> {
    let instances = inner_first(job);
    if instances.is_empty() {
        return Ok(());
    }
    let first = opened.opened.private.start;
    let prepare = |source: Errno| SettleError::Watch { number: None, source };
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(prepare)?;
    // The numbers below `first` are about to be given to other files.
    let writer = descriptor::move_above(writer, first).map_err(prepare)?;
    match clone::fork(0, libc::SIGCHLD, None) {
        Ok(Fork::Child) => {
            let outcome = Watcher { job, opened }.watch(&instances);
            tell(writer, outcome);
            clone::exit_now(0)
        }
        Ok(Fork::Parent(child)) => {
            drop(writer);
            let told = listen(reader);
            loop {
                match waitpid(child, Some(WaitPidFlag::__WALL)) {
                    Err(Errno::EINTR) => {}
                    Err(source) => return Err(prepare(source)),
                    Ok(_) => break,
                }
            }
            told.map_err(|(number, source)| SettleError::Watch { number, source })
        }
        Err(source) => Err(prepare(errno_of(&source))),
    }
}

/// The number that was to be watched, when there is one, and why it is not.
type Failed = (Option<i32>, Errno);

/// What the child says when it has done its work; anything else, or nothing, means that it died.
const DONE: [u8; 8] = *b"watching";

fn tell(writer: OwnedFd, outcome: Result<(), (i32, Errno)>) {
    let words = match outcome {
        Ok(()) => DONE,
        Err((number, errno)) => {
            let mut words = [0; 8];
            words[..4].copy_from_slice(&number.to_le_bytes());
            words[4..].copy_from_slice(&errno_number(errno).to_le_bytes());
            words
        }
    };
    // A parent that is gone needs no answer, and one that gets none knows that something went wrong.
    File::from(writer).write_all(&words).unwrap_or_default();
}

const fn errno_number(errno: Errno) -> i32 {
    errno as i32
}

fn listen(reader: OwnedFd) -> Result<(), Failed> {
    let mut words = [0; 8];
    match File::from(reader).read_exact(&mut words) {
        Ok(()) if words == DONE => Ok(()),
        Ok(()) => {
            let [n0, n1, n2, n3, e0, e1, e2, e3] = words;
            let number = i32::from_le_bytes([n0, n1, n2, n3]);
            Err((Some(number), Errno::from_raw(i32::from_le_bytes([e0, e1, e2, e3]))))
        }
        Err(_) => Err((None, Errno::ESRCH)),
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The epoll instances of a job, each after those that it watches, so that it sees whether they are
/// ready.
fn inner_first(job: &Job) -> Vec<OpenFileId> {
    fn visit(job: &Job, id: OpenFileId, seen: &mut [bool], order: &mut Vec<OpenFileId>) {
        let index = to_usize(u64::from(id.0));
        let Some(OpenFileKind::Epoll { items, .. }) =
            job.open_files.get(index).map(|file| &file.kind)
        else {
            return;
        };
        if std::mem::replace(&mut seen[index], true) {
            return;
        }
        for item in items {
            visit(job, item.file, seen, order);
        }
        order.push(id);
    }
    let mut order = Vec::new();
    let mut seen = vec![false; job.open_files.len()];
    for (_, number) in job.open_files.iter().zip(0..) {
        visit(job, OpenFileId(number), &mut seen, &mut order);
    }
    order
}

/// The process that adds.
struct Watcher<'a> {
    job: &'a Job,
    opened: &'a OpenedJob,
}

impl Watcher<'_> {
    fn watch(&self, instances: &[OpenFileId]) -> Result<(), (i32, Errno)> {
        for id in instances {
            let OpenFileKind::Epoll { items, .. } = &self.record(*id).kind else { continue };
            let instance = self.number(*id);
            let watched = items.iter().filter(|item| !self.tells_of_signals(item));
            // What is not to be told of again is added first, one after the other, and taken from the
            // list of what has happened while there is nothing else on it.
            let (settled, others): (Vec<_>, Vec<_>) =
                watched.partition(|item| item.told != 0 || item.is_disarmed());
            for item in settled {
                self.add_settled(instance, item).map_err(|errno| (item.number, errno))?;
            }
            for item in others {
                self.add(instance, item, item.events).map_err(|errno| (item.number, errno))?;
            }
        }
        Ok(())
    }

    fn add_settled(&self, instance: RawFd, item: &EpollItem) -> Result<(), Errno> {
        if item.is_disarmed() {
            return self.add_disarmed(instance, item);
        }
        self.add(instance, item, item.events)?;
        let shown = epoll::take_event(instance)?.unwrap_or(0);
        if shown & !item.told != 0 {
            // There is more than the program knows of.
            epoll::remove(instance, item.number)?;
            epoll::add(instance, item.number, item.events, item.data)?;
        }
        Ok(())
    }

    /// Adds what has fired already: the only way to that state is to let it fire. Almost every file is
    /// ready for something; a pipe that nothing waits in can be given something for a moment. What is
    /// ready for nothing at all remains armed for errors, which the kernel always tells of.
    fn add_disarmed(&self, instance: RawFd, item: &EpollItem) -> Result<(), Errno> {
        self.add(instance, item, item.events | EVERY_EVENT)?;
        if epoll::take_event(instance)?.is_some() {
            return Ok(());
        }
        let reads_pipe = matches!(
            self.record(item.file).kind,
            OpenFileKind::Pipe { end: PipeEnd::Read, .. }
                | OpenFileKind::Fifo { end: PipeEnd::Read, .. }
        );
        if reads_pipe {
            let pipe = self.number(item.file);
            let end = reopen_number(pipe, libc::O_RDWR | libc::O_NONBLOCK)
                .map_err(|error| errno_of(&error))?;
            nix::unistd::write(&end, &[0])?;
            let fired = epoll::take_event(instance)?.is_some();
            nix::unistd::read(&end, &mut [0])?;
            if fired {
                return Ok(());
            }
        }
        epoll::remove(instance, item.number)?;
        epoll::add(instance, item.number, item.events & EPOLL_MODES, item.data)
    }

    fn add(&self, instance: RawFd, item: &EpollItem, events: u32) -> Result<(), Errno> {
        clone::duplicate_to(self.number(item.file), item.number, true)
            .map_err(|error| errno_of(&error))?;
        epoll::add(instance, item.number, events, item.data)
    }

    fn tells_of_signals(&self, item: &EpollItem) -> bool {
        matches!(self.record(item.file).kind, OpenFileKind::SignalFd { .. })
    }

    /// References of an image have been checked when it was read.
    fn record(&self, id: OpenFileId) -> &OpenFile {
        &self.job.open_files[to_usize(u64::from(id.0))]
    }

    fn number(&self, id: OpenFileId) -> RawFd {
        self.opened.opened.files[to_usize(u64::from(id.0))]
    }
}

/// A new instance, which watches nothing yet.
pub(super) fn make(busy_poll: BusyPoll) -> Result<OwnedFd, Errno> {
    let instance = epoll::create()?;
    if busy_poll != BusyPoll::default() {
        epoll::set_busy_poll(&instance, busy_poll)?;
    }
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(watched: &[u32]) -> OpenFile {
        let item = |file: &u32| EpollItem {
            file: OpenFileId(*file),
            number: 3,
            events: 1,
            data: 0,
            told: 0,
        };
        let items = watched.iter().map(item).collect();
        let kind = OpenFileKind::Epoll { items, busy_poll: BusyPoll::default() };
        OpenFile { flags: 2, kind, owner: None, locks: Vec::new() }
    }

    #[test]
    fn instances_come_after_those_that_they_watch() {
        let check = |watched: &[&[u32]], expected: &[u32]| {
            let open_files = watched.iter().map(|watched| instance(watched)).collect();
            let job = Job { open_files, ..Job::default() };
            let found: Vec<u32> = inner_first(&job).iter().map(|id| id.0).collect();
            assert_eq!(found, expected);
        };
        check(&[], &[]);
        check(&[&[2], &[], &[1]], &[1, 2, 0]);
        // The kernel refuses such circles, and will say so.
        check(&[&[1], &[0]], &[1, 0]);
    }
}
