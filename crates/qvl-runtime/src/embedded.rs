//! The checkpoint that ships inside the program: a real Qwen3-VL of 1.9 million parameters, trained on
//! handwritten digits and drawn shapes, so that everything works with nothing downloaded.

use qvl_dataload::vision::ProcessorConfig;
use qvl_model::checkpoint::EmbeddedCheckpoint;

use crate::error::Result;

/// How the embedded checkpoint is called in messages.
pub const EMBEDDED_NAME: &str = "qvl-tiny (embedded)";

/// Its files.
pub const EMBEDDED: EmbeddedCheckpoint = EmbeddedCheckpoint {
    name: EMBEDDED_NAME,
    config: include_str!("../assets/tiny/config.json"),
    weights: include_bytes!("../assets/tiny/model.safetensors"),
    tokenizer: include_str!("../assets/tiny/tokenizer.json"),
    chat_template: include_str!("../assets/tiny/chat_template.jinja"),
    generation_config: include_str!("../assets/tiny/generation_config.json"),
};

/// Its image processor.
pub(crate) fn processor() -> Result<ProcessorConfig> {
    Ok(ProcessorConfig::from_json(
        None,
        Some(include_str!("../assets/tiny/preprocessor_config.json")),
        Some(include_str!("../assets/tiny/video_preprocessor_config.json")),
    )?)
}
