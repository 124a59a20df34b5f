"""The measurement of a search by the number of shards, on little."""

from scgpt_ray.benchmark import shards


def test_the_answers_do_not_depend_on_the_shards():
    options = ["--cells", "3000", "--queries", "50", "--k", "5", "--shards", "1", "3", "--nprobe", "8"]
    figures = shards.measure(shards.parse(options))
    found = {(figure.setting["shards"], figure.name): figure.value for figure in figures}
    assert found[1, "recall@5"] == found[3, "recall@5"] > 0.8
    assert found[3, "queries with the answer of the first"] == 1
    assert all(found[n, name] > 0 for n in (1, 3) for name in ("opening", "50 queries", "memory of the open index"))
    assert {figure.setting["factory"] for figure in figures} == {"PCAR80,IVF64,PQ40x4fsr"}
