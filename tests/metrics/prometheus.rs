//! A real Prometheus scrapes a real mount, and finds all that the dashboard and the alerts ask for.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{said, until};
use crate::common::lab::run;
use crate::common::{Lab, Mount, kvfs, ranked, sys};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");

fn packaged(name: &str) -> PathBuf {
    Path::new(PACKAGING).join(name)
}

fn dashboard() -> Value {
    serde_json::from_str(&std::fs::read_to_string(packaged("grafana/kvfs.json")).unwrap()).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().collect()
}

/// All that the dashboard's panels ask for, as Grafana would fill it in.
fn expressions() -> Vec<String> {
    let dashboard = dashboard();
    let targets = panels(&dashboard).into_iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let fill = |expr: &str| expr.replace("$__rate_interval", "1m").replace("$instance", ".*");
    targets.map(|target| fill(target["expr"].as_str().unwrap())).collect()
}

/// The metrics in an expression.
fn names(expression: &str) -> impl Iterator<Item = String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("kvfs_")).map(str::to_owned)
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs until it's dropped.
struct Prometheus {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("prometheus: {}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

impl Prometheus {
    /// One that scrapes this port, by what is packaged but for the port and how often.
    fn start(lab: &Lab, target: u16) -> Prometheus {
        let scrape = std::fs::read_to_string(packaged("prometheus/scrape.yml")).unwrap();
        assert!(scrape.contains("127.0.0.1:9464"), "{scrape}");
        let often = "global: {scrape_interval: 250ms, scrape_timeout: 200ms, evaluation_interval: 250ms}\n";
        let config = lab.path("prometheus.yml");
        std::fs::write(&config, often.to_owned() + &scrape.replace("9464", &target.to_string())).unwrap();
        std::fs::copy(packaged("prometheus/kvfs.rules.yml"), lab.path("kvfs.rules.yml")).unwrap();
        run(Command::new("promtool").args(["check", "config"]).arg(&config));
        let (port, log) = (free_port(), lab.path("prometheus.log"));
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", lab.dir("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        sys::die_with_parent(&mut command);
        Prometheus { child: command.spawn().expect("prometheus, of Debian's package"), port, log }
    }

    /// What its HTTP API answers; `None` while it doesn't.
    fn get(&self, path: &str) -> Option<Value> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let answer = said(stream, &format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n"));
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    fn query(&self, expression: &str) -> Option<Vec<Value>> {
        let escaped: String = expression.bytes().map(|b| format!("%{b:02x}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={escaped}"))?;
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        Some(answer["data"]["result"].as_array().unwrap().clone())
    }
}

/// Something of everything.
fn use_it(mount: &Mount) {
    for i in 0..10 {
        std::fs::write(mount.path(ranked(i % 2, i)), "some bytes").unwrap();
        assert_eq!(std::fs::read(mount.path(ranked(i % 2, i))).unwrap(), b"some bytes");
    }
    let _ = sys::lstat(mount.path("absent"));
    let dir = mount.path("dir");
    std::fs::create_dir_all(&dir).unwrap();
    run(Command::new("setfattr").args(["-n", "user.kvfs.quota", "-v", "1G"]).arg(&dir));
}

#[test]
fn scrapes_all_that_dashboard_and_alerts_ask_for() {
    let lab = Lab::new();
    let port = free_port();
    let mount = lab.mount(&lab.dirs(2)).arg("--metrics").arg(format!("127.0.0.1:{port}")).start();
    use_it(&mount);
    let prometheus = Prometheus::start(&lab, port);
    until("a scrape", || prometheus.query("up{job=\"kvfs\"} == 1")?.first().cloned());
    // Rates need two scrapes.
    until("a second scrape", || prometheus.query("count_over_time(kvfs_info[1m]) > 1")?.first().cloned());
    let mut asked: BTreeSet<String> = expressions().iter().flat_map(|expression| names(expression)).collect();
    for expression in expressions() {
        prometheus.query(&expression).unwrap();
    }

    let rules = until("rules that were evaluated", || {
        let rules = prometheus.get("/api/v1/rules")?;
        let rules = rules["data"]["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    assert!(rules.len() >= 10, "{rules:?}");
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule:#}");
        assert_eq!(rule["state"], "inactive", "nothing is wrong: {rule:#}");
        asked.extend(names(rule["query"].as_str().unwrap()));
    }
    assert!(asked.len() > 20, "{asked:?}");
    for name in asked {
        assert!(!prometheus.query(&name).unwrap().is_empty(), "{name} is asked for, and isn't there");
    }
    let created = prometheus.query("sum(kvfs_files_created_total)").unwrap();
    assert_eq!(created[0]["value"][1], "10");
    drop(prometheus);
}

#[test]
fn promtool_finds_nothing_to_say() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    use_it(&mount);
    let text = kvfs([Path::new("stats"), Path::new("--prometheus"), mount.point()]).code(0).stdout;
    assert!(text.contains("kvfs_request_duration_seconds_bucket"), "{text}");
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus");
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let out = check.wait_with_output().unwrap();
    let said = [out.stdout, out.stderr].concat();
    assert!(out.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    run(Command::new("promtool").args(["check", "rules"]).arg(packaged("prometheus/kvfs.rules.yml")));
}

/// What Grafana wants of a dashboard, as far as that can be told without it.
#[test]
fn the_dashboard_is_one() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string());
    let variables: BTreeSet<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, BTreeSet::from(["datasource", "instance"]));
    let panels = panels(&dashboard);
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    let mut places = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{title} is out of the grid");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(places.insert(cell), "{title} is over another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let letters: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert!(!targets.is_empty() && letters.len() == targets.len(), "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
    }
}
