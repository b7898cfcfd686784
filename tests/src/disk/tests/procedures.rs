//! Whole procedures and workloads: determinism, a crash after each request.

use super::*;

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
