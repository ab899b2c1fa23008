//! The commands of the documentation are run: those of a document one after the other, on a machine as it describes.
//!
//! A block that begins with ```` ```sh ```` is run, as root, where `kvfs` is installed, `/nvme0/kv` to `/nvme5/kv` are empty and
//! `/mnt/kv` is there. One that can't be run here says what it needs: ```` ```sh needs="a GPU" ````.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a block may need that isn't at hand where the tests run.
const NEEDS: [&str; 7] = [
    "a GPU",
    "systemd",
    "a container engine",
    "Kubernetes",
    "the source",
    "drives of your own",
    "another kvfs",
];

/// How commands begin that are to be in a block of their own.
const COMMANDS: [&str; 12] = [
    "kvfs ",
    "mount ",
    "umount ",
    "systemctl ",
    "setfattr ",
    "getfattr ",
    "cargo ",
    "bench/",
    "packaging/",
    "curl ",
    "apt",
    "promtool ",
];

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// One block of commands.
struct Block {
    line: usize,
    needs: Option<String>,
    commands: String,
}

fn documents() -> Vec<PathBuf> {
    let mut all = vec![Path::new(REPOSITORY).join("README.md")];
    let docs = fs::read_dir(Path::new(REPOSITORY).join("docs")).unwrap();
    all.extend(
        docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")),
    );
    all.sort();
    all
}

/// The blocks of a document, and what is wrong with how it says them.
fn blocks(path: &Path) -> (Vec<Block>, Vec<String>) {
    let text = fs::read_to_string(path).unwrap();
    let (mut blocks, mut wrong): (Vec<Block>, Vec<String>) = Default::default();
    let mut fence: Option<String> = None;
    for (i, line) in text.lines().enumerate() {
        let at = format!("{}:{}", path.strip_prefix(REPOSITORY).unwrap().display(), i + 1);
        if let Some(info) = line.trim_start().strip_prefix("```") {
            if fence.take().is_some() {
                continue;
            }
            let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
            if ["bash", "console", "shell"].contains(&language) {
                wrong.push(format!("{at}: commands are in blocks of `sh`"));
            }
            if language == "sh" {
                let needs =
                    rest.strip_prefix("needs=\"").and_then(|rest| rest.strip_suffix('"')).map(str::to_owned);
                if needs.is_none() && !rest.is_empty()
                    || needs.as_deref().is_some_and(|n| !NEEDS.contains(&n))
                {
                    wrong.push(format!("{at}: `{rest}` is none of: needs={NEEDS:?}"));
                }
                blocks.push(Block { line: i + 1, needs, commands: String::new() });
            }
            fence = Some(language.to_owned());
        } else if fence.as_deref() == Some("sh") {
            writeln!(blocks.last_mut().unwrap().commands, "{line}").unwrap();
        } else if fence.is_none()
            && let Some(code) = line.strip_prefix("    ")
            && COMMANDS.iter().any(|command| code.starts_with(command))
        {
            wrong.push(format!("{at}: a command outside of a block of `sh` isn't run: {code}"));
        }
    }
    (blocks, wrong)
}

/// Makes the machine that the documents describe, and runs a script there: in namespaces of its own, over a copy of this
/// machine's root that forgets all changes. All that runs there ends with it.
const MACHINE: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$PLACE"
mkdir "$PLACE/changes" "$PLACE/work" "$PLACE/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$PLACE/changes,workdir=$PLACE/work" "$PLACE/root"
cp "$SCRIPT" "$PLACE/script"
cd "$PLACE/root"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs run
mkdir -p mnt/kv
for i in 0 1 2 3 4 5; do
    mkdir -p "nvme$i"
    mount -t tmpfs -o size=1G tmpfs "nvme$i"
    mkdir "nvme$i/kv"
done
install "$KVFS" usr/bin/kvfs
for helper in "$REPOSITORY"/mount-helpers/*mount.kvfs; do
    [ ! -e "$helper" ] || install "$helper" usr/sbin/
done
install "$PLACE/script" tmp/script
exec chroot . /usr/bin/env -C /root PATH=/usr/sbin:/usr/bin:/sbin:/bin bash /tmp/script
"#;

#[track_caller]
fn run(document: &str) {
    let (blocks, _) = blocks(&Path::new(REPOSITORY).join(document));
    let mut script = String::from("set -euo pipefail\n");
    for block in blocks.iter().filter(|block| block.needs.is_none()) {
        write!(
            script,
            "echo '--- {document}:{}'\nset -x\n{}{{ set +x; }} 2>/dev/null\n",
            block.line, block.commands
        )
        .unwrap();
    }
    let place = tempfile::tempdir().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, script).unwrap();
    let output = Command::new("timeout")
        .args([
            "-k",
            "5",
            "100",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "bash",
            "-c",
            MACHINE,
        ])
        .env("PLACE", place.path())
        .env("SCRIPT", file.path())
        .env("KVFS", env!("CARGO_BIN_EXE_kvfs"))
        .env("REPOSITORY", REPOSITORY)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{document}: {}\n{said}", output.status);
}

macro_rules! documents {
    ($($test:ident $document:literal)*) => {
        $(
            #[test]
            fn $test() {
                run($document);
            }
        )*

        const TESTED: &[&str] = &[$($document),*];
    };
}

documents! {
    readme "README.md"
    backings "docs/BACKINGS.md"
    clients "docs/CLIENTS.md"
    configuration "docs/CONFIGURATION.md"
    containers "docs/CONTAINERS.md"
    gpu "docs/GPU.md"
    metrics "docs/METRICS.md"
    operations "docs/OPERATIONS.md"
    placement "docs/PLACEMENT.md"
    reliability "docs/RELIABILITY.md"
    retention "docs/RETENTION.md"
    rules "docs/RULES.md"
    shared "docs/SHARED.md"
    tools "docs/TOOLS.md"
    troubleshooting "docs/TROUBLESHOOTING.md"
}

#[test]
fn every_command_is_run_or_says_what_it_needs() {
    let mut wrong = Vec::new();
    let mut commands = 0;
    for path in documents() {
        let (blocks, mut wrong_here) = blocks(&path);
        wrong.append(&mut wrong_here);
        let document = path.strip_prefix(REPOSITORY).unwrap().to_str().unwrap().to_owned();
        let runnable = blocks.iter().filter(|block| block.needs.is_none()).count();
        commands += runnable;
        if (runnable > 0) != TESTED.contains(&document.as_str()) {
            wrong.push(format!(
                "{document}: {runnable} blocks to run, and it's {}in the list of this test",
                if runnable > 0 { "not " } else { "" }
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(commands > 10, "the documents have commands");
}

/// Links lead somewhere.
#[test]
fn every_link_to_a_file_leads_to_one() {
    let mut wrong = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.contains("://") {
                continue;
            }
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            if !target.exists() {
                wrong.push(format!("{}: {link}", path.display()));
            } else if !anchor.is_empty() && !anchors(&target).contains(&anchor.to_owned()) {
                wrong.push(format!("{}: {link}: no such heading", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>();
        kept.replace(' ', "-")
    };
    headings.map(anchor).collect()
}
