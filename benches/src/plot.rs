//! Line plots as SVG, with logarithmic or linear axes: enough for a report, no library.

use std::fmt::Write as _;

/// Width and height of the picture, and the margins around the plotting area: left, right (the legend), top, bottom.
const SIZE: (f64, f64) = (920.0, 480.0);
const MARGINS: (f64, f64, f64, f64) = (70.0, 250.0, 40.0, 60.0);

/// Told apart also by who sees no red or no green (Okabe and Ito 2008), then the same again with another mark.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555"];

/// How an axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps; the ends are those of the values.
    Linear,
    /// Powers of ten; values must be above 0.
    Logarithmic,
}

/// An axis.
#[derive(Debug, Clone, Copy)]
pub struct Axis<'a> {
    /// What it shows, with the unit.
    pub label: &'a str,
    /// How it is divided.
    pub scale: Scale,
}

/// A line with its points.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
    /// Drawn broken, thin and without marks: a reference, not a measurement.
    pub reference: bool,
}

/// One axis with its range, mapped to pixels.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
    pixels: (f64, f64),
}

impl Range {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, pixels: (f64, f64)) -> Self {
        let usable = values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0));
        let (low, high) = usable.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low <= high { (low, high) } else { (1.0, 10.0) };
        match scale {
            Scale::Logarithmic => {
                let (low, high) = (low.log10(), high.log10());
                // A little air, and never an empty range.
                Self { scale, low: low - 0.08, high: high.max(low + 0.3) + 0.08, pixels }
            }
            Scale::Linear => {
                let air = ((high - low) * 0.04).max(1e-6);
                Self { scale, low: low - air, high: high + air, pixels }
            }
        }
    }

    fn at(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Logarithmic { value.log10() } else { value };
        self.pixels.0 + (value - self.low) / (self.high - self.low) * (self.pixels.1 - self.pixels.0)
    }

    /// Where lines of the grid go.
    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Logarithmic => {
                let decades = self.low.floor() as i32..=self.high.ceil() as i32;
                // Between few powers of ten, 2 and 5 times each as well.
                let steps: &[f64] = if self.high - self.low < 4.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let values = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
                values.filter(|value| (self.low..=self.high).contains(&value.log10())).collect()
            }
            Scale::Linear => {
                let rough = (self.high - self.low) / 6.0;
                let power = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(rough);
                let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
                (first..=last).map(|n| n as f64 * step).collect()
            }
        }
    }
}

/// Draws the lines into one picture.
pub fn svg(title: &str, x: Axis<'_>, y: Axis<'_>, lines: &[Line]) -> String {
    let (left, right, top, bottom) = (MARGINS.0, SIZE.0 - MARGINS.1, MARGINS.2, SIZE.1 - MARGINS.3);
    let points = || lines.iter().flat_map(|line| &line.points);
    let across = Range::new(x.scale, points().map(|point| point.0), (left, right));
    let up = Range::new(y.scale, points().map(|point| point.1), (bottom, top));
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="{left}" y="22" font-size="15">{2}</text>"#,
        SIZE.0,
        SIZE.1,
        escaped(title)
    );
    for value in across.ticks() {
        let at = across.at(value);
        let _ = writeln!(out, r##"<path d="M{at:.1} {top}V{bottom}" stroke="#e4e4e4"/>"##);
        let _ = writeln!(out, r#"<text x="{at:.1}" y="{}" text-anchor="middle">{}</text>"#, bottom + 16.0, number(value));
    }
    for value in up.ticks() {
        let at = up.at(value);
        let _ = writeln!(out, r##"<path d="M{left} {at:.1}H{right}" stroke="#e4e4e4"/>"##);
        let _ = writeln!(out, r#"<text x="{}" y="{:.1}" text-anchor="end">{}</text>"#, left - 6.0, at + 4.0, number(value));
    }
    let _ = writeln!(out, r##"<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#444"/>"##);
    let middle = f64::midpoint(left, right);
    let _ = writeln!(out, r#"<text x="{middle}" y="{}" text-anchor="middle">{}</text>"#, SIZE.1 - 18.0, escaped(x.label));
    let height = f64::midpoint(top, bottom);
    let _ =
        writeln!(out, r#"<text transform="translate(18 {height}) rotate(-90)" text-anchor="middle">{}</text>"#, escaped(y.label));
    // The first line is drawn last, over the others.
    for (i, line) in lines.iter().enumerate().rev() {
        let before = lines[..i].iter().filter(|line| !line.reference).count();
        let style = if line.reference { None } else { Some(before) };
        draw(&mut out, line, style, &|point| (across.at(point.0), up.at(point.1)));
        let (x, y) = (right + 14.0, top + 10.0 + 19.0 * i as f64);
        let sample = Line { name: String::new(), points: vec![(x, y), (x + 24.0, y)], reference: line.reference };
        draw(&mut out, &sample, style, &|point| point);
        let _ = writeln!(out, r#"<text x="{}" y="{}">{}</text>"#, x + 31.0, y + 4.0, escaped(&line.name));
    }
    out + "</svg>\n"
}

/// A line with its marks; `style` counts the lines that are no references.
fn draw(out: &mut String, line: &Line, style: Option<usize>, place: &dyn Fn((f64, f64)) -> (f64, f64)) {
    let placed: Vec<(f64, f64)> = line.points.iter().map(|point| place(*point)).filter(|(x, y)| (x + y).is_finite()).collect();
    let path: Vec<String> = placed.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    let Some(style) = style else {
        let _ = writeln!(out, r##"<path d="M{}" fill="none" stroke="#888" stroke-dasharray="5 4"/>"##, path.join("L"));
        return;
    };
    let colour = COLOURS[style % COLOURS.len()];
    // The first line is the one the picture is about.
    let width = if style == 0 { 3.0 } else { 1.6 };
    let _ = writeln!(out, r#"<path d="M{}" fill="none" stroke="{colour}" stroke-width="{width}"/>"#, path.join("L"));
    for (x, y) in placed {
        let _ = match style / COLOURS.len() {
            0 => writeln!(out, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.4" fill="{colour}"/>"#),
            _ => writeln!(out, r#"<rect x="{:.1}" y="{:.1}" width="6.4" height="6.4" fill="{colour}"/>"#, x - 3.2, y - 3.2),
        };
    }
}

fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        // Enough digits for steps of a hundredth, and none that binary fractions add.
        value => format!("{}", (value * 1e4).round() / 1e4),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_within_the_axes_and_names_are_escaped() {
        let line = |name: &str, points: &[(f64, f64)], reference| Line { name: name.into(), points: points.to_vec(), reference };
        let lines = [
            line("a & b", &[(1e4, 0.2), (1e6, 20.0)], false),
            line("linear", &[(1e4, 0.1), (1e6, 10.0)], true),
            line("without points", &[], false),
        ];
        let axis = |label| Axis { label, scale: Scale::Logarithmic };
        let picture = svg("latency < rows", axis("rows"), axis("ms"), &lines);
        assert!(picture.contains("latency &lt; rows") && picture.contains("a &amp; b"), "{picture}");
        assert!(picture.contains(">100k<") && picture.contains(">0.2<"), "{picture}");
        let marks = picture.lines().filter_map(|line| line.strip_prefix("<circle cx=\"")?.split('"').next()?.parse::<f64>().ok());
        let marks: Vec<f64> = marks.collect();
        // Two in the plot and two for each name in the legend.
        assert_eq!(marks.len(), 6, "{picture}");
        assert!(marks.iter().all(|x| (MARGINS.0..SIZE.0).contains(x)));
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
    }

    #[test]
    fn ticks_are_round_numbers() {
        let range = Range::new(Scale::Linear, [0.9, 1.0].into_iter(), (0.0, 100.0));
        assert_eq!(
            range.ticks().iter().map(|tick| number(*tick)).collect::<Vec<_>>(),
            ["0.9", "0.92", "0.94", "0.96", "0.98", "1"]
        );
    }
}
