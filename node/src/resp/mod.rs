//! The client door: the Redis protocol, from received bytes to replies, without any I/O.

pub mod command;
pub mod door;
pub mod frame;
pub mod glob;
pub mod reply;
