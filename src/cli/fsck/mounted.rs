//! A mount that is in use.
//!
//! What always holds: the daemon is asked what it knows; on the backings things are only looked at, and what is
//! changed the daemon changes.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{Checker, failed};
use crate::backing::mountinfo::Mount;
use crate::backing::open_root;
use crate::check::{Finding, Fix, Item, Kind, Looked, Options, RepairError, Root, look};
use crate::cli::Failure;
use crate::cli::job::mount_of;
use crate::control::{AskError, Listed, ListedKind, Question, Status, Unread, Wanted, ask, each_listed};
use crate::index::{self, Slot};

pub(super) struct Mounted {
    mount: Mount,
    status: Status,
    roots: Vec<Root>,
    options: Options,
    notes: Vec<String>,
}

impl Mounted {
    pub(super) fn new(point: &Path, deep: bool, repair: bool) -> Result<Mounted, Failure> {
        let mount = mount_of(point).map_err(failed)?;
        let no_answer =
            |e: AskError| failed(format!("the daemon of {} doesn't answer: {e}", point.display()));
        let status: Status = ask(mount.device, &Question::Status).map_err(no_answer)?;
        let mut notes = Vec::new();
        let mut roots = Vec::new();
        for backing in &status.backings {
            if let Some(health) = &backing.health {
                notes.push(format!("backing {} is {}: {health:?}", backing.path.display(), backing.state));
            }
            match open_root(&backing.path) {
                Ok(dir) => roots.push(Root { slot: Slot(backing.slot), path: backing.path.clone(), dir }),
                Err(e) => notes.push(format!("not looked at: {e}")),
            }
        }
        let options = Options { deep, compare: deep || repair, mounted: true };
        Ok(Mounted { mount, status, roots, options, notes })
    }

    fn backing(&self, slot: u8) -> PathBuf {
        let there = self.status.backings.iter().find(|backing| backing.slot == slot);
        there.map(|backing| backing.path.clone()).unwrap_or_default()
    }
}

fn item(listed: Listed) -> Item {
    let path = listed.path.as_bytes().to_vec();
    let set = |slots: &[u8]| slots.iter().map(|slot| Slot(*slot)).collect();
    let kind = match listed.kind {
        ListedKind::Directory => return Item::Directory { path, slots: set(&listed.slots) },
        // What isn't closed yet is nobody's business.
        ListedKind::File if !listed.unpublished => index::Kind::File,
        _ => index::Kind::Symlink,
    };
    let slot = Slot(listed.slots.first().copied().unwrap_or_default());
    Item::File { path, slot, kind, ino: 0, others: set(&listed.shadows) }
}

impl Checker for Mounted {
    fn looked(&mut self) -> Result<Looked, Failure> {
        let device = self.mount.device;
        // Without --deep only what the daemon can't know is looked at.
        let wanted = Wanted { shadowed_only: !self.options.deep, placement: false };
        let looked = look(&self.roots, self.options, |act| {
            each_listed(device, b"", true, wanted, |listed| match act(item(listed)) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        });
        let mut looked = looked.map_err(|e| failed(format!("the daemon stopped answering: {e}")))?;
        let unread: Vec<Unread> = ask(device, &Question::Unread).map_err(failed)?;
        looked.found.extend(unread.into_iter().map(|problem| {
            let kind = if problem.is_hidden { Kind::Hidden } else { Kind::Unreadable };
            let (backing, detail) = (self.backing(problem.slot), problem.what);
            Finding { kind, backing, path: problem.path, detail, fix: Fix::None }
        }));
        looked.found.sort_by(|a, b| (a.kind, &a.path, &a.backing).cmp(&(b.kind, &b.path, &b.backing)));
        let (index, retention) = (&self.status.index, &self.status.retention);
        let orphans: u64 = retention.backings.iter().map(|backing| backing.orphans).sum();
        if orphans > 0 {
            self.notes.push(format!("{orphans} orphans: the mount removes them when it needs their room, kvfs evict --bytes=SIZE some now"));
        }
        let unclosed = self.status.publish.unpublished;
        if unclosed > 0 {
            self.notes.push(format!("{unclosed} files are being written, which isn't looked at"));
        }
        if wanted.shadowed_only {
            let known = index.files;
            self.notes
                .push(format!("of {known} files those with older copies were looked at; --deep reads all"));
        }
        Ok(looked)
    }

    fn can_repair(&self, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::Shadow | Kind::Differs | Kind::Permissions => Ok(()),
            _ => Err("unmount, and check the backings themselves (--backing)".into()),
        }
    }

    fn repair(&mut self, fix: &Fix) -> Result<(), RepairError> {
        match fix {
            Fix::Copy { path, slot, .. } => {
                let question = Question::DropShadow { path: path.clone().into(), slot: slot.0 };
                // It says why not in words; what it means is that it's not as it was.
                ask::<()>(self.mount.device, &question).map_err(|_| RepairError::Changed)
            }
            Fix::Directory { path, slots } => {
                let first = slots.iter().next().ok_or(RepairError::Changed)?;
                let root = self.roots.iter().find(|root| root.slot == first).ok_or(Errno::NODEV)?;
                let relative = Path::new(std::ffi::OsStr::from_bytes(path));
                let stat =
                    rustix::fs::statat(&root.dir, or_dot(relative), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
                // By the mount: it's the daemon that gives all backings the same.
                let there = self.mount.point.join(relative);
                let (uid, gid) =
                    (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
                rustix::fs::chown(&there, Some(uid), Some(gid))?;
                Ok(rustix::fs::chmod(&there, rustix::fs::Mode::from_raw_mode(stat.st_mode & 0o7777))?)
            }
            _ => Ok(()),
        }
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

fn or_dot(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}
