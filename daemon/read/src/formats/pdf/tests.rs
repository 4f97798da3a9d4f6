//! A small writer makes the PDFs here, text at places, so that a test shows its subject.

use super::*;
use std::fmt::Write as _;

/// A page under construction: its program.
#[derive(Default)]
struct Sketch(String);

impl Sketch {
    fn font(mut self, name: &str, size: f32, x: f32, y: f32, text: &str) -> Self {
        let text = text.replace('\\', "\\\\").replace('(', "\\(").replace(')', "\\)");
        writeln!(self.0, "BT /{name} {size} Tf {x} {y} Td ({text}) Tj ET").unwrap();
        self
    }

    fn text(self, x: f32, y: f32, text: &str) -> Self {
        self.font("F", 10.0, x, y, text)
    }

    /// Lines from `y` downwards, 12 points apart.
    fn lines(self, x: f32, y: f32, lines: &[&str]) -> Self {
        lines.iter().enumerate().fold(self, |page, (n, line)| page.text(x, y - 12.0 * n as f32, line))
    }

    fn rule(mut self, x0: f32, y0: f32, x1: f32, y1: f32) -> Self {
        writeln!(self.0, "{x0} {y0} m {x1} {y1} l S").unwrap();
        self
    }
}

/// A PDF of these pages. `outline`: titles with their level (1 or 2) and page from 0.
fn pdf(pages: &[Sketch], outline: &[(&str, usize, usize)]) -> Vec<u8> {
    let mut objects: Vec<String> = vec![
        "<< /Type /Catalog /Pages 2 0 R /Outlines 6 0 R >>".into(),
        String::new(),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".into(),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold >>".into(),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Courier >>".into(),
        String::new(),
    ];
    let page_object = |page: usize| 7 + 2 * page;
    for (index, page) in pages.iter().enumerate() {
        let content = page_object(index) + 1;
        objects.push(format!("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {content} 0 R /Resources << /Font << /F 3 0 R /B 4 0 R /M 5 0 R >> >> >>"));
        objects.push(format!("<< /Length {} >>\nstream\n{}\nendstream", page.0.len(), page.0));
    }
    let kids: String = (0..pages.len()).map(|page| format!("{} 0 R ", page_object(page))).collect();
    objects[1] = format!("<< /Type /Pages /Count {} /Kids [{kids}] >>", pages.len());
    let first = objects.len() + 1;
    let next_of = |from: usize, level: usize| {
        (from + 1..outline.len()).take_while(|&at| outline[at].1 >= level).find(|&at| outline[at].1 == level)
    };
    objects[5] = if outline.is_empty() { "<< >>".into() } else { format!("<< /First {first} 0 R >>") };
    for (at, (title, level, page)) in outline.iter().enumerate() {
        let next = next_of(at, *level).map_or(String::new(), |next| format!("/Next {} 0 R", first + next));
        let child = if outline.get(at + 1).is_some_and(|next| next.1 > *level) {
            format!("/First {} 0 R", first + at + 1)
        } else {
            String::new()
        };
        objects.push(format!("<< /Title ({title}) /Dest [{} 0 R /Fit] {next} {child} >>", page_object(*page)));
    }
    file(&objects)
}

/// A PDF of these objects, from 1; the first is the catalog.
fn file(objects: &[String]) -> Vec<u8> {
    let mut file = String::from("%PDF-1.4\n");
    let mut places = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        places.push(file.len());
        write!(file, "{} 0 obj\n{object}\nendobj\n", index + 1).unwrap();
    }
    let xref = file.len();
    write!(file, "xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).unwrap();
    for place in &places {
        writeln!(file, "{place:010} 00000 n ").unwrap();
    }
    write!(file, "trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{xref}\n%%EOF\n", objects.len() + 1).unwrap();
    file.into_bytes()
}

fn text(pages: &[Sketch]) -> String {
    parse(pdf(pages, &[])).unwrap().text
}

const PROSE: [&str; 4] = [
    "The pump moves water from the tank to the coil and back again, as long as the",
    "controller asks for heat and no fault stands in the way of it. It is started by",
    "hand in service mode, where every other part of the machine stays switched off,",
    "so that the pressure can be read in peace.",
];

#[test]
fn paragraphs_headings_and_pages() {
    let page = Sketch::default().font("B", 18.0, 50.0, 700.0, "Operation").lines(50.0, 660.0, &PROSE).text(
        50.0,
        580.0,
        "A second paragraph follows after some white space.",
    );
    let next = Sketch::default().lines(50.0, 700.0, &PROSE);
    let text = text(&[page, next]);
    let joined = PROSE.join(" ");
    assert_eq!(
        text,
        format!("# Operation\n\n{joined}\n\nA second paragraph follows after some white space.\n\n\u{0C}\n\n{joined}\n")
    );
}

#[test]
fn two_columns_are_read_one_after_the_other() {
    let left = [
        "Water is the medium",
        "that carries the heat",
        "from one place to the",
        "other, and it should be",
        "soft and clean for the",
        "whole of its long life.",
    ];
    let right = [
        "Glycol keeps it from",
        "freezing in a winter",
        "that is harder than",
        "those of the past, and",
        "it should be renewed",
        "every few years or so.",
    ];
    let page = Sketch::default()
        .font("B", 16.0, 50.0, 740.0, "A heading across both of the columns")
        .lines(50.0, 700.0, &left)
        .lines(180.0, 700.0, &right);
    let text = text(&[page]);
    assert!(text.contains(&format!("{}\n", left.join(" "))), "{text}");
    assert!(text.contains(&right.join(" ")), "{text}");
    assert!(text.starts_with("# A heading across"), "{text}");
}

#[test]
fn tables_are_read_row_by_row() {
    let rows = [
        ("Code", "Meaning", "Remedy"),
        ("E-17", "High pressure", "Clean the filter"),
        ("E-18", "Low pressure", "Add water"),
        ("E-42", "No flow", "Open the valve"),
    ];
    let mut page = Sketch::default().lines(50.0, 760.0, &PROSE);
    for (n, (code, meaning, remedy)) in rows.iter().enumerate() {
        let y = 600.0 - 14.0 * n as f32;
        let font = if n == 0 { "B" } else { "F" };
        page = page.font(font, 10.0, 50.0, y, code).font(font, 10.0, 150.0, y, meaning).font(font, 10.0, 300.0, y, remedy);
    }
    let text = text(&[page]);
    let table = "| Code | Meaning | Remedy |\n|---|---|---|\n| E-17 | High pressure | Clean the filter |\n| E-18 | Low pressure | Add water |\n| E-42 | No flow | Open the valve |\n";
    assert!(text.contains(table), "{text}");
}

/// A table of three columns without bold text.
fn plain_table(rows: &[(&str, &str, &str)]) -> String {
    let mut page = Sketch::default().lines(50.0, 760.0, &PROSE);
    for (n, (first, second, third)) in rows.iter().enumerate() {
        let y = 600.0 - 14.0 * n as f32;
        page = page.text(50.0, y, first).text(150.0, y, second).text(300.0, y, third);
    }
    text(&[page])
}

#[test]
fn the_first_row_names_columns_as_a_last_resort() {
    let faults = plain_table(&[
        ("Code", "Meaning", "Remedy"),
        ("E-17", "High pressure", "Clean the filter"),
        ("E-18", "Low pressure", "Add water"),
        ("E-42", "No flow", "Open the valve"),
    ]);
    assert!(
        faults.contains("| Code | Meaning | Remedy |\n|---|---|---|\n| E-17 | High pressure | Clean the filter |\n"),
        "{faults}"
    );
    // Figures above figures are no names.
    let sizes = plain_table(&[("M3", "2.5 mm", "1.2 Nm"), ("M4", "3.3 mm", "2.8 Nm"), ("M5", "4.2 mm", "5.5 Nm")]);
    assert!(sizes.contains("|  |  |  |\n|---|---|---|\n| M3 | 2.5 mm | 1.2 Nm |\n"), "{sizes}");
}

#[test]
fn cells_of_a_grid_may_have_several_lines() {
    let mut page = Sketch::default();
    for y in [700.0, 680.0, 640.0, 600.0] {
        page = page.rule(50.0, y, 550.0, y);
    }
    for x in [50.0, 150.0, 550.0] {
        page = page.rule(x, 700.0, x, 600.0);
    }
    let page = page
        .text(55.0, 686.0, "Code")
        .text(155.0, 686.0, "What to do")
        .text(55.0, 656.0, "E-17")
        .text(155.0, 664.0, "Clean the filter, then start")
        .text(155.0, 650.0, "the machine again.");
    let page = page.text(55.0, 616.0, "E-18").text(155.0, 624.0, "Call ser-").text(155.0, 610.0, "vice.");
    let text = text(&[page]);
    assert_eq!(
        text,
        "| Code | What to do |\n|---|---|\n| E-17 | Clean the filter, then start the machine again. |\n| E-18 | Call service. |\n"
    );
}

#[test]
fn running_heads_feet_and_numbers_go() {
    let page = |n: usize| {
        let number = format!("{n}");
        let line = format!("This page, which has its own words, is number {n} of the book.");
        Sketch::default()
            .text(50.0, 770.0, "Pump manual")
            .lines(50.0, 700.0, &PROSE)
            .text(50.0, 600.0, &line)
            .text(300.0, 30.0, &number)
    };
    let text = text(&[page(1), page(2), page(3), page(4)]);
    assert!(!text.contains("Pump manual"), "{text}");
    assert!(text.lines().all(|line| line.trim().parse::<usize>().is_err()), "{text}");
    assert_eq!(text.matches("which has its own words").count(), 4);
    assert_eq!(text.matches('\u{0C}').count(), 3);
}

/// A page with a bold heading and prose below it.
fn headed(size: f32, heading: &str, line: &str) -> Sketch {
    Sketch::default().font("B", size, 70.0, 730.0, heading).text(70.0, 698.0, line).lines(70.0, 683.0, &PROSE)
}

#[test]
fn headings_at_one_height_stay() {
    let errors: Vec<Sketch> = (17..23).map(|n| headed(14.0, &format!("Error E-{n}"), &format!("Meaning of {n}."))).collect();
    let text = text(&errors);
    assert!((17..23).all(|n| text.contains(&format!("# Error E-{n}\n"))), "{text}");
    // Their numbers may go up with the pages, and their type may be that of the text.
    let steps: Vec<Sketch> = (1..7).map(|n| headed(10.0, &format!("Step {n}"), "Wait.")).collect();
    let text = self::text(&steps);
    assert!((1..7).all(|n| text.contains(&format!("Step {n}"))), "{text}");
    // Several devices have the same heading and the same values.
    for count in [3, 8] {
        let devices: Vec<Sketch> = (0..count).map(|_| headed(16.0, "Technical data", "Protection class: IP44")).collect();
        let text = self::text(&devices);
        assert_eq!((text.matches("# Technical data").count(), text.matches("IP44").count()), (count, count), "{text}");
    }
}

#[test]
fn slides_keep_their_titles() {
    let titles = ["Mounting", "Filling", "Bleeding", "Ignition", "Service", "Winter stop"];
    let slide = |(n, title): (usize, &&str)| {
        let foot = format!("{}", n + 1);
        let page = Sketch::default().font("B", 28.0, 60.0, 730.0, title).font("F", 18.0, 80.0, 600.0, "- Keep the log book.");
        page.font("F", 9.0, 60.0, 30.0, "ACME training 2026").font("F", 9.0, 500.0, 30.0, &foot)
    };
    let text = text(&titles.iter().enumerate().map(slide).collect::<Vec<_>>());
    assert!(titles.iter().all(|title| text.contains(&format!("# {title}\n"))), "{text}");
    assert!(!text.contains("ACME"), "{text}");
}

#[test]
fn a_table_over_pages_keeps_its_head() {
    let page = |n: usize| {
        let cells = |page: Sketch, y: f32, cells: [&str; 3]| {
            cells.iter().zip([70.0, 170.0, 350.0]).fold(page, |page, (cell, x)| page.text(x, y, cell))
        };
        let page = Sketch::default().text(70.0, 770.0, "ACME Pump Manual").text(280.0, 30.0, &format!("Page {n}"));
        let page = cells(page, 730.0, ["Code", "Meaning", "Remedy"]);
        (0..28).fold(page, |page, row| {
            let code = format!("E-{}", 100 * n + row);
            cells(page, 710.0 - 20.0 * row as f32, [&code, "No flow", "Wait"])
        })
    };
    let text = text(&[page(1), page(2), page(3)]);
    assert!(text.starts_with("| Code | Meaning | Remedy |\n|---|---|---|\n| E-100 |"), "{text}");
    assert!(!text.contains("ACME") && !text.contains("Page 2"), "{text}");
}

#[test]
fn running_heads_of_chapters_go() {
    // Two chapters, the number of the page outside, and a title of the outline that is also a running head.
    let page = |n: usize| {
        let chapter = if n < 6 { "Safety" } else { "Operation" };
        let (left, right) =
            if n.is_multiple_of(2) { (format!("{n}"), chapter.to_owned()) } else { (chapter.to_owned(), format!("{n}")) };
        let page = Sketch::default().text(50.0, 770.0, &left).text(450.0, 770.0, &right);
        let page = if n == 1 || n == 6 { page.font("B", 18.0, 50.0, 700.0, chapter) } else { page };
        page.lines(50.0, 660.0, &PROSE).text(50.0, 600.0, &format!("It is known as leaf{n}x."))
    };
    let pages: Vec<Sketch> = (1..=10).map(page).collect();
    let text = parse(pdf(&pages, &[("Safety", 1, 0), ("Operation", 1, 5)])).unwrap().text;
    assert_eq!(text.matches("Safety").count(), 1, "{text}");
    assert_eq!(text.matches("# Operation\n").count(), 1, "{text}");
    assert!(text.lines().all(|line| line.trim().parse::<usize>().is_err()), "{text}");
}

#[test]
fn a_document_of_recurring_lines_is_not_emptied() {
    let page = || Sketch::default().text(50.0, 740.0, "Keep out");
    assert_eq!(text(&[page(), page(), page(), page()]).matches("Keep out").count(), 4);
}

#[test]
fn a_title_of_the_outline_stays() {
    let page =
        |n: usize| Sketch::default().text(50.0, 770.0, "Care").lines(50.0, 700.0, &PROSE).text(50.0, 600.0, &format!("leaf{n}x"));
    let pages: Vec<Sketch> = (1..=5).map(page).collect();
    let text = parse(pdf(&pages, &[("Care", 1, 1)])).unwrap().text;
    assert_eq!(text.matches("Care").count(), 1, "{text}");
    assert!(text.contains("# Care\n"), "{text}");
}

#[test]
fn hyphens_go_where_the_word_is_whole() {
    let page = Sketch::default().lines(
        50.0,
        700.0,
        &[
            "This is the maintenance of a well-known pump, which asks for main-",
            "tenance, and of a well-",
            "known tank, and of E-",
            "42. Its fonts-crosextra-",
            "carlito is a name.",
        ],
    );
    let text = text(&[page]);
    assert!(
        text.contains("asks for maintenance, and of a well-known tank, and of E-42. Its fonts-crosextra-carlito is a name."),
        "{text}"
    );
}

#[test]
fn german_hyphens_of_shared_ends_stay() {
    let lines = [
        "Die Ein- und Aus-", // typos: ignore
        "gaenge sowie die Strom-",
        "und Wasserleitungen. Siehe https://example.org/pump-",
        "manual/e-17.html und die Do-",
        "nau-Dampfschiff-Gesell-",
        "schaft der Nord-",
        "Sued-Verbindung. Der Ver-",
        "und Entsorger.",
    ];
    let text = text(&[Sketch::default().lines(50.0, 700.0, &lines)]);
    let right = "Die Ein- und Ausgaenge sowie die Strom- und Wasserleitungen. Siehe https://example.org/pump-manual/e-17.html und die Donau-Dampfschiff-Gesellschaft der Nord-Sued-Verbindung. Der Ver- und Entsorger.\n"; // typos: ignore
    assert_eq!(text, right);
}

#[test]
fn the_outline_says_what_is_a_heading() {
    let page = Sketch::default()
        .font("B", 14.0, 50.0, 740.0, "1 Safety")
        .lines(50.0, 700.0, &PROSE)
        .text(50.0, 640.0, "1.1 Plain but a heading")
        .lines(50.0, 610.0, &PROSE);
    let other = Sketch::default().font("B", 14.0, 50.0, 740.0, "2 Operation").lines(50.0, 700.0, &PROSE);
    let text = parse(pdf(&[page, other], &[("Safety", 1, 0), ("Plain but a heading", 2, 0), ("Operation", 1, 1)])).unwrap().text;
    let headings: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
    assert_eq!(headings, ["# 1 Safety", "## 1.1 Plain but a heading", "# 2 Operation"]);
}

#[test]
fn lists_listings_and_labels() {
    let page = Sketch::default()
        .lines(50.0, 760.0, &PROSE)
        .text(60.0, 690.0, "- open the valve, wait until the noise has gone and then")
        .text(70.0, 678.0, "close it again")
        .text(60.0, 666.0, "- read the pressure")
        .font("M", 10.0, 60.0, 640.0, "if hot:")
        .font("M", 10.0, 84.0, 628.0, "stop   # now")
        .text(50.0, 600.0, "Warning")
        .text(50.0, 580.0, "Hot surface.");
    let text = text(&[page]);
    assert!(
        text.contains("- open the valve, wait until the noise has gone and then close it again\n- read the pressure\n"),
        "{text}"
    );
    assert!(text.contains("```\nif hot:\n    stop   # now\n```\n"), "{text}");
    assert!(text.contains("Warning: Hot surface."), "{text}");
}

#[test]
fn contents_are_left_out() {
    let page = Sketch::default()
        .text(50.0, 700.0, "1 Safety . . . . . . . . . . . . . . . 7")
        .text(50.0, 688.0, "2 Operation ........................ 12")
        .lines(50.0, 640.0, &PROSE);
    let text = text(&[page]);
    assert!(!text.contains("Safety") && !text.contains("Operation"), "{text}");
}

#[test]
fn contents_are_no_table() {
    let entries = [
        ("1 Safety", ". . . . . . . . .", "7"),
        ("1.1 Before you begin", ". . . . . .", "8"),
        ("2 Operation", ". . . . . . . .", "12"),
        ("2.1 How to start", ". . . . . .", "13"),
        ("2.2 How to stop", ". . . . . .", "14"),
    ];
    let mut page = Sketch::default().lines(50.0, 760.0, &PROSE).text(50.0, 614.0, "Preface").text(500.0, 614.0, "iv");
    for (n, (title, dots, number)) in entries.iter().enumerate() {
        let y = 600.0 - 14.0 * n as f32;
        page = page.text(50.0, y, title).text(200.0, y, dots).text(500.0, y, number);
    }
    let page = page.text(50.0, 530.0, "3 Index").text(500.0, 530.0, "311");
    assert_eq!(text(&[page]), format!("{}\n", PROSE.join(" ")));
}

#[test]
fn contents_without_dots_need_a_title() {
    let listed = |title: &str| {
        let mut page = Sketch::default().font("B", 16.0, 50.0, 740.0, title);
        for (n, (entry, number)) in [("Safety", "7"), ("Operation", "12"), ("Care", "20"), ("Index", "31")].iter().enumerate() {
            let y = 700.0 - 14.0 * n as f32;
            page = page.text(50.0, y, entry).text(500.0, y, number);
        }
        let text = text(&[page.lines(50.0, 500.0, &PROSE)]);
        text.contains("Operation")
    };
    assert!(!listed("Contents"));
    assert!(listed("Spare parts"));
}

#[test]
fn technical_data_with_dots_are_no_contents() {
    let page = Sketch::default()
        .lines(50.0, 760.0, &PROSE)
        .text(50.0, 600.0, "Weight in kg ........................ 120")
        .text(50.0, 588.0, "Fuse in A ........................... 16")
        .text(50.0, 576.0, "Charge in g ......................... 950")
        .text(50.0, 564.0, "Phases .............................. 3");
    let text = text(&[page]);
    assert!(text.contains("Fuse in A") && text.contains("950"), "{text}");
}

#[test]
fn a_paragraph_goes_on_over_the_page() {
    let page = Sketch::default().lines(50.0, 700.0, &PROSE[..2]);
    let next = Sketch::default().lines(50.0, 700.0, &PROSE[2..]);
    assert_eq!(text(&[page, next]), format!("{}\u{0C} {}\n", PROSE[..2].join(" "), PROSE[2..].join(" ")));
}

#[test]
fn upright_heads_name_the_columns() {
    let heads = ["Inlet pressure", "Outlet pressure", "Motor current", "Flow rate"];
    let table = |turn: &str| {
        let mut page = Sketch::default().lines(50.0, 760.0, &PROSE);
        for (column, head) in heads.iter().enumerate() {
            let x = 190 + 60 * column;
            let (x, y) = if turn.starts_with("0 1") { (x, 640) } else { (x - 8, 712) };
            writeln!(page.0, "BT /F 10 Tf {turn} {x} {y} Tm ({head}) Tj ET").unwrap();
        }
        for row in 0..3 {
            let y = 620.0 - 20.0 * row as f32;
            page = page.text(60.0, y, &format!("Pump {row}")).rule(60.0, y - 5.0, 420.0, y - 5.0);
            page =
                (0..4).fold(page, |page, column| page.text(180.0 + 60.0 * column as f32, y, &format!("{}", 10 * row + column)));
        }
        text(&[page])
    };
    let right = "|  | Inlet pressure | Outlet pressure | Motor current | Flow rate |\n|---|---|---|---|---|\n| Pump 0 | 0 | 1 | 2 | 3 |\n";
    for turn in ["0 1 -1 0", "0 -1 1 0"] {
        let text = table(turn);
        assert!(text.contains(right), "{turn}: {text}");
    }
}

#[test]
fn a_table_across_the_page_is_read() {
    let rows =
        [("Code", "Meaning", "Remedy"), ("E-17", "Low water", "Refill"), ("E-18", "Hot", "Wait"), ("E-19", "Loud", "Stop")];
    let mut page = Sketch::default().lines(50.0, 760.0, &PROSE).text(50.0, 30.0, "The foot of this page");
    page.0.push_str("q 0 1 -1 0 300 100 cm\n");
    for (n, (code, meaning, remedy)) in rows.iter().enumerate() {
        let y = -15.0 * n as f32;
        page = page.text(0.0, y, code).text(100.0, y, meaning).text(250.0, y, remedy);
    }
    page.0.push_str("Q\n");
    let text = text(&[page]);
    let table = "| Code | Meaning | Remedy |\n|---|---|---|\n| E-17 | Low water | Refill |\n| E-18 | Hot | Wait |\n";
    assert!(text.starts_with(&PROSE.join(" ")) && text.contains(table), "{text}");
}

#[test]
fn a_slanted_page_is_straightened() {
    for degrees in [-10.0_f32, -3.0, 1.0, 6.0, 10.0] {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let program = Sketch::default().lines(80.0, 600.0, &PROSE).text(80.0, 500.0, "Another paragraph.").0;
        let page = Sketch(format!("q {cos} {sin} {} {cos} 0 0 cm\n{program}Q\n", -sin));
        assert_eq!(text(&[page]), format!("{}\n\nAnother paragraph.\n", PROSE.join(" ")), "{degrees}");
    }
}

/// A file of pages that are text (`T`), an image (`I`), or an image with a line of text over it (`L`).
fn scanned(pages: &str) -> Result<Parsed, Fault> {
    let image = "q 600 0 0 800 0 0 cm /I Do Q\n";
    let pages: Vec<Sketch> = pages
        .chars()
        .enumerate()
        .map(|(n, kind)| match kind {
            'T' => Sketch::default().lines(50.0, 700.0, &PROSE).text(50.0, 600.0, &format!("leaf{n}x")),
            'I' => Sketch(image.to_owned()),
            _ => Sketch(image.to_owned()).font(
                "F",
                8.0,
                50.0,
                770.0,
                &format!("ACME manual - downloaded from an archive - page {n}"),
            ),
        })
        .collect();
    let mut objects = String::from_utf8(pdf(&pages, &[])).unwrap();
    // An image is a stream: it follows the pages as an object of its own.
    objects = objects.replace("/Resources << /Font", "/Resources << /XObject << /I 900 0 R >> /Font");
    let stream = "900 0 obj\n<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>\nstream\nx\nendstream\nendobj\n";
    let at = objects.rfind("xref\n0 ").unwrap();
    objects.insert_str(at, stream);
    parse(objects.into_bytes())
}

#[test]
fn scanned_pages_are_noted_by_number() {
    assert_eq!(scanned("TTTT").unwrap().note, None);
    let note = |pages: &str| scanned(pages).unwrap().note;
    assert_eq!(
        note("TIT").as_deref(),
        Some("1 of 3 pages are images without text and were left out (page 2); `ocrmypdf` adds the text")
    );
    assert!(note("TTIIITTTIT").unwrap().starts_with("4 of 10 pages are images without text and were left out (pages 3-5, 9);"));
    assert!(note("TTLLTTTT").unwrap().contains("(pages 3-4)"));
    // A cover is an image, too.
    assert_eq!(note("ITTT"), None);
}

#[test]
fn a_line_over_a_scan_makes_no_text_of_it() {
    assert_eq!(scanned("LLLLLL").unwrap_err(), Fault::NoText { pages: 6 });
    assert_eq!(scanned("LL").unwrap_err(), Fault::NoText { pages: 2 });
}

#[test]
fn text_that_stands_upright_is_left_out() {
    let mut page = Sketch::default().lines(50.0, 700.0, &PROSE);
    page.0.push_str("BT /F 10 Tf 0 1 -1 0 20 100 Tm (Stamp) Tj ET\n");
    assert!(!text(&[page]).contains("Stamp"));
    let turned = Sketch(format!("q 0 1 -1 0 600 0 cm\n{}Q\n", Sketch::default().lines(50.0, 500.0, &PROSE).0));
    assert_eq!(text(&[turned]), format!("{}\n", PROSE.join(" ")));
}

#[test]
fn what_cannot_be_read_says_why() {
    assert!(matches!(parse(b"%PDF-1.4\nnothing".to_vec()), Err(Fault::DamagedPdf(_))));
    assert_eq!(parse(pdf(&[Sketch::default(), Sketch::default()], &[])).unwrap_err(), Fault::NoText { pages: 2 });
}

/// A PDF of so many pages with prose, each with a word of its own.
fn book(pages: usize) -> Vec<u8> {
    let page = |n: usize| Sketch::default().lines(50.0, 700.0, &PROSE).text(50.0, 600.0, &format!("It is known as leaf{n}x."));
    pdf(&(1..=pages).map(page).collect::<Vec<_>>(), &[])
}

/// The place of an object of [`pdf`].
fn object(file: &[u8], number: usize) -> usize {
    let head = format!("\n{number} 0 obj\n");
    file.windows(head.len()).position(|window| window == head.as_bytes()).unwrap() + 1
}

/// Overwrites the beginning of an object.
fn spoil(file: &mut [u8], number: usize) {
    let at = object(file, number) + format!("{number} 0 obj\n").len();
    file[at..at + 12].fill(b'~');
}

/// Object numbers of a page, from 0, and of its program.
fn page_objects(page: usize) -> (usize, usize) {
    (7 + 2 * page, 8 + 2 * page)
}

#[test]
fn unreadable_pages_keep_the_others_numbers() {
    let whole = parse(book(9)).unwrap();
    assert_eq!((whole.note, whole.text.matches("leaf").count()), (None, 9));

    let mut damaged = book(9);
    spoil(&mut damaged, page_objects(2).0);
    spoil(&mut damaged, page_objects(4).1);
    let Parsed { text, note, .. } = parse(damaged).unwrap();
    let note = note.unwrap();
    assert!(note.starts_with("2 of 9 pages could not be read, or only in part: the PDF is damaged; download"), "{note}");
    let page_of = |word: &str| text[..text.find(word).unwrap()].matches('\u{0C}').count() + 1;
    assert_eq!(["leaf1x", "leaf2x", "leaf4x", "leaf6x", "leaf9x"].map(page_of), [1, 2, 4, 6, 9]);
    assert!(!text.contains("leaf3x") && !text.contains("leaf5x"));
}

#[test]
fn a_file_that_is_cut_off_says_so() {
    let whole = book(9);
    let end = object(&whole, page_objects(6).0);
    let Parsed { text, note, .. } = parse(whole[..end].to_vec()).unwrap();
    let note = note.unwrap();
    assert!(note.starts_with("3 of 9 pages could not be read, or only in part: the PDF is cut off"), "{note}");
    assert_eq!(text.matches("leaf").count(), 6);

    // Without the tree of pages their number is unknown.
    let mut damaged = whole.clone();
    spoil(&mut damaged, 2);
    let note = parse(damaged).unwrap().note.unwrap();
    assert!(note.starts_with("the PDF is damaged; 9 pages found, others may be missing; download"), "{note}");

    // The catalog of a PDF 1.5 may have been in the missing part.
    let stream = "%PDF-1.5\n5 0 obj\n<< /Length 4 >>\nstream\nq Q\n\nendstream\nendobj\n".repeat(80);
    let Fault::DamagedPdf(words) = parse(stream.into_bytes()).unwrap_err() else { panic!("another fault") };
    assert_eq!(words, "the PDF is cut off: its end is missing");
}

#[test]
fn a_damaged_file_is_no_scanned_one() {
    let mut damaged = book(5);
    (0..5).for_each(|page| spoil(&mut damaged, page_objects(page).1));
    let Fault::DamagedPdf(words) = parse(damaged).unwrap_err() else { panic!("another fault") };
    assert!(words.starts_with("5 of 5 pages could not be read"), "{words}");
    let mut without_fonts = book(5);
    spoil(&mut without_fonts, 3);
    assert!(matches!(parse(without_fonts), Err(Fault::DamagedPdf(_))));
    assert!(matches!(parse(b"PK\x03\x04 something else".to_vec()), Err(Fault::Damaged(_))));
}

#[test]
fn text_strings_are_decoded() {
    assert_eq!(text_string(b"Caf\xE9 \x85"), "Café –");
    assert_eq!(text_string(b"\xFE\xFF\x00P\x00u"), "Pu");
}

/// A font with a code for each character of `letters`, from `!` on, with the width of half an em.
fn letters_font(letters: &str) -> (String, impl Fn(&str) -> String + '_) {
    let mut map =
        String::from("/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <FF> endcodespacerange\n");
    let count = letters.chars().count();
    writeln!(map, "{count} beginbfchar").unwrap();
    for (code, letter) in letters.chars().enumerate() {
        writeln!(map, "<{:02X}> <{:04X}>", 0x21 + code, u32::from(letter)).unwrap();
    }
    map.push_str("endbfchar endcmap end");
    let widths = "500 ".repeat(count);
    let font = format!(
        "<< /Type /Font /Subtype /TrueType /BaseFont /Letters /FirstChar 33 /LastChar {} /Widths [{widths}] /ToUnicode 9 0 R >>",
        32 + count
    );
    let codes = move |text: &str| {
        text.chars().map(|char| letters.chars().position(|letter| letter == char).map_or(0x20, |at| 0x21 + at)).fold(
            String::new(),
            |mut codes, code| {
                write!(codes, "{code:02X}").unwrap();
                codes
            },
        )
    };
    (format!("{font}\u{0}{map}"), codes)
}

/// The text of a page whose lines show these characters from left to right.
fn shown(lines: &[&str]) -> String {
    let mut letters: Vec<char> = lines.iter().flat_map(|line| line.chars()).filter(|&char| char != ' ').collect();
    letters.sort_unstable();
    letters.dedup();
    let letters: String = letters.into_iter().collect();
    let (font, codes) = letters_font(&letters);
    let (font, map) = font.split_once('\u{0}').unwrap();
    let mut page = String::new();
    for (n, line) in lines.iter().enumerate() {
        // Words stand apart by their places.
        let mut x = 60.0;
        for word in line.split(' ') {
            writeln!(page, "BT /F 10 Tf {x} {} Td <{}> Tj ET", 700 - 14 * n, codes(word)).unwrap();
            x += 5.0 * word.chars().count() as f32 + 3.0;
        }
    }
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Count 1 /Kids [3 0 R] >>".to_owned(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >>"
            .to_owned(),
        format!("<< /Length {} >>\nstream\n{page}\nendstream", page.len()),
        font.to_owned(),
        "<< >>".to_owned(),
        "<< >>".to_owned(),
        "<< >>".to_owned(),
        format!("<< /Length {} >>\nstream\n{map}\nendstream", map.len()),
    ];
    parse(file(&objects)).unwrap().text
}

#[test]
fn hebrew_and_arabic_are_read_from_the_right() {
    let visual = |line: &str| line.chars().rev().collect::<String>();
    let hebrew = ["המשאבה מזיזה מים מהמכל", "בדוק את הלחץ בכל יום"];
    assert_eq!(shown(&hebrew.map(visual).iter().map(String::as_str).collect::<Vec<_>>()), format!("{}\n", hebrew.join(" ")));
    let arabic = "المضخة تحرك الماء من الخزان";
    assert_eq!(shown(&[&visual(arabic)]), format!("{arabic}\n"));
    // Numbers and Latin words go from the left amid them.
    assert_eq!(shown(&["םוי PX-200 הבאשמ 15 רמש"]), "שמר 15 משאבה PX-200 יום\n");
    assert_eq!(shown(&["The word םולש is Hebrew"]), "The word שלום is Hebrew\n");
}

#[test]
fn words_in_the_order_of_reading_stay() {
    // A program without the algorithm lays them from left to right.
    let hebrew = ["מים חמים זורמים", "בדוק את הלחץ בכל יום"];
    assert_eq!(shown(&hebrew), format!("{}\n", hebrew.join(" ")));
}

#[test]
fn arabic_shapes_are_letters() {
    assert_eq!(shown(&["\u{FEE2}\u{FEFC}\u{FEB3}"]), "سلام\n");
}

/// The text of a page with this program and these fonts; objects from 5 on follow.
fn drawn(program: &str, fonts: &str, more: &[&str]) -> String {
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Count 1 /Kids [3 0 R] >>".to_owned(),
        format!("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /Font << {fonts} >> >> >>"),
        format!("<< /Length {} >>\nstream\n{program}\nendstream", program.len()),
    ];
    objects.extend(more.iter().map(|&object| object.to_owned()));
    parse(file(&objects)).unwrap().text
}

#[test]
fn fonts_inside_one_object_are_several() {
    let table = |codes: &str| {
        let map = format!("begincmap 1 begincodespacerange <00> <FF> endcodespacerange 3 beginbfchar {codes} endbfchar endcmap");
        format!("<< /Length {} >>\nstream\n{map}\nendstream", map.len())
    };
    let (first, second) = (table("<61> <0061> <62> <0062> <63> <0063>"), table("<61> <0078> <62> <0079> <63> <007A>"));
    let font = |map: usize| format!("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode {map} 0 R >>");
    let fonts = format!("/F {} /G {}", font(5), font(6));
    let text = drawn("BT /F 10 Tf 50 700 Td (abc) Tj /G 10 Tf 0 -12 Td (abc) Tj ET", &fonts, &[&first, &second]);
    assert_eq!(text, "abc xyz\n");
}

#[test]
fn codes_without_a_table_are_characters() {
    let font = |ordering: &str, table: &str| {
        format!(
            "/F << /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H {table} /DescendantFonts [<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X /DW 500 /CIDSystemInfo << /Registry (Adobe) /Ordering ({ordering}) /Supplement 0 >> >>] >>"
        )
    };
    let program = |codes: &str| format!("BT /F 10 Tf 50 700 Td <{codes}> Tj ET");
    assert_eq!(drawn(&program("006100E90063"), &font("Identity", "/ToUnicode /Identity-H"), &[]), "aéc\n");
    // Without a table, the codes are those of the collection.
    assert_eq!(drawn(&program("034B034D034F"), &font("Japan1", ""), &[]), "あいう\n");
}

#[test]
fn text_of_any_scale_is_read() {
    // A negative size, turned back by a negative stretch.
    let helvetica = "/F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>";
    assert_eq!(drawn("BT /F -10 Tf -100 Tz 1 0 0 -1 50 700 Tm (Schedule K-1) Tj ET", helvetica, &[]), "Schedule K-1\n");
    // A Type 3 font whose units are a thousand times larger than usual.
    let square = "<< /Length 40 >>\nstream\n600 0 0 0 500 700 d1 0 0 500 700 re f   \nendstream";
    let font = "/F << /Type /Font /Subtype /Type3 /FontMatrix [1 0 0 1 0 0] /FontBBox [0 0 1000 1000] /FirstChar 97 /LastChar 98 /Widths [600 600] /Encoding << /Differences [97 /a /b] >> /CharProcs << /a 5 0 R /b 5 0 R >> >>";
    assert_eq!(drawn("BT /F 0.01 Tf 50 700 Td (abab) Tj ET", font, &[square]), "abab\n");
}

/// The text of a page with this program and these annotations.
fn annotated(program: &str, annotations: &str) -> Result<String, Fault> {
    let drawing = "BT /F 10 Tf 2 5 Td (drawn) Tj ET";
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Count 1 /Kids [3 0 R] >>".to_owned(),
        format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> /Annots [{annotations}] >>"
        ),
        format!("<< /Length {} >>\nstream\n{program}\nendstream", program.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
        format!(
            "<< /Type /XObject /Subtype /Form /BBox [0 0 50 10] /Resources << /Font << /F 5 0 R >> >> /Length {} >>\nstream\n{drawing}\nendstream",
            drawing.len()
        ),
        "<< /T (dealer) /FT /Ch /V (k) /Opt [[(k) (Kirchberg)] [(o) (Oberdorf)]] >>".to_owned(),
    ];
    parse(file(&objects)).map(|parsed| parsed.text)
}

#[test]
fn fields_are_read_beside_their_labels() {
    let labels = Sketch::default().text(50.0, 700.0, "Serial number:").text(50.0, 660.0, "Dealer:").text(50.0, 620.0, "Notes:").0;
    let fields = "<< /Subtype /Widget /FT /Tx /T (serial) /V (PX-4711-QZ) /Rect [200 694 400 712] >>
        << /Subtype /Widget /Parent 7 0 R /Rect [200 654 400 672] >>
        << /Subtype /Widget /FT /Tx /T (notes) /V (old value) /AP << /N 6 0 R >> /Rect [200 615 250 625] >>
        << /Subtype /Widget /FT /Tx /T (secret) /Ff 8192 /V (hunter) /Rect [200 574 400 592] >>
        << /Subtype /Widget /FT /Tx /T (hidden) /F 2 /V (unseen) /Rect [200 534 400 552] >>";
    let text = annotated(&labels, fields).unwrap();
    assert!(text.contains("| Serial number: | PX-4711-QZ |") && text.contains("| Dealer: | Kirchberg |"), "{text}");
    assert!(text.contains("| Notes: | drawn |") && !text.contains("old value"), "{text}");
    assert!(!text.contains("hunter") && !text.contains("unseen"), "{text}");
}

#[test]
fn a_page_of_fields_only_has_text() {
    let fields = "<< /Subtype /Widget /FT /Tx /TU (Serial number) /V (PX-4711-QZ) /AP << /N 6 0 R >> /Rect [200 694 400 712] >>
        << /Subtype /Widget /FT /Btn /T (checked) /AS /Yes /Rect [200 654 220 672] >>";
    assert_eq!(annotated("", fields).unwrap(), "Serial number: PX-4711-QZ\n\nchecked: \u{2612}\n");
    assert_eq!(annotated("", "").unwrap_err(), Fault::NoText { pages: 1 });
}

#[test]
fn free_text_and_stamps_are_on_the_page() {
    let notes = "<< /Subtype /FreeText /Contents (spare fuse behind the panel) /Rect [50 600 350 620] >>
        << /Subtype /Stamp /AP << /N 6 0 R >> /Rect [50 500 100 510] >>
        << /Subtype /Highlight /Contents (a comment) /Rect [50 700 350 720] >>";
    let text = annotated(&Sketch::default().lines(50.0, 700.0, &PROSE).0, notes).unwrap();
    assert!(text.contains("\n\nspare fuse behind the panel\n\ndrawn\n"), "{text}");
    assert!(!text.contains("a comment"), "{text}");
}

#[test]
fn text_downwards_is_read_from_the_right() {
    // CIDs of Japan1: あいうえお and かきくけこ.
    let font = "/F << /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-V /DescendantFonts [<< /Type /Font /Subtype /CIDFontType0 /BaseFont /X /DW 1000 /CIDSystemInfo << /Registry (Adobe) /Ordering (Japan1) /Supplement 0 >> >>] >>";
    let program = "BT /F 12 Tf 500 700 Td <034B034D034F03510353> Tj ET BT /F 12 Tf 480 700 Td <035403560358035A035C> Tj ET";
    let text = drawn(program, font, &[]);
    assert_eq!(text, "あいうえお かきくけこ\n");
}
