//! A node of several threads: any connection reaches all keys, and nothing acknowledged is lost.

use std::collections::BTreeSet;
use std::thread;

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess};
use kadring_tests::resp_client::{Reply, RespClient, encode_command};

use crate::{TestNode, directory};

const EXIT_USAGE: i32 = 2;

fn options(directory: &std::path::Path, driver: Driver, threads: u16) -> NodeOptions {
    let options = NodeOptions { shards: 3, ..NodeOptions::new(directory, driver) };
    options.with_variable("KADRING_THREADS", &threads.to_string())
}

fn start(options: NodeOptions) -> NodeProcess {
    NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn more_threads_than_shards_are_refused() {
    let directory = directory();
    let options = options(&directory.path().join("data"), Driver::Pread, 4);
    let error = NodeProcess::start(options).unwrap_err();
    assert!(error.contains("4 threads are more than the 3 shards"), "{error}");
    assert!(error.contains(&EXIT_USAGE.to_string()), "{error}");
}

#[test]
fn data_outlives_another_number_of_threads() {
    let directory = directory();
    let data = directory.path().join("data");
    let mut keys = 0;
    for (threads, driver) in
        [(3, Driver::Uring), (1, Driver::Pread), (2, Driver::TokioUring), (3, Driver::Pread)]
    {
        let node = start(options(&data, driver, threads));
        let mut clients: Vec<RespClient> =
            (0..4).map(|_| RespClient::connect(node.address()).unwrap()).collect();
        for client in &mut clients {
            assert_eq!(client.call_line("DBSIZE").unwrap(), Reply::Integer(keys));
            for old in 0..keys {
                let value = client.call_line(&format!("GET key{old}")).unwrap();
                assert_eq!(value.bytes(), Some(format!("value{old}").as_bytes()));
            }
        }
        for client in &mut clients {
            for _ in 0..10 {
                let set = client.call_line(&format!("SET key{keys} value{keys}")).unwrap();
                assert_eq!(set, Reply::Simple("OK".into()));
                keys += 1;
            }
        }
        // Every second time it is killed.
        if threads == 3 {
            let (status, _) = node.terminate().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(status.code(), Some(0));
        } else {
            node.kill9().unwrap();
        }
    }
}

#[test]
fn pipelines_that_touch_all_shards_are_answered_in_order() {
    for driver in Driver::ALL {
        let directory = directory();
        let node = start(options(&directory.path().join("data"), driver, 3));
        let address = node.address();
        let clients = (0..6).map(|client| {
            thread::spawn(move || {
                let mut connection = RespClient::connect(address).unwrap();
                let mut pipeline = Vec::new();
                for number in 0..500 {
                    let key = format!("{client}-{number}");
                    encode_command(&mut pipeline, &[b"SET", key.as_bytes(), key.as_bytes()]);
                    encode_command(&mut pipeline, &[b"GET", key.as_bytes()]);
                    encode_command(&mut pipeline, &[b"INCR", b"all"]);
                    encode_command(&mut pipeline, &[b"MGET", key.as_bytes(), b"missing"]);
                }
                let mut writer = connection.writer().unwrap();
                let sent = thread::spawn(move || {
                    std::io::Write::write_all(&mut writer, &pipeline).unwrap();
                });
                let mut counts = Vec::new();
                for number in 0..500 {
                    let key = Reply::Bulk(format!("{client}-{number}").into_bytes());
                    assert_eq!(connection.read_reply().unwrap(), Reply::Simple("OK".into()));
                    assert_eq!(connection.read_reply().unwrap(), key);
                    let Reply::Integer(count) = connection.read_reply().unwrap() else {
                        panic!("INCR")
                    };
                    counts.push(count);
                    let both = Reply::Array(vec![key, Reply::Nil]);
                    assert_eq!(connection.read_reply().unwrap(), both);
                }
                sent.join().unwrap();
                counts
            })
        });
        let clients: Vec<_> = clients.collect();
        let counts = clients.into_iter().flat_map(|client| client.join().unwrap());
        let counts: BTreeSet<i64> = counts.collect();
        assert!(counts.into_iter().eq(1..=3000), "each count is given once");
        node.terminate().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// SIGTERM while writers are at it on all threads: what was acknowledged is there afterwards.
#[test]
fn terminated_node_keeps_what_its_threads_have_acknowledged() {
    for driver in Driver::ALL {
        let node = TestNode::start_with(driver, &[("KADRING_THREADS", "2")]);
        let address = node.node.address();
        let writers = (0..4).map(|writer| {
            thread::spawn(move || {
                let mut client = RespClient::connect(address).unwrap();
                let mut written = 0;
                while let Ok(Reply::Simple(_)) =
                    client.call_line(&format!("MSET {writer}-{written} v {writer}+{written} w"))
                {
                    written += 1;
                }
                written
            })
        });
        let writers: Vec<_> = writers.collect();
        let mut client = node.client();
        while !matches!(client.call_line("DBSIZE").unwrap(), Reply::Integer(200..)) {}
        let node = node.terminate_and_restart();
        let mut client = node.client();
        for (number, writer) in writers.into_iter().enumerate() {
            for written in 0..writer.join().unwrap() {
                let line = format!("MGET {number}-{written} {number}+{written}");
                let both = [b"v", b"w"].map(|value| Reply::Bulk(value.to_vec()));
                assert_eq!(client.call_line(&line).unwrap(), Reply::Array(both.to_vec()), "{line}");
            }
        }
    }
}
