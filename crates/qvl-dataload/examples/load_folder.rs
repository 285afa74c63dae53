//! Loads a folder of pictures as batches, ahead of a consumer that does nothing with them:
//!
//!     cargo run --release --example load_folder -- FOLDER [WORKERS]
//!
//! Stop it with Ctrl-C and start it again: it goes on where it was, from the file `load_folder.state`.

use std::error::Error;
use std::fs;
use std::io::Write;

use qvl_dataload::vision::ProcessorConfig;
use qvl_dataload::{DataLoader, Files, OnError, Patchify, Shuffle};

const STATE: &str = "load_folder.state";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("which folder? load_folder FOLDER [WORKERS]")?;
    let files = Files::folder(&folder)?;
    let mut builder = DataLoader::builder(files)
        .transform(Patchify::<f32>::new(ProcessorConfig::default()).content_hash(true))
        .shuffle(Shuffle::All { seed: 42 })
        .batch_size(8)
        .on_error(OnError::SKIP);
    if let Some(workers) = arguments.next() {
        builder = builder.workers(workers.parse()?);
    }
    if let Ok(text) = fs::read_to_string(STATE) {
        builder = builder.resume(serde_json::from_str(&text)?);
    }
    let mut loader = builder.build()?;
    let mut out = std::io::stdout().lock();
    for batch in &mut loader {
        let batch = batch?;
        for picture in &batch {
            let hash = picture.content_hash.map(|hash| hash.to_string()).unwrap_or_default();
            writeln!(
                out,
                "{}: {}x{} patches, {}",
                picture.name,
                picture.grid.w,
                picture.grid.h,
                &hash[..16]
            )?;
        }
        fs::write(STATE, serde_json::to_string(&batch.state)?)?;
    }
    let _ = fs::remove_file(STATE);
    writeln!(out, "{}", loader.stats())?;
    Ok(())
}
