//! The results as a chart: time and speed-up of each variant, side by side, in SVG.

use std::error::Error;
use std::io::Write;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::runner::{Report, Runs};
use crate::table::headline;
use crate::variants::Variant;

type Area<'s> = DrawingArea<SVGBackend<'s>, Shift>;
type Chart<'a, 's> = ChartContext<'a, SVGBackend<'s>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn Error>>;

const SIZE: (u32, u32) = (1120, 520);
const FONT: &str = "Helvetica, Arial, sans-serif";
const INK: RGBColor = RGBColor(33, 43, 54);
const FAINT: RGBColor = RGBColor(94, 108, 120);
const RULE: RGBColor = RGBColor(226, 231, 235);
const IDEAL: RGBColor = RGBColor(178, 58, 46);
/// Half the width of a bar, where a variant has a width of 1.
const HALF_BAR: f64 = 0.3;
/// Half the width of a whisker's ends.
const HALF_CAP: f64 = 0.07;

/// Draws the chart.
pub(crate) fn write(out: &mut dyn Write, report: &Report) -> Drawn {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        label(&root, "PowerCouples", (30, 34), 30.0, INK, HPos::Left)?;
        label(&root, &headline(report), (30, 66), 19.0, FAINT, HPos::Left)?;
        let (_, panels) = root.split_vertically(92);
        let (left, right) = panels.split_horizontally(SIZE.0 / 2);
        times(report).draw(&left)?;
        speedups(report).draw(&right)?;
        root.present()?;
    }
    out.write_all(svg.as_bytes())?;
    Ok(())
}

/// One of the two bar charts.
struct Panel {
    title: &'static str,
    unit: String,
    bars: Vec<Bar>,
    /// What stands in the place of bars if there are none.
    absent: &'static str,
}

struct Bar {
    variant: Variant,
    height: f64,
    /// From the lowest to the highest single value.
    spread: Option<(f64, f64)>,
    /// The height this bar would have if its workers cost nothing: as many as there are.
    ideal: Option<usize>,
}

fn times(report: &Report) -> Panel {
    let longest = report.runs.iter().map(Runs::slowest).fold(0.0, f64::max);
    let (unit, scale) = if longest < 0.1 {
        ("milliseconds", 1_000.0)
    } else {
        ("seconds", 1.0)
    };
    let repeated = report.plan.repeats > 1;
    let bars = report.runs.iter().map(|runs| Bar {
        variant: runs.variant,
        height: runs.median() * scale,
        spread: repeated.then(|| (runs.fastest() * scale, runs.slowest() * scale)),
        ideal: None,
    });
    Panel {
        title: "Time",
        unit: if repeated {
            format!("{unit}: median, fastest and slowest run")
        } else {
            unit.to_owned()
        },
        bars: bars.collect(),
        absent: "nothing was run",
    }
}

fn speedups(report: &Report) -> Panel {
    let bars = report.runs.iter().filter_map(|runs| {
        Some(Bar {
            variant: runs.variant,
            height: report.speedup(runs)?,
            spread: None,
            ideal: (runs.workers > 1).then_some(runs.workers),
        })
    });
    Panel {
        title: "Speed-up",
        unit: "times as fast as pure, by the medians".to_owned(),
        bars: bars.collect(),
        absent: "pure was not run, so there is nothing to compare with",
    }
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> Drawn {
        label(area, self.title, (30, 22), 22.0, INK, HPos::Left)?;
        label(area, &self.unit, (30, 48), 16.0, FAINT, HPos::Left)?;
        if self.bars.is_empty() {
            let (width, height) = area.dim_in_pixel();
            let middle = (width.cast_signed() / 2, height.cast_signed() / 2);
            return label(area, self.absent, middle, 17.0, FAINT, HPos::Center);
        }

        let highest = self.bars.iter().map(Bar::top).fold(0.0, f64::max);
        let (left, right) = (-0.5, self.bars.len() as f64 - 0.5);
        let mut chart = ChartBuilder::on(area)
            .margin_top(70)
            .margin_left(22)
            .margin_right(30)
            .margin_bottom(16)
            .x_label_area_size(34)
            .y_label_area_size(46)
            // The room above the highest bar is for its number.
            .build_cartesian_2d(left..right, 0.0..highest * 1.13)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_labels(6)
            .y_label_formatter(&|tick| axis_number(*tick, highest))
            .y_label_style(style(15.0, FAINT, HPos::Right, VPos::Center))
            .bold_line_style(RULE)
            .light_line_style(TRANSPARENT)
            .axis_style(TRANSPARENT)
            .draw()?;
        for (index, bar) in self.bars.iter().enumerate() {
            bar.draw(&mut chart, index as f64, highest)?;
        }
        let plotting = chart.plotting_area();
        let base = [(left, 0.0), (right, 0.0)];
        plotting.draw(&PathElement::new(base, INK.stroke_width(2)))?;

        let pools = (0_i32..)
            .zip(&self.bars)
            .filter_map(|(index, bar)| Some((index, bar.ideal?)));
        if let Some((index, workers)) = pools.last() {
            let end = (f64::from(index) + 0.5, workers as f64);
            let style = style(15.0, IDEAL, HPos::Right, VPos::Bottom);
            let meaning = Text::new(format!("ideal of {workers} workers"), (0, -5), style);
            plotting.draw(&(EmptyElement::at(end) + meaning))?;
        }
        Ok(())
    }
}

impl Bar {
    /// How far up its own value goes.
    fn reach(&self) -> f64 {
        self.spread.map_or(self.height, |(_, highest)| highest)
    }

    /// How far up anything of it goes.
    fn top(&self) -> f64 {
        self.ideal
            .map_or(self.reach(), |ideal| self.reach().max(ideal as f64))
    }

    fn draw(&self, chart: &mut Chart<'_, '_>, x: f64, highest: f64) -> Drawn {
        let plotting = chart.plotting_area();
        let corners = [(x - HALF_BAR, 0.0), (x + HALF_BAR, self.height)];
        plotting.draw(&Rectangle::new(corners, colour(self.variant).filled()))?;
        if let Some((low, high)) = self.spread {
            let stem = [(x, low), (x, high)];
            let [low, high] = [low, high].map(|y| [(x - HALF_CAP, y), (x + HALF_CAP, y)]);
            for line in [stem, low, high] {
                plotting.draw(&PathElement::new(line, INK.stroke_width(2)))?;
            }
        }
        let name = style(17.0, INK, HPos::Center, VPos::Top);
        let name = Text::new(self.variant.name(), (0, 10), name);
        plotting.draw(&(EmptyElement::at((x, 0.0)) + name))?;

        // Above the bar, unless the line of the ideal passes there and the bar has room.
        let (at, down, colour, vertical) = if self.ideal.is_some() && self.height > highest / 8.0 {
            (self.height, 8, WHITE, VPos::Top)
        } else {
            (self.reach(), -5, INK, VPos::Bottom)
        };
        let number = style(17.0, colour, HPos::Center, vertical);
        let number = Text::new(three_digits(self.height), (0, down), number);
        plotting.draw(&(EmptyElement::at((x, at)) + number))?;

        if let Some(ideal) = self.ideal {
            let line = [x - 0.5, x + 0.5].map(|x| (x, ideal as f64));
            let dashes = DashedLineSeries::new(line, 7, 5, IDEAL.stroke_width(2));
            chart.draw_series(dashes)?;
        }
        Ok(())
    }
}

/// Greys for the variants without a pool, the colours for those with one.
fn colour(variant: Variant) -> RGBColor {
    match variant {
        Variant::Pure => RGBColor(138, 150, 163),
        Variant::CFunction => RGBColor(91, 104, 118),
        Variant::Threads => RGBColor(62, 124, 177),
        Variant::Processes => RGBColor(46, 139, 124),
        Variant::Forked => RGBColor(181, 116, 36),
    }
}

fn style(size: f64, colour: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    TextStyle {
        font: (FONT, size).into(),
        color: colour.to_backend_color(),
        pos: Pos::new(horizontal, vertical),
    }
}

fn label(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: f64,
    colour: RGBColor,
    horizontal: HPos,
) -> Drawn {
    area.draw_text(text, &style(size, colour, horizontal, VPos::Center), at)?;
    Ok(())
}

/// A value with about three digits that count.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// A tick of an axis that goes up to `highest`.
fn axis_number(tick: f64, highest: f64) -> String {
    let decimals = match highest {
        5.0.. => 0,
        0.5.. => 1,
        _ => 2,
    };
    format!("{tick:.decimals$}")
}
