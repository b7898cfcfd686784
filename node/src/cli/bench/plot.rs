//! Plots as SVG.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    Cartesian2d, ChartBuilder, ChartContext, Circle, IntoDrawingArea, IntoLogRange, LineSeries,
    LogCoord, Palette, Palette99, PathElement, SVGBackend, SeriesLabelPosition, WHITE,
};
use plotters::style::{BLACK, Color, ShapeStyle};
use std::error::Error;
use std::path::Path;

const SIZE: (u32, u32) = (900, 540);
/// Least value on a logarithmic axis.
const LEAST: f64 = 1e-3;

/// A line with its name.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// How an axis runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Evenly.
    Linear,
    /// By powers.
    Logarithmic,
}

/// What is to be drawn. A linear vertical axis starts at 0.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// Name and unit of the horizontal axis.
    pub across: String,
    /// Name and unit of the vertical axis.
    pub up: String,
    /// How the horizontal axis runs.
    pub axis: Axis,
    /// How the vertical axis runs.
    pub up_axis: Axis,
    /// The lines.
    pub series: Vec<Series>,
}

type Chart<'a, X, Y> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>;

impl Plot {
    /// Draws it into a file.
    ///
    /// # Errors
    /// If there is nothing to draw, or the file cannot be written.
    pub fn draw(&self, file: &Path) -> Result<(), Box<dyn Error>> {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let top = points().map(|(_, y)| y).fold(0.0, f64::max) * 1.1;
        let left = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min);
        let right = points().map(|(x, _)| x).fold(f64::NEG_INFINITY, f64::max);
        if !(top > 0.0 && left < right) {
            return Err(format!("nothing to draw for {}", self.title).into());
        }
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let mut builder = ChartBuilder::on(&area);
        builder.caption(&self.title, ("sans-serif", 20)).margin(12);
        builder.x_label_area_size(44).y_label_area_size(76);
        let bottom = points().map(|(_, y)| y).fold(f64::INFINITY, f64::min) / 1.1;
        let across = left..right;
        let across_log = (left.max(LEAST)..right).log_scale();
        let up = 0.0..top;
        let up_log = (bottom.max(LEAST)..top).log_scale();
        use Axis::{Linear, Logarithmic};
        match (self.axis, self.up_axis) {
            (Linear, Linear) => {
                let chart = builder.build_cartesian_2d(across, up);
                self.fill_linear(chart.map_err(|error| failed(&error))?)?;
            }
            (Linear, Logarithmic) => {
                let chart = builder.build_cartesian_2d(across, up_log);
                self.fill_up(chart.map_err(|error| failed(&error))?)?;
            }
            (Logarithmic, Linear) => {
                let chart = builder.build_cartesian_2d(across_log, up);
                self.fill_across(chart.map_err(|error| failed(&error))?)?;
            }
            (Logarithmic, Logarithmic) => {
                let chart = builder.build_cartesian_2d(across_log, up_log);
                self.fill_both(chart.map_err(|error| failed(&error))?)?;
            }
        }
        area.present().map_err(|error| failed(&error).into())
    }
}

/// A number with no more digits than it needs.
fn label(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The kinds of axes are types; what is drawn on them is the same.
macro_rules! fill {
    ($name:ident, $across:ty, $up:ty) => {
        fn $name(&self, mut chart: Chart<'_, $across, $up>) -> Result<(), Box<dyn Error>> {
            let failed = |error: &dyn std::fmt::Display| error.to_string();
            let mut mesh = chart.configure_mesh();
            mesh.x_desc(&self.across).y_desc(&self.up).light_line_style(WHITE);
            mesh.x_label_formatter(&|value| label(*value));
            mesh.y_label_formatter(&|value| label(*value));
            mesh.draw().map_err(|error| failed(&error))?;
            for (index, series) in self.series.iter().enumerate() {
                let style = ShapeStyle::from(Palette99::pick(index).mix(1.0)).stroke_width(2);
                let line = LineSeries::new(series.points.iter().copied(), style);
                let drawn = chart.draw_series(line).map_err(|error| failed(&error))?;
                let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style);
                drawn.label(&series.name).legend(legend);
                if series.points.len() <= 16 {
                    let dots = series.points.iter().map(|at| Circle::new(*at, 3, style.filled()));
                    chart.draw_series(dots).map_err(|error| failed(&error))?;
                }
            }
            let mut labels = chart.configure_series_labels();
            labels.position(SeriesLabelPosition::UpperLeft).border_style(BLACK);
            labels.background_style(WHITE.mix(0.8));
            labels.draw().map_err(|error| failed(&error).into())
        }
    };
}

impl Plot {
    fill!(fill_linear, RangedCoordf64, RangedCoordf64);
    fill!(fill_up, RangedCoordf64, LogCoord<f64>);
    fill!(fill_across, LogCoord<f64>, RangedCoordf64);
    fill!(fill_both, LogCoord<f64>, LogCoord<f64>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_no_needless_digits() {
        for (value, expected) in [(0.0, "0"), (1.25, "1.25"), (1.5, "1.5"), (60_000.0, "60000")] {
            assert_eq!(label(value), expected);
        }
    }

    #[test]
    fn plot_holds_its_names_and_refuses_to_be_empty() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plot.svg");
        let series = Series { name: "first line".to_owned(), points: vec![(1.0, 2.0), (8.0, 3.0)] };
        let axes = [Axis::Linear, Axis::Logarithmic];
        for (axis, up_axis) in axes.into_iter().flat_map(|axis| axes.map(|up| (axis, up))) {
            let mut plot = Plot {
                title: "a title".to_owned(),
                across: "writers".to_owned(),
                up: "puts/s".to_owned(),
                axis,
                up_axis,
                series: vec![series.clone()],
            };
            plot.draw(&file).unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            for name in ["a title", "writers", "puts/s", "first line", "polyline"] {
                assert!(text.contains(name), "{name} is not drawn");
            }
            plot.series.clear();
            plot.draw(&file).unwrap_err();
        }
    }
}
