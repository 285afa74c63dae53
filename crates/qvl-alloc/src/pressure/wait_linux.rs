//! Sleeping until the kernel says something, the time is over, or the watch is dropped.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::Pressure;
use super::trigger::{Trigger, triggers};
use crate::{Error, Result};

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    Time,
    Asked,
    Trigger,
}

/// Wakes a [`Sleeper`].
#[derive(Clone)]
pub(super) struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(super) fn wake(&self) {
        // It fails only if it was woken 2^64 times and did not look.
        _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

pub(super) struct Sleeper {
    event: Arc<OwnedFd>,
    triggers: Vec<Trigger>,
    last: Instant,
}

impl Sleeper {
    /// With all triggers that can be had; the errors say why others cannot.
    pub(super) fn new(pressure: &Pressure, shares: [f64; 2]) -> Result<(Self, Vec<Error>)> {
        let event =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| Error::System {
                operation: "eventfd",
                what: "a watch".to_owned(),
                source: error.into(),
                remedy: "Allow this process more open files",
            })?;
        let (triggers, refused) = triggers(pressure, shares);
        Ok((Self { event: Arc::new(event), triggers, last: Instant::now() }, refused))
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.event))
    }

    /// What wakes it.
    pub(super) fn what(&self) -> Vec<String> {
        self.triggers.iter().map(|trigger| trigger.what.clone()).collect()
    }

    /// Sleeps, at most this long.
    pub(super) fn sleep(&mut self, most: Duration) -> Woken {
        // A trigger that is ready all the time must not take a core.
        let woken = match self.last.elapsed() {
            early if early < GAP => match self.wait(GAP - early, false) {
                Woken::Time => self.wait(most.saturating_sub(GAP), true),
                woken => woken,
            },
            _ => self.wait(most, true),
        };
        self.last = Instant::now();
        woken
    }

    fn wait(&mut self, most: Duration, with_triggers: bool) -> Woken {
        let time = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() };
        let heard = if with_triggers { &mut self.triggers[..] } else { &mut [] };
        let mut fds = vec![PollFd::from_borrowed_fd(self.event.as_fd(), PollFlags::IN)];
        fds.extend(heard.iter().map(|trigger| {
            let (fd, flags) = trigger.fd();
            PollFd::from_borrowed_fd(fd, flags)
        }));
        // A signal ends it early: one look more.
        if poll(&mut fds, Some(&time)).is_err() {
            return Woken::Time;
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let mut flags = ready.iter().skip(1);
        let mut woken = Woken::Time;
        if with_triggers {
            self.triggers.retain_mut(|trigger| match flags.next() {
                Some(flags) if !flags.is_empty() => {
                    woken = Woken::Trigger;
                    trigger.taken(*flags)
                }
                _ => true,
            });
        }
        if ready.first().is_some_and(|flags| !flags.is_empty()) {
            _ = rustix::io::read(&*self.event, &mut [0; 8]);
            woken = Woken::Asked;
        }
        woken
    }
}

/// Between two looks, whatever the triggers say. A look takes some 0.1 ms.
const GAP: Duration = Duration::from_millis(2);
