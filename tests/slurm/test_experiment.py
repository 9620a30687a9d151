"""The small experiment by `sbatch`, from end to end, and what may befall a job on its way."""

from __future__ import annotations

import signal

import pyarrow.parquet as pq
from one_node import ACCOUNT, GPUS, PARTITION, wait_until
from submission import RECORDS, Workflow, ended


def test_the_chain_runs_by_sbatch_from_end_to_end(finished: Workflow) -> None:
    results = finished.folder / "results" / "small"
    for name in ("summary.csv", "headline.json", "figures/score_vs_ratio.svg"):
        assert (results / name).stat().st_size
    assert pq.read_metadata(finished.records).num_rows == 4
    for rule in ("calibrate", "profile", "allocate", "evaluate"):
        [job] = finished.jobs(rule)
        assert "JobState=COMPLETED" in job


def test_each_rule_asks_for_what_the_configuration_says(finished: Workflow) -> None:
    for rule, memory, minutes in (("calibrate", "2000M", "00:30:00"), ("evaluate", "2300M", "00:45:00")):
        [job] = finished.jobs(rule)
        for asked in (f"Account={ACCOUNT} ", f"Partition={PARTITION} ", f"TimeLimit={minutes} ", f"mem={memory},"):
            assert asked in job


def test_a_rule_with_the_model_receives_a_gpu_and_one_without_does_not(finished: Workflow) -> None:
    [job], [other] = finished.jobs("evaluate"), finished.jobs("calibrate")
    assert "TresPerJob=gres:gpu:1" in job
    assert "gres:gpu" not in other
    log = (finished.folder / "results/small/logs/records/tiny-llama/niah_single_1.log").read_text()
    assert log.splitlines()[0] in [f"baklava evaluate: GPU {number}" for number in range(GPUS)]


def test_a_cancelled_job_is_made_up_for_by_a_rerun(without_records: Workflow, finished: Workflow) -> None:
    workflow = without_records
    disturbed = workflow.start(RECORDS, "--retries", "0")
    job = workflow.wait_for_job("evaluate", "RUNNING")
    log = workflow.folder / "results/small/logs/records/tiny-llama/niah_single_1.log"
    wait_until(log.exists, seconds=600, what="the command has begun")
    workflow.cluster.run("scancel", job)
    assert ended(disturbed) != 0
    assert not workflow.records.exists()
    assert workflow.run(RECORDS) == 0, workflow.output
    assert workflow.records.read_bytes() == finished.records.read_bytes()


def test_a_job_killed_for_memory_is_submitted_again_with_more(without_records: Workflow, finished: Workflow) -> None:
    workflow = without_records
    assert workflow.run(RECORDS, overrides="resources.evaluate.mem_mb=500") == 0, workflow.output
    killed, *others, completed = workflow.jobs("evaluate")
    assert "mem=500M," in killed
    assert "JobState=FAILED" in killed or "JobState=OUT_OF_MEMORY" in killed
    assert f"mem={500 * (2 + len(others))}M," in completed
    assert "JobState=COMPLETED" in completed
    assert workflow.records.read_bytes() == finished.records.read_bytes()


def test_a_job_that_waits_for_a_drained_node_is_made_up_for_by_a_rerun(
    without_records: Workflow, finished: Workflow
) -> None:
    workflow, cluster = without_records, without_records.cluster
    cluster.run("scontrol", "update", f"NodeName={cluster.host}", "State=DRAIN", "Reason=test")
    try:
        disturbed = workflow.start(RECORDS)
        workflow.wait_for_job("evaluate", "PENDING")
        assert cluster.node_state() == "drained"
        disturbed.send_signal(signal.SIGINT)  # the user gives up, for today
        assert ended(disturbed) != 0
        wait_until(lambda: not cluster.run("squeue", "--noheader"), seconds=60, what="Snakemake cancels its jobs")
    finally:
        cluster.run("scontrol", "update", f"NodeName={cluster.host}", "State=RESUME")
    assert workflow.run(RECORDS) == 0, workflow.output
    assert workflow.records.read_bytes() == finished.records.read_bytes()
