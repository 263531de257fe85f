//! One plot over time, as SVG.

use std::fmt::Write as _;

/// Size of a plot in its own units; the page scales it.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
/// Room for the longest value in the larger letters of a narrow page.
const LEFT: f64 = 88.0;
/// Half of the last moment's text stands here.
const RIGHT: f64 = 24.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;
/// More points than the plot has columns make the page long and nothing clearer.
const POINTS_MAX: usize = 720;

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From zero, evenly.
    Even,
    /// The same for bytes, which are told in powers of 1,024.
    Sizes,
    /// Each step ten times the one before.
    Decades,
}

/// A line of a plot.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: &'static str,
    /// Seconds and value.
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) scale: Scale,
    /// A value in words.
    pub(super) shown: fn(f64) -> String,
    pub(super) lines: Vec<Line>,
}

/// The axis: least and most value, and where lines across stand.
struct Axis {
    scale: Scale,
    least: f64,
    most: f64,
    marks: Vec<f64>,
}

impl Axis {
    fn of(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        match scale {
            Scale::Even | Scale::Sizes => {
                let unit = if scale == Scale::Sizes { unit(most) } else { 1.0 };
                let step = step(most / unit) * unit;
                let count = (most / step).ceil().max(1.0);
                let marks = (0..=count as u32).map(|number| f64::from(number) * step).collect();
                Self { scale, least: 0.0, most: count * step, marks }
            }
            Scale::Decades => {
                let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
                let low = if least.is_finite() { least.log10().floor() } else { -3.0 };
                let high = if most > 0.0 { most.log10().ceil().max(low + 1.0) } else { low + 1.0 };
                let marks = (low as i32..=high as i32).map(|power| 10_f64.powi(power)).collect();
                Self { scale, least: 10_f64.powf(low), most: 10_f64.powf(high), marks }
            }
        }
    }

    /// 0 at the bottom to 1 at the top.
    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Even | Scale::Sizes => (value - self.least) / (self.most - self.least),
            Scale::Decades => (value.max(self.least) / self.least).log10() / (self.most / self.least).log10(),
        };
        share.clamp(0.0, 1.0)
    }
}

/// The largest power of 1,024 that is not above `bytes`.
fn unit(bytes: f64) -> f64 {
    1024_f64.powf(bytes.max(1.0).log(1024.0).floor())
}

/// 1, 2 or 5 times a power of ten, so that about four of them reach `most`.
fn step(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf((most / 4.0).log10().floor());
    let rough = most / 4.0 / power;
    power
        * if rough <= 1.0 {
            1.0
        } else if rough <= 2.0 {
            2.0
        } else if rough <= 5.0 {
            5.0
        } else {
            10.0
        }
}

impl Chart {
    /// A figure with its caption and legend; `None` if there is nothing to draw.
    pub(super) fn svg(&self) -> Option<String> {
        let lines: Vec<(usize, &Line)> =
            self.lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty()).collect();
        let points = || lines.iter().flat_map(|(_, line)| line.points.iter());
        let seconds = points().map(|point| point.0).fold(0.0, f64::max);
        if seconds <= 0.0 {
            return None;
        }
        let axis = Axis::of(self.scale, points().map(|point| point.1));
        let x = |at: f64| LEFT + at / seconds * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut out = format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            self.title, self.title
        );
        let mut add = |text: std::fmt::Arguments<'_>| {
            // Writing into a string does not fail.
            let _ = out.write_fmt(text);
        };
        for &mark in &axis.marks {
            let (at, right, text) = (y(mark), WIDTH - RIGHT, (self.shown)(mark));
            add(format_args!("<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>"));
            add(format_args!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 6.0, at + 4.0));
        }
        let every = step(seconds);
        for number in 0..=(seconds / every) as u32 {
            let at = f64::from(number) * every;
            let (left, bottom) = (x(at), HEIGHT - 8.0);
            add(format_args!("<text x=\"{left:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{at} s</text>"));
        }
        for (number, line) in &lines {
            let skip = line.points.len().div_ceil(POINTS_MAX);
            let path: Vec<String> = line
                .points
                .chunks(skip)
                .map(highest)
                .map(|(at, value)| format!("{:.1},{:.1}", x(at), y(value)))
                .collect();
            add(format_args!("<polyline class=\"s{number}\" points=\"{}\"/>", path.join(" ")));
        }
        out.push_str("</svg><ul>");
        for (number, line) in &lines {
            // With a piece of the line: its dashes tell it apart where its colour does not.
            let key = format!(
                "<svg class=\"key\" viewBox=\"0 0 32 8\"><polyline class=\"s{number}\" points=\"0,4 32,4\"/></svg>"
            );
            let _ = write!(out, "<li class=\"s{number}\">{key}{}</li>", line.name);
        }
        out.push_str("</ul></figure>");
        Some(out)
    }
}

/// Of points that fall into one column the highest: peaks must not vanish.
fn highest(points: &[(f64, f64)]) -> (f64, f64) {
    points.iter().copied().max_by(|one, other| one.1.total_cmp(&other.1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: Vec<(f64, f64)>) -> Chart {
        let lines = vec![Line { name: "one", points }, Line { name: "none", points: Vec::new() }];
        Chart { title: "T", scale, shown: |value| format!("{value}"), lines }
    }

    #[test]
    fn values_stand_between_the_marks_and_peaks_survive() {
        let points: Vec<(f64, f64)> = (0..5000).map(|at| (f64::from(at), if at == 777 { 90.0 } else { 1.0 })).collect();
        for scale in [Scale::Even, Scale::Decades] {
            let svg = chart(scale, points.clone()).svg().expect("a plot");
            assert!(svg.contains("100</text>") && !svg.contains("NaN") && !svg.contains("class=\"s1\""), "{svg}");
            let line = svg.split("points=\"").nth(1).and_then(|text| text.split('"').next()).expect("a line");
            let heights: Vec<f64> = line.split(' ').filter_map(|pair| pair.split(',').nth(1)?.parse().ok()).collect();
            assert!(heights.len() <= POINTS_MAX + 1);
            let top = heights.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(top > TOP && top < HEIGHT / 4.0, "{top}");
        }
        let mib = f64::from(1 << 20);
        let sizes = Axis::of(Scale::Sizes, [212.0 * mib].into_iter());
        assert_eq!(sizes.marks, [0.0, 100.0 * mib, 200.0 * mib, 300.0 * mib]);
        assert!(chart(Scale::Even, Vec::new()).svg().is_none());
        assert!(chart(Scale::Even, vec![(1.0, 0.0)]).svg().is_some(), "nothing at all is also a finding");
    }
}
