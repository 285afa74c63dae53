//! Memory of one step: bumped, reset, given back at once.
