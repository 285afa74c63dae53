//! A sample that cannot be made is an error with its name, or is skipped and counted; no other sample is lost.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qvl_dataload::{DataLoader, Error, Memory, OnError, Stats};

fn numbers(count: usize) -> Memory<usize> {
    Memory::new((0..count).collect::<Vec<_>>())
}

/// Fails on multiples of seven, panics on 10.
fn step(number: usize) -> Result<usize, String> {
    assert!(number != 10, "ten is too much");
    if number > 0 && number.is_multiple_of(7) {
        Err(format!("{number} is a multiple of seven"))
    } else {
        Ok(number)
    }
}

#[test]
fn skipped_samples_are_counted_with_their_reasons() {
    for workers in [0, 1, 3] {
        let mut loader = DataLoader::builder(numbers(20))
            .map(step)
            .workers(workers)
            .batch_size(4)
            .on_error(OnError::SKIP)
            .build()
            .unwrap();
        let got: Vec<usize> = loader.by_ref().flat_map(|batch| batch.unwrap().items).collect();
        assert_eq!(got, [0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        let stats = loader.stats();
        assert_eq!((stats.skipped, stats.items, stats.batches), (3, 17, 5));
        let reasons: Vec<&str> = stats.skips.iter().map(|skip| skip.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "item 7 in memory: the transform failed: 7 is a multiple of seven",
                "item 10 in memory: panicked: ten is too much",
                "item 14 in memory: the transform failed: 14 is a multiple of seven",
            ]
        );
        assert_eq!(stats.skips.iter().map(|skip| skip.index).collect::<Vec<_>>(), [7, 10, 14]);
    }
}

#[test]
fn by_default_the_run_stops_after_what_came_before() {
    for workers in [0, 1, 3] {
        let mut loader =
            DataLoader::builder(numbers(20)).map(step).workers(workers).batch_size(5).build().unwrap();
        assert_eq!(loader.next().unwrap().unwrap().items, [0, 1, 2, 3, 4]);
        assert_eq!(loader.next().unwrap().unwrap().items, [5, 6], "not lost");
        let error = loader.next().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Transform { name, .. } if name == "item 7 in memory"), "{error}");
        assert!(loader.next().is_none());
        // Going on from there tries it again.
        let state = loader.state();
        assert_eq!(state.place(), 7);
        let mut again = DataLoader::builder(numbers(20))
            .map(step)
            .on_error(OnError::SKIP)
            .batch_size(3)
            .resume(state)
            .build()
            .unwrap();
        assert_eq!(again.next().unwrap().unwrap().items, [8, 9, 11]);
    }
}

#[test]
fn a_panic_is_the_error_of_its_item() {
    let mut loader = DataLoader::builder(numbers(12).clone())
        .map(|number| if number == 10 { panic!("no {number}") } else { Ok::<_, String>(number) })
        .workers(2)
        .build()
        .unwrap();
    let errors: Vec<Error> = loader.by_ref().filter_map(Result::err).collect();
    let [Error::Panicked { name, message }] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!((name.as_str(), message.as_str()), ("item 10 in memory", "no 10"));
}

#[test]
fn as_many_as_are_allowed() {
    let run = |most| {
        let loader =
            DataLoader::builder(numbers(20)).map(step).workers(2).on_error(OnError::Skip { most }).build();
        loader.unwrap().find_map(Result::err)
    };
    assert!(run(3).is_none());
    let error = run(2).unwrap();
    assert!(matches!(error, Error::TooManySkipped { skipped: 3, limit: 2, .. }), "{error}");
}

#[test]
fn an_endless_run_of_bad_samples_ends() {
    let bad = |_: usize| Err::<usize, _>("never".to_owned());
    for workers in [0, 2] {
        let builder = DataLoader::builder(numbers(5)).map(bad).workers(workers).forever();
        let mut loader = builder.on_error(OnError::SKIP).build().unwrap();
        let error = loader.next().unwrap().unwrap_err();
        assert!(matches!(error, Error::TooManySkipped { skipped: 5, .. }), "{error}");
        assert!(loader.next().is_none());
    }
}

#[test]
fn reasons_are_kept_up_to_a_number() {
    let bad = |number: usize| if number < 300 { Err("bad".to_owned()) } else { Ok(number) };
    let mut loader =
        DataLoader::builder(numbers(301)).map(bad).workers(1).on_error(OnError::SKIP).build().unwrap();
    assert_eq!(loader.by_ref().count(), 1);
    let stats = loader.stats();
    assert_eq!((stats.skipped, stats.skips.len()), (300, Stats::SKIPS_KEPT));
}

#[test]
fn an_item_larger_than_the_bound_says_so() {
    let sizes = Memory::new(vec![10usize, 1000, 10]);
    let make = |size: usize| Ok::<_, String>(vec![0u8; size]);
    for workers in [0, 2] {
        let mut loader = DataLoader::builder(sizes.clone())
            .map(make)
            .workers(workers)
            .prefetch_bytes(1000)
            .item_bytes_max(500)
            .on_error(OnError::SKIP)
            .build()
            .unwrap();
        assert_eq!(loader.by_ref().map(|batch| batch.unwrap()[0].len()).collect::<Vec<_>>(), [10, 10]);
        let reason = &loader.stats().skips[0].reason;
        assert!(reason.contains("at most 500 are allowed for one item; raise item_bytes_max"), "{reason}");
    }
}

#[test]
fn dropping_a_loader_joins_its_workers_at_once() {
    let running = Arc::new(AtomicUsize::new(0));
    struct Guard(Arc<AtomicUsize>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let counter = Arc::clone(&running);
    let step = move |number: usize| {
        counter.fetch_add(1, Ordering::SeqCst);
        let _guard = Guard(Arc::clone(&counter));
        std::thread::sleep(std::time::Duration::from_millis(2));
        Ok::<_, String>(number)
    };
    for taken in [0, 1, 5] {
        let builder = DataLoader::builder(numbers(1_000_000)).map(step.clone()).workers(4).batch_size(2);
        let mut loader = builder.build().unwrap();
        for _ in 0..taken {
            loader.next().unwrap().unwrap();
        }
        drop(loader);
        assert_eq!(running.load(Ordering::SeqCst), 0, "a worker goes on after the loader is gone");
        assert_eq!(Arc::strong_count(&running), 2, "a worker keeps the transform");
    }
}

/// A transform whose scratch cannot be made.
struct NoScratch;

impl qvl_dataload::Transform<usize> for NoScratch {
    type Output = usize;
    type Scratch = ();

    fn scratch(&self) {
        panic!("no scratch");
    }

    fn apply(
        &self,
        number: usize,
        _: &str,
        (): &mut (),
        _: &dyn qvl_dataload::Buffers,
    ) -> qvl_dataload::Result<usize> {
        Ok(number)
    }

    fn footprint(&self, _: &usize) -> usize {
        size_of::<usize>()
    }
}

#[test]
fn a_panic_in_making_the_scratch_is_an_error_too() {
    for workers in [0, 2] {
        let mut loader =
            DataLoader::builder(numbers(3)).transform(NoScratch).workers(workers).build().unwrap();
        let error = loader.next().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "item 0 in memory: panicked: no scratch");
    }
}
