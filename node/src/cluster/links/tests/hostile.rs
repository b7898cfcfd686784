//! Strangers: without the secret, of other clusters, slow, or sending anything at all.

use std::net::SocketAddr;

use fastrand::Rng;

use super::network::{Network, address, id, key, options};
use super::{check_quiet, ping, put, received, told, with_secret};
use crate::cluster::links::LinkCounters;
use crate::cluster::message::codec::encode;
use crate::cluster::message::control::{ControlFrame, Hello, feature};
use crate::io::ConnectionId;
use crate::kademlia::NodeId;

fn from(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 40_000))
}

fn hello(features: u64) -> Hello {
    Hello {
        cluster: NodeId([0xcc; 20]),
        node: id(9),
        boot: 99,
        features,
        nonce: [9; 32],
        address: "192.0.2.1:7400".into(),
    }
}

fn bytes(frame: &ControlFrame) -> Vec<u8> {
    frame.encode().concat()
}

fn counters(net: &Network, node: usize) -> LinkCounters {
    net.nodes[node].links.counters()
}

/// Two nodes that refuse each other: neither has a link, and both say why.
fn refused_pair(change: impl Fn(&mut super::LinkOptions)) -> Network {
    let mut net = Network::new(1);
    net.add({
        let mut options = options(0);
        with_secret(&mut options);
        options
    });
    net.add({
        let mut options = options(1);
        with_secret(&mut options);
        change(&mut options);
        options
    });
    net.introduce();
    net.connect(0, Some(1), address(1));
    net.run_ms(20_000);
    for node in 0..2 {
        assert!(!told(&net, node).iter().any(|told| told.starts_with("up")));
        assert_eq!(net.nodes[node].links.links().count(), 0);
    }
    net
}

#[test]
fn another_secret_is_refused_by_name() {
    let net = refused_pair(|options| options.key = key(8));
    let (initiator, responder) = (counters(&net, 0), counters(&net, 1));
    assert!(responder.refused_proof > 3, "tried again and again");
    assert_eq!(responder.refused_proof, responder.accepted);
    assert_eq!(initiator.refused_by_peer, responder.refused_proof);
    assert_eq!(responder.refused_late + initiator.refused_late, 0);
}

#[test]
fn secret_on_one_side_only_is_refused_by_name() {
    let net = refused_pair(|options| options.key = None);
    assert_eq!(counters(&net, 1).refused_secret, counters(&net, 1).accepted);
    assert_eq!(counters(&net, 0).refused_by_peer, counters(&net, 1).accepted);
}

#[test]
fn another_cluster_is_refused_by_name() {
    let net = refused_pair(|options| options.cluster = NodeId([0xdd; 20]));
    assert_eq!(counters(&net, 1).refused_cluster, counters(&net, 1).accepted);
    assert_eq!(counters(&net, 0).refused_by_peer, counters(&net, 1).accepted);
}

#[test]
fn own_id_is_refused_by_name() {
    let mut net = Network::of(1, 1, with_secret);
    let mut double = options(0);
    double.address = address(1);
    with_secret(&mut double);
    net.add(double);
    net.connect(0, None, address(1));
    net.run_ms(20_000);
    assert_eq!(counters(&net, 1).refused_own, 1, "and it is not tried again");
    assert_eq!(counters(&net, 0).refused_by_peer, 1);
    check_quiet(&net, 0);
}

#[test]
fn another_version_is_refused_by_name_whatever_its_hello_looks_like() {
    let mut net = Network::of(1, 1, with_secret);
    let stranger = net.stranger(0, from(1));
    net.write(stranger, b"*2\r\n$10\r\nKADP.HELLO\r\n$9\r\n\0\0\0\x02other\r\n");
    net.settle();
    assert_eq!(counters(&net, 0).refused_version, 1);
    let (answer, has_ended) = net.read(stranger);
    assert_eq!(answer, b"*2\r\n$12\r\nKADP.REFUSED\r\n$5\r\n\0\0\0\0\x01\r\n");
    assert!(has_ended);
}

#[test]
fn strangers_hear_nothing_before_they_have_said_who_they_are() {
    let mut net = Network::of(1, 1, with_secret);
    let stranger = net.stranger(0, from(1));
    net.run_ms(1_999);
    assert_eq!(net.read(stranger), (vec![], false));
    let other = ControlFrame::Hello(Hello { cluster: id(1), ..hello(feature::SECRET) });
    net.write(stranger, &bytes(&other));
    net.settle();
    let (answer, has_ended) = net.read(stranger);
    assert!(answer.starts_with(b"*2\r\n$12\r\nKADP.REFUSED"), "not its id, nor its cluster's");
    assert!(has_ended);
}

/// A stranger has heard a whole handshake, and says again what it has heard.
#[test]
fn replayed_handshakes_are_refused() {
    let mut net = Network::of(1, 2, with_secret);
    net.send(0, 1, ping(1));
    net.send(0, 1, put(2, 1_000));
    net.settle();
    assert_eq!(received(&net, 1).len(), 2);
    let heard = net.sent_by(0).remove(0);
    net.nodes[1].events.clear();
    let stranger = net.stranger(1, from(1));
    net.write(stranger, &heard);
    net.settle();
    assert_eq!(counters(&net, 1).refused_proof, 1);
    assert!(received(&net, 1).is_empty() && told(&net, 1).is_empty());
    assert!(net.read(stranger).1, "closed");
    // Nor is what the responder said of use to somebody who plays the responder.
    let heard = net.sent_by(1).remove(0);
    let fake = address(7);
    net.nodes[0].links.learn(id(7), fake);
    let mut player = options(7);
    player.key = key(1);
    net.add(player);
    let now = net.now;
    net.nodes[0].links.send(now, id(7), ping(3));
    net.settle();
    assert_eq!(received(&net, 2), []);
    assert!(!heard.is_empty());
    check_quiet(&net, 1);
}

#[test]
fn messages_before_the_proof_are_not_read() {
    for early in [ping(1), put(2, 100)] {
        let mut net = Network::of(1, 1, with_secret);
        let stranger = net.stranger(0, from(1));
        net.write(stranger, &bytes(&ControlFrame::Hello(hello(feature::SECRET))));
        for piece in encode(&early) {
            net.write(stranger, &piece.concat());
        }
        net.settle();
        assert_eq!(counters(&net, 0).refused_garbage, 1);
        assert!(net.nodes[0].events.is_empty());
        assert!(net.read(stranger).1);
        check_quiet(&net, 0);
    }
}

#[test]
fn long_frames_before_the_proof_are_not_held() {
    let mut net = Network::of(1, 1, with_secret);
    let stranger = net.stranger(0, from(1));
    net.write(stranger, b"*2\r\n$10\r\nKADP.HELLO\r\n$100000\r\n");
    net.settle();
    assert_eq!(counters(&net, 0).refused_garbage, 1);
    assert!(net.read(stranger).1);
}

#[test]
fn slow_strangers_are_closed_in_time_and_do_not_keep_others_out() {
    let mut net = Network::of(1, 2, |options| {
        with_secret(options);
        options.limits.strangers_per_source_max = 8;
        options.limits.strangers_max = 40;
    });
    let text = bytes(&ControlFrame::Hello(hello(feature::SECRET)));
    let slow: Vec<ConnectionId> = (0..20).map(|_| net.stranger(0, from(1))).collect();
    net.settle();
    assert_eq!(counters(&net, 0).refused_source, 12);
    // A byte now and then does not make it last longer.
    for byte in text.chunks(1).take(19) {
        slow.iter().for_each(|stranger| net.write(*stranger, byte));
        net.run_ms(100);
    }
    let open = |net: &mut Network| slow.iter().filter(|s| !net.read(**s).1).count();
    assert_eq!(open(&mut net), 8);
    net.connect(1, Some(0), address(0));
    net.settle();
    assert_eq!(told(&net, 0), ["up 1"]);
    net.run_ms(100);
    assert_eq!(open(&mut net), 0);
    assert_eq!(counters(&net, 0).refused_late, 8);
    check_quiet(&net, 1);
}

#[test]
fn strangers_from_everywhere_are_limited_in_all() {
    let mut net = Network::of(1, 1, |options| options.limits.strangers_max = 40);
    for last in 0..100 {
        net.stranger(0, from(last));
    }
    net.settle();
    assert_eq!(counters(&net, 0).refused_full, 60);
    net.run_ms(2_000);
    assert_eq!(counters(&net, 0).refused_late, 40);
    check_quiet(&net, 0);
}

#[test]
fn those_who_come_too_often_are_not_taken() {
    let mut net = Network::of(1, 1, |options| {
        options.limits.rates.machine.per_second = 1;
        options.limits.rates.machine.burst = 5;
    });
    let mut taken = 0;
    for _ in 0..100 {
        let stranger = net.stranger(0, from(1));
        net.write(stranger, b"x");
        net.settle();
        taken = counters(&net, 0).refused_garbage;
    }
    assert_eq!(taken, 5);
    assert_eq!(counters(&net, 0).refused_source, 95);
}

#[test]
fn garbage_is_counted_and_does_no_harm() {
    for seed in 0..300 {
        let mut rng = Rng::with_seed(seed);
        let has_secret = rng.bool();
        let mut net = Network::of(seed, 2, |options| {
            options.key = if has_secret { key(7) } else { None };
        });
        let stranger = net.stranger(0, from(1));
        let features = if has_secret { feature::SECRET } else { 0 };
        let mut text = bytes(&ControlFrame::Hello(hello(features)));
        text.extend(bytes(&ControlFrame::Auth { proof: [rng.u8(..); 32] }));
        text.extend(encode(&put(seed, 300)).into_iter().flatten().flatten());
        for _ in 0..rng.usize(..6) {
            let at = rng.usize(..text.len());
            text[at] = rng.u8(..);
        }
        net.write(stranger, &text);
        net.send(1, 0, ping(1));
        net.run_ms(3_000);
        let from_member = received(&net, 0).iter().filter(|message| **message == ping(1)).count();
        assert_eq!(from_member, 1, "seed {seed}");
        if has_secret {
            assert_eq!(told(&net, 0), ["up 1"], "seed {seed}");
            assert!(net.read(stranger).1);
            check_quiet(&net, 1);
        }
    }
}

/// Without a secret anybody may come in who names the cluster; what it sends then is still checked.
#[test]
fn members_that_send_garbage_are_closed_and_tried_ever_more_rarely() {
    let mut net = Network::of(1, 1, |_| {});
    let stranger = net.stranger(0, from(1));
    net.write(stranger, &bytes(&ControlFrame::Hello(hello(0))));
    net.settle();
    assert_eq!(told(&net, 0), ["up 9"]);
    net.write(stranger, b"*2\r\n$9\r\nKADP.NONE\r\n$0\r\n\r\n");
    net.settle();
    assert_eq!(told(&net, 0), ["up 9", "down 9"]);
    assert_eq!(counters(&net, 0).bad_messages, 1);
    net.run_ms(60_000);
    assert!((2..=9).contains(&net.connects.len()), "{:?}", net.connects);
}

#[test]
fn questions_without_end_are_not_answered_without_end() {
    let mut net = Network::of(1, 1, |_| {});
    let stranger = net.stranger(0, from(1));
    net.write(stranger, &bytes(&ControlFrame::Hello(hello(0))));
    net.settle();
    let beat = bytes(&ControlFrame::Beat { number: 1, is_answer: false });
    // It reads no answers, so these stay here.
    (0..100_000).for_each(|_| net.write(stranger, &beat));
    net.settle();
    assert_eq!(counters(&net, 0).bad_messages, 1);
    check_quiet(&net, 0);
}
