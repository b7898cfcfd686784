//! Figures of fio, where it is installed: a ceiling that shares no code with us.

use crate::Latencies;
use crate::Turns;
use crate::figures::Sample;
use serde_json::Value;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Whether it reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FioVerb {
    /// At random places.
    Read,
    /// Durably (O_DSYNC), one after another, over what was written before.
    Write,
}

/// What fio is to do through io_uring.
#[derive(Clone, Debug)]
pub struct Fio<'a> {
    /// Read or write.
    pub verb: FioVerb,
    /// The files.
    pub files: Vec<PathBuf>,
    /// Bytes at a time.
    pub len: usize,
    /// Operations at a time.
    pub depth: usize,
    /// Whether to pass the page cache by.
    pub direct: bool,
    /// For how long.
    pub turns: Turns,
    /// Further flags.
    pub flags: &'a [&'a str],
}

/// Whether fio is installed, and knows io_uring.
#[must_use]
pub fn has_fio() -> bool {
    let output = Command::new("fio").arg("--enghelp=io_uring").output();
    output.is_ok_and(|output| output.status.success())
}

impl Fio<'_> {
    /// Measures once.
    ///
    /// # Errors
    /// If fio does not run to its end or says what is not understood.
    pub fn measure(&self) -> Result<Sample, Box<dyn Error>> {
        let file = |file: &PathBuf| file.display().to_string().replace(':', "\\:");
        let files: Vec<String> = self.files.iter().map(file).collect();
        let (verb, kind) = match self.verb {
            FioVerb::Read => ("read", &["--rw=randread", "--readonly", "--norandommap"][..]),
            FioVerb::Write => ("write", &["--rw=write", "--sync=dsync", "--overwrite=1"][..]),
        };
        let output = Command::new("fio")
            .args(["--name=bench", "--ioengine=io_uring", "--time_based", "--randrepeat=0"])
            .args(["--file_service_type=random", "--output-format=json+"])
            .args(kind)
            .arg(format!("--filename={}", files.join(":")))
            .arg(format!("--iodepth={}", self.depth))
            .arg(format!("--bs={}", self.len))
            .arg(format!("--direct={}", u8::from(self.direct)))
            .arg(format!("--ramp_time={}ms", self.turns.warm_up.as_millis()))
            .arg(format!("--runtime={}ms", self.turns.duration.as_millis().max(50)))
            .args(self.flags)
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("fio: {}", text.lines().next().unwrap_or("no word")).into());
        }
        parse(&output.stdout, verb)
    }
}

/// Takes rate, CPU and latencies from what fio says; before its JSON it may print warnings.
fn parse(output: &[u8], verb: &str) -> Result<Sample, Box<dyn Error>> {
    let start = output.iter().position(|byte| *byte == b'{').ok_or("fio printed no JSON")?;
    let all: Value = serde_json::from_slice(&output[start..])?;
    let job = &all["jobs"][0];
    let done = &job[verb];
    let number = |value: &Value, name: &str| {
        value.as_f64().ok_or_else(|| format!("fio says nothing of {name}"))
    };
    let (rate, count) = (number(&done["iops"], "iops")?, number(&done["total_ios"], "total_ios")?);
    let percent = number(&job["usr_cpu"], "usr_cpu")? + number(&job["sys_cpu"], "sys_cpu")?;
    let millis = number(&done["runtime"], "runtime")?;
    let mut latencies = Latencies::default();
    let bins = done["clat_ns"]["bins"].as_object().ok_or("fio says nothing of latencies")?;
    for (nanos, count) in bins {
        latencies.record(Duration::from_nanos(nanos.parse()?), count.as_u64().unwrap_or(0));
    }
    let cpu_micros = percent / 100.0 * millis * 1e3 / count.max(1.0);
    Ok(Sample { rate, cpu_micros, latencies, disk: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_is_understood() {
        let text = br#"note: something
            {"jobs": [{"usr_cpu": 10.0, "sys_cpu": 30.0, "read": {"iops": 500.0, "total_ios": 1000,
            "runtime": 2000, "clat_ns": {"bins": {"1000": 900, "9000": 100}}}}]}"#;
        let sample = parse(text, "read").unwrap();
        assert_eq!(sample.latencies.count(), 1000);
        assert!((sample.rate - 500.0).abs() < 1e-9);
        // 40 % of 2 s for 1,000 reads.
        assert!((sample.cpu_micros - 800.0).abs() < 1e-6);
        assert!((sample.latencies.micros(50.0) - 1.0).abs() < 0.01);
        assert!((sample.latencies.micros(99.0) - 9.0).abs() < 0.01);
        parse(text, "write").unwrap_err();
        parse(b"no", "read").unwrap_err();
        parse(b"{}", "read").unwrap_err();
    }
}
