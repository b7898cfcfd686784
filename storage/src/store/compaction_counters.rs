//! [`CompactionCounters`].

/// What compaction has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionCounters {
    /// Segments given back.
    pub segments_freed: u64,
    /// Of these, those whose files were kept to become new segments.
    pub segments_recycled: u64,
    /// Bytes of their files.
    pub bytes_freed: u64,
    /// Bytes of records appended again.
    pub bytes_copied: u64,
    /// Headers of newer records read to tell whether a record is live.
    pub heads_read: u64,
    /// Tombstones that were not appended again: nothing is left that they hide.
    pub tombstones_dropped: u64,
    /// Segments that could not be compacted because something of them could not be made out.
    pub segments_unfit: u64,
}
