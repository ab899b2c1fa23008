//! What went wrong once, in as few steps as it takes.
