#!/usr/bin/env python3
"""Measures the PDF reader against poppler on real manuals and writes benches/results/retrieval-pdf.md's figures as Markdown.

    benches/pdf_extraction.py VADEMECUM FILE.pdf...

Needs pdftotext, pdftohtml and pdfinfo (Debian: poppler-utils). Everything is compared page by page:
recall and precision are of words as bags against `pdftotext`; order is the longest common subsequence of both word sequences,
2 * LCS / (a + b); heads are lines that `pdftotext -layout` has first or last on three pages or more (numbers
aside) and that ours has as a paragraph; headings are titles of the outline, as pdftohtml reads it, that stand as
a heading on their page; rows are lines of `pdftotext -layout` with three or more cells whose words are in one line of ours.
"""

import collections, re, resource, subprocess, sys, time


def cbor(data, at=0):
    """Enough CBOR for what the reading process writes."""
    kind, small = data[at] >> 5, data[at] & 31
    at += 1
    if small < 24:
        value = small
    else:
        size = 1 << (small - 24)
        value, at = int.from_bytes(data[at:at + size], "big"), at + size
    if kind in (2, 3):
        raw = data[at:at + value]
        return (raw.decode() if kind == 3 else raw), at + value
    if kind == 5:
        found = {}
        for _ in range(value):
            key, at = cbor(data, at)
            found[key], at = cbor(data, at)
        return found, at
    return (None if kind == 7 else value), at


def ours(program, path):
    """Text by page, CPU seconds and peak memory in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(path, "rb") as file:
        done = subprocess.run(["/usr/bin/time", "-f", "%M", program, "read-document", "pdf"], stdin=file, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = cbor(done.stdout)[0]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return answer["Parsed"]["text"].split("\f"), seconds, int(done.stderr.split()[-1]) / 1024


def poppler(path, *options):
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = subprocess.run(["pdftotext", *options, path, "-"], capture_output=True, check=True).stdout.decode(errors="replace")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return text.split("\f"), ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime


def words(text):
    return re.findall(r"[^\W_]+", text.lower())


def lcs(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def outline(path):
    xml = subprocess.run(["pdftohtml", "-xml", "-i", "-stdout", path], capture_output=True).stdout.decode(errors="replace")
    found = re.findall(r'<item page="(\d+)">(.*?)</item>', xml, re.S)
    plain = lambda title: re.sub(r"<[^>]*>|&\w+;|&#\d+;", "", title)
    return [(int(page) - 1, plain(title)) for page, title in found]


def bare(title):
    title = re.sub(r"^\s*(?:(?:[Cc]hapter|[Aa]ppendix|[Pp]art|[Ss]ection)\s+)?(?:(?:\d+|[A-Z](?=[.:\d]))(?:\.\d+)*[.:]?\s+)?", "", title.strip())
    return "".join(words(title))


def heads(layout):
    shape = lambda line: re.sub(r"[\d\s]+", "", line.lower())
    ends = []
    for page in layout:
        lines = [line for line in page.splitlines() if line.strip()]
        ends.append({shape(line) for line in (lines[:1] + lines[-1:])})
    count = collections.Counter(line for page in ends for line in page)
    return [{line for line in page if count[line] >= 3} for page in ends], shape


def measure(program, path, sample=None):
    text, seconds, memory = ours(program, path)
    flow, flow_seconds = poppler(path)
    layout, _ = poppler(path, "-layout")
    flow, layout = flow[:len(text)], layout[:len(text)]
    pages = range(len(text)) if sample is None else sample
    tally = collections.Counter()
    repeated, shape = heads(layout)
    for page in pages:
        a, b = words(text[page]), words(flow[page])
        both = sum((collections.Counter(a) & collections.Counter(b)).values())
        tally.update(ours=len(a), theirs=len(b), both=both)
        if len(a) * len(b) < 4_000_000 and page % max(1, len(text) // 60) == 0 or sample is not None:
            tally.update(lcs=2 * lcs(a, b), sequence=len(a) + len(b))
        lines = {shape(line) for line in text[page].splitlines() if line.strip()}
        tally.update(heads=len([line for line in repeated[page] if line]), left=len([line for line in repeated[page] if line and line in lines]))
        rows = [set(words(line)) for line in text[page].splitlines()]
        for line in layout[page].splitlines():
            cells = [cell for cell in re.split(r"\s{3,}", line.strip()) if words(cell)]
            if len(cells) >= 3:
                tally.update(rows=1, kept=any(set(words(line)) <= row for row in rows))
    for page, title in outline(path):
        if page in pages and bare(title):
            near = "\n".join(text[max(0, page - 1):page + 2])
            found = any(bare(line.lstrip("#")) == bare(title) for line in near.splitlines() if line.startswith("#"))
            tally.update(outline=1, found=found)
    return tally, len(text), seconds, flow_seconds, memory


def share(part, whole):
    return f"{part / whole:.3f}" if whole else "-"


def row(name, t):
    return [name, share(t["both"], t["theirs"]), share(t["both"], t["ours"]), share(t["lcs"], t["sequence"]),
            f"{t['left']} / {t['heads']}", f"{t['found']} / {t['outline']}", f"{t['kept']} / {t['rows']}"]


def main():
    program, paths = sys.argv[1], sys.argv[2:]
    head = ["manual", "recall", "precision", "order", "heads left", "headings found", "rows kept"]
    table = lambda cells: "| " + " | ".join(cells) + " |"
    total, sampled, lines = collections.Counter(), collections.Counter(), []
    print(table(head + ["pages", "pages / CPU s", "pdftotext", "peak MiB"]))
    print("|---" * (len(head) + 4) + "|")
    for path in paths:
        name = path.rsplit("/", 1)[-1].removesuffix(".pdf")
        tally, pages, seconds, flow_seconds, memory = measure(program, path)
        total.update(tally)
        print(table(row(name, tally) + [str(pages), f"{pages / seconds:.0f}", f"{pages / flow_seconds:.0f}", f"{memory:.0f}"]), flush=True)
        sample = [pages // 3, 2 * pages // 3]
        sampled.update(measure(program, path, sample)[0])
    print(table(row("all", total) + [""] * 4))
    print(table(row("two pages of each, at 1/3 and 2/3", sampled) + [""] * 4))


main()
