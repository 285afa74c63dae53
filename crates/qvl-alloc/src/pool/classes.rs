//! Which block an allocation gets: four sizes for each doubling. Pure.
//!
//! All sizes are multiples of [`GRAIN_BYTES`], so blocks in a row are all aligned to it. Up to four grains a block
//! wastes less than a grain; above, a block has less than a quarter more than what was asked for, and a grain.

/// What all lengths and addresses are multiples of.
pub(crate) const GRAIN_BYTES: usize = 64;

/// What slabs are aligned to, and so the most that a block can be aligned to.
pub(crate) const SLAB_ALIGN: usize = 4096;

/// The largest block there is.
pub(crate) const BLOCK_BYTES_MAX: usize = 1 << 20;

/// Classes up to the largest block.
pub(crate) const CLASSES: usize = class_of(BLOCK_BYTES_MAX) + 1;

const SMALL_SLAB_BYTES: usize = 64 << 10;
const MEDIUM_SLAB_BYTES: usize = 2 << 20;

/// The smallest class whose blocks have so many bytes.
#[inline]
pub(crate) const fn class_of(bytes: usize) -> usize {
    let grains = if bytes == 0 { 1 } else { bytes.div_ceil(GRAIN_BYTES) };
    if grains <= 4 {
        return grains - 1;
    }
    let doubling = (grains - 1).ilog2() as usize;
    let step = ((grains - 1) >> (doubling - 2)) - 4;
    4 + (doubling - 2) * 4 + step
}

/// Bytes of a block of a class.
#[inline]
pub(crate) const fn block_bytes(class: usize) -> usize {
    if class < 4 {
        return (class + 1) * GRAIN_BYTES;
    }
    let (doubling, step) = ((class - 4) / 4, (class - 4) % 4);
    ((5 + step) << doubling) * GRAIN_BYTES
}

/// The smallest class whose blocks have so many bytes and lie at multiples of `align`, a power of two; `None` if no
/// block of up to `bytes_max` does.
#[inline]
pub(crate) fn class_for(bytes: usize, align: usize, bytes_max: usize) -> Option<usize> {
    if bytes > bytes_max.min(BLOCK_BYTES_MAX) || align > SLAB_ALIGN {
        return None;
    }
    let mut class = class_of(bytes.max(align));
    // A power of two is among any four classes in a row, and it is aligned to itself.
    while !is_aligned(class, align) {
        class += 1;
    }
    (block_bytes(class) <= bytes_max.min(BLOCK_BYTES_MAX)).then_some(class)
}

/// Whether all blocks of a class lie at multiples of `align`.
#[inline]
pub(crate) fn is_aligned(class: usize, align: usize) -> bool {
    // A mask: a division is a third of what an allocation may take.
    align <= SLAB_ALIGN && block_bytes(class) & (align - 1) == 0
}

/// Blocks in a slab of a class: no more than fit in 64 KiB for small ones, or in 2 MiB.
pub(crate) fn slab_blocks(class: usize, small_bytes_max: usize) -> usize {
    let block = block_bytes(class);
    let small = block <= small_bytes_max && block <= SMALL_SLAB_BYTES / 8;
    (if small { SMALL_SLAB_BYTES } else { MEDIUM_SLAB_BYTES }) / block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_the_smallest_that_is_enough() {
        for bytes in 0..=BLOCK_BYTES_MAX {
            let class = class_of(bytes);
            assert!(block_bytes(class) >= bytes, "{bytes}");
            assert!(class == 0 || block_bytes(class - 1) < bytes, "{bytes}");
        }
        assert_eq!(block_bytes(CLASSES - 1), BLOCK_BYTES_MAX);
    }

    #[test]
    fn waste_is_bounded() {
        for bytes in 1..=BLOCK_BYTES_MAX {
            let waste = block_bytes(class_of(bytes)) - bytes;
            assert!(waste < GRAIN_BYTES + bytes / 4, "{bytes} bytes waste {waste}");
        }
    }

    #[test]
    fn blocks_are_aligned_as_asked_for() {
        for align in (0..=22).map(|power| 1 << power) {
            for bytes in (1..5000).chain([8191, 8192, 8193, 100_000, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 1]) {
                match class_for(bytes, align, BLOCK_BYTES_MAX) {
                    Some(class) => {
                        assert!(block_bytes(class) >= bytes && block_bytes(class).is_multiple_of(align));
                        assert!(align <= SLAB_ALIGN);
                    }
                    None => assert!(align > SLAB_ALIGN || bytes > BLOCK_BYTES_MAX, "{bytes} at {align}"),
                }
            }
        }
    }

    #[test]
    fn slabs_have_several_blocks() {
        for class in 0..CLASSES {
            let blocks = slab_blocks(class, 8192);
            assert!((2..=1024).contains(&blocks), "class {class} has {blocks}");
        }
    }
}
