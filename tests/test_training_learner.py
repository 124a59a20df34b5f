"""The step of a training run: alone, in pieces, resumed, and shared by processes.

As a program, this file is one of several processes that share a step: RANK WORKERS RENDEZVOUS OUTPUT.
"""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from scgpt_ray.errors import WorkerError
from scgpt_ray.network.checkpoint import Architecture
from scgpt_ray.training.learner import Learner, Schedule
from scgpt_ray.training.network import ScGPT
from scgpt_ray.training.objective import OBJECTIVES, UNLABELLED, Weights, counts, loss_sums
from scgpt_ray.training.packing import CellTokens, Draws, microbatches

CPU = torch.device("cpu")
ARCHITECTURE = Architecture(16, 2, 16, 2, -2, 41)
WEIGHTS = Weights(value=0.01, cell=0.005, prompt=0.02, label=2, domain=0.1)
TYPES_AK = torch.tensor([[0.5, 2.0, 0.0], [0.0, 1.0, 1.0]])
SCHEDULE = Schedule(steps=20, learning_rate=1e-3, warmup_steps=4, clip=1.0)
DRAWS = Draws(5, 12, (0.25, 0.5), seed=0)
N_CELLS = 13


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More only wait for each other at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learner(schedule=SCHEDULE, dropout=0.0, weights=WEIGHTS, **more):
    torch.manual_seed(0)
    network = ScGPT(ARCHITECTURE, dropout=dropout, attention_dropout=dropout, n_labels=3, n_domains=2)
    return Learner(network, schedule, weights, TYPES_AK, **more)


def cells(n=N_CELLS):
    """Cells of three types: the type shows in the bins of the first genes."""
    random = np.random.default_rng(2)
    made = []
    for number in range(n):
        kind, n_genes = number % 3, random.integers(4, 30)
        gene = random.permutation(40)[:n_genes]
        bins = np.where(gene % 3 == kind, 50, random.integers(1, 5, n_genes))
        atlas = int(kind == 2)
        label = kind if number % 4 else UNLABELLED
        made.append(CellTokens(np.append(40, gene), np.append(0, bins).astype(np.uint8), atlas, label, number % 3 - 1))
    return list(enumerate(made))


def batches(step, *, budget=10**9, share=slice(None), draws=DRAWS, of=None, generative=True):
    values = {"pad_value": -2.0}
    shared = (of or cells())[share]
    return list(microbatches(shared, step, draws, budget, **values, generative=generative, device=CPU))


def weights_of(learner):
    return {name: parameter.detach().clone() for name, parameter in learner.network.named_parameters()}


def assert_near(ours, theirs, tolerance):
    """Weights agree, but for the bias of keys: softmax does not see it, and Adam makes steps of the noise it gets."""
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        difference = (weight - theirs[name]).abs()
        if tolerance and name.endswith("Wqkv.bias"):
            difference = torch.cat([difference[:16], difference[32:]])
        assert difference.max() <= tolerance, name


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.25),
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),
        (8, 0.5 * (1 + math.cos(math.pi / 4))),
        (12, 0.5),
        (19, 0.5 * (1 + math.cos(math.pi * 15 / 16))),
    ],
)
def test_the_schedule(step, rate):
    assert Schedule(steps=20, learning_rate=1.0, warmup_steps=4, clip=1.0).rate(step) == pytest.approx(rate)


def test_the_schedule_without_warmup():
    rates = [Schedule(steps=3, learning_rate=2.0, warmup_steps=0, clip=1.0).rate(step) for step in range(3)]
    assert rates == pytest.approx([2.0, 1.5, 0.5])


def test_the_optimiser_has_the_rate_of_the_step():
    ours = learner()
    told = [ours.learn(batches(step))["learning_rate"] for step in range(6)]
    assert told == [SCHEDULE.rate(step) for step in range(6)]
    assert ours.optimizer.param_groups[0]["lr"] == told[-1]


@pytest.mark.parametrize("generative", [True, False], ids=["generative", "masked"])
@pytest.mark.parametrize("budget", [1, 40, 10**9], ids=["a cell each", "some", "one"])
def test_microbatches_change_nothing(budget, generative):
    """Against one pass over all cells, with torch's own losses and optimiser, in float64: Adam enlarges noise."""
    ours, plain = learner(), learner()
    for one in (ours, plain):
        one.network.double()
    optimizer = torch.optim.Adam(plain.network.parameters())

    def exact(**more):
        return [replace(one, value_T=one.value_T.double()) for one in batches(step, generative=generative, **more)]

    for step in range(3):
        told = ours.learn(exact(budget=budget))
        (batch,) = exact()
        optimizer.zero_grad()
        n_terms = counts(batch, prompted=True)
        means = loss_sums(plain.network, batch, TYPES_AK, prompted=True) / n_terms.clamp(min=1)
        (means * WEIGHTS.per_unit()).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.network.parameters(), SCHEDULE.clip)
        optimizer.param_groups[0]["lr"] = SCHEDULE.rate(step)
        optimizer.step()
        assert told["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
        measured = {name: mean for name, mean, n in zip(OBJECTIVES, means.tolist(), n_terms, strict=True) if n}
        assert ("prompt" in measured) is generative
        assert {name: told[name] for name in OBJECTIVES if name in told} == pytest.approx(measured, rel=1e-4)
    assert_near(weights_of(ours), weights_of(plain), 1e-6)


def test_the_second_pass_may_begin_later():
    """It is always part of a validation, so that losses can be compared."""
    ours = learner(unprompted_steps=2)
    told = [set(ours.learn(batches(step))) for step in range(3)]
    assert ["prompt" in names for names in told] == [False, False, True]
    assert "prompt" in learner(unprompted_steps=2).evaluate(batches(0))[0]
    without = learner(weights=replace(WEIGHTS, prompt=0))
    assert "prompt" not in without.learn(batches(0))
    assert "prompt" not in without.evaluate(batches(0))[0]


def test_resuming_is_going_on(tmp_path):
    """Also of dropout, and through a file that is loaded without running code."""
    undisturbed = learner(dropout=0.3)
    for step in range(3):
        undisturbed.learn(batches(step))
    torch.save(undisturbed.state(), tmp_path / "state.pt")
    resumed = learner(dropout=0.3)
    torch.rand(5)  # wherever the generator of the process is
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.step == 3
    for step in range(3, 5):
        assert undisturbed.learn(batches(step)) == resumed.learn(batches(step))
    assert_near(weights_of(resumed), weights_of(undisturbed), 0)


def test_the_seed_draws_dropout():
    told = [learner(dropout=0.3, seed=seed).learn(batches(0))["value"] for seed in (0, 0, 1)]
    assert told[0] == told[1] != told[2]


def test_judging_changes_nothing_and_draws_nothing():
    ours = learner(dropout=0.3)
    before = weights_of(ours)
    means, loss = ours.evaluate(batches(0, budget=30))
    assert ours.evaluate(batches(0)) == (pytest.approx(means, rel=1e-5), pytest.approx(loss, rel=1e-5))
    assert_near(weights_of(ours), before, 0)
    assert ours.step == 0
    parts = WEIGHTS.per_unit()[:4] * torch.tensor([means[name] for name in OBJECTIVES[:4]])
    assert loss == pytest.approx(float(parts.sum()), rel=1e-5)
    assert means["domain"] > 0  # measured, but no aim


def test_the_loss_falls():
    """Cells of three types whose bins tell the type."""
    ours = learner(
        Schedule(steps=40, learning_rate=1e-2, warmup_steps=5, clip=1.0), weights=Weights(0.005, 0.005, 0.005, 1, 0)
    )
    many, draws = cells(48), Draws(16, 30, (0.25, 0.5), seed=0)
    first, _ = ours.evaluate(batches(1000, of=many, draws=draws))
    for step in range(40):
        ours.learn(batches(step, of=many, draws=draws))
    last, _ = ours.evaluate(batches(1000, of=many, draws=draws))
    assert last["label"] < 0.4 * first["label"]
    assert last["value"] < 0.7 * first["value"]
    assert last["cell"] < 0.7 * first["cell"]
    assert last["prompt"] < 0.7 * first["prompt"]


def test_an_objective_without_terms_is_not_told():
    unlabelled = [(place, replace(cell, label=UNLABELLED, domain=UNLABELLED)) for place, cell in cells()]
    told = learner().learn(batches(0, of=unlabelled))
    assert set(told) == {"loss", "value", "cell", "prompt", "gradient_norm", "learning_rate"}
    assert all(math.isfinite(value) for value in told.values())


def test_a_step_without_any_term_leaves_the_weights():
    one_gene = [
        (place, CellTokens(cell.gene[:2], cell.bin[:2], cell.atlas, UNLABELLED, UNLABELLED)) for place, cell in cells()
    ]
    for label_head in (True, False):
        ours = learner()
        if not label_head:
            ours = Learner(ScGPT(ARCHITECTURE, dropout=0.0), SCHEDULE, Weights(), None)
        before = weights_of(ours)
        told = ours.learn(batches(0, of=one_gene, draws=Draws(5, 12, (0.25,), seed=0)))
        assert told == {"loss": 0.0, "gradient_norm": 0.0, "learning_rate": SCHEDULE.rate(0)}
        assert_near(weights_of(ours), before, 0)


def test_a_worker_without_cells_takes_part():
    told = learner().learn([])
    assert told == {"loss": 0.0, "gradient_norm": 0.0, "learning_rate": SCHEDULE.rate(0)}


def test_a_gradient_that_is_not_finite_stops_the_run():
    ours = learner()
    with torch.no_grad():
        ours.network.decoder.fc[4].bias.fill_(1e30)
    before = weights_of(ours)
    with pytest.raises(WorkerError, match="the gradient of step 0 is not finite; try a lower --learning-rate"):
        ours.learn(batches(0))
    assert_near(weights_of(ours), before, 0)


def test_the_gradient_is_clipped():
    """A step is along the same gradient, however long: Adam does not see its length in the first step, its sums do."""
    free, clipped = (learner(replace(SCHEDULE, clip=clip)) for clip in (1e9, 1e-3))
    norms = [one.learn(batches(0))["gradient_norm"] for one in (free, clipped)]
    assert norms[0] == norms[1] > 1e-3
    for one, norm in ((free, norms[0]), (clipped, 1e-3)):
        squares = [state["exp_avg"].square().sum() for state in one.optimizer.state.values()]
        assert 10 * float(torch.stack(squares).sum().sqrt()) == pytest.approx(norm, rel=1e-3)


def test_bfloat16_is_near_float32():
    told = [learner(dtype=dtype).learn(batches(0)) for dtype in (torch.float32, torch.bfloat16)]
    for name in OBJECTIVES:
        assert told[1][name] == pytest.approx(told[0][name], rel=0.02)
    assert told[0] != told[1]
    ours = learner(dtype=torch.bfloat16)
    ours.learn(batches(0))
    assert {weight.dtype for weight in weights_of(ours).values()} == {torch.float32}


def take_part(rank, workers):
    """What one of several workers is told, and its weights in the end; in the last step all but the first idle."""
    ours = learner()
    told = [
        ours.learn(batches(step, share=slice(rank, None, workers), budget=50, of=cells(N_CELLS if step < 2 else 1)))
        for step in range(3)
    ]
    evaluated = ours.evaluate(batches(100, share=slice(rank, None, workers)))
    whole = Draws(30, 30, (), seed=0)
    shown = batches(0, share=slice(rank, None, workers), draws=whole, generative=False)
    vectors, labels = ours.embed([(0, batch) for batch in shown], N_CELLS)
    return {
        "told": told, "evaluated": evaluated, "weights": weights_of(ours), "vectors": vectors, "labels": labels
    }  # fmt: skip


def test_workers_that_share_a_step_do_the_same_step(tmp_path):
    alone = take_part(0, 1)
    here = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    meeting = [str(2), str(tmp_path / "meeting"), str(tmp_path)]
    running = [subprocess.Popen([sys.executable, __file__, str(rank), *meeting], env=here) for rank in range(2)]
    assert [process.wait(timeout=280) for process in running] == [0, 0]
    assert alone["labels"].tolist() == [cell.label for _, cell in cells()]
    torch.testing.assert_close(alone["vectors"].norm(dim=1), torch.ones(N_CELLS))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_near(found["weights"], alone["weights"], 1e-5)
        assert found["told"] == [pytest.approx(told, rel=1e-4) for told in alone["told"]]
        assert torch.equal(found["labels"], alone["labels"])
        torch.testing.assert_close(found["vectors"], alone["vectors"], rtol=0, atol=1e-4)
        assert found["evaluated"][0] == pytest.approx(alone["evaluated"][0], rel=1e-4)
        assert found["evaluated"][1] == pytest.approx(alone["evaluated"][1], rel=1e-4)


def main():
    rank, workers, meeting, output = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=int(rank), world_size=int(workers))
    torch.save(take_part(int(rank), int(workers)), Path(output) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
