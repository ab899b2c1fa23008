//! The options of mount(8) that are no file system's own.
//!
//! What always holds: what would change nothing here is left out, what the kernel does is passed on to it, and what
//! promises something that kvfs doesn't keep is refused with the reason.

use super::super::Failure;
use crate::config::KernelOption;

/// What becomes of such an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Generic {
    /// Nothing: it's mount(8)'s, systemd's or a comment, or holds anyway.
    LeftOut,
    /// The kernel's.
    Kernel(KernelOption),
    /// No such one of the kernel's.
    Not(&'static [KernelOption]),
    /// Another one of the kernel's options of a mount that's there.
    Remount,
    /// It can't be had, and why.
    Refused(&'static str),
}

/// What a word behind `-o` is, if it's one of mount(8)'s.
pub(in super::super) fn generic(name: &str) -> Option<Generic> {
    use KernelOption as K;
    if let Some(kernel) = K::ALL.into_iter().find(|option| option.name() == name) {
        return Some(Generic::Kernel(kernel));
    }
    Some(match name {
        // mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS": who may mount, when and whether it's missed.
        "defaults" | "auto" | "noauto" | "nofail" | "user" | "nouser" | "users" | "nousers" | "owner"
        | "noowner" | "group" | "nogroup" | "_netdev" | "_rnetdev" | "comment" | "uhelper" | "helper"
        | "loud" | "silent" => Generic::LeftOut,
        _ if name.starts_with("x-") || name.starts_with("X-") => Generic::LeftOut,
        // So it is in any case.
        "nosuid" | "nodev" | "async" | "nomand" | "nolazytime" | "noiversion" | "default_permissions" => {
            Generic::LeftOut
        }
        "rw" => Generic::Not(&[K::ReadOnly]),
        "exec" => Generic::Not(&[K::NoExec]),
        "atime" => Generic::Not(&[K::NoAtime]),
        "diratime" => Generic::Not(&[K::NoDirAtime]),
        "norelatime" => Generic::Not(&[K::RelAtime]),
        "nostrictatime" => Generic::Not(&[K::StrictAtime]),
        "symfollow" => Generic::Not(&[K::NoSymFollow]),
        "remount" => Generic::Remount,
        "suid" => Generic::Refused("a kvfs is always nosuid"),
        "dev" => Generic::Refused("a kvfs is always nodev"),
        "sync" | "dirsync" => {
            Generic::Refused("a kvfs can't make each write wait for the drive; clients say O_SYNC or fsync")
        }
        "lazytime" | "iversion" | "mand" => Generic::Refused("that's up to the backings' own file systems"),
        "bind" | "rbind" | "move" | "loop" => {
            Generic::Refused("that's no mount of a kvfs; it's for mount(8) without -t kvfs")
        }
        _ => return None,
    })
}

/// What is left of these, one after another. Of those that exclude each other the last counts.
pub(super) fn together(said: impl IntoIterator<Item = Generic>) -> Vec<KernelOption> {
    const ATIMES: [KernelOption; 3] =
        [KernelOption::NoAtime, KernelOption::RelAtime, KernelOption::StrictAtime];
    let mut kernel = Vec::new();
    for option in said {
        match option {
            Generic::Not(options) => kernel.retain(|one| !options.contains(one)),
            Generic::Kernel(option) => {
                let excludes = |one: &KernelOption| ATIMES.contains(&option) && ATIMES.contains(one);
                kernel.retain(|one| *one != option && !excludes(one));
                kernel.push(option);
            }
            Generic::LeftOut | Generic::Remount | Generic::Refused(_) => {}
        }
    }
    kernel
}

/// The kernel's options, of lists that have no others.
pub(in super::super) fn kernel_options(lists: &[String]) -> Result<Vec<KernelOption>, Failure> {
    let of = |word: &String| match generic(word) {
        Some(option @ (Generic::Kernel(_) | Generic::Not(_))) => Ok(option),
        _ => Err(Failure::bad_value(format!("--options: {word:?} is none of the kernel's"))),
    };
    let said = super::split_all(lists)?.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    let kernel = together(said);
    Ok(KernelOption::ALL.into_iter().filter(|option| kernel.contains(option)).collect())
}
