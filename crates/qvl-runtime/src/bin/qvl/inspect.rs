//! `qvl inspect`

use std::io::Write;
use std::path::PathBuf;

use qvl_runtime::inspect;

use crate::output::{self, BOLD, DIM, Failure, thousands};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Checkpoint folder, or the .gguf file of a language model [default: the embedded checkpoint].
    #[arg(value_name = "DIR|FILE.gguf")]
    path: Option<PathBuf>,
    /// The vision tower of a .gguf file [default: the one mmproj*.gguf beside it].
    #[arg(long, value_name = "FILE.gguf", requires = "path")]
    mmproj: Option<PathBuf>,
    /// Quote a picture of this size; may be given several times.
    #[arg(long = "size", value_name = "WxH", value_parser = parse_size,
          default_values = ["224x224", "640x480", "1280x720", "1920x1080", "4032x3024"])]
    sizes: Vec<(u32, u32)>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let (width, height) = text.split_once(['x', 'X']).ok_or("expected width x height, as in 1280x720")?;
    let side = |text: &str| match text.parse() {
        Ok(side @ 1..) => Ok(side),
        _ => Err(format!("{text:?} is not a number of pixels")),
    };
    Ok((side(width)?, side(height)?))
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let report = inspect::inspect(args.path.as_deref(), args.mmproj.as_deref(), &args.sizes)?;
    if args.json {
        output::json(&report)?;
        return Ok(());
    }
    let mut out = anstream::stdout().lock();
    let stored: Vec<String> =
        report.tensors.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    writeln!(out, "{BOLD}{}{BOLD:#}", report.name)?;
    writeln!(out, "  family       {}", report.family)?;
    writeln!(
        out,
        "  parameters   {} (vision tower {}, embeddings and head {})",
        thousands(report.parameters),
        thousands(report.vision_parameters),
        thousands(report.embedding_parameters)
    )?;
    writeln!(
        out,
        "  weights      {} bytes in {} file{}, tensors: {}",
        thousands(report.weight_bytes),
        report.files,
        if report.files == 1 { "" } else { "s" },
        stored.join(", ")
    )?;
    let decoder = &report.decoder;
    writeln!(
        out,
        "  decoder      {} layers, width {}, {} query and {} KV heads of {}, MLP {}, head {}, M-RoPE {:?}",
        decoder.layers,
        decoder.hidden_size,
        decoder.heads,
        decoder.kv_heads,
        decoder.head_dim,
        decoder.mlp,
        if decoder.tied_head { "tied" } else { "of its own" },
        decoder.mrope_section
    )?;
    let vision = &report.vision;
    writeln!(
        out,
        "  vision       {} blocks, width {}, {} heads, MLP {}, patch {}, DeepStack at {:?}",
        vision.blocks, vision.hidden_size, vision.heads, vision.mlp, vision.patch_size, vision.deepstack
    )?;
    writeln!(out, "  vocabulary   {} ids", thousands(report.vocab_size as u64))?;
    writeln!(
        out,
        "  context      {} tokens, {} bytes of keys and values each",
        thousands(report.context as u64),
        thousands(report.kv_bytes_per_token as u64)
    )?;
    for quote in &report.image_tokens {
        writeln!(
            out,
            "  a picture    of {} x {} is resized to {} x {}: {BOLD}{} tokens{BOLD:#}",
            quote.width,
            quote.height,
            quote.resized_width,
            quote.resized_height,
            thousands(quote.tokens as u64)
        )?;
    }
    writeln!(anstream::stderr(), "{DIM}no weight was read, only the headers{DIM:#}")?;
    Ok(())
}
