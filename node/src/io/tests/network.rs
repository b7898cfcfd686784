//! Listening, receiving, sending and closing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::{Driver, LISTENER, Rig, on_all_drivers};
use crate::io::{Completion, Request};

on_all_drivers![
    bytes_are_echoed,
    half_closed_peer_reads_as_empty,
    large_send_arrives_whole_at_a_slow_reader,
    send_of_nothing_completes,
    send_of_more_parts_than_one_call_takes,
    close_ends_an_outstanding_receive,
    close_ends_a_stuck_send,
    reset_by_peer_is_an_error,
    send_to_a_peer_that_is_gone_fails,
    thousand_connections_leave_nothing_behind,
    address_in_use_is_waited_for,
    address_that_stays_in_use_is_an_error,
    listener_stops_and_starts_again,
    listening_twice_is_an_error,
    stop_while_the_address_is_waited_for,
];

fn bytes_are_echoed<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut bytes = Vec::new();
        for round in 0..100_u8 {
            stream.write_all(&[round; 1000]).unwrap();
            let mut answer = [0; 1000];
            stream.read_exact(&mut answer).unwrap();
            bytes.extend_from_slice(&answer);
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        bytes
    });
    let (connection, _) = rig.accepted();
    loop {
        rig.io.submit(Request::Receive(connection));
        let bytes = rig.received(connection).unwrap();
        if bytes.is_empty() {
            break;
        }
        rig.io.submit(Request::Send(connection, vec![Bytes::from(bytes)]));
        rig.sent(connection).unwrap();
    }
    rig.close(connection);
    let echoed = client.join().unwrap();
    assert!(echoed.chunks(1000).enumerate().all(|(round, chunk)| chunk == [round as u8; 1000]));
}

fn half_closed_peer_reads_as_empty<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    rig.io.submit(Request::Receive(connection));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.received(connection).unwrap(), b"");
    // The other direction still works.
    rig.io.submit(Request::Send(connection, vec![Bytes::from_static(b"bye")]));
    rig.sent(connection).unwrap();
    rig.close(connection);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"bye");
}

fn large_send_arrives_whole_at_a_slow_reader<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    let parts = patterned_parts(32 << 20);
    let expected = parts.concat();
    rig.io.submit(Request::Send(connection, parts));
    for _ in 0..3 {
        assert_eq!(rig.poll(), 0, "no socket holds 32 MiB");
    }
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; 32 << 20];
        let mut got = 0;
        while got < bytes.len() {
            // In small bites, so that sends are short and must be resumed.
            let end = bytes.len().min(got + 60_000);
            let count = client.read(&mut bytes[got..end]).unwrap();
            assert!(count > 0, "the stream ended after {got} bytes");
            got += count;
        }
        bytes
    });
    rig.sent(connection).unwrap();
    assert!(reader.join().unwrap() == expected, "the bytes differ");
}

/// Parts of many sizes, none of them alike, that add up to `total`.
pub(super) fn patterned_parts(total: usize) -> Vec<Bytes> {
    let mut parts = Vec::new();
    let (mut left, mut number) = (total, 0_usize);
    while left > 0 {
        let len = left.min([0, 1, 70_000, 3 << 20, 12][number % 5]);
        let part: Vec<u8> = (0..len).map(|at| (at * 7 + number) as u8).collect();
        parts.push(Bytes::from(part));
        left -= len;
        number += 1;
    }
    parts
}

fn send_of_nothing_completes<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let (connection, _client) = rig.connect(address);
    for parts in [vec![], vec![Bytes::new(), Bytes::new()]] {
        rig.io.submit(Request::Send(connection, parts));
        rig.sent(connection).unwrap();
    }
}

fn send_of_more_parts_than_one_call_takes<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    let parts: Vec<_> = (0..5000_u32).map(|at| Bytes::from(at.to_be_bytes().to_vec())).collect();
    let expected = parts.concat();
    rig.io.submit(Request::Send(connection, parts));
    rig.sent(connection).unwrap();
    let mut answer = vec![0; expected.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, expected);
}

fn close_ends_an_outstanding_receive<D: Driver>() {
    for polls in [0, 2] {
        let Some(mut rig) = Rig::<D>::new() else {
            return;
        };
        let address = rig.listen();
        let (connection, mut client) = rig.connect(address);
        rig.io.submit(Request::Receive(connection));
        for _ in 0..polls {
            rig.poll();
        }
        rig.io.submit(Request::Close(connection));
        let first = rig.expect(Ok);
        assert!(matches!(first, Completion::Received { result: Err(_), .. }), "{first:?}");
        let second = rig.expect(Ok);
        assert!(matches!(second, Completion::Closed(closed) if closed == connection), "{second:?}");
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(rig.io.things_held(), 0);
    }
}

fn close_ends_a_stuck_send<D: Driver>() {
    for polls in [0, 2] {
        let Some(mut rig) = Rig::<D>::new() else {
            return;
        };
        let address = rig.listen();
        let (connection, _client) = rig.connect(address);
        rig.io.submit(Request::Receive(connection));
        rig.io.submit(Request::Send(connection, patterned_parts(64 << 20)));
        for _ in 0..polls {
            assert_eq!(rig.poll(), 0);
        }
        rig.io.submit(Request::Close(connection));
        assert!(rig.received(connection).is_err());
        assert!(rig.sent(connection).is_err());
        rig.closed(connection);
        assert_eq!(rig.io.things_held(), 0);
    }
}

fn reset_by_peer_is_an_error<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let (connection, client) = rig.connect(address);
    rig.io.submit(Request::Receive(connection));
    rig.poll();
    reset(client);
    let error = rig.received(connection).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    rig.close(connection);
    assert_eq!(rig.io.things_held(), 0);
}

fn send_to_a_peer_that_is_gone_fails<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let (connection, client) = rig.connect(address);
    rig.io.submit(Request::Send(connection, patterned_parts(64 << 20)));
    assert_eq!(rig.poll(), 0);
    reset(client);
    let error = rig.sent(connection).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{error:?}"
    );
    rig.close(connection);
}

/// Closes a socket so that its other end hears of an error, not of an end.
fn reset(client: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
}

fn thousand_connections_leave_nothing_behind<D: Driver>() {
    const CONNECTIONS: usize = 1000;
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    let client = thread::spawn(move || {
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"x").unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"x");
        }
    });
    let mut closed = 0;
    while closed < CONNECTIONS {
        match rig.expect(Ok) {
            Completion::Accepted { connection, .. } => rig.io.submit(Request::Receive(connection)),
            Completion::Received { connection, result } => {
                let buffer = result.unwrap();
                let bytes = Bytes::copy_from_slice(&buffer);
                rig.io.release(buffer);
                rig.io.submit(Request::Send(connection, vec![bytes]));
            }
            Completion::Sent { connection, result } => {
                result.unwrap();
                rig.io.submit(Request::Close(connection));
            }
            Completion::Closed(_) => closed += 1,
            other => panic!("{other:?}"),
        }
    }
    client.join().unwrap();
    assert_eq!(rig.io.things_held(), 0);
}

fn address_in_use_is_waited_for<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    rig.io.submit(Request::Listen(LISTENER, address));
    assert_eq!(rig.poll(), 0, "the address is in use");
    drop(holder);
    assert_eq!(rig.listening().unwrap(), address);
    let (connection, _client) = rig.connect(address);
    rig.close(connection);
}

fn address_that_stays_in_use_is_an_error<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    rig.io.submit(Request::Listen(LISTENER, holder.local_addr().unwrap()));
    assert_eq!(rig.listening().unwrap_err().kind(), ErrorKind::AddrInUse);
    assert!(rig.listen().port() != 0, "another address can be tried");
}

fn listener_stops_and_starts_again<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let mut address = rig.listen();
    for _ in 0..3 {
        let (connection, mut client) = rig.connect(address);
        rig.io.submit(Request::StopListening(LISTENER));
        rig.expect(|completion| match completion {
            Completion::ListenerClosed(LISTENER) => Ok(()),
            other => Err(other),
        });
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // What is connected already stays.
        rig.io.submit(Request::Send(connection, vec![Bytes::from_static(b"x")]));
        rig.sent(connection).unwrap();
        client.read_exact(&mut [0; 1]).unwrap();
        rig.close(connection);
        rig.io.submit(Request::Listen(LISTENER, address));
        address = rig.listening().unwrap();
    }
}

fn listening_twice_is_an_error<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let address = rig.listen();
    rig.io.submit(Request::Listen(LISTENER, "127.0.0.1:0".parse().unwrap()));
    assert_eq!(rig.listening().unwrap_err().kind(), ErrorKind::AlreadyExists);
    rig.connect(address);
}

fn stop_while_the_address_is_waited_for<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    rig.io.submit(Request::Listen(LISTENER, holder.local_addr().unwrap()));
    rig.poll();
    rig.io.submit(Request::StopListening(LISTENER));
    assert_eq!(rig.listening().unwrap_err().kind(), ErrorKind::Interrupted);
    rig.expect(|completion| match completion {
        Completion::ListenerClosed(LISTENER) => Ok(()),
        other => Err(other),
    });
}
