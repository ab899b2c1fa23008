//! A backing leaves a mount that is in use.
