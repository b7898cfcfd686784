//! Many nodes on one machine: losing a tenth of them, and starting all at the same moment.
//!
//! `KADRING_TEST_CLUSTER_NODES` sets how many nodes lose a tenth, and
//! `KADRING_TEST_CLUSTER_STARTS` how many start at once; the defaults are for a push. What was
//! measured is told on standard error.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, StartingNode};
use kadring_tests::resp_client::RespClient;

use crate::cluster_rig::{
    Cluster, Load, SMALL, check_known, free_addresses, is_decided, is_ok, number, ready, rows,
    wait_for, wait_for_full,
};
use crate::directory;

const NODES: usize = 10;
const STARTS: usize = 12;
const KEYS: usize = 200;
/// A node that is down for so long is replaced.
const DOWN_AFTER_MS: &str = "3000";
/// Resident memory of a small node without work, driver and its registered buffers included.
const IDLE_BYTES_MAX: u64 = 100 << 20;

/// Tells past the test runner's capture.
fn told(what: &str) {
    io::stderr().write_all(format!("MEASURED: {what}\n").as_bytes()).unwrap();
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Writes all keys, each on the next node.
fn write_keys(cluster: &Cluster) {
    let nodes = cluster.running();
    let mut clients: Vec<RespClient> = nodes.iter().map(|index| cluster.client(*index)).collect();
    for key in 0..KEYS {
        let client = &mut clients[key % nodes.len()];
        wait_for(client, &format!("SET key{key} {key}"), is_ok);
    }
}

/// Reads all keys on all nodes that run. There may be no majority for a while, but never nil.
fn check_keys(cluster: &Cluster) {
    for index in cluster.running() {
        let mut client = cluster.client(index);
        for key in 0..KEYS {
            let value = wait_for(&mut client, &format!("GET key{key}"), is_decided);
            let is_right = value.bytes() == Some(key.to_string().as_bytes());
            assert!(is_right, "key{key} on node {index}: {}", value.brief());
        }
    }
}

#[test]
fn a_tenth_lost_for_good_one_after_another_costs_no_key() {
    let nodes = number("KADRING_TEST_CLUSTER_NODES", NODES);
    let arguments = ["--replicas", "3", "--down-after-ms", DOWN_AFTER_MS];
    let mut cluster = Cluster::of_small(nodes, &arguments);
    cluster.note_empty();
    for index in cluster.running() {
        let resident = cluster.node(index).resident_bytes().unwrap();
        assert!(resident < IDLE_BYTES_MAX, "node {index} without work: {resident} B resident");
    }
    write_keys(&cluster);
    cluster.wait_for_copies(3 * KEYS);
    let mut rng = fastrand::Rng::with_seed(11);
    // Of some keys two of three copies are lost in the end, the second when there are three again.
    for round in 1..=(nodes / 10).max(2) {
        let victim = rng.choice(cluster.running()).unwrap();
        let started = Instant::now();
        cluster.kill(&[victim]);
        cluster.wait_until_all_are_full();
        let without = started.elapsed();
        cluster.wait_for_copies(3 * KEYS);
        let (without, restored) = (seconds(without), seconds(started.elapsed()));
        told(&format!(
            "{nodes} nodes, loss {round}: without it after {without}, 3 copies after {restored}"
        ));
    }
    check_keys(&cluster);
    cluster.terminate();
}

#[test]
fn a_tenth_killed_at_once_and_restarted_costs_nothing() {
    let nodes = number("KADRING_TEST_CLUSTER_NODES", NODES);
    let mut cluster = Cluster::of_small(nodes, &["--replicas", "5"]);
    write_keys(&cluster);
    let load = Load::start(4, nodes, &cluster.connect());
    load.let_pass(300);
    let mut rng = fastrand::Rng::with_seed(12);
    let victims = rng.choose_multiple(0..nodes, (nodes / 10).max(2));
    cluster.kill(&victims);
    load.let_pass(300);
    let started = Instant::now();
    cluster.restart(&victims);
    load.let_pass(300);
    let known = load.end();
    cluster.wait_until_all_are_full();
    told(&format!("{nodes} nodes, a tenth restarted: whole after {}", seconds(started.elapsed())));
    check_keys(&cluster);
    for index in 0..nodes {
        check_known(&mut cluster.client(index), &known);
    }
    cluster.terminate();
}

#[test]
fn nodes_that_start_at_once_with_each_other_as_seeds_become_one_cluster() {
    let count = number("KADRING_TEST_CLUSTER_STARTS", STARTS);
    let (directory, addresses) = (directory(), free_addresses(count));
    let begun = Instant::now();
    let starting = addresses.iter().enumerate().map(|(index, address)| {
        let data = directory.path().join(format!("node-{index}"));
        let mut options = NodeOptions::new(&data, Driver::ALL[index % 3]);
        options.shards = 1;
        options.arguments = ["--peer".into(), address.to_string().into()].to_vec();
        options.arguments.extend(SMALL.map(Into::into));
        for seed in &addresses {
            options.arguments.extend(["--bootstrap".into(), seed.to_string().into()]);
        }
        StartingNode::start(options).unwrap()
    });
    let starting: Vec<StartingNode> = starting.collect();
    let started = begun.elapsed();
    let nodes: Vec<NodeProcess> = starting.into_iter().map(ready).collect();
    let up = begun.elapsed();
    let mut clients: Vec<RespClient> =
        nodes.iter().map(|node| RespClient::connect(node.address()).unwrap()).collect();
    for client in &mut clients {
        wait_for(client, "KAD.NODES", |reply| rows(reply).len() == count);
    }
    let known = begun.elapsed();
    clients.iter_mut().for_each(|client| wait_for_full(client, count));
    let whole = begun.elapsed();
    let [started, up, known, whole] = [started, up, known, whole].map(seconds);
    told(&format!(
        "{count} nodes: started in {started}, up after {up}, all known to all after {known}, one \
         cluster after {whole}"
    ));
    for (index, client) in clients.iter_mut().enumerate() {
        wait_for(client, &format!("SET from{index} {index}"), is_ok);
    }
    for client in &mut clients {
        for index in 0..count {
            let value = client.call_line(&format!("GET from{index}")).unwrap();
            assert_eq!(value.bytes(), Some(index.to_string().as_bytes()));
        }
    }
}
