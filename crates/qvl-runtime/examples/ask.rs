//! Asks the embedded checkpoint about pictures.
//!
//!     cargo run --release --example ask -- crates/qvl-runtime/assets/samples/count-1.png
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use std::ops::ControlFlow;

use qvl_runtime::qvl_model::GenerateOptions;
use qvl_runtime::{Conversation, Engine};

fn main() -> qvl_runtime::Result<()> {
    let engine = Engine::embedded(0)?;
    for picture in std::env::args().skip(1) {
        for question in ["Read the number.", "Describe the image.", "How many shapes are there?"] {
            let conversation = Conversation::question([&picture], question);
            let options = GenerateOptions { max_new_tokens: 32, ..GenerateOptions::default() };
            let answer = engine.answer(&conversation, &options, |_| ControlFlow::Continue(()))?;
            println!("{picture}: {question} {}", answer.text);
        }
    }
    Ok(())
}
