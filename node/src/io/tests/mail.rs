//! Threads that wake each other.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread;

use super::ring::rig;
use super::{Driver, Rig, on_all_drivers};
use crate::io::mailbox::{Bell, Inbox, mailbox};
use crate::io::uring::{Abilities, UringIo, UringOptions};
use crate::io::{Completion, Io, Request};

/// A driver whose thread sleeps, its mail, and the bell of a first message.
fn sleeper<D: Driver>(rig: &mut Rig<D>, ring: Option<OwnedFd>) -> (Inbox<u32>, Bell) {
    let (outbox, mut inbox, socket) = mailbox().unwrap();
    if let Some(ring) = ring {
        socket.offer_ring(ring);
    }
    rig.io.submit(Request::Watch(socket));
    rig.poll();
    assert!(inbox.begin_wait());
    (inbox, outbox.post(7).expect("the thread sleeps"))
}

fn expect_mail<D: Driver>(mut rig: Rig<D>, mut inbox: Inbox<u32>) {
    rig.expect(|completion| match completion {
        Completion::Woken => Ok(()),
        other => Err(other),
    });
    assert_eq!(inbox.poll(), Some(7));
}

on_all_drivers![bell_wakes_the_driver_of_another_thread];

fn bell_wakes_the_driver_of_another_thread<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else { return };
    let (inbox, bell) = sleeper(&mut rig, None);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = Rig::<D>::new().expect("there is one already");
            other.io.submit(Request::Ring(bell));
            other.poll();
        });
        expect_mail(rig, inbox);
    });
}

/// Whether the message went from ring to ring, and that it came.
fn check(abilities: Abilities, ring: Option<OwnedFd>, delivered: u64) {
    let options = UringOptions { abilities, ..UringOptions::default() };
    let (Some(mut sleeping), Some(mut awake)) = (rig(options), rig(UringOptions::default())) else {
        return;
    };
    if !awake.io.flags_refused().is_empty() {
        eprintln!("SKIPPED, nothing was tested: this kernel's rings take no messages");
        return;
    }
    let (inbox, bell) = sleeper(&mut sleeping, ring);
    awake.io.submit(Request::Ring(bell));
    awake.poll();
    expect_mail(sleeping, inbox);
    assert_eq!(awake.io.rings_delivered(), delivered);
    assert_eq!(awake.io.slots_in_use(), 0);
}

#[test]
fn ring_wakes_a_ring_by_a_message() {
    check(Abilities::Probed, None, 1);
}

#[test]
fn ring_that_takes_no_messages_is_woken_by_its_socket() {
    check(Abilities::Linux6_1, None, 0);
}

#[test]
fn message_that_is_not_delivered_is_followed_by_the_socket() {
    let no_ring = File::open("/dev/null").unwrap();
    check(Abilities::Probed, Some(no_ring.into()), 0);
}

/// Also one that the kernel has not been told of.
#[test]
fn driver_that_ends_rings_the_bells_it_was_given() {
    for entries in [2, 64] {
        let options = UringOptions { entries, ..UringOptions::default() };
        let Some(mut ending) = rig(options) else { return };
        let sleepers: Vec<_> = (0..20)
            .map(|_| {
                let mut rig: Rig<UringIo> = rig(UringOptions::default()).unwrap();
                let (inbox, bell) = sleeper(&mut rig, None);
                ending.io.submit(Request::Ring(bell));
                (rig, inbox)
            })
            .collect();
        drop(ending);
        for (rig, inbox) in sleepers {
            expect_mail(rig, inbox);
        }
    }
}
