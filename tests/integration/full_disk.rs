//! A disk that is really full: a small file system of its own, filled through the client door, and
//! the same with `disk_bytes_max` on a disk that has room.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, find_program, run_to_end};
use kadring_tests::resp_client::{Reply, RespClient};
use tempfile::TempDir;

use crate::{TestNode, directory, skipped};

/// Bytes of a value; with this the fill takes a few thousand commands.
const VALUE_LEN: usize = 16 << 10;
/// Bytes of the file systems.
const DISK_LEN: u64 = 50 << 20;
/// How long the node may take until it writes again.
const SOON: Duration = Duration::from_secs(30);

/// A mounted file system; unmounted when it goes, also in a panic.
struct Mounted {
    path: PathBuf,
    /// Holds the mount point and the image.
    _directory: TempDir,
}

impl Mounted {
    /// A file system in memory; `None`, said loudly, where it cannot be mounted.
    fn tmpfs() -> Option<Self> {
        let size = format!("size={DISK_LEN}");
        Self::mount(&["-t", "tmpfs", "-o", &size, "tmpfs"], |_| Ok(()))
    }

    /// A file system with O_DIRECT, in a file.
    fn ext4() -> Option<Self> {
        let image = |directory: &Path| {
            let path = directory.join("image");
            let file = File::create(&path).map_err(|error| error.to_string())?;
            file.set_len(DISK_LEN).map_err(|error| error.to_string())?;
            // Without a reserve for root, and small inodes' tables: the space is for segments.
            run("mkfs.ext4", &["-q", "-m", "0", "-N", "256", "-F", &path.display().to_string()])
        };
        Self::mount(&["-t", "ext4", "-o", "loop", "image"], image)
    }

    fn mount(
        arguments: &[&str],
        prepare: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Option<Self> {
        let directory = directory();
        let path = directory.path().join("mounted");
        fs::create_dir(&path).unwrap();
        let (source, options) = arguments.split_last().unwrap();
        let source = match *source {
            "image" => directory.path().join("image").display().to_string(),
            other => other.to_owned(),
        };
        let target = path.display().to_string();
        let words: Vec<&str> = options.iter().copied().chain([source.as_str(), &target]).collect();
        match prepare(directory.path()).and_then(|()| run("mount", &words)) {
            Ok(()) => Some(Self { path, _directory: directory }),
            Err(error) => {
                skipped("a full disk", &format!("mount {}: {error}", words.join(" ")));
                None
            }
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.path.join("data")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let target = self.path.display().to_string();
        // A node that is being killed may still hold files: then at once from the tree, later from
        // the kernel.
        if run("umount", &[&target]).is_err() {
            drop(run("umount", &["-l", &target]));
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let path = find_program(program).ok_or_else(|| format!("there is no {program}"))?;
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}

/// What the node has acknowledged.
#[derive(Default)]
struct Book {
    values: BTreeMap<usize, usize>,
    rounds: usize,
}

fn key(number: usize) -> Vec<u8> {
    format!("key:{number}").into_bytes()
}

/// A value that cannot be taken for another one's.
fn value(number: usize, round: usize) -> Vec<u8> {
    let mut value = format!("{number} {round} ").into_bytes().repeat(VALUE_LEN / 6);
    value.truncate(VALUE_LEN);
    value
}

impl Book {
    /// Sets a key. `Err` with the error's text.
    fn set(&mut self, client: &mut RespClient, number: usize) -> Result<(), String> {
        self.rounds += 1;
        match client.call(&[b"SET", &key(number), &value(number, self.rounds)]).unwrap() {
            Reply::Simple(_) => {
                self.values.insert(number, self.rounds);
                Ok(())
            }
            Reply::Error(text) => Err(text),
            other => panic!("SET: {}", other.brief()),
        }
    }

    /// Sets new keys until the disk is full; it must be so for a second time right after, too.
    fn fill(&mut self, client: &mut RespClient, from: usize) {
        for number in from..from + 100_000 {
            if let Err(text) = self.set(client, number) {
                assert!(text.starts_with("DISKFULL"), "{text}");
                return;
            }
        }
        panic!("the disk is never full");
    }

    fn delete(&mut self, client: &mut RespClient, number: usize) {
        let reply = client.call(&[b"DEL", &key(number)]).unwrap();
        let known = self.values.remove(&number).is_some();
        let expected = Reply::Integer(i64::from(known));
        assert!(reply == expected, "DEL {number}: {}; {}", reply.brief(), info(client));
    }

    /// Tries to write until that is possible again.
    fn wait_writable(&mut self, client: &mut RespClient) {
        let deadline = Instant::now() + SOON;
        while let Err(text) = self.set(client, 0) {
            assert!(text.starts_with("DISKFULL"), "{text}");
            assert!(Instant::now() < deadline, "still full: {}", info(client));
        }
    }

    /// Nothing acknowledged is lost, nothing deleted is back.
    fn check(&self, client: &mut RespClient) {
        for (number, round) in &self.values {
            let reply = client.call(&[b"GET", &key(*number)]).unwrap();
            let found = reply.bytes();
            let expected = value(*number, *round);
            assert!(found == Some(&expected), "GET {number}: {}", reply.brief());
        }
        let count = client.call_line("DBSIZE").unwrap();
        assert_eq!(count, Reply::Integer(i64::try_from(self.values.len()).unwrap()));
    }
}

fn info(client: &mut RespClient) -> String {
    let Reply::Bulk(text) = client.call_line("INFO kadring").unwrap() else { panic!("INFO") };
    String::from_utf8(text).unwrap()
}

fn start(options: NodeOptions) -> (NodeProcess, RespClient) {
    let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
    let client = RespClient::connect(node.address()).unwrap();
    (node, client)
}

/// Kills the node on the full disk and starts it again, some times in a row: each start finds the
/// same keys, and no room for anything.
fn kill_some_times(
    mut node: NodeProcess,
    book: &mut Book,
    times: usize,
) -> (NodeProcess, RespClient) {
    for _ in 1..times {
        let (next, mut client) = start(node.kill9().unwrap());
        book.check(&mut client);
        node = next;
    }
    start(node.kill9().unwrap())
}

/// Fills the disk, kills and restarts while it is full, reads, deletes, overwrites, and nobody
/// gives the node any space.
fn live_through(options: NodeOptions) {
    let data_dir = options.data_dir.clone();
    let (node, mut client) = start(options.clone());
    let mut book = Book::default();
    book.fill(&mut client, 0);
    let filled = book.values.len();
    assert!(filled > 1_000, "{filled} values; {}", info(&mut client));
    assert!(info(&mut client).contains("disk_full=1"), "{}", info(&mut client));
    assert!(node.wait_for_log(&["the disk is full"], SOON), "{}", node.stderr());
    book.check(&mut client);
    let (node, mut client) = kill_some_times(node, &mut book, 4);
    book.check(&mut client);
    // Deletes go on, and what they free is given back.
    for number in (0..filled).filter(|number| number % 2 != 0) {
        book.delete(&mut client, number);
    }
    book.wait_writable(&mut client);
    book.check(&mut client);
    // Overwriting goes on for as long as one likes: more than the disk holds.
    for _ in 0..4 {
        for number in (0..filled).step_by(2) {
            while let Err(text) = book.set(&mut client, number) {
                assert!(text.starts_with("DISKFULL"), "{text}");
                book.wait_writable(&mut client);
            }
        }
    }
    book.check(&mut client);
    // Full once more, stopped this time, and then killed when a few deletes are under way.
    book.fill(&mut client, filled);
    let (status, _) = node.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(status.code(), Some(0));
    let (node, mut client) = start(options);
    book.check(&mut client);
    let keys: Vec<usize> = book.values.keys().copied().collect();
    for number in &keys[..20] {
        book.delete(&mut client, *number);
    }
    let (node, mut client) = start(node.kill9().unwrap());
    book.check(&mut client);
    for number in keys[20..].iter().filter(|number| **number % 3 != 0) {
        book.delete(&mut client, *number);
    }
    book.wait_writable(&mut client);
    book.check(&mut client);
    let (status, _) = node.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(status.code(), Some(0));
    let path = data_dir.display().to_string();
    let output = run_to_end(&["check", "--data-dir", &path], &[]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn options(data_dir: &Path, driver: Driver) -> NodeOptions {
    let options = NodeOptions { shards: 1, ..NodeOptions::new(data_dir, driver) };
    options.with_variable("KADRING_SEGMENT_BYTES", "4MiB")
}

#[test]
fn full_tmpfs_is_lived_through_on_uring() {
    let Some(disk) = Mounted::tmpfs() else { return };
    live_through(options(&disk.data_dir(), Driver::Uring));
}

#[test]
fn full_tmpfs_is_lived_through_on_pread() {
    let Some(disk) = Mounted::tmpfs() else { return };
    live_through(options(&disk.data_dir(), Driver::Pread));
}

#[test]
fn full_ext4_with_o_direct_is_lived_through() {
    let Some(disk) = Mounted::ext4() else { return };
    live_through(options(&disk.data_dir(), Driver::Uring));
}

#[test]
fn disk_limit_is_lived_through_like_a_full_disk() {
    let directory = directory();
    let options = options(&directory.path().join("data"), Driver::Uring);
    live_through(options.with_variable("KADRING_DISK_BYTES_MAX", "40MiB"));
}

#[test]
fn disk_limit_is_shown_and_one_that_is_too_low_is_refused() {
    let node = TestNode::start_with(Driver::Pread, &[("KADRING_DISK_BYTES_MAX", "1GiB")]);
    assert!(info(&mut node.client()).contains("disk_bytes_max:1073741824\r"));
    let directory = directory();
    let data_dir = directory.path().join("data").display().to_string();
    let limits = ["--shards", "2", "--segment-bytes", "4MiB", "--disk-bytes-max", "31MiB"];
    let words = ["run", "--client", "127.0.0.1:0", "--io", "pread", "--data-dir", &data_dir];
    let output = run_to_end(&[&words[..], &limits].concat(), &[]).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("disk_bytes_max is 32505856 bytes, less than 33554432"), "{text}");
}

/// Removes a directory in which a node may be making files.
fn remove_under_way(directory: &Path) {
    let deadline = Instant::now() + SOON;
    while directory.exists() {
        if let Err(error) = fs::remove_dir_all(directory) {
            let raced = [ErrorKind::DirectoryNotEmpty, ErrorKind::NotFound];
            assert!(raced.contains(&error.kind()), "{error}");
        }
        assert!(Instant::now() < deadline, "there are new files all the time");
    }
}

/// The node goes on with the files that it has open; where the next one is to be made there is
/// nothing any more.
#[test]
fn shard_that_gets_no_further_segment_says_so_in_the_log() {
    for driver in Driver::ALL {
        let directory = directory();
        let data_dir = directory.path().join("data");
        let node = NodeProcess::start(options(&data_dir, driver)).unwrap();
        let mut client = RespClient::connect(node.address()).unwrap();
        remove_under_way(&data_dir);
        let is_refused = (0..100).any(|number| {
            let key = format!("key{number}");
            let reply = client.call(&[b"SET", key.as_bytes(), &vec![b'x'; 1 << 20]]).unwrap();
            matches!(reply, Reply::Error(_))
        });
        assert!(is_refused, "{driver}: there is no directory for its segments");
        let told = node.wait_for_log(&["no further segment can be made"], SOON);
        assert!(told, "{driver}: {}", node.stderr());
    }
}
