//! What processes have left to be undone in semaphores (SEM_UNDO).
//!
//! The kernel shows it nowhere, but it keeps adjustments within bounds: an operation that would exceed
//! them fails with ERANGE, before it fails with EAGAIN for one after it that would have to wait. The
//! process is made to ask for operations that never succeed, and change nothing: which of both
//! errors they give tells how large the adjustment is.

use std::cmp::Ordering;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::super::census::Census;
use super::super::error::CollectError;
use super::super::refusal::Obstacle;
use super::{IpcObject, IpcRefusal};
use crate::model::ipc::{SemaphoreSet, SemaphoreUndo};
use crate::model::number::to_u64;
use crate::sys::descriptor::{self, Shared};
use crate::sys::ipc::{Kind, SEM_NO_WAIT, SEM_UNDO, SEMAPHORE_LIMIT, operation};
use crate::tracer::injection::{Call, Injector};
use crate::tracer::tree::Tree;

/// Largest adjustment (SEMAEM).
const LIMIT: i16 = 32767;

/// Finds what the processes of a frozen tree have left to be undone, and adds it to `sets`. `nobody` is
/// a process that has nothing.
pub(super) fn collect(
    tree: &mut Tree,
    census: &Census,
    nobody: Pid,
    sets: &mut [SemaphoreSet],
    obstacles: &mut Vec<Obstacle>,
) -> Result<(), CollectError> {
    let mut holders: Vec<(usize, Pid)> = Vec::new();
    for (place, member) in census.living() {
        let pid = member.task;
        let object = IpcObject {
            kind: Kind::Semaphores,
            id: sets[0].identity.id,
            key: sets[0].identity.key,
        };
        let mut refuse = |other: Pid| {
            obstacles.push(Obstacle::Ipc { pid, object, kind: IpcRefusal::UndoShared { other } });
        };
        for thread in &tree.processes()[place].threads {
            if !is_shared(pid, thread.tid)? {
                refuse(thread.tid);
            }
        }
        if is_shared(pid, nobody)? {
            continue;
        }
        for (_, other) in &holders {
            if is_shared(pid, *other)? {
                refuse(*other);
            }
        }
        holders.push((place, pid));
    }
    for (place, pid) in holders {
        let failed = |source| CollectError::Inject { pid, source };
        let process = census.recorded(pid).unwrap_or_default();
        let mut injector = tree.inject(place).map_err(failed)?;
        // Being asked leaves an entry for the set behind, and at the end of the process the kernel notes
        // the time in every set that it has an entry for. That must not happen to one that nobody has
        // operated on, in which nothing can be left to be undone either.
        for set in sets.iter_mut().filter(|set| set.operated) {
            let id = set.identity.id;
            for (number, semaphore) in (0..).zip(&set.semaphores) {
                let ask = &mut |operations: &[(i16, i16)]| {
                    try_operations(&mut injector, id, number, operations)
                };
                match adjustment(semaphore.value, ask).map_err(failed)? {
                    Ok(0) => {}
                    Ok(adjustment) => set.undo.push(SemaphoreUndo { process, number, adjustment }),
                    Err(source) => {
                        let object =
                            IpcObject { kind: Kind::Semaphores, id, key: set.identity.key };
                        let kind = IpcRefusal::Undo { source };
                        obstacles.push(Obstacle::Ipc { pid, object, kind });
                        break;
                    }
                }
            }
        }
        injector.finish().map_err(failed)?;
    }
    Ok(())
}

/// Whether two tasks undo together, or both have nothing to undo.
fn is_shared(left: Pid, right: Pid) -> Result<bool, CollectError> {
    descriptor::compare_tasks(Shared::SemaphoreUndo, left, right).map(Ordering::is_eq).map_err(
        |source| CollectError::Ask {
            operation: "compare the semaphore adjustments",
            pid: left,
            source,
        },
    )
}

/// Has a process try operations, each a change and its flags, on one semaphore.
fn try_operations(
    injector: &mut Injector<'_>,
    id: i32,
    number: u16,
    operations: &[(i16, i16)],
) -> Result<Result<u64, Errno>, crate::tracer::error::InjectError> {
    let bytes: Vec<u8> =
        operations.iter().flat_map(|(change, flags)| operation(number, *change, *flags)).collect();
    let address = injector.scratch().start;
    injector.write(address, &bytes)?;
    let arguments = [i64::from(id).cast_unsigned(), address.0, to_u64(operations.len())];
    injector.call(&Call::new(libc::SYS_semop, &arguments))
}

/// Asks for operations; the outer error is one of asking.
type Ask<'a, E> = dyn FnMut(&[(i16, i16)]) -> Result<Result<u64, Errno>, E> + 'a;

/// The adjustment that a process has for a semaphore of this value.
fn adjustment<E>(value: u16, ask: &mut Ask<'_, E>) -> Result<Result<i16, Errno>, E> {
    let mut sign = 0;
    for (candidate, sounding) in [(1, above(value, 0)), (-1, below(value, 0))] {
        match exceeds(&sounding, ask)? {
            Ok(true) => sign = candidate,
            Ok(false) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    if sign == 0 {
        return Ok(Ok(0));
    }
    // It is larger than `low` and not larger than `high`, if one takes away its sign.
    let (mut low, mut high) = (0, LIMIT);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let sounding = if sign > 0 { above(value, middle) } else { below(value, middle) };
        match exceeds(&sounding, ask)? {
            Ok(true) => low = middle,
            Ok(false) => high = middle,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(high * sign))
}

/// Operations that are out of range if the adjustment is larger than `bound`, and else would wait. The
/// bound is less than [`LIMIT`].
fn above(value: u16, bound: i16) -> Vec<(i16, i16)> {
    let mut operations = fill_up(value);
    // The adjustment grows by what is taken.
    operations.push((bound - LIMIT, SEM_UNDO));
    operations.push((LIMIT - bound, 0));
    operations.push((0, SEM_NO_WAIT));
    operations
}

/// Operations that are out of range if the adjustment is less than `-bound`, and else would wait. One
/// operation can change it by 32767, and the least one is -32768.
fn below(value: u16, bound: i16) -> Vec<(i16, i16)> {
    let mut operations = fill_up(value);
    operations.push((-LIMIT, 0));
    operations.push((LIMIT - bound, SEM_UNDO));
    operations.push((bound - LIMIT, 0));
    operations.push((1, SEM_UNDO));
    operations.push((0, SEM_NO_WAIT));
    operations
}

/// The operation that makes a semaphore's value the largest that there is.
fn fill_up(value: u16) -> Vec<(i16, i16)> {
    let missing = i16::try_from(SEMAPHORE_LIMIT.saturating_sub(value)).unwrap_or_default();
    // An operation of zero would wait for zero.
    if missing == 0 { Vec::new() } else { vec![(missing, 0)] }
}

fn exceeds<E>(operations: &[(i16, i16)], ask: &mut Ask<'_, E>) -> Result<Result<bool, Errno>, E> {
    Ok(match ask(operations)? {
        Err(Errno::ERANGE) => Ok(true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error),
        Ok(_) => Err(Errno::EPROTO),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's `perform_atomic_semop_slow` (ipc/sem.c).
    fn kernel(mut value: i32, mut adjustment: i32, operations: &[(i16, i16)]) -> Errno {
        for (change, flags) in operations {
            let change = i32::from(*change);
            if change == 0 && value != 0 || value + change < 0 {
                assert_eq!(*flags, SEM_NO_WAIT, "only the last one may have to wait");
                return Errno::EAGAIN;
            }
            value += change;
            assert!(value <= 32767);
            if *flags == SEM_UNDO {
                adjustment -= change;
                if !(-32768..=32767).contains(&adjustment) {
                    return Errno::ERANGE;
                }
            }
        }
        panic!("these operations would succeed: {operations:?}");
    }

    #[test]
    fn every_adjustment_is_found_without_changing_anything() {
        for value in [0, 1, 5, 16000, 32766, 32767] {
            for expected in [0, 1, -1, 2, -2, 100, -100, 16384, -16384, 32767, -32767] {
                let ask = &mut |operations: &[(i16, i16)]| {
                    Ok::<_, ()>(Err(kernel(i32::from(value), expected, operations)))
                };
                let found = adjustment(value, ask).unwrap().unwrap();
                assert_eq!(i32::from(found), expected, "value {value}");
            }
        }
    }
}
