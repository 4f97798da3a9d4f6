//! Whether a model fits the memory: one rule for the list, `doctor`, `use` and the start of the daemon.

use llm::gguf::Gguf;
use llm::llama::Memory;

/// Memory of the daemon, a small encoder and the buffers of a forward pass.
const OWN_BYTES: u64 = 150_000_000;

/// Bytes that a model may take: four fifths of the memory, as `MemoryHigh=80%` of the unit leaves to the service.
pub fn room(memory: &Memory) -> u64 {
    memory.total / 5 * 4
}

/// Bytes that answers need: the weights, the context, the daemon. Repacked weights come on top, where memory is spare.
pub fn needed(gguf: &Gguf, context: u32) -> u64 {
    let context = u64::from(context).min(gguf.context_length().unwrap_or(u64::MAX));
    gguf.file_bytes().saturating_add(gguf.kv_bytes_per_token().saturating_mul(context)).saturating_add(OWN_BYTES)
}

/// A clear word about a model that does not fit; `None` if it does.
pub fn too_large(gguf: &Gguf, context: u32, memory: &Memory) -> Option<String> {
    let needed = needed(gguf, context);
    (needed > room(memory)).then(|| too_large_for(&gguf.name(), needed, memory))
}

/// The word about a model that needs `needed` bytes.
pub fn too_large_for(name: &str, needed: u64, memory: &Memory) -> String {
    format!(
        "{name} needs {} MB of memory, and this machine has room for {} of its {} MB: its weights would be read from the disk again \
         and again, and answers would take minutes",
        needed / 1_000_000,
        room(memory) / 1_000_000,
        memory.total / 1_000_000
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Catalogue;
    use llm::gguf::test_model;
    use std::path::Path;

    #[test]
    fn a_small_machine_gets_a_word_before() {
        let gguf = Gguf::open(&test_model("generator.gguf")).expect("a model");
        let memory = |total| Memory { total, available: total };
        let needed = needed(&gguf, 2048);
        assert_eq!(too_large(&gguf, 2048, &memory(needed * 5 / 4 + 5)), None);
        let word = too_large(&gguf, 2048, &memory(needed)).expect("no room");
        assert!(word.contains("needs 295 MB") && word.contains("room for 236 of its 295 MB"), "{word}");
        // A longer context than the model was trained for is not used.
        assert_eq!(super::needed(&gguf, 100_000), super::needed(&gguf, 8192));
    }

    #[test]
    fn the_catalogue_says_what_the_file_needs() {
        let gguf = Gguf::open(&test_model("generator.gguf")).expect("a model");
        let catalogue = Catalogue::load(Path::new("/nonexistent")).expect("loads");
        let model = catalogue.get("smollm2-135m").expect("listed");
        let file = needed(&gguf, 2048) / 1_000_000;
        assert!(file.abs_diff(model.memory_mb) <= 10, "{file} and {}", model.memory_mb);
    }
}
