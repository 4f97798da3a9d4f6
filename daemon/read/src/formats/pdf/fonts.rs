//! Fonts: their look, and the way from the codes in a string to characters.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use hayro_cmap::{BfString, CMap, CMapName};
use hayro_font::{CMapResolverFn, Font, FontCache, FontQuery, FontResolverFn};
use hayro_syntax::object::{Array, Dict, Name, String as Text};

use super::content::Style;

/// Fonts met so far.
pub(super) struct Fonts<'a> {
    cache: FontCache<'a>,
    programs: FontResolverFn,
    cmaps: CMapResolverFn,
    known: HashMap<FontKey, Option<Rc<Face<'a>>>>,
}

type FontKey = (u32, i32);

/// A font with data from its dictionary.
pub(super) struct Face<'a> {
    pub font: Font<'a>,
    pub style: Style,
    /// Height of the letters in ems, if the font gives another than one.
    pub scale: f32,
    /// Codes are Unicode: the font's table is the identity, which may lack some of them.
    pub codes_are_unicode: bool,
    /// From CIDs, which are the codes, to Unicode.
    pub cids: Option<CMap>,
}

impl<'a> Fonts<'a> {
    pub(super) fn new() -> Self {
        Self {
            cache: FontCache::new(),
            programs: Arc::new(|query| match query {
                FontQuery::Standard(font) => Some(font.get_font_data()),
                FontQuery::Fallback(query) => Some(query.pick_standard_font().get_font_data()),
            }),
            cmaps: Arc::new(hayro_cmap::load_embedded),
            known: HashMap::new(),
        }
    }

    /// `named`: the font is an object of its own. Otherwise its number is that of the object around it, and several fonts
    /// have it.
    pub(super) fn face(&mut self, dict: &Dict<'a>, named: bool) -> Option<Rc<Face<'a>>> {
        let key = dict.obj_id().filter(|_| named).map(|id| (id.obj_number, id.gen_number));
        if let Some(known) = key.and_then(|key| self.known.get(&key)) {
            return known.clone();
        }
        let face = self.cache.font(dict, &self.programs, &self.cmaps).map(|font| {
            Rc::new(Face {
                codes_are_unicode: codes_are_unicode(dict, &font),
                style: style(dict),
                scale: type3_scale(dict).unwrap_or(1.0),
                cids: cid_map(dict),
                font,
            })
        });
        if let Some(key) = key {
            self.known.insert(key, face.clone());
        }
        face
    }
}

/// From the font's name and the flags of its descriptor (ISO 32000-2, 9.8.2).
fn style(dict: &Dict) -> Style {
    const FIXED_PITCH: u32 = 1;
    const ITALIC: u32 = 1 << 6;
    const FORCE_BOLD: u32 = 1 << 18;
    let descendant = dict.get::<Array>("DescendantFonts").and_then(|fonts| fonts.iter::<Dict>().next());
    let descriptor = descendant.as_ref().unwrap_or(dict).get::<Dict>("FontDescriptor").unwrap_or_default();
    let flags = descriptor.get::<u32>("Flags").unwrap_or(0);
    let weight = descriptor.get::<f32>("FontWeight").unwrap_or(400.0);
    let name = dict.get::<Name>("BaseFont").map(|name| name.as_str().to_ascii_lowercase()).unwrap_or_default();
    // A subset is named `ABCDEF+Name`.
    let name = name.split_once('+').map_or(name.as_str(), |(_, name)| name);
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    let computer_modern = |prefix: &[&str]| prefix.iter().any(|prefix| name.starts_with(prefix));
    Style {
        bold: weight >= 600.0
            || flags & FORCE_BOLD != 0
            || has(&["bold", "black", "heavy", "demi", "-medi", "semibd"])
            || computer_modern(&["cmbx", "cmssbx", "sfbx", "ecbx", "lmbx"])
            || name.ends_with("-bd"),
        italic: flags & ITALIC != 0 || has(&["italic", "oblique", "-ital"]) || computer_modern(&["cmti", "cmsl", "cmmi"]),
        mono: flags & FIXED_PITCH != 0
            || has(&["mono", "courier", "typewriter", "consolas", "nimbusmon", "menlo", "code"])
            || computer_modern(&["cmtt", "cmsltt", "cmitt", "sftt", "ectt", "lmtt"]),
    }
}

/// The character of a code by the font's own tables.
pub(super) fn said(font: &Font, code: u32) -> Option<BfString> {
    match font.glyph(font.map_code(code), code) {
        hayro_font::FontGlyph::Outline(glyph) => glyph.as_unicode(),
        hayro_font::FontGlyph::Type3(glyph) => glyph.as_unicode(),
    }
}

/// Whether a font of many characters has the identity as its table to Unicode, by name or in fact.
fn codes_are_unicode(dict: &Dict, font: &Font) -> bool {
    let same = |char: char| matches!(said(font, u32::from(char)), Some(BfString::Char(said)) if said == char);
    dict.get::<Name>("ToUnicode").is_some()
        || dict.contains_key("ToUnicode")
            && dict.get::<Name>("Subtype").is_some_and(|kind| kind.as_str() == "Type0")
            && ['0', 'A', 'a', 'e', 'n'].into_iter().all(same)
}

/// The characters of a font with the codes of an Asian collection (ISO 32000-2, 9.10.2).
fn cid_map(dict: &Dict) -> Option<CMap> {
    if dict.contains_key("ToUnicode") || !dict.get::<Name>("Encoding")?.as_str().starts_with("Identity-") {
        return None;
    }
    let font = dict.get::<Array>("DescendantFonts")?.iter::<Dict>().next()?;
    let ordering = font.get::<Dict>("CIDSystemInfo")?.get::<Text>("Ordering")?;
    let name = match ordering.as_bytes() {
        b"Japan1" => CMapName::AdobeJapan1Ucs2,
        b"GB1" => CMapName::AdobeGb1Ucs2,
        b"CNS1" => CMapName::AdobeCns1Ucs2,
        b"Korea1" => CMapName::AdobeKorea1Ucs2,
        _ => return None,
    };
    CMap::parse(hayro_cmap::load_embedded(name)?, hayro_cmap::load_embedded)
}

/// Type 3 fonts draw in units of their own; their box gives the height of a letter.
fn type3_scale(dict: &Dict) -> Option<f32> {
    if dict.get::<Name>("Subtype")?.as_str() != "Type3" {
        return None;
    }
    let matrix = dict.get::<[f32; 6]>("FontMatrix")?;
    let [_, bottom, _, top] = dict.get::<[f32; 4]>("FontBBox")?;
    let scale = ((top - bottom) * matrix[3]).abs();
    (0.001..2000.0).contains(&scale).then_some(scale)
}
