#!/usr/bin/env python3
"""Measures the answers of several generators and strategies on question sets, and writes benches/results/answers-table.md.

    make bench-answers
    benches/answers.py VADEMECUM MODELS [--generator FILE.gguf]... [--strategy NAME]... [--set DIR]... [--limit N] [--out FILE.md]

MODELS is the folder of the test models: its embedder.gguf is used, and its generators unless --generator names others.
Each row is one run of `vademecum eval DIR --answers --near`: a library of its own, every question asked with and without its documents.
"""

import argparse, datetime, json, os, pathlib, platform, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETS = [ROOT / "tests/answers" / name for name in ("manual", "yes-no", "follow-ups", "manual-de")]
GENERATORS = ["generator.gguf", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"]
STRATEGIES = ["auto", "quote", "read"]

# Heading, and the place of the figure in the report.
COLUMNS = [
    ("F1", "answers.token_f1"),
    ("ROUGE-L", "answers.rouge_l"),
    ("recall", "answers.gold_recall"),
    ("by the model", "answers.by_model"),
    ("supported", "answers.supported"),
    ("turned negations", "answers.contradicts_negation"),
    ("exchanged numbers", "answers.contradicts_number"),
    ("steps in order", "answers.steps_in_order"),
    ("verdict right", "answers.verdict_right"),
    ("opposite", "answers.verdict_opposite"),
    ("outright", "answers.verdict_outright"),
    ("refused wrongly", "answers.abstained"),
    ("refused rightly", "answers.abstained_right"),
    ("95 % kept: refused", "near.refused_at_95"),
    ("first token, ms", "answers.ttft_ms_p50"),
    ("total, ms", "answers.total_ms_p50"),
]


def figure(report, place):
    for name in place.split("."):
        report = (report or {}).get(name)
    if report is None:
        return "-"
    return f"{report:.0f}" if place.endswith("_ms_p50") else f"{report:.3f}"


def measure(arguments, folder, generator, strategy):
    """The report of one run; ends the program if the run fails."""
    command = [
        arguments.vademecum, "eval", folder, "--answers", "--near", "--json", "--limit", str(arguments.limit),
        "--max-tokens", str(arguments.max_tokens), "--generator", generator, "--embedder", arguments.models / "embedder.gguf",
        "--set", f"answer.strategy={strategy}",
    ]
    # Settings of a daemon on this machine do not reach the run.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VADEMECUM_")}
    run = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{generator.name}, {strategy}, {folder.name}: {run.stderr.strip()}")
    return json.loads(run.stdout)


def row(cells):
    return "| " + " | ".join(cells) + " |\n"


def kinds(report, name):
    """The figures of each kind of question as rows."""
    for kind, figures in report["answers"].get("kinds", {}).items():
        places = [place.removeprefix("answers.") for _, place in COLUMNS[:11]]
        yield row(name + [f"{kind} ({figures['asked']})"] + [figure(figures, place) for place in places])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("vademecum", type=pathlib.Path)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("--generator", type=pathlib.Path, action="append", help="a GGUF file (repeatable)")
    parser.add_argument("--strategy", action="append", help=f"a value of answer.strategy (repeatable; default: {', '.join(STRATEGIES)})")
    parser.add_argument("--set", type=pathlib.Path, action="append", help="a folder in BEIR form (repeatable; default: our own sets)")
    parser.add_argument("--limit", type=int, default=0, help="most questions of a set (0: all)")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benches/results/answers-table.md")
    arguments = parser.parse_args()
    there = [arguments.models / name for name in GENERATORS if (arguments.models / name).exists()]
    generators = arguments.generator or there
    if not generators:
        sys.exit(f"no generator in {arguments.models}: run make setup, or name a file with --generator")
    load = os.getloadavg()[0]
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    heads = ["set", "generator", "strategy"]
    whole = row(heads + ["asked"] + [name for name, _ in COLUMNS]) + row(["---"] * (len(heads) + 1 + len(COLUMNS)))
    apart = row(heads + ["kind"] + [name for name, _ in COLUMNS[:11]]) + row(["---"] * (len(heads) + 12))
    for folder in arguments.set or SETS:
        for generator in generators:
            for strategy in arguments.strategy or STRATEGIES:
                report = measure(arguments, folder, generator, strategy)
                name = [folder.name, generator.stem, strategy]
                whole += row(name + [str(report["answers"]["asked"])] + [figure(report, place) for _, place in COLUMNS])
                apart += "".join(kinds(report, name))
                print(", ".join(name), "F1", figure(report, "answers.token_f1"), flush=True)
    quiet = "" if load <= 0.5 else " The machine was not quiet: compare no times."
    arguments.out.write_text(
        "# Answers by generator, strategy and set\n\n"
        f"`make bench-answers`; {datetime.date.today()}, {commit}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start."
        f"{quiet}\n"
        f"At most {arguments.max_tokens} tokens. [benches/README.md](../README.md#answers) explains the columns.\n\n"
        f"{whole}\n## By kind of question\n\n{apart}"
    )
    print(arguments.out)


if __name__ == "__main__":
    main()
