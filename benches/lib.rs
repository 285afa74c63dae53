//! Criterion benches of the qvl crates; see the files beside this one.
