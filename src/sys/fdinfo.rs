//! Parser of /proc/PID/fdinfo/N: what the kernel tells about an open file description.
//!
//! It takes bytes, never paths (proc_pid_fdinfo(5)).

use thiserror::Error;

use crate::model::id::Bytes;
use crate::model::time::{TimeSpec, TimerSpec};

/// A line of fdinfo that is not as the kernel writes it.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("cannot read the line \"{}\" of fdinfo", line.escape_ascii())]
pub struct ParseFdInfoError {
    /// The line.
    pub line: Vec<u8>,
}

/// Everything that fdinfo says and a checkpoint needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// `pos`: position.
    pub position: u64,
    /// `flags`: O_* bits of the description, and O_CLOEXEC for the descriptor itself.
    pub flags: u32,
    /// `mnt_id`: mount that the file was opened through.
    pub mount: u64,
    /// Locks held through it by its table of descriptors.
    pub locks: Vec<HeldLock>,
    /// `eventfd-count`.
    pub eventfd_count: Option<u64>,
    /// `eventfd-semaphore` (Linux 6.5).
    pub eventfd_semaphore: Option<bool>,
    /// What a timerfd shows.
    pub timer: Option<TimerInfo>,
    /// `sigmask`: the signals that a signalfd is read for.
    pub signal_mask: Option<u64>,
    /// `tfd` lines: what an epoll instance watches, in its order.
    pub watched: Vec<Watched>,
    /// `inotify` lines: what an inotify instance watches.
    pub inotify: Vec<InotifyWatch>,
    /// `Pid`: the process that a pidfd stands for, as the reader sees it; -1 once it has been waited for,
    /// 0 when the reader cannot see it.
    pub process: Option<i32>,
    /// What a ring of io_uring shows; `None` when it does not tell all of it.
    pub ring: Option<RingInfo>,
}

/// A ring of io_uring (io_uring/fdinfo.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingInfo {
    /// `SqMask`: one less than the entries for requests.
    pub request_mask: u32,
    /// `SqTail`: requests that the program has put into it.
    pub request_tail: u32,
    /// `CachedSqHead`: requests that the kernel has taken out of it.
    pub taken: u32,
    /// `CqMask`: one less than the entries for completions.
    pub completion_mask: u32,
    /// `CqTail`: completions that the program can see.
    pub completion_tail: u32,
    /// `CachedCqTail`: completions that there have been.
    pub completed: u32,
    /// `SqThread`: whether a thread of the kernel takes the requests.
    pub watched: bool,
    /// `UserFiles`, `UserBufs`, `Personalities`: whether any are registered.
    pub registered: bool,
    /// Whether requests are listed that wait for something, or completions that found no room.
    pub pending: bool,
}

/// Something that an inotify instance watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InotifyWatch {
    /// `wd`: the number of the watch.
    pub number: i32,
    /// `mask`: IN_* bits.
    pub mask: u32,
    /// `ino`: inode number of the file.
    pub inode: u64,
    /// `sdev`: device of its file system, composed as in `st_dev`.
    pub device: u64,
    /// `ino`, `sdev` and the file's handle, as they are shown: what tells it from every other file.
    pub file: Bytes,
}

/// Something that an epoll instance watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// `tfd`: the number that it was added by.
    pub number: i32,
    /// `events`: EPOLL* bits.
    pub events: u32,
    /// `data`.
    pub data: u64,
    /// `ino`: inode number of the file; 0 on kernels that do not tell.
    pub inode: u64,
    /// `sdev`: device of its file system, composed as in `st_dev`.
    pub device: u64,
}

/// The timer behind a timerfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerInfo {
    /// `clockid`.
    pub clock: i32,
    /// `ticks`: expirations not yet read.
    pub ticks: u64,
    /// `settime flags`: TFD_TIMER_*.
    pub flags: u32,
    /// `it_value` (time left) and `it_interval`.
    pub timer: TimerSpec,
}

/// The class of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockClass {
    /// flock(2).
    Flock,
    /// fcntl(2) F_SETLK.
    Posix,
    /// fcntl(2) F_OFD_SETLK.
    OpenFileDescription,
    /// fcntl(2) F_SETLEASE, or a delegation given to a file server. `breaking`: somebody waits for
    /// it to be given up.
    Lease {
        /// Whether it is being broken.
        breaking: bool,
    },
}

/// A `lock:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// Its class.
    pub class: LockClass,
    /// Exclusive (WRITE) rather than shared (READ).
    pub exclusive: bool,
    /// Process that took it, in the reader's pid namespace; -1 for OFD locks.
    pub pid: i32,
    /// First byte.
    pub start: u64,
    /// Last byte; `None`: to the end of the file.
    pub end: Option<u64>,
}

/// Parses the content of an fdinfo file. Lines of kinds not needed here are passed over.
pub fn parse(content: &[u8]) -> Result<FdInfo, ParseFdInfoError> {
    let mut info = FdInfo::default();
    let lines = || content.split(|byte| *byte == b'\n');
    for line in lines() {
        parse_line(line, &mut info).ok_or_else(|| ParseFdInfoError { line: line.to_vec() })?;
    }
    info.ring = parse_ring(lines());
    Ok(info)
}

fn parse_line(line: &[u8], info: &mut FdInfo) -> Option<()> {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Some(()) };
    let value = || std::str::from_utf8(&line[colon + 1..]).ok().map(str::trim);
    match &line[..colon] {
        b"pos" => info.position = parse_position(value()?)?,
        b"flags" => info.flags = u32::from_str_radix(value()?, 8).ok()?,
        b"mnt_id" => info.mount = value()?.parse().ok()?,
        b"lock" => info.locks.push(parse_lock(value()?)?),
        b"eventfd-count" => info.eventfd_count = Some(u64::from_str_radix(value()?, 16).ok()?),
        b"eventfd-semaphore" => info.eventfd_semaphore = Some(value()? != "0"),
        b"clockid" => timer(info).clock = value()?.parse().ok()?,
        b"ticks" => timer(info).ticks = value()?.parse().ok()?,
        b"settime flags" => timer(info).flags = u32::from_str_radix(value()?, 8).ok()?,
        b"it_value" => timer(info).timer.value = parse_time(value()?)?,
        b"sigmask" => info.signal_mask = Some(u64::from_str_radix(value()?, 16).ok()?),
        b"tfd" => info.watched.push(parse_watched(value()?)?),
        b"inotify wd" => info.inotify.push(parse_inotify(value()?)?),
        b"Pid" => info.process = Some(value()?.parse().ok()?),
        b"it_interval" => timer(info).timer.interval = parse_time(value()?)?,
        _ => {}
    }
    Some(())
}

/// The lines of a ring of io_uring, which only tells all of them when nobody is at it.
fn parse_ring<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<RingInfo> {
    const NEEDED: u32 = 9;
    let mut ring = RingInfo::default();
    let mut told = 0;
    for line in lines.filter_map(|line| std::str::from_utf8(line).ok()) {
        // What is under way, and what found no room, is set in.
        ring.pending |= line.starts_with("  op=") || line.starts_with("  user_data=");
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let mask = || u32::from_str_radix(value.strip_prefix("0x")?, 16).ok();
        match name {
            "SqMask" => ring.request_mask = mask()?,
            "CqMask" => ring.completion_mask = mask()?,
            "SqTail" => ring.request_tail = value.parse().ok()?,
            "CachedSqHead" => ring.taken = value.parse().ok()?,
            "CqTail" => ring.completion_tail = value.parse().ok()?,
            "CachedCqTail" => ring.completed = value.parse().ok()?,
            "SqThread" => ring.watched = value != "-1",
            "UserFiles" | "UserBufs" => ring.registered |= value != "0",
            // Not there when there are none.
            "Personalities" => {
                ring.registered = true;
                continue;
            }
            _ => continue,
        }
        told += 1;
    }
    (told == NEEDED).then_some(ring)
}

fn timer(info: &mut FdInfo) -> &mut TimerInfo {
    info.timer.get_or_insert_default()
}

/// The kernel prints the position signed, and directories on some file systems use all 64 bits.
fn parse_position(text: &str) -> Option<u64> {
    text.parse::<i64>().ok().map(i64::cast_unsigned)
}

/// `(seconds, nanoseconds)`.
fn parse_time(text: &str) -> Option<TimeSpec> {
    let (seconds, nanoseconds) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(TimeSpec {
        seconds: seconds.trim().parse().ok()?,
        nanoseconds: nanoseconds.trim().parse().ok()?,
    })
}

/// `5 events:       19 data:                5  pos:0 ino:2057 sdev:f`, the number in decimal, the rest
/// but the position in hexadecimal (fs/eventpoll.c, `ep_show_fdinfo`).
fn parse_watched(text: &str) -> Option<Watched> {
    let (number, rest) = text.split_once(char::is_whitespace)?;
    let mut watched = Watched { number: number.parse().ok()?, ..Watched::default() };
    let mut words = rest.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let (name, value) = word.split_once(':')?;
        let value = if value.is_empty() { words.next()? } else { value };
        match name {
            "events" => watched.events = u32::from_str_radix(value, 16).ok()?,
            "data" => watched.data = u64::from_str_radix(value, 16).ok()?,
            "ino" => watched.inode = u64::from_str_radix(value, 16).ok()?,
            "sdev" => watched.device = parse_device(value)?,
            _ => {}
        }
    }
    Some(watched)
}

/// A device number as the kernel keeps it: twelve bits and twenty (include/linux/kdev_t.h).
fn parse_device(value: &str) -> Option<u64> {
    let device = u64::from_str_radix(value, 16).ok()?;
    Some(nix::sys::stat::makedev(device >> 20, device & 0xf_ffff))
}

/// `1 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e`,
/// all in hexadecimal (fs/notify/fdinfo.c, `inotify_fdinfo`).
fn parse_inotify(text: &str) -> Option<InotifyWatch> {
    let (number, rest) = text.split_once(' ')?;
    let number = i32::from_str_radix(number, 16).ok()?;
    let mut watch = InotifyWatch { number, ..InotifyWatch::default() };
    let mut file = Vec::new();
    for word in rest.split_ascii_whitespace() {
        let (name, value) = word.split_once(':')?;
        match name {
            "mask" => watch.mask = u32::from_str_radix(value, 16).ok()?,
            "ignored_mask" => {}
            _ => file.push(word),
        }
        match name {
            "ino" => watch.inode = u64::from_str_radix(value, 16).ok()?,
            "sdev" => watch.device = parse_device(value)?,
            _ => {}
        }
    }
    watch.file = Bytes::from(file.join(" ").as_bytes());
    Some(watch)
}

/// `1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF` (fs/locks.c, `lock_get_status`).
fn parse_lock(text: &str) -> Option<HeldLock> {
    let mut words = text.split_ascii_whitespace();
    let _number = words.next()?;
    let (class, state) = (words.next()?, words.next()?);
    let class = match class {
        "FLOCK" => LockClass::Flock,
        "POSIX" | "ACCESS" => LockClass::Posix,
        "OFDLCK" => LockClass::OpenFileDescription,
        "LEASE" | "DELEG" => LockClass::Lease { breaking: state != "ACTIVE" },
        _ => return None,
    };
    let exclusive = match words.next()? {
        "WRITE" => true,
        "READ" => false,
        // A lease that is being given up altogether shows as UNLCK.
        "UNLCK" if matches!(class, LockClass::Lease { .. }) => false,
        _ => return None,
    };
    let pid = words.next()?.parse().ok()?;
    let _inode = words.next()?;
    let start = words.next()?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => None,
        end => Some(end.parse().ok()?),
    };
    Some(HeldLock { class, exclusive, pid, start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str, expected: FdInfo) {
        assert_eq!(parse(content.as_bytes()), Ok(expected));
    }

    #[test]
    fn inotify_instances() {
        check(
            "flags:\t02\ninotify wd:1f ino:9e7e sdev:800013 mask:3c0 ignored_mask:0 fhandle-bytes:8 \
             fhandle-type:1 f_handle:7e9e\n",
            FdInfo {
                flags: 2,
                inotify: vec![InotifyWatch {
                    number: 31,
                    mask: 0x3c0,
                    inode: 0x9e7e,
                    device: nix::sys::stat::makedev(8, 0x13),
                    file: Bytes::from(
                        &b"ino:9e7e sdev:800013 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e"[..],
                    ),
                }],
                ..FdInfo::default()
            },
        );
    }

    #[test]
    fn rings() {
        let lines = "flags:\t02\nSqMask:\t0xff\nSqHead:\t7\nSqTail:\t8\nCachedSqHead:\t7\n\
                     CqMask:\t0x1ff\nCqHead:\t5\nCqTail:\t6\nCachedCqTail:\t6\nSQEs:\t1\n\
                     SqThread:\t-1\nUserFiles:\t0\nUserBufs:\t0\nPollList:\nCqOverflowList:\n";
        let idle = RingInfo {
            request_mask: 0xff,
            request_tail: 8,
            taken: 7,
            completion_mask: 0x1ff,
            completion_tail: 6,
            completed: 6,
            ..RingInfo::default()
        };
        let check =
            |lines: &str, ring| check(lines, FdInfo { flags: 2, ring, ..FdInfo::default() });
        check(lines, Some(idle));
        let pending = lines.replace("PollList:\n", "PollList:\n  op=6, task_works=0\n");
        check(&pending, Some(RingInfo { pending: true, ..idle }));
        let registered = lines.replace("UserFiles:\t0", "UserFiles:\t2");
        check(&registered, Some(RingInfo { registered: true, ..idle }));
        let watched = lines.replace("SqThread:\t-1", "SqThread:\t77");
        check(&watched, Some(RingInfo { watched: true, ..idle }));
        // Somebody was at it.
        check(&lines.replace("UserFiles:\t0\n", ""), None);
    }

    #[test]
    fn process_descriptors() {
        check(
            "flags:\t02\nPid:\t-1\n",
            FdInfo { flags: 2, process: Some(-1), ..FdInfo::default() },
        );
    }

    #[test]
    fn regular_files() {
        check(
            "pos:\t1024\nflags:\t02102001\nmnt_id:\t29\nino:\t77\n",
            FdInfo { position: 1024, flags: 0o2_102_001, mount: 29, ..FdInfo::default() },
        );
    }

    #[test]
    fn directory_positions_use_all_bits() {
        check("pos:\t-2\n", FdInfo { position: u64::MAX - 1, ..FdInfo::default() });
    }

    #[test]
    fn event_counters() {
        check(
            "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t2057\neventfd-count:              1f\n\
             eventfd-id: 3\neventfd-semaphore: 1\n",
            FdInfo {
                flags: 2,
                mount: 15,
                eventfd_count: Some(0x1f),
                eventfd_semaphore: Some(true),
                ..FdInfo::default()
            },
        );
    }

    #[test]
    fn timers() {
        check(
            "flags:\t02\nclockid: 1\nticks: 3\nsettime flags: 01\nit_value: (0, 49406829)\n\
             it_interval: (1, 0)\n",
            FdInfo {
                flags: 2,
                timer: Some(TimerInfo {
                    clock: 1,
                    ticks: 3,
                    flags: 1,
                    timer: TimerSpec {
                        value: TimeSpec { seconds: 0, nanoseconds: 49_406_829 },
                        interval: TimeSpec { seconds: 1, nanoseconds: 0 },
                    },
                }),
                ..FdInfo::default()
            },
        );
    }

    #[test]
    fn signal_masks() {
        check(
            "flags:\t02\nsigmask:\t0000000000000206\n",
            FdInfo { flags: 2, signal_mask: Some(0x206), ..FdInfo::default() },
        );
    }

    #[test]
    fn watched_files() {
        check(
            "flags:\t02\n\
             tfd:        5 events:       19 data:                5  pos:0 ino:2057 sdev:f\n\
             tfd:       17 events: c0000000 data: ffffffffffffffff  pos:64 ino:1a sdev:800003\n",
            FdInfo {
                flags: 2,
                watched: vec![
                    Watched { number: 5, events: 0x19, data: 5, inode: 0x2057, device: 0xf },
                    Watched {
                        number: 17,
                        events: 0xc000_0000,
                        data: u64::MAX,
                        inode: 0x1a,
                        device: nix::sys::stat::makedev(8, 3),
                    },
                ],
                ..FdInfo::default()
            },
        );
    }

    #[test]
    fn locks() {
        let lock =
            |class, exclusive, pid, start, end| HeldLock { class, exclusive, pid, start, end };
        check(
            "lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n\
             lock:\t2: POSIX  ADVISORY  READ  360 fe:00:12 10 19\n\
             lock:\t3: OFDLCK ADVISORY  WRITE -1 fe:00:12 5 5\n\
             lock:\t4: LEASE  ACTIVE    READ 9 fe:00:12 0 EOF\n\
             lock:\t5: LEASE  BREAKING  UNLCK 9 fe:00:12 0 EOF\n",
            FdInfo {
                locks: vec![
                    lock(LockClass::Flock, true, 359, 0, None),
                    lock(LockClass::Posix, false, 360, 10, Some(19)),
                    lock(LockClass::OpenFileDescription, true, -1, 5, Some(5)),
                    lock(LockClass::Lease { breaking: false }, false, 9, 0, None),
                    lock(LockClass::Lease { breaking: true }, false, 9, 0, None),
                ],
                ..FdInfo::default()
            },
        );
    }

    #[test]
    fn lines_that_are_not_understood_are_named() {
        for line in [
            "flags:\t9",
            "pos:\tx",
            "tfd: x",
            "sigmask:\tx",
            "lock:\t1: NEW ADVISORY WRITE 1 0:0:0 0 EOF",
        ] {
            assert_eq!(
                parse(line.as_bytes()),
                Err(ParseFdInfoError { line: line.as_bytes().to_vec() })
            );
        }
    }
}
