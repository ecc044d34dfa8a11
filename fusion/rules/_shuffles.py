"""What rules share about data movement: a Shuffle as a permutation of factors of its shape.

Any transpose-reshape-transpose splits its input into factors ("atoms"), permutes them, and joins them again. In that form
shuffles compose, and one that leaves the order alone is recognised as a plain reshape, which moves nothing.

Networks repeat the same few shuffles in every block, and many rules ask about each: what was found is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fusion.dims import Dim, Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Shuffle


@dataclass(frozen=True)
class Movement:
    """Output atom ``k`` is input atom ``order[k]``; ``sizes`` are the atoms in input order (none of them 1)."""

    sizes: Shape
    order: tuple[int, ...]

    @property
    def is_view(self) -> bool:
        """Whether no element moves."""
        return self.order == tuple(range(len(self.order)))


@dataclass(frozen=True)
class Factored:
    """A movement whose atoms are not joined, with the atoms (input numbers) of each input and output axis."""

    move: Movement
    source: tuple[tuple[int, ...], ...]
    target: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=4096)
def movement(shape: Shape, op: Shuffle) -> Movement | None:
    """The movement of ``op`` on an input of ``shape``; None when the shapes do not factor (6x4 -> 4x6, or unknown sizes)."""
    found = factored(shape, op)
    return None if found is None else minimal(found.move)


@lru_cache(maxsize=4096)
def factored(shape: Shape, op: Shuffle) -> Factored | None:
    """Like :func:`movement`, before atoms that stay neighbours are joined."""
    first = op.first if op.first is not None else tuple(range(len(shape)))
    moved = tuple(shape[axis] for axis in first)
    target = moved if op.reshape is None else tuple(op.reshape)
    pieces = refine(moved, target)
    if pieces is None:
        return None
    from_moved, from_target, sizes = pieces
    second = op.second if op.second is not None else tuple(range(len(target)))
    input_atoms = [atom for axis in range(len(shape)) for atom in from_moved[first.index(axis)]]
    output_atoms = [atom for axis in second for atom in from_target[axis]]
    place = {atom: position for position, atom in enumerate(input_atoms)}
    move = Movement(tuple(sizes[atom] for atom in input_atoms), tuple(place[atom] for atom in output_atoms))
    source = tuple(tuple(place[atom] for atom in from_moved[first.index(axis)]) for axis in range(len(shape)))
    return Factored(move, source, tuple(tuple(place[atom] for atom in from_target[axis]) for axis in second))


def is_view(shape: Shape, op: Shuffle) -> bool:
    """Whether ``op`` moves no element: a plain reshape always, others when their factors keep their order."""
    if op.first is None and op.second is None:
        return True
    move = movement(shape, op)
    return move is not None and move.is_view


@lru_cache(maxsize=4096)
def compose(a: Movement, b: Movement) -> Movement | None:
    """First ``a``, then ``b``."""
    middle = tuple(a.sizes[atom] for atom in a.order)
    pieces = refine(middle, b.sizes)
    if pieces is None:
        return None
    from_a, from_b, sizes = pieces
    split = {atom: from_a[position] for position, atom in enumerate(a.order)}
    input_atoms = [piece for atom in range(len(a.sizes)) for piece in split[atom]]
    output_atoms = [piece for atom in b.order for piece in from_b[atom]]
    place = {piece: position for position, piece in enumerate(input_atoms)}
    return minimal(Movement(tuple(sizes[p] for p in input_atoms), tuple(place[p] for p in output_atoms)))


def minimal(move: Movement) -> Movement:
    """Neighbouring atoms that stay neighbours, joined."""
    groups: list[list[int]] = []
    for atom in move.order:
        if groups and groups[-1][-1] + 1 == atom:
            groups[-1].append(atom)
        else:
            groups.append([atom])
    ranked = sorted(range(len(groups)), key=lambda index: groups[index][0])
    sizes: list[Dim] = []
    for index in ranked:
        size: Dim = 1
        for atom in groups[index]:
            size = move.sizes[atom] * size
        sizes.append(size)
    return Movement(tuple(sizes), tuple(ranked.index(index) for index in range(len(groups))))


@lru_cache(maxsize=4096)
def emit(move: Movement, source: Shape, target: Shape) -> tuple[Shuffle, ...]:
    """Shuffles that do ``move`` from shape ``source`` to shape ``target``: none, one, or a moving one and a plain reshape."""
    if move.is_view:
        return () if source == target else (Shuffle(reshape=target),)
    by_input = _whole_axes(move.sizes, source)
    if by_input is not None:  # a transpose of input axes, then a reshape
        first = tuple(_with_ones([axis for atom in move.order for axis in by_input[atom]], source))
        first = _natural(first, source, target)
        shape = tuple(source[axis] for axis in first)
        return (Shuffle(first=first, reshape=None if shape == target else target),)
    by_output = _whole_axes(tuple(move.sizes[atom] for atom in move.order), target)
    if by_output is not None:  # a reshape, then a transpose to output axes
        place = {atom: position for position, atom in enumerate(move.order)}
        axes = [axis for atom in range(len(move.sizes)) for axis in by_output[place[atom]]]
        axes = _with_ones(axes, target)
        return (Shuffle(reshape=tuple(target[axis] for axis in axes), second=inverse(axes)),)
    middle = tuple(move.sizes[atom] for atom in move.order)
    moving = Shuffle(reshape=None if source == move.sizes else move.sizes, second=move.order)
    return (moving,) if middle == target else (moving, Shuffle(reshape=target))


def refine(a: Shape, b: Shape) -> tuple[list[list[int]], list[list[int]], list[Dim]] | None:
    """The common factors of two shapes with equally many elements: per axis of ``a``, of ``b``, and their sizes."""
    from_a: list[list[int]] = [[] for _ in a]
    from_b: list[list[int]] = [[] for _ in b]
    sizes: list[Dim] = []
    i = j = 0
    left: Dim = 1
    right: Dim = 1
    while True:
        while left == 1 and i < len(a):
            left, i = a[i], i + 1
        while right == 1 and j < len(b):
            right, j = b[j], j + 1
        if left == 1 and right == 1:
            return from_a, from_b, sizes
        if left == right or _divides(left, right):
            factor = left
        elif _divides(right, left):
            factor = right
        else:
            return None
        if factor == 1 or factor == 0:
            return None
        from_a[i - 1].append(len(sizes))
        from_b[j - 1].append(len(sizes))
        sizes.append(factor)
        left, right = left // factor, right // factor


def _divides(a: Dim, b: Dim) -> bool:
    return a != 1 and a != 0 and b % a == 0


def _whole_axes(sizes: Sequence[Dim], shape: Shape) -> list[list[int]] | None:
    """Per atom the axes of ``shape`` that it is made of, or None when an axis is split between atoms."""
    pieces = refine(tuple(sizes), shape)
    if pieces is None or any(len(atoms) > 1 for atoms in pieces[1]):
        return None
    owner = {piece: atom for atom, group in enumerate(pieces[0]) for piece in group}
    axes: list[list[int]] = [[] for _ in sizes]
    for axis, atoms in enumerate(pieces[1]):
        if atoms:
            axes[owner[atoms[0]]].append(axis)
    return axes


def _with_ones(axes: list[int], shape: Shape) -> list[int]:
    """``axes`` with the axes of length 1 put in: leading ones lead, the others follow the axis before them."""
    result = list(axes)
    leading = 0
    for axis, dim in enumerate(shape):
        if dim != 1:
            continue
        if axis == leading:
            result.insert(leading, axis)
            leading += 1
        else:
            result.insert(result.index(axis - 1) + 1, axis)
    return result


def _natural(first: tuple[int, ...], source: Shape, target: Shape) -> tuple[int, ...]:
    """``first`` with its axes of length 1 placed so that no reshape is needed, when that is possible."""
    if len(source) != len(target):
        return first
    moving = [axis for axis in first if source[axis] != 1]
    ones = [axis for axis in first if source[axis] == 1]
    placed = []
    for dim in target:
        queue = ones if dim == 1 else moving
        if not queue:
            return first
        placed.append(queue.pop(0))
    return tuple(placed)


def last_transpose(shape: Shape, op: Shuffle) -> tuple[Shuffle | None, tuple[int, ...] | None]:
    """What ``op`` does before the transpose that ends it (None: nothing), and that transpose (None: there is none)."""
    order = transpose_of(shape, op)
    if order is not None:
        return None, order
    if op.second is None or op.second == tuple(range(len(op.second))):
        return None, None
    return replace(op, second=None), op.second


def reshape_before(graph: Graph, tensor: str) -> Layer | None:
    """The plain reshape that makes ``tensor``, or None."""
    layer = graph.producer(tensor)
    return layer if layer is not None and isinstance(layer.op, Shuffle) and layer.op.first is None and layer.op.second is None else None


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``permutation``."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def transpose_of(shape: Shape, op: Shuffle) -> tuple[int, ...] | None:
    """The permutation when ``op`` only transposes (no axis is joined or split), else None."""
    if op.reshape is not None and (op.first is not None or op.second is not None or tuple(op.reshape) != shape):
        return None
    first = op.first if op.first is not None else tuple(range(len(shape)))
    return tuple(first[axis] for axis in op.second) if op.second is not None else first
