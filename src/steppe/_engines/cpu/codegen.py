"""Write the source of a method's CPU kernels, for given number formats.

:mod:`steppe._engines.cpu.compile_cache` compiles it and keeps the machine code.
"""

from collections.abc import Iterable
from inspect import signature

from steppe._engines.base.method import Function, Method
from steppe._engines.base.number_formats import BLOCK
from steppe._engines.cpu.operands import (
    BYTES,
    TABLE_SCOPE,
    TOTAL_SCOPE,
    Formats,
    Lines,
    Operand,
    entry,
    format_definitions,
    inputs_of,
    operands_of,
    slot_operand,
    width_of,
)
from steppe._engines.cpu.templates import (
    BACKWARD,
    FORWARD,
    chunk_source,
    header,
    indented,
    loop_over,
    phased_source,
    shared_source,
    vectors_of,
)
from steppe.rules import swap


def update_source(method: Method, formats: Formats, vectors: int = 0) -> str:
    """Return the source of ``update``, for vectors of so many bits; 0 leaves it to LLVM."""
    return _MethodSource(method, formats, vectors).update()


def rules_of(method: Method, formats: Formats) -> dict[str, Function]:
    """Return the functions that the source of ``update`` knows as ``rules``, by their names in it.

    Given as they are, not found by name: an optimizer's rule may stand in any module.
    """
    rules = {"rule": method.rule}
    if method.mean_square is not None and not formats.sharded:
        rules["mean_rule"] = method.mean_square
    if method.buffer is not None:
        rules["swap"] = swap
    return rules


def norm_source(format: str, by_blocks: bool) -> str:
    """Return the source of ``square_sums``, of gradients at the only column of ``tensors``."""
    g = Operand("g", format, 1, entry("tensors", "row", 0, 1))
    text = header(f"Sums of squares in {format}") + format_definitions([g])
    return text + _sums("square_sums", g, by_blocks) + shared_source("square_sums")


def slot_sums_source(format: str) -> str:
    """Return the source of ``sum_slots``, into the only column of ``tensors``."""
    body = [f"total = {entry('tensors', 'row', 0, 1)} + start * {BYTES[format]}"]
    body += _summed(slot_operand(format, 1), format)
    text = header(f"Sums of slots in {format}")
    return text + chunk_source("sum_slots", [], body, True) + shared_source("sum_slots")


class _MethodSource:
    """A method's kernels for given number formats, and what they have in common."""

    def __init__(self, method: Method, formats: Formats, vectors: int) -> None:
        self.method, self.formats, self.wide, self.vectors = method, formats, formats.wide, vectors
        self.arguments = list(signature(method.rule).parameters)
        self.operands, self.slot = operands_of(self.arguments, method, formats)
        self.written = [self.operands[0], *self.operands[2:]]
        self.everything = [*self.operands, *([self.slot] if self.slot else [])]
        self.is_plain = not any(operand.rounds_stochastically for operand in self.everything)
        self.inputs = inputs_of(self.operands, formats)

    def update(self) -> str:
        method, formats = self.method, self.formats
        title = f"The rule {method.rule.__name__} in {formats.param}, "
        text = header(f"{title}state {', '.join(formats.state)}") + self._definitions()
        chunk = chunk_source("update", self._preparation(), self._body(), self.is_plain)
        if method.mean_square is None or formats.sharded:
            order = FORWARD if method.buffer is None else BACKWARD
            return text + chunk + shared_source("update", order)
        in_mean = ", ".join(self._scalar(name) for name in method.mean_scalars)
        return text + _sums("squares", self.operands[1]) + chunk + phased_source("update", in_mean)

    def _definitions(self) -> str:
        """Compile what the kernel calls, and no more: it is what the first step waits for."""
        names = rules_of(self.method, self.formats)
        text = "\n" + "".join(f'{name} = compiled(rules["{name}"])\n' for name in names)
        return text + format_definitions(self.everything)

    def _preparation(self) -> Lines:
        lines = vectors_of(self.vectors) + self._scalars()
        if not self.is_plain:
            number, step = (f"uint32({entry('identities', 'row', i, 2)})" for i in range(2))
            lines.append(f"key = noise_key({number}, {step})")
        lines += [line for operand in self.everything for line in operand.staging]
        if self.slot and self.slot.rounds_stochastically:
            lines.append(f"total = scratch({BYTES[self.wide] * BLOCK})")
        if self.method.mean_square is not None:
            lines.append(f"rms = {self.wide}(load(roots, row, float64, {TABLE_SCOPE}))")
        return lines

    def _body(self) -> Lines:
        lines = [line for operand in self.operands for line in operand.open()]
        lines += [line for operand in self.written for line in operand.open_store()]
        lines += _looped(line for operand in self.written for line in operand.unpack())
        lines += self._with_buffer() if self.method.buffer else loop_over(self._rule())
        return lines + _closed(self.written)

    def _rule(self) -> Lines:
        """Call the rule, and write what it returns."""
        inputs = self.inputs | {"total": "total_here"}
        outputs = [f"new_{operand.name}" for operand in self.written]
        outputs += ["item"] if self.method.buffer is not None else []
        scalars = [name for name in self.arguments if name not in inputs]
        lines = [
            f"{', '.join(outputs)} = rule(",
            *(f"    {inputs[name]}," for name in self.arguments if name in inputs),
            f"    {', '.join(scalars)},",
            ")",
        ]
        for operand in self.written:
            lines += operand.store(f"new_{operand.name}")
        return lines

    def _with_buffer(self) -> Lines:
        """Put the slots' sum before the rule, and where this row stores, the storing into it."""
        slot, rule = self.slot, self._rule()
        if slot is None:
            return loop_over([f"total_here = {self.wide}(0.0)", *rule])
        here = f"total_here = {_total(self.wide)}"
        return [
            *(_summed(slot, self.wide) if slot.rounds_stochastically else [self._total_begin()]),
            f"index = load(stored, row, int64, {TABLE_SCOPE})",
            "# Where the row stores its item, it does so in the same pass.",
            "if index < 0:",
            *indented(loop_over([here, *rule])),
            "else:",
            *indented([*slot.open(), *slot.open_store()]),
            *indented(loop_over(self._with_storing(here, rule, slot))),
            *indented(_closed([slot])),
        ]

    def _with_storing(self, here: str, rule: Lines, slot: Operand) -> Lines:
        if slot.rounds_stochastically:
            return [here, *rule, *slot.store("item")]
        swapped = f"swap(total_here, {slot.load()}, item)"
        return [here, *rule, f"store(total, i, {swapped}, {TOTAL_SCOPE})", *slot.store("item")]

    def _total_begin(self) -> str:
        """Find the block of the slots' sum that lies in memory."""
        method = self.method
        address = entry("tensors", "row", 2 + len(method.state), width_of(method))
        return f"total = {address} + start * {BYTES[self.wide]}"

    def _scalars(self) -> Lines:
        """Lines of the table hold the gradient's factor, then the rule's scalars."""
        names = ["sign", *(name for name in self.method.scalar_names if name != "rms")]
        lines = ["# The row's scalars.", f"line = load(lines, row, int64, {TABLE_SCOPE})"]
        for i, name in enumerate(names):
            value = entry("table", "line", i, "line_width", "float64")
            lines.append(f"{name} = {self.wide}({value})")
        return lines

    def _scalar(self, name: str) -> str:
        """Return the expression of one of the rule's scalars, in float64."""
        column = 1 + self.method.scalar_names.index(name)
        return entry("table", "line", column, "line_width", "float64")


def _sums(name: str, g: Operand, by_blocks: bool = False) -> str:
    """Sum the squares of a chunk of the gradient."""
    added = f"sum = add_reassociable(sum, float64({g.load()}) * float64({g.load()}))"
    conclusion = f"    store(sums, chunk, sum, {TABLE_SCOPE})"
    body = [*g.open(), *loop_over([added])]
    return chunk_source(name, ["sum = 0.0"], body, not by_blocks, conclusion)


def _closed(operands: list[Operand]) -> Lines:
    """Write what operands have staged."""
    scales = [line for operand in operands for line in operand.close()]
    reason = ["# The block's largest numbers are known now, and so its scales."] if scales else []
    packing = (line for operand in operands for line in operand.pack())
    return [*reason, *scales, *_looped(packing)]


def _looped(lines: Iterable[str]) -> Lines:
    """Put lines, if there are any, into a loop over the block's elements."""
    body = list(lines)
    return loop_over(body) if body else []


def _total(wide: str) -> str:
    return f"load(total, i, {wide}, {TOTAL_SCOPE})"


def _summed(slot: Operand, wide: str) -> Lines:
    """Sum the slots into ``total``, in their order."""
    add = f"store(total, i, {_total(wide)} + {wide}({slot.load()}), {TOTAL_SCOPE})"
    return [
        *loop_over([f"store(total, i, {wide}(0.0), {TOTAL_SCOPE})"]),
        "for index in range(slot_width):",
        *indented([*slot.open(), *loop_over([add])]),
    ]
