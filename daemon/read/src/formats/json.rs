//! JSON and notebooks to Markdown: keys beside their values, in the order of the file.

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::{
    Fault, Parsed,
    encoding::{self, Declaration},
    markdown, text,
};

/// An object on one line is at most so long; a longer one is a list of its keys.
const MAX_LINE: usize = 400;

/// Deepest indentation.
const MAX_INDENTATION: usize = 8;

/// Most characters of the text.
const MAX_TEXT_BYTES: usize = 30 << 20;

/// Reads JSON, or a file of several values such as JSON lines. A file with comments, or a damaged one, is read as it stands.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Fault> {
    let (source, note) = encoding::decode(bytes, Declaration::InXml)?;
    let source = text::unix_lines(&source);
    let values: Result<Vec<Node>, _> = serde_json::Deserializer::from_str(&source).into_iter().collect();
    let Ok(values) = values else {
        let fence = markdown::fence_for(&source);
        return Ok(Parsed { title: None, text: format!("{fence}\n{source}\n{fence}\n"), note });
    };
    let mut text = String::new();
    for value in &values {
        write(value, "", 0, &mut text);
        if text.len() > MAX_TEXT_BYTES {
            return Err(Fault::Damaged("it unfolds into more text than a library holds".into()));
        }
    }
    Ok(Parsed { title: None, text, note })
}

/// A value. Objects keep their order, and numbers their digits as far as 64 bits do.
enum Node {
    Scalar(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
                formatter.write_str("any value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(super::one_line(&text::without_data_urls(value))))
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(String::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = values.next_element()? {
                    list.push(value);
                }
                Ok(Node::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
                let mut object = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    object.push(entry);
                }
                Ok(Node::Object(object))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Writes a value below its key. The depth is bounded by serde_json.
fn write(value: &Node, key: &str, depth: usize, text: &mut String) {
    let mut line = String::new();
    if flat(value, &mut line) {
        if !line.is_empty() {
            item(key, &line, depth, text);
        }
        return;
    }
    let below = if key.is_empty() { depth } else { depth + 1 };
    if !key.is_empty() {
        item(key, "", depth, text);
    }
    match value {
        Node::Scalar(_) => {}
        Node::List(values) => {
            for value in values {
                write(value, "", below, text);
            }
        }
        Node::Object(entries) => {
            for (key, value) in entries {
                write(value, key, below, text);
            }
        }
    }
    // The next object of a list begins another list.
    if key.is_empty() && depth == 0 && !text.ends_with("\n\n") {
        text.push('\n');
    }
}

fn item(key: &str, value: &str, depth: usize, text: &mut String) {
    text.push_str(&"  ".repeat(depth.min(MAX_INDENTATION)));
    let colon = match (key, value) {
        ("", _) => "",
        (_, "") => ":",
        _ => ": ",
    };
    text.extend(["- ", key, colon, value, "\n"]);
}

/// Writes a value on one line: `code: E-17; meaning: low`. False if it is too long.
fn flat(value: &Node, line: &mut String) -> bool {
    match value {
        // A long text is one line all the same, unless it stands in something else.
        Node::Scalar(words) => {
            line.push_str(words);
            true
        }
        Node::List(values) => {
            values.iter().all(|value| matches!(value, Node::Scalar(_))) && {
                for (index, value) in values.iter().enumerate() {
                    line.push_str(if index > 0 { ", " } else { "" });
                    flat(value, line);
                }
                line.len() <= MAX_LINE
            }
        }
        Node::Object(entries) => {
            let begun = line.len();
            for (key, value) in entries {
                let mut words = String::new();
                let nested = matches!(value, Node::Object(_));
                if nested || !flat(value, &mut words) {
                    return false;
                }
                if !words.is_empty() {
                    line.extend([if line.len() > begun { "; " } else { "" }, key, ": ", &words]);
                }
                if line.len() > MAX_LINE {
                    return false;
                }
            }
            true
        }
    }
}

/// A notebook of Jupyter, version 3 or 4. Only the parts with words are kept in memory.
#[derive(Deserialize)]
struct Notebook {
    #[serde(default)]
    cells: Vec<Cell>,
    #[serde(default)]
    worksheets: Vec<Worksheet>,
}

#[derive(Deserialize)]
struct Worksheet {
    #[serde(default)]
    cells: Vec<Cell>,
}

#[derive(Deserialize)]
struct Cell {
    #[serde(rename = "cell_type")]
    kind: String,
    #[serde(default, alias = "input")]
    source: Lines,
    #[serde(default)]
    level: usize,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    #[serde(default)]
    text: Lines,
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize, Default)]
struct Data {
    #[serde(rename = "text/plain", default)]
    plain: Lines,
    #[serde(rename = "text/markdown", default)]
    markdown: Lines,
}

/// A text, or its lines.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Lines {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Lines {
    fn text(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::One(text) => text.clone(),
            Self::Many(lines) => lines.concat(),
        }
    }
}

/// Reads a notebook: its texts, its code, and what the code printed.
pub(super) fn notebook(source: &str) -> Result<Parsed, Fault> {
    let notebook: Notebook =
        serde_json::from_str(source).map_err(|error| Fault::Damaged(format!("it is no notebook ({error})")))?;
    let mut text = String::new();
    let mut block = |words: &str, is_code: bool| {
        let words = text::without_data_urls(words.trim_matches('\n'));
        if words.trim().is_empty() {
        } else if is_code {
            let fence = markdown::fence_for(&words);
            text.extend([&fence, "\n", words.trim_end(), "\n", &fence, "\n\n"]);
        } else {
            text.extend([words.trim_end(), "\n\n"]);
        }
    };
    for cell in notebook.cells.iter().chain(notebook.worksheets.iter().flat_map(|sheet| &sheet.cells)) {
        let source = cell.source.text();
        match cell.kind.as_str() {
            "code" => block(&source, true),
            "heading" => block(&format!("{} {}", "#".repeat(cell.level.clamp(1, 6)), source.trim()), false),
            _ => block(&source, false),
        }
        for output in &cell.outputs {
            block(&output.text.text(), true);
            let markdown = output.data.markdown.text();
            if markdown.is_empty() {
                block(&output.data.plain.text(), true);
            } else {
                block(&markdown, false);
            }
        }
    }
    Ok(Parsed { title: None, text, note: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::example;

    fn json(source: &str) -> String {
        parse(source.as_bytes()).unwrap().text
    }

    #[test]
    fn keys_stand_beside_their_values() {
        let given = parse(&example("office/a.json")).unwrap().text;
        assert_eq!(
            given,
            "- device: pump\n- errors:\n  - code: E-17; meaning: low pressure\n- note: The key is in the cupboard\n\n"
        );
        assert_eq!(
            json(r#"{"z":1,"a":[1,2.5,null,"x"],"b":{"c":{"d":true}},"e":{}}"#),
            "- z: 1\n- a: 1, 2.5, , x\n- b:\n  - c: d: true\n\n"
        );
        assert_eq!(json("{\"a\":1}\n{\"a\":2}\n"), "- a: 1\n- a: 2\n");
        assert_eq!(json("[{\"a\":1},[\"b\",{\"c\":3}]]"), "- a: 1\n- b\n- c: 3\n\n");
    }

    #[test]
    fn damage_and_depth_are_borne() {
        assert_eq!(json("{\"a\": 1, // no\n}"), "```\n{\"a\": 1, // no\n}\n```\n");
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        assert_eq!(json(&deep).trim(), "- 1");
        assert!(json(&"[".repeat(100_000)).starts_with("```"));
    }

    #[test]
    fn notebooks_are_read() {
        let text = |source: &[u8]| notebook(std::str::from_utf8(source).unwrap()).unwrap().text;
        assert_eq!(text(&example("office/a.ipynb")), "# Pump\nThe key is in the cupboard\n\n");
        let cells = br#"{"cells":[{"cell_type":"code","source":"print(1)","outputs":[{"output_type":"stream","text":["1\n"]},
            {"output_type":"display_data","data":{"image/png":"iVBORw0KGgo","text/plain":["<Figure>"]}}]},
            {"cell_type":"markdown","source":"![a](data:image/png;base64,iVBORw0KGgo=) b","attachments":{"x":{"image/png":"iVBOR"}}}]}"#;
        assert_eq!(text(cells), "```\nprint(1)\n```\n\n```\n1\n```\n\n```\n<Figure>\n```\n\n![a]() b\n\n");
        let old = br#"{"worksheets":[{"cells":[{"cell_type":"heading","level":2,"source":["Pump"]},{"cell_type":"code","input":"x"}]}]}"#;
        assert_eq!(text(old), "## Pump\n\n```\nx\n```\n\n");
        assert!(notebook("{").is_err());
    }
}
