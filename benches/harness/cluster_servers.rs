//! [`Servers`]: kadrings that form one cluster, each a process of its own, all on core 0.

#![expect(clippy::disallowed_types, reason = "a bench asks servers by sockets of its own")]

use crate::{Server, Starter};
use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A cluster that is not whole by then never will be.
const PATIENCE: Duration = Duration::from_secs(120);
/// What follows the reply that is waited for.
const END: &[u8] = b"$15\r\nend of question\r\n";

/// Nodes of one cluster.
#[derive(Debug)]
pub struct Servers {
    /// The nodes.
    pub nodes: Vec<Server>,
    arguments: Vec<String>,
}

impl Servers {
    /// Starts a cluster of so many nodes with these further arguments, and waits until it is whole.
    ///
    /// # Errors
    /// If a node does not start or join.
    pub fn start(
        starter: &Starter,
        count: usize,
        arguments: &[&str],
    ) -> Result<Self, Box<dyn Error>> {
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        let mut servers = Self { nodes: Vec::new(), arguments };
        for _ in 0..count {
            servers.add(starter)?;
        }
        for node in &servers.nodes {
            wait_until(node, count, PATIENCE)?;
        }
        Ok(servers)
    }

    /// Starts one more node, which joins; does not wait for that.
    ///
    /// # Errors
    /// If it does not start.
    pub fn add(&mut self, starter: &Starter) -> Result<(), Box<dyn Error>> {
        let mut arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        arguments.extend(["--peer", "127.0.0.1:0", "--log", "error"]);
        let seed = self.nodes.first().and_then(|node| node.peer).map(|peer| peer.to_string());
        if let Some(seed) = &seed {
            arguments.extend(["--bootstrap", seed]);
        }
        self.nodes.push(starter.kadring("kadring", &arguments)?);
        Ok(())
    }
}

/// Whether a node knows so many members, all of which have what they should hold.
///
/// # Errors
/// If it does not answer.
pub fn is_whole(node: &Server, members: usize) -> Result<bool, Box<dyn Error>> {
    let rows = ask(node.address, "KAD.NODES")?;
    let count = |word: &str| rows.matches(&format!("\r\n{word}\r\n")).count();
    Ok(count("full") == members && count("joining") == 0)
}

/// Waits until a node knows so many members, all of which have what they should hold.
///
/// # Errors
/// If it does not answer, or not by then.
pub fn wait_until(node: &Server, members: usize, patience: Duration) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    while !is_whole(node, members)? {
        if started.elapsed() > patience {
            return Err(format!("no cluster of {members} nodes after {patience:?}").into());
        }
        // Nobody has 15 copies: it answers after 50 ms.
        ask(node.address, "WAIT 15 50")?;
    }
    Ok(())
}

/// Keys that a node holds.
///
/// # Errors
/// If it does not answer.
pub fn key_count(node: &Server) -> Result<u64, Box<dyn Error>> {
    let reply = ask(node.address, "DBSIZE")?;
    Ok(reply.trim_start_matches(':').trim_end().parse()?)
}

/// Sends a command without arguments; the reply as it comes.
fn ask(address: SocketAddr, command: &str) -> Result<String, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{command}\r\nECHO \"end of question\"\r\n").as_bytes())?;
    let (mut reply, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while !reply.ends_with(END) {
        match stream.read(&mut buffer)? {
            0 => return Err(format!("{command}: the node has closed the connection").into()),
            len => reply.extend_from_slice(&buffer[..len]),
        }
    }
    reply.truncate(reply.len() - END.len());
    Ok(String::from_utf8_lossy(&reply).into_owned())
}
