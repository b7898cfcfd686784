//! [`PeerMessage`] as frames and back. A value longer than [`CHUNK_BYTES_MAX`] goes in several
//! frames, between which others may stand, so that it holds nothing up.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use wal::record::Namespace;

use super::fields::{FieldReader, FieldWriter};
use super::frame::{self, FrameError, FrameReader};
use super::{
    Content, ENTRIES_MAX, Found, Header, Hello, MEMBERS_MAX, PARTS_MAX, PREFIXES_MAX, PeerMessage,
    PutOutcome, PutReason, Record, RequestId,
};

/// Bytes of a value that one frame carries.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Values of a link that are on their way at the same time.
pub const PARTIAL_COUNT_MAX: usize = 64;

/// Why a message is refused; the link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A verb that this protocol does not have.
    #[error("unknown verb")]
    Verb,
    /// A body that does not fit its verb.
    #[error("bad body")]
    Body,
    /// A list above its limit.
    #[error("list of {count}")]
    TooMany {
        /// Its length.
        count: usize,
    },
    /// A value above the limit, or too many unfinished ones.
    #[error("value too large")]
    TooLarge,
    /// A piece of a value that does not continue one.
    #[error("piece of nothing")]
    Piece,
}

/// A message in pieces to send in that order, other messages between them as one likes. Each piece
/// is a list of byte strings to be written one after the other.
#[must_use]
pub fn encode(message: &PeerMessage) -> VecDeque<Vec<Bytes>> {
    let body = FieldWriter::default();
    let (verb, body, payload): (&[u8], FieldWriter, Option<Bytes>) = match message {
        PeerMessage::Hello(hello) => (b"KADP.HELLO", write_hello(body, hello), None),
        PeerMessage::Members { wants_answer, entries } => {
            let body = body.u8(u8::from(*wants_answer));
            (b"KADP.MEMBERS", body.list(MEMBERS_MAX, entries, FieldWriter::member), None)
        }
        PeerMessage::Ping { request, target, entries } => {
            let body = body.request(*request).u8(u8::from(target.is_some()));
            let body = body.bytes(target.as_ref().map_or(&[], |target| &target.0));
            (b"KADP.PING", body.list(MEMBERS_MAX, entries, FieldWriter::member), None)
        }
        PeerMessage::Pong { request, entries } => {
            let body = body.request(*request).list(MEMBERS_MAX, entries, FieldWriter::member);
            (b"KADP.PONG", body, None)
        }
        PeerMessage::Put { request, reason, record } => {
            let reason = u8::from(*reason == PutReason::Repair);
            let (body, value) = write_record(body.request(*request).u8(reason), record);
            (b"KADP.PUT", body, value)
        }
        PeerMessage::PutDone { request, outcome } => {
            let body = body.request(*request);
            let body = match outcome {
                PutOutcome::Applied { is_ready } => body.u8(0).u8(u8::from(*is_ready)),
                PutOutcome::NotNewer { stored } => body.u8(1).bytes(&stored.0),
                PutOutcome::TooFarAhead => body.u8(2),
                PutOutcome::KeyConflict => body.u8(3),
                PutOutcome::Failed => body.u8(4),
            };
            (b"KADP.PUTDONE", body, None)
        }
        PeerMessage::Get { request, key, wants_value } => {
            (b"KADP.GET", body.request(*request).bytes(&key.0).u8(u8::from(*wants_value)), None)
        }
        PeerMessage::Got { request, is_ready, found } => {
            let body = body.request(*request).u8(u8::from(*is_ready));
            let (body, value) = match found {
                Found::Nothing => (body.u8(0), None),
                Found::Header(header) => (write_header(body.u8(1), header), None),
                Found::Record(record) => write_record(body.u8(2), record),
                Found::Failed => (body.u8(3), None),
            };
            (b"KADP.GOT", body, value)
        }
        other => {
            let (verb, body) = write_range(body, other);
            (verb, body, None)
        }
    };
    in_pieces(verb, &body.0, payload)
}

/// The messages about ranges.
fn write_range(body: FieldWriter, message: &PeerMessage) -> (&'static [u8], FieldWriter) {
    match message {
        PeerMessage::Sums { request, prefix } => {
            (b"KADP.SUMS", body.request(*request).prefix(prefix))
        }
        PeerMessage::SumsAre { request, sums } => {
            let sums = body.request(*request).list(PARTS_MAX, sums, |body, sum| {
                body.bytes(&sum.hash.to_be_bytes()).u64(sum.count)
            });
            (b"KADP.SUMSARE", sums)
        }
        PeerMessage::List { request, prefix } => {
            (b"KADP.LIST", body.request(*request).prefix(prefix))
        }
        PeerMessage::Listed { request, is_whole, entries } => {
            let body = body.request(*request).u8(u8::from(*is_whole));
            (b"KADP.LISTED", body.list(ENTRIES_MAX, entries, FieldWriter::entry))
        }
        PeerMessage::Claim { request, prefix } => {
            (b"KADP.CLAIM", body.request(*request).prefix(prefix))
        }
        PeerMessage::Claimed { request, held } => {
            let body = body.request(*request);
            (b"KADP.CLAIMED", body.list(PREFIXES_MAX, held, FieldWriter::prefix))
        }
        PeerMessage::Release { prefix } => (b"KADP.RELEASE", body.prefix(prefix)),
        PeerMessage::Have { request, prefix, entries } => {
            let body = body.request(*request).prefix(prefix);
            (b"KADP.HAVE", body.list(ENTRIES_MAX, entries, FieldWriter::entry))
        }
        PeerMessage::HaveIs { request, is_ready, held } => {
            let body = body.request(*request).u8(u8::from(*is_ready));
            let held = body.list(ENTRIES_MAX, held, |body, held| body.u8(u8::from(*held)));
            (b"KADP.HAVEIS", held)
        }
        _ => unreachable!("written by the caller"),
    }
}

fn in_pieces(verb: &[u8], body: &[u8], payload: Option<Bytes>) -> VecDeque<Vec<Bytes>> {
    let Some(mut rest) = payload else { return VecDeque::from([frame::encode(verb, body, None)]) };
    let first = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
    let mut offset = first.len();
    let mut pieces = VecDeque::from([frame::encode(verb, body, Some(first))]);
    // A further piece names its message by the verb's last letter and the query.
    let request = body.get(..8).unwrap_or_default();
    while !rest.is_empty() {
        let chunk = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
        let len = chunk.len();
        let kind = u8::from(verb == b"KADP.GOT");
        let more = FieldWriter::default().bytes(request).u8(kind).u64(widen(offset));
        pieces.push_back(frame::encode(b"KADP.MORE", &more.0, Some(chunk)));
        offset = offset.saturating_add(len);
    }
    pieces
}

fn widen(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn write_hello(body: FieldWriter, hello: &Hello) -> FieldWriter {
    let body = body.bytes(&hello.version.to_be_bytes()).bytes(&hello.cluster.0);
    body.bytes(&hello.node.0).u64(hello.features).address(&hello.address)
}

fn write_header(body: FieldWriter, header: &Header) -> FieldWriter {
    body.bytes(&header.version.0).u64(header.expiry_ms).u8(u8::from(header.is_tombstone))
}

fn write_record(body: FieldWriter, record: &Record) -> (FieldWriter, Option<Bytes>) {
    let key_len = u16::try_from(record.user_key.len()).expect("keys have at most 65,535 bytes");
    let body = write_header(body, &record.header());
    let body = body.u8(record.namespace.0).bytes(&record.key.0);
    let body = body.bytes(&key_len.to_be_bytes()).bytes(&record.user_key);
    match &record.content {
        Content::Tombstone => (body, None),
        Content::Value(value) => (body.u64(widen(value.len())), Some(value.clone())),
    }
}

/// Messages out of the bytes of one link. Its memory is bounded by one frame, and by one value of
/// the allowed size, the largest, or many that are together no larger than twice that.
#[derive(Debug)]
pub struct MessageReader {
    frames: FrameReader,
    partial: BTreeMap<(RequestId, bool), Partial>,
    partial_bytes: usize,
    value_bytes_max: usize,
}

#[derive(Debug)]
struct Partial {
    message: PeerMessage,
    value: BytesMut,
    len: usize,
}

impl MessageReader {
    /// Reads a link whose values are at most so long.
    #[must_use]
    pub fn new(value_bytes_max: usize) -> Self {
        let frames = FrameReader::default();
        Self { frames, partial: BTreeMap::new(), partial_bytes: 0, value_bytes_max }
    }

    /// Takes bytes in. Drain [`MessageReader::poll_message`] before the next ones.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.frames.feed(bytes);
    }

    /// Bytes held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.frames.held_bytes().saturating_add(self.partial_bytes)
    }

    /// The next whole message.
    ///
    /// # Errors
    /// [`MessageError`]; nothing follows it.
    pub fn poll_message(&mut self) -> Result<Option<PeerMessage>, MessageError> {
        while let Some(frame) = self.frames.poll_frame()? {
            if let Some(message) = self.take(&frame)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    fn take(&mut self, frame: &[Bytes]) -> Result<Option<PeerMessage>, MessageError> {
        let (verb, body, payload) = match frame {
            [verb, body] => (verb, body, None),
            [verb, body, payload] => (verb, body, Some(payload)),
            _ => return Err(MessageError::Body),
        };
        let mut fields = FieldReader::new(body);
        if verb.as_ref() == b"KADP.MORE" {
            let payload = payload.ok_or(MessageError::Body)?;
            return self.take_more(&mut fields, payload);
        }
        let (message, value_len) = read(verb, &mut fields)?;
        fields.finish()?;
        match (value_len, payload) {
            (None, None) => Ok(Some(message)),
            (Some(len), Some(payload)) => self.take_value(message, len, payload),
            _ => Err(MessageError::Body),
        }
    }

    fn take_value(
        &mut self,
        message: PeerMessage,
        len: u64,
        payload: &Bytes,
    ) -> Result<Option<PeerMessage>, MessageError> {
        let len = usize::try_from(len).map_err(|_| MessageError::TooLarge)?;
        if len > self.value_bytes_max {
            return Err(MessageError::TooLarge);
        }
        if payload.len() != len.min(CHUNK_BYTES_MAX) {
            return Err(MessageError::Body);
        }
        if payload.len() == len {
            return Ok(Some(with_value(message, payload.clone())));
        }
        let bytes = self.partial_bytes.saturating_add(payload.len());
        if self.partial.len() >= PARTIAL_COUNT_MAX || bytes > self.value_bytes_max.saturating_mul(2)
        {
            return Err(MessageError::TooLarge);
        }
        let name = match &message {
            PeerMessage::Put { request, .. } => (*request, false),
            PeerMessage::Got { request, .. } => (*request, true),
            _ => return Err(MessageError::Body),
        };
        let value = BytesMut::from(payload.as_ref());
        if self.partial.insert(name, Partial { message, value, len }).is_some() {
            return Err(MessageError::Piece);
        }
        self.partial_bytes = bytes;
        Ok(None)
    }

    fn take_more(
        &mut self,
        fields: &mut FieldReader<'_>,
        payload: &Bytes,
    ) -> Result<Option<PeerMessage>, MessageError> {
        let (name, offset) = ((fields.request()?, fields.flag()?), fields.u64()?);
        fields.finish()?;
        let partial = self.partial.get_mut(&name).ok_or(MessageError::Piece)?;
        let rest = partial.len.saturating_sub(partial.value.len());
        let is_next = widen(partial.value.len()) == offset;
        if !is_next || payload.len() != rest.min(CHUNK_BYTES_MAX) {
            return Err(MessageError::Piece);
        }
        self.partial_bytes = self.partial_bytes.saturating_add(payload.len());
        if self.partial_bytes > self.value_bytes_max.saturating_mul(2) {
            return Err(MessageError::TooLarge);
        }
        partial.value.extend_from_slice(payload);
        if payload.len() < rest {
            return Ok(None);
        }
        let Some(whole) = self.partial.remove(&name) else { return Ok(None) };
        self.partial_bytes = self.partial_bytes.saturating_sub(whole.len);
        Ok(Some(with_value(whole.message, whole.value.freeze())))
    }
}

fn with_value(mut message: PeerMessage, value: Bytes) -> PeerMessage {
    if let PeerMessage::Put { record, .. } | PeerMessage::Got { found: Found::Record(record), .. } =
        &mut message
    {
        record.content = Content::Value(value);
    }
    message
}

/// A message, and the length of its value if it has one.
fn read(
    verb: &[u8],
    fields: &mut FieldReader<'_>,
) -> Result<(PeerMessage, Option<u64>), MessageError> {
    let message = match verb {
        b"KADP.HELLO" => PeerMessage::Hello(Hello {
            version: fields.u32()?,
            cluster: fields.node()?,
            node: fields.node()?,
            features: fields.u64()?,
            address: fields.address()?,
        }),
        b"KADP.MEMBERS" => PeerMessage::Members {
            wants_answer: fields.flag()?,
            entries: fields.list(MEMBERS_MAX, FieldReader::member)?,
        },
        b"KADP.PING" => PeerMessage::Ping {
            request: fields.request()?,
            target: if fields.flag()? { Some(fields.node()?) } else { None },
            entries: fields.list(MEMBERS_MAX, FieldReader::member)?,
        },
        b"KADP.PONG" => PeerMessage::Pong {
            request: fields.request()?,
            entries: fields.list(MEMBERS_MAX, FieldReader::member)?,
        },
        b"KADP.PUT" => {
            let request = fields.request()?;
            let reason = if fields.flag()? { PutReason::Repair } else { PutReason::Write };
            let (record, len) = read_record(fields)?;
            return Ok((PeerMessage::Put { request, reason, record }, len));
        }
        b"KADP.PUTDONE" => PeerMessage::PutDone {
            request: fields.request()?,
            outcome: match fields.u8()? {
                0 => PutOutcome::Applied { is_ready: fields.flag()? },
                1 => PutOutcome::NotNewer { stored: fields.version()? },
                2 => PutOutcome::TooFarAhead,
                3 => PutOutcome::KeyConflict,
                4 => PutOutcome::Failed,
                _ => return Err(MessageError::Body),
            },
        },
        b"KADP.GET" => PeerMessage::Get {
            request: fields.request()?,
            key: fields.key()?,
            wants_value: fields.flag()?,
        },
        b"KADP.GOT" => {
            let (request, is_ready) = (fields.request()?, fields.flag()?);
            let (found, len) = match fields.u8()? {
                0 => (Found::Nothing, None),
                1 => (Found::Header(read_header(fields)?), None),
                2 => {
                    let (record, len) = read_record(fields)?;
                    (Found::Record(record), len)
                }
                3 => (Found::Failed, None),
                _ => return Err(MessageError::Body),
            };
            return Ok((PeerMessage::Got { request, is_ready, found }, len));
        }
        _ => return Ok((read_range(verb, fields)?, None)),
    };
    Ok((message, None))
}

fn read_range(verb: &[u8], fields: &mut FieldReader<'_>) -> Result<PeerMessage, MessageError> {
    Ok(match verb {
        b"KADP.SUMS" => PeerMessage::Sums { request: fields.request()?, prefix: fields.prefix()? },
        b"KADP.SUMSARE" => PeerMessage::SumsAre {
            request: fields.request()?,
            sums: fields.list(PARTS_MAX, FieldReader::sum)?,
        },
        b"KADP.LIST" => PeerMessage::List { request: fields.request()?, prefix: fields.prefix()? },
        b"KADP.LISTED" => PeerMessage::Listed {
            request: fields.request()?,
            is_whole: fields.flag()?,
            entries: fields.list(ENTRIES_MAX, FieldReader::entry)?,
        },
        b"KADP.CLAIM" => {
            PeerMessage::Claim { request: fields.request()?, prefix: fields.prefix()? }
        }
        b"KADP.CLAIMED" => PeerMessage::Claimed {
            request: fields.request()?,
            held: fields.list(PREFIXES_MAX, FieldReader::prefix)?,
        },
        b"KADP.RELEASE" => PeerMessage::Release { prefix: fields.prefix()? },
        b"KADP.HAVE" => PeerMessage::Have {
            request: fields.request()?,
            prefix: fields.prefix()?,
            entries: fields.list(ENTRIES_MAX, FieldReader::entry)?,
        },
        b"KADP.HAVEIS" => PeerMessage::HaveIs {
            request: fields.request()?,
            is_ready: fields.flag()?,
            held: fields.list(ENTRIES_MAX, FieldReader::flag)?,
        },
        _ => return Err(MessageError::Verb),
    })
}

fn read_header(fields: &mut FieldReader<'_>) -> Result<Header, MessageError> {
    Ok(Header {
        version: fields.version()?,
        expiry_ms: fields.u64()?,
        is_tombstone: fields.flag()?,
    })
}

fn read_record(fields: &mut FieldReader<'_>) -> Result<(Record, Option<u64>), MessageError> {
    let header = read_header(fields)?;
    let (namespace, key) = (Namespace(fields.u8()?), fields.key()?);
    let key_len = usize::from(fields.u16()?);
    let user_key = Bytes::copy_from_slice(fields.bytes(key_len)?);
    let len = if header.is_tombstone { None } else { Some(fields.u64()?) };
    let content = Content::Tombstone;
    let Header { version, expiry_ms, .. } = header;
    Ok((Record { namespace, key, user_key, version, expiry_ms, content }, len))
}
