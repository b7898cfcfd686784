//! What a bench leaves behind: a table to read, a JSON file for programs, plots.

use crate::Flags;
use crate::Plot;
use crate::figures::{DISK_COLUMNS, SUMMARY_COLUMNS, Summary};
use crate::machine::{self, Machine};
use serde_json::{Map, Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};

/// Above this share of time with waiting threads, in percent, figures are not to be trusted.
const PRESSURE_MAX: f64 = 10.0;

/// The result of a bench, written to `target/bench/<name>.json` in the end.
#[derive(Debug)]
pub struct Report {
    name: String,
    folder: PathBuf,
    root: Map<String, Value>,
}

impl Report {
    /// Starts with the machine, whose disk is the one under `directory`. A smoke run leaves the
    /// files of real runs alone.
    ///
    /// # Errors
    /// If there is no place for results.
    pub fn new(bench: &str, flags: &Flags, directory: &Path) -> Result<Self, Box<dyn Error>> {
        let machine = Machine::look(directory);
        println!("{}", machine.line());
        let pressure = machine::cpu_pressure();
        if pressure > PRESSURE_MAX {
            println!(
                "BUSY MACHINE: threads waited for a processor {pressure:.0} % of the time; one \
                 thread then loses to many, and tails are the scheduler's"
            );
        }
        let executables = crate::executables()?;
        let folder = executables.parent().unwrap_or(&executables).join("bench");
        std::fs::create_dir_all(&folder)?;
        let name = if flags.smoke { format!("{bench}-smoke") } else { bench.to_owned() };
        let command: Vec<String> = std::env::args().skip(1).collect();
        let mut root = Map::new();
        root.insert("bench".to_owned(), bench.into());
        root.insert("smoke".to_owned(), flags.smoke.into());
        root.insert("arguments".to_owned(), command.into());
        root.insert("machine".to_owned(), machine.json());
        Ok(Self { name, folder, root })
    }

    /// Notes a figure.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.root.insert(name.to_owned(), value.into());
    }

    /// Adds an entry to a list.
    pub fn push(&mut self, list: &str, entry: Value) {
        let list = self.root.entry(list).or_insert_with(|| json!([]));
        if let Value::Array(entries) = list {
            entries.push(entry);
        }
    }

    /// Prints and notes whether a demand is met.
    pub fn judge(&mut self, demand: &str, met: bool) {
        println!("{demand}: {}", if met { "reached" } else { "NOT REACHED" });
        self.push("demands", json!({ "demand": demand, "met": met }));
    }

    /// Prints the rows of one workload and adds them to the list `rows`.
    pub fn rows<'a>(
        &mut self,
        table: Table,
        workload: &Value,
        rows: impl IntoIterator<Item = (&'a str, &'a Summary)>,
    ) {
        table.row("", SUMMARY_COLUMNS.into_iter().chain(DISK_COLUMNS));
        for (name, summary) in rows {
            let cells = summary.cells().into_iter().chain(summary.disk_cells());
            let cells: Vec<String> = cells.collect();
            table.row(name, cells.iter().map(String::as_str));
            let row = json!({ "contestant": name, "workload": workload, "result": summary.json() });
            self.push("rows", row);
        }
    }

    /// Draws a plot into `target/bench/<name><suffix>.svg`.
    ///
    /// # Errors
    /// As [`Plot::draw`].
    pub fn plot(&self, suffix: &str, plot: &Plot) -> Result<(), Box<dyn Error>> {
        let file = self.folder.join(format!("{}{suffix}.svg", self.name));
        plot.draw(&file)?;
        println!("plot: {}", file.display());
        Ok(())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> Result<(), Box<dyn Error>> {
        let file = self.folder.join(format!("{}.json", self.name));
        self.set("load_after", machine::load());
        let text = serde_json::to_string_pretty(&Value::Object(self.root))?;
        std::fs::write(&file, text + "\n")?;
        println!("result: {}", file.display());
        Ok(())
    }
}

/// Prints rows as they come: the first cell to the left, the others to the right.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Width of the first column.
    pub name_width: usize,
    /// Width of the others.
    pub width: usize,
}

impl Table {
    /// Prints a row.
    pub fn row<'a>(&self, name: &str, cells: impl IntoIterator<Item = &'a str>) {
        let mut line = format!("{name:<width$}", width = self.name_width);
        for cell in cells {
            line.push_str(&format!(" {cell:>width$}", width = self.width));
        }
        println!("{}", line.trim_end());
    }
}
