//! Tests with stand-ins for the libraries of a GPU's maker (`tests/gpu/standin`): they prove the protocol and
//! who keeps what for how long, and nothing about a GPU.

mod bench;
mod faults;
mod life;
mod moves;
mod probes;

/// The process that the others start as worker or probe.
#[test]
#[ignore = "the other tests start it"]
fn as_worker() {
    let Ok(args) = std::env::var("KVFS_TEST_WORKER") else { return };
    let args = serde_json::from_str(&args).unwrap();
    let ended = crate::cli::worker::of_tests(args);
    std::process::exit(i32::from(ended.is_err()));
}
