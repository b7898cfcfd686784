//! Proves that the simulated disk loses what it may lose and keeps what it must keep.

use std::collections::BTreeSet;

use wal::procedure::Procedure;

use super::*;

const LOG: FileId = FileId(1);

/// Issues requests one after the other, each completed before the next.
struct Core {
    disk: SimulatedDisk,
    next: u64,
}

impl Core {
    fn new(seed: u64) -> Self {
        Self { disk: SimulatedDisk::new(seed), next: 0 }
    }

    fn on(disk: SimulatedDisk) -> Self {
        Self { disk, next: 1_000 }
    }

    /// A disk with the durable file `log` of `blocks` zeroed blocks, open as [`LOG`].
    fn with_log(seed: u64, blocks: usize) -> Self {
        let mut core = Self::new(seed);
        core.disk.plant_file("log", &vec![0; blocks * BLOCK_SIZE]);
        core.open("log", LOG, OpenMode::ReadWrite);
        core
    }

    fn submit(&mut self, operation: DiskOperation) {
        self.next += 1;
        self.disk.submit(0, DiskRequest { id: RequestId(self.next), operation });
    }

    fn run(&mut self, operation: DiskOperation) -> DiskCompletion {
        assert_eq!(self.disk.in_flight(), 0, "the next completion shall be this request's");
        self.submit(operation);
        self.disk.complete_one().unwrap().1
    }

    fn done(&mut self, operation: DiskOperation) -> DiskOutput {
        self.run(operation).result.unwrap()
    }

    fn error(&mut self, operation: DiskOperation) -> DiskErrorKind {
        self.run(operation).result.unwrap_err().kind
    }

    fn open(&mut self, name: &str, file: FileId, mode: OpenMode) -> DiskOutput {
        self.done(DiskOperation::Open { file, name: FileName::new(name), mode })
    }

    fn read(&mut self, offset: u64, len: usize) -> DiskCompletion {
        self.run(DiskOperation::Read {
            file: LOG,
            offset,
            len,
            buffer: IoBuffer::with_capacity(len),
        })
    }

    fn images(&self, limit: usize) -> Vec<SimulatedDisk> {
        self.disk.crash_images(limit).collect()
    }
}

fn write(block: u64, fills: &[u8], durability: Durability) -> DiskOperation {
    let mut buffer = IoBuffer::zeroed(fills.len() * BLOCK_SIZE);
    for (chunk, fill) in buffer.as_mut_slice().chunks_mut(BLOCK_SIZE).zip(fills) {
        chunk.fill(*fill);
    }
    DiskOperation::Write { file: LOG, offset: block * BLOCK_SIZE as u64, buffer, durability }
}

fn cached(block: u64, fills: &[u8]) -> DiskOperation {
    write(block, fills, Durability::Cached)
}

fn durable(block: u64, fills: &[u8]) -> DiskOperation {
    write(block, fills, Durability::Durable)
}

fn sync() -> DiskOperation {
    DiskOperation::Sync { file: LOG }
}

fn sync_directory(name: &str) -> DiskOperation {
    DiskOperation::SyncDirectory { name: FileName::new(name) }
}

fn rename(from: &str, to: &str) -> DiskOperation {
    DiskOperation::Rename { from: FileName::new(from), to: FileName::new(to) }
}

/// First byte of each sector of a file.
fn sectors(disk: &SimulatedDisk, name: &str) -> Vec<u8> {
    disk.read_file(name).chunks(SECTOR_SIZE).map(|sector| sector[0]).collect()
}

fn names(disk: &SimulatedDisk) -> String {
    disk.files().into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

/// What `view` makes of each of `count` power losses.
fn crashes<T: Ord>(
    disk: &SimulatedDisk,
    count: u64,
    view: impl Fn(&SimulatedDisk) -> T,
) -> BTreeSet<T> {
    (0..count).map(|seed| view(&disk.crash(&mut Rng::with_seed(seed)))).collect()
}

#[test]
fn unsynced_write_is_lost_in_one_image_and_kept_in_another() {
    let mut core = Core::with_log(1, 1);
    core.done(cached(0, &[7]));
    assert_eq!(core.disk.read_file("log"), [7; BLOCK_SIZE]);
    assert_eq!(core.disk.durable_file("log").unwrap(), [0; BLOCK_SIZE]);
    let seen = crashes(&core.disk, 200, |disk| sectors(disk, "log"));
    assert!(seen.contains(&vec![0; 8]) && seen.contains(&vec![7; 8]));
    assert!(seen.len() > 10, "only {} different images", seen.len());
    core.done(sync());
    assert_eq!(crashes(&core.disk, 50, |disk| sectors(disk, "log")).len(), 1);
}

#[test]
fn durable_write_survives_every_crash_once_complete() {
    let mut core = Core::with_log(2, 4);
    core.done(durable(1, &[7, 8]));
    core.submit(durable(3, &[9]));
    let images = core.images(256);
    assert_eq!(images.len(), 256);
    let kept = |disk: &SimulatedDisk| sectors(disk, "log")[8..24] == [[7; 8], [8; 8]].concat();
    assert!(images.iter().all(kept));
    assert!(crashes(&core.disk, 100, kept).into_iter().all(|kept| kept));
    assert_eq!(core.disk.statistics().expensive_durable_writes, 0);
}

#[test]
fn durable_writes_that_do_more_than_overwrite_are_counted() {
    let mut core = Core::new(3);
    core.open("log", LOG, OpenMode::Create);
    core.done(durable(0, &[1]));
    assert_eq!(core.disk.durable_file("log"), None, "the name is not durable");
    assert_eq!(core.disk.statistics().expensive_durable_writes, 1, "extends");
    core.done(cached(2, &[0]));
    core.done(durable(2, &[2]));
    assert_eq!(core.disk.statistics().expensive_durable_writes, 2, "never synced");
    core.done(sync());
    core.done(durable(2, &[3]));
    assert_eq!(core.disk.statistics().expensive_durable_writes, 2, "overwrites");
    core.done(durable(1, &[4]));
    assert_eq!(core.disk.statistics().expensive_durable_writes, 3, "fills a hole");
    core.done(sync_directory(""));
    assert_eq!(core.disk.durable_file("log").unwrap().len(), 3 * BLOCK_SIZE);
}

#[test]
fn every_sector_image_of_a_write_is_listed_once() {
    let mut core = Core::with_log(4, 1);
    core.submit(durable(0, &[7]));
    let images = core.disk.crash_images(4096);
    assert_eq!(images.exhaustive_unit(), Some(CrashUnit::Sector));
    let images: Vec<_> = images.collect();
    let distinct: BTreeSet<_> = images.iter().map(|disk| sectors(disk, "log")).collect();
    assert_eq!((images.len(), distinct.len()), (256, 256));
    assert!(images.iter().all(|disk| disk.in_flight() == 0));
}

#[test]
fn enumeration_takes_the_finest_unit_that_fits() {
    let mut core = Core::with_log(5, 8);
    core.done(cached(0, &[1, 2, 3]));
    let images = core.disk.crash_images(8);
    assert_eq!(images.exhaustive_unit(), Some(CrashUnit::Block));
    let distinct: BTreeSet<_> = images.map(|disk| disk.read_file("log")).collect();
    assert_eq!(distinct.len(), 8);
    let images = core.disk.crash_images(5);
    assert_eq!(images.exhaustive_unit(), Some(CrashUnit::Write));
    assert_eq!(images.count(), 5, "two listed, the rest drawn");
    for block in 3..8 {
        core.done(cached(block, &[1]));
    }
    let images = core.disk.crash_images(16);
    assert_eq!((images.exhaustive_unit(), images.count()), (None, 16));
}

#[test]
fn two_writes_of_a_block_leave_old_first_or_second() {
    let mut core = Core::with_log(6, 1);
    core.done(cached(0, &[1]));
    core.done(cached(0, &[2]));
    let images = core.disk.crash_images(4);
    assert_eq!(images.exhaustive_unit(), Some(CrashUnit::Block));
    let listed: Vec<_> = images.take(3).map(|disk| sectors(&disk, "log")[0]).collect();
    assert_eq!(listed, [0, 1, 2]);
    // A newer durable write leaves no room for the older ones.
    core.done(durable(0, &[3]));
    assert_eq!(core.disk.pending_items(), 0);
    assert_eq!(core.images(4).len(), 1);
}

#[test]
fn durable_write_in_the_middle_leaves_the_rest_of_an_older_one_pending() {
    let mut core = Core::with_log(7, 4);
    core.done(cached(0, &[1, 2, 3, 4]));
    core.done(durable(1, &[8, 9]));
    assert_eq!(core.disk.pending_items(), 2 * 8);
    let mut rng = Rng::with_seed(0);
    let lost = CrashPlan { contents: Survival::Nothing, ..CrashPlan::draw(&mut rng) };
    let image = core.disk.crash_with(&mut rng, lost);
    assert_eq!(sectors(&image, "log").into_iter().step_by(8).collect::<Vec<_>>(), [0, 8, 9, 0]);
    let kept = CrashPlan { contents: Survival::All, ..lost };
    let image = core.disk.crash_with(&mut rng, kept);
    assert_eq!(sectors(&image, "log").into_iter().step_by(8).collect::<Vec<_>>(), [1, 8, 9, 4]);
}

#[test]
fn sync_does_not_cover_a_write_that_completes_after_its_submission() {
    for seed in 0..20 {
        let mut core = Core::with_log(seed, 2);
        core.done(cached(0, &[1]));
        core.submit(cached(1, &[2]));
        core.submit(sync());
        core.disk.complete_all();
        let bytes = core.disk.durable_file("log").unwrap();
        assert_eq!((bytes[0], bytes[BLOCK_SIZE]), (1, 0), "seed {seed}");
        core.done(sync());
        assert_eq!(core.disk.durable_file("log").unwrap()[BLOCK_SIZE], 2);
    }
}

#[test]
fn length_and_content_of_an_extension_are_lost_separately() {
    let mut core = Core::with_log(8, 1);
    core.done(cached(1, &[7]));
    let seen = crashes(&core.disk, 300, |disk| {
        let sectors = sectors(disk, "log");
        (sectors.len(), sectors.last().copied())
    });
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(8, Some(0)), (16, Some(0)), (16, Some(7))]);
    core.done(sync());
    assert_eq!(crashes(&core.disk, 50, |disk| sectors(disk, "log").len()), [16].into());
}

#[test]
fn synced_file_may_lose_its_name_until_the_directory_is_synced() {
    let mut core = Core::new(9);
    core.open("log", LOG, OpenMode::Create);
    core.done(cached(0, &[1]));
    core.done(sync());
    assert_eq!(crashes(&core.disk, 100, names), ["".to_owned(), "log".to_owned()].into());
    core.done(sync_directory(""));
    assert_eq!(crashes(&core.disk, 100, names), ["log".to_owned()].into());
}

#[test]
fn rename_may_vanish_until_the_directory_is_synced() {
    let mut core = Core::with_log(10, 1);
    core.done(rename("log", "moved"));
    assert_eq!(names(&core.disk), "moved");
    assert_eq!(crashes(&core.disk, 100, names), ["log".to_owned(), "moved".to_owned()].into());
    core.done(sync_directory(""));
    assert_eq!(crashes(&core.disk, 100, names), ["moved".to_owned()].into());
}

#[test]
fn rename_is_lost_with_the_creation_it_builds_on() {
    let mut core = Core::new(11);
    core.disk.plant_file("manifest", b"old");
    core.open("new", LOG, OpenMode::Create);
    core.done(cached(0, &[7]));
    core.done(sync());
    core.done(rename("new", "manifest"));
    core.done(DiskOperation::CreateDirectory { name: FileName::new("shard") });
    let images = core.disk.crash_images(8);
    assert_eq!(images.exhaustive_unit(), Some(CrashUnit::Sector));
    let images: Vec<_> = images.map(|disk| (names(&disk), disk.read_file("manifest")[0])).collect();
    let expected = [
        ("manifest".to_owned(), b'o'),
        ("manifest new".to_owned(), b'o'),
        ("manifest".to_owned(), 7),
    ];
    assert_eq!(images.len(), 6, "each with and without the directory");
    assert_eq!(images.into_iter().collect::<BTreeSet<_>>(), expected.into());
}

#[test]
fn file_vanishes_with_a_directory_that_was_never_synced() {
    let mut core = Core::new(12);
    core.done(DiskOperation::CreateDirectory { name: FileName::new("shard") });
    core.open("shard/log", LOG, OpenMode::Create);
    core.done(sync_directory("shard"));
    assert_eq!(core.disk.durable_file("shard/log"), None);
    assert_eq!(crashes(&core.disk, 100, names), ["".to_owned(), "shard/log".to_owned()].into());
    core.done(sync_directory(""));
    assert_eq!(core.disk.durable_file("shard/log"), Some(Vec::new()));
    assert_eq!(crashes(&core.disk, 100, names), ["shard/log".to_owned()].into());
}

#[test]
fn name_order_is_kept_where_the_plan_says_so() {
    let mut core = Core::new(13);
    for name in ["a", "b", "c"] {
        core.open(name, LOG, OpenMode::Create);
        core.done(DiskOperation::Close { file: LOG });
    }
    let mut rng = Rng::with_seed(0);
    let plan = CrashPlan { names: Survival::Prefix, ..CrashPlan::draw(&mut rng) };
    let prefixes: BTreeSet<_> =
        (0..100).map(|_| names(&core.disk.crash_with(&mut rng, plan))).collect();
    assert_eq!(prefixes.into_iter().collect::<Vec<_>>(), ["", "a", "a b", "a b c"]);
    let plan = CrashPlan { names: Survival::Percent(50), ..plan };
    let subsets: BTreeSet<_> =
        (0..200).map(|_| names(&core.disk.crash_with(&mut rng, plan))).collect();
    assert_eq!(subsets.len(), 8);
}

#[test]
fn emptied_file_comes_back_whole_until_synced() {
    let mut core = Core::new(14);
    core.disk.plant_file("log", &[5; BLOCK_SIZE]);
    core.open("log", LOG, OpenMode::Create);
    assert_eq!(core.disk.files(), [("log".to_owned(), 0)]);
    assert_eq!(crashes(&core.disk, 50, |disk| disk.read_file("log").len()), [0, BLOCK_SIZE].into());
    core.done(sync());
    assert_eq!(crashes(&core.disk, 50, |disk| disk.read_file("log").len()), [0].into());
}

#[test]
fn prefix_crash_keeps_a_prefix_of_sectors() {
    let mut core = Core::with_log(15, 2);
    core.submit(durable(0, &[7, 7]));
    let mut rng = Rng::with_seed(0);
    let plan = CrashPlan { contents: Survival::Prefix, ..CrashPlan::draw(&mut rng) };
    let kept: BTreeSet<_> = (0..400)
        .map(|_| {
            let sectors = sectors(&core.disk.crash_with(&mut rng, plan), "log");
            let kept = sectors.iter().take_while(|fill| **fill == 7).count();
            assert!(sectors[kept..].iter().all(|fill| *fill == 0));
            kept
        })
        .collect();
    assert_eq!(kept.len(), 17);
}

#[test]
fn lost_sectors_hold_noise_and_exposed_blocks_stale_content_where_the_plan_says_so() {
    let mut core = Core::with_log(16, 1);
    core.disk.plant_file("other", &[9; BLOCK_SIZE]);
    core.done(cached(0, &[7, 7]));
    let mut rng = Rng::with_seed(0);
    let plan = CrashPlan {
        contents: Survival::Percent(50),
        names: Survival::All,
        unit: CrashUnit::Block,
        lost: LostSector::Old,
        exposed: ExposedBlock::Stale,
    };
    let fills = |rng: &mut Rng, plan| {
        let images = (0..100).flat_map(|_| sectors(&core.disk.crash_with(rng, plan), "log"));
        images.collect::<BTreeSet<_>>()
    };
    assert_eq!(fills(&mut rng, plan), [0, 7, 9].into());
    let noisy = CrashPlan { lost: LostSector::SometimesGarbage, ..plan };
    assert!(fills(&mut rng, noisy).len() > 20);
}

#[test]
fn process_kill_keeps_completed_writes_and_leaves_them_undurable() {
    let mut core = Core::with_log(17, 8);
    core.done(cached(0, &[1]));
    core.submit(durable(1, &[2, 2, 2]));
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let killed = core.disk.process_kill(&mut Rng::with_seed(seed));
        let sectors = sectors(&killed, "log");
        assert_eq!(sectors[0], 1);
        assert!(sectors.chunks(8).all(|block| block.iter().all(|fill| *fill == block[0])));
        seen.insert(sectors[8..32].to_vec());
        assert_eq!(killed.durable_file("log").unwrap(), vec![0; 8 * BLOCK_SIZE]);
        assert!(crashes(&killed, 20, |disk| disk.read_file("log")).len() > 1);
    }
    assert_eq!(seen.len(), 8, "none, all, and every part");
}

#[test]
fn failed_sync_leaves_its_writes_in_doubt_for_ever() {
    let mut core = Core::with_log(18, 2);
    core.done(cached(0, &[1]));
    core.disk.fail_nth(1, OperationKind::Sync, DiskErrorKind::Io, false);
    assert_eq!(core.error(sync()), DiskErrorKind::Io);
    core.done(cached(1, &[2]));
    core.done(sync());
    let bytes = core.disk.durable_file("log").unwrap();
    assert_eq!((bytes[0], bytes[BLOCK_SIZE]), (0, 2));
    assert_eq!(core.disk.pending_items(), 8);
    core.done(durable(0, &[3]));
    assert_eq!(core.disk.pending_items(), 0);
}

#[test]
fn nth_request_fails_once_or_from_then_on() {
    for sticky in [false, true] {
        let mut core = Core::with_log(19, 2);
        core.disk.fail_nth(2, OperationKind::Write, DiskErrorKind::NoSpace, sticky);
        core.done(cached(0, &[1]));
        let completion = core.run(cached(0, &[2]));
        assert_eq!(
            completion.result.unwrap_err(),
            DiskError { kind: DiskErrorKind::NoSpace, code: 28 }
        );
        assert_eq!(completion.buffer.unwrap().as_slice(), [2; BLOCK_SIZE]);
        assert_eq!(sectors(&core.disk, "log")[0], 1, "nothing was written");
        assert_eq!(core.run(cached(0, &[3])).result.is_err(), sticky);
        core.disk.clear_faults();
        core.done(cached(0, &[4]));
        core.done(sync());
    }
}

#[test]
fn failed_write_lands_in_part_and_no_sync_covers_it() {
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let mut core = Core::with_log(seed, 3);
        core.disk.fail_nth(1, OperationKind::Write, DiskErrorKind::Io, false);
        assert_eq!(core.error(durable(0, &[1, 1, 1])), DiskErrorKind::Io);
        core.done(sync());
        assert_eq!(core.disk.durable_file("log").unwrap(), vec![0; 3 * BLOCK_SIZE]);
        seen.insert(sectors(&core.disk, "log"));
    }
    assert_eq!(seen.len(), 8);
}

#[test]
fn unreadable_block_fails_until_overwritten() {
    let mut core = Core::with_log(20, 2);
    core.disk.fail_reads("log", 100, 1);
    let completion = core.read(0, 2 * BLOCK_SIZE);
    assert_eq!(completion.result.unwrap_err().kind, DiskErrorKind::Io);
    assert!(completion.buffer.unwrap().is_empty());
    assert_eq!(core.read(BLOCK_SIZE as u64, BLOCK_SIZE).result, Ok(DiskOutput::Done));
    let mut core = Core::on(core.disk.crash(&mut Rng::with_seed(0)));
    core.open("log", LOG, OpenMode::ReadWrite);
    assert!(core.read(0, BLOCK_SIZE).result.is_err(), "a crash mends nothing");
    core.done(cached(0, &[1]));
    assert_eq!(core.read(0, BLOCK_SIZE).buffer.unwrap().as_slice(), [1; BLOCK_SIZE]);
}

#[test]
fn damage_at_rest_shows_in_both_views() {
    let mut core = Core::with_log(21, 2);
    core.done(durable(0, &[1, 1]));
    let disk = &mut core.disk;
    disk.flip_byte("log", 5, 0x80);
    disk.zero_sector("log", 4095);
    disk.overwrite_at_rest("log", 4090, b"across blocks");
    let bytes = disk.read_file("log");
    assert_eq!(disk.durable_file("log").unwrap(), bytes);
    assert_eq!((bytes[4], bytes[5]), (1, 0x81));
    assert!(bytes[3584..4090].iter().all(|byte| *byte == 0));
    assert_eq!(&bytes[4090..4103], b"across blocks");
    assert_eq!((bytes[3583], bytes[4103]), (1, 1));
}

#[test]
fn write_goes_astray_or_nowhere_and_reports_success() {
    let mut core = Core::with_log(22, 3);
    core.disk.misdirect_next_write(2 * BLOCK_SIZE as u64);
    core.done(durable(0, &[1]));
    core.disk.lose_next_write();
    core.done(durable(1, &[2]));
    core.done(durable(1, &[0]));
    let fills: Vec<_> = sectors(&core.disk, "log").into_iter().step_by(8).collect();
    assert_eq!(fills, [0, 0, 1]);
    assert_eq!(core.disk.durable_file("log").unwrap(), core.disk.read_file("log"));
    core.disk.lose_next_write();
    core.done(durable(3, &[2]));
    assert_eq!(core.disk.durable_file("log").unwrap().len(), 4 * BLOCK_SIZE);
}

#[test]
fn full_disk_refuses_creations_and_extensions_only() {
    let mut core = Core::with_log(23, 2);
    core.disk.set_capacity(Some(3 * BLOCK_SIZE as u64));
    assert_eq!(core.error(cached(2, &[1, 1])), DiskErrorKind::NoSpace);
    assert_eq!(core.disk.files(), [("log".to_owned(), 2 * BLOCK_SIZE as u64)]);
    core.done(cached(2, &[1]));
    assert_eq!(core.error(cached(3, &[1])), DiskErrorKind::NoSpace);
    core.done(durable(0, &[1, 1, 1]));
    let create = |name| DiskOperation::Open {
        file: FileId(2),
        name: FileName::new(name),
        mode: OpenMode::Create,
    };
    assert_eq!(core.error(create("more")), DiskErrorKind::NoSpace);
    assert_eq!(names(&core.disk), "log");
    core.done(DiskOperation::Remove { name: FileName::new("log") });
    assert_eq!(core.error(create("more")), DiskErrorKind::NoSpace, "still open");
    core.done(DiskOperation::Close { file: LOG });
    core.done(create("more"));
}

#[test]
fn extensions_in_flight_reserve_their_space() {
    let mut core = Core::with_log(24, 1);
    core.disk.set_capacity(Some(2 * BLOCK_SIZE as u64));
    core.submit(cached(1, &[1]));
    core.submit(cached(2, &[1]));
    let failed: Vec<_> =
        core.disk.complete_all().into_iter().map(|(_, done)| done.result.is_err()).collect();
    assert_eq!(failed.iter().filter(|failed| **failed).count(), 1);
}

#[test]
fn read_ends_with_the_file_and_returns_the_buffer() {
    let mut core = Core::new(25);
    core.disk.plant_file("log", &[3; 5000]);
    assert_eq!(core.open("log", LOG, OpenMode::Read), DiskOutput::Opened { len: 5000 });
    assert_eq!(core.read(0, 4 * BLOCK_SIZE).buffer.unwrap().as_slice(), [3; 5000]);
    assert_eq!(core.read(BLOCK_SIZE as u64, BLOCK_SIZE).buffer.unwrap().len(), 904);
    assert_eq!(core.read(8 * BLOCK_SIZE as u64, BLOCK_SIZE).buffer.unwrap().len(), 0);
}

#[test]
fn listing_names_the_files_of_one_directory() {
    let mut core = Core::new(26);
    core.disk.plant_file("LOCK", b"");
    core.disk.plant_file("shard/a", b"12");
    core.disk.plant_file("shard/b", b"3");
    let listed = core.done(DiskOperation::ListDirectory { name: FileName::new("shard") });
    let DiskOutput::Listed(mut listed) = listed else { panic!("{listed:?}") };
    listed.sort();
    assert_eq!(listed, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
    let missing = DiskOperation::ListDirectory { name: FileName::new("none") };
    assert_eq!(core.error(missing), DiskErrorKind::NotFound);
    let missing = DiskOperation::Remove { name: FileName::new("none") };
    assert_eq!(core.error(missing), DiskErrorKind::NotFound);
    assert_eq!(core.error(rename("none", "some")), DiskErrorKind::NotFound);
}

#[test]
fn renamed_and_rewritten_file_may_show_its_old_content() {
    let mut core = Core::with_log(42, 2);
    core.done(durable(0, &[1, 1]));
    core.done(rename("log", "recycled"));
    core.done(sync_directory(""));
    core.done(cached(0, &[2, 2]));
    let seen = crashes(&core.disk, 200, |disk| sectors(disk, "recycled"));
    assert!(seen.contains(&vec![1; 16]) && seen.contains(&vec![2; 16]));
}

#[test]
fn native_sectors_of_4_kib_do_not_tear() {
    let mut core = Core::with_log(43, 3);
    core.disk.set_sector_size(SectorSize::Bytes4096);
    core.done(cached(0, &[7, 7, 7]));
    assert_eq!(core.disk.pending_items(), 3);
    let whole =
        |sectors: &[u8]| sectors.chunks(8).all(|block| block.iter().all(|s| *s == block[0]));
    let mut rng = Rng::with_seed(43);
    for _ in 0..300 {
        let lost = LostSector::SometimesGarbage;
        let plan = CrashPlan { lost, ..CrashPlan::draw(&mut rng) };
        let image = core.disk.crash_with(&mut rng, plan);
        let bytes = image.read_file("log");
        for block in bytes.chunks(BLOCK_SIZE) {
            let noise = block[0] != block[1] || block[1] != block[2];
            assert!(noise || block.iter().all(|byte| *byte == block[0]));
        }
    }
    let images = core.images(4096);
    assert_eq!(images.len(), 8);
    assert!(images.iter().all(|image| whole(&sectors(image, "log"))));
}

#[test]
fn past_write_goes_astray_at_rest() {
    let mut core = Core::with_log(44, 4);
    core.done(durable(0, &[1]));
    core.done(durable(0, &[2]));
    core.done(durable(1, &[3]));
    let writes = core.disk.past_writes();
    assert_eq!((writes.len(), writes[1].offset, writes[1].len), (3, 0, BLOCK_SIZE));
    core.disk.misdirect_at_rest(&writes[1], Some(("log", 3 * BLOCK_SIZE as u64)));
    let fills: Vec<_> = sectors(&core.disk, "log").into_iter().step_by(8).collect();
    assert_eq!(fills, [1, 3, 0, 2]);
    core.disk.misdirect_at_rest(&writes[2], None);
    let bytes = core.disk.durable_file("log").unwrap();
    assert_eq!((bytes[0], bytes[BLOCK_SIZE]), (1, 0));
}

#[test]
fn planned_failure_tells_its_error_number() {
    let mut core = Core::with_log(45, 1);
    let quota = DiskError { kind: DiskErrorKind::NoSpace, code: 122 };
    core.disk.fail_nth_with(1, OperationKind::Write, quota, false);
    assert_eq!(core.run(cached(0, &[1])).result.unwrap_err(), quota);
}

/// A mixed workload with several requests in flight; returns the order of completions.
fn churn(core: &mut Core, requests: Range<u64>) -> Vec<RequestId> {
    let mut order = Vec::new();
    for index in requests {
        let fill = u8::try_from(index % 251).unwrap();
        core.submit(match index % 4 {
            0 => cached(index % 1000, &[fill, fill]),
            1 => sync(),
            _ => durable(index % 1000 + 8, &[fill]),
        });
        if core.disk.in_flight() >= 3 {
            order.extend(core.disk.complete_all().into_iter().map(|(_, done)| done.id));
        }
    }
    order
}

#[test]
fn same_seed_gives_same_state_and_another_gives_another() {
    let run = |seed| {
        let mut core = Core::with_log(seed, 1024);
        let order = churn(&mut core, 0..100);
        let crashed = core.disk.crash(&mut Rng::with_seed(seed));
        (order, core.disk.hash(), crashed.hash())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
    assert_ne!(run(1).1, run(2).1);
    assert_ne!(run(1).2, run(2).2);
}

#[test]
fn completion_order_is_not_submission_order() {
    let mut core = Core::with_log(27, 1024);
    let order = churn(&mut core, 0..100);
    assert!(!order.is_sorted());
    let mut sorted = order.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), order.len());
}

#[test]
fn clones_do_not_touch_each_other() {
    let mut core = Core::with_log(28, 4);
    core.done(cached(0, &[1]));
    core.submit(durable(1, &[2]));
    let before = core.disk.hash();
    let mut twin = Core::on(core.disk.clone());
    assert_eq!(twin.disk.hash(), before);
    let buffer = twin.disk.complete_one().unwrap().1.buffer.unwrap();
    assert_eq!(buffer.as_slice(), [2; BLOCK_SIZE]);
    twin.done(durable(0, &[9]));
    twin.disk.flip_byte("log", 3, 1);
    twin.done(DiskOperation::Remove { name: FileName::new("log") });
    assert_eq!(core.disk.hash(), before);
    core.disk.complete_all();
    assert_eq!(sectors(&core.disk, "log")[..9], [1, 1, 1, 1, 1, 1, 1, 1, 2]);
}

/// The size that crash enumeration needs: a segment and a crash at each of 200 requests.
#[test]
fn crash_at_every_request_of_a_segment() {
    let mut core = Core::new(29);
    core.open("log", LOG, OpenMode::Create);
    for piece in 0..4 {
        core.done(cached(piece * 256, &[0; 256]));
    }
    core.done(sync());
    core.done(sync_directory(""));
    let mut rng = Rng::with_seed(29);
    for index in 0..200 {
        churn(&mut core, index..index + 1);
        let before = core.disk.request_count();
        let image = core.disk.clone().crash(&mut rng);
        assert_eq!((image.in_flight(), core.disk.request_count()), (0, before));
        assert_eq!(image.files(), [("log".to_owned(), 4 << 20)]);
    }
    assert_eq!(core.disk.statistics().expensive_durable_writes, 0);
}

/// Writes one block, syncs, renames; the shape of a manifest's replacement.
async fn replace(port: wal::procedure::DiskPort) -> Result<(), DiskError> {
    let name = FileName::new("log");
    port.call(DiskOperation::Open { file: LOG, name, mode: OpenMode::Create }).await?;
    port.transfer(cached(0, &[1])).await?;
    port.call(sync()).await?;
    port.call(rename("log", "manifest")).await?;
    port.call(sync_directory("")).await?;
    Ok(())
}

#[test]
fn procedure_runs_to_its_end_or_stops_after_any_request() {
    let mut disk = SimulatedDisk::new(30);
    assert_eq!(run_procedure(&mut disk, 3, &mut Procedure::new(replace)), Ok(()));
    assert_eq!(disk.durable_file("manifest").unwrap(), [1; BLOCK_SIZE]);
    for stop in 0..=5 {
        let mut disk = SimulatedDisk::new(30);
        disk.plant_file("manifest", b"old");
        let done = run_procedure_until(&mut disk, 3, &mut Procedure::new(replace), stop);
        assert_eq!((done.is_some(), disk.in_flight()), (stop == 5, usize::from(stop < 5)));
        for image in disk.crash_images(4096) {
            let manifest = image.read_file("manifest");
            assert!(manifest == b"old" || manifest == [1; BLOCK_SIZE], "after {stop} requests");
            assert!(stop < 5 || manifest != b"old");
        }
    }
}

/// The model must catch the two classic mistakes in the same procedure.
#[test]
fn missing_sync_before_a_rename_is_caught() {
    let mut core = Core::new(31);
    core.disk.plant_file("manifest", b"old");
    core.open("log", LOG, OpenMode::Create);
    core.done(cached(0, &[1]));
    core.done(rename("log", "manifest"));
    core.done(sync_directory(""));
    let torn = |image: SimulatedDisk| image.read_file("manifest") != [1; BLOCK_SIZE];
    assert!(core.images(4096).into_iter().any(torn));
}

fn bug_of(operations: impl IntoIterator<Item = DiskOperation>) {
    let mut core = Core::with_log(32, 4);
    for operation in operations {
        core.submit(operation);
    }
}

#[test]
#[should_panic(expected = "overlaps, without order")]
fn overlapping_writes_in_flight_are_a_bug() {
    bug_of([cached(0, &[1, 1]), cached(1, &[2])]);
}

#[test]
#[should_panic(expected = "overlaps, without order")]
fn reading_what_is_being_written_is_a_bug() {
    let buffer = IoBuffer::with_capacity(BLOCK_SIZE);
    let read = DiskOperation::Read { file: LOG, offset: 0, len: BLOCK_SIZE, buffer };
    bug_of([cached(0, &[1]), read]);
}

#[test]
#[should_panic(expected = "is not made of whole blocks")]
fn misaligned_offset_is_a_bug() {
    let buffer = IoBuffer::zeroed(1);
    bug_of([DiskOperation::Write {
        file: LOG,
        offset: 512,
        buffer,
        durability: Durability::Cached,
    }]);
}

#[test]
#[should_panic(expected = "FileId(9) of core 0 is not open")]
fn unknown_file_is_a_bug() {
    bug_of([DiskOperation::Sync { file: FileId(9) }]);
}

#[test]
#[should_panic(expected = "is being closed")]
fn use_after_close_is_a_bug() {
    bug_of([DiskOperation::Close { file: LOG }, sync()]);
}

#[test]
#[should_panic(expected = "is closed while")]
fn closing_with_requests_in_flight_is_a_bug() {
    bug_of([sync(), DiskOperation::Close { file: LOG }]);
}

#[test]
#[should_panic(expected = "uses, without order, a name")]
fn one_name_in_two_requests_is_a_bug() {
    bug_of([rename("log", "a"), DiskOperation::Remove { name: FileName::new("a") }]);
}

fn link(from: &str, to: &str) -> DiskOperation {
    DiskOperation::Link { from: FileName::new(from), to: FileName::new(to) }
}

#[test]
fn link_is_a_second_name_that_the_directory_sync_makes_durable() {
    let mut core = Core::with_log(1, 1);
    let name = FileName::new("copy");
    core.done(DiskOperation::CreateDirectory { name });
    core.done(sync_directory(""));
    assert_eq!(core.error(link("missing", "copy/log")), DiskErrorKind::NotFound);
    assert_eq!(core.error(link("log", "missing/log")), DiskErrorKind::NotFound);
    core.done(link("log", "copy/log"));
    assert_eq!(core.error(link("log", "copy/log")), DiskErrorKind::Io);
    let seen: BTreeSet<String> = core.images(64).iter().map(names).collect();
    assert_eq!(seen, BTreeSet::from(["log".to_owned(), "copy/log log".to_owned()]));

    core.done(sync_directory("copy"));
    core.done(durable(0, &[7]));
    core.done(DiskOperation::Remove { name: FileName::new("log") });
    core.done(sync_directory(""));
    let disk = core.disk.crash(&mut Rng::with_seed(1));
    assert_eq!(names(&disk), "copy/log");
    assert_eq!(sectors(&disk, "copy/log"), [7; 8], "one content under both names");
}

#[test]
fn directory_is_removed_when_empty_and_what_was_pending_in_it_does_not_come_back() {
    let mut core = Core::new(1);
    let inner = || FileName::new("inner");
    core.disk.plant_file("inner/log", &[1; BLOCK_SIZE]);
    let remove = || DiskOperation::RemoveDirectory { name: inner() };
    assert_eq!(core.error(remove()), DiskErrorKind::Io);
    core.done(DiskOperation::Remove { name: FileName::new("inner/log") });
    core.done(remove());
    assert_eq!(core.error(remove()), DiskErrorKind::NotFound);
    let seen: BTreeSet<String> = core.images(64).iter().map(names).collect();
    assert_eq!(seen, BTreeSet::from([String::new(), "inner/log".to_owned()]));

    // The removal of the file was never synced, but that of its directory is.
    core.done(sync_directory(""));
    core.done(DiskOperation::CreateDirectory { name: inner() });
    for image in core.images(64) {
        assert_eq!(names(&image), "");
    }
}

#[test]
fn mapping_is_a_copy_and_an_unreadable_block_fails_it() {
    let mut core = Core::with_log(1, 2);
    core.done(durable(0, &[1, 2]));
    let map = |blocks: usize| DiskOperation::Map { file: LOG, len: blocks * BLOCK_SIZE };
    let completion = core.run(map(2));
    assert_eq!(completion.result, Ok(DiskOutput::Done));
    let mut mapped = completion.buffer.unwrap();
    assert_eq!((mapped.as_slice()[0], mapped.as_slice()[BLOCK_SIZE]), (1, 2));
    mapped.as_mut_slice().fill(9);
    assert_eq!(core.disk.read_file("log")[0], 1);
    assert_eq!(core.error(map(3)), DiskErrorKind::Io);
    core.disk.fail_reads("log", BLOCK_SIZE as u64, 1);
    let completion = core.run(map(2));
    assert!(completion.result.is_err() && completion.buffer.is_none());
}
