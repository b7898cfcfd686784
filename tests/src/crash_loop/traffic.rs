//! The connections that write until the node is killed.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use fastrand::Rng;

use super::{Shared, lock, now};
use crate::ledger::{FlushOutcome, Violation, Window};
use crate::resp_client::{Reply, RespClient, encode_command};
use crate::workload::{ConnectionWorkload, Effect, Request, Settled};

/// One pipeline in so many of the first connection is a FLUSHALL instead.
const FLUSH_ONE_IN: u32 = 1_500;

/// Sends pipelines until the node is gone.
pub(super) fn write_until_killed(
    shared: &Shared,
    workload: &Mutex<ConnectionWorkload>,
    address: SocketAddr,
    seed: u64,
) -> Result<(), Violation> {
    let mut rng = Rng::with_seed(seed);
    let mut client = match RespClient::connect(address) {
        Ok(client) => client,
        Err(error) => return shared.broken(&error),
    };
    let flusher = lock(workload).connection() == 0;
    loop {
        let outcome = if flusher && rng.u32(0..FLUSH_ONE_IN) == 0 {
            flush(shared, &mut client)?
        } else {
            let _running = shared.pause.read().unwrap_or_else(PoisonError::into_inner);
            one_pipeline(shared, &mut lock(workload), &mut client)?
        };
        if let Err(error) = outcome {
            return shared.broken(&error);
        }
    }
}

/// Sends one pipeline and settles every command of it; the inner error is the connection's.
fn one_pipeline(
    shared: &Shared,
    workload: &mut ConnectionWorkload,
    client: &mut RespClient,
) -> Result<io::Result<()>, Violation> {
    let pipeline = workload.next_pipeline();
    let mut bytes = Vec::new();
    for request in &pipeline {
        let words: Vec<&[u8]> = request.command.iter().map(Vec::as_slice).collect();
        encode_command(&mut bytes, &words);
        if let Effect::Shared(counter) = request.effect {
            lock(&shared.counters)[counter].attempt();
        }
    }
    let sent = now();
    // Replies to what did arrive may be there even if sending broke off.
    let mut sending = client.send_raw(&bytes);
    for (index, request) in pipeline.iter().enumerate() {
        let reply = match client.read_reply() {
            Ok(reply) => reply,
            Err(error) => {
                let window = Window { sent, received: now() };
                abandon(shared, workload, &pipeline[index..], window);
                sending = sending.and(Err(error));
                return Ok(sending);
            }
        };
        let window = Window { sent, received: now() };
        shared.journal.settled(workload.connection(), request, Some(&reply), window);
        settle(shared, workload, request, reply, window)?;
    }
    Ok(sending)
}

fn settle(
    shared: &Shared,
    workload: &mut ConnectionWorkload,
    request: &Request,
    reply: Reply,
    window: Window,
) -> Result<(), Violation> {
    let settled = match (&request.effect, reply) {
        (Effect::Shared(counter), Reply::Integer(number)) => {
            lock(&shared.counters)[*counter].acknowledge(number)?;
            Settled::Known
        }
        (effect, reply) => workload.settle(effect, reply, window)?,
    };
    let tally = &shared.tally;
    match settled {
        Settled::Known if request.effect.is_write() => {
            tally.acknowledged_writes.fetch_add(1, Ordering::Relaxed);
        }
        Settled::Known => {}
        Settled::Unknown(text) => {
            tally.unknown_outcomes.fetch_add(1, Ordering::Relaxed);
            tally.error_replies.fetch_add(1, Ordering::Relaxed);
            *lock(&tally.error_example) = Some(text);
        }
    }
    Ok(())
}

fn abandon(
    shared: &Shared,
    workload: &mut ConnectionWorkload,
    requests: &[Request],
    window: Window,
) {
    for request in requests {
        shared.journal.settled(workload.connection(), request, None, window);
    }
    let count = u64::try_from(requests.len()).unwrap_or(u64::MAX);
    shared.tally.unknown_outcomes.fetch_add(count, Ordering::Relaxed);
    workload.abandon(requests, window);
}

/// Flushes everything while no other command is under way.
fn flush(shared: &Shared, client: &mut RespClient) -> Result<io::Result<()>, Violation> {
    let _alone = shared.pause.write().unwrap_or_else(PoisonError::into_inner);
    let reply = client.call(&[b"FLUSHALL"]);
    let outcome = match &reply {
        Ok(Reply::Simple(text)) if text == "OK" => FlushOutcome::Acknowledged,
        _ => FlushOutcome::Unknown,
    };
    shared.journal.line(format_args!("{} FLUSHALL {outcome:?}", now()));
    for workload in &shared.workloads {
        lock(workload).flush(outcome);
    }
    for counter in lock(&shared.counters).iter_mut() {
        counter.flush(outcome);
    }
    if let Err(error) = reply {
        return Ok(Err(error));
    }
    if outcome == FlushOutcome::Acknowledged {
        shared.tally.flushes.fetch_add(1, Ordering::Relaxed);
        match client.call(&[b"DBSIZE"]) {
            Ok(Reply::Integer(0)) => {}
            Ok(reply) => {
                let account = format!("DBSIZE right after FLUSHALL: {}", reply.brief());
                return Err(Violation { account });
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}
