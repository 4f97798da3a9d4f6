//! The ROC curve of a calibration as a figure.

use std::fmt::Write;

use super::calibrate::Examples;
use library::retrieve::{Calibration, Features};

/// Side of the plot and its margin, in pixels.
const SIDE: f64 = 360.0;
const MARGIN: f64 = 48.0;

/// Points of the ROC curve, (share of the negatives kept, share of the positives kept), from (0, 0) to (1, 1).
pub fn roc_curve(positives: &[f32], negatives: &[f32]) -> Vec<(f64, f64)> {
    let mut scores: Vec<(f32, bool)> =
        positives.iter().map(|score| (*score, true)).chain(negatives.iter().map(|score| (*score, false))).collect();
    scores.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let (mut kept, mut let_through) = (0usize, 0usize);
    let mut points = vec![(0.0, 0.0)];
    for (at, (score, positive)) in scores.iter().enumerate() {
        if *positive {
            kept += 1;
        } else {
            let_through += 1;
        }
        // Equal scores are one step.
        if scores.get(at + 1).is_none_or(|next| next.0 < *score) {
            let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
            points.push((share(let_through, negatives.len()), share(kept, positives.len())));
        }
    }
    points
}

/// An SVG with the ROC curves of `calibration`: answerable questions against foreign ones, and against questions without their
/// documents, if there are any.
pub fn roc_svg(examples: &Examples, calibration: &Calibration) -> String {
    let scores = |of: &[Features]| of.iter().map(|features| calibration.confidence(features)).collect::<Vec<f32>>();
    let answerable = scores(&examples.answerable);
    let size = SIDE + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {size} {size}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{size}\" height=\"{size}\" fill=\"white\"/>\n"
    );
    let (x, y) = (|share: f64| MARGIN + share * SIDE, |share: f64| MARGIN + (1.0 - share) * SIDE);
    for tenth in (0..=10u32).step_by(2) {
        let share = f64::from(tenth) / 10.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{0} {1}V{2}M{3} {4}H{5}\" stroke=\"#ddd\"/>\n<text x=\"{0}\" y=\"{6}\" text-anchor=\"middle\">{share}</text>\n\
             <text x=\"{7}\" y=\"{4}\" text-anchor=\"end\">{share}</text>",
            x(share),
            y(0.0),
            y(1.0),
            x(0.0),
            y(share),
            x(1.0),
            y(0.0) + 16.0,
            x(0.0) - 6.0
        );
    }
    let curves = [("foreign questions", "#1b6ca8", &examples.foreign), ("documents left out", "#c0562f", &examples.near)];
    for (at, (label, colour, of)) in curves.into_iter().filter(|(_, _, of)| !of.is_empty()).enumerate() {
        let negatives = scores(of);
        let points: Vec<String> =
            roc_curve(&answerable, &negatives).iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let auc = super::roc_auc(&answerable, &negatives);
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\" text-anchor=\"end\">{label}: area {auc:.3}</text>",
            points.join(" "),
            x(1.0) - 8.0,
            y(0.0) - 12.0 - 16.0 * at as f64
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">unanswerable questions let through</text>\n\
         <text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">answerable questions kept</text>\n</svg>",
        x(0.5),
        size - 10.0,
        y(0.5)
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_by_hand() {
        let points = roc_curve(&[0.9, 0.5], &[0.5, 0.1]);
        assert_eq!(points, [(0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]);
        assert_eq!(roc_curve(&[], &[]), [(0.0, 0.0)]);
    }

    #[test]
    fn the_figure_names_its_areas() {
        let features = |dense: f32| Features { dense, coverage: 0.5, margin: 0.1, statement: 0.5, told: 0.5 };
        let examples = Examples { answerable: vec![features(0.8)], foreign: vec![features(0.1)], near: vec![features(0.8)] };
        let svg = roc_svg(&examples, &Calibration { bias: -5.0, weights: [10.0, 0.0, 0.0, 0.0, 0.0] });
        assert!(svg.contains("foreign questions: area 1.000") && svg.contains("documents left out: area 0.500"), "{svg}");
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    }
}
