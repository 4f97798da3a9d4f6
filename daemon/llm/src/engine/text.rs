//! Token bytes become text: whole UTF-8 characters only, up to a stop string.

/// Collects token pieces and returns text that can be shown.
#[derive(Debug)]
pub(super) struct TextStream {
    stops: Vec<String>,
    /// Bytes of a character that is not complete yet.
    partial: Vec<u8>,
    /// Complete text that may be the beginning of a stop string.
    held: String,
    /// All text returned so far.
    text: String,
    stopped: bool,
}

impl TextStream {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|s| !s.is_empty()).collect(),
            partial: vec![],
            held: String::new(),
            text: String::new(),
            stopped: false,
        }
    }

    /// Whether a stop string has appeared.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes the bytes of one token; returns the text that may be shown now.
    pub(super) fn push(&mut self, piece: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.partial.extend_from_slice(piece);
        let complete = take_complete(&mut self.partial);
        self.held.push_str(&complete);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return self.release(at);
        }
        let keep = self.stops.iter().map(|stop| longest_prefix_at_end(&self.held, stop)).max().unwrap_or(0);
        self.release(self.held.len() - keep)
    }

    /// Returns the held text at the end of the answer. An incomplete character is left out: the answer reached its longest length
    /// in the middle of it.
    pub(super) fn finish(&mut self) -> String {
        self.partial.clear();
        self.release(self.held.len())
    }

    /// All text returned so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn release(&mut self, upto: usize) -> String {
        let mut out: String = self.held.drain(..upto).collect();
        if self.text.is_empty() {
            // Models often begin with a space or a line break.
            out = out.trim_start().to_owned();
        }
        self.text.push_str(&out);
        out
    }
}

/// Takes the longest run of complete characters off the front of `bytes`; invalid bytes become U+FFFD.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut out = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                bytes.clear();
                return out;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                out.push_str(&String::from_utf8_lossy(&bytes[..valid]));
                match error.error_len() {
                    Some(bad) => {
                        out.push('\u{FFFD}');
                        bytes.drain(..valid + bad);
                    }
                    None => {
                        bytes.drain(..valid);
                        return out;
                    }
                }
            }
        }
    }
}

/// Length of the longest end of `text` that is a proper beginning of `stop`.
fn longest_prefix_at_end(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).filter(|at| *at > 0 && text.ends_with(&stop[..*at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_never_split() {
        let mut stream = TextStream::new(vec![]);
        let bytes = "a€😀".as_bytes();
        let deltas: Vec<String> = bytes.iter().map(|b| stream.push(&[*b])).collect();
        assert_eq!(deltas.concat(), "a€😀");
        assert!(deltas.iter().all(|d| !d.contains('\u{FFFD}')));
    }

    #[test]
    fn invalid_bytes_are_replaced() {
        let mut stream = TextStream::new(vec![]);
        assert_eq!(stream.push(b"a\xffb"), "a\u{FFFD}b");
        assert_eq!(stream.push(b"\xe2\x82"), "");
        assert_eq!(stream.finish(), "");
        assert_eq!(stream.text(), "a\u{FFFD}b");
    }

    #[test]
    fn a_stop_string_over_tokens_is_not_shown() {
        let mut stream = TextStream::new(vec!["\nQuestion:".into()]);
        assert_eq!(stream.push(b" yes\nQues"), "yes");
        assert_eq!(stream.push(b"tions are"), "\nQuestions are");
        assert_eq!(stream.push(b" fun\nQuest"), " fun");
        assert_eq!(stream.push(b"ion: next"), "");
        assert!(stream.stopped());
        assert_eq!(stream.finish(), "");
        assert_eq!(stream.text(), "yes\nQuestions are fun");
    }
}
