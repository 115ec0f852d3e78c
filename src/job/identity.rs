//! Names that tell jobs apart for good, and one supervisor of a job from another.

use std::io;

use nix::unistd::Pid;
use xxhash_rust::xxh3::xxh3_128;

use crate::model::id::Bytes;

/// A new name that no other job has: 32 hexadecimal digits.
///
/// It comes from /proc/sys/kernel/random/uuid, random(4); errors are those of reading it.
pub fn new_id() -> io::Result<Bytes> {
    let text = std::fs::read("/proc/sys/kernel/random/uuid")?;
    Ok(Bytes(text.into_iter().filter(u8::is_ascii_hexdigit).collect()))
}

/// The name of a job that nobody supervises, after its first process, which was started so many ticks after the
/// machine's `boot`: the same process gets the same one each time, so that its checkpoints go together.
#[must_use]
pub fn of_process(boot: &str, pid: Pid, starttime: u64) -> Bytes {
    let words = format!("{boot} {pid} {starttime}");
    Bytes(format!("{:032x}", xxh3_128(words.as_bytes())).into_bytes())
}

/// The identity of this boot of the machine.
pub fn boot() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}
