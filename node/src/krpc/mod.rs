//! KRPC: queries and replies in bencoded datagrams (BEP 5, "KRPC Protocol").

pub mod bencode;
pub mod bep5;
pub mod compact;
pub mod fields;
pub mod gate;
pub mod message;
pub mod private;
pub mod seal;
pub mod transactions;
