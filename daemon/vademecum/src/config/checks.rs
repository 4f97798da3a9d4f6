//! Checks beyond bounds: forms, and values that must fit together. An error is a clause that follows the key's name.

use super::{BrokerUrl, Config};
use std::net::SocketAddr;
use std::path::Path;
use wire::names;

type Checked = Result<(), String>;

/// Largest payload of the embedded broker: its largest packet less topic and properties.
const EMBEDDED_MAX_PAYLOAD: usize = 8 * 1024 * 1024 - 128 * 1024;

/// Tokens of context that the longest answer must leave for the passages.
const ROOM_FOR_PASSAGES: usize = 256;

/// Most layers in `model.n_gpu_layers`.
pub(super) const MAX_GPU_LAYERS: u32 = 1000;

pub(super) fn topic_level(text: &str) -> Checked {
    if names::is_topic_level(text) {
        return Ok(());
    }
    Err(format!("is `{text}`; use up to 64 letters, digits, `-`, `_` or `.`: it is one level of a topic"))
}

pub(super) fn collection(name: &str) -> Checked {
    if names::is_collection(name) { Ok(()) } else { Err(format!("is `{name}`; {}", names::COLLECTION_RULE)) }
}

pub(super) fn broker(config: &Config) -> Checked {
    if config.mqtt.broker.is_empty() { Ok(()) } else { BrokerUrl::parse(&config.mqtt.broker).map(drop) }
}

/// Refuses a key of TLS, if it is set, beside a broker without TLS.
pub(super) fn needs_tls(config: &Config, is_set: bool) -> Checked {
    match BrokerUrl::parse(&config.mqtt.broker) {
        Ok(url) if is_set && !url.tls => Err("is set, but mqtt.broker is not encrypted; write mqtts:// or wss:// there".into()),
        _ => Ok(()),
    }
}

pub(super) fn certificate(config: &Config) -> Checked {
    let mqtt = &config.mqtt;
    needs_tls(config, !mqtt.cert_file.as_os_str().is_empty())?;
    belongs_with(&mqtt.cert_file, "mqtt.key_file", &mqtt.key_file)
}

pub(super) fn private_key(config: &Config) -> Checked {
    belongs_with(&config.mqtt.key_file, "mqtt.cert_file", &config.mqtt.cert_file)
}

fn belongs_with(given: &Path, other: &str, missing: &Path) -> Checked {
    if given.as_os_str().is_empty() || !missing.as_os_str().is_empty() {
        return Ok(());
    }
    Err(format!("is {}, but {other} is not set; certificate and key belong together", given.display()))
}

pub(super) fn alpn(config: &Config) -> Checked {
    needs_tls(config, !config.mqtt.alpn.is_empty())?;
    match config.mqtt.alpn.iter().find(|protocol| !(1..=255).contains(&protocol.len())) {
        Some(protocol) => Err(format!("has `{protocol}`; a protocol's name has 1 to 255 bytes, for example mqtt")),
        None => Ok(()),
    }
}

pub(super) fn max_payload(config: &Config) -> Checked {
    let bytes = config.mqtt.max_payload_bytes;
    if config.mqtt.broker.is_empty() && bytes > EMBEDDED_MAX_PAYLOAD {
        return Err(format!("is {bytes}; the embedded broker carries at most {EMBEDDED_MAX_PAYLOAD}"));
    }
    Ok(())
}

pub(super) fn topic_filters(filters: &[String]) -> Checked {
    match filters.iter().find(|filter| !names::is_topic_filter(filter)) {
        Some(filter) => Err(format!("has `{filter}`, which is not a topic filter: `+` and `#` stand alone in a level, `#` last")),
        None => Ok(()),
    }
}

pub(super) fn listen(config: &Config) -> Checked {
    let listen = &config.broker.listen;
    match listen.parse::<SocketAddr>() {
        Err(_) => Err(format!("is `{listen}`; write address:port, for example 127.0.0.1:1883")),
        Ok(listen) if !listen.ip().is_loopback() => Err(format!(
            "is `{listen}`; the embedded broker has no access control and serves loopback only: for other machines run mosquitto \
             and set mqtt.broker"
        )),
        Ok(_) => Ok(()),
    }
}

pub(super) fn gpu_layers(config: &Config) -> Checked {
    let layers = &config.model.n_gpu_layers;
    if layers != "auto" && config.model.gpu_layers().is_none() {
        return Err(format!("is `{layers}`; write \"auto\" or a number of layers up to {MAX_GPU_LAYERS}"));
    }
    Ok(())
}

pub(super) fn max_tokens(config: &Config) -> Checked {
    let (answer, context) = (config.answer.max_tokens, config.model.context);
    if answer + ROOM_FOR_PASSAGES > context as usize {
        return Err(format!("is {answer}, which leaves no room for passages in model.context = {context}"));
    }
    Ok(())
}

pub(super) fn globs(globs: &[String]) -> Checked {
    match globs.iter().find_map(|glob| globset::Glob::new(glob).err()) {
        Some(error) => Err(format!("holds a pattern that does not parse: {error}")),
        None => Ok(()),
    }
}

pub(super) fn log_level(config: &Config) -> Checked {
    match config.log.level.parse::<log::LevelFilter>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("is `{}`; write error, warn, info, debug or trace", config.log.level)),
    }
}
