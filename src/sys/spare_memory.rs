//! How much memory can still be had: on this machine, and in the cgroup of the caller.

use std::fs;
use std::path::Path;

/// Where cgroups of version 2 are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Bytes of memory that can be had: on this machine, and in this process's cgroup, which is mostly the
/// job's, too. `None` when nobody tells.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_available(&text));
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let limits = Path::new(own).ancestors().filter_map(|group| {
        let number = |name: &str| -> Option<u64> {
            let text = fs::read_to_string(Path::new(CGROUPS).join(group).join(name)).ok()?;
            text.trim().parse().ok()
        };
        // "max", and the root of all, have no number.
        let limit = number("memory.max")?;
        let statistics =
            fs::read_to_string(Path::new(CGROUPS).join(group).join("memory.stat")).ok()?;
        let used = number("memory.current")?.saturating_sub(reclaimable(&statistics));
        Some(limit.saturating_sub(used))
    });
    machine.into_iter().chain(limits).min()
}

/// MemAvailable of /proc/meminfo, in bytes.
fn parse_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of a cgroup's memory that hold pages of files, by its memory.stat.
fn reclaimable(statistics: &str) -> u64 {
    let value = |key: &str| {
        let line = statistics.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse::<u64>().ok()
    };
    ["inactive_file ", "active_file "].into_iter().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_understood() {
        let text = "MemTotal:       100 kB\nMemAvailable:   24684092 kB\n";
        assert_eq!(parse_available(text), Some(24_684_092 * 1024));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
        assert_eq!(reclaimable("anon 5\ninactive_file 7\nactive_file 8\n"), 15);
        assert!(available_memory().is_some());
    }
}
