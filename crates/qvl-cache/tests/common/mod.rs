//! What several tests use: a cold tier in memory that can fail, and values that tell which key and version they are of.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use qvl_cache::{Cold, ColdStats, Error, Kept, Refusal, Result};

/// A cold tier in memory.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) values: Mutex<HashMap<Vec<u8>, Bytes>>,
    pub(crate) gets: AtomicU64,
    pub(crate) fails: AtomicBool,
    pub(crate) read_only: bool,
}

impl Shelf {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn read_only(values: impl IntoIterator<Item = (Vec<u8>, Bytes)>) -> Arc<Self> {
        Arc::new(Self {
            values: Mutex::new(values.into_iter().collect()),
            read_only: true,
            ..Self::default()
        })
    }

    fn check(&self, operation: &'static str) -> Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            let source = std::io::Error::other("the shelf fell down").into();
            return Err(Error::Tier { tier: self.name(), operation, source });
        }
        Ok(())
    }
}

impl Cold for Shelf {
    fn name(&self) -> String {
        "the shelf".to_owned()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.check("get")?;
        self.gets.fetch_add(1, Ordering::SeqCst);
        Ok(self.values.lock().unwrap().get(key).cloned())
    }

    fn put(&self, key: &[u8], value: &Bytes, _cost: f32) -> Result<Kept> {
        self.check("put")?;
        if self.read_only {
            return Ok(Kept::Refused(Refusal::ReadOnly));
        }
        let mut values = self.values.lock().unwrap();
        if values.contains_key(key) {
            return Ok(Kept::AlreadyThere);
        }
        values.insert(key.to_vec(), value.clone());
        Ok(Kept::Stored)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        self.check("remove")?;
        self.values.lock().unwrap().remove(key);
        Ok(())
    }

    fn writable(&self) -> bool {
        !self.read_only
    }

    fn contains(&self, key: &[u8]) -> Result<bool> {
        self.check("contains")?;
        Ok(self.values.lock().unwrap().contains_key(key))
    }

    fn stats(&self) -> ColdStats {
        ColdStats::default()
    }
}

/// A value of `len` bytes that names its key and version in every word.
pub(crate) fn value(key: u64, version: u64, len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        bytes.extend_from_slice(&key.to_le_bytes());
        bytes.extend_from_slice(&version.to_le_bytes());
    }
    bytes.truncate(len);
    Bytes::from(bytes)
}

/// The version of a value of [`value`], checked in every word.
pub(crate) fn version_of(key: u64, bytes: &Bytes) -> u64 {
    assert!(bytes.len() >= 16, "{} bytes", bytes.len());
    let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    assert_eq!(*bytes, value(key, version, bytes.len()), "not a value of key {key}");
    version
}
