//! Tells whether other work uses the cores.

use std::time::Duration;

/// Share of one core's time that other work may take for the machine to count as quiet.
const BUSY: f64 = 0.25;

/// Processor time of the whole machine so far.
#[derive(Debug, Clone, Copy)]
pub struct Busy {
    /// In ticks of a hundredth of a second (`USER_HZ`), all cores together.
    ticks: u64,
}

impl Busy {
    /// Reads `/proc/stat`; `None` where it cannot be read.
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; stolen time is not ours either.
        let busy = |i: usize| fields.get(i).copied().unwrap_or(0);
        (fields.len() >= 4).then(|| Self { ticks: [0, 1, 2, 5, 6, 7].into_iter().map(busy).sum() })
    }

    /// Whether all processes together were nearly idle since `earlier`, `elapsed` ago.
    pub fn was_quiet_since(self, earlier: Self, elapsed: Duration) -> bool {
        let seconds = self.ticks.saturating_sub(earlier.ticks) as f64 / 100.0;
        seconds <= BUSY * elapsed.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_others_is_seen() {
        let stat = |user: u64, stolen: u64| format!("cpu  {user} 0 10 5000 7 1 2 {stolen} 0 0\ncpu0 1 2 3 4\n");
        let before = Busy::parse(&stat(100, 0)).expect("read");
        let second = Duration::from_secs(1);
        assert!(Busy::parse(&stat(120, 0)).expect("read").was_quiet_since(before, second));
        assert!(!Busy::parse(&stat(150, 0)).expect("read").was_quiet_since(before, second));
        assert!(!Busy::parse(&stat(100, 60)).expect("read").was_quiet_since(before, second));
        assert!(Busy::parse("cpu x").is_none() && Busy::parse("").is_none());
    }
}
