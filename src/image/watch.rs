//! Who is told how many bytes of page data have been read or written, while that goes on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes are expected in all, about.
    Expected(u64),
    /// So many more have been dealt with.
    Done(u64),
}

/// Called from any thread, many times a second: it has to be quick.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(Step) + Send + Sync>);

impl Watch {
    /// One that calls `told`.
    #[must_use]
    pub fn new(told: impl Fn(Step) + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }

    /// Tells of so many bytes more.
    pub fn tell(&self, bytes: u64) {
        (self.0)(Step::Done(bytes));
    }

    /// Tells of how many there will be, about.
    pub fn expect(&self, bytes: u64) {
        (self.0)(Step::Expected(bytes));
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Keeps count for somebody who looks now and then.
#[derive(Debug, Default)]
pub struct Gauge {
    done: AtomicU64,
    expected: AtomicU64,
}

impl Gauge {
    /// What keeps it up to date.
    #[must_use]
    pub fn watch(self: &Arc<Self>) -> Watch {
        let gauge = Arc::clone(self);
        Watch::new(move |step| match step {
            Step::Expected(bytes) => gauge.expected.store(bytes, Ordering::Relaxed),
            Step::Done(bytes) => {
                gauge.done.fetch_add(bytes, Ordering::Relaxed);
            }
        })
    }

    /// Bytes that have been dealt with, and those expected in all, about (0: not known yet).
    #[must_use]
    pub fn read(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.expected.load(Ordering::Relaxed))
    }
}
