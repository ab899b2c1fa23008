//! Starts the client (`client.c`).

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::{Mount, cli, ns, sys};

/// The program; compiled once for each version of its source.
fn program() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/placement/client.c");
    let hash = xxhash_rust::xxh3::xxh3_64(&fs::read(&source).unwrap());
    let place = std::env::current_exe().unwrap().with_file_name(format!("placement-client-{hash:016x}"));
    if place.exists() {
        return place;
    }
    let fresh = tempfile::NamedTempFile::new_in(place.parent().unwrap()).unwrap().into_temp_path();
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]).arg(&fresh).arg(source);
    assert!(gcc.status().expect("gcc is installed").success(), "the client doesn't compile");
    // Another test may have been first: then it's the same.
    fresh.persist(&place).unwrap();
    place
}

/// A client of a mount, to be told what to do.
pub(super) struct Client<'a> {
    mount: &'a Mount,
    around: Vec<String>,
    env: Vec<(String, String)>,
    todo: Vec<String>,
}

impl<'a> Client<'a> {
    /// With nothing in its environment.
    pub(super) fn of(mount: &'a Mount) -> Self {
        Self { mount, around: Vec::new(), env: Vec::new(), todo: Vec::new() }
    }

    /// In its environment when it starts.
    pub(super) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.into(), value.to_string()));
        self
    }

    /// Sees these GPUs.
    pub(super) fn sees(self, list: impl ToString) -> Self {
        self.env("CUDA_VISIBLE_DEVICES", list)
    }

    /// Started by this command, which is given the client's as its last arguments.
    pub(super) fn inside(mut self, command: &[&str]) -> Self {
        self.around.extend(command.iter().map(|word| word.to_string()));
        self
    }

    /// An instruction of `client.c`.
    pub(super) fn does(mut self, what: impl ToString) -> Self {
        self.todo.push(what.to_string());
        self
    }

    /// Makes a file.
    pub(super) fn makes(self, name: &str) -> Self {
        let path = self.path(name);
        self.does(format!("file={path}"))
    }

    /// Makes a file, from another thread.
    pub(super) fn makes_in_thread(self, name: &str) -> Self {
        let path = self.path(name);
        self.does(format!("thread={path}"))
    }

    /// Makes several files; a % in the name is their number.
    pub(super) fn makes_several(self, count: usize, name: &str) -> Self {
        let path = self.path(name);
        self.does(format!("files={count}:{path}"))
    }

    pub(super) fn renames(self, from: &str, to: &str) -> Self {
        let (from, to) = (self.path(from), self.path(to));
        self.does(format!("rename={from}:{to}"))
    }

    fn path(&self, name: &str) -> String {
        let path = self.mount.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self) -> Command {
        let program = program();
        let words = self.around.iter().map(OsStr::new);
        let mut all = words.chain([program.as_os_str()]).chain(self.todo.iter().map(OsStr::new));
        let mut command = Command::new(all.next().unwrap());
        command.args(all).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Does all of it, and must end well.
    #[track_caller]
    pub(super) fn run(self) {
        let out = cli::finish(self.command());
        assert!(out.status.success(), "{}: {}\n{}", out.what, out.status, out.stderr);
    }

    /// Begins; it's to wait once.
    pub(super) fn start(self) -> Waiting {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        sys::die_with_parent(&mut command);
        let mut child = command.spawn().expect("start a client");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Waiting { pid: line.trim().parse().expect("it says its id"), child }
    }
}

/// A client that waits to go on.
pub(super) struct Waiting {
    pub(super) pid: u32,
    child: Child,
}

impl Waiting {
    /// Lets it do the rest.
    #[track_caller]
    pub(super) fn finish(mut self) {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let status = cli::wait(&mut self.child, ns::HANG).expect("the client ends");
        assert!(status.success(), "a client: {status}");
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
