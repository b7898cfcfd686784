//! Extents beside frames: their order, and what is left of both when power fails.

use proptest::prelude::*;

use super::crash_tests::{Disk, LEN, any_limits, any_step, check_nothing_is_lost};
use super::tests::record;
use super::*;
use crate::extent::PIECE_LEN;
use crate::replay::tests::STORE;

/// Pieces are this long here, to have some in a small segment.
const SMALL_PIECE_LEN: usize = 8 << 10;

fn large_log() -> GroupCommit {
    large_log_within(GroupCommitLimits::default())
}

fn large_log_within(limits: GroupCommitLimits) -> GroupCommit {
    let mut log = GroupCommit::new([7; 16], limits, Lsn(10), 0);
    log.add_segment(OpenSegment { id: 1, file: FileId(1), len: 64 << 20 });
    log
}

fn all_writes(log: &mut GroupCommit) -> Vec<FrameWrite> {
    std::iter::from_fn(|| log.poll_write()).collect()
}

fn offset_of(write: &FrameWrite) -> u64 {
    match &write.operation {
        DiskOperation::Write { offset, durability: Durability::Durable, .. } => *offset,
        other => panic!("{other:?} is no durable write"),
    }
}

#[test]
fn frame_waits_for_no_more_than_the_pieces_in_flight() {
    let mut log = large_log();
    let extent = log.begin_extent(32 << 20).unwrap();
    log.submit(0);
    let frame = log.poll_write().unwrap();
    assert_eq!(offset_of(&frame), extent.offset);
    let mut at = PIECE_LEN as u64;
    let mut pieces = Vec::new();
    while log.piece_room() > 0 {
        log.write_piece(&extent, at, IoBuffer::zeroed(PIECE_LEN));
        at += PIECE_LEN as u64;
        pieces.extend(log.poll_write());
    }
    assert_eq!(pieces.len(), crate::extent::PIECES_IN_FLIGHT_MAX);
    log.append(&record(b"small")).unwrap();
    log.submit(1);
    let small = log.poll_write().expect("a frame goes out beside pieces");
    assert_eq!(offset_of(&small), extent.offset + extent.len, "behind all of the extent");
    assert!(!log.handle_written(small.number, Ok(()), None), "its frame is not there yet");
    assert!(log.handle_written(frame.number, Ok(()), None));
    assert_eq!(log.durable_lsn(), Lsn(11), "no piece was written");
    assert!(!log.is_quiet());
}

#[test]
fn extent_is_written_when_its_last_piece_is() {
    let mut log = large_log();
    let extent = log.begin_extent(2 * PIECE_LEN).unwrap();
    log.submit(0);
    let frame = log.poll_write().unwrap();
    log.handle_written(frame.number, Ok(()), None);
    log.write_piece(&extent, PIECE_LEN as u64, IoBuffer::zeroed(PIECE_LEN));
    log.write_piece(&extent, 0, IoBuffer::zeroed(PIECE_LEN));
    let pieces = all_writes(&mut log);
    log.handle_written(pieces[1].number, Ok(()), None);
    assert_eq!((log.poll_extent(), log.is_quiet()), (None, false));
    log.handle_written(pieces[0].number, Ok(()), None);
    assert_eq!((log.poll_extent(), log.is_quiet()), (Some(extent.id), true));
}

#[test]
fn what_is_not_written_is_told_wherever_it_stands() {
    let limits = GroupCommitLimits { frames_in_flight_max: 4, ..GroupCommitLimits::default() };
    let mut log = large_log_within(limits);
    let first = log.begin_extent(PIECE_LEN).unwrap();
    log.append(&record(b"between")).unwrap();
    let second = log.begin_extent(PIECE_LEN).unwrap();
    log.submit(0);
    log.write_piece(&second, 0, IoBuffer::zeroed(PIECE_LEN));
    let writes = all_writes(&mut log);
    let [_, between, second_frame, piece] = &writes[..] else { panic!("{writes:?}") };
    for written in [second_frame, piece] {
        log.handle_written(written.number, Ok(()), None);
    }
    // The second extent is written, what is before it is not.
    assert_eq!(log.poll_extent(), Some(second.id));
    assert_eq!(log.unwritten_from(1, first.offset), Some(first.offset));
    assert_eq!(log.unwritten_from(1, first.offset + 4096), Some(first.record_offset()));
    assert_eq!(log.unwritten_from(1, first.record_offset() + 4096), Some(offset_of(between)));
    assert_eq!(log.unwritten_from(1, second.record_offset()), None);
    assert_eq!(log.unwritten_from(2, 0), None, "of another segment");
    log.append(&record(b"open")).unwrap();
    assert_eq!(log.unwritten_from(1, second.record_offset()), Some(second.offset + second.len));
}

/// Its record would name what no scan steps over.
#[test]
fn extent_is_not_written_before_its_frame_is() {
    let mut log = large_log();
    let extent = log.begin_extent(PIECE_LEN).unwrap();
    log.submit(0);
    log.write_piece(&extent, 0, IoBuffer::zeroed(PIECE_LEN));
    let writes = all_writes(&mut log);
    assert_eq!(offset_of(&writes[0]), extent.offset);
    log.handle_written(writes[1].number, Ok(()), None);
    assert_eq!(log.poll_extent(), None);
    log.handle_written(writes[0].number, Ok(()), None);
    assert_eq!(log.poll_extent(), Some(extent.id));
}

#[test]
fn failed_piece_fails_the_log() {
    let mut log = large_log();
    let extent = log.begin_extent(PIECE_LEN).unwrap();
    log.write_piece(&extent, 0, IoBuffer::zeroed(PIECE_LEN));
    log.submit(0);
    let writes = all_writes(&mut log);
    let error = DiskError { kind: DiskErrorKind::Io, code: 5 };
    log.handle_written(writes[1].number, Err(error), None);
    assert_eq!((log.failure(), log.poll_extent()), (Some(error), None));
    assert_eq!(log.begin_extent(PIECE_LEN), Err(AppendError::Failed(error)));
    log.handle_written(writes[0].number, Ok(()), None);
}

/// An extent whose pieces are being given, and what fills it.
struct Giving {
    extent: Extent,
    fill: u8,
    next: u64,
}

impl Giving {
    /// Gives the next piece; the first one comes last. False when that was it.
    fn give(&mut self, log: &mut GroupCommit) -> bool {
        let (at, is_last) = match self.next < self.extent.record_len() {
            true => (self.next, false),
            false => (0, true),
        };
        let len = (self.extent.record_len() - at).min(SMALL_PIECE_LEN as u64);
        let mut piece = IoBuffer::zeroed(usize::try_from(len).unwrap());
        piece.as_mut_slice().fill(self.fill);
        log.write_piece(&self.extent, at, piece);
        self.next = at + len;
        !is_last
    }
}

/// An extent that a record rests on.
struct Named {
    lsn: Lsn,
    extent: Extent,
    fill: u8,
}

/// A log with extents in it, and its disk.
struct World {
    disk: Disk,
    segments: u32,
    log: GroupCommit,
    giving: VecDeque<Giving>,
    given: Vec<(Extent, u8)>,
    named: Vec<Named>,
    fill: u8,
}

impl World {
    fn append(&mut self, value: &[u8]) -> Option<Lsn> {
        let appended = self.log.append(&record(value)).ok();
        if appended.is_none() {
            self.add_segment();
        }
        appended.map(|appended| appended.lsn)
    }

    fn add_segment(&mut self) {
        self.segments += 1;
        self.log.add_segment(self.disk.add_segment(self.segments));
    }

    fn begin(&mut self, len: usize) {
        match self.log.begin_extent(len) {
            Ok(extent) => {
                self.fill = self.fill % 250 + 1;
                let first = (SMALL_PIECE_LEN as u64).min(extent.record_len());
                self.giving.push_back(Giving { extent, fill: self.fill, next: first });
            }
            Err(AppendError::NoSegment { .. }) => self.add_segment(),
            Err(_) => {}
        }
    }

    fn pump(&mut self) {
        while self.log.piece_room() > 0
            && let Some(mut giving) = self.giving.pop_front()
        {
            if giving.give(&mut self.log) {
                self.giving.push_front(giving);
            } else {
                self.given.push((giving.extent, giving.fill));
            }
        }
        while let Some(id) = self.log.poll_extent() {
            let index = self.given.iter().position(|(extent, _)| extent.id == id).unwrap();
            let (extent, fill) = self.given.swap_remove(index);
            if let Some(lsn) = self.append(b"named") {
                self.named.push(Named { lsn, extent, fill });
            }
        }
        while let Some(write) = self.log.poll_write() {
            self.disk.start(write);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Small records come beside extents; power fails after any completion. Every durable record
    /// is there, and all of each extent that a record rests on which is there, durable or not.
    #[test]
    fn what_rests_on_an_extent_is_durable_only_after_it(
        limits in any_limits(),
        steps in prop::collection::vec(any_step(), 1..200),
        sectors in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let mut world = World {
            disk: Disk::default(),
            segments: 0,
            log: GroupCommit::new(STORE, limits, Lsn::ZERO, 0),
            giving: VecDeque::new(),
            given: Vec::new(),
            named: Vec::new(),
            fill: 0,
        };
        world.add_segment();
        for (now_ms, (what, choice, len)) in steps.into_iter().enumerate() {
            match what {
                0 | 1 => drop(world.append(&vec![what; len])),
                2 => world.begin(4 * len),
                3 if len < 300 => world.log.roll(),
                4 => world.log.open_idle_frame(),
                _ if world.disk.under_way.is_empty() => {}
                _ => {
                    let number = *choice.get(&world.disk.under_way);
                    world.disk.complete(number);
                    world.log.handle_written(number, Ok(()), None);
                }
            }
            world.log.submit(now_ms as u64 / 3);
            world.pump();
        }
        let durable = world.log.durable_lsn();
        world.disk.crash(&sectors);
        let found = world.disk.read_back();
        let files = &world.disk.files;
        for (scan, _, footer) in &found {
            if let Some(footer) = footer {
                let bytes = &files[&u32::try_from(scan.id).unwrap()][BLOCK_SIZE..scan.end as usize];
                prop_assert_eq!(footer.summary().frames_crc, checksum::plain(bytes));
            }
        }
        let lsns = check_nothing_is_lost(&found, durable)?;
        for Named { lsn, extent, fill } in &world.named {
            let file = &files[&extent.segment.file.0];
            let (from, to) = (extent.record_offset() as usize, extent.offset + extent.len);
            let is_whole = file[from..to as usize].iter().all(|byte| byte == fill);
            let is_found = lsns.binary_search(lsn).is_ok();
            prop_assert!(!is_found || is_whole, "the extent of {lsn} is torn");
        }
    }
}

const _: () = assert!(LEN > 4 * SMALL_PIECE_LEN);
