//! Where a new file goes: the evidence about who is asking.

pub mod names;
pub mod process;

/// What is to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The path relative to the mount root: no leading slash, raw bytes, not necessarily UTF-8.
    pub path: &'a [u8],
}

impl<'a> Target<'a> {
    /// The last component.
    pub fn name(&self) -> &'a [u8] {
        self.components().next().unwrap_or_default()
    }

    /// The components from the last to the first: the name, its parent directory, and so on.
    pub fn components(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.path.rsplit(|&b| b == b'/')
    }
}
