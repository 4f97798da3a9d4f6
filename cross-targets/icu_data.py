"""Writes ICU4X's data without its dictionaries: icu_data.py FOLDER, which its crates take in place of their own (ICU4X_DATA_DIR).

The dictionaries of Chinese, Japanese, Thai, Lao, Khmer and Burmese are 3 MB of the program. The chunker makes use of them where
one sentence is longer than a chunk; without them ICU4X knows no words there, and such a sentence is cut between two letters.
Standard input is what `cargo metadata` says: the data are the crates' own, those that Cargo.lock names.
"""

import json
import pathlib
import re
import sys


def without_entries(file: pathlib.Path) -> str:
    """The table that `file` defines, empty: ICU4X finds nothing in it, as for a language that it does not know."""
    text = file.read_text()
    text, keys = re.subn(r'store ?: ?b"und[^"]*"', 'store: b""', text, count=1)
    text, values = re.subn(r"(const VALUES.*?= ?& ?\[).*\] ?;(\s*unsafe \{ ?icu_provider)", r"\1];\2", text, count=1, flags=re.S)
    assert keys == values == 1, f"{file} has another form than {__file__} knows"
    return text


into = pathlib.Path(sys.argv[1])
into.mkdir(parents=True, exist_ok=True)
texts, includes, rest = {}, [], []
for package in json.load(sys.stdin)["packages"]:
    if not re.fullmatch("icu_.*_data", package["name"]):
        continue
    for file in sorted((pathlib.Path(package["manifest_path"]).parent / "data").iterdir()):
        if file.name == "mod.rs":
            # One list of files for all crates; what comes after the list is the same in all that matters.
            lines = file.read_text().splitlines()
            includes += [line for line in lines if line.startswith("include!")]
            rest = [line for line in lines if not line.startswith("include!")]
        elif "_dictionary_" in file.name or "_lstm_" in file.name:
            texts[file.name] = without_entries(file)
        else:
            texts[file.name] = file.read_text()
texts["mod.rs"] = "\n".join(includes + rest) + "\n"
for name, text in texts.items():
    # What is the same keeps its time, or cargo would build all of it again.
    if not (into / name).exists() or (into / name).read_text() != text:
        (into / name).write_text(text)
