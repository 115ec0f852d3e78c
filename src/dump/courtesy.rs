//! How far the threads that write a checkpoint give way to the job that runs meanwhile.
//!
//! A job that keeps every processor busy is to lose well under a tenth of them. The lowest priority of all
//! would leave it nearly everything, but then writing takes minutes on such a machine, and all that
//! while what the job writes to is kept twice.

use std::thread::available_parallelism;

use crate::image::WriteOptions;
use crate::model::number::to_u64;
use crate::sys::task;

/// Of a hundred parts of all processors, those that may be taken from a job that uses all of them.
const SHARE: u64 = 7;

/// What a thread of nice value 0 weighs for the kernel's scheduler; each step up weighs a fifth less
/// (`sched_prio_to_weight` in kernel/sched/core.c).
const WEIGHT: u64 = 1024;

/// Has the calling thread give way. Where that cannot be had, the work is done all the same.
pub(super) fn give_way() {
    let processors = available_parallelism().map_or(1, usize::from);
    // Those that pack, one that reads and one that writes.
    let threads = WriteOptions::default().workers + 2;
    task::give_way(niceness(to_u64(processors), to_u64(threads))).unwrap_or_default();
}

/// The least nice value with which so many threads take no more than their share of so many processors,
/// each of which has a thread of the job.
fn niceness(processors: u64, threads: u64) -> i32 {
    let mut weight = WEIGHT;
    for nice in 1..19 {
        weight = weight * 4 / 5;
        // Each takes weight / (WEIGHT + weight) of a processor.
        if threads * weight * 100 <= SHARE * processors * (WEIGHT + weight) {
            return nice;
        }
    }
    19
}

#[cfg(test)]
mod tests {
    use super::niceness;

    #[test]
    fn the_fewer_processors_the_more_is_given_way() {
        let check = |processors, threads, expected| {
            assert_eq!(niceness(processors, threads), expected, "{threads} on {processors}");
        };
        check(1, 3, 17);
        check(2, 4, 15);
        check(8, 10, 13);
        check(64, 10, 1);
        check(1, 100, 19);
    }
}
