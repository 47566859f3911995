"""The costs that :func:`steppe.optim.footprint` counts, and their table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ByteCounts:
    """Bytes by what they are for."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class StrategyCosts:
    """What one way to use many devices costs.

    Attributes
    ----------
    device
        Bytes that the fullest device holds.
    everywhere
        Bytes that all devices hold together.
    sent
        Bytes that the busiest device sends in a step.
    """

    device: ByteCounts
    everywhere: ByteCounts
    sent: ByteCounts


@dataclass(frozen=True)
class Footprint:
    """What :func:`footprint` counts. It prints as a table.

    Attributes
    ----------
    numel
        Number of parameters.
    world_size
        Number of devices.
    message
        Bytes of the numbers that the optimizer itself adds up over the devices in a step under
        FSDP2; under DDP it needs none.
    fsdp
        Parameters, gradients and state are sharded, as ``fully_shard`` does (ZeRO-3).
    ddp
        Every device holds all, as under ``DistributedDataParallel``.
    """

    numel: int
    world_size: int
    message: int
    fsdp: StrategyCosts
    ddp: StrategyCosts

    def __str__(self) -> str:
        columns = [self.fsdp.device, self.fsdp.everywhere, self.ddp.device]
        sent = [self.fsdp.sent, self.ddp.sent]
        lines = [
            f"{self.numel:,} parameters, {self.world_size:,} devices",
            _line("held", "FSDP2, each", "FSDP2, all", "DDP, each"),
            *(_line(name, *(_memory(x[name]) for x in map(vars, columns))) for name in _ROWS),
            _line("sent per step", "FSDP2, each", "", "DDP, each"),
            *(
                _line(name, _traffic(fsdp[name]), "", _traffic(ddp[name]))
                for fsdp, ddp in [map(vars, sent)]
                for name in _ROWS
            ),
        ]
        return "\n".join(lines)


_ROWS = ("parameters", "gradients", "optimizer")


def _line(name: str, *cells: str) -> str:
    indent = "  " * (name in _ROWS)
    return f"{indent + name:<14}" + "".join(f"{cell:>14}" for cell in cells)


def _memory(size: int) -> str:
    return _readable(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _traffic(size: int) -> str:
    return _readable(size, 1000, ("B", "kB", "MB", "GB", "TB"))


def _readable(size: int, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while size >= base ** (power + 1) and power < len(units) - 1:
        power += 1
    return f"{size / base**power:.{2 * (power > 0)}f} {units[power]}"
