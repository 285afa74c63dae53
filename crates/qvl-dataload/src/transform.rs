//! What is done with a sample after it was read and before the consumer gets it.

use crate::buffer::Buffers;
use crate::source::Footprint;
use crate::{Cause, Error, Result};

/// A step from a sample to an item, run by the loader's workers.
///
/// A closure will mostly do ([`Builder::map`](crate::Builder::map)). Implement this for a step that keeps something
/// from item to item, or that can say beforehand how large its output will be: then the bound of bytes holds at every
/// moment. The output must depend on the sample only.
pub trait Transform<S>: Send + Sync + 'static {
    /// What the consumer gets.
    type Output: Send + 'static;
    /// What one worker keeps from item to item.
    type Scratch: Send + 'static;

    /// For a new worker.
    fn scratch(&self) -> Self::Scratch;

    /// Bytes that the output will take, or more; `None` if that cannot be said. Reserved before `apply`, which is
    /// called when they are free. An output that is larger is an error of its item.
    ///
    /// # Errors
    /// Whatever is wrong with the sample; `name` is its name.
    fn output_bytes(&self, sample: &S, name: &str, buffers: &dyn Buffers) -> Result<Option<usize>> {
        let _ = (sample, name, buffers);
        Ok(None)
    }

    /// Whether the output lies in a buffer that `apply` takes from those it is given. Then one that waits to be used
    /// again is used for it, and not given back to the system to make room.
    fn takes_buffers(&self) -> bool {
        false
    }

    /// The step itself. `name` is that of the sample, for errors; `buffers` has room for results.
    ///
    /// # Errors
    /// Whatever is wrong with the sample.
    fn apply(
        &self,
        sample: S,
        name: &str,
        scratch: &mut Self::Scratch,
        buffers: &dyn Buffers,
    ) -> Result<Self::Output>;

    /// Bytes that an output takes.
    fn footprint(&self, output: &Self::Output) -> usize;
}

/// No step: the consumer gets the samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

impl<S: Footprint + Send + 'static> Transform<S> for Identity {
    type Output = S;
    type Scratch = ();

    fn scratch(&self) {}

    fn output_bytes(&self, sample: &S, _: &str, _: &dyn Buffers) -> Result<Option<usize>> {
        Ok(Some(sample.footprint()))
    }

    fn apply(&self, sample: S, _: &str, (): &mut (), _: &dyn Buffers) -> Result<S> {
        Ok(sample)
    }

    fn footprint(&self, output: &S) -> usize {
        output.footprint()
    }
}

/// A closure as a step.
#[derive(Clone, Copy, Debug)]
pub struct Map<F> {
    step: F,
}

impl<F> Map<F> {
    pub(crate) fn new(step: F) -> Self {
        Self { step }
    }
}

impl<S, T, E, F> Transform<S> for Map<F>
where
    F: Fn(S) -> Result<T, E> + Send + Sync + 'static,
    T: Footprint + Send + 'static,
    E: Into<Cause>,
{
    type Output = T;
    type Scratch = ();

    fn scratch(&self) {}

    fn apply(&self, sample: S, name: &str, (): &mut (), _: &dyn Buffers) -> Result<T> {
        (self.step)(sample).map_err(|error| failed(name, error.into()))
    }

    fn footprint(&self, output: &T) -> usize {
        output.footprint()
    }
}

/// A step whose outputs take `bytes` at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounded<T> {
    step: T,
    bytes: usize,
}

impl<T> Bounded<T> {
    pub(crate) fn new(step: T, bytes: usize) -> Self {
        Self { step, bytes }
    }
}

impl<S, T: Transform<S>> Transform<S> for Bounded<T> {
    type Output = T::Output;
    type Scratch = T::Scratch;

    fn scratch(&self) -> T::Scratch {
        self.step.scratch()
    }

    fn output_bytes(&self, _: &S, _: &str, _: &dyn Buffers) -> Result<Option<usize>> {
        Ok(Some(self.bytes))
    }

    fn takes_buffers(&self) -> bool {
        self.step.takes_buffers()
    }

    fn apply(
        &self,
        sample: S,
        name: &str,
        scratch: &mut T::Scratch,
        buffers: &dyn Buffers,
    ) -> Result<T::Output> {
        self.step.apply(sample, name, scratch, buffers)
    }

    fn footprint(&self, output: &T::Output) -> usize {
        self.step.footprint(output)
    }
}

/// An error of this crate stays what it is, any other gets the name of the sample.
fn failed(name: &str, cause: Cause) -> Error {
    match cause.downcast::<Error>() {
        Ok(error) => *error,
        Err(source) => Error::Transform { name: name.to_owned(), source },
    }
}
