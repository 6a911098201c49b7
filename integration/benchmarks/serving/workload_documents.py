"""Long documents, each asked for twice: the shape of the paper's runs on LV-Eval.

LV-Eval (arXiv 2402.05136) has texts in levels of 16 K to 256 K words and short answers. The paper
(arXiv 2511.20172) takes inputs above 15 K tokens, runs them once to populate the cache, and again
so that all of them hit. Here a document is that many random tokens; one instance stores it, the
other is asked for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .request import Phase
from .workload_burst import at_once
from .workload_document_set import Documents, all_hit, populate, reference_length
from .workload_tokens import Asked, TokenSource

if TYPE_CHECKING:
    from .workloads import Scale

NAME = "documents"


def phases(scale: Scale, repeat: int) -> list[Phase]:
    """Populate and hit each length, one request at a time; then one of them under load.

    That one is the length nearest to 32 K tokens.
    """
    source, asked = TokenSource(scale.vocabulary, scale.seed, NAME, repeat), Asked()
    loaded = reference_length(scale.lengths)
    found = []
    for length in dict.fromkeys(scale.lengths):
        documents = Documents.drawn(source, asked, length, scale.count, scale.output_tokens)
        found += [populate(NAME, documents), *all_hit(NAME, documents, scale.hits)]
        if length == loaded:
            found += at_once(NAME, source, asked, documents, scale.bursts)
    return found
