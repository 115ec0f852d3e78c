//! Makes pipes and FIFOs again, with what was queued in them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;

use super::open::{open_path, reopen};
use crate::model::file::{Pipe, PipeEnd};
use crate::model::id::PipeId;
use crate::sys::{descriptor, pipe};

/// The pipes made so far. Both ends of each stay open until all descriptions of the job have been
/// made, so that opening one never waits for another.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    made: BTreeMap<PipeId, Ends>,
}

/// Both ends of a pipe.
#[derive(Debug)]
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipes {
    /// A description of an end of pipe `id`, with the status flags `flags`.
    pub fn open(
        &mut self,
        id: PipeId,
        record: &Pipe,
        end: PipeEnd,
        flags: i32,
    ) -> io::Result<OwnedFd> {
        let make = || {
            let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
            Ok(Ends { reader, writer })
        };
        self.open_end(id, record, end, flags, make)
    }

    /// A description of a FIFO, the one under `path` or, when it has no name, the one behind `hidden`.
    pub fn open_fifo(
        &mut self,
        id: PipeId,
        record: &Pipe,
        (path, hidden): (&Path, Option<BorrowedFd<'_>>),
        end: PipeEnd,
        flags: i32,
    ) -> io::Result<OwnedFd> {
        let make = || {
            // For a FIFO, opening both ways never waits (fifo(7)).
            let writer = match hidden {
                Some(hidden) => reopen(hidden, libc::O_RDWR | libc::O_NONBLOCK)?,
                None => open_path(path, libc::O_RDWR | libc::O_NONBLOCK)?,
            };
            if pipe::queued_bytes(&writer)? != 0 {
                // Somebody else is using it at this moment.
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            Ok(Ends { reader: writer.try_clone()?, writer })
        };
        self.open_end(id, record, end, flags, make)
    }

    fn open_end(
        &mut self,
        id: PipeId,
        record: &Pipe,
        end: PipeEnd,
        flags: i32,
        make: impl FnOnce() -> io::Result<Ends>,
    ) -> io::Result<OwnedFd> {
        let ends = match self.made.entry(id) {
            std::collections::btree_map::Entry::Occupied(made) => made.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let ends = make()?;
                fill(&ends, record)?;
                place.insert(ends)
            }
        };
        // Each end is opened anew through its link in /proc, which makes a description of its own.
        let access = match end {
            PipeEnd::Read => libc::O_RDONLY,
            PipeEnd::Write => libc::O_WRONLY,
            PipeEnd::Both => libc::O_RDWR,
        };
        let file = reopen(ends.reader.as_fd(), access | libc::O_NONBLOCK)?;
        descriptor::set_status_flags(&file, flags & !libc::O_ASYNC)?;
        Ok(file)
    }
}

/// Sets the size of a new pipe and writes what was queued. More than one entry means packets, which
/// the kernel keeps apart when the writing end is in packet mode.
fn fill(ends: &Ends, record: &Pipe) -> io::Result<()> {
    if pipe::capacity(&ends.writer)? != record.capacity {
        pipe::set_capacity(&ends.writer, record.capacity)?;
    }
    let packets = record.queued.len() > 1;
    let mode = libc::O_NONBLOCK | if packets { libc::O_DIRECT } else { 0 };
    descriptor::set_status_flags(&ends.writer, mode)?;
    for entry in &record.queued {
        let mut rest = entry.0.as_slice();
        while !rest.is_empty() {
            let written = nix::unistd::write(&ends.writer, rest)?;
            rest = &rest[written..];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;
    use crate::model::id::Bytes;

    fn record(queued: &[&[u8]], capacity: u32) -> Pipe {
        Pipe { capacity, queued: queued.iter().map(|entry| Bytes::from(*entry)).collect() }
    }

    #[test]
    fn a_pipe_comes_back_with_its_queue_and_size() {
        let record = record(&[b"queued"], 1 << 17);
        let mut pipes = Pipes::default();
        let open =
            |pipes: &mut Pipes, end, flags| pipes.open(PipeId(0), &record, end, flags).unwrap();
        let reader = open(&mut pipes, PipeEnd::Read, libc::O_NONBLOCK);
        let writer = open(&mut pipes, PipeEnd::Write, 0);
        drop(pipes);
        assert_eq!(pipe::capacity(&reader).unwrap(), 1 << 17);
        let flags = descriptor::status_flags(&reader).unwrap();
        assert_eq!(flags & (libc::O_ACCMODE | libc::O_NONBLOCK), libc::O_NONBLOCK);
        let flags = descriptor::status_flags(&writer).unwrap();
        assert_eq!(flags & (libc::O_ACCMODE | libc::O_NONBLOCK), libc::O_WRONLY);
        drop(writer);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "queued");
    }

    #[test]
    fn packets_come_back_apart() {
        let record = record(&[b"one", b"three"], 65536);
        let mut pipes = Pipes::default();
        let reader = pipes.open(PipeId(0), &record, PipeEnd::Read, 0).unwrap();
        let entries: Vec<Vec<u8>> = record.queued.iter().map(|entry| entry.0.clone()).collect();
        assert_eq!(pipe::peek(&reader).unwrap(), entries);
    }

    #[test]
    fn a_fifo_comes_back_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let record = record(&[b"x"], 65536);
        let mut pipes = Pipes::default();
        let reader = pipes
            .open_fifo(PipeId(0), &record, (&path, None), PipeEnd::Read, libc::O_NONBLOCK)
            .unwrap();
        drop(pipes);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }
}
