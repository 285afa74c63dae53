//! Which experts a token goes through, and with what weight.

/// The `top_k` experts of one token, most probable first, with weights that sum to 1.
///
/// `logits`: one per expert. `softmax` over all of them, the `top_k` largest kept (the lower index wins a
/// tie), divided by their sum.
///
/// Source: docs/model.md, "Mixture of experts" (transformers, `Qwen3VLMoeTextTopKRouter`).
pub fn route(logits: &[f32], top_k: usize) -> Vec<(usize, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut chosen: Vec<(usize, f32)> = logits.iter().map(|&logit| (logit - max).exp()).enumerate().collect();
    chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    chosen.truncate(top_k);
    let sum: f32 = chosen.iter().map(|&(_, weight)| weight).sum();
    for (_, weight) in &mut chosen {
        *weight /= sum;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::route;

    #[test]
    fn the_most_probable_experts_win_and_their_weights_sum_to_one() {
        let chosen = route(&[0.0, 2.0, -1.0, 2.0, 1.0], 3);
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert!((chosen.iter().map(|c| c.1).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((chosen[0].1 / chosen[2].1 - 1f32.exp()).abs() < 1e-5);
    }
}
