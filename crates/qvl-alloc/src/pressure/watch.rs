//! A thread that looks, and calls back when the level changes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::wait::{Sleeper, Waker, Woken};
use super::{Level, Levels, Pace, Pressure, Reading, Thresholds};
use crate::{Error, Result};

/// How a [`Watch`] looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// When levels change.
    pub thresholds: Thresholds,
    /// Between two looks when memory is low or falls quickly.
    pub fast: Duration,
    /// Between two looks when there is plenty.
    pub slow: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            thresholds: Thresholds::default(),
            fast: Duration::from_millis(25),
            slow: Duration::from_secs(1),
        }
    }
}

/// A level was left for another.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Change {
    /// The level before.
    pub from: Level,
    /// The level now.
    pub to: Level,
    /// What was read.
    pub reading: Arc<Reading>,
}

/// How a watch comes to know.
#[derive(Debug)]
#[non_exhaustive]
pub struct How {
    /// What the kernel wakes it for.
    pub triggers: Vec<String>,
    /// What the kernel refused to wake it for, and why: there it relies on looks.
    pub refused: Vec<Error>,
    /// Between two looks when memory is low or falls quickly.
    pub fast: Duration,
    /// Between two looks when there is plenty.
    pub slow: Duration,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "looks each {:?} to {:?}", self.fast, self.slow)?;
        for trigger in &self.triggers {
            write!(f, "; woken by {trigger}")?;
        }
        for error in &self.refused {
            write!(f, "; not woken: {error}")?;
        }
        Ok(())
    }
}

/// What a watch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WatchStats {
    /// How often it looked.
    pub looks: u64,
    /// How often it did because the kernel woke it.
    pub woken_by_triggers: u64,
    /// How often the level changed.
    pub changes: u64,
    /// Calls back that panicked.
    pub panics: u64,
}

/// Looks at how short memory is, and calls back when the level changes.
///
/// In calm it looks once a second, for less than 0.1 % of one core. In a small group it begins faster, since that could
/// be full at once: with 64 MiB at some 0.6 % of one core, which fades within a minute in which nothing happens.
///
/// Dropping it stops its thread and waits for it, so for a call back that is under way; unless it is dropped in one.
///
/// ```
/// use qvl_alloc::{Pressure, Watch, pressure::Level};
///
/// let watch = Watch::builder(Pressure::live())
///     .on_change(|change| if change.to == Level::Critical { /* drop caches */ })
///     .start()?;
/// println!("{:?}, {}", watch.level(), watch.how());
/// # Ok::<(), qvl_alloc::Error>(())
/// ```
pub struct Watch {
    shared: Arc<Shared>,
    waker: Waker,
    how: How,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("how", &self.how).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

struct Shared {
    now: Mutex<(Level, Arc<Reading>)>,
    stop: AtomicBool,
    looks: AtomicU64,
    woken: AtomicU64,
    changes: AtomicU64,
    panics: AtomicU64,
}

type OnChange = Box<dyn FnMut(&Change) + Send>;

/// Settings of a [`Watch`].
pub struct WatchBuilder {
    pressure: Pressure,
    settings: Settings,
    on_change: Vec<OnChange>,
}

impl fmt::Debug for WatchBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl WatchBuilder {
    /// How it looks.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Called on the thread of the watch when the level changes, after those that were given before. No look is taken
    /// while it runs. Who takes more while it is critical is not called again: ask [`Watch::level`] before. A panic in it is caught and counted, and it is called again at the next change.
    pub fn on_change(mut self, call: impl FnMut(&Change) + Send + 'static) -> Self {
        self.on_change.push(Box::new(call));
        self
    }

    /// Looks once, and starts the thread. If it is not calm now, that is the first change.
    ///
    /// # Errors
    /// [`Error::Setting`] for thresholds that cannot be or an interval of 0; [`Error::System`] if there is no thread
    /// or no descriptor to be had.
    pub fn start(self) -> Result<Watch> {
        let Self { pressure, settings, on_change } = self;
        let Settings { thresholds, fast, slow } = settings;
        if fast.is_zero() || slow < fast {
            return Err(Error::Setting {
                name: "fast and slow",
                got: format!("{fast:?} and {slow:?}"),
                expected: "0 < fast <= slow".to_owned(),
            });
        }
        let mut levels = Levels::new(thresholds)?;
        let shares = [thresholds.low_enter, thresholds.critical_enter];
        let (sleeper, refused) = Sleeper::new(&pressure, shares)?;
        let how = How { triggers: sleeper.what(), refused, fast, slow };
        let reading = Arc::new(pressure.read());
        let first = levels.step(reading.share.unwrap_or(f64::NAN), Duration::ZERO);
        let shared = Arc::new(Shared {
            now: Mutex::new((levels.level(), Arc::clone(&reading))),
            stop: AtomicBool::new(false),
            looks: AtomicU64::new(1),
            woken: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        });
        let waker = sleeper.waker();
        let pace = Pace::new(fast, slow, thresholds.low_enter);
        let looker = Looker { pressure, levels, pace, sleeper, on_change, shared: Arc::clone(&shared) };
        let thread = thread::Builder::new()
            .name("qvl-pressure".to_owned())
            .spawn(move || looker.run(first, reading))
            .map_err(|source| Error::System {
                operation: "a thread",
                what: "a watch".to_owned(),
                source,
                remedy: "Allow this process more threads",
            })?;
        Ok(Watch { shared, waker, how, thread: Some(thread) })
    }
}

impl Watch {
    /// Watches this.
    pub fn builder(pressure: Pressure) -> WatchBuilder {
        WatchBuilder { pressure, settings: Settings::default(), on_change: Vec::new() }
    }

    /// The level at the last look.
    pub fn level(&self) -> Level {
        self.shared.now.lock().0
    }

    /// What was read at the last look.
    pub fn reading(&self) -> Arc<Reading> {
        Arc::clone(&self.shared.now.lock().1)
    }

    /// How it comes to know, as it was when it started.
    pub fn how(&self) -> &How {
        &self.how
    }

    /// Has it look now, as after a request for memory that failed. Does not wait for it.
    pub fn look(&self) {
        self.waker.wake();
    }

    /// What it did.
    pub fn stats(&self) -> WatchStats {
        let Shared { looks, woken, changes, panics, .. } = &*self.shared;
        WatchStats {
            looks: looks.load(Ordering::Relaxed),
            woken_by_triggers: woken.load(Ordering::Relaxed),
            changes: changes.load(Ordering::Relaxed),
            panics: panics.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.waker.wake();
        // A call back may own the watch; a thread cannot wait for itself.
        if let Some(thread) =
            self.thread.take().filter(|thread| thread.thread().id() != thread::current().id())
        {
            // The loop catches panics of calls back and has none of its own.
            _ = thread.join();
        }
    }
}

/// What the thread has.
struct Looker {
    pressure: Pressure,
    levels: Levels,
    pace: Pace,
    sleeper: Sleeper,
    on_change: Vec<OnChange>,
    shared: Arc<Shared>,
}

impl Looker {
    fn run(mut self, mut left: Option<Level>, mut reading: Arc<Reading>) {
        let mut last = Instant::now();
        let mut elapsed = Duration::ZERO;
        loop {
            if let Some(from) = left {
                self.tell(from, &reading);
            }
            let available = reading.limits.as_ref().map(|limits| limits.available_bytes);
            let most = self.pace.next(available, reading.share, elapsed);
            if self.stopped() {
                return;
            }
            let woken = self.sleeper.sleep(most);
            if self.stopped() {
                return;
            }
            reading = Arc::new(self.pressure.read());
            elapsed = last.elapsed();
            last += elapsed;
            left = self.levels.step(reading.share.unwrap_or(f64::NAN), elapsed);
            *self.shared.now.lock() = (self.levels.level(), Arc::clone(&reading));
            self.shared.looks.fetch_add(1, Ordering::Relaxed);
            self.shared.woken.fetch_add(u64::from(woken == Woken::Trigger), Ordering::Relaxed);
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    fn tell(&mut self, from: Level, reading: &Arc<Reading>) {
        self.shared.changes.fetch_add(1, Ordering::Relaxed);
        let change = Change { from, to: self.levels.level(), reading: Arc::clone(reading) };
        for call in &mut self.on_change {
            if catch_unwind(AssertUnwindSafe(|| call(&change))).is_err() {
                self.shared.panics.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
