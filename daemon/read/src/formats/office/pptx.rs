//! PresentationML: slides in their order, each a page with its title as heading, its text, tables, diagrams and notes.

use super::{MAX_TEXT_BYTES, Skip, broken, main_part, own_title, relations, too_much};
use crate::formats::{
    Fault, Parsed,
    archive::Archive,
    html::Writer,
    xml::{Element, Token, Xml},
};

/// Most slides.
const MAX_SLIDES: usize = 5000;

pub(super) fn parse(archive: &mut Archive) -> Result<Parsed, Fault> {
    let part = main_part(archive, "ppt/presentation.xml");
    let show = archive.text(&part).ok_or_else(|| Fault::Damaged("it is a ZIP archive, but not a PPTX".into()))?;
    let slides = relations(archive, &part);
    let (mut xml, mut order) = (Xml::new(&show), Vec::new());
    while let Some(token) = xml.next().map_err(broken("presentation"))? {
        if let Token::Open(element) = token
            && element.name() == "sldId"
            && order.len() < MAX_SLIDES
        {
            // `id` is a number of the slide, `r:id` the reference.
            order.extend(element.get_full("r:id").and_then(|id| slides.get(&id)).map(|relation| relation.target.clone()));
        }
    }
    let (mut writer, mut damaged) = (Writer::default(), 0);
    for slide in order {
        match archive.text(&slide) {
            Some(text) => {
                let mut parts: Vec<(String, String)> =
                    relations(archive, &slide).into_values().map(|relation| (relation.kind, relation.target)).collect();
                parts.sort();
                read(&text, Part::Slide, &mut writer)?;
                for (kind, part) in [("diagramData", Part::Diagram), ("notesSlide", Part::Notes)] {
                    for (_, target) in parts.iter().filter(|(of, _)| of == kind) {
                        read(&archive.text(target).unwrap_or_default(), part, &mut writer)?;
                    }
                }
            }
            None => damaged += 1,
        }
        writer.page_break();
    }
    if damaged > 0 {
        writer.note(&format!("damaged slides were not read: {damaged}"));
    }
    Ok(Parsed { title: own_title(archive), ..writer.finish() })
}

/// A file that belongs to a slide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Slide,
    Diagram,
    Notes,
}

/// The shape that is open.
#[derive(Debug, Default)]
struct Shape {
    /// The role that the layout gives it: `title`, `body`, `sldNum`.
    role: Option<String>,
    is_bulleted: bool,
}

fn read(text: &str, part: Part, writer: &mut Writer) -> Result<(), Fault> {
    let (mut xml, mut skip) = (Xml::new(text), Skip::default());
    let mut shape = Shape::default();
    let (mut paragraph, mut in_text, mut in_table) = (None::<Paragraph>, false, false);
    let mut is_first_note = part == Part::Notes;
    // A damaged slide costs the rest of itself.
    while let Ok(Some(token)) = xml.next() {
        if skip.takes(&token, |name| matches!(name, "mc:Fallback" | "p:extLst" | "a:extLst")) {
            continue;
        }
        match token {
            Token::Open(element) => match element.name() {
                "sp" => shape = Shape::default(),
                "ph" => {
                    let role = element.get("type").unwrap_or_else(|| "body".into());
                    shape.is_bulleted = matches!(role.as_str(), "body" | "obj") && part == Part::Slide;
                    shape.role = Some(role);
                }
                "tbl" => {
                    writer.end_lists(0);
                    in_table = true;
                    writer.begin_with("table", &[("heads", "guess")]);
                }
                "tr" if in_table => writer.begin("tr"),
                "tc" if in_table => begin_cell(&element, writer),
                "p" if element.full_name() == "a:p" => paragraph = Some(Paragraph::default()),
                "pPr" => {
                    if let Some(paragraph) = &mut paragraph {
                        paragraph.level = element.get("lvl").and_then(|level| level.parse().ok()).unwrap_or(0);
                    }
                }
                "buNone" | "buChar" | "buAutoNum" | "buBlip" => {
                    if let Some(paragraph) = &mut paragraph {
                        paragraph.is_bulleted = Some(element.name() != "buNone");
                    }
                }
                "t" => in_text = element.full_name() == "a:t",
                "br" if paragraph.as_ref().is_some_and(|paragraph| paragraph.begun) => writer.begin("br"),
                _ => {}
            },
            Token::Words(words) if in_text => {
                let Some(paragraph) = paragraph.as_mut().filter(|_| counts(&shape, part)) else { continue };
                if !paragraph.begun {
                    if words.trim().is_empty() {
                        continue;
                    }
                    paragraph.begun = true;
                    let is_title = matches!(shape.role.as_deref(), Some("title" | "ctrTitle")) && part == Part::Slide;
                    let bulleted = paragraph.is_bulleted.unwrap_or(shape.is_bulleted) && !in_table;
                    if is_title {
                        writer.end_lists(0);
                        paragraph.element = "h2";
                        writer.begin("h2");
                    } else if bulleted {
                        paragraph.element = "li";
                        writer.begin_item(paragraph.level, None);
                    } else {
                        if !in_table {
                            writer.end_lists(0);
                        }
                        paragraph.element = "p";
                        writer.begin("p");
                    }
                    if std::mem::take(&mut is_first_note) {
                        writer.words("Notes: ");
                    }
                }
                writer.words(&words);
            }
            Token::Words(_) => {}
            Token::Close(name) => match name.as_str() {
                "t" => in_text = false,
                "p" => {
                    if let Some(paragraph) = paragraph.take().filter(|paragraph| paragraph.begun) {
                        writer.close(paragraph.element);
                    }
                }
                "tc" if in_table => writer.close("td"),
                "tr" if in_table => writer.close("tr"),
                "tbl" => {
                    in_table = false;
                    writer.close("table");
                }
                _ => {}
            },
        }
        if writer.has_more_than(MAX_TEXT_BYTES) {
            return Err(too_much());
        }
    }
    if in_table {
        writer.close("table");
    }
    writer.end_lists(0);
    Ok(())
}

/// A paragraph; it begins with its first words.
#[derive(Debug, Default)]
struct Paragraph {
    level: usize,
    is_bulleted: Option<bool>,
    begun: bool,
    element: &'static str,
}

/// Numbers of slides, dates and footers are the same everywhere; of notes only the text counts.
fn counts(shape: &Shape, part: Part) -> bool {
    match (part, shape.role.as_deref()) {
        (_, Some("sldNum" | "dt" | "ftr" | "hdr" | "sldImg")) => false,
        (Part::Notes, role) => role.is_some(),
        _ => true,
    }
}

fn begin_cell(element: &Element, writer: &mut Writer) {
    let get = |name: &str| element.get(name).unwrap_or_default();
    // Cells that another one covers are written for it.
    let continued = if get("vMerge") == "1" { "yes" } else { "" };
    writer.begin_with("td", &[("continued", continued)]);
}
