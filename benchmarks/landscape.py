"""Measure time and errors of curvature of small networks, beside other libraries.

python benchmarks/landscape.py [--quick] [--rounds 3]

One thread, all 1 797 digits in one batch. Each cost is over that of a gradient taken in the same
moments. Eigenvalues are held against float64, traces and densities against a dense Hessian. Ends
with status 1 if a target is missed. Other libraries are measured where they are installed:
pip install pyhessian curvlinops-for-pytorch hessian-eigenthings
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import cyclopts
import numpy as np
import torch
from libraries import LIBRARIES, STEPPE, TOLERANCE, WANTED, Library, of_matrix
from numpy.typing import NDArray
from problems import CRITERION, Problem, cnn, dense, digits, layered, mlp, small
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from steppe import landscape
from steppe._shared.cli_options import AT_LEAST_ONE
from steppe._shared.console import make_console, refusals
from steppe._shared.messages import first_line
from steppe._shared.progress import progress
from steppe._shared.statistics import Ratio, ratio_of_medians
from steppe.bench import DISTURBED_RATIO, Action, peak_extra, time_in_turn

MOST_PER_PRODUCT = 3.1
MOST_OF_BEST_OTHER = 0.6
MOST_TRACE_ERROR = 0.004
LEAST_COVERAGE = 0.84
MOST_VECTORS = WANTED + 20

SEEDS = range(50)
FEW, MANY = 30, 99

_CPU = torch.device("cpu")
_GRADIENTS = 10  # in a row, so that the clock's own steps do not count


@dataclass(frozen=True)
class Cost:
    """Time in gradients, and whether other work of the machine disturbed the measurement."""

    ratio: Ratio
    is_disturbed: bool

    def __str__(self) -> str:
        """Write the median and its interval."""
        value, low, high = self.ratio
        return f"{value:.3g} ({low:.3g}–{high:.3g}){' †' if self.is_disturbed else ''}"


@dataclass(frozen=True)
class Verdict:
    """A target, and the measured value."""

    what: str
    wanted: str
    found: str
    is_met: bool


def main(
    *,
    quick: bool = False,
    rounds: int = 3,
) -> None:
    """Measure, print, and judge.

    Parameters
    ----------
    quick
        The MLP alone, once, and no memory.
    rounds
        How often each thing is timed, at least once.
    """
    with refusals():
        AT_LEAST_ONE.check("rounds", rounds)
    torch.set_num_threads(1)
    console = make_console()
    with refusals():
        problems = [mlp()] if quick else [mlp(), cnn()]
        libraries = present(console)
    rounds = 1 if quick else rounds
    verdicts = []
    for problem in problems:
        verdicts.append(judge_product(console, problem, libraries, 7 * rounds))
        verdicts += judge_eigenvalues(console, problem, libraries, rounds)
    matrix = dense(small())
    verdicts += judge_traces(console, problems, libraries, matrix, rounds)
    verdicts.append(judge_density(console, problems, libraries, matrix, rounds))
    if not quick:
        verdicts += judge_memory()
    report(console, verdicts)
    if not all(verdict.is_met for verdict in verdicts):
        raise SystemExit(1)


def present(console: Console) -> list[Library]:
    """Return the installed libraries, and print how to install the others."""
    for library in LIBRARIES:
        if not library.is_installed:
            console.print(f"Without {library.name}: pip install {library.package}")
    return [library for library in LIBRARIES if library.is_installed]


def judge_product(
    console: Console, problem: Problem, libraries: Sequence[Library], rounds: int
) -> Verdict:
    """Time a Hessian-vector product by each method and library."""
    hessian = partial(landscape.hessian, problem.model, CRITERION, problem.data)
    operators: dict[str, Any] = {
        "steppe, double backward": hessian(),
        "steppe, forward over reverse": hessian(product="forward-over-reverse"),
        "steppe, finite differences": hessian(product="finite-differences"),
        "steppe, Gauss–Newton": landscape.ggn(problem.model, CRITERION, problem.data),
    } | {
        library.name: problem.operator(library)
        for library in libraries
        if library is not STEPPE and library.of_matrix
    }
    vector = torch.randn(hessian().size, generator=torch.Generator().manual_seed(0))
    products = [partial(operator.__matmul__, vector) for operator in operators.values()]
    costs = measured(problem, products, rounds)
    table = new_table(f"{problem.name}: a product", "way", "gradients")
    for name, cost in zip(operators, costs, strict=True):
        table.add_row(name, str(cost))
    console.print(table)
    return at_most(f"{problem.name}: product, gradients", costs[0], MOST_PER_PRODUCT)


def judge_eigenvalues(
    console: Console, problem: Problem, libraries: Sequence[Library], rounds: int
) -> list[Verdict]:
    """Find the five largest in magnitude with each library."""
    truth = true_eigenvalues(console, problem)

    def found_by(library: Library) -> tuple[list[float], int]:
        return library.eigenvalues(problem.operator(library))

    found = {library.name: found_by(library) for library in libraries}
    costs = measured(problem, [partial(found_by, library) for library in libraries], rounds)
    errors = [error_of(values, truth) for values, _ in found.values()]
    table = new_table(
        f"{problem.name}: {WANTED} eigenvalues", "library", "gradients", "products", "largest error"
    )
    for (name, (_, products)), cost, error in zip(found.items(), costs, errors, strict=True):
        table.add_row(name, str(cost), str(products), f"{error:.1e}")
    console.print(table)
    what = f"{problem.name}: eigenvalues"
    verdicts = [
        Verdict(f"{what}, error", f"≤ {TOLERANCE:g}", f"{errors[0]:.1e}", errors[0] <= TOLERANCE)
    ]
    right = [
        cost.ratio.value
        for cost, error in zip(costs[1:], errors[1:], strict=True)
        if error <= TOLERANCE
    ]
    if right:
        most = MOST_OF_BEST_OTHER * min(right)
        verdicts.append(at_most(f"{what}, gradients", costs[0], most))
    return verdicts


def judge_traces(
    console: Console,
    problems: Sequence[Problem],
    libraries: Sequence[Library],
    matrix: Tensor,
    rounds: int,
) -> list[Verdict]:
    """Time estimates of the trace on the networks, and find their errors on a dense matrix."""
    ways = [(library, method) for library in libraries for method in library.traces]

    def estimated(problem: Problem, library: Library, method: str) -> float:
        return library.traces[method](problem.operator(library), FEW, 0)

    costs = [
        measured(problem, [partial(estimated, problem, *way) for way in ways], rounds)
        for problem in problems
    ]
    table = new_table(
        "Trace",
        "library, method",
        *[f"{problem.name},\n{FEW} products" for problem in problems],
        *[f"{len(matrix)} parameters,\nerror at {count}" for count in (FEW, MANY)],
    )
    errors = {
        (library.name, method, count): trace_error(library, method, matrix, count)
        for library, method in ways
        for count in (FEW, MANY)
        if library.of_matrix
    }
    for number, (library, method) in enumerate(ways):
        found = [errors.get((library.name, method, count)) for count in (FEW, MANY)]
        table.add_row(
            f"{library.name}, {method}",
            *[str(column[number]) for column in costs],
            *["–" if error is None else f"{error:.2%}" for error in found],
        )
    console.print(table)
    console.print(f"Errors: root of the mean square over {len(SEEDS)} seeds.")
    return [
        Verdict(
            f"trace, {method}: error at {MANY} products",
            f"≤ {MOST_TRACE_ERROR:.1%}",
            f"{errors[STEPPE.name, method, MANY]:.2%}",
            errors[STEPPE.name, method, MANY] <= MOST_TRACE_ERROR,
        )
        for method in ("hutch++", "xtrace")
    ]


def trace_error(library: Library, method: str, matrix: Tensor, products: int) -> float:
    """Return the relative error, root of its mean square over seeds."""
    assert library.of_matrix is not None
    operator, truth = library.of_matrix(matrix), matrix.double().trace().item()
    estimates = [library.traces[method](operator, products, seed) for seed in SEEDS]
    return float(np.sqrt(np.mean((np.array(estimates) / truth - 1.0) ** 2)))


def judge_density(
    console: Console,
    problems: Sequence[Problem],
    libraries: Sequence[Library],
    matrix: Tensor,
    rounds: int,
) -> Verdict:
    """Time densities on the networks; on a dense matrix, hold integral and trace against truth."""

    def drawn(problem: Problem, library: Library) -> object:
        return library.density(problem.operator(library))

    table = new_table("Density, 1 probe, 40 steps", "library", *[one.name for one in problems])
    for library in libraries:
        cells = []
        for problem in problems:
            action = partial(drawn, problem, library)
            try:
                cells.append(str(measured(problem, [action], rounds)[0]))
            except (RuntimeError, ValueError) as error:
                cells.append(f"fails: {first_line(error)[:40]} …")
        table.add_row(library.name, *cells)
    console.print(table)
    truth = matrix.double().trace().item()
    found = [landscape.density(of_matrix(matrix), seed=seed) for seed in SEEDS]
    apart = max(abs(float(np.trapezoid(one.density, one.grid)) - 1.0) for one in found)
    console.print(f"Integrals are 1 within {apart:.0e}.")
    covered = np.mean([abs(one.trace - truth) <= 2 * one.trace_stderr for one in found])
    return Verdict(
        "density: traces within 2 standard errors",
        f"≥ {LEAST_COVERAGE:.0%}",
        f"{covered:.0%}",
        bool(covered >= LEAST_COVERAGE),
    )


def judge_memory() -> list[Verdict]:
    """Measure the memory that the eigenvectors of a wide MLP take beside the model."""
    inputs, targets = digits()
    model = layered(64, 3_280, 3_280, 10)
    # Few samples, so that the memory of activations does not count.
    H = landscape.hessian(model, CRITERION, [(inputs[:8], targets[:8])])
    extra = peak_extra(lambda: landscape.top_eigenvalues(H, k=WANTED), _CPU)
    if extra is None:
        return []
    vectors = extra / (H.dtype.itemsize * H.size)
    return [
        Verdict(
            f"{WANTED} eigenvectors of {H.size / 1e6:.0f} M parameters: memory, in vectors",
            f"≤ {MOST_VECTORS}",
            f"{vectors:.1f}",
            vectors <= MOST_VECTORS,
        )
    ]


def true_eigenvalues(console: Console, problem: Problem) -> NDArray[np.float64]:
    """Return the eigenvalues from float64, checked by the products of other libraries."""
    inputs, targets = problem.data[0]
    exact = Problem(problem.name, deepcopy(problem.model).double(), [(inputs.double(), targets)])
    H = landscape.hessian(exact.model, CRITERION, exact.data)
    product = LinearOperator(
        H.shape, matvec=lambda v: H.matvec(torch.from_numpy(v).flatten()).numpy(), dtype=np.float64
    )
    values, vectors = eigsh(product, k=WANTED, which="LM", tol=1e-10, v0=np.ones(H.size))
    for library in LIBRARIES:
        if library.is_installed and library.of_matrix:
            operator, vector = exact.operator(library), torch.from_numpy(vectors[:, 0].copy())
            residual = (operator @ vector - values[0] * vector).norm().item() / abs(values[0])
            console.print(f"{problem.name}: residual of the truth by {library.name} {residual:.0e}")
    return ordered(values)


def ordered(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Sort by magnitude, the largest first."""
    return np.array(sorted(values, key=abs, reverse=True), dtype=np.float64)


def error_of(values: Sequence[float], truth: NDArray[np.float64]) -> float:
    """Return the largest relative error."""
    return float(np.abs(ordered(values) / truth - 1.0).max())


def measured(problem: Problem, actions: Sequence[Action], rounds: int) -> list[Cost]:
    """Time actions in turn with gradients."""

    def unit() -> None:
        for _ in range(_GRADIENTS):
            problem.gradient()

    times: list[list[float]] = [[] for _ in range(1 + len(actions))]
    with progress(problem.name, rounds) as advance:
        for _ in range(rounds):
            for taken, (seconds,) in zip(
                times, time_in_turn([unit, *actions], 1, _CPU), strict=True
            ):
                taken.append(seconds)
            advance(1)
    units = [seconds / _GRADIENTS for seconds in times[0]]
    is_disturbed = float(np.median(units)) > DISTURBED_RATIO * min(units)
    return [Cost(ratio_of_medians(taken, units), is_disturbed) for taken in times[1:]]


def at_most(what: str, cost: Cost, most: float) -> Verdict:
    """Return the verdict on a cost; a disturbed measurement meets no target."""
    return Verdict(
        what, f"≤ {most:.3g}", str(cost), cost.ratio.value <= most and not cost.is_disturbed
    )


def report(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print targets and measured values."""
    table = new_table("Targets", "what", "target", "measured", "")
    for one in verdicts:
        table.add_row(one.what, one.wanted, one.found, "met" if one.is_met else "missed")
    console.print(table)
    console.print("Costs in gradients over all data: median, and 95 % interval of the ratio.")
    if any("†" in one.found for one in verdicts):
        console.print("† The machine was busy with other work: measure again when it is at rest.")


def new_table(title: str, first: str, *others: str) -> Table:
    """Begin a table whose first column is text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right")
    return table


if __name__ == "__main__":
    cyclopts.run(main)
