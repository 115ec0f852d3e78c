//! Seizing and freezing a whole tree of processes, and remote system calls that heal themselves.
//!
//! It never leaves a mark on a tracee: whatever happens to rckpt, every thread finds its way back
//! into its own code with its own registers.
//!
//! - `chase` seizes and stops every thread of every process under some roots while they run;
//! - [`tree`] is what has been stopped, and lets it go;
//! - [`injection`] makes frozen threads carry out system calls;
//! - [`stub`] is the machine code for that, [`vdso`] the place where it is put;
//! - [`restart`] knows how a thread that was caught inside a system call goes on.
//!
//! It knows nothing of what is collected or of images.

mod chase;
pub mod error;
pub mod injection;
pub mod restart;
pub mod stub;
pub mod tree;
pub mod vdso;
