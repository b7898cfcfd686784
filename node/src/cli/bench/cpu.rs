//! CPU time of threads and processes.

use std::time::Duration;

/// CPU time of another process, all its threads included; in steps of the kernel's tick (10 ms).
/// Nothing if there is no such process.
#[must_use]
pub fn cpu_of_process(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces; user and system time are fields 14 and 15, the third follows it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// CPU time of this thread, and the kernel's work for it.
pub(super) fn cpu_of_thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_its_time_and_none_tells_nothing() {
        assert!(cpu_of_process(std::process::id()).is_some());
        // Above the greatest number a process can have (2^22).
        assert_eq!(cpu_of_process(1 << 23), None);
    }
}
