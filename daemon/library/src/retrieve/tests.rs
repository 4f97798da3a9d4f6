use std::path::Path;

use super::*;
use crate::encoder::real::{embedder, encoder};
use crate::store::{Document, EmbedderId, StatementVectors, StoreOptions, sha256_hex};
use llm::embed::Embedder;

const DIMENSIONS: usize = 8;

fn unit(axis: usize) -> Vec<f32> {
    (0..DIMENSIONS).map(|at| f32::from(u8::from(at == axis))).collect()
}

fn store(dir: &Path, dimensions: usize) -> Store {
    let store = Store::open(dir, &StoreOptions::default()).unwrap();
    store.bind_embedder(&EmbedderId { name: "t".to_owned(), fingerprint: "t".to_owned(), dimensions }).unwrap();
    store
}

fn put(store: &Store, id: &str, tags: &[(&str, &str)], texts: &[&str], vectors: &[Vec<f32>]) {
    let source = texts.join("\n");
    let document = Document {
        id: id.to_owned(),
        collection: "c".to_owned(),
        title: format!("About {id}"),
        media_type: "text/plain".to_owned(),
        hash: sha256_hex(source.as_bytes()),
        bytes: 0,
        chunks: 0,
        added_unix: 0,
        tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Document::default()
    };
    let chunk = |(text, ordinal): (&&str, u32)| Chunk {
        document: id.to_owned(),
        ordinal,
        heading: vec!["A".to_owned(), "B".to_owned()],
        page: Some(ordinal + 1),
        text: (*text).to_owned(),
        breaks: Vec::new(),
        sections: Vec::new(),
        offset: 0,
        tokens: 10,
    };
    let chunks: Vec<Chunk> = texts.iter().zip(0..).map(chunk).collect();
    store.put(&document, source.as_bytes(), &chunks, vectors).unwrap();
}

/// Scores of a question whose vector is given, in the order the rows were stored.
fn scores(store: &Store, text: &str, vector: &[f32]) -> Vec<Hit> {
    ask(store, text, vector, &|_| true).0
}

fn ask(store: &Store, text: &str, vector: &[f32], accept: &dyn Fn(&IndexedDocument) -> bool) -> (Vec<Hit>, Fusion) {
    let scored = store.search("c", |index| {
        let question = score::weigh(index, text, &RoaringBitmap::new());
        let hits = score::hits(index, vector, &question, &index.select(accept));
        let fusion = Fusion::over(&hits, &question);
        (hits, fusion)
    });
    scored.unwrap().unwrap()
}

/// Rows by their fused scores, best first.
fn ranked(store: &Store, text: &str, vector: &[f32], accept: &dyn Fn(&IndexedDocument) -> bool) -> Vec<u32> {
    let (mut hits, fusion) = ask(store, text, vector, accept);
    hits.sort_by(|a, b| fusion.sum(b.dense, b.lexical, 1.0).total_cmp(&fusion.sum(a.dense, a.lexical, 1.0)));
    hits.iter().map(|hit| hit.row).collect()
}

#[test]
fn dense_scores_are_cosines() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), DIMENSIONS);
    let mut random = fastrand::Rng::with_seed(7);
    let mut vector = || {
        let raw: Vec<f32> = (0..DIMENSIONS).map(|_| random.f32() - 0.5).collect();
        let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
        raw.into_iter().map(|value| value / length).collect::<Vec<f32>>()
    };
    let vectors: Vec<Vec<f32>> = (0..20).map(|_| vector()).collect();
    put(&store, "a", &[], &["x"; 20], &vectors);
    let query = vector();
    for (hit, stored) in scores(&store, "", &query).iter().zip(&vectors) {
        let exact: f32 = query.iter().zip(stored).map(|(a, b)| a * b).sum();
        assert!((hit.dense - exact).abs() < 0.01, "{hit:?} {exact}");
    }
}

#[test]
fn lexical_scores_are_bm25() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), DIMENSIONS);
    put(&store, "a", &[], &["pump pump valve", "valve", "filter"], &[unit(0), unit(0), unit(0)]);
    let lexical = |text: &str| scores(&store, text, &unit(1)).iter().map(|hit| hit.lexical).collect::<Vec<f32>>();
    let pump = lexical("pump");
    // idf = ln(1 + (3 - 1 + 0.5) / (1 + 0.5)); three words against a mean of 5/3; no "pump" in title or heading.
    let idf = (1.0f32 + 2.5 / 1.5).ln();
    let frequency = 2.0 / (1.0 - 0.4 + 0.4 * 3.0 / (5.0 / 3.0));
    assert!((pump[0] - idf * frequency / (0.9 + frequency)).abs() < 1e-5, "{pump:?}");
    assert_eq!(pump[1..], [0.0, 0.0]);
    assert!(lexical("about").iter().all(|score| *score == 0.0), "a stop word scores nothing");
}

#[test]
fn unknown_codes_are_told_from_other_spellings() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), DIMENSIONS);
    put(&store, "a", &[], &["error E-42 means low flow, 192.168.1.1 is the address", "fault 17: filter"], &[unit(0), unit(1)]);
    let unknown =
        |text: &str| store.search("c", |index| score::weigh(index, text, &RoaringBitmap::new()).unknown_code).unwrap().unwrap();
    assert!(["What does E-99 mean?", "P0420", "10.0.77.3", "What is at 192.168.1.17?"].iter().all(|text| unknown(text)));
    assert!(!["E42?", "What is E-17?", "192.168.1.1", "How high is the flow?", "2003"].iter().any(|text| unknown(text)));
}

#[test]
fn words_and_meaning_both_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), DIMENSIONS);
    put(&store, "a", &[], &["error E-42 means low flow"], &[unit(0)]);
    put(&store, "b", &[], &["the water moves too slowly"], &[unit(1)]);
    put(&store, "c", &[], &["warranty"], &[unit(2)]);
    let best = |text: &str, axis: usize| ranked(&store, text, &unit(axis), &|_| true);
    assert_eq!(best("E42", 5)[0], 0, "only the words match");
    assert_eq!(best("???", 1)[0], 1, "only the meaning matches");
    assert_eq!(best("flow", 1)[2], 2);
}

#[test]
fn filters_are_or_within_and_and_between_keys() {
    let document = |id: &str, model: &str| IndexedDocument {
        id: id.to_owned(),
        number: 1,
        tags: BTreeMap::from([("model".to_owned(), model.to_owned())]),
        language: Language::English,
    };
    let filter = |pairs: &[(&str, &[&str])]| -> BTreeMap<String, Vec<String>> {
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        pairs.iter().map(|(key, values)| ((*key).to_owned(), owned(values))).collect()
    };
    let a = document("a", "X1");
    assert!(accepts(&filter(&[]), &a));
    assert!(accepts(&filter(&[("model", &["X2", "X1"])]), &a));
    assert!(accepts(&filter(&[("model", &["X1"]), ("document", &["a"])]), &a));
    assert!(!accepts(&filter(&[("model", &["X1"]), ("document", &["b"])]), &a));
    assert!(!accepts(&filter(&[("year", &["2024"])]), &a));
}

#[test]
fn filtered_and_deleted_rows_are_not_ranked() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), DIMENSIONS);
    put(&store, "a", &[("lang", "de")], &["pump", "pump"], &[unit(0), unit(0)]);
    put(&store, "b", &[("lang", "en")], &["pump"], &[unit(0)]);
    let ranked = |accept: &dyn Fn(&IndexedDocument) -> bool| ranked(&store, "pump", &unit(0), accept);
    assert_eq!(ranked(&|_| true), [0, 1, 2]);
    assert_eq!(ranked(&|document| document.tags["lang"] == "en"), [2]);
    store.delete("c", "a").unwrap();
    assert_eq!(ranked(&|_| true), [2]);
    assert!(ranked(&|_| false).is_empty());
}

const MANUAL: [&str; 4] = [
    "The heat pump shows E-42 when the flow is below 8 litres per minute. Clean the strainer, then press Reset.",
    "After cleaning the strainer, open both valves. The flow recovers within a minute.",
    "The warranty covers five years. Wear parts such as filters are excluded.",
    "Set the holiday mode in the menu. The house is kept at 15 degrees.",
];

#[test]
fn foreign_questions_are_less_sure() {
    let embedder = embedder();
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), embedder.dimensions());
    let retriever = Retriever::new(store.clone(), encoder(&embedder));
    let ask = |text: &str| Query { text: text.to_owned(), collection: "c".to_owned(), top_k: 2, ..Query::default() };

    let empty = retriever.search(&ask("anything")).unwrap();
    assert!(empty.passages.is_empty() && empty.confidence == 0.0);

    let texts = MANUAL.map(str::to_owned);
    let vectors: Vec<Vec<f32>> = embedder.embed(&texts).unwrap().into_iter().map(|embedding| embedding.vector).collect();
    put(&store, "manual", &[("model", "X1")], &MANUAL, &vectors);

    let found = retriever.search(&ask("What does error E42 mean?")).unwrap();
    let passage = &found.passages[0];
    assert!(passage.text.starts_with("The heat pump shows E-42"), "{passage:?}");
    assert_eq!((passage.chunk.as_str(), passage.heading.as_str(), passage.page), ("manual#0", "A > B", Some(1)));
    let foreign = retriever.search(&ask("Who won the football championship in 1998?")).unwrap();
    assert!(found.confidence > 0.5 && foreign.confidence < 0.2, "{} {}", found.confidence, foreign.confidence);

    let mut elsewhere = ask("pump");
    elsewhere.filter.insert("model".to_owned(), vec!["X2".to_owned()]);
    assert!(retriever.search(&elsewhere).unwrap().passages.is_empty());
    elsewhere.collection = "other".to_owned();
    let error = retriever.search(&elsewhere).unwrap_err();
    assert!(matches!(&error, RetrieveError::UnknownCollection { known, .. } if known == &["c"]), "{error}");
}

#[test]
fn a_hidden_document_counts_nowhere() {
    let embedder = embedder();
    let other = "The cellar pump runs at night. It is quiet.".to_owned();
    let encoded = |texts: &[String]| -> Vec<Vec<f32>> {
        embedder.embed(texts).unwrap().into_iter().map(|embedding| embedding.vector).collect()
    };
    let with = |manual: bool| {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), embedder.dimensions());
        if manual {
            put(&store, "manual", &[], &MANUAL, &encoded(&MANUAL.map(str::to_owned)));
        }
        put(&store, "other", &[], &[&other], &encoded(std::slice::from_ref(&other)));
        (dir, Retriever::new(store, encoder(&embedder)))
    };
    let ((_whole, whole), (_part, part)) = (with(true), with(false));
    for text in ["What does error E42 mean?", "Does the pump run at night?"] {
        let query = Query { text: text.to_owned(), collection: "c".to_owned(), top_k: 2, ..Query::default() };
        let hidden = whole.search(&Query { without: BTreeSet::from(["manual".to_owned()]), ..query.clone() }).unwrap();
        assert!(hidden.passages.iter().all(|passage| passage.document == "other"), "{hidden:?}");
        assert!(whole.search(&query).unwrap().passages.iter().any(|passage| passage.document == "manual"));
        // Code and rarity too: the same confidence as in a library that never had the document.
        assert!((hidden.confidence - part.search(&query).unwrap().confidence).abs() < 1e-4, "{text}");
    }
}

/// A library of chunks with the vectors that the encoder gives them.
fn library(dir: &Path, embedder: &Embedder, texts: &[&str]) -> Retriever {
    let store = store(dir, embedder.dimensions());
    let owned: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    let vectors: Vec<Vec<f32>> = embedder.embed(&owned).unwrap().into_iter().map(|embedding| embedding.vector).collect();
    put(&store, "manual", &[], texts, &vectors);
    Retriever::new(store, encoder(embedder))
}

#[test]
fn a_code_with_signs_is_found_as_it_stands() {
    let codes = [
        ("C++", "The plug-in is compiled from C++ with the tool chain of the vendor."),
        ("::1", "The web page of the controller is reached under ::1 from the board itself."),
        ("-z", "The option -z packs the archive before it is sent."),
        ("--force", "With `--force` the update is installed without asking."),
        (".bashrc", "The path is set in .bashrc of the user."),
    ];
    let like = [
        "The contact C of the relay opens first.",
        "A force of 5 N holds the lid. Never use force on the hinge.",
        "Row 1 of the terminal strip is for the sensors.",
        "The axis Z moves up and down.",
    ];
    let embedder = embedder();
    let ask = |text: &str| Query { text: text.to_owned(), collection: "c".to_owned(), top_k: 2, ..Query::default() };
    // A small library and a larger one.
    for more in [&[][..], &MANUAL[..]] {
        let dir = tempfile::tempdir().unwrap();
        let texts: Vec<&str> = codes.iter().map(|(_, text)| *text).chain(like).chain(more.iter().copied()).collect();
        let retriever = library(dir.path(), &embedder, &texts);
        for (code, text) in codes {
            for question in [code.to_owned(), format!("What about {code}?"), format!("\u{201c}{code}\u{201d}")] {
                let found = retriever.search(&ask(&question)).unwrap();
                assert_eq!(found.passages[0].best_chunk(), text, "{question}");
                assert!(found.confidence > 0.5, "{question}: {}", found.confidence);
            }
        }
        for unknown in ["--frobnicate", "-q", "F#", "::7"] {
            let found = retriever.search(&ask(unknown)).unwrap();
            assert!(found.confidence < 0.5, "{unknown}: {}", found.confidence);
        }
    }
}

#[test]
fn small_libraries_use_the_kept_vectors() {
    let embedder = embedder();
    let (text, question) = ("The lid is blue.", "How many years does the warranty cover?");
    let asked = embedder.embed_query(question).unwrap().vector;
    let elsewhere = embedder.embed(&[text.to_owned()]).unwrap().remove(0).vector;
    let confidence = |statement: &Vec<f32>| {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), embedder.dimensions());
        let (id, collection, hash) = ("a".to_owned(), "c".to_owned(), sha256_hex(text.as_bytes()));
        let document = Document { id: id.clone(), collection, hash, ..Document::default() };
        let chunk = Chunk {
            document: id,
            ordinal: 0,
            heading: Vec::new(),
            page: None,
            text: text.to_owned(),
            breaks: Vec::new(),
            sections: Vec::new(),
            offset: 0,
            tokens: 9,
        };
        let kept = StatementVectors { version: STATEMENTS_VERSION, vectors: vec![statement.clone()] };
        let mut incoming = store.begin_put(&document, text.as_bytes()).unwrap();
        incoming.append_with_statements(&[chunk], std::slice::from_ref(&elsewhere), &[kept]).unwrap();
        incoming.commit().unwrap();
        let query = Query { text: question.to_owned(), collection: "c".to_owned(), top_k: 1, ..Query::default() };
        Retriever::new(store, encoder(&embedder)).search(&query).unwrap().confidence
    };
    let (like, unlike) = (confidence(&asked), confidence(&elsewhere));
    assert!(like > 0.9 && unlike < 0.1, "nothing is encoded but the question: {like} {unlike}");
}

#[test]
fn an_unusual_question_is_only_a_question() {
    let embedder = embedder();
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), embedder.dimensions());
    let vector = embedder.embed_query("pump").unwrap().vector;
    put(&store, "a", &[], &["pump"], &[vector]);
    let retriever = Retriever::new(store, encoder(&embedder));
    for text in ["", " ", "\u{0}", "[SEP] [CLS]", &"pump ".repeat(5000), "🫠", &"a-".repeat(9000)] {
        for top_k in [0, 1, usize::MAX] {
            let query = Query { text: text.to_owned(), collection: "c".to_owned(), top_k, ..Query::default() };
            let found = retriever.search(&query).unwrap();
            assert!((0.0..=1.0).contains(&found.confidence) && found.passages.len() == 1);
        }
    }
}
