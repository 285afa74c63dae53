//! What a byte of a picture is worth to the model: rescaled, normalised, and in the type of the caller's buffer.
//!
//! A byte has 256 values, so this is a table of 256 a channel, computed in the reference's own order of operations. The
//! two processors differ in the last bit:
//!
//! - stills (NumPy): `(f32(x * scale in f64) - mean) / std` in f32
//! - video frames (torch): `(f32(x) - mean * (1 / scale)) / (std * (1 / scale))` in f32
//!
//! Vector code that looks up tables is slow, so there is a formula beside the table. It is used where it gives the same
//! bits for all 256 bytes of all three channels, which is tried out when the table is made; it did for every setting
//! tried so far.

use half::bf16;

use crate::vision::kernels::{Isa, Patch};
use crate::vision::{ImageConfig, VideoConfig};

/// A type that patches can be made of: `f32`, bit for bit as the reference, or [`half::bf16`], the same rounded to the
/// nearest, half to even. Sealed.
pub trait PatchValue: sealed::Sealed + Copy + Default + PartialEq + Send + Sync + 'static {}

impl PatchValue for f32 {}
impl PatchValue for bf16 {}

pub(crate) mod sealed {
    use super::{Isa, Patch, Values, ValuesOf, bf16};

    /// What this crate needs of a type of values.
    pub trait Sealed: Sized + bytemuck::Pod {
        /// Rounds to this type.
        fn from_f32(value: f32) -> Self;

        /// The bits, widened.
        fn bits(self) -> u32;

        /// The place for values of this type among those that are kept.
        #[expect(private_interfaces, reason = "the trait is sealed, and this is why")]
        fn slot(kept: &mut ValuesOf) -> &mut Option<Box<Values<Self>>>;

        /// Cuts one patch in vectors; `false` if this CPU has none.
        #[expect(private_interfaces, reason = "the trait is sealed, and this is why")]
        fn cut(isa: Isa, patch: Patch<'_>, values: &Values<Self>, out: &mut [Self]) -> bool;
    }

    #[expect(private_interfaces, reason = "the trait is sealed, and this is why")]
    impl Sealed for f32 {
        fn from_f32(value: f32) -> Self {
            value
        }

        fn bits(self) -> u32 {
            self.to_bits()
        }

        fn slot(kept: &mut ValuesOf) -> &mut Option<Box<Values<Self>>> {
            &mut kept.f32
        }

        fn cut(isa: Isa, patch: Patch<'_>, values: &Values<Self>, out: &mut [Self]) -> bool {
            isa.patch_f32(patch, values.formula.as_ref(), out)
        }
    }

    #[expect(private_interfaces, reason = "the trait is sealed, and this is why")]
    impl Sealed for bf16 {
        fn from_f32(value: f32) -> Self {
            Self::from_f32(value)
        }

        fn bits(self) -> u32 {
            u32::from(self.to_bits())
        }

        fn slot(kept: &mut ValuesOf) -> &mut Option<Box<Values<Self>>> {
            &mut kept.bf16
        }

        fn cut(isa: Isa, patch: Patch<'_>, values: &Values<Self>, out: &mut [Self]) -> bool {
            isa.patch_bf16(patch, values.formula.as_ref(), out)
        }
    }
}

/// The settings that values depend on, and which processor's order of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    pub(crate) video: bool,
    pub(crate) rescale: Option<f64>,
    /// Mean and deviation of R, G, B.
    pub(crate) normalize: Option<([f64; 3], [f64; 3])>,
}

impl Scale {
    pub(crate) fn of_image(config: &ImageConfig) -> Self {
        Self {
            video: false,
            rescale: config.do_rescale.then_some(config.rescale_factor),
            normalize: config.do_normalize.then_some((config.image_mean, config.image_std)),
        }
    }

    pub(crate) fn of_video(config: &VideoConfig) -> Self {
        Self {
            video: true,
            rescale: config.do_rescale.then_some(config.rescale_factor),
            normalize: config.do_normalize.then_some((config.image_mean, config.image_std)),
        }
    }

    /// The definition.
    fn value(&self, byte: u8, channel: usize) -> f32 {
        match (self.video, self.normalize) {
            // Fused by the reference: the mean and the deviation are scaled, not the pixels.
            (true, Some((mean, std))) => {
                let unscale = self.rescale.map_or(1.0, |factor| (1.0 / factor) as f32);
                (f32::from(byte) - mean[channel] as f32 * unscale) / (std[channel] as f32 * unscale)
            }
            (true, None) => f32::from(byte) * self.rescale.map_or(1.0, |factor| factor as f32),
            (false, normalize) => {
                let value = self.rescale.map_or(f32::from(byte), |factor| (f64::from(byte) * factor) as f32);
                normalize.map_or(value, |(mean, std)| (value - mean[channel] as f32) / std[channel] as f32)
            }
        }
    }

    /// The formula that should give the same.
    fn formula(&self) -> Formula {
        let (high, low) = match (self.video, self.normalize, self.rescale) {
            (true, Some(_), _) | (_, _, None) => (1.0, 0.0),
            (true, None, Some(factor)) => (factor as f32, 0.0),
            // What f32 cannot hold of the factor counts in the last bit of a product in f64.
            (false, _, Some(factor)) => (factor as f32, (factor - f64::from(factor as f32)) as f32),
        };
        let unscale = if self.video { self.rescale.map_or(1.0, |factor| (1.0 / factor) as f32) } else { 1.0 };
        let (mean, std) = self.normalize.map_or(([0.0; 3], [1.0; 3]), |(mean, std)| {
            (mean.map(|m| m as f32 * unscale), std.map(|s| s as f32 * unscale))
        });
        Formula { high, low, mean, std }
    }
}

/// `(fma(x, high, x * low) - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Formula {
    pub(crate) high: f32,
    pub(crate) low: f32,
    pub(crate) mean: [f32; 3],
    pub(crate) std: [f32; 3],
}

/// The value of every byte, for each channel.
#[derive(Debug)]
pub(crate) struct Values<V> {
    scale: Scale,
    pub(crate) table: [[V; 256]; 3],
    /// Absent if it differs from the table anywhere, or this CPU has no vectors.
    pub(crate) formula: Option<Formula>,
}

impl<V: PatchValue> Values<V> {
    pub(crate) fn new(isa: Isa, scale: Scale) -> Self {
        let table = std::array::from_fn(|channel| {
            std::array::from_fn(|byte| V::from_f32(scale.value(byte as u8, channel)))
        });
        let mut values = Self { scale, table, formula: Some(scale.formula()) };
        values.formula = values.formula.filter(|_| values.formula_holds(isa));
        values
    }

    /// Whether a patch of all bytes comes out as the table says.
    fn formula_holds(&self, isa: Isa) -> bool {
        let rgb: Vec<u8> = (0..=255).flat_map(|byte| [byte; 3]).collect();
        let mut out = vec![V::default(); 3 * 256];
        let patch = Patch { rgb: &rgb, stride: 48, side: 16, temporal: 1, places: (0, 1), stream: false };
        V::cut(isa, patch, self, &mut out)
            && self.table.iter().flatten().zip(&out).all(|(table, got)| table.bits() == got.bits())
    }
}

/// Values that are kept from one picture to the next.
#[derive(Debug, Default)]
pub(crate) struct ValuesOf {
    pub(crate) f32: Option<Box<Values<f32>>>,
    pub(crate) bf16: Option<Box<Values<bf16>>>,
}

impl ValuesOf {
    /// Those for these settings, made if the ones that are kept are for others.
    pub(crate) fn get<V: PatchValue>(&mut self, isa: Isa, scale: Scale) -> &Values<V> {
        let slot = V::slot(self);
        match slot.take().filter(|kept| kept.scale == scale) {
            Some(kept) => slot.insert(kept),
            None => slot.insert(Box::new(Values::new(isa, scale))),
        }
    }

    /// Memory it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.f32.as_ref().map_or(0, |_| size_of::<Values<f32>>())
            + self.bf16.as_ref().map_or(0, |_| size_of::<Values<bf16>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scales() -> Vec<Scale> {
        let clip = ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);
        let mut scales = Vec::new();
        for video in [false, true] {
            for rescale in [None, Some(1.0 / 255.0), Some(0.5), Some(0.003_921), Some(1.0 / 127.5)] {
                for normalize in
                    [None, Some(([0.5; 3], [0.5; 3])), Some(clip), Some(([0.0; 3], [3.0, 1.0, 0.7]))]
                {
                    scales.push(Scale { video, rescale, normalize });
                }
            }
        }
        scales
    }

    /// Falling back to the table would be right and slow; the published settings at least must not.
    #[test]
    fn the_formula_holds_for_ordinary_settings() {
        for isa in Isa::available() {
            let vectors = isa.cut().is_some();
            for scale in scales() {
                assert_eq!(Values::<f32>::new(isa, scale).formula.is_some(), vectors, "{isa:?} {scale:?}");
                assert_eq!(Values::<bf16>::new(isa, scale).formula.is_some(), vectors, "{isa:?} {scale:?}");
            }
        }
    }

    /// Infinity minus infinity has bits that nobody promises, and so has a sum that loses the second part of a factor.
    #[test]
    fn the_table_stands_in_for_a_formula_that_differs() {
        let isa = Isa::detect();
        let scale = Scale { video: false, rescale: Some(1e300), normalize: Some(([1e300; 3], [1.0; 3])) };
        let values = Values::<f32>::new(isa, scale);
        assert!(values.formula.is_none());
    }

    #[test]
    fn values_are_kept_for_the_same_settings_only() {
        let (isa, scales) = (Isa::detect(), scales());
        let mut kept = ValuesOf::default();
        for scale in [scales[3], scales[3], scales[5]] {
            assert_eq!(kept.get::<f32>(isa, scale).scale, scale);
        }
        assert_eq!(kept.bytes(), size_of::<Values<f32>>());
    }
}
