//! kvfs presents the NVMe drives of a GPU server as one directory for LLM KV caches.
//!
//! The rooms and what each is for are listed in `docs/DESIGN.md`; arrows between them only run downward:
//! `fuse` decodes a request, `fs` decides, `index` finds, `placement` chooses, `backing` acts.

pub mod backing;
pub mod check;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod direct;
pub mod fs;
pub mod fuse;
pub mod index;
pub mod io;
mod log;
pub mod metrics;
mod patience;
pub mod placement;
mod printable;
mod processors;
pub mod retention;
pub mod sandbox;
pub mod shares;
pub mod supervise;
pub mod trace;
pub mod version;
