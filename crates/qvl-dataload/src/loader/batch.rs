//! Batches, how they are put together, and the channel they can come through.

use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::{DataLoader, Numbered, Shared, State, Stats};
use crate::{Error, Result};

/// Items that are used together, in their order. Derefs to the items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// At least one.
    pub items: Vec<T>,
    /// Index in the source of each.
    pub indices: Vec<usize>,
    /// The epoch they belong to, from 0; a batch never spans two.
    pub epoch: u64,
    /// Number of the batch since the loader was built, from 0.
    pub number: u64,
    /// Where a later run goes on that comes after this batch.
    pub state: State,
}

impl<T> Deref for Batch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> IntoIterator for Batch<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Batch<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

/// Whether an item goes into a batch that has some, which is not empty.
pub(crate) type Fits<T> = Box<dyn FnMut(&[&T], &T) -> bool + Send>;

/// When a batch is complete.
pub(crate) enum Batching<T> {
    Size(usize),
    By(Fits<T>),
}

impl<T> Batching<T> {
    pub(crate) fn is_full(&self, len: usize) -> bool {
        matches!(self, Self::Size(size) if len >= *size)
    }

    /// Items to ask for.
    pub(crate) fn missing(&self, len: usize) -> usize {
        match self {
            Self::Size(size) => size - len.min(size - 1),
            Self::By(_) => 1,
        }
    }

    pub(crate) fn fits(&mut self, open: &[Numbered<T>], item: &T) -> bool {
        match self {
            Self::Size(_) => true,
            Self::By(fits) => {
                let open: Vec<&T> = open.iter().map(|numbered| &numbered.item).collect();
                fits(&open, item)
            }
        }
    }
}

/// Batches through a channel: derefs to a [`crossbeam_channel::Receiver`], which can be cloned and selected over.
///
/// The channel is closed at the end of the run, and after an error. Dropping this ends the run, also where clones of
/// the channel live on. To go on later, keep the [`Batch::state`] of the last batch that was received.
pub struct Receiver<T> {
    channel: crossbeam_channel::Receiver<Result<Batch<T>>>,
    /// Dropped to end the thread.
    stop: Option<crossbeam_channel::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared<T>>,
}

impl<T: Send + 'static> Receiver<T> {
    pub(super) fn new(mut loader: DataLoader<T>) -> Result<Self> {
        // Without a place in between, a batch that was sent was received.
        let (sender, channel) = crossbeam_channel::bounded(0);
        let shared = Arc::clone(&loader.shared);
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        // Without workers this thread makes the items, and cannot wait for itself.
        loader.keep = loader.inline.is_none();
        let hand_over = move || {
            // What panics here is the caller's function that puts batches together.
            let next = |loader: &mut DataLoader<T>| {
                catch_unwind(AssertUnwindSafe(|| loader.next())).unwrap_or_else(|panic| {
                    let name = "the function that puts batches together".to_owned();
                    Some(Err(Error::panicked(name, &*panic)))
                })
            };
            while let Some(batch) = next(&mut loader) {
                let is_last = batch.is_err();
                crossbeam_channel::select! {
                    send(sender, batch) -> sent => if sent.is_err() { return },
                    // Clones of the channel may live on with nobody who receives.
                    recv(stopped) -> _ => return,
                }
                loader.shared.queue.release();
                if is_last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("qvl-dataload-out".to_owned())
            .spawn(hand_over)
            .map_err(|source| Error::Thread { source })?;
        Ok(Self { channel, stop: Some(stop), thread: Some(thread), shared })
    }

    /// As [`DataLoader::stats`].
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

impl<T> Deref for Receiver<T> {
    type Target = crossbeam_channel::Receiver<Result<Batch<T>>>;

    fn deref(&self) -> &Self::Target {
        &self.channel
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.queue.stop();
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It catches what panics.
            let _ = thread.join();
        }
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
