//! Plots of runs as SVG.

use std::error::Error;
use std::fmt::Display;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    BindKeyPoints, Cartesian2d, ChartBuilder, ChartContext, Circle, DrawingArea, IntoDrawingArea,
    IntoLogRange, LineSeries, Palette, Palette99, PathElement, SVGBackend, Text, WHITE,
};
use plotters::style::{Color, IntoFont, ShapeStyle};

const SIZE: (u32, u32) = (960, 540);
/// The names of the lines stand right of the chart.
const CHART_WIDTH: u32 = 780;
const LEGEND_STEP: i32 = 24;
/// Shares end at 100 %, with room for the dots.
const PERCENT_TOP: f64 = 103.0;

/// A line with its name.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// How the horizontal axis runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Across {
    /// Evenly from 0 on, with marks where they suit.
    Even,
    /// By powers, with marks at these places.
    Powers(Vec<f64>),
}

/// What is to be drawn; the vertical axis starts at 0.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// Name and unit of the horizontal axis.
    pub across: String,
    /// How it runs.
    pub axis: Across,
    /// Name and unit of the vertical axis; a share begins with `%`.
    pub up: String,
    /// The lines.
    pub series: Vec<Series>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, X> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>;
type Outcome = Result<(), Box<dyn Error>>;

fn failed(error: &dyn Display) -> String {
    error.to_string()
}

fn style(index: usize) -> ShapeStyle {
    ShapeStyle::from(Palette99::pick(index).mix(1.0)).stroke_width(2)
}

impl Plot {
    /// Draws it into a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn draw(&self, file: &Path) -> Outcome {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let top = points().map(|(_, y)| y).fold(1.0, f64::max) * 1.1;
        let top = if self.up.starts_with('%') { PERCENT_TOP } else { top };
        let right = points().map(|(x, _)| x).fold(1.0, f64::max);
        let left = points().map(|(x, _)| x).fold(right, f64::min);
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let title = self.title.as_str();
        let area = area.titled(title, ("sans-serif", 20)).map_err(|error| failed(&error))?;
        let (field, legend) = area.split_horizontally(CHART_WIDTH);
        let mut builder = ChartBuilder::on(&field);
        builder.margin(12).x_label_area_size(44).y_label_area_size(76);
        match &self.axis {
            Across::Powers(marks) if left > 0.0 && left < right => {
                let across = (left..right).log_scale().with_key_points(marks.clone());
                let chart = builder.build_cartesian_2d(across, 0.0..top);
                self.fill(chart.map_err(|error| failed(&error))?)?;
            }
            _ => {
                let chart = builder.build_cartesian_2d(0.0..right, 0.0..top);
                self.fill(chart.map_err(|error| failed(&error))?)?;
            }
        }
        self.name_lines(&legend)?;
        area.present().map_err(|error| failed(&error).into())
    }

    fn fill<X>(&self, mut chart: Chart<'_, X>) -> Outcome
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(&self.across).y_desc(&self.up).light_line_style(WHITE);
        mesh.axis_desc_style(("sans-serif", 15)).label_style(("sans-serif", 13));
        mesh.x_label_formatter(&|value| label(*value));
        mesh.y_label_formatter(&|value| label(*value));
        mesh.draw().map_err(|error| failed(&error))?;
        for (index, series) in self.series.iter().enumerate() {
            let style = style(index);
            let line = LineSeries::new(series.points.iter().copied(), style);
            chart.draw_series(line).map_err(|error| failed(&error))?;
            let dots = series.points.iter().map(|point| Circle::new(*point, 3, style.filled()));
            chart.draw_series(dots).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn name_lines(&self, area: &Area<'_>) -> Outcome {
        for ((index, series), line) in self.series.iter().enumerate().zip(1..) {
            let y = line * LEGEND_STEP;
            let stroke = PathElement::new([(0, y), (20, y)], style(index));
            area.draw(&stroke).map_err(|error| failed(&error))?;
            let name = Text::new(&series.name[..], (28, y - 7), ("sans-serif", 14).into_font());
            area.draw(&name).map_err(|error| failed(&error))?;
        }
        Ok(())
    }
}

/// A number with no more digits than it needs.
fn label(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_names_its_axes_its_lines_and_its_marks() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plot.svg");
        let series = |name: &str| Series {
            name: name.to_owned(),
            points: vec![(5.0, 20.0), (33.0, 99.5), (300.0, 100.0)],
        };
        for axis in [Across::Even, Across::Powers(vec![5.0, 33.0, 300.0])] {
            let plot = Plot {
                title: "a title".to_owned(),
                across: "repair interval, seconds".to_owned(),
                axis: axis.clone(),
                up: "% of keys".to_owned(),
                series: vec![series("1 copy"), series("3 copies")],
            };
            plot.draw(&file).unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            for name in ["a title", "interval, seconds", "% of keys", "1 copy", "3 copies"] {
                assert!(text.contains(name), "{name} is not drawn");
            }
            let words: Vec<&str> = text.lines().map(str::trim).collect();
            assert!(words.contains(&"100") && !words.contains(&"110"), "{axis:?}");
            assert!(words.contains(&"300"), "{axis:?}");
            assert_eq!(words.contains(&"33"), axis != Across::Even);
        }
    }
}
