//! A process of rckpt's own that makes system calls for it in other namespaces.
//!
//! What System V IPC shows, and which process ids, depends on who asks. The emissary enters the
//! namespaces of a process and makes there the calls that it is sent, with arguments in memory that it
//! shares with us. It ends when we do, or when it is dropped.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::ptr;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::clone::{self, Fork};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::number::{as_signed, to_u64, to_usize};

/// Bytes that calls may use for what they read and write.
pub const ROOM: usize = 1 << 20;

/// A call as it is sent: its number and its arguments.
type Request = [u64; 7];

const REQUEST_SIZE: usize = size_of::<Request>();

/// The emissary, seen from home.
#[derive(Debug)]
pub struct Emissary {
    /// The child that waits for it, or that it is.
    child: Pid,
    /// The process that makes the calls.
    agent: Pid,
    line: File,
    room: Room,
}

/// Memory shared with the emissary, at the same address on both sides.
#[derive(Debug)]
struct Room(*mut u8);

impl Room {
    fn map() -> io::Result<Self> {
        // SAFETY: a fresh mapping, wherever the kernel likes; nothing else knows of it.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                ROOM,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(address.cast()))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference into it is left.
        let unmapped = unsafe { libc::munmap(self.0.cast(), ROOM) };
        debug_assert_eq!(unmapped, 0, "a mapping of our own can be unmapped");
    }
}

/// The namespaces to enter, in the order in which that is possible.
const NAMESPACES: [(&str, i32); 4] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("ipc", libc::CLONE_NEWIPC),
    ("pid", libc::CLONE_NEWPID),
];

impl Emissary {
    /// Sends an emissary into the user, mount, ipc and pid namespaces of `host`.
    ///
    /// # Errors
    /// When the namespaces cannot be opened or entered, or no process be made.
    pub fn send(host: Pid) -> io::Result<Self> {
        let mut doors = Vec::new();
        for (name, kind) in NAMESPACES {
            let theirs = File::open(format!("/proc/{host}/ns/{name}"))?;
            let ours = std::fs::metadata(format!("/proc/self/ns/{name}"))?;
            let found = theirs.metadata()?;
            // A process cannot enter the user namespace that it is in.
            if (found.dev(), found.ino()) != (ours.dev(), ours.ino()) {
                doors.push((OwnedFd::from(theirs), kind));
            }
        }
        let room = Room::map()?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        // The child runs nothing but system calls: other threads of ours may hold any lock.
        match clone::fork(0, 0, None)? {
            Fork::Child => set_out(&doors, theirs.as_raw_fd()),
            Fork::Parent(child) => {
                drop(theirs);
                let line = File::from(ours);
                let mut emissary = Self { child, agent: child, line, room };
                emissary.agent = emissary.await_arrival()?;
                Ok(emissary)
            }
        }
    }

    /// Reads how the way into the namespaces ended: the agent's id, as we see it.
    fn await_arrival(&mut self) -> io::Result<Pid> {
        let mut word = [0; 8];
        self.line.read_exact(&mut word)?;
        match i32::try_from(i64::from_le_bytes(word)).unwrap_or(-libc::EPROTO) {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            0 => Ok(self.child),
            agent => Ok(Pid::from_raw(agent)),
        }
    }

    /// The process that makes the calls, whose memory may be read.
    #[must_use]
    pub const fn agent(&self) -> Pid {
        self.agent
    }

    /// Address of the memory that calls may use for what they read and write: [`ROOM`] bytes.
    #[must_use]
    pub fn room(&self) -> u64 {
        to_u64(self.room.0.addr())
    }

    /// Puts bytes at the start of that memory.
    ///
    /// # Panics
    /// When they are more than [`ROOM`].
    pub fn put(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= ROOM, "there is room for {ROOM} bytes");
        // SAFETY: the mapping has ROOM bytes; the agent touches them only while a call is under way,
        // which this exclusive reference rules out.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.room.0, bytes.len()) }
    }

    /// The first `length` bytes of that memory.
    ///
    /// # Panics
    /// When these are more than [`ROOM`].
    #[must_use]
    pub fn take(&self, length: usize) -> Vec<u8> {
        assert!(length <= ROOM, "there is room for {ROOM} bytes");
        let mut bytes = vec![0; length];
        // SAFETY: as in `put`; no call is under way, for those take an exclusive reference.
        unsafe { ptr::copy_nonoverlapping(self.room.0.cast_const(), bytes.as_mut_ptr(), length) }
        bytes
    }

    /// Has a call made.
    ///
    /// # Errors
    /// What the call gives; ESRCH when the emissary is lost.
    pub fn call(&mut self, number: i64, arguments: &[u64]) -> Result<i64, Errno> {
        let mut request: Request = [0; 7];
        request[0] = number.cast_unsigned();
        request[1..=arguments.len()].copy_from_slice(arguments);
        let bytes: Vec<u8> = request.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut answer = [0; 8];
        self.line
            .write_all(&bytes)
            .and_then(|()| self.line.read_exact(&mut answer))
            .map_err(|_| Errno::ESRCH)?;
        match i64::from_le_bytes(answer) {
            error @ -4095..=-1 => {
                Err(Errno::from_raw(i32::try_from(-error).unwrap_or(libc::EPROTO)))
            }
            result => Ok(result),
        }
    }

    /// Which pages of `range` of the agent's memory are in memory (mincore(2)): a byte for each.
    ///
    /// # Errors
    /// As mincore(2).
    pub fn residency(&mut self, range: AddrRange) -> Result<Vec<u8>, Errno> {
        let mut resident = Vec::with_capacity(to_usize(range.pages()));
        let mut start = range.start;
        while start < range.end {
            let pages = ((range.end.0 - start.0) / 4096).min(to_u64(ROOM));
            self.call(libc::SYS_mincore, &[start.0, pages * 4096, self.room()])?;
            resident.extend(self.take(to_usize(pages)));
            start = RemoteAddr(start.0 + pages * 4096);
        }
        Ok(resident)
    }
}

impl Drop for Emissary {
    fn drop(&mut self) {
        // The agent reads the end of its line, and ends; whoever waits for it then ends, too.
        if nix::sys::socket::shutdown(self.line.as_raw_fd(), nix::sys::socket::Shutdown::Both)
            .is_err()
        {
            return;
        }
        while waitpid(self.child, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
    }
}

/// The emissary's way: enters the namespaces, and makes calls until its line ends. Nothing here may
/// allocate or take a lock.
fn set_out(doors: &[(OwnedFd, i32)], line: RawFd) -> ! {
    for (door, kind) in doors {
        // SAFETY: setns takes integers only.
        if unsafe { libc::setns(door.as_raw_fd(), *kind) } != 0 {
            answer(line, -i64::from(Errno::last_raw()));
            clone::exit_now(1);
        }
    }
    // Having gained capabilities made its memory nobody's to read.
    // SAFETY: this prctl takes integers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    // A pid namespace is entered by one's children.
    if doors.iter().any(|(_, kind)| *kind == libc::CLONE_NEWPID) {
        match clone::fork(0, 0, None) {
            Ok(Fork::Child) => {}
            Ok(Fork::Parent(agent)) => {
                if !answer(line, i64::from(agent.as_raw())) {
                    // SAFETY: kill takes integers only.
                    unsafe { libc::kill(agent.as_raw(), libc::SIGKILL) };
                }
                close_all_but(None);
                while waitpid(agent, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
                clone::exit_now(0);
            }
            Err(error) => {
                answer(line, -i64::from(error.raw_os_error().unwrap_or(libc::EAGAIN)));
                clone::exit_now(1);
            }
        }
    } else if !answer(line, 0) {
        clone::exit_now(1);
    }
    // Not least the other end of the line: else it would never end.
    close_all_but(Some(line));
    loop {
        let mut request: Request = [0; 7];
        // SAFETY: the kernel writes at most the size of the array to it.
        let read = unsafe {
            libc::recv(line, request.as_mut_ptr().cast(), REQUEST_SIZE, libc::MSG_WAITALL)
        };
        if read == -1 && Errno::last() == Errno::EINTR {
            continue;
        }
        if usize::try_from(read) != Ok(REQUEST_SIZE) {
            clone::exit_now(0);
        }
        let [number, a, b, c, d, e, f] = request;
        // SAFETY: rckpt sends only calls whose memory is in the shared room or of the kernel's choice.
        let result = unsafe { libc::syscall(as_signed(number), a, b, c, d, e, f) };
        // Whoever waits for an answer that cannot be given is to see the end of the line.
        if !answer(line, if result == -1 { -i64::from(Errno::last_raw()) } else { result }) {
            clone::exit_now(1);
        }
    }
}

/// Whether it could be given.
fn answer(line: RawFd, result: i64) -> bool {
    let bytes = result.to_le_bytes();
    loop {
        // SAFETY: the kernel reads eight bytes from the array.
        let sent =
            unsafe { libc::send(line, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        if sent != -1 || Errno::last() != Errno::EINTR {
            return usize::try_from(sent) == Ok(bytes.len());
        }
    }
}

fn close_all_but(line: Option<RawFd>) {
    // Where ranges cannot be closed (before Linux 5.9), the emissary ends with the dump: by the end of
    // its line that `shutdown` makes.
    match line.map(RawFd::unsigned_abs) {
        Some(line) => {
            if line > 0 {
                close_range(0, line - 1);
            }
            close_range(line + 1, u32::MAX);
        }
        None => close_range(0, u32::MAX),
    }
}

fn close_range(first: u32, last: u32) {
    // SAFETY: the call takes integers only; the process runs nothing that has descriptors but this.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_made_elsewhere_with_memory_from_here() {
        let mut emissary = Emissary::send(Pid::this()).unwrap();
        let pid = emissary.call(libc::SYS_getpid, &[]).unwrap();
        assert_eq!(pid, i64::from(emissary.agent().as_raw()));
        emissary.put(b"/proc/self/comm\0");
        let at = libc::AT_FDCWD;
        let room = emissary.room();
        let file = emissary.call(libc::SYS_openat, &[i64::from(at).cast_unsigned(), room, 0]);
        let file = file.unwrap().cast_unsigned();
        let read = emissary.call(libc::SYS_read, &[file, room, 64]).unwrap();
        assert!(emissary.take(usize::try_from(read).unwrap()).ends_with(b"\n"));
        assert_eq!(emissary.call(libc::SYS_close, &[999]), Err(Errno::EBADF));
    }
}
