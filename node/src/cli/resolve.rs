//! Host names of nodes to start from, looked up before the node starts: the node itself knows
//! addresses alone.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;
use std::time::Duration;

/// How long the start waits for names, all together: without a network they may never come.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are used.
const ADDRESSES_PER_NAME_MAX: usize = 8;

/// Replaces names by their addresses. One that cannot be looked up in time is told of and left out:
/// the node starts from the others, and from whom it knew in an earlier life.
pub(super) fn resolve(names: Vec<String>) -> Vec<String> {
    let (sender, found) = mpsc::channel::<(String, Vec<SocketAddr>)>();
    let mut addresses = Vec::new();
    let mut waiting = Vec::new();
    for name in names {
        if name.parse::<SocketAddr>().is_ok() {
            addresses.push(name);
            continue;
        }
        waiting.push(name.clone());
        let sender = sender.clone();
        // The system's resolver blocks, one name after the other.
        std::thread::spawn(move || {
            let addresses = name.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
            // Nobody waits any more if that took too long.
            let _ = sender.send((name, addresses));
        });
    }
    drop(sender);
    while !waiting.is_empty()
        && let Ok((name, found)) = found.recv_timeout(RESOLVE_TIMEOUT)
    {
        waiting.retain(|other| *other != name || found.is_empty());
        let found = found.iter().take(ADDRESSES_PER_NAME_MAX);
        addresses.extend(found.map(SocketAddr::to_string));
    }
    if !waiting.is_empty() {
        tracing::warn!(names = %waiting.join(", "), "no address found for nodes to start from");
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn addresses_stay_as_they_are() {
        let given = vec!["127.0.0.1:1".to_owned(), "[::1]:2".to_owned()];
        assert_eq!(resolve(given.clone()), given);
        assert!(resolve(Vec::new()).is_empty());
    }
}
