//! Reading ahead of the workers: by advice to the system, or with an engine on a thread of its own.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::queue::Refused;
use super::worker::{Fetched, Pipeline};
use crate::buffer::Buffer;
use crate::source::Source;
use crate::storage::{Done, Engine, Extent, Ready, Request, Storage, advise, sort_by_place};
use crate::transform::Transform;
use crate::{Error, Result};

/// What has been announced to the system and not claimed by a worker yet.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    /// Number of the next item to announce.
    next: u64,
    ahead: VecDeque<(u64, usize)>,
    bytes: usize,
}

/// An item that is being read.
struct Flight {
    parts: Vec<(Extent, Option<Result<Buffer>>)>,
    missing: usize,
    reserved: usize,
}

/// An item that was begun and for which nothing is reserved yet.
struct Planned {
    number: u64,
    name: String,
    extents: Vec<Extent>,
    bytes: usize,
}

impl<S, T> Pipeline<S, T>
where
    S: Source,
    T: Transform<S::Sample>,
{
    /// Tells the system what the items after `claimed` will read, up to `readahead_bytes`. One worker does it at a
    /// time; the others have better things to do than to wait for it.
    pub(crate) fn announce(&self, claimed: u64, readahead_bytes: usize) {
        let Some(mut announced) = self.announced.try_lock() else { return };
        while let Some((_, bytes)) = announced.ahead.pop_front_if(|(number, _)| *number <= claimed) {
            announced.bytes -= bytes;
        }
        announced.next = announced.next.max(claimed + 1);
        let end = claimed.saturating_add(self.queue.view().bounds.items as u64).min(self.total);
        while announced.next < end && announced.bytes < readahead_bytes {
            let number = announced.next;
            announced.next += 1;
            let (_, index) = self.course.of(number);
            let extents = catch_unwind(AssertUnwindSafe(|| self.source.extents(index))).unwrap_or_default();
            // What is wrong with a file is said when it is read.
            let bytes = extents.iter().filter(|e| advise(e).is_ok()).map(|e| e.bytes).sum();
            announced.ahead.push_back((number, bytes));
            announced.bytes += bytes;
        }
    }

    /// The life of the thread that reads ahead with an engine.
    pub(crate) fn fetch(&self, storage: Storage, engine: &mut dyn Engine) {
        let mut flights: BTreeMap<u64, Flight> = BTreeMap::new();
        let mut planned: Option<Planned> = None;
        loop {
            let mut requests = Vec::new();
            // What is in flight, in items: most have one extent.
            while flights.len() < engine.depth() {
                let is_idle = flights.is_empty();
                let plan = match planned.take() {
                    Some(plan) => plan,
                    None => match self.queue.begin(is_idle) {
                        Ok(Some(number)) => match self.plan(number, storage) {
                            Ok(plan) => plan,
                            Err(error) => {
                                self.queue.fetched(number, Err(Box::new(error)));
                                continue;
                            }
                        },
                        Ok(None) => break,
                        // What is being read still has to land, unless nobody waits for it.
                        Err(_) if !is_idle => break,
                        Err(_) => return,
                    },
                };
                let granted = if is_idle {
                    self.queue.reserve(plan.number, plan.bytes, &mut Vec::new()).map(|()| true)
                } else {
                    self.queue.try_reserve(plan.number, plan.bytes)
                };
                match granted {
                    Ok(true) => self.take_off(plan, storage, &mut flights, &mut requests),
                    Ok(false) => {
                        planned = Some(plan);
                        break;
                    }
                    Err(Refused::Stopped) => return,
                    Err(Refused::TooLarge) => {
                        let Planned { number, name, bytes, .. } = plan;
                        let limit_bytes = self.queue.view().bounds.item_bytes_max;
                        let error = Error::ItemBytes { name, bytes, limit_bytes };
                        self.queue.fetched(number, Err(Box::new(error)));
                    }
                }
            }
            sort_by_place(&mut requests, |request: &Request| &request.extent);
            for request in requests {
                engine.submit(request);
            }
            let mut done = engine.complete(true);
            while let Some(read) = done {
                self.land(read, &mut flights);
                done = engine.complete(false);
            }
        }
    }

    fn plan(&self, number: u64, storage: Storage) -> Result<Planned> {
        let (_, index) = self.course.of(number);
        let plan = || {
            let (name, extents) = (self.source.name(index), self.source.extents(index));
            let rooms = extents.iter().map(|e| self.read_buffers.footprint(storage.room_bytes(e))).sum();
            let bytes = self.source.sample_bytes(index, &*self.read_buffers)?.max(rooms);
            Ok(Planned { number, name, extents, bytes })
        };
        catch_unwind(AssertUnwindSafe(plan))
            .unwrap_or_else(|panic| Err(Error::panicked(format!("sample {index}"), &*panic)))
    }

    /// Makes requests of an item whose bytes are reserved.
    fn take_off(
        &self,
        plan: Planned,
        storage: Storage,
        flights: &mut BTreeMap<u64, Flight>,
        requests: &mut Vec<Request>,
    ) {
        let Planned { number, extents, bytes: reserved, .. } = plan;
        let mut flight = Flight { parts: Vec::with_capacity(extents.len()), missing: 0, reserved };
        for (part, extent) in extents.into_iter().enumerate() {
            match Buffer::take(&*self.read_buffers, storage.room_bytes(&extent)) {
                Ok(buffer) => {
                    requests.push(Request { tag: tag(number, part), extent: extent.clone(), buffer });
                    flight.parts.push((extent, None));
                    flight.missing += 1;
                }
                Err(error) => flight.parts.push((extent, Some(Err(error)))),
            }
        }
        if flight.missing == 0 {
            self.queue.fetched(number, flight.ready());
        } else {
            flights.insert(number, flight);
        }
    }

    /// A read has ended.
    fn land(&self, read: Done, flights: &mut BTreeMap<u64, Flight>) {
        let number = read.tag >> PART_BITS;
        let part = (read.tag & ((1 << PART_BITS) - 1)) as usize;
        let Some(flight) = flights.get_mut(&number) else { return };
        if let Some((_, result)) = flight.parts.get_mut(part) {
            *result = Some(read.result);
            flight.missing -= 1;
        }
        if flight.missing == 0
            && let Some(flight) = flights.remove(&number)
        {
            self.queue.fetched(number, flight.ready());
        }
    }
}

impl Flight {
    fn ready(self) -> Fetched {
        let parts = self.parts.into_iter().filter_map(|(extent, result)| Some((extent, result?))).collect();
        Ok(Ready { parts, reserved: self.reserved })
    }
}

/// Extents of one sample.
const PART_BITS: u32 = 20;

/// Number and part in one: runs of more than 2^44 items, or samples of more than a million files, there are not.
fn tag(number: u64, part: usize) -> u64 {
    number << PART_BITS | part as u64
}
