//! Plain records of what a job is: the vocabulary that every other room shares.
//!
//! A record holds facts as the kernel told them, in the kernel's own terms and in the job's own
//! numbering (process ids as the job sees them). It owns no system call, no file and no policy, so
//! it can be built, stored, compared and printed on any machine. The image stores exactly these
//! records; changing one changes the format (docs/FORMAT.md).

pub mod address;
pub mod births;
pub mod code;
pub mod event;
pub mod file;
pub mod id;
pub mod internet;
pub mod ipc;
pub mod job;
pub mod memory;
pub mod number;
pub mod process;
pub mod ring;
pub mod signal;
pub mod socket;
pub mod terminal;
pub mod thread;
pub mod time;
