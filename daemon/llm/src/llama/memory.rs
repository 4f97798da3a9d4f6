//! The memory that this process may use: the machine's, within the limits of control groups and `ulimit`.

use rustix::process::{Resource, getrlimit};

use crate::tune::cgroup::{self, Group};

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Memory the process may use: the smallest limit of its control groups and its address space, else the machine's memory.
    pub total: u64,
    /// Memory that can be allocated now without swapping: `MemAvailable`, or the rest of the limit if that is less.
    pub available: u64,
}

/// The memory of this process, as the system reports it now. Nothing is limited if the system reports nothing.
pub fn available_memory() -> Memory {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_meminfo(&text));
    let groups = cgroup::of_this_process("memory");
    tightest(machine, groups.iter().filter_map(usage).chain(address_space()))
}

fn tightest(machine: Option<Memory>, limits: impl Iterator<Item = Usage>) -> Memory {
    let unlimited = Memory { total: u64::MAX, available: u64::MAX };
    limits.fold(machine.unwrap_or(unlimited), |memory, usage| Memory {
        total: memory.total.min(usage.limit),
        available: memory.available.min(usage.limit.saturating_sub(usage.used)),
    })
}

/// `MemTotal` and `MemAvailable` of /proc/meminfo.
fn parse_meminfo(text: &str) -> Option<Memory> {
    let kib = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Memory {
        total: kib("MemTotal")?,
        // Kernels before 3.14 have no `MemAvailable`.
        available: kib("MemAvailable").or_else(|| kib("MemFree"))?,
    })
}

/// A limit and its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    limit: u64,
    used: u64,
}

fn usage(group: &Group) -> Option<Usage> {
    let (limit, used, inactive) = if group.unified {
        ("memory.max", "memory.current", "inactive_file")
    } else {
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    };
    let stat = group.read("memory.stat").unwrap_or_default();
    parse_usage(&group.read(limit)?, &group.read(used)?, stat_value(&stat, inactive).unwrap_or(0))
}

/// The limit of `ulimit -v` on the address space. Mapped files count as well.
fn address_space() -> Option<Usage> {
    let limit = getrlimit(Resource::As).current?;
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').next()?.parse().ok()?;
    Some(Usage { limit, used: pages * rustix::param::page_size() as u64 })
}

/// A group's limit and use. Inactive file pages do not count: the kernel drops them on demand.
fn parse_usage(limit: &str, used: &str, inactive_file: u64) -> Option<Usage> {
    // The word `max` (v2) or a number near 2^63 (v1) means no limit.
    let limit = limit.trim().parse::<u64>().ok().filter(|limit| *limit < 1 << 60)?;
    let used = used.trim().parse::<u64>().ok()?.saturating_sub(inactive_file);
    Some(Usage { limit, used })
}

fn stat_value(stat: &str, key: &str) -> Option<u64> {
    let value = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        3884236 kB\nMemFree:          151760 kB\nMemAvailable:    2913200 kB\n";

    #[test]
    fn meminfo_of_a_pi() {
        let memory = parse_meminfo(MEMINFO).expect("both lines");
        assert_eq!(memory.total, 3_884_236 * 1024);
        assert_eq!(memory.available, 2_913_200 * 1024);
        let old = parse_meminfo("MemTotal: 100 kB\nMemFree: 40 kB\n").expect("an old kernel");
        assert_eq!(old.available, 40 * 1024);
        assert_eq!(parse_meminfo("MemTotal: many kB\n"), None);
    }

    #[test]
    fn usage_counts_without_reclaimable_pages() {
        let usage = parse_usage("536870912\n", "400000000\n", 300_000_000).expect("limited");
        assert_eq!((usage.limit, usage.used), (536_870_912, 100_000_000));
        assert_eq!(parse_usage("max\n", "1\n", 0), None);
        assert_eq!(parse_usage("9223372036854771712\n", "1\n", 0), None);
        assert_eq!(stat_value("anon 5\ninactive_file 7\n", "inactive_file"), Some(7));
    }

    #[test]
    fn the_tightest_limit_counts() {
        let limit = |limit, used| Usage { limit, used };
        let memory = tightest(parse_meminfo(MEMINFO), [limit(1000, 900), limit(2000, 1990)].into_iter());
        assert_eq!((memory.total, memory.available), (1000, 10));
        assert_eq!(tightest(None, [].into_iter()).total, u64::MAX);
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = available_memory();
        assert!(memory.available > 0 && memory.available <= memory.total && memory.total < u64::MAX);
    }
}
