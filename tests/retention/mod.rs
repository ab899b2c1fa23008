//! One file for each topic. `run` makes mounts, clients and files; whoever evicts by hand waits for its end, so
//! that nothing here has to wait for a while.

mod capacity;
mod crash;
mod cycles;
mod failing;
mod full;
mod ghosts;
mod large;
mod marks;
mod order;
mod orphans;
mod pairs;
mod recency;
mod run;
mod storm;
