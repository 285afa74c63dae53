//! The traces in `traces/` are what the generator makes, and each packs within 5 % of what no packing can be below.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "common/forward.rs"]
mod forward;

use std::path::Path;

use qvl_alloc::{Trace, pack};

#[test]
fn the_files_are_what_the_generator_makes() {
    for (name, made) in forward::traces().unwrap() {
        let committed = Trace::load(&folder().join(name)).unwrap();
        let difference = made.first_difference(&committed);
        assert!(difference.is_none(), "{name}: {}", difference.unwrap());
    }
    let files = std::fs::read_dir(folder()).unwrap().count();
    assert_eq!(files, forward::traces().unwrap().len());
}

#[test]
fn the_gap_is_at_most_5_percent() {
    for (name, trace) in forward::traces().unwrap() {
        let packing = pack(&trace);
        packing.check().unwrap();
        let (peak, bound, gap) = (packing.peak_bytes(), packing.lower_bound_bytes(), packing.gap());
        println!("{name}: peak {peak}, bound {bound}, gap {:.2} %", gap * 100.0);
        assert!(gap <= 0.05, "{name}: {peak} bytes where the bound is {bound}");
        assert_eq!(pack(&trace), packing, "{name}: the same trace packs in the same way");
    }
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("traces")
}
