//! Tests of the room, without a mount.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;

fn histogram(all: &[Duration]) -> Histogram {
    let metrics = Metrics::new(1);
    all.iter().for_each(|took| metrics.request(0, None, *took));
    metrics.requests().pop().map_or_else(Histogram::default, |(_, _, histogram)| histogram)
}

#[test]
fn each_time_is_below_the_edge_that_it_is_counted_under() {
    for nanos in
        (0..40_000u64).step_by(37).chain((0..34).map(|n| 1 << n)).chain((0..33).map(|n| (1 << n) - 1))
    {
        let histogram = histogram(&[Duration::from_nanos(nanos)]);
        let seconds = nanos as f64 / 1e9;
        let edges: Vec<_> = histogram.cumulative().collect();
        assert_eq!(edges.len(), 26);
        for (edge, below) in edges {
            assert_eq!(below, u64::from(seconds < edge), "{nanos} ns, edge {edge}");
        }
    }
}

#[test]
fn quantiles_are_right_within_an_eighth() {
    let all: Vec<_> = (1..=1000).map(|n| Duration::from_micros(n * 10)).collect();
    let histogram = histogram(&all);
    assert_eq!(histogram.count, 1000);
    assert!((histogram.sum - 5.005).abs() < 1e-9, "{}", histogram.sum);
    for (q, want) in [(0.01, 1e-4), (0.5, 5e-3), (0.99, 9.9e-3), (1.0, 1e-2)] {
        let got = histogram.quantile(q).unwrap();
        assert!((got / want - 1.0).abs() < 0.125, "{q}: {got}, not {want}");
    }
    assert_eq!(Histogram::default().quantile(0.5), None);
    assert_eq!(super::tests::histogram(&[Duration::from_secs(99)]).quantile(0.5), Some(16.777216));
}

#[test]
fn what_came_since_is_what_was_added() {
    let (few, more) = (histogram(&[Duration::from_micros(3)]), histogram(&[Duration::from_micros(3); 5]));
    assert_eq!(more.since(&few).count, 4);
    assert_eq!(few.since(&more).count, 1, "a daemon that has begun anew");
    assert_eq!(few.plus(&more).count, 6);
}

#[test]
fn threads_count_together() {
    let metrics = Metrics::new(3);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    metrics.request(2, Some(Slot(1)), Duration::from_micros(5));
                    metrics.looked_up(true);
                    metrics.read(Mover::Daemon, Slot(1), 10);
                }
            });
        }
    });
    let requests = metrics.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!((requests[0].0, requests[0].1, requests[0].2.count), (2, Some(Slot(1)), 20_000));
    assert_eq!(metrics.lookups(), (20_000, 0));
    assert_eq!(metrics.bytes(Mover::Daemon, Slot(1)), (200_000, 0));
    assert_eq!(metrics.bytes(Mover::Daemon, Slot(0)), (0, 0));
    assert_eq!(metrics.bytes(Mover::Direct, Slot(1)), (0, 0));
}

#[test]
fn text_is_escaped_and_complete() {
    let mut all = Families::default();
    all.gauge("kvfs_a", "A \\ and\nmore").with(&[("path", "/a\"b\\c\nd")], 1.5);
    all.counter("kvfs_b_total", "B").is(9_007_199_254_740_992.0);
    all.histogram("kvfs_c_seconds", "C").took(&[("op", "x")], histogram(&[Duration::from_micros(1)]));
    let text = encode(&all);
    assert!(text.starts_with("# HELP kvfs_a A \\\\ and\\nmore\n# TYPE kvfs_a gauge\n"), "{text}");
    assert!(text.contains("kvfs_a{path=\"/a\\\"b\\\\c\\nd\"} 1.5\n"), "{text}");
    assert!(text.contains("kvfs_b_total 9007199254740992\n"), "{text}");
    assert!(text.contains("kvfs_c_seconds_bucket{op=\"x\",le=\"0.000002\"} 1\n"), "{text}");
    assert!(text.contains("kvfs_c_seconds_bucket{op=\"x\",le=\"+Inf\"} 1\n"), "{text}");
    assert!(
        text.ends_with("kvfs_c_seconds_sum{op=\"x\"} 0.000001\nkvfs_c_seconds_count{op=\"x\"} 1\n"),
        "{text}"
    );
}

#[test]
fn addresses() {
    let address = |text: &str| text.parse::<Address>().map(|a| (a.to_string(), a.is_open()));
    for local in ["127.0.0.1:9464", "9464", ":9464", "localhost:9464"] {
        assert_eq!(address(local), Ok(("127.0.0.1:9464".into(), false)), "{local}");
    }
    assert_eq!(address("[::1]:1"), Ok(("[::1]:1".into(), false)));
    assert_eq!(address("0.0.0.0:1"), Ok(("0.0.0.0:1".into(), true)));
    assert_eq!(address("unix:/run/x"), Ok(("unix:/run/x".into(), false)));
    for bad in ["", "unix:", "host:1", "127.0.0.1", "127.0.0.1:99999", "example.org:80"] {
        assert!(address(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_socket_that_a_dead_process_has_left_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("socket"));
    drop(Listener::bind(&address).unwrap());
    let listener = Listener::bind(&address).unwrap();
    assert!(Listener::bind(&address).unwrap_err().to_string().contains("another process serves there"));
    let file = Address::Unix(dir.path().join("file"));
    std::fs::write(dir.path().join("file"), "x").unwrap();
    assert!(Listener::bind(&file).unwrap_err().to_string().contains("something else"));
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"x");

    let server = Server::start(address.clone(), Some(listener), || "a 1\n".into()).unwrap();
    let mut stream = UnixStream::connect(dir.path().join("socket")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\na 1\n"), "{answer}");
    drop(server);
    assert!(!dir.path().join("socket").exists());
}

#[test]
fn writers_are_told_by_process_and_backing() {
    let writers = Writers::default();
    let who = |pid| move || Some((pid, "python".to_owned()));
    writers.wrote(10, 0, Some(3), who(9));
    writers.wrote(10, 0, Some(3), || panic!("it was just looked up"));
    writers.wrote(11, 0, Some(3), who(9));
    writers.wrote(12, 1, None, who(12));
    writers.wrote(13, 1, None, || None);
    let recent = writers.recent();
    let told: Vec<_> = recent.iter().map(|w| (w.pid, w.backing, w.files, w.gpu)).collect();
    assert_eq!(told, [(12, 1, 1, None), (9, 0, 3, Some(3))]);
}

#[test]
fn each_process_counts_once_and_each_command_is_warned_of_once() {
    let names = RandomNames::default();
    assert!(names.found((1, 5), "a", || "of a".into()));
    assert!(!names.found((1, 5), "a", || panic!("known")));
    assert!(!names.found((2, 6), "a", || panic!("known")));
    assert!(names.found((3, 7), "b", || "of b".into()));
    assert_eq!(names.processes(), 3);
    assert_eq!(names.warnings(), ["of a", "of b"]);
}
