//! What no driver gives an order for is a panic.

use super::*;

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
