//! [`DeviceProbe`]: how the device below a data directory takes durable writes, measured once.
//!
//! There are two ways to a durable write: one call that returns when the device has the bytes for
//! good (RWF_DSYNC, a FUA write where the device knows that), or a plain write and a sync that
//! flushes the device's cache. Which is cheaper depends on the drive: some take FUA writes at full
//! speed, others are slower at them than at flushing, so it is measured and not guessed.
//!
//! The answer lies in `device.toml` in the data directory, for people to read. A file that is
//! missing, cannot be understood, or was made without O_DIRECT where there is O_DIRECT now (or the
//! other way round) is made anew. Nothing here keeps a node from starting.

use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, OFlags, openat};
use rustix::io::{Errno, ReadWriteFlags, pwrite, pwritev2};
use wal::disk::{BLOCK_SIZE, IoBuffer};

use super::clock;
use super::directory::DataDirectory;
use super::notes;

/// The probe's result, in the data directory.
const FILE_NAME: &str = "device.toml";
/// The file that is written to while measuring.
const SCRATCH_NAME: &str = ".device-probe";
/// Durable writes of each kind; their median counts.
const ROUNDS: usize = 100;
/// After this long no further round begins, on slow devices.
const MEASURE_MS: u64 = 300;
/// The file's version, for readers of other versions.
const VERSION: i64 = 1;

/// How a write is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMethod {
    /// By the write itself (RWF_DSYNC).
    Dsync,
    /// By a sync after one or several writes.
    Sync,
}

impl SyncMethod {
    /// The word for it in configuration, files and INFO.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dsync => "dsync",
            Self::Sync => "sync",
        }
    }

    /// The method that the word means.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Dsync, Self::Sync].into_iter().find(|method| method.name() == name)
    }
}

/// What the kernel says of the device's own cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteCache {
    /// It may lose what is in it, so syncs flush it.
    WriteBack,
    /// There is none, or it survives a power loss: syncs have nothing to flush.
    WriteThrough,
}

impl WriteCache {
    /// The kernel's words for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteBack => "write back",
            Self::WriteThrough => "write through",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::WriteBack, Self::WriteThrough].into_iter().find(|cache| cache.name() == name)
    }
}

/// What was measured, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceProbe {
    /// Whether files are read and written past the page cache.
    pub direct: bool,
    /// Median time of a 4-KiB write with RWF_DSYNC, in microseconds, if it was measured.
    pub dsync_us: Option<u64>,
    /// Median time of a 4-KiB write and fdatasync, in microseconds, if it was measured.
    pub sync_us: Option<u64>,
    /// What the kernel says of the device's cache, if it does.
    pub write_cache: Option<WriteCache>,
    /// The better method.
    pub choice: SyncMethod,
}

impl DeviceProbe {
    /// Reads what was measured of this directory's device, or measures it now and notes that down.
    ///
    /// Measuring takes 200 small writes, or half a second on devices too slow for as many. Without
    /// O_DIRECT there is nothing to measure: durable writes then go through the page cache and are
    /// synced. What fails is logged; the choice is then a guess and is not noted down.
    #[must_use]
    pub fn read_or_measure(directory: &DataDirectory) -> Self {
        let known = notes::read(directory, FILE_NAME).and_then(|text| Self::from_toml(&text));
        if let Some(known) = known.filter(|known| known.direct == directory.direct()) {
            return known;
        }
        match Self::measure(directory) {
            Ok(probe) => {
                if let Err(error) = notes::write(directory, FILE_NAME, &probe.to_toml()) {
                    tracing::warn!(%error, "cannot note down how the device takes durable writes");
                }
                tracing::info!(
                    dsync_us = probe.dsync_us,
                    sync_us = probe.sync_us,
                    choice = probe.choice.name(),
                    "durable writes measured"
                );
                probe
            }
            Err(error) => {
                tracing::warn!(%error, "cannot measure how the device takes durable writes");
                Self::unmeasured(directory)
            }
        }
    }

    /// What holds without a measurement.
    fn unmeasured(directory: &DataDirectory) -> Self {
        let direct = directory.direct();
        Self {
            direct,
            dsync_us: None,
            sync_us: None,
            write_cache: write_cache(directory),
            choice: if direct { SyncMethod::Dsync } else { SyncMethod::Sync },
        }
    }

    fn measure(directory: &DataDirectory) -> Result<Self, Errno> {
        let unmeasured = Self::unmeasured(directory);
        if !directory.direct() {
            return Ok(unmeasured);
        }
        let times = time_durable_writes(directory);
        // Also after a failure, which may have been a full disk.
        let _ = fs::unlinkat(directory.root(), SCRATCH_NAME, AtFlags::empty());
        let Times { dsync_us, sync_us } = times?;
        let choice = choose(dsync_us, sync_us);
        Ok(Self { dsync_us: Some(dsync_us), sync_us: Some(sync_us), choice, ..unmeasured })
    }

    /// Writes it down, for people to read too.
    #[must_use]
    pub fn to_toml(self) -> String {
        let mut text = "# How this directory's device takes durable writes, measured at the first \
                        start.\n# Remove this file to have it measured again.\n"
            .to_owned();
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{key} = {value}");
        };
        line("version", VERSION.to_string());
        line("direct", self.direct.to_string());
        for (key, time) in [("dsync_us", self.dsync_us), ("sync_us", self.sync_us)] {
            if let Some(time) = time {
                line(key, time.to_string());
            }
        }
        if let Some(cache) = self.write_cache {
            line("write_cache", format!("\"{}\"", cache.name()));
        }
        line("choice", format!("\"{}\"", self.choice.name()));
        text
    }

    /// Understands what [`DeviceProbe::to_toml`] wrote; nothing else.
    #[must_use]
    pub fn from_toml(text: &str) -> Option<Self> {
        let table: toml::Table = text.parse().ok()?;
        let word = |key: &str| table.get(key).and_then(toml::Value::as_str);
        let time = |key: &str| match table.get(key) {
            None => Some(None),
            Some(value) => u64::try_from(value.as_integer()?).ok().map(Some),
        };
        let write_cache = match word("write_cache") {
            None => None,
            Some(cache) => Some(WriteCache::from_name(cache)?),
        };
        (table.get("version")?.as_integer()? == VERSION).then_some(())?;
        Some(Self {
            direct: table.get("direct")?.as_bool()?,
            dsync_us: time("dsync_us")?,
            sync_us: time("sync_us")?,
            write_cache,
            choice: SyncMethod::from_name(word("choice")?)?,
        })
    }
}

/// A durable write is one command to the device, and several can be under way; a write and a sync
/// are two, and the sync waits for the write. So the second has to be clearly faster, by a tenth.
fn choose(dsync_us: u64, sync_us: u64) -> SyncMethod {
    if sync_us.saturating_mul(10) < dsync_us.saturating_mul(9) {
        SyncMethod::Sync
    } else {
        SyncMethod::Dsync
    }
}

/// Medians.
struct Times {
    dsync_us: u64,
    sync_us: u64,
}

/// Overwrites blocks of a file that is written and synced, as a log does, both ways in turn.
fn time_durable_writes(directory: &DataDirectory) -> Result<Times, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::DIRECT;
    let file = create(directory, SCRATCH_NAME, flags)?;
    let zeros = IoBuffer::zeroed(ROUNDS * BLOCK_SIZE);
    write_all(&file, zeros.as_slice(), 0)?;
    fs::fsync(&file)?;
    let mut block = IoBuffer::zeroed(BLOCK_SIZE);
    block.as_mut_slice().fill(0xa5);
    let end = clock::monotonic().plus_millis(MEASURE_MS);
    let (mut dsync, mut sync) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let offset = (round * BLOCK_SIZE) as u64;
        dsync.push(time(|| {
            let part = [std::io::IoSlice::new(block.as_slice())];
            whole(pwritev2(&file, &part, offset, ReadWriteFlags::DSYNC)?, BLOCK_SIZE)
        })?);
        sync.push(time(|| {
            write_all(&file, block.as_slice(), offset)?;
            fs::fdatasync(&file)
        })?);
        if clock::monotonic() >= end {
            break;
        }
    }
    Ok(Times { dsync_us: median_us(dsync), sync_us: median_us(sync) })
}

/// Nanoseconds that a call takes.
fn time(call: impl FnOnce() -> Result<(), Errno>) -> Result<u64, Errno> {
    let start = clock::monotonic();
    call()?;
    Ok(clock::monotonic().0.saturating_sub(start.0))
}

fn median_us(mut nanos: Vec<u64>) -> u64 {
    nanos.sort_unstable();
    nanos.get(nanos.len() / 2).map_or(0, |nanos| nanos.div_ceil(1000))
}

fn write_all(file: impl AsFd, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    whole(pwrite(file, bytes, offset)?, bytes.len())
}

fn whole(written: usize, asked: usize) -> Result<(), Errno> {
    if written == asked { Ok(()) } else { Err(Errno::NOSPC) }
}

fn create(directory: &DataDirectory, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(directory.root(), name, flags, DataDirectory::file_mode())
}

/// Asks the kernel about the device's cache. Some file systems do not lead to one device.
fn write_cache(directory: &DataDirectory) -> Option<WriteCache> {
    let device = fs::fstat(directory.root()).ok()?.st_dev;
    let device = format!("/sys/dev/block/{}:{}", fs::major(device), fs::minor(device));
    // A partition's queue is that of its disk, one level up.
    let texts = ["queue", "../queue"]
        .map(|queue| std::fs::read_to_string(format!("{device}/{queue}/write_cache")));
    let text = texts.into_iter().find_map(Result::ok)?;
    WriteCache::from_name(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: DeviceProbe = DeviceProbe {
        direct: true,
        dsync_us: Some(120),
        sync_us: Some(250),
        write_cache: Some(WriteCache::WriteBack),
        choice: SyncMethod::Dsync,
    };

    #[test]
    fn result_is_read_back_the_same() {
        let bare = DeviceProbe {
            direct: false,
            dsync_us: None,
            sync_us: None,
            write_cache: None,
            choice: SyncMethod::Sync,
        };
        for probe in [WHOLE, bare] {
            assert_eq!(DeviceProbe::from_toml(&probe.to_toml()), Some(probe));
        }
    }

    #[test]
    fn what_is_no_result_is_not_taken_for_one() {
        let text = WHOLE.to_toml();
        for (from, to) in [
            ("direct = true", ""),
            ("direct = true", "direct = 1"),
            ("dsync_us = 120", "dsync_us = -1"),
            ("dsync_us = 120", "dsync_us = \"120\""),
            ("\"write back\"", "\"write\""),
            ("\"dsync\"", "\"auto\""),
            ("version = 1", "version = 2"),
            ("version", "= ="),
        ] {
            assert!(text.contains(from));
            assert_eq!(DeviceProbe::from_toml(&text.replacen(from, to, 1)), None, "{to}");
        }
        assert_eq!(DeviceProbe::from_toml(""), None);
    }

    #[test]
    fn sync_is_chosen_only_if_it_is_clearly_faster() {
        for (dsync_us, sync_us, expected) in [
            (100, 200, SyncMethod::Dsync),
            (100, 95, SyncMethod::Dsync),
            (100, 90, SyncMethod::Dsync),
            (100, 89, SyncMethod::Sync),
            (u64::MAX, 1, SyncMethod::Sync),
            (0, 0, SyncMethod::Dsync),
        ] {
            assert_eq!(choose(dsync_us, sync_us), expected, "{dsync_us} {sync_us}");
        }
    }
}
