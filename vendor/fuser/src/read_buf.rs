use std::cell::RefCell;
use std::mem::size_of;
use std::ops::Deref;
use std::sync::Arc;

use crate::ll::fuse_abi as abi;
use crate::session::MAX_WRITE_SIZE;

const PAGE: usize = 4096;

/// What comes before the data of a WRITE.
const BEFORE_DATA: usize = size_of::<abi::fuse_in_header>() + size_of::<abi::fuse_write_in>();

/// Size of the buffer for reading a request from the kernel. Since the kernel may send
/// up to `MAX_WRITE_SIZE` bytes in a write request, we use that value plus some extra space.
const BUFFER_SIZE: usize = MAX_WRITE_SIZE + 2 * PAGE;

/// How many buffers a thread keeps for when it needs them: making one costs more than a copy.
const KEPT: usize = 32;

thread_local! {
    /// The buffer of the request that this thread dispatches.
    static CURRENT: RefCell<Option<Arc<RequestBuffer>>> = const { RefCell::new(None) };
}

/// The memory of a request that was read from the device. Who holds one after the request was
/// dispatched has it for itself: the next request is read to another.
#[derive(Debug)]
pub struct RequestBuffer {
    buffer: Vec<u8>,
    /// Where the request begins, so that the data of a WRITE is aligned to a page.
    start: usize,
}

impl RequestBuffer {
    fn new() -> Self {
        let mut buffer = vec![0; BUFFER_SIZE];
        // There before the kernel copies a request to it: where it would have to get a page first and
        // this process is being killed, it fails the request with EIO (fuse_dev_do_read in
        // fs/fuse/dev.c), which then isn't sent again to the process that takes over.
        for page in buffer.chunks_mut(PAGE) {
            page[0] = std::hint::black_box(1);
        }
        let start = (PAGE - BEFORE_DATA).wrapping_sub(buffer.as_ptr() as usize) % PAGE;
        Self { buffer, start }
    }

    /// That of the request that the calling thread is being called for; none if it didn't come by
    /// the device.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }
}

impl AsRef<[u8]> for RequestBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

/// The buffers that a thread reads requests to.
#[derive(Debug)]
pub(crate) struct FuseReadBuf {
    buffer: Arc<RequestBuffer>,
    /// Buffers that were held by somebody else when they were looked at last.
    lent: Vec<Arc<RequestBuffer>>,
}

impl FuseReadBuf {
    pub(crate) fn new() -> Self {
        Self {
            buffer: Arc::new(RequestBuffer::new()),
            lent: Vec::new(),
        }
    }

    /// Where the next request goes: memory that nobody else holds, aligned for `fuse_in_header`.
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        if Arc::get_mut(&mut self.buffer).is_none() {
            self.exchange();
        }
        let buffer = Arc::get_mut(&mut self.buffer).expect("nobody else has it");
        &mut buffer.buffer[buffer.start..]
    }

    fn exchange(&mut self) {
        let mut free = 0;
        self.lent.retain_mut(|lent| {
            let is_free = Arc::get_mut(lent).is_some();
            free += usize::from(is_free);
            !is_free || free <= KEPT
        });
        let at = self
            .lent
            .iter_mut()
            .position(|lent| Arc::get_mut(lent).is_some());
        let next = match at {
            Some(at) => self.lent.swap_remove(at),
            None => Arc::new(RequestBuffer::new()),
        };
        self.lent.push(std::mem::replace(&mut self.buffer, next));
    }

    /// The buffer with its request, to be dispatched while this is there.
    pub(crate) fn dispatching(&self) -> Dispatching<'_> {
        CURRENT.set(Some(self.buffer.clone()));
        Dispatching(&self.buffer)
    }
}

/// A request is dispatched.
pub(crate) struct Dispatching<'a>(&'a RequestBuffer);

impl Deref for Dispatching<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl Drop for Dispatching<'_> {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}
