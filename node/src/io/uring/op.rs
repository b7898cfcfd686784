//! [`Op`]: one request as the kernel sees it, with everything the kernel was told of.
//!
//! An op lies in a slot from before its entry is queued until after its last completion. It owns
//! the buffers, paths and headers whose addresses are in the entry, all of them on the heap, so
//! that the slots may move. Descriptors are owned by the op, or by a connection or listener that is
//! dropped only after its ops have ended.

use std::ffi::{CString, c_void};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::rc::Rc;

use bytes::Bytes;
use io_uring::types::{Fd, FsyncFlags, Timespec};
use io_uring::{opcode, squeue};
use rustix::fs::{AtFlags, OFlags};
use rustix::io::ReadWriteFlags;
use rustix::net::{SendFlags, SocketFlags};
use wal::disk::{Durability, FileId, IoBuffer, OpenMode, RequestId};

use super::arena::Arena;
use super::bells;
use super::buffers::GROUP;
use super::connect::ConnectOp;
use super::datagrams::DatagramOp;
use super::outbound::ZeroCopySend;
use crate::io::directory::{DataDirectory, directory_flags};
use crate::io::mailbox::Bell;
use crate::io::mapping::{Mapping, Populate};
use crate::io::slots::SlotKey;
use crate::io::sockets::RECEIVE_BUFFER_BYTES;
use crate::io::{ConnectionId, DiskOwner, ListenerId, ReceiveRoom, SocketId};

/// Parts of one SENDMSG at most (IOV_MAX).
const GATHER_MAX: usize = 1024;
/// Bytes of one SEND or RECV at most: its length has 31 bits.
const SEND_BYTES_MAX: usize = 1 << 30;
/// MSG_WAITALL: the kernel goes on after a short send; a signal or an error can still end it early.
pub(super) const MSG_WAITALL: u32 = 0x100;

/// A request in the kernel, or about to be.
pub(super) enum Op {
    /// A step of a disk request.
    Disk(DiskTask),
    /// Multishot accept.
    Accept { listener: ListenerId, socket: RawFd },
    /// Receive, multishot if it is standing; the kernel picks a buffer for each arrival.
    Receive { connection: SlotKey, socket: RawFd, standing: bool },
    /// Receive of one arrival into the memory that is lent.
    ReceiveInto { connection: SlotKey, socket: RawFd, room: ReceiveRoom },
    /// Send of what is left of some parts.
    Send(SendTask),
    /// Send of one part out of registered memory, without a copy; completes twice.
    SendZeroCopy(ZeroCopySend),
    /// Close of a connection whose other ops have ended. The kernel owns the descriptor.
    CloseSocket { connection: ConnectionId, socket: RawFd },
    /// A step of an attempt to connect.
    Connect(ConnectOp),
    /// Receive or send of datagrams.
    Datagram(DatagramOp),
    /// A timer.
    Pause { time: Box<Timespec>, purpose: Purpose },
    /// Read from the socket the signal handlers write to.
    Signal { socket: RawFd, buffer: Box<[u8; 64]> },
    /// Message to another thread's ring. The bell keeps that open.
    Ring(Bell),
    /// Read from the socket that other threads ring at.
    Wake { socket: RawFd, buffer: Box<[u8; 64]> },
}

/// What follows a pause.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Another try to listen.
    Listen(ListenerId),
    /// Accepting again.
    Accept(ListenerId),
    /// Another try to bind a UDP socket.
    BindUdp(SocketId),
    /// Receiving datagrams again.
    ReceiveDatagrams(SocketId),
}

/// A disk request and how far it has come.
pub(super) struct DiskTask {
    pub(super) owner: DiskOwner,
    pub(super) id: RequestId,
    /// How often it was interrupted and repeated.
    pub(super) repeats: u16,
    pub(super) step: Step,
}

/// What a disk request has the kernel do now.
pub(super) enum Step {
    Open { file: FileId, path: CString, mode: OpenMode },
    Close { fd: RawFd },
    Read { file: Rc<OpenFile>, offset: u64, len: usize, read: usize, buffer: IoBuffer },
    Write { file: Rc<OpenFile>, offset: u64, buffer: IoBuffer, durability: Durability },
    WriteSync { file: Rc<OpenFile>, buffer: IoBuffer },
    Sync { file: Rc<OpenFile> },
    OpenDirectory { path: CString },
    SyncDirectory { fd: OwnedFd },
    CreateDirectory { path: CString },
    Rename { from: CString, to: CString },
    Remove { path: CString },
    Link { from: CString, to: CString },
    RemoveDirectory { path: CString },
    Populate { mapping: Mapping, next: Populate },
}

/// An open file and its place among the ring's registered files, if it has one.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    pub(super) registered: Option<u32>,
    pub(super) direct: bool,
}

impl OpenFile {
    /// What an entry names the file by.
    fn target(&self) -> (Fd, squeue::Flags) {
        self.registered.map_or_else(
            || (Fd(self.fd.as_raw_fd()), squeue::Flags::empty()),
            |index| {
                let index = RawFd::try_from(index).expect("the table is small");
                (Fd(index), squeue::Flags::FIXED_FILE)
            },
        )
    }

    fn read(&self, room: &mut [u8], offset: u64, arena: &Arena) -> squeue::Entry {
        let (target, flags) = self.target();
        let (start, len) = (room.as_mut_ptr(), len_u32(room.len()));
        let entry = match arena.index_of(start) {
            Some(index) => opcode::ReadFixed::new(target, start, len, index).offset(offset).build(),
            None => opcode::Read::new(target, start, len).offset(offset).build(),
        };
        entry.flags(flags)
    }

    fn write(&self, bytes: &[u8], offset: u64, rw_flags: i32, arena: &Arena) -> squeue::Entry {
        let (target, flags) = self.target();
        let (start, len) = (bytes.as_ptr(), len_u32(bytes.len()));
        let entry = match arena.index_of(start) {
            Some(index) => opcode::WriteFixed::new(target, start, len, index)
                .offset(offset)
                .rw_flags(rw_flags)
                .build(),
            None => {
                opcode::Write::new(target, start, len).offset(offset).rw_flags(rw_flags).build()
            }
        };
        entry.flags(flags)
    }

    /// Whether a durable write is one call here: past the page cache, RWF_DSYNC makes it so.
    pub(super) fn syncs_by_flag(&self) -> bool {
        self.direct
    }
}

impl Op {
    /// The entry that tells the kernel of this op. Its addresses hold while the op lives.
    pub(super) fn entry(&mut self, directory: &DataDirectory, arena: &Arena) -> squeue::Entry {
        match self {
            Self::Disk(task) => task.step.entry(directory, arena),
            Self::Accept { socket, .. } => {
                let flags = i32::try_from(SocketFlags::CLOEXEC.bits()).expect("a small flag");
                opcode::AcceptMulti::new(Fd(*socket)).flags(flags).build()
            }
            Self::Receive { socket, standing: true, .. } => {
                opcode::RecvMulti::new(Fd(*socket), GROUP).build()
            }
            Self::Receive { socket, .. } => {
                let len = len_u32(RECEIVE_BUFFER_BYTES);
                let entry = opcode::Recv::new(Fd(*socket), ptr::null_mut(), len).buf_group(GROUP);
                entry.build().flags(squeue::Flags::BUFFER_SELECT)
            }
            Self::ReceiveInto { socket, room, .. } => {
                let left = room.spare_mut();
                let len = len_u32(left.len().min(SEND_BYTES_MAX));
                opcode::Recv::new(Fd(*socket), left.as_mut_ptr().cast(), len).build()
            }
            Self::Send(task) => task.entry(),
            Self::SendZeroCopy(send) => send.entry(),
            Self::CloseSocket { socket, .. } => opcode::Close::new(Fd(*socket)).build(),
            Self::Connect(op) => op.entry(),
            Self::Datagram(op) => op.entry(),
            Self::Pause { time, .. } => opcode::Timeout::new(&raw const **time).build(),
            Self::Ring(bell) => bells::entry(bell),
            Self::Signal { socket, buffer } | Self::Wake { socket, buffer } => {
                let len = u32::try_from(buffer.len()).expect("64 bytes");
                opcode::Read::new(Fd(*socket), buffer.as_mut_ptr(), len).build()
            }
        }
    }
}

impl Step {
    fn entry(&mut self, directory: &DataDirectory, arena: &Arena) -> squeue::Entry {
        let root = Fd(directory.root().as_raw_fd());
        match self {
            Self::Open { path, mode, .. } => opcode::OpenAt::new(root, path.as_ptr())
                .flags(bits(directory.open_flags(*mode)))
                .mode(DataDirectory::file_mode().bits())
                .build(),
            // On a kernel thread: closing the last reference to a removed file frees its blocks,
            // which must not hold up the loop.
            Self::Close { fd } => opcode::Close::new(Fd(*fd)).build().flags(squeue::Flags::ASYNC),
            Self::Read { file, offset, len, read, buffer } => {
                let rest = &mut buffer.spare_mut()[*read..*len];
                file.read(rest, *offset + *read as u64, arena)
            }
            Self::Write { file, offset, buffer, durability } => {
                let durable = *durability == Durability::Durable && file.syncs_by_flag();
                let rw_flags = if durable { dsync() } else { 0 };
                file.write(buffer.as_slice(), *offset, rw_flags, arena)
            }
            // Content, and the length where it has changed; not the times of the file, which would
            // cost a commit of the file system's journal each time.
            Self::WriteSync { file, .. } | Self::Sync { file } => {
                let (target, flags) = file.target();
                opcode::Fsync::new(target).flags(FsyncFlags::DATASYNC).build().flags(flags)
            }
            Self::OpenDirectory { path } => {
                opcode::OpenAt::new(root, path.as_ptr()).flags(bits(directory_flags())).build()
            }
            Self::SyncDirectory { fd } => opcode::Fsync::new(Fd(fd.as_raw_fd())).build(),
            Self::CreateDirectory { path } => opcode::MkDirAt::new(root, path.as_ptr())
                .mode(DataDirectory::directory_mode().bits())
                .build(),
            Self::Rename { from, to } => {
                opcode::RenameAt::new(root, from.as_ptr(), root, to.as_ptr()).build()
            }
            Self::Remove { path } => opcode::UnlinkAt::new(root, path.as_ptr()).build(),
            Self::Link { from, to } => {
                opcode::LinkAt::new(root, from.as_ptr(), root, to.as_ptr()).build()
            }
            Self::RemoveDirectory { path } => {
                let flags = AtFlags::REMOVEDIR.bits().cast_signed();
                opcode::UnlinkAt::new(root, path.as_ptr()).flags(flags).build()
            }
            // The kernel does this on a thread of its own, so the loop does not wait for the disk.
            Self::Populate { mapping, next } => {
                let len = i64::try_from(next.len).expect("a part of a mapping is small");
                let address = mapping.start().wrapping_add(next.offset);
                opcode::Madvise::new(address.cast_const().cast(), len, next.advice).build()
            }
        }
    }
}

fn bits(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

fn dsync() -> i32 {
    ReadWriteFlags::DSYNC.bits().cast_signed()
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a disk request is under 4 GiB")
}

/// The kernel's `struct iovec`.
#[repr(C)]
pub(super) struct Vector {
    pub(super) base: *const c_void,
    pub(super) len: usize,
}

/// The kernel's `struct user_msghdr`, which is the C library's `msghdr` on 64-bit Linux.
#[repr(C)]
pub(super) struct MessageHeader {
    name: *const c_void,
    name_len: u32,
    vectors: *const Vector,
    vector_count: usize,
    control: *const c_void,
    control_len: usize,
    flags: u32,
}

/// Header and vectors of a SENDMSG, on the heap.
struct Gather {
    header: MessageHeader,
    vectors: Vec<Vector>,
}

/// Parts to send and how far that has come.
pub(super) struct SendTask {
    pub(super) connection: SlotKey,
    pub(super) socket: RawFd,
    parts: Vec<Bytes>,
    /// The first part that is not wholly sent, and how much of it is.
    part: usize,
    sent: usize,
    /// Behind the last part of the present entry.
    end: usize,
    gather: Option<Box<Gather>>,
}

impl SendTask {
    pub(super) fn new(connection: SlotKey, socket: RawFd, parts: Vec<Bytes>) -> Self {
        let end = parts.len();
        let mut task = Self { connection, socket, parts, part: 0, sent: 0, end, gather: None };
        task.advance(0);
        task
    }

    /// Notes that `count` more bytes are sent.
    pub(super) fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.parts.get(self.part) {
            let left = part.len() - self.sent;
            if count < left {
                self.sent += count;
                return;
            }
            count -= left;
            self.part += 1;
            self.sent = 0;
        }
        assert_eq!(count, 0, "the kernel does not send more than it was given");
    }

    pub(super) fn is_done(&self) -> bool {
        self.part == self.parts.len()
    }

    /// The rest of the next part and what `pick` says of it, if it picks it.
    pub(super) fn next_part<T>(&self, pick: impl FnOnce(&[u8]) -> Option<T>) -> Option<(Bytes, T)> {
        let rest = self.parts.get(self.part)?.slice(self.sent..);
        let picked = pick(&rest)?;
        Some((rest, picked))
    }

    /// Whether there are parts behind the next one.
    pub(super) fn has_more(&self) -> bool {
        self.part + 1 < self.parts.len()
    }

    /// Lets the next entry end before the first part, behind the next one, that `stops` it.
    pub(super) fn gather_until(&mut self, stops: impl Fn(&[u8]) -> bool) {
        let behind = self.part + 1;
        let stop = self.parts[behind..].iter().position(|part| stops(part));
        self.end = stop.map_or(self.parts.len(), |stop| behind + stop);
    }

    fn entry(&mut self) -> squeue::Entry {
        let end = self.end.min(self.part + GATHER_MAX);
        let more = if end < self.parts.len() { SendFlags::MORE } else { SendFlags::empty() };
        let flags = (SendFlags::NOSIGNAL | more).bits() | MSG_WAITALL;
        let socket = Fd(self.socket);
        if self.part + 1 == end {
            let rest = &self.parts[self.part][self.sent..];
            let len = len_u32(rest.len().min(SEND_BYTES_MAX));
            return opcode::Send::new(socket, rest.as_ptr(), len)
                .flags(flags.cast_signed())
                .build();
        }
        let header = self.gather(end);
        opcode::SendMsg::new(socket, ptr::from_ref(header).cast()).flags(flags).build()
    }

    fn gather(&mut self, end: usize) -> &MessageHeader {
        let mut skipped = self.sent;
        let gather = self.gather.get_or_insert_with(|| Box::new(Gather::new()));
        gather.vectors.clear();
        for part in &self.parts[self.part..end] {
            let rest = &part[std::mem::take(&mut skipped)..];
            gather.vectors.push(Vector { base: rest.as_ptr().cast(), len: rest.len() });
        }
        gather.header.vectors = gather.vectors.as_ptr();
        gather.header.vector_count = gather.vectors.len();
        &gather.header
    }
}

impl MessageHeader {
    /// A header without vectors; a multishot receive reads nothing of it but the room for a name.
    pub(super) fn new(name_len: u32) -> Self {
        Self {
            name: ptr::null(),
            name_len,
            vectors: ptr::null(),
            vector_count: 0,
            control: ptr::null(),
            control_len: 0,
            flags: 0,
        }
    }
}

impl Gather {
    fn new() -> Self {
        Self { header: MessageHeader::new(0), vectors: Vec::new() }
    }
}

// The layouts above are those of 64-bit kernels.
const _: () = assert!(usize::BITS == 64 && size_of::<MessageHeader>() == 56);
