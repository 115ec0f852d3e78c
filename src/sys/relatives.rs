//! Who a process's parent and children are, and whether it is stopped, as /proc tells.
//!
//! The answers are of the moment: processes end and are adopted while they are read.

use nix::unistd::Pid;

use super::procfs::{self, ProcError};

/// The parent of `pid`; `None`: there is no such process, or its parent is outside our pid
/// namespace.
///
/// # Errors
/// When /proc cannot be read or understood.
pub fn parent(pid: Pid) -> Result<Option<Pid>, ProcError> {
    let parent = existing(procfs::stat(pid))?.map_or(0, |stat| stat.ppid);
    Ok((parent > 0).then(|| Pid::from_raw(parent)))
}

/// `pid`, its parent, its parent's parent and so on.
///
/// # Errors
/// When /proc cannot be read or understood.
pub fn ancestors(pid: Pid) -> Result<Vec<Pid>, ProcError> {
    let mut line = vec![pid];
    let mut last = pid;
    while let Some(parent) = parent(last)? {
        // A number reused while we walk could otherwise lead in a circle.
        if line.contains(&parent) {
            break;
        }
        line.push(parent);
        last = parent;
    }
    Ok(line)
}

/// The children of `pid`, also those that have ended and were not waited for.
///
/// # Errors
/// When /proc cannot be read or understood.
pub fn children(pid: Pid) -> Result<Vec<Pid>, ProcError> {
    let mut children = Vec::new();
    for process in procfs::processes()? {
        if parent(process)? == Some(pid) {
            children.push(process);
        }
    }
    Ok(children)
}

/// Whether `pid` is stopped by a job-control signal.
///
/// # Errors
/// When /proc cannot be read or understood.
pub fn is_stopped(pid: Pid) -> Result<bool, ProcError> {
    Ok(existing(procfs::stat(pid))?.is_some_and(|stat| stat.state == 'T'))
}

/// `None` for a process that has gone in the meantime.
fn existing<T>(result: Result<T, ProcError>) -> Result<Option<T>, ProcError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{self, Pid};

    use super::{ancestors, children, is_stopped, parent};

    #[test]
    fn of_this_process() {
        let me = unistd::getpid();
        assert_eq!(parent(me).unwrap(), Some(unistd::getppid()));
        assert_eq!(ancestors(me).unwrap()[..2], [me, unistd::getppid()]);
        assert!(children(unistd::getppid()).unwrap().contains(&me));
        assert!(!is_stopped(me).unwrap());
    }

    #[test]
    fn of_nobody() {
        let nobody = Pid::from_raw(i32::MAX);
        assert_eq!(parent(nobody).unwrap(), None);
        assert_eq!(children(nobody).unwrap(), []);
        assert!(!is_stopped(nobody).unwrap());
    }
}
