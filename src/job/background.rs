//! Work that a supervisor has done by a thread of its own, and of whose end it is woken by a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Work that is being done.
#[derive(Debug)]
pub struct Background<T> {
    thread: JoinHandle<T>,
    done: OwnedFd,
    given_up: Arc<AtomicBool>,
}

impl<T: Send + 'static> Background<T> {
    /// Begins it, in a thread of this name. `given_up` is what [`Background::give_up`] sets.
    ///
    /// # Errors
    /// When no thread or pipe can be had.
    pub fn start(
        name: &str,
        given_up: Arc<AtomicBool>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let (done, at_end) = io::pipe()?;
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Closed however the thread ends, which is what wakes the loop.
            let _at_end = at_end;
            work()
        })?;
        Ok(Self { thread, done: done.into(), given_up })
    }

    /// Has it given up as soon as possible, if it is not complete before that.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Waits for its end; `None`: it panicked.
    pub fn join(self) -> Option<T> {
        self.thread.join().ok()
    }
}

impl<T> AsFd for Background<T> {
    /// Becomes readable when the work is complete or has failed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::Background;

    #[test]
    fn work_ends_by_itself_or_when_it_is_given_up() {
        let given_up = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&given_up);
        let work = Background::start("work", given_up, move || {
            while !seen.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            7
        })
        .unwrap();
        work.give_up();
        assert_eq!(work.join(), Some(7));
        let work = Background::start("work", Arc::default(), || panic!("on purpose")).unwrap();
        assert_eq!(work.join(), None::<()>);
    }
}
