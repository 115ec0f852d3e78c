//! What limits leave of this machine: memory, processes, descriptors, process ids; and its CPU.

use crate::cli::options;
use crate::dump::snapshot;
use crate::model::job::Machine;
use crate::restore::plan::demanded_instructions;
use crate::sys::gauge;
use crate::sys::machine;
use crate::sys::spare_memory::available_memory;

use super::line::{Line, Remedy};

/// Processes that are made to see whether they can be had: a checkpoint needs two for each of the job's.
const PROCESSES: usize = 64;
/// Descriptors that are opened.
const DESCRIPTORS: usize = 512;
/// The limit of process ids on small machines and old kernels.
const FEW_IDS: u64 = 32_768;

/// All lines about limits.
pub fn assess() -> Vec<Line> {
    vec![memory(available_memory()), processes(), descriptors(), ids(), cpu()]
}

/// Memory that is free for checkpoints.
fn memory(available: Option<u64>) -> Line {
    let strict = gauge::setting("vm/overcommit_memory") == Some(2);
    let subject = "memory";
    match available {
        None => Line::less(
            subject,
            "nobody tells how much is left (/proc/meminfo)",
            Remedy::ask("Please mount /proc as usual."),
        ),
        Some(bytes) if bytes < snapshot::RESERVE => Line::less(
            subject,
            format!(
                "{} are left: jobs stand still until their memory is written",
                options::size(bytes)
            ),
            Remedy::own("ask the batch system for more memory, or end something"),
        ),
        Some(bytes) if strict => Line::less(
            subject,
            format!(
                "{} are left, but vm.overcommit_memory is 2: a job can be copied only if there is room \
                 for all of its memory once more, else it stands still until it is written",
                options::size(bytes)
            ),
            Remedy::ask("Please set the sysctl vm.overcommit_memory to 0."),
        ),
        Some(bytes) => Line::works(subject, format!("{} available", options::size(bytes))),
    }
}

/// Whether a few more processes can be had.
fn processes() -> Line {
    let subject = "processes";
    let room = gauge::room_for_processes(PROCESSES);
    if room == PROCESSES {
        return Line::works(subject, format!("room for {PROCESSES} more"));
    }
    let finding = format!(
        "{room} more only (ulimit -u, pids.max of the cgroup, kernel.pid_max or kernel.threads-max): a \
         job of more than {} processes stands still until its memory is written, and one of more \
         than {room} cannot be restored",
        room / 2
    );
    let remedy = Remedy::own("raise ulimit -u, or end other processes of yours");
    if room == 0 {
        Line::fails(subject, finding, remedy)
    } else {
        Line::less(subject, finding, remedy)
    }
}

/// Whether enough descriptors can be had.
fn descriptors() -> Line {
    let subject = "open files";
    let room = gauge::room_for_descriptors(DESCRIPTORS);
    if room == DESCRIPTORS {
        return Line::works(subject, format!("room for {DESCRIPTORS} more"));
    }
    Line::less(
        subject,
        format!("{room} more only: jobs with more open files than that cannot be restored"),
        Remedy::own("raise ulimit -n"),
    )
}

/// Process ids of restored jobs are limited.
fn ids() -> Line {
    let subject = "process ids";
    let limits = (gauge::setting("kernel/pid_max"), gauge::setting("kernel/threads-max"));
    match limits {
        (Some(most), _) if most < FEW_IDS => Line::less(
            subject,
            format!("below {most} only: jobs with higher ones cannot be restored here"),
            Remedy::ask("Please set the sysctl kernel.pid_max to 4194304."),
        ),
        (Some(most), Some(threads)) => {
            Line::works(subject, format!("below {most}; {threads} threads"))
        }
        _ => Line::works(subject, "/proc/sys/kernel tells no limit"),
    }
}

/// What a checkpoint taken here will ask of another machine's CPU.
fn cpu() -> Line {
    let subject = "CPU";
    match machine::describe() {
        Ok(machine) => Line::works(subject, demands(&machine)),
        Err(error) => Line::less(
            subject,
            format!("it cannot be described ({error}): no checkpoint can be taken"),
            Remedy::ask("Please mount /proc as usual."),
        ),
    }
}

fn demands(machine: &Machine) -> String {
    let demanded: Vec<&str> = demanded_instructions(machine).collect();
    let told: Vec<&str> =
        NEWEST.into_iter().filter(|name| demanded.iter().any(|flag| flag == name)).collect();
    let told = if told.is_empty() { "nothing beyond SSE2".to_owned() } else { told.join(", ") };
    format!(
        "images ask for {told} ({} instruction sets in all) and the extended state {:#x}",
        demanded.len(),
        machine.xcr0
    )
}

/// Those by which machines in one room differ most, newest first.
const NEWEST: [&str; 5] = ["amx_tile", "avx512f", "avx2", "avx", "sse4_2"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::line::Grade;

    #[test]
    fn little_memory_is_less() {
        let check = |available: Option<u64>, expected: Grade| {
            assert_eq!(memory(available).grade, expected, "{available:?}");
        };
        check(None, Grade::Less);
        check(Some(1 << 20), Grade::Less);
        check(Some(8 << 30), Grade::Works);
    }

    #[test]
    fn the_newest_instructions_are_named() {
        let flags = ["avx", "avx2", "sse4_2", "constant_tsc"].map(str::to_owned).to_vec();
        let machine = Machine { cpu_flags: flags, xcr0: 7, ..Machine::default() };
        let words = demands(&machine);
        assert!(words.contains("avx2, avx, sse4_2 (3 instruction sets"), "{words}");
    }
}
