//! The steps that set attributes: what prctl and its like tell the kernel of a process or thread.

use super::super::blob::layout::{Step, kind};
use super::{Author, Capabilities, Member, call, signed, step};
use crate::model::address::AddrRange;
use crate::model::memory::{AddressSpace, MemoryPolicy};
use crate::model::number::to_u64;
use crate::model::thread::{Scheduling, Thread};
use crate::sys::clone::CAPABILITY_VERSION;

/// PR_CAP_AMBIENT.
pub const PR_CAP_AMBIENT: u64 = 47;
/// PR_CAP_AMBIENT_CLEAR_ALL.
pub const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
/// PR_CAP_AMBIENT_RAISE.
pub const PR_CAP_AMBIENT_RAISE: u64 = 2;

/// Attributes that all threads share, or that threads inherit from the one that makes them.
pub(super) fn process(steps: &mut Vec<Step>, member: &Member<'_>) {
    let Member { process, space, capabilities, .. } = member;
    const ARCH_SET_CPUID: u64 = 0x1012;
    steps.push(call(libc::SYS_personality, &[u64::from(process.personality)]));
    if process.child_subreaper {
        steps.push(call(libc::SYS_prctl, &[signed(libc::PR_SET_CHILD_SUBREAPER), 1]));
    }
    if process.credentials.no_new_privs {
        steps.push(call(libc::SYS_prctl, &[signed(libc::PR_SET_NO_NEW_PRIVS), 1]));
    }
    if process.credentials.secure_bits != 0 {
        let bits = u64::from(process.credentials.secure_bits);
        steps.push(call(libc::SYS_prctl, &[signed(libc::PR_SET_SECUREBITS), bits]));
    }
    let surrendered = capabilities.map_or(0, |capabilities| capabilities.surrendered);
    for number in numbers(surrendered) {
        steps.push(call(libc::SYS_prctl, &[signed(libc::PR_CAPBSET_DROP), number]));
    }
    if !member.shares_memory {
        memory(steps, space);
    }
    if process.tsc_mode == libc::PR_TSC_SIGSEGV.cast_unsigned() {
        steps.push(call(libc::SYS_prctl, &[signed(libc::PR_SET_TSC), u64::from(process.tsc_mode)]));
    }
    if process.cpuid_faults {
        steps.push(call(libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0]));
    }
}

/// Attributes of an address space.
fn memory(steps: &mut Vec<Step>, space: &AddressSpace) {
    const PR_SET_MEMORY_MERGE: u64 = 67;
    const PR_SET_MDWE: u64 = 65;
    let disabled = u64::from(space.thp_disabled & 1);
    // The flags of the setter lie where the getter tells them.
    let but_where_asked_for = u64::from(space.thp_disabled & !1);
    let arguments = [signed(libc::PR_SET_THP_DISABLE), disabled, but_where_asked_for];
    steps.push(call(libc::SYS_prctl, &arguments));
    if space.memory_merge {
        steps.push(call(libc::SYS_prctl, &[PR_SET_MEMORY_MERGE, 1]));
    }
    if space.mdwe != 0 {
        steps.push(call(libc::SYS_prctl, &[PR_SET_MDWE, u64::from(space.mdwe)]));
    }
    for bit in 0..u32::BITS {
        let command = 1 << bit;
        if space.membarrier & command != 0 {
            steps.push(call(libc::SYS_membarrier, &[u64::from(command)]));
        }
    }
}

/// What each thread has for itself: CPUs, policy, niceness, priorities, nodes, and what it has asked
/// for against flaws of the machine.
pub(super) fn thread(author: &mut Author, steps: &mut Vec<Step>, thread: &Thread) {
    const IOPRIO_WHO_PROCESS: u64 = 1;
    if thread.timer_slack != 0 {
        let arguments = [signed(libc::PR_SET_TIMERSLACK), thread.timer_slack];
        steps.push(call(libc::SYS_prctl, &arguments));
    }
    if !thread.affinity.is_empty() {
        let mask = author.data(&thread.affinity);
        let arguments = [0, to_u64(thread.affinity.len()), mask];
        steps.push(call(libc::SYS_sched_setaffinity, &arguments));
    }
    let Scheduling { policy, nice, .. } = thread.scheduling;
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].map(i32::cast_unsigned).contains(&policy) {
        // The other policies leave the nice value as it is.
        let arguments = [signed(libc::PRIO_PROCESS.cast_signed()), 0, signed(nice)];
        steps.push(call(libc::SYS_setpriority, &arguments));
    }
    let attributes = author.words(&scheduling_words(&thread.scheduling));
    steps.push(call(libc::SYS_sched_setattr, &[0, attributes, 0]));
    if thread.io_priority != 0 {
        let arguments = [IOPRIO_WHO_PROCESS, 0, signed(thread.io_priority)];
        steps.push(call(libc::SYS_ioprio_set, &arguments));
    }
    thread_policy(author, steps, &thread.memory_policy);
    let speculation =
        [(libc::PR_SPEC_STORE_BYPASS, thread.store_bypass), (1, thread.indirect_branch)];
    for (which, setting) in speculation.into_iter().filter(|(_, setting)| *setting != 0) {
        let arguments =
            [signed(libc::PR_SET_SPECULATION_CTRL), signed(which), u64::from(setting), 0, 0];
        steps.push(call(libc::SYS_prctl, &arguments));
    }
    if let Some(early) = thread.early_machine_check {
        // PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY or PR_MCE_KILL_LATE.
        let arguments = [signed(libc::PR_MCE_KILL), 1, u64::from(early), 0, 0];
        steps.push(call(libc::SYS_prctl, &arguments));
    }
}

/// `struct sched_attr`: size, policy, flags, nice, priority, runtime, deadline, period, and the least
/// and most utilisation, where these are not what every thread has.
fn scheduling_words(scheduling: &Scheduling) -> [u64; 7] {
    const SIZE: u64 = 56;
    const SCHED_FLAG_UTIL_CLAMP: u64 = 0x60;
    const FULL: u32 = 1024;
    let Scheduling { policy, flags, nice, priority, runtime, deadline, period, util_min, util_max } =
        *scheduling;
    let clamped = ![(0, 0), (0, FULL)].contains(&(util_min, util_max));
    [
        SIZE | u64::from(policy) << 32,
        flags | if clamped { SCHED_FLAG_UTIL_CLAMP } else { 0 },
        u64::from(nice.cast_unsigned()) | u64::from(priority) << 32,
        runtime,
        deadline,
        period,
        u64::from(util_min) | u64::from(util_max) << 32,
    ]
}

/// The policy is also set where it is the default one, for rckpt may have been started under another.
/// A kernel without NUMA says that it has no such call.
fn thread_policy(author: &mut Author, steps: &mut Vec<Step>, policy: &MemoryPolicy) {
    let [nodes, count] = node_mask(author, policy);
    let arguments = [u64::from(policy.mode), nodes, count];
    let kind = if policy.is_default() { kind::CALL_ANY } else { kind::CALL };
    steps.push(step(kind, libc::SYS_set_mempolicy, &arguments, 0));
}

/// The policy of a fresh mapping, before anything is in it.
pub(super) fn mapping_policy(
    author: &mut Author,
    steps: &mut Vec<Step>,
    range: AddrRange,
    policy: &MemoryPolicy,
) {
    let [nodes, count] = node_mask(author, policy);
    let arguments = [range.start.0, range.len(), u64::from(policy.mode), nodes, count, 0];
    steps.push(call(libc::SYS_mbind, &arguments));
}

/// Address of a mask of nodes, and its length as the kernel wants it: in bits, and one more.
fn node_mask(author: &mut Author, policy: &MemoryPolicy) -> [u64; 2] {
    if policy.nodes.is_empty() {
        return [0, 0];
    }
    let mut mask = policy.nodes.clone();
    mask.resize(mask.len().next_multiple_of(size_of::<u64>()), 0);
    [author.data(&mask), to_u64(mask.len()) * 8 + 1]
}

/// A change of credentials clears it, so it comes after the capabilities have gone.
pub(super) fn parent_death_signal(steps: &mut Vec<Step>, thread: &Thread) {
    if thread.parent_death_signal != 0 {
        let arguments = [signed(libc::PR_SET_PDEATHSIG), signed(thread.parent_death_signal)];
        steps.push(call(libc::SYS_prctl, &arguments));
    }
}

/// The data with which `capset` sets these: header, then the low and the high half of three sets.
#[must_use]
pub fn capability_data(wanted: &Capabilities) -> [u8; 32] {
    let Capabilities { inheritable, permitted, effective, .. } = wanted;
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&CAPABILITY_VERSION.to_le_bytes());
    for (index, set) in [effective, permitted, inheritable].into_iter().enumerate() {
        let set = set.to_le_bytes();
        bytes[8 + 4 * index..12 + 4 * index].copy_from_slice(&set[..4]);
        bytes[20 + 4 * index..24 + 4 * index].copy_from_slice(&set[4..]);
    }
    bytes
}

/// The numbers of the capabilities in a set.
pub fn numbers(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |number| set >> number & 1 == 1)
}

/// Leaves the calling thread these capabilities.
pub(super) fn capabilities(author: &mut Author, steps: &mut Vec<Step>, wanted: &Capabilities) {
    let data = author.data(&capability_data(wanted));
    steps.push(call(libc::SYS_prctl, &[PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0]));
    steps.push(call(libc::SYS_capset, &[data, data + 8]));
    for number in numbers(wanted.ambient) {
        let arguments = [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0];
        steps.push(call(libc::SYS_prctl, &arguments));
    }
}
