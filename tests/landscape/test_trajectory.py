"""The principal plane of a trajectory against a dense SVD; what is recorded and saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from steppe.landscape import Trajectory
from steppe.landscape.surfaces import trajectory


def recorded(points: torch.Tensor) -> Trajectory:
    path = Trajectory()
    for point in points:
        path.record([point])
    return path


def random_walk(records: int, size: int) -> torch.Tensor:
    steps = torch.randn(records, size, generator=torch.Generator().manual_seed(0))
    return 5.0 + steps.cumsum(dim=0)


@pytest.mark.parametrize("center", ["last", "mean"])
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_the_plane_is_that_of_the_svd(
    center: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectory, "_BLOCK", block)
    points = random_walk(9, 40)
    dense = points.double().numpy()
    middle = dense[-1] if center == "last" else dense.mean(axis=0)
    _, lengths, right = np.linalg.svd(dense - middle)

    pca = recorded(points).pca(center)
    directions = pca.directions.numpy()
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.abs(directions @ right[:2].T), np.eye(2), atol=1e-10)
    np.testing.assert_allclose(pca.center, middle, rtol=1e-14)
    np.testing.assert_allclose(pca.coordinates, (dense - middle) @ directions.T, atol=1e-10)
    np.testing.assert_allclose(pca.explained, lengths[:2] ** 2 / (lengths**2).sum())
    assert (pca.coordinates[0] >= 0).all()


def test_a_path_in_a_plane_is_explained_fully() -> None:
    basis = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(1))).Q
    coordinates = torch.tensor([[4.0, 0.0], [3.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    pca = recorded(coordinates @ basis.T).pca()
    assert pca.explained.sum() == pytest.approx(1.0)
    distances = np.linalg.norm(pca.coordinates, axis=1)
    np.testing.assert_allclose(distances, coordinates.norm(dim=1), rtol=1e-6, atol=1e-12)
    assert set(pca.to_dict()) == {"coordinates", "explained"}


def test_records_copies_in_the_order_of_parameters() -> None:
    model = nn.Linear(2, 1).double()
    model.weight.data = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    model.bias.data = torch.tensor([3.0], dtype=torch.float64)
    path = Trajectory()
    path.record(model)
    model.weight.data.zero_()
    model.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="have 2 elements, those of the records so far 3"):
        path.record(model)
    path.record(model.parameters())
    assert len(path) == 2
    assert torch.equal(path.points, torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]]))
    assert path.points.dtype == torch.float32


def test_a_single_parameter_is_copied_too() -> None:
    path = recorded(torch.ones(1, 3))
    layer = nn.Linear(3, 1, bias=False)
    nn.init.ones_(layer.weight)
    path.record(layer)
    nn.init.zeros_(layer.weight)
    assert torch.equal(path.points, torch.ones(2, 3))


def test_is_saved_and_loaded(tmp_path: Path) -> None:
    path, again = recorded(random_walk(4, 5)), Trajectory()
    torch.save(path.state_dict(), tmp_path / "path.pt")
    again.load_state_dict(torch.load(tmp_path / "path.pt", weights_only=True))
    assert torch.equal(again.points, path.points)


def test_a_state_is_of_its_moment() -> None:
    path, again = recorded(random_walk(4, 5)), Trajectory()
    state = path.state_dict()
    again.load_state_dict(state)
    path.record([torch.zeros(5)])
    assert (len(path), len(again), len(state["records"])) == (5, 4, 4)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no list 'records' of float32 vectors"),
        ({"records": [torch.zeros(2, dtype=torch.float64)]}, "no list 'records'"),
        ({"records": [torch.zeros(2), torch.zeros(3)]}, "of different lengths"),
    ],
)
def test_refuses_a_state_of_something_else(state: dict[str, object], message: str) -> None:
    path = recorded(random_walk(4, 5))
    with pytest.raises(ValueError, match=message):
        path.load_state_dict(state)
    assert len(path) == 4


def test_refuses_a_model_without_trainable_parameters() -> None:
    with pytest.raises(ValueError, match="no parameter to record"):
        Trajectory().record(nn.ReLU())


def test_refuses_an_unknown_center() -> None:
    with pytest.raises(ValueError, match="center='first' is not one of last, mean"):
        recorded(random_walk(4, 5)).pca("first")


def test_refuses_a_record_that_is_not_finite() -> None:
    points = random_walk(4, 5)
    points[2, 1] = torch.inf
    with pytest.raises(ValueError, match="record 2 is not finite"):
        recorded(points).pca()


@pytest.mark.parametrize(
    "points",
    [
        torch.zeros(0, 3),
        torch.ones(5, 3),
        torch.eye(2),
        torch.arange(4.0).unsqueeze(1) * torch.tensor([[1.0, 2.0, 4.0]]),
    ],
    ids=["none", "all equal", "two", "on a line"],
)
def test_refuses_records_that_span_no_plane(points: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"the {len(points)} records span no plane"):
        recorded(points).pca()
