//! Tests with stand-ins for the libraries of a GPU's maker (`tests/gpu/standin`): they prove the protocol and
//! who keeps what for how long, and nothing about a GPU.

mod bench;
mod faults;
mod life;
mod moves;
mod probes;

/// The process that the others start as worker or probe; started by nobody, it says so.
#[test]
fn as_worker() {
    let Ok(args) = std::env::var("KVFS_TEST_WORKER") else {
        let args =
            "gpu --uuid a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0 --ring-slots 1 --slot-bytes 4096 --submitters 1";
        let args = args.split(' ').map(String::from).collect();
        let refused = crate::cli::worker::of_tests(args).unwrap_err();
        assert!(refused.contains("started by the daemon of a mount, not by hand"), "{refused}");
        return;
    };
    let args = serde_json::from_str(&args).unwrap();
    let ended = crate::cli::worker::of_tests(args);
    std::process::exit(i32::from(ended.is_err()));
}
