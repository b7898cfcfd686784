//! [`Sweep`]: contestants side by side at several loads: tables, ratios of the first of them to
//! each other, plots over the load.

use crate::figures::Summary;
use crate::report::{Report, Table};
use crate::{Axis, Plot, Series};
use serde_json::json;
use std::error::Error;

/// What is compared, and what has come out so far.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// What is counted, such as "puts".
    pub operations: &'static str,
    /// What makes the load, such as "writers".
    pub load: &'static str,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// How tables are set.
    pub table: Table,
    lines: Vec<Line>,
}

/// A contestant over all loads.
#[derive(Clone, Debug, Default)]
struct Line {
    name: String,
    rates: Vec<(f64, f64)>,
    p99: Vec<(f64, f64)>,
}

impl Sweep {
    /// Begins.
    #[must_use]
    pub fn new(
        operations: &'static str,
        load: &'static str,
        value_bytes: usize,
        table: Table,
    ) -> Self {
        Self { operations, load, value_bytes, table, lines: Vec::new() }
    }

    /// Prints and notes what came out at one load.
    pub fn add(&mut self, report: &mut Report, load: usize, names: &[&str], summaries: &[Summary]) {
        println!("\n{} B, {load} {}", self.value_bytes, self.load);
        let workload = json!({ self.load: load, "value_bytes": self.value_bytes });
        report.rows(self.table, &workload, names.iter().copied().zip(summaries));
        for (name, summary) in names.iter().zip(summaries).skip(1) {
            let ratio = summaries[0].ratio_to(summary);
            let cpu = summaries[0].cpu_micros() / summary.cpu_micros();
            println!("{} / {name}: {ratio}, at {cpu:.2} of its CPU per operation", names[0]);
            report.push(
                "ratios",
                json!({
                    "of": names[0],
                    "to": name,
                    "workload": workload,
                    "ratio": ratio.json(),
                    "cpu_ratio": cpu,
                }),
            );
        }
        self.lines.resize_with(names.len(), Line::default);
        for ((line, name), summary) in self.lines.iter_mut().zip(names).zip(summaries) {
            let across = load as f64;
            line.name = (*name).to_owned();
            line.rates.push((across, summary.rate()));
            line.p99.push((across, summary.micros(99.0)));
        }
    }

    /// Draws rates and latencies over the load, of all that `shown` tells to; nothing if there was
    /// one load only.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn plot(
        &self,
        report: &Report,
        shown: impl Fn(&str) -> bool,
    ) -> Result<(), Box<dyn Error>> {
        if self.lines.first().is_none_or(|line| line.rates.len() < 2) {
            return Ok(());
        }
        let series = |points: fn(&Line) -> &Vec<(f64, f64)>| -> Vec<Series> {
            let lines = self.lines.iter().filter(|line| shown(&line.name));
            let one =
                |line: &Line| Series { name: line.name.clone(), points: points(line).clone() };
            lines.map(one).collect()
        };
        let (operations, bytes) = (self.operations, self.value_bytes);
        let plot = |title: String, up: String, up_axis, series| {
            let (across, axis) = (self.load.to_owned(), Axis::Logarithmic);
            Plot { title, across, axis, up, up_axis, series }
        };
        let title = format!("{operations} of {bytes} B per second");
        let up = format!("{operations}/s");
        let rates = plot(title, up, Axis::Linear, series(|line| &line.rates));
        report.plot(&format!("-{bytes}-rate"), &rates)?;
        let title = format!("{operations} of {bytes} B: p99 of the latency");
        let up = "microseconds".to_owned();
        let latencies = plot(title, up, Axis::Logarithmic, series(|line| &line.p99));
        report.plot(&format!("-{bytes}-p99"), &latencies)
    }
}
