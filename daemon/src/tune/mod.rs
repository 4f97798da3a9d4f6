//! Which cores this process may use, and how many threads to run on them.
//!
//! Usable cores are what the affinity mask (cpusets included) leaves, with hyper-thread siblings counted once and the
//! slower half of a big.LITTLE board left out, cut down to the cgroup's CPU quota.

pub mod cgroup;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cgroup::Group;

/// Thread counts for the two kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Threads {
    /// Threads that decode one token at a time.
    pub decode: usize,
    /// Threads that read prompts and encode text: compute-bound, every usable core helps.
    pub batch: usize,
}

/// What is known of the processor, as far as this process may use it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Topology {
    /// Logical CPUs in the affinity mask.
    pub allowed: Vec<usize>,
    /// Of those, one per physical core, the fastest kind only.
    pub cores: Vec<usize>,
    /// CPU time this process may use per second of wall time, in cores; `None` when unlimited.
    pub quota: Option<f64>,
}

impl Topology {
    /// Reads the affinity mask, `/sys` and the cgroup of this process.
    pub fn detect() -> Self {
        let allowed = affinity();
        let cores = fastest_cores(&allowed, Path::new("/sys/devices/system/cpu"));
        Self { allowed, cores, quota: smallest_quota(&cgroup::of_this_process("cpu")) }
    }

    /// Cores worth a thread each, at least one.
    pub fn usable(&self) -> usize {
        let by_quota = self.quota.map_or(usize::MAX, |q| (q.floor() as usize).max(1));
        self.cores.len().min(by_quota).max(1)
    }

    /// Thread counts: the configured ones where they are not 0, else one per usable core to read prompts and encode.
    ///
    /// Decoding meets at a barrier hundreds of times per token. On two cores the second thread costs more there than it
    /// brings (SmolLM2-135M: 34 tokens/s with two threads, 65 with one, on a quiet machine): one thread decodes.
    pub fn threads(&self, decode: usize, batch: usize) -> Threads {
        let or = |configured: usize, chosen: usize| if configured == 0 { chosen } else { configured };
        let usable = self.usable();
        Threads { decode: or(decode, if usable <= 2 { 1 } else { usable }), batch: or(batch, usable) }
    }
}

fn affinity() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

/// One logical CPU per physical core out of `allowed`, of the fastest kind: cores with less than three quarters of the
/// largest `cpu_capacity` (the kernel's scale of 1024) only hold the others up at every barrier.
fn fastest_cores(allowed: &[usize], sys: &Path) -> Vec<usize> {
    let read = |cpu: usize, file: &str| std::fs::read_to_string(sys.join(format!("cpu{cpu}/{file}"))).ok();
    let mut seen = BTreeSet::new();
    let cores: Vec<usize> = allowed
        .iter()
        .copied()
        .filter(|cpu| match read(*cpu, "topology/thread_siblings_list") {
            Some(siblings) => seen.insert(siblings.trim().to_owned()),
            None => true,
        })
        .collect();
    let capacity: BTreeMap<usize, u32> =
        cores.iter().filter_map(|cpu| Some((*cpu, read(*cpu, "cpu_capacity")?.trim().parse().ok()?))).collect();
    let Some(largest) = capacity.values().max() else { return cores };
    let fast = |cpu: &usize| capacity.get(cpu).is_none_or(|c| c * 4 >= largest * 3);
    cores.into_iter().filter(fast).collect()
}

/// The smallest CPU quota of these groups, in cores (cgroup v2 `cpu.max`, v1 `cpu.cfs_*`).
fn smallest_quota(groups: &[Group]) -> Option<f64> {
    groups.iter().filter_map(quota).min_by(f64::total_cmp)
}

fn quota(group: &Group) -> Option<f64> {
    if group.unified {
        let text = group.read("cpu.max")?;
        let (quota, period) = text.trim().split_once(' ')?;
        ratio(quota, period)
    } else {
        ratio(group.read("cpu.cfs_quota_us")?.trim(), group.read("cpu.cfs_period_us")?.trim())
    }
}

/// `quota / period`; `None` for `max`, -1 and nonsense.
fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        std::fs::write(path, text).expect("file");
    }

    #[test]
    fn hyper_threads_count_once_and_little_cores_not() {
        let sys = tempfile::tempdir().expect("temporary directory");
        // RK3588: four little cores (capacity 530), four big ones (1024).
        for cpu in 0..8 {
            write(&sys.path().join(format!("cpu{cpu}/topology/thread_siblings_list")), &format!("{cpu}\n"));
            write(&sys.path().join(format!("cpu{cpu}/cpu_capacity")), if cpu < 4 { "530\n" } else { "1024\n" });
        }
        assert_eq!(fastest_cores(&[0, 1, 2, 3, 4, 5, 6, 7], sys.path()), [4, 5, 6, 7]);
        assert_eq!(fastest_cores(&[0, 1], sys.path()), [0, 1]);

        let smt = tempfile::tempdir().expect("temporary directory");
        for cpu in 0..4 {
            write(
                &smt.path().join(format!("cpu{cpu}/topology/thread_siblings_list")),
                if cpu % 2 == 0 { "0,2\n" } else { "1,3\n" },
            );
        }
        assert_eq!(fastest_cores(&[0, 1, 2, 3], smt.path()), [0, 1]);
    }

    #[test]
    fn the_tightest_quota_on_the_way_to_the_root_counts() {
        let root = tempfile::tempdir().expect("temporary directory");
        write(&root.path().join("a/b/cpu.max"), "max 100000\n");
        write(&root.path().join("a/cpu.max"), "150000 100000\n");
        let quota = |text: &str| smallest_quota(&cgroup::groups(text, "cpu", root.path()));
        assert_eq!(quota("0::/a/b\n"), Some(1.5));
        assert_eq!(quota("0::/c\n"), None);
        write(&root.path().join("cpu/d/cpu.cfs_quota_us"), "50000\n");
        write(&root.path().join("cpu/d/cpu.cfs_period_us"), "100000\n");
        assert_eq!(quota("4:cpu,cpuacct:/d\n"), Some(0.5));
        let topology = Topology { allowed: vec![0, 1], cores: vec![0, 1], quota: Some(0.5) };
        assert_eq!(topology.usable(), 1);
    }

    #[test]
    fn this_machine_has_a_core_and_settings_win() {
        let here = Topology::detect();
        assert!(here.usable() >= 1 && here.usable() <= here.allowed.len());
        assert_eq!(here.threads(7, 0), Threads { decode: 7, batch: here.usable() });
        let four = Topology { allowed: vec![0, 1, 2, 3], cores: vec![0, 1, 2, 3], quota: None };
        assert_eq!(four.threads(0, 0), Threads { decode: 4, batch: 4 });
        let two = Topology { quota: Some(2.5), ..four };
        assert_eq!(two.threads(0, 3), Threads { decode: 1, batch: 3 });
    }
}
