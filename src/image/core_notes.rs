//! The notes of an ELF core file: threads with their registers, and what there is to know of the process,
//! in the layouts of <linux/elfcore.h> for x86_64.

use crate::model::id::Bytes;
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, Backing};
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::model::process::Process;
use crate::model::thread::{Registers, Thread};

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_X86_XSTATE: u32 = 0x202;
const NT_X86_XSAVE_LAYOUT: u32 = 0x205;
const NT_FILE: u32 = 0x4649_4c45;

/// Bytes of `struct user_fpregs_struct`, which the extended state begins with.
const LEGACY_STATE: usize = 512;

/// Bytes of the command line in `struct elf_prpsinfo`, and of the name.
const COMMAND: usize = 80;
const NAME: usize = 16;

/// All notes of a process: those of its threads, the main one's first.
pub(super) fn encode(job: &Job, process: &Process, space: &AddressSpace) -> Vec<u8> {
    let mut notes = Vec::new();
    for (number, thread) in process.threads.iter().enumerate() {
        note(&mut notes, b"CORE", NT_PRSTATUS, &status(process, thread));
        if number == 0 {
            note(&mut notes, b"CORE", NT_PRPSINFO, &information(job, process));
            note(&mut notes, b"CORE", NT_AUXV, &space.areas.auxv);
            note(&mut notes, b"CORE", NT_FILE, &files(job, space));
            note(&mut notes, b"LINUX", NT_X86_XSAVE_LAYOUT, &state_layout(job));
        }
        let legacy = thread.xstate.get(..LEGACY_STATE).unwrap_or(&thread.xstate);
        note(&mut notes, b"CORE", NT_FPREGSET, legacy);
        note(&mut notes, b"LINUX", NT_X86_XSTATE, &whole_state(job, thread));
    }
    notes
}

/// The extended state with all components that the machine had, as a debugger expects it: those that are
/// not in use may be missing at its end.
fn whole_state(job: &Job, thread: &Thread) -> Vec<u8> {
    let ends = components(job).map(|(_, offset, size)| u64::from(offset) + u64::from(size));
    let mut state = thread.xstate.clone();
    state.resize(to_usize(ends.max().unwrap_or_default()).max(state.len()), 0);
    state
}

/// The components of the extended state behind those that are always there, each with its offset and size:
/// `struct x86_xfeat_component`. Processors differ in where they put them.
fn state_layout(job: &Job) -> Vec<u8> {
    let words = components(job).flat_map(|(number, offset, size)| [number, 0, offset, size]);
    words.flat_map(u32::to_le_bytes).collect()
}

/// The number, offset and size of each component that the machine had switched on.
fn components(job: &Job) -> impl Iterator<Item = (u32, u32, u32)> {
    let all = (2..).zip(&job.machine.xstate_components);
    all.filter(|(number, _)| {
        job.machine.xcr0.checked_shr(*number).is_some_and(|bits| bits & 1 == 1)
    })
    .map(|(number, (offset, size))| (number, *offset, *size))
}

/// Adds a note, each part of which is filled up to a multiple of four bytes.
fn note(notes: &mut Vec<u8>, owner: &[u8], kind: u32, content: &[u8]) {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    notes.extend(length(owner.len() + 1));
    notes.extend(length(content.len()));
    notes.extend(kind.to_le_bytes());
    for part in [&[owner, &[0]].concat(), content] {
        notes.extend(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus`.
fn status(process: &Process, thread: &Thread) -> Vec<u8> {
    let pending = thread.pending.iter().chain(&process.pending);
    // `si_signo` comes first, and is 64 at most.
    let bit = |number: u8| 1_u64.checked_shl(u32::from(number.checked_sub(1)?));
    let pending = pending.filter_map(|signal| bit(*signal.siginfo.first()?));
    let pending = pending.fold(0, |all, one| all | one);
    // No signal has ended it: `pr_info` and `pr_cursig`.
    let mut bytes = vec![0; 16];
    bytes.extend(pending.to_le_bytes());
    bytes.extend(thread.blocked.0.to_le_bytes());
    for id in [thread.tid, process.ppid, process.pgid, process.sid] {
        bytes.extend(id.0.to_le_bytes());
    }
    // The times that it and its children have taken.
    bytes.extend([0; 64]);
    for register in in_order(&thread.registers) {
        bytes.extend(register.to_le_bytes());
    }
    // `pr_fpvalid`, and padding.
    bytes.extend(1_u64.to_le_bytes());
    bytes
}

/// The registers in the order of `struct user_regs_struct`.
fn in_order(registers: &Registers) -> [u64; 27] {
    let Registers {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    } = *registers;
    [
        r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs,
        eflags, rsp, ss, fs_base, gs_base, ds, es, fs, gs,
    ]
}

/// `struct elf_prpsinfo`.
fn information(job: &Job, process: &Process) -> Vec<u8> {
    // It sleeps: `pr_state`, `pr_sname`, `pr_zomb`, `pr_nice`, padding, `pr_flag`.
    let mut bytes = vec![1, b'S', 0, 0, 0, 0, 0, 0];
    bytes.extend([0; 8]);
    bytes.extend(process.credentials.uids[0].to_le_bytes());
    bytes.extend(process.credentials.gids[0].to_le_bytes());
    for id in [process.pid, process.ppid, process.pgid, process.sid] {
        bytes.extend(id.0.to_le_bytes());
    }
    let mut text = |text: &[u8], room: usize| {
        let end = bytes.len() + room;
        bytes.extend(&text[..text.len().min(room - 1)]);
        bytes.resize(end, 0);
    };
    text(&process.name.0, NAME);
    // The command line of the root is known; a debugger finds that of others in their memory.
    let words: Vec<&[u8]> = match process.pid == job.root {
        true => job.command.iter().map(|word| word.0.as_slice()).collect(),
        false => vec![&process.name.0],
    };
    text(&words.join(&b' '), COMMAND);
    bytes
}

/// The table of mapped files, by which a debugger finds programs and libraries.
fn files(job: &Job, space: &AddressSpace) -> Vec<u8> {
    let mapped: Vec<([u64; 3], &Bytes)> = space
        .vmas
        .iter()
        .filter_map(|vma| match vma.backing {
            Backing::File { inode, offset, .. } => {
                let file = job.inodes.get(usize::try_from(inode.0).ok()?)?;
                let numbers = [vma.range.start.0, vma.range.end.0, offset / PAGE_SIZE];
                (!file.path.0.is_empty()).then_some((numbers, &file.path))
            }
            _ => None,
        })
        .collect();
    let mut bytes = Vec::new();
    bytes.extend(to_u64(mapped.len()).to_le_bytes());
    bytes.extend(PAGE_SIZE.to_le_bytes());
    for (numbers, _) in &mapped {
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }
    for (_, path) in &mapped {
        bytes.extend(&path.0);
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample;

    #[test]
    fn structures_are_as_long_as_the_kernels() {
        let job = sample::job();
        let process = &job.processes[0];
        assert_eq!(status(process, &process.threads[0]).len(), 336);
        assert_eq!(information(&job, process).len(), 136);
    }

    #[test]
    fn notes_are_filled_up() {
        let mut notes = Vec::new();
        note(&mut notes, b"CORE", 7, b"12345");
        assert_eq!(notes, b"\x05\0\0\0\x05\0\0\0\x07\0\0\0CORE\0\0\0\x0012345\0\0\0");
    }
}
