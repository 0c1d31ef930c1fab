"""SASS as nvdisasm prints it: basic blocks, loops, and instructions weighted by trip counts.

    text = disassemble(cubin)
    for loop in read(text).loops: print(loop)        # which loops there are
    counts(text, lambda loop: 7)                     # what a program issues

A caller that knows its kernel gives the trips of each loop: by the source line that most of the
loop comes from (cubins with -lineinfo), or by `Loop.number`, the order of loop headers in the code.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .flow import natural_loops

Line = tuple[str, int]
Trips = Callable[["Loop"], float]

_INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?)\s*;"
)  # fmt: skip
_LABEL = re.compile(r"^\s*(\.L_\w+|[A-Za-z_]\w*):\s*$")
_SOURCE = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')
_TARGET = re.compile(r"`\((\.L_\w+)\)")

# By the first part of an opcode. What is in none of them is integer and address arithmetic.
CLASSES = {
    "matrix": ("HGMMA", "HMMA", "UTCHMMA", "QGMMA"),
    "load global": ("LDG", "LD"),
    "copy to shared": ("LDGSTS", "UBLKCP", "UTMALDG"),
    "store global": ("STG", "ST"),
    "atomic": ("ATOMG", "ATOM", "RED", "REDG"),
    "shared": ("LDS", "STS", "LDSM", "STSM", "ATOMS"),
    "local": ("LDL", "STL"),
    "fp32": ("FFMA", "FADD", "FMUL", "FMNMX", "FSETP", "FSEL", "FCHK", "FSET", "FSWZADD"),
    "conversion": ("F2F", "F2FP", "I2F", "F2I", "I2FP", "HADD2", "HFMA2"),
    "mufu": ("MUFU",),
    "shuffle": ("SHFL", "REDUX", "VOTE", "MATCH"),
    "barrier": ("BAR", "SYNCS", "UCGABAR_ARV", "UCGABAR_WAIT"),
    "fence": ("MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "FENCE"),
    "wait": ("DEPBAR", "LDGDEPBAR", "WARPGROUP", "WARPSYNC", "NANOSLEEP", "WARPGROUPDEPBAR"),
    "control": ("BRA", "BRX", "EXIT", "BSSY", "BSYNC", "CALL", "RET", "NOP", "JMP", "BREAK"),
    "move": ("MOV", "CS2R", "S2R", "S2UR", "LDC", "ULDC", "LDCU", "R2UR", "UMOV", "P2R", "R2P"),
}  # fmt: skip
_CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}
_ENDS = ("BRA", "BRX", "EXIT", "RET", "JMP")
_SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)\.|\.(16)(8)(8|16|32)\.")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its opcode with suffixes, operands, guard ("" where there is none) and the
    source line the compiler notes for it."""

    opcode: str
    operands: str
    guard: str
    line: Line | None

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str:
        return _CLASS_OF.get(self.name, "integer")

    @property
    def bytes_per_lane(self) -> int:
        """Of a load or store."""
        for suffix, size in ((".128", 16), (".64", 8), ("16", 2), (".U8", 1), (".S8", 1)):
            if suffix in self.opcode:
                return size
        return 4

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a matrix instruction: of four warps for HGMMA, else of one."""
        found = _SHAPE.search(self.opcode + ".")
        if self.kind != "matrix" or found is None:
            return 0
        m, n, k = (int(part) for part in found.groups() if part)
        return m * n * k

    @property
    def shared_operand_bytes(self) -> int:
        """What an HGMMA reads from shared memory: B, and A unless it is in registers."""
        found = _SHAPE.search(self.opcode + ".")
        if self.name != "HGMMA" or found is None:
            return 0
        m, n, k = (int(part) for part in found.groups() if part)
        a_in_registers = self.operands.count("gdesc") == 1 and re.match(
            r"R\d+, R\d+, gdesc", self.operands
        )
        return 2 * k * (n if a_in_registers else n + m)


@dataclass
class Loop:
    """A natural loop.

    Attributes:
        number: in the order of headers. blocks: indices of its basic blocks, nested loops included.
        own: instructions outside of nested loops. parent: the loop around it.
    """

    number: int
    header: int
    blocks: frozenset[int]
    own: list[Instruction] = field(default_factory=list)
    parent: Loop | None = None

    @property
    def lines(self) -> Counter[Line]:
        return Counter(i.line for i in self.own if i.line is not None)

    @property
    def depth(self) -> int:
        """How many loops are around it."""
        return 0 if self.parent is None else self.parent.depth + 1

    def __str__(self) -> str:
        most = self.lines.most_common(3)
        lines = ", ".join(f"{Path(file).name}:{line} ({count})" for (file, line), count in most)
        return f"{'  ' * self.depth}loop {self.number}: {len(self.own)} instructions, {lines}"


@dataclass
class Code:
    """A kernel: basic blocks of instructions, and loops outermost first."""

    blocks: list[list[Instruction]]
    loops: list[Loop]
    within: list[Loop | None]


def disassemble(cubin: bytes) -> str:
    """SASS with source lines, by nvdisasm of Triton's own package."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-c", "-g", file.name], check=True, capture_output=True, text=True
        ).stdout  # fmt: skip


def read(text: str, kernel: str | None = None) -> Code:
    """Basic blocks and loops of SASS.

    Args:
        text: of nvdisasm -c, with -g for source lines. kernel: whose section; default: the first
            with instructions.

    Raises:
        ValueError: there are no such instructions.
    """
    blocks, starts = _split(_section(text, kernel))
    if not blocks:
        raise ValueError(f"text: expected SASS of kernel {kernel or '(any)'}, got no instructions")
    successors = [_successors(index, blocks, starts) for index in range(len(blocks))]
    bodies = sorted(natural_loops(successors).items())
    loops = [Loop(number, header, body) for number, (header, body) in enumerate(bodies)]
    within: list[Loop | None] = []
    for index, block in enumerate(blocks):
        around = [loop for loop in loops if index in loop.blocks]
        innermost = min(around, key=lambda loop: len(loop.blocks), default=None)
        within.append(innermost)
        if innermost is not None:
            innermost.own += block
    for loop in loops:
        outer = [o for o in loops if o is not loop and loop.blocks < o.blocks]
        loop.parent = min(outer, key=lambda o: len(o.blocks), default=None)
    return Code(blocks, loops, within)


def counts(text: str | Code, trips: Trips) -> Counter[str]:
    """What one warp of a program issues, by `measure`, with loops weighted by their trips.

    Both sides of a branch count in full, so this is a little too much.

    Args:
        text: SASS, or what `read` made of it. trips: how often a loop runs each time it is
            entered.
    """
    code = read(text) if isinstance(text, str) else text
    weights: dict[int, float] = {}

    def weight(loop: Loop | None) -> float:
        if loop is None:
            return 1.0
        if id(loop) not in weights:
            weights[id(loop)] = trips(loop) * weight(loop.parent)
        return weights[id(loop)]

    total: Counter[str] = Counter()
    for block, loop in zip(code.blocks, code.within, strict=True):
        times = weight(loop)
        for name, amount in measure(block).items():
            total[name] += times * amount  # type: ignore[assignment]
    return total


def measure(instructions: Iterable[Instruction]) -> Counter[str]:
    """Instructions by class, "issued" in all, and for one warp the bytes and multiply-accumulates:
    "bytes loaded" and "bytes stored" of global memory, "bytes copied" of it past L1, "bytes
    shared", "macs"."""
    total: Counter[str] = Counter()
    moved = {
        "load global": "bytes loaded", "copy to shared": "bytes copied",
        "store global": "bytes stored", "shared": "bytes shared",
    }  # fmt: skip
    for instruction in instructions:
        kind = instruction.kind
        total["issued"] += 1
        total[kind] += 1
        if kind in moved:
            through_l1 = kind == "copy to shared" and "BYPASS" not in instruction.opcode
            name = "bytes loaded" if through_l1 else moved[kind]
            total[name] += 32 * instruction.bytes_per_lane
        if kind == "matrix":
            share = 4 if instruction.name == "HGMMA" else 1
            total["macs"] += instruction.macs // share
            total["bytes shared"] += instruction.shared_operand_bytes // share
    return total


def _section(text: str, kernel: str | None) -> list[str]:
    sections: list[list[str]] = [[]]
    wanted = kernel is None
    for line in text.splitlines():
        if line.lstrip().startswith(".section"):
            wanted = kernel is None or f".text.{kernel}," in line or f".text.{kernel} " in line
            sections.append([])
        elif wanted:
            sections[-1].append(line)
    return next((s for s in sections if any(map(_INSTRUCTION.match, s))), [])


def _split(lines: list[str]) -> tuple[list[list[Instruction]], dict[str, int]]:
    """(basic blocks, label -> index of the block that begins there)."""
    blocks: list[list[Instruction]] = [[]]
    starts: dict[str, int] = {}
    at: Line | None = None
    for text in lines:
        if source := _SOURCE.match(text):
            at = source[1], int(source[2])
        elif label := _LABEL.match(text):
            if blocks[-1]:
                blocks.append([])
            starts[label[1]] = len(blocks) - 1
        elif found := _INSTRUCTION.match(text):
            _, guard, opcode, operands = found.groups()
            instruction = Instruction(opcode, operands, (guard or "").strip(), at)
            blocks[-1].append(instruction)
            if instruction.name in _ENDS:
                blocks.append([])
    if not blocks[-1]:
        blocks.pop()
        starts = {label: index for label, index in starts.items() if index < len(blocks)}
    return blocks, starts


def _successors(index: int, blocks: list[list[Instruction]], starts: dict[str, int]) -> list[int]:
    last = blocks[index][-1]
    following = [index + 1] if index + 1 < len(blocks) else []
    if last.name not in _ENDS or last.opcode.startswith("BRA.DIV"):
        return following
    always = not last.guard and not re.match(r"!?U?P\d", last.operands)
    target = _TARGET.search(last.operands)
    found = [starts[target[1]]] if target and target[1] in starts else []
    return found if always else found + following
