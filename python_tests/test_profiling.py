"""edlm_engine.tools.profiling on made-up profiles, and on a real one where nothing runs on a GPU."""

import pytest
from checkpoints import config_dict, write_checkpoint

from edlm_engine import Engine
from edlm_engine.tools.profiling import _MARK, Activity, gpu_activity, summary


def host(name, begin, length=1.0):
    return Activity(name, False, begin, begin + length)


def gpu(name, begin, length):
    return Activity(name, True, begin, begin + length)


MARKS = [host(_MARK, 100, 100), gpu(_MARK, 100, 100)]


def test_summary():
    found = summary(
        [
            host("cudaDeviceSynchronize", 10),  # of the profiler itself, before the generation
            gpu("kernel", 20, 5),
            *MARKS,
            host("cudaLaunchKernel", 101),
            host("cuLaunchKernelEx", 102),
            host("cudaMemcpyAsync", 103),
            host("cudaGraphLaunch", 104),
            host("cudaStreamSynchronize", 105),
            host("cudaEventSynchronize", 106),
            host("aten::mm", 107),
            gpu("kernel", 140, 10),
            gpu("kernel", 155, 10),
            gpu("kernel", 160, 10),  # on another stream
            gpu("Memcpy DtoH (Device -> Pinned)", 170, 10),
            host("cudaDeviceSynchronize", 300),
        ],
        steps=3,
        blocks=2,
    )
    assert found == {
        "synchronisations_per_block": 1.0,
        "launches_per_step": 1.0,
        "kernels_per_step": 1.0,
        "gpu_ms_per_step": pytest.approx(0.035 / 3),
        "outside_kernels_share": pytest.approx(1 - 35 / 40),
    }


@pytest.mark.parametrize("work", [[], [gpu("kernel of the prompt", 110 + i, 1) for i in range(30)]])
def test_kernels_that_the_profiler_does_not_see(work):
    found = summary([*MARKS, host("cudaGraphLaunch", 104), *work], steps=2, blocks=1)
    assert found["launches_per_step"] == 0.5
    assert found["kernels_per_step"] is found["outside_kernels_share"] is None


@pytest.mark.parametrize("stepping", ["eager", "direct"])
def test_a_real_profile_without_a_gpu(tmp_path, stepping):
    folder = write_checkpoint(tmp_path / "checkpoint", config_dict())
    params = {"max_new_tokens": 20, "threshold": None, "steps_per_block": 2, "ignore_eos": True}
    with Engine(folder, device="cpu", stepping=stepping) as engine:
        found = gpu_activity(engine, [[3, 4]], params)
    assert found["synchronisations_per_block"] == found["launches_per_step"] == 0
    assert found["kernels_per_step"] is None
