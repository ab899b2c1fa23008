//! Metrics over HTTP: right answers, slow and hostile askers, daemons that die.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{number, said, scrape, until};
use crate::common::killer::{daemon, kill, next};
use crate::common::{Builder, Lab, Mount, kvfs, sys};

/// A mount that serves its metrics at a socket.
fn at_socket(lab: &Lab) -> Builder {
    lab.mount(&lab.dirs(2)).arg("--metrics").arg(format!("unix:{}", lab.path("metrics").display()))
}

/// What a port says that the kernel has chosen: the log names it.
fn port(mount: &Mount) -> u16 {
    until("the port in the log", || {
        let log = std::fs::read_to_string(&mount.log).unwrap();
        let line = log.lines().find_map(|line| line.split_once("metrics are served at 127.0.0.1:"))?;
        line.1.trim().parse().ok()
    })
}

#[test]
fn get_and_head_are_answered_and_nothing_else() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).arg("--metrics").arg("0").start();
    let port = port(&mount);
    let ask = |request: &str| said(TcpStream::connect(("127.0.0.1", port)).unwrap(), request);
    let got = ask("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    assert_eq!(number(body, "kvfs_backing_up{backing=\"1\"}"), Some(1.0), "{body}");
    assert!(ask("GET /metrics?x=1 HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 OK"));
    let head = ask("HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    for path in ["/", "/metricsx", "/../metrics", "*"] {
        let answer = ask(&format!("GET {path} HTTP/1.1\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    for method in ["POST", "PUT", "DELETE", "get"] {
        let answer = ask(&format!("{method} /metrics HTTP/1.1\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("Allow: GET, HEAD\r\n"), "{answer}");
    }
    for bad in ["\r\n\r\n", "GET /metrics\r\n\r\n", "GET /metrics HTTP/2\r\n\r\n", "\0\u{7f}\r\n\r\n"] {
        assert!(ask(bad).starts_with("HTTP/1.1 400 "), "{bad:?}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n", "x".repeat(9000));
    let answer = ask(&long);
    // The answer may be lost with the connection, of which not all was read.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let text = kvfs([Path::new("stats"), Path::new("--prometheus"), mount.point()]).code(0).stdout;
    assert_eq!(number(&text, "kvfs_backing_up{backing=\"1\"}"), Some(1.0), "{text}");
}

/// Who says nothing is hung up on, however many they are.
#[test]
fn silent_connections_keep_nobody_away_for_long() {
    let lab = Lab::new();
    let mount = at_socket(&lab).start();
    let socket = lab.path("metrics");
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert!(scrape(&socket).unwrap().contains("kvfs_info"));
    // The mount goes on meanwhile.
    std::fs::write(mount.path("file"), "x").unwrap();
    drop(silent);
}

#[test]
fn a_daemon_that_takes_over_serves_them_too() {
    let lab = Lab::new();
    let mount = at_socket(&lab).supervised().start();
    let socket = lab.path("metrics");
    std::fs::write(mount.path("file"), "x").unwrap();
    let restarts = |text: &str| number(text, "kvfs_daemon_restarts_total");
    assert_eq!(restarts(&scrape(&socket).unwrap()), Some(0.0));
    for n in 1..=2 {
        kill(&mount);
        let text = until("metrics again", || scrape(&socket));
        assert_eq!(restarts(&text), Some(f64::from(n)));
        // Counters begin anew, and what is so goes on.
        assert!(!text.contains("op=\"create\""), "{text}");
        assert_eq!(number(&text, "kvfs_index_files"), Some(1.0));
    }
    let (before, _) = daemon(&mount);
    kvfs([Path::new("upgrade"), mount.point()]).code(0);
    next(&mount, before);
    let text = until("metrics after the upgrade", || scrape(&socket));
    assert_eq!(restarts(&text), Some(3.0));
    mount.stop();
    assert!(!socket.exists(), "the socket goes with the mount");
}

#[test]
fn a_port_is_had_again_after_a_crash() {
    let lab = Lab::new();
    // Free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mount =
        lab.mount(&lab.dirs(1)).arg("--metrics").arg(format!("127.0.0.1:{port}")).supervised().start();
    let ask = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let answer = said(stream, "GET /metrics HTTP/1.1\r\n\r\n");
        number(&answer, "kvfs_daemon_restarts_total")
    };
    assert_eq!(ask(), Some(0.0));
    kill(&mount);
    assert_eq!(until("the port", ask), 1.0);
}

#[test]
fn what_cannot_be_served_is_refused_and_nothing_is_left() {
    let lab = Lab::new();
    let backing = lab.path("new");
    let point = lab.dir("mnt");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let try_at = |address: String| {
        let words = ["mount", point.to_str().unwrap(), "--backing", backing.to_str().unwrap(), "--metrics"];
        kvfs(words.into_iter().map(str::to_owned).chain([address]))
    };
    try_at(taken.local_addr().unwrap().to_string()).fault(35, &["in use", "another address"]);
    std::fs::write(lab.path("file"), "x").unwrap();
    try_at(format!("unix:{}", lab.path("file").display())).fault(35, &["something else than a socket"]);
    try_at(format!("unix:{}", point.join("socket").display())).fault(41, &["in the mount itself"]);
    sys::symlink(point.to_str().unwrap(), lab.path("link")).unwrap();
    try_at(format!("unix:{}", lab.path("link").join("socket").display())).fault(41, &["in the mount itself"]);
    try_at("example.org:1".into()).fault(41, &["example.org:1", "127.0.0.1:9464"]);
    assert!(!backing.exists() && std::fs::read_dir(&point).unwrap().next().is_none());
    assert_eq!(std::fs::read(lab.path("file")).unwrap(), b"x");
}
