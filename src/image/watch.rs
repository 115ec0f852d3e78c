//! Who is told how many bytes of page data have been read or written, while that goes on.

use std::fmt;
use std::sync::Arc;

/// Called with a number of bytes, from any thread, many times a second: it has to be quick.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(u64) + Send + Sync>);

impl Watch {
    /// One that calls `told`.
    #[must_use]
    pub fn new(told: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }

    /// Tells of so many bytes more.
    pub fn tell(&self, bytes: u64) {
        (self.0)(bytes);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
