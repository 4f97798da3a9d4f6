use super::*;
use crate::gguf::tests::model;
use crate::tune::Threads;

const SYSTEM: &str = "Answer from the text.";

fn engine(context: u32) -> Engine {
    let options = EngineOptions { context, threads: Threads { decode: 1, batch: 2 }, queue: 2, system: SYSTEM.into() };
    Engine::load(&model("generator.gguf"), &options).expect("loads")
}

fn request(question: &str, passages: &[&str], max_tokens: usize) -> Request {
    Request {
        system: SYSTEM.into(),
        passages: passages.iter().enumerate().map(|(i, text)| PromptPassage { n: i + 1, text: (*text).to_owned() }).collect(),
        question: question.into(),
        max_tokens,
        stop: vec![],
        sampling: Sampling { temperature: 0.0, top_p: 1.0, min_p: 0.0, seed: 0 },
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

/// All deltas joined, and the end.
fn finish(mut generation: Generation) -> (String, Result<Completion, EngineError>) {
    let mut text = String::new();
    loop {
        match generation.events.blocking_recv().expect("an end comes") {
            Event::Prompt { .. } => {}
            Event::Delta(delta) => text.push_str(&delta),
            Event::Done(completion) => return (text, Ok(completion)),
            Event::Failed(error) => return (text, Err(error)),
        }
    }
}

fn ask(engine: &Engine, request: Request) -> (String, Result<Completion, EngineError>) {
    finish(engine.generate(request, Cancel::default()).expect("queued"))
}

#[test]
fn a_greedy_answer_does_not_depend_on_what_was_asked_before() {
    let engine = engine(1024);
    let text =
        "The fuse F3 of the controller is a slow-blow fuse of 2 A. It measures 5 x 20 mm and sits below the cover. ".repeat(4);
    let question = || request("Which fuse is F3?", &[&text], 16);
    let (deltas, first) = ask(&engine, question());
    let first = first.expect("answers");
    assert_eq!(deltas, first.text);
    let (_, again) = ask(&engine, question());
    let again = again.expect("answers");
    assert!(again.reused_tokens > first.reused_tokens && again.reused_tokens >= first.prompt_tokens - PREFILL_STEP);
    assert_eq!(again.text, first.text);
    ask(&engine, request("What else?", &["Something different."], 4)).1.expect("answers");
    let (_, third) = ask(&engine, question());
    let third = third.expect("answers");
    assert_eq!(third.text, first.text);
    // The system prompt stays, whatever the question.
    assert!(third.reused_tokens > 0);
}

#[test]
fn control_tokens_in_outside_text_stay_text() {
    let engine = engine(512);
    let tokens = |text: &str| ask(&engine, request("Why?", &[text], 1)).1.expect("answers").prompt_tokens;
    let (none, one, two) = (tokens("x"), tokens("x<|im_end|>"), tokens("x<|im_end|><|im_end|>"));
    // As a control token it would be one token; as text it is several.
    assert!(one - none >= 4 && two - one >= 4, "{none} {one} {two}");
    let in_question = |q: &str| ask(&engine, request(q, &["x"], 1)).1.expect("answers").prompt_tokens;
    assert!(in_question("Why?<|im_start|>") - in_question("Why?") >= 4);
}

#[test]
fn the_weakest_passages_give_way_and_the_question_never() {
    let engine = engine(512);
    let long = "The pump runs when the valve is open. ".repeat(20);
    let completion = ask(&engine, request("When does the pump run?", &[&long, &long, &long, &long], 8)).1.expect("answers");
    assert!((1..4).contains(&completion.passages_used), "{completion:?}");
    let endless = "why ".repeat(600);
    match ask(&engine, request(&endless, &["x"], 8)).1 {
        Err(EngineError::PromptTooLong { needed, room }) => assert!(needed > room),
        other => panic!("{other:?}"),
    }
    ask(&engine, request("Still there?", &["Yes."], 4)).1.expect("answers after the error");
}

#[test]
fn requests_end_when_cancelled_late_or_too_many() {
    let engine = engine(1024);
    let cancel = Cancel::default();
    let running = engine.generate(request("Tell a long story.", &["Once upon a time."], 400), cancel.clone()).expect("queued");
    let waiting = engine.generate(request("And another.", &["x"], 4), Cancel::default()).expect("queued");
    match engine.generate(request("One too many.", &["x"], 4), Cancel::default()) {
        Err(EngineError::QueueFull { waiting: 2 }) => {}
        other => panic!("{other:?}"),
    }
    cancel.cancel();
    assert_eq!(finish(running).1.expect("ends").finish, Finish::Cancelled);
    finish(waiting).1.expect("answers");
    let mut late = request("Tell a long story.", &["Once upon a time."], 400);
    late.deadline = Instant::now();
    assert_eq!(ask(&engine, late).1.expect("ends").finish, Finish::Deadline);
}

#[test]
fn a_stopped_engine_says_so() {
    let engine = engine(512);
    let running = engine.generate(request("Tell a long story.", &["Once upon a time."], 200), Cancel::default()).expect("queued");
    engine.shutdown();
    assert_eq!(finish(running).1.expect("ends").finish, Finish::Cancelled);
    match engine.generate(request("Anyone?", &["x"], 4), Cancel::default()) {
        Err(EngineError::Stopped) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn stop_strings_and_seeds_are_obeyed() {
    let engine = engine(512);
    let whole = ask(&engine, request("Count to five.", &["one two three four five"], 24)).1.expect("answers").text;
    let word = whole.split_whitespace().nth(1).expect("two words").to_owned();
    let mut stopped = request("Count to five.", &["one two three four five"], 24);
    stopped.stop = vec![word.clone()];
    let completion = ask(&engine, stopped).1.expect("answers");
    assert_eq!(completion.finish, Finish::Stop);
    assert!(!completion.text.contains(&word) && whole.starts_with(completion.text.as_str()), "{whole:?} {completion:?}");
    let sampled = |seed: u32| {
        let mut request = request("Write a line.", &["The sea is wide and blue."], 16);
        request.sampling = Sampling { temperature: 1.5, top_p: 1.0, min_p: 0.0, seed };
        ask(&engine, request).1.expect("answers").text
    };
    assert_eq!(sampled(7), sampled(7));
    assert!((0..6).any(|seed| sampled(seed) != sampled(7)));
}

#[test]
fn files_that_are_no_generator_are_refused_by_name() {
    let options = EngineOptions { context: 512, threads: Threads { decode: 1, batch: 1 }, queue: 1, system: String::new() };
    let message = |path: &Path| match Engine::load(path, &options) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(error) => error.to_string(),
    };
    let encoder = message(&model("embedder.gguf"));
    assert!(encoder.contains("embedder.gguf") && encoder.contains("`bert`") && encoder.contains("--generator"), "{encoder}");
    assert!(message(Path::new("/nonexistent/model.gguf")).contains("/nonexistent/model.gguf"));
    let dir = tempfile::tempdir().expect("temporary directory");
    let cut = dir.path().join("cut.gguf");
    let bytes = std::fs::read(model("generator.gguf")).expect("read");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).expect("write");
    assert!(message(&cut).contains("cut.gguf"));
}
