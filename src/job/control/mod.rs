//! How other rckpt commands reach the supervisor of a job: a socket with an abstract name.
//!
//! An abstract name needs no file, so it works for jobs on any file system, has no path that could
//! be too long, and nothing is left when a supervisor is killed; /proc/net/unix is the registry of
//! all jobs on the machine. Who is at the other end is told by the kernel (SO_PEERCRED) and checked
//! on both sides: neither answers another user. Names are `rckpt-UID-JOB-INSTANCE`.

pub mod client;
pub mod discovery;
pub mod protocol;
pub mod server;
