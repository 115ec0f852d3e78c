//! Names that tell jobs apart for good, and one supervisor of a job from another.

use std::io;

use crate::model::id::Bytes;

/// A new name that no other job has: 32 hexadecimal digits.
///
/// It comes from /proc/sys/kernel/random/uuid, random(4); errors are those of reading it.
pub fn new_id() -> io::Result<Bytes> {
    let text = std::fs::read("/proc/sys/kernel/random/uuid")?;
    Ok(Bytes(text.into_iter().filter(u8::is_ascii_hexdigit).collect()))
}

/// The identity of this boot of the machine.
pub fn boot() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}
