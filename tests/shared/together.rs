//! Who may mount what with whom, and what `status` says of it.

use crate::common::{Lab, kvfs, sys};
use crate::{mount_at, shared, two};

#[test]
fn shared_and_sole_mounts_keep_each_other_away() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = |point: &str, list: String| {
        kvfs([
            "mount".into(),
            lab.dir(point).into_os_string(),
            "--backing".into(),
            list.into(),
            "--log".into(),
            lab.path("refused.log").into_os_string(),
        ])
    };
    let (plain, with_flag) = (b[0].display().to_string(), shared(&b)[0].display().to_string());
    let (one, two) = two(&lab, &b);
    mount("three", plain.clone()).fault(18, &[&plain, ":shared", "share it"]);
    drop(one);
    mount("three", plain.clone()).fault(18, &[&plain, ":shared"]);
    drop(two);
    let sole = mount_at(&lab, "one", &b).start();
    mount("three", with_flag.clone()).fault(18, &[&plain, "alone", ":shared"]);
    mount("three", plain.clone()).fault(18, &[&plain, "another kvfs mount is using it"]);
    drop(sole);
    mount_at(&lab, "three", &shared(&b)).start();
}

#[test]
fn status_says_what_is_shared() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mut set = shared(&b[..1]);
    set.push(b[1].clone());
    let mount = mount_at(&lab, "one", &set).start();
    let status = mount.status();
    let shared: Vec<_> = (0..2).map(|i| status["backings"][i]["shared"].as_bool()).collect();
    assert_eq!(shared, [Some(true), Some(false)]);
    let text = kvfs(["status".as_ref(), mount.point().as_os_str()]).code(0).stdout;
    let line = |i: usize| text.lines().find(|l| l.contains(b[i].to_str().unwrap())).unwrap().to_owned();
    assert!(line(0).contains("(shared)") && !line(1).contains("(shared)"), "{text}");
    assert!(sys::lstat(b[0].join(".kvfs-backing")).is_ok());
}

#[test]
fn bad_times_to_live() {
    let lab = Lab::new();
    for bad in ["-1", "x", "3601", "nan"] {
        let point = lab.dir("one").into_os_string();
        let args = ["mount".into(), point, format!("--shared-ttl={bad}").into(), "--backing=/nowhere".into()];
        kvfs(args).fault(41, &["--shared-ttl"]);
    }
}
