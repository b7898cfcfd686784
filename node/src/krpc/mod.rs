//! KRPC: queries and replies in bencoded datagrams (BEP 5, "KRPC Protocol").

pub mod bencode;
pub mod compact;
