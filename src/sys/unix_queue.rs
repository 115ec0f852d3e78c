//! What waits in unix sockets, and whom their SO_PEERCRED names, as the job itself would see it.
//!
//! Looking takes nothing out. To see past the first message the place to look at has to be set
//! (SO_PEEK_OFF), which the job could notice; so this is done while the job stands still, by a process of
//! its own, the *onlooker*, which puts the place back before it does anything else, whatever becomes of
//! rckpt meanwhile. It lives in the pid namespace of the job, so that all ids are the job's own, and
//! shares rckpt's table of descriptors, so that descriptors found on their way arrive there.
//!
//! The onlooker is forked from a process that may have several threads: it allocates nothing and takes
//! no lock.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use thiserror::Error;

use super::clone::{self, Fork};
use super::socket::{self, Credentials, FILES_LIMIT};
use crate::model::number::{to_u64, to_usize};

/// Bytes for what is found at first, and at most; in between it is made larger as needed.
const ROOM: usize = 1 << 20;
const LARGEST_ROOM: usize = 1 << 33;
/// Bytes of the guard page.
const GUARD: usize = 4096;
/// Bytes of `struct sockaddr_un`.
const ADDRESS: usize = 110;
/// The onlooker's exit status when there is not enough room.
const TOO_SMALL: i32 = 7;

/// A unix socket to look at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// A duplicate of its descriptor.
    pub socket: BorrowedFd<'a>,
    /// SOCK_*.
    pub kind: i32,
    /// Whether to look into its queue, which must not be done while an error is pending on a socket for
    /// packets: that would be taken.
    pub look_inside: bool,
}

/// Something queued.
#[derive(Debug, Default)]
pub struct Message {
    /// The bytes: of a stream as far as one call would receive them.
    pub data: Vec<u8>,
    /// Address of the sender of a datagram.
    pub sender: Vec<u8>,
    /// Duplicates of the descriptors on their way in it.
    pub files: Vec<OwnedFd>,
    /// SCM_CREDENTIALS, if the receiver asks for them and the message has any.
    pub credentials: Option<Credentials>,
}

/// What a socket shows.
#[derive(Debug, Default)]
pub struct Seen {
    /// SO_PEERCRED.
    pub peer: Credentials,
    /// What is queued, oldest first.
    pub queued: Vec<Message>,
}

/// What all of them show.
#[derive(Debug, Default)]
pub struct View {
    /// In the order of the subjects.
    pub sockets: Vec<Seen>,
    /// Whether process ids are those of the job's pid namespace; else they are the caller's.
    pub own_ids: bool,
}

/// Why queues could not be looked into.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum LookError {
    #[error("make room for what is queued in sockets: {0}")]
    MakeRoom(Errno),
    #[error("start a process to look into sockets: {0}")]
    Fork(Errno),
    #[error("wait for the process that looks into sockets: {0}")]
    Wait(Errno),
    #[error("the process that looks into sockets was ended before it was done")]
    Lost,
    #[error("look into socket {place} of those looked at: {source}")]
    Look { place: usize, source: Errno },
}

/// Looks at sockets whose job stands still; `member` is a task of it that lives.
///
/// # Errors
/// When no onlooker can be made or it is killed; EBADMSG for a queue that cannot be seen whole.
pub fn look(subjects: &[Subject<'_>], member: Pid) -> Result<View, LookError> {
    let mut room = ROOM;
    loop {
        let mut region = Region::new(room).map_err(LookError::MakeRoom)?;
        match look_once(subjects, member, region.get())? {
            Some(view) => return Ok(view),
            None if room >= LARGEST_ROOM => return Err(LookError::MakeRoom(Errno::ENOMEM)),
            None => room *= 8,
        }
    }
}

/// The same with limited room; `None` when that is not enough.
fn look_once(
    subjects: &[Subject<'_>],
    member: Pid,
    room: &mut [u8],
) -> Result<Option<View>, LookError> {
    let places: Vec<Option<i32>> =
        subjects.iter().map(|subject| peek_offset(subject.socket).ok()).collect();
    let onlooker = Onlooker { subjects, places: &places, namespaces: namespaces_of(member) };
    let before = block_signals().map_err(LookError::Fork)?;
    let files = u64::from(libc::CLONE_FILES.unsigned_abs());
    let forked = clone::fork(files, 0, None);
    if matches!(forked, Ok(Fork::Child)) {
        onlooker.live(room);
    }
    let restored = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    let ended = match forked {
        Ok(Fork::Parent(child)) => await_end(child),
        Ok(Fork::Child) => clone::exit_now(1),
        Err(error) => {
            return Err(LookError::Fork(Errno::from_raw(
                error.raw_os_error().unwrap_or(libc::EAGAIN),
            )));
        }
    };
    restored.map_err(LookError::Wait)?;
    match ended.map_err(LookError::Wait)? {
        Some(0) => Parser { room, used: 0 }.view(subjects.len()).map(Some),
        Some(TOO_SMALL) => Ok(None),
        _ => {
            // It may have been killed between setting a place and putting it back.
            for (subject, place) in subjects.iter().zip(&places) {
                if let Some(place) = place {
                    set_peek_offset(subject.socket, *place).map_err(LookError::Wait)?;
                }
            }
            Err(LookError::Lost)
        }
    }
}

/// The exit status of a child; `None` when it was killed.
fn await_end(child: Pid) -> Result<Option<i32>, Errno> {
    loop {
        match waitpid(child, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(code)),
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn block_signals() -> Result<SigSet, Errno> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    Ok(before)
}

/// The namespaces to enter for process ids to be those of the job.
struct Namespaces {
    /// The user namespace, if it is another one than ours.
    user: Option<OwnedFd>,
    /// The pid namespace, if it is another one than ours.
    pid: Option<OwnedFd>,
    /// Whether they could be told.
    known: bool,
}

/// Those of a task.
fn namespaces_of(member: Pid) -> Namespaces {
    let other = |kind: &str| -> std::io::Result<Option<OwnedFd>> {
        let link = format!("/proc/{member}/ns/{kind}");
        let same = fs::read_link(&link)? == fs::read_link(format!("/proc/self/ns/{kind}"))?;
        if same { Ok(None) } else { Ok(Some(File::open(link)?.into())) }
    };
    match (other("user"), other("pid")) {
        (Ok(user), Ok(pid)) => Namespaces { user, pid, known: true },
        _ => Namespaces { user: None, pid: None, known: false },
    }
}

/// What the onlooker works from.
struct Onlooker<'a> {
    subjects: &'a [Subject<'a>],
    /// Where each is looked at by itself (SO_PEEK_OFF).
    places: &'a [Option<i32>],
    namespaces: Namespaces,
}

impl Onlooker<'_> {
    /// Its life. A pid namespace is entered by a child only.
    fn live(&self, room: &mut [u8]) -> ! {
        // What ends the group or session of rckpt must not reach it; a process that was just forked
        // leads no group, so this cannot fail.
        nix::unistd::setsid().map(drop).unwrap_or_default();
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap_or_default();
        }
        let own_ids = self.enter();
        let mut writer = Writer { room, used: 0 };
        let outcome = writer.word(u32::from(own_ids)).and_then(|()| self.look_at_all(&mut writer));
        clone::exit_now(if outcome.is_some() { 0 } else { TOO_SMALL })
    }

    /// Enters the job's namespaces; tells whether process ids are the job's then.
    fn enter(&self) -> bool {
        let Namespaces { user, pid, known } = &self.namespaces;
        let Some(pid) = pid else { return *known };
        // There the capability to enter the other one comes from having made it.
        let entered = match user {
            Some(user) => setns(user, CloneFlags::CLONE_NEWUSER),
            None => Ok(()),
        };
        if entered.and_then(|()| setns(pid, CloneFlags::CLONE_NEWPID)).is_err() {
            return false;
        }
        let files = u64::from(libc::CLONE_FILES.unsigned_abs());
        match clone::fork(files, 0, None) {
            Ok(Fork::Child) => true,
            Ok(Fork::Parent(child)) => {
                let code = await_end(child).ok().flatten();
                clone::exit_now(code.unwrap_or(1));
            }
            Err(_) => false,
        }
    }

    /// Writes down what is seen; `None` when there is no room.
    fn look_at_all(&self, writer: &mut Writer<'_>) -> Option<()> {
        for (subject, place) in self.subjects.iter().zip(self.places) {
            let peer = credentials_of_peer(subject.socket);
            writer.word(peer.pid.cast_unsigned())?;
            writer.word(peer.uid)?;
            writer.word(peer.gid)?;
            if subject.look_inside {
                let place = place.unwrap_or(-1);
                let mut queue = Queue { subject, place, moved: false, looked: false, writer };
                let outcome = queue.look();
                if queue.moved {
                    set_peek_offset(subject.socket, place).unwrap_or_default();
                }
                match outcome {
                    Ok(()) => {}
                    Err(Obstacle::NoRoom) => return None,
                    Err(Obstacle::Failed(errno)) => {
                        writer.word(FAILED)?;
                        writer.word((errno as i32).cast_unsigned())?;
                        continue;
                    }
                }
            }
            writer.word(END)?;
        }
        Some(())
    }
}

/// What stands before a message, at the end of a queue, and before an error.
const MESSAGE: u32 = 1;
const END: u32 = 2;
const FAILED: u32 = 3;

/// Why looking into a queue ended early.
enum Obstacle {
    NoRoom,
    Failed(Errno),
}

impl From<Errno> for Obstacle {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// A queue that is looked into.
struct Queue<'a, 'b, 'c> {
    subject: &'a Subject<'b>,
    /// Where it is looked at by itself; negative: at the beginning.
    place: i32,
    /// Whether that has been changed.
    moved: bool,
    /// Whether it has been looked at.
    looked: bool,
    writer: &'a mut Writer<'c>,
}

impl Queue<'_, '_, '_> {
    fn look(&mut self) -> Result<(), Obstacle> {
        if self.subject.kind == libc::SOCK_STREAM { self.stream() } else { self.packets() }
    }

    /// A stream shows all that is in it at once, but ends where descriptors are on their way, and between
    /// senders.
    fn stream(&mut self) -> Result<(), Obstacle> {
        let total = socket::input_queued(self.subject.socket)?;
        let mut seen = 0;
        while seen < total {
            // More than is there must not be asked for: at the end a pending error would be taken.
            let limit = to_usize(total - seen);
            let found = self.peek(seen, limit)?;
            if found.length == 0 {
                return Err(Errno::EBADMSG.into());
            }
            // What came before the message with descriptors could be received without them.
            let alone = if found.file_count == 0 { 0 } else { self.without_files(seen, &found)? };
            self.writer.message(&found, alone)?;
            seen += to_u64(found.length);
        }
        Ok(())
    }

    /// How many bytes of what was found can be received without its descriptors. They come with the last
    /// of the buffers that it lies in. The kernel copies buffer by buffer, and stops where one cannot be
    /// copied as a whole (`unix_stream_read_generic`): the last cannot, if its last byte has no room.
    fn without_files(&mut self, seen: u64, found: &Found) -> Result<usize, Obstacle> {
        if found.length < 2 {
            return Ok(0);
        }
        let place = self.writer.place_but_one(found.length).ok_or(Obstacle::NoRoom)?;
        match self.peek_into(seen, place, found.length) {
            Ok(part) => {
                part.close_files();
                if part.length < found.length {
                    Ok(part.length)
                } else {
                    Err(Errno::EBADMSG.into())
                }
            }
            Err(Obstacle::Failed(Errno::EFAULT)) => Ok(0),
            Err(obstacle) => Err(obstacle),
        }
    }

    /// Packets are seen one after the other from the place where the one before ends.
    fn packets(&mut self) -> Result<(), Obstacle> {
        let mut seen = 0;
        loop {
            let found = match self.peek(seen, self.writer.available()) {
                // One for sequenced packets that is not connected has nothing queued either.
                Err(Obstacle::Failed(Errno::EAGAIN | Errno::ENOTCONN)) => return Ok(()),
                outcome => outcome?,
            };
            if found.flags & libc::MSG_TRUNC != 0 {
                found.close_files();
                return Err(Obstacle::NoRoom);
            }
            // Where the other end is closed, the end looks like an empty packet.
            let is_end = self.subject.kind == libc::SOCK_SEQPACKET
                && found.length == 0
                && seen >= socket::input_queued(self.subject.socket)?;
            if is_end {
                return Ok(());
            }
            self.writer.message(&found, 0)?;
            seen += to_u64(found.length);
        }
    }

    /// Looks at what is there behind the first `seen` bytes, at most `limit` bytes. Packets that are
    /// empty count as seen once they have been looked at.
    fn peek(&mut self, seen: u64, limit: usize) -> Result<Found, Obstacle> {
        let place = self.writer.place(limit).ok_or(Obstacle::NoRoom)?;
        self.peek_into(seen, place, limit)
    }

    /// The same into memory of which the kernel finds out how much is there.
    fn peek_into(&mut self, seen: u64, data: *mut u8, limit: usize) -> Result<Found, Obstacle> {
        let again = self.looked && self.subject.kind != libc::SOCK_STREAM;
        if seen != 0 || again || self.moved || self.place >= 0 {
            let place = i32::try_from(seen).map_err(|_| Errno::EOVERFLOW)?;
            self.moved = true;
            set_peek_offset(self.subject.socket, place)?;
        }
        self.looked = true;
        let found = Found::peek(self.subject.socket, data, limit)?;
        if found.flags & libc::MSG_CTRUNC != 0 {
            found.close_files();
            return Err(Errno::EBADMSG.into());
        }
        Ok(found)
    }
}

/// What one look has found; the bytes are in the region.
struct Found {
    length: usize,
    flags: i32,
    sender: [u8; ADDRESS],
    sender_length: usize,
    files: [RawFd; FILES_LIMIT],
    file_count: usize,
    credentials: Option<Credentials>,
}

/// Room for control messages, aligned as they have to be.
type ControlBuffer = [u64; 512];

impl Found {
    /// Looks into memory of the region. EFAULT when not even the first part of what is there fits.
    fn peek(socket: BorrowedFd<'_>, data: *mut u8, limit: usize) -> Result<Self, Errno> {
        let mut found = Self {
            length: 0,
            flags: 0,
            sender: [0; ADDRESS],
            sender_length: 0,
            files: [-1; FILES_LIMIT],
            file_count: 0,
            credentials: None,
        };
        let mut control: ControlBuffer = [0; 512];
        let mut place = libc::iovec { iov_base: data.cast(), iov_len: limit };
        // SAFETY: `msghdr` is plain integers and pointers, for which zero is valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_name = found.sender.as_mut_ptr().cast();
        header.msg_namelen = libc::socklen_t::try_from(ADDRESS).map_err(|_| Errno::EINVAL)?;
        header.msg_iov = &raw mut place;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: every pointer in the header leads to a buffer of the length beside it; what goes beyond
        // the region is in its guard page, which the kernel does not write to.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        found.length = Errno::result(result)?.cast_unsigned();
        found.flags = header.msg_flags;
        found.sender_length = to_usize(u64::from(header.msg_namelen)).min(ADDRESS);
        // SAFETY: recvmsg has filled the header in.
        unsafe { found.take_control(&header) };
        Ok(found)
    }

    /// Takes descriptors and credentials out of the control messages.
    ///
    /// # Safety
    /// `header` must be as `recvmsg` has left it.
    unsafe fn take_control(&mut self, header: &libc::msghdr) {
        // SAFETY: the kernel has written whole control messages, `msg_controllen` bytes in all; the
        // macros stay within them.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !next.is_null() {
            // SAFETY: as above.
            let (message, payload) = unsafe { (*next, libc::CMSG_DATA(next)) };
            let length = message.cmsg_len.saturating_sub(size_of::<libc::cmsghdr>());
            // SAFETY: the payload of a message has that many bytes.
            let payload = unsafe { std::slice::from_raw_parts(payload, length) };
            let words = payload.as_chunks::<4>().0;
            match (message.cmsg_level, message.cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for word in words.iter().take(FILES_LIMIT - self.file_count) {
                        self.files[self.file_count] = RawFd::from_ne_bytes(*word);
                        self.file_count += 1;
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                    self.credentials = credentials_of(words);
                }
                (libc::SOL_SOCKET, SCM_PIDFD) => {
                    words.iter().for_each(|word| close(RawFd::from_ne_bytes(*word)));
                }
                _ => {}
            }
            // SAFETY: as above.
            next = unsafe { libc::CMSG_NXTHDR(header, next) };
        }
    }

    /// Closes the descriptors, when nobody is to have them.
    fn close_files(&self) {
        self.files[..self.file_count].iter().for_each(|file| close(*file));
    }
}

/// SCM_PIDFD, include/linux/socket.h.
const SCM_PIDFD: i32 = 4;

/// Closes what recvmsg has just opened; in its place an error can stand.
fn close(file: RawFd) {
    if file >= 0 {
        // SAFETY: nobody else knows of the descriptor.
        unsafe { libc::close(file) };
    }
}

fn credentials_of(words: &[[u8; 4]]) -> Option<Credentials> {
    let [pid, uid, gid] = words else { return None };
    Some(Credentials {
        pid: i32::from_ne_bytes(*pid),
        uid: u32::from_ne_bytes(*uid),
        gid: u32::from_ne_bytes(*gid),
    })
}

/// SO_PEERCRED; without any, the kernel says 0, -1, -1.
fn credentials_of_peer(socket: BorrowedFd<'_>) -> Credentials {
    let mut value = [0_u8; 12];
    let mut length: libc::socklen_t = 12;
    // SAFETY: the kernel writes at most `length` bytes, which is what `value` has, and the length.
    unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            value.as_mut_ptr().cast(),
            &raw mut length,
        );
    }
    credentials_of(value.as_chunks::<4>().0).unwrap_or_default()
}

/// SO_PEEK_OFF, without allocating.
fn peek_offset(socket: BorrowedFd<'_>) -> Result<i32, Errno> {
    let mut value: i32 = -1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: the kernel writes one int, which `value` is, and the length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| value)
}

fn set_peek_offset(socket: BorrowedFd<'_>, place: i32) -> Result<(), Errno> {
    socket::set_int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, place)
}

/// Bytes in front of the data of a message: how much of it there is and how much of that comes before the
/// descriptors, lengths, credentials, the sender and the descriptors.
const WORDS: usize = 9;
const PREFIX: usize = 4 * WORDS + ADDRESS.next_multiple_of(4) + 4 * FILES_LIMIT;

/// What the onlooker writes down.
struct Writer<'a> {
    room: &'a mut [u8],
    used: usize,
}

impl Writer<'_> {
    fn word(&mut self, word: u32) -> Option<()> {
        let place = self.room.get_mut(self.used..self.used + 4)?;
        place.copy_from_slice(&word.to_ne_bytes());
        self.used += 4;
        Some(())
    }

    /// How many bytes the next message can have.
    fn available(&self) -> usize {
        self.room.len().saturating_sub(self.used + PREFIX + 8)
    }

    /// Where the bytes of the next message go.
    fn place(&mut self, limit: usize) -> Option<*mut u8> {
        if limit > self.available() {
            return None;
        }
        let start = self.used + PREFIX;
        self.room.get_mut(start..start + limit).map(<[u8]>::as_mut_ptr)
    }

    /// A place behind that of a message of `length` bytes, where all but the last of them have room.
    fn place_but_one(&mut self, length: usize) -> Option<*mut u8> {
        if 2 * length > self.available() {
            return None;
        }
        let start = self.room.len() - (length - 1);
        self.room.get_mut(start..).map(<[u8]>::as_mut_ptr)
    }

    /// Keeps a message whose bytes are in their place.
    fn message(&mut self, found: &Found, alone: usize) -> Result<(), Obstacle> {
        self.try_message(found, alone).ok_or(Obstacle::NoRoom)
    }

    fn try_message(&mut self, found: &Found, alone: usize) -> Option<()> {
        let start = self.used;
        let credentials = found.credentials.unwrap_or_default();
        self.word(MESSAGE)?;
        self.word(u32::try_from(found.length).ok()?)?;
        self.word(u32::try_from(alone).ok()?)?;
        self.word(u32::try_from(found.sender_length).ok()?)?;
        self.word(u32::try_from(found.file_count).ok()?)?;
        self.word(u32::from(found.credentials.is_some()))?;
        self.word(credentials.pid.cast_unsigned())?;
        self.word(credentials.uid)?;
        self.word(credentials.gid)?;
        self.room.get_mut(self.used..self.used + ADDRESS)?.copy_from_slice(&found.sender);
        self.used += ADDRESS.next_multiple_of(4);
        for file in &found.files[..found.file_count] {
            self.word(file.cast_unsigned())?;
        }
        self.used = start + PREFIX + found.length.next_multiple_of(4);
        Some(())
    }
}

/// Reads what the onlooker has written down, which is our own word.
struct Parser<'a> {
    room: &'a [u8],
    used: usize,
}

impl Parser<'_> {
    fn view(mut self, count: usize) -> Result<View, LookError> {
        let mut view = View { own_ids: self.word() != 0, ..View::default() };
        let mut failure = None;
        for place in 0..count {
            let peer = self.credentials();
            let mut seen = Seen { peer, queued: Vec::new() };
            loop {
                match self.word() {
                    MESSAGE => self.message(&mut seen.queued),
                    FAILED => {
                        let source = Errno::from_raw(self.word().cast_signed());
                        failure.get_or_insert(LookError::Look { place, source });
                        break;
                    }
                    _ => break,
                }
            }
            view.sockets.push(seen);
        }
        // Even then every descriptor had to be taken over.
        failure.map_or(Ok(view), Err)
    }

    fn message(&mut self, queued: &mut Vec<Message>) {
        let start = self.used - 4;
        let [length, alone, sender_length, file_count, has_credentials] =
            [(); 5].map(|()| self.length());
        let credentials = self.credentials();
        let credentials = (has_credentials != 0).then_some(credentials);
        let sender = self.room[self.used..self.used + sender_length].to_vec();
        self.used += ADDRESS.next_multiple_of(4);
        let mut files = Vec::with_capacity(file_count);
        for _ in 0..file_count {
            // SAFETY: recvmsg has made these descriptors in the table that we share, for us.
            files.push(unsafe { OwnedFd::from_raw_fd(self.word().cast_signed()) });
        }
        let data = start + PREFIX;
        self.used = data + length.next_multiple_of(4);
        let (before, data) = self.room[data..data + length].split_at(alone);
        if !before.is_empty() {
            let sender = sender.clone();
            queued.push(Message { data: before.to_vec(), sender, files: Vec::new(), credentials });
        }
        queued.push(Message { data: data.to_vec(), sender, files, credentials });
    }

    fn credentials(&mut self) -> Credentials {
        let [pid, uid, gid] = [(); 3].map(|()| self.word());
        Credentials { pid: pid.cast_signed(), uid, gid }
    }

    fn length(&mut self) -> usize {
        to_usize(u64::from(self.word()))
    }

    fn word(&mut self) -> u32 {
        let word = self.room.get(self.used..).and_then(<[u8]>::first_chunk);
        self.used += 4;
        u32::from_ne_bytes(word.copied().unwrap_or_default())
    }
}

/// Memory that the onlooker shares with who made it, with a page behind it that nobody can use.
struct Region {
    start: *mut u8,
    length: usize,
}

impl Region {
    fn new(length: usize) -> Result<Self, Errno> {
        // SAFETY: the kernel chooses where a new mapping goes, so it replaces nothing.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length + GUARD,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let region = Self { start: start.cast(), length };
        // SAFETY: the mapping is our own, and nothing refers to its last page.
        let result = unsafe { libc::mprotect(start.byte_add(length), GUARD, libc::PROT_NONE) };
        Errno::result(result).map(|_| region)
    }

    fn get(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has that many bytes. The other process that has it mapped writes only
        // before it is waited for.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.start.cast(), self.length + GUARD) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn look_at(socket: &OwnedFd, kind: i32) -> Seen {
        let subject = Subject { socket: socket.as_fd(), kind, look_inside: true };
        let mut view = look(&[subject], nix::unistd::getpid()).unwrap();
        assert!(view.own_ids);
        view.sockets.pop().unwrap()
    }

    fn pair(kind: i32) -> (OwnedFd, OwnedFd) {
        socket::pair(libc::AF_UNIX, kind, 0).unwrap()
    }

    /// The data of what is queued, and how many descriptors come with it.
    fn shown(seen: &Seen) -> Vec<(&[u8], usize)> {
        seen.queued.iter().map(|message| (&message.data[..], message.files.len())).collect()
    }

    #[test]
    fn packets_are_all_seen_and_stay() {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (left, right) = pair(kind);
            let mine = [left.as_raw_fd(), right.as_raw_fd()];
            for (data, files) in [(&b"one"[..], &[][..]), (b"two!", &mine), (b"", &[]), (b"4", &[])]
            {
                socket::send(&left, data, &[], files, None).unwrap();
            }
            let expected = [(&b"one"[..], 0), (b"two!", 2), (b"", 0), (b"4", 0)];
            assert_eq!(shown(&look_at(&right, kind)), expected);
            assert_eq!(peek_offset(right.as_fd()), Ok(-1));
            let first = socket::peek(&right, 100).unwrap();
            assert_eq!(first.data, b"one");
        }
    }

    #[test]
    fn a_stream_is_divided_where_descriptors_come() {
        let (left, right) = pair(libc::SOCK_STREAM);
        let send = |data: &[u8], files: &[RawFd]| {
            socket::send(&left, data, &[], files, None).unwrap();
        };
        send(b"before;", &[]);
        send(b"with;", &[left.as_raw_fd()]);
        send(b"between;", &[]);
        send(b"again", &[right.as_raw_fd(), left.as_raw_fd()]);
        send(b"after", &[]);
        let kind = libc::SOCK_STREAM;
        let expected =
            [(&b"before;"[..], 0), (b"with;", 1), (b"between;", 0), (b"again", 2), (b"after", 0)];
        for _ in 0..2 {
            let seen = look_at(&right, kind);
            assert_eq!(shown(&seen), expected);
            assert_eq!(seen.peer.pid, nix::unistd::getpid().as_raw());
        }
        // A job that looks from somewhere itself finds that place as it was.
        set_peek_offset(right.as_fd(), 3).unwrap();
        assert_eq!(shown(&look_at(&right, kind)), expected);
        assert_eq!(peek_offset(right.as_fd()), Ok(3));
    }

    #[test]
    fn what_does_not_fit_at_first_does_later() {
        let (left, right) = pair(libc::SOCK_DGRAM);
        let size = 3 << 20;
        socket::set_int_option(&left, libc::SOL_SOCKET, libc::SO_SNDBUF, size).unwrap();
        let data = vec![7; 700_000];
        for _ in 0..3 {
            socket::send(&left, &data, &[], &[], None).unwrap();
        }
        let seen = look_at(&right, libc::SOCK_DGRAM);
        assert_eq!(seen.queued.len(), 3);
        assert!(seen.queued.iter().all(|message| message.data == data));
    }

    #[test]
    fn senders_are_told_apart() {
        let (left, right) = pair(libc::SOCK_STREAM);
        socket::send(&left, b"unsigned", &[], &[], None).unwrap();
        socket::set_int_option(&right, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        socket::send(&left, b"signed", &[], &[], None).unwrap();
        let seen = look_at(&right, libc::SOCK_STREAM);
        assert_eq!(shown(&seen), [(&b"unsigned"[..], 0), (b"signed", 0)]);
        let pids = seen.queued.iter().map(|message| message.credentials.map(|sender| sender.pid));
        assert_eq!(pids.collect::<Vec<_>>(), [Some(0), Some(nix::unistd::getpid().as_raw())]);
    }
}
