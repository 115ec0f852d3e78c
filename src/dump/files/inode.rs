//! The table of files: finding out which file something is, where it can be found again, and
//! whether its content has to go into the image.
//!
//! It knows files and paths, not descriptors' numbers or their states.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::content::{Content, ContentSource, Segment, mapped_size};
use super::refusal::{Place, Refusal, RefusalKind};
use super::scan::{FileStat, LONG_PATH};
use super::{CollectFilesError, Failure, FileMapping};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::file::{ANONYMOUS_SHARED_NAME, Inode, InodeKind};
use crate::model::id::{Bytes, InodeId, ObjectId};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::model::time::TimeSpec;
use crate::sys::{attributes, build_id, descriptor};

/// What the kernel appends to the path of a file whose name was removed (`d_path`, fs/d_path.c).
const DELETED: &[u8] = b" (deleted)";

/// Kinds of file systems that make a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// Its content is in memory: tmpfs, ramfs.
    Memory,
    /// hugetlbfs.
    HugePages,
    /// proc.
    Proc,
    /// Other views into the kernel: sysfs, cgroups.
    Kernel,
    /// Namespaces.
    Namespaces,
    /// POSIX message queues.
    MessageQueues,
    /// NFS, where a deleted open file keeps a hidden name until it is closed.
    Network,
    /// A union of others, which shows its own numbers in `stat` and theirs in maps.
    Union,
    /// A disk or the like.
    Ordinary,
}

impl FileSystem {
    /// The kind by `f_type` of statfs(2).
    const fn from_magic(magic: i64) -> Self {
        match magic {
            0x0102_1994 | 0x8584_58f6 => Self::Memory,
            0x9584_58f6 => Self::HugePages,
            0x9fa0 => Self::Proc,
            // sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs, efivarfs
            0x6265_6572 | 0x0027_e0eb | 0x6367_7270 | 0x6462_6720 | 0x7472_6163 | 0x7363_6673
            | 0xde5e_81e4 => Self::Kernel,
            0x6e73_6673 => Self::Namespaces,
            0x1980_0202 => Self::MessageQueues,
            0x6969 => Self::Network,
            0x794c_7630 => Self::Union,
            _ => Self::Ordinary,
        }
    }

    /// The kind of the file system that `path` is on. One that cannot be asked is ordinary.
    pub fn of(path: &Path) -> Self {
        match nix::sys::statfs::statfs(path) {
            Ok(found) => Self::from_magic(found.filesystem_type().0),
            Err(_) => Self::Ordinary,
        }
    }
}

/// Everything known about one file while the job is looked at.
#[derive(Debug)]
struct Draft {
    inode: Inode,
    file_system: FileSystem,
    /// Known to be something that can be mapped again.
    checked_as_mapped: bool,
    /// Opened by the job for its content.
    opened: bool,
    /// Open for reading and writing anywhere.
    changes_in_place: bool,
    /// To be saved whole.
    saved: bool,
    /// Mapped shared by somebody.
    mapped_shared: bool,
    /// Mapped shared and writable by somebody right now.
    mapped_writable: bool,
    /// Where content can be read from, best first.
    files: Vec<ContentSource>,
    /// Parts that are mapped.
    segments: Vec<Segment>,
    /// Who uses it, for messages.
    user: (Pid, Place),
}

/// The table.
#[derive(Debug)]
pub(super) struct InodeTable {
    drafts: Vec<Draft>,
    by_stat: HashMap<(u64, u64), InodeId>,
    /// By the numbers that maps show, which union and some other file systems make different.
    by_map: HashMap<(u64, u64), InodeId>,
    /// Segments of System V shared memory, whose inode numbers are their own and may be those of other
    /// files, too.
    by_segment: HashMap<i32, InodeId>,
    /// Those of them that consist of huge pages.
    huge_segments: HashSet<i32>,
    /// Device of the kernel's own memory file system, which memfds and shared memory live on.
    kernel_memory: u64,
    /// Device of its file system of huge pages, if there are any.
    huge_pages: Option<u64>,
    /// Device of /dev/shm, when there is one.
    shared_memory: Option<u64>,
}

/// What is known of a file that somebody has open, or has as executable or directory.
pub(super) struct Found<'a> {
    /// What `stat` says.
    pub stat: FileStat,
    /// Its path as /proc shows it.
    pub link: &'a [u8],
    /// A link in /proc that leads to it.
    pub proc_path: PathBuf,
    /// A readable descriptor for it.
    pub readable: Option<(Pid, i32)>,
    /// Who has it.
    pub user: (Pid, Place),
}

impl InodeTable {
    /// An empty table.
    pub fn new() -> Result<Self, CollectFilesError> {
        let kernel_memory = descriptor::memfd_create(c"rckpt", 0)
            .and_then(|file| nix::sys::stat::fstat(&file))
            .map_err(|source| CollectFilesError::FindMemoryDevice { source })?
            .st_dev;
        // Not every kernel has huge pages.
        let huge_pages = descriptor::memfd_create(c"rckpt", libc::MFD_HUGETLB)
            .and_then(|file| nix::sys::stat::fstat(&file))
            .ok()
            .map(|found| found.st_dev);
        let shared_memory = std::fs::metadata("/dev/shm").ok().map(|found| found.dev());
        Ok(Self {
            drafts: Vec::new(),
            by_stat: HashMap::new(),
            by_map: HashMap::new(),
            by_segment: HashMap::new(),
            huge_segments: HashSet::new(),
            kernel_memory,
            huge_pages,
            shared_memory,
        })
    }

    /// The number of a file that somebody has open.
    pub fn intern(&mut self, found: Found<'_>) -> Result<InodeId, Failure> {
        let source =
            ContentSource::File { path: found.proc_path.clone(), readable: found.readable };
        if found.link == LONG_PATH {
            return Err(RefusalKind::PathTooLong.into());
        }
        if let Some(id) = self.by_stat.get(&found.stat.identity()).copied() {
            self.draft(id).files.push(source);
            return Ok(id);
        }
        let file_system = FileSystem::of(&found.proc_path);
        if file_system == FileSystem::Namespaces {
            return Err(RefusalKind::Namespace.into());
        }
        if file_system == FileSystem::MessageQueues {
            return Err(RefusalKind::MessageQueueDirectory.into());
        }
        let (kind, path) = match self.memory_file_name(found.link, &found.stat, file_system) {
            Some(_) if file_system == FileSystem::HugePages => {
                return Err(RefusalKind::SharedHugePages.into());
            }
            Some(name) => (InodeKind::Memfd { flags: 0, seals: 0 }, Bytes::from(name)),
            None => match locate(found.link, &found.stat, file_system)? {
                Located::Linked(path) => (InodeKind::Linked, path),
                Located::Unlinked(path) => (InodeKind::Unlinked, path),
            },
        };
        let inode = described(kind, path, &found.stat);
        let id = self.insert(inode, file_system, found.user)?;
        self.draft(id).files.push(source);
        self.by_stat.insert(found.stat.identity(), id);
        // Where both numberings agree, which is nearly everywhere, this finds it in maps, too.
        self.by_map.insert(found.stat.identity(), id);
        Ok(id)
    }

    /// The number of a file that a standard stream leads to and no path of this user's. Nothing but
    /// streams may refer to it: anything else would have to be opened again.
    pub fn intern_stream(
        &mut self,
        stat: FileStat,
        path: Bytes,
        holder: (Pid, i32),
    ) -> Result<InodeId, CollectFilesError> {
        let inode = described(InodeKind::Linked, path, &stat);
        let user = (holder.0, Place::Descriptor(holder.1));
        self.insert(inode, FileSystem::Ordinary, user)
    }

    /// The number of a file that somebody has mapped.
    pub fn intern_mapping(&mut self, mapping: &FileMapping<'_>) -> Result<InodeId, Failure> {
        let id = match self.segment_number(mapping)? {
            Some(number) => self.segment(number, mapping)?,
            None => {
                let id = self.intern_mapped_file(mapping)?;
                self.check_mapped(id)?;
                id
            }
        };
        let draft = self.draft(id);
        draft.mapped_shared |= mapping.shared;
        draft.mapped_writable |= mapping.shared && mapping.writable;
        draft.inode.written |= mapping.shared && mapping.may_write;
        draft.segments.push(Segment {
            pid: mapping.pid,
            range: mapping.range,
            first_page: mapping.offset / PAGE_SIZE,
            shared: mapping.shared,
        });
        Ok(id)
    }

    fn intern_mapped_file(&mut self, mapping: &FileMapping<'_>) -> Result<InodeId, Failure> {
        let key = (mapping.device, mapping.inode);
        if let Some(id) = self.by_map.get(&key).copied() {
            return Ok(id);
        }
        let id = self.find_mapped(mapping)?;
        self.by_map.insert(key, id);
        Ok(id)
    }

    /// The number of the segment of System V shared memory that a mapping shows, if it shows one.
    fn segment_number(&self, mapping: &FileMapping<'_>) -> Result<Option<i32>, RefusalKind> {
        if !mapping.path.starts_with(b"/SYSV") || !mapping.path.ends_with(DELETED) {
            return Ok(None);
        }
        if mapping.device == self.kernel_memory || self.is_of_huge_pages(mapping.device) {
            return Ok(i32::try_from(mapping.inode).ok());
        }
        // A deleted file in the root directory may have such a name, too.
        let is_file = std::fs::metadata("/").is_ok_and(|root| root.dev() == mapping.device);
        if is_file { Ok(None) } else { Err(RefusalKind::SegmentOfHugePages) }
    }

    /// Whether this is the device of the kernel's own huge pages of 2 MiB.
    pub fn is_of_huge_pages(&self, device: u64) -> bool {
        self.huge_pages == Some(device)
    }

    /// Whether a segment that somebody has mapped consists of huge pages.
    pub fn segment_is_huge(&self, number: i32) -> bool {
        self.huge_segments.contains(&number)
    }

    fn segment(&mut self, number: i32, mapping: &FileMapping<'_>) -> Result<InodeId, Failure> {
        if let Some(id) = self.by_segment.get(&number) {
            return Ok(*id);
        }
        let name = mapping.path.strip_suffix(DELETED).unwrap_or(mapping.path);
        let inode = hidden_inode(mapping, InodeKind::Segment { id: number }, Bytes::from(name));
        let user = (mapping.pid, Place::Mapping(mapping.range));
        let huge = self.is_of_huge_pages(mapping.device);
        let file_system = if huge { FileSystem::HugePages } else { FileSystem::Memory };
        let id = self.insert(inode, file_system, user)?;
        self.by_segment.insert(number, id);
        if huge {
            self.huge_segments.insert(number);
        }
        Ok(id)
    }

    /// How many mappings of a segment there are.
    pub fn segment_attachments(&self, number: i32) -> u64 {
        let draft = self.by_segment.get(&number).map(|id| &self.drafts[to_usize(u64::from(id.0))]);
        draft.map_or(0, |draft| to_u64(draft.segments.len()))
    }

    /// A process that has a segment mapped.
    pub fn segment_user(&self, number: i32) -> Option<Pid> {
        let id = self.by_segment.get(&number)?;
        Some(self.drafts[to_usize(u64::from(id.0))].user.0)
    }

    /// The file of a segment, which has this size and mode, and consists of huge pages or not.
    pub fn describe_segment(
        &mut self,
        number: i32,
        (size, huge): (u64, bool),
        mode: u32,
        user: Pid,
    ) -> Result<InodeId, CollectFilesError> {
        let id = match self.by_segment.get(&number) {
            Some(id) => *id,
            None => {
                let inode = new_inode(InodeKind::Segment { id: number }, Bytes::default());
                let nowhere = AddrRange { start: RemoteAddr(0), end: RemoteAddr(0) };
                let file_system = if huge { FileSystem::HugePages } else { FileSystem::Memory };
                self.insert(inode, file_system, (user, Place::Mapping(nowhere)))?
            }
        };
        self.by_segment.insert(number, id);
        let draft = self.draft(id);
        draft.inode.size = size;
        draft.inode.mode = libc::S_IFREG | mode & 0o777;
        Ok(id)
    }

    /// Whether a process has only a part of a segment of so many pages mapped.
    pub fn segment_is_in_parts(&self, id: InodeId, pages: u64) -> bool {
        let mut mapped = self.drafts[to_usize(u64::from(id.0))].segments.clone();
        mapped.sort_by_key(|part| (part.pid, part.range.start));
        // Which page has to come next, of whom, and where; none when all of a segment has come.
        let mut next: Option<(u64, Pid, RemoteAddr)> = None;
        for part in mapped {
            let follows = match next {
                None => part.first_page == 0,
                Some(expected) => expected == (part.first_page, part.pid, part.range.start),
            };
            if !follows || part.end_page() > pages {
                return true;
            }
            let end = part.end_page();
            next = (end < pages).then_some((end, part.pid, part.range.end));
        }
        next.is_some()
    }

    /// Notes where a segment that the job has not attached is attached for reading.
    pub fn read_segment_of(&mut self, id: InodeId, pid: Pid, range: AddrRange) {
        self.draft(id).segments.push(Segment { pid, range, first_page: 0, shared: true });
    }

    /// Whether any segment is read in this process.
    pub fn reads_segments_of(&self, pid: Pid) -> bool {
        let mut parts = self.drafts.iter().flat_map(|draft| &draft.segments);
        parts.any(|part| part.pid == pid)
    }

    /// Notes that somebody has the file open for its content, and whether for writing.
    pub fn mark_opened(&mut self, id: InodeId, written: bool) {
        let draft = self.draft(id);
        draft.opened = true;
        draft.inode.written |= written;
    }

    /// Where the files that are known by now can be reached.
    pub fn places(&self) -> Vec<PathBuf> {
        let place = |draft: &Draft| match draft.inode.kind {
            InodeKind::Linked => Some(draft.inode.path.as_path().to_owned()),
            InodeKind::Unlinked => draft.files.iter().find_map(ContentSource::path),
            _ => None,
        };
        self.drafts.iter().filter_map(place).collect()
    }

    /// Notes that somebody has the file open for reading and writing anywhere.
    pub fn mark_changing(&mut self, id: InodeId) {
        self.draft(id).changes_in_place = true;
    }

    /// The named files that are changed in place, with their paths.
    pub fn changing_in_place(&self) -> Vec<(InodeId, Bytes)> {
        let changes = |draft: &Draft| {
            draft.changes_in_place && draft.inode.kind == InodeKind::Linked && is_regular(draft)
        };
        let drafts = (0..).zip(&self.drafts).filter(|(_, draft)| changes(draft));
        drafts.map(|(number, draft)| (InodeId(number), draft.inode.path.clone())).collect()
    }

    /// Has the content of a file go into the image.
    pub fn save(&mut self, id: InodeId) {
        self.draft(id).saved = true;
    }

    /// Notes the seals of a memfd.
    pub fn set_seals(&mut self, id: InodeId, found: u32) {
        if let InodeKind::Memfd { seals, .. } = &mut self.draft(id).inode.kind {
            *seals = found;
        }
    }

    /// Whether the file is a memfd.
    pub fn is_memfd(&mut self, id: InodeId) -> bool {
        matches!(self.draft(id).inode.kind, InodeKind::Memfd { .. })
    }

    /// Decides which contents go into the image, and numbers them from `first_object` on.
    pub fn finish(
        self,
        first_object: u32,
        refusals: &mut Vec<Refusal>,
    ) -> (Vec<Inode>, Vec<Content>) {
        let shared_memory = self.shared_memory;
        let kernel_memory = self.kernel_memory;
        let mut inodes = Vec::with_capacity(self.drafts.len());
        let mut contents = Vec::new();
        let mut next_object = first_object;
        for mut draft in self.drafts {
            if is_memory_file(&draft, shared_memory) {
                draft.inode.kind = InodeKind::MemoryFile;
            }
            if is_made_again(&draft) {
                draft.inode.attributes = attributes_of(&draft);
            }
            if keeps_content(&draft) {
                match choose_source(&mut draft, kernel_memory, shared_memory) {
                    Ok(source) => {
                        let object = ObjectId(next_object);
                        next_object += 1;
                        draft.inode.content = Some(object);
                        let is_file =
                            matches!(draft.inode.kind, InodeKind::Linked | InodeKind::Unlinked);
                        let may_wait = is_file && !draft.mapped_shared && !draft.mapped_writable;
                        let size = draft.inode.size;
                        contents.push(Content { object, size, may_wait, source });
                    }
                    Err(kind) => refusals.push(Refusal {
                        pid: draft.user.0,
                        place: draft.user.1,
                        what: draft.inode.path.clone(),
                        kind,
                    }),
                }
            }
            inodes.push(draft.inode);
        }
        (inodes, contents)
    }

    fn draft(&mut self, id: InodeId) -> &mut Draft {
        let InodeId(index) = id;
        &mut self.drafts[to_usize(u64::from(index))]
    }

    fn insert(
        &mut self,
        inode: Inode,
        file_system: FileSystem,
        user: (Pid, Place),
    ) -> Result<InodeId, CollectFilesError> {
        let id = InodeId(super::index(self.drafts.len())?);
        self.drafts.push(Draft {
            inode,
            file_system,
            checked_as_mapped: false,
            opened: false,
            changes_in_place: false,
            saved: false,
            mapped_shared: false,
            mapped_writable: false,
            files: Vec::new(),
            segments: Vec::new(),
            user,
        });
        Ok(id)
    }

    /// The name of a memfd; `None` for any other file. `/memfd:x (deleted)` could also be the name
    /// of an ordinary file, so the device counts, too.
    fn memory_file_name<'a>(
        &self,
        link: &'a [u8],
        stat: &FileStat,
        file_system: FileSystem,
    ) -> Option<&'a [u8]> {
        let name = link.strip_prefix(b"/memfd:")?.strip_suffix(DELETED)?;
        let hidden = stat.device == self.kernel_memory || file_system == FileSystem::HugePages;
        (hidden && stat.links == 0).then_some(name)
    }

    /// A mapped file that is seen for the first time: found by its path, or known by the mapping
    /// alone.
    fn find_mapped(&mut self, mapping: &FileMapping<'_>) -> Result<InodeId, Failure> {
        let user = (mapping.pid, Place::Mapping(mapping.range));
        if mapping.device == self.kernel_memory || mapping.path.starts_with(b"[anon_shmem:") {
            let (kind, path) = kernel_memory_kind(mapping.path);
            return Ok(self.insert(hidden_inode(mapping, kind, path), FileSystem::Memory, user)?);
        }
        if mapping.path.starts_with(b"/anon_hugepage") || mapping.path.starts_with(b"/memfd:") {
            return Err(RefusalKind::SharedHugePages.into());
        }
        if !mapping.path.starts_with(b"/") {
            return Err(if mapping.path.starts_with(b"(unreachable)") {
                RefusalKind::NotReachable.into()
            } else {
                RefusalKind::MappedDevice.into()
            });
        }
        let path = Path::new(OsStr::from_bytes(mapping.path));
        let stat = std::fs::symlink_metadata(path).ok().map(|found| FileStat::from(&found));
        let file_system = FileSystem::of(path);
        match stat {
            Some(stat) if is_mapped_file(&stat, mapping, file_system) => {
                let found = Found {
                    stat,
                    link: mapping.path,
                    proc_path: path.to_owned(),
                    readable: None,
                    user,
                };
                self.intern(found)
            }
            _ => match mapping.path.strip_suffix(DELETED) {
                Some(path) => {
                    if let Some((stat, path)) = other_name_of_mapped(path, mapping) {
                        let proc_path = path.as_path().to_owned();
                        let link = path.0.as_slice();
                        return self.intern(Found { stat, link, proc_path, readable: None, user });
                    }
                    if let Some(id) = self.find_unlinked(path, mapping.inode) {
                        return Ok(id);
                    }
                    let inode = hidden_inode(mapping, InodeKind::Unlinked, Bytes::from(path));
                    Ok(self.insert(inode, FileSystem::Ordinary, user)?)
                }
                None => Err(RefusalKind::NotReachable.into()),
            },
        }
    }

    /// A deleted file that is known by a descriptor, on a file system that shows other device numbers
    /// in maps than in `stat`.
    fn find_unlinked(&self, path: &[u8], number: u64) -> Option<InodeId> {
        let known = self.drafts.iter().position(|draft| {
            draft.inode.kind == InodeKind::Unlinked
                && draft.inode.number == number
                && draft.inode.path.0 == path
        })?;
        u32::try_from(known).ok().map(InodeId)
    }

    /// Files that can be mapped again are regular ones and /dev/zero; ELF files get their build id.
    fn check_mapped(&mut self, id: InodeId) -> Result<(), Failure> {
        let draft = self.draft(id);
        if draft.checked_as_mapped {
            return Ok(());
        }
        let zero = nix::sys::stat::makedev(1, 5);
        match draft.inode.mode & libc::S_IFMT {
            libc::S_IFCHR if draft.inode.rdev == zero => {}
            libc::S_IFREG => {}
            _ => return Err(RefusalKind::MappedDevice.into()),
        }
        if matches!(draft.file_system, FileSystem::Proc | FileSystem::Kernel) {
            return Err(RefusalKind::MappedDevice.into());
        }
        if draft.inode.kind == InodeKind::Linked {
            // A file that may be executed and not be read is known by its size and time alone.
            let path = draft.inode.path.as_path();
            let read = std::fs::File::open(path).and_then(|file| build_id::build_id(&file));
            draft.inode.build_id = match read {
                Ok(found) => found,
                Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
                Err(source) => {
                    let path = path.to_owned();
                    return Err(CollectFilesError::ReadProc { path, source }.into());
                }
            };
        }
        draft.checked_as_mapped = true;
        Ok(())
    }
}

/// Where a file is.
enum Located {
    /// Under this path.
    Linked(Bytes),
    /// Nowhere; it was under this path.
    Unlinked(Bytes),
}

fn locate(link: &[u8], stat: &FileStat, file_system: FileSystem) -> Result<Located, RefusalKind> {
    if leads_to(link, stat) {
        if file_system == FileSystem::Network && is_silly_rename(link) {
            return Ok(Located::Unlinked(Bytes::from(link)));
        }
        return Ok(Located::Linked(Bytes::from(link)));
    }
    let Some(path) = link.strip_suffix(DELETED) else { return Err(RefusalKind::NotReachable) };
    if stat.links == 0 || stat.file_type() == libc::S_IFDIR {
        return Ok(Located::Unlinked(Bytes::from(path)));
    }
    other_name(path, stat).map(Located::Linked).ok_or(RefusalKind::NameLost { links: stat.links })
}

/// Whether a path leads to the very file that `stat` describes.
fn leads_to(path: &[u8], stat: &FileStat) -> bool {
    std::fs::symlink_metadata(OsStr::from_bytes(path))
        .is_ok_and(|found| FileStat::from(&found).identity() == stat.identity())
}

/// Another name for the file in the directory of `path`: programs write a file under a temporary
/// name, link it to its own and remove the former.
fn other_name(path: &[u8], stat: &FileStat) -> Option<Bytes> {
    let directory = Path::new(OsStr::from_bytes(path)).parent()?;
    for entry in std::fs::read_dir(directory).ok()? {
        let entry = entry.ok()?;
        let path = Bytes::from(entry.path());
        if entry.ino() == stat.number && leads_to(&path.0, stat) {
            return Some(path);
        }
    }
    None
}

/// The same for a file of which only a mapping is known. The C library makes the semaphores of `sem_open` in
/// that way, and whoever opens one later must find the one that is mapped.
fn other_name_of_mapped(path: &[u8], mapping: &FileMapping<'_>) -> Option<(FileStat, Bytes)> {
    let directory = Path::new(OsStr::from_bytes(path)).parent()?;
    let entries = std::fs::read_dir(directory).ok()?.filter_map(Result::ok);
    let mut same_number = entries.filter(|entry| entry.ino() == mapping.inode);
    same_number.find_map(|entry| {
        let stat = FileStat::from(&entry.metadata().ok()?);
        let is_same = stat.identity() == (mapping.device, mapping.inode);
        is_same.then(|| (stat, Bytes::from(entry.path())))
    })
}

/// The hidden name of a deleted file on NFS: `.nfs` and 24 hexadecimal digits
/// (fs/nfs/unlink.c, `nfs_sillyrename`).
fn is_silly_rename(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    name.strip_prefix(b".nfs")
        .is_some_and(|digits| digits.len() >= 16 && digits.iter().all(u8::is_ascii_hexdigit))
}

/// Whether the file that a path leads to is the one mapped. Union file systems and btrfs show other
/// device numbers in maps than in `stat`; a path that is not marked as deleted is then trusted with
/// the inode number, or with less where that differs, too.
fn is_mapped_file(stat: &FileStat, mapping: &FileMapping<'_>, file_system: FileSystem) -> bool {
    stat.number == mapping.inode
        || (file_system == FileSystem::Union && !mapping.path.ends_with(DELETED))
}

/// What a mapping of the kernel's own memory file system is, by the name that maps shows.
fn kernel_memory_kind(path: &[u8]) -> (InodeKind, Bytes) {
    let name = path.strip_prefix(b"/memfd:").and_then(|name| name.strip_suffix(DELETED));
    match name {
        Some(name) if name != ANONYMOUS_SHARED_NAME.as_bytes() => {
            // Seals cannot be seen without a descriptor, nor could anybody ask for them.
            (InodeKind::Memfd { flags: 0, seals: 0 }, Bytes::from(name))
        }
        _ => (InodeKind::AnonymousShared, Bytes::default()),
    }
}

/// A file that `stat` describes.
fn described(kind: InodeKind, path: Bytes, stat: &FileStat) -> Inode {
    Inode {
        device: stat.device,
        number: stat.number,
        mode: stat.mode,
        rdev: stat.rdev,
        size: stat.size,
        mtime: stat.mtime,
        links: stat.links,
        ..new_inode(kind, path)
    }
}

/// A regular file of which only mappings are known.
fn hidden_inode(mapping: &FileMapping<'_>, kind: InodeKind, path: Bytes) -> Inode {
    let mut inode = new_inode(kind, path);
    inode.device = mapping.device;
    inode.number = mapping.inode;
    inode.mode = libc::S_IFREG | 0o600;
    inode
}

fn new_inode(kind: InodeKind, path: Bytes) -> Inode {
    Inode {
        kind,
        path,
        device: 0,
        number: 0,
        mode: 0,
        rdev: 0,
        size: 0,
        mtime: TimeSpec::default(),
        links: 0,
        build_id: None,
        content: None,
        written: false,
        attributes: Vec::new(),
        ends: None,
    }
}

fn is_regular(draft: &Draft) -> bool {
    draft.inode.mode & libc::S_IFMT == libc::S_IFREG
}

/// A named file on a memory file system counts as memory when it is used as such: mapped shared, or
/// written on /dev/shm. Others, like a log in a /tmp of that kind, are files like those on disk.
fn is_memory_file(draft: &Draft, shared_memory: Option<u64>) -> bool {
    draft.inode.kind == InodeKind::Linked
        && is_regular(draft)
        && matches!(draft.file_system, FileSystem::Memory)
        && (draft.mapped_shared
            || (draft.inode.written && shared_memory == Some(draft.inode.device)))
}

/// What no path leads to has to be kept, what changes under the job's hands without a call (a shared
/// writable mapping), and what will be gone by the time of a restore: temporary files.
fn keeps_content(draft: &Draft) -> bool {
    is_regular(draft)
        && match draft.inode.kind {
            InodeKind::Linked => draft.saved || draft.mapped_writable || is_temporary(draft),
            InodeKind::Unlinked
            | InodeKind::MemoryFile
            | InodeKind::Memfd { .. }
            | InodeKind::AnonymousShared
            | InodeKind::Segment { .. } => true,
        }
}

/// Whether a restore makes the file anew, rather than finding it.
const fn is_made_again(draft: &Draft) -> bool {
    matches!(
        draft.inode.kind,
        InodeKind::Unlinked | InodeKind::MemoryFile | InodeKind::Memfd { .. }
    )
}

/// The extended attributes of a file, as far as anything leads to it that tells them.
fn attributes_of(draft: &Draft) -> Vec<(Bytes, Bytes)> {
    let mut paths = draft.files.iter().filter_map(ContentSource::path);
    let found = paths.find_map(|path| attributes::of(&path).ok()).unwrap_or_default();
    found.into_iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect()
}

/// Whether a file is one of those that programs make for the moment and remove when they are done,
/// like those between the passes of a compiler: open, not large, and in a directory for temporary files
/// or in one that a program has made there. A job that runs on after its checkpoint soon removes them.
fn is_temporary(draft: &Draft) -> bool {
    const LARGEST: u64 = 16 << 20;
    let directories = [PathBuf::from("/tmp"), PathBuf::from("/var/tmp"), std::env::temp_dir()];
    let mut above = draft.inode.path.as_path().ancestors().skip(1).take(2);
    draft.opened
        && draft.inode.size <= LARGEST
        && above.any(|above| directories.iter().any(|directory| directory == above))
}

/// The best way to read the content of a file. Fills in the size of one that is only mapped.
fn choose_source(
    draft: &mut Draft,
    kernel_memory: u64,
    shared_memory: Option<u64>,
) -> Result<ContentSource, RefusalKind> {
    let mut reason = None;
    for source in std::mem::take(&mut draft.files) {
        match source.probe() {
            Ok(()) => return Ok(source),
            Err(error) => reason = Some(error.to_string()),
        }
    }
    if let Some(reason) = reason {
        return Err(RefusalKind::ContentUnreadable { reason });
    }
    let segments = std::mem::take(&mut draft.segments);
    if matches!(draft.inode.kind, InodeKind::Segment { .. }) {
        // Its size is known, and every mapping shows all of it. A process tells of huge pages only whether
        // itself has used them, so all are read.
        let holes = draft.file_system != FileSystem::HugePages;
        return Ok(ContentSource::Mapped { segments, holes });
    }
    draft.inode.size = mapped_size(&segments)
        .map_err(|error| RefusalKind::MappedContentUnreadable { reason: error.to_string() })?;
    let in_memory = [Some(kernel_memory), shared_memory].contains(&Some(draft.inode.device));
    Ok(ContentSource::Mapped { segments, holes: in_memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat_of(path: &Path) -> FileStat {
        FileStat::from(&std::fs::symlink_metadata(path).unwrap())
    }

    fn bytes(path: &Path) -> Vec<u8> {
        path.as_os_str().as_bytes().to_vec()
    }

    #[test]
    fn a_file_under_its_path_is_linked() {
        let directory = tempfile::tempdir().unwrap();
        // A name that looks like the kernel's mark for deleted files is taken at its word.
        let path = directory.path().join("x (deleted)");
        std::fs::write(&path, "").unwrap();
        let located = locate(&bytes(&path), &stat_of(&path), FileSystem::Ordinary);
        assert!(matches!(located, Ok(Located::Linked(found)) if found.0 == bytes(&path)));
    }

    #[test]
    fn a_second_name_is_found_in_the_same_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        std::fs::write(&first, "").unwrap();
        std::fs::hard_link(&first, &second).unwrap();
        std::fs::remove_file(&first).unwrap();
        let stat = stat_of(&second);
        let link = [&bytes(&first)[..], DELETED].concat();
        let located = locate(&link, &stat, FileSystem::Ordinary);
        assert!(matches!(located, Ok(Located::Linked(found)) if found.0 == bytes(&second)));
        std::fs::rename(&second, directory.path().parent().unwrap().join("rckpt-moved")).unwrap();
        let located = locate(&link, &stat, FileSystem::Ordinary);
        std::fs::remove_file(directory.path().parent().unwrap().join("rckpt-moved")).unwrap();
        assert!(matches!(located, Err(RefusalKind::NameLost { links: 1 })));
    }

    #[test]
    fn a_replaced_file_is_not_reachable() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        std::fs::write(&one, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let located = locate(&bytes(&one), &stat_of(&other), FileSystem::Ordinary);
        assert!(matches!(located, Err(RefusalKind::NotReachable)));
    }

    #[test]
    fn hidden_names_of_nfs() {
        assert!(is_silly_rename(b"/home/u/.nfs000000000a1b2c3d00000001"));
        assert!(!is_silly_rename(b"/home/u/.nfsrc"));
        assert!(!is_silly_rename(b"/home/u/.nfs000000000a1b2c3d00000001/x"));
    }

    #[test]
    fn mappings_of_kernel_memory_are_told_apart() {
        let kind = |path: &str| kernel_memory_kind(path.as_bytes()).0;
        let memfd = InodeKind::Memfd { flags: 0, seals: 0 };
        assert_eq!(kind("/dev/zero (deleted)"), InodeKind::AnonymousShared);
        assert_eq!(kind("[anon_shmem:x]"), InodeKind::AnonymousShared);
        assert_eq!(kind("/memfd:x (deleted)"), memfd);
        assert_eq!(kind("/memfd:rckpt-shared-anonymous (deleted)"), InodeKind::AnonymousShared);
    }
}
