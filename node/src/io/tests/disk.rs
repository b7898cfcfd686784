//! Disk requests.

use wal::disk::{
    BLOCK_SIZE, DiskErrorKind, DiskOperation, DiskOutput, Durability, FileId, FileName, IoBuffer,
    OpenMode,
};

use super::{Driver, OWNER, Rig, Scratch, on_all_drivers};
use crate::io::{Completion, DiskOwner, Request};

on_all_drivers![
    file_is_written_read_renamed_listed_and_removed,
    files_live_without_direct_io_too,
    read_past_the_end_is_short,
    write_to_a_file_opened_for_reading_fails,
    missing_things_are_not_found,
    file_that_is_not_open_gives_the_buffer_back,
    file_ids_belong_to_their_owner,
    create_empties_an_existing_file,
    many_reads_at_once_each_get_their_block,
    file_closed_while_in_use_stays_usable_for_what_is_under_way,
    file_ids_are_reusable_many_times,
    drop_with_requests_under_way,
    directory_is_listed_without_directories,
    linked_file_has_two_names_until_one_is_removed,
    link_replaces_nothing,
    directory_is_removed_once_it_is_empty,
    mapping_is_private_and_outlives_its_file,
    mapping_more_than_there_is_fails,
    mapping_takes_place_beside_other_work,
    buffers_of_the_driver_are_read_and_written,
    buffers_of_the_driver_outlive_it,
    full_disk_is_a_short_write_then_no_space,
];

const FILE: FileId = FileId(1);

fn blocks(count: usize, fill: impl Fn(usize) -> u8) -> IoBuffer {
    let mut buffer = IoBuffer::zeroed(count * BLOCK_SIZE);
    for (index, block) in buffer.as_mut_slice().chunks_mut(BLOCK_SIZE).enumerate() {
        block.fill(fill(index));
    }
    buffer
}

fn name(path: &str) -> FileName {
    FileName::new(path)
}

fn open(file: FileId, path: &str, mode: OpenMode) -> DiskOperation {
    DiskOperation::Open { file, name: name(path), mode }
}

fn read(file: FileId, offset: usize, len: usize) -> DiskOperation {
    let buffer = IoBuffer::with_capacity(len);
    DiskOperation::Read { file, offset: offset as u64, len, buffer }
}

fn write(file: FileId, offset: usize, buffer: IoBuffer, durability: Durability) -> DiskOperation {
    DiskOperation::Write { file, offset: offset as u64, buffer, durability }
}

fn file_is_written_read_renamed_listed_and_removed<D: Driver>() {
    let Some(rig) = Rig::<D>::new() else { return };
    life_of_a_file(rig);
}

fn files_live_without_direct_io_too<D: Driver>() {
    let memory = std::path::PathBuf::from("/dev/shm");
    if !memory.is_dir() {
        eprintln!("SKIPPED, nothing was tested: no file system in memory here");
        return;
    }
    let scratch = Scratch::below(memory);
    assert!(!scratch.open().direct(), "memory has no page cache to go past");
    let Some(rig) = Rig::<D>::in_scratch(scratch) else {
        return;
    };
    life_of_a_file(rig);
}

fn life_of_a_file<D: Driver>(mut rig: Rig<D>) {
    let shard = name("shard-00");
    for _ in 0..2 {
        // Making it twice is no error.
        rig.must(DiskOperation::CreateDirectory { name: shard.clone() });
    }
    assert_eq!(
        rig.must(open(FILE, "shard-00/new", OpenMode::Create)),
        DiskOutput::Opened { len: 0 }
    );
    let written = rig.disk(write(FILE, 0, blocks(3, |i| i as u8 + 1), Durability::Durable));
    assert_eq!(written.result, Ok(DiskOutput::Done));
    assert_eq!(written.buffer.unwrap().as_slice(), blocks(3, |i| i as u8 + 1).as_slice());
    rig.must(write(FILE, 2 * BLOCK_SIZE, blocks(2, |i| i as u8 + 8), Durability::Cached));
    rig.must(DiskOperation::Sync { file: FILE });
    let back = rig.disk(read(FILE, 0, 4 * BLOCK_SIZE)).buffer.unwrap();
    assert_eq!(back.as_slice(), blocks(4, |i| [1, 2, 8, 9][i]).as_slice());
    rig.must(DiskOperation::Close { file: FILE });

    let (from, to) = (name("shard-00/new"), name("shard-00/final"));
    rig.must(DiskOperation::Rename { from, to: to.clone() });
    rig.must(DiskOperation::SyncDirectory { name: shard.clone() });
    rig.must(DiskOperation::SyncDirectory { name: name("") });
    let listed = rig.must(DiskOperation::ListDirectory { name: shard.clone() });
    let len = 4 * BLOCK_SIZE as u64;
    assert_eq!(listed, DiskOutput::Listed(vec![("final".to_owned(), len)]));

    assert_eq!(
        rig.must(open(FILE, "shard-00/final", OpenMode::ReadWrite)),
        DiskOutput::Opened { len }
    );
    rig.must(DiskOperation::Close { file: FILE });
    rig.must(DiskOperation::Remove { name: to });
    let listed = rig.must(DiskOperation::ListDirectory { name: shard });
    assert_eq!(listed, DiskOutput::Listed(Vec::new()));
}

fn read_past_the_end_is_short<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    // An end within a block: the kernel's answer is then no multiple of anything.
    let len = 2 * BLOCK_SIZE + 100;
    std::fs::write(rig._scratch.0.join("data/odd"), vec![7; len]).unwrap();
    let opened = rig.must(open(FILE, "odd", OpenMode::Read));
    assert_eq!(opened, DiskOutput::Opened { len: len as u64 });
    for (offset, expected) in [
        (0, len),
        (BLOCK_SIZE, len - BLOCK_SIZE),
        (2 * BLOCK_SIZE, 100),
        (3 * BLOCK_SIZE, 0),
        (300 * BLOCK_SIZE, 0),
    ] {
        let completion = rig.disk(read(FILE, offset, 8 * BLOCK_SIZE));
        assert_eq!(completion.result, Ok(DiskOutput::Done), "at {offset}");
        let buffer = completion.buffer.unwrap();
        assert_eq!(buffer.len(), expected, "at {offset}");
        assert!(buffer.as_slice().iter().all(|byte| *byte == 7), "at {offset}");
    }
}

fn write_to_a_file_opened_for_reading_fails<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    rig.must(open(FILE, "file", OpenMode::Create));
    rig.must(DiskOperation::Close { file: FILE });
    rig.must(open(FILE, "file", OpenMode::Read));
    let completion = rig.disk(write(FILE, 0, blocks(1, |_| 1), Durability::Durable));
    assert_eq!(completion.result.unwrap_err().kind, DiskErrorKind::Io);
    assert_eq!(completion.buffer.unwrap().len(), BLOCK_SIZE);
    assert_eq!(rig.disk(read(FILE, 0, BLOCK_SIZE)).buffer.unwrap().len(), 0);
}

fn missing_things_are_not_found<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let missing = || name("missing");
    for operation in [
        open(FILE, "missing", OpenMode::Read),
        open(FILE, "missing", OpenMode::ReadWrite),
        open(FILE, "missing/file", OpenMode::Create),
        DiskOperation::ListDirectory { name: missing() },
        DiskOperation::SyncDirectory { name: missing() },
        DiskOperation::Remove { name: missing() },
        DiskOperation::Rename { from: missing(), to: name("other") },
        DiskOperation::CreateDirectory { name: name("missing/child") },
        DiskOperation::Link { from: missing(), to: name("other") },
        DiskOperation::RemoveDirectory { name: missing() },
    ] {
        let text = format!("{operation:?}");
        let error = rig.disk(operation).result.expect_err(&text);
        assert_eq!(error.kind, DiskErrorKind::NotFound, "{text}");
    }
}

fn file_that_is_not_open_gives_the_buffer_back<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let completion = rig.disk(read(FILE, 0, BLOCK_SIZE));
    assert_eq!(completion.result.unwrap_err().kind, DiskErrorKind::Io);
    assert!(completion.buffer.is_some());
    let completion = rig.disk(write(FILE, 0, blocks(1, |_| 0), Durability::Cached));
    assert_eq!(completion.buffer.unwrap().len(), BLOCK_SIZE);
    assert!(rig.disk(DiskOperation::Sync { file: FILE }).result.is_err());
    assert!(rig.disk(DiskOperation::Map { file: FILE, len: BLOCK_SIZE }).result.is_err());
    assert!(rig.disk(DiskOperation::Close { file: FILE }).result.is_err());
}

fn file_ids_belong_to_their_owner<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    rig.must(open(FILE, "mine", OpenMode::Create));
    let id = wal::disk::RequestId(0);
    let operation = read(FILE, 0, BLOCK_SIZE);
    let other = DiskOwner(OWNER.0 + 1);
    rig.io.submit(Request::Disk(other, wal::disk::DiskRequest { id, operation }));
    let result = rig.expect(|completion| match completion {
        Completion::Disk(owner, completion) if owner == other => Ok(completion.result),
        other => Err(other),
    });
    assert!(result.is_err());
}

fn create_empties_an_existing_file<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    rig.must(open(FILE, "file", OpenMode::Create));
    rig.must(write(FILE, 0, blocks(2, |_| 1), Durability::Durable));
    rig.must(DiskOperation::Close { file: FILE });
    let opened = rig.must(open(FILE, "file", OpenMode::Create));
    assert_eq!(opened, DiskOutput::Opened { len: 0 });
    assert_eq!(rig.disk(read(FILE, 0, BLOCK_SIZE)).buffer.unwrap().len(), 0);
}

fn many_reads_at_once_each_get_their_block<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    rig.must(open(FILE, "file", OpenMode::Create));
    rig.must(write(FILE, 0, blocks(64, |i| i as u8), Durability::Durable));
    let ids: Vec<_> =
        (0..64).map(|index| rig.start(read(FILE, index * BLOCK_SIZE, BLOCK_SIZE))).collect();
    for (index, id) in ids.into_iter().enumerate().rev() {
        let buffer = rig.finish(id).buffer.unwrap();
        assert_eq!(buffer.as_slice(), blocks(1, |_| index as u8).as_slice());
    }
}

fn file_closed_while_in_use_stays_usable_for_what_is_under_way<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    rig.must(open(FILE, "file", OpenMode::Create));
    rig.must(write(FILE, 0, blocks(64, |i| i as u8), Durability::Durable));
    let reads: Vec<_> =
        (0..16).map(|index| rig.start(read(FILE, index * BLOCK_SIZE, BLOCK_SIZE))).collect();
    let close = rig.start(DiskOperation::Close { file: FILE });
    let again = rig.start(open(FILE, "other", OpenMode::Create));
    for (index, id) in reads.into_iter().enumerate() {
        let buffer = rig.finish(id).buffer.unwrap();
        assert_eq!(buffer.as_slice(), blocks(1, |_| index as u8).as_slice());
    }
    assert_eq!(rig.finish(close).result, Ok(DiskOutput::Done));
    assert_eq!(rig.finish(again).result, Ok(DiskOutput::Opened { len: 0 }));
}

/// More opens than the ring has places for registered files.
fn file_ids_are_reusable_many_times<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    rig.must(open(FILE, "file", OpenMode::Create));
    rig.must(write(FILE, 0, blocks(1, |_| 5), Durability::Durable));
    rig.must(DiskOperation::Close { file: FILE });
    for round in 0..1100 {
        rig.must(open(FILE, "file", OpenMode::Read));
        if round % 100 == 0 {
            let buffer = rig.disk(read(FILE, 0, BLOCK_SIZE)).buffer.unwrap();
            assert_eq!(buffer.as_slice(), blocks(1, |_| 5).as_slice());
        }
        rig.must(DiskOperation::Close { file: FILE });
    }
}

fn drop_with_requests_under_way<D: Driver>() {
    for polls in [0, 1, 2] {
        let Some(mut rig) = Rig::<D>::new() else {
            return;
        };
        rig.must(open(FILE, "file", OpenMode::Create));
        let address = rig.listen();
        let (connection, _client) = rig.connect(address);
        rig.io.submit(Request::Receive(connection));
        let part = bytes::Bytes::from(vec![1; 32 << 20]);
        rig.io.submit(Request::Send(connection, vec![part.clone(), part]));
        for index in 0..64 {
            rig.start(write(FILE, index * BLOCK_SIZE, blocks(1, |_| 1), Durability::Durable));
            rig.start(open(FileId(100 + index as u32), "file", OpenMode::Read));
        }
        for _ in 0..polls {
            rig.poll();
        }
        drop(rig);
    }
}

fn directory_is_listed_without_directories<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    rig.must(DiskOperation::CreateDirectory { name: name("inner") });
    let listed = rig.must(DiskOperation::ListDirectory { name: name("") });
    let pid_len = std::process::id().to_string().len() as u64 + 1;
    assert_eq!(listed, DiskOutput::Listed(vec![("LOCK".to_owned(), pid_len)]));
}

/// Makes a closed file of `count` blocks, each filled with its number.
fn make_file<D: Driver>(rig: &mut Rig<D>, path: &str, count: usize) {
    rig.must(open(FILE, path, OpenMode::Create));
    rig.must(write(FILE, 0, blocks(count, |i| i as u8), Durability::Durable));
    rig.must(DiskOperation::Close { file: FILE });
}

fn linked_file_has_two_names_until_one_is_removed<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let snapshot = name("snapshot");
    rig.must(DiskOperation::CreateDirectory { name: snapshot.clone() });
    make_file(&mut rig, "file", 2);
    rig.must(DiskOperation::Link { from: name("file"), to: name("snapshot/kept") });
    rig.must(DiskOperation::SyncDirectory { name: snapshot.clone() });
    rig.must(DiskOperation::Remove { name: name("file") });
    let listed = rig.must(DiskOperation::ListDirectory { name: snapshot });
    assert_eq!(listed, DiskOutput::Listed(vec![("kept".to_owned(), 2 * BLOCK_SIZE as u64)]));
    rig.must(open(FILE, "snapshot/kept", OpenMode::Read));
    let back = rig.disk(read(FILE, 0, 2 * BLOCK_SIZE)).buffer.unwrap();
    assert_eq!(back.as_slice(), blocks(2, |i| i as u8).as_slice());
}

fn link_replaces_nothing<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    make_file(&mut rig, "one", 1);
    make_file(&mut rig, "two", 2);
    let link = || DiskOperation::Link { from: name("one"), to: name("two") };
    assert_eq!(rig.disk(link()).result.unwrap_err().kind, DiskErrorKind::Io);
    let opened = rig.must(open(FILE, "two", OpenMode::Read));
    assert_eq!(opened, DiskOutput::Opened { len: 2 * BLOCK_SIZE as u64 });
}

fn directory_is_removed_once_it_is_empty<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let inner = || name("inner");
    rig.must(DiskOperation::CreateDirectory { name: inner() });
    make_file(&mut rig, "inner/file", 1);
    let remove = || DiskOperation::RemoveDirectory { name: inner() };
    assert_eq!(rig.disk(remove()).result.unwrap_err().kind, DiskErrorKind::Io);
    let file = DiskOperation::RemoveDirectory { name: name("inner/file") };
    assert_eq!(rig.disk(file).result.unwrap_err().kind, DiskErrorKind::Io);
    rig.must(DiskOperation::Remove { name: name("inner/file") });
    rig.must(remove());
    let list = DiskOperation::ListDirectory { name: inner() };
    assert_eq!(rig.disk(list).result.unwrap_err().kind, DiskErrorKind::NotFound);
}

fn mapping_is_private_and_outlives_its_file<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    make_file(&mut rig, "file", 9);
    rig.must(open(FILE, "file", OpenMode::Read));
    let len = 8 * BLOCK_SIZE;
    let completion = rig.disk(DiskOperation::Map { file: FILE, len });
    assert_eq!(completion.result, Ok(DiskOutput::Done));
    let mut mapped = completion.buffer.unwrap();
    assert_eq!(mapped.capacity(), len);
    assert_eq!(mapped.as_slice(), blocks(8, |i| i as u8).as_slice());
    mapped.as_mut_slice()[..BLOCK_SIZE].fill(0xff);
    let back = rig.disk(read(FILE, 0, BLOCK_SIZE)).buffer.unwrap();
    assert_eq!(back.as_slice(), blocks(1, |_| 0).as_slice(), "the file is not changed");

    rig.must(DiskOperation::Close { file: FILE });
    rig.must(DiskOperation::Remove { name: name("file") });
    drop(rig);
    let expected = blocks(8, |i| if i == 0 { 0xff } else { i as u8 });
    assert_eq!(mapped.as_slice(), expected.as_slice());
}

fn mapping_more_than_there_is_fails<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    make_file(&mut rig, "file", 2);
    rig.must(open(FILE, "file", OpenMode::Read));
    for len in [3 * BLOCK_SIZE, 0, 100, 1 << 50] {
        let completion = rig.disk(DiskOperation::Map { file: FILE, len });
        assert_eq!(completion.result.unwrap_err().kind, DiskErrorKind::Io, "{len}");
        assert!(completion.buffer.is_none());
    }
}

/// Also dropped with a mapping under way.
fn mapping_takes_place_beside_other_work<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    make_file(&mut rig, "file", 1024);
    rig.must(open(FILE, "file", OpenMode::Read));
    let map = || DiskOperation::Map { file: FILE, len: 1024 * BLOCK_SIZE };
    let mappings: Vec<_> = (0..4).map(|_| rig.start(map())).collect();
    let block = rig.start(read(FILE, 7 * BLOCK_SIZE, BLOCK_SIZE));
    assert_eq!(rig.finish(block).buffer.unwrap().as_slice(), blocks(1, |_| 7).as_slice());
    for id in mappings {
        let completion = rig.finish(id);
        assert_eq!(completion.result, Ok(DiskOutput::Done));
        let mapped = completion.buffer.unwrap();
        assert_eq!(mapped.as_slice(), blocks(1024, |i| i as u8).as_slice());
    }
    for _ in 0..4 {
        rig.start(map());
    }
    rig.poll();
    drop(rig);
}

/// Sizes from one block to more than a source has in one piece, several at a time.
fn buffers_of_the_driver_are_read_and_written<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let source = rig.io.buffers();
    rig.must(open(FILE, "file", OpenMode::Create));
    let counts = [1, 2, 3, 17, 256, 1024, 2000];
    let mut writes = Vec::new();
    let mut start = 0;
    for (index, count) in counts.into_iter().enumerate() {
        let mut buffer = source.take(count * BLOCK_SIZE);
        assert!(buffer.is_empty());
        buffer.set_len(count * BLOCK_SIZE);
        buffer.as_mut_slice().fill(index as u8 + 1);
        let durability = [Durability::Durable, Durability::Cached][index % 2];
        writes.push(rig.start(write(FILE, start * BLOCK_SIZE, buffer, durability)));
        start += count;
    }
    for (id, count) in writes.into_iter().zip(counts) {
        let completion = rig.finish(id);
        assert_eq!(completion.result, Ok(DiskOutput::Done));
        assert_eq!(completion.buffer.unwrap().len(), count * BLOCK_SIZE);
    }
    rig.must(DiskOperation::Sync { file: FILE });
    let mut start = 0;
    for (index, count) in counts.into_iter().enumerate() {
        let len = count * BLOCK_SIZE;
        let (offset, buffer) = ((start * BLOCK_SIZE) as u64, source.take(len));
        let completion = rig.disk(DiskOperation::Read { file: FILE, offset, len, buffer });
        let buffer = completion.buffer.unwrap();
        assert_eq!(buffer.len(), len);
        assert!(buffer.as_slice().iter().all(|byte| *byte == index as u8 + 1), "{count}");
        start += count;
    }
    // Past the end: what came before stays out of sight.
    let (offset, buffer) = (((start - 1) * BLOCK_SIZE) as u64, source.take(4 * BLOCK_SIZE));
    let len = 4 * BLOCK_SIZE;
    let completion = rig.disk(DiskOperation::Read { file: FILE, offset, len, buffer });
    assert_eq!(completion.buffer.unwrap().len(), BLOCK_SIZE);
}

fn buffers_of_the_driver_outlive_it<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let source = rig.io.buffers();
    make_file(&mut rig, "file", 4);
    rig.must(open(FILE, "file", OpenMode::ReadWrite));
    let len = 4 * BLOCK_SIZE;
    let read = |buffer| DiskOperation::Read { file: FILE, offset: 0, len, buffer };
    let kept = rig.disk(read(source.take(len))).buffer.unwrap();
    for _ in 0..32 {
        // Dropped while the kernel may still be writing to them.
        rig.start(read(source.take(len)));
    }
    drop(rig);
    assert_eq!(kept.as_slice(), blocks(4, |i| i as u8).as_slice());
    let mut later = source.take(len);
    later.pad_to(len);
    assert_eq!(kept.as_slice(), blocks(4, |i| i as u8).as_slice());
}

/// On a file system of 16 blocks, of which the directory itself takes some.
fn full_disk_is_a_short_write_then_no_space<D: Driver>() {
    // Only this thread, and those it starts, see the file system; it is gone with the last.
    let scratch = Scratch::new();
    let path = scratch.0.clone();
    let thread = std::thread::spawn(|| {
        if let Err(error) = mount_blocks(&scratch.0, 16) {
            eprintln!("SKIPPED, nothing was tested: cannot mount a small file system: {error}");
            return;
        }
        let Some(mut rig) = Rig::<D>::in_scratch(scratch) else {
            return;
        };
        rig.must(open(FILE, "file", OpenMode::Create));
        for durability in [Durability::Cached, Durability::Durable] {
            let completion = rig.disk(write(FILE, 0, blocks(20, |_| 1), durability));
            assert_eq!(completion.result.unwrap_err().kind, DiskErrorKind::ShortWrite);
            assert_eq!(completion.buffer.unwrap().len(), 20 * BLOCK_SIZE);
            let completion = rig.disk(write(FILE, 20 * BLOCK_SIZE, blocks(1, |_| 1), durability));
            assert_eq!(completion.result.unwrap_err().kind, DiskErrorKind::NoSpace);
        }
        // What there is room for can be written over.
        rig.must(write(FILE, 0, blocks(2, |_| 7), Durability::Durable));
        let back = rig.disk(read(FILE, 0, 2 * BLOCK_SIZE)).buffer.unwrap();
        assert_eq!(back.as_slice(), blocks(2, |_| 7).as_slice());
    });
    thread.join().unwrap();
    // The thread could not remove what it had mounted on.
    let _ = std::fs::remove_dir(path);
}

/// Mounts a file system in memory for the calling thread alone.
fn mount_blocks(path: &std::path::Path, count: usize) -> Result<(), rustix::io::Errno> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: this gives the thread its own view of mounts; no memory or descriptors are involved.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let size = std::ffi::CString::new(format!("size={}", count * BLOCK_SIZE)).unwrap();
    mount("none", path, "tmpfs", MountFlags::empty(), &*size)
}
