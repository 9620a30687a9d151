"""The data of a profile: pooling over query heads, and its file."""

import numpy as np
import pytest

from baklava.errors import UserError
from baklava.importance.profile import Profile


def test_pooling_over_the_group():
    heads = np.array([[[1.0, 3.0, 10.0, 20.0]], [[3.0, 5.0, 10.0, 20.0]]], dtype=np.float32)  # [P=2, L=1, Hq=4]
    profile = Profile("m", 2, {"e": heads}, np.zeros((2, 1), np.float32))
    assert profile.kv_importance("e").tolist() == [[3.0, 15.0]]
    assert profile.kv_importance("e", pool="max").tolist() == [[4.0, 20.0]]
    with pytest.raises(UserError, match="median"):
        profile.kv_importance("e", pool="median")


def test_a_saved_profile_comes_back(tmp_path):
    path = tmp_path / "p.safetensors"
    heads = {"e": np.random.default_rng(0).random((2, 3, 4), dtype=np.float32)}
    layers = heads["e"][..., 0]  # not contiguous
    Profile("m", 2, heads, layers, {"path": "x", "revision": None}).save(path)
    again = Profile.load(path)
    assert (again.layer_importance == layers).all()
    assert (again.head_importance["e"] == heads["e"]).all()
    assert (again.model, again.n_kv_heads, again.n_layers, again.n_q_heads) == ("m", 2, 3, 4)
    assert again.meta == {"path": "x", "revision": None}


@pytest.mark.parametrize("keep", [0, 5, 60])
def test_a_truncated_profile_is_refused_by_name(tmp_path, keep):
    path = tmp_path / "p.safetensors"
    Profile("m", 2, {"e": np.ones((1, 1, 2), np.float32)}, np.ones((1, 1), np.float32)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"p\.safetensors: not a readable profile"):
        Profile.load(path)
