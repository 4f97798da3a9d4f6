#!/usr/bin/env python3
"""Parses the layer's recipes with bitbake's own parser (PyPI: bitbake-setup) and looks at what comes out.

The classes of oe-core are not at hand: each that is inherited is an empty one here. So this finds what the parser refuses, files that
are missing, crates without a checksum, wrong flags for a tune, and ICU4X's dictionaries in the program; it does not show that a
recipe builds.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import types

# The wheel leaves it out, and parsing does not use it.
for module in ("hashserv", "hashserv.client"):
    sys.modules[module] = types.ModuleType(module)
sys.modules["hashserv"].client = sys.modules["hashserv.client"]
sys.modules["hashserv.client"].Client = object

import bb, bb.data, bb.data_smart, bb.parse, bb.fetch2, bb.utils, bb.cookerdata  # noqa: E401,E402

LAYER = pathlib.Path(__file__).resolve().parent / "meta-vademecum"
TUNES = {
    "aarch64 cortexa53 crc": "armv8-a",
    "aarch64 cortexa72 crc": "armv8-a",
    "aarch64 cortexa76 crc crypto": "armv8.2-a+dotprod+fp16",
    "aarch64 cortexa78ae": "armv8.2-a+dotprod+fp16",
    "aarch64 carmel": "armv8.2-a+fp16",
}


def parse(recipe: pathlib.Path, work: pathlib.Path, overrides: str, **variables: str):
    """The recipe's variables."""
    bb.utils.set_context({"bb": bb, "os": os})
    data = bb.data_smart.DataSmart()
    name, _, version = recipe.stem.partition("_")
    values = {
        "BBPATH": f"{work}:{LAYER}", "TOPDIR": str(work), "FILE": str(recipe), "WORKDIR": "/work", "UNPACKDIR": "/work/sources",
        "TMPDIR": f"{work}/tmp", "__bbclasstype": "recipe", "BB_SIGNATURE_HANDLER": "noop", "PN": name, "BPN": name,
        "PV": version or "1.0", "BP": "${BPN}-${PV}", "S": "${UNPACKDIR}/${BP}", "LAYERDIR": str(LAYER), "datadir": "/usr/share",
        "VADEMECUM_CHECKOUT": str(LAYER.parent.parent), "OVERRIDES": overrides, **variables,
    }
    for key, value in values.items():
        data.setVar(key, value)
    data.setVar("__inherit_cache", [])
    bb.parse.init_parser(data)
    parsed = bb.parse.handle(str(recipe), data)
    parsed = parsed[""] if isinstance(parsed, dict) else parsed
    parsed.setVar("OVERRIDES", f"{name}:{overrides}")
    return parsed


def check(condition: bool, words: str) -> None:
    if not condition:
        sys.exit(f"yocto: {words}")


def check_sources(recipe: pathlib.Path, data) -> tuple[int, int]:
    """Whether every source has its file or its checksum; how many there are, and how many crates."""
    uris = (data.getVar("SRC_URI") or "").split()
    crates = [uri for uri in uris if uri.startswith("crate://")]
    flags = data.getVarFlags("SRC_URI") or {}
    for uri in uris:
        scheme, _, path, _, _, parameters = bb.fetch2.decodeurl(uri)
        if scheme == "file":
            check((recipe.parent / "files" / path).exists(), f"{recipe.name}: {uri} is not there")
        elif scheme == "crate":
            check(f"{'-'.join(uri.split('/')[-2:])}.sha256sum" in flags, f"{recipe.name}: no checksum of {uri}")
        elif scheme == "https":
            check(f"{parameters['name']}.sha256sum" in flags, f"{recipe.name}: no checksum of {uri}")
    return len(uris), len(crates)


def check_dictionaries(data) -> None:
    """What the recipe does before it compiles, done here: it must leave ICU4X's data where the crates are told to look."""
    subprocess.run(["cargo", "fetch", "--locked", "--quiet"], cwd=data.getVar("S"), check=True)
    subprocess.run(["sh", "-ec", data.getVar("do_compile")], check=True)
    tables = list(pathlib.Path(data.getVar("ICU4X_DATA_DIR")).glob("*dictionary*"))
    check(bool(tables) and all(table.stat().st_size < 10_000 for table in tables), "ICU4X's dictionaries are not left out")


def main() -> None:
    recipes = sorted(LAYER.glob("recipes-*/*/*.bb"))
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        (work / "classes").mkdir()
        for recipe in recipes:
            for line in re.findall(r"^inherit (.*)$", recipe.read_text(), re.MULTILINE):
                for name in line.split():
                    (work / "classes" / f"{name}.bbclass").touch()
        for recipe in recipes:
            data = parse(recipe, work, "aarch64", TUNE_FEATURES="aarch64 cortexa76")
            for key in ("SUMMARY", "LICENSE"):
                check(bool(data.getVar(key)), f"{recipe.name}: {key} is empty")
            sources, crates = check_sources(recipe, data)
            print(f"yocto: {recipe.name}: parsed, {sources} sources, {crates} of them crates")
        recipe = next(recipe for recipe in recipes if recipe.name == "vademecum_git.bb")
        for tune, wanted in TUNES.items():
            found = parse(recipe, work, "aarch64", TUNE_FEATURES=tune).getVar("VADEMECUM_ARM_ARCH")
            check(found == wanted, f"{tune}: {found} instead of {wanted}")
        data = parse(recipe, work, "aarch64", TUNE_FEATURES="", PACKAGECONFIG="broker")
        check(data.getVar("CARGO_BUILD_FLAGS").endswith("--features 'broker'"), "PACKAGECONFIG does not choose the features")
        default = parse(recipe, work, "aarch64", TUNE_FEATURES="").getVar("PACKAGECONFIG").split()
        wanted = tomllib.loads((LAYER.parent.parent / "daemon/vademecum/Cargo.toml").read_text())["features"]["default"]
        check(sorted(default) == sorted(wanted), f"PACKAGECONFIG is {default} by default, the crate's features are {wanted}")
        check_dictionaries(parse(recipe, work, "aarch64", TUNE_FEATURES="", S=str(LAYER.parent.parent), B=f"{work}/build"))
        conf = bb.data_smart.DataSmart()
        conf.setVar("LAYERDIR", str(LAYER))
        conf = bb.parse.handle(str(LAYER / "conf/layer.conf"), conf, True)
        check((pathlib.Path(conf.getVar("VADEMECUM_CHECKOUT")) / "Cargo.lock").exists(), "layer.conf does not find the checkout")
        print(f"yocto: layer.conf: parsed, for {conf.getVar('LAYERSERIES_COMPAT_vademecum')}")


main()
