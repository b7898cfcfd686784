//! The connection that keeps the node busy in the background: snapshots and compaction at random
//! moments; and what becomes of the snapshots.
//!
//! A snapshot holds every write acknowledged before the command. It is ordered while no command is
//! under way; the ledgers then note what becomes possible until it is answered, so that a [`Book`]
//! knows what each key may be in it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;

use super::compare::{compare_keys, compare_listing};
use super::summary::{Background, Tally};
use super::{Shared, failure, lock, with_log};
use crate::ledger::Violation;
use crate::node_process::{NodeOptions, NodeProcess, run_to_end};
use crate::resp_client::{Reply, RespClient};
use crate::workload::ConnectionWorkload;

/// Longest time between two orders, in ms.
const PAUSE_MS_MAX: u64 = 60;
/// Most snapshots ordered between two kills: each ends a segment early.
const SNAPSHOTS_PER_LIFE_MAX: u32 = 2;
/// Most snapshots kept.
const SNAPSHOTS_KEPT_MAX: usize = 3;
/// What a node answers that is taking one already.
const BUSY: &str = "ERR Background save already in progress";

/// A snapshot and what its keys may be.
struct Book {
    id: String,
    workloads: Vec<Mutex<ConnectionWorkload>>,
}

/// Gives the orders, through all lives of the node.
#[derive(Default)]
pub(super) struct Operator {
    ordered: u64,
    ordered_in_life: u32,
    /// The newest snapshot that may be compared.
    book: Option<Book>,
    /// Snapshots that were answered and not deleted.
    kept: Vec<String>,
    /// What the node of this life has told so far.
    life: Background,
    total: Background,
}

impl Operator {
    /// What all lives together have done.
    pub(super) fn background(&self) -> Background {
        Background {
            segments_freed: self.total.segments_freed + self.life.segments_freed,
            bytes_copied: self.total.bytes_copied + self.life.bytes_copied,
            checkpoints: self.total.checkpoints + self.life.checkpoints,
            ..self.total
        }
    }

    /// A node has started, and logged this.
    pub(super) fn note_start(&mut self, stderr: &str) {
        self.total = self.background();
        self.life = Background::default();
        self.ordered_in_life = 0;
        let recovered = stderr.lines().filter(|line| line.contains("shard recovered"));
        self.total.records_replayed +=
            recovered.map(|line| number_after(line, "records=")).sum::<u64>();
    }

    /// Gives orders until `stop` hangs up or the node is gone.
    pub(super) fn operate(
        &mut self,
        shared: &Shared,
        address: SocketAddr,
        seed: u64,
        stop: &Receiver<()>,
    ) -> Result<(), Violation> {
        let mut rng = Rng::with_seed(seed);
        let mut client = match RespClient::connect(address) {
            Ok(client) => client,
            Err(error) => return shared.broken(&error),
        };
        loop {
            let pause = Duration::from_millis(rng.u64(1..PAUSE_MS_MAX));
            if stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
            let outcome = match rng.u32(0..8) {
                0..3 => give(&mut client, &[b"KAD.COMPACT"]),
                3 => give(&mut client, &[b"BGSAVE"]),
                4..6 if self.ordered_in_life < SNAPSHOTS_PER_LIFE_MAX => {
                    self.take_snapshot(shared, &mut client)
                }
                _ => self.ask(&mut client),
            };
            if let Err(error) = outcome? {
                return shared.broken(&error);
            }
        }
    }

    fn take_snapshot(
        &mut self,
        shared: &Shared,
        client: &mut RespClient,
    ) -> Result<io::Result<()>, Violation> {
        self.ordered += 1;
        self.ordered_in_life += 1;
        let id = format!("cut-{}", self.ordered);
        {
            let _alone = shared.pause.write().unwrap_or_else(PoisonError::into_inner);
            shared.workloads.iter().for_each(|workload| lock(workload).begin_cut());
            shared.journal.line(format_args!("KAD.SNAPSHOT CREATE {id}"));
            if let Err(error) = client.send(&[b"KAD.SNAPSHOT", b"CREATE", id.as_bytes()]) {
                return Ok(Err(error));
            }
        }
        let reply = match client.read_reply() {
            Ok(reply) => reply,
            Err(error) => return Ok(Err(error)),
        };
        shared.journal.line(format_args!("KAD.SNAPSHOT CREATE {id} -> {}", reply.brief()));
        match reply {
            Reply::Error(text) if text == BUSY => {}
            Reply::Error(text) => return Err(failure(&format!("no snapshot: {text}"))),
            _ => {
                let _alone = shared.pause.write().unwrap_or_else(PoisonError::into_inner);
                let end_cut =
                    |workload: &Mutex<ConnectionWorkload>| Mutex::new(lock(workload).end_cut());
                let workloads = shared.workloads.iter().map(end_cut).collect();
                self.total.snapshots += 1;
                self.kept.push(id.clone());
                self.book = Some(Book { id, workloads });
            }
        }
        Ok(Ok(()))
    }

    /// Asks the node what it has done.
    fn ask(&mut self, client: &mut RespClient) -> Result<io::Result<()>, Violation> {
        let reply = match client.call(&[b"INFO", b"kadring"]) {
            Ok(reply) => reply,
            Err(error) => return Ok(Err(error)),
        };
        let text = reply.bytes().map(String::from_utf8_lossy);
        let Some(text) = text else {
            return Err(failure(&format!("INFO: {}", reply.brief())));
        };
        let sum = |name: &str| text.lines().map(|line| number_after(line, name)).sum();
        self.life.segments_freed = sum(",segments_freed=");
        self.life.bytes_copied = sum(",bytes_copied=");
        self.life.checkpoints = sum(",checkpoints=");
        Ok(Ok(()))
    }

    /// Checks that every snapshot that was answered is there, and deletes all but a few.
    pub(super) fn thin(&mut self, data_dir: &Path) -> Result<(), Violation> {
        let listed = snapshot(&["list"], data_dir)?;
        let mut listed: Vec<&str> =
            listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        if let Some(lost) = self.kept.iter().find(|id| !listed.contains(&id.as_str())) {
            return Err(failure(&format!("the snapshot {lost} is gone")));
        }
        listed.retain(|id| self.book.as_ref().is_none_or(|book| book.id != *id));
        while listed.len() > SNAPSHOTS_KEPT_MAX {
            let oldest = listed.remove(0);
            self.delete(oldest, data_dir)?;
        }
        Ok(())
    }

    fn delete(&mut self, id: &str, data_dir: &Path) -> Result<(), Violation> {
        snapshot(&["delete", id], data_dir)?;
        self.kept.retain(|kept| kept != id);
        self.total.snapshots_deleted += 1;
        Ok(())
    }

    /// Verifies the newest snapshot, restores it, starts a node on that, and compares; then deletes
    /// it. False if there is none.
    pub(super) fn compare_snapshot(
        &mut self,
        options: &NodeOptions,
        directory: &Path,
    ) -> Result<bool, Violation> {
        let Some(Book { id, workloads }) = self.book.take() else { return Ok(false) };
        let told = |violation: &Violation| failure(&format!("snapshot {id}: {violation}"));
        snapshot(&["verify", &id], &options.data_dir).map_err(|error| told(&error))?;
        let to = directory.join("restored");
        let to_text = to.to_string_lossy();
        snapshot(&["restore", &id, "--to", &to_text], &options.data_dir)
            .map_err(|error| told(&error))?;
        let restored = NodeOptions {
            data_dir: to.clone(),
            client: "127.0.0.1:0".to_owned(),
            ..options.clone()
        };
        let node = NodeProcess::start(restored).map_err(|text| failure(&text))?;
        compare_keys(&Tally::default(), &workloads, node.address())
            .and_then(|()| compare_listing(&workloads, node.address()))
            .map_err(|violation| told(&with_log(&violation, &node.stderr())))?;
        let (status, _) = node.terminate().map_err(|text| failure(&text))?;
        if !status.success() {
            return Err(failure(&format!("the node on snapshot {id} ended with {status}")));
        }
        fs::remove_dir_all(&to).map_err(|error| failure(&error.to_string()))?;
        self.delete(&id, &options.data_dir)?;
        self.total.snapshots_compared += 1;
        Ok(true)
    }
}

/// Sends a command whose refusal because of another one under way is fine.
fn give(client: &mut RespClient, command: &[&[u8]]) -> Result<io::Result<()>, Violation> {
    match client.call(command) {
        Ok(Reply::Error(text)) if text != BUSY => {
            Err(failure(&format!("{}: {text}", command[0].escape_ascii())))
        }
        Ok(_) => Ok(Ok(())),
        Err(error) => Ok(Err(error)),
    }
}

/// Runs `kadring snapshot`; returns what it printed.
fn snapshot(words: &[&str], data_dir: &Path) -> Result<String, Violation> {
    let data_dir = data_dir.to_string_lossy();
    let words = [&["snapshot"], words, &["--data-dir", &data_dir]].concat();
    let output = run_to_end(&words, &[]).map_err(|error| failure(&error.to_string()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(failure(&format!("kadring {}: {}\n{stdout}{stderr}", words.join(" "), output.status)))
}

/// The number behind a name, 0 if there is none.
fn number_after(line: &str, name: &str) -> u64 {
    let rest = line.split_once(name).map_or("", |(_, rest)| rest);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_name() {
        assert_eq!(number_after("shard0:keys=12,segments=3", "segments="), 3);
        assert_eq!(number_after("shard0:keys=12,segments=3", "keys="), 12);
        assert_eq!(number_after("shard0:keys=12", "segments="), 0);
    }
}
