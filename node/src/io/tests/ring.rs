//! What only the ring can get wrong: full queues, and receive memory running out.

use std::io::Write;
use std::net::TcpStream;

use wal::disk::{BLOCK_SIZE, DiskOperation, Durability, FileId, FileName, IoBuffer, OpenMode};

use super::{Rig, Scratch, ring_or_excuse};
use crate::io::uring::{UringIo, UringOptions};
use crate::io::{Completion, Io, Request};

fn rig(options: UringOptions) -> Option<Rig<UringIo>> {
    let scratch = Scratch::new();
    let io = ring_or_excuse(scratch.open(), UringOptions { handle_signals: false, ..options })?;
    Some(Rig::around(io, scratch))
}

fn tiny_queues() -> UringOptions {
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
