//! The limits that a busy mount runs into.

use super::check::Check;
use super::system::{System, capability};

/// Descriptors for the caches of a big server: each file that a client has open takes one in the daemon.
const ENOUGH_FILES: u64 = 65_536;

/// Pinned memory for a few rings and their buffers, in bytes.
const ENOUGH_LOCKED: u64 = 8 << 20;

/// Requests that a mount asks the kernel to have in the background at once.
const ENOUGH_REQUESTS: u64 = 256;

pub(super) fn checks(system: &System) -> Vec<Check> {
    vec![open_files(system), locked_memory(system), request_size(system), background(system)]
}

/// A resource limit of this process: what's in force and how far it may be raised, `u64::MAX` for no limit.
fn limit(system: &System, name: &str) -> Option<(u64, u64)> {
    let text = system.read("/proc/self/limits")?;
    let values = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut values = values.split_whitespace().map(|value| match value {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

/// A limit as people write it.
fn shown(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

fn open_files(system: &System) -> Check {
    let check = Check::new("limits", "open files");
    if system.is_privileged(capability::SYS_RESOURCE) {
        return check.ok("can be raised as needed (CAP_SYS_RESOURCE)");
    }
    let Some((soft, hard)) = limit(system, "Max open files") else {
        return check.none("the limit can't be read");
    };
    let found = format!("{}, can be raised to {}", shown(soft), shown(hard));
    if hard >= ENOUGH_FILES {
        check.ok(found)
    } else {
        check.limited(found, "raise it: `LimitNOFILE=1048576` in a systemd unit, `ulimit -Hn` in a shell")
    }
}

fn locked_memory(system: &System) -> Check {
    let check = Check::new("limits", "locked memory");
    if system.is_privileged(capability::IPC_LOCK) {
        return check.ok("unlimited (CAP_IPC_LOCK)");
    }
    match limit(system, "Max locked memory") {
        Some((_, hard)) if hard >= ENOUGH_LOCKED => check.ok(format!("{} bytes", shown(hard))),
        Some((_, hard)) => check.limited(
            format!("{} bytes: few buffers can be registered", shown(hard)),
            "raise it: `LimitMEMLOCK=infinity` in a systemd unit, `ulimit -l` in a shell",
        ),
        None => check.none("the limit can't be read"),
    }
}

/// How large one FUSE request can be. More than the kernel's own 256 pages has not been found to be faster,
/// so every value is fine.
fn request_size(system: &System) -> Check {
    let check = Check::new("limits", "request size");
    match system.number("/proc/sys/fs/fuse/max_pages_limit") {
        Some(pages) => check.ok(format!("{pages} pages (fs.fuse.max_pages_limit)")),
        None => check.none("256 pages (it can be set since Linux 6.13)"),
    }
}

fn background(system: &System) -> Check {
    let check = Check::new("limits", "background requests");
    if system.is_admin() {
        return check.ok("as many as the mount asks for (CAP_SYS_ADMIN)");
    }
    match system.number("/sys/module/fuse/parameters/max_user_bgreq") {
        Some(limit) if limit >= ENOUGH_REQUESTS => check.ok(format!("{limit} (fuse.max_user_bgreq)")),
        Some(limit) => check.limited(
            format!("{limit} (fuse.max_user_bgreq)"),
            "run `echo 256 > /sys/module/fuse/parameters/max_user_bgreq` as root, or mount as root",
        ),
        None => check.none("the limit can't be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::system::tests::Machine;
    use super::*;

    fn limits(files: &str, locked: &str) -> Machine {
        let mut machine = Machine::of_a_user();
        let text = format!(
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max open files            {files} files\n\
             Max locked memory         {locked} bytes\n"
        );
        machine.file("proc/self/limits", &text);
        machine
    }

    #[test]
    fn the_hard_limit_of_open_files_counts() {
        let check = open_files(&limits("1024 524288", "0 0").system());
        assert_eq!((check.status, &*check.found), (Status::Ok, "1024, can be raised to 524288"));
        assert_eq!(open_files(&limits("1024 4096", "0 0").system()).status, Status::Limited);
        let check = open_files(&limits("1024 unlimited", "0 0").system());
        assert_eq!((check.status, &*check.found), (Status::Ok, "1024, can be raised to unlimited"));
        assert_eq!(open_files(&limits("x y", "0 0").system()).status, Status::None);
        assert_eq!(open_files(&Machine::bare().system()).status, Status::None);
    }

    #[test]
    fn locked_memory_is_unlimited_with_the_capability() {
        assert_eq!(locked_memory(&limits("1 1", "65536 65536").system()).status, Status::Limited);
        assert_eq!(locked_memory(&limits("1 1", "unlimited unlimited").system()).status, Status::Ok);
        assert_eq!(locked_memory(&Machine::server().system()).found, "unlimited (CAP_IPC_LOCK)");
    }

    #[test]
    fn only_ordinary_users_have_few_background_requests() {
        let mut machine = Machine::of_a_user();
        machine.file("sys/module/fuse/parameters/max_user_bgreq", "12\n");
        assert_eq!(background(&machine.system()).status, Status::Limited);
        assert_eq!(background(&Machine::of_a_user().system()).status, Status::Ok);
        assert_eq!(background(&Machine::server().system()).status, Status::Ok);
    }
}
