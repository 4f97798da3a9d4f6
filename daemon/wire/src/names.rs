//! Names and bounds that several rooms share; this is the only place that checks them.

use serde::{Deserialize, Deserializer};

/// Most passages that a request or the configuration may ask for.
pub const MAX_TOP_K: usize = 20;

/// Longest id of a document, in bytes.
pub const MAX_DOCUMENT_ID_BYTES: usize = 512;

/// Longest id of a request, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// Longest name of a session, in bytes.
pub const MAX_SESSION_BYTES: usize = 128;

/// Smallest bound on the characters of an answer: less is no answer.
pub const MIN_MAX_CHARS: usize = 16;

/// Most tags of one document.
pub const MAX_TAGS: usize = 32;

/// Longest key of a tag, in bytes.
pub const MAX_TAG_KEY_BYTES: usize = 64;

/// Longest value of a tag, in bytes.
pub const MAX_TAG_VALUE_BYTES: usize = 256;

/// Longest topic or topic filter in MQTT, in bytes.
const MAX_TOPIC_BYTES: usize = u16::MAX as usize;

/// The rule for names of collections, as a clause.
pub const COLLECTION_RULE: &str = "a collection is named with 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or digit";

/// Whether `name` follows [`COLLECTION_RULE`].
pub fn is_collection(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| plain(b) || b == b'-' || b == b'_')
        && name.bytes().next().is_some_and(plain)
}

/// Checks the id of a document.
///
/// # Errors
/// The fault and the remedy, as a clause that follows "the id is".
pub fn check_document_id(id: &str) -> Result<(), String> {
    if id.is_empty() {
        return Err("empty; give the document a name".into());
    }
    if id.len() > MAX_DOCUMENT_ID_BYTES {
        return Err(format!("longer than {MAX_DOCUMENT_ID_BYTES} bytes; give it a shorter one"));
    }
    if id.contains(char::is_control) {
        return Err("has control characters; rename it".into());
    }
    Ok(())
}

/// Whether `id` is a valid request id: 1 to 128 bytes without control characters.
pub fn is_request_id(id: &str) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && !id.contains(char::is_control)
}

/// Checks the tags of a document.
///
/// # Errors
/// The broken bound.
pub fn check_tags<'a>(tags: impl ExactSizeIterator<Item = (&'a String, &'a String)>) -> Result<(), String> {
    if tags.len() > MAX_TAGS {
        return Err(format!("{} tags, at most {MAX_TAGS} are allowed", tags.len()));
    }
    for (key, value) in tags {
        check_tag(key, value)?;
    }
    Ok(())
}

/// Checks one tag.
///
/// # Errors
/// The broken bound.
pub fn check_tag(key: &str, value: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > MAX_TAG_KEY_BYTES || key.contains(char::is_control) {
        return Err(format!("a tag's key must have 1 to {MAX_TAG_KEY_BYTES} bytes without control characters"));
    }
    if value.len() > MAX_TAG_VALUE_BYTES || value.contains(char::is_control) {
        return Err(format!("the value of tag {key:?} must have at most {MAX_TAG_VALUE_BYTES} bytes without control characters"));
    }
    Ok(())
}

/// Whether `text` is a valid level of our topics: the name of a node or of a fleet.
pub fn is_topic_level(text: &str) -> bool {
    (1..=64).contains(&text.len()) && !text.contains(['+', '#', '/', '\0', '$']) && !text.contains(char::is_whitespace)
}

/// Whether `filter` is a valid topic filter (MQTT 5.0, section 4.7.1), without `$share/<group>/`.
pub fn is_topic_filter(filter: &str) -> bool {
    let levels = filter.split('/').count();
    (1..=MAX_TOPIC_BYTES).contains(&filter.len())
        && !filter.contains('\0')
        && filter.split('/').enumerate().all(|(i, level)| match level {
            "+" => true,
            "#" => i + 1 == levels,
            other => !other.contains(['+', '#']),
        })
}

/// Whether `filter` matches `topic` (MQTT 5.0, section 4.7). A leading wildcard does not match topics that begin with `$`.
pub fn topic_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['#', '+']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// A new request id: 16 hexadecimal digits.
pub fn new_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum TextOrNumber {
    Text(String),
    Number(i64),
}

impl TextOrNumber {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }

    pub(crate) fn into_id<E: serde::de::Error>(self) -> Result<String, E> {
        let text = self.into_text();
        if !is_request_id(&text) {
            return Err(E::custom(format!("an id has 1 to {MAX_REQUEST_ID_BYTES} bytes and no control characters")));
        }
        Ok(text)
    }
}

/// Deserializes a request id: text or a number, within its bounds.
///
/// # Errors
/// The value is neither, or out of bounds.
pub fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<TextOrNumber>::deserialize(deserializer)?.map(TextOrNumber::into_id).transpose()
}

/// Deserializes a text, or a number as text: chats and devices are often numbered.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<TextOrNumber>::deserialize(deserializer)?.map(TextOrNumber::into_text))
}

pub(crate) fn required_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    TextOrNumber::deserialize(deserializer)?.into_id()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_are_plain_words() {
        for name in ["a", "0", "a-b_c", &"a".repeat(64)] {
            assert!(is_collection(name), "{name}");
        }
        for name in ["", "A", "-a", "_a", "a/b", "a\0", "ä", &"a".repeat(65)] {
            assert!(!is_collection(name), "{name}");
        }
    }

    #[test]
    fn ids_are_bounded() {
        for id in ["manuals/heat pump.md", "ü 漢", &"z".repeat(MAX_DOCUMENT_ID_BYTES)] {
            assert_eq!(check_document_id(id), Ok(()));
        }
        for id in ["", "a\nb", "a\u{85}b", &"x".repeat(MAX_DOCUMENT_ID_BYTES + 1)] {
            assert!(check_document_id(id).is_err(), "{id:?}");
        }
        assert!(is_request_id("7") && is_request_id(&"x".repeat(MAX_REQUEST_ID_BYTES)));
        for id in ["", "a\nb", &"x".repeat(MAX_REQUEST_ID_BYTES + 1)] {
            assert!(!is_request_id(id), "{id:?}");
        }
    }

    #[test]
    fn tags_are_bounded() {
        let check = |tags: &[(String, String)]| check_tags(tags.iter().map(|(key, value)| (key, value)));
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(check(&[tag("site", "north"), tag("empty", "")]), Ok(()));
        let many: Vec<_> = (0..=MAX_TAGS).map(|n| tag(&format!("k{n}"), "")).collect();
        for tags in [many, vec![tag("", "v")], vec![tag("k", &"v".repeat(257))], vec![tag("a\0", "")], vec![tag("k", "a\nb")]] {
            assert!(check(&tags).is_err(), "{tags:?}");
        }
    }

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+/c", "a/b/c", true),
            ("+/+", "/x", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("a/", "a", false),
        ] {
            assert_eq!(topic_matches(filter, topic), expected, "{filter} against {topic}");
        }
        for filter in ["", "a#", "a/#/b", "a+/b", "#/a", "a\0", &"a".repeat(MAX_TOPIC_BYTES + 1)] {
            assert!(!is_topic_filter(filter), "{filter}");
        }
        assert!(is_topic_filter("+/a/#") && is_topic_filter("/"));
    }

    #[test]
    fn a_level_is_no_path_and_no_wildcard() {
        assert!(is_topic_level("pi-4.kitchen"));
        for text in ["", "a/b", "+", "#", "a b", "$SYS", "a\0", &"a".repeat(65)] {
            assert!(!is_topic_level(text), "{text:?}");
        }
    }
}
