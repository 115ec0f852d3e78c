//! Pipes and FIFOs: their size, and a look at what is queued without taking anything out.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use thiserror::Error;

use super::descriptor;
use crate::model::number::{to_u64, to_usize};

/// Why the queue of a pipe could not be looked at.
#[derive(Debug, Error)]
pub enum PeekPipeError {
    /// A call failed.
    #[error("{operation}")]
    Call {
        /// Which.
        operation: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// The scratch pipe may not be made as large as this one, for lack of a privilege or because
    /// the user's pipes together have reached /proc/sys/fs/pipe-user-pages-soft.
    #[error("it holds {queued} bytes, and a scratch pipe of ours takes only {copied} of them")]
    TooLarge {
        /// Bytes queued.
        queued: u64,
        /// Bytes that could be looked at.
        copied: u64,
    },
}

/// Bytes that a pipe can hold (F_GETPIPE_SZ).
pub fn capacity(pipe: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: the command takes no argument.
    let result = unsafe { libc::fcntl(pipe.as_fd().as_raw_fd(), libc::F_GETPIPE_SZ) };
    Ok(Errno::result(result)?.cast_unsigned())
}

/// Sets how many bytes a pipe can hold (F_SETPIPE_SZ).
pub fn set_capacity(pipe: impl AsFd, capacity: u32) -> Result<(), Errno> {
    // SAFETY: the command takes an integer.
    let result = unsafe { libc::fcntl(pipe.as_fd().as_raw_fd(), libc::F_SETPIPE_SZ, capacity) };
    Errno::result(result).map(drop)
}

/// Bytes queued in a pipe (FIONREAD).
pub fn queued_bytes(pipe: impl AsFd) -> Result<u64, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which `bytes` is.
    let result = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    Errno::result(result)?;
    Ok(u64::from(bytes.cast_unsigned()))
}

/// What is queued in a pipe, oldest first, seen through its reading end `reader`: one entry for
/// each packet that was written in packet mode, and one for each stretch of plain bytes.
///
/// The queue is duplicated into a pipe of ours with tee(2), which shares the pages and takes
/// nothing out; the duplicate is then read. Packet boundaries survive both steps.
pub fn peek(reader: impl AsFd) -> Result<Vec<Vec<u8>>, PeekPipeError> {
    let call = |operation| move |source| PeekPipeError::Call { operation, source };
    let queued = queued_bytes(&reader).map_err(call("FIONREAD"))?;
    if queued == 0 {
        return Ok(Vec::new());
    }
    let (scratch_reader, scratch_writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)
            .map_err(call("pipe2"))?;
    let size = capacity(&reader).map_err(call("F_GETPIPE_SZ"))?;
    match set_capacity(&scratch_writer, size) {
        // The default size may well do; whether it did shows below.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(source) => return Err(PeekPipeError::Call { operation: "F_SETPIPE_SZ", source }),
    }
    // SAFETY: the call takes integers only. Both ends are pipes and SPLICE_F_NONBLOCK keeps it from
    // waiting.
    let copied = unsafe {
        libc::tee(
            reader.as_fd().as_raw_fd(),
            scratch_writer.as_raw_fd(),
            to_usize(queued),
            libc::SPLICE_F_NONBLOCK,
        )
    };
    let copied = Errno::result(copied).map_err(call("tee"))?;
    let copied = to_u64(copied.cast_unsigned());
    if copied < queued {
        return Err(PeekPipeError::TooLarge { queued, copied });
    }
    drop(scratch_writer);
    let mut entries = Vec::new();
    loop {
        let entry = descriptor::read_once(&scratch_reader, queued).map_err(call("read"))?;
        if entry.is_empty() {
            return Ok(entries);
        }
        entries.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::fcntl::OFlag;

    use super::*;

    #[test]
    fn an_empty_pipe_shows_nothing() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(peek(&reader).unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn queued_bytes_are_seen_and_stay() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"one").unwrap();
        writer.write_all(b"two").unwrap();
        assert_eq!(peek(&reader).unwrap(), vec![b"onetwo".to_vec()]);
        assert_eq!(peek(&reader).unwrap(), vec![b"onetwo".to_vec()]);
        drop(writer);
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, "onetwo");
    }

    #[test]
    fn packets_keep_their_boundaries() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_DIRECT | OFlag::O_CLOEXEC).unwrap();
        nix::unistd::write(&writer, b"one").unwrap();
        nix::unistd::write(&writer, b"three").unwrap();
        assert_eq!(peek(&reader).unwrap(), vec![b"one".to_vec(), b"three".to_vec()]);
    }

    #[test]
    fn a_full_pipe_of_another_size_is_seen_whole() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        set_capacity(&writer, 1 << 18).unwrap();
        let data: Vec<u8> = (0..=255).cycle().take(1 << 18).collect();
        writer.write_all(&data).unwrap();
        assert_eq!(queued_bytes(&reader).unwrap(), 1 << 18);
        assert_eq!(peek(&reader).unwrap().concat(), data);
    }
}
