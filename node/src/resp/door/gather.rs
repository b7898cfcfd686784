//! Commands that several threads execute parts of: how they are taken apart, and how one reply is
//! put together from theirs.
//!
//! The part of the connection's own thread goes the same way as the others. Parts are commands, and
//! their replies are RESP, so a thread need not know that what it is asked is a part.

use bytes::Bytes;
use wal::record::Key;

use super::Door;
use super::connection::{Connection, encode_words};
use super::execute::{Caller, Outcome};
use super::relay::Destination;
use super::reply_queue::Reply;
use super::task::cursor_of;
use crate::io::ConnectionId;
use crate::keyspace::{Keyspace, ThreadIndex};
use crate::resp::command::{Command, EngineCommand, Tail};
use crate::resp::frame::{Arguments, integer};
use crate::resp::reply::Protocol;

/// Where a command is executed.
#[derive(Debug)]
pub(super) enum Route {
    /// On the connection's own thread.
    Here,
    /// On another one.
    Thread(ThreadIndex),
    /// On several.
    Gather(Merge, Vec<Part>),
    /// Here, when other threads have nothing left to answer.
    Alone,
}

/// A thread's part of a command.
#[derive(Debug)]
pub(super) struct Part {
    thread: ThreadIndex,
    command: Vec<u8>,
}

/// How replies become one.
#[derive(Debug)]
pub(super) enum Merge {
    /// The sum of numbers.
    Sum,
    /// OK, if all say so.
    Ok,
    /// The elements of arrays, each key's from the part with this number.
    Values(Vec<usize>),
    /// The elements of all arrays.
    All,
    /// Pages of SCAN.
    Pages,
    /// One that is not nil; the number chooses among them.
    Any(usize),
}

/// A command whose parts are under way.
#[derive(Debug)]
pub(super) struct Gather {
    connection: ConnectionId,
    place: u64,
    protocol: Protocol,
    merge: Merge,
    parts: Vec<Option<Reply>>,
}

impl Gather {
    pub(super) fn connection(&self) -> ConnectionId {
        self.connection
    }
}

impl Door {
    /// Finds where a command is executed. The arguments are the command's.
    pub(super) fn route(
        keyspace: &mut Keyspace,
        connection: &Connection,
        command: &Command<'_>,
        arguments: &Arguments<'_>,
    ) -> Route {
        let spread = keyspace.spread();
        if spread.thread_count == 1 || connection.origin.is_some() {
            return Route::Here;
        }
        let to = |thread| if thread == spread.thread { Route::Here } else { Route::Thread(thread) };
        let of = |key: &[u8]| to(keyspace.thread_of(key));
        match command {
            Command::Get { key }
            | Command::GetDel { key }
            | Command::GetRange { key, .. }
            | Command::SetRange { key, .. }
            | Command::StrLen { key }
            | Command::Type { key }
            | Command::Ttl { key }
            | Command::PTtl { key }
            | Command::ExpireTime { key }
            | Command::PExpireTime { key }
            | Command::Persist { key }
            | Command::Increment { key, .. }
            | Command::Append { key, .. } => of(key),
            Command::Set(set) => of(set.key),
            Command::GetEx(get) => of(get.key),
            Command::Expire(expire) => of(expire.key),
            Command::Del { keys } | Command::Unlink { keys } | Command::Exists { keys } => {
                split(keyspace, arguments, (*keys, 1), |_| Merge::Sum)
            }
            Command::MGet { keys } => split(keyspace, arguments, (*keys, 1), Merge::Values),
            Command::MSet { pairs } => {
                split(keyspace, arguments, (pairs.words(), 2), |_| Merge::Ok)
            }
            Command::DbSize => everywhere(keyspace, arguments, Merge::Sum),
            Command::Keys { .. } => everywhere(keyspace, arguments, Merge::All),
            Command::FlushAll(_) | Command::FlushDb(_) => {
                everywhere(keyspace, arguments, Merge::Ok)
            }
            Command::RandomKey => {
                let choice = usize::from(keyspace.random_point().0[0]);
                everywhere(keyspace, arguments, Merge::Any(choice))
            }
            Command::Scan(_) => everywhere(keyspace, arguments, Merge::Pages),
            Command::Engine(
                EngineCommand::Compact
                | EngineCommand::BackgroundSave { .. }
                | EngineCommand::LastSave
                | EngineCommand::Save
                | EngineCommand::CreateSnapshot { .. }
                | EngineCommand::ListSnapshots
                | EngineCommand::DeleteSnapshot { .. },
            )
            | Command::Info { .. } => to(0),
            // What is under way is answered in the protocol it was asked in.
            Command::Hello(_) | Command::Reset if !connection.relayed.is_empty() => Route::Alone,
            _ => Route::Here,
        }
    }

    /// Sends the parts of a command to their threads.
    pub(super) fn gather(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        (merge, parts): (Merge, Vec<Part>),
    ) -> Outcome {
        let number = self.next_gather;
        self.next_gather += 1;
        let (id, connection) = (caller.id, &mut *caller.connection);
        let (place, protocol) = (connection.replies.reserve(), connection.protocol);
        let missing = parts.iter().map(|_| None).collect();
        let gather = Gather { connection: id, place, protocol, merge, parts: missing };
        self.gathers.insert(number, gather);
        let mut waits = false;
        for (part, Part { thread, command }) in parts.into_iter().enumerate() {
            let to = Destination::Gather { gather: number, part };
            waits |= self.relay_part(keyspace, (id, &mut *connection), thread, (to, command));
        }
        if waits { Outcome::BehindPart(number) } else { Outcome::Done }
    }

    /// Takes a part of a reply. Returns the place of the whole once that is there.
    pub(super) fn take_part(
        &mut self,
        connection: &mut Connection,
        (number, part): (u64, usize),
        reply: Reply,
    ) -> Option<u64> {
        let gather = self.gathers.get_mut(&number)?;
        gather.parts[part] = Some(reply);
        if gather.parts.iter().any(Option::is_none) {
            return None;
        }
        let Gather { place, protocol, merge, parts, .. } = self.gathers.remove(&number)?;
        let reply = merged(protocol, &merge, parts.into_iter().flatten().collect());
        connection.replies.fill(place, reply);
        Some(place)
    }
}

/// Takes a command over many keys apart by their threads; each key is the first of `group` words.
fn split(
    keyspace: &Keyspace,
    arguments: &Arguments<'_>,
    (words, group): (Tail<'_>, usize),
    merge: impl FnOnce(Vec<usize>) -> Merge,
) -> Route {
    let spread = keyspace.spread();
    let mut by_thread: Vec<Vec<&[u8]>> = vec![Vec::new(); usize::from(spread.thread_count)];
    let mut threads = Vec::with_capacity(words.len() / group);
    let (mut words, mut key_thread) = (words.enumerate(), 0);
    for (index, word) in &mut words {
        if index % group == 0 {
            key_thread = usize::from(keyspace.thread_of(word));
            threads.push(key_thread);
        }
        by_thread[key_thread].push(word);
    }
    let first = threads.first().copied().unwrap_or(0);
    if threads.iter().all(|thread| *thread == first) {
        let first = u16::try_from(first).expect("threads are few");
        return if first == spread.thread { Route::Here } else { Route::Thread(first) };
    }
    let (mut parts, mut numbers) = (Vec::new(), vec![0; by_thread.len()]);
    for ((words, thread), number) in by_thread.iter().zip(0..).zip(&mut numbers) {
        if !words.is_empty() {
            *number = parts.len();
            let words = std::iter::once(&arguments[0]).chain(words.iter().copied());
            parts.push(Part {
                thread,
                command: encode_words(words.collect::<Vec<_>>().into_iter()),
            });
        }
    }
    let order = threads.into_iter().map(|thread| numbers[thread]).collect();
    Route::Gather(merge(order), parts)
}

/// The same command for every thread.
fn everywhere(keyspace: &Keyspace, arguments: &Arguments<'_>, merge: Merge) -> Route {
    let command = encode_words(arguments.iter());
    let parts = (0..keyspace.spread().thread_count)
        .map(|thread| Part { thread, command: command.clone() })
        .collect();
    Route::Gather(merge, parts)
}

/// Makes one reply of those of the parts; an error of any of them is the whole's.
fn merged(protocol: Protocol, merge: &Merge, parts: Vec<Reply>) -> Reply {
    let parts: Vec<Elements> = parts.into_iter().map(Elements::of).collect();
    let mut reply = Reply::new(protocol);
    if let Some(text) = parts.iter().find_map(Elements::error) {
        reply.writer().error(&text);
        return reply;
    }
    match merge {
        Merge::Sum => {
            let sum = parts.into_iter().filter_map(|mut part| part.number()).sum();
            reply.writer().integer(sum);
        }
        Merge::Ok => reply.writer().ok(),
        Merge::Values(order) => {
            let mut parts: Vec<_> = parts.into_iter().map(|mut part| part.array()).collect();
            parts.iter_mut().for_each(|part| part.reverse());
            reply.writer().array_header(order.len());
            for part in order {
                match parts.get_mut(*part).and_then(Vec::pop).flatten() {
                    Some(value) => reply.value(value),
                    None => reply.writer().null(),
                }
            }
        }
        Merge::All => {
            let all: Vec<_> = parts.into_iter().flat_map(|mut part| part.array()).collect();
            reply.writer().array_header(all.len());
            all.into_iter().flatten().for_each(|name| reply.writer().bulk(&name));
        }
        Merge::Pages => merge_pages(&mut reply, parts),
        Merge::Any(choice) => {
            let found: Vec<_> = parts.into_iter().filter_map(|mut part| part.bulk()).collect();
            match found.get(choice % found.len().max(1)) {
                Some(name) => reply.writer().bulk(name),
                None => reply.writer().null(),
            }
        }
    }
    reply
}

/// The walk goes on where the first of the threads has stopped, so what others have found behind
/// that comes again.
fn merge_pages(reply: &mut Reply, parts: Vec<Elements>) {
    let mut pages = Vec::new();
    for mut part in parts {
        part.header();
        let cursor = part.bulk().and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok());
        pages.push((cursor.unwrap_or(0_u64), part.array()));
    }
    let next = pages.iter().map(|(cursor, _)| *cursor).filter(|cursor| *cursor != 0).min();
    let is_before = |name: &Bytes| next.is_none_or(|next| cursor_of(&Key::of(name)) < next);
    let names = pages.into_iter().flat_map(|(_, names)| names).flatten();
    let names: Vec<Bytes> = names.filter(is_before).collect();
    let mut writer = reply.writer();
    writer.array_header(2);
    writer.bulk(next.unwrap_or(0).to_string().as_bytes());
    writer.array_header(names.len());
    names.iter().for_each(|name| writer.bulk(name));
}

/// Reads an encoded reply. It is one of ours, so it is as it should be; what is not reads as nil. A
/// value is a slice of the reply's memory, not a copy.
#[derive(Debug)]
struct Elements {
    parts: std::vec::IntoIter<Bytes>,
    part: Bytes,
}

impl Elements {
    fn of(reply: Reply) -> Self {
        let mut parts = reply.into_parts().into_iter();
        let part = parts.next().unwrap_or_default();
        Self { parts, part }
    }

    fn error(&self) -> Option<Vec<u8>> {
        let text = self.part.strip_prefix(b"-")?;
        Some(text.strip_suffix(b"\r\n").unwrap_or(text).to_vec())
    }

    /// Goes to the next part if this one is used up.
    fn refill(&mut self) {
        while self.part.is_empty()
            && let Some(part) = self.parts.next()
        {
            self.part = part;
        }
    }

    /// Takes a line: its first byte, and the number behind that.
    fn header(&mut self) -> Option<(u8, i64)> {
        self.refill();
        let end = self.part.windows(2).position(|bytes| bytes == b"\r\n")?;
        let line = self.part.split_to(end + 2);
        let (kind, text) = line.get(..end)?.split_first()?;
        Some((*kind, integer(text).unwrap_or(-1)))
    }

    fn number(&mut self) -> Option<i64> {
        self.header().map(|(_, number)| number)
    }

    fn bulk(&mut self) -> Option<Bytes> {
        let (_, len) = self.header()?;
        let len = usize::try_from(len).ok()?;
        self.refill();
        let value = self.part.split_to(len.min(self.part.len()));
        self.refill();
        drop(self.part.split_to(self.part.len().min(2)));
        Some(value)
    }

    fn array(&mut self) -> Vec<Option<Bytes>> {
        let len = self.number().unwrap_or(0);
        (0..len).map(|_| self.bulk()).collect()
    }
}
