"""Small work runs in this process; Ray is taken where it is asked for, needed, or there already."""

import pytest

from scgpt_ray.config import ComputeSettings
from scgpt_ray.execution import engine
from scgpt_ray.execution.engine import SMALL, LocalOrRay
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.network import embedder


@pytest.mark.parametrize(
    ("choice", "n_cells", "compute", "workers", "ray_is_there", "expected"),
    [
        ("auto", 700, {}, 1, False, False),
        ("auto", SMALL, {}, 1, False, False),
        ("auto", SMALL + 1, {}, 1, False, True),
        ("auto", 700, {}, 1, True, True),
        ("auto", 700, {}, 2, False, True),
        ("auto", 700, {"gpus": 1}, 1, False, True),
        ("auto", 700, {"device": "cpu"}, 1, False, False),
        ("auto", 700, {"actors": 1}, 1, False, True),
        ("serial", 10**8, {"actors": 2}, 2, True, False),
        ("ray", 1, {}, 1, False, True),
    ],
)
def test_the_choice(monkeypatch, choice, n_cells, compute, workers, ray_is_there, expected):
    monkeypatch.setattr(engine, "has_ray", lambda: ray_is_there)
    assert LocalOrRay(choice).uses_ray(n_cells, ComputeSettings(**compute), workers) is expected


def test_an_address_is_a_ray_that_is_there(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert engine.has_ray()


def test_serial_work_opens_this_process():
    with LocalOrRay("serial").open(10**8) as executor:
        assert isinstance(executor, SerialExecutor)
        assert executor.tasks(pow, [(2, 3), (3, 2)]) == [8, 9]
        [double] = executor.actors(list, [((1, 2, 1),)], cpus=1)
        assert double("count", 1)() == 2


@pytest.mark.parametrize(("choice", "expected"), [("serial", 3), ("auto", 3), ("ray", 3)])
def test_without_ray_gpus_are_those_of_this_machine(monkeypatch, choice, expected):
    monkeypatch.setattr(embedder, "gpus_of_machine", lambda: 3)
    monkeypatch.setattr(engine, "has_ray", lambda: False)
    assert LocalOrRay(choice).gpus() == expected


@pytest.mark.ray
def test_with_ray_gpus_are_those_of_the_cluster(local_ray, monkeypatch):
    monkeypatch.setattr(embedder, "gpus_of_machine", lambda: 3)
    assert LocalOrRay("auto").gpus() == SerialExecutor().gpus
    assert LocalOrRay("serial").gpus() == 3
