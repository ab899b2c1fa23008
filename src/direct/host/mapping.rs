//! A client's memfd in the daemon's address space.

/// The registered region.
pub(crate) struct Mapping;
