//! How fast this machine is at what a checkpoint is made of, and how much room its limits leave, found out
//! by doing it on a small scale.
#![allow(unsafe_code)]

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{self, ForkResult, Pid};

use crate::model::number::{PAGE_SIZE, to_usize};

use super::clone;
use super::launch;

/// Memory that is forked to see how long that takes.
const FORKED: u64 = 32 << 20;

/// Seconds that fork takes for each byte of page tables.
///
/// # Errors
/// When memory or a process cannot be had. The calling process must have a single thread.
pub fn fork_cost() -> Result<f64, Errno> {
    /// One page of page tables for 2 MiB of memory in small pages.
    const TABLES: u32 = 65_536;
    const _: () = assert!(FORKED / (2 << 20) * PAGE_SIZE == 65_536);
    let alone = least(2, time_of_fork)?;
    let memory = Memory::new(FORKED)?;
    memory.touch();
    let with = least(2, time_of_fork)?;
    drop(memory);
    Ok(with.saturating_sub(alone).as_secs_f64() / f64::from(TABLES))
}

/// The least of several times: the others were disturbed.
fn least(times: u32, measure: fn() -> Result<Duration, Errno>) -> Result<Duration, Errno> {
    let mut least = measure()?;
    for _ in 1..times {
        least = least.min(measure()?);
    }
    Ok(least)
}

fn time_of_fork() -> Result<Duration, Errno> {
    let begun = Instant::now();
    match launch::fork().map_err(|_| Errno::EAGAIN)? {
        ForkResult::Child => clone::exit_now(0),
        ForkResult::Parent { child } => {
            let elapsed = begun.elapsed();
            waitpid(child, None)?;
            Ok(elapsed)
        }
    }
}

/// Private memory in small pages, unmapped at the end.
struct Memory {
    start: *mut u8,
    length: usize,
}

impl Memory {
    fn new(length: u64) -> Result<Self, Errno> {
        let length = to_usize(length);
        // SAFETY: a new mapping anywhere harms nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // SAFETY: the range is the mapping's own; a kernel without huge pages refuses, which is as well.
        unsafe { libc::madvise(start, length, libc::MADV_NOHUGEPAGE) };
        Ok(Self { start: start.cast(), length })
    }

    /// Writes to each page.
    fn touch(&self) {
        for offset in (0..self.length).step_by(to_usize(PAGE_SIZE)) {
            // SAFETY: the offset lies inside the mapping, which is writable.
            unsafe { self.start.add(offset).write_volatile(1) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

/// How many of `wanted` further processes this user may have, found out by making them; they are gone again
/// when this returns. The calling process must have a single thread.
#[must_use]
pub fn room_for_processes(wanted: usize) -> usize {
    let mut made: Vec<Pid> = Vec::new();
    while made.len() < wanted {
        match launch::fork() {
            Ok(ForkResult::Parent { child }) => made.push(child),
            Ok(ForkResult::Child) => {
                if clone::set_parent_death_signal(libc::SIGKILL).is_ok() {
                    unistd::pause();
                }
                clone::exit_now(0)
            }
            Err(_) => break,
        }
    }
    for child in &made {
        // They only wait, and end with this process at the latest.
        kill(*child, Signal::SIGKILL).unwrap_or_default();
        waitpid(*child, None).map(drop).unwrap_or_default();
    }
    made.len()
}

/// A number in /proc/sys, by its name there (`kernel/pid_max`); `None` when it is not there.
#[must_use]
pub fn setting(name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// How many of `wanted` further descriptors this process may have, found out by opening them.
#[must_use]
pub fn room_for_descriptors(wanted: usize) -> usize {
    let mut open = Vec::new();
    while open.len() < wanted {
        match fs::File::open("/") {
            Ok(file) => open.push(file),
            Err(_) => break,
        }
    }
    open.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_descriptors_are_counted() {
        assert!(room_for_descriptors(10) >= 10);
        assert!(setting("kernel/pid_max").is_some_and(|most| most > 300));
        assert_eq!(setting("kernel/no_such_thing"), None);
    }
}
