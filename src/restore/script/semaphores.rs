//! The part of a script that leaves operations on semaphores to be undone at the process's end.
//!
//! A change and its opposite, only one of which is to be undone, change no value.

use super::{Author, Step, call, signed};
use crate::model::ipc::SemaphoreSet;
use crate::model::job::Job;
use crate::model::number::{to_u64, to_usize};
use crate::model::process::Process;
use crate::sys::ipc::{SEM_UNDO, operation};

/// Half the range of a semaphore: with changes no larger than this there is always room for one of
/// them, and then for its opposite.
const HALF: u16 = 16383;

/// Leaves what `process` had left to be undone.
pub(super) fn undo(author: &mut Author, steps: &mut Vec<Step>, process: &Process, job: &Job) {
    for set in &job.ipc.semaphores {
        for undo in set.undo.iter().filter(|undo| undo.process == process.pid) {
            let value = value_of(set, undo.number);
            for [first, second] in operations(value, undo.adjustment) {
                let bytes = [
                    operation(undo.number, first.0, first.1),
                    operation(undo.number, second.0, second.1),
                ]
                .concat();
                let address = author.data(&bytes);
                steps.push(call(libc::SYS_semop, &[signed(set.identity.id), address, 2]));
            }
        }
    }
}

/// A number that the image's reader has checked.
fn value_of(set: &SemaphoreSet, number: u16) -> u16 {
    let semaphore = set.semaphores.get(to_usize(u64::from(number)));
    semaphore.map(|semaphore| semaphore.value).unwrap_or_default()
}

/// Pairs of operations, each a change and its flags, that leave `adjustment` to be undone in a
/// semaphore of this value.
fn operations(value: u16, adjustment: i16) -> Vec<[(i16, i16); 2]> {
    let mut pairs = Vec::new();
    let mut rest = adjustment.unsigned_abs();
    while rest > 0 {
        let part = rest.min(HALF);
        rest -= part;
        let part = i16::try_from(part).unwrap_or_default();
        // The adjustment is the opposite of the change.
        let kept = if adjustment > 0 { -part } else { part };
        let (kept, passing) = ((kept, SEM_UNDO), (-kept, 0));
        let upwards_first = value <= HALF;
        pairs.push(if (kept.0 > 0) == upwards_first { [kept, passing] } else { [passing, kept] });
    }
    debug_assert!(to_u64(pairs.len()) <= 3);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjustments_are_left_without_changing_the_value() {
        for value in [0, 1, 16383, 16384, 32767] {
            for adjustment in [0, 1, -1, 300, -300, 16384, 32767, -32767, -32768] {
                let (mut now, mut left) = (i32::from(value), 0);
                for (change, flags) in operations(value, adjustment).into_iter().flatten() {
                    now += i32::from(change);
                    assert!((0..=32767).contains(&now), "{value} {adjustment}");
                    if flags == SEM_UNDO {
                        left -= i32::from(change);
                    }
                }
                assert_eq!((now, left), (i32::from(value), i32::from(adjustment)));
            }
        }
    }
}
