//! Plots of runs as SVG.

use std::error::Error;
use std::path::Path;

use plotters::prelude::{
    ChartBuilder, Circle, IntoDrawingArea, LineSeries, Palette, Palette99, PathElement, SVGBackend,
    SeriesLabelPosition, WHITE,
};
use plotters::style::{BLACK, Color};

const SIZE: (u32, u32) = (900, 540);

/// A line with its name.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// What is to be drawn; the vertical axis starts at 0.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// Name and unit of the horizontal axis.
    pub across: String,
    /// Name and unit of the vertical axis.
    pub up: String,
    /// The lines.
    pub series: Vec<Series>,
}

impl Plot {
    /// Draws it into a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn draw(&self, file: &Path) -> Result<(), Box<dyn Error>> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let top = points().map(|(_, y)| y).fold(1.0, f64::max) * 1.1;
        let right = points().map(|(x, _)| x).fold(1.0, f64::max);
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let mut builder = ChartBuilder::on(&area);
        builder.caption(&self.title, ("sans-serif", 20)).margin(12);
        builder.x_label_area_size(44).y_label_area_size(76);
        let chart = builder.build_cartesian_2d(0.0..right, 0.0..top);
        let mut chart = chart.map_err(|error| failed(&error))?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(&self.across).y_desc(&self.up).light_line_style(WHITE);
        mesh.draw().map_err(|error| failed(&error))?;
        for (index, series) in self.series.iter().enumerate() {
            let colour = Palette99::pick(index).stroke_width(2);
            let line = LineSeries::new(series.points.iter().copied(), colour);
            let drawn = chart.draw_series(line).map_err(|error| failed(&error))?;
            drawn
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour));
            let dots = series.points.iter().map(|point| Circle::new(*point, 3, colour.filled()));
            chart.draw_series(dots).map_err(|error| failed(&error))?;
        }
        let mut labels = chart.configure_series_labels();
        labels.position(SeriesLabelPosition::MiddleRight);
        labels.background_style(WHITE.mix(0.8)).border_style(BLACK);
        labels.draw().map_err(|error| failed(&error))?;
        area.present().map_err(|error| failed(&error).into())
    }
}
