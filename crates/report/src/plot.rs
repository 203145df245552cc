//! A plot: axes and series, drawn as SVG that follows the page's colours.
//!
//! The plotting library writes colours as numbers. Here each colour stands for a property of the page's style sheet, which knows light
//! and dark.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Serialize;

/// The library places everything on whole pixels, so it draws on a sheet that is larger by this factor.
const FINE: i32 = 4;

/// A colour of the style sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Text.
    Ink,
    /// Axes and secondary text.
    Faint,
    /// Lines of the grid.
    Grid,
    /// What the run made.
    Made,
    /// What it is compared with.
    Other,
    /// What was planned.
    Plan,
}

impl Tone {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Ink, "ink"),
        (Self::Faint, "faint"),
        (Self::Grid, "grid"),
        (Self::Made, "made"),
        (Self::Other, "other"),
        (Self::Plan, "plan"),
    ];

    /// The number that stands for it.
    fn colour(self) -> RGBColor {
        RGBColor(1, 2, self as u8)
    }

    pub(crate) fn property(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// How a series is drawn. Series differ in more than colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// A line with dots.
    Dots,
    /// A dashed line with rings.
    Rings,
    /// A line alone.
    Line,
    /// A dashed line alone.
    Dashes,
    /// Squares alone.
    Squares,
    /// Bars down to the axis.
    Bars,
    /// A step from value to value.
    Steps,
    /// The same, dashed.
    DashedSteps,
}

/// A sequence of points.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) look: Look,
    pub(crate) tone: Tone,
    /// From 0, which is invisible, to 1.
    pub(crate) strength: f64,
    /// What stands beside the points: one text for each, or one for the last.
    pub(crate) labels: Vec<String>,
}

impl Series {
    pub(crate) fn new(name: impl Into<String>, look: Look, tone: Tone, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, look, tone, strength: 1.0, labels: Vec::new() }
    }
}

/// An axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) kind: AxisKind,
}

/// What an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AxisKind {
    /// Whole numbers, such as blocks.
    Whole,
    /// Numbers from zero.
    FromZero,
    /// Numbers of any range, not from zero.
    Range,
    /// Numbers above zero on a logarithmic scale.
    Log,
    /// Shares from 0 to 1, in percent.
    Share,
}

impl Axis {
    pub(crate) fn new(label: impl Into<String>, kind: AxisKind) -> Self {
        Self { label: label.into(), kind }
    }

    /// Logarithmic if the values differ by more than a factor of ten, else from zero.
    pub(crate) fn of_sizes(label: impl Into<String>, series: &[Series]) -> Self {
        let values = || series.iter().flat_map(|series| &series.points).map(|point| point.1);
        let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
        Self::new(label, if least > 0.0 && most > 10.0 * least { AxisKind::Log } else { AxisKind::FromZero })
    }

    fn range(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        match self.kind {
            // Lines may reach to both ends.
            AxisKind::Whole => (low.ceil() - 0.5, high.floor() + 0.5),
            AxisKind::FromZero => (0.0, if high > 0.0 { high * 1.08 } else { 1.0 }),
            AxisKind::Range => {
                let rest = if high > low { 0.08 * (high - low) } else { 0.5 * high.abs().max(1.0) };
                (low - rest, high + rest)
            }
            AxisKind::Log => (low / 1.25, high * 1.25),
            AxisKind::Share => (0.0, 1.0),
        }
    }

    fn tick(&self, value: f64) -> String {
        let is_whole = (value - value.round()).abs() < 1e-6;
        match self.kind {
            AxisKind::Whole if is_whole => format!("{}", value.round()),
            AxisKind::Whole => String::new(),
            AxisKind::Share => format!("{:.0} %", 100.0 * value),
            AxisKind::FromZero | AxisKind::Range if is_whole => format!("{}", value.round()),
            AxisKind::FromZero | AxisKind::Range => trimmed(value),
            AxisKind::Log => trimmed(value),
        }
    }
}

/// Ticks of a logarithmic axis: as few of 1, 2, 5 and the digits between them as say where one is.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().floor() as i32;
    let with = |digits: &[f64]| -> Vec<f64> {
        let all = powers.clone().flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let ticks = [&[1.0][..], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]].map(with);
    let [few, more, most] = ticks;
    match (few.len(), more.len()) {
        (3.., _) => few,
        (_, 2..) => more,
        _ => most,
    }
}

/// Without zeros that say nothing.
fn trimmed(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A place, and the ends of a band there.
pub(crate) type Between = (f64, f64, f64);

/// A plot.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// What it shows, in few words.
    pub(crate) title: String,
    /// What is seen in it, in words and numbers.
    pub(crate) about: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
    /// An area between two lines, with its name.
    pub(crate) band: Option<(String, Vec<Between>)>,
    /// Whether it is one of many that are compared.
    pub(crate) is_small: bool,
}

/// A plot as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) title: String,
    pub(crate) svg: String,
    /// Symbols and names of the series.
    pub(crate) keys: Vec<Key>,
    pub(crate) is_small: bool,
}

/// The symbol of a series with its name.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Key {
    pub(crate) svg: String,
    pub(crate) name: String,
}

impl Plot {
    /// Draws it. `id` is unique in the page.
    pub(crate) fn figure(&self, id: &str) -> Figure {
        let (width, height) = if self.is_small { (260, 176) } else { (440, 252) };
        let mut drawn = String::new();
        {
            let root = SVGBackend::with_string(&mut drawn, ((width * FINE) as u32, (height * FINE) as u32))
                .into_drawing_area();
            let values = |of: fn(&(f64, f64)) -> f64| self.series.iter().flat_map(|series| &series.points).map(of);
            let (left, right) = self.x.range(values(|point| point.0));
            let in_band = self.band.iter().flat_map(|(_, band)| band).flat_map(|&(_, low, high)| [low, high]);
            let (low, high) = self.y.range(values(|point| point.1).chain(in_band));
            let drawn = match self.y.kind {
                AxisKind::Log => {
                    self.draw(&root, (left, right), (low..high).log_scale().with_key_points(log_ticks(low, high)))
                }
                _ => self.draw(&root, (left, right), low..high),
            };
            drawn.and_then(|()| root.present()).expect("drawing into a string cannot fail");
        }
        let mut keys: Vec<Key> = Vec::new();
        for series in &self.series {
            if !series.name.is_empty() && !keys.iter().any(|key| key.name == series.name) {
                keys.push(Key { svg: symbol(series), name: series.name.clone() });
            }
        }
        keys.extend(self.band.iter().map(|(name, _)| Key { svg: band_symbol(), name: name.clone() }));
        Figure {
            title: self.title.clone(),
            svg: self.dressed(&drawn, id, (width, height)),
            keys,
            is_small: self.is_small,
        }
    }

    /// The drawing with the page's colours, and with words for those who do not see it.
    fn dressed(&self, drawn: &str, id: &str, (width, height): (i32, i32)) -> String {
        let body = drawn.split_once("<svg").and_then(|(_, rest)| rest.split_once('>')).map_or("", |(_, body)| body);
        let body = body.replace(" opacity=\"1\"", "").replace(" font-family=\"sans-serif\"", "");
        let body = Tone::ALL.iter().fold(body, |body, (tone, name)| {
            body.replace(&format!("#0102{:02X}", *tone as u8), &format!("var(--{name})"))
        });
        let [title, about] = [&self.title, &self.about].map(|text| escaped(text));
        format!(
            "<svg role=\"img\" aria-labelledby=\"{id}-t {id}-d\" viewBox=\"0 0 {} {}\">\n<title id=\"{id}-t\">{title}</title>\n\
             <desc id=\"{id}-d\">{about}</desc>{body}",
            width * FINE,
            height * FINE
        )
    }

    fn draw<'a, Y>(&self, root: &DrawingArea<SVGBackend<'a>, Shift>, x: (f64, f64), y: Y) -> Drawn<'a>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let size = |pixels: i32| pixels * FINE;
        let font = size(if self.is_small { 11 } else { 12 });
        let text = |tone: Tone| ("sans-serif", font).into_font().color(&tone.colour());
        let has_label = self.series.iter().any(|series| series.labels.len() == 1);
        let mut chart = ChartBuilder::on(root)
            .margin_top(size(10))
            .margin_right(size(if has_label { 62 } else { 12 }))
            .x_label_area_size(size(if self.x.label.is_empty() { 24 } else { 42 }))
            .y_label_area_size(size(if self.is_small { 40 } else { 46 }))
            .build_cartesian_2d(x.0..x.1, y)?;
        let (x_tick, y_tick) = (|value: &f64| self.x.tick(*value), |value: &f64| self.y.tick(*value));
        let n_ticks = match self.x.kind {
            AxisKind::Whole => ((x.1 - x.0).round() as usize).clamp(1, if self.is_small { 6 } else { 10 }),
            _ => 6,
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Tone::Grid.colour().stroke_width(FINE as u32))
            .axis_style(Tone::Faint.colour().stroke_width(FINE as u32))
            .set_all_tick_mark_size(size(5))
            .x_labels(n_ticks)
            .y_labels(if self.is_small { 4 } else { 6 })
            .x_label_formatter(&x_tick)
            .y_label_formatter(&y_tick)
            .label_style(text(Tone::Faint))
            .axis_desc_style(text(Tone::Faint))
            .x_desc(self.x.label.as_str())
            .draw()?;
        if let Some((_, band)) = &self.band {
            let upper = band.iter().map(|&(x, _, high)| (x, high));
            let lower = band.iter().rev().map(|&(x, low, _)| (x, low));
            let area: Vec<(f64, f64)> = upper.chain(lower).collect();
            chart.draw_series([Polygon::new(area, Tone::Made.colour().mix(0.18).filled())])?;
        }
        let floor = match self.y.kind {
            AxisKind::Log => f64::MIN_POSITIVE,
            _ => 0.0,
        };
        for series in &self.series {
            let colour = series.tone.colour().mix(series.strength);
            let line = colour.stroke_width(size(2) as u32);
            let points = || series.points.iter().copied();
            match series.look {
                Look::Dots | Look::Line => {
                    let _ = chart.draw_series(LineSeries::new(points(), line))?;
                }
                Look::Rings | Look::Dashes => {
                    let _ = chart.draw_series(DashedLineSeries::new(points(), size(5) as u32, size(4) as u32, line))?;
                }
                Look::Bars => {
                    let bar = |(x, y)| Rectangle::new([(x - 0.36, floor), (x + 0.36, y)], colour.mix(0.75).filled());
                    chart.draw_series(points().map(bar))?;
                }
                Look::Steps => {
                    let _ = chart.draw_series(LineSeries::new(steps(&series.points), line))?;
                }
                Look::DashedSteps => {
                    let dashed = DashedLineSeries::new(steps(&series.points), size(5) as u32, size(4) as u32, line);
                    let _ = chart.draw_series(dashed)?;
                }
                Look::Squares => {}
            }
            match series.look {
                Look::Dots => {
                    let _ = chart.draw_series(points().map(|at| Circle::new(at, size(3), colour.filled())))?;
                }
                Look::Rings => {
                    let ring = colour.stroke_width(size(2) as u32);
                    let _ = chart.draw_series(points().map(|at| Circle::new(at, size(3), ring)))?;
                }
                Look::Squares => {
                    let square = |at| {
                        EmptyElement::at(at)
                            + Rectangle::new([(-size(3), -size(3)), (size(3), size(3))], colour.filled())
                    };
                    let _ = chart.draw_series(points().map(square))?;
                }
                _ => {}
            }
            let anchor = Pos::new(HPos::Left, VPos::Center);
            let style = text(Tone::Ink).pos(anchor);
            let labelled = match series.labels.len() {
                1 => series.points.len().saturating_sub(1),
                _ => 0,
            };
            for (label, &at) in series.labels.iter().zip(&series.points[labelled..]) {
                let beside = EmptyElement::at(at) + Text::new(label.clone(), (size(7), 0), style.clone());
                chart.plotting_area().draw(&beside)?;
            }
        }
        Ok(())
    }
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// The corners of a line that is level around each point.
fn steps(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.get(1).map_or(0.5, |next| (next.0 - points[0].0) / 2.0);
    points.iter().flat_map(|&(x, y)| [(x - half, y), (x + half, y)]).collect()
}

/// The symbol of a series beside its name.
fn symbol(series: &Series) -> String {
    let colour = format!("var(--{})", series.tone.property());
    let line = |dashes: &str| format!("<path d=\"M0 6H28\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>");
    let dashes = " stroke-dasharray=\"5 4\"";
    let dot = format!("<circle cx=\"14\" cy=\"6\" r=\"3.5\" fill=\"{colour}\"/>");
    let inner = match series.look {
        Look::Dots => line("") + &dot,
        Look::Rings => {
            let ring =
                format!("<circle cx=\"14\" cy=\"6\" r=\"3.5\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
            line(dashes) + &ring
        }
        Look::Line | Look::Steps => line(""),
        Look::Dashes | Look::DashedSteps => line(dashes),
        Look::Squares => format!("<rect x=\"10.5\" y=\"2.5\" width=\"7\" height=\"7\" fill=\"{colour}\"/>"),
        Look::Bars => format!("<rect x=\"8\" y=\"1\" width=\"12\" height=\"10\" fill=\"{colour}\" opacity=\"0.75\"/>"),
    };
    format!("<svg aria-hidden=\"true\" viewBox=\"0 0 28 12\">{inner}</svg>")
}

fn band_symbol() -> String {
    "<svg aria-hidden=\"true\" viewBox=\"0 0 28 12\"><rect x=\"2\" y=\"1\" width=\"24\" height=\"10\" fill=\"var(--made)\" opacity=\"0.18\"/></svg>"
        .to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_has_some_ticks() {
        assert_eq!(log_ticks(0.05, 200.0), [0.1, 1.0, 10.0, 100.0]);
        assert_eq!(log_ticks(0.9, 12.0), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(log_ticks(2.1, 4.9), [3.0, 4.0]);
    }

    #[test]
    fn a_plot_has_colours_of_the_page_and_words() {
        let series = vec![Series::new("a", Look::Rings, Tone::Other, vec![(1.0, 2.0), (2.0, 3.0)])];
        let (x, y) = (Axis::new("block", AxisKind::Whole), Axis::new("", AxisKind::FromZero));
        let plot = Plot {
            title: "1 < 2".to_owned(),
            about: "It rises from 2 to 3.".to_owned(),
            x,
            y,
            series,
            band: None,
            is_small: true,
        };
        let Figure { svg, keys, .. } = plot.figure("it");
        assert!(svg.contains("var(--other)") && svg.contains("var(--grid)") && !svg.contains("=\"#"), "{svg}");
        assert!(svg.contains("<title id=\"it-t\">1 &lt; 2</title>") && svg.contains("It rises from 2 to 3."), "{svg}");
        assert_eq!(keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
