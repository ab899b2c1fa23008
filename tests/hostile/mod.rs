//! One file for each thing that is tried; `canary` watches what must not be reached.

mod canary;
mod connections;
mod control;
mod deep;
mod hung_memory;
mod ioctls;
mod limits;
mod names;
mod raw;
mod sandbox;
mod swapped;
mod without_mount;
