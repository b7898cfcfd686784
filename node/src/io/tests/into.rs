//! Receiving into memory that is lent, between receives into the driver's own.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use super::{Driver, Rig, on_all_drivers};
use crate::io::uring::{UringIo, UringOptions};
use crate::io::{Completion, ConnectionId, Io, ReceiveRoom, Request};

on_all_drivers![
    bytes_are_in_order_across_the_switch,
    bytes_that_came_before_come_first,
    room_is_filled_where_it_is,
    peer_that_ends_in_the_middle_reads_as_nothing,
    end_that_came_before_is_told,
    reset_in_the_middle_gives_the_room_back,
    close_in_the_middle_gives_the_room_back,
    driver_dropped_in_the_middle,
    deep_pipelines_of_long_and_short_messages,
];

impl<D: Driver> Rig<D> {
    fn received_into(&mut self, id: ConnectionId) -> (ReceiveRoom, std::io::Result<usize>) {
        self.expect(|completion| match completion {
            Completion::ReceivedInto { connection, room, result } if connection == id => {
                Ok((room, result))
            }
            other => Err(other),
        })
    }

    fn receive_into(&mut self, id: ConnectionId, room: ReceiveRoom) -> (ReceiveRoom, usize) {
        self.io.submit(Request::ReceiveInto(id, room));
        let (room, result) = self.received_into(id);
        (room, result.unwrap())
    }

    /// Receives until the room is full or the peer has ended.
    fn fill(&mut self, id: ConnectionId, room: ReceiveRoom) -> ReceiveRoom {
        let mut room = room;
        while room.left() > 0 {
            let before = room.filled().len();
            let (back, count) = self.receive_into(id, room);
            room = back;
            assert_eq!(room.filled().len(), before + count);
            if count == 0 {
                break;
            }
        }
        room
    }
}

fn room(len: usize) -> ReceiveRoom {
    ReceiveRoom::new(len).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn write_in_background(mut client: TcpStream, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    thread::spawn(move || client.write_all(&bytes).unwrap())
}

fn bytes_are_in_order_across_the_switch<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else { return };
    let address = rig.listen();
    let (connection, client) = rig.connect(address);
    let bytes = pattern(8 << 20);
    let writer = write_in_background(client, bytes.clone());
    let mut received = Vec::new();
    for len in [100_000, 1, 20_000, 3_000_000, 5, 16_384, 500_000].into_iter().cycle() {
        let room = rig.fill(connection, room(len));
        received.extend_from_slice(room.filled());
        if room.left() > 0 {
            break;
        }
        for _ in 0..len % 3 {
            rig.io.submit(Request::Receive(connection));
            received.extend(rig.received(connection).unwrap());
        }
    }
    writer.join().unwrap();
    assert!(received == bytes, "the bytes differ");
    rig.close(connection);
    assert_eq!(rig.io.things_held(), 0);
}

fn bytes_that_came_before_come_first<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else { return };
    let address = rig.listen();
    for polls in 0..4 {
        let (connection, mut client) = rig.connect(address);
        rig.io.submit(Request::Receive(connection));
        client.write_all(b"a").unwrap();
        assert_eq!(rig.received(connection).unwrap(), b"a");
        client.write_all(b"bcdefgh").unwrap();
        for _ in 0..polls {
            assert_eq!(rig.poll(), 0, "nobody has asked");
        }
        // More is there than is asked for.
        assert_eq!(rig.fill(connection, room(3)).filled(), b"bcd");
        client.write_all(b"ijk").unwrap();
        let mut rest = Vec::new();
        while rest.len() < 7 {
            rig.io.submit(Request::Receive(connection));
            rest.extend(rig.received(connection).unwrap());
        }
        assert_eq!(rest, b"efghijk");
        rig.close(connection);
    }
}

fn room_is_filled_where_it_is<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else { return };
    let address = rig.listen();
    let (connection, client) = rig.connect(address);
    let bytes = pattern(1 << 20);
    let writer = write_in_background(client, bytes.clone());
    let room = room(bytes.len());
    let place = room.filled().as_ptr();
    let room = rig.fill(connection, room);
    assert_eq!(room.copied(), 0, "nothing came before");
    let received = room.into_bytes();
    assert_eq!(received.as_ptr(), place);
    assert!(received == bytes, "the bytes differ");
    writer.join().unwrap();
}

fn peer_that_ends_in_the_middle_reads_as_nothing<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else { return };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    rig.io.submit(Request::ReceiveInto(connection, room(100)));
    client.write_all(b"half").unwrap();
    let (room, count) = rig.received_into(connection);
    assert_eq!((room.filled(), count.unwrap()), (&b"half"[..], 4));
    client.shutdown(Shutdown::Write).unwrap();
    let (room, count) = rig.receive_into(connection, room);
    assert_eq!((room.filled(), count), (&b"half"[..], 0));
    // The other direction still works, and the end is told as often as it is asked for.
    rig.io.submit(Request::Send(connection, vec![bytes::Bytes::from_static(b"bye")]));
    rig.sent(connection).unwrap();
    rig.io.submit(Request::Receive(connection));
    assert_eq!(rig.received(connection).unwrap(), b"");
    rig.close(connection);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"bye");
}

fn end_that_came_before_is_told<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else { return };
    let address = rig.listen();
    for polls in [0, 3] {
        let (connection, mut client) = rig.connect(address);
        rig.io.submit(Request::Receive(connection));
        client.write_all(b"a").unwrap();
        assert_eq!(rig.received(connection).unwrap(), b"a");
        client.write_all(b"b").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        for _ in 0..polls {
            rig.poll();
        }
        assert_eq!(rig.fill(connection, room(10)).filled(), b"b");
        rig.close(connection);
    }
}

fn reset_in_the_middle_gives_the_room_back<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else { return };
    let address = rig.listen();
    let (connection, mut client) = rig.connect(address);
    client.write_all(b"half").unwrap();
    let (room, _) = rig.receive_into(connection, room(100));
    rig.io.submit(Request::ReceiveInto(connection, room));
    rig.poll();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let (room, result) = rig.received_into(connection);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!((room.filled(), room.left()), (&b"half"[..], 96));
    rig.close(connection);
    assert_eq!(rig.io.things_held(), 0);
}

/// A connection on which a receive into memory is under way, after one that was not.
fn in_the_middle<D: Driver>(
    rig: &mut Rig<D>,
    address: SocketAddr,
    (stands, polls): (bool, usize),
) -> (ConnectionId, TcpStream) {
    let (connection, mut client) = rig.connect(address);
    if stands {
        rig.io.submit(Request::Receive(connection));
        client.write_all(b"a").unwrap();
        assert_eq!(rig.received(connection).unwrap(), b"a");
    }
    rig.io.submit(Request::ReceiveInto(connection, room(1 << 20)));
    for _ in 0..polls {
        assert_eq!(rig.poll(), 0);
    }
    (connection, client)
}

const MIDDLES: [(bool, usize); 6] =
    [(false, 0), (false, 1), (false, 3), (true, 0), (true, 1), (true, 3)];

fn close_in_the_middle_gives_the_room_back<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else { return };
    let address = rig.listen();
    for middle in MIDDLES {
        let (connection, mut client) = in_the_middle(&mut rig, address, middle);
        rig.io.submit(Request::Close(connection));
        let first = rig.expect(Ok);
        let Completion::ReceivedInto { room, result: Err(_), .. } = first else {
            panic!("{middle:?}: {first:?}")
        };
        assert_eq!(room.left(), 1 << 20);
        let second = rig.expect(Ok);
        assert!(matches!(second, Completion::Closed(closed) if closed == connection), "{second:?}");
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        rig.settle();
        assert_eq!(rig.io.things_held(), 0);
    }
}

/// The memory lives until the kernel has let go of it; what comes then goes nowhere.
fn driver_dropped_in_the_middle<D: Driver>() {
    for middle in MIDDLES {
        let Some(mut rig) = Rig::<D>::new() else { return };
        let address = rig.listen();
        let (_, mut client) = in_the_middle(&mut rig, address, middle);
        client.write_all(&pattern(100_000)).unwrap();
        drop(rig);
        let memory = vec![0x5a_u8; 1 << 20];
        // Gone: an error or an end, whichever way the driver has closed it.
        let _ = client.write_all(&pattern(100_000));
        assert!(memory.iter().all(|byte| *byte == 0x5a), "something was received after the end");
    }
}

/// What a connection has got of its stream of messages, each behind its length.
struct Reader {
    rest: Vec<u8>,
    messages: Vec<Vec<u8>>,
}

impl Reader {
    /// Takes what came; answers with what to ask for.
    fn take(&mut self, bytes: &[u8]) -> Option<ReceiveRoom> {
        self.rest.extend_from_slice(bytes);
        loop {
            let (head, body) = self.rest.split_first_chunk::<4>()?;
            let len = u32::from_be_bytes(*head) as usize;
            if body.len() >= len {
                self.messages.push(body[..len].to_vec());
                self.rest.drain(..4 + len);
                continue;
            }
            if len <= 16 << 10 {
                return None;
            }
            let mut room = room(len);
            room.copy(body);
            self.rest.clear();
            return Some(room);
        }
    }
}

fn deep_pipelines_of_long_and_short_messages<D: Driver>() {
    const LENS: [usize; 12] =
        [3, 16_383, 16_384, 16_385, 0, 70_000, 1, 300_000, 20_000, 9, 2_000_000, 5];
    let Some(mut rig) = Rig::<D>::new() else { return };
    let address = rig.listen();
    let mut readers = std::collections::BTreeMap::new();
    let mut writers = Vec::new();
    for number in 0..3 {
        let (connection, client) = rig.connect(address);
        let mut bytes = Vec::new();
        for len in LENS.iter().cycle().skip(number).take(3 * LENS.len()) {
            bytes.extend_from_slice(&u32::try_from(*len).unwrap().to_be_bytes());
            bytes.extend_from_slice(&pattern(*len));
        }
        writers.push(write_in_background(client, bytes));
        readers.insert(connection, (number, Reader { rest: vec![], messages: vec![] }));
        rig.io.submit(Request::Receive(connection));
    }
    let mut ended = 0;
    while ended < readers.len() {
        let (connection, next) = match rig.expect(Ok) {
            Completion::Received { connection, result } => {
                let buffer = result.unwrap();
                let (_, reader) = readers.get_mut(&connection).unwrap();
                let next = reader.take(&buffer);
                ended += usize::from(buffer.is_empty());
                let is_last = buffer.is_empty();
                rig.io.release(buffer);
                if is_last {
                    continue;
                }
                (connection, next)
            }
            Completion::ReceivedInto { connection, room, result } => {
                assert!(result.unwrap() > 0, "the peer ended in the middle of a message");
                let (_, reader) = readers.get_mut(&connection).unwrap();
                if room.left() > 0 {
                    (connection, Some(room))
                } else {
                    reader.messages.push(room.filled().to_vec());
                    (connection, None)
                }
            }
            other => panic!("{other:?}"),
        };
        rig.io.submit(match next {
            Some(room) => Request::ReceiveInto(connection, room),
            None => Request::Receive(connection),
        });
    }
    for (number, reader) in readers.values() {
        let expected = LENS.iter().cycle().skip(*number).take(3 * LENS.len());
        assert!(expected.map(|len| pattern(*len)).eq(reader.messages.iter().cloned()), "{number}");
        assert!(reader.rest.is_empty());
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

/// Memory that is lent needs no buffer of the ring's.
#[test]
fn rooms_are_filled_while_all_buffers_are_lent() {
    let options = UringOptions { receive_buffers: 2, ..UringOptions::default() };
    let Some(mut rig) = super::ring::rig(options) else { return };
    let address = rig.listen();
    let mut lent = Vec::new();
    for _ in 0..2 {
        let (connection, mut client) = rig.connect(address);
        client.write_all(b"x").unwrap();
        rig.io.submit(Request::Receive(connection));
        lent.push(rig.expect(|completion| match completion {
            Completion::Received { result, .. } => Ok(result.unwrap()),
            other => Err(other),
        }));
    }
    let (connection, mut client) = rig.connect(address);
    client.write_all(b"four").unwrap();
    assert_eq!(rig.fill(connection, room(4)).filled(), b"four");
    let counters = rig.io.receive_counters();
    assert_eq!(counters.placed_bytes, 4);
    lent.into_iter().for_each(|buffer| rig.io.release(buffer));
}

/// Of long messages in a row only the first buffer of each is copied, and no receive stands.
#[test]
fn long_messages_in_a_row_take_a_buffer_each() {
    let Some(mut rig): Option<Rig<UringIo>> = super::ring::rig(UringOptions::default()) else {
        return;
    };
    let address = rig.listen();
    let (connection, client) = rig.connect(address);
    let bytes = pattern(4 << 20);
    let writer = write_in_background(client, bytes.clone());
    let mut received = rig.fill(connection, room(100)).filled().to_vec();
    let mut in_buffers = 0;
    while received.len() < bytes.len() {
        rig.io.submit(Request::Receive(connection));
        let head = rig.received(connection).unwrap();
        in_buffers += head.len();
        received.extend(head);
        let len = (bytes.len() - received.len()).min(500_000);
        if len > 0 {
            let room = rig.fill(connection, room(len));
            assert_eq!(room.copied(), 0, "more than a buffer came before");
            received.extend_from_slice(room.filled());
        }
    }
    assert!(received == bytes, "the bytes differ");
    writer.join().unwrap();
    let counters = rig.io.receive_counters();
    assert_eq!(counters.placed_bytes as usize + in_buffers, bytes.len());
    assert_eq!((counters.paused, counters.broken_off), (0, 0), "{counters:?}");
}
