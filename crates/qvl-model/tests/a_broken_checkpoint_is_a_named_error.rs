//! A folder that is no usable checkpoint is one error that names the file, the field or tensor, what was found
//! and what was expected.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::Path;

use common::{ExpertLayout, Network, Stored, Weights, change_json, change_weights, failure, open};
use qvl_model::checkpoint::{Checkpoint, TextFile};
use qvl_model::config::{Config, GenerationConfig};
use qvl_model::{Content, Cpu, Error, Message, Model, Residency};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Damages a checkpoint and opens it; the message must have all the `parts`.
#[track_caller]
fn check(network: &Network, damage: impl FnOnce(&Path), parts: &[&str]) -> Error {
    let folder = network.folder();
    damage(folder.path());
    let (error, message) = failure(folder.path());
    assert!(message.contains(folder.path().to_str().unwrap()), "{message:?} does not name the folder");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    error
}

fn write(file: &'static str, text: &'static str) -> impl FnOnce(&Path) {
    move |dir| std::fs::write(dir.join(file), text).unwrap()
}

fn remove(file: &'static str) -> impl FnOnce(&Path) {
    move |dir| std::fs::remove_file(dir.join(file)).unwrap()
}

#[test]
fn no_folder() {
    let (error, message) = failure(Path::new("no/such/folder"));
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(message.contains("no/such/folder"), "{message}");
}

#[test]
fn a_file_instead_of_a_folder() {
    let folder = Network::dense().folder();
    let (error, message) = failure(&folder.path().join("config.json"));
    assert!(matches!(error, Error::NotACheckpoint { .. }), "{error:?}");
    assert!(message.contains("it is a file"), "{message}");
}

#[test]
fn a_file_is_absent() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let error = check(&Network::dense(), remove(file), &[file]);
        assert!(matches!(error, Error::NotACheckpoint { .. }), "{error:?}");
    }
}

#[test]
fn a_configuration_that_is_empty_or_not_json() {
    let dense = Network::dense();
    for (text, part) in
        [("", "the file is empty"), ("  \n", "the file is empty"), ("{\"a\": ", "line 1"), ("[]", "line 1")]
    {
        let error = check(&dense, write("config.json", text), &["config.json", part]);
        assert!(matches!(error, Error::Json { .. }), "{error:?}");
    }
}

#[test]
fn a_model_of_another_type() {
    let dense = Network::dense();
    let set = |value: Value| {
        move |dir: &Path| change_json(dir, "config.json", |config| config["model_type"] = value)
    };
    check(&dense, set(json!("qwen2_5_vl")), &["config.json", "model_type is \"qwen2_5_vl\"", "\"qwen3_vl\""]);
    check(&dense, set(Value::Null), &["model_type is absent"]);
    check(&dense, write("config.json", "{}"), &["model_type is absent"]);
}

/// `pointer` of a valid configuration becomes `value` (removed where that is null): the error names `field`, what
/// it was, and what is expected.
#[track_caller]
fn check_config(network: &Network, pointer: &str, value: Value, parts: &[&str]) {
    let mut config = network.config();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    let _old = if value.is_null() { parent.remove(key) } else { parent.insert(key.to_owned(), value) };
    let file = TextFile { name: "folder/config.json".to_owned(), text: config.to_string() };
    let error = Config::parse(&file).unwrap_err();
    let message = error.to_string();
    for part in parts.iter().copied().chain(["folder/config.json"]) {
        assert!(message.contains(part), "{pointer}: {message:?} does not say {part:?}");
    }
}

#[test]
fn every_dimension_of_the_decoder_is_checked() {
    let dense = Network::dense();
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ] {
        let pointer = format!("/text_config/{key}");
        for value in [0, 1 << 30] {
            let got = format!("text_config.{key} is {value}");
            check_config(&dense, &pointer, json!(value), &[&got, "expected 1 to 16777216"]);
        }
        check_config(&dense, &pointer, json!("many"), &["line 1 column", "invalid type"]);
        check_config(&dense, &pointer, json!(-1), &["line 1 column", "-1"]);
    }
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        check_config(&dense, &format!("/text_config/{key}"), Value::Null, &["missing field", key]);
    }
    check_config(&dense, "/text_config", Value::Null, &["missing field", "text_config"]);
}

#[test]
fn every_dimension_of_the_vision_tower_is_checked() {
    let dense = Network::dense();
    for key in [
        "depth",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "in_channels",
        "patch_size",
        "temporal_patch_size",
        "spatial_merge_size",
        "num_position_embeddings",
    ] {
        for value in [0, 1 << 30] {
            let got = format!("vision_config.{key} is {value}");
            check_config(
                &dense,
                &format!("/vision_config/{key}"),
                json!(value),
                &[&got, "expected 1 to 16777216"],
            );
        }
    }
    for key in ["depth", "hidden_size", "num_heads", "out_hidden_size", "deepstack_visual_indexes"] {
        check_config(&dense, &format!("/vision_config/{key}"), Value::Null, &["missing field", key]);
    }
    check_config(&dense, "/vision_config", Value::Null, &["missing field", "vision_config"]);
}

#[test]
fn values_that_do_not_fit_each_other_are_refused() {
    let (dense, moe) = (Network::dense(), Network::moe());
    let text = |key: &str| format!("/text_config/{key}");
    let rope = |key: &str| format!("/text_config/rope_scaling/{key}");
    let vision = |key: &str| format!("/vision_config/{key}");
    for (pointer, value, got, expected) in [
        (text("head_dim"), json!(23), "text_config.head_dim is 23", "an even number"),
        (
            text("num_key_value_heads"),
            json!(3),
            "num_key_value_heads is 3",
            "a divisor of num_attention_heads 4",
        ),
        (text("rms_norm_eps"), json!(-1.0), "rms_norm_eps is -1", "a small positive number"),
        (text("rope_theta"), json!(0), "rope_theta is 0", "a positive number"),
        (text("rope_theta"), Value::Null, "rope_theta is absent", "the base of the rotary frequencies"),
        (text("rope_scaling"), Value::Null, "rope_scaling is absent", "rope_parameters, or rope_scaling"),
        (rope("mrope_section"), json!([5, 4]), "mrope_section is [5, 4]", "three numbers"),
        (rope("mrope_section"), json!([5, 4, 4]), "mrope_section is [5, 4, 4]", "sum head_dim / 2 = 12"),
        (
            rope("mrope_section"),
            json!([usize::MAX, 13, 0]),
            "mrope_section is [18446744073709551615, 13, 0]",
            "= 12",
        ),
        (rope("mrope_section"), Value::Null, "mrope_section is []", "three numbers"),
        (vision("patch_size"), json!(512), "is 512, 2, 2", "at most 256, 16, 16"),
        (vision("in_channels"), json!(1), "in_channels is 1", "expected 3"),
        (
            vision("num_heads"),
            json!(3),
            "vision_config.hidden_size is 40",
            "num_heads 3 times a multiple of 4",
        ),
        (
            vision("num_heads"),
            json!(4),
            "vision_config.hidden_size is 40",
            "num_heads 4 times a multiple of 4",
        ),
        (vision("out_hidden_size"), json!(41), "out_hidden_size is 41", "text_config.hidden_size 40"),
        (vision("num_position_embeddings"), json!(35), "num_position_embeddings is 35", "a square number"),
        (
            vision("deepstack_visual_indexes"),
            json!([0, 3]),
            "deepstack_visual_indexes is [0, 3]",
            "below depth 3",
        ),
        (
            vision("deepstack_visual_indexes"),
            json!([2, 0]),
            "deepstack_visual_indexes is [2, 0]",
            "ascending",
        ),
        (
            vision("deepstack_visual_indexes"),
            json!([1, 1]),
            "deepstack_visual_indexes is [1, 1]",
            "ascending",
        ),
        ("/image_token_id".to_owned(), json!(100_000), "image_token_id is 100000", "an id below vocab_size"),
        ("/video_token_id".to_owned(), json!(100_000), "video_token_id is 100000", "an id below vocab_size"),
        ("/vision_start_token_id".to_owned(), json!(99_999), "vision_start_token_id is 99999", "an id below"),
        ("/vision_end_token_id".to_owned(), json!(99_999), "vision_end_token_id is 99999", "an id below"),
    ] {
        check_config(&dense, &pointer, value, &[got, expected]);
    }
    // More taps than decoder layers to add them behind.
    let mut config = dense.config();
    config["text_config"]["num_hidden_layers"] = json!(1);
    let file = TextFile { name: "config.json".to_owned(), text: config.to_string() };
    let message = Config::parse(&file).unwrap_err().to_string();
    assert!(message.contains("no more than decoder layers"), "{message}");
    for (key, value, got, expected) in [
        ("num_experts", Value::Null, "num_experts is absent", "a number"),
        ("num_experts", json!(0), "num_experts is 0", "1 to 16777216"),
        ("num_experts_per_tok", Value::Null, "num_experts_per_tok is absent", "a number"),
        ("num_experts_per_tok", json!(6), "num_experts_per_tok is 6", "at most num_experts 5"),
        ("moe_intermediate_size", Value::Null, "moe_intermediate_size is absent", "a number"),
        ("decoder_sparse_step", json!(0), "decoder_sparse_step is 0", "1 to 16777216"),
    ] {
        check_config(&moe, &text(key), value, &[got, expected]);
    }
}

#[test]
fn a_switch_that_would_change_the_answer_is_refused() {
    let (dense, moe) = (Network::dense(), Network::moe());
    for (pointer, value, got, expected) in [
        ("/text_config/hidden_act", json!("gelu"), "text_config.hidden_act is \"gelu\"", "\"silu\""),
        ("/text_config/attention_bias", json!(true), "attention_bias is true", "false"),
        ("/text_config/use_sliding_window", json!(true), "use_sliding_window is true", "false"),
        ("/text_config/rope_scaling/rope_type", json!("yarn"), "rope_type is \"yarn\"", "\"default\""),
        ("/text_config/rope_scaling/mrope_interleaved", json!(false), "mrope_interleaved is false", "true"),
        (
            "/vision_config/hidden_act",
            json!("gelu"),
            "vision_config.hidden_act is \"gelu\"",
            "gelu_pytorch_tanh",
        ),
    ] {
        check_config(&dense, pointer, value, &[got, expected]);
    }
    check_config(&moe, "/text_config/norm_topk_prob", json!(false), &["norm_topk_prob is false", "true"]);
}

#[test]
fn a_checkpoint_that_names_no_end_token() {
    let mut config = Network::dense().config();
    config["text_config"].as_object_mut().unwrap().remove("eos_token_id");
    let config = TextFile { name: "config.json".to_owned(), text: config.to_string() };
    let message = GenerationConfig::parse(None, &config, common::VOCAB).unwrap_err().to_string();
    assert!(message.contains("config.json: eos_token_id is absent"), "{message}");
    let generation = TextFile { name: "generation_config.json".to_owned(), text: "{}".to_owned() };
    let message = GenerationConfig::parse(Some(&generation), &config, common::VOCAB).unwrap_err().to_string();
    assert!(message.contains("generation_config.json: eos_token_id is absent"), "{message}");
    for id in ["999", "[3, 999]"] {
        let text = format!("{{\"eos_token_id\": {id}}}");
        let outside = TextFile { name: "generation_config.json".to_owned(), text };
        let message = GenerationConfig::parse(Some(&outside), &config, 300).unwrap_err().to_string();
        assert!(message.contains("generation_config.json: eos_token_id is 999"), "{message}");
        assert!(message.contains("below vocab_size 300"), "{message}");
    }
    let broken = write("generation_config.json", "{\"eos_token_id\": \"im_end\"}");
    check(&Network::dense(), broken, &["generation_config.json", "eos_token_id must be", "line 1"]);
}

#[test]
fn a_tensor_is_missing() {
    for name in [
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.2.mlp.up_proj.weight",
        "model.visual.blocks.1.attn.qkv.bias",
        "model.visual.deepstack_merger_list.1.norm.weight",
    ] {
        let damage = |dir: &Path| change_weights(dir, |weights| drop(weights.remove(name)));
        let error = check(&Network::dense(), damage, &["model.safetensors", name, "is missing"]);
        assert!(matches!(error, Error::MissingTensor { .. }), "{error:?}");
    }
    let untied = Network { tied: false, ..Network::dense() };
    let no_head = |dir: &Path| change_weights(dir, |weights| drop(weights.remove("lm_head.weight")));
    check(&untied, no_head, &["tensor lm_head.weight is missing"]);
    let none = |dir: &Path| change_weights(dir, Weights::clear);
    check(&Network::dense(), none, &["the file has no tensors"]);
}

#[test]
fn a_tensor_of_another_shape() {
    let name = "model.language_model.layers.1.self_attn.k_proj.weight";
    let damage = |dir: &Path| {
        change_weights(dir, |weights| {
            weights.insert(name.to_owned(), Stored::new(Dtype::BF16, &[40, 48], &[0.0; 40 * 48]));
        });
    };
    let error =
        check(&Network::dense(), damage, &["model.safetensors", name, "[40, 48]", "expected [48, 40]"]);
    assert!(matches!(error, Error::TensorShape { .. }), "{error:?}");
}

#[test]
fn experts_of_another_shape() {
    for experts in [ExpertLayout::OutIn, ExpertLayout::InOut] {
        for tensor in ["gate_up_proj", "down_proj"] {
            let name = format!("model.language_model.layers.0.mlp.experts.{tensor}");
            let damage = |dir: &Path| {
                change_weights(dir, |weights| {
                    weights.insert(name.clone(), Stored::new(Dtype::BF16, &[5, 7, 40], &[0.0; 5 * 7 * 40]));
                });
            };
            check(&Network { experts, ..Network::moe() }, damage, &[&name, "[5, 7, 40]", "expected [5, "]);
        }
    }
}

#[test]
fn a_tensor_of_a_type_that_is_not_read() {
    let name = "model.visual.blocks.0.norm1.weight";
    for (dtype, shown, bytes) in [(Dtype::I64, "I64", 8 * 40), (Dtype::F8_E4M3, "F8_E4M3", 40)] {
        let stored = Stored { dtype, shape: vec![40], bytes: vec![0; bytes] };
        let replaced = stored.clone();
        let damage =
            |dir: &Path| change_weights(dir, |weights| drop(weights.insert(name.to_owned(), replaced)));
        let error = check(&Network::dense(), damage, &["model.safetensors", name, shown, "BF16, F16 or F32"]);
        assert!(matches!(error, Error::TensorDtype { .. }), "{error:?}");

        // Nobody needs this one.
        let folder = Network::dense().folder();
        change_weights(folder.path(), |weights| drop(weights.insert("extra.counter".to_owned(), stored)));
        open(folder.path());
    }
}

#[test]
fn layers_taken_on_demand_fail_when_their_turn_comes() {
    let folder = Network::dense().folder();
    let name = "model.language_model.layers.2.input_layernorm.weight";
    change_weights(folder.path(), |weights| drop(weights.remove(name)));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let model = Model::load(checkpoint, Cpu::new(1).unwrap(), Residency::OnDemand).unwrap();
    let prompt = common::short_prompt(&model, "hello", Vec::new());
    let mut cache = model.kv_cache();
    let error = model.prefill(&mut cache, &prompt, None, 0, qvl_model::decoder::LogitRows::Last).unwrap_err();
    assert!(error.to_string().contains(name), "{error}");
    // The layers before it had taken the tokens already; the sequence is as it was.
    assert!(cache.is_empty());
}

#[test]
fn shards_that_do_not_fit_their_index() {
    let sharded = Network { shards: 3, ..Network::dense() };
    let shard = "model-00002-of-00003.safetensors";
    let error = check(&sharded, remove(shard), &[shard]);
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    let index = "model.safetensors.index.json";
    check(&sharded, write(index, "{}"), &[index, "weight_map"]);
    check(&sharded, write(index, "not JSON"), &[index, "line 1"]);
    check(&sharded, write(index, "{\"weight_map\": {}}"), &[index, "is missing", "no tensors"]);
    let add = |tensor: &'static str, file: &'static str| {
        move |dir: &Path| change_json(dir, index, |value| value["weight_map"][tensor] = json!(file))
    };
    check(&sharded, add("extra", shard), &[shard, "tensor extra is missing", index]);
}

#[test]
fn an_index_never_leads_out_of_its_folder() {
    let sharded = Network { shards: 2, ..Network::dense() };
    let index = "model.safetensors.index.json";
    for path in
        ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "./model.safetensors"]
    {
        let damage = |dir: &Path| change_json(dir, index, |value| value["weight_map"]["extra"] = json!(path));
        let error = check(&sharded, damage, &[index, &format!("{path:?}"), "a plain file name"]);
        assert!(matches!(error, Error::Header { .. }), "{error:?}");
    }
}

#[test]
fn a_tokenizer_that_does_not_belong_to_the_network() {
    let dense = Network::dense();
    let change = |change: fn(&mut Value)| move |dir: &Path| change_json(dir, "tokenizer.json", change);
    let file = "tokenizer.json";
    for (error, parts) in [
        (check(&dense, write(file, ""), &[file]), "the file is empty"),
        (check(&dense, write(file, "{]"), &[file]), "line 1"),
        (check(&dense, write(file, "{\"version\": \"1.0\"}"), &[file]), "not a tokenizer"),
        (
            check(&dense, change(|tokenizer| tokenizer["added_tokens"] = json!([])), &[file]),
            "it has no token <|vision_start|>",
        ),
        (
            check(&dense, change(|tokenizer| tokenizer["decoder"] = json!({ "type": "Fuse" })), &[file]),
            "its decoder is not ByteLevel",
        ),
        (
            check(&dense, change(|tokenizer| tokenizer["decoder"] = Value::Null), &[file]),
            "its decoder is not ByteLevel",
        ),
    ] {
        assert!(matches!(error, Error::Tokenizer { .. }), "{error:?}");
        assert!(error.to_string().contains(parts), "{error} does not say {parts:?}");
    }
    let other_id = |dir: &Path| change_json(dir, "config.json", |config| config["image_token_id"] = json!(7));
    check(&dense, other_id, &[file, "<|image_pad|> has id 267", "image_token_id 7"]);
    let fewer_rows = |dir: &Path| {
        change_json(dir, "config.json", |config| config["text_config"]["vocab_size"] = json!(270));
    };
    check(&dense, fewer_rows, &[file, "highest id is 271", "270 ids"]);
}

#[test]
fn a_template_that_is_absent_is_an_error_when_a_prompt_is_made() {
    let folder = Network::dense().folder();
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let model = open(folder.path());
    let error = model.prompt(&[], Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Template { .. }), "{error:?}");
    assert!(error.to_string().contains("chat_template.json nor in tokenizer_config.json"), "{error}");
    assert!(model.prompt_from_text("rendered by hand", Vec::new()).is_ok());
}

#[test]
fn a_template_is_found_in_all_three_places() {
    let text = "{{ messages[0].content }}";
    for (file, content) in [
        ("chat_template.jinja", text.to_owned()),
        ("chat_template.json", json!({ "chat_template": text }).to_string()),
        ("tokenizer_config.json", json!({ "chat_template": text }).to_string()),
        (
            "tokenizer_config.json",
            json!({ "chat_template": [{ "name": "tools", "template": "no" }, { "name": "default", "template": text }] })
                .to_string(),
        ),
    ] {
        let folder = Network::dense().folder();
        std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
        std::fs::write(folder.path().join(file), content).unwrap();
        let message = Message { role: "user".to_owned(), content: Content::Text("hi".to_owned()) };
        let prompt = open(folder.path()).prompt(&[message], Vec::new()).unwrap();
        assert_eq!(prompt.ids, [u32::from(b'h'), u32::from(b'i')], "{file}");
    }
}

#[test]
fn a_template_that_fails_names_its_file() {
    let file = "chat_template.jinja";
    let error = check(&Network::dense(), write(file, "a\n{% for %}"), &[file, "chat_template:2"]);
    assert!(matches!(error, Error::Template { .. }), "{error:?}");

    let folder = Network::dense().folder();
    std::fs::write(folder.path().join(file), "{{ raise_exception('roles must alternate') }}").unwrap();
    let error = open(folder.path()).prompt(&[], Vec::new()).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(file) && message.contains("roles must alternate"), "{message}");
    check(
        &Network::dense(),
        |dir| {
            std::fs::remove_file(dir.join(file)).unwrap();
            std::fs::write(dir.join("chat_template.json"), "{\"chat_template\": 7}").unwrap();
        },
        &["chat_template.json", "chat_template must be", "line 1"],
    );
}
