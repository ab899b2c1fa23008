//! Where a new file goes.
