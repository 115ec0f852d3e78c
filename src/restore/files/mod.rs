//! Files at restore: checks before anything is touched, rollback, and opening each description once.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};
use thiserror::Error;

use super::opened::Opened;
use super::plan::Plan;
use super::script::writes_through;
use crate::model::file::{OpenFile, OpenFileKind, Stream};
use crate::model::id::{Bytes, InodeId, OpenFileId};
use crate::model::job::Job;
use crate::model::memory::Backing;
use crate::sys::descriptor;

/// What was decided about the job's files beforehand.
#[derive(Clone, Debug, Default)]
pub struct Decisions {}

/// Everything that was opened, and what is still to be done to it once it has its content.
#[derive(Debug)]
pub struct OpenedJob {
    /// The numbers.
    pub opened: Opened,
}

/// Why a file could not be opened again.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum OpenError {
    #[error("opening {path} again: {source}")]
    Open { path: Bytes, source: io::Error },
    #[error("open file {file:?} cannot be brought back yet: {kind:?}")]
    Unsupported { file: OpenFileId, kind: OpenFileKind },
}

/// Opens every description of the job once, and every mapped file.
///
/// # Errors
/// When one cannot be opened.
pub fn open_all(job: &Job, plan: &Plan, decisions: &Decisions) -> Result<OpenedJob, OpenError> {
    let Decisions {} = decisions;
    let first = plan.first_private_fd;
    let mut opened = Opened { first, ..Opened::default() };
    for (number, file) in (0..).zip(&job.open_files) {
        let descriptor = open_one(job, plan, OpenFileId(number), file)?;
        opened.files.push(descriptor);
    }
    opened.mapped = open_mapped(job, plan)?;
    Ok(OpenedJob { opened })
}

/// What can only be done once memory and files have their content.
///
/// # Errors
/// When it fails.
pub fn settle(job: &Job, opened: &OpenedJob) -> Result<(), OpenError> {
    assert_eq!(job.open_files.len(), opened.opened.files.len());
    Ok(())
}

fn open_one(job: &Job, plan: &Plan, id: OpenFileId, file: &OpenFile) -> Result<RawFd, OpenError> {
    let flags = OFlag::from_bits_truncate(file.flags.cast_signed());
    match &file.kind {
        OpenFileKind::Regular { inode, position } => {
            let descriptor = open_inode(job, plan, *inode, flags)?;
            let offset = i64::try_from(*position).unwrap_or(i64::MAX);
            lseek(&descriptor, offset, Whence::SeekSet).map_err(|errno| OpenError::Open {
                path: plan.path_of(*inode, job),
                source: errno.into(),
            })?;
            keep(descriptor, plan)
        }
        OpenFileKind::Device { inode } => keep(open_inode(job, plan, *inode, flags)?, plan),
        OpenFileKind::Stream { stream, .. } => {
            let own = match stream {
                Stream::Input => descriptor::duplicate_above(io::stdin(), plan.first_private_fd),
                Stream::Output => descriptor::duplicate_above(io::stdout(), plan.first_private_fd),
                Stream::Error => descriptor::duplicate_above(io::stderr(), plan.first_private_fd),
            };
            let own = own.map_err(|errno| OpenError::Open {
                path: Bytes::default(),
                source: errno.into(),
            })?;
            keep(own, plan)
        }
        kind => Err(OpenError::Unsupported { file: id, kind: kind.clone() }),
    }
}

fn open_inode(job: &Job, plan: &Plan, inode: InodeId, flags: OFlag) -> Result<OwnedFd, OpenError> {
    let path = plan.path_of(inode, job);
    open(path.as_path(), flags | OFlag::O_NOCTTY, Mode::empty())
        .map_err(|errno| OpenError::Open { path, source: errno.into() })
}

/// Moves a descriptor up and leaves it open over exec.
fn keep(descriptor: OwnedFd, plan: &Plan) -> Result<RawFd, OpenError> {
    let fail =
        |errno: nix::errno::Errno| OpenError::Open { path: Bytes::default(), source: errno.into() };
    let descriptor = descriptor::move_above(descriptor, plan.first_private_fd).map_err(fail)?;
    descriptor::set_close_on_exec(&descriptor, false).map_err(fail)?;
    let number = descriptor.as_raw_fd();
    descriptor::leave_open(descriptor);
    Ok(number)
}

fn open_mapped(job: &Job, plan: &Plan) -> Result<BTreeMap<(InodeId, bool), RawFd>, OpenError> {
    let mut wanted: Vec<(InodeId, bool)> = Vec::new();
    for space in &job.address_spaces {
        wanted.push((space.executable, false));
        for vma in &space.vmas {
            if let Backing::File { inode, .. } = vma.backing {
                wanted.push((inode, writes_through(vma)));
            }
        }
    }
    wanted.sort();
    wanted.dedup();
    let mut mapped = BTreeMap::new();
    for (inode, write) in wanted {
        let flags = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        mapped.insert((inode, write), keep(open_inode(job, plan, inode, flags)?, plan)?);
    }
    Ok(mapped)
}
