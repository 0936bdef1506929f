"""Real text for clouds to train on: the source files of installed Python packages.

    python bench/quality/corpus.py OUT [--packages DIR] [--clouds 4] [--vocabulary 8192]

writes ``OUT/cloudN.jsonl``, one file a document, and ``OUT/tokenizer``, a byte-level BPE. Each
package is one cloud's, so that clouds hold different text, as clouds do; a package of more than a
sixteenth of all text is divided by its own subpackages. It keeps nothing out: training does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 256 * 1024
"""Bytes of a file; larger ones are tables that somebody generated."""
SMALLEST = 256
SHARE = 16


def find_packages(top: Path) -> dict[str, list[Path]]:
    """Package -> its ``.py`` files, both sorted; no text twice, wherever it was copied to."""
    seen: set[bytes] = set()
    files: list[Path] = []
    for file in sorted(top.rglob("*.py")):
        size = file.stat().st_size
        if not SMALLEST <= size <= LARGEST:
            continue
        digest = hashlib.sha256(file.read_bytes()).digest()
        if digest not in seen and _text(file) is not None:
            seen.add(digest)
            files.append(file)
    total = sum(file.stat().st_size for file in files)
    return dict(sorted(_divide(files, top, 1, total / SHARE)))


def _divide(
    files: list[Path], top: Path, depth: int, largest: float
) -> Iterator[tuple[str, list[Path]]]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(top).parts
        groups.setdefault("/".join(parts[:depth]), []).append(file)
    for name, group in groups.items():
        if len(group) > 1 and sum(f.stat().st_size for f in group) > largest:
            yield from _divide(group, top, depth + 1, largest)
        else:
            yield name, group


def _text(file: Path) -> str | None:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def write(packages: dict[str, list[Path]], out: Path, n_clouds: int) -> list[dict[str, int]]:
    """Writes the clouds' files; returns how many packages, documents and bytes each has."""
    sizes = {name: sum(f.stat().st_size for f in files) for name, files in packages.items()}
    told = []
    for cloud, names in enumerate(_deal(sizes, n_clouds)):
        n_documents = n_bytes = 0
        with (out / f"cloud{cloud}.jsonl").open("w", encoding="utf-8") as lines:
            for file in (file for name in names for file in packages[name]):
                text = _text(file)
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                n_documents += 1
                n_bytes += file.stat().st_size
        told.append({"packages": len(names), "documents": n_documents, "bytes": n_bytes})
    return told


def _deal(sizes: dict[str, int], n_clouds: int) -> list[list[str]]:
    """Largest first, each to the cloud that has least so far; each cloud's sorted."""
    dealt: list[list[str]] = [[] for _ in range(n_clouds)]
    totals = [0] * n_clouds
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        cloud = totals.index(min(totals))
        dealt[cloud].append(name)
        totals[cloud] += sizes[name]
    return [sorted(names) for names in dealt]


def train_tokenizer(packages: dict[str, list[Path]], out: Path, vocabulary: int) -> None:
    """A byte-level BPE of every eighth document, in the form that ``AutoTokenizer`` opens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    files = [file for group in packages.values() for file in group][::8]
    tokenizer.train_from_iterator((_text(file) or "" for file in files), trainer)
    written: Any = PreTrainedTokenizerFast  # its constructor has no types
    written(tokenizer_object=tokenizer, eos_token=end).save_pretrained(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=Path(sysconfig.get_path("purelib")))
    parser.add_argument("--clouds", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    packages = find_packages(arguments.packages)
    for cloud, told in enumerate(write(packages, arguments.out, arguments.clouds)):
        print(f"cloud{cloud}: {told}")
    train_tokenizer(packages, arguments.out / "tokenizer", arguments.vocabulary)


if __name__ == "__main__":
    main()
