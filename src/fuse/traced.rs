//! Telling of requests to those who look on (`trace`).
//!
//! What always holds: while nobody does, this is one load of a flag.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Request};

use super::adapter::Adapter;
use super::convert::node;
use crate::index::{Node, NodeId};
use crate::trace::{Begun, TRACER};

/// What a request is about, beside a node: a name in it, and another name that this becomes.
pub(super) type Names<'a> = (Option<&'a OsStr>, Option<(INodeNo, &'a OsStr)>);

/// A request has come.
#[inline]
pub(super) fn begin(adapter: &Adapter, req: &Request, op: &'static str, about: INodeNo, names: Names<'_>) {
    if TRACER.is_on() {
        tell(adapter, req, op, about, names);
    }
}

#[cold]
fn tell(adapter: &Adapter, req: &Request, op: &'static str, about: INodeNo, (name, to): Names<'_>) {
    if !TRACER.wants(op) {
        return;
    }
    let (fs, node_id) = (&adapter.fs, node(about));
    let name = name.map(OsStr::as_bytes);
    let slot = match (node_id.node(), name) {
        (Some(Node::File(slot, _)), _) => Some(slot),
        (_, Some(name)) => fs.slot_of_name(node_id, name),
        _ => None,
    };
    let (pid, comm) = caller(req.pid());
    let begun = Begun {
        op,
        path: fs.path_of_node(node_id, name),
        to: to.and_then(|(dir, name)| fs.path_of_node(node(dir), Some(name.as_bytes()))),
        slot,
        pid,
        comm,
    };
    TRACER.begin(req.unique().0, begun);
}

/// The process of a thread, and the thread's name. The caller waits for its answer, so it's there.
fn caller(tid: u32) -> (u32, String) {
    let status = std::fs::read(format!("/proc/{tid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pid = field("Tgid:").and_then(|pid| pid.parse().ok());
    (pid.unwrap_or(tid), field("Name:").unwrap_or_default().to_owned())
}

/// Hears of all answers.
pub(super) fn start() {
    fuser::on_answer(|unique, answer| {
        if TRACER.is_on() {
            // struct fuse_out_header in include/uapi/linux/fuse.h
            let error =
                answer.first().and_then(|header| header.get(4..8)?.try_into().ok()).map(i32::from_ne_bytes);
            TRACER.answered(unique, error.map_or(0, i32::wrapping_neg), || first_node(answer));
        }
    });
}

/// The node that an answer begins with, behind its header.
fn first_node(answer: &[IoSlice<'_>]) -> Option<NodeId> {
    let node = answer.get(1)?.get(..8)?.try_into().ok()?;
    Some(NodeId(u64::from_ne_bytes(node)))
}
