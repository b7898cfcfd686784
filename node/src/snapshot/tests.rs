//! Tests of snapshots at rest, on ordinary files.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use storage::{FileContent, FileTail};

use super::at_rest::{SnapshotError, delete, list, lock, open, remove_unfinished, verify};
use super::copy::{OnDamage, Scratch, copy, restore};
use super::{CATALOG_FILE, Catalog, CatalogFile};

/// Makes a snapshot with these files, of which one byte fewer than there are is used.
fn make(home: &Path, id: &str, created_ms: u64, files: &[(&str, &[u8])]) {
    let directory = home.join(id);
    fs::create_dir_all(&directory).unwrap();
    let file = |(name, bytes): &(&str, &[u8])| {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        let used = &bytes[..bytes.len() - 1];
        CatalogFile {
            name: (*name).to_owned(),
            len: bytes.len() as u64,
            content: FileContent {
                used: used.len() as u64,
                crc32: crc32fast::hash(used),
                tail: None,
            },
        }
    };
    let files = files.iter().map(file).collect();
    let catalog = Catalog { id: id.to_owned(), created_ms, store: [1; 16], files };
    fs::write(directory.join(CATALOG_FILE), catalog.encode()).unwrap();
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

const FILES: [(&str, &[u8]); 2] = [("shard-00/a", b"first file\0"), ("shard-00/b", b"second\0")];

#[test]
fn snapshots_are_listed_by_age_and_strangers_left_out() {
    let home = home();
    assert!(list(&home.path().join("none")).unwrap().is_empty());
    make(home.path(), "newer", 2, &FILES);
    make(home.path(), "older", 1, &[]);
    fs::write(home.path().join("file"), "x").unwrap();
    fs::create_dir(home.path().join(".newest.unfinished")).unwrap();
    let found = list(home.path()).unwrap();
    let ids: Vec<String> = found.into_iter().map(|found| found.unwrap().id).collect();
    assert_eq!(ids, ["older", "newer"]);
}

#[test]
fn what_is_unfinished_is_removed_and_nothing_else() {
    let home = home();
    remove_unfinished(&home.path().join("none")).unwrap();
    make(home.path(), "x.unfinished", 1, &FILES);
    make(home.path(), ".y.unfinished", 1, &FILES);
    fs::create_dir(home.path().join(".other")).unwrap();
    remove_unfinished(home.path()).unwrap();
    assert!(
        home.path().join("x.unfinished/shard-00/b").exists() && home.path().join(".other").exists()
    );
    assert!(!home.path().join(".y.unfinished").exists());
}

#[test]
fn damage_is_found_in_used_bytes_lengths_and_missing_files() {
    let home = home();
    make(home.path(), "s", 1, &FILES);
    let (snapshot, mut read) = (home.path().join("s"), 0);
    assert!(verify(&snapshot, &mut |bytes| read += bytes).unwrap().is_empty());
    assert_eq!(read, 16);
    fs::write(snapshot.join("shard-00/b"), b"secondX").unwrap();
    assert!(verify(&snapshot, &mut |_| ()).unwrap().is_empty(), "beyond the used bytes");
    fs::write(snapshot.join("shard-00/b"), b"sXcond\0").unwrap();
    fs::write(snapshot.join("shard-00/a"), b"first file").unwrap();
    assert_eq!(verify(&snapshot, &mut |_| ()).unwrap().len(), 2);
    fs::remove_file(snapshot.join("shard-00/b")).unwrap();
    assert_eq!(verify(&snapshot, &mut |_| ()).unwrap().len(), 2);
    fs::remove_file(snapshot.join(CATALOG_FILE)).unwrap();
    let missing = verify(&snapshot, &mut |_| ());
    assert!(matches!(missing, Err(SnapshotError::Missing { .. })));
}

#[test]
fn copies_are_whole_or_not_there() {
    let home = home();
    make(home.path(), "s", 1, &FILES);
    let (from, to) = (home.path().join("s"), home.path().join("copy"));
    restore(&from, &to, OnDamage::Refuse, &mut |_| ()).unwrap();
    assert_eq!(fs::read(to.join("shard-00/a")).unwrap(), b"first file\0");
    assert!(!to.join(CATALOG_FILE).exists());
    let again = restore(&from, &to, OnDamage::Refuse, &mut |_| ());
    assert!(matches!(again, Err(SnapshotError::NotEmpty { .. })));
    fs::write(from.join("shard-00/b"), b"sXcond\0").unwrap();
    let damaged = restore(&from, &home.path().join("bad"), OnDamage::Refuse, &mut |_| ());
    assert!(matches!(damaged, Err(SnapshotError::Damaged { .. })));
    let mut names: Vec<_> =
        fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["copy", "s"]);
}

#[test]
fn deleting_one_leaves_what_it_shares() {
    let home = home();
    make(home.path(), "one", 1, &FILES);
    let (one, two) = (home.path().join("one"), home.path().join("two"));
    make(home.path(), "two", 2, &[]);
    fs::create_dir(two.join("shard-00")).unwrap();
    for (name, _) in FILES {
        fs::hard_link(one.join(name), two.join(name)).unwrap();
    }
    let files = open(&one).unwrap().files;
    let catalog = Catalog { files, ..open(&two).unwrap() };
    fs::write(two.join(CATALOG_FILE), catalog.encode()).unwrap();
    delete(&one).unwrap();
    assert!(!one.exists() && verify(&two, &mut |_| ()).unwrap().is_empty());
    assert!(matches!(delete(&one), Err(SnapshotError::Missing { .. })));
}

#[test]
fn second_copy_links_what_the_first_brought() {
    let (home, away) = (home(), home());
    make(home.path(), "one", 1, &FILES);
    make(home.path(), "two", 2, &[FILES[0], ("shard-00/b", b"changed\0")]);
    for id in ["one", "two"] {
        let (from, to) = (home.path().join(id), away.path().join(id));
        copy(&from, away.path(), &mut |_| ()).unwrap();
        assert!(verify(&to, &mut |_| ()).unwrap().is_empty());
        assert_eq!(open(&to).unwrap(), open(&from).unwrap());
    }
    let links = |file: &str| fs::metadata(away.path().join("two").join(file)).unwrap().nlink();
    assert_eq!((links("shard-00/a"), links("shard-00/b")), (2, 1));
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

/// A snapshot "s" and what a restore of it that was cut short has left for `to`.
fn cut_short() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let home = home();
    make(home.path(), "s", 1, &FILES);
    let (from, to) = (home.path().join("s"), home.path().join("to"));
    let left = home.path().join(".to.unfinished");
    fs::create_dir_all(left.join("shard-00")).unwrap();
    fs::write(left.join("shard-00/a"), FILES[0].1).unwrap();
    fs::write(left.join("shard-00/b"), b"sec").unwrap();
    fs::write(left.join("shard-00/stranger.segment"), b"of another snapshot").unwrap();
    (home, from, to)
}

#[test]
fn what_was_cut_short_goes_on_with_the_files_that_are_whole() {
    let (_home, from, to) = cut_short();
    let made = restore(&from, &to, OnDamage::Refuse, &mut |_| ()).unwrap();
    assert_eq!((made.kept, made.copied), (10, 6));
    assert_eq!(names(&to), ["shard-00"]);
    assert_eq!(names(&to.join("shard-00")), ["a", "b"]);
    assert_eq!(fs::read(to.join("shard-00/b")).unwrap(), b"second\0");
}

#[test]
fn unfinished_work_of_another_process_is_left_alone() {
    let (home, from, to) = cut_short();
    let left = home.path().join(".to.unfinished");
    let locked = lock(&left).unwrap();
    let busy = restore(&from, &to, OnDamage::Refuse, &mut |_| ());
    assert!(matches!(busy, Err(SnapshotError::Busy { .. })));
    remove_unfinished(home.path()).unwrap();
    assert!(matches!(delete(&to), Err(SnapshotError::Busy { .. })));
    assert_eq!(names(&left.join("shard-00")), ["a", "b", "stranger.segment"]);
    drop(locked);
    delete(&to).unwrap();
    assert!(!left.exists() && from.exists());
}

#[test]
fn restored_directory_takes_the_place_of_an_empty_one_alone() {
    let home = home();
    make(home.path(), "s", 1, &FILES);
    let (from, to) = (home.path().join("s"), home.path().join("to"));
    fs::create_dir(&to).unwrap();
    fs::write(to.join("precious"), "x").unwrap();
    let refused = restore(&from, &to, OnDamage::Refuse, &mut |_| ());
    assert!(matches!(refused, Err(SnapshotError::NotEmpty { .. })));
    assert_eq!(names(&to), ["precious"]);
    let refused = restore(&from, &to.join("precious"), OnDamage::Refuse, &mut |_| ());
    assert!(matches!(refused, Err(SnapshotError::Exists { .. })));
    let refused = restore(&from, &home.path().join(".."), OnDamage::Refuse, &mut |_| ());
    assert!(matches!(refused, Err(SnapshotError::NotEmpty { .. } | SnapshotError::Unnamed { .. })));
    fs::remove_file(to.join("precious")).unwrap();
    restore(&from, &to, OnDamage::Refuse, &mut |_| ()).unwrap();
    assert_eq!(names(&to.join("shard-00")), ["a", "b"]);
    assert_eq!(names(home.path()), ["s", "to"]);
}

#[test]
fn damaged_files_are_restored_only_if_that_is_asked_for() {
    let home = home();
    make(home.path(), "s", 1, &[FILES[0], FILES[1], ("shard-01/c", b"third\0")]);
    let (from, to) = (home.path().join("s"), home.path().join("to"));
    fs::write(from.join("shard-00/a"), b"first fiXe\0").unwrap();
    fs::write(from.join("shard-00/b"), b"sec").unwrap();
    fs::remove_file(from.join("shard-01/c")).unwrap();
    let refused = restore(&from, &to, OnDamage::Refuse, &mut |_| ());
    assert!(matches!(refused, Err(SnapshotError::Damaged { .. })));
    let made = restore(&from, &to, OnDamage::Copy, &mut |_| ()).unwrap();
    assert_eq!(made.damaged.len(), 3);
    assert_eq!(fs::read(to.join("shard-00/a")).unwrap(), b"first fiXe\0");
    assert_eq!(fs::read(to.join("shard-00/b")).unwrap(), b"sec\0\0\0\0");
    assert_eq!(names(&to.join("shard-01")), [""; 0]);
}

#[test]
fn footers_are_verified_and_copied_and_what_is_between_is_not() {
    let home = home();
    make(home.path(), "s", 1, &[("shard-00/a", b"frames ? footer")]);
    let (from, to) = (home.path().join("s"), home.path().join("to"));
    let mut catalog = open(&from).unwrap();
    let tail = Some(FileTail { offset: 9, crc32: crc32fast::hash(b"footer") });
    catalog.files[0].content = FileContent { used: 6, crc32: crc32fast::hash(b"frames"), tail };
    fs::write(from.join(CATALOG_FILE), catalog.encode()).unwrap();
    restore(&from, &to, OnDamage::Refuse, &mut |_| ()).unwrap();
    assert_eq!(fs::read(to.join("shard-00/a")).unwrap(), b"frames\0\0\0footer");
    let path = from.join("shard-00/a");
    for (bytes, sound) in [(b"frames!!!footer", true), (b"frames ? fooXer", false)] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(verify(&from, &mut |_| ()).unwrap().is_empty(), sound);
    }
}

#[test]
fn only_snapshots_are_deleted() {
    let home = home();
    make(home.path(), "s", 1, &FILES);
    fs::create_dir(home.path().join("photos")).unwrap();
    fs::write(home.path().join("photos/one"), "x").unwrap();
    let refused = delete(&home.path().join("photos"));
    assert!(matches!(refused, Err(SnapshotError::NotASnapshot { .. })));
    // One whose catalog is damaged is of no other use.
    fs::write(home.path().join("s").join(CATALOG_FILE), "x").unwrap();
    delete(&home.path().join("s")).unwrap();
    assert_eq!(names(home.path()), ["photos"]);
}

#[test]
fn another_stores_files_and_files_of_another_length_are_not_linked() {
    let (away, home) = (home(), home());
    make(home.path(), "one", 1, &FILES);
    make(home.path(), "two", 2, &FILES);
    copy(&home.path().join("one"), away.path(), &mut |_| ()).unwrap();
    fs::write(away.path().join("one/shard-00/b"), b"sec").unwrap();
    let made = copy(&home.path().join("two"), away.path(), &mut |_| ()).unwrap();
    assert_eq!((made.linked, made.copied), (10, 6));
    let third = home.path().join("third");
    make(home.path(), "third", 3, &FILES);
    let catalog = Catalog { store: [2; 16], ..open(&third).unwrap() };
    fs::write(third.join(CATALOG_FILE), catalog.encode()).unwrap();
    let made = copy(&third, away.path(), &mut |_| ()).unwrap();
    assert_eq!((made.linked, made.copied), (0, 16));
}

/// As in stores of which one was restored from a snapshot of the other: bytes that are followed by
/// their own CRC-32 do not count in the CRC-32 of the whole.
#[test]
fn files_of_the_same_sum_and_other_content_are_neither_linked_nor_kept() {
    let sealed = |body: &[u8]| {
        let crc = crc32fast::hash(body).to_le_bytes();
        [body, &crc, b"\0"].concat()
    };
    let (one, two) = (sealed(b"one"), sealed(b"two"));
    let (away, home) = (home(), home());
    make(home.path(), "one", 1, &[("shard-00/a", &one), ("shard-00/manifest-0", &one)]);
    make(home.path(), "two", 2, &[("shard-00/a", &two), ("shard-00/manifest-0", &one)]);
    let sum = |id: &str| open(&home.path().join(id)).unwrap().files[0].content.crc32;
    assert_eq!(sum("one"), sum("two"));
    copy(&home.path().join("one"), away.path(), &mut |_| ()).unwrap();
    let left = away.path().join(".two.unfinished/shard-00");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("a"), &one).unwrap();
    let made = copy(&home.path().join("two"), away.path(), &mut |_| ()).unwrap();
    assert_eq!((made.copied, made.linked, made.kept), (14, 0, 0));
    assert_eq!(fs::read(away.path().join("two/shard-00/a")).unwrap(), two);
}

#[test]
fn scratch_directory_shares_all_but_manifests_and_goes() {
    let home = home();
    let manifest = ("shard-00/manifest-0", &b"manifest\0"[..]);
    make(home.path(), "s", 1, &[FILES[0], manifest]);
    let from = home.path().join("s");
    let scratch = Scratch::new(&from).unwrap();
    let links = |name: &str| fs::metadata(scratch.path().join(name)).unwrap().nlink();
    assert_eq!((links("shard-00/a"), links("shard-00/manifest-0")), (2, 1));
    // A node that starts meanwhile leaves it alone.
    remove_unfinished(home.path()).unwrap();
    assert!(scratch.path().exists());
    drop(scratch);
    assert_eq!(names(home.path()), ["s"]);
    assert!(verify(&from, &mut |_| ()).unwrap().is_empty());
}
