//! Results as a table for people and as JSON for programs: one row per measure, one column per program.

use crate::Result;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Median and extremes of a series.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// Half of the values are not above it.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one finite value; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], values[middle]) } else { values[middle] };
        Some(Self { median, min, max })
    }
}

impl std::fmt::Display for Spread {
    /// `median (min to max)`, or one figure where they are the same.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&number(self.median))?;
        if (self.max - self.min).abs() < f64::EPSILON {
            Ok(())
        } else {
            write!(f, " ({} to {})", number(self.min), number(self.max))
        }
    }
}

/// Three digits or so; ratios have two places.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// One measured program.
#[derive(Debug, Clone)]
pub struct Column {
    /// Name and version.
    pub program: String,
    /// Key of the measure, as in the table's rows, to its value.
    pub values: Vec<(&'static str, Spread)>,
    /// What stands beside the figures: questions and answers, settings.
    pub details: Value,
}

/// Measures in the order of the table: key, what it is, unit.
pub type Rows = [(&'static str, &'static str, &'static str)];

/// Where and when it was measured.
///
/// # Errors
/// `/proc` cannot be read.
pub fn machine() -> Result<Value> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    // Arm boards name themselves in the device tree, x86 its processor here.
    let board = fs::read_to_string("/proc/device-tree/model").ok().map(|text| text.trim_end_matches('\0').to_owned());
    let processor =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()));
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let memory_kb =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    Ok(json!({
        "machine": board.or(processor).unwrap_or_else(|| "unknown".into()),
        "architecture": std::env::consts::ARCH,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_mib": memory_kb.unwrap_or(0) / 1024,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "date": output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        "commit": output("git", &["describe", "--always", "--dirty"]),
    }))
}

/// Load average of the last minute.
///
/// # Errors
/// `/proc` cannot be read.
pub fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// The table, as Markdown: `median (min to max)` per cell.
pub fn table(rows: &Rows, columns: &[Column]) -> String {
    let name =
        |(_, label, unit): &(&str, &str, &str)| if unit.is_empty() { (*label).to_owned() } else { format!("{label}, {unit}") };
    let mut lines: Vec<Vec<String>> =
        vec![std::iter::once(String::new()).chain(columns.iter().map(|c| c.program.clone())).collect()];
    for row in rows {
        let cell = |column: &Column| {
            column.values.iter().find(|(key, _)| *key == row.0).map_or("-".to_owned(), |(_, spread)| spread.to_string())
        };
        lines.push(std::iter::once(name(row)).chain(columns.iter().map(cell)).collect());
    }
    grid(&lines)
}

/// Lines of equally many cells as a Markdown table; the first is its head.
pub fn grid(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (i, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if i == 0 {
            let _ = writeln!(text, "|{}|", widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|"));
        }
    }
    text
}

/// The conditions as a Markdown list.
pub fn list(conditions: &Value) -> String {
    let lines = conditions.as_object().into_iter().flatten();
    lines.map(|(key, value)| format!("- {key}: {}\n", value.as_str().map_or_else(|| value.to_string(), str::to_owned))).collect()
}

/// Writes `<name>.json` and `<name>.md` into `dir`.
///
/// # Errors
/// They cannot be written.
pub fn write(dir: &Path, name: &str, conditions: &Value, rows: &Rows, columns: &[Column]) -> Result<()> {
    fs::create_dir_all(dir)?;
    let measures: Map<String, Value> =
        rows.iter().map(|(key, label, unit)| ((*key).to_owned(), json!({ "what": label, "unit": unit }))).collect();
    let programs: Vec<Value> = columns
        .iter()
        .map(|column| {
            let figures: Map<String, Value> = column
                .values
                .iter()
                .map(|(key, s)| ((*key).to_owned(), json!({ "median": s.median, "min": s.min, "max": s.max })))
                .collect();
            json!({ "program": column.program, "figures": figures, "details": column.details })
        })
        .collect();
    let whole = json!({ "benchmark": name, "conditions": conditions, "measures": measures, "programs": programs });
    fs::write(dir.join(format!("{name}.json")), format!("{whole:#}\n"))?;
    let text = format!("# {name}\n\n{}\n{}", list(conditions), table(rows, columns));
    fs::write(dir.join(format!("{name}.md")), text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_and_extremes() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert!(of(&[]).is_none());
        let odd = of(&[3.0, 1.0, 20.0]).expect("values");
        assert_eq!(format!("{odd:?}"), "Spread { median: 3.0, min: 1.0, max: 20.0 }");
        assert_eq!(of(&[4.0, 1.0, 2.0, f64::NAN, 3.0]).expect("values").to_string(), "2.50 (1.00 to 4.00)");
        assert_eq!(of(&[12.34]).expect("a value").to_string(), "12.3");
    }

    #[test]
    fn a_measure_that_a_program_lacks_is_a_dash() {
        let rows = [("a", "start", "ms"), ("b", "speed", "")];
        let column = |values| Column { program: "p".into(), values, details: Value::Null };
        let spread = Spread { median: 1.0, min: 0.5, max: 200.0 };
        let table = table(&rows, &[column(vec![("a", spread)]), column(vec![])]);
        assert!(table.contains("| start, ms | 1.00 (0.50 to 200) | - |"), "{table}");
    }
}
