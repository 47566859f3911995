"""Operands of a CPU kernel: where their elements lie, and how each is read, rounded and written.

It writes lines of source, of which ``codegen.py`` makes a kernel. The CPU engine rounds to bfloat16
and 8 bits here, by :mod:`steppe._engines.base.number_formats`.
"""

from dataclasses import dataclass

from steppe._engines.base.method import Method
from steppe._engines.base.number_formats import (
    BLOCK,
    EIGHT_BITS,
    gradient_format,
    rounds_stochastically,
)
from steppe._engines.cpu.intrinsics import SCOPES

#: Bytes of a number in each format, by the names that ``number_formats.format_of`` gives.
BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat24": 2,  # and one more elsewhere
    "bfloat16": 2,
    "float16": 2,
    "signed8": 1,
    "square8": 1,
}

Lines = list[str]

# Scopes of operands, of the numbers that each stages, of the parameter's errors, of the slots' sum,
# and of all tables.
_MOST_OPERANDS = SCOPES // 2 - 1
_ERROR_SCOPE, TOTAL_SCOPE, TABLE_SCOPE = SCOPES - 3, SCOPES - 2, SCOPES - 1


@dataclass(frozen=True)
class Operand:
    """One tensor of a kernel, of which a block of elements is at hand.

    Attributes
    ----------
    name
        Its name in the rule.
    format
        Its number format.
    index
        Which operand it is; no two overlap.
    address, scale, error
        Expressions of where its elements begin; in 8 bits its scales; in bfloat24 its errors.
    stream
        Which noise rounds it.
    """

    name: str
    format: str
    index: int
    address: str
    scale: str = ""
    stream: int = 0
    error: str = ""

    @property
    def is_coded(self) -> bool:
        """Whether it has 8 bits and a scale for each block."""
        return self.format in EIGHT_BITS

    @property
    def is_staged(self) -> bool:
        """Whether a block of it is unpacked before the rule is called, and packed afterwards.

        In one loop with the rule its instructions would wait for square roots and divisions: a
        processor looks only some hundred instructions ahead.
        """
        return self.is_coded or self.format == "bfloat24"

    @property
    def rounds_stochastically(self) -> bool:
        """Whether it is rounded stochastically."""
        return rounds_stochastically(self.format)

    def open(self) -> Lines:
        """Find the block."""
        lines = [f"{self.name} = {self.address} + start * {BYTES[self.format]}"]
        if self.is_coded:
            scale = f"load({self.scale}, block, float32, {self.index})"
            lines.append(f"{self.name}_scale = {scale}")
        if self.error:
            lines.append(f"{self.name}_error = {self.error} + start")
        return lines

    def load(self) -> str:
        """Return the expression of element ``i``."""
        if self.format == "float16":
            return f"load_float16({self.name}, i, {self.index})"
        if self.format == "bfloat16":
            return f"from_bfloat16(word16(load({self.name}, i, uint16, {self.index})))"
        if self.format == "bfloat24":
            upper = f"word16(load({self.name}, i, uint16, {self.index}))"
            error = f"word8(load({self.name}_error, i, uint8, {_ERROR_SCOPE}))"
            return f"from_bfloat24({upper}, {error})"
        if self.is_coded:
            code = f"word8(load({self.name}, i, uint8, {self.index}))"
            return f"from_{self.format}({code}, {self.name}_scale)"
        return f"load({self.name}, i, {self.format}, {self.index})"

    def unpack(self) -> Lines:
        """Stage element ``i`` as a float32."""
        if not self.is_staged:
            return []
        return [f"store({self.name}_staged, i, {self.load()}, {self._staging_scope})"]

    def load_unpacked(self) -> str:
        """Return the expression of element ``i`` of a block that is unpacked."""
        if not self.is_staged:
            return self.load()
        return f"load({self.name}_staged, i, float32, {self._staging_scope})"

    def open_store(self) -> Lines:
        """Prepare to write the block."""
        lines = []
        if self.rounds_stochastically:
            offset = f"noise_offset(key, uint32({self.stream}), whole_block)"
            lines.append(f"{self.name}_noise = noise({offset}, uint32(whole_start))")
        if self.is_coded:
            lines.append(f"{self.name}_largest = uint32(0)")
        return lines

    def store(self, value: str) -> Lines:
        """Write element ``i``, or stage it."""
        if self.format == "float16":
            return [f"store_float16({self.name}, i, float32({value}), {self.index})"]
        if self.format == "bfloat16":
            word = f"to_bfloat16(float32({value}), {self.name}_noise)"
            return [f"store({self.name}, i, half({word}), {self.index})", self._next_noise]
        if not self.is_staged:
            return [f"store({self.name}, i, {self.format}({value}), {self.index})"]
        staged = f"store({self.name}_staged, i, float32({value}), {self._staging_scope})"
        if not self.is_coded:
            return [staged]
        largest = f"{self.name}_largest"
        return [staged, f"{largest} = larger({largest}, size_word(float32({value})))"]

    def close(self) -> Lines:
        """Compute the block's scale: its largest number is known now."""
        if not self.is_coded:
            return []
        scale = f"{self.name}_new_scale"
        return [
            f"{scale} = scale_{self.format}({self.name}_largest)",
            f"{self.name}_inverse = float32(1.0) / {scale}",
            f"store({self.scale}, block, {scale}, {self.index})",
        ]

    def pack(self) -> Lines:
        """Round and write element ``i`` of what was staged."""
        if not self.is_staged:
            return []
        number, noise = self.load_unpacked(), f"{self.name}_noise"
        if self.is_coded:
            code = f"byte(to_{self.format}({number}, {self.name}_inverse, {noise}))"
            return [f"store({self.name}, i, {code}, {self.index})", self._next_noise]
        word = f"{self.name}_word"
        return [
            f"{word} = to_bfloat24({number}, {noise})",
            f"store({self.name}, i, half(nearest_bfloat16({word})), {self.index})",
            f"store({self.name}_error, i, byte({word}), {_ERROR_SCOPE})",
            self._next_noise,
        ]

    @property
    def staging(self) -> Lines:
        """Make room for a block's numbers."""
        return [f"{self.name}_staged = scratch({4 * BLOCK})"] if self.is_staged else []

    @property
    def _staging_scope(self) -> int:
        return self.index + _MOST_OPERANDS

    @property
    def _next_noise(self) -> str:
        return f"{self.name}_noise = next_noise({self.name}_noise)"


@dataclass(frozen=True)
class Formats:
    """Number formats of a kernel's tensors.

    Attributes
    ----------
    param
        Of parameters.
    state
        Of each tensor of the state, and last of the slots, where there are some.
    sharded
        Whether other processes hold more of the tensors, so that kernels cannot sum them up.
    """

    param: str
    state: tuple[str, ...]
    sharded: bool = False

    @property
    def grad(self) -> str:
        """That of gradients."""
        return gradient_format(self.param)

    @property
    def wide(self) -> str:
        """What is computed in."""
        return "float64" if self.param == "float64" else "float32"

    def norm_by_blocks(self, method: Method) -> bool:
        """Whether gradients are summed up block by block for their norm."""
        rounds = any(map(rounds_stochastically, (self.param, *self.state)))
        in_full = len(self.state) == len(method.state) or self.state[-1] == self.wide
        return method.norm_by_blocks and in_full and rounds


def operands_of(
    arguments: list[str], method: Method, formats: Formats
) -> tuple[list[Operand], Operand | None]:
    """Return the parameter, the gradient and the state; and the slots, where there are some."""
    count = len(method.state)
    width = width_of(method)
    error = entry("errors", "row", 0, 1) if formats.param == "bfloat24" else ""
    operands = [
        Operand("p", formats.param, 0, entry("tensors", "row", 0, width), error=error),
        Operand("g", formats.grad, 1, entry("tensors", "row", 1, width)),
    ]
    for i, (name, format) in enumerate(zip(arguments[2 : 2 + count], formats.state, strict=False)):
        address, scale = entry("tensors", "row", 2 + i, width), entry("scales", "row", i, count)
        operands.append(Operand(name, format, 2 + i, address, scale, stream=1 + i))
    if len(formats.state) == count:
        return operands, None
    return operands, slot_operand(formats.state[count], 2 + count)


def slot_operand(format: str, index: int) -> Operand:
    """Return slot ``index`` of the row."""
    address, scale = (
        entry(name, "row", "index", "slot_width") for name in ("slots", "slot_scales")
    )
    return Operand("slot", format, index, address, scale, stream=index - 1)


def width_of(method: Method) -> int:
    """Return the number of addresses in a row of ``tensors``."""
    return 2 + len(method.state) + (method.buffer is not None)


def inputs_of(operands: list[Operand], formats: Formats) -> dict[str, str]:
    """Return the expressions of what the rule is given, by its names."""
    inputs = {operand.name: f"{formats.wide}({operand.load_unpacked()})" for operand in operands}
    return inputs | {"g": f"{inputs['g']} * sign"}


def format_definitions(operands: list[Operand]) -> str:
    """Compile what operands in low precision are read and written by, and no more."""
    names = set()
    for format in {operand.format for operand in operands}:
        if rounds_stochastically(format):
            names |= {f"to_{format}", f"from_{format}"}
            names |= {"noise_key", "noise_offset", "noise", "next_noise"}
        if format in EIGHT_BITS:
            names |= {f"scale_{format}", "size_word"}
        if format == "bfloat24":
            names |= {"nearest_bfloat16"}
    return "".join(f'{name} = compiled_format("{name}")\n' for name in sorted(names))


def entry(table: str, row: str, column: int | str, width: int | str, dtype: str = "int64") -> str:
    """Return the expression of a table's entry."""
    return f"load({table}, {row} * {width} + {column}, {dtype}, {TABLE_SCOPE})"
