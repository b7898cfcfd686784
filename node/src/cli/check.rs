//! `kadring check`: reads a data directory at rest and prints what is wrong with it.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use super::error::{CliError, directory_remedy};
use crate::check::{self, CheckError, CheckOptions};
use crate::config::{self, Sources};

/// Flags of `kadring check`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CheckFlags {
    /// Data directory to check; no node may be using it [default: ./kadring-data] [env:
    /// KADRING_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<OsString>,
    /// Configuration file that names the data directory [env: KADRING_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<OsString>,
    /// Accept the losses found, so that unknown keys answer nil again, and write a damaged manifest
    /// copy again; it brings nothing back. Without it nothing is written
    #[arg(long)]
    repair: bool,
}

impl CheckFlags {
    /// The value given for the setting `key`.
    pub(super) fn get(&self, key: &str) -> Option<OsString> {
        match key {
            "data_dir" => self.data_dir.clone(),
            "config" => self.config.clone(),
            _ => None,
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Everything that is wrong, in order of file and offset.
    pub findings: Vec<Finding>,
    /// Ranges that a write in flight may have left behind: no damage is known from them.
    pub notes: Vec<Finding>,
    /// Files read.
    pub files_count: u64,
    /// Bytes read.
    pub bytes_count: u64,
    /// Valid records seen, live or dead.
    pub records_count: u64,
}

/// One damaged range of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, relative to the data directory.
    pub file: PathBuf,
    /// Where the damage starts, in bytes from the start of the file.
    pub offset: u64,
    /// Bytes it spans; 0 when that is not known.
    pub len: u64,
    /// What is wrong there.
    pub reason: String,
    /// Whether it was repaired.
    pub is_repaired: bool,
}

/// The end of a check that found damage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}; {}", Summary(*.findings_count, *.repaired_count), self.remedy())]
pub struct DamageFound {
    /// Damaged ranges.
    pub findings_count: usize,
    /// Those of them that were repaired.
    pub repaired_count: usize,
}

impl DamageFound {
    fn remedy(&self) -> &'static str {
        if self.repaired_count == self.findings_count {
            "check again to see that it is sound"
        } else if self.repaired_count > 0 {
            "restore the rest from a snapshot or another node"
        } else {
            "copy the directory, then run kadring check --repair"
        }
    }
}

struct Summary(usize, usize);

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0 == 1 { "damaged range" } else { "damaged ranges" };
        write!(f, "{} {noun}, {} repaired", self.0, self.1)
    }
}

/// Checks the data directory that flags, environment or file name, and prints the report to `out`.
///
/// # Errors
/// [`CliError::Damage`] when anything is wrong with it, repaired or not; otherwise what kept the
/// check from running or printing.
pub(super) fn run(
    flags: &CheckFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let options = CheckOptions { data_dir: config::data_dir(sources)?, repair: flags.repair };
    let report = inspect(&options)?;
    let printed = print(&report, out).map_err(CliError::Output);
    if report.findings.is_empty() {
        return printed;
    }
    // Damage outweighs a reader that has gone away: scripts look at the exit code.
    let repaired_count = report.findings.iter().filter(|finding| finding.is_repaired).count();
    Err(DamageFound { findings_count: report.findings.len(), repaired_count }.into())
}

/// The one place where the command line meets the checker.
fn inspect(options: &CheckOptions) -> Result<Report, CheckError> {
    check::run(options)
}

/// One line per finding, then one line of totals.
fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let notes = report.notes.iter().map(|note| ("note: ", note));
    for (kind, finding) in report.findings.iter().map(|finding| ("", finding)).chain(notes) {
        let repaired = if finding.is_repaired { " (repaired)" } else { "" };
        writeln!(
            out,
            "{kind}{} offset={} len={}: {}{repaired}",
            finding.file.display(),
            finding.offset,
            finding.len,
            finding.reason
        )?;
    }
    let verdict = if report.findings.is_empty() { "sound" } else { "damaged" };
    writeln!(
        out,
        "{verdict}: {} files, {} bytes, {} records, {} findings",
        report.files_count,
        report.bytes_count,
        report.records_count,
        report.findings.len()
    )
}

/// How to mend what kept the check from running.
pub(super) fn remedy(error: &CheckError) -> &'static str {
    match error {
        CheckError::Directory(error) => directory_remedy(error),
        CheckError::Other(_) => "mend the cause and check again",
    }
}

#[cfg(test)]
mod tests {
    use super::{DamageFound, Finding, Report, print};

    fn printed(report: &Report) -> String {
        let mut out = Vec::new();
        print(report, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_sound_directory_prints_totals_alone() {
        let report =
            Report { files_count: 3, bytes_count: 8192, records_count: 7, ..Report::default() };
        assert_eq!(printed(&report), "sound: 3 files, 8192 bytes, 7 records, 0 findings\n");
    }

    #[test]
    fn each_finding_names_file_offset_length_and_reason() {
        let finding = Finding {
            file: "shard-0/00000001.seg".into(),
            offset: 4096,
            len: 100,
            reason: "payload checksum differs".to_owned(),
            is_repaired: false,
        };
        let repaired = Finding { offset: 8192, is_repaired: true, ..finding.clone() };
        let findings = vec![finding, repaired];
        let text = printed(&Report { findings, files_count: 1, ..Report::default() });
        assert_eq!(
            text,
            "shard-0/00000001.seg offset=4096 len=100: payload checksum differs\n\
             shard-0/00000001.seg offset=8192 len=100: payload checksum differs (repaired)\n\
             damaged: 1 files, 0 bytes, 0 records, 2 findings\n"
        );
    }

    #[test]
    fn damage_says_how_to_go_on() {
        for (findings_count, repaired_count, words) in [
            (1, 0, "1 damaged range, 0 repaired; copy the directory"),
            (3, 1, "3 damaged ranges, 1 repaired; restore the rest"),
            (2, 2, "2 damaged ranges, 2 repaired; check again"),
        ] {
            let text = DamageFound { findings_count, repaired_count }.to_string();
            assert!(text.starts_with(words), "{text}");
        }
    }
}
