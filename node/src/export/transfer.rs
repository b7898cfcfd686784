//! All keys of a data directory into an export file, and back.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};

use bytes::Bytes;
use storage::{Effect, Event, Get, KeyRef, ReadError, ReadId, ScannedKey, Value, WriteError};
use wal::record::Key;

use super::{FormatError, Item, Reader, Totals, Writer};
use crate::cluster::records;
use crate::keyspace::ShardIndex;
use crate::offline::Offline;

/// Keys listed at a time.
const KEYS_PER_SCAN: usize = 1024;
/// Values read from disk at once.
const READS_MAX: usize = 64;
/// An import file is read in pieces of this many bytes.
const PIECE_BYTES: usize = 1 << 20;

/// Why keys were not exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The export file cannot be read or written.
    #[error("the export file cannot be read or written: {0}")]
    File(#[source] io::Error),
    /// The export file is not sound.
    #[error("the export file is not sound: {0}")]
    Format(#[from] FormatError),
    /// The data directory's disk fails.
    #[error("the data directory cannot be read or written: {0}")]
    Disk(#[source] io::Error),
    /// The store refuses a write.
    #[error("a key cannot be stored: {0}")]
    Write(#[from] WriteError),
    /// The store cannot read a key.
    #[error("key id {key:?} cannot be read: {source}")]
    Read {
        /// Its id.
        key: Key,
        /// Why.
        source: ReadError,
    },
}

/// How far a transfer is: keys and bytes of the file.
pub type Progress<'a> = &'a mut dyn FnMut(Totals);

/// Writes all keys of an opened data directory.
///
/// A damaged key is not left out silently: `damaged` is told its id.
///
/// # Errors
/// [`TransferError`].
pub fn export<W: Write>(
    offline: &mut Offline,
    out: W,
    damaged: &mut dyn FnMut(Key),
    progress: Progress<'_>,
) -> Result<Totals, TransferError> {
    let mut writer = Writer::new(out).map_err(TransferError::File)?;
    for shard in offline.keyspace().shards() {
        let mut from = Some(Key([0; 20]));
        while let Some(start) = from {
            let (keys, next) = list(offline, shard, start)?;
            write_keys(offline, shard, keys, &mut writer, damaged)?;
            progress(writer.totals());
            from = next;
        }
    }
    let (_, totals) = writer.finish().map_err(TransferError::File)?;
    Ok(totals)
}

fn list(
    offline: &mut Offline,
    shard: ShardIndex,
    from: Key,
) -> Result<(Vec<ScannedKey>, Option<Key>), TransferError> {
    let wanted = offline.keyspace().store_mut(shard).scan(from, KEYS_PER_SCAN);
    loop {
        for (_, event) in offline.turn().map_err(TransferError::Disk)? {
            match event {
                Event::Scanned { id, mut keys, next } if id == wanted => {
                    // The node's own records are no keys.
                    keys.retain(|found| records::is_live(found, 0));
                    return Ok((keys, next));
                }
                _ => {}
            }
        }
    }
}

fn write_keys<W: Write>(
    offline: &mut Offline,
    shard: ShardIndex,
    keys: Vec<ScannedKey>,
    writer: &mut Writer<W>,
    damaged: &mut dyn FnMut(Key),
) -> Result<(), TransferError> {
    let (mut left, mut under_way) = (VecDeque::from(keys), BTreeMap::<ReadId, Key>::new());
    while !left.is_empty() || !under_way.is_empty() {
        while under_way.len() < READS_MAX
            && let Some(scanned) = left.pop_front()
        {
            let key = KeyRef::given(scanned.key, &scanned.user_key);
            match offline.keyspace().store_mut(shard).get(&key) {
                Ok(Get::Missing) => {}
                Ok(Get::Found(value)) => write_key(writer, &scanned.user_key, &value)?,
                Ok(Get::Pending(id)) => {
                    under_way.insert(id, scanned.key);
                }
                Err(error) => read_failed(scanned.key, error, damaged)?,
            }
        }
        if under_way.is_empty() {
            continue;
        }
        for (_, event) in offline.turn().map_err(TransferError::Disk)? {
            let Event::Read { id, result } = event else { continue };
            let Some(key) = under_way.remove(&id) else { continue };
            match result {
                Ok(Some((user_key, value))) => write_key(writer, &user_key, &value)?,
                Ok(None) => {}
                Err(error) => read_failed(key, error, damaged)?,
            }
        }
    }
    Ok(())
}

fn read_failed(
    key: Key,
    source: ReadError,
    damaged: &mut dyn FnMut(Key),
) -> Result<(), TransferError> {
    match source {
        ReadError::Damaged => damaged(key),
        ReadError::Disk(_) | ReadError::Suspect => return Err(TransferError::Read { key, source }),
    }
    Ok(())
}

fn write_key<W: Write>(
    writer: &mut Writer<W>,
    user_key: &Bytes,
    value: &Value,
) -> Result<(), TransferError> {
    writer.key(user_key, &value.value, value.expiry_ms).map_err(TransferError::File)
}

/// Reads an export file to its end without storing anything.
///
/// # Errors
/// [`TransferError`].
pub fn verify(file: impl Read, progress: Progress<'_>) -> Result<Totals, TransferError> {
    read_items(file, progress, |_| Ok(()))
}

/// Stores all keys of an export file; keys that have expired meanwhile are left out. Returns what
/// the file holds and how many keys were left out; the keys are durable then.
///
/// # Errors
/// [`TransferError`]. Keys before the error are stored.
pub fn import(
    offline: &mut Offline,
    file: impl Read,
    progress: Progress<'_>,
) -> Result<(Totals, u64), TransferError> {
    let mut expired = 0;
    let totals = read_items(file, progress, |item| {
        let Item::Key { user_key, value, expiry_ms } = item else { return Ok(()) };
        if expiry_ms != 0 && expiry_ms <= offline.keyspace().now().clock_ms {
            expired += 1;
            return Ok(());
        }
        store(offline, user_key, value, expiry_ms)
    })?;
    loop {
        let all = offline.keyspace().observed_all().next().is_none();
        if all {
            return Ok((totals, expired));
        }
        turn_for_writes(offline)?;
    }
}

fn store(
    offline: &mut Offline,
    user_key: &[u8],
    value: &[u8],
    expiry_ms: u64,
) -> Result<(), TransferError> {
    let value = Bytes::copy_from_slice(value);
    loop {
        let keyspace = offline.keyspace();
        let address = keyspace.address(user_key);
        match keyspace.put_shared(&address, &value, expiry_ms) {
            Ok(Effect::Done(_)) => return Ok(()),
            Ok(Effect::Pending(_)) | Err(WriteError::Busy) => turn_for_writes(offline)?,
            Err(error) => return Err(error.into()),
        }
    }
}

fn turn_for_writes(offline: &mut Offline) -> Result<(), TransferError> {
    for (_, event) in offline.turn().map_err(TransferError::Disk)? {
        if let Event::Failed(error) = event {
            return Err(WriteError::ReadOnly(error).into());
        }
    }
    Ok(())
}

fn read_items(
    mut file: impl Read,
    progress: Progress<'_>,
    mut take: impl FnMut(Item<'_>) -> Result<(), TransferError>,
) -> Result<Totals, TransferError> {
    let (mut reader, mut piece) = (Reader::new(), vec![0; PIECE_BYTES]);
    loop {
        let len = match file.read(&mut piece) {
            Ok(0) => return Ok(reader.finish()?),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(TransferError::File(error)),
        };
        let mut input = &piece[..len];
        while let Some(item) = reader.next(&mut input)? {
            take(item)?;
        }
        progress(reader.totals());
    }
}
