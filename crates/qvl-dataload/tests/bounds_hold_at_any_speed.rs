//! The bounds of items and of bytes hold at every moment, however slow the consumer is.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use qvl_dataload::{Buffers, DataLoader, Memory, Result, Transform};

/// Bytes alive now, and the most there ever were.
#[derive(Clone, Debug, Default)]
struct Meter(Arc<(AtomicUsize, AtomicUsize)>);

impl Meter {
    fn add(&self, bytes: usize) {
        let now = self.0.0.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.0.1.fetch_max(now, Ordering::SeqCst);
    }
}

/// Memory that is metered from the moment it is made until the consumer has it.
struct Metered {
    bytes: usize,
    meter: Meter,
    is_handed_over: bool,
}

impl Metered {
    fn hand_over(mut self) {
        self.release();
    }

    fn release(&mut self) {
        if !std::mem::replace(&mut self.is_handed_over, true) {
            self.meter.0.0.fetch_sub(self.bytes, Ordering::SeqCst);
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.release();
    }
}

/// Makes metered memory of the size that the sample says, and says so before.
struct Make {
    meter: Meter,
    is_declared: bool,
}

impl Transform<usize> for Make {
    type Output = Metered;
    type Scratch = ();

    fn scratch(&self) {}

    fn output_bytes(&self, bytes: &usize, _: &str, _: &dyn Buffers) -> Result<Option<usize>> {
        Ok(self.is_declared.then_some(*bytes))
    }

    fn apply(&self, bytes: usize, _: &str, (): &mut (), _: &dyn Buffers) -> Result<Metered> {
        self.meter.add(bytes);
        std::thread::sleep(Duration::from_micros(50));
        Ok(Metered { bytes, meter: self.meter.clone(), is_handed_over: false })
    }

    fn footprint(&self, output: &Metered) -> usize {
        output.bytes
    }
}

const BOUND: usize = 4 << 20;

fn sizes() -> Vec<usize> {
    (0..400usize).map(|i| 10_000 + i.wrapping_mul(2_654_435_761) % 700_000).collect()
}

/// Runs over all sizes and gives the meter's peak and the loader's own.
fn run(is_declared: bool, workers: usize, batch: usize, pause: Duration) -> (usize, usize) {
    let meter = Meter::default();
    let mut loader = DataLoader::builder(Memory::new(sizes()))
        .transform(Make { meter: meter.clone(), is_declared })
        .workers(workers)
        .prefetch_items(64)
        .prefetch_bytes(BOUND)
        .item_bytes_max(800_000)
        .batch_size(batch)
        .build()
        .unwrap();
    for group in &mut loader {
        for item in group.unwrap() {
            // What the consumer has is its own.
            item.hand_over();
        }
        std::thread::sleep(pause);
    }
    let stats = loader.stats();
    assert!(stats.peak_items <= 64);
    assert_eq!(stats.used_bytes, 0, "everything was taken");
    assert_eq!(stats.undeclared_bytes == 0, is_declared);
    (meter.0.1.load(Ordering::SeqCst), stats.peak_bytes)
}

#[test]
fn of_items_that_say_their_size() {
    for workers in [1, 2, 5] {
        for (batch, pause) in [(1, 0), (1, 300), (1, 3000), (4, 1000)] {
            let (measured, counted) = run(true, workers, batch, Duration::from_micros(pause));
            assert!(counted <= BOUND, "{workers} workers: counted {counted}");
            // The batch in the consumer's hands is metered too until he says that he has it.
            assert!(
                measured <= BOUND + batch * 710_000,
                "{workers} workers, pause {pause}: measured {measured}"
            );
            assert!(workers == 1 || pause == 0 || measured > BOUND / 4, "it does load ahead: {measured}");
        }
    }
}

#[test]
fn of_items_that_do_not() {
    let (_, counted) = run(false, 4, 1, Duration::from_micros(300));
    assert!(counted <= BOUND, "counted {counted}");
}

#[test]
fn through_the_channel_too() {
    let meter = Meter::default();
    let receiver = DataLoader::builder(Memory::new(sizes()))
        .transform(Make { meter: meter.clone(), is_declared: true })
        .workers(3)
        .prefetch_bytes(BOUND)
        .item_bytes_max(800_000)
        .batch_size(2)
        .build()
        .unwrap()
        .into_receiver()
        .unwrap();
    let mut count = 0;
    for batch in receiver.iter() {
        for item in batch.unwrap() {
            count += 1;
            item.hand_over();
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    assert_eq!(count, sizes().len());
    let measured = meter.0.1.load(Ordering::SeqCst);
    // Between receiving and handing over, the consumer's own batch is metered too.
    assert!(measured <= BOUND + 2 * 710_000, "measured {measured}");
    assert!(receiver.stats().peak_bytes <= BOUND);
}

#[test]
fn a_batch_larger_than_the_bound_comes_nevertheless() {
    let sizes = Memory::new(vec![300_000usize; 40]);
    for channel in [false, true] {
        let loader = DataLoader::builder(sizes.clone())
            .transform(Make { meter: Meter::default(), is_declared: true })
            .workers(2)
            .prefetch_bytes(1 << 20)
            .item_bytes_max(350_000)
            .batch_size(20)
            .build()
            .unwrap();
        let lengths: Vec<usize> = if channel {
            loader.into_receiver().unwrap().iter().map(|batch| batch.unwrap().len()).collect()
        } else {
            loader.map(|batch| batch.unwrap().len()).collect()
        };
        assert_eq!(lengths, [20, 20]);
    }
}
