//! A folder of drawn photographs, made once: the same files on every machine.
//!
//!     DIR/photographs/000000.jpg ...   as many as asked for
//!     DIR/12mp.jpg, DIR/12mp.rgb       one of 4032 x 3024 pixels, as a JPEG and before it became one
//!     DIR/manifest.json                what each of them is; written last

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::drawing::{Drawing, Fields, VERSION};
use crate::emit;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to write; files of an earlier call with the same seed stay.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Photographs.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    count: u64,
    /// The same seed gives the same bytes.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Threads; 0 takes all cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// Width and height of the one large picture: 12 megapixels.
pub(crate) const LARGE: (u32, u32) = (4032, 3024);

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.count > 0, "--count 0: nothing to write");
    let folder = args.out.join("photographs");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let manifest = args.out.join("manifest.json");
    let known = known(&manifest, args.seed);
    let missing: Vec<u64> = (0..args.count).filter(|&index| !is_there(&folder, &known, index)).collect();
    let large = args.out.join("12mp.jpg");
    let is_whole = missing.is_empty() && known.len() as u64 >= args.count;
    if !(is_whole && large.is_file() && args.out.join("12mp.rgb").is_file()) {
        let fields = Fields::new(args.seed);
        let drawing = Drawing::camera(args.seed, LARGE.0, LARGE.1);
        let rgb = fields.draw(&drawing);
        write(&large, &drawing.jpeg(&rgb)?)?;
        write(&args.out.join("12mp.rgb"), &rgb)?;
        let mut all = known;
        all.resize(all.len().max(args.count as usize), Value::Null);
        for (index, entry) in draw(args, &fields, &folder, &missing)? {
            all[index as usize] = entry;
        }
        save(&manifest, args.seed, &all)?;
        return report(&all[..args.count as usize], missing.len());
    }
    report(&known[..args.count as usize], 0)
}

/// What the manifest says of each picture; nothing if it is of another seed or another version.
fn known(manifest: &Path, seed: u64) -> Vec<Value> {
    let text = std::fs::read_to_string(manifest).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    if value["version"] != VERSION || value["seed"] != seed {
        return Vec::new();
    }
    value["pictures"].as_array().cloned().unwrap_or_default()
}

fn is_there(folder: &Path, known: &[Value], index: u64) -> bool {
    let bytes = known.get(index as usize).and_then(|entry| entry["bytes"].as_u64());
    let length = std::fs::metadata(folder.join(file_name(index))).map(|data| data.len()).ok();
    bytes.is_some() && bytes == length
}

fn file_name(index: u64) -> String {
    format!("{index:06}.jpg")
}

/// Draws and writes these pictures on all threads; what each became, in any order.
fn draw(args: &Args, fields: &Fields, folder: &Path, indices: &[u64]) -> Result<Vec<(u64, Value)>> {
    let threads = match args.threads {
        0 => std::thread::available_parallelism()?.get(),
        threads => threads,
    };
    let (next, done) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        while let Some(&index) = indices.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let drawing = Drawing::nth(args.seed, index);
            let jpeg = drawing.jpeg(&fields.draw(&drawing))?;
            write(&folder.join(file_name(index)), &jpeg)?;
            let entry = json!({
                "file": file_name(index),
                "width": drawing.width,
                "height": drawing.height,
                "quality": drawing.quality,
                "chroma": drawing.chroma.name(),
                "bytes": jpeg.len(),
            });
            done.lock().map_err(|_| anyhow::anyhow!("another thread panicked"))?.push((index, entry));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    done.into_inner().map_err(|_| anyhow::anyhow!("a thread panicked"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// One picture a line.
fn save(manifest: &Path, seed: u64, pictures: &[Value]) -> Result<()> {
    let lines: Vec<String> = pictures.iter().map(Value::to_string).collect();
    let text =
        format!("{{\"version\": {VERSION}, \"seed\": {seed}, \"pictures\": [\n{}\n]}}\n", lines.join(",\n"));
    write(manifest, text.as_bytes())
}

fn report(pictures: &[Value], written: usize) -> Result<()> {
    let sum = |of: fn(&Value) -> Option<u64>| pictures.iter().filter_map(of).sum::<u64>();
    let pixels = sum(|entry| Some(entry["width"].as_u64()? * entry["height"].as_u64()?));
    let bytes = sum(|entry| entry["bytes"].as_u64());
    emit(&json!({
        "metric": "pictures",
        "count": pictures.len(),
        "written": written,
        "pixels": pixels,
        "bytes": bytes,
        "bytes_per_pixel": bytes as f64 / pixels as f64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_do_not_depend_on_threads_and_a_second_call_writes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = |name: &str| {
            let list = ["photographs/000000.jpg", "photographs/000004.jpg", "12mp.jpg", "manifest.json"];
            list.map(|file| std::fs::read(folder.path().join(name).join(file)).expect("written"))
        };
        let args =
            |name: &str, count, threads| Args { out: folder.path().join(name), count, seed: 3, threads };
        run(&args("one", 5, 1)).expect("draws");
        // In two parts, the second on more threads.
        run(&args("two", 2, 2)).expect("draws");
        run(&args("two", 5, 3)).expect("draws the rest");
        assert!(files("one") == files("two"));
        let changed = |name: &str| {
            let path = folder.path().join(name).join("photographs/000000.jpg");
            std::fs::metadata(path).and_then(|data| data.modified()).expect("has a time")
        };
        let before = changed("one");
        run(&args("one", 4, 1)).expect("is there");
        assert_eq!(changed("one"), before);
        assert_eq!(known(&folder.path().join("one/manifest.json"), 3).len(), 5);
        assert!(known(&folder.path().join("one/manifest.json"), 4).is_empty());
    }
}
