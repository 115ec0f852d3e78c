//! Lists every descriptor of every table, and finds which of them share an open file description.
//!
//! It reads /proc and compares by kcmp(2); what the descriptions are is classified elsewhere.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::Pid;

use super::CollectFilesError;
use super::identity::number_classes;
use crate::sys::descriptor;
use crate::sys::fdinfo::{self, FdInfo};

/// What `stat` says about a file, as far as it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStat {
    pub device: u64,
    pub number: u64,
    pub mode: u32,
    pub rdev: u64,
    pub size: u64,
    pub links: u64,
    pub mtime: crate::model::time::TimeSpec,
}

impl FileStat {
    /// Device and inode number.
    pub const fn identity(&self) -> (u64, u64) {
        (self.device, self.number)
    }

    /// The type bits of the mode.
    pub const fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

impl From<&Metadata> for FileStat {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            number: metadata.ino(),
            mode: metadata.mode(),
            rdev: metadata.rdev(),
            size: metadata.size(),
            links: metadata.nlink(),
            mtime: crate::model::time::TimeSpec {
                seconds: metadata.mtime(),
                nanoseconds: metadata.mtime_nsec(),
            },
        }
    }
}

/// A descriptor in a table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Index of the table.
    pub table: usize,
    /// The descriptor.
    pub number: i32,
    /// What fdinfo says through this descriptor.
    pub info: FdInfo,
}

/// An open file description and the descriptors that refer to it.
#[derive(Clone, Debug)]
pub(super) struct Description {
    /// A process that has it, as rckpt sees it, and under which number.
    pub holder: (Pid, i32),
    /// What `stat` says.
    pub stat: FileStat,
    /// Target of the link in /proc/PID/fd.
    pub link: Vec<u8>,
    /// What fdinfo says through the holder's descriptor.
    pub info: FdInfo,
    /// All descriptors of the job, the first of them the holder's; none when the description is on its
    /// way to somebody, and the holder is rckpt.
    pub entries: Vec<Entry>,
}

impl Description {
    /// Status flags and access mode.
    pub fn flags(&self) -> u32 {
        // The flag belongs to the descriptor, not to the description.
        self.info.flags & !libc::O_CLOEXEC.cast_unsigned()
    }

    /// O_RDONLY, O_WRONLY or O_RDWR.
    pub fn access(&self) -> i32 {
        self.flags().cast_signed() & libc::O_ACCMODE
    }

    /// Position.
    pub fn position(&self) -> u64 {
        self.info.position
    }

    /// The link in /proc that leads to the file.
    pub fn proc_path(&self) -> PathBuf {
        descriptor_path(self.holder.0, self.holder.1)
    }
}

/// The link in /proc for a descriptor.
pub(super) fn descriptor_path(pid: Pid, number: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/fd/{number}"))
}

/// Lists the descriptors of the tables, each given by a process that uses it, and groups them by
/// description. Descriptions come in the order of their first descriptors.
pub(super) fn descriptions(tables: &[Pid]) -> Result<Vec<Description>, CollectFilesError> {
    let mut found = Vec::new();
    for (table, pid) in tables.iter().enumerate() {
        for number in numbers(*pid)? {
            found.push(look_at(table, *pid, number)?);
        }
    }
    // Only descriptors of one file can share a description, so that is what is compared.
    let mut by_file: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
    for (index, (stat, entry)) in found.iter().enumerate() {
        let _: &Entry = entry;
        by_file.entry(stat.identity()).or_default().push(index);
    }
    // For each descriptor: the first one with the same description.
    let mut first_of: Vec<usize> = (0..found.len()).collect();
    for members in by_file.values().filter(|members| members.len() > 1) {
        let place = |index: usize| (tables[found[index].1.table], found[index].1.number);
        let classes = number_classes(members, |left, right| {
            descriptor::compare_files(place(*left), place(*right)).map_err(|source| {
                let (pid, number) = place(*right);
                CollectFilesError::CompareDescriptors { pid, number, source }
            })
        })?;
        let mut firsts: BTreeMap<usize, usize> = BTreeMap::new();
        for (member, class) in members.iter().zip(classes) {
            first_of[*member] = *firsts.entry(class).or_insert(*member);
        }
    }
    let mut descriptions: Vec<Description> = Vec::new();
    let mut place_of: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, (stat, entry)) in found.into_iter().enumerate() {
        if first_of[index] == index {
            let holder = (tables[entry.table], entry.number);
            place_of.insert(index, descriptions.len());
            let link = read_link(&descriptor_path(holder.0, holder.1))?;
            let info = entry.info.clone();
            descriptions.push(Description { holder, stat, link, info, entries: vec![entry] });
        } else {
            descriptions[place_of[&first_of[index]]].entries.push(entry);
        }
    }
    Ok(descriptions)
}

/// What [`read_link`] gives for a path that the kernel does not show, as it fills more than a page.
pub(super) const LONG_PATH: &[u8] = b"a path of more than 4095 bytes";

/// Target of a link in /proc, as bytes.
pub(super) fn read_link(path: &std::path::Path) -> Result<Vec<u8>, CollectFilesError> {
    match std::fs::read_link(path) {
        Ok(target) => Ok(target.as_os_str().as_bytes().to_vec()),
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => Ok(LONG_PATH.to_vec()),
        Err(source) => Err(CollectFilesError::ReadProc { path: path.to_owned(), source }),
    }
}

/// What `stat` says about the target of a link in /proc.
pub(super) fn stat(path: &std::path::Path) -> Result<FileStat, CollectFilesError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(FileStat::from(&metadata)),
        Err(source) => Err(CollectFilesError::ReadProc { path: path.to_owned(), source }),
    }
}

fn numbers(pid: Pid) -> Result<Vec<i32>, CollectFilesError> {
    let failed = |source| CollectFilesError::ListDescriptors { pid, source };
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A description of the job that no table has, under a descriptor of rckpt itself.
pub(super) fn on_its_way(number: i32) -> Result<Description, CollectFilesError> {
    let holder = (nix::unistd::getpid(), number);
    let (stat, Entry { info, .. }) = look_at(0, holder.0, number)?;
    let link = read_link(&descriptor_path(holder.0, number))?;
    Ok(Description { holder, stat, link, info, entries: Vec::new() })
}

fn look_at(table: usize, pid: Pid, number: i32) -> Result<(FileStat, Entry), CollectFilesError> {
    let stat = stat(&descriptor_path(pid, number))?;
    let info = info(pid, number)?;
    Ok((stat, Entry { table, number, info }))
}

/// What fdinfo says through a descriptor right now.
pub(super) fn info(pid: Pid, number: i32) -> Result<FdInfo, CollectFilesError> {
    let path = PathBuf::from(format!("/proc/{pid}/fdinfo/{number}"));
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(source) => return Err(CollectFilesError::ReadProc { path, source }),
    };
    fdinfo::parse(&content).map_err(|source| CollectFilesError::ParseFdInfo { pid, number, source })
}
