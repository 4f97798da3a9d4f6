//! What a backslash means in roff (groff(7), groff_char(7)).

use std::{collections::HashMap, str::Chars};

/// Longest string that a page may define.
const MAX_STRING_BYTES: usize = 256;

/// Strings that a page has defined, and how many more bytes they may add to it.
pub(super) struct Strings {
    values: HashMap<String, String>,
    left: usize,
}

impl Strings {
    /// For a page of that many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self { values: HashMap::new(), left: bytes + 4096 }
    }

    /// `.ds NAME VALUE`
    pub(super) fn define(&mut self, definition: &str) {
        let (name, value) = definition.trim_start().split_once(' ').unwrap_or((definition.trim(), ""));
        let value = value.trim_start();
        let value = self.decode(value.strip_prefix('"').unwrap_or(value));
        if value.len() <= MAX_STRING_BYTES {
            self.values.insert(name.to_owned(), value);
        }
    }

    /// The text of a string, as long as strings have not made the page grow too much.
    fn get(&mut self, name: &str) -> &str {
        let predefined = match name {
            "R" => "®",
            "Tm" => "™",
            "lq" => "“",
            "rq" => "”",
            _ => "",
        };
        let value = self.values.get(name).map_or(predefined, String::as_str);
        if !self.spend(value.len()) {
            return "";
        }
        self.values.get(name).map_or(predefined, String::as_str)
    }

    /// Whether that many bytes may still be put in.
    pub(super) fn spend(&mut self, bytes: usize) -> bool {
        let enough = bytes <= self.left;
        self.left -= if enough { bytes } else { 0 };
        enough
    }

    /// The characters that a line of roff stands for; fonts, sizes and motions are dropped.
    pub(super) fn decode(&mut self, roff: &str) -> String {
        let mut text = String::with_capacity(roff.len());
        let mut chars = roff.chars();
        while let Some(char) = chars.next() {
            if char == '\\' { self.escape(&mut chars, &mut text) } else { text.push(char) }
        }
        text
    }

    fn escape(&mut self, chars: &mut Chars, text: &mut String) {
        match chars.next() {
            Some('-') => text.push('-'),
            Some('e' | '\\' | 'E') => text.push('\\'),
            Some('.') => text.push('.'),
            Some('\'') => text.push('´'),
            Some('`') => text.push('`'),
            Some('~' | ' ' | '0' | 't') => text.push(' '),
            Some('(') => {
                let name: String = chars.take(2).collect();
                text.push_str(&character(&name));
            }
            Some('[') => text.push_str(&character(&until(chars, ']'))),
            Some('C') => {
                let name = quoted(chars);
                text.push_str(&character(&name));
            }
            Some('N') => text.extend(quoted(chars).parse().ok().and_then(char::from_u32)),
            Some('*') => {
                let name = name(chars);
                text.push_str(self.get(&name));
            }
            Some('f' | 'F' | 'm' | 'M' | 'n' | 'k' | 'g' | 'Y' | 'V' | '$') => {
                name(chars);
            }
            Some('s') => size(chars),
            Some('h' | 'v' | 'w' | 'l' | 'L' | 'D' | 'o' | 'X' | 'x' | 'b' | 'A' | 'B' | 'H' | 'R' | 'S' | 'Z') => {
                quoted(chars);
            }
            // `\&`, `\%`, `\:`, `\|`, `\^`, `\/`, `\,`, `\)`, `\c`, `\{` and the like print nothing.
            _ => {}
        }
    }
}

/// `\s8`, `\s+2`, `\s(12`, `\s[12]`, `\s'12'`
fn size(chars: &mut Chars) {
    let signed = chars.as_str().starts_with(['+', '-']);
    if signed {
        chars.next();
    }
    match chars.as_str().as_bytes() {
        [b'(' | b'[', ..] => drop(name(chars)),
        [b'\'', ..] => drop(quoted(chars)),
        // Only 10 to 39 have two digits.
        [b'1'..=b'3', b'0'..=b'9', ..] if !signed => drop(chars.nth(1)),
        [b'0'..=b'9', ..] => drop(chars.next()),
        _ => {}
    }
}

/// `x`, `(xx` or `[name]`
fn name(chars: &mut Chars) -> String {
    match chars.next() {
        Some('(') => chars.take(2).collect(),
        Some('[') => until(chars, ']'),
        Some('+' | '-') => chars.take(1).collect(),
        char => char.into_iter().collect(),
    }
}

/// What stands between two equal characters.
fn quoted(chars: &mut Chars) -> String {
    chars.next().map_or_else(String::new, |quote| until(chars, quote))
}

fn until(chars: &mut Chars, end: char) -> String {
    chars.take_while(|&char| char != end).collect()
}

/// The character of a name in groff_char(7); what has none of its own here is left out.
fn character(name: &str) -> String {
    // An accent and the combining character that follows its letter.
    const ACCENTS: [(char, char); 8] = [
        ('`', '\u{300}'),
        ('\'', '\u{301}'),
        ('^', '\u{302}'),
        ('~', '\u{303}'),
        (':', '\u{308}'),
        ('o', '\u{30A}'),
        (',', '\u{327}'),
        ('v', '\u{30C}'),
    ];
    const NAMES: &str = "hy- en– em— bu• lq“ rq” oq‘ cq’ aq' dq\" Bq„ bq‚ Fo« Fc» fo‹ fc› rs\\ sl/ ba| bv│ or| br│ ul_ ru_ rn‾ ga` aa´ ha^ ti~ \
        at@ sh# Do$ eu€ Eu€ Po£ Ye¥ ct¢ co© rg® tm™ de° mcµ mu× di÷ +-± pl+ mi− eq= ==≡ !=≠ <=≤ >=≥ =~≅ ~~≈ <-← ->→ ua↑ da↓ <>↔ lA⇐ rA⇒ \
        if∞ no¬ ps¶ sc§ dg† dd‡ 12½ 14¼ 34¾ S1¹ S2² S3³ ss\u{df} ae\u{e6} AE\u{c6} oe\u{153} OE\u{152} /o\u{f8} /O\u{d8} -D\u{d0} Sd\u{f0} \
        TP\u{de} Tp\u{fe} r!¡ r?¿ lB[ rB] lC{ rC} la⟨ ra⟩ ci○ sq□ OK✓ **∗ pc· md⋅ fm′ sd″ *aα *bβ *gγ *dδ *lλ *mμ *pπ *sσ *wω *WΩ *DΔ .i\u{131} \
        lh☜ rh☞ is∫ su∑ mo∈ sr√ an⟋ fl\u{fb02} fi\u{fb01} ffff Fifi";
    if let Some(found) = NAMES.split(' ').find_map(|entry| entry.strip_prefix(name).filter(|char| char.chars().count() == 1)) {
        return found.into();
    }
    if let Some(code) = name.strip_prefix('u').and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32) {
        return code.into();
    }
    let mut chars = name.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some(accent), Some(letter), None) if letter.is_alphabetic() => ACCENTS
            .iter()
            .find(|(named, _)| *named == accent)
            .map_or_else(String::new, |(_, combining)| [letter, *combining].iter().collect()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_characters_and_fonts_nothing() {
        let cases = [
            (r"\fB\-\-all\fR, \f[I]x\f(CWy\fP", "--all, xy"),
            (r"\(lqa\(rq\ \(bu\~\[em] \[u20AC] \e\&.\|b\c", "“a” • — € \\.b"),
            (r"\s-1UNIX\s0 \s+2a\s[12]b\s(10c\s12d \h'1m'e\v'-.5m'f\N'65'", "UNIX abcd efA"),
            (r"M\[:u]ller \('e", "Mu\u{308}ller e\u{301}"),
            (r"\*(PU and \*[PU] and \*R", "Pump x and Pump x and ®"),
            ("\\", ""),
            (r"\(", ""),
            (r"\[u110000]\[", ""),
        ];
        let mut strings = Strings::new(0);
        strings.define(r#"PU "Pump\fB x"#);
        for (roff, text) in cases {
            assert_eq!(strings.decode(roff), text, "{roff}");
        }
    }

    #[test]
    fn strings_do_not_unfold_without_end() {
        let mut strings = Strings::new(1000);
        strings.define(&format!("A {}", "x".repeat(MAX_STRING_BYTES)));
        strings.define(&format!("B {}", "x".repeat(MAX_STRING_BYTES + 1)));
        assert!(strings.decode(&r"\*A\*B".repeat(1000)).len() <= 1000 + 4096);
    }
}
