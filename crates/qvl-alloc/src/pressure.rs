//! How short of memory the machine is.
