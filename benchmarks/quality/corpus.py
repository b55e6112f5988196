"""The text: sources and documentation of the Python packages that this machine has, as bytes or as BPE tokens.

    python -m benchmarks.quality.corpus --out out/quality/bytes
    python -m benchmarks.quality.corpus --out out/quality/bpe --vocabulary 16384

Nothing is downloaded. Files are taken once each (equal contents count as one file), in the order of a hash of their
paths, so that no package fills one part; every hundredth is held out, whole. Losses of two corpora cannot be
compared, hence the digest in corpus.json, which each run copies.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s24compile.errors import ModelError

SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".cuh", ".cu", ".c", ".cc", ".cpp"}
LEAST_BYTES = 100_000_000
BPE_SAMPLE_BYTES = 40_000_000
"""Text that the vocabulary is learned from: merges hardly change beyond, and learning takes memory."""
END = 0
"""The token between two files; a byte that no text holds, and the first entry of a BPE vocabulary."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens on the CPU, and what they are."""

    train: Tensor
    """uint8 (bytes) or int16 (BPE) [n]"""
    validation: Tensor
    description: dict[str, Any]

    @property
    def vocabulary(self) -> int:
        """Number of token values, padded to a multiple of 64 for the output layer's GEMM."""
        return -(-int(self.description["vocabulary"]) // 64) * 64


def find_texts(roots: Sequence[Path], limit: int) -> Iterator[tuple[str, str]]:
    """Yields (relative path, text) of the files below `roots`, up to `limit` bytes, in an order without meaning."""
    files = {(p.relative_to(root).as_posix(), p) for root in roots for p in root.rglob("*") if p.suffix in SUFFIXES}
    seen: set[bytes] = set()
    total = 0
    for name, path in sorted(files, key=lambda file: hashlib.sha1(file[0].encode()).digest()):
        text = _readable(path)
        if text is None:
            continue
        content = hashlib.sha1(text.encode()).digest()
        if content in seen:
            continue
        seen.add(content)
        total += len(text.encode())
        yield name, text
        if total >= limit:
            return


def build(
    out: Path, *, vocabulary: int = 0, roots: Sequence[Path] | None = None, limit: int = 400_000_000,
    least: int = LEAST_BYTES, one_in: int = 100,
) -> Corpus:  # fmt: skip
    """Reads the files, makes tokens of them (`vocabulary` 0: bytes), and writes the corpus into the folder `out`.

    One file in `one_in` is held out.

    Raises:
        ModelError: less than `least` bytes of text, none to hold out, or a vocabulary that int16 cannot number.
    """
    if vocabulary and not 512 <= vocabulary < 2**15:
        raise ModelError(what=f"vocabulary {vocabulary}", found="out of range", accepted="0 (bytes) or 512 ... 32767")
    parts: tuple[list[str], list[str]] = ([], [])
    digest = hashlib.sha256()
    for name, text in find_texts(roots or _installed(), limit):
        held_out = int.from_bytes(hashlib.sha1(name.encode()).digest()[-4:], "big") % one_in == 0
        parts[held_out].append(text)
        digest.update(text.encode())
    size = sum(len(text.encode()) for part in parts for text in part)
    if size < least or not all(parts):
        found = f"{size} bytes of text in {len(parts[0])} files, and {len(parts[1])} held out"
        raise ModelError(what="the corpus", found=found, accepted=f"{least} bytes are needed, and a file in each part")
    out.mkdir(parents=True, exist_ok=True)
    train, validation = _bpe(parts, vocabulary, out) if vocabulary else tuple(map(_bytes, parts))
    description = {
        "bytes": size,
        "files": len(parts[0]) + len(parts[1]),
        "tokenizer": "BPE" if vocabulary else "bytes",
        "vocabulary": vocabulary or 256,
        "train_tokens": len(train),
        "validation_tokens": len(validation),
        "bytes_per_token": round(size / (len(train) + len(validation)), 4),
        "sha256": digest.hexdigest(),
    }
    torch.save({"train": train, "validation": validation}, out / "tokens.pt")
    (out / "corpus.json").write_text(json.dumps(description, indent=1) + "\n")
    return Corpus(train, validation, description)


def load(folder: Path) -> Corpus:
    """Reads what `build` wrote.

    Raises:
        ModelError: there is no corpus in `folder`.
    """
    if not (folder / "corpus.json").is_file():
        raise ModelError(
            what=str(folder), found="no corpus", accepted=f"python -m benchmarks.quality.corpus --out {folder}"
        )
    tokens = torch.load(folder / "tokens.pt", weights_only=True)
    return Corpus(tokens["train"], tokens["validation"], json.loads((folder / "corpus.json").read_text()))


def _installed() -> list[Path]:
    paths = sysconfig.get_paths()
    folders = {Path(paths[name]).resolve() for name in ("stdlib", "purelib", "platlib")}
    # A site-packages inside the standard library's folder would be read twice.
    return sorted(f for f in folders if not any(other != f and other in f.parents for other in folders))


def _readable(path: Path) -> str | None:
    """The text of a file that somebody wrote: no binary, no generated table, no minified line."""
    try:
        if path.stat().st_size > 1 << 20:
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if len(text) < 200 or "\0" in text or len(text) / (text.count("\n") + 1) > 160:
        return None
    return text


def _bytes(texts: Sequence[str]) -> Tensor:
    return torch.frombuffer(bytearray(b"\0".join(text.encode() for text in texts)), dtype=torch.uint8)


def _bpe(parts: tuple[list[str], list[str]], vocabulary: int, out: Path) -> tuple[Tensor, Tensor]:
    # Only a BPE corpus needs the package.
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    sample = parts[0][: max(1, len(parts[0]) * BPE_SAMPLE_BYTES // max(1, sum(map(len, parts[0]))))]
    tokenizer.train_from_iterator(sample, vocab_size=vocabulary, special_tokens=["<end>"], show_progress=False)
    tokenizer.save(str(out / "tokenizer.json"))

    def encode(texts: Sequence[str]) -> Tensor:
        chunks = []
        for start in range(0, len(texts), 1024):  # the ids of all files at once would be Python integers by the billion
            encoded = tokenizer.encode_batch(list(texts[start : start + 1024]))
            chunks += [torch.tensor([*e.ids, END], dtype=torch.int16) for e in encoded]
        return torch.cat(chunks)

    return encode(parts[0]), encode(parts[1])


def main() -> None:
    """Builds a corpus and prints what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/quality/bytes"))
    parser.add_argument("--vocabulary", type=int, default=0, help="size of the BPE vocabulary; 0: bytes")
    parser.add_argument("--root", type=Path, action="append", help="folder to read instead of the installed packages")
    parser.add_argument("--limit", type=int, default=400_000_000, help="bytes")
    parser.add_argument("--least", type=int, default=LEAST_BYTES, help="bytes; fewer are an error")
    flags = parser.parse_args()
    corpus = build(flags.out, vocabulary=flags.vocabulary, roots=flags.root, limit=flags.limit, least=flags.least)
    print(json.dumps(corpus.description, indent=1))


if __name__ == "__main__":
    main()
