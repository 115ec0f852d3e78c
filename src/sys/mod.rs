//! Every raw system call and ioctl, the parsers of /proc, and the kernel's features.
//!
//! Functions here are thin: one kernel interface each, typed, with the errors that it gives. They
//! know nothing of images, dumps or restores. `unsafe` is allowed here and in the restorer blob only.

pub mod attributes;
pub mod build_id;
pub mod clone;
pub mod cpu;
pub mod descriptor;
pub mod emissary;
pub mod epoll;
pub mod fdinfo;
pub mod features;
pub mod file_tree;
pub mod gauge;
pub mod guardian;
pub mod heap;
pub mod huge_pages;
pub mod inet_diag;
pub mod inotify;
pub mod interruption;
pub mod io_uring;
pub mod ipc;
pub mod launch;
pub mod machine;
pub mod memory;
pub mod message_queue;
pub mod multicast;
pub mod own_memory;
pub mod pipe;
pub mod place;
pub mod procfs;
pub mod ptrace;
pub mod queue_keeper;
pub mod reflink;
pub mod relatives;
pub mod signal;
mod sock_diag;
pub mod socket;
pub mod spare_memory;
pub mod task;
pub mod terminal;
pub mod unix_diag;
pub mod unix_queue;
pub mod whole_file;
pub mod write_watch;
pub mod writers;
