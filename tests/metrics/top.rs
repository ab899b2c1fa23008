//! `kvfs top`: in blocks of text, and on a terminal.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::until;
use crate::common::cli::BINARY;
use crate::common::process::Process;
use crate::common::{Lab, Mount, kvfs, ranked};

/// A process that makes files until it's killed.
fn writer(mount: &Mount) -> Process {
    let dir = mount.point().to_owned();
    let mut writer = Process::start(move |say| {
        for i in 0.. {
            std::fs::write(dir.join(ranked(1, i % 50)), "x").unwrap();
            std::fs::remove_file(dir.join(ranked(1, i % 50))).unwrap();
            if i == 0 {
                say("begun");
            }
        }
    });
    assert_eq!(writer.hear(), "begun");
    writer
}

#[test]
fn blocks_of_text() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let writer = writer(&mount);
    let words = ["top", "--batch", "-n", "2", "-d", "0.3"].map(OsString::from);
    let out = kvfs(words.into_iter().chain([mount.point().into()])).code(0).stdout;
    assert_eq!(out.matches("kvfs top  ").count(), 2, "{out}");
    let last = &out[out.rfind("kvfs top  ").unwrap()..];
    let line = |begin: &str| {
        let found = last.lines().find(|line| line.trim_start().starts_with(begin));
        found.unwrap_or_else(|| panic!("no {begin:?} in:\n{out}"))
    };
    let backing = line("1    rw");
    assert!(backing.ends_with(mount.backings()[1].to_str().unwrap()), "{backing}");
    let create: Vec<_> = line("create ").split_whitespace().collect();
    assert!(create[1].parse::<f64>().unwrap() > 0.0 && create.len() == 6, "{create:?}");
    let header = last.lines().position(|line| line.contains("who writes")).unwrap();
    let who: Vec<_> = last.lines().nth(header + 1).unwrap().split_whitespace().collect();
    // pid, name, GPU, backing, files a second
    assert!(who[0].parse::<u32>().is_ok() && (who[2], who[3]) == ("1", "1"), "{who:?}");
    assert!(who[4].parse::<f64>().unwrap() > 0.0, "{who:?}");
    writer.kill();
    // Without a terminal that's what comes without being asked for.
    let words = ["top", "-n", "1", "-d", "0.1"].map(OsString::from);
    let out = kvfs(words.into_iter().chain([mount.point().into()])).code(0).stdout;
    assert!(out.starts_with("kvfs top  ") && !out.contains('\x1b'), "{out}");
    kvfs([Path::new("top"), &lab.root()]).fault(50, &["no kvfs is mounted"]);
    kvfs([Path::new("top"), Path::new("--delay=0"), mount.point()]).fault(41, &["0.1 to 3600"]);
}

/// A terminal: a server of tmux with a socket of its own, that ends with this.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    fn run(lab: &Lab, command: &str) -> Terminal {
        let terminal = Terminal { socket: lab.path("tmux") };
        let started =
            terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "160", "-y", "40", command]);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        terminal
    }

    fn tmux(&self, words: &[&str]) -> Output {
        Command::new("tmux")
            .arg("-S")
            .arg(&self.socket)
            .args(words)
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap()
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    /// Waits until the screen has this.
    #[track_caller]
    fn shows(&self, what: &str) -> String {
        until(what, || Some(self.screen()).filter(|screen| screen.contains(what)))
    }

    fn press(&self, key: &str) {
        assert!(self.tmux(&["send-keys", key]).status.success());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

#[test]
fn on_a_terminal() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let writer = writer(&mount);
    let command = format!(
        "stty -a >{0}; {BINARY} top -d 0.2 {1}; echo left with $?; stty -a >{2}; cat",
        lab.path("before").display(),
        mount.point().display(),
        lab.path("after").display()
    );
    let terminal = Terminal::run(&lab, &command);
    let screen = terminal.shows("create ");
    assert!(screen.starts_with("kvfs top  "), "{screen}");
    for part in ["who writes", "orphans", "q quit   s sort: files/s   p pause", "slot state"] {
        assert!(screen.contains(part), "{part}:\n{screen}");
    }
    terminal.press("s");
    terminal.shows("s sort: bytes/s");
    terminal.press("p");
    terminal.shows("p pause   paused");
    terminal.press("p");
    until("it goes on", || (!terminal.screen().contains("paused")).then_some(()));
    // Smaller: what fits, and the keys.
    assert!(terminal.tmux(&["resize-window", "-x", "60", "-y", "10"]).status.success());
    until("10 lines", || {
        let screen = terminal.screen();
        let last = screen.lines().last().unwrap_or_default().to_owned();
        (screen.lines().count() == 10 && last.starts_with("q quit")).then_some(())
    });
    terminal.press("q");
    let left = terminal.shows("left with 0");
    assert_eq!(left.trim(), "left with 0", "the screen is as it was before");
    // The first line has the size, which is another by now.
    let modes = |name: &str| {
        let text = std::fs::read_to_string(lab.path(name)).unwrap_or_default();
        text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    until("the terminal's modes", || (!modes("after").is_empty()).then_some(()));
    assert_eq!(modes("before"), modes("after"));
    writer.kill();
}
