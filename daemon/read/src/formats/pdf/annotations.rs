//! Text that lies upon a page: values of a form, free text and stamps (ISO 32000-2, 12.5 and 12.7).
//!
//! Comments and links are not on the page and are left out.

use hayro_syntax::{
    object::{Array, Dict, Name, Object, Rect, Stream, String as Text},
    page::Page,
};

/// Most annotations of a page.
const MAX_ANNOTATIONS: usize = 5000;

/// Most parents of a field.
const MAX_PARENTS: usize = 8;

/// Most characters of a value.
const MAX_CHARS: usize = 20_000;

/// An annotation with text.
pub(super) struct Annotation<'a> {
    /// Its place in the page's own units.
    pub rect: Rect,
    /// A form that draws it.
    pub appearance: Option<Stream<'a>>,
    /// Its value; programs leave the drawing to the viewer.
    pub value: Option<String>,
    /// The name of the field.
    pub name: Option<String>,
}

/// The visible annotations of a page.
pub(super) fn annotations<'a>(page: &Page<'a>) -> Vec<Annotation<'a>> {
    let Some(all) = page.raw().get::<Array<'a>>("Annots") else { return Vec::new() };
    all.iter::<Dict<'a>>().take(MAX_ANNOTATIONS).filter_map(|dict| annotation(&dict)).collect()
}

/// Resources of a form's appearances that have none of their own.
pub(super) fn form_resources<'a>(page: &Page<'a>) -> Option<Dict<'a>> {
    let catalog = page.xref().get::<Dict<'a>>(page.xref().root_id())?;
    catalog.get::<Dict<'a>>("AcroForm")?.get::<Dict<'a>>("DR")
}

fn annotation<'a>(dict: &Dict<'a>) -> Option<Annotation<'a>> {
    const HIDDEN: u32 = 1 << 1;
    const NO_VIEW: u32 = 1 << 5;
    if dict.get::<u32>("F").unwrap_or(0) & (HIDDEN | NO_VIEW) != 0 {
        return None;
    }
    let (value, name) = match dict.get::<Name>("Subtype")?.as_str() {
        "Widget" => field(dict)?,
        "FreeText" => (dict.get::<Text>("Contents").map(|text| decoded(&text)), None),
        "Stamp" => (None, None),
        _ => return None,
    };
    let value = value.map(|value| value.trim().chars().take(MAX_CHARS).collect::<String>()).filter(|value| !value.is_empty());
    Some(Annotation { rect: dict.get::<Rect>("Rect")?, appearance: appearance(dict), value, name })
}

/// The drawing of an annotation in its present state.
fn appearance<'a>(dict: &Dict<'a>) -> Option<Stream<'a>> {
    let normal = dict.get::<Dict<'a>>("AP")?;
    normal.get::<Stream<'a>>("N").or_else(|| {
        let states = normal.get::<Dict<'a>>("N")?;
        states.get::<Stream<'a>>(dict.get::<Name>("AS")?.as_ref())
    })
}

/// Value and name of a field; `None` for a button that does something and for a password.
#[allow(clippy::type_complexity)]
fn field(dict: &Dict) -> Option<(Option<String>, Option<String>)> {
    const PASSWORD: u32 = 1 << 13;
    const PUSH_BUTTON: u32 = 1 << 16;
    let flags = holder(dict, "Ff").and_then(|field| field.get::<u32>("Ff")).unwrap_or(0);
    let name = holder(dict, "TU")
        .and_then(|field| field.get::<Text>("TU"))
        .or_else(|| holder(dict, "T").and_then(|field| field.get::<Text>("T")))
        .map(|name| super::super::one_line(&decoded(&name)));
    let kind = holder(dict, "FT").and_then(|field| field.get::<Name>("FT"))?;
    let value = match kind.as_str() {
        "Btn" if flags & PUSH_BUTTON != 0 => return None,
        "Btn" => {
            let state = dict.get::<Name>("AS").or_else(|| holder(dict, "V").and_then(|field| field.get::<Name>("V")));
            state.is_some_and(|state| state.as_str() != "Off").then(|| "\u{2612}".to_owned())
        }
        "Tx" if flags & PASSWORD != 0 => return None,
        "Tx" => holder(dict, "V").and_then(|field| field.get::<Object>("V")).and_then(|value| text_of(&value)),
        "Ch" => holder(dict, "V").and_then(|field| field.get::<Object>("V")).and_then(|value| chosen(dict, &value)),
        _ => None,
    };
    Some((value, name.filter(|name| !name.is_empty())))
}

/// A field, or the nearest of its parents with this entry.
fn holder<'a>(dict: &Dict<'a>, key: &str) -> Option<Dict<'a>> {
    let parents = std::iter::successors(Some(dict.clone()), |at| at.get::<Dict<'a>>("Parent"));
    parents.take(MAX_PARENTS).find(|at| at.contains_key(key))
}

fn text_of(value: &Object) -> Option<String> {
    match value {
        Object::String(text) => Some(decoded(text)),
        Object::Name(name) => Some(name.as_str().to_owned()),
        Object::Stream(stream) => stream.decoded_data().ok().map(|bytes| super::text_string(&bytes)),
        _ => None,
    }
}

/// The chosen entries of a list as they are shown: options may be pairs of a value and its text.
fn chosen(dict: &Dict, value: &Object) -> Option<String> {
    let options: Vec<(String, String)> =
        holder(dict, "Opt").and_then(|field| field.get::<Array>("Opt")).map_or_else(Vec::new, |options| {
            let pair = |option: Object| match option {
                Object::Array(pair) => {
                    let mut pair = pair.iter::<Text>();
                    Some((decoded(&pair.next()?), decoded(&pair.next()?)))
                }
                _ => None,
            };
            options.iter::<Object>().take(MAX_ANNOTATIONS).filter_map(pair).collect()
        });
    let shown = |value: String| options.iter().find(|(key, _)| *key == value).map_or(value, |(_, shown)| shown.clone());
    match value {
        Object::Array(values) => Some(values.iter::<Text>().map(|value| shown(decoded(&value))).collect::<Vec<_>>().join(", ")),
        other => text_of(other).map(shown),
    }
}

fn decoded(text: &Text) -> String {
    super::text_string(text.as_bytes())
}
