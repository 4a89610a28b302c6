"""Throw damaged and invented files at the loaders of grids and recipes: they load, or are refused in one line.

    python tests/fuzz.py --minutes 10 --seed 0

Inputs are valid files with random changes, headers and YAML from a grammar, and mutations of inputs that gave a new
message. Anything but success or InputError, a message of several lines or of more than 2,000 characters, more than
5 seconds of processor time or 512 MiB is a finding: the input is saved, and printed with its error. A child process
does the work, so that its death is a finding too. Exit code 1 where there are findings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS, MEMORY, LONGEST = 5.0, 512 << 20, 2000
CURRENT = "current"


class TooSlow(BaseException):
    """Not an Exception, so that no handler of the loaders takes it for damaged input."""


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ODD_BYTES = [b"\0", b"\xff", b"{", b"}", b"[", b'"', b"\n", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"9" * 400, b"[" * 3000]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a bit, a byte, a piece cut out, doubled, moved or put in, or an end that is missing."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at, end = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
        piece = changed[at : min(end, at + 64)]
        kind = rng.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == 2:
            del changed[at : at + len(piece)]
        elif kind == 3:
            changed[end:end] = piece
        elif kind == 4:
            changed[at:at] = rng.choice(ODD_BYTES)
        elif kind == 5:
            del changed[at:]
        else:
            changed[:8] = struct.pack("<Q", rng.choice([0, 1, len(changed), 2**31, 2**60, 2**64 - 1]))
    return bytes(changed)


def pick_number(rng: random.Random) -> Any:
    return rng.choice([0, 1, -1, 2, 3, 5, 9, 24, 25, 2**31, 2**40, 2**63, -(2**63), 1.5, None, "5", [], {}])


def invented_grid(rng: random.Random) -> bytes:
    """A safetensors file with a header from a grammar; often whole but for one thing."""
    sizes = {"F32": 4, "F64": 8, "I64": 8, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "X": 1}
    header: dict[str, Any] = {}
    data = b""
    shapes = {"prototypes": ("F32", [9, 4]), "counts": ("I64", [9]), "centers": ("F32", [9, 2])}
    for name, (kind, shape) in shapes.items():
        if rng.random() < 0.05:
            continue
        if rng.random() < 0.15:
            kind = rng.choice(list(sizes))
        if rng.random() < 0.2:
            shape = [rng.choice([0, 1, 2, 4, 8, 9, 16, 25, 4096, 2**40]) for _ in range(rng.randrange(4))]
        count = 1
        for side in shape:
            count *= side
        length = min(count * sizes[kind], 1 << 20)
        fill = rng.choice([bytes(length), os.urandom(0) + rng.randbytes(length), b"\x7f" * length, b"\xff" * length])
        offsets: Any = [len(data), len(data) + length]
        if rng.random() < 0.05:
            offsets = [pick_number(rng), pick_number(rng)]
        header[name if rng.random() > 0.03 else rng.choice(["", "prototypes\0", "🙂", "__metadata__"])] = {
            "dtype": kind,
            "shape": shape if rng.random() > 0.05 else pick_number(rng),
            "data_offsets": offsets,
        }
        data += fill
    if rng.random() < 0.9:
        notes: dict[str, Any] = {"format_version": rng.choice(["1", "1", "1", "99", "", "1\n"]), "sha256": "0" * 64}
        if rng.random() < 0.3:
            notes[rng.choice(["dataset", "counts", "\ud800", "x" * 5000, ""])] = rng.choice(["", "a\nb", "y" * 9000])
        own = {k: v for k, v in notes.items() if isinstance(v, str)}
        notes["metadata_sha256"] = hashlib.sha256(json.dumps(dict(sorted(own.items()))).encode()).hexdigest()
        header["__metadata__"] = notes if rng.random() > 0.05 else pick_number(rng)
    text = json.dumps(header, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


TAGS = "!!int !!float !!bool !!null !!timestamp !!binary !!set !!omap !!pairs !!str !!seq !!map !!merge".split()  # noqa: SIM905
TAGS += ["!!value", "!!python/name:os.system", "!own", "!<tag:yaml.org,2002:int>"]
SCALARS = """~ null yes 0 -1 3 0.5 1e-3 1e999 .nan .inf -.inf 0x7f 0b12 0o9 1:30 190:20:30 2024-13-45 2024-01-01
2024-01-01T99:99:99Z << = ' " 'a' "a" "\\0" "\\ud800" "\\x7f" 1_000 *a { ] % @ ` # ... ferplus random gameemo-v2 cosine
顔""".split()  # noqa: SIM905
SCALARS += ["", "&a 1", "|\n  text", ">\n  t", "[20, 60]", "[0.2, 0.6]", "{run: b0_ce}", "- a", "? a", "? {a: b}", "\t"]
SCALARS += ["\u2028", "\ufeff", "e\u0301", "%YAML 1.2", "9" * 5000, "0x" + "f" * 5000, "x" * 3000]
MISSPELT = ["<<", "? x\n", "1", "null", "!!set {a}", "[a]", "\u043eptim", '"\\n"']
LINES = ["---", "...", "%TAG ! x", "\tq: 1", "&a b: c", "*a : b"]


def invented_value(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if kind < 0.12 and depth < 4:
        return f"[{', '.join(invented_value(rng, depth + 1) for _ in range(rng.randrange(4)))}]"
    if kind < 0.22 and depth < 4:
        inner = (f"{rng.choice(SCALARS)}: {invented_value(rng, depth + 1)}" for _ in range(rng.randrange(3)))
        return "{" + ", ".join(inner) + "}"
    if kind < 0.35:
        return f"{rng.choice(TAGS)} {rng.choice([*SCALARS, '[a, 1]', '{a: 1}', '[[a, 1]]', '{a, b}'])}"
    if kind < 0.36:
        return rng.choice("[{") * rng.choice([10, 30, 30, 5000])
    return rng.choice(SCALARS)


def invented_recipe(rng: random.Random, keys: list[str]) -> bytes:
    """A mapping of known, misspelt and invented keys to values of every kind."""
    lines = ["name: mine"] if rng.random() < 0.8 else []
    sections: dict[str, list[str]] = {}
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        *section, leaf = rng.choice(keys).split(".")
        if rng.random() < 0.1:
            leaf = rng.choice([leaf[:-1], leaf.upper(), *MISSPELT])
        sections.setdefault(".".join(section), []).append(f"{leaf}: {invented_value(rng)}")
    for section, entries in sections.items():
        if section and rng.random() < 0.9:
            lines += [f"{section}:", *(f"  {entry}" for entry in entries)]
        else:
            lines += entries
    if rng.random() < 0.05:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# ── targets ────────────────────────────────────────────────────────────────────────────────────────────────────


class Target:
    """A loader, whole files of its kind, a grammar, and the messages so far."""

    def __init__(self, name: str, whole: list[bytes], invent: Callable[[random.Random], bytes], load: Any) -> None:
        self.name, self.whole, self.invent, self.load = name, whole, invent, load
        self.pool, self.messages = list(whole), set[str]()

    def next(self, rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.4:
            return self.invent(rng)
        return mutate(rng.choice(self.whole if kind < 0.6 else self.pool), rng)

    def learn(self, data: bytes, message: str) -> None:
        """Keep an input that gave a new message, to be changed further."""
        kind = re.sub(r"'[^']*'|[\d.]+|\[.*\]", "*", message)[:60]
        if kind not in self.messages and len(self.pool) < 2000 and len(data) < 100_000:
            self.messages.add(kind)
            self.pool.append(data)


def targets(folder: Path) -> list[Target]:
    from ngd_timm.core.files import packaged
    from ngd_timm.core.recipe import Recipe, _keys, load_recipe, recipe_names
    from ngd_timm.grid.prototypes import PrototypeGrid

    small = folder / "small.safetensors"
    PrototypeGrid.random(4, size=3).save(small)
    grids = [small.read_bytes()]
    recipes = [(packaged("recipes") / f"{name}.yaml").read_bytes() for name in recipe_names()]
    keys = list(_keys(Recipe))

    def load_override(file: Path) -> None:
        text = file.read_bytes().decode("utf-8", "surrogateescape")
        load_recipe(Recipe, "b0_ce", [text])

    def invent_override(rng: random.Random) -> bytes:
        key = rng.choice([*keys, "", ".", "a..b", "seed.of", "optim.lr.x"])
        return f"{key}{rng.choice(['=', '=', '=', '=', ':', ''])}{invented_value(rng)}".encode("utf-8", "surrogatepass")

    return [
        Target("grid.safetensors", grids, invented_grid, PrototypeGrid.load),
        Target("recipe.yaml", recipes, lambda rng: invented_recipe(rng, keys), lambda file: load_recipe(Recipe, file)),
        Target("override.txt", [b"optim.lr=1e-3", b"loss.ramp=[0.2, 0.6]"], invent_override, load_override),
    ]


def attempt(target: Target, file: Path, data: bytes) -> tuple[str | None, str]:
    """Give one input to its loader: a finding or None, and its message."""
    from ngd_timm.core.errors import InputError

    file.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    # of processor time: others may share the machine
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
    message = "loads"
    try:
        target.load(file)
    except InputError as error:
        message = str(error)
    except TooSlow:
        return f"more than {SECONDS:g} s of processor time, or {12 * SECONDS:g} s in all", ""
    except BaseException:
        return traceback.format_exc(limit=-8), ""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    if grown > MEMORY:
        return f"{grown >> 20} MiB of memory", message
    if "\n" in message or len(message) > LONGEST:
        return (
            f"a message of {len(message)} characters in {len(message.splitlines())} lines: {message[:300]!r}",
            message,
        )
    return None, message


def work(folder: Path, until: float, seed: int) -> None:
    """The child: try inputs until the time is over, and leave findings and counts in the folder."""

    def too_slow(*_: object) -> None:
        raise TooSlow

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, too_slow)
    rng, tried = random.Random(seed), dict[str, int]()
    all_targets = targets(folder)
    refused = loaded = 0
    while time.monotonic() < until:
        target = rng.choice(all_targets)
        data = target.next(rng)
        file = folder / f"{CURRENT}-{target.name}"
        problem, message = attempt(target, file, data)
        tried[target.name] = tried.get(target.name, 0) + 1
        loaded += message == "loads"
        refused += message not in ("loads", "")
        if problem is None:
            target.learn(data, message.replace(str(file), ""))
        else:
            save(folder, target.name, data, problem)
    messages = {target.name: len(target.messages) for target in all_targets}
    count = {"tried": tried, "loaded": loaded, "refused": refused, "messages": messages}
    (folder / f"counts-{os.getpid()}.json").write_text(json.dumps(count))


def save(folder: Path, name: str, data: bytes, problem: str) -> None:
    """Keep a finding once: by the last line of what went wrong and where."""
    place = "".join(re.findall(r"line \d+|\w+Error", problem) or [problem[:40]])
    found = folder / f"finding-{hashlib.sha256(place.encode()).hexdigest()[:12]}-{name}"
    if not found.exists():
        found.write_bytes(data)
        print(f"\n{found}: {data[:200]!r}\n{problem}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz_findings"), help="findings are saved here")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.iterdir():
        old.unlink()
    until, seed = time.monotonic() + 60 * options.minutes, options.seed
    while time.monotonic() < until:
        child = os.fork()
        if child == 0:
            work(options.out, until, seed)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        seed += 1
        if status != 0:
            latest = max(options.out.glob(f"{CURRENT}-*"), key=lambda path: path.stat().st_mtime)
            problem = f"the process died with status {status}"
            save(options.out, latest.name.removeprefix(f"{CURRENT}-"), latest.read_bytes(), problem)
    for path in sorted(options.out.glob("counts-*.json")):
        print(path.read_text())
        path.unlink()
    for path in (*options.out.glob(f"{CURRENT}-*"), options.out / "small.safetensors"):
        path.unlink(missing_ok=True)
    findings = sorted(path.name for path in options.out.iterdir())
    print(f"findings: {', '.join(findings) or 'none'}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
