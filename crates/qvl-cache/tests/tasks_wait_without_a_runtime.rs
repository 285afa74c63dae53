//! The futures, polled by the smallest executor there is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]
#![cfg(feature = "async")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;
use qvl_cache::{AsyncCache, Error, TieredCache};

mod common;
use common::{Shelf, value, version_of};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn cache() -> AsyncCache<u64, Bytes> {
    let cache = TieredCache::builder().hot_bytes(1 << 20).cold_shared(Shelf::new()).build().unwrap();
    AsyncCache::new(Arc::new(cache), 2).unwrap()
}

#[test]
fn values_go_in_and_come_out() {
    let cache = cache();
    block_on(async {
        assert_eq!(cache.get(&1).await.unwrap(), None);
        cache.insert(1, value(1, 7, 100)).await.unwrap();
        assert_eq!(version_of(1, &cache.get(&1).await.unwrap().unwrap()), 7);
        assert!(cache.pin(&1).await.unwrap());
        cache.flush().await.unwrap();
        cache.remove(&1).await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap(), None);
        cache.close().await.unwrap();
        assert!(matches!(cache.get(&1).await, Err(Error::Closed)));
    });
}

#[test]
fn one_loads_and_a_dropped_future_harms_nobody() {
    let cache = cache();
    let loads = Arc::new(AtomicUsize::new(0));
    let load = || {
        let loads = Arc::clone(&loads);
        move || {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::io::Error>(value(2, 1, 100))
        }
    };
    {
        // Polled once, then dropped.
        let mut dropped = pin!(cache.get_or_load(&2, load()));
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let _ = dropped.as_mut().poll(&mut Context::from_waker(&waker));
    }
    for _ in 0..4 {
        assert_eq!(version_of(2, &block_on(cache.get_or_load(&2, load())).unwrap()), 1);
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[test]
fn an_error_and_a_panic_go_to_the_task_that_caused_them() {
    let cache = cache();
    let failed =
        block_on(cache.get_or_load(&3, || Err::<Bytes, _>(std::io::Error::other("no such picture"))));
    let Err(Error::Load { source, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(source.to_string(), "no such picture");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        block_on(cache.get_or_load(&3, || -> Result<Bytes, std::io::Error> { panic!("the loader's own") }))
    }));
    assert!(panicked.is_err());
    let made = block_on(cache.get_or_load(&3, || Ok::<_, std::io::Error>(value(3, 1, 64)))).unwrap();
    assert_eq!(version_of(3, &made), 1);
}

#[test]
fn no_threads_is_a_setting_that_cannot_be() {
    let cache = Arc::new(TieredCache::<u64, Bytes>::builder().build().unwrap());
    assert!(matches!(AsyncCache::new(cache, 0), Err(Error::Setting { name: "threads", .. })));
}
