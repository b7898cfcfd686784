//! What the bad ranges of all segments of a shard mean, judged together.

use super::{BadRange, Damage, Finding, Interval, ReplayedRecord, SalvagedFrame, SegmentScan};
use crate::lsn::Lsn;
use crate::manifest::{Quarantine, Verdict};

/// What all segments of a shard say together.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The highest LSN known durable from any valid frame or the manifest.
    pub watermark: Lsn,
    /// The highest LSN seen; new records go above it.
    pub last_lsn: Lsn,
    /// The newest frame's time.
    pub wall_ms: u64,
    /// All ranges given up, older ones included; for the manifest.
    pub quarantine: Vec<Quarantine>,
    /// Bytes of torn or rotten tail that this recovery gave up.
    pub tail_uncertain_bytes: u64,
    /// Records salvaged from damaged frames at or below the watermark.
    pub salvaged: Vec<ReplayedRecord>,
    /// Damage found, over all segments.
    pub findings: Vec<Finding>,
    /// Bad ranges above the watermark: torn or rotten, nothing acknowledged is known to be lost.
    pub uncertain: Vec<Finding>,
}

impl Settlement {
    /// Whether acknowledged records are lost and not known by key.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.quarantine.iter().any(|range| range.verdict == Verdict::Corruption)
    }
}

/// Decides what the bad ranges of a shard mean. `known` are the ranges earlier recoveries gave up,
/// `durable_lsn` what the manifest knows to be durable.
#[must_use]
pub fn settle(scans: &[SegmentScan], known: &[Quarantine], durable_lsn: Lsn) -> Settlement {
    let watermark = scans.iter().map(|scan| scan.durable_lsn).fold(durable_lsn, Lsn::max);
    let intervals = merged(scans.iter().flat_map(|scan| &scan.intervals));
    let last_seen = intervals.last().map_or(Lsn::ZERO, |interval| interval.last);
    let mut settlement = Settlement {
        watermark,
        last_lsn: last_seen.max(watermark),
        wall_ms: scans.iter().map(|scan| scan.wall_ms).max().unwrap_or(0),
        quarantine: known.to_vec(),
        tail_uncertain_bytes: 0,
        salvaged: Vec::new(),
        findings: Vec::new(),
        uncertain: Vec::new(),
    };
    settle_gaps(&mut settlement, scans, &intervals);
    settle_salvaged(&mut settlement, scans);
    settle_empty_ranges(&mut settlement, scans);
    let findings = scans.iter().flat_map(|scan| &scan.findings).copied();
    let (uncertain, damage) = findings.partition(|finding| {
        is_uncertain(&settlement, finding) || is_in_idle_frame(scans, finding)
    });
    (settlement.uncertain, settlement.findings) = (uncertain, damage);
    settlement
}

/// Whether a finding is explained by a write that was never acknowledged.
fn is_uncertain(settlement: &Settlement, finding: &Finding) -> bool {
    let holds = |range: &&Quarantine| {
        range.segment == finding.segment
            && (range.offset..range.offset + range.len.max(1)).contains(&finding.offset)
    };
    match settlement.quarantine.iter().find(holds) {
        Some(range) => range.verdict == Verdict::TailUncertain,
        None => matches!(
            finding.damage,
            Damage::NoFrame | Damage::Stray | Damage::Footer | Damage::Frame { records: 0, .. }
        ),
    }
}

/// Whether a located byte is of a frame without records: no record confirms the location, and one
/// torn sector in some thousands has a checksum as if one byte of it were wrong.
fn is_in_idle_frame(scans: &[SegmentScan], finding: &Finding) -> bool {
    let frames = scans.iter().filter(|scan| scan.id == finding.segment);
    let mut idle = frames.flat_map(|scan| &scan.salvaged).filter(|f| f.header.record_count == 0);
    let holds = |frame: &SalvagedFrame| {
        (frame.offset..frame.offset + u64::from(frame.header.len)).contains(&finding.offset)
    };
    finding.damage == Damage::PaddingByte && idle.any(holds)
}

fn merged<'a>(intervals: impl Iterator<Item = &'a Interval>) -> Vec<Interval> {
    let mut sorted: Vec<Interval> = intervals.copied().collect();
    sorted.sort_unstable_by_key(|interval| (interval.first, interval.last));
    let mut merged: Vec<Interval> = Vec::new();
    for next in sorted {
        match merged.last_mut() {
            Some(last) if next.first <= last.last.next() => {
                if next.last > last.last {
                    (last.last, last.segment, last.end) = (next.last, next.segment, next.end);
                }
            }
            _ => merged.push(next),
        }
    }
    merged
}

/// Missing records: between the intervals, before the first, and up to the watermark.
fn settle_gaps(settlement: &mut Settlement, scans: &[SegmentScan], intervals: &[Interval]) {
    let mut previous: Option<&Interval> = None;
    let mut gaps = Vec::new();
    for interval in intervals {
        let expected = previous.map_or(Lsn(1), |interval| interval.last.next());
        if expected < interval.first {
            gaps.push((expected, interval.first.before(), previous.copied()));
        }
        previous = Some(interval);
    }
    let expected = previous.map_or(Lsn(1), |interval| interval.last.next());
    if expected <= settlement.watermark {
        gaps.push((expected, settlement.watermark, previous.copied()));
    }
    let mut known: Vec<(Lsn, Lsn)> =
        settlement.quarantine.iter().map(|range| (range.first_lsn, range.last_lsn)).collect();
    known.sort_unstable();
    let gaps = gaps.into_iter().flat_map(|(first, last, previous)| {
        unexplained(first, last, &known).into_iter().map(move |(f, l)| (f, l, previous))
    });
    for (first_lsn, last_lsn, previous) in gaps {
        let found = scans.iter().find_map(|scan| {
            let holds = |bad: &&BadRange| {
                bad.after.is_none_or(|after| after < first_lsn)
                    && bad.before.is_none_or(|before| last_lsn < before)
            };
            // A range explains one gap; another gap is of a frame that left no trace.
            let known = &settlement.quarantine;
            let is_new = |bad: &&BadRange| {
                !known.iter().any(|range| (range.segment, range.offset) == (scan.id, bad.offset))
            };
            let bad = scan.bad.iter().find(|bad| holds(bad) && is_new(bad));
            bad.map(|bad| (scan.id, bad.offset, bad.len))
        });
        let nowhere = || previous.map_or((0, 0, 0), |interval| (interval.segment, interval.end, 0));
        let (segment, offset, len) = found.unwrap_or_else(nowhere);
        let lost = first_lsn <= settlement.watermark;
        let verdict = if lost { Verdict::Corruption } else { Verdict::TailUncertain };
        give_up(settlement, Quarantine { segment, offset, len, first_lsn, last_lsn, verdict });
    }
}

/// The parts of `first..=last` that no range of `known`, sorted, covers.
fn unexplained(first: Lsn, last: Lsn, known: &[(Lsn, Lsn)]) -> Vec<(Lsn, Lsn)> {
    let mut parts = Vec::new();
    let mut next = first;
    for (known_first, known_last) in known {
        if next > last || *known_first > last {
            break;
        }
        if known_last < known_first {
            continue;
        }
        if *known_first > next {
            parts.push((next, known_first.before()));
        }
        next = next.max(known_last.next());
    }
    if next <= last {
        parts.push((next, last));
    }
    parts
}

fn settle_salvaged(settlement: &mut Settlement, scans: &[SegmentScan]) {
    for scan in scans {
        for frame in &scan.salvaged {
            let (first_lsn, last_lsn) = (frame.header.first_lsn, frame.header.last_lsn());
            let durable = last_lsn <= settlement.watermark;
            if durable {
                settlement.wall_ms = settlement.wall_ms.max(frame.header.wall_ms);
                settlement.salvaged.extend(&frame.records);
            }
            if durable && frame.lost == 0 {
                continue;
            }
            let verdict = if durable { Verdict::Corruption } else { Verdict::TailUncertain };
            let (segment, offset, len) = (scan.id, frame.offset, u64::from(frame.header.len));
            give_up(settlement, Quarantine { segment, offset, len, first_lsn, last_lsn, verdict });
        }
    }
}

/// Bad ranges that explain no missing record: a lost idle frame, stray bytes, an unwritten frame.
fn settle_empty_ranges(settlement: &mut Settlement, scans: &[SegmentScan]) {
    for scan in scans {
        for bad in &scan.bad {
            let known = settlement
                .quarantine
                .iter()
                .any(|range| range.segment == scan.id && range.offset == bad.offset);
            if !known {
                settlement.tail_uncertain_bytes += bad.len;
            }
        }
    }
}

fn give_up(settlement: &mut Settlement, range: Quarantine) {
    let known = settlement
        .quarantine
        .iter()
        .any(|known| (known.segment, known.offset) == (range.segment, range.offset));
    if known && range.len > 0 {
        return;
    }
    if range.verdict == Verdict::TailUncertain {
        settlement.tail_uncertain_bytes += range.len;
    }
    settlement.quarantine.push(range);
}
