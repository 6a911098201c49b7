"""Many hits at once, and hits that load while others decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .request import Phase, Request
from .workload_document_set import Documents, length_name, populate, reference_length
from .workload_tokens import Asked, TokenSource

if TYPE_CHECKING:
    from .workloads import Scale

NAME = "burst"

#: A short prompt with a long answer; hits come when it is in the middle of it.
_DECODE_PROMPT, _DECODE_OUTPUT = 256, 256
_HITS, _HITS_ARRIVE_S = 4, 0.5


def phases(scale: Scale, repeat: int) -> list[Phase]:
    """The part of ``documents`` that is under load, alone; of the length nearest to 32 K."""
    source, asked = TokenSource(scale.vocabulary, scale.seed, NAME, repeat), Asked()
    length = reference_length(scale.lengths)
    documents = Documents.drawn(source, asked, length, scale.count, scale.output_tokens)
    return [populate(NAME, documents), *at_once(NAME, source, asked, documents, scale.bursts)]


def at_once(
    workload: str,
    source: TokenSource,
    asked: Asked,
    documents: Documents,
    bursts: Sequence[int],
) -> list[Phase]:
    """Documents that are stored, in bursts of these sizes, then while another request decodes.

    A burst larger than the number of documents asks for each several times: what a tier has to
    move is the same, and how much it must hold does not grow with the burst.
    """
    return [
        *(burst(workload, documents, size) for size in bursts),
        decode(workload, source, asked, documents),
    ]


def burst(workload: str, documents: Documents, size: int) -> Phase:
    """``size`` requests at the same moment, on instance 1."""
    several = len(documents.again)
    of = f" of {several} documents" if several < size else ""
    return Phase(
        workload,
        f"burst {size} x {length_name(documents.length)}{of}",
        documents.cycled(size),
        concurrency=size,
        instance=1,
        axes={"tokens": float(documents.length), "concurrency": float(size), "reuse": 1.0},
    )


def decode(workload: str, source: TokenSource, asked: Asked, documents: Documents) -> Phase:
    """One answer is being generated, on instance 1, while hits arrive there."""
    prompt = source.prompt(source.draw(_DECODE_PROMPT))
    decoding = Request(prompt, _DECODE_OUTPUT, 0.0, reused_tokens=asked.reused(prompt))
    hits = tuple(
        Request(one.prompt, one.output_tokens, _HITS_ARRIVE_S, reused_tokens=one.reused_tokens)
        for one in documents.cycled(_HITS)
    )
    return Phase(
        workload,
        f"decode while {_HITS} x {length_name(documents.length)} load",
        (decoding, *hits),
        concurrency=1 + _HITS,
        instance=1,
        axes={"tokens": float(documents.length), "decodes": 1.0},
    )
