//! A backing joins a mount that is in use.
