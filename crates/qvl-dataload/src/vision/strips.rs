//! Resize, rescale, normalise and patchify in one go: a picture goes through as strips, each one line of patches high.
//!
//! A strip of the resized picture is cut up while it is in the cache, so that nothing of the size of a picture is
//! written but the patches themselves.

use std::ops::Range;

use crate::Result;
use crate::vision::kernels::Isa;
use crate::vision::patchify::{Layout, patchify};
use crate::vision::resize::rows::{Key, Plan, Rows, Scratch};
use crate::vision::values::{PatchValue, Scale, ValuesOf};

/// Patches of this many bytes and more are stored past the caches: no laptop's cache would keep them until they are
/// read.
const STREAM_BYTES: usize = 16 << 20;

/// What is to be done to a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) key: Key,
    pub(crate) layout: Layout,
    pub(crate) scale: Scale,
}

/// Tables and memory that are worth keeping from one picture to the next.
#[derive(Debug, Default)]
pub(crate) struct Strips {
    /// For the sizes of the last picture.
    plan: Option<Plan>,
    scratch: Scratch,
    /// `[patch, width, 3]` bytes of the resized picture.
    strip: Vec<u8>,
    values: ValuesOf,
}

impl Strips {
    /// Whether patches for this buffer are stored past the caches.
    pub(crate) fn stream<V>(out: &[V]) -> bool {
        size_of_val(out) >= STREAM_BYTES
    }

    /// Memory it holds.
    pub(crate) fn bytes(&self) -> usize {
        let plan = self.plan.as_ref().map_or(0, Plan::bytes);
        plan + self.scratch.bytes() + self.strip.capacity() + self.values.bytes()
    }

    /// One frame to its places in a temporal patch.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Rows::new`], before anything is written.
    pub(crate) fn cut<V: PatchValue>(
        &mut self,
        task: Task,
        rgb: &[u8],
        places: Range<usize>,
        stream: bool,
        out: &mut [V],
    ) -> Result<()> {
        let Task { key, layout, scale } = task;
        let isa = Isa::detect();
        let plan = match self.plan.take().filter(|plan| plan.key() == key) {
            Some(plan) => self.plan.insert(plan),
            None => self.plan.insert(Plan::new(isa, key)?),
        };
        let mut rows = Rows::new(plan, rgb, &mut self.scratch)?;
        let values = self.values.get(isa, scale);
        if plan.is_copy() {
            for (y, line) in rgb.chunks_exact(layout.line_len()).enumerate() {
                patchify(isa, line, layout, y, places.clone(), values, stream, out);
            }
            return Ok(());
        }
        self.strip.resize(layout.line_len(), 0);
        for y in 0..layout.grid_h {
            rows.fill(&mut self.strip);
            patchify(isa, &self.strip, layout, y, places.clone(), values, stream, out);
        }
        Ok(())
    }
}
