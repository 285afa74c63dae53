//! Products in tiles (Intel AMX): what is the same for bfloat16 and for bytes.
//!
//! A tile is a register of 16 rows of 64 bytes. An instruction multiplies one with another and adds the products
//! to a third, 16 x 16 results of four bytes: for bfloat16 the products of 32 inputs, those at even and those at
//! odd places each summed in ascending order with fused instructions, the two sums added, then added to the
//! result. Neither the rows beside a row, nor which operand is called the first, change a bit of that.

#![expect(unsafe_code, reason = "tiles have no safe instructions: neither loads nor stores know a slice")]

pub(super) mod attention;
pub(super) mod bytes;
pub(super) mod floats;

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::isa::{Isa, Level};

/// Rows of a tile.
pub(super) const TILE: usize = 16;

/// Bytes of a row of a tile.
pub(super) const TILE_BYTES: usize = 64;

/// Proof that this CPU has AMX, and that the system lets this process use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(());

impl Amx {
    /// The proof, at the level that has it.
    pub(super) fn of(isa: Isa) -> Option<Self> {
        (isa.level() == Level::Amx).then_some(Self(()))
    }

    /// Gives this thread's tiles their shapes until the result is dropped.
    ///
    /// Tiles 0 to 3 are results, `rows` x `columns`; 4 and 5 first operands, `rows` rows of `depth` bytes;
    /// 6 and 7 second ones, `depth / 4` rows of `columns` times four bytes.
    pub(super) fn shapes(self, rows: usize, columns: usize, depth: usize) -> Shaped {
        assert!((1..=TILE).contains(&rows) && (1..=TILE).contains(&columns), "tiles of {rows} x {columns}");
        assert!(depth.is_multiple_of(4) && (4..=TILE_BYTES).contains(&depth), "tiles {depth} bytes deep");
        let mut shapes = Shapes { palette: 1, ..Shapes::default() };
        for tile in 0..8 {
            let (height, width) = match tile {
                0..4 => (rows, 4 * columns),
                4 | 5 => (rows, depth),
                _ => (depth / 4, 4 * columns),
            };
            (shapes.rows[tile], shapes.row_bytes[tile]) = (height as u8, width as u16);
        }
        // SAFETY: `self` proves that there is AMX; the shapes are within a tile's, as was just asserted.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        Shaped(())
    }
}

/// The tiles of this thread have shapes.
#[derive(Debug)]
pub(super) struct Shaped(());

impl Drop for Shaped {
    fn drop(&mut self) {
        // SAFETY: only a thread that has AMX has one of these.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// What `ldtilecfg` reads.
#[derive(Default)]
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Whether there is AMX for bytes and bfloat16, and the system lets this process use it: Linux has to be asked
/// once for the room that a thread's tiles take when it is interrupted.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        /// In EDX of CPUID leaf 7: AMX-BF16, AMX-TILE, AMX-INT8.
        const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & AMX != AMX {
            return false;
        }
        permitted()
    })
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: the call takes two integers and changes nothing but what this process may use. The kernel keeps
    // all registers but these three. One that does not know the call says so.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

/// How other systems are asked is not known here.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Sixteen vectors of sixteen values, rows and columns exchanged.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Each with one column of four rows in each quarter.
    let mut fours = pairs;
    for i in 0..4 {
        let at = 4 * i;
        fours[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    let mut columns = fours;
    for i in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(fours[i], fours[4 + i]);
        let high = _mm512_shuffle_i32x4::<0xdd>(fours[i], fours[4 + i]);
        let low_behind = _mm512_shuffle_i32x4::<0x88>(fours[8 + i], fours[12 + i]);
        let high_behind = _mm512_shuffle_i32x4::<0xdd>(fours[8 + i], fours[12 + i]);
        columns[i] = _mm512_shuffle_i32x4::<0x88>(low, low_behind);
        columns[8 + i] = _mm512_shuffle_i32x4::<0xdd>(low, low_behind);
        columns[4 + i] = _mm512_shuffle_i32x4::<0x88>(high, high_behind);
        columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(high, high_behind);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        if !Isa::available().iter().any(|isa| isa.name() == "avx512") {
            return;
        }
        #[target_feature(enable = "avx512f")]
        fn run() -> [[i32; 16]; 16] {
            let rows = std::array::from_fn(|row| {
                let values: [i32; 16] = std::array::from_fn(|column| (100 * row + column) as i32);
                // SAFETY: sixteen values lie there.
                unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
            });
            transposed(rows).map(|column| {
                let mut values = [0; 16];
                // SAFETY: there is room for sixteen values.
                unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), column) };
                values
            })
        }
        // SAFETY: AVX-512F was detected.
        let columns = unsafe { run() };
        for (column, values) in columns.iter().enumerate() {
            for (row, &value) in values.iter().enumerate() {
                assert_eq!(value, (100 * row + column) as i32);
            }
        }
    }
}
