//! Encodes f32 values into a block format.
//!
//!     cargo run --release -p qvl-model --example encode_blocks -- Q4_K < values > blocks
//!
//! Both are little-endian; the values must be whole blocks. `xtask/python/make_gguf.py` uses it for the formats
//! that the Python package `gguf` only decodes.

use std::io::{Read, Write};

use qvl_model::quant::BlockFormat;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("usage: encode_blocks FORMAT < values > blocks")?;
    let format = BlockFormat::ALL.into_iter().find(|format| format.name() == name);
    let format = format.ok_or_else(|| format!("no format {name:?}; there are {:?}", BlockFormat::ALL))?;
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let (values, rest) = bytes.as_chunks();
    let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let size = format.bytes_of(values.len()).filter(|_| rest.is_empty());
    let mut blocks = vec![0; size.ok_or("the values are not whole blocks")?];
    format.quantize(&values, &mut blocks)?;
    std::io::stdout().write_all(&blocks)?;
    Ok(())
}
