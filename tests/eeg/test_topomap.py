"""The operator is MNE's interpolation: the same map, faster, in batches, with gradients."""

from __future__ import annotations

from collections.abc import Callable

import mne
import numpy as np
import pytest
import torch

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.recording import BIOSEMI_32, EMOTIV_14
from ngd_timm.eeg.topomap import TopomapOperator, standard_montage

EMOTIV, BIOSEMI = list(EMOTIV_14), list(BIOSEMI_32)
LOW = ["Fp1", "Fp2", "F9", "F10", "P9", "P10", "Iz", "Cz", "T9"]


def plotted_by_mne(values: np.ndarray, channels: list[str], size: int, montage: object = None) -> np.ndarray:
    """The image inside a `plot_topomap` figure with MNE's defaults, back row first."""
    from matplotlib.figure import Figure

    info = mne.create_info(channels, 1.0, "eeg")
    info.set_montage(montage or standard_montage("standard_1005"))
    axes = Figure().subplots()
    image, _ = mne.viz.plot_topomap(values, info, axes=axes, res=size, contours=0, sensors=False, show=False)
    return np.asarray(image.get_array().filled(0.0))


@pytest.mark.parametrize("channels", [EMOTIV, BIOSEMI, LOW], ids=["emotiv14", "biosemi32", "below the ears"])
@pytest.mark.parametrize("size", [32, 67, 224])
def test_the_map_equals_mnes_plot(channels: list[str], size: int) -> None:
    values = np.random.default_rng(size).standard_normal(len(channels))
    operator = TopomapOperator(channels, size=size)
    expected = plotted_by_mne(values, channels, size)
    assert np.abs(operator(values) - expected)[operator.mask].max() < 1e-5
    in_float32 = operator(torch.from_numpy(values).float().expand(3, -1))[1].numpy()
    assert np.abs(in_float32 - expected)[operator.mask].max() < 1e-5


def test_a_montage_with_head_shape_points_uses_the_sphere_fitted_to_them() -> None:
    standard = standard_montage("standard_1005").get_positions()
    rng = np.random.default_rng(0)
    shape = rng.standard_normal((80, 3))
    shape = np.array([0.002, -0.02, 0.03]) + 0.09 * shape / np.linalg.norm(shape, axis=1, keepdims=True)
    shape = shape[shape[:, 2] > 0]
    montage = mne.channels.make_dig_montage(
        {name: standard["ch_pos"][name] for name in EMOTIV},
        standard["nasion"],
        standard["lpa"],
        standard["rpa"],
        hsp=shape,
        coord_frame=standard["coord_frame"],
    )
    values = rng.standard_normal(14)
    operator = TopomapOperator(EMOTIV, size=32, montage=montage)
    assert np.abs(operator(values) - plotted_by_mne(values, EMOTIV, 32, montage))[operator.mask].max() < 1e-5
    assert np.abs(operator.matrix - TopomapOperator(EMOTIV, size=32).matrix).max() > 1e-2


def test_maps_are_zero_outside_the_head_and_constant_inside_for_equal_values() -> None:
    operator = TopomapOperator(BIOSEMI, size=32)
    maps = operator(np.full((2, 32), 3.5))
    np.testing.assert_allclose(maps[:, operator.mask], 3.5, atol=1e-9)
    assert np.all(maps[:, ~operator.mask] == 0)
    assert operator.mask[16, 16]
    assert not operator.mask[0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numpy_and_torch_give_their_own_kind_and_dtype_back(dtype: torch.dtype) -> None:
    operator = TopomapOperator(EMOTIV, size=16)
    values = torch.randn(2, 3, 14, generator=torch.Generator().manual_seed(0)).to(dtype)
    maps = operator(values)
    assert maps.shape == (2, 3, 16, 16)
    assert maps.dtype == dtype
    exact = operator(values.double().numpy())
    assert isinstance(exact, np.ndarray)
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 4e-2}.get(dtype, 1e-5)
    np.testing.assert_allclose(maps.double().numpy(), exact, atol=tolerance)
    assert operator(np.ones(14, dtype=np.float32)).dtype == np.float32
    assert operator(np.ones(14, dtype=np.float16)).dtype == np.float16
    assert operator(np.ones(14, dtype=np.int64)).dtype == np.float64


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])
def test_a_batch_of_any_shape_and_layout_holds_the_maps_of_its_rows(kind: Callable) -> None:
    operator = TopomapOperator(EMOTIV, size=16)
    values = np.random.default_rng(0).standard_normal((14, 3, 2)).T
    maps = operator(kind(values))
    assert maps.shape == (2, 3, 16, 16)
    np.testing.assert_allclose(maps[1, 2], operator(values[1, 2]), atol=1e-12)
    assert operator(kind(values)[:0]).shape == (0, 3, 16, 16)


def test_maps_follow_the_device_of_their_values() -> None:
    operator = TopomapOperator(EMOTIV, size=16)
    assert operator(torch.empty(2, 14, device="meta")).device.type == "meta"
    values = torch.randn(2, 14, device="cuda" if torch.cuda.is_available() else "cpu")
    maps = operator(values)
    assert maps.device == values.device
    np.testing.assert_allclose(maps.cpu(), operator(values.cpu()), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_flow_to_the_channel_values_even_after_a_first_call_in_inference_mode(dtype: torch.dtype) -> None:
    operator = TopomapOperator(EMOTIV, size=8)
    values = torch.randn(14, dtype=dtype)
    with torch.inference_mode():
        operator(values)
    values.requires_grad_()
    operator(values).sum().backward()
    np.testing.assert_allclose(values.grad, operator.matrix.sum(axis=0), rtol=1e-4, atol=1e-4)


def test_a_half_precision_autocast_does_not_touch_the_map() -> None:
    operator = TopomapOperator(EMOTIV, size=16)
    values = torch.randn(3, 14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = operator(values)
    assert torch.equal(maps, operator(values))


@pytest.mark.parametrize(
    ("channels", "settings", "words"),
    [
        ([*EMOTIV, "Qz", "X9"], {}, "Qz, X9"),
        ([*EMOTIV, "AF3"], {}, "given twice: AF3"),
        (["Fz", "Cz", "Pz"], {}, "at least 4"),
        (["T7", "T3", "Cz", "Fz", "Oz"], {}, "same position"),
        pytest.param(
            ["Fpz", "Fz", "Cz", "Pz", "Oz"],
            {"montage": "spherical_1005"},
            "one line",
            marks=pytest.mark.skipif(
                "spherical_1005" not in mne.channels.get_builtin_montages(), reason="an older MNE"
            ),
        ),
        (EMOTIV, {"montage": "standard_1006"}, "unknown montage 'standard_1006'; did you mean 'standard_10"),
        (EMOTIV, {"size": 0}, "pixels"),
    ],
)
def test_channels_montages_and_sizes_that_make_no_map_are_refused(
    channels: list[str], settings: dict, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        TopomapOperator(channels, **settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((14, 3)), "14 channels"),
        (torch.zeros(14, dtype=torch.int64), "floating"),
        (np.zeros(14, dtype=np.complex128), "real numbers, got an array of complex128"),
    ],
)
def test_values_of_another_shape_or_kind_are_refused(values: np.ndarray | torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TopomapOperator(EMOTIV, size=8)(values)


def test_electrodes_lie_where_the_map_shows_them() -> None:
    channels = ["Fz", "Cz", "Pz", "T7", "T8", "Oz"]
    operator = TopomapOperator(channels, size=65)
    right, front = operator.positions.T
    assert right[channels.index("T7")] < -0.5 < 0.5 < right[channels.index("T8")]
    assert front[channels.index("Oz")] < front[channels.index("Pz")] < front[channels.index("Fz")]
    for index in range(len(channels)):
        column, row = np.rint(32 + 32 * operator.positions[index]).astype(int)
        peak = operator(np.eye(len(channels))[index])
        assert peak[row, column] > 0.8
