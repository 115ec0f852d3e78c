//! A whole job: every record of one checkpoint, cross-referenced by index.

use serde::{Deserialize, Serialize};

use super::file::{FdTable, FsContext, Inode, OpenFile, Outputs, Pipe};
use super::id::{Bytes, Pid};
use super::ipc::Ipc;
use super::memory::AddressSpace;
use super::process::Process;
use super::socket::Socket;
use super::terminal::Terminals;
use super::time::Clocks;

/// The machine that the checkpoint was taken on, as far as a restore depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Host name.
    pub host: Bytes,
    /// Kernel release (`uname -r`).
    pub kernel: Bytes,
    /// CPU model name, for messages.
    pub cpu: Bytes,
    /// CPU feature flags as /proc/cpuinfo lists them, sorted.
    pub cpu_flags: Vec<String>,
    /// XCR0: which parts of the extended state the kernel has switched on.
    pub xcr0: u64,
    /// Offset and size in bytes of each extended state component in the standard format, by
    /// component number from 2 on (CPUID leaf 0xd).
    pub xstate_components: Vec<(u32, u32)>,
    /// Boot id (/proc/sys/kernel/random/boot_id).
    pub boot_id: Bytes,
    /// Directories that the machine or its batch system gave for temporary files: the variables that
    /// named them in rckpt's or the job's environment, and the paths.
    pub temporary: Vec<(Bytes, Bytes)>,
}

/// The vDSO that the job ran with, to find its entry points again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdsoImage {
    /// Its bytes, a whole ELF image.
    pub bytes: Vec<u8>,
}

/// One checkpoint of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Stable identity of the job over all its generations.
    pub id: Bytes,
    /// The command line of its root process.
    pub command: Vec<Bytes>,
    /// Its root process.
    pub root: Pid,
    /// Where it was taken.
    pub machine: Machine,
    /// When it was taken.
    pub clocks: Clocks,
    /// The vDSO.
    pub vdso: VdsoImage,
    /// Processes, each after its parent.
    pub processes: Vec<Process>,
    /// Address spaces.
    pub address_spaces: Vec<AddressSpace>,
    /// Tables of descriptors.
    pub fd_tables: Vec<FdTable>,
    /// Directories and umasks.
    pub fs: Vec<FsContext>,
    /// Open file descriptions.
    pub open_files: Vec<OpenFile>,
    /// Files.
    pub inodes: Vec<Inode>,
    /// Pipes.
    pub pipes: Vec<Pipe>,
    /// Sockets.
    pub sockets: Vec<Socket>,
    /// Pseudo-terminals that the job has made, and what concerns the outer one.
    pub terminals: Terminals,
    /// System V shared memory, semaphores and message queues.
    pub ipc: Ipc,
    /// Named outputs.
    pub outputs: Outputs,
    /// Number of page objects in use; every `ObjectId` is below it.
    pub objects: u32,
}

impl Job {
    /// Whether a process has its memory in common with its parent without being its thread (CLONE_VM).
    #[must_use]
    pub fn shares_memory(&self, process: &Process) -> bool {
        let has_same = |other: &Process| !other.is_zombie() && other.mm == process.mm;
        let mut parents = self.processes.iter().filter(|other| other.pid == process.ppid);
        !process.is_zombie() && parents.any(has_same)
    }
}
