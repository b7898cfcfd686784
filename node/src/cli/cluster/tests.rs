//! What the nodes of a local cluster are started with, and what is understood of what they say.

use std::collections::BTreeSet;
use std::path::Path;

use super::nodes::{Plan, Ready, free_peer_addresses, has_its_keys};
use super::place::Place;
use super::welcome;

fn plan(nodes: usize) -> Plan {
    Plan {
        program: "/bin/kadring".into(),
        directory: "/d".into(),
        replicas: 2,
        peers: (1..=nodes).map(|port| ([127, 0, 0, 1], port as u16).into()).collect(),
        node_flags: vec!["--io".into(), "pread".into()],
    }
}

fn ready(port: u16) -> Ready {
    let door = |more: u16| format!("127.0.0.1:{}", port + more);
    Ready { client: door(0), peer: door(1), admin: door(2), id: "ab".repeat(20) }
}

#[test]
fn nodes_have_all_others_as_seeds() {
    let words = |index| {
        let words = plan(3).arguments(index);
        words.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        words(1),
        "run --data-dir /d/node-2 --client 127.0.0.1:0 --peer 127.0.0.1:2 --admin 127.0.0.1:0 \
         --replicas 2 --bootstrap 127.0.0.1:1 --bootstrap 127.0.0.1:3 --io pread"
    );
    assert!(!plan(1).arguments(0).contains(&"--bootstrap".into()), "a single node founds");
}

#[test]
fn ready_line_is_understood_and_others_are_not() {
    let line = "ready client=127.0.0.1:1 peer=127.0.0.1:2 admin=127.0.0.1:3 node=";
    let whole = format!("{line}{}\n", "ab".repeat(20));
    assert_eq!(Ready::parse(&whole), Some(ready(1)));
    let less = "ready client=127.0.0.1:1 peer=- admin=- node=ab\n";
    assert_eq!(Ready::parse(less).unwrap().peer, "-");
    for wrong in ["", "hello", "ready", line, "ready peer=a client=b admin=c node=d"] {
        assert_eq!(Ready::parse(wrong), None, "{wrong:?}");
    }
}

#[test]
fn node_that_waits_for_keys_does_not_serve_yet() {
    let figures = |pending| {
        format!("# TYPE kadring_ranges_pending gauge\nkadring_ranges_pending {pending}\n")
    };
    assert!(has_its_keys(&figures("0.0")) && has_its_keys(""));
    assert!(!has_its_keys(&figures("1.0")) && !has_its_keys(&figures("?")));
}

#[test]
fn peer_ports_are_free_and_apart() {
    let addresses = free_peer_addresses(20).unwrap();
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 20);
    assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() > 0));
}

#[test]
fn welcome_shows_each_node_and_how_to_talk_to_them() {
    let place = Place::new(None).unwrap();
    let text = welcome(&[ready(100), ready(200)], &place);
    for part in [
        "NODE  CLIENT         PEER           ADMIN          ID\n",
        "   2  127.0.0.1:200  127.0.0.1:201  127.0.0.1:202  abab",
        "redis-cli -p 100 set greeting hello\n",
        "redis-cli -p 200 get greeting\n",
        "curl http://127.0.0.1:102/metrics\n",
        "(removed at the end)\n",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn temporary_place_goes_away_and_a_given_one_stays() {
    let place = Place::new(None).unwrap();
    let path = place.path().to_owned();
    std::fs::write(path.join("file"), "x").unwrap();
    drop(place);
    assert!(!path.exists());
    let parent = tempfile::tempdir().unwrap();
    let given = parent.path().join("a/b");
    drop(Place::new(Some(&given)).unwrap());
    assert!(given.is_dir());
    let file = given.join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(Place::new(Some(Path::new(&file))).is_err());
}
