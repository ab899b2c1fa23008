//! The ioctl fast path: data between backing files and buffers that clients have registered.
#![allow(dead_code)]

pub mod abi;
pub(crate) mod buffer;
pub(crate) mod call;
pub(crate) mod engine;
pub(crate) mod gpu;
pub(crate) mod host;
pub(crate) mod owner;
