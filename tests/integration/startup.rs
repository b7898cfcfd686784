//! Starting and stopping: flags, exit codes, the readiness line, restarts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kadring_tests::node_process::{
    Driver, NodeOptions, NodeProcess, StartingNode, find_program, run_to_end,
};
use kadring_tests::resp_client::{Reply, RespClient};

use crate::{TestNode, directory, skipped};

/// How long the node may take to say something that it has to say.
const SOON: Duration = Duration::from_secs(10);
const EXIT_USAGE: i32 = 2;
const EXIT_BIND: i32 = 3;
const EXIT_LOCKED: i32 = 4;
const EXIT_DATA_DIRECTORY: i32 = 5;
const EXIT_NO_URING: i32 = 6;

/// Starts a node that has to fail with this exit code; returns its one line.
fn check_failure(options: NodeOptions, code: i32) -> String {
    let (status, stderr) = StartingNode::start(options).unwrap().wait_failure().unwrap();
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let errors = stderr.lines().filter(|line| line.to_lowercase().contains("error")).count();
    assert!(errors <= 1, "more than one error line:\n{stderr}");
    assert!(!stderr.trim().is_empty(), "failed without a word");
    stderr
}

#[test]
fn readiness_line_names_a_free_port_and_is_all_there_is() {
    for driver in Driver::ALL {
        let node = TestNode::start(driver);
        assert_ne!(node.node.address().port(), 0);
        assert!(node.node.address().ip().is_loopback());
        assert_eq!(node.client().call(&[b"PING"]).unwrap(), Reply::Simple("PONG".into()));
        let (status, rest) = node.node.terminate().unwrap();
        assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
    }
}

#[test]
fn node_id_survives_restarts() {
    let node = TestNode::start(Driver::Uring);
    let id = node.node.ready().node.clone();
    let node = node.crash_and_restart();
    assert_eq!(node.node.ready().node, id);
    let node = node.terminate_and_restart();
    assert_eq!(node.node.ready().node, id);
    assert_ne!(TestNode::start(Driver::Uring).node.ready().node, id);
}

#[test]
fn twenty_restarts_on_the_same_port_keep_what_each_wrote() {
    for driver in Driver::ALL {
        let mut node = TestNode::start(driver);
        let port = node.node.address();
        for round in 0..20_i64 {
            // A connection left open by the dead process must not block its port.
            let mut client = node.client();
            assert_eq!(client.call(&[b"INCR", b"round"]).unwrap(), Reply::Integer(round + 1));
            node = if round % 2 == 0 {
                node.crash_and_restart()
            } else {
                node.terminate_and_restart()
            };
            assert_eq!(node.node.address(), port);
        }
    }
}

#[test]
fn bad_flags_and_values_are_usage_errors() {
    let directory = directory();
    let data_dir = directory.path().join("data").to_string_lossy().into_owned();
    for arguments in [
        &["run", "--no-such-flag"][..],
        &["run", "--io", "floppy", "--data-dir", &data_dir],
        &["run", "--client", "nowhere", "--data-dir", &data_dir],
        &["run", "--shards", "0", "--data-dir", &data_dir],
        &["run", "--durability", "sometimes", "--data-dir", &data_dir],
        &["run", "--sync-method", "fsync", "--data-dir", &data_dir],
        &["run", "--shards", "many", "--data-dir", &data_dir],
        &["no-such-command"],
    ] {
        let output = run_to_end(arguments, &[]).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(EXIT_USAGE), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty() && !stderr.is_empty(), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    }
    assert!(!Path::new(&data_dir).exists(), "a usage error created the data directory");
}

#[test]
fn bad_variable_is_a_usage_error_that_names_it() {
    let directory = directory();
    let options = NodeOptions::new(&directory.path().join("data"), Driver::Uring)
        .with_variable("KADRING_VALUE_BYTES_MAX", "plenty");
    let stderr = check_failure(options, EXIT_USAGE);
    let lower = stderr.to_lowercase().replace('-', "_");
    assert!(lower.contains("value_bytes_max"), "{stderr}");
}

#[test]
fn address_off_loopback_without_password_is_refused() {
    let directory = directory();
    let mut options = NodeOptions::new(&directory.path().join("data"), Driver::Uring);
    options.client = "0.0.0.0:0".to_owned();
    let stderr = check_failure(options, EXIT_USAGE);
    assert!(stderr.to_lowercase().contains("requirepass"), "no remedy named: {stderr}");
}

#[test]
fn port_in_use_is_said_with_the_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for driver in Driver::ALL {
        let directory = directory();
        let mut options = NodeOptions::new(&directory.path().join("data"), driver);
        options.client.clone_from(&address);
        let stderr = check_failure(options, EXIT_BIND);
        assert!(stderr.contains(&address), "{stderr}");
    }
}

#[test]
fn locked_data_directory_is_refused_and_its_owner_goes_on() {
    for driver in Driver::ALL {
        let node = TestNode::start(driver);
        let mut client = node.client();
        client.call_line("SET k v").unwrap();
        let mut options = node.node.options_on_same_port();
        options.client = "127.0.0.1:0".to_owned();
        let data_dir = options.data_dir.to_string_lossy().into_owned();
        let stderr = check_failure(options, EXIT_LOCKED);
        assert!(stderr.contains(&data_dir), "{stderr}");
        let check = run_to_end(&["check", "--data-dir", &data_dir], &[]).unwrap();
        assert_eq!(check.status.code(), Some(EXIT_LOCKED));
        assert_eq!(client.call_line("GET k").unwrap(), Reply::Bulk(b"v".to_vec()));
    }
}

#[test]
fn another_shard_count_than_the_directory_has_is_refused() {
    let TestNode { node, directory: _directory } = TestNode::start(Driver::Uring);
    let mut options = node.options_on_same_port();
    node.terminate().unwrap();
    options.shards += 1;
    let stderr = check_failure(options, EXIT_USAGE);
    assert!(stderr.contains("shards"), "{stderr}");
}

#[test]
fn data_directory_that_is_a_file_is_refused() {
    for driver in Driver::ALL {
        let directory = directory();
        let path = directory.path().join("data");
        fs::write(&path, "not a directory").unwrap();
        let stderr = check_failure(NodeOptions::new(&path, driver), EXIT_DATA_DIRECTORY);
        assert!(stderr.contains(&*path.to_string_lossy()), "{stderr}");
        assert_eq!(fs::read(&path).unwrap(), b"not a directory");
        let below = NodeOptions::new(&path.join("below"), driver);
        check_failure(below, EXIT_DATA_DIRECTORY);
    }
}

#[test]
fn unreadable_data_directory_is_refused() {
    let directory = directory();
    let path = directory.path().join("data");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    let mut options = NodeOptions::new(&path, Driver::Uring);
    if rustix::process::geteuid().is_root() {
        // Without these two capabilities root is bound by permissions like anyone else.
        let Some(setpriv) = find_program("setpriv") else {
            return skipped("unreadable data directory", "root reads everything, and no setpriv");
        };
        let drop = "--bounding-set=-dac_override,-dac_read_search";
        options.wrapper = vec![setpriv.into(), drop.into(), "--".into()];
    }
    let stderr = check_failure(options, EXIT_DATA_DIRECTORY);
    assert!(stderr.contains(&*path.to_string_lossy()), "{stderr}");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// CRC-32 (IEEE), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1)))
    })
}

/// Gives a manifest another format version and a checksum that is right again; the layout is the
/// one drawn in docs/FORMAT.md.
fn set_manifest_version(manifest: &mut [u8], version: u16) {
    let count = |at: usize| u32::from_le_bytes(manifest[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(&manifest[..7], b"KADRMAN");
    let len = 104 + 24 * count(52) + 48 * count(80);
    assert_eq!(manifest[len..len + 4], crc32(&manifest[..len]).to_le_bytes(), "layout changed");
    manifest[8..10].copy_from_slice(&version.to_le_bytes());
    let sum = crc32(&manifest[..len]).to_le_bytes();
    manifest[len..len + 4].copy_from_slice(&sum);
}

/// Lists every file below a directory with its content.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().is_some_and(|name| name != "LOCK") {
            // Whoever tries the lock leaves its process id there.
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn newer_format_version_is_refused_and_nothing_is_touched() {
    for driver in Driver::ALL {
        let TestNode { node, directory: _directory } = TestNode::start(driver);
        let options = node.options_on_same_port();
        RespClient::connect(node.address()).unwrap().call_line("SET k v").unwrap();
        assert_eq!(node.terminate().unwrap().0.code(), Some(0));
        let mut patched = 0;
        for (path, mut content) in contents(&options.data_dir) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("manifest-") && !content.is_empty() {
                set_manifest_version(&mut content, 99);
                fs::write(path, content).unwrap();
                patched += 1;
            }
        }
        assert!(patched >= 2, "{patched} manifests found");
        let before = contents(&options.data_dir);
        let stderr = check_failure(options.clone(), EXIT_DATA_DIRECTORY);
        assert!(stderr.contains("version 99"), "{stderr}");
        assert!(contents(&options.data_dir) == before, "a refused directory was changed");
    }
}

/// A wrapper that makes the kernel refuse io_uring to the node alone, as a container would.
fn without_io_uring() -> Option<Vec<OsString>> {
    let python = find_program("python3")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/python/forbid_io_uring.py");
    let wrapper: Vec<OsString> = vec![python.into(), script.into()];
    let probe = Command::new(&wrapper[0]).arg(script).arg("true").output().ok()?;
    probe.status.success().then_some(wrapper)
}

#[test]
fn forbidden_io_uring_is_said_with_the_remedy_which_works() {
    let Some(wrapper) = without_io_uring() else {
        return skipped("io_uring forbidden", "no python3 that may install a seccomp filter");
    };
    let directory = directory();
    let mut options = NodeOptions::new(&directory.path().join("data"), Driver::Uring);
    options.wrapper = wrapper;
    for driver in [Driver::TokioUring, Driver::Uring] {
        options.driver = driver;
        let stderr = check_failure(options.clone(), EXIT_NO_URING);
        assert!(stderr.contains("--io pread"), "no remedy named on {driver}: {stderr}");
    }
    options.driver = Driver::Pread;
    let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
    let mut client = RespClient::connect(node.address()).unwrap();
    assert_eq!(client.call_line("SET k v").unwrap(), Reply::Simple("OK".into()));
}

#[test]
fn used_directory_without_any_shard_is_told_of() {
    let lost = "the data directory holds no shard";
    let node = TestNode::start(Driver::Uring);
    assert!(!node.node.stderr().contains(lost), "{}", node.node.stderr());
    let node = node.terminate_and_restart();
    assert!(!node.node.stderr().contains(lost), "{}", node.node.stderr());
    let options = node.node.options_on_same_port();
    let TestNode { node, directory: _directory } = node;
    node.terminate().unwrap();
    for shard in ["shard-00", "shard-01"] {
        fs::remove_dir_all(options.data_dir.join(shard)).unwrap();
    }
    let node = NodeProcess::start(options).unwrap();
    assert!(node.wait_for_log(&[lost], SOON), "{}", node.stderr());
}

/// What an old kernel lacks the node does without, and says so.
#[test]
fn node_serves_with_less_of_the_kernel() {
    for (abilities, refused) in [("6.1", "[\"NO_SQARRAY\"]"), ("fewest", "\"DEFER_TASKRUN\"")] {
        let directory = directory();
        let mut options = NodeOptions::new(&directory.path().join("data"), Driver::Uring);
        options.arguments =
            ["--threads", "2", "--uring-abilities", abilities].map(OsString::from).to_vec();
        let value = vec![b'x'; 100_000];
        let keys = || (0..20).map(|number| format!("key{number}"));
        let mut node = NodeProcess::start(options).unwrap();
        for _ in 0..2 {
            let is_told = node.wait_for_log(&["ring set up without"], SOON);
            assert!(is_told && node.stderr().contains(refused), "{}", node.stderr());
            let mut client = RespClient::connect(node.address()).unwrap();
            for key in keys() {
                let reply = client.call(&[b"SET", key.as_bytes(), &value]).unwrap();
                assert_eq!(reply, Reply::Simple("OK".into()));
            }
            for key in keys() {
                let reply = client.call(&[b"GET", key.as_bytes()]).unwrap();
                assert_eq!(reply, Reply::Bulk(value.clone()));
            }
            node = NodeProcess::start(node.kill9().unwrap()).unwrap();
        }
        assert_eq!(node.terminate().unwrap().0.code(), Some(0));
    }
}

/// Were clients to take every descriptor, the log could open no segment, and those who wait in the
/// kernel would never hear that there is no place for them.
#[test]
fn clients_leave_the_log_open_files_where_the_system_gives_few() {
    const OPEN_FILES: usize = 256;
    const PLACES: usize = OPEN_FILES - 64;
    for driver in Driver::ALL {
        let directory = directory();
        let mut options = NodeOptions::new(&directory.path().join("data"), driver);
        let shell = format!("ulimit -n {OPEN_FILES} && exec \"$@\"");
        options.wrapper = ["sh", "-c", &shell, "sh"].map(OsString::from).to_vec();
        let node = NodeProcess::start(options).unwrap();
        assert!(node.wait_for_log(&["raise the hard limit"], SOON), "{}", node.stderr());
        let connect = || RespClient::connect(node.address()).unwrap();
        let mut clients: Vec<_> = (0..PLACES).map(|_| connect()).collect();
        for client in &mut clients {
            assert_eq!(client.call_line("SET k v").unwrap(), Reply::Simple("OK".into()));
        }
        for _ in 0..OPEN_FILES {
            let refused = connect().read_to_close().unwrap();
            assert_eq!(refused, b"-ERR max number of clients reached\r\n");
        }
        // A shard's next segment is a file more, on every driver.
        for number in 0..32 {
            let key = format!("large{number}");
            let reply = clients[0].call(&[b"SET", key.as_bytes(), &vec![b'x'; 1 << 20]]).unwrap();
            assert_eq!(reply, Reply::Simple("OK".into()));
        }
    }
}

#[test]
fn shutdown_command_ends_the_node_cleanly() {
    for driver in Driver::ALL {
        for words in ["SHUTDOWN", "SHUTDOWN NOSAVE"] {
            let TestNode { mut node, directory: _directory } = TestNode::start(driver);
            let options = node.options_on_same_port();
            let mut client = RespClient::connect(node.address()).unwrap();
            client.call_line("SET k v").unwrap();
            client.send_raw(format!("{words}\r\n").as_bytes()).unwrap();
            assert_eq!(client.read_to_close().unwrap(), b"", "SHUTDOWN closes without a reply");
            let status = node.wait_exit(Duration::from_secs(30)).unwrap();
            assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", node.stderr());
            let node = NodeProcess::start(options).unwrap();
            let mut client = RespClient::connect(node.address()).unwrap();
            assert_eq!(client.call_line("GET k").unwrap(), Reply::Bulk(b"v".to_vec()));
        }
    }
}

#[test]
fn check_command_finds_a_clean_directory_clean_and_a_missing_one_unusable() {
    let TestNode { node, directory } = TestNode::start(Driver::Uring);
    let data_dir = node.options_on_same_port().data_dir.to_string_lossy().into_owned();
    node.terminate().unwrap();
    let output = run_to_end(&["check", "--data-dir", &data_dir], &[]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let missing = directory.path().join("missing").to_string_lossy().into_owned();
    let output = run_to_end(&["check", "--data-dir", &missing], &[]).unwrap();
    assert_eq!(output.status.code(), Some(EXIT_DATA_DIRECTORY));
}

#[test]
fn store_without_a_sound_manifest_or_segment_header_keeps_its_values() {
    let TestNode { node, directory: _directory } = TestNode::start(Driver::ALL[0]);
    let options = node.options_on_same_port();
    let mut client = RespClient::connect(node.address()).unwrap();
    (0..50).for_each(|key| drop(client.call_line(&format!("SET k{key} v")).unwrap()));
    assert_eq!(node.terminate().unwrap().0.code(), Some(0));
    for (path, mut content) in contents(&options.data_dir) {
        content[0] ^= 0xff;
        fs::write(path, content).unwrap();
    }
    let node = NodeProcess::start(options).unwrap();
    let mut client = RespClient::connect(node.address()).unwrap();
    for key in 0..50 {
        let reply = client.call_line(&format!("GET k{key}")).unwrap();
        assert_eq!(reply.bytes(), Some(&b"v"[..]), "k{key}");
    }
}

#[test]
fn device_is_measured_at_the_first_start_and_the_operator_has_the_last_word() {
    for driver in Driver::ALL {
        let node = TestNode::start(driver);
        let info = |node: &TestNode| {
            let reply = node.client().call(&[b"INFO", b"durability"]).unwrap();
            String::from_utf8(reply.bytes().unwrap().to_vec()).unwrap()
        };
        let first = info(&node);
        let file = node.directory.path().join("data/device.toml");
        let stored = fs::read_to_string(&file).unwrap();
        assert!(first.contains("durability:always\r\n"), "{first}");
        if stored.contains("direct = true") {
            let field = |name| first.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            assert!(stored.contains(&format!("dsync_us = {}\n", field("write_dsync_us:"))));
            assert!(stored.contains(&format!("sync_us = {}\n", field("write_sync_us:"))));
            assert!(stored.contains(&format!("choice = \"{}\"\n", field("sync_method:"))));
        } else {
            skipped("times of durable writes", "no O_DIRECT here");
        }
        let node = node.crash_and_restart();
        assert_eq!(info(&node), first, "not measured again");
        assert_eq!(fs::read_to_string(&file).unwrap(), stored);

        let other = if first.contains("sync_method:dsync") { "sync" } else { "dsync" };
        let node = TestNode::start_with(driver, &[("KADRING_SYNC_METHOD", other)]);
        let overridden = info(&node);
        assert!(overridden.contains(&format!("sync_method:{other}\r\n")), "{overridden}");
    }
}
