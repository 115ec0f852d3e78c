//! What each file of a job is needed for: a pure function of the records.

use crate::model::file::OpenFileKind;
use crate::model::id::InodeId;
use crate::model::job::Job;
use crate::model::memory::Backing;
use crate::model::number::to_usize;
use crate::restore::script::writes_through;

/// What a file is needed for. Files that nothing but a standard stream leads to are needed for
/// nothing: the streams of the restoring command take their place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// A description other than a stream refers to it.
    pub opened: bool,
    /// One of them was opened with more than O_PATH, and so depends on the content.
    pub content: bool,
    /// One of them can write.
    pub writes: bool,
    /// It is mapped, or is an executable.
    pub mapped: bool,
    /// It is mapped shared, by a mapping that may write through.
    pub writes_through: bool,
    /// It is a working directory.
    pub directory: bool,
    /// The user wanted to have it saved whole.
    pub saved: bool,
}

impl Usage {
    /// Whether it is needed at all.
    #[must_use]
    pub const fn is_needed(&self) -> bool {
        self.opened || self.mapped || self.directory || self.saved
    }
}

/// The uses of all files, by index.
#[must_use]
pub fn of_all(job: &Job) -> Vec<Usage> {
    let mut uses = vec![Usage::default(); job.inodes.len()];
    // References of an image have been checked when it was read.
    let mut note = |inode: InodeId, what: &dyn Fn(&mut Usage)| {
        if let Some(usage) = uses.get_mut(to_usize(u64::from(inode.0))) {
            what(usage);
        }
    };
    for file in &job.open_files {
        let writes = file.flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY;
        match &file.kind {
            OpenFileKind::Regular { inode, .. } => note(*inode, &|usage| {
                usage.opened = true;
                usage.content = true;
                usage.writes |= writes;
            }),
            OpenFileKind::Directory { inode, .. }
            | OpenFileKind::Path { inode }
            | OpenFileKind::Fifo { inode, .. }
            | OpenFileKind::Device { inode } => note(*inode, &|usage| usage.opened = true),
            OpenFileKind::Inotify { watches } => {
                for watch in watches {
                    note(watch.inode, &|usage| usage.opened = true);
                }
            }
            OpenFileKind::PidFd { .. }
            | OpenFileKind::MessageQueue { .. }
            | OpenFileKind::IoUring { .. }
            | OpenFileKind::Stream { .. }
            | OpenFileKind::Pipe { .. }
            | OpenFileKind::ControllingTerminal
            | OpenFileKind::PseudoTerminal { .. }
            | OpenFileKind::EventFd { .. }
            | OpenFileKind::TimerFd { .. }
            | OpenFileKind::SignalFd { .. }
            | OpenFileKind::Epoll { .. }
            | OpenFileKind::OwnMemory { .. }
            | OpenFileKind::Proc { .. }
            | OpenFileKind::Socket { .. } => {}
        }
    }
    for space in &job.address_spaces {
        note(space.executable, &|usage| usage.mapped = true);
        for vma in &space.vmas {
            if let Backing::File { inode, .. } = vma.backing {
                let through = writes_through(vma);
                note(inode, &|usage| {
                    usage.mapped = true;
                    usage.writes_through |= through;
                });
            }
        }
    }
    for id in &job.outputs.saved.files {
        note(*id, &|usage| usage.saved = true);
    }
    for context in &job.fs {
        note(context.cwd, &|usage| usage.directory = true);
    }
    uses
}
