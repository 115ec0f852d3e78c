//! The memory that the allocator of this very process keeps for later.
#![allow(unsafe_code)]

/// Gives what is free back to the kernel. The allocator has a pool for each of several threads and keeps, in
/// each, what its largest buffers took: which thread had which is chance, so that a process with short-lived
/// threads would seem to grow for a while.
pub fn give_back() {
    // SAFETY: the call takes a number, and touches nothing but what is free.
    unsafe { libc::malloc_trim(0) };
}
