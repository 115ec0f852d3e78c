//! The memory that a keeper shares with its employer: what was taken out of the queue, and how far that has come,
//! so that either can go on where the other was killed.
#![allow(unsafe_code)]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::{KeepError, Message, bytes_in, call, ending};
use crate::model::number::{to_u64, to_usize};
use crate::sys::clone::{self, Fork};
use crate::sys::message_queue::{self, Attributes};

/// How far the work has come.
#[repr(C)]
struct Notes {
    /// Messages that were taken.
    taken: AtomicU64,
    /// Those of them that were put back.
    returned: AtomicU64,
    /// What failed.
    errno: AtomicI32,
    /// Who has what could not be put back.
    late: AtomicI32,
}

/// A message that was taken.
#[repr(C)]
struct Entry {
    length: AtomicU64,
    /// Written by the kernel.
    priority: AtomicU32,
}

/// Memory that the caller and the keeper have in common: notes, one entry for each message, and texts.
pub(super) struct Room {
    start: *mut u8,
    size: usize,
    /// What the queue was like.
    attributes: Attributes,
    /// Bytes that were in it.
    bytes: u64,
}

impl Room {
    /// Room for all messages of such a queue, with nothing left to be allocated later.
    pub(super) fn map(attributes: Attributes, bytes: u64) -> io::Result<Self> {
        let overflow = || io::Error::from_raw_os_error(libc::EOVERFLOW);
        let entries = attributes.messages.checked_mul(to_u64(size_of::<Entry>()));
        // Whoever receives must have room for the longest message.
        let size = entries
            .and_then(|entries| entries.checked_add(to_u64(size_of::<Notes>())))
            .and_then(|size| size.checked_add(bytes)?.checked_add(attributes.message_size))
            .ok_or_else(overflow)?;
        let size = usize::try_from(size).map_err(|_| overflow())?;
        // SAFETY: a fresh mapping, wherever the kernel likes; nothing else knows of it.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), size, attributes, bytes })
    }

    fn notes(&self) -> &Notes {
        // SAFETY: the mapping is aligned to pages, begins with room for the notes, and is zero at first, which
        // is a value of each of them; all are atomic, so that the other process may write to them.
        unsafe { &*self.start.cast::<Notes>() }
    }

    /// The entry of a message, which is one of those that there is room for.
    fn entry(&self, number: u64) -> &Entry {
        assert!(number < self.attributes.messages, "there is room for so many messages only");
        let offset = size_of::<Notes>() + to_usize(number) * size_of::<Entry>();
        // SAFETY: the offset is within the mapping by the assertion and by how `map` has reckoned, and aligned as
        // both sizes are multiples of eight. As for the notes.
        unsafe { &*self.start.add(offset).cast::<Entry>() }
    }

    /// Where texts lie, and how many bytes there are.
    fn texts(&self) -> (*mut u8, usize) {
        let offset = size_of::<Notes>() + to_usize(self.attributes.messages) * size_of::<Entry>();
        // SAFETY: `map` has reckoned with more than that.
        (unsafe { self.start.add(offset) }, self.size - offset)
    }

    /// Bytes of the first `count` messages.
    fn bytes_of(&self, count: u64) -> u64 {
        (0..count).map(|number| self.entry(number).length.load(Ordering::Acquire)).sum()
    }

    pub(super) fn note(&self, errno: Errno) {
        self.notes().errno.store(errno as i32, Ordering::Release);
    }

    /// Takes all messages that were there at first. It takes up where another has stopped.
    pub(super) fn take_all(&self, queue: BorrowedFd<'_>) -> Result<(), Errno> {
        self.take(queue, self.attributes.messages)
    }

    /// Takes so many messages, at most those that were there at first. It takes up where another has stopped.
    fn take(&self, queue: BorrowedFd<'_>, most: u64) -> Result<(), Errno> {
        let notes = self.notes();
        let (texts, size) = self.texts();
        let first = notes.taken.load(Ordering::Acquire);
        let mut offset = to_usize(self.bytes_of(first));
        for number in first..most.min(self.attributes.messages) {
            let entry = self.entry(number);
            if size - offset < to_usize(self.attributes.message_size) {
                // Others have sent longer ones.
                return Ok(());
            }
            let taken = loop {
                // SAFETY: the rest of the texts has room for the longest message of this queue; the priority is
                // written to the entry. No reference leads to either but through atomics.
                let taken = unsafe {
                    libc::syscall(
                        libc::SYS_mq_timedreceive,
                        queue.as_raw_fd(),
                        texts.add(offset),
                        self.attributes.message_size,
                        entry.priority.as_ptr(),
                        ptr::null::<libc::timespec>(),
                    )
                };
                match Errno::result(taken) {
                    Err(Errno::EINTR) => {}
                    taken => break taken,
                }
            };
            let length = match taken {
                // Others have taken some.
                Err(Errno::EAGAIN) => return Ok(()),
                taken => taken?.cast_unsigned(),
            };
            entry.length.store(length, Ordering::Release);
            notes.taken.store(number + 1, Ordering::Release);
            offset += to_usize(length);
        }
        Ok(())
    }

    /// Puts back all that was taken and is not back yet. It takes up where another has stopped.
    pub(super) fn give_back(&self, queue: BorrowedFd<'_>) -> Result<(), Errno> {
        self.put_back(queue, self.notes().taken.load(Ordering::Acquire))
    }

    /// Puts back what was taken, up to so many messages.
    fn put_back(&self, queue: BorrowedFd<'_>, most: u64) -> Result<(), Errno> {
        let notes = self.notes();
        let (texts, _) = self.texts();
        let first = notes.returned.load(Ordering::Acquire);
        let mut offset = to_usize(self.bytes_of(first));
        for number in first..most {
            let entry = self.entry(number);
            let length = entry.length.load(Ordering::Acquire);
            loop {
                // SAFETY: so many bytes from there on are of this message, as `take` has noted.
                let sent = unsafe {
                    libc::syscall(
                        libc::SYS_mq_timedsend,
                        queue.as_raw_fd(),
                        texts.add(offset),
                        length,
                        entry.priority.load(Ordering::Acquire),
                        ptr::null::<libc::timespec>(),
                    )
                };
                match Errno::result(sent) {
                    Err(Errno::EINTR) => {}
                    sent => {
                        sent?;
                        break;
                    }
                }
            }
            notes.returned.store(number + 1, Ordering::Release);
            offset += to_usize(length);
        }
        Ok(())
    }

    /// Leaves what could not be put back to a process that does so as soon as that is possible.
    pub(super) fn linger(&self, queue: BorrowedFd<'_>) {
        match clone::fork(0, 0, None) {
            Ok(Fork::Parent(process)) => {
                self.notes().late.store(process.as_raw(), Ordering::Release);
            }
            Ok(Fork::Child) => {
                self.keep_trying(queue);
                clone::exit_now(ending::GOOD);
            }
            // Then whoever wanted that does it.
            Err(_) => self.keep_trying(queue),
        }
    }

    fn keep_trying(&self, queue: BorrowedFd<'_>) {
        let moment = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        while self.give_back(queue).is_err() {
            // SAFETY: the time outlives the call, and nothing is written to a null pointer.
            unsafe { libc::nanosleep(&raw const moment, ptr::null_mut()) };
        }
    }

    /// Whether the queue is as it was.
    pub(super) fn is_undisturbed(&self, queue: BorrowedFd<'_>) -> bool {
        self.notes().taken.load(Ordering::Acquire) == self.attributes.messages
            && message_queue::attributes(queue) == Ok(self.attributes)
    }

    /// What the keeper's end means. If it was killed, its work is done for it.
    pub(super) fn outcome(
        &self,
        queue: &OwnedFd,
        (keeper, status): (Pid, WaitStatus),
    ) -> Result<(), KeepError> {
        let notes = self.notes();
        let source = Errno::from_raw(notes.errno.load(Ordering::Acquire));
        match status {
            WaitStatus::Exited(_, ending::GOOD) => Ok(()),
            WaitStatus::Exited(_, ending::NOT_HELD) => Err(KeepError::Hold { source }),
            WaitStatus::Exited(_, ending::FAILED) => {
                Err(KeepError::Call { operation: "mq_timedreceive or futimens", source })
            }
            WaitStatus::Exited(_, ending::DISTURBED) => Err(KeepError::Disturbed),
            WaitStatus::Exited(_, ending::LATE) => self.late(),
            _ => {
                self.catch_up(queue)?;
                // Once one is back, none is taken any more. Before, the rest must come out, too, or it would be
                // in front of what is put back.
                if notes.returned.load(Ordering::Acquire) == 0 {
                    let rest = self.take_all(queue.as_fd());
                    // What cannot be taken stays; what was taken goes back all the same.
                    rest.unwrap_or_else(|errno| self.note(errno));
                }
                if self.give_back(queue.as_fd()).is_err() {
                    self.linger(queue.as_fd());
                    self.late()?;
                }
                Err(KeepError::Killed { keeper })
            }
        }
    }

    fn late(&self) -> Result<(), KeepError> {
        let notes = self.notes();
        let returned = notes.returned.load(Ordering::Acquire);
        let messages = notes.taken.load(Ordering::Acquire).saturating_sub(returned);
        let keeper = Pid::from_raw(notes.late.load(Ordering::Acquire));
        if messages == 0 {
            Err(KeepError::Disturbed)
        } else {
            Err(KeepError::Late { messages, keeper })
        }
    }

    /// Notes what a keeper had done before it was killed and not noted: at most one message taken, whose text
    /// and priority the kernel has written, or one put back.
    fn catch_up(&self, queue: &OwnedFd) -> Result<(), KeepError> {
        let notes = self.notes();
        let taken = notes.taken.load(Ordering::Acquire);
        let returned = notes.returned.load(Ordering::Acquire);
        let now = message_queue::attributes(queue).map_err(call("mq_getattr"))?.messages;
        let noted = self.attributes.messages + returned - taken;
        if returned == 0 && taken < self.attributes.messages && now + 1 == noted {
            let known = self.bytes_of(taken) + bytes_in(queue)?;
            self.entry(taken).length.store(self.bytes.saturating_sub(known), Ordering::Release);
            notes.taken.store(taken + 1, Ordering::Release);
        } else if returned < taken && now == noted + 1 {
            notes.returned.store(returned + 1, Ordering::Release);
        }
        Ok(())
    }

    /// What was taken.
    pub(super) fn messages(&self) -> Vec<Message> {
        let (texts, _) = self.texts();
        let mut offset = 0;
        let taken = 0..self.notes().taken.load(Ordering::Acquire);
        taken
            .map(|number| {
                let entry = self.entry(number);
                let length = to_usize(entry.length.load(Ordering::Acquire));
                let mut text = vec![0; length];
                // SAFETY: so many bytes from there on are of this message; nobody writes to them any more.
                unsafe { ptr::copy_nonoverlapping(texts.add(offset), text.as_mut_ptr(), length) };
                offset += length;
                Message { priority: entry.priority.load(Ordering::Acquire), text }
            })
            .collect()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference into it is left.
        let unmapped = unsafe { libc::munmap(self.start.cast(), self.size) };
        debug_assert_eq!(unmapped, 0, "a mapping of our own can be unmapped");
    }
}

const _: () = assert!(size_of::<Notes>().is_multiple_of(8) && size_of::<Entry>().is_multiple_of(8));
const _: () = assert!(offset_of!(Entry, priority).is_multiple_of(4));

#[cfg(test)]
mod tests {
    use super::super::copy_messages;
    use super::super::tests::{SENT, expected, queue};
    use super::*;

    fn room(queue: &OwnedFd) -> Room {
        Room::map(message_queue::attributes(queue).unwrap(), bytes_in(queue).unwrap()).unwrap()
    }

    const KILLED: WaitStatus =
        WaitStatus::Signaled(Pid::from_raw(1), nix::sys::signal::Signal::SIGKILL, false);

    /// Every state that a killed keeper may leave, whether it had noted its last step or not.
    #[test]
    fn a_killed_keepers_work_is_done() {
        let states = (0..=4).map(|taken| (taken, 0)).chain((1..=4).map(|returned| (4, returned)));
        for ((taken, returned), noted) in states.flat_map(|state| [(state, true), (state, false)]) {
            let queue = queue("killed", &SENT);
            let room = room(&queue);
            room.take(queue.as_fd(), taken).unwrap();
            room.put_back(queue.as_fd(), returned).unwrap();
            if !noted && returned > 0 {
                room.notes().returned.store(returned - 1, Ordering::Release);
            } else if !noted && taken > 0 {
                room.notes().taken.store(taken - 1, Ordering::Release);
                room.entry(taken - 1).length.store(0, Ordering::Release);
            }
            let outcome = room.outcome(&queue, (Pid::from_raw(1), KILLED));
            assert!(matches!(outcome, Err(KeepError::Killed { .. })), "{outcome:?}");
            assert_eq!(copy_messages(&queue).unwrap(), expected(), "{taken} {returned} {noted}");
        }
    }
}
