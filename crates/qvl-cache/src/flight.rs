//! Single flight: one search of the tiers below, or one load, a key, however many ask.
//!
//! The first who asks leads; the others wait for what the leader lands. A leader that panics, or gives up, lands
//! nothing: one of those who wait leads in its place. A write of the key meanwhile supersedes the flight: who joined
//! before it still gets what the leader finds, which was true when they asked, but it is not published, and who asks
//! from then on does not join. If the leader then found nothing, it may be because the write was half done: they all
//! look again.

use std::collections::HashMap;
use std::hash::Hash;

use crate::sync::{Arc, Condvar, Mutex, wait};

/// What a flight came back with: a value, nothing, or an error, the same for all who waited.
pub(crate) type Outcome<V, E> = Result<Option<V>, E>;

/// The flights under way.
pub(crate) struct Flights<K, V, E> {
    shards: Box<[Mutex<Shard<K, V, E>>]>,
}

type Shard<K, V, E> = HashMap<K, Arc<Flight<V, E>>>;

/// One search for one key.
pub(crate) struct Flight<V, E> {
    state: Mutex<State<V, E>>,
    landed: Condvar,
}

enum State<V, E> {
    Flying,
    Landed(Outcome<V, E>),
    /// The leader is gone and has landed nothing.
    Abandoned,
}

/// What somebody who asks is to do.
pub(crate) enum Joined<'a, K: Clone + Eq + Hash, V: Clone, E: Clone> {
    /// Search, and [`land`](Lead::land) what is found.
    Lead(Lead<'a, K, V, E>),
    /// Another searched: this is what it found.
    Landed(Outcome<V, E>),
}

/// The duty to search; dropped without landing, it passes to one of those who wait.
pub(crate) struct Lead<'a, K: Clone + Eq + Hash, V: Clone, E: Clone> {
    flights: &'a Flights<K, V, E>,
    key: K,
    shard: usize,
    flight: Arc<Flight<V, E>>,
    landed: bool,
}

impl<K: Clone + Eq + Hash, V: Clone, E: Clone> Flights<K, V, E> {
    /// With so many locks.
    pub(crate) fn new(shards: usize) -> Self {
        Self { shards: (0..shards.max(1)).map(|_| Mutex::new(HashMap::new())).collect() }
    }

    fn shard(&self, hash: u64) -> usize {
        (hash as usize) % self.shards.len()
    }

    /// Joins the flight of `key`, or begins one. Waits if another leads. `hash` is any hash of the key.
    pub(crate) fn join(&self, key: &K, hash: u64) -> Joined<'_, K, V, E> {
        let shard = self.shard(hash);
        loop {
            let flight = {
                let mut flying = self.shards[shard].lock();
                match flying.get(key) {
                    Some(flight) => Arc::clone(flight),
                    None => {
                        let flight =
                            Arc::new(Flight { state: Mutex::new(State::Flying), landed: Condvar::new() });
                        flying.insert(key.clone(), Arc::clone(&flight));
                        let key = key.clone();
                        return Joined::Lead(Lead { flights: self, key, shard, flight, landed: false });
                    }
                }
            };
            if let Some(outcome) = flight.wait() {
                return Joined::Landed(outcome);
            }
        }
    }

    /// Does `write` so that no flight of `key` that is under way publishes after it.
    pub(crate) fn supersede<R>(&self, key: &K, hash: u64, write: impl FnOnce() -> R) -> R {
        let mut flying = self.shards[self.shard(hash)].lock();
        flying.remove(key);
        write()
    }

    /// How many flights are under way.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl<V: Clone, E: Clone> Flight<V, E> {
    /// What the leader landed; `None` if it abandoned the flight.
    fn wait(&self) -> Option<Outcome<V, E>> {
        let mut state = self.state.lock();
        loop {
            match &*state {
                State::Flying => state = wait(&self.landed, state),
                State::Landed(outcome) => return Some(outcome.clone()),
                State::Abandoned => return None,
            }
        }
    }

    fn end(&self, end: State<V, E>) {
        *self.state.lock() = end;
        self.landed.notify_all();
    }
}

impl<K: Clone + Eq + Hash, V: Clone, E: Clone> Lead<'_, K, V, E> {
    /// Ends the flight: `publish` is done unless a write superseded it, and before anybody who waits goes on.
    ///
    /// `false` if it was superseded and found nothing: look again.
    pub(crate) fn land(mut self, outcome: Outcome<V, E>, publish: impl FnOnce()) -> bool {
        let current = self.take_off_the_table(publish).is_some();
        self.landed = true;
        if !current && matches!(outcome, Ok(None)) {
            self.flight.end(State::Abandoned);
            return false;
        }
        self.flight.end(State::Landed(outcome));
        true
    }

    /// Removes this flight, and does `publish` under the same lock if it was still the current one of its key.
    fn take_off_the_table(&self, publish: impl FnOnce()) -> Option<Arc<Flight<V, E>>> {
        let mut flying = self.flights.shards[self.shard].lock();
        let current = flying.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
        if !current {
            return None;
        }
        let removed = flying.remove(&self.key);
        publish();
        removed
    }
}

impl<K: Clone + Eq + Hash, V: Clone, E: Clone> Drop for Lead<'_, K, V, E> {
    fn drop(&mut self) {
        if !self.landed {
            self.take_off_the_table(|| {});
            self.flight.end(State::Abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    type Numbers = Flights<u32, u64, String>;

    #[test]
    fn one_searches_and_the_others_get_what_it_found() {
        let flights = Numbers::new(4);
        let searches = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| match flights.join(&1, 1) {
                    Joined::Lead(lead) => {
                        searches.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                        assert!(lead.land(Ok(Some(7)), || {}));
                    }
                    Joined::Landed(outcome) => assert_eq!(outcome, Ok(Some(7))),
                });
            }
        });
        assert!(searches.into_inner() >= 1);
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn a_leader_that_panics_passes_the_duty_on() {
        let flights = Numbers::new(1);
        std::thread::scope(|scope| {
            let Joined::Lead(lead) = flights.join(&1, 1) else { panic!("nobody else flies") };
            let waiting = scope.spawn(|| match flights.join(&1, 1) {
                Joined::Lead(lead) => assert!(lead.land(Ok(Some(8)), || {})),
                Joined::Landed(_) => panic!("nothing was landed"),
            });
            let leading = std::thread::Builder::new().spawn_scoped(scope, move || {
                let _lead = lead;
                std::panic::resume_unwind(Box::new("the loader panics"));
            });
            assert!(leading.expect("a thread").join().is_err());
            waiting.join().expect("the other took over");
        });
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn what_was_superseded_is_not_published() {
        let flights = Numbers::new(1);
        let Joined::Lead(old) = flights.join(&1, 1) else { panic!("nobody else flies") };
        flights.supersede(&1, 1, || {});
        let Joined::Lead(new) = flights.join(&1, 1) else { panic!("the old flight was superseded") };
        let mut published = Vec::new();
        assert!(old.land(Ok(Some(1)), || published.push("old")));
        assert!(new.land(Ok(Some(2)), || published.push("new")));
        assert_eq!(published, ["new"]);
    }

    #[test]
    fn who_found_nothing_and_was_superseded_looks_again() {
        let flights = Numbers::new(1);
        let Joined::Lead(lead) = flights.join(&1, 1) else { panic!("nobody else flies") };
        flights.supersede(&1, 1, || {});
        assert!(!lead.land(Ok(None), || panic!("there is nothing to publish")));
    }

    #[test]
    fn an_error_is_shared() {
        let flights = Numbers::new(1);
        std::thread::scope(|scope| {
            let Joined::Lead(lead) = flights.join(&1, 1) else { panic!("nobody else flies") };
            let waiting = scope.spawn(|| match flights.join(&1, 1) {
                Joined::Landed(outcome) => outcome,
                Joined::Lead(lead) => {
                    assert!(lead.land(Ok(None), || {}));
                    Err("joined late".into())
                }
            });
            assert!(lead.land(Err("no such thing".into()), || {}));
            let error = waiting.join().expect("no panic").expect_err("an error");
            assert!(["no such thing", "joined late"].contains(&error.as_str()));
        });
    }
}
