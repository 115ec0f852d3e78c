//! Makes rings of io_uring again: new ones, brought to where the old ones stood by requests that do
//! nothing, with what the memory of the old ones held.

use std::io;
use std::os::fd::OwnedFd;

use thiserror::Error;

use crate::model::ring::Ring;
use crate::sys::descriptor;
use crate::sys::io_uring::{self, Shape, Window};

/// Why a ring cannot be made again.
#[derive(Debug, Error)]
pub enum RingError {
    /// The kernel makes no such ring.
    #[error(
        "making a ring of io_uring again: {0}; it must be allowed (/proc/sys/kernel/io_uring_disabled), and \
         one without an array of requests takes Linux 6.6"
    )]
    Make(#[source] io::Error),
    /// The program has learnt other offsets.
    #[error("this kernel lays rings of io_uring out in another way than that of the checkpoint")]
    Layout,
    /// It does not get there.
    #[error("bringing a ring of io_uring to where it stood: {0}")]
    Advance(#[source] io::Error),
}

/// A ring as recorded, with status flags `flags`.
///
/// # Errors
/// When the kernel does not go along.
pub(super) fn make(ring: &Ring, flags: i32) -> Result<OwnedFd, RingError> {
    let Ring { entries, completions, has_array, done, layout, memory, requests } = ring;
    let shape = Shape { entries: *entries, completions: *completions, has_array: *has_array };
    let (file, found) = io_uring::make(shape).map_err(|errno| RingError::Make(errno.into()))?;
    if found != *layout {
        return Err(RingError::Layout);
    }
    let window =
        Window::of_ring(&file, io_uring::size(shape, layout)).map_err(RingError::Advance)?;
    io_uring::do_nothing(&file, &window, (shape, layout), *done, &|| ())
        .map_err(|errno| RingError::Advance(errno.into()))?;
    // All that the kernel has set is there again with the same values; the rest is the program's.
    let mut whole = memory.0.clone();
    whole.resize(whole.len().max(window.copy().len()), 0);
    window.put(&whole);
    let entries = Window::of_requests(&file, *entries).map_err(RingError::Advance)?;
    entries.put(&requests.0);
    descriptor::set_status_flags(&file, flags).map_err(|errno| RingError::Advance(errno.into()))?;
    Ok(file)
}
