//! Subtitles (SubRip and WebVTT) to text: the words, without numbers and times.

use super::{Fault, Parsed, html, one_line};

/// A paragraph ends behind a sentence once it is so long, in bytes.
const PARAGRAPH_BYTES: usize = 400;

/// A pause of so many seconds ends a paragraph.
const PAUSE_SECONDS: f64 = 4.0;

/// Joins the lines of subtitles to paragraphs.
#[allow(clippy::unnecessary_wraps, reason = "the signature of all readers")]
pub(super) fn to_markdown(source: &str) -> Result<Parsed, Fault> {
    let (mut text, mut paragraph, mut last, mut ended) = (String::new(), String::new(), String::new(), 0.0);
    for block in source.split("\n\n").map(|block| block.trim_matches('\n')) {
        let lines: Vec<&str> = block.lines().collect();
        let Some((at, (begins, ends))) = lines.iter().enumerate().find_map(|(at, line)| Some((at, times(line)?))) else {
            continue;
        };
        let words = lines[at + 1..].join("\n");
        // Rolling captions repeat the line before.
        for line in words.lines().map(|line| one_line(&plain(line))).filter(|line| !line.is_empty()) {
            if line == last {
                continue;
            }
            let pause = begins - ended > PAUSE_SECONDS;
            if pause || (paragraph.len() >= PARAGRAPH_BYTES && paragraph.ends_with(['.', '!', '?', '…', '。'])) {
                flush(&mut paragraph, &mut text);
            }
            if !paragraph.is_empty() {
                paragraph.push(' ');
            }
            paragraph.push_str(&line);
            last = line;
            ended = ends;
        }
        ended = ends;
    }
    flush(&mut paragraph, &mut text);
    Ok(Parsed { title: None, text, note: None })
}

fn flush(paragraph: &mut String, text: &mut String) {
    if !paragraph.is_empty() {
        text.push_str(paragraph);
        text.push_str("\n\n");
        paragraph.clear();
    }
}

/// The seconds of `00:01:02,500 --> 00:01:04,000`.
fn times(line: &str) -> Option<(f64, f64)> {
    let (begins, ends) = line.split_once("-->")?;
    let seconds = |time: &str| {
        let time = time.split_whitespace().next()?.replace(',', ".");
        time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
    };
    Some((seconds(begins)?, seconds(ends)?))
}

/// A line without tags (`<i>`, `{\an8}`).
fn plain(line: &str) -> String {
    let mut words = html::to_markdown(line).map(|parsed| parsed.text).unwrap_or_default().replace("\\\n", " ");
    while let Some(begin) = words.find("{\\") {
        let Some(end) = words[begin..].find('}') else { break };
        words.replace_range(begin..=begin + end, "");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_joined_without_their_times() {
        let srt = "1\n00:00:01,000 --> 00:00:02,000\n<i>Hold the red</i>\nbutton\n\n2\n00:00:02,100 --> 00:00:04,000\n{\\an8}for 7 seconds.\n\n\
            3\n00:00:04,100 --> 00:00:05,000\nfor 7 seconds.\n\n4\n00:01:00,000 --> 00:01:02,000\n42\n";
        assert_eq!(to_markdown(srt).unwrap().text, "Hold the red button for 7 seconds.\n\n42\n\n");
        let vtt = "WEBVTT Kind: captions\n\nNOTE not said\n\nSTYLE\n::cue {}\n\nintro\n00:01.000 --> 00:02.000 align:start\n<v Ann>Hold &amp; press.\n";
        assert_eq!(to_markdown(vtt).unwrap().text, "Hold & press.\n\n");
    }
}
