//! UDP: binding, receiving, sending and closing.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use super::ring::{rig as ring_rig, tiny_queues};
use super::{Driver, PATIENCE_MS, Rig, on_all_drivers};
use crate::io::{
    Completion, DATAGRAM_BUFFERS, DATAGRAM_BYTES_MAX, ReceiveBuffer, Request, SocketId,
};

const SOCKET: SocketId = SocketId(0);
const OTHER: SocketId = SocketId(255);

/// An address of this machine on which no other test takes the port that one has just freed.
const QUIET: &str = "127.0.0.9:0";

on_all_drivers![
    datagrams_of_all_sizes_are_echoed,
    two_sockets_talk_to_each_other,
    both_families_share_a_port,
    datagram_to_nobody_leaves_the_socket_working,
    datagram_that_cannot_be_sent_is_counted,
    datagram_longer_than_wanted_is_dropped_and_counted,
    burst_beyond_the_buffers_waits_for_them,
    burst_beyond_the_kernels_queue_is_counted,
    sends_beyond_the_bound_are_dropped_and_counted,
    send_without_a_socket_is_dropped_and_counted,
    socket_closes_with_sends_under_way,
    driver_ends_with_sends_and_receives_under_way,
    socket_closes_and_is_bound_again,
    closed_socket_takes_its_buffers_back,
    socket_that_never_received_closes,
    address_in_use_is_waited_for,
    address_that_stays_in_use_is_an_error,
    close_while_the_address_is_waited_for,
    binding_twice_is_an_error,
];

impl<D: Driver> Rig<D> {
    fn try_bind(
        &mut self,
        socket: SocketId,
        address: &str,
        bytes_max: usize,
    ) -> io::Result<SocketAddr> {
        let address = address.parse().unwrap();
        self.io.submit(Request::BindUdp { socket, address, bytes_max });
        self.bound(socket)
    }

    fn bound(&mut self, id: SocketId) -> io::Result<SocketAddr> {
        self.expect(|completion| match completion {
            Completion::UdpBound(socket, result) if socket == id => Ok(result),
            other => Err(other),
        })
    }

    fn bind(&mut self, bytes_max: usize) -> SocketAddr {
        self.try_bind(SOCKET, "127.0.0.1:0", bytes_max).unwrap()
    }

    fn lent_datagram(&mut self, id: SocketId) -> (SocketAddr, ReceiveBuffer) {
        self.expect(|completion| match completion {
            Completion::Datagram { socket, from, bytes } if socket == id => Ok((from, bytes)),
            other => Err(other),
        })
    }

    fn datagram(&mut self, id: SocketId) -> (SocketAddr, Vec<u8>) {
        let (from, buffer) = self.lent_datagram(id);
        let bytes = buffer.to_vec();
        self.io.release(buffer);
        (from, bytes)
    }

    fn send_datagram(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.io.submit(Request::SendDatagram { socket, to, bytes });
    }

    fn close_udp(&mut self, id: SocketId) {
        self.io.submit(Request::CloseUdp(id));
        self.udp_closed(id);
    }

    fn udp_closed(&mut self, id: SocketId) {
        self.expect(|completion| match completion {
            Completion::UdpClosed(socket) if socket == id => Ok(()),
            other => Err(other),
        });
    }

    /// Turns until `is_so`; datagrams that come are kept.
    fn turn_until(&mut self, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = self.io.now().0.plus_millis(PATIENCE_MS);
        while !is_so(self) {
            let now = self.io.now().0;
            assert!(now < deadline, "in vain: {:?}", self.io.datagram_statistics());
            let mut done = Vec::new();
            self.io.wait(Some(now.plus_millis(1)), &mut done).unwrap();
            self.pending.extend(done);
        }
    }

    fn datagrams_pending(&self) -> usize {
        let is_datagram = |c: &&Completion| matches!(c, Completion::Datagram { .. });
        self.pending.iter().filter(is_datagram).count()
    }
}

fn client() -> UdpSocket {
    client_at("127.0.0.1:0")
}

fn client_at(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS))).unwrap();
    socket
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + len) as u8).collect()
}

fn datagrams_of_all_sizes_are_echoed<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(DATAGRAM_BYTES_MAX);
    let sizes = (0..1000).map(|number| number * 1472 / 999);
    let sizes: Vec<_> = sizes.chain([1473, 1500, 9000, 32_768, 65_000, 65_506, 65_507]).collect();
    let count = sizes.len();
    let client = thread::spawn(move || {
        let socket = client();
        let mut answer = vec![0; 65_536];
        for size in sizes {
            let sent = pattern(size);
            socket.send_to(&sent, address).unwrap();
            let (len, from) = socket.recv_from(&mut answer).unwrap();
            assert_eq!(from, address);
            assert!(answer[..len] == sent, "{size} bytes were sent, {len} came back");
        }
    });
    for _ in 0..count {
        let (from, buffer) = rig.lent_datagram(SOCKET);
        rig.send_datagram(SOCKET, from, &buffer);
        rig.io.release(buffer);
    }
    rig.turn_until(|rig| rig.io.datagram_statistics().sent == count as u64);
    client.join().unwrap();
    let statistics = rig.io.datagram_statistics();
    assert_eq!(statistics.received, count as u64);
    assert_eq!((statistics.truncated, statistics.overflowed), (0, 0));
    assert_eq!((statistics.send_failed, statistics.send_dropped), (0, 0));
    rig.close_udp(SOCKET);
    assert_eq!(rig.io.things_held(), 0);
}

/// Whether the error says that this machine has no IPv6; then it tells so.
fn excuses(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    let excused = matches!(errno, Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT));
    if excused {
        eprintln!("SKIPPED, nothing was tested: this machine has no IPv6");
    }
    excused
}

fn two_sockets_talk_to_each_other<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let first = match rig.try_bind(SOCKET, "[::1]:0", 2000) {
        Err(error) if excuses(&error) => return,
        other => other.unwrap(),
    };
    let second = rig.try_bind(OTHER, "[::1]:0", 1000).unwrap();
    for number in 0..600_u32 {
        let bytes = number.to_be_bytes();
        rig.send_datagram(SOCKET, second, &bytes);
        assert_eq!(rig.datagram(OTHER), (first, bytes.to_vec()));
        rig.send_datagram(OTHER, first, &bytes);
        assert_eq!(rig.datagram(SOCKET), (second, bytes.to_vec()));
    }
    rig.close_udp(SOCKET);
    rig.close_udp(OTHER);
    assert_eq!(rig.io.things_held(), 0);
}

fn both_families_share_a_port<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let four = rig.try_bind(SOCKET, "0.0.0.0:0", 1000).unwrap();
    let six = match rig.try_bind(OTHER, &format!("[::]:{}", four.port()), 1000) {
        Err(error) if excuses(&error) => return,
        other => other.unwrap(),
    };
    assert_eq!(six.port(), four.port());
    for (socket, own, ip) in [(SOCKET, "127.0.0.1:0", "127.0.0.1"), (OTHER, "[::1]:0", "::1")] {
        let client = client_at(own);
        let to = SocketAddr::new(ip.parse().unwrap(), four.port());
        client.send_to(b"which", to).unwrap();
        let (from, bytes) = rig.datagram(socket);
        assert_eq!((from, bytes), (client.local_addr().unwrap(), b"which".to_vec()));
        rig.send_datagram(socket, from, b"this");
        rig.turn_until(|rig| rig.io.datagram_statistics().sent > u64::from(socket == OTHER));
        let mut answer = [0; 10];
        assert_eq!(client.recv_from(&mut answer).unwrap(), (4, to));
    }
    assert_eq!(rig.io.datagram_statistics().send_failed, 0);
    // The other family is an error of the datagram, not of the socket.
    rig.send_datagram(SOCKET, "[::1]:9".parse().unwrap(), b"x");
    rig.turn_until(|rig| rig.io.datagram_statistics().send_failed == 1);
    rig.close_udp(SOCKET);
    rig.close_udp(OTHER);
}

/// An echo through the socket, which so turns out to work.
fn check_alive<D: Driver>(rig: &mut Rig<D>, address: SocketAddr) {
    let client = client();
    client.send_to(b"alive?", address).unwrap();
    let (from, bytes) = rig.datagram(SOCKET);
    assert_eq!((from, &bytes[..]), (client.local_addr().unwrap(), &b"alive?"[..]));
    let before = rig.io.datagram_statistics().sent;
    rig.send_datagram(SOCKET, from, b"alive");
    rig.turn_until(|rig| rig.io.datagram_statistics().sent > before);
    assert_eq!(client.recv(&mut [0; 10]).unwrap(), 5);
}

fn datagram_to_nobody_leaves_the_socket_working<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(1000);
    let nobody = client().local_addr().unwrap();
    for _ in 0..50 {
        rig.send_datagram(SOCKET, nobody, b"are you there?");
    }
    rig.turn_until(|rig| {
        let statistics = rig.io.datagram_statistics();
        statistics.sent + statistics.send_failed == 50
    });
    check_alive(&mut rig, address);
}

fn datagram_that_cannot_be_sent_is_counted<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(1000);
    rig.send_datagram(SOCKET, address, &pattern(65_508));
    rig.send_datagram(SOCKET, "255.255.255.255:9".parse().unwrap(), b"no broadcast");
    rig.turn_until(|rig| rig.io.datagram_statistics().send_failed == 2);
    check_alive(&mut rig, address);
}

fn datagram_longer_than_wanted_is_dropped_and_counted<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(100);
    let client = client();
    for (len, truncated) in [(100, 0), (101, 1), (100, 1), (65_507, 2), (0, 2)] {
        client.send_to(&pattern(len), address).unwrap();
        if len <= 100 {
            assert_eq!(rig.datagram(SOCKET).1, pattern(len));
        }
        rig.turn_until(|rig| rig.io.datagram_statistics().truncated == truncated);
    }
    assert_eq!(rig.io.datagram_statistics().received, 3);
}

/// More datagrams than buffers: what all buffers hold is all that comes, until they are released.
fn burst_beyond_the_buffers_waits_for_them<D: Driver>() {
    const BURST: u64 = 600;
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(1000);
    let client = client();
    for number in 0..BURST {
        client.send_to(&number.to_be_bytes(), address).unwrap();
    }
    let buffers = usize::from(DATAGRAM_BUFFERS);
    rig.turn_until(|rig| rig.datagrams_pending() == buffers);
    for _ in 0..5 {
        assert_eq!(rig.poll(), 0, "there is no buffer to receive into");
    }
    assert!(rig.io.datagram_statistics().starved > 0);
    // All came, or the kernel has counted those that did not.
    let mut numbers = Vec::new();
    rig.turn_until(|rig| {
        while rig.datagrams_pending() > 0 {
            let bytes = rig.datagram(SOCKET).1;
            numbers.push(u64::from_be_bytes(bytes.try_into().unwrap()));
        }
        numbers.len() as u64 + rig.io.datagram_statistics().overflowed == BURST
    });
    numbers.sort_unstable();
    assert!(numbers.is_sorted_by(|a, b| a < b), "one came twice: {numbers:?}");
    assert_eq!(rig.io.datagram_statistics().received, numbers.len() as u64);
    check_alive(&mut rig, address);
}

/// Nobody looks while 20 MB come: the kernel drops, and tells how many.
fn burst_beyond_the_kernels_queue_is_counted<D: Driver>() {
    const BURST: u64 = 400;
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(DATAGRAM_BYTES_MAX);
    let client = client();
    for _ in 0..BURST {
        client.send_to(&pattern(50_000), address).unwrap();
    }
    let mut count = 0;
    rig.turn_until(|rig| {
        while rig.datagrams_pending() > 0 {
            assert!(rig.datagram(SOCKET).1 == pattern(50_000));
            count += 1;
        }
        count + rig.io.datagram_statistics().overflowed == BURST
    });
    let overflowed = rig.io.datagram_statistics().overflowed;
    assert!(count > 0, "all were dropped");
    assert!(overflowed > 0 || D::RECEIVES_UNASKED, "none of {BURST} was dropped");
    rig.close_udp(SOCKET);
    assert_eq!(rig.io.datagram_statistics().overflowed, overflowed, "counted once");
    let address = rig.bind(1000);
    check_alive(&mut rig, address);
}

fn sends_beyond_the_bound_are_dropped_and_counted<D: Driver>() {
    const SENDS: u64 = 6000;
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(1000);
    let nobody = client().local_addr().unwrap();
    for _ in 0..SENDS {
        rig.send_datagram(SOCKET, nobody, b"x");
    }
    rig.turn_until(|rig| {
        let statistics = rig.io.datagram_statistics();
        statistics.sent + statistics.send_failed + statistics.send_dropped == SENDS
    });
    assert!(rig.io.datagram_statistics().sent >= 4096);
    check_alive(&mut rig, address);
}

fn send_without_a_socket_is_dropped_and_counted<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let to = client().local_addr().unwrap();
    rig.send_datagram(SOCKET, to, b"x");
    assert_eq!(rig.io.datagram_statistics().send_dropped, 1);
    assert_eq!(rig.poll(), 0);
}

fn socket_closes_with_sends_under_way<D: Driver>() {
    for polls in [0, 2] {
        let Some(mut rig) = Rig::<D>::new() else {
            return;
        };
        rig.bind(DATAGRAM_BYTES_MAX);
        let receiver = client();
        let to = receiver.local_addr().unwrap();
        for _ in 0..100 {
            rig.send_datagram(SOCKET, to, &pattern(60_000));
        }
        for _ in 0..polls {
            rig.poll();
        }
        rig.io.submit(Request::CloseUdp(SOCKET));
        rig.send_datagram(SOCKET, to, b"too late");
        rig.udp_closed(SOCKET);
        let statistics = rig.io.datagram_statistics();
        assert_eq!(statistics.sent + statistics.send_failed, 100);
        assert_eq!(statistics.send_dropped, 1);
        assert_eq!(rig.io.things_held(), 0);
    }
}

fn driver_ends_with_sends_and_receives_under_way<D: Driver>() {
    for polls in [0, 2] {
        let Some(mut rig) = Rig::<D>::new() else {
            return;
        };
        let address = rig.try_bind(SOCKET, QUIET, DATAGRAM_BYTES_MAX).unwrap();
        rig.try_bind(OTHER, "127.0.0.1:0", 100).unwrap();
        for _ in 0..100 {
            rig.send_datagram(SOCKET, address, &pattern(60_000));
            rig.send_datagram(OTHER, address, &pattern(60_000));
        }
        for _ in 0..polls {
            rig.poll();
        }
        let lent = (polls > 0).then(|| rig.lent_datagram(SOCKET));
        drop(rig);
        if let Some((_, buffer)) = lent {
            assert!(*buffer == pattern(60_000), "the buffer outlives the driver");
        }
        UdpSocket::bind(address).expect("the port is free");
    }
}

fn socket_closes_and_is_bound_again<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let mut address = rig.try_bind(SOCKET, QUIET, 1000).unwrap();
    for _ in 0..10 {
        check_alive(&mut rig, address);
        rig.close_udp(SOCKET);
        UdpSocket::bind(address).expect("the port is free");
        address = rig.try_bind(SOCKET, &address.to_string(), 1000).unwrap();
    }
}

/// Buffers released after the end of their socket, and of its successor's birth.
fn closed_socket_takes_its_buffers_back<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(1000);
    let client = client();
    let lent: Vec<_> = (0..10)
        .map(|number: u8| {
            client.send_to(&[number; 500], address).unwrap();
            rig.lent_datagram(SOCKET).1
        })
        .collect();
    rig.close_udp(SOCKET);
    let address = rig.bind(700);
    for (number, buffer) in lent.into_iter().enumerate() {
        assert_eq!(*buffer, [number as u8; 500]);
        rig.io.release(buffer);
        check_alive(&mut rig, address);
    }
}

fn socket_that_never_received_closes<D: Driver>() {
    for polls in [0, 2] {
        let Some(mut rig) = Rig::<D>::new() else {
            return;
        };
        rig.bind(1000);
        for _ in 0..polls {
            assert_eq!(rig.poll(), 0);
        }
        rig.close_udp(SOCKET);
        rig.close_udp(OTHER);
        assert_eq!(rig.io.things_held(), 0);
    }
}

fn address_in_use_is_waited_for<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let holder = client();
    let address = holder.local_addr().unwrap();
    rig.io.submit(Request::BindUdp { socket: SOCKET, address, bytes_max: 1000 });
    assert_eq!(rig.poll(), 0, "the address is in use");
    drop(holder);
    assert_eq!(rig.bound(SOCKET).unwrap(), address);
    check_alive(&mut rig, address);
}

fn address_that_stays_in_use_is_an_error<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let holder = client();
    let address = holder.local_addr().unwrap();
    let error = rig.try_bind(SOCKET, &address.to_string(), 1000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let address = rig.bind(1000);
    check_alive(&mut rig, address);
}

fn close_while_the_address_is_waited_for<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let holder = client();
    let address = holder.local_addr().unwrap();
    rig.io.submit(Request::BindUdp { socket: SOCKET, address, bytes_max: 1000 });
    rig.poll();
    rig.io.submit(Request::CloseUdp(SOCKET));
    assert_eq!(rig.bound(SOCKET).unwrap_err().kind(), ErrorKind::Interrupted);
    rig.udp_closed(SOCKET);
}

fn binding_twice_is_an_error<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.bind(1000);
    let error = rig.try_bind(SOCKET, "127.0.0.1:0", 1000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    check_alive(&mut rig, address);
}

/// Datagrams that came while nobody looked overflow the completion queue of eight entries and end
/// the multishot receive.
#[test]
fn no_datagram_is_lost_when_the_completion_queue_overflows() {
    let Some(mut rig) = ring_rig(tiny_queues()) else {
        return;
    };
    let address = rig.bind(1000);
    rig.poll();
    let client = client();
    for number in 0..200_u8 {
        client.send_to(&[number], address).unwrap();
    }
    let mut numbers: Vec<_> = (0..200).map(|_| rig.datagram(SOCKET).1[0]).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..200));
    check_alive(&mut rig, address);
    rig.close_udp(SOCKET);
    assert_eq!(rig.io.slots_in_use(), 0);
}
