//! What there is of `amx.rs` on architectures without tiles: a proof that cannot be had.

#![allow(dead_code, reason = "what only a CPU with tiles reads")]

use std::convert::Infallible;

use super::isa::Isa;

/// Proof that this CPU has AMX; nothing else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(Infallible);

impl Amx {
    pub(super) fn of(_: Isa) -> Option<Self> {
        None
    }
}

pub(super) mod floats {
    use std::ops::Range;

    use super::Amx;
    use crate::backend::mat::Values;

    pub(in crate::backend::cpu) const CHUNK_INPUTS: usize = 0;

    pub(in crate::backend::cpu) struct TileProduct<'a> {
        pub(in crate::backend::cpu) x: &'a [u32],
        pub(in crate::backend::cpu) x_rows: usize,
        pub(in crate::backend::cpu) rows: Range<usize>,
        pub(in crate::backend::cpu) w: &'a [u8],
        pub(in crate::backend::cpu) w_rows: usize,
        pub(in crate::backend::cpu) k: usize,
        pub(in crate::backend::cpu) out: &'a mut [f32],
        pub(in crate::backend::cpu) out_stride: usize,
        pub(in crate::backend::cpu) room: &'a mut Values,
    }

    pub(in crate::backend::cpu) fn packed_len(_: usize, _: usize) -> usize {
        0
    }

    pub(in crate::backend::cpu) fn pack_rows(rows: usize) -> usize {
        rows
    }

    pub(in crate::backend::cpu) fn pack(amx: Amx, _: &[f32], _: usize, _: usize, _: usize, _: &mut [u32]) {
        match amx.0 {}
    }

    pub(in crate::backend::cpu) fn product(amx: Amx, _: &mut TileProduct<'_>) {
        match amx.0 {}
    }
}

pub(super) mod attention {
    use super::Amx;
    use crate::backend::mat::Values;

    pub(in crate::backend::cpu) const DEPTH_MAX: usize = 0;

    #[derive(Clone, Copy, Debug)]
    pub(in crate::backend::cpu) struct PageShape;

    impl PageShape {
        pub(in crate::backend::cpu) fn new(_: usize) -> Self {
            Self
        }

        pub(in crate::backend::cpu) fn pairs(self) -> usize {
            0
        }
    }

    pub(in crate::backend::cpu) struct Attend<'a> {
        pub(in crate::backend::cpu) shape: PageShape,
        pub(in crate::backend::cpu) queries: &'a [f32],
        pub(in crate::backend::cpu) scale: f32,
        pub(in crate::backend::cpu) pages: &'a [Values],
        pub(in crate::backend::cpu) visible: &'a [usize],
        pub(in crate::backend::cpu) mixed: &'a mut [f32],
    }

    pub(in crate::backend::cpu) fn push(
        amx: Amx,
        _: PageShape,
        _: [&[f32]; 2],
        _: usize,
        _: usize,
        _: usize,
        _: &mut [f32],
    ) {
        match amx.0 {}
    }

    pub(in crate::backend::cpu) fn forget(_: PageShape, _: usize, _: &mut [f32]) {
        unreachable!("no page was made")
    }

    pub(in crate::backend::cpu) fn attend(amx: Amx, _: &mut Attend<'_>) {
        match amx.0 {}
    }
}

pub(super) mod bytes {
    use super::super::panel_dots::Product;
    use super::Amx;

    pub(in crate::backend::cpu) fn product(amx: Amx, _: &mut Product<'_>) {
        match amx.0 {}
    }
}
