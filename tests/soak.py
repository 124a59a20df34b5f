"""Kills the verbs at random moments and counts what goes wrong: python tests/soak.py --rounds 300 [--ray 20].

A round runs a verb in a process, sends a random process of it a random signal at a random moment, and repeats the
command until it succeeds. Then nothing may be lost, double, different from undisturbed runs, or left over. It prints a
table, and exits with 1 if there is anything in it. Processes are forked from one that has imported the libraries, which
takes longer than the work; the database of MLflow is that of the output folder.
"""

import argparse
import atexit
import contextlib
import getpass
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import psutil

GENES = [f"GENE{number}" for number in range(60)]
SIGNALS = [*4 * [signal.SIGKILL], *2 * [signal.SIGTERM], signal.SIGINT]
VICTIMS = {"worker": "ray::", "raylet": "raylet", "gcs": "gcs_server"}
"""Processes of Ray, by the beginning of their name."""
KEPT = ("log", "ray", f"torchinductor_{getpass.getuser()}")
"""What stays in the folder for temporary files: logs of ours and of Ray's sessions, a cache of torch."""
LONGEST_S, ENDS_S = 300, {"serial": 10, "ray": 70}
"""Longest run, and time until the processes below a killed one are gone."""

EMBED = "--cells-per-partition 10 --obs-columns cell_type --checkpoint {place}/checkpoint"
COMMANDS = {
    "embed": f"--atlas {{place}}/atlas.h5ad {EMBED}",
    "index": "--embeddings {place}/reference --shards 3 --label-columns cell_type",
    "map": "--query {place}/query.h5ad --index {place}/index --checkpoint {place}/checkpoint --k 5",
    "pretrain": "--atlas {place}/atlas.h5ad --embsize 16 --nheads 2 --d-hid 16 --nlayers 1 --steps 12 --warmup-steps 2"
    " --cells-per-step 16 --steps-per-checkpoint 3 --cells-per-partition 50 --max-length 16",
    "refresh": "--embeddings {place}/reference --atlas {place}/later.h5ad --cells-per-partition 10",
}
PRODUCTS = {
    "embed": "parts/part-*",
    "index": "*.faiss",
    "map": "predictions.parquet/part-*",
    "pretrain": "checkpoint/*",
    "refresh": "parts/part-*",
}
"""Files that two undisturbed runs must have alike to the byte; other files are compared if they have."""
IDS = {
    "index": ("ids-*.npy", ""),
    "map": ("predictions.parquet/part-*", "obs_id"),
    "pretrain": ("tokens/*/part-*", "obs_id"),
}


@dataclass
class Runs:
    """The place of all runs, and the parent of their processes."""

    place: Path
    context: multiprocessing.context.ForkServerContext
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    def start(self, verb, executor, output, scratch):
        words = [verb, *COMMANDS[verb].format(place=self.place).split(), "--output", str(output)]
        process = self.context.Process(target=run, args=([*words, "--executor", executor], scratch))
        process.start()
        return process

    def ask(self, function, *arguments):
        """Call a function in a process; its answer."""
        with contextlib.closing(self.context.SimpleQueue()) as answers:
            process = self.context.Process(target=answer, args=(answers, function, *arguments))
            process.start()
            process.join()
            assert process.exitcode == 0
            return answers.get()

    def undisturbed(self, verb, executor):
        """The folder of a run that nothing happens to."""
        output = self.place / f"{verb}-{executor}"
        began = time.monotonic()
        process = self.start(verb, executor, output, self.place)
        process.join()
        assert process.exitcode == 0, verb
        self.seconds[verb, executor] = time.monotonic() - began
        return output


def run(words, scratch):
    """A command in this process, as `python -m scgpt_ray` runs it."""
    import scgpt_ray.cli

    os.setsid()
    sys.modules["umap"] = None  # as if it were not installed: it takes 8 s to compile
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
    with (scratch / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        code = scgpt_ray.cli.main(words)
    except KeyboardInterrupt:  # before or after the command: Python ends by the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    atexit._run_exitfuncs()  # multiprocessing does not
    sys.exit(code)


def answer(answers, function, *arguments):
    answers.put(function(*arguments))


def make_inputs(place):
    """Atlas, query, atlas with more cells, checkpoint."""
    import anndata
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    from scgpt_ray.network.checkpoint import random_checkpoint

    generator = np.random.default_rng(7)
    kinds = np.arange(240) % 3
    counts = generator.poisson(generator.gamma(0.5, 2.0, (3, 60))[kinds]).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(["B", "T", "NK"])[kinds]}, index=[f"cell-{n}" for n in range(240)])
    var = pd.DataFrame({"feature_name": GENES}, index=GENES)
    cells = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var)
    for name, rows in (("atlas", slice(200)), ("query", slice(140, 240)), ("later", slice(20, 240))):
        cells[rows].copy().write_h5ad(place / f"{name}.h5ad")
    random_checkpoint(place / "checkpoint", GENES, embsize=32, nheads=2, d_hid=32, nlayers=2)


def count(output, expected, pattern, column):
    """Number of ids that are lost, and that are there twice."""
    import numpy as np
    import pyarrow.parquet as pq

    def ids(folder):
        files = sorted(folder.glob(pattern))
        arrays = [
            pq.read_table(file, columns=[column])[column].to_numpy() if column else np.load(file) for file in files
        ]
        return Counter(np.concatenate(arrays).tolist() if arrays else [])

    found, wanted = ids(output), ids(expected)
    return (wanted - found).total(), (found - wanted).total()


def audit(verb, output):
    """What validate finds."""
    import scgpt_ray

    place = {"embeddings" if verb in ("embed", "refresh") else "index": str(output)}
    return list(scgpt_ray.validate(**place)) if verb in ("embed", "refresh", "index") else []


def files(folder):
    """Content of the files below a folder, without MLflow's, what it did not take in time, and Ray Train's by time."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    others = ("mlflow", "mlartifacts", "tracking.jsonl", "training/ray/")
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(others)}


def choose(process, executor, generator):
    """(name, process id): who gets the signal; the driver if it has started no other process yet."""
    found = [("driver", process.pid)] if executor == "ray" else [("process", process.pid)]
    for below in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            name = (below.cmdline() or [""])[0].rpartition("/")[2]
            found += [(victim, below.pid) for victim, begins in VICTIMS.items() if name.startswith(begins)]
    name = generator.choice(sorted({name for name, _ in found}))
    return generator.choice([pair for pair in found if pair[0] == name])


def one_round(runs, generator, executor, expected):
    """Run, kill, run again, look: ((verb, victim, signal), figures)."""
    verb, sent = generator.choice([*expected]), generator.choice(SIGNALS)
    with tempfile.TemporaryDirectory(dir=runs.place, prefix="r") as folder:
        output, scratch = Path(folder, "out"), Path(folder, "tmp")
        scratch.mkdir()
        process = runs.start(verb, executor, output, scratch)
        process.join(generator.uniform(0, runs.seconds[verb, executor]))
        below, victim = [], "too late"
        if process.exitcode is None:
            below = psutil.Process(process.pid).children(recursive=True)
            victim, number = choose(process, executor, generator)
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, sent)
        killed = time.monotonic()
        process.join(LONGEST_S)
        figures, problems = Counter(rounds=1), []
        if not is_documented(process.exitcode, victim, sent):
            problems.append(f"exit code {process.exitcode}")
            figures["exits"] += 1
        left = [path.name for path in scratch.iterdir() if path.name not in KEPT] if sent != signal.SIGKILL else []
        again = 0
        while process.exitcode != 0 and again < 4:
            process.kill()
            again += 1
            process = runs.start(verb, executor, output, scratch)
            process.join(LONGEST_S)
        figures["seconds"] = time.monotonic() - killed
        if process.exitcode != 0:
            problems.append(f"exit code {process.exitcode} of the last run")
            figures["exits"] += 1
        _, alive = psutil.wait_procs(below, timeout=max(0, killed + ENDS_S[executor] - time.monotonic()))
        figures["orphans"] = len(alive)
        compare(runs, verb, output, expected[verb], figures, problems, left)
        problems += [f"alive: {one}" for one in alive]
        if problems or figures["orphans"]:
            log = "\n".join((scratch / "log").read_text().splitlines()[-25:])
            sys.stderr.write(f"{verb} {executor} {victim} {sent.name}: {problems}\n{log}\n")
    return (verb, victim, sent.name.removeprefix("SIG")), figures


def is_documented(code, victim, sent):
    """Whether an exit code is one of those that the command line documents."""
    if victim in ("process", "driver"):
        return code in {0, -sent} | ({128 + sent} if sent != signal.SIGKILL else set())
    return code in ({0} if victim == "too late" else {0, 1})


def compare(runs, verb, output, expected, figures, problems, left):
    """Content and names of the files against an undisturbed run's."""
    alike, names = expected
    found = files(output)
    different = sorted(name for name, content in alike.items() if found.get(name) != content)
    more = sorted(found.keys() - names) + left
    problems += [f"different: {name}" for name in different] + [f"left: {name}" for name in more]
    problems += [f"missing: {name}" for name in sorted(names - found.keys() - alike.keys())]
    pattern, column = IDS.get(verb, ("parts/part-*", "obs_id"))
    figures["lost"], figures["twice"] = runs.ask(count, output, runs.place / f"{verb}-serial", pattern, column)
    figures["different"], figures["leftovers"] = len(different), len(more)
    audited = runs.ask(audit, verb, output)
    problems += audited
    figures["invalid"] = len(audited) + len(names - found.keys())


def prepared(place, verbs, executors):
    """The runs, and of each verb the files that are alike in two undisturbed ones, and the names of all."""
    context = multiprocessing.get_context("forkserver")
    pipelines = ["embed", "index", "map", "pretrain", "refresh", "validate"]
    more = ["scgpt_ray.execution.ray_executor", "ray.dag"] if "ray" in executors else []
    more += ["scgpt_ray.training.loop", "torch._dynamo", "mlflow", "anndata", "sklearn.neighbors"]
    more += ["scgpt_ray.atlas.h5ad", "scgpt_ray.execution.engine", "scgpt_ray.evaluation.report.plots"]
    context.set_forkserver_preload(
        ["soak", *(f"scgpt_ray.pipelines.{name}" for name in pipelines), *more, "scgpt_ray.cli"]
    )
    runs = Runs(place, context)
    process = context.Process(target=make_inputs, args=(place,))
    process.start()
    process.join()
    expected = {}
    for verb in verbs:
        outputs = []
        for executor in ("serial", *(executor for executor in executors if executor != "serial"), "serial"):
            outputs.append(files(runs.undisturbed(verb, executor)))
            if len(outputs) == 1:
                (place / f"{verb}-serial").rename(place / {"embed": "reference"}.get(verb, verb))
        # Records name the folder and the devices of the last run, the report its date.
        dated = (".json", "report.html")
        data = {name: data for name, data in outputs[0].items() if "/" in name or not any(one in name for one in dated)}
        alike = {name: content for name, content in data.items() if all(o.get(name) == content for o in outputs)}
        products = {str(path.relative_to(runs.place)) for path in runs.place.glob(f"{verb}-serial/{PRODUCTS[verb]}")}
        unlike = products - {f"{verb}-serial/{name}" for name in alike}
        assert not unlike, f"undisturbed runs differ in {sorted(unlike)}"
        expected[verb] = alike, set(outputs[0]).union(*outputs)
    return runs, expected


COLUMNS = ("rounds", "lost", "twice", "different", "invalid", "exits", "orphans", "leftovers")


def table(found):
    """Lines of Markdown."""
    yield f"| verb | victim | signal | {' | '.join(COLUMNS)} | seconds |"
    yield "|---" * (len(COLUMNS) + 4) + "|"
    for key, figures in sorted(found.items()):
        cells = [*key, *(figures[name] for name in COLUMNS), f"{figures['seconds'] / figures['rounds']:.1f}"]
        yield f"| {' | '.join(map(str, cells))} |"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="in one process")
    parser.add_argument("--ray", type=int, default=0, help="rounds on a local Ray")
    parser.add_argument("--verbs", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="each needs those before it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after this time")
    parser.add_argument("--log", type=Path, help="append each round to this file, as a JSON line")
    asked = parser.parse_args(arguments)
    generator, began = random.Random(asked.seed), time.monotonic()
    found = defaultdict(Counter)
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        threads = len(os.sched_getaffinity(0)) if asked.ray else 1  # pretraining differs by them
        os.environ |= {"PYTHONPATH": path, "HOME": place, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": str(threads)}
        runs, expected = prepared(Path(place), asked.verbs, ["ray"] if asked.ray else [])
        for executor in [*asked.rounds * ["serial"], *asked.ray * ["ray"]]:
            if time.monotonic() - began > 60 * asked.minutes:
                break
            key, figures = one_round(runs, generator, executor, expected)
            found[key].update(figures)
            if asked.log:
                with asked.log.open("a") as log:
                    log.write(json.dumps([executor, *key, figures]) + "\n")
    sys.stdout.write("\n".join([*table(found), ""]))
    return int(any(figures[name] for figures in found.values() for name in COLUMNS[1:]))


if __name__ == "soak":  # in the parent of the processes
    from scgpt_ray import mlflow_run

    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    mlflow_run._empty_store()  # takes seconds, and would be most of a round

if __name__ == "__main__":
    sys.exit(main())
