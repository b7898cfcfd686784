//! Reading a log back after a crash: what is valid, where it ends, what is damaged, and why.
//!
//! [`scan_segment`] walks one segment's frames and hands out their records; it never fails because
//! of bad bytes. [`settle`] then looks at all segments of a shard together and decides, with the
//! watermark W (the highest durable LSN that any valid frame carries), what a bad range means:
//!
//! * at or below W it is **corruption**: acknowledged records may be lost there;
//! * above W it is a torn or rotten **tail**, which look alike: nothing acknowledged is known to be
//!   missing, and valid frames behind it are kept.
//!
//! A single damaged byte is located by its checksum (see [`crate::checksum::single_byte_error`]),
//! so that the key it belongs to is known to be damaged instead of merely missing. Larger damage
//! inside a frame is salvaged record by record.

use crate::checksum::{self, Place};
use crate::disk::{BLOCK_SIZE, FileId};
use crate::footer::Footer;
use crate::frame::{self, FRAME_HEADER_LEN, FrameHeader};
use crate::lsn::Lsn;
use crate::manifest::{Quarantine, Verdict};
use crate::procedure::DiskPort;
use crate::record::{
    self, Key, Location, Namespace, RECORD_ALIGNMENT, RECORD_FIXED_LEN, RecordHeader, RecordKind,
    TouchBody, Version,
};
use crate::segment::{SEGMENT_HEADER_LEN, SegmentHeader, Space};

mod reader;
mod settle;

pub use settle::{Settlement, settle};

use reader::Reader;

/// A record as found in the log, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayedRecord {
    /// What it says.
    pub kind: RecordKind,
    /// Which kind of key.
    pub namespace: Namespace,
    /// The key id.
    pub key: Key,
    /// CRC-32 of the user key.
    pub user_key_crc: u32,
    /// The version.
    pub version: Version,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
    /// Where it was first logged, if a copy; else as `lsn`.
    pub first_lsn: Lsn,
    /// Its own number in the log: records count in the order of these. In a frame of which records
    /// are lost it is the lowest that it can have; the order within the frame is true.
    pub lsn: Lsn,
    /// Where it stands.
    pub location: Location,
    /// Of a touch record: which value it is about. `None` in a damaged one.
    pub touch: Option<TouchBody>,
    /// Whether a byte of its header or value is damaged on disk.
    pub damaged: bool,
}

/// A segment to scan.
#[derive(Clone, Copy, Debug)]
pub struct SegmentSource {
    /// Its id.
    pub id: u64,
    /// Its open file.
    pub file: FileId,
    /// Bytes of the file, as far as they exist.
    pub len: u64,
    /// Where its frames are known to end.
    pub cut: Option<u64>,
}

/// What is wrong with some bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// One byte of a frame header; the frame was read all the same.
    #[error("one byte of a frame header is damaged; nothing is lost")]
    FrameHeaderByte,
    /// One byte of a record; its key answers an error.
    #[error("one byte of a record is damaged; its key answers an error")]
    RecordByte,
    /// One byte between records.
    #[error("one byte of padding is damaged; nothing is lost")]
    PaddingByte,
    /// Several bytes of a frame; some of its records were salvaged.
    #[error(
        "frame checksum does not match: {lost} of {records} records unreadable, \
             {damaged} with damaged values"
    )]
    Frame {
        /// Records in the frame.
        records: u32,
        /// Records whose header could not be found.
        lost: u32,
        /// Records whose value is damaged.
        damaged: u32,
    },
    /// No frame can be made out where one must have been.
    #[error("no valid frame")]
    NoFrame,
    /// The disk could not read the range.
    #[error("read error")]
    Unreadable,
    /// The segment's first block; nothing is lost, the manifest knows the same.
    #[error("segment header is damaged; nothing is lost")]
    SegmentHeader,
    /// The segment's footer; nothing is lost, the frames say the same.
    #[error("segment footer is damaged; nothing is lost")]
    Footer,
    /// Bytes where nothing was ever written.
    #[error("stray bytes after the last frame")]
    Stray,
}

/// Damaged bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The segment.
    pub segment: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// What is wrong.
    pub damage: Damage,
}

/// A stretch of a segment without a valid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BadRange {
    offset: u64,
    len: u64,
    /// LSN before which the range's records come, as told by the next valid frame.
    before: Option<Lsn>,
    /// LSN after which they come.
    after: Option<Lsn>,
}

/// A frame with damaged records, and what could be saved of it.
#[derive(Clone, Debug)]
struct SalvagedFrame {
    offset: u64,
    header: FrameHeader,
    records: Vec<ReplayedRecord>,
    lost: u32,
}

/// Records `first..=last` seen in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    first: Lsn,
    last: Lsn,
    segment: u64,
    end: u64,
}

/// What one segment holds.
#[derive(Clone, Debug)]
pub struct SegmentScan {
    /// The segment's id.
    pub id: u64,
    /// Where its last valid frame ends.
    pub end: u64,
    /// Valid frames, idle ones included.
    pub frame_count: u64,
    /// Records handed out or held back for [`settle`].
    pub record_count: u64,
    /// Extents: where they start, and their lengths. What they hold was not looked at
    /// ([`crate::extent::verify`]): only those that a record refers to count.
    pub extents: Vec<(u64, u64)>,
    /// Damage found.
    pub findings: Vec<Finding>,
    durable_lsn: Lsn,
    /// The newest time in its undamaged frames.
    pub wall_ms: u64,
    intervals: Vec<Interval>,
    bad: Vec<BadRange>,
    salvaged: Vec<SalvagedFrame>,
}

impl SegmentScan {
    fn new(id: u64) -> Self {
        Self {
            id,
            end: SEGMENT_HEADER_LEN,
            frame_count: 0,
            record_count: 0,
            extents: Vec::new(),
            findings: Vec::new(),
            durable_lsn: Lsn::ZERO,
            wall_ms: 0,
            intervals: Vec::new(),
            bad: Vec::new(),
            salvaged: Vec::new(),
        }
    }

    /// What a scan of the segment's frames would find, as told by its footer.
    #[must_use]
    pub fn from_footer(footer: &Footer) -> Self {
        let summary = footer.summary();
        let mut scan = Self::new(footer.segment());
        scan.end = summary.frames_end;
        scan.frame_count = u64::from(summary.frame_count);
        scan.record_count = u64::from(summary.record_count);
        scan.durable_lsn = summary.last_lsn();
        scan.wall_ms = summary.wall_ms;
        if summary.record_count > 0 {
            let (first, last) = (summary.first_lsn, summary.last_lsn());
            let (segment, end) = (scan.id, scan.end);
            scan.intervals.push(Interval { first, last, segment, end });
        }
        scan
    }

    /// What a scan of a segment would find that is known to hold records `lsns` up to `end`, and
    /// whose bad ranges, if any, were judged before.
    #[must_use]
    pub fn known(id: u64, end: u64, lsns: (Lsn, Lsn)) -> Self {
        let (first, last) = lsns;
        let mut scan = Self::new(id);
        scan.end = end;
        scan.record_count = (last.0 + 1).saturating_sub(first.0);
        scan.intervals.push(Interval { first, last, segment: id, end });
        scan
    }

    /// LSNs of the segment's first and last record; segments of a log are in the order of these.
    #[must_use]
    pub fn lsns(&self) -> Option<(Lsn, Lsn)> {
        let first = self.intervals.iter().map(|interval| interval.first).min()?;
        let last = self.intervals.iter().map(|interval| interval.last).max()?;
        Some((first, last))
    }

    /// Whether records were held back that only [`settle`] can tell the fate of. Who needs them at
    /// their place in the log reads the segment once more with [`scan_settled`].
    #[must_use]
    pub fn holds_back(&self) -> bool {
        !self.salvaged.is_empty()
    }
}

/// Reads a segment's frames and hands their records to `visit`, in the order they stand. Records of
/// damaged frames are held back for [`settle`].
///
/// Ranges of `skip` that an earlier recovery gave up as a torn tail are passed over.
pub async fn scan_segment(
    port: &DiskPort,
    store: [u8; 16],
    source: SegmentSource,
    skip: &[Quarantine],
    visit: &mut dyn FnMut(ReplayedRecord),
) -> SegmentScan {
    Scanner::new(port, store, source, skip, None).run(visit).await
}

/// Reads a segment once more, when it is settled what its damage means, and hands out all records
/// that count, in the order they stand: also those of damaged frames that were durable, and none
/// of frames that were given up.
pub async fn scan_settled(
    port: &DiskPort,
    store: [u8; 16],
    source: SegmentSource,
    settlement: &Settlement,
    visit: &mut dyn FnMut(ReplayedRecord),
) -> SegmentScan {
    let watermark = Some(settlement.watermark);
    Scanner::new(port, store, source, &settlement.quarantine, watermark).run(visit).await
}

impl Scanner {
    fn new(
        port: &DiskPort,
        store: [u8; 16],
        source: SegmentSource,
        skip: &[Quarantine],
        watermark: Option<Lsn>,
    ) -> Self {
        let scan = SegmentScan::new(source.id);
        let limit = source.cut.unwrap_or(source.len).min(source.len);
        let reader = Reader::new(port.clone(), source);
        let place = Place { store, segment: source.id, offset: 0 };
        let skip = skip.iter().filter(|range| {
            range.segment == source.id && range.verdict == Verdict::TailUncertain && range.len > 0
        });
        let skip =
            skip.map(|range| (range.offset, range.offset.saturating_add(range.len))).collect();
        Self { scan, reader, place, limit, skip, watermark, space: Space::Zeroed, gap: None }
    }
}

struct Gap {
    start: u64,
    /// Start of its first and end of its last block that are not blank.
    soiled: Option<(u64, u64)>,
}

struct Scanner {
    scan: SegmentScan,
    reader: Reader,
    place: Place,
    limit: u64,
    skip: Vec<(u64, u64)>,
    /// Up to where damaged frames count, once that is settled.
    watermark: Option<Lsn>,
    space: Space,
    gap: Option<Gap>,
}

impl Scanner {
    async fn run(mut self, visit: &mut dyn FnMut(ReplayedRecord)) -> SegmentScan {
        self.check_segment_header().await;
        self.check_footer().await;
        let mut offset = SEGMENT_HEADER_LEN;
        while offset + BLOCK_SIZE as u64 <= self.limit {
            if let Some((_, end)) = self.skip.iter().find(|(start, _)| *start == offset) {
                offset = *end;
                continue;
            }
            offset += match self.frame_at(offset).await {
                Some((header, damaged_byte)) => {
                    self.take_frame(offset, header, damaged_byte, visit).await;
                    u64::from(header.len)
                }
                None => self.take_blank_or_bad(offset).await,
            };
        }
        self.close_gap(None);
        self.reader.end().await;
        for (offset, len) in self.reader.unreadable {
            let damage = Damage::Unreadable;
            self.scan.findings.push(Finding { segment: self.scan.id, offset, len, damage });
        }
        self.scan
    }

    async fn check_segment_header(&mut self) {
        let id = self.scan.id;
        let block = self.reader.at(0, BLOCK_SIZE).await;
        let sound = SegmentHeader::decode(block).is_ok_and(|header| {
            header.id == id && block.get(SegmentHeader::LEN..).is_some_and(frame::is_blank)
        });
        if sound {
            self.space = Space::of(block);
        } else {
            self.find(0, SEGMENT_HEADER_LEN, Damage::SegmentHeader);
        }
    }

    /// Leaves a valid footer out of the scan, and takes its word for what was durable.
    async fn check_footer(&mut self) {
        let SegmentSource { len, cut, .. } = self.reader.source;
        let Some(trailer) = self.reader.trailer(&self.place).await else { return };
        if cut.is_some_and(|cut| cut != trailer.summary.frames_end) {
            return;
        }
        self.limit = self.limit.min(trailer.offset);
        self.reader.set_limit(self.limit);
        self.scan.durable_lsn = trailer.summary.last_lsn();
        self.scan.wall_ms = trailer.summary.wall_ms;
        let bytes = self.reader.read(trailer.offset, trailer.len).await;
        if bytes.is_none_or(|bytes| trailer.verify(bytes.as_slice(), &self.place).is_err()) {
            self.find(trailer.offset, len - trailer.offset, Damage::Footer);
        }
    }

    /// Recognises a frame at `offset`, even if one byte of its header is damaged.
    async fn frame_at(&mut self, offset: u64) -> Option<(FrameHeader, Option<usize>)> {
        let place = self.place.at(offset);
        let bytes = *self.reader.at(offset, BLOCK_SIZE).await.first_chunk()?;
        match FrameHeader::decode(&bytes, &place) {
            Ok(header) => (offset + u64::from(header.len) <= self.limit).then_some((header, None)),
            Err(_) if frame::is_blank(&bytes) => None,
            Err(_) => {
                let (header, position) = FrameHeader::decode_damaged(&bytes, &place)?;
                if offset + u64::from(header.len) > self.limit {
                    return None;
                }
                let len = FRAME_HEADER_LEN + header.payload_len();
                let payload = self.reader.at(offset, len).await.get(FRAME_HEADER_LEN..len)?;
                let confirmed = FrameHeader::payload_checksum(&place, payload);
                (confirmed == header.payload_crc).then_some((header, Some(position)))
            }
        }
    }

    async fn take_blank_or_bad(&mut self, offset: u64) -> u64 {
        let blank = frame::is_blank(self.reader.at(offset, BLOCK_SIZE).await);
        let gap = self.gap.get_or_insert(Gap { start: offset, soiled: None });
        let end = offset + BLOCK_SIZE as u64;
        if !blank {
            let first = gap.soiled.map_or(offset, |(first, _)| first);
            gap.soiled = Some((first, end));
        }
        BLOCK_SIZE as u64
    }

    /// Ends a stretch without frames: before a frame, or (`next` is `None`) at the end.
    fn close_gap(&mut self, next: Option<(u64, Lsn)>) {
        let Some(gap) = self.gap.take() else { return };
        let (found, end, damage) = match (next, gap.soiled) {
            (Some((offset, _)), _) => (gap.start, offset, Damage::NoFrame),
            // What a file of an earlier life holds there means nothing.
            (None, _) if self.space == Space::Reused => return,
            (None, Some((first, end))) => (first, end, Damage::Stray),
            (None, None) => return,
        };
        let len = end - gap.start;
        let after = self.scan.intervals.last().map(|interval| interval.last);
        let before = next.map(|(_, lsn)| lsn);
        self.scan.bad.push(BadRange { offset: gap.start, len, before, after });
        self.find(found, end - found, damage);
    }

    async fn take_frame(
        &mut self,
        offset: u64,
        header: FrameHeader,
        damaged_byte: Option<usize>,
        visit: &mut dyn FnMut(ReplayedRecord),
    ) {
        self.close_gap(Some((offset, header.first_lsn)));
        if header.is_extent {
            if let Some(position) = damaged_byte {
                self.find(offset + position as u64, 1, Damage::FrameHeaderByte);
            }
            self.note_frame(offset, &header);
            self.scan.extents.push((offset, u64::from(header.len)));
            return;
        }
        let len = usize::try_from(header.len).expect("a frame fits in memory");
        let place = self.place.at(offset);
        let bytes = self.reader.at(offset, len).await;
        let reading = read_frame(bytes, &place, &header);
        if let Some(position) = damaged_byte {
            self.find(offset + position as u64, 1, Damage::FrameHeaderByte);
        }
        let whole_ms = self.scan.wall_ms;
        self.note_frame(offset, &header);
        if !matches!(reading, FrameReading::Whole(_)) {
            // If it is torn, the next recovery does not look at it any more.
            self.scan.wall_ms = whole_ms;
        }
        let settled = self.watermark.map(|watermark| header.last_lsn() <= watermark);
        match reading {
            FrameReading::Whole(records) => records.into_iter().for_each(visit),
            FrameReading::ByteDamaged { records, .. } | FrameReading::Salvaged { records, .. }
                if settled.is_some() =>
            {
                if settled == Some(true) {
                    records.into_iter().for_each(visit);
                }
            }
            FrameReading::ByteDamaged { records, position, damage } => {
                self.find(offset + position as u64, 1, damage);
                // A torn write may look the same: the watermark tells them apart.
                self.scan.salvaged.push(SalvagedFrame { offset, header, records, lost: 0 });
            }
            FrameReading::Salvaged { records, lost } => {
                let damaged = records.iter().filter(|record| record.damaged).count();
                let damaged = u32::try_from(damaged).unwrap_or(u32::MAX);
                let damage = Damage::Frame { records: header.record_count, lost, damaged };
                self.find(offset, u64::from(header.len), damage);
                self.scan.salvaged.push(SalvagedFrame { offset, header, records, lost });
            }
        }
    }

    fn find(&mut self, offset: u64, len: u64, damage: Damage) {
        self.scan.findings.push(Finding { segment: self.scan.id, offset, len, damage });
    }

    fn note_frame(&mut self, offset: u64, header: &FrameHeader) {
        let end = offset + u64::from(header.len);
        let scan = &mut self.scan;
        scan.end = end;
        scan.frame_count += 1;
        scan.record_count += u64::from(header.record_count);
        scan.durable_lsn = scan.durable_lsn.max(header.durable_lsn);
        scan.wall_ms = scan.wall_ms.max(header.wall_ms);
        if header.record_count > 0 {
            let (first, last) = (header.first_lsn, header.last_lsn());
            match scan.intervals.last_mut() {
                Some(interval) if interval.last.next() == first => {
                    interval.last = last;
                    interval.end = end;
                }
                _ => scan.intervals.push(Interval { first, last, segment: scan.id, end }),
            }
        }
    }
}

enum FrameReading {
    Whole(Vec<ReplayedRecord>),
    ByteDamaged { records: Vec<ReplayedRecord>, position: usize, damage: Damage },
    Salvaged { records: Vec<ReplayedRecord>, lost: u32 },
}

/// Reads a frame of which nothing but the header is known to be sound.
pub(crate) fn fuzz_read_frame(bytes: &[u8], place: &Place, header: &FrameHeader) {
    if header.is_extent {
        return;
    }
    let (FrameReading::Whole(records)
    | FrameReading::ByteDamaged { records, .. }
    | FrameReading::Salvaged { records, .. }) = read_frame(bytes, place, header);
    assert!(records.iter().all(|record| u64::from(record.location.offset) > place.offset));
}

fn read_frame(bytes: &[u8], place: &Place, header: &FrameHeader) -> FrameReading {
    let payload = &bytes[FRAME_HEADER_LEN..];
    let found = FrameHeader::payload_checksum(place, payload);
    if found == header.payload_crc
        && let Some((records, _)) = read_records(bytes, place, header)
    {
        return FrameReading::Whole(records);
    }
    if let Some(error) = checksum::single_byte_error(header.payload_crc, found, payload.len()) {
        let position = FRAME_HEADER_LEN + error.position;
        let mut repaired = bytes.to_vec();
        repaired[position] ^= error.difference;
        if let Some((mut records, end)) = read_records(&repaired, place, header) {
            // The record that the byte belongs to, if it is not between records.
            let hit = records.iter_mut().find(|record| {
                let start = usize::try_from(u64::from(record.location.offset) - place.offset);
                let len = record.location.header_len as usize + record.location.value_len as usize;
                start.is_ok_and(|start| (start..start + len).contains(&position))
            });
            let damage = match hit {
                Some(record) if position < end => {
                    record.damaged = true;
                    Damage::RecordByte
                }
                _ => Damage::PaddingByte,
            };
            return FrameReading::ByteDamaged { records, position, damage };
        }
    }
    let (records, lost) = salvage(bytes, place, header);
    FrameReading::Salvaged { records, lost }
}

/// Reads as many records as the frame's header says, all valid; also returns where they end.
fn read_records(
    bytes: &[u8],
    place: &Place,
    frame: &FrameHeader,
) -> Option<(Vec<ReplayedRecord>, usize)> {
    let mut records = Vec::new();
    let mut at = FRAME_HEADER_LEN;
    for ordinal in 0..u64::from(frame.record_count) {
        let here = place.at(place.offset + at as u64);
        let header = RecordHeader::decode(bytes.get(at..)?, &here).ok()?;
        let value = header.value(&bytes[at..]).ok()?;
        records.push(replayed(&header, &here, frame.first_lsn.plus(ordinal), Some(value))?);
        at += header.record_len();
    }
    Some((records, at))
}

/// Finds what records it can in a damaged frame; also returns how many are missing.
fn salvage(bytes: &[u8], place: &Place, frame: &FrameHeader) -> (Vec<ReplayedRecord>, u32) {
    let mut records = Vec::new();
    let mut at = FRAME_HEADER_LEN;
    while at + RECORD_FIXED_LEN <= bytes.len() {
        let here = place.at(place.offset + at as u64);
        let rest = &bytes[at..];
        let plausible = record::is_plausible(rest);
        let header = plausible.then(|| RecordHeader::decode(rest, &here).ok()).flatten();
        let Some(header) = header else {
            at += RECORD_ALIGNMENT;
            continue;
        };
        let lsn = frame.first_lsn.plus(records.len() as u64);
        records.extend(replayed(&header, &here, lsn, header.value(rest).ok()));
        at += header.record_len();
    }
    let found = u32::try_from(records.len()).unwrap_or(u32::MAX);
    (records, frame.record_count.saturating_sub(found))
}

/// `value` is `None` if it is damaged. A touch record without a body is of no use.
fn replayed(
    header: &RecordHeader<'_>,
    place: &Place,
    lsn: Lsn,
    value: Option<&[u8]>,
) -> Option<ReplayedRecord> {
    let touch = match (header.kind, value) {
        (RecordKind::Touch, Some(value)) => Some(TouchBody::decode(value)?),
        _ => None,
    };
    Some(ReplayedRecord {
        kind: header.kind,
        namespace: header.namespace,
        key: header.key,
        user_key_crc: checksum::plain(header.user_key),
        version: header.version,
        expiry_ms: header.expiry_ms,
        first_lsn: header.first_lsn.unwrap_or(lsn),
        lsn,
        location: Location {
            segment: place.segment,
            offset: u32::try_from(place.offset).ok()?,
            header_len: u32::try_from(header.len()).ok()?,
            value_len: u32::try_from(header.value_len).ok()?,
        },
        touch,
        damaged: value.is_none(),
    })
}

#[cfg(test)]
mod reuse_tests;
#[cfg(test)]
pub(crate) mod tests;
