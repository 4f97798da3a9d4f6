#!/usr/bin/env python3
"""Checks the invariants of ARCHITECTURE.md that the compiler cannot keep (part of make lint).

Each violation is one line: file:line: rule. To change a border, change the table below and say why in the commit.
"""

import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Crates of ours that a crate may use, and those that only its tests may use besides.
CRATES = {
    "wire": (set(), set()),
    "read": (set(), set()),
    "llm": ({"wire"}, set()),
    "library": ({"read", "wire"}, {"llm"}),
    "answer": ({"library", "llm", "wire"}, {"read"}),
    "desk": ({"wire"}, set()),
    "mqtt": ({"desk", "wire"}, set()),
    "http": ({"desk", "wire"}, set()),
    "vademecum": ({"wire", "read", "llm", "library", "answer", "desk", "mqtt", "http"}, set()),
}

# Foreign crates that one place hides from the rest of daemon/.
HIDDEN = {
    "sled": ["daemon/library/src/store/"],
    # The tests of the embedded broker need a client of another make.
    "rumqttc": ["daemon/mqtt/src/connection.rs", "daemon/mqtt/src/broker/tests.rs", "daemon/mqtt/src/delivery/tests.rs"],
    "axum": ["daemon/http/src/"],
    "hyper": ["daemon/http/src/"],
    "hyper_util": ["daemon/http/src/"],
    "http_body_util": ["daemon/http/src/"],
    # The only client that reaches beyond the broker: the command `model pull`.
    "ureq": ["daemon/vademecum/src/models/web.rs"],
    "minijinja": ["daemon/llm/src/engine/prompt.rs"],
    "minijinja_contrib": ["daemon/llm/src/engine/prompt.rs"],
    "llama_cpp_2": [f"daemon/llm/src/{room}/" for room in ("llama", "engine", "embed")],
    "llama_cpp_sys_2": [f"daemon/llm/src/{room}/" for room in ("llama", "engine", "embed", "gguf")],
}

# Top modules of a crate that a top module may use; crates and modules that are not named are free.
MODULES = {
    "llm": {
        "gguf": set(),
        "tune": set(),
        "resources": set(),
        "llama": {"gguf", "tune", "resources"},
        "engine": {"gguf", "tune", "resources", "llama"},
        "embed": {"gguf", "tune", "resources", "llama"},
    },
    "library": {
        "heap": set(),
        "store": {"heap"},
        "encoder": {"store"},
        "retrieve": {"encoder", "heap", "store"},
    },
    "mqtt": {"broker": set(), "topics": set(), "mailbox": set()},
    "vademecum": {
        "config": set(),
        "models": set(),
        "assemble": {"config", "models"},
        "daemon": {"config", "assemble"},
    },
}

# The crates that forbid or deny unsafe code, and the files that may hold some. `llm` is the C boundary.
SAFE = {
    "wire": [],
    "read": ["daemon/read/src/child.rs"],
    "answer": [],
    "desk": [],
    "mqtt": [],
    "http": ["daemon/http/src/peer.rs"],
    "library": [f"daemon/library/src/{file}" for file in ("heap.rs", "store/dense/kernel.rs", "store/sections.rs")],
    "vademecum": ["daemon/vademecum/src/cli/mod.rs", "daemon/vademecum/src/cli/run.rs"],
}

# Symbols that replace those of a whole process: defined by one macro, which only the program and tests call.
EXPORTS = "daemon/llm/src/llama/team.rs"
PROGRAM = "daemon/vademecum/src/lib.rs"

MAX_LINES = 900
# Longer files, their bound and the reason.
LONG = {
    "daemon/mqtt/src/connection.rs": (1250, "another MQTT client replaces what is under it"),
    "daemon/library/src/store/mod.rs": (1100, "one transaction over all trees of the database"),
}

# Comments that open with "What", "Where" or "Of which": lower the number when it has fallen.
MAX_WHAT = 25

found: list[str] = []


def violation(path: str, line: int, rule: str) -> None:
    found.append(f"{path}:{line}: {rule}")


class Source:
    """A Rust file: its text, and its code without comments and without the contents of literals."""

    NOT_CODE = re.compile(
        r"//[^\n]*"
        r"|/\*.*?\*/"
        r'|(?<![A-Za-z0-9_])[bc]?r(?P<hashes>#*)".*?"(?P=hashes)'
        r'|"(?:\\.|[^"\\])*"'
        r"|'(?:\\[^\n']+|[^\\'\n])'",
        re.DOTALL,
    )

    def __init__(self, path: pathlib.Path) -> None:
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text()
        self.code = self.NOT_CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), self.text)
        parts = self.name.split("/")
        self.crate = parts[1] if parts[0] == "daemon" and parts[2] == "src" else None
        self.modules = []
        if self.crate:
            stem = [*parts[3:-1], parts[-1].removesuffix(".rs")]
            self.modules = stem[:-1] if stem[-1] in ("mod", "lib", "main") else stem

    def line(self, at: int) -> int:
        return self.code.count("\n", 0, at) + 1

    def block(self, start: int) -> int:
        """The end of the braces that open at or after `start`."""
        depth = 0
        for m in re.compile(r"[{}]").finditer(self.code, start):
            depth += 1 if m[0] == "{" else -1
            if depth == 0:
                return m.end()
        return len(self.code)

    def paths(self):
        """Each path from `crate` or from above this file: its place, and the top module it names."""
        inner = [(m.end() - 1, self.block(m.end() - 1)) for m in re.finditer(r"\bmod\s+\w+\s*\{", self.code)]
        for m in re.finditer(r"(?<!\w)(?:crate|(?:self::)?super(?:\s*::\s*super)*)\s*::\s*(?=[\w{])", self.code):
            if m[0].startswith("crate"):
                above = []
            else:
                depth = len(self.modules) + sum(start < m.start() < end for start, end in inner)
                if m[0].count("super") < depth:
                    continue
            for name in self.heads(m.end()):
                yield m.start(), name

    def heads(self, at: int) -> list[str]:
        """The first names of the path, or of each path of the group, that begins at `at`."""
        if self.code[at] != "{":
            return [re.match(r"\w+", self.code[at:])[0]]
        heads, depth = [], 0
        for m in re.finditer(r"[{}]|\w+|,", self.code[at : self.block(at)]):
            if m[0] in "{}":
                depth += 1 if m[0] == "{" else -1
            elif m[0] != "," and depth == 1 and before in "{,":
                heads.append(m[0])
            before = m[0]
        return heads


def check_dependencies() -> None:
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["dependencies"]
    ours = {name for name, entry in workspace.items() if isinstance(entry, dict) and "path" in entry}
    for crate, (allowed, in_tests) in CRATES.items():
        manifest = ROOT / "daemon" / crate / "Cargo.toml"
        name = manifest.relative_to(ROOT).as_posix()
        text = manifest.read_text()
        parsed = tomllib.loads(text)
        for table in [parsed, *parsed.get("target", {}).values()]:
            for kind in ("dependencies", "build-dependencies", "dev-dependencies"):
                for dependency, entry in table.get(kind, {}).items():
                    package = entry.get("package", dependency) if isinstance(entry, dict) else dependency
                    used = package.removeprefix("vademecum-")
                    m = re.search(rf"^{re.escape(dependency)}\b", text[text.index(f"{kind}]") :], re.MULTILINE)
                    line = text.count("\n", 0, text.index(f"{kind}]") + (m.start() if m else 0)) + 1
                    may = allowed | in_tests if kind == "dev-dependencies" else allowed
                    if (used in ours or (isinstance(entry, dict) and "path" in entry)) and used not in may:
                        violation(name, line, f"`{crate}` does not use `{used}` ({kind})")
                    places = HIDDEN.get(package.replace("-", "_"))
                    if places and not any(place.startswith(f"daemon/{crate}/") for place in places):
                        violation(name, line, f"`{package}` is used only in {', '.join(places)}")
    for path in (ROOT / "daemon").iterdir():
        if (path / "Cargo.toml").exists() and path.name not in CRATES:
            violation(f"daemon/{path.name}/Cargo.toml", 1, "this crate has no row in config/setup/invariants.py")


def check_hidden(source: Source) -> None:
    for name, places in HIDDEN.items():
        if any(source.name.startswith(place) for place in places):
            continue
        for m in re.finditer(rf"(?<!::)(?<!\w)(?:{name}\s*::|use\s+{name}\b)", source.code):
            violation(source.name, source.line(m.start()), f"`{name}` is used only in {', '.join(places)}")


def check_modules(source: Source, reexports: dict[str, dict[str, str]]) -> None:
    rules = MODULES.get(source.crate, {})
    if not source.modules or source.modules[0] not in rules:
        return
    module = source.modules[0]
    known = reexports[source.crate]
    for at, name in source.paths():
        used = known.get(name, name)
        if used != module and used not in rules[module] and used in known.values():
            violation(source.name, source.line(at), f"in `{source.crate}`, `{module}` does not use `{used}`")


def modules_of(crate: str) -> dict[str, str]:
    """Each name at a crate's root, and the top module that it is or comes from."""
    root = Source(ROOT / "daemon" / crate / "src/lib.rs")
    names = {m[1]: m[1] for m in re.finditer(r"\bmod\s+(\w+)\s*;", root.code)}
    for m in re.finditer(r"\bpub(?:\(crate\))?\s+use\s+(\w+)::([^;]+);", root.code):
        names |= {name: m[1] for name in re.findall(r"\w+", m[2])} if m[1] in names else {}
    return names


def check_unsafe(source: Source) -> None:
    files = SAFE.get(source.crate)
    if files is None:
        return
    if source.name.endswith("/src/lib.rs") and not re.search(
        r"#!\[deny\(unsafe_code\)\]" if files else r"#!\[forbid\(unsafe_code\)\]", source.code
    ):
        violation(source.name, 1, f"`{source.crate}` {'denies' if files else 'forbids'} unsafe code")
    if source.name not in files:
        for m in re.finditer(r"\b(?:allow|expect|warn)\(\s*unsafe_code|\bunsafe\b", source.code):
            violation(source.name, source.line(m.start()), f"`{source.crate}` has unsafe code only in {', '.join(files) or 'no file'}")


def check_exports(source: Source) -> None:
    macro = source.code.find("macro_rules! define_openmp") if source.name == EXPORTS else -1
    inside = range(macro, source.block(macro)) if macro >= 0 else range(0)
    for m in re.finditer(r"\b(?:no_mangle|export_name)\b", source.code):
        if m.start() not in inside:
            violation(source.name, source.line(m.start()), f"only the macro define_openmp in {EXPORTS} defines C symbols")
    for m in re.finditer(r"\bdefine_openmp!\s*[({\[]", source.code):
        attributes = re.search(r"((?:#\[[^\]]*\]\s*)*)(?:\w+::)*$", source.code[: m.start()])[1]
        if source.name != PROGRAM and not re.search(r"cfg\((?:all\()?test\b", attributes):
            violation(source.name, source.line(m.start()), f"define_openmp! is called only by {PROGRAM}, and under cfg(test)")


def check_length(source: Source) -> None:
    lines = source.text.count("\n")
    most, _ = LONG.get(source.name, (MAX_LINES, ""))
    if lines > most:
        violation(source.name, most + 1, f"a file has at most {most} lines, this one has {lines}: part it")


def check_words(sources: list[Source]) -> None:
    opening = re.compile(r"^\s*//[/!]?\s*(?:What|Where|Of which)\b", re.MULTILINE)
    places = [(source, m) for source in sources for m in opening.finditer(source.text)]
    if len(places) > MAX_WHAT:
        pattern = r"^\s*//[/!]?\s*(What|Where|Of which)\b"
        found.append(
            f"{len(places)} comments open with What, Where or Of which, {MAX_WHAT} are allowed: put the subject first"
            f" (git grep -nE '{pattern}' -- '*.rs' lists them)"
        )
    elif len(places) < MAX_WHAT:
        print(f"comments that open with What, Where or Of which: {len(places)}; lower MAX_WHAT in config/setup/invariants.py")


def main() -> None:
    files = [path for part in ("daemon", "tests", "benches", "fuzz") for path in sorted((ROOT / part).rglob("*.rs"))]
    sources = [Source(path) for path in files if "target" not in path.parts]
    reexports = {crate: modules_of(crate) for crate in MODULES}
    for crate, rules in MODULES.items():
        for module in rules.keys() - reexports[crate].keys():
            violation(f"daemon/{crate}/src/lib.rs", 1, f"`{crate}` has no module `{module}`: mend config/setup/invariants.py")
    check_dependencies()
    for source in sources:
        if source.crate:
            check_hidden(source)
            check_modules(source, reexports)
            check_unsafe(source)
        check_exports(source)
        check_length(source)
    check_words(sources)
    for path, (_, reason) in LONG.items():
        if not (ROOT / path).exists():
            violation("config/setup/invariants.py", 1, f"{path} is gone ({reason}): remove its row")
    if found:
        sys.exit("\n".join(found))
    print(f"invariants ok ({len(sources)} files)")


main()
