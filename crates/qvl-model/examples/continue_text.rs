//! Continues a text with a checkpoint and shows the most probable next tokens.
//!
//!     cargo run --release --example continue_text -- DIR "Once upon a time"
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use qvl_model::decoder::LogitRows;
use qvl_model::{Cpu, GenerateOptions, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(text)) = (args.next(), args.next()) else {
        return Err("usage: continue_text DIR TEXT".into());
    };
    let model = Model::open(dir, Cpu::new(0)?)?;
    let prompt = model.prompt_from_text(&text, Vec::new())?;

    let logits = model.prefill(&mut model.kv_cache(), &prompt, None, 0, LogitRows::Last)?;
    let mut ranked: Vec<(usize, f32)> = logits.into_iter().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (id, logit) in ranked.into_iter().take(5) {
        println!("{logit:>8.3}  {:?}", model.tokenizer().decode(&[id as u32]));
    }

    let options = GenerateOptions { max_new_tokens: 32, ..GenerateOptions::default() };
    print!("{text}");
    for token in model.generate(&prompt, &options)? {
        print!("{}", token?.text);
    }
    println!();
    Ok(())
}
