//! Files under /proc that describe processes: reading them, and parsers of their bytes.
//!
//! Parsers take bytes, so that they can be tested without a kernel. Names of files and programs are
//! any bytes; a number that does not parse is an error, never zero. Files that the `procfs` crate
//! reads without assuming UTF-8 names are left to it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;
use nix::unistd::Pid;
use procfs::FromRead;
use procfs::process::Stat;
use thiserror::Error;

use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::signal::SignalSet;

/// Why a file under /proc could not be used.
#[derive(Debug, Error)]
pub enum ProcError {
    /// The file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something that is not understood.
    #[error("{path} has no usable {what}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line or field.
        what: &'static str,
    },
}

impl ProcError {
    /// Whether the process or thread has ended, rather than anything being wrong.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Read { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
                    || source.raw_os_error() == Some(libc::ESRCH)
            }
            Self::Parse { .. } => false,
        }
    }
}

/// What /proc/PID/status says of a process or thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// One letter: R, S, D, T, t, Z, X, I.
    pub state: u8,
    /// Process id.
    pub tgid: i32,
    /// Parent process id; 0: outside the reader's pid namespace.
    pub ppid: i32,
    /// The tracer's process id; 0: none.
    pub tracer: i32,
    /// Real, effective, saved, file-system.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The thread's id in each pid namespace from the reader's inward.
    pub ns_pid: Vec<i32>,
    /// The process id, likewise.
    pub ns_tgid: Vec<i32>,
    /// The process group, likewise.
    pub ns_pgid: Vec<i32>,
    /// The session, likewise.
    pub ns_sid: Vec<i32>,
    /// Signals ignored.
    pub ignored: SignalSet,
    /// Signals with a handler.
    pub caught: SignalSet,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Seccomp mode: 0 none, 1 strict, 2 filters.
    pub seccomp: u32,
    /// File mode creation mask.
    pub umask: u32,
    /// The mask of address bits that memory management ignores: all ones when it ignores none.
    pub untag_mask: u64,
    /// PR_SPEC_* bit of PR_SPEC_STORE_BYPASS that the thread has set; 0: none.
    pub store_bypass: u32,
    /// PR_SPEC_* bit of PR_SPEC_INDIRECT_BRANCH that the thread has set; 0: none.
    pub indirect_branch: u32,
    /// Bytes of anonymous memory that are resident; 0 for a zombie.
    pub anonymous: u64,
    /// Bytes of memory that are in swap.
    pub swapped: u64,
    /// Bytes of page tables.
    pub page_tables: u64,
    /// Bytes of mappings that are locked in memory (mlock).
    pub locked: u64,
    /// Bytes of huge pages from the pool.
    pub huge_pages: u64,
    /// x86_Thread_features: shadow stacks and the like that are switched on.
    pub thread_features: Vec<u8>,
}

/// A mapping as /proc/PID/smaps lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it lies.
    pub range: AddrRange,
    /// `r`, `w`, `x` (or `-`), and `p` or `s`.
    pub permissions: [u8; 4],
    /// Offset in the file.
    pub offset: u64,
    /// Major and minor number of the file's device, as stat(2) composes them.
    pub device: u64,
    /// Inode number; 0: not a file.
    pub inode: u64,
    /// Path or name in brackets; may end in " (deleted)". Line feeds are decoded.
    pub path: Vec<u8>,
    /// Two-letter codes of the VmFlags line.
    pub codes: Vec<[u8; 2]>,
    /// Bytes of the kernel's page size for this mapping.
    pub page_size: u64,
    /// Memory protection key; 0: the default one, which everything has.
    pub protection_key: u32,
}

/// A timer of /proc/PID/timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerEntry {
    /// The kernel's id.
    pub id: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD, without SIGEV_THREAD_ID.
    pub method: i32,
    /// Whether one thread is told (SIGEV_THREAD_ID).
    pub to_thread: bool,
    /// The process or thread told, as the reader sees it.
    pub target: i32,
    /// CLOCK_*.
    pub clock: i32,
}

/// Reads a file under /proc/PID.
///
/// # Errors
/// When it cannot be read.
pub fn read(pid: Pid, name: &str) -> Result<Vec<u8>, ProcError> {
    /// Most files fit: one call gets all, and another one finds the end.
    const USUAL_SIZE: usize = 8192;
    let path = path_of(pid, name);
    let mut bytes = Vec::with_capacity(USUAL_SIZE);
    // Their size is never known before; taken as a stream, nobody asks for it.
    let outcome = File::open(&path).and_then(|file| file.take(u64::MAX).read_to_end(&mut bytes));
    outcome.map(|_| bytes).map_err(|source| ProcError::Read { path, source })
}

/// Reads a link under /proc/PID.
///
/// # Errors
/// When it cannot be read.
pub fn read_link(pid: Pid, name: &str) -> Result<PathBuf, ProcError> {
    let path = path_of(pid, name);
    fs::read_link(&path).map_err(|source| ProcError::Read { path, source })
}

/// /proc/PID/status of a process or thread.
///
/// # Errors
/// When it cannot be read or understood.
pub fn status(tid: Pid) -> Result<Status, ProcError> {
    let bytes = read(tid, "status")?;
    parse_status(&bytes).map_err(|what| ProcError::Parse { path: path_of(tid, "status"), what })
}

/// /proc/PID/stat of a process or thread. Its name is lossy; use [`name`].
///
/// # Errors
/// When it cannot be read or understood.
pub fn stat(tid: Pid) -> Result<Stat, ProcError> {
    let bytes = read(tid, "stat")?;
    Stat::from_read(bytes.as_slice())
        .map_err(|_| ProcError::Parse { path: path_of(tid, "stat"), what: "fields" })
}

/// What /proc says of one thread of a process. Unlike [`stat`] it does not have the kernel add up the
/// times of all threads.
///
/// # Errors
/// When it cannot be read or understood.
pub fn thread_stat(pid: Pid, tid: Pid) -> Result<Stat, ProcError> {
    let name = format!("task/{tid}/stat");
    let bytes = read(pid, &name)?;
    Stat::from_read(bytes.as_slice())
        .map_err(|_| ProcError::Parse { path: path_of(pid, &name), what: "fields" })
}

/// The name of a process or thread, without the line's end.
///
/// # Errors
/// When it cannot be read.
pub fn name(tid: Pid) -> Result<Vec<u8>, ProcError> {
    let mut bytes = read(tid, "comm")?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(bytes)
}

/// Whether a thread is one of the kernel's own, which works for io_uring in a process and never stops for
/// a tracer.
///
/// # Errors
/// When /proc/TID/comm or stat cannot be read.
pub fn is_kernel_worker(tid: Pid) -> Result<bool, ProcError> {
    // PF_IO_WORKER, include/linux/sched.h.
    const IO_WORKER: u32 = 0x10;
    // Threads of programs may have such a name, too, but the name is told faster.
    Ok(name(tid)?.starts_with(b"iou-") && stat(tid)?.flags & IO_WORKER != 0)
}

/// The mappings of a process, ascending, with their flags.
///
/// # Errors
/// When /proc/PID/smaps cannot be read or understood.
pub fn mappings(pid: Pid) -> Result<Vec<Mapping>, ProcError> {
    let path = path_of(pid, "smaps");
    // Some hundred bytes for each of what may be many thousands of mappings: not read as a whole.
    let parsed = File::open(&path).and_then(|file| parse_smaps(BufReader::new(file)));
    match parsed {
        Ok(Ok(mut mappings)) => {
            if uname().is_ok_and(|names| is_before(names.release().as_bytes(), (6, 3))) {
                mappings.iter_mut().for_each(name_lock_on_fault);
            }
            Ok(mappings)
        }
        Ok(Err(what)) => Err(ProcError::Parse { path, what }),
        Err(source) => Err(ProcError::Read { path, source }),
    }
}

/// Gives MLOCK_ONFAULT the code that it has since Linux 6.3. Before that it is the only flag that is shown as
/// `??`, and only locked memory has it.
fn name_lock_on_fault(mapping: &mut Mapping) {
    if mapping.codes.contains(b"lo") {
        mapping.codes.iter_mut().filter(|code| *code == b"??").for_each(|code| *code = *b"lf");
    }
}

/// Whether a kernel's release (`6.1.0-50-amd64`) is older than this version.
fn is_before(release: &[u8], version: (u32, u32)) -> bool {
    let mut numbers = release.split(|byte| !byte.is_ascii_digit()).map(number::<u32>);
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < version,
        _ => false,
    }
}

/// The mappings of a process, ascending, without flags and page sizes: that spares the kernel a walk
/// over all its pages.
///
/// # Errors
/// When /proc/PID/maps cannot be read or understood.
pub fn mapping_heads(pid: Pid) -> Result<Vec<Mapping>, ProcError> {
    let bytes = read(pid, "maps")?;
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(parse_mapping)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| ProcError::Parse { path: path_of(pid, "maps"), what: "mapping" })
}

/// Whether the file behind a mapping was opened for writing, as the mode of its link in
/// /proc/PID/map_files tells.
///
/// # Errors
/// When that cannot be read.
pub fn is_mapped_for_writing(pid: Pid, range: AddrRange) -> Result<bool, ProcError> {
    const OWNER_WRITES: u32 = 0o200;
    let name = format!("map_files/{:x}-{:x}", range.start.0, range.end.0);
    let path = path_of(pid, &name);
    match fs::symlink_metadata(&path) {
        Ok(link) => Ok(link.mode() & OWNER_WRITES != 0),
        Err(source) => Err(ProcError::Read { path, source }),
    }
}

/// How many pages of a process are in memory.
///
/// # Errors
/// When /proc/PID/statm cannot be read or understood.
pub fn resident_pages(pid: Pid) -> Result<u64, ProcError> {
    let bytes = read(pid, "statm")?;
    let resident = bytes.split(|byte| *byte == b' ').nth(1).and_then(number);
    resident.ok_or_else(|| ProcError::Parse { path: path_of(pid, "statm"), what: "resident pages" })
}

/// Where the mappings begin, ascending, whose memory is not taken from just any NUMA node; `None` on a
/// kernel that knows no nodes.
///
/// # Errors
/// When /proc/PID/numa_maps is there, and cannot be read or understood.
pub fn policy_places(pid: Pid) -> Result<Option<Vec<RemoteAddr>>, ProcError> {
    let bytes = match read(pid, "numa_maps") {
        Ok(bytes) => bytes,
        Err(error) if error.is_gone() => return Ok(None),
        Err(error) => return Err(error),
    };
    parse_policy_places(&bytes)
        .map(Some)
        .ok_or_else(|| ProcError::Parse { path: path_of(pid, "numa_maps"), what: "mapping" })
}

/// The NUMA nodes that a process may have memory from: a bit mask, low nodes first.
///
/// # Errors
/// When /proc/PID/status cannot be read or understood.
pub fn allowed_nodes(pid: Pid) -> Result<Vec<u8>, ProcError> {
    let bytes = read(pid, "status")?;
    parse_allowed_nodes(&bytes)
        .ok_or_else(|| ProcError::Parse { path: path_of(pid, "status"), what: "Mems_allowed" })
}

/// The nice value of the scheduler's group that a process's session is; `None` when it is none.
///
/// # Errors
/// When /proc/PID/autogroup is there, and cannot be read or understood.
pub fn autogroup_nice(pid: Pid) -> Result<Option<i32>, ProcError> {
    let bytes = match read(pid, "autogroup") {
        Ok(bytes) if bytes.is_empty() => return Ok(None),
        Ok(bytes) => bytes,
        Err(error) if error.is_gone() => return Ok(None),
        Err(error) => return Err(error),
    };
    let nice = bytes.rsplit(|byte| *byte == b' ').next().and_then(number);
    nice.map(Some)
        .ok_or_else(|| ProcError::Parse { path: path_of(pid, "autogroup"), what: "nice value" })
}

/// The POSIX timers of a process, ascending by id.
///
/// # Errors
/// When /proc/PID/timers cannot be read or understood.
pub fn timers(pid: Pid) -> Result<Vec<TimerEntry>, ProcError> {
    let bytes = read(pid, "timers")?;
    let mut timers = parse_timers(&bytes)
        .map_err(|what| ProcError::Parse { path: path_of(pid, "timers"), what })?;
    timers.sort_by_key(|timer| timer.id);
    Ok(timers)
}

/// The threads of a process, ascending.
///
/// # Errors
/// When /proc/PID/task cannot be listed.
pub fn threads(pid: Pid) -> Result<Vec<Pid>, ProcError> {
    let path = path_of(pid, "task");
    numbered_entries(&path).map_err(|source| ProcError::Read { path, source })
}

/// The children of one thread, or `None` on a kernel without /proc/PID/task/TID/children. Complete
/// only when neither the thread nor its children run.
///
/// # Errors
/// When the list cannot be read or understood.
pub fn children(pid: Pid, tid: Pid) -> Result<Option<Vec<Pid>>, ProcError> {
    let name = format!("task/{tid}/children");
    let bytes = match read(pid, &name) {
        Ok(bytes) => bytes,
        // The file is missing although the thread is there: the kernel does not have it.
        Err(error) if error.is_gone() && path_of(pid, &format!("task/{tid}")).exists() => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    bytes
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(|word| number::<i32>(word).map(Pid::from_raw))
        .collect::<Option<Vec<_>>>()
        .map(Some)
        .ok_or_else(|| ProcError::Parse { path: path_of(pid, &name), what: "list of children" })
}

/// Every process there is, ascending.
///
/// # Errors
/// When /proc cannot be listed.
pub fn processes() -> Result<Vec<Pid>, ProcError> {
    let path = Path::new("/proc");
    numbered_entries(path).map_err(|source| ProcError::Read { path: path.to_owned(), source })
}

/// A number in a file under /proc/PID that holds nothing else.
///
/// # Errors
/// When it cannot be read or is not a number in that base.
pub fn single_number(pid: Pid, name: &str, radix: u32) -> Result<i64, ProcError> {
    let bytes = read(pid, name)?;
    std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| i64::from_str_radix(text.trim(), radix).ok())
        .ok_or_else(|| ProcError::Parse { path: path_of(pid, name), what: "number" })
}

/// The offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME in a process's time namespace, in nanoseconds;
/// zero on a kernel without time namespaces.
///
/// # Errors
/// When the file is there, and cannot be read or understood.
pub fn time_offsets(pid: Pid) -> Result<[i128; 2], ProcError> {
    let bytes = match read(pid, "timens_offsets") {
        Ok(bytes) => bytes,
        Err(error) if error.is_gone() => return Ok([0, 0]),
        Err(error) => return Err(error),
    };
    parse_time_offsets(&bytes)
        .ok_or_else(|| ProcError::Parse { path: path_of(pid, "timens_offsets"), what: "offsets" })
}

fn path_of(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn numbered_entries(path: &Path) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if let Some(id) = number::<i32>(name.as_encoded_bytes()) {
            found.push(Pid::from_raw(id));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Parses /proc/PID/status; the error names the line that is wrong or missing.
///
/// # Errors
/// When a line that every kernel since 5.6 writes is missing or not a number.
pub fn parse_status(bytes: &[u8]) -> Result<Status, &'static str> {
    let mut status = Status { untag_mask: u64::MAX, ..Status::default() };
    let mut seen = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (key, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let Some(required) = parse_status_line(&mut status, key, value)? else { continue };
        seen.push(required);
    }
    for required in ["State", "Tgid", "PPid", "TracerPid", "Uid", "Gid", "NSpid", "NSsid"] {
        if !seen.contains(&required) {
            return Err(required);
        }
    }
    Ok(status)
}

/// Takes one line over; `None` for a line of no interest.
fn parse_status_line(
    status: &mut Status,
    key: &[u8],
    value: &[u8],
) -> Result<Option<&'static str>, &'static str> {
    let key = match key {
        b"State" => {
            status.state = *value.first().ok_or("State")?;
            "State"
        }
        b"Umask" => {
            status.umask = octal(value).ok_or("Umask")?;
            "Umask"
        }
        b"Tgid" => set(&mut status.tgid, number(value), "Tgid")?,
        b"PPid" => set(&mut status.ppid, number(value), "PPid")?,
        b"TracerPid" => set(&mut status.tracer, number(value), "TracerPid")?,
        b"Uid" => set(&mut status.uids, four(value), "Uid")?,
        b"Gid" => set(&mut status.gids, four(value), "Gid")?,
        b"Groups" => set(&mut status.groups, numbers(value), "Groups")?,
        b"NSpid" => set(&mut status.ns_pid, numbers(value), "NSpid")?,
        b"NStgid" => set(&mut status.ns_tgid, numbers(value), "NStgid")?,
        b"NSpgid" => set(&mut status.ns_pgid, numbers(value), "NSpgid")?,
        b"NSsid" => set(&mut status.ns_sid, numbers(value), "NSsid")?,
        b"SigIgn" => set(&mut status.ignored, hex(value).map(SignalSet), "SigIgn")?,
        b"SigCgt" => set(&mut status.caught, hex(value).map(SignalSet), "SigCgt")?,
        b"CapInh" => set(&mut status.capabilities[0], hex(value), "CapInh")?,
        b"CapPrm" => set(&mut status.capabilities[1], hex(value), "CapPrm")?,
        b"CapEff" => set(&mut status.capabilities[2], hex(value), "CapEff")?,
        b"CapBnd" => set(&mut status.capabilities[3], hex(value), "CapBnd")?,
        b"CapAmb" => set(&mut status.capabilities[4], hex(value), "CapAmb")?,
        b"NoNewPrivs" => {
            status.no_new_privs = number::<u32>(value).ok_or("NoNewPrivs")? != 0;
            "NoNewPrivs"
        }
        b"Seccomp" => set(&mut status.seccomp, number(value), "Seccomp")?,
        b"untag_mask" => {
            let digits = value.strip_prefix(b"0x").unwrap_or(value);
            set(&mut status.untag_mask, hex(digits), "untag_mask")?
        }
        b"Speculation_Store_Bypass" => {
            status.store_bypass = speculation(value);
            "Speculation_Store_Bypass"
        }
        b"SpeculationIndirectBranch" => {
            status.indirect_branch = speculation(value);
            "SpeculationIndirectBranch"
        }
        b"RssAnon" => set(&mut status.anonymous, kibibytes(value), "RssAnon")?,
        b"VmPTE" => set(&mut status.page_tables, kibibytes(value), "VmPTE")?,
        b"VmSwap" => set(&mut status.swapped, kibibytes(value), "VmSwap")?,
        b"VmLck" => set(&mut status.locked, kibibytes(value), "VmLck")?,
        b"HugetlbPages" => set(&mut status.huge_pages, kibibytes(value), "HugetlbPages")?,
        b"x86_Thread_features" => {
            status.thread_features = value.to_vec();
            "x86_Thread_features"
        }
        _ => return Ok(None),
    };
    Ok(Some(key))
}

/// Bytes, of a size like `12 kB`.
fn kibibytes(value: &[u8]) -> Option<u64> {
    number::<u64>(value.strip_suffix(b"kB")?.trim_ascii())?.checked_mul(1024)
}

/// A process's part of anonymous memory, in bytes, by its /proc/PID/smaps_rollup: of each page, one part in
/// as many as there are processes that have it. `None` where that is not told (before Linux 5.3).
#[must_use]
pub fn rollup_of_anonymous(bytes: &[u8]) -> Option<u64> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    kibibytes(lines.find_map(|line| line.strip_prefix(b"Pss_Anon:"))?.trim_ascii())
}

/// Parses /proc/PID/smaps. Gives the mappings, or the field that cannot be understood: in a mapping's
/// line, or its VmFlags line that is missing.
///
/// # Errors
/// When reading fails.
pub fn parse_smaps(mut smaps: impl BufRead) -> io::Result<Result<Vec<Mapping>, &'static str>> {
    let mut parser = SmapsParser { mappings: Vec::new(), complete: true };
    let mut line = Vec::new();
    loop {
        line.clear();
        if smaps.read_until(b'\n', &mut line)? == 0 {
            return Ok(parser.finish());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if let Err(field) = parser.take(&line) {
            return Ok(Err(field));
        }
    }
}

/// The mappings of /proc/PID/smaps, line by line.
struct SmapsParser {
    mappings: Vec<Mapping>,
    /// Whether the last mapping's flags have been seen.
    complete: bool,
}

impl SmapsParser {
    fn take(&mut self, line: &[u8]) -> Result<(), &'static str> {
        // A line of a mapping's details starts with a capitalised key, its head with an address.
        if line.first().is_some_and(u8::is_ascii_uppercase) {
            let mapping = self.mappings.last_mut().ok_or("mapping")?;
            if let Some(codes) = line.strip_prefix(b"VmFlags:") {
                mapping.codes = parse_codes(codes).ok_or("VmFlags")?;
                self.complete = true;
            } else if let Some(size) = line.strip_prefix(b"KernelPageSize:") {
                let size = size.trim_ascii().strip_suffix(b" kB").ok_or("KernelPageSize")?;
                mapping.page_size = number::<u64>(size).ok_or("KernelPageSize")? * 1024;
            } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
                mapping.protection_key = number(key).ok_or("ProtectionKey")?;
            }
            return Ok(());
        }
        if !self.complete {
            return Err("VmFlags");
        }
        self.mappings.push(parse_mapping(line).ok_or("mapping")?);
        self.complete = false;
        Ok(())
    }

    fn finish(self) -> Result<Vec<Mapping>, &'static str> {
        if self.complete { Ok(self.mappings) } else { Err("VmFlags") }
    }
}

/// The first line of a mapping: `start-end perms offset major:minor inode   path`.
fn parse_mapping(line: &[u8]) -> Option<Mapping> {
    let mut words = line.splitn(6, |byte| *byte == b' ');
    let range = words.next()?;
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let range = AddrRange::new(hex(&range[..dash])?, hex(&range[dash + 1..])?)?;
    let permissions = <[u8; 4]>::try_from(words.next()?).ok()?;
    let offset = hex(words.next()?)?;
    let device = words.next()?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let device = nix::sys::stat::makedev(hex(&device[..colon])?, hex(&device[colon + 1..])?);
    let inode = number(words.next()?)?;
    let path = unescape_line_feeds(words.next().unwrap_or_default().trim_ascii_start());
    Some(Mapping {
        range,
        permissions,
        offset,
        device,
        inode,
        path,
        codes: Vec::new(),
        page_size: 0,
        protection_key: 0,
    })
}

/// The codes of a VmFlags line. Some kernels write codes of one letter and a blank.
fn parse_codes(line: &[u8]) -> Option<Vec<[u8; 2]>> {
    line.split(|byte| *byte == b' ')
        .filter(|code| !code.is_empty())
        .map(|code| <[u8; 2]>::try_from(code).ok())
        .collect()
}

/// The kernel writes a line feed in a path as `\012`, and nothing else specially.
fn unescape_line_feeds(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            plain.push(b'\n');
            rest = after;
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

/// Parses /proc/PID/timers; the error names the line that is wrong.
///
/// # Errors
/// When a line cannot be understood.
pub fn parse_timers(bytes: &[u8]) -> Result<Vec<TimerEntry>, &'static str> {
    let mut timers: Vec<TimerEntry> = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').ok_or("timer")?;
        let (key, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if key == b"ID" {
            let id = number(value).ok_or("ID")?;
            timers.push(TimerEntry {
                id,
                signal: 0,
                value: 0,
                method: 0,
                to_thread: false,
                target: 0,
                clock: 0,
            });
            continue;
        }
        let timer = timers.last_mut().ok_or("ID")?;
        match key {
            b"signal" => {
                let slash = value.iter().position(|byte| *byte == b'/').ok_or("signal")?;
                timer.signal = number(&value[..slash]).ok_or("signal")?;
                timer.value = parse_pointer(&value[slash + 1..]).ok_or("signal")?;
            }
            b"notify" => {
                let slash = value.iter().position(|byte| *byte == b'/').ok_or("notify")?;
                timer.method = match &value[..slash] {
                    b"signal" => libc::SIGEV_SIGNAL,
                    b"none" => libc::SIGEV_NONE,
                    b"thread" => libc::SIGEV_THREAD,
                    _ => return Err("notify"),
                };
                let target = &value[slash + 1..];
                let dot = target.iter().position(|byte| *byte == b'.').ok_or("notify")?;
                timer.to_thread = &target[..dot] == b"tid";
                timer.target = number(&target[dot + 1..]).ok_or("notify")?;
            }
            b"ClockID" => timer.clock = number(value).ok_or("ClockID")?,
            _ => {}
        }
    }
    Ok(timers)
}

/// Lines of `address policy ...`.
fn parse_policy_places(bytes: &[u8]) -> Option<Vec<RemoteAddr>> {
    let mut places = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let address = hex(words.next()?)?;
        if words.next()? != b"default" {
            places.push(RemoteAddr(address));
        }
    }
    Some(places)
}

/// The line `Mems_allowed:` has words of 32 bits, the highest first. A kernel without nodes has none,
/// and node 0 only.
fn parse_allowed_nodes(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Some(words) = lines.find_map(|line| line.strip_prefix(b"Mems_allowed:")) else {
        return Some(vec![1]);
    };
    let mut nodes = Vec::new();
    for word in words.trim_ascii().rsplit(|byte| *byte == b',') {
        nodes.extend_from_slice(&u32::try_from(hex(word)?).ok()?.to_le_bytes());
    }
    Some(nodes)
}

/// What `Speculation_Store_Bypass` and `SpeculationIndirectBranch` say that the thread itself has set:
/// PR_SPEC_DISABLE, PR_SPEC_FORCE_DISABLE, or nothing.
fn speculation(value: &[u8]) -> u32 {
    match value {
        b"thread force mitigated" | b"conditional force disabled" => libc::PR_SPEC_FORCE_DISABLE,
        b"thread mitigated" | b"conditional disabled" => libc::PR_SPEC_DISABLE,
        _ => 0,
    }
}

/// A pointer as the kernel's `%px` prints it, or `(null)`.
fn parse_pointer(text: &[u8]) -> Option<u64> {
    if text == b"(null)" { Some(0) } else { hex(text) }
}

/// Lines of `monotonic SECONDS NANOSECONDS` and `boottime ...`.
fn parse_time_offsets(bytes: &[u8]) -> Option<[i128; 2]> {
    let mut offsets = [None; 2];
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let slot = match words.next() {
            Some(b"monotonic" | b"1") => 0,
            Some(b"boottime" | b"7") => 1,
            _ => continue,
        };
        let seconds = i128::from(number::<i64>(words.next()?)?);
        let nanoseconds = i128::from(number::<i64>(words.next()?)?);
        offsets[slot] = Some(seconds * 1_000_000_000 + nanoseconds);
    }
    Some([offsets[0]?, offsets[1]?])
}

fn set<T>(
    place: &mut T,
    value: Option<T>,
    key: &'static str,
) -> Result<&'static str, &'static str> {
    *place = value.ok_or(key)?;
    Ok(key)
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn numbers<T: std::str::FromStr>(text: &[u8]) -> Option<Vec<T>> {
    let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.map(number).collect()
}

fn four(text: &[u8]) -> Option<[u32; 4]> {
    numbers(text)?.try_into().ok()
}

fn hex(text: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

fn octal(text: &[u8]) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_a_process_in_a_namespace() {
        let text = b"Name:\ta\xff:b\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t40\nPPid:\t7\n\
            TracerPid:\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t100 200 \n\
            NStgid:\t40\t2\nNSpid:\t41\t3\nNSpgid:\t40\t2\nNSsid:\t0\t0\nSigIgn:\t0000000000001000\n\
            SigCgt:\t0000000180000002\nCapPrm:\t000001fffeffffff\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let status = parse_status(text).expect("a good status");
        assert_eq!(status.state, b'S');
        assert_eq!((status.tgid, status.ppid, status.umask), (40, 7, 0o22));
        assert_eq!((status.uids, status.gids), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!(status.groups, [100, 200]);
        assert_eq!((status.ns_pid, status.ns_sid), (vec![41, 3], vec![0, 0]));
        assert_eq!(status.ignored.numbers().collect::<Vec<_>>(), [13]);
        assert_eq!(status.caught.numbers().collect::<Vec<_>>(), [2, 32, 33]);
        assert_eq!((status.no_new_privs, status.seccomp), (true, 2));
        assert_eq!(status.untag_mask, u64::MAX);
    }

    #[test]
    fn status_that_lacks_or_garbles_a_line() {
        let check = |text: &[u8], expected: &str| {
            assert_eq!(parse_status(text).expect_err("a bad status"), expected);
        };
        check(b"", "State");
        check(b"State:\tS\nTgid:\tx\n", "Tgid");
        check(b"State:\tS\nTgid:\t1\nPPid:\t1\nUid:\t1 2 3\n", "Uid");
    }

    #[test]
    fn smaps_with_odd_names() {
        let text = b"00400000-00401000 r-xp 00001000 fd:02 1234   /tmp/a b\\012c (deleted)\n\
            Size:                  4 kB\nKernelPageSize:        4 kB\nVmFlags: rd ex mr mw me \n\
            7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \n\
            KernelPageSize:     2048 kB\nProtectionKey:         3\nVmFlags: rd wr ht ??\n\
            7ffff000-80000000 rw-p 00000000 00:00 0                          [stack]\nVmFlags: rd gd\n";
        let found = parse_smaps(text.as_slice()).expect("bytes").expect("good smaps");
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].path, b"/tmp/a b\nc (deleted)");
        assert_eq!(found[0].device, nix::sys::stat::makedev(0xfd, 2));
        assert_eq!((found[0].offset, found[0].inode, found[0].page_size), (0x1000, 1234, 4096));
        assert_eq!(&found[0].permissions, b"r-xp");
        assert_eq!(found[1].codes, [*b"rd", *b"wr", *b"ht", *b"??"]);
        assert_eq!((found[1].page_size, found[1].path.len()), (2 << 20, 0));
        assert_eq!((found[0].protection_key, found[1].protection_key), (0, 3));
        assert_eq!(found[2].path, b"[stack]");
    }

    #[test]
    fn smaps_that_are_cut_off() {
        let check = |text: &[u8], expected: &str| {
            assert_eq!(parse_smaps(text).expect("bytes").expect_err("bad smaps"), expected);
        };
        check(b"1000-2000 rw-p 0 00:00 0\nSize: 4 kB\n", "VmFlags");
        check(b"2000-1000 rw-p 0 00:00 0\nVmFlags: rd\n", "mapping");
        check(b"VmFlags: rd\n", "mapping");
        check(b"1000-2000 rw-p 0 00:00 0\nVmFlags: rdx\n", "VmFlags");
    }

    #[test]
    fn own_files_are_understood() {
        let me = Pid::this();
        let own = status(me).expect("status");
        assert_eq!(own.tgid, me.as_raw());
        assert!(own.anonymous > 0);
        assert!(stat(me).expect("stat").exit_signal.is_some());
        let mappings = mappings(me).expect("smaps");
        assert!(mappings.iter().any(|mapping| mapping.path == b"[vdso]"));
        assert!(threads(me).expect("threads").contains(&me));
        assert!(processes().expect("processes").contains(&me));
        time_offsets(me).expect("offsets");
    }

    #[test]
    fn timers_of_each_kind() {
        let text = b"ID: 0\nsignal: 34/00000000deadbeef\nnotify: signal/pid.77\nClockID: 1\n\
            ID: 2\nsignal: 0/(null)\nnotify: none/pid.77\nClockID: -6\n\
            ID: 3\nsignal: 14/0000000000000003\nnotify: signal/tid.78\nClockID: 0\n";
        let found = parse_timers(text).expect("good timers");
        let timer = |id, signal, value, method, to_thread, target, clock| TimerEntry {
            id,
            signal,
            value,
            method,
            to_thread,
            target,
            clock,
        };
        assert_eq!(
            found,
            [
                timer(0, 34, 0xdead_beef, libc::SIGEV_SIGNAL, false, 77, 1),
                timer(2, 0, 0, libc::SIGEV_NONE, false, 77, -6),
                timer(3, 14, 3, libc::SIGEV_SIGNAL, true, 78, 0),
            ]
        );
    }

    #[test]
    fn mappings_with_a_policy() {
        let text =
            b"1000 default file=/a\\040b mapped=1\n20000 bind:0 anon=1\n30000 prefer (many):0\n";
        let expected = vec![RemoteAddr(0x20000), RemoteAddr(0x30000)];
        assert_eq!(parse_policy_places(text), Some(expected));
        assert_eq!(parse_policy_places(b"x default\n"), None);
    }

    #[test]
    fn nodes_are_read_from_the_low_end() {
        let check = |text: &[u8], expected: &[u8]| {
            assert_eq!(parse_allowed_nodes(text).as_deref(), Some(expected));
        };
        check(b"Mems_allowed:\t00000000,00000103\n", &[3, 1, 0, 0, 0, 0, 0, 0]);
        check(b"Mems_allowed_list:\t0\n", &[1]);
    }

    #[test]
    fn time_offsets_by_name() {
        let text = b"monotonic         -10         5\nboottime            3         0\n";
        let expected = [-10 * 1_000_000_000 + 5, 3 * 1_000_000_000];
        assert_eq!(parse_time_offsets(text), Some(expected));
        assert_eq!(parse_time_offsets(b"monotonic 1 0\n"), None);
    }

    #[test]
    fn old_kernels_have_no_name_for_lock_on_fault() {
        let mut mapping = Mapping {
            range: AddrRange::new(0x1000, 0x2000).unwrap(),
            permissions: *b"rw-p",
            offset: 0,
            device: 0,
            inode: 0,
            path: Vec::new(),
            codes: vec![*b"rd", *b"??"],
            page_size: 4096,
            protection_key: 0,
        };
        name_lock_on_fault(&mut mapping);
        assert_eq!(mapping.codes, [*b"rd", *b"??"]);
        mapping.codes.push(*b"lo");
        name_lock_on_fault(&mut mapping);
        assert_eq!(mapping.codes, [*b"rd", *b"lf", *b"lo"]);
        for (release, expected) in [("5.10.0-46-amd64", true), ("6.2", true), ("6.3.1", false)] {
            assert_eq!(is_before(release.as_bytes(), (6, 3)), expected, "{release}");
        }
        assert!(!is_before(b"6.18.44-fc", (6, 3)) && !is_before(b"?", (6, 3)));
    }
}
