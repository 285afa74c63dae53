//! What the behaviour tests share.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::PathBuf;

use qvl_dataload::vision::Grid;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A folder of the committed test data.
pub(crate) fn data(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder)
}

/// The manifest in it.
pub(crate) fn manifest(folder: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(data(folder).join("manifest.json")).unwrap()).unwrap()
}

/// A grid as the manifests have it.
pub(crate) fn grid(grid: Grid) -> Value {
    serde_json::json!([grid.t, grid.h, grid.w])
}

pub(crate) fn hash_bytes(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The hash of the values as little-endian bytes: equal bits, not close values.
pub(crate) fn hash_f32(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    hash_bytes(&bytes)
}
