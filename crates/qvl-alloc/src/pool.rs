//! Pools with size classes.
