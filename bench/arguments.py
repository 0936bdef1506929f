"""Lists on the command lines of the Python benchmarks: sizes and codecs."""

from __future__ import annotations

import argparse

from wanlab.arguments import n_bytes_of

from pyfedcomm import codecs
from pyfedcomm.errors import ConfigError, Error


def sizes_of(parser: argparse.ArgumentParser, text: str) -> list[int]:
    """``"1M,64M"``: bytes of whole float32, at least one each. Ends the program for a bad one."""
    try:
        return [max(n_bytes_of("--sizes", part) // 4 * 4, 4) for part in text.split(",")]
    except ConfigError as error:
        parser.error(str(error))


def codec_names(parser: argparse.ArgumentParser, text: str) -> list[str]:
    """``"int8,topk(0.01,int8)"``: commas inside brackets belong to a name."""
    parts, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    for part in parts:
        try:
            codecs.get(part)
        except Error as error:
            parser.error(f"--codecs: {error}")
    return parts
