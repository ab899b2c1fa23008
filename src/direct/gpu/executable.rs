//! Starting `kvfs worker`: this program again, as another process.
//!
//! What always holds: the child has nothing open of ours but what it's given as standard input, output and
//! error, and its working directory keeps none busy.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// What is started.
#[derive(Clone, Debug)]
pub(crate) struct Executable {
    program: PathBuf,
    /// Before the worker's own arguments.
    first: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Default for Executable {
    /// This program, even if its file was replaced or removed meanwhile.
    fn default() -> Executable {
        Executable { program: "/proc/self/exe".into(), first: vec!["worker".into()], env: Vec::new() }
    }
}

impl Executable {
    /// Another one, for tests: it finds the arguments in `KVFS_TEST_WORKER`, as JSON.
    #[cfg(test)]
    pub(super) fn of_tests(test: &str, env: Vec<(OsString, OsString)>) -> Executable {
        let first = [test, "--exact", "--nocapture", "--test-threads=1"].map(Into::into);
        Executable { program: "/proc/self/exe".into(), first: first.into(), env }
    }

    /// A command with these arguments.
    pub(super) fn command(&self, args: Vec<OsString>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first).envs(self.env.iter().cloned()).current_dir("/");
        if cfg!(test) {
            let args: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
            command.env("KVFS_TEST_WORKER", serde_json::to_string(&args).unwrap_or_default());
        } else {
            command.args(args);
        }
        command
    }
}
