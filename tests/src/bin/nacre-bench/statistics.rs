//! Medians and percentiles. Pure.

/// The 10th percentile of fewer values is little else than the least one.
const FEWEST_WITH_SPREAD: usize = 5;

/// The `percent`th percentile of `values`, interpolated linearly between neighbours; 0 if there are none.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let rank = percent / 100.0 * last as f64;
    let below = (0..=last).rev().find(|index| *index as f64 <= rank).unwrap_or(0);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (rank - below as f64)
}

/// The 50th percentile of `values`.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The 10th and the 90th percentile of `values`; None if they are too few to say how far others would scatter.
pub fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let are_enough = values.len() >= FEWEST_WITH_SPREAD;
    are_enough.then(|| (percentile(values, 10.0), percentile(values, 90.0)))
}

/// The slope of the straight line that fits `points`, pairs of x and y, with the least squares; 0 if all have the
/// same x.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let across: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let both: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    if across > 0.0 { both / across } else { 0.0 }
}

/// The standard error of [`slope`], if the points scatter around the line by chance; 0 if there are fewer than three.
pub fn slope_error(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let slope = slope(points);
    let across: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let besides = points
        .iter()
        .map(|point| (point.1 - y - slope * (point.0 - x)).powi(2))
        .sum::<f64>();
    if count > 2.0 && across > 0.0 {
        (besides / (count - 2.0) / across).sqrt()
    } else {
        0.0
    }
}

/// Each of `values` divided by the one of `others` at the same index.
pub fn ratios(values: &[f64], others: &[f64]) -> Vec<f64> {
    let pairs = values.iter().zip(others);
    pairs.map(|(value, other)| value / other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_values() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        let tens: Vec<f64> = (0..=10).map(f64::from).collect();
        assert!((percentile(&tens, 10.0) - 1.0).abs() < 1e-9);
        assert!((percentile(&tens, 100.0) - 10.0).abs() < 1e-9);
        assert!(percentile(&[], 50.0).abs() < 1e-9);
    }

    #[test]
    fn few_values_have_no_spread() {
        let values = [5.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(spread(&values[..4]), None);
        let (p10, p90) = spread(&values).unwrap();
        assert!((p10 - 1.4).abs() < 1e-9 && (p90 - 4.6).abs() < 1e-9);
    }

    #[test]
    fn the_slope_ignores_the_offset() {
        let line = |slope: f64| -> Vec<(f64, f64)> {
            let points = [0.0, 1.0, 5.0, 10.0];
            points.map(|x| (x, 700.0 + slope * x)).to_vec()
        };
        assert!((slope(&line(-24.5)) + 24.5).abs() < 1e-9);
        assert!(slope(&line(0.0)).abs() < 1e-9);
        // One outlier of 8 above a flat line, at its end.
        let bent = [(0.0, 1.0), (1.0, 1.0), (2.0, 9.0)];
        assert!((slope(&bent) - 4.0).abs() < 1e-9);
        assert!(slope(&[(3.0, 1.0)]).abs() < 1e-9 && slope(&[]).abs() < 1e-9);
    }

    #[test]
    fn the_slope_of_a_straight_line_has_no_error() {
        let straight = [1.0, 5.0, 10.0].map(|x| (x, 3.0 + 2.0 * x));
        assert!(slope_error(&straight).abs() < 1e-9 && slope_error(&straight[..2]).abs() < 1e-9);
        // The residuals of y = 0.5 + 0.6 x are -0.5, 0.9, -0.3 and -0.1, and the sum of the squares of x is 5.
        let bent = [(0.0, 0.0), (1.0, 2.0), (2.0, 1.4), (3.0, 2.2)];
        assert!((slope(&bent) - 0.6).abs() < 1e-9);
        assert!((slope_error(&bent) - (1.16_f64 / 2.0 / 5.0).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let found = ratios(&[3.0, 1.0], &[2.0, 4.0]);
        assert!((found[0] - 1.5).abs() < 1e-9 && (found[1] - 0.25).abs() < 1e-9);
    }
}
