//! Finds the missing parts of a damaged PDF.

use std::collections::HashSet;

use hayro_syntax::{
    Pdf,
    object::{Array, Dict, MaybeRef, Name, Object},
};

use super::MAX_PAGES;

/// Distance of the last significant line from the end, in bytes, at most; farther if the file is cut off.
const END: usize = 2048;

/// Distance of the first line from the start, in bytes, at most.
const START: usize = 1024;

/// Deepest nesting of the tree of pages.
const MAX_DEPTH: usize = 64;

/// Whether bytes begin as a PDF does.
pub(super) fn is_pdf(bytes: &[u8]) -> bool {
    has(&bytes[..bytes.len().min(START)], b"%PDF-")
}

/// Whether the end of a PDF is missing, with the table of all objects.
pub(super) fn is_cut_off(bytes: &[u8]) -> bool {
    !has(&bytes[bytes.len().saturating_sub(END)..], b"startxref")
}

fn has(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

/// The pages of a document, and which of them were found.
pub(super) struct Census {
    /// The place of each found page in the document, from 0.
    pub places: Vec<usize>,
    /// The expected number of pages; `None` if the tree of pages is lost.
    pub all: Option<usize>,
}

/// Follows the tree of pages as hayro does, and counts the missing ones, which hayro skips.
pub(super) fn census(pdf: &Pdf) -> Census {
    let found = pdf.pages().len();
    let catalog = pdf.xref().get::<Dict>(pdf.xref().root_id());
    let root = catalog.and_then(|catalog| catalog.get::<Dict>("Pages"));
    let mut walk = Walk { pdf, next: 0, places: Vec::new(), seen: HashSet::new() };
    if let Some(root) = root.filter(|root| root.get::<Array>("Kids").is_some()) {
        walk.seen.extend(root.obj_id().map(|id| id.obj_number));
        walk.node(&root, 0);
    }
    if walk.places.len() == found && walk.next <= MAX_PAGES {
        Census { places: walk.places, all: Some(walk.next) }
    } else {
        // hayro found the pages without the tree, or by another way through it.
        Census { places: (0..found).collect(), all: None }
    }
}

struct Walk<'a> {
    pdf: &'a Pdf,
    /// The place of the next page.
    next: usize,
    places: Vec<usize>,
    seen: HashSet<u32>,
}

/// The pages below a node of the tree.
enum Kid<'a> {
    Page,
    Node(Dict<'a>),
    Lost,
}

impl<'a> Walk<'a> {
    fn node(&mut self, node: &Dict<'a>, depth: usize) {
        let Some(kids) = node.get::<Array>("Kids") else { return };
        let kids: Vec<Kid> = kids.raw_iter().filter_map(|kid| self.kid(kid)).collect();
        let known: usize = kids.iter().map(Kid::pages).sum();
        let lost = kids.iter().filter(|kid| matches!(kid, Kid::Lost)).count();
        // The lost nodes share the expected rest of the pages, one page each at least.
        let mut missing = count(node).unwrap_or(0).saturating_sub(known).max(lost);
        let mut left = lost;
        for kid in kids {
            match kid {
                Kid::Page => {
                    self.places.push(self.next);
                    self.next += 1;
                }
                Kid::Node(below) if depth < MAX_DEPTH => self.node(&below, depth + 1),
                Kid::Node(_) => {}
                Kid::Lost => {
                    let share = missing / left;
                    self.next += share;
                    missing -= share;
                    left -= 1;
                }
            }
        }
    }

    fn kid(&mut self, kid: MaybeRef<Object<'a>>) -> Option<Kid<'a>> {
        let dict = match kid {
            MaybeRef::Ref(id) if !self.seen.insert(id.obj_number) => return None,
            MaybeRef::Ref(id) => self.pdf.xref().get::<Dict<'a>>(id.into()),
            MaybeRef::NotRef(Object::Dict(dict)) => Some(dict),
            MaybeRef::NotRef(_) => None,
        };
        Some(match dict {
            None => Kid::Lost,
            Some(dict) if dict.get::<Name>("Type").is_some_and(|name| name.as_str() == "Pages") => {
                if dict.get::<Array>("Kids").is_some() { Kid::Node(dict) } else { Kid::Lost }
            }
            Some(_) => Kid::Page,
        })
    }
}

impl Kid<'_> {
    /// The expected number of its pages, if known.
    fn pages(&self) -> usize {
        match self {
            Self::Page => 1,
            Self::Node(node) => count(node).unwrap_or(0),
            Self::Lost => 0,
        }
    }
}

/// The number of pages that a node says it has.
fn count(node: &Dict) -> Option<usize> {
    // A number beyond the limit of pages is wrong.
    node.get::<u32>("Count").map(|count| count as usize).filter(|&count| count <= MAX_PAGES)
}
