//! Seizing and freezing a whole tree of processes, and remote system calls that heal themselves.
//!
//! It never leaves a mark on a tracee: whatever happens to rckpt, every thread finds its way back
//! into its own code with its own registers.
//!
//! - `chase` seizes and stops every thread of every process under some roots while they run;
//! - [`tree`] is what has been stopped, and lets it go;
//! - [`injection`] makes frozen threads carry out system calls, `series` several of them in one go;
//! - [`birth`] makes frozen processes bring forth hidden copies of themselves ([`copy`]), and descriptors
//!   that watch their memory;
//! - [`stub`] is the machine code for both, `room` and [`vdso`] know the place where it is put;
//! - [`restart`] knows how a thread that was caught inside a system call goes on.
//!
//! It knows nothing of what is collected or of images.

pub mod birth;
mod chase;
pub mod copy;
pub mod error;
pub mod injection;
pub mod restart;
mod room;
mod series;
pub mod stub;
pub mod tree;
pub mod vdso;
