//! Settings that make no sense, states of another run, batches by a function, the channel, and what the figures say.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use qvl_dataload::{DataLoader, Error, Memory, Shuffle};

fn numbers(count: usize) -> Memory<usize> {
    Memory::new((0..count).collect::<Vec<_>>())
}

#[test]
fn a_setting_that_makes_no_sense_is_named() {
    let check = |result: qvl_dataload::Result<DataLoader<usize>>, expected: &str| {
        assert_eq!(result.unwrap_err().to_string(), expected);
    };
    let builder = || DataLoader::builder(numbers(3));
    check(builder().batch_size(0).build(), "batch_size is 0, expected 1 to 16777216");
    check(builder().prefetch_items(0).build(), "prefetch_items is 0, expected 1 to 16777216");
    check(builder().prefetch_bytes(0).build(), "prefetch_bytes is 0, expected at least 1");
    check(builder().workers(5000).build(), "workers is 5000, expected 0 to 1024");
    check(builder().shard(2, 2).build(), "shard is 2 of 2, expected a rank below the number of ranks");
    check(builder().shard(0, 0).build(), "shard is 0 of 0, expected a rank below the number of ranks");
    check(
        builder().prefetch_bytes(100).item_bytes_max(76).build(),
        "item_bytes_max is 76, expected 1 to 75, what prefetch_bytes leaves for items",
    );
    let blocks = Shuffle::Blocks { seed: 1, block: 0 };
    check(builder().shuffle(blocks).build(), "shuffle is blocks of 0 samples, expected at least 1");
}

#[test]
fn a_state_of_another_run_is_refused() {
    let state = DataLoader::builder(numbers(10)).shuffle(Shuffle::All { seed: 1 }).build().unwrap().state();
    let builder = |count| DataLoader::builder(numbers(count)).resume(state);
    let check = |result: qvl_dataload::Result<DataLoader<usize>>, expected: &str| match result {
        Err(Error::Resume { what, .. }) => assert_eq!(what, expected),
        other => assert!(other.is_err(), "{expected}"),
    };
    check(builder(11).shuffle(Shuffle::All { seed: 1 }).build(), "a number of samples of");
    check(builder(10).shuffle(Shuffle::All { seed: 2 }).build(), "the shuffling");
    check(builder(10).shuffle(Shuffle::All { seed: 1 }).shard(0, 2).build(), "the shard");
    check(builder(10).shuffle(Shuffle::All { seed: 1 }).drop_last(true).build(), "drop_last");
    assert!(builder(10).shuffle(Shuffle::All { seed: 1 }).workers(7).batch_size(3).build().is_ok());
}

#[test]
fn an_empty_source_is_an_empty_run() {
    for workers in [0, 2] {
        assert_eq!(DataLoader::builder(numbers(0)).workers(workers).forever().build().unwrap().count(), 0);
        // A rank without a sample, too.
        let loader = DataLoader::builder(numbers(2)).workers(workers).shard(3, 4).forever().build().unwrap();
        assert_eq!(loader.count(), 0);
    }
}

#[test]
fn a_function_closes_batches_and_epochs_do_too() {
    for workers in [0, 3] {
        let loader = DataLoader::builder(numbers(10))
            .workers(workers)
            .epochs(2)
            .drop_last(true)
            .build_by(|batch, next| batch.iter().copied().sum::<usize>() + next <= 9)
            .unwrap();
        let batches: Vec<Vec<usize>> = loader.map(|batch| batch.unwrap().items).collect();
        let once = [vec![0, 1, 2, 3], vec![4, 5], vec![6], vec![7], vec![8], vec![9]];
        assert_eq!(batches, [&once[..], &once[..]].concat());
    }
}

#[test]
fn a_channel_can_be_shared_and_left() {
    let loader = || DataLoader::builder(numbers(1000)).workers(2).batch_size(10).build().unwrap();
    let receiver = loader().into_receiver().unwrap();
    let mut all: Vec<usize> = std::thread::scope(|scope| {
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let channel = receiver.clone();
                scope.spawn(move || channel.iter().flat_map(|batch| batch.unwrap().items).collect::<Vec<_>>())
            })
            .collect();
        consumers.into_iter().flat_map(|consumer| consumer.join().unwrap()).collect()
    });
    all.sort_unstable();
    assert_eq!(all, (0..1000).collect::<Vec<_>>());

    // Left early, with a clone that nobody receives from.
    let receiver = loader().into_receiver().unwrap();
    let clone = receiver.clone();
    let first = receiver.recv().unwrap().unwrap();
    assert_eq!(first.items, (0..10).collect::<Vec<_>>());
    assert_eq!(first.state.place(), 10);
    drop(receiver);
    assert!(clone.recv().is_err(), "closed");
}

#[test]
fn the_tuning_says_what_it_did() {
    // One item takes as long as fifty others: so many are to be made ahead.
    let step = |number: usize| {
        std::thread::sleep(Duration::from_millis(if number % 100 == 50 { 200 } else { 4 }));
        Ok::<_, String>(number)
    };
    let mut loader = DataLoader::builder(numbers(800)).map(step).build().unwrap();
    let cores = loader.stats().workers;
    while loader.next().is_some() {}
    let stats = loader.stats();
    assert!(stats.workers_active >= 1 && stats.workers_active <= cores);
    assert!(!stats.decisions.is_empty(), "nothing was changed:\n{stats}");
    assert!(stats.decisions[0].why.contains("an item takes a worker"), "{stats}");
    assert!(
        stats.transform >= Duration::from_millis(4 * 800) && stats.longest_item >= Duration::from_millis(4)
    );
    assert!(stats.consumer_wait > Duration::from_millis(500));
    assert!(stats.to_string().starts_with("800 items in 800 batches"), "{stats}");
}

#[test]
fn a_panic_while_batches_are_put_together_comes_through_the_channel() {
    let receiver = DataLoader::builder(numbers(10))
        .workers(1)
        .build_by(|_, next| {
            assert!(*next < 3, "three is too much");
            true
        })
        .unwrap()
        .into_receiver()
        .unwrap();
    let error = receiver.recv().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the function that puts batches together: panicked: three is too much");
    assert!(receiver.recv().is_err(), "closed after an error");
}

#[test]
fn workers_end_when_there_is_nothing_left_to_load() {
    let mut loader = DataLoader::builder(numbers(100)).workers(4).prefetch_items(200).build().unwrap();
    let first = loader.next().unwrap().unwrap();
    assert_eq!(first.items, [0]);
    std::thread::sleep(Duration::from_millis(20));
    let waited = loader.stats().worker_wait;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(loader.stats().worker_wait, waited, "nobody waits for room that nobody needs");
    assert_eq!(loader.count(), 99);
}
