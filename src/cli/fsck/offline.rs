//! Backings that aren't mounted.
//!
//! What always holds: they are claimed as a mount claims them, from before they are read until all is repaired.

use std::convert::Infallible;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::{Checker, FAILED, failed};
use crate::backing::{Claimed, MarkerError, claim};
use crate::check::{Fix, Kind, Looked, Options, RepairError, Root, check_own, look, read, repair};
use crate::cli::Failure;
use crate::cli::exit::exit_status;
use crate::index::Slot;

pub(super) struct Offline {
    claimed: Vec<Claimed>,
    roots: Vec<Root>,
    options: Options,
    notes: Vec<String>,
}

impl Offline {
    pub(super) fn new(paths: &[PathBuf], deep: bool, repair: bool) -> Result<Offline, Failure> {
        let claimed = claim(paths).map_err(|e| {
            let in_use = exit_status(&e) == 18;
            let way = if in_use { "; check it by its mount: kvfs fsck MOUNT" } else { "" };
            Failure { status: FAILED, message: format!("{e}{way}") }
        })?;
        let root = |(n, claimed): (usize, &Claimed)| {
            let dir = claimed.root().try_clone_to_owned()?;
            Ok(Root { slot: Slot(n as u8), path: claimed.path.clone(), dir })
        };
        let roots = claimed.iter().enumerate().map(root).collect::<std::io::Result<_>>().map_err(failed)?;
        // Who is asked has to know what is lost.
        let options = Options { deep, compare: deep || repair, mounted: false };
        let unused =
            |marker: &MarkerError| matches!(marker, MarkerError::Io(e) if e.kind() == ErrorKind::NotFound);
        let fresh = claimed.iter().filter(|claimed| claimed.marker.as_ref().is_err_and(unused));
        let tell = |claimed: &Claimed| {
            format!(
                "{} has no marker: no kvfs has used it, or the marker was removed",
                claimed.path.display()
            )
        };
        let notes = fresh.map(tell).collect();
        Ok(Offline { claimed, roots, options, notes })
    }
}

impl Checker for Offline {
    fn looked(&mut self) -> Result<Looked, Failure> {
        let terminal = std::io::stderr().is_terminal();
        let reading = read(&self.roots, |progress| {
            if terminal && progress.elapsed.as_millis() > 300 {
                let _ = write!(std::io::stderr(), "\rreading the backings: {} names ", progress.names);
            }
        })
        .map_err(failed)?;
        if terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        let list = |act: &mut dyn FnMut(crate::check::Item) -> bool| -> Result<(), Infallible> {
            reading.each(act);
            Ok(())
        };
        let Ok(mut looked) = look(&self.roots, self.options, list);
        looked.found.extend(check_own(&self.claimed));
        if reading.more > 0 {
            self.notes.push(format!("{} more that can't be read were not kept", reading.more));
        }
        looked.found.extend(reading.found);
        looked.found.sort_by(|a, b| (a.kind, &a.path, &a.backing).cmp(&(b.kind, &b.path, &b.backing)));
        Ok(looked)
    }

    fn can_repair(&self, _: Kind) -> Result<(), String> {
        match self.claimed.iter().find(|claimed| claimed.marker.is_err()) {
            None => Ok(()),
            Some(without) => Err(format!(
                "{} has no good marker, so it can't be kept from being mounted meanwhile; nothing is changed",
                without.path.display()
            )),
        }
    }

    fn repair(&mut self, fix: &Fix) -> Result<(), RepairError> {
        repair(&self.roots, fix)?;
        if let Fix::Remove { slot, .. } | Fix::Copy { slot, .. } = fix
            && let Some(root) = self.roots.iter().find(|root| root.slot == *slot)
        {
            // What was said to be gone doesn't come back with the power.
            let _ = rustix::fs::fsync(root.dir.as_fd());
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}
