//! Sleeping until the time is over or the watch is dropped, where the kernel tells nothing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Pressure;
use crate::{Error, Result};

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    Time,
    Asked,
    #[allow(dead_code, reason = "there are no triggers here")]
    Trigger,
}

#[derive(Default)]
struct Bell {
    asked: Mutex<bool>,
    rung: Condvar,
}

/// Wakes a [`Sleeper`].
#[derive(Clone)]
pub(super) struct Waker(Arc<Bell>);

impl Waker {
    pub(super) fn wake(&self) {
        *self.0.asked.lock() = true;
        self.0.rung.notify_all();
    }
}

pub(super) struct Sleeper(Arc<Bell>);

impl Sleeper {
    pub(super) fn new(_: &Pressure, _: [f64; 2]) -> Result<(Self, Vec<Error>)> {
        Ok((Self(Arc::default()), Vec::new()))
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }

    pub(super) fn what(&self) -> Vec<String> {
        Vec::new()
    }

    /// Sleeps, at most this long.
    pub(super) fn sleep(&mut self, most: Duration) -> Woken {
        let mut asked = self.0.asked.lock();
        if !*asked {
            self.0.rung.wait_for(&mut asked, most);
        }
        if std::mem::take(&mut *asked) { Woken::Asked } else { Woken::Time }
    }
}
