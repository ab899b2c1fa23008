//! kvfs presents the NVMe drives of a GPU server as one directory for LLM KV caches.
//!
//! The rooms and what each is for are listed in `docs/DESIGN.md`; arrows between them only run downward:
//! `fuse` decodes a request, `fs` decides, `index` finds, `placement` chooses, `backing` acts.

/// The subcommands, one file each.
pub mod cli {
    pub mod doctor;
}
pub mod placement;
