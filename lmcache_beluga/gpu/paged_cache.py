"""A paged KV cache in GPU memory, as vLLM lays it out, and the chunks that are made of it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from lmcache_beluga.errors import InvalidArgumentError


class Paging(enum.Enum):
    """Shape of a layer's tensor."""

    #: ``[2, blocks, block size, heads, head size]``
    HALVES_FIRST = "keys and values apart"
    #: ``[blocks, 2, block size, heads, head size]``
    BLOCKS_FIRST = "keys and values of a block together"
    #: ``[blocks, block size, width]``: one latent per token (MLA)
    LATENT = "MLA"


@dataclass(frozen=True)
class PagedCache:
    """Where the KV of a block lies. Sizes and strides in bytes.

    Make it of tensors with :meth:`of`, or fill it in for memory that no tensor describes: block
    ``b`` of layer ``l`` begins at ``layers[l] + b * block_stride``; it has ``block_tokens`` tokens
    of ``token_bytes`` each, one after the other, first of all keys, and ``half_stride`` further on
    of all values. Raises InvalidArgumentError where that cannot be.
    """

    layers: tuple[int, ...]
    """Address of each layer."""
    blocks: int
    block_tokens: int
    token_bytes: int
    """Keys (or values, or the latent) of one token in one layer."""
    block_stride: int
    half_stride: int = 0
    """From a block's keys to its values; 0: there is one latent (MLA)."""
    dtype: str = "uint8"
    """Name and size of an element, for a chunk's metadata."""
    element_bytes: int = 1
    device: str = ""
    """``cuda:0``; empty: not known, and not checked."""
    keep: Any = field(default=None, repr=False, compare=False)
    """Whatever keeps the memory alive."""

    def __post_init__(self) -> None:
        sizes = (self.blocks, self.block_tokens, self.token_bytes, self.element_bytes)
        if not self.layers or min(sizes) < 1 or min(self.layers) < 1:
            raise InvalidArgumentError(
                "a paged cache has at least one layer, block, token and byte"
            )
        if self.token_bytes % self.element_bytes:
            raise InvalidArgumentError(
                f"a token of {self.token_bytes} bytes does not consist of whole {self.dtype}"
            )
        if self.block_stride < self.block_bytes or self.half_stride < 0:
            raise InvalidArgumentError(
                f"blocks of {self.block_bytes} bytes overlap at a stride of {self.block_stride}"
            )
        if self.half_stride and self.half_stride < self.block_bytes:
            raise InvalidArgumentError(
                f"values {self.half_stride} bytes behind keys of {self.block_bytes} overlap them"
            )

    @classmethod
    def of(cls, layers: Sequence[Any], paging: Paging | None = None) -> PagedCache:
        """The cache that consists of these tensors, one per layer and all alike.

        ``paging``: needed where two blocks, or two dimensions of 2, leave it open. Raises
        InvalidArgumentError for tensors that are not laid out as :class:`Paging` says.
        """
        if not layers:
            raise InvalidArgumentError("a paged cache has at least one layer")
        first = layers[0]
        shape, strides = tuple(first.shape), tuple(first.stride())
        for layer in layers:
            alike = (tuple(layer.shape), tuple(layer.stride()), layer.dtype, layer.device)
            if alike != (shape, strides, first.dtype, first.device):
                raise InvalidArgumentError("the layers' tensors differ in shape, dtype or device")
        paging = paging or _paging_of(shape)
        half, block = _dimensions(paging, shape)
        element = int(first.element_size())
        inner = block + 1 if half is None else max(half, block) + 1
        _check_contiguous(shape[inner:], strides[inner:])
        token = element
        for size in shape[inner + 1 :]:
            token *= size
        return cls(
            layers=tuple(int(layer.data_ptr()) for layer in layers),
            blocks=shape[block],
            block_tokens=shape[inner],
            token_bytes=token,
            block_stride=_stride(shape, strides, block, shape[inner] * token, element),
            half_stride=0 if half is None else strides[half] * element,
            dtype=str(first.dtype).removeprefix("torch."),
            element_bytes=element,
            device=str(first.device),
            keep=tuple(layers),
        )

    @property
    def halves(self) -> int:
        """2: keys and values; 1: a latent."""
        return 2 if self.half_stride else 1

    @property
    def block_bytes(self) -> int:
        """One block of one layer, keys or values: what lies together."""
        return self.block_tokens * self.token_bytes

    @property
    def bytes_per_token(self) -> int:
        """In all layers, keys and values."""
        return self.halves * len(self.layers) * self.token_bytes

    def chunk_bytes(self, tokens: int) -> int:
        """Size of a chunk of so many tokens."""
        return tokens * self.bytes_per_token

    def chunk_meta(self, tokens: int) -> bytes:
        """The metadata with which LMCache on the pool finds such a chunk to be its own: commit it
        with that, under LMCache's key."""
        name = "KV_2LTD" if self.half_stride else "KV_MLA_FMT"
        width = self.token_bytes // self.element_bytes
        shape = [self.dtype, self.halves, len(self.layers), tokens, width]
        packed: bytes = msgpack.packb([name, [shape], None])
        return packed


def _paging_of(shape: tuple[int, ...]) -> Paging:
    if len(shape) == 3:
        return Paging.LATENT
    if len(shape) == 5 and (shape[0] == 2) != (shape[1] == 2):
        return Paging.HALVES_FIRST if shape[0] == 2 else Paging.BLOCKS_FIRST
    raise InvalidArgumentError(
        f"{list(shape)} may be two layouts: say which"
        if len(shape) == 5 and shape[0] == 2
        else f"{list(shape)} is none of [2, blocks, block size, heads, head size], "
        "[blocks, 2, block size, heads, head size] and [blocks, block size, width]"
    )


def _dimensions(paging: Paging, shape: tuple[int, ...]) -> tuple[int | None, int]:
    """Which dimension tells keys from values, and which is the block."""
    wanted = 3 if paging is Paging.LATENT else 5
    half = {Paging.HALVES_FIRST: 0, Paging.BLOCKS_FIRST: 1, Paging.LATENT: None}[paging]
    if len(shape) != wanted or min(shape) < 1 or (half is not None and shape[half] != 2):
        raise InvalidArgumentError(f"{list(shape)} is not laid out like {paging.name}")
    return half, 1 if paging is Paging.HALVES_FIRST else 0


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            raise InvalidArgumentError(
                "the tokens of a block, and the heads of a token, must lie one after the other "
                f"(shape {list(shape)}, strides {list(strides)})"
            )
        expected *= size


def _stride(
    shape: tuple[int, ...], strides: tuple[int, ...], block: int, nbytes: int, element: int
) -> int:
    """From block to block; of a cache of one block torch may say anything."""
    return max(strides[block] * element, nbytes) if shape[block] == 1 else strides[block] * element
