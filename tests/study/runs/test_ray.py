"""On a cluster of two machines of which one is lost in the middle, every run is made, once."""

import io
import threading
import time

import pytest
from rich.console import Console
from tests.study.runs.test_store import TRAINING
from tests.study.toy import silent

from latephase.study.analysis.results import load_results
from latephase.study.runs.budget import Budget
from latephase.study.runs.engines import RayEngine
from latephase.study.runs.experiments import Place, perform
from latephase.study.runs.plan import plan_runs
from latephase.study.runs.progress import Reporter
from latephase.study.runs.records import LateRun
from latephase.study.runs.store import Store

pytest.importorskip("ray")
# Ray leaves sockets and child processes to the garbage collector, and says this of its own future.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
]


@pytest.fixture
def cluster():
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def configurations(folder, seeds):
    place = Place(str(folder))
    assert perform(place, TRAINING, silent) == "complete"
    return place, plan_runs(
        Store(folder), TRAINING, checkpoint="all", strategies="sgd_tenth,hf_m12", seeds=seeds,
        budget=Budget.parse("300gradients"),
    )  # fmt: skip


def test_a_machine_is_lost_in_the_middle(tmp_path, cluster):
    place, records = configurations(tmp_path, seeds=3)
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    shown = io.StringIO()

    def lose_it():
        while shown.getvalue().count("complete") < 4:
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose_it)
    thread.start()
    engine = RayEngine(Reporter(Console(file=shown), quiet=False))
    engine(place, records)
    thread.join()

    results = load_results(Store(tmp_path))
    assert sorted(results.runs.index) == sorted(record.identity for record in records)
    assert results.failures.empty
    assert shown.getvalue().count("/18 ") == len(records) == 18
    for record in records:
        perform(place, record, silent)  # complete: nothing is done


@pytest.mark.parametrize(
    ("options", "device", "budget", "taken"),
    [
        ({}, "cpu", "10%", (3, 0)),  # a timed run has the smallest machine to itself
        ({}, "cpu", "9s", (3, 0)),
        ({}, "cpu", "9gradients", (1, 0)),
        ({}, "cuda", "9gradients", (1, 1)),
        ({"cpus": 2, "gpus": 0.5}, "cuda", "10%", (2, 0.5)),
    ],
)
def test_what_a_run_takes(options, device, budget, taken, monkeypatch):
    engine = RayEngine(Reporter(Console(), quiet=True), **options)
    machines = [{"Alive": True, "Resources": {"CPU": n}} for n in (8.0, 3.0)]
    lost = {"Alive": False, "Resources": {"CPU": 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [*machines, lost])
    submitted = []

    class Perform:
        def options(self, num_cpus, num_gpus):
            submitted.append((num_cpus, num_gpus))
            return self

        def remote(self, place, record):
            submitted.append((place.device, record.budget))

    monkeypatch.setattr(engine, "_perform", Perform())
    engine._submit(Place("runs", device=device), LateRun("t", 1, "swa", "swa", "averaging", {}, 0, budget))
    assert submitted == [taken, (device, budget)]
