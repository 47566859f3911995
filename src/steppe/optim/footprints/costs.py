"""The result of :func:`steppe.optim.footprint`: bytes held and sent, and their table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ByteCounts:
    """Numbers of bytes, by what they hold.

    Attributes
    ----------
    parameters, gradients
        Those of the model.
    optimizer
        The optimizer's state; of what is sent, what the optimizer itself sends.
    """

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum of all three."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class StrategyCosts:
    """What one parallelism strategy, such as FSDP2, costs in memory and traffic.

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
    """The result of :func:`steppe.optim.footprint`; ``print`` shows it as a table.

    All attributes but ``numel`` and ``world_size`` are bytes. The table shows what is held in
    powers of 1024 (KiB, MiB, GiB), as memory is, and what is sent in powers of 1000 (kB, MB, GB),
    as traffic is.

    Attributes
    ----------
    numel
        Number of parameters.
    world_size
        Number of devices.
    message
        Bytes of the norms that the optimizer itself sums over the devices in a step under FSDP2.
        What each device sends of them in a ring is ``fsdp.sent.optimizer``. Under DDP it sums none,
        and ``ddp.sent.optimizer`` is 0.
    fsdp
        Costs under FSDP2, whose ``fully_shard`` shards parameters, gradients and state (ZeRO-3).
    ddp
        Costs under ``DistributedDataParallel``, where every device holds everything.
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
            *(_line(name, *(_held_bytes(x[name]) for x in map(vars, columns))) for name in _ROWS),
            _line("sent per step", "FSDP2, each", "", "DDP, each"),
            *(
                _line(name, _sent_bytes(fsdp[name]), "", _sent_bytes(ddp[name]))
                for fsdp, ddp in [map(vars, sent)]
                for name in _ROWS
            ),
        ]
        return "\n".join(lines)


_ROWS = ("parameters", "gradients", "optimizer")


def _line(name: str, *cells: str) -> str:
    indent = "  " * (name in _ROWS)
    return f"{indent + name:<14}" + "".join(f"{cell:>14}" for cell in cells)


def _held_bytes(size: int) -> str:
    return _readable(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _sent_bytes(size: int) -> str:
    return _readable(size, 1000, ("B", "kB", "MB", "GB", "TB"))


def _readable(size: int, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while size >= base ** (power + 1) and power < len(units) - 1:
        power += 1
    return f"{size / base**power:.{2 * (power > 0)}f} {units[power]}"
