//! An address space: its mappings and the areas that the kernel remembers by name.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use super::address::{AddrRange, RemoteAddr};
use super::id::{Bytes, InodeId, ObjectId, OpenFileId};

bitflags! {
    /// Access that a mapping allows: PROT_* bits.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Prot: u32 {
        /// PROT_READ
        const READ = 1;
        /// PROT_WRITE
        const WRITE = 2;
        /// PROT_EXEC
        const EXEC = 4;
    }
}

bitflags! {
    /// What else is set on a mapping, from the two-letter codes of `VmFlags` in smaps. Only flags
    /// that a restore has to set again are kept; any code that is neither here nor known to be a
    /// consequence of these is refused at dump.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct VmaFlags: u32 {
        /// `gd`: MAP_GROWSDOWN
        const GROWS_DOWN = 1;
        /// `nr`: MAP_NORESERVE
        const NO_RESERVE = 1 << 1;
        /// `lo`: mlock
        const LOCKED = 1 << 2;
        /// `lf`: mlock2(MLOCK_ONFAULT)
        const LOCK_ON_FAULT = 1 << 3;
        /// `dd`: MADV_DONTDUMP
        const DONT_DUMP = 1 << 4;
        /// `dc`: MADV_DONTFORK
        const DONT_FORK = 1 << 5;
        /// `wf`: MADV_WIPEONFORK
        const WIPE_ON_FORK = 1 << 6;
        /// `hg`: MADV_HUGEPAGE
        const HUGE_PAGE = 1 << 7;
        /// `nh`: MADV_NOHUGEPAGE
        const NO_HUGE_PAGE = 1 << 8;
        /// `sr`: MADV_SEQUENTIAL
        const SEQUENTIAL = 1 << 9;
        /// `rr`: MADV_RANDOM
        const RANDOM = 1 << 10;
        /// `mg`: MADV_MERGEABLE
        const MERGEABLE = 1 << 11;
        /// `ht`: hugetlb
        const HUGETLB = 1 << 12;
        /// `sl`: mseal
        const SEALED = 1 << 13;
        /// `ac`: counted against the commit limit
        const ACCOUNTED = 1 << 14;
        /// `mw`: may ever become writable; absent on shared mappings of files opened read-only
        const MAY_WRITE = 1 << 15;
        /// `dp`: MAP_DROPPABLE: the kernel may drop its pages whenever it needs room, so that none are
        /// saved. The C library keeps states of getrandom(2) in such mappings.
        const DROPPABLE = 1 << 16;
    }
}

/// What a mapping shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory: heap, stacks, most mappings.
    Anonymous,
    /// A file, mapped privately (its written pages are in the address space's object) or shared.
    /// Shared memory of every kind is a shared mapping of an inode, too.
    File {
        /// The file.
        inode: InodeId,
        /// Offset of the first mapped byte in the file, page-aligned.
        offset: u64,
        /// MAP_SHARED.
        shared: bool,
    },
    /// The kernel's code for calls that need no kernel (`[vdso]`). Never stored.
    Vdso,
    /// The data that goes with it (`[vvar]`, `[vvar_vclock]`). Never stored.
    Vvar,
    /// The ring of a context of asynchronous I/O, by whose address this is known.
    AioRing,
    /// Memory of a ring of io_uring, shared with the kernel and everybody who has it mapped.
    IoUring {
        /// The ring.
        file: OpenFileId,
        /// Which part of it, as an offset that the kernel knows.
        offset: u64,
    },
}

impl Backing {
    /// Whether the process has pages of its own there, which are in the object of its address space.
    #[must_use]
    pub const fn is_private(&self) -> bool {
        match self {
            Self::Anonymous | Self::File { shared: false, .. } => true,
            Self::File { shared: true, .. }
            | Self::Vdso
            | Self::Vvar
            | Self::AioRing
            | Self::IoUring { .. } => false,
        }
    }
}

/// A context of asynchronous I/O (`io_setup`), in which no request is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AioContext {
    /// Where its ring is mapped, all of it.
    pub start: RemoteAddr,
    /// Places in the ring (`nr`), which follow from its size.
    pub places: u32,
    /// The place of the oldest event that nobody has taken.
    pub head: u32,
    /// The place that the next event goes to.
    pub tail: u32,
    /// The events from `head` to `tail`: `struct io_event`, word by word.
    pub events: Vec<[u64; 4]>,
}

impl AioContext {
    /// How many events wait in a ring of so many places.
    #[must_use]
    pub const fn waiting(places: u32, head: u32, tail: u32) -> u32 {
        if head <= tail { tail - head } else { places - head + tail }
    }
}

/// From which NUMA nodes memory is taken (`set_mempolicy(2)`, `mbind(2)`), as get_mempolicy(2) tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// MPOL_*, with MPOL_F_STATIC_NODES and the like; 0: the default one, which has no nodes.
    pub mode: u32,
    /// The nodes: the kernel's bit mask, low nodes first, without zero bytes at the end.
    pub nodes: Vec<u8>,
}

impl MemoryPolicy {
    /// Whether it is what everything starts with.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.mode == 0
    }
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    /// Where it lies, page-aligned.
    pub range: AddrRange,
    /// Access.
    pub prot: Prot,
    /// Other properties.
    pub flags: VmaFlags,
    /// What it shows.
    pub backing: Backing,
    /// Name given with PR_SET_VMA_ANON_NAME.
    pub name: Option<Bytes>,
    /// From which nodes its memory is taken, where not as the thread's policy says.
    pub policy: Option<MemoryPolicy>,
}

/// The areas that `PR_SET_MM_MAP` sets: what /proc shows as arguments, environment, heap and stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are those of `struct prctl_mm_map`.
pub struct MmAreas {
    pub start_code: RemoteAddr,
    pub end_code: RemoteAddr,
    pub start_data: RemoteAddr,
    pub end_data: RemoteAddr,
    pub start_brk: RemoteAddr,
    pub brk: RemoteAddr,
    pub start_stack: RemoteAddr,
    pub arg_start: RemoteAddr,
    pub arg_end: RemoteAddr,
    pub env_start: RemoteAddr,
    pub env_end: RemoteAddr,
    /// The auxiliary vector as /proc/pid/auxv gives it.
    pub auxv: Vec<u8>,
}

/// A range of guard pages (MADV_GUARD_INSTALL).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRange(pub AddrRange);

/// An address space, shared by the tasks that refer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressSpace {
    /// Mappings, ascending and not overlapping.
    pub vmas: Vec<Vma>,
    /// Named areas.
    pub areas: MmAreas,
    /// The executable (`/proc/pid/exe`).
    pub executable: InodeId,
    /// Where the page data of private memory is kept. Page `n` of this object is the page at
    /// address `n * 4096`; a page that is absent is as a fresh mapping would show it.
    pub object: ObjectId,
    /// Contexts of asynchronous I/O, each with a mapping of its ring, ascending.
    pub aio: Vec<AioContext>,
    /// Guard pages, ascending.
    pub guards: Vec<GuardRange>,
    /// PR_SET_DUMPABLE.
    pub dumpable: u32,
    /// What PR_GET_THP_DISABLE tells: bit 0: disabled; bit 1: but where asked for by madvise.
    pub thp_disabled: u32,
    /// PR_SET_MDWE bits.
    pub mdwe: u32,
    /// PR_SET_MEMORY_MERGE.
    pub memory_merge: bool,
    /// /proc/pid/coredump_filter.
    pub coredump_filter: u32,
    /// Commands registered with membarrier(2), as MEMBARRIER_CMD_GET_REGISTRATIONS gives them.
    pub membarrier: u32,
}
