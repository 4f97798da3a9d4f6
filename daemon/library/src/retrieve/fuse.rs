//! One order from two scores, and from the order of the words.
//!
//! Dense and lexical scores are brought to one scale by their spread among the best rows, and summed. The first rows of the
//! fused ranking are then read. A row gains if it holds the question's words next to each other, in the question's order.

use std::collections::{BTreeMap, HashSet};

use super::score::{B, Hit, K1};
use super::sentences::sentences;
use crate::store::terms::{self, Language};

/// Share of the dense score in the sum, for text that the encoder is fluent in; the rest is lexical. Both count the same. The
/// optimum is flat from 0.45 to 0.6, and sets that gain from more of one lose as much by less of the other.
const DENSE_SHARE: f32 = 0.5;
/// Number of best rows whose standard deviation is the spread of a score: the rows that contend, however large the collection
/// is. The method is close to the distribution-based fusion of Mazzeschi (2023), without its clipping.
const CONTENDERS: usize = 50;
/// Least spread of cosines: 95 % of the questions tried have more. Rows that look alike to the encoder stay alike.
const LEAST_DENSE_SPREAD: f32 = 0.03;
/// Least spread of lexical scores, as a share of the score of a row that holds every term of the question. Without it, a stray
/// match would outweigh any meaning when few rows hold a few of the words.
const LEAST_LEXICAL_SPREAD: f32 = 0.05;
/// Candidates that are read to see the order of their words. Ten give nearly the same ranking.
pub(super) const READ: usize = 20;

/// A question's terms in one language, in order and with repeats, each with its inverse document frequency.
pub(super) type Terms = Vec<(String, f32)>;

/// A question's terms, weighed by their rarity in the collection asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Weighed {
    /// The terms in each language of the collection's documents.
    pub(super) by_language: Vec<(Language, Terms)>,
    /// Whether the question names a code that the collection does not know in any spelling.
    pub(super) unknown_code: bool,
    /// Mean length of the collection's rows in terms, title and headings included; at least 1.
    pub(super) mean_length: f32,
}

impl Weighed {
    /// Each distinct term with its weight, times its number in the question.
    pub(super) fn distinct(&self) -> BTreeMap<&str, f32> {
        let mut distinct: BTreeMap<&str, f32> = BTreeMap::new();
        for (_, terms) in &self.by_language {
            let mut own: BTreeMap<&str, f32> = BTreeMap::new();
            for (term, weight) in terms {
                *own.entry(term).or_insert(0.0) += weight;
            }
            for (term, weight) in own {
                let most = distinct.entry(term).or_insert(weight);
                *most = most.max(weight);
            }
        }
        distinct
    }

    /// The lexical score that no row can exceed.
    fn attainable(&self) -> f32 {
        let sums = self.by_language.iter().map(|(_, terms)| terms.iter().map(|(_, weight)| weight).sum::<f32>());
        sums.fold(0.0, f32::max)
    }

    fn terms(&self, language: Language) -> &[(String, f32)] {
        self.by_language.iter().find(|(own, _)| *own == language).map_or(&[], |(_, terms)| terms)
    }

    /// Whether the question names a code: a part, an error, a path, an address.
    pub(super) fn names_code(&self) -> bool {
        self.by_language.iter().flat_map(|(_, terms)| terms).any(|(term, _)| terms::is_code(term))
    }

    /// Whether a text in `language` holds one of the error codes that the question names, or the question names none. `E-17` and
    /// `P0420` are such codes, `4K` is not.
    pub(super) fn holds_error_code(&self, language: Language, held: &[String]) -> bool {
        let mut codes = self.terms(language).iter().map(|(term, _)| term.as_str()).filter(|term| is_error_code(term)).peekable();
        codes.peek().is_none() || codes.any(|code| held.iter().any(|term| term == code))
    }

    /// Share of the question's terms that are among those `held` by a text in `language`, weighted by rarity; 0 for a question
    /// without terms.
    pub(super) fn coverage(&self, language: Language, held: &[String]) -> f32 {
        let held: HashSet<&str> = held.iter().map(String::as_str).collect();
        let asked: BTreeMap<&str, f32> = self.terms(language).iter().map(|(term, weight)| (term.as_str(), *weight)).collect();
        let total: f32 = asked.values().sum();
        let found: f32 = asked.iter().filter(|(term, _)| held.contains(*term)).map(|(_, weight)| weight).sum();
        if total > 0.0 { found / total } else { 0.0 }
    }

    /// Offset of the sentence, in bytes, that holds most of the question's terms by rarity; the first of equals. The text is in
    /// `language`.
    pub(super) fn best_sentence(&self, language: Language, text: &str) -> usize {
        let mut best = (0, 0.0);
        for sentence in sentences(text) {
            let coverage = self.coverage(language, &terms::analyze(&text[sentence.clone()], language).terms);
            if coverage > best.1 {
                best = (sentence.start, coverage);
            }
        }
        best.0
    }

    /// The gain of a text in `language` for neighbouring terms of the question that stand next to each other in the same order.
    /// Each pair weighs as its less rare term; repeats saturate as in BM25. Term proximity after Rasolofo and Savoy (2003),
    /// with the ordered window of the sequential dependence model (Metzler and Croft 2005).
    pub(super) fn pairs(&self, language: Language, text: &[String]) -> f32 {
        let mut weights: BTreeMap<(&str, &str), f32> = BTreeMap::new();
        for pair in self.terms(language).windows(2).filter(|pair| pair[0].0 != pair[1].0) {
            *weights.entry((&pair[0].0, &pair[1].0)).or_insert(0.0) += pair[0].1.min(pair[1].1);
        }
        let mut counts: BTreeMap<(&str, &str), f32> = BTreeMap::new();
        for pair in text.windows(2) {
            let pair = (pair[0].as_str(), pair[1].as_str());
            if weights.contains_key(&pair) {
                *counts.entry(pair).or_insert(0.0) += 1.0;
            }
        }
        let saturation = K1 * (1.0 - B[1] + B[1] * text.len() as f32 / self.mean_length);
        counts.iter().map(|(pair, count)| weights[pair] * count / (saturation + count)).sum()
    }
}

/// The weighing of one question's two scores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fusion {
    dense: Scale,
    lexical: Scale,
}

/// One score among the contending rows.
#[derive(Clone, Copy, Debug)]
struct Scale {
    best: f32,
    /// The score of the last contender.
    last: f32,
    spread: f32,
}

impl Scale {
    fn over(values: impl Iterator<Item = f32>, least_spread: f32) -> Scale {
        let mut values: Vec<f32> = values.collect();
        values.sort_unstable_by(|a, b| b.total_cmp(a));
        values.truncate(CONTENDERS);
        let count = values.len().max(1) as f32;
        let mean = values.iter().sum::<f32>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count;
        Scale {
            best: values.first().copied().unwrap_or(0.0),
            last: values.last().copied().unwrap_or(0.0),
            spread: variance.sqrt().max(least_spread).max(f32::MIN_POSITIVE),
        }
    }
}

impl Fusion {
    /// Measures the spread of both scores among `hits`, which hold at least the best rows of either.
    pub(super) fn over(hits: &[Hit], question: &Weighed) -> Fusion {
        Fusion {
            dense: Scale::over(hits.iter().map(|hit| hit.dense), LEAST_DENSE_SPREAD),
            lexical: Scale::over(hits.iter().map(|hit| hit.lexical), LEAST_LEXICAL_SPREAD * question.attainable()),
        }
    }

    /// The weighted sum of both scores of a row, whose text the encoder is `fluent` in, 0 to 1. Its zero and its unit mean nothing.
    pub(super) fn sum(&self, dense: f32, lexical: f32, fluent: f32) -> f32 {
        let share = DENSE_SHARE * fluent;
        share * dense / self.dense.spread + (1.0 - share) * lexical / self.lexical.spread
    }

    /// A sum on a readable scale: 1 for a row that is best by both scores, 0 for the last contender.
    pub(super) fn readable(&self, sum: f32, best_lexical: f32, fluent: f32) -> f32 {
        let lowest = self.sum(self.dense.last, self.lexical.last, fluent);
        let span = self.sum(self.dense.best, self.lexical.best.max(best_lexical), fluent) - lowest;
        // One row, or equal rows: each is as good as the best.
        if span > f32::EPSILON { ((sum - lowest) / span).clamp(0.0, 1.0) } else { 1.0 }
    }
}

/// Whether a term is up to three letters, perhaps a hyphen, and two digits or more.
fn is_error_code(term: &str) -> bool {
    let letters = term.chars().take_while(|c| c.is_alphabetic()).count();
    let rest: String = term.chars().skip(letters).collect();
    let digits = rest.strip_prefix('-').unwrap_or(&rest);
    (1..=3).contains(&letters) && digits.len() >= 2 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighed(terms: &[(&str, f32)]) -> Weighed {
        let terms = terms.iter().map(|(term, weight)| ((*term).to_owned(), *weight)).collect();
        Weighed { by_language: vec![(Language::English, terms)], unknown_code: false, mean_length: 4.0 }
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn hits(scores: &[(f32, f32)]) -> Vec<Hit> {
        scores.iter().zip(0..).map(|(&(dense, lexical), row)| Hit { row, dense, lexical }).collect()
    }

    #[test]
    fn the_best_sentence_holds_the_rarest_words() {
        let question = weighed(&[("filter", 3.0), ("clean", 1.0)]);
        let text = "Clean the tank. Look after the filter.\nDone.";
        assert_eq!(question.best_sentence(Language::English, text), 16);
        assert_eq!(question.best_sentence(Language::English, "Nothing. Of it."), 0);
    }

    #[test]
    fn coverage_weighs_rare_terms_more() {
        let question = weighed(&[("pump", 0.5), ("valve", 1.5), ("pump", 0.5)]);
        assert!((question.coverage(Language::English, &words("open the valve")) - 0.75).abs() < 1e-6);
        assert!((question.coverage(Language::English, &words("pump valve")) - 1.0).abs() < 1e-6);
        assert!(weighed(&[]).coverage(Language::English, &words("pump")).abs() < 1e-6);
    }

    #[test]
    fn pairs_count_in_the_order_of_the_question() {
        let question = weighed(&[("heat", 1.0), ("pump", 2.0), ("fault", 3.0)]);
        // One occurrence in a text of mean length: weight / (1 + K1).
        assert!((question.pairs(Language::English, &words("the heat pump hums")) - 1.0 / 1.9).abs() < 1e-5);
        assert!(question.pairs(Language::English, &words("pump heat fault pump")).abs() < 1e-6);
        assert!(
            question.pairs(Language::English, &words("heat pump fault now"))
                > question.pairs(Language::English, &words("heat pump hums now"))
        );
        assert!(weighed(&[("pump", 1.0)]).pairs(Language::English, &words("pump pump")).abs() < 1e-6);
    }

    #[test]
    fn a_term_of_two_languages_counts_once() {
        let terms = |pairs: &[(&str, f32)]| pairs.iter().map(|(term, weight)| ((*term).to_owned(), *weight)).collect();
        let by_language = vec![
            (Language::English, terms(&[("pump", 1.0), ("pump", 1.0)])),
            (Language::German, terms(&[("pump", 1.0), ("x", 4.0)])),
        ];
        let question = Weighed { by_language, unknown_code: false, mean_length: 1.0 };
        assert_eq!(question.distinct().into_iter().collect::<Vec<_>>(), [("pump", 2.0), ("x", 4.0)]);
        assert!((question.attainable() - 5.0).abs() < 1e-6);
        assert!((question.coverage(Language::German, &words("pump")) - 0.2).abs() < 1e-6);
        assert!(question.coverage(Language::Greek, &words("pump")).abs() < 1e-6);
    }

    #[test]
    fn verbatim_hits_outweigh_alike_vectors() {
        let mut scores = vec![(0.50, 0.0); 30];
        scores[7] = (0.48, 5.0);
        scores[3] = (0.52, 0.0);
        let code = weighed(&[("e-42", 5.5)]);
        let fusion = Fusion::over(&hits(&scores), &code);
        assert!(fusion.sum(0.48, 5.0, 1.0) > fusion.sum(0.52, 0.0, 1.0));

        let mut scores: Vec<(f32, f32)> = (0..30u8).map(|n| (0.1 + f32::from(n) / 100.0, 0.0)).collect();
        scores[5].1 = 0.4;
        scores[29].0 = 0.6;
        let foreign = weighed(&[("alpha", 5.0), ("beta", 5.0), ("gamma", 5.0), ("also", 0.5)]);
        let fusion = Fusion::over(&hits(&scores), &foreign);
        assert!(fusion.sum(0.6, 0.0, 1.0) > fusion.sum(scores[5].0, 0.4, 1.0));
    }

    #[test]
    fn readable_scores_lie_between_nought_and_one() {
        let question = weighed(&[("pump", 2.0)]);
        let fusion = Fusion::over(&hits(&[(0.7, 1.0), (0.3, 1.5), (-0.1, 0.0)]), &question);
        assert!((fusion.readable(fusion.sum(0.7, 1.5, 1.0), 1.5, 1.0) - 1.0).abs() < 1e-6);
        assert!(fusion.readable(fusion.sum(-0.1, 0.0, 1.0), 1.5, 1.0).abs() < 1e-6);
        let middle = fusion.readable(fusion.sum(0.7, 1.0, 1.0), 1.5, 1.0);
        assert!(middle > 0.5 && middle < 1.0, "{middle}");
        let alone = Fusion::over(&hits(&[(0.4, 0.0)]), &question);
        assert!((alone.readable(alone.sum(0.4, 0.0, 1.0), 0.0, 1.0) - 1.0).abs() < 1e-6);
        assert!(Fusion::over(&[], &weighed(&[])).sum(0.0, 0.0, 1.0).is_finite());
    }
}
