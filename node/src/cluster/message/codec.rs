//! [`PeerMessage`] as frames and back. A value longer than [`CHUNK_BYTES_MAX`] goes in several
//! frames, between which others may stand, so that it holds nothing up.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use wal::record::Namespace;

use super::control::ControlFrame;
use super::fields::{FieldReader, FieldWriter};
use super::frame::{
    self, BULK_BYTES_MAX, FrameError, Front, HANDSHAKE_BULK_BYTES_MAX, Head, read_head,
    unexpected_end,
};
use super::{
    Content, ENTRIES_MAX, Found, Header, MEMBERS_MAX, PARTS_MAX, PREFIXES_MAX, PeerMessage,
    PutOutcome, PutReason, Record, RequestId,
};

/// Bytes of a value that one frame carries.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Values of a link that are on their way at the same time.
pub const PARTIAL_COUNT_MAX: usize = 64;
/// Memory for an unfinished head that is kept for the next one.
const HEAD_BYTES_KEPT_MAX: usize = 4 * 1024;

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
        PeerMessage::Names { request, prefix, from, count } => {
            let body = body.request(*request).prefix(prefix).bytes(&from.0);
            (b"KADP.NAMES", body.bytes(&count.to_be_bytes()))
        }
        PeerMessage::Named { request, is_ready, next, names } => {
            let body = body.request(*request).u8(u8::from(*is_ready)).u8(u8::from(next.is_some()));
            let body = body.bytes(next.as_ref().map_or(&[], |next| &next.0));
            (b"KADP.NAMED", body.list(ENTRIES_MAX, names, FieldWriter::name))
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

/// What comes over a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message, with its value.
    Message(PeerMessage),
    /// Something about the link itself.
    Control(ControlFrame),
}

/// Messages out of the bytes of one link. Bytes are read where they lie: values are copied once,
/// from there to where they stay; an unfinished head is kept here until the rest of it comes.
///
/// Until [`MessageReader::open`] there is nothing but the handshake, in short frames. Its memory is
/// bounded by one head, one piece, and unfinished values, whose lengths are together at most twice
/// that of the longest one allowed.
#[derive(Debug)]
pub struct MessageReader {
    is_open: bool,
    head: Vec<u8>,
    payload: Option<Payload>,
    partial: BTreeMap<Name, Partial>,
    partial_bytes: usize,
    value_bytes_max: usize,
}

/// The value of a PUT (false) or GOT (true).
type Name = (RequestId, bool);

#[derive(Debug)]
struct Partial {
    message: PeerMessage,
    value: BytesMut,
    len: usize,
}

/// A payload on its way.
#[derive(Debug)]
struct Payload {
    missing: usize,
    /// Bytes of the line end that have come.
    ended: usize,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Whole(PeerMessage, BytesMut),
    Piece(Name),
}

const LINE_END: &[u8] = b"\r\n";

impl MessageReader {
    /// Reads a link whose values are at most so long.
    #[must_use]
    pub fn new(value_bytes_max: usize) -> Self {
        Self {
            is_open: false,
            head: Vec::new(),
            payload: None,
            partial: BTreeMap::new(),
            partial_bytes: 0,
            value_bytes_max,
        }
    }

    /// The handshake is over: messages may come.
    pub fn open(&mut self) {
        self.is_open = true;
    }

    /// Bytes held, or to be held: of an unfinished value all count from its first piece on.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let payload = match &self.payload {
            Some(Payload { target: Target::Whole(_, value), .. }) => value.len(),
            _ => 0,
        };
        self.head.len().saturating_add(payload).saturating_add(self.partial_bytes)
    }

    /// Takes bytes off the front, up to the end of the next message. None: all are taken.
    ///
    /// # Errors
    /// [`MessageError`]; nothing follows it.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Incoming>, MessageError> {
        while !input.is_empty() {
            let found = if self.payload.is_some() {
                self.take_payload(input)?.map(Incoming::Message)
            } else if self.head.is_empty() {
                self.take_head_in_place(input)?
            } else {
                self.take_head(input)?
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn bulk_bytes_max(&self) -> usize {
        if self.is_open { BULK_BYTES_MAX } else { HANDSHAKE_BULK_BYTES_MAX }
    }

    fn take_head_in_place(&mut self, input: &mut &[u8]) -> Result<Option<Incoming>, MessageError> {
        let bytes = *input;
        match read_head(bytes, self.bulk_bytes_max())? {
            Front::Head(head, len) => {
                *input = bytes.get(len..).unwrap_or_default();
                self.on_head(head)
            }
            Front::Missing(_) => {
                self.head.extend_from_slice(bytes);
                *input = &[];
                Ok(None)
            }
        }
    }

    /// A head of which the beginning came earlier: no more is taken than belongs to it.
    fn take_head(&mut self, input: &mut &[u8]) -> Result<Option<Incoming>, MessageError> {
        let mut bytes = std::mem::take(&mut self.head);
        loop {
            match read_head(&bytes, self.bulk_bytes_max())? {
                Front::Head(head, _) => {
                    let found = self.on_head(head)?;
                    if bytes.capacity() <= HEAD_BYTES_KEPT_MAX {
                        bytes.clear();
                        self.head = bytes;
                    }
                    return Ok(found);
                }
                Front::Missing(count) => {
                    let (more, rest) = input.split_at(count.min(input.len()));
                    if more.is_empty() {
                        self.head = bytes;
                        return Ok(None);
                    }
                    bytes.extend_from_slice(more);
                    *input = rest;
                }
            }
        }
    }

    fn on_head(&mut self, head: Head<'_>) -> Result<Option<Incoming>, MessageError> {
        let Head { verb, body, payload_len } = head;
        let control = ControlFrame::decode(verb, body)?;
        let is_allowed = control.as_ref().map_or(self.is_open, |control| {
            // A refusal may come late: the other side saw the last proof after we saw its own.
            self.is_open != control.is_handshake()
                || matches!(control, ControlFrame::Refused { .. })
        });
        if !is_allowed {
            return Err(MessageError::Verb);
        }
        if let Some(control) = control {
            let is_whole = payload_len.is_none();
            return if is_whole {
                Ok(Some(Incoming::Control(control)))
            } else {
                Err(MessageError::Body)
            };
        }
        let mut fields = FieldReader::new(body);
        if verb == b"KADP.MORE" {
            let payload_len = payload_len.ok_or(MessageError::Body)?;
            let target = self.begin_piece(&mut fields, payload_len)?;
            self.payload = Some(Payload { missing: payload_len, ended: 0, target });
            return Ok(None);
        }
        let (message, value_len) = read(verb, &mut fields)?;
        fields.finish()?;
        match (value_len, payload_len) {
            (None, None) => Ok(Some(Incoming::Message(message))),
            (Some(len), Some(payload_len)) => {
                let target = self.begin_value(message, len, payload_len)?;
                self.payload = Some(Payload { missing: payload_len, ended: 0, target });
                Ok(None)
            }
            _ => Err(MessageError::Body),
        }
    }

    /// The first piece of a value, or all of it.
    fn begin_value(
        &mut self,
        message: PeerMessage,
        len: u64,
        payload_len: usize,
    ) -> Result<Target, MessageError> {
        let len = usize::try_from(len).map_err(|_| MessageError::TooLarge)?;
        if len > self.value_bytes_max {
            return Err(MessageError::TooLarge);
        }
        if payload_len != len.min(CHUNK_BYTES_MAX) {
            return Err(MessageError::Body);
        }
        if payload_len == len {
            return Ok(Target::Whole(message, BytesMut::new()));
        }
        let partial_bytes = self.partial_bytes.saturating_add(len);
        let is_much = partial_bytes > self.value_bytes_max.saturating_mul(2);
        if is_much || self.partial.len() >= PARTIAL_COUNT_MAX {
            return Err(MessageError::TooLarge);
        }
        let name = match &message {
            PeerMessage::Put { request, .. } => (*request, false),
            PeerMessage::Got { request, .. } => (*request, true),
            _ => return Err(MessageError::Body),
        };
        if self.partial.insert(name, Partial { message, value: BytesMut::new(), len }).is_some() {
            return Err(MessageError::Piece);
        }
        self.partial_bytes = partial_bytes;
        Ok(Target::Piece(name))
    }

    fn begin_piece(
        &mut self,
        fields: &mut FieldReader<'_>,
        payload_len: usize,
    ) -> Result<Target, MessageError> {
        let (name, offset) = ((fields.request()?, fields.flag()?), fields.u64()?);
        fields.finish()?;
        let partial = self.partial.get_mut(&name).ok_or(MessageError::Piece)?;
        let rest = partial.len.saturating_sub(partial.value.len());
        let is_next = widen(partial.value.len()) == offset;
        if !is_next || payload_len != rest.min(CHUNK_BYTES_MAX) {
            return Err(MessageError::Piece);
        }
        // Who has sent one piece is believed that there are more.
        partial.value.reserve(rest);
        Ok(Target::Piece(name))
    }

    fn take_payload(&mut self, input: &mut &[u8]) -> Result<Option<PeerMessage>, MessageError> {
        let Some(mut payload) = self.payload.take() else { return Ok(None) };
        let (bytes, rest) = input.split_at(payload.missing.min(input.len()));
        match &mut payload.target {
            Target::Whole(_, value) => {
                value.reserve(payload.missing);
                value.extend_from_slice(bytes);
            }
            Target::Piece(name) => {
                let partial = self.partial.get_mut(name).ok_or(MessageError::Piece)?;
                partial.value.reserve(payload.missing);
                partial.value.extend_from_slice(bytes);
            }
        }
        payload.missing = payload.missing.saturating_sub(bytes.len());
        let line_end = LINE_END.get(payload.ended..).unwrap_or_default();
        let (end, rest) = rest.split_at(line_end.len().min(rest.len()));
        if !line_end.starts_with(end) {
            return Err(unexpected_end(end).into());
        }
        payload.ended = payload.ended.saturating_add(end.len());
        *input = rest;
        if payload.ended < LINE_END.len() {
            self.payload = Some(payload);
            return Ok(None);
        }
        match payload.target {
            Target::Whole(message, value) => Ok(Some(with_value(message, value.freeze()))),
            Target::Piece(name) => Ok(self.finish_piece(name)),
        }
    }

    fn finish_piece(&mut self, name: Name) -> Option<PeerMessage> {
        let partial = self.partial.get(&name)?;
        if partial.value.len() < partial.len {
            return None;
        }
        let whole = self.partial.remove(&name)?;
        self.partial_bytes = self.partial_bytes.saturating_sub(whole.len);
        Some(with_value(whole.message, whole.value.freeze()))
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
        b"KADP.NAMES" => PeerMessage::Names {
            request: fields.request()?,
            prefix: fields.prefix()?,
            from: fields.key()?,
            count: fields.u16()?,
        },
        b"KADP.NAMED" => PeerMessage::Named {
            request: fields.request()?,
            is_ready: fields.flag()?,
            next: if fields.flag()? { Some(fields.key()?) } else { None },
            names: fields.list(ENTRIES_MAX, FieldReader::name)?,
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
