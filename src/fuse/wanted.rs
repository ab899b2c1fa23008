//! What is asked of the kernel at INIT.
//!
//! What always holds: a daemon that takes a session over has to ask for the same, so nothing here may depend on what
//! changes while a mount is there.

use fuser::{InitFlags, KernelConfig};

/// What a request carries at most: the kernel's own limit (fs.fuse.max_pages_limit, 256 pages).
pub(super) const MAX_WRITE: u32 = 1 << 20;

/// Requests that the kernel may have waiting that no client waits for (read-ahead, async I/O).
const MAX_BACKGROUND: u16 = 256;

/// Negotiated with the kernel at INIT.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Passthrough, with backings stacked this deep (1: plain file systems; 2: on overlayfs).
    pub(super) passthrough: Option<u32>,
    /// Requests come by io_uring. The kernel then lets none come before they can.
    pub(super) uring: bool,
}

impl Wanted {
    /// Asks for what the kernel offers of it. Whether it maps files that are open around its pages.
    pub(super) fn negotiate(self, config: &mut KernelConfig) -> bool {
        // Not ATOMIC_O_TRUNC, which would save an overwrite one request: the kernel sends the truncation before
        // it looks whether the file is being executed (do_open in fs/namei.c), so open(O_RDONLY | O_TRUNC) of a
        // running program would destroy it and then fail with ETXTBSY.
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Without it every passthrough write asks for security.capability.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel doesn't offer {flag:?}");
            }
        }
        let maps_around = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
        if let Some(depth) = self.passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        {
            let _ = config.set_max_stack_depth(depth);
        }
        if self.uring {
            let _ = config.add_capabilities(InitFlags::FUSE_OVER_IO_URING);
        }
        // An error of these says which value is possible: the kernel's own will do then.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        maps_around
    }
}
