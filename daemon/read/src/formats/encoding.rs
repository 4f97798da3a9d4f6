//! Text from bytes of any encoding.
//!
//! ```text
//! byte order mark -> UTF-16 by its zeros -> UTF-8 by its form -> declared -> guessed (chardetng), if the result is plausible
//! ```
//!
//! UTF-8 comes before a declaration, because no other encoding has its form by chance. A page that was converted to UTF-8 often
//! keeps the old declaration.

use chardetng::EncodingDetector;
use encoding_rs::{Encoding, ISO_2022_JP, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

use super::Fault;

/// Bytes from the start in which a declaration is looked for.
const MAX_DECLARATION_BYTES: usize = 4096;

/// Bytes that are looked at for the zeros of UTF-16.
const SAMPLE_BYTES: usize = 8192;

/// A guess is refused if more than this part of its letters are out of place.
const MAX_MISPLACED: f64 = 0.12;

/// The place where an encoding is declared in the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declaration<'a> {
    /// Nowhere, except that any XML file may.
    InXml,
    /// In a `<meta>` of HTML.
    InHtml,
    /// Beside the document.
    Beside(&'a str),
}

/// Decodes a text. The second part is a note for its owner, if the encoding was guessed or characters were lost.
///
/// # Errors
/// [`Fault::UnknownEncoding`].
pub fn decode(bytes: &[u8], declaration: Declaration) -> Result<(String, Option<String>), Fault> {
    if let Some((encoding, mark)) = Encoding::for_bom(bytes) {
        return Ok(with_losses(encoding, &bytes[mark..]));
    }
    if let Some(encoding) = utf_16_without_mark(bytes) {
        return Ok(with_losses(encoding, bytes));
    }
    let declared = declared(bytes, declaration);
    let shifted = declared == Some(ISO_2022_JP) || bytes.windows(3).any(|window| matches!(window, b"\x1B$B" | b"\x1B$@"));
    if shifted && let Some(text) = ISO_2022_JP.decode_without_bom_handling_and_without_replacement(bytes) {
        return Ok((text.into_owned(), None));
    }
    let forms = Forms::of(bytes);
    // A few characters of GBK and its like can have the form by chance.
    let by_chance = declared.is_some_and(|declared| !declared.is_single_byte()) && (1..8).contains(&forms.good);
    if forms.bad == 0 && !by_chance {
        return Ok((String::from_utf8_lossy(bytes).into_owned(), None));
    }
    if let Some(declared) = declared.filter(|declared| *declared != UTF_8) {
        return Ok(with_losses(declared, bytes));
    }
    if forms.good >= forms.bad {
        return Ok(with_losses(UTF_8, bytes));
    }
    guess(bytes)
}

/// Decodes a file that is XML, or is known to be UTF-8 unless it says otherwise.
pub(super) fn decode_xml(bytes: &[u8]) -> String {
    decode(bytes, Declaration::InXml).map_or_else(|_| String::from_utf8_lossy(bytes).into_owned(), |(text, _)| text)
}

/// Decodes the first bytes of a document, to look at them.
pub(crate) fn decode_head(bytes: &[u8]) -> String {
    decode_xml(&bytes[..bytes.len().min(4096)])
}

/// The name of a legacy encoding that a sender names; UTF-8 needs no name.
pub(crate) fn legacy_name(label: &str) -> Option<&'static str> {
    Encoding::for_label(label.trim().as_bytes()).filter(|encoding| *encoding != UTF_8).map(Encoding::name)
}

fn with_losses(encoding: &'static Encoding, bytes: &[u8]) -> (String, Option<String>) {
    let (text, lossy) = encoding.decode_without_bom_handling(bytes);
    let note = || {
        let count = text.matches(char::REPLACEMENT_CHARACTER).count();
        format!("{} with broken characters ({count}), which were replaced", encoding.name())
    };
    (text.to_string(), lossy.then(note))
}

/// Characters beyond ASCII in the form of UTF-8, and bytes that break it.
struct Forms {
    good: usize,
    bad: usize,
}

impl Forms {
    fn of(bytes: &[u8]) -> Self {
        let mut forms = Self { good: 0, bad: 0 };
        for chunk in bytes.utf8_chunks() {
            forms.good += chunk.valid().bytes().filter(|byte| *byte >= 0xC0).count();
            forms.bad += usize::from(!chunk.invalid().is_empty());
        }
        forms
    }
}

/// The encoding that a document declares; an unknown name declares nothing.
fn declared(bytes: &[u8], declaration: Declaration) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_DECLARATION_BYTES)]).to_ascii_lowercase();
    let value_after = |text: &str, key: &str| {
        let (_, rest) = text.split_once(key)?;
        let value = rest.trim_start().strip_prefix('=').unwrap_or(rest).trim_start().trim_start_matches(['"', '\'']);
        Some(value.split(|char: char| !char.is_ascii_alphanumeric() && !"-_:.".contains(char)).next()?.to_owned())
    };
    let start = head.trim_start();
    let in_xml = || start.strip_prefix("<?xml").and_then(|rest| value_after(rest.split('>').next()?, "encoding"));
    let name = match declaration {
        Declaration::Beside(name) => Some(name.trim().to_owned()),
        Declaration::InXml => in_xml(),
        Declaration::InHtml => {
            head.split("<meta").skip(1).find_map(|meta| value_after(meta.split('>').next()?, "charset")).or_else(in_xml)
        }
    };
    let encoding = Encoding::for_label(name?.as_bytes())?;
    // The declaration itself was read as ASCII.
    let is_utf_16 = encoding == UTF_16LE || encoding == UTF_16BE;
    Some(if is_utf_16 && !matches!(declaration, Declaration::Beside(_)) { UTF_8 } else { encoding })
}

/// UTF-16 without a byte order mark: one of the two bytes of blanks and Latin letters is zero, mostly the same one.
pub(crate) fn utf_16_without_mark(bytes: &[u8]) -> Option<&'static Encoding> {
    let sample = &bytes[..bytes.len().min(SAMPLE_BYTES) & !1];
    let zeros = |parity: usize| sample.iter().skip(parity).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    // A few zeros in UTF-8 are damage.
    let is_clean = || {
        sample.iter().all(|byte| matches!(byte, 0 | b'\t' | b'\n' | b'\r' | b' '..))
            && sample.utf8_chunks().all(|chunk| chunk.invalid().is_empty())
    };
    if sample.len() < 8 || even + odd < 2 || ((even + odd) * 4 < sample.len() && is_clean()) {
        return None;
    }
    let encoding = if even * 3 <= odd {
        UTF_16LE
    } else if odd * 3 <= even {
        UTF_16BE
    } else {
        return None;
    };
    let (text, _) = encoding.decode_without_bom_handling(sample);
    let (mut common, mut all) = (0, 0);
    for char in text.chars() {
        let is_letter = char.is_alphanumeric() || matches!(char, '\t' | '\n' | '\r' | '\u{C}');
        let is_sign =
            matches!(char, ' '..='~' | '\u{A0}'..='ÿ' | '\u{300}'..='\u{36F}' | '\u{2000}'..='\u{2BFF}') || is_wide_sign(char);
        common += usize::from(is_letter || is_sign);
        all += 1;
    }
    (common * 20 >= all * 19).then_some(encoding)
}

/// Decodes by the frequency of byte pairs in each encoding, and checks that letters stand where letters do.
fn guess(bytes: &[u8]) -> Result<(String, Option<String>), Fault> {
    let mut detector = EncodingDetector::new(chardetng::Iso2022JpDetection::Deny);
    detector.feed(bytes, true);
    let encoding = detector.guess(None, chardetng::Utf8Detection::Deny);
    let (text, lossy) = encoding.decode_without_bom_handling(bytes);
    if lossy || misplaced(&text) > MAX_MISPLACED {
        return Err(Fault::UnknownEncoding);
    }
    let name = if encoding == WINDOWS_1252 { "Latin-1 (Windows-1252)" } else { encoding.name() };
    let note = format!("not UTF-8: read as {name}; save it as UTF-8 if letters look wrong");
    Ok((text.into_owned(), Some(note)))
}

/// The part of the characters beyond ASCII that do not fit their neighbours: signs and capitals inside words, two scripts in one
/// word, control characters.
fn misplaced(text: &str) -> f64 {
    let (mut all, mut misplaced) = (0_usize, 0_usize);
    let mut chars = text.chars().peekable();
    let mut before = ' ';
    while let Some(char) = chars.next() {
        let after = chars.peek().copied().unwrap_or(' ');
        if !char.is_ascii() {
            all += 1;
            let inside = before.is_alphabetic() && after.is_alphabetic();
            let joins =
                matches!(char, '’' | '‘' | '–' | '—' | '…' | '·' | '\u{AD}' | '\u{A0}' | '・' | 'ー') || is_wide_sign(char);
            let is_wrong = char.is_control()
                || (inside && !char.is_alphabetic() && !joins)
                || (char.is_uppercase() && before.is_lowercase() && after.is_lowercase())
                || (char.is_alphabetic() && before.is_alphabetic() && scripts_clash(before, char))
                || (char.is_alphabetic() && after.is_ascii_alphabetic() && scripts_clash(char, after));
            misplaced += usize::from(is_wrong);
        }
        before = char;
    }
    if all == 0 { 0.0 } else { misplaced as f64 / all as f64 }
}

/// Punctuation of East Asian scripts, and the wide forms of others.
fn is_wide_sign(char: char) -> bool {
    matches!(char, '\u{3000}'..='〿' | '\u{FF00}'..='\u{FFEF}')
}

/// Whether one letter is Latin and the other Greek, Cyrillic, Hebrew or Arabic.
fn scripts_clash(one: char, other: char) -> bool {
    let is_latin = |char: char| matches!(char, 'A'..='Z' | 'a'..='z' | 'À'..='ɏ');
    let is_other = |char: char| matches!(char, 'Ͱ'..='ӿ' | '\u{590}'..='\u{6FF}');
    (is_latin(one) && is_other(other)) || (is_other(one) && is_latin(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::example;

    fn plain(bytes: &[u8]) -> (String, Option<String>) {
        decode(bytes, Declaration::InXml).unwrap()
    }

    #[test]
    fn byte_order_marks_and_latin_1_are_decoded() {
        assert_eq!(plain("\u{FEFF}für".as_bytes()), ("für".into(), None));
        let little: Vec<u8> = [0xFF, 0xFE].into_iter().chain("für€".encode_utf16().flat_map(u16::to_le_bytes)).collect();
        let big: Vec<u8> = [0xFE, 0xFF].into_iter().chain("für€".encode_utf16().flat_map(u16::to_be_bytes)).collect();
        assert_eq!(plain(&little), ("für€".into(), None));
        assert_eq!(plain(&big), ("für€".into(), None));
        let (text, note) = plain(b"f\xFCr 5 \x80");
        assert_eq!(text, "für 5 €");
        assert!(note.unwrap().contains("Latin-1"));
        assert!(plain(&[0xFF, 0xFE, 0x00, 0xD8]).1.is_some());
    }

    #[test]
    fn utf_16_needs_no_mark() {
        for text in
            ["Wartung der Heizungspumpe, täglich.\n", "Ключ от клапана лежит в шкафу.\n", "泵的阀门钥匙 E-17 在柜子里。\n"]
        {
            let text = text.repeat(3);
            let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            assert_eq!(plain(&little).0, text);
            assert_eq!(plain(&big).0, text);
        }
        assert_eq!(plain(b"12:01 start\0 12:02 pump failed").0, "12:01 start\0 12:02 pump failed");
        assert_eq!(utf_16_without_mark(&[1, 0, 2, 0, 3, 0, 200, 0, 4, 0, 9, 0]), None);
        let given = plain(&example("encoding/de-utf16le-nobom.txt")).0;
        assert!(given.contains("Der Überströmventil-Schlüssel liegt im Schrank über der Tür."), "{given}");
    }

    #[test]
    fn a_bad_byte_costs_itself_only() {
        let (text, note) = plain(&example("encoding/de-utf8-one-bad-byte.txt"));
        assert!(text.matches("Der Überströmventil-Schlüssel liegt im Schrank über der Tür.").count() >= 20);
        assert_eq!(text.matches('\u{FFFD}').count(), 1);
        assert_eq!(note.as_deref(), Some("UTF-8 with broken characters (1), which were replaced"));
        assert_eq!(plain(b"T\xC3\xBCr \xFF").0, "Tür \u{FFFD}");
    }

    #[test]
    fn declarations_are_obeyed_unless_the_text_is_utf_8() {
        let page = |name: &str| decode(&example(name), Declaration::InHtml).unwrap();
        let (text, note) = page("encoding/ru-meta-cp1251.html");
        assert!(text.contains("Обслуживание насоса") && note.is_none(), "{text}");
        assert!(page("encoding/pl-meta-iso2.html").0.contains("Ciśnienie należy sprawdzać każdego dnia"));
        let html = |bytes: &[u8]| decode(bytes, Declaration::InHtml).unwrap().0;
        assert!(html(b"<meta http-equiv=Content-Type content='text/html; charset=koi8-r'>\xEB\xCC\xC0\xDE").contains("Ключ"));
        assert!(html(b"<META CHARSET = Shift_JIS >\x83\x7C\x83\x93\x83\x76").contains("ポンプ"));
        assert!(html(b"<?xml version='1.0' encoding=\"iso-8859-7\"?>\xE1\xE2\xE3").contains("αβγ"));
        assert!(html("<meta charset=iso-8859-1>für".as_bytes()).ends_with("für"));
        assert!(html("<meta charset=utf-16>für".as_bytes()).ends_with("für"));
        assert!(html(b"<meta charset=unknown>f\xFCr alle").ends_with("für alle"));
        assert_eq!(decode(b"\xEB\xCC\xC0\xDE", Declaration::Beside("koi8-r")).unwrap().0, "Ключ");
    }

    #[test]
    fn legacy_encodings_are_guessed() {
        let (text, note) = plain(&example("encoding/ru-cp1251.txt"));
        assert!(text.starts_with("Обслуживание насоса"), "{text}");
        assert!(note.unwrap().contains("windows-1251"));
        assert!(plain(&example("encoding/ja-sjis.txt")).0.starts_with("ポンプの保守"));
        for (name, text) in [
            ("windows-1250", "Ciśnienie wody należy sprawdzać każdego dnia; źródło i żółty przewód są w szafce."),
            ("windows-1250", "Tlak vody je třeba denně kontrolovat. Žlutý klíč je ve skříni nad dveřmi, příčina není známa."),
            ("koi8-r", "Ключ от клапана лежит в шкафу над дверью. Давление проверяют каждый день."),
            ("gbk", "阀门钥匙在门上方的柜子里。每天检查水压，压力应为一点五巴。"),
            ("big5", "閥門鑰匙在門上方的櫃子裡。每天檢查水壓，壓力應為一點五巴。"),
            ("euc-kr", "밸브 열쇠는 문 위의 찬장에 있습니다. 매일 압력을 확인하십시오."),
            ("euc-jp", "バルブの鍵はドアの上の戸棚にあります。圧力は毎日確認してください。"),
            ("windows-1253", "Το κλειδί της βαλβίδας βρίσκεται στο ντουλάπι πάνω από την πόρτα."),
            ("iso-2022-jp", "バルブの鍵はドアの上の戸棚にあります。"),
        ] {
            let (bytes, _, _) = Encoding::for_label(name.as_bytes()).unwrap().encode(text);
            assert_eq!(plain(&bytes).0, text, "{name}");
        }
    }

    #[test]
    fn a_doubtful_encoding_is_refused() {
        // Code page 850: "für die Tür, größer".
        let dos = b"Der Schl\x81ssel f\x81r die T\x81r ist gr\x94\xE1er als der f\x81r den K\x84fig.";
        let noise: Vec<u8> = (0..400_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
        for bytes in [&dos[..], &noise] {
            assert_eq!(decode(bytes, Declaration::InXml), Err(Fault::UnknownEncoding));
        }
    }
}
