//! The data directory: its lock, its errors, and what it makes.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::{Driver, Rig, Scratch, on_all_drivers};
use crate::io::directory::{DataDirectory, DirectoryError, DirectoryOptions};

on_all_drivers![second_open_is_locked, lock_is_free_once_the_driver_is_dropped];

const AT_ONCE: DirectoryOptions =
    DirectoryOptions { create: true, lock_wait: Duration::ZERO, direct: true };

fn second_open_is_locked<D: Driver>() {
    let scratch = Scratch::new();
    let path = scratch.0.join("data");
    let Some(rig) = Rig::<D>::in_scratch(scratch) else {
        return;
    };
    let error = DataDirectory::open(&path, AT_ONCE).unwrap_err();
    let pid = std::process::id();
    assert!(matches!(error, DirectoryError::Locked { pid: Some(held), .. } if held == pid));
    let message = error.to_string();
    assert!(message.contains(&pid.to_string()), "{message}");
    assert!(message.contains(path.to_str().unwrap()), "{message}");
    drop(rig);
}

fn lock_is_free_once_the_driver_is_dropped<D: Driver>() {
    let scratch = Scratch::new();
    let Some(io) = D::open(scratch.open(), false) else {
        return;
    };
    drop(io);
    // Without waiting.
    drop(scratch.open());
}

#[test]
fn lock_is_waited_for() {
    let scratch = Scratch::new();
    let held = scratch.open();
    let path = held.path().to_owned();
    let waiter = std::thread::spawn(move || {
        let options = DirectoryOptions { lock_wait: Duration::from_secs(30), ..AT_ONCE };
        DataDirectory::open(&path, options).map(drop)
    });
    drop(held);
    waiter.join().unwrap().unwrap();
}

#[test]
fn directory_is_made_for_its_owner_alone() {
    let scratch = Scratch::new();
    let path = scratch.0.join("a/b/c");
    let directory = DataDirectory::open(&path, AT_ONCE).unwrap();
    assert_eq!(directory.path(), path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["LOCK"], "no trace of the probe stays");
}

#[test]
fn missing_directory_is_not_made_unasked() {
    let scratch = Scratch::new();
    let path = scratch.0.join("missing");
    let options = DirectoryOptions { create: false, ..AT_ONCE };
    let error = DataDirectory::open(&path, options).unwrap_err();
    assert!(matches!(error, DirectoryError::NotFound { .. }), "{error:?}");
    assert!(!path.exists());
}

#[test]
fn file_is_not_a_directory() {
    let scratch = Scratch::new();
    let path = scratch.0.join("file");
    std::fs::write(&path, "").unwrap();
    for path in [path.clone(), path.join("below")] {
        let error = DataDirectory::open(&path, AT_ONCE).unwrap_err();
        assert!(matches!(error, DirectoryError::NotADirectory { .. }), "{path:?}: {error:?}");
    }
}
