//! Finds the fastest number of threads by measuring each in turn for a few seconds.

use std::time::Duration;

use super::drafts::{self, Pass};
use super::{Threads, WorkKind};

/// Rounds after which a clear result ends the measurement, and most rounds.
const CLEAR_AFTER: usize = 3;
const MOST_ROUNDS: usize = 11;
/// A number of threads equals the fastest if it is slower by less than the fastest's own spread, within these bounds.
const NOISE: std::ops::RangeInclusive<f64> = 0.02..=0.08;

/// The measured speed of one number of threads.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ThreadSpeed {
    /// Threads.
    pub threads: usize,
    /// Tokens per second: the median.
    pub median: f64,
    /// The slowest measurement.
    pub min: f64,
    /// The fastest measurement.
    pub max: f64,
    /// Number of measurements.
    pub samples: usize,
}

/// The measurements of a model on this machine.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Calibration {
    /// The fastest numbers of threads; of equals, the smallest.
    pub best: Threads,
    /// Single tokens, by threads ascending.
    pub decode: Vec<ThreadSpeed>,
    /// Batches, likewise.
    pub batch: Vec<ThreadSpeed>,
    /// Passes that verify guesses, with the best threads, by tokens ascending.
    pub verify: Vec<Pass>,
    /// Duration of the calibration, in seconds.
    pub seconds: f64,
}

impl Calibration {
    /// The rows of one kind of work.
    pub fn rows(&self, kind: WorkKind) -> &[ThreadSpeed] {
        match kind {
            WorkKind::Decode => &self.decode,
            WorkKind::Batch => &self.batch,
        }
    }

    /// Whether the figures are plausible; a file may hold anything.
    pub(super) fn is_sound(&self) -> bool {
        let sound = |rows: &[ThreadSpeed], best: usize| {
            let row = |row: &ThreadSpeed| row.min > 0.0 && row.min <= row.median && row.median <= row.max && row.max.is_finite();
            rows.len() <= 64
                && rows.iter().all(row)
                && rows.windows(2).all(|pair| pair[0].threads < pair[1].threads)
                && rows.iter().any(|row| row.threads == best && best > 0)
        };
        sound(&self.decode, self.best.decode) && sound(&self.batch, self.best.batch) && drafts::are_sound(&self.verify)
    }
}

/// Measures each of `candidates` (numbers of threads, ascending) for both kinds of work. They take turns, forwards and backwards,
/// so that a disturbance hits all. Ends after `limit` once each was measured, or when the result is clear.
///
/// `measure` returns the tokens per second of one short run, `elapsed` the time since the beginning. `None` when there are no
/// candidates.
///
/// # Errors
/// The first error of `measure`.
pub fn calibrate<E>(
    candidates: &[usize],
    limit: Duration,
    elapsed: impl Fn() -> Duration,
    mut measure: impl FnMut(WorkKind, usize) -> Result<f64, E>,
) -> Result<Option<Calibration>, E> {
    let Some(most) = candidates.last() else { return Ok(None) };
    let kinds = [WorkKind::Decode, WorkKind::Batch];
    // Not measured: this reads the model's pages and starts the threads.
    for kind in kinds {
        measure(kind, *most)?;
    }
    let mut series = [vec![Vec::new(); candidates.len()], vec![Vec::new(); candidates.len()]];
    'rounds: for round in 0..MOST_ROUNDS {
        for (kind, series) in kinds.into_iter().zip(&mut series) {
            for i in 0..candidates.len() {
                // The most threads go first: they are probably the fastest if time runs out.
                let i = if round.is_multiple_of(2) { candidates.len() - 1 - i } else { i };
                // Each is measured once at least: a candidate without a figure cannot be chosen later.
                if elapsed() >= limit && round > 0 {
                    break 'rounds;
                }
                let speed = measure(kind, candidates[i])?;
                if speed.is_finite() && speed > 0.0 {
                    series[i].push(speed);
                }
            }
        }
        if round + 1 >= CLEAR_AFTER && series.iter().all(|series| is_clear(&rows(candidates, series))) {
            break;
        }
    }
    let [decode, batch] = series.map(|series| rows(candidates, &series));
    let (Some(d), Some(b)) = (best(&decode), best(&batch)) else { return Ok(None) };
    Ok(Some(Calibration {
        best: Threads { decode: d, batch: b },
        decode,
        batch,
        verify: vec![],
        seconds: elapsed().as_secs_f64(),
    }))
}

fn rows(candidates: &[usize], series: &[Vec<f64>]) -> Vec<ThreadSpeed> {
    let row = |(threads, speeds): (&usize, &Vec<f64>)| {
        let mut speeds = speeds.clone();
        speeds.sort_by(f64::total_cmp);
        let (min, max) = (*speeds.first()?, *speeds.last()?);
        let middle = speeds.len() / 2;
        let median =
            if speeds.len().is_multiple_of(2) { f64::midpoint(speeds[middle - 1], speeds[middle]) } else { speeds[middle] };
        Some(ThreadSpeed { threads: *threads, median, min, max, samples: speeds.len() })
    };
    candidates.iter().zip(series).filter_map(row).collect()
}

fn fastest(rows: &[ThreadSpeed]) -> Option<&ThreadSpeed> {
    rows.iter().max_by(|a, b| a.median.total_cmp(&b.median))
}

/// The fewest threads among the fastest within noise.
fn best(rows: &[ThreadSpeed]) -> Option<usize> {
    let fastest = fastest(rows)?;
    let noise = ((fastest.max - fastest.min) / (2.0 * fastest.median)).clamp(*NOISE.start(), *NOISE.end());
    Some(rows.iter().find(|row| row.median >= fastest.median * (1.0 - noise))?.threads)
}

/// Whether the slowest run of the fastest number of threads beats every run of every other.
fn is_clear(rows: &[ThreadSpeed]) -> bool {
    fastest(rows).is_some_and(|best| rows.iter().all(|row| row.threads == best.threads || row.max < best.min))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A machine on which a run takes a tenth of a second and has the speed `speed`.
    fn run(candidates: &[usize], limit_ms: u64, speed: impl Fn(WorkKind, usize, usize) -> f64) -> (Calibration, usize) {
        let clock = Cell::new(0);
        let elapsed = || Duration::from_millis(100 * clock.get() as u64);
        let measure = |kind, threads| {
            clock.set(clock.get() + 1);
            Ok::<_, ()>(speed(kind, threads, clock.get()))
        };
        let found = calibrate(candidates, Duration::from_millis(limit_ms), elapsed, measure);
        (found.expect("no error").expect("a result"), clock.get())
    }

    #[test]
    fn a_clear_choice_ends_early() {
        let (found, runs) = run(&[1, 2, 3, 4], 60_000, |kind, threads, _| match kind {
            WorkKind::Decode => 100.0 - 10.0 * (threads as f64 - 2.0).abs(),
            WorkKind::Batch => 100.0 * threads as f64,
        });
        assert_eq!(found.best, Threads { decode: 2, batch: 4 });
        assert_eq!(runs, 2 + CLEAR_AFTER * 8);
        assert!(found.is_sound() && found.decode.len() == 4);
        assert_eq!(found.rows(WorkKind::Batch)[0], ThreadSpeed { threads: 1, median: 100.0, min: 100.0, max: 100.0, samples: 3 });
    }

    #[test]
    fn of_equals_the_fewest_threads_win() {
        // Three threads are ahead by 1 %, within 4 % of noise.
        let (found, runs) = run(&[1, 2, 3], 60_000, |_, threads, run| {
            [50.0, 99.0, 100.0][threads - 1] * (1.0 + 0.02 * ((run * 7 % 5) as f64 - 2.0) / 2.0)
        });
        assert_eq!(found.best, Threads { decode: 2, batch: 2 });
        assert!(runs > 2 + CLEAR_AFTER * 6, "equals are not clear: {runs}");
    }

    #[test]
    fn medians_do_not_mind_a_disturbance() {
        let (found, _) = run(&[1, 2], 60_000, |_, threads, run| {
            let speed = 50.0 * threads as f64;
            if run % 6 == 0 { speed / 10.0 } else { speed }
        });
        assert_eq!(found.best, Threads { decode: 2, batch: 2 });
    }

    #[test]
    fn each_is_measured_once_then_time_counts() {
        let (found, runs) = run(&[1, 2, 3, 4], 500, |_, threads, _| 10.0 * threads as f64);
        assert_eq!(runs, 2 + 8);
        assert_eq!((found.best, found.decode.len(), found.batch.len()), (Threads { decode: 4, batch: 4 }, 4, 4));
        assert!(found.is_sound());
        let nothing = calibrate(&[], Duration::ZERO, || Duration::ZERO, |_, _| Ok::<_, ()>(1.0));
        assert_eq!(nothing, Ok(None));
        let failed = calibrate(&[1], Duration::ZERO, || Duration::ZERO, |_, _| Err("no"));
        assert_eq!(failed, Err("no"));
    }
}
