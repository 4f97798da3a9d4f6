#!/usr/bin/env python3
"""Checks the documentation: links, shell lines that can run, and the length of sentences.

    docs-check.py links          dead links and anchors in every tracked *.md, and `json` blocks that are none
    docs-check.py words [NAME]   sentences of more than 35 words; prints the mean of each file (whose path begins with NAME)
    docs-check.py shell BINARY   runs the blocks marked `sh check` with the built program on PATH

A fenced block whose info string is `sh check` is run as one script (bash -eu -o pipefail) in a copy of config/demo, with an empty
HOME and data directory. In a block with lines `$ command` only those are run; the others are output. Other blocks are not run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
MOST_WORDS = 35
# Text that is data: manuals that the demo reads, stored test data, a changelog of short notes, measured results.
NOT_PROSE = ("config/demo/", "tests/data/", "CHANGELOG.md", "benches/results/")

FENCE = re.compile(r"^\s*(```+|~~~+)\s*(.*?)\s*$")
LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\s{0,3}\[[^\]]+\]:\s+<?(\S+?)>?\s*$")
HEADING = re.compile(r"^\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$")


def tracked():
    """Tracked Markdown files, and new ones that are not ignored."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")
    return [ROOT / name for name in sorted(set(names)) if name and (ROOT / name).is_file()]


def lines_of(path):
    """Pairs (number, line, info): `info` is the info string inside a fenced block, None outside."""
    fence = info = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if match and fence is None:
            fence, info = match[1], match[2]
            continue
        if match and fence is not None and match[1].startswith(fence) and not match[2]:
            fence = info = None
            continue
        yield number, line, info


def blocks_of(path, wanted):
    """Pairs (line, lines) of the fenced blocks with this info string."""
    block, begin, last = [], 0, 0
    for number, line, info in lines_of(path):
        if block and (info != wanted or number != last + 1):
            yield begin, block
            block = []
        if info == wanted:
            begin = begin if block else number
            block.append(line)
        last = number
    if block:
        yield begin, block


def anchors(path):
    """The anchors that GitHub makes of a file's headings, and those written as HTML."""
    found, seen = set(), {}
    for _, line, info in lines_of(path):
        if info is not None:
            continue
        found.update(re.findall(r"<a\s+(?:id|name)=\"([^\"]+)\"", line))
        match = HEADING.match(line)
        if not match:
            continue
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[2]).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower(), flags=re.UNICODE).strip().replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def links():
    known, dead, total = {}, [], 0
    for path in tracked():
        for begin, block in blocks_of(path, "json"):
            try:
                json.loads("\n".join(block))
            except ValueError as error:
                dead.append(f"{path.relative_to(ROOT)}:{begin}: no JSON: {error}")
        for number, line, info in lines_of(path):
            if info is not None:
                continue
            plain = re.sub(r"`[^`]*`", "", line)
            for target in LINK.findall(plain) + REFERENCE.findall(plain):
                if re.match(r"[a-z][a-z0-9+.-]*:", target):
                    continue
                total += 1
                file, _, anchor = target.partition("#")
                there = (path.parent / unquote(file)).resolve() if file else path
                where = f"{path.relative_to(ROOT)}:{number}"
                if not there.exists():
                    dead.append(f"{where}: no file {target}")
                elif ROOT not in there.parents and there != ROOT:
                    dead.append(f"{where}: {target} leads out of the repository")
                elif anchor and there.suffix == ".md":
                    if there not in known:
                        known[there] = anchors(there)
                    if unquote(anchor) not in known[there]:
                        dead.append(f"{where}: no heading #{anchor} in {there.relative_to(ROOT)}")
    for problem in dead:
        print(problem, file=sys.stderr)
    if dead:
        print(f"{len(dead)} dead links or damaged examples", file=sys.stderr)
    else:
        print(f"links ok ({total})")
    return not dead


def sentences(path):
    """Pairs (line, sentence). Code, tables, headings and HTML are no prose; inline code is one word."""
    paragraph, begin = [], 0
    paragraphs = []

    def close():
        if paragraph:
            paragraphs.append((begin, " ".join(paragraph)))
            paragraph.clear()

    for number, line, info in lines_of(path):
        text = line.strip()
        is_rule = re.fullmatch(r"[-=*]{3,}", text)
        if info is not None or not text or text.startswith(("|", "<", "![")) or HEADING.match(line) or is_rule:
            close()
            continue
        item = re.match(r"(?:[-*+]|\d+\.)\s+", text)
        if item:
            close()
            text = text[item.end():]
        if not paragraph:
            begin = number
        paragraph.append(text)
    close()
    for line, text in paragraphs:
        text = re.sub(r"`[^`]*`", "CODE", text)
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("*", "").replace("_", " ")
        text = re.sub(r"\b(e\.g|i\.e|etc|cf|Fig|No)\.", r"\1", text)
        for sentence in re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])", text):
            words = re.findall(r"\w[\w'’.,:/%-]*", sentence)
            if words:
                yield line, sentence, len(words)


def words(only):
    ok = True
    total = count = long = 0
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if name.startswith(NOT_PROSE) or (only and not name.startswith(tuple(only))):
            continue
        lengths = []
        for line, sentence, length in sentences(path):
            lengths.append(length)
            if length > MOST_WORDS:
                ok = False
                print(f"{name}:{line}: {length} words: {sentence[:100]}…", file=sys.stderr)
        if lengths:
            over = sum(n > 25 for n in lengths)
            most = sum(n > MOST_WORDS for n in lengths)
            mean = sum(lengths) / len(lengths)
            print(f"{mean:5.1f} words, {len(lengths):4} sentences, {over:3} over 25, {most:3} over {MOST_WORDS}  {name}")
            total, count, long = total + sum(lengths), count + len(lengths), long + over
    if count:
        print(f"{total / count:5.1f} words, {count:4} sentences, {long:3} over 25 in all")
    return ok




def shell(binary):
    binary = Path(binary).resolve()
    if not os.access(binary, os.X_OK):
        print(f"{binary} is no program; build it with: cargo build --release -p vademecum", file=sys.stderr)
        return False
    places = subprocess.run(["config/setup/setup.sh", "models-dir"], cwd=ROOT, check=True, capture_output=True, text=True)
    models = places.stdout.strip()
    ok, total = True, 0
    for path, begin, lines in ((path, *block) for path in tracked() for block in blocks_of(path, "sh check")):
        total += 1
        where = f"{path.relative_to(ROOT)}:{begin}"
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        with tempfile.TemporaryDirectory(prefix="vademecum-docs-") as scratch:
            work, home = Path(scratch, "work"), Path(scratch, "home")
            shutil.copytree(ROOT / "config" / "demo", work)
            home.mkdir()
            env = {key: value for key, value in os.environ.items() if not key.startswith(("VADEMECUM_", "XDG_"))}
            env |= {
                "HOME": str(home),
                "PATH": f"{binary.parent}:{env.get('PATH', '')}",
                "VADEMECUM_MODELS": models,
                "VADEMECUM_DATA_DIR": str(home / "data"),
            }
            try:
                run = subprocess.run(
                    ["bash", "-eu", "-o", "pipefail", "-c", "\n".join(lines)],
                    cwd=work, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
                )
                output, status = run.stdout + run.stderr, run.returncode
            except subprocess.TimeoutExpired:
                output, status = "not done after 300 s", 124
        if status:
            ok = False
            print(f"{where}: exit code {status}\n    " + "\n    ".join(output.strip().splitlines()[-15:]), file=sys.stderr)
    print(f"shell blocks ok ({total})" if ok else "a shell block failed", file=sys.stdout if ok else sys.stderr)
    return ok


def main():
    match sys.argv[1:]:
        case ["links"]:
            ok = links()
        case ["words", *only]:
            ok = words(only)
        case ["shell", binary]:
            ok = shell(binary)
        case _:
            print(__doc__, file=sys.stderr)
            ok = False
    sys.exit(0 if ok else 1)


main()
