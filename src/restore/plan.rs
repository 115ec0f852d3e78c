//! The restore plan: a pure function of the image and of what this machine is like.
//!
//! It decides everything that can be decided without touching anything, and finds out beforehand what
//! would fail. `rckpt restore --dry-run` prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::RawFd;

use serde::Serialize;
use thiserror::Error;

use super::blob::{self, Placement};
use super::inheritance::{self, Hashes, Inheritance};
use super::numbers;
use super::opened::Mapped;
use super::script::{self, Capabilities, Occupancy};
use super::vdso::{self, Placed, VdsoError};
use crate::image::Chunk;
use crate::model::address::RemoteAddr;
use crate::model::births::{self, Birth, BirthError, Role};
use crate::model::id::{Bytes, InodeId, ObjectId, Pid};
use crate::model::job::{Job, Machine};

use crate::model::code::{self, Code};
use crate::model::number::{PAGE_SIZE, to_u64};
use crate::model::process::{Process, ResourceLimit};
use crate::model::time::{Clocks, TimeSpec};

/// What the plan depends on beside the image.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// This machine.
    pub machine: Machine,
    /// The caller's user id.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// The caller's capabilities, in the order of [`crate::model::process::Credentials`].
    pub capabilities: [u64; 5],
    /// The NUMA nodes that the caller may have memory from: a bit mask, low nodes first.
    pub nodes: Vec<u8>,
    /// Whether the caller may choose process ids here (CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN).
    pub may_choose_pids: bool,
    /// Whether the caller may raise hard limits (CAP_SYS_RESOURCE).
    pub may_raise_limits: bool,
    /// Those of the job's ids that other tasks have here.
    pub taken: Vec<Pid>,
    /// Whether a number of the job's own terminals has been taken by another one here.
    pub terminals_taken: bool,
    /// The bytes of this kernel's vDSO.
    pub vdso: Vec<u8>,
    /// Bytes from the vDSO's first data page to its end.
    pub vdso_span: u64,
    /// Whether `timer_create` can be told the id.
    pub timer_ids: bool,
    /// Memory that the kernel thinks it can give, swap included, in bytes.
    pub available_memory: u64,
    /// The caller's resource limits, by their numbers.
    pub limits: Vec<ResourceLimit>,
    /// The clocks here, in the initial time namespace.
    pub clocks: Clocks,
}

/// Which process ids the job gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Identity {
    /// Its own, in the caller's pid namespace.
    InPlace,
    /// Its own, in a pid namespace (and mount, and time) of its own; in a user namespace too when
    /// the caller has no privilege.
    Namespaces {
        /// Whether a user namespace is needed.
        user: bool,
    },
}

/// What a living process needs beside its records.
#[derive(Clone, Debug)]
pub struct ProcessPlan {
    /// Where its blob lies.
    pub placement: Placement,
    /// Which of its pages are filled.
    pub occupancy: Occupancy,
    /// What it has for a vDSO; `None` when it has unmapped its own.
    pub vdso: Option<Placed>,
    /// The number, free in every table of the job, by which it knows its executable until the end of
    /// its restore.
    pub executable_fd: RawFd,
    /// How it comes to its blob.
    pub start: Start,
    /// The capabilities that it is to have, when these are not those that its restorer has.
    pub capabilities: Option<Capabilities>,
    /// Children that share its table of descriptors or its memory.
    pub sharers: Vec<births::Sharer>,
}

/// How a process comes to its blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It executes it.
    Execute {
        /// Address of the first step of the script.
        first_step: u64,
        /// Stack pointer to start with.
        stack: u64,
    },
    /// Its parent, at this index of the job's processes, clones it with its table of descriptors or memory.
    Clone {
        /// The parent.
        parent: usize,
    },
}

/// How the job is brought back.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which ids it gets.
    pub identity: Identity,
    /// The id of a process that takes the place of the root's parent; `None`: init itself does, or
    /// the supervisor in place.
    pub parent: Option<Pid>,
    /// The clocks that it is to see at its start; `None` to leave them as they are.
    pub clocks: Option<Clocks>,
    /// The forks.
    pub births: Vec<Birth>,
    /// One entry a process of the job; `None` for zombies.
    pub processes: Vec<Option<ProcessPlan>>,
    /// Descriptors that are free of the job's own numbers, and of the executables'.
    pub private_fds: Range<RawFd>,
    /// Whether `timer_create` can be told the id.
    pub timer_ids: bool,
    /// The resource limits to set, one list a process of the job.
    pub limits: Vec<Vec<ResourceLimit>>,
    /// Moved places, `--map OLD=NEW`.
    pub moved: Vec<(Bytes, Bytes)>,
    /// The bytes of this kernel's vDSO.
    pub vdso: Vec<u8>,
    /// Which memory processes have from each other.
    pub inheritance: Inheritance,
}

impl Plan {
    /// Whether the process at `index` keeps memory that it is born with, and so must not execute its
    /// blob, but only enter it.
    #[must_use]
    pub fn stays(&self, index: usize) -> bool {
        self.inheritance.shares.contains_key(&index)
    }

    /// Whether the process at `index` is cloned with its parent's memory.
    #[must_use]
    pub fn shares_memory(&self, job: &Job, index: usize) -> bool {
        let cloned = self.processes[index]
            .as_ref()
            .is_some_and(|plan| matches!(plan.start, Start::Clone { .. }));
        cloned && job.shares_memory(&job.processes[index])
    }

    /// The same plan in namespaces: for a caller who may restore in place, but finds an id taken.
    #[must_use]
    pub fn in_namespaces(&self, job: &Job) -> Self {
        let identity = Identity::Namespaces { user: false };
        Self {
            identity,
            parent: parent(job, &self.births, identity),
            clocks: Some(job.clocks),
            ..self.clone()
        }
    }

    /// Whether the restorers have capabilities in a user namespace of their own.
    #[must_use]
    pub const fn lends_capabilities(&self) -> bool {
        matches!(self.identity, Identity::Namespaces { user: true })
    }

    /// The process at `index`, which is to be rebuilt, for its script.
    #[must_use]
    pub fn member<'a>(&'a self, job: &'a Job, index: usize) -> script::Member<'a> {
        let process = &job.processes[index];
        let plan = self.processes[index].as_ref().expect("zombies have no script");
        let sharers = plan.sharers.iter().map(|sharer| {
            let fs = &job.fs[super::tree::index_of(job.processes[sharer.index].fs.0)];
            script::Sharer {
                member: self.member(job, sharer.index),
                shares_table: sharer.shares_table,
                places: (!sharer.shares_fs).then(|| (self.path_of(fs.cwd, job), fs.umask)),
                group: sharer.group,
            }
        });
        script::Member {
            process,
            space: &job.address_spaces[super::tree::index_of(process.mm.0)],
            occupancy: &plan.occupancy,
            vdso: plan.vdso.as_ref(),
            share: self.inheritance.shares.get(&index),
            capabilities: plan.capabilities,
            shares_memory: self.shares_memory(job, index),
            sharers: sharers.collect(),
        }
    }

    /// What else a script depends on.
    #[must_use]
    pub fn script_context<'a>(
        &'a self,
        job: &'a Job,
        placement: Placement,
        (mapped, files): (&'a Mapped, &'a [RawFd]),
        places: &'a BTreeMap<usize, RemoteAddr>,
    ) -> script::Context<'a> {
        script::Context {
            job,
            placement,
            mapped,
            files,
            places,
            estates: &self.inheritance.estates,
            private_fds: self.private_fds.clone(),
            timer_ids: self.timer_ids,
        }
    }

    /// The path of an inode here, moved places taken into account.
    #[must_use]
    pub fn path_of(&self, inode: InodeId, job: &Job) -> Bytes {
        let recorded = usize::try_from(inode.0).ok().and_then(|index| job.inodes.get(index));
        self.place_of(&recorded.map(|inode| inode.path.clone()).unwrap_or_default())
    }

    /// A recorded path here, moved places taken into account.
    #[must_use]
    pub fn place_of(&self, path: &Bytes) -> Bytes {
        moved(&self.moved, path.clone())
    }
}

/// `path` under its new place: the longest OLD that is a whole leading part of it is replaced.
#[must_use]
pub fn moved(moved: &[(Bytes, Bytes)], path: Bytes) -> Bytes {
    moved
        .iter()
        .filter_map(|(old, new)| {
            let rest = path.as_path().strip_prefix(old.as_path()).ok()?;
            Some((
                old.0.len(),
                if rest.as_os_str().is_empty() {
                    new.clone()
                } else {
                    Bytes::from(new.as_path().join(rest))
                },
            ))
        })
        .max_by_key(|(length, _)| *length)
        .map_or(path, |(_, path)| path)
}

/// Why a job cannot be brought back here.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum PlanError {
    #[error(transparent)]
    Tree(#[from] BirthError),
    #[error(
        "process {pid} ran as user {recorded_uid} and group {recorded_gid}, and you are user {uid} \
         and group {gid}: restore as that user"
    )]
    Identity { pid: Pid, recorded_uid: u32, recorded_gid: u32, uid: u32, gid: u32 },
    #[error(
        "process {pid} belonged to the supplementary groups {}, which this rckpt does not: restore where \
         and as who belongs to them (id, newgrp)",
        numbers(missing)
    )]
    Groups { pid: Pid, missing: Vec<u32> },
    #[error(
        "process {pid} had a soft limit of {soft} for {}, and the hard limit here is {hard}: raise it \
         (ulimit -H), or ask the administrator to",
        resource_name(*resource)
    )]
    Limit { pid: Pid, resource: u32, soft: u64, hard: u64 },
    #[error(
        "the job uses descriptor numbers up to {highest}, and the hard limit of {limit} on open files here \
         leaves no room beside them: raise it (ulimit -Hn), or ask the administrator to"
    )]
    Descriptors { highest: RawFd, limit: u64 },
    #[error(
        "the job's memory is {} MiB, and this machine has {} MiB available: end something, or \
         restore it on a larger machine",
        needed >> 20,
        available >> 20
    )]
    Memory { needed: u64, available: u64 },
    #[error(
        "the job ran on {recorded}, and this CPU ({here}) lacks {missing}: restore it on a machine \
         that has them"
    )]
    Cpu { recorded: Bytes, here: Bytes, missing: String },
    #[error(
        "the CPU's extended state differs: the job ran with XCR0 {recorded:#x}, and here it is \
         {here:#x}; restore it on a machine of the same kind"
    )]
    ExtendedState { recorded: u64, here: u64 },
    #[error(
        "the kernel's vDSO differs from the one that process {pid} ran with (kernel {recorded}), and \
         cannot take its place: {source}"
    )]
    Vdso { pid: Pid, recorded: Bytes, source: VdsoError },
    #[error(
        "process {pid} has capabilities ({}) that you cannot give it: restore it as the user \
         that it ran as, with the same privilege",
        names_of_bits(*missing)
    )]
    Capabilities { pid: Pid, missing: u64 },
    #[error(
        "process {pid} takes memory from NUMA nodes ({}) that this machine lacks, or that are not \
         allowed here: restore it where they are",
        names_of_bits(*missing)
    )]
    Nodes { pid: Pid, missing: u64 },
    #[error(
        "the memory of process {pid} leaves no hole of {length} bytes for the restorer below \
         0x7f0000000000"
    )]
    PlaceBlob { pid: Pid, length: usize },
}

impl PlanError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Tree(error) => error.code(),
            Self::Identity { .. } => code::restoring::OTHER_USER,
            Self::Groups { .. } => code::restoring::GROUP_MISSING,
            Self::Limit { .. } => code::restoring::LIMIT_TOO_LOW,
            Self::Descriptors { .. } => code::restoring::NO_DESCRIPTORS_LEFT,
            Self::Memory { .. } => code::restoring::MEMORY_TOO_SMALL,
            Self::Cpu { .. } => code::restoring::CPU_LACKS_FEATURES,
            Self::ExtendedState { .. } => code::restoring::EXTENDED_STATE,
            Self::Vdso { .. } => code::restoring::VDSO_DIFFERS,
            Self::Capabilities { .. } => code::restoring::CAPABILITIES_MISSING,
            Self::Nodes { .. } => code::restoring::NODES_MISSING,
            Self::PlaceBlob { .. } => code::restoring::NO_HOLE,
        }
    }
}

/// Plans the restore of `job`, whose page data are in `chunks`, whose pages have `hashes`.
///
/// # Errors
/// When it cannot succeed here.
pub fn plan(
    job: &Job,
    (chunks, hashes): (&[Chunk], Hashes<'_>),
    environment: &Environment,
    moved: Vec<(Bytes, Bytes)>,
) -> Result<Plan, PlanError> {
    check_identity(job, environment)?;
    check_limits(job, environment)?;
    check_cpu(&job.machine, &environment.machine)?;
    check_nodes(job, environment)?;
    let births = births::plan(job)?;
    let inheritance = inheritance::decide(job, &births, chunks, hashes);
    check_memory(chunks, &inheritance, environment)?;
    // The numbers of System V IPC are free in a namespace only, and it goes with the job.
    let ids_are_free =
        environment.taken.is_empty() && !environment.terminals_taken && job.ipc.is_empty();
    let identity = if environment.may_choose_pids && ids_are_free {
        Identity::InPlace
    } else {
        Identity::Namespaces { user: !environment.may_choose_pids }
    };
    let free = private_numbers(job, environment)?;
    let mut plan = Plan {
        identity,
        parent: parent(job, &births, identity),
        clocks: clocks(job, identity, environment),
        births: Vec::new(),
        processes: Vec::new(),
        private_fds: free.start + 1..free.end,
        timer_ids: environment.timer_ids,
        limits: limits(job, environment),
        moved,
        vdso: environment.vdso.clone(),
        inheritance,
    };
    let stay = staying(&plan, &births);
    let mut occupancies = occupancies(chunks);
    let own = vdso::Own { bytes: &environment.vdso, span: environment.vdso_span };
    for (index, process) in job.processes.iter().enumerate() {
        if process.is_zombie() {
            plan.processes.push(None);
            continue;
        }
        // Executing the blob would give it some; whatever it has when it does not is set.
        let executes = !stay.contains(&index);
        let space = &job.address_spaces[super::tree::index_of(process.mm.0)];
        plan.processes.push(Some(ProcessPlan {
            placement: Placement::at(0, 0),
            occupancy: occupancies.remove(&space.object).unwrap_or_default(),
            vdso: vdso::place(process, space, &job.vdso.bytes, own).map_err(|source| {
                PlanError::Vdso { pid: process.pid, recorded: job.machine.kernel.clone(), source }
            })?,
            // Scripts use the number below for a moment.
            executable_fd: free.start + 1,
            capabilities: capabilities(process, identity, environment, executes)?,
            start: Start::Execute { first_step: 0, stack: 0 },
            sharers: Vec::new(),
        }));
    }
    note_sharers(&mut plan, &births);
    for birth in births.iter().flat_map(Birth::all) {
        if let Role::Process(index) = birth.role
            && plan.processes[index].is_some()
        {
            place(&mut plan, job, index)?;
        }
    }
    plan.births = births;
    Ok(plan)
}

/// Those that only enter their blobs, and those that are cloned by such.
fn staying(plan: &Plan, births: &[Birth]) -> BTreeSet<usize> {
    fn add(found: &mut BTreeSet<usize>, index: usize, sharers: &[births::Sharer]) {
        found.insert(index);
        sharers.iter().for_each(|sharer| add(found, sharer.index, &sharer.sharers));
    }
    let mut found = BTreeSet::new();
    for birth in births.iter().flat_map(Birth::all) {
        match birth.role {
            Role::Process(index) if plan.stays(index) => add(&mut found, index, &birth.sharers),
            _ => {}
        }
    }
    found
}

/// Notes who is cloned by whom. Those that share a table know their executables by different numbers.
fn note_sharers(plan: &mut Plan, births: &[Birth]) {
    fn note(plan: &mut Plan, parent: usize, sharers: &[births::Sharer], next_fd: &mut RawFd) {
        for sharer in sharers {
            if let Some(process) = &mut plan.processes[sharer.index] {
                process.start = Start::Clone { parent };
                process.sharers.clone_from(&sharer.sharers);
                if !sharer.shares_memory {
                    process.executable_fd = *next_fd;
                    *next_fd += 1;
                }
            }
            note(plan, sharer.index, &sharer.sharers, next_fd);
        }
    }
    for birth in births.iter().flat_map(Birth::all) {
        let Role::Process(index) = birth.role else { continue };
        let Some(process) = &mut plan.processes[index] else { continue };
        process.sharers.clone_from(&birth.sharers);
        let mut next_fd = process.executable_fd + 1;
        note(plan, index, &birth.sharers, &mut next_fd);
        plan.private_fds.start = plan.private_fds.start.max(next_fd);
    }
}

/// Finds a place for the blob of the process at `index`, which those that it clones share.
fn place(plan: &mut Plan, job: &Job, index: usize) -> Result<(), PlanError> {
    let pid = job.processes[index].pid;
    let family = family(plan, index);
    let mut ranges = Vec::new();
    for member in &family {
        let space = &job.address_spaces[super::tree::index_of(job.processes[*member].mm.0)];
        ranges.extend(space.vmas.iter().map(|vma| vma.range));
        let vdso = plan.processes[*member].as_ref().and_then(|process| process.vdso.as_ref());
        ranges.extend(vdso.map(|vdso| vdso.own));
    }
    let estates = &plan.inheritance.estates;
    ranges.extend(estates.iter().flat_map(|estate| [estate.range, estate.spare_range()]));
    ranges.sort();
    // The length of a script depends neither on where it lies nor on the numbers of the mapped files:
    // write it once to learn it, and once more to learn where it begins.
    let (mapped, places) = (Mapped::default(), BTreeMap::new());
    let context = plan.script_context(job, Placement::at(0, 0), (&mapped, &[]), &places);
    let length = script::write(&plan.member(job, index), &context).bytes.len();
    let placement =
        blob::place(&ranges, to_u64(length)).ok_or(PlanError::PlaceBlob { pid, length })?;
    let context = plan.script_context(job, placement, (&mapped, &[]), &places);
    let script = script::write(&plan.member(job, index), &context);
    for member in family {
        if let Some(process) = &mut plan.processes[member] {
            process.placement = placement;
        }
    }
    if let Some(process) = &mut plan.processes[index] {
        process.start = Start::Execute { first_step: script.first_step, stack: script.stack };
    }
    Ok(())
}

/// A process and all that it clones, directly or not.
fn family(plan: &Plan, index: usize) -> Vec<usize> {
    let mut family = vec![index];
    let mut next = 0;
    while let Some(member) = family.get(next).and_then(|index| plan.processes[*index].as_ref()) {
        family.extend(member.sharers.iter().map(|sharer| sharer.index));
        next += 1;
    }
    family
}

fn check_identity(job: &Job, environment: &Environment) -> Result<(), PlanError> {
    let &Environment { uid, gid, ref groups, .. } = environment;
    for process in job.processes.iter().filter(|process| !process.is_zombie()) {
        let credentials = &process.credentials;
        if credentials.uids != [uid; 4] || credentials.gids != [gid; 4] {
            return Err(PlanError::Identity {
                pid: process.pid,
                recorded_uid: credentials.uids[1],
                recorded_gid: credentials.gids[1],
                uid,
                gid,
            });
        }
        let is_missing = |group: &&u32| **group != gid && !groups.contains(group);
        let missing: Vec<u32> = credentials.groups.iter().filter(is_missing).copied().collect();
        if !missing.is_empty() {
            return Err(PlanError::Groups { pid: process.pid, missing });
        }
    }
    Ok(())
}

fn numbers(groups: &[u32]) -> String {
    groups.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// Instruction sets by their names in /proc/cpuinfo that a program may use once it has seen them.
const INSTRUCTION_SETS: &[&str] = &[
    "3dnowprefetch",
    "abm",
    "adx",
    "aes",
    "amx_bf16",
    "amx_complex",
    "amx_fp16",
    "amx_int8",
    "amx_tile",
    "avx",
    "avx2",
    "avx512_4fmaps",
    "avx512_4vnniw",
    "avx512_bf16",
    "avx512_bitalg",
    "avx512_fp16",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_vp2intersect",
    "avx512_vpopcntdq",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512er",
    "avx512f",
    "avx512ifma",
    "avx512pf",
    "avx512vbmi",
    "avx512vl",
    "avx_ifma",
    "avx_ne_convert",
    "avx_vnni",
    "avx_vnni_int16",
    "avx_vnni_int8",
    "bmi1",
    "bmi2",
    "cldemote",
    "clflush",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cx16",
    "cx8",
    "enqcmd",
    "erms",
    "f16c",
    "fma",
    "fma4",
    "fsgsbase",
    "fsrm",
    "fxsr",
    "gfni",
    "lahf_lm",
    "lzcnt",
    "mmx",
    "mmxext",
    "monitorx",
    "movbe",
    "movdir64b",
    "movdiri",
    "mpx",
    "pclmulqdq",
    "pku",
    "pni",
    "popcnt",
    "prefetchwt1",
    "ptwrite",
    "rdpid",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "serialize",
    "sha512",
    "sha_ni",
    "sm3",
    "sm4",
    "sse",
    "sse2",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "ssse3",
    "tbm",
    "user_shstk",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "xop",
    "xsave",
    "xsavec",
    "xsaveopt",
];

/// The program may have chosen its code by what the old CPU could do.
fn check_cpu(recorded: &Machine, here: &Machine) -> Result<(), PlanError> {
    let missing: Vec<&str> = demanded_instructions(recorded)
        .filter(|flag| !here.cpu_flags.iter().any(|own| own == flag))
        .collect();
    let differs = || PlanError::Cpu {
        recorded: recorded.cpu.clone(),
        here: here.cpu.clone(),
        missing: missing.join(", "),
    };
    if !missing.is_empty() {
        return Err(differs());
    }
    // The size of the state, which programs ask for once, must be what it was, too.
    if recorded.xcr0 != here.xcr0 || recorded.xstate_components != here.xstate_components {
        return Err(PlanError::ExtendedState { recorded: recorded.xcr0, here: here.xcr0 });
    }
    Ok(())
}

/// The instruction sets that a job from this machine may have found and use, by the names that
/// /proc/cpuinfo has for them.
pub fn demanded_instructions(machine: &Machine) -> impl Iterator<Item = &str> {
    let flags = machine.cpu_flags.iter().map(String::as_str);
    flags.filter(|flag| INSTRUCTION_SETS.contains(flag))
}

/// Better to say so now than to be killed half-way.
fn check_memory(
    chunks: &[Chunk],
    inheritance: &Inheritance,
    environment: &Environment,
) -> Result<(), PlanError> {
    let pages: u64 =
        chunks.iter().flat_map(|chunk| &chunk.runs).map(|run| u64::from(run.pages)).sum();
    let pages = pages.saturating_sub(inheritance.shared_pages);
    let needed = pages.saturating_mul(PAGE_SIZE);
    let available = environment.available_memory;
    if needed <= available { Ok(()) } else { Err(PlanError::Memory { needed, available }) }
}

/// A hard limit that is lower here is lowered for the job, too; it must still hold the soft one.
fn check_limits(job: &Job, environment: &Environment) -> Result<(), PlanError> {
    if environment.may_raise_limits {
        return Ok(());
    }
    for process in &job.processes {
        for limit in process.limits.iter().filter(|limit| !is_the_machines(limit)) {
            let &ResourceLimit { resource, soft, .. } = limit;
            let own = environment.limits.iter().find(|own| own.resource == resource);
            if let Some(own) = own.filter(|own| own.hard < soft) {
                return Err(PlanError::Limit { pid: process.pid, resource, soft, hard: own.hard });
            }
        }
    }
    Ok(())
}

/// The capabilities to set at the end: none of those that were lent, and otherwise the recorded ones
/// where executing the restorer does not lead to them by itself.
fn capabilities(
    process: &Process,
    identity: Identity,
    environment: &Environment,
    executes: bool,
) -> Result<Option<Capabilities>, PlanError> {
    let [inheritable, permitted, effective, bounding, ambient] = process.credentials.capabilities;
    let wanted = Capabilities { inheritable, permitted, effective, ambient, surrendered: 0 };
    let lack = |missing| match missing {
        0 => Ok(()),
        missing => Err(PlanError::Capabilities { pid: process.pid, missing }),
    };
    if matches!(identity, Identity::Namespaces { user: true }) {
        lack(inheritable | permitted | effective | ambient)?;
        return Ok(Some(wanted));
    }
    let [own_inheritable, own_permitted, _, own_bounding, own_ambient] = environment.capabilities;
    let gained = if environment.uid == 0 { own_bounding } else { own_ambient };
    lack(permitted & !(gained & own_permitted))?;
    lack((inheritable & !(own_inheritable | own_permitted)) | (bounding & !own_bounding))?;
    let given = Capabilities {
        inheritable: own_inheritable,
        permitted: gained,
        effective: gained,
        ambient: own_ambient,
        surrendered: 0,
    };
    let wanted = Capabilities { surrendered: own_bounding & !bounding, ..wanted };
    Ok((!executes || wanted != given).then_some(wanted))
}

/// Every node that memory is to be taken from must be there. Where the program has named them beyond
/// what there is (MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES) the kernel goes by those that are.
fn check_nodes(job: &Job, environment: &Environment) -> Result<(), PlanError> {
    const NAMED_BEYOND: u32 = 1 << 15 | 1 << 14;
    for process in &job.processes {
        let space = job.address_spaces.get(super::tree::index_of(process.mm.0));
        let mappings = space.into_iter().flat_map(|space| &space.vmas);
        let policies = mappings
            .filter_map(|vma| vma.policy.as_ref())
            .chain(process.threads.iter().map(|thread| &thread.memory_policy))
            .filter(|policy| policy.mode & NAMED_BEYOND == 0);
        for policy in policies {
            let missing = low_bits(&policy.nodes) & !low_bits(&environment.nodes);
            if missing != 0 {
                return Err(PlanError::Nodes { pid: process.pid, missing });
            }
        }
    }
    Ok(())
}

/// The first 64 bits of a mask.
fn low_bits(mask: &[u8]) -> u64 {
    mask.iter().take(8).rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

fn names_of_bits(bits: u64) -> String {
    let names: Vec<String> = script::numbers(bits).map(|number| number.to_string()).collect();
    names.join(", ")
}

/// The limits as they are set here.
fn limits(job: &Job, environment: &Environment) -> Vec<Vec<ResourceLimit>> {
    let attainable = |recorded: &ResourceLimit| {
        let own = environment.limits.iter().find(|own| own.resource == recorded.resource);
        let ceiling =
            own.filter(|_| !environment.may_raise_limits).map_or(u64::MAX, |own| own.hard);
        let hard = recorded.hard.min(ceiling);
        let soft = if is_the_machines(recorded) { recorded.soft.min(hard) } else { recorded.soft };
        ResourceLimit { hard, soft, ..*recorded }
    };
    job.processes.iter().map(|process| process.limits.iter().map(attainable).collect()).collect()
}

/// Whether a limit is what the machine gave and nobody has lowered: as many processes and pending signals as
/// the kernel has found its memory to allow (`fork_init` of kernel/fork.c). Another machine gives others.
const fn is_the_machines(limit: &ResourceLimit) -> bool {
    limit.soft == limit.hard
        && matches!(limit.resource, libc::RLIMIT_NPROC | libc::RLIMIT_SIGPENDING)
}

fn resource_name(resource: u32) -> String {
    const NAMES: [&str; 16] = [
        "CPU time (RLIMIT_CPU)",
        "file size (RLIMIT_FSIZE)",
        "data (RLIMIT_DATA)",
        "stack (RLIMIT_STACK)",
        "core files (RLIMIT_CORE)",
        "resident memory (RLIMIT_RSS)",
        "processes (RLIMIT_NPROC)",
        "open files (RLIMIT_NOFILE)",
        "locked memory (RLIMIT_MEMLOCK)",
        "address space (RLIMIT_AS)",
        "file locks (RLIMIT_LOCKS)",
        "pending signals (RLIMIT_SIGPENDING)",
        "message queues (RLIMIT_MSGQUEUE)",
        "niceness (RLIMIT_NICE)",
        "real-time priority (RLIMIT_RTPRIO)",
        "real-time CPU time (RLIMIT_RTTIME)",
    ];
    let known = usize::try_from(resource).ok().and_then(|index| NAMES.get(index));
    known.map_or_else(|| format!("resource {resource}"), |name| (*name).to_owned())
}

/// The id of the root's parent, where nobody is born with it, and no thread, in a pid namespace.
fn parent(job: &Job, births: &[Birth], identity: Identity) -> Option<Pid> {
    let root = job.processes.iter().find(|process| process.pid == job.root)?;
    let parent = root.ppid;
    let is_thread = |tid: Pid| {
        job.processes.iter().flat_map(|process| &process.threads).any(|thread| thread.tid == tid)
    };
    let is_born = births.iter().flat_map(Birth::all).any(|birth| birth.pid == Some(parent));
    let free = parent.0 > 1 && !is_born && !is_thread(parent);
    (matches!(identity, Identity::Namespaces { .. }) && free).then_some(parent)
}

/// In namespaces the clocks go on exactly where they were; in place only when they would go back.
fn clocks(job: &Job, identity: Identity, environment: &Environment) -> Option<Clocks> {
    let back = job.clocks.monotonic > environment.clocks.monotonic
        || job.clocks.boottime > environment.clocks.boottime;
    match identity {
        Identity::InPlace if !back => None,
        _ => Some(job.clocks),
    }
}

/// The offset that makes a clock that shows `now` show `wanted`.
#[must_use]
pub fn clock_offset(wanted: TimeSpec, now: TimeSpec) -> TimeSpec {
    const SECOND: i64 = 1_000_000_000;
    let seconds = wanted.seconds.saturating_sub(now.seconds);
    let nanoseconds = wanted.nanoseconds - now.nanoseconds;
    TimeSpec {
        seconds: seconds.saturating_add(nanoseconds.div_euclid(SECOND)),
        nanoseconds: nanoseconds.rem_euclid(SECOND),
    }
}

/// RLIMIT_NOFILE.
const OPEN_FILES: u32 = 7;

/// The descriptor numbers that the restore has for itself.
fn private_numbers(job: &Job, environment: &Environment) -> Result<Range<RawFd>, PlanError> {
    let limits = environment.limits.iter();
    let limit = limits.filter(|limit| limit.resource == OPEN_FILES).map(|limit| limit.hard).next();
    let limit = limit.unwrap_or(u64::MAX);
    let none = || PlanError::Descriptors { highest: numbers::highest(job), limit };
    numbers::choose(job, limit).ok_or_else(none)
}

fn occupancies(chunks: &[Chunk]) -> BTreeMap<ObjectId, Occupancy> {
    let mut occupancies: BTreeMap<ObjectId, Occupancy> = BTreeMap::new();
    for run in chunks.iter().flat_map(|chunk| &chunk.runs) {
        occupancies.entry(run.object).or_default().add(run.first_page, u64::from(run.pages));
    }
    occupancies
}

#[cfg(test)]
mod tests {
    use super::{check_cpu, clock_offset, moved};
    use crate::model::id::Bytes;
    use crate::model::job::Machine;
    use crate::model::time::TimeSpec;

    #[test]
    fn offsets_carry_between_seconds_and_nanoseconds() {
        let check = |wanted: (i64, i64), now: (i64, i64), expected: (i64, i64)| {
            let time = |(seconds, nanoseconds)| TimeSpec { seconds, nanoseconds };
            assert_eq!(clock_offset(time(wanted), time(now)), time(expected));
        };
        check((10, 5), (3, 2), (7, 3));
        check((10, 0), (3, 1), (6, 999_999_999));
        check((3, 1), (10, 0), (-7, 1));
        check((3, 0), (10, 1), (-8, 999_999_999));
    }

    #[test]
    fn a_lesser_cpu_is_refused_by_name() {
        let machine = |flags: &[&str]| Machine {
            cpu_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            xcr0: 7,
            ..Machine::default()
        };
        let check = |here: &Machine, expected: Option<&str>| {
            let outcome = check_cpu(&machine(&["avx2", "constant_tsc", "sse"]), here);
            let message = outcome.err().map(|error| error.to_string());
            let named = expected.is_none_or(|name| message.as_deref().unwrap().contains(name));
            assert_eq!(message.is_some(), expected.is_some());
            assert!(named, "{message:?}");
        };
        check(&machine(&["avx2", "sse", "sse4a"]), None);
        check(&machine(&["sse", "constant_tsc"]), Some("lacks avx2"));
        check(&Machine { xcr0: 3, ..machine(&["avx2", "sse"]) }, Some("XCR0"));
    }

    #[test]
    fn the_longest_moved_place_counts() {
        let map = [("/a", "/x"), ("/a/b", "/y")]
            .map(|(old, new)| (Bytes::from(old.as_bytes()), Bytes::from(new.as_bytes())));
        let check = |path: &str, expected: &str| {
            let path = Bytes::from(path.as_bytes());
            assert_eq!(moved(&map, path).to_string(), expected);
        };
        check("/a/c", "/x/c");
        check("/a/b/c", "/y/c");
        check("/a/b", "/y");
        check("/ab", "/ab");
    }
}
