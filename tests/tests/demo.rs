//! The questions of `make demo`.

use vademecum_tests::{bare_vademecum, cache, generator, repository, run};

#[test]
fn the_demo_takes_a_model_by_name_or_file() {
    generator();
    let demo = |model: &str| {
        let mut demo = bare_vademecum(["demo", "--model", model, "--models"]);
        run(demo.arg(cache().join("models")).current_dir(repository()))
    };
    let by_file = demo(&cache().join("models/generator.gguf").display().to_string());
    assert!(by_file.code == Some(0) && by_file.stdout.contains("E-17") && !by_file.stdout.contains("make demo"), "{by_file:?}");
    let unknown = demo("qwen2.5-koder-0.5b");
    assert!(unknown.code == Some(2) && unknown.stderr.contains("did you mean qwen2.5-0.5b, qwen2.5-coder-0.5b"), "{unknown:?}");
}

#[test]
fn the_demo_answers_cites_and_abstains() {
    generator();
    let mut demo = bare_vademecum(["demo", "--models"]);
    let shown = run(demo.arg(cache().join("models")).current_dir(repository()));
    let text = &shown.stdout;
    let questions = std::fs::read_to_string(repository().join("config/demo/questions.txt")).expect("it ships");
    let questions: Vec<&str> = questions.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(questions.len(), 3);
    let mut parts = Vec::new();
    let mut rest = text.as_str();
    for question in &questions {
        let (before, after) = rest.split_once(question).unwrap_or_else(|| panic!("{question} is not shown: {shown:?}"));
        parts.push(before);
        rest = after;
    }
    parts.push(rest);
    for (answer, question) in parts[1..3].iter().zip(&questions) {
        assert!(answer.contains("[1]") && answer.contains(".md, score") && answer.contains("evidence"), "{question}: {shown:?}");
    }
    assert!(parts[1].contains("E-17"), "{shown:?}");
    assert!(parts[3].contains("make demo MODEL="), "{shown:?}");
    assert!(parts[3].contains("does not hold an answer") && !parts[3].contains(".md, score"), "{shown:?}");
    assert_eq!(shown.code, Some(0), "{shown:?}");
}
