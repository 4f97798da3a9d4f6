//! The cores that this process may use, from `/proc`, `/sys` and its control groups.

use std::collections::BTreeSet;
use std::path::Path;

use super::cgroup::{self, Group};
use super::{CalibrationKey, Threads};

/// Logical CPUs beyond this number are ignored.
const MOST_CPUS: usize = 1024;

/// One physical core.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Core {
    /// Its representative logical CPU: the first of its hardware threads that this process may use.
    pub cpu: usize,
    /// Its hardware threads in the affinity mask; one of our threads uses all of them up.
    pub siblings: Vec<usize>,
    /// The kernel's measure of its speed, 1024 for the fastest; Arm boards and recent hybrid x86 have it.
    pub capacity: Option<u64>,
    /// Highest clock in kHz.
    pub max_khz: Option<u64>,
    /// Whether it has at least three quarters of the fastest core's capacity, or of its clock if capacities are unknown.
    pub fast: bool,
}

impl Core {
    fn speed(&self) -> Option<u64> {
        self.capacity.or(self.max_khz)
    }
}

/// The processor, as far as this process may use it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Topology {
    /// The system's name of the processor or board.
    pub cpu: String,
    /// Logical CPUs that affinity mask and cpusets allow.
    pub allowed: Vec<usize>,
    /// Physical cores with such a CPU, the fastest first.
    pub cores: Vec<Core>,
    /// CPU time this process may use per second of wall time, in cores; `None` when unlimited.
    pub quota: Option<f64>,
}

impl Topology {
    /// Reads `/proc`, `/sys` and the control groups of this process.
    pub fn detect() -> Self {
        Self::detect_at(Path::new("/"))
    }

    /// Like [`Topology::detect`], below another root that is laid out like a running system's.
    pub fn detect_at(root: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let groups = |controller: &str| {
            let text = read("proc/self/cgroup").unwrap_or_default();
            cgroup::groups(&text, controller, &root.join("sys/fs/cgroup"))
        };
        let status = read("proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let mut allowed = mask.map(cpu_list).unwrap_or_default();
        // The kernel keeps the mask within the cpuset and the online CPUs. Another root may not.
        for limit in groups("cpuset").iter().filter_map(cpuset).chain(read("sys/devices/system/cpu/online").map(|s| cpu_list(&s)))
        {
            let left: BTreeSet<usize> = allowed.intersection(&limit).copied().collect();
            if !left.is_empty() {
                allowed = left;
            }
        }
        if allowed.is_empty() {
            allowed = (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
        }
        Self {
            cpu: processor(root),
            cores: cores(&allowed, &root.join("sys/devices/system/cpu")),
            allowed: allowed.into_iter().collect(),
            quota: groups("cpu").iter().filter_map(quota).min_by(f64::total_cmp),
        }
    }

    /// Fast cores worth a thread each without waiting for the quota, at least one.
    pub fn usable(&self) -> usize {
        let by_quota = self.quota.map_or(usize::MAX, |quota| (quota.floor() as usize).max(1));
        self.fast().min(by_quota).max(1)
    }

    fn fast(&self) -> usize {
        self.cores.iter().filter(|core| core.fast).count()
    }

    /// Numbers of threads worth measuring, ascending: up to the number of fast cores, and all cores if some are slow. The quota,
    /// rounded up, limits them. There are gaps from four on.
    pub fn candidates(&self) -> Vec<usize> {
        let by_quota = self.quota.map_or(usize::MAX, |quota| (quota.ceil() as usize).max(1));
        let (fast, all) = (self.fast().min(by_quota).max(1), self.cores.len().min(by_quota).max(1));
        let step = |n: usize| if n < 4 { 1 } else { (n / 4).next_power_of_two().max(2) };
        let series = std::iter::successors(Some(1), |n| Some(n + step(*n))).take_while(|n| *n < fast);
        let mut candidates: Vec<usize> = series.chain([fast, all]).collect();
        candidates.dedup();
        candidates
    }

    /// Thread counts without a measurement: the configured ones if not 0, else one per usable core.
    pub fn threads(&self, decode: usize, batch: usize) -> Threads {
        let or = |configured: usize| if configured == 0 { self.usable() } else { configured };
        Threads { decode: or(decode), batch: or(batch) }
    }

    /// The conditions of a measurement of a model; `build` names llama.cpp's version.
    pub fn key(&self, model: &str, weights: &str, build: &str) -> CalibrationKey {
        let core = |core: &Core| match core.speed() {
            Some(speed) => format!("{}x{speed}", core.siblings.len()),
            None => core.siblings.len().to_string(),
        };
        CalibrationKey {
            model: model.to_owned(),
            weights: weights.to_owned(),
            cpu: self.cpu.clone(),
            cores: self.cores.iter().map(core).collect::<Vec<_>>().join(","),
            quota_percent: self.quota.map(|quota| (quota * 100.0).round() as u64),
            build: build.to_owned(),
        }
    }
}

/// The board's name and its kinds of cores if there is a device tree, else the processor's name.
fn processor(root: &Path) -> String {
    let text = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let values = |key: &str| -> Vec<String> {
        let value = |line: &str| Some(line.strip_prefix(key)?.trim_start().strip_prefix(':')?.trim().to_owned());
        text.lines().filter_map(value).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let mut names: Vec<String> = ["proc/device-tree/model", "sys/firmware/devicetree/base/model"]
        .iter()
        .find_map(|path| std::fs::read_to_string(root.join(path)).ok())
        .map(|name| name.trim_matches(['\0', '\n', ' ']).to_owned())
        .into_iter()
        .collect();
    names.extend(values("model name"));
    names.extend(values("CPU part").into_iter().map(|part| format!("part {part}")));
    if names.is_empty() { std::env::consts::ARCH.to_owned() } else { names.join(", ").chars().take(200).collect() }
}

/// Reads `0-3,8`.
fn cpu_list(text: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?.min(MOST_CPUS))
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

fn cores(allowed: &BTreeSet<usize>, sys: &Path) -> Vec<Core> {
    let read = |cpu: usize, file: &str| std::fs::read_to_string(sys.join(format!("cpu{cpu}/{file}"))).ok();
    let number = |cpu: usize, file: &str| read(cpu, file)?.trim().parse::<u64>().ok().filter(|value| *value > 0);
    let mut seen = BTreeSet::new();
    let mut cores = Vec::new();
    for cpu in allowed.iter().copied() {
        let list = ["topology/core_cpus_list", "topology/thread_siblings_list"].iter().find_map(|file| read(cpu, file));
        let mut siblings: Vec<usize> = list.map(|s| cpu_list(&s)).unwrap_or_default().intersection(allowed).copied().collect();
        if !siblings.contains(&cpu) {
            siblings = vec![cpu];
        }
        if seen.contains(&cpu) {
            continue;
        }
        seen.extend(siblings.iter().copied());
        let (capacity, max_khz) = (number(cpu, "cpu_capacity"), number(cpu, "cpufreq/cpuinfo_max_freq"));
        cores.push(Core { cpu, siblings, capacity, max_khz, fast: true });
    }
    // All cores are compared by the same figure: a capacity cannot be compared with a clock.
    let by_capacity = cores.iter().all(|core| core.capacity.is_some());
    let speed = |core: &Core| if by_capacity { core.capacity } else { core.max_khz };
    let largest = cores.iter().filter_map(speed).max().unwrap_or(0);
    for core in &mut cores {
        core.fast = speed(core).is_none_or(|own| own * 4 >= largest * 3);
    }
    cores.sort_by_key(|core| (std::cmp::Reverse(speed(core).unwrap_or(largest)), core.cpu));
    cores
}

fn cpuset(group: &Group) -> Option<BTreeSet<usize>> {
    let files: &[&str] = if group.unified { &["cpuset.cpus.effective"] } else { &["cpuset.effective_cpus", "cpuset.cpus"] };
    files.iter().find_map(|file| group.read(file)).map(|text| cpu_list(&text))
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

/// A made-up system.
#[cfg(test)]
pub(super) struct Board(pub(super) tempfile::TempDir);

#[cfg(test)]
impl Board {
    /// A system whose affinity mask is `allowed`.
    pub(super) fn new(allowed: &str) -> Self {
        let board = Self(tempfile::tempdir().expect("temporary directory"));
        board.write("proc/self/status", &format!("Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\n"));
        board.write("proc/self/cgroup", "0::/system.slice/vademecum.service\n");
        board
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        std::fs::write(path, text).expect("file");
    }

    /// A logical CPU with its siblings, capacity and clock.
    pub(super) fn cpu(&self, cpu: usize, siblings: &str, capacity: Option<u32>, khz: Option<u32>) {
        let dir = format!("sys/devices/system/cpu/cpu{cpu}");
        self.write(&format!("{dir}/topology/thread_siblings_list"), &format!("{siblings}\n"));
        if let Some(capacity) = capacity {
            self.write(&format!("{dir}/cpu_capacity"), &format!("{capacity}\n"));
        }
        if let Some(khz) = khz {
            self.write(&format!("{dir}/cpufreq/cpuinfo_max_freq"), &format!("{khz}\n"));
        }
    }

    pub(super) fn detect(&self) -> Topology {
        Topology::detect_at(self.0.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(topology: &Topology) -> Vec<usize> {
        topology.cores.iter().map(|core| core.cpu).collect()
    }

    #[test]
    fn a_pi_5_has_four_equal_cores() {
        let board = Board::new("0-3");
        for cpu in 0..4 {
            board.cpu(cpu, &cpu.to_string(), Some(1024), Some(2_400_000));
        }
        board.write("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0");
        board.write("proc/cpuinfo", "processor\t: 0\nCPU part\t: 0xd0b\n\nprocessor\t: 1\nCPU part\t: 0xd0b\n");
        let topology = board.detect();
        assert_eq!(topology.cpu, "Raspberry Pi 5 Model B Rev 1.0, part 0xd0b");
        assert_eq!((topology.usable(), topology.candidates()), (4, vec![1, 2, 3, 4]));
        assert!(topology.cores.iter().all(|core| core.fast) && topology.quota.is_none());
    }

    #[test]
    fn orins_have_clusters_of_equal_cores() {
        for (count, candidates) in [(6, vec![1, 2, 3, 4, 6]), (8, vec![1, 2, 3, 4, 6, 8]), (12, vec![1, 2, 3, 4, 6, 8, 10, 12])] {
            let board = Board::new(&format!("0-{}", count - 1));
            for cpu in 0..count {
                board.cpu(cpu, &cpu.to_string(), Some(1024), Some(2_201_600));
                board.write(&format!("sys/devices/system/cpu/cpu{cpu}/topology/cluster_id"), &(cpu / 4).to_string());
            }
            let topology = board.detect();
            assert_eq!((topology.usable(), topology.candidates()), (count, candidates));
        }
        // Power modes of a Jetson take cores offline; the mask may still name them.
        let board = Board::new("0-5");
        board.write("sys/devices/system/cpu/online", "0-3\n");
        assert_eq!(board.detect().allowed, [0, 1, 2, 3]);
    }

    #[test]
    fn an_rk3588_counts_its_big_cores_first() {
        let board = Board::new("0-7");
        for cpu in 0..8 {
            let (capacity, khz) = if cpu < 4 { (530, 1_800_000) } else { (1024, 2_400_000) };
            board.cpu(cpu, &cpu.to_string(), Some(capacity), Some(khz));
        }
        let topology = board.detect();
        assert_eq!(numbers(&topology), [4, 5, 6, 7, 0, 1, 2, 3]);
        assert_eq!((topology.usable(), topology.candidates()), (4, vec![1, 2, 3, 4, 8]));
        // A mask of little cores only makes them the fastest.
        let little = Board::new("0-1");
        (0..2).for_each(|cpu| little.cpu(cpu, &cpu.to_string(), Some(530), None));
        assert_eq!(little.detect().usable(), 2);
    }

    #[test]
    fn the_clock_tells_big_cores_from_little() {
        let board = Board::new("0-3");
        for cpu in 0..4 {
            board.cpu(cpu, &cpu.to_string(), (cpu == 0).then_some(1024), Some(if cpu < 2 { 1_200_000 } else { 2_000_000 }));
        }
        let topology = board.detect();
        assert_eq!((numbers(&topology), topology.usable()), (vec![2, 3, 0, 1], 2));
    }

    #[test]
    fn hyper_threads_count_once() {
        // Two performance cores with two threads each, four efficient ones.
        let board = Board::new("0-7");
        for cpu in 0..4 {
            board.cpu(cpu, if cpu < 2 { "0-1" } else { "2-3" }, None, Some(5_000_000));
        }
        (4..8).for_each(|cpu| board.cpu(cpu, &cpu.to_string(), None, Some(3_600_000)));
        let topology = board.detect();
        assert_eq!(numbers(&topology), [0, 2, 4, 5, 6, 7]);
        assert_eq!(topology.cores[0].siblings, [0, 1]);
        assert_eq!((topology.usable(), topology.candidates()), (2, vec![1, 2, 6]));
        // A mask with one thread of each core allows all cores.
        let odd = Board::new("1,3");
        odd.cpu(1, "0-1", None, None);
        odd.cpu(3, "2-3", None, None);
        assert_eq!((numbers(&odd.detect()), odd.detect().usable()), (vec![1, 3], 2));
    }

    #[test]
    fn a_container_with_a_quota_of_150_percent() {
        let board = Board::new("0-7");
        (0..8).for_each(|cpu| board.cpu(cpu, &cpu.to_string(), None, None));
        // The path exists on the host only; the container's own limits lie in the root.
        board.write("proc/self/cgroup", "0::/docker/0123abc\n");
        board.write("sys/fs/cgroup/cpu.max", "150000 100000\n");
        board.write("sys/fs/cgroup/cpuset.cpus.effective", "2-5\n");
        let topology = board.detect();
        assert_eq!((topology.quota, topology.allowed.as_slice()), (Some(1.5), [2, 3, 4, 5].as_slice()));
        assert_eq!((topology.usable(), topology.candidates()), (1, vec![1, 2]));
        assert_eq!(topology.key("m", "w", "b").quota_percent, Some(150));
    }

    #[test]
    fn the_tightest_quota_up_to_the_root_counts() {
        let board = Board::new("0-3");
        board.write("sys/fs/cgroup/system.slice/vademecum.service/cpu.max", "max 100000\n");
        assert_eq!(board.detect().quota, None);
        board.write("sys/fs/cgroup/system.slice/cpu.max", "250000 100000\n");
        assert_eq!((board.detect().quota, board.detect().usable()), (Some(2.5), 2));
        // Version 1, beside the unified hierarchy.
        board.write("proc/self/cgroup", "4:cpu,cpuacct:/d\n3:cpuset:/s\n0::/\n");
        board.write("sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_quota_us", "50000\n");
        board.write("sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_period_us", "100000\n");
        board.write("sys/fs/cgroup/cpuset/s/cpuset.effective_cpus", "1-2\n");
        let topology = board.detect();
        assert_eq!((topology.quota, topology.usable(), topology.allowed.len()), (Some(0.5), 1, 2));
        board.write("sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_quota_us", "-1\n");
        assert_eq!(board.detect().quota, None);
    }

    #[test]
    fn nonsense_leaves_at_least_one_core() {
        let board = Board::new("7-nine,,-");
        board.write("sys/devices/system/cpu/cpu0/cpu_capacity", "fast\n");
        assert!(board.detect().usable() >= 1);
        assert_eq!(cpu_list("0-18446744073709551615").len(), MOST_CPUS + 1);
    }

    #[test]
    fn this_machine_has_a_core_and_settings_win() {
        let here = Topology::detect();
        assert!(here.usable() >= 1 && here.usable() <= here.allowed.len());
        let mask = rustix::thread::sched_getaffinity(None).expect("a mask");
        assert_eq!(here.allowed.len(), mask.count() as usize);
        assert_eq!(here.threads(7, 0), Threads { decode: 7, batch: here.usable() });
        assert_eq!(here.threads(0, 3), Threads { decode: here.usable(), batch: 3 });
    }
}
