//! Futures over a [`TieredCache`], for any executor: what does not wait is done at once, the rest on threads of its own.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::cache::{LateErrors, Placed, TieredCache};
use crate::error::{Cause, Error, Result};
use crate::key::Key;

type Job = Box<dyn FnOnce() + Send>;

/// A [`TieredCache`] for tasks: a hit in the hot tier is ready at once, what reads or writes below runs on a few threads
/// that belong to this and to no runtime.
///
/// A future that is dropped ends nothing: what it asked for is done all the same, and others who wait for the same key
/// are not held up. Cloning is cheap and gives the same cache.
pub struct AsyncCache<K: Key, V: Clone + Send + Sync + 'static> {
    cache: Arc<TieredCache<K, V>>,
    pool: Arc<Pool>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Clone for AsyncCache<K, V> {
    fn clone(&self) -> Self {
        Self { cache: Arc::clone(&self.cache), pool: Arc::clone(&self.pool) }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> AsyncCache<K, V> {
    /// Over this cache, with so many threads for what waits: as many reads below the hot tier go on at once.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for 0 threads, or when one cannot be started.
    pub fn new(cache: Arc<TieredCache<K, V>>, threads: usize) -> Result<Self> {
        Ok(Self { cache, pool: Arc::new(Pool::new(threads)?) })
    }

    /// The cache itself, for what does not wait: `stats`, `explain`, `prefetch`.
    pub fn blocking(&self) -> &Arc<TieredCache<K, V>> {
        &self.cache
    }

    /// As [`TieredCache::get`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn get(&self, key: &K) -> Result<Option<V>> {
        if let Some(value) = self.cache.get_hot(key) {
            return Ok(Some(value));
        }
        let (cache, key) = (Arc::clone(&self.cache), key.clone());
        self.pool.run(move || cache.get(&key)).await?
    }

    /// As [`TieredCache::get_or_load`]; `load` runs on a thread of this cache and may block. If it panics, so does the
    /// task that gave it.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn get_or_load<E: Into<Cause> + 'static>(
        &self,
        key: &K,
        load: impl FnOnce() -> Result<V, E> + Send + 'static,
    ) -> Result<V> {
        if let Some(value) = self.cache.get_hot(key) {
            return Ok(value);
        }
        let (cache, key) = (Arc::clone(&self.cache), key.clone());
        self.pool.run(move || cache.get_or_load(&key, load)).await?
    }

    /// As [`TieredCache::insert`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn insert(&self, key: K, value: V) -> Result<Placed> {
        let cache = Arc::clone(&self.cache);
        self.pool.run(move || cache.insert(key, value)).await?
    }

    /// As [`TieredCache::remove`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn remove(&self, key: &K) -> Result<()> {
        let (cache, key) = (Arc::clone(&self.cache), key.clone());
        self.pool.run(move || cache.remove(&key)).await?
    }

    /// As [`TieredCache::pin`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn pin(&self, key: &K) -> Result<bool> {
        let (cache, key) = (Arc::clone(&self.cache), key.clone());
        self.pool.run(move || cache.pin(&key)).await?
    }

    /// As [`TieredCache::flush`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn flush(&self) -> Result<()> {
        let cache = Arc::clone(&self.cache);
        self.pool.run(move || cache.flush()).await?
    }

    /// As [`TieredCache::close`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn close(&self) -> Result<(), LateErrors> {
        let cache = Arc::clone(&self.cache);
        match self.pool.run(move || cache.close()).await {
            Ok(closed) => closed,
            // The threads are gone, and so is the cache.
            Err(_) => Ok(()),
        }
    }
}

struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    fn new(threads: usize) -> Result<Self> {
        let refuse = |reason: String| Error::Setting { name: "threads", value: threads.to_string(), reason };
        if threads == 0 {
            return Err(refuse("nobody would read; at least 1".to_owned()));
        }
        let (jobs, given): (Sender<Job>, Receiver<Job>) = crossbeam_channel::unbounded();
        let mut pool = Self { jobs: Some(jobs), threads: Vec::with_capacity(threads) };
        for _ in 0..threads {
            let given = given.clone();
            let work = move || given.iter().for_each(|job| job());
            let started = std::thread::Builder::new().name("qvl-cache-async".to_owned()).spawn(work);
            pool.threads.push(started.map_err(|error| refuse(error.to_string()))?);
        }
        Ok(pool)
    }

    /// A future of what `work` returns; it panics where `work` does.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Reply<T> {
        let slot = Arc::new(Mutex::new(Slot::Waiting(None)));
        let reply = Reply(Arc::clone(&slot));
        let job = Box::new(move || {
            let done = catch_unwind(AssertUnwindSafe(work));
            let before = std::mem::replace(&mut *slot.lock(), Slot::Done(done));
            if let Slot::Waiting(Some(waker)) = before {
                waker.wake();
            }
        });
        if let Some(jobs) = &self.jobs
            && let Err(unsent) = jobs.send(job)
        {
            // No thread is left to do it: do it here.
            (unsent.0)();
        }
        reply
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        let here = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last handle may be dropped by a job.
            if thread.thread().id() != here {
                let _ = thread.join();
            }
        }
    }
}

enum Slot<T> {
    Waiting(Option<Waker>),
    Done(std::thread::Result<T>),
    Taken,
}

struct Reply<T>(Arc<Mutex<Slot<T>>>);

impl<T> Future for Reply<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let mut slot = self.0.lock();
        match std::mem::replace(&mut *slot, Slot::Taken) {
            Slot::Done(Ok(value)) => Poll::Ready(Ok(value)),
            Slot::Done(Err(panic)) => {
                drop(slot);
                std::panic::resume_unwind(panic)
            }
            Slot::Waiting(_) => {
                *slot = Slot::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
            // Polled after it was ready, which no executor does.
            Slot::Taken => Poll::Ready(Err(Error::Closed)),
        }
    }
}
