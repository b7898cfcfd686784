//! Links over a network in memory.
