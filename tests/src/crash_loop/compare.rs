//! After a restart: every key against its ledger, the counters, SCAN and DBSIZE.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;

use super::summary::Tally;
use super::{Shared, failure, lock, now};
use crate::ledger::{Observation, Violation, Window};
use crate::resp_client::{Reply, RespClient, encode_command};
use crate::workload::{ConnectionWorkload, KEY_COUNT, SHARED_COUNT, key_name, shared_name};

/// Keys compared per pipeline.
const VERIFY_BATCH: u32 = 16;

/// Compares every key of the connections with their ledgers, which take note of what they see.
pub(super) fn compare_keys(
    tally: &Tally,
    workloads: &[Mutex<ConnectionWorkload>],
    address: SocketAddr,
) -> Result<(), Violation> {
    thread::scope(|scope| {
        let reader = |workload| scope.spawn(move || compare_keys_of(tally, workload, address));
        let readers: Vec<_> = workloads.iter().map(reader).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap_or_else(|_| Err(failure("a reader panicked"))))
            .fold(Ok(()), Result::and)
    })
}

fn compare_keys_of(
    tally: &Tally,
    workload: &Mutex<ConnectionWorkload>,
    address: SocketAddr,
) -> Result<(), Violation> {
    let mut workload = lock(workload);
    let killed = tally.killed_window();
    let lost = |error: io::Error| failure(&format!("reading back: {error}"));
    let mut client = RespClient::connect(address).map_err(lost)?;
    for first in (0..KEY_COUNT).step_by(VERIFY_BATCH as usize) {
        let batch = first..KEY_COUNT.min(first + VERIFY_BATCH);
        for key in batch {
            let name = key_name(workload.connection(), key);
            let mut bytes = Vec::new();
            encode_command(&mut bytes, &[b"GET", &name]);
            encode_command(&mut bytes, &[b"PTTL", &name]);
            let sent = now();
            client.send_raw(&bytes).map_err(lost)?;
            let value = client.read_reply().map_err(lost)?;
            let pttl = client.read_reply().map_err(lost)?;
            let window = Window { sent, received: now() };
            let seen = match (value, pttl) {
                (Reply::Nil, Reply::Integer(pttl)) => Observation { value: None, pttl },
                (Reply::Bulk(bytes), Reply::Integer(pttl)) => {
                    Observation { value: Some(bytes), pttl }
                }
                (value, pttl) => {
                    let account = format!(
                        "connection {} key {key}: GET {}, PTTL {}",
                        workload.connection(),
                        value.brief(),
                        pttl.brief()
                    );
                    return Err(Violation { account });
                }
            };
            let ledger = &workload.keys()[key as usize];
            if seen.value.is_none() && ledger.has_expired(window) {
                tally.expired_keys.fetch_add(1, Ordering::Relaxed);
                let while_down = u64::from(!ledger.has_expired(killed));
                tally.expired_while_down.fetch_add(while_down, Ordering::Relaxed);
            }
            workload.observe(key, &seen, window)?;
            tally.verified_keys.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Compares the shared counters.
pub(super) fn compare_counters(shared: &Shared, address: SocketAddr) -> Result<(), Violation> {
    let lost = |error: io::Error| failure(&format!("reading counters back: {error}"));
    let mut client = RespClient::connect(address).map_err(lost)?;
    for (index, counter) in lock(&shared.counters).iter_mut().enumerate() {
        let reply = client.call(&[b"GET", &shared_name(index)]).map_err(lost)?;
        let number = match &reply {
            Reply::Nil => Some(0),
            Reply::Bulk(bytes) => {
                std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok())
            }
            _ => None,
        };
        let Some(number) = number else {
            return Err(failure(&format!("shared counter {index}: {}", reply.brief())));
        };
        counter.observe(number)?;
        shared.tally.verified_keys.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Checks that SCAN lists nothing that cannot exist, and DBSIZE counts what may.
pub(super) fn compare_listing(
    workloads: &[Mutex<ConnectionWorkload>],
    address: SocketAddr,
) -> Result<(), Violation> {
    let lost = |error: io::Error| failure(&format!("listing keys: {error}"));
    let mut client = RespClient::connect(address).map_err(lost)?;
    let sent = now();
    let mut listed = BTreeSet::new();
    let mut cursor = b"0".to_vec();
    loop {
        let reply = client.call(&[b"SCAN", &cursor, b"COUNT", b"100"]).map_err(lost)?;
        let Reply::Array(parts) = &reply else {
            return Err(failure(&format!("SCAN: {}", reply.brief())));
        };
        let [Reply::Bulk(next), Reply::Array(names)] = parts.as_slice() else {
            return Err(failure(&format!("SCAN: {}", reply.brief())));
        };
        listed.extend(names.iter().filter_map(Reply::bytes).map(<[u8]>::to_vec));
        if next == b"0" {
            break;
        }
        cursor.clone_from(next);
    }
    let size = client.call(&[b"DBSIZE"]).map_err(lost)?;
    let window = Window { sent, received: now() };
    let (mut must, mut may) = (0, 0);
    for workload in workloads {
        let workload = lock(workload);
        for (key, ledger) in (0..).zip(workload.keys()) {
            let name = key_name(workload.connection(), key);
            let is_listed = listed.remove(&name);
            must += i64::from(ledger.must_exist(window));
            may += i64::from(ledger.may_exist(window));
            if is_listed && !ledger.may_exist(window) || !is_listed && ledger.must_exist(window) {
                let name = name.escape_ascii();
                let account = format!("SCAN lists {name}: {is_listed}; {:?}", ledger.possible());
                return Err(Violation { account });
            }
        }
    }
    for index in 0..SHARED_COUNT {
        may += 1;
        listed.remove(&shared_name(index));
    }
    if let Some(name) = listed.first() {
        return Err(failure(&format!("SCAN lists a key never written: {}", name.escape_ascii())));
    }
    match size {
        // Keys past their time may still be counted until they are cleared away.
        Reply::Integer(size) if size >= must => Ok(()),
        size => Err(failure(&format!("DBSIZE: {}, {must} to {may} exist", size.brief()))),
    }
}
