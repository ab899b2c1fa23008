//! Servers as vLLM, SGLang and LMCache start them.

use super::*;

/// What kvfs is for: each of them has one GPU and calls itself rank 0 of 1.
#[test]
fn four_single_gpu_servers_use_four_backings() {
    let lab = Lab::new();
    let mount = four(&lab);
    let kinds: [(&str, &[&str]); 6] = [
        ("python", &[]),
        ("children", &["fork", "fork", "fork"]),
        ("forked", &["fork", "title=VLLM::EngineCore"]),
        (
            "worker",
            &[
                "fork",
                "title=VLLM::APIServer_0",
                "fork",
                "title=VLLM::EngineCore",
                "fork",
                "title=VLLM::Worker",
            ],
        ),
        ("spawned", &["spawn=A=1", "title=VLLM::EngineCore"]),
        ("replica", &["fork", "title=VLLM::EngineCore_DP0"]),
    ];
    let mut made = Vec::new();
    for (kind, steps) in kinds {
        // At the same time, as servers run.
        std::thread::scope(|scope| {
            for gpu in 0..4 {
                let mut client = Client::of(&mount).sees(gpu);
                for step in steps {
                    client = client.does(step);
                }
                for i in 0..3 {
                    let names = [
                        chunk(0, 1, made.len()),
                        format!("{kind}_0123456789ab_r0/abc/0{gpu}_g0/{}.bin", hash(i)),
                        format!("{kind} {gpu}, file {i}"),
                    ];
                    for name in names {
                        client = if i == 1 { client.makes_in_thread(&name) } else { client.makes(&name) };
                        made.push((name, gpu));
                    }
                }
                scope.spawn(move || client.run());
            }
        });
    }
    for (name, gpu) in &made {
        assert_eq!(slot(&mount, name), *gpu, "{name}: {}", why(&mount, name));
    }
    let (name, _) = made.iter().find(|(_, gpu)| *gpu == 3).unwrap();
    let words = why(&mount, name);
    assert!(words.starts_with("by_gpu: GPU 3 from CUDA_VISIBLE_DEVICES=3 of process "), "{words}");
    assert!(words.ends_with(", 3 % 4 = backing 3"), "{words}");
    let located = kvfs([std::ffi::OsStr::new("locate"), mount.path(name).as_os_str()]).code(0);
    assert!(located.stdout.contains(&words), "{}", located.stdout);
}

#[test]
fn vllm_replicas_count_in_the_list_of_their_server() {
    let lab = Lab::new();
    let mount = four(&lab);
    for (dp, tp) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let (own, blocks) = (chunk(tp, 2, dp), format!("m_0123456789ab_r0/abc/{dp}{tp}_g0/{}.bin", hash(1)));
        Client::of(&mount)
            .sees("7,6,5,4")
            .does("fork")
            .does(format!("title=VLLM::EngineCore_DP{dp}"))
            .does("fork")
            .does(format!("title=VLLM::Worker_DP{dp}_TP{tp}"))
            .makes(&own)
            .makes(&blocks)
            .run();
        assert_eq!(slot(&mount, &own), (7 - (2 * dp + tp)) % 4, "{}", why(&mount, &own));
        if dp > 0 {
            let words = why(&mount, &blocks);
            assert!(
                words.contains("which GPU isn't known"),
                "the name doesn't say how many workers: {words}"
            );
        }
    }
}

#[test]
fn sglang_schedulers_count_in_the_list_of_their_server() {
    let lab = Lab::new();
    let mount = four(&lab);
    for tp in 0..4 {
        let (temporary, last) = (format!(".{}.tmp", &hash(tp)[32..]), format!("{}_m_{tp}_4.bin", hash(tp)));
        Client::of(&mount)
            .sees("3,2,1,0")
            .does("fork")
            .does(format!("title=sglang::scheduler_TP{tp}"))
            .makes(&temporary)
            .renames(&temporary, &last)
            .run();
        assert_eq!(slot(&mount, &last), 3 - tp, "{}", why(&mount, &last));
    }
    // SGLANG_ONE_VISIBLE_DEVICE_PER_PROCESS: what is set around the start of each is in its environment.
    Client::of(&mount).sees("3,2,1,0").does("spawn=CUDA_VISIBLE_DEVICES=2").makes("its own").run();
    assert_eq!(slot(&mount, "its own"), 2);
}

/// Nothing is left to see of which GPU they have: then it's any backing, not the first.
#[test]
fn servers_that_show_nothing_spread() {
    let lab = Lab::new();
    let mount = four(&lab);
    let name = |gpu: usize| format!("m{gpu}@1@0@%@bfloat16.pt");
    for gpu in 0..4 {
        let title = "title=VLLM::EngineCore with a title as long as a command line of some length ----------";
        Client::of(&mount).sees(gpu).does(title).makes_several(50, &name(gpu)).run();
    }
    spread(&mount, |i| name(i / 50).replace('%', &format!("{:08x}", i % 50)));
}

/// One process for the GPUs of all: the rank in the name tells, and where there is none it's spread.
#[test]
fn lmcaches_server_writes_for_all_gpus() {
    let lab = Lab::new();
    let mount = four(&lab);
    let (name, rankless) =
        (|rank: usize| format!("m@0x040{rank}040{rank}@0@{}.data", hash(rank)), "m@0x01000100@0@%.data");
    for list in ["0,1,2,3", "2"] {
        let mut client = Client::of(&mount).sees(list).does("title=lmcache server");
        for rank in 0..4 {
            client = client.makes(&format!("{list}/{}", name(rank)));
        }
        client.run();
        for rank in 0..4 {
            let name = format!("{list}/{}", name(rank));
            assert_eq!(slot(&mount, &name), rank, "{}", why(&mount, &name));
        }
    }
    Client::of(&mount).sees("0,1,2,3").makes_several(200, rankless).run();
    spread(&mount, |i| rankless.replace('%', &format!("{i:08x}")));
}

#[test]
fn an_engine_that_writes_for_all_gpus_spreads() {
    let lab = Lab::new();
    let mount = four(&lab);
    let block = "m_0123456789ab_r0/abc/de_g0/%.bin";
    Client::of(&mount)
        .sees("0,1,2,3")
        .does("fork")
        .does("title=VLLM::EngineCore")
        .makes_several(200, block)
        .run();
    spread(&mount, |i| block.replace('%', &format!("{i:08x}")));
}

/// 200 files on four backings: 50 each with a deviation of 6; five of them either way.
#[track_caller]
fn spread(mount: &Mount, name: impl Fn(usize) -> String) {
    let mut on = [0; 4];
    (0..200).for_each(|i| on[slot(mount, &name(i))] += 1);
    assert!(on.iter().all(|n| (20..=80).contains(n)), "200 files are on {on:?}");
}

#[test]
fn a_title_that_is_set_after_the_first_file_is_seen() {
    let lab = Lab::new();
    let mount = four(&lab);
    Client::of(&mount)
        .makes("before")
        .does("title=VLLM::Worker_TP2")
        .does("sleep=2500")
        .makes("after")
        .makes_in_thread("after, elsewhere")
        .run();
    assert!(why(&mount, "before").contains("which GPU isn't known"));
    assert_eq!([slot(&mount, "after"), slot(&mount, "after, elsewhere")], [2, 2], "{}", why(&mount, "after"));
}

/// What a process changes in its own environment no other process can see.
#[test]
fn a_list_that_is_set_in_the_process_is_not_seen() {
    let lab = Lab::new();
    let mount = four(&lab);
    Client::of(&mount).sees(1).does("setenv=CUDA_VISIBLE_DEVICES=3").makes("a").does("fork").makes("b").run();
    assert_eq!([slot(&mount, "a"), slot(&mount, "b")], [1, 1]);
    // A new program gets what is set by then.
    Client::of(&mount).sees(1).does("setenv=CUDA_VISIBLE_DEVICES=3").does("spawn=A=1").makes("c").run();
    assert_eq!(slot(&mount, "c"), 3);
}

#[test]
fn another_user_begins_another_environment() {
    let lab = Lab::new();
    let mount = four(&lab);
    std::os::unix::fs::chown(mount.point(), Some(65534), None).unwrap();
    let become_nobody = ["setpriv", "--reuid=65534", "--clear-groups"];
    // Its own is read, whoever it belongs to.
    Client::of(&mount).inside(&become_nobody).sees(3).makes("own").run();
    assert_eq!(slot(&mount, "own"), 3);
}
