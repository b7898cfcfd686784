//! What only the driver on a runtime can get wrong: turns that end too early or never block, and
//! the lock that the runtime's ring is to keep.

use std::io::{Read, Write};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use wal::disk::{BLOCK_SIZE, DiskOperation, Durability, FileId, FileName, IoBuffer, OpenMode};

use super::ring::drop_right_to_lock_memory;
use super::{Driver, LISTENER, Rig, Scratch, driver_or_excuse};
use crate::io::sockets::RECEIVE_BUFFERS;
use crate::io::tokio_uring::{TokioUringIo, TokioUringOptions};
use crate::io::{Completion, Io, Monotonic, Request};

fn rig() -> Option<Rig<TokioUringIo>> {
    Rig::new()
}

/// The registered file outlives the process by the ring's last request, and the lock with it.
#[test]
fn lock_is_registered_in_the_ring_of_the_runtime() {
    let scratches = [Scratch::new(), Scratch::new()];
    let drivers: Vec<_> =
        scratches.iter().filter_map(|s| TokioUringIo::open(s.open(), false)).collect();
    for driver in &drivers {
        assert!(driver.keeps_lock_in_ring());
    }
}

/// Nothing but a poll follows the submission, and that must hand all of it to the kernel; the tasks
/// are more than the runtime runs at a go.
#[test]
fn poll_starts_all_that_was_submitted() {
    const CONNECTIONS: u32 = 200;
    let Some(mut rig) = rig() else { return };
    let address = rig.listen();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| rig.connect(address)).collect();
    for (index, (connection, _)) in clients.iter().enumerate() {
        let part = Bytes::from((index as u32).to_be_bytes().to_vec());
        rig.io.submit(Request::Send(*connection, vec![part]));
    }
    rig.poll();
    for (index, (_, client)) in clients.iter_mut().enumerate() {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(u32::from_be_bytes(answer), index as u32);
    }
}

/// Completions that are there already must not keep what was submitted from starting.
#[test]
fn wait_with_completions_at_hand_starts_what_was_submitted() {
    let Some(mut rig) = rig() else { return };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    rig.io.submit(Request::Send(connection, vec![Bytes::from_static(b"x")]));
    rig.io.submit(Request::Listen(LISTENER, address));
    let mut done = Vec::new();
    rig.io.wait(None, &mut done).unwrap();
    assert!(matches!(done[0], Completion::Listening(LISTENER, Err(_))), "{done:?}");
    client.read_exact(&mut [0; 1]).unwrap();
}

#[test]
fn idle_driver_uses_no_processor() {
    let Some(mut rig) = rig() else { return };
    let address = rig.listen();
    let (connection, _client) = rig.connect(address);
    rig.io.submit(Request::Receive(connection));
    rig.poll();
    let used = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Monotonic(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    };
    let before = used();
    let deadline = rig.io.now().0.plus_millis(500);
    let mut done = Vec::new();
    rig.io.wait(Some(deadline), &mut done).unwrap();
    assert!(done.is_empty(), "{done:?}");
    assert!(rig.io.now().0 >= deadline);
    assert!(used() < before.plus_millis(50), "the loop spins");
}

/// More writes at once than the submission queue and the completion queue hold.
#[test]
fn more_requests_than_the_queues_hold_complete() {
    let Some(mut rig) = rig() else { return };
    let file = FileId(0);
    let name = FileName::new("file");
    rig.must(DiskOperation::Open { file, name, mode: OpenMode::Create });
    let writes: Vec<_> = (0..5000_u64)
        .map(|index| {
            let mut buffer = IoBuffer::zeroed(BLOCK_SIZE);
            buffer.as_mut_slice().fill(index as u8);
            let offset = index % 100 * BLOCK_SIZE as u64;
            let durability = Durability::Cached;
            rig.start(DiskOperation::Write { file, offset, buffer, durability })
        })
        .collect();
    for id in writes {
        rig.finish(id).result.unwrap();
    }
    assert_eq!(rig.io.tasks_running(), 0);
}

fn write_and_read_back(rig: &mut Rig<TokioUringIo>) {
    let source = rig.io.buffers();
    let (file, name) = (FileId(0), FileName::new("file"));
    rig.must(DiskOperation::Open { file, name, mode: OpenMode::Create });
    // Two buffers of one slab at a time: the runtime's own registry would lend it only once.
    let writes = [7, 8].map(|fill| {
        let mut buffer = source.take(BLOCK_SIZE);
        buffer.set_len(BLOCK_SIZE);
        buffer.as_mut_slice().fill(fill);
        let (offset, durability) = (u64::from(fill) * BLOCK_SIZE as u64, Durability::Durable);
        rig.start(DiskOperation::Write { file, offset, buffer, durability })
    });
    for id in writes {
        rig.finish(id).result.unwrap();
    }
    for fill in [7, 8] {
        let (len, buffer) = (BLOCK_SIZE, source.take(BLOCK_SIZE));
        let offset = u64::from(fill) * BLOCK_SIZE as u64;
        let read = rig.disk(DiskOperation::Read { file, offset, len, buffer });
        assert!(read.buffer.unwrap().as_slice().iter().all(|byte| *byte == fill));
    }
    rig.must(DiskOperation::Close { file });
}

#[test]
fn registered_memory_is_used_as_such() {
    let Some(mut rig) = rig() else { return };
    let before = rig.io.buffer_statistics();
    assert_eq!(before.arena_bytes, 8 << 20);
    if !before.registered {
        eprintln!("SKIPPED, nothing was tested: no memory may be registered here");
        return;
    }
    write_and_read_back(&mut rig);
    let after = rig.io.buffer_statistics();
    assert_eq!((after.operations, after.taken, after.fallen_back), (4, 4, 0));
    assert_eq!(after.arena_bytes_free, after.arena_bytes, "all buffers came back");
}

/// On a thread without the right to lock memory, beyond the limit on it. The lock is kept all the
/// same.
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
        let options = TokioUringOptions {
            handle_signals: false,
            buffer_bytes,
            ..TokioUringOptions::default()
        };
        let Some(io) = driver_or_excuse(TokioUringIo::new(scratch.open(), options)) else {
            return;
        };
        let mut rig = Rig::around(io, scratch);
        assert!(!rig.io.buffer_statistics().registered);
        assert!(rig.io.keeps_lock_in_ring());
        write_and_read_back(&mut rig);
        let statistics = rig.io.buffer_statistics();
        assert_eq!((statistics.operations, statistics.taken), (0, 4));
    });
    thread.join().unwrap();
}

/// All buffers lent: receives wait until one is released, or their connection is closed.
#[test]
fn receives_wait_while_all_buffers_are_lent() {
    let Some(mut rig) = rig() else { return };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    let (waiting, mut late) = rig.connect(address);
    let mut lent = Vec::new();
    for _ in 0..RECEIVE_BUFFERS {
        client.write_all(b"x").unwrap();
        rig.io.submit(Request::Receive(connection));
        lent.push(rig.expect(|completion| match completion {
            Completion::Received { result, .. } => Ok(result.unwrap()),
            other => Err(other),
        }));
    }
    late.write_all(b"late").unwrap();
    rig.io.submit(Request::Receive(waiting));
    for _ in 0..3 {
        assert_eq!(rig.poll(), 0, "there is no buffer to receive into");
    }
    rig.io.release(lent.pop().unwrap());
    assert_eq!(rig.received(waiting).unwrap(), b"late");
}

/// Past the page cache, durable writes have a descriptor of their own, on which every write is.
#[test]
fn writable_file_has_a_descriptor_for_durable_writes() {
    let Some(mut rig) = rig() else { return };
    let direct = rig.io.directory().direct();
    for (mode, expected) in [
        (OpenMode::Create, if direct { vec![false, true] } else { vec![false] }),
        (OpenMode::ReadWrite, if direct { vec![false, true] } else { vec![false] }),
        (OpenMode::Read, vec![false]),
    ] {
        let (file, name) = (FileId(0), FileName::new("file"));
        rig.must(DiskOperation::Open { file, name, mode });
        let path = rig._scratch.0.join("data/file").canonicalize().unwrap();
        let mut found: Vec<bool> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .flatten()
            .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == path))
            .map(|entry| entry.path().to_str().unwrap().replace("/fd/", "/fdinfo/"))
            .map(|about| std::fs::read_to_string(about).unwrap())
            .map(|about| {
                let flags = about.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
                let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
                flags & rustix::fs::OFlags::DSYNC.bits() != 0
            })
            .collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{mode:?}");
        rig.must(DiskOperation::Close { file });
    }
}
