//! The probe of a data directory's device.

use super::Scratch;
use crate::io::device::{DeviceProbe, SyncMethod};

fn stored(scratch: &Scratch) -> String {
    std::fs::read_to_string(scratch.0.join("data/device.toml")).unwrap()
}

fn files(scratch: &Scratch) -> Vec<String> {
    let entries = std::fs::read_dir(scratch.0.join("data")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn device_is_measured_once() {
    let scratch = Scratch::new();
    let directory = scratch.open();
    if !directory.direct() {
        eprintln!("SKIPPED, nothing was tested: no direct I/O here");
        return;
    }
    let first = DeviceProbe::read_or_measure(&directory);
    assert!(first.dsync_us.is_some_and(|time| time > 0) && first.sync_us.is_some());
    assert_eq!(files(&scratch), ["LOCK", "device.toml"], "no trace of the probe stays");
    let text = stored(&scratch);
    assert!(text.contains(&format!("choice = \"{}\"", first.choice.name())), "{text}");

    // What is noted down counts, not what would be measured now.
    let path = scratch.0.join("data/device.toml");
    let time = format!("dsync_us = {}", first.dsync_us.unwrap());
    std::fs::write(path, text.replace(&time, "dsync_us = 987654321")).unwrap();
    let again = DeviceProbe::read_or_measure(&directory);
    assert_eq!(again, DeviceProbe { dsync_us: Some(987_654_321), ..first });
}

#[test]
fn result_that_says_nothing_or_of_another_place_is_replaced() {
    let scratch = Scratch::new();
    let directory = scratch.open();
    let path = scratch.0.join("data/device.toml");
    let other = format!("version = 1\ndirect = {}\nchoice = \"sync\"\n", !directory.direct());
    for text in [b"\xff\xfe".to_vec(), b"choice = ".to_vec(), vec![b'#'; 1 << 20], other.into()] {
        std::fs::write(&path, text).unwrap();
        let probe = DeviceProbe::read_or_measure(&directory);
        assert_eq!(probe.direct, directory.direct());
        assert!(stored(&scratch).contains(&format!("direct = {}", probe.direct)));
    }
}

#[test]
fn without_direct_io_nothing_is_measured() {
    let memory = std::path::PathBuf::from("/dev/shm");
    if !memory.is_dir() {
        eprintln!("SKIPPED, nothing was tested: no file system in memory here");
        return;
    }
    let scratch = Scratch::below(memory);
    let probe = DeviceProbe::read_or_measure(&scratch.open());
    assert_eq!((probe.direct, probe.dsync_us, probe.sync_us), (false, None, None));
    assert_eq!(probe.choice, SyncMethod::Sync);
}
