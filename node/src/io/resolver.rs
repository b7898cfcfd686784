//! [`Resolver`]: host names of nodes to start from, looked up while the node serves.
//!
//! The system's resolver blocks, so that threads of their own ask it. A name without an address is
//! asked for again, for ever, at growing intervals: a node that starts before its network does
//! still finds others.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// Threads that look names up; with more names than that, they take turns.
pub const RESOLVERS_MAX: usize = 8;
/// Addresses of one name that are used.
pub const ADDRESSES_PER_NAME_MAX: usize = 8;
/// A name without an address is looked up again after this, then after twice as long each time,
pub const RESOLVE_GAP_MIN_MS: u64 = 1_000;
/// but no later than after this.
pub const RESOLVE_GAP_MAX_MS: u64 = 10 * 60 * 1000;

/// Looks names up until it is dropped, or has found addresses of all.
#[derive(Debug)]
pub struct Resolver {
    /// They end with it; the threads notice.
    _stops: Vec<Sender<()>>,
}

impl Resolver {
    /// Begins to look names up, each a host and a port; `deliver` gets the addresses of each.
    pub fn spawn<D>(names: Vec<String>, deliver: D) -> Self
    where
        D: Fn(Vec<SocketAddr>) + Clone + Send + 'static,
    {
        let gap = Duration::from_millis(RESOLVE_GAP_MIN_MS);
        Self::spawn_with(names, gap, ask_system, deliver)
    }

    fn spawn_with<L, D>(names: Vec<String>, gap: Duration, look_up: L, deliver: D) -> Self
    where
        L: Fn(&str) -> Vec<SocketAddr> + Clone + Send + 'static,
        D: Fn(Vec<SocketAddr>) + Clone + Send + 'static,
    {
        let share = names.len().div_ceil(RESOLVERS_MAX).max(1);
        let spawn = |names: &[String]| {
            let (stop, stopped) = mpsc::channel::<()>();
            let (mut names, look_up, deliver) = (names.to_vec(), look_up.clone(), deliver.clone());
            thread::spawn(move || {
                let mut gap = gap;
                loop {
                    names.retain(|name| {
                        let mut found = look_up(name);
                        found.truncate(ADDRESSES_PER_NAME_MAX);
                        let is_found = !found.is_empty();
                        if is_found {
                            deliver(found);
                        }
                        !is_found
                    });
                    if names.is_empty() {
                        return;
                    }
                    let seconds = gap.as_secs();
                    let names = names.join(", ");
                    tracing::warn!(%names, seconds, "no address found; looking again");
                    if stopped.recv_timeout(gap) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                    gap = (2 * gap).min(Duration::from_millis(RESOLVE_GAP_MAX_MS));
                }
            });
            stop
        };
        Self { _stops: names.chunks(share).map(spawn).collect() }
    }
}

fn ask_system(name: &str) -> Vec<SocketAddr> {
    name.to_socket_addrs().map(Iterator::collect).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Names are of the form `FAILURES:PORT`: so often they have no address at first.
    #[test]
    fn names_are_looked_up_until_each_has_an_address() {
        let (sender, found) = mpsc::channel();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let failed = Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::new()));
        let look_up = move |name: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            let (failures, port) = name.split_once(':').unwrap();
            let mut failed = failed.lock().unwrap();
            let failed = failed.entry(name.to_owned()).or_insert(0_usize);
            *failed += 1;
            let is_known = *failed > failures.parse::<usize>().unwrap();
            if is_known { vec![address(port.parse().unwrap()); 20] } else { Vec::new() }
        };
        let names: Vec<String> = (0..20).map(|port| format!("{}:{}", port % 4, 1 + port)).collect();
        let deliver = move |addresses: Vec<SocketAddr>| sender.send(addresses).unwrap();
        let _resolver = Resolver::spawn_with(names, Duration::from_millis(1), look_up, deliver);
        let mut ports: Vec<u16> = found
            .iter()
            .map(|addresses| {
                assert_eq!(addresses.len(), ADDRESSES_PER_NAME_MAX);
                addresses[0].port()
            })
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, (1..=20).collect::<Vec<u16>>());
        // 5 names each of 1, 2, 3 and 4 tries.
        assert_eq!(asked.load(Ordering::Relaxed), 5 * (1 + 2 + 3 + 4));
    }

    #[test]
    fn dropped_resolver_asks_no_more() {
        let (sender, asked) = mpsc::channel();
        let look_up = move |_: &str| {
            let _ = sender.send(());
            Vec::new()
        };
        let names = vec!["a:1".to_owned()];
        let hour = Duration::from_secs(3_600);
        let resolver = Resolver::spawn_with(names, hour, look_up, |_| unreachable!());
        asked.recv().unwrap();
        drop(resolver);
        // Its end of the channel goes when the thread does.
        assert!(asked.recv().is_err());
    }
}
