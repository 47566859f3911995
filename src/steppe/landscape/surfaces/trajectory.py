"""The parameters recorded during training, and the plane that shows most of their movement."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from steppe._shared.array_types import Floats
from steppe.landscape.objective.differentiate import flat_vector
from steppe.landscape.result import Result

Center = Literal["last", "mean"]

# Elements of each record that are converted to float64 at a time, to bound the memory.
_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class PCA(Result):
    """The two principal directions of a :class:`Trajectory`.

    Attributes
    ----------
    directions : Tensor
        Orthonormal rows of shape (2, size), in float64; not in :meth:`to_dict`.
    coordinates : ndarray
        Each record's coordinates in the plane, from the centre; shape (records, 2).
    explained : ndarray
        The share of the records' squared distance from the centre along each direction; shape (2,).
    center : Tensor
        The point that the plane goes through, shape (size,), in float64; not in :meth:`to_dict`.
    """

    left_out: ClassVar[tuple[str, ...]] = ("directions", "center")

    directions: Tensor = field(repr=False)
    coordinates: Floats
    explained: Floats
    center: Tensor = field(repr=False)


class Trajectory:
    """The parameters at moments of training, which :func:`~steppe.landscape.plane` can show.

    Records are kept in float32 on the CPU: each takes 4 bytes per element.

    Examples
    --------
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> path = Trajectory()
    >>> for weight in ([4.0, 0.0], [2.0, 1.0], [0.0, 0.0]):
    ...     _ = model.weight.data.copy_(torch.tensor([weight]))
    ...     path.record(model)
    >>> len(path), path.points.shape
    (3, torch.Size([3, 2]))
    >>> path.pca().explained.round(3)
    array([0.962, 0.038])
    """

    def __init__(self) -> None:
        self._records: list[Tensor] = []

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    @property
    def points(self) -> Tensor:
        """The records as rows, shape (records, size): a copy."""
        return torch.stack(self._records) if self._records else _zeros(0, torch.float32)

    def record(self, model_or_params: nn.Module | Iterable[Tensor]) -> None:
        """Append a copy of the parameters to the records.

        Parameters
        ----------
        model_or_params : nn.Module or iterable of Tensor
            A model, of which the parameters that require a gradient are recorded, or the tensors to
            record; the same at each call.

        Raises
        ------
        ValueError
            There is no parameter, or the number of elements differs from that of earlier records.
        """
        if isinstance(model_or_params, nn.Module):
            model_or_params = (p for p in model_or_params.parameters() if p.requires_grad)
        taken = list(model_or_params)
        if any(param.is_complex() for param in taken):
            raise TypeError("parameters must be tensors of real numbers: some are complex")
        parts = [param.detach().to("cpu", torch.float32) for param in taken]
        if not parts:
            raise ValueError("there is no parameter to record: none requires a gradient")
        point = flat_vector(parts)
        if self._records and len(point) != len(self._records[0]):
            raise ValueError(
                f"the parameters have {len(point)} elements, those of the records so far "
                f"{len(self._records[0])}: record the same parameters each time"
            )
        self._records.append(point)

    def pca(self, center: Center = "last") -> PCA:
        r"""Return the plane that shows most of the movement, by principal component analysis.

        Its directions are the first two right singular vectors of the matrix X whose rows are the
        records minus the centre. They are computed from the eigenvectors of :math:`X X^⊤`, whose
        size is the number of records, so that little memory is needed beside that of the records.

        Parameters
        ----------
        center : str, default "last"
            "last": the plane goes through the last record, as in Li et al. "mean": it goes through
            the mean of the records.

        Returns
        -------
        PCA
            Directions point so that the first record's coordinates are not negative.

        Raises
        ------
        ValueError
            ``center`` is unknown, a record is not finite, or the records span no plane.

        References
        ----------
        Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, arXiv 1712.09913,
        section 7.
        """
        if center not in ("last", "mean"):
            raise ValueError(f"center={center!r} is not one of last, mean")
        for index, record in enumerate(self._records):
            if not record.isfinite().all():
                raise ValueError(f"record {index} is not finite")
        gram = _zeros(len(self), torch.float64)
        for rows, _ in self._centred(center):
            gram.addmm_(rows, rows.T)
        squares, vectors = np.linalg.eigh(gram.numpy())
        # A singular value below the rounding error of the largest tells no direction.
        if len(self) < 3 or squares[-2] <= len(self) * np.finfo(float).eps * squares[-1]:
            raise ValueError(
                f"the {len(self)} records span no plane: it takes three that do not lie on a "
                "straight line"
            )
        vectors = vectors[:, [-1, -2]] * np.where(vectors[0, [-1, -2]] < 0, -1.0, 1.0)
        lengths = np.sqrt(squares[[-1, -2]])
        mixing = torch.from_numpy((vectors / lengths).T)
        blocks = [(mixing @ rows, middle) for rows, middle in self._centred(center)]
        return PCA(
            directions=torch.cat([directions for directions, _ in blocks], dim=1),
            coordinates=vectors * lengths,
            explained=lengths**2 / squares.sum(),
            center=torch.cat([middle for _, middle in blocks]),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the records, not copied: for :func:`torch.save`."""
        return {"records": list(self._records)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the records by those of a :meth:`state_dict`.

        It may come from ``torch.load(..., weights_only=True)``.

        Raises
        ------
        ValueError
            They are not float32 vectors of one length; the present records are then kept.
        """
        records = state.get("records")
        if not isinstance(records, list) or not all(map(_is_record, records)):
            raise ValueError("state has no list 'records' of float32 vectors")
        if len({len(record) for record in records}) > 1:
            raise ValueError("the records in state are of different lengths")
        self._records = [record.cpu() for record in records]

    def _centred(self, center: Center) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield blocks of columns in float64: the records minus the centre, and the centre."""
        size = len(self._records[0]) if self._records else 0
        for first in range(0, size, _BLOCK):
            rows = torch.stack([record[first : first + _BLOCK] for record in self._records])
            rows = rows.double()
            middle = rows[-1].clone() if center == "last" else rows.mean(dim=0)
            yield rows.sub_(middle), middle


def _zeros(size: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(size, size, dtype=dtype, device="cpu")


def _is_record(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and value.dtype == torch.float32
