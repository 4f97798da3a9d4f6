//! Claims about pages.

use super::*;

fn markdown(html: &str) -> String {
    to_markdown(html).unwrap().text
}

#[test]
fn structure_is_kept_and_clutter_is_not() {
    let page = to_markdown(
        "<!DOCTYPE html><html><head><title>Pump &amp; tank</title><style>p{}</style></head><body>
         <nav><ul><li>Home</li></ul></nav><h1>The <em>pump</em></h1>
         <p>First   <b>bold</b> <a href=x>link</a>,<br>next line: 10<sup>-3</sup> &lt; 5&nbsp;K.
         <p>Second<script>if (a < b) { '</p>' }</script>
         <ul><li>one<li><p>two</p><ol start=3><li>three</ol></ul>
         <pre><code>a = 1\n  b = 2</code></pre><dl><dt>F3<dd>10 A</dl><svg><title>no</title></svg></body>",
    )
    .unwrap();
    assert_eq!(page.title.as_deref(), Some("Pump & tank"));
    assert_eq!(
        page.text,
        "# The pump\n\nFirst bold link,\nnext line: 10^-3 < 5 K.\n\nSecond\n\n- one\n- two\n  3. three\n\n\
         ```\na = 1\n  b = 2\n```\n\nF3\n\n10 A\n"
    );
}

#[test]
fn tables_have_headers_spans_and_captions() {
    let text = markdown(
        "<table><caption>Fuses</caption><thead><tr><th>Fuse<th>Amps</thead>
         <tr><td rowspan=2>F1<td>10 A | slow<tr><td>16 A</table>
         <table><tr><td colspan=2>wide<tr><td>a<td>b</table>",
    );
    assert_eq!(
        text,
        "Fuses:\n\n| Fuse | Amps |\n|---|---|\n| F1 | 10 A \\| slow |\n| F1 | 16 A |\n\n\
         |  |  |\n|---|---|\n| wide |  |\n| a | b |\n"
    );
}

#[test]
fn layout_tables_dissolve() {
    let text = markdown("<table><tr><td>left<td><h2>Fuses</h2><p>text</p><table><tr><th>a<tr><td>1</table></table><p>end");
    assert_eq!(text, "left\n\n## Fuses\n\ntext\n\n| a |\n|---|\n| 1 |\n\nend\n");
}

#[test]
fn words_do_not_turn_into_markup() {
    let text = markdown("<p># five<p>```<p>&lt;script&gt;<p>a<br>===<pre>x ``` y</pre><h2>Real</h2>");
    assert_eq!(text, "\\# five\n\n\\```\n\n\\<script>\n\na\n\\===\n\n````\nx ``` y\n````\n\n## Real\n");
}

#[test]
fn given_pages_are_read() {
    let page = |name: &str| markdown(&String::from_utf8(crate::formats::example(&format!("html/{name}"))).unwrap());
    assert_eq!(
        page("saved-div-menu.html"),
        "# Resetting the boiler\n\nHold the red button for seven seconds until the lamp blinks twice.\n"
    );
    assert_eq!(page("button-select-labels.html"), "# Keys\n\nPress RESET and choose ECO / BOOST. Type E-17 then note.\n");
    assert_eq!(page("svg-math.html"), "# Curve\n\nEfficiency η=0.82 at full load.\n\nInlet valve V4\n\nend\n");
    assert_eq!(page("self-closing-script.xhtml"), "# Pump\n\nThe valve key is in the cupboard.\n");
}

#[test]
fn roles_and_names_tell_the_subject() {
    let page = "<div class='x navbar'><div>menu</div>more</div><div role=main><div>one</div>two</div><div>related</div>";
    assert_eq!(markdown(page), "one\n\ntwo\n");
    assert_eq!(markdown("<div id=footer>only a footer</div>"), "only a footer\n");
    assert_eq!(markdown("<body class='has-cookie-banner navbar'><div class='cookie-recipe'>Bake it."), "Bake it.\n");
    let links = "<li><a href=x>Pump</a>".repeat(6);
    assert_eq!(markdown(&format!("<ul>{links}</ul><h1>Faults</h1><ul>{links}</ul>")).matches("- Pump").count(), 6);
    assert_eq!(markdown(&format!("<ul>{links}</ul>")).matches("- Pump").count(), 6);
    let note = "<h1>T</h1><aside class=sidebar>Never <a href=x>run</a> it dry. <a href=x>a</a> <a href=x>b</a></aside>";
    assert_eq!(markdown(note), "# T\n\nNever run it dry. a b\n");
    assert_eq!(
        markdown(&format!(
            "<h1>T</h1><div class=sidebar><div>See <a href=y>all of the faults</a></div><ul>{links}</ul></div><p>x"
        )),
        "# T\n\nx\n"
    );
    assert_eq!(markdown("<div id=CookieBanner>Accept</div><p>text"), "text\n");
}

#[test]
fn controls_alone_are_not_text() {
    assert_eq!(
        markdown("<p>a<p><button>Menu</button> <input type=submit value=Go><h2><button>Question?</button></h2><p>b"),
        "a\n\n## Question?\n\nb\n"
    );
    let countries = format!("<p>Choose <select>{}</select>.", "<option>Land".repeat(100));
    assert_eq!(markdown(&countries), "Choose .\n");
    assert_eq!(
        markdown("<table><tr><th>Key<th>Does<tr><td><button>F1</button><td>help</table>"),
        "| Key | Does |\n|---|---|\n| F1 | help |\n"
    );
}

#[test]
fn formulas_are_one_line() {
    let formula = "<p>So <math><mfrac><mrow><mi>a</mi> <mo>+</mo> <mi>b</mi></mrow><mi>c</mi></mfrac><mo>=</mo><msup><mi>x</mi><mn>2</mn></msup>
        <msqrt><mi>y</mi></msqrt><semantics><annotation>TeX</annotation></semantics></math> and <math><mi>z<p>next";
    assert_eq!(markdown(formula), "So (a+b)/c=x^2√(y) and z\n\nnext\n");
    assert_eq!(markdown("<p>a<svg><g><p>b"), "a\n\nb\n");
}

#[test]
fn in_xhtml_a_slash_closes_any_element() {
    let head = "<?xml version=\"1.0\"?><html xmlns=\"http://www.w3.org/1999/xhtml\"><head>";
    for empty in ["script src='x.js'", "title", "style", "iframe", "object", "textarea", "noscript"] {
        for end in ["</body></html>", "<br>&nbsp;</p>"] {
            let page = format!("{head}<{empty}/></head><body><h1>Pump</h1><{empty}/><p>The valve key.</p>{end}");
            assert_eq!(markdown(&page), "# Pump\n\nThe valve key.\n", "{page}");
        }
    }
    let prefixed =
        "<h:html xmlns:h='http://www.w3.org/1999/xhtml'><h:h1>Pump</h1></h:h1><h:p>a &amp; <![CDATA[b < c]]></h:p></h:html>";
    assert_eq!(markdown(&prefixed.replace("</h1>", "")), "# Pump\n\na & b < c\n");
    assert!(markdown(prefixed).starts_with("# Pump\n"));
    assert_eq!(markdown("<p>Word<o:p> writes</o:p> so.</p>"), "Word writes so.\n");
}

#[test]
fn an_open_menu_does_not_swallow_the_page() {
    assert_eq!(markdown("<nav><a>menu</a><main><p>text"), "text\n");
}

#[test]
fn the_main_part_is_what_counts() {
    let page = "<title>T</title><div>Press ?</div><main><p>one</main><p>related<main>two</main><footer>end</footer>";
    assert_eq!(markdown(page), "one\n\ntwo\n");
}

#[test]
fn hostile_nesting_takes_neither_stack_nor_time() {
    let thread = std::thread::Builder::new().stack_size(256 * 1024);
    let work = || {
        for tag in ["<div>", "<table><tr><td>", "<ul><li>", "<b a=1><i>", "<nav>", "<svg>", "<blockquote><p>"] {
            assert!(to_markdown(&(tag.repeat(300_000) + "word")).is_ok(), "{tag}");
        }
    };
    thread.spawn(work).unwrap().join().unwrap();
}

#[test]
fn time_is_checked_before_every_piece() {
    let attributes: String = (0..200_000).map(|n| format!(" a{n}")).collect();
    let page = format!("<p{attributes}>x");
    let mut checks = 0;
    let third = || {
        checks += 1;
        checks == 3
    };
    assert!(convert_unless(&page, false, false, third).is_none());
    assert_eq!(checks, 3);
    let mut checks = 0;
    let words = "word ".repeat(PIECE_BYTES);
    assert!(convert_unless(&words, false, false, || (checks += 1, false).1).is_some());
    assert_eq!(checks, words.len().div_ceil(PIECE_BYTES));
}
