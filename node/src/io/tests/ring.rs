//! What only the ring can get wrong: full queues, and receive memory running out.

use std::io::Write;
use std::net::TcpStream;

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
