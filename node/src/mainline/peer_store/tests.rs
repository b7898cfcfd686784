//! Tests of peers: caps, expiry, room, samples, records.

use super::*;
use fastrand::Rng;
use proptest::prelude::*;

const OWN: NodeId = NodeId([0; 20]);
const NOW_MS: u64 = 1_700_000_000_000;

fn limits() -> PeerLimits {
    PeerLimits { torrents_max: 30, peers_max: 10, peers_per_ip_max: 2, ..PeerLimits::default() }
}

fn address(index: u32, port: u16) -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0808_0000 + index), port))
}

fn info_hash(first: u8) -> NodeId {
    NodeId(std::array::from_fn(|index| if index == 0 { first } else { 1 }))
}

fn peers(store: &PeerStore, clock_ms: u64, info_hash: NodeId) -> Vec<SocketAddr> {
    let query = PeerQuery { info_hash: &info_hash, family: Family::V4, noseed: false, count: 100 };
    store.peers(clock_ms, &query, &mut Rng::with_seed(1))
}

#[test]
fn announced_peers_are_found_until_they_expire() {
    let mut store = PeerStore::new(limits(), OWN);
    let hash = info_hash(1);
    assert!(store.announce(NOW_MS, &hash, address(1, 5), false));
    assert!(store.announce(NOW_MS, &hash, address(1, 5), true), "again: no second entry");
    assert!(store.announce(NOW_MS + 60_000, &hash, "[2a00::1]:6".parse().unwrap(), false));
    assert_eq!(peers(&store, NOW_MS, hash), [address(1, 5)]);
    let seedless = PeerQuery { info_hash: &hash, family: Family::V4, noseed: true, count: 9 };
    assert!(store.peers(NOW_MS, &seedless, &mut Rng::with_seed(1)).is_empty());
    let late = NOW_MS + limits().ttl_ms + 2 * 60_000;
    assert!(peers(&store, late, hash).is_empty());
    store.sweep(late + 60_000, 100);
    assert!(store.is_empty());
    assert_eq!(store.bytes(), 0);
}

#[test]
fn torrent_and_ip_have_caps_and_the_oldest_goes() {
    let mut store = PeerStore::new(limits(), OWN);
    let hash = info_hash(1);
    for port in 1..=5 {
        store.announce(NOW_MS + u64::from(port) * 60_000, &hash, address(1, port), false);
    }
    let mut found = peers(&store, NOW_MS, hash);
    found.sort();
    assert_eq!(found, [address(1, 4), address(1, 5)]);
    for index in 2..50 {
        store.announce(
            NOW_MS + 600_000 + u64::from(index) * 60_000,
            &hash,
            address(index, 1),
            false,
        );
    }
    let mut found = peers(&store, NOW_MS + 600_000, hash);
    found.sort();
    assert_eq!(found, (40..50).map(|index| address(index, 1)).collect::<Vec<_>>());
}

#[test]
fn full_store_prefers_near_torrents_and_those_with_peers() {
    let mut store = PeerStore::new(limits(), OWN);
    for first in 100..130 {
        assert!(store.announce(NOW_MS, &info_hash(first), address(1, 5), false));
    }
    store.announce(NOW_MS, &info_hash(129), address(2, 5), false);
    assert!(!store.has_room(&info_hash(200)));
    assert!(!store.announce(NOW_MS, &info_hash(200), address(1, 5), false));
    assert!(store.has_room(&info_hash(1)) && store.has_room(&info_hash(100)));
    assert!(store.announce(NOW_MS, &info_hash(1), address(1, 5), false));
    assert_eq!(store.len(), 30);
    assert_eq!(peers(&store, NOW_MS, info_hash(129)).len(), 2, "the farthest, but with two peers");
    assert!(peers(&store, NOW_MS, info_hash(128)).is_empty());
}

#[test]
fn bytes_are_bounded_whatever_is_announced() {
    let bytes_max = 20_000;
    let limits = PeerLimits { bytes_max, torrents_max: 1_000_000, ..limits() };
    let mut store = PeerStore::new(limits, OWN);
    let mut rng = Rng::with_seed(3);
    for index in 0..20_000 {
        let hash = NodeId([rng.u8(..); 20]);
        store.announce(NOW_MS + index * 100, &hash, address(rng.u32(..5000), rng.u16(1..)), false);
        assert!(store.bytes() <= bytes_max + 1_000, "{}", store.bytes());
    }
    let counted: usize =
        store.torrents.values().map(|peers| peers.bytes() + TORRENT_OVERHEAD).sum();
    assert_eq!(counted, store.bytes());
    let peers: usize = store.torrents.values().map(PackedPeers::len).sum();
    assert_eq!(peers, store.count());
}

#[test]
fn samples_are_all_or_the_same_for_a_while() {
    let mut rng = Rng::with_seed(4);
    let mut store = PeerStore::new(PeerLimits { torrents_max: 1000, ..limits() }, NodeId([9; 20]));
    assert_eq!(
        store.sample(NOW_MS, &mut rng),
        Sample { interval: 0, count: 0, info_hashes: Vec::new() }
    );
    store.announce(NOW_MS, &info_hash(3), address(1, 5), false);
    let sample = store.sample(NOW_MS, &mut rng);
    assert_eq!((sample.interval, sample.count), (0, 1));
    assert_eq!(sample.info_hashes, info_hash(3).0);
    for first in 0..200 {
        store.announce(NOW_MS, &info_hash(first), address(1, 5), false);
    }
    let first = store.sample(NOW_MS, &mut rng);
    assert_eq!((first.interval, first.count, first.info_hashes.len()), (600, 200, 400));
    let same = store.sample(NOW_MS + 1_000, &mut rng);
    assert_eq!((same.interval, &same.info_hashes), (599, &first.info_hashes));
    let other = store.sample(NOW_MS + 600_000, &mut rng);
    assert_eq!(other.interval, 600);
    assert_ne!(other.info_hashes, first.info_hashes);
}

#[test]
fn what_changed_is_handed_out_and_taken_in_after_a_restart() {
    let mut before = PeerStore::new(limits(), OWN);
    before.announce(NOW_MS, &info_hash(1), address(1, 5), true);
    before.announce(NOW_MS, &info_hash(1), "[2a00::1]:6".parse().unwrap(), false);
    let (hash, record) = before.pop_dirty().unwrap();
    let (record, expiry_ms) = record.unwrap();
    assert_eq!((hash, before.pop_dirty()), (info_hash(1), None));
    assert!(expiry_ms > NOW_MS && expiry_ms <= NOW_MS + limits().ttl_ms);
    assert_eq!(record.len(), 1 + 2 + 10 + 22);
    let mut after = PeerStore::new(limits(), NodeId([7; 20]));
    assert!(after.restore(&hash, &record));
    assert!(!after.restore(&hash, &record), "once is enough");
    assert_eq!(peers(&after, NOW_MS, hash), [address(1, 5)]);
    before.sweep(NOW_MS + 10 * limits().ttl_ms, 10);
    assert_eq!(before.pop_dirty(), Some((info_hash(1), None)), "to be removed");
}

#[test]
fn another_id_changes_nothing_but_distances() {
    let mut store = PeerStore::new(limits(), OWN);
    for first in 0..30 {
        store.announce(NOW_MS, &info_hash(first), address(1, 5), false);
    }
    store.set_own(NodeId([0xff; 20]));
    assert!((0..30).all(|first| peers(&store, NOW_MS, info_hash(first)).len() == 1));
    assert!(store.has_room(&info_hash(200)), "it is near now");
    let hashes: BTreeSet<NodeId> =
        std::iter::from_fn(|| store.pop_dirty().map(|(hash, _)| hash)).collect();
    assert_eq!(hashes.len(), 30);
    assert!(hashes.contains(&info_hash(29)));
}

#[test]
fn filters_tell_seeds_from_others() {
    let mut store = PeerStore::new(limits(), OWN);
    assert_eq!(store.filters(NOW_MS, &info_hash(1)), None);
    store.announce(NOW_MS, &info_hash(1), address(1, 5), true);
    let (seeds, leeches) = store.filters(NOW_MS, &info_hash(1)).unwrap();
    let mut expected = PeerFilter::default();
    expected.insert(address(1, 5).ip());
    assert_eq!((seeds, leeches), (expected, PeerFilter::default()));
}

proptest! {
    #[test]
    fn any_bytes_are_a_record_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(peers) = PackedPeers::decode(&bytes, 1_000) {
            prop_assert_eq!(peers.encode(), bytes);
        }
    }
}
