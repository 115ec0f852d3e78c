//! Describes this machine, as far as a restore depends on it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;

use nix::sys::utsname::uname;

use super::cpu;
use crate::model::id::Bytes;
use crate::model::job::Machine;

/// Describes this machine.
///
/// # Errors
/// When uname(2), /proc/cpuinfo or the boot id do not tell.
pub fn describe() -> io::Result<Machine> {
    let names = uname()?;
    let (cpu, cpu_flags) = parse_cpuinfo(&fs::read("/proc/cpuinfo")?);
    let boot_id = fs::read("/proc/sys/kernel/random/boot_id")?;
    Ok(Machine {
        host: names.nodename().to_owned().into(),
        kernel: names.release().to_owned().into(),
        cpu,
        cpu_flags,
        xcr0: cpu::xcr0(),
        xstate_components: cpu::xstate_components(),
        boot_id: Bytes::from(boot_id.trim_ascii()),
        temporary: Vec::new(),
    })
}

/// Variables that name a directory which is another for each job of a batch system.
const TEMPORARY: [&str; 3] = ["TMPDIR", "SLURM_TMPDIR", "_CONDOR_SCRATCH_DIR"];

/// The directories for temporary files that an environment names, read through `variable`.
#[must_use]
pub fn temporary(variable: impl Fn(&str) -> Option<OsString>) -> Vec<(Bytes, Bytes)> {
    let place = |name: &str| {
        let path = variable(name).filter(|path| path.as_bytes().starts_with(b"/"))?;
        let plain = path.as_bytes().iter().rposition(|byte| *byte != b'/')?;
        Some((Bytes::from(name.as_bytes()), Bytes::from(&path.as_bytes()[..=plain])))
    };
    TEMPORARY.into_iter().filter_map(place).collect()
}

/// Model name and sorted flags of the first CPU.
fn parse_cpuinfo(bytes: &[u8]) -> (Bytes, Vec<String>) {
    let mut model = Bytes::default();
    let mut flags = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty()) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        match line[..colon].trim_ascii() {
            b"model name" => model = Bytes::from(value),
            b"flags" => {
                flags = value
                    .split(|byte| *byte == b' ')
                    .map(|flag| String::from_utf8_lossy(flag).into_owned())
                    .collect();
            }
            _ => {}
        }
    }
    flags.sort_unstable();
    (model, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cpu_is_described() {
        let text =
            b"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: sse fpu avx\n\nmodel name : B\n";
        let (model, flags) = parse_cpuinfo(text);
        assert_eq!(model, Bytes::from(b"Some CPU".as_slice()));
        assert_eq!(flags, ["avx", "fpu", "sse"]);
    }
}
