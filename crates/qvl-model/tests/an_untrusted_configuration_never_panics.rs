//! `config.json` and `generation_config.json` come from outside: any change of any value is accepted or refused,
//! and what is accepted keeps the promises that the network builds on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{Network, Random};
use proptest::prelude::*;
use qvl_model::checkpoint::TextFile;
use qvl_model::config::{Config, GenerationConfig};
use serde_json::{Value, json};

/// Parses, whatever it is.
fn survive(text: String) {
    let file = TextFile { name: "config.json".to_owned(), text };
    let _ = GenerationConfig::parse(None, &file, common::VOCAB);
    let _ = GenerationConfig::parse(Some(&file), &file, common::VOCAB);
    let Ok(config) = Config::parse(&file) else { return };
    let (text, vision) = (&config.text, &config.vision);
    assert!(text.num_attention_heads.is_multiple_of(text.num_key_value_heads));
    assert_eq!(text.mrope_section.iter().sum::<usize>() * 2, text.head_dim);
    assert!(vision.head_dim() > 0 && vision.patch_values() > 0);
    assert_eq!(vision.head_dim() * vision.num_heads, vision.hidden_size);
    assert_eq!(vision.positions_per_side().pow(2), vision.num_position_embeddings);
    assert!(vision.deepstack_visual_indexes.iter().all(|&index| index < vision.depth));
    assert!((config.image_token_id as usize) < text.vocab_size);
    for index in 0..4 {
        let _ = text.experts_of(index);
    }
}

/// Replaces one value somewhere in the tree.
fn change(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(map) if random.below(8) > 0 => {
            let place = random.below(map.len().max(1) as u64) as usize;
            if let Some((_, inner)) = map.iter_mut().nth(place) {
                change(inner, random);
            }
        }
        Value::Array(list) if random.below(4) > 0 && !list.is_empty() => {
            let place = random.below(list.len() as u64) as usize;
            change(&mut list[place], random);
        }
        other => {
            let number = random.below(300);
            *other = match random.below(12) {
                0 => Value::Null,
                1 => json!(0),
                2 => json!(-1),
                3 => json!(u64::MAX),
                4 => json!(1u64 << 24),
                5 => json!(1.5),
                6 => json!(1e300),
                7 => json!("text"),
                8 => json!([]),
                9 => json!({}),
                10 => json!([number, number]),
                _ => json!(number),
            };
        }
    }
}

proptest! {
    #[test]
    fn with_values_replaced(seed in any::<u64>(), changes in 1usize..4, moe in any::<bool>()) {
        let mut random = Random::new(&seed.to_string());
        let mut config = if moe { Network::moe() } else { Network::dense() }.config();
        for _ in 0..changes {
            change(&mut config, &mut random);
        }
        survive(config.to_string());
    }

    #[test]
    fn with_keys_removed(seed in any::<u64>()) {
        let mut random = Random::new(&seed.to_string());
        let mut config = Network::moe().config();
        for part in ["", "/text_config", "/vision_config", "/text_config/rope_scaling"] {
            let Some(map) = config.pointer_mut(part).and_then(Value::as_object_mut) else { continue };
            if random.below(2) == 0 {
                let key = map.keys().nth(random.below(map.len() as u64) as usize).cloned();
                map.remove(&key.unwrap());
            }
        }
        survive(config.to_string());
    }

    #[test]
    fn with_characters_replaced(places in prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..4)) {
        let mut text: Vec<char> = Network::dense().config().to_string().chars().collect();
        for (place, character) in places {
            let place = place.index(text.len());
            text[place] = character;
        }
        survive(text.into_iter().collect());
    }
}
