//! Clients in namespaces of their own.

use super::*;

#[test]
fn a_process_is_found_from_outside_its_pid_namespace() {
    let lab = Lab::new();
    let mount = four(&lab);
    for gpu in 0..4 {
        let names =
            [format!("{gpu} first"), format!("{gpu} thread"), format!("{gpu} worker"), chunk(0, 1, gpu)];
        Client::of(&mount)
            .inside(&["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
            .sees(gpu)
            .makes(&names[0])
            .makes_in_thread(&names[1])
            .does("fork")
            .does("title=VLLM::Worker")
            .makes(&names[2])
            .makes(&names[3])
            .run();
        for name in &names {
            assert_eq!(slot(&mount, name), gpu, "{name}: {}", why(&mount, name));
        }
    }
}

/// Runs the rest in a container: its own `/dev`, with these devices. They are files here: nobody opens them.
fn container(devices: &str) -> Vec<String> {
    let script =
        format!("mount -t tmpfs tmpfs /dev && for d in null {devices}; do : > /dev/$d; done && exec \"$@\"");
    ["unshare", "--mount", "sh", "-c", &script, "sh"].map(String::from).into()
}

#[test]
fn the_devices_of_a_container_say_which_gpus_it_has() {
    let lab = Lab::new();
    let driver = driver(&lab, 4);
    let mount = with_driver(lab.mount(&lab.dirs(4)), &driver).start();
    let run = |devices: &str, list: Option<&str>, title: &str, name: &str| {
        let around = container(devices);
        let around: Vec<&str> = around.iter().map(String::as_str).collect();
        let mut client = Client::of(&mount).inside(&around);
        if let Some(list) = list {
            client = client.sees(list);
        }
        client.does("fork").does(format!("title={title}")).makes(name).run();
        slot(&mount, name)
    };
    // GPU n has the minor 3 - n.
    for gpu in 0..4 {
        let device = format!("nvidia{}", 3 - gpu);
        assert_eq!(run(&device, None, "VLLM::EngineCore", &chunk(0, 1, gpu)), gpu);
        assert_eq!(run(&device, Some("0"), "VLLM::Worker", &format!("listed {gpu}")), gpu);
        // Its title counts what its own server sees: one.
        assert_eq!(run(&device, None, "VLLM::Worker_TP0", &format!("titled {gpu}")), gpu);
    }
    let words = why(&mount, &chunk(0, 1, 1));
    assert!(words.contains("GPU 1 from the only GPU device in the container of process "), "{words}");
    assert_eq!(run("nvidia1 nvidia0", Some("1"), "python", "index in two"), 3);
    assert_eq!(run("nvidia1 nvidia0", None, "VLLM::Worker_TP0", "title in two"), 2);
    assert_eq!(run("nvidia1 nvidia0 nvidia2", Some(&uuid(2)), "python", "by its UUID"), 2);
}

#[test]
fn containers_without_a_list_of_gpus_go_by_the_devices_number() {
    let lab = Lab::new();
    let mount = with_driver(lab.mount(&lab.dirs(4)), &lab.path("no driver")).start();
    for n in 0..4 {
        let around = container(&format!("nvidia{n}"));
        let around: Vec<&str> = around.iter().map(String::as_str).collect();
        Client::of(&mount).inside(&around).makes(&format!("{n}")).run();
        assert_eq!(slot(&mount, &format!("{n}")), n);
    }
}
