"""Which device and number format a run takes, on GPUs that this machine need not have."""

from unittest import mock

import pytest
import torch

from classifier.device import choose_device, choose_dtype, refuse_other_masks, tune
from classifier.errors import UserError

RECENT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120a", "compute_120"]  # as a recent build for CUDA has them
OLDER = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA = torch.device("cuda")


def gpu(name: str, capability: tuple[int, int], built_for: list[str], cuda: str | None = "12.8"):
    """A machine with this GPU and a PyTorch that is built for these."""
    return mock.patch.multiple(
        "torch.cuda",
        is_available=lambda: True,
        get_device_capability=lambda *_: capability,
        get_device_name=lambda *_: name,
        get_arch_list=lambda: built_for,
    ), mock.patch("torch.version.cuda", cuda)


@pytest.mark.parametrize(
    "name, capability, built_for, dtype",
    [
        ("H100", (9, 0), RECENT, torch.bfloat16),
        ("A100", (8, 0), RECENT, torch.bfloat16),
        ("T4", (7, 5), RECENT, torch.float16),
        ("V100", (7, 0), OLDER, torch.float16),
        ("GTX 1080", (6, 1), OLDER, torch.float32),
        ("MI250", (9, 0), ["gfx900", "gfx90a", "gfx942"], torch.bfloat16),
    ],
)
def test_a_gpu_is_taken_with_the_format_that_it_is_fast_in(name, capability, built_for, dtype):
    machine, version = gpu(name, capability, built_for)
    with machine, version:
        assert choose_device("auto") == (CUDA, name) and choose_device("cuda")[0] == CUDA
        assert choose_dtype("auto", CUDA)[0] == dtype
        fast = {torch.bfloat16: {"bfloat16", "float16", "float32"}, torch.float16: {"float16", "float32"}}
        for setting in ("float32", "float16", "bfloat16"):
            chosen, reason = choose_dtype(setting, CUDA)
            assert str(chosen) == f"torch.{setting}"
            assert ("slow" in reason) == (setting not in fast.get(dtype, {"float32"}))
            assert ("TF32" in reason) == (setting == "float32" and capability >= (8, 0))


@pytest.mark.parametrize("name, capability", [("GTX 1080", (6, 1)), ("V100", (7, 0))])
def test_a_gpu_that_the_build_leaves_out_is_passed_over_and_named(name, capability):
    machine, version = gpu(name, capability, RECENT)
    with machine, version:
        device, reason = choose_device("auto")
        assert device.type == "cpu"
        assert f"needs compute capability 7.5 or more, {name} has {capability[0]}.{capability[1]}" in reason
        with pytest.raises(UserError, match="install PyTorch for an older CUDA"):
            choose_device("cuda")


def test_an_apple_gpu_gets_float32_and_no_masks_that_cannot_be_drawn_again():
    mps = torch.device("mps")
    with mock.patch("torch.backends.mps.is_available", lambda: True):
        assert choose_device("auto")[0] == mps
    assert choose_dtype("auto", mps)[0] == torch.float32
    with pytest.raises(UserError, match="float16 needs a CUDA GPU"):
        choose_dtype("float16", mps)
    with pytest.raises(UserError, match="wrong gradients on an Apple GPU"):
        refuse_other_masks(mps, activation_checkpointing=True, dropout=0.1)
    for device, recomputes, dropout in ((mps, True, 0.0), (mps, False, 0.1), (CUDA, True, 0.1)):
        refuse_other_masks(device, recomputes, dropout)


def test_tuning_for_a_gpu_turns_off_attention_that_plans_for_every_shape():
    machine, version = gpu("H100", (9, 0), RECENT)
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    try:
        with machine, version:
            tune(CUDA, torch.bfloat16)
            assert torch.get_float32_matmul_precision() == "highest"  # the head's, which alone is in float32
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            tune(CUDA, torch.float32)
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.enable_cudnn_sdp(before[1])
