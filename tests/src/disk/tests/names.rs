//! Directories, links and listings.

use super::*;

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

/// The removal of one directory and the creation of another wait for one sync; the other's files
/// are durable before it is.
#[test]
fn removed_directory_takes_no_files_of_another_that_is_not_durable_yet() {
    let mut core = Core::new(22);
    core.done(DiskOperation::CreateDirectory { name: FileName::new("old") });
    core.done(sync_directory(""));
    core.done(DiskOperation::RemoveDirectory { name: FileName::new("old") });
    core.done(DiskOperation::CreateDirectory { name: FileName::new("new") });
    core.open("new/file", FileId(7), OpenMode::Create);
    core.done(sync_directory("new"));
    core.done(sync_directory(""));
    let disk = core.disk.crash(&mut Rng::with_seed(1));
    assert_eq!(names(&disk), "new/file");
}
