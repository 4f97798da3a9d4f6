//! The daemon's engine in a process of its own, asked line by line: how fast it reads prompts and writes.

use llm::engine::{
    Asked, Completion, Engine, EngineOptions, Event, Form, GpuLayers, Lookup, PromptPassage, Repack, Request, Tuning, Weights,
};
use llm::tune::Topology;
use serde_json::{Value, json};
use std::io::BufRead as _;
use std::path::Path;
use std::time::{Duration, Instant};
use wire::{Cancel, Sampling};
// OpenMP's symbols are the program's.
use vademecum as _;
use vademecum_benches::Result;

/// Answers `{"words": N, "generate": N}`: a prompt with so many words of text, and an answer of at most so many tokens.
pub(crate) fn serve(model: &Path, threads: &str) -> Result<()> {
    let threads = threads.parse()?;
    let options = EngineOptions {
        context: 2048,
        tuning: Tuning { topology: Topology::detect(), saved: None, decode: threads, batch: threads, lookup: Lookup::Off },
        weights: Weights { repack: Repack::Auto, mlock: false, gpu_layers: GpuLayers::Auto },
        queue: 1,
        slots: 4,
        kv_cache: None,
    };
    let engine = Engine::load(model, &options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for (turn, line) in std::io::stdin().lock().lines().enumerate() {
        let ask: Value = serde_json::from_str(&line?)?;
        let number = |key: &str| ask[key].as_u64().unwrap_or(0) as usize;
        let answer = match runtime.block_on(run(&engine, turn, number("words"), number("generate"))) {
            Ok(done) => json!({
                "prompt": done.prompt_tokens,
                "computed": done.prompt_tokens - done.reused_tokens,
                "generated": done.answer_tokens,
                "prompt_per_s": (done.prompt_tokens - done.reused_tokens) as f64 / done.prefill.as_secs_f64(),
                // The first token comes out of the prompt's last step.
                "generate_per_s": done.answer_tokens.saturating_sub(1) as f64 / done.decode.as_secs_f64().max(1e-9),
            }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        println!("{answer}");
    }
    Ok(())
}

async fn run(engine: &Engine, turn: usize, words: usize, generate: usize) -> Result<Completion> {
    // Other words each time: nothing is to be reused of the turn before.
    let numbers: Vec<String> = (0..words).map(|i| ((turn + 7) * 7919 + i * 37).to_string()).collect();
    let passages = if words == 0 { vec![] } else { vec![PromptPassage { document: None, text: numbers.join(" ") + "\n" }] };
    let request = Request {
        system: String::new(),
        readings: vec![passages],
        patience: Duration::MAX,
        asked: Asked {
            question: format!("Question: {turn}. Write a long story about a journey around the world."),
            ..Asked::default()
        },
        form: Form::Written,
        max_tokens: generate,
        stop: vec![],
        // Not greedy: a base model would soon end, or say one word for ever.
        sampling: Sampling { temperature: 1.0, top_p: 1.0, min_p: 0.05, seed: turn as u32 },
        deadline: Instant::now() + Duration::from_mins(5),
    };
    let mut generation = engine.generate(request, Cancel::default())?;
    loop {
        match generation.events.recv().await {
            Some(Event::Done(completion)) => return Ok(completion),
            Some(Event::Failed(error)) => return Err(error.into()),
            Some(_) => {}
            None => return Err("the engine has ended".into()),
        }
    }
}
