//! Text to token ids. Special tokens and truncation are added here.

use std::collections::HashSet;
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::models::ModelWrapper;
use tokenizers::{Model, Tokenizer};

use super::EmbedError;
use crate::gguf::{Gguf, TOKENIZER_JSON};
use crate::has_no_spaces;

/// Longest text that is tokenised, in bytes: no supported model takes a hundredth of that.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Longest tokenizer.json in bytes (large multilingual ones have 17 MB).
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// The ids of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tokens {
    /// With special tokens.
    pub(super) ids: Vec<i32>,
    /// Without special tokens.
    pub(super) of_text: usize,
    pub(super) truncated: bool,
    /// The range of each part's tokens in `ids`; `None` when a part has no token, or was cut.
    pub(super) parts: Vec<Option<Range<usize>>>,
}

pub(super) struct TextTokenizer {
    tokenizer: Tokenizer,
    /// Special tokens before and after every text, `[CLS]` and `[SEP]` for BERT.
    before: Vec<i32>,
    after: Vec<i32>,
    /// Ids that steer the model and that no text may produce.
    control: HashSet<u32>,
    /// The token for unknown words.
    unknown: Option<u32>,
    max_text_tokens: usize,
}

impl TextTokenizer {
    /// The tokenizer from `given`, else from the model file, else from the file beside it. `longest` includes special tokens.
    /// Also returns the SHA-256 of a tokenizer outside the model file.
    pub(super) fn load(gguf: &Gguf, given: Option<&Path>, longest: usize) -> Result<(TextTokenizer, Option<String>), EmbedError> {
        let beside = gguf.path().with_file_name("tokenizer.json");
        let (json, from, hash) = match (given, gguf.text(TOKENIZER_JSON)) {
            (Some(path), _) => outside(path)?,
            (None, Some(json)) => (json.to_owned(), gguf.path().display().to_string(), None),
            (None, None) if beside.is_file() => outside(&beside)?,
            (None, None) => {
                return Err(EmbedError::TokenizerMissing { path: gguf.path().display().to_string() });
            }
        };
        let vocabulary = gguf.tensor("token_embd.weight").and_then(|tensor| tensor.dims.get(1)).copied();
        let tokenizer = TextTokenizer::parse(&json, vocabulary.unwrap_or(0) as usize, longest);
        let tokenizer = tokenizer.map_err(|what| EmbedError::Tokenizer { from, what })?;
        Ok((tokenizer, hash))
    }

    fn parse(json: &str, vocabulary: usize, longest: usize) -> Result<TextTokenizer, String> {
        let mut tokenizer: Tokenizer = json.parse().map_err(|error| format!("it does not load ({error})"))?;
        // The file's own truncation and padding serve training. Texts are truncated here, so that cut tokens are counted.
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let size = tokenizer.get_vocab_size(true);
        if size > vocabulary {
            return Err(format!("it has {size} tokens, the model {vocabulary}"));
        }
        let framed = tokenizer.encode("a", true).map_err(|error| error.to_string())?;
        let mask = framed.get_special_tokens_mask();
        let ids: Vec<i32> = framed.get_ids().iter().map(|id| *id as i32).collect();
        let first = mask.iter().position(|special| *special == 0).ok_or("it makes no token of a letter")?;
        let last = mask.iter().rposition(|special| *special == 0).unwrap_or(first);
        let (before, after) = (ids[..first].to_vec(), ids[last + 1..].to_vec());
        let max_text_tokens = longest.saturating_sub(before.len() + after.len());
        if max_text_tokens == 0 {
            return Err(format!("its special tokens alone fill the {longest} positions of the model"));
        }
        // `[SEP]` in a text is a word in brackets, not the end of a sentence.
        tokenizer.set_encode_special_tokens(true);
        let unknown = unknown_id(&tokenizer);
        Ok(TextTokenizer { control: control_ids(&tokenizer, unknown), unknown, tokenizer, before, after, max_text_tokens })
    }

    pub(super) fn max_text_tokens(&self) -> usize {
        self.max_text_tokens
    }

    pub(super) fn count(&self, text: &str) -> usize {
        self.text_ids(text).map_or(0, |ids| ids.len())
    }

    /// Letters of a text for each of its tokens; 0 without letters. See [`super::Embedder::letters_per_token`].
    pub(super) fn letters_per_token(&self, text: &str) -> f32 {
        let (mut letters, mut tokens) = (0.0, 0.0);
        for word in text.split(|c: char| !is_letter(c)).filter(|word| !word.is_empty()) {
            let own: f32 = word.chars().map(letter_weight).sum();
            let Ok(encoded) = self.tokenizer.encode_fast(word, false) else { continue };
            let is_unknown = encoded.get_ids().iter().any(|id| Some(*id) == self.unknown);
            letters += own;
            tokens += if is_unknown { own } else { encoded.get_ids().len() as f32 };
        }
        if tokens > 0.0 { letters / tokens } else { 0.0 }
    }

    /// Ids with special tokens around them, cut to the model's limit. `parts` are byte ranges of the text.
    pub(super) fn encode(&self, text: &str, parts: &[Range<usize>]) -> Result<Tokens, EmbedError> {
        let mut end = text.len().min(MAX_TEXT_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let fails = |error: tokenizers::Error| EmbedError::Tokenizer {
            from: "the model".into(),
            what: format!("it fails on a text: {error}"),
        };
        let (mut of_text, parts) = if parts.is_empty() {
            (self.text_ids(&text[..end]).map_err(fails)?, Vec::new())
        } else {
            let (ids, begins) = self.text_ids_and_places(&text[..end]).map_err(fails)?;
            let in_ids = |part: &Range<usize>| {
                let first = begins.partition_point(|at| *at < part.start);
                let last = begins.partition_point(|at| *at < part.end);
                let whole = first < last && last <= self.max_text_tokens;
                whole.then(|| self.before.len() + first..self.before.len() + last)
            };
            (ids, parts.iter().map(in_ids).collect())
        };
        let truncated = end < text.len() || of_text.len() > self.max_text_tokens;
        of_text.truncate(self.max_text_tokens);
        let mut ids = self.before.clone();
        ids.extend(&of_text);
        ids.extend(&self.after);
        if ids.is_empty() {
            return Err(EmbedError::EmptyText);
        }
        Ok(Tokens { ids, of_text: of_text.len(), truncated, parts })
    }

    fn text_ids(&self, text: &str) -> tokenizers::Result<Vec<i32>> {
        let encoding = self.tokenizer.encode_fast(text, false)?;
        // Some vocabularies also hold their control tokens as ordinary pieces.
        let of_text = encoding.get_ids().iter().filter(|id| !self.control.contains(id));
        Ok(of_text.map(|id| *id as i32).collect())
    }

    /// The ids, and the byte offset of each in the text.
    fn text_ids_and_places(&self, text: &str) -> tokenizers::Result<(Vec<i32>, Vec<usize>)> {
        let encoding = self.tokenizer.encode(text, false)?;
        let placed = encoding.get_ids().iter().zip(encoding.get_offsets()).filter(|(id, _)| !self.control.contains(id));
        Ok(placed.map(|(id, (begins, _))| (*id as i32, *begins)).unzip())
    }
}

/// Whether a character belongs to a word: letters, and the signs that Indian scripts put on them.
fn is_letter(c: char) -> bool {
    c.is_alphabetic() || matches!(u32::from(c), 0x0300..=0x036F | 0x0900..=0x0DFF) && !c.is_numeric() && !matches!(c, '।' | '॥')
}

/// The weight of a letter beside a Latin one: words of scripts that leave out vowels or spaces have fewer letters.
fn letter_weight(c: char) -> f32 {
    match u32::from(c) {
        0..=0x036F | 0x1E00..=0x1EFF => 1.0,
        _ if has_no_spaces(c) => 4.0,
        _ => 1.3,
    }
}

/// A tokenizer.json of its own, with its name and SHA-256.
fn outside(path: &Path) -> Result<(String, String, Option<String>), EmbedError> {
    let from = path.display().to_string();
    let failed = |what: String| EmbedError::Tokenizer { from: from.clone(), what };
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_TOKENIZER_BYTES {
        return Err(failed(format!("it has {size} bytes, more than any tokenizer")));
    }
    let json = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let hash = Sha256::digest(json.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Ok((json, from, Some(hash)))
}

/// The token for unknown words.
fn unknown_id(tokenizer: &Tokenizer) -> Option<u32> {
    match tokenizer.get_model() {
        ModelWrapper::WordPiece(model) => model.token_to_id(&model.unk_token),
        ModelWrapper::WordLevel(model) => model.token_to_id(&model.unk_token),
        ModelWrapper::BPE(model) => model.unk_token.as_deref().and_then(|token| model.token_to_id(token)),
        // The unknown token's field is private; every published Unigram vocabulary uses this name.
        ModelWrapper::Unigram(model) => model.token_to_id("<unk>"),
    }
}

/// Special tokens except the one for unknown words, which texts do produce.
fn control_ids(tokenizer: &Tokenizer, unknown: Option<u32>) -> HashSet<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id);
    special.filter(|id| Some(*id) != unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_model as model;

    fn minilm() -> TextTokenizer {
        let json = std::fs::read_to_string(model("minilm").join("tokenizer.json")).expect("a tokenizer");
        TextTokenizer::parse(&json, 30_522, 256).expect("parses")
    }

    #[test]
    fn the_files_truncation_and_padding_are_off() {
        let tokenizer = minilm();
        let tokens = tokenizer.encode("a pump", &[]).expect("encodes");
        assert_eq!(tokens.ids, [101, 1037, 10216, 102]);
        assert_eq!((tokens.of_text, tokens.truncated), (2, false));
        let long = tokenizer.encode(&"pump ".repeat(300), &[]).expect("encodes");
        assert_eq!((long.ids.len(), long.of_text, long.truncated), (256, 254, true));
        assert_eq!(tokenizer.count(&"pump ".repeat(300)), 300);
    }

    #[test]
    fn a_vocabulary_knows_its_language() {
        let letters = |text: &str| minilm().letters_per_token(text);
        let english = letters("The compressor starts again after five minutes; until then the display shows the time left.");
        let german = letters("Der Verdichter läuft nach fünf Minuten wieder an, bis dahin zeigt die Anzeige die Restzeit.");
        assert!(english > 4.0 && (2.0..3.2).contains(&german), "{english} {german}");
        for foreign in [
            "Компрессор снова запускается через пять минут",
            "压缩机五分钟后重新启动",
            "يعمل الضاغط مرة أخرى",
            "คอมเพรสเซอร์เริ่มทำงาน",
        ] {
            assert!(letters(foreign) < 1.6, "{foreign}: {}", letters(foreign));
        }
        assert!(letters("12 34 %").abs() < 1e-6 && letters("").abs() < 1e-6);
    }

    #[test]
    fn parts_are_found_among_the_tokens() {
        let tokenizer = minilm();
        let text = "Häuser [SEP] a pump, 漢字";
        let parts = [0..7, 8..13, 14..20, 14..21, 21..text.len(), 20..20];
        let tokens = tokenizer.encode(text, &parts).expect("encodes");
        assert_eq!(tokens.ids, tokenizer.encode(text, &[]).expect("encodes").ids);
        let said = |part: usize| {
            let ids = tokens.ids[tokens.parts[part].clone().expect("tokens")].iter().map(|id| *id as u32).collect::<Vec<_>>();
            tokenizer.tokenizer.decode(&ids, false).expect("decodes").replace(" ##", "")
        };
        assert_eq!([said(0), said(1), said(2), said(3)], ["hauser", "[ sep ]", "a pump", "a pump,"]);
        assert_eq!((tokens.parts[4].as_ref().map(Range::len), &tokens.parts[5]), (Some(2), &None));
        let long = tokenizer.encode(&"pump ".repeat(300), &[0..1270, 1265..1275, 1400..1410]).expect("encodes");
        assert_eq!(long.parts, [Some(1..255), None, None]);
    }

    #[test]
    fn control_tokens_in_a_text_are_words() {
        let tokenizer = minilm();
        let tokens = tokenizer.encode("stop [SEP] [CLS][MASK] [PAD] go", &[]).expect("encodes");
        let inner = &tokens.ids[1..tokens.ids.len() - 1];
        assert!(inner.iter().all(|id| !(0..=103).contains(id) || *id == 100), "{inner:?}");
        assert!(inner.len() > 10, "brackets and words: {inner:?}");
        // Unknown characters still give the unknown token.
        assert!(tokenizer.encode("\u{10FFFD}", &[]).expect("encodes").ids.len() <= 3);
        assert!(tokenizer.encode("𓀀", &[]).expect("encodes").ids.contains(&100));
    }

    #[test]
    fn an_endless_text_is_cut_before_it_is_tokenised() {
        let text = format!("{}é", "x".repeat(MAX_TEXT_BYTES - 1));
        let tokens = minilm().encode(&text, &[]).expect("encodes");
        assert!(tokens.truncated);
    }

    #[test]
    fn another_models_tokenizer_is_refused() {
        let json = std::fs::read_to_string(model("minilm").join("tokenizer.json")).expect("a tokenizer");
        let error = TextTokenizer::parse(&json, 1000, 256).err().expect("too many tokens");
        assert!(error.contains("30522 tokens, the model 1000"), "{error}");
        assert!(TextTokenizer::parse("{}", 1000, 256).is_err());
    }
}
