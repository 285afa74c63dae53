//! Behaviour of the warm tier: what is there after what happened. One file a subject.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::format::Record;
use super::index::Changes;
use super::*;
use crate::policy::{Item, Leave, Policy, Slot};
use crate::storage::{Disk, Fault, Faulty, Operation, What};

mod damage;
mod drive;
mod model;
mod opening;
mod room;

/// The least recently used goes first.
#[derive(Default)]
struct TestLru {
    items: Vec<Option<(KeyId, u64, u32, u32)>>,
    pinned: Vec<bool>,
    time: u64,
}

impl Policy for TestLru {
    fn name(&self) -> &'static str {
        "test"
    }
    fn set_budget(&mut self, _: u64) {}
    fn insert(&mut self, item: Item) -> Slot {
        assert!(
            !self.items.iter().flatten().any(|known| known.0 == item.id),
            "{} is resident already",
            item.id
        );
        self.time += 1;
        let item = Some((item.id, self.time, item.uses, 0));
        match self.items.iter().position(Option::is_none) {
            Some(slot) => {
                self.items[slot] = item;
                Slot(slot as u32)
            }
            None => {
                self.items.push(item);
                self.pinned.push(false);
                Slot(self.items.len() as u32 - 1)
            }
        }
    }
    fn hit(&mut self, slot: Slot) {
        self.time += 1;
        let item = self.items[slot.0 as usize].as_mut().expect("a hit of a resident");
        (item.1, item.2) = (self.time, item.2 + 1);
    }
    fn miss(&mut self, _: KeyId) {}
    fn update(&mut self, slot: Slot, _: u64, _: f32) {
        assert!(self.items[slot.0 as usize].is_some());
    }
    fn pin(&mut self, slot: Slot) {
        assert!(!std::mem::replace(&mut self.pinned[slot.0 as usize], true));
    }
    fn unpin(&mut self, slot: Slot) {
        assert!(std::mem::replace(&mut self.pinned[slot.0 as usize], false));
    }
    fn victim(&mut self) -> Option<Slot> {
        let order = self.order();
        order.into_iter().find(|slot| !self.pinned[slot.0 as usize])
    }
    fn leave(&mut self, slot: Slot, _: Leave) {
        assert!(!self.pinned[slot.0 as usize]);
        assert!(self.items[slot.0 as usize].take().is_some());
    }
    fn worth(&self, _: Slot) -> f64 {
        1.0
    }
    fn uses(&self, slot: Slot) -> u32 {
        self.items[slot.0 as usize].map_or(0, |item| item.2)
    }
    fn order(&self) -> Vec<Slot> {
        let mut slots: Vec<_> = (0..self.items.len()).filter(|slot| self.items[*slot].is_some()).collect();
        slots.sort_by_key(|slot| self.items[*slot].map(|item| item.1));
        slots.into_iter().map(|slot| Slot(slot as u32)).collect()
    }
}

/// Time that tests move.
#[derive(Clone, Default)]
struct TestClock(Arc<AtomicU64>);

impl TestClock {
    fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

const SMALL: usize = 1000;
const ALONE: usize = 10_000;

fn settings(folder: &Path) -> WarmSettings {
    WarmSettings {
        folder: folder.to_owned(),
        budget_bytes: 1 << 20,
        fingerprint: "a model".to_owned(),
        clear_other_fingerprint: false,
        small_max: SMALL,
        alone_min: ALONE,
        read_mode: ReadMode::Buffered,
        read_threads: 2,
        policy: Box::<TestLru>::default(),
        storage: Arc::new(Disk),
        spill: None,
        buffers: Buffers::new(1 << 20),
        clock: Arc::new(|| Duration::ZERO),
    }
}

fn open(folder: &TempDir) -> Warm {
    Warm::open(settings(folder.path())).unwrap()
}

/// In memory where that can be had: for tests that open hundreds of folders, each of which is synchronised.
fn memory_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// With faults, and a clock.
fn open_faulty(folder: &TempDir) -> (Warm, Faulty, TestClock) {
    let (faulty, clock) = (Faulty::new(Arc::new(Disk)), TestClock::default());
    let now = clock.clone();
    let mut settings = settings(folder.path());
    settings.storage = Arc::new(faulty.clone());
    settings.clock = Arc::new(move || Duration::from_secs(now.0.load(Ordering::Relaxed)));
    (Warm::open(settings).unwrap(), faulty, clock)
}

fn put(warm: &Warm, key: &str, value: &[u8]) -> Put {
    warm.put(key.as_bytes(), KeyId::of(key.as_bytes()), value, 0.5).unwrap()
}

fn get(warm: &Warm, key: &str) -> Option<Vec<u8>> {
    match warm.get(key.as_bytes(), KeyId::of(key.as_bytes())) {
        Found::Hit { value, cost } => {
            assert_eq!(cost, 0.5);
            Some(value.to_vec())
        }
        Found::Miss | Found::Damaged { .. } => None,
    }
}

fn has(warm: &Warm, key: &str) -> bool {
    warm.contains(KeyId::of(key.as_bytes())).is_some()
}

/// Bytes that tell one value from another, and one place in it from another.
fn value(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|i| ((i * 7 + seed * 131 + i / 251 * seed) % 251) as u8).collect()
}

/// Files of values in a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for fan in std::fs::read_dir(folder.join("values")).unwrap() {
        files.extend(std::fs::read_dir(fan.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    files.sort();
    files
}
