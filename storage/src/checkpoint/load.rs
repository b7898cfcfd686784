//! Reads a checkpoint: with several O_DIRECT reads in flight straight into the index's memory
//! ([`load`]), or from a private mapping of the whole file that becomes it ([`load_mapped`]).

use std::collections::VecDeque;

use wal::disk::OpenMode;
use wal::disk::{BLOCK_SIZE, DiskError, DiskOperation, DiskOutput, FileId, FileName, IoBuffer};
use wal::procedure::{DiskPort, Ticket};

use super::format::{self, ChunkPlace, Layout};
use super::{CheckpointError, CheckpointFacts, CheckpointId};
use crate::index::arena::CHUNK_LEN;
use crate::index::load::IndexLoader;
use crate::index::table::Index;

/// Reads under way at a time: 8 MiB, enough for a disk that needs depth to be fast.
const READS_MAX: usize = 8;

/// What a checkpoint holds.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// What it says besides the index.
    pub(crate) facts: CheckpointFacts,
    /// The index as it was at the cut.
    pub(crate) index: Index,
}

/// Reads the checkpoint `id` from the file `name`, which is called `file` meanwhile.
///
/// # Errors
/// [`CheckpointError`] for any damage anywhere: the file is of no use then.
pub(crate) async fn load(
    port: &DiskPort,
    file: FileId,
    name: FileName,
    id: CheckpointId,
) -> Result<Checkpoint, CheckpointError> {
    let open = DiskOperation::Open { file, name, mode: OpenMode::Read };
    let opened = port.call(open).await.map_err(disk_error("opening"))?;
    let DiskOutput::Opened { len } = opened else {
        return Err(CheckpointError::NotACheckpoint);
    };
    let loaded = load_open(port, file, len, &id).await;
    // Nothing was written: a failing close loses nothing.
    let _closed = port.call(DiskOperation::Close { file }).await;
    loaded
}

fn disk_error(action: &'static str) -> impl Fn(DiskError) -> CheckpointError {
    move |source| CheckpointError::Disk { action, source }
}

async fn load_open(
    port: &DiskPort,
    file: FileId,
    file_len: u64,
    id: &CheckpointId,
) -> Result<Checkpoint, CheckpointError> {
    if file_len < BLOCK_SIZE as u64 {
        return Err(CheckpointError::NotACheckpoint);
    }
    let first = read(port, file, 0, BLOCK_SIZE).await?;
    let layout = format::decode_layout(first.as_slice(), file_len)?;
    let header = if layout.header_len() > BLOCK_SIZE {
        read(port, file, 0, layout.header_len()).await?
    } else {
        first
    };
    let facts = format::decode_header(id, &layout, header.as_slice())?;
    let trailer = read(port, file, layout.trailer_offset(), layout.trailer_len()).await?;
    let crcs = format::decode_trailer(id, &layout, trailer.as_slice())?;
    let mut loader = IndexLoader::default();
    let mut under_way: VecDeque<(ChunkPlace, u32, Ticket)> = VecDeque::new();
    let mut result = Ok(());
    let mut chunks = (0..layout.chunks()).zip(crcs);
    loop {
        // After an error, what is under way is awaited: its buffers are the driver's until then.
        while result.is_ok() && under_way.len() < READS_MAX {
            let Some((index, crc)) = chunks.next() else { break };
            let place = layout.chunk(index);
            let ticket = port.start(read_operation(file, place.offset, place.len, CHUNK_LEN));
            under_way.push_back((place, crc, ticket));
        }
        let Some((place, crc, ticket)) = under_way.pop_front() else { break };
        let completion = ticket.await;
        if result.is_ok() {
            let buffer = completion
                .result
                .map_err(disk_error("reading"))
                .map(|_| completion.buffer.expect("a driver returns the buffer it was given"));
            result = buffer.and_then(|buffer| add_chunk(&mut loader, id, place, crc, buffer));
        }
    }
    result?;
    Ok(Checkpoint { facts, index: loader.finish()? })
}

fn read_operation(file: FileId, offset: u64, len: usize, capacity: usize) -> DiskOperation {
    let buffer = IoBuffer::with_capacity(capacity.max(len));
    DiskOperation::Read { file, offset, len, buffer }
}

async fn read(
    port: &DiskPort,
    file: FileId,
    offset: u64,
    len: usize,
) -> Result<IoBuffer, CheckpointError> {
    let read = read_operation(file, offset, len, len);
    let buffer = port.transfer(read).await.map_err(disk_error("reading"))?;
    complete(buffer, offset, len)
}

/// Refuses a read that met the end of the file.
fn complete(buffer: IoBuffer, offset: u64, len: usize) -> Result<IoBuffer, CheckpointError> {
    let (needed, found) = (offset + len as u64, offset + buffer.len() as u64);
    if needed == found { Ok(buffer) } else { Err(CheckpointError::Length { needed, found }) }
}

fn add_chunk(
    loader: &mut IndexLoader,
    id: &CheckpointId,
    place: ChunkPlace,
    crc: u32,
    buffer: IoBuffer,
) -> Result<(), CheckpointError> {
    let buffer = complete(buffer, place.offset, place.len)?;
    format::verify(id, place.offset, &[buffer.as_slice()], crc)?;
    if place.entries == 0 {
        return Ok(loader.add_chunk(buffer)?);
    }
    add_entries(loader, &place, buffer.as_slice())
}

fn add_entries(
    loader: &mut IndexLoader,
    place: &ChunkPlace,
    bytes: &[u8],
) -> Result<(), CheckpointError> {
    for entry in format::decode_entries(place, bytes) {
        let (key, slot) = entry?;
        loader.add_crowded(key, slot)?;
    }
    Ok(())
}

/// Takes over the whole file in one buffer, a private mapping: its pages become the index's
/// without being copied.
///
/// # Errors
/// As for [`load`].
pub(crate) fn load_mapped(
    file: IoBuffer,
    id: &CheckpointId,
) -> Result<Checkpoint, CheckpointError> {
    let bytes = file.as_slice();
    let layout = format::decode_layout(bytes.get(..BLOCK_SIZE).unwrap_or_default(), len_of(bytes))?;
    let facts = format::decode_header(id, &layout, part(bytes, 0, layout.header_len())?)?;
    let trailer = part(bytes, layout.trailer_offset(), layout.trailer_len())?;
    let crcs = format::decode_trailer(id, &layout, trailer)?;
    let mut loader = IndexLoader::default();
    for (index, crc) in (0..layout.chunks()).zip(crcs) {
        let place = layout.chunk(index);
        let chunk = part(bytes, place.offset, place.len)?;
        format::verify(id, place.offset, &[chunk], crc)?;
        add_entries(&mut loader, &place, chunk)?;
    }
    let pages = pages_of(&layout, bytes)?;
    loader.add_region(file, layout.header_len(), pages)?;
    Ok(Checkpoint { facts, index: loader.finish()? })
}

fn len_of(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

fn pages_of(layout: &Layout, bytes: &[u8]) -> Result<usize, CheckpointError> {
    let error = CheckpointError::Length { needed: layout.file_len(), found: len_of(bytes) };
    usize::try_from(layout.pages).map_err(|_| error)
}

fn part(bytes: &[u8], offset: u64, len: usize) -> Result<&[u8], CheckpointError> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let found = bytes.get(start..).and_then(|rest| rest.get(..len));
    let needed = offset.saturating_add(len as u64);
    found.ok_or_else(|| CheckpointError::Length { needed, found: len_of(bytes) })
}
