//! What a power loss or a kill leaves of pending work.

use super::*;

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
