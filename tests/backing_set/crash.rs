//! The daemon dies in the midst of moving files.
