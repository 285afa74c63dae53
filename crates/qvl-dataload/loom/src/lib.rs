//! The prefetch queue of qvl-dataload under loom: every interleaving of a few threads, up to two preemptions.

#![allow(dead_code, missing_docs, reason = "the files are included whole")]

#[path = "../../src/loader/queue.rs"]
mod queue;
#[path = "../../src/loader/window.rs"]
mod window;

/// What the queue locks with, by loom.
mod sync {
    pub(crate) use loom::sync::{Condvar, MutexGuard};

    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread of the model panics with the lock")
        }
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).expect("no thread of the model panics with the lock")
    }
}

use loom::sync::Arc;
use loom::thread::{JoinHandle, spawn};
use queue::{Claim, Finished, Queue, Refused};
use window::{Bounds, Window};

type Numbers = Queue<u64, u64>;

fn queue(bounds: Bounds, total: u64, fetching: bool) -> Arc<Numbers> {
    Arc::new(Queue::new(Window::new(bounds, 0, total), usize::MAX, fetching, bounds.bytes))
}

/// A worker that reserves `bytes` for each item, in two steps, and hands in its number.
fn worker(queue: &Arc<Numbers>, worker: usize, run: usize, bytes: usize) -> JoinHandle<()> {
    let queue = Arc::clone(queue);
    spawn(move || {
        let mut pending = Vec::new();
        while let Some(claim) = queue.claim(worker, run) {
            let (numbers, fetched) = match claim {
                Claim::Run { first, count } => (first..first + count as u64, None),
                Claim::Fetched { number, fetched } => (number..number + 1, Some(fetched)),
            };
            for number in numbers {
                assert!(fetched.is_none_or(|fetched| fetched == 10 * number));
                for part in [bytes / 2, bytes - bytes / 2] {
                    match queue.reserve(number, part, &mut pending) {
                        Ok(()) => {}
                        Err(Refused::Stopped) => return,
                        Err(Refused::TooLarge) => panic!("{part} bytes for item {number}"),
                    }
                }
                pending.push(Finished { number, bytes, value: number });
            }
            queue.publish(&mut pending);
        }
    })
}

/// Takes all items, `batch` at a time, and stops the queue.
fn consume(queue: &Numbers, total: u64, batch: usize, keep: bool) {
    let mut next = 0;
    let mut taken = Vec::new();
    loop {
        let is_over = queue.take_waiting(batch - taken.len(), keep, &mut taken).expect("nobody has stopped it");
        if taken.len() == batch || is_over {
            for number in taken.drain(..) {
                assert_eq!(number, next, "in order");
                next += 1;
            }
            queue.release();
        }
        if is_over {
            break;
        }
    }
    assert_eq!(next, total, "none is lost");
    assert_eq!(queue.view().used_bytes, 0);
    queue.stop();
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("no thread panics");
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

/// Two workers that need more bytes between them than there are.
pub fn workers_share_scarce_bytes(run: usize) {
    check(move || {
        let queue = queue(Bounds { items: 3, bytes: 10, item_bytes_max: 6 }, 3, false);
        let threads = vec![worker(&queue, 0, run, 6), worker(&queue, 1, run, 6)];
        consume(&queue, 3, 1, false);
        join(threads);
    });
}

/// A window of one item.
pub fn workers_share_one_place() {
    check(|| {
        let queue = queue(Bounds { items: 1, bytes: 10, item_bytes_max: 6 }, 3, false);
        let threads = vec![worker(&queue, 0, 1, 2), worker(&queue, 1, 1, 2)];
        consume(&queue, 3, 1, false);
        join(threads);
    });
}

/// A batch that is counted until it is handed over, and one that is larger than the bound.
pub fn a_batch_is_kept() {
    check(|| {
        let queue = queue(Bounds { items: 4, bytes: 10, item_bytes_max: 6 }, 4, false);
        let threads = vec![worker(&queue, 0, 1, 6)];
        consume(&queue, 4, 2, true);
        join(threads);
    });
}

/// The consumer leaves while workers wait for room.
pub fn the_consumer_leaves() {
    check(|| {
        let queue = queue(Bounds { items: 2, bytes: 10, item_bytes_max: 6 }, 9, false);
        let threads = vec![worker(&queue, 0, 2, 6), worker(&queue, 1, 1, 6)];
        let mut taken = Vec::new();
        queue.take_waiting(1, false, &mut taken);
        assert_eq!(taken, [0]);
        queue.stop();
        join(threads);
    });
}

/// One thread fetches, one works.
pub fn items_are_fetched_ahead() {
    check(|| {
        let queue = queue(Bounds { items: 2, bytes: 10, item_bytes_max: 6 }, 3, true);
        let fetcher = {
            let queue = Arc::clone(&queue);
            spawn(move || {
                while let Ok(Some(number)) = queue.begin(true) {
                    if queue.reserve(number, 2, &mut Vec::new()).is_err() {
                        return;
                    }
                    queue.fetched(number, 10 * number);
                }
            })
        };
        let threads = vec![fetcher, worker(&queue, 0, 1, 4)];
        consume(&queue, 3, 1, false);
        join(threads);
    });
}
