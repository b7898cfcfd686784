//! What only the ring can get wrong: full queues, and receive memory running out.

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::Bytes;
use wal::disk::{BLOCK_SIZE, DiskOperation, Durability, FileId, FileName, IoBuffer, OpenMode};

use super::{Rig, Scratch, ring_or_excuse};
use crate::io::uring::{UringIo, UringOptions};
use crate::io::{Completion, Io, Request};

pub(super) fn rig(options: UringOptions) -> Option<Rig<UringIo>> {
    let scratch = Scratch::new();
    let options = UringOptions { handle_signals: false, buffer_bytes: 8 << 20, ..options };
    let io = ring_or_excuse(scratch.open(), options)?;
    Some(Rig::around(io, scratch))
}

pub(super) fn tiny_queues() -> UringOptions {
    UringOptions { entries: 2, ..UringOptions::default() }
}

/// Two entries at a time: the rest waits in the backlog, in order.
#[test]
fn more_requests_than_the_queues_hold_complete() {
    let Some(mut rig) = rig(tiny_queues()) else {
        return;
    };
    let file = FileId(0);
    let name = FileName::new("file");
    rig.must(DiskOperation::Open { file, name, mode: OpenMode::Create });
    let writes: Vec<_> = (0..200_u64)
        .map(|index| {
            let mut buffer = IoBuffer::zeroed(BLOCK_SIZE);
            buffer.as_mut_slice().fill(index as u8);
            let offset = index * BLOCK_SIZE as u64;
            let durability = Durability::Cached;
            rig.start(DiskOperation::Write { file, offset, buffer, durability })
        })
        .collect();
    for id in writes {
        rig.finish(id).result.unwrap();
    }
    let buffer = IoBuffer::with_capacity(200 * BLOCK_SIZE);
    let len = buffer.capacity();
    let buffer = rig.disk(DiskOperation::Read { file, offset: 0, len, buffer }).buffer.unwrap();
    for (index, block) in buffer.as_slice().chunks(BLOCK_SIZE).enumerate() {
        assert!(block.iter().all(|byte| *byte == index as u8), "block {index}");
    }
    assert_eq!(rig.io.slots_in_use(), 0);
}

/// Connections that came in while nobody looked overflow the completion queue of eight entries and
/// end the multishot accept.
#[test]
fn no_connection_is_lost_when_the_completion_queue_overflows() {
    let Some(mut rig) = rig(tiny_queues()) else {
        return;
    };
    let address = rig.listen();
    rig.poll();
    let clients: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut peers: Vec<_> = clients.iter().map(|_| rig.accepted().1).collect();
    let mut expected: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
    peers.sort();
    expected.sort();
    assert_eq!(peers, expected);
}

/// Two buffers, both lent: all receives wait. Both released: those with bytes get them, although
/// idle connections stand before them in line.
#[test]
fn receives_without_a_buffer_wait_for_one() {
    let options = UringOptions { receive_buffers: 2, ..UringOptions::default() };
    let Some(mut rig) = rig(options) else { return };
    let address = rig.listen();
    let connections: Vec<_> = (0..10).map(|_| rig.connect(address)).collect();
    let (early, late) = connections.split_at(2);
    for (connection, client) in early {
        (&*client).write_all(b"first").unwrap();
        rig.io.submit(Request::Receive(*connection));
    }
    let lent: Vec<_> = early.iter().map(|_| rig.expect(buffer)).collect();
    for (connection, _) in late {
        rig.io.submit(Request::Receive(*connection));
    }
    let (_idle, busy) = late.split_at(4);
    for (_, client) in busy {
        (&*client).write_all(b"second").unwrap();
    }
    for _ in 0..10 {
        assert_eq!(rig.poll(), 0, "there is no buffer to receive into");
    }
    for buffer in lent {
        assert_eq!(&*buffer, b"first");
        rig.io.release(buffer);
    }
    for (connection, _) in busy {
        assert_eq!(rig.received(*connection).unwrap(), b"second");
    }
    for (connection, _) in &connections {
        rig.io.submit(Request::Close(*connection));
    }
    for (connection, _) in &connections {
        rig.closed(*connection);
    }
}

/// One entry receives all that a connection that keeps asking gets.
#[test]
fn receives_after_the_first_need_no_entry() {
    let Some(mut rig) = rig(UringOptions::default()) else {
        return;
    };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    for round in 0..100_u8 {
        rig.io.submit(Request::Receive(connection));
        client.write_all(&[round; 100]).unwrap();
        assert_eq!(rig.received(connection).unwrap(), [round; 100]);
    }
    let counters = rig.io.receive_counters();
    assert_eq!((counters.armed, counters.completions), (1, 100));
}

/// Receives until the end of the stream.
fn receive_all(rig: &mut Rig<UringIo>, connection: crate::io::ConnectionId) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        rig.io.submit(Request::Receive(connection));
        let more = rig.received(connection).unwrap();
        if more.is_empty() {
            return bytes;
        }
        bytes.extend(more);
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Writes from a thread, since no socket holds that much.
fn write_in_background(mut client: TcpStream, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || client.write_all(&bytes).unwrap())
}

/// A connection that is not asked for what it has got neither takes more from its peer nor keeps a
/// buffer from others; what it has got is not lost.
#[test]
fn connection_nobody_asks_is_paused_and_holds_no_buffer() {
    let options = UringOptions { receive_buffers: 4, ..UringOptions::default() };
    let Some(mut rig) = rig(options) else { return };
    let address = rig.listen();
    let (heavy, client) = rig.connect(address);
    let bytes = pattern(8 << 20);
    rig.io.submit(Request::Receive(heavy));
    let writer = write_in_background(client, bytes.clone());
    let mut received = rig.received(heavy).unwrap();
    // It is not asked again. Others get their bytes all the same, one after the other.
    for _ in 0..20 {
        let (light, mut client) = rig.connect(address);
        client.write_all(b"ping").unwrap();
        rig.io.submit(Request::Receive(light));
        assert_eq!(rig.received(light).unwrap(), b"ping");
        rig.close(light);
    }
    let counters = rig.io.receive_counters();
    let ends = counters.paused + counters.unbuffered;
    assert!(ends > 0, "{counters:?}");
    assert!(counters.completions < 20 + 64, "it went on receiving: {counters:?}");
    received.extend(receive_all(&mut rig, heavy));
    writer.join().unwrap();
    assert!(received == bytes, "the bytes differ");
}

/// Two buffers end a standing receive often; it is armed again, and nothing is lost.
#[test]
fn receive_that_ends_for_want_of_buffers_goes_on() {
    let options = UringOptions { receive_buffers: 2, ..UringOptions::default() };
    let Some(mut rig) = rig(options) else { return };
    let address = rig.listen();
    let (connection, client) = rig.connect(address);
    let bytes = pattern(4 << 20);
    let writer = write_in_background(client, bytes.clone());
    assert!(receive_all(&mut rig, connection) == bytes, "the bytes differ");
    writer.join().unwrap();
    let counters = rig.io.receive_counters();
    assert!(counters.unbuffered > 0 && counters.armed > 1, "{counters:?}");
}

/// Arrivals on many connections at once overflow the completion queue of eight entries.
#[test]
fn nothing_received_is_lost_when_the_completion_queue_overflows() {
    let Some(mut rig) = rig(tiny_queues()) else {
        return;
    };
    let address = rig.listen();
    let connections: Vec<_> = (0..64).map(|_| rig.connect(address)).collect();
    for (connection, _) in &connections {
        rig.io.submit(Request::Receive(*connection));
    }
    for round in 0..3_u8 {
        while rig.poll() > 0 {}
        for (number, (_, client)) in connections.iter().enumerate() {
            (&*client).write_all(&[round, number as u8]).unwrap();
        }
        for (number, (connection, _)) in connections.iter().enumerate() {
            assert_eq!(rig.received(*connection).unwrap(), [round, number as u8]);
            rig.io.submit(Request::Receive(*connection));
        }
    }
    let counters = rig.io.receive_counters();
    assert!(counters.broken_off > 0, "the queue did not overflow: {counters:?}");
}

/// What came before the close, and was not asked for, is not delivered; its buffers come back.
#[test]
fn close_forgets_what_is_held() {
    let options = UringOptions { receive_buffers: 2, ..UringOptions::default() };
    let Some(mut rig) = rig(options) else { return };
    let address = rig.listen();
    for _ in 0..10 {
        let (connection, mut client) = rig.connect(address);
        rig.io.submit(Request::Receive(connection));
        client.write_all(b"asked for").unwrap();
        assert_eq!(rig.received(connection).unwrap(), b"asked for");
        client.write_all(b"not asked for").unwrap();
        rig.poll();
        rig.io.submit(Request::Close(connection));
        let first = rig.expect(Ok);
        assert!(matches!(first, Completion::Closed(closed) if closed == connection), "{first:?}");
    }
}

/// A megabyte in registered memory, which goes out without a copy where that works.
fn registered_megabyte(rig: &Rig<UringIo>) -> Bytes {
    let mut buffer = rig.io.buffers().take(1 << 20);
    buffer.extend_from_slice(&pattern(1 << 20));
    Bytes::from_owner(buffer)
}

/// On loopback, the kernel copies all the same and says so: the connection is asked once.
#[test]
fn connection_whose_sends_are_copied_returns_to_plain_sends() {
    let Some(mut rig) = rig(UringOptions::default()) else {
        return;
    };
    if !rig.io.buffer_statistics().registered {
        eprintln!("SKIPPED, nothing was tested: no memory may be registered here");
        return;
    }
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    let large = registered_megabyte(&rig);
    let head = Bytes::from_static(b"head");
    let expected = [&head[..], &large, &head, &large, &head].concat();
    for round in 0..3 {
        let parts = vec![head.clone(), large.clone(), head.clone(), large.clone(), head.clone()];
        rig.io.submit(Request::Send(connection, parts));
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; 2 * (1 << 20) + 12];
            client.read_exact(&mut bytes).unwrap();
            (bytes, client)
        });
        rig.sent(connection).unwrap();
        let bytes;
        (bytes, client) = reader.join().unwrap();
        assert!(bytes == expected, "the bytes differ in round {round}");
        // The report comes when the reader has taken the last of it.
        while rig.io.send_statistics().zero_copy_in_vain == 0 {
            rig.poll();
        }
    }
    let statistics = rig.io.send_statistics();
    assert_eq!((statistics.zero_copy_in_vain, statistics.zero_copy_refused), (1, 0));
    assert_eq!(statistics.copied_bytes, 3 * expected.len() as u64);
    drop(large);
    let buffers = rig.io.buffer_statistics();
    assert_eq!(buffers.arena_bytes_free, buffers.arena_bytes, "the memory came back");
}

/// The kernel reads from memory that nobody else has any more; a driver that ends takes it back.
#[test]
fn driver_ends_with_sends_that_nobody_reads() {
    let Some(mut rig) = rig(UringOptions::default()) else {
        return;
    };
    let address = rig.listen();
    let clients: Vec<_> = (0..4).map(|_| rig.connect(address)).collect();
    for (connection, _) in &clients {
        let parts = (0..1).map(|_| registered_megabyte(&rig)).collect();
        rig.io.submit(Request::Send(*connection, parts));
    }
    rig.poll();
    rig.io.submit(Request::Close(clients[0].0));
    rig.poll();
    drop(rig);
}

fn buffer(completion: Completion) -> Result<crate::io::ReceiveBuffer, Completion> {
    match completion {
        Completion::Received { result, .. } => Ok(result.unwrap()),
        other => Err(other),
    }
}

/// A connection that waits for a buffer, not for the kernel, can be closed too.
#[test]
fn close_ends_a_receive_that_waits_for_a_buffer() {
    let options = UringOptions { receive_buffers: 1, ..UringOptions::default() };
    let Some(mut rig) = rig(options) else { return };
    let address = rig.listen();
    let (first, mut client) = rig.connect(address);
    client.write_all(b"x").unwrap();
    rig.io.submit(Request::Receive(first));
    let lent = rig.expect(buffer);
    let (second, _other) = rig.connect(address);
    rig.io.submit(Request::Receive(second));
    rig.poll();
    rig.poll();
    rig.io.submit(Request::Close(second));
    assert!(rig.received(second).is_err());
    rig.closed(second);
    rig.io.release(lent);
    client.write_all(b"y").unwrap();
    rig.io.submit(Request::Receive(first));
    assert_eq!(rig.received(first).unwrap(), b"y");
}

/// Receive buffers outlive the driver that lent them.
#[test]
fn lent_buffer_outlives_the_driver() {
    let Some(mut rig) = rig(UringOptions::default()) else {
        return;
    };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    client.write_all(b"kept").unwrap();
    rig.io.submit(Request::Receive(connection));
    let lent = rig.expect(buffer);
    drop(rig);
    assert_eq!(&*lent, b"kept");
}

fn write_and_read_back(rig: &mut Rig<UringIo>) {
    let source = rig.io.buffers();
    let (file, name) = (FileId(0), FileName::new("file"));
    rig.must(DiskOperation::Open { file, name, mode: OpenMode::Create });
    let mut buffer = source.take(BLOCK_SIZE);
    buffer.set_len(BLOCK_SIZE);
    buffer.as_mut_slice().fill(7);
    let durability = Durability::Durable;
    rig.must(DiskOperation::Write { file, offset: 0, buffer, durability });
    let (len, buffer) = (BLOCK_SIZE, source.take(BLOCK_SIZE));
    let buffer = rig.disk(DiskOperation::Read { file, offset: 0, len, buffer }).buffer.unwrap();
    assert!(buffer.as_slice().iter().all(|byte| *byte == 7));
    rig.must(DiskOperation::Close { file });
}

/// Buffers from the driver are registered ones, others are not; both work.
#[test]
fn registered_memory_is_used_as_such() {
    let Some(mut rig) = rig(UringOptions::default()) else {
        return;
    };
    let before = rig.io.buffer_statistics();
    assert_eq!(before.arena_bytes, 8 << 20);
    assert_eq!(before.arena_bytes_free, before.arena_bytes);
    if !before.registered {
        eprintln!("SKIPPED, nothing was tested: no memory may be registered here");
        return;
    }
    write_and_read_back(&mut rig);
    let after = rig.io.buffer_statistics();
    assert_eq!((after.operations, after.taken, after.fallen_back), (2, 2, 0));
    assert_eq!(after.arena_bytes_free, after.arena_bytes, "all buffers came back");

    let (file, name) = (FileId(0), FileName::new("file"));
    rig.must(DiskOperation::Open { file, name, mode: OpenMode::Read });
    let buffer = IoBuffer::with_capacity(BLOCK_SIZE);
    rig.must(DiskOperation::Read { file, offset: 0, len: BLOCK_SIZE, buffer });
    assert_eq!(rig.io.buffer_statistics().operations, 2, "the heap is not registered");
}

/// On a thread without the right to lock memory, beyond the limit on it.
#[test]
fn refused_registration_leaves_plain_memory() {
    let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Memlock).current else {
        eprintln!("SKIPPED, nothing was tested: memory may be locked without limit");
        return;
    };
    let thread = std::thread::spawn(move || {
        drop_right_to_lock_memory();
        let scratch = Scratch::new();
        let buffer_bytes = usize::try_from(limit).unwrap() + (4 << 20);
        let options = UringOptions { handle_signals: false, buffer_bytes, ..tiny_queues() };
        let Some(io) = ring_or_excuse(scratch.open(), options) else {
            return;
        };
        let mut rig = Rig::around(io, scratch);
        assert!(!rig.io.buffer_statistics().registered);
        write_and_read_back(&mut rig);
        let statistics = rig.io.buffer_statistics();
        assert_eq!((statistics.operations, statistics.taken), (0, 2));
    });
    thread.join().unwrap();
}

/// Capabilities belong to threads.
pub(super) fn drop_right_to_lock_memory() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).unwrap();
}
