//! The document's own outline, which viewers show in a side bar.

use std::collections::{HashMap, HashSet};

use hayro_syntax::{
    Pdf,
    object::{Array, Dict, MaybeRef, Name, Object, String as Text},
};

/// Most entries read, and most names of places.
const MAX_ENTRIES: usize = 20_000;
const MAX_NAMES: usize = 200_000;

/// Deepest nesting of entries, and of the tree of names.
const MAX_DEPTH: usize = 16;

/// An entry of the outline.
#[derive(Debug, Clone)]
pub(super) struct Bookmark {
    pub title: String,
    /// From 1.
    pub level: usize,
    /// The page it leads to, from 0.
    pub page: usize,
}

/// The outline in the order of reading; empty if there is none, or it cannot be followed.
pub(super) fn bookmarks(pdf: &Pdf) -> Vec<Bookmark> {
    let Some(catalog) = pdf.xref().get::<Dict>(pdf.xref().root_id()) else { return Vec::new() };
    let Some(outlines) = catalog.get::<Dict>("Outlines") else { return Vec::new() };
    let pages = pdf.pages().iter().enumerate();
    let pages = pages.filter_map(|(index, page)| Some((page.raw().obj_id()?.obj_number, index))).collect();
    let mut reader = Reader { pages, names: names(&catalog), seen: HashSet::new(), found: Vec::new() };
    reader.level(&outlines, 1);
    reader.found
}

struct Reader<'a> {
    /// Page by object number.
    pages: HashMap<u32, usize>,
    names: HashMap<Vec<u8>, Object<'a>>,
    seen: HashSet<u32>,
    found: Vec<Bookmark>,
}

impl<'a> Reader<'a> {
    fn level(&mut self, parent: &Dict<'a>, level: usize) {
        let mut next = parent.get::<Dict>("First");
        while let Some(entry) = next {
            let again = entry.obj_id().is_none_or(|id| !self.seen.insert(id.obj_number));
            if again || self.found.len() >= MAX_ENTRIES {
                return;
            }
            let title = entry.get::<Text>("Title").map(|title| super::text_string(title.as_bytes())).unwrap_or_default();
            let place = entry.get::<Object>("Dest").or_else(|| entry.get::<Dict>("A")?.get::<Object>("D"));
            if let Some(page) = place.and_then(|place| self.page(&place)) {
                self.found.push(Bookmark { title: super::super::one_line(&title), level, page });
            }
            if level < MAX_DEPTH {
                self.level(&entry, level + 1);
            }
            next = entry.get::<Dict>("Next");
        }
    }

    /// The page of a destination: an array that begins with it, or the name of one.
    fn page(&self, place: &Object<'a>) -> Option<usize> {
        match place {
            Object::Array(array) => match array.raw_iter().next()? {
                MaybeRef::Ref(page) => self.pages.get(&page.obj_number).copied(),
                MaybeRef::NotRef(Object::Number(page)) => usize::try_from(page.as_i64()).ok(),
                MaybeRef::NotRef(_) => None,
            },
            Object::Dict(dict) => self.page(&Object::Array(dict.get::<Array>("D")?)),
            Object::Name(name) => self.named(name.as_ref()),
            Object::String(name) => self.named(name.as_bytes()),
            _ => None,
        }
    }

    fn named(&self, name: &[u8]) -> Option<usize> {
        match self.names.get(name)? {
            // A name that leads to another name is ignored.
            Object::Name(_) | Object::String(_) => None,
            place => self.page(place),
        }
    }
}

/// Names of places: `Dests` of the catalog, and the tree under `Names`.
fn names<'a>(catalog: &Dict<'a>) -> HashMap<Vec<u8>, Object<'a>> {
    let mut names = HashMap::new();
    if let Some(dests) = catalog.get::<Dict>("Dests") {
        for name in dests.keys().take(MAX_NAMES) {
            if let Some(place) = dests.get::<Object>(<Name as AsRef<[u8]>>::as_ref(&name)) {
                names.insert(name.as_ref().to_vec(), place);
            }
        }
    }
    let mut open: Vec<(Dict, usize)> =
        catalog.get::<Dict>("Names").and_then(|names| names.get::<Dict>("Dests")).map(|tree| (tree, 0)).into_iter().collect();
    let mut nodes = 0;
    while let Some((node, depth)) = open.pop() {
        nodes += 1;
        if nodes > MAX_NAMES || names.len() > MAX_NAMES {
            break;
        }
        if let Some(kids) = node.get::<Array>("Kids")
            && depth < MAX_DEPTH
        {
            open.extend(kids.iter::<Dict>().map(|kid| (kid, depth + 1)));
        }
        if let Some(pairs) = node.get::<Array>("Names") {
            let mut pairs = pairs.iter::<Object>();
            while let (Some(name), Some(place)) = (pairs.next(), pairs.next()) {
                if let Object::String(name) = name {
                    names.insert(name.as_bytes().to_vec(), place);
                }
            }
        }
    }
    names
}
