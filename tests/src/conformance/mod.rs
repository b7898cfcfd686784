//! Golden conformance cases for nodes of the Mainline DHT, and what runs them.
//!
//! The cases are text files (`tests/data/mainline`): datagrams to send and the replies that are
//! allowed. A [`runner`] sends them through any function from bytes to bytes: our server in this
//! process ([`local_node`]), or a UDP socket ([`udp_node`]), so that nodes of other kinds can be
//! compared: `conformance ADDRESS ...` does that. A node must be fresh: the cases store items.

pub mod case;
pub mod local_node;
pub mod runner;
#[cfg(test)]
mod tests;
pub mod udp_node;

pub use case::{Case, CaseError};
pub use runner::{Failure, run};

/// The files of cases, by name and text.
pub const FILES: [(&str, &str); 3] = [
    ("framing", include_str!("../../data/mainline/framing.txt")),
    ("bep5", include_str!("../../data/mainline/bep5.txt")),
    ("bep44", include_str!("../../data/mainline/bep44.txt")),
];

/// Reads all cases.
///
/// # Errors
/// A file is not written as it should be.
pub fn all() -> Result<Vec<Case>, CaseError> {
    let mut cases = Vec::new();
    for (file, text) in FILES {
        cases.extend(case::parse(file, text)?);
    }
    Ok(cases)
}
