//! Seizing and freezing a whole tree of processes, and remote system calls that heal themselves.
//!
//! It never leaves a mark on a tracee: whatever happens to rckpt, every thread finds its way back
//! into its own code with its own registers.
