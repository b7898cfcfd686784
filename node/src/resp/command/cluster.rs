//! Commands about other nodes: WAIT, KAD.LOCATE, KAD.ROUTES, KAD.LOOKUP, KAD.NODES, KAD.LEAVE,
//! KAD.FORGET.

use super::options::argument;
use super::spec::CommandId;
use super::{CommandError, check_key, number};
use crate::resp::frame::Arguments;

/// What a client asks about other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterCommand<'a> {
    /// WAIT: until the connection's writes have so many copies beside the first.
    Wait {
        /// How many.
        replicas: u64,
        /// No longer than that; 0 is no limit.
        timeout_ms: u64,
    },
    /// KAD.LOCATE: which nodes hold a key.
    Locate {
        /// The key.
        key: &'a [u8],
    },
    /// KAD.ROUTES: the routing table.
    Routes,
    /// KAD.LOOKUP: the nodes closest to an id, as a lookup finds them.
    Lookup {
        /// The id.
        id: [u8; 20],
    },
    /// KAD.NODES: the members of the cluster.
    Nodes,
    /// KAD.LEAVE: hand everything over, and leave.
    Leave,
    /// KAD.FORGET: a member will not come back.
    Forget {
        /// Its id.
        node: [u8; 20],
    },
}

impl<'a> ClusterCommand<'a> {
    /// Parses the arguments of the command; `None` if it is none of these.
    pub(super) fn parse(
        command: CommandId,
        arguments: &Arguments<'a>,
    ) -> Option<Result<Self, CommandError<'a>>> {
        Some(match command {
            CommandId::Wait => wait(arguments),
            CommandId::KadLocate => {
                check_key(argument(arguments, 1)).map(|key| Self::Locate { key })
            }
            CommandId::KadRoutes => Ok(Self::Routes),
            CommandId::KadLookup => id(argument(arguments, 1)).map(|id| Self::Lookup { id }),
            CommandId::KadNodes => Ok(Self::Nodes),
            CommandId::KadLeave => Ok(Self::Leave),
            CommandId::KadForget => id(argument(arguments, 1)).map(|node| Self::Forget { node }),
            _ => return None,
        })
    }
}

fn wait<'a>(arguments: &Arguments<'a>) -> Result<ClusterCommand<'a>, CommandError<'a>> {
    let replicas = u64::try_from(number(arguments, 1)?).unwrap_or(0);
    let timeout_ms = u64::try_from(number(arguments, 2)?);
    let timeout_ms = timeout_ms.map_err(|_| CommandError::Timeout)?;
    Ok(ClusterCommand::Wait { replicas, timeout_ms })
}

/// An id: 40 hexadecimal digits.
fn id<'a>(word: &[u8]) -> Result<[u8; 20], CommandError<'a>> {
    let mut id = [0; 20];
    if word.len() != 2 * id.len() {
        return Err(CommandError::NodeId);
    }
    for (byte, digits) in id.iter_mut().zip(word.chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| CommandError::NodeId)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| CommandError::NodeId)?;
    }
    Ok(id)
}
