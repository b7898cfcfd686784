//! Runs disk procedures on the simulated disk.

use wal::procedure::Procedure;

use super::SimulatedDisk;

/// Runs a procedure to its end and completes the requests that it left in flight.
///
/// # Panics
/// If it waits and none of its requests is in flight.
pub fn run_procedure<T>(disk: &mut SimulatedDisk, owner: u16, procedure: &mut Procedure<T>) -> T {
    let output = run_procedure_until(disk, owner, procedure, u64::MAX);
    while let Some(completion) = disk.complete_one_of(owner) {
        procedure.handle_disk(completion);
    }
    output.expect("a procedure ends before so many requests")
}

/// Runs a procedure until it ends or `completions_max` of its requests have completed; `None`
/// leaves the requests that it has begun in flight, for a crash.
///
/// # Panics
/// If it waits and none of its requests is in flight.
pub fn run_procedure_until<T>(
    disk: &mut SimulatedDisk,
    owner: u16,
    procedure: &mut Procedure<T>,
    completions_max: u64,
) -> Option<T> {
    let mut completions = 0;
    loop {
        while let Some(request) = procedure.poll_request() {
            disk.submit(owner, request);
        }
        if let Some(output) = procedure.take_output() {
            return Some(output);
        }
        if completions == completions_max {
            return None;
        }
        let completion = disk.complete_one_of(owner);
        let completion = completion.expect("the procedure waits, but has no request in flight");
        procedure.handle_disk(completion);
        completions += 1;
    }
}
