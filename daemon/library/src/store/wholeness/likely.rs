//! The likeliest document for the questions that wait, by the words that it shares with one of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::Read;

use crate::store::Document;
use crate::store::terms::{self, Language};

/// Bytes of a source that are looked into. Titles, summaries and tables of contents stand there.
const BEGINNING: u64 = 4096;
/// Questions that are looked at, oldest first.
const MOST_ASKED: usize = 8;
/// Sources that are looked into: about a second's work. The others are judged by title and id.
const MOST_BEGINNINGS: usize = 1000;
/// Weight of a word in title or id, beside one in the text.
const NAME_WEIGHT: f32 = 2.0;

/// A question that waits.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    collection: String,
    text: String,
}

impl Asked {
    pub(super) fn new(collection: &str, text: &str) -> Self {
        Self { collection: collection.to_owned(), text: text.to_owned() }
    }
}

/// A document that is not read yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unread<'a> {
    /// Its collection.
    pub(crate) collection: &'a str,
    /// Its id.
    pub(crate) id: &'a str,
    /// Its title; empty if nobody knows it.
    pub(crate) title: &'a str,
}

impl<'a> From<&'a Document> for Unread<'a> {
    fn from(document: &'a Document) -> Self {
        let Document { collection, id, title, .. } = document;
        Self { collection, id, title }
    }
}

/// The beginning of a source, if it is text; else nothing.
pub(crate) fn beginning(source: std::io::Result<impl Read>) -> String {
    let mut bytes = Vec::new();
    // Only the order depends on it: a source that cannot be read is told of when it is its turn.
    let read = source.and_then(|source| source.take(BEGINNING).read_to_end(&mut bytes));
    if read.is_err() || bytes.contains(&0) || bytes.starts_with(b"%PDF") {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Collection and id.
type Key = (String, String);

/// Digests of the terms of a document, sorted. A document costs some 1 KiB while questions wait.
#[derive(Debug)]
struct Profile {
    language: Language,
    name: Vec<u32>,
    text: Vec<u32>,
}

impl Profile {
    fn of(document: Unread<'_>, beginning: &str) -> Self {
        let name = format!("{} {}", document.title, document.id);
        let language = terms::language_of([name.as_str(), beginning].into_iter());
        Self { language, name: digests(&name, language), text: digests(beginning, language) }
    }

    /// The weight of a term by the place that holds it; 0 if none does.
    fn weight(&self, term: u32) -> f32 {
        if self.name.binary_search(&term).is_ok() {
            NAME_WEIGHT
        } else if self.text.binary_search(&term).is_ok() {
            1.0
        } else {
            0.0
        }
    }
}

fn digests(text: &str, language: Language) -> Vec<u32> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut digests: Vec<u32> = terms::analyze(text, language).terms.iter().map(|term| hasher.hash_one(term) as u32).collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

/// The profiles of documents that wait, kept while questions wait.
#[derive(Debug, Default)]
pub(super) struct Readers {
    profiles: HashMap<Key, Profile>,
}

impl Readers {
    /// See [`super::Wholeness::likeliest`].
    pub(super) fn likeliest(&mut self, asked: &[Asked], candidates: &[Unread<'_>], begins: impl Fn(usize) -> String) -> usize {
        if asked.is_empty() {
            self.profiles.clear();
            return 0;
        }
        let keys: Vec<Key> = candidates.iter().map(key_of).collect();
        let (mut best, mut place) = (0.0, 0);
        for question in asked.iter().take(MOST_ASKED) {
            let of_collection = || (0..candidates.len()).filter(|at| candidates[*at].collection == question.collection);
            for at in of_collection() {
                if !self.profiles.contains_key(&keys[at]) {
                    let looked_into = self.profiles.len() < MOST_BEGINNINGS;
                    let beginning = if looked_into { begins(at) } else { String::new() };
                    self.profiles.insert(keys[at].clone(), Profile::of(candidates[at], &beginning));
                }
            }
            let profiles: Vec<(usize, &Profile)> = of_collection().map(|at| (at, &self.profiles[&keys[at]])).collect();
            for (at, score) in scores(&question.text, &profiles) {
                if score > best {
                    (best, place) = (score, at);
                }
            }
        }
        place
    }
}

fn key_of(document: &Unread<'_>) -> Key {
    (document.collection.to_owned(), document.id.to_owned())
}

/// The sum of a question's terms in each document, each by its rarity among the documents.
fn scores(question: &str, profiles: &[(usize, &Profile)]) -> Vec<(usize, f32)> {
    let languages: BTreeSet<Language> = profiles.iter().map(|(_, profile)| profile.language).collect();
    let asked: BTreeMap<Language, Vec<u32>> =
        languages.into_iter().map(|language| (language, digests(question, language))).collect();
    let mut holders: HashMap<u32, u32> = HashMap::new();
    for (_, profile) in profiles {
        for term in asked[&profile.language].iter().filter(|term| profile.weight(**term) > 0.0) {
            *holders.entry(*term).or_default() += 1;
        }
    }
    let rarity = |term: &u32| (1.0 + profiles.len() as f32 / holders.get(term).copied().unwrap_or(1) as f32).ln();
    let score = |profile: &Profile| asked[&profile.language].iter().map(|term| rarity(term) * profile.weight(*term)).sum();
    profiles.iter().map(|(at, profile)| (*at, score(profile))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Id, title and text.
    type Candidate = (String, String, String);

    fn candidate(id: &str, title: &str, text: &str) -> Candidate {
        (id.into(), title.into(), text.into())
    }

    fn pick(readers: &mut Readers, questions: &[(&str, &str)], candidates: &[Candidate]) -> String {
        let asked: Vec<Asked> = questions.iter().map(|(collection, text)| Asked::new(collection, text)).collect();
        let unread: Vec<Unread<'_>> = candidates.iter().map(|(id, title, _)| Unread { collection: "c", id, title }).collect();
        candidates[readers.likeliest(&asked, &unread, |at| candidates[at].2.clone())].0.clone()
    }

    #[test]
    fn a_rare_word_outweighs_common_ones() {
        let mut readers = Readers::default();
        let about =
            |n: usize, words: &str| candidate(&format!("d{n}.md"), "Manual of the pump", &format!("The pump opens. {words}"));
        let candidates = [about(0, ""), about(1, "It has a gasket."), about(2, "Error E-42 stops it."), about(3, "")];
        assert_eq!(pick(&mut readers, &[("c", "What does error E-42 of the pump mean?")], &candidates), "d2.md");
        assert_eq!(pick(&mut readers, &[("c", "Which gaskets does the pump have?")], &candidates), "d1.md", "by its stem");
        assert_eq!(pick(&mut readers, &[("c", "Who was Napoleon?")], &candidates), "d0.md", "the first, if no word is shared");
        assert_eq!(pick(&mut readers, &[("d", "Which gaskets does the pump have?")], &candidates), "d0.md", "another collection");
    }

    #[test]
    fn a_word_of_the_title_outweighs_one_in_the_text() {
        let candidates =
            [candidate("a.md", "Cellar", "The boiler is upstairs."), candidate("b.md", "Boiler", "It heats the house.")];
        assert_eq!(pick(&mut Readers::default(), &[("c", "How do I start the boiler?")], &candidates), "b.md");
        let by_id = [candidate("cellar.pdf", "", ""), candidate("manuals/boiler-7.pdf", "", "")];
        assert_eq!(pick(&mut Readers::default(), &[("c", "How do I start the boiler?")], &by_id), "manuals/boiler-7.pdf");
    }

    #[test]
    fn each_language_has_its_own_stems() {
        let german = "Die Pumpe wird mit dem grünen Knopf gestartet. Das Ventil ist vor dem Start zu öffnen, und die Anzeige muss leuchten."; // typos: ignore
        let candidates = [
            candidate("a.md", "Fuses", "The fuses are in the cellar, and the spare ones on the shelf."),
            candidate("b.md", "", german),
        ];
        assert_eq!(pick(&mut Readers::default(), &[("c", "Welche Ventile werden geöffnet?")], &candidates), "b.md");
    }

    #[test]
    fn profiles_live_as_long_as_questions_wait() {
        let mut readers = Readers::default();
        let candidates = [candidate("a.md", "Cellar", "Fuses.")];
        pick(&mut readers, &[("c", "fuses")], &candidates);
        assert_eq!(readers.profiles.len(), 1);
        pick(&mut readers, &[], &candidates);
        assert!(readers.profiles.is_empty());
    }

    #[test]
    fn only_text_has_a_beginning() {
        let of = |bytes: &'static [u8]| beginning(Ok(bytes));
        assert_eq!(of(b"# Pump"), "# Pump");
        assert_eq!(of(b"caf\xe9"), "caf\u{fffd}");
        assert_eq!((of(b"%PDF-1.7 text"), of(b"PK\x03\x04\x00\x00")), (String::new(), String::new()));
        assert_eq!(beginning(Err::<&[u8], _>(std::io::ErrorKind::NotFound.into())), "");
        assert_eq!(beginning(Ok("x".repeat(10_000).as_bytes())).len() as u64, BEGINNING);
    }
}
