//! One table, three places: what's said in each means the same, and where it's wrong that's told.

use std::collections::BTreeSet;

use super::*;

const FILE: &str = "/etc/kvfs/kv.toml";

fn words(line: &[&str]) -> Vec<OsString> {
    ["kvfs", "mount"].iter().chain(line).map(OsString::from).collect()
}

fn resolved(line: &[&str]) -> Vec<String> {
    let said = resolve(&words(line)).unwrap_or_else(|e| panic!("{line:?}: {e}"));
    said.words.iter().skip(2).map(|word| word.to_string_lossy().into_owned()).collect()
}

fn of_file(text: &str) -> Result<Vec<OsString>, Failure> {
    let table = Table::new();
    let settings = file::parse(Path::new(FILE), text, &table)?;
    Ok(settings.iter().flat_map(Setting::words).collect())
}

/// A file that goes with the test.
fn written(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn commas_separate_unless_they_are_quoted() {
    let split = |text| split(text).unwrap();
    assert_eq!(split("a,b=c, d ,,e="), ["a", "b=c", "d", "e="]);
    assert_eq!(split(r#"backing="/a,/b",ro"#), ["backing=/a,/b", "ro"]);
    assert_eq!(split(r"backing=/a\,/b,x=\y"), ["backing=/a,/b", r"x=\y"]);
    assert_eq!(split(""), Vec::<String>::new());
    assert!(super::split("a,\"b").is_err());
    let words = ["backing=/a,/b".to_owned(), "ro".to_owned()];
    assert_eq!(split(&join(&words)), words);
}

#[test]
fn the_same_words_come_of_flags_options_and_a_file() {
    let same =
        ["--backing=/a", "--backing=/b:min-free=1G", "--degraded", "--placement=hash", "--min-free=2%"];
    let same = same.iter().chain(&["--capacity=total=1T", "--threads=4", "--options=ro", "--", "/m"]);
    let same: Vec<&str> = same.copied().collect();
    let flags = "--threads 4 --capacity total=1T --backing /a --degraded --backing /b:min-free=1G -o ro /m --min-free 2% --placement hash";
    assert_eq!(resolved(&flags.split(' ').collect::<Vec<_>>()), same);
    let options = "ro,threads=4,capacity=total=1T,backing=/a,degraded,backing=/b:min-free=1G,min_free=2%,placement=hash";
    assert_eq!(resolved(&["/m", "-o", options]), same);
    let file = written(
        r#"
        mount-point = "/m"
        backing = ["/a", { path = "/b", min_free = "1G", shared = false }]
        degraded = true
        placement = "hash"
        min_free = "2%"
        capacity = "total=1T"
        threads = 4
        options = "ro"
        "#,
    );
    let path = file.path().to_str().unwrap();
    assert_eq!(resolved(&["--config", path]), same);
    assert_eq!(resolved(&["-o", &format!("config={path}")]), same);
    // Once they're flags, they stay as they are.
    assert_eq!(resolved(&same), same);
}

#[test]
fn flags_count_before_options_and_these_before_the_file() {
    let file = written(
        "mount-point = '/f'\nbacking = ['/f']\nplacement = 'hash'\nthreads = 3\nexclusive = true\noptions = ['ro', 'noatime']",
    );
    let config = format!("--config={}", file.path().display());
    let all = resolved(&[&config, "--threads=5", "-o", "threads=4,placement=most-free,backing=/o,rw"]);
    let same = [
        "--backing=/o",
        "--placement=most-free",
        "--exclusive",
        "--threads=5",
        "--options=noatime",
        "--",
        "/f",
    ];
    assert_eq!(all, same);
    assert_eq!(resolved(&[&config, "/c", "-o", "exclusive=false"]).last().unwrap(), "/c");
    assert!(!resolved(&[&config, "-o", "exclusive=false"]).contains(&"--exclusive".into()));
    // mount(8) puts what its own command says behind what fstab has.
    assert_eq!(resolved(&["/m", "-o", "threads=3,ro", "-o", "rw,threads=4"]), ["--threads=4", "--", "/m"]);
    let origins = resolve(&words(&[&config, "-o", "threads=4"])).unwrap().args.origins;
    assert_eq!(origins.of("threads").unwrap().to_string(), "-o, option 1");
    assert!(origins.of("placement").unwrap().to_string().ends_with(".toml, line 3"));
    assert_eq!(origins.of("publish"), None);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (text, line, status, says) in [
        ("threads = 4\nplcement = 'hash'", 2, 2, "did you mean \"placement\"?"),
        ("[mount]\nthreads = 4", 1, 2, "there is no option \"mount\""),
        ("\n\nthreads = 99", 3, 41, "from 1 to 64"),
        ("threads = [4]", 1, 41, "one value"),
        ("degraded = 'yes'", 1, 41, "true or false"),
        ("log = true", 1, 41, "a boolean can't be its value"),
        ("placement = 1979-05-27", 1, 41, "datetime"),
        ("backing = ['/a',\n'b']", 1, 41, "absolute"),
        ("backing = [{ path = '/a', shred = true }]", 1, 41, "shred"),
        ("backing = [{ shared = true }]", 1, 41, "path"),
        ("backing = [{ path = '/a,b' }]", 1, 41, "comma"),
        ("mount-point = 'kv'", 1, 41, "absolute"),
        ("min-free = '1G'\nmin_free = '2G'", 2, 41, "twice"),
        ("threads = 4\nthreads = 5", 2, 41, "duplicate key"),
        ("threads = ", 1, 41, ""),
        ("foreground = true", 1, 2, "command line"),
        ("config = '/x'", 1, 2, "there is no option"),
        ("supervised = true", 1, 2, "there is no option"),
        ("noexec = true", 1, 2, "options = [\"noexec\"]"),
        ("passthrough = 'perhaps'", 1, 41, "[possible values: auto, off, require]"),
    ] {
        let failure = of_file(text).expect_err(text);
        assert_eq!(failure.status, status, "{text}: {failure}");
        assert!(failure.message.starts_with(&format!("{FILE}, line {line}: ")), "{text}: {failure}");
        assert!(failure.message.contains(says), "{text}: {failure}");
    }
    for (options, at, status, says) in [
        ("ro,plcement=hash", 2, 2, "did you mean \"placement\"?"),
        ("exclsive", 1, 2, "did you mean \"exclusive\"?"),
        ("placement", 1, 2, "placement=..."),
        ("degraded=maybe", 1, 41, "true or false"),
        ("threads=99", 1, 41, "from 1 to 64"),
        ("rw,suid", 2, 2, "always nosuid"),
        ("sync", 1, 2, "O_SYNC"),
        ("remount", 1, 2, "mount -o remount"),
        ("foreground", 1, 2, "command line"),
        ("options=ro", 1, 2, "there is no option"),
    ] {
        let failure = resolve(&words(&["/m", "-o", options])).map(|said| said.words).expect_err(options);
        assert_eq!(failure.status, status, "{options}: {failure}");
        assert!(failure.message.starts_with(&format!("-o, option {at}: ")), "{options}: {failure}");
        assert!(failure.message.contains(says), "{options}: {failure}");
    }
    let sloppy = resolve_with(&words(&["/m", "-o", "plcement=x,ro"]), Unknown::LeftOut).unwrap();
    assert_eq!(sloppy.words, words(&["--options=ro", "--", "/m"]));
}

#[test]
fn a_file_that_is_none_is_refused() {
    for (path, says) in [("/no/such.toml", "No such file"), ("/", "directory"), ("/dev/zero", "megabyte")] {
        let failure = resolve(&words(&["--config", path])).map(|said| said.words).expect_err(path);
        assert_eq!(failure.status, 41);
        assert!(failure.message.contains(path) && failure.message.contains(says), "{failure}");
    }
    let binary = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    let failure = resolve(&words(&["--config", binary.path().to_str().unwrap()])).map(|said| said.words);
    assert!(failure.unwrap_err().message.contains("UTF-8"));
}

#[test]
fn of_the_kernels_options_the_last_counts() {
    let kernel = |text: &str| {
        let said = resolve(&words(&["/m", "-o", text])).unwrap();
        said.args.kernel_options().unwrap().iter().map(|option| option.name()).collect::<Vec<_>>().join(",")
    };
    assert_eq!(kernel("defaults,rw,nosuid,nodev,nofail,_netdev,x-systemd.automount,comment=x,user=me"), "");
    assert_eq!(kernel("ro,noexec,rw,exec,ro"), "ro");
    assert_eq!(kernel("noatime,relatime,nodiratime"), "nodiratime,relatime");
    assert_eq!(kernel("noatime,atime,nosymfollow,ro"), "ro,nosymfollow");
}

#[test]
fn a_spec_is_a_file_by_its_name() {
    assert!(is_file("/etc/kvfs/kv.toml".as_ref()) && is_file("kv.toml".as_ref()));
    assert!(!is_file("/nvme0/kv,/x/kv.toml".as_ref()) && !is_file("/nvme0/toml".as_ref()));
}

/// The names that stand in front of ` = ` in a file, those in comments too.
fn keys(text: &str) -> BTreeSet<String> {
    let key = |line: &str| {
        let (key, _) = line.trim_start_matches("#").split_once(" = ")?;
        key.chars().all(|c| c.is_ascii_lowercase() || c == '-').then(|| key.to_owned())
    };
    text.lines().filter_map(key).collect()
}

#[test]
fn the_example_has_every_key_with_its_default() {
    let text = include_str!("../../../packaging/kvfs.toml");
    let table = Table::new();
    let all: BTreeSet<String> = table.in_file().map(str::to_owned).collect();
    assert_eq!(keys(text), all, "packaging/kvfs.toml");
    of_file(text).unwrap();
    // With all in effect it's a good file, too; and what stands there in comments is the default.
    let plain: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let given = file::parse(Path::new(FILE), &plain, &table).unwrap_or_else(|e| panic!("{e}"));
    let matches = Cli::command().try_get_matches_from(words(&["/m"])).unwrap();
    let mount = matches.subcommand_matches("mount").unwrap();
    for setting in given.iter().filter(|setting| setting.name != "backing") {
        let Some(default) = table.toml(mount, &setting.name) else { continue };
        let said = match &setting.value {
            Value::Switch(on) => on.to_string(),
            Value::Texts(texts) => texts[0].to_string_lossy().into_owned(),
        };
        let is_point = setting.name == MOUNT_POINT;
        assert!(is_point || default.trim_matches('"') == said, "{}: {said} is not {default}", setting.name);
    }
}

#[test]
fn every_option_has_its_entry_and_there_are_no_others() {
    let text = include_str!("../../../docs/CONFIGURATION.md");
    let headings = text.lines().filter(|line| line.starts_with("## `-") || line.starts_with("## `MOUNT"));
    let in_backquotes = headings.flat_map(|line| line.split('`').skip(1).step_by(2));
    let named: BTreeSet<String> = in_backquotes
        .filter_map(|flag| flag.split(' ').next()?.strip_prefix("--").map(str::to_owned))
        .collect();
    let table = Table::new();
    let all: BTreeSet<String> = table
        .names()
        .filter(|name| !table.is_hidden(name) && *name != MOUNT_POINT)
        .map(str::to_owned)
        .collect();
    assert_eq!(named, all, "docs/CONFIGURATION.md");
}
