//! Requests that fail, damage at rest, a full disk.

use super::*;

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
