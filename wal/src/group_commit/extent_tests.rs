//! Extents beside frames.
