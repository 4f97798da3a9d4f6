//! Adapts the number of decoding threads to the load: pure arithmetic over the time of each token.
//!
//! Other work on the cores, a lower quota and a processor that throttles all show in one way: tokens take longer. The governor
//! then tries fewer threads for a few tokens and keeps the faster number. Later it tries more threads again, less often after
//! each fruitless trial. It tries nothing while nothing changes.

use std::time::Duration;

use super::{Calibration, WorkKind};

/// Tokens whose median is the current speed: two outliers among them do not count.
const WINDOW: usize = 5;
/// Tokens of a trial, and at least this many before one.
const TRIAL: usize = 3;
/// Share of the usual speed below which something has changed.
const SLOW: f64 = 0.7;
/// A trial must be faster by this factor to be kept.
const GAIN: f64 = 1.1;
/// Weight of the latest window in the usual speed.
const MEMORY: f64 = 0.05;
/// Decoding time between two trials: at first, and at most after fruitless ones.
const SOON: f64 = 0.3;
const LATE: f64 = 20.0;
/// A fruitless trial may cost this share of the time at most.
const REGRET: f64 = 0.05;
/// The calibration no longer holds if decoding is slower than this share of its speed, or uses other threads, for this many
/// seconds. A long context halves the speed, which is no drift.
const DRIFTED: f64 = 0.45;
const LASTING: f64 = 20.0;

/// Chooses the decoding threads from token to token.
#[derive(Debug, Clone)]
pub struct Governor {
    /// Numbers of threads to choose from, ascending, never empty.
    choices: Vec<usize>,
    /// Index of the one in use, and of the calibrated one.
    current: usize,
    home: usize,
    /// Tokens per second with the calibrated threads: calibrated, else the best usual speed; 0 when unknown.
    expected: f64,
    calibrated: bool,
    /// Latest speeds at the current number, tokens per second; at most [`WINDOW`].
    window: Vec<f64>,
    /// The usual speed at the current number; 0 until a few are known.
    usual: f64,
    trial: Option<Trial>,
    /// Decoding time since the last trial, and the least such time before the next one.
    since: f64,
    pause: f64,
    /// Direction of the last successful trial: the next one follows it at once.
    climbing: Option<Direction>,
    /// Seconds of decoding that contradict the calibration.
    adrift: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Down,
    Up,
}

#[derive(Debug, Clone)]
struct Trial {
    choice: usize,
    direction: Direction,
    speeds: Vec<f64>,
    seconds: f64,
}

impl Governor {
    /// Begins with the calibrated number and chooses among the measured ones.
    pub fn new(calibration: &Calibration) -> Self {
        let rows = calibration.rows(WorkKind::Decode);
        let choices: Vec<usize> = rows.iter().map(|row| row.threads).collect();
        let expected = rows.iter().find(|row| row.threads == calibration.best.decode).map_or(0.0, |row| row.median);
        Self { expected, calibrated: expected > 0.0, ..Self::among(choices, calibration.best.decode) }
    }

    /// Begins with `start` and chooses among `choices`; their speeds are unknown.
    pub fn among(mut choices: Vec<usize>, start: usize) -> Self {
        choices.push(start.max(1));
        choices.retain(|threads| *threads > 0);
        choices.sort_unstable();
        choices.dedup();
        let home = choices.iter().position(|threads| *threads == start).unwrap_or(0);
        Self {
            choices,
            current: home,
            home,
            expected: 0.0,
            calibrated: false,
            window: Vec::with_capacity(WINDOW),
            usual: 0.0,
            trial: None,
            since: 0.0,
            pause: SOON,
            climbing: None,
            adrift: 0.0,
        }
    }

    /// Always uses this number, because it is configured.
    pub fn fixed(threads: usize) -> Self {
        Self::among(vec![], threads)
    }

    /// Threads for the next token.
    pub fn decode_threads(&self) -> usize {
        self.choices[self.trial.as_ref().map_or(self.current, |trial| trial.choice)]
    }

    /// Takes the time of decoding `tokens` with `threads`. Call it after every decode of single tokens (or of a few guesses).
    pub fn observe(&mut self, threads: usize, tokens: usize, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if threads != self.decode_threads() || tokens == 0 || seconds <= 0.0 {
            return;
        }
        let speed = tokens as f64 / seconds;
        if self.trial.is_some() {
            self.tried(speed, seconds);
            return;
        }
        self.watch_drift(speed, seconds);
        self.since += seconds;
        if self.window.len() == WINDOW {
            self.window.remove(0);
        }
        self.window.push(speed);
        if self.window.len() < TRIAL || self.choices.len() == 1 {
            return;
        }
        let now = median(&self.window);
        if self.usual <= 0.0 {
            self.usual = now;
        }
        let slow = now < SLOW * self.usual;
        if let Some(direction) = self.climbing.take() {
            self.begin(direction);
        } else if slow {
            // This is the usual speed from now on, whatever the trial shows: one change, one trial.
            self.usual = now;
            self.pause = SOON;
            self.begin(Direction::Down);
        } else {
            self.usual += MEMORY * (now - self.usual);
            if self.current == self.home && !self.calibrated {
                self.expected = self.expected.max(self.usual);
            }
            if self.since >= self.pause {
                self.look_around();
            }
        }
    }

    /// Whether the calibration has been wrong for a while and should be repeated when the generator is idle. Stays set for this
    /// governor's life.
    pub fn drifted(&self) -> bool {
        self.adrift >= LASTING
    }

    /// A periodic trial: upwards when fewer threads run than calibrated, downwards when tokens take much longer than calibrated.
    /// There is no trial at the calibrated number and speed.
    fn look_around(&mut self) {
        let direction = if self.current < self.home {
            Direction::Up
        } else if self.current > 0 && self.usual < SLOW * self.expected {
            Direction::Down
        } else {
            return;
        };
        self.begin(direction);
    }

    fn begin(&mut self, direction: Direction) {
        self.since = 0.0;
        self.trial = match direction {
            Direction::Down => below(self.current),
            // Numbers beyond the calibrated one gain nothing.
            Direction::Up => (self.current < self.home).then_some(self.current + 1),
        }
        .map(|choice| Trial { choice, direction, speeds: Vec::with_capacity(TRIAL), seconds: 0.0 });
    }

    fn tried(&mut self, speed: f64, seconds: f64) {
        let Some(trial) = &mut self.trial else { return };
        trial.speeds.push(speed);
        trial.seconds += seconds;
        let usual = median(&self.window);
        // One token that takes three times as long ends the trial, before users notice it.
        let hopeless = speed * 3.0 < usual;
        if trial.speeds.len() < TRIAL && !hopeless {
            return;
        }
        let (found, choice, direction, took) = (median(&trial.speeds), trial.choice, trial.direction, trial.seconds);
        let tokens = trial.speeds.len() as f64;
        self.trial = None;
        if !hopeless && found > GAIN * usual {
            self.current = choice;
            self.window.clear();
            self.usual = found;
            self.pause = SOON;
            self.climbing = Some(direction);
            return;
        }
        let lost = (took - tokens / usual).max(0.0);
        self.pause = (self.pause * 2.0).clamp(lost / REGRET, LATE.max(lost / REGRET));
        // Three threads may wait for a missing core just as four do: try fewer before giving up.
        if direction == Direction::Down {
            self.trial = below(choice).map(|choice| Trial { choice, direction, speeds: Vec::with_capacity(TRIAL), seconds: 0.0 });
        }
    }

    fn watch_drift(&mut self, speed: f64, seconds: f64) {
        let slow = self.calibrated && speed < DRIFTED * self.expected;
        if slow || self.current != self.home {
            self.adrift += seconds;
        } else if self.adrift < LASTING {
            // Drift decays at half the rate of its growth: the prevailing state decides.
            self.adrift = (self.adrift - seconds / 2.0).max(0.0);
        }
    }
}

/// The next lower choice: half of many, since each step costs a trial.
fn below(choice: usize) -> Option<usize> {
    (choice > 0).then(|| if choice >= 4 { choice / 2 } else { choice - 1 })
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine: seconds per token, by number of threads and time.
    struct Machine<F> {
        governor: Governor,
        now: f64,
        tokens: usize,
        seconds_per_token: F,
        noise: fastrand::Rng,
    }

    impl<F: Fn(usize, f64) -> f64> Machine<F> {
        fn new(governor: Governor, seconds_per_token: F) -> Self {
            Self { governor, now: 0.0, tokens: 0, seconds_per_token, noise: fastrand::Rng::with_seed(7) }
        }

        fn token(&mut self) -> usize {
            let threads = self.governor.decode_threads();
            // Up to 8 % of noise, and a disturbance of one token in fifty.
            let noise = 1.0 + 0.08 * self.noise.f64() + if self.noise.u8(0..50) == 0 { 2.0 } else { 0.0 };
            let seconds = (self.seconds_per_token)(threads, self.now) * noise;
            self.now += seconds;
            self.tokens += 1;
            self.governor.observe(threads, 1, Duration::from_secs_f64(seconds));
            threads
        }

        /// Decodes until a time; returns tokens per second.
        fn until(&mut self, time: f64) -> f64 {
            let (from, tokens) = (self.now, self.tokens);
            while self.now < time {
                self.token();
            }
            (self.tokens - tokens) as f64 / (self.now - from)
        }
    }

    fn quiet(threads: usize) -> f64 {
        0.02 / [1.0, 1.9, 2.7, 3.4][threads - 1]
    }

    fn four() -> Governor {
        Governor::among(vec![1, 2, 3, 4], 4)
    }

    #[test]
    fn on_a_quiet_machine_nothing_is_tried() {
        let mut machine = Machine::new(four(), |threads, _| quiet(threads));
        let away = (0..5000).filter(|_| machine.token() != 4).count();
        assert!(away <= 100, "{away} of 5000 tokens elsewhere");
        assert!(!machine.governor.drifted());
    }

    #[test]
    fn shared_cores_take_threads_within_eight_tokens() {
        // From 2 s to 12 s other work takes two cores: more than two threads wait for one that does not run.
        let busy = |time: f64| (2.0..12.0).contains(&time);
        let cost = move |threads: usize, time: f64| if busy(time) && threads > 2 { 0.3 } else { quiet(threads) };
        let mut machine = Machine::new(four(), cost);
        machine.until(2.0);
        let first: Vec<usize> = (0..10).map(|_| machine.token()).collect();
        assert!(first[..8].contains(&3) || first[..8].contains(&2), "{first:?}");
        // The governor may try three threads first, which are no better than four.
        let speed = machine.until(12.0);
        assert!(speed > 0.8 / quiet(2), "{speed}");
        // A fruitless trial of 0.3 s is not repeated for 6 s.
        machine.until(20.0);
        let back = machine.until(40.0);
        assert!(back > 0.93 / quiet(4) / 1.08, "{back}");
    }

    #[test]
    fn trials_on_two_shared_cores_cost_little() {
        let governor = Governor::among(vec![1, 2], 2);
        let mut machine = Machine::new(governor, |threads, time| match (threads, time >= 1.0) {
            (1, false) => 0.011,
            (2, false) => 0.0066,
            (1, _) => 0.016,
            (_, _) => 0.5,
        });
        machine.until(1.0);
        assert_eq!(machine.governor.decode_threads(), 2);
        let tokens: Vec<usize> = (0..8).map(|_| machine.token()).collect();
        assert_eq!(tokens[7], 1, "{tokens:?}");
        machine.until(4.0);
        let speed = machine.until(60.0);
        assert!(speed > 0.9 / 0.016 / 1.08, "{speed}");
        assert!(machine.governor.drifted(), "a minute elsewhere");
    }

    #[test]
    fn a_lowered_quota_shows_in_fewer_threads() {
        // A quota of two cores: the kernel stops all threads for half of each period when four run.
        let cost = |threads: usize, time: f64| quiet(threads) * if time > 1.0 && threads > 2 { threads as f64 } else { 1.0 };
        let mut machine = Machine::new(four(), cost);
        machine.until(3.0);
        let speed = machine.until(30.0);
        assert!(speed > 0.85 / quiet(2), "{speed}");
        assert!(machine.governor.drifted());
    }

    #[test]
    fn throttling_keeps_the_threads_and_is_reported() {
        let calibration = Calibration {
            best: crate::tune::Threads { decode: 4, batch: 4 },
            decode: (1..=4)
                .map(|n| crate::tune::ThreadSpeed { threads: n, median: 1.0 / quiet(n), min: 1.0, max: 999.0, samples: 3 })
                .collect(),
            batch: vec![],
            verify: vec![],
            seconds: 1.0,
        };
        let cost = |threads: usize, time: f64| quiet(threads) * if time > 1.0 { 2.6 } else { 1.0 };
        let mut machine = Machine::new(Governor::new(&calibration), cost);
        machine.until(10.0);
        assert!(!machine.governor.drifted(), "not yet lasting");
        let speed = machine.until(30.0);
        assert_eq!(machine.governor.decode_threads(), 4);
        assert!(speed > 0.9 / (quiet(4) * 2.6), "{speed}");
        assert!(machine.governor.drifted());
    }

    #[test]
    fn configured_threads_stay() {
        let mut machine = Machine::new(Governor::fixed(3), |_, time| if time > 1.0 { 1.0 } else { 0.01 });
        (0..200).for_each(|_| assert_eq!(machine.token(), 3));
        let mut governor = four();
        governor.observe(9, 1, Duration::from_secs(100));
        governor.observe(4, 0, Duration::from_secs(100));
        governor.observe(4, 1, Duration::ZERO);
        assert_eq!((governor.decode_threads(), governor.drifted()), (4, false));
        assert_eq!(Governor::among(vec![0], 0).decode_threads(), 1);
    }
}
