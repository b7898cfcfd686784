//! Connections of our own making, and two listeners side by side.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;

use bytes::Bytes;
use rustix::net::{AddressFamily, SocketType};

use super::network::patterned_parts;
use super::ring::rig as ring_rig;
use super::{Driver, LISTENER, Rig, on_all_drivers};
use crate::io::uring::UringOptions;
use crate::io::{AttemptId, Completion, ConnectionId, Io, ListenerId, Monotonic, Request};

const ATTEMPT: AttemptId = AttemptId(7);
const NEVER: Monotonic = Monotonic(u64::MAX);

on_all_drivers![
    eight_mebibytes_are_echoed_to_a_connection_we_made,
    both_ends_of_a_connection_may_be_ours,
    connection_that_is_refused_is_an_error,
    address_without_a_route_is_an_error,
    connection_that_nobody_answers_runs_out_of_time,
    attempt_is_cancelled_under_way,
    attempt_is_cancelled_and_the_other_end_has_closed,
    cancelling_an_attempt_that_has_ended_does_nothing,
    driver_ends_with_attempts_under_way,
    hundred_attempts_at_once,
    two_listeners_tell_their_connections_apart,
    one_listener_stops_and_the_other_goes_on,
];

impl<D: Driver> Rig<D> {
    fn try_connect(&mut self, attempt: AttemptId, to: SocketAddr, deadline: Monotonic) {
        self.io.submit(Request::Connect { attempt, to, deadline });
    }

    fn connected(&mut self, id: AttemptId) -> std::io::Result<ConnectionId> {
        self.expect(|completion| match completion {
            Completion::Connected { attempt, result } if attempt == id => Ok(result),
            other => Err(other),
        })
    }

    fn accepted_by(&mut self, id: ListenerId) -> (ConnectionId, SocketAddr) {
        self.expect(|completion| match completion {
            Completion::Accepted { listener, connection, peer } if listener == id => {
                Ok((connection, peer))
            }
            other => Err(other),
        })
    }

    fn listen_as(&mut self, id: ListenerId) -> SocketAddr {
        self.io.submit(Request::Listen(id, "127.0.0.1:0".parse().unwrap()));
        self.expect(|completion| match completion {
            Completion::Listening(listener, result) if listener == id => Ok(result.unwrap()),
            other => Err(other),
        })
    }

    /// Receives all that comes up to `len` bytes.
    fn receive_all(&mut self, connection: ConnectionId, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            self.io.submit(Request::Receive(connection));
            let bytes = self.received(connection).unwrap();
            assert!(!bytes.is_empty(), "the stream ended after {} bytes", all.len());
            all.extend(bytes);
        }
        all
    }
}

/// A listener that does not accept and has no room for connections: attempts hang. Returns the
/// connections that take its room, too.
fn deaf_listener() -> (SocketAddr, OwnedFd, Vec<TcpStream>) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap();
    let address = SocketAddr::try_from(address).unwrap();
    (address, socket, vec![TcpStream::connect(address).unwrap()])
}

fn eight_mebibytes_are_echoed_to_a_connection_we_made<D: Driver>() {
    const LEN: usize = 8 << 20;
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; LEN];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    });
    rig.try_connect(ATTEMPT, address, NEVER);
    let connection = rig.connected(ATTEMPT).unwrap();
    let parts = patterned_parts(LEN);
    let expected = parts.concat();
    rig.io.submit(Request::Send(connection, parts));
    rig.sent(connection).unwrap();
    assert!(rig.receive_all(connection, LEN) == expected, "the bytes differ");
    rig.close(connection);
    server.join().unwrap();
    assert_eq!(rig.io.things_held(), 0);
}

fn both_ends_of_a_connection_may_be_ours<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    rig.try_connect(ATTEMPT, address, NEVER);
    let ours = rig.connected(ATTEMPT).unwrap();
    let (theirs, _) = rig.accepted();
    assert_ne!(ours, theirs);
    for (from, to) in [(ours, theirs), (theirs, ours)] {
        rig.io.submit(Request::Receive(to));
        rig.io.submit(Request::Send(from, vec![Bytes::from_static(b"hello")]));
        rig.sent(from).unwrap();
        assert_eq!(rig.received(to).unwrap(), b"hello");
    }
    rig.close(ours);
    rig.io.submit(Request::Receive(theirs));
    assert_eq!(rig.received(theirs).unwrap(), b"");
    rig.close(theirs);
    assert_eq!(rig.io.things_held(), 0);
}

/// An address on which nobody listens, kept by a bound socket that does not.
fn refusing_address() -> (SocketAddr, OwnedFd) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap();
    (SocketAddr::try_from(address).unwrap(), socket)
}

fn connection_that_is_refused_is_an_error<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let (address, _holder) = refusing_address();
    for _ in 0..2 {
        rig.try_connect(ATTEMPT, address, NEVER);
        assert_eq!(rig.connected(ATTEMPT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    rig.settle();
    assert_eq!(rig.io.things_held(), 0);
}

/// TCP has no broadcast.
fn address_without_a_route_is_an_error<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    rig.try_connect(ATTEMPT, "255.255.255.255:1".parse().unwrap(), NEVER);
    rig.connected(ATTEMPT).unwrap_err();
    rig.settle();
    assert_eq!(rig.io.things_held(), 0);
}

fn connection_that_nobody_answers_runs_out_of_time<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let (address, _listener, _connections) = deaf_listener();
    let deadline = rig.io.now().0.plus_millis(30);
    rig.try_connect(ATTEMPT, address, deadline);
    assert_eq!(rig.connected(ATTEMPT).unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(rig.io.now().0 >= deadline);
    // The name is free again. A deadline in the past is one, too.
    rig.try_connect(ATTEMPT, address, Monotonic(0));
    assert_eq!(rig.connected(ATTEMPT).unwrap_err().kind(), ErrorKind::TimedOut);
    rig.settle();
    assert_eq!(rig.io.things_held(), 0);
}

fn attempt_is_cancelled_under_way<D: Driver>() {
    for polls in [0, 2] {
        let Some(mut rig) = Rig::<D>::new() else {
            return;
        };
        let (address, _listener, _connections) = deaf_listener();
        rig.try_connect(ATTEMPT, address, NEVER);
        for _ in 0..polls {
            assert_eq!(rig.poll(), 0, "nobody answers");
        }
        rig.io.submit(Request::CancelConnect(ATTEMPT));
        // A second time changes nothing.
        rig.io.submit(Request::CancelConnect(ATTEMPT));
        assert_eq!(rig.connected(ATTEMPT).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        rig.settle();
        assert_eq!(rig.io.things_held(), 0);
    }
}

/// A socket that was connected, shut down and closed by its peer is neither connected nor has it an
/// error; a driver that looks for the one or the other looks for ever.
fn attempt_is_cancelled_and_the_other_end_has_closed<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    rig.try_connect(ATTEMPT, server.local_addr().unwrap(), NEVER);
    // A driver that begins to connect later has only an attempt to cancel.
    let accepted = server.accept();
    rig.io.submit(Request::CancelConnect(ATTEMPT));
    drop(accepted);
    assert_eq!(rig.connected(ATTEMPT).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    rig.settle();
    assert_eq!(rig.io.things_held(), 0);
}

fn cancelling_an_attempt_that_has_ended_does_nothing<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    rig.try_connect(ATTEMPT, address, NEVER);
    let connection = rig.connected(ATTEMPT).unwrap();
    rig.io.submit(Request::CancelConnect(ATTEMPT));
    rig.io.submit(Request::CancelConnect(AttemptId(8)));
    rig.io.submit(Request::Send(connection, vec![Bytes::from_static(b"x")]));
    rig.sent(connection).unwrap();
    rig.close(connection);
}

/// A socket bound to the port it connects to meets itself; here it is bound beforehand, in the
/// field it happens by chance among the ephemeral ports.
#[test]
fn connection_to_ourselves_does_not_count() {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let own = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    rustix::net::connect(&socket, &own).unwrap();
    let error = crate::io::sockets::prepare_connected(&socket).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

fn driver_ends_with_attempts_under_way<D: Driver>() {
    for polls in [0, 2] {
        let Some(mut rig) = Rig::<D>::new() else {
            return;
        };
        let (address, _listener, _connections) = deaf_listener();
        for number in 0..10 {
            rig.try_connect(AttemptId(number), address, NEVER);
        }
        for _ in 0..polls {
            assert_eq!(rig.poll(), 0, "nobody answers");
        }
        drop(rig);
    }
}

fn hundred_attempts_at_once<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let (refusing, _holder) = refusing_address();
    for number in 0..100 {
        let to = if number % 2 == 0 { address } else { refusing };
        rig.try_connect(AttemptId(number), to, NEVER);
    }
    for number in 0..100 {
        let result = rig.connected(AttemptId(number));
        assert_eq!(result.is_ok(), number % 2 == 0, "{number}: {result:?}");
        if let Ok(connection) = result {
            rig.io.submit(Request::Close(connection));
        }
    }
    for _ in 0..50 {
        let (connection, _) = rig.accepted();
        rig.close(connection);
    }
}

fn two_listeners_tell_their_connections_apart<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let listeners = [LISTENER, ListenerId(255)];
    let addresses = listeners.map(|listener| rig.listen_as(listener));
    assert_ne!(addresses[0], addresses[1]);
    for (listener, address) in listeners.into_iter().zip(addresses) {
        for _ in 0..3 {
            let mut client = TcpStream::connect(address).unwrap();
            let (connection, peer) = rig.accepted_by(listener);
            assert_eq!(peer, client.local_addr().unwrap());
            rig.io.submit(Request::Receive(connection));
            client.write_all(b"x").unwrap();
            assert_eq!(rig.received(connection).unwrap(), b"x");
            rig.close(connection);
        }
    }
}

fn one_listener_stops_and_the_other_goes_on<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let (stopping, staying) = (ListenerId(1), ListenerId(2));
    let addresses = [stopping, staying].map(|listener| rig.listen_as(listener));
    rig.io.submit(Request::StopListening(stopping));
    rig.expect(|completion| match completion {
        Completion::ListenerClosed(listener) if listener == stopping => Ok(()),
        other => Err(other),
    });
    let refused = TcpStream::connect(addresses[0]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let client = TcpStream::connect(addresses[1]).unwrap();
    let (_, peer) = rig.accepted_by(staying);
    assert_eq!(peer, client.local_addr().unwrap());
}

/// Neither the attempts' own operations nor their timers stay in the ring.
#[test]
fn attempts_leave_no_operation_behind() {
    let Some(mut rig) = ring_rig(UringOptions::default()) else {
        return;
    };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let ((refusing, _holder), (deaf, _listener, _connections)) =
        (refusing_address(), deaf_listener());
    let soon = rig.io.now().0.plus_millis(20);
    rig.try_connect(AttemptId(0), server.local_addr().unwrap(), NEVER);
    rig.try_connect(AttemptId(1), refusing, NEVER);
    rig.try_connect(AttemptId(2), deaf, soon);
    rig.try_connect(AttemptId(3), deaf, NEVER);
    rig.io.submit(Request::CancelConnect(AttemptId(3)));
    let connection = rig.connected(AttemptId(0)).unwrap();
    for number in 1..4 {
        rig.connected(AttemptId(number)).unwrap_err();
    }
    rig.close(connection);
    for _ in 0..1000 {
        if rig.io.slots_in_use() > 0 {
            rig.poll();
        }
    }
    assert_eq!(rig.io.slots_in_use(), 0);
}
