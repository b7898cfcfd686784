//! [`Tally`]: what has gone wrong and what has been done in a run of the simulator. A fault that is
//! drawn and never has an effect proves nothing, so each is counted where it takes effect.

use std::fmt;

macro_rules! occurrences {
    ($($name:ident = $text:literal,)*) => {
        /// Something that happens in a simulated run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Occurrence {
            $(#[doc = $text] $name,)*
        }

        impl Occurrence {
            /// All of them, in the order in which they are printed.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// A few words for people.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

occurrences! {
    PowerLoss = "power losses",
    ProcessKill = "process kills",
    DoubleCrash = "crashes during recovery",
    ListedImage = "images of complete lists",
    LostWrite = "un-synced writes lost whole",
    ReorderedWrite = "un-synced writes lost, later ones kept",
    TornAt512 = "writes torn at 512 bytes",
    TornAt4096 = "writes torn at 4 KiB",
    GarbledSector = "lost sectors of zeros or noise",
    LostLength = "extensions lost",
    LostEntry = "directory entries lost",
    LostRename = "renames lost",
    LostRemoval = "removals lost",
    StaleBlock = "stale blocks in new space",
    StaleFrame = "stale frames in recycled space",
    MisdirectedWrite = "writes gone elsewhere",
    VanishedWrite = "durable writes gone nowhere",
    UnreadableBlock = "blocks made unreadable",
    LatentReadError = "reads of unreadable blocks",
    FlippedBit = "bits and bytes flipped at rest",
    ZeroedSector = "sectors zeroed at rest",
    InputOutputError = "EIO",
    NoSpaceError = "ENOSPC",
    QuotaError = "EDQUOT",
    ShortWrite = "short writes",
    StickyError = "failures that went on",
    FullDisk = "requests refused by a full disk",
    ClockBack = "clock steps back",
    ClockForward = "clock steps forward",
    Put = "puts",
    PutRefused = "writes refused as busy",
    Removal = "removals",
    Touch = "touches",
    Expiry = "keys seen expired",
    Clear = "clears",
    Scan = "scans",
    DiskRead = "reads from disk",
    SegmentFreed = "segments freed",
    SegmentRecycled = "segments recycled",
    SegmentUnfit = "segments given up",
    BytesCopied = "bytes copied",
    TombstoneDropped = "tombstones dropped",
    CompactionAsked = "compactions by hand",
    CheckpointPublished = "checkpoints",
    ScrubPass = "scrub passes",
    SnapshotTaken = "snapshots taken",
    SnapshotFailed = "snapshots failed",
    SnapshotRemoved = "snapshots removed",
    SnapshotOpened = "snapshots opened and compared",
    ExtentWritten = "large values written beside the log",
    LimitReached = "writes refused at disk_bytes_max",
}

impl Occurrence {
    /// Whether it is something that goes wrong, not something that is done.
    #[must_use]
    pub fn is_fault(self) -> bool {
        self < Self::Put
    }
}

const COUNT: usize = Occurrence::ALL.len();

/// How often each [`Occurrence`] has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally([u64; COUNT]);

impl Default for Tally {
    fn default() -> Self {
        Self([0; COUNT])
    }
}

impl Tally {
    /// Counts one more.
    pub fn note(&mut self, what: Occurrence) {
        self.add(what, 1);
    }

    /// Counts some more.
    pub fn add(&mut self, what: Occurrence, count: u64) {
        self.0[what as usize] += count;
    }

    /// How often it has happened.
    #[must_use]
    pub fn of(&self, what: Occurrence) -> u64 {
        self.0[what as usize]
    }

    /// Counts what another tally has.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own += other);
    }

    /// Hands out what was counted, and begins at zero.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Faults that have not happened.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = Occurrence::ALL.iter().filter(|what| self.of(**what) == 0);
        missing.map(|what| what.name()).collect()
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, faults: bool) -> fmt::Result {
        let wanted = Occurrence::ALL.iter().filter(|what| what.is_fault() == faults);
        for (index, what) in wanted.enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}", self.of(*what), what.name())?;
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faults: ")?;
        self.write(f, true)?;
        f.write_str("\ndone: ")?;
        self.write(f, false)
    }
}
