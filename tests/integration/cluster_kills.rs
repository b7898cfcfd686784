//! Nodes of a cluster that are killed and started again, over and over, while clients write and
//! read on all of them.
//!
//! `KADRING_TEST_CLUSTER_KILLS` sets how often; the default is for a push.

use crate::cluster_rig::{Cluster, Load, check_known, number};

const KILLS: usize = 5;
const CLIENTS: u64 = 6;
/// Operations of all clients between two kills, at most.
const LOAD_BETWEEN_KILLS: u64 = 1_000;

/// Kills some nodes at a time, as many as a majority of the copies can do without.
fn check(nodes: usize, replicas: usize, at_once: usize) {
    assert!(replicas - at_once > replicas / 2, "a majority is left");
    let mut cluster = Cluster::of(nodes, &["--replicas", &replicas.to_string()]);
    cluster.wait_until_all_are_full();
    let load = Load::start(CLIENTS, nodes, &cluster.connect());
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..number("KADRING_TEST_CLUSTER_KILLS", KILLS) {
        let victims = rng.choose_multiple(0..nodes, at_once);
        load.let_pass(rng.u64(1..LOAD_BETWEEN_KILLS));
        cluster.kill(&victims);
        load.let_pass(rng.u64(1..LOAD_BETWEEN_KILLS));
        cluster.restart(&victims);
    }
    load.let_pass(LOAD_BETWEEN_KILLS);
    let known = load.end();
    for index in 0..nodes {
        check_known(&mut cluster.client(index), &known);
    }
    cluster.terminate();
}

#[test]
fn acknowledged_writes_outlive_kills_under_load() {
    check(5, 3, 1);
}

#[test]
fn acknowledged_writes_of_five_copies_outlive_two_kills_at_once() {
    check(6, 5, 2);
}
