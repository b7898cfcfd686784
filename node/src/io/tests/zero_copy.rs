//! Sends that nobody copies, on devices in network namespaces of the test's own.
//!
//! A packet for a receiver on this machine is always copied. So a connection is made over a pair of
//! devices, and then its packets are sent to a third one (`ifb`), which drops what the stack sends
//! into it. The kernel reads the memory until the peer resets the connection, and then says that it
//! has not copied.

use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::thread::UnshareFlags;

use super::ring::rig;
use super::*;

const HERE: &str = "10.77.0.1";
const THERE: &str = "10.77.0.2";
const LEN: usize = 32 << 10;

/// Runs ip(8) in the namespace of the calling thread.
fn ip(command: &str) -> Result<(), String> {
    let mut child = Command::new("ip");
    child.args(command.split(' ')).stdout(Stdio::null()).stderr(Stdio::null());
    match child.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("ip {command}: {status}")),
        Err(error) => Err(format!("ip: {error}")),
    }
}

fn own_namespace() -> Result<(), String> {
    // SAFETY: the thread's other resources stay shared; only sockets made from now on are apart.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    unshared.map_err(|error| format!("unshare: {error}"))
}

/// The other end: says its thread's number, connects when told where to, resets when told so.
fn peer(number: &Sender<i32>, address: &Receiver<SocketAddr>, reset: &Receiver<()>) {
    own_namespace().unwrap();
    number.send(rustix::thread::gettid().as_raw_pid()).unwrap();
    let Ok(address) = address.recv() else { return };
    ip(&format!("addr add {THERE}/24 dev k1")).unwrap();
    ip("link set k1 up").unwrap();
    let client = TcpStream::connect(address).unwrap();
    let _ = reset.recv();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
}

fn devices(peer: i32) -> Result<(), String> {
    ip(&format!("link add k0 type veth peer name k1 netns {peer}"))?;
    ip(&format!("addr add {HERE}/24 dev k0"))?;
    ip("link set k0 up")?;
    ip("link add i0 type ifb")?;
    ip("link set i0 up")?;
    // What comes from the peer does not come from where the way to it leads.
    for device in ["all", "k0"] {
        let path = format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
        std::fs::write(path, "0").map_err(|error| format!("rp_filter: {error}"))?;
    }
    Ok(())
}

fn lead_into_nowhere() {
    ip(&format!("neigh add {THERE} lladdr 02:00:00:00:00:02 dev i0 nud permanent")).unwrap();
    ip(&format!("route add {THERE}/32 dev i0")).unwrap();
}

fn send_and_reset() -> Result<(), String> {
    own_namespace()?;
    let ((number_to, number), (address_to, address)) = (channel(), channel());
    let (reset_to, reset) = channel();
    let peer = thread::spawn(move || peer(&number_to, &address, &reset));
    devices(number.recv().map_err(|error| error.to_string())?)?;
    let mut rig = rig(UringOptions::default()).ok_or("no ring")?;
    if !rig.io.buffer_statistics().registered {
        return Err("no memory may be registered here".into());
    }
    rig.io.submit(Request::Listen(ListenerId(0), format!("{HERE}:0").parse().unwrap()));
    address_to.send(rig.listening().unwrap()).unwrap();
    let (connection, _) = rig.accepted();
    rig.io.submit(Request::Receive(connection));
    lead_into_nowhere();
    let mut buffer = rig.io.buffers().take(LEN);
    buffer.extend_from_slice(&[b'v'; LEN]);
    let (head, value) = (Bytes::from_static(b"$32768\r\n"), Bytes::from_owner(buffer));
    rig.io.submit(Request::Send(connection, vec![head, value, Bytes::from_static(b"\r\n")]));
    rig.sent(connection).unwrap();
    let (before, buffers) = (rig.io.send_statistics(), rig.io.buffer_statistics());
    assert_eq!((before.zero_copy_bytes, before.zero_copy_in_vain), (0, 0), "it is not out yet");
    assert!(buffers.arena_bytes_free < buffers.arena_bytes, "the kernel still reads the value");
    reset_to.send(()).unwrap();
    peer.join().unwrap();
    let error = rig.received(connection).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    rig.close(connection);
    while rig.io.send_statistics().zero_copy_bytes == 0 {
        let now = rig.io.send_statistics();
        assert_eq!((now.zero_copy_in_vain, now.zero_copy_refused), (0, 0), "the kernel copied");
        rig.poll();
    }
    let (after, buffers) = (rig.io.send_statistics(), rig.io.buffer_statistics());
    assert_eq!((after.zero_copy_bytes, after.copied_bytes), (LEN as u64, 10));
    assert_eq!(buffers.arena_bytes_free, buffers.arena_bytes, "the memory came back");
    Ok(())
}

/// From the value's memory to the device, no processor touches a byte.
#[test]
fn large_value_goes_out_without_a_copy_in_the_kernel() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED, nothing was tested: only root makes network devices");
        return;
    }
    // Namespaces belong to threads.
    if let Err(reason) = thread::spawn(send_and_reset).join().unwrap() {
        eprintln!("SKIPPED, nothing was tested: {reason}");
    }
}
