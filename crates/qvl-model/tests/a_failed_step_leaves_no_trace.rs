//! Layers may fail to arrive in the middle of a step. The sequences of that step are then as they were before it,
//! and the step can be repeated.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Network, assert_same_bits};
use qvl_model::checkpoint::Checkpoint;
use qvl_model::decoder::{Chunk, Decoder, LogitRows};
use qvl_model::weights::{DecoderLayer, LayerSource, Resident, VisionBlock, WeightLoader};
use qvl_model::{Cpu, Error};

/// Layers of which one fails once, when it is told to.
struct FailsOnce {
    layers: Resident<Cpu>,
    at: usize,
    armed: AtomicBool,
}

impl LayerSource<Cpu> for FailsOnce {
    fn vision_block(&self, index: usize) -> qvl_model::Result<Arc<VisionBlock<Cpu>>> {
        self.layers.vision_block(index)
    }

    fn decoder_layer(&self, index: usize) -> qvl_model::Result<Arc<DecoderLayer<Cpu>>> {
        if index == self.at && self.armed.swap(false, Ordering::Relaxed) {
            return Err(Error::Io {
                path: PathBuf::from("layer"),
                source: std::io::ErrorKind::TimedOut.into(),
            });
        }
        self.layers.decoder_layer(index)
    }
}

/// Two sequences are prefilled, then step together; with `fail`, that step fails once and is repeated. Returns its
/// logits and those of one more step.
fn check(network: &Network, at: usize, fail: bool) -> Vec<f32> {
    let folder = network.folder();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let config = checkpoint.config().unwrap();
    let backend = Arc::new(Cpu::new(2).unwrap());
    let loader = WeightLoader { tensors: checkpoint.tensors(), config: &config, backend: &*backend };
    let layers =
        FailsOnce { layers: Resident::load(&loader, &|_| {}).unwrap(), at, armed: AtomicBool::new(false) };
    let decoder = Decoder::new(config.text.clone(), Arc::clone(&backend), loader.decoder_stem().unwrap());
    let (mut first, mut second) = (decoder.kv_cache(), decoder.kv_cache());
    let mut step = |ids: [&[u32]; 2], from: [u32; 2]| {
        let positions: [Vec<[u32; 3]>; 2] =
            [0, 1].map(|n| (0..ids[n].len() as u32).map(|i| [from[n] + i; 3]).collect());
        let chunk = |cache, n: usize| Chunk {
            cache,
            ids: ids[n],
            positions: &positions[n],
            visual: None,
            logits: LogitRows::All,
        };
        let result = decoder.forward(&layers, &mut [chunk(&mut first, 0), chunk(&mut second, 1)]);
        (result, [first.len(), second.len()])
    };
    step([&[5; 20], &[9, 8, 7]], [0, 0]).0.unwrap();
    if fail {
        layers.armed.store(true, Ordering::Relaxed);
        let (result, lengths) = step([&[1], &[2, 3, 4, 5]], [20, 3]);
        assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
        assert_eq!(lengths, [20, 3]);
    }
    let (logits, lengths) = step([&[1], &[2, 3, 4, 5]], [20, 3]);
    assert_eq!(lengths, [21, 7]);
    let mut all = logits.unwrap();
    all.extend(step([&[6, 6], &[7]], [21, 7]).0.unwrap());
    all
}

#[test]
fn whichever_layer_fails() {
    for network in [Network::dense(), Network::moe()] {
        let expected = check(&network, 0, false);
        for at in 0..common::LAYERS {
            assert_same_bits(&format!("failed at layer {at}"), &check(&network, at, true), &expected);
        }
    }
}
