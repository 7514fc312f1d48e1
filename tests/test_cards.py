"""GPUs of this machine and cards by name, as the driver's own tool tells of them."""

import subprocess

import pytest

from orchestrator.cards import CARDS, Gpu, card_of, installed_gpus, unusable

H100 = "NVIDIA H100 80GB HBM3, 81559, 580.95.05\n"


def test_what_the_driver_says_is_read() -> None:
    assert (
        installed_gpus(lambda: H100 * 2)
        == (Gpu(name="NVIDIA H100 80GB HBM3", memory=81_559 << 20, driver="580.95.05"),) * 2
    )


@pytest.mark.parametrize(
    "problem", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 20), subprocess.CalledProcessError(9, "x")]
)
def test_a_machine_whose_driver_does_not_answer_has_no_gpus(problem: Exception) -> None:
    def ask() -> str:
        raise problem

    assert installed_gpus(ask) == ()


@pytest.mark.parametrize("text", ["", "No devices were found\n", "NVIDIA GB10, [N/A], 580.95.05\n"])
def test_an_answer_without_a_size_is_no_gpu(text: str) -> None:
    assert installed_gpus(lambda: text) == ()


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA RTX A4000", "RTX A4000"),
    ],
)
def test_a_gpu_is_known_by_the_words_of_its_name(told: str, kind: str) -> None:
    card = card_of([Gpu(name=told, memory=7, driver="580.1")], "B200")
    assert (card.name, card.memory) == (told, 7)
    assert (card.flops, card.bandwidth) == (CARDS[kind].flops, CARDS[kind].bandwidth)


def test_the_smallest_gpu_decides_and_an_unknown_one_has_a_size_alone() -> None:
    large = Gpu(name="NVIDIA H100 80GB HBM3", memory=80, driver="580.1")
    card = card_of([large, Gpu(name="NVIDIA H100 PCIe", memory=79, driver="580.1")], "B200")
    assert (card.memory, card.flops, card.bandwidth) == (79, None, None)


def test_without_a_gpu_the_planned_card_stands() -> None:
    assert card_of([], "RTX 4090") is CARDS["RTX 4090"]


@pytest.mark.parametrize(
    ("packages", "driver", "said"),
    [
        (
            {"torch": "2.13.0+cpu"},
            "580.95.05",
            "torch 2.13.0+cpu is built without CUDA; `make setup-gpu` installs the one with it",
        ),
        (
            {"torch": "2.13.0", "nvidia-cuda-runtime": "13.0.96"},
            "570.86.10",
            "torch 2.13.0 is built for CUDA 13.0.96, which needs a driver from 580 on, got 570.86.10",
        ),
        ({"torch": "2.13.0", "nvidia-cuda-runtime": "13.0.96"}, "580.65.06", None),
        ({"torch": "2.13.0"}, "470.1", None),
        ({}, "470.1", None),
    ],
)
def test_a_torch_that_cannot_use_the_gpus_is_told(packages: dict[str, str], driver: str, said: str | None) -> None:
    assert unusable([Gpu(name="x", memory=1, driver=driver)], packages.get) == said
