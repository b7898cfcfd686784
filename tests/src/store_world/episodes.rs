//! Faults that come and go within a generation, and what must happen once they heal: writing
//! resumes, or the store says that it only reads and has had cause to.

use storage::WriteError;
use wal::Lsn;

use super::adapter::Effect;
use super::{Condition, PlantedBug, StoreWorld, errors};
use crate::disk::OperationKind;

/// Turns in which a store at its own limit must have given space back after a clear.
const LIMITED_TURNS_MAX: u32 = 60;

/// Longer than the scrub waits for its first pass.
const REST_MS: u64 = 700_000;

impl StoreWorld {
    /// Changes one key again and again and reads it after each change, twice, while nothing else
    /// was read since the start: what is remembered of it must go with each change. It is the key
    /// that may be empty, and every other value is. As the last thing of a trial this leaves the
    /// draws of what comes before as they are.
    pub(super) fn reread_one_key(&mut self) -> Result<(), String> {
        const CHANGES: u32 = 8;
        for _ in 0..CHANGES {
            self.time.pass(&mut self.rng);
            self.advance_clock(0);
            self.change_one_key()?;
            for _ in 0..2 {
                self.turn()?;
                while self.complete_one()? {}
                self.get(0)?;
            }
            self.turn()?;
            while self.complete_one()? {}
        }
        Ok(())
    }

    /// Lets requests of this generation fail, in some; tells whether they heal within it.
    pub(super) fn plan_faults(&mut self) -> bool {
        if self.trial.bug != PlantedBug::Nothing || self.trial.failure.is_some() {
            return false;
        }
        let (errors, full_disk) = (self.mix.faults.errors, self.mix.faults.full_disk);
        if full_disk && self.rng.bool() {
            self.fill_disk();
        } else if errors && self.rng.bool() {
            self.plan_failure();
        } else {
            return false;
        }
        self.condition = Condition::Faulty;
        self.rng.bool()
    }

    fn fill_disk(&mut self) {
        let used: u64 = self.wire.disk.used_bytes();
        let room = self.rng.u64(..3 * self.options.segment_bytes);
        self.wire.disk.set_capacity(Some(used + room));
        self.condition = Condition::Faulty;
    }

    /// Lets the disk run full, or gives it room again.
    pub(super) fn toggle_disk_full(&mut self) -> Result<(), String> {
        let planted = self.trial.bug != PlantedBug::Nothing || self.trial.failure.is_some();
        if planted || self.condition == Condition::Damaged {
            return Ok(());
        }
        if self.wire.disk.capacity().is_none() {
            self.fill_disk();
            return Ok(());
        }
        self.heal().map_err(|error| format!("after a full disk: {error}"))
    }

    fn plan_failure(&mut self) {
        let kinds = [
            OperationKind::Write,
            OperationKind::Sync,
            OperationKind::SyncDirectory,
            OperationKind::Rename,
            OperationKind::Link,
            OperationKind::Open,
            OperationKind::Read,
        ];
        let kind = kinds[self.rng.usize(..kinds.len())];
        let errors = errors::suitable(kind);
        let error = errors[self.rng.usize(..errors.len())];
        let nth = self.rng.u64(1..=if self.trial.operations > 500 { 300 } else { 12 });
        self.wire.disk.fail_nth_with(nth, kind, error, self.rng.u8(..3) == 0);
    }

    /// Takes all planned faults back: writing must resume, or the store must say that it reads
    /// only, if it had cause to.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.wire.disk.set_capacity(None);
        self.wire.disk.clear_faults();
        // A store that could get no segment tries again a second later.
        self.advance_clock(1_100);
        let turns = if self.is_limited() { LIMITED_TURNS_MAX } else { 8 };
        if self.is_limited() {
            self.make_room()?;
        }
        let key = self.rng.usize(..self.mix.keys);
        let mut answer = String::new();
        for _ in 0..turns {
            self.turn()?;
            while self.complete_one()? {}
            match self.put(key)? {
                Ok(Effect::Done(Some(lsn))) => return self.await_durable(lsn),
                Ok(_) => "a large value takes its time".clone_into(&mut answer),
                Err(WriteError::ReadOnly(_)) if self.store().failure().is_some() => return Ok(()),
                Err(error) => answer = error.to_string(),
            }
            self.advance_clock(600);
        }
        Err(format!("writing does not resume: {answer}: {:?}", self.store().status()))
    }

    /// Deletes everything, so that a store at its own limit can give space back.
    fn make_room(&mut self) -> Result<(), String> {
        for _ in 0..LIMITED_TURNS_MAX {
            self.turn()?;
            while self.complete_one()? {}
            if self.clear()? || self.store().failure().is_some() {
                return Ok(());
            }
            self.advance_clock(600);
        }
        Err("nothing can be deleted".to_owned())
    }

    /// Lets a write become durable, or the store fail, in a few turns.
    fn await_durable(&mut self, lsn: Lsn) -> Result<(), String> {
        for _ in 0..4 {
            self.turn()?;
            while self.complete_one()? {}
            if self.model.acknowledged_lsn() >= lsn || self.store().failure().is_some() {
                return Ok(());
            }
        }
        Err(format!("LSN {lsn} is never acknowledged"))
    }

    /// Lets minutes pass, then a few turns in which nobody asks for anything.
    pub(super) fn rest(&mut self) -> Result<(), String> {
        self.advance_clock(REST_MS);
        for _ in 0..6 {
            self.turn()?;
            while self.complete_one()? {}
            self.advance_clock(2_000);
        }
        Ok(())
    }

    /// Whether the store may refuse writes on a disk that has room.
    pub(super) fn is_limited(&self) -> bool {
        self.options.limits.disk_bytes_max.is_some()
    }
}
